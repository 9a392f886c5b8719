"""The incomplete beta function against scipy's, both tails."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import torch

from rlsmooth.targets.special import regularised_incomplete_beta


def tails(a: object, b: object, x: object) -> tuple[np.ndarray, np.ndarray]:
    lower, upper = regularised_incomplete_beta(*(torch.as_tensor(value, dtype=torch.float64) for value in (a, b, x)))
    return lower.numpy(), upper.numpy()


@pytest.mark.parametrize(
    ("largest", "tolerance"), [(1e1, 1e-11), (1e2, 1e-11), (1e3, 1e-11), (1e4, 1e-10), (1e5, 1e-9), (1e6, 1e-8)]
)
def test_both_tails_over_wide_ranges(largest: float, tolerance: float) -> None:
    """a, b >= 1, as bins of a unimodal Beta need: relative accuracy down to 1e-280, far tails included."""
    generator = np.random.default_rng(0)
    a, b = (10 ** generator.uniform(0, np.log10(largest), 300) for _ in range(2))
    x = generator.uniform(0, 1, 300)
    x[:150] = np.clip(a[:150] / (a[:150] + b[:150]) * generator.uniform(0.9, 1.1, 150), 0, 1)  # around the mean
    lower, upper = tails(a, b, x)
    for ours, theirs in ((lower, scipy.special.betainc(a, b, x)), (upper, scipy.special.betaincc(a, b, x))):
        seen = theirs > 1e-280
        assert seen.sum() > 50
        np.testing.assert_allclose(ours[seen], theirs[seen], rtol=tolerance)
        np.testing.assert_allclose(ours[~seen], 0.0, atol=1e-279)


@pytest.mark.parametrize(("a", "b"), [(1e-3, 1e-3), (1e-3, 10.0), (10.0, 1e-3), (0.5, 0.5), (0.1, 200.0)])
def test_parameters_under_one(a: float, b: float) -> None:
    x = np.linspace(0.001, 0.999, 41)
    lower, upper = tails(a, b, x)
    np.testing.assert_allclose(lower, scipy.special.betainc(a, b, x), atol=1e-12, rtol=1e-10)
    np.testing.assert_allclose(upper, scipy.special.betaincc(a, b, x), atol=1e-12, rtol=1e-10)


def test_the_ends_are_exact() -> None:
    lower, upper = tails([0.5, 1.0, 30.0], [2.0, 1.0, 0.1], 0.0)
    assert lower.tolist() == [0.0] * 3
    assert upper.tolist() == [1.0] * 3
    lower, upper = tails([0.5, 1.0, 30.0], [2.0, 1.0, 0.1], 1.0)
    assert lower.tolist() == [1.0] * 3
    assert upper.tolist() == [0.0] * 3


def test_the_uniform_law_and_powers_are_exact() -> None:
    x = np.linspace(0, 1, 11)
    np.testing.assert_allclose(tails(1.0, 1.0, x)[0], x, atol=1e-15)
    np.testing.assert_allclose(tails(3.0, 1.0, x)[0], x**3, atol=1e-15)
    np.testing.assert_allclose(tails(1.0, 4.0, x)[1], (1 - x) ** 4, atol=1e-15)


def test_a_fraction_that_does_not_converge_says_so() -> None:
    with pytest.raises(ValueError, match="not converged"):
        tails(1e13, 1e13, 0.5)


def test_arguments_broadcast() -> None:
    lower, upper = tails([[1.0], [2.0]], [3.0, 4.0, 5.0], 0.25)
    assert lower.shape == upper.shape == (2, 3)
    np.testing.assert_allclose(lower, scipy.special.betainc([[1.0], [2.0]], [3.0, 4.0, 5.0], 0.25), rtol=1e-13)
