"""Targets in compiled functions, and hot paths that never wait for the device nor keep a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

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

K = 4
TREE = Tree.from_nested({"a": ["x", "y"], "b": ["z", "w"]})
PRIOR = torch.tensor([0.1, 0.2, 0.3, 0.4])
SIMILARITY = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).repeat(4, 1)
SCHEMES: list[Any] = ["adjacent", "triangular", "binomial", "poisson", "beta", "exponential"]

Build = Callable[[Tensor, Tensor, Tensor, Tensor], Target]
# Of labels y [B], alpha a [B], mask m [B, K] and values x [B, K].
BUILDERS: dict[str, Build] = {
    "one_hot": lambda y, a, m, x: one_hot(y, K, mask=m, validate=False),
    "uniform": lambda y, a, m, x: uniform(y, K, a, validate=False),
    "uniform masked": lambda y, a, m, x: uniform(y, K, a, mask=m, validate=False),
    "others": lambda y, a, m, x: uniform(y, K, 0.1, "others", mask=m, validate=False),
    "prior": lambda y, a, m, x: prior(y, PRIOR.to(y.device), a, mask=m, validate=False),
    "hierarchical": lambda y, a, m, x: hierarchical(y, TREE, a, mask=m, validate=False),
    "boltzmann tree": lambda y, a, m, x: hierarchical(y, TREE, None, validate=False),
    "mixture": lambda y, a, m, x: mixture(torch.stack((y, y), -1), None, K, a, mask=m, validate=False),
    "sparse": lambda y, a, m, x: sparse(y.unsqueeze(-1), a.unsqueeze(-1), K, validate=False),
    "visit_counts": lambda y, a, m, x: visit_counts(x.exp(), 0.5, mask=m, validate=False),
    "visit_counts 0": lambda y, a, m, x: visit_counts(x.exp(), 0.0, validate=False),
    "boltzmann": lambda y, a, m, x: boltzmann(x, 2.0, mask=m, validate=False),
    "teacher": lambda y, a, m, x: teacher(x, 2.0, y, a, mask=m, validate=False),
    "completed_q": lambda y, a, m, x: completed_q(x, x + 1, (x > 0) * m * 1.0, value=a, mask=m, validate=False),
    "confidence": lambda y, a, m, x: confidence_adaptive(y, a, K, max_alpha=0.5, mask=m, validate=False),
    "two_hot": lambda y, a, m, x: two_hot(a, torch.arange(K, device=y.device), validate=False),
    "hl_gauss": lambda y, a, m, x: hl_gauss(a, torch.arange(K, device=y.device), validate=False),
    "from_probs": lambda y, a, m, x: from_probs(x.softmax(-1), mask=m, validate=False),
}
RECIPES: dict[str, Smoothing] = {
    "hard": Smoothing(0.0),
    "uniform": Smoothing(0.1),
    "others": Smoothing(0.1, spread="others"),
    "linear": Smoothing("lin_0.1"),
    "schedule": Smoothing(lambda progress: 0.1 * progress),
    "alpha a row": Smoothing(torch.tensor([0.1, 0.2, 0.3])),
    "prior": Smoothing(0.1, PRIOR),
    "kernel": Smoothing(0.1, SIMILARITY),
    "tree": Smoothing(0.1, TREE),
    "tree whole": Smoothing(None, TREE),
    "adjacent": Smoothing(0.1, "adjacent"),
    "poisson": Smoothing(None, "poisson"),
    "exponential": Smoothing("lin_0.1", "exponential"),
}


def inputs(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    labels = torch.tensor([0, 2, 1], device=device)
    mask = (torch.rand(3, K, device=device) < 0.6).scatter(-1, labels.unsqueeze(-1), True)
    return labels, torch.rand(3, device=device), mask, torch.randn(3, K, device=device)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, backend="aot_eager")


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class NoWaiting(TorchDispatchMode):
    """Raises where an operation would make the host wait for the device, as the same program on a GPU would."""

    waiting = ("_local_scalar_dense", "nonzero", "aten::equal", "is_nonzero", "masked_select", "unique")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in func.name() for name in self.waiting):
            pytest.fail(f"{func.name()} waits for the device", pytrace=True)
        return func(*args, **(kwargs or {}))


def test_the_detector_detects() -> None:
    for wait in (lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: bool(x.any()), lambda x: torch.equal(x, x)):
        with pytest.raises(pytest.fail.Exception), NoWaiting():
            wait(torch.ones(3))


def read(target: Target) -> tuple[Tensor, Tensor, Tensor]:
    return target.dense(torch.float64), target.mass(), target.entropy()


@pytest.mark.parametrize("name", BUILDERS)
def test_builders_compile(name: str, device: torch.device) -> None:
    build = BUILDERS[name]
    given = inputs(device)
    made = compiled(lambda *args: build(*args).dense(torch.float64))(*given)
    torch.testing.assert_close(made, build(*given).dense(torch.float64))


@pytest.mark.parametrize("name", BUILDERS)
def test_unchecked_builders_never_wait(name: str, device: torch.device) -> None:
    given = inputs(device)
    with NoWaiting():
        target = BUILDERS[name](*given)
        read(target)
        target.scale(given[1]).weight_classes(PRIOR.to(device)).reshape(3, 1)
        target[1:], target[given[0]], Target.mix(target, target, given[1])


def test_checks_are_skipped_while_compiling() -> None:
    """Values can't be read then, so that a builder called with its defaults compiles too."""
    labels = torch.tensor([0, 2, 1])
    made = compiled(lambda y: uniform(y, K, torch.full((3,), 0.3)).dense())(labels)
    torch.testing.assert_close(made, uniform(labels, K, 0.3).dense())


