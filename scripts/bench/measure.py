"""Shared by the benchmarks: medians with their spread, paired ratios, the machine, and the result files."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median, quartiles and range of repeated measurements of one thing."""

    median: float
    lower_quartile: float
    upper_quartile: float
    minimum: float
    maximum: float
    count: int


def spread(values: Sequence[float]) -> Spread:
    """Summarise `values` by order statistics, which a single disturbed round can't move far.

    Raises:
        ValueError: `values` is empty.

    Examples:
        >>> spread([3.0, 1.0, 2.0, 100.0, 4.0]).median
        3.0
    """
    if not values:
        raise ValueError("values is empty: measure at least once.")
    ordered = sorted(values)
    if len(ordered) == 1:
        lower = upper = ordered[0]
    else:
        lower, _, upper = statistics.quantiles(ordered, n=4, method="inclusive")
    return Spread(
        median=statistics.median(ordered),
        lower_quartile=lower,
        upper_quartile=upper,
        minimum=ordered[0],
        maximum=ordered[-1],
        count=len(ordered),
    )


def paired_ratio(values: Sequence[float], baseline: Sequence[float]) -> Spread:
    """Spread of `values[i] / baseline[i]`: both of one round, so that what slows a whole round cancels.

    Raises:
        ValueError: the two have different lengths.

    Examples:
        >>> paired_ratio([2.0, 4.0, 9.0], [1.0, 2.0, 3.0]).median
        2.0
    """
    if len(values) != len(baseline):
        raise ValueError(f"values has {len(values)} rounds and baseline {len(baseline)}: pair the same rounds.")
    return spread([value / base for value, base in zip(values, baseline, strict=True)])


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Installed version of each distribution, or "not installed"."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def load_average() -> list[float]:
    """Load of the last 1, 5 and 15 minutes, or empty where the system has none.

    A benchmark on one thread makes 1 of it: more is somebody else's work, which disturbs the timings.
    """
    if sys.platform == "win32":
        return []
    return [round(load, 2) for load in os.getloadavg()]


def machine() -> dict[str, Any]:
    """CPU model, cores, system and date (UTC): what a timing means nothing without."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    details = [f"{key} {named[key]}" for key in ("cpu family", "model") if key in named]
    return f"{named.get('model name', platform.processor() or 'unknown')} ({', '.join(details)})"


def command_line(script: str, args: Any) -> str:
    """The command that runs `script` (a path from the repository root) with the dataclass `args` again.

    Only what differs from the defaults is written.
    """
    words = ["python", script]
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if value == default:
            continue
        name = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            parts = value if isinstance(value, (tuple, list)) else [value]
            words += [f"--{name}", *(str(part) for part in parts)]
    return shlex.join(words)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose first column is text and the others are figures, set to the right."""
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def write_result(folder: Path, name: str, result: dict[str, Any], markdown: str) -> None:
    """Write `<name>.json` (everything measured, every round) and `<name>.md` (what a person reads) to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(markdown + "\n", encoding="utf-8")
