"""Python values as plain data and back: numbers, arrays, containers and random generators; see `snapshot`.

Plain data is None, bool, int, float, str, numpy arrays, lists, and dicts with str keys. Whatever else there is becomes
a dict with a `"kind"`. A value that is found in two places (a generator that an environment and its helper share) is
kept once and found again as the same.
"""

from __future__ import annotations

import inspect
import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlsmooth.untrusted import refused

ARRAY_KINDS = "biufc"
PACKED_LENGTH = 32
BIT_GENERATORS: dict[str, Any] = {
    generator.__name__: generator
    for generator in (np.random.MT19937, np.random.PCG64, np.random.PCG64DXSM, np.random.Philox, np.random.SFC64)
}

Encode = Callable[[Any, str, "Same"], Any]
Decode = Callable[[Any, Any, str, dict[int, Any]], Any]


class CannotSnapshotError(ValueError):
    """There is something in an environment that can't be kept as plain data, or not be put back."""


class Same:
    """Numbers the values that can be found in two places, in the order in which they are met."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._alive: list[object] = []  # an id is only worth something while its object lives

    def first(self, value: object) -> dict[str, Any] | None:
        """The reference to a value that was met before; None for a new one."""
        number = self._numbers.get(id(value))
        return None if number is None else {"kind": "same", "number": number}

    def number(self, value: object) -> int:
        """Give a new value its number."""
        self._alive.append(value)
        return self._numbers.setdefault(id(value), len(self._numbers))


def module_name(value: object) -> str:
    """The module of the value's class; empty where a class written in C, such as Box2D's, names none."""
    return str(getattr(type(value), "__module__", ""))


def class_name(value: object) -> str:
    """The full name of the value's class."""
    return f"{module_name(value)}.{type(value).__qualname__}"


def stable_name(full_name: str) -> str:
    """The name of a class without its module where it is rlsmooth's own, so that older files outlive its moves.

    Examples:
        >>> stable_name("rlsmooth.agents.callbacks.Rounds"), stable_name("gymnasium.wrappers.TimeLimit")
        ('rlsmooth.Rounds', 'gymnasium.wrappers.TimeLimit')
    """
    top, _, rest = full_name.partition(".")
    return f"{top}.{rest.rpartition('.')[2]}" if top == "rlsmooth" else full_name


def same_class(current: object, named: str, where: str) -> None:
    """Raise CannotSnapshotError unless `current` is of the class of that name."""
    if stable_name(class_name(current)) != stable_name(named):
        raise CannotSnapshotError(
            f"{where} was a {named} and is a {class_name(current)}: build the environment as it was built."
        )


def may_hold_data(owner: type, name: str) -> bool:
    """Whether an attribute of that name is data: not one of Python's own, and no method or class of `owner`'s.

    Examples:
        >>> may_hold_data(random.Random, "gauss_next"), may_hold_data(random.Random, "shuffle")
        (True, False)
    """
    standing = inspect.getattr_static(owner, name, None)
    is_own = name.startswith("__") and name.endswith("__")
    return not (is_own or callable(standing) or isinstance(standing, (classmethod, staticmethod)))


def plain_value(value: Any, where: str) -> Any:
    """A value as plain data: numbers, strings, arrays, containers of these and random generators, nothing else.

    Args:
        value: the value.
        where: what errors call it.

    Raises:
        CannotSnapshotError: there is something else in it.

    Examples:
        >>> value_from_plain(plain_value({"best": (1.5, np.float32(2))}, "x"))
        {'best': (1.5, np.float32(2.0))}
    """
    return _encode_plain(value, where, Same())


def value_from_plain(encoded: Any) -> Any:
    """The value that `plain_value` made plain.

    Raises:
        CannotSnapshotError: it is malformed.
    """
    with refused("the value", CannotSnapshotError):
        return _decode_plain(encoded, None, "the value", {})


def _encode_plain(value: Any, where: str, same: Same) -> Any:
    encoded = encode_value(value, where, same, _encode_plain)
    if encoded is NotImplemented:
        raise CannotSnapshotError(f"{where} is a {class_name(value)}, which is no plain data.")
    return encoded


def _decode_plain(encoded: Any, current: Any, where: str, made: dict[int, Any]) -> Any:
    return decode_value(encoded, current, where, made, _decode_plain)


