"""Targets as values: equality, files, collation, joining, pytrees, and the transforms of `torch.func`."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, default_collate

from rlsmooth.losses import (
    confidence_penalty,
    cross_entropy,
    entropy,
    kl_divergence,
    label_relaxation,
    margin_penalty,
)
from rlsmooth.targets import (
    GaussianTarget,
    Smoothing,
    Target,
    Tree,
    boltzmann,
    from_probs,
    gaussian,
    hierarchical,
    kernel,
    mixture,
    one_hot,
    ordinal,
    prior,
    sparse,
    teacher,
    tree,
    uniform,
)
from support import assert_raises

K, F64 = 5, torch.float64
TABLE = torch.rand(K, K, generator=torch.Generator().manual_seed(0), dtype=F64) + 0.1
PRIOR = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25], dtype=F64)
TREE = Tree.from_nested({"a": ["0", "1"], "b": ["2", "3", "4"]})
Make = Callable[[Tensor, Tensor], Target]  # labels [B], mask [B, K]


def by_intervals(labels: Tensor, mask: Tensor | None) -> Target:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "TABLE_CLASSES", 1)
        return hierarchical(labels, TREE, 0.3, 0.7, mask=mask)


KINDS: dict[str, Make] = {
    "one_hot": lambda y, m: one_hot(y, K),
    "uniform": lambda y, m: uniform(y, K, 0.3),
    "others masked": lambda y, m: uniform(y, K, 1.0, "others", mask=m),
    "prior": lambda y, m: prior(y, PRIOR, 0.3),
    "prior masked": lambda y, m: prior(y, PRIOR, 0.3, mask=m),
    "kernel": lambda y, m: kernel(y, TABLE, 0.3),
    "tree masked": lambda y, m: hierarchical(y, TREE, 0.3, mask=m),
    "tree by intervals": lambda y, m: by_intervals(y, None),
    "tree by intervals, masked": by_intervals,
    "tree by intervals, weighed": lambda y, m: by_intervals(y, m).weight_classes(PRIOR),
    "ordinal": lambda y, m: ordinal(y, K, None, "poisson"),
    "mixture": lambda y, m: mixture(torch.stack((y, (y + 1) % K), -1), None, K, 0.2),
    "sparse": lambda y, m: sparse(torch.stack((y, y), -1), torch.full((len(y), 2), 0.5), K),
    "boltzmann": lambda y, m: boltzmann(torch.randn(len(y), K), 0.7, mask=m),
    "teacher": lambda y, m: teacher(torch.randn(len(y), K), 2.0, y, 0.3),
    "probs": lambda y, m: from_probs(torch.rand(len(y), K).softmax(-1)),
    "weighed": lambda y, m: from_probs(torch.rand(len(y), K).softmax(-1)).weight_classes(PRIOR),
    "written out": lambda y, m: uniform(y, K, 0.3).written_out(find_positive=True),
}
RECIPES: dict[str, Callable[[], Smoothing]] = {
    "float": lambda: Smoothing(0.1),
    "numpy": lambda: Smoothing(np.float32(0.5)),  # type: ignore[arg-type]
    "linear": lambda: Smoothing("lin_0.1", spread="others"),
    "a row": lambda: Smoothing(torch.tensor([0.1, 0.2])),
    "prior": lambda: Smoothing(0.1, PRIOR.clone()),
    "array": lambda: Smoothing(0.1, PRIOR.numpy()),  # type: ignore[arg-type]
    "kernel": lambda: Smoothing(0.1, TABLE.clone()),
    "tree": lambda: Smoothing(None, Tree.from_nested({"a": ["0", "1"], "b": ["2"]}), decay=0.5),
    "beta": lambda: Smoothing(0.2, "beta", concentration=7.0),
}


def make(kind: str, rows: int = 4) -> Target:
    labels = torch.randint(K, (rows,))
    return KINDS[kind](labels, (torch.rand(rows, K) < 0.6).scatter(-1, labels.unsqueeze(-1), True))


def saved(value: Any) -> Any:
    """Through a file, and read as a stranger's file should be."""
    file = io.BytesIO()
    torch.save({"value": [value]}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)["value"][0]


