"""Hierarchical and ordinal scores against walks of the tree, dense oracles and scikit-learn; margins of logits."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, zero_one_loss
from sklearn.metrics import mean_absolute_error as sklearn_mean_absolute_error
from torch import Tensor

from rlsmooth.audits import (
    average_mean_absolute_error,
    distance_at_k,
    implied_alpha,
    mean_absolute_error,
    mean_logit_margin,
    mistake_severity,
    optimal_margin,
    ranked_probability_score,
    tree_distances,
)
from rlsmooth.losses import cross_entropy
from rlsmooth.targets import Tree, from_probs, hierarchical, kernel, mixture, one_hot, ordinal, ordinal_kernel, uniform
from support import assert_raises

UNEVEN = Tree.from_nested({"a": ["p", "q"], "b": {"c": ["r", "s"], "d": {"e": ["t"]}}})
GENERA = Tree.from_nested({"cats": ["lion", "tiger"], "dogs": ["wolf", "fox", "jackal"], "bears": ["panda"]})


def walked_height(tree: Tree, first: int, second: int) -> int:
    """Height of the lowest common ancestor, node by node."""

    def ancestors(place: int) -> list[int]:
        return [place, *ancestors(tree.parents[place])] if tree.parents[place] != -1 else [place]

    def height(node: int) -> int:
        return max((1 + height(place) for place, parent in enumerate(tree.parents) if parent == node), default=0)

    one, two = ancestors(tree.classes[first]), ancestors(tree.classes[second])
    return height(next(node for node in one if node in two))


@pytest.mark.parametrize("tree", [UNEVEN, GENERA, Tree.from_nested(["x", "y", "z"]), Tree.from_nested(["only"])])
def test_heights_are_those_of_the_lowest_common_ancestors(tree: Tree) -> None:
    found = tree_distances(tree)
    assert found.dtype == torch.float64
    for first, second in itertools.product(range(tree.num_classes), repeat=2):
        assert found[first, second] == walked_height(tree, first, second)


@given(parents=st.lists(st.integers(0, 1_000), min_size=1, max_size=25))
def test_heights_of_any_tree(parents: list[int]) -> None:
    tree = Tree.from_parents([-1, *(choice % (place + 1) for place, choice in enumerate(parents))])
    found = tree_distances(tree)
    for first, second in itertools.product(range(tree.num_classes), repeat=2):
        assert found[first, second] == walked_height(tree, first, second)


def test_edges_are_the_trees_and_twice_the_height_where_all_are_equally_deep() -> None:
    torch.testing.assert_close(tree_distances(GENERA, measure="edges"), GENERA.distances.double())
    torch.testing.assert_close(tree_distances(GENERA, measure="edges"), 2 * tree_distances(GENERA))
    assert not torch.equal(tree_distances(UNEVEN, measure="edges"), 2 * tree_distances(UNEVEN))
    assert_raises(ValueError, "measure='hops'", tree_distances, GENERA, measure="hops")


def dense_distance_at_k(scores: np.ndarray, labels: np.ndarray, distances: np.ndarray, k: int) -> float:
    rows = []
    for row, label in zip(scores, labels, strict=True):
        order = sorted(range(len(row)), key=lambda place: (-row[place], place))
        rows.append(np.mean([distances[label, place] for place in order[:k]]))
    return float(np.mean(rows))


@pytest.mark.parametrize("k", [1, 2, 5, 6])
@pytest.mark.parametrize("kind", ["random", "ties", "all equal", "one row", "zeros and ones"])
def test_distance_at_k_row_by_row(device: torch.device, k: int, kind: str) -> None:
    scores = {
        "random": torch.rand(50, 6),
        "ties": torch.randint(3, (50, 6)) / 2,
        "all equal": torch.full((7, 6), 1 / 6),
        "one row": torch.rand(1, 6),
        "zeros and ones": torch.eye(6),
    }[kind]
    labels = torch.randint(6, (len(scores),))
    distances = tree_distances(GENERA)
    ours = distance_at_k(scores.to(device), labels.to(device), distances.to(device), k=k)
    expected = dense_distance_at_k(scores.numpy(), labels.numpy(), distances.numpy(), k)
    assert ours.item() == pytest.approx(expected, abs=1e-6)
    assert distance_at_k(scores.to(device), labels.to(device), GENERA, k=k).item() == ours.item()
    if k == 6:  # all classes: what is left is the mean of the labels' rows
        assert ours.item() == pytest.approx(distances[labels].mean().item(), abs=1e-6)


def test_many_equals_keep_the_classes_order(device: torch.device) -> None:
    # topk and an unstable sort mix equals up once there are many.
    distances = torch.arange(300.0).expand(300, 300)
    zeros = torch.zeros(2, 300, device=device)
    labels = torch.zeros(2, dtype=torch.int64, device=device)
    assert distance_at_k(zeros, labels, distances, k=5).item() == 2.0  # 0, 1, 2, 3, 4


def test_where_the_classes_lie_on_a_line_it_is_scikit_learns_error(device: torch.device) -> None:
    classes = torch.arange(6)
    line = (classes.unsqueeze(0) - classes.unsqueeze(1)).abs()
    scores, labels = torch.rand(80, 6), torch.randint(6, (80,))
    predictions = scores.argmax(-1)
    error = sklearn_mean_absolute_error(labels, predictions)
    placed = labels.to(device), line.to(device)
    assert distance_at_k(scores.to(device), *placed, k=1).item() == pytest.approx(error, abs=1e-6)
    wrong = zero_one_loss(labels, predictions)
    severity = mistake_severity(predictions.to(device), *placed)
    assert severity.item() == pytest.approx(error / wrong, abs=1e-6)
    mistaken = predictions != labels
    alone = sklearn_mean_absolute_error(labels[mistaken], predictions[mistaken])
    assert severity.item() == pytest.approx(alone, abs=1e-6)


def test_severity_counts_mistakes_alone_even_those_at_distance_zero(device: torch.device) -> None:
    distances = torch.tensor([[0.0, 0.0, 4.0], [0.0, 9.0, 2.0], [4.0, 2.0, 0.0]], device=device)
    predictions = torch.tensor([0, 1, 1, 2], device=device)
    labels = torch.tensor([0, 0, 1, 0], device=device)
    assert mistake_severity(predictions, labels, distances).item() == 2.0  # (0 + 4) / 2; the hit at 9 is no mistake
    assert mistake_severity(predictions, labels, distances.long()).dtype == torch.float32


def test_the_table_is_read_from_label_to_prediction(device: torch.device) -> None:
    table = torch.tensor([[0.0, 1.0], [7.0, 0.0]], device=device)
    label, prediction = torch.tensor([1], device=device), torch.tensor([0], device=device)
    assert mistake_severity(prediction, label, table).item() == 7.0
    assert distance_at_k(torch.tensor([[1.0, 0.0]], device=device), label, table, k=1).item() == 7.0


def test_bad_arguments() -> None:
    scores, labels, distances = torch.rand(4, 3), torch.zeros(4, dtype=torch.int64), torch.rand(3, 3)
    assert_raises(ValueError, "k=4 is more than the 3 classes", distance_at_k, scores, labels, distances, k=4)
    assert_raises(ValueError, "k=0 must be at least 1", distance_at_k, scores, labels, distances, k=0)
    with pytest.raises(ValueError, match=r"distances has shape \(2, 2\), needs \(3, 3\)"):
        distance_at_k(scores, labels, distances[:2, :2], k=1)
    with pytest.raises(ValueError, match=r"distances has shape \(2, 3\), needs \[K, K\]"):
        mistake_severity(labels, labels, distances[:2])
    with pytest.raises(ValueError, match=r"distances has shape \(\), needs \[K, K\]"):
        mistake_severity(labels, labels, torch.tensor(1.0))
    assert_raises(
        TypeError, "distances must be a tensor or array of numbers", mistake_severity, labels, labels, distances > 0
    )
    assert_raises(TypeError, "predictions must be an int64 tensor", mistake_severity, scores[:, 0], labels, distances)
    with pytest.raises(ValueError, match=r"labels has shape \(2,\), predictions has \(4,\)"):
        mistake_severity(labels, labels[:2], distances)


# ---- ordinal scores: class by class and threshold by threshold
def macro_error(labels: Any, predictions: Any) -> float:
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    classes = [labels == place for place in np.unique(labels)]
    return float(np.mean([sklearn_mean_absolute_error(labels[rows], predictions[rows]) for rows in classes]))


def threshold_by_threshold(probabilities: Tensor, labels: Tensor, weights: Any = None) -> float:
    """The Brier scores of "is it at most k?", by scikit-learn."""
    cumulative = probabilities.double().cpu().cumsum(-1).clamp(0, 1).numpy()
    truth = labels.cpu().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that every row is on one side
        return float(
            sum(
                brier_score_loss(truth <= place, cumulative[:, place], pos_label=True, sample_weight=weights)
                for place in range(cumulative.shape[-1] - 1)
            )
        )


CASES = {
    "one row": ([2], [0], 3),
    "all right": ([0, 1, 2], [0, 1, 2], 3),
    "all wrong": ([2, 2, 2], [0, 0, 0], 3),
    "one class only": ([1, 1, 0, 2], [1, 1, 1, 1], 3),
    "a class is missing": ([0, 3, 3, 1], [0, 0, 3, 3], 4),
    "one class": ([0, 0], [0, 0], 1),
}


@pytest.mark.parametrize("case", CASES)
def test_absolute_errors_on_degenerate_rows(device: torch.device, case: str) -> None:
    predictions, labels, num_classes = CASES[case]
    ours = torch.tensor(predictions, device=device), torch.tensor(labels, device=device)
    assert mean_absolute_error(*ours).item() == pytest.approx(
        sklearn_mean_absolute_error(labels, predictions), abs=1e-6
    )
    macro = average_mean_absolute_error(*ours, num_classes=num_classes)
    assert macro.item() == pytest.approx(macro_error(labels, predictions), abs=1e-6)


@given(rows=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30))
def test_absolute_errors_on_any_rows(rows: list[tuple[int, int]]) -> None:
    predictions, labels = torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows])
    expected = sklearn_mean_absolute_error(labels.numpy(), predictions.numpy())
    assert mean_absolute_error(predictions, labels).item() == pytest.approx(expected, abs=1e-6)
    macro = average_mean_absolute_error(predictions, labels, num_classes=7)
    assert macro.item() == pytest.approx(macro_error(labels, predictions), abs=1e-6)


@pytest.mark.parametrize("num_classes", [2, 3, 9])
def test_the_ranked_score_is_the_sum_of_brier_scores(device: torch.device, num_classes: int) -> None:
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        rows = (2 * torch.randn(100, num_classes, generator=generator, dtype=torch.float64)).softmax(-1)
        labels = torch.randint(num_classes, (100,), generator=generator)
        weights = torch.rand(100, generator=generator)
        placed = rows.to(device), labels.to(device)
        assert ranked_probability_score(*placed).item() == pytest.approx(threshold_by_threshold(rows, labels), abs=1e-6)
        weighted = ranked_probability_score(*placed, weights=weights.to(device))
        assert weighted.item() == pytest.approx(threshold_by_threshold(rows, labels, weights.numpy()), abs=1e-6)


@pytest.mark.parametrize(
    ("rows", "labels"),
    [
        ([[0.2, 0.3, 0.5]], [0]),
        ([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [0, 2]),
        ([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [2, 0]),
        ([[0.25, 0.5, 0.25]] * 4, [1, 1, 1, 1]),
        ([[1.0], [1.0]], [0, 0]),
    ],
)
def test_the_ranked_score_on_degenerate_rows(device: torch.device, rows: list[Any], labels: list[int]) -> None:
    placed = torch.tensor(rows, device=device), torch.tensor(labels, device=device)
    ours = ranked_probability_score(*placed)
    assert ours.item() == pytest.approx(threshold_by_threshold(*placed), abs=1e-6)


def test_the_ranked_score_of_certain_rows_is_the_absolute_error(device: torch.device) -> None:
    predictions, labels = torch.randint(5, (40,), device=device), torch.randint(5, (40,), device=device)
    rows = torch.eye(5, device=device)[predictions]
    torch.testing.assert_close(ranked_probability_score(rows, labels), mean_absolute_error(predictions, labels))


def test_bad_arguments_of_ordinal_scores() -> None:
    labels = torch.zeros(3, dtype=torch.int64)
    assert_raises(TypeError, "predictions must be an int64 tensor", mean_absolute_error, labels.float(), labels)
    with pytest.raises(TypeError, match="labels must be an int64 tensor"):
        average_mean_absolute_error(labels, labels.int(), num_classes=2)
    with pytest.raises(ValueError, match=r"labels has shape \(2,\), predictions has \(3,\)"):
        mean_absolute_error(labels, labels[:2])
    assert_raises(ValueError, "num_classes=0", average_mean_absolute_error, labels, labels, num_classes=0)
    assert_raises(TypeError, r"probabilities has dtype torch\.int64", ranked_probability_score, labels, labels)


# ---- margins: what logits have, and what targets ask for


@pytest.mark.parametrize("num_classes", [2, 3, 10])
@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.5])
def test_the_optimal_margin_is_that_of_the_theory(device: torch.device, num_classes: int, alpha: float) -> None:
    labels = torch.arange(num_classes, device=device)
    spread_over_all = optimal_margin(uniform(labels, num_classes, alpha))
    expected = math.log(1 + num_classes * (1 - alpha) / alpha)
    torch.testing.assert_close(spread_over_all, torch.full_like(spread_over_all, expected), rtol=0, atol=1e-9)
    over_others = optimal_margin(uniform(labels, num_classes, alpha, spread="others"))
    expected = math.log((1 - alpha) * (num_classes - 1) / alpha)
    torch.testing.assert_close(over_others, torch.full_like(over_others, expected), rtol=0, atol=1e-9)


def test_logits_at_the_optimum_have_the_optimal_margin(device: torch.device) -> None:
    labels = torch.arange(6, device=device)
    tree = Tree.from_nested({"a": ["p", "q"], "b": ["r", "s"], "c": ["t", "u"]})
    for target in (hierarchical(labels, tree, 0.2, 1.0), ordinal(labels, 6, 0.3, "exponential")):
        logits = target.dense(torch.float64).log() + 3.0
        logits.requires_grad_()
        gradient = torch.autograd.grad(cross_entropy(logits, target), logits)[0]
        assert gradient.abs().max() < 1e-12  # it is the optimum
        torch.testing.assert_close(mean_logit_margin(logits, labels), optimal_margin(target).mean(), rtol=0, atol=1e-9)


def test_the_margin_by_numpy(device: torch.device) -> None:
    logits, labels = torch.randn(30, 5, dtype=torch.float64), torch.randint(5, (30,))
    rows = [row[label] - row[torch.arange(5) != label].mean() for row, label in zip(logits, labels, strict=True)]
    ours = mean_logit_margin(logits.to(device), labels.to(device))
    assert ours.item() == pytest.approx(torch.stack(rows).mean().item(), abs=1e-9)
    weights = torch.randint(0, 3, (30,))
    again = logits.repeat_interleave(weights, 0), labels.repeat_interleave(weights)
    weighted = mean_logit_margin(logits.to(device), labels.to(device), weights=weights.to(device))
    assert weighted.item() == pytest.approx(mean_logit_margin(*again).item(), abs=1e-9)


def test_the_margin_of_two_classes_is_scikit_learns_decision() -> None:
    features = torch.randn(80, 3, dtype=torch.float64)
    labels = (features[:, 0] + 0.5 * torch.randn(80, dtype=torch.float64) > 0).long()
    model = LogisticRegression().fit(features.numpy(), labels.numpy())
    decision = torch.from_numpy(model.decision_function(features.numpy()))
    logits = torch.stack((torch.zeros_like(decision), decision), -1)
    expected = (decision * (2 * labels - 1)).mean().item()
    assert mean_logit_margin(logits, labels).item() == pytest.approx(expected, abs=1e-9)


def test_special_margins(device: torch.device) -> None:
    labels = torch.tensor([0, 1], device=device)
    assert optimal_margin(one_hot(labels, 3)).tolist() == [math.inf, math.inf]
    assert optimal_margin(uniform(labels, 3, 1.0)).tolist() == [0.0, 0.0]
    assert optimal_margin(uniform(labels, 3, -0.1)).isnan().all()
    assert optimal_margin(uniform(labels.expand(4, 2), 3, 0.1)).shape == (4, 2)
    assert optimal_margin(one_hot(labels.clamp(max=0), 1)).isnan().all()
    dense = from_probs(torch.tensor([[0.2, 0.7, 0.1]], device=device, dtype=torch.float64))  # no atom: the greatest
    expected = math.log(0.7) - (math.log(0.2) + math.log(0.1)) / 2
    assert optimal_margin(dense).item() == pytest.approx(expected, abs=1e-7)
    parents, weights = torch.tensor([[1, 0]], device=device), torch.tensor([[0.2, 0.8]], device=device)
    hybrid = mixture(parents, weights, 2)  # the first atom is the label, not the greatest
    assert optimal_margin(hybrid).item() == pytest.approx(math.log(0.2 / 0.8), abs=1e-6)
    masked = torch.tensor([[1.0, 0.0, -torch.inf]], device=device)
    assert mean_logit_margin(masked, labels[:1]).item() == math.inf
    assert mean_logit_margin(torch.zeros(2, 1, device=device), torch.zeros_like(labels)).isnan()


def test_the_implied_alpha_is_the_mass_off_the_label(device: torch.device) -> None:
    labels = torch.arange(7)
    for scheme in ("poisson", "binomial", "beta", "exponential", "triangular"):
        table = ordinal_kernel(7, scheme, include_label=True)  # type: ignore[arg-type]
        dense = ordinal(labels, 7, None, scheme).dense(torch.float64)  # type: ignore[arg-type]
        expected = 1 - dense.diagonal()
        torch.testing.assert_close(implied_alpha(table.to(device)).cpu(), expected, rtol=0, atol=1e-9)
        torch.testing.assert_close(implied_alpha(5 * table), expected, rtol=0, atol=1e-9)  # rows need no sum
    torch.testing.assert_close(implied_alpha(torch.eye(3)), torch.zeros(3))
    assert implied_alpha(torch.zeros(2, 2)).isnan().all()


def test_kernel_smoothing_by_the_implied_alpha_is_the_table_itself() -> None:
    table = torch.rand(5, 5, dtype=torch.float64) + 0.1
    labels = torch.arange(5)
    smoothed = kernel(labels, table, implied_alpha(table)).dense(torch.float64)
    torch.testing.assert_close(smoothed, table / table.sum(-1, keepdim=True), rtol=0, atol=1e-9)


def test_bad_arguments_of_margins() -> None:
    assert_raises(TypeError, r"kernel has dtype torch\.int64", implied_alpha, torch.ones(2, 2, dtype=torch.int64))
    assert_raises(ValueError, r"kernel has shape \(2, 3\), needs \[K, K\]", implied_alpha, torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"labels has shape \(1,\), needs one per sample of logits"):
        mean_logit_margin(torch.rand(2, 3), torch.tensor([0]))
