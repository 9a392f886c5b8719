"""cross_entropy, kl_divergence, entropy and binary_cross_entropy against torch's, in value and in gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical
from torch.distributions import kl_divergence as torch_kl
from torch.nn import functional as F

from rlsmooth.losses import binary_cross_entropy, closed_form, cross_entropy, entropy, kl_divergence, reference
from rlsmooth.targets import Smoothing, Target, from_probs, kernel, one_hot, prior, teacher, uniform
from support import value_and_gradient

CLASSES = 7
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}
LAYERS = {"closed form": cross_entropy, "reference": reference.cross_entropy}


def assert_same(
    ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], logits: Tensor, tolerance: float = 1e-12
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
    layer: str, dtype: torch.dtype, reduction: Literal["none", "mean", "sum"], alpha: float, device: torch.device
) -> None:
    logits, labels = draw(11, dtype, device)
    assert_same(
        lambda x: LAYERS[layer](x, uniform(labels, CLASSES, alpha), reduction=reduction),
        lambda x: F.cross_entropy(x, labels, label_smoothing=alpha, reduction=reduction),
        logits,
        TOLERANCE[dtype],
    )


RECIPES = {
    "uniform": Smoothing(0.2),
    "others": Smoothing(0.2, spread="others"),
    "negative": Smoothing(-0.2),
    "prior": Smoothing(0.2, torch.arange(1.0, CLASSES + 1) / sum(range(1, CLASSES + 1))),
    "ordinal": Smoothing(0.2, "exponential"),
    "whole": Smoothing(None, "exponential"),
    "kernel": Smoothing(0.2, torch.rand(CLASSES, CLASSES, generator=torch.Generator().manual_seed(0)) + 0.1),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_target_made_again_has_the_same_loss_to_the_bit(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with other labels, which a table knows by then, and with labels that change in place."""
    monkeypatch.setattr(closed_form, "_tables", {})
    logits, smoothing = draw(50, torch.float32, torch.device("cpu"))[0], RECIPES[recipe]
    batches = [torch.randint(CLASSES, (50,)) for _ in range(3)]
    fresh = [value_and_gradient(lambda x, y=y: cross_entropy(x, smoothing(y, CLASSES)), logits) for y in batches[:1]]
    for labels in batches[1:]:
        monkeypatch.setattr(closed_form, "_tables", {})
        fresh.append(value_and_gradient(lambda x, y=labels: cross_entropy(x, smoothing(y, CLASSES)), logits))
    for _ in range(2):
        for labels, (value, gradient) in zip(batches, fresh, strict=True):
            again = value_and_gradient(lambda x, y=labels: cross_entropy(x, smoothing(y, CLASSES)), logits)
            assert torch.equal(again[0], value)
            assert torch.equal(again[1], gradient)
    labels = batches[0].clone()
    target = smoothing(labels, CLASSES)
    for given, (value, _) in zip((*batches, batches[0]), (*fresh, fresh[0]), strict=True):
        labels.copy_(given)
        assert torch.equal(cross_entropy(logits, target), value)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_many_short_rows(recipe: str, masked: bool, reduction: Literal["none", "mean", "sum"]) -> None:
    """Which torch's softmax takes across the rows: value, gradient and second derivative are the oracle's."""
    logits, labels = draw(150, torch.float64, torch.device("cpu"))
    mask = (torch.rand(150, CLASSES) > 0.3).scatter(-1, labels.unsqueeze(-1), True) if masked else None
    direction = torch.randn_like(logits)
    logits.requires_grad_()
    found = []
    for loss in (cross_entropy, cross_entropy, reference.cross_entropy):  # the second time from a table
        value = loss(logits, RECIPES[recipe](labels, CLASSES, mask), mask=mask, reduction=reduction)
        (gradient,) = torch.autograd.grad(value.sum(), logits, create_graph=True)
        found.append((value, gradient, torch.autograd.grad((gradient * direction).sum(), logits)[0]))
    for again in found[:2]:
        torch.testing.assert_close(again, found[2], rtol=1e-12, atol=1e-12)


def test_an_illegal_label_is_infinite_in_short_rows() -> None:
    logits, labels = draw(150, torch.float32, torch.device("cpu"))
    mask = torch.ones(150, CLASSES, dtype=torch.bool)
    mask[3, labels[3]] = False
    target = Smoothing(0.2)(labels, CLASSES, mask, validate=False)
    rows = cross_entropy(logits, target, mask=mask, reduction="none")
    assert rows.isinf().tolist() == [row == 3 for row in range(150)]


