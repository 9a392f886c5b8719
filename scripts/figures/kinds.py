"""The kinds of reports by command: make, load, draw and publish the report of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from rlsmooth.scripts.figures import adversarial, audit, bc, classify, federated, gan, on_policy, rounds, self_train
from rlsmooth.scripts.figures.page import comparison_figure, report_figure, save_figure
from rlsmooth.scripts.reports import ReportKind, RunReport
from rlsmooth.scripts.run_folder import read_command
from rlsmooth.untrusted import refused

KINDS = {
    command: kind
    for kind in (
        bc.KIND,
        rounds.BCO,
        rounds.DAGGER,
        adversarial.KIND,
        on_policy.KIND,
        classify.KIND,
        self_train.KIND,
        gan.KIND,
        federated.KIND,
        audit.KIND,
    )
    for command in kind.commands
}
"""What the reports of each command's runs hold, and how they are shown."""


def new_report(command: str, **entries: Any) -> RunReport:
    """The report of a run that has ended.

    Args:
        command: that made the run.
        entries: `name` and `settings`, `curves`, `summary` and the extra entries of the command's kind.
    """
    return KINDS[command].new(command=command, **entries)


def publish_report(folder: Path, report: RunReport) -> None:
    """Write `report.json` and `report.png` into the run's folder, and print the table."""
    kind = KINDS[report.command]
    kind.save(folder, report)
    save_figure(folder / "report.png", report_figure(kind, report))
    kind.print(report)


def load_reports(folders: Sequence[Path]) -> list[RunReport]:
    """The reports of runs of one kind; of a run that has not ended, what is known so far.

    Raises:
        ValueError: a folder is none of a run that has reports, the runs are of several kinds, or a file is malformed.
    """
    commands = [read_command(folder) for folder in folders]
    for folder, command in zip(folders, commands, strict=True):
        if command not in KINDS:
            raise ValueError(f"{str(folder / 'config.json')!r} was written by none of {', '.join(KINDS)}.")
    kind = _common_kind(commands)
    return [kind.load(folder, command) for folder, command in zip(folders, commands, strict=True)]


def draw_reports(reports: Sequence[RunReport]) -> Figure:
    """One run at a glance, or several of one kind compared.

    Raises:
        ValueError: the runs are of several kinds, of a kind that can't be compared, or on several environments or data;
            or a file holds what can't be drawn.
    """
    kind = _common_kind([report.command for report in reports])
    malformed = refused(", ".join(report.name for report in reports), ValueError, "Train again.", "can't be drawn")
    if len(reports) == 1:
        with malformed:
            return report_figure(kind, reports[0])
    if kind.comparison is None:
        raise ValueError(f"runs of {kind.name} can't be compared: name one folder.")
    subjects = sorted({str(report.settings[kind.subject]) for report in reports})
    if len(subjects) > 1:  # their returns have nothing in common
        raise ValueError(f"runs on {', '.join(subjects)} don't share an axis: name those on one {kind.subject}.")
    with malformed:
        return comparison_figure(kind.comparison, reports)


def _common_kind(commands: Sequence[str]) -> ReportKind:
    kinds = {KINDS[command].name: KINDS[command] for command in commands}
    if len(kinds) > 1:
        raise ValueError(f"runs of {' and '.join(sorted(kinds))} can't be compared: name those of one kind.")
    (kind,) = kinds.values()
    return kind
