"""The methods of `Target` on every background, targets in compiled functions, and hot paths that never wait."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from rlsmooth.targets import (
    Reference,
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
    tree,
    two_hot,
    uniform,
    visit_counts,
)
from support import RECOMPILE_LIMIT, NoWaiting, assert_raises

K = 5
PRIOR = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25], dtype=torch.float64)
SIMILARITY = torch.rand(K, K, generator=torch.Generator().manual_seed(0)) + 0.1

KINDS: dict[str, Callable[[Tensor, Tensor], Target]] = {
    "one_hot": lambda y, m: one_hot(y, K),
    "uniform": lambda y, m: uniform(y, K, 0.3),
    "uniform masked": lambda y, m: uniform(y, K, 0.3, "others", mask=m),
    "alpha a row": lambda y, m: uniform(y, K, torch.rand(y.shape, device=y.device)),
    "prior": lambda y, m: prior(y, PRIOR, 0.3),
    "prior masked": lambda y, m: prior(y, PRIOR, 0.3, mask=m),
    "kernel": lambda y, m: kernel(y, SIMILARITY, 0.3),
    "kernel masked": lambda y, m: kernel(y, SIMILARITY, 0.3, mask=m),
    "ordinal": lambda y, m: ordinal(y, K, None, "poisson"),
    "mixture": lambda y, m: mixture(torch.stack((y, (y + 1) % K), -1), None, K, 0.2),
    "sparse": lambda y, m: sparse(torch.stack((y, y), -1), torch.rand(*y.shape, 2, device=y.device), K),
    "no atom": lambda y, m: sparse(
        torch.zeros(*y.shape, 0, dtype=torch.int64, device=y.device), torch.zeros(*y.shape, 0, device=y.device), K
    ),
    "boltzmann": lambda y, m: boltzmann(torch.randn(*y.shape, K, device=y.device)),
    "boltzmann masked": lambda y, m: boltzmann(torch.randn(*y.shape, K, device=y.device), mask=m),
    "teacher": lambda y, m: teacher(torch.randn(*y.shape, K, device=y.device), 2.0, y, 0.3, mask=m),
    "visits": lambda y, m: visit_counts(torch.rand(*y.shape, K, device=y.device)),
    "probs": lambda y, m: from_probs(torch.rand(*y.shape, K, device=y.device).softmax(-1)),
}


def make(name: str, shape: tuple[int, ...] = (2, 3), device: torch.device | None = None) -> Target:
    labels = torch.randint(K, shape, device=device)
    mask = (torch.rand(*shape, K, device=device) < 0.6).scatter(-1, labels.unsqueeze(-1), True)
    target = KINDS[name](labels, mask)
    assert target.batch_shape == shape
    return target


def dense(target: Target) -> Tensor:
    return target.dense(torch.float64)


def assert_same(target: Target, expected: Tensor) -> None:
    assert target.batch_shape == expected.shape[:-1]
    torch.testing.assert_close(dense(target), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(target.mass(), expected.sum(-1), rtol=0, atol=1e-14)
    if (expected >= 0).all():
        entropy = torch.special.entr(expected).sum(-1)
        torch.testing.assert_close(target.entropy(), entropy, rtol=0, atol=1e-13)


PLACES = torch.tensor([[True, False, True], [False, False, True]])
INDICES: list[Any] = [0, -1, slice(None), slice(1, None), slice(0, 0), slice(None, None, 2), ..., (), None, [1, 0]]
INDICES += [torch.tensor(index) for index in ([1, 0, 1], [[1, 0], [0, 0]], 1, [True, False])]
INDICES += [torch.tensor([], dtype=torch.int64), PLACES, np.int64(1), np.array([1, 1])]
INDICES += [(1,), (0, 2), (slice(None), 1), (slice(None), torch.tensor([2, 0])), (..., 0), (..., slice(1))]
INDICES += [(torch.tensor([0, 1]), torch.tensor([2, 0]))]


@pytest.mark.parametrize("name", KINDS)
def test_indexing_is_that_of_a_tensor_of_the_batch_shape(name: str, device: torch.device) -> None:
    target = make(name, (2, 3), device)
    full = dense(target)
    for index in INDICES:
        if isinstance(index, Tensor):
            index = index.to(device)
        positions = torch.arange(6, device=device).reshape(2, 3)[index]
        selected = target[index]
        assert_same(selected, full.reshape(6, K)[positions.flatten()].reshape(*positions.shape, K))
        assert selected.num_classes == K


@pytest.mark.parametrize("name", KINDS)
def test_indexing_one_batch_axis_and_none(name: str) -> None:
    target = make(name, (4,))
    full = dense(target)
    for index in (2, slice(1, 3), torch.tensor([3, 3, 0]), torch.tensor([True, False, False, True]), ..., (2,)):
        assert_same(target[index], full[index])
    assert [row.batch_shape for row in target] == [()] * 4
    single = target[0]
    assert_same(single[...], full[0])
    assert_same(single[()], full[0])
    for index in (0, slice(None), torch.tensor([0])):
        with pytest.raises(IndexError, match="no batch axis"):
            single[index]
    for index in (4, (0, 0)):
        with pytest.raises(IndexError):
            target[index]


@pytest.mark.parametrize("name", KINDS)
def test_reshape(name: str) -> None:
    target = make(name, (2, 3))
    full = dense(target)
    for shape in ((6,), (3, 2), (1, 6, 1), (-1,), (3, -1)):
        assert_same(target.reshape(*shape), full.reshape(*shape, K))
    single = target[0, 0].reshape(1, 1)
    assert_same(single, full[0, 0].reshape(1, 1, K))
    assert_same(single.reshape(), full[0, 0])
    assert_same(target[:, :0].reshape(-1), full[:, :0].reshape(0, K))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("weights_shape", [None, (), (3,), (2, 1), (2, 3)])
def test_scale(name: str, weights_shape: tuple[int, ...] | None, device: torch.device) -> None:
    target = make(name, (2, 3), device)
    weights = 2.5 if weights_shape is None else torch.rand(weights_shape, device=device)
    factor = weights.double().expand(2, 3).unsqueeze(-1) if isinstance(weights, Tensor) else weights
    assert_same(target.scale(weights), dense(target) * factor)
    assert_same(target.scale(0.0), torch.zeros_like(dense(target)))
    assert_same(target.scale(-1.0), -dense(target))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weight_classes(name: str, dtype: torch.dtype, device: torch.device) -> None:
    target = make(name, (2, 3), device)
    weights = torch.tensor([0.0, 1.0, 2.0, 0.5, 3.0], dtype=dtype, device=device)
    weighted = target.weight_classes(weights)
    expected = dense(target) * weights.double()
    assert_same(weighted, expected)
    assert_same(weighted[1], expected[1])
    assert_same(weighted[:, torch.tensor([2, 0], device=device)], expected[:, [2, 0]])
    assert_same(weighted.weight_classes(weights).scale(2.0), expected * weights.double() * 2)
    assert_same(weighted.to(device), expected)


def test_weight_classes_is_torchs_weight() -> None:
    logits, labels, weights = torch.randn(6, K, dtype=torch.float64), torch.randint(K, (6,)), torch.rand(K).double()
    target = uniform(labels, K, 0.2).weight_classes(weights)
    ours = -(dense(target) * logits.log_softmax(-1)).sum() / weights[labels].sum()
    theirs = torch.nn.functional.cross_entropy(logits, labels, weights, label_smoothing=0.2)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize(
    "second", ["one_hot", "uniform", "uniform masked", "prior", "kernel masked", "boltzmann", "sparse"]
)
def test_mix(first: str, second: str, device: torch.device) -> None:
    one, two = make(first, (2, 3), device), make(second, (2, 3), device)
    for lam in (0.3, 0.0, 1.0, torch.rand(3, device=device), torch.rand(2, 1, device=device)):
        share = lam.double().expand(2, 3).unsqueeze(-1) if isinstance(lam, Tensor) else lam
        expected = share * dense(one) + (1 - share) * dense(two)
        mixed = Target.mix(one, two, lam)
        assert_same(mixed, expected)
        assert_same(mixed[0], expected[0])
        assert_same(mixed.reshape(3, 2), expected.reshape(3, 2, K))
        assert_same(Target.mix(mixed, one, 0.25), 0.25 * expected + 0.75 * dense(one))


def test_mix_keeps_equal_backgrounds_small() -> None:
    one, two = uniform([0, 1], K, 0.1), uniform([2, 3], K, 0.3)
    mixed = Target.mix(one, two, 0.5)
    assert mixed.reference.is_plain_uniform
    torch.testing.assert_close(mixed.background_weight, torch.full((2,), 0.2, dtype=torch.float64))
    assert Target.mix(one, one, 0.5).reference is one.reference
    masked = uniform([0, 1], K, 0.1, mask=torch.ones(K, dtype=torch.bool))
    mixed = Target.mix(masked, masked.scale(2.0), 0.5)
    assert mixed.reference is masked.reference
    assert mixed.mass().tolist() == [1.5, 1.5]
    assert Target.mix(one_hot([0], K), one_hot([1], K), 0.5).background_weight is None


def test_mix_names_what_differs() -> None:
    with pytest.raises(
        ValueError, match=r"^mix needs targets alike: first has 5 classes and batch \(1,\), second 4 and \(1,\)"
    ):
        Target.mix(one_hot([0], 5), one_hot([0], 4), 0.5)
    with pytest.raises(ValueError, match=r"batch \(1,\), second 5 and \(2,\)"):
        Target.mix(one_hot([0], 5), one_hot([0, 1], 5), 0.5)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_written_out(name: str, dtype: torch.dtype, device: torch.device) -> None:
    target = make(name, (2, 3), device)
    full = target.dense(dtype).double()
    written = target.written_out(dtype)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    weights = torch.tensor([0.0, 1.0, 2.0, 0.5, 3.0], dtype=torch.float64, device=device)
    assert written.atom_indices.shape == (2, 3, 0)
    for changed, expected in (
        (written, full),
        (written[0], full[0]),
        (written[:, 1], full[:, 1]),
        (written.reshape(3, 2), full.reshape(3, 2, K)),
        (written.scale(2.0), full * 2),
        (written.weight_classes(weights), full * weights),
        (Target.mix(written, target, 0.25), full),
        (Target.mix(target, written, 0.25), full),
    ):
        torch.testing.assert_close(dense(changed), expected, rtol=0, atol=tolerance)
        torch.testing.assert_close(changed.mass().double(), expected.sum(-1), rtol=0, atol=5 * tolerance)
        if (expected >= 0).all():
            entropy = torch.special.entr(expected).sum(-1)
            torch.testing.assert_close(changed.entropy().double(), entropy, rtol=0, atol=20 * tolerance)


@pytest.mark.parametrize("name", KINDS)
def test_mass_and_entropy(name: str, device: torch.device) -> None:
    target = make(name, (2, 3), device)
    assert_same(target, dense(target))
    if name not in ("sparse", "no atom"):
        theirs = scipy.stats.entropy(dense(target).cpu().numpy(), axis=-1)
        np.testing.assert_allclose(target.entropy().cpu().numpy(), theirs, atol=1e-7)  # from_probs: float32 sums
    assert target.mass().dtype == target.entropy().dtype == torch.float64
    empty = make(name, (0,), device)
    assert empty.dense().shape == (0, K)
    assert empty.mass().shape == empty.entropy().shape == (0,)


def test_entropy_in_closed_form() -> None:
    assert one_hot(0, 3).entropy().item() == 0
    assert uniform(0, 8, 1.0).entropy().item() == pytest.approx(math.log(8), rel=1e-14)
    assert boltzmann(torch.zeros(8)).entropy().item() == pytest.approx(math.log(8), rel=1e-14)
    assert uniform([0], 3, -0.1).entropy().isnan().all()  # documented: negative weights have no entropy
    bare = Target(4, torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0), torch.tensor([1.0, 0.5]), Reference(4))
    np.testing.assert_allclose(bare.entropy(), [math.log(4), 0.5 * math.log(8)], rtol=1e-6)
    mask = torch.tensor([[True, True, False, False], [True, False, False, False]])
    bare = dataclasses.replace(bare, reference=Reference(4, mask=mask, scale=torch.tensor([0.5, 1.0])))
    np.testing.assert_allclose(bare.entropy(), [math.log(2), 0.5 * math.log(2)], rtol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_to_copies_and_pickles(name: str, device: torch.device) -> None:
    target = make(name)
    for again in (target.to(device), target.to(str(device)), copy.deepcopy(target), pickle.loads(pickle.dumps(target))):
        assert_same(again.to("cpu"), dense(target))
    assert target.to(device).device.type == device.type


@pytest.mark.parametrize("name", KINDS)
def test_nothing_is_float64_on_a_device_that_lacks_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Apple's mps, where a single float64 tensor is an error. Here the CPU plays that device."""
    target = make(name)
    monkeypatch.setattr("rlsmooth.targets.target.weight_dtype", lambda device: torch.float32)
    moved = target.to("cpu")
    assert moved.atom_weights.dtype == torch.float32
    assert moved.background_weight is None or moved.background_weight.dtype == torch.float32
    torch.testing.assert_close(moved.dense(), target.dense())
    given = vars(moved.reference).values() if moved.reference else ()
    assert not any(isinstance(value, Tensor) and value.dtype == torch.float64 for value in given)


