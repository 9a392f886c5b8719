"""Targets from search counts, values, teachers and Gaussians, against scipy, mctx and plain numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlsmooth.targets import GaussianTarget, Target, boltzmann, completed_q, from_probs, gaussian, teacher, visit_counts
from support import assert_raises, assert_refuses

Array = np.ndarray[Any, Any]
BATCHES = [(), (4,), (2, 3), (0,), (0, 3)]


def assert_dense(target: Target, expected: Any, tolerance: float = 1e-14) -> None:
    dense = target.dense(torch.float64)
    assert dense.shape == (*target.batch_shape, target.num_classes)
    np.testing.assert_allclose(dense.cpu().numpy(), expected, rtol=0, atol=tolerance)


def array_of(tensor: Tensor) -> Array:
    return tensor.double().cpu().numpy()


@pytest.mark.parametrize("shape", BATCHES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.1, 1, 7.5])
def test_boltzmann(shape: tuple[int, ...], dtype: torch.dtype, temperature: float, device: torch.device) -> None:
    values = torch.randn(*shape, 5, device=device).to(dtype)
    target = boltzmann(values, temperature)
    assert target.batch_shape == shape
    assert_dense(target, scipy.special.softmax(array_of(values) / temperature, -1))
    assert target.atom_indices.shape == (*shape, 0)


def test_boltzmann_keeps_the_values_not_the_softmax() -> None:
    values = torch.randn(3, 5)
    reference = boltzmann(values).reference
    assert reference.values.data_ptr() == values.data_ptr()


def test_boltzmann_of_illegal_actions_holding_anything(device: torch.device) -> None:
    values = torch.tensor([[0.0, float("nan"), 1.0, float("inf"), -float("inf")]], device=device)
    mask = torch.tensor([True, False, True, False, False], device=device)
    one, two = scipy.special.softmax([0.0, 1.0])
    target = boltzmann(values, mask=mask)
    assert_dense(target, [[one, 0, two, 0, 0]])
    assert values.isnan().sum() == 1  # the argument is left alone


def test_minus_infinity_is_probability_zero() -> None:
    assert_dense(boltzmann(torch.tensor([[0.0, -float("inf")]])), [[1.0, 0.0]])
    assert_dense(teacher(torch.tensor([[0.0, -float("inf")]])), [[1.0, 0.0]])


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_huge_values_do_not_overflow(scale: float) -> None:
    assert_dense(boltzmann(torch.tensor([[scale, -scale, scale]])), [[0.5, 0.0, 0.5]], tolerance=1e-9)
    assert_dense(boltzmann(torch.tensor([[-scale, -scale]])), [[0.5, 0.5]], tolerance=1e-9)


@pytest.mark.parametrize("shape", BATCHES)
@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("masked", [False, True])
def test_teacher_mixed_with_labels(shape: tuple[int, ...], alpha: float, masked: bool, device: torch.device) -> None:
    logits = torch.randn(*shape, 5, device=device)
    labels = torch.randint(5, shape, device=device)
    mask = (torch.rand(*shape, 5, device=device) < 0.5).scatter(-1, labels.unsqueeze(-1), True)
    softened = array_of(logits) / 2
    if masked:
        softened = np.where(mask.cpu().numpy(), softened, -np.inf)
    expected = (1 - alpha) * np.eye(5)[labels.cpu().numpy()] + alpha * scipy.special.softmax(softened, -1)
    assert_dense(teacher(logits, 2.0, labels, alpha, mask=mask if masked else None), expected)


def test_teacher_without_labels_is_boltzmann(device: torch.device) -> None:
    logits = torch.randn(3, 4, device=device)
    assert_dense(teacher(logits, 3.0), array_of(boltzmann(logits, 3.0).dense(torch.float64)))
    assert_dense(teacher(logits, alpha=1), array_of(boltzmann(logits).dense(torch.float64)))


def test_teacher_alpha_a_row_and_a_list_of_labels() -> None:
    logits = torch.zeros(2, 2)
    target = teacher(logits, labels=[0, 1], alpha=torch.tensor([0.5, 1.0]))
    assert_dense(target, [[0.75, 0.25], [0.5, 0.5]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.int32])
@pytest.mark.parametrize("temperature", [0.25, 1, 3.0])
def test_visit_counts(dtype: torch.dtype, temperature: float, device: torch.device) -> None:
    counts = torch.randint(0, 30, (2, 3, 5), device=device)
    counts[..., 0] += 1
    powers = array_of(counts) ** (1 / temperature)
    assert_dense(visit_counts(counts.to(dtype), temperature), powers / powers.sum(-1, keepdims=True))


def test_visit_counts_at_temperature_zero_share_ties() -> None:
    assert_dense(visit_counts(torch.tensor([[3, 1, 3, 0], [0, 0, 0, 2]]), 0), [[0.5, 0, 0.5, 0], [0, 0, 0, 1.0]])


def test_visit_counts_of_many_visits_at_a_low_temperature() -> None:
    """800^100 overflows: the powers are taken in logarithms."""
    assert_dense(visit_counts(torch.tensor([[800, 400, 0]]), 0.01), [[1.0, 2.0**-100, 0.0]], tolerance=1e-15)


@pytest.mark.parametrize("shape", BATCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_from_probs_uses_what_it_is_given(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    probs = torch.randn(*shape, 4, dtype=dtype, device=device).softmax(-1)
    target = from_probs(probs)
    assert_dense(target, array_of(probs), tolerance=0)
    assert target.reference.values.dtype == dtype
    torch.testing.assert_close(target.mass(), probs.double().sum(-1))


def test_from_probs_in_half_precision_that_adds_up() -> None:
    assert_dense(from_probs(torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float16)), [[0.5, 0.25, 0.25]])


def test_masks_that_only_check() -> None:
    mask = torch.tensor([True, True, False])
    assert_dense(from_probs(torch.tensor([[0.5, 0.5, 0.0]]), mask=mask), [[0.5, 0.5, 0.0]])
    assert_dense(visit_counts(torch.tensor([[1, 1, 0]]), mask=mask), [[0.5, 0.5, 0.0]])
    illegal = torch.tensor([[0.5, 0.25, 0.25]])
    assert_dense(from_probs(illegal, mask=mask, validate=False), [[0.5, 0.25, 0.25]])


def test_a_tiny_temperature_picks_the_best() -> None:
    assert_dense(boltzmann(torch.tensor([[100.0, 101.0]]), 1e-307), [[0.0, 1.0]])
    reference = boltzmann(torch.tensor([[100.0, 101.0]]), 1e-37).reference
    assert reference.block(torch.float32).tolist() == [[0.0, 1.0]]


def test_visits_at_a_tiny_temperature_pick_the_most_visited() -> None:
    assert_dense(visit_counts(torch.tensor([[10, 11]]), 1e-309), [[0.0, 1.0]])


def test_a_teachers_common_offset_costs_no_precision_in_float32() -> None:
    offset = teacher(torch.tensor([[10000.0, 10001.0, 9999.5]])).reference
    plain = teacher(torch.tensor([[0.0, 1.0, -0.5]])).reference
    torch.testing.assert_close(offset.block(torch.float32), plain.block(torch.float32), rtol=1e-6, atol=0)


def test_half_precision_rows_that_cannot_add_up_are_told_the_way_out() -> None:
    assert_raises(ValueError, "float32", from_probs, torch.full((1, 10), 0.1, dtype=torch.bfloat16))


# ---- continuous actions
@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (0,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.1, 1.0])
def test_weights_and_reference(shape: tuple[int, ...], dtype: torch.dtype, alpha: float, device: torch.device) -> None:
    actions = torch.randn(*shape, 3, dtype=dtype, device=device)
    target = gaussian(actions, alpha, reference_mean=0.5, reference_std=2)
    assert target.batch_shape == shape
    torch.testing.assert_close(target.actions, actions)
    assert target.atom_weight.dtype == target.background_weight.dtype == torch.float64
    torch.testing.assert_close(target.atom_weight, torch.full(shape, 1 - alpha, dtype=torch.float64, device=device))
    torch.testing.assert_close(target.background_weight, torch.full(shape, alpha, dtype=torch.float64, device=device))
    torch.testing.assert_close(target.mass(), torch.ones(shape, dtype=torch.float64, device=device))
    assert target.reference_mean.item() == 0.5
    assert target.reference_std.item() == 2
    assert target.reference_mean.dtype == target.reference_std.dtype == dtype


def test_reference_a_dimension_and_alpha_a_row(device: torch.device) -> None:
    alpha = torch.rand(2, 1, device=device)
    mean, std = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 3.0])
    target = gaussian(torch.randn(2, 5, 3, device=device), alpha, reference_mean=mean, reference_std=std)
    assert target.background_weight is not None
    torch.testing.assert_close(target.background_weight, alpha.double().expand(2, 5))
    assert target.reference_mean.tolist() == [0.0, 1.0, 2.0]
    assert target.reference_std.tolist() == [1.0, 2.0, 3.0]
    assert target.reference_std.device == target.actions.device
    one = gaussian(torch.randn(2, 3), reference_std=torch.tensor([2.0]))
    assert one.reference_std.tolist() == [2.0]


def test_no_dimension_at_all() -> None:
    assert gaussian(torch.zeros(4, 0), 0.1).mass().tolist() == [1.0] * 4


@pytest.mark.parametrize("index", [1, slice(1, 3), torch.tensor([2, 0]), torch.tensor([True, False, True, False])])
def test_indexing(index: Any) -> None:
    alpha = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    actions = torch.randn(4, 3)
    target = gaussian(actions, alpha, reference_std=torch.tensor([1.0, 2.0, 3.0]))[index]
    torch.testing.assert_close(target.actions, actions[index])
    assert target.background_weight is not None
    torch.testing.assert_close(target.background_weight, alpha[index])
    torch.testing.assert_close(target.atom_weight, 1 - alpha[index])
    assert target.reference_std.tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(IndexError):
        gaussian(actions[0])[0]


def test_to_and_without_background(device: torch.device) -> None:
    moved = gaussian(torch.randn(2, 3), 0.1).to(device)
    assert moved.actions.device.type == moved.reference_std.device.type == moved.mass().device.type == device.type
    hard = GaussianTarget(torch.randn(2, 3), torch.ones(2), None, torch.zeros(()), torch.ones(()))
    assert hard.to(device).background_weight is None
    assert hard[0].background_weight is None
    assert hard.mass().tolist() == [1.0, 1.0]


def test_frozen() -> None:
    with pytest.raises(AttributeError):
        gaussian(torch.zeros(1, 1)).actions = torch.ones(1, 1)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"actions": [[0.5]]}, TypeError, r"actions must be a floating-point tensor \[..., D\], got \[\[0.5\]\]"),
        ({"actions": torch.tensor([[1]])}, TypeError, r"actions must be a floating-point .* got torch.int64"),
        ({"actions": torch.tensor(1.0)}, TypeError, r"actions must be a floating-point tensor \[..., D\]"),
        ({"actions": torch.tensor([[0.0, math.nan]])}, ValueError, r"actions\[0, 1\]=nan must be finite"),
        ({"alpha": 1.5}, ValueError, r"alpha=1.5 must be finite and at most 1"),
        ({"alpha": torch.zeros(3)}, ValueError, r"alpha of shape \(3,\) does not broadcast over the batch \(1,\)"),
        ({"reference_std": 0.0}, ValueError, r"reference_std=0.0 must be finite and above 0"),
        ({"reference_std": torch.tensor([1.0, -1.0])}, ValueError, r"reference_std=\[1.0, -1.0\] must be"),
        ({"reference_std": math.nan}, ValueError, r"reference_std=nan must be"),
        ({"reference_mean": math.inf}, ValueError, r"reference_mean=inf must be finite"),
        ({"reference_mean": torch.zeros(3)}, ValueError, r"reference_mean has shape \(3,\), needs a number or \(2,\)"),
        ({"reference_std": torch.ones(1, 2)}, ValueError, r"reference_std has shape \(1, 2\), needs a number or"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    assert_raises(error, f"^{message}", gaussian, **{"actions": torch.zeros(1, 2), **arguments})


def test_unchecked_values_pass() -> None:
    target = gaussian(torch.tensor([[math.nan]]), torch.tensor(2.0), reference_std=-1.0, validate=False)
    assert target.mass().tolist() == [1.0]


def test_nothing_carries_a_gradient() -> None:
    learned = torch.ones(3, requires_grad=True)
    target = gaussian(learned.expand(2, 3), learned[:2] / 2, reference_mean=learned, reference_std=learned)
    assert not any(isinstance(value, Tensor) and value.requires_grad for value in vars(target).values())
    assert not target.mass().requires_grad


# ---- completed values: against mctx's own answers and numpy; masks and missing visits
F64 = torch.float64
NAN, INF = math.nan, math.inf
LOGITS, VALUES = [0.5, -1.0, 2.0, 0.0], [1.0, 0.4, 9.0, 0.7]


def by_numpy(
    logits: Array,
    q: Array,
    visits: Array,
    value: float,
    scale: float = 0.1,
    first_visits: float = 50.0,
    rescale: bool = True,
    legal: Array | None = None,
    illegal_count_in_the_range: bool = True,
) -> Array:
    """One row, as mctx 0.0.71 reads: masked logits first, then its qtransform_completed_by_mix_value, then softmax."""
    legal = np.ones(len(q), dtype=bool) if legal is None else legal
    masked = np.where(legal, logits, np.finfo(np.float64).min)
    prior = np.maximum(np.finfo(np.float64).tiny, scipy.special.softmax(masked))
    visited = visits > 0
    total = prior[visited].sum()
    weighted_q = (prior[visited] * q[visited]).sum() / total if visited.any() else 0.0
    mixed = (value + visits.sum() * weighted_q) / (visits.sum() + 1)
    completed = np.where(visited, q, mixed)
    if rescale:
        counted = completed if illegal_count_in_the_range else completed[legal]
        completed = (completed - counted.min()) / max(counted.max() - counted.min(), 1e-8)
    sigma = (first_visits + visits.max()) * scale * completed
    result: Array = scipy.special.softmax(np.where(legal, logits + sigma, -np.inf))
    return result


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    size = draw(st.integers(1, 7))
    numbers = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    legal = numbers.random(size) < draw(st.sampled_from([0.5, 1.0]))
    legal[numbers.integers(size)] = True
    visits = {
        "none": np.zeros(size, dtype=np.int64),
        "all": numbers.integers(1, 30, size),
        "some": numbers.integers(0, 3, size) * numbers.integers(0, 20, size),
    }[draw(st.sampled_from(["none", "all", "some"]))]
    return {
        "logits": numbers.normal(size=size) * 3,
        "q": numbers.normal(size=size) * draw(st.sampled_from([1e-3, 1.0, 30.0])),
        "visits": visits * legal,
        "value": float(numbers.normal()) * 5,
        "legal": legal,
        "rescale": draw(st.booleans()),
    }


def ours(row: dict[str, Any]) -> Array:
    target = completed_q(
        torch.from_numpy(row["logits"]),
        torch.from_numpy(row["q"]),
        torch.from_numpy(row["visits"]),
        value=row["value"],
        rescale_values=row["rescale"],
        mask=torch.from_numpy(row["legal"]),
    )
    return target.dense(F64).numpy()


# Made by mctx 0.0.71 under jax 0.10.2 in float64: (q, visits, value, rescale, mask) -> action weights.
MCTX: list[tuple[list[float], list[int], float, bool, list[bool], list[float]]] = [
    (
        VALUES, [3, 1, 0, 2], 0.3, True, [True] * 4,
        [0.647089091689259, 0.0007207117487649633, 0.3244610527106302, 0.027729143851345898],
    ),
    (
        [0.1, 0.04, 9.0, 0.07], [3, 1, 0, 2], 0.3, False, [True] * 4,
        [0.15382594391263196, 0.02497366148448478, 0.7416157053019772, 0.07958468930090615],
    ),
    (
        VALUES, [3, 0, 0, 2], -0.3, True, [True, True, False, True],
        [0.9952539633075421, 0.0011084891301259832, 0.0, 0.0036375475623319897],
    ),
    (
        VALUES, [0, 0, 0, 0], 0.3, True, [True] * 4,
        [0.15844470951497974, 0.035353793408748876, 0.7100999228861743, 0.09610157419009724],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("q", "visits", "value", "rescale", "mask", "expected"), MCTX)
def test_the_answers_of_mctx(
    q: list[float],
    visits: list[int],
    value: float,
    rescale: bool,
    mask: list[bool],
    expected: list[float],
    device: torch.device,
) -> None:
    target = completed_q(
        torch.tensor([LOGITS], dtype=F64, device=device),
        torch.tensor([q], dtype=F64, device=device),
        torch.tensor([visits], device=device),
        value=torch.tensor([value], dtype=F64, device=device),
        rescale_values=rescale,
        mask=torch.tensor(mask, device=device),
    )
    np.testing.assert_allclose(target.dense(F64)[0].cpu(), expected, rtol=1e-12, atol=1e-15)
    transcribed = by_numpy(
        np.array(LOGITS), np.array(q), np.array(visits), value, rescale=rescale, legal=np.array(mask)
    )
    np.testing.assert_allclose(transcribed, expected, rtol=1e-12, atol=1e-15)  # so the transcription is right too


@given(row=rows())
def test_equals_mctx_wherever_no_illegal_action_sets_the_scale(row: dict[str, Any]) -> None:
    legal_unvisited = (row["legal"] & (row["visits"] == 0)).any()
    counts = bool(row["legal"].all() or legal_unvisited or not row["rescale"])
    arguments = {**row, "illegal_count_in_the_range": counts}
    np.testing.assert_allclose(ours(row), by_numpy(**arguments), rtol=1e-9, atol=1e-12)


@given(row=rows())
def test_an_illegal_action_is_as_if_it_did_not_exist(row: dict[str, Any]) -> None:
    legal = row["legal"]
    alone = {**row, **{key: row[key][legal] for key in ("logits", "q", "visits", "legal")}}
    whole = ours({**row, "q": np.where(legal, row["q"], NAN), "logits": np.where(legal, row["logits"], INF)})
    assert (whole[~legal] == 0).all()
    np.testing.assert_allclose(whole[legal], ours(alone), rtol=1e-12, atol=1e-15)


def test_where_mctx_lets_an_illegal_action_set_the_scale() -> None:
    """Both legal actions visited, the network's value far above: the difference that the docstring names."""
    row: dict[str, Any] = {
        "logits": np.zeros(3), "q": np.array([0.0, 1.0, 0.0]), "visits": np.array([1, 1, 0]), "value": 30.0,
        "legal": np.array([True, True, False]), "rescale": True,
    }  # fmt: skip
    np.testing.assert_allclose(ours(row)[1], scipy.special.expit(5.1), rtol=1e-12)
    assert abs(by_numpy(**row)[1] - ours(row)[1]) > 0.3


