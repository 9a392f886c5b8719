"""The filled part of a replay buffer as tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from torch import Tensor

__all__ = ["KNOWN_BUFFERS", "buffer_state", "check_buffer", "cut_off_episodes", "set_buffer_state"]

KNOWN_BUFFERS = (ReplayBuffer, DictReplayBuffer, NStepReplayBuffer)
"""They keep the reward of each step with its transition."""

ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def check_buffer(name: str, buffer: object) -> ReplayBuffer:
    """The buffer, if it is of a kind whose content can be kept.

    Args:
        name: what errors call it.
        buffer: of an algorithm.

    Raises:
        TypeError: it is of another class, such as HerReplayBuffer, or saves memory by sharing its observations.
    """
    if type(buffer) not in KNOWN_BUFFERS:
        known = ", ".join(kind.__name__ for kind in KNOWN_BUFFERS)
        raise TypeError(f"{name} is a {type(buffer).__name__}: only {known} can be kept in a file.")
    assert isinstance(buffer, ReplayBuffer)
    if buffer.optimize_memory_usage:
        raise TypeError(f"{name} has optimize_memory_usage=True: it can't be kept in a file. Set it to False.")
    return buffer


def buffer_state(buffer: ReplayBuffer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The place in the buffer and its rows so far, not copied.

    Args:
        buffer: see `check_buffer`.

    Returns:
        JSON, and the tensors, `[rows, environments, ...]`.

    Raises:
        TypeError: as by `check_buffer`.

    Example:
        >>> from stable_baselines3 import DQN
        >>> model = DQN("MlpPolicy", "CartPole-v1", learning_starts=50).learn(20)
        >>> head, tensors = buffer_state(model.replay_buffer)
        >>> head["place"], tensors["observations"].shape
        (20, torch.Size([20, 1, 4]))
    """
    check_buffer("replay_buffer", buffer)
    rows = buffer.size()
    arrays = _arrays(buffer)
    head = {
        "class": type(buffer).__name__,
        "place": int(buffer.pos),
        "is_full": bool(buffer.full),
        "shapes": {name: list(array.shape) for name, array in arrays.items()},
    }
    return head, {name: torch.from_numpy(array[:rows]) for name, array in arrays.items()}


def set_buffer_state(buffer: Any, head: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Put back what `buffer_state` gave, into a buffer of the same size, in place.

    Raises:
        TypeError: as by `check_buffer`.
        ValueError: the buffer is of another class or size, or the data is malformed.
    """
    buffer = check_buffer("replay_buffer", buffer)
    arrays = _arrays(buffer)
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    if (head["class"], head["shapes"]) != (type(buffer).__name__, shapes):
        raise ValueError(
            f"the saved replay buffer is a {head['class']} with arrays {head['shapes']}, the algorithm's is a "
            f"{type(buffer).__name__} with {shapes}: give as many environments and the same buffer_size."
        )
    place, is_full = head["place"], head["is_full"]
    if not (type(place) is int and 0 <= place < buffer.buffer_size and isinstance(is_full, bool)):
        raise ValueError(f"the saved replay buffer stands at {place!r} of {buffer.buffer_size}: use another copy.")
    rows = buffer.buffer_size if is_full else place
    kept = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    expected = {name: ([rows, *array.shape[1:]], array.dtype) for name, array in arrays.items()}
    if {name: (list(array.shape), array.dtype) for name, array in kept.items()} != expected:
        raise ValueError("the saved replay buffer has arrays of other shapes or dtypes: use another copy.")
    used = buffer.size()
    for name, array in arrays.items():
        array[:rows] = kept[name]
        array[rows:used] = 0  # writing to the others would take the memory that the system has not yet given
    buffer.pos, buffer.full = place, is_full


def cut_off_episodes(buffer: ReplayBuffer) -> None:
    """Let the episodes that are under way end in the last row, as if by a time limit, in place.

    For environments that begin new episodes: otherwise a return of n steps would lead from one into the other.

    Example:
        >>> from stable_baselines3 import DQN
        >>> model = DQN("MlpPolicy", "CartPole-v1", learning_starts=50, seed=0).learn(4)
        >>> cut_off_episodes(model.replay_buffer)
        >>> model.replay_buffer.timeouts[:5, 0].tolist()
        [0.0, 0.0, 0.0, 1.0, 0.0]
    """
    if buffer.size():
        last = (buffer.pos - 1) % buffer.buffer_size
        buffer.timeouts[last] = np.logical_or(buffer.timeouts[last], buffer.dones[last] == 0)


def _arrays(buffer: ReplayBuffer) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for name in ARRAYS:
        value: Any = getattr(buffer, name)
        parts: dict[str, NDArray[np.generic]] = value if isinstance(value, dict) else {"": value}
        arrays |= {f"{name}/{key}" if key else name: array for key, array in parts.items()}
    return arrays
