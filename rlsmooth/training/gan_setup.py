"""What `GANTrainer` checks and builds before a run, and how a run begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import nn

from rlsmooth.checks import check_in_range, check_positive_int
from rlsmooth.schedules import linear_start
from rlsmooth.training.checkpoint import checkpoint_steps
from rlsmooth.training.gan_data import RealRows
from rlsmooth.training.gan_files import read_checkpoint
from rlsmooth.training.seeding import isolated_rng

if TYPE_CHECKING:
    from rlsmooth.training.gan import GANTrainer

__all__ = [
    "TargetSchedule",
    "as_module",
    "as_shape",
    "as_target_schedule",
    "check_fit",
    "checked_target",
    "make_optimizer",
    "optional",
    "plan",
    "set_rate",
]

TargetSchedule: TypeAlias = float | str | Callable[[float], float]


def as_target_schedule(real_target: TargetSchedule) -> Callable[[float], float]:
    """The real target as a function of the progress remaining.

    Args:
        real_target: a number, `"lin_0.9"` (from 0.9 up to 1: what is smoothed away falls to 0), or such a function.

    Raises:
        TypeError: it is none of these.
        ValueError: it is outside `[0, 1]`, or another word.

    Example:
        >>> as_target_schedule("lin_0.5")(0.5)
        0.75
    """
    if callable(real_target):
        return real_target
    if isinstance(real_target, str):
        start = linear_start(real_target)
        if start is None or not 0 < start <= 1:
            raise ValueError(f'real_target={real_target!r} is no schedule: write "lin_0.9", or give a callable.')
        return lambda progress: 1 - progress * (1 - start)
    target = check_in_range("real_target", real_target, 0.0, 1.0)
    return lambda _: target


def checked_target(schedule: Callable[[float], float], progress: float, fake_target: float) -> float:
    """What the schedule says, if it can be meant.

    Raises:
        TypeError: it gave no number.
        ValueError: it is above 1, or not above the target of the fakes.
    """
    target = check_in_range(f"real_target(progress={progress:g})", schedule(progress), 0.0, 1.0)
    if target <= fake_target:
        raise ValueError(f"real_target(progress={progress:g})={target:g} must be above fake_target={fake_target:g}.")
    return target


def as_shape(name: str, size: int | tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one row."""
    sizes = tuple(size) if isinstance(size, (tuple, list)) else (size,)
    return tuple(check_positive_int(name, one) for one in sizes)


def optional(name: str, value: float | None, low: float, high: float = float("inf")) -> float | None:
    """None, or a number between the two."""
    return None if value is None else check_in_range(name, value, low, high, low_open=True, high_open=True)


def as_module(name: str, given: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """The module, built if need be.

    Raises:
        TypeError: it is none, or has nothing to train.
    """
    module = given if isinstance(given, nn.Module) or not callable(given) else given()
    if not isinstance(module, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module or a function that builds one, got {type(module).__name__}.")
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise TypeError(f"{name} has no parameter to train.")
    return module


def make_optimizer(module: nn.Module, rate: float, betas: tuple[float, float]) -> torch.optim.Adam:
    """Adam over what is to be trained, in one kernel where torch has it: small networks spend their time on calls."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    fused = all(part.is_floating_point() and part.device.type in ("cpu", "cuda") for part in parameters)
    return torch.optim.Adam(parameters, lr=rate, betas=betas, fused=fused)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use another learning rate from now on."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def check_fit(
    generator: nn.Module, discriminator: nn.Module, data: RealRows, latent_size: tuple[int, ...], seed: int
) -> None:
    """Send two rows through both networks, in evaluation mode, and compare shapes and types.

    Raises:
        ValueError: the networks fit neither the data nor each other.
    """
    modes = generator.training, discriminator.training
    generator.eval()
    discriminator.eval()
    try:
        with torch.no_grad(), isolated_rng(seed % 2**32):
            real = data.example(2)
            fake = generator(torch.randn(2, *latent_size, device=data.device))
            if fake.shape[1:] != real.shape[1:] or fake.dtype != real.dtype:
                raise ValueError(
                    f"generator gives rows {tuple(fake.shape[1:])} of {fake.dtype}, data has rows "
                    f"{tuple(real.shape[1:])} of {real.dtype}: they must be alike."
                )
            logits = discriminator(fake)
    except RuntimeError as error:
        raise ValueError(f"generator and discriminator can't be run on latent_size={latent_size}: {error}") from error
    finally:
        generator.train(modes[0])
        discriminator.train(modes[1])
    if logits.shape[:1] != (2,) or not logits.is_floating_point():
        raise ValueError(
            f"discriminator gives {logits.dtype} {tuple(logits.shape)} for two rows: it must give floating-point "
            "logits [2], [2, 1] or [2, ...]."
        )


def plan(trainer: GANTrainer, total_steps: int, resume: bool) -> bool:
    """Set where the run starts and ends; return whether it goes on with one that was killed.

    Raises:
        ValueError: see `GANTrainer.train`.
    """
    if trainer.data is None:
        raise ValueError("data is None, so there is nothing to learn from: give them to GANTrainer(...) or its load.")
    if trainer.missing:
        name = trainer.missing[0]
        raise ValueError(
            f"{', '.join(trainer.missing)} was a callable, which no file can hold: pass it again, for example "
            f"custom_objects={{{name!r}: ...}}."
        )
    folder = trainer.checkpoint_folder
    if resume:
        if folder is None:
            raise ValueError("resume=True needs the run's checkpoint_folder: give it to GANTrainer(...).")
        if checkpoint_steps(folder):
            read_checkpoint(trainer, folder)
            planned = trainer._end - trainer._start
            if planned != total_steps:
                raise ValueError(
                    f"the run that is resumed was for {planned} steps, not {total_steps}: schedules depend on it, so "
                    f"ask for total_steps={planned}, and for more in another call."
                )
            return True
    elif folder is not None:
        others = [step for step in checkpoint_steps(folder) if step > trainer.step or trainer.step == 0]
        if others:
            raise ValueError(
                f"checkpoint_folder={str(folder)!r} holds another run's checkpoints (step {others[-1]}): go on from "
                "them by train(..., resume=True), or name another folder."
            )
    trainer._start, trainer._end = trainer.step, trainer.step + total_steps
    return False
