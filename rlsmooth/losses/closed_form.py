"""Cross-entropy and entropy from atoms and background, without a `[B, K]` target, log-softmax or one-hot.

For logits `x`, `c = x - max x` and `d = sum exp c`, a target of mass `M` has

    CE       = M · log d - sum_i w_i · c[a_i] - b · <r, c>        (one read of the logits)
    gradient = M · softmax(x) - q                                 (one read, one write)

and a policy `p = softmax(x)` has, with `s = log p - log q`,

    F        = sum_k p(k) s(k)                                    (the negative entropy where q is left out)
    gradient = p · (s - F).

Rows are taken in blocks that fit the cache, so that what is written besides the gradient stays small. A cross-entropy's
gradient is made in the forward pass, while its block is in the cache: torch's one `softmax` a block is written straight
into the gradient's memory and finished there. On the CPU an `exp` that meets -inf or underflow costs several times a
softmax, and `masked_fill` and `where` ten times a bitwise operation: neither is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch.nn import functional as F

from rlsmooth.losses.arguments import Reduction, compute_dtype, reduce
from rlsmooth.targets.target import Reference, Target, is_traced

_BLOCK_ELEMENTS = {"cpu": 1 << 19}
_BLOCK_ELEMENTS_ELSEWHERE = 1 << 23
_NO_LABEL = -(1 << 62)  # torch would ignore its own default, -100, silently
_SHORT = 32  # classes; torch's softmax and its sums take each row by itself: slow where rows are shorter than this
_INTEGERS = {torch.float32: (torch.int32, -(1 << 23)), torch.float64: (torch.int64, -(1 << 52))}  # and -inf's bits
_FEW_ELEMENTS = 1 << 17
_softmax_backward = torch.ops.aten._log_softmax_backward_data.default  # noqa: SLF001 - what autograd calls
_NARROW, _MANY_ROWS = 15, 128  # classes at most, and rows at least, from which torch's softmax is quicker across rows
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


def _share_of_a_block(logits: Tensor) -> int:
    """What makes the memory besides a cross-entropy's gradient small beside it too, where few blocks are needed."""
    if logits.device.type != "cpu":
        return 1
    return max(1, _BLOCK_ELEMENTS["cpu"] // max(logits.numel() // 6, _FEW_ELEMENTS))


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


def legal_bits(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A whole number a class, all of whose bits are set where it is legal: by bits a selection costs a tenth.

    Not on the CPU: a bool, True where illegal.
    """
    if mask.device.type != "cpu":
        return ~mask
    return mask.to(_INTEGERS[dtype][0]).neg_()


def keep_legal(values: Tensor, bits: Tensor, fill: float, out: Tensor | None = None) -> Tensor:
    """The values where legal and `fill`, 0 or -inf, elsewhere, whatever is there."""
    if bits.dtype == torch.bool:
        if out is None:
            return values.masked_fill(bits, fill)
        return (values if out is values else out.copy_(values)).masked_fill_(bits, fill)
    source, result = values.view(bits.dtype), None if out is None else out.view(bits.dtype)
    if fill == 0:
        kept = torch.bitwise_and(source, bits, out=result)
    else:
        infinity = _INTEGERS[values.dtype][1]
        kept = torch.bitwise_xor(source, infinity, out=result).bitwise_and_(bits).bitwise_xor_(infinity)
    return kept.view(values.dtype) if out is None else out


def exponentials_(shifted: Tensor) -> Tensor:
    """`exp c` in place, exactly 0 below the smallest of normal numbers, where `exp` is slow."""
    smallest = torch.finfo(shifted.dtype).tiny
    return torch.threshold_(shifted.clamp_(min=math.log(smallest) + 1).exp_(), 3 * smallest, 0.0)


class _Slopes(NamedTuple):
    """What a gradient `f · (M · softmax(x) - q)` is made of besides the softmax, a column each."""

    mass: Tensor  # [B, 1]
    background: Tensor | None  # [B, 1], times the scale of a uniform reference
    atoms: Tensor  # [B, A], the weights times -f
    cancelled: Tensor | None  # bool [B, A]: where an atom takes off all that the background adds; None: nowhere
    kept: Tensor | None  # [B, 1], as `legal_bits`: the rows that are not ignored; None: all


def _slopes(target: Target, weights: Weights, q: Tensor | None, factor: Tensor | float, ignore_rows: bool) -> _Slopes:
    background, reference = weights.background, target.reference
    if background is not None and reference is not None and reference.kind == "uniform" and reference.scale is not None:
        background = background * reference.scale.to(background.dtype)
    column = factor.unsqueeze(-1) if isinstance(factor, Tensor) and factor.ndim else factor
    return _Slopes(
        (weights.mass * factor).unsqueeze(-1),
        None if background is None else (background * factor).unsqueeze(-1),
        weights.atoms * -column,
        None if q is None else q == 0,
        legal_bits(column != 0, weights.mass.dtype) if ignore_rows and isinstance(column, Tensor) else None,
    )


def rows_and_gradient(
    logits: Tensor,
    target: Target,
    mask: Tensor | None,
    factor: Tensor | float = 1.0,
    *,
    wants_gradient: bool = True,
    ignore_rows: bool = False,
    guarded: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Per-row cross-entropies, and `factor` times their gradients, without autograd.

    Args:
        logits: `[B, K]`.
        target: of batch shape `[B]`.
        mask: bool `[B, K]`, or None.
        factor: one number, or one a row, `[B]`.
        wants_gradient: False saves what only the gradient needs.
        ignore_rows: rows whose `factor`, `[B]`, is 0 get a gradient of exactly 0 even where their logits are NaN.
        guarded: expect a logit of -inf where the background is 0. On the CPU that is found out otherwise.

    Returns:
        `[B]` in float32 or better, and `[B, K]` in the logits' dtype, or None.
    """
    dtype, reference = compute_dtype(logits.dtype), target.reference
    reference = None if reference is None else reference.with_table_in(dtype, len(logits))
    guarded = guarded or mask is not None or logits.device.type != "cpu"
    blocks = list(row_blocks(logits, _share_of_a_block(logits)))
    weights, q = Weights.of(target, dtype), None
    atoms = weights.atoms
    if target.weights_may_cancel and reference is not None and atoms.shape[-1] and blocks:
        q = torch.cat([target[rows].at_atoms() for rows in blocks])
        atoms = once_a_class(target.atom_indices, q.to(dtype))
    slopes = _slopes(target, weights, q, factor, ignore_rows) if wants_gradient else None
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format) if wants_gradient else None
    shape = (blocks[0].stop if blocks else 0, logits.shape[-1])
    shifted = logits.new_empty(shape, dtype=dtype)  # made once: new memory costs as much as the arithmetic
    result = gradient if gradient is not None and gradient.dtype == dtype else torch.empty_like(shifted)
    parts = []
    for rows in blocks:
        count = rows.stop - rows.start
        of_rows = _whole if len(blocks) == 1 else itemgetter(rows)
        found = _read_block(
            of_rows(logits),
            of_rows(target.atom_indices),
            reference if reference is None or reference.is_plain_uniform else reference.index(of_rows),
            None if mask is None else of_rows(mask),
            shifted[:count],
            of_rows(result) if result is gradient else result[:count],
            None if slopes is None else _Slopes._make(None if part is None else of_rows(part) for part in slopes),
            cancels=q is not None,
            guarded=guarded,
        )
        parts.append(found)
        if gradient is not None and result is not gradient:
            gradient[rows] = result[:count]
    if not parts:
        return shifted.new_zeros(0), gradient
    log_sums, at_atoms, inner = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
    is_general = reference is not None and reference.kind != "uniform"
    if is_general and not guarded and inner.isnan().any().numpy():  # read as in `_written_out_loss`
        options: dict[str, Any] = {"wants_gradient": wants_gradient, "ignore_rows": ignore_rows}
        return rows_and_gradient(logits, target, mask, factor, guarded=True, **options)
    return weights.mass * log_sums - _with_target(at_atoms, atoms, inner, weights.background, reference), gradient


def _whole(tensor: Tensor) -> Tensor:
    return tensor


def _with_target(
    at_atoms: Tensor, atoms: Tensor, inner: Tensor, background: Tensor | None, reference: Reference | None
) -> Tensor:
    """`<q, c>`, `[B]`, of what `_read_block` found."""
    on_atoms = sum_atoms(product(atoms, at_atoms))
    if background is None or reference is None:
        return on_atoms
    if reference.is_plain_uniform:
        inner = inner * (1 / reference.num_classes)
    elif reference.kind == "uniform" and reference.scale is not None:
        inner = inner * reference.scale.to(inner.dtype)
    result = product(background, inner)
    return result + on_atoms if atoms.shape[-1] else result


def _read_block(
    logits: Tensor,
    places: Tensor,
    reference: Reference | None,
    mask: Tensor | None,
    shifted: Tensor,
    result: Tensor,
    slopes: _Slopes | None,
    *,
    cancels: bool,
    guarded: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`log d` `[n]`, `c` at the atoms `[n, A]` and `<r, c>` `[n]` of a block, whose gradient is left in `result`.

    A uniform `r` counts as 1 wherever it is not 0, and without a background `<r, c>` is `log d`.
    """
    values = logits.to(shifted.dtype)
    bits = among = r = None
    if mask is not None:
        bits = legal_bits(mask, shifted.dtype)
        values = keep_legal(values, bits, -torch.inf, shifted)
    torch.sub(values, values.amax(-1, keepdim=True), out=shifted)
    at_atoms = shifted.gather(-1, places)
    inner = None
    if reference is not None:
        if cancels:  # in place, and put back
            shifted.scatter_(-1, places, 0.0)
        if reference.kind != "uniform":
            r = reference.block(shifted.dtype)
            if guarded:
                inner = torch.mul(r, shifted, out=result)
                inner = inner.nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf).sum(-1)
            else:
                inner = shifted @ r if r.ndim == 1 else torch.mul(r, shifted, out=result).sum(-1)
        elif reference.mask is None:
            inner = shifted.sum(-1)
        else:
            same = mask is not None and _is_same_memory(mask, reference.mask)
            among = bits if bits is not None and same else legal_bits(reference.mask, shifted.dtype)
            inner = keep_legal(shifted, among, 0.0, result).sum(-1)
        if cancels:
            shifted.scatter_(-1, places, at_atoms)
    if logits.shape[-1] < _SHORT:
        exponentials = exponentials_(shifted)
        total = exponentials.sum(-1)
        log_sum = total.log()
        if slopes is not None:
            torch.mul(exponentials, slopes.mass / total.unsqueeze(-1), out=result)
    else:
        log_sum = torch.softmax(shifted, -1, out=result).amax(-1).log().neg_()  # the largest exponential is 1
        if slopes is not None:
            result.mul_(slopes.mass)
    if guarded and r is not None:
        log_sum = log_sum + 0.0 * r.sum(-1)  # a NaN of the target stays
    if slopes is not None:
        _take_off(result, shifted, places, r, among, bits, slopes)
    return log_sum, at_atoms, log_sum if inner is None else inner


def _take_off(
    result: Tensor,
    spare: Tensor,
    places: Tensor,
    r: Tensor | None,
    among: Tensor | None,
    bits: Tensor | None,
    slopes: _Slopes,
) -> None:
    """Take `q` off, in place, and leave 0 where a class is illegal or a row ignored."""
    alone = None if slopes.cancelled is None else result.gather(-1, places)
    if slopes.background is not None:
        if r is not None:
            result.addcmul_(r, slopes.background, value=-1)
        elif among is None or among is bits:  # what that puts on illegal classes leaves below
            result.sub_(slopes.background, alpha=1 / result.shape[-1] if among is None else 1.0)
        else:
            result.sub_(keep_legal(spare.copy_(slopes.background), among, 0.0, spare))
    if places.shape[-1]:
        result.scatter_add_(-1, places, slopes.atoms)
    if alone is not None and slopes.cancelled is not None:  # rounding must not stay there
        result.scatter_(-1, places, torch.where(slopes.cancelled, alone, result.gather(-1, places)))
    for keep in (bits, slopes.kept):
        if keep is not None:  # selected, not multiplied: there may be NaN
            keep_legal(result, keep, 0.0, result)


def _is_same_memory(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride()


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy of `[B, K]` logits, reduced or not; `weight`, `[B]`, has no gradient."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Target, mask: Tensor | None, weight: Tensor | None, reduction: Reduction
    ) -> Tensor:
        dtype = compute_dtype(logits.dtype)
        ctx.factor = _reduction_factor(len(logits), weight, reduction)
        ctx.target, ctx.mask, ctx.ignore_rows = target, mask, weight is not None
        ctx.save_for_backward(logits)
        # Half precision is rounded once, with all factors in, and those of the backward pass are not known yet.
        now = ctx.needs_input_grad[0] and logits.dtype == dtype
        rows, ctx.gradient = rows_and_gradient(
            logits, target, mask, ctx.factor, wants_gradient=now, ignore_rows=ctx.ignore_rows
        )
        return reduce(rows, weight, reduction)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (logits,) = ctx.saved_tensors
        gradient, ctx.gradient = ctx.gradient, None  # given away: who gets it may change it
        # Upstream gradients in a batch (`is_grads_batched`) do not fit into the memory of one.
        if not torch.is_grad_enabled() and not is_traced() and not is_legacy_batchedtensor(upstream):
            return _CrossEntropy._times(ctx, logits, gradient, upstream), None, None, None, None
        rows = (upstream * ctx.factor).expand(len(logits))  # a graph of the gradient is wanted, or many gradients
        gradient = _differentiable_gradient(logits, ctx.target, ctx.mask, ctx.ignore_rows, rows)
        return gradient, None, None, None, None

    @staticmethod
    def _times(ctx: Any, logits: Tensor, gradient: Tensor | None, upstream: Tensor) -> Tensor:
        """The gradient times `upstream`, in its own memory."""
        factor = ctx.factor
        if logits.dtype != compute_dtype(logits.dtype):
            factor, upstream = (upstream * factor).expand(len(logits)), upstream.new_ones(())
        if gradient is None:
            _, gradient = rows_and_gradient(logits, ctx.target, ctx.mask, factor, ignore_rows=ctx.ignore_rows)
        assert gradient is not None
        if upstream.ndim:
            gradient.mul_(upstream.unsqueeze(-1))
            if ctx.ignore_rows:
                keep_legal(gradient, legal_bits(upstream != 0, gradient.dtype).unsqueeze(-1), 0.0, gradient)
        elif upstream.device.type != "cpu" or upstream.numpy() != 1:  # read as in `_written_out_loss`
            gradient.mul_(upstream)
        return gradient


def _reduction_factor(rows: int, weight: Tensor | None, reduction: Reduction) -> Tensor | float:
    """What `reduce` multiplies a row's loss by: one number, or with `weight` one a row."""
    if weight is None:
        return 1 / rows if reduction == "mean" and rows else 1.0
    if reduction != "mean":
        return weight
    total = weight.sum()
    return 1 / torch.where(total != 0, total, 1.0) * weight


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


def reduced_cross_entropy(
    logits: Tensor,
    target: Target,
    mask: Tensor | None,
    weight: Tensor | None = None,
    reduction: Reduction = "none",
) -> Tensor:
    """Cross-entropy in float32 or better, per row or reduced.

    Args:
        logits: `[..., K]`.
        target: of the same batch shape.
        mask: bool `[..., K]`, or None.
        weight: `[...]`, or None.
        reduction: as `reduce`.
    """
    if is_traced():
        if weight is not None:
            logits = torch.where((weight != 0).unsqueeze(-1), logits, 0.0)
        return reduce(_fusible_rows(logits, target, mask), weight, reduction)
    if weight is None and mask is None and target.is_positive_probabilities and _is_small(logits):
        return reduce(_probability_rows(logits, target), None, reduction)
    batch_shape = logits.shape[:-1]
    if len(batch_shape) != 1:
        classes = logits.shape[-1]
        logits, target = logits.reshape(-1, classes), target.reshape(batch_shape.numel())
        mask = None if mask is None else mask.reshape(-1, classes)
    weight = None if weight is None else weight.reshape(-1).to(compute_dtype(logits.dtype))
    if weight is not None and weight.requires_grad:
        kept = (weight.detach() != 0).to(weight.dtype)
        found: Tensor = _CrossEntropy.apply(logits, target, mask, kept, "none")  # type: ignore[no-untyped-call]
        found = reduce(found, weight, reduction)
    else:
        own = _written_out_loss(logits, target, mask, weight, reduction) if _is_few(logits, mask) else None
        if own is not None:
            found = own
        else:
            found = _CrossEntropy.apply(logits, target, mask, weight, reduction)  # type: ignore[no-untyped-call]
    return found.reshape(batch_shape) if reduction == "none" else found


def _is_small(logits: Tensor) -> bool:
    """Whether the number of steps counts, not what they write: then torch's own are taken where `q` is there."""
    elements = logits.numel()
    return elements <= 4 * _SMALL_ROWS or (elements <= _SMALL_ELEMENTS and elements <= _SMALL_ROWS * logits.shape[-1])


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


def mean_and_gradient(logits: Tensor, target: Target) -> tuple[Tensor, Tensor] | None:
    """The mean cross-entropy of `[B, K]` logits and its gradient without autograd, to the bit what that gives.

    Args:
        logits: without a graph.
        target: of the same batch shape.

    Returns:
        None: no probability is known to be 0, or the steps of `reduced_cross_entropy` are others here.
    """
    if not (target.is_positive_probabilities and logits.dtype == torch.float32 and _is_small(logits)) or is_traced():
        return None
    assert target.reference is not None
    assert target.reference.values is not None
    q, log_probs = target.reference.values.to(logits.dtype), logits.log_softmax(-1)
    upstream = q * (-1 / len(logits))
    gradient = _softmax_backward(upstream, log_probs, -1, logits.dtype)
    return (log_probs * q).sum(-1).neg_().mean(), gradient


def _is_few(logits: Tensor, mask: Tensor | None) -> bool:
    """Whether `_written_out_loss` is the quickest for these `[B, K]` logits; only on the CPU, which may be read."""
    rows, classes = logits.shape
    most = _FEW_ELEMENTS if mask is None else _FEW_ELEMENTS >> 2
    return 0 < rows * classes <= most and (rows <= 1024 or classes >= 16) and logits.is_cpu


def _written_out_loss(
    logits: Tensor, target: Target, mask: Tensor | None, weight: Tensor | None, reduction: Reduction
) -> Tensor | None:
    """torch's own loss of `q` written out, the fewest steps; None at its edges, where `0 · -inf` made it NaN.

    The result is read, which waits for nothing on the CPU. It is read through numpy, so that a search for what waits
    for a device finds only that.
    """
    values, across = logits.to(compute_dtype(logits.dtype)), _is_narrow(logits)
    q = _kept_or_written_out(target, values.dtype, _reduction_factor(logits.shape[0], weight, reduction), across)
    if mask is not None:
        if not _is_within(target, mask, q, across):
            return None
        values = values.masked_fill(~mask, torch.finfo(values.dtype).min / 2)  # times 0, which must not be NaN
    products = (values.t().log_softmax(0) if across else values.log_softmax(-1)) * q
    loss = products.sum(0 if across else -1) if reduction == "none" else products.sum()
    number = loss.detach()
    return loss if math.isfinite((number.sum() if number.ndim else number).numpy()) else None


def _is_narrow(logits: Tensor) -> bool:
    """Whether torch's softmax is quicker across the rows, one class after the other, than a short row at a time."""
    rows, classes = logits.shape
    return classes <= _NARROW and rows >= _MANY_ROWS


def _is_within(target: Target, mask: Tensor, q: Tensor, across: bool) -> bool:
    """Whether `q` is 0 on all illegal classes."""
    reference = target.reference
    only_atoms = reference is None or (reference.mask is not None and _is_same_memory(mask, reference.mask))
    if only_atoms and mask.gather(-1, target.atom_indices).all().numpy():
        return True  # an atom without weight may be outside, and is seen below
    return not torch.logical_and(q.t() if across else q, ~mask).any().numpy()


def _kept_or_written_out(target: Target, dtype: torch.dtype, factor: Tensor | float, across: bool) -> Tensor:
    """`_written_out` of `-factor`; kept with the target, whose next loss is often of the same kind.

    A tensor that was changed in place since has another version, and is read again.
    """
    reference, places = target.reference, target.atom_indices
    values, mask = (None, None) if reference is None else (reference.values, reference.mask)
    parts = [target.atom_weights, target.background_weight, values, mask]
    given = [part for part in parts if part is not None]
    if (
        isinstance(factor, Tensor)
        or torch.is_inference_mode_enabled()
        or places.is_inference()
        or any(part.is_inference() for part in given)
    ):
        return _written_out(target, dtype, -factor, across)
    key = (dtype, factor, across, *[part._version for part in given])  # noqa: SLF001 - torch has no other name for it
    own, version = vars(target), places._version  # noqa: SLF001
    kept: tuple[Any, int, Tensor] | None = own.get("_kept")
    if kept is not None and kept[0] == key and kept[1] == version:
        return kept[2]
    alike = own.get("alike")  # of all targets with the same weights around other labels
    table = None if alike is None else alike.get(key)
    if table is None:
        table = _table(target, dtype, -factor, across)
        if table is not None and alike is not None:
            alike[key] = table
    if table is None:
        q = _written_out(target, dtype, -factor, across)
    else:
        q = table.index_select(int(across), places.squeeze(-1))
    own["_kept"] = key, version, q
    return q


_tables: dict[tuple[Any, ...], tuple[Tensor | None, Tensor | None]] = {}
_KEPT_TABLES, _LARGEST_TABLE = 64, 64


def _table(target: Target, dtype: torch.dtype, factor: float, across: bool) -> Tensor | None:
    """`_written_out` of every label, to be looked up: of labels smoothed by one number, each in the same way.

    None: the target is of another kind, or new. The table is made when it is wanted again.
    """
    background, reference, places = target.background_weight, target.reference, target.atom_indices
    if background is None or reference is None or reference.mask is not None:
        return None
    if background.stride() != (0,) or places.shape[1] != 1:
        return None
    atoms, classes = target.atom_weights, target.num_classes
    if classes > _LARGEST_TABLE or atoms.stride()[0] or not reference.is_of_labels(places):
        return None
    on_label, beside, values = float(atoms.numpy()[0, 0]), float(background.numpy()[0]), reference.values
    version = None if values is None else values._version  # noqa: SLF001
    key = (id(values), version, classes, on_label, beside, factor, dtype, reference.kind, across)
    kept = _tables.get(key)
    if kept is None or kept[0] is not values:
        if len(_tables) >= _KEPT_TABLES:
            _tables.clear()
        _tables[key] = values, None
        return None
    table = kept[1]
    if table is None:
        labels = torch.arange(classes)
        every = replace(reference, rows=None if reference.rows is None else labels)
        weights = atoms[:1].expand(classes, 1), background[:1].expand(classes)
        whole = Target(classes, labels[:, None], *weights, every, weights_may_cancel=target.weights_may_cancel)
        table = _written_out(whole, dtype, factor, across)
        _tables[key] = values, table
    return table


def _written_out(target: Target, dtype: torch.dtype, factor: Tensor | float, across: bool) -> Tensor:
    """`q` times `factor`, one number or one a row, `[B, K]`; `across`: `[K, B]`."""
    q = _rows_written_out(target, dtype, factor)
    return q.t().contiguous() if across else q


def _rows_written_out(target: Target, dtype: torch.dtype, factor: Tensor | float) -> Tensor:
    reference, background, atoms = target.reference, target.background_weight, target.atom_weights
    shape = (*target.batch_shape, target.num_classes)
    column = factor.unsqueeze(-1) if isinstance(factor, Tensor) else factor
    if reference is None or background is None:
        q = atoms.new_zeros(shape, dtype=dtype)
    elif target.weights_may_cancel and atoms.shape[-1]:
        return (target.dense(atoms.dtype) * column).to(dtype)
    elif reference.is_plain_uniform:
        share = (background * (factor / target.num_classes)).to(dtype)
        q = share.unsqueeze(-1).expand(shape).contiguous()
    elif reference.kind == "uniform" and reference.mask is not None and reference.scale is not None:
        q = reference.mask * (background * (reference.scale * factor)).to(dtype).unsqueeze(-1)
    else:
        block = reference.with_table_in(dtype, shape[0]).block(dtype)
        q = block * (background * factor).to(dtype).unsqueeze(-1)
    return q.scatter_add_(-1, target.atom_indices, (atoms * column).to(dtype)) if atoms.shape[-1] else q


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
