"""Uncertainty of a result of a few runs: interquartile means with their intervals, and intervals of proportions.

Scores are numbers on the host, one a run, so these are functions of numpy arrays and not of tensors.

From ten runs on intervals are bootstrapped. The bootstrap of fewer runs is too narrow: where 95 % is said, it covers
the truth 73 % of the time with three runs and 90 % with five. There the interval is Student's t, which covers it 93 to
97 % of the time for normal, exponential and bimodal scores (simulated in `tests/audits/test_coverage.py`). That of ten
and more covers it 92 to 95 % of the time (`scripts/studies/results/gap_coverage.md`). Where runs either succeed or
fail, all of three may do the same by chance: no interval of three scores shows that. Every result says its `method`.

Source: Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice" (the package
`rliable`), whose interquartile mean and stratified bootstrap these are.
"""

from __future__ import annotations

import functools
import math
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from rlsmooth.checks import check_in_range, check_positive_int
from rlsmooth.targets.special import log_incomplete_beta

_TRIMMED = 0.25  # from each end
_FEWEST_RUNS, _FEWEST_RESAMPLED = 3, 10
STUDENT, BOOTSTRAP, WILSON = "t interval of few runs", "percentile bootstrap", "Wilson's score interval"
_WIDENED = 1.15
"""An interquartile mean of normal scores spreads up to 1.1 times as much as their mean; the rest is for skewed ones."""


class _Numbers(NamedTuple):
    estimate: Any
    low: Any
    high: Any


class Interval(_Numbers):
    """An estimate and the interval around it, all in the unit of the scores: a tuple of three numbers.

    Attributes:
        method: how the interval was made, in words.
    """

    estimate: float
    low: float
    high: float
    method: str

    def __new__(cls, estimate: float, low: float, high: float, method: str = "") -> Interval:
        """An interval that says how it was made."""
        made = super().__new__(cls, estimate, low, high)
        made.method = method
        return made


class Band(_Numbers):
    """Estimates `[P]` at P points of training, and the interval around each, all in the unit of the scores.

    Attributes:
        method: how the intervals were made, in words.
    """

    estimate: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    method: str

    def __new__(
        cls, estimate: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64], method: str = ""
    ) -> Band:
        """A band that says how it was made."""
        made = super().__new__(cls, estimate, low, high)
        made.method = method
        return made


def interquartile_mean(scores: ArrayLike) -> float:
    """Return the mean of the middle half: of n scores, the `floor(n / 4)` lowest and highest are left out.

    It is as little moved by one lucky or broken run as the median, and uses more of the runs.

    Args:
        scores: of any shape, at least one; all of them count alike, whichever task they belong to.

    Raises:
        ValueError: there is no score, or one is not finite.

    Examples:
        >>> interquartile_mean([0.0, 1.0, 2.0, 100.0])
        1.5
    """
    return float(_middle_mean(_checked(scores).ravel()))


