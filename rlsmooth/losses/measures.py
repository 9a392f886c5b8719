"""Measures of predictions, one value a row, from a single pass over the logits and without a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlsmooth.losses.arguments import as_labels, as_target, check_logits
from rlsmooth.losses.categorical import uniform_over_legal
from rlsmooth.losses.closed_form import Weights, inner_with_target, legal_logits, product, row_blocks, shift
from rlsmooth.targets.target import Target

__all__ = ["PredictionMeasures", "Statistics", "measure_predictions", "statistics"]


class PredictionMeasures(NamedTuple):
    """One value a row, `[...]`; nats are natural-logarithm units.

    A NaN or +inf logit makes all of its row NaN but `max_entropy` and `hit`, which is False there.
    """

    cross_entropy: Tensor
    """`-sum_k q(k) log p(k)`, nats."""
    nll: Tensor
    """`-log p(label)`, nats."""
    label_probability: Tensor
    """`p(label)`."""
    entropy: Tensor
    """`-sum_k p(k) log p(k)`, nats."""
    kl_reference: Tensor
    """`KL(reference‖p)`, nats."""
    kl_uniform: Tensor
    """`KL(uniform over the legal classes‖p)`, nats."""
    max_entropy: Tensor
    """`log n`, nats, for n legal classes."""
    confidence: Tensor
    """The largest probability."""
    hit: Tensor
    """bool: whether the most probable class is the label."""

    @staticmethod
    def concatenate(parts: Sequence[PredictionMeasures], dim: int = 0) -> PredictionMeasures:
        """Join the measures of several parts, column by column."""
        if len(parts) == 1:
            return parts[0]
        return PredictionMeasures(*(torch.cat(columns, dim) for columns in zip(*parts, strict=True)))


class Statistics(NamedTuple):
    """One value a row, `[...]`; nats are natural-logarithm units."""

    cross_entropy: Tensor
    """`-sum_k q(k) log p(k)`, nats."""
    entropy: Tensor
    """`-sum_k p(k) log p(k)`, nats."""
    kl_reference: Tensor
    """`KL(reference‖p)`, nats: the target's own reference, or the uniform over the legal classes where it has none."""
    label_probability: Tensor
    """`p(label)`; the label is the target's first atom, or its most probable class where it has no atom."""
    top1_hit: Tensor
    """bool: whether the most probable class is the label."""


def statistics(logits: Tensor, target: Target | Tensor, mask: Tensor | None = None) -> Statistics:
    """Cross-entropy, entropy, KL to the reference, label probability and top-1 hit of every row.

    Args:
        logits: `[..., K]`. Half precision is computed and returned in float32.
        target: a `Target` of the same batch shape, or int64 labels `[...]`.
        mask: bool, broadcasts to `[..., K]`, True = legal.

    Returns:
        `Statistics`, each `[...]`, without a graph.

    Raises:
        TypeError: logits that are not floating-point, a target of another kind, a mask that is not bool.
        ValueError: shapes that do not fit.

    Example:
        >>> statistics(torch.tensor([[0.0, 0.0]]), torch.tensor([1])).label_probability
        tensor([0.5000])
    """
    found = measure_predictions(logits, target, mask)
    return Statistics(found.cross_entropy, found.entropy, found.kl_reference, found.label_probability, found.hit)


@torch.no_grad()
def measure_predictions(
    logits: Tensor,
    target: Target | Tensor,
    mask: Tensor | None = None,
    *,
    labels: Tensor | None = None,
    reference: Target | None = None,
) -> PredictionMeasures:
    """Read once all that a log line says of predictions.

    Args:
        logits: `[..., K]`. Half precision is computed and returned in float32.
        target: a `Target` of the same batch shape, or int64 labels `[...]`.
        mask: bool, broadcasts to `[..., K]`, True = legal.
        labels: int64 `[...]`; None: the target's first atoms, or its most probable classes where it has no atom.
        reference: of `kl_reference`, of the same batch shape; None: the target's own reference, or the uniform over the
            legal classes where it has none.

    Returns:
        Each measure as `[...]`, without a graph.

    Raises:
        TypeError: logits that are not floating-point, a target of another kind, a mask that is not bool, labels that
            are not int64.
        ValueError: shapes that do not fit.

    Example:
        >>> measure_predictions(torch.tensor([[2.0, 0.0]]), torch.tensor([1])).confidence
        tensor([0.8808])
    """
    legal = check_logits(logits, mask)
    target = as_target(target, logits)
    if labels is not None:
        labels = as_labels(labels, logits)
    if reference is not None:
        reference = as_target(reference, logits)
    batch_shape, classes = logits.shape[:-1], logits.shape[-1]
    if logits.ndim != 2:
        logits, target = logits.reshape(-1, classes), target.reshape(batch_shape.numel())
        legal = None if legal is None else legal.reshape(-1, classes)
        labels = None if labels is None else labels.reshape(-1)
        reference = None if reference is None else reference.reshape(batch_shape.numel())
    blocks = list(row_blocks(logits))
    if len(blocks) <= 1:
        found = _measure_block(logits, target, legal, labels, reference)
    else:
        found = PredictionMeasures.concatenate(
            [
                _measure_block(
                    logits[rows],
                    target[rows],
                    None if legal is None else legal[rows],
                    None if labels is None else labels[rows],
                    None if reference is None else reference[rows],
                )
                for rows in blocks
            ]
        )
    return found if len(batch_shape) == 1 else PredictionMeasures(*(column.reshape(batch_shape) for column in found))


def _measure_block(
    logits: Tensor, target: Target, mask: Tensor | None, labels: Tensor | None, reference: Target | None
) -> PredictionMeasures:
    shifted = shift(legal_logits(logits, mask))
    exponentials = shifted.exp()
    total = exponentials.sum(-1)
    log_sum = total.log()

    def loss(goal: Target) -> Tensor:
        weights = Weights.of(goal, log_sum.dtype)
        return weights.mass * log_sum - inner_with_target(shifted, goal, weights)

    uniform = uniform_over_legal(logits, mask)
    max_entropy = uniform.entropy().to(log_sum.dtype)
    kl_reference = kl_uniform = loss(uniform) - max_entropy
    own = target.reference
    if reference is None and own is not None and not (own.is_plain_uniform and mask is None):
        none = target.atom_indices[..., :0]
        reference = Target(target.num_classes, none, none.to(log_sum.dtype), torch.ones_like(log_sum), own)
    if reference is not None:
        kl_reference = loss(reference) - reference.entropy().to(log_sum.dtype)
    if labels is None:
        labels = target.atom_indices[..., 0] if target.atom_indices.shape[-1] else target.dense().argmax(-1)
    places = labels.unsqueeze(-1)
    return PredictionMeasures(
        cross_entropy=loss(target),
        nll=log_sum - shifted.gather(-1, places).squeeze(-1),
        label_probability=exponentials.gather(-1, places).squeeze(-1) / total,
        entropy=log_sum - product(exponentials, shifted).sum(-1) / total,
        kl_reference=kl_reference,
        kl_uniform=kl_uniform,
        max_entropy=max_entropy,
        confidence=1 / total,  # the largest of the exponentials is 1
        hit=(shifted.argmax(-1) == labels) & ~log_sum.isnan(),
    )
