"""Cross-entropy and entropy from atoms and background, without a `[B, K]` target, log-softmax or one-hot.

For logits `x`, `c = x - max x` and `d = sum exp c`, a target of mass `M` has

    CE       = M · log d - sum_i w_i · c[a_i] - b · <r, c>        (one read of the logits)
    gradient = M · softmax(x) - q                                 (one read, one write)

and a policy `p = softmax(x)` has, with `s = log p - log q`,

    F        = sum_k p(k) s(k)                                    (the negative entropy where q is left out)
    gradient = p · (s - F).

Rows are taken in blocks that fit the cache, so that what is written besides the gradient stays small.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlsmooth.losses import reference
from rlsmooth.losses.arguments import compute_dtype
from rlsmooth.targets.reference import Reference
from rlsmooth.targets.target import Target

__all__ = ["cross_entropy_rows", "policy_divergence_rows"]

_BLOCK_ELEMENTS = {"cpu": 1 << 19}
_BLOCK_ELEMENTS_ELSEWHERE = 1 << 25


def row_blocks(logits: Tensor) -> Iterator[slice]:
    """Slices of the rows of `[B, K]` logits; a single one wherever that is small enough."""
    rows, classes = logits.shape
    size = max(1, _BLOCK_ELEMENTS.get(logits.device.type, _BLOCK_ELEMENTS_ELSEWHERE) // classes)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def legal_logits(logits: Tensor, mask: Tensor | None) -> Tensor:
    """The logits in the dtype of computing, -inf where illegal."""
    values = logits.to(compute_dtype(logits.dtype))
    return values if mask is None else values.masked_fill(~mask, -torch.inf)


def shift(values: Tensor) -> Tensor:
    """`c = x - max x`: nothing overflows, and a common offset drops out exactly."""
    return values - values.amax(-1, keepdim=True)


def product(weights: Tensor, values: Tensor) -> Tensor:
    """`weights · values` with `0 · -inf = 0`.

    A NaN among the values disappears too, and may: `log d` of its row is NaN, and so is the loss.
    """
    if torch.compiler.is_compiling():  # differentiated there, and only a selection has the right gradient at -inf
        return torch.where(weights != 0, weights * values, 0.0)
    return (weights * values).nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf)


def inner_with_reference(shifted: Tensor, reference: Reference) -> Tensor:
    """`<r, c>`, `[B]`, with `0 · -inf = 0`."""
    if reference.is_plain_uniform:
        return shifted.sum(-1) * (1 / reference.num_classes)
    return product(reference.block(shifted.dtype), shifted).sum(-1)


class Weights(NamedTuple):
    """A target's weights in the dtype of computing."""

    atoms: Tensor  # [B, A]
    background: Tensor | None  # [B]
    mass: Tensor  # [B]

    @staticmethod
    def of(target: Target, dtype: torch.dtype) -> Weights:
        atoms = target.atom_weights.to(dtype)
        if target.background_weight is None or target.reference is None:
            return Weights(atoms, None, sum_atoms(atoms))
        background = target.background_weight.to(dtype)
        total = target.reference.mass()
        mass = background if total is None else background * total.to(dtype)
        return Weights(atoms, background, mass + sum_atoms(atoms) if atoms.shape[-1] else mass)


def sum_atoms(values: Tensor) -> Tensor:
    """`[B, A] -> [B]`; the usual single atom costs no pass."""
    return values.squeeze(-1) if values.shape[-1] == 1 else values.sum(-1)


def row_losses(at_atoms: Tensor, inner: Tensor | None, log_sum: Tensor, weights: Weights) -> Tensor:
    """`M · log d - sum_i w_i · c[a_i] - b · <r, c>`, `[B]`, from `c[a_i]` as `[B, A]` and `<r, c>` as `inner`."""
    losses = weights.mass * log_sum
    if at_atoms.shape[-1]:
        losses = losses - sum_atoms(product(weights.atoms, at_atoms))
    if weights.background is not None and inner is not None:
        losses = losses - product(weights.background, inner)
    return losses


