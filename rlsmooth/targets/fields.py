"""Dataclasses with tensors as values: compared, hashed and rebuilt field by field."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor


def same_fields(one: Any, other: Any) -> bool:
    """Whether two dataclasses of one type have equal fields; tensors by dtype, device, shape and values."""
    if one is other:
        return True
    return type(one) is type(other) and all(
        _same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one) if field.compare
    )


def hash_of_fields(value: Any) -> int:
    """A hash that agrees with `same_fields`; of a tensor it reads the shape, so that it waits for no device."""
    parts = [getattr(value, field.name) for field in fields(value) if field.compare]
    return hash((type(value), *(tuple(part.shape) if isinstance(part, Tensor) else part for part in parts)))


def rebuild(value: Any) -> tuple[type, tuple[Any, ...]]:
    """What `__reduce__` returns so that a copy or a file is read by calling the class with its fields."""
    return type(value), tuple(getattr(value, field.name) for field in fields(value) if field.init)


def _same(one: object, other: object) -> bool:
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return one is other or (not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other)
    alike = one.dtype == other.dtype and one.device == other.device and one.shape == other.shape
    return one is other or (alike and torch.equal(one, other))
