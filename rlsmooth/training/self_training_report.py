"""Report of a round of self-training: how right the pseudo-labels are, what training on them confirms, and gradients.

Source of the questions: Arazo et al. 2020, "Pseudo-labeling and confirmation bias in deep semi-supervised learning".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlsmooth.checks import check_positive_int
from rlsmooth.losses import cross_entropy
from rlsmooth.targets import Target, one_hot

NUM_BINS = 10


@dataclass(frozen=True)
class ConfirmationBias:
    """Whether training on wrong pseudo-labels made the model surer of them.

    The growth of a pseudo-label is the probability that the model gives it once trained on it, less the confidence with
    which it was made. A cautious teacher, such as a smoothed one, leaves more room to grow: compare what the confidence
    became, `mean_confidence + mean_growth`, too. Each value is None where there is no such pseudo-label.

    Attributes:
        num_wrong: wrong pseudo-labels.
        share_grown: share of the wrong ones whose confidence grew.
        mean_growth: mean growth of the wrong ones, in [-1, 1].
        mean_growth_of_right: mean growth of the right ones, to compare with.
        mean_confidence: mean confidence of the wrong ones when they were made.
    """

    num_wrong: int
    share_grown: float | None
    mean_growth: float | None
    mean_growth_of_right: float | None
    mean_confidence: float | None


@dataclass(frozen=True)
class GradientBins:
    """Mean norm of the gradient that a pseudo-label's loss has on the logits, by the confidence of the pseudo-label.

    Bins are `[edge_i, edge_{i+1})`, the last one closed. Means are None in a bin without samples.

    Attributes:
        edges: `num_bins + 1` numbers from 0 to 1.
        counts: samples in each bin.
        confidence: mean confidence in each bin.
        hard: mean norm with the hard pseudo-label as target.
        target: mean norm with the target that is trained on: smoothed or soft.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    confidence: tuple[float | None, ...]
    hard: tuple[float | None, ...]
    target: tuple[float | None, ...]


@dataclass(frozen=True)
class RoundReport:
    """One round of self-training. `dataclasses.asdict` gives what JSON can hold.

    Attributes:
        round: from 1; the value of `labeled_iter_` of the samples that it labelled.
        num_labelled: samples with a label at its end, those given with one included.
        num_new: pseudo-labels that it made.
        mean_confidence: of these, when they were made; None where it made none.
        new_accuracy: share of these that are right; None without `true_labels`.
        pseudo_label_accuracy: share of all pseudo-labels at its end that are right; None without `true_labels`.
        confirmation_bias: of all pseudo-labels at its end, under the student that was then trained on them; None
            without `true_labels`.
        gradients: of all samples without a label at its start, as if each got its pseudo-label, under the teacher.
    """

    round: int
    num_labelled: int
    num_new: int
    mean_confidence: float | None
    new_accuracy: float | None
    pseudo_label_accuracy: float | None
    confirmation_bias: ConfirmationBias | None
    gradients: GradientBins


def logit_gradient_norms(logits: Tensor, target: Target | Tensor) -> Tensor:
    """`‖d CE(target, softmax(logits)) / d logits‖` of each sample, Euclidean.

    Where the classes other than the pseudo-label `c` share evenly what it leaves, and `t = 1 - a + a / K`, it is
    `(1 - p_c) · sqrt(K / (K - 1))` for the hard pseudo-label and `|p_c - t| · sqrt(K / (K - 1))` for the smoothed one.
    So smoothing damps a gradient by `|p_c - t| / (1 - p_c)`: least where the pseudo-label is uncertain.

    Args:
        logits: `[..., K]`.
        target: a `Target` of the same batch shape, or int64 labels `[...]`.

    Returns:
        `[...]`, nats a logit; float32, or float64 of float64 logits.

    Raises:
        TypeError: logits that are not floating-point, or a target of another kind.
        ValueError: shapes that do not fit.

    Examples:
        >>> logit_gradient_norms(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        tensor([0.7071])
    """
    with torch.enable_grad():
        leaf = logits.detach().clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(cross_entropy(leaf, target, reduction="sum"), leaf)
    norms: Tensor = torch.linalg.vector_norm(gradient, dim=-1)
    return norms