def test_targets_are_immutable_and_compare_by_value() -> None:
    target = uniform([0], 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        target.num_classes = 4  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        target.reference.kind = "dense"  # type: ignore[misc, union-attr]
    before = dense(target)
    target.scale(3.0), target.weight_classes(torch.zeros(3)), Target.mix(target, target, 0.3), target[0]
    torch.testing.assert_close(dense(target), before, rtol=0, atol=0)
    assert target == target
    assert target == uniform([0], 3)
    assert target != uniform([1], 3)
    assert len({target, uniform([0], 3)}) == 1


def test_a_target_must_hold_together() -> None:
    ones, indices = torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.int64)
    with pytest.raises(
        ValueError, match=r"^atom_indices \(2, 1\) and atom_weights \(2,\) must have one shape \[..., A\]"
    ):
        Target(3, indices, torch.ones(2))
    with pytest.raises(ValueError, match=r"^atom_indices \(\) and atom_weights \(\) must have one shape"):
        Target(3, torch.tensor(0), torch.tensor(1.0))
    assert_raises(ValueError, r"^background_weight and reference go together", Target, 3, indices, ones, torch.ones(2))
    with pytest.raises(ValueError, match=r"^background_weight and reference go together"):
        Target(3, indices, ones, None, Reference(3))
    assert_raises(ValueError, r"^A plain uniform reference has no block", Reference(3).block, torch.float32)


