"""What our on-policy algorithms add to their parents: smoothing, entropy targets, exploration floors, kickstarting."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from rlsmooth.agents.acting import CRITIC, copy_actor
from rlsmooth.agents.cloning.bc import BC
from rlsmooth.agents.sb3 import begin_update, count_updates
from rlsmooth.agents.smoothed.arguments import (
    check_policy_class,
    coefficient_at,
    policy_arguments_of,
    training_smoothing,
)
from rlsmooth.agents.smoothed.entropy import EntropySlot
from rlsmooth.agents.smoothed.entropy_target import EntropyTarget, check_targets, entropy_target_for
from rlsmooth.agents.smoothed.kickstart import check_clone, layer_arguments, smoothed_form
from rlsmooth.agents.smoothed.measures import measure_rollout, record_measures
from rlsmooth.agents.smoothed.policies import (
    SmoothedActorCriticCnnPolicy,
    SmoothedActorCriticPolicy,
    SmoothedMultiInputActorCriticPolicy,
    SmoothedPolicy,
)
from rlsmooth.agents.spaces import check_same_spaces, wrap_env
from rlsmooth.checks import check_positive_int
from rlsmooth.schedules import ScheduleLike, check_schedule, is_zero, value_at
from rlsmooth.targets import Smoothing

__all__ = ["SmoothedA2C", "SmoothedPPO", "SmoothedTraining", "fit_critic"]


def fit_critic(model: OnPolicyAlgorithm, *, n_epochs: int, batch_size: int | None) -> None:
    """Fit the critic to the returns of the rollout in `model.rollout_buffer`; nothing else changes.

        loss = vf_coef · mean((returns - V)²)

    A features extractor that actor and critic share stays as it is, and so do statistics of normalisation layers.

    Args:
        model: PPO, A2C, MaskablePPO, with a full rollout.
        n_epochs: passes over the rollout.
        batch_size: rows of one gradient step; None: all.
    """
    policy = model.policy
    policy.set_training_mode(False)
    begin_update(model, policy.optimizer)
    critic = [parameter for name, parameter in policy.named_parameters() if name.startswith(CRITIC)]
    losses = []
    for _ in range(n_epochs):
        for batch in model.rollout_buffer.get(batch_size):
            values = policy.predict_values(batch.observations).flatten()
            loss = nn.functional.mse_loss(values, batch.returns)
            policy.optimizer.zero_grad()
            (model.vf_coef * loss).backward(inputs=critic)  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(critic, model.max_grad_norm)
            policy.optimizer.step()  # parameters without a gradient, the actor's, are left alone
            losses.append(loss.detach())
    n_updates = count_updates(model, n_epochs)
    buffer = model.rollout_buffer
    model.logger.record("train/value_loss", float(torch.stack(losses).mean()))
    model.logger.record(
        "train/explained_variance", explained_variance(buffer.values.flatten(), buffer.returns.flatten())
    )
    model.logger.record("train/n_updates", n_updates, exclude="tensorboard")


class SmoothedTraining(OnPolicyAlgorithm):
    """Stands before an on-policy algorithm in the bases of a class; see `SmoothedPPO` for the arguments.

    With everything off, `train` is the parent's. With smoothing on, the parent's `train` runs with `ent_coef = 1` while
    the policy returns `ent_coef · H(pi) - alpha · KL(reference‖pi)` where the parent expects an entropy, so that its
    loss, `policy loss - ent_coef · mean(slot) + vf_coef · value loss`, holds both terms with their own coefficients.

    Attributes:
        smoothing: whose alpha is the coefficient of KL(reference‖pi). A number or schedule may be put here between two
            calls of `learn`; a reference is read when the model is built or loaded.
        target_entropy_frac: see the argument.
        target_entropy_nats: see the argument.
        exploration_floor: the argument; `policy.exploration_floor` is the one in force.
        entropy_target: the feedback that finds alpha, or None.
        reference_policy: a frozen policy whose distribution is the reference of the KL term, or None.
        value_warmup_left: environment steps for which only the critic will be trained.
    """

    MEASURE_EVERY = 0
    """Environment steps that must pass between two measurements of the policy; 0: measured at each update."""

    def __init__(
        self,
        policy: Any,
        env: GymEnv | str | None,
        *args: Any,
        smoothing: ScheduleLike | Smoothing = 0.0,
        target_entropy_frac: float | None = None,
        target_entropy_nats: float | None = None,
        exploration_floor: ScheduleLike = 0.0,
        **kwargs: Any,
    ) -> None:
        self.smoothing = training_smoothing(smoothing)
        self.target_entropy_frac = target_entropy_frac
        self.target_entropy_nats = target_entropy_nats
        self.exploration_floor = exploration_floor
        self.entropy_target: EntropyTarget | None = None
        self.reference_policy: BasePolicy | None = None
        self.value_warmup_left = 0
        self._has_reference_policy = False
        self._rollout_floor: float | None = None
        self._measured_at: int | None = None
        # The entropy target's own state, at a place that is there even when `load` is told to leave the target out.
        self._entropy_state = torch.zeros(2)
        super().__init__(policy, env, *args, **kwargs)  # type: ignore[arg-type]

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
        """Train on from a cloned policy, which stays the reference of the KL term (kickstarting).

        The actor starts with the clone's weights. First only the critic is trained, on rollouts of the clone, since the
        advantages of an untrained one would soon spoil the actor; then `smoothing` times KL(clone‖pi) keeps the policy
        near the clone, the less the later.

        Args:
            bc_agent: from `BC(...)` or `BC.load`, without `action_bins`.
            env: with the agent's spaces (normalised as the demonstrations were).
            policy: a class for an agent whose policy has a class of its own; None: the smoothed form of the agent's.
            smoothing: the coefficient of KL(clone‖pi), see the class; 0: no KL.
            exploration_floor: see the class.
            value_warmup_steps: environment steps of the first phase, rounded up to whole rollouts; 0: none.
            policy_kwargs: added to those that the agent's layers need.
            arguments: the algorithm's, by name.

        Raises:
            TypeError: `bc_agent` is no `BC`; its policy's class has no smoothed form, or another algorithm's.
            ValueError: spaces or architectures differ, binned actions, actions that do not count from 0.

        Source:
            Schmitt et al. 2018, Kickstarting Deep Reinforcement Learning.

        Example:
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
            policy_kwargs={**layer_arguments(bc_agent), **(policy_kwargs or {})},
            **arguments,
        )
        copy_actor(bc_agent.policy, algorithm)
        if algorithm.is_smoothed:
            algorithm.keep_reference_policy()
        algorithm.value_warmup_left = value_warmup_steps
        return algorithm

    @property
    def is_smoothed(self) -> bool:
        """Whether KL(reference‖pi) is part of the loss, even while a schedule has its coefficient at 0."""
        return not self.smoothing.is_off or self.target_entropy_frac is not None or self.target_entropy_nats is not None

    @property
    def alpha(self) -> float:
        """The coefficient of KL(reference‖pi) in force; with an entropy target, it waits for the device."""
        if self.entropy_target is not None:
            return float(self.entropy_target.coefficient())
        # The last rollout ends beyond the total where that is no multiple of its size: SB3's progress is then below 0.
        return coefficient_at(self.smoothing, max(self._current_progress_remaining, 0.0))

    def _setup_model(self) -> None:
        # All checks are here: `load` calls this after it has put the file's attributes, and the caller's, in place.
        self.smoothing = training_smoothing(self.smoothing)
        check_targets(self.target_entropy_frac, self.target_entropy_nats, self.smoothing, self.action_space)
        check_schedule("exploration_floor", self.exploration_floor, low=0.0, high=1.0)
        check_policy_class(self.policy_class, is_smoothed=self.is_smoothed, floor=self.exploration_floor)
        given = self.policy_kwargs
        # For the time of the building: the arguments that are kept, shown and saved stay the caller's own.
        self.policy_kwargs = policy_arguments_of(
            given, self.smoothing, is_smoothed=self.is_smoothed, floor=self.exploration_floor
        )
        try:
            super()._setup_model()
        finally:
            self.policy_kwargs = given
        if is_zero(self.exploration_floor):
            self._rollout_floor = None
        else:
            is_schedule = callable(self.exploration_floor) or isinstance(self.exploration_floor, str)
            self._set_floor(self._rollout_floor if is_schedule else None, self._current_progress_remaining)
        if self._has_reference_policy:
            self.keep_reference_policy()
            if not self.is_smoothed:  # off by an argument of `load`: `ent_coef` is then of the entropy again
                assert isinstance(self.policy, SmoothedPolicy)
                self.policy.set_reference_policy(None)
        if self.target_entropy_frac is not None or self.target_entropy_nats is not None:
            assert isinstance(self.policy, SmoothedPolicy)
            self.entropy_target = entropy_target_for(
                self.policy,
                frac=self.target_entropy_frac,
                nats=self.target_entropy_nats,
                initial_alpha=coefficient_at(self.smoothing, 1.0),
                device=self.device,
                has_static_reference=not self._has_reference_policy,
            )
            self._entropy_state = self.entropy_target.state

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
        use_masking: bool | None = None,
    ) -> bool:
        """As the parent's, with the exploration floor of this rollout, which its updates will use again.

        Args:
            env: as the parent's.
            callback: as the parent's.
            rollout_buffer: as the parent's.
            n_rollout_steps: as the parent's.
            use_masking: as MaskablePPO's; the others don't take it.
        """
        if not is_zero(self.exploration_floor) or self._rollout_floor:  # or it was on until now
            # In the first rollout of a second `learn`, SB3's own progress is still that of the first one's end.
            total = self._total_timesteps
            progress = 1.0 - self.num_timesteps / total if total else self._current_progress_remaining
            self._set_floor(None, max(progress, 0.0))
        more: Any = () if use_masking is None else (use_masking,)
        return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps, *more)

    def train(self) -> None:
        """Update the policy from the rollout: the parent's way, with what is on; or, in the warm-up, the critic."""
        self.smoothing = training_smoothing(self.smoothing)  # somebody may have put a number there
        self._record_policy()
        if self.value_warmup_left > 0:
            n_epochs, batch_size = self._passes()
            fit_critic(self, n_epochs=n_epochs, batch_size=batch_size)
            steps = self.rollout_buffer.buffer_size * self.rollout_buffer.n_envs
            self.value_warmup_left = max(0, self.value_warmup_left - steps)
        elif self.is_smoothed:
            self._train_smoothed()
        else:
            super().train()

    def _train_smoothed(self) -> None:
        policy, ent_coef = self.policy, self.ent_coef
        check_policy_class(type(policy), is_smoothed=True, floor=0.0)
        assert isinstance(policy, SmoothedPolicy)
        kl_coef = 0.0 if self.entropy_target is not None else self.alpha
        policy.slot = slot = EntropySlot(entropy_coef=ent_coef, kl_coef=kl_coef, target=self.entropy_target)
        self.ent_coef = 1.0
        try:
            super().train()
        finally:
            self.ent_coef = ent_coef
            policy.slot = None
        if not slot.was_read:
            raise TypeError(
                f"policy={type(policy).__name__} can't be used with smoothing (or a target entropy): its own "
                "evaluate_actions or distribution does not ask SmoothedPolicy's for the entropy. Call "
                "super().evaluate_actions there, and put SmoothedPolicy before the class that has them."
            )
        # The parent has recorded the mean of the slot; this is what its tag means with everything off.
        self.logger.record("train/entropy_loss", -slot.mean_entropy())

    def _record_policy(self) -> None:
        """Record what the policy is before the update, and what is in force."""
        policy, steps = self.policy, self.num_timesteps
        self.logger.record("train/smoothing", self.alpha)
        floor = policy.exploration_floor if isinstance(policy, SmoothedPolicy) else 0.0
        self.logger.record("train/exploration_floor", floor)
        if self._measured_at is None or not 0 <= steps - self._measured_at < self.MEASURE_EVERY:
            self._measured_at = steps
            try:
                measures = measure_rollout(self)
            except TypeError:
                if isinstance(policy, SmoothedPolicy):
                    raise
                return  # a policy with a distribution of its own, which can train while all is off, but not be read
            record_measures(self.logger, measures)

    def _set_floor(self, value: float | None, progress: float) -> None:
        if value is None:
            value = value_at("exploration_floor", self.exploration_floor, progress, low=0.0, high=1.0)
        assert isinstance(self.policy, SmoothedPolicy)
        self.policy.exploration_floor = self._rollout_floor = value

    def keep_reference_policy(self) -> None:
        """Freeze a copy of the policy as the reference of the KL term."""
        assert isinstance(self.policy, SmoothedPolicy)
        self.policy.set_reference_policy(None)
        frozen: BasePolicy = copy.deepcopy(self.policy)
        frozen.requires_grad_(False)
        self.reference_policy, self._has_reference_policy = frozen, True
        self.policy.set_reference_policy(frozen)

    def _maybe_recommend_cpu(self, mlp_class_name: str = "ActorCriticPolicy") -> None:
        # The parent's advice goes by the name of its own policy.
        is_ours = isinstance(self.policy, SmoothedPolicy)
        super()._maybe_recommend_cpu(f"Smoothed{mlp_class_name}" if is_ours else mlp_class_name)

    def _passes(self) -> tuple[int, int | None]:
        """`(epochs, rows of one gradient step)` of an update."""
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
    """PPO with KL to a reference in its loss, an entropy target and an exploration floor, each of them optional.

        loss = PPO's policy loss - ent_coef · H(pi) + alpha · KL(reference‖pi) + vf_coef · value loss     (nats)

    With all three off it equals `stable_baselines3.PPO` bit for bit. It is used as PPO is: callbacks, `predict`,
    `set_env`, `save` and `load` (which keep the entropy target's state and the reference policy) are the parent's.

    Tags under `train/`, before each update and on at most 2048 of the rollout's rows: `policy_entropy`,
    `entropy_frac`, `kl_uniform`, `kl_reference`, `entropy_dim<i>`, and `smoothing` and `exploration_floor`, which are
    in force then. `entropy_loss` is -H(pi), as the parent's, whatever else is on.

    Args:
        policy: as PPO's; the names stand for the smoothed policies. With everything off any actor-critic policy will
            do, else it must be a `SmoothedPolicy`.
        env: as PPO's.
        args: PPO's further arguments.
        smoothing: alpha, the coefficient of KL(reference‖pi): a number in [0, 1], `"lin_0.1"` (from 0.1 down to 0), a
            callable of the progress remaining, or a `Smoothing` with another reference than the uniform one over the
            legal actions (a Box: a broad Gaussian). `policy_kwargs=dict(reference=...)` can give
            the reference as well.
        target_entropy_frac: find alpha in [1e-6, 1e2] by feedback so that H / log n_legal of the acting policy, as a
            mean over rows with at least two legal actions, stays at or above this; in (0, 1], not for a Box.
            A number as `smoothing` is then the alpha to start from.
        target_entropy_nats: the same with H in nats; a Box's is differential and may be negative.
        exploration_floor: act from `(1 - floor) · pi + floor · reference`; a number in [0, 1], `"lin_0.1"`, or a
            callable of the progress remaining. It is fixed for a rollout and its updates.
        kwargs: PPO's further arguments by name.

    Raises:
        TypeError: an argument of another kind; a policy that is no `SmoothedPolicy` while something is on.
        ValueError: a number out of range, both targets, a target above the reference's entropy or together with a
            schedule, a fraction for a Box, a reference or floor in `policy_kwargs` that differs.

    Example:
        >>> model = SmoothedPPO("MlpPolicy", "CartPole-v1", smoothing=0.1, n_steps=64, seed=0, device="cpu")
        >>> model.learn(128).num_timesteps
        128
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = ALIASES


class SmoothedA2C(SmoothedTraining, A2C):
    """A2C with KL to a reference in its loss, an entropy target and an exploration floor, each of them optional.

        loss = A2C's policy loss - ent_coef · H(pi) + alpha · KL(reference‖pi) + vf_coef · value loss     (nats)

    As `SmoothedPPO`, with A2C's arguments. The policy is measured each 500 steps of the environment.

    Args:
        policy: see `SmoothedPPO`.
        env: as A2C's.
        args: A2C's further arguments.
        smoothing: see `SmoothedPPO`.
        target_entropy_frac: see `SmoothedPPO`.
        target_entropy_nats: see `SmoothedPPO`.
        exploration_floor: see `SmoothedPPO`.
        kwargs: A2C's further arguments by name.

    Raises:
        TypeError: see `SmoothedPPO`.
        ValueError: see `SmoothedPPO`.

    Example:
        >>> model = SmoothedA2C("MlpPolicy", "CartPole-v1", exploration_floor="lin_0.1", seed=0, device="cpu")
        >>> model.learn(100).policy.exploration_floor < 0.1
        True
    """

    MEASURE_EVERY = 500
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = ALIASES

    def _passes(self) -> tuple[int, int | None]:
        return 1, None
