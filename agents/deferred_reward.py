"""Rewards that an on-policy algorithm is given when its rollout is full, all in one pass of the reward network.

Nothing between two updates needs a reward before the returns are computed, and a network is many times faster on a
thousand rows at once than on a few rows a thousand times.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from rlsmooth.agents.learned_reward import RecordingRewardVecEnv

__all__ = ["can_defer", "deferred_rewards"]

KNOWN = ("stable_baselines3", "sb3_contrib", "rlsmooth")
"""Packages whose `collect_rollouts` uses rewards in no other way than by the rollout buffer, and whose buffers
keep them as they are."""


def can_defer(algorithm: BaseAlgorithm, capacity: int) -> bool:
    """Whether nothing in the algorithm's rollouts needs a reward before the returns are computed.

    Args:
        algorithm: with its environment.
        capacity: rows that the store keeps; a rollout must fit.
    """
    if not isinstance(algorithm, OnPolicyAlgorithm) or capacity < algorithm.n_steps * algorithm.n_envs:
        return False
    normalises_rewards = isinstance(algorithm.env, VecNormalize) and algorithm.env.norm_reward
    used = type(algorithm).collect_rollouts, type(algorithm.rollout_buffer).add
    return not normalises_rewards and all(each.__module__.split(".")[0] in KNOWN for each in used)


@contextmanager
def deferred_rewards(algorithm: BaseAlgorithm, wrapper: RecordingRewardVecEnv) -> Iterator[None]:
    """Meanwhile the rollout buffer adds the true rewards to its own before it computes the returns.

    What it holds by then is the worth of the states at which time limits cut episodes off, else 0.
    """
    if not wrapper.is_deferred:
        yield
        return
    assert isinstance(algorithm, OnPolicyAlgorithm)
    buffer = algorithm.rollout_buffer
    compute = buffer.compute_returns_and_advantage

    def settle_and_compute(last_values: Tensor, dones: NDArray[np.bool_]) -> None:
        buffer.rewards += wrapper.settle()
        compute(last_values=last_values, dones=dones)

    vars(buffer)["compute_returns_and_advantage"] = settle_and_compute
    try:
        yield
    finally:
        del vars(buffer)["compute_returns_and_advantage"]
