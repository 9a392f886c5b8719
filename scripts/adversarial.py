"""Train a generator against a discriminator: what `rlsmooth gail` and `airl` share."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

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
from rlsmooth.agents.files.algorithm_file import read_training
from rlsmooth.checks import check_positive_int
from rlsmooth.data import Demonstrations
from rlsmooth.scripts.arguments import AdversarialArgs, number_of, read_demonstrations, size_words
from rlsmooth.scripts.environment import check_device
from rlsmooth.scripts.hyperparameters import named_hyperparameters, resolve_hyperparameters
from rlsmooth.scripts.on_policy import (
    check_numbers,
    checkpoint_callback,
    evaluation_envs,
    hyperparameter_values,
    make_journal,
    new_algorithm,
    steps_of,
    summarise_run,
    training_envs,
    uses_masks,
    with_saved_agent,
)
from rlsmooth.scripts.on_policy_callbacks import ProgressBar
from rlsmooth.scripts.run_folder import agent_file, plain
from rlsmooth.scripts.training_run import TrainingRun, saved_checkpoints

SMOOTHED = ("ppo", "a2c", "maskable-ppo")
OF_SMOOTHED = (
    "smoothing",
    "target_entropy_frac",
    "target_entropy_nats",
    "exploration_floor",
    "min_entropy_frac",
    "min_entropy_nats",
    "from_bc",
    "value_warmup_steps",
)
"""The options that only the smoothed algorithms know."""


def train(
    command: str,
    trainer_class: type[GAIL] | type[AIRL],
    args: AdversarialArgs,
    make_net: Callable[[BaseAlgorithm], RewardNet | ShapedRewardNet],
    **own: Any,
) -> Path:
    """Train, or resume training, and return the run's folder.

    Args:
        command: what follows `rlsmooth`.
        trainer_class: of the command.
        args: of the command line, or those that the resumed run began with.
        make_net: builds the reward net for a generator.
        own: arguments that only this trainer takes.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is wrong, or names something that is not there or can't be written to.
    """
    args = completed(args)
    algorithm = algorithm_class(args)
    values = hyperparameter_values(command, args, algorithm, algorithm=args.algo)
    with named_hyperparameters(values, args.resume):
        hyperparameters = resolve_hyperparameters(values, algorithm)
        eval_env = evaluation_envs(args, hyperparameters)  # first: it finds an unknown environment in this process
    if args.algo == "ppo" and args.resume is None and eval_env.has_attr("action_masks"):
        eval_env.close()  # an alias stands for its maskable form, whose hyperparameters are others
        return train(command, trainer_class, dataclasses.replace(args, algo="maskable-ppo"), make_net, **own)
    use_masks = uses_masks(args.algo, eval_env, args.env)
    check_action_space(args, eval_env.action_space)
    demonstrations = read_demonstrations(args, args.seed)
    print(f"Transitions of the expert: {size_words(demonstrations)}")
    env, saved = training_envs(args, hyperparameters), saved_checkpoints(args)
    checkpoint: ExactCheckpointCallback | None = None
    trainer: GAIL | AIRL
    if saved is not None:
        loaded = trainer_class.resume(saved, demonstrations, env, device=check_device(args.device))
        trainer, checkpoint, left = loaded.trainer, loaded.callback, loaded.remaining_timesteps
    else:
        with named_hyperparameters(values, args.resume):
            generator, left = new_algorithm(algorithm, args, hyperparameters, env), hyperparameters.n_timesteps
        net = build_net(lambda: make_net(generator), args.seed)
        trainer = trainer_class(demonstrations, generator, net, **own, **trainer_arguments(args))
        args = dataclasses.replace(args, n_disc_updates_per_round=trainer.n_disc_updates_per_round)
        check_rounds(trainer, left)
    with TrainingRun(command, args, args.env) as run:
        agent, n_timesteps = trainer.gen_algo, hyperparameters.n_timesteps
        journal = make_journal(
            run, args, agent, eval_env, n_timesteps, trainer.gen_train_timesteps, use_masks=use_masks
        )
        checkpoints = checkpoint_callback(run, args, checkpoint)
        start = agent.num_timesteps
        run.begin(
            f"Training {trainer_class.__name__} with {type(agent).__name__} for {steps_of(agent, n_timesteps):,} "
            f"steps in {number_of(agent.n_envs, 'environment')}, on {agent.device.type},",
            f"step {start:,}" if start else "",
            resume_from="checkpoint" if checkpoints else "",
            more={"hyperparameters": plain(values)},
        )
        # Before the journal, which writes the row that the entropy belongs to.
        callbacks: list[BaseCallback] = [PolicyEntropyCallback(histogram=False)] if args.algo == "trpo" else []
        callbacks += [journal, *checkpoints, ProgressBar(disabled=not run.shows_bar)]
        # The journal logs in place of the algorithm.
        trainer.learn(left, callbacks, log_interval=sys.maxsize, reset_num_timesteps=start == 0)
        save_agent(agent, run.folder / "agent.zip")
        assert isinstance(trainer.reward_net, (RewardNet, ShapedRewardNet))
        save_reward_net(trainer.reward_net, run.folder / "reward_net.zip")
        env.close()
        eval_env.close()
        curves = run.curves()
        summary = summarise_run(agent, journal, curves, values, has_masks=args.algo == "maskable-ppo")
        summary |= {} if demonstrations.rewards is None else {"demonstrated_return": mean_return(demonstrations)}
        return run.finish(
            "Agent, best agent, reward net, report and logs",
            hyperparameters=plain(values),
            curves=curves,
            summary=summary,
            demonstrated=size_words(demonstrations),
        )


def completed(args: AdversarialArgs) -> AdversarialArgs:
    """Check the numbers, and add what a saved agent says: its environment, and that ppo stands for maskable-ppo."""
    check_numbers(args)
    args = with_saved_agent(args)
    if args.algo != "ppo" or args.trained_agent is None or args.resume is not None:
        return args
    kind = read_training(agent_file("trained_agent", args.trained_agent)).kind
    return dataclasses.replace(args, algo="maskable-ppo") if kind == "SmoothedMaskablePPO" else args


def mean_return(demonstrations: Demonstrations) -> float:
    """Of the expert's episodes."""
    return float(demonstrations.episode_returns().mean())


