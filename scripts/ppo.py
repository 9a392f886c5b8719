"""Train PPO whose policy keeps exploring, evaluate it, and write agent, report and logs.

rlsmooth ppo --env CartPole-v1 --smoothing 0.01
rlsmooth ppo --env CartPole-v1 --from-bc logs/bc/CartPole-v1_1/agent.zip --vec-env subproc
rlsmooth ppo --resume logs/ppo/CartPole-v1_1
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.on_policy_arguments import PATHS, TUPLES, OnPolicyArgs
from rlsmooth.scripts.resuming import resumed


@dataclasses.dataclass(frozen=True)
class Args(OnPolicyArgs):
    """Train PPO, smoothed or not, and evaluate it in the environment."""

    env: str = "CartPole-v1"
    """The environment's id."""


def main(args: Args) -> Path:
    """Train, or go on with training, and return the run's folder.

    Raises:
        ValueError: an argument is wrong, or names something that is not there or can't be written to.
    """
    args = resumed(args, "ppo", tuples=TUPLES, paths=PATHS)
    # Imported here: the arguments can be listed and a wrong one told without waiting for torch.
    from rlsmooth.agents import SmoothedPPO
    from rlsmooth.scripts.on_policy_training import train

    return train("ppo", SmoothedPPO, args)


if __name__ == "__main__":
    sys.exit(run_command("ppo", Args, main))
