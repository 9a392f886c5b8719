"""Calibration by group, against fairlearn, relplot, netcal, scipy and numpy's double loops."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from fairlearn.metrics import MetricFrame, mean_prediction
from netcal.metrics import ECE
from scipy import integrate, optimize, stats
from torch import Tensor

from rlsmooth.audits import (
    calibration_error,
    confidence_gap,
    debiased_calibration_error,
    fairlearn_metric,
    fairness,
    fit_group_temperatures,
    fit_multicalibration,
    fit_temperature,
    gap_disparity,
    group_calibration,
    kernel_calibration_error,
    negative_log_likelihood,
    predicted_gap,
    smooth_calibration_error,
)
from rlsmooth.audits.intervals import student_quantile
from support import assert_raises

with warnings.catch_warnings():  # it turns warnings on that everybody has off
    from relplot import smECE

MEASURES: list[Any] = [smooth_calibration_error, kernel_calibration_error, debiased_calibration_error]


def sample(rows: int, seed: int = 0, slope: float = 2.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidences, hits and groups: "A" is large and "B" small."""
    rng = np.random.default_rng(seed)
    z = np.abs(rng.normal(0, 2, rows))
    hits = (rng.random(rows) < 1 / (1 + np.exp(-z))).astype(float)
    return 1 / (1 + np.exp(-slope * z)), hits, rng.choice(["A", "B"], rows, p=[0.8, 0.2])


# ---- the measures


@pytest.mark.parametrize("rows", [2, 60, 3000])
@pytest.mark.parametrize("slope", [0.4, 1.0, 3.0])
def test_the_smooth_error_is_relplots(rows: int, slope: float) -> None:
    confidences, hits, _ = sample(rows, seed=rows, slope=slope)
    confidences *= 0.995  # on its grid of 1,001 a confidence that rounds to 1 is reflected into half its weight
    assert float(smooth_calibration_error(confidences, hits)) == pytest.approx(smECE(confidences, hits), abs=1e-3)


def test_the_smooth_error_is_the_width_at_which_the_papers_integral_is_that_width() -> None:
    confidences, hits, _ = sample(80, seed=3, slope=3.0)
    weights = np.random.default_rng(0).random(80)
    places = np.linspace(0, 1, 4_001)

    def excess(width: float) -> float:
        images = [confidences + shift for shift in (-2, 0, 2)] + [shift - confidences for shift in (-2, 0, 2)]
        kernel = sum(stats.norm.pdf(places[:, None], image, width) for image in images)  # reflected at 0 and 1
        return float(
            integrate.trapezoid(np.abs(kernel @ (weights * (confidences - hits))), places) / weights.sum() - width
        )

    found = float(smooth_calibration_error(confidences, hits, weights=weights))
    assert excess(found - 1e-4) > 0 > excess(found + 1e-4)


@pytest.mark.parametrize("bandwidth", [0.01, 0.2, 5.0])
@pytest.mark.parametrize("rows", [2, 3, 70])
def test_the_kernel_error_is_the_mean_over_pairs(bandwidth: float, rows: int) -> None:
    confidences, hits, _ = sample(rows, seed=rows)
    confidences[1] = confidences[0]  # a tie
    weights = np.random.default_rng(1).integers(0, 4, rows) + np.array([1, 1] + [0] * (rows - 2))
    pairs = [(i, j) for i in range(rows) for j in range(i)]
    kernel = [math.exp(-abs(confidences[i] - confidences[j]) / bandwidth) for i, j in pairs]
    gaps, shares = confidences - hits, np.array([weights[i] * weights[j] for i, j in pairs])
    wanted = np.average([gaps[i] * gaps[j] * k for (i, j), k in zip(pairs, kernel, strict=True)], weights=shares)
    found = kernel_calibration_error(confidences, hits, bandwidth=bandwidth, weights=weights)
    assert float(found) == pytest.approx(wanted, abs=1e-14)
    root = kernel_calibration_error(confidences, hits, bandwidth=bandwidth, weights=weights, root=True)
    assert float(root) == pytest.approx(math.copysign(math.sqrt(abs(wanted)), wanted), abs=1e-9)