@pytest.mark.parametrize("name", ["hard", "linear", "alpha a row", "prior", "kernel", "tree whole", "exponential"])
def test_prepared_recipes_compile(name: str, device: torch.device) -> None:
    recipe = RECIPES[name]
    labels, _, mask, _ = inputs(device)
    expected = recipe(labels, K, mask, progress=0.5, validate=False).dense(torch.float64)
    made = compiled(lambda y, m: recipe(y, K, m, progress=0.5, validate=False).dense(torch.float64))(labels, mask)
    torch.testing.assert_close(made, expected)


@pytest.mark.parametrize("name", RECIPES)
def test_prepared_recipes_never_wait(name: str, device: torch.device) -> None:
    recipe = RECIPES[name]
    labels, _, mask, _ = inputs(device)
    recipe(labels, K)
    with NoWaiting():
        recipe(labels, K, mask, progress=0.5, validate=False)
        recipe(labels, K, progress=0.25, validate=False)


@pytest.mark.parametrize("name", ["one_hot", "others", "prior", "hierarchical", "boltzmann"])
def test_targets_pass_into_compiled_functions(name: str, device: torch.device) -> None:
    given = inputs(device)
    target = BUILDERS[name](*given)

    def use(target: Target, logits: Tensor) -> Any:
        weights = torch.arange(4.0, device=logits.device)
        changed = target.scale(2.0).weight_classes(weights).reshape(1, 3).to(logits.device)
        parts = target[1:].dense(), target[..., :2].dense(), target[torch.tensor([2, 0], device=logits.device)].dense()
        mixed = Target.mix(target, target.scale(logits[:, 0]), 0.3).dense()
        return target.mass(), target.entropy(), changed.dense(), *parts, mixed

    torch.testing.assert_close(compiled(use)(target, given[3]), use(target, given[3]))