COPIES: list[Callable[[Any], Any]] = [saved, copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))]


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_equal_where_their_fields_are(kind: str) -> None:
    target = make(kind)
    other = make(kind)
    for again in (*(one(target) for one in COPIES), target.to("cpu").__class__(*vars(target).values())):
        assert again == target
        assert hash(again) == hash(target)
        assert torch.equal(again.dense(F64), target.dense(F64))
        assert again.mass().equal(target.mass())
    assert other != target or torch.equal(other.dense(F64), target.dense(F64))
    assert target[:2] != target
    assert target.scale(0.5) != target
    assert target != target.dense()
    assert target != 1
    assert len({target, copy.deepcopy(target), target[:2]}) == 2


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_equal_where_their_settings_are(name: str) -> None:
    one, other = RECIPES[name](), RECIPES[name]()
    one(torch.zeros(2, dtype=torch.int64), 3 if name in ("tree",) else K)  # what it has cached plays no part
    assert one == other
    assert hash(one) == hash(other)
    for again in (copied(one) for copied in COPIES):
        assert again == other
        assert hash(again) == hash(other)
    assert [key for key, make in RECIPES.items() if make() == one] == (
        ["prior", "array"] if name in ("prior", "array") else [name]
    )


def test_equal_recipes_are_one_key() -> None:
    assert Smoothing(0.1) == Smoothing(0.1)
    assert len({Smoothing(0.1), Smoothing(0.1), Smoothing(0.2), Smoothing(0.1, "poisson")}) == 3

    def schedule(progress: float) -> float:
        return 0.1 * progress

    assert Smoothing(schedule) == Smoothing(schedule)
    assert Smoothing(schedule) != Smoothing(lambda progress: 0.1 * progress)


class Stranger:
    pass


def test_other_values_are_refused_as_ever() -> None:
    assert_raises(pickle.UnpicklingError, "Stranger", saved, Smoothing(0.1, TREE).to_config() | {"x": Stranger()})


@pytest.mark.parametrize("kind", KINDS)
def test_samples_collate_to_the_batch(kind: str) -> None:
    target = make(kind, 6)
    rows = [(target[row], row) for row in range(6)]
    batch, numbers = default_collate(rows)
    assert numbers.tolist() == list(range(6))
    for found in (batch, next(iter(DataLoader(rows, batch_size=6)))[0]):  # type: ignore[arg-type]
        assert found == target
        assert torch.equal(found.dense(F64), target.dense(F64))
        assert found.batch_shape == (6,)
    logits = torch.randn(6, K)
    torch.testing.assert_close(cross_entropy(logits, batch), cross_entropy(logits, target))
    two = default_collate([target[:3], target[3:]])
    assert torch.equal(two.dense(F64), target.reshape(2, 3).dense(F64))


def test_gaussian_targets_and_recipes_collate() -> None:
    target = gaussian(torch.randn(4, 2), torch.rand(4), reference_std=2.0)
    batch = default_collate([target[row] for row in range(4)])
    assert batch == target
    assert saved(target) == target
    assert_raises(ValueError, "same reference_mean", GaussianTarget.cat, [target, gaussian(torch.randn(1, 2))])
    assert_raises(ValueError, "targets is empty", GaussianTarget.cat, [])
    assert default_collate([Smoothing(0.1), Smoothing(0.1)]) == Smoothing(0.1)
    assert_raises(ValueError, "needs one Smoothing", default_collate, [Smoothing(0.1), Smoothing(0.2)])


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_cat_joins_any_two(first: str, second: str) -> None:
    one, two = make(first, 3), make(second, 2)
    joined = Target.cat([one, two, one[:1]])
    expected = torch.cat([one.dense(F64), two.dense(F64), one[:1].dense(F64)])
    torch.testing.assert_close(joined.dense(F64), expected, rtol=1e-15, atol=1e-17)
    torch.testing.assert_close(joined.mass(), torch.cat([one.mass(), two.mass(), one[:1].mass()]))
    if first == second and first not in ("boltzmann", "probs", "weighed", "written out", "teacher"):
        assert joined.reference is None or joined.reference.kind != "dense"  # it stays small
    logits = torch.randn(6, K, requires_grad=True)
    rows = cross_entropy(logits, joined, reduction="none")
    parts = [cross_entropy(logits[:3], one, reduction="none"), cross_entropy(logits[3:5], two, reduction="none")]
    torch.testing.assert_close(rows[:5], torch.cat(parts))
    mine, theirs = (
        torch.autograd.grad(rows[:5].sum(), logits)[0],
        torch.autograd.grad(sum(map(torch.sum, parts)), logits)[0],
    )
    torch.testing.assert_close(mine, theirs)


