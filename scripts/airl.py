"""Imitate and recover a reward: adversarial inverse reinforcement learning (AIRL), smoothed or not.

rlsmooth airl --env CartPole-v1 --real-target 0.9
rlsmooth airl --env Acrobot-v1 --demonstrations acrobot.npz --smoothing 0.01
rlsmooth airl --resume logs/airl/CartPole-v1_1
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from rlsmooth.scripts.adversarial_arguments import PATHS, TUPLES, AIRLArgs
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.resuming import resumed


@dataclasses.dataclass(frozen=True)
class Args(AIRLArgs):
    """Train AIRL on demonstrations, evaluate its generator in the environment, and keep the reward that it found."""

    env: str = "CartPole-v1"
    """The environment's id."""


def main(args: Args) -> Path:
    """Train, or go on with training, and return the run's folder.

    Raises:
        ValueError: an argument is wrong, or names something that is not there or can't be written to.
    """
    args = resumed(args, "airl", tuples=(*TUPLES, "potential_net_arch"), paths=PATHS)
    # Imported here: the arguments can be listed and a wrong one told without waiting for torch.
    from rlsmooth.scripts.adversarial_training import train

    return train("airl", args)


if __name__ == "__main__":
    sys.exit(run_command("airl", Args, main))
