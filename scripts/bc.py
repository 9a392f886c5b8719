"""Train behaviour cloning with smoothed targets, evaluate it, and write agent, report and logs.

rlsmooth bc --env CartPole-v1 --seed 0
rlsmooth bc --env CartPole-v1 --smoothing lin_0.2 --n-episodes 4 --action-noise 0.2
rlsmooth bc --resume logs/bc/CartPole-v1_1
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
    """Train behaviour cloning on demonstrations, and evaluate it in the environment."""

    env: str = "CartPole-v1"
    """The environment's id."""
    demonstrations: str | None = None
    """An .npz, a folder, or a set of the package: cartpole-v1 (the default for CartPole-v1), cartpole-v1-noisy."""
    n_episodes: int | None = None
    """Use only so many of the demonstrations' episodes, drawn by the seed."""
    action_noise: float = 0.0
    """Replace each demonstrated action by another one with this probability, for studies."""
    validation_fraction: float | None = None
    """The share of the episodes to hold out. Default: a tenth, or none where there are fewer than ten."""

    smoothing: str = "0.1"
    """How much of the target leaves the demonstrated action: a number, or lin_0.1 for one that falls to 0."""
    reference: Reference = "uniform"
    """Where it goes: to all actions alike, or to neighbours of the demonstrated one by an ordinal scheme."""
    spread: Literal["all", "others"] = "all"
    """Whether the uniform reference includes the demonstrated action."""
    action_bins: int | None = None
    """Continuous actions only: cut each dimension into so many bins and clone those, so that --reference applies."""
    kl_coef: float = 0.0
    """The coefficient of KL(uniform‖policy), added to the loss."""

    policy: str | None = None
    """SB3's alias. Default: MlpPolicy, CnnPolicy for images, MultiInputPolicy for Dicts; Maskable... with masks."""
    net_arch: tuple[int, ...] = (64, 64)
    """The sizes of the policy's hidden layers."""
    learning_rate: str = "1e-3"
    """The step size: a number, or lin_1e-3 for one that falls to 0."""
    batch_size: int = 64
    """How many transitions are in a batch."""
    gradient_accumulation: int = 1
    """How many batches are in an update."""
    max_grad_norm: float | None = None
    """Clip the gradient's norm to this."""
    l2_coef: float = 0.0
    """The coefficient of half the sum of squared parameters, added to the loss."""
    epochs: int = 10
    """How often to go through the demonstrations."""
    n_timesteps: Annotated[int | None, alias(aliases=["-n"])] = None
    """Train on so many transitions in all, in place of --epochs; rounded up to whole updates."""
    early_stopping_patience: int | None = None
    """Stop after so many epochs without a lower validation loss, and keep the best parameters."""

    seed: int = 0
    """Decides the choice of episodes, the initial weights, the order of the data and the evaluations."""
    device: str = "auto"
    """Where to train: auto, cpu, cuda."""
    num_threads: int = 1
    """How many threads torch may use: small networks are fastest with one; -1: as many as torch would."""
    eval_freq: int = 25_000
    """Evaluate first, each time that so many transitions have been trained on, and at the end; -1: only at the end."""
    eval_episodes: int = 20
    """How many episodes to evaluate deterministically, and how many sampled."""
    n_envs: int = 20
    """How many environments to evaluate in."""
    checkpoint_freq: int = 50_000
    """Write a checkpoint each time that so many transitions have been trained on; -1: none."""

    log_folder: Annotated[Path, alias(aliases=["-f"])] = Path("logs")
    """The run goes to <log folder>/bc/<env>_<n>/."""
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
    from rlsmooth.scripts.bc_training import train

    return train(resumed(args, "bc", tuples=("net_arch",), paths=("log_folder", "tensorboard_log", "resume")))


if __name__ == "__main__":
    sys.exit(run_command("bc", Args, main))
