"""One discriminator step: against torch's loss, imitation's statistics, and the optimum that theory names."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal
from torch.nn import functional as F

from rlsmooth.losses import binary_cross_entropy
from rlsmooth.training import check_targets, discriminator_loss, discriminator_statistics, discriminator_step
from support import assert_raises


def torch_loss(real: Tensor, fake: Tensor, real_target: float, fake_target: float) -> Tensor:
    """The mean of torch's loss on each side, halved."""
    sides = ((real, real_target), (fake, fake_target))
    return sum(F.binary_cross_entropy_with_logits(x, torch.full_like(x, target)) for x, target in sides) / 2  # type: ignore[return-value]


def imitation_statistics(logits: Tensor, labels_expert_is_one: Tensor) -> dict[str, float]:
    """The definitions of imitation's `compute_train_stats`, counted row by row."""
    rows = list(zip(logits.tolist(), labels_expert_is_one.tolist(), strict=True))
    expert = [logit for logit, label in rows if label == 1]
    generated = [logit for logit, label in rows if label == 0]
    right = sum(logit >= 0 for logit in expert) + sum(logit < 0 for logit in generated)
    return {
        "accuracy": right / len(rows),
        "accuracy_real": sum(logit >= 0 for logit in expert) / len(expert) if expert else math.nan,
        "accuracy_fake": sum(logit < 0 for logit in generated) / len(generated) if generated else math.nan,
        "entropy": float(Bernoulli(logits=logits).entropy().mean()),
        "share_real": len(expert) / len(rows),
        "share_predicted_real": sum(logit >= 0 for logit, _ in rows) / len(rows),
    }


# ---- the loss
@pytest.mark.parametrize(("real_target", "fake_target"), [(1.0, 0.0), (0.9, 0.0), (0.7, 0.2)])
def test_the_loss_and_its_gradient_are_torchs(real_target: float, fake_target: float, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(1)
    sides = [(3 * torch.randn(shape, generator=generator)).to(device) for shape in ((5, 1), (8,))]
    ours = [side.clone().requires_grad_() for side in sides]
    theirs = [side.clone().requires_grad_() for side in sides]
    loss = discriminator_loss(*ours, real_target=real_target, fake_target=fake_target)
    expected = torch_loss(*theirs, real_target, fake_target)
    torch.testing.assert_close(loss, expected)
    for one, other in zip(torch.autograd.grad(loss, ours), torch.autograd.grad(expected, theirs), strict=True):
        torch.testing.assert_close(one, other)


def test_weights_are_torchs_divided_by_their_sum_on_each_side() -> None:
    real, fake = torch.randn(4), torch.randn(3)
    real_weight, fake_weight = torch.tensor([1.0, 0.0, 2.0, 0.5]), torch.tensor([0.2, 0.2, 3.0])
    real[1] = torch.nan  # of weight 0: left out
    loss = discriminator_loss(real, fake, real_target=0.9, real_weight=real_weight, fake_weight=fake_weight)
    expected = torch.zeros(())
    for logits, target, weight in ((real[[0, 2, 3]], 0.9, real_weight[[0, 2, 3]]), (fake, 0.0, fake_weight)):
        rows = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target), reduction="none")
        expected = expected + (weight * rows).sum() / weight.sum() / 2
    torch.testing.assert_close(loss, expected)


def test_a_side_without_rows_or_weight_adds_nothing() -> None:
    logits = torch.tensor([0.3, -2.0])
    half = F.binary_cross_entropy_with_logits(logits, torch.zeros(2)) / 2
    torch.testing.assert_close(discriminator_loss(torch.zeros(0), logits), half)
    torch.testing.assert_close(discriminator_loss(torch.ones(3), logits, real_weight=torch.zeros(3)), half)
    both_empty = torch.zeros(0, requires_grad=True)
    loss = discriminator_loss(both_empty, torch.zeros(0))
    assert loss.item() == 0
    assert torch.autograd.grad(loss, both_empty)[0].shape == (0,)


def test_half_precision_is_computed_in_single(device: torch.device) -> None:
    real, fake = torch.tensor([6.0, -1.0], device=device), torch.tensor([-7.0], device=device)
    loss = discriminator_loss(real.bfloat16(), fake.bfloat16(), real_target=0.9)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch_loss(real, fake, 0.9, 0.0))


