"""What `rlsmooth gail` and `airl` do: demonstrations in; a trained generator, the reward net, logs and report out."""

from __future__ import annotations

import dataclasses
import math
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, Literal

from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from rlsmooth.agents import (
    AIRL,
    GAIL,
    ExactCheckpointCallback,
    PolicyEntropyCallback,
    RewardNet,
    ShapedRewardNet,
    save_agent,
    save_reward_net,
)
from rlsmooth.agents.adversarial.reward_nets import build_net
from rlsmooth.agents.adversarial.trainer import AdversarialImitation
from rlsmooth.checks import check_positive_int
from rlsmooth.data import Demonstrations, load_demonstrations
from rlsmooth.scripts.adversarial_arguments import AdversarialArgs, AIRLArgs, GAILArgs
from rlsmooth.scripts.adversarial_figures import adversarial_figure
from rlsmooth.scripts.adversarial_report import ADVERSARIAL, AdversarialReport, print_adversarial_results
from rlsmooth.scripts.bc_training import name_of_demonstrations
from rlsmooth.scripts.drawing import save_figure
from rlsmooth.scripts.environment import check_device
from rlsmooth.scripts.hyperparameters import resolve_hyperparameters
from rlsmooth.scripts.metrics_file import read_metrics
from rlsmooth.scripts.on_policy_callbacks import Journal, ProgressBar
from rlsmooth.scripts.on_policy_model import evaluation_envs, new_model, training_envs, uses_masks
from rlsmooth.scripts.report_file import save_report_file
from rlsmooth.scripts.run_folder import new_run_folder, plain, write_settings
from rlsmooth.scripts.sb3_run import check_numbers, hyperparameter_values, make_journal, make_logger, summarise_run
from rlsmooth.training import checkpoint_steps

__all__ = ["train"]

SMOOTHED = ("ppo", "a2c", "maskable-ppo")
OF_SMOOTHED = (
    "smoothing",
    "target_entropy_frac",
    "target_entropy_nats",
    "exploration_floor",
    "from_bc",
    "value_warmup_steps",
)
"""The options that only the smoothed algorithms know."""
Command = Literal["gail", "airl"]


def train(command: Command, args: AdversarialArgs) -> Path:
    """Train, or go on with training, and return the run's folder.

    Args:
        command: what follows `rlsmooth`.
        args: of the command line, or those that the resumed run began with.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is wrong, or names something that is not there or can't be written to.
    """
    check_numbers(args)
    if args.horizon is not None and args.terminal_states == "as_is":
        raise ValueError("--horizon does nothing with --terminal-states as_is: leave one of them out.")
    algorithm = algorithm_class(args)
    values = hyperparameter_values(command, args, algorithm=args.algo)
    hyperparameters = resolve_hyperparameters(values, algorithm)
    eval_env = evaluation_envs(args, hyperparameters)  # first: it tells of an unknown environment in this process
    use_masks = uses_masks(args.algo, eval_env, args.env)
    check_action_space(args, eval_env.action_space)
    demonstrations = load_data(args)
    size = f"{len(demonstrations):,} in {demonstrations.num_episodes} episodes"
    print(f"Transitions of the expert: {size}")
    env = training_envs(args, hyperparameters)
    checkpoints = None if args.resume is None else args.resume / "checkpoints"
    checkpoint: ExactCheckpointCallback | None = None
    trainer: AdversarialImitation
    if checkpoints is not None and checkpoint_steps(checkpoints):
        trainer_class = GAIL if command == "gail" else AIRL
        run = trainer_class.resume(checkpoints, demonstrations, env, device=check_device(args.device))
        trainer, checkpoint, left = run.trainer, run.callback, run.remaining_timesteps
    else:  # also a run that was killed before its first checkpoint
        trainer = make_trainer(args, demonstrations, new_model(algorithm, args, hyperparameters, env))
        left = hyperparameters.n_timesteps
        check_rounds(trainer, left)
    model = trainer.gen_algo
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
            steps_per_row=trainer.gen_train_timesteps,
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
    going_on = f", from step {start:,}" if start else ""
    environments = f"{model.n_envs} environment{'s' if model.n_envs != 1 else ''}"
    print(
        f"Training {ADVERSARIAL[command]} with {type(model).__name__} for {hyperparameters.n_timesteps:,} steps in "
        f"{environments}, on {model.device.type}, in {folder}{going_on}",
        flush=True,
    )

    # Before the journal, which writes the row that the entropy belongs to.
    callbacks: list[BaseCallback] = [PolicyEntropyCallback(histogram=False)] if args.algo == "trpo" else []
    callbacks += [journal, *([] if checkpoint is None else [checkpoint])]
    callbacks.append(ProgressBar(disabled=not (args.progress or sys.stderr.isatty())))
    try:
        # The journal logs in place of the algorithm.
        trainer.learn(left, callbacks, log_interval=sys.maxsize, reset_num_timesteps=start == 0)
    except KeyboardInterrupt:
        if checkpoint is not None:
            print(f"\nTo go on from the last checkpoint: rlsmooth {command} --resume {shlex.quote(str(folder))}")
        raise
    logger.close()
    save_agent(model, folder / "agent.zip")
    assert isinstance(trainer.reward_net, (RewardNet, ShapedRewardNet))
    save_reward_net(trainer.reward_net, folder / "reward_net.zip")
    report = make_report(command, args, values, folder, model, journal, demonstrations, size)
    save_report_file(folder, report)
    save_figure(folder / "report.png", adversarial_figure(report))
    print_adversarial_results(report)
    events = shlex.quote(str(args.tensorboard_log or folder))
    print(f"Agent, best agent, reward net, report and logs are in {folder}. Watch them: tensorboard --logdir {events}")
    env.close()
    eval_env.close()
    return folder


