"""Targets made from labels: hard, uniform, prior, mixtures of parents, given atoms."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlsmooth.checks import check_choice, check_positive_int
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
    kind_of,
    rest_of_alpha,
    to_labels,
    values_can_be_checked,
)
from rlsmooth.targets.kernels import is_steep
from rlsmooth.targets.target import Reference, Target, from_array, weight_dtype


def one_hot(labels: Labels, num_classes: int, *, mask: Tensor | None = None, validate: bool = True) -> Target:
    """The hard target: all on the label.

    Args:
        labels: int64 `[...]`.
        num_classes: `K`.
        mask: bool `[..., K]`, True = legal; only used to check that the labels are legal.
        validate: check values, which waits for the device.

    Raises:
        TypeError: labels that are not whole numbers, a mask that is not bool.
        ValueError: a label outside `[0, K)` or illegal under its mask, a mask row that allows nothing.

    Examples:
        >>> one_hot(torch.tensor([1]), 3).dense()
        tensor([[0., 1., 0.]])
    """
    labels = to_labels(labels)
    if values_can_be_checked(validate):
        check_labels(labels, num_classes)
        if mask is not None:
            check_mask(broadcast_mask(mask, labels.shape, num_classes), labels)
    weight = torch.ones((), dtype=weight_dtype(labels.device), device=labels.device)
    return Target(num_classes, labels.unsqueeze(-1), weight.expand(*labels.shape, 1))


def uniform(
    labels: Labels,
    num_classes: int,
    alpha: Alpha = 0.1,
    spread: Literal["all", "others"] = "all",
    *,
    mask: Tensor | None = None,
    validate: bool = True,
) -> Target:
    """Label smoothing (Szegedy et al. 2016).

    `spread="all"` is PyTorch's and timm's: `(1 - alpha) · onehot + alpha / K`. `spread="others"` keeps `1 - alpha` on
    the label and puts `alpha / (K - 1)` on each other class; at alpha it equals `"all"` at `alpha · K / (K - 1)`.
    Under a mask `K` becomes the row's number of legal classes; with one legal class the target is hard.

    Args:
        labels: int64 `[...]`.
        num_classes: `K`.
        alpha: at most 1; a number, or a tensor that broadcasts over the batch. Below 0 is negative smoothing.
        spread: over `"all"` classes or the `"others"`.
        mask: bool, broadcasts to `[..., K]`; True = legal.
        validate: check values, which waits for the device.

    Raises:
        TypeError: labels that are not whole numbers, a mask that is not bool.
        ValueError: alpha above 1 or of a wrong shape, an unknown spread, a label out of range or illegal under its
            mask, a mask row that allows nothing.

    Examples:
        >>> uniform(torch.tensor([0]), 4, alpha=0.3, spread="others").dense()
        tensor([[0.7000, 0.1000, 0.1000, 0.1000]])
    """
    labels = to_labels(labels)
    check_choice("spread", spread, ("all", "others"))
    check_positive_int("num_classes", num_classes)
    check_values = values_can_be_checked(validate)
    check_alpha(alpha, labels.shape, values=check_values)
    if mask is not None:
        mask = broadcast_mask(mask, labels.shape, num_classes)
    if check_values:
        check_labels(labels, num_classes)
        if mask is not None:
            check_mask(mask, labels)
    level, places = broadcast_alpha(alpha, labels), labels.unsqueeze(-1)
    background, on_label = level, rest_of_alpha(alpha, level, places)
    if mask is None:
        reference = Reference(num_classes)
        each: Tensor | float = 1 / num_classes
        if spread == "others":
            background = level * (num_classes / (num_classes - 1) if num_classes > 1 else 0.0)
    else:
        legal, reference = uniform_over(mask)
        assert reference.scale is not None
        each = reference.scale
        if spread == "others":
            background = torch.where(legal > 1, level * legal / (legal - 1), 0.0)
    if spread == "others":
        # The background's share on the label is taken off exactly, so that alpha 1 leaves 0 there and not -1e-17.
        taken = (background * each).unsqueeze(-1)
        on_label = torch.where((background == 0).unsqueeze(-1), 1.0, on_label) - taken
    may_cancel = spread == "others" or not _is_share(alpha)
    return Target(num_classes, places, on_label, background, reference, weights_may_cancel=may_cancel)


def uniform_over(mask: Tensor) -> tuple[Tensor, Reference]:
    """How many classes a mask, bool `[..., K]`, leaves each row, and the even distribution over them."""
    legal = mask.sum(-1, dtype=torch.int32).to(weight_dtype(mask.device))  # a sum in int64 writes all of that
    return legal, Reference(mask.shape[-1], mask=mask, scale=legal.reciprocal())


def prior(
    labels: Labels, prior: Tensor, alpha: Alpha = 0.1, *, mask: Tensor | None = None, validate: bool = True
) -> Target:
    """`(1 - alpha) · onehot + alpha · prior`: smoothing towards how frequent the classes are.

    Under a mask the prior is restricted to the legal classes and renormalised there.

    Args:
        labels: int64 `[...]`.
        prior: float `[K]`, sums to 1 within 1e-4; used as given.
        alpha: at most 1; a number, or a tensor that broadcasts over the batch.
        mask: bool, broadcasts to `[..., K]`; True = legal.
        validate: check values, which waits for the device.

    Raises:
        TypeError: labels that are not whole numbers, a prior that is not floating-point, a mask that is not bool.
        ValueError: a prior that is not `[K]` or does not sum to 1, a mask row whose legal classes all have prior 0, and
            as `uniform`.

    Examples:
        >>> prior(torch.tensor([0]), torch.tensor([0.5, 0.25, 0.25]), alpha=0.2).dense()
        tensor([[0.9000, 0.0500, 0.0500]])
    """
    labels = to_labels(labels)
    prior = from_array(prior)
    if not isinstance(prior, Tensor) or not prior.is_floating_point():
        kind = str(prior.dtype) if isinstance(prior, Tensor) else type(prior).__name__
        raise TypeError(
            f"prior must be a floating-point tensor [K], got {kind}: for counts give counts / counts.sum()."
        )
    if prior.ndim != 1:
        raise ValueError(f"prior has shape {tuple(prior.shape)}, needs [K]: for one distribution a row use from_probs.")
    if values_can_be_checked(validate):
        check_probabilities("prior", prior, "give counts / counts.sum()")
    steep = mask is not None and (not values_can_be_checked(validate) or is_steep(prior.detach().log()))
    return from_prior(labels, prior, alpha, mask=mask, validate=validate, in_logarithms=steep)


def from_prior(
    labels: Tensor, prior: Tensor, alpha: Alpha, *, mask: Tensor | None, validate: bool, in_logarithms: bool
) -> Target:
    """`prior` of a prior that is checked; `in_logarithms` where a mask may leave too little of it."""
    vector = prior.detach().to(weight_dtype(labels.device) if labels.device.type == "mps" else torch.float64)
    if in_logarithms:
        vector = vector.log()
    vector = vector.to(labels.device, weight_dtype(labels.device))
    reference = Reference(len(vector), "vector", vector, total=vector.sum() if mask is None else None)
    return around_label(
        labels, reference, alpha, mask, validate=validate, empty_is_an_error=True, in_logarithms=in_logarithms
    )


def around_label(
    labels: Tensor,
    reference: Reference,
    alpha: Alpha | None,
    mask: Tensor | None,
    *,
    validate: bool,
    empty_is_an_error: bool = False,
    in_logarithms: bool = False,
) -> Target:
    """`(1 - alpha) · onehot + alpha · reference`; alpha None is 1 with the label as a weightless atom.

    Where a mask leaves the reference nothing, nothing can be smoothed to, so the target is hard. With `in_logarithms`
    the reference's values are logarithms, under a mask that may leave very little.
    """
    num_classes = reference.num_classes
    check_values = values_can_be_checked(validate)
    if alpha is None:
        alpha = 1.0
    check_alpha(alpha, labels.shape, values=check_values)
    if mask is not None:
        mask = broadcast_mask(mask, labels.shape, num_classes)
    if check_values:
        check_labels(labels, num_classes)
        if mask is not None:
            check_mask(mask, labels)
    background, places = broadcast_alpha(alpha, labels), labels.unsqueeze(-1)
    if mask is None:
        on_label = rest_of_alpha(alpha, background, places)
    else:
        reference, has_mass = reference.restricted(mask, in_logarithms)
        if check_values and empty_is_an_error:
            bad = first_row(~has_mass)
            if bad is not None:
                raise ValueError(f"mask{at(bad)} leaves only classes of prior 0: give them some prior.")
        background = torch.where(has_mass, background, 0.0)
        on_label = (1 - background).unsqueeze(-1)
    return Target(num_classes, places, on_label, background, reference, weights_may_cancel=not _is_share(alpha))


def _is_share(alpha: Alpha) -> bool:
    """Whether alpha is known, without reading a tensor, to leave no weight below 0."""
    return not isinstance(alpha, Tensor) and 0 <= alpha <= 1


def mixture(
    parents: Tensor,
    weights: Tensor | None = None,
    num_classes: int | None = None,
    alpha: Alpha = 0.0,
    *,
    mask: Tensor | None = None,
    validate: bool = True,
) -> Target:
    """Several labels a row: hybrids of species, mixup, experts who disagree.

    `1 - alpha` is shared by the parents as `weights` say; `alpha` goes evenly to the (legal) classes that are not
    parents. Where there is no such class, the parents keep all.

    Args:
        parents: int64 `[..., P]`; a parent may stand twice.
        weights: float `[..., P]` or `[P]`, rows sum to 1 within 1e-4. Default: even.
        num_classes: `K`.
        alpha: at most 1; a number, or a tensor that broadcasts over the batch.
        mask: bool, broadcasts to `[..., K]`; True = legal.
        validate: check values, which waits for the device.

    Raises:
        TypeError: parents that are not whole numbers, no `num_classes`, a mask that is not bool.
        ValueError: weights that don't fit or don't sum to 1, a parent out of range or illegal under its mask, and as
            `uniform`.

    Examples:
        >>> mixture(torch.tensor([[0, 2]]), torch.tensor([[0.25, 0.75]]), 4, alpha=0.2).dense()
        tensor([[0.2000, 0.1000, 0.6000, 0.1000]])
    """
    parents = to_labels(parents, "parents")
    if num_classes is None:
        raise TypeError("num_classes is missing: mixture can't infer it from the parents.")
    check_positive_int("num_classes", num_classes)
    if parents.ndim == 0 or parents.shape[-1] == 0:
        raise ValueError(f"parents has shape {tuple(parents.shape)}, needs [..., P] with at least one parent.")
    batch_shape, num_parents = parents.shape[:-1], parents.shape[-1]
    check_values = values_can_be_checked(validate)
    check_alpha(alpha, batch_shape, values=check_values)
    dtype = weight_dtype(parents.device)
    if weights is None:
        shares = torch.full((), 1 / num_parents, dtype=dtype, device=parents.device).expand(parents.shape)
    else:
        weights = from_array(weights)
        if not isinstance(weights, Tensor):
            raise TypeError(f"weights must be a floating-point tensor [..., P], got {type(weights).__name__}.")
        if not weights.is_floating_point() or weights.shape not in (parents.shape, (num_parents,)):
            raise ValueError(
                f"weights ({weights.dtype} {tuple(weights.shape)}) must be floating-point and have the parents' shape "
                f"{tuple(parents.shape)} or ({num_parents},)."
            )
        if check_values:
            check_probabilities("weights", weights, "give weights / weights.sum(-1, keepdim=True)")
        shares = weights.detach().to(parents.device, dtype).expand(parents.shape)
    if mask is not None:
        mask = broadcast_mask(mask, batch_shape, num_classes)
    if check_values:
        check_labels(parents, num_classes, "parents")
        if mask is not None:
            check_mask(mask, parents, "parents")
    same = parents.unsqueeze(-1) == parents.unsqueeze(-2)  # [..., P, P]
    first_of_its_kind = ~same.tril(-1).any(-1)
    classes = (
        torch.full((), float(num_classes), dtype=dtype, device=parents.device).expand(batch_shape)
        if mask is None
        else mask.sum(-1).to(dtype)
    )
    others = classes - first_of_its_kind.sum(-1)
    level = broadcast_alpha(alpha, classes)
    per_other = torch.where(others > 0, level / others, 0.0)  # what each class that is no parent gets
    reference = Reference(num_classes, mask=mask, scale=None if mask is None else 1 / classes)
    background = per_other * classes
    # The background's share on a parent is taken off exactly, so that a parent of weight 0 keeps 0 and not -1e-17.
    from_background = (background * (1 / classes)).unsqueeze(-1)
    atoms = torch.where(others > 0, 1 - level, 1.0).unsqueeze(-1) * shares - first_of_its_kind * from_background
    return Target(num_classes, parents, atoms, background, reference)


def sparse(indices: Tensor, weights: Tensor, num_classes: int, *, validate: bool = True) -> Target:
    """A target that is given as atoms: a search's visited actions, a teacher's top k.

    The weights are used as they are: what they sum to is the row's mass.

    Args:
        indices: int64 `[..., A]`; repeated indices add up. Fill short rows up with weight 0.
        weights: float `[..., A]`.
        num_classes: `K`.
        validate: check values, which waits for the device.

    Raises:
        TypeError: indices that are not whole numbers, weights that are not floating-point.
        ValueError: shapes that differ, an index outside `[0, K)`, a weight that is not finite.

    Examples:
        >>> sparse(torch.tensor([[3, 1]]), torch.tensor([[0.75, 0.25]]), 4).dense()
        tensor([[0.0000, 0.2500, 0.0000, 0.7500]])
    """
    indices, weights = to_labels(indices, "indices"), from_array(weights)
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        raise TypeError(f"weights must be a floating-point tensor, got {kind_of(weights)}.")
    if indices.shape != weights.shape or indices.ndim == 0:
        raise ValueError(
            f"indices {tuple(indices.shape)} and weights {tuple(weights.shape)} must have one shape [..., A]."
        )
    check_positive_int("num_classes", num_classes)
    if values_can_be_checked(validate):
        check_labels(indices, num_classes, "indices")
        bad = first_row(~weights.isfinite())
        if bad is not None:
            raise ValueError(f"weights{list(bad)}={float(weights[bad])!r} must be finite.")
    return Target(num_classes, indices, weights.detach().to(indices.device, weight_dtype(indices.device)))
