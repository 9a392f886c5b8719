"""What a GAN trainer keeps on the disk: its own file, and checkpoints that a killed run goes on from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor, nn

from rlsmooth.training.checkpoint import latest_checkpoint, load_optimizer, optimizer_to_tensors, save_checkpoint
from rlsmooth.training.gan_data import RealData
from rlsmooth.training.safe_file import SafeFileError, read_safe_file, write_safe_file
from rlsmooth.training.seeding import execution_state, rng_state, warn_if_execution_differs

if TYPE_CHECKING:
    from rlsmooth.training.gan import GANTrainer

__all__ = ["SavedGAN", "begin_checkpoints", "read_checkpoint", "write_checkpoint"]

FORMAT_NAME = "rlsmooth-gan"
FORMAT_VERSION = 1
ARGUMENTS = (
    "latent_size",
    "generator_loss",
    "real_target",
    "fake_target",
    "learning_rate",
    "discriminator_learning_rate",
    "betas",
    "batch_size",
    "discriminator_updates",
    "ema_decay",
    "max_grad_norm",
    "evaluate_every",
    "evaluation_samples",
    "seed",
    "checkpoint_every",
)
CALLABLES = ("real_target", "learning_rate", "discriminator_learning_rate")
IS_FUNCTION = "function"


class SavedGAN:
    """The part of `GANTrainer` that reads and writes files."""

    def save(self, path: str | Path) -> Path:
        """Write both networks, their optimisers, the average, the arguments and the history; whole or not at all.

        Functions (`real_target`, `learning_rate`) can't be kept: to train on after `load`, pass them again.

        Args:
            path: `.zip` is added to a name without a suffix.

        Returns:
            The path written.

        Raises:
            ValueError: the folder is missing or can't be written to.
        """
        trainer = cast("GANTrainer", self)
        path = Path(path).expanduser()
        path = path if path.suffix else path.with_suffix(".zip")
        config, tensors = _state(trainer)
        write_safe_file(path, config, tensors=tensors, format_name=FORMAT_NAME, format_version=FORMAT_VERSION)
        return path

    @classmethod
    def load(
        cls,
        path: str | Path,
        generator: nn.Module | Callable[[], nn.Module],
        discriminator: nn.Module | Callable[[], nn.Module],
        data: RealData | None = None,
        *,
        device: torch.device | str = "auto",
        custom_objects: Mapping[str, Any] | None = None,
    ) -> Self:
        """Read a file that `save` wrote. Runs no code that the file could name: the networks are the caller's.

        Args:
            path: the file.
            generator: of the same shapes; its parameters are replaced.
            discriminator: likewise.
            data: to train on; sampling needs none.
            device: see `GANTrainer`.
            custom_objects: arguments of `GANTrainer` in place of the file's; those that were functions at least.

        Raises:
            SafeFileError: the file is damaged or none of this kind.
            ValueError: networks of other shapes.
        """
        path = Path(path).expanduser()
        file = read_safe_file(path, format_name=FORMAT_NAME, format_version=FORMAT_VERSION)
        own = dict(custom_objects or {})
        saved = file.config.get("arguments")
        if not isinstance(saved, dict) or set(saved) != set(ARGUMENTS):
            raise SafeFileError(f"{str(path)!r} lacks the trainer's arguments. Use another copy.")
        missing = tuple(name for name in CALLABLES if saved[name] == IS_FUNCTION and name not in own)
        stand_ins: dict[str, Any] = {"real_target": 1.0, "learning_rate": 2e-4, "discriminator_learning_rate": None}
        arguments = saved | {name: stand_ins[name] for name in missing} | own
        arguments["latent_size"], arguments["betas"] = tuple(arguments["latent_size"]), tuple(arguments["betas"])
        build: Any = cls
        trainer: Any = build(generator, discriminator, data, device=device, **arguments)
        try:
            _set_state(trainer, file.config, file.tensors)
        except (KeyError, TypeError) as error:
            raise SafeFileError(f"{str(path)!r} has malformed training state ({error}). Use another copy.") from error
        trainer.missing = missing
        loaded: Self = trainer
        return loaded


def begin_checkpoints(trainer: GANTrainer) -> None:
    """Write the run's first checkpoint, if all is finite: a spoilt network must not replace the last good one."""
    trainer.monitor.check()
    write_checkpoint(trainer)


