"""What `rlsmooth classify` and `self-train` share: rows, networks, `metrics.csv`, and a classifier measured on rows."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlsmooth.atomic import write_bytes_atomically
from rlsmooth.audits import classification_summary, reliability_bins, risk_coverage, tree_distances
from rlsmooth.checks import check_positive_int
from rlsmooth.data import LabelledData, load_labelled
from rlsmooth.losses.measures import measure_predictions
from rlsmooth.scripts.bc_training import number_or_word
from rlsmooth.scripts.classification_arguments import ClassificationArgs
from rlsmooth.scripts.environment import check_seed, limit_threads
from rlsmooth.scripts.measure import bins_to_json
from rlsmooth.scripts.networks import network
from rlsmooth.scripts.report import Curve
from rlsmooth.targets import Tree

__all__ = [
    "Measured",
    "check_numbers",
    "curves_of",
    "data_name",
    "load_rows",
    "make_network",
    "measure_rows",
    "training_arguments",
    "with_noise",
    "write_history",
]

CURVE_POINTS = 200


@dataclass(frozen=True)
class Measured:
    """A classifier's logits on some rows in numbers; plain data only.

    Attributes:
        summary: see `classification_summary`; what can't be computed is left out.
        reliability: the columns of `ReliabilityBins`.
        risk_coverage: `coverage` and `risk`, at most 200 points.
    """

    summary: dict[str, float]
    reliability: dict[str, list[float | None]]
    risk_coverage: dict[str, list[float]]


def check_numbers(args: ClassificationArgs) -> None:
    """Raise unless threads and seed are such as torch and numpy take; the rest is checked where it is used."""
    limit_threads(args.num_threads)
    check_seed(args.seed)
    check_positive_int("batch_size", args.batch_size)


def data_name(name: str) -> str:
    """What a run's folder is called: the set's name, or that of its file without `.npz`."""
    return Path(name).stem if name.endswith(".npz") else name


def load_rows(args: ClassificationArgs) -> tuple[LabelledData, LabelledData]:
    """Rows to learn from, and test rows.

    Raises:
        ImportError: the data come with a package that is missing.
        ValueError: there is no such set, or it can't be split so.
    """
    return load_labelled(args.data).split(args.test_fraction, args.seed)


def with_noise(args: ClassificationArgs, training: LabelledData) -> LabelledData:
    """The rows with the label noise that is asked for.

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


def measure_rows(
    logits: Tensor, labels: Tensor, data: LabelledData, *, temperature: float | None = None
) -> tuple[Measured, list[list[int]]]:
    """All scores of some rows, and the confusion matrix: row = label, column = prediction.

    Args:
        logits: float `[N, K]`.
        labels: int64 `[N]`.
        data: whose hierarchy and order of classes are used.
        temperature: the logits are divided by it first; None: they are taken as they are.
    """
    distances = None if data.hierarchy is None else tree_distances(Tree.from_nested(data.hierarchy))
    summary = classification_summary(
        logits, labels, distances=distances, ordered=data.is_ordered, temperature=temperature
    )
    wide = logits.to(torch.float64) / (1.0 if temperature is None else temperature)
    predictions = wide.argmax(-1)
    found = measure_predictions(wide, labels)
    curve = risk_coverage(found.confidence, found.hit)
    shown = torch.linspace(0, len(labels) - 1, min(len(labels), CURVE_POINTS)).round().long()
    size = data.num_classes
    confusion = torch.bincount(labels * size + predictions, minlength=size * size).reshape(size, size)
    measured = Measured(
        {name: value for name, value in summary.items() if math.isfinite(value)},
        bins_to_json(reliability_bins(found.confidence, found.hit)),
        {"coverage": curve.coverage[shown].tolist(), "risk": curve.risk[shown].tolist()},
    )
    return measured, confusion.tolist()


def write_history(path: Path, history: Mapping[str, list[float]], prefix: str, *, first: int = 1) -> dict[str, Curve]:
    """Write `metrics.csv`, a row an epoch or round, counted from `first` in the column `step`; return its curves.

    A value that is not finite leaves its cell empty and its curve without the point.
    """
    length = max(map(len, history.values()), default=0)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", *(f"{prefix}/{name}" for name in history)])
    for place in range(length):
        row = [column[place] for column in history.values()]
        writer.writerow([place + first, *(value if math.isfinite(value) else "" for value in row)])
    write_bytes_atomically(path, text.getvalue().encode())
    return curves_of(history, prefix, first=first)


def curves_of(history: Mapping[str, list[float]], prefix: str, *, first: int = 1) -> dict[str, Curve]:
    """A history as curves by tag; points that are not finite are left out."""
    curves: dict[str, Curve] = {}
    for name, column in history.items():
        points = [(float(place + first), value) for place, value in enumerate(column) if math.isfinite(value)]
        if points:
            curves[f"{prefix}/{name}"] = ([place for place, _ in points], [value for _, value in points])
    return curves
