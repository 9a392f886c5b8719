"""The checks of labelled data, and how many rows of each class a stratified sample has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from rlsmooth.data.arrays import AnyArray

__all__ = ["check_features", "check_labels", "check_names", "column_scale", "leaves", "shares"]


def check_features(features: AnyArray) -> npt.NDArray[np.float32]:
    """Float32 `[N, D]`, or an error that names the first value that is not finite."""
    array = np.asarray(features)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"features must be numbers, got dtype {array.dtype}.")
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"features has shape {array.shape}: it must be [rows, features], neither of them 0.")
    with np.errstate(over="ignore"):  # what overflows is told below
        single = array.astype(np.float32)
    wrong = np.argwhere(~np.isfinite(single))
    if len(wrong):
        row, column = wrong[0].tolist()
        raise ValueError(
            f"features[{row}, {column}]={array[row, column]} is not finite in float32: "
            "leave such rows out or fill them."
        )
    return single


def check_labels(labels: AnyArray, rows: int, names: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Int64 `[N]`, each one of the classes."""
    array = np.asarray(labels)
    if array.dtype.kind not in "iu":
        raise TypeError(f"labels must be whole numbers, got dtype {array.dtype}.")
    if array.shape != (rows,):
        raise ValueError(f"labels has shape {array.shape}: it must be [{rows}], one for each row of features.")
    outside = np.flatnonzero((array < 0) | (array >= len(names)))
    if len(outside):
        place = int(outside[0])
        raise ValueError(f"labels[{place}]={array[place]} is no class: there are 0 to {len(names) - 1}.")
    return array.astype(np.int64)


def check_names(what: str, names: Sequence[str]) -> tuple[str, ...]:
    """A tuple of names, none of them twice."""
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{what} must be a sequence of str, got {names!r:.80}.")
    twice = [name for name in names if list(names).count(name) > 1]
    if not names or twice:
        raise ValueError(f"{what} is empty." if not names else f"{what}: {twice[0]!r} stands twice.")
    return tuple(names)


def leaves(part: object) -> list[str]:
    """The names at the ends of a hierarchy, in order."""
    if isinstance(part, str):
        return [part]
    if isinstance(part, Mapping):
        return [leaf for below in part.values() for leaf in leaves(below)]
    if isinstance(part, Sequence):
        return [leaf for below in part for leaf in leaves(below)]
    raise TypeError(f"hierarchy holds {part!r:.80}: it needs nested mappings and sequences of class names.")


def shares(counts: npt.NDArray[np.int64], n: int) -> list[int]:
    """How many of `n` rows each class gets: in proportion, by largest remainder, and one at least where that fits."""
    present = counts > 0
    exact = n * counts / counts.sum()
    wanted = np.floor(exact).astype(np.int64)
    if n >= present.sum():
        wanted = np.maximum(wanted, present)
    while wanted.sum() < n:  # stable: the first of equal remainders
        wanted[np.argmax(np.where(wanted < counts, exact - wanted, -np.inf))] += 1
    while wanted.sum() > n:
        wanted[np.argmax(np.where(wanted > 1, wanted - exact, -np.inf))] -= 1
    return [int(number) for number in wanted]


def column_scale(features: AnyArray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and standard deviation of each column of `[N, D]`; the deviation of a constant column is 1."""
    values = np.asarray(features, dtype=np.float64)
    spread = values.std(axis=0)
    spread[spread <= 1e-7 * np.abs(values).max(axis=0)] = 1.0  # rounding makes a constant's spread not quite 0
    return values.mean(axis=0), spread
