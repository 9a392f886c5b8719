"""Kernels, trees and ordered classes: against scipy's distributions, the published formulas and plain Python loops."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from rlsmooth.targets import Target, Tree, hierarchical, kernel, ordinal, ordinal_kernel, uniform

Array = np.ndarray[Any, Any]
SCHEMES: list[Any] = ["adjacent", "triangular", "binomial", "poisson", "beta", "exponential"]
WHOLE: list[Any] = SCHEMES[1:]  # the schemes that say what the label itself gets
BATCHES = [(), (5,), (2, 3), (0,)]
SIZES = [2, 3, 5, 8]


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


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("num_classes", SIZES)
def test_ordinal_kernel_off_the_label(scheme: Any, num_classes: int) -> None:
    table = ordinal_kernel(num_classes, scheme)
    expected = np.array([row_oracle(scheme, num_classes, label, False) for label in range(num_classes)])
    assert table.dtype == torch.float64
    np.testing.assert_allclose(table.numpy(), expected, rtol=1e-11, atol=1e-300)
    assert (table.diagonal() == 0).all()


@pytest.mark.parametrize("scheme", WHOLE)
@pytest.mark.parametrize("num_classes", SIZES)
def test_ordinal_kernel_with_the_label(scheme: Any, num_classes: int) -> None:
    table = ordinal_kernel(num_classes, scheme, include_label=True)
    expected = np.array([row_oracle(scheme, num_classes, label, True) for label in range(num_classes)])
    np.testing.assert_allclose(table.numpy(), expected, rtol=1e-11, atol=1e-300)


@pytest.mark.parametrize("scheme", [scheme for scheme in WHOLE if scheme != "beta"])
@pytest.mark.parametrize("num_classes", [2, 3, 10, 51])
def test_the_label_is_the_only_mode(scheme: Any, num_classes: int) -> None:
    """dlordinal's Poisson ties the true class with its neighbour; ours must not."""
    table = ordinal_kernel(num_classes, scheme, include_label=True)
    best, second = table.topk(2, dim=-1).values.T
    assert (table.argmax(-1) == torch.arange(num_classes)).all()
    assert (best > second).all()


@pytest.mark.parametrize("concentration", [2.5, 20.0, 500.0])
def test_the_label_is_the_only_mode_of_beta(concentration: float) -> None:
    table = ordinal_kernel(6, "beta", include_label=True, concentration=concentration)
    best, second = table.topk(2, dim=-1).values.T
    assert (table.argmax(-1) == torch.arange(6)).all()
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


def test_sord_is_a_softmax_of_minus_squared_distance() -> None:
    labels = torch.arange(6)
    expected = torch.softmax(-((torch.arange(6.0)[None] - labels[:, None]) ** 2).double(), -1)
    torch.testing.assert_close(ordinal(labels, 6, None).dense(torch.float64), expected)


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


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", BATCHES)
@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.1, 1.0])
def test_ordinal_target(scheme: Any, shape: tuple[int, ...], alpha: float, device: torch.device) -> None:
    labels = torch.randint(5, shape, device=device)
    rows = np.array([row_oracle(scheme, 5, label, False) for label in range(5)])
    assert_dense(ordinal(labels, 5, alpha, scheme), smoothed(labels, rows, alpha))


@pytest.mark.parametrize("scheme", WHOLE)
@pytest.mark.parametrize("shape", BATCHES)
def test_ordinal_whole_distribution(scheme: Any, shape: tuple[int, ...], device: torch.device) -> None:
    labels = torch.randint(5, shape, device=device)
    rows = np.array([row_oracle(scheme, 5, label, True) for label in range(5)])
    assert_dense(ordinal(labels, 5, None, scheme), rows[labels.cpu().numpy()])


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


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.2, 1.0, None])
def test_ordinal_under_a_mask(scheme: Any, alpha: float | None, device: torch.device) -> None:
    if scheme == "adjacent" and alpha is None:
        pytest.skip("adjacent has no whole distribution")
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


@pytest.mark.parametrize("decay", [0.0, 0.3, 1.0, 20.0])
@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.2, 1.0])
def test_hierarchical(decay: float, alpha: float, device: torch.device) -> None:
    rows = np.exp(-decay * EDGES)
    np.fill_diagonal(rows, 0.0)
    rows /= rows.sum(-1, keepdims=True)
    labels = torch.arange(6, device=device).repeat(2)
    assert_dense(hierarchical(labels, TREE, alpha, decay), smoothed(labels, rows, alpha))
    mask = mask_with_label(labels, 6)
    assert_dense(hierarchical(labels, TREE, alpha, decay, mask=mask), masked(labels, rows, mask, alpha))


@pytest.mark.parametrize("decay", [0.0, 0.3, 1.0, 20.0, 1000.0])
def test_hierarchical_boltzmann_form(decay: float) -> None:
    rows = np.exp(-decay * EDGES)
    rows /= rows.sum(-1, keepdims=True)
    labels = torch.arange(6)
    assert_dense(hierarchical(labels, TREE, None, decay), rows)
    mask = mask_with_label(labels, 6)
    assert_dense(hierarchical(labels, TREE, None, decay, mask=mask), masked(labels, rows, mask, None))


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
