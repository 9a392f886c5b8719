"""Dataclasses with tensors as values: compared, hashed and rebuilt field by field."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor


class ComparedByFields:
    """A base of dataclasses (`eq=False`): equal where their fields are, tensors by dtype, device, shape and values.

    The hash agrees with that; of a tensor it reads the shape, so that it waits for no device. A copy or a file is read
    by calling the class with its fields.
    """

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        own: Any = self
        return type(self) is type(other) and all(
            _same(getattr(self, field.name), getattr(other, field.name)) for field in fields(own) if field.compare
        )

    def __hash__(self) -> int:
        own: Any = self
        parts = [getattr(self, field.name) for field in fields(own) if field.compare]
        return hash((type(self), *(tuple(part.shape) if isinstance(part, Tensor) else part for part in parts)))

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        own: Any = self
        return type(self), tuple(getattr(self, field.name) for field in fields(own) if field.init)


def _same(one: object, other: object) -> bool:
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return one is other or (not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other)
    alike = one.dtype == other.dtype and one.device == other.device and one.shape == other.shape
    return one is other or (alike and torch.equal(one, other))
