"""MixedCategorical and MixedGaussian against SB3's, sb3-contrib's and torch's distributions, and by statistics."""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import make_masked_proba_distribution
from scipy import integrate, stats
from stable_baselines3.common.distributions import (
    DiagGaussianDistribution,
    Distribution,
    SquashedDiagGaussianDistribution,
    StateDependentNoiseDistribution,
    make_proba_distribution,
)
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, MixtureSameFamily, Normal
from torch.distributions import kl_divergence as torch_kl

from rlsmooth.agents.smoothed.distributions import MixedCategorical, MixedGaussian
from rlsmooth.agents.smoothed.entropy import EntropyTerm
from rlsmooth.losses import kl_divergence
from rlsmooth.targets import Smoothing, Tree
from support import assert_raises, draw_masks

Kind = Literal["discrete", "multi_discrete", "multi_binary"]
F64 = torch.float64
TREE = Tree.from_nested({"a": ["b", "c"], "d": ["e"]})
CASES: list[tuple[Kind, tuple[int, ...], int]] = [  # kind, dims, width of the network's outputs
    ("discrete", (4,), 4),
    ("multi_discrete", (3,), 3),
    ("multi_discrete", (3, 3), 6),
    ("multi_discrete", (2, 4, 1, 3), 10),
    ("multi_binary", (2, 2, 2), 3),
    ("multi_binary", (2, 2, 2), 6),
]
SMALL = [case for case in CASES if case[1] != (3,)]


def space_of(kind: Kind, dims: tuple[int, ...]) -> spaces.Space[Any]:
    if kind == "discrete":
        return spaces.Discrete(dims[0])
    return spaces.MultiDiscrete(list(dims)) if kind == "multi_discrete" else spaces.MultiBinary(len(dims))


def parent(kind: Kind, dims: tuple[int, ...], outputs: Tensor) -> Distribution:
    """The distribution of the unmodified policies."""
    maskable = kind == "multi_binary" and outputs.shape[-1] == sum(dims)
    make = make_masked_proba_distribution if maskable else make_proba_distribution
    return make(space_of(kind, dims)).proba_distribution(outputs)


def logits_by_dimension(dims: tuple[int, ...], outputs: Tensor) -> list[Tensor]:
    if outputs.shape[-1] == len(dims) != sum(dims):
        return [torch.stack((torch.zeros_like(x), x), -1) for x in outputs.unbind(-1)]
    return list(outputs.split(list(dims), dim=-1))


@pytest.mark.parametrize(("kind", "dims", "width"), CASES)
def test_without_a_floor_it_is_the_parents(kind: Kind, dims: tuple[int, ...], width: int, device: torch.device) -> None:
    outputs = 2 * torch.randn(50, width, device=device)
    mixture, theirs = MixedCategorical(kind, dims).proba_distribution(outputs), parent(kind, dims, outputs)
    actions = theirs.sample()
    torch.testing.assert_close(mixture.log_prob(actions), theirs.log_prob(actions))
    torch.testing.assert_close(mixture.log_prob(actions.float()), theirs.log_prob(actions))  # as buffers keep them
    torch.testing.assert_close(mixture.entropy(), theirs.entropy())
    for ours, other in ((mixture.mode(), theirs.mode()), (mixture.sample(), actions)):
        assert (ours.dtype, ours.shape) == (other.dtype, other.shape)
    assert torch.equal(mixture.mode(), theirs.mode())


def test_discrete_draws_are_those_of_the_parent(device: torch.device) -> None:
    outputs = torch.randn(100, 4, device=device)
    draws = []
    for distribution in (
        MixedCategorical("discrete", (4,)).proba_distribution(outputs),
        parent("discrete", (4,), outputs),
    ):
        torch.manual_seed(3)
        draws.append(distribution.get_actions())
    assert torch.equal(*draws)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("kind", "dims", "width"), SMALL)
