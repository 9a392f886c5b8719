"""What DAgger keeps on the disk: the clone's own file, each round's episodes, and checkpoints between rounds.

    scratch_dir/resume.zip                  how the run began
    scratch_dir/checkpoint_<round>.zip      parameters, optimiser, counters after that round; the last two
    scratch_dir/demos/initial.npz           the initial demonstrations, if there are any
    scratch_dir/demos/round-000/000.npz     the first episode of the first round, labelled by the expert

No file is a pickle, and each is whole or not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from rlsmooth.agents.bc import BC
from rlsmooth.agents.bc_encoding import fingerprint
from rlsmooth.agents.bc_files import RESUME_FILE, write_agent
from rlsmooth.agents.bco_collection import join
from rlsmooth.agents.dagger_expert import ExpertLike
from rlsmooth.agents.dagger_schedule import BetaSchedule
from rlsmooth.agents.rounds import RoundsModel
from rlsmooth.agents.rounds_files import (
    check_no_other_run,
    check_resumable,
    clone_arguments,
    delete_leftovers,
    read_own_arguments,
    restore_round,
    save_round,
)
from rlsmooth.data import Demonstrations
from rlsmooth.training import SafeFileError, latest_checkpoint

if TYPE_CHECKING:
    from rlsmooth.agents.dagger import DAgger

__all__ = ["SavedDAgger", "begin_checkpoints", "write_checkpoint"]

Model = TypeVar("Model", bound="SavedDAgger")

OWN = "dagger"
OWN_ARGUMENTS = (
    "expert_targets",
    "expert_deterministic",
    "learner_deterministic",
    "beta_schedule",
    "rollout_round_min_episodes",
    "rollout_round_min_timesteps",
    "bc_train_n_epochs",
    "seed",
    "n_eval_episodes",
)
STAND_IN_SCHEDULE = 15
"""For a function that a file could not keep; `learn` refuses to start."""


class SavedDAgger(RoundsModel):
    """The part of `DAgger` that reads and writes files."""

    def save(self, path: str | Path) -> Path:
        """Write the clone's agent file, which `BC.load`, `load_agent` and every command read, with the own arguments.

        The demonstrations are not in it: `agent.demonstrations.save`. Nor are functions (`beta_schedule`,
        `learning_rate`): to train on after `load`, pass them again.

        Args:
            path: `.zip` is added to a name without a suffix.

        Returns:
            The path written.

        Raises:
            ValueError: the folder can't be written to.
        """
        agent = cast("DAgger", self)
        own = {name: getattr(agent, name) for name in OWN_ARGUMENTS}
        if callable(own["beta_schedule"]):
            own["beta_schedule"] = None
        return write_agent(agent.bc, path, {OWN: own})

    @classmethod
    def load(
        cls,
        path: str | Path,
        env: GymEnv | str | None = None,
        expert: ExpertLike | None = None,
        *,
        demonstrations: Demonstrations | None = None,
        device: torch.device | str = "auto",
        policy_class: type[BasePolicy] | None = None,
        custom_objects: Mapping[str, Any] | None = None,
    ) -> Self:
        """Read a file of `save`. Runs no code that the file could name.

        `learn` then starts with round 0 again, from the policy of the file.

        Args:
            path: the file.
            env: an environment with the same spaces; acting needs none.
            expert: to learn from; acting needs none.
            demonstrations: to begin with, for example those that the saved agent had.
            device: as SB3's.
            policy_class: of a policy of your own.
            custom_objects: `beta_schedule`, `learning_rate`, `smoothing` and `reference` in place of the file's, and
                constructor arguments of a policy of your own.

        Raises:
            SafeFileError: the file is damaged, or of another kind of agent.
            ValueError: spaces that differ.
        """
        return _load(
            cls,
            path,
            env,
            expert,
            device=device,
            policy_class=policy_class,
            custom_objects=custom_objects,
            demonstrations=demonstrations,
        )

    @classmethod
    def resume(
        cls,
        scratch_dir: str | Path,
        env: GymEnv | str,
        expert: ExpertLike,
        *,
        eval_env: GymEnv | str | None = None,
        tensorboard_log: str | Path | None = None,
        verbose: int = 0,
        device: torch.device | str = "auto",
        policy_class: type[BasePolicy] | None = None,
        custom_objects: Mapping[str, Any] | None = None,
    ) -> Self:
        """The agent after the last round that was kept; `learn` with the same total then makes those that are missing.

        On the CPU the parameters at the end equal those of a run that was never cut off, bit for bit, if the expert is
        the same and says the same to the same observations. A round that was cut off is made again from its beginning.
        Callbacks start anew: their own state is not kept.

        Args:
            scratch_dir: of the run; the initial demonstrations are there.
            env: as of the run, with as many environments.
            expert: the same as that of the run.
            eval_env: as of the run.
            tensorboard_log: as of the run.
            verbose: as SB3's.
            device: as SB3's.
            policy_class: see `load`.
            custom_objects: see `load`.

        Raises:
            SafeFileError: no checkpoint can be read.
            DemonstrationsFileError: the episodes of a round are missing or damaged.
            ValueError: there is no run, the number of environments is another, or the episodes are not the run's.
        """
        folder = check_resumable("scratch_dir", scratch_dir)
        initial = _initial_path(folder)
        model = _load(
            cls,
            folder / RESUME_FILE,
            env,
            expert,
            device=device,
            policy_class=policy_class,
            custom_objects=custom_objects,
            demonstrations=Demonstrations.load(initial) if initial.is_file() else None,
            eval_env=eval_env,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            scratch_dir=folder,
        )
        _read_checkpoint(cast("DAgger", model), folder)
        for part in (folder, *folder.glob("demos"), *folder.glob("demos/round-*")):
            if part.is_dir():
                delete_leftovers(part)
        model._kept_in = folder.resolve()
        return model


def begin_checkpoints(agent: DAgger) -> None:
    """Put into the folder what tells how the run began and, of one that goes on, how far it is to go.

    Raises:
        ValueError: the folder holds another run's checkpoints.
    """
    folder = agent.scratch_dir
    assert folder is not None
    check_no_other_run(agent, "scratch_dir", folder)
    if agent.initial is None:
        _initial_path(folder).unlink(missing_ok=True)
    else:
        _initial_path(folder).parent.mkdir(parents=True, exist_ok=True)
        agent.initial.save(_initial_path(folder))
    # A kill in between leaves a run that has just begun, but never one that seems to begin with a trained policy.
    if agent.round == 0:
        agent.save(folder / RESUME_FILE)
    for number, part in enumerate(agent.rounds):
        _save_episodes(folder, number, part)
    _save_counters(agent, folder)
    if agent.round > 0:
        agent.save(folder / RESUME_FILE)


def write_checkpoint(agent: DAgger) -> None:
    """Write all that rounds change: the round's episodes, then parameters, optimiser and counters."""
    folder = agent.scratch_dir
    assert folder is not None
    _save_episodes(folder, len(agent.rounds) - 1, agent.rounds[-1])
    _save_counters(agent, folder)


