"""How often intervals of few runs hold the truth, by simulation: as often as they say, and they never took so long."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlsmooth.audits import interquartile_mean_difference, interquartile_mean_interval
from rlsmooth.scripts.studies.gap_coverage import cells, simulate

Draw = Callable[[np.random.Generator, Any], np.ndarray]
SCORES: dict[str, Draw] = {
    "normal": lambda rng, size: rng.normal(size=size),
    "exponential": lambda rng, size: rng.exponential(size=size),
    "bimodal": lambda rng, size: rng.normal(size=size) + rng.choice([-1.5, 1.5], size=size),
}
TRIALS = 4000  # the standard error of a coverage of 95 % is 0.35 %


def truth(draw: Draw) -> float:
    """The interquartile mean of the law itself."""
    scores = np.sort(draw(np.random.default_rng(100), 2_000_000))
    return float(scores[500_000:-500_000].mean())


@pytest.mark.slow
@pytest.mark.parametrize("runs", [3, 4, 5, 7, 9])
@pytest.mark.parametrize("law", SCORES)
def test_of_few_runs(law: str, runs: int) -> None:
    rng, wanted, hits = np.random.default_rng(runs), truth(SCORES[law]), 0
    for scores in SCORES[law](rng, (TRIALS, runs)):
        _, low, high = interquartile_mean_interval(scores)
        hits += low <= wanted <= high
    assert 0.93 - 0.007 < hits / TRIALS < 0.97 + 0.007


@pytest.mark.slow
@pytest.mark.parametrize(("runs", "tasks", "apart"), [(3, 2, 0.0), (4, 3, 5.0), (8, 5, 2.0)])
def test_of_few_runs_of_several_tasks(runs: int, tasks: int, apart: float) -> None:
    rng, places, hits = np.random.default_rng(0), apart * np.arange(tasks), 0
    everything = np.sort((rng.normal(size=(400_000, tasks)) + places).ravel())
    wanted = everything[len(everything) // 4 : -(len(everything) // 4)].mean()
    for scores in np.round(rng.normal(size=(1500, runs, tasks)), 1) + places:
        _, low, high = interquartile_mean_interval(scores)
        hits += low <= wanted <= high
    assert 0.93 < hits / 1500 < 0.995


@pytest.mark.slow
def test_of_differences() -> None:
    rng, hits = np.random.default_rng(0), 0
    for _ in range(1000):
        _, low, high = interquartile_mean_difference(rng.normal(size=4), 3 * rng.normal(size=9))
        hits += low <= 0 <= high
    assert 0.93 < hits / 1000 < 0.985


@pytest.mark.slow
@pytest.mark.parametrize("job", cells(trials=1000, bootstrapped=100), ids=lambda job: job.key)
def test_of_the_gaps_of_groups(job: Any) -> None:
    found = simulate({**job.settings, "seed": 1000})  # not the numbers of the committed table
    assert (
        0.93 - 0.015 < min(found["gap of B"], found["Welch"]) <= max(found["gap of B"], found["Welch"]) < 0.97 + 0.015
    )
    assert found["furthest of three"] > 0.93 - 0.015
    assert found["bootstrap"] > 0.87


def test_of_the_gaps_of_groups_in_the_committed_table(repository: Path) -> None:
    folder = repository / "scripts" / "studies" / "results"
    rows = json.loads((folder / "gap_coverage.json").read_text())["cells"]
    page = (folder / "gap_coverage.md").read_text()
    assert len(rows) == 18
    for row in rows:
        reported = [row["gap of B"], row["Welch"], row["bootstrap"]]
        assert 0.93 <= min(reported) <= max(reported) <= 0.97
        assert 0.93 <= row["furthest of three"] <= 0.985  # simultaneous: it may be wider than need be
        numbers = " | ".join(f"{100 * each:.1f}" for each in reported)
        assert f"| {row['A']} | {row['B']} | {row['reference_rows']} | {row['rows']} | {numbers} |" in page
