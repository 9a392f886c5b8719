"""The losses as their definitions read: dense, differentiable any number of times, exact in float64.

Slow and memory-hungry on purpose. Tests compare the closed form with it, and second derivatives fall back to it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlsmooth.checks import check_choice
from rlsmooth.losses.arguments import Reduction, as_target, check_logits, check_weight, compute_dtype, reduce
from rlsmooth.targets.target import Target


def log_probabilities(logits: Tensor, mask: Tensor | None) -> Tensor:
    """`log softmax` over the legal classes, in float32 or better."""
    values = logits.to(compute_dtype(logits.dtype))
    if mask is not None:
        values = values.masked_fill(~mask, -torch.inf)
    return values.log_softmax(-1)


def cross_entropy_rows(logits: Tensor, target: Target, mask: Tensor | None = None) -> Tensor:
    """`-sum_k q(k) log p(k)`, `[...]`; a class of target 0 contributes 0 whatever its logit."""
    log_p = log_probabilities(logits, mask)
    q = target.dense(log_p.dtype)
    # Selected twice: once so that 0 · -inf is 0, and inside, so that its gradient is.
    terms = torch.where(q != 0, q * torch.where(q != 0, log_p, 0.0), 0.0)
    return torch.where(log_p.isnan().any(-1), torch.nan, -terms.sum(-1))


def policy_divergence_rows(logits: Tensor, log_q: Tensor | None, mask: Tensor | None = None) -> Tensor:
    """`sum_k p(k) (log p(k) - log q(k))`, `[...]`; without `log_q` the negative entropy."""
    log_p = log_probabilities(logits, mask)
    p = log_p.exp()
    score = log_p if log_q is None else log_p - log_q
    return (p * torch.where(p > 0, score, 0.0)).sum(-1) + torch.where(log_p.isnan().any(-1), torch.nan, 0.0)


def cross_entropy(
    logits: Tensor,
    target: Target | Tensor,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """`rlsmooth.losses.cross_entropy` by its definition."""
    mask = check_logits(logits, mask)
    target = as_target(target, logits)
    check_weight(weight, logits.shape[:-1], reduction)
    if weight is not None:  # an ignored row must not reach the softmax, whose gradient would multiply by its NaN
        logits = torch.where((weight != 0).unsqueeze(-1), logits, 0.0)
    return reduce(cross_entropy_rows(logits, target, mask), weight, reduction)


def entropy(logits: Tensor, mask: Tensor | None = None, reduction: Reduction = "none") -> Tensor:
    """`rlsmooth.losses.entropy` by its definition."""
    mask = check_logits(logits, mask)
    check_weight(None, logits.shape[:-1], reduction)
    return reduce(-policy_divergence_rows(logits, None, mask), None, reduction)


def kl_divergence(
    logits: Tensor,
    reference: Target | None = None,
    *,
    direction: Literal["reference_to_policy", "policy_to_reference"],
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """`rlsmooth.losses.kl_divergence` by its definition, over a reference that is written out."""
    mask = check_logits(logits, mask)
    check_choice("direction", direction, ("reference_to_policy", "policy_to_reference"))
    check_weight(None, logits.shape[:-1], reduction)
    log_p = log_probabilities(logits, mask)
    if reference is None:
        legal = torch.ones_like(log_p) if mask is None else mask.to(log_p.dtype)
        q = legal / legal.sum(-1, keepdim=True)
    else:
        q = reference.dense(log_p.dtype)
    if direction == "policy_to_reference":
        return reduce(policy_divergence_rows(logits, q.log(), mask), None, reduction)
    terms = torch.where(q != 0, q * (q.log() - torch.where(q != 0, log_p, 0.0)), 0.0)
    return reduce(torch.where(log_p.isnan().any(-1), torch.nan, terms.sum(-1)), None, reduction)
