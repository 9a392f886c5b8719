"""The arguments that `rlsmooth classify` and `rlsmooth self-train` share. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

__all__ = ["PATHS", "TUPLES", "ClassificationArgs", "Reference"]

alias = tyro.conf.arg
Reference = Literal[
    "uniform", "prior", "tree", "kernel", "adjacent", "triangular", "binomial", "poisson", "beta", "exponential"
]


@dataclasses.dataclass(frozen=True)
class ClassificationArgs:
    """What every command that trains a classifier takes."""

    data: str = "digits"
    """A set by name (digits, iris, wine, breast-cancer, olive, rodents: extra `datasets`), or an .npz with features
    and labels."""
    test_fraction: float = 0.25
    """The share of the rows that the results are measured on, class by class; nothing is trained on them."""
    label_noise: float = 0.0
    """Replace each label that is trained on by another one with this probability, for studies; held-out and test labels
    stay."""
    standardise: bool = True
    """Bring features to mean 0 and standard deviation 1 over the training rows; the network does it itself."""

    hidden_sizes: tuple[int, ...] = (64, 64)
    """The sizes of the network's hidden layers."""
    learning_rate: str = "1e-3"
    """The step size: a number, or lin_1e-3 for one that falls to 0."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    batch_size: int = 64
    """How many rows are in a batch."""
    class_weight: Literal["none", "balanced"] = "none"
    """Whether rare classes count as much as frequent ones."""
    max_grad_norm: float | None = None
    """Clip the gradient's norm to this."""

    seed: int = 0
    """Decides the split, the label noise, the initial weights and the order of the data."""
    device: str = "auto"
    """Where to train: auto, cpu, cuda."""
    num_threads: int = 1
    """How many threads torch may use: small networks are fastest with one; -1: as many as torch would."""

    log_folder: Annotated[Path, alias(aliases=["-f"])] = Path("logs")
    """The run goes to <log folder>/<command>/<data>_<n>/."""
    tensorboard_log: Annotated[Path | None, alias(aliases=["-tb"])] = None
    """Where TensorBoard's files go, as <tensorboard log>/<data>_<n>/. Default: to the run's folder."""
    resume: Path | None = None
    """Go on with a run that was killed, given its folder; its arguments are those it began with."""
    progress: Annotated[bool, alias(aliases=["-P"])] = False
    """Show a progress bar; on a terminal there is one anyway."""
    verbose: int = 0
    """1 prints a line an epoch or a round."""


TUPLES = ("hidden_sizes",)
PATHS = ("log_folder", "tensorboard_log", "resume")
"""What `resumed` must know of them: what JSON holds as lists, and as text."""