def test_the_debiased_error_takes_the_variance_of_each_bins_mean_off() -> None:
    confidences, hits, _ = sample(300, seed=5)
    wanted = 0.0
    for low in np.arange(15) / 15:
        gaps = (confidences - hits)[(confidences >= low) & (confidences < low + 1 / 15)]
        if len(gaps) > 1:
            wanted += len(gaps) / 300 * (gaps.mean() ** 2 - gaps.var(ddof=1) / len(gaps))
    assert float(debiased_calibration_error(confidences, hits)) == pytest.approx(wanted, abs=1e-12)
    square = float(calibration_error(confidences, hits, norm="l2")) ** 2
    assert wanted < square


@pytest.mark.parametrize("measure", [kernel_calibration_error, debiased_calibration_error])
def test_without_bias_a_calibrated_model_has_0_on_average(measure: Any) -> None:
    found = [float(measure(*sample(30, seed=seed, slope=1.0)[:2])) for seed in range(400)]
    assert abs(np.mean(found)) < 3 * np.std(found) / 20
    assert min(found) < 0 < max(found)


@pytest.mark.parametrize("measure", MEASURES)
def test_edges_of_the_measures(measure: Any, device: torch.device) -> None:
    confidences, hits, _ = (torch.as_tensor(each, device=device) for each in (*sample(40)[:2], 0))
    found = measure(confidences, hits)
    padded = torch.cat((confidences, confidences.new_tensor([math.nan, 0.5]))), torch.cat((hits, hits[:2]))
    weights = torch.ones(42, device=device)
    weights[-2:] = 0
    assert float(measure(*padded, weights=weights)) == pytest.approx(float(found), abs=1e-12)
    assert measure(confidences.float(), hits.bool()).dtype == torch.float32
    assert measure(confidences.float(), hits.bool()).device == confidences.device
    for bad in (confidences[:0], confidences + 1, confidences * math.nan):
        assert measure(bad, hits[: len(bad)]).isnan()
    assert measure(*padded, weights=0 * weights).isnan()
    assert_raises(ValueError, "hits has shape", measure, confidences, hits[1:])
    assert float(measure(torch.ones(20), torch.ones(20))) == pytest.approx(0, abs=1e-9)


# ---- the table


@pytest.mark.parametrize("measure", [confidence_gap, calibration_error, smooth_calibration_error])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_groups_are_fairlearns(measure: Any, weighted: bool) -> None:
    confidences, hits, groups = sample(900)
    weights = np.random.default_rng(0).random(900) if weighted else None
    given = None if weights is None else {"sample_weight": weights}
    frame = MetricFrame(
        metrics=fairlearn_metric(measure),
        y_true=hits,
        y_pred=confidences,
        sensitive_features=groups,
        sample_params=given,
    )
    own = [  # of fairlearn alone
        MetricFrame(
            metrics=mean_prediction, y_true=hits, y_pred=column, sensitive_features=groups, sample_params=given
        ).by_group
        for column in (confidences, hits)
    ]
    column = {"confidence_gap": "gap", "calibration_error": "ece", "smooth_calibration_error": "smooth_ece"}
    for line in group_calibration(confidences, hits, groups, weights=weights):
        assert getattr(line, column[measure.__name__]) == pytest.approx(frame.by_group[line.group], abs=1e-6)
        found = line.confidence, line.accuracy, line.gap
        share, hit = (table[line.group] for table in own)
        assert found == pytest.approx((share, hit, share - hit), abs=1e-6)


def test_the_table_group_by_group() -> None:
    confidences, hits, groups = sample(900)
    table = group_calibration(torch.from_numpy(confidences), torch.from_numpy(hits).bool(), pandas.Series(groups))
    assert [line.group for line in table] == ["A", "B"]
    for line in table:
        c, h = confidences[groups == line.group], hits[groups == line.group]
        assert (line.rows, line.accuracy, line.confidence) == (len(c), pytest.approx(h.mean()), pytest.approx(c.mean()))
        assert line.ece == pytest.approx(ECE(15).measure(c, h), abs=1e-6)
        assert line.skce == pytest.approx(float(kernel_calibration_error(c, h)), abs=1e-15)
        assert line.gap_interval.estimate == line.gap


