"""What `Classifier.fit` is given, checked, with its targets, and on the device."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlsmooth.targets import Smoothing, Target, as_smoothing
from rlsmooth.training.classifier_data import Rows, as_inputs, as_mask
from rlsmooth.training.classifier_labels import (
    as_label_array,
    as_weights,
    class_factors,
    encode_labels,
    hold_out,
    in_class_order,
)
from rlsmooth.training.classifier_model import as_device, model_dtype

if TYPE_CHECKING:
    from rlsmooth.training.classifier import Classifier

__all__ = ["Data", "prepare"]

DENSE_CLASSES = 32
"""Up to so many classes a smoothed target is kept written out: faster to compare with, at 4 bytes a class and row."""
CHECKED_ROWS = 65536


@dataclass(frozen=True)
class Data:
    """What `fit` was given, checked and on the device.

    Attributes:
        rows: to train on.
        row_numbers: int64 `[N]` on the CPU, which rows of `X` they are; None: all.
        validation: held out, or None.
        classes: `[K]`, sorted.
        smoothing: the recipe of labels.
        num_features: of `X` (its second axis).
        is_of_targets: whether `fit(target=)` was given.
    """

    rows: Rows
    row_numbers: Tensor | None
    validation: Rows | None
    classes: NDArray[Any]
    smoothing: Smoothing
    num_features: int
    is_of_targets: bool


def prepare(
    classifier: Classifier,
    X: Any,
    y: Any,
    sample_weight: Any,
    *,
    validation: Any,
    target: Target | None,
    mask: Any,
    classes: Any,
    seed: int,
) -> Data:
    """Check what `fit` was given and bring it to the device. See `Classifier.fit`.

    Raises:
        TypeError: a kind that is not listed there.
        ValueError: values or shapes that do not fit.
    """
    device, dtype = as_device(classifier.device), model_dtype(classifier.model)
    smoothing = as_smoothing(classifier.smoothing)
    inputs = as_inputs(X, dtype)
    if classifier.mixup and not inputs.is_floating_point():
        raise ValueError(f"X is {inputs.dtype}, which mixup can't mix: give floating-point features, or mixup=0.")
    names = as_label_array(y, len(inputs))
    try:
        known = np.unique(names if classes is None else np.asarray(classes))
    except TypeError as error:
        raise ValueError(f"y mixes kinds of labels that can't be sorted ({error}): give all of one kind.") from error
    labels = encode_labels(names, known)
    smoothing = in_class_order(smoothing, known)
    weights = as_weights(sample_weight, len(labels))
    legal = as_mask(mask, len(labels), len(known))
    if target is not None:
        _check_target(target, len(labels), len(known), legal)

    factors = class_factors(classifier.class_weight, known, labels, weights)
    combined = _combined(weights, factors, labels)
    if combined is not None and not combined.any():
        raise ValueError("class_weight and sample_weight leave no row with a weight above 0: nothing is to be learnt.")
    rows = Rows(
        inputs.to(device),
        torch.tensor(labels, device=device),
        None if combined is None else torch.tensor(combined, dtype=_exact(dtype), device=device),
        None if legal is None else legal.to(device),
    )
    goal = _constant_target(rows, smoothing, len(known)) if target is None else target.to(device)
    rows = _written_out(dataclasses.replace(rows, target=goal))

    held_out, numbers = None, None
    if classifier.validation_fraction > 0:
        if validation is not None:
            raise ValueError(
                f"validation and validation_fraction={classifier.validation_fraction} are both given: choose one."
            )
        numbers, taken = map(torch.from_numpy, hold_out(labels, classifier.validation_fraction, seed))
        rows, held_out = rows[numbers.to(device)], rows[taken.to(device)]
    elif validation is not None:
        held_out = _validation_rows(validation, smoothing, known, factors, inputs, device, dtype)
    if classifier.early_stopping_patience is not None and held_out is None:
        raise ValueError("early_stopping_patience needs validation data: give validation_fraction or fit(validation=).")
    return Data(rows, numbers, held_out, known, smoothing, inputs.shape[1], target is not None)


def _combined(
    weights: NDArray[np.float64] | None, factors: NDArray[np.float64] | None, labels: NDArray[np.int64]
) -> NDArray[np.float64] | None:
    if factors is None:
        return weights
    return factors[labels] if weights is None else weights * factors[labels]


def _constant_target(rows: Rows, smoothing: Smoothing, num_classes: int) -> Target | None:
    """The rows' targets, values checked; None where alpha follows a schedule."""
    checked = smoothing(rows.labels, num_classes, rows.mask)
    return checked if smoothing.is_constant else None


def _written_out(rows: Rows) -> Rows:
    target = rows.target
    if target is None or target.reference is None or target.num_classes > DENSE_CLASSES:
        return rows
    return dataclasses.replace(rows, target=target.written_out(_exact(rows.inputs.dtype), find_positive=True))


def _exact(dtype: torch.dtype) -> torch.dtype:
    """What weights and targets are kept in: float32, or float64 where the network computes in it."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check_target(target: Target, num_rows: int, num_classes: int, mask: Tensor | None) -> None:
    if not isinstance(target, Target):
        raise TypeError(f"target must be a Target, got {type(target).__name__}: make one by from_probs(...).")
    if target.batch_shape != (num_rows,) or target.num_classes != num_classes:
        raise ValueError(
            f"target is for batch {tuple(target.batch_shape)} and {target.num_classes} classes, X and y have "
            f"{num_rows} rows and {num_classes} classes: name classes that y lacks in fit(classes=)."
        )
    if mask is None:
        return
    for start in range(0, num_rows, CHECKED_ROWS):
        part = slice(start, start + CHECKED_ROWS)
        illegal = (target[part].dense() != 0).cpu() & ~mask[part].cpu()
        if bool(illegal.any()):
            row, column = (int(place) for place in illegal.nonzero()[0])
            raise ValueError(f"target[{start + row}] has mass on class {column}, which its mask forbids: mend one.")


def _validation_rows(
    validation: Any,
    smoothing: Smoothing,
    classes: NDArray[Any],
    factors: NDArray[np.float64] | None,
    like: Tensor,
    device: torch.device,
    dtype: torch.dtype,
) -> Rows:
    if not (isinstance(validation, (tuple, list)) and len(validation) == 2):
        raise TypeError(f"validation must be (X, y), got {type(validation).__name__}.")
    if isinstance(smoothing.alpha, Tensor) and smoothing.alpha.ndim > 0:
        raise ValueError("smoothing has an alpha for each training row, but validation has none: give one number.")
    inputs = as_inputs(validation[0], dtype)
    if inputs.ndim == 2 and inputs.shape[1:] != like.shape[1:]:
        raise ValueError(f"validation has {inputs.shape[1]} features, X has {like.shape[1]}: give the same.")
    names = as_label_array(validation[1], len(inputs), "validation's y")
    labels = encode_labels(names, classes, "validation's y")
    weights = _combined(None, factors, labels)
    rows = Rows(
        inputs.to(device),
        torch.tensor(labels, device=device),
        None if weights is None else torch.tensor(weights, dtype=_exact(dtype), device=device),
    )
    target = _constant_target(rows, smoothing, len(classes))
    return _written_out(dataclasses.replace(rows, target=target))
