"""Random targets, against plain loops in exact or long arithmetic: `make fuzz`. No product code is in an oracle."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import Any

import mpmath  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch

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
    one_hot,
    ordinal,
    prior,
    sparse,
    teacher,
    two_hot,
    uniform,
    visit_counts,
)

F64 = torch.float64
Row = list[Any]  # of mpmath's numbers
Made = tuple[Target, Row]  # a batch of one, and its distribution
CASES = 400


@pytest.fixture(autouse=True)
def many_digits() -> Any:
    with mpmath.workdps(50):
        yield


def normalised(row: Row) -> Row:
    total = sum(row)
    return [each / total for each in row]


def mixed(alpha: float, label: int, background: Row) -> Row:
    """`(1 - alpha) onehot + alpha background`; hard where there is no background."""
    if not sum(background):
        alpha = 0.0
    row = [mpmath.mpf(alpha) * each for each in background]
    row[label] += 1 - mpmath.mpf(alpha)
    return row


def restricted(row: Row, legal: list[bool]) -> Row:
    kept = [each if ok else mpmath.mpf(0) for each, ok in zip(row, legal, strict=True)]
    return normalised(kept) if sum(kept) else kept


def draw_alpha(rng: random.Random) -> float:
    return rng.choice([0.0, 1.0, 0.1, rng.random(), -rng.random() / 4, 1e-12, 1 - 1e-9])


def draw_tree(rng: random.Random, leaves: list[str]) -> Any:
    """A random nesting of the leaves."""
    if len(leaves) == 1 or rng.random() < 0.3:
        return leaves if len(leaves) > 1 or rng.random() < 0.5 else [leaves]
    cut = rng.randrange(1, len(leaves))
    return [draw_tree(rng, leaves[:cut]), draw_tree(rng, leaves[cut:])]


def depth_paths(nested: Any, path: tuple[int, ...] = ()) -> dict[str, tuple[int, ...]]:
    """Each leaf's way down from the root."""
    if isinstance(nested, str):
        return {nested: path}
    found: dict[str, tuple[int, ...]] = {}
    for place, part in enumerate(nested):
        found |= depth_paths(part, (*path, place))
    return found


