"""Calibration of groups of samples: is the model as overconfident on one group as on another?

The measure is the signed gap, mean confidence minus accuracy. It has no bias in a small group, which an expected
calibration error has: of 50 samples of a calibrated model that is about .1, so that of two groups alike in all but
size the smaller one always looks worse. Everything here is computed on the host, in float64, and reads its values.

Intervals are about rows, the samples at hand; what another seed of training would change, they don't know. Each is
Student's t (Welch's for a difference), with half a hit and half a miss at the group's mean confidence counted besides:
without them 30 rows of a good model may hold too few misses to show their spread. Where 95 % is said, the truth is then
covered 93 to 97 % of the time at 30, 100 and 300 rows (simulated in `scripts/studies/results/gap_coverage.md`). That
holds for the furthest of three groups too; of ten groups whose gaps all differ it may be up to 98 %.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from rlsmooth.audits.arguments import as_samples, check_floating, check_same_shape, tensor_of
from rlsmooth.audits.calibration import calibration_error, kernel_calibration_error, smooth_calibration_error
from rlsmooth.audits.intervals import Interval, student_quantile
from rlsmooth.audits.temperature import fit_temperature
from rlsmooth.checks import check_choice, check_in_range, check_positive_int
from rlsmooth.losses import cross_entropy, log_probabilities

Group = Hashable
_Floats = NDArray[np.float64]
WELCH, BOOTSTRAP, FURTHEST = "Welch's t", "bootstrap of the signed gap", "Welch's t of the furthest of {} groups"
_PSEUDO_ROWS = 0.5
"""As many hits and as many misses are added to a group before its variance is taken: the least that covers."""
_LEAST, _GREATEST, _MOST_BIAS = 1e-3, 1e3, 50.0
_DRAWN_AT_ONCE = 1_000_000
_FARTHEST = 8.0
"""The largest differences and errors that intervals are computed of, in standard errors."""


class GroupCalibration(NamedTuple):
    """How well the confidences of one group are calibrated: a line of `group_calibration`'s table.

    Attributes:
        group: its name, as given.
        rows: samples with weight. All else is NaN where there are none, and what needs two where there is one.
        accuracy: share of the samples that hit.
        confidence: mean confidence.
        gap: confidence minus accuracy: positive is overconfident. Compare groups by it.
        gap_interval: its 95 % interval over rows.
        ece: expected calibration error of 15 bins; NaN below `min_rows`, where it is mostly noise.
        smooth_ece: `smooth_calibration_error`; NaN below `min_rows`.
        skce: `kernel_calibration_error`, squared and without bias: does the shape differ, errors that cross 0 included?
    """

    group: Group
    rows: int
    accuracy: float
    confidence: float
    gap: float
    gap_interval: Interval
    ece: float
    smooth_ece: float
    skce: float


class GapDisparity(Interval):
    """A group's gap minus the reference's, with its interval: a tuple of three numbers, as every `Interval`.

    Of more than two groups it is the group whose gap is furthest from the reference's in units of its standard error,
    with an interval that allows for the choice: it holds the differences for which an estimate so far off would be no
    surprise, were they those of all groups. Near 0 it is as wide as that of all groups at once, far from 0 hardly wider
    than one group's.

    Attributes:
        method: how the interval was made, in words.
        group: the group compared, None where there is none.
        reference: the group it is compared with.
        against: each other group's gap minus the reference's; NaN where a group has fewer than two rows.
        spread: greatest gap minus least, among groups of at least two rows: never negative, so without interval.
        p_value: share of permutations of the group labels that put some two groups at least as far apart, in units of
            the standard error of their difference; NaN with fewer than two such groups.
    """

    group: Group
    reference: Group
    against: dict[Group, Interval]
    spread: float
    p_value: float


class _Gaps(NamedTuple):
    """Numbers of each group, `[G]`: NaN where there are none, or where they need two rows and there is one."""

    rows: NDArray[np.int64]
    confidence: _Floats
    gap: _Floats
    centre: _Floats
    """The gap with the pseudo-rows counted; the rest is its variance and the degrees of freedom of that."""
    variance: _Floats
    freedom: _Floats


def group_calibration(
    confidences: ArrayLike | Tensor,
    hits: ArrayLike | Tensor,
    groups: Any,
    *,
    weights: ArrayLike | Tensor | None = None,
    min_rows: int = 30,
) -> list[GroupCalibration]:
    """Calibration of each group, one line a group in the order of their names: `pandas.DataFrame` makes it a table.

    Args:
        confidences: float `[...]`, the probability given to the class or action chosen, in [0, 1].
        hits: `[...]`, bool, or 0 and 1: was it the right one?
        groups: `[...]`, a name or whole number a sample; a pandas categorical lists its empty categories too.
        weights: `[...]`, 0 or more; None counts each sample once. A sample of weight 0 plays no part.
        min_rows: groups with fewer rows get no calibration error that noise alone makes positive.

    Raises:
        TypeError: confidences that are not floating, a group that is None or NaN.
        ValueError: shapes that differ, a confidence outside [0, 1], a hit that is neither 0 nor 1, a negative weight.

    Examples:
        >>> table = group_calibration([0.9, 0.9, 0.9, 0.7], [1, 0, 1, 1], ["a", "a", "b", "b"])
        >>> [(line.group, line.rows, round(line.gap, 2)) for line in table]
        [('a', 2, 0.4), ('b', 2, -0.2)]
    """
    least = check_positive_int("min_rows", min_rows)
    confidence, hit, weight, names, index = _samples(confidences, hits, groups, weights)
    gaps = _gaps(_terms(confidence, hit, weight), index, len(names))
    lines = []
    for place, name in enumerate(names):
        here = index == place
        c, h, w = (torch.from_numpy(column[here]) for column in (confidence, hit, weight))
        enough = len(c) >= least
        lines.append(
            GroupCalibration(
                group=name,
                rows=len(c),
                accuracy=float(gaps.confidence[place] - gaps.gap[place]),
                confidence=float(gaps.confidence[place]),
                gap=float(gaps.gap[place]),
                gap_interval=_t_interval(gaps, place),
                ece=float(calibration_error(c, h, weights=w)) if enough else math.nan,
                smooth_ece=float(smooth_calibration_error(c, h, weights=w)) if enough else math.nan,
                skce=float(kernel_calibration_error(c, h, weights=w)),
            )
        )
    return lines


def gap_disparity(
    confidences: ArrayLike | Tensor,
    hits: ArrayLike | Tensor,
    groups: Any,
    *,
    reference: Group = None,
    method: Literal["welch", "bootstrap"] = "welch",
    measure: Literal["gap"] = "gap",
    weights: ArrayLike | Tensor | None = None,
    confidence: float = 0.95,
    num_resamples: int = 2_000,
    seed: int = 0,
) -> GapDisparity:
    """How much more overconfident a group is than the reference: the difference of their signed gaps.

    Args:
        confidences: float `[...]`, in [0, 1].
        hits: `[...]`, bool, or 0 and 1.
        groups: `[...]`, a name or whole number a sample.
        reference: the group to compare with; None: the one with the most rows, the first by name among equals.
        method: `"welch"`, or `"bootstrap"`: rows are drawn again within each group, half a hit and half a miss at its
            mean confidence among them, and the quantiles are widened from the normal law's to Student's.
        measure: `"gap"`. No other is offered, see `Raises`.
        weights: `[...]`, 0 or more; None counts each sample once.
        confidence: of the intervals, in (0, 1).
        num_resamples: of the bootstrap, and permutations of the p-value.
        seed: of both.

    Raises:
        TypeError: as `group_calibration`.
        ValueError: as `group_calibration`, an unknown method, a reference that no sample belongs to, or a measure such
            as `"ece"`: errors that are never negative grow as a group shrinks, and a percentile bootstrap of their
            difference covers the truth 0 to 73 % of the time.

    Examples:
        >>> confidences, hits, groups = [0.9] * 8, [1, 1, 1, 1, 1, 0, 0, 0], ["a", "a", "a", "a", "b", "b", "b", "b"]
        >>> found = gap_disparity(confidences, hits, groups)
        >>> round(found.estimate, 2), round(found.low, 2), round(found.high, 2), found.group, found.reference
        (0.75, -0.05, 1.25, 'b', 'a')
    """
    check_choice("method", method, ("welch", "bootstrap"))
    if measure != "gap":
        raise ValueError(
            f"measure={measure!r} has no interval: a calibration error is never negative and grows as a group shrinks, "
            "so that a bootstrap of its difference between groups misses the truth up to always (of 30 rows). "
            'Use measure="gap", or kernel_calibration_error of each group.'
        )
    level = check_in_range("confidence", confidence, 0.0, 1.0, low_open=True, high_open=True)
    check_positive_int("num_resamples", num_resamples)
    columns = _samples(confidences, hits, groups, weights)
    names, index = columns[3:]
    gaps = _gaps(_terms(*columns[:3]), index, len(names))
    base = _reference_of(reference, names, gaps.rows)
    generator = np.random.default_rng(seed)
    others = [place for place in range(len(names)) if place != base]
    intervals = {place: _t_interval(gaps, place, base, level=level) for place in others}
    usable = [place for place in others if min(gaps.rows[place], gaps.rows[base]) > 1]
    if method == "bootstrap":
        for place in usable:
            intervals[place] = _bootstrap(columns, gaps, (place, base), level, num_resamples, generator)
    furthest, chosen = None, Interval(math.nan, math.nan, math.nan, WELCH if method == "welch" else BOOTSTRAP)
    if usable:
        furthest = max(usable, key=lambda place: _apart(gaps, place, base))
        chosen = intervals[furthest]
    if furthest is not None and len(usable) > 1:
        chosen = _furthest_interval(gaps, furthest, base, usable, level)
    found = GapDisparity(*chosen, chosen.method)
    found.group, found.reference = None if furthest is None else names[furthest], names[base] if names else None
    found.against = {names[place]: interval for place, interval in intervals.items()}
    several = np.flatnonzero(gaps.rows > 1)
    found.spread = float(np.ptp(gaps.gap[several])) if len(several) > 1 else math.nan
    found.p_value = _permutation_p(columns, several, num_resamples, generator) if len(several) > 1 else math.nan
    return found


def predicted_gap(gap: Any, confidence: Any, alpha: float, num_classes: int) -> Any:
    """The signed gap after uniform smoothing, of the one before: `gap - alpha · (confidence - 1/K)`.

    Exact for the optimum over the population, `(1 - alpha) · p + alpha / K`, whose most probable class is the same;
    finite training departs from it. Of two groups, the disparity D becomes `D - alpha · (confidence_B - confidence_A)`:
    where the model is calibrated, smoothing creates one.

    Args:
        gap: mean confidence minus accuracy without smoothing, number, array or tensor.
        confidence: mean confidence without smoothing, of the same form.
        alpha: the smoothing, in [0, 1].
        num_classes: K, at least 1.

    Raises:
        TypeError: a number is none, or not whole.
        ValueError: a number is out of range.

    Examples:
        >>> round(predicted_gap(0.0, 0.9, 0.1, 2), 3)
        -0.04
    """
    share = check_in_range("alpha", alpha, 0.0, 1.0)
    return gap - share * (confidence - 1.0 / check_positive_int("num_classes", num_classes))


class GroupTemperatures(NamedTuple):
    """A temperature, and perhaps a bias, for each group: what `fit_group_temperatures` finds.

    Attributes:
        temperatures: of each group; NaN of a group that nothing could be fitted to.
        biases: of each group, added to its samples' greatest logit after the division; 0 without `bias`.
    """

    temperatures: dict[Group, float]
    biases: dict[Group, float]

    def calibrated(self, logits: ArrayLike | Tensor, groups: Any) -> Tensor:
        """Logits `[..., K]` divided by their group's temperature, its bias added to the greatest.

        A negative bias may make another class the greatest: choose classes by the logits as they were.

        Raises:
            TypeError: logits that are not floating.
            ValueError: a group that was not fitted.
        """
        values = _as_tensor(logits)
        check_floating("logits", values)
        names, index = _group_index(groups, tuple(values.shape[:-1]), "logits")
        unknown = [name for place, name in enumerate(names) if name not in self.temperatures and (index == place).any()]
        if unknown:
            known = ", ".join(map(repr, self.temperatures))
            raise ValueError(f"groups has {unknown[0]!r}, which was not fitted: use {known}, or fit with its samples.")
        factors, shifts = (
            torch.tensor([table.get(name, math.nan) for name in names], dtype=values.dtype, device=values.device)
            for table in (self.temperatures, self.biases)
        )
        place = torch.from_numpy(index).to(values.device).reshape(values.shape[:-1])
        scaled = values / factors[place].unsqueeze(-1)
        return scaled.scatter_add(-1, values.argmax(-1, keepdim=True), shifts[place].unsqueeze(-1))


def fit_group_temperatures(
    logits: ArrayLike | Tensor,
    labels: ArrayLike | Tensor,
    groups: Any,
    *,
    bias: bool = False,
    shrink: float = 10.0,
) -> GroupTemperatures:
    """Temperature scaling of each group by itself, on samples that were held out from training.

    A temperature has the least negative log-likelihood, which does not make the gap 0; with `bias` a second number
    raises or lowers the greatest logit (of two classes: Platt scaling of the predicted one), and the gap of the samples
    fitted is 0 but for `shrink`.

    Args:
        logits: float `[..., K]`.
        labels: int64 `[...]`, in [0, K).
        groups: `[...]`, a name or whole number a sample.
        bias: fit a bias too.
        shrink: all samples together count as so many more of each group, so that a small group is not fitted to its
            noise: 0 fits each alone, and one without samples then has NaN.

    Raises:
        TypeError: logits that are not floating, labels that are not int64, `shrink` no number.
        ValueError: shapes that do not fit, a logit that is NaN or +inf, a label that is no class, a negative `shrink`.

    Examples:
        >>> logits, labels = torch.tensor([[4.0, 0.0]]).repeat(8, 1), torch.tensor([0, 0, 0, 1, 0, 0, 1, 1])
        >>> fitted = fit_group_temperatures(logits, labels, ["a"] * 4 + ["b"] * 4, bias=True, shrink=0)
        >>> fitted.calibrated(logits, ["a"] * 4 + ["b"] * 4).softmax(-1)[2:6, 0].round(decimals=2)
        tensor([0.7500, 0.7500, 0.5000, 0.5000])
    """
    strength = check_in_range("shrink", shrink, 0.0)
    values, label, _, valid = as_samples(_as_tensor(logits), _as_tensor(labels), name="logits")
    values = values.to("cpu", torch.float64)
    label = label.cpu()
    given = _as_tensor(labels).reshape(-1).cpu()
    sound = (
        valid.cpu() & (values < torch.inf).all(-1) & (values.gather(-1, label.unsqueeze(-1)).squeeze(-1) > -torch.inf)
    )
    if not bool(sound.all()):
        row = int((~sound).nonzero()[0])
        raise ValueError(
            f"logits[{row}]={values[row].tolist()} with labels[{row}]={int(given[row])}: logits must be numbers or, "
            f"for a class that is no label, -inf, and labels 0 to {values.shape[-1] - 1}."
        )
    names, index = _group_index(groups, tuple(_as_tensor(labels).shape), "labels")
    temperatures: dict[Group, float] = {}
    biases: dict[Group, float] = {}
    for place, name in enumerate(names):
        weight = torch.from_numpy((index == place).astype(np.float64)) + strength / max(len(label), 1)
        temperature = float(fit_temperature(values, label, bounds=(_LEAST, _GREATEST), weights=weight))
        if bias and math.isfinite(temperature):
            temperature, biases[name] = _fit_bias(values, label, weight, temperature)
        else:
            biases[name] = 0.0 if math.isfinite(temperature) else math.nan
        temperatures[name] = temperature
    return GroupTemperatures(temperatures, biases)


def fairlearn_metric(fn: Callable[..., Any]) -> Callable[..., float]:
    """A calibration measure as fairlearn's `MetricFrame` calls it: `(y_true, y_pred, sample_weight=None)`, to a number.

    There `y_true` are the hits and `y_pred` the confidences, the other way round than here. Read `by_group`:
    `difference()` is the greatest minus the least, which has no sign and whose interval never contains 0.

    Args:
        fn: takes `(confidences, hits)`, and `weights=` if samples are weighted: `confidence_gap`, for one.

    Raises:
        TypeError: (when called) `y_pred` holds no floating-point numbers.
        ValueError: (when called) `y_true` holds another number than 0 and 1, as it does where the two are swapped.

    Examples:
        >>> from rlsmooth.audits import confidence_gap
        >>> metric = fairlearn_metric(confidence_gap)
        >>> metric(y_true=[1, 0], y_pred=[0.75, 0.75])
        0.25
    """

    def metric(y_true: Any, y_pred: Any, sample_weight: Any = None) -> float:
        confidence, hit, weight = np.asarray(y_pred), np.asarray(y_true), sample_weight
        if confidence.dtype.kind != "f":
            raise TypeError(f"y_pred has dtype {confidence.dtype}: it is the confidences, y_true whether each one hit.")
        if not np.isin(hit, (0, 1)).all():
            wrong = hit[~np.isin(hit, (0, 1))][0]
            raise ValueError(
                f"y_true holds {wrong!r}: it is whether each sample hit, 0 or 1; y_pred is the confidences."
            )
        given = {} if weight is None else {"weights": torch.as_tensor(np.asarray(weight, dtype=np.float64))}
        return float(
            fn(torch.from_numpy(confidence.astype(np.float64)), torch.from_numpy(hit.astype(np.float64)), **given)
        )

    metric.__name__ = getattr(fn, "__name__", type(fn).__name__)
    return metric


class Patch(NamedTuple):
    """One step of multicalibration: confidences of one group (None: of all) in [low, high) are moved by `shift`."""

    group: Group
    low: float
    high: float
    shift: float


class Multicalibration(NamedTuple):
    """Corrections of confidences, one after another.

    Attributes:
        patches: in the order they were found.
    """

    patches: list[Patch]

    def calibrated(self, confidences: ArrayLike | Tensor, groups: Any) -> _Floats:
        """Confidences after all patches: a group without patches of its own has those of all samples."""
        values = _as_tensor(confidences).detach().to("cpu", torch.float64).numpy().copy()
        names, index = _group_index(groups, values.shape, "confidences")
        flat = values.reshape(-1)
        for patch in self.patches:
            here = (flat >= patch.low) & (flat < patch.high)
            if patch.group is not None:
                here &= index == (names.index(patch.group) if patch.group in names else -1)
            flat[here] = np.clip(flat[here] + patch.shift, 0.0, 1.0)
        return flat.reshape(values.shape)


def fit_multicalibration(
    confidences: ArrayLike | Tensor,
    hits: ArrayLike | Tensor,
    groups: Any,
    *,
    num_levels: int = 10,
    tolerance: float = 0.01,
    max_patches: int = 1_000,
) -> Multicalibration:
    """Multicalibration: patch the worst level of the worst group until none is off by more than `tolerance`.

    Cells are the levels (equal parts of [0, 1]) of all samples and of each group; the next one to be patched is that
    whose error times its share of the samples is greatest, and fitting ends where that is at most `tolerance`.

    Args:
        confidences: float `[...]`, in [0, 1], of samples that were held out from training.
        hits: `[...]`, bool, or 0 and 1.
        groups: `[...]`, a name or whole number a sample.
        num_levels: at least 1.
        tolerance: above 0.
        max_patches: the most that are made, at least 1.

    Raises:
        TypeError: as `group_calibration`.
        ValueError: as `group_calibration`, or a number out of range.

    Source: Hébert-Johnson et al., "Multicalibration: calibration for the (computationally-identifiable) masses" (2018).

    Examples:
        >>> fitted = fit_multicalibration([0.9] * 4, [1, 1, 0, 0], ["a", "a", "b", "b"])
        >>> fitted.calibrated([0.9, 0.9], ["a", "b"]).tolist()
        [1.0, 0.0]
    """
    least = check_in_range("tolerance", tolerance, 0.0, low_open=True)
    levels, most = check_positive_int("num_levels", num_levels), check_positive_int("max_patches", max_patches)
    value, hit, _, names, index = _samples(confidences, hits, groups, None)
    value, patches = value.copy(), list[Patch]()
    edges = np.linspace(0.0, 1.0, levels + 1)
    edges[-1] = math.inf
    members = [(None, np.ones(len(value), dtype=bool)), *((name, index == i) for i, name in enumerate(names))]
    while len(patches) < most:
        level = np.searchsorted(edges, value, side="right") - 1
        errors = [np.bincount(level[here], (hit - value)[here], levels) / max(len(value), 1) for _, here in members]
        group, cell = np.unravel_index(np.abs(errors).argmax(), (len(members), levels))
        if abs(errors[group][cell]) <= least:
            break
        name, here = members[group]
        here = here & (level == cell)
        shift = float((hit - value)[here].mean())
        patches.append(Patch(name, float(edges[cell]), float(edges[cell + 1]), shift))
        value[here] = np.clip(value[here] + shift, 0.0, 1.0)
    return Multicalibration(patches)


_Columns = tuple[_Floats, _Floats, _Floats, list[Group], NDArray[np.int64]]


def _samples(confidences: Any, hits: Any, groups: Any, weights: Any) -> _Columns:
    """Confidences, hits and weights of the samples that have weight, the names of all groups, and whose each is."""
    confidence, hit = _as_tensor(confidences), _as_tensor(hits)
    check_floating("confidences", confidence)
    weight = torch.ones_like(confidence) if weights is None else _as_tensor(weights)
    for name, other in (("hits", hit), ("weights", weight)):
        check_same_shape(name, other, "confidences", confidence.shape)
    names, index = _group_index(groups, tuple(confidence.shape), "confidences")
    c, h, w = (values.detach().cpu().to(torch.float64).numpy().reshape(-1) for values in (confidence, hit, weight))
    counts = w != 0
    for name, values, sound, needed in (
        ("weights", w, (w >= 0) & np.isfinite(w), "0 or more"),
        ("confidences", c, (c >= 0) & (c <= 1) | ~counts, "a probability, in [0, 1]"),
        ("hits", h, (h == 0) | (h == 1) | ~counts, "0 or 1"),
    ):
        if not sound.all():
            row = int(np.flatnonzero(~sound)[0])
            raise ValueError(f"{name}[{row}]={values[row]:g} must be {needed}; a sample of weight 0 plays no part.")
    return c[counts], h[counts], w[counts], names, index[counts]


def _as_tensor(values: Any) -> Tensor:
    tensor: Tensor = values if isinstance(values, Tensor) else tensor_of(np.asarray(values))
    return tensor


def _group_index(groups: Any, shape: tuple[int, ...], other: str) -> tuple[list[Group], NDArray[np.int64]]:
    """The groups' names, sorted, and the place of each sample's among them, flat."""
    categories = getattr(getattr(groups, "cat", groups), "categories", ())  # pandas: may have some without samples
    array = groups.detach().cpu().numpy() if isinstance(groups, Tensor) else groups
    array = np.asarray(array, dtype=None if hasattr(array, "dtype") else object)
    if array.shape != shape:
        raise ValueError(f"groups has shape {array.shape}, needs one per sample of {other}: {shape}.")
    each = array.reshape(-1).astype(object)
    names = set(each.tolist())
    missing = [name for name in names if name is None or (name == name) is not True]
    if missing:
        row = next(place for place, name in enumerate(each) if any(name is one for one in missing))
        raise TypeError(f"groups[{row}] is {each[row]!r}: name every sample's group, or leave the sample out.")
    names |= set(np.asarray(categories).astype(object).tolist())
    try:
        ordered = sorted(names)
    except TypeError:  # names of several kinds
        ordered = sorted(names, key=lambda name: (type(name).__name__, str(name)))
    place = {name: number for number, name in enumerate(ordered)}
    return ordered, np.array([place[name] for name in each], dtype=np.int64)


def _reference_of(reference: Group, names: list[Group], rows: NDArray[np.int64]) -> int:
    if reference is None:
        return int(rows.argmax()) if names else 0
    if reference not in names:
        raise ValueError(f"reference={reference!r} is none of the groups: {', '.join(map(repr, names))}.")
    return names.index(reference)


def _terms(confidence: _Floats, hit: _Floats, weight: _Floats) -> list[_Floats]:
    """Of each sample what `_gaps` sums."""
    gap = confidence - hit
    return [np.ones_like(weight), weight, weight**2, weight * confidence, weight * gap, weight * gap**2]


def _gaps(terms: list[_Floats], index: NDArray[np.int64], count: int) -> _Gaps:
    sums: list[_Floats] = [np.bincount(index, term, count).astype(np.float64) for term in terms]
    rows, total, squares, mean, gap, power = sums
    with np.errstate(invalid="ignore", divide="ignore"):
        mean, gap, power = mean / total, gap / total, power / total
        effective = np.where(rows > 1, total**2 / squares, math.nan)  # Kish: n where all weigh the same
    more, pseudo = effective + 2 * _PSEUDO_ROWS, _PSEUDO_ROWS
    centre = (effective * gap + pseudo * (2 * mean - 1)) / more
    power = effective * power + pseudo * ((mean - 1) ** 2 + mean**2)
    return _Gaps(rows.astype(np.int64), mean, gap, centre, (power / more - centre**2) / (more - 1), more - 1)


def _difference(gaps: _Gaps, place: int, other: int | None) -> tuple[float, float, float, float]:
    """A group's gap, or its difference to another's: estimate, centre of the interval, variance, degrees of freedom."""
    places = [place] if other is None else [place, other]
    signs = np.array([1.0, -1.0])[: len(places)]
    variances = gaps.variance[places]
    with np.errstate(invalid="ignore"):
        freedom = variances.sum() ** 2 / (variances**2 / gaps.freedom[places]).sum()
    return float(signs @ gaps.gap[places]), float(signs @ gaps.centre[places]), float(variances.sum()), float(freedom)


def _t_interval(gaps: _Gaps, place: int, other: int | None = None, *, level: float = 0.95) -> Interval:
    """The interval of a group's gap, or of its difference to another's."""
    estimate, centre, variance, freedom = _difference(gaps, place, other)
    method = "Student's t" if other is None else WELCH
    if math.isnan(variance):
        return Interval(estimate, math.nan, math.nan, method)
    half = student_quantile(level, round(freedom, 9)) * math.sqrt(variance)
    return Interval(estimate, centre - half, centre + half, method)


def _furthest_interval(gaps: _Gaps, place: int, base: int, several: list[int], level: float) -> Interval:
    """The interval of a difference that was chosen from several because it is furthest from 0."""
    estimate, centre, variance, freedom = _difference(gaps, place, base)
    shared = float((gaps.variance[base] / (gaps.variance[several] + gaps.variance[base])).mean())
    truths, below, above = no_surprise(round(shared, 2), len(several), level)
    error = math.sqrt(variance)

    def bound(side: float) -> float:
        near, away = 0.0, 2 * _FARTHEST
        while away - near > 1e-6:  # the truth is so far on that side of the estimate
            middle = (near + away) / 2
            truth = centre / error + side * middle
            normal = np.interp(abs(truth), truths, below if side * truth > 0 else above)
            held = middle <= student_quantile(2 * NormalDist().cdf(float(normal)) - 1, round(freedom, 9))
            near, away = (middle, away) if held else (near, middle)
        return centre + side * near * error

    return Interval(estimate, bound(-1.0), bound(1.0), FURTHEST.format(len(several)))


@functools.lru_cache(maxsize=64)
def no_surprise(shared: float, count: int, level: float) -> tuple[_Floats, _Floats, _Floats]:
    """How far the estimate that is furthest from 0 lies from the truth, if all of several have the same.

    Estimates are normal, in units of their standard error. Where groups differ, fewer compete to be furthest: an
    estimate is then rarely too far out, and too near as often as one alone, which is why that side is never narrower.

    Args:
        shared: of the variance of each, the part that all have in common.
        count: how many there are.
        level: the probability of what is held.

    Returns:
        truths from 0 on, how far below one the estimate may lie, and how far above.
    """
    outside, alone = 1 - level, NormalDist().inv_cdf((1 + level) / 2)
    truths = torch.linspace(0, _FARTHEST, 121, dtype=torch.float64)
    common = torch.linspace(-5, 5, 21, dtype=torch.float64).unsqueeze(-1)  # of all estimates, in standard deviations
    errors, own = torch.linspace(-_FARTHEST, _FARTHEST, 401, dtype=torch.float64), max(math.sqrt(1 - shared), 0.1)
    weights, moved = torch.exp(-common.square() / 2), math.sqrt(shared) * common
    below, above = [], []
    for truth in truths:
        reach = (truth + errors).abs()
        others = torch.special.ndtr((reach - truth - moved) / own) - torch.special.ndtr((-reach - truth - moved) / own)
        density = weights * torch.exp(-((errors - moved) / own).square() / 2) * others.clamp(min=0) ** (count - 1)
        mass = density.sum(0)
        share = ((mass.cumsum(0) - mass / 2) / mass.sum()).numpy()
        below.append(max(alone, -np.interp(outside / 2, share, errors)))
        above.append(np.interp(level + np.interp(-below[-1], errors, share), share, errors))
    return truths.numpy(), np.array(below), np.array(above)


def _apart(gaps: _Gaps, one: Any, other: Any) -> Any:
    """How far two groups are apart, in units of the standard error."""
    return np.abs(gaps.centre[one] - gaps.centre[other]) / np.sqrt(gaps.variance[one] + gaps.variance[other])


def _bootstrap(
    columns: _Columns, gaps: _Gaps, pair: tuple[int, int], level: float, count: int, generator: np.random.Generator
) -> Interval:
    """The bootstrap's interval of the difference of two groups' gaps."""
    confidence, hit, weight, _, index = columns
    drawn = []
    for place in pair:
        here = index == place
        mean, size = gaps.confidence[place], int(gaps.rows[place])
        # Each row twice, and a hit and a miss once: those count half.
        each = np.append(np.repeat(weight[here], 2), [weight[here].mean()] * 2)
        weighted = each * np.append(np.repeat(confidence[here] - hit[here], 2), (mean - 1, mean))
        block = max(1, _DRAWN_AT_ONCE // size)
        means = []
        for start in range(0, count, block):
            rows = generator.integers(len(each), size=(min(block, count - start), size))
            means.append(weighted[rows].sum(-1) / each[rows].sum(-1))
        drawn.append(np.concatenate(means))
    variance, freedom = gaps.variance[list(pair)], gaps.freedom[list(pair)]
    student = student_quantile(level, round(float(variance.sum() ** 2 / (variance**2 / freedom).sum()), 9))
    outside = NormalDist().cdf(-student)
    low, high = np.quantile(drawn[0] - drawn[1], [outside, 1 - outside])
    return Interval(float(gaps.gap[pair[0]] - gaps.gap[pair[1]]), float(low), float(high), BOOTSTRAP)


def _permutation_p(columns: _Columns, several: NDArray[np.int64], count: int, generator: np.random.Generator) -> float:
    """The share of permutations of the labels that set two groups apart as far as they are.

    Divided by the standard error, the statistic is right for groups of unequal size and spread too, which the bare
    greatest minus least is not.
    """
    counted = np.isin(columns[4], several)
    terms = [term[counted] for term in _terms(*columns[:3])]
    index = np.searchsorted(several, columns[4][counted])
    one, other = np.triu_indices(len(several), 1)

    def farthest(labels: NDArray[np.int64]) -> float:
        return float(_apart(_gaps(terms, labels, len(several)), one, other).max())

    least = farthest(index) * (1 - 1e-12)
    return (1 + sum(farthest(generator.permutation(index)) >= least for _ in range(count))) / (1 + count)


def _fit_bias(values: Tensor, label: Tensor, weight: Tensor, temperature: float) -> tuple[float, float]:
    """The temperature and the bias of the greatest logit with the least weighted loss: Newton, in (1/T, bias)."""
    top = values.argmax(-1, keepdim=True)
    shifted = values - values.gather(-1, top)
    legal = shifted > -torch.inf
    shifted = shifted.masked_fill(~legal, 0.0)  # 0 · inf would be NaN
    share, hit = weight / weight.sum(), (top.squeeze(-1) == label).to(values.dtype)
    chosen = shifted.gather(-1, label.unsqueeze(-1)).squeeze(-1)
    bound = torch.tensor([[1 / _GREATEST, -_MOST_BIAS], [1 / _LEAST, _MOST_BIAS]], dtype=values.dtype)

    def scaled(point: Tensor) -> Tensor:
        return (point[0] * shifted).scatter_add(-1, top, point[1].expand_as(top))

    def loss(point: Tensor) -> Tensor:
        return cross_entropy(scaled(point), label, mask=legal, weight=share, reduction="sum")

    point = torch.tensor([1 / temperature, 0.0], dtype=values.dtype)
    for _ in range(100):
        probability = log_probabilities(scaled(point), legal).exp()
        mean, first = (probability * shifted).sum(-1), probability.gather(-1, top).squeeze(-1)
        spread = (probability * shifted.square()).sum(-1) - mean.square()
        slope = torch.stack(((share * (mean - chosen)).sum(), (share * (first - hit)).sum()))
        mixed = -(share * mean * first).sum()
        curve = torch.stack(((share * spread).sum() + 1e-12, mixed, mixed, (share * first * (1 - first)).sum() + 1e-12))
        step = torch.linalg.solve(curve.reshape(2, 2), slope)
        before, scale = loss(point), 1.0
        while scale > 1e-9 and loss((point - scale * step).clamp(*bound)) > before:
            scale /= 2
        moved = (point - scale * step).clamp(*bound)
        done = bool((moved - point).abs().max() < 1e-12)
        point = moved
        if done:
            break
    return float(1 / point[0]), float(point[1])