def test_floor_by_sums_over_joint_actions(kind: Kind, dims: Any, width: int, masked: bool, device: Any) -> None:
    rows, floor = 6, 0.3
    outputs = 2 * torch.randn(rows, width, dtype=F64, device=device)
    masks = draw_masks(dims, rows).to(device) | (not masked)
    mixture = MixedCategorical(kind, dims, floor=floor).proba_distribution(outputs)
    if masked:
        mixture.apply_masking(masks)
    marginals = []
    for logits, legal in zip(logits_by_dimension(dims, outputs), masks.split(list(dims), -1), strict=True):
        p = logits.masked_fill(~legal, -torch.inf).softmax(-1)
        marginals.append((1 - floor) * p + floor * legal.double() / legal.sum(-1, keepdim=True))
    joint = list(itertools.product(*(range(size) for size in dims)))
    probabilities = torch.stack(
        [math.prod((marginals[d][:, k] for d, k in enumerate(a)), start=torch.ones(())) for a in joint], -1
    )
    log_probs = []
    for action in joint:
        tensor = torch.tensor(action, device=device).expand(rows, len(dims))
        log_probs.append(mixture.log_prob(tensor[:, 0] if kind == "discrete" else tensor))
    found = torch.stack(log_probs, -1)
    torch.testing.assert_close(found.exp(), probabilities, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(mixture.entropy(), -torch.xlogy(probabilities, probabilities).sum(-1))
    torch.testing.assert_close(sum(mixture.entropies_by_dimension()), mixture.mixture_entropy())
    best = torch.tensor([joint[i] for i in probabilities.argmax(-1)], device=device)
    assert torch.equal(mixture.mode().long().reshape(rows, -1), best)
    for ours, expected in zip(mixture.probabilities(), marginals, strict=True):
        torch.testing.assert_close(ours, expected)
    legal_actions = (probabilities > 0).sum(-1)
    fractions, has_choice = mixture.entropy_fractions()
    assert torch.equal(has_choice, legal_actions > 1)
    expected = mixture.entropy() / legal_actions.double().log()
    torch.testing.assert_close(fractions, torch.where(legal_actions > 1, expected, 0.0))


@pytest.mark.parametrize("fill", [None, -1e8, -torch.inf, torch.nan])
@pytest.mark.parametrize(("kind", "dims", "width"), [case for case in CASES if case[2] == sum(case[1])])
def test_masks_are_sb3_contribs_but_exact(kind: Kind, dims: Any, width: int, fill: float | None, device: Any) -> None:
    rows = 20
    logits, masks = torch.randn(rows, width, device=device), draw_masks(dims, rows).to(device)
    theirs: Any = make_masked_proba_distribution(space_of(kind, dims)).proba_distribution(logits)
    theirs.apply_masking(masks.cpu().numpy())
    leaf = (logits if fill is None else logits.masked_fill(~masks, fill)).requires_grad_(True)
    mixture = MixedCategorical(kind, dims, floor=0.1).proba_distribution(leaf)
    mixture.apply_masking(masks)
    actions = theirs.sample()
    network = MixedCategorical(kind, dims).proba_distribution(leaf)
    network.apply_masking(masks.cpu().numpy())
    torch.testing.assert_close(network.log_prob(actions), theirs.log_prob(actions))
    torch.testing.assert_close(mixture.network_entropy(), theirs.entropy())
    torch.testing.assert_close(network.mode(), theirs.mode())
    rows_of_loss = mixture.log_prob(actions) + mixture.entropy() + mixture.kl_reference() + mixture.network_entropy()
    (gradient,) = torch.autograd.grad(rows_of_loss.sum(), leaf)
    assert gradient.isfinite().all()
    assert (gradient[~masks] == 0).all()
    assert (gradient[0] == 0).all()
    for value in (mixture.entropy(), mixture.kl_reference(), mixture.kl_uniform(), mixture.log_prob(mixture.mode())):
        assert value[0] == 0  # one legal action
    mixture.apply_masking(None)
    if fill is None:
        plain = MixedCategorical(kind, dims, floor=0.1).proba_distribution(leaf)
        torch.testing.assert_close(mixture.entropy(), plain.entropy())


def test_an_array_of_masks_of_another_shape_is_an_error() -> None:
    mixture = MixedCategorical("discrete", (4,)).proba_distribution(torch.zeros(3, 4))
    for shape in ((4, 3), (12, 1), (2, 3), (5,)):
        with pytest.raises(ValueError, match=r"needs \[B, 4\]: one entry for each choice"):
            mixture.apply_masking(np.ones(shape, dtype=bool))
    for fits in ((3, 4), (3, 2, 2), (12,), (1, 4), (4,), (2, 2)):
        mixture.apply_masking(np.ones(fits, dtype=bool))
        assert mixture.probabilities()[0].shape == (3, 4)


def test_an_array_of_masks_that_allows_nothing_is_an_error() -> None:
    mixture = MixedCategorical("multi_discrete", (2, 3)).proba_distribution(torch.zeros(2, 5))
    masks = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], dtype=bool)
    assert_raises(ValueError, "state 1, component 1", mixture.apply_masking, masks)
    assert_raises(ValueError, r"needs \[B, 5\]", mixture.apply_masking, np.ones((1, 4), dtype=bool))


