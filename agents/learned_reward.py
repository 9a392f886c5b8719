"""Environments whose reward is what a discriminator says, and which remember what happened in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from rlsmooth.agents.adversarial_data import TransitionStore

__all__ = ["LearnedRewardVecEnv", "install", "uninstall"]

RewardFunction = Callable[[Any, NDArray[Any], Any, NDArray[np.bool_]], NDArray[np.float32]]


class LearnedRewardVecEnv(VecEnvWrapper):
    """Replaces the rewards of a vectorised environment and keeps its transitions.

    The true episode returns stay in `infos` (SB3's Monitor), so that `rollout/ep_rew_mean` stays the true one; the
    return in the learned reward is in `finished_returns`.

    Args:
        venv: the environment.
        reward: of observations, actions, next observations and `terminated`.
        store: takes the transitions.
        horizon: steps up to which terminated episodes are padded; None: not at all.

    Attributes:
        finished_returns: of the episodes that ended since the list was last cleared, in the learned reward.
    """

    def __init__(
        self, venv: VecEnv, reward: RewardFunction, store: TransitionStore, *, horizon: int | None = None
    ) -> None:
        super().__init__(venv)
        self.reward = reward
        self.store = store
        self.horizon = horizon
        self.finished_returns: list[float] = []
        self._observations: Any = None
        self._actions: NDArray[Any] = np.zeros(0)
        self._masks: NDArray[np.bool_] | None = None
        self._lengths = np.zeros(venv.num_envs, dtype=np.int64)
        self._returns = np.zeros(venv.num_envs)

    def reset(self) -> Any:
        """As the wrapped environment's."""
        self._observations = self.venv.reset()
        self._lengths[:] = 0
        self._returns[:] = 0
        return self._observations

    def step_async(self, actions: NDArray[Any]) -> None:
        """Remember the actions and pass them on."""
        self._actions = np.asarray(actions)
        if self.store.masks is not None:
            self._masks = np.stack([np.asarray(mask, bool).reshape(-1) for mask in self.env_method("action_masks")])
        self.venv.step_async(actions)

    def step_wait(self) -> Any:
        """As the wrapped environment's, with the learned reward."""
        observations, _, dones, infos = self.venv.step_wait()
        truncated = np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos])
        terminated = dones & ~truncated
        after = _with_final(observations, dones, infos)
        self._lengths += 1
        padding = np.zeros(len(dones))
        if self.horizon is not None:
            padding = np.where(terminated, np.maximum(self.horizon - self._lengths, 0), 0)
        rewards = self.reward(self._observations, self._actions, after, terminated)
        self.store.add(self._observations, self._actions, after, terminated, padding, self._masks)
        self._returns += rewards
        self.finished_returns += self._returns[dones].tolist()
        self._returns[dones] = 0
        self._lengths[dones] = 0
        self._observations = observations
        return observations, rewards, dones, infos

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a LearnedRewardVecEnv can't be pickled: save the trainer by its own `save`.")


def install(algorithm: BaseAlgorithm, wrap: Callable[[VecEnv], LearnedRewardVecEnv]) -> LearnedRewardVecEnv:
    """Put the wrapper around the algorithm's environment: below a `VecNormalize`, which would change observations.

    Raises:
        ValueError: the algorithm has no environment, or one whose VecNormalize lies below another wrapper.
    """
    env = algorithm.env
    if env is None:
        raise ValueError("gen_algo has no environment: give it one, as in PPO('MlpPolicy', env).")
    if isinstance(env, VecNormalize):
        inner = wrap(env.venv)
        _refuse_normalize(env.venv)
        env.venv = inner
        return inner
    _refuse_normalize(env)
    inner = wrap(env)
    algorithm.env = inner
    algorithm._last_obs = None  # the next `learn` resets the environments, through the wrapper
    return inner


def uninstall(algorithm: BaseAlgorithm, wrapper: LearnedRewardVecEnv) -> None:
    """Take the wrapper away again; the next `learn` of the algorithm starts new episodes."""
    env = algorithm.env
    if env is wrapper:
        algorithm.env = wrapper.venv
    elif isinstance(env, VecNormalize) and env.venv is wrapper:
        env.venv = wrapper.venv
    algorithm._last_obs = None


def _refuse_normalize(env: VecEnv) -> None:
    inner: Any = env
    while isinstance(inner, VecEnvWrapper):
        if isinstance(inner, VecNormalize):
            raise ValueError(
                "gen_algo's VecNormalize lies below another wrapper: the discriminator must see raw observations. "
                "Put VecNormalize outermost."
            )
        inner = inner.venv


def _with_final(observations: Any, dones: NDArray[np.bool_], infos: list[dict[str, Any]]) -> Any:
    """What the environments showed after the actions: of an ended episode its last observation."""
    if not dones.any():
        return observations
    places = np.flatnonzero(dones)
    if isinstance(observations, dict):
        after = {key: part.copy() for key, part in observations.items()}
        for place in places:
            for key, part in after.items():
                part[place] = infos[place]["terminal_observation"][key]
        return after
    replaced = np.array(observations)
    for place in places:
        replaced[place] = infos[place]["terminal_observation"]
    return replaced
