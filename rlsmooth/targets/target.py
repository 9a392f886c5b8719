"""`Target`: how probable each class should be: atoms and a background (`Reference`), not a `[..., K]` tensor."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import EllipsisType
from typing import Any, Literal

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active

from rlsmooth.targets.fields import ComparedByFields

_ROUNDING = 8
"""Where atoms cancel the background, so many ulps of what was added are taken for rounding, and 0 is left."""

Index = int | slice | Tensor | EllipsisType | tuple[int | slice | Tensor | EllipsisType, ...]

_Select = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Reference(ComparedByFields):
    """`r(k)`, one distribution a row, without the `[..., K]` copy wherever it can be avoided.

    `r(k) = scale · mask(k) · base(k)`, where `kind` says what `base` is:

    | kind | base | tensors |
    |---|---|---|
    | `"uniform"` | `1` under a mask, `1/K` without | none |
    | `"vector"` | `values[k]`: a prior | `values [K]` |
    | `"rows"` | `values[rows, k]`: a kernel's row | `values [R, K]`, `rows [...]` int64 |
    | `"tree"` | `exp(values[d(rows, k)] - shift)`, d the edges between two classes | `values [D]`, `rows`, `shift` |
    | `"dense"` | `values[..., k]` | `values [..., K]` |
    | `"logits"` | `exp((values[..., k] - shift) / temperature)`, shift the row's maximum | `values`, `shift [...]` |

    With a `shift` (`[...]`), the values of `"vector"` and `"rows"` are logarithms too, and the base is
    `exp(values - shift)`: what a mask leaves of a steep table may be too small to be written out.

    `mask` (bool `[..., K]`, True = legal), `scale` (`[...]`, what renormalises over the legal classes) and `factors`
    (`[K]`, by which each class is multiplied at last) are optional. `tree` is that of `"tree"`.
    `total` is each row's sum (`[...]`, or one number for all), None where it is 1 by construction. Two references are
    equal where all of this is.
    """

    num_classes: int
    kind: Literal["uniform", "vector", "rows", "tree", "dense", "logits"] = "uniform"
    values: Tensor | None = None
    rows: Tensor | None = None
    mask: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    temperature: float = 1.0
    total: Tensor | None = None
    tree: Any = None
    factors: Tensor | None = None

    @property
    def is_plain_uniform(self) -> bool:
        """Whether `r(k) = 1/K` in every row: the case that costs nothing."""
        return self.kind == "uniform" and self.mask is None

    def is_of_labels(self, labels: Tensor) -> bool:
        """Whether `r` of a row is known to depend on its label, int64 `[..., 1]`, alone."""
        if self.kind == "rows":
            rows = self.rows
            if rows is None or rows.data_ptr() != labels.data_ptr() or rows.stride() != labels.stride()[:-1]:
                return False
        elif self.kind not in ("uniform", "vector"):
            return False
        return self.mask is None and self.scale is None and self.shift is None and self.factors is None

    def block(self, dtype: torch.dtype) -> Tensor:
        """`r` as a tensor that broadcasts to `[..., K]`; `[K]` for a plain vector."""
        base: Tensor
        if self.kind == "uniform":
            if self.mask is None:
                raise ValueError("A plain uniform reference has no block: use 1 / num_classes.")
            base = self.mask.to(dtype)
        elif self.tree is not None:
            assert self.rows is not None
            base = self.tree.rows(self.rows, self._tree_values(dtype))
            if self.mask is not None:
                base = base.masked_fill(~self.mask, 0.0)
            return base if self.factors is None else base * self.factors.to(dtype)
        else:
            assert self.values is not None
            base = self.values
            if self.kind == "rows":
                assert self.rows is not None
                base = take_rows(base, self.rows)
            base = base.to(dtype) if self.shift is None else self._softmax_terms(base, dtype)
            if self.mask is not None:
                base = base.masked_fill(~self.mask, 0.0)
        if self.scale is not None:
            base = base * self.scale.to(dtype).unsqueeze(-1)
        return base if self.factors is None else base * self.factors.to(dtype)

    def _tree_values(self, dtype: torch.dtype) -> Tensor:
        """The share of each distance, `[..., D]`; where a mask forbids the nearest it may be inf."""
        assert self.values is not None
        assert self.shift is not None
        shares = (self.values - self.shift.unsqueeze(-1)).exp()
        return (shares if self.scale is None else shares * self.scale.unsqueeze(-1)).to(dtype)

    def with_table_in(self, dtype: torch.dtype, count: int) -> Reference:
        """The same for `count` rows: a table that is no larger than they are is converted once and kept."""
        if self.kind != "rows" or self.values is None or self.shift is not None or len(self.values) > count:
            return self
        return replace(self, values=_in_dtype(self.values, dtype))

    def dense(self, batch_shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        """`r` written out, `[*batch_shape, K]`: the oracle."""
        if self.is_plain_uniform:
            return torch.full((*batch_shape, self.num_classes), 1.0 / self.num_classes, dtype=dtype, device=device)
        return self.block(dtype).expand(*batch_shape, self.num_classes)

    def at(self, indices: Tensor, dtype: torch.dtype) -> Tensor:
        """`r` at the classes `indices`, `[..., A]`, without writing out the rest."""
        base: Tensor
        if self.values is None:
            each = 1.0 if self.mask is not None else 1.0 / self.num_classes
            base = torch.full((), each, dtype=dtype, device=indices.device).expand(indices.shape)
        else:
            if self.kind == "vector":
                base = take_rows(self.values, indices)
            elif self.tree is not None:
                assert self.rows is not None
                base = take_rows(self.values, self.tree.distances(self.rows.unsqueeze(-1), indices))
            elif self.kind == "rows":
                assert self.rows is not None
                base = take_rows(self.values.reshape(-1), self.rows.unsqueeze(-1) * self.num_classes + indices)
            else:
                base = self.values.gather(-1, indices)
            base = base.to(dtype) if self.shift is None else self._softmax_terms(base, dtype)
        if self.mask is not None:
            base = base.masked_fill(~self.mask.gather(-1, indices), 0.0)
        base = base if self.scale is None else base * self.scale.to(dtype).unsqueeze(-1)
        return base if self.factors is None else base * take_rows(self.factors, indices).to(dtype)

    def _softmax_terms(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """`exp((values - shift) / temperature)`, the difference taken in the wider dtype: float32 has no 1e8 + 1."""
        assert self.shift is not None
        wide = torch.promote_types(values.dtype, dtype)
        exponents = values.to(wide) - self.shift.to(wide).unsqueeze(-1)
        return (exponents if self.temperature == 1.0 else exponents / self.temperature).exp().to(dtype)

    def restricted(self, mask: Tensor, in_logarithms: bool) -> tuple[Reference, Tensor]:
        """One of labels or a prior over the legal classes alone, renormalised, and where any has a share, `[...]`.

        In logarithms legal classes far from the label keep their shares however small those were among all classes.
        Where no legal class has any, the reference is 0.

        Args:
            mask: bool `[..., K]`, True = legal.
            in_logarithms: whether the values are logarithms.
        """
        assert self.values is not None
        if not in_logarithms:
            masked = Reference(self.num_classes, self.kind, self.values, self.rows, mask)
            mass = masked.block(self.values.dtype).sum(-1)
            has_mass = mass > 0
            return replace(masked, scale=torch.where(has_mass, 1 / mass, 0.0)), has_mass
        if self.rows is None:
            logarithms = self.values
        else:
            table = self.values if self.tree is None else self.values.expand(*self.rows.shape, -1)
            logarithms = take_rows(table, self.rows) if self.tree is None else self.tree.rows(self.rows, table)
        legal = logarithms.masked_fill(~mask, -torch.inf)
        largest = legal.amax(-1)
        has_mass = largest > -torch.inf
        shift = torch.where(has_mass, largest, 0.0)
        scale = 1 / torch.where(has_mass, (legal - shift.unsqueeze(-1)).exp().sum(-1), 1.0)
        return replace(self, mask=mask, shift=shift, scale=scale, total=None), has_mass

    def entropy(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """`-sum_k r(k) log r(k)` in nats, broadcasting over the batch; from `[K]` or `[R, K]` where that is all."""
        if self.kind == "uniform":
            if self.scale is None:
                return torch.full((), self.num_classes, dtype=dtype, device=device).log()
            return -self.scale.to(dtype).log()
        shared = self.mask is None and self.kind in ("vector", "rows")
        values = self.values.to(dtype) if shared and self.values is not None else self.block(dtype)
        plogp: Tensor = torch.special.xlogy(values, values)
        entropy = -plogp.sum(-1)
        return take_rows(entropy, self.rows) if shared and self.rows is not None else entropy

    def mass(self) -> Tensor | None:
        """Each row's sum, broadcasting over the batch; None means 1 everywhere."""
        return self.total

    def to(self, device: torch.device | str) -> Reference:
        """The same reference on another device."""
        dtype = weight_dtype(torch.device(device))

        def move(tensor: Tensor) -> Tensor:
            # A float64 tensor is an error on a device that lacks it.
            return tensor.to(device, dtype) if tensor.dtype == torch.float64 else tensor.to(device)

        return self._map(move, shared=move)

    def weight_classes(self, weights: Tensor) -> Reference:
        """`r(k) · weights[k]`, which no longer sums to 1."""
        if self.shift is not None:
            weighted = replace(self, factors=weights if self.factors is None else self.factors * weights)
        elif self.values is None:
            values = weights if self.mask is not None else weights / self.num_classes
            weighted = replace(self, kind="vector", values=values)
        else:
            weighted = replace(self, values=self.values * weights)
        return replace(weighted, total=weighted.block(weights.dtype).sum(-1))

    def index(self, select: _Select) -> Reference:
        """Apply `select` to what belongs to single rows; vectors and kernels are shared by all rows."""
        return self._map(select, shared=None)

    def joins(self, other: Reference) -> bool:
        """Whether the two differ only in what belongs to single rows, so that `cat` can join them."""
        none: dict[str, Any] = dict.fromkeys(("rows", "mask", "scale", "shift", "total"))
        if self.kind in ("dense", "logits"):
            none["values"] = None
        given = [[getattr(one, name) is None for name in none] for one in (self, other)]
        return given[0] == given[1] and replace(self, **none) == replace(other, **none)

    @staticmethod
    def cat(references: Sequence[Reference], dim: int) -> Reference:
        """References that join each other, joined along a batch axis."""
        first = references[0]
        joined: dict[str, Any] = {
            name: torch.cat([getattr(one, name) for one in references], dim) for name in first.row_names
        }
        return replace(first, **joined)

    @property
    def row_names(self) -> tuple[str, ...]:
        """The fields that belong to single rows; all other tensors are shared by all rows."""
        names: tuple[str, ...] = ("rows", "mask", "scale", "shift")
        names += ("values",) if self.kind in ("dense", "logits") else ()
        one_for_all = self.kind == "vector" and isinstance(self.total, Tensor) and not self.total.ndim
        names += () if one_for_all else ("total",)
        return tuple(name for name in names if getattr(self, name) is not None)

    def _map(self, per_row: _Select, shared: _Select | None) -> Reference:
        # Spelled out and not by `row_names`: every update cuts a minibatch out of a target.
        values_per_row = self.kind in ("dense", "logits")
        one_for_all = self.kind == "vector" and isinstance(self.total, Tensor) and not self.total.ndim

        def for_all(tensor: Tensor) -> Tensor:
            return tensor if shared is None else shared(tensor)

        return Reference(
            self.num_classes,
            self.kind,
            None if self.values is None else (per_row if values_per_row else for_all)(self.values),
            None if self.rows is None else per_row(self.rows),
            None if self.mask is None else per_row(self.mask),
            None if self.scale is None else per_row(self.scale),
            None if self.shift is None else per_row(self.shift),
            self.temperature,
            None if self.total is None else (for_all if one_for_all else per_row)(self.total),
            self.tree if self.tree is None or shared is None else self.tree.map(shared),
            None if self.factors is None else for_all(self.factors),
        )


