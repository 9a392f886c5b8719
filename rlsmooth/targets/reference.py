"""The background of a target: one distribution for each row, kept in its smallest form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from rlsmooth.targets.fields import hash_of_fields, rebuild, same_fields

_Select = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Reference:
    """`r(k)`, one distribution a row, without the `[..., K]` copy wherever it can be avoided.

    `r(k) = scale · mask(k) · base(k)`, where `kind` says what `base` is:

    | kind | base | tensors |
    |---|---|---|
    | `"uniform"` | `1` under a mask, `1/K` without | none |
    | `"vector"` | `values[k]`: a prior | `values [K]` |
    | `"rows"` | `values[rows, k]`: a kernel's row | `values [R, K]`, `rows [...]` int64 |
    | `"dense"` | `values[..., k]` | `values [..., K]` |
    | `"logits"` | `exp((values[..., k] - shift) / temperature)`, shift the row's maximum | `values`, `shift [...]` |

    With a `shift` (`[...]`), the values of `"vector"` and `"rows"` are logarithms too, and the base is
    `exp(values - shift)`: what a mask leaves of a steep table may be too small to be written out.

    `mask` (bool `[..., K]`, True = legal) and `scale` (`[...]`, what renormalises over the legal classes) are optional.
    `total` is each row's sum (`[...]`, or one number for all), None where it is 1 by construction. Two references are
    equal where all of this is.
    """

    num_classes: int
    kind: Literal["uniform", "vector", "rows", "dense", "logits"] = "uniform"
    values: Tensor | None = None
    rows: Tensor | None = None
    mask: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    temperature: float = 1.0
    total: Tensor | None = None

    @property
    def is_plain_uniform(self) -> bool:
        """Whether `r(k) = 1/K` in every row: the case that costs nothing."""
        return self.kind == "uniform" and self.mask is None

    def block(self, dtype: torch.dtype) -> Tensor:
        """`r` as a tensor that broadcasts to `[..., K]`; `[K]` for a plain vector."""
        base: Tensor
        if self.kind == "uniform":
            if self.mask is None:
                raise ValueError("A plain uniform reference has no block: use 1 / num_classes.")
            base = self.mask.to(dtype)
        else:
            assert self.values is not None
            base = self.values
            if self.kind == "rows":
                assert self.rows is not None
                base = take_rows(base, self.rows)
            base = base.to(dtype) if self.shift is None else self._softmax_terms(base, dtype)
            if self.mask is not None:
                base = base.masked_fill(~self.mask, 0.0)
        if self.scale is not None:
            base = base * self.scale.to(dtype).unsqueeze(-1)
        return base

    def dense(self, batch_shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        """`r` written out, `[*batch_shape, K]`: the oracle."""
        if self.is_plain_uniform:
            return torch.full((*batch_shape, self.num_classes), 1.0 / self.num_classes, dtype=dtype, device=device)
        return self.block(dtype).expand(*batch_shape, self.num_classes)

    def at(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        """`r` at the classes `indices`, `[..., A]`, without writing out the rest."""
        base: Tensor
        if self.values is None:
            each = 1.0 if self.mask is not None else 1.0 / self.num_classes
            base = torch.full((), each, dtype=dtype, device=indices.device).expand(indices.shape)
        else:
            if self.kind == "vector":
                base = take_rows(self.values, indices)
            elif self.kind == "rows":
                assert self.rows is not None
                base = take_rows(self.values.reshape(-1), self.rows.unsqueeze(-1) * self.num_classes + indices)
            else:
                base = self.values.gather(-1, indices)
            base = base.to(dtype) if self.shift is None else self._softmax_terms(base, dtype)
        if self.mask is not None:
            base = base.masked_fill(~self.mask.gather(-1, indices), 0.0)
        return base if self.scale is None else base * self.scale.to(dtype).unsqueeze(-1)

    def _softmax_terms(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """`exp((values - shift) / temperature)`, the difference taken in the wider dtype: float32 has no 1e8 + 1."""
        assert self.shift is not None
        wide = torch.promote_types(values.dtype, dtype)
        exponents = values.to(wide) - self.shift.to(wide).unsqueeze(-1)
        return (exponents if self.temperature == 1.0 else exponents / self.temperature).exp().to(dtype)

    def restricted(self, mask: Tensor, in_logarithms: bool) -> tuple[Reference, Tensor]:
        """A `"vector"` or `"rows"` over the legal classes alone, renormalised, and where any has a share, `[...]`.

        In logarithms legal classes far from the label keep their shares however small those were among all classes.
        Where no legal class has any, the reference is 0.

        Args:
            mask: bool `[..., K]`, True = legal.
            in_logarithms: whether the values are logarithms.
        """
        assert self.values is not None
        if not in_logarithms:
            masked = Reference(self.num_classes, self.kind, self.values, self.rows, mask)
            mass = masked.block(self.values.dtype).sum(-1)
            has_mass = mass > 0
            return replace(masked, scale=torch.where(has_mass, 1 / mass, 0.0)), has_mass
        legal = (self.values if self.rows is None else take_rows(self.values, self.rows)).masked_fill(~mask, -torch.inf)
        largest = legal.amax(-1)
        has_mass = largest > -torch.inf
        shift = torch.where(has_mass, largest, 0.0)
        scale = 1 / torch.where(has_mass, (legal - shift.unsqueeze(-1)).exp().sum(-1), 1.0)
        return replace(self, mask=mask, shift=shift, scale=scale, total=None), has_mass

    def entropy(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """`-sum_k r(k) log r(k)` in nats, broadcasting over the batch; from `[K]` or `[R, K]` where that is all."""
        if self.kind == "uniform":
            if self.scale is None:
                return torch.full((), self.num_classes, dtype=dtype, device=device).log()
            return -self.scale.to(dtype).log()
        shared = self.mask is None and self.kind in ("vector", "rows")
        values = self.values.to(dtype) if shared and self.values is not None else self.block(dtype)
        plogp: Tensor = torch.special.xlogy(values, values)
        entropy = -plogp.sum(-1)
        return take_rows(entropy, self.rows) if shared and self.rows is not None else entropy

    def mass(self) -> Tensor | None:
        """Each row's sum, broadcasting over the batch; None means 1 everywhere."""
        return self.total

    def to(self, device: torch.device | str) -> Reference:
        """The same reference on another device."""
        dtype = weight_dtype(torch.device(device))

        def move(tensor: Tensor) -> Tensor:
            # A float64 tensor is an error on a device that lacks it.
            return tensor.to(device, dtype) if tensor.dtype == torch.float64 else tensor.to(device)

        return self._map(move, shared=move)

    def weight_classes(self, weights: Tensor) -> Reference:
        """`r(k) · weights[k]`, which no longer sums to 1."""
        if self.shift is not None:
            weighted = Reference(self.num_classes, "dense", self.block(weights.dtype) * weights)
        elif self.values is None:
            values = weights if self.mask is not None else weights / self.num_classes
            weighted = replace(self, kind="vector", values=values)
        else:
            weighted = replace(self, values=self.values * weights)
        return replace(weighted, total=weighted.block(weights.dtype).sum(-1))

    def index(self, select: _Select, identity: _Select = lambda tensor: tensor) -> Reference:
        """Apply `select` to what belongs to single rows; vectors and kernels are shared by all rows."""
        return self._map(select, shared=identity)

    def __eq__(self, other: object) -> bool:
        return same_fields(self, other)

    def __hash__(self) -> int:
        return hash_of_fields(self)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return rebuild(self)

    def joins(self, other: Reference) -> bool:
        """Whether the two differ only in what belongs to single rows, so that `cat` can join them."""
        none: dict[str, Any] = dict.fromkeys(("rows", "mask", "scale", "shift", "total"))
        if self.kind in ("dense", "logits"):
            none["values"] = None
        given = [[getattr(one, name) is None for name in none] for one in (self, other)]
        return given[0] == given[1] and same_fields(replace(self, **none), replace(other, **none))

    @staticmethod
    def cat(references: Sequence[Reference], dim: int) -> Reference:
        """References that join each other, joined along a batch axis."""
        first = references[0]
        joined: dict[str, Any] = {
            name: torch.cat([getattr(one, name) for one in references], dim) for name in first.row_names
        }
        return replace(first, **joined)

    @property
    def row_names(self) -> tuple[str, ...]:
        """The fields that belong to single rows; all other tensors are shared by all rows."""
        names: tuple[str, ...] = ("rows", "mask", "scale", "shift")
        names += ("values",) if self.kind in ("dense", "logits") else ()
        one_for_all = self.kind == "vector" and isinstance(self.total, Tensor) and not self.total.ndim
        names += () if one_for_all else ("total",)
        return tuple(name for name in names if getattr(self, name) is not None)

    def _map(self, per_row: _Select, shared: _Select) -> Reference:
        # Spelled out and not by `row_names`: every update cuts a minibatch out of a target.
        values_per_row = self.kind in ("dense", "logits")
        one_for_all = self.kind == "vector" and isinstance(self.total, Tensor) and not self.total.ndim
        return Reference(
            self.num_classes,
            self.kind,
            None if self.values is None else (per_row if values_per_row else shared)(self.values),
            None if self.rows is None else per_row(self.rows),
            None if self.mask is None else per_row(self.mask),
            None if self.scale is None else per_row(self.scale),
            None if self.shift is None else per_row(self.shift),
            self.temperature,
            None if self.total is None else (shared if one_for_all else per_row)(self.total),
        )


def check_broadcast(name: str, tensor: Tensor, batch_shape: torch.Size) -> None:
    """Raise ValueError unless `tensor` broadcasts over the batch."""
    fits = tensor.ndim <= len(batch_shape) and all(
        size in (1, goal) for size, goal in zip(reversed(tensor.shape), reversed(batch_shape), strict=False)
    )
    if not fits:
        raise ValueError(
            f"{name} of shape {tuple(tensor.shape)} does not broadcast over the batch {tuple(batch_shape)}: give one "
            "number, or one a row."
        )


def take_rows(table: Tensor, rows: Tensor) -> Tensor:
    """`table[rows]`; indexing by a single number on the device would read it."""
    return table.index_select(0, rows.reshape(-1)).reshape((*rows.shape, *table.shape[1:]))


def weight_dtype(device: torch.device) -> torch.dtype:
    """The dtype that weights are kept in: float64, or float32 on a device that lacks it."""
    return torch.float32 if device.type == "mps" else torch.float64