RECIPES = {
    "prior": Smoothing(alpha=0.3, reference=torch.tensor([0.5, 0.3, 0.2])),
    "kernel": Smoothing(alpha=0.3, reference=torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 1.0], [3.0, 1.0, 0.0]])),
    "adjacent": Smoothing(alpha="lin_0.2", reference="adjacent"),
    "others": Smoothing(alpha=0.1, spread="others"),
    "tree, whole": Smoothing(alpha=None, reference=TREE),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", list(RECIPES))
def test_the_reference_is_what_the_recipe_puts_beside_the_greedy_action(name: str, masked: bool, device: Any) -> None:
    recipe, rows = RECIPES[name], 12
    logits = torch.randn(rows, 3, dtype=F64, device=device, requires_grad=True)
    mask = draw_masks((3,), rows).to(device) if masked else None
    greedy = (logits if mask is None else logits.masked_fill(~mask, -torch.inf)).argmax(-1)
    one = recipe.alpha is None
    target = Smoothing(None if one else 1.0, recipe.reference, spread=recipe.spread)(greedy, 3, mask)
    expected = kl_divergence(logits, target, direction="reference_to_policy", mask=mask, reduction="none")
    mixture = MixedCategorical("discrete", (3,), references=(recipe,), floor=0.4, regularised=True)
    mixture.proba_distribution(logits)
    mixture.apply_masking(mask)
    torch.testing.assert_close(mixture.kl_reference(), expected)
    torch.testing.assert_close(mixture.entropy(), -expected)
    gradients = [torch.autograd.grad(v.sum(), logits, retain_graph=True)[0] for v in (mixture.kl_reference(), expected)]
    torch.testing.assert_close(*gradients)
    p = (logits if mask is None else logits.masked_fill(~mask, -torch.inf)).softmax(-1)
    torch.testing.assert_close(mixture.probabilities()[0], 0.6 * p + 0.4 * target.dense(F64))
    if not one and name != "prior":
        assert (target.dense().gather(-1, greedy.unsqueeze(-1))[:, 0] > 0).any() == masked  # only where nothing else is


def test_each_dimension_has_its_own_reference(device: torch.device) -> None:
    outputs = torch.randn(9, 3 + 2 + 3, device=device)
    references = (RECIPES["kernel"], None, RECIPES["prior"])
    for masks in (None, draw_masks((3, 2, 3), 9).to(device)):
        mixture = MixedCategorical("multi_discrete", (3, 2, 3), references=references, floor=0.2)
        mixture.proba_distribution(outputs).apply_masking(masks)
        total, parts = torch.zeros(9, device=device), []
        for d, (reference, logits) in enumerate(zip(references, outputs.split([3, 2, 3], -1), strict=True)):
            single = MixedCategorical("discrete", (logits.shape[-1],), references=(reference,), floor=0.2)
            single.proba_distribution(logits)
            single.apply_masking(None if masks is None else masks.split([3, 2, 3], -1)[d])
            total = total + single.kl_reference()
            parts.append(single)
        torch.testing.assert_close(mixture.kl_reference(), total)
        for ours, single in zip(mixture.probabilities(), parts, strict=True):
            torch.testing.assert_close(ours, single.probabilities()[0])


def test_a_reference_policy_is_the_reference_of_kl_but_not_of_the_floor(device: torch.device) -> None:
    own, other = torch.randn(2, 8, 5, device=device)
    masks = draw_masks((2, 3), 8).to(device)
    mixture = MixedCategorical("multi_discrete", (2, 3), floor=0.1).proba_distribution(own, other)
    mixture.apply_masking(masks)
    plain = MixedCategorical("multi_discrete", (2, 3), floor=0.1).proba_distribution(own)
    plain.apply_masking(masks)
    torch.testing.assert_close(mixture.entropy(), plain.entropy())
    expected = torch.zeros(8, device=device)
    for p, q, legal in zip(other.split([2, 3], -1), own.split([2, 3], -1), masks.split([2, 3], -1), strict=True):
        pair = [Categorical(logits=logits.masked_fill(~legal, -1e8)) for logits in (p, q)]
        expected = expected + torch.distributions.kl_divergence(*pair)
    torch.testing.assert_close(mixture.kl_reference(), expected)


