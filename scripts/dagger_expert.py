"""The expert of `rlsmooth dagger`: an agent from a file, or one that `rlsmooth ppo` would train."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stable_baselines3.common.vec_env import VecEnv

from rlsmooth.agents import SmoothedPPO, save_agent
from rlsmooth.agents.acting import play_episodes
from rlsmooth.agents.sb3 import is_maskable
from rlsmooth.checks import check_positive_int
from rlsmooth.scripts.environment import make_envs
from rlsmooth.scripts.hyperparameters import Hyperparameters, read_hyperparameters, resolve_hyperparameters
from rlsmooth.scripts.loading import NormalisedAgent, load_to_play
from rlsmooth.scripts.on_policy_arguments import OnPolicyArgs
from rlsmooth.scripts.on_policy_callbacks import ProgressBar
from rlsmooth.scripts.on_policy_model import evaluation_seed, new_model, training_envs

__all__ = ["EXPERT_FILE", "Asked", "evaluate_expert", "loaded_expert", "new_expert"]

EXPERT_FILE = "expert.zip"
"""In the run's folder, so that a run goes on without the file that it began with."""
N_EVAL_ENVS = 20


@dataclass(frozen=True, kw_only=True)
class Asked:
    """An expert that stands ready, or that is yet to be trained.

    Attributes:
        agent: what is asked.
        source: its file; None: it is new.
        steps: how long it is to be trained; 0 for one of a file.
    """

    agent: Any
    source: Path | None = None
    steps: int = 0

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
        self.agent.learn(self.steps, [ProgressBar(disabled=not progress)], log_interval=None)
        normalizer = self.agent.get_vec_normalize_env()
        if normalizer is not None:
            normalizer.training = normalizer.norm_reward = False
        save_agent(self.agent, path)


def loaded_expert(path: Path, env: str, device: str) -> Asked:
    """The expert of an agent file.

    Args:
        path: the file, or the folder of a run.
        env: the environment's id.
        device: where it runs.

    Raises:
        SafeFileError: the file is damaged, or no agent of ours.
        ValueError: there is no such file, or it plays something else.
    """
    file = path / "agent.zip" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"expert={str(path)!r} is neither an agent's file nor a run's folder.")
    agent, _ = load_to_play(file, make_envs(env, 1, 0), device)
    return Asked(agent=agent, source=file)


def new_expert(env: VecEnv, *, name: str, n_timesteps: int | None, seed: int, device: str) -> Asked:
    """An untrained PPO with the hyperparameters of `rlsmooth ppo`, or of `maskable-ppo` where there are action masks.

    Args:
        env: tells whether there are action masks.
        name: its id.
        n_timesteps: how long to train it; None: as the hyperparameters say.
        seed: of the training.
        device: where it runs.

    Raises:
        ValueError: nobody says how long to train.
    """
    algorithm: Any = SmoothedPPO
    command = "ppo"
    if env.has_attr("action_masks"):
        from rlsmooth.agents import SmoothedMaskablePPO

        algorithm, command = SmoothedMaskablePPO, "maskable-ppo"
    values = read_hyperparameters(command, name)
    if n_timesteps is not None:
        values["n_timesteps"] = check_positive_int("train_expert", n_timesteps)
    elif values == read_hyperparameters(command, "no such environment"):
        raise ValueError(
            f"nobody says how long to train an expert of env={name!r}: give --expert, or --train-expert with a number "
            "of steps."
        )
    hyperparameters: Hyperparameters = resolve_hyperparameters(values, algorithm)
    args = OnPolicyArgs(env=name, seed=seed, device=device)
    agent = new_model(algorithm, args, hyperparameters, training_envs(args, hyperparameters))
    return Asked(agent=agent, steps=hyperparameters.n_timesteps)


def evaluate_expert(agent: Any, env: str, *, n_episodes: int, seed: int) -> float:
    """The mean return of its deterministic episodes.

    Args:
        agent: with the `VecNormalize` that it was trained in, if any.
        env: the environment's id.
        n_episodes: how many.
        seed: of the run.
    """
    played = make_envs(env, min(n_episodes, N_EVAL_ENVS), seed)
    normalizer = agent.get_vec_normalize_env()
    returns, _ = play_episodes(
        agent if normalizer is None else NormalisedAgent(agent, normalizer),
        played,
        n_episodes=n_episodes,
        seed=evaluation_seed(OnPolicyArgs(seed=seed)),
        use_masks=is_maskable(agent.policy) and played.has_attr("action_masks"),
        deterministic=True,
    )
    played.close()
    return float(returns.mean())
