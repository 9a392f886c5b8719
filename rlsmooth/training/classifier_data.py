"""The rows that a classifier trains on: features checked once, then tensors on the device, cut into batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlsmooth.targets import Target

__all__ = ["Rows", "as_inputs", "as_mask", "feature_names", "mix_rows"]

BLOCK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Rows:
    """Rows to train or validate on, all on one device: a data set, and a batch of it.

    Attributes:
        inputs: `[N, ...]`, as the model takes them.
        labels: int64 `[N]`, places in `classes_`.
        weights: float32 or float64 `[N]`, sample weight times class weight, or None where each row counts once.
        mask: bool `[N, K]`, True = legal, or None.
        target: of batch shape `[N]`, or None where it is made batch by batch, since alpha follows a schedule.
    """

    inputs: Tensor
    labels: Tensor
    weights: Tensor | None = None
    mask: Tensor | None = None
    target: Target | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | Tensor) -> Rows:
        """Views of a slice of the rows, or copies of those that an int64 tensor names."""

        def select(tensor: Tensor) -> Tensor:
            return tensor[index] if isinstance(index, slice) else tensor.index_select(0, index)

        return Rows(
            select(self.inputs),
            select(self.labels),
            None if self.weights is None else select(self.weights),
            None if self.mask is None else select(self.mask),
            None if self.target is None else self.target[index],
        )

    def batches(self, order: Tensor, batch_size: int) -> Iterator[Rows]:
        """The rows in an order, cut into batches, of which the last may have fewer rows.

        They are gathered in blocks of at most 64 MiB, one `index_select` a tensor; the batches are views of a block.

        Args:
            order: int64 `[N]`, on the CPU.
            batch_size: rows of a batch.
        """
        row_bytes = self.inputs.element_size() * self.inputs[:1].numel()
        block_rows = max(1, BLOCK_BYTES // (max(row_bytes, 1) * batch_size)) * batch_size
        for start in range(0, len(order), block_rows):
            block = self[order[start : start + block_rows].to(self.labels.device)]
            for offset in range(0, len(block), batch_size):
                yield block[offset : offset + batch_size]


def as_inputs(X: Any, dtype: torch.dtype) -> Tensor:
    """The features as a tensor of finite numbers.

    Args:
        X: `[N, ...]`: an array, a data frame or a list, whose numbers become `dtype`; or a tensor, of which only a
            floating-point one does: pixels (uint8) and tokens (int64) are left to the model.
        dtype: of the model's parameters.

    Raises:
        TypeError: a sparse matrix, or something that is no number.
        ValueError: no row, no feature, not at least two axes, complex numbers, NaN, infinity.
    """
    if isinstance(X, Tensor):
        values = X.detach()
    elif type(X).__module__.startswith("scipy.sparse"):
        raise TypeError("X is a sparse matrix, sparse input is not supported: give X.toarray().")
    else:
        array = np.asarray(X)
        if array.dtype.kind not in "biufc":
            array = array.astype(np.float64)  # says what is no number
        # A copy in torch's own memory: the alignment of numpy's differs, and with it the last bits of a product.
        if array.dtype.kind != "c":
            with np.errstate(over="ignore"):  # what is too large becomes infinity, which is an error below
                array = array.astype(_numpy_dtype(dtype))
        values = torch.tensor(array)
    if values.is_complex():
        raise ValueError("X is complex. Complex data not supported: give real and imaginary parts as features.")
    if values.ndim < 2:
        raise ValueError(
            f"X has shape {tuple(values.shape)}, needs [rows, features] or more axes. Reshape your data: "
            "X.reshape(-1, 1) if it is one feature, X.reshape(1, -1) if it is one row."
        )
    for what, size in (("sample", len(values)), ("feature", values[0:1].numel() if len(values) else 1)):
        if size == 0:
            raise ValueError(
                f"X has 0 {what}(s) (shape={tuple(values.shape)}) while a minimum of 1 is required: give some."
            )
    if values.is_floating_point():
        values = values.to(dtype)
        finite = values.isfinite()
        if not bool(finite.all()):
            row = int(finite.flatten(1).all(-1).logical_not().nonzero()[0])
            raise ValueError(
                f"X[{row}] contains NaN, infinity or a value too large for {str(dtype).removeprefix('torch.')}: drop "
                "the row or impute it."
            )
    return values


def feature_names(X: Any) -> NDArray[np.object_] | None:
    """The columns' names of a data frame, where all are text; None for anything else."""
    columns = getattr(X, "columns", None)
    if columns is None or not all(isinstance(name, str) for name in columns):
        return None
    return np.asarray(columns, dtype=object)


def as_mask(mask: Any, num_rows: int, num_classes: int) -> Tensor | None:
    """Which classes are legal, bool `[N, K]`, or None.

    Raises:
        TypeError: it is not bool.
        ValueError: it does not broadcast to `[N, K]`; a row without a legal class.
    """
    if mask is None:
        return None
    given = mask if isinstance(mask, Tensor) else torch.tensor(np.asarray(mask))
    if given.dtype != torch.bool:
        raise TypeError(f"mask must be bool (True = legal), got {given.dtype}: use mask.bool() for 0/1 masks.")
    if given.ndim not in (1, 2) or given.shape[-1] != num_classes or given.shape[:-1] not in ((), (1,), (num_rows,)):
        raise ValueError(f"mask has shape {tuple(given.shape)}, needs ({num_rows}, {num_classes}).")
    empty = (~given.any(-1)).reshape(-1).nonzero()
    if len(empty):
        raise ValueError(f"mask[{int(empty[0])}] allows no class at all: every row needs at least one legal class.")
    return given.expand(num_rows, num_classes)


def mix_rows(batch: Rows, target: Target, concentration: float) -> tuple[Rows, Target]:
    """Mixup (Zhang et al. 2018): `lam · batch + (1 - lam) · batch in another order`, rows and targets alike.

    One `lam ~ Beta(concentration, concentration)` a batch, from torch's CPU generator. A mixed row may be of any class
    that is legal for one of its two. Weights go into the target, which then has the mixed weight as its mass.

    Args:
        batch: of floating-point inputs.
        target: of the batch's rows.
        concentration: above 0; small: mostly one of the two rows.
    """
    lam = float(torch.distributions.Beta(concentration, concentration).sample())
    other = torch.randperm(len(batch)).to(batch.labels.device)
    if batch.weights is not None:
        target = target.scale(batch.weights)
    mask = batch.mask
    mixed = Rows(
        torch.lerp(batch.inputs[other], batch.inputs, lam),
        batch.labels,
        batch.weights,
        None if mask is None else mask | mask[other],
    )
    return mixed, Target.mix(target, target[other], lam)


def _numpy_dtype(dtype: torch.dtype) -> type[np.floating[Any]]:
    return np.float64 if dtype == torch.float64 else np.float32
