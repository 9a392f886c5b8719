"""Checks of the arguments of target builders. They read values, which waits for the device: call them on entry."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from rlsmooth.checks import check_choice, check_in_range, check_positive_int
from rlsmooth.targets.target import check_broadcast, from_array, is_traced, weight_dtype

Alpha: TypeAlias = float | Tensor
Labels: TypeAlias = Tensor | Sequence[int] | int

SUM_TOLERANCE = 1e-4
"""How far a distribution's sum may be from 1: wide enough for float32 counts, too narrow for a forgotten division."""


def values_can_be_checked(validate: bool) -> bool:
    """Whether to read values: not while torch compiles or transforms what runs, where there are none yet."""
    return validate and not is_traced()


def first_row(bad: Tensor) -> tuple[int, ...] | None:
    """The index of the first True, or None."""
    places = bad.nonzero()
    return tuple(places[0].tolist()) if len(places) else None


def kind_of(value: object) -> str:
    """How a message calls what is no tensor of the right kind: a tensor by its dtype, all else by its type."""
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def at(index: tuple[int, ...]) -> str:
    """How a message writes an index: nothing for that of a single row."""
    return f"[{', '.join(map(str, index))}]" if index else ""


def to_labels(labels: Labels, name: str = "labels") -> Tensor:
    """Labels as int64.

    Raises:
        TypeError: they are not whole numbers.
    """
    if isinstance(labels, Tensor):
        tensor = labels
    else:
        try:
            given: Any = labels
            tensor = torch.tensor(given.copy() if hasattr(given, "strides") else given)  # arrays may be read-only
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} must be whole numbers: {error}.") from error
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        if tensor.numel() == 0 and not isinstance(labels, Tensor):  # torch makes an empty list float32
            return tensor.to(torch.int64)
        raise TypeError(
            f"{name} must hold class indices (int64), got {tensor.dtype}: for probabilities use from_probs."
        )
    return tensor if tensor.dtype == torch.int64 else tensor.to(torch.int64)


def check_labels(labels: Tensor, num_classes: int, name: str = "labels") -> None:
    """Raise ValueError unless every label is in `[0, num_classes)`; the message names the first that is not."""
    check_positive_int("num_classes", num_classes)
    bad = first_row((labels < 0) | (labels >= num_classes))
    if bad is not None:
        raise ValueError(
            f"{name}{at(bad)}={int(labels[bad])} is outside [0, {num_classes}): labels are class indices from 0; to "
            "ignore a row give the loss weight=0 there."
        )


def check_alpha(alpha: Alpha, batch_shape: torch.Size, *, values: bool) -> None:
    """Raise unless `alpha` is finite, at most 1 (below 0 is negative smoothing) and broadcasts over the batch."""
    if isinstance(alpha, Tensor):
        if not alpha.is_floating_point():
            raise TypeError(f"alpha must be a floating-point tensor, got {alpha.dtype}.")
        check_broadcast("alpha", alpha, batch_shape)
        if values:
            bad = first_row(~(alpha.isfinite() & (alpha <= 1)))
            if bad is not None:
                raise ValueError(f"alpha{at(bad)}={float(alpha[bad])!r} must be finite and at most 1.")
        return
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float, numbers.Real)):
        raise TypeError(f"alpha must be a number or a tensor, got {type(alpha).__name__} {alpha!r}.")
    if not -math.inf < alpha <= 1:  # not math.isfinite, which no compiler can trace
        raise ValueError(f"alpha={alpha!r} must be finite and at most 1 (0: hard target, 1: the reference alone).")


def broadcast_alpha(alpha: Alpha, labels: Tensor) -> Tensor:
    """`alpha` as weights of the labels' shape; no copy is made and the host waits for nothing."""
    device = labels.device
    if isinstance(alpha, Tensor):
        return alpha.detach().to(device, weight_dtype(device)).expand(labels.shape)
    # In the fewest steps: where labels are few, they are what a target costs. A shape to expand to is read slowly.
    return torch.full((), float(alpha), dtype=weight_dtype(device), device=device).expand_as(labels)


