"""Train a classifier with smoothed targets, measure it on test rows, and write classifier, report and logs.

rlsmooth classify --data digits --smoothing 0.1 --label-noise 0.2
rlsmooth classify --data olive --smoothing 0.2 --reference tree
rlsmooth classify --resume logs/classify/digits_1
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Literal

from rlsmooth.scripts.classification_arguments import PATHS, TUPLES, ClassificationArgs, Reference
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.resuming import resumed


@dataclasses.dataclass(frozen=True)
class Args(ClassificationArgs):
    """Train a classifier, with temperature scaling as the baseline beside it."""

    validation_fraction: float = 0.2
    """The share of the rows that are left for training to hold out: for temperature, early stopping and curves; 0:
    none."""
    smoothing: str = "0.1"
    """How much of the target leaves the label: a number, lin_0.1 for one that falls to 0, or none: the reference's
    whole distribution (tree and ordinal schemes)."""
    reference: Reference = "uniform"
    """Where it goes: to all classes alike, by the classes' shares (prior), to relatives (tree), to similar ones
    (kernel), or to neighbours of ordered classes by an ordinal scheme."""
    spread: Literal["all", "others"] = "all"
    """Whether the uniform reference includes the label."""
    decay: float = 1.0
    """Of tree, for each edge of the hierarchy, and of exponential: how fast the mass falls with the distance."""
    kernel: Path | None = None
    """With --reference kernel: an .npy of similarities [K, K]. Default: exp(-distance of the classes' means / the
    median one)."""
    mixup: float = 0.0
    """Mix pairs of rows and their targets, with a share from Beta(mixup, mixup); 0: off."""

    epochs: int = 50
    """How often to go through the rows."""
    early_stopping_patience: int | None = None
    """Stop after so many epochs without a lower validation loss, and keep the best parameters."""
    amp: bool = False
    """Forward passes of the training in bfloat16, for GPUs."""
    checkpoint_freq: int = 10
    """Write a checkpoint each time that so many epochs are done, and at the end; -1: none."""


def main(args: Args) -> Path:
    """Train, or go on with training, and return the run's folder.

    Raises:
        ImportError: the data come with a package that is missing.
        ValueError: an argument is wrong, or names something that is not there or can't be written to.
    """
    # Imported here: the arguments can be listed and a wrong one told without waiting for torch.
    from rlsmooth.scripts.classify_training import train

    return train(resumed(args, "classify", tuples=TUPLES, paths=(*PATHS, "kernel")))


if __name__ == "__main__":
    sys.exit(run_command("classify", Args, main))