@pytest.mark.parametrize("weights", [torch.ones(4), torch.ones(1), torch.ones(()), torch.ones(2, 3)])
def test_weight_classes_wants_one_weight_a_class(weights: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^weights has shape \(.*\), needs \(3,\): one a class"):
        one_hot([0, 1], 3).weight_classes(weights)


@pytest.mark.parametrize("operation", ["scale", "mix"])
def test_weights_that_do_not_broadcast_are_named(operation: str) -> None:
    target, wrong = one_hot([0, 1], 3), torch.ones(3)
    with pytest.raises(ValueError, match=r"\(3,\) does not broadcast over the batch \(2,\)"):
        target.scale(wrong) if operation == "scale" else Target.mix(target, target, wrong)


# ---- compiled functions, and hot paths that never wait for the device nor keep a graph


CLASSES = 4
TREE = Tree.from_nested({"a": ["x", "y"], "b": ["z", "w"]})
SHARES = torch.tensor([0.1, 0.2, 0.3, 0.4])
ALIKE = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).repeat(4, 1)
SCHEMES: list[Any] = ["adjacent", "triangular", "binomial", "poisson", "beta", "exponential"]

Build = Callable[[Tensor, Tensor, Tensor, Tensor], Target]
# Of labels y [B], alpha a [B], mask m [B, K] and values x [B, K].
BUILDERS: dict[str, Build] = {
    "one_hot": lambda y, a, m, x: one_hot(y, CLASSES, mask=m, validate=False),
    "uniform": lambda y, a, m, x: uniform(y, CLASSES, a, validate=False),
    "uniform masked": lambda y, a, m, x: uniform(y, CLASSES, a, mask=m, validate=False),
    "others": lambda y, a, m, x: uniform(y, CLASSES, 0.1, "others", mask=m, validate=False),
    "prior": lambda y, a, m, x: prior(y, SHARES.to(y.device), a, mask=m, validate=False),
    "hierarchical": lambda y, a, m, x: hierarchical(y, TREE, a, mask=m, validate=False),
    "boltzmann tree": lambda y, a, m, x: hierarchical(y, TREE, None, validate=False),
    "mixture": lambda y, a, m, x: mixture(torch.stack((y, y), -1), None, CLASSES, a, mask=m, validate=False),
    "sparse": lambda y, a, m, x: sparse(y.unsqueeze(-1), a.unsqueeze(-1), CLASSES, validate=False),
    "visit_counts": lambda y, a, m, x: visit_counts(x.exp(), 0.5, mask=m, validate=False),
    "visit_counts 0": lambda y, a, m, x: visit_counts(x.exp(), 0.0, validate=False),
    "boltzmann": lambda y, a, m, x: boltzmann(x, 2.0, mask=m, validate=False),
    "teacher": lambda y, a, m, x: teacher(x, 2.0, y, a, mask=m, validate=False),
    "completed_q": lambda y, a, m, x: completed_q(x, x + 1, (x > 0) * m * 1.0, value=a, mask=m, validate=False),
    "confidence": lambda y, a, m, x: confidence_adaptive(y, a, CLASSES, max_alpha=0.5, mask=m, validate=False),
    "two_hot": lambda y, a, m, x: two_hot(a, torch.arange(CLASSES, device=y.device), validate=False),
    "hl_gauss": lambda y, a, m, x: hl_gauss(a, torch.arange(CLASSES, device=y.device), validate=False),
    "from_probs": lambda y, a, m, x: from_probs(x.softmax(-1), mask=m, validate=False),
}
RECIPES: dict[str, Smoothing] = {
    "hard": Smoothing(0.0),
    "uniform": Smoothing(0.1),
    "others": Smoothing(0.1, spread="others"),
    "linear": Smoothing("lin_0.1"),
    "schedule": Smoothing(lambda progress: 0.1 * progress),
    "alpha a row": Smoothing(torch.tensor([0.1, 0.2, 0.3])),
    "prior": Smoothing(0.1, SHARES),
    "kernel": Smoothing(0.1, ALIKE),
    "tree": Smoothing(0.1, TREE),
    "tree whole": Smoothing(None, TREE),
    "adjacent": Smoothing(0.1, "adjacent"),
    "poisson": Smoothing(None, "poisson"),
    "exponential": Smoothing("lin_0.1", "exponential"),
}


