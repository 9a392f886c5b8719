"""What `rlsmooth bc` does: data in, a trained agent, its logs and its report out."""

from __future__ import annotations

import dataclasses
import math
import shlex
import shutil
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from stable_baselines3.common.logger import HumanOutputFormat, KVWriter, Logger, TensorBoardOutputFormat
from stable_baselines3.common.vec_env import VecEnv

from rlsmooth.agents import BC
from rlsmooth.agents.cloning.training_data import target_matrices
from rlsmooth.checks import check_positive_int, check_writable_folder
from rlsmooth.data import Demonstrations, load_demonstrations
from rlsmooth.scripts.drawing import save_figure
from rlsmooth.scripts.environment import check_device, default_policy, limit_threads, make_envs
from rlsmooth.scripts.figures import report_figure
from rlsmooth.scripts.measure import bins_to_json, measure
from rlsmooth.scripts.metrics_file import MetricsFile, read_metrics
from rlsmooth.scripts.report import Report, save_report
from rlsmooth.scripts.results import print_results
from rlsmooth.scripts.run_folder import new_run_folder, plain, write_settings
from rlsmooth.targets import Smoothing
from rlsmooth.training import checkpoint_steps

if TYPE_CHECKING:
    from rlsmooth.scripts.bc import Args
    from rlsmooth.scripts.bco import Args as BCOArgs
    from rlsmooth.scripts.dagger import Args as DAggerArgs

__all__ = ["make_logger", "name_of_demonstrations", "number_or_word", "train"]

SHIPPED = {"CartPole-v1": "cartpole-v1"}
ENOUGH_EPISODES = 10  # from here on a tenth of them is held out by default
LOG_LINES = 50  # at least, so that a short run has a curve too


