"""What the commands that train an algorithm of SB3 share: checks, hyperparameters, logger, journal, summary."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import HumanOutputFormat, KVWriter, Logger, TensorBoardOutputFormat
from stable_baselines3.common.vec_env import VecEnv

from rlsmooth.agents.policy_reference import action_components
from rlsmooth.checks import check_positive_int, check_writable_folder
from rlsmooth.scripts.environment import limit_threads
from rlsmooth.scripts.hyperparameters import read_hyperparameters
from rlsmooth.scripts.metrics_file import Curve, MetricsFile
from rlsmooth.scripts.on_policy_arguments import OnPolicyArgs
from rlsmooth.scripts.on_policy_callbacks import Evaluations, Journal
from rlsmooth.scripts.on_policy_model import evaluation_seed
from rlsmooth.scripts.run_folder import read_settings

__all__ = ["check_numbers", "hyperparameter_values", "make_journal", "make_logger", "summarise_run"]

MOST_ROWS = 500  # of metrics.csv: A2C would write one every 40 steps
KICKSTART = "lin_0.1"  # from the clone; `from_bc` has the same default
GIVEN = (
    "n_timesteps",
    "n_envs",
    "smoothing",
    "ent_coef",
    "target_entropy_frac",
    "target_entropy_nats",
    "exploration_floor",
)
"""The options that are hyperparameters too: on the command line they come first."""


def check_numbers(args: OnPolicyArgs) -> None:
    """Check those that no library does, and limit torch's threads.

    Raises:
        TypeError: one is no whole number.
        ValueError: one is outside its range.
    """
    limit_threads(args.num_threads)
    check_positive_int("eval_episodes", args.eval_episodes)
    check_positive_int("n_eval_envs", args.n_eval_envs)
    for name in ("eval_freq", "save_freq"):
        if getattr(args, name) != -1:
            check_positive_int(name, getattr(args, name))


def hyperparameter_values(command: str, args: OnPolicyArgs, *, algorithm: str) -> dict[str, Any]:
    """What the file of `algorithm` says, with the command line on top; of a resumed run, what it began with."""
    if args.resume is not None:
        return read_settings(args.resume, command, "hyperparameters")
    values = read_hyperparameters(algorithm, args.env, args.conf_file, args.hyperparams)
    if args.from_bc is not None:
        values.setdefault("smoothing", KICKSTART)
    return values | {name: getattr(args, name) for name in GIVEN if getattr(args, name) is not None}


def make_journal(
    args: OnPolicyArgs,
    folder: Path,
    eval_env: VecEnv,
    *,
    start: int,
    n_timesteps: int,
    steps_per_row: int,
    use_masks: bool,
) -> Journal:
    """What logs and evaluates, with the evaluations of a resumed run up to step `start`.

    Args:
        args: of the run.
        folder: of the run.
        eval_env: to evaluate in.
        start: the step to go on from.
        n_timesteps: of the whole run.
        steps_per_row: of `metrics.csv`, at least.
        use_masks: evaluate with action masks.
    """
    return Journal(
        Evaluations(folder / "evaluations.npz", start if args.resume else None, start_counts=args.from_bc is not None),
        eval_env,
        eval_freq=args.eval_freq,
        eval_episodes=args.eval_episodes,
        log_freq=max(steps_per_row, n_timesteps // MOST_ROWS),
        seed=evaluation_seed(args),
        use_masks=use_masks,
        best_agent=folder / "best_agent.zip",
    )


def make_logger(args: OnPolicyArgs, folder: Path, start: int) -> Logger:
    """SB3's logger, to `metrics.csv` and TensorBoard."""
    events = folder
    if args.tensorboard_log is not None:
        events = check_writable_folder("tensorboard_log", args.tensorboard_log / folder.name)
    outputs: list[KVWriter] = [
        MetricsFile(folder / "metrics.csv", start if args.resume else None),
        TensorBoardOutputFormat(str(events)),
    ]
    if args.verbose:
        outputs.append(HumanOutputFormat(sys.stdout))
    return Logger(str(folder), outputs)


def summarise_run(
    model: BaseAlgorithm, journal: Journal, curves: dict[str, Curve], values: dict[str, Any], *, has_masks: bool
) -> dict[str, float]:
    """What the run ended with: the last value of each curve by its tag without the first part, and what it reached.

    Args:
        model: the algorithm.
        journal: of the run.
        curves: of `metrics.csv`.
        values: the hyperparameters.
        has_masks: the largest entropy is then not known, since it depends on what is legal.
    """
    evaluations = journal.evaluations
    summary = {name.partition("/")[2]: column[-1] for name, (_, column) in curves.items() if name[:5] != "time/"}
    best = evaluations.best()
    summary |= {
        "best_mean_reward": float(evaluations.results[best].mean()),
        "best_step": evaluations.steps[best],
        "steps": model.num_timesteps,
    }
    if journal.seconds_training > 0 and journal.steps_trained:
        summary["steps_per_second"] = journal.steps_trained / journal.seconds_training
    largest = None if has_masks else _largest_entropy(model.action_space)
    if largest is not None:
        summary["largest_entropy"] = largest
    if values.get("target_entropy_nats") is not None:
        summary["target_entropy"] = float(values["target_entropy_nats"])
    elif values.get("target_entropy_frac") is not None and largest is not None:
        summary["target_entropy"] = float(values["target_entropy_frac"]) * largest
    return {name: float(value) for name, value in summary.items() if math.isfinite(value)}


def _largest_entropy(space: spaces.Space[Any]) -> float | None:
    """log n of the joint actions; None for a Box."""
    components = action_components(space)
    return None if components is None else sum(map(math.log, components[1]))
