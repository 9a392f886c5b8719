"""Kernels, trees and ordered classes: against scipy's distributions, the published formulas and plain Python loops."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
import re
import subprocess
import sys
import time
from collections import deque
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlsmooth.losses import cross_entropy
from rlsmooth.targets import Smoothing, Target, Tree, hierarchical, kernel, ordinal, ordinal_kernel, uniform
from rlsmooth.targets import tree as tree_module
from rlsmooth.targets.special import log_incomplete_beta
from support import assert_raises

Array = np.ndarray[Any, Any]
SCHEMES: list[Any] = ["adjacent", "triangular", "binomial", "poisson", "beta", "exponential"]
WHOLE: list[Any] = SCHEMES[1:]  # the schemes that say what the label itself gets
BATCHES = [(), (5,), (2, 3), (0,)]
SIZES = [2, 3, 5, 8]
ORDINAL = [(scheme, alpha) for scheme in SCHEMES for alpha in (-0.5, 0.0, 0.1, 1.0)] + [(name, None) for name in WHOLE]


def unnormalised(scheme: str, num_classes: int, label: int) -> Array:
    """The published formulas, one row, from scipy where it has them; parameters at their defaults."""
    classes = np.arange(num_classes)
    distance = abs(classes - label)
    if scheme == "adjacent":
        return (distance == 1).astype(float)
    if scheme == "triangular":
        return np.maximum(0, 1 - distance / 2.0)
    if scheme == "binomial":
        return scipy.stats.binom.pmf(classes, num_classes - 1, (label + 0.5) / num_classes)
    if scheme == "poisson":
        return scipy.stats.poisson.pmf(classes, label + 0.5)
    if scheme == "beta":
        return beta_bins(num_classes, label, 20.0)
    return np.exp(-1.0 * distance.astype(float) ** 2)


def beta_bins(num_classes: int, label: int, concentration: float) -> Array:
    """A Beta with a + b = concentration and its mode at the label's bin centre, integrated over the bins."""
    mode = (label + 0.5) / num_classes
    law = scipy.stats.beta(1 + mode * (concentration - 2), 1 + (1 - mode) * (concentration - 2))
    edges = np.arange(num_classes + 1) / num_classes
    below, above = law.cdf(edges), law.sf(edges)
    return np.where(edges[:-1] > mode, above[:-1] - above[1:], below[1:] - below[:-1])


def row_oracle(scheme: str, num_classes: int, label: int, include_label: bool) -> Array:
    row = unnormalised(scheme, num_classes, label)
    if not include_label:
        row[label] = 0.0
    return row / row.sum()


def smoothed(labels: Tensor, rows: Array, alpha: Any) -> Array:
    """`(1 - alpha) · onehot + alpha · rows[label]`."""
    where = labels.cpu().numpy()
    level = np.broadcast_to(np.asarray(alpha, dtype=float), where.shape)[..., None]
    return (1 - level) * np.eye(len(rows))[where] + level * rows[where]


def assert_dense(target: Target, expected: Array, tolerance: float = 1e-13) -> None:
    dense = target.dense(torch.float64)
    assert dense.shape == (*target.batch_shape, target.num_classes)
    np.testing.assert_allclose(dense.cpu().numpy(), np.broadcast_to(expected, dense.shape), rtol=0, atol=tolerance)


@pytest.mark.parametrize(("scheme", "include_label"), [*((s, False) for s in SCHEMES), *((s, True) for s in WHOLE)])
@pytest.mark.parametrize("num_classes", SIZES)
def test_ordinal_kernel(num_classes: int, scheme: Any, include_label: bool) -> None:
    table = ordinal_kernel(num_classes, scheme, include_label=include_label)
    expected = np.array([row_oracle(scheme, num_classes, label, include_label) for label in range(num_classes)])
    assert table.dtype == torch.float64
    np.testing.assert_allclose(table.numpy(), expected, rtol=1e-11, atol=1e-300)
    assert include_label or (table.diagonal() == 0).all()


ONE_MODE = [(scheme, size, 20.0) for scheme in WHOLE if scheme != "beta" for size in (2, 3, 10, 51)]
ONE_MODE += [("beta", 6, concentration) for concentration in (2.5, 20.0, 500.0)]


@pytest.mark.parametrize(("scheme", "num_classes", "concentration"), ONE_MODE)
def test_the_label_is_the_only_mode(scheme: Any, num_classes: int, concentration: float) -> None:
    """dlordinal's Poisson ties the true class with its neighbour; ours must not."""
    table = ordinal_kernel(num_classes, scheme, include_label=True, concentration=concentration)
    best, second = table.topk(2, dim=-1).values.T
    assert (table.argmax(-1) == torch.arange(num_classes)).all()
    assert (best > second).all()


def test_beta_of_concentration_two_is_flat() -> None:
    table = ordinal_kernel(5, "beta", include_label=True, concentration=2.0)
    np.testing.assert_allclose(table.numpy(), 0.2, rtol=1e-13)


