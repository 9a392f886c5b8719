"""Cross-entropy, KL divergence and entropy of diagonal Gaussian policies, in closed form."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from rlsmooth.checks import check_choice
from rlsmooth.losses.arguments import Reduction, check_weight, compute_dtype, reduce
from rlsmooth.targets.arguments import kind_of
from rlsmooth.targets.gaussian import GaussianTarget

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def gaussian_cross_entropy(
    mean: Tensor,
    log_std: Tensor,
    target: GaussianTarget,
    *,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """`-E_q[log N(a; mean, std^2)]` in nats, summed over the action's dimensions.

    For the target's atom it is the negative log-likelihood, `log std + log(2 pi) / 2 + (a - mean)^2 / (2 std^2)`; for
    its background `(a - mean)^2` becomes `(reference_mean - mean)^2 + reference_std^2`.

    Args:
        mean: `[..., D]`.
        log_std: broadcasts to `[..., D]`.
        target: of the same batch shape.
        weight: `[...]`, one factor a row; a row of weight 0 is left out.
        reduction: `"none"`, `"sum"` or `"mean"` (by the number of rows, or by `weight.sum()`; 0 rows: 0).

    Raises:
        TypeError: a mean that is not floating-point, a target of another kind.
        ValueError: shapes that do not fit, an unknown reduction.

    Examples:
        >>> from rlsmooth.targets import gaussian
        >>> gaussian_cross_entropy(torch.zeros(1, 1), torch.zeros(1), gaussian(torch.zeros(1, 1), alpha=0.0))
        tensor(0.9189)
    """
    mean, log_std = _in_compute_dtype(mean, log_std)
    if not isinstance(target, GaussianTarget):
        raise TypeError(f"target must be a GaussianTarget, got {type(target).__name__}: see rlsmooth.targets.gaussian.")
    if target.actions.shape != mean.shape:
        raise ValueError(f"target is for actions {tuple(target.actions.shape)}, mean has shape {tuple(mean.shape)}.")
    check_weight(weight, mean.shape[:-1], reduction)
    _check_log_std(mean, log_std)
    if weight is not None:
        mean = torch.where((weight != 0).unsqueeze(-1), mean, 0.0)
        log_std = torch.where((weight != 0).unsqueeze(-1), log_std, 0.0)
    dtype = mean.dtype
    inverse = torch.exp(-log_std)  # squared after the product: at a difference of 0, exp(-2 log_std) may be inf
    squares = ((target.actions.to(dtype) - mean) * inverse).square()
    rows = target.atom_weight.to(dtype) * (0.5 * squares).sum(-1)
    if target.background_weight is not None:
        moments = ((target.reference_mean.to(dtype) - mean) * inverse).square()
        moments = moments + (target.reference_std.to(dtype) * inverse).square()
        background = target.background_weight.to(dtype)
        rows = rows + torch.where(background != 0, background * (0.5 * moments).sum(-1), 0.0)
    log_normaliser = (log_std + HALF_LOG_TWO_PI).expand(mean.shape).sum(-1)
    return reduce(rows + target.mass().to(dtype) * log_normaliser, weight, reduction)


def gaussian_kl_divergence(
    mean: Tensor,
    log_std: Tensor,
    reference_mean: Tensor | float = 0.0,
    reference_std: Tensor | float = 1.0,
    *,
    direction: Literal["reference_to_policy", "policy_to_reference"],
    reduction: Reduction = "mean",
) -> Tensor:
    """KL divergence in nats between two diagonal Gaussians, summed over the action's dimensions.

    `KL(N1‖N2) = log(std2 / std1) + (std1^2 + (mean1 - mean2)^2) / (2 std2^2) - 1/2`. In the direction that smoothing
    adds, `"reference_to_policy"`, it grows as `reference_std^2 / (2 std^2)`: 47 nats at std 0.1 for a reference of
    std 1.

    Args:
        mean: `[..., D]`, the policy's.
        log_std: broadcasts to `[..., D]`, the policy's.
        reference_mean: broadcasts to `[..., D]`.
        reference_std: broadcasts to `[..., D]`, positive.
        direction: `"reference_to_policy"` or `"policy_to_reference"`.
        reduction: `"none"`: `[...]`; `"mean"` (of 0 rows: 0) or `"sum"`.

    Raises:
        TypeError: a mean that is not floating-point.
        ValueError: an unknown direction or reduction.

    Examples:
        >>> gaussian_kl_divergence(torch.zeros(1, 1), torch.zeros(1), direction="reference_to_policy")
        tensor(0.)
    """
    check_choice("direction", direction, ("reference_to_policy", "policy_to_reference"))
    mean, log_std = _in_compute_dtype(mean, log_std)
    check_weight(None, mean.shape[:-1], reduction)
    _check_log_std(mean, log_std)
    other_mean = torch.as_tensor(reference_mean, dtype=mean.dtype, device=mean.device)
    other_log_std = torch.as_tensor(reference_std, dtype=mean.dtype, device=mean.device).log()
    difference = mean - other_mean
    gap = log_std - other_log_std  # log(std / reference_std)
    if direction == "reference_to_policy":
        terms = gap + 0.5 * (torch.exp(-2 * gap) + (difference * torch.exp(-log_std)).square()) - 0.5
    else:
        terms = -gap + 0.5 * (torch.exp(2 * gap) + (difference * torch.exp(-other_log_std)).square()) - 0.5
    return reduce(terms.expand(mean.shape).sum(-1), None, reduction)


def gaussian_entropy(log_std: Tensor, reduction: Reduction = "none") -> Tensor:
    """Differential entropy `sum_d (log std_d + log(2 pi e) / 2)` in nats; it may be negative.

    Args:
        log_std: `[..., D]`.
        reduction: `"none"`: `[...]`; `"mean"` (of 0 rows: 0) or `"sum"`.

    Raises:
        ValueError: an unknown reduction.

    Examples:
        >>> gaussian_entropy(torch.zeros(1, 1))
        tensor([1.4189])
    """
    check_weight(None, log_std.shape[:-1], reduction)
    values = log_std.to(compute_dtype(log_std.dtype))
    return reduce((values + (HALF_LOG_TWO_PI + 0.5)).sum(-1), None, reduction)


def widened_log_std(log_std: Tensor, least: float) -> Tensor:
    """`log_std + relu(least - H) / D`, `[..., D]`: standard deviations scaled up to an entropy of at least `least`.

    The entropy H is `sum_d log std_d` and a constant, so that scaling all D deviations by `exp(relu(least - H) / D)`
    adds `relu(least - H)` to it: it becomes `max(H, least)`, while the shape of the Gaussian stays. Where the bound is
    met, nothing changes, the last bit included. Where it binds, the gradient loses the direction in which all
    deviations change alike, the others keep theirs; in one dimension it is 0.

    Args:
        log_std: `[..., D]`.
        least: nats, a differential entropy, which may be negative.

    Examples:
        >>> widened_log_std(torch.tensor([[-3.0, -1.0]]), 2.0)
        tensor([[-1.4189,  0.5811]])
    """
    missing = (least - gaussian_entropy(log_std)).clamp_min(0.0) / log_std.shape[-1]
    return log_std + missing.unsqueeze(-1)


def _check_log_std(mean: Tensor, log_std: Tensor) -> None:
    fits = log_std.ndim <= mean.ndim and all(
        size in (1, goal) for size, goal in zip(reversed(log_std.shape), reversed(mean.shape), strict=False)
    )
    if not fits:
        raise ValueError(f"log_std {tuple(log_std.shape)} does not broadcast to the mean's shape {tuple(mean.shape)}.")


def _in_compute_dtype(mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
    if not isinstance(mean, Tensor) or not mean.is_floating_point():
        raise TypeError(f"mean must be a floating-point tensor [..., D], got {kind_of(mean)}.")
    dtype = compute_dtype(mean.dtype)
    return mean.to(dtype), log_std.to(dtype)
