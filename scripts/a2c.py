"""Train A2C whose policy keeps exploring, evaluate it, and write agent, report and logs.

rlsmooth a2c --env CartPole-v1 --smoothing 0.01
rlsmooth a2c --env CartPole-v1 --target-entropy-frac 0.3 --seed 1
rlsmooth a2c --resume logs/a2c/CartPole-v1_1
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from rlsmooth.scripts.arguments import EngineArgs, resumed
from rlsmooth.scripts.command import run_command


@dataclasses.dataclass(frozen=True)
class Args(EngineArgs):
    """Train A2C, smoothed or not, and evaluate it in the environment."""


def main(args: Args) -> Path:
    """Train, or resume training, and return the run's folder.

    Raises:
        ValueError: an argument is wrong, or names something that is not there or can't be written to.
    """
    args = resumed(args, "a2c")
    # Imported here: options can be listed, and a wrong one reported, without waiting for torch.
    from rlsmooth.agents import SmoothedA2C
    from rlsmooth.scripts.on_policy import train

    return train("a2c", SmoothedA2C, args)


if __name__ == "__main__":
    sys.exit(run_command("a2c", Args, main))
