"""The losses of categorical and Gaussian policies against dense oracles, torch.distributions and integrals."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.distributions import kl_divergence as torch_kl

from rlsmooth.losses import (
    entropy,
    entropy_fractions,
    entropy_of,
    gaussian_cross_entropy,
    gaussian_entropy,
    gaussian_kl_divergence,
    gaussian_log_prob,
    gaussian_mixture_entropy_estimate,
    gaussian_mixture_log_prob,
    guaranteed_floor,
    guaranteed_floors,
    kl_divergence,
    kl_from_log_probabilities,
    log_probabilities,
    mixture_log_probabilities,
    widened_log_std,
)
from rlsmooth.targets import GaussianTarget, Target, Tree, gaussian, hierarchical, ordinal, prior, uniform
from support import assert_raises

F64 = torch.float64
K = 5
PRIOR = torch.tensor([0.5, 0.3, 0.2, 0.0, 0.0], dtype=F64)
TREE = Tree.from_nested({"a": ["b", "c"], "d": ["e", "f", "g"]})


def draw(device: torch.device, rows: int = 16) -> tuple[Tensor, Tensor]:
    """Logits and masks with at least one legal class; the first row has exactly one."""
    logits = 3 * torch.randn(rows, K, dtype=F64, device=device)
    mask = torch.rand(rows, K, device=device) < 0.6
    mask[:, 0] = True
    mask[0, 1:] = False
    return logits, mask


def reference(kind: str, logits: Tensor, mask: Tensor | None) -> Target | None:
    labels = (logits if mask is None else logits.masked_fill(~mask, -torch.inf)).argmax(-1)
    if kind == "prior":
        return prior(labels, PRIOR, 1.0, mask=mask)
    if kind == "ordinal":
        return ordinal(labels, K, None, "binomial", mask=mask)
    if kind == "tree":
        return hierarchical(labels, TREE, 1.0, mask=mask)
    if kind == "others":
        return uniform(labels, K, 1.0, "others", mask=mask)
    return None


@pytest.mark.parametrize("fill", [-1e8, -torch.inf, torch.nan, 7.0])
def test_illegal_logits_change_nothing_and_get_no_gradient(fill: float, device: torch.device) -> None:
    logits, mask = draw(device)
    leaf = logits.masked_fill(~mask, fill).requires_grad_(True)
    found = log_probabilities(leaf, mask)
    for row in range(len(logits)):
        legal = mask[row]
        torch.testing.assert_close(found[row, legal], Categorical(logits=logits[row, legal]).logits, rtol=0, atol=1e-12)
        assert (found[row, ~legal] == -torch.inf).all()
    mixed = mixture_log_probabilities(found, floor=0.1, mask=mask)
    loss = entropy_of(found) + kl_from_log_probabilities(found, mask=mask) + entropy_of(mixed)
    (gradient,) = torch.autograd.grad((loss + found[:, 0] + mixed[:, 0]).sum(), leaf)
    assert gradient.isfinite().all()
    assert (gradient[~mask] == 0).all()
    assert (gradient[0] == 0).all()  # one legal class: nothing to decide
    assert (gradient[1:][mask[1:]] != 0).any()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["uniform", "prior", "ordinal", "tree", "others"])
def test_values_and_gradients_are_those_of_the_losses(kind: str, masked: bool, device: torch.device) -> None:
    logits, mask = draw(device)
    legal = mask if masked else None
    goal = reference(kind, logits, legal)
    leaf = logits.requires_grad_(True)
    log_probs = log_probabilities(leaf, legal)
    pairs = (
        (entropy_of(log_probs), entropy(leaf, legal)),
        (
            kl_from_log_probabilities(log_probs, goal, mask=legal),
            kl_divergence(leaf, goal, direction="reference_to_policy", mask=legal, reduction="none"),
        ),
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        gradients = [torch.autograd.grad(rows.sum(), leaf, retain_graph=True)[0] for rows in (ours, theirs)]
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
        if masked:
            assert ours[0] == 0  # one legal class
    if goal is not None:
        written = goal.dense(F64)
        torch.testing.assert_close(
            kl_from_log_probabilities(log_probs, written), pairs[1][0], rtol=0, atol=0
        )  # probabilities do as well as a Target


def test_impossible_classes_without_a_mask(device: torch.device) -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf], [0.0, -1e8, -torch.inf]], device=device, requires_grad=True)
    log_probs = log_probabilities(logits)
    rows = entropy_of(log_probs)
    expected = [Categorical(logits=torch.tensor([0.0, 1.0])).entropy().item(), 0.0]
    assert rows.tolist() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(1e6 * rows.sum(), logits)  # a large factor must not overflow
    assert gradient.isfinite().all()
    half = torch.tensor([0.5, 0.5, 0.0], device=device)
    assert kl_from_log_probabilities(log_probs, half).isfinite().all()  # the reference lacks the impossible class
    assert kl_from_log_probabilities(log_probs).tolist() == [math.inf, math.inf]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_logits_are_not_hidden(bad: float, device: torch.device) -> None:
    log_probs = log_probabilities(torch.tensor([[bad, 0.0, 1.0]], device=device))
    one = torch.tensor([[0.0, 1.0, 0.0]], device=device)
    for rows in (
        entropy_of(log_probs),
        kl_from_log_probabilities(log_probs),
        kl_from_log_probabilities(log_probs, one),
    ):
        assert rows.isnan().all()
    assert mixture_log_probabilities(log_probs, one, floor=0.1).isnan().any()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["uniform", "prior", "ordinal", "tree", "others"])
@pytest.mark.parametrize("floor", [0.01, 0.5, 1.0])
def test_mixture_is_the_mixture(floor: float, kind: str, masked: bool, device: torch.device) -> None:
    logits, mask = draw(device)
    legal = mask if masked else None
    goal = reference(kind, logits, legal)
    allowed = mask if masked else torch.ones_like(mask)
    r = allowed.double() / allowed.sum(-1, keepdim=True) if goal is None else goal.dense(F64)
    leaf = logits.requires_grad_(True)
    found = mixture_log_probabilities(log_probabilities(leaf, legal), goal, floor=floor, mask=legal)
    p = leaf.masked_fill(~allowed, -torch.inf).softmax(-1)
    expected = (1 - floor) * p + floor * r
    torch.testing.assert_close(found.exp(), expected, rtol=1e-12, atol=1e-15)
    weights = torch.randn_like(logits)
    terms = [torch.where(expected > 0, weights * rows, 0.0).sum() for rows in (found, expected.clamp_min(1e-300).log())]
    ours, theirs = (torch.autograd.grad(term, leaf, retain_graph=True)[0] for term in terms)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_mixture_where_probabilities_underflow(device: torch.device) -> None:
    logits = torch.tensor([[0.0, -2000.0, -3000.0]], device=device, requires_grad=True)
    r = torch.tensor([[0.4, 0.6, 0.0]], device=device)
    found = mixture_log_probabilities(log_probabilities(logits), r, floor=0.1)
    assert found.tolist() == [pytest.approx([math.log(0.94), math.log(0.06), math.log(0.9) - 3000], rel=1e-6)]
    for place, expected in ((1, [0.0, 0.0, 0.0]), (2, [-1.0, 0.0, 1.0])):
        (gradient,) = torch.autograd.grad(found[0, place], logits, retain_graph=True)
        assert gradient.tolist() == [pytest.approx(expected)]


def test_gradients_by_differences(device: torch.device) -> None:
    logits, mask = draw(device, 4)
    leaf = logits.requires_grad_(True)
    goal = reference("tree", logits, mask)

    def rows(values: Tensor) -> Tensor:
        log_probs = log_probabilities(values, mask)
        mixed = mixture_log_probabilities(log_probs, goal, floor=0.2, mask=mask)
        chosen = mixed.masked_fill(~mask, 0.0).square().sum(-1)
        return torch.stack(
            (entropy_of(log_probs), kl_from_log_probabilities(log_probs, goal), entropy_of(mixed), chosen)
        )

    assert torch.autograd.gradcheck(rows, leaf)
    assert torch.autograd.gradgradcheck(rows, leaf)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype, device: torch.device) -> None:
    logits = torch.tensor([[12.0, 0.0], [1.0, 1.0]], device=device).to(dtype).requires_grad_(True)
    log_probs = log_probabilities(logits)
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs, logits.float().log_softmax(-1))
    (gradient,) = torch.autograd.grad(entropy_of(log_probs).sum(), logits)
    assert gradient.dtype == dtype


@given(
    logits=st.lists(st.floats(-800, 800), min_size=1, max_size=6),
    floor=st.floats(0, 1),
    legal_bits=st.integers(1, 63),
    prior_seed=st.integers(0, 1000),
)
def test_algebra(logits: list[float], floor: float, legal_bits: int, prior_seed: int) -> None:
    size = len(logits)
    mask = torch.tensor([bool(legal_bits >> k & 1) for k in range(size)])
    mask[prior_seed % size] = True
    r = torch.rand(size, dtype=F64, generator=torch.Generator().manual_seed(prior_seed)) * mask
    r = r / r.sum()
    log_probs = log_probabilities(torch.tensor(logits, dtype=F64), mask)
    mixed = mixture_log_probabilities(log_probs, r, floor=floor)
    p, q = log_probs.exp(), mixed.exp()
    log_n = math.log(int(mask.sum()))
    assert float(q.sum()) == pytest.approx(1, abs=1e-12)
    assert (q >= floor * r - 1e-12).all()
    assert (q >= (1 - floor) * p - 1e-12).all()
    assert (q[~mask] == 0).all()
    assert -1e-12 <= float(entropy_of(mixed)) <= log_n + 1e-12
    # Entropy is concave.
    assert (
        float(entropy_of(mixed))
        >= (1 - floor) * float(entropy_of(log_probs)) + floor * float(-torch.xlogy(r, r).sum()) - 1e-10
    )
    assert float(kl_from_log_probabilities(log_probs, r)) >= -1e-10
    # KL is convex, and the mixture is nearer to the reference.
    assert (
        float(kl_from_log_probabilities(mixed, r))
        <= (1 - floor) * float(kl_from_log_probabilities(log_probs, r)) + 1e-9
    )
    everywhere = mixture_log_probabilities(log_probs, r, floor=1.0).exp()
    torch.testing.assert_close(everywhere, r, rtol=1e-12, atol=0)
    assert mixture_log_probabilities(log_probs, r, floor=0.0) is log_probs


def gaussian_arguments(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    actions, mean = (2 * torch.randn(7, 3, dtype=F64, device=device) for _ in range(2))
    log_std = torch.randn(3, dtype=F64, device=device)
    return actions, mean, log_std, torch.randn(3, dtype=F64, device=device), 1 + torch.rand(3, dtype=F64, device=device)


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("floor", [0.0, 0.05, 0.7])
def test_gaussians_are_torchs(floor: float, per_row: bool, device: torch.device) -> None:
    actions, mean, log_std, reference_mean, reference_std = gaussian_arguments(device)
    if per_row:
        log_std = log_std.expand(7, 3).clone()
    leaves = [mean.requires_grad_(True), log_std.requires_grad_(True)]
    found = gaussian_mixture_log_prob(actions, mean, log_std, reference_mean, reference_std, floor=floor)
    stds = torch.stack((log_std.exp().expand(7, 3), reference_std.expand(7, 3)), dim=1)
    means = torch.stack((mean, reference_mean.expand(7, 3)), dim=1)
    shares = torch.tensor([1 - floor, floor], dtype=F64, device=device).expand(7, 2)
    if floor:
        theirs = MixtureSameFamily(Categorical(shares), Independent(Normal(means, stds), 1)).log_prob(actions)
    else:
        theirs = Independent(Normal(mean, log_std.exp()), 1).log_prob(actions)
        torch.testing.assert_close(gaussian_log_prob(actions, mean, log_std), theirs)
    torch.testing.assert_close(found, theirs, rtol=1e-12, atol=1e-12)
    for ours, other in zip(
        torch.autograd.grad(found.sum(), leaves), torch.autograd.grad(theirs.sum(), leaves), strict=True
    ):
        torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-12)


def test_one_log_std_for_all_dimensions(device: torch.device) -> None:
    actions, mean = gaussian_arguments(device)[:2]
    one = torch.tensor([0.3], dtype=F64, device=device)
    expected = Independent(Normal(mean, one.exp().expand(7, 3)), 1).log_prob(actions)
    torch.testing.assert_close(gaussian_log_prob(actions, mean, one), expected)


def test_actions_that_both_gaussians_think_impossible(device: torch.device) -> None:
    mean = torch.zeros(1, 1, device=device, requires_grad=True)
    one = torch.ones(1, device=device)
    actions = torch.tensor([[1e30]], device=device)  # its square is inf in float32
    found = gaussian_mixture_log_prob(actions, mean, 0 * one, 0 * one, one, floor=0.1)
    assert found.tolist() == [-math.inf]
    assert torch.autograd.grad(found.sum(), mean)[0].tolist() == [[0.0]]


@pytest.mark.parametrize("floor", [-0.1, 1.1, math.nan])
def test_floor_out_of_range(floor: float) -> None:
    assert_raises(ValueError, "floor", mixture_log_probabilities, torch.zeros(1, 2), floor=floor)


def test_wrong_arguments() -> None:
    log_probs = log_probabilities(torch.zeros(2, 3))
    with pytest.raises(TypeError, match="logits must be a floating-point tensor"):
        log_probabilities(torch.zeros(2, 3, dtype=torch.int64))
    assert_raises(TypeError, "mask", log_probabilities, torch.zeros(2, 3), torch.ones(2, 3))
    assert_raises(TypeError, "reference must be a Target", kl_from_log_probabilities, log_probs, "uniform")
    with pytest.raises(ValueError, match="reference is for 4 classes"):
        kl_from_log_probabilities(log_probs, uniform(torch.zeros(2, dtype=torch.int64), 4, 1.0))
    with pytest.raises(TypeError, match="mean"):
        gaussian_log_prob(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.int64), torch.zeros(2))


def test_entropy_fractions_are_of_the_largest_where_there_is_a_choice(device: torch.device) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0], [5.0, 0.0, 0.0]], dtype=torch.float64, device=device)
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]], device=device)
    fractions, has_choice = entropy_fractions(entropy(logits, mask), mask.sum(-1).to(logits.dtype).log())
    assert has_choice.tolist() == [True, True, False]
    expected = Categorical(logits=logits[0]).entropy() / torch.log(torch.tensor(3.0))
    torch.testing.assert_close(
        fractions, torch.stack((expected, torch.ones_like(expected), torch.zeros_like(expected)))
    )


def test_the_estimated_entropy_of_a_mixture_is_its_integral() -> None:
    mean, log_std = torch.tensor([[0.5]], dtype=torch.float64), torch.tensor([-1.5], dtype=torch.float64)
    other, std = torch.tensor([-0.3], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)
    mixture = MixtureSameFamily(
        Categorical(torch.tensor([0.7, 0.3], dtype=torch.float64)),
        Normal(torch.stack((mean[0, 0], other[0])), torch.stack((log_std.exp()[0], std[0]))),
    )
    grid = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    density = mixture.log_prob(grid)
    exact = -torch.trapezoid(density.exp() * density, grid)
    noise = torch.randn(200_000, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = gaussian_mixture_entropy_estimate(mean, log_std, other, std, floor=0.3, noise=noise)
    assert float(found) == pytest.approx(float(exact), abs=0.01)


# ---- Gaussian policies
D = 3
directions = pytest.mark.parametrize("direction", ["reference_to_policy", "policy_to_reference"])


def draw_gaussian(
    device: torch.device, dtype: torch.dtype = F64, shape: tuple[int, ...] = (5,)
) -> tuple[Tensor, Tensor, Tensor]:
    """A policy's mean and log std, and actions."""
    return tuple(torch.randn(*shape, D, dtype=dtype, device=device) for _ in range(3))  # type: ignore[return-value]