def test_cat_along_other_axes_and_its_errors() -> None:
    target = uniform(torch.randint(K, (2, 3)), K, torch.rand(2, 3), mask=torch.ones(2, 3, K, dtype=torch.bool))
    for dim in (0, 1, -1, -2):
        joined = Target.cat([target, target], dim)
        assert torch.equal(joined.dense(), torch.cat([target.dense()] * 2, dim if dim >= 0 else dim - 1))
    assert_raises(ValueError, "targets is empty", Target.cat, [])
    assert_raises(TypeError, "must hold targets, got Tensor", Target.cat, [target, target.dense()])
    assert_raises(ValueError, "of the same classes, got 5 and 2", Target.cat, [target, one_hot([0], 2)])
    assert_raises(ValueError, "do not join along dim=0", Target.cat, [target, target[:, :2]])
    assert_raises(ValueError, "do not join along dim=2", Target.cat, [target, target], 2)
    assert_raises(ValueError, "reshape", Target.cat, [target[0, 0], target[0, 0]])


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_pytrees_of_their_rows(kind: str) -> None:
    target = make(kind)
    leaves, spec = pytree.tree_flatten(target)
    assert all(isinstance(leaf, Tensor) and len(leaf) == 4 for leaf in leaves)
    assert pytree.tree_unflatten(leaves, spec) == target
    assert spec == pytree.tree_flatten(copy.deepcopy(target))[1]
    assert pytree.tree_map(lambda leaf: leaf[1:3], {"a": [target]})["a"][0] == target[1:3]
    assert pytree.tree_map(lambda leaf: None, target) is not None


def test_recipes_and_gaussian_targets_are_pytrees() -> None:
    recipe = Smoothing(torch.tensor([0.1, 0.2]), PRIOR)
    assert pytree.tree_map(lambda leaf: leaf * 2, recipe) == Smoothing(torch.tensor([0.2, 0.4]), PRIOR)
    assert pytree.tree_leaves(Smoothing(0.1)) == []
    target = gaussian(torch.randn(4, 2))
    assert pytree.tree_map(lambda leaf: leaf[2:], target) == target[2:]


LOSSES: dict[str, Callable[[Tensor, Target], Tensor]] = {
    "cross_entropy": lambda x, q: cross_entropy(x, q),
    "weighed": lambda x, q: cross_entropy(x, q, weight=torch.full(x.shape[:-1], 2.0, dtype=x.dtype)),
    "to the policy": lambda x, q: kl_divergence(x, q, direction="reference_to_policy"),
    "of the policy": lambda x, q: kl_divergence(x, uniform_of(q), direction="policy_to_reference"),
    "entropy": lambda x, q: entropy(x, None, "mean"),
    "confidence": lambda x, q: confidence_penalty(x),
    "margin": lambda x, q: margin_penalty(x, margin=0.1),
}


