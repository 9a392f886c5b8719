"""What `rlsmooth dagger` does: an expert in; a trained agent, its transitions, logs and report out."""

from __future__ import annotations

import dataclasses
import math
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.vec_env import VecEnv

from rlsmooth.agents import DAgger
from rlsmooth.checks import check_positive_int
from rlsmooth.data import Demonstrations, load_demonstrations
from rlsmooth.scripts.bc_training import make_logger, number_or_word
from rlsmooth.scripts.bco_training import make_smoothing
from rlsmooth.scripts.dagger_expert import EXPERT_FILE, Asked, evaluate_expert, loaded_expert, new_expert
from rlsmooth.scripts.environment import check_device, limit_threads, make_envs, policy_alias
from rlsmooth.scripts.figures.kinds import new_report, publish_report
from rlsmooth.scripts.metrics_file import read_metrics
from rlsmooth.scripts.reports import RunReport
from rlsmooth.scripts.run_folder import new_run_folder, plain, write_settings
from rlsmooth.training import checkpoint_steps

if TYPE_CHECKING:
    from rlsmooth.scripts.dagger import Args

__all__ = ["train"]


def train(args: Args) -> Path:
    """Train, or go on with training, and return the run's folder; see `scripts/dagger.py`."""
    limit_threads(args.num_threads)
    check_positive_int("n_timesteps", args.n_timesteps)
    n_envs = check_positive_int("n_envs", args.n_envs)
    n_eval_envs = min(
        check_positive_int("n_eval_envs", args.n_eval_envs), check_positive_int("eval_episodes", args.eval_episodes)
    )
    env = make_envs(args.env, n_envs, args.seed)
    eval_env = make_envs(args.env, n_eval_envs, args.seed)
    initial = load_initial(args)
    asked = find_expert(args, env)
    folder = args.resume or new_run_folder(args.log_folder, "dagger", args.env)
    try:
        agent = make_agent(args, folder, initial, asked.agent, env, eval_env)
        logger = make_logger(args, folder, agent.num_timesteps)
    except BaseException:
        if args.resume is None:
            shutil.rmtree(folder)  # made a moment ago, and nobody's work is in it
        raise
    agent.set_logger(logger)
    if args.resume is None:
        write_settings(folder, "dagger", args)
    bar = args.progress or sys.stderr.isatty()
    try:
        if asked.steps:
            print(f"Training an expert, {type(asked.agent).__name__}, for {asked.steps:,} steps", flush=True)
        asked.make_ready(folder / EXPERT_FILE, progress=bar)
        expert_return = evaluate_expert(asked.agent, args.env, n_episodes=args.eval_episodes, seed=args.seed)
        print(f"Return of the expert: {expert_return:.1f}")
        going_on = f", from round {agent.round + 1}" if agent.round else ""
        print(f"Training on {agent.device.type} in {folder}{going_on}", flush=True)
        agent.learn(args.n_timesteps, progress_bar=bar)
    except KeyboardInterrupt:
        print(f"\nTo go on from the last round: rlsmooth dagger --resume {shlex.quote(str(folder))}")
        raise
    logger.close()
    agent.save(folder / "agent.zip")
    report = make_report(args, folder, agent, asked, expert_return)
    publish_report(folder, report)
    events = shlex.quote(str(args.tensorboard_log or folder))
    print(f"Agent, expert, report and logs are in {folder}. Watch them: tensorboard --logdir {events}")
    env.close()
    eval_env.close()
    return folder


def load_initial(args: Args) -> Demonstrations | None:
    """What the expert has shown before, if anything.

    Raises:
        ValueError: there is not as much as asked for.
    """
    if args.demonstrations is None:
        if args.n_episodes is not None:
            raise ValueError("--n-episodes is for --demonstrations: leave it out, or name some.")
        return None
    demonstrations = load_demonstrations(args.demonstrations)
    return demonstrations if args.n_episodes is None else demonstrations.sample_episodes(args.n_episodes, args.seed)


def find_expert(args: Args, env: VecEnv) -> Asked:
    """The expert of the run that goes on, of a file, or one to be trained.

    Raises:
        ValueError: there are two, or none.
    """
    device = check_device(args.device)
    if args.expert is not None and args.train_expert is not None:
        raise ValueError("--train-expert is for runs without --expert: leave one of them out.")
    if args.resume is not None and (args.resume / EXPERT_FILE).is_file():
        return loaded_expert(args.resume / EXPERT_FILE, args.env, device)
    if args.expert is not None:
        return loaded_expert(args.expert, args.env, device)
    return new_expert(env, name=args.env, n_timesteps=args.train_expert, seed=args.seed, device=device)


def make_agent(
    args: Args, folder: Path, initial: Demonstrations | None, expert: Any, env: VecEnv, eval_env: VecEnv
) -> DAgger:
    """A new agent, or that of the run's last round."""
    checkpoints = folder / "checkpoints"
    device = check_device(args.device)
    if args.resume is not None and checkpoints.is_dir() and checkpoint_steps(checkpoints):
        return DAgger.resume(checkpoints, env, expert, eval_env=eval_env, device=device)
    masked = "Maskable" if env.has_attr("action_masks") else ""
    return DAgger(
        args.policy or f"{masked}{policy_alias(env.observation_space)}",
        env,
        expert,
        demonstrations=initial,
        expert_targets=args.expert_targets,
        beta_schedule=read_beta_schedule(args.beta_schedule),
        rollout_round_min_episodes=args.round_min_episodes,
        rollout_round_min_timesteps=args.round_min_timesteps,
        bc_train_n_epochs=args.epochs,
        smoothing=make_smoothing("smoothing", args.smoothing, args.reference, args.spread),
        kl_coef=args.kl_coef,
        action_bins=args.action_bins,
        learning_rate=number_or_word(args.learning_rate),
        batch_size=args.batch_size,
        max_grad_norm=args.max_grad_norm,
        l2_coef=args.l2_coef,
        policy_kwargs={"net_arch": [check_positive_int("net_arch", size) for size in args.net_arch]},
        seed=args.seed,
        device=device,
        scratch_dir=checkpoints,
        eval_env=eval_env,
        n_eval_episodes=args.eval_episodes,
    )


def read_beta_schedule(word: str) -> int | float:
    """A whole number of rounds, or the base of a power.

    Raises:
        ValueError: it is no number.
    """
    try:
        return int(word)
    except ValueError:
        pass
    try:
        return float(word)
    except ValueError as error:
        raise ValueError(f"beta_schedule={word!r} must be a whole number of rounds, or such as 0.7.") from error


def make_report(args: Args, folder: Path, agent: DAgger, asked: Asked, expert_return: float) -> RunReport:
    """The run in numbers, from what was logged."""
    curves = read_metrics(folder / "metrics.csv")
    summary = {name.partition("/")[2]: values[-1] for name, (_, values) in curves.items()}
    summary |= {"expert_return": expert_return, "rounds": agent.round}
    words = type(asked.agent).__name__
    return new_report(
        "dagger",
        name=folder.name,
        settings=plain(dataclasses.asdict(args)),
        curves=curves,
        summary={name: float(value) for name, value in summary.items() if math.isfinite(value)},
        expert=f"{words}, {asked.steps:,} steps" if asked.steps else words,
    )