@pytest.mark.parametrize(("kind", "dims", "width"), SMALL)
def test_draws_have_the_acting_probabilities(kind: Kind, dims: tuple[int, ...], width: int, device: Any) -> None:
    rows = 20_000
    outputs = torch.randn(1, width, device=device).expand(rows, width)
    masks = draw_masks(dims, 2).to(device)[1:].expand(rows, -1) if width == sum(dims) else None
    mixture = MixedCategorical(kind, dims, floor=0.3).proba_distribution(outputs)
    mixture.apply_masking(masks)
    draws = mixture.sample().long().reshape(rows, -1).cpu()
    for d, probabilities in enumerate(mixture.probabilities()):
        p = probabilities[0].double().cpu().numpy()
        counts = np.bincount(draws[:, d], minlength=len(p))
        assert counts[p == 0].sum() == 0
        expected = rows * p[p > 0] / p[p > 0].sum()
        if len(expected) > 1:
            assert stats.chisquare(counts[p > 0], expected).pvalue > 1e-3


def test_the_entropy_term_and_its_graph(device: torch.device) -> None:
    logits = torch.randn(5, 3, device=device, requires_grad=True)
    term = EntropyTerm(entropy_coef=0.5, kl_coef=2.0)
    mixture = MixedCategorical("discrete", (3,), floor=0.2, entropy_term=term).proba_distribution(logits)
    policy = Categorical(logits=logits)
    kl = torch.distributions.kl_divergence(Categorical(torch.ones_like(logits)), policy)
    expected = 0.5 * policy.entropy() - 2.0 * kl
    with torch.no_grad():
        mixture.network_entropy(), mixture.mixture_entropy()  # what was looked at without a graph, has one when wanted
    found = mixture.entropy()
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(rows.sum(), logits, retain_graph=True)[0] for rows in (found, expected)]
    torch.testing.assert_close(*gradients)
    assert term.mean_entropy() == pytest.approx(policy.entropy().mean().item())


@pytest.mark.parametrize(
    ("kind", "dims", "width", "masked"),
    [(*case, False) for case in CASES] + [(*case, True) for case in CASES if case[2] == sum(case[1])],
)
def test_from_sb3_reads_an_unmodified_policys(kind: Kind, dims: Any, width: int, masked: bool, device: Any) -> None:
    outputs = torch.randn(7, width, device=device)
    theirs: Any
    if masked:
        theirs = make_masked_proba_distribution(space_of(kind, dims)).proba_distribution(outputs)
        theirs.apply_masking(draw_masks(dims, 7).numpy())
    else:
        theirs = parent(kind, dims, outputs)
    mixture = MixedCategorical.from_sb3(theirs)
    torch.testing.assert_close(mixture.entropy(), theirs.entropy())
    actions = theirs.sample()
    torch.testing.assert_close(mixture.log_prob(actions), theirs.log_prob(actions))
    assert mixture.kl_uniform().isfinite().all()
    assert MixedCategorical.from_sb3(mixture) is mixture


def test_torchs_own_form_is_the_acting_one(device: torch.device) -> None:
    logits = torch.randn(4, 3, device=device)
    single = MixedCategorical("discrete", (3,), floor=0.5).proba_distribution(logits).distribution
    assert isinstance(single, Categorical)
    torch.testing.assert_close(single.probs, 0.5 * logits.softmax(-1) + 0.5 / 3)
    bits = MixedCategorical("multi_binary", (2, 2, 2), floor=0.5).proba_distribution(logits).distribution
    assert isinstance(bits, Bernoulli)
    torch.testing.assert_close(bits.probs, 0.5 * logits.sigmoid() + 0.25)
    several = MixedCategorical("multi_discrete", (1, 2), floor=0.5).proba_distribution(logits).distribution
    assert isinstance(several, list)
    assert [part.probs.shape[-1] for part in several] == [1, 2]


def test_parameters_to_actions(device: torch.device) -> None:
    mixture = MixedCategorical("multi_discrete", (2, 3))
    layer = mixture.proba_distribution_net(7).to(device)
    outputs = layer(torch.randn(4, 7, device=device))
    assert torch.equal(mixture.actions_from_params(outputs, deterministic=True), mixture.mode())
    actions, log_prob = mixture.log_prob_from_params(outputs)
    torch.testing.assert_close(log_prob, parent("multi_discrete", (2, 3), outputs).log_prob(actions))


