"""What the report of `rlsmooth self-train` is drawn from, kept as `report.json`, and its rows for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlsmooth.scripts.classify_report import SCORES, score_text
from rlsmooth.scripts.metrics_file import Curve
from rlsmooth.scripts.report_file import load_report_file
from rlsmooth.scripts.results import print_table

__all__ = [
    "ENDED",
    "SelfTrainReport",
    "load_self_train_report",
    "print_self_train_results",
    "pseudo_label_rows",
    "pseudo_label_words",
    "score_rows",
    "setting_rows",
]

SHOWN = ("data", "n_labels", "pseudo_labels", "smoothing", "threshold", "criterion", "k_best", "ema", "seed", "epochs")
"""The settings without which no figure can be drawn."""
TABLE = ("accuracy", "nll", "brier", "ece", "confidence_gap", "distance_at_1", "mistake_severity", "mae", "rps")
ENDED = {
    "all_labeled": "all rows have a label",
    "max_iter": "limit reached",
    "no_change": "a round labelled nothing",
}
"""What scikit-learn's `termination_condition_` means."""


@dataclass(frozen=True, kw_only=True)
class SelfTrainReport:
    """A run in numbers; plain data only.

    Attributes:
        name: of the run's folder.
        settings: the arguments of the run.
        curves: by tag, over rounds; round 0 is trained on the given labels alone.
        rounds: a `RoundReport` a round, as a dictionary.
        before: scores of the test rows after round 0, as `classification_summary` gives them.
        summary: the same after the last round.
        data: how many rows had a label, had none, and were tested, in words.
        source: where the rows are from.
        ended: scikit-learn's `termination_condition_`.
    """

    name: str
    settings: Mapping[str, Any]
    curves: Mapping[str, Curve] = field(default_factory=dict)
    rounds: Sequence[Mapping[str, Any]] = ()
    before: Mapping[str, float] = field(default_factory=dict)
    summary: Mapping[str, float] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    ended: str = ""


def load_self_train_report(folder: Path) -> SelfTrainReport:
    """A run's report; of a run that has not ended, its settings.

    Raises:
        ValueError: it is no folder of such a run, or the report is malformed.
    """
    return load_report_file(folder, SelfTrainReport, command="self-train", needed=SHOWN)


def pseudo_label_words(settings: Mapping[str, Any]) -> str:
    """What pseudo-labels were trained on: `hard`, `hard, smoothing 0.1`, `hard, by confidence`, `soft`, ..."""
    smoothing = str(settings["smoothing"])
    if smoothing == "confidence":
        return f"{settings['pseudo_labels']}, smoothed by confidence"
    off = smoothing in ("0", "0.0")
    return str(settings["pseudo_labels"]) + ("" if off else f", smoothing {smoothing}")


def score_rows(report: SelfTrainReport) -> list[tuple[str, ...]]:
    """Of each score: its name, its value with the given labels alone, and after self-training."""
    return [
        (SCORES[tag][0], *(score_text(found[tag], SCORES[tag][1]) for found in (report.before, report.summary)))
        for tag in TABLE
        if tag in report.before and tag in report.summary
    ]


def pseudo_label_rows(report: SelfTrainReport) -> list[tuple[str, str]]:
    """(name, value) of what became of the rows without a label."""
    if not report.rounds:
        return [("rounds", f"0: {ENDED[report.ended]}")] if report.ended else []
    last = report.rounds[-1]
    made = sum(entry["num_new"] for entry in report.rounds)
    right = "" if last["pseudo_label_accuracy"] is None else f", {100 * last['pseudo_label_accuracy']:.1f} % right"
    rows = [("pseudo-labels", f"{made:,}{right}")]
    bias = last["confirmation_bias"]
    if bias is not None and bias["share_grown"] is not None:
        rows.append(("wrong ones grown surer", f"{100 * bias['share_grown']:.0f} % of {bias['num_wrong']:,}"))
    rows.append(("rounds", f"{len(report.rounds)}: {ENDED[report.ended]}"))
    return rows


def setting_rows(report: SelfTrainReport) -> list[tuple[str, str]]:
    """(name, value) of the settings that tell most about a run, with how much data it had."""
    settings = report.settings
    rows = [(f"rows, {name}", size) for name, size in report.data.items()]
    taken = f"above {settings['threshold']:g}" if settings["criterion"] == "threshold" else f"{settings['k_best']} best"
    rows.append(("trained on", pseudo_label_words(settings)))
    rows.append(("become labels", taken))
    if settings["ema"] is not None:
        rows.append(("teacher", f"moving average, {settings['ema']:g}"))
    return rows


def print_self_train_results(report: SelfTrainReport) -> None:
    """Print a run's table, with the classifier of the given labels beside the self-trained one."""
    rows = [*score_rows(report), *((name, "", value) for name, value in pseudo_label_rows(report))]
    note = (
        f"Scores of the {report.data['test']} test rows. Whether pseudo-labels are right is known here, and not used."
    )
    header = ["", f"{report.settings['n_labels']} labels", "self-trained"]
    print_table(f"{report.settings['data']}, {report.name}", rows, note, header=header)
