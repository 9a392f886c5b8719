"""Callbacks of studies: returns of evaluations during training, and the policy's entropy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.type_aliases import PolicyPredictor

from rlsmooth.agents.smoothed.measures import measure_rollout
from rlsmooth.training import isolated_rng


class Watch(BaseCallback):
    """Look at the model at the start, every `every` steps and at the end; stop when `is_done` says so.

    Args:
        every: environment steps.
        look: what is kept, for the model.
        is_done: a function of all that was kept so far.
    """

    def __init__(
        self,
        every: int,
        look: Callable[[BaseAlgorithm], float],
        *,
        is_done: Callable[[list[float]], bool] | None = None,
    ) -> None:
        super().__init__()
        self.every, self.look, self.is_done = every, look, is_done
        self.steps: list[int] = []
        self.seen: list[float] = []
        self.entropy_steps: list[int] = []
        self.entropy_fractions: list[float] = []

    def curves(self) -> dict[str, list[Any]]:
        """What was kept, as a run's result holds it."""
        return {
            "steps": self.steps,
            "returns": self.seen,
            "entropy_steps": self.entropy_steps,
            "entropy_fractions": self.entropy_fractions,
        }

    def _on_training_start(self) -> None:
        self._look()

    def _on_step(self) -> bool:
        if self.num_timesteps - self.steps[-1] >= self.every:
            self._look()
        return self.is_done is None or not self.is_done(self.seen)

    def _on_rollout_end(self) -> None:
        fraction = measure_rollout(self.model).entropy_frac
        assert fraction is not None
        self.entropy_steps.append(self.num_timesteps)
        self.entropy_fractions.append(round(float(fraction), 5))

    def _on_training_end(self) -> None:
        if self.steps[-1] != self.num_timesteps:
            self._look()

    def _look(self) -> None:
        self.steps.append(self.num_timesteps)
        self.seen.append(self.look(self.model))


def mean_return(
    model: PolicyPredictor,
    env: str,
    *,
    seed: int,
    episodes: int,
    deterministic: bool,
    env_kwargs: dict[str, Any] | None = None,
) -> float:
    """The mean return of `episodes` episodes, without touching what the training draws."""
    with isolated_rng(seed):
        envs = make_vec_env(env, n_envs=min(episodes, 10), seed=seed, env_kwargs=env_kwargs)
        returns, _ = evaluate_policy(
            model, envs, n_eval_episodes=episodes, deterministic=deterministic, return_episode_rewards=True
        )
        envs.close()
    return float(np.mean(returns))
