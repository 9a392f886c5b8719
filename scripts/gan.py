"""Train a GAN with one-sided smoothing on a ready case, and write the networks, report and logs.

rlsmooth gan --case ring --real-target 0.9 --seed 0
rlsmooth gan --case digits --steps 3000 --ema-decay 0.99
rlsmooth gan --resume logs/gan/ring_1
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.resuming import resumed

alias = tyro.conf.arg


@dataclasses.dataclass(frozen=True)
class Args:
    """Train a GAN on a density of known modes or on images of digits."""

    case: Literal["ring", "grid", "digits"] = "ring"
    """8 Gaussians on a circle or 25 on a grid, as in PacGAN; or scikit-learn's digits (extra: datasets)."""
    hidden: tuple[int, ...] = (128, 128)
    """Ring and grid: the sizes of both networks' hidden layers."""
    image_size: int = 8
    """Digits: the side that the images are enlarged to, a power of 2."""
    width: int = 32
    """Digits: the channels of the convolutions next to the image; twice as many each layer further in."""

    real_target: str = "0.9"
    """What the discriminator is told of real rows: a number, or lin_0.9 for one that rises to 1."""
    fake_target: float = 0.0
    """What it is told of fakes. Above 0 the generator learns least where it should most."""
    generator_loss: Literal["non_saturating", "saturating"] = "non_saturating"
    """-log D, or log(1 - D)."""

    steps: Annotated[int, alias(aliases=["-n"])] = 5_000
    """How many updates of the generator."""
    discriminator_updates: int = 1
    """How many of the discriminator for each of them."""
    batch_size: int = 128
    """How many real rows, and how many fakes, are in an update."""
    learning_rate: str = "lin_1e-3"
    """Adam's step size: a number, or lin_1e-3 for one that falls to 0."""
    discriminator_learning_rate: str | None = None
    """That of the discriminator. Default: the same."""
    beta1: float = 0.5
    """Adam's first beta."""
    ema_decay: float | None = None
    """Sample from an average of the generator's parameters with this decay, such as 0.99."""
    max_grad_norm: float | None = None
    """Clip both gradients' norms to this."""

    seed: int = 0
    """Decides points, initial weights, noise and the order of the data."""
    device: str = "auto"
    """Where to train: auto, cpu, cuda."""
    num_threads: int = 1
    """How many threads torch may use: small networks are fastest with one; -1: as many as torch would."""
    eval_freq: int = 500
    """Measure samples each time that so many steps are done, and at the end; -1: only at the end."""
    eval_samples: int = 2_500
    """How many."""
    checkpoint_freq: int = 1_000
    """Write a checkpoint each time that so many steps are done; -1: none."""

    log_folder: Annotated[Path, alias(aliases=["-f"])] = Path("logs")
    """The run goes to <log folder>/gan/<case>_<n>/."""
    tensorboard_log: Annotated[Path | None, alias(aliases=["-tb"])] = None
    """Where TensorBoard's files go, as <tensorboard log>/<case>_<n>/. Default: to the run's folder."""
    resume: Path | None = None
    """Go on with a run that was killed, given its folder; its arguments are those it began with."""
    progress: Annotated[bool, alias(aliases=["-P"])] = False
    """Show a progress bar; on a terminal there is one anyway."""
    verbose: int = 0
    """1 prints what is logged."""


def main(args: Args) -> Path:
    """Train, or go on with training, and return the run's folder.

    Raises:
        ValueError: an argument is wrong, or names something that is not there or can't be written to.
    """
    # Imported here: the arguments can be listed and a wrong one told without waiting for torch.
    from rlsmooth.scripts.gan_training import train

    return train(resumed(args, "gan", tuples=("hidden",), paths=("log_folder", "tensorboard_log", "resume")))


if __name__ == "__main__":
    sys.exit(run_command("gan", Args, main))
