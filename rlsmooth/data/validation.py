"""Check demonstrations once, when data enter: vectorised, in chunks, and the error names the first bad transition."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rlsmooth.data.arrays import (
    AnyArray,
    Array,
    EpisodeView,
    Fields,
    Observations,
    action_dims,
    action_starts,
    breaks,
    chunks,
    in_memory,
    readable,
    stored_dtype,
)

PROBABILITY_TOLERANCE = 1e-4


def ends_of_flags(*flags: npt.ArrayLike | None) -> npt.NDArray[np.int64]:
    """`episode_ends` from terminations and truncations; transitions after the last True are one more episode, cut off.

    Raises:
        ValueError: all of them are None.
    """
    given = [np.asarray(values, dtype=bool) for values in flags if values is not None]
    if not given:
        raise ValueError(
            "episode_ends is missing and neither terminations nor truncations are given: give the episodes' ends "
            "(episode_ends=[len(actions)] for one episode)."
        )
    return np.union1d(np.flatnonzero(np.logical_or.reduce(given)) + 1, [len(given[0])])


def with_breaks(
    ends: npt.NDArray[np.int64], observations: Observations, following: Observations, space: spaces.Space[Any]
) -> npt.NDArray[np.int64]:
    """`ends`, and the places where one transition does not continue the one before; misfits are left to the checks."""
    count = int(ends[-1])
    try:
        _check_observations("observations", observations, space, count)
        _check_observations("next_observations", following, space, count)
    except (TypeError, ValueError):
        return ends
    return np.union1d(ends, np.flatnonzero(breaks(observations, following, space)) + 1)


def check_spaces(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """Refuse spaces that demonstrations can't hold.

    Raises:
        TypeError: a space is of another kind; the message names it.
    """
    action_dims(action_space)
    parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {None: observation_space}
    for key, space in parts.items():
        _check_kind("observation_space" if key is None else f"observation_space[{key!r}]", space)


def _check_kind(name: str, space: spaces.Space[Any]) -> None:
    if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        raise TypeError(
            f"{name}: {space!r} is not supported: use Box, Discrete, MultiDiscrete, MultiBinary, "
            "or (observations) one Dict of those."
        )


def checked_fields(given: Fields) -> dict[str, Any]:
    """Check the arguments of `Demonstrations` and return them as they are to be stored; the class says the rules.

    Raises:
        TypeError: a field is of a type or dtype that can't be stored.
        ValueError: a length, shape or value is wrong; the message names the first offending transition.
    """
    observation_space, action_space = given["observation_space"], given["action_space"]
    dims = action_dims(action_space)
    count = _length("actions", given["actions"])
    fields: dict[str, Any] = {"episode_ends": _check_episode_ends(given["episode_ends"], count)}
    fields["observations"] = _check_observations("observations", given["observations"], observation_space, count)
    fields["actions"] = _check_space_rows("actions", given["actions"], action_space, count, bounded=True)
    if (value := given.get("next_observations")) is not None:
        fields["next_observations"] = _check_observations("next_observations", value, observation_space, count)
    if (value := given.get("rewards")) is not None:
        fields["rewards"] = _check_vector("rewards", value, count, "iuf", "numbers")
        _require("rewards", np.isfinite, "is {value}: rewards must be finite", fields["rewards"])
    for name in ("terminations", "truncations"):
        if (value := given.get(name)) is not None:
            fields[name] = _check_vector(name, value, count, "b", "Booleans")
            _check_ends_only(name, fields[name], fields["episode_ends"])
    if (value := given.get("weights")) is not None:
        fields["weights"] = _check_vector("weights", value, count, "iuf", "numbers")
        _require(
            "weights", lambda w: np.isfinite(w) & (w >= 0), "is {value}: must be finite and >= 0", fields["weights"]
        )
    if (value := given.get("groups")) is not None:
        fields["groups"] = _check_vector("groups", value, count, "iu", "whole numbers")
    if (value := given.get("action_masks")) is not None:
        fields["action_masks"] = _check_masks(value, fields["actions"], action_space, dims)
    if (value := given.get("action_probs")) is not None:
        fields["action_probs"] = _check_probs(value, action_space, count, fields.get("action_masks"))
    if (value := given.get("infos")) is not None:
        fields["infos"] = tuple(value)
        if len(fields["infos"]) != count:
            raise ValueError(f"infos has {len(fields['infos'])} entries, but there are {count} actions.")
    return fields


def _length(name: str, array: Array) -> int:
    array = _as_array(name, array)
    if array.ndim == 0 or len(array) == 0:
        raise ValueError(f"{name} is empty: demonstrations need at least one transition.")
    return len(array)


def _as_array(name: str, value: Array) -> Array:
    if isinstance(value, (np.ndarray, EpisodeView)):
        return readable(value) if in_memory(value) else value
    raise TypeError(
        f"{name} must be a numpy array, got {type(value).__name__}: use Demonstrations.from_arrays for lists."
    )


def _require(
    name: str, good: Callable[..., AnyArray], problem: str, array: Array, *others: Array, show: bool = True
) -> None:
    """Raise a ValueError that names the first transition for which `good(array, *others)`, read in chunks, is false."""
    for start, stop in chunks(array):
        parts = [np.asarray(a[start:stop]) for a in (array, *others)]
        ok = np.asarray(good(*parts))
        if ok.all():
            continue
        first = int(ok.reshape(len(ok), -1).all(axis=1).argmin())
        value = np.array2string(parts[0][first], threshold=20, separator=", ") if show else ""
        raise ValueError(f"{name}[{start + first}] {problem.format(value=value)}.")


def _check_episode_ends(ends: AnyArray, count: int) -> AnyArray:
    ends = np.asarray(ends)
    if ends.ndim != 1 or ends.size == 0 or ends.dtype.kind not in "iu":
        raise ValueError(f"episode_ends must be a non-empty list of whole numbers, got {ends.dtype} {ends.shape}.")
    ends = ends.astype(np.int64)
    steps = np.diff(ends, prepend=0)
    if (steps <= 0).any():
        where = int((steps <= 0).argmax())
        raise ValueError(f"episode_ends[{where}]={ends[where]} must exceed the end before it: no episode is empty.")
    if ends[-1] != count:
        raise ValueError(f"episode_ends[-1]={ends[-1]} must be the number of transitions, {count}.")
    return ends


def _check_observations(name: str, value: Observations, space: spaces.Space[Any], count: int) -> Observations:
    if not isinstance(space, spaces.Dict):
        if isinstance(value, Mapping):
            raise TypeError(f"{name} is a dict, but observation_space={space!r} is no Dict space.")
        return _check_space_rows(name, value, space, count, bounded=False)
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict of arrays for a Dict space, got {type(value).__name__}.")
    if set(value) != set(space.spaces):
        raise ValueError(f"{name} has the keys {sorted(value)}, but observation_space has {sorted(space.spaces)}.")
    return {
        key: _check_space_rows(f"{name}[{key!r}]", value[key], subspace, count, bounded=False)
        for key, subspace in space.spaces.items()
    }


def _check_space_rows(name: str, value: Array, space: spaces.Space[Any], count: int, *, bounded: bool) -> Array:
    """Check `[N, *space.shape]` against a space; `bounded`: a Box's bounds count too (actions)."""
    _check_kind(name, space)
    array = _as_array(name, value)
    expected = (count, *(space.shape or ()))
    if array.shape != expected:
        raise ValueError(f"{name} has shape {array.shape}, but {space!r} and {count} actions need {expected}.")
    if isinstance(space, spaces.Box):
        return _check_box_rows(name, array, space, bounded=bounded)
    if array.dtype.kind not in "biu":
        raise TypeError(
            f"{name} has dtype {array.dtype}, but {space!r} needs whole numbers: convert with .astype(int)."
        )
    low: AnyArray | int
    if isinstance(space, spaces.MultiBinary):
        low, high = 0, np.ones(space.shape, dtype=np.int64)
    elif isinstance(space, spaces.Discrete):
        low, high = int(space.start), np.asarray(space.start + space.n - 1)
    else:
        assert isinstance(space, spaces.MultiDiscrete)
        low, high = space.start, space.start + space.nvec - 1
    _require(name, lambda a: (a >= low) & (a <= high), f"is {{value}}, which is outside {space!r}", array)
    # Range first, then the cast: 256 would wrap to a legal 0 in int8.
    return array.astype(stored_dtype(space), copy=False) if in_memory(array) else array


