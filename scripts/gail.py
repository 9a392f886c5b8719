"""Imitate by a discriminator, with one-sided smoothing or without: generative adversarial imitation learning (GAIL).

rlsmooth gail --env CartPole-v1 --n-episodes 4 --real-target 0.9
rlsmooth gail --env Pendulum-v1 --demonstrations pendulum.npz --algo sac
rlsmooth gail --resume logs/gail/CartPole-v1_1
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Literal

from rlsmooth.scripts.arguments import AdversarialArgs, resumed
from rlsmooth.scripts.command import run_command


@dataclasses.dataclass(frozen=True)
class Args(AdversarialArgs):
    """Train GAIL on demonstrations, and evaluate its generator in the environment."""

    reward_form: Literal["minus_log_one_minus_d", "log_d", "logit"] = "minus_log_one_minus_d"
    """What the generator is paid, of the discriminator's D: -log(1 - D), log D, or both, which is D's logit."""
    absorbing_reward: Literal["counted", "learned"] = "counted"
    """How D of the absorbing state behind terminal ones is known: by counting, or by the network, which learns it."""


def main(args: Args) -> Path:
    """Train, or resume training, and return the run's folder.

    Raises:
        ValueError: an argument is wrong, or names something that is not there or can't be written to.
    """
    args = resumed(args, "gail")
    # Imported here: options can be listed, and a wrong one reported, without waiting for torch.
    from rlsmooth.agents import GAIL
    from rlsmooth.scripts.adversarial import score_net, train

    given = {"reward_form": args.reward_form, "absorbing_reward": args.absorbing_reward}
    return train("gail", GAIL, args, lambda generator: score_net(args, generator), **given)


if __name__ == "__main__":
    sys.exit(run_command("gail", Args, main))
