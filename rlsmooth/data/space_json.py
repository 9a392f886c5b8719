"""Gymnasium spaces as plain JSON, exactly: dtypes, bounds (infinite ones too), starts and the order of keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from rlsmooth.data.arrays import AnyArray
from rlsmooth.untrusted import FileRefusedError, spend

MAX_DEPTH = 16
MAX_AXES, MAX_SIZE = 32, 2**40
DTYPES = frozenset(
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64".split()  # noqa: SIM905
)


class SpaceError(ValueError):
    """An error of ours, to distinguish it from what Gymnasium raises about the same space."""


def space_to_json(space: spaces.Space[Any]) -> dict[str, Any]:
    """A space as a dict that `json.dumps(..., allow_nan=False)` takes; `space_from_json` gives an equal space.

    Bounds that are all the same are one number, so that an image space takes a line. Infinities are the strings
    "inf" and "-inf".

    Args:
        space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict (of string keys) or Tuple of those.

    Raises:
        TypeError: another kind of space, or a key that is no string.

    Examples:
        >>> space_to_json(spaces.Discrete(3))
        {'type': 'Discrete', 'n': 3, 'start': 0, 'dtype': 'int64'}
        >>> space_to_json(spaces.Box(0, np.inf, (2,)))["high"]
        'inf'
    """
    if isinstance(space, spaces.Box):
        return {
            "type": "Box",
            "shape": list(space.shape),
            "dtype": np.dtype(space.dtype).name,
            "low": _bounds_to_json(space.low),
            "high": _bounds_to_json(space.high),
        }
    if isinstance(space, spaces.Discrete):
        return {
            "type": "Discrete",
            "n": int(space.n),
            "start": int(space.start),
            "dtype": np.dtype(space.dtype).name,
        }
    if isinstance(space, spaces.MultiDiscrete):
        return {
            "type": "MultiDiscrete",
            "nvec": np.asarray(space.nvec).tolist(),
            "start": np.asarray(space.start).tolist(),
            "dtype": np.dtype(space.dtype).name,
        }
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "shape": list(space.shape), "flat": isinstance(space.n, (int, np.integer))}
    if isinstance(space, spaces.Dict):
        for key in space.spaces:
            if not isinstance(key, str):
                raise TypeError(f"the Dict space has the key {key!r}: only strings can be written as JSON.")
        return {"type": "Dict", "spaces": [[key, space_to_json(part)] for key, part in space.spaces.items()]}
    if isinstance(space, spaces.Tuple):
        return {"type": "Tuple", "spaces": [space_to_json(part) for part in space.spaces]}
    raise TypeError(
        f"space={space!r} can't be written as JSON: use Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple."
    )


def space_from_json(data: Mapping[str, Any]) -> spaces.Space[Any]:
    """The space that `space_to_json` wrote. Builds nothing but the six kinds of space, so a stranger's file is safe.

    Raises:
        ValueError: `data` is not what `space_to_json` writes; the message says what is wrong.

    Examples:
        >>> space_from_json({"type": "Discrete", "n": 3, "start": 1, "dtype": "int64"})
        Discrete(3, start=1)
    """
    return _from_json(data, depth=0)


def _from_json(data: Any, depth: int) -> spaces.Space[Any]:
    if not isinstance(data, Mapping) or "type" not in data:
        raise SpaceError(f"a space must be a JSON object with a 'type', got {data!r:.200}.")
    if depth > MAX_DEPTH:
        raise SpaceError(f"the space is nested more than {MAX_DEPTH} deep.")
    kind = data["type"]
    try:
        if kind == "Box":
            shape, dtype = _shape(data["shape"]), _dtype(data["dtype"])
            low, high = (_bounds_from_json(data[name], shape, dtype) for name in ("low", "high"))
            return spaces.Box(low, high, shape, dtype.type)
        if kind == "Discrete":
            # dtype= is newer than the rest of the signature, so it is passed only where it is not the default.
            dtype = _dtype(data["dtype"])
            more: dict[str, Any] = {} if dtype == np.int64 else {"dtype": dtype.type}
            return spaces.Discrete(_whole(data["n"]), start=_whole(data["start"]), **more)
        if kind == "MultiDiscrete":
            dtype = _dtype(data["dtype"])
            return spaces.MultiDiscrete(_integers(data["nvec"]), dtype=dtype.type, start=_integers(data["start"]))
        if kind == "MultiBinary":
            shape = _shape(data["shape"])
            return spaces.MultiBinary(shape[0] if data["flat"] else shape)
        if kind == "Dict":
            # The keys are sorted by Dict itself unless it gets pairs.
            return spaces.Dict([(_key(key), _from_json(part, depth + 1)) for key, part in data["spaces"]])
        if kind == "Tuple":
            return spaces.Tuple([_from_json(part, depth + 1) for part in data["spaces"]])
    except (SpaceError, FileRefusedError):
        raise
    except Exception as error:  # Gymnasium asserts, numpy raises whatever it likes
        raise SpaceError(f"the {kind!r:.50} space {str(dict(data))[:200]} is not well formed: {error!r}.") from error
    raise SpaceError(f"the space type {kind!r:.50} is not known.")


def _bounds_to_json(bounds: AnyArray) -> Any:
    first = bounds.reshape(-1)[:1]
    if first.size and bool((bounds == first).all()):
        return _number_to_json(first[0])
    return [_number_to_json(value) for value in bounds.reshape(-1)]


def _number_to_json(value: Any) -> int | float | str:
    number: int | float = value.item()  # repr of the float64 is exact for every smaller float too
    return number if math.isfinite(number) else ("inf" if number > 0 else "-inf")


def _bounds_from_json(bounds: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> AnyArray:
    def number(value: Any) -> int | float:
        if isinstance(value, str) and value in ("inf", "-inf"):
            return float(value)
        if isinstance(value, (bool, int, float)):
            return value
        raise SpaceError(f"a bound must be a number, 'inf' or '-inf', got {value!r:.50}.")

    if isinstance(bounds, list):
        if len(bounds) != math.prod(shape):
            raise SpaceError(f"a Box of shape {shape} has {len(bounds)} bounds, but needs {math.prod(shape)}.")
        return np.array([number(value) for value in bounds], dtype=dtype).reshape(shape)
    return np.full(shape, number(bounds), dtype=dtype)


def _shape(value: Any) -> tuple[int, ...]:
    shape = tuple(_whole(size) for size in value)
    if min(shape, default=0) < 0 or max(shape, default=0) > MAX_SIZE or len(shape) > MAX_AXES:
        raise SpaceError(f"the shape {value!r:.200} is negative or too large.")
    spend(math.prod(shape), "a space")
    return shape


def _dtype(name: Any) -> np.dtype[Any]:
    if name not in DTYPES:
        raise SpaceError(f"the dtype {name!r:.50} is not one of {', '.join(sorted(DTYPES))}.")
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise SpaceError(f"a whole number is needed, got {value!r:.50}.")
    return value


def _integers(value: Any) -> AnyArray:
    if isinstance(value, list):
        spend(len(value), "a space")
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise SpaceError(f"whole numbers are needed, got {value!r:.50}.")
    return array


def _key(value: Any) -> str:
    if not isinstance(value, str):
        raise SpaceError(f"a key of a Dict space must be a string, got {value!r:.50}.")
    return value
