"""Random logits, targets, masks and weights, against the losses' formulas in long arithmetic: `make fuzz`."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import mpmath  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor

from rlsmooth.losses import (
    binary_cross_entropy,
    confidence_penalty,
    cross_entropy,
    entropy,
    gaussian_cross_entropy,
    gaussian_kl_divergence,
    kl_divergence,
    label_relaxation,
    margin_penalty,
    statistics,
)
from rlsmooth.targets import Target, from_probs, gaussian, prior, uniform

F64 = torch.float64
CASES = 150
Rows = list[list[Any]]


@pytest.fixture(autouse=True)
def many_digits() -> Any:
    with mpmath.workdps(40):
        yield


def probabilities(row: list[float], legal: list[bool]) -> list[Any]:
    top = max(value for value, ok in zip(row, legal, strict=True) if ok)
    kept = [
        mpmath.exp(mpmath.mpf(value) - mpmath.mpf(top)) if ok else mpmath.mpf(0)
        for value, ok in zip(row, legal, strict=True)
    ]
    return [each / sum(kept) for each in kept]


class Case:
    """Logits, a target that is known number by number, a mask and weights."""

    def __init__(self, rng: random.Random, dtype: torch.dtype) -> None:
        self.rows, self.k = rng.randint(1, 6), rng.randint(1, 9)
        offset = rng.choice([0.0, 1e4, -1e4])
        scale = rng.choice([0.1, 3.0, 30.0])
        masked = rng.random() < 0.5
        self.labels = [rng.randrange(self.k) for _ in range(self.rows)]
        self.legal = [
            [not masked or rng.random() < 0.6 or place == label for place in range(self.k)] for label in self.labels
        ]
        drawn = [[offset + scale * rng.gauss(0, 1) for _ in range(self.k)] for _ in range(self.rows)]
        self.logits = torch.tensor(drawn, dtype=dtype)
        self.values = self.logits.tolist()  # as they are in that precision
        self.p = [probabilities(row, legal) for row, legal in zip(self.values, self.legal, strict=True)]
        self.mask = torch.tensor(self.legal) if masked else None
        kind, alpha = rng.choice(["uniform", "others", "prior", "probs"]), rng.choice([0.0, 0.1, 1.0, rng.random()])
        labels = torch.tensor(self.labels)
        ones = [[1.0] * self.k for _ in self.labels]
        if kind == "prior":
            ones = [[rng.random() + 0.01 for _ in range(self.k)]] * self.rows
        elif kind == "probs":
            ones = [[rng.random() + 0.01 for _ in range(self.k)] for _ in self.labels]
        elif kind == "others":
            ones = [[float(place != label) for place in range(self.k)] for label in self.labels]
        self.q: Rows = []
        for label, weights, legal in zip(self.labels, ones, self.legal, strict=True):
            kept = [mpmath.mpf(weight) if ok else mpmath.mpf(0) for weight, ok in zip(weights, legal, strict=True)]
            background = [each / sum(kept) if sum(kept) else mpmath.mpf(0) for each in kept]
            level = mpmath.mpf(alpha) if sum(kept) else mpmath.mpf(0)
            level = mpmath.mpf(1) if kind == "probs" else level
            self.q.append([level * each + (1 - level) * (place == label) for place, each in enumerate(background)])
        self.target: Target
        if kind == "probs":
            self.target = from_probs(torch.tensor([[float(each) for each in row] for row in self.q], dtype=F64))
        elif kind == "prior":
            shares = torch.tensor(ones[0], dtype=F64)
            self.target = prior(labels, shares / shares.sum(), alpha, mask=self.mask)
        else:
            self.target = uniform(labels, self.k, alpha, "others" if kind == "others" else "all", mask=self.mask)
        if rng.random() < 0.3:
            self.target = self.target.written_out(F64, find_positive=rng.random() < 0.5)
        self.weight = [rng.choice([0.0, 1.0, rng.uniform(0, 3)]) for _ in self.labels]

    def expected(self, row: int, name: str) -> Any:
        p, q, legal = self.p[row], self.q[row], self.legal[row]
        count = sum(legal)

        def log_ratio(one: list[Any], two: list[Any]) -> Any:
            return sum(a * mpmath.log(a / b) for a, b in zip(one, two, strict=True) if a)

        even = [mpmath.mpf(int(ok)) / count for ok in legal]
        if name == "cross_entropy":
            return -sum(a * mpmath.log(b) for a, b in zip(q, p, strict=True) if a)
        if name == "entropy":
            return -sum(each * mpmath.log(each) for each in p if each)
        if name == "to the policy":
            return log_ratio(q, p)
        if name == "of the policy, even":
            return log_ratio(p, even)
        if name == "to the policy, even":
            return log_ratio(even, p)
        if name == "margin":
            shown = [mpmath.mpf(value) for value, ok in zip(self.values[row], legal, strict=True) if ok]
            return sum(max(0, max(shown) - value - 1) for value in shown)
        t, at = q[self.labels[row]], p[self.labels[row]]
        if at >= t or t == 0:
            return mpmath.mpf(0)
        return t * mpmath.log(t / at) + ((1 - t) * mpmath.log((1 - t) / (1 - at)) if t < 1 else 0)


FOUND: dict[str, Callable[[Tensor, Case], Tensor]] = {
    "cross_entropy": lambda x, c: cross_entropy(x, c.target, mask=c.mask, reduction="none"),
    "entropy": lambda x, c: entropy(x, c.mask),
    "to the policy": lambda x, c: kl_divergence(
        x, c.target, direction="reference_to_policy", mask=c.mask, reduction="none"
    ),
    "of the policy, even": lambda x, c: kl_divergence(
        x, direction="policy_to_reference", mask=c.mask, reduction="none"
    ),
    "to the policy, even": lambda x, c: kl_divergence(
        x, direction="reference_to_policy", mask=c.mask, reduction="none"
    ),
    "margin": lambda x, c: margin_penalty(x, margin=1.0, mask=c.mask, reduction="none"),
    "relaxation": lambda x, c: label_relaxation(x, c.target, mask=c.mask, reduction="none"),
}


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_losses_of_policies(seed: int, dtype: torch.dtype) -> None:
    rng = random.Random(seed)
    tight = 1e-12 if dtype == F64 else 4e-6
    for _ in range(CASES):
        case = Case(rng, dtype)
        for name, loss in FOUND.items():
            if name == "relaxation" and not case.target.atom_indices.shape[-1]:
                continue
            rows = loss(case.logits, case)
            for row in range(case.rows):
                exact = case.expected(row, name)
                size = 1 + abs(exact) + (max(map(abs, case.values[row])) if name == "margin" else 0)
                size += 40 * mpmath.mpf(case.k) if name == "to the policy" else 0
                assert abs(rows[row].item() - exact) <= tight * size, (name, rows[row].item(), float(exact))
        ours = cross_entropy(case.logits, case.target, mask=case.mask, weight=torch.tensor(case.weight, dtype=dtype))
        exact = sum(w * case.expected(row, "cross_entropy") for row, w in enumerate(case.weight) if w)
        exact = exact / sum(case.weight) if sum(case.weight) else 0
        assert abs(ours.item() - exact) <= tight * (1 + abs(exact))
        leaf = case.logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(leaf, case.target, mask=case.mask, reduction="sum"), leaf)
        mapped = torch.func.grad(lambda x, c=case: cross_entropy(x, c.target, mask=c.mask, reduction="sum"))(
            case.logits
        )  # type: ignore[misc]
        for row in range(case.rows):
            for place in range(case.k):
                slope = case.p[row][place] - case.q[row][place] if case.legal[row][place] else 0
                for found in (gradient, mapped):
                    assert abs(found[row, place].item() - slope) <= tight
        measures = statistics(case.logits, case.target, case.mask)
        assert torch.equal(measures.cross_entropy, FOUND["cross_entropy"](case.logits, case)) or torch.allclose(
            measures.cross_entropy, FOUND["cross_entropy"](case.logits, case), rtol=1e-5, atol=1e-6
        )
        penalty = confidence_penalty(case.logits, mask=case.mask, reduction="none")
        assert torch.equal(penalty, -entropy(case.logits, case.mask))


def test_losses_of_discriminators_and_gaussians(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(CASES * 4):
        x, label = rng.choice([-50.0, 0.0, rng.gauss(0, 5)]), rng.choice([0.0, 1.0, rng.random()])
        real, fake = rng.choice([1.0, 0.9, rng.random()]), rng.choice([0.0, 0.1, rng.random()])
        t = mpmath.mpf(fake) + (mpmath.mpf(real) - mpmath.mpf(fake)) * mpmath.mpf(label)
        exact = t * mpmath.log1p(mpmath.exp(-x)) + (1 - t) * mpmath.log1p(mpmath.exp(x))
        ours = binary_cross_entropy(
            torch.tensor([x], dtype=F64), torch.tensor([label], dtype=F64), real_target=real, fake_target=fake
        )
        assert abs(ours.item() - exact) <= 1e-12 * (1 + abs(exact))
        mean, log_std, action, alpha = rng.gauss(0, 3), rng.uniform(-8, 3), rng.gauss(0, 3), rng.random()
        center, std = rng.gauss(0, 2), math.exp(rng.uniform(-3, 3))
        s, m = mpmath.exp(mpmath.mpf(log_std)), mpmath.mpf(mean)
        squares = (1 - mpmath.mpf(alpha)) * (action - m) ** 2
        squares += mpmath.mpf(alpha) * ((center - m) ** 2 + mpmath.mpf(std) ** 2)
        exact = squares / (2 * s**2) + mpmath.log(s) + mpmath.log(2 * mpmath.pi) / 2
        one = torch.ones(1, 1, dtype=F64)
        target = gaussian(action * one, alpha, reference_mean=center, reference_std=std)
        found = gaussian_cross_entropy(mean * one, log_std * one[0], target).item()
        assert abs(found - exact) <= 1e-12 * (1 + abs(exact))
        exact = mpmath.log(s / std) + (mpmath.mpf(std) ** 2 + (m - center) ** 2) / (2 * s**2) - mpmath.mpf(0.5)
        found = gaussian_kl_divergence(
            mean * one, log_std * one[0], center, std, direction="reference_to_policy"
        ).item()
        assert abs(found - exact) <= 1e-11 * (1 + abs(exact) + 1 / s**2)