def inputs(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    labels = torch.tensor([0, 2, 1], device=device)
    mask = (torch.rand(3, CLASSES, device=device) < 0.6).scatter(-1, labels.unsqueeze(-1), True)
    return labels, torch.rand(3, device=device), mask, torch.randn(3, CLASSES, device=device)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, backend="aot_eager")


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def read(target: Target) -> tuple[Tensor, Tensor, Tensor]:
    return target.dense(torch.float64), target.mass(), target.entropy()


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_builders_compile(name: str, device: torch.device) -> None:
    build = BUILDERS[name]
    given = inputs(device)
    made = compiled(lambda *args: build(*args).dense(torch.float64))(*given)
    torch.testing.assert_close(made, build(*given).dense(torch.float64))


@pytest.mark.skipif(RECOMPILE_LIMIT == "cache_size_limit", reason="torch can't compile dataclasses.replace yet")
@pytest.mark.parametrize("name", ["hierarchical", pytest.param("boltzmann tree", marks=pytest.mark.slow)])
def test_intervals_compile_and_never_wait(name: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "TABLE_CLASSES", 1)
    test_builders_compile(name, device)
    test_unchecked_builders_never_wait(name, device)


@pytest.mark.parametrize("name", BUILDERS)
def test_unchecked_builders_never_wait(name: str, device: torch.device) -> None:
    given = inputs(device)
    with NoWaiting():
        target = BUILDERS[name](*given)
        read(target)
        target.scale(given[1]).weight_classes(SHARES.to(device)).reshape(3, 1)
        target[1:], target[given[0]], Target.mix(target, target, given[1])


