"""How often intervals of few runs hold the truth, by simulation: as often as they say, and they never took so long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rlsmooth.audits import interquartile_mean_difference, interquartile_mean_interval

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