def algorithm_class(args: AdversarialArgs) -> type[BaseAlgorithm]:
    """The generator's class.

    Raises:
        ValueError: it can't use an option that was given, or sb3-contrib, which has it, is not installed.
    """
    if args.horizon is not None and args.terminal_states == "as_is":
        raise ValueError("--horizon does nothing with --terminal-states as_is: leave one of them out.")
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
    """Raise ValueError if the generator can't act in the environment: SB3 only asserts it."""
    needed = {"sac": spaces.Box, "dqn": spaces.Discrete}.get(args.algo)
    if needed is not None and not isinstance(space, needed):
        raise ValueError(f"algo={args.algo!r} needs a {needed.__name__} action space, env={args.env!r} has {space}.")


def trainer_arguments(args: AdversarialArgs) -> dict[str, Any]:
    """Arguments that GAIL and AIRL share."""
    return {
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


def score_net(args: AdversarialArgs, generator: BaseAlgorithm) -> RewardNet:
    """The network that scores a transition of the generator's spaces."""
    sizes = [check_positive_int("reward_net_arch", size) for size in args.reward_net_arch]
    return RewardNet(generator.observation_space, generator.action_space, net_arch=sizes)


def check_rounds(trainer: GAIL | AIRL, n_timesteps: int) -> None:
    """Raise ValueError if the training ends before the discriminator is trained once."""
    agent = trainer.gen_algo
    if steps_of(agent, n_timesteps) < trainer.gen_train_timesteps:
        raise ValueError(
            f"n_timesteps={n_timesteps} ends before the first round of gen_train_timesteps="
            f"{trainer.gen_train_timesteps}: the discriminator would never be trained."
        )
