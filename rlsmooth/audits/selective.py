"""Selective prediction: the risk of a classifier that may leave its least confident samples unanswered.

Pure functions on tensors or arrays, no host sync. Source: Geifman and El-Yaniv, "Selective classification for deep
neural networks" (2017).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlsmooth.audits.arguments import (
    check_floating,
    check_same_shape,
    nan_unless,
    result_dtype,
    takes_arrays,
    wide_dtype,
)


class RiskCoverage(NamedTuple):
    """The curve of a classifier that answers the samples it is surest of, and its area.

    Attributes:
        coverage: [N], share of samples answered: 1/N, 2/N, ..., 1.
        risk: [N], share of the answered samples that are wrong; the last one is the error rate.
        area: 0-dim, the mean of `risk` (AURC): the smaller, the better confidence ranks right before wrong.
    """

    coverage: Tensor
    risk: Tensor
    area: Tensor


@takes_arrays
def risk_coverage(confidences: Tensor, hits: Tensor) -> RiskCoverage:
    """Risk against coverage, the samples taken from the most to the least confident, and the area under it.

    The area is the mean of the risk over the N coverages, as its authors define it (others integrate by trapezia).
    Rows of equal confidence share their errors evenly, which is the curve of a random order of theirs on average: the
    order in which the samples come plays no part.

    Args:
        confidences: float [...], any score that is higher where the classifier is surer.
        hits: [...], bool, or 0 and 1: was the prediction right?

    Returns:
        `RiskCoverage`, its tensors in the confidences' dtype (float32 for half precision). Without samples the curve is
        empty and the area NaN; with a NaN among the confidences risk and area are NaN.

    Raises:
        TypeError: `confidences` is not floating.
        ValueError: shapes differ.

    Examples:
        >>> risk_coverage(torch.tensor([0.9, 0.6, 0.8, 0.7]), torch.tensor([True, False, True, False])).risk
        tensor([0.0000, 0.0000, 0.3333, 0.5000])
    """
    check_floating("confidences", confidences)
    check_same_shape("hits", hits, "confidences", confidences.shape)
    dtype = result_dtype(confidences)
    confidence, order = confidences.detach().reshape(-1).to(dtype).sort(descending=True)
    wide = wide_dtype(confidence)
    error = 1 - hits.detach().reshape(-1).to(wide)[order]
    # Number the groups of equal confidence 0, 1, ..., and give each sample its group's mean.
    changed = confidence != confidence.roll(1)
    changed[:1] = False
    group = changed.cumsum(0)
    zeros = torch.zeros_like(error)
    members = zeros.index_add(0, group, torch.ones_like(error))
    shared = (zeros.index_add(0, group, error) / members.clamp(min=1))[group]
    answered = torch.arange(1, len(error) + 1, dtype=wide, device=error.device)
    risk = nan_unless(~confidence.isnan().any(), shared.cumsum(0) / answered)
    return RiskCoverage((answered / len(error)).to(dtype), risk.to(dtype), (risk.sum() / len(error)).to(dtype))
