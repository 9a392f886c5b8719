"""`report.json` of the commands that train on labels or on what was watched: written and read in one way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from rlsmooth.scripts.run_folder import read_json, read_settings, write_json

__all__ = ["load_report_file", "save_report_file"]

ReportT = TypeVar("ReportT", bound=Any)


def save_report_file(folder: Path, report: Any) -> None:
    """Write `report.json` of a dataclass."""
    write_json(folder / "report.json", asdict(report))


def load_report_file(folder: Path, report_type: type[ReportT], *, command: str, needed: tuple[str, ...]) -> ReportT:
    """A run's report; of a run that has not ended, its settings alone.

    Args:
        folder: of the run.
        report_type: a dataclass of keywords with `name` and `settings`, the rest with defaults.
        command: that must have made the run.
        needed: the settings without which no figure can be drawn.

    Raises:
        ValueError: it is no folder of such a run, or the report is malformed.
    """
    settings = read_settings(folder, command)
    _check_settings(settings, needed, folder / "config.json")
    path = folder / "report.json"
    if not path.exists():
        begun: ReportT = report_type(name=folder.name, settings=settings)
        return begun
    try:
        report: ReportT = report_type(**read_json(path))
    except TypeError as error:
        raise ValueError(f"{str(path)!r} is no report of this version: {error}.") from error
    _check_settings(report.settings, needed, path)
    return report


def _check_settings(settings: Mapping[str, Any], needed: tuple[str, ...], path: Path) -> None:
    missing = [name for name in needed if name not in settings]
    if missing:
        raise ValueError(f"{str(path)!r} is not of this version: it lacks {', '.join(missing)}.")