@pytest.mark.parametrize("value", [None, 0.0, -7.5])
def test_without_visits_the_target_is_the_prior(value: float | None, device: torch.device) -> None:
    logits = torch.randn(2, 3, 5, dtype=F64, device=device)
    nothing = torch.full_like(logits, NAN)
    target = completed_q(logits, nothing, torch.zeros(2, 3, 5, device=device), value=value)
    torch.testing.assert_close(target.dense(F64), logits.softmax(-1))


def test_without_a_value_the_visited_stand_for_the_rest(device: torch.device) -> None:
    """mixed = sum_visited p q / sum_visited p = (0.25 · 2 + 0.5 · 5) / 0.75 = 4"""
    logits = torch.tensor([[0.25, 0.5, 0.125, 0.125]], dtype=F64, device=device).log()
    q = torch.tensor([[2.0, 5.0, NAN, INF]], dtype=F64, device=device)
    visits = torch.tensor([[3, 9, 0, 0]], device=device)
    found = completed_q(logits, q, visits, value_scale=0.01, maxvisit_init=1.0, rescale_values=False)
    sigma = 0.1 * torch.tensor([[2.0, 5.0, 4.0, 4.0]], dtype=F64, device=device)
    torch.testing.assert_close(found.dense(F64), (logits + sigma).softmax(-1), rtol=1e-13, atol=1e-15)


