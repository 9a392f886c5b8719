"""The policy target of a search that visits few actions: Gumbel MuZero's completed values."""

from __future__ import annotations

import torch
from torch import Tensor

from rlsmooth.checks import check_in_range
from rlsmooth.targets.arguments import at, broadcast_mask, check_mask, first_row, values_can_be_checked
from rlsmooth.targets.dense import boltzmann, check_float
from rlsmooth.targets.target import Target, check_broadcast, from_array, weight_dtype

_EPSILON = torch.finfo(torch.float32).eps
_NARROWEST_RANGE = 1e-8
"""The least range of values, when they are rescaled by it: mctx's `epsilon`."""


def completed_q(
    prior_logits: Tensor,
    q_values: Tensor,
    visit_counts: Tensor,
    *,
    value: Tensor | float | None = None,
    value_scale: float = 0.1,
    maxvisit_init: float = 50.0,
    rescale_values: bool = True,
    mask: Tensor | None = None,
    validate: bool = True,
) -> Target:
    """`softmax(prior_logits + sigma(completed q))`, Gumbel MuZero's improved policy (Danihelka et al. 2022, eq. 11).

    Actions without a visit get the mixed value, of `N` visits in all and the prior `p` over the legal actions:

        mixed = (value + N · sum_visited p(a) q(a) / sum_visited p(a)) / (N + 1)
        sigma(q) = (maxvisit_init + max visits) · value_scale · q,    q rescaled to [0, 1] first

    A better policy than the prior for any number of visits, where visit counts need many. It is mctx's
    `qtransform_completed_by_mix_value`, with two differences. An illegal action is as if it did not exist: mctx gives
    it the mixed value, and so counts that in the range that rescales, also where every legal action is visited. And
    rounding is no preference: each mean lies between the values that it is a mean of, and the range that rescales is
    at least 4 ulps of the greatest value. In mctx, actions whose values are all alike but large are told apart by the
    rounding of the mixed value.

    Args:
        prior_logits: float `[..., K]`, the policy network's.
        q_values: float `[..., K]`, the search's; those of actions without a visit may hold anything.
        visit_counts: `[..., K]`, at least 0; rows without any visit give the prior.
        value: the value network's, `[...]` or a number; None: it is left out of the mixed value, `N` for `N + 1`.
        value_scale: at least 0; of `sigma`.
        maxvisit_init: at least 0; of `sigma`.
        rescale_values: whether to bring the completed values of each row to [0, 1] first (by their range, at least
            1e-8, and 4 ulps of the greatest).
        mask: bool, broadcasts to `[..., K]`; True = legal. Illegal actions may hold any logit and value, but no visits.
        validate: check values, which waits for the device.

    Raises:
        TypeError: logits, values or counts that are not numbers, a mask that is not bool.
        ValueError: shapes that differ, a logit of NaN or +inf, a row whose legal logits are all -inf, a count that is
            negative or not finite, a visited value or a `value` that is not finite, visits to an illegal action.

    Examples:
        >>> prior, q = torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 0.0]])
        >>> completed_q(prior, q, torch.tensor([[1, 1, 0]]), value=0.5).dense()
        tensor([[0.0056, 0.9224, 0.0720]])
    """
    scale = check_in_range("value_scale", value_scale, 0.0)
    first_visits = check_in_range("maxvisit_init", maxvisit_init, 0.0)
    prior_logits, q_values, visit_counts = (from_array(each) for each in (prior_logits, q_values, visit_counts))
    check_float("prior_logits", prior_logits)
    check_float("q_values", q_values)
    if not isinstance(visit_counts, Tensor) or visit_counts.dtype == torch.bool or visit_counts.is_complex():
        kind = str(visit_counts.dtype) if isinstance(visit_counts, Tensor) else type(visit_counts).__name__
        raise TypeError(f"visit_counts must be a tensor of numbers [..., K], got {kind}.")
    if not prior_logits.shape == q_values.shape == visit_counts.shape:
        raise ValueError(
            f"prior_logits {tuple(prior_logits.shape)}, q_values {tuple(q_values.shape)} and visit_counts "
            f"{tuple(visit_counts.shape)} must have one shape [..., K]."
        )
    device, batch_shape = prior_logits.device, prior_logits.shape[:-1]
    dtype = weight_dtype(device)
    logits, q, visits = (each.detach().to(device, dtype) for each in (prior_logits, q_values, visit_counts))
    if mask is None:
        legal = torch.ones((), dtype=torch.bool, device=device).expand(logits.shape)
    else:
        legal = broadcast_mask(mask, batch_shape, logits.shape[-1])
    network_value = _network_value(value, batch_shape, logits)
    if values_can_be_checked(validate):
        _check_values(logits, q, visits, legal, network_value)
    visited = legal & (visits > 0)
    logits = logits.masked_fill(~legal, -torch.inf)
    mixed = _mixed_value(logits, q, visits.masked_fill(~legal, 0.0), visited, network_value)
    completed = torch.where(visited, q, mixed.unsqueeze(-1))
    if rescale_values:
        lowest = completed.masked_fill(~legal, torch.inf).amin(-1, keepdim=True)
        highest = completed.masked_fill(~legal, -torch.inf).amax(-1, keepdim=True)
        # What float32 or better tells apart: the greatest value is known no better than that.
        ulp = max(torch.finfo(dtype).eps, torch.finfo(q_values.dtype).eps if q_values.dtype.itemsize >= 4 else _EPSILON)
        narrowest = (4 * ulp * torch.maximum(lowest.abs(), highest.abs())).clamp_min(_NARROWEST_RANGE)
        # In halves: the range of values near the ends of the number range is beyond them.
        completed = (completed / 2 - lowest / 2) / torch.maximum(highest / 2 - lowest / 2, narrowest / 2)
    sigma = scale * (first_visits + visits.masked_fill(~legal, 0.0).amax(-1, keepdim=True))
    return boltzmann(logits + sigma * completed, mask=mask, validate=False)


