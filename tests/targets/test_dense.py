"""Search counts, values, teachers and given probabilities, against scipy's softmax and plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
from torch import Tensor

from rlsmooth.targets import Target, boltzmann, from_probs, teacher, visit_counts

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
    assert reference is not None
    assert reference.values is not None
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


def test_visit_counts_of_any_batch_shape() -> None:
    assert visit_counts(torch.tensor([1, 3])).batch_shape == ()
    assert_dense(visit_counts(torch.tensor([1, 3])), [0.25, 0.75])
    assert visit_counts(torch.zeros(0, 3)).dense().shape == (0, 3)


@pytest.mark.parametrize("shape", BATCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_from_probs_uses_what_it_is_given(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    probs = torch.randn(*shape, 4, dtype=dtype, device=device).softmax(-1)
    target = from_probs(probs)
    assert_dense(target, array_of(probs), tolerance=0)
    assert target.reference is not None
    assert target.reference.values is not None
    assert target.reference.values.dtype == dtype
    torch.testing.assert_close(target.mass(), probs.double().sum(-1))


def test_from_probs_in_half_precision_that_adds_up() -> None:
    assert_dense(from_probs(torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float16)), [[0.5, 0.25, 0.25]])


def test_one_class() -> None:
    for target in (
        boltzmann(torch.tensor([[3.0]])),
        teacher(torch.tensor([[3.0]]), labels=[0], alpha=0.5),
        visit_counts(torch.tensor([[3]])),
        from_probs(torch.ones(1, 1)),
    ):
        assert_dense(target, [[1.0]])
        assert target.entropy().item() == 0


def test_masks_that_only_check() -> None:
    mask = torch.tensor([True, True, False])
    assert_dense(from_probs(torch.tensor([[0.5, 0.5, 0.0]]), mask=mask), [[0.5, 0.5, 0.0]])
    assert_dense(visit_counts(torch.tensor([[1, 1, 0]]), mask=mask), [[0.5, 0.5, 0.0]])
    illegal = torch.tensor([[0.5, 0.25, 0.25]])
    assert_dense(from_probs(illegal, mask=mask, validate=False), [[0.5, 0.25, 0.25]])


def test_a_tiny_temperature_picks_the_best() -> None:
    assert_dense(boltzmann(torch.tensor([[100.0, 101.0]]), 1e-307), [[0.0, 1.0]])
    reference = boltzmann(torch.tensor([[100.0, 101.0]]), 1e-37).reference
    assert reference is not None
    assert reference.block(torch.float32).tolist() == [[0.0, 1.0]]


def test_visits_at_a_tiny_temperature_pick_the_most_visited() -> None:
    assert_dense(visit_counts(torch.tensor([[10, 11]]), 1e-309), [[0.0, 1.0]])


def test_a_teachers_common_offset_costs_no_precision_in_float32() -> None:
    offset = teacher(torch.tensor([[10000.0, 10001.0, 9999.5]])).reference
    plain = teacher(torch.tensor([[0.0, 1.0, -0.5]])).reference
    assert offset is not None
    assert plain is not None
    torch.testing.assert_close(offset.block(torch.float32), plain.block(torch.float32), rtol=1e-6, atol=0)


def test_half_precision_rows_that_cannot_add_up_are_told_the_way_out() -> None:
    with pytest.raises(ValueError, match="float32"):
        from_probs(torch.full((1, 10), 0.1, dtype=torch.bfloat16))
