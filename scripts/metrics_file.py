"""Write and read `metrics.csv`: a row for each line of the log, with its step; a resumed run continues the file."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from stable_baselines3.common.logger import KVWriter

from rlsmooth.atomic import explained_disk_errors, write_bytes_atomically
from rlsmooth.untrusted import read_regular, refused

STEP = "step"
Curve: TypeAlias = tuple[list[float], list[float]]
"""Steps and values."""


class MetricsFile(KVWriter):
    """A CSV file with the step as its first column and one row for each step, and with the rows that are there already.

    Args:
        path: the file.
        last_step: rows after this step are left out: a run that was killed had logged them after its last checkpoint,
            and logs them again. None starts an empty file.

    Values for the step of the last row go into that row: an update and an evaluation may be logged one after the other.
    Where a row or the columns change, a new file takes the place of the old one when it is complete, so that being
    killed here loses nothing.
    """

    def __init__(self, path: Path, last_step: int | None = None) -> None:
        self.path = path
        kept = [] if last_step is None else [row for row in _texts(path) if float(row[STEP]) <= last_step]
        self.rows: list[dict[str, Any]] = []
        for row in kept:  # an earlier version wrote several rows for a step
            known = self.rows[-1] if self.rows and self.rows[-1][STEP] == row[STEP] else None
            if known is None:
                self.rows.append(dict(row))
            else:
                known |= {name: text for name, text in row.items() if text}
        self.columns = list(self.rows[0]) if self.rows else []
        self.file = self._replaced()

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Add numbers at a step; called by the logger."""
        row: dict[str, Any] = {STEP: step}
        row |= {key: key_values[key] for key in sorted(key_values) if "csv" not in key_excluded.get(key, ())}
        new = [key for key in row if key not in self.columns]
        self.columns += new
        is_same = bool(self.rows) and int(float(self.rows[-1][STEP])) == step
        if is_same:
            self.rows[-1] |= row
        else:
            self.rows.append(row)
        if is_same or new:
            self.file.close()
            self.file = self._replaced()
        else:
            with explained_disk_errors(self.path):
                self.file.write(self._lines([row]))
                self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def _replaced(self) -> TextIO:
        """The file, open at its end, after all rows have been written anew."""
        head = ",".join(self.columns) + "\n" if self.columns else ""
        write_bytes_atomically(self.path, (head + self._lines(self.rows)).encode())
        return self.path.open("a", encoding="utf-8", newline="")

    def _lines(self, rows: list[dict[str, Any]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self.columns, restval="", lineterminator="\n").writerows(rows)
        return text.getvalue()


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
    """The numbers of each row."""
    return [
        {name: number for name, text in row.items() if (number := _number(text)) is not None} for row in _texts(path)
    ]


def _texts(path: Path) -> list[dict[str, str]]:
    """The cells of each row. A last row that a killed run left incomplete, with too few columns, is left out."""
    if not path.exists():
        return []
    with refused(path, ValueError):
        reader = csv.DictReader(io.StringIO(read_regular(path).decode(), newline=""))
        raw = [row for row in reader if None not in row and all(value is not None for value in row.values())]
    return [row for row in raw if _number(row.get(STEP, "")) is not None]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
