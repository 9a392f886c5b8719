"""The losses of Gaussian policies against torch.distributions, numerical integrals and the smoothing identity."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from rlsmooth.losses import gaussian_cross_entropy, gaussian_entropy, gaussian_kl_divergence
from rlsmooth.targets import GaussianTarget, gaussian

F64 = torch.float64
D = 3
directions = pytest.mark.parametrize("direction", ["reference_to_policy", "policy_to_reference"])


def draw(
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
    mean, log_std, actions = draw(device, dtype)
    log_std = (log_std[0] if shared_std else log_std).detach()
    leaves = [mean.requires_grad_(True), log_std.requires_grad_(True)]
    theirs = -Normal(mean, log_std.exp()).log_prob(actions).sum(-1)
    ours = gaussian_cross_entropy(mean, log_std, gaussian(actions, 0.0), reduction="none")
    assert_same(ours, theirs, leaves, tolerance)


@pytest.mark.parametrize("alpha", [-0.2, 0.1, 0.7, 1.0])
@pytest.mark.parametrize("wide", [False, True])
def test_smoothing_is_a_kl_regulariser(alpha: float, wide: bool, device: torch.device) -> None:
    # CE = (1-a)·NLL + a·KL(reference‖policy) + a·H(reference)
    mean, log_std, actions = draw(device)
    leaves = [mean.requires_grad_(True), log_std.requires_grad_(True)]
    centre = torch.tensor([0.5, -1.0, 0.0], dtype=F64, device=device) if wide else torch.tensor(0.0, dtype=F64)
    spread = torch.tensor([2.0, 0.5, 1.0], dtype=F64, device=device) if wide else torch.tensor(1.0, dtype=F64)
    policy, broad = Normal(mean, log_std.exp()), Normal(centre.to(mean), spread.to(mean))
    reference_terms = (kl_divergence(broad, policy) + broad.entropy()).sum(-1)
    theirs = -(1 - alpha) * policy.log_prob(actions).sum(-1) + alpha * reference_terms
    target = gaussian(actions, alpha, reference_mean=centre, reference_std=spread)
    assert_same(gaussian_cross_entropy(mean, log_std, target, reduction="none"), theirs, leaves)
    rows = gaussian_kl_divergence(mean, log_std, centre, spread, direction="reference_to_policy", reduction="none")
    assert_same(rows, kl_divergence(broad, policy).sum(-1), leaves)


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
    mean, log_std, _ = draw(device, dtype)
    leaves = [mean.requires_grad_(True), log_std.requires_grad_(True)]
    for centre, spread in ((0.0, 1.0), (0.5, 2.0), (torch.randn(D, device=device), torch.rand(D, device=device) + 0.1)):
        policy = Normal(mean, log_std.exp())
        other = Normal(torch.as_tensor(centre).to(mean), torch.as_tensor(spread).to(mean))
        theirs = kl_divergence(other, policy) if direction == "reference_to_policy" else kl_divergence(policy, other)
        ours = gaussian_kl_divergence(mean, log_std, centre, spread, direction=direction, reduction="none")  # type: ignore[arg-type]
        assert_same(ours, theirs.sum(-1), leaves, tolerance)


def test_kl_of_a_narrow_policy_is_47_nats(device: torch.device) -> None:
    log_std = torch.tensor([math.log(0.1)], dtype=F64, device=device)
    kl = gaussian_kl_divergence(torch.zeros(1, 1, dtype=F64, device=device), log_std, direction="reference_to_policy")
    assert kl.item() == pytest.approx(0.5 / 0.01 - 0.5 + math.log(0.1))
    assert round(kl.item()) == 47


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_entropy_is_torchs(reduction: str, device: torch.device) -> None:
    _, log_std, _ = draw(device)
    rows = Normal(torch.zeros(D, dtype=F64, device=device), log_std.exp()).entropy().sum(-1)
    expected = {"none": rows, "mean": rows.mean(), "sum": rows.sum()}[reduction]
    torch.testing.assert_close(gaussian_entropy(log_std, reduction), expected)  # type: ignore[arg-type]
    assert gaussian_entropy(torch.full((1, 1), -5.0, device=device)).item() < 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, device: torch.device) -> None:
    mean, log_std, actions = (tensor.to(dtype) for tensor in draw(device))
    mean.requires_grad_(True)
    value = gaussian_cross_entropy(mean, log_std, gaussian(actions, 0.1))
    exact = gaussian_cross_entropy(mean.double(), log_std.double(), gaussian(actions.double(), 0.1))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-5)
    assert torch.autograd.grad(value, mean)[0].dtype == dtype
    kl = gaussian_kl_divergence(mean, log_std, direction="reference_to_policy")
    assert kl.dtype == gaussian_entropy(log_std).dtype == torch.float32


def test_weights_leave_rows_out(device: torch.device) -> None:
    mean, log_std, actions = draw(device)
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
    mean, log_std, actions = draw(device, shape=shape)
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
    mean, log_std, actions = draw(device)
    made = gaussian(actions, 0.0)
    bare = GaussianTarget(actions, 2 * made.atom_weight, None, made.reference_mean, made.reference_std)
    theirs = -2 * Normal(mean, log_std.exp()).log_prob(actions).sum(-1)
    torch.testing.assert_close(gaussian_cross_entropy(mean, log_std, bare, reduction="none"), theirs)


def test_derivatives(device: torch.device) -> None:
    mean, log_std, actions = draw(device, shape=(2,))
    leaves = (mean.requires_grad_(True), log_std.requires_grad_(True))
    target = gaussian(actions, torch.tensor([0.1, 0.5], device=device), reference_mean=0.5, reference_std=2.0)
    for loss in (
        lambda m, s: gaussian_cross_entropy(m, s, target),
        lambda m, s: gaussian_kl_divergence(m, s, 0.5, 2.0, direction="reference_to_policy"),
        lambda m, s: gaussian_kl_divergence(m, s, 0.5, 2.0, direction="policy_to_reference"),
    ):
        assert torch.autograd.gradcheck(loss, leaves)
        assert torch.autograd.gradgradcheck(loss, leaves)


@pytest.mark.parametrize("log_std", [-20.0, -40.0, 20.0, 40.0])
def test_narrow_and_wide_policies(log_std: float, device: torch.device) -> None:
    mean = torch.zeros(1, 1, device=device)
    value = gaussian_cross_entropy(mean, torch.tensor([log_std], device=device), gaussian(mean, 0.0))
    assert value.item() == pytest.approx(log_std + 0.5 * math.log(2 * math.pi))


def test_no_gradient_flows_into_the_reference(device: torch.device) -> None:
    mean, log_std, actions = draw(device)
    centre, spread = torch.zeros(D, dtype=F64, requires_grad=True), torch.ones(D, dtype=F64, requires_grad=True)
    target = gaussian(actions, 0.1, reference_mean=centre.to(device), reference_std=spread.to(device))
    assert not gaussian_cross_entropy(mean, log_std, target).requires_grad


def test_very_narrow_policy_at_its_action(device: torch.device) -> None:
    mean = torch.zeros(1, 1, device=device)
    log_std = torch.tensor([-50.0], device=device)
    theirs = -Normal(mean, log_std.exp()).log_prob(mean)
    torch.testing.assert_close(gaussian_cross_entropy(mean, log_std, gaussian(mean, 0.0)), theirs.squeeze())


def test_ignored_row_may_hold_nan_in_its_log_std(device: torch.device) -> None:
    mean, log_std, actions = draw(device, shape=(2,))
    log_std[0] = torch.nan
    log_std.requires_grad_(True)
    weight = torch.tensor([0.0, 1.0], device=device)
    value = gaussian_cross_entropy(mean, log_std, gaussian(actions, 0.1), weight=weight)
    assert value.isfinite()
    assert (torch.autograd.grad(value, log_std)[0][0] == 0).all()


@pytest.mark.parametrize("shape", [(2,), (7, 5, D)])
def test_log_std_of_a_wrong_shape_is_a_clear_error(shape: tuple[int, ...], device: torch.device) -> None:
    mean, _, actions = draw(device)
    with pytest.raises(ValueError, match="log_std"):
        gaussian_cross_entropy(mean, torch.zeros(shape, dtype=F64, device=device), gaussian(actions))
