"""Two-hot and HL-Gauss targets against scipy: far tails, ends of the support, and what decoding gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlsmooth.losses import cross_entropy, expected_value
from rlsmooth.targets import Target, hl_gauss, two_hot
from support import assert_raises, assert_refuses

F64 = torch.float64
INF, NAN = math.inf, math.nan
UNEVEN = torch.tensor([-8.0, -3.0, -1.0, -0.5, 0.0, 0.25, 2.0, 9.0], dtype=F64)
EVEN = torch.linspace(-5, 5, 21, dtype=F64)
BUILDERS: list[Callable[..., Target]] = [two_hot, hl_gauss]
both_builders = pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)


def mean(target: Target, support: Tensor) -> Tensor:
    return target.dense(F64) @ support.to(target.device, F64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, F64])
@pytest.mark.parametrize("support", [UNEVEN, EVEN, UNEVEN[:1]], ids=["uneven", "even", "one point"])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,), (2, 0)])
def test_two_hot_is_two_points_with_the_value_for_a_mean(
    shape: tuple[int, ...], support: Tensor, dtype: torch.dtype, device: torch.device
) -> None:
    values = (6 * torch.randn(shape, device=device)).to(dtype)
    target = two_hot(values, support.to(device))
    dense = target.dense(F64)
    assert dense.shape == (*shape, len(support))
    assert target.atom_indices.shape == (*shape, 2)
    assert ((dense > 0).sum(-1) <= 2).all()
    assert (dense >= 0).all()
    torch.testing.assert_close(target.mass(), torch.ones(shape, dtype=F64, device=device), rtol=0, atol=1e-15)
    clamped = values.double().clamp(support[0].item(), support[-1].item())
    torch.testing.assert_close(mean(target, support), clamped, rtol=0, atol=1e-14)
    if values.numel() and len(support) > 1:  # numpy's interpolation of the one-hot rows is the same thing
        places = np.asarray(np.interp(clamped.cpu(), support, np.arange(len(support))))
        rows = np.maximum(0, 1 - abs(places[..., None] - np.arange(len(support))))
        np.testing.assert_allclose(dense.cpu(), rows, rtol=0, atol=1e-13)


@pytest.mark.parametrize("support", [UNEVEN, EVEN, torch.arange(-3, 4), torch.linspace(-1, 1, 51)])
def test_two_hot_is_exact_at_the_points(support: Tensor, device: torch.device) -> None:
    dense = two_hot(support.to(device), support.to(device)).dense(F64)
    assert torch.equal(dense, torch.eye(len(support), dtype=F64, device=device))


@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6), scale=st.floats(1e-3, 1e3))
def test_two_hot_decodes_to_the_clamped_value(values: list[float], scale: float) -> None:
    support, given_values = scale * UNEVEN, torch.tensor(values, dtype=F64)
    target = two_hot(given_values, support)
    clamped = given_values.clamp(support[0], support[-1])
    # -inf is the logit of a point without mass
    torch.testing.assert_close(
        expected_value(target.dense(F64).log(), support), clamped, rtol=0, atol=1e-13 * scale * 10
    )


@both_builders
def test_values_outside_are_clamped(build: Callable[..., Target], device: torch.device) -> None:
    values = torch.tensor([-INF, -1e30, -9.0, 9.5, 1e300, INF], dtype=F64, device=device)
    support = UNEVEN.to(device)
    ends = build(support[[0, 0, 0, -1, -1, -1]], support).dense(F64)
    assert torch.equal(build(values, support).dense(F64), ends)
    assert ends.isfinite().all()


def test_hl_gauss_agrees_with_scipy_in_logarithms(device: torch.device) -> None:
    """The logarithms, down to -600: what a KL divergence of two value targets would read."""
    centres = torch.arange(0, 28, dtype=F64, device=device)
    found = hl_gauss(torch.zeros((), dtype=F64, device=device), centres, 0.8).dense(F64).log().cpu().numpy()
    upper = scipy.stats.norm.logsf(np.arange(-0.5, 28) / 0.8)
    masses = upper[:-1] + np.log1p(-np.exp(upper[1:] - upper[:-1]))
    expected = masses - scipy.special.logsumexp(masses)
    assert expected[-1] < -550
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


def test_the_plain_difference_of_two_error_functions_would_lose_the_tail() -> None:
    """What ports of HL-Gauss do: 0 from eight standard deviations on, and 0/0 for a value far outside."""
    edges = torch.arange(-0.5, 28, dtype=F64) / 0.8 / math.sqrt(2)
    plain = torch.special.erf(edges).diff() / 2
    ours = hl_gauss(torch.zeros((), dtype=F64), torch.arange(0, 28)).dense(F64)
    assert (plain[9:] == 0).all()
    assert (ours > 0).all()


@pytest.mark.parametrize("support", [UNEVEN, EVEN], ids=["uneven", "even"])
def test_hl_gauss_is_symmetric_and_shifts(support: Tensor, device: torch.device) -> None:
    values = torch.linspace(-9, 9, 41, dtype=F64, device=device)
    support = support.to(device)
    dense = hl_gauss(values, support).dense(F64)
    torch.testing.assert_close(hl_gauss(-values, -support.flip(0)).dense(F64), dense.flip(-1), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(hl_gauss(8 * values, 8 * support).dense(F64), dense, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(hl_gauss(values + 64, support + 64).dense(F64), dense, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(
    ("ratio", "inside", "bins"),
    [(0.75, 4, 4.9e-6), (0.75, 1, 0.0471), (0.75, 0, 0.3689), (0.5, 4, 2.3e-3), (0.3, 4, 0.054)],
)
def test_how_far_decoding_is_off(ratio: float, inside: int, bins: float) -> None:
    """The docstring's numbers: the largest error from so many bins inside the support on, in bins."""
    support = torch.arange(41, dtype=F64)
    values = torch.linspace(inside, 20, 801, dtype=F64)
    worst = (mean(hl_gauss(values, support, ratio), support) - values).abs().max().item()
    assert 0.97 * bins < worst < bins