def _check_box_rows(name: str, array: Array, space: spaces.Box, *, bounded: bool) -> Array:
    dtype = np.dtype(space.dtype)
    # float64 may become float32; but numbers may not become pixels, nor int64 int8, as those casts wrap.
    if not np.can_cast(array.dtype, dtype, "same_kind" if dtype.kind == "f" else "safe"):
        raise TypeError(
            f"{name} has dtype {array.dtype}, but {space!r} needs {dtype}: convert with .astype('{dtype}')."
        )
    if in_memory(array):
        with np.errstate(over="ignore"):  # what overflows becomes inf and is reported below, with its place
            array = array.astype(dtype, copy=False)
    if array.dtype.kind == "f":
        _require(name, np.isfinite, "holds NaN or infinity: {value}", array)
    if bounded:
        low, high = space.low, space.high
        _require(name, lambda a: (a >= low) & (a <= high), f"is {{value}}, which is outside {space!r}", array)
    return array


def _check_vector(name: str, value: Array, count: int, kinds: str, what: str) -> Array:
    array = _as_array(name, value)
    if array.shape != (count,):
        raise ValueError(f"{name} has shape {array.shape}, but there are {count} actions: it must be {(count,)}.")
    if array.dtype.kind not in kinds:
        raise TypeError(f"{name} has dtype {array.dtype}, but must hold {what}.")
    if in_memory(array) and array.dtype.kind in "iu":
        return array.astype(np.int64 if kinds == "iu" else np.float64, copy=False)
    return array


