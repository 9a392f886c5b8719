"""The teachers of the study `distil_dqn`: DQNs, their episodes, and what they are worth as they are."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from torch import Tensor

from rlsmooth.atomic import write_bytes_atomically
from rlsmooth.data import record
from rlsmooth.scripts.studies.runner import Job, Result, run_jobs
from rlsmooth.scripts.studies.study_callbacks import mean_return
from rlsmooth.targets import boltzmann
from rlsmooth.training import isolated_rng

TEACHERS: dict[str, dict[str, Any]] = {
    "CartPole-v1": {
        "learning_rate": 2.3e-3,
        "batch_size": 64,
        "buffer_size": 100_000,
        "learning_starts": 1_000,
        "target_update_interval": 10,
        "train_freq": 256,
        "gradient_steps": 128,
        "exploration_fraction": 0.16,
        "exploration_final_eps": 0.04,
    },
    "Acrobot-v1": {
        "learning_rate": 6.3e-4,
        "batch_size": 128,
        "buffer_size": 50_000,
        "learning_starts": 0,
        "target_update_interval": 250,
        "train_freq": 4,
        "gradient_steps": -1,
        "exploration_fraction": 0.12,
        "exploration_final_eps": 0.1,
    },
}
BUDGETS = {"CartPole-v1": 50_000, "Acrobot-v1": 20_000}
BARS = {"CartPole-v1": 400.0, "Acrobot-v1": -150.0}  # a teacher that learned returns more
# In median gaps of the teacher's values.
TEMPERATURES = {"softmax(Q / T), T = gap / 4": 0.25, "softmax(Q / T), T = gap": 1.0}


class ValuePlayer:
    """Acts from softmax(Q / T) of a DQN's values, as `evaluate_policy` asks a model to."""

    def __init__(self, model: DQN, temperature: float) -> None:
        self.model, self.temperature = model, temperature

    def predict(self, observation: Any, *_: Any, **__: Any) -> tuple[np.ndarray[Any, Any], None]:
        """Sample an action for each observation."""
        probabilities = boltzmann(values_of(self.model, observation), self.temperature, validate=False).dense()
        return torch.multinomial(probabilities, 1).squeeze(-1).numpy(), None


class RandomPlayer:
    """Acts at random."""

    def __init__(self, env: str) -> None:
        self.num_actions = int(gym.make(env).action_space.n)  # type: ignore[attr-defined]

    def predict(self, observation: Any, *_: Any, **__: Any) -> tuple[np.ndarray[Any, Any], None]:
        """Draw an action for each observation."""
        return torch.randint(self.num_actions, (len(observation),)).numpy(), None


def values_of(model: DQN, observations: Any) -> Tensor:
    """The DQN's values `[B, K]`."""
    with torch.no_grad():
        found: Tensor = model.q_net(torch.as_tensor(np.asarray(observations), dtype=torch.float32))
    return found


def median_gap(q_values: Tensor) -> float:
    """The median difference of the two highest values, in the values' unit."""
    highest = q_values.double().topk(2, -1).values
    return float(np.median(highest[:, 0] - highest[:, 1]))


def play(player: Any, env: str, *, seed: int, episodes: int) -> float:
    """The mean return of what is no SB3 model."""
    with isolated_rng(seed):
        envs = make_vec_env(env, n_envs=min(episodes, 10), seed=seed)
        returns, _ = evaluate_policy(player, envs, n_eval_episodes=episodes, return_episode_rewards=True)
        envs.close()
    return float(np.mean(returns))


def teach(settings: dict[str, Any], *, folder: Path) -> Result:
    """Train a teacher, and write its episodes and their values to `folder`."""
    env, number, episodes = settings["env"], settings["teacher"], settings["evaluation"]
    model = DQN(
        "MlpPolicy", env, gamma=0.99, policy_kwargs={"net_arch": [256, 256]}, seed=number, device="cpu", **TEACHERS[env]
    )
    model.learn(settings["budget"])
    folder.mkdir(parents=True, exist_ok=True)
    for part, seed in (("training", 1_000), ("held_out", 2_000)):
        episodes_of_part = record(model, env, settings["episodes"], seed=seed + number, n_envs=settings["episodes"])
        episodes_of_part.save(folder / f"{env}_{number}_{part}.npz")
        file = io.BytesIO()
        np.savez(file, q_values=values_of(model, episodes_of_part.observations).numpy())
        write_bytes_atomically(folder / f"{env}_{number}_{part}_values.npz", file.getvalue())
    gap = median_gap(values_in(folder, env, number, "training"))
    result = {
        "gap": gap,
        "deterministic": mean_return(model, env, seed=3_000 + number, episodes=episodes, deterministic=True),
        "random": play(RandomPlayer(env), env, seed=3_000 + number, episodes=episodes),
    }
    for arm, temperature in TEMPERATURES.items():
        player = ValuePlayer(model, temperature * gap)
        result[arm] = play(player, env, seed=3_000 + number, episodes=episodes)
    return result


def values_in(folder: Path, env: str, number: int, part: str) -> Tensor:
    """The values `[N, K]` that `teach` wrote beside the episodes of that part."""
    with np.load(folder / f"{env}_{number}_{part}_values.npz") as file:
        return torch.from_numpy(file["q_values"])


def taught(
    env: str, settings: dict[str, Any], *, wanted: int, bar: float, folder: Path, workers: int
) -> list[tuple[int, Result]]:
    """Train teachers 0, 1, 2, ... until `wanted` of them return more than `bar`; all of them, with their numbers."""
    found: list[tuple[int, Result]] = []
    while missing := wanted - sum(result["deterministic"] > bar for _, result in found):
        numbers = range(len(found), len(found) + missing)
        jobs = [Job(f"teacher_{env}_{number}", {"env": env, "teacher": number, **settings}) for number in numbers]
        results = run_jobs(jobs, functools.partial(teach, folder=folder), folder=folder, workers=workers)
        found += zip(numbers, results, strict=True)
    return found