def assert_same(ours: Tensor, theirs: Tensor, leaves: list[Tensor], tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    mine = torch.autograd.grad(ours.sum(), leaves, retain_graph=True)
    wanted = torch.autograd.grad(theirs.sum(), leaves, retain_graph=True)
    torch.testing.assert_close(mine, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shared_std", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-5), (F64, 1e-12)])
def test_alpha_0_is_the_negative_log_likelihood(
    dtype: torch.dtype, tolerance: float, shared_std: bool, device: torch.device
) -> None:
    mean, log_std, actions = draw_gaussian(device, dtype)
    log_std = (log_std[0] if shared_std else log_std).detach()
    leaves = [mean.requires_grad_(True), log_std.requires_grad_(True)]
    theirs = -Normal(mean, log_std.exp()).log_prob(actions).sum(-1)
    ours = gaussian_cross_entropy(mean, log_std, gaussian(actions, 0.0), reduction="none")
    assert_same(ours, theirs, leaves, tolerance)


@pytest.mark.parametrize("alpha", [-0.2, 0.1, 0.7, 1.0])
@pytest.mark.parametrize("wide", [False, True])
def test_smoothing_is_a_kl_regulariser(alpha: float, wide: bool, device: torch.device) -> None:
    # CE = (1-a)·NLL + a·KL(reference‖policy) + a·H(reference)
    mean, log_std, actions = draw_gaussian(device)
    leaves = [mean.requires_grad_(True), log_std.requires_grad_(True)]
    centre = torch.tensor([0.5, -1.0, 0.0], dtype=F64, device=device) if wide else torch.tensor(0.0, dtype=F64)
    spread = torch.tensor([2.0, 0.5, 1.0], dtype=F64, device=device) if wide else torch.tensor(1.0, dtype=F64)
    policy, broad = Normal(mean, log_std.exp()), Normal(centre.to(mean), spread.to(mean))
    reference_terms = (torch_kl(broad, policy) + broad.entropy()).sum(-1)
    theirs = -(1 - alpha) * policy.log_prob(actions).sum(-1) + alpha * reference_terms
    target = gaussian(actions, alpha, reference_mean=centre, reference_std=spread)
    assert_same(gaussian_cross_entropy(mean, log_std, target, reduction="none"), theirs, leaves)
    rows = gaussian_kl_divergence(mean, log_std, centre, spread, direction="reference_to_policy", reduction="none")
    assert_same(rows, torch_kl(broad, policy).sum(-1), leaves)


def test_background_is_an_expectation(device: torch.device) -> None:
    # By numerical integration over the reference, in one dimension.
    grid = torch.linspace(-12, 12, 20_001, dtype=F64, device=device)
    broad = Normal(torch.tensor(0.5, dtype=F64, device=device), torch.tensor(1.5, dtype=F64, device=device))
    density = broad.log_prob(grid).exp()
    mean, log_std = torch.tensor([[0.3]], dtype=F64, device=device), torch.tensor([-0.4], dtype=F64, device=device)
    expected = torch.trapezoid(-density * Normal(mean[0], log_std.exp()).log_prob(grid), grid)
    target = gaussian(torch.zeros(1, 1, dtype=F64, device=device), 1.0, reference_mean=0.5, reference_std=1.5)
    torch.testing.assert_close(gaussian_cross_entropy(mean, log_std, target), expected, rtol=1e-9, atol=0)


def test_the_optimum_keeps_its_width(device: torch.device) -> None:
    # One action, alpha a, reference N(0, s²): the mean is (1-a)·x, the variance a·s² + a(1-a)·x²
    alpha, spread, action = 0.2, 1.5, 2.0
    mean = torch.tensor([[(1 - alpha) * action]], dtype=F64, device=device, requires_grad=True)
    variance = alpha * spread**2 + alpha * (1 - alpha) * action**2
    log_std = torch.tensor([0.5 * math.log(variance)], dtype=F64, device=device, requires_grad=True)
    target = gaussian(torch.tensor([[action]], dtype=F64, device=device), alpha, reference_std=spread)
    for slope in torch.autograd.grad(gaussian_cross_entropy(mean, log_std, target), (mean, log_std)):
        assert slope.abs().max() < 1e-12


@directions
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-5), (F64, 1e-12)])
def test_kl_is_torchs(direction: str, dtype: torch.dtype, tolerance: float, device: torch.device) -> None:
    mean, log_std, _ = draw_gaussian(device, dtype)
    leaves = [mean.requires_grad_(True), log_std.requires_grad_(True)]
    for centre, spread in ((0.0, 1.0), (0.5, 2.0), (torch.randn(D, device=device), torch.rand(D, device=device) + 0.1)):
        policy = Normal(mean, log_std.exp())
        other = Normal(torch.as_tensor(centre).to(mean), torch.as_tensor(spread).to(mean))
        theirs = torch_kl(other, policy) if direction == "reference_to_policy" else torch_kl(policy, other)
        ours = gaussian_kl_divergence(mean, log_std, centre, spread, direction=direction, reduction="none")  # type: ignore[arg-type]
        assert_same(ours, theirs.sum(-1), leaves, tolerance)


