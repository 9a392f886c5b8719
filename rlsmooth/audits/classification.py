"""Scores of a classifier: accuracy, Brier score, negative log-likelihood.

Pure functions on tensors or arrays, no host sync.

All of them are NaN without samples, and NaN if a sample that counts holds a NaN or a label that is no class: a check
here would wait for the device. `classification_summary` does check.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlsmooth.audits.arguments import as_samples, mean_of, takes_arrays
from rlsmooth.losses import cross_entropy


@takes_arrays
def accuracy(probabilities: Tensor, labels: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Share of samples whose most probable class is the label; among equals the first class is taken, as in numpy.

    It is scikit-learn's `accuracy_score` of the argmax, and torchmetrics' `multiclass_accuracy(average="micro")`.

    Args:
        probabilities: float [..., K]; logits give the same.
        labels: int64 [...], in [0, K).
        weights: [...], sample weights, 0 or more; None counts each sample once. A sample of weight 0 plays no part.

    Returns:
        0-dim, in [0, 1], in the probabilities' dtype (float32 for half precision).

    Raises:
        TypeError: `probabilities` is not floating, `labels` not int64.
        ValueError: shapes that do not fit.

    Examples:
        >>> accuracy(torch.tensor([[0.8, 0.2], [0.4, 0.6]]), torch.tensor([0, 0]))
        tensor(0.5000)
    """
    samples, label, weight, valid = as_samples(probabilities, labels, weights)
    return mean_of(samples.argmax(-1) == label, weight, valid).to(samples.dtype)


@takes_arrays
def brier_score(probabilities: Tensor, labels: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Mean over samples of `Σ_k (p(k) - [k = label])²`.

    It is the original, which lies in [0, 2], also for two classes: scikit-learn's
    `brier_score_loss(scale_by_half=False)`, whose default halves it where there are two classes.

    Args:
        probabilities: float [..., K], rows summing to 1 (not checked).
        labels: int64 [...], in [0, K).
        weights: [...], sample weights, 0 or more; None counts each sample once. A sample of weight 0 plays no part.

    Returns:
        0-dim, in the probabilities' dtype (float32 for half precision).

    Raises:
        TypeError: `probabilities` is not floating, `labels` not int64.
        ValueError: shapes that do not fit.

    Source: Brier, "Verification of forecasts expressed in terms of probability" (1950).

    Examples:
        >>> brier_score(torch.tensor([[0.8, 0.2]]), torch.tensor([0]))
        tensor(0.0800)
    """
    samples, label, weight, valid = as_samples(probabilities, labels, weights)
    wide = samples.to(weight.dtype)
    at_label = wide.gather(-1, label.unsqueeze(-1)).squeeze(-1)
    # (p - 1)² instead of p² at the label: no one-hot table.
    return mean_of(wide.square().sum(-1) + (1 - 2 * at_label), weight, valid).to(samples.dtype)


@takes_arrays
def negative_log_likelihood(logits: Tensor, labels: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Mean over samples of `-log p(label)`, in nats, with `p = softmax(logits)`.

    It is scikit-learn's `log_loss` of the probabilities, except that a label of probability 0 gives +inf, where
    scikit-learn clips.

    Args:
        logits: float [..., K].
        labels: int64 [...], in [0, K).
        weights: [...], sample weights, 0 or more; None counts each sample once. A sample of weight 0 plays no part.

    Returns:
        0-dim, nats, in the logits' dtype (float32 for half precision).

    Raises:
        TypeError: `logits` is not floating, `labels` not int64.
        ValueError: shapes that do not fit.

    Examples:
        >>> negative_log_likelihood(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
        tensor(0.1269)
    """
    samples, label, weight, valid = as_samples(logits, labels, weights, name="logits")
    with torch.no_grad():
        losses = cross_entropy(samples, label, reduction="none")
    return mean_of(losses, weight, valid).to(samples.dtype)