def edges_between(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    shared = 0
    while shared < min(len(one), len(other)) and one[shared] == other[shared]:
        shared += 1
    return len(one) + len(other) - 2 * shared


def make_smoothed(rng: random.Random, k: int, label: int, legal: list[bool]) -> Made:
    """One builder, or the recipe that stands for it."""
    alpha, masked = draw_alpha(rng), rng.random() < 0.6
    if not masked:
        legal = [True] * k
    mask = torch.tensor([legal]) if masked else None
    labels = torch.tensor([label])
    kind = rng.choice(["one_hot", "uniform", "others", "prior", "kernel", "tree", "exponential", "confidence"])
    through = rng.random() < 0.5
    ones = [mpmath.mpf(1)] * k
    off = [mpmath.mpf(int(place != label)) for place in range(k)]
    if kind == "one_hot":
        return one_hot(labels, k, mask=mask), mixed(0.0, label, ones)
    if kind == "uniform":
        made = Smoothing(alpha)(labels, k, mask) if through else uniform(labels, k, alpha, mask=mask)
        return made, mixed(alpha, label, restricted(ones, legal))
    if kind in ("others", "confidence"):
        if kind == "confidence":
            alpha = rng.random()
            return confidence_adaptive(labels, 1 - alpha, k, mask=mask), mixed(
                1 - (1 - alpha), label, restricted(off, legal)
            )
        made = (
            Smoothing(alpha, spread="others")(labels, k, mask)
            if through
            else uniform(labels, k, alpha, "others", mask=mask)
        )
        return made, mixed(alpha, label, restricted(off, legal))
    if kind == "prior":
        shares = np.array([10.0 ** -rng.uniform(0, rng.choice([1, 300])) for _ in range(k)])
        shares /= shares.sum()
        if masked and not shares[np.array(legal)].any():
            return one_hot(labels, k), mixed(0.0, label, ones)
        given = torch.from_numpy(shares)
        made = Smoothing(alpha, given)(labels, k, mask) if through else prior(labels, given, alpha, mask=mask)
        row = [mpmath.mpf(float(share)) for share in shares]
        return made, mixed(alpha, label, restricted(row, legal) if masked else row)
    if kind == "kernel":
        spread = rng.choice([1, 300])
        table = np.array([[10.0 ** -rng.uniform(0, spread) for _ in range(k)] for _ in range(k)])
        given = torch.from_numpy(table)
        made = Smoothing(alpha, given)(labels, k, mask) if through else kernel(labels, given, alpha, mask=mask)
        weights = [off[place] * mpmath.mpf(float(table[label, place])) for place in range(k)]
        return made, mixed(alpha, label, restricted(weights, legal))
    decay = rng.choice([0.0, 1.0, 10.0 ** rng.uniform(-3, 3)])
    if kind == "tree":
        names = [f"class {place}" for place in range(k)]
        shuffled = rng.sample(names, k)
        nested = draw_tree(rng, shuffled)
        nested = [nested] if isinstance(nested, str) else nested
        tree, paths = Tree.from_nested(nested, class_names=names), depth_paths(nested)
        given = [names[label]] if rng.random() < 0.5 else labels
        recipe = Smoothing(alpha, tree, decay=decay)
        made = recipe(given, k, mask) if through else hierarchical(given, tree, alpha, decay, mask=mask)
        far = [mpmath.mpf(edges_between(paths[names[label]], paths[name])) for name in names]
        weights = [o * mpmath.exp(-mpmath.mpf(decay) * d) for o, d in zip(off, far, strict=True)]
        return made, mixed(alpha, label, restricted(weights, legal))
    power = rng.choice([1.0, 2.0, rng.uniform(0.1, 4)])
    recipe = Smoothing(alpha, "exponential", decay=decay, power=power)
    made = recipe(labels, k, mask) if through else ordinal(labels, k, alpha, decay=decay, power=power, mask=mask)
    weights = [o * mpmath.exp(-mpmath.mpf(decay) * mpmath.mpf(abs(j - label)) ** power) for j, o in enumerate(off)]
    return made, mixed(alpha, label, restricted(weights, legal))


def make_given(rng: random.Random, k: int, label: int, legal: list[bool]) -> Made:
    """Targets of values, visits, teachers and atoms."""
    kind = rng.choice(["mixture", "sparse", "visits", "boltzmann", "teacher"])
    mask = torch.tensor([legal])
    if kind == "mixture":
        parents = [rng.randrange(k) for _ in range(rng.randint(1, 4))]
        shares = np.array([rng.random() for _ in parents]) + 1e-3
        shares /= shares.sum()
        alpha = draw_alpha(rng)
        made = mixture(torch.tensor([parents]), torch.from_numpy(shares)[None], k, alpha)
        others = [place for place in range(k) if place not in parents]
        row = [mpmath.mpf(0)] * k
        for parent, share in zip(parents, shares, strict=True):
            row[parent] += mpmath.mpf(float(share)) * (1 - mpmath.mpf(alpha) if others else 1)
        for place in others:
            row[place] += mpmath.mpf(alpha) / len(others)
        return made, row
    if kind == "sparse":
        places = [rng.randrange(k) for _ in range(rng.randint(1, 5))]
        weights = [rng.uniform(-1, 1) for _ in places]
        row = [mpmath.mpf(0)] * k
        for place, weight in zip(places, weights, strict=True):
            row[place] += mpmath.mpf(weight)
        return sparse(torch.tensor([places]), torch.tensor([weights], dtype=F64), k), row
    temperature = 10.0 ** rng.uniform(-2, 2)
    if kind == "visits":
        counts = [rng.randrange(0, 50) for _ in range(k)]
        counts[label] += 1
        row = normalised(
            [mpmath.mpf(count) ** (1 / mpmath.mpf(temperature)) if count else mpmath.mpf(0) for count in counts]
        )
        return visit_counts(torch.tensor([counts]), temperature), row
    values = [rng.choice([0.0, 1e4, -1e8]) + rng.gauss(0, 1) for _ in range(k)]
    values = [value - max(values) * rng.choice([0, 1]) for value in values]
    top = max(value for value, ok in zip(values, legal, strict=True) if ok)
    row = restricted(
        [mpmath.exp((mpmath.mpf(value) - mpmath.mpf(top)) / mpmath.mpf(temperature)) for value in values], legal
    )
    given = torch.tensor([values], dtype=F64)
    if kind == "boltzmann":
        return boltzmann(given, temperature, mask=mask), row
    alpha = draw_alpha(rng)
    return teacher(given, temperature, torch.tensor([label]), alpha, mask=mask), mixed(alpha, label, row)


def draw(rng: random.Random, k: int) -> Made:
    label = rng.randrange(k)
    legal = [rng.random() < 0.5 or place == label for place in range(k)]
    return rng.choice([make_smoothed, make_given])(rng, k, label, legal)


def assert_row(target: Target, row: Row, tolerance: float = 1e-11, size: float = 1.0) -> None:
    """Equal to `tolerance` of each entry, and to a few ulps of `size`, that of what was added up."""
    found = target.dense(F64)[0].tolist()
    for one, exact in zip(found, row, strict=True):
        assert abs(one - exact) <= tolerance * abs(exact) + 4e-15 * size, (found, [float(each) for each in row])
    mass = sum(row)
    assert abs(target.mass().item() - mass) <= 1e-12 * (size + sum(abs(each) for each in row))
    if min(row) >= 0:
        assert min(found) >= 0
        entropy = -sum(each * mpmath.log(each) for each in row if each)
        assert abs(target.entropy().item() - entropy) <= 20 * tolerance * (1 + size) * (1 + abs(entropy))


def test_targets_and_what_is_made_of_them(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(CASES):
        k = rng.choice([2, 3, rng.randint(2, 12)])
        (one, first), (two, second) = draw(rng, k), draw(rng, k)
        assert_row(one, first)
        size = 1.0
        for _ in range(rng.randint(0, 3)):
            change = rng.choice(["mix", "scale", "weight", "index", "cat", "round trip"])
            if change == "mix":
                lam = rng.choice([0.0, 1.0, rng.random()])
                share = mpmath.mpf(lam)
                size = lam * size + 1 - lam
                one, first = (
                    Target.mix(one, two, lam),
                    [share * a + (1 - share) * b for a, b in zip(first, second, strict=True)],
                )
            elif change == "scale":
                factor = rng.choice([0.0, rng.uniform(-3, 3)])
                size *= abs(factor)
                one, first = one.scale(factor), [mpmath.mpf(factor) * each for each in first]
            elif change == "weight":
                weights = [rng.choice([0.0, rng.uniform(0, 5)]) for _ in range(k)]
                one = one.weight_classes(torch.tensor(weights, dtype=F64))
                size *= max(weights)
                first = [mpmath.mpf(weight) * each for weight, each in zip(weights, first, strict=True)]
            elif change == "cat":
                joined = Target.cat([two, one])
                assert_row(joined[:1], second)
                one = joined[1:]
            elif change == "index":
                one = one[torch.tensor([0, 0])].reshape(2, 1)[1]
            else:
                one = one.__class__(*one.__reduce__()[1])
            assert_row(one, first, 1e-10, size)


def test_values_on_a_support(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(CASES // 4):
        scale = 10.0 ** rng.uniform(-300, 300)
        points = sorted({scale * rng.uniform(-1, 1) for _ in range(rng.randint(2, 9))})
        if rng.random() < 0.5:
            points = [scale * place for place in range(-rng.randint(1, 9), rng.randint(1, 9))]
        value = rng.choice([rng.choice(points), rng.uniform(points[0], points[-1]), points[-1] * 3, -math.inf])
        at = min(max(value, points[0]), points[-1])
        support = torch.tensor(points, dtype=F64)
        row = [mpmath.mpf(0)] * len(points)
        lower = max(place for place, point in enumerate(points[:-1]) if point <= at)
        share = (mpmath.mpf(at) - points[lower]) / (mpmath.mpf(points[lower + 1]) - points[lower])
        row[lower], row[lower + 1] = 1 - share, share
        assert_row(two_hot(torch.tensor([value], dtype=F64), support), row)
        ratio = rng.choice([0.75, 10.0 ** rng.uniform(-3, 18)])
        inner = [(mpmath.mpf(a) + b) / 2 for a, b in pairwise(points)]
        edges = [2 * mpmath.mpf(points[0]) - inner[0], *inner, 2 * mpmath.mpf(points[-1]) - inner[-1]]
        widths = [b - a for a, b in pairwise(edges)]
        sigma = mpmath.mpf(ratio) * (widths[lower] + share * (widths[lower + 1] - widths[lower]))
        masses = []
        for a, b in pairwise([min(max((edge - at) / sigma, mpmath.mpf(-60)), mpmath.mpf(60)) for edge in edges]):
            masses.append(mpmath.ncdf(b) - mpmath.ncdf(a) if a < 0 else mpmath.ncdf(-a) - mpmath.ncdf(-b))
        assert_row(hl_gauss(torch.tensor([value], dtype=F64), support, ratio), normalised(masses), 1e-10)


def test_completed_values(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(CASES):
        k = rng.randint(2, 8)
        legal = [rng.random() < 0.7 for _ in range(k)]
        legal[rng.randrange(k)] = True
        offset, scale = rng.choice([0.0, 1e3, -1e5]), 10.0 ** rng.uniform(-3, 6)
        alike = rng.random() < 0.3
        q = [offset + scale * (0 if alike else rng.gauss(0, 1)) for _ in range(k)]
        value = q[0] if alike else offset + scale * rng.gauss(0, 1)
        logits = [rng.gauss(0, 2) for _ in range(k)]
        visits = [rng.choice([0, 0, 1, rng.randrange(20)]) if ok else 0 for ok in legal]
        made = completed_q(
            torch.tensor([logits], dtype=F64), torch.tensor([q], dtype=F64), torch.tensor([visits]), value=value,
            mask=torch.tensor([legal]),
        )  # fmt: skip
        p = [mpmath.exp(mpmath.mpf(each)) for each in logits]
        seen = [place for place in range(k) if visits[place]]
        mean = (
            sum(p[place] * mpmath.mpf(q[place]) for place in seen) / sum(p[place] for place in seen)
            if seen
            else mpmath.mpf(value)
        )
        filled = (mpmath.mpf(value) + sum(visits) * mean) / (sum(visits) + 1)
        full = [mpmath.mpf(q[place]) if visits[place] else filled for place in range(k)]
        known = [each for each, ok in zip(full, legal, strict=True) if ok]
        spread = max(max(known) - min(known), mpmath.mpf("1e-8"))
        sigma = mpmath.mpf("0.1") * (50 + max(visits))
        gains = [mpmath.exp(sigma * (each - min(known)) / spread) for each in full]
        row = restricted([a * b for a, b in zip(p, gains, strict=True)], legal)
        # As exact as the values are beside their range
        rounding = 2e-15 * float(sigma * max(map(abs, full)) / spread) if not alike else 0.0
        assert_row(made, row, 1e-10 + rounding)
