"""Random predictions, against the audits' definitions sample by sample: `make fuzz`. No product is in an oracle."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch

from rlsmooth.audits import (
    accuracy,
    adaptive_calibration_error,
    average_mean_absolute_error,
    brier_score,
    calibration_error,
    classwise_calibration_error,
    confidence_gap,
    distance_at_k,
    fit_temperature,
    interquartile_mean,
    interquartile_mean_difference,
    interquartile_mean_interval,
    mean_absolute_error,
    mean_logit_margin,
    mistake_severity,
    negative_log_likelihood,
    proportion_interval,
    ranked_probability_score,
    reliability_bins,
    risk_coverage,
)

CASES = 300


def close(found: object, exact: float, tolerance: float = 1e-9) -> None:
    number = float(found)  # type: ignore[arg-type]
    assert math.isnan(number) == math.isnan(exact), (number, exact)
    assert math.isnan(exact) or abs(number - exact) <= tolerance * (1 + abs(exact)), (number, exact)


def binned(
    confidences: list[float], hits: list[int], weights: list[float], bins: int
) -> list[tuple[float, float, float]]:
    """(weight, mean confidence, accuracy) of each bin that has any weight."""
    found = []
    edges = np.linspace(0, 1, bins + 1)
    places = [min(int(np.searchsorted(edges, confidence, side="right")) - 1, bins - 1) for confidence in confidences]
    for place in range(bins):
        inside = [row for row, where in enumerate(places) if where == place]
        weight = math.fsum(weights[row] for row in inside)
        if weight:
            mean = math.fsum(weights[row] * confidences[row] for row in inside) / weight
            found.append((weight, mean, math.fsum(weights[row] * hits[row] for row in inside) / weight))
    return found


def test_calibration(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(CASES):
        rows, bins = rng.randint(1, 60), rng.choice([1, 2, 15, rng.randint(1, 30)])
        grid = rng.random() < 0.5
        confidences = [rng.randrange(17) / 16 if grid else rng.choice([0.0, 1.0, rng.random()]) for _ in range(rows)]
        hits = [rng.randrange(2) for _ in range(rows)]
        weights = [rng.choice([0.0, 1.0, rng.uniform(0, 4)]) for _ in range(rows)]
        weights[0] += 1
        arrays = rng.random() < 0.5
        given = [np.array(confidences), np.array(hits), np.array(weights)]
        c, h, w = given if arrays else [torch.from_numpy(one) for one in given]
        parts = binned(confidences, hits, weights, bins)
        total = math.fsum(weights)
        gaps = [(weight / total, abs(mean - right)) for weight, mean, right in parts]
        close(calibration_error(c, h, num_bins=bins, weights=w), math.fsum(p * g for p, g in gaps))
        close(
            calibration_error(c, h, num_bins=bins, weights=w, norm="l2"),
            math.sqrt(math.fsum(p * g * g for p, g in gaps)),
        )
        close(calibration_error(c, h, num_bins=bins, weights=w, norm="max"), max(g for _, g in gaps))
        counts = reliability_bins(c, h, num_bins=bins, weights=w).counts
        assert sorted(one for one in counts.tolist() if one) == pytest.approx(sorted(part[0] for part in parts))
        gap = math.fsum(x * (a - b) for x, a, b in zip(weights, confidences, hits, strict=True)) / total
        close(confidence_gap(c, h, weights=w), gap)
        # Quantile bins, the quantiles as exact fractions
        exact, quantiles = [Fraction(one) for one in confidences], []
        ordered = sorted(exact)
        for cut in range(1, bins):
            place, rest = divmod(cut * (rows - 1), bins)
            low, high = ordered[place], ordered[min(place + 1, rows - 1)]
            quantiles.append(low + (high - low) * Fraction(rest, bins))
        if grid and bins & (bins - 1) == 0:  # exact in binary too
            groups: dict[int, list[int]] = {}
            for row, one in enumerate(exact):
                groups.setdefault(sum(one >= quantile for quantile in quantiles), []).append(row)
            error = math.fsum(
                abs(math.fsum(confidences[row] - hits[row] for row in group)) for group in groups.values()
            )
            close(adaptive_calibration_error(c, h, num_bins=bins), error / rows)
        order = sorted(range(rows), key=lambda row: -confidences[row])
        risks, wrong = [], 0.0
        while order:
            tied = [row for row in order if confidences[row] == confidences[order[0]]]
            share = sum(1 - hits[row] for row in tied) / len(tied)
            for _ in tied:
                wrong += share
                risks.append(wrong / (len(risks) + 1))
            order = order[len(tied) :]
        found = risk_coverage(c, h)
        assert found.risk.tolist() == pytest.approx(risks)
        close(found.area, math.fsum(risks) / rows)


def test_scores(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(CASES):
        rows, k = rng.randint(1, 30), rng.randint(2, 7)
        logits = np.array([[rng.gauss(0, 3) + rng.choice([0, 1e4]) for _ in range(k)] for _ in range(rows)])
        logits -= rng.choice([0, 1]) * logits.max(-1, keepdims=True)
        labels = np.array([rng.randrange(k) for _ in range(rows)])
        weights = np.array([rng.choice([0.0, 1.0, rng.uniform(0, 3)]) for _ in range(rows)])
        weights[0] += 1
        p = np.exp(logits - logits.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)

        def mean(values: list[float], weights: np.ndarray = weights) -> float:
            return math.fsum(w * v for w, v in zip(weights, values, strict=True) if w) / math.fsum(weights)

        best, each = logits.argmax(-1), range(rows)
        close(accuracy(logits, labels, weights=weights), mean([float(best[row] == labels[row]) for row in each]))
        onehot = np.eye(k)[labels]
        close(
            brier_score(p, labels, weights=weights), mean([float(((p[row] - onehot[row]) ** 2).sum()) for row in each])
        )
        tops = logits.max(-1)
        logs = [
            math.log(math.fsum(math.exp(one - tops[row]) for one in logits[row])) + tops[row] - logits[row, labels[row]]
            for row in each
        ]
        close(negative_log_likelihood(logits, labels, weights=weights), mean(logs))
        margins = [float(logits[row, labels[row]] - np.delete(logits[row], labels[row]).mean()) for row in each]
        close(mean_logit_margin(logits, labels, weights=weights), mean(margins), 1e-8)
        steps = [float(((p[row].cumsum() - (np.arange(k) >= labels[row])) ** 2)[:-1].sum()) for row in each]
        close(ranked_probability_score(p, labels, weights=weights), mean(steps))
        costs = np.array([[rng.uniform(0, 5) * (i != j) for j in range(k)] for i in range(k)])
        errors = [float(costs[labels[row], best[row]]) for row in each if best[row] != labels[row]]
        close(mistake_severity(best, labels, costs), math.fsum(errors) / len(errors) if errors else math.nan)
        many = rng.randint(1, k)
        nearest = np.argsort(-logits, axis=-1, kind="stable")[:, :many]
        close(distance_at_k(logits, labels, costs, k=many), float(costs[labels[:, None], nearest].mean()))
        far = abs(best - labels)
        close(mean_absolute_error(best, labels), float(far.mean()), 1e-6)
        by_class = [float(far[labels == one].mean()) for one in np.unique(labels)]
        close(average_mean_absolute_error(best, labels, num_classes=k), sum(by_class) / len(by_class), 1e-6)
        bins = rng.randint(1, 20)
        whole = [
            binned(p[:, one].tolist(), (labels == one).astype(int).tolist(), [1.0] * rows, bins) for one in range(k)
        ]
        error = sum(weight * abs(a - b) for parts in whole for weight, a, b in parts) / rows / k
        close(classwise_calibration_error(p, labels, num_bins=bins), error)


def test_temperatures(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(CASES // 10):
        logits = rng.normal(size=(80, 4)) * rng.uniform(0.1, 20)
        labels = np.array(
            [rng.choice(4, p=row) for row in torch.from_numpy(logits).div(rng.uniform(1, 9)).softmax(-1).numpy()]
        )

        def loss(log_t: float, logits: np.ndarray = logits, labels: np.ndarray = labels) -> float:
            x = logits / math.exp(log_t)
            x = x - x.max(-1, keepdims=True)
            return float((np.log(np.exp(x).sum(-1)) - x[np.arange(80), labels]).mean())

        found = math.log(float(fit_temperature(logits, labels)))
        assert all(loss(found) <= loss(one) + 1e-12 for one in np.linspace(math.log(1e-3), math.log(1e3), 400))


def test_statistics_of_runs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(CASES):
        runs = int(rng.integers(3, 16))
        scores, other = rng.normal(size=runs) * 10.0 ** rng.integers(-5, 6), rng.normal(size=int(rng.integers(3, 16)))
        ordered = sorted(scores.tolist())
        middle = ordered[runs // 4 : runs - runs // 4]
        wanted = math.fsum(middle) / len(middle)
        close(interquartile_mean(scores), wanted, 1e-12)
        found = interquartile_mean_interval(scores, num_resamples=200)
        assert found.low <= found.estimate <= found.high or runs >= 10
        assert found.method == ("percentile bootstrap" if runs >= 10 else "t interval of few runs")
        if runs < 10:  # it moves and grows with the scores
            moved = interquartile_mean_interval(3 * scores - 7)
            assert tuple(moved) == pytest.approx([3 * one - 7 for one in found], rel=1e-9, abs=1e-9)
        gap = interquartile_mean_difference(scores, other, num_resamples=200)
        back = interquartile_mean_difference(other, scores, num_resamples=200)
        if min(runs, len(other)) < 10:
            assert tuple(gap) == pytest.approx((-back.estimate, -back.high, -back.low), rel=1e-9)
        trials = int(rng.integers(1, 60))
        hits = int(rng.integers(0, trials + 1))
        share = proportion_interval(hits, trials)
        for bound in (share.low, share.high):  # Wilson: the score test is at its limit there
            if 0 < bound < 1:
                assert abs(share.estimate - bound) == pytest.approx(
                    1.959963984540054 * math.sqrt(bound * (1 - bound) / trials)
                )