@pytest.mark.parametrize("concentration", [3.0, 50.0, 2000.0])
def test_beta_is_scipys_integrated_over_bins_tails_included(concentration: float) -> None:
    table = ordinal_kernel(7, "beta", include_label=True, concentration=concentration)
    expected = np.array([beta_bins(7, label, concentration) for label in range(7)])
    expected /= expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(table.numpy(), expected, rtol=1e-9, atol=1e-290)


@pytest.mark.parametrize("scheme", ["triangular", "adjacent", "binomial", "beta", "exponential"])
@pytest.mark.parametrize("include_label", [False, True])
def test_symmetric_under_reversal(scheme: Any, include_label: bool) -> None:
    """dlordinal's triangular is not; a Poisson can't be."""
    if scheme == "adjacent" and include_label:
        include_label = False
    table = ordinal_kernel(6, scheme, include_label=include_label)
    torch.testing.assert_close(table, table.flip(0, 1), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("width", [1.5, 2.0, 3.7, 100.0])
def test_triangular_width(width: float) -> None:
    distance = np.abs(np.subtract.outer(np.arange(6), np.arange(6)))
    expected = np.maximum(0, 1 - distance / width)
    expected /= expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(ordinal_kernel(6, "triangular", include_label=True, width=width), expected, rtol=1e-13)


@pytest.mark.parametrize(("decay", "power"), [(0.0, 2.0), (0.5, 1.0), (2.0, 0.5), (1e6, 1.0), (1e6, 2.0)])
def test_exponential_decay_and_power(decay: float, power: float) -> None:
    distance = np.abs(np.subtract.outer(np.arange(5.0), np.arange(5.0)))
    logits = torch.from_numpy(-decay * distance**power)
    torch.testing.assert_close(
        ordinal_kernel(5, "exponential", include_label=True, decay=decay, power=power), logits.softmax(-1)
    )
    off = ordinal_kernel(5, "exponential", decay=decay, power=power)
    torch.testing.assert_close(off, logits.masked_fill(torch.eye(5, dtype=torch.bool), -math.inf).softmax(-1))


def test_adjacent_edges() -> None:
    assert ordinal([0, 1, 3], 4, 0.2, "adjacent").dense(torch.float64).tolist() == [
        pytest.approx([0.8, 0.2, 0, 0]),
        pytest.approx([0.1, 0.8, 0.1, 0]),
        pytest.approx([0, 0, 0.2, 0.8]),
    ]
    assert ordinal([0, 1, 3], 4, 0.2, "adjacent", edge="half").dense(torch.float64).tolist() == [
        pytest.approx([0.9, 0.1, 0, 0]),
        pytest.approx([0.1, 0.8, 0.1, 0]),
        pytest.approx([0, 0, 0.1, 0.9]),
    ]
    assert ordinal([0, 1], 2, 0.2, "adjacent", edge="half").dense(torch.float64).tolist() == [
        pytest.approx([0.9, 0.1]),
        pytest.approx([0.1, 0.9]),
    ]


@pytest.mark.parametrize(("scheme", "alpha"), ORDINAL)
@pytest.mark.parametrize("shape", BATCHES)
def test_ordinal_target(scheme: Any, shape: tuple[int, ...], alpha: float | None, device: torch.device) -> None:
    labels = torch.randint(5, shape, device=device)
    rows = np.array([row_oracle(scheme, 5, label, alpha is None) for label in range(5)])
    assert_dense(ordinal(labels, 5, alpha, scheme), smoothed(labels, rows, 1.0 if alpha is None else alpha))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("include_label", [False, True])
def test_one_class(scheme: Any, include_label: bool) -> None:
    if scheme == "adjacent" and include_label:
        include_label = False
    assert ordinal_kernel(1, scheme, include_label=include_label).tolist() == [[float(include_label)]]
    assert ordinal([0], 1, None if include_label else 0.5, scheme).dense().tolist() == [[1.0]]


def test_one_class_in_kernels_and_trees() -> None:
    assert kernel([0, 0], torch.ones(1, 1), 0.3).dense().tolist() == [[1.0], [1.0]]
    tree = Tree.from_nested(["only"])
    assert tree.kernel().tolist() == [[0.0]]
    assert tree.kernel(include_label=True).tolist() == [[1.0]]
    assert hierarchical([0], tree, 0.3).dense().tolist() == [[1.0]]
    assert hierarchical([0], tree, None).dense().tolist() == [[1.0]]


def mask_with_label(labels: Tensor, num_classes: int) -> Tensor:
    mask = torch.rand(*labels.shape, num_classes, device=labels.device) < 0.6
    return mask.scatter(-1, labels.unsqueeze(-1), True)


def masked(labels: Tensor, rows: Array, mask: Tensor, alpha: float | None) -> Array:
    """Restrict each row to the legal classes and renormalise; hard where nothing is left."""
    result = []
    for label, legal in zip(labels.tolist(), mask.cpu().numpy(), strict=True):
        row = rows[label] * legal
        hard = np.eye(len(rows))[label]
        level = 1.0 if alpha is None else alpha
        result.append((1 - level) * hard + level * row / row.sum() if row.sum() > 0 else hard)
    return np.array(result)


@pytest.mark.parametrize(("scheme", "alpha"), ORDINAL)
def test_ordinal_under_a_mask(scheme: Any, alpha: float | None, device: torch.device) -> None:
    labels = torch.randint(5, (40,), device=device)
    mask = mask_with_label(labels, 5)
    rows = np.array([row_oracle(scheme, 5, label, alpha is None) for label in range(5)])
    target = ordinal(labels, 5, alpha, scheme, mask=mask)
    assert_dense(target, masked(labels, rows, mask, alpha))
    assert (target.dense(torch.float64)[~mask] == 0).all()


def test_kernel_rows_are_normalised_without_their_diagonal(device: torch.device) -> None:
    table = torch.rand(4, 4, device=device)
    rows = table.double().cpu().numpy().copy()
    np.fill_diagonal(rows, 0.0)
    rows /= rows.sum(-1, keepdims=True)
    labels = torch.randint(4, (2, 6), device=device)
    alpha = torch.rand(2, 1, device=device)
    assert_dense(kernel(labels, table, alpha), smoothed(labels, rows, alpha.double().cpu().numpy()))
    flat = labels.flatten()
    mask = mask_with_label(flat, 4)
    assert_dense(kernel(flat, table, 0.3, mask=mask), masked(flat, rows, mask, 0.3))


def test_kernel_leaves_its_argument_alone() -> None:
    table = torch.ones(3, 3, dtype=torch.float64)
    kernel([0], table, 0.3)
    assert table.tolist() == [[1.0] * 3] * 3


def test_a_constant_kernel_is_uniform_over_the_others(device: torch.device) -> None:
    labels = torch.randint(5, (4, 2), device=device)
    others = uniform(labels, 5, 0.3, "others").dense(torch.float64)
    torch.testing.assert_close(kernel(labels, torch.ones(5, 5, device=device), 0.3).dense(torch.float64), others)
    tree = Tree.from_nested(list("abcde"))
    torch.testing.assert_close(hierarchical(labels, tree, 0.3).dense(torch.float64), others)
    torch.testing.assert_close(hierarchical(labels, tree, 0.3, decay=0.0).dense(torch.float64), others)
    torch.testing.assert_close(ordinal(labels, 5, 0.3, decay=0.0).dense(torch.float64), others)


TREE = Tree.from_nested(
    {"cats": {"big": ["lion", "tiger"], "small": ["lynx"]}, "dogs": ["wolf", "fox"], "bear": "bear"}
)
EDGES = np.array(
    [  # lion tiger lynx wolf fox bear, counted by hand
        [0, 2, 4, 5, 5, 5],
        [2, 0, 4, 5, 5, 5],
        [4, 4, 0, 5, 5, 5],
        [5, 5, 5, 0, 2, 4],
        [5, 5, 5, 2, 0, 4],
        [5, 5, 5, 4, 4, 0],
    ]
)


@pytest.mark.parametrize("decay", [0.0, 0.3, 1.0, 20.0, 1000.0])
@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.2, 1.0, None])
def test_hierarchical(decay: float, alpha: float | None, device: torch.device) -> None:
    logits = -decay * EDGES.astype(float)
    if alpha is not None:
        np.fill_diagonal(logits, -np.inf)
    rows = scipy.special.softmax(logits, -1)
    labels = torch.arange(6, device=device).repeat(2)
    assert_dense(hierarchical(labels, TREE, alpha, decay), smoothed(labels, rows, 1.0 if alpha is None else alpha))
    if decay < 1000 or alpha is None:  # where the nearest are illegal, the shares of the rest are below every float
        mask = mask_with_label(labels, 6)
        assert_dense(hierarchical(labels, TREE, alpha, decay, mask=mask), masked(labels, rows, mask, alpha))


