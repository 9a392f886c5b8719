"""How a network's flat outputs become one tensor of all components of a discrete action, and their references."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlsmooth.targets import Smoothing

__all__ = ["check_masks", "component_logits", "component_masks", "reference_rows"]

_LARGEST_TABLE = 512  # classes for which the reference around each action is kept, 1 MiB in float32


def component_logits(outputs: Tensor, dims: tuple[int, ...], bernoulli: bool = False) -> Tensor:
    """`[B, sum(dims)]` as `[B, D, max(dims)]`; where sizes differ, places without a class hold any number.

    Args:
        outputs: `[B, sum(dims)]`, or `[B, D]` of Bernoulli logits `x`, which become `(0, x)`.
        dims: number of choices of each component.
        bernoulli: see `outputs`.
    """
    if bernoulli:
        return torch.stack((torch.zeros_like(outputs), outputs), dim=-1)
    if len(set(dims)) == 1:
        return outputs.reshape(-1, len(dims), dims[0])
    places, _ = _padding(dims, outputs.device)
    return outputs.index_select(-1, places).reshape(-1, len(dims), max(dims))


def component_masks(
    masks: Tensor | NDArray[np.bool_] | None, dims: tuple[int, ...], device: torch.device
) -> Tensor | None:
    """The legal choices, bool `[D, max(dims)]` or `[B, D, max(dims)]`; None: all are, and all sizes are alike.

    Args:
        masks: `[B, sum(dims)]`, or anything of that size, nonzero = legal; None: all are.
        dims: number of choices of each component.
        device: of the logits.

    Raises:
        ValueError: an array of a wrong size, or with a row that allows nothing. Tensors are not read, which would wait
            for the device: a component without a legal choice is NaN.
    """
    alike = len(set(dims)) == 1
    if masks is None:
        return None if alike else _padding(dims, device)[1]
    if not isinstance(masks, Tensor):
        masks = torch.from_numpy(check_masks(np.asarray(masks), dims))
    legal = masks.to(device, torch.bool).reshape(-1, sum(dims))
    if alike:
        return legal.reshape(-1, len(dims), dims[0])
    places, exists = _padding(dims, device)
    return legal.index_select(-1, places).reshape(-1, len(dims), max(dims)) & exists


def check_masks(masks: NDArray[Any], dims: tuple[int, ...]) -> NDArray[np.bool_]:
    """The masks as bool `[B, sum(dims)]`.

    Args:
        masks: `[B, sum(dims)]`, or anything of that size, nonzero = legal.
        dims: number of choices of each component.

    Raises:
        ValueError: a wrong size, or a row that allows nothing.
    """
    total = sum(dims)
    # Rows of another length that happen to have the right number of entries together are transposed, say.
    is_odd = masks.size % total if masks.ndim < 2 else masks.size != total and math.prod(masks.shape[1:]) != total
    if is_odd:
        raise ValueError(f"action_masks has shape {masks.shape}, needs [B, {total}]: one entry for each choice.")
    flat = masks.reshape(-1, total).astype(bool)
    starts = np.cumsum((0, *dims[:-1]))
    allowed = np.logical_or.reduceat(flat, starts, axis=1)  # [B, D]
    if not allowed.all():
        row, component = (int(place) for place in np.argwhere(~allowed)[0])
        raise ValueError(
            f"action_masks allows nothing in row {row}, component {component}: at least one action must be legal."
        )
    return flat


def reference_rows(
    references: Sequence[Smoothing | None], dims: tuple[int, ...], log_probs: Tensor, mask: Tensor | None
) -> Tensor | None:
    """The reference distribution of each row and component, shaped like `log_probs`; None: uniform over the legal.

    It is the background of the recipe around the greedy action: what a target puts beside its label at alpha 1, or,
    for a recipe of `alpha=None`, the whole target.

    Args:
        references: one recipe a component, None for uniform.
        dims: number of choices of each component.
        log_probs: `[B, K]` or `[B, D, max(dims)]`, of the network over the legal choices, without a graph.
        mask: bool, broadcasts to `log_probs`, or None.
    """
    if all(recipe is None for recipe in references):
        return None
    greedy = log_probs.argmax(-1)
    if greedy.ndim == 1:
        assert references[0] is not None
        return _rows(references[0], dims[0], greedy, log_probs.dtype, mask)
    parts = []
    for d, (recipe, size) in enumerate(zip(references, dims, strict=True)):
        legal = None if mask is None else mask[..., d, :size]
        if recipe is None:
            recipe = _UNIFORM
        part = _rows(recipe, size, greedy[:, d], log_probs.dtype, legal)
        parts.append(torch.nn.functional.pad(part.expand(len(greedy), size), (0, log_probs.shape[-1] - size)))
    return torch.stack(parts, dim=1)


_UNIFORM = Smoothing(alpha=1.0)


def _rows(recipe: Smoothing, size: int, greedy: Tensor, dtype: torch.dtype, mask: Tensor | None) -> Tensor:
    recipe = _at_full_alpha(recipe)
    # A mask of [K] that allows all is none: `component_masks` has it where only other components are smaller.
    if (mask is None or mask.ndim == 1) and size <= _LARGEST_TABLE:
        return _table(recipe, size, dtype, greedy.device).index_select(0, greedy)
    legal = None if mask is None or mask.ndim == 1 else mask
    return recipe(greedy, size, legal, validate=False).dense(dtype)


@functools.lru_cache(maxsize=64)
def _table(recipe: Smoothing, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The reference around each action, `[K, K]`, made once: a policy asks for it in every minibatch."""
    with torch.inference_mode(False), torch.no_grad():
        return recipe(torch.arange(size, device=device), size, validate=False).dense(dtype)


@functools.lru_cache(maxsize=64)
def _at_full_alpha(recipe: Smoothing) -> Smoothing:
    return recipe if recipe.alpha is None else dataclasses.replace(recipe, alpha=1.0)


@functools.lru_cache(maxsize=64)
def _padding(dims: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Where in the flat outputs each place of `[D, max(dims)]` comes from, `[D · max(dims)]`, and which exist."""
    width = max(dims)
    with torch.inference_mode(False):
        steps = torch.arange(width)
        sizes = torch.tensor(dims)
        starts = sizes.cumsum(0) - sizes
        exists = steps < sizes.unsqueeze(-1)
        places = torch.where(exists, starts.unsqueeze(-1) + steps, 0).flatten()
        return places.to(device), exists.to(device)