def _check_ends_only(name: str, flags: Array, episode_ends: AnyArray) -> None:
    """A True must be the last transition of its episode: anything else is a boundary that `episode_ends` missed."""
    for start, stop in chunks(flags):
        places = start + np.flatnonzero(np.asarray(flags[start:stop]))
        inner = places[~np.isin(places + 1, episode_ends)]
        if inner.size:
            raise ValueError(f"{name}[{inner[0]}] is True, but episode_ends has no episode that ends there.")


def _check_masks(masks: Array, actions: Array, space: spaces.Space[Any], dims: npt.NDArray[np.int64]) -> Array:
    array, width = _as_array("action_masks", masks), int(dims.sum())
    if width == 0:
        raise ValueError(f"action_masks can't be used with action_space={space!r}: leave them out.")
    if array.shape != (len(actions), width):
        raise ValueError(
            f"action_masks has shape {array.shape}, but {space!r} and {len(actions)} actions need "
            f"{(len(actions), width)}: one Boolean for each choice of each dimension, end to end."
        )
    if array.dtype != np.bool_:
        raise TypeError(
            f"action_masks has dtype {array.dtype}, but must hold Booleans (True = legal): convert with .astype(bool)."
        )
    offsets = np.cumsum(dims) - dims
    shift = offsets - action_starts(space)

    def has_choice(mask: AnyArray) -> AnyArray:
        return np.asarray(np.logical_or.reduceat(mask, offsets, axis=1))

    def is_legal(action: AnyArray, mask: AnyArray) -> AnyArray:
        return np.asarray(np.take_along_axis(mask, action.reshape(len(action), -1) + shift, axis=1))

    _require("action_masks", has_choice, "is {value}, which leaves a dimension with no legal action", array)
    problem = (
        "is {value}, which its action mask forbids: allow it in the mask, or leave out what nobody could have done"
    )
    _require("actions", is_legal, problem, actions, array)
    return array


def _check_probs(probs: Array, space: spaces.Space[Any], count: int, masks: Array | None) -> Array:
    array = _as_array("action_probs", probs)
    if not isinstance(space, spaces.Discrete):
        raise ValueError(f"action_probs needs a Discrete action space, got {space!r}.")
    if array.shape != (count, int(space.n)):
        raise ValueError(
            f"action_probs has shape {array.shape}, but {space!r} and {count} actions need {(count, int(space.n))}."
        )
    if array.dtype.kind != "f":
        raise TypeError(f"action_probs has dtype {array.dtype}, but must hold floating-point numbers.")
    _require("action_probs", lambda p: np.isfinite(p) & (p >= 0), "is {value}: must be finite and >= 0", array)
    _require(
        "action_probs",
        lambda p: np.abs(p.sum(axis=1, dtype=np.float64) - 1) <= PROBABILITY_TOLERANCE,
        "is {value}, which does not sum to 1: divide each row by its sum",
        array,
    )
    if masks is not None:
        _require("action_probs", lambda p, m: (p == 0) | m, "is {value}, which its action mask forbids", array, masks)
    return array