def test_kl_of_a_narrow_policy_is_47_nats(device: torch.device) -> None:
    log_std = torch.tensor([math.log(0.1)], dtype=F64, device=device)
    kl = gaussian_kl_divergence(torch.zeros(1, 1, dtype=F64, device=device), log_std, direction="reference_to_policy")
    assert kl.item() == pytest.approx(0.5 / 0.01 - 0.5 + math.log(0.1))
    assert round(kl.item()) == 47


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_entropy_is_torchs(reduction: str, device: torch.device) -> None:
    _, log_std, _ = draw_gaussian(device)
    rows = Normal(torch.zeros(D, dtype=F64, device=device), log_std.exp()).entropy().sum(-1)
    expected = {"none": rows, "mean": rows.mean(), "sum": rows.sum()}[reduction]
    torch.testing.assert_close(gaussian_entropy(log_std, reduction), expected)  # type: ignore[arg-type]
    assert gaussian_entropy(torch.full((1, 1), -5.0, device=device)).item() < 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, device: torch.device) -> None:
    mean, log_std, actions = (tensor.to(dtype) for tensor in draw_gaussian(device))
    mean.requires_grad_(True)
    value = gaussian_cross_entropy(mean, log_std, gaussian(actions, 0.1))
    exact = gaussian_cross_entropy(mean.double(), log_std.double(), gaussian(actions.double(), 0.1))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-5)
    assert torch.autograd.grad(value, mean)[0].dtype == dtype
    kl = gaussian_kl_divergence(mean, log_std, direction="reference_to_policy")
    assert kl.dtype == gaussian_entropy(log_std).dtype == torch.float32


