"""Clone from observation: guess the demonstrated actions, clone them with smoothing, act, and guess again.

rlsmooth bco --env CartPole-v1 --n-episodes 4 --seed 0
rlsmooth bco --env Acrobot-v1 --demonstrations acrobot.npz --pseudo-labels soft
rlsmooth bco --resume logs/bco/CartPole-v1_1
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.resuming import resumed

alias = tyro.conf.arg
Reference = Literal["uniform", "adjacent", "triangular", "binomial", "poisson", "beta", "exponential"]


@dataclasses.dataclass(frozen=True)
class Args:
    """Train behavioural cloning from observation (BCO), and evaluate it in the environment after each round."""

    env: str = "CartPole-v1"
    """The environment's id."""
    demonstrations: str | None = None
    """An .npz or a folder, with or without actions, or a set of the package: cartpole-v1 (the default for CartPole-v1),
    cartpole-v1-noisy. Actions only tell how right the guesses are."""
    n_episodes: int | None = None
    """Use only so many of the demonstrations' episodes, drawn by the seed."""

    rounds: int = 5
    """How often to act, learn what actions do, label the demonstrations and clone them."""
    transitions_per_round: int = 2000
    """How many transitions to make in each round, in all environments together."""
    pseudo_labels: Literal["hard", "soft"] = "hard"
    """Clone the most probable action, or the probabilities of all (Discrete actions)."""
    smoothing: str = "0.1"
    """How much of the target leaves the guessed action: a number, or lin_0.1 for one that falls to 0 in each round."""
    reference: Reference = "uniform"
    """Where it goes: to all actions alike, or to neighbours of the guessed one by an ordinal scheme."""
    spread: Literal["all", "others"] = "all"
    """Whether the uniform reference includes the guessed action."""
    action_bins: int | None = None
    """Continuous actions only: cut each dimension into so many bins and clone those, so that --reference applies."""
    kl_coef: float = 0.0
    """The coefficient of KL(uniform‖policy), added to the loss."""

    policy: str | None = None
    """SB3's alias. Default: MlpPolicy, CnnPolicy for images, MultiInputPolicy for Dicts; Maskable... with masks."""
    net_arch: tuple[int, ...] = (64, 64)
    """The sizes of the hidden layers of the policy, and of the model of what actions do."""
    learning_rate: str = "1e-3"
    """The policy's step size: a number, or lin_1e-3 for one that falls to 0 in each round."""
    batch_size: int = 64
    """How many transitions are in a batch."""
    max_grad_norm: float | None = None
    """Clip the gradient's norm to this."""
    l2_coef: float = 0.0
    """The coefficient of half the sum of squared parameters, added to the loss."""
    epochs: int = 10
    """How often each round goes through the demonstrations."""
    inverse_smoothing: str = "0"
    """The smoothing of the model of what actions do: a number, or lin_0.1."""
    inverse_learning_rate: str = "1e-3"
    """Its step size: a number, or lin_1e-3."""
    inverse_epochs: int = 50
    """How often at most it goes through the transitions; it stops when held-out ones get no better."""

    seed: int = 0
    """Decides the choice of episodes, the initial weights, the order of the data, what is done and the evaluations."""
    device: str = "auto"
    """Where to train: auto, cpu, cuda."""
    num_threads: int = 1
    """How many threads torch may use: small networks are fastest with one; -1: as many as torch would."""
    eval_episodes: int = 20
    """How many episodes to evaluate deterministically, and how many sampled, after each round."""
    n_envs: int = 8
    """How many environments to act in, and at most to evaluate in."""

    log_folder: Annotated[Path, alias(aliases=["-f"])] = Path("logs")
    """The run goes to <log folder>/bco/<env>_<n>/."""
    tensorboard_log: Annotated[Path | None, alias(aliases=["-tb"])] = None
    """Where TensorBoard's files go, as <tensorboard log>/<env>_<n>/. Default: to the run's folder."""
    resume: Path | None = None
    """Go on with a run that was killed, given its folder; its arguments are those it began with."""
    progress: Annotated[bool, alias(aliases=["-P"])] = False
    """Show a progress bar; on a terminal there is one anyway."""
    verbose: int = 0
    """1 prints what is logged."""


def main(args: Args) -> Path:
    """Train, or go on with training, and return the run's folder.

    Raises:
        ValueError: an argument is wrong, or names something that is not there or can't be written to.
    """
    # Imported here: the arguments can be listed and a wrong one told without waiting for torch.
    from rlsmooth.scripts.bco_training import train

    return train(resumed(args, "bco", tuples=("net_arch",), paths=("log_folder", "tensorboard_log", "resume")))


if __name__ == "__main__":
    sys.exit(run_command("bco", Args, main))
