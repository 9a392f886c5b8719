"""Imitate by a discriminator, with one-sided smoothing or without: generative adversarial imitation learning (GAIL).

rlsmooth gail --env CartPole-v1 --n-episodes 4 --real-target 0.9
rlsmooth gail --env Pendulum-v1 --demonstrations pendulum.npz --algo sac
rlsmooth gail --resume logs/gail/CartPole-v1_1
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from rlsmooth.scripts.adversarial_arguments import PATHS, TUPLES, GAILArgs
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.resuming import resumed


@dataclasses.dataclass(frozen=True)
class Args(GAILArgs):
    """Train GAIL on demonstrations, and evaluate its generator in the environment."""

    env: str = "CartPole-v1"
    """The environment's id."""


def main(args: Args) -> Path:
    """Train, or go on with training, and return the run's folder.

    Raises:
        ValueError: an argument is wrong, or names something that is not there or can't be written to.
    """
    args = resumed(args, "gail", tuples=TUPLES, paths=PATHS)
    # Imported here: the arguments can be listed and a wrong one told without waiting for torch.
    from rlsmooth.scripts.adversarial_training import train

    return train("gail", args)


if __name__ == "__main__":
    sys.exit(run_command("gail", Args, main))
