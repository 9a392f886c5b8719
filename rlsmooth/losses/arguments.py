"""Checks of a loss's arguments, none of which reads a value, and the reduction over rows."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from rlsmooth.checks import check_choice
from rlsmooth.targets.arguments import broadcast_mask, kind_of
from rlsmooth.targets.labelled import one_hot
from rlsmooth.targets.target import Target

Reduction: TypeAlias = Literal["none", "mean", "sum"]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of computing: float64 for float64, else float32 (no difference is taken in half precision)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_logits(logits: Tensor, mask: Tensor | None, name: str = "logits") -> Tensor | None:
    """Check shape and dtype; return the mask expanded to the logits' shape.

    Raises:
        TypeError: logits that are not floating-point, a mask that is not bool.
        ValueError: logits without a class axis, a mask that does not broadcast.
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {kind_of(logits)}.")
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"{name} has shape {tuple(logits.shape)}, needs [..., K] with at least one class.")
    return None if mask is None else broadcast_mask(mask, logits.shape[:-1], logits.shape[-1])


def as_labels(labels: Tensor, logits: Tensor) -> Tensor:
    """Labels that fit the logits.

    Raises:
        TypeError: they are not int64.
        ValueError: their shape is not the logits' batch shape.
    """
    if labels.dtype != torch.int64:
        raise TypeError(f"target must be a Target or int64 labels, got {labels.dtype}: see rlsmooth.targets.")
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"target has shape {tuple(labels.shape)}, needs one label a row: {tuple(logits.shape[:-1])}.")
    return labels


def as_target(target: Target | Tensor, logits: Tensor) -> Target:
    """Labels as a hard target; a target as it is.

    Raises:
        TypeError: neither a `Target` nor an int64 tensor.
        ValueError: it does not fit the logits.
    """
    if isinstance(target, Tensor):
        return one_hot(as_labels(target, logits), logits.shape[-1], validate=False)
    if not isinstance(target, Target):
        raise TypeError(f"target must be a Target or int64 labels, got {type(target).__name__}.")
    if target.num_classes != logits.shape[-1] or target.batch_shape != logits.shape[:-1]:
        raise ValueError(
            f"target is for batch {tuple(target.batch_shape)} and {target.num_classes} classes, logits have shape "
            f"{tuple(logits.shape)}."
        )
    return target


def check_weight(weight: Tensor | None, batch_shape: torch.Size, reduction: str) -> None:
    """Check a reduction's name and the shape of per-row weights.

    Raises:
        TypeError: weights that are no tensor.
        ValueError: an unknown reduction, weights of another shape than the batch.
    """
    if reduction not in ("none", "mean", "sum"):  # tried first: this is in the hot path
        check_choice("reduction", reduction, ("none", "mean", "sum"))
    if weight is not None and not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a tensor of one factor a row, got {type(weight).__name__}.")
    if weight is not None and weight.shape != batch_shape:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, needs the batch shape {tuple(batch_shape)}.")


def reduce(rows: Tensor, weight: Tensor | None, reduction: Reduction) -> Tensor:
    """Reduce per-row losses. `"mean"` divides by the number of rows, or by the sum of `weight`; 0 rows give 0.

    A row of weight 0 is left out, not multiplied, so that a NaN in it stays there.
    """
    if weight is not None:
        weight = weight.to(rows.dtype)
        rows = torch.where(weight != 0, rows * weight, 0.0)
    if reduction == "none":
        return rows
    if reduction == "sum":
        return rows.sum()
    if weight is not None:
        total = weight.sum()
        return rows.sum() / torch.where(total != 0, total, 1.0)
    return rows.mean() if rows.numel() else rows.sum()
