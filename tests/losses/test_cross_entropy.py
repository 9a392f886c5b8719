"""cross_entropy against torch's wherever torch's is right, in value and in gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rlsmooth.losses import closed_form, cross_entropy, reference
from rlsmooth.targets import Target, from_probs, one_hot, prior, uniform

CLASSES = 7
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}
LAYERS = {"closed form": cross_entropy, "reference": reference.cross_entropy}


def value_and_gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    """A loss, and the gradient of its rows weighed 1, 2, 3, … where it has rows."""
    leaf = logits.detach().clone().requires_grad_(True)
    value = loss(leaf)
    upstream = torch.arange(1, value.numel() + 1, dtype=value.dtype, device=value.device).reshape(value.shape)
    (gradient,) = torch.autograd.grad(value, leaf, upstream)
    return value.detach(), gradient


def assert_same(
    ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], logits: Tensor, tolerance: float
) -> None:
    value, gradient = value_and_gradient(ours, logits)
    their_value, their_gradient = value_and_gradient(theirs, logits)
    assert gradient.dtype == logits.dtype
    torch.testing.assert_close(value, their_value, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient, their_gradient, rtol=tolerance, atol=tolerance)


def draw(rows: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    logits = 3 * torch.randn(rows, CLASSES, dtype=dtype, device=device)
    return logits, torch.randint(CLASSES, (rows,), device=device)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
def test_equals_torchs_label_smoothing(
    layer: str,
    dtype: torch.dtype,
    reduction: Literal["none", "mean", "sum"],
    alpha: float,
    device: torch.device,
) -> None:
    logits, labels = draw(11, dtype, device)
    assert_same(
        lambda x: LAYERS[layer](x, uniform(labels, CLASSES, alpha), reduction=reduction),
        lambda x: F.cross_entropy(x, labels, label_smoothing=alpha, reduction=reduction),
        logits,
        TOLERANCE[dtype],
    )


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_int64_labels_are_hard_targets(layer: str, dtype: torch.dtype, device: torch.device) -> None:
    logits, labels = draw(11, dtype, device)
    assert_same(lambda x: LAYERS[layer](x, labels), lambda x: F.cross_entropy(x, labels), logits, TOLERANCE[dtype])


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torch_for_given_probabilities(layer: str, dtype: torch.dtype, device: torch.device) -> None:
    logits, _ = draw(11, dtype, device)
    probabilities = torch.randn(11, CLASSES, dtype=dtype, device=device).softmax(-1)
    assert_same(
        lambda x: LAYERS[layer](x, from_probs(probabilities)),
        lambda x: F.cross_entropy(x, probabilities),
        logits,
        TOLERANCE[dtype],
    )


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
def test_class_weights_are_torchs_once_divided_by_the_labels_weights(
    layer: str, dtype: torch.dtype, alpha: float, device: torch.device
) -> None:
    logits, labels = draw(11, dtype, device)
    weights = torch.rand(CLASSES, dtype=dtype, device=device) + 0.1
    target = uniform(labels, CLASSES, alpha).weight_classes(weights)
    assert_same(
        lambda x: LAYERS[layer](x, target, reduction="sum") / weights[labels].sum(),
        lambda x: F.cross_entropy(x, labels, weight=weights, label_smoothing=alpha),
        logits,
        TOLERANCE[dtype],
    )


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_weight_zero_is_torchs_ignore_index(
    layer: str, reduction: Literal["none", "mean", "sum"], device: torch.device
) -> None:
    logits, labels = draw(11, torch.float64, device)
    ignored = torch.arange(11, device=device) % 3 == 0
    assert_same(
        lambda x: LAYERS[layer](x, uniform(labels, CLASSES), weight=(~ignored).double(), reduction=reduction),
        lambda x: F.cross_entropy(x, labels.masked_fill(ignored, -100), label_smoothing=0.1, reduction=reduction),
        logits,
        1e-12,
    )


@pytest.mark.parametrize("layer", LAYERS)
def test_ignored_rows_class_weights_and_smoothing_together(layer: str, device: torch.device) -> None:
    logits, labels = draw(11, torch.float64, device)
    kept = torch.arange(11, device=device) % 3 != 0
    weights = torch.rand(CLASSES, dtype=torch.float64, device=device) + 0.1
    target = uniform(labels, CLASSES, 0.2).weight_classes(weights)
    assert_same(
        lambda x: LAYERS[layer](x, target, weight=kept.double(), reduction="sum") / weights[labels[kept]].sum(),
        lambda x: F.cross_entropy(x, labels.masked_fill(~kept, -100), weight=weights, label_smoothing=0.2),
        logits,
        1e-12,
    )


@pytest.mark.parametrize("layer", LAYERS)
def test_row_weights_multiply_rows_and_divide_the_mean(layer: str, device: torch.device) -> None:
    logits, labels = draw(11, torch.float64, device)
    weight = torch.rand(11, dtype=torch.float64, device=device)
    rows = F.cross_entropy(logits, labels, label_smoothing=0.1, reduction="none")
    target = uniform(labels, CLASSES)
    for reduction, expected in (
        ("none", rows * weight),
        ("sum", (rows * weight).sum()),
        ("mean", (rows * weight).sum() / weight.sum()),
    ):
        torch.testing.assert_close(LAYERS[layer](logits, target, weight=weight, reduction=reduction), expected)


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float16, torch.float32])
def test_row_weights_may_have_any_dtype(kind: torch.dtype, device: torch.device) -> None:
    logits, labels = draw(4, torch.float64, device)
    weight = torch.tensor([1, 0, 1, 1], device=device)
    expected = F.cross_entropy(logits[weight == 1], labels[weight == 1])
    torch.testing.assert_close(cross_entropy(logits, labels, weight=weight.to(kind)), expected)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [3, 1000])
def test_half_precision_is_the_float64_loss_of_the_same_logits(
    layer: str, dtype: torch.dtype, classes: int, device: torch.device
) -> None:
    logits = (4 * torch.randn(16, classes, device=device)).to(dtype)
    labels = torch.randint(classes, (16,), device=device)
    value, gradient = value_and_gradient(lambda x: LAYERS[layer](x, uniform(labels, classes)), logits)
    exact, exact_gradient = value_and_gradient(
        lambda x: F.cross_entropy(x, labels, label_smoothing=0.1), logits.double()
    )
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=1e-6)
    # Rounded once, at the end: the gradient is the float64 gradient to within one step of the input's dtype.
    step = torch.finfo(dtype).eps
    smallest = torch.finfo(dtype).smallest_normal * step
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=step, atol=max(smallest, 1e-9))


def test_torchs_own_bfloat16_loss_is_further_off(device: torch.device) -> None:
    # Shows that the comparison above is not idle.
    logits = (4 * torch.randn(16, 1000, device=device)).bfloat16()
    labels = torch.randint(1000, (16,), device=device)
    exact = F.cross_entropy(logits.double(), labels, reduction="none")
    theirs = (F.cross_entropy(logits, labels, reduction="none").double() - exact).abs().max()
    ours = (cross_entropy(logits, labels, reduction="none").double() - exact).abs().max()
    assert theirs > 1e-3
    assert ours < 1e-5


@pytest.mark.parametrize("kind", ["one_hot", "uniform", "prior", "from_probs"])
def test_float32_error_stays_small_at_many_classes(kind: str, device: torch.device) -> None:
    classes = 50_000
    logits = torch.randn(4, classes, device=device)
    labels = torch.randint(classes, (4,), device=device)
    background = torch.rand(classes, dtype=torch.float64, device=device)
    targets: dict[str, Callable[[], Target]] = {
        "one_hot": lambda: one_hot(labels, classes),
        "uniform": lambda: uniform(labels, classes),
        "prior": lambda: prior(labels, background / background.sum(), 0.5),
        "from_probs": lambda: from_probs(torch.randn(4, classes, device=device).softmax(-1)),
    }
    target = targets[kind]()
    q = target.dense(torch.float64)
    exact = -(q * logits.double().log_softmax(-1)).sum(-1)
    error = cross_entropy(logits, target, reduction="none").double() - exact
    assert error.abs().max() < 5e-6  # about 40 float32 steps of a loss near 11


@pytest.mark.parametrize("rows", [1, 2, 3, 17])
def test_blocks_of_rows_give_what_one_block_gives(
    rows: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, labels = draw(10, torch.float64, device)
    mask = (torch.rand(10, CLASSES, device=device) < 0.5).scatter(-1, labels.unsqueeze(-1), True)
    alpha = torch.rand(10, device=device)
    weight = torch.tensor([0.0, *range(9)], device=device)
    logits[0] = torch.nan

    def loss(x: Tensor) -> Tensor:
        return cross_entropy(x, uniform(labels, CLASSES, alpha, mask=mask), mask=mask, weight=weight)

    value, gradient = value_and_gradient(loss, logits)
    monkeypatch.setitem(closed_form._BLOCK_ELEMENTS, device.type, rows * CLASSES)
    blocked, blocked_gradient = value_and_gradient(loss, logits)
    torch.testing.assert_close(blocked, value, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(blocked_gradient, gradient, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_mask_leaves_illegal_classes_out_of_the_softmax(layer: str, device: torch.device) -> None:
    logits, labels = draw(11, torch.float64, device)
    mask = (torch.rand(11, CLASSES, device=device) < 0.5).scatter(-1, labels.unsqueeze(-1), True)
    value, gradient = value_and_gradient(
        lambda x: LAYERS[layer](x, uniform(labels, CLASSES, 0.3, mask=mask), mask=mask, reduction="none"), logits
    )
    for row in range(11):  # torch over the legal classes alone
        legal = mask[row].nonzero().squeeze(-1)
        place = (legal == labels[row]).nonzero().squeeze()
        small = logits[row, legal].requires_grad_(True)
        expected = F.cross_entropy(small, place, label_smoothing=0.3)
        (expected_gradient,) = torch.autograd.grad((row + 1) * expected, small)
        torch.testing.assert_close(value[row], expected.detach())
        torch.testing.assert_close(gradient[row, legal], expected_gradient)
        assert (gradient[row, ~mask[row]] == 0).all()


def test_a_mask_broadcasts_over_the_batch(device: torch.device) -> None:
    logits, labels = draw(11, torch.float64, device)
    mask = torch.tensor([True, True, False, True, True, False, True], device=device)
    labels = torch.where(mask[labels], labels, 0)
    expected = F.cross_entropy(logits.masked_fill(~mask, -torch.inf), labels)
    torch.testing.assert_close(cross_entropy(logits, labels, mask=mask), expected)
    torch.testing.assert_close(cross_entropy(logits, labels, mask=mask.unsqueeze(0)), expected)


def test_two_uses_of_the_same_logits_add_their_gradients(device: torch.device) -> None:
    logits, labels = draw(11, torch.float64, device)
    leaf = logits.requires_grad_(True)
    target = uniform(labels, CLASSES)
    (cross_entropy(leaf, target) + 2 * cross_entropy(leaf, target)).backward()
    both = leaf.grad
    (one,) = torch.autograd.grad(cross_entropy(leaf, target), leaf)
    assert both is not None
    torch.testing.assert_close(both, 3 * one)