def test_checks_are_skipped_while_compiling() -> None:
    """Values can't be read then, so that a builder called with its defaults compiles too."""
    labels = torch.tensor([0, 2, 1])
    made = compiled(lambda y: uniform(y, CLASSES, torch.full((3,), 0.3)).dense())(labels)
    torch.testing.assert_close(made, uniform(labels, CLASSES, 0.3).dense())


@pytest.mark.skipif(RECOMPILE_LIMIT == "cache_size_limit", reason="torch can't compile dataclasses.replace yet")
@pytest.mark.parametrize("name", ["hard", "linear", "alpha a row", "prior", "kernel", "tree whole", "exponential"])
def test_prepared_recipes_compile(name: str, device: torch.device) -> None:
    recipe = RECIPES[name]
    labels, _, mask, _ = inputs(device)
    expected = recipe(labels, CLASSES, mask, progress=0.5, validate=False).dense(torch.float64)
    made = compiled(lambda y, m: recipe(y, CLASSES, m, progress=0.5, validate=False).dense(torch.float64))(labels, mask)
    torch.testing.assert_close(made, expected)


@pytest.mark.parametrize("name", RECIPES)
def test_prepared_recipes_never_wait(name: str, device: torch.device) -> None:
    recipe = RECIPES[name]
    labels, _, mask, _ = inputs(device)
    recipe(labels, CLASSES)
    with NoWaiting():
        recipe(labels, CLASSES, mask, progress=0.5, validate=False)
        recipe(labels, CLASSES, progress=0.25, validate=False)


