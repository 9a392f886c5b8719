"""From demonstrated actions to targets: one recipe for each group of action components, and the KL term's reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from rlsmooth.agents.heads import ActionHead, ActionTarget, Batch, CategoricalHead
from rlsmooth.targets import GaussianTarget, Smoothing, Target, Tree, as_smoothing, from_probs, gaussian

__all__ = [
    "ReferenceLike",
    "Smoothings",
    "action_target",
    "alpha_in_force",
    "as_references",
    "as_smoothings",
    "kl_references",
    "of_rows",
    "refuse_row_alphas",
    "target_matrices",
    "written_out",
]

Smoothings: TypeAlias = tuple[Smoothing, ...]
"""One for each group of the head."""
ReferenceLike: TypeAlias = str | Tensor | Tree

DENSE_CLASSES = 32
"""Up to so many classes a smoothed target is kept written out: faster to compare with, at 4 bytes a class and row."""
DRAWN_CLASSES = 64
MATRICES = 8


def as_smoothings(value: Any, head: ActionHead) -> Smoothings:
    """What a `smoothing=` argument means for `head`.

    Args:
        value: a number, `"lin_…"` or `Smoothing` for all components, or a sequence of such, one a MultiDiscrete
            dimension.
        head: of the action space.

    Raises:
        TypeError: it is none of these.
        ValueError: a sequence for another kind of space or of another length; a Box with another reference than the
            default one; a reference made for another number of classes.
    """
    groups = _group_sizes(head)
    if isinstance(value, (float, int, str, Smoothing)):
        recipes = (as_smoothing(value),) * len(groups)
    elif isinstance(value, Sequence):
        if not (isinstance(head, CategoricalHead) and head.kind == "multi_discrete"):
            raise ValueError("smoothing is a sequence, which only a MultiDiscrete action space can use: give one.")
        if len(value) != len(groups):
            raise ValueError(f"smoothing has {len(value)} entries, but the action space {len(groups)} dimensions.")
        recipes = tuple(as_smoothing(entry) for entry in value)
    else:
        raise TypeError(
            f'smoothing must be a number, "lin_…", a Smoothing or a sequence of such, got {type(value).__name__}.'
        )
    for recipe, size in zip(recipes, groups, strict=True):
        if size is None:
            if recipe.alpha is None or not (isinstance(recipe.reference, str) and recipe.reference == "uniform"):
                raise ValueError(
                    "smoothing of a Box action space is towards a broad Gaussian: give alpha, and reference_std for it."
                )
        elif not recipe.is_off and _alpha_fits_any_batch(recipe):
            recipe(torch.zeros(1, dtype=torch.int64), size)  # makes the recipe's table, or says why it does not fit
    return recipes


def as_references(value: Any, head: ActionHead) -> Smoothings | None:
    """What a `reference=` argument means: recipes whose targets are the reference alone, or None for the uniform one.

    Raises:
        TypeError: it is nothing that `Smoothing(reference=)` takes.
        ValueError: a Box, whose reference is set by `reference_std`; a sequence that does not fit; see `Smoothing`.
    """
    if value is None:
        return None
    if not isinstance(head, CategoricalHead):
        raise ValueError("reference of a Box action space is a Gaussian: leave it out and use reference_std.")
    groups = _group_sizes(head)
    if isinstance(value, Sequence) and not isinstance(value, str):
        if head.kind != "multi_discrete" or len(value) != len(groups):
            raise ValueError(
                f"reference has {len(value)} entries: a sequence needs one for each dimension of a MultiDiscrete space."
            )
        entries = tuple(value)
    else:
        entries = (value,) * len(groups)
    recipes = tuple(Smoothing(alpha=1.0, reference=entry) for entry in entries)
    return as_smoothings(recipes if len(groups) > 1 else recipes[0], head)


def action_target(head: ActionHead, smoothings: Smoothings, batch: Batch, *, progress: float = 1.0) -> ActionTarget:
    """The target of some rows. Values were checked when the demonstrations were made; nothing waits for the device.

    With soft targets `p` it is `(1 - alpha) · p + alpha · reference`, the demonstrated action being the label that a
    kernel's or a tree's row is looked up with.

    Args:
        head: of the action space.
        smoothings: see `as_smoothings`; an alpha of one number a row must already be that of these rows.
        batch: its labels, masks and soft targets are read.
        progress: remaining, 1 at the start.
    """
    if not isinstance(head, CategoricalHead):
        alpha = smoothings[0].alpha_at(progress)
        assert alpha is not None
        return gaussian(
            batch.labels,
            alpha,
            reference_mean=head.reference_mean,
            reference_std=head.reference_std,
            validate=False,
        )
    labels, masks = head.label_groups(batch.labels), head.mask_groups(batch.masks)
    sizes = _group_sizes(head)
    targets = []
    for recipe, label, mask, size in zip(smoothings, labels, masks, sizes, strict=True):
        assert size is not None
        recipe = _for_components(recipe, label)
        if batch.probs is None:
            target = recipe(label, size, mask, progress, validate=False)
        else:
            target = _mixed(recipe, batch.probs, label, size, mask, progress)
        targets.append(target)
    return tuple(targets)


def written_out(target: ActionTarget) -> ActionTarget:
    """The same target, smoothed ones of few classes as one tensor each: made once, sliced and read often.

    It no longer tells labels and references, and making it waits for the device.
    """
    if isinstance(target, GaussianTarget):
        return target
    return tuple(
        part.written_out(find_positive=True)
        if part.reference is not None and part.num_classes <= DENSE_CLASSES
        else part
        for part in target
    )


def kl_references(head: ActionHead, references: Smoothings | None, batch: Batch) -> tuple[Target, ...] | None:
    """The KL term's reference for some rows, without the atoms of weight 0; None for the uniform one."""
    if references is None:
        return None
    targets = action_target(head, references, batch._replace(probs=None))
    assert isinstance(targets, tuple)
    return tuple(
        Target(
            target.num_classes,
            target.atom_indices[..., :0],
            target.atom_weights[..., :0],
            target.background_weight,
            target.reference,
        )
        for target in targets
    )


