"""What a run's report is drawn from: kept as `report.json`, so that `rlsmooth plot` can draw it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlsmooth.scripts.metrics_file import Curve, read_metrics
from rlsmooth.scripts.run_folder import read_json, read_settings, write_json

__all__ = ["Report", "load_report", "save_report"]

SHOWN = (
    "env",
    "smoothing",
    "reference",
    "seed",
    "batch_size",
    "gradient_accumulation",
    "learning_rate",
    "net_arch",
    "kl_coef",
)
"""The settings without which no figure can be drawn."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A run in numbers; plain data only.

    Attributes:
        name: of the run's folder.
        settings: the arguments of the run.
        curves: by column of `metrics.csv`, what was logged over the run.
        summary: what the run ended with, by the same names without `bc/`, `bc/val_` and `eval/`.
        data: how many episodes and transitions were trained on and held out, in words.
        measured_on: which of them the summary's accuracy and so on are of.
        reliability: the columns of `ReliabilityBins`; None for continuous actions.
        target_matrices: by tag, target probabilities, a row for each label; empty for continuous actions.
    """

    name: str
    settings: Mapping[str, Any]
    curves: Mapping[str, Curve]
    summary: Mapping[str, float] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    measured_on: str = ""
    reliability: dict[str, list[float | None]] | None = None
    target_matrices: Mapping[str, list[list[float]]] = field(default_factory=dict)


def save_report(folder: Path, report: Report) -> None:
    """Write `report.json`."""
    write_json(folder / "report.json", asdict(report))


def load_report(folder: Path) -> Report:
    """A run's report; of a run that has not ended, the curves so far.

    Raises:
        ValueError: it is no folder of a run, or the report is malformed.
    """
    settings = read_settings(folder, "bc")
    _check_settings(settings, folder / "config.json")
    path = folder / "report.json"
    if not path.exists():
        return Report(name=folder.name, settings=settings, curves=read_metrics(folder / "metrics.csv"))
    try:
        report = Report(**read_json(path))
    except TypeError as error:
        raise ValueError(f"{str(path)!r} is no report of this version: {error}.") from error
    _check_settings(report.settings, path)
    return report


def _check_settings(settings: Mapping[str, Any], path: Path) -> None:
    missing = [name for name in SHOWN if name not in settings]
    if missing:
        raise ValueError(f"{str(path)!r} is not of this version: it lacks {', '.join(missing)}.")
