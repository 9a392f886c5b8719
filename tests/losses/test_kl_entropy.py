"""kl_divergence and entropy against torch.distributions, on whole rows and on the legal classes alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical
from torch.distributions import kl_divergence as torch_kl

from rlsmooth.losses import closed_form, entropy, kl_divergence, reference
from rlsmooth.targets import Target, from_probs, kernel, prior, teacher, uniform

K = 6
F64 = torch.float64
Direction = Literal["reference_to_policy", "policy_to_reference"]
directions = pytest.mark.parametrize("direction", ["reference_to_policy", "policy_to_reference"])
layers = pytest.mark.parametrize("layer", ["closed form", "reference"])
ENTROPY = {"closed form": entropy, "reference": reference.entropy}
KL = {"closed form": kl_divergence, "reference": reference.kl_divergence}


def value_and_gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits.detach().clone().requires_grad_(True)
    rows = loss(leaf)
    (gradient,) = torch.autograd.grad(rows, leaf, torch.linspace(1, 2, rows.numel()).to(rows).reshape(rows.shape))
    return rows.detach(), gradient


def assert_same(
    ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], logits: Tensor, tolerance: float = 1e-12
) -> None:
    for mine, yours in zip(value_and_gradient(ours, logits), value_and_gradient(theirs, logits), strict=True):
        torch.testing.assert_close(mine, yours, rtol=tolerance, atol=tolerance)


def draw(device: torch.device, dtype: torch.dtype = F64, rows: int = 9) -> Tensor:
    return 3 * torch.randn(rows, K, dtype=dtype, device=device)


@layers
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (F64, 1e-12)])
def test_entropy_is_torchs(layer: str, dtype: torch.dtype, tolerance: float, device: torch.device) -> None:
    assert_same(ENTROPY[layer], lambda x: Categorical(logits=x).entropy(), draw(device, dtype), tolerance)


@layers
@directions
@pytest.mark.parametrize("kind", [None, "uniform", "prior", "kernel", "teacher", "from_probs"])
def test_kl_is_torchs(kind: str | None, direction: Direction, layer: str, device: torch.device) -> None:
    logits, labels = draw(device), torch.randint(K, (9,), device=device)
    share = torch.rand(K, dtype=F64, device=device)
    targets: dict[str, Target] = {
        "uniform": uniform(labels, K, 0.3),
        "prior": prior(labels, share / share.sum(), 1.0),
        "kernel": kernel(labels, torch.rand(K, K, dtype=F64, device=device), 0.4),
        "teacher": teacher(draw(device), 2.0),
        "from_probs": from_probs(draw(device).softmax(-1)),
    }
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
    logits, labels = draw(device), torch.randint(K, (9,), device=device)
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
        upstream = 1 + row / 8
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
    logits = draw(device)
    legal = None if mask is None else mask.to(device)
    n = K if mask is None else 4
    kl = KL[layer](logits, direction="policy_to_reference", mask=legal, reduction="none")
    torch.testing.assert_close(kl, math.log(n) - ENTROPY[layer](logits, legal))


@layers
@directions
def test_kl_is_0_between_equals_and_positive_otherwise(direction: Direction, layer: str, device: torch.device) -> None:
    logits = draw(device)
    same = KL[layer](logits, teacher(logits), direction=direction, reduction="none")
    torch.testing.assert_close(same, torch.zeros_like(same), rtol=0, atol=1e-14)
    assert (KL[layer](logits, teacher(draw(device)), direction=direction, reduction="none") > 0).all()


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
    logits = draw(device).to(dtype)
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
    logits = draw(device)
    torch.testing.assert_close(ENTROPY[layer](logits, None, reduction), expected(ENTROPY[layer](logits)))
    rows = KL[layer](logits, direction="policy_to_reference", reduction="none")
    torch.testing.assert_close(KL[layer](logits, direction="policy_to_reference", reduction=reduction), expected(rows))


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_blocks_of_rows_give_what_one_block_gives(
    rows: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = draw(device)
    labels = torch.randint(K, (9,), device=device)
    mask = (torch.rand(9, K, device=device) < 0.5).scatter(-1, labels.unsqueeze(-1), True)
    goal = prior(labels, torch.full((K,), 1 / K, device=device), 0.5)

    def losses() -> list[Tensor]:
        return [
            part
            for loss in (
                lambda x: entropy(x, mask),
                lambda x: kl_divergence(x, goal, direction="policy_to_reference", reduction="none"),
                lambda x: kl_divergence(x, goal, direction="reference_to_policy", reduction="none"),
            )
            for part in value_and_gradient(loss, logits)
        ]

    whole = losses()
    monkeypatch.setitem(closed_form._BLOCK_ELEMENTS, device.type, rows * K)
    torch.testing.assert_close(losses(), whole, rtol=1e-13, atol=1e-13)
