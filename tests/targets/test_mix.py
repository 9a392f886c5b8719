"""`Target.mix` as mixup: one loss with the mixed target is the two losses, weighed; with and without smoothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rlsmooth.losses import cross_entropy
from rlsmooth.targets import (
    Target,
    confidence_adaptive,
    hl_gauss,
    mixture,
    one_hot,
    ordinal,
    prior,
    two_hot,
    uniform,
)

F64 = torch.float64
K, B = 5, 12
PRIOR = torch.tensor([0.1, 0.3, 0.2, 0.15, 0.25], dtype=F64)
SUPPORT = torch.linspace(-1, 1, K, dtype=F64)

MAKERS: dict[str, Callable[[Tensor], Target]] = {
    "one_hot": lambda y: one_hot(y, K),
    "uniform": lambda y: uniform(y, K, 0.2),
    "others": lambda y: uniform(y, K, 0.2, "others"),
    "negative": lambda y: uniform(y, K, -0.2),
    "prior": lambda y: prior(y, PRIOR, 0.2),
    "ordinal": lambda y: ordinal(y, K, 0.2),
    "confidence": lambda y: confidence_adaptive(y, 0.6, K),
    "two_hot": lambda y: two_hot(torch.sin(y.double()), SUPPORT),
    "hl_gauss": lambda y: hl_gauss(torch.sin(y.double()), SUPPORT),
}


def draw(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, labels, the labels of another order of the rows, and Beta(0.4, 0.4) shares as mixup draws them."""
    logits = 2 * torch.randn(B, K, dtype=F64, device=device)
    labels = torch.randint(K, (B,), device=device)
    shares = torch.distributions.Beta(0.4, 0.4).sample((B,)).to(device, F64)
    return logits, labels, labels[torch.randperm(B, device=device)], shares


@pytest.mark.parametrize("second", MAKERS)
@pytest.mark.parametrize("first", MAKERS)
def test_the_loss_of_the_mixture_is_the_mixture_of_losses(first: str, second: str, device: torch.device) -> None:
    logits, labels, others, shares = draw(device)
    logits.requires_grad_(True)
    one, two = MAKERS[first](labels), MAKERS[second](others)
    apart = [cross_entropy(logits, target, reduction="none") for target in (one, two)]
    expected = shares * apart[0] + (1 - shares) * apart[1]
    found = cross_entropy(logits, Target.mix(one, two, shares), reduction="none")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    slopes = [torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0] for loss in (found, expected)]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(Target.mix(one, two, shares).mass(), torch.ones_like(shares), rtol=0, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_a_batch_mixed_with_its_own_permutation_is_torchs_mixup(alpha: float, device: torch.device) -> None:
    """As training has it: one share for the batch, `target[order]` beside the target, torch's loss for a truth."""
    logits, labels, _, _ = draw(device)
    order = torch.randperm(B, device=device)
    lam = float(np.random.default_rng(0).beta(0.2, 0.2))
    target = uniform(labels, K, alpha)
    expected = lam * F.cross_entropy(logits, labels, label_smoothing=alpha)
    expected = expected + (1 - lam) * F.cross_entropy(logits, labels[order], label_smoothing=alpha)
    torch.testing.assert_close(cross_entropy(logits, Target.mix(target, target[order], lam)), expected)


def test_mixing_then_smoothing_is_smoothing_then_mixing(device: torch.device) -> None:
    _, labels, others, shares = draw(device)
    smoothed = Target.mix(uniform(labels, K, 0.3), uniform(others, K, 0.3), shares).dense(F64)
    hard = Target.mix(one_hot(labels, K), one_hot(others, K), shares).dense(F64)
    torch.testing.assert_close(smoothed, 0.7 * hard + 0.3 / K, rtol=0, atol=1e-15)
    parents = mixture(torch.stack((labels, others), -1), torch.stack((shares, 1 - shares), -1), K)
    torch.testing.assert_close(parents.dense(F64), hard, rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", MAKERS)
def test_the_ends_are_the_two_targets(kind: str, device: torch.device) -> None:
    _, labels, others, _ = draw(device)
    one, two = MAKERS[kind](labels), MAKERS[kind](others)
    for lam, expected in ((1.0, one), (0.0, two)):
        torch.testing.assert_close(Target.mix(one, two, lam).dense(F64), expected.dense(F64), rtol=0, atol=1e-15)


def test_a_mixture_of_two_hots_has_the_mixed_value(device: torch.device) -> None:
    _, _, _, shares = draw(device)
    values = 2 * torch.rand(2, B, dtype=F64, device=device) - 1
    support = SUPPORT.to(device)
    mixed = Target.mix(two_hot(values[0], support), two_hot(values[1], support), shares)
    expected = shares * values[0] + (1 - shares) * values[1]
    torch.testing.assert_close(mixed.dense(F64) @ support, expected, rtol=0, atol=1e-14)
