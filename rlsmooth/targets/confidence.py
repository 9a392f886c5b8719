"""Smoothing of pseudo-labels by the confidence of the model that made them."""

from __future__ import annotations

import torch
from torch import Tensor

from rlsmooth.checks import check_in_range, check_positive_int
from rlsmooth.targets.arguments import Labels, at, broadcast_mask, first_row, to_labels, values_can_be_checked
from rlsmooth.targets.labelled import uniform
from rlsmooth.targets.target import Target, check_broadcast, from_array, weight_dtype


def confidence_adaptive(
    labels: Labels,
    confidence: Tensor | float,
    num_classes: int,
    *,
    max_alpha: float | None = None,
    mask: Tensor | None = None,
    validate: bool = True,
) -> Target:
    """Each pseudo-label keeps the probability that its model gave it: `q(label) = confidence`, the rest spread evenly.

    That is `uniform` at `alpha_i = K (1 - confidence_i) / (K - 1)`, `K` the row's number of legal classes. A fixed
    alpha damps the gradient of a pseudo-label least where the label is uncertain: with the other classes even,
    `|c - t| / (1 - c)` of the hard label's gradient is left at confidence `c`, with `t = 1 - alpha + alpha / K`, so
    nearly all at a low `c`. This alpha leaves nothing of it on the model that made the label; learning comes once the
    student differs from that model.

    Args:
        labels: int64 `[...]`.
        confidence: the probability of each label, in [0, 1]; a number, or a tensor that broadcasts over the batch.
        num_classes: `K`.
        max_alpha: the most that any row is smoothed, in [0, 1]: `min(max_alpha, alpha_i)`. None: no limit.
        mask: bool, broadcasts to `[..., K]`; True = legal. With one legal class the target is hard.
        validate: check values, which waits for the device.

    Raises:
        TypeError: labels that are not whole numbers, a confidence that is not floating-point, a mask that is not bool.
        ValueError: a confidence outside [0, 1] or of a wrong shape, and as `uniform`.

    Examples:
        >>> confidence_adaptive(torch.tensor([0, 1]), torch.tensor([0.9, 0.5]), 3).dense()
        tensor([[0.9000, 0.0500, 0.0500],
                [0.2500, 0.5000, 0.2500]])
    """
    labels, confidence = to_labels(labels), from_array(confidence)
    check_positive_int("num_classes", num_classes)
    dtype = weight_dtype(labels.device)
    if isinstance(confidence, Tensor):
        if not confidence.is_floating_point():
            raise TypeError(f"confidence must be floating-point, got {confidence.dtype}.")
        check_broadcast("confidence", confidence, labels.shape)
        if values_can_be_checked(validate):
            bad = first_row(~((confidence >= 0) & (confidence <= 1)))
            if bad is not None:
                raise ValueError(f"confidence{at(bad)}={float(confidence[bad])!r} is no probability: see softmax.")
        off_label = 1 - confidence.detach().to(labels.device, dtype)
    else:
        number = check_in_range("confidence", confidence, 0.0, 1.0)
        off_label = torch.full((), 1 - number, dtype=dtype, device=labels.device)
    if max_alpha is not None:
        limit = check_in_range("max_alpha", max_alpha, 0.0, 1.0)
        if mask is None:
            off_label = off_label.clamp_max(limit * (num_classes - 1) / num_classes)
        else:
            legal = broadcast_mask(mask, labels.shape, num_classes).sum(-1).to(dtype)
            off_label = torch.minimum(off_label, limit * (legal - 1) / legal)
    # Over the others, 1 - confidence is the same target, and at most 1 also for a label that is not the likeliest.
    return uniform(labels, num_classes, off_label, "others", mask=mask, validate=validate)
