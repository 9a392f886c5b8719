"""Runs that differ in their seed alone, as one: mean curves with an interval at each point."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlsmooth.audits import interquartile_mean_band
from rlsmooth.scripts.metrics_file import Curve
from rlsmooth.scripts.reports import RunReport

NOT_OF_THE_SETTING = frozenset(
    ("seed", "device", "num_threads", "log_folder", "tensorboard_log", "resume", "progress", "verbose", "save_freq")
)
"""Options in which runs of one setting may differ."""
LEAST_RUNS = 3
"""Fewer have no interval."""
LOW, HIGH = "/low of seeds", "/high of seeds"
"""Follow a tag: the ends of its interval."""


def merge_seeds(reports: Sequence[RunReport]) -> list[RunReport]:
    """One report for each setting, in the order of the first run of each.

    A setting that has one run keeps its report. Of several runs, curves are interquartile means (of fewer than four
    runs, plain means) where all of them have data; beside each curve of at least three runs are the ends of its 95 %
    interval, under the tag with `LOW` and `HIGH`. Other numbers are plain means. Two runs of the same seed are the
    same run twice, so they are not merged.
    """
    groups: dict[tuple[str, int], list[RunReport]] = {}
    seen: dict[tuple[str, Any], int] = {}
    for report in reports:
        setting, seed = _setting(report), report.settings["seed"]
        seen[setting, seed] = seen.get((setting, seed), 0) + 1
        groups.setdefault((setting, seen[setting, seed]), []).append(report)
    return [group[0] if len(group) == 1 else _merged(group) for group in groups.values()]


def _setting(report: RunReport) -> str:
    """All that decides about a run, but for its seed."""
    settings = {name: value for name, value in report.settings.items() if name not in NOT_OF_THE_SETTING}
    return json.dumps([report.command, settings, report.extras.get("hyperparameters")], sort_keys=True, default=str)


def _merged(group: Sequence[RunReport]) -> RunReport:
    first, seeds = group[0], sorted(report.settings["seed"] for report in group)
    consecutive = len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1))
    shown = f"{seeds[0]} to {seeds[-1]}" if consecutive else ", ".join(map(str, seeds))
    curves: dict[str, Curve] = {}
    for tag in first.curves:
        found = [report.curves[tag] for report in group if tag in report.curves]
        if len(found) == len(group):
            curves |= _merged_curve(tag, found)
    return dataclasses.replace(
        first,
        name=f"{len(group)} runs",
        settings={**first.settings, "seed": shown},
        curves=curves,
        summary=_mean([report.summary for report in group]),
        extras=_mean([report.extras for report in group]),
    )


def _merged_curve(tag: str, curves: Sequence[Curve]) -> dict[str, Curve]:
    """The mean curve where all runs have data, and the ends of its interval."""
    first, last = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    places = sorted({step for steps, _ in curves for step in steps if first <= step <= last})
    if not places:
        return {}
    table = np.stack([np.interp(places, steps, values) for steps, values in curves])
    finite = np.flatnonzero(np.isfinite(table).all(axis=0))
    places, table = [places[place] for place in finite], table[:, finite]
    if not places:
        return {}
    if len(curves) < LEAST_RUNS:
        return {tag: (places, table.mean(0).tolist())}
    band = interquartile_mean_band(table)
    columns = {tag: band.estimate, tag + LOW: band.low, tag + HIGH: band.high}
    return {name: (places, column.tolist()) for name, column in columns.items()}


def _mean(values: Sequence[Any]) -> Any:
    """The mean of numbers, of mappings entry by entry; of anything else, the first."""
    if all(isinstance(value, Mapping) for value in values):
        names = [name for name in values[0] if all(name in value for value in values)]
        return {name: _mean([value[name] for value in values]) for name in names}
    if all(isinstance(value, float) for value in values):
        return float(np.mean(values))
    return values[0]