def of_rows(smoothings: Smoothings, rows: Tensor, num_rows: int) -> Smoothings:
    """Recipes whose per-row alphas, if any, are those of `rows`.

    Raises:
        ValueError: an alpha tensor that is neither one number nor one a row.
    """
    return tuple(_of_rows(recipe, rows, num_rows) for recipe in smoothings)


def refuse_row_alphas(smoothings: Smoothings, why: str) -> None:
    """Raise ValueError, which says `why`, if an alpha has one number a training row."""
    if not all(_alpha_fits_any_batch(recipe) for recipe in smoothings):
        raise ValueError(f"smoothing has an alpha for each training row, but {why}: give one number.")


def alpha_in_force(smoothings: Smoothings, progress: float) -> float:
    """The alpha of a log line: the mean over rows and components; alpha None (a whole distribution) counts as 1."""
    values = [recipe.alpha_at(progress) for recipe in smoothings]
    numbers = [
        1.0 if value is None else float(value.mean() if isinstance(value, Tensor) else value) for value in values
    ]
    return sum(numbers) / len(numbers)


def target_matrices(head: ActionHead, smoothings: Smoothings) -> dict[str, Tensor]:
    """The target of each label, `[K, K]`, for pictures: `target_matrix`, or one a MultiDiscrete dimension.

    Masks and soft targets are left out, an alpha of one number a row counts with its mean, a schedule with its start,
    and of many dimensions the first eight.
    """
    if not isinstance(head, CategoricalHead):
        return {}
    found = {}
    sizes = _group_sizes(head)
    for place, (recipe, size) in enumerate(zip(smoothings, sizes, strict=True)):
        if size is None or size > DRAWN_CLASSES or place >= MATRICES:
            continue
        if not _alpha_fits_any_batch(recipe):
            assert isinstance(recipe.alpha, Tensor)
            recipe = dataclasses.replace(recipe, alpha=recipe.alpha.mean())
        name = "target_matrix" if len(sizes) == 1 else f"target_matrix_dim{place}"
        found[name] = recipe(torch.arange(size), size).dense()
    return found


def _group_sizes(head: ActionHead) -> tuple[int | None, ...]:
    if not isinstance(head, CategoricalHead):
        return (None,)
    return head.dims if head.kind == "multi_discrete" else head.dims[:1]


def _alpha_fits_any_batch(recipe: Smoothing) -> bool:
    return not (isinstance(recipe.alpha, Tensor) and recipe.alpha.ndim > 0)


def _of_rows(recipe: Smoothing, rows: Tensor, num_rows: int) -> Smoothing:
    if not isinstance(recipe.alpha, Tensor) or recipe.alpha.ndim == 0:
        return recipe
    if recipe.alpha.shape != (num_rows,):
        raise ValueError(
            f"smoothing has an alpha of shape {tuple(recipe.alpha.shape)} for {num_rows} transitions: give one number, "
            "or one a transition."
        )
    return dataclasses.replace(recipe, alpha=recipe.alpha.to(rows.device)[rows])


def _for_components(recipe: Smoothing, label: Tensor) -> Smoothing:
    """A per-row alpha `[B]` for labels `[B, D]`."""
    if label.ndim == 1 or _alpha_fits_any_batch(recipe):
        return recipe
    assert isinstance(recipe.alpha, Tensor)
    return dataclasses.replace(recipe, alpha=recipe.alpha.unsqueeze(-1))


def _mixed(recipe: Smoothing, probs: Tensor, label: Tensor, size: int, mask: Tensor | None, progress: float) -> Target:
    soft = from_probs(probs, validate=False)
    alpha = recipe.alpha_at(progress)
    if alpha is None:
        raise ValueError("smoothing has alpha=None, but the demonstrations have action_probs to mix with: give alpha.")
    if not isinstance(alpha, Tensor) and alpha == 0:
        return soft
    background = dataclasses.replace(recipe, alpha=1.0)(label, size, mask, validate=False)
    share = alpha.to(label.device) if isinstance(alpha, Tensor) else alpha
    return Target.mix(background, soft, share)
