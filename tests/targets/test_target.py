"""The methods of `Target`, each on every kind of background, against the same operation on the dense tensor."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from rlsmooth.targets import (
    Reference,
    Target,
    boltzmann,
    from_probs,
    kernel,
    mixture,
    one_hot,
    ordinal,
    prior,
    sparse,
    teacher,
    uniform,
    visit_counts,
)

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


INDICES: list[Any] = [
    0,
    -1,
    slice(None),
    slice(1, None),
    slice(0, 0),
    slice(None, None, 2),
    torch.tensor([1, 0, 1]),
    torch.tensor([], dtype=torch.int64),
    torch.tensor([[1, 0], [0, 0]]),
    torch.tensor(1),
    torch.tensor([True, False]),
    torch.tensor([[True, False, True], [False, False, True]]),
    (1,),
    (0, 2),
    (slice(None), 1),
    (slice(None), torch.tensor([2, 0])),
    (torch.tensor([0, 1]), torch.tensor([2, 0])),
    (..., 0),
    (..., slice(1)),
    ...,
    (),
    None,
    [1, 0],
    np.int64(1),
    np.array([1, 1]),
]


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
    for shape in ((6,), (3, 2), (1, 6, 1)):
        assert_same(target.reshape(*shape), full.reshape(*shape, K))
    assert_same(target[0, 0].reshape(1, 1), full[0, 0].reshape(1, 1, K))


def test_reshape_to_a_single_target() -> None:
    target = make("uniform", (1, 1))
    assert_same(target.reshape(), dense(target)[0, 0])


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("no atom", "boltzmann", "visits", "probs")])
def test_reshape_finds_a_size_by_itself(name: str) -> None:
    target = make(name, (2, 3)) if name != "boltzmann masked" else make("kernel", (2, 3))
    assert_same(target.reshape(-1), dense(target).reshape(-1, K))
    assert_same(target.reshape(3, -1), dense(target).reshape(3, -1, K))


@pytest.mark.parametrize("name", ["boltzmann", "probs"])
def test_reshape_finds_a_size_where_there_is_no_atom(name: str) -> None:
    target = make(name, (2, 3))
    assert_same(target.reshape(-1), dense(target).reshape(-1, K))


def test_reshape_without_rows() -> None:
    target = make("uniform", (2, 0))
    assert_same(target.reshape(-1), dense(target).reshape(-1, K))


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
    for module in ("target", "reference", "arguments"):
        monkeypatch.setattr(f"rlsmooth.targets.{module}.weight_dtype", lambda device: torch.float32)
    moved = target.to("cpu")
    assert moved.atom_weights.dtype == torch.float32
    assert moved.background_weight is None or moved.background_weight.dtype == torch.float32
    torch.testing.assert_close(moved.dense(), target.dense())


def test_no_reference_is_float64_on_a_device_that_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlsmooth.targets.target.weight_dtype", lambda device: torch.float32)
    monkeypatch.setattr("rlsmooth.targets.reference.weight_dtype", lambda device: torch.float32)
    for name in ("prior", "kernel masked", "uniform masked", "boltzmann", "probs", "visits"):
        reference = make(name).to("cpu").reference
        tensors = [value for value in vars(reference).values() if isinstance(value, Tensor)]
        assert not any(tensor.dtype == torch.float64 for tensor in tensors), name


def test_targets_are_immutable_and_compare_by_identity() -> None:
    target = uniform([0], 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        target.num_classes = 4  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        target.reference.kind = "dense"  # type: ignore[misc, union-attr]
    before = dense(target)
    target.scale(3.0), target.weight_classes(torch.zeros(3)), Target.mix(target, target, 0.3), target[0]
    torch.testing.assert_close(dense(target), before, rtol=0, atol=0)
    assert target == target
    assert target != uniform([0], 3)
    assert len({target, target}) == 1


def test_a_target_must_hold_together() -> None:
    ones, indices = torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.int64)
    with pytest.raises(
        ValueError, match=r"^atom_indices \(2, 1\) and atom_weights \(2,\) must have one shape \[..., A\]"
    ):
        Target(3, indices, torch.ones(2))
    with pytest.raises(ValueError, match=r"^atom_indices \(\) and atom_weights \(\) must have one shape"):
        Target(3, torch.tensor(0), torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"^background_weight and reference go together"):
        Target(3, indices, ones, torch.ones(2))
    with pytest.raises(ValueError, match=r"^background_weight and reference go together"):
        Target(3, indices, ones, None, Reference(3))
    with pytest.raises(ValueError, match=r"^A plain uniform reference has no block"):
        Reference(3).block(torch.float32)


@pytest.mark.parametrize("weights", [torch.ones(4), torch.ones(1), torch.ones(()), torch.ones(2, 3)])
def test_weight_classes_wants_one_weight_a_class(weights: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^weights has shape \(.*\), needs \(3,\): one a class"):
        one_hot([0, 1], 3).weight_classes(weights)


@pytest.mark.parametrize("operation", ["scale", "mix"])
def test_weights_that_do_not_broadcast_are_named(operation: str) -> None:
    target, wrong = one_hot([0, 1], 3), torch.ones(3)
    with pytest.raises(ValueError, match=r"\(3,\) does not broadcast over the batch \(2,\)"):
        target.scale(wrong) if operation == "scale" else Target.mix(target, target, wrong)


def test_gradients_never_flow_into_a_target(device: torch.device) -> None:
    target = make("kernel", (2, 3), device)
    weights = torch.ones(2, 3, device=device, requires_grad=True)
    classes = torch.ones(K, device=device, requires_grad=True)
    for changed in (target.scale(weights), target.weight_classes(classes), Target.mix(target, target, weights)):
        assert not changed.dense().requires_grad
        assert not changed.mass().requires_grad
