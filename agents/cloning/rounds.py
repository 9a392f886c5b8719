"""What agents share that act and clone in turns: `BCO` and `DAgger`."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.utils import configure_logger

from rlsmooth.agents.acting import ActingModel, copy_actor, play
from rlsmooth.agents.cloning.bc import BC
from rlsmooth.agents.files.policy_file import load_parameters, read_agent_file
from rlsmooth.agents.sb3 import Callbacks, init_callback, is_maskable
from rlsmooth.checks import check_writable_folder
from rlsmooth.data import Demonstrations
from rlsmooth.training import (
    Checkpoint,
    SafeFileError,
    checkpoint_steps,
    execution_state,
    load_optimizer,
    optimizer_to_tensors,
    save_checkpoint,
    warn_if_execution_differs,
)
from rlsmooth.training.run import RESUME_FILE

__all__ = [
    "ACTING",
    "CLONE_SHOWN",
    "LEARNING",
    "RoundsModel",
    "check_no_other_run",
    "check_resumable",
    "clone_arguments",
    "delete_leftovers",
    "one_or_list",
    "read_own_arguments",
    "restore_round",
    "save_round",
    "train_quietly",
]


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


def train_quietly(agent: BC, epochs: int) -> dict[str, float]:
    """Train for so many epochs and return the last line's numbers, `bc/` left out of their names.

    Raises:
        TrainingDivergedError: see `BC.learn`.
    """
    last = LastLine()
    agent.set_logger(Logger(None, [last]))
    agent.learn(total_epochs=epochs)
    return last.values


ACTING, LEARNING = 0, 1
"""What a round's seeds are for."""
CLONE_SHOWN = (
    "cross_entropy",
    "nll_hard",
    "accuracy",
    "ece",
    "policy_entropy",
    "entropy_frac",
    "kl_uniform",
    "kl_reference",
    "smoothing",
)
"""What a round's log line shows of the clone's own."""


class RoundsModel(ActingModel):
    """An agent whose policy acts in each round and is then trained by a `BC` of its own. Subclasses set the fields.

    Attributes:
        bc: the clone, which has the policy.
        round: how many rounds are done.
        history: the numbers of each round's log line, without the tag's prefix.
        seed: all randomness follows from it and the number of the round.
        n_eval_episodes: episodes of an evaluation, so many deterministic and so many sampled.
        missing: arguments that a file could not keep and that must be given again.
    """

    PREFIX: ClassVar[str]
    bc: BC
    round: int
    history: list[dict[str, float]]
    seed: int
    n_eval_episodes: int
    tensorboard_log: str | None
    missing: tuple[str, ...]
    _clone_arguments: dict[str, Any]
    _has_logger: bool
    _kept_in: Path | None = None  # the folder whose checkpoints are this run's

    def evaluate(self) -> dict[str, float]:
        """Play `n_eval_episodes` deterministically and as many sampled, in `eval_env` or else the environment.

        Returns:
            `mean_reward`, `std_reward`, `mean_ep_length`, and the same with `_sampled`.

        Raises:
            ValueError: there is no environment.
        """
        env = self.env if self.eval_env is None else self.eval_env
        if env is None:
            raise ValueError("there is no environment to evaluate in: give eval_env.")
        use_masks = is_maskable(self.policy) and env.has_attr("action_masks")
        return play(self, env, n_episodes=self.n_eval_episodes, seed=self.seed, use_masks=use_masks)

    def warm_start(self, model: BaseAlgorithm) -> None:
        """Copy the actor into an SB3 model; see `BC.warm_start`.

        Raises:
            TypeError: `model` is no SB3 algorithm.
            ValueError: spaces or architectures differ.
        """
        copy_actor(self.policy, model)

    def _check_can_learn(self) -> None:
        """Raise ValueError where an environment or a callable is missing."""
        if self.env is None:
            name = type(self).__name__
            raise ValueError(
                f"there is no environment to act in: give env to {name}(...) or {name}.load, or call set_env."
            )
        if self.missing:
            raise ValueError(
                f"{', '.join(self.missing)} was a callable, which no file can hold: pass it again, for example "
                f"custom_objects={{{self.missing[0]!r}: ...}}."
            )

    def _prepare_logger(self, tb_log_name: str, *, goes_on: bool) -> None:
        """One for all calls of `learn`, unless there is one of the caller's."""
        if not self._has_logger and not self._has_custom_logger:
            self._has_logger = True
            self._logger = configure_logger(self.verbose, self.tensorboard_log, tb_log_name, not goes_on)

    def _prepare_callback(self, callback: Callbacks) -> BaseCallback | None:
        # What callbacks need of a model, this one has.
        return init_callback(self, callback)

    def _new_clone(self, demonstrations: Demonstrations) -> BC:
        """A clone of this round with the policy as it is, its optimiser included."""
        return BC(
            self.policy,
            (demonstrations.observation_space, self.action_space),
            demonstrations,
            seed=self._seed_of(LEARNING),
            device=self.device,
            **self._clone_arguments,
        )

    def _seed_of(self, purpose: int) -> int:
        """The same for a round of the same number, whether or not the run was cut off before it."""
        return int(np.random.SeedSequence([self.seed, self.round, purpose]).generate_state(1)[0] >> 1)

    def _log(self, line: Mapping[str, float]) -> None:
        self.history.append(dict(line))
        for name, value in line.items():
            self.logger.record(f"{self.PREFIX}/{name}", value)
        self.logger.dump(self.num_timesteps)


