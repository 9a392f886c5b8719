"""Rewards in a replay buffer grow stale when the reward is learned: they are made anew."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from rlsmooth.agents.off_policy_buffer import KNOWN_BUFFERS
from rlsmooth.agents.reward_function import RewardFunction

__all__ = ["check_relabelling", "relabel"]

CHUNK_ROWS = 16384


def check_relabelling(algorithm: BaseAlgorithm) -> None:
    """Check that the rewards in the algorithm's replay buffer, if it has one, can be made anew.

    Raises:
        TypeError: the buffer is of another kind, or keeps no next observations.
    """
    buffer: Any = algorithm.replay_buffer if isinstance(algorithm, OffPolicyAlgorithm) else None
    if buffer is not None and (type(buffer) not in KNOWN_BUFFERS or buffer.optimize_memory_usage):
        raise TypeError(
            f"the rewards of a {type(buffer).__name__} (or one with optimize_memory_usage) can't be made anew: use a "
            "ReplayBuffer, or relabel_replay_buffer=False."
        )


def relabel(algorithm: OffPolicyAlgorithm, reward: RewardFunction) -> None:
    """Write the reward of each transition in the algorithm's replay buffer again, as `reward` now has it.

    Args:
        algorithm: with a `ReplayBuffer`, `DictReplayBuffer` or `NStepReplayBuffer`.
        reward: of observations, actions, next observations and `terminated`.

    Raises:
        TypeError: the buffer is of another kind, or keeps no next observations.
    """
    check_relabelling(algorithm)
    buffer: Any = algorithm.replay_buffer
    size = buffer.size()
    count = buffer.n_envs
    steps = max(1, CHUNK_ROWS // count)
    space = algorithm.action_space
    for first in range(0, size, steps):
        rows = slice(first, min(first + steps, size))
        length = rows.stop - rows.start
        terminated = buffer.dones[rows].astype(bool) & ~buffer.timeouts[rows].astype(bool)
        actions = buffer.actions[rows].reshape(length * count, *(space.shape or ()))
        if isinstance(space, spaces.Box):
            actions = algorithm.policy.unscale_action(actions)
        values = reward(
            _flat(buffer.observations, rows), actions, _flat(buffer.next_observations, rows), terminated.reshape(-1)
        )
        buffer.rewards[rows] = values.reshape(length, count)


def _flat(observations: Any, rows: slice) -> Any:
    if isinstance(observations, dict):
        return {key: _rows(part[rows]) for key, part in observations.items()}
    return _rows(observations[rows])


def _rows(values: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(values).reshape(-1, *values.shape[2:])