def _save_counters(agent: DAgger, folder: Path) -> None:
    more = {
        "total_timesteps": agent._total_timesteps,
        "num_timesteps_at_start": agent._num_timesteps_at_start,
        "initial": None if agent.initial is None else fingerprint(agent.initial),
        "episodes": [part.num_episodes for part in agent.rounds],
        "fingerprints": [fingerprint(part) for part in agent.rounds],
    }
    save_round(agent, folder, more)


def _read_checkpoint(agent: DAgger, folder: Path) -> None:
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None:  # killed when it began: the resume file is the beginning itself
        return
    config = checkpoint.config
    if config["initial"] != (None if agent.initial is None else fingerprint(agent.initial)):
        raise ValueError(f"{str(_initial_path(folder))!r} does not hold what the run was started with.")
    rounds = []
    for number, (count, known) in enumerate(zip(config["episodes"], config["fingerprints"], strict=True)):
        episodes = [Demonstrations.load(_episode_path(folder, number, place)) for place in range(count)]
        rounds.append(join(episodes))
        if fingerprint(rounds[-1]) != known:
            raise ValueError(f"{str(_round_folder(folder, number))!r} does not hold the episodes of this run.")
    restore_round(agent, checkpoint)
    agent.rounds = rounds
    agent._total_timesteps = int(config["total_timesteps"])
    agent._num_timesteps_at_start = int(config["num_timesteps_at_start"])
    agent.is_resumed = True


def _save_episodes(folder: Path, number: int, part: Demonstrations) -> None:
    _round_folder(folder, number).mkdir(parents=True, exist_ok=True)
    for place in range(part.num_episodes):
        part.select_episodes([place]).save(_episode_path(folder, number, place))


def _initial_path(folder: Path) -> Path:
    return folder / "demos" / "initial.npz"


def _round_folder(folder: Path, number: int) -> Path:
    return folder / "demos" / f"round-{number:03d}"


def _episode_path(folder: Path, number: int, place: int) -> Path:
    return _round_folder(folder, number) / f"{place:03d}.npz"


def _load(
    model_class: type[Model],
    path: str | Path,
    env: GymEnv | str | None,
    expert: ExpertLike | None,
    *,
    device: torch.device | str,
    policy_class: type[BasePolicy] | None,
    custom_objects: Mapping[str, Any] | None,
    **others: Any,
) -> Model:
    path, own = read_own_arguments(path, OWN, OWN_ARGUMENTS, "DAgger")
    custom = dict(custom_objects or {})
    schedule: BetaSchedule | None = custom.pop("beta_schedule", own["beta_schedule"])
    bc = BC.load(path, env, device=device, policy_class=policy_class, custom_objects=custom)
    arguments = {
        **own,
        **clone_arguments(bc),
        "beta_schedule": STAND_IN_SCHEDULE if schedule is None else schedule,
    }
    build: Any = model_class
    spaces = (bc.observation_space, bc.action_space)
    stand_ins = {"beta_schedule": own["beta_schedule"] or STAND_IN_SCHEDULE}
    try:  # of the file alone, so that the caller's mistakes are not put down to it
        build(bc.policy, spaces, None, device=device, **{**arguments, **stand_ins})
    except (TypeError, ValueError) as error:
        raise SafeFileError(f"{str(path)!r} has malformed arguments ({error}). Use another copy.") from error
    # The environment as it was given: its kind decides how a function is asked.
    model: Any = build(bc.policy, spaces if env is None else env, expert, device=device, **arguments, **others)
    model.missing = (*bc.missing, *(() if schedule is not None else ("beta_schedule",)))
    loaded: Model = model
    return loaded
