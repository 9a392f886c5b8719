"""Values of a running algorithm as trees of plain data and tensors, which checkpoints hold, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlsmooth.envs.snapshot_values import CannotSnapshotError, Same, class_name, decode_value, encode_value

__all__ = ["arrays_from_tensors", "state_from_tree", "state_to_tree", "tensors_from_arrays"]

TENSOR = "tensor"
DTYPES = {
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
}


def state_to_tree(state: Any, where: str) -> Any:
    """What `plain_value` gives, with tensors in it, which it refuses: they are copied, to the CPU.

    Args:
        state: numbers, text, arrays, tensors, random generators of numpy and of Python, containers of these.
        where: what errors call it.

    Raises:
        CannotSnapshotError: there is something else in it.

    Example:
        >>> state_from_tree(state_to_tree({"weight": torch.ones(2), "rounds": (3,)}, "state"))
        {'weight': tensor([1., 1.]), 'rounds': (3,)}
    """
    return _encode(state, where, Same())


def state_from_tree(tree: Any) -> Any:
    """What `state_to_tree` was given.

    Raises:
        CannotSnapshotError: the tree is malformed.
    """
    try:
        return _decode(tree, None, "the state", {})
    except (KeyError, IndexError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise CannotSnapshotError(f"the data is malformed ({type(error).__name__}: {error}).") from error


def _encode(value: Any, where: str, same: Same) -> Any:
    if isinstance(value, Tensor):
        if value.dtype not in DTYPES:
            raise CannotSnapshotError(f"{where} is a tensor of {value.dtype}, which numpy lacks: convert it first.")
        return {"kind": TENSOR, "array": value.detach().cpu().numpy().copy()}
    encoded = encode_value(value, where, same, _encode)
    if encoded is NotImplemented:
        raise CannotSnapshotError(f"{where} is a {class_name(value)}, which is no plain data.")
    return encoded


def _decode(encoded: Any, current: Any, where: str, made: dict[int, Any]) -> Any:
    if isinstance(encoded, dict) and encoded["kind"] == TENSOR:
        return torch.from_numpy(np.asarray(encoded["array"]).copy())
    return decode_value(encoded, current, where, made, _decode)


# ---- arrays, which environments give, and tensors, which files hold


def tensors_from_arrays(tree: Any) -> Any:
    """The tree with a tensor in place of each numpy array."""
    return _mapped(tree, lambda leaf: torch.from_numpy(leaf.copy()) if isinstance(leaf, np.ndarray) else leaf)


def arrays_from_tensors(tree: Any) -> Any:
    """The tree with a numpy array in place of each tensor."""
    return _mapped(tree, lambda leaf: leaf.cpu().numpy().copy() if isinstance(leaf, Tensor) else leaf)


def _mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(tree, dict):
        return {key: _mapped(item, change) for key, item in tree.items()}
    if isinstance(tree, list):
        return [_mapped(item, change) for item in tree]
    return change(tree)
