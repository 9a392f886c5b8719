"""Label noise on actions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rlsmooth.data.arrays import AnyArray, Array
from rlsmooth.data.validation import action_dims, action_starts, stored_dtype

__all__ = ["noisy_actions"]

CHUNK_ROWS = 65_536
"""Rows drawn at once. Fixed, since it is part of what a seed means."""


def noisy_actions(actions: Array, space: spaces.Space[Any], masks: Array | None, *, p: float, seed: int) -> AnyArray:
    """Actions of which a share `p` is replaced by another legal one; see `Demonstrations.with_action_noise`.

    Returns:
        A new array in memory, `[N, *space.shape]`, in the dtype that `Demonstrations` stores.

    Raises:
        ValueError: the space is a Box without finite bounds.
    """
    rng = np.random.default_rng(seed)
    noisy = np.empty(actions.shape, dtype=stored_dtype(space))
    for start in range(0, len(actions), CHUNK_ROWS):
        rows = slice(start, min(start + CHUNK_ROWS, len(actions)))
        part = np.asarray(actions[rows])
        if isinstance(space, spaces.Box):
            noisy[rows] = _noisy_box(part, space, p, rng)
        else:
            mask = None if masks is None else np.asarray(masks[rows])
            noisy[rows] = _noisy_choices(part, space, mask, p, rng)
    return noisy


def _noisy_box(actions: AnyArray, space: spaces.Box, p: float, rng: np.random.Generator) -> AnyArray:
    if not space.is_bounded():
        raise ValueError(f"action_space={space!r} has no finite bounds to draw noise between: use a bounded Box.")
    hit = rng.random(len(actions)) < p  # [n]
    if np.dtype(space.dtype).kind == "f":
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        drawn = rng.uniform(low, high, size=actions.shape).astype(space.dtype)
    else:
        bounds = space.low.astype(np.int64), space.high.astype(np.int64)
        drawn = rng.integers(*bounds, size=actions.shape, endpoint=True).astype(space.dtype)
    return np.where(hit.reshape(-1, *(1,) * (actions.ndim - 1)), drawn, actions)


def _noisy_choices(
    actions: AnyArray, space: spaces.Space[Any], mask: AnyArray | None, p: float, rng: np.random.Generator
) -> AnyArray:
    dims, first = action_dims(space), action_starts(space)
    labels = actions.reshape(len(actions), -1).astype(np.int64) - first  # [n, D], from 0
    hit = rng.random(labels.shape) < p
    column = 0
    for dim, choices in enumerate(dims):
        legal = np.ones((len(labels), int(choices)), dtype=bool) if mask is None else mask[:, column : column + choices]
        labels[:, dim] = np.where(hit[:, dim], _another_choice(labels[:, dim], legal, rng), labels[:, dim])
        column += int(choices)
    return (labels + first).reshape(actions.shape)


def _another_choice(label: npt.NDArray[np.int64], legal: AnyArray, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """A uniformly random legal choice other than the label, or the label where there is no other: int64 `[n]`."""
    others = legal.copy()  # [n, K]
    others[np.arange(len(label)), label] = False
    count = others.sum(axis=1)
    rank = rng.integers(np.maximum(count, 1))  # which of the others, counted from 0
    chosen = (np.cumsum(others, axis=1) > rank[:, None]).argmax(axis=1)
    return np.where(count > 0, chosen, label)