def test_what_can_not_be_meant_is_refused() -> None:
    logits = torch.zeros(2)
    assert_raises(TypeError, "floating-point", discriminator_loss, torch.zeros(2, dtype=torch.long), logits)
    assert_raises(ValueError, r"real_target=1\.2", discriminator_loss, logits, logits, real_target=1.2)
    assert_raises(ValueError, "shape", discriminator_loss, logits, logits, real_weight=torch.ones(3))


# ---- the targets
def test_targets_that_smooth_at_most_the_real_side_pass_in_silence() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_targets(1, 0) == (1.0, 0.0)
        assert check_targets(0.7, 0.0) == (0.7, 0.0)


def test_smoothed_fakes_warn_and_say_why() -> None:
    with pytest.warns(
        UserWarning, match=r"fake_target=0\.1 .* gradient then vanishes where real data are rare"
    ) as found:
        assert check_targets(0.9, 0.1) == (0.9, 0.1)
    assert found[0].filename == __file__


@pytest.mark.parametrize(
    ("real_target", "fake_target", "error", "message"),
    [
        (0.0, 1.0, ValueError, r"real_target=0\.0 must be above fake_target=1\.0"),
        (0.5, 0.5, ValueError, r"must be above"),
        (1.5, 0.0, ValueError, r"real_target=1\.5"),
        (0.9, -0.1, ValueError, r"fake_target=-0\.1"),
        (math.nan, 0.0, ValueError, r"real_target=nan"),
        ("0.9", 0.0, TypeError, r"real_target must be a number"),
    ],
)
def test_other_targets_are_refused(real_target: Any, fake_target: Any, error: type[Exception], message: str) -> None:
    assert_raises(error, message, check_targets, real_target, fake_target)


# ---- the statistics
@given(
    real=st.lists(st.floats(-30, 30, width=32), max_size=6),
    fake=st.lists(st.floats(-30, 30, width=32), max_size=6),
    real_target=st.sampled_from([1.0, 0.7]),
)
def test_statistics_are_imitations_whatever_the_targets(
    real: list[float], fake: list[float], real_target: float
) -> None:
    if not real + fake:
        return
    sides = torch.tensor(real), torch.tensor(fake)
    loss = discriminator_loss(*sides, real_target=real_target)
    found = discriminator_statistics(*sides, loss)
    labels = torch.tensor([1.0] * len(real) + [0.0] * len(fake))
    for name, value in imitation_statistics(torch.cat(sides), labels).items():
        assert float(getattr(found, name)) == pytest.approx(value, abs=2e-6, nan_ok=True), name
    for name, side in zip(("probability_real", "probability_fake"), sides, strict=True):
        assert float(getattr(found, name)) == pytest.approx(float(side.sigmoid().mean()), abs=1e-6, nan_ok=True)
    assert torch.equal(found.loss, loss)


def test_statistics_of_nothing_are_nan_and_of_infinite_logits_right() -> None:
    nothing = discriminator_statistics(torch.zeros(0), torch.zeros(0), torch.zeros(()))
    assert all(math.isnan(value) for value in list(map(float, nothing))[1:])
    sure = discriminator_statistics(torch.tensor([torch.inf]), torch.tensor([-torch.inf]), torch.zeros(()))
    assert (float(sure.accuracy), float(sure.entropy), float(sure.probability_real)) == (1.0, 0.0, 1.0)


# ---- the step
def test_a_step_is_torchs_step(device: torch.device) -> None:
    def twin() -> tuple[nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(3)
        model = nn.Linear(2, 1).to(device)
        return model, torch.optim.Adam(model.parameters(), lr=0.1)

    real, fake = torch.randn(6, 2, device=device), torch.randn(5, 2, device=device)
    (ours, our_optimizer), (theirs, their_optimizer) = twin(), twin()
    for _ in range(3):  # gradients must not add up over steps
        penalty = 0.1 * ours.weight.square().sum()
        found = discriminator_step(our_optimizer, ours(real), ours(fake), real_target=0.9, penalty=penalty)
        loss = torch_loss(theirs(real), theirs(fake), 0.9, 0.0) + 0.1 * theirs.weight.square().sum()
        their_optimizer.zero_grad()
        loss.backward()
        their_optimizer.step()
        torch.testing.assert_close(found.loss, loss.detach())
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)
    assert not any(value.requires_grad for value in found)


