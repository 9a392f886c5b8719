"""Train PPO whose policy keeps exploring, evaluate it, and write agent, report and logs.

rlsmooth ppo --env CartPole-v1 --smoothing 0.01
rlsmooth ppo --env CartPole-v1 --from-bc logs/bc/CartPole-v1_1/agent.zip --vec-env subproc
rlsmooth ppo -i logs/ppo/CartPole-v1_1 -n 50000 --target-entropy-frac 0.3
rlsmooth ppo --resume logs/ppo/CartPole-v1_1
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from rlsmooth.scripts.arguments import EngineArgs, resumed
from rlsmooth.scripts.command import run_command


@dataclasses.dataclass(frozen=True)
class Args(EngineArgs):
    """Train PPO, smoothed or not, and evaluate it in the environment."""


def main(args: Args) -> Path:
    """Train, or resume training, and return the run's folder.

    Raises:
        ValueError: an argument is wrong, or names something that is not there or can't be written to.
    """
    args = resumed(args, "ppo")
    # Imported here: options can be listed, and a wrong one reported, without waiting for torch.
    from rlsmooth.agents import SmoothedPPO
    from rlsmooth.scripts.on_policy import train

    return train("ppo", SmoothedPPO, args)


if __name__ == "__main__":
    sys.exit(run_command("ppo", Args, main))