def test_weights_leave_rows_out(device: torch.device) -> None:
    mean, log_std, actions = draw_gaussian(device)
    mean[0] = torch.nan
    mean[1] = torch.inf
    leaf = mean.requires_grad_(True)
    weight = torch.tensor([0.0, 0.0, 1.0, 2.0, 3.0], device=device)
    target = gaussian(actions, 0.1)
    rows = gaussian_cross_entropy(mean[2:], log_std[2:], target[2:], reduction="none") * weight[2:]
    for reduction, expected in (("sum", rows.sum()), ("mean", rows.sum() / 6), ("none", rows)):
        value = gaussian_cross_entropy(leaf, log_std, target, weight=weight, reduction=reduction)  # type: ignore[arg-type]
        torch.testing.assert_close(value[2:] if reduction == "none" else value, expected)
        (gradient,) = torch.autograd.grad(value.sum(), leaf, retain_graph=True)
        assert (gradient[:2] == 0).all()
        assert gradient.isfinite().all()
    assert gaussian_cross_entropy(leaf, log_std, target, weight=torch.zeros(5, device=device)).item() == 0


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (2, 0)])
def test_any_batch_shape(shape: tuple[int, ...], device: torch.device) -> None:
    mean, log_std, actions = draw_gaussian(device, shape=shape)
    target = gaussian(actions, 0.1)
    rows = gaussian_cross_entropy(mean, log_std, target, reduction="none")
    assert rows.shape == shape == gaussian_entropy(log_std).shape
    assert (
        gaussian_kl_divergence(mean, log_std[..., :1], direction="policy_to_reference", reduction="none").shape == shape
    )
    if 0 in shape:
        assert gaussian_cross_entropy(mean, log_std, target).item() == 0
    theirs = -0.9 * Normal(mean, log_std.exp()).log_prob(actions)
    background = 0.1 * (log_std + 0.5 * math.log(2 * math.pi) + 0.5 * (mean**2 + 1) * torch.exp(-2 * log_std))
    torch.testing.assert_close(rows, (theirs + background).sum(-1))


