"""Nested Python values <-> JSON and named tensors, exactly: tuples stay tuples and int keys stay ints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["tree_from_json", "tree_to_json"]

TUPLE, DICT, TENSOR = "__tuple__", "__dict__", "__tensor__"


def tree_to_json(tree: object, name: str = "tree") -> tuple[Any, dict[str, Tensor]]:
    """Split a nested value into JSON and the tensors in it.

    None, bool, int, float, str, lists and dicts with str keys are themselves in JSON. The rest is tagged: a tuple is
    `{"__tuple__": [...]}`, a dict with other keys `{"__dict__": [[key, value], ...]}`, a tensor `{"__tensor__": name}`.

    Args:
        tree: the value.
        name: what the tensors' names start with, and what errors call the value.

    Returns:
        The JSON, and the tensors by their names `<name>.<key>.<key>...`, not copied.

    Raises:
        TypeError: there is a value of another type in it; the message says where.

    Example:
        >>> tree_to_json({"betas": (0.9, 0.999), "eps": 1e-8})
        ({'betas': {'__tuple__': [0.9, 0.999]}, 'eps': 1e-08}, {})
    """
    tensors: dict[str, Tensor] = {}
    return _encode(tree, name, tensors), tensors


def tree_from_json(encoded: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Give back the value that `tree_to_json` split; the tensors are used as they are, not copied.

    Raises:
        ValueError: the JSON names a tensor that is not there, or a tag is malformed.

    Example:
        >>> tree_from_json({"betas": {"__tuple__": [0.9, 0.999]}}, {})
        {'betas': (0.9, 0.999)}
    """
    if isinstance(encoded, list):
        return [tree_from_json(item, tensors) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded
    if len(encoded) == 1:
        [(tag, content)] = encoded.items()
        if tag == TENSOR:
            if not isinstance(content, str) or content not in tensors:
                raise ValueError(f"there is no tensor named {content!r}: the file is incomplete, use another copy.")
            return tensors[content]
        if tag == TUPLE and isinstance(content, list):
            return tuple(tree_from_json(item, tensors) for item in content)
        if tag == DICT and isinstance(content, list):
            return dict(_decode_pair(pair, tensors) for pair in content)
        if tag in (TUPLE, DICT):
            raise ValueError(f"{tag!r} must hold a list, got {type(content).__name__}: the file is malformed.")
    return {key: tree_from_json(item, tensors) for key, item in encoded.items()}


def _encode(value: object, name: str, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        if name in tensors:
            raise TypeError(f"two tensors would both be called {name!r}: rename a key.")
        tensors[name] = value
        return {TENSOR: name}
    if isinstance(value, tuple):
        return {TUPLE: [_encode(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]}
    if isinstance(value, list):
        return [_encode(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        pairs = [(key, _encode(item, f"{name}.{key}", tensors)) for key, item in value.items()]
        if all(isinstance(key, str) and key not in (TUPLE, DICT, TENSOR) for key, _ in pairs):
            return dict(pairs)
        for key, _ in pairs:
            if not isinstance(key, (str, int)):
                raise TypeError(f"{name} has the key {key!r} of type {type(key).__name__}: keys must be str or int.")
        return {DICT: [[key, item] for key, item in pairs]}
    raise TypeError(
        f"{name} is a {type(value).__name__}: only None, numbers, strings, tensors, lists, tuples and dicts are kept."
    )


def _decode_pair(pair: Any, tensors: Mapping[str, Tensor]) -> tuple[str | int, Any]:
    if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], (str, int))):
        raise ValueError(f"{DICT!r} must hold [key, value] pairs, got {pair!r}: the file is malformed.")
    return pair[0], tree_from_json(pair[1], tensors)
