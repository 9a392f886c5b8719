"""Interquartile means and intervals against scipy's own, and their coverage on data whose truth is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rlsmooth.audits import (
    interquartile_mean,
    interquartile_mean_band,
    interquartile_mean_difference,
    interquartile_mean_interval,
    proportion_interval,
)


@given(scores=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_interquartile_mean_is_scipys_trimmed_mean(scores: list[float]) -> None:
    expected = stats.trim_mean(scores, 0.25)
    assert interquartile_mean(scores) == pytest.approx(expected, abs=1e-9 * (1 + max(map(abs, scores))))


def test_interquartile_mean_takes_runs_of_all_tasks_together() -> None:
    scores = np.random.default_rng(0).normal(size=(7, 3))
    assert interquartile_mean(scores) == pytest.approx(stats.trim_mean(scores, 0.25, axis=None), abs=1e-12)
    assert interquartile_mean_interval(scores).estimate == interquartile_mean(scores)


def trimmed(values: Any, axis: int = -1) -> Any:
    return stats.trim_mean(values, 0.25, axis=axis)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_of_one_task_is_scipys_percentile_bootstrap(confidence: float) -> None:
    scores = np.random.default_rng(1).exponential(size=12)
    expected = stats.bootstrap(
        (scores,), trimmed, n_resamples=20_000, confidence_level=confidence, method="percentile", rng=2
    ).confidence_interval
    found = interquartile_mean_interval(scores, confidence=confidence, num_resamples=20_000)
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.03 * width)
    assert found.high == pytest.approx(expected.high, abs=0.03 * width)


def test_runs_are_drawn_again_within_their_task() -> None:
    # A task's runs are all alike, so that a resample within tasks is the sample
    tasks = np.tile([0.0, 1.0, 5.0], (6, 1))
    found = interquartile_mean_interval(tasks)
    assert found.low == found.estimate == found.high
    # As runs of a single task the same 18 scores do vary
    assert interquartile_mean_interval(tasks.ravel()).low < found.low


def test_several_tasks_against_a_plain_loop() -> None:
    scores = np.random.default_rng(3).normal(size=(5, 4)) + np.arange(4)
    rng = np.random.default_rng(4)
    means = [
        trimmed(np.concatenate([rng.choice(column, size=5) for column in scores.T]))  # a task at a time
        for _ in range(4000)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    found = interquartile_mean_interval(scores, num_resamples=20_000)
    assert found.low == pytest.approx(low, abs=0.05 * (high - low))
    assert found.high == pytest.approx(high, abs=0.05 * (high - low))


def test_the_difference_is_scipys_bootstrap_of_two_samples() -> None:
    rng = np.random.default_rng(5)
    one, other = rng.normal(2, 1, 10), rng.normal(0, 2, 14)

    def difference(a: Any, b: Any, axis: int = -1) -> Any:
        return trimmed(a, axis) - trimmed(b, axis)

    expected = stats.bootstrap(
        (one, other), difference, n_resamples=20_000, method="percentile", rng=6
    ).confidence_interval
    found = interquartile_mean_difference(one, other, num_resamples=20_000)
    assert found.estimate == pytest.approx(trimmed(one) - trimmed(other), abs=1e-12)
    width = expected.high - expected.low
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.03 * width)


def test_the_interval_covers_the_truth_nearly_as_often_as_it_says() -> None:
    rng, truth, hits = np.random.default_rng(7), 0.0, 0
    for trial in range(400):
        _, low, high = interquartile_mean_interval(rng.normal(size=(20, 2)), num_resamples=400, seed=trial)
        hits += low <= truth <= high
    assert 0.89 < hits / 400 < 0.98  # percentile intervals of few runs are somewhat narrow


def test_a_band_has_the_interval_of_each_point() -> None:
    curves = np.random.default_rng(8).normal(size=(6, 2, 3))
    band = interquartile_mean_band(curves, num_resamples=500, seed=9)
    assert band.estimate.shape == (3,)
    for point in range(3):
        expected = interquartile_mean_interval(curves[..., point], num_resamples=500, seed=9 + point)
        assert (band.estimate[point], band.low[point], band.high[point]) == expected


def test_one_seed_gives_one_interval() -> None:
    scores = np.random.default_rng(10).normal(size=9)
    assert interquartile_mean_interval(scores, seed=1) == interquartile_mean_interval(scores, seed=1)
    assert interquartile_mean_interval(scores, seed=1) != interquartile_mean_interval(scores, seed=2)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
@pytest.mark.parametrize("trials", [1, 2, 10, 137])
def test_the_proportions_interval_is_scipys_wilson(confidence: float, trials: int) -> None:
    for successes in range(trials + 1):
        expected = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
        found = proportion_interval(successes, trials, confidence=confidence)
        assert found == pytest.approx((successes / trials, expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: interquartile_mean([]), ValueError, "at least one run"),
        (lambda: interquartile_mean([1.0, math.nan]), ValueError, r"scores\[1\] is nan"),
        (lambda: interquartile_mean_interval(np.zeros((2, 2, 2))), ValueError, r"\[runs, tasks\]"),
        (lambda: interquartile_mean_interval([1.0], confidence=1.0), ValueError, "confidence"),
        (lambda: interquartile_mean_interval([1.0], num_resamples=0), ValueError, "num_resamples"),
        (lambda: interquartile_mean_difference(np.zeros((3, 2)), np.zeros((3, 1))), ValueError, "2 tasks"),
        (lambda: interquartile_mean_band([1.0, 2.0]), ValueError, r"\[runs, points\]"),
        (lambda: proportion_interval(3, 2), ValueError, "successes=3"),
        (lambda: proportion_interval(0, 0), ValueError, "trials=0"),
        (lambda: proportion_interval(0.5, 2), TypeError, "successes"),  # type: ignore[arg-type]
    ],
)
def test_refused_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
