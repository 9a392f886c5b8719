"""Arrays whose rows are transitions, in memory or on the disk, and how to read some of their rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt

__all__ = [
    "AnyArray",
    "Array",
    "EpisodeView",
    "Observations",
    "Rows",
    "as_array",
    "as_observations",
    "chunks",
    "episode_rows",
    "in_memory",
    "join_observations",
    "select_rows",
    "stack_observations",
    "take_rows",
]

AnyArray: TypeAlias = npt.NDArray[Any]
Rows: TypeAlias = slice | npt.NDArray[np.int64] | npt.NDArray[np.bool_] | list[int]

CHUNK_BYTES = 16 * 2**20
"""How much of an array the checks and the writers hold in memory at once."""


class EpisodeView:
    """Some episodes of a memory-mapped array, in some order, without a copy of them.

    It behaves as an array whose first axis is the transitions of those episodes, end to end: `view[rows]` reads the
    rows (a slice, an index array or a Boolean array) and returns an ordinary array, `np.asarray(view)` reads them all.
    It holds three numbers an episode, whatever the episodes' size.

    Args:
        base: `[N, ...]`, usually a `np.memmap`.
        starts: int64 `[E]`, the row in `base` at which each episode starts.
        lengths: int64 `[E]`, the number of rows of each episode.

    Example:
        >>> view = EpisodeView(np.arange(10), np.array([7, 0]), np.array([3, 2]))
        >>> np.asarray(view).tolist(), view[1:4].tolist(), view[[0, -1]].tolist()
        ([7, 8, 9, 0, 1], [8, 9, 0], [7, 1])
    """

    def __init__(self, base: AnyArray, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> None:
        self.base = base
        self.starts = starts
        self.lengths = lengths
        self._ends = np.cumsum(lengths)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def shape(self) -> tuple[int, ...]:
        """`[rows, ...]`, as an array's."""
        return (len(self), *self.base.shape[1:])

    @property
    def ndim(self) -> int:
        """The number of axes, as an array's."""
        return self.base.ndim

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the elements."""
        return self.base.dtype

    def __getitem__(self, rows: Rows | int) -> AnyArray:
        index: AnyArray
        if isinstance(rows, slice):
            index = np.arange(*rows.indices(len(self)))
        else:
            index = np.asarray(rows)
            if index.dtype == np.bool_:
                if index.shape != (len(self),):
                    raise IndexError(f"a Boolean index of shape {index.shape} does not fit {len(self)} rows.")
                index = np.flatnonzero(index)
            elif index.size == 0:
                index = index.astype(np.int64)
            index = np.where(index < 0, index + len(self), index)
        if index.size and (int(index.min()) < 0 or int(index.max()) >= len(self)):
            raise IndexError(f"a row is outside the {len(self)} rows of this view.")
        episode = np.searchsorted(self._ends, index, side="right")
        first = self._ends - self.lengths
        return np.asarray(self.base[index - first[episode] + self.starts[episode]])

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> AnyArray:
        if copy is False:
            raise ValueError("copy=False is not possible: the rows of an EpisodeView lie apart in its file.")
        return self[:].astype(dtype or self.dtype, copy=False)


Array: TypeAlias = AnyArray | EpisodeView
Observations: TypeAlias = Array | dict[str, Array]


def as_array(value: npt.ArrayLike | EpisodeView) -> Array:
    """Lists become arrays; a memory-mapped array and a view stay what they are."""
    return value if isinstance(value, EpisodeView) else np.asanyarray(value)


def as_observations(value: Any) -> Observations:
    """`as_array`, of each part of a mapping too."""
    return {key: as_array(part) for key, part in value.items()} if isinstance(value, Mapping) else as_array(value)


def in_memory(array: Array) -> TypeGuard[AnyArray]:
    """Whether the array is not one on the disk (a `np.memmap` or a view of one), which must not be copied whole."""
    return not isinstance(array, (np.memmap, EpisodeView))


def chunks(array: Array) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) row ranges that cover the array, each about 16 MiB."""
    row_bytes = max(1, array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=np.int64)))
    step = max(1, CHUNK_BYTES // row_bytes)
    for start in range(0, len(array), step):
        yield start, min(start + step, len(array))


def take_rows(array: Array, rows: Rows) -> AnyArray:
    """Read rows into memory; an array already in memory is indexed as usual."""
    return np.asarray(array[rows])


def select_rows(array: Array, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> Array:
    """The rows of whole episodes: a copy for an array in memory, an `EpisodeView` for one on the disk."""
    if isinstance(array, EpisodeView):
        # An episode of the view is an episode of the base: which one, its start in the view says.
        parent = np.searchsorted(np.cumsum(array.lengths), starts, side="right")
        return EpisodeView(array.base, array.starts[parent], lengths)
    if isinstance(array, np.memmap):
        return EpisodeView(array, starts, lengths)
    return array[episode_rows(starts, lengths)]


def episode_rows(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The row numbers of the episodes that start at `starts`, end to end: int64 `[sum(lengths)]`."""
    offsets = np.cumsum(lengths) - lengths
    rows: npt.NDArray[np.int64] = np.arange(int(lengths.sum()), dtype=np.int64) + np.repeat(starts - offsets, lengths)
    return rows


def stack_observations(rows: Sequence[Any]) -> Any:
    """One array of single observations, or a dict of such where each is a dict."""
    if isinstance(rows[0], dict):
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    return np.stack(rows)


def join_observations(parts: Sequence[Any]) -> Any:
    """Several arrays of rows end to end, or dicts of such, in memory."""
    if isinstance(parts[0], dict):
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return np.concatenate(parts)
