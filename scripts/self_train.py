"""Train a classifier on a few labels and on those that it gives to the other rows, round by round.

rlsmooth self-train --data digits --n-labels 50 --smoothing 0.1
rlsmooth self-train --smoothing confidence --threshold 0.9
rlsmooth self-train --pseudo-labels soft --temperature 0.5
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Literal

from rlsmooth.scripts.classification_arguments import PATHS, TUPLES, ClassificationArgs
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.resuming import resumed


@dataclasses.dataclass(frozen=True)
class Args(ClassificationArgs):
    """Train a classifier by self-training, and tell how right its own labels were."""

    n_labels: int = 50
    """How many rows keep their label, class by class in proportion; the others lose it."""
    pseudo_labels: Literal["hard", "soft"] = "hard"
    """What a row without a label gets: the most probable class, or all probabilities."""
    smoothing: str = "0.1"
    """How much of a pseudo-label's target leaves it for all classes alike: a number, or confidence: so much that the
    target's probability is the confidence with which the label was made."""
    given_smoothing: float = 0.0
    """The same of the labels that are given."""
    threshold: float = 0.75
    """A prediction of a higher probability becomes a label."""
    criterion: Literal["threshold", "k_best"] = "threshold"
    """Whether all above the threshold become labels, or the most probable ones of each round."""
    k_best: int = 10
    """With --criterion k_best: how many in each round."""
    temperature: float = 1.0
    """Of soft pseudo-labels: below 1 they are sharper than the classifier's probabilities."""
    class_balance: bool = False
    """Take as many pseudo-labels of each class as of the others."""
    ema: float | None = None
    """Label by a moving average of the networks of all rounds, which keeps this share of itself in each."""
    rounds: int = 10
    """How many rounds of labelling and training there are at most."""
    epochs: int = 50
    """How often each round's training goes through the rows with a label."""


def main(args: Args) -> Path:
    """Train, or go on with training, and return the run's folder.

    Raises:
        ImportError: the data come with a package that is missing.
        ValueError: an argument is wrong, or names something that is not there or can't be written to.
    """
    # Imported here: the arguments can be listed and a wrong one told without waiting for torch.
    from rlsmooth.scripts.self_train_training import train

    return train(resumed(args, "self-train", tuples=TUPLES, paths=PATHS))


if __name__ == "__main__":
    sys.exit(run_command("self-train", Args, main))
