"""Every loss under torch.compile without a graph break, value and gradient. Targets: see test_every_target."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from rlsmooth.losses import (
    binary_cross_entropy,
    confidence_penalty,
    cross_entropy,
    entropy,
    gaussian_cross_entropy,
    gaussian_entropy,
    gaussian_kl_divergence,
    kl_divergence,
    label_relaxation,
    margin_penalty,
    statistics,
)
from rlsmooth.targets import Smoothing, Target, gaussian, prior, uniform

K = 4
F64 = torch.float64

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # logits [6, K], labels [6], mask [6, K]


def target(labels: Tensor, mask: Tensor | None = None) -> Target:
    return uniform(labels, K, 0.2, mask=mask)


def both_kl(x: Tensor, y: Tensor, m: Tensor) -> Tensor:
    return kl_divergence(x, direction="reference_to_policy", mask=m) + kl_divergence(
        x, direction="policy_to_reference", mask=m
    )


def both_kl_to_a_target(x: Tensor, y: Tensor, m: Tensor) -> Tensor:
    goal = prior(y, torch.full((K,), 1 / K, dtype=F64, device=x.device), 1.0, mask=m)
    first = kl_divergence(x, goal, direction="reference_to_policy", mask=m)
    return first + kl_divergence(x, target(y), direction="policy_to_reference")


LOSSES: dict[str, Loss] = {
    "weights and a mean": lambda x, y, m: cross_entropy(x, target(y, m), mask=m, weight=y.to(x.dtype)),
    "labels": lambda x, y, m: cross_entropy(x, y, reduction="sum"),
    "a recipe inside": lambda x, y, m: cross_entropy(x, Smoothing(0.1)(y, K, m), mask=m),
    "entropy": lambda x, y, m: entropy(x, m, "mean"),
    "kl": both_kl,
    "kl to a target": both_kl_to_a_target,
    "label_relaxation": lambda x, y, m: label_relaxation(x, target(y, m), mask=m, weight=y.to(x.dtype)),
    "confidence_penalty": lambda x, y, m: confidence_penalty(x, entropy_threshold_nats=1.0, mask=m),
    "margin_penalty": lambda x, y, m: margin_penalty(x, margin=0.5, mask=m),
    "binary": lambda x, y, m: binary_cross_entropy(x, m, real_target=0.9, reduction="sum"),
    "gaussian": lambda x, y, m: (
        gaussian_cross_entropy(x, x[0].detach(), gaussian(m.to(x.dtype), 0.1))
        + gaussian_kl_divergence(x, x, direction="reference_to_policy")
        + gaussian_entropy(x, "mean")
    ),
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def draw(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    labels = torch.tensor([0, 1, 2, 3, 0, 1], device=device)
    mask = (torch.rand(6, K, device=device) < 0.5).scatter(-1, labels.unsqueeze(-1), True)
    return torch.randn(6, K, dtype=F64, device=device), labels, mask


def value_and_gradient(loss: Loss, logits: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_(True)
    value = loss(leaf, labels, mask)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


@pytest.mark.parametrize("name", LOSSES)
def test_compiled_equals_eager(name: str, device: torch.device) -> None:
    compiled = torch.compile(LOSSES[name], fullgraph=True, backend="aot_eager")
    inputs = draw(device)
    torch.testing.assert_close(
        value_and_gradient(compiled, *inputs), value_and_gradient(LOSSES[name], *inputs), rtol=1e-12, atol=1e-12
    )


def test_statistics(device: torch.device) -> None:
    logits, labels, mask = draw(device)
    compiled = torch.compile(statistics, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        tuple(compiled(logits, target(labels, mask), mask)), tuple(statistics(logits, target(labels, mask), mask))
    )


def test_one_graph_serves_every_batch_size(device: torch.device) -> None:
    graphs = []

    def count(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(module)
        return module.forward

    def loss(x: Tensor, q: Target) -> Tensor:
        return cross_entropy(x, q)

    compiled = torch.compile(loss, fullgraph=True, backend=count, dynamic=True)
    for rows in (5, 7, 9, 33):
        logits, labels = torch.randn(rows, K, device=device), torch.randint(K, (rows,), device=device)
        torch.testing.assert_close(compiled(logits, target(labels)), loss(logits, target(labels)))
    assert len(graphs) == 1


def test_half_precision(device: torch.device) -> None:
    logits, labels, mask = draw(device)
    loss = LOSSES["weights and a mean"]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    value, gradient = value_and_gradient(compiled, logits.bfloat16(), labels, mask)
    expected, expected_gradient = value_and_gradient(loss, logits.bfloat16(), labels, mask)
    assert (value.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("name", LOSSES)
def test_inductor_equals_eager(name: str, device: torch.device) -> None:
    compiled = torch.compile(LOSSES[name], fullgraph=True, backend="inductor")
    inputs = draw(device)
    torch.testing.assert_close(
        value_and_gradient(compiled, *inputs), value_and_gradient(LOSSES[name], *inputs), rtol=1e-10, atol=1e-10
    )