class _CrossEntropy(torch.autograd.Function):
    """Per-row cross-entropy of `[B, K]` logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Target, mask: Tensor | None, ignore_rows: bool) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.target, ctx.mask, ctx.ignore_rows, ctx.small = target, mask, ignore_rows, None
        losses = []
        for rows in row_blocks(logits):
            whole = rows.stop - rows.start == len(logits)
            part = target if whole else target[rows]
            values = legal_logits(logits if whole else logits[rows], mask if mask is None or whole else mask[rows])
            weights = Weights.of(part, values.dtype)
            shifted = shift(values)
            inner = None if part.reference is None else inner_with_reference(shifted, part.reference)
            at_atoms = shifted.gather(-1, part.atom_indices)
            exponentials = shifted.exp_()
            total = exponentials.sum(-1)
            losses.append(row_losses(at_atoms, inner, total.log(), weights))
            if whole:  # small enough to be kept, which saves the backward pass its first half
                ctx.small = exponentials, total, weights
        if not losses:
            return logits.new_zeros(0, dtype=compute_dtype(logits.dtype))
        return losses[0] if len(losses) == 1 else torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (logits,) = ctx.saved_tensors
        target, mask = ctx.target, ctx.mask
        if torch.is_grad_enabled():  # a graph of the gradient is wanted: write it out
            return _differentiable_gradient(logits, target, mask, ctx.ignore_rows, upstream), None, None, None
        if ctx.small is not None:
            exponentials, total, weights = ctx.small
            gradient = _gradient(exponentials, total, weights, target, mask, ctx.ignore_rows, upstream)
            return gradient.to(logits.dtype), None, None, None
        gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
        for rows in row_blocks(logits):
            part, part_mask = target[rows], None if mask is None else mask[rows]
            values = legal_logits(logits[rows], part_mask)
            exponentials = shift(values).exp_()
            weights = Weights.of(part, values.dtype)
            gradient[rows] = _gradient(
                exponentials, exponentials.sum(-1), weights, part, part_mask, ctx.ignore_rows, upstream[rows]
            )
        return gradient, None, None, None


def _gradient(
    exponentials: Tensor,
    total: Tensor,
    weights: Weights,
    target: Target,
    mask: Tensor | None,
    ignore_rows: bool,
    upstream: Tensor,
) -> Tensor:
    """`upstream · (M · e^c / d - q)`, `[B, K]`."""
    gradient = exponentials * (weights.mass * upstream / total).unsqueeze(-1)
    if weights.background is not None and target.reference is not None:
        background = (weights.background * upstream).unsqueeze(-1)
        if target.reference.is_plain_uniform:
            gradient.sub_(background, alpha=1 / target.num_classes)
        else:
            gradient.addcmul_(target.reference.block(gradient.dtype), background, value=-1)
    if target.atom_indices.shape[-1]:
        gradient.scatter_add_(-1, target.atom_indices, weights.atoms * -upstream.unsqueeze(-1))
    if mask is not None:
        gradient.masked_fill_(~mask, 0.0)
    if ignore_rows:  # selected, not multiplied: an ignored row may hold NaN
        gradient.masked_fill_((upstream == 0).unsqueeze(-1), 0.0)
    return gradient


def _differentiable_gradient(
    logits: Tensor, target: Target, mask: Tensor | None, ignore_rows: bool, upstream: Tensor
) -> Tensor:
    values = legal_logits(logits, mask)
    excess = target.mass().to(values.dtype).unsqueeze(-1) * values.softmax(-1) - target.dense(values.dtype)
    gradient = excess * upstream.unsqueeze(-1)
    if mask is not None:
        gradient = gradient.masked_fill(~mask, 0.0)
    if ignore_rows:
        gradient = torch.where((upstream != 0).unsqueeze(-1), gradient, 0.0)
    return gradient.to(logits.dtype)


class _PolicyDivergence(torch.autograd.Function):
    """Per-row `sum_k p(k) (log p(k) - log q(k))` of `[B, K]` logits; `log_q` is `[B, K]`, `[K]` or None."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, log_q: Tensor | None, mask: Tensor | None) -> Tensor:
        parts = []
        for rows in row_blocks(logits):
            shifted = shift(legal_logits(logits[rows], None if mask is None else mask[rows]))
            weights = shifted.exp()
            total = weights.sum(-1)
            score = shifted if log_q is None else shifted - _rows_of(log_q, rows)
            score = score.masked_fill(weights == 0, 0.0)
            parts.append((weights * score).sum(-1) / total - total.log())
        divergence = torch.cat(parts) if parts else logits.new_zeros(0, dtype=compute_dtype(logits.dtype))
        ctx.save_for_backward(logits, divergence)
        ctx.log_q, ctx.mask = log_q, mask
        return divergence

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        logits, divergence = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable_divergence_gradient(logits, ctx.log_q, ctx.mask, upstream), None, None
        gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
        for rows in row_blocks(logits):
            shifted = shift(legal_logits(logits[rows], None if ctx.mask is None else ctx.mask[rows]))
            weights = shifted.exp()
            total = weights.sum(-1, keepdim=True)
            score = shifted if ctx.log_q is None else shifted - _rows_of(ctx.log_q, rows)
            score = (score - total.log() - divergence[rows].unsqueeze(-1)).masked_fill_(weights == 0, 0.0)
            gradient[rows] = weights.mul_(upstream[rows].unsqueeze(-1) / total).mul_(score)
        return gradient, None, None


