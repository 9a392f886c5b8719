"""PPO and A2C with smoothing: a KL term, entropy targets, floors, guarantees, and a start from a cloned policy."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from io import BufferedIOBase
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from rlsmooth.agents.acting import CRITIC, copy_actor
from rlsmooth.agents.cloning.bc import BC
from rlsmooth.agents.files.policy_file import constructor_arguments
from rlsmooth.agents.sb3 import begin_update, check_has_env, count_updates, quick_steps
from rlsmooth.agents.smoothed.entropy import (
    EntropyTarget,
    EntropyTerm,
    check_least_entropy,
    check_targets,
    entropy_target_for,
    nats_at,
)
from rlsmooth.agents.smoothed.lean import lean_update_of, plain_network_of
from rlsmooth.agents.smoothed.measures import PolicyMeasures, entropy_bound, measure_rollout, record_measures
from rlsmooth.agents.smoothed.numpy_training import NumpyTraining
from rlsmooth.agents.smoothed.policies import (
    SmoothedActorCriticCnnPolicy,
    SmoothedActorCriticPolicy,
    SmoothedMultiInputActorCriticPolicy,
    SmoothedPolicy,
)
from rlsmooth.agents.smoothed.references import has_default_reference
from rlsmooth.agents.spaces import (
    check_counts_from_start,
    check_network_space,
    check_same_spaces,
    normalised_space,
    wrap_env,
)
from rlsmooth.checks import check_in_range, check_positive_int
from rlsmooth.schedules import ScheduleLike, check_schedule, is_zero, linear_start, value_at
from rlsmooth.targets import Smoothing, as_smoothing
from rlsmooth.training.divergence import TrainingDivergedError, check_finite_model, check_finite_step
from rlsmooth.training.seeding import few_threads
from rlsmooth.untrusted import open_regular

# ---- arguments


def training_smoothing(value: ScheduleLike | Smoothing) -> Smoothing:
    """Convert an algorithm's `smoothing=` to a `Smoothing`, whose alpha is the coefficient of KL(reference‖pi).

    Raises:
        TypeError: it is neither a callable nor a value that `as_smoothing` accepts.
        ValueError: alpha is below 0, None, or not a single number.

    Examples:
        >>> training_smoothing("lin_0.1").alpha_at(0.5)
        0.05
    """
    is_schedule = callable(value) and not isinstance(value, (Smoothing, Tensor))
    smoothing = Smoothing(alpha=value) if is_schedule else as_smoothing(value)  # type: ignore[arg-type]
    alpha = smoothing.alpha
    if alpha is None:
        raise ValueError(
            "smoothing has alpha=None, which is no coefficient: give a number to smoothing and the recipe to the "
            'policy: policy_kwargs={"reference": Smoothing(alpha=None, ...)}.'
        )
    if isinstance(alpha, Tensor):
        if alpha.ndim:
            raise ValueError(f"smoothing has an alpha of shape {tuple(alpha.shape)}: an algorithm needs one number.")
        smoothing = dataclasses.replace(smoothing, alpha=float(alpha))
    start = smoothing.alpha if callable(smoothing.alpha) else smoothing.alpha_at(1.0)
    if not callable(start):
        check_in_range("smoothing", start, 0.0)
    return smoothing


def coefficient_at(smoothing: Smoothing, progress: float) -> float:
    """The coefficient at the progress remaining, `progress`.

    Raises:
        ValueError: a schedule returned a number below 0.

    Examples:
        >>> coefficient_at(training_smoothing(0.1), 0.5)
        0.1
    """
    alpha = smoothing.alpha_at(progress)
    return check_in_range("smoothing", float(alpha) if isinstance(alpha, Tensor) else alpha, 0.0)


FLOORS = {
    "exploration_floor": (0.0, 1.0),
    "min_entropy_frac": (0.0, 1.0),
    "min_entropy_nats": (-math.inf, math.inf),
}
"""The arguments that make the behaviour policy another than pi, which exclude each other, and the range of each."""


def floor_in(arguments: Mapping[str, Any]) -> str | None:
    """The one of `FLOORS` that is given, or None.

    Raises:
        TypeError: it is neither a number, nor text, nor callable.
        ValueError: it is out of range, or there are two.

    Examples:
        >>> floor_in({"exploration_floor": 0.0, "min_entropy_frac": 0.3})
        'min_entropy_frac'
    """
    given = []
    for name, (low, high) in FLOORS.items():
        value = arguments.get(name)
        if value is not None or (name == "exploration_floor" and name in arguments):  # off is 0 there
            check_schedule(name, value, low=low, high=high)
        if value is not None and (name == "min_entropy_nats" or not is_zero(value)):
            given.append(name)
    if len(given) > 1:
        words = " and ".join(f"{name}={arguments[name]!r}" for name in given)
        raise ValueError(f"{words} are both given: choose one.")
    return given[0] if given else None


def check_policy_class(policy_class: type, *, is_smoothed: bool, floor: str | None) -> None:
    """Raise TypeError if smoothing or a floor (one of `FLOORS`) needs a `SmoothedPolicy` and this is another class."""
    if issubclass(policy_class, SmoothedPolicy):
        return
    wanting = "smoothing (or a target entropy)" if is_smoothed else floor
    if wanting is not None:
        raise TypeError(
            f"policy={policy_class.__name__} can't be used with {wanting}: give a name such as 'MlpPolicy', a class "
            "such as rlsmooth.agents.SmoothedActorCriticPolicy, or your own class with SmoothedPolicy before its base."
        )


def policy_arguments_of(
    policy_kwargs: Mapping[str, Any], smoothing: Smoothing, *, is_smoothed: bool, floor: Mapping[str, Any]
) -> dict[str, Any]:
    """The policy's arguments, with the reference of `smoothing` unless that is the default.

    The uniform reference is the default; with it, a reference in `policy_kwargs` is kept. `floor` is the algorithm's
    one of `FLOORS`, by name, if there is one.

    Raises:
        ValueError: the reference or the floor is given in both places, with different values.
    """
    arguments = dict(policy_kwargs)
    for name, value in floor.items():
        theirs = floor_in(arguments)
        if theirs is not None and (theirs != name or arguments[theirs] != value):
            raise ValueError(
                f"{name}={value!r} differs from policy_kwargs[{theirs!r}]={arguments[theirs]!r}: give one of them."
            )
    if not is_smoothed or has_default_reference(smoothing):
        return arguments
    ours = dataclasses.replace(smoothing, alpha=1.0)
    theirs = arguments.get("reference")
    if theirs is not None and not _same(theirs, ours):
        raise ValueError(
            f"smoothing has reference={smoothing.reference!r}, but policy_kwargs['reference']={theirs!r}: give one of "
            "them (a number as smoothing leaves the reference to the policy)."
        )
    arguments["reference"] = ours
    return arguments


def _same(theirs: Any, ours: Smoothing) -> bool:
    if isinstance(theirs, (tuple, list)):
        return False
    recipe = theirs if isinstance(theirs, Smoothing) else Smoothing(alpha=1.0, reference=theirs)
    if recipe.alpha is not None:
        recipe = dataclasses.replace(recipe, alpha=1.0)
    return recipe.to_config() == ours.to_config()


# ---- starting from a clone

ALIAS_OF = {
    "ActorCriticPolicy": "MlpPolicy",
    "ActorCriticCnnPolicy": "CnnPolicy",
    "MultiInputActorCriticPolicy": "MultiInputPolicy",
}
# These are the algorithm's, not the clone's.
NOT_COPIED = ("observation_space", "action_space", "optimizer_class", "optimizer_kwargs", "use_sde")
SMOOTHED_ONLY = ("reference", "reference_std", *FLOORS)
GAUSSIAN_ONLY = ("log_std_init", "full_std", "use_expln", "squash_output")


def check_clone(bc_agent: BC, smoothing: ScheduleLike | Smoothing) -> None:
    """Check that an on-policy algorithm can start from the clone.

    Raises:
        TypeError: it is not a `BC`.
        ValueError: its actions are binned; `smoothing` has a reference other than the default.
    """
    if not isinstance(bc_agent, BC):
        raise TypeError(f"bc_agent must be an rlsmooth.agents.BC, got {type(bc_agent).__name__}: load it by BC.load.")
    if bc_agent.bins is not None:
        raise ValueError(
            f"bc_agent cuts its actions into bins (action_bins={bc_agent.bins.num_bins}), so that its policy has "
            f"another action space than the environment: clone without action_bins."
        )
    if isinstance(smoothing, Smoothing) and not has_default_reference(smoothing):
        raise ValueError(
            f"smoothing has reference={smoothing.reference!r}, but the clone is the reference here: give a number or a "
            'schedule; policy_kwargs={"reference": ...} is what an exploration floor mixes with.'
        )


def smoothed_form(policy: BasePolicy, aliases: Mapping[str, type[BasePolicy]], algorithm: str) -> type[BasePolicy]:
    """The smoothed counterpart of a cloned policy's class, among the policies that the algorithm has by alias.

    Raises:
        TypeError: the algorithm has no counterpart of it.
    """
    name = type(policy).__name__.removeprefix("Smoothed")
    is_maskable, alias = name.startswith("Maskable"), ALIAS_OF.get(name.removeprefix("Maskable"), "")
    chosen = aliases.get(alias if "MlpPolicy" in aliases else alias.replace("Policy", "LstmPolicy"))
    known = type(policy).__module__.startswith(("stable_baselines3.", "sb3_contrib.", "rlsmooth."))
    if chosen is None or not known:
        raise TypeError(
            f"bc_agent has a policy of its own class, {type(policy).__name__}: give policy=, a class with the same "
            "layers and with SmoothedPolicy among its bases."
        )
    if is_maskable and "Maskable" not in chosen.__name__:
        raise TypeError(
            f"bc_agent's {type(policy).__name__} uses action masks, which {algorithm} does not use: use "
            "SmoothedMaskablePPO.from_bc."
        )
    return chosen


def layer_arguments(bc_agent: BC) -> dict[str, Any]:
    """Those arguments of the cloned policy that determine its layers."""
    is_box = isinstance(bc_agent.action_space, spaces.Box)
    left_out = (*NOT_COPIED, *SMOOTHED_ONLY, *(() if is_box else GAUSSIAN_ONLY))
    found = {name: value for name, value in constructor_arguments(bc_agent.policy).items() if name not in left_out}
    if is_box and bc_agent.reference_std is not None:
        found["reference_std"] = bc_agent.reference_std
    return found


def fit_critic(algorithm: OnPolicyAlgorithm, *, n_epochs: int, batch_size: int | None) -> None:
    """Fit the critic to the returns of the rollout in `algorithm.rollout_buffer`; nothing else changes.

        loss = vf_coef · mean((returns - V)²)

    A features extractor that actor and critic share is not changed, nor are the statistics of normalisation layers.

    Args:
        algorithm: PPO, A2C, MaskablePPO or RecurrentPPO, with a full rollout buffer.
        n_epochs: passes over the rollout.
        batch_size: samples of a minibatch; None: the whole rollout.
    """
    policy = algorithm.policy
    policy.set_training_mode(False)
    begin_update(algorithm, policy.optimizer)
    critic = [parameter for name, parameter in policy.named_parameters() if name.startswith(CRITIC)]
    losses = []
    for _ in range(n_epochs):
        for batch in algorithm.rollout_buffer.get(batch_size):
            values, returns = _values_and_returns(policy, batch)
            loss = nn.functional.mse_loss(values, returns)
            policy.optimizer.zero_grad()
            (algorithm.vf_coef * loss).backward(inputs=critic)  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(critic, algorithm.max_grad_norm)
            policy.optimizer.step()  # parameters without a gradient, the actor's, are left alone
            losses.append(loss.detach())
    n_updates = count_updates(algorithm, n_epochs)
    buffer, logger = algorithm.rollout_buffer, algorithm.logger
    logger.record("train/value_loss", float(torch.stack(losses).mean()))
    logger.record("train/explained_variance", explained_variance(buffer.values.flatten(), buffer.returns.flatten()))
    logger.record("train/n_updates", n_updates, exclude="tensorboard")


def _values_and_returns(policy: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Of the samples of a minibatch; the padding of a recurrent one's sequences is left out."""
    if getattr(batch, "lstm_states", None) is None:
        return policy.predict_values(batch.observations).flatten(), batch.returns
    values = policy.predict_values(batch.observations, batch.lstm_states.vf, batch.episode_starts).flatten()
    is_sample = batch.mask > 1e-8
    return values[is_sample], batch.returns[is_sample]


