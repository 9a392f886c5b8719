"""The risk-coverage curve against scikit-learn's precision, and against every order of equal confidences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_curve

from rlsmooth.audits import risk_coverage


def check_against_precision(confidences: torch.Tensor, hits: torch.Tensor) -> None:
    """Where all rows of one confidence are answered or none, the risk is 1 - the precision of "it is right"."""
    values, right = confidences.double().cpu().numpy(), hits.bool().cpu().numpy()
    precision, _, thresholds = precision_recall_curve(right, values)
    risk = risk_coverage(confidences, hits).risk.double().cpu().numpy()
    for threshold, share in zip(thresholds, precision[:-1], strict=True):
        answered = int((values >= threshold).sum())
        assert risk[answered - 1] == pytest.approx(1 - share, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_risk_is_one_less_scikit_learns_precision(device: torch.device, dtype: torch.dtype) -> None:
    for grid in (10_000, 8):  # without ties and with many
        confidences = torch.randint(grid, (300,)).to(device, dtype) / grid
        hits = torch.rand(300, device=device) < confidences
        check_against_precision(confidences, hits)
        assert risk_coverage(confidences, hits).risk[-1].item() == pytest.approx(1 - hits.double().mean().item())


@given(rows=st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_risk_on_any_rows(rows: list[tuple[int, bool]]) -> None:
    hits = torch.tensor([hit for _, hit in rows])
    if hits.any():  # without a hit scikit-learn warns of an undefined recall
        check_against_precision(torch.tensor([place / 5 for place, _ in rows]), hits)


def test_equal_confidences_share_their_errors(device: torch.device) -> None:
    confidences = torch.tensor([0.9, 0.5, 0.5, 0.5, 0.2, 0.2], dtype=torch.float64)
    hits = np.array([1, 0, 1, 1, 0, 1])
    curves = []
    for middle in itertools.permutations([1, 2, 3]):
        for last in itertools.permutations([4, 5]):
            errors = 1 - hits[[0, *middle, *last]]
            curves.append(np.cumsum(errors) / np.arange(1, 7))
    expected = np.mean(curves, axis=0)
    shuffled = torch.randperm(6)
    ours = risk_coverage(confidences[shuffled].to(device), torch.as_tensor(hits)[shuffled].to(device))
    np.testing.assert_allclose(ours.risk.cpu().numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(ours.coverage.cpu().numpy(), np.arange(1, 7) / 6, atol=1e-12)
    assert ours.area.item() == pytest.approx(expected.mean(), abs=1e-12)


@pytest.mark.parametrize(
    ("confidences", "hits", "area"),
    [
        ([0.3], [False], 1.0),
        ([0.3], [True], 0.0),
        ([0.5] * 4, [True, True, False, True], 0.25),  # nothing to tell them by: the error rate
        ([1.0, 1.0, 0.0, 0.0], [True, True, False, False], (0 + 0 + 1 / 3 + 1 / 2) / 4),
        ([0.0, 0.0, 1.0, 1.0], [True, True, False, False], (1 + 1 + 2 / 3 + 1 / 2) / 4),
        ([-torch.inf, torch.inf, torch.inf], [True, True, False], (1 / 2 + 1 / 2 + 1 / 3) / 3),
    ],
)
def test_areas_by_hand(device: torch.device, confidences: list[float], hits: list[bool], area: float) -> None:
    ours = risk_coverage(torch.tensor(confidences, device=device), torch.tensor(hits, device=device))
    assert ours.area.item() == pytest.approx(area, abs=1e-6)


def test_no_rows_have_no_curve_and_nan_makes_nan(device: torch.device) -> None:
    none = torch.zeros(0, device=device)
    empty = risk_coverage(none, none)
    assert (empty.coverage.shape, empty.risk.shape) == ((0,), (0,))
    assert empty.area.isnan()
    bad = risk_coverage(torch.tensor([0.5, torch.nan], device=device), torch.ones(2, device=device))
    assert bad.risk.isnan().all()
    assert bad.area.isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_leading_shapes(device: torch.device, dtype: torch.dtype) -> None:
    confidences = torch.rand(4, 5, device=device).to(dtype)
    hits = torch.rand(4, 5, device=device) < 0.5
    wide = torch.float32 if dtype.itemsize == 2 else dtype
    ours = risk_coverage(confidences, hits)
    assert {part.dtype for part in ours} == {wide}
    for part, flat in zip(ours, risk_coverage(confidences.to(wide).flatten(), hits.flatten().long()), strict=True):
        torch.testing.assert_close(part, flat, atol=0, rtol=0)


def test_nothing_waits_for_the_device_and_nothing_is_changed() -> None:
    meta = torch.rand(9, device="meta")
    assert risk_coverage(meta, meta).area.shape == ()
    confidences = torch.rand(9, requires_grad=True)
    before = confidences.detach().clone()
    assert not risk_coverage(confidences, torch.ones(9)).area.requires_grad
    torch.testing.assert_close(confidences.detach(), before, atol=0, rtol=0)


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match=r"confidences has dtype torch\.int64"):
        risk_coverage(torch.arange(3), torch.ones(3))
    with pytest.raises(ValueError, match=r"hits has shape \(2,\), confidences has \(3,\)"):
        risk_coverage(torch.rand(3), torch.ones(2))
