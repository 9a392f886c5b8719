"""What cloning from observation keeps on the disk: the clone's own file, and checkpoints between rounds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from rlsmooth.agents.bc import BC
from rlsmooth.agents.bc_files import RESUME_FILE, write_agent
from rlsmooth.agents.bco_collection import join
from rlsmooth.agents.bco_setup import check_observed
from rlsmooth.agents.rounds import RoundsModel
from rlsmooth.agents.rounds_files import (
    check_no_other_run,
    check_resumable,
    clone_arguments,
    delete_leftovers,
    one_or_list,
    read_own_arguments,
    restore_round,
    save_round,
)
from rlsmooth.data import Demonstrations, ObservationOnly
from rlsmooth.training import SafeFileError, latest_checkpoint
from rlsmooth.training.safe_file import decode_smoothing, encode_smoothing

if TYPE_CHECKING:
    from rlsmooth.agents.bco import BCO

__all__ = ["SavedBCO", "begin_checkpoints", "write_checkpoint"]

Model = TypeVar("Model", bound="SavedBCO")

OWN = "bco"
OWN_ARGUMENTS = (
    "pseudo_labels",
    "n_rounds",
    "transitions_per_round",
    "n_epochs",
    "inverse_smoothing",
    "inverse_inputs",
    "inverse_epochs",
    "inverse_learning_rate",
    "inverse_net_arch",
    "seed",
    "n_eval_episodes",
)


class SavedBCO(RoundsModel):
    """The part of `BCO` that reads and writes files."""

    def save(self, path: str | Path) -> Path:
        """Write the clone's agent file, which `BC.load`, `load_agent` and every command read, with the own arguments.

        The inverse dynamics model has a file of its own: `inverse_dynamics.save`.

        Args:
            path: `.zip` is added to a name without a suffix.

        Returns:
            The path written.

        Raises:
            ValueError: the folder can't be written to.
        """
        agent = cast("BCO", self)
        return write_agent(agent.bc, path, {OWN: _arguments(agent)})

    @classmethod
    def load(
        cls,
        path: str | Path,
        env: GymEnv | str | None = None,
        demonstrations: Demonstrations | ObservationOnly | None = None,
        *,
        device: torch.device | str = "auto",
        policy_class: type[BasePolicy] | None = None,
        custom_objects: Mapping[str, Any] | None = None,
    ) -> Self:
        """Read a file of `save`. Runs no code that the file could name.

        `learn` then starts with round 1 again, from the policy of the file.

        Args:
            path: the file.
            env: an environment with the same spaces; acting needs none.
            demonstrations: to train on; acting needs none.
            device: as SB3's.
            policy_class: of a policy of your own.
            custom_objects: `learning_rate`, `smoothing` and `reference` in place of the file's, and constructor
                arguments of a policy of your own.

        Raises:
            SafeFileError: the file is damaged, or of another kind of agent.
            ValueError: spaces that differ.
        """
        return _load(
            cls, path, env, demonstrations, device=device, policy_class=policy_class, custom_objects=custom_objects
        )

    @classmethod
    def resume(
        cls,
        checkpoint_folder: str | Path,
        env: GymEnv | str,
        demonstrations: Demonstrations | ObservationOnly,
        *,
        eval_env: GymEnv | str | None = None,
        tensorboard_log: str | Path | None = None,
        verbose: int = 0,
        device: torch.device | str = "auto",
        policy_class: type[BasePolicy] | None = None,
        custom_objects: Mapping[str, Any] | None = None,
    ) -> Self:
        """The agent after the last round that was kept; `learn` then makes the rounds that are missing.

        On the CPU the parameters at the end equal those of a run that was never cut off, bit for bit. A round that was
        cut off is made again from its beginning. Callbacks start anew: their own state is not kept.

        Args:
            checkpoint_folder: of the run.
            env: as of the run, with as many environments.
            demonstrations: the same as those of the run.
            eval_env: as of the run.
            tensorboard_log: as of the run.
            verbose: as SB3's.
            device: as SB3's.
            policy_class: see `load`.
            custom_objects: see `load`.

        Raises:
            SafeFileError: no checkpoint can be read.
            ValueError: there is no run, or the demonstrations or the number of environments are others.
        """
        folder = check_resumable("checkpoint_folder", checkpoint_folder)
        model = _load(
            cls,
            folder / RESUME_FILE,
            env,
            demonstrations,
            device=device,
            policy_class=policy_class,
            custom_objects=custom_objects,
            eval_env=eval_env,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            checkpoint_folder=folder,
        )
        _read_checkpoint(cast("BCO", model), folder)
        delete_leftovers(folder)
        model._kept_in = folder.resolve()
        return model


def begin_checkpoints(agent: BCO) -> None:
    """Put into the folder what tells how the run began, or, of a run that goes on, how far it is to go.

    Raises:
        ValueError: the folder holds another run's checkpoints.
    """
    folder = agent.checkpoint_folder
    assert folder is not None
    check_no_other_run(agent, "checkpoint_folder", folder)
    if agent.round > 0:
        # The resume file last: a kill in between then leaves no run that seems to begin with a trained policy.
        for number, part in enumerate(agent.parts):
            part.save(_transitions_path(folder, number))
        write_checkpoint(agent)
    agent.save(folder / RESUME_FILE)


def write_checkpoint(agent: BCO) -> None:
    """Write all that rounds change: the round's transitions, then parameters, optimiser and counters."""
    folder = agent.checkpoint_folder
    assert folder is not None
    last = len(agent.parts) - 1
    agent.parts[last].save(_transitions_path(folder, last))
    save_round(agent, folder, {"total_rounds": agent.total_rounds, "fingerprint": agent.fingerprint})


