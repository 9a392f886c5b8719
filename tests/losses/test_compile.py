"""Every loss under torch.compile without a graph break, and the peak memory of forward and backward."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

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
from rlsmooth.targets import Smoothing, Target, from_probs, gaussian, kernel, mixture, one_hot, prior, teacher, uniform

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


# ---- peak memory: the gradient, and little else
ROWS = 1024
WIDE = 32_000
NARROW = 4_000  # a kernel is [K, K]
MEDIUM = 10_000  # where the size is nothing but time


def peak_bytes(run: Callable[[], object], device: torch.device, folder: Path) -> int:
    """The most that `run` held at once, beyond what was held before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    trace = folder / "trace.json"
    profiler.export_chrome_trace(str(trace))
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: float(event["ts"])):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    assert peak > 0
    return peak


def times_the_logits(loss: Callable[[Tensor], Tensor], classes: int, device: torch.device, folder: Path) -> float:
    logits = torch.randn(ROWS, classes, device=device, requires_grad=True)

    def run() -> None:
        (gradient,) = torch.autograd.grad(loss(logits), logits)
        assert gradient.shape == logits.shape

    return peak_bytes(run, device, folder) / (4 * logits.numel())


def labels(classes: int, device: torch.device) -> Tensor:
    return torch.randint(classes, (ROWS,), device=device)


def masked_uniform(classes: int, device: torch.device) -> Target:
    place = labels(classes, device)
    mask = (torch.rand(ROWS, classes, device=device) < 0.5).scatter(-1, place.unsqueeze(-1), True)
    return uniform(place, classes, mask=mask)


TARGETS: dict[str, Callable[[torch.device], Target]] = {
    "one_hot": lambda device: one_hot(labels(WIDE, device), WIDE),
    "uniform": lambda device: uniform(labels(WIDE, device), WIDE),
    "prior": lambda device: prior(labels(WIDE, device), torch.full((WIDE,), 1 / WIDE, device=device)),
    "kernel": lambda device: kernel(labels(NARROW, device), torch.rand(NARROW, NARROW, device=device)),
    "masked": lambda device: masked_uniform(WIDE, device),
    "mixture": lambda device: mixture(torch.stack((labels(WIDE, device), labels(WIDE, device)), -1), None, WIDE, 0.1),
    "teacher": lambda device: teacher(torch.randn(ROWS, WIDE, device=device)),
    "from_probs": lambda device: from_probs(torch.full((ROWS, WIDE), 1 / WIDE, device=device)),
}


def test_the_measure_sees_what_torchs_label_smoothing_needs(device: torch.device, tmp_path: Path) -> None:
    place = labels(WIDE, device)
    # The log-softmax, the gradient of its two uses, and the gradient itself.
    assert times_the_logits(lambda x: F.cross_entropy(x, place, label_smoothing=0.1), WIDE, device, tmp_path) >= 2.95


def test_the_measure_counts_a_copy_as_one(device: torch.device, tmp_path: Path) -> None:
    assert times_the_logits(lambda x: x.exp().sum(), WIDE, device, tmp_path) == pytest.approx(2, abs=0.01)


@pytest.mark.parametrize("kind", TARGETS)
def test_cross_entropy(kind: str, device: torch.device, tmp_path: Path) -> None:
    target = TARGETS[kind](device)
    needed = times_the_logits(lambda x: cross_entropy(x, target), target.num_classes, device, tmp_path)
    assert 1 <= needed <= 2
    if device.type == "cpu":
        assert needed <= (1.1 if kind != "kernel" else 1.7)  # what there is besides the gradient, fits the cache


def test_a_mask_and_weights_cost_nothing(device: torch.device, tmp_path: Path) -> None:
    target, weight = masked_uniform(MEDIUM, device), torch.ones(ROWS, device=device)
    mask = target.reference.mask
    needed = times_the_logits(lambda x: cross_entropy(x, target, mask=mask, weight=weight), MEDIUM, device, tmp_path)
    assert needed <= 1.3


def test_regularisers(device: torch.device, tmp_path: Path) -> None:
    losses: list[Callable[[Tensor], Tensor]] = [
        lambda x: entropy(x, None, "mean"),
        lambda x: kl_divergence(x, direction="reference_to_policy"),
        lambda x: kl_divergence(x, direction="policy_to_reference"),
    ]
    for loss in losses:
        assert times_the_logits(loss, MEDIUM, device, tmp_path) <= (1.3 if device.type == "cpu" else 4)


def test_statistics_in_little_memory(device: torch.device, tmp_path: Path) -> None:
    logits, target = torch.randn(ROWS, MEDIUM, device=device), uniform(labels(MEDIUM, device), MEDIUM)
    needed = peak_bytes(lambda: statistics(logits, target), device, tmp_path) / (4 * logits.numel())
    assert needed <= (0.2 if device.type == "cpu" else 3)


@pytest.mark.parametrize("direction", ["reference_to_policy", "policy_to_reference"])
def test_kl_to_a_given_reference(direction: str, device: torch.device, tmp_path: Path) -> None:
    target = TARGETS["kernel"](device) if direction == "policy_to_reference" else masked_uniform(NARROW, device)

    def loss(logits: Tensor) -> Tensor:
        return kl_divergence(logits, target, direction=direction)  # type: ignore[arg-type]

    assert times_the_logits(loss, NARROW, device, tmp_path) <= 2
