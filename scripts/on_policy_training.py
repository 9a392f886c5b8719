"""What `rlsmooth ppo`, `a2c`, `maskable-ppo` and `recurrent-ppo` do: a trained agent, its logs and its report out."""

from __future__ import annotations

import dataclasses
import math
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HumanOutputFormat, KVWriter, Logger, TensorBoardOutputFormat
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from rlsmooth.agents import ExactCheckpointCallback, load_checkpoint, save_agent
from rlsmooth.agents.policy_reference import action_components
from rlsmooth.checks import check_positive_int, check_writable_folder
from rlsmooth.scripts.drawing import save_figure
from rlsmooth.scripts.environment import check_device, limit_threads
from rlsmooth.scripts.hyperparameters import Hyperparameters, read_hyperparameters, resolve_hyperparameters
from rlsmooth.scripts.metrics_file import MetricsFile, read_metrics
from rlsmooth.scripts.on_policy_arguments import OnPolicyArgs
from rlsmooth.scripts.on_policy_callbacks import Evaluations, Journal, ProgressBar
from rlsmooth.scripts.on_policy_figures import on_policy_figure
from rlsmooth.scripts.on_policy_model import evaluation_envs, evaluation_seed, new_model, training_envs, uses_masks
from rlsmooth.scripts.on_policy_report import OnPolicyReport, print_on_policy_results, save_on_policy_report
from rlsmooth.scripts.run_folder import new_run_folder, plain, read_settings, write_settings
from rlsmooth.training import checkpoint_steps

__all__ = ["train"]

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