def test_wrong_arguments() -> None:
    assert_raises(ValueError, "kind", MixedCategorical, "box", (2,))
    assert_raises(ValueError, "dims", MixedCategorical, "discrete", (2, 3))
    with pytest.raises(ValueError, match="references has 1 entries for 2 components"):
        MixedCategorical("multi_discrete", (2, 3), references=(None,))
    assert_raises(ValueError, "floor", MixedCategorical, "discrete", (2,), floor=1.5)
    gaussian = make_proba_distribution(spaces.Box(-1, 1, (2,))).proba_distribution(torch.zeros(1, 2), torch.zeros(2))
    assert_raises(TypeError, "categorical or Bernoulli", MixedCategorical.from_sb3, gaussian)


# ---- Gaussians
def make(device: torch.device, floor: float, rows: int = 6, **options: Any) -> tuple[MixedGaussian, Tensor, Tensor]:
    mean = torch.randn(rows, 2, dtype=F64, device=device, requires_grad=True)
    log_std = torch.tensor([-1.0, -0.3], dtype=F64, device=device, requires_grad=True)
    reference = torch.tensor([0.5, -0.5], dtype=F64, device=device), torch.tensor([1.0, 2.0], dtype=F64, device=device)
    return MixedGaussian(*reference, floor=floor, **options).proba_distribution(mean, log_std), mean, log_std


def test_without_a_floor_it_is_the_parents_of_gaussians(device: torch.device) -> None:
    mixture, mean, log_std = make(device, 0.0)
    theirs = DiagGaussianDistribution(2).proba_distribution(mean, log_std)
    draws = []
    for distribution in (mixture, theirs):
        torch.manual_seed(4)
        draws.append(distribution.get_actions())
    torch.testing.assert_close(*draws, rtol=0, atol=1e-12)
    pairs = [(mixture.log_prob(draws[1]), theirs.log_prob(draws[1])), (mixture.entropy(), theirs.entropy())]
    for ours, other in pairs:
        assert ours is not None
        torch.testing.assert_close(ours, other)
        gradients = [torch.autograd.grad(rows.sum(), log_std, retain_graph=True)[0] for rows in (ours, other)]
        torch.testing.assert_close(*gradients)
    assert torch.equal(mixture.mode(), theirs.mode())
    torch.testing.assert_close(
        torch.autograd.grad(draws[0].sum(), log_std), torch.autograd.grad(draws[1].sum(), log_std)
    )


@pytest.mark.parametrize("floor", [0.1, 0.6, 1.0])
def test_floor_is_torchs_mixture_of_whole_vectors(floor: float, device: torch.device) -> None:
    mixture, mean, log_std = make(device, floor)
    actions = 2 * torch.randn_like(mean)
    torchs = mixture.distribution
    assert isinstance(torchs, MixtureSameFamily)
    found, expected = mixture.log_prob(actions), torchs.log_prob(actions)
    torch.testing.assert_close(found, expected)
    by_hand = torch.stack(
        [
            (1 - floor) * Normal(mean[b], log_std.exp()).log_prob(actions[b]).sum().exp()
            + floor * Normal(mixture.reference_mean, mixture.reference_std).log_prob(actions[b]).sum().exp()
            for b in range(len(mean))
        ]
    )
    torch.testing.assert_close(found.exp(), by_hand)
    gradients = [torch.autograd.grad(rows.sum(), (mean, log_std)) for rows in (found, expected)]
    torch.testing.assert_close(*gradients)
    assert mixture.entropy() is None
    assert mixture.mixture_entropy() is None
    assert mixture.entropies_by_dimension() is None
    assert torch.equal(mixture.mode(), mean)
    assert not mixture.sample().requires_grad