def test_the_statistics_are_those_before_the_update() -> None:
    weight = torch.tensor([-1.0], requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=100.0)
    found = discriminator_step(optimizer, weight * torch.ones(2), weight * -torch.ones(2))
    assert float(found.accuracy) == 0.0
    assert weight.item() > 0


# ---- theory: the optimum, and what the generator feels there
@pytest.mark.parametrize(("real_target", "fake_target"), [(1.0, 0.0), (0.9, 0.0), (0.7, 0.0), (0.9, 0.1)])
def test_a_trained_discriminator_is_the_optimal_one(real_target: float, fake_target: float) -> None:
    real_density, fake_density = Normal(0.5, 1.0), Normal(-0.5, 0.8)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 150)
    for _ in range(150):
        real, fake = real_density.sample((4096, 1)), fake_density.sample((4096, 1))
        discriminator_step(optimizer, model(real), model(fake), real_target=real_target, fake_target=fake_target)
        schedule.step()
    places = torch.linspace(-2, 2, 81).unsqueeze(1)  # where both have rows enough
    real_there, fake_there = (density.log_prob(places).exp() for density in (real_density, fake_density))
    optimal = (real_target * real_there + fake_target * fake_there) / (real_there + fake_there)
    with torch.no_grad():
        error = (model(places).sigmoid() - optimal).abs().max()
    assert float(error) < 0.02


PLACES = torch.linspace(-3, 3, 61, dtype=torch.float64)


def felt(real_target: float, fake_target: float, *, saturating: bool = False) -> Tensor:
    """The gradient that a fake at each place gets through the optimal discriminator."""
    x = PLACES.clone().requires_grad_()
    ratio = ratio_at(x)
    optimal = (real_target * ratio + fake_target) / (ratio + 1)
    logits = torch.logit(optimal)
    loss = binary_cross_entropy(logits, torch.full_like(x, 0.0 if saturating else 1.0), reduction="sum")
    (gradient,) = torch.autograd.grad(-loss if saturating else loss, x)
    return gradient


def ratio_at(x: Tensor) -> Tensor:
    real, fake = Normal(torch.tensor(0.4).double(), 0.9), Normal(torch.tensor(-0.6).double(), 1.1)
    return (real.log_prob(x) - fake.log_prob(x)).exp()


@pytest.mark.parametrize("real_target", [0.9, 0.7])
def test_one_sided_smoothing_leaves_the_generators_gradient_as_it_is(real_target: float) -> None:
    torch.testing.assert_close(felt(real_target, 0.0) / felt(1.0, 0.0), torch.ones_like(PLACES), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("real_target", "fake_target"), [(0.9, 0.1), (1.0, 0.2), (0.7, 0.3)])
def test_smoothed_fakes_scale_it_by_the_formula(real_target: float, fake_target: float) -> None:
    ratio = ratio_at(PLACES)
    expected = (real_target - fake_target) * ratio / (real_target * ratio + fake_target)
    torch.testing.assert_close(felt(real_target, fake_target) / felt(1.0, 0.0), expected, rtol=0, atol=1e-9)
    assert expected[0] < 0.1  # at -3, where real data are rare, next to nothing is left


@pytest.mark.parametrize(("real_target", "fake_target"), [(0.9, 0.0), (0.9, 0.1)])
def test_the_saturating_generator_feels_one_sided_smoothing_where_real_data_are_common(
    real_target: float, fake_target: float
) -> None:
    ratio = ratio_at(PLACES)
    expected = (real_target - fake_target) / ((1 - real_target) * ratio + 1 - fake_target)
    found = felt(real_target, fake_target, saturating=True) / felt(1.0, 0.0, saturating=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_the_logit_is_capped_where_all_is_real() -> None:
    x = torch.tensor([0.0], requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=8.0)
    for _ in range(200):
        discriminator_step(optimizer, x, torch.zeros(0), real_target=0.9)
    assert x.item() == pytest.approx(math.log(0.9 / 0.1), abs=1e-4)