def check_rollout(algorithm: OnPolicyAlgorithm) -> None:
    """Raise TrainingDivergedError if a reward of the rollout is not finite: an update would spoil the policy."""
    buffer = algorithm.rollout_buffer
    rewards = buffer.rewards
    if np.isfinite(rewards).all():
        return
    first = int(np.flatnonzero(~np.isfinite(rewards).all(-1))[0])
    step = algorithm.num_timesteps - (buffer.buffer_size - 1 - first) * buffer.n_envs
    check_finite_step(step, rewards[first], ())


def check_sb3_schedules(algorithm: OnPolicyAlgorithm) -> None:
    """Refuse text where Stable-Baselines3 takes a number or a function; it would end in an error without a name.

    Raises:
        TypeError: an argument is neither, or a coefficient is no number; the message names it.
        ValueError: a number is negative or not finite.
    """
    for name in ("learning_rate", "clip_range", "clip_range_vf"):
        value = getattr(algorithm, name, 0.0)  # A2C has no clipping
        if callable(value) or (value is None and name == "clip_range_vf"):
            continue
        if isinstance(value, bool) or not isinstance(value, Real):
            start = linear_start(value) if isinstance(value, str) else None
            raise TypeError(
                f"{name}={value!r} must be a number or a function of the progress remaining, as in Stable-Baselines3: "
                f"write lambda remaining: {0.001 if start is None else start:g} * remaining for one that falls to 0."
            )
        check_in_range(name, value, 0.0)
    for name in ("ent_coef", "vf_coef", "gamma", "gae_lambda"):
        check_in_range(name, getattr(algorithm, name))


