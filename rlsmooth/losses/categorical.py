"""Cross-entropy, KL divergence and entropy of categorical policies and classifiers, from logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rlsmooth.checks import check_choice
from rlsmooth.losses.arguments import Reduction, as_labels, as_target, check_logits, check_weight, compute_dtype, reduce
from rlsmooth.losses.closed_form import (
    Weights,
    inner_with_target,
    label_rows,
    legal_logits,
    policy_divergence_rows,
    product,
    reduced_cross_entropy,
    row_blocks,
    shift,
    target_entropies,
)
from rlsmooth.targets.target import Reference, Target


def cross_entropy(
    logits: Tensor,
    target: Target | Tensor,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """`-sum_k q(k) log p(k)` in nats, with `p = softmax(logits)` over the legal classes.

    Whatever smoothing there is, is in the target. A class of target 0 contributes 0 even where its logit is -inf; a
    class of positive target whose logit is -inf (or that `mask` forbids) makes the row +inf; a NaN or +inf logit makes
    it NaN. Nothing of the target's or the softmax's size `[..., K]` is written except the gradient.

    Args:
        logits: `[..., K]`, any floating-point dtype. Half precision is computed and returned in float32, its gradient
            is in the logits' dtype.
        target: a `Target` of the same batch shape, or int64 labels `[...]` (hard targets). Labels are not read here,
            which would wait for the device: one outside `[0, K)`, -100 too, ends in torch's own IndexError or
            RuntimeError. To ignore a row give it weight 0 and any label that is a class.
        mask: bool, broadcasts to `[..., K]`, True = legal: illegal classes leave the softmax.
        weight: `[...]`, one factor a row. A row of weight 0 is left out: its loss and gradient are exactly 0 whatever
            its logits. Class weights belong to the target: `target.weight_classes(w)`.
        reduction: `"none"`: `[...]`; `"sum"`; `"mean"`: divided by the number of rows, or by `weight.sum()` when
            weights are given. With 0 rows, or weights that are all 0, the mean is 0 (torch gives NaN).

    Raises:
        TypeError: logits that are not floating-point, a target of another kind, a mask that is not bool.
        ValueError: shapes that do not fit, an unknown reduction.

    Examples:
        >>> from rlsmooth.targets import uniform
        >>> cross_entropy(torch.tensor([[2.0, 0.0]]), uniform(torch.tensor([0]), 2, alpha=0.1))
        tensor(0.2269)
    """
    legal = check_logits(logits, mask)
    check_weight(weight, logits.shape[:-1], reduction)
    if isinstance(target, Tensor) and legal is None and weight is None:
        rows = label_rows(logits, as_labels(target, logits))
        if rows is not None:
            return reduce(rows, None, reduction)
    return reduced_cross_entropy(logits, as_target(target, logits), legal, weight, reduction)


def entropy(logits: Tensor, mask: Tensor | None = None, reduction: Reduction = "none") -> Tensor:
    """`-sum_k p(k) log p(k)` in nats, with `p = softmax(logits)` over the legal classes.

    Args:
        logits: `[..., K]`. Half precision is computed and returned in float32.
        mask: bool, broadcasts to `[..., K]`, True = legal.
        reduction: `"none"`: `[...]`; `"mean"` (of 0 rows: 0) or `"sum"`.

    Raises:
        TypeError: logits that are not floating-point, a mask that is not bool.
        ValueError: a mask that does not fit, an unknown reduction.

    Examples:
        >>> entropy(torch.tensor([[0.0, 0.0, -torch.inf]]))
        tensor([0.6931])
    """
    legal = check_logits(logits, mask)
    check_weight(None, logits.shape[:-1], reduction)
    return reduce(-policy_divergence_rows(logits, None, legal), None, reduction)


def kl_divergence(
    logits: Tensor,
    reference: Target | None = None,
    *,
    direction: Literal["reference_to_policy", "policy_to_reference"],
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """KL divergence in nats between a reference `r` and the policy `p = softmax(logits)` over the legal classes.

    The two directions are different regularisers:

    - `"reference_to_policy"`: `KL(r‖p) = sum_k r(k) log(r(k) / p(k))`, what label smoothing adds to a loss:
      `CE((1 - a) · onehot + a · r, p) = (1 - a) · CE(onehot, p) + a · KL(r‖p) + a · H(r)`. It grows without bound
      where the policy gives up an action that the reference has.
    - `"policy_to_reference"`: `KL(p‖r) = sum_k p(k) log(p(k) / r(k))`; for the uniform over `n` legal classes
      `log n - H(p)`, what an entropy bonus subtracts. It is +inf where the policy uses an action that the reference
      lacks.

    Args:
        logits: `[..., K]`. Half precision is computed and returned in float32.
        reference: a `Target` of the same batch shape; None: uniform over the legal classes.
        direction: `"reference_to_policy"` or `"policy_to_reference"`.
        mask: bool, broadcasts to `[..., K]`, True = legal.
        reduction: `"none"`: `[...]`; `"mean"` (of 0 rows: 0) or `"sum"`.

    Raises:
        TypeError: logits that are not floating-point, a reference of another kind, a mask that is not bool.
        ValueError: an unknown direction or reduction, shapes that do not fit.

    Examples:
        >>> kl_divergence(torch.tensor([[0.0, 0.0]]), direction="policy_to_reference")
        tensor(0.)
    """
    check_choice("direction", direction, ("reference_to_policy", "policy_to_reference"))
    legal = check_logits(logits, mask)
    check_weight(None, logits.shape[:-1], reduction)
    if reference is not None:
        if not isinstance(reference, Target):
            raise TypeError(
                f"reference must be a Target or None, got {type(reference).__name__}: see rlsmooth.targets."
            )
        reference = as_target(reference, logits)
    if direction == "policy_to_reference":
        return reduce(_policy_to_reference(logits, reference, legal), None, reduction)
    goal = uniform_over_legal(logits, legal) if reference is None else reference
    rows = reduced_cross_entropy(logits, goal, legal)
    return reduce(rows - target_entropies(goal).to(rows.dtype), None, reduction)


def _policy_to_reference(logits: Tensor, reference: Target | None, mask: Tensor | None) -> Tensor:
    dtype = compute_dtype(logits.dtype)
    if reference is not None:
        return policy_divergence_rows(logits, reference, mask)
    negative_entropy = policy_divergence_rows(logits, None, mask)
    if mask is None:
        return negative_entropy + torch.full((), logits.shape[-1], dtype=dtype, device=logits.device).log()
    return negative_entropy + mask.sum(-1).to(dtype).log()


def uniform_over_legal(logits: Tensor, mask: Tensor | None) -> Target:
    """The uniform distribution over the legal classes of each row, as a target without atoms."""
    batch_shape, classes = logits.shape[:-1], logits.shape[-1]
    none = torch.zeros((*batch_shape, 0), dtype=torch.int64, device=logits.device)
    dtype = compute_dtype(logits.dtype)
    one = torch.ones((), dtype=dtype, device=logits.device).expand(batch_shape)
    scale = None if mask is None else 1 / mask.sum(-1).to(dtype)
    return Target(classes, none, none.to(dtype), one, Reference(classes, mask=mask, scale=scale))


def entropy_fractions(entropies: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    """`H / log n` and whether there is a choice (n at least 2): where there is none, the fraction is 0.

    Args:
        entropies: `[...]`, nats.
        largest: `[...]`, log n: the largest entropy that each could have, 0 without a choice (up to 1e-6 of rounding).

    Examples:
        >>> entropy_fractions(torch.tensor([0.3466, 0.0]), torch.tensor([0.6931, 0.0]))
        (tensor([0.5001, 0.0000]), tensor([ True, False]))
    """
    has_choice = largest > 1e-6
    return torch.where(has_choice, entropies / torch.where(has_choice, largest, 1.0), 0.0), has_choice


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

    Examples:
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

    Examples:
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
