"""What a cloning agent keeps on the disk: its own file, and checkpoints that a killed run goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from rlsmooth.agents.acting import ActingModel
from rlsmooth.agents.agent_file import AgentFile, load_agent_file, save_agent_file
from rlsmooth.agents.bc_encoding import split_custom_objects
from rlsmooth.agents.spaces import check_same_spaces, wrap_env
from rlsmooth.data import Demonstrations, space_from_json, space_to_json
from rlsmooth.training import (
    SafeFileError,
    checkpoint_steps,
    execution_state,
    latest_checkpoint,
    load_optimizer,
    optimizer_to_tensors,
    rng_state,
    save_checkpoint,
    warn_if_execution_differs,
)
from rlsmooth.training.safe_file import decode_smoothing, encode_smoothing

if TYPE_CHECKING:
    from rlsmooth.agents.bc import BC

__all__ = ["RESUME_FILE", "SavedModel", "begin_checkpoints", "write_agent", "write_checkpoint"]

Model = TypeVar("Model", bound="SavedModel")

KIND = "bc"
ARGUMENTS = (
    "smoothing",
    "reference",
    "learning_rate",
    "kl_coef",
    "reference_std",
    "action_bins",
    "batch_size",
    "gradient_accumulation",
    "max_grad_norm",
    "l2_coef",
    "amp",
    "validation_fraction",
    "early_stopping_patience",
    "seed",
    "checkpoint_every",
    "eval_every",
    "n_eval_episodes",
)
RESUME_FILE = "resume.zip"
"""The agent file in a checkpoint folder: what the checkpoints leave out because it never changes."""


class SavedModel(ActingModel):
    """The part of `BC` that reads and writes files."""

    def save(self, path: str | Path) -> Path:
        """Write an agent file (see `rlsmooth.agents.agent_file`) with policy, optimiser, arguments and counters.

        Callables (`learning_rate`, a `Smoothing`'s alpha) can't be kept: to train on after `load`, pass them again.

        Args:
            path: `.zip` is added to a name without a suffix.

        Returns:
            The path written.

        Raises:
            ValueError: the folder can't be written to.
        """
        return write_agent(cast("BC", self), path)

    @classmethod
    def load(
        cls,
        path: str | Path,
        env: GymEnv | str | None = None,
        demonstrations: Demonstrations | None = None,
        *,
        device: torch.device | str = "auto",
        policy_class: type[BasePolicy] | None = None,
        custom_objects: Mapping[str, Any] | None = None,
    ) -> Self:
        """Read an agent file. Runs no code that the file could name.

        Args:
            path: the file.
            env: an environment with the same spaces; acting needs none.
            demonstrations: to train on; acting needs none.
            device: as SB3's.
            policy_class: of a policy of your own.
            custom_objects: `learning_rate`, `smoothing` and `reference` in place of the file's, and constructor
                arguments of a policy of your own.

        Raises:
            SafeFileError: the file is damaged, no agent of this kind, or names a class that is not known.
            ValueError: spaces that differ.
        """
        return _load(
            cls, Path(path), env, demonstrations, device, policy_class=policy_class, custom_objects=custom_objects
        )

    @classmethod
    def resume(
        cls,
        checkpoint_folder: str | Path,
        env: GymEnv | str | None = None,
        demonstrations: Demonstrations | None = None,
        *,
        validation: Demonstrations | None = None,
        eval_env: GymEnv | str | None = None,
        tensorboard_log: str | Path | None = None,
        verbose: int = 0,
        device: torch.device | str = "auto",
        policy_class: type[BasePolicy] | None = None,
        custom_objects: Mapping[str, Any] | None = None,
    ) -> Self:
        """The agent of the last good checkpoint; `learn` with the same total then goes on from there.

        On the CPU the parameters at the end equal those of a run that was never cut off, bit for bit. Callbacks start
        anew: their own state is not kept.

        Args:
            checkpoint_folder: of the run.
            env: as of the run.
            demonstrations: the same as those of the run.
            validation: likewise, if they were given separately.
            eval_env: as of the run.
            tensorboard_log: as of the run.
            verbose: as SB3's.
            device: as SB3's.
            policy_class: see `load`.
            custom_objects: see `load`.

        Raises:
            SafeFileError: no checkpoint can be read.
            ValueError: there is no run, or the demonstrations are others.
        """
        folder = Path(checkpoint_folder).expanduser()
        if not (folder / RESUME_FILE).is_file():
            raise ValueError(f"checkpoint_folder={str(folder)!r} holds no run to go on with: {RESUME_FILE} is missing.")
        if demonstrations is None:
            raise ValueError("demonstrations is None: a run can't go on without those that it was started with.")
        model = _load(
            cls,
            folder / RESUME_FILE,
            env,
            demonstrations,
            device,
            policy_class=policy_class,
            custom_objects=custom_objects,
            validation=validation,
            eval_env=eval_env,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            checkpoint_folder=folder,
        )
        _read_checkpoint(cast("BC", model), folder)
        for leftover in folder.glob(".*.zip.*.tmp"):  # of a save that was killed
            leftover.unlink(missing_ok=True)
        return model


def write_agent(agent: BC, path: str | Path, more: Mapping[str, Any] | None = None) -> Path:
    """What `BC.save` does, with more plain data beside it, which `BC.load` passes over.

    Args:
        agent: whose file it is.
        path: as of `BC.save`.
        more: JSON-able, by names of its writer.

    Returns:
        The path written.

    Raises:
        ValueError: the folder can't be written to.
    """
    tensors, optimizer = optimizer_to_tensors(agent.policy.optimizer)
    config = {
        **(more or {}),
        "action_space": space_to_json(agent.action_space),  # the policy's differs where actions are bins
        "arguments": _arguments(agent),
        "counters": _counters(agent),
        "optimizer": optimizer,
    }
    return save_agent_file(path, kind=KIND, policy=agent.policy, config=config, tensors=tensors)


def begin_checkpoints(agent: BC) -> None:
    """Put into the checkpoint folder what does not change during a run, and the run's first checkpoint.

    Where an earlier run of the agent left checkpoints, the new one comes first: a kill in between then leaves a pair
    that fits. Where there are none, the resume file alone says how the run began.
    """
    folder = agent.checkpoint_folder
    assert folder is not None
    if checkpoint_steps(folder):
        write_checkpoint(agent)
        agent.save(folder / RESUME_FILE)
    else:
        agent.save(folder / RESUME_FILE)
        write_checkpoint(agent)


def write_checkpoint(agent: BC) -> None:
    """Write all that changes during a run: parameters, optimiser, random state, counters, early stopping."""
    assert agent.checkpoint_folder is not None
    tensors, optimizer = optimizer_to_tensors(agent.policy.optimizer)
    stopping = agent.early_stopping
    save_checkpoint(
        agent.checkpoint_folder,
        agent.num_timesteps,
        config={
            "counters": _counters(agent),
            "optimizer": optimizer,
            "early_stopping": None if stopping is None else stopping.to_config(),
            "fingerprints": agent.fingerprints,
            "execution": execution_state(),
        },
        tensors={
            "policy": agent.policy.state_dict(),
            "optimizer": tensors,
            "best": {} if stopping is None else stopping.parameters,
            "rng": rng_state(),
        },
    )


def _read_checkpoint(agent: BC, folder: Path) -> None:
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None:  # killed before the first: the resume file is the beginning itself
        agent.is_resumed = True
        return
    config, tensors = checkpoint.config, checkpoint.tensors
    for name, saved, given in zip(
        ("demonstrations", "validation"), config["fingerprints"], agent.fingerprints, strict=True
    ):
        if saved != given:
            raise ValueError(f"{name}: these are not those that the run in {str(folder)!r} was started with.")
    warn_if_execution_differs(config["execution"])
    agent.policy.load_state_dict(tensors["policy"])
    load_optimizer(agent.policy.optimizer, tensors["optimizer"], config["optimizer"])
    if agent.early_stopping is not None:
        best = {name: tensor.to(agent.device) for name, tensor in tensors["best"].items()}
        agent.early_stopping.load(config["early_stopping"], best)
    _set_counters(agent, config["counters"])
    agent._rng = tensors["rng"]
    agent.is_resumed = True


def _load(
    model_class: type[Model],
    path: Path,
    env: GymEnv | str | None,
    demonstrations: Demonstrations | None,
    device: torch.device | str,
    *,
    policy_class: type[BasePolicy] | None,
    custom_objects: Mapping[str, Any] | None,
    **others: Any,
) -> Model:
    own, of_policy = split_custom_objects(custom_objects)
    file = load_agent_file(path, kind=KIND, device=device, policy_class=policy_class, custom_objects=of_policy)
    arguments, missing = _decoded_arguments(path, file)
    policy: Any = file.policy
    try:
        spaces = (policy.observation_space, space_from_json(file.config["action_space"]))
    except (KeyError, TypeError, ValueError) as error:
        raise SafeFileError(f"{str(path)!r} has a malformed action space ({error}). Use another copy.") from error
    if env is not None:
        env = wrap_env("env", env)
        check_same_spaces("env", (env.observation_space, env.action_space), spaces)
    if demonstrations is None or others.get("validation") is not None:
        arguments["validation_fraction"] = 0.0
    if demonstrations is None:
        arguments["early_stopping_patience"] = None
    build: Any = model_class
    model: Any = build(
        policy, spaces if env is None else env, demonstrations, device=device, **{**arguments, **own}, **others
    )
    try:
        load_optimizer(policy.optimizer, file.tensors, file.config["optimizer"])
        _set_counters(model, file.config["counters"])
        if "learning_rate" in own:  # the optimiser's state brought the file's back
            for group in policy.optimizer.param_groups:
                group["lr"] = model.lr_schedule(model._current_progress_remaining)
    except (KeyError, TypeError, ValueError) as error:
        raise SafeFileError(f"{str(path)!r} has malformed training state ({error}). Use another copy.") from error
    model.missing = tuple(name for name in missing if name not in own)
    loaded: Model = model
    return loaded


def _arguments(agent: BC) -> dict[str, Any]:
    """The constructor's arguments that a file can hold; a callable becomes None, which `_decoded_arguments` reports."""
    special = {
        "smoothing": encode_smoothing(agent.smoothings),
        "reference": encode_smoothing(agent.references),
        "learning_rate": None if callable(agent.learning_rate) else agent.learning_rate,
        "action_bins": None if agent.bins is None else agent.bins.num_bins,
        "early_stopping_patience": None if agent.early_stopping is None else agent.early_stopping.patience,
    }
    return {name: special[name] if name in special else getattr(agent, name) for name in ARGUMENTS}


def _decoded_arguments(path: Path, file: AgentFile) -> tuple[dict[str, Any], list[str]]:
    """The arguments, and the names of those that were callables."""
    saved = file.config.get("arguments")
    if not isinstance(saved, dict) or set(saved) != set(ARGUMENTS):
        raise SafeFileError(f"{str(path)!r} lacks the agent's arguments. Use another copy.")
    arguments: dict[str, Any] = dict(saved)
    missing = []
    recipes = decode_smoothing(saved["smoothing"], "smoothing", path)
    if recipes is None:
        raise SafeFileError(f"{str(path)!r} has no smoothing. Use another copy.")
    if any(entry.get("is_function") for entry in saved["smoothing"]):
        missing.append("smoothing")
    arguments["smoothing"] = recipes[0] if len(recipes) == 1 else recipes
    references = decode_smoothing(saved["reference"], "reference", path)
    if references is not None:
        kept = [recipe.reference for recipe in references]
        arguments["reference"] = kept[0] if len(kept) == 1 else kept
    if saved["learning_rate"] is None:
        missing.append("learning_rate")
        arguments["learning_rate"] = 1e-3  # a stand-in: `learn` refuses to start
    return arguments, missing


def _counters(agent: BC) -> dict[str, int]:
    return {
        "num_timesteps": agent.num_timesteps,
        "total_timesteps": agent._total_timesteps,
        "num_timesteps_at_start": agent._num_timesteps_at_start,
        "first_epoch": agent._first_epoch,
    }


def _set_counters(agent: BC, counters: Mapping[str, Any]) -> None:
    agent.num_timesteps = int(counters["num_timesteps"])
    agent._total_timesteps = int(counters["total_timesteps"])
    agent._num_timesteps_at_start = int(counters["num_timesteps_at_start"])
    agent._first_epoch = int(counters["first_epoch"])
    if agent._total_timesteps:
        agent._current_progress_remaining = 1.0 - agent.num_timesteps / agent._total_timesteps
