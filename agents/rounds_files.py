"""What `BCO` and `DAgger` share of their files: the clone's arguments, and checkpoints from one round to the next."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rlsmooth.agents.agent_file import load_parameters, read_agent_file
from rlsmooth.agents.bc import BC
from rlsmooth.agents.bc_files import RESUME_FILE
from rlsmooth.agents.rounds import RoundsModel
from rlsmooth.checks import check_writable_folder
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

__all__ = [
    "check_no_other_run",
    "check_resumable",
    "clone_arguments",
    "delete_leftovers",
    "one_or_list",
    "read_own_arguments",
    "restore_round",
    "save_round",
]

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