def test_a_great_decay_leaves_the_off_label_mass_with_the_sisters() -> None:
    """exp(-decay · d) underflows for all of them: the published code then has loss 0."""
    dense = hierarchical([0, 5], TREE, 0.1, decay=500.0).dense(torch.float64)
    np.testing.assert_allclose(dense[0], [0.9, 0.1, 0, 0, 0, 0], atol=1e-15)
    np.testing.assert_allclose(dense[1], [0, 0, 0, 0.05, 0.05, 0.9], atol=1e-15)


@pytest.mark.parametrize("decay", [0.2, 1.3])
def test_off_label_ratio_is_the_exponential_of_the_distances_difference(decay: float) -> None:
    dense = hierarchical(torch.arange(6), TREE, 0.3, decay).dense(torch.float64).numpy()
    for label in range(6):
        others = [other for other in range(6) if other != label]
        for one in others:
            for two in others:
                ratio = dense[label, one] / dense[label, two]
                assert ratio == pytest.approx(math.exp(-decay * (EDGES[label, one] - EDGES[label, two])), rel=1e-12)


def test_alpha_tensors_of_every_broadcast_shape(device: torch.device) -> None:
    labels = torch.randint(6, (2, 3), device=device)
    rows = np.exp(-EDGES.astype(float))
    np.fill_diagonal(rows, 0.0)
    rows /= rows.sum(-1, keepdims=True)
    ordered = np.array([row_oracle("binomial", 6, label, False) for label in range(6)])
    for shape in ((), (1,), (3,), (1, 3), (2, 1), (2, 3)):
        alpha = torch.rand(shape, device=device)
        level = alpha.double().cpu().numpy()
        assert_dense(hierarchical(labels, TREE, alpha), smoothed(labels, rows, level))
        assert_dense(ordinal(labels, 6, alpha, "binomial"), smoothed(labels, ordered, level))


