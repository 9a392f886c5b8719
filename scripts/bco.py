"""Clone from observation: label demonstrations without actions by a learnt model, clone them, act, and label again.

rlsmooth bco --env CartPole-v1 --n-episodes 4 --seed 0
rlsmooth bco --env Acrobot-v1 --demonstrations acrobot.npz --pseudo-labels soft
rlsmooth bco --resume logs/bco/CartPole-v1_1
"""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlsmooth.checks import check_positive_int
from rlsmooth.scripts.arguments import (
    CloningArgs,
    ProcessArgs,
    Reference,
    RunArgs,
    demonstrations_name,
    environment_settings,
    make_smoothing,
    number_or_word,
    read_demonstrations,
    resumed,
    size_words,
)
from rlsmooth.scripts.command import run_command

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

    from rlsmooth.agents import BCO
    from rlsmooth.data import Demonstrations, ObservationOnly
    from rlsmooth.scripts.training_run import TrainingRun


@dataclasses.dataclass(frozen=True)
class Args(RunArgs, ProcessArgs, CloningArgs):
    """Train behavioural cloning from observation (BCO), and evaluate it in the environment after each round."""

    demonstrations: str | None = None
    """An .npz or a folder, with or without actions, or a set of the package: cartpole-v1 (the default for CartPole-v1),
    cartpole-v1-noisy. Actions only measure how right the pseudo-labels are."""
    smoothing: str = "0.1"
    """How much of the target leaves the pseudo-label: a number, or lin_0.1 for one that falls to 0 in each round."""
    reference: Reference = "uniform"
    """Where it goes: to all actions alike, or to neighbours of the pseudo-label by an ordinal scheme."""
    spread: Literal["all", "others"] = "all"
    """Whether the uniform reference includes the pseudo-label."""
    net_arch: tuple[int, ...] = (64, 64)
    """The sizes of the hidden layers of the policy, and of the model of what actions do."""
    learning_rate: str = "1e-3"
    """The policy's step size: a number, or lin_1e-3 for one that falls to 0 in each round."""
    eval_episodes: int = 20
    """How many episodes to evaluate deterministically, and how many sampled, after each round."""

    rounds: int = 5
    """How often to act, learn what actions do, label the demonstrations and clone them."""
    transitions_per_round: int = 2000
    """How many transitions to make in each round, in all environments together."""
    pseudo_labels: Literal["hard", "soft"] = "hard"
    """Clone the most probable action, or the probabilities of all (Discrete actions)."""
    epochs: int = 10
    """How often each round goes through the demonstrations."""
    inverse_smoothing: str = "0"
    """The smoothing of the model of what actions do: a number, or lin_0.1."""
    inverse_learning_rate: str = "1e-3"
    """Its step size: a number, or lin_1e-3."""
    inverse_epochs: int = 50
    """How often at most it goes through the transitions; it stops when held-out ones get no better."""
    n_envs: int = 8
    """How many environments to act in, and at most to evaluate in."""
    seed: int = 0
    """Decides the choice of episodes, the initial weights, the order of the data, what is done and the evaluations."""


def main(args: Args) -> Path:
    """Train, or resume training, and return the run's folder; raise ValueError for an argument that can't be used."""
    args = resumed(args, "bco")
    # Imported here: options can be listed, and a wrong one reported, without waiting for torch.
    from rlsmooth.scripts.environment import evaluation_vectorization, limit_threads, make_envs
    from rlsmooth.scripts.training_run import TrainingRun

    limit_threads(args.num_threads)
    n_envs = check_positive_int("n_envs", args.n_envs)
    n_eval_envs = min(n_envs, check_positive_int("eval_episodes", args.eval_episodes))
    env = make_envs(environment_settings(args), n_envs, args.seed, vectorization=args.vectorization)
    vectorization = evaluation_vectorization(args.vectorization)
    settings = environment_settings(args, evaluation=True)
    eval_env = make_envs(settings, n_eval_envs, args.seed, vectorization=vectorization)
    demonstrations = load_data(args)
    print(f"Demonstrated transitions: {size_words(demonstrations)}")
    with TrainingRun("bco", args, args.env) as run:
        agent = make_agent(args, run, demonstrations, env, eval_env)
        agent.set_logger(run.logger(agent.num_timesteps or None))
        start = f"round {agent.round + 1}" if agent.is_resumed else ""
        run.begin(f"Training on {agent.device.type} by {agent.bc.engine}", start)
        agent.learn(progress_bar=run.shows_bar)
        agent.save(run.folder / "agent.zip")
        if agent.inverse_dynamics is not None:  # no checkpoint has it: a run that was all done has written its own
            agent.inverse_dynamics.save(run.folder / "inverse_dynamics.zip")
        env.close()
        eval_env.close()
        return run.finish("Agent, report and logs", **results(run, demonstrations))


