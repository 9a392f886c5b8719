"""Drawings show what was given; interquartile means and intervals against scipy's own."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy import stats

from rlsmooth.audits import (
    interquartile_mean,
    interquartile_mean_band,
    interquartile_mean_difference,
    interquartile_mean_interval,
    proportion_interval,
    reliability_bins,
    risk_coverage,
)
from rlsmooth.audits.calibration import diagram_bins
from rlsmooth.audits.figures import (
    draw_entropy_histogram,
    draw_reliability,
    draw_risk_coverage,
    draw_target_matrix,
    new_figure,
)
from support import assert_raises


def test_a_reliability_diagram_shows_the_filled_bins() -> None:
    bins = reliability_bins(torch.tensor([0.1, 0.7, 0.9]), torch.tensor([False, True, False]), num_bins=5)
    figure, axes = new_figure()
    draw_reliability(axes, bins, ece=0.25)
    policy = next(line for line in axes.lines if "ECE 0.250" in str(line.get_label()))
    x, y = policy.get_data()
    np.testing.assert_allclose(np.asarray(x), [0.1, 0.7, 0.9], rtol=1e-6)
    np.testing.assert_allclose(np.asarray(y), [0.0, 1.0, 0.0])
    heights = [patch.get_height() for patch in axes.patches]  # type: ignore[attr-defined]
    assert sum(heights) == pytest.approx(1.0)
    figure.canvas.draw()


@pytest.mark.parametrize(("size", "written"), [(3, 9), (15, 0)])
def test_a_target_matrix_is_written_into_its_cells_while_they_are_few(size: int, written: int) -> None:
    matrix = torch.eye(size) * 0.9 + 0.1 / size
    figure, axes = new_figure()
    draw_target_matrix(axes, matrix, names=[f"action {place}" for place in range(size)])
    (image,) = axes.images
    np.testing.assert_allclose(np.asarray(image.get_array()), matrix.numpy(), rtol=1e-6)
    assert len(axes.texts) == written
    assert axes.get_yticklabels()[1].get_text() == "action 1"
    figure.canvas.draw()


def test_an_entropy_histogram_counts_every_state() -> None:
    entropies = torch.tensor([0.0, 0.1, 0.1, 0.69])
    figure, axes = new_figure()
    draw_entropy_histogram(axes, entropies, maximum=float(np.log(2)))
    assert sum(patch.get_height() for patch in axes.patches) == 4  # type: ignore[attr-defined]
    draw_entropy_histogram(axes, torch.tensor([-1.5, 2.0]))  # differential entropies may be negative
    assert axes.get_xlim()[0] < -1.5
    figure.canvas.draw()


def test_importing_needs_no_matplotlib() -> None:
    code = "import sys, rlsmooth.audits.figures; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- classifiers
def test_risk_coverage_curves_share_axes() -> None:
    hits = torch.tensor([True, True, False, True])
    curves = {
        "good": risk_coverage(torch.tensor([0.9, 0.8, 0.1, 0.7]), hits),
        "bad": risk_coverage(torch.tensor([0.1, 0.2, 0.9, 0.3]), hits),
    }
    figure, axes = new_figure()
    for name, curve in curves.items():
        draw_risk_coverage(axes, curve, label=name, colour="black")
    assert len(axes.lines) == 2
    for line, curve in zip(axes.lines, curves.values(), strict=True):
        x, y = line.get_data()
        np.testing.assert_allclose(np.asarray(x), [0.25, 0.5, 0.75, 1.0])
        np.testing.assert_allclose(np.asarray(y), curve.risk.numpy())
    legend = axes.get_legend()
    written = [text.get_text() for text in legend.get_texts()]
    assert written == ["good (AURC 0.0625)", f"bad (AURC {curves['bad'].area:.4f})"]
    assert axes.get_ylim()[0] == 0
    figure.canvas.draw()


def test_the_curves_of_nothing_are_empty() -> None:
    _, axes = new_figure()
    draw_reliability(axes, reliability_bins(torch.zeros(0), torch.zeros(0)))
    assert len(axes.lines[1].get_xdata()) == 0  # type: ignore[arg-type]
    figure, axes = new_figure()
    draw_risk_coverage(axes, risk_coverage(torch.zeros(0), torch.zeros(0)))
    assert len(axes.lines[0].get_xdata()) == 0  # type: ignore[arg-type]
    assert axes.lines[0].get_label() == "model"
    figure.canvas.draw()


def test_reliability_is_named_and_coloured() -> None:
    _, axes = new_figure()
    bins = reliability_bins(torch.tensor([0.3, 0.7]), torch.tensor([False, True]))
    draw_reliability(axes, bins, label="classifier", colour="#ff0000")
    line = axes.lines[-1]
    assert (line.get_label(), line.get_color()) == ("classifier", "#ff0000")
    assert_raises(TypeError, None, draw_reliability, axes, bins, 0.1)


# ---- interquartile means and intervals


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
    tasks = np.tile([0.0, 1.0, 5.0], (12, 1))
    found = interquartile_mean_interval(tasks)
    assert found.low == found.estimate == found.high
    # As runs of a single task the same 36 scores do vary
    assert interquartile_mean_interval(tasks.ravel()).low < found.low


def test_several_tasks_against_a_plain_loop() -> None:
    scores = np.random.default_rng(3).normal(size=(12, 4)) + np.arange(4)
    rng = np.random.default_rng(4)
    means = [
        trimmed(np.concatenate([rng.choice(column, size=12) for column in scores.T]))  # a task at a time
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


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("runs", [3, 4, 7, 9])
def test_of_few_runs_it_is_students_interval_widened(runs: int, confidence: float) -> None:
    scores = np.random.default_rng(runs).exponential(size=runs)
    found = interquartile_mean_interval(scores, confidence=confidence)
    middle, half = trimmed(scores), stats.t.interval(confidence, runs - 1, scale=stats.sem(scores))[1]
    assert found == pytest.approx((middle, middle - 1.15 * half, middle + 1.15 * half), rel=1e-8)
    assert found.method == "t interval of few runs"
    assert interquartile_mean_band(scores[:, None]).method == found.method
    one, other = scores, np.random.default_rng(1).normal(size=8)
    welch = stats.ttest_ind(one, other, equal_var=False).confidence_interval(confidence)
    found = interquartile_mean_difference(one, other, confidence=confidence)
    assert found.high - found.low == pytest.approx(1.15 * (welch.high - welch.low), rel=1e-8)


def test_the_result_says_its_method_and_is_a_tuple_of_three() -> None:
    scores = np.random.default_rng(0).normal(size=10)
    found = interquartile_mean_interval(scores)
    assert found.method == interquartile_mean_difference(scores, scores).method == "percentile bootstrap"
    assert interquartile_mean_difference(scores, scores[:9]).method == "t interval of few runs"
    assert interquartile_mean_band(scores[:, None]).method == "percentile bootstrap"
    assert proportion_interval(1, 2).method == "Wilson's score interval"
    for again in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert (again, again.method) == (found, found.method)
        assert len(again) == 3
    assert interquartile_mean_interval([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("runs", [1, 2])
def test_fewer_than_three_runs_have_no_interval(runs: int) -> None:
    few, enough = [float(run) for run in range(runs)], [1.0, 2.0, 3.0]
    message = f"has {runs} runs: an interval needs at least 3"
    assert_raises(ValueError, f"scores {message}", interquartile_mean_interval, few)
    assert_raises(ValueError, f"baseline {message}", interquartile_mean_difference, enough, few)
    assert_raises(ValueError, f"scores {message}", interquartile_mean_band, [[1.0, 2.0]] * runs)
    assert interquartile_mean(few) == np.mean(few)


def test_one_seed_gives_one_interval() -> None:
    scores = np.random.default_rng(10).normal(size=12)
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
        (lambda: interquartile_mean_interval([1.0] * 3, confidence=1.0), ValueError, "confidence"),
        (lambda: interquartile_mean_interval([1.0] * 3, num_resamples=0), ValueError, "num_resamples"),
        (lambda: interquartile_mean_difference(np.zeros((3, 2)), np.zeros((3, 1))), ValueError, "2 tasks"),
        (lambda: interquartile_mean_band([1.0, 2.0]), ValueError, r"\[runs, points\]"),
        (lambda: proportion_interval(3, 2), ValueError, "successes=3"),
        (lambda: proportion_interval(0, 0), ValueError, "trials=0"),
        (lambda: proportion_interval(0.5, 2), TypeError, "successes"),  # type: ignore[arg-type]
    ],
)
def test_refused_arguments(call: Any, error: type[Exception], message: str) -> None:
    assert_raises(error, message, call)


@pytest.mark.parametrize(("rows", "most"), [(1, 1), (38, 10), (299, 10), (300, 15)])
def test_a_diagram_of_few_rows_has_few_points_of_equal_mass_and_no_bars(rows: int, most: int) -> None:
    rng = np.random.default_rng(rows)
    confidences = torch.from_numpy(rng.uniform(0.3, 1, rows))
    bins = diagram_bins(confidences, torch.from_numpy(rng.random(rows) < 0.7))
    axes = Figure().add_subplot()
    draw_reliability(axes, bins)
    points = next(line for line in axes.lines if line.get_marker() == "o").get_xdata()
    words = [text.get_text() for text in axes.get_legend().get_texts()]
    assert any(f"{rows} samples" in word for word in words)
    assert 0 < len(np.asarray(points)) <= most
    if rows < 300:
        assert not axes.patches
        assert np.ptp(bins.counts[bins.counts > 0].numpy()) <= 1
    else:
        assert axes.patches
        assert any("share of the" in word for word in words)