@dataclass(frozen=True, eq=False)
class Target(ComparedByFields):
    """A distribution over the last axis' `num_classes` classes, for any leading batch shape `[...]`.

        q = sum_i atom_weights_i · onehot(atom_indices_i) + background_weight · reference

    Atoms may repeat (they add up), weights may be negative (negative smoothing) and the mass need not be 1. A target
    is a constant: no gradient flows into it. The builders of `rlsmooth.targets` make targets; losses read them. Targets
    are values: equal where their fields are, safe to load with `torch.load(weights_only=True)`, and pytrees of what
    belongs to single rows, so that `torch.func.vmap` takes them.

    Attributes:
        num_classes: `K`, the number of classes.
        atom_indices: int64 `[..., A]`, with any `A >= 0`.
        atom_weights: float64 `[..., A]` (float32 on devices without float64).
        background_weight: float64 `[...]`, or None where there is no background.
        reference: what the background weighs, or None where there is no background.
        is_positive_probabilities: whether `q` is known to be `reference.values` itself and above 0 everywhere, so that
            no loss has to look for `0 · inf`. Only `written_out(find_positive=True)` finds that out.
        weights_may_cancel: False where no atom is known to take off what the background adds (no weight is below 0), so
            that no loss has to look for `inf - inf`.

    Examples:
        >>> import torch
        >>> from rlsmooth.targets import uniform
        >>> uniform(torch.tensor([2]), 4, alpha=0.2).dense()
        tensor([[0.0500, 0.0500, 0.8500, 0.0500]])
    """

    num_classes: int
    atom_indices: Tensor
    atom_weights: Tensor
    background_weight: Tensor | None = None
    reference: Reference | None = None
    is_positive_probabilities: bool = False
    weights_may_cancel: bool = True

    def __post_init__(self) -> None:
        if self.atom_indices.shape != self.atom_weights.shape or self.atom_indices.ndim == 0:
            raise ValueError(
                f"atom_indices {tuple(self.atom_indices.shape)} and atom_weights {tuple(self.atom_weights.shape)} must "
                "have one shape [..., A]."
            )
        if (self.background_weight is None) != (self.reference is None):
            raise ValueError("background_weight and reference go together: give both or neither.")

    @property
    def batch_shape(self) -> torch.Size:
        """The leading shape `[...]`."""
        return self.atom_indices.shape[:-1]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.atom_indices.device

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """`q` written out as `[..., K]`. It is the oracle of tests and plots; no loss needs it.

        Args:
            dtype: of the result; the sum itself is made in the weights' dtype.
        """
        total = self._scattered(self.atom_weights)
        if self.background_weight is not None and self.reference is not None:
            reference = self.reference.dense(self.batch_shape, total.dtype, self.device)
            background = self.background_weight.unsqueeze(-1) * reference
            total = total + background if is_traced() else total.add_(background)
        if self.weights_may_cancel:
            at_atoms = self.at_atoms()
            places = self.atom_indices
            total = total.scatter(-1, places, at_atoms) if is_traced() else total.scatter_(-1, places, at_atoms)
        return total.to(dtype)

    def _scattered(self, values: Tensor) -> Tensor:
        """The sums of `values` `[..., A]` by the atoms' classes, `[..., K]`."""
        zeros = values.new_zeros((*self.batch_shape, self.num_classes))
        places = self.atom_indices
        return zeros.scatter_add(-1, places, values) if is_traced() else zeros.scatter_add_(-1, places, values)

    def written_out(self, dtype: torch.dtype = torch.float32, *, find_positive: bool = False) -> Target:
        """The same target as one dense tensor: where classes are few, a loss reads that faster than three small ones.

        The label is then no atom any more, only the most probable class.

        Args:
            dtype: of the probabilities that are kept.
            find_positive: read whether all of them are above 0, which waits for the device and lets losses save steps.
        """
        dense = self.dense(dtype)
        positive = find_positive and bool((dense > 0).all())
        none = self.atom_indices[..., :0]
        one = torch.ones((), dtype=dtype, device=self.device).expand(self.batch_shape)
        mass = dense.sum(-1, dtype=weight_dtype(self.device))
        reference = Reference(self.num_classes, "dense", dense, total=mass)
        return Target(self.num_classes, none, none.to(dtype), one, reference, positive)

    def at_atoms(self) -> Tensor:
        """`q` at the atoms' classes, `[..., A]`, without writing out the rest.

        What atoms leave of the background, or of each other, is 0 where it is no more than rounding: the label of
        `uniform(alpha=1, spread="others")` has no probability, also once mixed or weighed.
        """
        weights = self._sums_of_classes(self.atom_weights)
        sizes = self._sums_of_classes(self.atom_weights.abs())
        if self.background_weight is not None and self.reference is not None:
            background = self.background_weight.unsqueeze(-1) * self.reference.at(self.atom_indices, weights.dtype)
            weights, sizes = weights + background, sizes + background.abs()
        if not self.weights_may_cancel:
            return weights
        return torch.where(weights.abs() <= _ROUNDING * torch.finfo(weights.dtype).eps * sizes, 0.0, weights)

    def _sums_of_classes(self, values: Tensor) -> Tensor:
        """For each atom the sum of `values` `[..., A]` over the atoms of its class."""
        count = values.shape[-1]
        if count == 1:
            return values
        if count * count <= self.num_classes:
            same = self.atom_indices.unsqueeze(-1) == self.atom_indices.unsqueeze(-2)  # [..., A, A]
            return torch.where(same, values.unsqueeze(-2), 0.0).sum(-1)
        return self._scattered(values).gather(-1, self.atom_indices)

    def mass(self) -> Tensor:
        """`sum_k q(k)`, `[...]`: 1 for every builder but `sparse`, to 1e-4; less or more once weighed."""
        dtype = weight_dtype(self.device)
        total = self.atom_weights.sum(-1, dtype=dtype)
        if self.background_weight is not None and self.reference is not None:
            mass, weight = self.reference.mass(), self.background_weight.to(dtype)
            total = total + (weight if mass is None else weight * mass.to(dtype))
        return total

    def entropy(self) -> Tensor:
        """`-sum_k q(k) log q(k)` in nats, `[...]`, with `0 log 0 = 0`; NaN where a weight is negative."""
        if self.background_weight is not None and self.reference is not None and not self.atom_indices.shape[-1]:
            return _entropy_of_background(self.background_weight, self.reference)
        dense = self.dense(weight_dtype(self.device))
        plogp: Tensor = torch.special.xlogy(dense, dense)
        return -plogp.sum(-1)

    def to(self, device: torch.device | str) -> Target:
        """The same target on another device."""
        goal = torch.device(device)
        dtype = weight_dtype(goal)

        def move(weights: Tensor) -> Tensor:
            return weights.to(goal, dtype)

        return Target(
            self.num_classes,
            self.atom_indices.to(goal),
            move(self.atom_weights),
            None if self.background_weight is None else move(self.background_weight),
            None if self.reference is None else self.reference.to(goal),
            weights_may_cancel=self.weights_may_cancel,
        )

    def __getitem__(self, index: Index) -> Target:
        """Index the batch as a tensor of shape `batch_shape` is indexed; classes and atoms stay whole."""
        if isinstance(index, (int, slice)) or (
            isinstance(index, Tensor) and index.dtype != torch.bool and index.ndim <= 1
        ):
            if not self.batch_shape:
                raise IndexError("This target has no batch axis to index.")
            return self.map_rows(lambda tensor: tensor[index])
        flat_size = self.batch_shape.numel()
        places = torch.arange(flat_size, device=self.device).reshape(self.batch_shape)[index]
        batch_dims = len(self.batch_shape)
        return self.map_rows(
            lambda tensor: take_rows(tensor.flatten(0, batch_dims - 1) if batch_dims else tensor.unsqueeze(0), places)
        )

    def reshape(self, *batch_shape: int) -> Target:
        """The same rows under another batch shape."""
        batch_dims = len(self.batch_shape)
        # Found on the batch alone: an atom axis of size 0 says nothing of a -1.
        shape = torch.empty(self.batch_shape, device="meta").reshape(batch_shape).shape
        return self.map_rows(lambda tensor: tensor.reshape((*shape, *tensor.shape[batch_dims:])))

    def scale(self, weights: Tensor | float) -> Target:
        """Multiply each row's `q` by `weights`, which broadcasts over the batch: the row's loss is scaled by it."""
        factor = self._weights_like("weights", weights)
        return Target(
            self.num_classes,
            self.atom_indices,
            self.atom_weights * factor.unsqueeze(-1),
            None if self.background_weight is None else self.background_weight * factor,
            self.reference,
            weights_may_cancel=self.weights_may_cancel,
        )

    def weight_classes(self, weights: Tensor) -> Target:
        """Multiply `q(k)` by `weights[k]`, as torch's `cross_entropy(weight=)` does.

        torch's mean then divides by `weights[labels].sum()`, not by the number of rows.

        Args:
            weights: `[K]`, one factor a class.

        Raises:
            ValueError: `weights` is not of shape `[K]`.
        """
        weights = from_array(weights)
        if not isinstance(weights, Tensor):
            raise TypeError(f"weights must be a tensor [K], got {type(weights).__name__}.")
        if weights.shape != (self.num_classes,):
            raise ValueError(f"weights has shape {tuple(weights.shape)}, needs ({self.num_classes},): one a class.")
        factor = weights.detach().to(self.device, self.atom_weights.dtype)
        return Target(
            self.num_classes,
            self.atom_indices,
            self.atom_weights * factor[self.atom_indices],
            self.background_weight,
            None if self.reference is None else self.reference.weight_classes(factor),
            weights_may_cancel=self.weights_may_cancel,
        )

    @staticmethod
    def mix(first: Target, second: Target, lam: Tensor | float) -> Target:
        """`lam · first + (1 - lam) · second`: mixup's targets (Zhang et al. 2018), and the mixture of two experts.

        Atoms are put side by side and equal references share one weight; where the references differ, the background
        is written out.

        Args:
            first: weighs `lam`.
            second: weighs `1 - lam`; the same classes and batch shape.
            lam: a number, or a tensor that broadcasts over the batch.

        Raises:
            ValueError: the two differ in classes or batch shape.
        """
        if first.num_classes != second.num_classes or first.batch_shape != second.batch_shape:
            raise ValueError(
                f"mix needs targets alike: first has {first.num_classes} classes and batch {tuple(first.batch_shape)}, "
                f"second {second.num_classes} and {tuple(second.batch_shape)}."
            )
        share = first._weights_like("lam", lam)
        one, two = first.scale(share), second.scale(1.0 - share)
        weight, reference = _mix_backgrounds(one, two)
        return Target(
            one.num_classes,
            torch.cat((one.atom_indices, two.atom_indices), -1),
            torch.cat((one.atom_weights, two.atom_weights), -1),
            weight,
            reference,
        )

    @staticmethod
    def cat(targets: Sequence[Target], dim: int = 0) -> Target:
        """Targets joined along a batch axis, as `torch.cat` joins tensors.

        References of one kind stay small; where they differ, the backgrounds are written out.

        Args:
            targets: at least one; of the same classes, and batch shapes that agree in all but `dim`.
            dim: the batch axis, counted from the front, or from the back if negative.

        Raises:
            TypeError: something that is no target.
            ValueError: no target, other classes, batch shapes that do not fit.

        Examples:
            >>> from rlsmooth.targets import one_hot
            >>> Target.cat([one_hot([0], 2), one_hot([1, 1], 2)]).dense()
            tensor([[1., 0.],
                    [0., 1.],
                    [0., 1.]])
        """
        targets = list(targets)
        if not targets:
            raise ValueError("targets is empty: give at least one.")
        for target in targets:
            if not isinstance(target, Target):
                raise TypeError(f"targets must hold targets, got {type(target).__name__}.")
            if target.num_classes != targets[0].num_classes:
                raise ValueError(
                    f"cat needs targets of the same classes, got {targets[0].num_classes} and {target.num_classes}."
                )
        shapes, dims = [target.batch_shape for target in targets], len(targets[0].batch_shape)
        axis = dim + dims if dim < 0 else dim
        others = {(len(shape), shape[:axis], shape[axis + 1 :]) for shape in shapes}
        if not 0 <= axis < dims or len(others) > 1:
            raise ValueError(
                f"batch shapes {[tuple(shape) for shape in shapes]} do not join along dim={dim}: all other axes must "
                "agree, and single targets have none (reshape(1) gives one)."
            )
        most = max(target.atom_indices.shape[-1] for target in targets)
        targets = [_with_atoms(target, most) for target in targets]
        backgrounds = _alike_backgrounds(targets)

        def join(parts: Sequence[Tensor]) -> Tensor:
            return torch.cat(list(parts), axis)

        first = targets[0]
        return Target(
            first.num_classes,
            join([target.atom_indices for target in targets]),
            join([target.atom_weights for target in targets]),
            None if backgrounds is None else join([weight for weight, _ in backgrounds]),
            None if backgrounds is None else Reference.cat([reference for _, reference in backgrounds], axis),
            all(target.is_positive_probabilities for target in targets),
            any(target.weights_may_cancel for target in targets),
        )

    def _weights_like(self, name: str, weights: Tensor | float) -> Tensor:
        weights = from_array(weights)
        if isinstance(weights, Tensor):
            factor = weights.detach().to(self.device, self.atom_weights.dtype)
        else:
            factor = torch.full((), weights, dtype=self.atom_weights.dtype, device=self.device)
        check_broadcast(name, factor, self.batch_shape)
        return factor.expand(self.batch_shape)

    def map_rows(self, select: Callable[[Tensor], Tensor]) -> Target:
        """The target of the rows that `select` takes from each tensor of theirs; classes and atoms must stay whole."""
        return Target(
            self.num_classes,
            select(self.atom_indices),
            select(self.atom_weights),
            None if self.background_weight is None else select(self.background_weight),
            None if self.reference is None else self.reference.index(select),
            self.is_positive_probabilities,
            self.weights_may_cancel,
        )