def train(command: str, algorithm: type[OnPolicyAlgorithm], args: OnPolicyArgs) -> Path:
    """Train, or go on with training, and return the run's folder.

    Args:
        command: what follows `rlsmooth`; names the file of hyperparameters and the folder of the logs.
        algorithm: `SmoothedPPO` or another of its kind.
        args: of the command line, or those that the resumed run began with.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is wrong, or names something that is not there or can't be written to.
    """
    _check_numbers(args)
    values = _hyperparameter_values(command, args)
    hyperparameters = resolve_hyperparameters(values, algorithm)
    eval_env = evaluation_envs(args, hyperparameters)  # first: it tells of an unknown environment in this process
    use_masks = uses_masks(command, eval_env, args.env)
    env = training_envs(args, hyperparameters)
    checkpoints = None if args.resume is None else args.resume / "checkpoints"
    checkpoint: ExactCheckpointCallback | None = None
    if checkpoints is not None and checkpoint_steps(checkpoints):
        run = load_checkpoint(checkpoints, env, device=check_device(args.device))
        model, checkpoint, left = run.model, run.callback, run.remaining_timesteps
    else:  # also a run that was killed before its first checkpoint
        model, left = new_model(algorithm, args, hyperparameters, env), hyperparameters.n_timesteps
    folder = args.resume or new_run_folder(args.log_folder, command, args.env)
    try:
        start = model.num_timesteps
        if checkpoint is None and args.save_freq > 0:
            checkpoint = ExactCheckpointCallback(args.save_freq, folder / "checkpoints")
        journal = Journal(
            Evaluations(
                folder / "evaluations.npz",
                start if args.resume else None,
                start_counts=args.from_bc is not None,
            ),
            eval_env,
            eval_freq=args.eval_freq,
            eval_episodes=args.eval_episodes,
            log_freq=max(model.n_envs * model.n_steps, hyperparameters.n_timesteps // MOST_ROWS),
            seed=evaluation_seed(args),
            use_masks=use_masks,
            best_agent=folder / "best_agent.zip",
        )
        logger = _make_logger(args, folder, start)
    except BaseException:
        if args.resume is None:
            shutil.rmtree(folder)  # made a moment ago, and nobody's work is in it
        raise
    model.set_logger(logger)
    if args.resume is None:
        write_settings(folder, command, args, {"hyperparameters": plain(values)})
    _say_what_begins(args, hyperparameters, model, folder, start)

    bar = ProgressBar(disabled=not (args.progress or sys.stderr.isatty()))
    callbacks: list[BaseCallback] = [journal, *([] if checkpoint is None else [checkpoint]), bar]
    try:
        # The journal logs in place of the algorithm.
        model.learn(left, callbacks, log_interval=None, reset_num_timesteps=start == 0)  # type: ignore[arg-type]
    except KeyboardInterrupt:
        if checkpoint is not None:
            print(f"\nTo go on from the last checkpoint: rlsmooth {command} --resume {shlex.quote(str(folder))}")
        raise
    logger.close()
    save_agent(model, folder / "agent.zip")
    report = _make_report(command, args, values, folder, model, journal)
    save_on_policy_report(folder, report)
    save_figure(folder / "report.png", on_policy_figure(report))
    print_on_policy_results(report)
    events = shlex.quote(str(args.tensorboard_log or folder))
    print(f"Agent, best agent, report and logs are in {folder}. Watch them: tensorboard --logdir {events}")
    env.close()
    eval_env.close()
    return folder


def _check_numbers(args: OnPolicyArgs) -> None:
    limit_threads(args.num_threads)
    check_positive_int("eval_episodes", args.eval_episodes)
    check_positive_int("n_eval_envs", args.n_eval_envs)
    for name in ("eval_freq", "save_freq"):
        if getattr(args, name) != -1:
            check_positive_int(name, getattr(args, name))


def _hyperparameter_values(command: str, args: OnPolicyArgs) -> dict[str, Any]:
    """What the file says, with the command line on top; of a resumed run, what it began with."""
    if args.resume is not None:
        return read_settings(args.resume, command, "hyperparameters")
    values = read_hyperparameters(command, args.env, args.conf_file, args.hyperparams)
    if args.from_bc is not None:
        values.setdefault("smoothing", KICKSTART)
    return values | {name: getattr(args, name) for name in GIVEN if getattr(args, name) is not None}


def _make_logger(args: OnPolicyArgs, folder: Path, start: int) -> Logger:
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


def _say_what_begins(
    args: OnPolicyArgs, hyperparameters: Hyperparameters, model: OnPolicyAlgorithm, folder: Path, start: int
) -> None:
    if args.from_bc is not None and hyperparameters.normalize is not None:
        print("Observations are not normalised, since the cloned policy has seen them as they are.")
    going_on = f", from step {start:,}" if start else ""
    print(
        f"Training {type(model).__name__} for {hyperparameters.n_timesteps:,} steps in {model.n_envs} environments, "
        f"on {model.device.type}, in {folder}{going_on}",
        flush=True,
    )


def _make_report(
    command: str,
    args: OnPolicyArgs,
    values: dict[str, Any],
    folder: Path,
    model: OnPolicyAlgorithm,
    journal: Journal,
) -> OnPolicyReport:
    """The run in numbers, from what was logged and evaluated."""
    curves = read_metrics(folder / "metrics.csv")
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
    largest = _largest_entropy(model.action_space) if command != "maskable-ppo" else None
    if largest is not None:
        summary["largest_entropy"] = largest
    if values.get("target_entropy_nats") is not None:
        summary["target_entropy"] = float(values["target_entropy_nats"])
    elif values.get("target_entropy_frac") is not None and largest is not None:
        summary["target_entropy"] = float(values["target_entropy_frac"]) * largest
    return OnPolicyReport(
        name=folder.name,
        command=command,
        settings=plain(dataclasses.asdict(args)),
        hyperparameters=plain(values),
        curves=curves,
        summary={name: float(value) for name, value in summary.items() if math.isfinite(value)},
    )


def _largest_entropy(space: spaces.Space[Any]) -> float | None:
    """log n of the joint actions; None for a Box."""
    components = action_components(space)
    return None if components is None else sum(map(math.log, components[1]))
