"""Every kind of target through the losses, every loss under torch.compile, and the peak memory of both passes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

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
from rlsmooth.targets import (
    Smoothing,
    Target,
    Tree,
    boltzmann,
    completed_q,
    confidence_adaptive,
    from_probs,
    gaussian,
    hierarchical,
    hl_gauss,
    kernel,
    mixture,
    one_hot,
    ordinal,
    prior,
    sparse,
    teacher,
    two_hot,
    uniform,
    visit_counts,
)
from support import RECOMPILE_LIMIT, NoWaiting, value_and_gradient

K = 6
Make = Callable[[Tensor, Tensor | None], Target]
TREE = Tree.from_nested({"a": ["b", "c", "d"], "e": {"f": ["g", "h"], "i": ["j"]}})
PRIOR = torch.tensor([0.1, 0.2, 0.3, 0.1, 0.25, 0.05], dtype=torch.float64)
PLACES = torch.tensor([-1.0, -0.5, 0.0, 0.1, 0.4, 0.9], dtype=torch.float64)
TABLE = torch.tensor([[1 / (1 + (3 * i + 5 * j) % 7) for j in range(K)] for i in range(K)], dtype=torch.float64)


def parents(labels: Tensor) -> Tensor:
    return torch.stack((labels, (labels + 2) % K, labels), -1)


def scores(labels: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Some values for each row, different from row to row. `[..., K]`"""
    places = torch.arange(K, device=labels.device, dtype=dtype)
    return torch.sin(3.0 * places + labels.unsqueeze(-1).to(dtype))


def visits(labels: Tensor, mask: Tensor | None) -> Tensor:
    """Of a search that has seen some of the legal classes. `[..., K]`"""
    counts = (4 * scores(labels)).clamp_min(0).round()
    return counts if mask is None else counts * mask


MASKABLE: dict[str, Make] = {
    "uniform": lambda y, m: uniform(y, K, 0.3, mask=m),
    "uniform over others": lambda y, m: uniform(y, K, 0.3, "others", mask=m),
    "prior": lambda y, m: prior(y, PRIOR, 0.3, mask=m),
    "kernel": lambda y, m: kernel(y, TABLE, 0.3, mask=m),
    "hierarchical": lambda y, m: hierarchical(y, TREE, 0.3, 0.5, mask=m),
    "hierarchical Boltzmann": lambda y, m: hierarchical(y, TREE, None, 0.5, mask=m),
    "ordinal": lambda y, m: ordinal(y, K, 0.3, mask=m),
    "boltzmann": lambda y, m: boltzmann(scores(y), 0.7, mask=m),
    "completed values": lambda y, m: completed_q(scores(y), scores(y + 1), visits(y, m), value=0.3, mask=m),
    "confidence": lambda y, m: confidence_adaptive(y, torch.rand_like(y.double()), K, mask=m),
    "teacher and labels": lambda y, m: teacher(scores(y), 2.0, y, 0.4, mask=m),
    "mixture": lambda y, m: mixture(parents(y), None, K, 0.3, mask=m),
    "class weights of uniform": lambda y, m: uniform(y, K, 0.3, mask=m).weight_classes(2 * PRIOR),
    "class weights of kernel": lambda y, m: kernel(y, TABLE, 0.3, mask=m).weight_classes(2 * PRIOR),
    "class weights of teacher": lambda y, m: teacher(scores(y), mask=m).weight_classes(2 * PRIOR),
    "scaled": lambda y, m: kernel(y, TABLE, 0.3, mask=m).scale(1.0 + y.double()),
    "mix of two backgrounds": lambda y, m: Target.mix(
        uniform(y, K, 0.3, mask=m), kernel(y, TABLE, 0.2, mask=m), torch.rand_like(y.double())
    ),
    "written out": lambda y, m: uniform(y, K, 0.3, mask=m).written_out(torch.float64),
}
OTHERS: dict[str, Make] = {
    "one_hot": lambda y, m: one_hot(y, K),
    "negative alpha": lambda y, m: uniform(y, K, -0.3),
    "alpha of each row": lambda y, m: uniform(y, K, torch.rand_like(y.double())),
    "adjacent": lambda y, m: ordinal(y, K, 0.3, "adjacent", edge="half"),
    "triangular": lambda y, m: ordinal(y, K, None, "triangular", width=2.5),
    "binomial": lambda y, m: ordinal(y, K, None, "binomial"),
    "poisson": lambda y, m: ordinal(y, K, 0.3, "poisson"),
    "beta": lambda y, m: ordinal(y, K, 0.3, "beta"),
    "shares of parents": lambda y, m: mixture(parents(y), PRIOR[:3].to(y.device) / PRIOR[:3].sum(), K, 0.2),
    "sparse": lambda y, m: sparse(parents(y), scores(y)[..., :3], K),
    "visit counts": lambda y, m: visit_counts(1 + (5 * scores(y)).abs().round(), 0.5),
    "teacher": lambda y, m: teacher(scores(y, torch.float32)),
    "probabilities": lambda y, m: from_probs(scores(y).softmax(-1)),
    "two-hot values": lambda y, m: two_hot(scores(y)[..., 1], PLACES.to(y.device)),
    "HL-Gauss values": lambda y, m: hl_gauss(scores(y)[..., 1], PLACES.to(y.device)),
    "recipe": lambda y, m: Smoothing(0.2, reference=TABLE)(y, K),
    "class weights of probabilities": lambda y, m: from_probs(scores(y).softmax(-1)).weight_classes(PRIOR),
    "mix of one background": lambda y, m: Target.mix(uniform(y, K, 0.3), uniform((y + 1) % K, K, 0.1), 0.6),
    "mix with a hard target": lambda y, m: Target.mix(one_hot(y, K), prior(y, PRIOR, 0.3), 0.6),
}
EVERY = [*((name, False) for name in (MASKABLE | OTHERS)), *((name, True) for name in MASKABLE)]
every_target = pytest.mark.parametrize(("kind", "masked"), EVERY)


