"""Train behaviour cloning with smoothed targets, evaluate it, and write agent, report and logs.

rlsmooth bc --env CartPole-v1 --seed 0
rlsmooth bc --env CartPole-v1 --smoothing lin_0.2 --n-episodes 4 --action-noise 0.2
rlsmooth bc --env Pendulum-v1 --demonstrations mixed.npz --weights advantage --temperature 0.5
rlsmooth bc --resume logs/bc/CartPole-v1_1
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from rlsmooth.checks import check_positive_int
from rlsmooth.scripts.arguments import (
    CloningArgs,
    ProcessArgs,
    RunArgs,
    environment_settings,
    make_smoothing,
    number_of,
    number_or_word,
    read_demonstrations,
    resumed,
    size_words,
)
from rlsmooth.scripts.command import run_command

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

    from rlsmooth.agents import BC, AdvantageWeights
    from rlsmooth.data import Demonstrations
    from rlsmooth.scripts.training_run import TrainingRun

alias = tyro.conf.arg

ENOUGH_EPISODES = 10  # from here on a tenth of them is held out by default
LOG_LINES = 50  # at least, so that a short run has a curve too


@dataclasses.dataclass(frozen=True)
class Args(RunArgs, ProcessArgs, CloningArgs):
    """Train behaviour cloning on demonstrations, and evaluate it in the environment."""

    action_noise: float = 0.0
    """Replace each demonstrated action by another one with this probability, for studies."""
    validation_fraction: float | None = None
    """The share of the episodes to hold out. Default: a tenth, or none where there are fewer than ten."""
    gradient_accumulation: int = 1
    """How many batches are in an update."""
    weights: Literal["advantage", "positive", "top"] | None = None
    """Weigh transitions by rewards: by exp(advantage), or 1 where it is above 0, or 1 for a share of the best."""
    temperature: float = 1.0
    """For --weights advantage, in units of the advantages' spread: the lower, the more the best transitions count."""
    cap: float | None = 20.0
    """For --weights advantage: the exponential is at most this."""
    share: float = 0.5
    """For --weights top: the share of the transitions that is kept."""
    values: Literal["critic", "returns"] = "critic"
    """What --weights compares returns with: what a critic expects of the state, or the mean return of the episodes."""
    gamma: float = 0.99
    """The discount of the returns that --weights compares."""
    epochs: int = 10
    """How often to go through the demonstrations."""
    n_timesteps: Annotated[int | None, alias(aliases=["-n"])] = None
    """Train on so many transitions in all, in place of --epochs; rounded up to whole updates."""
    shuffle: Literal["full", "blocks"] | None = None
    """Shuffle all transitions, or a pool of shards at a time. Default: in blocks from half of the memory on."""
    early_stopping_patience: int | None = None
    """Stop after so many epochs without a lower validation loss, and keep the best parameters."""
    eval_freq: int = 25_000
    """Evaluate first, each time that so many transitions have been trained on, and at the end; -1: only at the end."""
    n_envs: Annotated[int, alias(aliases=["--n-eval-envs"])] = 20
    """How many environments to evaluate in."""
    checkpoint_freq: Annotated[int, alias(aliases=["--save-freq"])] = 50_000
    """Write a checkpoint each time that so many transitions have been trained on; -1: none."""
    seed: int = 0
    """Decides the choice of episodes, the initial weights, the order of the data and the evaluations."""


