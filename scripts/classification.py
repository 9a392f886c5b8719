"""Data, network and arguments that `rlsmooth classify` and `self-train` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlsmooth.checks import check_positive_int
from rlsmooth.data import LabelledData, load_labelled
from rlsmooth.data.labelled import column_scale
from rlsmooth.scripts.arguments import ClassificationArgs, number_or_word
from rlsmooth.scripts.environment import check_seed, limit_threads


def check_numbers(args: ClassificationArgs) -> None:
    """Raise unless threads and seed are such as torch and numpy take; the rest is checked where it is used."""
    limit_threads(args.num_threads)
    check_seed(args.seed)
    check_positive_int("batch_size", args.batch_size)


def data_name(name: str) -> str:
    """The name for a run's folder: the set's name, or that of its file without `.npz`."""
    return Path(name).stem if name.endswith(".npz") else name


def load_parts(args: ClassificationArgs) -> tuple[LabelledData, LabelledData]:
    """Samples to learn from, and test samples.

    Raises:
        ImportError: the data come with a package that is missing.
        ValueError: there is no such set, or it can't be split so.
    """
    return load_labelled(args.data).split(args.test_fraction, args.seed)


def with_noise(args: ClassificationArgs, training: LabelledData) -> LabelledData:
    """The samples with the label noise that is asked for.

    Raises:
        ValueError: the noise is no probability.
    """
    return training if args.label_noise == 0 else training.with_label_noise(args.label_noise, args.seed)


def make_network(args: ClassificationArgs, training: LabelledData) -> Any:
    """The function that builds the network, for `Classifier(model=...)`."""
    return network(args.hidden_sizes, training.features if args.standardise else None)


def training_arguments(args: ClassificationArgs) -> dict[str, Any]:
    """Arguments of `Classifier` that both commands set alike."""
    return {
        "class_weight": None if args.class_weight == "none" else args.class_weight,
        "learning_rate": number_or_word(args.learning_rate),
        "weight_decay": args.weight_decay,
        "batch_size": args.batch_size,
        "max_grad_norm": args.max_grad_norm,
        "seed": args.seed,
    }


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
    """A function that builds the network, for `Classifier(model=...)` and `Classifier.load(path, model)`.

    Args:
        hidden_sizes: of the layers between features and logits; empty: softmax regression.
        training: float `[N, D]`, whose means and standard deviations are used; constant features are only centred.
            None: features stay as they are, until a file's numbers are loaded.

    Raises:
        TypeError, ValueError: a size is no whole number from 1 on.

    Examples:
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
