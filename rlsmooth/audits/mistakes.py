"""Severity of a classifier's mistakes: distances in a hierarchy, or in any table `[K, K]` of costs.

Pure functions on tensors or arrays, no host sync. Source: Bertinetto et al., "Making better mistakes: leveraging class
hierarchies with deep networks" (2020).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlsmooth.audits.arguments import (
    as_samples,
    check_distances,
    check_labels,
    check_same_shape,
    mean_of,
    nan_unless,
    takes_arrays,
    wide_dtype,
)
from rlsmooth.checks import check_choice, check_positive_int
from rlsmooth.targets import Tree


def tree_distances(tree: Tree, *, measure: Literal["height", "edges"] = "height") -> Tensor:
    """How far apart two classes are in a hierarchy.

    `"height"`: the height of their lowest common ancestor, which is the number of edges from it down to the deepest
    class below it: Bertinetto et al.'s distance. `"edges"`: the number of edges between the two, `tree.distances`,
    which hierarchical smoothing decays by. Where all classes are equally deep, edges are twice the height.

    Args:
        tree: whose leaves are the K classes.
        measure: one of the two distances above.

    Returns:
        float64 [K, K], symmetric, 0 on the diagonal.

    Raises:
        ValueError: `measure` is unknown.

    Examples:
        >>> from rlsmooth.targets import Tree
        >>> tree_distances(Tree.from_nested({"cats": ["lion", "tiger"], "dogs": ["wolf"]}))
        tensor([[0., 1., 2.],
                [1., 0., 2.],
                [2., 2., 0.]], dtype=torch.float64)
    """
    check_choice("measure", measure, ("height", "edges"))
    return tree.distance_table(measure).to(torch.float64)


def _check_distances(distances: Tensor | Tree, num_classes: int | None = None) -> int:
    if not isinstance(distances, Tree):
        return check_distances(distances, num_classes)
    if num_classes not in (None, distances.num_classes):
        raise ValueError(f"distances is a tree of {distances.num_classes} classes, needs {num_classes}: a leaf each.")
    return distances.num_classes


def _between(distances: Tensor | Tree, labels: Tensor, predictions: Tensor, dtype: torch.dtype) -> Tensor:
    """The distances of given pairs of classes, of a tree's without a table of all pairs."""
    if isinstance(distances, Tree):
        return distances.distance(labels, predictions, measure="height").to(dtype)
    return distances.detach().to(labels.device, dtype)[labels, predictions]


@takes_arrays
def distance_at_k(scores: Tensor, labels: Tensor, distances: Tensor | Tree, *, k: int) -> Tensor:
    """Hierarchical distance of the top k: the mean distance from the label of the k most probable classes.

    For `k=1` it is the mean distance of the prediction, hits (distance 0) included. It can't be 0 for greater k: only
    one class is the label.

    Args:
        scores: float [..., K], probabilities or logits. Among equals the first class comes first.
        labels: int64 [...], in [0, K).
        distances: [K, K], row = label, column = prediction; see `tree_distances`. Or a tree: its heights, without a
            table of all pairs.
        k: 1 to K.

    Returns:
        0-dim, in the distances' unit and the scores' dtype (float32 for half precision); NaN without samples, and NaN
        if a score is NaN or a label no class.

    Raises:
        TypeError: `scores` is not floating, `labels` not int64, `distances` no tensor of numbers.
        ValueError: shapes that do not fit, or k is not in 1 to K.

    Examples:
        >>> distances = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 2.0], [2.0, 2.0, 0.0]])
        >>> distance_at_k(torch.tensor([[0.5, 0.1, 0.4]]), torch.tensor([0]), distances, k=2)
        tensor(1.)
    """
    samples, label, weight, valid = as_samples(scores, labels, name="scores")
    num_classes = _check_distances(distances, samples.shape[-1])
    if check_positive_int("k", k) > num_classes:
        raise ValueError(f"k={k} is more than the {num_classes} classes.")
    nearest = samples.sort(dim=-1, descending=True, stable=True).indices[:, :k]  # topk leaves the order of equals open
    found = _between(distances, label.unsqueeze(-1), nearest, weight.dtype)
    return mean_of(found.mean(-1), weight, valid).to(samples.dtype)


@takes_arrays
def mistake_severity(predictions: Tensor, labels: Tensor, distances: Tensor | Tree) -> Tensor:
    """Mean distance between prediction and label over the mistakes alone.

    A classifier may make it smaller by making more mistakes, if those are mild: read it beside the accuracy, or read
    `distance_at_k(k=1)`, which is the product of the two.

    Args:
        predictions: int64 [...], in [0, K).
        labels: int64 [...], in [0, K).
        distances: [K, K], row = label, column = prediction; see `tree_distances`. Or a tree: its heights, without a
            table of all pairs.

    Returns:
        0-dim, in the distances' unit and dtype (float32 where they are whole numbers or half precision); NaN where
        nothing is mistaken, and NaN if a prediction or label is no class.

    Raises:
        TypeError: `predictions` or `labels` is not int64, `distances` no tensor of numbers.
        ValueError: shapes that do not fit.

    Examples:
        >>> distances = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 2.0], [2.0, 2.0, 0.0]])
        >>> mistake_severity(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 0]), distances)
        tensor(1.5000)
    """
    check_labels("predictions", predictions)
    check_labels("labels", labels)
    check_same_shape("labels", labels, "predictions", predictions.shape)
    num_classes = _check_distances(distances)
    predicted, label = predictions.reshape(-1), labels.reshape(-1)
    valid = ((predicted >= 0) & (predicted < num_classes) & (label >= 0) & (label < num_classes)).all()
    ends = label.clamp(0, num_classes - 1), predicted.clamp(0, num_classes - 1)
    found = _between(distances, *ends, wide_dtype(label))
    mistaken = predicted != label
    total = torch.where(mistaken, found, torch.zeros_like(found)).sum()
    dtype = torch.float64 if isinstance(distances, Tree) or distances.dtype == torch.float64 else torch.float32
    return nan_unless(valid, total / mistaken.sum()).to(dtype)
