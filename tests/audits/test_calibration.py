"""Calibration errors and temperature scaling against netcal, torchmetrics, numpy's binning and scipy's minimisers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from netcal.metrics import ECE
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax as scipy_log_softmax
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from rlsmooth.audits import (
    adaptive_calibration_error,
    calibration_error,
    classwise_calibration_error,
    confidence_gap,
    debiased_calibration_error,
    fit_temperature,
    kernel_calibration_error,
    negative_log_likelihood,
    reliability_bins,
    smooth_calibration_error,
)
from rlsmooth.audits.calibration import diagram_bins
from support import assert_raises

NORMS: list[Any] = ["l1", "l2", "max"]


def theirs(confidences: Tensor, hits: Tensor, num_bins: int, norm: Any) -> Tensor:
    return binary_calibration_error(below_one(confidences), hits.long(), n_bins=num_bins, norm=norm)


def below_one(confidences: Tensor) -> Tensor:
    """As torchmetrics must get them: it would put a confidence of exactly 1 into a bin of its own."""
    one = torch.ones_like(confidences)
    return torch.minimum(confidences, torch.nextafter(one, 0 * one))


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


@pytest.mark.parametrize("norm", NORMS)
def test_a_confidence_of_one_is_in_the_last_bin(device: torch.device, norm: Any) -> None:
    confidences, hits = torch.tensor([0.95, 1.0], device=device), torch.tensor([1, 0], device=device)
    assert calibration_error(confidences, hits, norm=norm).item() == pytest.approx(0.475)
    bins = reliability_bins(confidences, hits)
    assert (bins.counts[-1].item(), (bins.mean_confidence - bins.accuracy)[-1].item()) == (2, pytest.approx(0.475))
    both = torch.stack((1 - confidences, confidences), -1)  # a hit and a miss, in the first and in the last bin
    assert classwise_calibration_error(both, 1 - hits).item() == pytest.approx(0.475, abs=1e-6)
    assert classwise_calibration_error(both, hits).item() == pytest.approx(0.475, abs=1e-6)


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


def test_a_million_rows_lose_nothing() -> None:
    confidences = torch.full((1_000_000,), 0.1)
    error = calibration_error(confidences, torch.zeros(1_000_000))
    assert error.item() == pytest.approx(0.1, abs=1e-7)


def test_errors_of_few_samples_do_not_wait_for_the_device() -> None:
    """On the meta device every read of a value is an error."""
    confidences, hits = torch.rand(9, device="meta"), torch.rand(9, device="meta")
    for measure in (smooth_calibration_error, kernel_calibration_error, debiased_calibration_error):
        assert measure(confidences, hits, weights=hits).shape == ()


def test_bad_arguments() -> None:
    confidences, hits = torch.rand(3), torch.ones(3)
    for call in (calibration_error, reliability_bins, confidence_gap):
        assert_raises(TypeError, r"confidences has dtype torch\.int64", call, hits.long(), hits)
        assert_raises(ValueError, r"hits has shape \(2,\), confidences has \(3,\)", call, confidences, hits[:2])
        assert_raises(ValueError, r"weights has shape \(1,\)", call, confidences, hits, weights=torch.ones(1))
    for binned in (calibration_error, reliability_bins):
        assert_raises(ValueError, "num_bins=0", binned, confidences, hits, num_bins=0)
        assert_raises(TypeError, "num_bins must be a whole number", binned, confidences, hits, num_bins=1.5)
    assert_raises(ValueError, "norm='l3'", calibration_error, confidences, hits, norm="l3")


# ---- adaptive and classwise errors
def random_classifier(seed: int, rows: int = 500, num_classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    probabilities = (3 * torch.randn(rows, num_classes, generator=generator, dtype=torch.float64)).softmax(-1)
    return probabilities, torch.multinomial(probabilities.sqrt(), 1, generator=generator)[:, 0]


def by_histogram(confidences: Tensor, hits: Tensor, num_bins: int) -> float:
    """Over the quantile bins, by numpy, which takes edges that coincide."""
    values, right = confidences.double().cpu().numpy(), hits.double().cpu().numpy()
    edges = np.quantile(values, np.arange(num_bins + 1) / num_bins)
    edges[0], edges[-1] = 0.0, 1.0
    sums = [np.histogram(values, edges, weights=weights)[0] for weights in (np.ones_like(values), values, right)]
    counts, confidence, hit = sums
    return float(np.abs(hit - confidence)[counts > 0].sum() / len(values))


def class_by_class(probabilities: Tensor, labels: Tensor, num_bins: int) -> Tensor:
    """torchmetrics, one class at a time."""
    errors = [
        theirs(probabilities[:, place].contiguous(), labels == place, num_bins, "l1")
        for place in range(probabilities.shape[-1])
    ]
    return torch.stack(errors).mean()


# 500 rows: for these numbers of bins no quantile but the ends falls on a row, where netcal's rounding decides.
@pytest.mark.parametrize("num_bins", [1, 2, 10, 15, 100])
@pytest.mark.parametrize("seed", range(3))
def test_the_adaptive_error_is_netcals(device: torch.device, num_bins: int, seed: int) -> None:
    probabilities, labels = random_classifier(seed)
    confidences, classes = probabilities.max(-1)
    hits = classes == labels
    theirs = ECE(num_bins, equal_intervals=False).measure(confidences.numpy(), hits.long().numpy())
    ours = adaptive_calibration_error(confidences.to(device), hits.to(device), num_bins=num_bins)
    assert ours.item() == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize(("rows", "num_bins"), [(9, 8), (17, 4), (65, 16), (257, 2)])  # exact in binary
def test_a_row_on_a_quantile_opens_a_bin_as_in_netcal(rows: int, num_bins: int) -> None:
    confidences, hits = torch.rand(rows, dtype=torch.float64), torch.rand(rows) < 0.5
    theirs = ECE(num_bins, equal_intervals=False).measure(confidences.numpy(), hits.long().numpy())
    assert adaptive_calibration_error(confidences, hits, num_bins=num_bins).item() == pytest.approx(theirs, abs=1e-6)


def test_a_row_on_a_quantile_opens_a_bin_whatever_the_rounding() -> None:
    # 10 bins of 31 rows: each edge is a row, also where i / 10 · 30 is rounded up.
    confidences = torch.rand(31, dtype=torch.float64).sort().values
    hits = torch.rand(31) < 0.5
    bins = [range(3 * place, 3 * place + 3 + (place == 9)) for place in range(10)]
    expected = sum(abs(float(hits[list(rows)].double().sum() - confidences[list(rows)].sum())) for rows in bins) / 31
    assert adaptive_calibration_error(confidences, hits, num_bins=10).item() == pytest.approx(expected, abs=1e-12)


def test_the_equal_width_error_is_netcals() -> None:
    probabilities, labels = random_classifier(7)
    confidences, classes = probabilities.max(-1)
    theirs = ECE(15).measure(probabilities.numpy(), labels.numpy())
    assert calibration_error(confidences, classes == labels).item() == pytest.approx(theirs, abs=1e-6)


DEGENERATE = {
    "one row": [0.3],
    "two rows": [0.3, 0.6],
    "all the same": [0.25] * 9,
    "all exactly one": [1.0] * 7,
    "all exactly zero": [0.0] * 7,
    "zeros and ones": [0.0, 1.0, 0.0, 1.0, 1.0],
    "ties": [0.2, 0.2, 0.2, 0.5, 0.5, 0.9, 0.9, 0.9, 0.9],
    "on the edges": [place / 15 for place in range(16)],
}


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("num_bins", [1, 4, 16])
@pytest.mark.parametrize("which", ["mixed", "right", "wrong"])
def test_the_adaptive_error_on_degenerate_rows(device: torch.device, case: str, num_bins: int, which: str) -> None:
    confidences = torch.tensor(DEGENERATE[case], dtype=torch.float64, device=device)
    places = torch.arange(len(confidences), device=device)
    hits = {"mixed": places % 3 == 0, "right": places >= 0, "wrong": places < 0}[which]
    ours = adaptive_calibration_error(confidences, hits, num_bins=num_bins).item()
    assert ours == pytest.approx(by_histogram(confidences, hits, num_bins), abs=1e-6)
    again = torch.randperm(len(confidences))  # the order of the rows plays no part
    assert adaptive_calibration_error(confidences[again], hits[again], num_bins=num_bins).item() == pytest.approx(ours)


@given(rows=st.lists(st.tuples(st.integers(0, 64), st.booleans()), min_size=1, max_size=40), num_bins=st.integers(1, 5))
def test_the_adaptive_error_is_that_over_quantile_bins(rows: list[tuple[int, bool]], num_bins: int) -> None:
    confidences = torch.tensor([place / 64 for place, _ in rows], dtype=torch.float64)
    hits = torch.tensor([hit for _, hit in rows])
    bins = 2 ** (num_bins - 1)  # exact in binary
    ours = adaptive_calibration_error(confidences, hits, num_bins=bins).item()
    assert ours == pytest.approx(by_histogram(confidences, hits, bins), abs=1e-6)


@pytest.mark.parametrize("num_bins", [1, 5, 15])
@pytest.mark.parametrize("num_classes", [1, 2, 7])
def test_the_classwise_error_is_torchmetrics_class_by_class(
    device: torch.device, num_bins: int, num_classes: int
) -> None:
    for seed in range(3):
        probabilities, labels = random_classifier(seed, num_classes=num_classes)
        probabilities, labels = probabilities.to(device), labels.to(device)
        ours = classwise_calibration_error(probabilities, labels, num_bins=num_bins)
        torch.testing.assert_close(ours, class_by_class(probabilities, labels, num_bins).double(), atol=1e-6, rtol=0)
        narrow = classwise_calibration_error(probabilities.float(), labels, num_bins=num_bins)
        assert narrow.item() == pytest.approx(class_by_class(probabilities.float(), labels, num_bins).item(), abs=1e-6)


@pytest.mark.parametrize(
    ("rows", "labels"),
    [
        ([[0.2, 0.3, 0.5]], [0]),
        ([[1.0, 0.0, 0.0]] * 4, [0, 0, 1, 2]),
        ([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], [1, 0]),
        ([[0.2, 0.4, 0.4], [0.6, 0.2, 0.2], [0.4, 0.4, 0.2], [0.2, 0.0, 0.8]], [1, 1, 1, 1]),  # on the edges of 5
    ],
)
@pytest.mark.parametrize("num_bins", [1, 5, 15])
def test_the_classwise_error_on_degenerate_rows(
    device: torch.device, rows: list[Any], labels: list[int], num_bins: int
) -> None:
    probabilities, label = torch.tensor(rows, device=device), torch.tensor(labels, device=device)
    ours = classwise_calibration_error(probabilities, label, num_bins=num_bins)
    assert ours.item() == pytest.approx(class_by_class(probabilities, label, num_bins).item(), abs=1e-6)


def test_a_view_is_read_without_a_warning() -> None:
    rows, labels = torch.rand(3, 9).T, torch.zeros(9, dtype=torch.int64)
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # otherwise torch warns of it once a process, wherever that is
    try:
        assert not classwise_calibration_error(rows, labels).isnan()
        assert not adaptive_calibration_error(torch.rand(9, 2)[:, 0], labels).isnan()
        assert not calibration_error(torch.rand(9, 2)[:, 0], labels).isnan()
    finally:
        torch.set_warn_always(before)


def test_bad_arguments_of_variants() -> None:
    rows, labels = torch.rand(3, 2), torch.zeros(3, dtype=torch.int64)
    assert_raises(TypeError, r"probabilities has dtype torch\.int64", classwise_calibration_error, labels, labels)
    with pytest.raises(
        TypeError, match=r"labels must be an int64 tensor of classes, or an array of whole numbers, got torch\.float32"
    ):
        classwise_calibration_error(rows, labels.float())
    with pytest.raises(ValueError, match=r"labels has shape \(2,\), needs one per sample of probabilities: \(3,\)"):
        classwise_calibration_error(rows, labels[:2])
    with pytest.raises(ValueError, match=r"hits has shape \(3,\), confidences has \(2,\)"):
        adaptive_calibration_error(rows[:2, 0], labels)
    assert_raises(ValueError, "num_bins=0", classwise_calibration_error, rows, labels, num_bins=0)
    assert_raises(ValueError, "num_bins=0", adaptive_calibration_error, rows[:, 0], labels, num_bins=0)


# ---- temperature scaling
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
    torch.testing.assert_close(fit_temperature(logits.float(), labels), base.float())
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


def test_an_impossible_label_has_no_temperature(device: torch.device) -> None:
    labels = torch.tensor([0, 1], device=device)
    label_is_impossible = torch.tensor([[0.0, 1.0], [0.0, -torch.inf]], device=device)
    assert fit_temperature(label_is_impossible, labels).isnan()


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


def test_bad_arguments_of_temperature() -> None:
    logits, labels = torch.rand(3, 2), torch.zeros(3, dtype=torch.int64)
    assert_raises(TypeError, r"logits has dtype torch\.int64", fit_temperature, labels, labels)
    with pytest.raises(ValueError, match=r"labels has shape \(2,\), needs one per sample of logits"):
        fit_temperature(logits, labels[:2])
    with pytest.raises(ValueError, match=r"bounds\[0\]=0.0 must be a finite number in \(0"):
        fit_temperature(logits, labels, bounds=(0.0, 1.0))
    assert_raises(ValueError, r"bounds=\(2.0, 1.0\) must ascend", fit_temperature, logits, labels, bounds=(2.0, 1.0))


# ---- the bins of a diagram of few samples
@pytest.mark.parametrize("count", [1, 9, 10, 38, 99, 299])
@pytest.mark.parametrize("ties", [False, True])
def test_a_diagram_of_few_samples_has_few_bins_of_as_many_each(count: int, ties: bool) -> None:
    """numpy's `array_split` of the sorted samples is the truth."""
    rng = np.random.default_rng(count)
    confidences = rng.integers(1, 4, count) / 4 if ties else rng.random(count)
    hits, weights = rng.random(count) < confidences, rng.random(count)
    for weight in (None, weights):
        given = None if weight is None else torch.tensor(weight)
        bins = diagram_bins(torch.tensor(confidences), torch.tensor(hits), given)
        order = np.argsort(confidences, kind="stable")
        parts = np.array_split(order, min(10, max(1, count // 10)))
        assert (max(map(len, parts)) - min(map(len, parts)), len(bins.counts)) in {(0, len(parts)), (1, len(parts))}
        if weight is None:
            assert sorted(bins.counts.tolist()) == sorted(map(len, parts))
            assert (bins.counts.min() >= 10) or count < 10
        assert float(bins.counts.sum()) == pytest.approx(count if weight is None else weights.sum())
        mean = np.average(hits, weights=weight)
        assert float((bins.accuracy * bins.counts).sum() / bins.counts.sum()) == pytest.approx(mean)
        inside = bins.mean_confidence[:, None] * torch.tensor([1.0, -1.0], dtype=torch.float64)
        bounds = torch.stack((bins.edges[:-1], -bins.edges[1:]), dim=1)
        assert (inside >= bounds - 1e-12).all()
        assert (bins.edges.diff() >= 0).all()
        assert bins.edges[[0, -1]].tolist() == [0.0, 1.0]


def test_a_diagram_of_many_samples_has_the_usual_bins() -> None:
    confidences = torch.rand(300, generator=torch.Generator().manual_seed(0))
    usual = reliability_bins(confidences, confidences > 0.5)
    for found, expected in zip(diagram_bins(confidences, confidences > 0.5), usual, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert diagram_bins(torch.zeros(0), torch.zeros(0)).counts.sum() == 0
    assert diagram_bins(torch.tensor([0.5, float("nan")]), torch.zeros(2)).counts.isnan().all()
