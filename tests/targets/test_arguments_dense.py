"""Every documented error of the dense builders: its type, and a message that names argument, value and fix."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlsmooth.targets import Target, boltzmann, from_probs, teacher, visit_counts

NAN, INF = math.nan, math.inf


def raises(error: type[Exception], message: str) -> Any:
    return pytest.raises(error, match=f"^{re.escape(message)}")


@pytest.mark.parametrize(
    ("build", "name"), [(from_probs, "probs"), (boltzmann, "q_values"), (teacher, "logits")], ids=lambda item: str(item)
)
def test_dense_arguments(build: Callable[..., Target], name: str) -> None:
    for value, kind in (
        ([[0.5, 0.5]], "list"),
        (torch.tensor([[1, 0]]), "torch.int64"),
        (torch.ones(2) > 0, "torch.bool"),
    ):
        with raises(TypeError, f"{name} must be a floating-point tensor [..., K], got {kind}."):
            build(value)
    for shape in ((), (0,), (2, 0)):
        with raises(ValueError, f"{name} has shape {shape}, needs [..., K] with at least one class."):
            build(torch.ones(shape))
    with raises(TypeError, "mask must be a bool tensor (True = legal), got torch.float32"):
        build(torch.tensor([[0.5, 0.5]]), mask=torch.ones(2))
    with raises(ValueError, "mask of shape (3,) does not broadcast to (1, 2)"):
        build(torch.tensor([[0.5, 0.5]]), mask=torch.ones(3, dtype=torch.bool))
    with raises(ValueError, "mask[0] allows no class at all"):
        build(torch.tensor([[0.5, 0.5]]), mask=torch.zeros(2, dtype=torch.bool))


def test_from_probs() -> None:
    for row, message in (
        ([0.5, 0.6], "probs[1] sums to 1.1, must sum to 1: give probs / probs.sum(-1, keepdim=True)."),
        ([1.5, -0.5], "probs[1, 1]=-0.5 is no probability"),
        ([NAN, 1.0], "probs[1, 0]=nan is no probability"),
    ):
        with raises(ValueError, message):
            from_probs(torch.tensor([[0.5, 0.5], row]))
    with raises(ValueError, "probs sums to 2, must sum to 1"):
        from_probs(torch.ones(2))
    with raises(ValueError, "probs[0, 1]=0.5 is on a class that its mask forbids."):
        from_probs(torch.tensor([[0.5, 0.5]]), mask=torch.tensor([True, False]))
    assert from_probs(torch.ones(2), validate=False).mass().item() == 2


@pytest.mark.parametrize(("build", "name"), [(boltzmann, "q_values"), (teacher, "logits")], ids=lambda item: str(item))
def test_softmaxes(build: Callable[..., Target], name: str) -> None:
    for value in (NAN, INF):
        with raises(ValueError, f"{name}[1, 0]={value!r} must be a number below infinity."):
            build(torch.tensor([[0.0, 1.0], [value, 0.0]]))
    with raises(ValueError, f"{name}[1] is -inf everywhere: every row needs a possible class."):
        build(torch.tensor([[0.0, 1.0], [-INF, -INF]]))
    with raises(ValueError, f"{name}[0] is -inf everywhere"):
        build(torch.tensor([[0.0, -INF]]), mask=torch.tensor([False, True]))
    for temperature in (0, 0.0, -1.0, NAN, INF):
        with raises(ValueError, f"temperature={temperature!r} must be a finite number in (0, inf]."):
            build(torch.zeros(1, 2), temperature)
    with raises(TypeError, "temperature must be a number, got Tensor tensor(1.)."):
        build(torch.zeros(1, 2), torch.tensor(1.0))


def test_teacher() -> None:
    for alpha in (0.5, torch.tensor(1.0)):
        with raises(ValueError, f"alpha={alpha!r} leaves something for the labels: give labels, or alpha=1."):
            teacher(torch.zeros(2, 3), alpha=alpha)
    with raises(ValueError, "labels (3,) must have the logits' batch shape (2,)."):
        teacher(torch.zeros(2, 3), labels=[0, 1, 2], alpha=0.5)


def test_visit_counts() -> None:
    for value in (-1.0, NAN, INF):
        with raises(ValueError, f"counts[0, 1]={value!r} must be finite and at least 0."):
            visit_counts(torch.tensor([[1.0, value]]))
    with raises(ValueError, "counts[1] has no visit at all: drop the row or search it."):
        visit_counts(torch.tensor([[1, 2], [0, 0]]))
    with raises(ValueError, "counts[0, 1]=2.0 is on a class that its mask forbids."):
        visit_counts(torch.tensor([[1, 2]]), mask=torch.tensor([True, False]))
    for temperature in (-1.0, NAN, INF):
        with raises(ValueError, f"temperature={temperature!r} must be a finite number in [0, inf]."):
            visit_counts(torch.tensor([[1, 2]]), temperature)
    for counts, kind in ((torch.tensor(3), "torch.int64 ()"), (torch.ones(2) > 0, "torch.bool (2,)")):
        with raises(TypeError, f"counts must be numbers of shape [..., K], got {kind}."):
            visit_counts(counts)