def _entropy_of_background(weight: Tensor, reference: Reference) -> Tensor:
    """`H(b · r) = b · H(r) - b log b · mass(r)`: no atom to add, so `r` need not be written out for every row."""
    weight = weight.to(weight_dtype(weight.device))
    if reference.kind == "dense" or reference.factors is not None:  # which may be negative: the product counts
        q = weight.unsqueeze(-1) * reference.block(weight.dtype)
        return -torch.special.xlogy(q, q).sum(-1)  # type: ignore[no-any-return]
    entropy = weight * reference.entropy(weight.dtype, weight.device)
    mass = reference.mass()
    weight_term: Tensor = torch.special.xlogy(weight, weight)
    return entropy - (weight_term if mass is None else weight_term * mass.to(weight.dtype))


def _with_atoms(target: Target, count: int) -> Target:
    """The same with `count` atoms: the new ones weigh 0 and repeat the label, which they must not change."""
    missing = count - target.atom_indices.shape[-1]
    if not missing:
        return target
    label = target.atom_indices[..., :1] if missing < count else target.dense().argmax(-1, keepdim=True)
    return replace(
        target,
        atom_indices=torch.cat((target.atom_indices, label.expand(*target.batch_shape, missing)), -1),
        atom_weights=torch.cat((target.atom_weights, target.atom_weights.new_zeros(*target.batch_shape, missing)), -1),
        is_positive_probabilities=False,
    )