def gradient_bins(
    logits: Tensor, labels: Tensor, confidence: Tensor, target: Target, *, num_bins: int = NUM_BINS
) -> GradientBins:
    """Gradient norms of hard pseudo-labels and of the targets made of them, by confidence.

    Args:
        logits: `[N, K]`, of the model that made the pseudo-labels.
        labels: int64 `[N]`, the pseudo-labels.
        confidence: `[N]`, in [0, 1].
        target: of batch shape `[N]`: what is trained on.
        num_bins: of equal width.

    Raises:
        TypeError: logits that are not floating-point; `num_bins` is no whole number.
        ValueError: shapes that do not fit; `num_bins` is under 1.

    Examples:
        >>> from rlsmooth.targets import uniform
        >>> logits = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
        >>> labels, confidence = torch.tensor([0, 0]), torch.tensor([0.5, 0.9526])
        >>> bins = gradient_bins(logits, labels, confidence, uniform(labels, 2, 0.1), num_bins=2)
        >>> bins.counts, [round(norm, 3) for norm in bins.hard[1:]], [round(norm, 3) for norm in bins.target[1:]]
        ((0, 2), [0.387], [0.32])
    """
    num_bins = check_positive_int("num_bins", num_bins)
    edges = torch.linspace(0, 1, num_bins + 1, dtype=torch.float64)
    place = (torch.bucketize(confidence.to(torch.float64), edges, right=True) - 1).clamp(0, num_bins - 1)
    counts = torch.bincount(place, minlength=num_bins)
    columns = (
        confidence,
        logit_gradient_norms(logits, one_hot(labels, logits.shape[-1])),
        logit_gradient_norms(logits, target),
    )
    means = []
    for column in columns:
        sums = torch.zeros(num_bins, dtype=torch.float64).index_add_(0, place, column.to(torch.float64))
        means.append(
            tuple(total / count if count else None for total, count in zip(sums.tolist(), counts.tolist(), strict=True))
        )
    return GradientBins(tuple(edges.tolist()), tuple(counts.tolist()), *means)


def confirmation_bias(
    before: NDArray[np.float64], after: NDArray[np.float64], is_right: NDArray[np.bool_]
) -> ConfirmationBias:
    """How the confidence in wrong pseudo-labels moved.

    Args:
        before: `[N]`, the confidence with which each pseudo-label was made.
        after: `[N]`, the probability that the model trained on it gives to it.
        is_right: `[N]`, whether the pseudo-label is the truth.

    Raises:
        ValueError: the shapes differ.

    Examples:
        >>> import numpy as np
        >>> before, after = np.array([0.75, 0.75, 0.75]), np.array([0.5, 1.0, 1.0])
        >>> bias = confirmation_bias(before, after, np.array([False, False, True]))
        >>> bias.num_wrong, bias.share_grown, bias.mean_growth, bias.mean_growth_of_right, bias.mean_confidence
        (2, 0.5, 0.0, 0.25, 0.75)
    """
    if not before.shape == after.shape == is_right.shape:
        raise ValueError(
            f"before {before.shape}, after {after.shape} and is_right {is_right.shape} must have one shape [N]."
        )
    growth = after - before
    wrong, right = growth[~is_right], growth[is_right]
    return ConfirmationBias(
        len(wrong),
        float((wrong > 0).mean()) if len(wrong) else None,
        float(wrong.mean()) if len(wrong) else None,
        float(right.mean()) if len(right) else None,
        float(before[~is_right].mean()) if len(wrong) else None,
    )


def share_of_right(is_right: NDArray[np.bool_]) -> float | None:
    """The share of True, or None of nothing."""
    return float(is_right.mean()) if len(is_right) else None
