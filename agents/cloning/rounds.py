"""Services for agents that clone in rounds (`BCO`, `DAgger`): set-up, rollouts, log lines, checkpoints, files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypedDict

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import configure_logger

from rlsmooth.agents import spaces as agent_spaces
from rlsmooth.agents.acting import ActingModel
from rlsmooth.agents.cloning.bc import BC
from rlsmooth.agents.cloning.policy_building import for_masks, masks_known
from rlsmooth.agents.cloning.training_data import one_or_list
from rlsmooth.agents.files.policy_file import load_parameters, read_agent_file
from rlsmooth.agents.sb3 import Callbacks, init_callback
from rlsmooth.checks import check_optional_folder, check_positive_int
from rlsmooth.data import Demonstrations, ObservationOnly
from rlsmooth.training import SafeFileError, checkpoint_steps, load_optimizer, optimizer_to_tensors
from rlsmooth.training.distributed import Ranks
from rlsmooth.training.divergence import check_finite_step
from rlsmooth.training.run import (
    RESUME_FILE,
    RunFolder,
    check_given,
    check_no_missing,
    check_num_envs,
    safe_points,
    stop,
    stop_requested,
)
from rlsmooth.training.seeding import few_threads
from rlsmooth.untrusted import AnyNumber, Count, Positive, refused

COLLECTING, LEARNING = 0, 1
"""What a round's seeds are for."""
INVERSE_DYNAMICS, CLONE = "inverse_dynamics", "clone"
"""What a round trains."""
PART_FOLDER = "round_{}_{}"
CLONE_SHOWN = (
    "cross_entropy",
    "nll_hard",
    "accuracy",
    "ece",
    "policy_entropy",
    "entropy_frac",
    "entropy_frac_min",
    "kl_uniform",
    "kl_reference",
    "smoothing",
)
"""The clone's own measures that a round's log line shows."""
CLONE_ARGUMENTS = ("engine", "kl_coef", "reference_std", "batch_size", "max_grad_norm", "l2_coef", "learning_rate")


class LastLine(KVWriter):
    """Keeps the numbers of the last log line that had any under `bc/`."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Keep this line in place of the one before."""
        values = {name: value for name, value in key_values.items() if name.startswith("bc/")}
        self.values = {name.removeprefix("bc/"): float(value) for name, value in values.items()} or self.values

    def close(self) -> None:
        """Nothing is open."""


def train_quietly(agent: BC, epochs: int, checkpoint_folder: Path | None = None) -> dict[str, float]:
    """Train for so many epochs and return the last line's numbers, `bc/` left out of their names.

    Args:
        agent: to be trained.
        epochs: passes over its demonstrations.
        checkpoint_folder: of the checkpoints to resume from, where there are any, and to write; None: there are none.

    Raises:
        TrainingDivergedError: the loss or a parameter became NaN or infinite.
    """
    last = LastLine()
    agent.set_logger(Logger(None, [last]))
    agent.checkpoint_folder = checkpoint_folder
    if checkpoint_folder is not None and checkpoint_steps(checkpoint_folder):
        agent.restore_checkpoint()
    agent.learn(total_epochs=epochs)
    agent.checkpoint_folder = None  # a later `learn` of the agent is no part of the run
    return last.values


class CollectedEpisodes(TypedDict):
    """What a round has collected, besides its transitions."""

    returns: list[AnyNumber]
    share: AnyNumber


class CollectedCheckpoint(TypedDict, total=False):
    """What a checkpoint of a round that has only collected holds."""

    collected_timesteps: Count | None
    collected: CollectedEpisodes | None


class RoundsCheckpoint(CollectedCheckpoint):
    """What a checkpoint of every agent of rounds holds besides tensors."""

    round: Count
    num_timesteps: Count
    n_envs: Positive
    history: list[dict[str, AnyNumber]]
    optimizer: dict[str, Any]


class RoundsFile(NamedTuple):
    """What an agent's file contains.

    Attributes:
        path: of the file.
        bc: the clone.
        arguments: for the agent's constructor, those of its clones included.
    """

    path: Path
    bc: BC
    arguments: dict[str, Any]


