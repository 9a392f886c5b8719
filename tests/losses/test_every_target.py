"""Every kind of target through the losses: derivatives, shapes, strides, compilers, and nothing read by the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlsmooth.losses import cross_entropy, entropy, kl_divergence, reference, statistics
from rlsmooth.targets import (
    Smoothing,
    Target,
    Tree,
    boltzmann,
    completed_q,
    confidence_adaptive,
    from_probs,
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


def gradient_of(loss: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits.detach().clone().requires_grad_(True)
    value = loss(leaf)
    upstream = torch.linspace(0.5, 2, max(value.numel(), 1), device=value.device)[: value.numel()]
    (gradient,) = torch.autograd.grad(value, leaf, upstream.to(value.dtype).reshape(value.shape))
    return value.detach(), gradient


@every_target
def test_equals_the_dense_reference(kind: str, masked: bool, device: torch.device) -> None:
    logits, target, mask = draw(kind, masked, device, (3, 5))
    expected, expected_gradient = gradient_of(
        lambda x: reference.cross_entropy(x, target, mask=mask, reduction="none"), logits
    )
    value, gradient = gradient_of(lambda x: cross_entropy(x, target, mask=mask, reduction="none"), logits)
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-13, atol=1e-13)
    value, gradient = gradient_of(lambda x: cross_entropy(x, target, mask=mask, reduction="none"), logits.float())
    torch.testing.assert_close(value.double(), expected, rtol=3e-6, atol=3e-6)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=3e-6, atol=3e-6)


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
def test_any_batch_shape(kind: str, masked: bool, shape: tuple[int, ...], device: torch.device) -> None:
    logits, target, mask = draw(kind, masked, device, shape)
    rows, gradient = gradient_of(lambda x: cross_entropy(x, target, mask=mask, reduction="none"), logits)
    assert rows.shape == shape
    expected, expected_gradient = gradient_of(
        lambda x: reference.cross_entropy(x, target, mask=mask, reduction="none"), logits
    )
    torch.testing.assert_close(rows, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-13, atol=1e-13)
    assert entropy(logits, mask).shape == shape
    assert kl_divergence(logits, target, direction="reference_to_policy", mask=mask, reduction="none").shape == shape
    assert all(column.shape == shape for column in statistics(logits, target, mask))


@every_target
def test_no_gradient_flows_into_targets(kind: str, masked: bool, device: torch.device) -> None:
    logits, target, mask = draw(kind, masked, device)
    assert not cross_entropy(logits, target, mask=mask).requires_grad


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
        logits = torch.zeros(*made.batch_shape, K, device=device)
        for direction in ("reference_to_policy", "policy_to_reference"):
            assert not kl_divergence(logits, made, direction=direction).requires_grad  # type: ignore[arg-type]
        assert not cross_entropy(logits, made).requires_grad


class NoHostReads(TorchDispatchMode):
    """Raise where an operation's result, or its size, must come back to the host."""

    forbidden = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "item", "masked_select", "unique", "_unique2")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func._schema.name.removeprefix("aten::")
        self.seen.append(name)
        if name in self.forbidden:
            raise AssertionError(f"{name} waits for the device")
        if name in ("index", "index_put", "index_put_") and any(
            place is not None and place.dtype in (torch.bool, torch.uint8) for place in args[1]
        ):
            raise AssertionError("indexing by a bool tensor waits for the device")
        return func(*args, **(kwargs or {}))


def test_the_guard_against_host_reads_works(device: torch.device) -> None:
    x = torch.ones(2, device=device)
    for read in (
        lambda: x.sum().item(),
        lambda: bool(x.any()),
        lambda: x.nonzero(),
        lambda: x[x > 0],
        lambda: x.equal(x),
    ):
        with pytest.raises(AssertionError, match="waits"), NoHostReads():
            read()


@every_target
def test_nothing_is_read_by_the_host(kind: str, masked: bool, device: torch.device) -> None:
    logits, target, mask = draw(kind, masked, device)
    weight = torch.tensor([0.0, 1.0, 1.0, 2.0], device=device)
    leaf = logits.requires_grad_(True)
    with NoHostReads() as guard:
        loss = cross_entropy(leaf, target, mask=mask, weight=weight) + entropy(leaf, mask, "mean")
        loss = loss + kl_divergence(leaf, target, direction="reference_to_policy", mask=mask)
        loss = loss + kl_divergence(leaf, target, direction="policy_to_reference", mask=mask)
        forward = len(guard.seen)
        loss.backward()
        assert len(guard.seen) > forward
        statistics(leaf.detach(), target, mask)


def test_recipes_without_validation_read_nothing(device: torch.device) -> None:
    labels = torch.arange(4, device=device)
    mask = torch.ones(4, K, dtype=torch.bool, device=device)
    recipes = (Smoothing(0.1), Smoothing(0.1, spread="others"), Smoothing(0.1, PRIOR), Smoothing(0.1, TABLE))
    for recipe in recipes:
        recipe(labels, K, mask)  # makes the table, once
        with NoHostReads():
            target = recipe(labels, K, mask, validate=False)
            cross_entropy(torch.randn(4, K, device=device), target, mask=mask)


def rows(logits: Tensor, target: Target, mask: Tensor | None) -> Tensor:
    return cross_entropy(logits, target, mask=mask, reduction="none")


@pytest.fixture(scope="module")
def compiled_rows() -> Iterator[Callable[[Tensor, Target, Tensor | None], Tensor]]:
    """One function for all targets: a graph for each structure, with values as its inputs."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=100):
        yield torch.compile(rows, fullgraph=True, backend="aot_eager")
    torch._dynamo.reset()


# A graph is compiled for each structure, which takes half a second: under a mask, one of each kind of background.
OFTEN_MASKED = ("uniform", "kernel", "boltzmann", "mix of two backgrounds")


@pytest.mark.parametrize(
    ("kind", "masked"),
    [
        pytest.param(kind, masked, marks=pytest.mark.slow if masked and kind not in OFTEN_MASKED else ())
        for kind, masked in EVERY
    ],
)
def test_compiled_equals_eager(
    kind: str, masked: bool, compiled_rows: Callable[[Tensor, Target, Tensor | None], Tensor], device: torch.device
) -> None:
    logits, target, mask = draw(kind, masked, device, (2, 3))
    value, gradient = gradient_of(lambda x: compiled_rows(x, target, mask), logits)
    expected, expected_gradient = gradient_of(lambda x: rows(x, target, mask), logits)
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-13, atol=1e-13)
