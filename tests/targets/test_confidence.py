"""Confidence-adaptive pseudo-labels: what stays on the label, and what theory says of the gradients, at 1e-9."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlsmooth.losses import cross_entropy
from rlsmooth.targets import Target, confidence_adaptive, one_hot, uniform

F64 = torch.float64


def gradient(logits: Tensor, target: Target) -> Tensor:
    leaf = logits.detach().clone().requires_grad_(True)
    (result,) = torch.autograd.grad(cross_entropy(leaf, target, reduction="sum"), leaf)
    return result


def even_logits(confidence: float, classes: int, device: torch.device) -> Tensor:
    """One row that gives class 0 that probability, and the others the rest in equal parts."""
    probabilities = torch.full((1, classes), (1 - confidence) / (classes - 1), dtype=F64, device=device)
    probabilities[0, 0] = confidence
    return probabilities.log()


@given(confidence=st.lists(st.floats(0, 1), min_size=1, max_size=6), classes=st.integers(2, 9), seed=st.integers(0, 99))
def test_the_label_keeps_its_confidence_and_the_rest_is_even(confidence: list[float], classes: int, seed: int) -> None:
    numbers = np.random.default_rng(seed)
    labels = torch.from_numpy(numbers.integers(classes, size=len(confidence)))
    mask = torch.from_numpy(numbers.random((len(confidence), classes)) < 0.6).scatter(-1, labels.unsqueeze(-1), True)
    q = torch.tensor(confidence, dtype=F64)
    dense = confidence_adaptive(labels, q, classes, mask=mask).dense(F64)
    number = mask.sum(-1)
    on_label = torch.where(number > 1, q, 1.0)
    expected = torch.where(mask, ((1 - on_label) / (number - 1).clamp_min(1)).unsqueeze(-1), 0.0)
    expected = expected.scatter(-1, labels.unsqueeze(-1), on_label.unsqueeze(-1))
    torch.testing.assert_close(dense, expected, rtol=0, atol=1e-14)
    assert (dense >= 0).all()


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("confidence", [0.0, 0.05, 0.5, 0.9, 1.0])
def test_it_is_uniform_smoothing_at_the_alpha_of_theory(confidence: float, classes: int, device: torch.device) -> None:
    alpha = classes * (1 - confidence) / (classes - 1)
    dense = confidence_adaptive([1], confidence, classes).dense(F64)
    expected = (1 - alpha) * one_hot([1], classes).dense(F64) + alpha / classes  # also where alpha is above 1
    torch.testing.assert_close(dense, expected, rtol=0, atol=1e-15)
    if alpha <= 1:
        torch.testing.assert_close(dense, uniform([1], classes, alpha).dense(F64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_nothing_is_left_of_the_gradient_on_the_model_that_made_the_label(classes: int, device: torch.device) -> None:
    for confidence in (0.2, 0.5, 0.91, 1 - 1e-9):
        logits = even_logits(confidence, classes, device)
        target = confidence_adaptive(torch.zeros(1, dtype=torch.int64, device=device), confidence, classes)
        torch.testing.assert_close(gradient(logits, target), torch.zeros_like(logits), rtol=0, atol=1e-9)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_at_the_label_nothing_is_left_whatever_the_rest_is(classes: int, device: torch.device) -> None:
    logits = 3 * torch.randn(50, classes, dtype=F64, device=device)
    confidence, labels = logits.softmax(-1).max(-1)
    slope = gradient(logits, confidence_adaptive(labels, confidence, classes))
    torch.testing.assert_close(
        slope.gather(-1, labels.unsqueeze(-1)), torch.zeros(50, 1, dtype=F64, device=device), rtol=0, atol=1e-9
    )
    assert classes == 2 or slope.norm(dim=-1).max() > 0.05  # the others are still evened out


@pytest.mark.parametrize("student", [0.1, 0.3, 0.95])
@pytest.mark.parametrize("teacher", [0.2, 0.6, 0.99])
def test_a_student_that_differs_learns_by_the_difference(teacher: float, student: float, device: torch.device) -> None:
    """g = p - q: at the label the difference, on each other class its share."""
    classes = 5
    target = confidence_adaptive(torch.zeros(1, dtype=torch.int64, device=device), teacher, classes)
    slope = gradient(even_logits(student, classes, device), target)
    difference = student - teacher
    norm = abs(difference) * math.sqrt(classes / (classes - 1))
    assert slope[0, 0].item() == pytest.approx(difference, abs=1e-9)
    assert slope.norm().item() == pytest.approx(norm, abs=1e-9)


def test_a_fixed_alpha_damps_least_where_the_label_is_uncertain(device: torch.device) -> None:
    """|c - t| / (1 - c) of the hard gradient is left: less and less up to c = t, the other way round than is said."""
    classes, alpha = 10, 0.1
    goal = 1 - alpha + alpha / classes
    label = torch.zeros(1, dtype=torch.int64, device=device)
    left = []
    for confidence in (0.1, 0.3, 0.5, 0.7, 0.9, goal):
        logits = even_logits(confidence, classes, device)
        hard = gradient(logits, one_hot(label, classes)).norm().item()
        left.append(gradient(logits, uniform(label, classes, alpha)).norm().item() / hard)
        assert left[-1] == pytest.approx(abs(confidence - goal) / (1 - confidence), abs=1e-9)
    assert left == sorted(left, reverse=True)
    assert left[0] == pytest.approx(0.9, abs=1e-9)
    assert left[-1] == pytest.approx(0.0, abs=1e-9)


def test_max_alpha_limits_the_smoothing(device: torch.device) -> None:
    labels, confidence = torch.zeros(4, dtype=torch.int64), torch.tensor([0.0, 0.5, 0.9, 1.0], dtype=F64)
    found = confidence_adaptive(labels, confidence, 3, max_alpha=0.6).dense(F64)
    alpha = torch.tensor([0.6, 0.6, 0.15, 0.0], dtype=F64)
    torch.testing.assert_close(found, uniform(labels, 3, alpha).dense(F64), rtol=0, atol=1e-15)
    mask = torch.tensor([True, True, False])
    found = confidence_adaptive(labels, confidence, 3, max_alpha=0.6, mask=mask).dense(F64)
    alpha = torch.tensor([0.6, 0.6, 0.2, 0.0], dtype=F64)
    torch.testing.assert_close(found, uniform(labels, 3, alpha, mask=mask).dense(F64), rtol=0, atol=1e-15)
    only = torch.tensor([True, False, False])
    for limit in (None, 0.6):
        hard = confidence_adaptive(labels, confidence, 3, max_alpha=limit, mask=only).dense(F64)
        assert torch.equal(hard, one_hot(labels, 3).dense(F64))
    hard = confidence_adaptive(labels, confidence, 3, max_alpha=0.0).dense(F64)
    torch.testing.assert_close(hard, one_hot(labels, 3).dense(F64), rtol=0, atol=1e-15)


def test_confidence_may_be_a_number_an_array_or_broadcast(device: torch.device) -> None:
    labels = torch.tensor([[0, 1, 2], [2, 0, 1]], device=device)
    rows = confidence_adaptive(labels, torch.tensor([[0.5], [0.8]], dtype=F64, device=device), 3)
    assert rows.batch_shape == (2, 3)
    torch.testing.assert_close(rows[0].dense(F64), confidence_adaptive(labels[0], 0.5, 3).dense(F64))
    torch.testing.assert_close(rows[1].dense(F64), confidence_adaptive(labels[1], np.array(0.8), 3).dense(F64))
    assert confidence_adaptive(labels[:0], torch.zeros(0, 3, device=device), 3).dense().shape == (0, 3, 3)
    assert confidence_adaptive(labels[:, :1] * 0, 0.3, 1).dense().eq(1).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0], torch.tensor([1.5]), 3), ValueError, "confidence[0]=1.5 is no probability"),
        (([0], torch.tensor([-0.5]), 3), ValueError, "confidence[0]=-0.5 is no probability"),
        (([0], torch.tensor([math.nan]), 3), ValueError, "confidence[0]=nan is no probability"),
        (([0], torch.tensor([1]), 3), TypeError, "confidence must be floating-point, got torch.int64."),
        (([0], torch.tensor([0.1, 0.2]), 3), ValueError, "confidence of shape (2,) does not broadcast"),
        (([0], 1.5, 3), ValueError, "confidence=1.5 must be a finite number in [0, 1]"),
        (([0], "high", 3), TypeError, "confidence must be a number, got str 'high'."),
        (([3], 0.5, 3), ValueError, "labels[0]=3 is outside [0, 3)"),
        (([0.5], 0.5, 3), TypeError, "labels must hold class indices"),
        (([0], 0.5, 0), ValueError, "num_classes=0 must be at least 1"),
    ],
)
def test_bad_arguments(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        confidence_adaptive(*arguments)


def test_bad_limits_and_masks() -> None:
    with pytest.raises(ValueError, match=r"^max_alpha=1.5 must be a finite number in \[0, 1\]"):
        confidence_adaptive([0], 0.5, 3, max_alpha=1.5)
    with pytest.raises(ValueError, match=r"^labels\[0\]=0 is illegal under its mask"):
        confidence_adaptive([0], 0.5, 2, mask=torch.tensor([False, True]))
