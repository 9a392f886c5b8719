"""Hard, uniform, prior, mixture and atom targets, mixup and pseudo-labels, against numpy, torch and theory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from rlsmooth.losses import cross_entropy
from rlsmooth.targets import (
    Target,
    confidence_adaptive,
    hl_gauss,
    mixture,
    one_hot,
    ordinal,
    prior,
    sparse,
    two_hot,
    uniform,
)
from support import assert_refuses

BATCHES = [(), (1,), (5,), (2, 3), (2, 1, 3), (0,), (3, 0)]
Array = np.ndarray[Any, Any]


def draw_labels(shape: tuple[int, ...], num_classes: int, device: torch.device) -> Tensor:
    return torch.randint(num_classes, shape, device=device)


def draw_mask(labels: Tensor, num_classes: int) -> Tensor:
    """About half the classes legal, the label always."""
    mask = torch.rand(*labels.shape, num_classes, device=labels.device) < 0.5
    return mask.scatter(-1, labels.unsqueeze(-1), True)


def onehot_of(labels: Tensor, num_classes: int) -> Array:
    return np.eye(num_classes)[labels.cpu().numpy()]


def assert_dense(target: Target, expected: Array, tolerance: float = 1e-14) -> None:
    dense = target.dense(torch.float64)
    assert dense.shape == (*target.batch_shape, target.num_classes)
    np.testing.assert_allclose(dense.cpu().numpy(), np.broadcast_to(expected, dense.shape), rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", BATCHES)
@pytest.mark.parametrize("spread", ["all", "others"])
@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.1, 1.0])
@pytest.mark.parametrize("masked", [False, True])
def test_uniform(masked: bool, spread: Any, alpha: float, shape: tuple[int, ...], device: torch.device) -> None:
    labels = draw_labels(shape, 6, device)
    mask = draw_mask(labels, 6) if masked else None
    onehot = onehot_of(labels, 6)
    legal = np.ones_like(onehot) if mask is None else mask.cpu().numpy().astype(float)
    if spread == "all":
        expected = (1 - alpha) * onehot + alpha * legal / legal.sum(-1, keepdims=True)
    else:
        others = legal - onehot
        count = others.sum(-1, keepdims=True)
        kept = np.where(count > 0, 1 - alpha, 1.0)
        expected = kept * onehot + (1 - kept) * others / np.maximum(count, 1)
    target = uniform(labels, 6, alpha, spread, mask=mask)
    assert_dense(target, expected)
    assert mask is None or (target.dense(torch.float64)[~mask] == 0).all()


@pytest.mark.parametrize("mask_shape", [(4,), (1, 4), (3, 4), (1, 3, 4), (2, 1, 4), (2, 3, 4)])
def test_masks_broadcast(mask_shape: tuple[int, ...], device: torch.device) -> None:
    labels = torch.zeros(2, 3, dtype=torch.int64, device=device)
    mask = torch.rand(mask_shape, device=device) < 0.5
    mask[..., 0] = True
    legal = np.broadcast_to(mask.cpu().numpy(), (2, 3, 4)).astype(float)
    expected = 0.8 * onehot_of(labels, 4) + 0.2 * legal / legal.sum(-1, keepdims=True)
    assert_dense(uniform(labels, 4, 0.2, mask=mask), expected)


@pytest.mark.parametrize("alpha_shape", [(), (1,), (3,), (1, 3), (2, 1), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_alpha_tensors_broadcast_over_the_batch(
    alpha_shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    labels = draw_labels((2, 3), 4, device)
    alpha = torch.rand(alpha_shape, device=device).to(dtype)
    level = np.broadcast_to(alpha.cpu().numpy().astype(float), (2, 3))[..., None]
    onehot = onehot_of(labels, 4)
    assert_dense(uniform(labels, 4, alpha), (1 - level) * onehot + level / 4)
    assert_dense(uniform(labels, 4, alpha, "others"), (1 - level) * onehot + level * (1 - onehot) / 3)
    weights = torch.tensor([0.5, 0.25, 0.25, 0.0], dtype=torch.float64, device=device)
    assert_dense(prior(labels, weights, alpha), (1 - level) * onehot + level * weights.cpu().numpy())
    parents = torch.stack((labels, (labels + 1) % 4), -1)
    pair = onehot + onehot_of((labels + 1) % 4, 4)
    assert_dense(mixture(parents, None, 4, alpha), (1 - level) * pair / 2 + level * (1 - pair) / 2)


def test_labels_may_be_numbers_lists_arrays_or_any_whole_dtype() -> None:
    expected = onehot_of(torch.tensor([2, 0]), 3)
    for labels in ([2, 0], (2, 0), np.array([2, 0]), np.array([2, 0], dtype=np.int16), torch.tensor([2, 0])):
        assert_dense(one_hot(labels, 3), expected, tolerance=0)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        target = one_hot(torch.tensor([2, 0], dtype=dtype), 3)
        assert target.atom_indices.dtype == torch.int64
        assert_dense(target, expected)
    assert_dense(one_hot(2, 3), expected[0])
    assert one_hot(2, 3).batch_shape == ()
    assert one_hot(2, 3).background_weight is None
    assert one_hot([], 3).batch_shape == (0,)
    assert one_hot(np.int64(2), 3).batch_shape == ()


def test_weights_are_kept_in_float64(device: torch.device) -> None:
    labels = draw_labels((3,), 4, device)
    alpha = torch.tensor(0.1, dtype=torch.float32, device=device)
    weights = torch.full((4,), 0.25, dtype=torch.float32, device=device)
    for target in (one_hot(labels, 4), uniform(labels, 4, alpha), prior(labels, weights, alpha)):
        assert target.atom_weights.dtype == torch.float64
        assert target.background_weight is None or target.background_weight.dtype == torch.float64
        assert target.device == labels.device
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            assert target.dense(dtype).dtype == dtype
        assert target.dense().dtype == torch.float32


@pytest.mark.parametrize("shape", BATCHES)
@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.1, 1.0])
def test_prior(shape: tuple[int, ...], alpha: float, device: torch.device) -> None:
    labels = draw_labels(shape, 5, device)
    weights = torch.rand(5, dtype=torch.float64, device=device).softmax(-1)
    background = weights.cpu().numpy()
    assert_dense(prior(labels, weights, alpha), (1 - alpha) * onehot_of(labels, 5) + alpha * background)
    mask = draw_mask(labels, 5)
    legal = background * mask.cpu().numpy()
    legal = legal / legal.sum(-1, keepdims=True)
    target = prior(labels, weights, alpha, mask=mask)
    assert_dense(target, (1 - alpha) * onehot_of(labels, 5) + alpha * legal)
    assert (target.dense(torch.float64)[~mask] == 0).all()


def test_prior_takes_a_list_of_labels_and_half_precision() -> None:
    weights = torch.tensor([0.5, 0.25, 0.25], dtype=torch.bfloat16)
    assert_dense(prior([0, 1], weights, 1.0), np.array([[0.5, 0.25, 0.25]] * 2))


def test_a_prior_of_zero_on_all_legal_classes_is_hard_when_unchecked() -> None:
    weights = torch.tensor([0.0, 0.0, 1.0])
    target = prior(torch.tensor([0]), weights, 0.5, mask=torch.tensor([True, True, False]), validate=False)
    assert_dense(target, np.array([[1.0, 0.0, 0.0]]))


def mixture_oracle(parents: Array, weights: Array, legal: Array, alpha: float) -> Array:
    """Row by row, in sets: no formula shared with the library."""
    rows = []
    for row_parents, row_weights, row_legal in zip(parents, weights, legal, strict=True):
        row = np.zeros(legal.shape[-1])
        others = set(np.flatnonzero(row_legal)) - set(row_parents.tolist())
        level = alpha if others else 0.0
        for parent, weight in zip(row_parents, row_weights, strict=True):
            row[parent] += (1 - level) * weight
        for other in others:
            row[other] += level / len(others)
        rows.append(row)
    return np.array(rows).reshape(-1, legal.shape[-1])


@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.2, 1.0])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("num_parents", [1, 2, 3, 6])
def test_mixture(alpha: float, masked: bool, num_parents: int, device: torch.device) -> None:
    parents = torch.randint(5, (20, num_parents), device=device)  # with repeats; six parents can be all classes
    weights = torch.rand(20, num_parents, dtype=torch.float64, device=device).softmax(-1)
    mask = torch.ones(20, 5, dtype=torch.bool, device=device)
    if masked:
        mask = (torch.rand(20, 5, device=device) < 0.4).scatter(-1, parents, True)
    expected = mixture_oracle(parents.cpu().numpy(), weights.cpu().numpy(), mask.cpu().numpy(), alpha)
    target = mixture(parents, weights, 5, alpha, mask=mask if masked else None)
    assert_dense(target, expected)
    folded = mixture(
        parents.reshape(4, 5, -1), weights.reshape(4, 5, -1), 5, alpha, mask=mask.reshape(4, 5, 5) if masked else None
    )
    assert folded.batch_shape == (4, 5)
    assert_dense(folded, expected.reshape(4, 5, 5))


def test_mixture_weights_default_to_even_and_may_be_shared_by_the_rows() -> None:
    assert_dense(mixture(torch.tensor([[0, 1], [2, 2]]), None, 3), np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]))
    shared = mixture(torch.tensor([[0, 1], [2, 0]]), torch.tensor([0.25, 0.75]), 3)
    assert_dense(shared, np.array([[0.25, 0.75, 0.0], [0.75, 0.0, 0.25]]))
    assert_dense(mixture(torch.tensor([0, 1]), torch.tensor([0.25, 0.75]), 3), np.array([0.25, 0.75, 0.0]))
    assert mixture(torch.zeros(0, 2, dtype=torch.int64), None, 3, 0.1).dense().shape == (0, 3)


def test_the_iris_hybrid_is_two_thirds_of_one_parent() -> None:
    """Fisher (1936): versicolor (1) lies two thirds of the way from setosa (0) to virginica (2)."""
    target = mixture(torch.tensor([[0, 2]]), torch.tensor([[1 / 3, 2 / 3]], dtype=torch.float64), 3, 0.1)
    assert_dense(target, np.array([[0.3, 0.1, 0.6]]))


def test_sparse_adds_repeated_atoms_up_and_keeps_the_mass(device: torch.device) -> None:
    indices = torch.tensor([[3, 1, 3], [0, 0, 0]], device=device)
    weights = torch.tensor([[0.5, 0.25, 0.5], [1.0, -2.0, 0.0]], device=device)
    target = sparse(indices, weights, 4)
    assert_dense(target, np.array([[0, 0.25, 0, 1.0], [-1.0, 0, 0, 0]]))
    assert target.mass().tolist() == [1.25, -1.0]
    assert sparse(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0), 3).dense().tolist() == [[0.0] * 3] * 2
    assert sparse(torch.tensor([1]), torch.tensor([1.0]), 3).batch_shape == ()


# A share of exactly 0 must not come out as -1e-17: its entropy is NaN, and its loss at a logit of -inf is -inf.
def test_all_mass_on_the_others_leaves_nothing_negative() -> None:
    for num_classes in range(2, 60):
        target = uniform(torch.tensor([0]), num_classes, 1.0, "others")
        assert (target.dense(torch.float64) >= 0).all(), num_classes
        assert target.entropy().item() == pytest.approx(math.log(num_classes - 1), abs=1e-12)


def test_a_parent_without_weight_gets_nothing_negative() -> None:
    for num_classes in range(3, 60):
        target = mixture(torch.tensor([[0, 1]]), torch.tensor([[1.0, 0.0]]), num_classes, 0.3)
        assert (target.dense(torch.float64) >= 0).all(), num_classes
        assert target.entropy().isfinite().all()


def test_the_mass_is_what_the_dense_target_sums_to() -> None:
    target = prior(torch.tensor([0]), torch.tensor([0.5, 0.50009], dtype=torch.float64), 1.0)
    assert target.mass().item() == pytest.approx(target.dense(torch.float64).sum().item(), abs=1e-12)


def test_a_subnormal_prior_on_the_legal_classes_gives_no_nan() -> None:
    weights = torch.tensor([1.0, 1e-310, 0.0], dtype=torch.float64)
    target = prior(torch.tensor([1]), weights, 0.5, mask=torch.tensor([False, True, True]))
    assert_dense(target, np.array([[0.0, 1.0, 0.0]]))


# ---- `Target.mix` as mixup: one loss with the mixed target is the two losses, weighed
F64 = torch.float64
K, B = 5, 12
PRIOR = torch.tensor([0.1, 0.3, 0.2, 0.15, 0.25], dtype=F64)
SUPPORT = torch.linspace(-1, 1, K, dtype=F64)

MAKERS: dict[str, Callable[[Tensor], Target]] = {
    "one_hot": lambda y: one_hot(y, K),
    "uniform": lambda y: uniform(y, K, 0.2),
    "others": lambda y: uniform(y, K, 0.2, "others"),
    "negative": lambda y: uniform(y, K, -0.2),
    "prior": lambda y: prior(y, PRIOR, 0.2),
    "ordinal": lambda y: ordinal(y, K, 0.2),
    "confidence": lambda y: confidence_adaptive(y, 0.6, K),
    "two_hot": lambda y: two_hot(torch.sin(y.double()), SUPPORT),
    "hl_gauss": lambda y: hl_gauss(torch.sin(y.double()), SUPPORT),
}


def draw(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, labels, the labels of another order of the rows, and Beta(0.4, 0.4) shares as mixup draws them."""
    logits = 2 * torch.randn(B, K, dtype=F64, device=device)
    labels = torch.randint(K, (B,), device=device)
    shares = torch.distributions.Beta(0.4, 0.4).sample((B,)).to(device, F64)
    return logits, labels, labels[torch.randperm(B, device=device)], shares


