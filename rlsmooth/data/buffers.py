"""SB3's buffers hold `[time, environment, ...]`; here each environment's rows are put in time order, end to end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rlsmooth.data.arrays import AnyArray
from rlsmooth.data.demonstrations import Demonstrations

if TYPE_CHECKING:
    from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer

__all__ = ["demonstrations_from_replay_buffer", "demonstrations_from_rollout_buffer"]


def demonstrations_from_replay_buffer(buffer: ReplayBuffer, *, actions_are_scaled: bool = True) -> Demonstrations:
    """Read an SB3 `ReplayBuffer` or `DictReplayBuffer`; see `Demonstrations.from_replay_buffer`."""
    from stable_baselines3.common.buffers import ReplayBuffer

    if not isinstance(buffer, ReplayBuffer):
        raise TypeError(f"buffer must be an SB3 ReplayBuffer, got {type(buffer).__name__}.")
    size = buffer.size()
    rows = np.arange(size)  # time order
    if buffer.full:
        rows = (rows + buffer.pos) % buffer.buffer_size
        if buffer.optimize_memory_usage:
            # Observation `pos` was overwritten by the next observation of the newest row: its action is another's.
            rows = rows[1:]
    if len(rows) == 0:
        raise ValueError("the buffer is empty: demonstrations need at least one transition.")

    def flatten(array: AnyArray) -> AnyArray:
        return _environment_major(array[rows])

    dones, timeouts = flatten(buffer.dones) > 0, flatten(buffer.timeouts) > 0
    space = buffer.action_space
    actions = _unflatten_actions(flatten(buffer.actions), space)
    if isinstance(space, spaces.Box) and actions_are_scaled:
        actions = _unscale(actions, space)
    return Demonstrations(
        observations=_map(buffer.observations, flatten, buffer.observation_space),
        actions=actions,
        observation_space=buffer.observation_space,
        action_space=space,
        episode_ends=_ends(dones, len(rows)),
        # The memory-saving form has no place for final observations: a restart overwrites them.
        next_observations=None
        if buffer.optimize_memory_usage
        else _map(buffer.next_observations, flatten, buffer.observation_space),
        rewards=flatten(buffer.rewards),
        # Without timeout handling, nothing tells a time limit from a terminal state.
        terminations=dones & ~timeouts if buffer.handle_timeout_termination else None,
        truncations=dones & timeouts if buffer.handle_timeout_termination else None,
        metadata={"source": type(buffer).__name__},
    )


def demonstrations_from_rollout_buffer(buffer: RolloutBuffer) -> Demonstrations:
    """Read an SB3 `RolloutBuffer` or `DictRolloutBuffer`; see `Demonstrations.from_rollout_buffer`."""
    from stable_baselines3.common.buffers import RolloutBuffer

    if not isinstance(buffer, RolloutBuffer):
        raise TypeError(f"buffer must be an SB3 RolloutBuffer, got {type(buffer).__name__}.")
    count = buffer.pos
    if count == 0:
        raise ValueError("the buffer is empty: demonstrations need at least one transition.")

    def flatten(array: AnyArray) -> AnyArray:
        # `get` flattens some arrays in place, in our order; the flags and rewards keep their shape.
        return array if buffer.generator_ready else _environment_major(array[:count])

    starts = buffer.episode_starts[:count] > 0  # [time, environment]
    dones = np.zeros_like(starts)
    dones[:-1] = starts[1:]
    space = buffer.action_space
    actions = _unflatten_actions(flatten(buffer.actions), space)
    if isinstance(space, spaces.Box):
        actions = np.clip(actions, space.low, space.high)
    masks = getattr(buffer, "action_masks", None)  # sb3-contrib's maskable buffers
    if masks is not None:
        masks = flatten(masks).reshape(len(actions), -1) > 0
    return Demonstrations(
        observations=_map(buffer.observations, flatten, buffer.observation_space),
        actions=actions,
        observation_space=buffer.observation_space,
        action_space=space,
        episode_ends=_ends(_environment_major(dones), count),
        rewards=_environment_major(buffer.rewards[:count]),
        action_masks=masks,
        metadata={"source": type(buffer).__name__},
    )


def _environment_major(array: AnyArray) -> AnyArray:
    """`[time, environment, ...]` to `[environment * time, ...]`."""
    return array.swapaxes(0, 1).reshape(-1, *array.shape[2:])


def _ends(dones: AnyArray, rows_per_env: int) -> npt.NDArray[np.int64]:
    """Episodes end where they are done, and with the last row of each environment."""
    last = np.arange(rows_per_env, len(dones) + 1, rows_per_env)
    return np.union1d(np.flatnonzero(dones) + 1, last)


def _map(observations: Any, flatten: Callable[[AnyArray], AnyArray], space: spaces.Space[Any]) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _map(observations[key], flatten, part) for key, part in space.spaces.items()}
    rows = flatten(observations)
    return rows.reshape(len(rows), *(space.shape or ()))  # SB3 stores a Discrete observation as [1]


def _unflatten_actions(actions: AnyArray, space: spaces.Space[Any]) -> AnyArray:
    actions = actions.reshape(len(actions), *(space.shape or ()))
    # SB3's buffers may hold whole numbers as floats.
    return actions if isinstance(space, spaces.Box) else actions.astype(np.int64)


def _unscale(actions: AnyArray, space: spaces.Box) -> AnyArray:
    """SB3's off-policy algorithms store actions scaled to [-1, 1]; this is `BasePolicy.unscale_action`."""
    unscaled: AnyArray = space.low + 0.5 * (actions + 1.0) * (space.high - space.low)
    # Rounding in float32 can step over a bound by one unit in the last place.
    return np.clip(unscaled, space.low, space.high)