def draw(
    kind: str, masked: bool, device: torch.device, shape: tuple[int, ...] = (4,)
) -> tuple[Tensor, Target, Tensor | None]:
    """Logits in float64, a target, and the mask that both have where `masked`."""
    labels = torch.randint(K, shape, device=device)
    logits = 2 * torch.randn(*shape, K, dtype=torch.float64, device=device)
    mask = (torch.rand(*shape, K, device=device) < 0.6).scatter(-1, parents(labels), True) if masked else None
    return logits, (MASKABLE | OTHERS)[kind](labels, mask), mask


@every_target
def test_first_and_second_derivatives(kind: str, masked: bool, device: torch.device) -> None:
    logits, target, mask = draw(kind, masked, device, (3,))
    logits.requires_grad_(True)
    weight = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64, device=device)

    def loss(x: Tensor) -> Tensor:
        return cross_entropy(x, target, mask=mask, weight=weight)

    def rows(x: Tensor) -> Tensor:
        return cross_entropy(x, target, mask=mask, reduction="none")

    assert torch.autograd.gradcheck(rows, logits)
    assert torch.autograd.gradgradcheck(rows, logits)
    assert torch.autograd.gradgradcheck(loss, logits)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("direction", ["reference_to_policy", "policy_to_reference"])
@pytest.mark.parametrize("kind", [None, "uniform", "prior", "teacher and labels"])
def test_derivatives_of_kl(kind: str | None, direction: str, masked: bool, device: torch.device) -> None:
    logits, target, mask = draw(kind or "uniform", masked, device, (3,))

    def rows(x: Tensor) -> Tensor:
        return kl_divergence(x, target if kind else None, direction=direction, mask=mask, reduction="none")  # type: ignore[arg-type]

    logits.requires_grad_(True)
    assert torch.autograd.gradcheck(rows, logits)
    assert torch.autograd.gradgradcheck(rows, logits)


@pytest.mark.parametrize("masked", [False, True])
def test_derivatives_of_entropy(masked: bool, device: torch.device) -> None:
    logits, _, mask = draw("uniform", masked, device, (3,))
    logits.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: entropy(x, mask), logits)
    assert torch.autograd.gradgradcheck(lambda x: entropy(x, mask), logits)


