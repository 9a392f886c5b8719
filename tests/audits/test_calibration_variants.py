"""Adaptive and classwise calibration errors against netcal, torchmetrics and numpy's own binning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from netcal.metrics import ECE
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error

from rlsmooth.audits import adaptive_calibration_error, calibration_error, classwise_calibration_error


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
        binary_calibration_error(probabilities[:, place].contiguous(), (labels == place).long(), n_bins=num_bins)
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_leading_shapes(device: torch.device, dtype: torch.dtype) -> None:
    probabilities = torch.rand(4, 5, 3, device=device).softmax(-1).to(dtype)
    labels = torch.randint(3, (4, 5), device=device)
    wide = torch.float32 if dtype.itemsize == 2 else dtype
    flat = probabilities.to(wide).reshape(20, 3), labels.reshape(20)
    ours = classwise_calibration_error(probabilities, labels)
    assert (ours.dtype, ours.shape, ours.device.type) == (wide, (), device.type)
    torch.testing.assert_close(ours, classwise_calibration_error(*flat), atol=0, rtol=0)
    adaptive = adaptive_calibration_error(probabilities[..., 0], labels == 0)
    assert (adaptive.dtype, adaptive.shape) == (wide, ())
    torch.testing.assert_close(adaptive, adaptive_calibration_error(flat[0][:, 0], flat[1] == 0), atol=0, rtol=0)


def test_nothing_and_what_is_no_probability_give_nan(device: torch.device) -> None:
    none = torch.zeros(0, device=device)
    assert adaptive_calibration_error(none, none).isnan()
    assert classwise_calibration_error(torch.zeros(0, 3, device=device), none.long()).isnan()
    labels = torch.tensor([0, 1], device=device)
    for bad in (float("nan"), -0.1, 1.1, float("inf")):
        rows = torch.tensor([[0.5, 0.5], [0.5, bad]], device=device)
        assert classwise_calibration_error(rows, labels).isnan()
        assert adaptive_calibration_error(rows[:, 1], labels == 0).isnan()
    for no_class in (-1, 2, -100):
        rows, wrong = torch.full((2, 2), 0.5, device=device), torch.tensor([0, no_class], device=device)
        assert classwise_calibration_error(rows, wrong).isnan()


def test_nothing_waits_for_the_device() -> None:
    rows, labels = torch.rand(9, 3, device="meta"), torch.zeros(9, dtype=torch.int64, device="meta")
    assert classwise_calibration_error(rows, labels).shape == ()
    assert adaptive_calibration_error(rows[:, 0], labels).shape == ()


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


def test_bad_arguments() -> None:
    rows, labels = torch.rand(3, 2), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"probabilities has dtype torch\.int64"):
        classwise_calibration_error(labels, labels)
    with pytest.raises(TypeError, match=r"labels must be an int64 tensor of classes, got torch\.float32"):
        classwise_calibration_error(rows, labels.float())
    with pytest.raises(ValueError, match=r"labels has shape \(2,\), needs one a row of probabilities: \(3,\)"):
        classwise_calibration_error(rows, labels[:2])
    with pytest.raises(ValueError, match=r"hits has shape \(3,\), confidences has \(2,\)"):
        adaptive_calibration_error(rows[:2, 0], labels)
    with pytest.raises(ValueError, match="num_bins=0"):
        classwise_calibration_error(rows, labels, num_bins=0)
    with pytest.raises(ValueError, match="num_bins=0"):
        adaptive_calibration_error(rows[:, 0], labels, num_bins=0)