def _differentiable_divergence_gradient(
    logits: Tensor, log_q: Tensor | None, mask: Tensor | None, upstream: Tensor
) -> Tensor:
    log_p = reference.log_probabilities(logits, mask)
    p = log_p.exp()
    score = torch.where(p > 0, log_p if log_q is None else log_p - log_q, 0.0)
    mean = (p * score).sum(-1, keepdim=True)
    return (p * (score - mean) * upstream.unsqueeze(-1)).to(logits.dtype)


def _rows_of(log_q: Tensor, rows: slice) -> Tensor:
    return log_q[rows] if log_q.ndim == 2 else log_q


def cross_entropy_rows(logits: Tensor, target: Target, mask: Tensor | None, *, ignore_rows: bool = False) -> Tensor:
    """Per-row cross-entropy, `[...]`, in float32 or better.

    Args:
        logits: `[..., K]`.
        target: of the same batch shape.
        mask: bool `[..., K]`, or None.
        ignore_rows: rows whose upstream gradient is 0 get a gradient of exactly 0 even where their logits are NaN.
    """
    if torch.compiler.is_compiling():
        return _fusible_rows(logits, target, mask)
    if logits.ndim == 2:
        rows: Tensor = _CrossEntropy.apply(logits, target, mask, ignore_rows)  # type: ignore[no-untyped-call]
        return rows
    classes, batch_shape = logits.shape[-1], logits.shape[:-1]
    flat_mask = None if mask is None else mask.reshape(-1, classes)
    flat_logits, flat_target = logits.reshape(-1, classes), target.reshape(batch_shape.numel())
    rows = _CrossEntropy.apply(flat_logits, flat_target, flat_mask, ignore_rows)  # type: ignore[no-untyped-call]
    return rows.reshape(batch_shape)


def _fusible_rows(logits: Tensor, target: Target, mask: Tensor | None) -> Tensor:
    """The same formula in plain operations, for a compiler to differentiate and fuse."""
    values = legal_logits(logits, mask)
    shifted = values - values.detach().amax(-1, keepdim=True)
    log_sum = shifted.exp().sum(-1).log()
    inner = None if target.reference is None else inner_with_reference(shifted, target.reference)
    at_atoms = shifted.gather(-1, target.atom_indices)
    return row_losses(at_atoms, inner, log_sum, Weights.of(target, values.dtype))


def policy_divergence_rows(logits: Tensor, log_q: Tensor | None, mask: Tensor | None) -> Tensor:
    """Per-row `sum_k p(k) (log p(k) - log q(k))`, `[...]`; without `log_q` the negative entropy.

    Args:
        logits: `[..., K]`.
        log_q: `[..., K]` or `[K]`, in the dtype of computing; or None.
        mask: bool `[..., K]`, or None.
    """
    if torch.compiler.is_compiling():
        return reference.policy_divergence_rows(logits, log_q, mask)
    classes, batch_shape = logits.shape[-1], logits.shape[:-1]
    flat_mask = None if mask is None else mask.reshape(-1, classes)
    flat_log_q = log_q if log_q is None or log_q.ndim == 1 else log_q.reshape(-1, classes)
    flat_logits = logits.reshape(-1, classes)
    rows: Tensor = _PolicyDivergence.apply(flat_logits, flat_log_q, flat_mask)  # type: ignore[no-untyped-call]
    return rows.reshape(batch_shape)
