"""Arguments of every audit: arrays become tensors, shape and dtype are checked, but no value is read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def takes_arrays(audit: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Let an audit take numpy's arrays, and whatever turns into one (a column of a table), wherever it takes tensors.

    Whole numbers of any width become int64.
    """

    @functools.wraps(audit)
    def with_tensors(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        tensors: Any = [tensor_of(value) for value in args], {name: tensor_of(each) for name, each in kwargs.items()}
        return audit(*tensors[0], **tensors[1])

    return with_tensors


def tensor_of(value: Any) -> Any:
    """An array of numbers as a tensor of its own; all else as it is."""
    if isinstance(value, (Tensor, np.generic)) or not hasattr(value, "__array__"):
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        return value
    kind = np.dtype(np.int64) if array.dtype.kind in "iu" else array.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(array, dtype=kind, order="C"))


def check_floating(name: str, values: Tensor) -> None:
    """Raise TypeError unless `values` is a floating-point tensor."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        found = f"has dtype {values.dtype}" if isinstance(values, Tensor) else f"is a {type(values).__name__}"
        raise TypeError(f"{name} {found}: pass a floating-point tensor or array.")


def check_labels(name: str, labels: Tensor) -> None:
    """Raise TypeError unless `labels` is an int64 tensor."""
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        found = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"{name} must be an int64 tensor of classes, or an array of whole numbers, got {found}.")


def check_same_shape(name: str, other: Tensor, reference_name: str, shape: torch.Size) -> None:
    """Raise ValueError unless `other` has that shape."""
    if other.shape != shape:
        raise ValueError(
            f"{name} has shape {tuple(other.shape)}, {reference_name} has {tuple(shape)}: they must agree."
        )


def check_distances(distances: Tensor, num_classes: int | None = None, *, name: str = "distances") -> int:
    """Check a table `[K, K]`, of the given K if there is one, and return K.

    Raises:
        TypeError: it is no tensor of numbers.
        ValueError: it is not square, or of another size.
    """
    if not isinstance(distances, Tensor) or distances.dtype == torch.bool or distances.is_complex():
        kind = distances.dtype if isinstance(distances, Tensor) else type(distances).__name__
        raise TypeError(f"{name} must be a tensor or array of numbers [K, K], got {kind}.")
    size = distances.shape[0] if distances.ndim else 0
    if distances.shape != (size, size) or size == 0 or num_classes not in (None, size):
        wanted = "[K, K]" if num_classes is None else f"({num_classes}, {num_classes})"
        raise ValueError(f"{name} has shape {tuple(distances.shape)}, needs {wanted}: one row and column a class.")
    return size


def as_samples(
    values: Tensor, labels: Tensor, weights: Tensor | None = None, *, name: str = "probabilities"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Flat samples, their labels, their weights and whether each label is a class.

    Args:
        values: float `[..., K]`.
        labels: int64 `[...]`.
        weights: `[...]`, None: 1 each.
        name: what messages call `values`.

    Returns:
        `values` [N, K] in float32 or better, `labels` [N] brought into [0, K), `weight` [N] in `wide_dtype`, and
        `valid` [N]: bool, whether the label was in [0, K) and no value is NaN, or the sample does not count.

    Raises:
        TypeError: values that are not floating, labels that are not int64.
        ValueError: shapes that do not fit.
    """
    check_floating(name, values)
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError(f"{name} has shape {tuple(values.shape)}, needs [..., K] with at least one class.")
    check_labels("labels", labels)
    batch = values.shape[:-1]
    for other_name, other in (("labels", labels), ("weights", weights)):
        if other is not None and other.shape != batch:
            raise ValueError(
                f"{other_name} has shape {tuple(other.shape)}, needs one per sample of {name}: {tuple(batch)}."
            )
    num_classes = values.shape[-1]
    samples = values.detach().reshape(-1, num_classes).to(result_dtype(values))
    label = labels.reshape(-1)
    wide = wide_dtype(samples)
    weight = torch.ones(len(label), dtype=wide, device=samples.device)
    if weights is not None:
        weight = weights.detach().reshape(-1).to(samples.device, wide)
    valid = (label >= 0) & (label < num_classes) & ~samples.isnan().any(-1) | (weight == 0)
    return samples, label.clamp(0, num_classes - 1), weight, valid


def mean_of(values: Tensor, weight: Tensor, valid: Tensor) -> Tensor:
    """Weighted mean of `values` [N]: NaN without samples or weight, NaN if a sample that counts is not `valid`."""
    # Selected, not multiplied: a sample of weight 0 may hold NaN.
    terms = torch.where(weight != 0, weight * values.to(weight.dtype), torch.zeros_like(weight))
    return nan_unless(valid.all(), terms.sum() / weight.sum())


def nan_unless(valid: Tensor, value: Tensor) -> Tensor:
    """`value` where `valid`, NaN elsewhere, without a look at either."""
    return torch.where(valid, value, torch.full_like(value, torch.nan))


def result_dtype(values: Tensor) -> torch.dtype:
    """Float64 for float64, else float32: no audit is computed in half precision."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def wide_dtype(values: Tensor) -> torch.dtype:
    """The dtype of sums: float64, so that a million samples lose nothing; Apple's GPUs have none."""
    return torch.float32 if values.device.type == "mps" else torch.float64
