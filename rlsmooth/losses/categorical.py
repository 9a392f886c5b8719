"""Cross-entropy, KL divergence and entropy of categorical policies and classifiers, from logits."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlsmooth.checks import check_choice
from rlsmooth.losses.arguments import Reduction, as_labels, as_target, check_logits, check_weight, compute_dtype, reduce
from rlsmooth.losses.closed_form import cross_entropy_rows, label_rows, policy_divergence_rows, target_entropies
from rlsmooth.targets.reference import Reference
from rlsmooth.targets.target import Target

__all__ = ["cross_entropy", "entropy", "kl_divergence"]


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

    Example:
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
    target = as_target(target, logits)
    if weight is not None and torch.compiler.is_compiling():
        logits = torch.where((weight != 0).unsqueeze(-1), logits, 0.0)
    rows = cross_entropy_rows(logits, target, legal, ignore_rows=weight is not None)
    return reduce(rows, weight, reduction)


def entropy(logits: Tensor, mask: Tensor | None = None, reduction: Reduction = "none") -> Tensor:
    """`-sum_k p(k) log p(k)` in nats, with `p = softmax(logits)` over the legal classes.

    Args:
        logits: `[..., K]`. Half precision is computed and returned in float32.
        mask: bool, broadcasts to `[..., K]`, True = legal.
        reduction: `"none"`: `[...]`; `"mean"` (of 0 rows: 0) or `"sum"`.

    Raises:
        TypeError: logits that are not floating-point, a mask that is not bool.
        ValueError: a mask that does not fit, an unknown reduction.

    Example:
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

    Example:
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
    rows = cross_entropy_rows(logits, goal, legal)
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