def test_one_compiled_function_takes_targets_of_one_kind(device: torch.device) -> None:
    """A new batch of the same shape must not compile anew: that would be once a training step."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    function = torch.compile(lambda target: target.dense(), fullgraph=True, backend=counter)
    recipe = Smoothing("lin_0.2", "poisson")
    for step in range(4):
        labels = torch.randint(K, (3,), device=device)
        target = recipe(labels, K, progress=1 - step / 5)
        torch.testing.assert_close(function(target), target.dense())
    assert counter.frame_count == 1


def test_gaussian_targets_compile_and_never_wait(device: torch.device) -> None:
    actions, alpha = torch.randn(3, 2, device=device), torch.rand(3, device=device)

    def use(actions: Tensor, alpha: Tensor) -> Any:
        target = gaussian(actions, alpha, reference_std=2.0, validate=False)
        return target.mass(), target.atom_weight, target[1:].actions

    torch.testing.assert_close(compiled(use)(actions, alpha), use(actions, alpha))
    with NoWaiting():
        use(actions, alpha)
    target = gaussian(actions, alpha)
    torch.testing.assert_close(compiled(lambda target: target[1:].actions)(target), actions[1:])


def test_labels_under_a_gradient_leave_no_graph(device: torch.device) -> None:
    """Whatever carries a gradient, a target does not: dense, mass, weights and reference."""
    labels, alpha, mask, values = inputs(device)
    alpha.requires_grad_()
    values.requires_grad_()
    for name, build in BUILDERS.items():
        target = build(labels, alpha, mask, values)
        tensors = [*vars(target).values(), *(vars(target.reference).values() if target.reference else ())]
        assert not any(isinstance(value, Tensor) and value.requires_grad for value in tensors), name
        assert not target.dense().requires_grad
    learned = [tensor.clone().requires_grad_() for tensor in (PRIOR, SIMILARITY)]
    weights = torch.full((3, 2), 0.5, requires_grad=True)
    for target in (
        prior([0], learned[0]),
        kernel([0], learned[1]),
        mixture(torch.zeros(3, 2, dtype=torch.int64), weights, K),
        Smoothing(alpha.cpu(), learned[0])([0, 1, 2], K),
        Smoothing(0.1, learned[1])([0], K),
    ):
        assert not target.dense().requires_grad


@pytest.mark.parametrize("scheme", ["adjacent", "beta", "exponential"])
def test_ordinal_compiles(scheme: Any) -> None:
    labels = torch.tensor([0, 2, 1])
    expected = ordinal(labels, K, 0.2, scheme).dense()
    torch.testing.assert_close(compiled(lambda y: ordinal(y, K, 0.2, scheme, validate=False).dense())(labels), expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_ordinal_never_waits_once_its_table_is_made(scheme: Any, device: torch.device) -> None:
    labels, alpha, mask, _ = inputs(device)
    ordinal(labels, K, alpha, scheme)
    with NoWaiting():
        ordinal(labels, K, alpha, scheme, mask=mask, validate=False)


@pytest.mark.parametrize("reference", ["poisson", "kernel"])
def test_recipes_compile_at_their_first_call(reference: str) -> None:
    labels = torch.tensor([0, 2, 1])
    recipe = Smoothing(0.1, SIMILARITY if reference == "kernel" else reference)
    made = compiled(lambda y: recipe(y, K, validate=False).dense())(labels)
    torch.testing.assert_close(made, recipe(labels, K).dense())


def test_kernel_compiles() -> None:
    labels = torch.tensor([0, 2, 1])
    made = compiled(lambda y: kernel(y, SIMILARITY, 0.2, validate=False).dense())(labels)
    torch.testing.assert_close(made, kernel(labels, SIMILARITY, 0.2).dense())


def test_a_schedules_progress_may_change_between_compiled_calls() -> None:
    labels = torch.tensor([0, 2, 1])
    recipe = Smoothing("lin_0.2")
    function = compiled(lambda y, progress: recipe(y, K, progress=progress, validate=False).dense())
    for progress in (1.0, 0.5, 0.25):
        torch.testing.assert_close(function(labels, progress), recipe(labels, K, progress=progress).dense())


def test_a_schedule_of_tensors_never_waits() -> None:
    recipe = Smoothing(lambda progress: torch.tensor(0.1) * progress)  # type: ignore[arg-type, return-value]
    with NoWaiting():
        recipe(torch.tensor([0]), K, validate=False)


@pytest.mark.parametrize("use", ["index", "rows"])
def test_single_rows_never_wait(use: str) -> None:
    target = prior(torch.zeros(2, 3, dtype=torch.int64), PRIOR)
    single = ordinal(torch.tensor(1), K)
    with NoWaiting():
        target[0, 1] if use == "index" else single.dense()


@pytest.mark.parametrize("how", ["ordinal", "Smoothing"])
def test_a_table_made_in_inference_mode_serves_training(how: str) -> None:
    recipe = Smoothing(0.1, "poisson", power=3.0)
    make = (lambda: ordinal([0], 9, 0.1, "poisson", power=3.0)) if how == "ordinal" else (lambda: recipe([0], 9))
    with torch.inference_mode():
        make()
    reference = make().reference
    assert reference.values is not None
    logits = torch.zeros(9, requires_grad=True)
    (logits * reference.values).sum().backward()  # saves the table for the backward pass
    assert logits.grad is not None


def test_a_default_device_does_not_move_the_tables() -> None:
    labels = torch.tensor([1])
    with torch.device("meta"):
        dense = ordinal(labels, 11, 0.1, "poisson").dense()
    assert dense.device == labels.device


def test_a_default_device_does_not_break_a_tree() -> None:
    labels = torch.tensor([1])
    with torch.device("meta"):
        tree = Tree.from_nested({"a": ["x", "y"], "b": ["z", "w"]})
        for known in (TREE, tree):
            assert hierarchical(labels, known).dense().device == labels.device
            assert hierarchical(labels, known, None).dense().device == labels.device