LEFTOVER = re.compile(
    rf"\.({re.escape(RESUME_FILE)}|checkpoint_\d+\.zip|transitions_\d+\.npz|initial\.npz|\d{{3,}}\.npz)\.\w{{8}}\.tmp"
)
KEPT = ("kl_coef", "reference_std", "batch_size", "max_grad_norm", "l2_coef", "learning_rate")


def clone_arguments(bc: BC) -> dict[str, Any]:
    """The constructor's arguments of a clone that was read from a file, for an agent that will make more of them."""
    references = None if bc.references is None else [recipe.reference for recipe in bc.references]
    return {
        **{name: getattr(bc, name) for name in KEPT},
        "smoothing": one_or_list(list(bc.smoothings)),
        "reference": None if references is None else one_or_list(references),
        "action_bins": None if bc.bins is None else bc.bins.num_bins,
    }


def one_or_list(values: list[Any]) -> Any:
    """The only value, or all of them."""
    return values[0] if len(values) == 1 else values


def read_own_arguments(path: str | Path, key: str, names: Collection[str], kind: str) -> tuple[Path, dict[str, Any]]:
    """What an agent of rounds wrote beside its clone.

    Args:
        path: the file.
        key: under which it is in the file.
        names: of the arguments that there must be.
        kind: the agent's name, for the message.

    Returns:
        The path, completed, and the arguments.

    Raises:
        SafeFileError: the file is damaged, or of another kind of agent.
    """
    path, content = read_agent_file(path)
    config = content.config.get("config")
    own = config.get(key) if isinstance(config, dict) else None
    if not isinstance(own, dict) or set(own) != set(names):
        raise SafeFileError(f"{str(path)!r} holds no agent of {kind}: load it with load_agent.")
    return path, own


def check_no_other_run(agent: RoundsModel, name: str, folder: Path) -> None:
    """Refuse a folder with checkpoints of another run; the folder becomes the agent's own.

    Args:
        agent: about to begin, or to go on.
        name: of the argument that named the folder.
        folder: where its checkpoints are to go.

    Raises:
        ValueError: there are such checkpoints, or the folder can't be written to.
    """
    check_writable_folder(name, folder)  # it may have been named after the agent was made
    others = [] if agent._kept_in == folder.resolve() else checkpoint_steps(folder)
    if others:
        raise ValueError(
            f"{name}={str(folder)!r} holds another run's checkpoints (round {others[-1]}): go on from them "
            f"by {type(agent).__name__}.resume, or set agent.{name} to another folder."
        )
    agent._kept_in = folder.resolve()


def delete_leftovers(folder: Path) -> None:
    """Delete the temporary files of saves in this folder that were killed, by the names that `atomic_file` gives."""
    for path in folder.iterdir():
        if LEFTOVER.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


def check_resumable(name: str, folder: str | Path) -> Path:
    """The folder of a run that can be resumed.

    Raises:
        ValueError: it has no resume file.
    """
    folder = Path(folder).expanduser()
    if not (folder / RESUME_FILE).is_file():
        raise ValueError(f"{name}={str(folder)!r} holds no run to go on with: {RESUME_FILE} is missing.")
    return folder


def save_round(agent: RoundsModel, folder: Path, more: Mapping[str, Any]) -> None:
    """Write parameters, optimiser, counters, history, and `more`, as the checkpoint of the round that is done."""
    tensors, optimizer = optimizer_to_tensors(agent.policy.optimizer)
    save_checkpoint(
        folder,
        agent.round,
        config={
            "round": agent.round,
            "num_timesteps": agent.num_timesteps,
            "n_envs": agent.n_envs,
            "history": agent.history,
            "optimizer": optimizer,
            "execution": execution_state(),
            **more,
        },
        tensors={"policy": agent.policy.state_dict(), "optimizer": tensors},
    )


def restore_round(agent: RoundsModel, checkpoint: Checkpoint) -> None:
    """Put back what `save_round` wrote, but for what the agent gave as `more`.

    Raises:
        ValueError: another number of environments.
    """
    config, tensors = checkpoint.config, checkpoint.tensors
    if config["n_envs"] != agent.n_envs:
        raise ValueError(f"env has {agent.n_envs} environments, the run had {config['n_envs']}: build as many.")
    warn_if_execution_differs(config["execution"])
    load_parameters(checkpoint.path, agent.policy, tensors["policy"])
    load_optimizer(agent.policy.optimizer, tensors["optimizer"], config["optimizer"])
    agent.round = int(config["round"])
    agent.num_timesteps = int(config["num_timesteps"])
    agent.history = [dict(line) for line in config["history"]]
