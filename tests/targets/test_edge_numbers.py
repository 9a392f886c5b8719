"""Targets at the edge of the number range, against mpmath and exact fractions: nothing of ours is in the oracles."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import Any

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from rlsmooth.losses import cross_entropy, expected_value
from rlsmooth.targets import (
    Smoothing,
    Target,
    Tree,
    boltzmann,
    completed_q,
    confidence_adaptive,
    hierarchical,
    hl_gauss,
    kernel,
    mixture,
    ordinal,
    prior,
    two_hot,
    uniform,
)

F64 = torch.float64
Array = np.ndarray[Any, Any]

# ---- atoms that take off what the background adds


def off_label(labels: Array, num_classes: int) -> Array:
    """Even over all classes but the labels `[B, P]` of each row."""
    is_label = (np.arange(num_classes) == labels[..., None]).any(-2)
    return np.where(is_label, 0.0, 1 / (~is_label).sum(-1, keepdims=True))


CANCELLING: dict[str, tuple[Callable[[Tensor, int], Target], int]] = {
    "others": (lambda y, k: uniform(y[..., 0], k, 1.0, "others"), 1),
    "others, alpha a row": (lambda y, k: uniform(y[..., 0], k, torch.ones(len(y), dtype=F64), "others"), 1),
    "others, masked": (lambda y, k: uniform(y[..., 0], k, 1.0, "others", mask=torch.ones(k, dtype=torch.bool)), 1),
    "confidence 0": (lambda y, k: confidence_adaptive(y[..., 0], 0.0, k), 1),
    "mixture": (lambda y, k: mixture(y, None, k, 1.0), 2),
}


@pytest.mark.parametrize("kind", CANCELLING)
@pytest.mark.parametrize("num_classes", [3, 7, 10, 49])
def test_what_is_cancelled_is_0_after_every_operation(kind: str, num_classes: int) -> None:
    build, parents = CANCELLING[kind]
    labels = torch.randint(num_classes, (40, parents))
    one, two = build(labels, num_classes), build(labels.roll(1, 0), num_classes)
    first, second = off_label(labels.numpy(), num_classes), off_label(labels.roll(1, 0).numpy(), num_classes)
    class_weights = np.random.default_rng(0).uniform(0.1, 3, num_classes)
    cases = [(one, first), (one.scale(0.3).scale(1 / 0.3), first), (one.scale(1 / 7), first / 7)]
    cases += [(one.weight_classes(torch.from_numpy(class_weights)), first * class_weights)]
    for lam in (0.1, 0.3, 1 / 3, 0.7, 1.0):
        cases.append((Target.mix(one, two, lam), lam * first + (1 - lam) * second))
        same = build(labels.flip(-1), num_classes)
        cases.append((Target.mix(Target.mix(one, same, lam), one.scale(0.9).scale(1 / 0.9), 0.77), first))
    for target, expected in cases:
        dense = target.dense(F64).numpy()
        assert (dense[expected == 0] == 0).all()
        np.testing.assert_allclose(dense, expected, rtol=1e-13, atol=0)
        mass = expected.sum(-1)
        entropy = mass * scipy.stats.entropy(expected, axis=-1) - mass * np.log(mass)
        np.testing.assert_allclose(target.entropy(), entropy, atol=1e-13)
        # Where the policy has ruled the label out too, nothing is infinite, and nothing pulls on it
        logits = torch.randn(40, num_classes).masked_fill(torch.from_numpy(expected == 0), -math.inf).requires_grad_()
        rows = cross_entropy(logits, target, reduction="none")
        assert rows.isfinite().all()
        (gradient,) = torch.autograd.grad(rows.sum(), logits)
        assert (gradient[torch.from_numpy(expected == 0)] == 0).all()


def test_small_probabilities_that_nothing_cancelled_are_kept() -> None:
    target = uniform([0], 4, torch.tensor([1 - 1e-9], dtype=F64), "others")
    assert target.dense(F64)[0, 0].item() == pytest.approx(1e-9, rel=1e-6)
    assert prior([0], torch.tensor([1e-30, 1.0]), 1.0).dense(F64)[0, 0].item() == pytest.approx(1e-30)
    assert uniform([0], 3, -1e-12).dense(F64).amin().item() == pytest.approx(-1e-12 / 3)


# ---- categorical values


def bins_of(value: float, centres: list[float], ratio: float, digits: int) -> Array:
    """HL-Gauss's bins by mpmath: each bin's mass over that of all."""
    with mpmath.workdps(digits):
        points = [mpmath.mpf(centre) for centre in centres]
        inner = [(a + b) / 2 for a, b in pairwise(points)]
        edges = [2 * points[0] - inner[0], *inner, 2 * points[-1] - inner[-1]]
        widths = [b - a for a, b in pairwise(edges)]
        at = mpmath.mpf(min(max(value, centres[0]), centres[-1]))
        upper = min(max(sum(point <= at for point in points), 1), len(points) - 1)
        share = (at - points[upper - 1]) / (points[upper] - points[upper - 1])
        sigma = mpmath.mpf(ratio) * (widths[upper - 1] + share * (widths[upper] - widths[upper - 1]))
        masses = []
        for a, b in pairwise([(edge - at) / sigma for edge in edges]):
            a, b = (min(max(edge, mpmath.mpf(-60)), mpmath.mpf(60)) for edge in (a, b))  # no float is beyond
            masses.append(mpmath.ncdf(b) - mpmath.ncdf(a) if b < 0 or a < 0 else mpmath.ncdf(-a) - mpmath.ncdf(-b))
        total = sum(masses)
        return np.array([float(mass / total) for mass in masses])


UNEVEN = [-8.0, -3.0, -1.0, -0.5, 0.0, 0.25, 2.0, 9.0]
SUPPORTS = {
    "even": [-2.0, -1.0, 0.0, 1.0, 2.0],
    "uneven": UNEVEN,
    "the whole range": [-1.7e308, -1e308, 0.0, 0.9e308, 1.7e308],
    "below the range": [-3e-310, -1e-310, 0.0, 2e-310],
    "far off": [1e15 + point for point in range(5)],
}


@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("ratio", [1e-300, 1e-3, 0.1, 0.75, 3.0, 40.0, 1e3, 1e8, 1e16, 3e16, 1e17, 1e300])
def test_hl_gauss_is_mpmaths_whatever_the_ratio_and_the_scale(support: str, ratio: float) -> None:
    points = SUPPORTS[support]
    values = [points[0], points[1], points[1] / 2 + points[2] / 2, points[-1] * 0.9, -math.inf, math.inf]
    values += [*points[2:], 0.1, 7.5] if support == "uneven" else []
    dense = hl_gauss(torch.tensor(values, dtype=F64), torch.tensor(points, dtype=F64), ratio).dense(F64).numpy()
    for row, value in zip(dense, values, strict=True):
        expected = bins_of(value, points, ratio, 80 if ratio < 1e20 else 700)
        np.testing.assert_allclose(row, expected, rtol=3e-12, atol=1e-290)
        assert row.sum() == pytest.approx(1, abs=1e-14)


def test_hl_gauss_of_many_narrow_bins() -> None:
    points = np.linspace(-300, 300, 601)
    for ratio in (20.0, 60.0, 500.0):
        target = hl_gauss(torch.tensor([3.7], dtype=F64), torch.from_numpy(points), ratio)
        np.testing.assert_allclose(target.dense(F64)[0], bins_of(3.7, points.tolist(), ratio, 60), rtol=1e-12)


@pytest.mark.parametrize("support", SUPPORTS)
def test_two_hot_is_the_exact_fraction(support: str) -> None:
    points = SUPPORTS[support]
    values = [*points, *(a / 2 + b / 2 for a, b in pairwise(points)), *(a / 4 + b * 0.75 for a, b in pairwise(points))]
    target = two_hot(torch.tensor(values, dtype=F64), torch.tensor(points, dtype=F64))
    for row, value in zip(target.dense(F64).tolist(), values, strict=True):
        lower = max(place for place, point in enumerate(points[:-1]) if point <= value)
        share = (Fraction(value) - Fraction(points[lower])) / (Fraction(points[lower + 1]) - Fraction(points[lower]))
        expected = [0.0] * len(points)
        expected[lower], expected[lower + 1] = float(1 - share), float(share)
        np.testing.assert_allclose(row, expected, atol=3e-16)


def test_a_value_beyond_float32_is_read_out_again() -> None:
    support = torch.tensor([-1.7e308, 0.0, 1.7e308], dtype=F64)
    assert expected_value(torch.tensor([[0.0, -math.inf, 0.0]]), support).item() == 0
    assert expected_value(torch.zeros(1, 3, dtype=F64), support).item() == 0


# ---- completed values


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("scale", [123456789.123, -98765.4321, 1e-9, 1e15, 0.1, 1.7e308])
@pytest.mark.parametrize("value", [True, False])
def test_values_that_are_all_alike_leave_the_prior(scale: float, dtype: torch.dtype, value: bool) -> None:
    logits = torch.randn(200, 6, dtype=F64)
    alike = torch.full((200, 6), scale if dtype == F64 else min(scale, 1e38), dtype=dtype)
    visits = torch.randint(0, 9, (200, 6)) * torch.randint(0, 2, (200, 6))
    target = completed_q(logits, alike, visits, value=alike[:, 0] if value else None)
    torch.testing.assert_close(target.dense(F64), logits.softmax(-1), rtol=1e-9, atol=0)


def completed(logits: list[float], q: list[float], visits: list[int], value: float) -> list[Any]:
    """Danihelka et al.'s equation 11 with mctx's rescaling, in 60 digits."""
    with mpmath.workdps(60):
        exponentials = [mpmath.exp(mpmath.mpf(each)) for each in logits]
        seen = [place for place, count in enumerate(visits) if count]
        number, of_value = sum(visits), mpmath.mpf(value)
        mixed = of_value
        if seen:
            weight = sum(exponentials[place] for place in seen)
            mean = sum(exponentials[place] * mpmath.mpf(q[place]) for place in seen) / weight
            mixed = (of_value + number * mean) / (number + 1)
        full = [mpmath.mpf(q[place]) if visits[place] else mixed for place in range(len(q))]
        spread = max(max(full) - min(full), mpmath.mpf("1e-8"))
        sigma = mpmath.mpf("0.1") * (50 + max(visits))
        terms = [e * mpmath.exp(sigma * (f - min(full)) / spread) for e, f in zip(exponentials, full, strict=True)]
        return [float(term / sum(terms)) for term in terms]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6, 1e12])
@pytest.mark.parametrize("offset", [0.0, 3.7, -1e4])
def test_values_that_differ_are_as_in_60_digits(scale: float, offset: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        logits, q = rng.normal(size=5), scale * (offset + rng.normal(size=5))
        visits, value = rng.integers(0, 6, 5) * rng.integers(0, 2, 5), float(scale * (offset + rng.normal()))
        found = completed_q(*(torch.from_numpy(each)[None] for each in (logits, q, visits)), value=value)
        expected = completed(logits.tolist(), q.tolist(), visits.tolist(), value)
        np.testing.assert_allclose(found.dense(F64)[0], expected, rtol=1e-9)


# ---- what a mask leaves of a steep table


def restricted(log_weights: list[Any], legal: list[bool]) -> Array:
    """`exp(log_weights)` over the legal classes, normalised; -inf is no share."""
    with mpmath.workdps(60):
        kept = [mpmath.exp(one) if ok else mpmath.mpf(0) for one, ok in zip(log_weights, legal, strict=True)]
        return np.array([float(one / sum(kept)) for one in kept])


K = 60
TREE = Tree.from_nested({"a": {"b": ["0", "1"], "c": {"d": ["2"], "e": ["3", "4"]}}, "f": ["5"]})
STEEP: dict[str, tuple[int, Callable[[Tensor, Tensor, bool], Target], Callable[[int, int], Any]]] = {
    **{
        f"exponential {decay} {power}": (
            K,
            lambda y, m, s, d=decay, p=power: (
                Smoothing(1.0, "exponential", decay=d, power=p)(y, K, m)  # type: ignore[misc]
                if s
                else ordinal(y, K, 1.0, "exponential", decay=d, power=p, mask=m)
            ),
            lambda t, k, d=decay, p=power: -mpmath.mpf(d) * mpmath.mpf(abs(t - k)) ** p,  # type: ignore[misc]
        )
        for decay, power in ((1.0, 2.0), (40.0, 1.0), (0.01, 3.0), (7.0, 0.5))
    },
    **{
        f"tree {decay}": (
            6,
            lambda y, m, s, d=decay: (
                Smoothing(1.0, TREE, decay=d)(y, 6, m)  # type: ignore[misc]
                if s
                else hierarchical(y, TREE, 1.0, d, mask=m)
            ),
            lambda t, k, d=decay: -mpmath.mpf(d) * int(TREE.distances[t, k]),  # type: ignore[misc]
        )
        for decay in (1.0, 30.0, 400.0)
    },
    "poisson": (
        K * 10,
        lambda y, m, s: Smoothing(1.0, "poisson")(y, K * 10, m) if s else ordinal(y, K * 10, 1.0, "poisson", mask=m),
        lambda t, k: k * mpmath.log(t + mpmath.mpf("0.5")) - mpmath.loggamma(k + 1),
    ),
    "kernel": (
        K,
        lambda y, m, s: Smoothing(1.0, TINY)(y, K, m) if s else kernel(y, TINY, 1.0, mask=m),
        lambda t, k: mpmath.log(mpmath.mpf(float(TINY[t, k]))),
    ),
    "prior": (
        K,
        lambda y, m, s: Smoothing(1.0, RARE)(y, K, m) if s else prior(y, RARE, 1.0, mask=m),
        lambda t, k: mpmath.log(mpmath.mpf(float(RARE[k]))),
    ),
}
TINY = 10.0 ** -torch.arange(K, dtype=F64).sub(torch.arange(K, dtype=F64)[:, None]).abs().mul(5.0).clamp_max(300)
RARE = torch.cat((torch.ones(1, dtype=F64), 10.0 ** -torch.linspace(20, 307, K - 1, dtype=F64)))
MODULES = ("target", "arguments", "labelled", "structured", "smoothing")


@pytest.mark.parametrize("through_smoothing", [False, True])
@pytest.mark.parametrize("kind", STEEP)
def test_legal_classes_far_from_the_label_keep_their_shares(kind: str, through_smoothing: bool) -> None:
    num_classes, build, log_weight = STEEP[kind]
    rng = np.random.default_rng(1)
    labels = torch.from_numpy(rng.integers(0, num_classes, 12))
    legal = np.zeros((12, num_classes), bool)
    for row, label in enumerate(labels.tolist()):  # the label, and the two classes that are farthest from it
        far = sorted(range(num_classes), key=lambda k, t=label: abs(k - t))[-2:]  # type: ignore[misc]
        legal[row, [label, *far]] = True
    target = build(labels, torch.from_numpy(legal), through_smoothing)
    dense = target.dense(F64).numpy()
    logits = torch.randn(12, num_classes)
    rows = cross_entropy(logits, target, mask=torch.from_numpy(legal), reduction="none")
    for row, label in enumerate(labels.tolist()):
        others = legal[row] if kind == "prior" else legal[row] & (np.arange(num_classes) != label)
        expected = restricted([log_weight(label, k) for k in range(num_classes)], others.tolist())
        np.testing.assert_allclose(dense[row], expected, rtol=1e-10, atol=1e-300)
        log_p = logits[row].double().masked_fill(torch.from_numpy(~legal[row]), -math.inf).log_softmax(-1)
        loss = -(expected[legal[row]] * log_p[legal[row]].numpy()).sum()
        assert rows[row].item() == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("kind", STEEP)
def test_and_on_a_device_without_float64(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in MODULES:
        monkeypatch.setattr(f"rlsmooth.targets.{module}.weight_dtype", lambda device: torch.float32)
    num_classes, build, log_weight = STEEP[kind]
    legal = torch.zeros(1, num_classes, dtype=torch.bool)
    legal[0, [0, -1, -2]] = True
    target = build(torch.tensor([0]), legal, False)
    assert target.atom_weights.dtype == torch.float32
    others = [bool(ok) and (kind == "prior" or k > 0) for k, ok in enumerate(legal[0].tolist())]
    if kind == "prior":
        return  # float32 has no 1e-300 to begin with
    expected = restricted([log_weight(0, k) for k in range(num_classes)], others)
    np.testing.assert_allclose(target.dense(F64)[0], expected, rtol=2e-3, atol=1e-30)


def test_beyond_every_number_the_nearest_legal_class_takes_all() -> None:
    mask = torch.tensor([[True, False, False, False, True, True]])
    for target in (
        ordinal([0], 6, 0.2, "exponential", decay=1e308, power=400.0, mask=mask),
        ordinal([0], 6, 0.2, "exponential", decay=1.0, power=1e4, mask=mask),
        Smoothing(0.2, Tree.from_nested([["0", [["1", "2"]]], [[["3"]], ["4", ["5"]]]]), decay=1e308)([0], 6, mask),
    ):
        np.testing.assert_allclose(target.dense(F64)[0], [0.8, 0, 0, 0, 0.2, 0])


def test_beta_far_from_its_mode() -> None:
    with mpmath.workdps(80):
        for label in (0, 3):
            mode, edges = (mpmath.mpf(label) + 0.5) / 8, [mpmath.mpf(k) / 8 for k in range(9)]
            a, b = 1 + mode * 4998, 1 + (1 - mode) * 4998

            def density(x: Any, a: Any = a, b: Any = b) -> Any:
                return x ** (a - 1) * (1 - x) ** (b - 1)

            bins = {k: mpmath.quad(density, mpmath.linspace(edges[k], edges[k + 1], 60)) for k in (6, 7)}
            kept = [bins.get(k, mpmath.mpf(0)) for k in range(8)]
            expected = [float(one / sum(kept)) for one in kept]
            mask = torch.tensor([k in (label, 6, 7) for k in range(8)])
            found = ordinal([label], 8, 1.0, "beta", concentration=5000.0, mask=mask).dense(F64)[0]
            np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-300)


# ---- mass


@pytest.mark.parametrize("rows", [3, 100_000])
def test_written_out_sums_its_mass_in_float64(rows: int) -> None:
    probabilities = torch.rand(2, rows, dtype=F64).softmax(-1)
    written = uniform([0, 1], rows, 0.3).written_out() if rows == 3 else Target.mix(
        prior([0, 1], probabilities[0], 1.0), prior([1, 0], probabilities[1], 1.0), 0.5
    ).written_out()  # fmt: skip
    assert written.reference is not None
    assert written.reference.values is not None
    exact = [math.fsum(row) for row in written.reference.values.tolist()]
    assert written.mass().dtype == F64
    np.testing.assert_allclose(written.mass(), exact, rtol=1e-14)
    entropy = [math.fsum(-v * math.log(v) for v in row) for row in written.reference.values.tolist()]
    np.testing.assert_allclose(written.entropy(), entropy, rtol=1e-12)


def test_the_entropy_of_what_two_signs_made_positive() -> None:
    negative = Target.mix(boltzmann(torch.zeros(1, 2)), boltzmann(torch.tensor([[0.0, 1.0]])), 0.5).scale(-0.1)
    assert negative.entropy().isnan().all()
    assert negative.scale(0.0).entropy().item() == 0
    q = -negative.dense(F64)
    assert Target.mix(negative, negative, 0.5).scale(-1.0).entropy().item() == pytest.approx(
        -(q * q.log()).sum().item()
    )