def test_a_target_without_background(device: torch.device) -> None:
    mean, log_std, actions = draw_gaussian(device)
    made = gaussian(actions, 0.0)
    bare = GaussianTarget(actions, 2 * made.atom_weight, None, made.reference_mean, made.reference_std)
    theirs = -2 * Normal(mean, log_std.exp()).log_prob(actions).sum(-1)
    torch.testing.assert_close(gaussian_cross_entropy(mean, log_std, bare, reduction="none"), theirs)


def test_derivatives(device: torch.device) -> None:
    mean, log_std, actions = draw_gaussian(device, shape=(2,))
    leaves = (mean.requires_grad_(True), log_std.requires_grad_(True))
    target = gaussian(actions, torch.tensor([0.1, 0.5], device=device), reference_mean=0.5, reference_std=2.0)
    for loss in (
        lambda m, s: gaussian_cross_entropy(m, s, target),
        lambda m, s: gaussian_kl_divergence(m, s, 0.5, 2.0, direction="reference_to_policy"),
        lambda m, s: gaussian_kl_divergence(m, s, 0.5, 2.0, direction="policy_to_reference"),
    ):
        assert torch.autograd.gradcheck(loss, leaves)
        assert torch.autograd.gradgradcheck(loss, leaves)


@pytest.mark.parametrize("log_std", [-20.0, -40.0, -50.0, 20.0, 40.0])
def test_narrow_and_wide_policies(log_std: float, device: torch.device) -> None:
    mean = torch.zeros(1, 1, device=device)
    value = gaussian_cross_entropy(mean, torch.tensor([log_std], device=device), gaussian(mean, 0.0))
    assert value.item() == pytest.approx(log_std + 0.5 * math.log(2 * math.pi))


