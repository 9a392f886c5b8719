"""The arguments that `rlsmooth gail` and `airl` share. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from typing import Literal

from rlsmooth.scripts import on_policy_arguments
from rlsmooth.scripts.on_policy_arguments import OnPolicyArgs

__all__ = ["PATHS", "TUPLES", "AIRLArgs", "AdversarialArgs", "GAILArgs"]

Algorithm = Literal["ppo", "a2c", "maskable-ppo", "trpo", "sac", "dqn"]


@dataclasses.dataclass(frozen=True)
class AdversarialArgs(OnPolicyArgs):
    """What both adversarial commands take: those of the generator as of `rlsmooth ppo`, and the discriminator's."""

    algo: Algorithm = "ppo"
    """The generator. ppo, a2c and maskable-ppo can be smoothed, which is off unless asked for. AIRL can't use dqn."""
    demonstrations: str | None = None
    """An .npz, a folder, or a set of the package: cartpole-v1 (the default for CartPole-v1), cartpole-v1-noisy."""
    n_episodes: int | None = None
    """Use only so many of the demonstrations' episodes, drawn by the seed."""

    real_target: float = 1.0
    """What the discriminator says of the expert's transitions is trained towards this: 0.9 is one-sided smoothing."""
    fake_target: float = 0.0
    """Likewise of the generator's. Above 0 it takes the generator's gradient away where the expert rarely is."""
    correct_offset: bool = True
    """Take off what smoothed targets add to each step's reward."""
    terminal_states: Literal["absorbing", "as_is"] = "absorbing"
    """Whether an episode that ended goes on in a state of its own, which is judged too, or is worth nothing more."""
    horizon: int | None = None
    """How many steps an episode would have had, for absorbing. Default: the environment's limit."""
    demo_batch_size: int = 256
    """How many transitions of the expert are in a batch of the discriminator, and how many of the generator."""
    n_disc_updates_per_round: int = 2
    """How often the discriminator is trained after each round of the generator."""
    gen_train_timesteps: int | None = None
    """How many steps the generator makes in a round. Default: a rollout, or 1,024 for sac and dqn."""
    gen_replay_buffer_capacity: int | None = None
    """How many of the generator's latest transitions are drawn from. Default: those of a round."""
    disc_learning_rate: float = 1e-3
    """The discriminator's step size."""
    reward_net_arch: tuple[int, ...] = (32, 32)
    """The sizes of the discriminator's hidden layers."""


@dataclasses.dataclass(frozen=True)
class GAILArgs(AdversarialArgs):
    """What `rlsmooth gail` takes."""

    reward_form: Literal["minus_log_one_minus_d", "log_d", "logit"] = "minus_log_one_minus_d"
    """What the generator is paid, of the discriminator's D: -log(1 - D), log D, or both, which is D's logit."""


@dataclasses.dataclass(frozen=True)
class AIRLArgs(AdversarialArgs):
    """What `rlsmooth airl` takes."""

    potential_net_arch: tuple[int, ...] = (32, 32)
    """The sizes of the hidden layers of the potential, which shapes the reward."""


TUPLES = (*on_policy_arguments.TUPLES, "reward_net_arch")
PATHS = on_policy_arguments.PATHS
"""What `resumed` must know of them: what JSON holds as lists, and as text."""