class RoundsModel(ActingModel):
    """An agent that collects transitions in each round and then trains its policy by a `BC` of its own.

    Each subclass keeps its constructor, its loop and its round, and calls the services here. What only it knows is in
    its `_own_arguments`, `_kept`, `_save_round` and `_restore`.

    Attributes:
        bc: the clone, which has the policy.
        round: how many rounds are done.
        history: the numbers of each round's log line, without the tag's prefix.
        seed: all randomness follows from it and the number of the round.
        n_eval_episodes: episodes of an evaluation, so many deterministic and so many sampled.
        is_resumed: whether the next `learn` continues a call that was cut off.
        missing: arguments that a file could not keep and that must be given again.
    """

    PREFIX: ClassVar[str]
    """Of the tags of log lines; the own arguments' name in agent files too."""
    OWN_ARGUMENTS: ClassVar[tuple[str, ...]]
    """The constructor's arguments that the clone's file does not contain by itself."""
    FOLDER: ClassVar[str]
    """Name of the argument that says where checkpoints go."""
    CHECKPOINT: ClassVar[type[RoundsCheckpoint]]
    """What its checkpoints hold."""
    bc: BC
    round: int
    history: list[dict[str, float]]
    seed: int
    n_eval_episodes: int
    tensorboard_log: str | None
    is_resumed: bool
    missing: tuple[str, ...]
    _clone_arguments: dict[str, Any]
    _has_logger: bool
    _kept_in: Path | None  # the folder whose checkpoints are this run's
    _before: int  # how many steps there were when the round began
    _collected: Any  # by the round that was cut off, and how many steps there are with it; None: nothing

    def _set_up(
        self,
        policy: str | type[BasePolicy] | BasePolicy,
        env: GymEnv | str | tuple[spaces.Space[Any], spaces.Space[Any]],
        demonstrations: Demonstrations | ObservationOnly | None,
        *,
        clone: dict[str, Any],
        policy_kwargs: Mapping[str, Any] | None,
        seed: int | None,
        device: torch.device | str,
        tensorboard_log: str | Path | None,
        verbose: int,
        eval_env: GymEnv | str | None,
        n_eval_episodes: int,
    ) -> spaces.Space[Any]:
        """Set what all agents of rounds have; `clone` are the arguments of each round's `BC`.

        Returns the observation space as the environment has it: the policy's has images channel-first.
        """
        self.n_eval_episodes = check_positive_int("n_eval_episodes", n_eval_episodes)
        log = check_optional_folder("tensorboard_log", tensorboard_log)
        self.tensorboard_log = None if log is None else str(log)
        self.verbose = verbose
        if env is None:
            raise TypeError("env is None: give an environment, or (observation_space, action_space) to act only.")
        self.env, observation_space, self.action_space = agent_spaces.resolve_spaces(env, None, verbose)
        self.n_envs = 1 if self.env is None else self.env.num_envs
        self._clone_arguments = clone
        self.eval_env = None if eval_env is None else agent_spaces.wrap_env("eval_env", eval_env, verbose)
        policy = for_masks(policy, self.action_space, self.env, self.eval_env, demonstrations, stacklevel=4)
        own = (observation_space, self.action_space)
        self.bc = BC(policy, own, None, policy_kwargs=policy_kwargs, seed=seed, device=device, **clone)
        self.policy, self.seed, self.device = self.bc.policy, self.bc.seed, self.bc.device
        self.observation_space, self.bins = self.bc.observation_space, self.bc.bins
        agent_spaces.check_all_spaces((self.observation_space, self.action_space), None, None, self.eval_env)
        self.round = self.num_timesteps = 0
        self.history = []
        self.is_resumed = False
        self.missing = ()
        self._logger = None
        self._has_logger = self._has_custom_logger = False
        self._kept_in = self._collected = None
        self._before = 0
        return observation_space

    # ---- a call of learn

    def _check_can_learn(self, name: str, teacher: object) -> None:
        """Raise ValueError where an environment, a callable or what to learn from (`teacher`) is missing."""
        owner = type(self).__name__
        if self.env is None:
            raise ValueError(
                f"there is no environment to act in: give env to {owner}(...) or {owner}.load, or call set_env."
            )
        check_no_missing(self.missing)
        check_given(name, teacher, owner)

    @contextmanager
    def _training(self, callback: Callbacks, tb_log_name: str, total_timesteps: int) -> Iterator[BaseCallback | None]:
        """Around a call's rounds: the logger, the first checkpoint, and the callback's begin and end.

        `total_timesteps` is where callbacks take the end of training to be.
        """
        if not self._has_logger and not self._has_custom_logger:  # one for all calls, unless the caller gave one
            self._has_logger = True
            shown = (self.verbose, self.tensorboard_log) if Ranks.current().is_main else (0, None)
            self._logger = configure_logger(*shown, tb_log_name, not self.is_resumed)
        run = self._run_folder()
        if run is not None and not self.is_resumed:
            run.check_free(self.round if self._kept_in == run.path.resolve() else None)
        # All have read what they resume from before the first one writes again.
        Ranks.current().check_same(seed=self.seed, round=self.round)
        threads = few_threads(self.bc.policy, batch_size=self.bc.batch_size, engine=self.bc.engine)
        with threads, safe_points(None if run is None else run.path, shared=True):
            if run is not None and not self.is_resumed:
                self._kept_in, self._collected = run.path.resolve(), None
                self._begin_checkpoints(run)
            self.is_resumed = False
            listener = init_callback(self, callback)
            if listener is not None:
                listener.on_training_start({"self": self, "total_timesteps": total_timesteps}, globals())
            yield listener
            if listener is not None:
                listener.on_training_end()

    @contextmanager
    def _rollout(self, listener: BaseCallback | None, bar: Any = None) -> Iterator[Callable[[int], bool]]:
        """A rollout as callbacks see it: gives the function that is called with the number of steps just made.

        It returns False where a callback ends the training. A rollout that is cut off, by this or by an error, leaves
        no steps behind. `bar` is one that counts steps.
        """
        self._before, continues = self.num_timesteps, True

        def after_step(num_steps: int) -> bool:
            nonlocal continues
            self.num_timesteps += num_steps
            if bar is not None:
                bar.update(num_steps)
            continues = listener is None or listener.on_step()
            return continues

        if listener is not None:
            listener.on_rollout_start()
        try:
            yield after_step
        except BaseException as error:
            if type(error) is ValueError:  # of the environment, the expert or the data
                error.args = (f"{error} (Training stopped after step {self.num_timesteps:,}.)",)
            self.num_timesteps = self._before
            raise
        if not continues:
            self.num_timesteps = self._before
        elif listener is not None:
            listener.on_rollout_end()

    def _check_observations(self, num_steps: int, observations: Any) -> None:
        """Raise TrainingDivergedError if the step that was just made gave an observation that is not finite."""
        run = self._run_folder()
        folder = None if run is None else run.path
        check_finite_step(self.num_timesteps + num_steps, None, observations, checkpoint_folder=folder)

    def _take_collected(self) -> Any:
        """What the round collected before it was cut off; None: nothing."""
        if self._collected is None:
            return None
        made, self.num_timesteps = self._collected
        self._collected = None
        return made

    def _keep_collected(self, made: Any) -> None:
        """Write what the round has collected, so that it is not collected again, and stop if a signal asks for it."""
        run = self._run_folder()
        if run is None:
            return
        if run.writes:
            self._delete_parts(run, self.round)  # of a call that was cut off and not resumed
            self._save_round(run.path, self.round, made)
            self._save_checkpoint(run, made)
        if any(Ranks.current().any(stop_requested())):
            stop(f"A checkpoint of round {self.round + 1:,}, whose transitions are collected, was written.")

    def _part_folder(self, part: str) -> Path | None:
        """Where a part of the present round keeps checkpoints while it trains; None: nowhere."""
        run = self._run_folder()
        return None if run is None else run.path / PART_FOLDER.format(self.round + 1, part)

    def _delete_parts(self, run: RunFolder, number: int) -> None:
        """Delete the checkpoints of what a round trains."""
        for part in (INVERSE_DYNAMICS, CLONE):
            self._folder_of_run(run.path / PART_FOLDER.format(number + 1, part)).delete()

    def _seed_of(self, purpose: int) -> int:
        """The same for a round of the same number, whether or not the run was cut off before it."""
        return int(np.random.SeedSequence([self.seed, self.round, purpose]).generate_state(1)[0] >> 1)

    def _train_clone(self, demonstrations: Demonstrations, epochs: int) -> tuple[BC, dict[str, float]]:
        """Train the policy as it is, its optimiser included: the round's clone, and its part of the log line."""
        with masks_known():
            clone = BC(
                self.policy,
                (demonstrations.observation_space, self.action_space),
                demonstrations,
                seed=self._seed_of(LEARNING),
                device=self.device,
                shuffle="full",  # whatever the memory: a round may be resumed elsewhere
                **self._clone_arguments,
            )
        if not self.bc.normalises_actions:
            clone.units, clone.normalises_actions = None, False
        found = train_quietly(clone, epochs, self._part_folder(CLONE))
        return clone, {name: found[name] for name in CLONE_SHOWN if name in found}

    def _end_round(self, line: Mapping[str, float], bar: Any) -> None:
        """Evaluate, write the log line, and keep the round, which counts as done already."""
        found = dict(line)
        if self.eval_env is not None and Ranks.current().is_main:
            bar.set_postfix_str("evaluating")
            found |= self.evaluate()
        self.history.append(found)
        for name, value in found.items():
            self.logger.record(f"{self.PREFIX}/{name}", value)
        self.logger.dump(self.num_timesteps)
        run = self._run_folder()
        if run is not None:
            self._save_checkpoint(run)
            self._delete_parts(run, self.round - 1)
            if any(Ranks.current().any(stop_requested())):
                stop(f"A checkpoint of round {self.round:,} was written.")

    # ---- checkpoints

    @classmethod
    def _folder_of_run(cls, folder: str | Path) -> RunFolder:
        return RunFolder(folder, name=cls.FOLDER, unit="round", resume=f"{cls.__name__}.resume", shared=True)

    def _run_folder(self) -> RunFolder | None:
        folder = getattr(self, self.FOLDER)
        return None if folder is None else self._folder_of_run(folder)

    def _begin_checkpoints(self, run: RunFolder) -> None:
        """Keep what the run starts from, or, in a second call, how far it is to continue."""
        if not run.writes:
            return
        # The resume file last: a kill in between then leaves no run that seems to begin with a trained policy.
        for number in range(self.round):
            self._save_round(run.path, number)
        if self.round > 0:
            self._save_checkpoint(run)
        self.save(run.path / RESUME_FILE)
        if self.round == 0:  # how far the call is to continue
            self._save_checkpoint(run)

    def _save_checkpoint(self, run: RunFolder, made: Any = None) -> None:
        """Write parameters, optimiser, counters, history, and what else the subclass keeps.

        `made` is what the present round has collected, if no more of it is done.
        """
        tensors, optimizer = optimizer_to_tensors(self.policy.optimizer)
        config = {
            "round": self.round,
            "num_timesteps": self.num_timesteps if made is None else self._before,
            "collected_timesteps": None if made is None else self.num_timesteps,
            "n_envs": self.n_envs,
            "history": self.history,
            "optimizer": optimizer,
            **self._kept(made),
        }
        parts = {"policy": self.policy.state_dict(), "optimizer": tensors}
        run.save(self.round, config, parts, keeps_rng=False)  # each round draws from seeds of its own

    def _restore_checkpoint(self, run: RunFolder) -> None:
        """Put back the latest checkpoint; where the run was cut off before its first, the resume file is its start."""
        checkpoint = run.latest()
        if checkpoint is not None:
            config, tensors = checkpoint.decoded(self.CHECKPOINT), checkpoint.tensors
            check_num_envs(config["n_envs"], self.n_envs)
            with checkpoint.refused():
                if not config["round"] == len(config["history"]) == checkpoint.step:
                    raise ValueError(f"round and history are not those of round {checkpoint.step}")
                load_parameters(checkpoint.path, self.policy, tensors["policy"])
                load_optimizer(self.policy.optimizer, tensors["optimizer"], config["optimizer"])
            self.round, self.num_timesteps, self.history = checkpoint.step, config["num_timesteps"], config["history"]
        self._restore(run.path, None if checkpoint is None else config)
        self._kept_in = run.path.resolve()

    def _kept(self, made: Any) -> dict[str, Any]:
        """What else a checkpoint contains, as JSON; `made` is what the present round has collected, or None."""
        raise NotImplementedError

    def _save_round(self, folder: Path, number: int, made: Any = None) -> None:
        """Write the transitions of a round, which no later round changes, into files of their own."""
        raise NotImplementedError

    def _restore(self, folder: Path, config: Mapping[str, Any] | None) -> None:
        """Restore what `_kept` and `_save_round` wrote; None: there was no checkpoint yet."""
        raise NotImplementedError

    # ---- agent files

    def save(self, path: str | Path) -> Path:
        """Write the clone's agent file, which `BC.load`, `load_agent` and every command read, with the own arguments.

        Only the policy and arguments are in it: transitions (`agent.demonstrations`) and other networks
        (`agent.inverse_dynamics`) have a `save` of their own. Functions (`beta_schedule`, `learning_rate`) can't be
        kept: to train on after `load`, pass them again.

        Args:
            path: `.zip` is added to a name without a suffix.

        Returns:
            The path written.

        Raises:
            ValueError: the folder can't be written to.
        """
        return self.bc.save(path, {self.PREFIX: self._own_arguments()})

    def _own_arguments(self) -> dict[str, Any]:
        """The arguments of `OWN_ARGUMENTS` as a file holds them."""
        return {name: getattr(self, name) for name in self.OWN_ARGUMENTS}

    @classmethod
    def _read_file(
        cls,
        path: str | Path,
        env: GymEnv | str | None,
        *,
        device: torch.device | str,
        policy_class: type[BasePolicy] | None,
        custom_objects: Mapping[str, Any] | None,
    ) -> RoundsFile:
        path, content = read_agent_file(path)
        config = content.config.get("config")
        own = config.get(cls.PREFIX) if isinstance(config, dict) else None
        if not isinstance(own, dict) or set(own) != set(cls.OWN_ARGUMENTS):
            raise SafeFileError(f"{str(path)!r} holds no agent of {cls.__name__}: load it with load_agent.")
        bc = BC.load(path, env, device=device, policy_class=policy_class, custom_objects=custom_objects)
        references = None if bc.references is None else [recipe.reference for recipe in bc.references]
        arguments = {
            **own,
            **{name: getattr(bc, name) for name in CLONE_ARGUMENTS},
            "smoothing": one_or_list(bc.smoothings),
            "reference": None if references is None else one_or_list(references),
            "action_bins": None if bc.bins is None else bc.bins.num_bins,
        }
        return RoundsFile(path, bc, arguments)

    @classmethod
    def _build(
        cls, file: RoundsFile, env: GymEnv | str | None, teacher: Any, *, device: torch.device | str, **given: Any
    ) -> Self:
        """The agent of a file; `teacher` is the constructor's third argument, `given` replaces the file's."""
        build: Any = cls
        own = (file.bc.observation_space, file.bc.action_space)
        with refused(file.path, SafeFileError, problem="has malformed arguments"):
            # Of the file alone, so that the caller's mistakes are not put down to it.
            build(file.bc.policy, own, None, device=device, **file.arguments)
        where = own if env is None else env
        with masks_known():
            agent: Self = build(file.bc.policy, where, teacher, device=device, **(file.arguments | given))
        agent.missing = file.bc.missing
        return agent