def test_ignored_row_may_hold_nan_in_its_log_std(device: torch.device) -> None:
    mean, log_std, actions = draw_gaussian(device, shape=(2,))
    log_std[0] = torch.nan
    log_std.requires_grad_(True)
    weight = torch.tensor([0.0, 1.0], device=device)
    value = gaussian_cross_entropy(mean, log_std, gaussian(actions, 0.1), weight=weight)
    assert value.isfinite()
    assert (torch.autograd.grad(value, log_std)[0][0] == 0).all()


@pytest.mark.parametrize("shape", [(2,), (7, 5, D)])
def test_log_std_of_a_wrong_shape_is_a_clear_error(shape: tuple[int, ...], device: torch.device) -> None:
    mean, _, actions = draw_gaussian(device)
    with pytest.raises(ValueError, match="log_std"):
        gaussian_cross_entropy(mean, torch.zeros(shape, dtype=F64, device=device), gaussian(actions))


# ---- a guaranteed entropy


@pytest.mark.parametrize("frac", [1e-6, 0.05, 0.5, 0.95, 1 - 1e-9])
@pytest.mark.parametrize("n", [2, 3, 18, 100, 100_000])
def test_the_guaranteed_floor_is_the_least_of_those_that_suffice(n: int, frac: float) -> None:
    """By mpmath, of the certain policy; to a part in 4 million, which is float32's step."""
    with mpmath.workdps(60):

        def entropy_with(floor: mpmath.mpf) -> mpmath.mpf:
            others = floor * (n - 1) / n
            return -(1 - others) * mpmath.log(1 - others) - others * mpmath.log(floor / n)

        floor = mpmath.mpf(guaranteed_floor(frac, n))
        assert entropy_with(floor) >= mpmath.mpf(frac) * mpmath.log(n)
        assert entropy_with(floor * (1 - mpmath.mpf(2.4e-7))) < mpmath.mpf(frac) * mpmath.log(n)
    assert np.float32(guaranteed_floor(frac, n)) == guaranteed_floor(frac, n) <= frac * (1 + 2.4e-7)


