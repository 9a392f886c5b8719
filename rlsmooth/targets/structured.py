"""Targets that smooth towards near classes: similarity kernels, trees, ordered classes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from rlsmooth.checks import check_choice
from rlsmooth.targets.arguments import Alpha, Labels, check_labels, to_labels, values_can_be_checked
from rlsmooth.targets.kernels import ORDINAL_SCHEMES, OrdinalScheme, is_steep, off_label_rows, ordinal_kernel
from rlsmooth.targets.labelled import around_label
from rlsmooth.targets.target import Reference, Target, is_traced, weight_dtype
from rlsmooth.targets.tree import Tree


def kernel(
    labels: Labels, kernel: Tensor, alpha: Alpha = 0.1, *, mask: Tensor | None = None, validate: bool = True
) -> Target:
    """`(1 - alpha) · onehot + alpha · row`, where `row` is the label's row of a similarity between classes.

    The kernel's diagonal counts as 0 and its rows are normalised to 1, so that exactly `alpha` leaves the label. Under
    a mask the row is restricted to the legal classes; where it has nothing there, the target is hard.

    Args:
        labels: int64 `[...]`.
        kernel: float `[K, K]`, finite and non-negative; need not be symmetric.
        alpha: at most 1; a number, or a tensor that broadcasts over the batch.
        mask: bool, broadcasts to `[..., K]`; True = legal.
        validate: check labels, alpha and mask, which waits for the device. The kernel is always checked: to use one
            many times give it to `Smoothing`, which prepares it once.

    Raises:
        TypeError: a kernel that is not floating-point, and as `uniform`.
        ValueError: a kernel that is not square, has a negative or non-finite entry or an empty row, and as `uniform`.

    Examples:
        >>> similarity = torch.tensor([[9.0, 3.0, 1.0], [1.0, 9.0, 1.0], [1.0, 3.0, 9.0]])
        >>> kernel(torch.tensor([0]), similarity, alpha=0.2).dense()
        tensor([[0.8000, 0.1500, 0.0500]])
    """
    steep = mask is not None and is_steep(off_label_rows(kernel, in_logarithms=True))
    rows = off_label_rows(kernel, in_logarithms=steep)
    return from_rows(to_labels(labels), rows, alpha, mask=mask, validate=validate, in_logarithms=steep)


def hierarchical(
    labels: Labels | str | Sequence[str],
    tree: Tree,
    alpha: Alpha | None = 0.1,
    decay: float = 1.0,
    *,
    mask: Tensor | None = None,
    validate: bool = True,
) -> Target:
    """Smoothing along a tree: off the label, `alpha` is shared in proportion to `exp(-decay · d(label, j))`.

    `d` is the number of edges between two leaves. With `alpha=None` the target is the Boltzmann form over all classes,
    `exp(-decay · d) / sum`, whose mass on the label follows from the tree (Bertinetto et al. 2020).

    Args:
        labels: int64 `[...]`, numbered as `tree.class_names` says, or those names.
        tree: whose leaves are the classes.
        alpha: at most 1; a number, or a tensor that broadcasts over the batch; None: the Boltzmann form.
        decay: per edge, at least 0; 0 is `uniform` with `spread="others"`.
        mask: bool, broadcasts to `[..., K]`; True = legal.
        validate: check values, which waits for the device.

    Raises:
        TypeError: `tree` is no `Tree`, and as `uniform`.
        ValueError: a negative decay, and as `uniform`.

    Examples:
        >>> tree = Tree.from_nested({"left": ["a", "b"], "right": ["c"]}, class_names=["a", "c", "b"])
        >>> hierarchical(torch.tensor([0]), tree, alpha=0.1).dense()
        tensor([[0.9000, 0.0119, 0.0881]])
    """
    if not isinstance(tree, Tree):
        raise TypeError(f"tree must be a rlsmooth.targets.Tree, got {type(tree).__name__}: see Tree.from_nested.")
    labels = tree.to_labels(labels)
    if values_can_be_checked(validate):
        check_labels(labels, tree.num_classes)  # before they are looked up
    reference, in_logarithms = tree.reference(labels, decay, include_label=alpha is None, masked=mask is not None)
    return around_label(labels, reference, alpha, mask, validate=validate, in_logarithms=in_logarithms)


def ordinal(
    labels: Labels,
    num_classes: int,
    alpha: Alpha | None = 0.1,
    scheme: OrdinalScheme = "exponential",
    *,
    width: float = 2.0,
    concentration: float = 20.0,
    decay: float = 1.0,
    power: float = 2.0,
    edge: Literal["all", "half"] = "all",
    mask: Tensor | None = None,
    validate: bool = True,
) -> Target:
    """Smoothing for ordered classes: `(1 - alpha) · onehot + alpha · f_label`, with `f_label` 0 at the label.

    `ordinal_kernel` has the schemes and their formulas. With `alpha=None` the target is the scheme's whole
    distribution, label included.

    Args:
        labels: int64 `[...]`.
        num_classes: `K`.
        alpha: at most 1; a number, or a tensor that broadcasts over the batch; None: the whole distribution.
        scheme: `"adjacent"`, `"triangular"`, `"binomial"`, `"poisson"`, `"beta"` or `"exponential"`.
        width: of `"triangular"`, in classes; above 1.
        concentration: of `"beta"`, at least 2 (where it is flat).
        decay: of `"exponential"`, at least 0.
        power: of `"exponential"`, above 0.
        edge: of `"adjacent"`: `"all"` or `"half"` of the mass for the only neighbour of the first and the last class.
        mask: bool, broadcasts to `[..., K]`; True = legal.
        validate: check values, which waits for the device.

    Raises:
        TypeError: as `uniform`.
        ValueError: as `ordinal_kernel` and `uniform`.

    Examples:
        >>> ordinal(torch.tensor([0]), 4, 0.2, "adjacent").dense()
        tensor([[0.8000, 0.2000, 0.0000, 0.0000]])
        >>> ordinal(torch.tensor([1]), 4, None, "exponential").dense()  # SORD
        tensor([[0.2097, 0.5701, 0.2097, 0.0104]])
    """
    arguments = num_classes, scheme, alpha is None, width, concentration, decay, power, edge
    steep = mask is not None and ordinal_is_steep(*arguments)
    rows = cached_ordinal_kernel(*arguments, steep)
    return from_rows(to_labels(labels), rows, alpha, mask=mask, validate=validate, in_logarithms=steep)


def cached_ordinal_kernel(
    num_classes: int,
    scheme: OrdinalScheme,
    include_label: bool,
    width: float,
    concentration: float,
    decay: float,
    power: float,
    edge: Literal["all", "half"],
    in_logarithms: bool,
) -> Tensor:
    """`ordinal_kernel`, made once for each set of arguments: training asks for the same table again and again."""
    check_choice("scheme", scheme, ORDINAL_SCHEMES)  # before the cache, which could not look it up
    check_choice("edge", edge, ("all", "half"))
    arguments = width, concentration, decay, power, edge, in_logarithms
    return _cached_ordinal_kernel(num_classes, scheme, include_label, *arguments)


def ordinal_is_steep(
    num_classes: int,
    scheme: OrdinalScheme,
    include_label: bool,
    width: float,
    concentration: float,
    decay: float,
    power: float,
    edge: Literal["all", "half"],
) -> bool:
    """`is_steep` of an ordinal kernel, found once for each set of arguments; of what is compiled, always."""
    check_choice("scheme", scheme, ORDINAL_SCHEMES)
    check_choice("edge", edge, ("all", "half"))
    if is_traced():
        return True
    return _ordinal_is_steep(num_classes, scheme, include_label, width, concentration, decay, power, edge)


@functools.lru_cache(maxsize=64, typed=True)
def _ordinal_is_steep(*arguments: Any) -> bool:
    return is_steep(_cached_ordinal_kernel(*arguments, in_logarithms=True))


# What `torch.compiler.assume_constant_result` does (a table of constants has nothing in it to compile). Calling that
# would load the whole compiler, a second and more, whenever this library is imported.
vars(cached_ordinal_kernel)["_dynamo_marked_constant"] = True


@functools.lru_cache(maxsize=64, typed=True)  # typed: 3.0 is no number of classes, whether or not 3 was one
def _cached_ordinal_kernel(
    num_classes: int,
    scheme: OrdinalScheme,
    include_label: bool,
    width: float,
    concentration: float,
    decay: float,
    power: float,
    edge: Literal["all", "half"],
    in_logarithms: bool,
) -> Tensor:
    # Inside the compiler's constant folding and the first caller's inference mode alike, a plain tensor is wanted.
    with torch.inference_mode(False):
        return ordinal_kernel(
            num_classes,
            scheme,
            include_label=include_label,
            width=width,
            concentration=concentration,
            decay=decay,
            power=power,
            edge=edge,
            in_logarithms=in_logarithms,
        )


def from_rows(
    labels: Tensor,
    rows: Tensor,
    alpha: Alpha | None,
    *,
    mask: Tensor | None,
    validate: bool,
    in_logarithms: bool = False,
) -> Target:
    """`(1 - alpha) · onehot + alpha · rows[label]`, alpha None: `rows[label]` alone.

    The rows are normalised, or `in_logarithms`, for masks: each row up to a constant.
    """
    table = rows.to(labels.device, weight_dtype(labels.device))
    classes = table.shape[0]
    if classes == 1:  # no other class to smooth to
        table = torch.zeros_like(table) if in_logarithms else torch.ones_like(table)
    reference = Reference(classes, "rows", table, labels)
    return around_label(labels, reference, alpha, mask, validate=validate, in_logarithms=in_logarithms)