def _alike_backgrounds(targets: Sequence[Target]) -> list[tuple[Tensor, Reference]] | None:
    """Weight and reference of each target's background, in one form that can be joined; None where none has any."""
    first = next((target.reference for target in targets if target.reference is not None), None)
    if first is None:
        return None
    none = any(target.reference is None for target in targets)
    alike = all(target.reference is None or target.reference.joins(first) for target in targets)
    backgrounds = []
    for target in targets:
        weight, reference, shape = target.background_weight, target.reference, target.batch_shape
        if weight is None or reference is None:
            weight, reference = target.atom_weights.new_zeros(shape), Reference(target.num_classes)
        if not alike or (none and not first.is_plain_uniform):
            values = weight.unsqueeze(-1) * reference.dense(shape, weight.dtype, weight.device)
            weight = torch.ones_like(weight)
            reference = Reference(target.num_classes, "dense", values, total=values.sum(-1))
        elif reference.total is not None and "total" in reference.row_names:
            reference = replace(reference, total=reference.total.expand(shape))
        backgrounds.append((weight, reference))
    return backgrounds


def _mix_backgrounds(one: Target, two: Target) -> tuple[Tensor | None, Reference | None]:
    if one.background_weight is None or one.reference is None:
        return two.background_weight, two.reference
    if two.background_weight is None or two.reference is None:
        return one.background_weight, one.reference
    if one.reference is two.reference or (one.reference.is_plain_uniform and two.reference.is_plain_uniform):
        return one.background_weight + two.background_weight, one.reference
    dtype = one.background_weight.dtype
    values = one.background_weight.unsqueeze(-1) * one.reference.dense(one.batch_shape, dtype, one.device)
    values = values + two.background_weight.unsqueeze(-1) * two.reference.dense(two.batch_shape, dtype, two.device)
    reference = Reference(one.num_classes, "dense", values, total=values.sum(-1))
    return torch.ones_like(one.background_weight), reference