@pytest.mark.slow
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


@pytest.mark.skipif(RECOMPILE_LIMIT == "cache_size_limit", reason="older versions of torch compile more often")
def test_one_compiled_function_takes_targets_of_one_kind(device: torch.device) -> None:
    """A new batch of the same shape must not compile anew: that would be once a training step."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    function = torch.compile(lambda target: target.dense(), fullgraph=True, backend=counter)
    recipe = Smoothing("lin_0.2", "poisson")
    for step in range(4):
        labels = torch.randint(CLASSES, (3,), device=device)
        target = recipe(labels, CLASSES, progress=1 - step / 5)
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
    learned = [tensor.clone().requires_grad_() for tensor in (SHARES, ALIKE)]
    weights = torch.full((3, 2), 0.5, requires_grad=True)
    for target in (
        prior([0], learned[0]),
        kernel([0], learned[1]),
        mixture(torch.zeros(3, 2, dtype=torch.int64), weights, CLASSES),
        Smoothing(alpha.cpu(), learned[0])([0, 1, 2], CLASSES),
        Smoothing(0.1, learned[1])([0], CLASSES),
    ):
        assert not target.dense().requires_grad


@pytest.mark.parametrize("scheme", SCHEMES)
def test_ordinal_never_waits_once_its_table_is_made(scheme: Any, device: torch.device) -> None:
    labels, alpha, mask, _ = inputs(device)
    ordinal(labels, CLASSES, alpha, scheme, mask=mask)
    with NoWaiting():
        ordinal(labels, CLASSES, alpha, scheme, mask=mask, validate=False)


FIRST_CALLS: dict[str, Callable[[Tensor], Target]] = {
    "kernel": lambda y: kernel(y, ALIKE, 0.2, validate=False),
    "recipe of a kernel": lambda y: Smoothing(0.1, ALIKE)(y, CLASSES, validate=False),
    "recipe of poisson": lambda y: Smoothing(0.1, "poisson")(y, CLASSES, validate=False),
    "adjacent": lambda y: ordinal(y, CLASSES, 0.2, "adjacent", validate=False),
    "beta": lambda y: ordinal(y, CLASSES, 0.2, "beta", validate=False),
    "exponential": lambda y: ordinal(y, CLASSES, 0.2, "exponential", validate=False),
}


@pytest.mark.parametrize("name", FIRST_CALLS)
def test_builders_of_tables_compile_at_their_first_call(name: str) -> None:
    labels, build = torch.tensor([0, 2, 1]), FIRST_CALLS[name]
    torch.testing.assert_close(compiled(lambda y: build(y).dense())(labels), build(labels).dense())


def test_a_schedules_progress_may_change_between_compiled_calls() -> None:
    labels = torch.tensor([0, 2, 1])
    recipe = Smoothing("lin_0.2")
    function = compiled(lambda y, progress: recipe(y, CLASSES, progress=progress, validate=False).dense())
    for progress in (1.0, 0.5, 0.25):
        torch.testing.assert_close(function(labels, progress), recipe(labels, CLASSES, progress=progress).dense())


def test_a_schedule_of_tensors_never_waits() -> None:
    recipe = Smoothing(lambda progress: torch.tensor(0.1) * progress)  # type: ignore[arg-type, return-value]
    with NoWaiting():
        recipe(torch.tensor([0]), CLASSES, validate=False)


@pytest.mark.parametrize("use", ["index", "rows"])
def test_single_rows_never_wait(use: str) -> None:
    target = prior(torch.zeros(2, 3, dtype=torch.int64), SHARES)
    single = ordinal(torch.tensor(1), CLASSES)
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


def test_a_default_device_moves_no_table_and_breaks_no_tree() -> None:
    labels = torch.tensor([1])
    with torch.device("meta"):
        assert ordinal(labels, 11, 0.1, "poisson").dense().device == labels.device
        tree = Tree.from_nested({"a": ["x", "y"], "b": ["z", "w"]})
        for known in (TREE, tree):
            assert hierarchical(labels, known).dense().device == labels.device
            assert hierarchical(labels, known, None).dense().device == labels.device
