"""The trainer behind GAIL and AIRL: a discriminator between expert and generator, trained in turns with the latter."""

from __future__ import annotations

import inspect
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import safe_mean
from torch import Tensor, nn

from rlsmooth.agents.adversarial.generator import (
    check_algorithm,
    check_generator,
    episode_horizon,
    generator_state,
    num_masks,
    outer_stacklevel,
    round_timesteps,
    round_updates,
    set_generator_state,
)
from rlsmooth.agents.adversarial.reward_envs import (
    RecordingRewardVecEnv,
    can_defer,
    check_relabelling,
    deferred_rewards,
    install,
    relabel,
    uninstall,
)
from rlsmooth.agents.adversarial.reward_nets import (
    RewardFunction,
    RewardNet,
    ShapedRewardNet,
    Transitions,
    absorbing_transition,
    build_net,
    build_optimizer,
    check_absorbing,
    check_minibatch,
    decode_net,
    encode_net,
    misfits_refused,
    transitions_from_arrays,
)
from rlsmooth.agents.adversarial.transitions import TransitionStore, absorbing_steps, expert_store, joined
from rlsmooth.agents.cloning.training_data import fingerprint
from rlsmooth.agents.files.algorithm_file import Algorithm
from rlsmooth.agents.files.exact_checkpoint import ExactCheckpointCallback, load_checkpoint
from rlsmooth.agents.files.policy_file import custom_name, decode_arguments, encode_arguments, load_parameters
from rlsmooth.agents.spaces import check_network_space, check_same_spaces
from rlsmooth.checks import check_choice, check_positive_int, check_writable_folder
from rlsmooth.data import Demonstrations
from rlsmooth.data.space_json import space_from_json, space_to_json
from rlsmooth.training import (
    SafeFileError,
    load_optimizer,
    optimizer_to_tensors,
    read_safe_file,
    tree_from_json,
    tree_to_json,
    write_safe_file,
)
from rlsmooth.training.discriminator import (
    DiscriminatorStatistics,
    accumulated_discriminator_step,
    check_targets,
    discriminator_step,
)
from rlsmooth.training.divergence import FiniteWatch, check_finite_step
from rlsmooth.training.run import check_given_again, learning_rate_of
from rlsmooth.training.safe_file import with_zip_suffix
from rlsmooth.training.seeding import few_threads
from rlsmooth.untrusted import Count, decode

TerminalStates: TypeAlias = Literal["absorbing", "as_is"]
Callbacks: TypeAlias = BaseCallback | Sequence[BaseCallback] | Callable[[dict[str, Any], dict[str, Any]], bool] | None

FORMAT_NAME = "rlsmooth-imitation"
FORMAT_VERSION = 1
ROUNDS = "rlsmooth.Rounds"  # without its module, see `rlsmooth.envs.snapshot_values.stable_name`
OPTIMIZER, OPTIMIZER_IN_FILES = "disc_opt_cls", "optimizer_class"
"""The argument, and what the tables of classes that a file may name call it."""

PROBED = 8
GENERATOR_TAGS = ("train/", "rollout/")
TAGS = {
    "loss": "disc_loss",
    "accuracy": "disc_acc",
    "accuracy_real": "disc_acc_expert",
    "accuracy_fake": "disc_acc_gen",
    "entropy": "disc_entropy",
    "probability_real": "disc_probability_expert",
    "probability_fake": "disc_probability_gen",
    "share_real": "disc_proportion_expert_true",
    "share_predicted_real": "disc_proportion_expert_pred",
}
"""imitation's names, but for the two probabilities, which it lacks."""


@dataclass(frozen=True, kw_only=True)
class ResumedImitation:
    """A run of GAIL or AIRL as it was when its last checkpoint was written.

    Continue by `run.trainer.learn(run.remaining_timesteps, run.callback, reset_num_timesteps=False)`.

    Attributes:
        trainer: with its generator and the environments.
        callback: to be given to `trainer.learn`, in the place that it had; it writes the next checkpoints.
        total_timesteps: the environment steps that the run was started for.
        remaining_timesteps: those that are left; 0 for a finished run.
        is_exact: whether the environments are where they were; False: `learn` starts new episodes.
    """

    trainer: Any
    callback: ExactCheckpointCallback
    total_timesteps: int
    remaining_timesteps: int
    is_exact: bool