def test_targets_of_an_evaluation_serve_a_training() -> None:
    logits, labels = draw(50, torch.float32, torch.device("cpu"))
    expected = value_and_gradient(lambda x: cross_entropy(x, uniform(labels, CLASSES)), logits)
    with torch.inference_mode():
        made, places = uniform(labels, CLASSES), labels.clone()
        cross_entropy(logits, made), cross_entropy(logits, RECIPES["uniform"](places, CLASSES))
    given = uniform(labels, CLASSES)
    with torch.inference_mode():
        cross_entropy(logits, given)
    found = value_and_gradient(lambda x: cross_entropy(x, given), logits)
    assert all(map(torch.equal, found, expected))


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
def test_blocks_of_rows_give_what_one_block_gives(rows: int, device: torch.device, monkeypatch: Any) -> None:
    logits, labels = draw(10, torch.float64, device)
    mask = (torch.rand(10, CLASSES, device=device) < 0.5).scatter(-1, labels.unsqueeze(-1), True)
    alpha = torch.rand(10, device=device)
    weight = torch.tensor([0.0, *range(9)], device=device)
    logits[0] = torch.nan

    def loss(x: Tensor) -> Tensor:
        return cross_entropy(x, uniform(labels, CLASSES, alpha, mask=mask), mask=mask, weight=weight)

    value, gradient = value_and_gradient(loss, logits)
    monkeypatch.setattr(closed_form, "_FEW_ELEMENTS", 1)
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


# ---- kl_divergence and entropy: on whole rows and on the legal classes alone
K = 6
F64 = torch.float64
Direction = Literal["reference_to_policy", "policy_to_reference"]
directions = pytest.mark.parametrize("direction", ["reference_to_policy", "policy_to_reference"])
layers = pytest.mark.parametrize("layer", ["closed form", "reference"])
ENTROPY = {"closed form": entropy, "reference": reference.entropy}
KL = {"closed form": kl_divergence, "reference": reference.kl_divergence}


def draw_logits(device: torch.device, dtype: torch.dtype = F64, rows: int = 9) -> Tensor:
    return 3 * torch.randn(rows, K, dtype=dtype, device=device)


@layers
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (F64, 1e-12)])
def test_entropy_is_torchs(layer: str, dtype: torch.dtype, tolerance: float, device: torch.device) -> None:
    assert_same(ENTROPY[layer], lambda x: Categorical(logits=x).entropy(), draw_logits(device, dtype), tolerance)


@layers
@directions
@pytest.mark.parametrize("kind", [None, "uniform", "prior", "kernel", "teacher", "from_probs"])
def test_kl_is_torchs(kind: str | None, direction: Direction, layer: str, device: torch.device) -> None:
    logits, labels = draw_logits(device), torch.randint(K, (9,), device=device)
    share = torch.rand(K, dtype=F64, device=device)
    targets: dict[str, Target] = {"uniform": uniform(labels, K, 0.3), "prior": prior(labels, share / share.sum(), 1.0)}
    targets |= {"kernel": kernel(labels, torch.rand(K, K, dtype=F64, device=device), 0.4)}
    targets |= {"teacher": teacher(draw_logits(device), 2.0), "from_probs": from_probs(draw_logits(device).softmax(-1))}
    goal = None if kind is None else targets[kind]
    q = Categorical(torch.full((9, K), 1 / K, dtype=F64, device=device) if goal is None else goal.dense(F64))

    def theirs(x: Tensor) -> Tensor:
        p = Categorical(logits=x)
        return torch_kl(q, p) if direction == "reference_to_policy" else torch_kl(p, q)

    assert_same(lambda x: KL[layer](x, goal, direction=direction, reduction="none"), theirs, logits)


@layers
@directions
@pytest.mark.parametrize("kind", ["none", "uniform", "prior"])
@pytest.mark.parametrize("fill", [0.0, -1e8, -math.inf, math.nan])
def test_masks_leave_the_legal_classes(
    kind: str, fill: float, direction: Direction, layer: str, device: torch.device
) -> None:
    logits, labels = draw_logits(device), torch.randint(K, (9,), device=device)
    mask = (torch.rand(9, K, device=device) < 0.5).scatter(-1, labels.unsqueeze(-1), True)
    share = torch.rand(K, dtype=F64, device=device) + 0.1
    goal = {
        "none": None,
        "uniform": uniform(labels, K, 1.0, mask=mask),
        "prior": prior(labels, share / share.sum(), 1.0, mask=mask),
    }[kind]
    filled = logits.masked_fill(~mask, fill)
    value, gradient = value_and_gradient(
        lambda x: KL[layer](x, goal, direction=direction, mask=mask, reduction="none"), filled
    )
    level, slope = value_and_gradient(lambda x: ENTROPY[layer](x, mask), filled)
    for row in range(9):
        legal = mask[row]
        weights = share[legal] if kind == "prior" else torch.ones(int(legal.sum()), dtype=F64, device=device)
        small = logits[row, legal].requires_grad_(True)
        p, q = Categorical(logits=small), Categorical(weights / weights.sum())
        expected = torch_kl(q, p) if direction == "reference_to_policy" else torch_kl(p, q)
        upstream = 1 + row
        torch.testing.assert_close(value[row], expected.detach())
        torch.testing.assert_close(
            gradient[row, legal], upstream * torch.autograd.grad(expected, small, retain_graph=True)[0]
        )
        torch.testing.assert_close(level[row], p.entropy().detach())
        torch.testing.assert_close(slope[row, legal], upstream * torch.autograd.grad(p.entropy(), small)[0])
        assert (gradient[row, ~legal] == 0).all()
        assert (slope[row, ~legal] == 0).all()


