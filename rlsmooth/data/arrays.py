"""Arrays with one entry per transition, in memory or on the disk, and how to read some of their entries."""

from __future__ import annotations

import contextlib
import mmap
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rlsmooth.untrusted import check_unfolded, open_regular

TRANSITION_FIELDS = (
    "actions",
    "rewards",
    "terminations",
    "truncations",
    "action_masks",
    "weights",
    "groups",
    "action_probs",
)
"""The fields of demonstrations that hold one array whose first axis is the transitions."""

AnyArray: TypeAlias = npt.NDArray[Any]
Fields: TypeAlias = Mapping[str, Any]  # the arguments of `Demonstrations` or `ObservationOnly` by name
Index: TypeAlias = slice | npt.NDArray[np.int64] | npt.NDArray[np.bool_] | list[int]

CHUNK_BYTES = 16 * 2**20
"""How much of an array the checks and the writers hold in memory at once."""


class EpisodeView:
    """Some episodes of a memory-mapped array, in some order, without a copy of them.

    It behaves as an array whose first axis is the transitions of those episodes, end to end: `view[index]` reads some
    of them (a slice, an index array or a Boolean array) and returns an ordinary array, `np.asarray(view)` reads them
    all. It holds three numbers an episode, whatever the episodes' size.

    Args:
        base: `[N, ...]`, usually a `np.memmap`.
        starts: int64 `[E]`, the place in `base` at which each episode starts.
        lengths: int64 `[E]`, the number of transitions of each episode.

    Examples:
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
        """`[transitions, ...]`, as an array's."""
        return (len(self), *self.base.shape[1:])

    @property
    def ndim(self) -> int:
        """The number of axes, as an array's."""
        return self.base.ndim

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the elements."""
        return self.base.dtype

    def __getitem__(self, wanted: Index | int) -> AnyArray:
        index: AnyArray
        if isinstance(wanted, slice):
            index = np.arange(*wanted.indices(len(self)))
        else:
            index = np.asarray(wanted)
            if index.dtype == np.bool_:
                if index.shape != (len(self),):
                    raise IndexError(f"a Boolean index of shape {index.shape} does not fit {len(self)} transitions.")
                index = np.flatnonzero(index)
            elif index.size == 0:
                index = index.astype(np.int64)
            index = np.where(index < 0, index + len(self), index)
        if index.size and (int(index.min()) < 0 or int(index.max()) >= len(self)):
            raise IndexError(f"an index is outside the {len(self)} transitions of this view.")
        episode = np.searchsorted(self._ends, index, side="right")
        first = self._ends - self.lengths
        return np.asarray(self.base[index - first[episode] + self.starts[episode]])

    def runs(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The (start, stop) ranges of `base` that the entries from `start` up to `stop` are in."""
        for episode in range(int(np.searchsorted(self._ends, start, side="right")), len(self._ends)):
            end, length = int(self._ends[episode]), int(self.lengths[episode])
            if end - length >= stop:
                return
            shift = int(self.starts[episode]) - (end - length)
            yield max(start, end - length) + shift, min(stop, end) + shift

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> AnyArray:
        if copy is False:
            raise ValueError("copy=False is not possible: the episodes of an EpisodeView lie apart in its file.")
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
    """Yield the (start, stop) ranges that cover the first axis of the array, each about 16 MiB."""
    entry_bytes = max(1, array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=np.int64)))
    step = max(1, CHUNK_BYTES // entry_bytes)
    for start in range(0, len(array), step):
        yield start, min(start + step, len(array))


@contextlib.contextmanager
def reading_ahead(values: Sequence[Array], ranges: Sequence[tuple[int, int]]) -> Iterator[None]:
    """Have the system read ranges of entries from the disk, and nothing around what the block reads.

    Left to itself it may read megabytes around each entry. Arrays in memory are left alone.

    Args:
        values: arrays with one entry per transition.
        ranges: (start, stop) of the entries that will be read, sooner or later.
    """
    mappings: list[mmap.mmap] = []
    for array in values if hasattr(mmap, "MADV_RANDOM") else ():
        base = array.base if isinstance(array, EpisodeView) else array
        owner: Any = base
        while isinstance(owner, np.ndarray) and owner.base is not None:
            owner = owner.base
        if not isinstance(owner, mmap.mmap) or not base.flags.c_contiguous or not base.nbytes:
            continue
        offset, size = base.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data, base.nbytes // len(base)
        for each in ranges:
            for start, stop in array.runs(*each) if isinstance(array, EpisodeView) else (each,):
                first = (offset + start * size) // mmap.PAGESIZE * mmap.PAGESIZE
                owner.madvise(mmap.MADV_WILLNEED, first, offset + stop * size - first)
        owner.madvise(mmap.MADV_RANDOM)
        mappings.append(owner)
    try:
        yield
    finally:
        for mapping in mappings:
            mapping.madvise(mmap.MADV_NORMAL)


def readable(array: AnyArray) -> AnyArray:
    """The array, or a copy where torch could not read it: turned round (`x[::-1]`), or of another byte order."""
    if any(stride < 0 for stride in array.strides):
        array = np.ascontiguousarray(array)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def take(value: Any, index: Any) -> Any:
    """The entries at `index` as an array in memory, of each part where `value` is a dict; None stays None."""
    if isinstance(value, dict):
        return {key: take(part, index) for key, part in value.items()}
    return None if value is None else readable(np.asarray(value[index]))


def select_episodes(fields: Fields, chosen: npt.NDArray[np.int64]) -> dict[str, Any]:
    """The fields that depend on the episodes, of the episodes of numbers `chosen`.

    Arrays in memory are copied; of those on the disk the result holds an `EpisodeView`.
    """
    all_ends: npt.NDArray[np.int64] = fields["episode_ends"]
    all_lengths = np.diff(all_ends, prepend=0)
    starts, lengths = (all_ends - all_lengths)[chosen], all_lengths[chosen]
    selected: dict[str, Any] = {"episode_ends": np.cumsum(lengths)}
    for name in (*TRANSITION_FIELDS, "observations", "next_observations"):
        value = fields.get(name)
        if isinstance(value, dict):
            selected[name] = {key: _select(part, starts, lengths) for key, part in value.items()}
        elif value is not None:
            selected[name] = _select(value, starts, lengths)
    if fields.get("infos") is not None:
        episodes = zip(starts.tolist(), lengths.tolist(), strict=True)
        selected["infos"] = tuple(
            info for start, length in episodes for info in fields["infos"][start : start + length]
        )
    return selected


def _select(array: Array, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> Array:
    if isinstance(array, EpisodeView):
        # An episode of the view is an episode of the base: which one, its start in the view says.
        parent = np.searchsorted(np.cumsum(array.lengths), starts, side="right")
        return EpisodeView(array.base, array.starts[parent], lengths)
    if isinstance(array, np.memmap):
        return EpisodeView(array, starts, lengths)
    offsets = np.cumsum(lengths) - lengths
    index: npt.NDArray[np.int64] = np.arange(int(lengths.sum()), dtype=np.int64) + np.repeat(starts - offsets, lengths)
    return array[index]


def breaks(observations: Any, next_observations: Any, space: spaces.Space[Any]) -> npt.NDArray[np.bool_]:
    """Bool `[N]`: where the next observation is not the one that the following transition begins with.

    The last transition is no break. Observations are compared as they are stored, so that a dtype alone breaks nothing.
    """
    if isinstance(space, spaces.Dict):
        found = [breaks(observations[key], next_observations[key], part) for key, part in space.spaces.items()]
        return np.asarray(np.logical_or.reduce(found))
    broken = np.zeros(len(observations), dtype=bool)
    dtype = stored_dtype(space)
    for start, stop in chunks(observations):
        last = min(stop, len(observations) - 1)
        here, after = np.asarray(next_observations[start:last]), np.asarray(observations[start + 1 : last + 1])
        with np.errstate(over="ignore"):  # what overflows is reported with its place, by the checks
            differs = here.astype(dtype, copy=False) != after.astype(dtype, copy=False)
        broken[start:last] = differs.any(axis=tuple(range(1, differs.ndim)))
    return broken


def stack_observations(observations: Sequence[Any]) -> Any:
    """One array of single observations, or a dict of such where each is a dict."""
    if isinstance(observations[0], dict):
        return {key: np.stack([one[key] for one in observations]) for key in observations[0]}
    return np.stack(observations)


def join_observations(parts: Sequence[Any]) -> Any:
    """Several arrays of observations end to end, or dicts of such, in memory."""
    if isinstance(parts[0], dict):
        return {key: join_observations([part[key] for part in parts]) for key in parts[0]}
    return np.concatenate(parts)


def action_dims(space: spaces.Space[Any]) -> npt.NDArray[np.int64]:
    """The number of choices of each action dimension: int64 `[D]`; a Box has none.

    Raises:
        TypeError: the space is of a kind that demonstrations can't hold actions of.

    Examples:
        >>> action_dims(spaces.MultiDiscrete([3, 2])).tolist(), action_dims(spaces.MultiBinary(2)).tolist()
        ([3, 2], [2, 2])
    """
    if isinstance(space, spaces.Discrete):
        return np.array([space.n], dtype=np.int64)
    if isinstance(space, spaces.MultiDiscrete):
        return np.asarray(space.nvec, dtype=np.int64).reshape(-1)
    if isinstance(space, spaces.MultiBinary):
        return np.full(int(np.prod(space.shape)), 2, dtype=np.int64)
    if isinstance(space, spaces.Box):
        return np.zeros(0, dtype=np.int64)
    raise TypeError(f"action_space={space!r} is not supported: use Discrete, MultiDiscrete, MultiBinary or Box.")


def forward(array: Any) -> Any:
    """The array, copied where it has a negative stride (`frames[..., ::-1]`), which torch can't read."""
    return array.copy() if any(stride < 0 for stride in getattr(array, "strides", ())) else array


def action_starts(space: spaces.Space[Any]) -> npt.NDArray[np.int64]:
    """The number of each dimension's first action: int64 `[D]`, zero but for spaces made with `start=`."""
    if isinstance(space, spaces.Discrete):
        return np.array([space.start], dtype=np.int64)
    if isinstance(space, spaces.MultiDiscrete):
        return np.asarray(space.start, dtype=np.int64).reshape(-1)
    return np.zeros(len(action_dims(space)), dtype=np.int64)


def stored_dtype(space: spaces.Space[Any]) -> np.dtype[Any]:
    """int64 for Discrete and MultiDiscrete, int8 for MultiBinary, a Box's own dtype."""
    if isinstance(space, spaces.MultiBinary):
        return np.dtype(np.int8)
    if isinstance(space, spaces.Box):
        return np.dtype(space.dtype)
    return np.dtype(np.int64)


def read_plain_npz(path: Path, names: Collection[str] | None = None) -> dict[str, AnyArray]:
    """The arrays of an `.npz`, or some of them. Nothing is unpickled, and nothing unfolds without end.

    Args:
        path: the file.
        names: which to read; others are not touched. None: all.

    Raises:
        Exception: whatever zipfile and numpy raise about a damaged file; call it within `refused`.
    """
    with open_regular(path) as opened, zipfile.ZipFile(opened) as archive:
        infos = [info for info in archive.infolist() if names is None or info.filename.removesuffix(".npy") in names]
        check_unfolded(sum(info.file_size for info in infos), path.stat().st_size)
        found: dict[str, AnyArray] = {}
        for info in infos:
            with archive.open(info) as member:
                found[info.filename.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
    return found
