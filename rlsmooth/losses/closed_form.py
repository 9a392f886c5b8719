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
from torch.nn import functional as F

from rlsmooth.losses.arguments import compute_dtype
from rlsmooth.targets.target import Reference, Target, is_traced

_BLOCK_ELEMENTS = {"cpu": 1 << 19}
_BLOCK_ELEMENTS_ELSEWHERE = 1 << 23
_NO_LABEL = -(1 << 62)  # torch would ignore its own default, -100, silently
_SMALL_ELEMENTS = 1 << 16
_SMALL_ROWS = 2048  # torch takes each row by itself in log_softmax: slow where rows are many and short


def row_blocks(logits: Tensor, share: int = 1) -> Iterator[slice]:
    """Slices of the rows of `[B, K]` logits; a single one wherever that is small enough.

    `share` makes them that much smaller, for work that writes so much more than one block.
    """
    rows, classes = logits.shape
    size = max(1, _BLOCK_ELEMENTS.get(logits.device.type, _BLOCK_ELEMENTS_ELSEWHERE) // classes // share)
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
    if is_traced():  # differentiated then, and only a selection has the right gradient at -inf
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
        """The weights of a target in the dtype of the arithmetic."""
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


def once_a_class(indices: Tensor, values: Tensor) -> Tensor:
    """`values` at the first atom of each class, 0 at its repeats, `[B, A]`."""
    if indices.shape[-1] == 1:
        return values
    repeats = (indices.unsqueeze(-1) == indices.unsqueeze(-2)).tril(-1).any(-1)
    return values.masked_fill(repeats, 0.0)


def inner_with_target(shifted: Tensor, target: Target, weights: Weights) -> Tensor:
    """`<q, c> = sum_i w_i · c[a_i] + b · <r, c>`, `[B]`.

    An atom may take off what the background puts on its class. Where that class is impossible, `-inf` and `+inf` would
    meet, and where it is masked by -1e8 the rest would drown in rounding: an atom stands for its class's whole `q`
    there, and `<r, c>` leaves the class out. Most targets are known to have no such atoms and skip this.
    """
    has_atoms, atoms = bool(target.atom_indices.shape[-1]), weights.atoms
    at_atoms = shifted.gather(-1, target.atom_indices)
    result: Tensor | None = None
    if weights.background is not None and target.reference is not None:
        if has_atoms and target.weights_may_cancel:
            atoms = once_a_class(target.atom_indices, target.at_atoms().to(atoms.dtype))
            if is_traced():
                places = torch.zeros_like(shifted, dtype=torch.bool).scatter(-1, target.atom_indices, True)
                inner = inner_with_reference(shifted.masked_fill(places, 0.0), target.reference)
            else:  # in place, and put back
                shifted.scatter_(-1, target.atom_indices, 0.0)
                inner = inner_with_reference(shifted, target.reference)
                shifted.scatter_(-1, target.atom_indices, at_atoms)
        else:
            inner = inner_with_reference(shifted, target.reference)
        result = product(weights.background, inner)
    if has_atoms or result is None:
        on_atoms = sum_atoms(product(atoms, at_atoms))
        result = on_atoms if result is None else result + on_atoms
    return result


class _CrossEntropy(torch.autograd.Function):
    """Per-row cross-entropy of `[B, K]` logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Target, mask: Tensor | None, ignore_rows: bool) -> Tensor:
        kept: tuple[Tensor | None, ...] = ()
        ctx.target, ctx.mask, ctx.ignore_rows = target, mask, ignore_rows
        losses = []
        for rows in row_blocks(logits):
            whole = rows.stop - rows.start == len(logits)
            part = target if whole else target[rows]
            values = legal_logits(logits if whole else logits[rows], mask if mask is None or whole else mask[rows])
            weights = Weights.of(part, values.dtype)
            shifted = shift(values)
            inner = inner_with_target(shifted, part, weights)
            exponentials = shifted.exp_()
            total = exponentials.sum(-1)
            losses.append(weights.mass * total.log() - inner)
            if whole:  # small enough to be kept, which saves the backward pass its first half
                kept = exponentials, total, *weights
        ctx.save_for_backward(logits, *kept)
        if not losses:
            return logits.new_zeros(0, dtype=compute_dtype(logits.dtype))
        return losses[0] if len(losses) == 1 else torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        logits, *kept = ctx.saved_tensors
        target, mask = ctx.target, ctx.mask
        if torch.is_grad_enabled():  # a graph of the gradient is wanted: write it out
            return _differentiable_gradient(logits, target, mask, ctx.ignore_rows, upstream), None, None, None
        if kept:
            exponentials, total, *rest = kept
            gradient = _gradient(exponentials, total, Weights(*rest), target, mask, ctx.ignore_rows, upstream)
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
    places = target.atom_indices
    if places.shape[-1]:
        gradient.scatter_add_(-1, places, weights.atoms * -upstream.unsqueeze(-1))
        if weights.background is not None and target.weights_may_cancel:
            # Where an atom takes off all that the background put on its class, rounding must not stay.
            slope = exponentials.gather(-1, places) * (weights.mass * upstream / total).unsqueeze(-1)
            cancelled = target.at_atoms() == 0
            gradient.scatter_(-1, places, torch.where(cancelled, slope, gradient.gather(-1, places)))
    if mask is not None:
        gradient.masked_fill_(~mask, 0.0)
    if ignore_rows:  # selected, not multiplied: an ignored row may hold NaN
        gradient.masked_fill_((upstream == 0).unsqueeze(-1), 0.0)
    return gradient


def _differentiable_gradient(
    logits: Tensor, target: Target, mask: Tensor | None, ignore_rows: bool, upstream: Tensor
) -> Tensor:
    if ignore_rows:  # before the softmax, whose own derivative would multiply by an ignored row's NaN
        logits = torch.where((upstream != 0).unsqueeze(-1), logits, 0.0)
    values = legal_logits(logits, mask)
    excess = target.mass().to(values.dtype).unsqueeze(-1) * values.softmax(-1) - target.dense(values.dtype)
    gradient = excess * upstream.unsqueeze(-1)
    if mask is not None:
        gradient = gradient.masked_fill(~mask, 0.0)
    if ignore_rows:
        gradient = torch.where((upstream != 0).unsqueeze(-1), gradient, 0.0)
    return gradient.to(logits.dtype)


class _PolicyDivergence(torch.autograd.Function):
    """Per-row `sum_k p(k) (log p(k) - log q(k))` of `[B, K]` logits; without `q` the negative entropy."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, q: Target | None, mask: Tensor | None) -> Tensor:
        parts = []
        for rows in row_blocks(logits, 1 if q is None else 4):
            shifted = shift(legal_logits(logits[rows], None if mask is None else mask[rows]))
            weights = shifted.exp()
            total = weights.sum(-1)
            score = shifted if q is None else shifted - q[rows].dense(shifted.dtype).log()
            score = score.masked_fill(weights == 0, 0.0)
            parts.append((weights * score).sum(-1) / total - total.log())
        divergence = torch.cat(parts) if parts else logits.new_zeros(0, dtype=compute_dtype(logits.dtype))
        ctx.save_for_backward(logits, divergence)
        ctx.q, ctx.mask = q, mask
        return divergence

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        logits, divergence = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable_divergence_gradient(logits, ctx.q, ctx.mask, upstream), None, None
        gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
        for rows in row_blocks(logits, 1 if ctx.q is None else 4):
            shifted = shift(legal_logits(logits[rows], None if ctx.mask is None else ctx.mask[rows]))
            weights = shifted.exp()
            total = weights.sum(-1, keepdim=True)
            score = shifted if ctx.q is None else shifted - ctx.q[rows].dense(shifted.dtype).log()
            score = (score - total.log() - divergence[rows].unsqueeze(-1)).masked_fill_(weights == 0, 0.0)
            gradient[rows] = weights.mul_(upstream[rows].unsqueeze(-1) / total).mul_(score)
        return gradient, None, None


def _differentiable_divergence_gradient(
    logits: Tensor, q: Target | None, mask: Tensor | None, upstream: Tensor
) -> Tensor:
    p, score, _ = _divergence_terms(logits, q, mask)
    mean = (p * score).sum(-1, keepdim=True)
    return (p * (score - mean) * upstream.unsqueeze(-1)).to(logits.dtype)


def _divergence_terms(logits: Tensor, q: Target | None, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """`p`, `log p - log q + log d` and `log d` in plain operations; `log d`, which cancels in gradients, would round.

    Where p is 0 the second is 0 too.
    """
    values = legal_logits(logits, mask)
    shifted = values - values.detach().amax(-1, keepdim=True)
    exponentials = shifted.exp()
    total = exponentials.sum(-1, keepdim=True)
    score = shifted if q is None else shifted - q.dense(shifted.dtype).log()
    return exponentials / total, torch.where(exponentials > 0, score, 0.0), total.squeeze(-1).log()


def cross_entropy_rows(logits: Tensor, target: Target, mask: Tensor | None, *, ignore_rows: bool = False) -> Tensor:
    """Per-row cross-entropy, `[...]`, in float32 or better.

    Args:
        logits: `[..., K]`.
        target: of the same batch shape.
        mask: bool `[..., K]`, or None.
        ignore_rows: rows whose upstream gradient is 0 get a gradient of exactly 0 even where their logits are NaN.
    """
    if is_traced():
        return _fusible_rows(logits, target, mask)
    if not ignore_rows and _is_small(logits):
        if target.is_positive_probabilities and mask is None:
            return _probability_rows(logits, target)
        if target.reference is not None and target.reference.kind == "dense" and not target.atom_indices.shape[-1]:
            return _written_out_rows(logits, target, mask)
    if logits.ndim == 2:
        rows: Tensor = _CrossEntropy.apply(logits, target, mask, ignore_rows)  # type: ignore[no-untyped-call]
        return rows
    classes, batch_shape = logits.shape[-1], logits.shape[:-1]
    flat_mask = None if mask is None else mask.reshape(-1, classes)
    flat_logits, flat_target = logits.reshape(-1, classes), target.reshape(batch_shape.numel())
    rows = _CrossEntropy.apply(flat_logits, flat_target, flat_mask, ignore_rows)  # type: ignore[no-untyped-call]
    return rows.reshape(batch_shape)


def _is_small(logits: Tensor) -> bool:
    """Whether the number of steps counts, not what they write: then torch's own are taken where `q` is there."""
    return logits.numel() <= _SMALL_ELEMENTS and logits.numel() <= _SMALL_ROWS * logits.shape[-1]


def label_rows(logits: Tensor, labels: Tensor) -> Tensor | None:
    """Per-row cross-entropy with hard labels by torch's own loss where that is small, else None.

    torch is right at every edge here: nothing is multiplied by a target of 0.
    """
    if is_traced() or not _is_small(logits):
        return None
    values, classes = legal_logits(logits, None), logits.shape[-1]
    rows = F.cross_entropy(values.reshape(-1, classes), labels.reshape(-1), reduction="none", ignore_index=_NO_LABEL)
    return rows.reshape(labels.shape)


def _probability_rows(logits: Tensor, target: Target) -> Tensor:
    """torch's own loss, which is right where no probability is 0."""
    assert target.reference is not None
    assert target.reference.values is not None
    values, classes = legal_logits(logits, None), logits.shape[-1]
    q = target.reference.values.to(values.dtype)
    if logits.ndim == 2:
        return F.cross_entropy(values, q, reduction="none")
    rows = F.cross_entropy(values.reshape(-1, classes), q.reshape(-1, classes), reduction="none")
    return rows.reshape(logits.shape[:-1])


def _written_out_rows(logits: Tensor, target: Target, mask: Tensor | None) -> Tensor:
    """`-sum_k q(k) log p(k)` in torch's own operations: a third of the steps of the closed form."""
    assert target.reference is not None
    assert target.background_weight is not None
    log_p = legal_logits(logits, mask).log_softmax(-1)
    q = target.reference.block(log_p.dtype) * target.background_weight.to(log_p.dtype).unsqueeze(-1)
    rows = -torch.where(q != 0, q * log_p, 0.0).sum(-1)
    return torch.where(log_p[..., 0].isnan(), torch.nan, rows)


def _fusible_rows(logits: Tensor, target: Target, mask: Tensor | None) -> Tensor:
    """The same formula in plain operations, for a compiler to differentiate and fuse."""
    values = legal_logits(logits, mask)
    shifted = values - values.detach().amax(-1, keepdim=True)
    log_sum = shifted.exp().sum(-1).log()
    weights = Weights.of(target, values.dtype)
    return weights.mass * log_sum - inner_with_target(shifted, target, weights)


def target_entropies(target: Target) -> Tensor:
    """`target.entropy()`, `[...]`, a block of rows at a time: it may have to be written out in float64."""
    if is_traced() or not target.batch_shape.numel():
        return target.entropy()
    flat = target.reshape(target.batch_shape.numel())
    rows = max(1, _BLOCK_ELEMENTS.get(target.device.type, _BLOCK_ELEMENTS_ELSEWHERE) // target.num_classes)
    if rows >= flat.batch_shape[0]:
        return target.entropy()
    parts = [flat[start : start + rows].entropy() for start in range(0, flat.batch_shape[0], rows)]
    return torch.cat(parts).reshape(target.batch_shape)


def policy_divergence_rows(logits: Tensor, q: Target | None, mask: Tensor | None) -> Tensor:
    """Per-row `sum_k p(k) (log p(k) - log q(k))`, `[...]`; without `q` the negative entropy.

    Args:
        logits: `[..., K]`.
        q: of the same batch shape, or None.
        mask: bool `[..., K]`, or None.
    """
    if is_traced():
        p, score, log_sum = _divergence_terms(logits, q, mask)
        return (p * score).sum(-1) - log_sum
    classes, batch_shape = logits.shape[-1], logits.shape[:-1]
    flat_mask = None if mask is None else mask.reshape(-1, classes)
    flat_q = None if q is None else q.reshape(batch_shape.numel())
    flat_logits = logits.reshape(-1, classes)
    rows: Tensor = _PolicyDivergence.apply(flat_logits, flat_q, flat_mask)  # type: ignore[no-untyped-call]
    return rows.reshape(batch_shape)