@pytest.mark.parametrize("pseudo", [0, 1, 2])
def test_the_intervals_are_scipys_with_pseudo_rows(monkeypatch: pytest.MonkeyPatch, pseudo: int) -> None:
    monkeypatch.setattr(fairness, "_PSEUDO_ROWS", pseudo)
    confidences, hits, groups = sample(200)
    parts = []
    for name in ("A", "B"):
        c, h = confidences[groups == name], hits[groups == name]
        parts.append(np.concatenate((c - h, [c.mean() - 1, c.mean()] * pseudo)))
    found = gap_disparity(confidences, hits, groups, confidence=0.9, num_resamples=1)
    wanted = stats.ttest_ind(parts[1], parts[0], equal_var=False).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-9)
    assert (found.group, found.reference) == ("B", "A")
    assert found == gap_disparity(*sample(200), reference="A", confidence=0.9, num_resamples=1)
    own = stats.ttest_1samp(parts[0], 0).confidence_interval(0.95)
    line = group_calibration(confidences, hits, groups)[0]
    assert line.gap_interval[1:] == pytest.approx((own.low, own.high), abs=1e-9)


@pytest.mark.parametrize("freedom", [1.0, 1.7, 30.4, 9_999.5, 1e6])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999, 0.9999])
def test_students_quantile_is_scipys(freedom: float, level: float) -> None:
    assert student_quantile(level, freedom) == pytest.approx(stats.t.ppf((1 + level) / 2, freedom), rel=1e-8)


def test_equal_weights_change_nothing_and_the_sign_turns_with_the_reference() -> None:
    confidences, hits, groups = sample(300)
    plain = gap_disparity(confidences, hits, groups, num_resamples=50)
    weighted = gap_disparity(confidences, hits, groups, weights=np.full(300, 7.0), num_resamples=50)
    turned = gap_disparity(confidences, hits, groups, reference="B", num_resamples=50)
    assert weighted == pytest.approx(plain, abs=1e-12)
    assert weighted.p_value == plain.p_value == turned.p_value
    assert (turned.estimate, -turned.high, -turned.low) == pytest.approx((-plain.estimate, plain.low, plain.high))
    assert plain.estimate == pytest.approx(
        np.mean((confidences - hits)[groups == "B"]) - np.mean((confidences - hits)[groups == "A"])
    )


def test_the_bootstrap_comes_near_welch_and_repeats_itself() -> None:
    confidences, hits, groups = sample(1500)
    welch = gap_disparity(confidences, hits, groups, num_resamples=1)
    for weights in (None, np.ones(1500)):
        found = gap_disparity(
            confidences, hits, groups, method="bootstrap", num_resamples=1000, seed=1, weights=weights
        )
        assert found == pytest.approx(welch, abs=0.008)
    again = gap_disparity(confidences, hits, groups, method="bootstrap", num_resamples=1000, seed=1)
    assert again == found
    assert (found.method, welch.method) == (fairness.BOOTSTRAP, fairness.WELCH)