def load_data(args: Args) -> Demonstrations | ObservationOnly:
    """The demonstrations to label and clone.

    Raises:
        ValueError: there are none, or not as many as asked for.
    """
    from rlsmooth.data import ObservationOnly
    from rlsmooth.data.files import OBSERVATION_FORMAT, DemonstrationsFileError

    try:
        return read_demonstrations(args, args.seed)
    except DemonstrationsFileError as error:
        if OBSERVATION_FORMAT not in str(error) and "ObservationOnly" not in str(error):
            raise
    observations = ObservationOnly.load(demonstrations_name(args))
    return observations if args.n_episodes is None else observations.sample_episodes(args.n_episodes, args.seed)


def make_agent(
    args: Args, run: TrainingRun, demonstrations: Demonstrations | ObservationOnly, env: VecEnv, eval_env: VecEnv
) -> BCO:
    """A new agent, or that of the run's last checkpoint."""
    from rlsmooth.agents import BCO
    from rlsmooth.schedules import as_schedule
    from rlsmooth.scripts.environment import check_device, cloning_engine, policy_alias
    from rlsmooth.scripts.training_run import saved_checkpoints

    device = check_device(args.device)
    inverse_learning_rate = number_or_word(args.inverse_learning_rate)
    try:
        as_schedule(inverse_learning_rate)
    except ValueError as error:
        raise ValueError(f"inverse_learning_rate can't be used: {error}") from error
    saved = saved_checkpoints(args)
    if saved is not None:
        return BCO.resume(saved, env, demonstrations, eval_env=eval_env, device=device)
    policy = args.policy or policy_alias(demonstrations.observation_space)
    return BCO(
        policy,
        env,
        demonstrations,
        smoothing=make_smoothing("smoothing", args.smoothing, args.reference, args.spread),
        kl_coef=args.kl_coef,
        action_bins=args.action_bins,
        pseudo_labels=args.pseudo_labels,
        n_rounds=args.rounds,
        transitions_per_round=args.transitions_per_round,
        n_epochs=args.epochs,
        learning_rate=number_or_word(args.learning_rate),
        batch_size=args.batch_size,
        max_grad_norm=args.max_grad_norm,
        l2_coef=args.l2_coef,
        policy_kwargs={"net_arch": [check_positive_int("net_arch", size) for size in args.net_arch]},
        inverse_smoothing=make_smoothing("inverse_smoothing", args.inverse_smoothing),
        inverse_epochs=args.inverse_epochs,
        inverse_learning_rate=inverse_learning_rate,
        inverse_net_arch=args.net_arch,
        engine=cloning_engine(args, policy, device),
        seed=args.seed,
        device=device,
        checkpoint_folder=run.checkpoints,
        eval_env=eval_env,
        n_eval_episodes=args.eval_episodes,
    )


def results(run: TrainingRun, demonstrations: Demonstrations | ObservationOnly) -> dict[str, Any]:
    """The entries of the report, from what was logged."""
    from rlsmooth.data import Demonstrations

    curves = run.curves()
    summary = {name.partition("/")[2]: values[-1] for name, (_, values) in curves.items()}
    if isinstance(demonstrations, Demonstrations) and demonstrations.rewards is not None:
        summary["demonstrated_return"] = float(demonstrations.episode_returns().mean())
    return {
        "curves": curves,
        "summary": {name: value for name, value in summary.items() if math.isfinite(value)},
        "watched": size_words(demonstrations),
    }


if __name__ == "__main__":
    sys.exit(run_command("bco", Args, main))
