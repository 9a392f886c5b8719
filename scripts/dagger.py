"""Clone an expert that can be asked, on the states that the clone itself gets into: DAgger with smoothed targets.

rlsmooth dagger --env CartPole-v1 --expert logs/ppo/CartPole-v1_1/best_agent.zip
rlsmooth dagger --env CartPole-v1 --train-expert 100000 --beta-schedule 0.7
rlsmooth dagger --resume logs/dagger/CartPole-v1_1
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from rlsmooth.checks import check_positive_int
from rlsmooth.scripts.arguments import (
    CloningArgs,
    OnPolicyArgs,
    Reference,
    RunArgs,
    environment_settings,
    make_smoothing,
    number_or_word,
    read_demonstrations,
    resumed,
)
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.run_folder import agent_file

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

    from rlsmooth.agents import DAgger, ExactCheckpointCallback
    from rlsmooth.data import Demonstrations
    from rlsmooth.scripts.training_run import TrainingRun

alias = tyro.conf.arg

EXPERT_FILE = "expert.zip"
"""In the run's folder, so that a run can be resumed without the file that it began with."""
EXPERT_CHECKPOINTS = Path("checkpoints") / "expert"
"""In the run's folder: of an expert that the command trains."""
EXPERT_SAVE_FREQ = 50_000
N_EVAL_ENVS = 20


@dataclasses.dataclass(frozen=True)
class Args(RunArgs, CloningArgs):
    """Train DAgger on what an expert says, and evaluate it in the environment after each round."""

    demonstrations: str | None = None
    """Begin with these, which the expert gave: an .npz, a folder, or a set of the package. Default: with none."""
    smoothing: str = "0.1"
    """How much of the target leaves the expert's action: a number, or lin_0.1 for one that falls to 0 in each round."""
    reference: Reference = "uniform"
    """Where it goes: to all actions alike, or to neighbours of the expert's one by an ordinal scheme."""
    spread: Literal["all", "others"] = "all"
    """Whether the uniform reference includes the expert's action."""
    learning_rate: str = "1e-3"
    """The step size: a number, or lin_1e-3 for one that falls to 0 in each round."""
    batch_size: int = 32
    """How many transitions are in a batch."""
    eval_episodes: int = 20
    """How many episodes to evaluate deterministically, and how many sampled, after each round."""

    expert: Annotated[Path | None, alias(aliases=["-i"])] = None
    """The expert's agent.zip or best_agent.zip, or the folder of the run that wrote it (then agent.zip)."""
    train_expert: int | None = None
    """Without --expert: train one with `rlsmooth ppo` for so many steps first. Default: its hyperparameters' number."""
    expert_targets: Literal["actions", "probabilities"] = "actions"
    """Clone what the expert does, or the probabilities of all its actions (Discrete actions)."""

    n_timesteps: Annotated[int, alias(aliases=["-n"])] = 30_000
    """Make whole rounds until so many steps have been made, in all environments together."""
    beta_schedule: str = "15"
    """How often the expert acts: a whole number n: from 1 down to 0 in n rounds; 0.7: 0.7 to the power of the round."""
    round_min_episodes: int = 3
    """A round ends when it has so many episodes, and the steps of --round-min-timesteps."""
    round_min_timesteps: int = 500
    """A round ends when it has so many steps, and the episodes of --round-min-episodes."""
    epochs: int = 4
    """How often each round goes through all transitions so far."""
    n_envs: int = 4
    """How many environments to act in; a round ends when each one's episode has."""
    n_eval_envs: int = 20
    """How many environments to evaluate in."""
    seed: int = 0
    """Decides the initial weights, the order of the data, what is done, the evaluations, and a new expert."""


