"""What monitoring wants to know of each row, read in one pass and without a graph."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlsmooth.losses.arguments import as_target, check_logits
from rlsmooth.losses.categorical import uniform_over_legal
from rlsmooth.losses.closed_form import (
    Weights,
    inner_with_target,
    legal_logits,
    product,
    row_blocks,
    shift,
)
from rlsmooth.targets.target import Target

__all__ = ["Statistics", "statistics"]


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


@torch.no_grad()
def statistics(logits: Tensor, target: Target | Tensor, mask: Tensor | None = None) -> Statistics:
    """Cross-entropy, entropy, KL to the reference, label probability and top-1 hit of every row.

    Args:
        logits: `[..., K]`. Half precision is computed and returned in float32.
        target: a `Target` of the same batch shape, or int64 labels `[...]`.
        mask: bool, broadcasts to `[..., K]`, True = legal.

    Returns:
        `Statistics`, each `[...]`, without a graph.

    Raises:
        TypeError: see `cross_entropy`.
        ValueError: see `cross_entropy`.

    Example:
        >>> statistics(torch.tensor([[0.0, 0.0]]), torch.tensor([1])).label_probability
        tensor([0.5000])
    """
    legal = check_logits(logits, mask)
    target = as_target(target, logits)
    batch_shape, classes = logits.shape[:-1], logits.shape[-1]
    flat_logits, flat_target = logits.reshape(-1, classes), target.reshape(batch_shape.numel())
    flat_mask = None if legal is None else legal.reshape(-1, classes)
    parts = [
        _block(flat_logits[rows], flat_target[rows], None if flat_mask is None else flat_mask[rows])
        for rows in row_blocks(flat_logits)
    ] or [_block(flat_logits, flat_target, flat_mask)]
    return Statistics(*(torch.cat(columns).reshape(batch_shape) for columns in zip(*parts, strict=True)))


def _block(logits: Tensor, target: Target, mask: Tensor | None) -> Statistics:
    shifted = shift(legal_logits(logits, mask))
    exponentials = shifted.exp()
    total = exponentials.sum(-1)
    log_sum = total.log()
    none = target.atom_indices[..., :0]
    reference = uniform_over_legal(logits, mask)
    if target.reference is not None:
        reference = Target(target.num_classes, none, none.to(log_sum.dtype), torch.ones_like(log_sum), target.reference)

    def loss(goal: Target) -> Tensor:
        weights = Weights.of(goal, log_sum.dtype)
        return weights.mass * log_sum - inner_with_target(shifted, goal, weights)

    label = target.atom_indices[..., 0] if target.atom_indices.shape[-1] else target.dense().argmax(-1)
    plogp = product(exponentials, shifted).sum(-1) / total
    return Statistics(
        loss(target),
        log_sum - plogp,
        loss(reference) - reference.entropy().to(log_sum.dtype),
        exponentials.gather(-1, label.unsqueeze(-1)).squeeze(-1) / total,
        (shifted.argmax(-1) == label) & ~log_sum.isnan(),
    )
