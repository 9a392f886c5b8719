"""Scores of a classifier whose classes are ordered, the distance between neighbours being 1.

Pure functions on tensors or arrays, no host sync.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlsmooth.audits.arguments import (
    as_samples,
    check_labels,
    check_same_shape,
    mean_of,
    nan_unless,
    takes_arrays,
    wide_dtype,
)
from rlsmooth.checks import check_positive_int


@takes_arrays
def mean_absolute_error(predictions: Tensor, labels: Tensor) -> Tensor:
    """Mean over samples of `|prediction - label|`, in classes: scikit-learn's function of the same name.

    Args:
        predictions: int64 [...].
        labels: int64 [...].

    Returns:
        0-dim, float32; NaN without samples.

    Raises:
        TypeError: `predictions` or `labels` is not int64.
        ValueError: shapes differ.

    Examples:
        >>> mean_absolute_error(torch.tensor([0, 2, 2]), torch.tensor([0, 0, 1]))
        tensor(1.)
    """
    error, _ = _errors(predictions, labels)
    return (error.sum() / error.numel()).to(torch.float32)


@takes_arrays
def average_mean_absolute_error(predictions: Tensor, labels: Tensor, *, num_classes: int) -> Tensor:
    """Mean over classes of the mean absolute error of the samples of that label: each class weighs the same (AMAE).

    Classes without a sample are left out, as in imbalanced-learn's `macro_averaged_mean_absolute_error`.

    Args:
        predictions: int64 [...].
        labels: int64 [...], in [0, K).
        num_classes: K.

    Returns:
        0-dim, in classes, float32; NaN without samples, and NaN if a label is no class.

    Raises:
        TypeError: `predictions` or `labels` is not int64.
        ValueError: shapes differ, or `num_classes` is under 1.

    Source: Baccianella et al., "Evaluation measures for ordinal regression" (2009).

    Examples:
        >>> average_mean_absolute_error(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 0, 2]), num_classes=3)
        tensor(1.)
    """
    num_classes = check_positive_int("num_classes", num_classes)
    error, label = _errors(predictions, labels)
    valid = ((label >= 0) & (label < num_classes)).all()
    zeros = error.new_zeros(num_classes)
    place = label.clamp(0, num_classes - 1)
    counts = zeros.index_add(0, place, torch.ones_like(error))
    means = zeros.index_add(0, place, error) / counts.clamp(min=1)
    return nan_unless(valid, means.sum() / (counts > 0).sum()).to(torch.float32)


@takes_arrays
def ranked_probability_score(probabilities: Tensor, labels: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Mean over samples of `Σ_{k < K-1} (F(k) - [label <= k])²`, with `F` the cumulative probabilities.

    It is the sum of the Brier scores of the K - 1 questions "is it at most class k?", and the mean absolute error
    where the probabilities are 0 and 1. Not divided by K - 1, as in dlordinal; divided, it lies in [0, 1].

    Args:
        probabilities: float [..., K], rows summing to 1 (not checked).
        labels: int64 [...], in [0, K).
        weights: [...], sample weights, 0 or more; None counts each sample once. A sample of weight 0 plays no part.

    Returns:
        0-dim, in the probabilities' dtype (float32 for half precision); NaN without samples, and NaN if a sample that
        counts holds a NaN or a label that is no class.

    Raises:
        TypeError: `probabilities` is not floating, `labels` not int64.
        ValueError: shapes that do not fit.

    Source: Epstein, "A scoring system for probability forecasts of ranked categories" (1969).

    Examples:
        >>> ranked_probability_score(torch.tensor([[0.5, 0.0, 0.5]]), torch.tensor([0]))
        tensor(0.5000)
    """
    samples, label, weight, valid = as_samples(probabilities, labels, weights)
    cumulative = samples.to(weight.dtype).cumsum(-1)[:, :-1]
    classes = torch.arange(cumulative.shape[-1], device=samples.device)
    at_most = (label.unsqueeze(-1) <= classes).to(weight.dtype)
    return mean_of((cumulative - at_most).square().sum(-1), weight, valid).to(samples.dtype)


def _errors(predictions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Flat absolute errors, in float64 where there is any, and labels."""
    check_labels("predictions", predictions)
    check_labels("labels", labels)
    check_same_shape("labels", labels, "predictions", predictions.shape)
    label = labels.reshape(-1)
    return (predictions.reshape(-1) - label).abs().to(wide_dtype(label)), label