def test_a_wide_ratio_reaches_the_uniform_and_a_narrow_one_the_nearest_point(device: torch.device) -> None:
    values = torch.tensor([-0.3, 2.2], dtype=F64, device=device)
    support = EVEN.to(device)
    wide = hl_gauss(values, support, 1e6).dense(F64)
    torch.testing.assert_close(wide, torch.full_like(wide, 1 / 21), rtol=0, atol=1e-9)
    nearest = (values.unsqueeze(-1) - support).abs().argmin(-1)
    assert torch.equal(hl_gauss(values, support, 1e-9).dense(F64), torch.eye(21, dtype=F64, device=device)[nearest])


def test_half_way_between_two_points_a_narrow_gaussian_is_shared(device: torch.device) -> None:
    dense = hl_gauss(torch.tensor([0.5], device=device), torch.arange(3, device=device), 1e-9).dense(F64)
    assert dense.tolist() == [[0.5, 0.5, 0.0]]


@both_builders
@pytest.mark.parametrize("offset", [1e4, 1e8])
def test_values_far_from_zero_keep_their_differences(
    build: Callable[..., Target], offset: float, device: torch.device
) -> None:
    values = torch.tensor([0.25, 1.5], dtype=F64, device=device)
    support = torch.arange(4, dtype=F64, device=device)
    torch.testing.assert_close(
        build(values + offset, support + offset).dense(F64), build(values, support).dense(F64), rtol=0, atol=1e-7
    )


@both_builders
def test_a_support_of_one_point(build: Callable[..., Target], device: torch.device) -> None:
    target = build(torch.tensor([-INF, 0.0, 7.0], device=device), torch.tensor([3.0], device=device))
    assert target.dense().tolist() == [[1.0]] * 3
    assert cross_entropy(torch.randn(3, 1, device=device), target).item() == 0


@both_builders
def test_arrays_and_whole_numbers_are_taken(build: Callable[..., Target]) -> None:
    expected = build(torch.tensor([1.0, 2.0]), torch.arange(4.0)).dense(F64)
    values, support = np.array([1, 2]), np.arange(4)
    assert torch.equal(build(values, support).dense(F64), expected)
    assert torch.equal(build(torch.from_numpy(values), torch.from_numpy(support)).dense(F64), expected)


@both_builders
def test_a_nan_is_an_error_and_without_checks_stays_a_nan(build: Callable[..., Target], device: torch.device) -> None:
    values = torch.tensor([0.0, NAN], device=device)
    for support in (EVEN.to(device), EVEN[:1].to(device)):
        assert_raises(ValueError, r"^values\[1\] is NaN: drop the row", build, values, support)
        rows = cross_entropy(
            torch.zeros(2, len(support), device=device), build(values, support, validate=False), reduction="none"
        )
        assert rows.isnan().tolist() == [False, True]


