"""The network of `rlsmooth classify` and `self-train`: features brought to one scale, then linear layers and ReLU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlsmooth.checks import check_positive_int
from rlsmooth.data.labelled import column_scale

__all__ = ["Standardise", "network"]


class Standardise(nn.Module):
    """`(x - mean) / scale`, feature by feature, with numbers that training leaves alone and that files keep.

    Args:
        mean: `[D]`.
        scale: `[D]`, above 0.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[N, D]` to `[N, D]`."""
        return (inputs - self.mean) / self.scale


def network(
    hidden_sizes: Sequence[int] = (64, 64), training: NDArray[np.float32] | None = None
) -> Callable[[int, int], nn.Module]:
    """What `Classifier(model=...)` and `Classifier.load(path, model)` take.

    Args:
        hidden_sizes: of the layers between features and logits; empty: softmax regression.
        training: float `[N, D]`, whose means and standard deviations are used; constant features are only centred.
            None: features stay as they are, until a file's numbers are loaded.

    Raises:
        TypeError, ValueError: a size is no whole number from 1 on.

    Example:
        >>> build = network((8,), np.array([[1.0], [3.0]], dtype=np.float32))
        >>> module = build(1, 2)
        >>> module[0](torch.tensor([[3.0]])), [tuple(part.shape) for part in module[1].parameters()]
        (tensor([[1.]]), [(8, 1), (8,)])
    """
    sizes = [check_positive_int("hidden_sizes", size) for size in hidden_sizes]

    def build(num_features: int, num_classes: int) -> nn.Module:
        layers: list[nn.Module] = [_scaling(training, num_features)]
        width = num_features
        for size in sizes:
            layers += [nn.Linear(width, size), nn.ReLU()]
            width = size
        return nn.Sequential(*layers, nn.Linear(width, num_classes))

    return build


def _scaling(training: NDArray[np.float32] | None, num_features: int) -> Standardise:
    if training is None:
        return Standardise(torch.zeros(num_features), torch.ones(num_features))
    mean, spread = column_scale(training)
    return Standardise(torch.tensor(mean).float(), torch.tensor(spread).float())