def main(args: Args) -> Path:
    """Train, or resume training, and return the run's folder; raise ValueError for an argument that can't be used."""
    args = resumed(args, "dagger")
    # Imported here: options can be listed, and a wrong one reported, without waiting for torch.
    from rlsmooth.scripts.environment import evaluation_vectorization, limit_threads, make_envs
    from rlsmooth.scripts.on_policy import steps_of
    from rlsmooth.scripts.training_run import TrainingRun

    limit_threads(args.num_threads)
    check_positive_int("n_timesteps", args.n_timesteps)
    n_envs = check_positive_int("n_envs", args.n_envs)
    n_eval_envs = min(
        check_positive_int("n_eval_envs", args.n_eval_envs), check_positive_int("eval_episodes", args.eval_episodes)
    )
    env = make_envs(environment_settings(args), n_envs, args.seed, vectorization=args.vectorization)
    vectorization = evaluation_vectorization(args.vectorization)
    settings = environment_settings(args, evaluation=True)
    eval_env = make_envs(settings, n_eval_envs, args.seed, vectorization=vectorization)
    initial = load_data(args)
    expert = find_expert(args, env)
    with TrainingRun("dagger", args, args.env) as run:
        agent = make_agent(args, run, initial, expert.agent, env, eval_env)
        agent.set_logger(run.logger(agent.num_timesteps or None))
        run.begin()
        if expert.steps:
            steps = steps_of(expert.agent, expert.steps)
            print(f"Training an expert, {type(expert.agent).__name__}, for {steps:,} steps", flush=True)
        expert.make_ready(run.folder / EXPERT_FILE, progress=run.shows_bar)
        expert_return = evaluate_expert(args, expert.agent)
        print(f"Return of the expert: {expert_return:.1f}")
        start = f", from round {agent.round + 1}" if agent.is_resumed else ""
        print(f"Training on {agent.device.type} by {agent.bc.engine} in {run.folder}{start}", flush=True)
        agent.learn(args.n_timesteps, progress_bar=run.shows_bar)
        agent.save(run.folder / "agent.zip")
        env.close()
        eval_env.close()
        return run.finish("Agent, expert, report and logs", **results(run, agent, expert, expert_return))


def load_data(args: Args) -> Demonstrations | None:
    """The expert's earlier demonstrations, if any.

    Raises:
        ValueError: there are not as many as asked for.
    """
    if args.demonstrations is not None:
        return read_demonstrations(args, args.seed)
    if args.n_episodes is not None:
        raise ValueError("--n-episodes is for --demonstrations: leave it out, or name some.")
    return None


