"""Temperature scaling against scipy's minimisers and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax as scipy_log_softmax
from torch import Tensor

from rlsmooth.audits import fit_temperature, negative_log_likelihood


def by_scipy(logits: Tensor, labels: Tensor, low: float = -7.0, high: float = 7.0) -> tuple[float, float]:
    """The best temperature and its negative log-likelihood, searched in log T."""
    rows, truth = logits.double().cpu().numpy(), labels.cpu().numpy()

    def loss(log_temperature: float) -> float:
        log_p = scipy_log_softmax(rows / math.exp(log_temperature), axis=-1)
        return float(-log_p[np.arange(len(truth)), truth].mean())

    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-10})
    return math.exp(found.x), float(found.fun)


def classifier(seed: int, sharpness: float, rows: int = 400, num_classes: int = 5) -> tuple[Tensor, Tensor]:
    """Logits that are `sharpness` times those that the labels are drawn by: the temperature is about `sharpness`."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, num_classes, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    return sharpness * logits, labels


@pytest.mark.parametrize("sharpness", [0.05, 0.5, 1.0, 3.0, 40.0])
@pytest.mark.parametrize("num_classes", [2, 5, 30])
def test_the_temperature_is_scipys(device: torch.device, sharpness: float, num_classes: int) -> None:
    for seed in range(2):
        logits, labels = classifier(seed, sharpness, num_classes=num_classes)
        ours = fit_temperature(logits.to(device), labels.to(device))
        expected, loss = by_scipy(logits, labels)
        assert ours.item() == pytest.approx(expected, rel=1e-6)
        assert negative_log_likelihood(logits / ours.cpu(), labels).item() <= loss + 1e-9
        assert ours.item() == pytest.approx(sharpness, rel=0.25)


def test_two_classes_have_a_closed_form(device: torch.device) -> None:
    # Margin m in every row, a share s of them right: sigmoid(m / T) = s.
    for margin, right, rows in ((4.0, 3, 4), (1.0, 9, 10), (0.01, 2, 3), (50.0, 55, 100)):
        logits = torch.tensor([[margin, 0.0]], device=device, dtype=torch.float64).repeat(rows, 1)
        labels = (torch.arange(rows, device=device) >= right).long()
        expected = margin / math.log(right / (rows - right))
        assert fit_temperature(logits, labels).item() == pytest.approx(expected, rel=1e-9)


def test_scaled_logits_scale_the_temperature_and_offsets_do_nothing(device: torch.device) -> None:
    logits, labels = (part.to(device) for part in classifier(3, 1.0))
    base = fit_temperature(logits, labels)
    torch.testing.assert_close(fit_temperature(8 * logits, labels), 8 * base, rtol=1e-9, atol=0)
    offsets = 1e4 * torch.randn(len(logits), 1, dtype=torch.float64, device=device)
    torch.testing.assert_close(fit_temperature(logits + offsets, labels), base, rtol=1e-6, atol=0)
    torch.testing.assert_close(fit_temperature(logits / base, labels), torch.ones_like(base), rtol=1e-9, atol=0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_without_an_optimum_the_bound_is_returned(device: torch.device, scale: float) -> None:
    logits = scale * torch.tensor([[3.0, 0.0, 1.0], [0.0, 2.0, -1.0]], device=device)
    right, wrong = torch.tensor([0, 1], device=device), torch.tensor([1, 2], device=device)
    for bounds in ((1e-3, 1e3), (0.5, 4.0)):
        low, high = bounds
        if scale < 1e4:  # there every probability has underflowed: see the next test
            assert fit_temperature(logits, right, bounds=bounds).item() == pytest.approx(low, rel=1e-6)
        assert fit_temperature(logits, wrong, bounds=bounds).item() == pytest.approx(high, rel=1e-6)


def test_where_every_temperature_does_as_well_it_is_one(device: torch.device) -> None:
    flat, labels = torch.full((4, 3), 7.0, device=device), torch.tensor([0, 1, 2, 0], device=device)
    assert fit_temperature(flat, labels).item() == 1.0
    assert fit_temperature(torch.randn(4, 1, device=device), torch.zeros_like(labels)).item() == 1.0
    certain = torch.tensor([[1e4, 0.0, 0.0]], device=device)
    assert fit_temperature(certain, labels[:1]).item() == 1.0
    impossible = torch.tensor([[0.0, -torch.inf, -torch.inf]], device=device)  # one legal class
    assert fit_temperature(impossible, labels[:1]).item() == 1.0


def test_impossible_classes_are_left_out(device: torch.device) -> None:
    logits, labels = (part.to(device) for part in classifier(5, 2.0, num_classes=3))
    wider = torch.cat((logits, torch.full_like(logits, -torch.inf)), -1)
    torch.testing.assert_close(fit_temperature(wider, labels), fit_temperature(logits, labels), rtol=1e-9, atol=0)


def test_what_has_no_temperature_is_nan(device: torch.device) -> None:
    labels = torch.tensor([0, 1], device=device)
    assert fit_temperature(torch.zeros(0, 2, device=device), labels[:0]).isnan()
    for bad in (torch.nan, torch.inf):
        assert fit_temperature(torch.tensor([[0.0, 1.0], [bad, 0.0]], device=device), labels).isnan()
    for no_class in (-1, 2, -100):
        wrong = torch.tensor([0, no_class], device=device)
        assert fit_temperature(torch.rand(2, 2, device=device), wrong).isnan()
    label_is_impossible = torch.tensor([[0.0, 1.0], [0.0, -torch.inf]], device=device)
    assert fit_temperature(label_is_impossible, labels).isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_leading_shapes(device: torch.device, dtype: torch.dtype) -> None:
    logits, labels = classifier(1, 2.0, rows=60)
    logits, labels = logits.reshape(6, 10, 5).to(device, dtype), labels.reshape(6, 10).to(device)
    wide = torch.float32 if dtype.itemsize == 2 else dtype
    ours = fit_temperature(logits, labels)
    assert (ours.dtype, ours.shape, ours.device.type) == (wide, (), device.type)
    torch.testing.assert_close(ours, fit_temperature(logits.double().flatten(0, 1), labels.flatten()).to(wide))


def test_it_works_wherever_the_caller_evaluates(device: torch.device) -> None:
    logits, labels = (part.to(device) for part in classifier(2, 3.0))
    expected = fit_temperature(logits, labels)
    with torch.no_grad():
        torch.testing.assert_close(fit_temperature(logits, labels), expected, atol=0, rtol=0)
    with torch.inference_mode():
        torch.testing.assert_close(fit_temperature(logits + 0, labels + 0), expected, atol=0, rtol=0)
    leaf = logits.clone().requires_grad_()
    assert not fit_temperature(leaf, labels).requires_grad
    assert leaf.grad is None


def test_nothing_waits_for_the_device() -> None:
    logits, labels = torch.rand(9, 3, device="meta"), torch.zeros(9, dtype=torch.int64, device="meta")
    assert fit_temperature(logits, labels).shape == ()


def test_bad_arguments() -> None:
    logits, labels = torch.rand(3, 2), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"logits has dtype torch\.int64"):
        fit_temperature(labels, labels)
    with pytest.raises(ValueError, match=r"labels has shape \(2,\), needs one a row of logits"):
        fit_temperature(logits, labels[:2])
    with pytest.raises(ValueError, match=r"bounds\[0\]=0.0 must be a finite number in \(0"):
        fit_temperature(logits, labels, bounds=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"bounds=\(2.0, 1.0\) must ascend"):
        fit_temperature(logits, labels, bounds=(2.0, 1.0))
