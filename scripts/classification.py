"""Data, networks and arguments that `rlsmooth classify` and `self-train` share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlsmooth.checks import check_positive_int
from rlsmooth.data import LabelledData, load_labelled
from rlsmooth.scripts.bc_training import number_or_word
from rlsmooth.scripts.classification_arguments import ClassificationArgs
from rlsmooth.scripts.environment import check_seed, limit_threads
from rlsmooth.scripts.networks import network

__all__ = [
    "check_numbers",
    "data_name",
    "load_rows",
    "make_network",
    "training_arguments",
    "with_noise",
]


def check_numbers(args: ClassificationArgs) -> None:
    """Raise unless threads and seed are such as torch and numpy take; the rest is checked where it is used."""
    limit_threads(args.num_threads)
    check_seed(args.seed)
    check_positive_int("batch_size", args.batch_size)


def data_name(name: str) -> str:
    """What a run's folder is called: the set's name, or that of its file without `.npz`."""
    return Path(name).stem if name.endswith(".npz") else name


def load_rows(args: ClassificationArgs) -> tuple[LabelledData, LabelledData]:
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
    """What `Classifier(model=...)` takes."""
    return network(args.hidden_sizes, training.features if args.standardise else None)


def training_arguments(args: ClassificationArgs) -> dict[str, Any]:
    """What both commands give `Classifier`."""
    return {
        "class_weight": None if args.class_weight == "none" else args.class_weight,
        "learning_rate": number_or_word(args.learning_rate),
        "weight_decay": args.weight_decay,
        "batch_size": args.batch_size,
        "max_grad_norm": args.max_grad_norm,
        "seed": args.seed,
    }
