"""Train PPO with action masks (sb3-contrib's MaskablePPO), evaluate it, and write agent, report and logs.

rlsmooth maskable-ppo --env rlsmooth/IdentityMasked-v0 --smoothing 0.01
rlsmooth maskable-ppo --env rlsmooth/IdentityMasked-v0 --target-entropy-frac 0.3 --seed 1
rlsmooth maskable-ppo --resume logs/maskable-ppo/rlsmooth-IdentityMasked-v0_1
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from rlsmooth.scripts.arguments import OnPolicyArgs, resumed
from rlsmooth.scripts.command import run_command


@dataclasses.dataclass(frozen=True)
class Args(OnPolicyArgs):
    """Train MaskablePPO, smoothed or not, and evaluate it in the environment."""

    env: str = "rlsmooth/IdentityMasked-v0"
    """The environment's id."""


def main(args: Args) -> Path:
    """Train, or resume training, and return the run's folder.

    Raises:
        ImportError: sb3-contrib is not installed.
        ValueError: an argument is wrong, or names something that is not there or can't be written to.
    """
    args = resumed(args, "maskable-ppo")
    # Imported here: options can be listed, and a wrong one reported, without waiting for torch.
    from rlsmooth.agents import SmoothedMaskablePPO
    from rlsmooth.scripts.on_policy import train

    return train("maskable-ppo", SmoothedMaskablePPO, args)


if __name__ == "__main__":
    sys.exit(run_command("maskable-ppo", Args, main))