def write_checkpoint(trainer: GANTrainer) -> None:
    """Write all that changes during a run: parameters, optimisers, random state, counters, history."""
    assert trainer.checkpoint_folder is not None
    config, tensors = _state(trainer)
    assert trainer.data is not None
    config |= {
        "start": trainer._start,
        "end": trainer._end,
        "fingerprint": trainer.data.fingerprint(),
        "execution": execution_state(),
    }
    tensors |= {"rng": rng_state(), "window": trainer.monitor.window()}
    save_checkpoint(trainer.checkpoint_folder, trainer.step, config=config, tensors=tensors)


def read_checkpoint(trainer: GANTrainer, folder: Path) -> None:
    """Put the trainer where the last good checkpoint was.

    Raises:
        SafeFileError: no checkpoint can be read.
        ValueError: the run had other arguments, data or networks.
    """
    checkpoint = latest_checkpoint(folder)
    assert checkpoint is not None
    config = checkpoint.config
    ours = _arguments(trainer)
    differing = sorted(name for name in ARGUMENTS if config["arguments"].get(name) != ours[name])
    if differing:
        name = differing[0]
        raise ValueError(
            f"{name}={ours[name]!r} was {config['arguments'].get(name)!r} in the run in {str(folder)!r}: a run is "
            f"resumed with the arguments that it began with (differing: {', '.join(differing)})."
        )
    assert trainer.data is not None
    if config["fingerprint"] != trainer.data.fingerprint():
        raise ValueError(f"data: these are not those that the run in {str(folder)!r} was started with.")
    warn_if_execution_differs(config["execution"])
    _set_state(trainer, config, checkpoint.tensors)
    trainer._start, trainer._end = int(config["start"]), int(config["end"])
    trainer._rng = checkpoint.tensors["rng"]
    trainer.monitor.set_window(checkpoint.tensors["window"])


def _state(trainer: GANTrainer) -> tuple[dict[str, Any], dict[str, Mapping[str, Tensor]]]:
    generator_state, generator_config = optimizer_to_tensors(trainer.generator_optimizer)
    discriminator_state, discriminator_config = optimizer_to_tensors(trainer.discriminator_optimizer)
    config = {
        "arguments": _arguments(trainer),
        "step": trainer.step,
        "history": trainer.history,
        "evaluations": trainer.evaluations,
        "generator_optimizer": generator_config,
        "discriminator_optimizer": discriminator_config,
    }
    tensors: dict[str, Mapping[str, Tensor]] = {
        "generator": trainer.generator.state_dict(),
        "discriminator": trainer.discriminator.state_dict(),
        "average": {} if trainer.average is None else trainer.average.state_dict(),
        "generator_optimizer": generator_state,
        "discriminator_optimizer": discriminator_state,
    }
    return config, tensors


def _set_state(trainer: GANTrainer, config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    parts: list[tuple[str, nn.Module]] = [("generator", trainer.generator), ("discriminator", trainer.discriminator)]
    if trainer.average is not None:
        parts.append(("average", trainer.average))
    for name, module in parts:
        if name == "average" and not tensors[name]:  # trained without one so far: it begins at the generator
            module.load_state_dict(tensors["generator"])
            continue
        try:
            module.load_state_dict(tensors[name])
        except RuntimeError as error:
            raise ValueError(f"{name} is not of the shapes that the file has: {error}") from error
    load_optimizer(trainer.generator_optimizer, tensors["generator_optimizer"], config["generator_optimizer"])
    load_optimizer(
        trainer.discriminator_optimizer, tensors["discriminator_optimizer"], config["discriminator_optimizer"]
    )
    trainer.step = int(config["step"])
    trainer.history = {name: list(values) for name, values in config["history"].items()}
    trainer.evaluations = {name: list(values) for name, values in config["evaluations"].items()}


def _arguments(trainer: GANTrainer) -> dict[str, Any]:
    """The constructor's arguments as JSON holds them."""
    found = {name: getattr(trainer, name) for name in ARGUMENTS}
    found |= {name: IS_FUNCTION for name in CALLABLES if callable(found[name])}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