@every_target
def test_the_gradient_with_a_graph_is_the_one_without(kind: str, masked: bool, device: torch.device) -> None:
    logits, target, mask = draw(kind, masked, device)
    leaf = logits.float().requires_grad_(True)
    for loss in (
        cross_entropy(leaf, target, mask=mask),
        kl_divergence(leaf, target if kind == "prior" else None, direction="policy_to_reference", mask=mask),
    ):
        (plain,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        (with_graph,) = torch.autograd.grad(loss, leaf, create_graph=True)
        torch.testing.assert_close(with_graph.detach(), plain)


@every_target
def test_a_second_backward_pass_gives_the_same_and_nothing_is_modified(
    kind: str, masked: bool, device: torch.device
) -> None:
    logits, target, mask = draw(kind, masked, device)
    before, dense = logits.clone(), target.dense(torch.float64).clone()
    logits.requires_grad_(True)
    for loss in (cross_entropy(logits, target, mask=mask), entropy(logits, mask, "mean")):
        first, second, third = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for _ in range(3))
        assert torch.equal(first, second)
        assert torch.equal(first, third)
    statistics(logits, target, mask)
    assert torch.equal(logits.detach(), before)
    assert torch.equal(target.dense(torch.float64), dense)


@every_target
def test_logits_may_have_any_strides(kind: str, masked: bool, device: torch.device) -> None:
    _, target, mask = draw(kind, masked, device)
    base = torch.randn(K, 2, 4, dtype=torch.float64, device=device)
    losses: list[Callable[[Tensor], Tensor]] = [
        lambda x: cross_entropy(x, target, mask=mask, reduction="none"),
        lambda x: entropy(x, mask),
    ]
    for view in (base.permute(2, 1, 0)[:, 0], base[0, 0, :, None].expand(4, K), base[:, 0, 0].expand(4, K)):
        assert not view.is_contiguous()
        for loss in losses:
            leaf, copy = view.detach().requires_grad_(True), view.contiguous().requires_grad_(True)
            torch.testing.assert_close(loss(leaf), loss(copy), rtol=1e-14, atol=1e-14)
            (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
            (expected,) = torch.autograd.grad(loss(copy).sum(), copy)
            torch.testing.assert_close(gradient, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (2, 1, 3), (2, 0)])
@every_target
def test_equals_the_dense_reference(kind: str, masked: bool, shape: tuple[int, ...], device: torch.device) -> None:
    logits, target, mask = draw(kind, masked, device, shape)
    rows, gradient = value_and_gradient(lambda x: cross_entropy(x, target, mask=mask, reduction="none"), logits)
    assert rows.shape == shape
    expected, expected_gradient = value_and_gradient(
        lambda x: reference.cross_entropy(x, target, mask=mask, reduction="none"), logits
    )
    torch.testing.assert_close(rows, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-13, atol=1e-13)
    single, single_gradient = value_and_gradient(
        lambda x: cross_entropy(x, target, mask=mask, reduction="none"), logits.float()
    )
    torch.testing.assert_close(single.double(), expected, rtol=3e-6, atol=3e-6)
    torch.testing.assert_close(single_gradient.double(), expected_gradient, rtol=3e-6, atol=9e-6)
    for short in (1000, 0):  # as many classes are computed: by exponentials, and by one softmax
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(closed_form, "_FEW_ELEMENTS", 1)
            patch.setattr(closed_form, "_SHORT", short)
            found = value_and_gradient(lambda x: cross_entropy(x, target, mask=mask, reduction="none"), logits)
            torch.testing.assert_close(found, (expected, expected_gradient), rtol=1e-13, atol=1e-13)
    assert entropy(logits, mask).shape == shape
    assert kl_divergence(logits, target, direction="reference_to_policy", mask=mask, reduction="none").shape == shape
    assert all(column.shape == shape for column in statistics(logits, target, mask))


