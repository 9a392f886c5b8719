"""Peak memory of forward and backward: the gradient, and little else.

The profiler reports every allocation and release of torch's own allocator, temporaries inside kernels included, so the
running sum's maximum is what the loss needed beyond what was there before. The logits and the target are made before;
the gradient counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from rlsmooth.losses import cross_entropy, entropy, kl_divergence, statistics
from rlsmooth.targets import Target, from_probs, kernel, mixture, one_hot, prior, teacher, uniform

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
    assert target.reference is not None
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


def test_statistics(device: torch.device, tmp_path: Path) -> None:
    logits, target = torch.randn(ROWS, MEDIUM, device=device), uniform(labels(MEDIUM, device), MEDIUM)
    needed = peak_bytes(lambda: statistics(logits, target), device, tmp_path) / (4 * logits.numel())
    assert needed <= (0.2 if device.type == "cpu" else 3)


@pytest.mark.parametrize("direction", ["reference_to_policy", "policy_to_reference"])
def test_kl_to_a_given_reference(direction: str, device: torch.device, tmp_path: Path) -> None:
    target = TARGETS["kernel"](device) if direction == "policy_to_reference" else masked_uniform(NARROW, device)

    def loss(logits: Tensor) -> Tensor:
        return kl_divergence(logits, target, direction=direction)  # type: ignore[arg-type]

    assert times_the_logits(loss, NARROW, device, tmp_path) <= 2