def test_three_groups_are_compared_with_the_largest() -> None:
    rng = np.random.default_rng(0)
    groups = rng.choice([7, 8, 9], 1200, p=[0.6, 0.2, 0.2])
    confidences = np.full(1200, 0.8)
    hits = (rng.random(1200) < np.where(groups == 9, 0.5, 0.8)).astype(int)
    found = gap_disparity(confidences, hits, torch.from_numpy(groups), num_resamples=200)
    assert (found.group, found.reference, set(found.against)) == (9, 7, {8, 9})
    one = found.against[9]
    assert found == pytest.approx(one, abs=1e-3)  # so far off, it is chosen whatever the noise
    pair = np.isin(groups, (7, 8))
    assert found.against[8] == gap_disparity(confidences[pair], hits[pair], groups[pair], num_resamples=1)
    gaps = [line.gap for line in group_calibration(confidences, hits, groups)]
    assert found.spread == pytest.approx(max(gaps) - min(gaps))
    assert found.p_value == 1 / 201
    fair = (rng.random(1200) < 0.8).astype(int)
    near = gap_disparity(confidences, fair, groups, num_resamples=200)
    one = near.against[near.group]
    towards, other = sorted(zip(near[1:], one[1:], strict=True), key=lambda ends: abs(ends[0] - near.estimate))[::-1]
    assert abs(towards[0] - one.estimate) > 1.1 * abs(towards[1] - one.estimate)  # it allows for the choice
    assert other[0] == pytest.approx(other[1], abs=1e-3)
    assert near.method == "Welch's t of the furthest of 2 groups"
    assert near.p_value > 0.05


def test_the_permutation_test_errs_as_often_as_it_says_with_groups_of_unequal_spread() -> None:
    # The small group's hits vary five times as much. The bare spread of the gaps would find a difference in 25 %.
    rng, found = np.random.default_rng(0), []
    groups = np.array(["A"] * 200 + ["B"] * 40)
    confidences = np.where(groups == "A", 0.95, 0.6)
    for seed in range(150):
        hits = rng.random(240) < confidences
        found.append(gap_disparity(confidences, hits, groups, num_resamples=60, seed=seed).p_value)
    assert np.mean(np.array(found) <= 0.05) < 0.1


# ---- edges


@pytest.mark.parametrize("rows", [0, 1])
def test_a_group_of_no_or_one_row_is_listed(rows: int) -> None:
    confidences, hits, groups = sample(60)
    names = pandas.Categorical(np.where(np.arange(60) < rows, "C", groups), categories=["A", "B", "C", "D"])
    table = {line.group: line for line in group_calibration(confidences, hits, names)}
    assert list(table) == ["A", "B", "C", "D"]
    assert table["C"].rows == rows
    assert math.isnan(table["C"].gap) == (rows == 0)
    assert all(math.isnan(each) for each in (*table["C"].gap_interval[1:], table["C"].skce, table["C"].ece))
    found = gap_disparity(confidences, hits, names, num_resamples=10)
    assert math.isnan(found.against["C"].low)
    assert set(found.against) == {"B", "C", "D"}
    assert math.isfinite(found.spread + found.p_value + found.low)
    no_weight = group_calibration(confidences, hits, groups, weights=(groups == "A").astype(float))
    assert [line.rows for line in no_weight] == [int((groups == "A").sum()), 0]


def test_one_group_has_no_disparity() -> None:
    found = gap_disparity([0.8, 0.9], [1, 0], ["A", "A"])
    assert (found.group, found.reference, found.against) == (None, "A", {})
    assert all(math.isnan(each) for each in (*found, found.spread, found.p_value))


def test_where_all_hit_the_interval_still_has_a_width() -> None:
    found = gap_disparity([1.0] * 40, [1] * 40, ["A", "B"] * 20, num_resamples=20)
    assert found.estimate == 0
    assert -0.2 < found.low < -0.03 < 0.03 < found.high < 0.2
    assert found.p_value == 1
    assert group_calibration([1.0] * 40, [1] * 40, ["A"] * 40)[0].ece == 0