def main(args: Args) -> Path:
    """Train, or resume training, and return the run's folder; raise ValueError for an argument that can't be used."""
    args = resumed(args, "bc")
    # Imported here: options can be listed, and a wrong one reported, without waiting for torch.
    from rlsmooth.scripts.environment import limit_threads
    from rlsmooth.scripts.training_run import TrainingRun

    limit_threads(args.num_threads)
    check_length(args)
    eval_env = evaluation_envs(args)
    training, validation = load_data(args)
    held_out = "none" if validation is None else size_words(validation)
    print(f"Transitions to train on: {size_words(training)}; held out: {held_out}")
    with TrainingRun("bc", args, args.env) as run:
        agent = make_agent(args, run.checkpoints, training, validation, eval_env)
        start = agent.num_timesteps
        if agent.shuffle == "blocks":
            print("Shuffled in blocks, so that the disk is read about once an epoch; sorted data need --shuffle full")
        agent.set_logger(run.logger(start or None))
        run.begin(
            f"Training on {agent.device.type} by {agent.engine}",
            f"batch {start}" if start else "",
            resume_from="checkpoint" if args.checkpoint_freq > 0 else "",
        )
        if start == 0 and args.eval_freq > 0:
            for name, value in agent.evaluate().items():
                agent.logger.record(f"eval/{name}", value)
            agent.logger.dump(0)
        total = total_batches(args, agent)
        agent.learn(total_batches=total, log_interval=max(1, min(500, total // LOG_LINES)), progress_bar=run.shows_bar)
        agent.save(run.folder / "agent.zip")
        eval_env.close()
        return run.finish("Agent, report and logs", **results(run, agent))


def evaluation_envs(args: Args) -> VecEnv:
    """The environments to evaluate in."""
    from rlsmooth.scripts.environment import evaluation_vectorization, make_envs

    n_envs = min(check_positive_int("n_envs", args.n_envs), check_positive_int("eval_episodes", args.eval_episodes))
    vectorization = evaluation_vectorization(args.vectorization)
    return make_envs(environment_settings(args, evaluation=True), n_envs, args.seed, vectorization=vectorization)


def load_data(args: Args) -> tuple[Demonstrations, Demonstrations | None]:
    """Demonstrations to train on, and those held out.

    Raises:
        ValueError: there are none, or not as many as asked for.
    """
    demonstrations = read_demonstrations(args, args.seed)
    if args.action_noise != 0:
        demonstrations = demonstrations.with_action_noise(args.action_noise, args.seed)
    fraction = args.validation_fraction
    if fraction is None:
        fraction = 0.1 if demonstrations.num_episodes >= ENOUGH_EPISODES else 0.0
    return (demonstrations, None) if fraction == 0 else demonstrations.split(fraction, args.seed)


def make_agent(
    args: Args,
    checkpoints: Path | None,
    training: Demonstrations,
    validation: Demonstrations | None,
    eval_env: VecEnv | None,
) -> BC:
    """A new agent, or that of the run's last checkpoint; without a folder of `checkpoints` it writes none."""
    from rlsmooth.agents import BC
    from rlsmooth.scripts.environment import check_device, cloning_engine, policy_alias
    from rlsmooth.scripts.training_run import saved_checkpoints

    device = check_device(args.device)
    saved = saved_checkpoints(args)
    if saved is not None:
        return BC.resume(saved, eval_env, training, validation=validation, eval_env=eval_env, device=device)
    policy = args.policy or policy_alias(training.observation_space)
    return BC(
        policy,
        eval_env,
        training,
        smoothing=make_smoothing("smoothing", args.smoothing, args.reference, args.spread),
        action_bins=args.action_bins,
        kl_coef=args.kl_coef,
        learning_rate=number_or_word(args.learning_rate),
        batch_size=args.batch_size,
        gradient_accumulation=args.gradient_accumulation,
        max_grad_norm=args.max_grad_norm,
        l2_coef=args.l2_coef,
        validation=validation,
        early_stopping_patience=args.early_stopping_patience,
        policy_kwargs={"net_arch": [check_positive_int("net_arch", size) for size in args.net_arch]},
        engine=cloning_engine(args, policy, device),
        seed=args.seed,
        device=device,
        checkpoint_folder=None if args.checkpoint_freq < 0 else checkpoints,
        checkpoint_every=1000 if args.checkpoint_freq < 0 else batches("checkpoint_freq", args.checkpoint_freq, args),
        eval_env=eval_env,
        eval_every=None if args.eval_freq < 0 else batches("eval_freq", args.eval_freq, args),
        n_eval_episodes=args.eval_episodes,
        shuffle=args.shuffle,
        weights=make_weights(args),
    )


def make_weights(args: Args) -> AdvantageWeights | None:
    """The weights that the options describe.

    Raises:
        ValueError: one can't be used, or is for another form of weights, or for weights where there are none.
    """
    from rlsmooth.agents import AdvantageWeights

    given = {name: getattr(args, name) for name in ("temperature", "cap", "share", "values", "gamma")}
    if args.weights is not None:
        return AdvantageWeights(args.weights, **given)
    none = AdvantageWeights()
    for name, value in given.items():
        if value != getattr(none, name):
            raise ValueError(f"{name}={value!r} is for --weights: choose advantage, positive or top, or leave it out.")
    return None


def check_length(args: Args) -> None:
    """Raise ValueError unless `--epochs` and `--n-timesteps` can be trained for."""
    check_positive_int("epochs", args.epochs)
    if args.n_timesteps is not None:
        batches("n_timesteps", args.n_timesteps, args)


def total_batches(args: Args, agent: BC) -> int:
    """How many updates the options ask for."""
    if args.n_timesteps is not None:
        return batches("n_timesteps", args.n_timesteps, args)
    return args.epochs * agent.batches_per_epoch


def batches(name: str, transitions: int, args: Args) -> int:
    """How many updates see `transitions` transitions, rounded up."""
    each = check_positive_int("batch_size", args.batch_size)
    each *= check_positive_int("gradient_accumulation", args.gradient_accumulation)
    return math.ceil(check_positive_int(name, transitions) / each)


def results(run: TrainingRun, agent: BC) -> dict[str, Any]:
    """The entries of the report: what was logged, and measures on the held-out or else the training data."""
    from rlsmooth.agents.cloning.training_data import target_matrices
    from rlsmooth.agents.spaces import start_of
    from rlsmooth.scripts.measure import bins_to_json, measure

    curves = run.curves()
    held_out = agent.validation
    assert agent.demonstrations is not None
    measured = agent.demonstrations if held_out is None else held_out
    kind = "training episode" if held_out is None else "held-out episode"
    summary, bins = measure(agent, measured)
    summary |= {name.removeprefix("eval/"): values[-1] for name, (_, values) in curves.items() if name[:5] == "eval/"}
    if "bc/samples_per_second" in curves:
        summary["samples_per_second"] = statistics.median(curves["bc/samples_per_second"][1])
    matrices = target_matrices(agent.head, agent.smoothings)
    if start := start_of(agent.policy.action_space):
        names = ["first_action"] if len(start) == 1 else [f"first_action_dim{place}" for place in range(len(start))]
        summary |= dict(zip(names, map(float, start), strict=True))
    if agent.demonstrations.rewards is not None:
        summary["demonstrated_return"] = float(agent.demonstrations.episode_returns().mean())
    if agent.weighed is not None:
        summary["effective_share"] = agent.weighed.effective_share
        if agent.weighed.explained_variance is not None:
            summary["explained_variance"] = agent.weighed.explained_variance
    return {
        "curves": curves,
        "summary": summary,
        "data": {
            name: size_words(part)
            for name, part in (("training", agent.demonstrations), ("held out", held_out))
            if part
        }
        | ({"shuffled": "in blocks"} if agent.shuffle == "blocks" else {}),
        "measured_on": f"the {number_of(measured.num_episodes, kind)} ({number_of(len(measured), 'transition')})",
        "reliability": None if bins is None else bins_to_json(bins),
        "target_matrices": {name: matrix.tolist() for name, matrix in matrices.items()},
    }


if __name__ == "__main__":
    sys.exit(run_command("bc", Args, main))
