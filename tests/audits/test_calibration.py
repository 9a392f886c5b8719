from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from rlsmooth.audits import calibration_error, confidence_gap, reliability_bins

NORMS: list[Any] = ["l1", "l2", "max"]


def theirs(confidences: Tensor, hits: Tensor, num_bins: int, norm: Any) -> Tensor:
    return binary_calibration_error(confidences, hits.long(), n_bins=num_bins, norm=norm)


def degenerate(device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
    edges = torch.linspace(0, 1, 16, device=device)
    mixed = torch.arange(16, device=device) % 3 == 0
    one, two = torch.ones(20, device=device), torch.zeros(20, device=device)
    hits = torch.arange(20, device=device) % 2 == 0
    return {
        "all exactly one": (one, hits),
        "all exactly zero": (two, hits),
        "on the edges": (edges, mixed),
        "just under the edges": (torch.nextafter(edges[1:], edges[:1]), mixed[1:]),
        "empty bins": (torch.tensor([0.05, 0.06, 0.97], device=device), hits[:3]),
        "one row": (torch.tensor([0.3], device=device), hits[:1]),
        "all right": (edges, torch.ones_like(mixed)),
        "all wrong": (edges, torch.zeros_like(mixed)),
        "zero, one and the last bin": (torch.tensor([0.0, 1.0, 0.99], device=device), hits[:3]),
    }


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("num_bins", [1, 2, 10, 15, 100])
def test_the_error_is_torchmetrics_on_random_policies(device: torch.device, norm: Any, num_bins: int) -> None:
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        probs = (3 * torch.randn(500, 4, generator=generator)).softmax(-1)
        labels = torch.multinomial(probs.sqrt(), 1, generator=generator)[:, 0]
        probs, labels = probs.to(device), labels.to(device)
        confidences, actions = probs.max(-1)
        ours = calibration_error(confidences, actions == labels, num_bins=num_bins, norm=norm)
        expected = multiclass_calibration_error(probs, labels, num_classes=4, n_bins=num_bins, norm=norm)
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("case", degenerate(torch.device("cpu")))
@pytest.mark.parametrize("num_bins", [1, 5, 15])
def test_the_error_is_torchmetrics_on_degenerate_rows(
    device: torch.device, norm: Any, case: str, num_bins: int
) -> None:
    confidences, hits = degenerate(device)[case]
    ours = calibration_error(confidences, hits, num_bins=num_bins, norm=norm)
    expected = theirs(confidences, hits, num_bins, norm).to(ours.dtype)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


@given(
    rows=st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=40),
    num_bins=st.integers(1, 20),
    norm=st.sampled_from(NORMS),
)
def test_the_error_is_torchmetrics_on_any_rows(rows: list[tuple[float, bool]], num_bins: int, norm: Any) -> None:
    confidences = torch.tensor([confidence for confidence, _ in rows])
    hits = torch.tensor([hit for _, hit in rows])
    ours = calibration_error(confidences, hits, num_bins=num_bins, norm=norm)
    torch.testing.assert_close(ours, theirs(confidences, hits, num_bins, norm).to(ours.dtype), atol=1e-6, rtol=0)
    bins = reliability_bins(confidences, hits, num_bins=num_bins)
    assert bins.counts.sum() == len(rows)


def test_the_error_by_hand(device: torch.device) -> None:
    confidences = torch.tensor([0.1, 0.2, 0.7, 0.8, 0.9], device=device)
    hits = torch.tensor([False, True, True, True, False], device=device)
    # Two bins: mean confidence 0.15 and 0.8, accuracy 1/2 and 2/3.
    low, high = 0.35, 0.8 - 2 / 3
    for norm, expected in {
        "l1": 0.4 * low + 0.6 * high,
        "l2": (0.4 * low**2 + 0.6 * high**2) ** 0.5,
        "max": low,
    }.items():
        ours = calibration_error(confidences, hits, num_bins=2, norm=norm)  # type: ignore[arg-type]
        assert ours.item() == pytest.approx(expected, abs=1e-6)
    assert confidence_gap(confidences, hits).item() == pytest.approx(2.7 / 5 - 3 / 5, abs=1e-6)


def test_the_bins_by_hand(device: torch.device) -> None:
    confidences = torch.tensor([0.0, 0.25, 0.5, 0.6, 1.0], device=device)
    hits = torch.tensor([1, 0, 1, 0, 1], device=device)
    bins = reliability_bins(confidences, hits, num_bins=4)
    assert bins.edges.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert bins.counts.tolist() == [1.0, 1.0, 2.0, 1.0]
    assert bins.mean_confidence.tolist() == pytest.approx([0.0, 0.25, 0.55, 1.0])
    assert bins.accuracy.tolist() == [1.0, 0.0, 0.5, 1.0]
    sparse = reliability_bins(confidences[:2], hits[:2], num_bins=4)
    assert sparse.counts.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert sparse.accuracy.isnan().tolist() == [False, False, True, True]
    assert sparse.mean_confidence.isnan().tolist() == [False, False, True, True]


def test_the_error_is_the_sum_over_the_bins_shown_when_no_confidence_is_one(device: torch.device) -> None:
    confidences = torch.rand(300, device=device)
    hits = torch.rand(300, device=device) < confidences.square()
    bins = reliability_bins(confidences, hits)
    gaps = (bins.accuracy - bins.mean_confidence).abs().nan_to_num()
    torch.testing.assert_close((bins.counts / 300 * gaps).sum(), calibration_error(confidences, hits))