@pytest.mark.parametrize("n", [2, 3, 7, 18, 100])
def test_no_policy_is_below_the_guarantee(n: int) -> None:
    """By force: 80,000 random policies a size, from even ones to corners, and the extremes, computed in float32."""
    generator = np.random.default_rng(n)
    drawn = [generator.standard_normal((20_000, n), np.float32) * scale for scale in (0.3, 3.0, 30.0, 300.0)]
    corners = np.float32([1e4, -1e4, 0.0, 80.0, 88.7, 103.0, 104.0])[:, None] * (np.arange(n) == 0)
    pairs = np.where(np.arange(n) < 2, 0.0, -np.inf).astype(np.float32)[None]  # as even as two of n allow
    log_probs = log_probabilities(torch.from_numpy(np.concatenate([*drawn, corners.astype(np.float32), pairs])))
    for frac in (0.01, 0.5, 0.999) if n < 100 else (0.5,):
        mixed = mixture_log_probabilities(log_probs, floor=guaranteed_floor(frac, n))
        lowest = float(entropy_of(mixed).amin())
        assert lowest == pytest.approx(frac * math.log(n), abs=1e-6 * math.log(n))  # never below, and met by a corner
        exact = float(entropy_of(mixed.double()).amin())
        assert exact >= (frac - 1e-6) * math.log(n)


