"""statistics against an oracle that writes everything out in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlsmooth.losses import Statistics, closed_form, entropy, reference, statistics
from rlsmooth.targets import Target, boltzmann, from_probs, kernel, mixture, one_hot, prior, sparse, teacher, uniform

K = 6
F64 = torch.float64


def oracle(
    logits: Tensor, target: Target, background: Tensor | None, labels: Tensor, mask: Tensor | None
) -> Statistics:
    """By definition; `background` is the reference's own distribution, `[..., K]`, None for the uniform over legal."""
    legal = torch.ones_like(logits, dtype=torch.bool) if mask is None else mask
    log_p = logits.double().masked_fill(~legal, -torch.inf).log_softmax(-1)
    p, q = log_p.exp(), target.dense(F64)
    r = legal.double() / legal.sum(-1, keepdim=True) if background is None else background
    return Statistics(
        -torch.where(q != 0, q * log_p, 0.0).sum(-1),
        -torch.where(p > 0, p * log_p, 0.0).sum(-1),
        torch.where(r > 0, r * (r.log() - log_p), 0.0).sum(-1),
        p.gather(-1, labels.unsqueeze(-1)).squeeze(-1),
        log_p.argmax(-1) == labels,
    )


def assert_same(actual: Statistics, expected: Statistics, tolerance: float) -> None:
    for name, mine, wanted in zip(Statistics._fields, actual, expected, strict=True):
        assert mine.shape == wanted.shape, name
        if name == "top1_hit":
            assert mine.dtype == torch.bool
            assert torch.equal(mine, wanted)
        else:
            torch.testing.assert_close(mine.double(), wanted, rtol=tolerance, atol=tolerance, msg=name)


KINDS = ["one_hot", "labels", "uniform", "others", "prior", "kernel", "mixture", "sparse"]
KINDS += ["teacher", "teacher and labels", "boltzmann", "from_probs", "written out"]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (F64, 1e-12), (torch.bfloat16, 3e-6)])
def test_equals_the_oracle(
    kind: str, masked: bool, dtype: torch.dtype, tolerance: float, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(closed_form._BLOCK_ELEMENTS, device.type, 4 * K)  # several blocks, the last one short
    logits = (3 * torch.randn(3, 5, K, dtype=F64, device=device)).to(dtype)
    labels = torch.randint(K, (3, 5), device=device)
    second = (labels + 1) % K
    mask = None
    if masked:
        mask = torch.rand(3, 5, K, device=device) < 0.5
        mask = mask.scatter(-1, torch.stack((labels, second), -1), True)
    share = torch.rand(K, dtype=F64, device=device) + 0.1
    table = torch.rand(K, K, dtype=F64, device=device)
    values = torch.randn(3, 5, K, dtype=F64, device=device)
    legal = torch.ones(3, 5, K, dtype=torch.bool, device=device) if mask is None else mask

    def normalised(weights: Tensor) -> Tensor:
        masked_weights = weights * legal
        return masked_weights / masked_weights.sum(-1, keepdim=True)

    given = normalised(values.exp())
    background: Tensor | None = None
    target: Target
    if kind in ("one_hot", "labels"):
        target = one_hot(labels, K)
    elif kind in ("uniform", "others"):
        target = uniform(labels, K, 0.2, "all" if kind == "uniform" else "others", mask=mask)
    elif kind == "prior":
        target, background = prior(labels, share / share.sum(), 0.3, mask=mask), normalised(share)
    elif kind == "kernel":
        rows = table.clone().fill_diagonal_(0)
        target, background = kernel(labels, table, 0.3, mask=mask), normalised(rows[labels])
    elif kind == "mixture":
        target = mixture(torch.stack((labels, second), -1), None, K, 0.2, mask=mask)
    elif kind == "sparse":
        target = sparse(torch.stack((labels, second), -1), values[..., :2].exp(), K)
    elif kind in ("teacher", "boltzmann"):
        target = teacher(values, mask=mask) if kind == "teacher" else boltzmann(values, mask=mask)
        background, labels = given, given.argmax(-1)
    elif kind == "teacher and labels":
        target, background = teacher(values, 1.0, labels, 0.3, mask=mask), given
    elif kind == "from_probs":
        target, background, labels = from_probs(given), given, given.argmax(-1)
    else:
        target = uniform(labels, K, 0.2, mask=mask).written_out(F64)
        background = target.dense(F64)
    result = statistics(logits, labels if kind == "labels" else target, mask)
    assert_same(result, oracle(logits, target, background, labels, mask), tolerance)
    assert result.cross_entropy.dtype == (F64 if dtype == F64 else torch.float32)


def test_has_no_graph(device: torch.device) -> None:
    logits = torch.randn(4, K, device=device, requires_grad=True)
    result = statistics(logits, uniform(torch.arange(4, device=device), K))
    assert not any(column.requires_grad for column in result)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (2, 3)])
def test_any_batch_shape(shape: tuple[int, ...], device: torch.device) -> None:
    labels = torch.zeros(shape, dtype=torch.int64, device=device)
    result = statistics(torch.zeros(*shape, K, device=device), labels)
    assert all(column.shape == shape for column in result)
    assert (result.top1_hit.dtype, result.entropy.dtype) == (torch.bool, torch.float32)


def test_impossible_classes(device: torch.device) -> None:
    logits = torch.tensor([[1.0, -torch.inf, 1.0]], dtype=F64, device=device)
    mask = torch.tensor([[True, False, True]], device=device)
    label = torch.tensor([2], device=device)
    masked = statistics(logits, uniform(label, 3, mask=mask), mask)
    assert [column.item() for column in masked] == pytest.approx([math.log(2), math.log(2), 0, 0.5, 0])
    # Without the mask the uniform reference has an action that the policy can't take.
    plain = statistics(logits, label)
    assert [column.item() for column in plain] == pytest.approx([math.log(2), math.log(2), math.inf, 0.5, 0])
    impossible = statistics(logits, torch.tensor([1], device=device))
    assert (impossible.cross_entropy.item(), impossible.label_probability.item()) == (math.inf, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_inf_come_out(bad: float, device: torch.device) -> None:
    logits = torch.tensor([[0.0, bad, 1.0]], device=device)
    result = statistics(logits, uniform(torch.tensor([2], device=device), 3))
    assert all(column.isnan() for column in result[:4])
    assert not result.top1_hit


def test_agrees_with_the_losses(device: torch.device) -> None:
    logits = torch.randn(7, K, dtype=F64, device=device)
    target = prior(torch.randint(K, (7,), device=device), torch.full((K,), 1 / K, dtype=F64), 0.3)
    result = statistics(logits, target)
    torch.testing.assert_close(result.cross_entropy, reference.cross_entropy(logits, target, reduction="none"))
    torch.testing.assert_close(result.entropy, entropy(logits))


def test_a_broken_row_is_no_hit(device: torch.device) -> None:
    logits = torch.full((1, 3), math.nan, device=device)
    assert not statistics(logits, torch.tensor([0], device=device)).top1_hit
