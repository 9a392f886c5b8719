"""Clone an expert that can be asked, on the states that the clone itself gets into: DAgger with smoothed targets.

rlsmooth dagger --env CartPole-v1 --expert logs/ppo/CartPole-v1_1/best_agent.zip
rlsmooth dagger --env CartPole-v1 --train-expert 100000 --beta-schedule 0.7
rlsmooth dagger --resume logs/dagger/CartPole-v1_1
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
    """Train DAgger on what an expert says, and evaluate it in the environment after each round."""

    env: str = "CartPole-v1"
    """The environment's id."""
    expert: Annotated[Path | None, alias(aliases=["-i"])] = None
    """The expert's agent.zip or best_agent.zip, or the folder of the run that wrote it (then agent.zip)."""
    train_expert: int | None = None
    """Without --expert: train one with `rlsmooth ppo` for so many steps first. Default: its hyperparameters' number."""
    expert_targets: Literal["actions", "probabilities"] = "actions"
    """Clone what the expert does, or the probabilities of all its actions (Discrete actions)."""
    demonstrations: str | None = None
    """Begin with these, which the expert gave: an .npz, a folder, or a set of the package. Default: with none."""
    n_episodes: int | None = None
    """Use only so many of the demonstrations' episodes, drawn by the seed."""

    n_timesteps: Annotated[int, alias(aliases=["-n"])] = 30_000
    """Make whole rounds until so many steps have been made, in all environments together."""
    beta_schedule: str = "15"
    """How often the expert acts: a whole number n: from 1 down to 0 in n rounds; 0.7: 0.7 to the power of the round."""
    round_min_episodes: int = 3
    """A round ends when it has so many episodes, and the steps of --round-min-timesteps."""
    round_min_timesteps: int = 500
    """See --round-min-episodes."""
    epochs: int = 4
    """How often each round goes through all transitions so far."""

    smoothing: str = "0.1"
    """How much of the target leaves the expert's action: a number, or lin_0.1 for one that falls to 0 in each round."""
    reference: Reference = "uniform"
    """Where it goes: to all actions alike, or to neighbours of the expert's one by an ordinal scheme."""
    spread: Literal["all", "others"] = "all"
    """Whether the uniform reference includes the expert's action."""
    action_bins: int | None = None
    """Continuous actions only: cut each dimension into so many bins and clone those, so that --reference applies."""
    kl_coef: float = 0.0
    """The coefficient of KL(uniform‖policy), added to the loss."""

    policy: str | None = None
    """SB3's alias. Default: MlpPolicy, CnnPolicy for images, MultiInputPolicy for Dicts; Maskable... with masks."""
    net_arch: tuple[int, ...] = (64, 64)
    """The sizes of the policy's hidden layers."""
    learning_rate: str = "1e-3"
    """The step size: a number, or lin_1e-3 for one that falls to 0 in each round."""
    batch_size: int = 32
    """How many transitions are in a batch."""
    max_grad_norm: float | None = None
    """Clip the gradient's norm to this."""
    l2_coef: float = 0.0
    """The coefficient of half the sum of squared parameters, added to the loss."""

    seed: int = 0
    """Decides the initial weights, the order of the data, what is done, the evaluations, and a new expert."""
    device: str = "auto"
    """Where to train: auto, cpu, cuda."""
    num_threads: int = 1
    """How many threads torch may use: small networks are fastest with one; -1: as many as torch would."""
    eval_episodes: int = 20
    """How many episodes to evaluate deterministically, and how many sampled, after each round."""
    n_envs: int = 4
    """How many environments to act in; a round ends when each one's episode has."""
    n_eval_envs: int = 20
    """How many environments to evaluate in."""

    log_folder: Annotated[Path, alias(aliases=["-f"])] = Path("logs")
    """The run goes to <log folder>/dagger/<env>_<n>/."""
    tensorboard_log: Annotated[Path | None, alias(aliases=["-tb"])] = None
    """Where TensorBoard's files go, as <tensorboard log>/<env>_<n>/. Default: to the run's folder."""
    resume: Path | None = None
    """Go on with a run that was killed, given its folder; its arguments are those it began with."""
    progress: Annotated[bool, alias(aliases=["-P"])] = False
    """Show a progress bar; on a terminal there is one anyway."""
    verbose: int = 0
    """1 prints what is logged."""


PATHS = ("expert", "log_folder", "tensorboard_log", "resume")


def main(args: Args) -> Path:
    """Train, or go on with training, and return the run's folder.

    Raises:
        ValueError: an argument is wrong, or names something that is not there or can't be written to.
    """
    # Imported here: the arguments can be listed and a wrong one told without waiting for torch.
    from rlsmooth.scripts.dagger_training import train

    return train(resumed(args, "dagger", tuples=("net_arch",), paths=PATHS))


if __name__ == "__main__":
    sys.exit(run_command("dagger", Args, main))