def test_few_rows_have_no_error_that_noise_makes() -> None:
    confidences, hits, groups = sample(60)
    for line in group_calibration(confidences, hits, groups, min_rows=30):
        assert math.isnan(line.ece) == math.isnan(line.smooth_ece) == (line.rows < 30)
        assert math.isfinite(line.skce + line.gap_interval.low)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"confidences": [0.5, 1.2]}, ValueError, r"confidences\[1\]=1.2 must be a probability"),
        ({"confidences": [1, 0]}, TypeError, "confidences has dtype"),
        ({"hits": [0, 2]}, ValueError, r"hits\[1\]=2 must be 0 or 1"),
        ({"hits": [0, 1, 1]}, ValueError, "hits has shape"),
        ({"weights": [1.0, -1.0]}, ValueError, r"weights\[1\]=-1 must be 0 or more"),
        ({"groups": ["A"]}, ValueError, "groups has shape"),
        ({"groups": ["A", None]}, TypeError, r"groups\[1\] is None"),
        ({"groups": [0.0, math.nan]}, TypeError, r"groups\[1\] is nan"),
        ({"groups": pandas.array(["A", None], dtype="string")}, TypeError, r"groups\[1\] is <NA>"),
        ({"reference": "C"}, ValueError, "reference='C' is none of the groups: 'A', 'B'"),
        ({"measure": "ece"}, ValueError, "measure='ece' has no interval: a calibration error is never negative"),
        ({"method": "ece"}, ValueError, "method='ece' is not known"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], error: Any, message: str) -> None:
    given: dict[str, Any] = {"confidences": [0.5, 0.9], "hits": [0, 1], "groups": ["A", "B"], **change}
    with pytest.raises(error, match=message):
        gap_disparity(**given)


def test_the_adapter_tells_swapped_arguments() -> None:
    metric = fairlearn_metric(confidence_gap)
    assert metric.__name__ == "confidence_gap"
    with pytest.raises(TypeError, match="y_pred has dtype int64: it is the confidences"):
        metric(np.array([0.9, 0.8]), np.array([0, 1]))
    with pytest.raises(ValueError, match=r"y_true holds .*0\.9.*: it is whether each sample hit"):
        metric(np.array([0.9, 0.8]), np.array([0.0, 1.0]))


# ---- smoothing, and what is done about a gap


@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.2])
def test_the_predicted_gap_is_that_of_the_populations_optimum(num_classes: int, alpha: float) -> None:
    rng = np.random.default_rng(num_classes)
    truth = rng.dirichlet(np.ones(num_classes), 50)  # p(y|x) of 50 x, each with its share of the population
    share = rng.dirichlet(np.ones(50))
    logits = torch.zeros(50, num_classes, dtype=torch.float64, requires_grad=True)
    target = torch.from_numpy((1 - alpha) * truth + alpha / num_classes)  # the expectation of the smoothed one-hots
    for _ in range(200):  # Newton's fixed point: the optimum of the smoothed cross-entropy, found without its formula
        gradient = torch.autograd.grad(-(target * logits.log_softmax(-1)).sum(), logits)[0]
        with torch.no_grad():
            logits -= gradient / logits.softmax(-1)
    smoothed = logits.detach().softmax(-1).numpy()
    accuracy = share @ truth.max(-1)
    skewed = truth.max(-1)  # without smoothing the optimum is the truth, its gap 0
    wanted = share @ smoothed.max(-1) - accuracy
    assert predicted_gap(share @ skewed - accuracy, share @ skewed, alpha, num_classes) == pytest.approx(
        wanted, abs=1e-9
    )
    assert_raises(ValueError, "alpha=1.5", predicted_gap, 0.0, 0.5, 1.5, 2)


def logits_of_groups(rows: int = 600, num_classes: int = 3) -> tuple[Tensor, Tensor, list[str]]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(rows, num_classes, generator=generator, dtype=torch.float64)
    groups = ["A" if row % 3 else "B" for row in range(rows)]
    slope = torch.tensor([0.9 if name == "A" else 0.3 for name in groups]).unsqueeze(-1)
    return logits, torch.multinomial((slope * logits).softmax(-1), 1, generator=generator)[:, 0], groups


