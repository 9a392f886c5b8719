"""What GAIL and AIRL share: a discriminator between expert and generator, trained in turns with an SB3 algorithm."""

from __future__ import annotations

import inspect
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import safe_mean
from torch import Tensor, nn

from rlsmooth.agents import spaces as agent_spaces
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
    absorbing_row,
    as_tensors,
    decode_net,
    encode_net,
    with_suffix,
)
from rlsmooth.agents.adversarial.transitions import TransitionStore, absorbing_steps, expert_store
from rlsmooth.agents.cloning.training_data import fingerprint
from rlsmooth.agents.files.algorithm_file import (
    ALGORITHM_BASES,
    Algorithm,
    extra_modules,
    load_extra_modules,
    load_optimizers,
    optimizers,
    plain_attributes,
    set_plain_attributes,
)
from rlsmooth.agents.files.algorithm_state import apply_normalization, encode_normalization
from rlsmooth.agents.files.exact_checkpoint import ExactCheckpointCallback, load_checkpoint
from rlsmooth.agents.files.policy_file import custom_name, decode_arguments, encode_arguments, load_parameters
from rlsmooth.agents.sb3 import is_maskable
from rlsmooth.agents.spaces import check_same_spaces
from rlsmooth.checks import check_choice, check_in_range, check_positive_int
from rlsmooth.data import Demonstrations
from rlsmooth.data.space_json import space_from_json, space_to_json
from rlsmooth.training import (
    SafeFileError,
    isolated_rng,
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

if TYPE_CHECKING:
    pass

__all__ = [
    "AdversarialImitation",
    "ResumedImitation",
    "Rounds",
    "SavedImitation",
    "TerminalStates",
    "argument_names",
    "build_net",
    "build_optimizer",
    "build_trainer",
    "check_absorbing",
    "check_algorithm",
    "check_generator",
    "check_minibatch",
    "discount",
    "episode_horizon",
    "for_net",
    "masks_ends",
    "needs_next",
    "num_masks",
    "round_timesteps",
    "run_state",
    "set_run_state",
    "set_trainer_state",
    "trainer_state",
]


OFF_POLICY_ROUND = 1024
"""Default of `gen_train_timesteps` for algorithms without rollouts."""
DISC_LEARNING_RATE = 1e-3
STACKLEVEL = 4
"""Of warnings: the line that makes the trainer."""


def check_algorithm(algorithm: object) -> None:
    """Check that it is one of Stable-Baselines3.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(algorithm, (OnPolicyAlgorithm, OffPolicyAlgorithm)):
        raise TypeError(f"gen_algo must be an algorithm of Stable-Baselines3, got {type(algorithm).__name__}.")


def check_generator(algorithm: BaseAlgorithm, demonstrations: Demonstrations) -> None:
    """Check that one can be trained on the other.

    Raises:
        TypeError: one is of another type.
        ValueError: there is no environment, or the spaces differ.

    Warns:
        UserWarning: the demonstrations have weights, which a discriminator does not use.
    """
    check_algorithm(algorithm)
    agent_spaces.check_demonstrations("demonstrations", demonstrations)
    if algorithm.env is None:
        raise ValueError("gen_algo has no environment: give it one, as in PPO('MlpPolicy', env).")
    agent_spaces.check_same_spaces(
        "demonstrations",
        (demonstrations.observation_space, demonstrations.action_space),
        (algorithm.observation_space, algorithm.action_space),
    )
    if demonstrations.weights is not None and np.ptp(np.asarray(demonstrations.weights)) > 0:
        warnings.warn(
            "demonstrations have weights, and GAIL and AIRL draw all rows alike: leave out those that must not count.",
            UserWarning,
            stacklevel=STACKLEVEL,
        )


def check_minibatch(demo_minibatch_size: int | None, demo_batch_size: int) -> int:
    """The rows of each side that one backward pass takes.

    Raises:
        ValueError: it does not divide the batch.
    """
    if demo_minibatch_size is None:
        return demo_batch_size
    size = check_positive_int("demo_minibatch_size", demo_minibatch_size)
    if demo_batch_size % size:
        raise ValueError(
            f"demo_minibatch_size={size} must divide demo_batch_size={demo_batch_size}: "
            f"try {max(part for part in range(1, size + 1) if demo_batch_size % part == 0)}."
        )
    return size


def round_timesteps(algorithm: BaseAlgorithm, gen_train_timesteps: int | None) -> int:
    """Environment steps of a round.

    Warns:
        UserWarning: an on-policy algorithm's rollouts don't add up to it.
    """
    if not isinstance(algorithm, OnPolicyAlgorithm):
        steps = OFF_POLICY_ROUND if gen_train_timesteps is None else gen_train_timesteps
        return check_positive_int("gen_train_timesteps", steps)
    rollout = algorithm.n_steps * algorithm.n_envs
    steps = check_positive_int("gen_train_timesteps", rollout if gen_train_timesteps is None else gen_train_timesteps)
    if steps % rollout:
        warnings.warn(
            f"gen_train_timesteps={steps} is no multiple of gen_algo's rollouts of n_steps · n_envs = {rollout} steps: "
            f"a round ends with a rollout, after {-(-steps // rollout) * rollout} steps.",
            UserWarning,
            stacklevel=STACKLEVEL,
        )
    return steps


def discount(algorithm: BaseAlgorithm) -> float:
    """The algorithm's discount factor."""
    found: Any = algorithm
    return float(found.gamma)


def episode_horizon(algorithm: BaseAlgorithm, demonstrations: Demonstrations, given: int | None) -> int:
    """Steps after which an episode would have ended anyway: given, or the time limit, or the longest demonstration.

    Warns:
        UserWarning: the demonstrations are longer, or don't say whether episodes that are shorter have ended; no limit
            is known, and the longest demonstrations were not cut off.
    """
    lengths = demonstrations.episode_lengths()
    horizon = check_positive_int("horizon", given) if given is not None else _time_limit(algorithm)
    if horizon is None:
        horizon = int(lengths.max())
        longest = demonstrations.episode_ends[lengths == horizon] - 1
        if demonstrations.terminations is not None and np.asarray(demonstrations.terminations)[longest].all():
            warnings.warn(
                f"no time limit is known, and the longest demonstrations ended by themselves after {horizon} steps, "
                "which are taken for the limit: say horizon=, the steps after which an episode is cut off.",
                UserWarning,
                stacklevel=STACKLEVEL,
            )
    if lengths.max() > horizon:
        warnings.warn(
            f"demonstrations have episodes of up to {lengths.max()} steps, and horizon is {horizon}: the expert acted "
            "under another time limit than the generator. Give the environment the same limit, or say horizon=.",
            UserWarning,
            stacklevel=STACKLEVEL,
        )
    if demonstrations.terminations is None and lengths.min() < horizon:
        warnings.warn(
            f"demonstrations have no terminations, and episodes of {lengths.min()} steps under a horizon of {horizon}: "
            "each is taken for cut off, none for ended. Record terminations, or say terminal_states='as_is'.",
            UserWarning,
            stacklevel=STACKLEVEL,
        )
    return horizon


def needs_next(net: nn.Module) -> bool:
    """Whether the network reads next observations; of an unknown one: yes."""
    return net.use_next_state if isinstance(net, RewardNet) else True


def masks_ends(net: nn.Module) -> bool:
    """Whether the network is known not to look at the next observation of terminated rows."""
    return isinstance(net, (RewardNet, ShapedRewardNet))


def num_masks(algorithm: BaseAlgorithm) -> int:
    """Choices of all dimensions together where policy and environment have action masks, else 0."""
    env = algorithm.env
    if env is None or not is_maskable(algorithm.policy) or not env.has_attr("action_masks"):
        return 0
    space = algorithm.action_space
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    assert isinstance(space, spaces.MultiBinary)  # maskable policies know no other
    return 2 * int(np.prod(space.shape))


def build_net(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network with weights drawn from `seed`, the global generators left alone."""
    with isolated_rng(seed):
        return build()


def build_optimizer(
    net: nn.Module,
    disc_learning_rate: float | None,
    disc_opt_cls: type[torch.optim.Optimizer],
    disc_opt_kwargs: Mapping[str, Any] | None,
) -> torch.optim.Optimizer:
    """The discriminator's optimiser.

    Raises:
        TypeError: `disc_opt_cls` is no optimiser, or it does not take `disc_opt_kwargs`.
        ValueError: there are two learning rates, or one outside its range.
    """
    if not (isinstance(disc_opt_cls, type) and issubclass(disc_opt_cls, torch.optim.Optimizer)):
        raise TypeError(f"disc_opt_cls={disc_opt_cls!r} must be a class of torch.optim, such as torch.optim.Adam.")
    arguments = dict(disc_opt_kwargs or {})
    if "lr" not in arguments:
        rate = DISC_LEARNING_RATE if disc_learning_rate is None else disc_learning_rate
        arguments["lr"] = check_in_range("disc_learning_rate", rate, 0.0, low_open=True)
    elif disc_learning_rate is not None:
        raise ValueError(
            f"disc_learning_rate={disc_learning_rate} and disc_opt_kwargs['lr']={arguments['lr']}: give one of them."
        )
    build: Any = disc_opt_cls
    try:
        optimizer: torch.optim.Optimizer = build(net.parameters(), **arguments)
    except TypeError as error:
        raise TypeError(f"disc_opt_kwargs={arguments} do not fit {disc_opt_cls.__name__}: {error}") from error
    return optimizer


@torch.no_grad()
def check_absorbing(net: nn.Module, rows: Transitions) -> None:
    """Check that a network of the user's own knows the absorbing state.

    Args:
        net: in any mode.
        rows: some that differ.

    Raises:
        ValueError: its score of the absorbing state depends on what else the row holds.
    """
    was_training = net.training
    net.eval()
    nothing = torch.zeros_like(rows.terminated)
    scores = net(rows._replace(terminated=nothing, absorbing=~nothing))
    net.train(was_training)
    if not torch.allclose(scores, scores[:1].expand_as(scores), rtol=1e-4, atol=1e-5):
        raise ValueError(
            "reward_net gives absorbing rows different scores: mask what it reads where rows.absorbing is True (see "
            "RewardNet), or take terminal_states='as_is', which has no such rows."
        )


def _time_limit(algorithm: BaseAlgorithm) -> int | None:
    env = algorithm.env
    assert env is not None
    limits = [getattr(spec, "max_episode_steps", None) for spec in env.get_attr("spec")]
    if all(limit is None for limit in limits) and env.has_attr("_max_episode_steps"):
        limits = env.get_attr("_max_episode_steps")  # gymnasium's TimeLimit around an environment that has no spec
    return max((int(limit) for limit in limits if limit is not None), default=None)


OPTIMIZER = "disc_opt_cls"
IN_FILES = {OPTIMIZER: "optimizer_class"}
"""What the tables of classes that a file may name call an argument."""
BACK = {value: key for key, value in IN_FILES.items()}


def trainer_state(trainer: AdversarialImitation) -> dict[str, Any]:
    """Arguments, reward network, its optimiser, counters and draws.

    Returns:
        A tree of plain data and tensors; they are not copied.
    """
    arguments, argument_tensors = encode_arguments(_renamed(trainer.arguments, IN_FILES))
    net = trainer.reward_net
    description: dict[str, Any] | None = None
    tensors = {"net": dict(net.state_dict())}
    if isinstance(net, (RewardNet, ShapedRewardNet)):
        description, tensors = encode_net(net)
    moments, optimizer = optimizer_to_tensors(trainer.optimizer)
    return {
        "class": type(trainer).__name__,
        "arguments": arguments,
        "argument_tensors": argument_tensors,
        "net": description,
        "net_tensors": tensors,
        "optimizer": optimizer,
        "optimizer_tensors": moments,
        "rounds": trainer.rounds,
        "knows_absorbing": trainer.knows_absorbing,
        "draws": trainer.draws.bit_generator.state,
    }


def build_trainer(
    build: type[AdversarialImitation],
    path: Path,
    state: Mapping[str, Any],
    demonstrations: Demonstrations,
    gen_algo: BaseAlgorithm,
    *,
    reward_net: nn.Module | None,
    custom_objects: Mapping[str, Any],
) -> AdversarialImitation:
    """A trainer of `trainer_state`, in that state.

    Args:
        build: GAIL or AIRL.
        path: what errors call the file.
        state: of `trainer_state`.
        demonstrations: to train on.
        gen_algo: the generator.
        reward_net: a network of the user's own.
        custom_objects: argument to value, of the trainer or the network, in place of the file's.

    Raises:
        SafeFileError: another class's state, or one that is malformed, or asks for `reward_net` or `custom_objects`.
    """
    if state.get("class") != build.__name__:
        raise SafeFileError(f"{str(path)!r} is of {state.get('class')}: use that class, not {build.__name__}.")
    names = argument_names(build)
    own = _renamed({name: value for name, value in custom_objects.items() if name in names}, IN_FILES)
    custom = custom_name(state["arguments"].get(IN_FILES[OPTIMIZER]))
    if custom is not None and OPTIMIZER not in custom_objects:
        raise SafeFileError(
            f"{str(path)!r} was saved with an optimiser of its writer's own ({custom}). Load it with "
            f"custom_objects={{{OPTIMIZER!r}: {custom.rpartition('.')[2]}}}."
        )
    arguments = _renamed(
        decode_arguments(path, state["arguments"], tensors=state["argument_tensors"], custom_objects=own), BACK
    )
    if set(arguments) != names:
        raise SafeFileError(f"{str(path)!r} has the arguments {sorted(arguments)}. Use another copy.")
    if reward_net is None:
        if state["net"] is None:
            raise SafeFileError(
                f"{str(path)!r} has a network of its writer's own: pass one built as before, reward_net=."
            )
        reward_net = decode_net(path, state["net"], state["net_tensors"], custom_objects=custom_objects)
    make: Any = build
    trainer: AdversarialImitation = make(demonstrations, gen_algo, reward_net, **arguments)
    set_trainer_state(trainer, state, path)
    for group in trainer.optimizer.param_groups:  # the file's state has put back its own
        if "disc_learning_rate" in own:
            group["lr"] = trainer.arguments["disc_learning_rate"]
        group.update(own.get("disc_opt_kwargs") or {})
    return trainer


def for_net(state: Mapping[str, Any], custom_objects: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    """Those of `custom_objects` that are the trainer's, or that its network can't do without.

    Others are the generator's, whose arguments have the same names.

    Args:
        state: of `trainer_state`.
        custom_objects: argument to value.
        names: of the trainer's arguments.
    """
    arguments = (state["net"] or {}).get("arguments", {})
    asked = {name for name, value in arguments.items() if custom_name(value) is not None}
    return {name: value for name, value in custom_objects.items() if name in names | asked}


def set_trainer_state(trainer: AdversarialImitation, state: Mapping[str, Any], path: Path) -> None:
    """Put back what `trainer_state` gave, arguments apart.

    Raises:
        SafeFileError: the network's parameters don't fit.
        ValueError: the rest does not.
    """
    net: Any = trainer.reward_net
    load_parameters(path, net, state["net_tensors"]["net"])
    load_optimizer(trainer.optimizer, state["optimizer_tensors"], state["optimizer"])
    trainer.rounds = int(state["rounds"])
    trainer.knows_absorbing = bool(state["knows_absorbing"])
    trainer.draws.bit_generator.state = state["draws"]


def run_state(trainer: AdversarialImitation) -> dict[str, Any]:
    """All that a run needs in the middle of it: `trainer_state`, the generator's rows, what it is trained on."""
    if trainer.fingerprint is None:
        trainer.fingerprint = fingerprint(trainer.demonstrations)
    return {
        "trainer": trainer_state(trainer),
        "rows": trainer.generated.state(),
        "trained_at": trainer.trained_at,
        "fingerprint": trainer.fingerprint,
    }


def set_run_state(trainer: AdversarialImitation, state: Mapping[str, Any], path: Path) -> None:
    """Put back what `run_state` gave.

    Raises:
        SafeFileError, ValueError: see `set_trainer_state`; or the demonstrations are others.
    """
    if trainer.fingerprint is None:
        trainer.fingerprint = fingerprint(trainer.demonstrations)
    if state["fingerprint"] != trainer.fingerprint:
        raise ValueError("demonstrations: these are not those that the run was started with.")
    set_trainer_state(trainer, state["trainer"], path)
    trainer.generated.set_state(state["rows"])
    trainer.trained_at = int(state["trained_at"])


def argument_names(build: type[AdversarialImitation]) -> set[str]:
    """The constructor's keyword-only arguments."""
    parameters = inspect.signature(build).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in values.items()}


GENERATOR_TAGS = ("train/", "rollout/")
RESUME_STACKLEVEL = 2


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

    def exact_state(self) -> dict[str, Any]:
        """Everything of the trainer that is not the generator's; see `HasExactState`."""
        return {"run": run_state(self.trainer), "episodes": self.wrapper.episode_state()}

    def set_exact_state(self, state: dict[str, Any], *, episodes_go_on: bool) -> None:
        """Put back what `exact_state` gave.

        Raises:
            ValueError: it is another trainer's.
        """
        set_run_state(self.trainer, state["run"], Path("checkpoint"))
        if episodes_go_on:
            self.wrapper.set_episode_state(state["episodes"])

    def _on_training_start(self) -> None:
        generator = self.trainer.gen_algo
        buffer = generator.replay_buffer if isinstance(generator, OffPolicyAlgorithm) else None
        # Rows from before the trainer's first step: another reward's. Those of a resumed run are its own.
        if buffer is None or buffer.size() == 0 or self.trainer.generated.added:
            return
        assert isinstance(generator, OffPolicyAlgorithm)
        if self.trainer.relabel_replay_buffer:
            relabel(generator, self.trainer.predict_reward)
            return
        warnings.warn(
            f"gen_algo's replay buffer holds {buffer.size()} rows with rewards that are not the learned ones: say "
            "relabel_replay_buffer=True, or empty it by replay_buffer.reset().",
            UserWarning,
            stacklevel=RESUME_STACKLEVEL,
        )

    def _on_rollout_start(self) -> None:
        self._end_round()
        self.wrapper.begin_rollout()

    def _on_step(self) -> bool:
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


FORMAT_NAME = "rlsmooth-imitation"
FORMAT_VERSION = 1
ROUNDS = "rlsmooth.Rounds"  # without its module, see `rlsmooth.envs.snapshot_values.stable_name`
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError, AssertionError)


