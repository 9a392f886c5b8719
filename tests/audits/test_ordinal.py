"""Ordinal scores against scikit-learn, class by class and threshold by threshold."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss
from sklearn.metrics import mean_absolute_error as sklearn_mean_absolute_error
from torch import Tensor

from rlsmooth.audits import average_mean_absolute_error, mean_absolute_error, ranked_probability_score


def macro_error(labels: Any, predictions: Any) -> float:
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    classes = [labels == place for place in np.unique(labels)]
    return float(np.mean([sklearn_mean_absolute_error(labels[rows], predictions[rows]) for rows in classes]))


def threshold_by_threshold(probabilities: Tensor, labels: Tensor, weights: Any = None) -> float:
    """The Brier scores of "is it at most k?", by scikit-learn."""
    cumulative = probabilities.double().cpu().cumsum(-1).clamp(0, 1).numpy()
    truth = labels.cpu().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that every row is on one side
        return float(
            sum(
                brier_score_loss(truth <= place, cumulative[:, place], pos_label=True, sample_weight=weights)
                for place in range(cumulative.shape[-1] - 1)
            )
        )


CASES = {
    "one row": ([2], [0], 3),
    "all right": ([0, 1, 2], [0, 1, 2], 3),
    "all wrong": ([2, 2, 2], [0, 0, 0], 3),
    "one class only": ([1, 1, 0, 2], [1, 1, 1, 1], 3),
    "a class is missing": ([0, 3, 3, 1], [0, 0, 3, 3], 4),
    "one class": ([0, 0], [0, 0], 1),
}


@pytest.mark.parametrize("case", CASES)
def test_absolute_errors_on_degenerate_rows(device: torch.device, case: str) -> None:
    predictions, labels, num_classes = CASES[case]
    ours = torch.tensor(predictions, device=device), torch.tensor(labels, device=device)
    assert mean_absolute_error(*ours).item() == pytest.approx(
        sklearn_mean_absolute_error(labels, predictions), abs=1e-6
    )
    macro = average_mean_absolute_error(*ours, num_classes=num_classes)
    assert macro.item() == pytest.approx(macro_error(labels, predictions), abs=1e-6)


@given(rows=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30))
def test_absolute_errors_on_any_rows(rows: list[tuple[int, int]]) -> None:
    predictions, labels = torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows])
    expected = sklearn_mean_absolute_error(labels.numpy(), predictions.numpy())
    assert mean_absolute_error(predictions, labels).item() == pytest.approx(expected, abs=1e-6)
    macro = average_mean_absolute_error(predictions, labels, num_classes=7)
    assert macro.item() == pytest.approx(macro_error(labels, predictions), abs=1e-6)


@pytest.mark.parametrize("num_classes", [2, 3, 9])
def test_the_ranked_score_is_the_sum_of_brier_scores(device: torch.device, num_classes: int) -> None:
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        rows = (2 * torch.randn(100, num_classes, generator=generator, dtype=torch.float64)).softmax(-1)
        labels = torch.randint(num_classes, (100,), generator=generator)
        weights = torch.rand(100, generator=generator)
        placed = rows.to(device), labels.to(device)
        assert ranked_probability_score(*placed).item() == pytest.approx(threshold_by_threshold(rows, labels), abs=1e-6)
        weighted = ranked_probability_score(*placed, weights=weights.to(device))
        assert weighted.item() == pytest.approx(threshold_by_threshold(rows, labels, weights.numpy()), abs=1e-6)


@pytest.mark.parametrize(
    ("rows", "labels"),
    [
        ([[0.2, 0.3, 0.5]], [0]),
        ([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [0, 2]),
        ([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [2, 0]),
        ([[0.25, 0.5, 0.25]] * 4, [1, 1, 1, 1]),
        ([[1.0], [1.0]], [0, 0]),
    ],
)
def test_the_ranked_score_on_degenerate_rows(device: torch.device, rows: list[Any], labels: list[int]) -> None:
    placed = torch.tensor(rows, device=device), torch.tensor(labels, device=device)
    ours = ranked_probability_score(*placed)
    assert ours.item() == pytest.approx(threshold_by_threshold(*placed), abs=1e-6)


def test_the_ranked_score_of_certain_rows_is_the_absolute_error(device: torch.device) -> None:
    predictions, labels = torch.randint(5, (40,), device=device), torch.randint(5, (40,), device=device)
    rows = torch.eye(5, device=device)[predictions]
    torch.testing.assert_close(ranked_probability_score(rows, labels), mean_absolute_error(predictions, labels))


def test_nothing_and_what_is_no_class_give_nan(device: torch.device) -> None:
    none = torch.zeros(0, dtype=torch.int64, device=device)
    assert mean_absolute_error(none, none).isnan()
    assert average_mean_absolute_error(none, none, num_classes=3).isnan()
    assert ranked_probability_score(torch.zeros(0, 3, device=device), none).isnan()
    labels, rows = torch.tensor([0, 3], device=device), torch.full((2, 3), 1 / 3, device=device)
    assert average_mean_absolute_error(labels, labels, num_classes=3).isnan()
    assert ranked_probability_score(rows, labels).isnan()
    assert ranked_probability_score(rows * torch.nan, labels.clamp(max=2)).isnan()
    weights = torch.tensor([1.0, 0.0], device=device)
    assert ranked_probability_score(rows, labels, weights=weights).item() == pytest.approx(5 / 9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_leading_shapes(device: torch.device, dtype: torch.dtype) -> None:
    rows, labels = torch.rand(4, 5, 3, device=device).to(dtype), torch.randint(3, (4, 5), device=device)
    wide = torch.float32 if dtype.itemsize == 2 else dtype
    ours = ranked_probability_score(rows, labels)
    assert (ours.dtype, ours.shape, ours.device.type) == (wide, (), device.type)
    flat = ranked_probability_score(rows.to(wide).reshape(20, 3), labels.reshape(20))
    torch.testing.assert_close(ours, flat, atol=0, rtol=0)
    predictions = rows.argmax(-1)
    assert mean_absolute_error(predictions, labels) == mean_absolute_error(predictions.reshape(20), labels.reshape(20))


def test_nothing_waits_for_the_device() -> None:
    rows, labels = torch.rand(9, 3, device="meta"), torch.zeros(9, dtype=torch.int64, device="meta")
    assert ranked_probability_score(rows, labels, weights=rows[:, 0]).shape == ()
    assert mean_absolute_error(labels, labels).shape == ()
    assert average_mean_absolute_error(labels, labels, num_classes=3).shape == ()


def test_bad_arguments() -> None:
    labels = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(TypeError, match="predictions must be an int64 tensor"):
        mean_absolute_error(labels.float(), labels)
    with pytest.raises(TypeError, match="labels must be an int64 tensor"):
        average_mean_absolute_error(labels, labels.int(), num_classes=2)
    with pytest.raises(ValueError, match=r"labels has shape \(2,\), predictions has \(3,\)"):
        mean_absolute_error(labels, labels[:2])
    with pytest.raises(ValueError, match="num_classes=0"):
        average_mean_absolute_error(labels, labels, num_classes=0)
    with pytest.raises(TypeError, match=r"probabilities has dtype torch\.int64"):
        ranked_probability_score(labels, labels)
