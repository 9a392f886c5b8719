"""What a log line says of a policy: means over rows, read in one pass and with one wait for the device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlsmooth.agents.heads import ActionTarget, Batch, CategoricalHead, GaussianHead
from rlsmooth.audits import ReliabilityBins, calibration_error, reliability_bins
from rlsmooth.losses import entropy_fractions, gaussian_cross_entropy, gaussian_entropy, gaussian_kl_divergence
from rlsmooth.losses.arguments import reduce
from rlsmooth.losses.measures import PredictionMeasures, measure_predictions
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
        max_entropy: `[B, C]`, the entropy of the uniform: log of the number of legal choices.
        confidence: `[B, C]`, the largest probability.
        hit: `[B, C]` bool, whether the most probable choice is the demonstrated one.
    """

    cross_entropy: Tensor
    nll: Tensor
    kl_reference: Tensor
    weights: Tensor
    entropy: Tensor
    kl_uniform: Tensor | None = None
    max_entropy: Tensor | None = None
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
    parts = []  # one a group, [B, C of the group]
    labels, masks = head.label_groups(batch.labels), head.mask_groups(batch.masks)
    for place, (logits, label, mask, goal) in enumerate(zip(outputs, labels, masks, target, strict=True)):
        reference = None if own_reference or batch.reference is None else batch.reference[place]
        found = measure_predictions(logits, goal, mask, labels=label, reference=reference)
        if reference is None and not own_reference:
            found = found._replace(kl_reference=found.kl_uniform)
        is_joint = found.hit.ndim == 2
        parts.append(found if is_joint else PredictionMeasures(*(column.unsqueeze(-1) for column in found)))
    joined = PredictionMeasures.concatenate(parts, dim=-1)
    return RowMetrics(
        joined.cross_entropy.sum(-1),
        joined.nll.sum(-1),
        joined.kl_reference.sum(-1),
        weights,
        joined.entropy,
        joined.kl_uniform,
        joined.max_entropy,
        joined.confidence,
        joined.hit,
    )


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
    columns = {
        "loss": rows.cross_entropy + regulariser,
        "cross_entropy": rows.cross_entropy,
        "nll_hard": rows.nll,
        "prob_true_act": (-rows.nll).exp(),
        "policy_entropy": policy_entropy,
        "kl_reference": rows.kl_reference,
        "ent_loss": regulariser,
    }
    found = {name: reduce(column, weights, "mean") for name, column in columns.items()}
    if (
        rows.kl_uniform is not None
        and rows.max_entropy is not None
        and rows.hit is not None
        and rows.confidence is not None
    ):
        share, several = entropy_fractions(policy_entropy, rows.max_entropy.sum(-1))
        found["entropy_frac"] = reduce(share, torch.where(several, weights, 0.0), "mean")
        found["kl_uniform"] = reduce(rows.kl_uniform.sum(-1), weights, "mean")
        found["accuracy"] = reduce(rows.hit.to(torch.float32).mean(-1), weights, "mean")
        spread = weights.unsqueeze(-1).expand(rows.confidence.shape)
        found["ece"] = calibration_error(rows.confidence, rows.hit, weights=spread)
    if by_component:
        for place, column in enumerate(rows.entropy.unbind(-1)):
            found[f"entropy_dim{place}"] = reduce(column, weights, "mean")
    values = torch.stack([value.to(torch.float32) for value in found.values()]).tolist()
    return dict(zip(found, values, strict=True))


def l2_norm(policy: nn.Module) -> Tensor:
    """Half the sum of the squared parameters, as imitation defines it."""
    return torch.stack([parameter.square().sum() for parameter in policy.parameters()]).sum() / 2
