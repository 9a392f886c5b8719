"""Closed-form gradients for arrays and tensors: against torch's differentiation of the losses that they restate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn import functional as F

from rlsmooth.losses import cross_entropy, entropy_of, mixture_log_probabilities
from rlsmooth.losses import kl_divergence as categorical_kl
from rlsmooth.losses.output_gradients import (
    CategoricalOutputs,
    GaussianOutputs,
    clipped_surrogate,
    cross_entropy_gradient,
    squared_error_gradient,
)
from rlsmooth.targets import from_probs

KINDS = [pytest.param(lambda tensor: tensor.detach().numpy(), id="numpy"), pytest.param(torch.detach, id="torch")]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Numbers from -20 to 20 and beyond, float64."""
    return 9 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def legal() -> torch.Tensor:
    """Masks `[7, 5]`; the first allows one class, the last all."""
    mask = torch.rand(7, 5, generator=torch.Generator().manual_seed(1)) > 0.4
    mask[0] = False
    mask[-1] = mask[:, 2] = True
    return mask


def agree(found: Any, expected: torch.Tensor) -> None:
    """Equal to 1e-12, and of that precision."""
    assert not isinstance(found, (np.ndarray, torch.Tensor)) or found.dtype in (np.float64, torch.float64)
    torch.testing.assert_close(torch.as_tensor(found, dtype=torch.float64), expected.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy(kind: Any, masked: bool, weighted: bool) -> None:
    logits, mask = drawn(7, 5).requires_grad_(), legal() if masked else None
    probs = torch.rand(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))  # of any mass
    probs = probs if mask is None else probs * mask
    weight = torch.arange(7, dtype=torch.float64) if weighted else None
    expected = cross_entropy(logits, from_probs(probs, validate=False), mask=mask, weight=weight, reduction="sum") / 3.5
    expected.backward()
    factors = torch.full((7, 1), 1 / 3.5, dtype=torch.float64) if weight is None else weight[:, None] / 3.5
    probs, more = kind(probs * factors), {} if mask is None else {"mask": kind(mask)}
    loss, gradient = cross_entropy_gradient(kind(logits), probs, **more)
    agree(loss, expected)
    agree(gradient, logits.grad)
    mass = probs.sum(-1, keepdims=True) if isinstance(probs, np.ndarray) else probs.sum(-1, keepdim=True)
    agree(cross_entropy_gradient(kind(logits), probs, mass=mass, **more)[1], logits.grad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [False, True])
def test_categorical_policies(kind: Any, masked: bool) -> None:
    logits, mask, actions = drawn(7, 5).requires_grad_(), legal() if masked else None, torch.full((7,), 2)
    by_log_prob = drawn(7, seed=3)
    allowed = torch.ones(7, 5, dtype=torch.bool) if mask is None else mask
    log_probs = torch.where(allowed, logits, -torch.inf).log_softmax(-1)
    entropy = -torch.where(allowed, log_probs.exp() * torch.where(allowed, log_probs, 0.0), 0.0).sum(-1)
    kl = categorical_kl(logits, None, direction="reference_to_policy", mask=mask, reduction="none")
    ((by_log_prob * log_probs[:, 2]).sum() - 0.3 * entropy.sum() + 0.7 * kl.sum()).backward()
    found = CategoricalOutputs(kind(logits), None if mask is None else kind(mask))
    agree(found.log_prob(kind(actions)), log_probs[:, 2])
    agree(found.entropy(), entropy)
    agree(found.kl_uniform(), kl)
    agree(found.gradient(kind(actions), kind(by_log_prob), by_entropy=-0.3, by_kl=0.7), logits.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_categorical_policies_with_a_floor(kind: Any) -> None:
    logits, actions, by_log_prob = drawn(7, 5).requires_grad_(), torch.full((7,), 2), drawn(7, seed=3)
    mixed = mixture_log_probabilities(logits.log_softmax(-1), floor=0.3)
    kl = categorical_kl(logits, None, direction="reference_to_policy", reduction="none")
    ((by_log_prob * mixed[:, 2]).sum() - 0.3 * entropy_of(logits.log_softmax(-1)).sum() + 0.7 * kl.sum()).backward()
    found = CategoricalOutputs(kind(logits), floor=0.3)
    agree(found.log_prob(kind(actions)), mixed[:, 2])
    agree(found.behaviour_entropy(), entropy_of(mixed))
    agree(found.entropy(), entropy_of(logits.log_softmax(-1)))
    agree(found.gradient(kind(actions), kind(by_log_prob), by_entropy=-0.3, by_kl=0.7), logits.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_gaussian_policies(kind: Any) -> None:
    mean, log_std = drawn(7, 3).requires_grad_(), drawn(3, seed=1).div(9).requires_grad_()
    actions, by_log_prob = drawn(7, 3, seed=2), drawn(7, seed=3)
    reference = drawn(3, seed=4), drawn(3, seed=5).div(9).exp()
    policy = Independent(Normal(mean, log_std.exp()), 1)
    broad = Independent(Normal(reference[0].expand(7, 3), reference[1].expand(7, 3)), 1)
    log_prob, entropy, kl = policy.log_prob(actions), policy.entropy(), kl_divergence(broad, policy)
    ((by_log_prob * log_prob).sum() - 0.3 * entropy.sum() + 0.7 * kl.sum()).backward()
    found = GaussianOutputs(kind(mean), kind(log_std))
    agree(found.log_prob(kind(actions)), log_prob)
    agree(found.entropy(), entropy[0])
    references = kind(reference[0]), kind(reference[1])
    agree(found.kl_reference(*references), kl)
    by_mean, by_log_std = found.gradient(kind(by_log_prob), by_entropy=-0.3, by_kl=0.7, reference=references)
    agree(by_mean, mean.grad)
    agree(by_log_std, log_std.grad)


def test_the_clipped_surrogate() -> None:
    log_prob = (drawn(200) / 20).requires_grad_()
    old, advantages = drawn(200, seed=1) / 20, drawn(200, seed=2)
    ratio = (log_prob - old).exp()
    expected = -torch.min(advantages * ratio, advantages * ratio.clamp(0.8, 1.2)).mean()
    expected.backward()
    found = clipped_surrogate(log_prob.detach().numpy(), old.numpy(), advantages.numpy(), 0.2)
    agree(found.loss, expected)
    agree(found.gradient, log_prob.grad)
    agree(found.kl, ((ratio - 1) - ratio.log()).mean())
    agree(found.clip_fraction, ((ratio - 1).abs() > 0.2).double().mean())
    assert 0.2 < found.clip_fraction < 0.95


@pytest.mark.parametrize("clip_range", [None, 3.0])
def test_the_critics_loss(clip_range: float | None) -> None:
    values, returns, old = drawn(50).requires_grad_(), drawn(50, seed=1), drawn(50, seed=2)
    kept = values if clip_range is None else old + (values - old).clamp(-clip_range, clip_range)
    expected = F.mse_loss(returns, kept)
    expected.backward()
    loss, gradient = squared_error_gradient(values.detach().numpy(), returns.numpy(), old.numpy(), clip_range)
    agree(loss, expected)
    agree(gradient, values.grad)
    assert np.count_nonzero(gradient) == (50 if clip_range is None else int((values - old).abs().le(3.0).sum()))
