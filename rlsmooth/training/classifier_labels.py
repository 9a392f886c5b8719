"""Labels as class numbers, the weights of rows and classes, and the rows to hold out: numpy, checked once."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rlsmooth.checks import check_in_range
from rlsmooth.targets import Smoothing, Tree

__all__ = ["as_label_array", "as_weights", "class_factors", "encode_labels", "hold_out", "in_class_order"]


def as_label_array(y: Any, num_rows: int, name: str = "y") -> NDArray[Any]:
    """Labels of any kind that can be sorted, as an array `[N]`.

    Raises:
        ValueError: None, another length than `num_rows`, fractions, NaN, more than one column, kinds that can't be
            sorted together.
    """
    if y is None:
        raise ValueError(f"Classifier requires {name} to be passed, but the target {name} is None.")
    array = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if array.ndim == 2 and array.shape[1] == 1:
        warnings.warn(
            f"A column-vector {name} was passed when a 1d array was expected: use {name}.ravel().",
            _conversion_warning(),
            stacklevel=4,
        )
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(
            f"{name} has shape {array.shape}, {name} should be a 1d array of one label a row: give soft labels as "
            "target=from_probs(...)."
        )
    if array.dtype.kind == "c":
        raise ValueError(f"{name} is complex. Complex data not supported: give labels.")
    if array.dtype.kind == "S":
        raise ValueError(f"{name} holds bytes, which no file can keep: give text, {name}.astype(str).")
    if array.dtype.kind == "f":
        bad = np.flatnonzero(~np.isfinite(array))
        if len(bad):
            raise ValueError(f"{name}[{bad[0]}] is NaN or infinity (Input {name} contains NaN or infinity).")
        bad = np.flatnonzero(array != np.trunc(array))
        if len(bad):
            raise ValueError(
                f"Unknown label type: continuous. {name}[{bad[0]}]={array[bad[0]]!r} is no class: give whole numbers "
                "or names."
            )
    if len(array) != num_rows:
        raise ValueError(f"{name} has {len(array)} labels, but X {num_rows} rows (inconsistent numbers of samples).")
    return array


def in_class_order(smoothing: Smoothing, classes: NDArray[Any]) -> Smoothing:
    """The recipe for sorted `classes`: the leaves of a `Tree` are matched with text labels by their names.

    Numbers count the leaves in the tree's own order.

    Raises:
        ValueError: the tree's leaves have other names than the labels.
    """
    if not isinstance(smoothing.reference, Tree) or not all(isinstance(name, str) for name in classes.tolist()):
        return smoothing
    return dataclasses.replace(smoothing, reference=smoothing.reference.in_order(classes.tolist()))


def encode_labels(array: NDArray[Any], classes: NDArray[Any], name: str = "y") -> NDArray[np.int64]:
    """The place of each label in the sorted `classes`.

    Raises:
        ValueError: a label that is no class.
    """
    places = {label: place for place, label in enumerate(classes.tolist())}
    found: NDArray[np.int64] = np.array([places.get(label, -1) for label in array.tolist()], dtype=np.int64)
    if (found < 0).any():
        row = int(np.flatnonzero(found < 0)[0])
        shown = ", ".join(map(repr, classes[:8].tolist())) + (", ..." if len(classes) > 8 else "")
        raise ValueError(f"{name}[{row}]={array[row]!r} is none of the classes {shown}: name all in fit(classes=).")
    return found


def as_weights(sample_weight: Any, num_rows: int) -> NDArray[np.float64] | None:
    """One weight a row, or None.

    Raises:
        ValueError: another shape than `[N]`, a weight that is negative or not finite, all of them 0.
    """
    if sample_weight is None:
        return None
    given = sample_weight.detach().cpu().numpy() if isinstance(sample_weight, Tensor) else np.asarray(sample_weight)
    weights: NDArray[np.float64] = given.astype(np.float64)
    if weights.shape != (num_rows,):
        raise ValueError(
            f"sample_weight has shape {weights.shape}, needs ({num_rows},), one weight a row (sample_weight.shape == "
            f"{weights.shape}, expected ({num_rows},)!)."
        )
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        raise ValueError(f"sample_weight[{bad[0]}]={weights[bad[0]]!r} must be finite and at least 0.")
    if not weights.any():
        raise ValueError("sample_weight: all weights are zero, nothing is left to learn from.")
    return weights


def class_factors(
    class_weight: Any, classes: NDArray[Any], labels: NDArray[np.int64], weights: NDArray[np.float64] | None
) -> NDArray[np.float64] | None:
    """What each class's rows are weighed with, `[K]`; as scikit-learn's `compute_class_weight`.

    Args:
        class_weight: None; `"balanced"`: `n / (K · n_k)` with the rows counted by their weights; a dict of label to
            factor, where a class that is left out has 1; or an array `[K]` in the order of `classes`.
        classes: `[K]`, sorted.
        labels: int64 `[N]`, places in `classes`.
        weights: sample weights `[N]`, or None.

    Raises:
        TypeError: another kind.
        ValueError: a factor that is negative or not finite, an array of another shape, a label that is no class.
    """
    if class_weight is None:
        return None
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise ValueError(f'class_weight={class_weight!r} is not known: give "balanced", a dict or an array [K].')
        counts = np.bincount(labels, weights=weights, minlength=len(classes))
        present = np.count_nonzero(counts)  # a class without rows has nothing to weigh
        balanced: NDArray[np.float64] = np.ones(len(classes))
        np.divide(counts.sum(), present * counts, out=balanced, where=counts > 0)
        return balanced
    if isinstance(class_weight, Mapping):
        names = classes.tolist()
        unknown = [label for label in class_weight if label not in names]
        if unknown and len(class_weight) - len(unknown) < len(names):
            raise ValueError(f"class_weight has {unknown[0]!r}, which is none of the classes {names[:8]}.")
        given = np.array([class_weight.get(label, 1.0) for label in names], dtype=np.float64)
    elif isinstance(class_weight, (Tensor, np.ndarray, list, tuple)):
        given = np.asarray(class_weight.detach().cpu() if isinstance(class_weight, Tensor) else class_weight, float)
    else:
        raise TypeError(
            f'class_weight must be None, "balanced", a dict or an array [K], got {type(class_weight).__name__}.'
        )
    if given.shape != (len(classes),):
        raise ValueError(f"class_weight has shape {given.shape}, needs ({len(classes)},): one factor a class.")
    for label, factor in zip(classes.tolist(), given.tolist(), strict=True):
        check_in_range(f"class_weight of {label!r}", factor, 0.0)
    return given


def hold_out(labels: NDArray[np.int64], fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`(training, validation)` rows, each ascending: a seeded, stratified split.

    Args:
        labels: int64 `[N]`.
        fraction: of the rows to hold out; every class gives its share, to within a row.
        seed: of the choice.

    Raises:
        ValueError: one of the two would be empty, or a class would be left without a training row.
    """
    count = round(fraction * len(labels))
    if not 0 < count < len(labels):
        raise ValueError(f"validation_fraction={fraction} of {len(labels)} rows leaves no row on one side: change it.")
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[by_class[((np.arange(count) + 0.5) * len(labels) / count).astype(np.int64)]] = True
    lost = np.setdiff1d(labels, labels[~chosen])
    if len(lost):
        raise ValueError(
            f"validation_fraction={fraction} would leave class number {lost[0]} without a training row (the least "
            "populated class has too few): lower it, or give validation=(X, y)."
        )
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _conversion_warning() -> type[Warning]:
    """scikit-learn's own class where it is installed: its users filter by it."""
    try:
        from sklearn.exceptions import DataConversionWarning
    except ModuleNotFoundError:
        return UserWarning
    warning: type[Warning] = DataConversionWarning
    return warning
