"""What the report of `rlsmooth classify` is drawn from, kept as `report.json`, and its rows for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlsmooth.scripts.metrics_file import Curve, curves_of
from rlsmooth.scripts.report_file import load_report_file
from rlsmooth.scripts.results import print_table
from rlsmooth.training import checkpoint_steps, latest_checkpoint

__all__ = [
    "ClassifyReport",
    "load_classify_report",
    "margin_words",
    "print_classify_results",
    "score_rows",
    "score_text",
    "setting_rows",
    "smoothing_words",
    "spread_words",
]

SHOWN = (
    "data",
    "smoothing",
    "reference",
    "seed",
    "label_noise",
    "hidden_sizes",
    "batch_size",
    "learning_rate",
    "mixup",
)
"""The settings without which no figure can be drawn."""

SCORES = {
    "accuracy": ("accuracy", "%"),
    "nll": ("neg. log-likelihood", "nats"),
    "brier": ("Brier score", ""),
    "ece": ("calibration error, ECE", ""),
    "adaptive_ece": ("ECE, equal-sized bins", ""),
    "classwise_ece": ("ECE, class by class", ""),
    "confidence_gap": ("confidence - accuracy", "signed"),
    "aurc": ("risk-coverage area", ""),
    "margin": ("logit margin", "nats"),
    "distance_at_1": ("tree distance @1", ""),
    "distance_at_5": ("tree distance @5", ""),
    "distance_at_20": ("tree distance @20", ""),
    "mistake_severity": ("mistake severity", ""),
    "mae": ("mean absolute error", ""),
    "amae": ("MAE over classes", ""),
    "rps": ("ranked prob. score", ""),
}
"""Of each score, what people call it, and its unit."""


@dataclass(frozen=True, kw_only=True)
class ClassifyReport:
    """A run in numbers; plain data only.

    Attributes:
        name: of the run's folder.
        settings: the arguments of the run.
        curves: by tag, over epochs.
        summary: of the test rows, as `classification_summary` gives it.
        scaled: the same with the temperature that the validation rows ask for; empty without such rows.
        data: how many rows were trained on, held out and tested, in words.
        source: where the rows are from.
        class_names: `[K]`.
        reliability: of the test rows, the columns of `ReliabilityBins`.
        reliability_scaled: with the temperature.
        risk_coverage: `coverage` and `risk`.
        risk_coverage_scaled: with the temperature.
        confusion: `[K, K]`, test rows by label and prediction.
        target_matrix: `[K, K]`, the target of each label, at the start of the training.
        optimal_margin: mean over training rows of what the targets ask for, nats; None: unbounded, or no such number.
        implied_alpha: `[K]`, the share of each class's target that is off the label.
        best_epoch: whose parameters were kept.
    """

    name: str
    settings: Mapping[str, Any]
    curves: Mapping[str, Curve] = field(default_factory=dict)
    summary: Mapping[str, float] = field(default_factory=dict)
    scaled: Mapping[str, float] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    class_names: Sequence[str] = ()
    reliability: dict[str, list[float | None]] | None = None
    reliability_scaled: dict[str, list[float | None]] | None = None
    risk_coverage: dict[str, list[float]] | None = None
    risk_coverage_scaled: dict[str, list[float]] | None = None
    confusion: list[list[int]] | None = None
    target_matrix: list[list[float]] | None = None
    optimal_margin: float | None = None
    implied_alpha: Sequence[float] = ()
    best_epoch: int | None = None


def load_classify_report(folder: Path) -> ClassifyReport:
    """A run's report; of a run that has not ended, the curves up to its last checkpoint.

    Raises:
        ValueError: it is no folder of such a run, or the report or the checkpoint is malformed.
    """
    report = load_report_file(folder, ClassifyReport, command="classify", needed=SHOWN)
    if report.summary or not checkpoint_steps(folder / "checkpoints"):
        return report
    checkpoint = latest_checkpoint(folder / "checkpoints")
    curves = {} if checkpoint is None else curves_of(checkpoint.config["history"], "classifier")
    return dataclasses.replace(report, curves=curves)


def smoothing_words(settings: Mapping[str, Any]) -> str:
    """How targets were smoothed: `0.1 towards uniform`, `none`, `the whole tree`, ..."""
    smoothing = str(settings["smoothing"])
    if smoothing == "none":
        return f"all of {settings['reference']}"
    return "none" if smoothing in ("0", "0.0") else f"{smoothing} towards {settings['reference']}"


def score_text(value: float, unit: str) -> str:
    """A score with its unit."""
    if unit == "%":
        return f"{100 * value:.1f} %"
    if unit == "signed":
        return f"{100 * value:+.1f} %"
    return f"{value:.3f} {unit}".strip() if abs(value) < 1e4 else f"{value:.2e} {unit}".strip()


def score_rows(report: ClassifyReport) -> list[tuple[str, ...]]:
    """Of each score that the run has: its name, its value, and, if there is one, that with a temperature."""
    return [
        (label, *(score_text(column[tag], unit) if tag in column else "" for column in columns(report)))
        for tag, (label, unit) in SCORES.items()
        if tag in report.summary
    ]


def columns(report: ClassifyReport) -> list[Mapping[str, float]]:
    """The summary, and that with a temperature if there is one."""
    return [report.summary, *([report.scaled] if report.scaled else [])]


def setting_rows(report: ClassifyReport) -> list[tuple[str, str]]:
    """(name, value) of the settings that tell most about a run, with how much data it had."""
    settings = report.settings
    rows = [(f"rows, {name}", size) for name, size in report.data.items()]
    rows.append(("smoothing", smoothing_words(settings)))
    if report.implied_alpha and max(report.implied_alpha) - min(report.implied_alpha) > 5e-4:
        rows.append(("off the label, by class", spread_words(report)))
    if settings["label_noise"]:
        rows.append(("label noise", f"{100 * settings['label_noise']:g} % of training labels"))
    if settings["mixup"]:
        rows.append(("mixup", f"Beta({settings['mixup']:g}, {settings['mixup']:g})"))
    rows.append(("learning rate, batch", f"{settings['learning_rate']}, {settings['batch_size']}"))
    rows.append(("hidden layers", " × ".join(map(str, settings["hidden_sizes"])) or "none"))
    return rows


def spread_words(report: ClassifyReport) -> str:
    """The least and the greatest share of a target that is off the label."""
    return f"{min(report.implied_alpha):.3f} to {max(report.implied_alpha):.3f}"


def margin_words(report: ClassifyReport) -> str:
    """What the targets ask of the margin."""
    return "unbounded" if report.optimal_margin is None else f"{report.optimal_margin:.3f} nats"


def print_classify_results(report: ClassifyReport) -> None:
    """Print a run's table, with temperature scaling beside the classifier as it was trained."""
    header = ["", "as trained"]
    asked = "an unbounded margin" if report.optimal_margin is None else f"a margin of {margin_words(report)}"
    note = f"Of the {report.data['test']} test rows. The targets ask for {asked}."
    if report.scaled:
        header.append(f"temperature {report.scaled['temperature']:.3g}")
        note += " The temperature has the least negative log-likelihood on the validation rows."
    else:
        note += " No temperature: it needs validation rows."
    print_table(f"{report.settings['data']}, {report.name}", score_rows(report), note, header=header)