@dataclass(frozen=True, kw_only=True)
class ResumedImitation:
    """A run of GAIL or AIRL that stands where its last checkpoint was written.

    Go on by `run.trainer.learn(run.remaining_timesteps, run.callback, reset_num_timesteps=False)`.

    Attributes:
        trainer: with its generator and the environments.
        callback: to be given to `trainer.learn`, in the place that it had; it goes on writing checkpoints.
        total_timesteps: what the run was to reach, in environment steps.
        remaining_timesteps: what is left of it; 0 for a finished run.
        is_exact: whether the environments are where they were; False: `learn` starts new episodes.
    """

    trainer: Any
    callback: ExactCheckpointCallback
    total_timesteps: int
    remaining_timesteps: int
    is_exact: bool


class SavedImitation:
    """The part of `GAIL` and `AIRL` that reads and writes files."""

    def save(self, path: str | Path) -> Path:
        """Write a file of the whole trainer: arguments, generator, reward network, optimisers, counters.

        Not kept: the demonstrations, the environment, a replay buffer, and the generator's latest rows, which the next
        round makes anew. The generator alone is kept by `save_agent`, the network alone by `save_reward_net`. A run
        that may be killed needs `ExactCheckpointCallback` and `resume`.

        Args:
            path: `.zip` is added to a name without a suffix, and a missing folder made.

        Returns:
            The path written.

        Raises:
            ValueError: the folder can't be written to.
        """
        trainer = cast("AdversarialImitation", self)
        path = with_suffix(path)
        algorithm = _algorithm(trainer.gen_algo)
        generator, tensors = _generator_state(algorithm)
        state, of_trainer = tree_to_json(trainer_state(trainer), "trainer")
        config = {
            "trainer": state,
            "generator": generator,
            "spaces": [space_to_json(space) for space in (algorithm.observation_space, algorithm.action_space)],
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
        """Read a file of `save`, and go on from there. Runs no code that the file could name.

        `learn(..., reset_num_timesteps=False)` then goes on counting.

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
        path = path if path.exists() or path.suffix else path.with_name(f"{path.name}.zip")
        content = read_safe_file(path, format_name=FORMAT_NAME, format_version=FORMAT_VERSION)
        algorithm = _algorithm(gen_algo)
        build = cast("type[AdversarialImitation]", cls)
        try:
            observation_space, action_space = map(space_from_json, content.config["spaces"])
            state = tree_from_json(content.config["trainer"], content.tensors["trainer"])
            generator = dict(content.config["generator"])
            kind = str(generator["class"])
        except MALFORMED as error:
            raise SafeFileError(f"{str(path)!r} is malformed ({error!r}). Use another copy.") from error
        check_same_spaces(
            "gen_algo", (algorithm.observation_space, algorithm.action_space), (observation_space, action_space)
        )
        if kind != type(algorithm).__name__:
            raise SafeFileError(
                f"{str(path)!r} has a {kind}, gen_algo is a {type(algorithm).__name__}: build it as before."
            )
        try:
            trainer = build_trainer(
                build,
                path,
                state,
                demonstrations,
                algorithm,
                reward_net=reward_net,
                custom_objects=custom_objects or {},
            )
            _set_generator_state(path, algorithm, generator, content.tensors)
        except SafeFileError:
            raise
        except MALFORMED as error:
            raise SafeFileError(f"{str(path)!r} does not fit: {error}") from error
        return cast("Self", trainer)

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
            device: as in Stable-Baselines3.
            reward_net: one of your own, built as before; None: built as the checkpoint says.
            model_class: see `load_agent`.
            policy_class: see `load_agent`.
            custom_objects: argument to value, of the trainer (`disc_opt_cls`) or generator (see `load_agent`); of
                those that the checkpoint marks as its writer's own, of the network too.
            tensorboard_log: as of the run.
            verbose: as in Stable-Baselines3.

        Raises:
            ValueError: there is no run in the folder, or environments or demonstrations are others, or
                `custom_objects` has another learning rate.
            SafeFileError: no checkpoint can be read, or it is of another class, or does not fit.

        Example:
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
        build = cast("type[AdversarialImitation]", cls)
        names = argument_names(build)
        custom = dict(custom_objects or {})
        for name in ("disc_learning_rate", "disc_opt_kwargs"):
            if name in custom:
                raise ValueError(
                    f"custom_objects has {name}, and a resumed run goes on as before: `load` takes it, for a new run."
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
        state = run.callback_states.get(ROUNDS)
        if state is None:
            raise SafeFileError(f"{str(path)!r} holds a run without a discriminator: use load_checkpoint.")
        try:
            trainer = build_trainer(
                build,
                path,
                state["run"]["trainer"],
                demonstrations,
                run.model,
                reward_net=reward_net,
                custom_objects=for_net(state["run"]["trainer"], custom, names),
            )
        except SafeFileError:
            raise
        except MALFORMED as error:
            raise SafeFileError(f"{str(path)!r} does not fit: {error}") from error
        set_run_state(trainer, state["run"], path)
        return ResumedImitation(
            trainer=trainer,
            callback=run.callback,
            total_timesteps=run.total_timesteps,
            remaining_timesteps=run.remaining_timesteps,
            is_exact=run.is_exact,
        )


def _algorithm(gen_algo: BaseAlgorithm) -> Algorithm:
    if not isinstance(gen_algo, ALGORITHM_BASES):
        raise TypeError(f"gen_algo must be an algorithm of Stable-Baselines3, got {type(gen_algo).__name__}.")
    return gen_algo


def _generator_state(algorithm: Algorithm) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    optimizer, of_optimizer = optimizers(algorithm)
    modules, of_modules = extra_modules(algorithm)
    normalization, of_normalization = encode_normalization(algorithm.get_vec_normalize_env())
    config = {
        "class": type(algorithm).__name__,
        "attributes": plain_attributes(algorithm),
        "optimizer": optimizer,
        "modules": modules,
        "normalization": normalization,
    }
    tensors = {
        "policy": algorithm.policy.state_dict(),
        "optimizer": of_optimizer,
        "modules": of_modules,
        "normalization": of_normalization,
    }
    return config, tensors


def _set_generator_state(
    path: Path, algorithm: Algorithm, config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]
) -> None:
    normalizer = algorithm.get_vec_normalize_env()
    if (config["normalization"] is None) != (normalizer is None):
        wrapped = "no VecNormalize" if normalizer is None else "a VecNormalize"
        raise SafeFileError(f"{str(path)!r} does not fit: gen_algo's environment has {wrapped}: wrap it as before.")
    load_parameters(path, algorithm.policy, tensors["policy"])
    load_extra_modules(path, algorithm, config["modules"], tensors["modules"])
    load_optimizers(algorithm, config["optimizer"], tensors["optimizer"])
    set_plain_attributes(algorithm, config["attributes"])
    if normalizer is not None:
        apply_normalization(normalizer, config["normalization"], tensors["normalization"])


TerminalStates: TypeAlias = Literal["absorbing", "as_is"]
Callbacks: TypeAlias = BaseCallback | Sequence[BaseCallback] | Callable[[dict[str, Any], dict[str, Any]], bool] | None

PROBE_ROWS = 8
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


class AdversarialImitation(SavedImitation, ABC):
    """The trainer behind `GAIL` and `AIRL`, which say what the discriminator's logit and the reward are.

    A round is: the generator makes `gen_train_timesteps` steps and learns from the learned reward, as in any call of
    its `learn`; then the discriminator makes `n_disc_updates_per_round` updates on batches of `demo_batch_size` expert
    rows and as many of the generator's latest. `learn` calls the algorithm's own `learn` once, so that its schedules,
    callbacks and progress bar run over the whole budget.
    """

    def __init__(
        self,
        demonstrations: Demonstrations,
        gen_algo: BaseAlgorithm,
        reward_net: nn.Module,
        *,
        demo_batch_size: int,
        demo_minibatch_size: int | None,
        n_disc_updates_per_round: int,
        gen_train_timesteps: int | None,
        gen_replay_buffer_capacity: int | None,
        disc_learning_rate: float | None,
        disc_opt_cls: type[torch.optim.Optimizer],
        disc_opt_kwargs: Mapping[str, Any] | None,
        real_target: float,
        fake_target: float,
        correct_offset: bool,
        terminal_states: TerminalStates,
        horizon: int | None,
        relabel_replay_buffer: bool,
        seed: int,
    ) -> None:
        check_generator(gen_algo, demonstrations)
        self.demonstrations, self.gen_algo = demonstrations, gen_algo
        self.demo_batch_size = check_positive_int("demo_batch_size", demo_batch_size)
        self.demo_minibatch_size = check_minibatch(demo_minibatch_size, self.demo_batch_size)
        self.n_disc_updates_per_round = check_positive_int("n_disc_updates_per_round", n_disc_updates_per_round)
        self.gen_train_timesteps = round_timesteps(gen_algo, gen_train_timesteps)
        if gen_replay_buffer_capacity is None:
            gen_replay_buffer_capacity = self.gen_train_timesteps
        self.real_target, self.fake_target = check_targets(real_target, fake_target, stacklevel=4)
        self.correct_offset = correct_offset
        check_choice("terminal_states", terminal_states, ("absorbing", "as_is"))
        self.terminal_states: TerminalStates = terminal_states
        self.relabel_replay_buffer = relabel_replay_buffer
        if relabel_replay_buffer:
            check_relabelling(gen_algo)
        self.horizon = None if terminal_states == "as_is" else episode_horizon(gen_algo, demonstrations, horizon)
        self.seed = check_positive_int("seed", seed, minimum=0)
        self.device = gen_algo.device
        self.gamma = discount(gen_algo)
        self.reward_net = reward_net.to(self.device)
        self.optimizer = build_optimizer(self.reward_net, disc_learning_rate, disc_opt_cls, disc_opt_kwargs)

        masks = num_masks(gen_algo)
        self.expert = expert_store(
            demonstrations,
            gen_algo.observation_space,
            horizon=self.horizon,
            needs_next=needs_next(reward_net),
            masks_ends=masks_ends(reward_net),
            gamma=self.gamma,
            num_masks=masks,
        )
        self.generated = TransitionStore(
            gen_algo.observation_space, gen_algo.action_space, gen_replay_buffer_capacity, masks
        )
        probe, _ = self.expert.sample(PROBE_ROWS, np.random.default_rng(0), self.device)
        self._absorbing_row = absorbing_row(probe)
        if self.horizon is not None:
            check_absorbing(self.reward_net, probe)
        self.rounds = self.trained_at = 0
        self.knows_absorbing = False
        self.draws = np.random.default_rng(np.random.SeedSequence([self.seed, 1]))
        self.fingerprint: str | None = None
        self.arguments: dict[str, Any] = {
            "demo_batch_size": self.demo_batch_size,
            "demo_minibatch_size": demo_minibatch_size,
            "n_disc_updates_per_round": self.n_disc_updates_per_round,
            "gen_train_timesteps": self.gen_train_timesteps,
            "gen_replay_buffer_capacity": gen_replay_buffer_capacity,
            "disc_learning_rate": disc_learning_rate,
            "disc_opt_cls": disc_opt_cls,
            "disc_opt_kwargs": None if disc_opt_kwargs is None else dict(disc_opt_kwargs),
            "real_target": self.real_target,
            "fake_target": self.fake_target,
            "correct_offset": correct_offset,
            "terminal_states": terminal_states,
            "horizon": self.horizon,
            "relabel_replay_buffer": relabel_replay_buffer,
            "seed": self.seed,
        }

    @abstractmethod
    def logits(self, rows: Transitions, masks: Tensor | None) -> Tensor:
        """The discriminator's logit, `[B]`, high = expert, with its graph.

        Args:
            rows: see `Transitions`.
            masks: bool `[B, choices]`, or None.
        """

    @abstractmethod
    def reward(self, rows: Transitions) -> Tensor:
        """What the generator is given for each row, `[B]`, before that of the absorbing state is taken off."""

    def recovered_reward(self, rows: Transitions) -> Tensor:
        """What a new agent is to be trained on, `[B]`: `reward`, but for shaping."""
        return self.reward(rows)

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
        """The recovered reward of arrays, for `LearnedRewardVecEnv`; as `predict_reward`, without shaping.

        It is that of the network as it stands when it is called.
        """
        return self._recovered

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
        """The generator's action; as SB3's."""
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
            log_interval: as SB3's; None: the algorithm's default.
            tb_log_name: None: the trainer's name.
            reset_num_timesteps: as SB3's.
            progress_bar: as SB3's.

        Returns:
            The trainer itself. The algorithm's environment is its own again.
        """
        is_deferred = can_defer(self.gen_algo, self.generated.capacity)
        wrapper = install(
            self.gen_algo,
            lambda venv: RecordingRewardVecEnv(
                venv,
                self.predict_reward,
                self.generated,
                horizon=self.horizon,
                gamma=self.gamma,
                is_deferred=is_deferred,
            ),
        )
        listeners: list[BaseCallback] = [Rounds(self, wrapper)]
        if callback is not None:
            given = callback if isinstance(callback, Sequence) else [callback]
            listeners += [each if isinstance(each, BaseCallback) else ConvertCallback(each) for each in given]
        interval: dict[str, Any] = {} if log_interval is None else {"log_interval": log_interval}
        try:
            with deferred_rewards(self.gen_algo, wrapper):
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
            FloatingPointError: the loss is not finite.
        """
        if len(self.generated) == 0:
            raise RuntimeError("the generator has made no transitions to tell from the expert's: call learn first.")
        self.reward_net.train()
        self.policy.set_training_mode(False)
        found = [self._update_discriminator() for _ in range(self.n_disc_updates_per_round)]
        self.reward_net.eval()
        self.rounds += 1
        self.trained_at = self.generated.added
        means = torch.stack([torch.stack(tuple(statistics)) for statistics in found]).mean(0).tolist()
        if not math.isfinite(means[0]):
            raise FloatingPointError(
                f"the discriminator's loss is {means[0]} in round {self.rounds}: lower disc_learning_rate."
            )
        named = dict(zip(DiscriminatorStatistics._fields, means, strict=True))
        return {tag: named[name] for name, tag in TAGS.items()} | {
            "n_expert": float(self.demo_batch_size),
            "n_generated": float(self.demo_batch_size),
        }

    def _update_discriminator(self) -> DiscriminatorStatistics:
        drawn = self.demo_batch_size, self.draws, self.device
        expert, expert_masks = self.expert.sample(*drawn, more_absorbing=self._unseen_end(self.expert))
        generated, generated_masks = self.generated.sample(*drawn, more_absorbing=self._unseen_end(self.generated))
        size = self.demo_minibatch_size

        def logits() -> Iterator[tuple[Tensor, Tensor]]:
            for first in range(0, self.demo_batch_size, size):
                rows = slice(first, first + size)
                # One pass over both: what the net standardises by is then the same for both.
                both = Transitions(*(_joined(*pair, rows) for pair in zip(expert, generated, strict=True)))
                masks = None if expert_masks is None else _joined(expert_masks, generated_masks, rows)
                found = self.logits(both, masks)
                yield found[:size], found[size:]

        real, fake = self.real_target, self.fake_target
        if size == self.demo_batch_size:
            whole = next(logits())
            return discriminator_step(self.optimizer, *whole, real_target=real, fake_target=fake)
        parts = self.demo_batch_size // size
        return accumulated_discriminator_step(self.optimizer, logits(), parts, real_target=real, fake_target=fake)

    def _sees_absorbing(self) -> bool:
        """Whether either side has ever ended; before, nothing is known of the absorbing state, and it plays no part."""
        if self.horizon is not None and not self.knows_absorbing:
            self.knows_absorbing = self.expert.has_absorbing or self.generated.has_absorbing
        return self.knows_absorbing

    def _unseen_end(self, store: TransitionStore) -> float:
        """Absorbing rows of an end that was not seen: each side is drawn from as if it had ended once more.

        That is Laplace's rule of succession. Where only one side ever ended, the best D of the absorbing state would
        else be 0 or 1 and its reward, which is taken off every step, without bound. The side with fewer rows has less
        of that end, so that two sides that do the same have the same share of it.
        """
        if not self._sees_absorbing():
            return 0.0
        assert self.horizon is not None
        whole = float(absorbing_steps(np.zeros(1, np.int64), self.horizon, self.gamma)[0])
        return whole * len(store) / max(len(self.expert), len(self.generated))

    def predict_reward(
        self, observations: Any, actions: NDArray[Any], next_observations: Any, terminated: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """What the generator is paid for transitions, float32 `[B]`, on arrays.

        With `terminal_states="absorbing"` it is less the reward of the absorbing state. An episode that ends would earn
        that one for ever after; taking it off every step instead moves all returns by the same amount, so that an end
        is worth 0, as algorithms take it, and no end pays at once what the critic has yet to learn of going on.

        Args:
            observations: `[B, ...]`, or a dict of such, as the algorithm's space has them.
            actions: `[B, ...]`.
            next_observations: as `observations`.
            terminated: bool `[B]`.
        """
        return self._paid(self.reward, observations, actions, next_observations, terminated)

    def _recovered(
        self, observations: Any, actions: NDArray[Any], next_observations: Any, terminated: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        return self._paid(self.recovered_reward, observations, actions, next_observations, terminated)

    @torch.no_grad()
    def _paid(
        self,
        reward: Callable[[Transitions], Tensor],
        observations: Any,
        actions: NDArray[Any],
        next_observations: Any,
        terminated: NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        if self.reward_net.training:
            self.reward_net.eval()
        space, ended = self.gen_algo.observation_space, torch.as_tensor(terminated, device=self.device)
        rows = Transitions(
            as_tensors(observations, space, self.device),
            torch.as_tensor(actions, device=self.device),
            as_tensors(next_observations, space, self.device),
            ended,
            torch.zeros_like(ended),
        )
        rewards = reward(rows)
        if self._sees_absorbing():
            rewards = rewards - reward(self._absorbing_row)
        paid: NDArray[np.float32] = rewards.float().cpu().numpy()
        return paid


def _joined(one: Any, other: Any, rows: slice) -> Any:
    if isinstance(one, dict):
        return {key: torch.cat((one[key][rows], other[key][rows])) for key in one}
    return torch.cat((one[rows], other[rows]))
