"""The KL to a reference, and a recipe's alpha, that the modules for other libraries share."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from rlsmooth.losses import kl_divergence
from rlsmooth.targets import Smoothing


def kl_to_reference(logits: Tensor, smoothing: Smoothing, mask: Tensor | None = None) -> Tensor:
    """`KL(reference‖pi)` of each row, in nats: the reference is the recipe's background around the greedy class.

    Args:
        logits: `[..., K]`.
        smoothing: whose reference is meant; alpha is left out.
        mask: bool `[..., K]`, True = legal.

    Returns:
        `[...]`.

    Examples:
        >>> kl_to_reference(torch.zeros(1, 4), Smoothing(0.1))
        tensor([0.])
    """
    legal = logits if mask is None else logits.masked_fill(~mask, -torch.inf)
    recipe = smoothing if smoothing.alpha is None else dataclasses.replace(smoothing, alpha=1.0)
    reference = recipe(legal.detach().argmax(-1), logits.shape[-1], mask, validate=False)
    return kl_divergence(logits, reference, direction="reference_to_policy", mask=mask, reduction="none")


def constant_alpha(smoothing: Smoothing) -> float:
    """Its alpha; 1 for the reference's whole distribution.

    Examples:
        >>> constant_alpha(Smoothing(0.1))
        0.1

    Raises:
        ValueError: it is a schedule, or not one number.
    """
    alpha = smoothing.alpha
    if not smoothing.is_constant or (isinstance(alpha, Tensor) and alpha.ndim):
        raise ValueError(f"smoothing has alpha={alpha!r}: give one number here, since a loss knows no progress.")
    return 1.0 if alpha is None else float(alpha)  # type: ignore[arg-type]
