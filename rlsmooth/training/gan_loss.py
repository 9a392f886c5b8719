"""The generator's side of the game."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from rlsmooth.checks import check_choice
from rlsmooth.losses import binary_cross_entropy

__all__ = ["KINDS", "GeneratorLoss", "generator_loss"]

GeneratorLoss: TypeAlias = Literal["non_saturating", "saturating"]
KINDS = ("non_saturating", "saturating")


def generator_loss(fake_logits: Tensor, kind: GeneratorLoss = "non_saturating") -> Tensor:
    """What the generator makes small, in nats; it knows no smoothing.

    `"non_saturating"`: `-log D`, the cross-entropy with "real". At the optimal discriminator its gradient is the same
    for every one-sided target. `"saturating"`: `log(1 - D)`, the minimax game itself, less its smoothing: its gradient
    vanishes where the discriminator is sure, and is scaled there by `a / ((1 - a) r + 1)` for a real target `a`, with
    `r = p_real / p_fake` (Goodfellow et al. 2014).

    Args:
        fake_logits: `[B]` or any shape, high = real.
        kind: see above.

    Raises:
        ValueError: another kind.

    Example:
        >>> generator_loss(torch.zeros(3)), generator_loss(torch.zeros(3), "saturating")
        (tensor(0.6931), tensor(-0.6931))
    """
    check_choice("kind", kind, KINDS)
    if kind == "non_saturating":
        return binary_cross_entropy(fake_logits, torch.ones_like(fake_logits))
    return -binary_cross_entropy(fake_logits, torch.zeros_like(fake_logits))