@given(row=rows())
def test_it_improves_the_policy(row: dict[str, Any]) -> None:
    """The point of it: the expected completed value under the target is at least that under the prior."""
    visited = row["visits"] > 0
    prior = scipy.special.softmax(np.where(row["legal"], row["logits"], -np.inf))
    mixed = row["value"]
    if visited.any():
        weighted = (prior * row["q"])[visited].sum() / prior[visited].sum()
        mixed = (row["value"] + row["visits"].sum() * weighted) / (row["visits"].sum() + 1)
    completed = np.where(visited, row["q"], mixed)
    assert ours(row) @ completed >= prior @ completed - 1e-9 * (1 + abs(completed).max())


def test_a_visited_action_of_prior_zero(device: torch.device) -> None:
    """As in mctx: it counts, as the only one that knows anything."""
    logits = torch.tensor([[-INF, 0.0]], dtype=F64, device=device)
    q, visits = torch.tensor([[3.0, 0.0]], dtype=F64, device=device), torch.tensor([[5, 0]], device=device)
    found = completed_q(logits, q, visits, value=1.0, rescale_values=False).dense(F64)
    expected = by_numpy(np.array([-INF, 0.0]), np.array([3.0, 0.0]), np.array([5, 0]), 1.0, rescale=False)
    np.testing.assert_allclose(found[0].cpu(), expected)
    assert found.tolist() == [[0.0, 1.0]]


