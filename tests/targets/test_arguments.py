"""Every documented error of the builders: its type, and a message that names argument, value and fix."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rlsmooth.targets import (
    Target,
    Tree,
    boltzmann,
    hierarchical,
    kernel,
    mixture,
    one_hot,
    ordinal,
    ordinal_kernel,
    prior,
    sparse,
    teacher,
    uniform,
    visit_counts,
)

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
        with raises(ValueError, "labels=3 is outside [0, 3)"):
            build(3)
        with raises(ValueError, "labels[1, 0]=5 is outside [0, 3)"):
            build(torch.tensor([[0, 1], [5, 7]]))


@pytest.mark.parametrize("name", SMOOTHED)
def test_alpha(name: str) -> None:
    build = FROM_LABELS[name]
    for alpha in (1.0000001, 2, NAN, INF, -INF):
        with raises(ValueError, f"alpha={alpha!r} must be finite and at most 1"):
            build([0, 1], alpha=alpha)
        with raises(ValueError, f"alpha={alpha!r} must be finite and at most 1"):
            build([0, 1], alpha=alpha, validate=False)  # a number on the host costs no waiting
    for alpha in ("0.1", [0.1], True):
        with raises(TypeError, f"alpha must be a number or a tensor, got {type(alpha).__name__} {alpha!r}."):
            build([0, 1], alpha=alpha)
    for at, value in ((0, 1.5), (1, NAN), (1, -INF)):
        alpha = torch.tensor([0.1, 0.1], dtype=torch.float64)
        alpha[at] = value
        with raises(ValueError, f"alpha[{at}]={value!r} must be finite and at most 1."):
            build([0, 1], alpha=alpha)
    with raises(ValueError, "alpha=1.5 must be finite and at most 1."):
        build([0, 1], alpha=torch.tensor(1.5))
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
    with raises(ValueError, "labels[1]=1 is illegal under its mask: mend the mask or drop the row."):
        build([0, 1], mask=torch.tensor([True, False, True]))
    if name != "teacher":
        with raises(ValueError, "labels=1 is illegal under its mask"):
            build(1, mask=torch.tensor([True, False, True]))
        with raises(ValueError, "mask allows no class at all"):
            build(1, mask=torch.zeros(3, dtype=torch.bool))


@pytest.mark.parametrize("name", FROM_LABELS)
def test_validate_false_reads_no_value(name: str) -> None:
    FROM_LABELS[name](torch.tensor([0, 1]), mask=torch.tensor([True, False, True]), validate=False)
    if name in SMOOTHED:
        FROM_LABELS[name](torch.tensor([0, 1]), alpha=torch.tensor([2.0, NAN]), validate=False)


@pytest.mark.parametrize("build", [one_hot, uniform, ordinal_kernel])
def test_num_classes(build: Callable[..., object]) -> None:
    arguments = () if build is ordinal_kernel else ([],)
    for num_classes in (0, -2):
        with raises(ValueError, f"num_classes={num_classes} must be at least 1."):
            build(*arguments, num_classes)
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
    with raises(error, message):
        prior([0], value)


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
    with raises(error, message):
        kernel([0], value, validate=validate)


def test_tree_and_decay() -> None:
    with raises(TypeError, "tree must be a rlsmooth.targets.Tree, got dict: see Tree.from_nested."):
        hierarchical([0], {"a": ["b"]})  # type: ignore[arg-type]
    for decay in (-0.5, NAN, INF):
        with raises(ValueError, f"decay={decay!r} must be a finite number in [0, inf]."):
            hierarchical([0], TREE, decay=decay)
    with raises(TypeError, "decay must be a number, got str '1'."):
        hierarchical([0], TREE, decay="1")  # type: ignore[arg-type]


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
    with raises(ValueError, message):
        ordinal_kernel(**({"num_classes": 3} | arguments))
    with raises(ValueError, message):
        ordinal([0], **({"num_classes": 3} | arguments))


def test_ordinal_schemes_that_say_nothing() -> None:
    message = 'scheme="adjacent" says nothing of the label itself: give alpha, the mass of its neighbours.'
    with raises(ValueError, message):
        ordinal_kernel(3, "adjacent", include_label=True)
    with raises(ValueError, message):
        ordinal([0], 3, None, "adjacent")
    message = "beta puts nothing outside label 0 in float64: lower concentration=1000000.0."
    with raises(ValueError, message):
        ordinal_kernel(3, "beta", concentration=1e6)
    np.testing.assert_array_equal(ordinal_kernel(3, "beta", include_label=True, concentration=1e6), np.eye(3))


def test_mixture() -> None:
    pair = torch.tensor([[0, 1]])
    with raises(TypeError, "num_classes is missing: mixture can't tell it from the parents."):
        mixture(pair)
    with raises(TypeError, "parents must hold class indices (int64), got torch.float32"):
        mixture(pair.float(), None, 3)
    for parents in (torch.tensor(1), torch.zeros(2, 0, dtype=torch.int64)):
        with raises(ValueError, f"parents has shape {tuple(parents.shape)}, needs [..., P] with at least one parent."):
            mixture(parents, None, 3)
    with raises(ValueError, "parents[0, 1]=3 is outside [0, 3)"):
        mixture(torch.tensor([[0, 3]]), None, 3)
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
    with raises(ValueError, "weights[0, 0]=-0.5 is no probability"):
        mixture(pair, torch.tensor([[-0.5, 1.5]]), 3)
    with raises(ValueError, "weights sums to 1.2, must sum to 1"):
        mixture(pair, torch.tensor([0.6, 0.6]), 3)
    with raises(ValueError, "alpha=2 must be finite and at most 1"):
        mixture(pair, None, 3, 2)
    with raises(ValueError, "alpha of shape (2,) does not broadcast over the batch (1,)"):
        mixture(pair, None, 3, torch.zeros(2))
    mixture(torch.tensor([[0, 1]]), torch.tensor([0.6, 0.6]), 3, validate=False)


def test_sparse() -> None:
    indices = torch.tensor([[0, 1]])
    with raises(TypeError, "indices must hold class indices (int64), got torch.float32"):
        sparse(indices.float(), torch.ones(1, 2), 3)
    with raises(TypeError, "weights must be a floating-point tensor, got torch.int64."):
        sparse(indices, torch.ones(1, 2).long(), 3)
    with raises(TypeError, "weights must be a floating-point tensor, got <class 'list'>."):
        sparse(indices, [[1.0, 0.0]], 3)  # type: ignore[arg-type]
    with raises(ValueError, "indices (1, 2) and weights (2,) must have one shape [..., A]."):
        sparse(indices, torch.ones(2), 3)
    with raises(ValueError, "indices () and weights () must have one shape [..., A]."):
        sparse(torch.tensor(1), torch.tensor(1.0), 3)
    with raises(ValueError, "indices[0, 1]=1 is outside [0, 1)"):
        sparse(indices, torch.ones(1, 2), 1)
    with raises(ValueError, "num_classes=0 must be at least 1."):
        sparse(indices, torch.ones(1, 2), 0, validate=False)
    for value in (NAN, INF, -INF):
        with raises(ValueError, f"weights[0, 1]={value!r} must be finite."):
            sparse(indices, torch.tensor([[0.0, value]]), 3)


@pytest.mark.parametrize("labels", [None, [None, 1]])
def test_labels_that_are_missing(labels: Any) -> None:
    with pytest.raises(TypeError, match="labels"):
        one_hot(labels, 3)


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
    with pytest.raises(TypeError, match=r"(weights|counts) must be .*tensor.* got list"):
        calls[name]()


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
    with pytest.raises(ValueError, match=f"^{name} "):
        calls[name]()


def test_a_cached_table_does_not_hide_a_bad_number_of_classes() -> None:
    ordinal([0], 3, 0.1)
    with pytest.raises(TypeError, match=r"num_classes must be a whole number, got float 3.0"):
        ordinal([0], 3.0, 0.1)  # type: ignore[arg-type]


def test_a_scheme_that_is_no_string() -> None:
    with pytest.raises(ValueError, match="is not known: choose one of"):
        ordinal([0], 3, 0.1, ["beta"])  # type: ignore[arg-type]
