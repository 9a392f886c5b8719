"""Hard, uniform, prior, mixture and atom targets against formulas written out in numpy, and against torch and timm."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rlsmooth.targets import Target, mixture, one_hot, prior, sparse, uniform

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
def test_one_hot_is_the_identity_matrix_row(shape: tuple[int, ...], device: torch.device) -> None:
    labels = draw_labels(shape, 4, device)
    target = one_hot(labels, 4)
    assert target.batch_shape == shape
    assert_dense(target, onehot_of(labels, 4), tolerance=0)
    assert target.background_weight is None


@pytest.mark.parametrize("shape", BATCHES)
@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.1, 1.0])
def test_uniform_over_all(shape: tuple[int, ...], alpha: float, device: torch.device) -> None:
    labels = draw_labels(shape, 7, device)
    assert_dense(uniform(labels, 7, alpha), (1 - alpha) * onehot_of(labels, 7) + alpha / 7)


@pytest.mark.parametrize("shape", BATCHES)
@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.1, 1.0])
def test_uniform_over_others(shape: tuple[int, ...], alpha: float, device: torch.device) -> None:
    labels = draw_labels(shape, 7, device)
    onehot = onehot_of(labels, 7)
    assert_dense(uniform(labels, 7, alpha, "others"), (1 - alpha) * onehot + alpha / 6 * (1 - onehot))


@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_is_torchs_label_smoothing_in_value_and_gradient(
    alpha: float, dtype: torch.dtype, device: torch.device
) -> None:
    logits = torch.randn(6, 5, dtype=dtype, device=device, requires_grad=True)
    labels = draw_labels((6,), 5, device)
    theirs = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=alpha, reduction="none")
    ours = -(uniform(labels, 5, alpha).dense(dtype) * logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(ours, theirs)
    (their_gradient,) = torch.autograd.grad(theirs.sum(), logits)
    (our_gradient,) = torch.autograd.grad(ours.sum(), logits)
    torch.testing.assert_close(our_gradient, their_gradient)


def test_uniform_is_timms_label_smoothing(device: torch.device) -> None:
    # timm.loss.LabelSmoothingCrossEntropy: (1 - smoothing) · nll + smoothing · mean over classes of -log p
    smoothing = 0.13
    log_probs = torch.randn(6, 5, dtype=torch.float64, device=device).log_softmax(-1)
    labels = draw_labels((6,), 5, device)
    nll = -log_probs.gather(-1, labels.unsqueeze(1)).squeeze(1)
    theirs = (1 - smoothing) * nll + smoothing * -log_probs.mean(-1)
    ours = -(uniform(labels, 5, smoothing).dense(torch.float64) * log_probs).sum(-1)
    torch.testing.assert_close(ours, theirs)


def test_alpha_is_divided_among_the_classes_not_replaced_by_their_number() -> None:
    """ConvE's published code added 1/K where alpha/K belongs, so that its targets summed to 1 + (1 - alpha)."""
    target = uniform(torch.tensor([3]), 50, 0.1)
    conve = 0.9 * onehot_of(torch.tensor([3]), 50) + 1 / 50
    assert conve.sum() == pytest.approx(1.9)  # what the test guards against
    assert target.dense(torch.float64).sum().item() == pytest.approx(1.0, abs=1e-14)
    assert target.dense(torch.float64)[0, 0].item() == pytest.approx(0.1 / 50, abs=1e-17)


@pytest.mark.parametrize("num_classes", [2, 3, 10, 1000])
@pytest.mark.parametrize("alpha", [-1.0, 0.1, 0.5])
def test_others_at_alpha_is_all_at_alpha_k_over_k_minus_1(num_classes: int, alpha: float) -> None:
    labels = torch.arange(num_classes)
    rescaled = alpha * num_classes / (num_classes - 1)
    if rescaled > 1:
        pytest.skip("the rescaled alpha is above 1")
    others = uniform(labels, num_classes, alpha, "others").dense(torch.float64)
    everything = uniform(labels, num_classes, rescaled, "all").dense(torch.float64)
    torch.testing.assert_close(others, everything, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("spread", "margin"), [("all", 4.511), ("others", 4.394)])
