"""The arguments that `rlsmooth ppo`, `a2c`, `maskable-ppo` and `recurrent-ppo` share. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

__all__ = ["PATHS", "TUPLES", "OnPolicyArgs"]

alias = tyro.conf.arg
Reference = Literal["uniform", "adjacent", "triangular", "binomial", "poisson", "beta", "exponential"]


@dataclasses.dataclass(frozen=True)
class OnPolicyArgs:
    """What every on-policy command takes."""

    env: str = "CartPole-v1"
    """The environment's id."""
    n_timesteps: Annotated[int | None, alias(aliases=["-n"])] = None
    """Train on so many steps, in all environments together. Default: the hyperparameters' number."""
    n_envs: int | None = None
    """How many environments to train in. Default: the hyperparameters' number."""
    vec_env: Literal["dummy", "subproc"] = "dummy"
    """Step the environments one after the other in this process, or each in a process of its own."""
    conf_file: Annotated[Path | None, alias(aliases=["-conf"])] = None
    """A YAML file of hyperparameters by environment, in RL Zoo's form, in place of the package's own."""
    hyperparams: Annotated[tuple[str, ...], alias(aliases=["-params"])] = ()
    """Change hyperparameters, as key=value: n_steps=64 learning_rate=lin_1e-3."""

    smoothing: str | None = None
    """The coefficient of KL(reference‖policy) in the loss: a number, or lin_0.1 for one that falls to 0.
    Default: 0, or with --from-bc lin_0.1. With a target entropy: the coefficient to begin with."""
    reference: Reference = "uniform"
    """What KL is measured from: all actions alike, or the neighbours of the likeliest action by an ordinal scheme."""
    ent_coef: float | None = None
    """SB3's coefficient of the entropy in the loss. Default: the hyperparameters'."""
    target_entropy_frac: float | None = None
    """Find the coefficient so that the entropy does not fall below this share of the largest possible, log n."""
    target_entropy_nats: float | None = None
    """Find the coefficient so that the entropy does not fall below so many nats."""
    exploration_floor: str | None = None
    """Act with this probability by the reference instead of the policy: a number, or lin_0.1. Default: 0."""

    from_bc: Path | None = None
    """Begin with the policy of this agent.zip of `rlsmooth bc`, which is then also the reference of KL."""
    value_warmup_steps: int | None = None
    """With --from-bc: train only the value function for so many steps first.
    Default: 4,096, but no more than a tenth of the training."""

    seed: int = 0
    """Decides the initial weights, the environments, the sampled actions and the evaluations."""
    device: str = "auto"
    """Where to train: auto, cpu, cuda."""
    num_threads: int = 1
    """How many threads torch may use: small networks are fastest with one; -1: as many as torch would."""
    eval_freq: int = 25_000
    """Evaluate first, each time that so many steps have been trained on, and at the end; -1: only at the end."""
    eval_episodes: int = 20
    """How many episodes to evaluate deterministically, and how many sampled."""
    n_eval_envs: int = 20
    """How many environments to evaluate in."""
    save_freq: int = 50_000
    """Write a checkpoint to resume from each time that so many steps have been trained on; -1: none."""

    log_folder: Annotated[Path, alias(aliases=["-f"])] = Path("logs")
    """The run goes to <log folder>/<command>/<env>_<n>/."""
    tensorboard_log: Annotated[Path | None, alias(aliases=["-tb"])] = None
    """Where TensorBoard's files go, as <tensorboard log>/<env>_<n>/. Default: to the run's folder."""
    resume: Path | None = None
    """Go on with a run that was killed, given its folder; its arguments are those it began with."""
    progress: Annotated[bool, alias(aliases=["-P"])] = False
    """Show a progress bar; on a terminal there is one anyway."""
    verbose: int = 0
    """1 prints what is logged."""


TUPLES = ("hyperparams",)
PATHS = ("conf_file", "from_bc", "log_folder", "tensorboard_log", "resume")
"""What `resumed` must know of them: what JSON holds as lists, and as text."""