@layers
@pytest.mark.parametrize("mask", [None, torch.tensor([True, True, False, True, False, True])])
def test_kl_to_the_uniform_is_log_n_minus_entropy(layer: str, mask: Tensor | None, device: torch.device) -> None:
    logits = draw_logits(device)
    legal = None if mask is None else mask.to(device)
    n = K if mask is None else 4
    kl = KL[layer](logits, direction="policy_to_reference", mask=legal, reduction="none")
    torch.testing.assert_close(kl, math.log(n) - ENTROPY[layer](logits, legal))


@layers
@directions
def test_kl_is_0_between_equals_and_positive_otherwise(direction: Direction, layer: str, device: torch.device) -> None:
    logits = draw_logits(device)
    same = KL[layer](logits, teacher(logits), direction=direction, reduction="none")
    torch.testing.assert_close(same, torch.zeros_like(same), rtol=0, atol=1e-14)
    assert (KL[layer](logits, teacher(draw_logits(device)), direction=direction, reduction="none") > 0).all()


@layers
@pytest.mark.parametrize("validated", [torch.float32, F64])
def test_a_lacking_action_is_infinitely_far(layer: str, validated: torch.dtype, device: torch.device) -> None:
    logits = torch.zeros(1, 3, dtype=validated, device=device)
    lacking = from_probs(torch.tensor([[0.5, 0.5, 0.0]], device=device))
    given_up = torch.tensor([[0.0, 0.0, -torch.inf]], dtype=validated, device=device)
    kl = KL[layer]
    # The policy uses what the reference lacks; the reference has what the policy gave up.
    assert kl(logits, lacking, direction="policy_to_reference").item() == math.inf
    assert kl(given_up, direction="reference_to_policy").item() == math.inf
    # The other way round both are finite.
    assert kl(logits, lacking, direction="reference_to_policy").item() == pytest.approx(math.log(1.5))
    assert kl(given_up, direction="policy_to_reference").item() == pytest.approx(math.log(1.5))
    # What both lack says nothing.
    for direction in ("reference_to_policy", "policy_to_reference"):
        assert kl(given_up, lacking, direction=direction).item() == pytest.approx(0, abs=1e-7)


@layers
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_float64_value_of_the_same_logits(
    layer: str, dtype: torch.dtype, device: torch.device
) -> None:
    logits = draw_logits(device).to(dtype)
    p = Categorical(logits=logits.double())
    u = Categorical(torch.full((9, K), 1 / K, dtype=F64, device=device))
    for ours, theirs in (
        (lambda x: ENTROPY[layer](x), p.entropy()),
        (lambda x: KL[layer](x, direction="policy_to_reference", reduction="none"), torch_kl(p, u)),
        (lambda x: KL[layer](x, direction="reference_to_policy", reduction="none"), torch_kl(u, p)),
    ):
        value, gradient = value_and_gradient(ours, logits)
        assert (value.dtype, gradient.dtype) == (torch.float32, dtype)
        torch.testing.assert_close(value.double(), theirs, rtol=2e-6, atol=2e-6)


@layers
@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_a_common_offset_says_nothing(layer: str, offset: float, device: torch.device) -> None:
    logits = torch.tensor([[0.5, -2.0, 1.25, 0.0, 3.0, -1.0]], device=device)
    torch.testing.assert_close(ENTROPY[layer](logits + offset), ENTROPY[layer](logits), rtol=0, atol=1e-6)
    for direction in ("reference_to_policy", "policy_to_reference"):
        moved, plain = (KL[layer](x, direction=direction) for x in (logits + offset, logits))
        torch.testing.assert_close(moved, plain, rtol=0, atol=2e-3 if layer == "reference" else 1e-6)


