"""Reading some transitions of a set: a `Batch` of rows, or the fields of chosen episodes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rlsmooth.data.arrays import AnyArray, Array, Observations, Rows, select_rows, take_rows
from rlsmooth.data.validation import stored_dtype

if TYPE_CHECKING:
    from rlsmooth.data.demonstrations import Demonstrations

__all__ = ["ROW_FIELDS", "Batch", "read_batch", "selected_fields"]

ROW_FIELDS = (
    "actions",
    "rewards",
    "terminations",
    "truncations",
    "action_masks",
    "weights",
    "groups",
    "action_probs",
)
"""The fields that hold one array whose first axis is the transitions."""


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Some transitions, read into memory; the fields are those of `Demonstrations`, `None` where it has none."""

    observations: AnyArray | dict[str, AnyArray]
    actions: AnyArray
    next_observations: AnyArray | dict[str, AnyArray] | None = None
    rewards: AnyArray | None = None
    terminations: AnyArray | None = None
    truncations: AnyArray | None = None
    action_masks: AnyArray | None = None
    weights: AnyArray | None = None
    groups: AnyArray | None = None
    action_probs: AnyArray | None = None

    def __len__(self) -> int:
        return len(self.actions)


def read_batch(data: Demonstrations, rows: Rows) -> Batch:
    """The rows of every field, in the dtypes of the spaces even where a file on the disk has another.

    Raises:
        TypeError: `rows` is one number.
        IndexError: a row is outside the set.
    """
    if not isinstance(rows, slice) and np.ndim(rows) == 0:
        raise TypeError(f"rows={rows} must be a slice or an array of rows: use [{rows} : {rows} + 1] for one row.")
    parts: dict[str, Any] = {
        name: take_rows(value, rows) for name in ROW_FIELDS if (value := getattr(data, name)) is not None
    }
    parts["actions"] = parts["actions"].astype(stored_dtype(data.action_space), copy=False)
    parts["observations"] = _read_observations(data.observations, rows, data.observation_space)
    if data.next_observations is not None:
        parts["next_observations"] = _read_observations(data.next_observations, rows, data.observation_space)
    return Batch(**parts)


def selected_fields(data: Demonstrations, chosen: npt.NDArray[np.int64]) -> dict[str, Any]:
    """The fields of the episodes of numbers `chosen`: copies of arrays in memory, views of those on the disk."""
    starts, lengths = data.episode_starts[chosen], data.episode_lengths()[chosen]
    fields: dict[str, Any] = {"episode_ends": np.cumsum(lengths)}
    for name in ROW_FIELDS:
        value = getattr(data, name)
        if value is not None:
            fields[name] = select_rows(value, starts, lengths)
    for name in ("observations", "next_observations"):
        value = getattr(data, name)
        if isinstance(value, dict):
            fields[name] = {key: select_rows(part, starts, lengths) for key, part in value.items()}
        elif value is not None:
            fields[name] = select_rows(value, starts, lengths)
    if data.infos is not None:
        runs = zip(starts.tolist(), lengths.tolist(), strict=True)
        fields["infos"] = tuple(info for start, length in runs for info in data.infos[start : start + length])
    return fields


def _read_observations(
    observations: Observations, rows: Rows, space: spaces.Space[Any]
) -> AnyArray | dict[str, AnyArray]:
    if isinstance(observations, dict):
        assert isinstance(space, spaces.Dict)
        return {key: _read_rows(value, rows, space[key]) for key, value in observations.items()}
    return _read_rows(observations, rows, space)


def _read_rows(array: Array, rows: Rows, space: spaces.Space[Any]) -> AnyArray:
    return take_rows(array, rows).astype(stored_dtype(space), copy=False)