@pytest.mark.parametrize("short", [1000, 0])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("kind", ["uniform", "uniform over others", "kernel"])
def test_a_gradient_made_beforehand_is_as_any_other(
    kind: str, reduction: Literal["mean", "none"], short: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closed_form, "_FEW_ELEMENTS", 1)
    monkeypatch.setattr(closed_form, "_SHORT", short)
    logits, target, mask = draw(kind, True, device, (3,))
    leaf, weight = logits.requires_grad_(True), torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64, device=device)

    def loss(x: Tensor) -> Tensor:
        return cross_entropy(x, target, mask=mask, weight=weight, reduction=reduction)

    assert torch.autograd.gradcheck(loss, leaf, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(loss, leaf)
    value = loss(leaf).sum()
    (first,) = torch.autograd.grad(value, leaf, retain_graph=True)
    kept = first.clone()
    (twice,) = torch.autograd.grad(2 * value, leaf, retain_graph=True)
    first.zero_()  # as an optimiser may, whose memory it is now
    (again,) = torch.autograd.grad(value, leaf, retain_graph=True)
    (graph,) = torch.autograd.grad(value, leaf, create_graph=True)
    assert torch.equal(again, kept)
    torch.testing.assert_close((twice, graph), (2 * kept, kept), rtol=1e-14, atol=1e-15)
    weighed = weight.clone().requires_grad_(True)  # a weight may be learned
    total = cross_entropy(leaf, target, mask=mask, weight=weighed, reduction="sum")
    rows = cross_entropy(leaf, target, mask=mask, reduction="none")
    torch.testing.assert_close(torch.autograd.grad(total, weighed)[0][[0, 2]], rows.detach()[[0, 2]])


def test_no_gradient_flows_into_what_targets_are_made_of(device: torch.device) -> None:
    given = scores(torch.arange(4, device=device)).softmax(-1).requires_grad_(True)
    labels = torch.arange(4, device=device)
    for made in (
        from_probs(given),
        teacher(given),
        boltzmann(given),
        visit_counts(given),
        completed_q(given, given, given, value=given[:, 0]),
        confidence_adaptive(labels, given[:, 0], K),
        two_hot(given[:, 0], given[0].cumsum(0)),
        hl_gauss(given[:, 0], given[0].cumsum(0)),
        uniform(labels, K, given[:, 0]),
        prior(labels, given[0]),
        sparse(labels.unsqueeze(-1), given[:, :1], K),
        mixture(parents(labels), given[:, :3] / given[:, :3].sum(-1, keepdim=True), K),
        kernel(labels[:1], given[0] * given[0, :, None]),
        one_hot(labels, K).scale(given[:, 0]),
        one_hot(labels, K).weight_classes(given[0]),
        Target.mix(one_hot(labels, K), uniform(labels, K), given[:, 0]),
    ):
        assert not made.dense().requires_grad
        assert not made.mass().requires_grad
        logits = torch.zeros(*made.batch_shape, K, device=device)
        for direction in ("reference_to_policy", "policy_to_reference"):
            assert not kl_divergence(logits, made, direction=direction).requires_grad  # type: ignore[arg-type]
        assert not cross_entropy(logits, made).requires_grad


def test_the_guard_against_host_reads_works(device: torch.device) -> None:
    x = torch.ones(2, device=device)
    for read in (
        lambda: x.sum().item(),
        lambda: bool(x.any()),
        lambda: x.nonzero(),
        lambda: x[x > 0],
        lambda: x.equal(x),
    ):
        with pytest.raises(AssertionError, match="waits"), NoWaiting():
            read()


@every_target
def test_nothing_is_read_by_the_host(kind: str, masked: bool, device: torch.device) -> None:
    logits, target, mask = draw(kind, masked, device)
    weight = torch.tensor([0.0, 1.0, 1.0, 2.0], device=device)
    leaf = logits.requires_grad_(True)
    with NoWaiting() as guard:
        loss = cross_entropy(leaf, target, mask=mask, weight=weight) + entropy(leaf, mask, "mean")
        loss = loss + kl_divergence(leaf, target, direction="reference_to_policy", mask=mask)
        loss = loss + kl_divergence(leaf, target, direction="policy_to_reference", mask=mask)
        forward = len(guard.seen)
        loss.backward()
        assert len(guard.seen) > forward
        statistics(leaf.detach(), target, mask)


def rows(logits: Tensor, target: Target, mask: Tensor | None) -> Tensor:
    return cross_entropy(logits, target, mask=mask, reduction="none")


@pytest.fixture(scope="module")
def compiled_rows() -> Iterator[Callable[[Tensor, Target, Tensor | None], Tensor]]:
    """One function for all targets: a graph for each structure, with values as its inputs."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch({RECOMPILE_LIMIT: 100}):
        yield torch.compile(rows, fullgraph=True, backend="aot_eager")
    torch._dynamo.reset()


# A graph is compiled for each structure, which takes half a second: under a mask, one of each kind of background.
OFTEN_MASKED = ("uniform", "kernel", "boltzmann", "mix of two backgrounds")


@pytest.mark.parametrize(
    ("kind", "masked"),
    [pytest.param(kind, masked, marks=() if kind in OFTEN_MASKED else pytest.mark.slow) for kind, masked in EVERY],
)
def test_compiled_equals_eager(
    kind: str, masked: bool, compiled_rows: Callable[[Tensor, Target, Tensor | None], Tensor], device: torch.device
) -> None:
    logits, target, mask = draw(kind, masked, device, (2, 3))
    value, gradient = value_and_gradient(lambda x: compiled_rows(x, target, mask), logits)
    expected, expected_gradient = value_and_gradient(lambda x: rows(x, target, mask), logits)
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-13, atol=1e-13)


# ---- torch.compile without a graph break, and peak memory


ACTIONS = 4
F64 = torch.float64

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # logits [6, K], labels [6], mask [6, K]


def target(labels: Tensor, mask: Tensor | None = None) -> Target:
    return uniform(labels, ACTIONS, 0.2, mask=mask)


def both_kl(x: Tensor, y: Tensor, m: Tensor) -> Tensor:
    return kl_divergence(x, direction="reference_to_policy", mask=m) + kl_divergence(
        x, direction="policy_to_reference", mask=m
    )


def both_kl_to_a_target(x: Tensor, y: Tensor, m: Tensor) -> Tensor:
    goal = prior(y, torch.full((ACTIONS,), 1 / ACTIONS, dtype=F64, device=x.device), 1.0, mask=m)
    first = kl_divergence(x, goal, direction="reference_to_policy", mask=m)
    return first + kl_divergence(x, target(y), direction="policy_to_reference")


LOSSES: dict[str, Loss] = {
    "weights and a mean": lambda x, y, m: cross_entropy(x, target(y, m), mask=m, weight=y.to(x.dtype)),
    "labels": lambda x, y, m: cross_entropy(x, y, reduction="sum"),
    "a recipe inside": lambda x, y, m: cross_entropy(x, Smoothing(0.1)(y, ACTIONS, m), mask=m),
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


def draw_labelled(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    labels = torch.tensor([0, 1, 2, 3, 0, 1], device=device)
    mask = (torch.rand(6, ACTIONS, device=device) < 0.5).scatter(-1, labels.unsqueeze(-1), True)
    return torch.randn(6, ACTIONS, dtype=F64, device=device), labels, mask


def assert_compiled_is_eager(loss: Loss, backend: str, tolerance: float, device: torch.device) -> None:
    logits, labels, mask = draw_labelled(device)
    made = torch.compile(loss, fullgraph=True, backend=backend)
    found, expected = (value_and_gradient(lambda x, f=f: f(x, labels, mask), logits) for f in (made, loss))  # type: ignore[misc]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_compiled_equals_eager_compiled(name: str, device: torch.device) -> None:
    assert_compiled_is_eager(LOSSES[name], "aot_eager", 1e-12, device)


def test_statistics(device: torch.device) -> None:
    logits, labels, mask = draw_labelled(device)
    compiled = torch.compile(statistics, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        tuple(compiled(logits, target(labels, mask), mask)), tuple(statistics(logits, target(labels, mask), mask))
    )


@pytest.mark.skipif(RECOMPILE_LIMIT == "cache_size_limit", reason="older versions of torch compile more often")
def test_one_graph_serves_every_batch_size(device: torch.device) -> None:
    graphs = []

    def count(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(module)
        return module.forward

    def loss(x: Tensor, q: Target) -> Tensor:
        return cross_entropy(x, q)

    compiled = torch.compile(loss, fullgraph=True, backend=count, dynamic=True)
    for rows in (5, 7, 9, 33):
        logits, labels = torch.randn(rows, ACTIONS, device=device), torch.randint(ACTIONS, (rows,), device=device)
        torch.testing.assert_close(compiled(logits, target(labels)), loss(logits, target(labels)))
    assert len(graphs) == 1


def test_half_precision(device: torch.device) -> None:
    logits, labels, mask = draw_labelled(device)
    loss = LOSSES["weights and a mean"]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    value, gradient = value_and_gradient(lambda x: compiled(x, labels, mask), logits.bfloat16())
    expected, expected_gradient = value_and_gradient(lambda x: loss(x, labels, mask), logits.bfloat16())
    assert (value.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("name", LOSSES)
def test_inductor_equals_eager(name: str, device: torch.device) -> None:
    assert_compiled_is_eager(LOSSES[name], "inductor", 1e-10, device)


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
