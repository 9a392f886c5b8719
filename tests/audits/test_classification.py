"""Scores of classifiers against scikit-learn, torchmetrics and torch: each alone, selective, and in the summary."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, precision_recall_curve
from sklearn.metrics import mean_absolute_error as sklearn_mean_absolute_error
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from rlsmooth import audits
from rlsmooth.audits import (
    accuracy,
    brier_score,
    classification_summary,
    fit_temperature,
    negative_log_likelihood,
    risk_coverage,
    tree_distances,
)
from rlsmooth.targets import Tree
from support import assert_raises

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
    ours = [accuracy(probabilities.to(device), placed[0], weights=placed[1])]
    ours += [brier_score(probabilities.to(device), placed[0], weights=placed[1])]
    ours += [negative_log_likelihood(logits.to(device), placed[0], weights=placed[1])]
    theirs = [accuracy_score(truth, rows.argmax(-1), sample_weight=each), sklearn_brier(labels, probabilities, each)]
    theirs += [log_loss(truth, rows, sample_weight=each)]
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


def test_a_million_rows_lose_nothing() -> None:
    rows = torch.tensor([0.9, 0.1]).expand(1_000_000, 2)
    labels = torch.zeros(1_000_000, dtype=torch.int64)
    assert brier_score(rows, labels).item() == pytest.approx(0.02, abs=1e-7)
    assert negative_log_likelihood(rows.log(), labels).item() == pytest.approx(-np.log(0.9), abs=1e-7)


@pytest.mark.parametrize("score", SCORES)
def test_bad_arguments(score: Score) -> None:
    rows, labels = torch.rand(3, 2), torch.zeros(3, dtype=torch.int64)
    assert_raises(TypeError, r"has dtype torch\.int64: pass a floating-point tensor", score, labels, labels)
    message = r"labels must be an int64 tensor of classes, or an array of whole numbers, got torch\.int32"
    assert_raises(TypeError, message, score, rows, labels.int())
    assert_raises(ValueError, r"labels has shape \(2,\), needs one per sample", score, rows, labels[:2])
    with pytest.raises(ValueError, match=r"weights has shape \(1,\), needs one per sample"):
        score(rows, labels, weights=torch.ones(1))
    assert_raises(ValueError, r"needs .* with at least one class", score, torch.rand(3, 0), labels)


# ---- the risk-coverage curve
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


def test_bad_arguments_of_risk_coverage() -> None:
    assert_raises(TypeError, r"confidences has dtype torch\.int64", risk_coverage, torch.arange(3), torch.ones(3))
    with pytest.raises(ValueError, match=r"hits has shape \(2,\), confidences has \(3,\)"):
        risk_coverage(torch.rand(3), torch.ones(2))


# ---- the summary
PLAIN = [
    "accuracy", "nll", "brier", "ece", "adaptive_ece", "classwise_ece", "confidence_gap", "margin", "aurc",
]  # fmt: skip


def rows(seed: int = 0, num_rows: int = 120, num_classes: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(num_rows, num_classes, generator=generator)
    labels = torch.multinomial((logits / 2).softmax(-1), 1, generator=generator)[:, 0]
    return logits, labels


def test_it_says_what_other_libraries_say(device: torch.device) -> None:
    logits, labels = rows()
    summary = classification_summary(logits.to(device), labels.to(device), ordered=True)
    assert list(summary) == [*PLAIN, "mae", "amae", "rps"]
    assert all(type(value) is float for value in summary.values())
    probabilities, truth = logits.double().softmax(-1).numpy(), labels.numpy()
    predictions = probabilities.argmax(-1)
    assert summary["accuracy"] == pytest.approx(accuracy_score(truth, predictions), abs=1e-6)
    assert summary["nll"] == pytest.approx(log_loss(truth, probabilities), abs=1e-6)
    assert summary["brier"] == pytest.approx(brier_score_loss(truth, probabilities, scale_by_half=False), abs=1e-6)
    assert summary["mae"] == pytest.approx(sklearn_mean_absolute_error(truth, predictions), abs=1e-6)
    theirs = multiclass_calibration_error(logits.softmax(-1), labels, num_classes=6, n_bins=15)
    assert summary["ece"] == pytest.approx(theirs.item(), abs=1e-6)
    gap = probabilities.max(-1).mean() - (predictions == truth).mean()
    assert summary["confidence_gap"] == pytest.approx(gap, abs=1e-6)


def test_it_says_what_the_single_functions_say(device: torch.device) -> None:
    logits, labels = (part.to(device) for part in rows(1))
    distances = tree_distances(Tree.from_nested({"a": ["p", "q"], "b": ["r", "s"], "c": ["t", "u"]}))
    summary = classification_summary(logits, labels, distances=distances, ordered=True, num_bins=7)
    probabilities, predictions = logits.softmax(-1), logits.argmax(-1)
    confidences, hits = probabilities.max(-1).values, predictions == labels
    expected = {
        "adaptive_ece": audits.adaptive_calibration_error(confidences, hits, num_bins=7),
        "classwise_ece": audits.classwise_calibration_error(probabilities, labels, num_bins=7),
        "margin": audits.mean_logit_margin(logits, labels),
        "aurc": audits.risk_coverage(confidences, hits).area,
        "distance_at_1": audits.distance_at_k(logits, labels, distances, k=1),
        "distance_at_5": audits.distance_at_k(logits, labels, distances, k=5),
        "mistake_severity": audits.mistake_severity(predictions, labels, distances),
        "amae": audits.average_mean_absolute_error(predictions, labels, num_classes=6),
        "rps": audits.ranked_probability_score(probabilities, labels),
    }
    assert {name: summary[name] for name in expected} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, abs=1e-6
    )
    assert summary["distance_at_1"] == pytest.approx(summary["mistake_severity"] * (1 - summary["accuracy"]), abs=1e-6)
    assert "distance_at_20" not in summary  # there are 6 classes
    wide = classification_summary(*rows(2, num_classes=20), distances=1 - torch.eye(20))
    assert wide["distance_at_20"] == pytest.approx(19 / 20)


def test_the_temperature_divides_the_logits_and_changes_no_prediction(device: torch.device) -> None:
    logits, labels = (part.to(device) for part in rows(3))
    temperature = fit_temperature(logits, labels)
    plain = classification_summary(logits, labels)
    scaled = classification_summary(logits, labels, temperature=temperature)
    assert list(scaled) == ["temperature", *PLAIN]
    assert scaled["temperature"] == pytest.approx(temperature.item())
    by_hand = classification_summary(logits / temperature, labels)
    assert {name: scaled[name] for name in PLAIN} == pytest.approx(by_hand, abs=1e-5)
    assert scaled["accuracy"] == plain["accuracy"]
    assert scaled["nll"] < plain["nll"]
    assert classification_summary(logits, labels, temperature=1) == {"temperature": 1.0, **plain}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_and_leading_shapes(device: torch.device, dtype: torch.dtype) -> None:
    logits, labels = rows(4)
    logits, labels = logits.to(device, dtype), labels.to(device)
    summary = classification_summary(logits.reshape(4, 30, 6), labels.reshape(4, 30), ordered=True)
    assert summary == pytest.approx(classification_summary(logits.double(), labels, ordered=True), abs=1e-6)


def test_degenerate_rows_of_the_summary(device: torch.device) -> None:
    distances = 1 - torch.eye(3)
    one = torch.tensor([[2.0, 0.0, 0.0]], device=device)
    right = classification_summary(one, torch.tensor([0], device=device), distances=distances, ordered=True)
    assert (right["accuracy"], right["aurc"], right["mae"], right["distance_at_1"]) == (1.0, 0.0, 0.0, 0.0)
    assert math.isnan(right.pop("mistake_severity"))
    assert all(math.isfinite(value) for value in right.values())
    none = torch.zeros(0, dtype=torch.int64, device=device)
    empty = classification_summary(torch.zeros(0, 3, device=device), none, distances=distances, ordered=True)
    assert all(math.isnan(value) for value in empty.values())
    nan = classification_summary(one * torch.nan, torch.tensor([0], device=device))
    assert all(math.isnan(value) for value in nan.values())
    certain = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]], device=device)  # probabilities exactly 0 and 1
    wrong = classification_summary(certain, torch.tensor([0, 0], device=device))
    assert (wrong["accuracy"], wrong["nll"], wrong["brier"], wrong["ece"]) == (0.5, math.inf, 1.0, 0.5)


def test_a_real_classifier() -> None:
    features, labels = torch.randn(200, 4, dtype=torch.float64), torch.randint(3, (200,))
    features[torch.arange(200), labels] += 2
    model = LogisticRegression().fit(features.numpy(), labels.numpy())
    logits = torch.from_numpy(model.decision_function(features.numpy()))
    summary = classification_summary(logits, labels)
    assert summary["accuracy"] == pytest.approx(model.score(features.numpy(), labels.numpy()))
    probabilities = model.predict_proba(features.numpy())
    assert summary["nll"] == pytest.approx(log_loss(labels.numpy(), probabilities), abs=1e-6)
    assert np.isfinite(list(summary.values())).all()


def test_bad_arguments_of_the_summary() -> None:
    logits, labels = torch.rand(3, 2), torch.tensor([0, 1, 2])
    assert_raises(ValueError, r"labels\[2\]=2 is no class: use 0 to 1", classification_summary, logits, labels)
    assert_raises(ValueError, r"labels\[0\]=-1 is no class", classification_summary, logits, labels - 1)
    for temperature in (0.0, -1.0, math.nan, torch.tensor(math.nan)):
        with pytest.raises(ValueError, match=r"temperature=.* must be a finite number in \(0"):
            classification_summary(logits, labels.clamp(max=1), temperature=temperature)
    with pytest.raises(ValueError, match=r"distances has shape \(3, 3\), needs \(2, 2\)"):
        classification_summary(logits, labels.clamp(max=1), distances=torch.eye(3))
    assert_raises(TypeError, r"logits has dtype torch\.int64", classification_summary, labels, labels)
