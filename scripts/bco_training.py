"""What `rlsmooth bco` does: observations in, a trained agent, its logs and its report out."""

from __future__ import annotations

import dataclasses
import math
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.vec_env import VecEnv

from rlsmooth.agents import BCO
from rlsmooth.checks import check_positive_int
from rlsmooth.data import Demonstrations, ObservationOnly, load_demonstrations
from rlsmooth.data.files import OBSERVATION_FORMAT, DemonstrationsFileError
from rlsmooth.schedules import as_schedule
from rlsmooth.scripts.bc_training import make_logger, name_of_demonstrations, number_or_word
from rlsmooth.scripts.bco_figures import bco_figure
from rlsmooth.scripts.bco_report import BCOReport, print_bco_results
from rlsmooth.scripts.drawing import save_figure
from rlsmooth.scripts.environment import check_device, default_policy, limit_threads, make_envs
from rlsmooth.scripts.metrics_file import read_metrics
from rlsmooth.scripts.report_file import save_report_file
from rlsmooth.scripts.run_folder import new_run_folder, plain, write_settings
from rlsmooth.targets import Smoothing
from rlsmooth.training import checkpoint_steps

if TYPE_CHECKING:
    from rlsmooth.scripts.bco import Args

__all__ = ["train"]


def train(args: Args) -> Path:
    """Train, or go on with training, and return the run's folder; see `scripts/bco.py`."""
    limit_threads(args.num_threads)
    n_envs = check_positive_int("n_envs", args.n_envs)
    n_eval_envs = min(n_envs, check_positive_int("eval_episodes", args.eval_episodes))
    env = make_envs(args.env, n_envs, args.seed)
    eval_env = make_envs(args.env, n_eval_envs, args.seed)
    watched = load_watched(args)
    size = f"{len(watched):,} in {watched.num_episodes} episodes"
    print(f"Transitions to watch: {size}")
    folder = args.resume or new_run_folder(args.log_folder, "bco", args.env)
    try:
        agent = make_agent(args, folder, watched, env, eval_env)
        logger = make_logger(args, folder, agent.num_timesteps)
    except BaseException:
        if args.resume is None:
            shutil.rmtree(folder)  # made a moment ago, and nobody's work is in it
        raise
    agent.set_logger(logger)
    if args.resume is None:
        write_settings(folder, "bco", args)
    going_on = f", from round {agent.round + 1}" if agent.round else ""
    print(f"Training on {agent.device.type} in {folder}{going_on}", flush=True)
    try:
        agent.learn(progress_bar=args.progress or sys.stderr.isatty())
    except KeyboardInterrupt:
        print(f"\nTo go on from the last round: rlsmooth bco --resume {shlex.quote(str(folder))}")
        raise
    logger.close()
    agent.save(folder / "agent.zip")
    if agent.inverse_dynamics is not None:  # no checkpoint has it: a run that was all done has written its own
        agent.inverse_dynamics.save(folder / "inverse_dynamics.zip")
    report = make_report(args, folder, agent, watched, size)
    save_report_file(folder, report)
    save_figure(folder / "report.png", bco_figure(report))
    print_bco_results(report)
    events = shlex.quote(str(args.tensorboard_log or folder))
    print(f"Agent, report and logs are in {folder}. Watch them: tensorboard --logdir {events}")
    env.close()
    eval_env.close()
    return folder


def load_watched(args: Args) -> Demonstrations | ObservationOnly:
    """What to clone.

    Raises:
        ValueError: there is none, or not as much as asked for.
    """
    name = name_of_demonstrations(args.env, args.demonstrations)
    watched: Demonstrations | ObservationOnly
    try:
        watched = load_demonstrations(name)
    except DemonstrationsFileError as error:
        if OBSERVATION_FORMAT not in str(error) and "ObservationOnly" not in str(error):
            raise
        watched = ObservationOnly.load(name)
    return watched if args.n_episodes is None else watched.sample_episodes(args.n_episodes, args.seed)


def make_agent(
    args: Args, folder: Path, watched: Demonstrations | ObservationOnly, env: VecEnv, eval_env: VecEnv
) -> BCO:
    """A new agent, or that of the run's last round."""
    checkpoints = folder / "checkpoints"
    device = check_device(args.device)
    inverse_learning_rate = number_or_word(args.inverse_learning_rate)
    try:
        as_schedule(inverse_learning_rate)
    except ValueError as error:
        raise ValueError(f"inverse_learning_rate can't be used: {error}") from error
    if args.resume is not None and checkpoints.is_dir() and checkpoint_steps(checkpoints):
        return BCO.resume(checkpoints, env, watched, eval_env=eval_env, device=device)
    return BCO(
        args.policy or default_policy(watched),
        env,
        watched,
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
        seed=args.seed,
        device=device,
        checkpoint_folder=checkpoints,
        eval_env=eval_env,
        n_eval_episodes=args.eval_episodes,
    )


def make_smoothing(name: str, value: str, reference: str = "uniform", spread: Any = "all") -> Smoothing:
    """The recipe that the arguments describe."""
    try:
        return Smoothing(number_or_word(value), reference, spread)
    except ValueError as error:
        raise ValueError(f"{name}={value!r} can't be used: {error}") from error


def make_report(
    args: Args, folder: Path, agent: BCO, watched: Demonstrations | ObservationOnly, size: str
) -> BCOReport:
    """The run in numbers, from what was logged."""
    curves = read_metrics(folder / "metrics.csv")
    summary = {name.partition("/")[2]: values[-1] for name, (_, values) in curves.items()}
    if isinstance(watched, Demonstrations) and watched.rewards is not None:
        summary["demonstrated_return"] = float(watched.episode_returns().mean())
    return BCOReport(
        name=folder.name,
        settings=plain(dataclasses.asdict(args)),
        curves=curves,
        summary={name: value for name, value in summary.items() if math.isfinite(value)},
        watched=size,
    )
