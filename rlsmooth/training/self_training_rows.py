"""The rows of a self-training: which have a label, since when, and how sure the teacher was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlsmooth.targets import Target
from rlsmooth.training.classifier_labels import as_label_array, as_weights, encode_labels
from rlsmooth.training.self_training_labels import Recipes, labelled_target

__all__ = ["UNLABELLED", "TrainingRows", "begin", "take"]

UNLABELLED = -1


@dataclass
class TrainingRows:
    """All rows of a fit, and what became of them so far.

    Attributes:
        inputs: `[N, ...]`.
        weights: float64 `[N]`, or None.
        labels: `[N]`, as given, and pseudo-labels as they are made.
        truth: `[N]`, or None.
        classes: `[K]`, sorted.
        places: int64 `[N]`, the labels as places in `classes`; -1 without a label.
        labelled_in: int64 `[N]`: 0 given, the round of a pseudo-label, -1 none.
        confidence: float64 `[N]`, with which a label was made; 1 for given ones.
        soft: float64 `[N, K]`, soft pseudo-labels, or None.
    """

    inputs: Any
    weights: NDArray[np.float64] | None
    labels: NDArray[Any]
    truth: NDArray[Any] | None
    classes: NDArray[Any]
    places: NDArray[np.int64]
    labelled_in: NDArray[np.int64]
    confidence: NDArray[np.float64]
    soft: NDArray[np.float64] | None

    def labelled(self) -> NDArray[np.int64]:
        """The rows that have a label, ascending."""
        return np.flatnonzero(self.labelled_in >= 0)

    def unlabelled(self) -> NDArray[np.int64]:
        """The rows that have none, ascending."""
        return np.flatnonzero(self.labelled_in < 0)

    def is_right(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Those of `rows` whose truth is known, and whether their labels are it."""
        assert self.truth is not None
        known = rows[self.truth[rows] != UNLABELLED]
        return known, np.asarray(self.labels[known] == self.truth[known], dtype=bool)

    def target(self, rows: NDArray[np.int64], recipes: Recipes) -> Target:
        """The target of labelled rows, of batch shape `[M]`."""
        return labelled_target(
            torch.from_numpy(self.places[rows]),
            torch.from_numpy(self.labelled_in[rows] > 0),
            torch.from_numpy(self.confidence[rows]),
            None if self.soft is None else torch.from_numpy(self.soft[rows]),
            len(self.classes),
            recipes,
        )

    def keep(
        self,
        rows: NDArray[np.int64],
        places: NDArray[np.int64],
        confidence: NDArray[np.float64],
        soft: NDArray[np.float64] | None,
        *,
        number: int,
    ) -> None:
        """Give `rows` their pseudo-labels, in round `number`."""
        self.labels[rows] = self.classes[places]
        self.places[rows] = places
        self.labelled_in[rows] = number
        self.confidence[rows] = confidence
        if self.soft is not None and soft is not None:
            self.soft[rows] = soft


def begin(X: Any, y: Any, sample_weight: Any, true_labels: Any, *, soft: bool) -> TrainingRows:
    """The rows before the first round. See `SelfTraining.fit`.

    Args:
        X: see there.
        y: see there.
        sample_weight: see there.
        true_labels: see there.
        soft: whether soft pseudo-labels will be kept.

    Raises:
        TypeError: a sparse matrix.
        ValueError: shapes that do not fit, text that is no object, no row with a label.
    """
    inputs = _as_rows(X)
    labels = _labels(y, len(inputs), "y").copy()
    has_label = np.asarray(labels != UNLABELLED, dtype=bool)
    if not has_label.any():
        raise ValueError("y has no row with a label (all are -1): give some of each class.")
    classes = np.unique(labels[has_label])
    places = np.full(len(labels), UNLABELLED, dtype=np.int64)
    places[has_label] = encode_labels(labels[has_label], classes)
    return TrainingRows(
        inputs,
        as_weights(sample_weight, len(labels)),
        labels,
        None if true_labels is None else as_label_array(true_labels, len(labels), "true_labels"),
        classes,
        places,
        np.where(has_label, 0, UNLABELLED),
        np.ones(len(labels)),
        np.full((len(labels), len(classes)), 1 / len(classes)) if soft else None,
    )


def take(inputs: Any, rows: NDArray[np.int64]) -> Any:
    """Some rows of an array or a tensor."""
    return inputs[torch.from_numpy(rows).to(inputs.device)] if isinstance(inputs, Tensor) else inputs[rows]


def _as_rows(X: Any) -> Any:
    if isinstance(X, Tensor):
        rows: Any = X.detach()
    elif type(X).__module__.startswith("scipy.sparse"):
        raise TypeError("X is a sparse matrix, sparse input is not supported: give X.toarray().")
    else:
        rows = np.asarray(X)
    if rows.ndim < 2:
        raise ValueError(
            f"X has shape {tuple(rows.shape)}, needs [rows, features] or more axes. Reshape your data: "
            "X.reshape(-1, 1) if it is one feature, X.reshape(1, -1) if it is one row."
        )
    return rows


def _labels(y: Any, num_rows: int, name: str) -> NDArray[Any]:
    array = as_label_array(y, num_rows, name)
    if array.dtype.kind in "US":
        raise ValueError(
            f"{name} has dtype string: make it an array of dtype object, with the number -1 for rows without a label."
        )
    return array
