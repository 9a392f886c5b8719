"""Temperature scaling: the post-hoc baseline that every other way to calibrate has to beat."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlsmooth.audits.arguments import as_samples, nan_unless, takes_arrays
from rlsmooth.checks import check_in_range
from rlsmooth.losses import cross_entropy

# Each halves the interval of log T: from 1e-3 to 1e3 it is then 5e-14 wide.
_HALVINGS = 48


@takes_arrays
def fit_temperature(
    logits: Tensor,
    labels: Tensor,
    *,
    bounds: tuple[float, float] = (1e-3, 1e3),
    weights: Tensor | None = None,
) -> Tensor:
    """The temperature T whose `softmax(logits / T)` has the least negative log-likelihood. Divide logits by it.

    The likelihood is convex in 1/T, so that its slope has one change of sign, which is halved in on log T, in float64:
    48 passes over the logits and no wait for the device. Fit it on samples that were held out from training.

    Args:
        logits: float [..., K].
        labels: int64 [...], in [0, K).
        bounds: the least and the greatest T, both above 0.
        weights: [...], sample weights, 0 or more; None counts each sample once. A sample of weight 0 plays no part.

    Returns:
        0-dim, dimensionless, in the logits' dtype (float32 for half precision). It is the lower bound where every
        sample is right (no T is sharp enough), the upper one where the logits are no better than none, and 1 where
        every T does as well, or where every sample is right with a likelihood that is already exact at T = 1. NaN
        without samples, and NaN if a logit is NaN or +inf, a label is no class or has a logit of -inf.

    Raises:
        TypeError: `logits` is not floating, `labels` not int64.
        ValueError: shapes that do not fit, bounds that are not positive and ascending.

    Source: Guo et al., "On calibration of modern neural networks" (2017).

    Examples:
        >>> logits, labels = torch.tensor([[4.0, 0.0]]).repeat(4, 1), torch.tensor([0, 0, 0, 1])
        >>> fit_temperature(logits, labels)  # 4 / log(3)
        tensor(3.6410)
    """
    low, high = (check_in_range(f"bounds[{place}]", bound, 0.0, low_open=True) for place, bound in enumerate(bounds))
    if low >= high:
        raise ValueError(f"bounds={bounds!r} must ascend: the least temperature first.")
    samples, label, weight, valid = as_samples(logits, labels, weights, name="logits")
    # A class at -inf has probability 0 at every T: left out, since 0 · inf would make the slope NaN.
    legal = samples > -torch.inf
    wide = torch.where((weight == 0).unsqueeze(-1), 0.0, samples.to(weight.dtype))  # an infinity times 0 is NaN
    # Less the label's logit, so that where every sample is right no rounding turns the slope's sign before it is 0.
    values = (wide - wide.gather(-1, label.unsqueeze(-1))).masked_fill(~legal, 0.0)

    def slope(log_inverse: Tensor) -> Tensor:
        """Derivative of the likelihood by 1/T."""
        inverse = log_inverse.exp().requires_grad_()
        return torch.autograd.grad(cross_entropy(values * inverse, label, mask=legal, weight=each), inverse)[0]

    with torch.inference_mode(False), torch.enable_grad():  # wherever the caller evaluates
        values, label, legal = values.clone(), label.clone(), legal.clone()
        each = None if weights is None else weight.clone()
        start = torch.zeros((), dtype=values.dtype, device=values.device)
        below, above = start - math.log(high), start - math.log(low)
        indifferent = slope(start) == 0
        for _ in range(_HALVINGS):
            middle = (below + above) / 2
            falling = slope(middle) <= 0  # 0 where the softmax has saturated: the right way where all are right
            below, above = torch.where(falling, middle, below), torch.where(falling, above, middle)
    temperature = torch.where(indifferent, torch.ones_like(start), torch.exp(-(below + above) / 2))
    well_formed = legal.gather(-1, label.unsqueeze(-1)).squeeze(-1) & (samples < torch.inf).all(-1) | (weight == 0)
    # No samples, no temperature.
    return nan_unless((valid & well_formed).all() & (weight.sum() > 0), temperature).to(samples.dtype)
