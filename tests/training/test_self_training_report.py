"""What a round's report says: gradients by their closed forms, confirmation bias and accuracy by hand."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binned_statistic
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score
from torch import Tensor, nn

from rlsmooth.targets import confidence_adaptive, one_hot, uniform
from rlsmooth.training import (
    Classifier,
    ConfirmationBias,
    RoundReport,
    SelfTraining,
    confirmation_bias,
    gradient_bins,
    logit_gradient_norms,
)

F64 = torch.float64


def even_logits(confidence: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Logits with `confidence` on a label and the rest even, `[N, K]`, and the labels."""
    labels = torch.arange(len(confidence), device=confidence.device) % classes
    rest = ((1 - confidence) / (classes - 1)).unsqueeze(-1).expand(-1, classes)
    return rest.scatter(-1, labels.unsqueeze(-1), confidence.unsqueeze(-1)).log(), labels


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
def test_gradient_norms_against_confidence_have_their_closed_form(
    classes: int, alpha: float, device: torch.device
) -> None:
    goal = 1 - alpha + alpha / classes
    confidence = torch.cat((torch.linspace(1 / classes, 0.999, 50, dtype=F64), torch.tensor([goal], dtype=F64)))
    confidence = confidence.to(device)
    logits, labels = even_logits(confidence, classes)
    hard = logit_gradient_norms(logits, labels)
    smoothed = logit_gradient_norms(logits, uniform(labels, classes, alpha))
    stretch = math.sqrt(classes / (classes - 1))
    torch.testing.assert_close(hard, (1 - confidence) * stretch, rtol=0, atol=1e-9)
    torch.testing.assert_close(smoothed, (confidence - goal).abs() * stretch, rtol=0, atol=1e-9)
    ratio = (confidence - goal).abs() / (1 - confidence)  # damps least where the pseudo-label is uncertain
    torch.testing.assert_close(smoothed / hard, ratio, rtol=0, atol=1e-9)
    assert smoothed[-1].item() == pytest.approx(0, abs=1e-9)
    adaptive = logit_gradient_norms(logits, confidence_adaptive(labels, confidence, classes))
    torch.testing.assert_close(adaptive, torch.zeros_like(adaptive), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("confidence", "published"), [(0.1, 0.9), (0.91, 0.0), (0.99, 8.0)])
def test_the_ratios_of_ten_classes_at_a_tenth(confidence: float, published: float) -> None:
    logits, labels = even_logits(torch.tensor([confidence], dtype=F64), 10)
    ratio = logit_gradient_norms(logits, uniform(labels, 10, 0.1)) / logit_gradient_norms(logits, labels)
    assert ratio.item() == pytest.approx(published, abs=1e-9)


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("alpha", [0.1, 0.3])
def test_a_certain_pseudo_label_still_has_a_gradient(classes: int, alpha: float, device: torch.device) -> None:
    logits = torch.full((1, classes), -torch.inf, dtype=F64, device=device)
    logits[0, 0] = 0.0
    label = torch.zeros(1, dtype=torch.int64, device=device)
    norm = logit_gradient_norms(logits, uniform(label, classes, alpha))
    assert norm.item() == pytest.approx(alpha * math.sqrt((classes - 1) / classes), abs=1e-9)
    assert logit_gradient_norms(logits, label).item() == 0


def test_smoothing_shortens_gradients_as_the_identity_says(device: torch.device) -> None:
    # ‖g_hard‖² - ‖g_LS‖² = 2a(1 - q_c) - a²(K - 1)/K, whatever the rest of q
    classes, alpha = 7, 0.2
    logits = 3 * torch.randn(200, classes, dtype=F64, device=device)
    confidence, labels = logits.softmax(-1).max(-1)
    hard = logit_gradient_norms(logits, labels)
    smoothed = logit_gradient_norms(logits, uniform(labels, classes, alpha))
    expected = 2 * alpha * (1 - confidence) - alpha**2 * (classes - 1) / classes
    torch.testing.assert_close(hard.square() - smoothed.square(), expected, rtol=0, atol=1e-9)


def test_bins_are_scipys() -> None:
    logits = 2 * torch.randn(500, 4, dtype=F64)
    confidence, labels = logits.softmax(-1).max(-1)
    confidence[:2] = torch.tensor([1.0, 0.0], dtype=F64)  # the ends
    target = uniform(labels, 4, 0.1)
    bins = gradient_bins(logits, labels, confidence, target, num_bins=8)
    assert sum(bins.counts) == 500
    for ours, values in (
        (bins.confidence, confidence),
        (bins.hard, logit_gradient_norms(logits, one_hot(labels, 4))),
        (bins.target, logit_gradient_norms(logits, target)),
    ):
        theirs = binned_statistic(confidence, values, bins=np.array(bins.edges)).statistic
        np.testing.assert_allclose(np.array(ours, dtype=np.float64), theirs, rtol=0, atol=1e-12)
    assert None in bins.hard
    np.testing.assert_array_equal(np.histogram(confidence, bins=np.array(bins.edges))[0], bins.counts)


def test_no_bins_are_refused() -> None:
    logits, labels = torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="num_bins=0"):
        gradient_bins(logits, labels, torch.ones(1), one_hot(labels, 2), num_bins=0)


def test_confirmation_bias_by_hand() -> None:
    before, after = np.array([0.8, 0.9, 0.7, 0.6]), np.array([0.9, 0.5, 0.8, 0.6])
    found = confirmation_bias(before, after, np.array([False, False, True, False]))
    assert found.num_wrong == 3
    assert found.share_grown == pytest.approx(1 / 3)  # the same confidence is no growth
    assert found.mean_growth == pytest.approx(-0.1)
    assert found.mean_growth_of_right == pytest.approx(0.1)
    assert found.mean_confidence == pytest.approx((0.8 + 0.9 + 0.6) / 3)
    none = np.zeros(0)
    assert confirmation_bias(none, none, none.astype(bool)) == ConfirmationBias(0, None, None, None, None)
    with pytest.raises(ValueError, match="must have one shape"):
        confirmation_bias(before, after[:1], np.ones(4, dtype=bool))


