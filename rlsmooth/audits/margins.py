"""Logit margins: of a classifier between the label and the other classes, and the margin that its target asks for."""

from __future__ import annotations

import torch
from torch import Tensor

from rlsmooth.audits.arguments import as_samples, check_distances, check_floating, mean_of, takes_arrays
from rlsmooth.targets import Target


@takes_arrays
def mean_logit_margin(logits: Tensor, labels: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Mean over samples of `x(label) - mean_{k ≠ label} x(k)`, in nats.

    A loss that is minimised all the way gives the target's `optimal_margin`; without smoothing that is +inf, and the
    margin shows how far training went.

    Args:
        logits: float [..., K].
        labels: int64 [...], in [0, K).
        weights: [...], sample weights, 0 or more; None counts each sample once. A sample of weight 0 plays no part.

    Returns:
        0-dim, nats, in the logits' dtype (float32 for half precision); NaN without samples or with one class, and NaN
        if a sample that counts holds a NaN or a label that is no class; +inf where a class other than the label is at
        -inf.

    Raises:
        TypeError: `logits` is not floating, `labels` not int64.
        ValueError: shapes that do not fit.

    Examples:
        >>> mean_logit_margin(torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([0]))
        tensor(2.5000)
    """
    samples, label, weight, valid = as_samples(logits, labels, weights, name="logits")
    return mean_of(_margin(samples.to(weight.dtype), label), weight, valid).to(samples.dtype)


def optimal_margin(target: Target) -> Tensor:
    """The margin that the target asks for: `log q(label) - mean_{k ≠ label} log q(k)`, in nats.

    Cross-entropy is least at `softmax(x) = q`, so that this is `mean_logit_margin` at the optimum. For uniform
    smoothing by a over K classes it is `log(1 + K (1 - a) / a)`.

    Args:
        target: of batch shape [...]; the label is its first atom, or its most probable class where it has no atom.

    Returns:
        [...], nats, in the target's dtype (float64; float32 on devices without it); +inf where another class than the
        label has no mass, NaN with one class or with a negative weight.

    Examples:
        >>> from rlsmooth.targets import uniform
        >>> optimal_margin(uniform(torch.tensor([2]), 10, alpha=0.1))
        tensor([4.5109], dtype=torch.float64)
    """
    dense = target.dense(target.atom_weights.dtype)
    label = target.atom_indices[..., 0] if target.atom_indices.shape[-1] else dense.argmax(-1)
    return _margin(dense.log(), label)


@takes_arrays
def implied_alpha(kernel: Tensor) -> Tensor:
    """The smoothing that a table `[K, K]` holds for each class: the share of its row that is off the label.

    Boltzmann forms, `alpha=None` of the ordinal and hierarchical targets, fix it by their shape, and differently for
    each class: `1 - kernel[t, t] / Σ_j kernel[t, j]`.

    Args:
        kernel: float [K, K], 0 or more; row `t` says how a label `t` spreads. Rows need not sum to 1.

    Returns:
        [K], in [0, 1], in the kernel's dtype (float32 for half precision); NaN for a row of zeros.

    Raises:
        TypeError: `kernel` is not floating.
        ValueError: it is not square.

    Examples:
        >>> from rlsmooth.targets import ordinal_kernel
        >>> implied_alpha(ordinal_kernel(4, "exponential", include_label=True))
        tensor([0.2787, 0.4299, 0.4299, 0.2787], dtype=torch.float64)
    """
    check_floating("kernel", kernel)
    check_distances(kernel, name="kernel")
    rows = kernel.detach().to(torch.float64 if kernel.dtype == torch.float64 else torch.float32)
    off_label = rows - torch.diag(rows.diagonal())
    return off_label.sum(-1) / rows.sum(-1)


def _margin(values: Tensor, label: Tensor) -> Tensor:
    """`[...]`: the label's value less the mean of the others."""
    place = label.unsqueeze(-1)
    at_label = values.gather(-1, place).squeeze(-1)
    others = values.scatter(-1, place, 0.0).sum(-1) / (values.shape[-1] - 1)
    return at_label - others
