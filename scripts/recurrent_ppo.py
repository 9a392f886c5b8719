"""Train PPO with a memory (sb3-contrib's RecurrentPPO), evaluate it, and write agent, report and logs.

rlsmooth recurrent-ppo --env CartPole-v1 --smoothing 0.01
rlsmooth recurrent-ppo --env CartPole-v1 --target-entropy-frac 0.3 --seed 1
rlsmooth recurrent-ppo --resume logs/recurrent-ppo/CartPole-v1_1
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from rlsmooth.scripts.arguments import OnPolicyArgs, resumed
from rlsmooth.scripts.command import run_command


@dataclasses.dataclass(frozen=True)
class Args(OnPolicyArgs):
    """Train RecurrentPPO, smoothed or not, and evaluate it in the environment."""


def main(args: Args) -> Path:
    """Train, or resume training, and return the run's folder.

    Raises:
        ImportError: sb3-contrib is not installed.
        ValueError: an argument is wrong, or names something that is not there or can't be written to.
    """
    args = resumed(args, "recurrent-ppo")
    # Imported here: options can be listed, and a wrong one reported, without waiting for torch.
    from rlsmooth.agents import SmoothedRecurrentPPO
    from rlsmooth.scripts.on_policy import train

    return train("recurrent-ppo", SmoothedRecurrentPPO, args)


if __name__ == "__main__":
    sys.exit(run_command("recurrent-ppo", Args, main))