def algorithm_class(args: AdversarialArgs) -> type[BaseAlgorithm]:
    """The generator's class.

    Raises:
        ValueError: it can't use an option that was given, or sb3-contrib, which has it, is not installed.
    """
    given = [f"--{name.replace('_', '-')}" for name in OF_SMOOTHED if getattr(args, name) is not None]
    given += ["--reference"] if args.reference != "uniform" else []
    if given and args.algo not in SMOOTHED:
        raise ValueError(f"algo={args.algo!r} has no {', '.join(given)}: leave it out, or use {', '.join(SMOOTHED)}.")
    # Imported here: sb3-contrib is an extra.
    if args.algo == "trpo":
        from sb3_contrib import TRPO

        return TRPO
    if args.algo == "maskable-ppo":
        from rlsmooth.agents import SmoothedMaskablePPO

        return SmoothedMaskablePPO
    from stable_baselines3 import DQN, SAC

    from rlsmooth.agents import SmoothedA2C, SmoothedPPO

    known: dict[str, type[BaseAlgorithm]] = {"ppo": SmoothedPPO, "a2c": SmoothedA2C, "sac": SAC, "dqn": DQN}
    return known[args.algo]


def check_action_space(args: AdversarialArgs, space: spaces.Space[Any]) -> None:
    """Raise ValueError if the generator can't act in the environment: SB3 tells it by an assertion."""
    needed = {"sac": spaces.Box, "dqn": spaces.Discrete}.get(args.algo)
    if needed is not None and not isinstance(space, needed):
        raise ValueError(f"algo={args.algo!r} needs a {needed.__name__} action space, env={args.env!r} has {space}.")


def load_data(args: AdversarialArgs) -> Demonstrations:
    """The expert's transitions.

    Raises:
        ValueError: there are none, or not as many as asked for.
    """
    demonstrations = load_demonstrations(name_of_demonstrations(args.env, args.demonstrations))
    return demonstrations if args.n_episodes is None else demonstrations.sample_episodes(args.n_episodes, args.seed)


def make_trainer(args: AdversarialArgs, demonstrations: Demonstrations, model: BaseAlgorithm) -> AdversarialImitation:
    """A new trainer around the generator.

    Raises:
        TypeError: the generator can't be used.
        ValueError: an argument is outside its range, or the demonstrations do not fit.
    """
    options: dict[str, Any] = {
        "demo_batch_size": args.demo_batch_size,
        "n_disc_updates_per_round": args.n_disc_updates_per_round,
        "gen_train_timesteps": args.gen_train_timesteps,
        "gen_replay_buffer_capacity": args.gen_replay_buffer_capacity,
        "disc_learning_rate": args.disc_learning_rate,
        "real_target": args.real_target,
        "fake_target": args.fake_target,
        "correct_offset": args.correct_offset,
        "terminal_states": args.terminal_states,
        "horizon": args.horizon,
        "seed": args.seed,
    }
    sizes = [check_positive_int("reward_net_arch", size) for size in args.reward_net_arch]

    def score() -> RewardNet:
        return RewardNet(model.observation_space, model.action_space, net_arch=sizes)

    if isinstance(args, GAILArgs):
        return GAIL(demonstrations, model, build_net(score, args.seed), reward_form=args.reward_form, **options)
    assert isinstance(args, AIRLArgs)
    potential = [check_positive_int("potential_net_arch", size) for size in args.potential_net_arch]
    gamma = float(model.gamma)  # type: ignore[attr-defined]
    net = build_net(lambda: ShapedRewardNet(score(), gamma=gamma, potential_net_arch=potential), args.seed)
    return AIRL(demonstrations, model, net, **options)


def check_rounds(trainer: AdversarialImitation, n_timesteps: int) -> None:
    """Raise ValueError if the training ends before the discriminator is trained once."""
    model = trainer.gen_algo
    rollout = model.n_steps * model.n_envs if isinstance(model, OnPolicyAlgorithm) else 1
    if math.ceil(n_timesteps / rollout) * rollout < trainer.gen_train_timesteps:
        raise ValueError(
            f"n_timesteps={n_timesteps} ends before the first round of gen_train_timesteps="
            f"{trainer.gen_train_timesteps}: the discriminator would never be trained."
        )


def make_report(
    command: Command,
    args: AdversarialArgs,
    values: dict[str, Any],
    folder: Path,
    model: BaseAlgorithm,
    journal: Journal,
    demonstrations: Demonstrations,
    size: str,
) -> AdversarialReport:
    """The run in numbers, from what was logged and evaluated."""
    curves = read_metrics(folder / "metrics.csv")
    summary = summarise_run(model, journal, curves, values, has_masks=args.algo == "maskable-ppo")
    if demonstrations.rewards is not None:
        summary["demonstrated_return"] = float(demonstrations.episode_returns().mean())
    return AdversarialReport(
        name=folder.name,
        settings=plain(dataclasses.asdict(args)),
        command=command,
        hyperparameters=plain(values),
        curves=curves,
        summary=summary,
        demonstrated=size,
    )