def test_equal_values_leave_the_prior(device: torch.device) -> None:
    logits = torch.randn(4, 3, dtype=F64, device=device)
    same = torch.full_like(logits, 0.3)
    target = completed_q(logits, same, torch.ones_like(logits), value=0.3)
    torch.testing.assert_close(target.dense(F64), logits.softmax(-1))


def test_shapes_dtypes_and_broadcast(device: torch.device) -> None:
    logits, q = torch.randn(2, 3, 4, device=device), torch.randn(2, 3, 4, device=device)
    visits = torch.randint(0, 5, (2, 3, 4), device=device)
    value = torch.randn(3, device=device)
    target = completed_q(logits, q, visits, value=value)
    assert target.batch_shape == (2, 3)
    for place in np.ndindex(2, 3):
        alone = completed_q(logits[place], q[place], visits[place].float(), value=value[place[1]])
        torch.testing.assert_close(target[place].dense(F64), alone.dense(F64))
    assert completed_q(logits[:0], q[:0], visits[:0]).dense().shape == (0, 3, 4)
    assert completed_q(logits[..., :1], q[..., :1], visits[..., :1]).dense().eq(1).all()


def test_numpys_arrays_are_taken(device: torch.device) -> None:
    arguments = np.array(LOGITS), np.array(VALUES), np.array([3, 0, 0, 2])
    mask, value = np.array([True, True, False, True]), np.array(0.25)
    found = completed_q(*arguments, value=value, mask=mask)  # type: ignore[arg-type]
    expected = completed_q(*(torch.from_numpy(array) for array in arguments), value=0.25, mask=torch.from_numpy(mask))
    assert torch.equal(found.dense(F64), expected.dense(F64))