def test_without_shrinkage_each_group_has_its_own_temperature() -> None:
    logits, labels, groups = logits_of_groups()
    fitted = fit_group_temperatures(logits, labels, groups, shrink=0)
    for name in ("A", "B"):
        here = torch.tensor([each == name for each in groups])
        assert fitted.temperatures[name] == pytest.approx(float(fit_temperature(logits[here], labels[here])), rel=1e-9)
    assert fitted.temperatures["A"] < 1.5 < 2.5 < fitted.temperatures["B"]
    pooled = float(fit_temperature(logits, labels))
    strong = fit_group_temperatures(logits, labels, groups, shrink=1e9)
    assert list(strong.temperatures.values()) == pytest.approx([pooled] * 2, rel=1e-5)


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("shrink", [0.0, 20.0])
def test_temperature_and_bias_are_scipys(num_classes: int, shrink: float) -> None:
    logits, labels, groups = logits_of_groups(num_classes=num_classes)
    fitted = fit_group_temperatures(logits, labels, groups, bias=True, shrink=shrink)
    top = torch.nn.functional.one_hot(logits.argmax(-1), num_classes)
    for name in ("A", "B"):
        weight = torch.tensor([each == name for each in groups], dtype=torch.float64) + shrink / len(groups)

        def loss(point: np.ndarray, weight: Tensor = weight) -> float:
            return float(negative_log_likelihood(logits * point[0] + top * point[1], labels, weights=weight))

        best = optimize.minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14})
        assert (1 / fitted.temperatures[name], fitted.biases[name]) == pytest.approx(best.x, abs=1e-5)
    if shrink == 0:  # of the class chosen before, the gap is 0 in each group
        chosen = fitted.calibrated(logits, groups).softmax(-1).gather(-1, logits.argmax(-1, keepdim=True))[:, 0]
        for line in group_calibration(chosen, logits.argmax(-1) == labels, groups):
            assert line.gap == pytest.approx(0, abs=1e-9)


def test_groups_that_have_nothing_to_fit() -> None:
    logits, labels, groups = logits_of_groups(30)
    names = pandas.Categorical(groups, categories=["A", "B", "C"])
    alone = fit_group_temperatures(logits, labels, names, shrink=0, bias=True)
    assert math.isnan(alone.temperatures["C"])
    assert math.isnan(alone.biases["C"])
    pooled = float(fit_temperature(logits, labels))
    assert fit_group_temperatures(logits, labels, names).temperatures["C"] == pytest.approx(pooled, rel=1e-9)
    with pytest.raises(ValueError, match="groups has 'D', which was not fitted: use 'A', 'B', 'C'"):
        alone.calibrated(logits[:1], ["D"])
    assert alone.calibrated(logits[:1].float(), ["A"]).dtype == torch.float32
    with pytest.raises(ValueError, match=r"logits\[2\]=.*nan"):
        fit_group_temperatures(torch.where(torch.arange(30)[:, None] == 2, math.nan, logits), labels, names)
    right = fit_group_temperatures(logits, logits.argmax(-1), groups, bias=True)  # all right
    assert all(math.isfinite(each) for each in (*right.temperatures.values(), *right.biases.values()))


def test_masked_classes_keep_no_probability() -> None:
    logits, labels, groups = logits_of_groups(200)
    wide = torch.cat((logits, torch.full((200, 1), -math.inf)), -1)
    for bias in (False, True):
        narrow = fit_group_temperatures(logits, labels, groups, bias=bias)
        masked = fit_group_temperatures(wide, labels, groups, bias=bias)
        assert masked.temperatures == pytest.approx(narrow.temperatures, rel=1e-9)
        assert masked.biases == pytest.approx(narrow.biases, abs=1e-9)


def test_multicalibration_leaves_no_cell_off() -> None:
    confidences, hits, groups = sample(3000, slope=3.0)
    fitted = fit_multicalibration(confidences, hits, groups, tolerance=0.002)
    after = fitted.calibrated(confidences, groups)
    level = np.minimum((after * 10).astype(int), 9)
    for name in ("A", "B", None):
        for cell in range(10):
            here = (level == cell) & ((groups == name) | (name is None))
            assert abs((after - hits)[here].sum()) / 3000 < 0.0021
    before, now = (gap_disparity(values, hits, groups, num_resamples=1) for values in (confidences, after))
    assert abs(now.estimate) < abs(before.estimate) + 0.01
    assert fitted.calibrated(np.array([0.99]), ["new"]).item() < 0.99  # the patches of all samples alone
