"""Targets with a whole distribution for each row: search, values, teachers, given probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from rlsmooth.checks import check_in_range
from rlsmooth.targets.arguments import (
    Alpha,
    Labels,
    at,
    broadcast_alpha,
    broadcast_mask,
    check_alpha,
    check_labels,
    check_mask,
    check_probabilities,
    first_row,
    to_labels,
    values_can_be_checked,
)
from rlsmooth.targets.target import Reference, Target, from_array, weight_dtype


def from_probs(probs: Tensor, *, mask: Tensor | None = None, validate: bool = True) -> Target:
    """Any distribution, written out. It is kept in the dtype that it has.

    Args:
        probs: float `[..., K]`; rows sum to 1 within 1e-4 and are used as given.
        mask: bool, broadcasts to `[..., K]`, True = legal; only used to check that illegal classes have probability 0.
        validate: check values, which waits for the device.

    Raises:
        TypeError: `probs` is not floating-point.
        ValueError: a negative or non-finite entry, a row that does not sum to 1, mass on an illegal class.

    Examples:
        >>> from_probs(torch.tensor([[0.25, 0.75]])).entropy()
        tensor([0.5623], dtype=torch.float64)
    """
    probs = from_array(probs)
    check_float("probs", probs)
    if values_can_be_checked(validate):
        check_probabilities("probs", probs, "give probs / probs.sum(-1, keepdim=True)")
        _check_nothing_illegal("probs", probs, mask)
    given = probs.detach()
    return without_label(
        Reference(probs.shape[-1], "dense", given, total=given.sum(-1, dtype=weight_dtype(given.device))), probs
    )


def visit_counts(
    counts: Tensor, temperature: float = 1.0, *, mask: Tensor | None = None, validate: bool = True
) -> Target:
    """A search's policy target: `counts^(1 / temperature)`, normalised (Silver et al. 2017).

    Args:
        counts: `[..., K]`, at least 0, each row with a visit.
        temperature: above 0, or 0: all on the most visited, shared evenly where several are.
        mask: bool, broadcasts to `[..., K]`, True = legal; only used to check that illegal classes have no visits.
        validate: check values, which waits for the device.

    Raises:
        TypeError: counts that are not numbers.
        ValueError: a negative or non-finite count, a row without visits, visits to an illegal class, a negative
            temperature.

    Examples:
        >>> visit_counts(torch.tensor([[1, 3]]), temperature=0.5).dense()
        tensor([[0.1000, 0.9000]])
    """
    temperature = check_in_range("temperature", temperature, 0.0)
    counts = from_array(counts)
    if not isinstance(counts, Tensor):
        raise TypeError(f"counts must be a tensor of numbers [..., K], got {type(counts).__name__}.")
    if counts.ndim == 0 or counts.dtype == torch.bool or counts.is_complex():
        raise TypeError(f"counts must be numbers of shape [..., K], got {counts.dtype} {tuple(counts.shape)}.")
    visits = counts.detach().to(weight_dtype(counts.device))
    if values_can_be_checked(validate):
        bad = first_row(~(visits.isfinite() & (visits >= 0)))
        if bad is not None:
            raise ValueError(f"counts{list(bad)}={float(visits[bad])!r} must be finite and at least 0.")
        bad = first_row(visits.sum(-1) <= 0)
        if bad is not None:
            raise ValueError(f"counts{at(bad)} has no visit at all: drop the row or search it.")
        _check_nothing_illegal("counts", visits, mask)
    if temperature == 0:
        most = (visits == visits.amax(-1, keepdim=True)).to(visits.dtype)
        probs = most / most.sum(-1, keepdim=True)
    else:
        logarithms = visits.log()
        probs = ((logarithms - logarithms.amax(-1, keepdim=True)) / temperature).softmax(-1)
    return without_label(Reference(probs.shape[-1], "dense", probs), probs)


def boltzmann(
    q_values: Tensor, temperature: float = 1.0, *, mask: Tensor | None = None, validate: bool = True
) -> Target:
    """`softmax(q_values / temperature)` over the legal actions. The values are kept, not the softmax.

    Args:
        q_values: float `[..., K]`; gradients do not flow into it.
        temperature: above 0, in the values' unit.
        mask: bool, broadcasts to `[..., K]`; True = legal. Illegal actions may hold any value.
        validate: check values, which waits for the device.

    Raises:
        TypeError: `q_values` is not floating-point.
        ValueError: a NaN or +inf among the legal values, a row without a legal action, a temperature that is not
            above 0.

    Examples:
        >>> boltzmann(torch.tensor([[0.0, 1.0]])).dense()
        tensor([[0.2689, 0.7311]])
    """
    q_values = from_array(q_values)
    check_float("q_values", q_values)
    return without_label(_softmax("q_values", q_values, temperature, mask, validate=validate), q_values)


def teacher(
    logits: Tensor,
    temperature: float = 1.0,
    labels: Labels | None = None,
    alpha: Alpha = 1.0,
    *,
    mask: Tensor | None = None,
    validate: bool = True,
) -> Target:
    """Distillation (Hinton et al. 2015): `(1 - alpha) · onehot(labels) + alpha · softmax(logits / temperature)`.

    A softened student needs `logits / temperature` in its loss too, and then `temperature^2` as a factor; that is the
    caller's choice, since smoothing by a teacher has neither.

    Args:
        logits: float `[..., K]`; gradients do not flow into it.
        temperature: above 0.
        labels: int64 `[...]`; needed where alpha is not 1.
        alpha: the teacher's share, at most 1; a number, or a tensor that broadcasts over the batch.
        mask: bool, broadcasts to `[..., K]`; True = legal.
        validate: check values, which waits for the device.

    Raises:
        TypeError: logits that are not floating-point.
        ValueError: alpha other than 1 without labels, and as `boltzmann` and `uniform`.

    Examples:
        >>> teacher(torch.tensor([[0.0, 1.0]]), labels=torch.tensor([0]), alpha=0.5).dense()
        tensor([[0.6345, 0.3655]])
    """
    logits = from_array(logits)
    check_float("logits", logits)
    reference = _softmax("logits", logits, temperature, mask, validate=validate)
    if labels is None:
        if isinstance(alpha, Tensor) or alpha != 1.0:
            raise ValueError(f"alpha={alpha!r} leaves something for the labels: give labels, or alpha=1.")
        return without_label(reference, logits)
    labels = to_labels(labels)
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels {tuple(labels.shape)} must have the logits' batch shape {tuple(logits.shape[:-1])}.")
    check_values = values_can_be_checked(validate)
    check_alpha(alpha, labels.shape, values=check_values)
    if check_values:
        check_labels(labels, logits.shape[-1])
        if mask is not None:
            check_mask(broadcast_mask(mask, labels.shape, logits.shape[-1]), labels)
    background = broadcast_alpha(alpha, labels)
    return Target(logits.shape[-1], labels.unsqueeze(-1), (1 - background).unsqueeze(-1), background, reference)


def _softmax(name: str, values: Tensor, temperature: float, mask: Tensor | None, *, validate: bool) -> Reference:
    temperature = check_in_range("temperature", temperature, 0.0, low_open=True)
    values = values.detach()
    if mask is not None:
        mask = broadcast_mask(mask, values.shape[:-1], values.shape[-1])
        values = values.masked_fill(~mask, -torch.inf)
    if values_can_be_checked(validate):
        if mask is not None:
            check_mask(mask)
        bad = first_row(values.isnan() | values.isposinf())
        if bad is not None:
            raise ValueError(f"{name}{list(bad)}={float(values[bad])!r} must be a number below infinity.")
        bad = first_row(values.isneginf().all(-1))
        if bad is not None:
            raise ValueError(f"{name}{at(bad)} is -inf everywhere: every row needs a possible class.")
    # The maximum is subtracted first, exactly, so that neither a common offset nor a low temperature costs precision.
    shift = values.amax(-1)
    exponents = (values.to(weight_dtype(values.device)) - shift.unsqueeze(-1)) / temperature
    scale = 1 / exponents.exp().sum(-1)
    return Reference(values.shape[-1], "logits", values, mask=mask, scale=scale, shift=shift, temperature=temperature)


def without_label(reference: Reference, values: Tensor) -> Target:
    """The target that is the reference alone, for the batch and on the device of `values` `[..., K]`."""
    batch_shape, device = values.shape[:-1], values.device
    dtype = weight_dtype(device)
    return Target(
        reference.num_classes,
        torch.zeros((*batch_shape, 0), dtype=torch.int64, device=device),
        torch.zeros((*batch_shape, 0), dtype=dtype, device=device),
        torch.ones((), dtype=dtype, device=device).expand(batch_shape),
        reference,
    )


def check_float(name: str, values: Tensor) -> None:
    """Raise TypeError or ValueError unless `values` is a floating-point tensor `[..., K]`."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        kind = str(values.dtype) if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{name} must be a floating-point tensor [..., K], got {kind}.")
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError(f"{name} has shape {tuple(values.shape)}, needs [..., K] with at least one class.")


def _check_nothing_illegal(name: str, values: Tensor, mask: Tensor | None) -> None:
    if mask is None:
        return
    legal = broadcast_mask(mask, values.shape[:-1], values.shape[-1])
    check_mask(legal)
    bad = first_row((values != 0) & ~legal)
    if bad is not None:
        raise ValueError(f"{name}{list(bad)}={float(values[bad])!r} is on a class that its mask forbids.")