class AdversarialImitation(ABC):
    """The trainer behind `GAIL` and `AIRL`, which define the discriminator's logit and the reward.

    A round is: the generator makes `gen_train_timesteps` steps and learns from the learned reward, as in any call of
    its `learn`; then the discriminator makes `n_disc_updates_per_round` updates on batches of `demo_batch_size`
    transitions of the expert and as many of the generator's latest. `learn` calls the algorithm's own `learn` once, so
    that its schedules, callbacks and progress bar run over the whole budget. `GAIL` documents the arguments.
    """

    STEPS_AN_UPDATE: ClassVar[int | None] = None  # of an on-policy round, by default; None: two updates a round
    ADDED_ARGUMENTS: ClassVar[dict[str, Any]] = {}  # arguments that older files lack, as their runs were trained
    _learns_absorbing = True  # whether steps in the absorbing state are in the discriminator's batches

    def __init__(
        self,
        demonstrations: Demonstrations,
        gen_algo: BaseAlgorithm,
        reward_net: nn.Module | None = None,
        *,
        demo_batch_size: int = 256,
        demo_minibatch_size: int | None = None,
        n_disc_updates_per_round: int | None = None,
        gen_train_timesteps: int | None = None,
        gen_replay_buffer_capacity: int | None = None,
        disc_learning_rate: float | None = None,
        disc_opt_cls: type[torch.optim.Optimizer] = torch.optim.Adam,
        disc_opt_kwargs: Mapping[str, Any] | None = None,
        real_target: float = 1.0,
        fake_target: float = 0.0,
        correct_offset: bool = True,
        terminal_states: TerminalStates = "absorbing",
        horizon: int | None = None,
        relabel_replay_buffer: bool = True,
        seed: int | None = None,
    ) -> None:
        self.demonstrations, self.gen_algo = demonstrations, check_algorithm(gen_algo)
        check_network_space("observation_space", gen_algo.observation_space)
        check_network_space("action_space", gen_algo.action_space)
        self._check_policy()
        self.seed = int(torch.randint(2**31, ())) if seed is None else check_positive_int("seed", seed, minimum=0)
        net = build_net(self._default_net, self.seed) if reward_net is None else reward_net
        check_generator(self.gen_algo, demonstrations)
        self.demo_batch_size = check_positive_int("demo_batch_size", demo_batch_size)
        self.demo_minibatch_size = check_minibatch(demo_minibatch_size, self.demo_batch_size)
        steps = round_timesteps(self.gen_algo, gen_train_timesteps)
        self.gen_train_timesteps = steps
        updates = round_updates(self.gen_algo, n_disc_updates_per_round, steps, self.STEPS_AN_UPDATE)
        self.n_disc_updates_per_round = updates
        self.real_target, self.fake_target = check_targets(real_target, fake_target, stacklevel=outer_stacklevel() + 1)
        self.correct_offset = correct_offset
        check_choice("terminal_states", terminal_states, ("absorbing", "as_is"))
        self.terminal_states: TerminalStates = terminal_states
        self.relabel_replay_buffer = relabel_replay_buffer
        if relabel_replay_buffer:
            check_relabelling(self.gen_algo)
        is_absorbing = terminal_states == "absorbing"
        self.horizon = episode_horizon(self.gen_algo, demonstrations, horizon) if is_absorbing else None
        self.device = self.gen_algo.device
        self.gamma = float(self.gen_algo.gamma)
        self.reward_net = net.to(self.device)
        self.disc_learning_rate, self.disc_opt_cls = disc_learning_rate, disc_opt_cls
        self.disc_opt_kwargs = None if disc_opt_kwargs is None else dict(disc_opt_kwargs)
        self.optimizer = build_optimizer(self.reward_net, disc_learning_rate, disc_opt_cls, disc_opt_kwargs)

        masks = num_masks(self.gen_algo)
        self.expert = expert_store(
            demonstrations,
            self.gen_algo.observation_space,
            horizon=self.horizon,
            needs_next=not isinstance(net, RewardNet) or net.use_next_state,
            masks_terminal=isinstance(net, (RewardNet, ShapedRewardNet)),
            gamma=self.gamma,
            num_masks=masks,
        )
        capacity = self.gen_train_timesteps if gen_replay_buffer_capacity is None else gen_replay_buffer_capacity
        self.generated = TransitionStore(self.gen_algo.observation_space, self.gen_algo.action_space, capacity, masks)
        self.gen_replay_buffer_capacity = self.generated.capacity
        probe, _ = self.expert.sample(PROBED, np.random.default_rng(0), self.device)
        self._absorbing = absorbing_transition(probe)
        if self.horizon is not None:
            check_absorbing(self.reward_net, probe)
        self.rounds = self.trained_at = 0
        self.knows_absorbing = False
        self.draws = np.random.default_rng(np.random.SeedSequence([self.seed, 1]))

    @abstractmethod
    def _check_policy(self) -> None:
        """Raise TypeError if the generator's policy can't be trained in this way."""

    @abstractmethod
    def _default_net(self) -> nn.Module:
        """A new network for the generator's spaces."""

    @abstractmethod
    def logits(self, transitions: Transitions, masks: Tensor | None) -> Tensor:
        """The discriminator's logit, `[B]`, high = expert, with its graph.

        Args:
            transitions: on the trainer's device.
            masks: the legal actions, bool `[B, choices]`, or None.
        """

    @abstractmethod
    def reward(self, transitions: Transitions) -> Tensor:
        """The generator's reward for each transition, `[B]`, before that of the absorbing state is taken off."""

    def recovered_reward(self, transitions: Transitions) -> Tensor:
        """The reward for training a new agent, `[B]`: `reward`, but for shaping."""
        return self.reward(transitions)

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of another trainer like this one."""
        return {name: getattr(self, name) for name in _argument_names(type(self))}

    @property
    def offset(self) -> float:
        """The logit of a discriminator that can't tell the sides apart, `log((a + b) / (2 - a - b))`; hard: 0.

        With `correct_offset` it is taken off the logit before the reward is made, so that smoothing adds no constant to
        each step's reward, which would pay for longer or shorter episodes.
        """
        both = self.real_target + self.fake_target
        return math.log(both / (2 - both)) if self.correct_offset else 0.0

    @property
    def reward_function(self) -> RewardFunction:
        """`predict_reward` without shaping, for `LearnedRewardVecEnv`, by the network as it is at each call."""
        return partial(self._paid, self.recovered_reward)

    @property
    def is_round_over(self) -> bool:
        """Whether the generator has made `gen_train_timesteps` steps since the discriminator last learnt."""
        return self.generated.added - self.trained_at >= self.gen_train_timesteps

    @property
    def policy(self) -> BasePolicy:
        """The generator's."""
        return self.gen_algo.policy

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """The generator's action, as SB3's `predict` gives it."""
        return self.gen_algo.predict(observation, state, episode_start, deterministic)

    def learn(
        self,
        total_timesteps: int,
        callback: Callbacks = None,
        *,
        log_interval: int | None = None,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train both in turns; the arguments are those of SB3's `learn`.

        Args:
            total_timesteps: the generator's environment steps.
            callback: SB3's, one or several; they see the generator. `rollout/ep_rew_mean` is the true return. An
                `EvalCallback` beside a `VecNormalize` needs one wrapper more below that of the evaluation environment,
                `VecNormalize(VecCheckNan(eval_env), training=False)`, for the trainer has one in the other. An
                `ExactCheckpointCallback` keeps the trainer too; see `resume`. In rollouts of on-policy algorithms
                `locals["rewards"]` is 0: the rewards are made in one pass before the returns are computed.
            log_interval: rollouts or episodes between two log lines; None: the algorithm's default.
            tb_log_name: the name of the run in TensorBoard; None: the trainer's name.
            reset_num_timesteps: False: continue to count where the last call ended.
            progress_bar: show one.

        Returns:
            The trainer itself. The algorithm's environment is its own again.
        """
        deferred = can_defer(self.gen_algo, self.generated.capacity)
        wrapper = install(
            self.gen_algo,
            lambda venv: RecordingRewardVecEnv(
                venv, self.predict_reward, self.generated, horizon=self.horizon, gamma=self.gamma, is_deferred=deferred
            ),
        )
        listeners: list[BaseCallback] = [rounds := Rounds(self, wrapper)]
        if callback is not None:
            given = callback if isinstance(callback, Sequence) else [callback]
            listeners += [each if isinstance(each, BaseCallback) else ConvertCallback(each) for each in given]
            rounds.folder = next((each.save_path for each in given if isinstance(each, ExactCheckpointCallback)), None)
        interval: dict[str, Any] = {} if log_interval is None else {"log_interval": log_interval}
        try:
            small = few_threads(self.policy, self.reward_net, batch_size=self.demo_batch_size)
            with small, deferred_rewards(self.gen_algo, wrapper, rounds.folder):
                self.gen_algo.learn(
                    total_timesteps,
                    callback=listeners,
                    tb_log_name=tb_log_name or type(self).__name__,
                    reset_num_timesteps=reset_num_timesteps,
                    progress_bar=progress_bar,
                    **interval,
                )
        finally:
            uninstall(self.gen_algo, wrapper)
        return self

    def train_discriminator(self) -> dict[str, float]:
        """The discriminator's part of a round; returns the means over its updates, by imitation's names.

        Raises:
            RuntimeError: the generator has made no step yet.
            TrainingDivergedError: the loss or the parameters are not finite.
        """
        if len(self.generated) == 0:
            raise RuntimeError("the generator has made no transitions to compare with the expert's: call learn first.")
        self.reward_net.train()
        self.policy.set_training_mode(False)
        found = [self._update_discriminator() for _ in range(self.n_disc_updates_per_round)]
        self.reward_net.eval()
        self.rounds, self.trained_at = self.rounds + 1, self.generated.added
        watch = FiniteWatch(self.reward_net, model="discriminator", learning_rate="disc_learning_rate", can_clip=False)
        watch.add(*(statistics.loss for statistics in found))
        watch.check(self.rounds * self.n_disc_updates_per_round, None, rate=learning_rate_of(self.optimizer))
        means = torch.stack([torch.stack(tuple(statistics)) for statistics in found]).mean(0).tolist()
        named = dict(zip(DiscriminatorStatistics._fields, means, strict=True))
        sizes = dict.fromkeys(("n_expert", "n_generated"), float(self.demo_batch_size))
        return {tag: named[name] for name, tag in TAGS.items()} | sizes

    def _update_discriminator(self) -> DiscriminatorStatistics:
        drawn = self.demo_batch_size, self.draws, self.device, self._learns_absorbing
        expert, expert_masks = self.expert.sample(*drawn, more_absorbing=self._unseen_absorbing(self.expert))
        made, made_masks = self.generated.sample(*drawn, more_absorbing=self._unseen_absorbing(self.generated))
        size = self.demo_minibatch_size or self.demo_batch_size

        def logits() -> Iterator[tuple[Tensor, Tensor]]:
            for first in range(0, self.demo_batch_size, size):
                part = slice(first, first + size)
                # One pass over both: what the net standardises by is then the same for both.
                both = Transitions(*(joined(*pair, part) for pair in zip(expert, made, strict=True)))
                masks = None if expert_masks is None else joined(expert_masks, made_masks, part)
                found = self.logits(both, masks)
                yield found[:size], found[size:]

        real, fake = self.real_target, self.fake_target
        if size == self.demo_batch_size:
            return discriminator_step(self.optimizer, *next(logits()), real_target=real, fake_target=fake)
        parts = logits(), self.demo_batch_size // size
        return accumulated_discriminator_step(self.optimizer, *parts, real_target=real, fake_target=fake)

    def _sees_absorbing(self) -> bool:
        """Whether an episode of either side ever terminated: before that, the absorbing state plays no part."""
        if self.horizon is not None and not self.knows_absorbing:
            self.knows_absorbing = self.expert.has_absorbing or self.generated.has_absorbing
        return self.knows_absorbing

    def _unseen_absorbing(self, store: TransitionStore) -> float:
        """Absorbing steps that were not seen: each side is drawn from as if it had terminated once more.

        That is Laplace's rule of succession: where only one side ever terminated, the best D would else be 0 or 1. The
        side with fewer transitions has less of it, so that two sides that do the same have the same share.
        """
        if not self._sees_absorbing():
            return 0.0
        assert self.horizon is not None
        whole = float(absorbing_steps(np.zeros(1, np.int64), self.horizon, self.gamma)[0])
        return whole * len(store) / max(len(self.expert), len(self.generated))

    def predict_reward(
        self, observations: Any, actions: NDArray[Any], next_observations: Any, terminated: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """The generator's reward for transitions, float32 `[B]`, on arrays.

        With `terminal_states="absorbing"` it is less the reward of the absorbing state, which a terminated episode
        would earn for ever: all returns move alike, a terminal state is worth 0, and no termination pays at once.

        Args:
            observations: `[B, ...]`, or a dict of such, as the algorithm's space has them.
            actions: `[B, ...]`.
            next_observations: those after the actions; at the end of an episode its last ones.
            terminated: bool `[B]`.
        """
        return self._paid(self.reward, observations, actions, next_observations, terminated)

    @torch.no_grad()
    def _paid(self, reward: Callable[[Transitions], Tensor], *arrays: Any, **named: Any) -> NDArray[np.float32]:
        if self.reward_net.training:
            self.reward_net.eval()
        space = self.gen_algo.observation_space
        rewards = reward(transitions_from_arrays(*arrays, **named, space=space, device=self.device))
        if self._sees_absorbing():
            rewards = rewards - reward(self._absorbing)
        paid: NDArray[np.float32] = rewards.float().cpu().numpy()
        return paid

    # ---- files

    def save(self, path: str | Path) -> Path:
        """Write a file of the whole trainer: arguments, generator, reward network, optimisers, counters.

        Not kept: the demonstrations, the environment, a replay buffer, and the generator's latest transitions, which
        the next round makes anew. The generator alone is kept by `save_agent`, the network alone by `save_reward_net`.
        A run that may be killed needs `ExactCheckpointCallback` and `resume`.

        Args:
            path: `.zip` is added to a name without a suffix, and a missing folder made.

        Returns:
            The path written.

        Raises:
            ValueError: the folder can't be written to.
        """
        path = with_zip_suffix(path)
        check_writable_folder("path", path.parent)
        generator, tensors = generator_state(self.gen_algo)
        state, of_trainer = tree_to_json(self.state(), "trainer")
        config = {
            "trainer": state,
            "generator": generator,
            "spaces": [space_to_json(space) for space in (self.gen_algo.observation_space, self.gen_algo.action_space)],
        }
        write_safe_file(
            path,
            config,
            tensors={**tensors, "trainer": of_trainer},
            format_name=FORMAT_NAME,
            format_version=FORMAT_VERSION,
        )
        return path

    @classmethod
    def load(
        cls,
        path: str | Path,
        demonstrations: Demonstrations,
        gen_algo: BaseAlgorithm,
        reward_net: nn.Module | None = None,
        *,
        custom_objects: Mapping[str, Any] | None = None,
    ) -> Self:
        """Read a file of `save`, to train from there on. Runs no code that the file could name.

        `learn(..., reset_num_timesteps=False)` then continues to count.

        Args:
            path: the file.
            demonstrations: those of before, or others in the same spaces.
            gen_algo: built as before, with its environment; it gets parameters, optimisers, counters, and the
                statistics of its `VecNormalize`.
            reward_net: one of your own, built as before; None: built as the file says.
            custom_objects: argument to value, of the trainer or of the network, in place of the file's; needed where
                these are classes of your own.

        Raises:
            SafeFileError: the file is damaged, of another class, or does not fit `gen_algo` or `reward_net`.
            ValueError: spaces that differ.
        """
        path = Path(path).expanduser()
        path = path if path.exists() else with_zip_suffix(path)
        content = read_safe_file(path, format_name=FORMAT_NAME, format_version=FORMAT_VERSION)
        algorithm = check_algorithm(gen_algo)
        with misfits_refused(path):
            observation_space, action_space = map(space_from_json, content.config["spaces"])
            state = tree_from_json(content.config["trainer"], content.tensors["trainer"])
            generator = dict(content.config["generator"])
            kind = str(generator["class"])
        check_same_spaces(
            "gen_algo", (algorithm.observation_space, algorithm.action_space), (observation_space, action_space)
        )
        if kind != type(algorithm).__name__:
            raise SafeFileError(
                f"{str(path)!r} has a {kind}, gen_algo is a {type(algorithm).__name__}: build it as before."
            )
        with misfits_refused(path):
            trainer = cls._from_state(path, state, demonstrations, algorithm, reward_net, custom_objects or {})
            set_generator_state(path, algorithm, generator, content.tensors)
        return trainer

    @classmethod
    def resume(
        cls,
        folder: str | Path,
        demonstrations: Demonstrations,
        env: GymEnv | str,
        *,
        device: torch.device | str = "auto",
        reward_net: nn.Module | None = None,
        model_class: type[Algorithm] | None = None,
        policy_class: type[BasePolicy] | None = None,
        custom_objects: Mapping[str, Any] | None = None,
        tensorboard_log: str | Path | None = None,
        verbose: int = 0,
    ) -> ResumedImitation:
        """The run of `learn` with an `ExactCheckpointCallback`, as it stood when its last checkpoint was written.

        On the CPU the parameters of generator and network at the end equal those of a run that was never cut off.

        Args:
            folder: `save_path` of the callback.
            demonstrations: those of the run.
            env: built and wrapped as that of the run, with as many environments.
            device: where generator and network go; "auto": a GPU if there is one.
            reward_net: one of your own, built as before; None: built as the checkpoint says.
            model_class: the generator's class where it is one of your own.
            policy_class: the class of its policy where it is one of your own.
            custom_objects: argument to value, of the trainer (`disc_opt_cls`) or generator (see `load_agent`); of
                those that the checkpoint marks as its writer's own, of the network too.
            tensorboard_log: the folder that the run logged to.
            verbose: the generator's, 0 to 2.

        Raises:
            ValueError: there is no run in the folder, or environments or demonstrations are others, or
                `custom_objects` has another learning rate.
            SafeFileError: no checkpoint can be read, or it is of another class, or does not fit.

        Examples:
            >>> import tempfile
            >>> from stable_baselines3 import PPO
            >>> from rlsmooth.agents.adversarial.gail import GAIL
            >>> from rlsmooth.data import cartpole_v1
            >>> folder = tempfile.mkdtemp()
            >>> generator = PPO("MlpPolicy", "CartPole-v1", n_steps=64, seed=0, device="cpu")
            >>> _ = GAIL(cartpole_v1(), generator, seed=0).learn(128, ExactCheckpointCallback(64, folder))
            >>> run = GAIL.resume(folder, cartpole_v1(), "CartPole-v1", device="cpu")
            >>> run.trainer.rounds, run.remaining_timesteps
            (2, 0)
        """
        names = _argument_names(cls)
        custom = dict(custom_objects or {})
        for name in ("disc_learning_rate", "disc_opt_kwargs"):
            if name in custom:
                raise ValueError(
                    f"custom_objects has {name}, and a resumed run has what it had: `load` takes it, for a new run."
                )
        run = load_checkpoint(
            folder,
            env,
            device=device,
            model_class=model_class,
            policy_class=policy_class,
            custom_objects={name: value for name, value in custom.items() if name not in names},
            tensorboard_log=tensorboard_log,
            verbose=verbose,
        )
        path = Path(folder).expanduser()
        kept = run.callback_states.get(ROUNDS)
        if kept is None:
            raise SafeFileError(f"{str(path)!r} holds a run without a discriminator: use load_checkpoint.")
        with misfits_refused(path):
            state = kept["run"]["trainer"]
            # What the network does not ask for is the generator's, whose arguments have the same names.
            of_net = (state["net"] or {}).get("arguments", {})
            asked = {*names, *(name for name, value in of_net.items() if custom_name(value) is not None)}
            custom = {name: value for name, value in custom.items() if name in asked}
            trainer = cls._from_state(path, state, demonstrations, run.model, reward_net, custom)
        trainer.set_run_state(kept["run"], path)
        return ResumedImitation(
            trainer=trainer,
            callback=run.callback,
            total_timesteps=run.total_timesteps,
            remaining_timesteps=run.remaining_timesteps,
            is_exact=run.is_exact,
        )

    @classmethod
    def _from_state(
        cls,
        path: Path,
        state: Mapping[str, Any],
        demonstrations: Demonstrations,
        gen_algo: Algorithm,
        reward_net: nn.Module | None,
        custom_objects: Mapping[str, Any],
    ) -> Self:
        """A trainer in the state that `state` gave; SafeFileError if `reward_net` or `custom_objects` are missing."""
        if state.get("class") != cls.__name__:
            raise SafeFileError(f"{str(path)!r} is of {state.get('class')}: use that class, not {cls.__name__}.")
        names = _argument_names(cls)
        own = {name: value for name, value in custom_objects.items() if name in names}
        custom = custom_name(state["arguments"].get(OPTIMIZER_IN_FILES))
        if custom is not None and OPTIMIZER not in own:
            raise SafeFileError(
                f"{str(path)!r} was saved with an optimiser of its writer's own ({custom}). Load it with "
                f"custom_objects={{{OPTIMIZER!r}: {custom.rpartition('.')[2]}}}."
            )
        arguments = decode_arguments(
            path,
            state["arguments"],
            tensors=state["argument_tensors"],
            custom_objects=_renamed(own, OPTIMIZER, OPTIMIZER_IN_FILES),
        )
        arguments = cls.ADDED_ARGUMENTS | _renamed(arguments, OPTIMIZER_IN_FILES, OPTIMIZER)
        if set(arguments) != set(names):
            raise SafeFileError(f"{str(path)!r} has the arguments {sorted(arguments)}. Use another copy.")
        if reward_net is None:
            if state["net"] is None:
                raise SafeFileError(
                    f"{str(path)!r} has a network of its writer's own: pass one built as before, reward_net=."
                )
            reward_net = decode_net(path, state["net"], state["net_tensors"], custom_objects=custom_objects)
        trainer = cls(demonstrations, gen_algo, reward_net, **arguments)
        trainer.set_state(state, path)
        for group in trainer.optimizer.param_groups:  # the file's state has put back its own
            if "disc_learning_rate" in own:
                group["lr"] = trainer.disc_learning_rate
            group.update(own.get("disc_opt_kwargs") or {})
        return trainer

    def state(self) -> dict[str, Any]:
        """Arguments, reward network, its optimiser, counters and draws, as plain data and tensors, not copied."""
        arguments, argument_tensors = encode_arguments(_renamed(self.arguments, OPTIMIZER, OPTIMIZER_IN_FILES))
        net = self.reward_net
        description: dict[str, Any] | None = None
        tensors = {"net": dict(net.state_dict())}
        if isinstance(net, (RewardNet, ShapedRewardNet)):
            description, tensors = encode_net(net)
        moments, optimizer = optimizer_to_tensors(self.optimizer)
        return {
            "class": type(self).__name__,
            "arguments": arguments,
            "argument_tensors": argument_tensors,
            "net": description,
            "net_tensors": tensors,
            "optimizer": optimizer,
            "optimizer_tensors": moments,
            "rounds": self.rounds,
            "knows_absorbing": self.knows_absorbing,
            "draws": self.draws.bit_generator.state,
        }

    def set_state(self, state: Mapping[str, Any], path: Path) -> None:
        """Put back what `state` gave, arguments apart; errors call it `path`.

        Raises:
            SafeFileError: the network's parameters don't fit.
            ValueError: the rest does not.
        """
        net: Any = self.reward_net
        load_parameters(path, net, state["net_tensors"]["net"])
        load_optimizer(self.optimizer, state["optimizer_tensors"], state["optimizer"])
        self.rounds = decode(Count, state["rounds"], "rounds")
        self.knows_absorbing = decode(bool, state["knows_absorbing"], "knows_absorbing")
        self.draws.bit_generator.state = state["draws"]

    def run_state(self) -> dict[str, Any]:
        """All that a resumed run needs: `state`, the generator's transitions, the demonstrations' fingerprint."""
        return {
            "trainer": self.state(),
            "rows": self.generated.state(),
            "trained_at": self.trained_at,
            "fingerprint": self._fingerprint,
        }

    def set_run_state(self, state: Mapping[str, Any], path: Path) -> None:
        """Put back what `run_state` gave; errors call it `path`.

        Raises:
            SafeFileError: the network's parameters don't fit.
            ValueError: the demonstrations are others, or the rest does not fit.
        """
        check_given_again({"demonstrations": state.get("fingerprint")}, {"demonstrations": self._fingerprint}, path)
        with misfits_refused(path):
            self.set_state(state["trainer"], path)
            self.generated.set_state(state["rows"])
            self.trained_at = decode(Count, state["trained_at"], "trained_at")

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self.demonstrations)


class Rounds(BaseCallback):
    """Ends a round when a rollout starts, as soon as the generator has made enough steps since the last one.

    Args:
        trainer: whose rounds these are.
        wrapper: the environment in which the generator acts, for the time of one `learn`.
    """

    def __init__(self, trainer: AdversarialImitation, wrapper: RecordingRewardVecEnv) -> None:
        super().__init__()
        self.trainer = trainer
        self.wrapper = wrapper
        self.folder: Path | None = None

    def exact_state(self) -> dict[str, Any]:
        """Everything of the trainer that is not the generator's; see `HasExactState`."""
        return {"run": self.trainer.run_state(), "episodes": self.wrapper.episode_state()}

    def set_exact_state(self, state: dict[str, Any], *, episodes_continue: bool) -> None:
        """Put back what `exact_state` gave; ValueError if it is another trainer's."""
        self.trainer.set_run_state(state["run"], Path("checkpoint"))
        if episodes_continue:
            with misfits_refused(Path("checkpoint")):
                self.wrapper.set_episode_state(state["episodes"])

    def _on_training_start(self) -> None:
        generator = self.trainer.gen_algo
        buffer = generator.replay_buffer if isinstance(generator, OffPolicyAlgorithm) else None
        # Transitions from before the trainer's first step: another reward's. Those of a resumed run are its own.
        if buffer is None or buffer.size() == 0 or self.trainer.generated.added:
            return
        assert isinstance(generator, OffPolicyAlgorithm)
        if self.trainer.relabel_replay_buffer:
            relabel(generator, self.trainer.predict_reward)
            return
        warnings.warn(
            f"gen_algo's replay buffer holds {buffer.size()} transitions with rewards that are not the learned ones: "
            "say relabel_replay_buffer=True, or empty it by replay_buffer.reset().",
            UserWarning,
            stacklevel=2,
        )

    def _on_rollout_start(self) -> None:
        self._end_round()
        self.wrapper.begin_rollout()

    def _on_step(self) -> bool:
        found = self.locals.get("rewards"), self.locals.get("new_obs", ())
        check_finite_step(self.num_timesteps, *found, checkpoint_folder=self.folder, is_learned=True)
        return True

    def _on_training_end(self) -> None:
        if self._end_round():
            self.logger.dump(self.num_timesteps)  # no rollout follows, after which the algorithm would write them

    def _end_round(self) -> bool:
        trainer = self.trainer
        if not trainer.is_round_over:
            return False
        self._log_generator()
        for name, value in trainer.train_discriminator().items():
            self.logger.record_mean(f"mean/disc/{name}", value)
        if trainer.relabel_replay_buffer and isinstance(trainer.gen_algo, OffPolicyAlgorithm):
            relabel(trainer.gen_algo, trainer.predict_reward)
        return True

    def _log_generator(self) -> None:
        """The generator's own tags again, as means over rounds, by imitation's names."""
        found = {
            name: float(value)
            for name, value in self.logger.name_to_value.items()
            if name.startswith(GENERATOR_TAGS) and isinstance(value, (int, float, np.number))
        }
        episodes = [episode for episode in self.model.ep_info_buffer or () if episode]
        if episodes:
            found["rollout/ep_rew_mean"] = safe_mean([episode["r"] for episode in episodes])
            found["rollout/ep_len_mean"] = safe_mean([episode["l"] for episode in episodes])
        returns = self.wrapper.finished_returns
        if returns:
            found["rollout/ep_rew_wrapped_mean"] = float(np.mean(returns))
            self.logger.record("rollout/ep_rew_wrapped_mean", found["rollout/ep_rew_wrapped_mean"])
            returns.clear()
        for name, value in found.items():
            self.logger.record_mean(f"mean/gen/{name}", value)


def _argument_names(build: type) -> list[str]:
    """The constructor's keyword-only arguments."""
    parameters = inspect.signature(build).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def _renamed(values: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new if name == old else name: value for name, value in values.items()}
