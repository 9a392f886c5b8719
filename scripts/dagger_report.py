"""What the report of `rlsmooth dagger` is drawn from, kept as `report.json`, and its rows for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlsmooth.scripts.metrics_file import Curve, read_metrics
from rlsmooth.scripts.report_file import load_report_file
from rlsmooth.scripts.results import print_table, return_words

__all__ = ["DAggerReport", "load_dagger_report", "print_dagger_results", "result_rows", "setting_rows"]

SHOWN = ("env", "seed", "smoothing", "reference", "beta_schedule", "expert_targets", "net_arch", "eval_episodes")
"""The settings without which no figure can be drawn."""


@dataclass(frozen=True, kw_only=True)
class DAggerReport:
    """A run in numbers; plain data only.

    Attributes:
        name: of the run's folder.
        settings: the arguments of the run.
        curves: by column of `metrics.csv`, over the steps that were made.
        summary: what the last round logged, without `dagger/`, with `expert_return`, `rounds` and, where it is known,
            `largest_entropy`.
        expert: what was asked, in words.
    """

    name: str
    settings: Mapping[str, Any]
    curves: Mapping[str, Curve] = field(default_factory=dict)
    summary: Mapping[str, float] = field(default_factory=dict)
    expert: str = ""


def load_dagger_report(folder: Path) -> DAggerReport:
    """A run's report; of a run that has not ended, the rounds so far.

    Raises:
        ValueError: it is no folder of such a run, or the report is malformed.
    """
    report = load_report_file(folder, DAggerReport, command="dagger", needed=SHOWN)
    if report.curves:
        return report
    return dataclasses.replace(report, curves=read_metrics(folder / "metrics.csv"))


def result_rows(report: DAggerReport) -> list[tuple[str, str]]:
    """(name, value with its unit) of each result that the run has."""
    found = report.summary
    rows: list[tuple[str, str]] = []
    for suffix, how in (("", "deterministic"), ("_sampled", "sampled")):
        if f"mean_reward{suffix}" in found:
            value = f"{return_words(found[f'mean_reward{suffix}'])} ± {return_words(found[f'std_reward{suffix}'])}"
            rows.append((f"return, {how}", value))
    if "expert_return" in found:
        rows.append(("return, expert", return_words(found["expert_return"])))
    shares = (("does as the expert did", "expert_agreement"), ("the same, after training", "accuracy"))
    rows += [(name, f"{100 * found[tag]:.1f} %") for name, tag in shares if tag in found]
    if "expert_error" in found:
        rows.append(("from the expert's action", f"{found['expert_error']:.3f} (root mean square)"))
    if "nll_hard" in found:
        rows.append(("neg. log-likelihood", f"{found['nll_hard']:.3f} nats"))
    if "policy_entropy" in found:
        kind = "policy entropy" if "entropy_frac" in found else "differential entropy"
        share = f" ({100 * found['entropy_frac']:.1f} % of log n)" if "entropy_frac" in found else ""
        rows.append((kind, f"{found['policy_entropy']:.3f} nats{share}"))
    if "transitions" in found:
        rounds = f"{found['rounds']:.0f} round{'s' if found['rounds'] != 1 else ''}"
        rows.append(("labelled", f"{found['transitions']:,.0f} in {rounds}"))
    return rows


def setting_rows(report: DAggerReport) -> list[tuple[str, str]]:
    """(name, value) of the settings that tell most about a run."""
    settings = report.settings
    rows = [("expert", report.expert)] if report.expert else []
    rows += [
        ("cloned", f"its {settings['expert_targets']}"),
        ("smoothing", f"{settings['smoothing']} towards {settings['reference']}"),
        ("expert acts", beta_words(settings["beta_schedule"])),
        ("hidden layers", " × ".join(map(str, settings["net_arch"])) or "none"),
    ]
    return rows


def beta_words(schedule: str) -> str:
    """`1 to 0 in 15 rounds`, `0.7 to the power of the round`."""
    return f"1 to 0 in {schedule} rounds" if schedule.isdigit() else f"{schedule} to the power of the round"


def print_dagger_results(report: DAggerReport) -> None:
    """Print a run's table."""
    episodes = report.settings["eval_episodes"]
    note = (
        f"Returns: mean ± std of {episodes} episodes. Does as the expert did: at the states of the last round, "
        "before it was trained on them."
    )
    print_table(f"DAgger, {report.settings['env']}, {report.name}", result_rows(report), note)