X, LABELS = load_digits(return_X_y=True)
X, LABELS = X[:400] / 16, LABELS[:400]
Y = np.where(np.arange(400) < 20, LABELS, -1)
BASE = Classifier(nn.Linear, smoothing=0.1, learning_rate=0.03, max_epochs=12, seed=0, device="cpu")


def run(max_iter: int, truth: Any = LABELS, **arguments: Any) -> SelfTraining:
    return SelfTraining(BASE, threshold=0.5, max_iter=max_iter, **arguments).fit(X, Y, true_labels=truth)


def test_a_report_says_what_happened() -> None:
    """Runs of 0, 1, 2 rounds are the stages of the longer one, whose reports are counted again from them."""
    stages = [run(number, smoothing=0.1) for number in range(4)]
    whole = stages[-1]
    assert [report.round for report in whole.rounds_] == [1, 2, 3]
    for before, after, report in zip(stages[:-1], stages[1:], whole.rounds_, strict=True):
        new = after.labeled_iter_ == report.round
        made = after.labeled_iter_ > 0
        assert report == after.rounds_[-1]
        assert (report.num_new, report.num_labelled) == (new.sum(), 20 + made.sum())
        teacher = before.predict_proba(X)
        assert report.mean_confidence == pytest.approx(teacher[new].max(-1).mean(), abs=1e-12)
        assert report.new_accuracy == accuracy_score(LABELS[new], after.transduction_[new])
        assert report.pseudo_label_accuracy == accuracy_score(LABELS[made], after.transduction_[made])
        candidates = before.labeled_iter_ == -1
        assert sum(report.gradients.counts) == candidates.sum()
        confidence = teacher[candidates].max(-1)
        np.testing.assert_array_equal(np.histogram(confidence, report.gradients.edges)[0], report.gradients.counts)

    made, report = whole.labeled_iter_ > 0, whole.rounds_[-1]
    given = np.array(
        [stages[number - 1].predict_proba(X[[row]]).max() for row, number in enumerate(whole.labeled_iter_)]
    )
    growth = whole.predict_proba(X)[np.arange(400), whole.transduction_] - given
    wrong = made & (whole.transduction_ != LABELS)
    assert report.confirmation_bias is not None
    assert report.confirmation_bias.num_wrong == wrong.sum() > 0
    assert report.confirmation_bias.share_grown == pytest.approx((growth[wrong] > 0).mean())
    assert report.confirmation_bias.mean_growth == pytest.approx(growth[wrong].mean(), abs=1e-6)
    assert report.confirmation_bias.mean_confidence == pytest.approx(given[wrong].mean(), abs=1e-6)
    assert report.confirmation_bias.mean_growth_of_right == pytest.approx(growth[made & ~wrong].mean(), abs=1e-6)
    assert json.loads(json.dumps(dataclasses.asdict(report)))["gradients"]["counts"] == list(report.gradients.counts)


def test_a_report_without_the_truth_and_with_part_of_it() -> None:
    none, part = run(1, truth=None), run(1, truth=np.where(np.arange(400) % 2, LABELS, -1))
    (report,) = none.rounds_
    assert (report.new_accuracy, report.pseudo_label_accuracy, report.confirmation_bias) == (None, None, None)
    (report,) = part.rounds_
    known = (part.labeled_iter_ == 1) & (np.arange(400) % 2 == 1)
    assert report.new_accuracy == accuracy_score(LABELS[known], part.transduction_[known])
    np.testing.assert_array_equal(none.transduction_, part.transduction_)  # the truth is for the report alone


def test_a_round_that_labels_nothing_is_reported() -> None:
    model = SelfTraining(BASE, threshold=0.999).fit(X, Y, true_labels=LABELS)
    (report,) = model.rounds_
    assert model.termination_condition_ == "no_change"
    assert (report.num_new, report.num_labelled, report.mean_confidence, report.new_accuracy) == (0, 20, None, None)
    assert report.confirmation_bias == ConfirmationBias(0, None, None, None, None)


@pytest.mark.parametrize("smoothing", [0.0, 0.2, "confidence_adaptive"])
def test_reported_gradients_are_those_of_the_targets_trained_on(smoothing: Any) -> None:
    report: RoundReport = run(1, smoothing=smoothing).rounds_[0]
    teacher = run(0)
    rows = Y == -1
    logits = teacher.logits(X[rows]).to(F64)
    confidence, labels = logits.softmax(-1).max(-1)
    target = (
        confidence_adaptive(labels, confidence, 10) if isinstance(smoothing, str) else uniform(labels, 10, smoothing)
    )
    # p - q is the gradient
    norms = (logits.softmax(-1) - target.dense(F64)).norm(dim=-1)
    theirs = binned_statistic(confidence, norms, bins=np.array(report.gradients.edges)).statistic
    np.testing.assert_allclose(np.array(report.gradients.target, dtype=np.float64), theirs, rtol=0, atol=1e-9)
    hard = (logits.softmax(-1) - nn.functional.one_hot(labels, 10)).norm(dim=-1)
    theirs = binned_statistic(confidence, hard, bins=np.array(report.gradients.edges)).statistic
    np.testing.assert_allclose(np.array(report.gradients.hard, dtype=np.float64), theirs, rtol=0, atol=1e-9)
