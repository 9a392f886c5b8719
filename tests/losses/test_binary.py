"""binary_cross_entropy against torch's, at infinite logits, and what one-sided smoothing promises."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rlsmooth.losses import binary_cross_entropy

INF = math.inf
REAL_FAKE = [(1.0, 0.0), (0.9, 0.0), (0.9, 0.1), (1.0, 0.2), (0.0, 1.0), (0.5, 0.5)]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize(("real", "fake"), REAL_FAKE)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_equals_torch(
    dtype: torch.dtype, tolerance: float, real: float, fake: float, reduction: str, device: torch.device
) -> None:
    logits = (5 * torch.randn(4, 3, dtype=dtype, device=device)).requires_grad_(True)
    is_real = torch.rand(4, 3, device=device) < 0.5
    target = fake + (real - fake) * is_real.to(dtype)
    for labels in (is_real, is_real.long(), is_real.to(dtype)):
        ours = binary_cross_entropy(logits, labels, real_target=real, fake_target=fake, reduction=reduction)  # type: ignore[arg-type]
        theirs = F.binary_cross_entropy_with_logits(logits, target, reduction=reduction)
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
        gradients = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (ours, theirs)]
        torch.testing.assert_close(*gradients, rtol=tolerance, atol=tolerance)


def test_labels_between_real_and_fake_mix_the_targets(device: torch.device) -> None:
    logits = torch.randn(5, dtype=torch.float64, device=device)
    share = torch.linspace(0, 1, 5, dtype=torch.float64, device=device)
    ours = binary_cross_entropy(logits, share, real_target=0.9, fake_target=0.2, reduction="none")
    theirs = F.binary_cross_entropy_with_logits(logits, 0.2 + 0.7 * share, reduction="none")
    torch.testing.assert_close(ours, theirs)


def test_weights_leave_rows_out(device: torch.device) -> None:
    logits = torch.tensor([math.nan, INF, 1.0, -2.0], dtype=torch.float64, device=device, requires_grad=True)
    labels = torch.tensor([1, 0, 1, 0], device=device)
    weight = torch.tensor([0.0, 0.0, 1.0, 3.0], device=device)
    kept = logits[2:].detach().requires_grad_(True)
    rows = F.binary_cross_entropy_with_logits(kept, labels[2:].double(), reduction="none") * weight[2:]
    for reduction, expected in (("sum", rows.sum()), ("mean", rows.sum() / 4), ("none", rows)):
        value = binary_cross_entropy(logits, labels, weight=weight, reduction=reduction)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        (wanted,) = torch.autograd.grad(expected.sum(), kept, retain_graph=True)
        if reduction == "none":
            assert value[:2].tolist() == [0.0, 0.0]
        torch.testing.assert_close(value.sum(), expected.sum())
        assert gradient[:2].tolist() == [0.0, 0.0]
        torch.testing.assert_close(gradient[2:], wanted)


def test_no_weight_and_no_rows_give_0(device: torch.device) -> None:
    logits = torch.full((2,), math.nan, device=device, requires_grad=True)
    value = binary_cross_entropy(logits, torch.ones(2, device=device), weight=torch.zeros(2, device=device))
    assert value.item() == 0
    assert torch.autograd.grad(value, logits)[0].tolist() == [0.0, 0.0]
    assert binary_cross_entropy(torch.zeros(0, device=device), torch.zeros(0, device=device)).item() == 0


@pytest.mark.parametrize(
    ("logit", "label", "real", "fake", "expected", "slope"),
    [
        (INF, 1, 1.0, 0.0, 0.0, 0.0),
        (-INF, 0, 1.0, 0.0, 0.0, 0.0),
        (INF, 0, 1.0, 0.0, INF, 1.0),
        (-INF, 1, 1.0, 0.0, INF, -1.0),
        (INF, 1, 0.9, 0.0, INF, 0.1),
        (-INF, 0, 0.9, 0.0, 0.0, 0.0),
        (INF, 1, 1.0, 0.3, 0.0, 0.0),
        (1e4, 1, 1.0, 0.0, 0.0, 0.0),
        (-1e4, 1, 1.0, 0.0, 1e4, -1.0),
        (1e4, 1, 0.75, 0.0, 2500.0, 0.25),
        (-1e4, 0, 1.0, 0.25, 2500.0, -0.25),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_infinite_and_huge_logits(
    logit: float,
    label: int,
    real: float,
    fake: float,
    expected: float,
    slope: float,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    logits = torch.tensor([logit], dtype=dtype, device=device, requires_grad=True)
    labels = torch.tensor([label], device=device)
    value = binary_cross_entropy(logits, labels, real_target=real, fake_target=fake)
    assert value.item() == expected
    assert torch.autograd.grad(value, logits)[0].item() == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("real", [1.0, 0.9])
def test_nan_comes_out(label: int, real: float, device: torch.device) -> None:
    logits = torch.tensor([math.nan, 1.0], device=device, requires_grad=True)
    value = binary_cross_entropy(logits, torch.tensor([label, 1], device=device), real_target=real)
    assert value.isnan()
    assert torch.autograd.grad(value, logits)[0][0].isnan()


@pytest.mark.parametrize("alpha", [0.6, 0.9, 0.99])
def test_one_sided_smoothing_caps_the_logit(alpha: float, device: torch.device) -> None:
    # Real data alone: the loss is least at log(a / (1 - a)), and flat there.
    cap = math.log(alpha / (1 - alpha))
    logits = torch.tensor([cap - 0.01, cap, cap + 0.01], dtype=torch.float64, device=device, requires_grad=True)
    rows = binary_cross_entropy(logits, torch.ones(3, device=device), real_target=alpha, reduction="none")
    assert rows[1] < rows[0]
    assert rows[1] < rows[2]
    (gradient,) = torch.autograd.grad(rows.sum(), logits)
    assert gradient[1].item() == pytest.approx(0, abs=1e-15)
    assert gradient[0] < 0 < gradient[2]


@pytest.mark.parametrize(("real", "fake"), [(1.0, 0.0), (0.9, 0.0), (0.9, 0.1)])
def test_best_discriminator(real: float, fake: float, device: torch.device) -> None:
    # D* = (a·p_d + b·p_g) / (p_d + p_g)
    data, generated = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]], dtype=torch.float64, device=device)
    best = (real * data + fake * generated) / (data + generated)
    logits = torch.logit(best).requires_grad_(True)
    loss: Tensor = binary_cross_entropy(
        torch.cat((logits, logits)),
        torch.tensor([1, 1, 1, 0, 0, 0], device=device),
        real_target=real,
        fake_target=fake,
        weight=torch.cat((data, generated)),
        reduction="sum",
    )
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], torch.zeros_like(best), rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, device: torch.device) -> None:
    logits = (5 * torch.randn(50, device=device)).to(dtype).requires_grad_(True)
    labels = torch.rand(50, device=device) < 0.5
    value = binary_cross_entropy(logits, labels, real_target=0.9)
    exact = F.binary_cross_entropy_with_logits(logits.double(), 0.9 * labels.double())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=1e-6)
    assert torch.autograd.grad(value, logits)[0].dtype == dtype


@pytest.mark.parametrize(("real", "fake"), REAL_FAKE)
def test_derivatives(real: float, fake: float, device: torch.device) -> None:
    logits = torch.randn(4, dtype=torch.float64, device=device, requires_grad=True)
    labels = torch.tensor([1.0, 0.0, 0.25, 1.0], device=device, requires_grad=True)

    def loss(x: Tensor) -> Tensor:
        return binary_cross_entropy(x, labels, real_target=real, fake_target=fake, reduction="none")

    assert torch.autograd.gradcheck(loss, logits)
    assert torch.autograd.gradgradcheck(loss, logits)
    assert not binary_cross_entropy(logits.detach(), labels).requires_grad  # labels are constants


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 0)])
def test_any_shape(shape: tuple[int, ...], device: torch.device) -> None:
    logits, labels = torch.randn(shape, device=device), torch.ones(shape, device=device)
    rows = binary_cross_entropy(logits, labels, reduction="none")
    assert rows.shape == shape
    torch.testing.assert_close(rows, F.binary_cross_entropy_with_logits(logits, labels, reduction="none"))