# ---- algorithms


class SmoothedTraining(NumpyTraining):
    """A mixin that adds smoothing to an on-policy algorithm of SB3; see `SmoothedPPO` for the arguments.

    With everything off, `train` is the parent's. With smoothing on, the parent's `train` runs with `ent_coef = 1` while
    the policy returns `ent_coef · H(pi) - alpha · KL(reference‖pi)` where the parent expects an entropy, so that its
    loss, `policy loss - ent_coef · mean(entropy term) + vf_coef · value loss`, contains both with their coefficients.

    Attributes:
        smoothing: its alpha is the coefficient of KL(reference‖pi). A number or schedule may be assigned between two
            calls of `learn`; a reference is read when the algorithm is built or loaded.
        target_entropy_frac: the target as a fraction of log n_legal, or None.
        target_entropy_nats: the target in nats, or None.
        exploration_floor: the argument; `policy.exploration_floor` is the current floor.
        min_entropy_frac: the argument; `policy.min_entropy_frac` is the current guarantee.
        min_entropy_nats: the same for a Box.
        entropy_target: the feedback that adjusts alpha, or None.
        reference_policy: a frozen policy whose distribution is the reference of the KL term, or None.
        value_warmup_left: the remaining environment steps for which only the critic is trained.
    """

    clone_arguments: ClassVar[Mapping[str, Any]] = {}
    """Of the policy, where it starts from a clone."""
    MEASURE_EVERY = 0
    """The minimum of environment steps between two measurements of the policy; 0: measure at each call of `train`."""

    def __init__(
        self,
        policy: Any,
        env: GymEnv | str | None,
        *args: Any,
        smoothing: ScheduleLike | Smoothing = 0.0,
        target_entropy_frac: float | None = None,
        target_entropy_nats: float | None = None,
        exploration_floor: ScheduleLike = 0.0,
        min_entropy_frac: ScheduleLike | None = None,
        min_entropy_nats: ScheduleLike | None = None,
        engine: Literal["torch", "numpy"] = "torch",
        **kwargs: Any,
    ) -> None:
        self.smoothing = training_smoothing(smoothing)
        self.engine = engine
        self.target_entropy_frac = target_entropy_frac
        self.target_entropy_nats = target_entropy_nats
        self.exploration_floor = exploration_floor
        self.min_entropy_frac = min_entropy_frac
        self.min_entropy_nats = min_entropy_nats
        self.entropy_target: EntropyTarget | None = None
        self.reference_policy: BasePolicy | None = None
        self.value_warmup_left = 0
        self._has_reference_policy = False
        self._rollout_floor: float | None = None  # the value in force of that one of `FLOORS` which is given
        self._measured_at: int | None = None
        self._set_point: float | None = None  # of the entropy target; None: not moved, in runs of earlier versions
        # The entropy target's state. It exists even when `load` is given arguments without a target.
        self._entropy_state = torch.zeros(2)
        super().__init__(policy, env, *args, **kwargs)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | Path | BufferedIOBase, *arguments: Any, **named: Any) -> Self:
        """Stable-Baselines3's `load`, which unpickles: only for files that you trust.

        Raises:
            ValueError: the file is one of `save_agent`, a pointer of Git LFS, a pipe or a device; and as SB3 does.
        """
        if isinstance(path, (str, Path)):
            file = Path(path) if Path(path).exists() or Path(path).suffix else Path(f"{path}.zip")
            if file.exists():
                open_regular(file).close()
        try:
            return super().load(path, *arguments, **named)
        except AssertionError as error:
            words = f"{path} is no zip of Stable-Baselines3's ({error}): read it by load_agent(path, env=env)"
            raise ValueError(f"{words}, which reads what save_agent or a command has written.") from error

    @classmethod
    def from_bc(
        cls,
        bc_agent: BC,
        env: GymEnv | str,
        *,
        policy: type[BasePolicy] | None = None,
        smoothing: ScheduleLike | Smoothing = "lin_0.1",
        exploration_floor: ScheduleLike = 0.0,
        value_warmup_steps: int = 4096,
        policy_kwargs: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> Self:
        """Continue training a cloned policy, which stays the reference of the KL term (kickstarting).

        The actor starts with the clone's weights. First only the critic is trained, on rollouts of the clone, since the
        advantages of an untrained one would soon ruin the actor. Then the penalty `smoothing` times KL(clone‖pi) keeps
        the policy near the clone; by default, it falls to 0.

        Args:
            bc_agent: a trained or loaded `BC`, without `action_bins`.
            env: an environment with the agent's spaces (and the normalisation of the demonstrations).
            policy: the policy class, needed if the agent's policy is a class of your own; None: its smoothed form.
            smoothing: the coefficient of KL(clone‖pi): a number, a schedule such as `"lin_0.1"`, or 0 for no KL.
            exploration_floor: the share of the reference in the behaviour policy, a number or a schedule.
            value_warmup_steps: environment steps of the first phase, rounded up to whole rollouts; 0: none.
            policy_kwargs: added to the arguments that the agent's layers need.
            arguments: further arguments of the algorithm, by name, such as `min_entropy_frac=0.1`, which keeps a clone
                that is too certain from getting stuck, in the warm-up too.

        Raises:
            TypeError: `bc_agent` is not a `BC`, or this algorithm has no smoothed form of its policy's class.
            ValueError: spaces or architectures differ, or binned actions.

        Source:
            Schmitt et al. 2018, Kickstarting Deep Reinforcement Learning.

        Examples:
            >>> from rlsmooth.agents import BC, SmoothedPPO
            >>> from rlsmooth.data import cartpole_v1
            >>> clone = BC("MlpPolicy", None, cartpole_v1(), seed=0, device="cpu").learn(total_batches=50)
            >>> model = SmoothedPPO.from_bc(clone, "CartPole-v1", n_steps=64, value_warmup_steps=128, device="cpu")
            >>> model.learn(192).value_warmup_left
            0
        """
        check_clone(bc_agent, smoothing)
        check_positive_int("value_warmup_steps", value_warmup_steps, minimum=0)
        wrapped = wrap_env("env", env, int(arguments.get("verbose", 0)))
        check_same_spaces(
            "env",
            (wrapped.observation_space, wrapped.action_space),
            (bc_agent.observation_space, bc_agent.action_space),
        )
        algorithm = cls(
            smoothed_form(bc_agent.policy, cls.policy_aliases, cls.__name__) if policy is None else policy,
            wrapped,
            smoothing=smoothing,
            exploration_floor=exploration_floor,
            policy_kwargs={**layer_arguments(bc_agent), **cls.clone_arguments, **(policy_kwargs or {})},
            **arguments,
        )
        copy_actor(bc_agent.policy, algorithm)
        if algorithm.is_smoothed:
            algorithm.keep_reference_policy()
        algorithm.value_warmup_left = value_warmup_steps
        return algorithm

    @property
    def is_smoothed(self) -> bool:
        """Whether KL(reference‖pi) is part of the loss, even while its coefficient is 0 because of a schedule."""
        return not self.smoothing.is_off or self.target_entropy_frac is not None or self.target_entropy_nats is not None

    @property
    def alpha(self) -> float:
        """The current coefficient of KL(reference‖pi). With an entropy target, reading it waits for the device."""
        if self.entropy_target is not None:
            return float(self.entropy_target.coefficient())
        # If the total is not a multiple of the rollout's size, the last rollout exceeds it: SB3's progress is below 0.
        return coefficient_at(self.smoothing, max(self._current_progress_remaining, 0.0))

    def _setup_model(self) -> None:
        # All checks are here because `load` calls this after it has set the attributes of the file and of the caller.
        check_network_space("observation_space", self.observation_space)
        check_network_space("action_space", self.action_space)
        check_sb3_schedules(self)
        self.smoothing = training_smoothing(self.smoothing)
        check_targets(self.target_entropy_frac, self.target_entropy_nats, self.smoothing, self.action_space)
        name = floor_in(vars(self))
        floor = {} if name is None else {name: vars(self)[name]}
        check_policy_class(self.policy_class, is_smoothed=self.is_smoothed, floor=name)
        given = self.policy_kwargs
        # Only while the policy is built: the arguments that are stored, shown and saved remain those of the caller.
        self.policy_kwargs = policy_arguments_of(given, self.smoothing, is_smoothed=self.is_smoothed, floor=floor)
        try:
            super()._setup_model()
        finally:
            self.policy_kwargs = given
        self.check_engine()
        check_counts_from_start("policy", self.policy)
        if name is None:
            self._rollout_floor = None
        else:
            is_schedule = callable(floor[name]) or isinstance(floor[name], str)
            self._set_floor(name, self._rollout_floor if is_schedule else None, self._current_progress_remaining)
        if self._has_reference_policy:
            self.keep_reference_policy()
            if not self.is_smoothed:  # turned off by an argument of `load`: `ent_coef` applies to the entropy again
                assert isinstance(self.policy, SmoothedPolicy)
                self.policy.set_reference_policy(None)
        if self.target_entropy_frac is not None or self.target_entropy_nats is not None:
            assert isinstance(self.policy, SmoothedPolicy)
            self.entropy_target = entropy_target_for(
                self.action_space,
                self.policy.references,
                self.policy.reference_std,
                frac=self.target_entropy_frac,
                nats=self.target_entropy_nats,
                initial_alpha=coefficient_at(self.smoothing, 1.0),
                device=self.device,
                has_static_reference=not self._has_reference_policy,
            )
            self._entropy_state = self.entropy_target.state

    def learn(self, *args: Any, **kwargs: Any) -> Self:
        """Train; the arguments are the parent's. Small networks are trained on one thread: see `few_threads`."""
        check_has_env(self)
        with few_threads(self.policy, batch_size=self._passes()[1] or self.n_steps * self.n_envs, engine=self.engine):
            return super().learn(*args, **kwargs)

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
        use_masking: bool | None = None,
    ) -> bool:
        """Collect a rollout as the parent does. The exploration floor is set here and kept for the updates that follow.

        Args:
            env: the environments.
            callback: called at each step.
            rollout_buffer: the buffer to fill.
            n_rollout_steps: steps of each environment.
            use_masking: an argument of MaskablePPO only.
        """
        name = floor_in(vars(self))
        if name is not None or self._rollout_floor is not None:  # or it was on until now
            # In the first rollout of a second `learn`, SB3's own progress is still that at the end of the first call.
            total = self._total_timesteps
            progress = 1.0 - self.num_timesteps / total if total else self._current_progress_remaining
            self._set_floor(name, None, max(progress, 0.0))
        # SB3 2.8 and 2.9 would cut normalised observations of whole numbers to whole ones.
        rollout_buffer.observation_space = normalised_space(self.observation_space, self.get_vec_normalize_env())
        more: Any = () if use_masking is None else (use_masking,)
        with quick_steps(env):
            if self.engine != "torch":
                return self.collect_in_numpy(env, callback, rollout_buffer, n_rollout_steps)
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps, *more)

    def train(self) -> None:
        """Update the policy as the parent does, with smoothing if it is on. During the warm-up, fit only the critic."""
        self.smoothing = training_smoothing(self.smoothing)  # the user may have assigned a number
        check_rollout(self)
        self._record_policy()
        try:
            if self.value_warmup_left > 0:
                self._warm_up()
            elif self.is_smoothed:
                self._train_smoothed()
            else:
                self._update()
        except ValueError as error:
            check_finite_model(self.num_timesteps, self.policy)
            if not str(error).startswith(("Expected parameter", "the policy's outputs")):
                raise
            words = f"the policy's outputs are not finite at step {self.num_timesteps:,}: lower learning_rate."
            raise TrainingDivergedError(words, self.num_timesteps, np.empty(0, np.int64)) from error

    def _warm_up(self) -> None:
        n_epochs, batch_size = self._passes()
        fit_critic(self, n_epochs=n_epochs, batch_size=batch_size)
        steps = self.rollout_buffer.buffer_size * self.rollout_buffer.n_envs
        self.value_warmup_left = max(0, self.value_warmup_left - steps)

    def _train_smoothed(self) -> None:
        policy, ent_coef = self.policy, self.ent_coef
        check_policy_class(type(policy), is_smoothed=True, floor=None)
        assert isinstance(policy, SmoothedPolicy)
        kl_coef = 0.0 if self.entropy_target is not None else self.alpha
        if self.entropy_target is not None and self._set_point is not None:
            self.entropy_target.set_point = self._set_point
        policy.entropy_term = term = EntropyTerm(entropy_coef=ent_coef, kl_coef=kl_coef, target=self.entropy_target)
        self.ent_coef = 1.0
        try:
            self._update()
        finally:
            self.ent_coef = ent_coef
            policy.entropy_term = None
        if not term.was_read:
            raise TypeError(
                f"policy={type(policy).__name__} can't be used with smoothing (or a target entropy): its own "
                "evaluate_actions or distribution does not ask SmoothedPolicy's for the entropy. Call "
                "super().evaluate_actions there, and put SmoothedPolicy before the class that has them."
            )
        # The parent has recorded the mean of the whole term; this restores the tag's usual meaning, -H(pi).
        self.logger.record("train/entropy_loss", -term.mean_entropy())
        if self.entropy_target is not None:
            self.logger.record("train/smoothing", term.mean_alpha())

    def _update(self) -> None:
        """The parent's `train`, or what equals it bit for bit in less time, or to rounding in numpy."""
        if self.engine != "torch":
            self.train_in_numpy(*self._passes())
            return
        network, update = plain_network_of(self), lean_update_of(super().train)
        if network is None or update is None:
            super().train()
        else:
            update(self, network)

    def _record_policy(self) -> None:
        """Record the measures of the policy before the update, and the current alpha and floor."""
        policy, steps = self.policy, self.num_timesteps
        self.logger.record("train/smoothing", self.alpha)
        self.logger.record("train/exploration_floor", getattr(policy, "exploration_floor", 0.0))
        for name in ("min_entropy_frac", "min_entropy_nats"):
            if getattr(self, name) is not None and getattr(policy, name) is not None:
                self.logger.record(f"train/{name}", getattr(policy, name))
        if self._measured_at is None or not 0 <= steps - self._measured_at < self.MEASURE_EVERY:
            self._measured_at = steps
            try:
                measures = measure_rollout(self)
            except TypeError:
                if isinstance(policy, SmoothedPolicy):
                    raise
                return  # a policy with a distribution of its own can train while all is off, but can't be measured
            record_measures(self.logger, measures, bound=entropy_bound(self))
            self._move_set_point(measures)

    def _move_set_point(self, measures: PolicyMeasures) -> None:
        """Let the entropy target's feedback hold the set-point that follows from the rollout's entropy."""
        target, policy = self.entropy_target, self.policy
        # The feedback of a mixture of Gaussians and of squashed outputs sees another entropy than that of the measures.
        mixes = isinstance(self.action_space, spaces.Box) and (policy.squash_output or policy.exploration_floor)
        if target is None or mixes:
            return
        if self._set_point is None and target.is_new():
            self._set_point = target.target
        if self._set_point is not None and self.value_warmup_left == 0:
            mean = measures.entropy_frac if target.is_fraction else measures.policy_entropy
            assert mean is not None
            self._set_point = target.moved(self._set_point, float(mean))

    def _set_floor(self, name: str | None, value: float | None, progress: float) -> None:
        """Give the policy the value in force, or that at `progress`, of one of `FLOORS`; None: of none."""
        assert isinstance(self.policy, SmoothedPolicy)
        for other in FLOORS:
            if other != name:
                setattr(self.policy, other, 0.0 if other == "exploration_floor" else None)
        if name is not None:
            if value is None and name == "min_entropy_nats":
                value = nats_at(vars(self)[name], progress, self.action_space)
            elif value is None:
                low, high = FLOORS[name]
                value = value_at(name, vars(self)[name], progress, low=low, high=high)
            frac, nats = (value if name == one else None for one in ("min_entropy_frac", "min_entropy_nats"))
            check_least_entropy(frac, nats, self.target_entropy_frac, self.target_entropy_nats, self.action_space)
            setattr(self.policy, name, value)
        self._rollout_floor = value

    def keep_reference_policy(self) -> None:
        """Freeze a copy of the policy as the reference of the KL term."""
        assert isinstance(self.policy, SmoothedPolicy)
        self.policy.set_reference_policy(None)
        frozen = self.copied_policy()
        frozen.requires_grad_(False)
        self.reference_policy, self._has_reference_policy = frozen, True
        self.policy.set_reference_policy(frozen)

    def copied_policy(self) -> BasePolicy:
        """A policy that does what the current one does, as a reference."""
        copied: BasePolicy = copy.deepcopy(self.policy)
        return copied

    def _maybe_recommend_cpu(self, mlp_class_name: str = "ActorCriticPolicy") -> None:
        # The parent gives its advice only for policies of this name.
        is_ours = isinstance(self.policy, SmoothedPolicy)
        super()._maybe_recommend_cpu(f"Smoothed{mlp_class_name}" if is_ours else mlp_class_name)

    def _passes(self) -> tuple[int, int | None]:
        """`(epochs, batch size)` of an update."""
        algorithm: Any = self
        return algorithm.n_epochs, algorithm.batch_size

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        modules, tensors = super()._get_torch_save_params()
        if self.reference_policy is not None:
            modules = [*modules, "reference_policy"]
        if self.entropy_target is not None:
            tensors = [*tensors, "_entropy_state"]
        return modules, tensors

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "entropy_target", "_entropy_state"]