def interquartile_mean_interval(
    scores: ArrayLike, *, confidence: float = 0.95, num_resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Return the interquartile mean and its interval.

    From ten runs on it is a stratified percentile bootstrap: each task's runs are drawn again with replacement within
    the task (its stratum), so that each resample has as many runs of each task as there were; the interval lies
    between the quantiles of the resamples' interquartile means. Of fewer runs it is `estimate ± 1.15 t s / sqrt(n)`,
    with n scores in all, `s²` the mean over tasks of the variance of a task's scores, and t Student's quantile of
    `n - 1` degrees of freedom (Welch's over several tasks). The winsorised spread, which belongs to trimmed means, is
    blind to the tails where scores are few: it covers less.

    Args:
        scores: `[runs]`, or `[runs, tasks]` with scores that are comparable across tasks.
        confidence: in (0, 1).
        num_resamples: of the bootstrap, at least 1.
        seed: of the resampling: the same scores give the same interval.

    Raises:
        TypeError: a number is none, or not whole.
        ValueError: another shape, fewer than three runs, a score that is not finite, or a number out of range.

    Examples:
        >>> interval = interquartile_mean_interval([1.0, 2.0, 3.0])
        >>> interval.estimate, round(interval.low, 2), round(interval.high, 2), interval.method
        (2.0, -0.86, 4.86, 't interval of few runs')
    """
    values = _by_task(scores)  # [R, T]
    level = check_in_range("confidence", confidence, 0.0, 1.0, low_open=True, high_open=True)
    check_positive_int("num_resamples", num_resamples)
    estimate = float(_middle_mean(values.ravel()))
    if len(values) < _FEWEST_RESAMPLED:
        return _t_interval(estimate, [_spread(values)], level)
    means = _resampled_means(values, num_resamples, np.random.default_rng(seed))
    low, high = _quantiles(means, level)
    return Interval(estimate, float(low), float(high), BOOTSTRAP)


def interquartile_mean_difference(
    scores: ArrayLike,
    baseline: ArrayLike,
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Return the interquartile mean of `scores` minus that of `baseline`, and the interval of that.

    Both are resampled independently, as in `interquartile_mean_interval`; where one of them has fewer than ten runs,
    the interval is Welch's t with the spreads of that function. Runs are not paired: two algorithms that share a seed
    still have nothing in common after a few updates.

    Args:
        scores: `[runs]` or `[runs, tasks]`.
        baseline: of the same form; the number of runs may be another, that of tasks may not.
        confidence: in (0, 1).
        num_resamples: of the bootstrap, at least 1.
        seed: of the resampling.

    Raises:
        TypeError: a number is none, or not whole.
        ValueError: another shape or number of tasks, fewer than three runs, a score that is not finite, or a number
            out of range.

    Examples:
        >>> interquartile_mean_difference([3.0, 3.0, 3.0], [1.0, 1.0, 1.0])
        Interval(estimate=2.0, low=2.0, high=2.0)
    """
    one, other = _by_task(scores), _by_task(baseline, "baseline")
    if one.shape[1] != other.shape[1]:
        raise ValueError(f"scores has {one.shape[1]} tasks and baseline {other.shape[1]}: give the same tasks.")
    level = check_in_range("confidence", confidence, 0.0, 1.0, low_open=True, high_open=True)
    check_positive_int("num_resamples", num_resamples)
    estimate = float(_middle_mean(one.ravel()) - _middle_mean(other.ravel()))
    if min(len(one), len(other)) < _FEWEST_RESAMPLED:
        return _t_interval(estimate, [_spread(one), _spread(other)], level)
    generator = np.random.default_rng(seed)
    differences = _resampled_means(one, num_resamples, generator) - _resampled_means(other, num_resamples, generator)
    low, high = _quantiles(differences, level)
    return Interval(estimate, float(low), float(high), BOOTSTRAP)


def interquartile_mean_band(
    curves: ArrayLike, *, confidence: float = 0.95, num_resamples: int = 2_000, seed: int = 0
) -> Band:
    """Return the interquartile mean over runs at each point of their curves, and the interval at each.

    The interval at a point says nothing about other points: it covers that point with the given confidence, not the
    whole curve at once.

    Args:
        curves: `[runs, points]`, or `[runs, tasks, points]`.
        confidence: in (0, 1).
        num_resamples: of the bootstrap, at least 1.
        seed: of the resampling.

    Raises:
        TypeError: a number is none, or not whole.
        ValueError: another shape, fewer than three runs, a score that is not finite, or a number out of range.

    Examples:
        >>> band = interquartile_mean_band([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]])
        >>> band.estimate.tolist(), band.low.round(2).tolist(), band.high.round(2).tolist()
        ([0.0, 2.0], [0.0, -0.86], [0.0, 4.86])
    """
    values = _checked(curves)
    if values.ndim not in (2, 3):
        raise ValueError(f"curves has the shape {values.shape}: it must be [runs, points] or [runs, tasks, points].")
    columns = [
        interquartile_mean_interval(
            values[..., point], confidence=confidence, num_resamples=num_resamples, seed=seed + point
        )
        for point in range(values.shape[-1])
    ]
    estimate, low, high = np.array(columns).reshape(-1, 3).T
    return Band(estimate, low, high, columns[0].method if columns else "")


def proportion_interval(successes: int, trials: int, *, confidence: float = 0.95) -> Interval:
    """Return the proportion of successes and Wilson's score interval, which holds up with few trials and near 0 and 1.

    With `p = successes / n` and `z` the normal quantile of `(1 + confidence) / 2`:

        (p + z² / 2n ± z · sqrt(p · (1 - p) / n + z² / 4n²)) / (1 + z² / n)

    Args:
        successes: from 0 to `trials`.
        trials: n, at least 1.
        confidence: in (0, 1).

    Raises:
        TypeError: a number is none, or not whole.
        ValueError: a number is out of range.

    Source:
        Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    Examples:
        >>> proportion, low, high = proportion_interval(0, 10)
        >>> proportion, low, round(high, 4)
        (0.0, 0.0, 0.2775)
    """
    n = check_positive_int("trials", trials)
    hits = check_positive_int("successes", successes, 0)
    if hits > n:
        raise ValueError(f"successes={hits} must be at most trials={n}.")
    level = check_in_range("confidence", confidence, 0.0, 1.0, low_open=True, high_open=True)
    return Interval(hits / n, *_wilson(hits / n, n, level), WILSON)


def share_interval(shares: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Return the mean of shares, each of one group (a minibatch, a client), and its interval.

    It is Wilson's score interval of the mean with as many trials as would vary as much, `p (1 - p) (n - 1) / Σ (share -
    p)²` for n shares of mean p, and n where all shares are equal; with few shares fewer, as Student's t is wider than
    the normal. It covers the mean 93 to 97 % of the time where 95 % is said; of five shares that are mostly near
    1 (or 0) 91 % (simulated in `tests/audits/test_gradient_attacks.py`).

    Args:
        shares: `[n]`, at least one, each in [0, 1], of independent groups.
        confidence: in (0, 1).

    Raises:
        TypeError: the confidence is no number.
        ValueError: another shape, a share or the confidence out of range.

    Source:
        Korn and Graubard 1998, "Confidence intervals for proportions with small expected number of positive counts
        estimated from survey data", for the effective number of trials.

    Examples:
        >>> mean, low, high = share_interval([0.5, 0.75, 1.0, 0.75])
        >>> mean, round(low, 3), round(high, 3)
        (0.75, 0.385, 0.935)
    """
    values = _checked(shares)
    if values.ndim != 1 or values.min() < 0 or values.max() > 1:
        raise ValueError(f"shares of shape {values.shape} must be [n], each from 0 to 1: got {values.tolist()!r:.60}.")
    level = check_in_range("confidence", confidence, 0.0, 1.0, low_open=True, high_open=True)
    n, p = len(values), float(values.mean())
    variance = float(values.var(ddof=1)) if n > 1 else 0.0
    trials = float(n)
    if variance > 0:
        z = NormalDist().inv_cdf((1.0 + level) / 2.0)
        trials = p * (1.0 - p) / variance * n * (z / student_quantile(level, n - 1.0)) ** 2
    return Interval(p, *_wilson(p, trials, level), WILSON)


def _wilson(p: float, n: float, level: float) -> tuple[float, float]:
    """The bounds of Wilson's interval of a share of n trials."""
    z = NormalDist().inv_cdf((1.0 + level) / 2.0)
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1.0 - p) / n + z * z / (4 * n * n))
    shrink = 1.0 + z * z / n
    # At 0 and 1 the formula gives 0 and 1 but for the rounding.
    return (0.0 if p == 0 else (middle - half) / shrink), (1.0 if p == 1 else (middle + half) / shrink)


def _checked(scores: ArrayLike) -> NDArray[np.float64]:
    """`scores` as float64, at least one and all finite."""
    values = np.asarray(scores, dtype=np.float64)
    if values.size == 0:
        raise ValueError(f"scores of shape {values.shape} hold no score: give at least one run.")
    if not np.isfinite(values).all():
        place = tuple(int(index) for index in np.argwhere(~np.isfinite(values))[0])
        raise ValueError(f"scores{list(place)} is {values[place]}: all must be finite. Say what a failed run scores.")
    return values


def _by_task(scores: ArrayLike, name: str = "scores") -> NDArray[np.float64]:
    """`scores` as `[runs, tasks]`, of enough runs for an interval."""
    values = _checked(scores)
    if values.ndim not in (1, 2):
        raise ValueError(f"{name} has the shape {values.shape}: it must be [runs] or [runs, tasks].")
    if len(values) < _FEWEST_RUNS:
        raise ValueError(
            f"{name} has {len(values)} runs: an interval needs at least {_FEWEST_RUNS}. Of fewer, report the scores "
            "themselves, or interquartile_mean alone."
        )
    return values[:, None] if values.ndim == 1 else values


def _middle_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interquartile mean over the last axis: `[..., n]` -> `[...]`."""
    n = values.shape[-1]
    cut = int(_TRIMMED * n)
    middle: NDArray[np.float64] = np.sort(values, axis=-1)[..., cut : n - cut].mean(axis=-1)
    return middle


def _resampled_means(
    values: NDArray[np.float64], num_resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Interquartile means of resamples of `values` `[R, T]`: `[num_resamples]`."""
    num_runs, num_tasks = values.shape
    rows = generator.integers(num_runs, size=(num_resamples, num_runs, num_tasks))
    return _middle_mean(values[rows, np.arange(num_tasks)].reshape(num_resamples, -1))


def _spread(values: NDArray[np.float64]) -> tuple[float, float]:
    """The variance of the interquartile mean of `values` `[R, T]`, and its degrees of freedom."""
    num_runs, num_tasks = values.shape
    variances = values.var(axis=0, ddof=1)  # [T]
    total = float(variances.sum())
    if total == 0:
        return 0.0, 1.0
    freedom = (num_runs - 1) * total**2 / float((variances**2).sum())
    variance = total / (num_runs * num_tasks**2)
    if num_tasks > 1:  # some tasks may be trimmed away, and the others then weigh more
        n = values.size
        cut = int(_TRIMMED * n)
        ordered = np.sort(values, axis=None)
        inner = np.clip(values, ordered[cut], ordered[n - cut - 1]).var(axis=0, ddof=1)
        variance = max(variance, num_runs * float(inner.sum()) / (n - 2 * cut) ** 2)
    return _WIDENED**2 * variance, freedom


def _t_interval(estimate: float, spreads: list[tuple[float, float]], confidence: float) -> Interval:
    """The interval of a sum of independent means, each with its variance and degrees of freedom."""
    total = sum(variance for variance, _ in spreads)
    if total == 0:
        return Interval(estimate, estimate, estimate, STUDENT)
    freedom = total**2 / sum(variance**2 / each for variance, each in spreads)
    half = student_quantile(confidence, round(freedom, 9)) * math.sqrt(total)
    return Interval(estimate, estimate - half, estimate + half, STUDENT)


def mean_interval(values: ArrayLike) -> Interval:
    """The mean of a few runs, at least two, and Student's t interval of 95 %."""
    scores = np.asarray(values, dtype=np.float64)
    mean, size = float(scores.mean()), scores.size
    half = student_quantile(0.95, size - 1) * float(scores.std(ddof=1)) / math.sqrt(size)
    return Interval(mean, mean - half, mean + half, "t interval")


@functools.lru_cache(maxsize=256)
def student_quantile(confidence: float, freedom: float) -> float:
    """The t that holds `confidence` of Student's distribution between -t and t."""
    if confidence <= 0.999:
        return _quick_quantile(confidence, freedom)
    # With t = sqrt(f) tan(angle), what lies outside is the incomplete beta function at cos²(angle): it falls.
    low, high = 0.0, math.pi / 2
    half, outside = torch.tensor([freedom / 2, 0.5], dtype=torch.float64), math.log1p(-confidence)
    for _ in range(6):  # each finds the 128th part of the interval
        angles = torch.linspace(low, high, 129, dtype=torch.float64)
        tails, _ = log_incomplete_beta(half[0], half[1], angles.cos().square())
        place = min(max(int((tails > outside).sum()), 1), 128)
        low, high = float(angles[place - 1]), float(angles[place])
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _quick_quantile(confidence: float, freedom: float) -> float:
    """It, to ten digits, and far sooner: the tail is one minus the rest."""
    # With t = sqrt(f) tan(angle), it is an integral of cos(angle)^(f - 1), which falls: Newton from the normal law's
    # quantile, which is smaller, comes nearer from below.
    nodes, weights = _legendre()
    if freedom < 1e4:
        scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    else:  # the logarithms would cancel
        inverse = 1 / freedom
        scale = (1 - inverse / 4 + inverse**2 / 32 + 5 * inverse**3 / 128) / math.sqrt(2 * math.pi * inverse)
    angle = math.atan(NormalDist().inv_cdf((1.0 + confidence) / 2.0) / math.sqrt(freedom))
    for _ in range(100):
        inside = scale * angle * float(weights @ np.cos(angle * nodes) ** (freedom - 1))
        step = (confidence - inside) / (2 * scale * math.cos(angle) ** (freedom - 1))
        angle += step
        if abs(step) <= 1e-15 * angle:
            break
    return math.sqrt(freedom) * math.tan(angle)


@functools.lru_cache(maxsize=1)
def _legendre() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places in [0, 1] and twice the weights of Gauss and Legendre's rule."""
    nodes, weights = np.polynomial.legendre.leggauss(100)
    return (nodes + 1) / 2, weights


def _quantiles(means: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """The two bounds, `[2]`, of the interval that holds that share of `means`."""
    bounds: NDArray[np.float64] = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return bounds
