"""Calibration: does a policy that says 90 % hit nine times in ten? Pure functions on tensors or arrays, no host sync.

Source: Guo et al., "On calibration of modern neural networks" (2017); Naeini et al., "Obtaining well calibrated
probabilities using Bayesian binning" (2015).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rlsmooth.audits.arguments import (
    as_samples,
    check_floating,
    check_same_shape,
    nan_unless,
    result_dtype,
    takes_arrays,
    wide_dtype,
)
from rlsmooth.checks import check_choice, check_positive_int

FEW_SAMPLES = 300
"""Below so many a reliability diagram has fewer bins."""


class ReliabilityBins(NamedTuple):
    """The numbers of a reliability diagram, bin by bin, ascending.

    Attributes:
        edges: [num_bins + 1], from 0 to 1, evenly spaced; the confidences' dtype (float32 for half precision).
        counts: [num_bins], number of samples (or sum of weights) in each bin.
        mean_confidence: [num_bins], mean confidence of the bin's samples, NaN where there are none.
        accuracy: [num_bins], share of the bin's samples that hit, NaN where there are none.
    """

    edges: Tensor
    counts: Tensor
    mean_confidence: Tensor
    accuracy: Tensor


@takes_arrays
def calibration_error(
    confidences: Tensor,
    hits: Tensor,
    *,
    num_bins: int = 15,
    norm: Literal["l1", "l2", "max"] = "l1",
    weights: Tensor | None = None,
) -> Tensor:
    """Calibration error over bins of equal width: how far accuracy is from confidence.

    With `g_b = |accuracy_b - mean confidence_b|` and `p_b` the share of samples in bin b:
    `"l1"` is the expected calibration error `Σ p_b g_b`, `"l2"` is `sqrt(Σ p_b g_b²)`, `"max"` is `max g_b` over the
    bins that have samples. The bins are those of `reliability_bins`, `[edge_i, edge_{i+1})` and the last one closed.
    torchmetrics gives a confidence of exactly 1 a bin of its own, and is the same without one.

    Args:
        confidences: float [...], the probability given to the action (or class) chosen, in [0, 1].
        hits: [...], bool, or 0 and 1: was it the right one?
        num_bins: number of bins, 1 or more.
        norm: which of the errors above.
        weights: [...], sample weights, 0 or more; None counts each sample once. A sample of weight 0 plays no part.

    Returns:
        0-dim, dimensionless, in [0, 1], in the confidences' dtype (float32 for half precision). NaN if there are no
        samples or all weights are 0, and NaN if a confidence that counts is NaN or outside [0, 1] (checking it here
        would wait for the device).

    Raises:
        TypeError: `confidences` is not floating, or `num_bins` no whole number.
        ValueError: shapes differ, `num_bins` is under 1, or `norm` is unknown.

    Example:
        >>> calibration_error(torch.tensor([0.9, 0.9, 0.9, 0.9]), torch.tensor([True, True, False, False]))
        tensor(0.4000)
    """
    check_choice("norm", norm, ("l1", "l2", "max"))
    confidence, hit, weight = _prepare(confidences, hits, weights)
    edges = _edges(confidence, num_bins)
    counts, mean_confidence, accuracy = _bin(confidence, hit, weight, edges, num_bins)
    share = counts / counts.sum()
    gap = torch.where(counts > 0, (accuracy - mean_confidence).abs(), torch.zeros_like(share))
    if norm == "l1":
        error = (share * gap).sum()
    elif norm == "l2":
        error = (share * gap.square()).sum().sqrt()
    else:
        # `share` carries the NaN of an empty set, which a maximum over empty bins would hide.
        error = (gap + 0 * share).max()
    return nan_unless(_all_valid(confidence, weight), error).to(confidence.dtype)


@takes_arrays
def adaptive_calibration_error(confidences: Tensor, hits: Tensor, *, num_bins: int = 15) -> Tensor:
    """Expected calibration error over bins that hold equally many samples: `Σ_b p_b |accuracy_b - mean confidence_b|`.

    The edges are the quantiles `1/num_bins, 2/num_bins, ...` of the confidences, linear between the two nearest, the
    bins `[edge_i, edge_{i+1})`, and each bin weighs its samples: netcal's `ECE(equal_intervals=False)`. Equal
    confidences share a bin, whatever the order of the samples, so that with ties bins differ in size and may be empty.
    (Nixon et al. cut the sorted samples, and average over classes too; netcal's `ACE` weighs all bins alike.)

    Args:
        confidences: float [...], the probability given to the class chosen, in [0, 1].
        hits: [...], bool, or 0 and 1: was it the right one?
        num_bins: number of bins, 1 or more.

    Returns:
        0-dim, dimensionless, in [0, 1], in the confidences' dtype (float32 for half precision); NaN as in
        `calibration_error`.

    Raises:
        TypeError: `confidences` is not floating, or `num_bins` no whole number.
        ValueError: shapes differ, or `num_bins` is under 1.

    Source: Nguyen and O'Connor, "Posterior calibration and exploratory analysis for natural language processing
    models" (2015); Nixon et al., "Measuring calibration in deep learning" (2019).

    Example:
        >>> confidences, hits = torch.tensor([0.90, 0.91, 0.92, 0.93]), torch.tensor([True, True, False, False])
        >>> adaptive_calibration_error(confidences, hits, num_bins=2)  # calibration_error: 0.4150
        tensor(0.5100)
    """
    num_bins = check_positive_int("num_bins", num_bins)
    confidence, hit, weight = _prepare(confidences, hits, None)
    ordered = confidence.to(hit.dtype).sort().values
    last = len(ordered) - 1
    # Edge i lies at i · last / num_bins of the sorted samples, in whole numbers: a rounded place could miss its sample.
    cuts = torch.arange(1, num_bins, device=ordered.device) * max(last, 0)
    place, remainder = cuts // num_bins, cuts % num_bins
    if last >= 0:
        lower, upper = ordered[place], ordered[(place + 1).clamp(max=last)]
        edges = lower + (upper - lower) * (remainder / num_bins)
    else:
        edges = ordered.new_zeros(num_bins - 1)
    index = torch.bucketize(confidence.to(hit.dtype), edges, right=True)
    counts, mean_confidence, accuracy = _sum_bins(index, confidence, hit, weight, num_bins)
    gap = torch.where(counts > 0, (accuracy - mean_confidence).abs(), torch.zeros_like(counts))
    error = (counts / counts.sum() * gap).sum()
    return nan_unless(_all_valid(confidence, weight), error).to(confidence.dtype)


@takes_arrays
def classwise_calibration_error(probabilities: Tensor, labels: Tensor, *, num_bins: int = 15) -> Tensor:
    """Mean over classes of the expected calibration error of "it is this class": `p(k)` against `[k = label]`.

    Unlike `calibration_error` it reads every probability, not just the greatest. It is the mean over the classes of
    `calibration_error`, with its bins.

    Args:
        probabilities: float [..., K], in [0, 1].
        labels: int64 [...], in [0, K).
        num_bins: number of bins, 1 or more.

    Returns:
        0-dim, dimensionless, in [0, 1], in the probabilities' dtype (float32 for half precision); NaN without samples,
        and NaN if a probability is NaN or outside [0, 1] or a label no class.

    Raises:
        TypeError: `probabilities` is not floating, `labels` not int64, or `num_bins` no whole number.
        ValueError: shapes that do not fit, or `num_bins` is under 1.

    Source: Kull et al., "Beyond temperature scaling: obtaining well-calibrated multi-class probabilities with
    Dirichlet calibration" (2019).

    Example:
        >>> classwise_calibration_error(torch.tensor([[0.7, 0.3], [0.7, 0.3]]), torch.tensor([0, 1]))
        tensor(0.2000)
    """
    samples, label, weight, valid = as_samples(probabilities, labels)
    edges = _edges(samples, num_bins)
    num_classes, columns = samples.shape[-1], num_bins
    classes = torch.arange(num_classes, device=samples.device)
    # All classes at once: class k has the bins from k · columns on.
    index = (torch.bucketize(samples.contiguous(), edges, right=True) - 1).clamp(0, num_bins - 1) + classes * columns
    hit = (label.unsqueeze(-1) == classes).to(weight.dtype)
    each = weight.unsqueeze(-1).expand_as(hit).flatten()
    sums = _sum_bins(index.flatten(), samples.flatten(), hit.flatten(), each, num_classes * columns)
    counts, mean_confidence, accuracy = sums
    gap = torch.where(counts > 0, (accuracy - mean_confidence).abs(), torch.zeros_like(counts))
    error = (counts / counts.sum() * gap).sum()  # every class has the same number of samples: the mean over classes
    return nan_unless(valid.all() & _all_valid(samples.flatten(), each), error).to(samples.dtype)


@takes_arrays
def confidence_gap(confidences: Tensor, hits: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Mean confidence minus accuracy: positive is overconfident, negative (smoothing tends to it) underconfident.

    Args:
        confidences: float [...], in [0, 1].
        hits: [...], bool, or 0 and 1.
        weights: [...], sample weights, 0 or more; None counts each sample once.

    Returns:
        0-dim, dimensionless, in [-1, 1], in the confidences' dtype (float32 for half precision); NaN as in
        `calibration_error`.

    Raises:
        TypeError: `confidences` is not floating.
        ValueError: shapes differ.

    Example:
        >>> confidence_gap(torch.tensor([0.75, 0.75]), torch.tensor([True, False]))
        tensor(0.2500)
    """
    confidence, hit, weight = _prepare(confidences, hits, weights)
    total = weight.sum()
    gap = (weight * torch.where(weight > 0, confidence.to(hit.dtype) - hit, torch.zeros_like(hit))).sum() / total
    return nan_unless(_all_valid(confidence, weight), gap).to(confidence.dtype)


@takes_arrays
def reliability_bins(
    confidences: Tensor, hits: Tensor, *, num_bins: int = 15, weights: Tensor | None = None
) -> ReliabilityBins:
    """Counts, mean confidence and accuracy per bin of confidence, for a reliability diagram.

    Bins are `[edge_i, edge_{i+1})`, the last one closed.

    Args:
        confidences: float [...], in [0, 1].
        hits: [...], bool, or 0 and 1.
        num_bins: number of bins, 1 or more.
        weights: [...], sample weights, 0 or more; None counts each sample once. A sample of weight 0 plays no part.

    Returns:
        `ReliabilityBins`; all its tensors in the confidences' dtype (float32 for half precision). If a confidence that
        counts is NaN or outside [0, 1], all but the edges are NaN.

    Raises:
        TypeError: `confidences` is not floating, or `num_bins` no whole number.
        ValueError: shapes differ, or `num_bins` is under 1.

    Example:
        >>> bins = reliability_bins(torch.tensor([0.2, 0.8, 1.0]), torch.tensor([False, True, True]), num_bins=2)
        >>> bins.counts, bins.accuracy
        (tensor([1., 2.]), tensor([0., 1.]))
    """
    confidence, hit, weight = _prepare(confidences, hits, weights)
    edges = _edges(confidence, num_bins)
    columns = _bin(confidence, hit, weight, edges, num_bins)
    valid = _all_valid(confidence, weight)
    counts, mean_confidence, accuracy = (nan_unless(valid, column).to(confidence.dtype) for column in columns)
    return ReliabilityBins(edges, counts, mean_confidence, accuracy)


def diagram_bins(confidences: Tensor, hits: Tensor, weights: Tensor | None = None) -> ReliabilityBins:
    """The bins of a reliability diagram whose points mean something: `reliability_bins`, unless samples are few.

    Below 300 samples there is a bin for every ten, ten at most, each with as many samples as the others: fifteen bins
    of equal width would hold one or two, whose accuracy is 0 or 1.

    Args:
        confidences: float [...], in [0, 1].
        hits: [...], bool, or 0 and 1.
        weights: [...], sample weights, 0 or more; None counts each sample once.

    Returns:
        The same columns as `reliability_bins` returns. The edges are halfway between the bins, and 0 and 1 at the ends.

    Example:
        >>> bins = diagram_bins(torch.linspace(0.5, 1, 38), torch.ones(38))
        >>> bins.counts
        tensor([13., 13., 12.])
    """
    count = confidences.numel()
    if count >= FEW_SAMPLES or count == 0:
        return reliability_bins(confidences, hits, weights=weights)
    confidence, hit, weight = _prepare(confidences, hits, weights)
    num_bins = min(10, max(1, count // 10))
    order = confidence.argsort(stable=True)
    index = torch.empty_like(order)
    index[order] = torch.arange(count, device=order.device) * num_bins // count
    ranked = confidence[order]
    first = -(-torch.arange(1, num_bins, device=order.device) * count // num_bins)  # the first sample of each bin
    inner = (ranked[first - 1] + ranked[first]) / 2
    edges = torch.cat((inner.new_zeros(1), inner, inner.new_ones(1)))
    valid = _all_valid(confidence, weight)
    columns = _sum_bins(index, confidence, hit, weight, num_bins)
    counts, mean_confidence, accuracy = (nan_unless(valid, column).to(confidence.dtype) for column in columns)
    return ReliabilityBins(edges, counts, mean_confidence, accuracy)


def has_equal_widths(bins: ReliabilityBins) -> bool:
    """Whether the bins are of equal width, as those of `reliability_bins`, and not of equal size."""
    widths = bins.edges.diff()
    return len(widths) > 1 and bool((widths - 1 / len(widths)).abs().max() < 1e-5)


def _prepare(confidences: Tensor, hits: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Flat `confidence` (float32 or float64), `hit` and `weight` (float64)."""
    check_floating("confidences", confidences)
    for name, other in (("hits", hits), ("weights", weights)):
        if other is not None:
            check_same_shape(name, other, "confidences", confidences.shape)
    confidence = confidences.detach().flatten().to(result_dtype(confidences)).contiguous()  # else bucketize warns
    wide = wide_dtype(confidence)
    hit = hits.detach().flatten().to(wide)
    weight = torch.ones_like(hit) if weights is None else weights.detach().flatten().to(wide)
    return confidence, hit, weight


def _edges(confidence: Tensor, num_bins: int) -> Tensor:
    # In the confidences' own dtype: float32(1/15) must fall on the edge 1/15, not beside its float64 neighbour.
    num_bins = check_positive_int("num_bins", num_bins)
    return torch.linspace(0, 1, num_bins + 1, dtype=confidence.dtype, device=confidence.device)


def _bin(
    confidence: Tensor, hit: Tensor, weight: Tensor, edges: Tensor, num_bins: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, mean confidence and accuracy of `num_bins` bins, float64, NaN in empty ones."""
    # Values outside the bins make the result NaN later.
    index = (torch.bucketize(confidence, edges, right=True) - 1).clamp(0, num_bins - 1)
    return _sum_bins(index, confidence, hit, weight, num_bins)


def _sum_bins(
    index: Tensor, confidence: Tensor, hit: Tensor, weight: Tensor, num_bins: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, mean confidence and accuracy of each of `num_bins` bins, when sample i lies in bin `index[i]`."""
    zero = torch.zeros_like(weight)
    columns = (weight, *(torch.where(weight > 0, weight * value, zero) for value in (confidence.to(hit.dtype), hit)))
    counts, confidence_sum, hit_sum = (zero.new_zeros(num_bins).index_add_(0, index, column) for column in columns)
    return counts, confidence_sum / counts, hit_sum / counts


def _all_valid(confidence: Tensor, weight: Tensor) -> Tensor:
    """0-dim bool, on the device: is every confidence that counts a probability?"""
    return ((confidence >= 0) & (confidence <= 1) | (weight == 0)).all()