@both_builders
@pytest.mark.parametrize(
    ("values", "support", "error", "message"),
    [
        ([0.0], torch.arange(3.0), TypeError, "values must be a tensor of numbers [...], got list."),
        (torch.ones(2) > 0, torch.arange(3.0), TypeError, "values must be a tensor of numbers [...], got torch.bool."),
        (torch.ones(2), [0.0, 1.0], TypeError, "support must be a tensor of numbers [K], got list."),
        (torch.ones(2), torch.zeros(2, dtype=torch.complex64), TypeError, "support must be a tensor of numbers"),
        (torch.ones(2), torch.zeros(2, 2), ValueError, "support has shape (2, 2), needs [K]"),
        (torch.ones(2), torch.zeros(()), ValueError, "support has shape (), needs [K]"),
        (torch.ones(2), torch.zeros(0), ValueError, "support has shape (0,), needs [K]"),
        (torch.ones(2), torch.tensor([0.0, NAN]), ValueError, "support[1]=nan must be finite."),
        (torch.ones(2), torch.tensor([-INF, 0.0]), ValueError, "support[0]=-inf must be finite."),
        (
            torch.ones(2),
            torch.tensor([0.0, 1.0, 1.0]),
            ValueError,
            "support must be strictly increasing, but support[1]=1.0 is followed by 1.0",
        ),
        (
            torch.ones(2),
            torch.tensor([1.0, 0.0]),
            ValueError,
            "support must be strictly increasing, but support[0]=1.0 is followed by 0.0",
        ),
        (torch.tensor(NAN), torch.arange(3.0), ValueError, "values is NaN"),
    ],
)
def test_bad_arguments(
    build: Callable[..., Target], values: Any, support: Any, error: type[Exception], message: str
) -> None:
    assert_refuses(error, message, build, values, support)


@pytest.mark.parametrize("ratio", [0.0, -1.0, NAN, INF])
def test_a_ratio_above_zero_is_needed(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"^sigma_to_bin_ratio=.* must be a finite number in \(0, inf\]"):
        hl_gauss(torch.ones(1), EVEN, ratio)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, F64])
def test_expected_value(dtype: torch.dtype, device: torch.device) -> None:
    logits = (3 * torch.randn(4, 5, 8, device=device)).to(dtype)
    found = expected_value(logits, UNEVEN.to(device))
    assert found.dtype == (F64 if dtype == F64 else torch.float32)
    expected = (logits.double().softmax(-1) * UNEVEN.to(device)).sum(-1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


def test_expected_value_has_both_derivatives(device: torch.device) -> None:
    logits = torch.randn(3, 8, dtype=F64, device=device, requires_grad=True)
    support = UNEVEN.to(device)
    assert torch.autograd.gradcheck(lambda x: expected_value(x, support), logits)
    assert torch.autograd.gradgradcheck(lambda x: expected_value(x, support), logits)


def test_expected_value_of_hard_logits(device: torch.device) -> None:
    support = EVEN.to(device)
    for place in (0, 7, 20):
        logits = torch.full((1, 21), -INF, device=device)
        logits[0, place] = 1e4
        assert expected_value(logits, support).item() == support[place].item()
    logits[0, 3] = NAN
    assert expected_value(logits, support).isnan().all()


def test_expected_value_names_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"^support has 3 points, logits have shape \(2, 4\): one logit each\."):
        expected_value(torch.zeros(2, 4), torch.arange(3.0))
    with pytest.raises(ValueError, match=r"^support has shape \(2, 2\), needs \[K\]"):
        expected_value(torch.zeros(2, 2), torch.zeros(2, 2))
    with pytest.raises(TypeError, match=r"^logits must be a floating-point tensor"):
        expected_value(torch.zeros(2, 2, dtype=torch.int64), torch.arange(2.0))


@both_builders
def test_cross_entropy_is_least_where_the_target_is(build: Callable[..., Target], device: torch.device) -> None:
    """There its gradient is 0, so that what is learned decodes to the value, and to the target's mean for HL-Gauss."""
    values, support = torch.tensor([-3.1, 0.2, 2.77], dtype=F64, device=device), EVEN.to(device)
    target = build(values, support)
    logits = target.dense(F64).log().requires_grad_(True)
    (gradient,) = torch.autograd.grad(cross_entropy(logits, target, reduction="sum"), logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-15)
    torch.testing.assert_close(expected_value(logits, support).detach(), values, rtol=0, atol=1e-5)