def train(args: Args) -> Path:
    """Train, or go on with training, and return the run's folder; see `scripts/bc.py`."""
    limit_threads(args.num_threads)
    epochs = check_positive_int("epochs", args.epochs)
    num_batches = None if args.n_timesteps is None else batches("n_timesteps", args.n_timesteps, args)
    n_envs = min(check_positive_int("n_envs", args.n_envs), check_positive_int("eval_episodes", args.eval_episodes))
    eval_env = make_envs(args.env, n_envs, args.seed)
    training, validation = load_data(args)
    held_out = "none" if validation is None else _size(validation)
    print(f"Transitions to train on: {_size(training)}; held out: {held_out}")
    folder = args.resume or new_run_folder(args.log_folder, "bc", args.env)
    try:
        agent = make_agent(args, folder, training, validation, eval_env)
        logger = make_logger(args, folder, agent.num_timesteps)
    except BaseException:
        if args.resume is None:
            shutil.rmtree(folder)  # made a moment ago, and nobody's work is in it
        raise
    agent.set_logger(logger)
    if args.resume is None:
        write_settings(folder, "bc", args)
    going_on = f", from batch {agent.num_timesteps}" if agent.num_timesteps else ""
    print(f"Training on {agent.device.type} in {folder}{going_on}", flush=True)

    bar = args.progress or sys.stderr.isatty()
    total = epochs * agent.batches_per_epoch if num_batches is None else num_batches
    if agent.num_timesteps == 0 and args.eval_freq > 0:
        for name, value in agent.evaluate().items():
            logger.record(f"eval/{name}", value)
        logger.dump(0)
    try:
        agent.learn(total_batches=total, log_interval=max(1, min(500, total // LOG_LINES)), progress_bar=bar)
    except KeyboardInterrupt:
        if args.checkpoint_freq > 0:
            print(f"\nTo go on from the last checkpoint: rlsmooth bc --resume {shlex.quote(str(folder))}")
        raise
    logger.close()
    agent.save(folder / "agent.zip")
    report = make_report(args, folder, agent)
    save_report(folder, report)
    save_figure(folder / "report.png", report_figure(report))
    print_results(report)
    events = shlex.quote(str(args.tensorboard_log or folder))
    print(f"Agent, report and logs are in {folder}. Watch them: tensorboard --logdir {events}")
    eval_env.close()
    return folder


def load_data(args: Args) -> tuple[Demonstrations, Demonstrations | None]:
    """Demonstrations to train on, and those held out.

    Raises:
        ValueError: there are none, or not as many as asked for.
    """
    demonstrations = load_demonstrations(name_of_demonstrations(args.env, args.demonstrations))
    if args.n_episodes is not None:
        demonstrations = demonstrations.sample_episodes(args.n_episodes, args.seed)
    if args.action_noise != 0:
        demonstrations = demonstrations.with_action_noise(args.action_noise, args.seed)
    fraction = args.validation_fraction
    if fraction is None:
        fraction = 0.1 if demonstrations.num_episodes >= ENOUGH_EPISODES else 0.0
    return (demonstrations, None) if fraction == 0 else demonstrations.split(fraction, args.seed)


def name_of_demonstrations(env: str, given: str | None) -> str:
    """`given`, or the set of the package for the environment.

    Raises:
        ValueError: neither is there.
    """
    name = SHIPPED.get(env) if given is None else given
    if name is None:
        raise ValueError(
            f"no demonstrations of env={env!r} ship with the package: name some by --demonstrations "
            "(an .npz or a folder; `rlsmooth record` makes one)."
        )
    return name


def make_agent(
    args: Args, folder: Path, training: Demonstrations, validation: Demonstrations | None, eval_env: VecEnv
) -> BC:
    """A new agent, or that of the run's last checkpoint."""
    checkpoints = folder / "checkpoints"
    device = check_device(args.device)
    if args.resume is not None and checkpoints.is_dir() and checkpoint_steps(checkpoints):
        return BC.resume(checkpoints, eval_env, training, validation=validation, eval_env=eval_env, device=device)
    return BC(
        args.policy or default_policy(training),
        eval_env,
        training,
        smoothing=make_smoothing(args),
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
        seed=args.seed,
        device=device,
        checkpoint_folder=None if args.checkpoint_freq < 0 else checkpoints,
        checkpoint_every=1000 if args.checkpoint_freq < 0 else batches("checkpoint_freq", args.checkpoint_freq, args),
        eval_env=eval_env,
        eval_every=None if args.eval_freq < 0 else batches("eval_freq", args.eval_freq, args),
        n_eval_episodes=args.eval_episodes,
    )


def batches(name: str, transitions: int, args: Args) -> int:
    """How many updates see `transitions` transitions, rounded up."""
    rows = check_positive_int("batch_size", args.batch_size)
    rows *= check_positive_int("gradient_accumulation", args.gradient_accumulation)
    return math.ceil(check_positive_int(name, transitions) / rows)


def make_smoothing(args: Args) -> Smoothing:
    """The recipe that three of the arguments describe."""
    try:
        return Smoothing(number_or_word(args.smoothing), args.reference, args.spread)
    except ValueError as error:
        raise ValueError(f"smoothing={args.smoothing!r} can't be used: {error}") from error


def number_or_word(value: str) -> float | str:
    """A number if it is one, else the word, such as `lin_0.1`, for the library to check."""
    try:
        return float(value)
    except ValueError:
        return value


def make_logger(args: Args | BCOArgs | DAggerArgs, folder: Path, last_step: int) -> Logger:
    """SB3's logger, to `metrics.csv` and TensorBoard."""
    events = folder
    if args.tensorboard_log is not None:
        events = check_writable_folder("tensorboard_log", args.tensorboard_log / folder.name)
    outputs: list[KVWriter] = [
        MetricsFile(folder / "metrics.csv", last_step or None),
        TensorBoardOutputFormat(str(events)),
    ]
    if args.verbose:
        outputs.append(HumanOutputFormat(sys.stdout))
    return Logger(str(folder), outputs)


def make_report(args: Args, folder: Path, agent: BC) -> Report:
    """The run in numbers: curves from `metrics.csv`, the rest measured on the held-out or else the training data."""
    curves = read_metrics(folder / "metrics.csv")
    held_out = agent.validation
    assert agent.demonstrations is not None
    measured = agent.demonstrations if held_out is None else held_out
    summary, bins = measure(agent, measured)
    summary |= {name.removeprefix("eval/"): values[-1] for name, (_, values) in curves.items() if name[:5] == "eval/"}
    if "bc/samples_per_second" in curves:
        summary["samples_per_second"] = statistics.median(curves["bc/samples_per_second"][1])
    if agent.demonstrations.rewards is not None:
        summary["demonstrated_return"] = float(agent.demonstrations.episode_returns().mean())
    return Report(
        name=folder.name,
        settings=plain(dataclasses.asdict(args)),
        curves=curves,
        summary=summary,
        data={name: _size(part) for name, part in (("training", agent.demonstrations), ("held out", held_out)) if part},
        measured_on=f"the {measured.num_episodes} {'training' if held_out is None else 'held-out'} episodes",
        reliability=None if bins is None else bins_to_json(bins),
        target_matrices={
            name: matrix.tolist() for name, matrix in target_matrices(agent.head, agent.smoothings).items()
        },
    )


def _size(demonstrations: Demonstrations) -> str:
    return f"{len(demonstrations):,} in {demonstrations.num_episodes} episodes"