def test_optimal_margin_of_ten_classes(spread: Any, margin: float) -> None:
    """The logit difference of the target itself: log(1 + K(1-a)/a) and log((1-a)(K-1)/a)."""
    dense = uniform(torch.tensor(0), 10, 0.1, spread).dense(torch.float64)
    assert math.log(dense[0] / dense[1]) == pytest.approx(margin, abs=5e-4)


@pytest.mark.parametrize("shape", BATCHES)
@pytest.mark.parametrize("spread", ["all", "others"])
@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.3, 1.0])
def test_uniform_under_a_mask(shape: tuple[int, ...], spread: Any, alpha: float, device: torch.device) -> None:
    labels = draw_labels(shape, 6, device)
    mask = draw_mask(labels, 6)
    legal, onehot = mask.cpu().numpy().astype(float), onehot_of(labels, 6)
    if spread == "all":
        expected = (1 - alpha) * onehot + alpha * legal / legal.sum(-1, keepdims=True)
    else:
        others = legal - onehot
        count = others.sum(-1, keepdims=True)
        kept = np.where(count > 0, 1 - alpha, 1.0)
        expected = kept * onehot + (1 - kept) * others / np.maximum(count, 1)
    target = uniform(labels, 6, alpha, spread, mask=mask)
    assert_dense(target, expected)
    assert (target.dense(torch.float64)[~mask] == 0).all()


@pytest.mark.parametrize("spread", ["all", "others"])
def test_a_full_mask_changes_nothing(spread: Any, device: torch.device) -> None:
    labels = draw_labels((4,), 5, device)
    mask = torch.ones(5, dtype=torch.bool, device=device)
    plain = uniform(labels, 5, 0.2, spread).dense(torch.float64)
    torch.testing.assert_close(uniform(labels, 5, 0.2, spread, mask=mask).dense(torch.float64), plain)


@pytest.mark.parametrize("mask_shape", [(4,), (1, 4), (3, 4), (1, 3, 4), (2, 1, 4), (2, 3, 4)])
def test_masks_broadcast(mask_shape: tuple[int, ...], device: torch.device) -> None:
    labels = torch.zeros(2, 3, dtype=torch.int64, device=device)
    mask = torch.rand(mask_shape, device=device) < 0.5
    mask[..., 0] = True
    legal = np.broadcast_to(mask.cpu().numpy(), (2, 3, 4)).astype(float)
    expected = 0.8 * onehot_of(labels, 4) + 0.2 * legal / legal.sum(-1, keepdims=True)
    assert_dense(uniform(labels, 4, 0.2, mask=mask), expected)


@pytest.mark.parametrize("spread", ["all", "others"])
@pytest.mark.parametrize("alpha", [-0.3, 0.4, 1.0])
def test_one_legal_class_gives_the_hard_target(spread: Any, alpha: float) -> None:
    labels = torch.tensor([2, 0])
    mask = torch.eye(3, dtype=torch.bool)[labels]
    assert_dense(uniform(labels, 3, alpha, spread, mask=mask), onehot_of(labels, 3), tolerance=1e-15)


@pytest.mark.parametrize("spread", ["all", "others"])
def test_one_class(spread: Any) -> None:
    target = uniform(torch.zeros(3, dtype=torch.int64), 1, 0.4, spread)
    assert_dense(target, np.ones((3, 1)), tolerance=1e-16)
    assert_dense(one_hot([0], 1), np.ones((1, 1)))
    assert_dense(prior([0], torch.ones(1), 0.4), np.ones((1, 1)))
    assert_dense(mixture(torch.tensor([[0]]), None, 1, 0.4), np.ones((1, 1)))


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
        assert_dense(one_hot(labels, 3), expected)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        target = one_hot(torch.tensor([2, 0], dtype=dtype), 3)
        assert target.atom_indices.dtype == torch.int64
        assert_dense(target, expected)
    assert_dense(one_hot(2, 3), expected[0])
    assert one_hot(2, 3).batch_shape == ()
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


def test_one_parent_is_uniform_over_the_others() -> None:
    labels = torch.arange(4)
    single = mixture(labels.unsqueeze(-1), None, 4, 0.3).dense(torch.float64)
    torch.testing.assert_close(single, uniform(labels, 4, 0.3, "others").dense(torch.float64))


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
