"""Write and read `metrics.csv`: a row for each line of the log, with its step; a resumed run continues the file."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from stable_baselines3.common.logger import CSVOutputFormat

from rlsmooth.atomic import write_bytes_atomically

STEP = "step"
Curve: TypeAlias = tuple[list[float], list[float]]
"""Steps and values."""


class MetricsFile(CSVOutputFormat):
    """SB3's CSV format with the step as its first column, and with the rows that are there already.

    Args:
        path: the file.
        last_step: rows after this step are left out: a run that was killed had logged them after its last checkpoint,
            and logs them again. None starts an empty file.

    The new file takes the place of the old one when it is complete, so that being killed here loses nothing.
    """

    def __init__(self, path: Path, last_step: int | None = None) -> None:
        kept = [] if last_step is None else [row for row in _rows(path) if row[STEP] <= last_step]
        unfinished = path.with_name(f".{path.name}.tmp")
        super().__init__(str(unfinished))
        for row in kept:
            step = int(row.pop(STEP))
            self.write(dict(row), {}, step)
        self.file.flush()
        unfinished.replace(path)  # the open file goes along

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Add a row; called by the logger."""
        values = {STEP: step, **dict(sorted(key_values.items()))}
        if not self.keys:  # SB3 adds columns in the order of a set, which differs from run to run
            self.keys = [key for key in values if "csv" not in key_excluded.get(key, ())]
            self.file.write(",".join(self.keys) + "\n")
        super().write(values, {key: key_excluded.get(key, ()) for key in values}, step)


def read_metrics(path: Path) -> dict[str, Curve]:
    """The curves of a `metrics.csv`: by column, steps and values. Empty if there is no such file."""
    curves: dict[str, Curve] = {}
    for row in _rows(path):
        for name, value in row.items():
            if name != STEP and math.isfinite(value):
                steps, values = curves.setdefault(name, ([], []))
                steps.append(row[STEP])
                values.append(value)
    return curves


def write_history(path: Path, history: Mapping[str, list[float]], prefix: str, *, first: int = 1) -> dict[str, Curve]:
    """Write `metrics.csv`, a row an epoch or round, counted from `first` in the column `step`; return its curves.

    A value that is not finite leaves its cell empty and its curve without the point.
    """
    length = max(map(len, history.values()), default=0)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([STEP, *(f"{prefix}/{name}" for name in history)])
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


def _rows(path: Path) -> list[dict[str, float]]:
    """The numbers of each row. A last row that a killed run left incomplete, with too few columns, is left out."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        try:
            raw = [row for row in reader if None not in row and all(value is not None for value in row.values())]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{str(path)!r} can't be read: {error}") from error
    rows = [{name: number for name, text in row.items() if (number := _number(text)) is not None} for row in raw]
    return [row for row in rows if STEP in row]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
