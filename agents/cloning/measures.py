"""What a log line says of a policy: means over rows, read in one pass and with one wait for the device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlsmooth.agents.heads import ActionTarget, Batch, CategoricalHead, GaussianHead
from rlsmooth.audits import ReliabilityBins, calibration_error, reliability_bins
from rlsmooth.losses import (
    cross_entropy,
    entropy,
    entropy_fractions,
    gaussian_cross_entropy,
    gaussian_entropy,
    gaussian_kl_divergence,
    kl_divergence,
    statistics,
)
from rlsmooth.targets import GaussianTarget, gaussian

__all__ = ["RowMetrics", "concatenate", "l2_norm", "row_metrics", "summarise"]


@dataclass(frozen=True, eq=False)
class RowMetrics:
    """Numbers of each row, on the device; nats. Those of components are `[B, C]`, `None` for a Box.

    Attributes:
        cross_entropy: `[B]`, with the smoothed target.
        nll: `[B]`, of the demonstrated action.
        kl_reference: `[B]`, KL(reference‖pi).
        weights: `[B]`.
        entropy: `[B, C]`; differential, `[B, 1]`, for a Box.
        kl_uniform: `[B, C]`, KL(uniform over the legal‖pi).
        most: `[B, C]`, the entropy of the uniform: log of the number of legal choices.
        confidence: `[B, C]`, the largest probability.
        hit: `[B, C]` bool, whether the most probable choice is the demonstrated one.
    """

    cross_entropy: Tensor
    nll: Tensor
    kl_reference: Tensor
    weights: Tensor
    entropy: Tensor
    kl_uniform: Tensor | None = None
    most: Tensor | None = None
    confidence: Tensor | None = None
    hit: Tensor | None = None

    def reliability(self) -> ReliabilityBins:
        """The bins of a reliability diagram, over rows and components."""
        assert self.confidence is not None
        assert self.hit is not None
        weights = self.weights.unsqueeze(-1).expand(self.confidence.shape)
        return reliability_bins(self.confidence, self.hit, weights=weights)


@torch.no_grad()
def row_metrics(
    head: CategoricalHead | GaussianHead, batch: Batch, target: ActionTarget, *, own_reference: bool
) -> RowMetrics:
    """The numbers of some rows under the policy as it is.

    Args:
        head: of the policy.
        batch: the rows.
        target: of the rows; compact, so that it tells its reference.
        own_reference: `kl_reference` is towards the target's own reference; else towards the KL term's.
    """
    outputs = head.outputs(batch.observations)
    weights = torch.ones(len(batch.labels), device=batch.labels.device) if batch.weights is None else batch.weights
    if isinstance(head, GaussianHead):
        assert isinstance(target, GaussianTarget)
        mean, log_std = (output.float() for output in outputs)
        hard = gaussian(batch.labels, 0.0, validate=False)
        return RowMetrics(
            gaussian_cross_entropy(mean, log_std, target, reduction="none"),
            gaussian_cross_entropy(mean, log_std, hard, reduction="none"),
            gaussian_kl_divergence(
                mean,
                log_std,
                head.reference_mean,
                head.reference_std,
                direction="reference_to_policy",
                reduction="none",
            ),
            weights,
            gaussian_entropy(log_std.expand(mean.shape)).unsqueeze(-1),
        )
    assert isinstance(target, tuple)
    columns: list[list[Tensor]] = []  # of each group, [B, C of the group]
    labels, masks = head.label_groups(batch.labels), head.mask_groups(batch.masks)
    for place, (logits, label, mask, goal) in enumerate(zip(outputs, labels, masks, target, strict=True)):
        found = statistics(logits, goal, mask)
        kl_uniform = kl_divergence(logits, direction="reference_to_policy", mask=mask, reduction="none")
        kl_reference = found.kl_reference
        if not own_reference:
            kl_reference = kl_uniform
            if batch.reference is not None:
                kl_reference = kl_divergence(
                    logits, batch.reference[place], direction="reference_to_policy", mask=mask, reduction="none"
                )
        legal = logits if mask is None else logits.masked_fill(~mask, -torch.inf)
        best = legal.argmax(-1)
        group = [
            found.cross_entropy,
            cross_entropy(logits, label, mask=mask, reduction="none"),
            kl_reference,
            found.entropy,
            kl_uniform,
            entropy(torch.zeros_like(logits), mask),
            (-cross_entropy(logits, best, mask=mask, reduction="none")).exp().clamp(max=1.0),
            best == label,
        ]
        columns.append([column if column.ndim == 2 else column.unsqueeze(-1) for column in group])
    joined = [torch.cat(parts, dim=-1) for parts in zip(*columns, strict=True)]  # [B, C]
    rows = [column.sum(-1) for column in joined[:3]]
    return RowMetrics(rows[0], rows[1], rows[2], weights, *joined[3:])


def concatenate(parts: Iterable[RowMetrics]) -> RowMetrics:
    """The rows of several parts as one."""
    listed = list(parts)
    if len(listed) == 1:
        return listed[0]
    columns = zip(*(vars(part).values() for part in listed), strict=True)
    joined: list[Any] = [None if column[0] is None else torch.cat(column) for column in columns]
    return RowMetrics(*joined)


def summarise(rows: RowMetrics, *, kl_coef: float, by_component: bool) -> dict[str, float]:
    """Weighted means of the rows, as numbers: the one place that waits for the device.

    `accuracy` and `ece` are over rows and components; `entropy_frac` over rows with a component of at least two legal
    choices.

    Args:
        rows: see `row_metrics`.
        kl_coef: of the KL term in `loss`.
        by_component: give `entropy_dim<i>` too.
    """
    weights = rows.weights
    policy_entropy = rows.entropy.sum(-1)
    regulariser = kl_coef * rows.kl_reference if kl_coef else torch.zeros_like(rows.kl_reference)
    found = {
        "loss": _mean(rows.cross_entropy + regulariser, weights),
        "cross_entropy": _mean(rows.cross_entropy, weights),
        "nll_hard": _mean(rows.nll, weights),
        "prob_true_act": _mean((-rows.nll).exp(), weights),
        "policy_entropy": _mean(policy_entropy, weights),
        "kl_reference": _mean(rows.kl_reference, weights),
        "ent_loss": _mean(regulariser, weights),
    }
    if rows.kl_uniform is not None and rows.most is not None and rows.hit is not None and rows.confidence is not None:
        share, several = entropy_fractions(policy_entropy, rows.most.sum(-1))
        found["entropy_frac"] = _mean(share, torch.where(several, weights, 0.0))
        found["kl_uniform"] = _mean(rows.kl_uniform.sum(-1), weights)
        found["accuracy"] = _mean(rows.hit.to(torch.float32).mean(-1), weights)
        spread = weights.unsqueeze(-1).expand(rows.confidence.shape)
        found["ece"] = calibration_error(rows.confidence, rows.hit, weights=spread).to(torch.float64)
    if by_component:
        for place in range(rows.entropy.shape[-1]):
            found[f"entropy_dim{place}"] = _mean(rows.entropy[:, place], weights)
    values = torch.stack([value.to(torch.float32) for value in found.values()]).tolist()
    return dict(zip(found, values, strict=True))


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean; a value of weight 0 plays no part, and no weight at all gives 0."""
    total = weights.sum(dtype=torch.float32)
    kept = torch.where(weights > 0, values * weights, 0.0)
    return kept.sum(dtype=torch.float32) / torch.where(total > 0, total, 1.0)


def l2_norm(policy: nn.Module) -> Tensor:
    """Half the sum of the squared parameters, as imitation defines it."""
    return torch.stack([parameter.square().sum() for parameter in policy.parameters()]).sum() / 2
