"""Categorical targets for values: a scalar becomes a distribution over the points of a support.

A value function with one logit a point is then trained by the same cross-entropy as everything else, and read out by
`rlsmooth.losses.expected_value`. Regression by classification keeps gradients bounded whatever the values' scale.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlsmooth.checks import check_in_range
from rlsmooth.targets.arguments import first_row, values_can_be_checked
from rlsmooth.targets.dense import without_label
from rlsmooth.targets.target import Reference, Target, from_array, take_rows, weight_dtype

_NARROW = 0.02
"""Bins narrower than this beside sigma, and the more so the farther from the value, are integrated by their density."""


def two_hot(values: Tensor, support: Tensor, *, validate: bool = True) -> Target:
    """Each value on the two points of the support around it, so that the mean is the value (Bellemare et al. 2017).

    `q(lower) = (upper - v) / (upper - lower)`, `q(upper) = (v - lower) / (upper - lower)`; two atoms a row, at a point
    of the support all on that point. Used by MuZero and DreamerV3.

    Args:
        values: `[...]`, numbers; those outside the support, infinite ones included, are clamped to it.
        support: `[K]`, strictly increasing, evenly spaced or not, in the values' unit.
        validate: check values, which waits for the device.

    Raises:
        TypeError: values or a support that are not numbers.
        ValueError: a NaN; a support that is not `[K]`, not finite or not strictly increasing.

    Examples:
        >>> two_hot(torch.tensor([0.25, 9.0]), torch.tensor([-1.0, 0.0, 1.0])).dense()
        tensor([[0.0000, 0.7500, 0.2500],
                [0.0000, 0.0000, 1.0000]])
    """
    inside, points = _clamped(values, support, validate=validate)
    last = len(points) - 1
    upper = torch.searchsorted(points, inside, right=True).clamp(min(1, last), last)  # a NaN is sorted last
    lower = (upper - 1).clamp_min(0)
    below = take_rows(points, lower)
    above = take_rows(points, upper)
    share = (inside - below) / (above - below)
    # In halves where the width is beyond every number; a support of one point has both atoms on it.
    share = torch.where((above - below).isinf(), (inside / 2 - below / 2) / (above / 2 - below / 2), share)
    share = share if last else torch.where(inside.isnan(), inside, 0.0)
    return Target(
        len(points),
        torch.stack((lower, upper), -1),
        torch.stack((1 - share, share), -1),
        weights_may_cancel=False,
    )


def hl_gauss(values: Tensor, support: Tensor, sigma_to_bin_ratio: float = 0.75, *, validate: bool = True) -> Target:
    """A Gaussian around each value, integrated over bins (Imani & White 2018; Farebrother et al. 2024).

    The support's points are the bins' centres, with edges half way between them and the two outer bins as wide as
    their neighbours say: `e_0 = c_0 - (c_1 - c_0) / 2`. With `Q` the upper tail of the standard normal,

        q(k) = (Q((e_k - v) / sigma) - Q((e_{k+1} - v) / sigma)) / sum,    sigma = sigma_to_bin_ratio · bin width at v,

    the bin width being interpolated between the centres where they are not evenly spaced. Each tail is taken from its
    own side (`erfc`), and bins that are narrow beside sigma are integrated by their density, so that every bin keeps
    its relative precision whatever the ratio, and no row is ever 0/0.

    Cutting the Gaussian at the support's bounds pulls the mean inwards there. At the ratio 0.75 `expected_value` gives
    back the value to 5e-6 of a bin four bins inside the support, to 0.05 of a bin one bin inside, and at the bound
    itself 0.37 of a bin too far in: leave a few bins of room. A narrow Gaussian loses the value between two centres:
    0.002 of a bin at the ratio 0.5, 0.05 at 0.3.

    Args:
        values: `[...]`, numbers; those outside the support, infinite ones included, are clamped to its end points.
        support: `[K]`, strictly increasing, in the values' unit: the bins' centres.
        sigma_to_bin_ratio: above 0; the Gaussian's standard deviation in bins.
        validate: check values, which waits for the device.

    Raises:
        TypeError: values or a support that are not numbers.
        ValueError: a NaN; a support that is not `[K]`, not finite or not strictly increasing; a ratio that is not
            above 0.

    Examples:
        >>> hl_gauss(torch.tensor([0.0]), torch.tensor([-1.0, 0.0, 1.0])).dense()
        tensor([[0.2407, 0.5186, 0.2407]])
    """
    ratio = check_in_range("sigma_to_bin_ratio", sigma_to_bin_ratio, 0.0, low_open=True)
    inside, centres = _clamped(values, support, validate=validate)
    if len(centres) == 1:
        masses = inside.unsqueeze(-1) - centres + 1  # 1, and NaN where the value is
        return without_label(Reference(1, "dense", masses), masses)
    scale = _scale_of(centres)  # a power of two: exact
    centres, inside = centres * scale, inside * scale
    gaps = centres.diff()
    edges = torch.cat((centres[:1] - gaps[:1] / 2, centres[:-1] + gaps / 2, centres[-1:] + gaps[-1:] / 2))  # [K + 1]
    bins = (edges - inside.unsqueeze(-1)) / _width_at(inside, centres, edges.diff()).unsqueeze(-1)
    masses = _gaussian_masses(bins, ratio)
    probs = masses / masses.sum(-1, keepdim=True)
    return without_label(Reference(len(centres), "dense", probs), probs)


def _gaussian_masses(edges: Tensor, sigma: float) -> Tensor:
    """The mass of `N(0, sigma^2)` between neighbouring edges `[..., K + 1]`, times `max(1, sigma)`: `[..., K]`."""
    distances = edges / sigma
    left, right = distances[..., :-1], distances[..., 1:]
    tails = torch.special.erfc(distances.abs() / math.sqrt(2)) / 2  # beyond each edge, away from the value
    beside = (tails[..., :-1] - tails[..., 1:]).abs()
    around = (torch.erf(right / math.sqrt(2)) - torch.erf(left / math.sqrt(2))) / 2
    wide = torch.where((left < 0) & (right > 0), around, beside) * max(1.0, sigma)
    # The tails of a narrow bin cancel. Gauss and Legendre's three points: relative error under 1e-16 there.
    middle, half = (left + right) / 2, (right - left) / 2
    density = torch.zeros_like(middle)
    for weight, place in ((5 / 18, -math.sqrt(0.6)), (4 / 9, 0.0), (5 / 18, math.sqrt(0.6))):
        density += weight * torch.exp(-0.5 * (middle + place * half).square())
    narrow = density * edges.diff() / (math.sqrt(2 * math.pi) * min(1.0, sigma))
    return torch.where((right - left) * (1 + middle.abs()) < _NARROW, narrow, wide)


def _scale_of(points: Tensor) -> Tensor:
    """A power of two that keeps differences of the points within the number range."""
    limits, largest = torch.finfo(points.dtype), points.abs().amax()
    shrink, grow = largest > limits.max * 2.0**-20, largest < limits.tiny * 2.0**20
    return torch.where(shrink, 2.0**-30, torch.where(grow, 2.0**60, 1.0)).to(points.dtype)


def to_support(support: Tensor) -> Tensor:
    """A support as a tensor `[K]` of numbers; reads no values.

    Raises:
        TypeError: it does not hold numbers.
        ValueError: it is not `[K]` with at least one point.
    """
    support = from_array(support)
    _check_numbers("support", support, "[K]")
    if support.ndim != 1 or len(support) == 0:
        raise ValueError(f"support has shape {tuple(support.shape)}, needs [K]: its points, such as torch.linspace's.")
    return support.detach()


def _clamped(values: Tensor, support: Tensor, *, validate: bool) -> tuple[Tensor, Tensor]:
    """The values within the support, and the support, both as wide as weights are and on the values' device."""
    values, points = from_array(values), to_support(support)
    _check_numbers("values", values, "[...]")
    if values_can_be_checked(validate):
        bad = first_row(~points.isfinite())
        if bad is not None:
            raise ValueError(f"support{list(bad)}={float(points[bad])!r} must be finite.")
        bad = first_row(points.diff() <= 0)
        if bad is not None:
            here, after = float(points[bad]), float(points[bad[0] + 1])
            raise ValueError(
                f"support must be strictly increasing, but support[{bad[0]}]={here!r} is followed by {after!r}: sort "
                "it and leave out what stands twice."
            )
        bad = first_row(values.isnan())
        if bad is not None:
            raise ValueError(f"values{list(bad) or ''} is NaN: drop the row, or give the loss weight=0 there.")
    dtype = weight_dtype(values.device)
    points = points.to(values.device, dtype)
    return values.detach().to(dtype).clamp(points[0], points[-1]), points


def _check_numbers(name: str, values: Tensor, shape: str) -> None:
    if not isinstance(values, Tensor) or values.dtype == torch.bool or values.is_complex():
        kind = str(values.dtype) if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{name} must be a tensor of numbers {shape}, got {kind}.")


def _width_at(inside: Tensor, centres: Tensor, widths: Tensor) -> Tensor:
    """The bins' widths `[K]`, interpolated between their centres: `[...]`."""
    upper = torch.searchsorted(centres, inside, right=True).clamp(1, len(centres) - 1)
    below, start = take_rows(centres, upper - 1), take_rows(widths, upper - 1)
    share = (inside - below) / (take_rows(centres, upper) - below)
    return start + share * (take_rows(widths, upper) - start)