ALIASES: dict[str, type[BasePolicy]] = {
    "MlpPolicy": SmoothedActorCriticPolicy,
    "CnnPolicy": SmoothedActorCriticCnnPolicy,
    "MultiInputPolicy": SmoothedMultiInputActorCriticPolicy,
}


class SmoothedPPO(SmoothedTraining, PPO):
    """PPO with KL to a reference, an entropy target, a floor or a guaranteed entropy, each of them optional.

        loss = PPO's policy loss - ent_coef · H(pi) + alpha · KL(reference‖pi) + vf_coef · value loss     (nats)

    With all of them off it equals `stable_baselines3.PPO` bit for bit. It is used as PPO is: callbacks, `predict`,
    `set_env`, `save` and `load` (which keep the entropy target's state and the reference policy) are the parent's.

    Tags under `train/`, measured at the start of each call of `train`, on at most 2048 states of the rollout:
    `policy_entropy`, `entropy_frac`, `entropy_frac_min` (the lowest state), `entropy_below` (the share of states below
    the guarantee, else the target), `kl_uniform`, `kl_reference`, `entropy_dim<i>`, and the current `smoothing`,
    `exploration_floor` and `min_entropy_frac` or `min_entropy_nats`. `entropy_loss` is -H(pi), as in the parent,
    whichever options are on.

    Args:
        policy: as PPO's; the names select the smoothed policies. With everything off, any actor-critic policy is
            allowed; otherwise it must be a `SmoothedPolicy`.
        env: as PPO's.
        args: PPO's further arguments.
        smoothing: alpha, the coefficient of KL(reference‖pi): a number in [0, 1], `"lin_0.1"` (from 0.1 down to 0), a
            callable of the progress remaining, or a `Smoothing`, which can also set the reference. By default, that is
            uniform over the legal actions (for a Box, a broad Gaussian). `policy_kwargs=dict(reference=...)` can set
            it, too.
        target_entropy_frac: adjust alpha in [1e-6, 1e2] by feedback so that H / log n_legal of the behaviour policy,
            averaged over states with at least two legal actions, stays at or above this; in (0, 1], not for a Box.
            A number given as `smoothing` is then the initial alpha.
        target_entropy_nats: the same with H in nats; for a Box, H is a differential entropy and may be negative.
        exploration_floor: draw actions from `(1 - floor) · pi + floor · reference`; a number in [0, 1], `"lin_0.1"`, or
            a callable of the progress remaining. It is constant during a rollout and its updates.
        min_entropy_frac: in no state is H / log n_legal of the behaviour policy below this, whatever is learnt: draw
            actions with the floor of the uniform that guarantees it (see `rlsmooth.losses.guaranteed_floor`); a number
            in [0, 1], `"lin_0.3"`, or a callable, as the floor. In place of a floor; at most an entropy target; not for
            a Box.
        min_entropy_nats: the same for a Box, with H in nats; the standard deviations are scaled up to it. `"lin_1.0"`
            lets the least of them fall linearly to 0.
        engine: `"numpy"` computes rollouts and updates of plain MLP policies in numpy, several times as fast as
            `"torch"`, with numbers that differ in the last bit and other random numbers.
        kwargs: PPO's further arguments by name.

    Raises:
        TypeError: an argument of another kind; a policy that is not a `SmoothedPolicy` while an option is on.
        ValueError: a number out of range, both targets, a target above the reference's entropy or together with a
            schedule, a fraction for a Box, a reference or floor in `policy_kwargs` that differs, an engine that can't
            compute the policy; a guarantee above the target, beside a floor, or with a reference but the uniform.

    Examples:
        >>> model = SmoothedPPO("MlpPolicy", "CartPole-v1", smoothing=0.1, n_steps=64, seed=0, device="cpu")
        >>> model.learn(128).num_timesteps
        128
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = ALIASES


class SmoothedA2C(SmoothedTraining, A2C):
    """A2C with KL to a reference, an entropy target, a floor or a guaranteed entropy, each of them optional.

        loss = A2C's policy loss - ent_coef · H(pi) + alpha · KL(reference‖pi) + vf_coef · value loss     (nats)

    The policy is measured every 500 environment steps.

    The arguments are those of A2C, plus `smoothing`, `target_entropy_frac`, `target_entropy_nats`,
    `exploration_floor`, `min_entropy_frac` and `min_entropy_nats` as in `SmoothedPPO`.

    Examples:
        >>> model = SmoothedA2C("MlpPolicy", "CartPole-v1", exploration_floor="lin_0.1", seed=0, device="cpu")
        >>> model.learn(100).policy.exploration_floor < 0.1
        True
    """

    MEASURE_EVERY = 500
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = ALIASES

    def _passes(self) -> tuple[int, int | None]:
        return 1, None
