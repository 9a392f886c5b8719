"""Accuracy, Brier score and negative log-likelihood against scikit-learn, torchmetrics and torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

from rlsmooth.audits import accuracy, brier_score, negative_log_likelihood

Score = Callable[..., Tensor]
SCORES: list[Score] = [accuracy, brier_score, negative_log_likelihood]


def sklearn_brier(labels: Tensor, probabilities: Tensor, weights: Any = None) -> float:
    classes = list(range(probabilities.shape[-1]))
    rows = probabilities.double().cpu().numpy()
    rows = rows / rows.sum(-1, keepdims=True)  # float32 sums: scikit-learn warns
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a class is missing
        return float(
            brier_score_loss(labels.cpu().numpy(), rows, labels=classes, scale_by_half=False, sample_weight=weights)
        )


def random_rows(seed: int, rows: int = 200, num_classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, num_classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(num_classes, (rows,), generator=generator)


@pytest.mark.parametrize("num_classes", [2, 3, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_scores_are_scikit_learns(device: torch.device, num_classes: int, dtype: torch.dtype) -> None:
    for seed in range(3):
        logits, labels = random_rows(seed, num_classes=num_classes)
        logits, labels = logits.to(device, dtype), labels.to(device)
        probabilities = logits.softmax(-1)
        truth, rows = labels.cpu().numpy(), probabilities.double().cpu().numpy()
        rows = rows / rows.sum(-1, keepdims=True)
        assert accuracy(probabilities, labels).item() == pytest.approx(accuracy_score(truth, rows.argmax(-1)), abs=1e-6)
        assert brier_score(probabilities, labels).item() == pytest.approx(
            sklearn_brier(labels, probabilities), abs=1e-6
        )
        expected = log_loss(truth, rows, labels=list(range(num_classes)))
        assert negative_log_likelihood(logits, labels).item() == pytest.approx(expected, abs=1e-6)
        theirs = multiclass_accuracy(logits, labels, num_classes=num_classes, average="micro")
        torch.testing.assert_close(accuracy(logits, labels).float(), theirs, atol=1e-6, rtol=0)


def test_weights_are_scikit_learns(device: torch.device) -> None:
    logits, labels = random_rows(0, num_classes=3)
    weights = torch.rand(len(labels), dtype=torch.float64)
    weights[::4] = 0
    probabilities, each = logits.softmax(-1), weights.numpy()
    truth, rows = labels.numpy(), probabilities.numpy()
    placed = labels.to(device), weights.to(device)
    ours = [
        accuracy(probabilities.to(device), placed[0], weights=placed[1]),
        brier_score(probabilities.to(device), placed[0], weights=placed[1]),
        negative_log_likelihood(logits.to(device), placed[0], weights=placed[1]),
    ]
    theirs = [
        accuracy_score(truth, rows.argmax(-1), sample_weight=each),
        sklearn_brier(labels, probabilities, each),
        log_loss(truth, rows, sample_weight=each),
    ]
    assert [value.item() for value in ours] == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize(
    ("rows", "labels"),
    [
        ([[0.2, 0.3, 0.5]], [2]),  # one row
        ([[0.2, 0.3, 0.5]], [0]),
        ([[0.4, 0.2, 0.4], [0.25, 0.5, 0.25]], [0, 2]),  # a tie, one class hit only
        ([[0.4, 0.2, 0.4], [0.4, 0.2, 0.4]], [2, 0]),  # the first class of a tie is taken
        ([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [0, 2]),  # exactly 0 and 1, right
        ([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [1, 0]),  # and wrong
        ([[1.0], [1.0]], [0, 0]),  # one class
    ],
)
def test_degenerate_rows(device: torch.device, rows: list[Any], labels: list[int]) -> None:
    probabilities, label = torch.tensor(rows, device=device), torch.tensor(labels, device=device)
    expected = accuracy_score(labels, np.asarray(rows).argmax(-1))
    assert accuracy(probabilities, label).item() == pytest.approx(expected)
    one_hot = np.eye(probabilities.shape[-1])[labels]
    assert brier_score(probabilities, label).item() == pytest.approx(((rows - one_hot) ** 2).sum(-1).mean(), abs=1e-6)
    if probabilities.shape[-1] > 1:
        assert brier_score(probabilities, label).item() == pytest.approx(sklearn_brier(label, probabilities), abs=1e-6)
    logits = probabilities.log()
    theirs = torch.nn.functional.cross_entropy(logits, label)
    torch.testing.assert_close(negative_log_likelihood(logits, label), theirs, atol=1e-6, rtol=1e-6)


@given(rows=st.lists(st.tuples(*[st.floats(-20, 20, width=32)] * 3, st.integers(0, 2)), min_size=1, max_size=20))
def test_any_rows(rows: list[tuple[float, float, float, int]]) -> None:
    logits, labels = torch.tensor([row[:3] for row in rows]), torch.tensor([row[3] for row in rows])
    probabilities = logits.double().softmax(-1)
    assert accuracy(logits, labels).item() == pytest.approx(
        accuracy_score(labels.numpy(), logits.numpy().argmax(-1)), abs=1e-6
    )
    assert brier_score(probabilities, labels).item() == pytest.approx(sklearn_brier(labels, probabilities), abs=1e-6)
    expected = torch.nn.functional.cross_entropy(logits.double(), labels)
    torch.testing.assert_close(negative_log_likelihood(logits, labels).double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("score", SCORES)
def test_no_rows_or_no_weight_is_nan(device: torch.device, score: Score) -> None:
    none = torch.zeros(0, dtype=torch.int64, device=device)
    assert score(torch.zeros(0, 3, device=device), none).isnan()
    labels = torch.zeros(2, dtype=torch.int64, device=device)
    assert score(torch.full((2, 3), 1 / 3, device=device), labels, weights=torch.zeros(2, device=device)).isnan()


@pytest.mark.parametrize("score", SCORES)
def test_a_nan_or_a_label_that_is_no_class_gives_nan_unless_its_weight_is_zero(
    device: torch.device, score: Score
) -> None:
    good, labels = torch.tensor([[0.9, 0.1]], device=device), torch.tensor([0, 1], device=device)
    weights = torch.tensor([1.0, 0.0], device=device)
    nan = torch.cat((good, torch.full_like(good, torch.nan)))
    expected = score(good, labels[:1])
    assert not expected.isnan()
    assert score(nan, labels).isnan()
    torch.testing.assert_close(score(nan, labels, weights=weights), expected)
    for no_class in (-1, 2, -100):
        wrong = torch.tensor([0, no_class], device=device)
        assert score(good.repeat(2, 1), wrong).isnan()
        torch.testing.assert_close(score(good.repeat(2, 1), wrong, weights=weights), expected)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_leading_shapes(device: torch.device, score: Score, dtype: torch.dtype) -> None:
    rows = torch.rand(4, 5, 3, device=device).to(dtype)
    labels = torch.randint(3, (4, 5), device=device)
    wide = torch.float32 if dtype.itemsize == 2 else dtype
    ours = score(rows, labels)
    assert (ours.dtype, ours.shape, ours.device.type) == (wide, (), device.type)
    torch.testing.assert_close(ours, score(rows.to(wide).reshape(20, 3), labels.reshape(20)), atol=0, rtol=0)


@pytest.mark.parametrize("score", SCORES)
def test_no_gradient_no_change_and_no_wait_for_the_device(score: Score) -> None:
    rows = torch.rand(9, 3, requires_grad=True)
    before = rows.detach().clone()
    assert not score(rows, torch.zeros(9, dtype=torch.int64)).requires_grad
    torch.testing.assert_close(rows.detach(), before, atol=0, rtol=0)
    meta = torch.rand(9, 3, device="meta")
    labels = torch.zeros(9, dtype=torch.int64, device="meta")
    assert score(meta, labels, weights=meta[:, 0]).shape == ()


def test_a_million_rows_lose_nothing() -> None:
    rows = torch.tensor([0.9, 0.1]).expand(1_000_000, 2)
    labels = torch.zeros(1_000_000, dtype=torch.int64)
    assert brier_score(rows, labels).item() == pytest.approx(0.02, abs=1e-7)
    assert negative_log_likelihood(rows.log(), labels).item() == pytest.approx(-np.log(0.9), abs=1e-7)


@pytest.mark.parametrize("score", SCORES)
def test_bad_arguments(score: Score) -> None:
    rows, labels = torch.rand(3, 2), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"has dtype torch\.int64: pass a floating-point tensor"):
        score(labels, labels)
    with pytest.raises(TypeError, match=r"labels must be an int64 tensor of classes, got torch\.int32"):
        score(rows, labels.int())
    with pytest.raises(ValueError, match=r"labels has shape \(2,\), needs one a row"):
        score(rows, labels[:2])
    with pytest.raises(ValueError, match=r"weights has shape \(1,\), needs one a row"):
        score(rows, labels, weights=torch.ones(1))
    with pytest.raises(ValueError, match=r"needs .* with at least one class"):
        score(torch.rand(3, 0), labels)