def encode_value(value: Any, where: str, same: Same, encode: Encode) -> Any:
    """The value as plain data, or NotImplemented if it is of no kind known here.

    Raises:
        CannotSnapshotError: an array or a container of a kind that can't be kept.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if type(value) is np.str_:
        return {"kind": "numpy_text", "text": str(value)}
    if isinstance(value, np.generic):
        return {"kind": "scalar", "array": _array(np.asarray(value), where)}
    if kind is complex:
        return {"kind": "complex", "items": [value.real, value.imag]}
    if kind is bytes:
        return {"kind": "bytes", "array": np.frombuffer(value, np.uint8).copy()}
    if kind is tuple:
        return {"kind": "tuple", "items": _items(value, where, same, encode)}
    if isinstance(value, tuple):
        return {"kind": "named_tuple", "class": class_name(value), "items": _items(value, where, same, encode)}
    if kind is frozenset:
        return {"kind": "frozenset", "items": _items(value, where, same, encode)}
    if kind is range:
        return {"kind": "range", "items": [value.start, value.stop, value.step]}
    known = same.first(value)
    return known if known is not None else _encode_mutable(value, where, same, encode)


def _encode_mutable(value: Any, where: str, same: Same, encode: Encode) -> Any:
    kind = type(value)
    if type(value) is np.ndarray and value.dtype.kind in "SU":
        letters = np.frombuffer(value.tobytes(), np.uint8).copy()
        shape = [value.dtype.kind, value.dtype.itemsize, *value.shape]
        return {"kind": "text_array", "number": same.number(value), "shape": shape, "array": letters}
    if isinstance(value, np.ndarray):
        return {"kind": "array", "number": same.number(value), "array": _array(value, where)}
    if kind is list and len(value) >= PACKED_LENGTH and {type(item) for item in value} in ({float}, {int}):
        packed = np.array(value)
        if packed.dtype in (np.float64, np.int64):
            return {"kind": "numbers", "number": same.number(value), "array": packed}
    if kind in (list, set):
        number = same.number(value)
        return {"kind": kind.__name__, "number": number, "items": _items(value, where, same, encode)}
    if kind is deque:
        number = same.number(value)
        return {"kind": "deque", "number": number, "most": value.maxlen, "items": _items(value, where, same, encode)}
    if kind in (dict, OrderedDict, defaultdict):
        number = same.number(value)
        pairs = [
            [encode(key, f"{where} key {key!r}", same), encode(item, f"{where}[{key!r}]", same)]
            for key, item in value.items()
        ]
        return {"kind": kind.__name__, "number": number, "items": pairs}
    if kind is np.random.Generator:
        state = encode(value.bit_generator.state, f"{where} state", same)
        return {"kind": "generator", "number": same.number(value), "state": state}
    if kind is np.random.RandomState:
        state = encode(value.get_state(legacy=False), f"{where} state", same)
        return {"kind": "random_state", "number": same.number(value), "state": state}
    if kind is random.Random:
        return {
            "kind": "random",
            "number": same.number(value),
            "state": encode(list(value.getstate()), where, same),
        }
    return NotImplemented


def _items(values: Iterable[Any], where: str, same: Same, encode: Encode) -> list[Any]:
    return [encode(item, f"{where}[{index}]", same) for index, item in enumerate(values)]


def _array(value: NDArray[Any], where: str) -> NDArray[Any]:
    if type(value) is not np.ndarray or value.dtype.kind not in ARRAY_KINDS or value.dtype.itemsize > 16:
        raise CannotSnapshotError(
            f"{where} is an array of {value.dtype} ({type(value).__name__}): only plain arrays of numbers can be kept."
        )
    if value.dtype == np.longdouble or value.dtype == np.clongdouble or value.dtype.byteorder == ">":
        raise CannotSnapshotError(f"{where} is an array of {value.dtype}, which no file holds: use another dtype.")
    return np.array(value, order="C", copy=True)


def decode_value(encoded: Any, current: Any, where: str, made: dict[int, Any], decode: Decode) -> Any:
    """The value that `encode_value` made plain.

    Args:
        encoded: the plain data.
        current: the value in its place now: objects within it are put back into those that are there.
        where: what errors call the place.
        made: the values made so far, by number.
        decode: for what is in it.

    Raises:
        CannotSnapshotError: it does not fit what stands there, or is malformed.
    """
    if not isinstance(encoded, dict):
        return encoded
    kind = encoded["kind"]
    if kind == "same":
        return made[encoded["number"]]
    if kind == "scalar":
        return encoded["array"][()]
    if kind == "numpy_text":
        return np.str_(encoded["text"])
    if kind == "complex":
        return complex(*encoded["items"])
    if kind == "bytes":
        return encoded["array"].tobytes()
    if kind == "range":
        return range(*encoded["items"])
    if kind in ("tuple", "named_tuple", "frozenset"):
        items = _decode_items(encoded["items"], current, where, made, decode)
        if kind == "named_tuple":
            same_class(current, encoded["class"], where)
            return type(current)(*items)
        return tuple(items) if kind == "tuple" else frozenset(items)
    return _decode_mutable(encoded, current, where, made, decode)


def _decode_mutable(encoded: dict[str, Any], current: Any, where: str, made: dict[int, Any], decode: Decode) -> Any:
    kind, number = encoded["kind"], encoded["number"]
    value: Any
    if kind == "array":
        value = np.array(encoded["array"])
        if value.dtype.kind not in ARRAY_KINDS:
            raise CannotSnapshotError(f"the state of {where} has no array of numbers: use another copy.")
    elif kind == "text_array":
        letter, size, *shape = encoded["shape"]
        dtype = np.dtype((np.bytes_, size) if letter == "S" else (np.str_, size // 4))
        value = np.frombuffer(encoded["array"].tobytes(), dtype).reshape(shape).copy()
    elif kind == "numbers":
        value = encoded["array"].tolist()
    elif kind in ("list", "set", "deque"):
        empty: Any = {"list": list, "set": set}.get(kind) or (lambda: deque(maxlen=encoded["most"]))
        value = made[number] = empty()  # before its items, which may hold it
        items = _decode_items(encoded["items"], current, where, made, decode)
        value.update(items) if kind == "set" else value.extend(items)
    elif kind in ("dict", "OrderedDict", "defaultdict"):
        value = made[number] = _empty_mapping(kind, current, where)
        for key, item in encoded["items"]:
            key = decode(key, None, where, made)
            before = current.get(key) if isinstance(current, dict) else None
            value[key] = decode(item, before, f"{where}[{key!r}]", made)
    elif kind == "generator":
        value = _generator(decode(encoded["state"], None, where, made), current, where)
    elif kind == "random_state":
        value = current if type(current) is np.random.RandomState else np.random.RandomState()
        value.set_state(decode(encoded["state"], None, where, made))
    elif kind == "random":
        value = current if type(current) is random.Random else random.Random()
        version, words, gauss = decode(encoded["state"], None, where, made)
        value.setstate((version, tuple(words), gauss))
    else:
        raise CannotSnapshotError(f"the state of {where} has the unknown kind {kind!r}: use another copy.")
    made[number] = value
    return value


def _decode_items(items: list[Any], current: Any, where: str, made: dict[int, Any], decode: Decode) -> list[Any]:
    before = list(current) if isinstance(current, (list, tuple, deque)) else []
    return [
        decode(item, before[index] if index < len(before) else None, f"{where}[{index}]", made)
        for index, item in enumerate(items)
    ]


def _empty_mapping(kind: str, current: Any, where: str) -> Any:
    if kind == "defaultdict":
        if type(current) is not defaultdict:
            raise CannotSnapshotError(f"{where} was a defaultdict and is a {class_name(current)}: build it as it was.")
        return defaultdict(current.default_factory)
    return OrderedDict() if kind == "OrderedDict" else {}


def _generator(state: dict[str, Any], current: Any, where: str) -> np.random.Generator:
    """The generator that stands there, since others may hold it too, or a new one."""
    name = state["bit_generator"]
    if name not in BIT_GENERATORS:
        raise CannotSnapshotError(f"{where} was a generator over {name}: known are {sorted(BIT_GENERATORS)}.")
    if not (type(current) is np.random.Generator and type(current.bit_generator).__name__ == name):
        current = np.random.Generator(BIT_GENERATORS[name]())
    generator: np.random.Generator = current
    generator.bit_generator.state = state
    return generator
