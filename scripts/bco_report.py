"""What the report of `rlsmooth bco` is drawn from, kept as `report.json`, and its rows for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlsmooth.scripts.metrics_file import Curve, read_metrics
from rlsmooth.scripts.report_file import load_report_file
from rlsmooth.scripts.results import print_table

__all__ = ["BCOReport", "load_bco_report", "print_bco_results", "result_rows", "setting_rows"]

SHOWN = ("env", "smoothing", "reference", "pseudo_labels", "seed", "rounds", "transitions_per_round", "net_arch")
"""The settings without which no figure can be drawn."""


@dataclass(frozen=True, kw_only=True)
class BCOReport:
    """A run in numbers; plain data only.

    Attributes:
        name: of the run's folder.
        settings: the arguments of the run.
        curves: by column of `metrics.csv`, over the transitions that were made.
        summary: what the last round logged, without `bco/`, and `demonstrated_return` and `largest_entropy` where they
            are known.
        watched: how many episodes and transitions were watched, in words.
    """

    name: str
    settings: Mapping[str, Any]
    curves: Mapping[str, Curve] = field(default_factory=dict)
    summary: Mapping[str, float] = field(default_factory=dict)
    watched: str = ""


def load_bco_report(folder: Path) -> BCOReport:
    """A run's report; of a run that has not ended, the rounds so far.

    Raises:
        ValueError: it is no folder of such a run, or the report is malformed.
    """
    report = load_report_file(folder, BCOReport, command="bco", needed=SHOWN)
    if report.curves:
        return report
    return dataclasses.replace(report, curves=read_metrics(folder / "metrics.csv"))


def result_rows(report: BCOReport) -> list[tuple[str, str]]:
    """(name, value with its unit) of each result that the run has."""
    found = report.summary
    rows: list[tuple[str, str]] = []
    for suffix, how in (("", "deterministic"), ("_sampled", "sampled")):
        if f"mean_reward{suffix}" in found:
            value = f"{found[f'mean_reward{suffix}']:.1f} ± {found[f'std_reward{suffix}']:.1f}"
            rows.append((f"return, {how}", value))
    if "demonstrated_return" in found:
        rows.append(("return, demonstrations", f"{found['demonstrated_return']:.1f}"))
    shares = (
        ("guesses: right", "pseudo_label_accuracy"),
        ("guesses: confidence", "pseudo_label_confidence"),
        ("policy agrees with them", "accuracy"),
        ("held-out actions: right", "inverse_dynamics_accuracy"),
    )
    rows += [(name, f"{100 * found[tag]:.1f} %") for name, tag in shares if tag in found]
    if "pseudo_label_error" in found:
        rows.append(("guesses: error", f"{found['pseudo_label_error']:.3f}"))
    if "policy_entropy" in found:
        share = f" ({100 * found['entropy_frac']:.1f} % of log n)" if "entropy_frac" in found else ""
        rows.append(("policy entropy", f"{found['policy_entropy']:.3f} nats{share}"))
    return rows


def setting_rows(report: BCOReport) -> list[tuple[str, str]]:
    """(name, value) of the settings that tell most about a run, with how much was watched."""
    settings = report.settings
    rows = [("watched", report.watched)] if report.watched else []
    rows += [
        ("rounds", f"{settings['rounds']} of {settings['transitions_per_round']:,} transitions"),
        ("trained on", f"{settings['pseudo_labels']} guesses"),
        ("smoothing", f"{settings['smoothing']} towards {settings['reference']}"),
        ("hidden layers", " × ".join(map(str, settings["net_arch"])) or "none"),
    ]
    return rows


def print_bco_results(report: BCOReport) -> None:
    """Print a run's table."""
    episodes = report.settings["eval_episodes"]
    note = f"Returns: mean ± std of {episodes} episodes. Entropy: mean over the demonstrations' states."
    print_table(f"{report.settings['env']}, {report.name}", result_rows(report), note)