def _read_checkpoint(agent: BCO, folder: Path) -> None:
    agent.is_resumed, agent.total_rounds = True, agent.n_rounds
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None:  # killed in the first round: the resume file is the beginning itself
        return
    config = checkpoint.config
    if config["fingerprint"] != agent.fingerprint:
        raise ValueError(f"demonstrations: these are not those that the run in {str(folder)!r} was started with.")
    restore_round(agent, checkpoint)
    agent.parts = [Demonstrations.load(_transitions_path(folder, number)) for number in range(agent.round)]
    agent.transitions = join(agent.parts)
    agent.total_rounds = int(config["total_rounds"])


def _transitions_path(folder: Path, number: int) -> Path:
    return folder / f"transitions_{number + 1}.npz"


def _load(
    model_class: type[Model],
    path: str | Path,
    env: GymEnv | str | None,
    demonstrations: Demonstrations | ObservationOnly | None,
    *,
    device: torch.device | str,
    policy_class: type[BasePolicy] | None,
    custom_objects: Mapping[str, Any] | None,
    **others: Any,
) -> Model:
    check_observed(demonstrations)
    path, own = read_own_arguments(path, OWN, OWN_ARGUMENTS, "BCO")
    bc = BC.load(path, env, device=device, policy_class=policy_class, custom_objects=custom_objects)
    recipes = decode_smoothing(own["inverse_smoothing"], "inverse_smoothing", path)
    if recipes is None:
        raise SafeFileError(f"{str(path)!r} has no inverse_smoothing. Use another copy.")
    arguments = {**own, **clone_arguments(bc), "inverse_smoothing": one_or_list(recipes)}
    build: Any = model_class
    spaces = (bc.observation_space, bc.action_space)
    try:
        model: Any = build(
            bc.policy, spaces if bc.env is None else bc.env, demonstrations, device=device, **arguments, **others
        )
    except TypeError as error:
        raise SafeFileError(f"{str(path)!r} has malformed arguments ({error}). Use another copy.") from error
    model.missing = bc.missing
    loaded: Model = model
    return loaded


def _arguments(agent: BCO) -> dict[str, Any]:
    special = {"inverse_smoothing": encode_smoothing(agent.inverse_smoothings)}
    return {name: special[name] if name in special else getattr(agent, name) for name in OWN_ARGUMENTS}
