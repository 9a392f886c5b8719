"""Calibration: does a policy that says 90 % hit nine times in ten? Pure functions on tensors or arrays, no host sync.

Source: Guo et al., "On calibration of modern neural networks" (2017); Naeini et al., "Obtaining well calibrated
probabilities using Bayesian binning" (2015).
"""

from __future__ import annotations

import math
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
from rlsmooth.checks import check_choice, check_in_range, check_positive_int

FEW_SAMPLES = 300
"""Below so many a reliability diagram has fewer bins."""
_GRID = 8192
_HALVINGS = 40


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

    Examples:
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

    Examples:
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
def smooth_calibration_error(confidences: Tensor, hits: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Calibration error without bins: `confidence - hit`, smoothed by a kernel whose width is the error itself.

    With `r(t) = mean of k(t, confidence) · (confidence - hit)`, where k is a Gaussian of width s reflected at 0 and 1,
    it is the one s at which `∫ |r(t)| dt = s`. It is continuous in the confidences, which an error over bins is not,
    but like that one it is never below 0, so that few samples look badly calibrated: show it, don't compare groups by
    it. The samples are shared between the two nearest of 8,193 places, which moves the result by about 1e-4 at most.

    Args:
        confidences: float [...], in [0, 1].
        hits: [...], bool, or 0 and 1.
        weights: [...], sample weights, 0 or more; None counts each sample once. A sample of weight 0 plays no part.

    Returns:
        0-dim, dimensionless, in [0, 1], in the confidences' dtype (float32 for half precision); NaN as in
        `calibration_error`.

    Raises:
        TypeError: `confidences` is not floating.
        ValueError: shapes differ.

    Source: Błasiok and Nakkiran, "Smooth ECE: principled reliability diagrams via kernel smoothing" (2023).

    Examples:
        >>> smooth_calibration_error(torch.tensor([0.9, 0.9, 0.9, 0.9]), torch.tensor([True, True, False, False]))
        tensor(0.4000)
    """
    confidence, hit, weight = _prepare(confidences, hits, weights)
    place, residual = _residuals(confidence, hit, weight)
    place = place.nan_to_num(0.0).clamp(0, 1) * _GRID
    below = place.floor().clamp_max(_GRID - 1)
    upper = residual * (place - below) / weight.sum()
    masses = torch.zeros(_GRID + 1, dtype=hit.dtype, device=hit.device)
    masses.index_add_(0, below.long(), residual / weight.sum() - upper).index_add_(0, below.long() + 1, upper)
    # Reflected at both ends, the masses are periodic, and a Gaussian multiplies their cosines.
    inner = masses[1:-1]
    spectrum = torch.fft.rfft(torch.cat((2 * masses[:1], inner, 2 * masses[-1:], inner.flip(0))))
    frequency = math.pi * torch.arange(_GRID + 1, dtype=hit.dtype, device=hit.device)
    low, high = hit.new_zeros(()), hit.new_ones(())
    for _ in range(_HALVINGS):
        width = (low + high) / 2
        smooth = torch.fft.irfft(spectrum * torch.exp(-(width * frequency).square() / 2), n=2 * _GRID).abs()
        larger = smooth[: _GRID + 1].sum() - (smooth[0] + smooth[_GRID]) / 2 > width
        low, high = torch.where(larger, width, low), torch.where(larger, high, width)
    return nan_unless(_all_valid(confidence, weight) & (weight.sum() > 0), (low + high) / 2).to(confidence.dtype)


@takes_arrays
def kernel_calibration_error(
    confidences: Tensor, hits: Tensor, *, bandwidth: float = 0.2, root: bool = False, weights: Tensor | None = None
) -> Tensor:
    """Squared kernel calibration error (SKCE), estimated without bias: of a calibrated model it is 0 on average.

    The mean over pairs of samples of `r_i · r_j · exp(-|c_i - c_j| / bandwidth)`, with `r = confidence - hit`. It sees
    errors that cross 0, which the signed gap does not, and may be negative: where it is, nothing is found. Computed
    after one sort, in O(n log n).

    Args:
        confidences: float [...], in [0, 1].
        hits: [...], bool, or 0 and 1.
        bandwidth: of the kernel, 0.01 or more.
        root: return `sign(x) · sqrt(|x|)`, which has the unit of a probability but is no longer without bias.
        weights: [...], sample weights, 0 or more; None counts each sample once. A sample of weight 0 plays no part.

    Returns:
        0-dim, in [-1, 1], in the confidences' dtype (float32 for half precision); NaN with fewer than two samples, and
        as in `calibration_error`.

    Raises:
        TypeError: `confidences` is not floating, or `bandwidth` no number.
        ValueError: shapes differ, or `bandwidth` is below 0.01.

    Source: Widmann, Lindsten and Zachariah, "Calibration tests in multi-class classification" (2019).

    Examples:
        >>> kernel_calibration_error(torch.tensor([0.9, 0.9, 0.9, 0.9]), torch.tensor([True, True, False, False]))
        tensor(0.0767)
    """
    scale = check_in_range("bandwidth", bandwidth, 0.01)
    confidence, hit, weight = _prepare(confidences, hits, weights)
    place, residual = _residuals(confidence, hit, weight)
    order = place.argsort(stable=True)
    place, residual = place[order], residual[order]
    # Of a sorted pair the kernel is exp(c_i / s) · exp(-c_j / s): one running sum has all pairs.
    growth = torch.exp((place - 0.5) / scale)
    before = torch.cat((residual.new_zeros(1), (residual * growth).cumsum(0)))[:-1]
    pairs = (weight.sum().square() - weight.square().sum()) / 2
    enough = _all_valid(confidence, weight) & ((weight > 0).sum() > 1)
    error = nan_unless(enough, (residual / growth * before).sum() / pairs)
    return (_signed_root(error) if root else error).to(confidence.dtype)


@takes_arrays
def debiased_calibration_error(
    confidences: Tensor, hits: Tensor, *, num_bins: int = 15, root: bool = False, weights: Tensor | None = None
) -> Tensor:
    """Squared calibration error over bins of equal width, less what noise alone adds to it.

    `Σ p_b (g_b² - v_b)`, with `g_b` the mean of `confidence - hit` in bin b, `v_b` the variance of that mean and `p_b`
    the share of samples: without bias for the squared `"l2"` error of `calibration_error` between these bins, and so
    at times negative. A bin with one sample has no variance and adds 0.

    Args:
        confidences: float [...], in [0, 1].
        hits: [...], bool, or 0 and 1.
        num_bins: number of bins, 1 or more.
        root: return `sign(x) · sqrt(|x|)`, which has the unit of a probability but is no longer without bias.
        weights: [...], sample weights, 0 or more; None counts each sample once. A sample of weight 0 plays no part.

    Returns:
        0-dim, in [-1, 1], in the confidences' dtype (float32 for half precision); NaN where no bin has two samples,
        and as in `calibration_error`.

    Raises:
        TypeError: `confidences` is not floating, or `num_bins` no whole number.
        ValueError: shapes differ, or `num_bins` is under 1.

    Source: Kumar, Liang and Ma, "Verified uncertainty calibration" (2019), which takes the variance of the hits alone.

    Examples:
        >>> debiased_calibration_error(torch.tensor([0.9, 0.9, 0.9, 0.9]), torch.tensor([True, True, False, False]))
        tensor(0.0767)
    """
    confidence, hit, weight = _prepare(confidences, hits, weights)
    edges = _edges(confidence, num_bins)
    index = (torch.bucketize(confidence, edges, right=True) - 1).clamp(0, num_bins - 1)
    _, residual = _residuals(confidence, hit, weight)
    columns = (weight > 0).to(hit.dtype), weight, weight.square(), residual, residual.square()
    count, mass, squares, first, second = (hit.new_zeros(num_bins).index_add_(0, index, column) for column in columns)
    several = count > 1
    bins = torch.where(several, (first.square() - second) / (mass.square() - squares), torch.zeros_like(mass))
    enough = _all_valid(confidence, weight) & several.any()
    error = nan_unless(enough, (mass / mass.sum() * bins).sum())
    return (_signed_root(error) if root else error).to(confidence.dtype)


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

    Examples:
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

    Examples:
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

    Examples:
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

    Examples:
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


def _residuals(confidence: Tensor, hit: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Each sample's confidence and its `weight · (confidence - hit)`, in float64: 0 where it has no weight."""
    zero = torch.zeros_like(weight)
    place = torch.where(weight > 0, confidence.to(hit.dtype), zero)
    return place, torch.where(weight > 0, weight * (place - hit), zero)


def _signed_root(value: Tensor) -> Tensor:
    return value.sign() * value.abs().sqrt()
