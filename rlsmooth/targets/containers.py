"""Registration of targets with torch, so that `torch.load`, `default_collate` and pytrees take them as values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data._utils.collate import default_collate_fn_map

from rlsmooth.targets.gaussian import GaussianTarget
from rlsmooth.targets.intervals import TreeIntervals
from rlsmooth.targets.smoothing import Smoothing
from rlsmooth.targets.target import Reference, Target
from rlsmooth.targets.tree import Tree


def _as_pytree(kind: type, names_of: Callable[[Any], tuple[str, ...]]) -> None:
    """Register a class whose children are the tensors of single rows, so that `vmap` maps rows.

    What all rows share, such as a kernel, is context: it is mapped by nobody.
    """

    def flatten(value: Any) -> tuple[list[Any], tuple[tuple[str, ...], Any]]:
        names = tuple(name for name in names_of(value) if getattr(value, name) is not None)
        return [getattr(value, name) for name in names], (names, changed(value, dict.fromkeys(names)))

    def unflatten(children: Any, context: Any) -> Any:
        names, rest = context
        return changed(rest, dict(zip(names, children, strict=True)))

    def changed(value: Any, fields: dict[str, Any]) -> Any:
        made: Any = object.__new__(kind)  # unchecked: the children of a pytree may be anything
        kept = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        vars(made).update(kept, **fields)  # and nothing that was found out of other tensors
        return made

    pytree.register_pytree_node(kind, flatten, unflatten)


def _collate_targets(batch: Sequence[Target], *, collate_fn_map: object = None) -> Target:
    return Target.cat([target.reshape(1, *target.batch_shape) for target in batch])


def _collate_gaussians(batch: Sequence[GaussianTarget], *, collate_fn_map: object = None) -> GaussianTarget:
    return GaussianTarget.cat([target.with_batch_axis() for target in batch])


def _collate_smoothings(batch: Sequence[Smoothing], *, collate_fn_map: object = None) -> Smoothing:
    if any(smoothing != batch[0] for smoothing in batch):
        raise ValueError("A batch of samples needs one Smoothing: make the samples' targets, and collate those.")
    return batch[0]


# Constructors of data classes, without code of a file's own.
torch.serialization.add_safe_globals([Target, Reference, TreeIntervals, GaussianTarget, Smoothing, Tree])
_as_pytree(Target, lambda _: ("atom_indices", "atom_weights", "background_weight", "reference"))
_as_pytree(Reference, lambda reference: reference.row_names)
_as_pytree(GaussianTarget, lambda _: ("actions", "atom_weight", "background_weight"))
_as_pytree(Smoothing, lambda smoothing: ("alpha",) if isinstance(smoothing.alpha, Tensor) else ())
default_collate_fn_map.update(
    {Target: _collate_targets, GaussianTarget: _collate_gaussians, Smoothing: _collate_smoothings}
)