def test_draws_of_the_floor(device: torch.device) -> None:
    rows, floor = 20_000, 0.3
    mean, log_std = torch.tensor([2.0, -1.0], device=device).expand(rows, 2), torch.tensor([-1.0, 0.0], device=device)
    zeros, ones = torch.zeros(2, device=device), torch.ones(2, device=device)
    mixture = MixedGaussian(zeros - 4, ones, floor=floor).proba_distribution(mean, log_std)
    draws = mixture.sample().double().cpu().numpy()
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
    mixture, mean, log_std = make(device, 0.2)
    policy = Normal(mean, log_std.exp().expand_as(mean))
    expected = torch_kl(Normal(mixture.reference_mean, mixture.reference_std), policy).sum(-1)
    torch.testing.assert_close(mixture.kl_reference(), expected)
    other = torch.randn_like(mean), torch.tensor([0.2, -0.2], dtype=F64, device=device)
    mixture.proba_distribution(mean, log_std, other)
    expected = torch_kl(Normal(other[0], other[1].exp().expand_as(mean)), policy).sum(-1)
    torch.testing.assert_close(mixture.kl_reference(), expected)
    torch.testing.assert_close(mixture.network_entropy(), policy.entropy().sum(-1))
    assert mixture.kl_uniform() is None
    assert mixture.entropy_fractions() is None


def test_entropy_is_the_entropy_term_or_minus_kl(device: torch.device) -> None:
    for floor in (0.0, 0.2):
        mixture, _, _ = make(device, floor, regularised=True)
        torch.testing.assert_close(mixture.entropy(), -mixture.kl_reference())
        term = EntropyTerm(entropy_coef=0.5, kl_coef=2.0)
        mixture, _, _ = make(device, floor, entropy_term=term)
        torch.testing.assert_close(mixture.entropy(), 0.5 * mixture.network_entropy() - 2.0 * mixture.kl_reference())
        assert term.mean_entropy() == pytest.approx(mixture.network_entropy().mean().item())


def test_entropy_estimate_by_integration(device: torch.device) -> None:
    floor, mean, std = 0.3, 1.0, 0.5
    mixture = MixedGaussian(torch.zeros(1, device=device), 2 * torch.ones(1, device=device), floor=floor)
    mixture.proba_distribution(torch.full((40, 1), mean, device=device), torch.tensor([std], device=device).log())

    def plogp(x: float) -> float:
        density = (1 - floor) * stats.norm.pdf(x, mean, std) + floor * stats.norm.pdf(x, 0, 2)
        return float(-density * np.log(density))

    expected = integrate.quad(plogp, -20, 20)[0]
    state = torch.get_rng_state()
    found = mixture.mixture_entropy_estimate(500)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(mixture.mixture_entropy_estimate(500), found)
    error = float(found.std()) / len(found) ** 0.5
    assert abs(float(found.mean()) - expected) < 4 * error < 0.05
    assert_raises(ValueError, "num_samples", mixture.mixture_entropy_estimate, 0)


def test_entropies_by_dimension_add_up(device: torch.device) -> None:
    mixture, _, _ = make(device, 0.0)
    parts = mixture.entropies_by_dimension()
    assert len(parts) == 2
    torch.testing.assert_close(sum(parts), mixture.mixture_entropy())
    torch.testing.assert_close(mixture.mixture_entropy_estimate(), mixture.mixture_entropy())


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
    mixture = MixedGaussian.from_sb3(theirs)
    normal = theirs.distribution
    torch.testing.assert_close(mixture.network_entropy(), normal.entropy().sum(-1))
    torch.testing.assert_close(mixture.log_prob(mean), normal.log_prob(mean).sum(-1))
    expected = torch_kl(Normal(torch.zeros_like(mean), 1.0), normal).sum(-1)
    torch.testing.assert_close(mixture.kl_reference(), expected)
    assert MixedGaussian.from_sb3(mixture) is mixture


def test_parameters_to_actions_of_gaussians(device: torch.device) -> None:
    mixture = MixedGaussian(torch.zeros(2), torch.ones(2))
    layer, log_std = mixture.proba_distribution_net(3, log_std_init=-0.5)
    assert log_std.tolist() == [-0.5, -0.5]
    mean = layer(torch.randn(4, 3))
    assert torch.equal(mixture.actions_from_params(mean, log_std, deterministic=True), mean)
    actions, log_prob = mixture.log_prob_from_params(mean, log_std)
    expected = DiagGaussianDistribution(2).proba_distribution(mean, log_std).log_prob(actions)
    torch.testing.assert_close(log_prob, expected)


def test_wrong_arguments_of_gaussians() -> None:
    assert_raises(ValueError, "floor", MixedGaussian, torch.zeros(1), torch.ones(1), floor=-0.1)
    categorical = make_proba_distribution(spaces.Discrete(2)).proba_distribution(torch.zeros(1, 2))
    assert_raises(TypeError, "must be a Gaussian", MixedGaussian.from_sb3, categorical)
