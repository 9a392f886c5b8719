"""The edge cases of the design on every layer, and every documented error of the losses."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from rlsmooth import losses
from rlsmooth.losses import (
    binary_cross_entropy,
    closed_form,
    confidence_penalty,
    cross_entropy,
    entropy,
    gaussian_cross_entropy,
    gaussian_entropy,
    gaussian_kl_divergence,
    kl_divergence,
    label_relaxation,
    margin_penalty,
    reference,
    statistics,
)
from rlsmooth.targets import Target, from_probs, gaussian, kernel, mixture, one_hot, prior, sparse, teacher, uniform
from support import RECOMPILE_LIMIT, assert_raises

INF, NAN = math.inf, math.nan
F64 = torch.float64


Loss = Callable[..., Tensor]


@pytest.fixture(params=["closed form", "blocks", "softmax", "reference", "compiled"])
def layer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A way to compute a loss: of blocks, what many classes are computed by, also with the few of these tests."""
    name: str = request.param
    if name in ("blocks", "softmax"):
        monkeypatch.setattr(closed_form, "_FEW_ELEMENTS", 1)
        monkeypatch.setattr(closed_form, "_SHORT", 1000 if name == "blocks" else 0)
    return name


@pytest.fixture(scope="module", autouse=True)
def many_graphs() -> Iterator[None]:
    """Let every test add its graph to what one compiled function has; graphs are shared where shapes are alike."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch({RECOMPILE_LIMIT: 1000}):
        yield
    torch._dynamo.reset()


@functools.cache
def compiled(name: str) -> Loss:
    return torch.compile(getattr(losses, name), fullgraph=True, backend="aot_eager", dynamic=False)


def pick(layer: str, name: str) -> Loss:
    if layer == "compiled":
        return compiled(name)
    function: Loss = getattr(reference if layer == "reference" else losses, name)
    return function


@pytest.fixture
def loss(layer: str) -> Loss:
    return pick(layer, "cross_entropy")


def rows_and_gradient(
    loss: Loss, logits: Tensor, target: Target | Tensor, mask: Tensor | None = None, weight: Tensor | None = None
) -> tuple[list[float], Tensor]:
    leaf = logits.detach().clone().requires_grad_(True)
    rows = loss(leaf, target, mask=mask, weight=weight, reduction="none")
    (gradient,) = torch.autograd.grad(rows.sum(), leaf)
    return rows.tolist(), gradient.cpu()


def row(*values: float, device: torch.device, dtype: torch.dtype = F64) -> Tensor:
    return torch.tensor([values], dtype=dtype, device=device)


def label(place: int, device: torch.device) -> Tensor:
    return torch.tensor([place], device=device)


def targets_on_the_first_two(device: torch.device) -> dict[str, Target]:
    """Targets over three classes that give the last one nothing, q = (0.75, 0.25, 0) each but the first."""
    first = label(0, device)
    pair = torch.tensor([0.5, 0.5, 0.0], dtype=F64, device=device)
    table = torch.tensor([[0, 1, 0], [1, 0, 0], [1, 1, 0]], dtype=F64, device=device)
    mask = torch.tensor([[True, True, False]], device=device)
    scores = row(math.log(0.75), math.log(0.25), -INF, device=device)
    return {
        "one_hot": one_hot(first, 3),
        "uniform under a mask": uniform(first, 3, 0.5, mask=mask),
        "prior": prior(first, pair, 0.5),
        "kernel": kernel(first, table, 0.25),
        "mixture": mixture(
            torch.tensor([[0, 1]], device=device), torch.tensor([[0.75, 0.25]], dtype=F64, device=device), 3
        ),
        "sparse": sparse(torch.tensor([[0, 1, 2]], device=device), row(0.75, 0.25, 0.0, device=device), 3),
        "teacher": teacher(scores),
        "from_probs": from_probs(row(0.75, 0.25, 0.0, device=device)),
        "alpha 0": uniform(first, 3, 0.0),
    }


KINDS = list(targets_on_the_first_two(torch.device("cpu")))


@pytest.mark.parametrize("kind", KINDS)
def test_logit_minus_inf_without_target_contributes_nothing(kind: str, loss: Loss, device: torch.device) -> None:
    target = targets_on_the_first_two(device)[kind]
    q = 1.0 if kind in ("one_hot", "alpha 0") else 0.75
    rows, gradient = rows_and_gradient(loss, row(2.0, 1.0, -INF, device=device), target)
    log_first, log_second = 2 - math.log(math.e**2 + math.e), 1 - math.log(math.e**2 + math.e)
    assert rows == pytest.approx([-q * log_first - (1 - q) * log_second], abs=1e-14)
    assert gradient[0, 2] == 0
    torch.testing.assert_close(
        gradient[0, :2], torch.tensor([math.exp(log_first) - q, math.exp(log_second) - (1 - q)], dtype=F64)
    )


@pytest.mark.parametrize(
    "kind", ["one_hot", "uniform", "prior", "kernel", "mixture", "teacher", "from_probs", "weight_classes"]
)
def test_logit_minus_inf_with_target_is_inf(kind: str, loss: Loss, device: torch.device) -> None:
    last, flat = label(2, device), torch.full((3,), 1 / 3, dtype=F64, device=device)
    target = {
        "one_hot": one_hot(last, 3),
        "uniform": uniform(label(0, device), 3, 0.1),
        "prior": prior(label(0, device), flat),
        "kernel": kernel(label(0, device), torch.ones(3, 3, device=device)),
        "mixture": mixture(torch.tensor([[0, 1]], device=device), None, 3, 0.1),
        "teacher": teacher(torch.zeros(1, 3, device=device)),
        "from_probs": from_probs(flat.unsqueeze(0)),
        "weight_classes": uniform(label(0, device), 3).weight_classes(torch.ones(3, device=device)),
    }[kind]
    rows, gradient = rows_and_gradient(loss, row(2.0, 1.0, -INF, device=device), target)
    assert rows == [INF]
    # p there is 0, so the gradient is -q: finite, and pulling the logit up.
    torch.testing.assert_close(gradient[0, 2], -target.dense(F64)[0, 2].cpu())
    assert gradient.isfinite().all()


@pytest.mark.parametrize("fill", [-INF, -1e8, 0.0, 50.0, NAN, INF])
def test_masked_logits_may_hold_anything(fill: float, loss: Loss, device: torch.device) -> None:
    mask = torch.tensor([[True, True, False, True]], device=device)
    target = uniform(label(1, device), 4, 0.3, mask=mask)
    rows, gradient = rows_and_gradient(loss, row(2.0, 1.0, fill, -1.0, device=device), target, mask=mask)
    legal = torch.tensor([2.0, 1.0, -1.0], dtype=F64)
    q = torch.tensor([0.1, 0.8, 0.1], dtype=F64)
    assert rows == pytest.approx([-(q * legal.log_softmax(0)).sum().item()], abs=1e-14)
    torch.testing.assert_close(gradient[0, [0, 1, 3]], legal.softmax(0) - q)
    assert gradient[0, 2] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fill", [-INF, -1e8])
def test_logits_masked_beforehand_give_the_same_finite_loss(
    fill: float, dtype: torch.dtype, loss: Loss, device: torch.device
) -> None:
    # sb3-contrib hands over logits with -1e8 in them; torch's own label smoothing answers 3e7 there.
    mask = torch.tensor([[True, True, False, True]], device=device)
    target = uniform(label(1, device), 4, 0.3, mask=mask)
    rows, gradient = rows_and_gradient(loss, row(2.0, 1.0, fill, -1.0, device=device, dtype=dtype), target)
    legal, q = torch.tensor([2.0, 1.0, -1.0]), torch.tensor([0.1, 0.8, 0.1])
    assert rows == pytest.approx([-(q * legal.log_softmax(0)).sum().item()], abs=1e-6)
    torch.testing.assert_close(gradient[0, [0, 1, 3]].float(), legal.softmax(0) - q, atol=0.004, rtol=0)
    assert gradient[0, 2] == 0


def test_label_or_background_illegal_under_the_mask_is_inf(loss: Loss, device: torch.device) -> None:
    mask = torch.tensor([[True, True, False]], device=device)
    hard = one_hot(label(2, device), 3)
    smoothed = uniform(label(2, device), 3, 0.1, mask=mask, validate=False)
    for target in (hard, smoothed):
        rows, gradient = rows_and_gradient(loss, row(0.0, 1.0, 2.0, device=device), target, mask=mask)
        assert rows == [INF]
        assert gradient[0, 2] == 0
    background = uniform(label(0, device), 3)
    assert rows_and_gradient(loss, row(0.0, 1.0, 2.0, device=device), background, mask=mask)[0] == [INF]


def test_one_legal_action(layer: str, loss: Loss, device: torch.device) -> None:
    mask = torch.tensor([[False, True, False]], device=device)
    logits = row(4.0, -3.0, 2.0, device=device)
    for spread in ("others", "all"):
        target = uniform(label(1, device), 3, 0.3, spread, mask=mask)  # type: ignore[arg-type]
        torch.testing.assert_close(target.dense(F64), row(0.0, 1.0, 0.0, device=device))
        rows, gradient = rows_and_gradient(loss, logits, target, mask=mask)
        assert rows == [0.0]
        torch.testing.assert_close(gradient, torch.zeros(1, 3, dtype=F64), rtol=0, atol=1e-16)
    entropy, kl_divergence = pick(layer, "entropy"), pick(layer, "kl_divergence")
    assert entropy(logits, mask).tolist() == [0.0]
    for direction in ("reference_to_policy", "policy_to_reference"):
        assert kl_divergence(logits, direction=direction, mask=mask).item() == 0


def test_no_legal_action_is_never_a_finite_loss(layer: str, loss: Loss, device: torch.device) -> None:
    mask = torch.zeros(1, 2, dtype=torch.bool, device=device)
    logits = row(1.0, 2.0, device=device)
    assert not math.isfinite(loss(logits, one_hot(label(0, device), 2), mask=mask).item())
    assert math.isnan(pick(layer, "entropy")(logits, mask).item())


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_inf_logits_come_out_as_nan(bad: float, kind: str, loss: Loss, device: torch.device) -> None:
    target = targets_on_the_first_two(device)[kind]
    for place in range(3):
        values = [2.0, 1.0, 0.0]
        values[place] = bad
        rows, gradient = rows_and_gradient(loss, row(*values, device=device), target)
        assert math.isnan(rows[0])
        assert gradient.isnan().any()


@pytest.mark.parametrize("bad", [NAN, INF])
def test_nan_and_inf_logits_come_out_of_kl_and_entropy(bad: float, layer: str, device: torch.device) -> None:
    logits = row(2.0, bad, 0.0, device=device)
    assert math.isnan(pick(layer, "entropy")(logits).item())
    for direction in ("reference_to_policy", "policy_to_reference"):
        for goal in (None, uniform(label(0, device), 3)):
            kl = pick(layer, "kl_divergence")(logits, goal, direction=direction)
            assert math.isnan(kl.item())


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_a_common_offset_drops_out_exactly(
    offset: float, dtype: torch.dtype, layer: str, loss: Loss, device: torch.device
) -> None:
    logits = row(0.5, -2.0, 1.25, 0.0, device=device, dtype=dtype)  # exact in float32 at 1e4 too
    target = uniform(label(3, device), 4)
    plain, plain_gradient = rows_and_gradient(loss, logits, target)
    moved, moved_gradient = rows_and_gradient(loss, logits + offset, target)
    assert moved == pytest.approx(plain, abs=0 if layer != "reference" else 1e-6)
    torch.testing.assert_close(moved_gradient, plain_gradient, rtol=0, atol=0 if layer != "reference" else 1e-6)


@pytest.mark.parametrize("dtype", [F64, torch.float16])
def test_logits_of_one_ten_thousand(dtype: torch.dtype, loss: Loss, device: torch.device) -> None:
    size = 8192.0  # a power of two, exact in every dtype
    logits = row(size, -size, device=device, dtype=dtype)
    assert rows_and_gradient(loss, logits, one_hot(label(0, device), 2))[0] == [0.0]
    assert rows_and_gradient(loss, logits, one_hot(label(1, device), 2))[0] == [2 * size]
    rows, gradient = rows_and_gradient(loss, logits, uniform(label(0, device), 2, 0.5))
    assert rows == [0.25 * 2 * size]
    assert gradient.tolist() == [[0.25, -0.25]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_certain_label_in_half_precision(dtype: torch.dtype, loss: Loss, device: torch.device) -> None:
    # p - q would be 0 in half precision: 1 - 2e-5 rounds to 1.
    rows, gradient = rows_and_gradient(loss, row(11.0, 0.0, device=device, dtype=dtype), label(0, device))
    rest = 1 / (1 + math.exp(11.0))
    assert rows == pytest.approx([-math.log1p(-rest)], rel=0.01)
    assert gradient.dtype == dtype
    assert gradient[0].tolist() == pytest.approx([-rest, rest], rel=0.01)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_ignored_row_may_hold_anything(reduction: str, bad: float, loss: Loss, device: torch.device) -> None:
    logits = torch.tensor([[bad, bad, bad], [1.0, 0.0, 2.0]], dtype=F64, device=device, requires_grad=True)
    weight = torch.tensor([0.0, 2.0], device=device)
    target = uniform(torch.tensor([0, 1], device=device), 3)
    value = loss(logits, target, weight=weight, reduction=reduction)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    alone = logits[1:].detach().requires_grad_(True)
    expected = (1 if reduction == "mean" else 2) * reference.cross_entropy(alone, target[1:])
    (expected_gradient,) = torch.autograd.grad(expected, alone)
    assert value.sum().item() == pytest.approx(expected.item(), abs=1e-14)
    if reduction == "none":
        assert value[0].item() == 0
    assert (gradient[0] == 0).all()
    torch.testing.assert_close(gradient[1:], expected_gradient)


def test_all_weights_zero(loss: Loss, device: torch.device) -> None:
    logits = torch.full((2, 3), NAN, dtype=F64, device=device, requires_grad=True)
    target = uniform(torch.tensor([0, 1], device=device), 3)
    value = loss(logits, target, weight=torch.zeros(2, device=device))
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.item() == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize(
    ("alpha", "q"), [(0.0, [1.0, 0.0]), (1.0, [0.5, 0.5]), (-0.5, [1.25, -0.25]), (0.5, [0.75, 0.25])]
)
def test_alpha_at_its_limits(alpha: float, q: list[float], loss: Loss, device: torch.device) -> None:
    logits = row(1.0, -1.0, device=device)
    rows, gradient = rows_and_gradient(loss, logits, uniform(label(0, device), 2, alpha))
    log_p = torch.tensor([1.0, -1.0], dtype=F64).log_softmax(0)
    weights = torch.tensor(q, dtype=F64)
    assert rows == pytest.approx([-(weights * log_p).sum().item()], abs=1e-15)
    torch.testing.assert_close(gradient[0], log_p.exp() - weights)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.7, 1.0])
def test_one_class(alpha: float, dtype: torch.dtype, layer: str, loss: Loss, device: torch.device) -> None:
    logits = row(3.0, device=device, dtype=dtype)
    rows, gradient = rows_and_gradient(loss, logits, uniform(label(0, device), 1, alpha))
    assert rows == [0.0]
    assert gradient.abs().max() <= torch.finfo(dtype).eps  # the weights' own rounding: they sum to 1 only so far
    assert pick(layer, "entropy")(logits).tolist() == [0.0]


@pytest.mark.parametrize(("shape", "reduction"), [((0,), "mean"), ((3, 0), "none")])
def test_no_rows(shape: tuple[int, ...], reduction: str, layer: str, loss: Loss, device: torch.device) -> None:
    logits = torch.zeros(*shape, 4, device=device, requires_grad=True)
    labels = torch.zeros(shape, dtype=torch.int64, device=device)
    for weight in (None, torch.zeros(shape, device=device)):
        value = loss(logits, uniform(labels, 4), weight=weight, reduction=reduction)
        assert value.shape == (shape if reduction == "none" else ())
        assert value.sum().item() == 0
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert gradient.shape == logits.shape
    assert pick(layer, "entropy")(logits, None, reduction).sum().item() == 0


def test_kl_and_entropy_take_no_notice_of_what_is_impossible(layer: str, device: torch.device) -> None:
    two = row(2.0, 1.0, device=device)
    expected = reference.entropy(two).item()
    mask = torch.tensor([[True, True, False]], device=device)
    entropy, kl_divergence = pick(layer, "entropy"), pick(layer, "kl_divergence")
    for fill in (-INF, -1e8, NAN):
        logits = row(2.0, 1.0, fill, device=device).requires_grad_(True)
        for value in (
            entropy(logits, mask).sum(),
            math.log(2) - kl_divergence(logits, direction="policy_to_reference", mask=mask),
        ):
            assert value.item() == pytest.approx(expected, abs=1e-14)
            (gradient,) = torch.autograd.grad(value, logits)
            assert gradient[0, 2] == 0
            assert gradient.isfinite().all()
    assert entropy(row(2.0, 1.0, -INF, device=device)).item() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("kind", ["weightless parent", "negative label", "others", "others alone"])
def test_atoms_that_the_background_outweighs(kind: str, device: torch.device) -> None:
    parents, shares = torch.tensor([[0, 2]], device=device), row(1.0, 0.0, device=device)
    target, logits = {
        "weightless parent": (mixture(parents, shares, 4, 0.1), row(0.0, 0.0, -INF, 1.0, device=device)),
        "negative label": (uniform(label(0, device), 3, -0.1), row(-INF, 0.0, 1.0, device=device)),
        "others": (uniform(label(0, device), 3, 0.9, "others"), row(-INF, 0.0, 1.0, device=device)),
        "others alone": (uniform(label(0, device), 3, 1.0, "others"), row(-INF, 0.0, 1.0, device=device)),
    }[kind]
    expected = reference.cross_entropy(logits, target).item()
    assert losses.cross_entropy(logits, target).item() == pytest.approx(expected, abs=1e-14)


def test_ignored_row_in_second_derivatives(device: torch.device) -> None:
    logits = torch.tensor([[NAN, 0.0], [1.0, 0.0]], dtype=F64, device=device, requires_grad=True)
    target = uniform(torch.tensor([0, 1], device=device), 2)
    value = losses.cross_entropy(logits, target, weight=torch.tensor([0.0, 1.0], device=device))
    (gradient,) = torch.autograd.grad(value, logits, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), logits)
    assert (second[0] == 0).all()


# ---- errors: the kind, and that the message names argument, value and fix
LABELS = torch.tensor([0, 2])
TARGET = uniform(LABELS, 3)
LOGITS = torch.zeros(2, 3)
Call = Callable[..., Any]

WITH_LOGITS: dict[str, Call] = {
    "cross_entropy": lambda x, **k: cross_entropy(x, TARGET, **k),
    "reference.cross_entropy": lambda x, **k: reference.cross_entropy(x, TARGET, **k),
    "entropy": entropy,
    "reference.entropy": reference.entropy,
    "kl_divergence": lambda x, **k: kl_divergence(x, direction="policy_to_reference", **k),
    "reference.kl_divergence": lambda x, **k: reference.kl_divergence(x, direction="policy_to_reference", **k),
    "statistics": lambda x, **k: statistics(x, TARGET, **k),
    "label_relaxation": lambda x, **k: label_relaxation(x, TARGET, **k),
    "confidence_penalty": confidence_penalty,
    "margin_penalty": lambda x, **k: margin_penalty(x, margin=1.0, **k),
}
WITH_TARGET: dict[str, Call] = {
    "cross_entropy": cross_entropy,
    "reference.cross_entropy": reference.cross_entropy,
    "kl_divergence": lambda x, t: kl_divergence(x, t, direction="reference_to_policy"),
    "statistics": statistics,
    "label_relaxation": label_relaxation,
}
WITH_WEIGHT: dict[str, Call] = {
    "cross_entropy": lambda **k: cross_entropy(LOGITS, TARGET, **k),
    "reference.cross_entropy": lambda **k: reference.cross_entropy(LOGITS, TARGET, **k),
    "label_relaxation": lambda **k: label_relaxation(LOGITS, TARGET, **k),
    "confidence_penalty": lambda **k: confidence_penalty(LOGITS, **k),
    "margin_penalty": lambda **k: margin_penalty(LOGITS, margin=1.0, **k),
    "binary_cross_entropy": lambda **k: binary_cross_entropy(torch.zeros(2), torch.ones(2), **k),
    "gaussian_cross_entropy": lambda **k: gaussian_cross_entropy(LOGITS, LOGITS, gaussian(LOGITS), **k),
}
WITH_REDUCTION: dict[str, Call] = WITH_WEIGHT | {
    "entropy": lambda **k: entropy(LOGITS, **k),
    "kl_divergence": lambda **k: kl_divergence(LOGITS, direction="policy_to_reference", **k),
    "gaussian_kl_divergence": lambda **k: gaussian_kl_divergence(LOGITS, LOGITS, direction="policy_to_reference", **k),
    "gaussian_entropy": lambda **k: gaussian_entropy(LOGITS, **k),
}


@pytest.mark.parametrize("name", WITH_LOGITS)
@pytest.mark.parametrize(
    ("logits", "found"),
    [(torch.zeros(2, 3, dtype=torch.int64), "torch.int64"), (torch.zeros(2, 3, dtype=torch.complex64), "complex64"),
     ([[0.0, 1.0, 2.0]], "list"), (None, "NoneType")],
)  # fmt: skip
def test_logits_of_a_wrong_kind(name: str, logits: object, found: str) -> None:
    assert_raises(TypeError, f"logits must be a floating-point tensor, got .*{found}", WITH_LOGITS[name], logits)


@pytest.mark.parametrize("name", WITH_LOGITS)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0)])
def test_logits_without_classes(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"logits has shape \(.*\), needs \[\.\.\., K\] with at least one class"):
        WITH_LOGITS[name](torch.zeros(shape))


@pytest.mark.parametrize("name", WITH_LOGITS)
@pytest.mark.parametrize("mask", [torch.ones(2, 3), torch.ones(2, 3, dtype=torch.int64), [[True, True, True]]])
def test_mask_of_a_wrong_kind(name: str, mask: object) -> None:
    with pytest.raises(TypeError, match=r"mask must be a bool tensor \(True = legal\), got .*: use mask\.bool\(\)"):
        WITH_LOGITS[name](LOGITS, mask=mask)


@pytest.mark.parametrize("name", WITH_LOGITS)
@pytest.mark.parametrize("shape", [(), (2,), (1,), (3, 2), (3, 3), (1, 2, 3)])
def test_mask_of_a_wrong_shape(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"mask of shape \(.*\) does not broadcast to \(2, 3\)"):
        WITH_LOGITS[name](LOGITS, mask=torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("name", WITH_TARGET)
@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (uniform(LABELS, 4), ValueError, r"target is for batch \(2,\) and 4 classes, logits have shape \(2, 3\)"),
        (uniform(LABELS[:1], 3), ValueError, r"target is for batch \(1,\) and 3 classes"),
        (uniform(LABELS.unsqueeze(0), 3), ValueError, r"target is for batch \(1, 2\)"),
        (0, TypeError, r"must be a Target .*, got int"),
        (gaussian(LOGITS), TypeError, r"must be a Target .*, got GaussianTarget"),
    ],
)
def test_target_that_does_not_fit(name: str, target: object, error: type[Exception], message: str) -> None:
    assert_raises(error, message, WITH_TARGET[name], LOGITS, target)


@pytest.mark.parametrize("name", [name for name in WITH_TARGET if name != "kl_divergence"])
@pytest.mark.parametrize("labels", [LABELS.int(), LABELS.float(), torch.tensor([True, False]), torch.zeros(2, 3)])
def test_labels_of_a_wrong_dtype(name: str, labels: Tensor) -> None:
    with pytest.raises(TypeError, match=r"target must be a Target or int64 labels, got torch\..*rlsmooth\.targets"):
        WITH_TARGET[name](LOGITS, labels)


@pytest.mark.parametrize("name", [name for name in WITH_TARGET if name != "kl_divergence"])
def test_labels_of_a_wrong_shape(name: str) -> None:
    with pytest.raises(ValueError, match=r"target has shape \(3,\), needs one label a row: \(2,\)"):
        WITH_TARGET[name](LOGITS, torch.tensor([0, 1, 2]))


def test_labels_are_no_reference() -> None:
    with pytest.raises(TypeError, match=r"reference must be a Target or None, got Tensor: see rlsmooth\.targets"):
        kl_divergence(LOGITS, LABELS, direction="reference_to_policy")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", WITH_WEIGHT)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1), (2, 3)])
def test_weight_of_a_wrong_shape(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"weight has shape \(.*\), needs the batch shape \(2,\)"):
        WITH_WEIGHT[name](weight=torch.ones(shape))


@pytest.mark.parametrize("name", WITH_REDUCTION)
@pytest.mark.parametrize("reduction", ["average", "", None, 1])
def test_unknown_reduction(name: str, reduction: object) -> None:
    with pytest.raises(ValueError, match=r"reduction=.* is not known: choose one of 'none', 'mean', 'sum'"):
        WITH_REDUCTION[name](reduction=reduction)


@pytest.mark.parametrize("direction", ["forward", "", None])
def test_unknown_direction(direction: Any) -> None:
    message = r"direction=.* is not known: choose one of 'reference_to_policy', 'policy_to_reference'"
    assert_raises(ValueError, message, kl_divergence, LOGITS, direction=direction)
    assert_raises(ValueError, message, gaussian_kl_divergence, LOGITS, LOGITS, direction=direction)


def test_direction_has_no_default() -> None:
    for function in (kl_divergence, gaussian_kl_divergence):
        assert_raises(TypeError, "direction", function, LOGITS, LOGITS)


def test_relaxation_needs_a_label() -> None:
    with pytest.raises(ValueError, match="target has no atom, so no label"):
        label_relaxation(LOGITS, from_probs(torch.full((2, 3), 1 / 3)))


@pytest.mark.parametrize(("value", "error"), [(-0.1, ValueError), (float("nan"), ValueError), ("1", TypeError)])
def test_thresholds(value: Any, error: type[Exception]) -> None:
    assert_raises(error, r"entropy_threshold_nats", confidence_penalty, LOGITS, entropy_threshold_nats=value)
    assert_raises(error, r"margin", margin_penalty, LOGITS, margin=value)


@pytest.mark.parametrize("side", ["real_target", "fake_target"])
@pytest.mark.parametrize(
    ("value", "error"), [(-0.1, ValueError), (1.1, ValueError), (float("nan"), ValueError), (True, TypeError)]
)
def test_binary_targets(side: str, value: Any, error: type[Exception]) -> None:
    assert_raises(error, side, binary_cross_entropy, torch.zeros(2), torch.ones(2), **{side: value})


def test_binary_logits_and_labels() -> None:
    with pytest.raises(TypeError, match=r"logits must be a floating-point tensor, got torch\.int64"):
        binary_cross_entropy(torch.zeros(2, dtype=torch.int64), torch.ones(2))
    with pytest.raises(TypeError, match=r"logits must be a floating-point tensor, got list"):
        binary_cross_entropy([0.0], torch.ones(1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"labels_real_is_one \(2,\) and logits \(2, 1\) differ in shape"):
        binary_cross_entropy(torch.zeros(2, 1), torch.ones(2))


def test_gaussian_arguments() -> None:
    target = gaussian(LOGITS)
    for mean in (torch.zeros(2, 3, dtype=torch.int64), 0.0):
        assert_raises(TypeError, "mean must be a floating-point tensor", gaussian_cross_entropy, mean, LOGITS, target)
        with pytest.raises(TypeError, match="mean must be a floating-point tensor"):
            gaussian_kl_divergence(mean, LOGITS, direction="policy_to_reference")  # type: ignore[arg-type]
    with pytest.raises(
        TypeError, match=r"target must be a GaussianTarget, got Target: see rlsmooth\.targets\.gaussian"
    ):
        gaussian_cross_entropy(LOGITS, LOGITS, TARGET)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"target is for actions \(2, 3\), mean has shape \(1, 3\)"):
        gaussian_cross_entropy(LOGITS[:1], LOGITS, target)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 1, 3)])
def test_a_target_of_one_row_does_not_serve_many(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"target is for batch \(1,\)"):
        cross_entropy(torch.zeros(shape), one_hot(torch.tensor([0]), 3))


@pytest.mark.parametrize("name", WITH_WEIGHT)
def test_weight_that_is_a_number(name: str) -> None:
    assert_raises(TypeError, "weight", WITH_WEIGHT[name], weight=2.0)


def test_binary_labels_that_are_a_list() -> None:
    assert_raises(TypeError, "labels_real_is_one", binary_cross_entropy, torch.zeros(2), [0, 1])


# ---- precision: float32 logits against the formulas in float64


K = 7
OFFSETS = (0.0, 1e4, -1e4, 3e6)


def in_float64(name: str, x: Tensor, y: Tensor) -> Tensor:
    """The loss of each row by its formula, from the logits as they are."""
    x = x.double()
    log_p = x.log_softmax(-1)
    p = log_p.exp()
    label = log_p.gather(-1, y[:, None])[:, 0]
    q = torch.full_like(p, 0.1 / (K - 1)).scatter(-1, y[:, None], 0.9)
    if name == "label_relaxation":
        t, at = 0.9, label.exp()
        return torch.where(at >= t, 0.0, t * (math.log(t) - label) + (1 - t) * (math.log(1 - t) - torch.log1p(-at)))
    if name == "confidence_penalty":
        return (p * log_p).sum(-1)
    if name == "margin_penalty":
        return torch.relu(x.amax(-1, keepdim=True) - x - 0.5).sum(-1)
    if name == "cross_entropy":
        return -(q * log_p).sum(-1)
    if name == "to the policy":
        return (q * (q.log() - log_p)).sum(-1)
    if name == "of the policy":
        return (p * (log_p - q.log())).sum(-1)
    assert name == "expected_value"
    return (p * torch.linspace(-1, 1, K, dtype=F64)).sum(-1)


def others(y: Tensor) -> Target:
    return uniform(y, K, 0.1, "others")


PRECISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "label_relaxation": lambda x, y: label_relaxation(x, others(y), reduction="none"),
    "confidence_penalty": lambda x, y: confidence_penalty(x, reduction="none"),
    "margin_penalty": lambda x, y: margin_penalty(x, margin=0.5, reduction="none"),
    "cross_entropy": lambda x, y: cross_entropy(x, others(y), reduction="none"),
    "to the policy": lambda x, y: kl_divergence(x, others(y), direction="reference_to_policy", reduction="none"),
    "of the policy": lambda x, y: kl_divergence(x, others(y), direction="policy_to_reference", reduction="none"),
    "expected_value": lambda x, y: losses.expected_value(x, torch.linspace(-1, 1, K)),
}


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("name", PRECISE)
def test_a_common_offset_costs_no_precision(name: str, offset: float, traced: bool) -> None:
    logits, labels = 3 * torch.randn(400, K) + offset, torch.randint(K, (400,))
    wide = logits.double().requires_grad_()
    expected = in_float64(name, wide, labels)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), wide)
    if traced:
        gradient, value = torch.func.grad_and_value(lambda x: PRECISE[name](x, labels).sum())(logits)
        assert value.item() == pytest.approx(expected.sum().item(), rel=1e-5, abs=1e-3)
    else:
        leaf = logits.clone().requires_grad_()
        rows = PRECISE[name](leaf, labels)
        torch.testing.assert_close(rows.double(), expected.detach(), rtol=2e-6, atol=2e-6)
        (gradient,) = torch.autograd.grad(rows.sum(), leaf)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("direction", ["reference_to_policy", "policy_to_reference"])
@pytest.mark.parametrize("classes", [50, 10_000])
@pytest.mark.parametrize("reference_is_uniform", [False, True])
def test_a_gradient_with_a_graph_is_as_exact_as_without(
    classes: int, direction: Any, reference_is_uniform: bool
) -> None:
    logits, labels = 2 * torch.randn(16, classes), torch.randint(classes, (16,))
    goal = None if reference_is_uniform else prior(labels, torch.rand(classes, dtype=F64).softmax(-1), 1.0)
    q = torch.full((16, classes), 1 / classes, dtype=F64) if goal is None else goal.dense(F64)
    wide = logits.double().requires_grad_()
    log_p = wide.log_softmax(-1)
    terms = log_p.exp() * (log_p - q.log()) if direction == "policy_to_reference" else q * (q.log() - log_p)
    (expected,) = torch.autograd.grad(terms.sum(), wide, create_graph=True)
    (second,) = torch.autograd.grad(expected.square().sum(), wide)

    def loss(x: Tensor) -> Tensor:
        return kl_divergence(x, goal, direction=direction, reduction="sum")

    leaf = logits.clone().requires_grad_()
    (plain,) = torch.autograd.grad(loss(leaf), leaf)
    (with_graph,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    (found_second,) = torch.autograd.grad(with_graph.square().sum(), leaf)
    transformed = torch.func.grad(loss)(logits)
    error = (plain.double() - expected).abs().max().item()
    for found in (with_graph, transformed):
        assert (found.double() - expected).abs().max().item() <= 3 * error + 1e-9
    torch.testing.assert_close(found_second.double(), second, rtol=1e-4, atol=1e-6 * second.abs().max().item())