def test_the_table_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ordinal([0], 23, 0.1, "poisson", width=7.0)
    monkeypatch.setattr("rlsmooth.targets.structured.ordinal_kernel", lambda *_, **__: pytest.fail("made again"))
    assert ordinal([0], 23, 0.2, "poisson", width=7.0).num_classes == 23


def test_a_mask_that_leaves_only_a_far_class_gives_no_nan() -> None:
    """exp(-27^2) is subnormal: not 0, yet its reciprocal is inf. The default scheme, forty actions."""
    mask = torch.zeros(40, dtype=torch.bool)
    mask[[0, 27]] = True
    dense = ordinal([0], 40, 0.1, mask=mask).dense(torch.float64)
    assert dense.isfinite().all()
    assert dense.sum().item() == pytest.approx(1.0)


def test_a_beta_table_is_made_in_no_time() -> None:
    start = time.process_time()
    ordinal_kernel(12, "beta")
    assert time.process_time() - start < 0.3


def test_decay_zero_is_flat_whatever_the_power() -> None:
    table = ordinal_kernel(100, "exponential", include_label=True, decay=0.0, power=400.0)
    np.testing.assert_allclose(table.numpy(), 0.01, rtol=1e-12)


def test_a_kernel_of_huge_similarities_is_still_normalised() -> None:
    dense = kernel([0], torch.full((4, 4), 1e308, dtype=torch.float64), 0.3).dense(torch.float64)
    np.testing.assert_allclose(dense[0], [0.7, 0.1, 0.1, 0.1], atol=1e-12)


# ---- `Tree`: distances against a breadth-first search, and every way in which something is no tree
def distances_by_search(tree: Tree) -> list[list[int]]:
    """Breadth first over the undirected edges, from each leaf."""
    edges: dict[int, list[int]] = {place: [] for place in range(len(tree.names))}
    for place, parent in enumerate(tree.parents):
        if parent != -1:
            edges[place].append(parent)
            edges[parent].append(place)
    table = []
    for start in tree.classes:
        found, queue = {start: 0}, deque([start])
        while queue:
            here = queue.popleft()
            for there in edges[here]:
                if there not in found:
                    found[there] = found[here] + 1
                    queue.append(there)
        table.append([found[leaf] for leaf in tree.classes])
    return table


@given(st.lists(st.integers(0, 10**6), max_size=25), st.randoms(use_true_random=False))
def test_distances_are_those_of_a_search(choices: list[int], random: Any) -> None:
    """Any tree: node i + 1 hangs below some node before it; then all are shuffled."""
    parents = [-1, *(choice % (place + 1) for place, choice in enumerate(choices))]
    order = list(range(len(parents)))
    random.shuffle(order)
    shuffled = [0] * len(parents)
    for place, parent in enumerate(parents):
        shuffled[order[place]] = -1 if parent == -1 else order[parent]
    tree = Tree.from_parents(shuffled)
    assert tree.distances.dtype == torch.int64
    assert tree.distances.tolist() == distances_by_search(tree)
    leaves = [leaf for leaf in range(len(shuffled)) if leaf not in shuffled]
    assert list(tree.classes) == leaves
    assert tree.num_classes == len(leaves)
    for include_label in (False, True):
        table = tree.kernel(0.7, include_label=include_label)
        weights = np.exp(-0.7 * np.array(distances_by_search(tree)))
        if not include_label:
            np.fill_diagonal(weights, 0.0)
        if len(weights) > 1:
            weights /= weights.sum(-1, keepdims=True)
        np.testing.assert_allclose(table.numpy(), weights, rtol=1e-12)


def test_a_deep_chain_and_a_broad_star() -> None:
    chain = Tree.from_parents([-1, *range(300), 0])  # one leaf 300 edges down, another 1 edge down
    assert chain.distances.tolist() == [[0, 301], [301, 0]]
    star = Tree.from_parents([-1, *[0] * 500])
    assert star.num_classes == 500
    assert (star.distances + 2 * torch.eye(500, dtype=torch.int64) == 2).all()


def tree_rows(tree: Tree, labels: Array, decay: float, *, include_label: bool, mask: Array) -> Array:
    """The kernel's rows over the legal classes, from the distances of a search; 0 where nothing legal is left."""
    exponents = decay * np.array(distances_by_search(tree), dtype=float)[labels]
    own = labels[:, None] == np.arange(tree.num_classes)
    exponents[~mask | (own & (not include_label))] = np.inf
    least = exponents.min(-1, keepdims=True)
    weights = np.exp(np.where(least < np.inf, least, 0.0) - exponents)
    return weights / np.maximum(weights.sum(-1, keepdims=True), 1e-300)  # type: ignore[no-any-return]


