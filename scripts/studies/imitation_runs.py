"""Shared by the studies of GAIL and AIRL: the generator, the demonstrations, and the true returns while it learns."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from rlsmooth.data import Demonstrations, cartpole_v1, record
from rlsmooth.scripts.studies.bco_experts import swing_up
from rlsmooth.scripts.studies.study_callbacks import mean_return

N_ENVS = 16
HORIZON = 500
"""The time limit of CartPole-v1 and of Acrobot-v1."""
GENERATOR: dict[str, Any] = {
    "n_steps": 32,
    "batch_size": 256,
    "n_epochs": 10,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "learning_rate": 0.001,
}
KINDS = ("deterministic", "sampled")


def make_generator(env: str, seed: int) -> PPO:
    """PPO on copies of the environment."""
    return PPO("MlpPolicy", make_vec_env(env, n_envs=N_ENVS, seed=seed), seed=seed, device="cpu", **GENERATOR)


def demonstrations(env: str, episodes: int, seed: int) -> Demonstrations:
    """Episodes of an expert: CartPole-v1's that ship (return 500), a scripted one's of Acrobot-v1 (about -80)."""
    if env == "CartPole-v1":
        return cartpole_v1().sample_episodes(episodes, seed=seed)
    return record(swing_up, env, episodes, seed=1_000 * (seed + 1))


class TrainingReturns(BaseCallback):
    """Keeps the true mean return of the last 100 episodes of training, once in so many rollouts.

    Args:
        every: rollouts. The first ones are left out, in which no episode need have ended.
    """

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every
        self.rollouts = 0
        self.steps: list[int] = []
        self.returns: list[float] = []

    @property
    def is_looking(self) -> bool:
        """Whether this rollout is one that is looked at."""
        return self.rollouts % self.every == 0 and self.rollouts * int(GENERATOR["n_steps"]) >= HORIZON

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.rollouts += 1
        if self.is_looking:
            self.steps.append(self.num_timesteps)
            assert self.model.ep_info_buffer
            self.returns.append(round(float(np.mean([episode["r"] for episode in self.model.ep_info_buffer])), 2))


def final_returns(agent: Any, env: str, *, seed: int, episodes: int) -> dict[str, float]:
    """The true mean return of deterministic and of sampled actions."""
    return {
        kind: mean_return(agent, env, seed=20_000 + seed, episodes=episodes, deterministic=kind == "deterministic")
        for kind in KINDS
    }
