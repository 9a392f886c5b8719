"""GaussianActing against Stable-Baselines3's Gaussians, torch.distributions, and statistical tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy import integrate, stats
from stable_baselines3.common.distributions import (
    DiagGaussianDistribution,
    SquashedDiagGaussianDistribution,
    StateDependentNoiseDistribution,
    make_proba_distribution,
)
from torch import Tensor
from torch.distributions import MixtureSameFamily, Normal, kl_divergence

from rlsmooth.agents.smoothed.distributions import GaussianActing
from rlsmooth.agents.smoothed.entropy import EntropySlot

F64 = torch.float64


def make(device: torch.device, floor: float, rows: int = 6, **options: Any) -> tuple[GaussianActing, Tensor, Tensor]:
    mean = torch.randn(rows, 2, dtype=F64, device=device, requires_grad=True)
    log_std = torch.tensor([-1.0, -0.3], dtype=F64, device=device, requires_grad=True)
    reference = torch.tensor([0.5, -0.5], dtype=F64, device=device), torch.tensor([1.0, 2.0], dtype=F64, device=device)
    return GaussianActing(*reference, floor=floor, **options).proba_distribution(mean, log_std), mean, log_std


def test_without_a_floor_it_is_the_parents(device: torch.device) -> None:
    acting, mean, log_std = make(device, 0.0)
    theirs = DiagGaussianDistribution(2).proba_distribution(mean, log_std)
    draws = []
    for distribution in (acting, theirs):
        torch.manual_seed(4)
        draws.append(distribution.get_actions())
    torch.testing.assert_close(*draws, rtol=0, atol=1e-12)
    pairs = [(acting.log_prob(draws[1]), theirs.log_prob(draws[1])), (acting.entropy(), theirs.entropy())]
    for ours, other in pairs:
        assert ours is not None
        torch.testing.assert_close(ours, other)
        gradients = [torch.autograd.grad(rows.sum(), log_std, retain_graph=True)[0] for rows in (ours, other)]
        torch.testing.assert_close(*gradients)
    assert torch.equal(acting.mode(), theirs.mode())
    torch.testing.assert_close(
        torch.autograd.grad(draws[0].sum(), log_std), torch.autograd.grad(draws[1].sum(), log_std)
    )


@pytest.mark.parametrize("floor", [0.1, 0.6, 1.0])
def test_floor_is_torchs_mixture_of_whole_vectors(floor: float, device: torch.device) -> None:
    acting, mean, log_std = make(device, floor)
    actions = 2 * torch.randn_like(mean)
    torchs = acting.distribution
    assert isinstance(torchs, MixtureSameFamily)
    found, expected = acting.log_prob(actions), torchs.log_prob(actions)
    torch.testing.assert_close(found, expected)
    by_hand = torch.stack(
        [
            (1 - floor) * Normal(mean[b], log_std.exp()).log_prob(actions[b]).sum().exp()
            + floor * Normal(acting.reference_mean, acting.reference_std).log_prob(actions[b]).sum().exp()
            for b in range(len(mean))
        ]
    )
    torch.testing.assert_close(found.exp(), by_hand)
    gradients = [torch.autograd.grad(rows.sum(), (mean, log_std)) for rows in (found, expected)]
    torch.testing.assert_close(*gradients)
    assert acting.entropy() is None
    assert acting.acting_entropy() is None
    assert acting.entropies_by_dimension() is None
    assert torch.equal(acting.mode(), mean)
    assert not acting.sample().requires_grad


def test_draws_of_the_floor(device: torch.device) -> None:
    rows, floor = 20_000, 0.3
    mean, log_std = torch.tensor([2.0, -1.0], device=device).expand(rows, 2), torch.tensor([-1.0, 0.0], device=device)
    zeros, ones = torch.zeros(2, device=device), torch.ones(2, device=device)
    acting = GaussianActing(zeros - 4, ones, floor=floor).proba_distribution(mean, log_std)
    draws = acting.sample().double().cpu().numpy()
    for d in range(2):
        own, other = stats.norm(float(mean[0, d]), float(log_std[d].exp())), stats.norm(-4.0, 1.0)
        result = stats.kstest(draws[:, d], lambda x, own=own, other=other: 0.7 * own.cdf(x) + 0.3 * other.cdf(x))
        assert result.pvalue > 1e-3
    # One draw decides for the whole vector: the first dimension tells the component, and the second follows it.
    from_reference = draws[:, 0] < -1
    assert stats.binomtest(int(from_reference.sum()), rows, floor).pvalue > 1e-3
    assert stats.kstest(draws[from_reference, 1], stats.norm(-4.0, 1.0).cdf).pvalue > 1e-3
    assert stats.kstest(draws[~from_reference, 1], stats.norm(-1.0, 1.0).cdf).pvalue > 1e-3


def test_kl_is_torchs(device: torch.device) -> None:
    acting, mean, log_std = make(device, 0.2)
    policy = Normal(mean, log_std.exp().expand_as(mean))
    expected = kl_divergence(Normal(acting.reference_mean, acting.reference_std), policy).sum(-1)
    torch.testing.assert_close(acting.kl_reference(), expected)
    other = torch.randn_like(mean), torch.tensor([0.2, -0.2], dtype=F64, device=device)
    acting.proba_distribution(mean, log_std, other)
    expected = kl_divergence(Normal(other[0], other[1].exp().expand_as(mean)), policy).sum(-1)
    torch.testing.assert_close(acting.kl_reference(), expected)
    torch.testing.assert_close(acting.network_entropy(), policy.entropy().sum(-1))
    assert acting.kl_uniform() is None
    assert acting.entropy_fractions() is None


def test_entropy_is_the_slot_or_minus_kl(device: torch.device) -> None:
    for floor in (0.0, 0.2):
        acting, _, _ = make(device, floor, regularised=True)
        torch.testing.assert_close(acting.entropy(), -acting.kl_reference())
        slot = EntropySlot(entropy_coef=0.5, kl_coef=2.0)
        acting, _, _ = make(device, floor, slot=slot)
        torch.testing.assert_close(acting.entropy(), 0.5 * acting.network_entropy() - 2.0 * acting.kl_reference())
        assert slot.mean_entropy() == pytest.approx(acting.network_entropy().mean().item())


def test_entropy_estimate_by_integration(device: torch.device) -> None:
    floor, mean, std = 0.3, 1.0, 0.5
    acting = GaussianActing(torch.zeros(1, device=device), 2 * torch.ones(1, device=device), floor=floor)
    acting.proba_distribution(torch.full((40, 1), mean, device=device), torch.tensor([std], device=device).log())

    def plogp(x: float) -> float:
        density = (1 - floor) * stats.norm.pdf(x, mean, std) + floor * stats.norm.pdf(x, 0, 2)
        return float(-density * np.log(density))

    expected = integrate.quad(plogp, -20, 20)[0]
    state = torch.get_rng_state()
    found = acting.acting_entropy_estimate(500)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(acting.acting_entropy_estimate(500), found)
    error = float(found.std()) / len(found) ** 0.5
    assert abs(float(found.mean()) - expected) < 4 * error < 0.05
    with pytest.raises(ValueError, match="num_samples"):
        acting.acting_entropy_estimate(0)


def test_entropies_by_dimension_add_up(device: torch.device) -> None:
    acting, _, _ = make(device, 0.0)
    parts = acting.entropies_by_dimension()
    assert parts is not None
    assert len(parts) == 2
    torch.testing.assert_close(sum(parts), acting.acting_entropy())
    torch.testing.assert_close(acting.acting_entropy_estimate(), acting.acting_entropy())


@pytest.mark.parametrize("kind", ["plain", "squashed", "gSDE"])
def test_from_sb3_reads_the_gaussian_before_squashing(kind: str, device: torch.device) -> None:
    mean, log_std = torch.randn(5, 2, device=device), torch.tensor([-0.5, 0.1], device=device)
    theirs: Any
    if kind == "gSDE":
        theirs = StateDependentNoiseDistribution(2)
        theirs.proba_distribution_net(3)
        weights = torch.full((3, 2), -0.5, device=device)
        theirs.sample_weights(weights)
        theirs.proba_distribution(mean, weights, torch.randn(5, 3, device=device))
    else:
        cls = DiagGaussianDistribution if kind == "plain" else SquashedDiagGaussianDistribution
        theirs = cls(2).proba_distribution(mean, log_std)
    acting = GaussianActing.from_sb3(theirs)
    normal = theirs.distribution
    torch.testing.assert_close(acting.network_entropy(), normal.entropy().sum(-1))
    torch.testing.assert_close(acting.log_prob(mean), normal.log_prob(mean).sum(-1))
    expected = kl_divergence(Normal(torch.zeros_like(mean), 1.0), normal).sum(-1)
    torch.testing.assert_close(acting.kl_reference(), expected)
    assert GaussianActing.from_sb3(acting) is acting


def test_parameters_to_actions(device: torch.device) -> None:
    acting = GaussianActing(torch.zeros(2), torch.ones(2))
    layer, log_std = acting.proba_distribution_net(3, log_std_init=-0.5)
    assert log_std.tolist() == [-0.5, -0.5]
    mean = layer(torch.randn(4, 3))
    assert torch.equal(acting.actions_from_params(mean, log_std, deterministic=True), mean)
    actions, log_prob = acting.log_prob_from_params(mean, log_std)
    expected = DiagGaussianDistribution(2).proba_distribution(mean, log_std).log_prob(actions)
    torch.testing.assert_close(log_prob, expected)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="floor"):
        GaussianActing(torch.zeros(1), torch.ones(1), floor=-0.1)
    categorical = make_proba_distribution(spaces.Discrete(2)).proba_distribution(torch.zeros(1, 2))
    with pytest.raises(TypeError, match="must be a Gaussian"):
        GaussianActing.from_sb3(categorical)