# ---- arrays, dtypes


def is_traced() -> bool:
    """Whether torch compiles what runs, or transforms it (`torch.func`): no value can be read, no tensor changed."""
    return torch.compiler.is_compiling() or _are_functorch_transforms_active()


def from_array(values: Any) -> Any:
    """A numpy array as a tensor (a copy: it may be read-only, as a memory-mapped file's); anything else as it is.

    Recognised by what torch makes of it, so that this floor needs no numpy.
    """
    if values is None or isinstance(values, (Tensor, bool, int, float, str, list, tuple, dict)):
        return values
    try:
        if hasattr(values, "__array__"):  # a column of a table too
            return torch.as_tensor(values.__array__().copy())  # torch reads no array that is turned around
        return torch.tensor(values)
    except (TypeError, ValueError, RuntimeError):  # no array: the caller says what it wants
        return values


def check_broadcast(name: str, tensor: Tensor, batch_shape: torch.Size) -> None:
    """Raise ValueError unless `tensor` broadcasts over the batch."""
    fits = tensor.ndim <= len(batch_shape) and all(
        size in (1, goal) for size, goal in zip(reversed(tensor.shape), reversed(batch_shape), strict=False)
    )
    if not fits:
        raise ValueError(
            f"{name} of shape {tuple(tensor.shape)} does not broadcast over the batch {tuple(batch_shape)}: give one "
            "number, or one a row."
        )


_converted: dict[tuple[int, torch.dtype], tuple[weakref.ref[Tensor], Tensor]] = {}


def _in_dtype(table: Tensor, dtype: torch.dtype) -> Tensor:
    """A `[R, K]` table in `dtype`; what was converted is kept for as long as the table lives."""
    if table.dtype == dtype or is_traced() or torch.is_inference_mode_enabled():
        return table.to(dtype)
    key = id(table), dtype
    kept = _converted.get(key)
    if kept is None:
        kept = _converted[key] = weakref.ref(table, lambda _: _converted.pop(key, None)), table.to(dtype)
    return kept[1]


def take_rows(table: Tensor, rows: Tensor) -> Tensor:
    """`table[rows]`; indexing by a single number on the device would read it."""
    if rows.ndim == 1:
        return table.index_select(0, rows)
    return table.index_select(0, rows.reshape(-1)).reshape((*rows.shape, *table.shape[1:]))


def weight_dtype(device: torch.device) -> torch.dtype:
    """The dtype that weights are kept in: float64, or float32 on a device that lacks it."""
    return torch.float32 if device.type == "mps" else torch.float64
