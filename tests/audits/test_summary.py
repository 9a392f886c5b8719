"""The summary holds what the single functions and other libraries say of the same rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss
from sklearn.metrics import mean_absolute_error as sklearn_mean_absolute_error
from torchmetrics.functional.classification import multiclass_calibration_error

from rlsmooth import audits
from rlsmooth.audits import classification_summary, fit_temperature, tree_distances
from rlsmooth.targets import Tree

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


def test_degenerate_rows(device: torch.device) -> None:
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


def test_bad_arguments() -> None:
    logits, labels = torch.rand(3, 2), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match=r"labels\[2\]=2 is no class: use 0 to 1"):
        classification_summary(logits, labels)
    with pytest.raises(ValueError, match=r"labels\[0\]=-1 is no class"):
        classification_summary(logits, labels - 1)
    for temperature in (0.0, -1.0, math.nan, torch.tensor(math.nan)):
        with pytest.raises(ValueError, match=r"temperature=.* must be a finite number in \(0"):
            classification_summary(logits, labels.clamp(max=1), temperature=temperature)
    with pytest.raises(ValueError, match=r"distances has shape \(3, 3\), needs \(2, 2\)"):
        classification_summary(logits, labels.clamp(max=1), distances=torch.eye(3))
    with pytest.raises(TypeError, match=r"logits has dtype torch\.int64"):
        classification_summary(labels, labels)