def test_a_table_of_floors_has_each_row_its_own() -> None:
    """A tensor of floors gives what each number gives by itself, legal actions and gradient included."""
    floors = guaranteed_floors(0.5, K, F64, torch.device("cpu"))
    logits, mask = draw(torch.device("cpu"))
    leaf = logits.requires_grad_()
    counts = mask.sum(-1, keepdim=True)
    found = mixture_log_probabilities(log_probabilities(leaf, mask), floor=floors[counts], mask=mask)
    rows = [
        mixture_log_probabilities(log_probabilities(one, legal), floor=guaranteed_floor(0.5, int(count)), mask=legal)
        for one, legal, count in zip(leaf, mask, counts, strict=True)
    ]
    torch.testing.assert_close(found, torch.stack(rows))
    ours, theirs = (torch.autograd.grad(one.exp().square().sum(), leaf)[0] for one in (found, torch.stack(rows)))
    torch.testing.assert_close(ours, theirs)
    whole = mixture_log_probabilities(log_probabilities(logits), floor=floors[[K] * len(logits)].unsqueeze(-1))
    assert (entropy_of(whole) >= 0.5 * math.log(K)).all()
    assert_raises(ValueError, "frac=1.1", guaranteed_floor, 1.1, 2)


def test_widened_deviations_meet_the_bound_and_leave_what_is_above() -> None:
    log_std = torch.tensor([[-20.0, -20.0], [-1.0, 0.5], [3.0, 3.0]], dtype=F64)
    found = widened_log_std(log_std, 2.0)
    torch.testing.assert_close(gaussian_entropy(found), gaussian_entropy(log_std).clamp_min(2.0))
    torch.testing.assert_close(found.diff(), log_std.diff())
    assert torch.equal(found[2], log_std[2])
    assert float(gaussian_entropy(widened_log_std(torch.full((1, 6), -20.0), -3.0))) == pytest.approx(-3.0, abs=1e-5)