@layers
def test_a_certain_policy_has_no_entropy(layer: str, device: torch.device) -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4], [0.0, -torch.inf, -torch.inf]], device=device, requires_grad=True)
    level = ENTROPY[layer](logits)
    assert level.tolist() == [0.0, 0.0]
    (gradient,) = torch.autograd.grad(level.sum(), logits)
    assert (gradient == 0).all()


@layers
@pytest.mark.parametrize(("reduction", "expected"), [("mean", Tensor.mean), ("sum", Tensor.sum)])
def test_reductions(
    layer: str, reduction: Literal["mean", "sum"], expected: Callable[[Tensor], Tensor], device: torch.device
) -> None:
    logits = draw_logits(device)
    torch.testing.assert_close(ENTROPY[layer](logits, None, reduction), expected(ENTROPY[layer](logits)))
    rows = KL[layer](logits, direction="policy_to_reference", reduction="none")
    torch.testing.assert_close(KL[layer](logits, direction="policy_to_reference", reduction=reduction), expected(rows))


# ---- binary_cross_entropy: infinite logits, and what one-sided smoothing promises
INF = math.inf
REAL_FAKE = [(1.0, 0.0), (0.9, 0.0), (0.9, 0.1), (1.0, 0.2), (0.0, 1.0), (0.5, 0.5)]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize(("real", "fake"), REAL_FAKE)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_equals_torch(
    dtype: torch.dtype, tolerance: float, real: float, fake: float, reduction: str, device: torch.device
) -> None:
    logits = (5 * torch.randn(4, 3, dtype=dtype, device=device)).requires_grad_(True)
    is_real = torch.rand(4, 3, device=device) < 0.5
    target = fake + (real - fake) * is_real.to(dtype)
    for labels in (is_real, is_real.long(), is_real.to(dtype)):
        ours = binary_cross_entropy(logits, labels, real_target=real, fake_target=fake, reduction=reduction)  # type: ignore[arg-type]
        theirs = F.binary_cross_entropy_with_logits(logits, target, reduction=reduction)
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
        gradients = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (ours, theirs)]
        torch.testing.assert_close(*gradients, rtol=tolerance, atol=tolerance)


def test_labels_between_real_and_fake_mix_the_targets(device: torch.device) -> None:
    logits = torch.randn(5, dtype=torch.float64, device=device)
    share = torch.linspace(0, 1, 5, dtype=torch.float64, device=device)
    ours = binary_cross_entropy(logits, share, real_target=0.9, fake_target=0.2, reduction="none")
    theirs = F.binary_cross_entropy_with_logits(logits, 0.2 + 0.7 * share, reduction="none")
    torch.testing.assert_close(ours, theirs)


def test_weights_leave_rows_out(device: torch.device) -> None:
    logits = torch.tensor([math.nan, INF, 1.0, -2.0], dtype=torch.float64, device=device, requires_grad=True)
    labels = torch.tensor([1, 0, 1, 0], device=device)
    weight = torch.tensor([0.0, 0.0, 1.0, 3.0], device=device)
    kept = logits[2:].detach().requires_grad_(True)
    rows = F.binary_cross_entropy_with_logits(kept, labels[2:].double(), reduction="none") * weight[2:]
    for reduction, expected in (("sum", rows.sum()), ("mean", rows.sum() / 4), ("none", rows)):
        value = binary_cross_entropy(logits, labels, weight=weight, reduction=reduction)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        (wanted,) = torch.autograd.grad(expected.sum(), kept, retain_graph=True)
        if reduction == "none":
            assert value[:2].tolist() == [0.0, 0.0]
        torch.testing.assert_close(value.sum(), expected.sum())
        assert gradient[:2].tolist() == [0.0, 0.0]
        torch.testing.assert_close(gradient[2:], wanted)


def test_no_weight_and_no_rows_give_0(device: torch.device) -> None:
    logits = torch.full((2,), math.nan, device=device, requires_grad=True)
    value = binary_cross_entropy(logits, torch.ones(2, device=device), weight=torch.zeros(2, device=device))
    assert value.item() == 0
    assert torch.autograd.grad(value, logits)[0].tolist() == [0.0, 0.0]
    assert binary_cross_entropy(torch.zeros(0, device=device), torch.zeros(0, device=device)).item() == 0