def _mixed_value(logits: Tensor, q: Tensor, visits: Tensor, visited: Tensor, value: Tensor | None) -> Tensor:
    """The mixed value, `[...]`; 0 where there is neither a visit nor a network's value, which changes no softmax."""
    # As in mctx, a visited action counts even where its prior is 0.
    probs = logits.softmax(-1).clamp_min(torch.finfo(logits.dtype).tiny).masked_fill(~visited, 0.0)
    total = probs.sum(-1)
    has_visit = total > 0
    shares = probs / torch.where(has_visit, total, 1.0).unsqueeze(-1)
    weighted = (shares * torch.where(visited, q, 0.0)).sum(-1)
    # A mean lies between what it is a mean of: rounding must not make a preference of values that are alike.
    lowest, highest = q.masked_fill(~visited, torch.inf).amin(-1), q.masked_fill(~visited, -torch.inf).amax(-1)
    weighted = torch.where(has_visit, torch.minimum(torch.maximum(weighted, lowest), highest), weighted)
    if value is None:
        return weighted
    share = 1 / (visits.sum(-1) + 1)
    mixed = share * value + (1 - share) * weighted
    lowest, highest = torch.minimum(value, weighted), torch.maximum(value, weighted)
    return torch.where(has_visit, torch.minimum(torch.maximum(mixed, lowest), highest), value)


def _network_value(value: Tensor | float | None, batch_shape: torch.Size, logits: Tensor) -> Tensor | None:
    if value is None:
        return None
    value = from_array(value)
    if isinstance(value, Tensor) and value.dtype != torch.bool and not value.is_complex():
        check_broadcast("value", value, batch_shape)
        return value.detach().to(logits.device, logits.dtype).expand(batch_shape)
    return torch.full((), check_in_range("value", value), dtype=logits.dtype, device=logits.device).expand(batch_shape)


def _check_values(logits: Tensor, q: Tensor, visits: Tensor, legal: Tensor, value: Tensor | None) -> None:
    check_mask(legal)
    bad = first_row(legal & (logits.isnan() | logits.isposinf()))
    if bad is not None:
        raise ValueError(f"prior_logits{list(bad)}={float(logits[bad])!r} must be a number below infinity.")
    bad = first_row((logits.isneginf() | ~legal).all(-1))
    if bad is not None:
        raise ValueError(f"prior_logits{at(bad)} is -inf for every legal action: one must be possible.")
    bad = first_row(~(visits.isfinite() & (visits >= 0)))
    if bad is not None:
        raise ValueError(f"visit_counts{list(bad)}={float(visits[bad])!r} must be finite and at least 0.")
    bad = first_row((visits > 0) & ~legal)
    if bad is not None:
        raise ValueError(f"visit_counts{list(bad)}={float(visits[bad])!r} is on an action that its mask forbids.")
    bad = first_row((visits > 0) & ~q.isfinite())
    if bad is not None:
        raise ValueError(f"q_values{list(bad)}={float(q[bad])!r} of a visited action must be finite.")
    if value is not None:
        bad = first_row(~value.isfinite())
        if bad is not None:
            raise ValueError(f"value{at(bad)}={float(value[bad])!r} must be finite.")