def test_half_precision_is_computed_in_full(device: torch.device) -> None:
    logits, q = torch.randn(3, 4, device=device).bfloat16(), torch.randn(3, 4, device=device).half()
    visits = torch.ones(3, 4, device=device, dtype=torch.int32)
    torch.testing.assert_close(
        completed_q(logits, q, visits).dense(F64), completed_q(logits.double(), q.double(), visits).dense(F64)
    )


@pytest.mark.parametrize("offset", [1e6, -1e6])
def test_common_offsets_change_nothing(offset: float, device: torch.device) -> None:
    logits, q = torch.randn(3, 4, dtype=F64, device=device), torch.randn(3, 4, dtype=F64, device=device)
    visits = torch.tensor([3, 0, 1, 0], device=device).expand(3, 4)
    expected = completed_q(logits, q, visits, value=0.2).dense(F64)
    found = completed_q(logits + offset, q + offset, visits, value=0.2 + offset).dense(F64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


def one(values: list[float]) -> Tensor:
    return torch.tensor([values])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"prior_logits": [[0.0, 1.0]]}, TypeError, "prior_logits must be a floating-point tensor [..., K], got list."),
        ({"q_values": torch.tensor([[1, 2]])}, TypeError, "q_values must be a floating-point tensor"),
        ({"visit_counts": one([1, 0]) > 0}, TypeError, "visit_counts must be a tensor of numbers [..., K], got torch."),
        ({"visit_counts": [[1, 0]]}, TypeError, "visit_counts must be a tensor of numbers [..., K], got list."),
        ({"visit_counts": one([1, 0, 0])}, ValueError, "prior_logits (1, 2), q_values (1, 2) and visit_counts (1, 3)"),
        ({"visit_counts": one([1, -1])}, ValueError, "visit_counts[0, 1]=-1.0 must be finite and at least 0."),
        ({"visit_counts": one([1, NAN])}, ValueError, "visit_counts[0, 1]=nan must be finite and at least 0."),
        ({"prior_logits": one([0, NAN])}, ValueError, "prior_logits[0, 1]=nan must be a number below infinity."),
        ({"prior_logits": one([INF, 0])}, ValueError, "prior_logits[0, 0]=inf must be a number below infinity."),
        ({"prior_logits": one([-INF, -INF])}, ValueError, "prior_logits[0] is -inf for every legal action"),
        ({"q_values": one([NAN, 0])}, ValueError, "q_values[0, 0]=nan of a visited action must be finite."),
        ({"mask": torch.tensor([False, True])}, ValueError, "visit_counts[0, 0]=1.0 is on an action that its mask"),
        ({"mask": torch.tensor([False, False])}, ValueError, "mask[0] allows no class at all"),
        ({"mask": torch.tensor([1, 1])}, TypeError, "mask must be a bool tensor"),
        ({"value": torch.tensor([NAN])}, ValueError, "value[0]=nan must be finite."),
        ({"value": INF}, ValueError, "value=inf must be a finite number"),
        ({"value": "high"}, TypeError, "value must be a number, got str 'high'."),
        ({"value": torch.zeros(2)}, ValueError, "value of shape (2,) does not broadcast over the batch (1,)"),
        ({"value_scale": -0.1}, ValueError, "value_scale=-0.1 must be a finite number in [0, inf]"),
        ({"maxvisit_init": -1.0}, ValueError, "maxvisit_init=-1.0 must be a finite number in [0, inf]"),
    ],
)
def test_bad_arguments_of_completed_values(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {
        "prior_logits": one([0.0, 1.0]), "q_values": one([1.0, 0.0]), "visit_counts": one([1, 0]),
    }  # fmt: skip
    assert_refuses(error, message, completed_q, **{**arguments, **change})


def test_a_value_scale_of_zero_is_the_prior() -> None:
    logits = torch.randn(2, 3, dtype=F64)
    found = completed_q(logits, torch.randn(2, 3), torch.ones(2, 3), value=1.0, value_scale=0.0)
    torch.testing.assert_close(found.dense(F64), boltzmann(logits).dense(F64))