@pytest.mark.parametrize("second", MAKERS)
@pytest.mark.parametrize("first", MAKERS)
def test_the_loss_of_the_mixture_is_the_mixture_of_losses(first: str, second: str, device: torch.device) -> None:
    logits, labels, others, shares = draw(device)
    logits.requires_grad_(True)
    one, two = MAKERS[first](labels), MAKERS[second](others)
    apart = [cross_entropy(logits, target, reduction="none") for target in (one, two)]
    expected = shares * apart[0] + (1 - shares) * apart[1]
    found = cross_entropy(logits, Target.mix(one, two, shares), reduction="none")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    slopes = [torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0] for loss in (found, expected)]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(Target.mix(one, two, shares).mass(), torch.ones_like(shares), rtol=0, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_a_batch_mixed_with_its_own_permutation_is_torchs_mixup(alpha: float, device: torch.device) -> None:
    """As training has it: one share for the batch, `target[order]` beside the target, torch's loss for a truth."""
    logits, labels, _, _ = draw(device)
    order = torch.randperm(B, device=device)
    lam = float(np.random.default_rng(0).beta(0.2, 0.2))
    target = uniform(labels, K, alpha)
    expected = lam * F.cross_entropy(logits, labels, label_smoothing=alpha)
    expected = expected + (1 - lam) * F.cross_entropy(logits, labels[order], label_smoothing=alpha)
    torch.testing.assert_close(cross_entropy(logits, Target.mix(target, target[order], lam)), expected)


def test_mixing_then_smoothing_is_smoothing_then_mixing(device: torch.device) -> None:
    _, labels, others, shares = draw(device)
    smoothed = Target.mix(uniform(labels, K, 0.3), uniform(others, K, 0.3), shares).dense(F64)
    hard = Target.mix(one_hot(labels, K), one_hot(others, K), shares).dense(F64)
    torch.testing.assert_close(smoothed, 0.7 * hard + 0.3 / K, rtol=0, atol=1e-15)
    parents = mixture(torch.stack((labels, others), -1), torch.stack((shares, 1 - shares), -1), K)
    torch.testing.assert_close(parents.dense(F64), hard, rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", MAKERS)
def test_the_ends_are_the_two_targets(kind: str, device: torch.device) -> None:
    _, labels, others, _ = draw(device)
    one, two = MAKERS[kind](labels), MAKERS[kind](others)
    for lam, expected in ((1.0, one), (0.0, two)):
        torch.testing.assert_close(Target.mix(one, two, lam).dense(F64), expected.dense(F64), rtol=0, atol=1e-15)


def test_a_mixture_of_two_hots_has_the_mixed_value(device: torch.device) -> None:
    _, _, _, shares = draw(device)
    values = 2 * torch.rand(2, B, dtype=F64, device=device) - 1
    support = SUPPORT.to(device)
    mixed = Target.mix(two_hot(values[0], support), two_hot(values[1], support), shares)
    expected = shares * values[0] + (1 - shares) * values[1]
    torch.testing.assert_close(mixed.dense(F64) @ support, expected, rtol=0, atol=1e-14)


# ---- confidence-adaptive pseudo-labels, against theory at 1e-9
def gradient(logits: Tensor, target: Target) -> Tensor:
    leaf = logits.detach().clone().requires_grad_(True)
    (result,) = torch.autograd.grad(cross_entropy(leaf, target, reduction="sum"), leaf)
    return result


def even_logits(confidence: float, classes: int, device: torch.device) -> Tensor:
    """One row that gives class 0 that probability, and the others the rest in equal parts."""
    probabilities = torch.full((1, classes), (1 - confidence) / (classes - 1), dtype=F64, device=device)
    probabilities[0, 0] = confidence
    return probabilities.log()


@given(confidence=st.lists(st.floats(0, 1), min_size=1, max_size=6), classes=st.integers(2, 9), seed=st.integers(0, 99))
def test_the_label_keeps_its_confidence_and_the_rest_is_even(confidence: list[float], classes: int, seed: int) -> None:
    numbers = np.random.default_rng(seed)
    labels = torch.from_numpy(numbers.integers(classes, size=len(confidence)))
    mask = torch.from_numpy(numbers.random((len(confidence), classes)) < 0.6).scatter(-1, labels.unsqueeze(-1), True)
    q = torch.tensor(confidence, dtype=F64)
    dense = confidence_adaptive(labels, q, classes, mask=mask).dense(F64)
    number = mask.sum(-1)
    on_label = torch.where(number > 1, q, 1.0)
    expected = torch.where(mask, ((1 - on_label) / (number - 1).clamp_min(1)).unsqueeze(-1), 0.0)
    expected = expected.scatter(-1, labels.unsqueeze(-1), on_label.unsqueeze(-1))
    torch.testing.assert_close(dense, expected, rtol=0, atol=1e-14)
    assert (dense >= 0).all()


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("confidence", [0.0, 0.05, 0.5, 0.9, 1.0])
def test_it_is_uniform_smoothing_at_the_alpha_of_theory(confidence: float, classes: int, device: torch.device) -> None:
    alpha = classes * (1 - confidence) / (classes - 1)
    dense = confidence_adaptive([1], confidence, classes).dense(F64)
    expected = (1 - alpha) * one_hot([1], classes).dense(F64) + alpha / classes  # also where alpha is above 1
    torch.testing.assert_close(dense, expected, rtol=0, atol=1e-15)
    if alpha <= 1:
        torch.testing.assert_close(dense, uniform([1], classes, alpha).dense(F64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_nothing_is_left_of_the_gradient_on_the_model_that_made_the_label(classes: int, device: torch.device) -> None:
    for confidence in (0.2, 0.5, 0.91, 1 - 1e-9):
        logits = even_logits(confidence, classes, device)
        target = confidence_adaptive(torch.zeros(1, dtype=torch.int64, device=device), confidence, classes)
        torch.testing.assert_close(gradient(logits, target), torch.zeros_like(logits), rtol=0, atol=1e-9)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_at_the_label_nothing_is_left_whatever_the_rest_is(classes: int, device: torch.device) -> None:
    logits = 3 * torch.randn(50, classes, dtype=F64, device=device)
    confidence, labels = logits.softmax(-1).max(-1)
    slope = gradient(logits, confidence_adaptive(labels, confidence, classes))
    torch.testing.assert_close(
        slope.gather(-1, labels.unsqueeze(-1)), torch.zeros(50, 1, dtype=F64, device=device), rtol=0, atol=1e-9
    )
    assert classes == 2 or slope.norm(dim=-1).max() > 0.05  # the others are still evened out


@pytest.mark.parametrize("student", [0.1, 0.3, 0.95])
@pytest.mark.parametrize("teacher", [0.2, 0.6, 0.99])
def test_a_student_that_differs_learns_by_the_difference(teacher: float, student: float, device: torch.device) -> None:
    """g = p - q: at the label the difference, on each other class its share."""
    classes = 5
    target = confidence_adaptive(torch.zeros(1, dtype=torch.int64, device=device), teacher, classes)
    slope = gradient(even_logits(student, classes, device), target)
    difference = student - teacher
    norm = abs(difference) * math.sqrt(classes / (classes - 1))
    assert slope[0, 0].item() == pytest.approx(difference, abs=1e-9)
    assert slope.norm().item() == pytest.approx(norm, abs=1e-9)


def test_a_fixed_alpha_damps_least_where_the_label_is_uncertain(device: torch.device) -> None:
    """|c - t| / (1 - c) of the hard gradient is left: less and less up to c = t, the other way round than is said."""
    classes, alpha = 10, 0.1
    goal = 1 - alpha + alpha / classes
    label = torch.zeros(1, dtype=torch.int64, device=device)
    left = []
    for confidence in (0.1, 0.3, 0.5, 0.7, 0.9, goal, 0.99):
        logits = even_logits(confidence, classes, device)
        hard = gradient(logits, one_hot(label, classes)).norm().item()
        left.append(gradient(logits, uniform(label, classes, alpha)).norm().item() / hard)
        assert left[-1] == pytest.approx(abs(confidence - goal) / (1 - confidence), abs=1e-9)
    assert left[:-1] == sorted(left[:-1], reverse=True)
    assert [left[0], left[2], *left[-2:]] == pytest.approx([0.9, 0.82, 0.0, 8.0], abs=1e-9)


def test_max_alpha_limits_the_smoothing(device: torch.device) -> None:
    labels, confidence = torch.zeros(4, dtype=torch.int64), torch.tensor([0.0, 0.5, 0.9, 1.0], dtype=F64)
    found = confidence_adaptive(labels, confidence, 3, max_alpha=0.6).dense(F64)
    alpha = torch.tensor([0.6, 0.6, 0.15, 0.0], dtype=F64)
    torch.testing.assert_close(found, uniform(labels, 3, alpha).dense(F64), rtol=0, atol=1e-15)
    mask = torch.tensor([True, True, False])
    found = confidence_adaptive(labels, confidence, 3, max_alpha=0.6, mask=mask).dense(F64)
    alpha = torch.tensor([0.6, 0.6, 0.2, 0.0], dtype=F64)
    torch.testing.assert_close(found, uniform(labels, 3, alpha, mask=mask).dense(F64), rtol=0, atol=1e-15)
    only = torch.tensor([True, False, False])
    for limit in (None, 0.6):
        hard = confidence_adaptive(labels, confidence, 3, max_alpha=limit, mask=only).dense(F64)
        assert torch.equal(hard, one_hot(labels, 3).dense(F64))
    hard = confidence_adaptive(labels, confidence, 3, max_alpha=0.0).dense(F64)
    torch.testing.assert_close(hard, one_hot(labels, 3).dense(F64), rtol=0, atol=1e-15)


def test_confidence_may_be_a_number_an_array_or_broadcast(device: torch.device) -> None:
    labels = torch.tensor([[0, 1, 2], [2, 0, 1]], device=device)
    rows = confidence_adaptive(labels, torch.tensor([[0.5], [0.8]], dtype=F64, device=device), 3)
    assert rows.batch_shape == (2, 3)
    torch.testing.assert_close(rows[0].dense(F64), confidence_adaptive(labels[0], 0.5, 3).dense(F64))
    torch.testing.assert_close(rows[1].dense(F64), confidence_adaptive(labels[1], np.array(0.8), 3).dense(F64))
    assert confidence_adaptive(labels[:0], torch.zeros(0, 3, device=device), 3).dense().shape == (0, 3, 3)
    assert confidence_adaptive(labels[:, :1] * 0, 0.3, 1).dense().eq(1).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0], torch.tensor([1.5]), 3), ValueError, "confidence[0]=1.5 is no probability"),
        (([0], torch.tensor([-0.5]), 3), ValueError, "confidence[0]=-0.5 is no probability"),
        (([0], torch.tensor([math.nan]), 3), ValueError, "confidence[0]=nan is no probability"),
        (([0], torch.tensor([1]), 3), TypeError, "confidence must be floating-point, got torch.int64."),
        (([0], torch.tensor([0.1, 0.2]), 3), ValueError, "confidence of shape (2,) does not broadcast"),
        (([0], 1.5, 3), ValueError, "confidence=1.5 must be a finite number in [0, 1]"),
        (([0], "high", 3), TypeError, "confidence must be a number, got str 'high'."),
        (([3], 0.5, 3), ValueError, "labels[0]=3 is outside [0, 3)"),
        (([0.5], 0.5, 3), TypeError, "labels must hold class indices"),
        (([0], 0.5, 0), ValueError, "num_classes=0 must be at least 1"),
    ],
)
def test_bad_arguments(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    assert_refuses(error, message, confidence_adaptive, *arguments)


def test_bad_limits_and_masks() -> None:
    with pytest.raises(ValueError, match=r"^max_alpha=1.5 must be a finite number in \[0, 1\]"):
        confidence_adaptive([0], 0.5, 3, max_alpha=1.5)
    with pytest.raises(ValueError, match=r"^labels\[0\]=0 is illegal under its mask"):
        confidence_adaptive([0], 0.5, 2, mask=torch.tensor([False, True]))
