"""What `rlsmooth ppo`, `a2c`, `maskable-ppo` and `recurrent-ppo` do: a trained agent, its logs and its report out."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from rlsmooth.agents import ExactCheckpointCallback, load_checkpoint, save_agent
from rlsmooth.scripts.environment import check_device
from rlsmooth.scripts.figures.kinds import new_report, publish_report
from rlsmooth.scripts.hyperparameters import Hyperparameters, resolve_hyperparameters
from rlsmooth.scripts.metrics_file import read_metrics
from rlsmooth.scripts.on_policy_arguments import OnPolicyArgs
from rlsmooth.scripts.on_policy_callbacks import Journal, ProgressBar
from rlsmooth.scripts.on_policy_model import evaluation_envs, new_model, training_envs, uses_masks
from rlsmooth.scripts.reports import RunReport
from rlsmooth.scripts.run_folder import new_run_folder, plain, write_settings
from rlsmooth.scripts.sb3_run import check_numbers, hyperparameter_values, make_journal, make_logger, summarise_run
from rlsmooth.training import checkpoint_steps

__all__ = ["train"]


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
    check_numbers(args)
    values = hyperparameter_values(command, args, algorithm=command)
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
        journal = make_journal(
            args,
            folder,
            eval_env,
            start=start,
            n_timesteps=hyperparameters.n_timesteps,
            steps_per_row=model.n_envs * model.n_steps,
            use_masks=use_masks,
        )
        logger = make_logger(args, folder, start)
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
        model.learn(left, callbacks, log_interval=None, reset_num_timesteps=start == 0)
    except KeyboardInterrupt:
        if checkpoint is not None:
            print(f"\nTo go on from the last checkpoint: rlsmooth {command} --resume {shlex.quote(str(folder))}")
        raise
    logger.close()
    save_agent(model, folder / "agent.zip")
    report = _make_report(command, args, values, folder, model, journal)
    publish_report(folder, report)
    events = shlex.quote(str(args.tensorboard_log or folder))
    print(f"Agent, best agent, report and logs are in {folder}. Watch them: tensorboard --logdir {events}")
    env.close()
    eval_env.close()
    return folder


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
) -> RunReport:
    """The run in numbers, from what was logged and evaluated."""
    curves = read_metrics(folder / "metrics.csv")
    return new_report(
        command,
        name=folder.name,
        settings=plain(dataclasses.asdict(args)),
        hyperparameters=plain(values),
        curves=curves,
        summary=summarise_run(model, journal, curves, values, has_masks=command == "maskable-ppo"),
    )
