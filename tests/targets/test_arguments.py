"""Every documented error of the builders names argument, value and fix; and arrays of numpy pass where tensors do."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rlsmooth.losses import binary_cross_entropy, cross_entropy, entropy, reference
from rlsmooth.targets import (
    Smoothing,
    Target,
    Tree,
    as_smoothing,
    boltzmann,
    completed_q,
    confidence_adaptive,
    from_probs,
    hierarchical,
    hl_gauss,
    kernel,
    mixture,
    one_hot,
    ordinal,
    ordinal_kernel,
    prior,
    sparse,
    teacher,
    two_hot,
    uniform,
    visit_counts,
)
from support import assert_raises, assert_refuses

TREE = Tree.from_nested(["a", "b", "c"])
PRIOR = torch.tensor([0.5, 0.25, 0.25])
ONES = torch.ones(3, 3)
NAN, INF = math.nan, math.inf

# Builders of 3 classes from labels, with whatever else is asked.
Builder = Callable[..., Target]
FROM_LABELS: dict[str, Builder] = {
    "one_hot": lambda labels, **more: one_hot(labels, 3, **more),
    "uniform": lambda labels, **more: uniform(labels, 3, **more),
    "prior": lambda labels, **more: prior(labels, PRIOR, **more),
    "kernel": lambda labels, **more: kernel(labels, ONES, **more),
    "hierarchical": lambda labels, **more: hierarchical(labels, TREE, **more),
    "ordinal": lambda labels, **more: ordinal(labels, 3, **more),
    "teacher": lambda labels, **more: teacher(torch.zeros(2, 3), labels=labels, **({"alpha": 0.5} | more)),
}
SMOOTHED = [name for name in FROM_LABELS if name != "one_hot"]


def raises(error: type[Exception], message: str) -> Any:
    return pytest.raises(error, match=f"^{re.escape(message)}")


@pytest.mark.parametrize("name", FROM_LABELS)
def test_labels(name: str) -> None:
    build = FROM_LABELS[name]
    for labels, kind in (
        (torch.tensor([0.0, 1.0]), "torch.float32"),
        ([0.0, 1.0], "torch.float32"),
        (torch.tensor([True, False]), "torch.bool"),
        (torch.tensor([0j, 1j]), "torch.complex64"),
        (torch.zeros(0), "torch.float32"),
        (np.array([0.5, 1.0]), "torch.float64"),
    ):
        with raises(
            TypeError, f"labels must hold class indices (int64), got {kind}: for probabilities use from_probs."
        ):
            build(labels)
    for labels, at, value in (([0, 3], 1, 3), (torch.tensor([-1, 0]), 0, -1), (torch.tensor([1, -100]), 1, -100)):
        with raises(ValueError, f"labels[{at}]={value} is outside [0, 3): labels are class indices from 0"):
            build(labels)
    if name != "teacher":
        assert_refuses(ValueError, "labels=3 is outside [0, 3)", build, 3)
        assert_refuses(ValueError, "labels[1, 0]=5 is outside [0, 3)", build, torch.tensor([[0, 1], [5, 7]]))


@pytest.mark.parametrize("name", SMOOTHED)
def test_alpha(name: str) -> None:
    build = FROM_LABELS[name]
    for alpha in (1.0000001, 2, NAN, INF, -INF):
        assert_refuses(ValueError, f"alpha={alpha!r} must be finite and at most 1", build, [0, 1], alpha=alpha)
        with raises(ValueError, f"alpha={alpha!r} must be finite and at most 1"):
            build([0, 1], alpha=alpha, validate=False)  # a number on the host costs no waiting
    for alpha in ("0.1", [0.1], True):
        with raises(TypeError, f"alpha must be a number or a tensor, got {type(alpha).__name__} {alpha!r}."):
            build([0, 1], alpha=alpha)
    for at, value in ((0, 1.5), (1, NAN), (1, -INF)):
        alpha = torch.tensor([0.1, 0.1], dtype=torch.float64)
        alpha[at] = value
        assert_refuses(ValueError, f"alpha[{at}]={value!r} must be finite and at most 1.", build, [0, 1], alpha=alpha)
    assert_refuses(ValueError, "alpha=1.5 must be finite and at most 1.", build, [0, 1], alpha=torch.tensor(1.5))
    with raises(TypeError, "alpha must be a floating-point tensor, got torch.int64."):
        build([0, 1], alpha=torch.tensor([0, 1]))
    for shape in ((3,), (2, 1), (1, 2), (0,)):
        with raises(ValueError, f"alpha of shape {shape} does not broadcast over the batch (2,): give one number, or"):
            build([0, 1], alpha=torch.zeros(shape))


@pytest.mark.parametrize("name", FROM_LABELS)
def test_mask(name: str) -> None:
    build = FROM_LABELS[name]
    for mask, kind in ((torch.ones(3), "torch.float32"), (torch.ones(3).long(), "torch.int64"), ([True] * 3, "list")):
        with raises(
            TypeError, f"mask must be a bool tensor (True = legal), got {kind}: use mask.bool() for 0/1 masks."
        ):
            build([0, 1], mask=mask)
    for shape in ((), (2,), (1,), (3, 3), (2, 1), (1, 2, 3), (2, 2, 3)):
        with raises(ValueError, f"mask of shape {shape} does not broadcast to (2, 3): one bool a row and class."):
            build([0, 1], mask=torch.ones(shape, dtype=torch.bool))
    nothing = torch.tensor([[True, True, True], [False, False, False]])
    with raises(ValueError, "mask[1] allows no class at all: every row needs at least one legal class."):
        build([0, 1], mask=nothing)
    with raises(ValueError, "labels[1]=1 is illegal under its mask: fix the mask or drop the row."):
        build([0, 1], mask=torch.tensor([True, False, True]))
    if name != "teacher":
        with raises(ValueError, "labels=1 is illegal under its mask"):
            build(1, mask=torch.tensor([True, False, True]))
        assert_refuses(ValueError, "mask allows no class at all", build, 1, mask=torch.zeros(3, dtype=torch.bool))


@pytest.mark.parametrize("name", FROM_LABELS)
def test_validate_false_reads_no_value(name: str) -> None:
    FROM_LABELS[name](torch.tensor([0, 1]), mask=torch.tensor([True, False, True]), validate=False)
    if name in SMOOTHED:
        FROM_LABELS[name](torch.tensor([0, 1]), alpha=torch.tensor([2.0, NAN]), validate=False)


@pytest.mark.parametrize("build", [one_hot, uniform, ordinal_kernel])
def test_num_classes(build: Callable[..., object]) -> None:
    arguments = () if build is ordinal_kernel else ([],)
    for num_classes in (0, -2):
        assert_refuses(ValueError, f"num_classes={num_classes} must be at least 1.", build, *arguments, num_classes)
    for num_classes in (3.0, "3", None, True):
        with raises(
            TypeError, f"num_classes must be a whole number, got {type(num_classes).__name__} {num_classes!r}."
        ):
            build(*arguments, num_classes)


def test_spread() -> None:
    with raises(ValueError, "spread='other' is not known: choose one of 'all', 'others'."):
        uniform([0], 3, 0.1, "other")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (
            [0.5, 0.5],
            TypeError,
            "prior must be a floating-point tensor [K], got list: for counts give counts / counts.sum().",
        ),
        (
            torch.tensor([3, 5]),
            TypeError,
            "prior must be a floating-point tensor [K], got torch.int64: for counts give",
        ),
        (
            torch.ones(1, 2) / 2,
            ValueError,
            "prior has shape (1, 2), needs [K]: for one distribution a row use from_probs.",
        ),
        (torch.tensor(1.0), ValueError, "prior has shape (), needs [K]"),
        (torch.tensor([3.0, 5.0]), ValueError, "prior sums to 8, must sum to 1: give counts / counts.sum()."),
        (torch.tensor([0.5, 0.4998]), ValueError, "prior sums to 0.9998, must sum to 1"),
        (torch.tensor([1.5, -0.5]), ValueError, "prior[1]=-0.5 is no probability: it must be in [0, 1]."),
        (torch.tensor([NAN, 1.0]), ValueError, "prior[0]=nan is no probability"),
        (torch.tensor([INF, 1.0]), ValueError, "prior[0]=inf is no probability"),
    ],
)
def test_prior(value: Any, error: type[Exception], message: str) -> None:
    assert_refuses(error, message, prior, [0], value)


def test_a_prior_within_the_tolerance_passes_and_a_prior_of_nothing_legal_does_not() -> None:
    assert prior([0], torch.tensor([0.5, 0.49991]), 0.1).num_classes == 2
    mask = torch.tensor([[True, True, True], [True, True, False]])
    with raises(ValueError, "mask[1] leaves only classes of prior 0: give them some prior."):
        prior([0, 1], torch.tensor([0.0, 0.0, 1.0]), mask=mask)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([[1.0]], TypeError, "kernel must be a floating-point tensor [K, K], got list."),
        (torch.ones(3, 3).long(), TypeError, "kernel must be a floating-point tensor [K, K], got torch.int64."),
        (torch.ones(3), ValueError, "kernel has shape (3,), must be square [K, K]."),
        (torch.ones(3, 2), ValueError, "kernel has shape (3, 2), must be square [K, K]."),
        (torch.ones(0, 0), ValueError, "kernel has shape (0, 0), must be square [K, K]."),
        (torch.tensor([[1.0, -0.5], [1.0, 1.0]]), ValueError, "kernel[0, 1]=-0.5 must be finite and at least 0."),
        (torch.tensor([[1.0, 1.0], [NAN, 1.0]]), ValueError, "kernel[1, 0]=nan must be finite and at least 0."),
        (torch.tensor([[1.0, INF], [1.0, 1.0]]), ValueError, "kernel[0, 1]=inf must be finite and at least 0."),
        (
            torch.tensor([[1.0, 1.0], [0.0, 1.0]]),
            ValueError,
            "kernel[1] is 0 for every class but its own: give class 1",
        ),
    ],
)
@pytest.mark.parametrize("validate", [True, False])
def test_kernel(value: Any, error: type[Exception], message: str, validate: bool) -> None:
    assert_refuses(error, message, kernel, [0], value, validate=validate)


def test_tree_and_decay() -> None:
    with raises(TypeError, "tree must be a rlsmooth.targets.Tree, got dict: see Tree.from_nested."):
        hierarchical([0], {"a": ["b"]})  # type: ignore[arg-type]
    for decay in (-0.5, NAN, INF):
        with raises(ValueError, f"decay={decay!r} must be a finite number in [0, inf]."):
            hierarchical([0], TREE, decay=decay)
    assert_refuses(TypeError, "decay must be a number, got str '1'.", hierarchical, [0], TREE, decay="1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheme": "normal"}, "scheme='normal' is not known: choose one of 'adjacent', 'triangular', 'binomial', "),
        ({"edge": "none"}, "edge='none' is not known: choose one of 'all', 'half'."),
        ({"width": 1.0}, "width=1.0 must be a finite number in (1, inf]."),
        ({"width": NAN}, "width=nan must be a finite number in (1, inf]."),
        ({"concentration": 1.99}, "concentration=1.99 must be a finite number in [2, inf]."),
        ({"decay": -1.0}, "decay=-1.0 must be a finite number in [0, inf]."),
        ({"power": 0.0}, "power=0.0 must be a finite number in (0, inf]."),
        ({"num_classes": 0}, "num_classes=0 must be at least 1."),
    ],
)
def test_ordinal(arguments: dict[str, Any], message: str) -> None:
    assert_refuses(ValueError, message, ordinal_kernel, **{"num_classes": 3} | arguments)
    assert_refuses(ValueError, message, ordinal, [0], **{"num_classes": 3} | arguments)


def test_ordinal_schemes_that_say_nothing() -> None:
    message = 'scheme="adjacent" says nothing of the label itself: give alpha, the mass of its neighbours.'
    assert_refuses(ValueError, message, ordinal_kernel, 3, "adjacent", include_label=True)
    assert_refuses(ValueError, message, ordinal, [0], 3, None, "adjacent")
    nearest = np.array([[0, 1, 0], [0.5, 0, 0.5], [0, 1, 0]])  # whatever is left of it by then
    np.testing.assert_allclose(ordinal_kernel(3, "beta", concentration=1e6), nearest, rtol=1e-7)
    np.testing.assert_array_equal(ordinal_kernel(3, "beta", include_label=True, concentration=1e6), np.eye(3))


def test_mixture() -> None:
    pair = torch.tensor([[0, 1]])
    assert_refuses(TypeError, "num_classes is missing: mixture can't infer it from the parents.", mixture, pair)
    with raises(TypeError, "parents must hold class indices (int64), got torch.float32"):
        mixture(pair.float(), None, 3)
    for parents in (torch.tensor(1), torch.zeros(2, 0, dtype=torch.int64)):
        with raises(ValueError, f"parents has shape {tuple(parents.shape)}, needs [..., P] with at least one parent."):
            mixture(parents, None, 3)
    assert_refuses(ValueError, "parents[0, 1]=3 is outside [0, 3)", mixture, torch.tensor([[0, 3]]), None, 3)
    with raises(ValueError, "parents[0, 1]=1 is illegal under its mask"):
        mixture(pair, None, 3, mask=torch.tensor([True, False, True]))
    with raises(ValueError, "mask[0] allows no class at all"):
        mixture(pair, None, 3, mask=torch.zeros(1, 3, dtype=torch.bool))
    for weights in (torch.ones(3), torch.ones(1, 1), torch.ones(2, 2), torch.tensor(1.0)):
        with raises(ValueError, f"weights (torch.float32 {tuple(weights.shape)}) must be floating-point and have the"):
            mixture(pair, weights, 3)
    with raises(ValueError, "weights (torch.int64 (2,)) must be floating-point"):
        mixture(pair, torch.tensor([1, 0]), 3)
    with raises(ValueError, "weights[0] sums to 1.2, must sum to 1: give weights / weights.sum(-1, keepdim=True)."):
        mixture(pair, torch.tensor([[0.6, 0.6]]), 3)
    assert_refuses(ValueError, "weights[0, 0]=-0.5 is no probability", mixture, pair, torch.tensor([[-0.5, 1.5]]), 3)
    assert_refuses(ValueError, "weights sums to 1.2, must sum to 1", mixture, pair, torch.tensor([0.6, 0.6]), 3)
    assert_refuses(ValueError, "alpha=2 must be finite and at most 1", mixture, pair, None, 3, 2)
    with raises(ValueError, "alpha of shape (2,) does not broadcast over the batch (1,)"):
        mixture(pair, None, 3, torch.zeros(2))
    mixture(torch.tensor([[0, 1]]), torch.tensor([0.6, 0.6]), 3, validate=False)


def test_sparse() -> None:
    indices = torch.tensor([[0, 1]])
    with raises(TypeError, "indices must hold class indices (int64), got torch.float32"):
        sparse(indices.float(), torch.ones(1, 2), 3)
    with raises(TypeError, "weights must be a floating-point tensor, got torch.int64."):
        sparse(indices, torch.ones(1, 2).long(), 3)
    assert_refuses(TypeError, "weights must be a floating-point tensor, got list.", sparse, indices, [[1.0, 0.0]], 3)
    with raises(ValueError, "indices (1, 2) and weights (2,) must have one shape [..., A]."):
        sparse(indices, torch.ones(2), 3)
    with raises(ValueError, "indices () and weights () must have one shape [..., A]."):
        sparse(torch.tensor(1), torch.tensor(1.0), 3)
    assert_refuses(ValueError, "indices[0, 1]=1 is outside [0, 1)", sparse, indices, torch.ones(1, 2), 1)
    with raises(ValueError, "num_classes=0 must be at least 1."):
        sparse(indices, torch.ones(1, 2), 0, validate=False)
    for value in (NAN, INF, -INF):
        with raises(ValueError, f"weights[0, 1]={value!r} must be finite."):
            sparse(indices, torch.tensor([[0.0, value]]), 3)


@pytest.mark.parametrize("labels", [None, [None, 1]])
def test_labels_that_are_missing(labels: Any) -> None:
    assert_raises(TypeError, "labels", one_hot, labels, 3)


def test_num_classes_beside_a_mask() -> None:
    with pytest.raises(TypeError, match="num_classes must be a whole number"):
        uniform([0], 3.0, mask=torch.ones(3, dtype=torch.bool))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["mixture", "visit_counts", "weight_classes"])
def test_lists_where_a_tensor_is_needed(name: str) -> None:
    calls: dict[str, Callable[[], object]] = {
        "mixture": lambda: mixture(torch.tensor([[0, 1]]), [[0.5, 0.5]], 3),  # type: ignore[arg-type]
        "visit_counts": lambda: visit_counts([[1, 3]]),  # type: ignore[arg-type]
        "weight_classes": lambda: one_hot([0], 2).weight_classes([1.0, 2.0]),  # type: ignore[arg-type]
    }
    assert_raises(TypeError, r"(weights|counts) must be .*tensor.* got list", calls[name])


def test_alpha_as_a_numpy_number() -> None:
    assert uniform([0], 2, np.float32(0.5)).dense().tolist() == [[0.75, 0.25]]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["mask", "counts", "q_values"])
def test_single_rows_are_named_without_brackets(name: str) -> None:
    mask = torch.tensor([True, True, False])
    calls: dict[str, Callable[[], object]] = {
        "mask": lambda: prior(0, torch.tensor([0.0, 0.0, 1.0]), mask=mask),
        "counts": lambda: visit_counts(torch.tensor([0, 0])),
        "q_values": lambda: boltzmann(torch.tensor([-INF, -INF])),
    }
    assert_raises(ValueError, f"^{name} ", calls[name])


def test_a_cached_table_does_not_hide_a_bad_number_of_classes() -> None:
    ordinal([0], 3, 0.1)
    assert_raises(TypeError, r"num_classes must be a whole number, got float 3.0", ordinal, [0], 3.0, 0.1)


def test_a_scheme_that_is_no_string() -> None:
    assert_raises(ValueError, "is not known: choose one of", ordinal, [0], 3, 0.1, ["beta"])


# ---- dense builders
@pytest.mark.parametrize(("build", "name"), [(from_probs, "probs"), (boltzmann, "q_values"), (teacher, "logits")])
def test_dense_arguments(build: Callable[..., Target], name: str) -> None:
    for value, kind in (
        ([[0.5, 0.5]], "list"),
        (torch.tensor([[1, 0]]), "torch.int64"),
        (torch.ones(2) > 0, "torch.bool"),
    ):
        assert_refuses(TypeError, f"{name} must be a floating-point tensor [..., K], got {kind}.", build, value)
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
        assert_refuses(ValueError, message, from_probs, torch.tensor([[0.5, 0.5], row]))
    assert_refuses(ValueError, "probs sums to 2, must sum to 1", from_probs, torch.ones(2))
    with raises(ValueError, "probs[0, 1]=0.5 is on a class that its mask forbids."):
        from_probs(torch.tensor([[0.5, 0.5]]), mask=torch.tensor([True, False]))
    assert from_probs(torch.ones(2), validate=False).mass().item() == 2


@pytest.mark.parametrize(("build", "name"), [(boltzmann, "q_values"), (teacher, "logits")])
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
        assert_refuses(TypeError, f"counts must be numbers of shape [..., K], got {kind}.", visit_counts, counts)


# ---- numpy's arrays and scalars
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