def rest_of_alpha(alpha: Alpha, level: Tensor, places: Tensor) -> Tensor:
    """`1 - alpha` as weights of the atoms `places`, `[..., 1]`; `level` is what `broadcast_alpha` made of alpha."""
    if isinstance(alpha, Tensor):
        return (1 - level).unsqueeze(-1)
    return torch.full((), 1 - float(alpha), dtype=level.dtype, device=level.device).expand_as(places)


def broadcast_mask(mask: Tensor, batch_shape: torch.Size, num_classes: int) -> Tensor:
    """`mask`, a tensor or an array (Gymnasium's and sb3-contrib's masks are arrays), expanded to `[..., K]`.

    Raises:
        TypeError: it is not bool.
        ValueError: it does not broadcast to `[..., K]`.
    """
    mask = from_array(mask)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = str(mask.dtype) if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a bool tensor (True = legal), got {kind}: use mask.bool() for 0/1 masks.")
    goal = (*batch_shape, num_classes)
    if mask.shape == goal:
        return mask
    fits = 0 < mask.ndim <= len(goal) and mask.shape[-1] == num_classes and all(
        size in (1, wanted) for size, wanted in zip(reversed(mask.shape), reversed(goal), strict=False)
    )  # fmt: skip
    if not fits:
        raise ValueError(f"mask of shape {tuple(mask.shape)} does not broadcast to {goal}: one bool a row and class.")
    return mask.expand(goal)


def check_mask(mask: Tensor, labels: Tensor | None = None, name: str = "labels") -> None:
    """Raise ValueError where no class is legal, or where a label is illegal; `mask` is `[..., K]` already.

    `labels` may have one more axis than the batch (the parents of a mixture).
    """
    if labels is not None:
        wanted = labels if labels.ndim == mask.ndim else labels.unsqueeze(-1)
        if wanted.shape[-1] and mask.gather(-1, wanted).all():
            return  # with its label, a row has a legal class
    bad = first_row(~mask.any(-1))
    if bad is not None:
        raise ValueError(f"mask{at(bad)} allows no class at all: every row needs at least one legal class.")
    if labels is not None:
        illegal = ~mask.gather(-1, wanted)
        bad = first_row(illegal if labels.ndim == mask.ndim else illegal.squeeze(-1))
        if bad is not None:
            raise ValueError(
                f"{name}{at(bad)}={int(labels[bad])} is illegal under its mask: fix the mask or drop the row."
            )


def check_probabilities(name: str, probabilities: Tensor, hint: str) -> None:
    """Raise ValueError unless every row (last axis) is non-negative, finite and sums to 1 within 1e-4."""
    bad = first_row(~(probabilities.isfinite() & (probabilities >= 0)))
    if bad is not None:
        raise ValueError(f"{name}{at(bad)}={float(probabilities[bad])!r} is no probability: it must be in [0, 1].")
    total = probabilities.sum(-1, dtype=weight_dtype(probabilities.device))
    bad = first_row((total - 1).abs() > SUM_TOLERANCE)
    if bad is not None:
        if probabilities.dtype.itemsize < 4:
            hint = f"{hint}, in float32: {probabilities.dtype} is too coarse"
        raise ValueError(f"{name}{at(bad)} sums to {float(total[bad]):.6g}, must sum to 1: {hint}.")


def check_ordinal_parameters(width: float, concentration: float, decay: float, power: float, edge: str) -> None:
    """Raise unless each parameter is in the range that `ordinal_kernel` says."""
    check_choice("edge", edge, ("all", "half"))
    check_in_range("width", width, 1.0, low_open=True)
    check_in_range("concentration", concentration, 2.0)
    check_in_range("decay", decay, 0.0)
    check_in_range("power", power, 0.0, low_open=True)