def test_weights_count_rows_as_often_as_they_say(device: torch.device) -> None:
    confidences = torch.rand(50, device=device)
    hits = torch.rand(50, device=device) < 0.5
    weights = torch.randint(0, 4, (50,), device=device)
    again = confidences.repeat_interleave(weights), hits.repeat_interleave(weights)
    for norm in NORMS:
        torch.testing.assert_close(
            calibration_error(confidences, hits, norm=norm, weights=weights), calibration_error(*again, norm=norm)
        )
    torch.testing.assert_close(confidence_gap(confidences, hits, weights=weights), confidence_gap(*again))
    for mine, repeated in zip(
        reliability_bins(confidences, hits, weights=weights), reliability_bins(*again), strict=True
    ):
        torch.testing.assert_close(mine, repeated, equal_nan=True)


@pytest.mark.parametrize("bad", [float("nan"), -0.1, 1.1, float("inf")])
def test_what_is_no_probability_gives_nan_unless_its_weight_is_zero(device: torch.device, bad: float) -> None:
    confidences = torch.tensor([0.2, bad, 0.9], device=device)
    hits = torch.tensor([False, True, True], device=device)
    weights = torch.tensor([1.0, 0.0, 1.0], device=device)
    rest = [0, 2]
    for norm in NORMS:
        assert calibration_error(confidences, hits, norm=norm).isnan()
        ours = calibration_error(confidences, hits, norm=norm, weights=weights)
        torch.testing.assert_close(ours, calibration_error(confidences[rest], hits[rest], norm=norm))
    assert confidence_gap(confidences, hits).isnan()
    assert confidence_gap(confidences, hits, weights=weights).item() == pytest.approx(0.05)
    assert reliability_bins(confidences, hits).counts.isnan().all()
    assert reliability_bins(confidences, hits, weights=weights).counts.sum() == 2


def test_no_rows_or_no_weight_is_nan_and_not_perfect(device: torch.device) -> None:
    none = torch.zeros(0, device=device)
    some, nothing = torch.full((3,), 0.5, device=device), torch.zeros(3, device=device)
    for norm in NORMS:
        assert calibration_error(none, none, norm=norm).isnan()
        assert calibration_error(some, nothing, norm=norm, weights=nothing).isnan()
    assert confidence_gap(none, none).isnan()
    assert confidence_gap(some, nothing, weights=nothing).isnan()
    assert reliability_bins(none, none, num_bins=2).counts.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_leading_shapes(device: torch.device, dtype: torch.dtype) -> None:
    confidences = torch.rand(4, 5, 6, device=device).to(dtype)
    hits = torch.rand(4, 5, 6, device=device) < 0.5
    expected_dtype = torch.float32 if dtype.itemsize == 2 else dtype
    ours = calibration_error(confidences, hits)
    assert (ours.dtype, ours.shape, ours.device.type) == (expected_dtype, (), device.type)
    flat = calibration_error(confidences.to(expected_dtype).flatten(), hits.flatten().long())
    assert torch.equal(ours, flat)
    assert {part.dtype for part in reliability_bins(confidences, hits)} == {expected_dtype}


def test_a_million_rows_lose_nothing() -> None:
    confidences = torch.full((1_000_000,), 0.1)
    error = calibration_error(confidences, torch.zeros(1_000_000))
    assert error.item() == pytest.approx(0.1, abs=1e-7)


def test_no_gradient_and_no_change_to_the_inputs(device: torch.device) -> None:
    confidences = torch.rand(9, device=device, requires_grad=True)
    before = confidences.detach().clone()
    assert not calibration_error(confidences, torch.ones(9, device=device)).requires_grad
    assert torch.equal(confidences.detach(), before)


def test_nothing_waits_for_the_device() -> None:
    """On the meta device every read of a value is an error."""
    confidences, hits = torch.rand(9, device="meta"), torch.rand(9, device="meta")
    for norm in NORMS:
        assert calibration_error(confidences, hits, norm=norm, weights=hits).shape == ()
    assert confidence_gap(confidences, hits, weights=hits).shape == ()
    assert reliability_bins(confidences, hits, weights=hits).counts.shape == (15,)


def test_bad_arguments() -> None:
    confidences, hits = torch.rand(3), torch.ones(3)
    for call in (calibration_error, reliability_bins, confidence_gap):
        with pytest.raises(TypeError, match=r"confidences has dtype torch\.int64"):
            call(hits.long(), hits)
        with pytest.raises(ValueError, match=r"hits has shape \(2,\), confidences has \(3,\)"):
            call(confidences, hits[:2])
        with pytest.raises(ValueError, match=r"weights has shape \(1,\)"):
            call(confidences, hits, weights=torch.ones(1))
    for binned in (calibration_error, reliability_bins):
        with pytest.raises(ValueError, match="num_bins=0"):
            binned(confidences, hits, num_bins=0)
        with pytest.raises(TypeError, match="num_bins must be a whole number"):
            binned(confidences, hits, num_bins=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="norm='l3'"):
        calibration_error(confidences, hits, norm="l3")  # type: ignore[arg-type]
