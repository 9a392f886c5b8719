"""Imitate and recover a reward: adversarial inverse reinforcement learning (AIRL), smoothed or not.

rlsmooth airl --env CartPole-v1 --real-target 0.9
rlsmooth airl --env Acrobot-v1 --demonstrations acrobot.npz --smoothing 0.01
rlsmooth airl --resume logs/airl/CartPole-v1_1
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from rlsmooth.checks import check_positive_int
from rlsmooth.scripts.arguments import AdversarialArgs, resumed
from rlsmooth.scripts.command import run_command


@dataclasses.dataclass(frozen=True)
class Args(AdversarialArgs):
    """Train AIRL on demonstrations, evaluate its generator in the environment, and keep the reward that it found."""

    potential_net_arch: tuple[int, ...] = (32, 32)
    """The sizes of the hidden layers of the potential, which shapes the reward."""


def main(args: Args) -> Path:
    """Train, or resume training, and return the run's folder.

    Raises:
        ValueError: an argument is wrong, or names something that is not there or can't be written to.
    """
    args = resumed(args, "airl")
    # Imported here: options can be listed, and a wrong one reported, without waiting for torch.
    from rlsmooth.agents import AIRL, ShapedRewardNet
    from rlsmooth.scripts.adversarial import score_net, train

    sizes = [check_positive_int("potential_net_arch", size) for size in args.potential_net_arch]

    def make_net(generator: Any) -> ShapedRewardNet:
        return ShapedRewardNet(score_net(args, generator), gamma=float(generator.gamma), potential_net_arch=sizes)

    return train("airl", AIRL, args, make_net)


if __name__ == "__main__":
    sys.exit(run_command("airl", Args, main))