@pytest.mark.parametrize(
    ("logit", "label", "real", "fake", "expected", "slope"),
    [
        (INF, 1, 1.0, 0.0, 0.0, 0.0),
        (-INF, 0, 1.0, 0.0, 0.0, 0.0),
        (INF, 0, 1.0, 0.0, INF, 1.0),
        (-INF, 1, 1.0, 0.0, INF, -1.0),
        (INF, 1, 0.9, 0.0, INF, 0.1),
        (-INF, 0, 0.9, 0.0, 0.0, 0.0),
        (INF, 1, 1.0, 0.3, 0.0, 0.0),
        (1e4, 1, 1.0, 0.0, 0.0, 0.0),
        (-1e4, 1, 1.0, 0.0, 1e4, -1.0),
        (1e4, 1, 0.75, 0.0, 2500.0, 0.25),
        (-1e4, 0, 1.0, 0.25, 2500.0, -0.25),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_infinite_and_huge_logits(
    logit: float,
    label: int,
    real: float,
    fake: float,
    expected: float,
    slope: float,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    logits = torch.tensor([logit], dtype=dtype, device=device, requires_grad=True)
    labels = torch.tensor([label], device=device)
    value = binary_cross_entropy(logits, labels, real_target=real, fake_target=fake)
    assert value.item() == expected
    assert torch.autograd.grad(value, logits)[0].item() == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("real", [1.0, 0.9])
def test_nan_comes_out(label: int, real: float, device: torch.device) -> None:
    logits = torch.tensor([math.nan, 1.0], device=device, requires_grad=True)
    value = binary_cross_entropy(logits, torch.tensor([label, 1], device=device), real_target=real)
    assert value.isnan()
    assert torch.autograd.grad(value, logits)[0][0].isnan()


@pytest.mark.parametrize("alpha", [0.6, 0.9, 0.99])
def test_one_sided_smoothing_caps_the_logit(alpha: float, device: torch.device) -> None:
    # Real data alone: the loss is least at log(a / (1 - a)), and flat there.
    cap = math.log(alpha / (1 - alpha))
    logits = torch.tensor([cap - 0.01, cap, cap + 0.01], dtype=torch.float64, device=device, requires_grad=True)
    rows = binary_cross_entropy(logits, torch.ones(3, device=device), real_target=alpha, reduction="none")
    assert rows[1] < rows[0]
    assert rows[1] < rows[2]
    (gradient,) = torch.autograd.grad(rows.sum(), logits)
    assert gradient[1].item() == pytest.approx(0, abs=1e-15)
    assert gradient[0] < 0 < gradient[2]


@pytest.mark.parametrize(("real", "fake"), [(1.0, 0.0), (0.9, 0.0), (0.9, 0.1)])
def test_best_discriminator(real: float, fake: float, device: torch.device) -> None:
    # D* = (a·p_d + b·p_g) / (p_d + p_g)
    data, generated = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]], dtype=torch.float64, device=device)
    best = (real * data + fake * generated) / (data + generated)
    logits = torch.logit(best).requires_grad_(True)
    loss: Tensor = binary_cross_entropy(
        torch.cat((logits, logits)),
        torch.tensor([1, 1, 1, 0, 0, 0], device=device),
        real_target=real,
        fake_target=fake,
        weight=torch.cat((data, generated)),
        reduction="sum",
    )
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], torch.zeros_like(best), rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, device: torch.device) -> None:
    logits = (5 * torch.randn(50, device=device)).to(dtype).requires_grad_(True)
    labels = torch.rand(50, device=device) < 0.5
    value = binary_cross_entropy(logits, labels, real_target=0.9)
    exact = F.binary_cross_entropy_with_logits(logits.double(), 0.9 * labels.double())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=1e-6)
    assert torch.autograd.grad(value, logits)[0].dtype == dtype


@pytest.mark.parametrize(("real", "fake"), REAL_FAKE)
def test_derivatives(real: float, fake: float, device: torch.device) -> None:
    logits = torch.randn(4, dtype=torch.float64, device=device, requires_grad=True)
    labels = torch.tensor([1.0, 0.0, 0.25, 1.0], device=device, requires_grad=True)

    def loss(x: Tensor) -> Tensor:
        return binary_cross_entropy(x, labels, real_target=real, fake_target=fake, reduction="none")

    assert torch.autograd.gradcheck(loss, logits)
    assert torch.autograd.gradgradcheck(loss, logits)
    assert not binary_cross_entropy(logits.detach(), labels).requires_grad  # labels are constants


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 0)])
def test_any_shape(shape: tuple[int, ...], device: torch.device) -> None:
    logits, labels = torch.randn(shape, device=device), torch.ones(shape, device=device)
    rows = binary_cross_entropy(logits, labels, reduction="none")
    assert rows.shape == shape
    torch.testing.assert_close(rows, F.binary_cross_entropy_with_logits(logits, labels, reduction="none"))