@settings(max_examples=20)
@given(
    choices=st.lists(st.tuples(st.integers(0, 10**6), st.booleans()), min_size=1, max_size=25),
    decay=st.sampled_from([0.0, 0.7, 30.0, 400.0, 1e5]),
    alpha=st.sampled_from([None, 0.3, 1.0]),
    masked=st.booleans(),
    traced=st.booleans(),
    seed=st.integers(0, 99),
)
def test_rows_from_intervals_are_those_of_the_table(
    choices: list[tuple[int, bool]], decay: float, alpha: float | None, masked: bool, traced: bool, seed: int
) -> None:
    """Any tree, long chains and duplicated depths among them, with its classes in any order; as compiled, too."""
    rng = np.random.default_rng(seed)
    parents = [-1, *(place if deeper else choice % (place + 1) for place, (choice, deeper) in enumerate(choices))]
    names = [str(place) for place in range(len(parents)) if place not in parents]
    tree = Tree.from_parents(parents, class_names=rng.permutation(names).tolist())
    size = tree.num_classes
    labels = rng.integers(size, size=6)
    mask = (rng.random((6, size)) < 0.5) | (not masked)
    mask[np.arange(6), labels] = True
    rows = tree_rows(tree, labels, decay, include_label=alpha is None, mask=mask)
    given_mask = torch.from_numpy(mask) if masked else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_module, "TABLE_CLASSES", 1)  # with one class there is no other form
        patch.setattr(tree_module, "is_traced", lambda: traced)
        target = hierarchical(torch.from_numpy(labels), tree, alpha, decay, mask=given_mask)
    share = np.where(rows.sum(-1) > 0, 1.0 if alpha is None else alpha, 0.0 if size > 1 else 1.0)[:, None]
    own = labels[:, None] == np.arange(size)
    expected = torch.from_numpy((1 - share) * own + share * rows) if size > 1 else torch.ones(6, 1).double()
    torch.testing.assert_close(target.dense(torch.float64), expected, rtol=1e-12, atol=1e-300)
    torch.testing.assert_close(target.mass(), torch.ones(6).double(), rtol=1e-12, atol=0)
    picked = dataclasses.replace(
        target,
        atom_indices=torch.from_numpy(rng.integers(size, size=(6, 3))),
        atom_weights=torch.zeros(6, 3).double(),
        weights_may_cancel=False,
    )
    background = target.background_weight.unsqueeze(-1) * target.reference.dense((6,), torch.float64, target.device)
    torch.testing.assert_close(picked.at_atoms(), background.gather(-1, picked.atom_indices), rtol=1e-12, atol=1e-300)
    plain = -torch.special.xlogy(expected, expected).sum(-1)
    torch.testing.assert_close(target.entropy(), plain, rtol=1e-12, atol=1e-13)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        logits = torch.from_numpy(rng.normal(size=(6, size))).to(dtype).requires_grad_()
        cross_entropy(logits, target, mask=given_mask).backward()
        assert logits.grad is not None
        slope = logits.detach().masked_fill(~torch.from_numpy(mask), -torch.inf).double().softmax(-1) - expected
        torch.testing.assert_close(logits.grad.double(), slope / 6, rtol=tolerance, atol=tolerance)


def test_a_target_of_many_classes_makes_no_table_and_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(f"o{place % 7}", f"f{place % 91}", f"s{place}") for place in range(2_002)]
    tree, made, sums = Tree.from_table(rows), [], tree_module._sums_of_others
    monkeypatch.setattr(tree_module, "_sums_of_others", lambda *args, **more: made.append(1) or sums(*args, **more))
    monkeypatch.setattr(Tree, "distance_table", None)
    labels = torch.arange(0, 2_002, 77)
    first = hierarchical(labels, tree)
    again = Smoothing(0.1, tree)(labels, 2_002)
    assert first == again
    assert len(made) == 1
    assert first.dense()[3, [231, 140, 7]].tolist() == pytest.approx(
        [0.9, *(0.1 * np.exp([-2.0, -4.0]) / (21 * np.exp(-2.0) + 264 * np.exp(-4.0) + 1716 * np.exp(-6.0)))], rel=1e-6
    )
    both = Target.cat([first, hierarchical(labels + 1, tree)])
    assert both.reference is not None
    assert both.reference.kind == "tree"
    assert_raises(ValueError, r"^labels\[1\]=2002 is outside \[0, 2002\)", hierarchical, [0, 2002], tree)