def uniform_of(target: Target) -> Target:
    return Target.mix(target, boltzmann(torch.zeros(*target.batch_shape, K, dtype=F64), validate=False), 0.5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
def test_func_grad_and_vmap_are_autograd_row_by_row(kind: str, loss: str) -> None:
    target, logits = make(kind), torch.randn(4, K, dtype=F64)
    function = LOSSES[loss]
    expected = []
    for row in range(4):
        leaf = logits[row].clone().requires_grad_()
        expected.append(torch.autograd.grad(function(leaf, target[row]), leaf)[0])
    found = torch.func.vmap(torch.func.grad(function))(logits, target)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=1e-14)
    leaf = logits.clone().requires_grad_()
    (whole,) = torch.autograd.grad(function(leaf, target), leaf)
    torch.testing.assert_close(torch.func.grad(function)(logits, target), whole, rtol=1e-12, atol=1e-14)
    values = torch.func.vmap(function)(logits, target)
    torch.testing.assert_close(values, torch.stack([function(logits[row], target[row]) for row in range(4)]))


def test_gradients_of_every_sample_of_a_network() -> None:
    network = torch.nn.Linear(3, K).double()
    inputs, labels = torch.randn(6, 3, dtype=F64), torch.randint(K, (6,))
    recipe = Smoothing(0.2, TABLE)

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = torch.func.functional_call(network, parameters, (x,))
        return cross_entropy(logits, recipe(y, K))  # made, and checked as far as can be, inside

    parameters = dict(network.named_parameters())
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, inputs, labels)
    for row in range(6):
        network.zero_grad()
        cross_entropy(network(inputs[row]), recipe(labels[row], K)).backward()
        torch.testing.assert_close(each["weight"][row], network.weight.grad)
    hard = torch.func.vmap(torch.func.grad(lambda x, y: cross_entropy(x, y)))(torch.zeros(6, K), labels)
    torch.testing.assert_close(hard, torch.full((6, K), 1 / K) - torch.nn.functional.one_hot(labels, K))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own, at first use
def test_hessians_and_forward_mode() -> None:
    logits, target = torch.randn(K, dtype=F64), prior(torch.tensor(1), PRIOR, 0.3)
    p = logits.softmax(-1)
    hessian = torch.func.hessian(lambda x: cross_entropy(x, target))(logits)
    torch.testing.assert_close(hessian, p.diag() - torch.outer(p, p))
    _, slope = torch.func.jvp(lambda x: cross_entropy(x, target), (logits,), (torch.ones_like(logits),))
    assert abs(slope.item()) < 1e-14
    relaxed = torch.func.grad(lambda x: label_relaxation(x, target))(logits)
    leaf = logits.clone().requires_grad_()
    torch.testing.assert_close(relaxed, torch.autograd.grad(label_relaxation(leaf, target), leaf)[0])


def test_masked_rows_inside_a_transform() -> None:
    labels = torch.tensor([0, 2, 1])
    mask = torch.tensor(
        [[True, True, False, True, True], [False, True, True, True, False], [False, True, False, False, False]]
    )

    def loss(x: Tensor, y: Tensor, m: Tensor) -> Tensor:
        return cross_entropy(x, Smoothing(0.1, TREE)(y, K, m), mask=m)

    logits = torch.randn(3, K, dtype=F64).masked_fill(~mask, -torch.inf)
    found = torch.func.vmap(torch.func.grad(loss))(logits, labels, mask)
    leaf = logits.clone().requires_grad_()
    rows = cross_entropy(leaf, Smoothing(0.1, TREE)(labels, K, mask), mask=mask, reduction="sum")
    torch.testing.assert_close(found, torch.autograd.grad(rows, leaf)[0])


def test_a_mapped_target_has_its_own_loss() -> None:
    """Not what was kept of the target that it was made of."""
    logits, labels = torch.randn(2, 3), torch.tensor([0, 2])
    target = Smoothing(0.2)(labels, 3)
    cross_entropy(logits, target)
    turned = pytree.tree_map(lambda each: each.flip(0), target)
    torch.testing.assert_close(cross_entropy(logits, turned), cross_entropy(logits, uniform(labels.flip(0), 3, 0.2)))