def make_agent(
    args: Args, run: TrainingRun, initial: Demonstrations | None, expert: Any, env: VecEnv, eval_env: VecEnv
) -> DAgger:
    """A new agent, or that of the run's last checkpoint."""
    from rlsmooth.agents import DAgger
    from rlsmooth.scripts.environment import check_device, cloning_engine, policy_alias
    from rlsmooth.scripts.training_run import saved_checkpoints

    device = check_device(args.device)
    saved = saved_checkpoints(args)
    if saved is not None:
        return DAgger.resume(saved, env, expert, eval_env=eval_env, device=device)
    policy = args.policy or policy_alias(env.observation_space)
    return DAgger(
        policy,
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
        engine=cloning_engine(args, policy, device),
        seed=args.seed,
        device=device,
        scratch_dir=run.checkpoints,
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


def results(run: TrainingRun, agent: DAgger, expert: ExpertAgent, expert_return: float) -> dict[str, Any]:
    """The entries of the report, from what was logged."""
    curves = run.curves()
    summary = {name.partition("/")[2]: values[-1] for name, (_, values) in curves.items()}
    summary |= {"expert_return": expert_return, "rounds": agent.round}
    words = type(expert.agent).__name__
    return {
        "curves": curves,
        "summary": {name: float(value) for name, value in summary.items() if math.isfinite(value)},
        "expert": f"{words}, {expert.steps:,} steps" if expert.steps else words,
    }


# ---- the expert


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertAgent:
    """The agent to ask, which may have to be trained first.

    Attributes:
        agent: cloned or on-policy; one that was trained on normalised observations has its `VecNormalize`.
        source: its file; None: it is new.
        steps: how long it is to be trained; 0 if it comes from a file.
        checkpoints: what writes its checkpoints; None: it has none yet.
    """

    agent: Any
    source: Path | None = None
    steps: int = 0
    checkpoints: ExactCheckpointCallback | None = None

    def make_ready(self, path: Path, *, progress: bool) -> None:
        """Train it if it is new, and write its file.

        Args:
            path: of the file.
            progress: show a progress bar.
        """
        if self.source is not None:
            if self.source != path:
                shutil.copyfile(self.source, path)
            return
        from rlsmooth.agents import ExactCheckpointCallback, save_agent
        from rlsmooth.scripts.on_policy_callbacks import ProgressBar

        callbacks = [
            self.checkpoints or ExactCheckpointCallback(EXPERT_SAVE_FREQ, path.parent / EXPERT_CHECKPOINTS),
            ProgressBar(disabled=not progress),
        ]
        left = self.steps - self.agent.num_timesteps
        self.agent.learn(left, callbacks, log_interval=None, reset_num_timesteps=self.checkpoints is None)
        normalizer = self.agent.get_vec_normalize_env()
        if normalizer is not None:
            normalizer.training = normalizer.norm_reward = False
        save_agent(self.agent, path)


def find_expert(args: Args, env: VecEnv) -> ExpertAgent:
    """The expert of the resumed run, of a file, or one to be trained.

    Raises:
        SafeFileError: the expert's file is damaged, or no agent of ours.
        ValueError: there are two experts, or none, or one that plays something else.
    """
    from rlsmooth.scripts.environment import check_device, evaluation_vectorization, make_envs
    from rlsmooth.scripts.loading import load_to_play

    device = check_device(args.device)
    if args.expert is not None and args.train_expert is not None:
        raise ValueError("--train-expert is for runs without --expert: leave one of them out.")
    kept = None if args.resume is None else args.resume / EXPERT_FILE
    if kept is not None and kept.is_file():
        file = kept
    elif args.expert is not None:
        file = agent_file("expert", args.expert)
    else:
        return new_expert(args, env)
    how = evaluation_vectorization(args.vectorization)
    world = make_envs(environment_settings(args), 1, 0, vectorization=how)
    agent, _ = load_to_play(file, world, device)
    return ExpertAgent(agent=agent, source=file)


def new_expert(args: Args, env: VecEnv) -> ExpertAgent:
    """A PPO with the hyperparameters of `rlsmooth ppo`, or of `maskable-ppo` where there are action masks.

    It is untrained, or, where a run is resumed, as its last checkpoint has it.

    Raises:
        ValueError: nobody says how long to train.
    """
    from rlsmooth.agents import SmoothedPPO, load_checkpoint
    from rlsmooth.scripts.environment import check_device
    from rlsmooth.scripts.hyperparameters import read_hyperparameters, resolve_hyperparameters
    from rlsmooth.scripts.on_policy import new_algorithm, training_envs
    from rlsmooth.training import checkpoint_steps

    algorithm: Any = SmoothedPPO
    command = "ppo"
    if env.has_attr("action_masks"):
        from rlsmooth.agents import SmoothedMaskablePPO

        algorithm, command = SmoothedMaskablePPO, "maskable-ppo"
    values = read_hyperparameters(command, args.env)
    known = values != read_hyperparameters(command, "no such environment")
    given = environment_settings(args)  # of the learner, which sees what the expert does
    values["env_kwargs"] = {**values.get("env_kwargs", {}), **given.env_kwargs}
    values |= {"env_wrapper": list(given.wrappers), "frame_stack": given.frame_stack}
    if args.train_expert is not None:
        values["n_timesteps"] = check_positive_int("train_expert", args.train_expert)
    elif not known:
        raise ValueError(
            f"nobody says how long to train an expert of env={args.env!r}: give --expert, or --train-expert with a "
            "number of steps."
        )
    hyperparameters = resolve_hyperparameters(values, algorithm)
    names = ("env", "gym_packages", "seed", "device", "vectorization")
    options = OnPolicyArgs(**{name: getattr(args, name) for name in names})
    train_env = training_envs(options, hyperparameters)
    saved = None if args.resume is None else args.resume / EXPERT_CHECKPOINTS
    if saved is not None and checkpoint_steps(saved):
        run = load_checkpoint(saved, train_env, device=check_device(args.device))
        return ExpertAgent(agent=run.model, steps=hyperparameters.n_timesteps, checkpoints=run.callback)
    agent = new_algorithm(algorithm, options, hyperparameters, train_env)
    return ExpertAgent(agent=agent, steps=hyperparameters.n_timesteps)


def evaluate_expert(args: Args, agent: Any) -> float:
    """The mean return of the expert's deterministic episodes."""
    from rlsmooth.agents.acting import play_episodes
    from rlsmooth.agents.sb3 import is_maskable
    from rlsmooth.scripts.environment import evaluation_vectorization, make_envs
    from rlsmooth.scripts.loading import NormalisedAgent
    from rlsmooth.scripts.on_policy import evaluation_seed

    n_envs = min(args.eval_episodes, N_EVAL_ENVS)
    how = evaluation_vectorization(args.vectorization)
    played = make_envs(environment_settings(args, evaluation=True), n_envs, args.seed, vectorization=how)
    normalizer = agent.get_vec_normalize_env()
    returns, _ = play_episodes(
        agent if normalizer is None else NormalisedAgent(agent, normalizer),
        played,
        n_episodes=args.eval_episodes,
        seed=evaluation_seed(args.seed),
        use_masks=is_maskable(agent.policy) and played.has_attr("action_masks"),
        deterministic=True,
    )
    played.close()
    return float(returns.mean())


if __name__ == "__main__":
    sys.exit(run_command("dagger", Args, main))
