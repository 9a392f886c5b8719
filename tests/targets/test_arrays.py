"""numpy's arrays and scalars, which Gymnasium and sb3-contrib hand over, wherever a tensor or a number is taken."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from rlsmooth.losses import binary_cross_entropy, cross_entropy, entropy, reference
from rlsmooth.targets import (
    Smoothing,
    Target,
    as_smoothing,
    boltzmann,
    completed_q,
    confidence_adaptive,
    from_probs,
    hl_gauss,
    kernel,
    mixture,
    one_hot,
    ordinal,
    prior,
    sparse,
    teacher,
    two_hot,
    uniform,
    visit_counts,
)

LABELS = torch.tensor([0, 2])
ROW = np.array([0.25, 0.25, 0.5])
ROWS = np.stack((ROW, ROW[::-1]))
TABLE = np.array([[1.0, 2.0, 3.0], [2.0, 1.0, 4.0], [3.0, 4.0, 1.0]])
MASK = np.array([True, False, True])

# Each with `convert`, which is the identity or torch.tensor: the two must agree.
CALLS: dict[str, Callable[[Callable[[np.ndarray], np.ndarray | torch.Tensor]], Target]] = {
    "one_hot": lambda c: one_hot(c(np.array([0, 2])), 3, mask=c(MASK)),  # type: ignore[arg-type]
    "uniform": lambda c: uniform(LABELS, 3, mask=c(MASK)),  # type: ignore[arg-type]
    "prior": lambda c: prior(LABELS, c(ROW), mask=c(MASK)),  # type: ignore[arg-type]
    "kernel": lambda c: kernel(LABELS, c(TABLE)),  # type: ignore[arg-type]
    "mixture": lambda c: mixture(c(np.array([[0, 1]])), c(np.array([[0.25, 0.75]])), 3, 0.1),  # type: ignore[arg-type]
    "sparse": lambda c: sparse(c(np.array([[0, 1]])), c(np.array([[0.25, 0.75]])), 3),  # type: ignore[arg-type]
    "visit_counts": lambda c: visit_counts(c(np.array([[1, 3]]))),  # type: ignore[arg-type]
    "boltzmann": lambda c: boltzmann(c(ROWS), mask=c(MASK)),  # type: ignore[arg-type]
    "teacher": lambda c: teacher(c(ROWS), labels=LABELS, alpha=0.5),  # type: ignore[arg-type]
    "completed_q": lambda c: completed_q(c(ROWS), c(ROWS), c(TABLE[:2]), value=c(ROW[:2])),  # type: ignore[arg-type]
    "confidence_adaptive": lambda c: confidence_adaptive(LABELS, c(ROW[:2]), 3, mask=c(MASK)),  # type: ignore[arg-type]
    "two_hot": lambda c: two_hot(c(ROW), c(TABLE[0])),  # type: ignore[arg-type]
    "hl_gauss": lambda c: hl_gauss(c(ROW), c(TABLE[0])),  # type: ignore[arg-type]
    "from_probs": lambda c: from_probs(c(ROWS)),  # type: ignore[arg-type]
    "recipe of a prior": lambda c: Smoothing(0.1, reference=c(ROW))(LABELS, 3, c(MASK)),  # type: ignore[arg-type]
    "recipe of a kernel": lambda c: Smoothing(0.1, reference=c(TABLE))(LABELS, 3),  # type: ignore[arg-type]
    "weight_classes": lambda c: uniform(LABELS, 3).weight_classes(c(ROW)),  # type: ignore[arg-type]
    "scale": lambda c: uniform(LABELS, 3).scale(c(ROW[:2])),  # type: ignore[arg-type]
    "mix": lambda c: Target.mix(uniform(LABELS, 3), one_hot(LABELS, 3), c(ROW[:2])),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", CALLS)
def test_arrays_are_taken_as_tensors(name: str) -> None:
    def read_only(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array.setflags(write=False)
        return array

    expected = CALLS[name](lambda array: torch.tensor(array.copy())).dense(torch.float64)
    for convert in (lambda array: array.copy(), read_only):
        torch.testing.assert_close(CALLS[name](convert).dense(torch.float64), expected, rtol=0, atol=0)


def test_a_mask_may_be_an_array_in_losses() -> None:
    logits, target = torch.randn(2, 3), uniform(LABELS, 3, mask=torch.tensor(MASK))
    expected = cross_entropy(logits, target, mask=torch.tensor(MASK))
    assert cross_entropy(logits, target, mask=MASK) == expected  # type: ignore[arg-type]
    assert torch.equal(entropy(logits, MASK), entropy(logits, torch.tensor(MASK)))  # type: ignore[arg-type]


def test_numpys_scalars_are_numbers() -> None:
    recipe = as_smoothing(np.float32(0.25))  # type: ignore[arg-type]
    assert json.loads(json.dumps(recipe.to_config()))["alpha"] == 0.25
    assert json.dumps(Smoothing(0.1, "exponential", decay=np.float32(0.5)).to_config())  # type: ignore[arg-type]
    ordinal(LABELS, 3, 0.1, decay=np.float32(0.5))  # type: ignore[arg-type]
    visit_counts(torch.tensor([[1, 3]]), np.float32(0.5))  # type: ignore[arg-type]
    binary_cross_entropy(torch.zeros(1), torch.ones(1), real_target=np.float32(0.75))  # type: ignore[arg-type]


@pytest.mark.parametrize("offset", [1e6, 1e8, -1e8])
@pytest.mark.parametrize("make", [boltzmann, lambda values: teacher(values, labels=[0], alpha=0.5)])
def test_float64_values_keep_their_differences_in_a_float32_loss(offset: float, make: Callable[..., Target]) -> None:
    """float32 has no 1e8 + 1: the maximum is taken off before the values are rounded."""
    target = make(torch.tensor([[0.0, 1.0, -2.0]], dtype=torch.float64) + offset)
    logits = torch.randn(1, 3)
    exact = reference.cross_entropy(logits.double(), target)
    torch.testing.assert_close(cross_entropy(logits, target).double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fill", [-1e8, -math.inf])
def test_a_class_of_no_mass_at_a_masked_logit_does_not_drown_the_rest(fill: float) -> None:
    """What the atom takes off and what the background adds are 1e7 each there, and cancel."""
    logits = torch.tensor([[1.3, 0.2, fill, 2.1]])
    parents, shares = torch.tensor([[0, 2, 2]]), torch.tensor([[1.0, 0.0, 0.0]])
    for target in (uniform([2], 4, 1.0, "others"), mixture(parents, shares, 4, 0.1)):
        exact = reference.cross_entropy(logits.double(), target)
        assert cross_entropy(logits, target).item() == pytest.approx(exact.item(), rel=1e-6)
