"""Ordered actions: the nearer the action is to the state, the better; the place to test ordinal smoothing."""

from __future__ import annotations

from typing import final

import numpy as np
from gymnasium import spaces

from rlsmooth.checks import check_positive_int
from rlsmooth.envs.images import RenderMode
from rlsmooth.envs.observations import ObservationForm
from rlsmooth.envs.tabular import TabularProblem
from rlsmooth.envs.tabular_env import TabularEnv


@final
class IdentityOrderedEnv(TabularEnv):
    """Ordered identity: reward `1 - |action - state| / (n - 1)`. Registered as `rlsmooth/IdentityOrdered-v0`.

    The best policy equals Identity's, but mistakes differ, so what smoothing spreads matters:
    `optimal_smoothed_policy` takes an ordinal `Smoothing` as well as a number, and the soft optimum under an entropy
    bonus is the two-sided geometric `pi(a | s) ~ exp(-|a - s| / ((n - 1) * coefficient))`, which is the ordinal scheme
    `"exponential"` with power 1.

    Args:
        num_actions: number of states and of actions, at least 2.
        episode_length: steps in an episode.
        observation: how the state is shown: `"native"` (Discrete), `"one_hot"`, `"dict"` or `"image"`.
        render_mode: None or `"rgb_array"`.

    Raises:
        TypeError: if a number is not whole.
        ValueError: if an argument is out of range or unknown.

    Examples:
        >>> env = IdentityOrderedEnv(3, episode_length=2)
        >>> env.problem.rewards.tolist()
        [[1.0, 0.5, 0.0], [0.5, 1.0, 0.5], [0.0, 0.5, 1.0]]
        >>> round(env.expected_return(np.full((3, 3), 1 / 3)), 4)
        1.1111
    """

    def __init__(
        self,
        num_actions: int = 5,
        *,
        episode_length: int = 10,
        observation: ObservationForm = "native",
        render_mode: RenderMode | None = None,
    ) -> None:
        n = check_positive_int("num_actions", num_actions, 2)
        values = np.arange(n)
        rewards = 1.0 - np.abs(values - values[:, None]) / (n - 1)  # [S, n]
        problem = TabularProblem((n,), rewards, np.ones((n, n), dtype=np.bool_))
        super().__init__(
            problem, spaces.Discrete(n), episode_length=episode_length, observation=observation, render_mode=render_mode
        )