@pytest.mark.slow
@pytest.mark.parametrize("shuffled", [False, True])
def test_twenty_thousand_classes_take_two_seconds_and_600_megabytes(shuffled: bool) -> None:
    code = f"""
import random, resource, time, torch
from rlsmooth.losses import cross_entropy
from rlsmooth.targets import Tree, hierarchical
names = [f"s{{place}}" for place in range(20_000)]
rows = [(f"o{{place // 4000}}", f"f{{place // 400}}", f"g{{place // 40}}", name) for place, name in enumerate(names)]
cross_entropy(torch.randn(4, 5, requires_grad=True), torch.arange(4)).backward()
if {shuffled}:
    random.shuffle(names)
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
tree = Tree.from_table(rows, class_names=names)
logits = torch.randn(256, 20_000, requires_grad=True)
cross_entropy(logits, hierarchical(torch.randint(20_000, (256,)), tree)).backward()
print(time.process_time() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert float(found[0]) < 2.0
    assert float(found[1]) < 600.0


def test_from_parents_as_numbers() -> None:
    tree = Tree.from_parents([-1, 0, 0, 1, 1])
    assert tree.class_names == ("2", "3", "4")
    assert tree == Tree.from_parents([None, 0, 0, 1, 1])
    assert tree == Tree.from_parents(np.array([-1, 0, 0, 1, 1]))  # type: ignore[arg-type]
    reordered = Tree.from_parents([-1, 0, 0, 1, 1], classes=[4, 2, 3])
    assert reordered.class_names == ("4", "2", "3")
    assert reordered.distances.tolist() == [[0, 3, 2], [3, 0, 3], [2, 3, 0]]
    assert Tree.from_parents([-1, 0, 0, 1, 1], classes=["4", "2", "3"]) == reordered


def test_from_parents_as_names() -> None:
    parents = {"lion": "cats", "cats": "animals", "animals": None, "tiger": "cats", "wolf": "animals"}
    tree = Tree.from_parents(parents)
    assert tree.class_names == ("lion", "tiger", "wolf")
    assert tree.distances.tolist() == [[0, 2, 3], [2, 0, 3], [3, 3, 0]]
    assert Tree.from_parents(parents, ["wolf", "lion", "tiger"]).class_names == ("wolf", "lion", "tiger")


def test_from_nested() -> None:
    tree = Tree.from_nested({"cats": {"big": ["lion", "tiger"], "small": "lynx"}, "dogs": ["wolf"]})
    assert tree.class_names == ("lion", "tiger", "lynx", "wolf")
    assert tree.distances.tolist() == [[0, 2, 4, 5], [2, 0, 4, 5], [4, 4, 0, 5], [5, 5, 5, 0]]
    unnamed = Tree.from_nested([["lion", "tiger"], ["wolf"], "bear"])
    assert unnamed.class_names == ("lion", "tiger", "wolf", "bear")
    assert unnamed.distances.tolist() == [[0, 2, 4, 3], [2, 0, 4, 3], [4, 4, 0, 3], [3, 3, 3, 0]]
    mixed = Tree.from_nested([{"cats": ["lion"]}, "bear"])
    assert mixed.distances.tolist() == distances_by_search(mixed)
    assert Tree.from_nested({"a": ["x"], "b": {"a": ["y"]}}).class_names == ("x", "y")  # inner names may repeat


def test_from_table() -> None:
    rows = [("cats", "big", "lion"), ("cats", "big", "tiger"), ("cats", "small", "lynx"), ("dogs", "true", "wolf")]
    tree = Tree.from_table(rows)
    assert tree.class_names == ("lion", "tiger", "lynx", "wolf")
    assert tree.distances.tolist() == [[0, 2, 4, 6], [2, 0, 4, 6], [4, 4, 0, 6], [6, 6, 6, 0]]
    columns = {"family": [row[0] for row in rows], "group": [row[1] for row in rows]}
    columns |= {"species": [row[2] for row in rows]}
    assert Tree.from_table(columns) == tree
    assert Tree.from_table(iter(rows)) == tree
    assert Tree.from_table([("a",), ("b",)]).distances.tolist() == [[0, 2], [2, 0]]
    assert Tree.from_table([("x", "x")]).class_names == ("x",)  # a genus and its species may share a name


def test_kernel_in_closed_form() -> None:
    tree = Tree.from_nested({"cats": ["lion", "tiger"], "dogs": ["wolf"]})
    near, far = np.exp(-2.0), np.exp(-4.0)
    np.testing.assert_allclose(tree.kernel()[0], [0, near / (near + far), far / (near + far)], rtol=1e-13)
    np.testing.assert_allclose(tree.kernel(include_label=True)[2], np.array([far, far, 1]) / (1 + 2 * far), rtol=1e-13)
    np.testing.assert_allclose(tree.kernel(0.0)[0], [0, 0.5, 0.5])
    assert tree.kernel(1e5)[0].tolist() == [0.0, 1.0, 0.0]
    assert tree.kernel().dtype == torch.float64


@pytest.mark.parametrize("decay", [-0.1, float("nan"), float("inf")])
def test_kernel_names_a_bad_decay(decay: float) -> None:
    with pytest.raises(ValueError, match=rf"^decay={decay!r} must be a finite number in \[0, inf\]"):
        Tree.from_nested(["a", "b"]).kernel(decay)


def test_trees_are_values() -> None:
    tree = Tree.from_nested({"cats": ["lion", "tiger"], "dogs": ["wolf"]})
    same = Tree.from_table([("cats", "lion"), ("cats", "tiger"), ("dogs", "wolf")])
    assert tree == same
    assert hash(tree) == hash(same)
    assert tree != Tree.from_nested({"cats": ["lion"], "dogs": ["tiger", "wolf"]})
    assert "distances" not in repr(tree)
    for copied in (copy.deepcopy(tree), pickle.loads(pickle.dumps(tree))):
        assert copied == tree
        assert copied.distances.tolist() == tree.distances.tolist()
    with pytest.raises(AttributeError):
        tree.names = ()  # type: ignore[misc]


def test_config_round_trip_through_json() -> None:
    tree = Tree.from_nested({"cats": ["lion", "tiger"], "dogs": ["wolf"]})
    again = Tree.from_config(json.loads(json.dumps(tree.to_config())))
    assert again == tree
    assert again.distances.tolist() == tree.distances.tolist()


@pytest.mark.parametrize(
    ("parents", "classes", "message"),
    [
        ([], None, "A tree needs one parent a node: got 0 names and 0 parents."),
        ({}, None, "A tree needs one parent a node: got 0 names and 0 parents."),
        ([-1, -1, 0], None, "A tree has one root (parent -1 or None), found '0', '1'."),
        ({"a": None, "b": None}, None, "A tree has one root (parent -1 or None), found 'a', 'b'."),
        ([1, 0], None, "A tree has one root (parent -1 or None), found none."),
        ([0], None, "A tree has one root (parent -1 or None), found none."),
        ([-1, 1], None, "The parents run in a circle: '1' -> '1'."),
        ([-1, 0, 3, 4, 2], None, "The parents run in a circle: '2' -> '3' -> '4' -> '2'."),
        ([-1, 0, 3, 4, 3], None, "The parents run in a circle: '3' -> '4' -> '3'."),
        ({"a": None, "b": "c", "c": "b"}, None, "The parents run in a circle: 'b' -> 'c' -> 'b'."),
        ([-1, 5], None, "parents[1]=5 is not a node: use 0 to 1, or -1 for the root."),
        ([-2, 0], None, "parents[0]=-2 is not a node: use 0 to 1, or -1 for the root."),
        ({"a": None, "b": "x"}, None, "parents: node 'b' names the parent 'x', which is not a node."),
        ([-1, 0, 0], [1], "Leaf '2' is not among the classes: every leaf must be one."),
        ([-1, 0, 0], [], "Leaf '1' is not among the classes: every leaf must be one."),
        ([-1, 0, 1], [1, 2], "Class '1' is not a leaf: it has children."),
        ([-1, 0, 0], [0, 1, 2], "Class '0' is not a leaf: it has children."),
        ([-1, 0, 0], [1, 2, 2], "Class '2' stands twice."),
        ([-1, 0, 0], [1, 7], "classes: 7 is not a node of the tree."),
        ([-1, 0, 0], [1, -1], "classes: -1 is not a node of the tree."),
        ({"a": None, "b": "a"}, ["x"], "classes: 'x' is not a node of the tree."),
    ],
)
def test_from_parents_says_which_node_breaks_the_tree(parents: Any, classes: Any, message: str) -> None:
    assert_raises(ValueError, f"^{re.escape(message)}$", Tree.from_parents, parents, classes)


@pytest.mark.parametrize(
    ("nested", "message"),
    [
        ({}, "nested: 'root' holds {}; it needs a name, or a non-empty mapping or sequence of names."),
        ([], "nested: 'root' holds []; it needs"),
        ({"cats": []}, "nested: 'root/cats' holds []; it needs"),
        ({"cats": {"big": {}}}, "nested: 'root/cats/big' holds {}; it needs"),
        ({"cats": [3]}, "nested: 'root/cats' holds 3; it needs"),
        ({"cats": None}, "nested: 'root/cats' holds None; it needs"),
        ({"cats": {"lion", "tiger"}}, "nested: 'root/cats' holds {"),
        (["lion", []], "nested: 'root' holds []; it needs"),
        ({"cats": ["lion", "lion"]}, "Class 'lion' stands twice."),
        ({"cats": ["lion"], "dogs": ["lion"]}, "Class 'lion' stands twice."),
    ],
)
def test_from_nested_says_what_is_wrong(nested: Any, message: str) -> None:
    assert_raises(ValueError, f"^{re.escape(message)}", Tree.from_nested, nested)


def test_class_names_say_which_are_too_few_or_too_many() -> None:
    for names, words in (
        (["lion"], "it lacks ['tiger']."),
        (["lion", "tiger", "wolf"], "no leaf is ['wolf']."),
        (["lion", "wolf"], "it lacks ['tiger'], and no leaf is ['wolf']."),
        (["lion", "lion", "tiger"], "it is ['lion', 'lion', 'tiger']."),
    ):
        assert_raises(ValueError, re.escape(words), Tree.from_nested, {"cats": ["lion", "tiger"]}, class_names=names)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "rows is empty: give one row a class."),
        ({}, "rows is empty: give one row a class."),
        ({"genus": [], "species": []}, "rows is empty: give one row a class."),
        ([()], "rows[0] has 0 ranks, rows[0] has 0; must be equal."),
        ([("a", "x"), ("b",)], "rows[1] has 1 ranks, rows[0] has 2; must be equal."),
        ({"genus": ["a"], "species": ["x", "y"]}, "rows: columns have the lengths [1, 2]; must be equal."),
        ([("a", "x"), ("a", "x")], "rows[1]: class 'x' stands twice."),
        ([("a", "x"), ("b", "x")], "rows[1]: class 'x' stands twice."),
        ([("a", "g", "x"), ("b", "g", "y")], "rows[1]: 'g' has two parents, 'a' and 'b'."),
    ],
)
def test_from_table_says_what_is_wrong(rows: Any, message: str) -> None:
    assert_raises(ValueError, f"^{re.escape(message)}$", Tree.from_table, rows)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Tree(("a", "b"), (-1,), (1,)), "A tree needs one parent a node: got 2 names and 1 parents"),
        (lambda: Tree.from_parents([-1, 0.9, 0.2]), "parents[1]"),  # type: ignore[list-item]
        (lambda: Tree.from_table(["lion", "wolf"]), "rows[0]"),
        *(
            (lambda p=p, c=c: Tree.from_config({"names": ["a", "b"], "parents": p, "classes": c}), "")  # type: ignore[misc]
            for p, c in (([-1, 7], [1]), ([-1, -2], [1]), ([-1, 0], [1, 9]), ([-1, 0], [1, -5]))
        ),
    ],
)
def test_what_is_no_tree_is_refused(call: Any, message: str) -> None:
    assert_raises((TypeError, ValueError), re.escape(message) or "is not a node", call)


# ---- the incomplete beta function against scipy's, both tails
def tails(a: object, b: object, x: object) -> tuple[np.ndarray, np.ndarray]:
    lower, upper = log_incomplete_beta(*(torch.as_tensor(value, dtype=torch.float64) for value in (a, b, x)))
    return lower.exp().numpy(), upper.exp().numpy()


@pytest.mark.parametrize(
    ("largest", "tolerance"), [(1e1, 1e-11), (1e2, 1e-11), (1e3, 1e-11), (1e4, 1e-10), (1e5, 1e-9), (1e6, 1e-8)]
)
def test_both_tails_over_wide_ranges(largest: float, tolerance: float) -> None:
    """a, b >= 1, as bins of a unimodal Beta need: relative accuracy down to 1e-280, far tails included."""
    generator = np.random.default_rng(0)
    a, b = (10 ** generator.uniform(0, np.log10(largest), 300) for _ in range(2))
    x = generator.uniform(0, 1, 300)
    x[:150] = np.clip(a[:150] / (a[:150] + b[:150]) * generator.uniform(0.9, 1.1, 150), 0, 1)  # around the mean
    lower, upper = tails(a, b, x)
    for ours, theirs in ((lower, scipy.special.betainc(a, b, x)), (upper, scipy.special.betaincc(a, b, x))):
        seen = theirs > 1e-280
        assert seen.sum() > 50
        np.testing.assert_allclose(ours[seen], theirs[seen], rtol=tolerance)
        np.testing.assert_allclose(ours[~seen], 0.0, atol=1e-279)


@pytest.mark.parametrize(("a", "b"), [(1e-3, 1e-3), (1e-3, 10.0), (10.0, 1e-3), (0.5, 0.5), (0.1, 200.0)])
def test_parameters_under_one(a: float, b: float) -> None:
    x = np.linspace(0.001, 0.999, 41)
    lower, upper = tails(a, b, x)
    np.testing.assert_allclose(lower, scipy.special.betainc(a, b, x), atol=1e-12, rtol=1e-10)
    np.testing.assert_allclose(upper, scipy.special.betaincc(a, b, x), atol=1e-12, rtol=1e-10)


def test_the_ends_are_exact() -> None:
    lower, upper = tails([0.5, 1.0, 30.0], [2.0, 1.0, 0.1], 0.0)
    assert lower.tolist() == [0.0] * 3
    assert upper.tolist() == [1.0] * 3
    lower, upper = tails([0.5, 1.0, 30.0], [2.0, 1.0, 0.1], 1.0)
    assert lower.tolist() == [1.0] * 3
    assert upper.tolist() == [0.0] * 3


def test_the_uniform_law_and_powers_are_exact() -> None:
    x = np.linspace(0, 1, 11)
    np.testing.assert_allclose(tails(1.0, 1.0, x)[0], x, atol=1e-15)
    np.testing.assert_allclose(tails(3.0, 1.0, x)[0], x**3, atol=1e-15)
    np.testing.assert_allclose(tails(1.0, 4.0, x)[1], (1 - x) ** 4, atol=1e-15)


def test_a_fraction_that_does_not_converge_says_so() -> None:
    assert_raises(ValueError, "not converged", tails, 1e13, 1e13, 0.5)


def test_arguments_broadcast() -> None:
    lower, upper = tails([[1.0], [2.0]], [3.0, 4.0, 5.0], 0.25)
    assert lower.shape == upper.shape == (2, 3)
    np.testing.assert_allclose(lower, scipy.special.betainc([[1.0], [2.0]], [3.0, 4.0, 5.0], 0.25), rtol=1e-13)
