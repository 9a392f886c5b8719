"""What Stable-Baselines3's callbacks and `evaluate_policy` ask of a model, for agents that are not SB3 algorithms."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from rlsmooth.agents.action_bins import ActionBins
from rlsmooth.agents.bc_setup import is_maskable
from rlsmooth.agents.spaces import check_same_spaces, wrap_env

__all__ = ["ActingModel"]


class ActingModel:
    """An agent with a policy that acts, a logger and perhaps environments. Subclasses set the fields.

    Attributes:
        policy: acts.
        observation_space: the policy's, images channel-first.
        action_space: the environment's.
        device: where the policy is.
        env: the environment, or None.
        eval_env: the environment of evaluations, or None.
        num_timesteps: how far training is.
        n_envs: the number of environments, 1 without any.
        verbose: 0 or 1.
        bins: what the policy's actions mean where a Box is cut into bins, else None.
    """

    policy: BasePolicy
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    device: torch.device
    env: VecEnv | None
    eval_env: VecEnv | None
    num_timesteps: int
    n_envs: int
    verbose: int
    bins: ActionBins | None
    _action_start: NDArray[Any] | None
    _logger: Logger | None
    _has_custom_logger: bool

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
        action_masks: NDArray[Any] | None = None,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Actions as the environment takes them, and the state, as SB3's `predict`.

        Args:
            observation: one observation, or a batch of them.
            state: passed through; for recurrent policies.
            episode_start: likewise.
            deterministic: the most probable action (a Box: the mean), else a sampled one.
            action_masks: bool, True = legal; only for sb3-contrib's maskable policies.

        Raises:
            ValueError: masks for a policy that takes none, an observation of another shape.
        """
        policy: Any = self.policy
        if is_maskable(policy):
            actions, state = policy.predict(observation, state, episode_start, deterministic, action_masks=action_masks)
        elif action_masks is not None:
            raise ValueError(
                f"action_masks can't be used by {type(policy).__name__}: train with policy='MaskableMlpPolicy'."
            )
        else:
            actions, state = policy.predict(observation, state, episode_start, deterministic)
        if self.bins is not None:
            return self.bins.decode(actions), state
        return (actions if self._action_start is None else actions + self._action_start), state

    @property
    def logger(self) -> Logger:
        """SB3's logger; before `learn` and without `set_logger` one that writes nowhere."""
        if self._logger is None:
            self._logger = configure(None, [""])
        return self._logger

    def set_logger(self, logger: Logger) -> None:
        """Log there from now on, whatever `tensorboard_log` and `verbose` are."""
        self._logger = logger
        self._has_custom_logger = True

    def dump_logs(self) -> None:
        """Write what was recorded since the last time."""
        self.logger.dump(self.num_timesteps)

    def get_env(self) -> VecEnv | None:
        """The environment, or that of the evaluations, or None."""
        return self.eval_env if self.env is None else self.env

    def set_env(self, env: GymEnv | str, force_reset: bool = True) -> None:
        """Use another environment from now on.

        Args:
            env: with the same spaces.
            force_reset: taken for SB3's sake; no environment is in the middle of an episode here.

        Raises:
            TypeError: it is no environment.
            ValueError: its spaces are not the agent's.
        """
        wrapped = wrap_env("env", env, self.verbose)
        check_same_spaces(
            "env", (wrapped.observation_space, wrapped.action_space), (self.observation_space, self.action_space)
        )
        self.env, self.n_envs = wrapped, wrapped.num_envs

    def get_vec_normalize_env(self) -> VecNormalize | None:
        """The `VecNormalize` among the environment's wrappers, or None."""
        env = self.get_env()
        return None if env is None else unwrap_vec_normalize(env)
