"""`Smoothing`, the recipe; and what holds for every builder at any shape, mask and alpha."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlsmooth.targets import (
    Smoothing,
    Target,
    Tree,
    as_smoothing,
    boltzmann,
    from_probs,
    hierarchical,
    kernel,
    mixture,
    one_hot,
    ordinal,
    ordinal_kernel,
    prior,
    sparse,
    teacher,
    uniform,
    visit_counts,
)
from support import assert_raises, assert_refuses

TREE = Tree.from_nested({"cats": ["lion", "tiger"], "dogs": ["wolf", "fox"], "bears": ["bear"]})
PRIOR = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25], dtype=torch.float64)
SIMILARITY = torch.tensor([[abs(i - j) + 1.0 for j in range(5)] for i in range(5)], dtype=torch.float64)
ORDERED: list[Any] = ["adjacent", "triangular", "binomial", "poisson", "exponential"]

RECIPES: dict[str, tuple[Smoothing, Callable[[Tensor, Tensor | None], Target]]] = {
    "uniform": (Smoothing(0.2), lambda y, m: uniform(y, 5, 0.2, mask=m)),
    "others": (Smoothing(0.2, spread="others"), lambda y, m: uniform(y, 5, 0.2, "others", mask=m)),
    "hard": (Smoothing(0), lambda y, m: one_hot(y, 5, mask=m)),
    "prior": (Smoothing(0.2, PRIOR), lambda y, m: prior(y, PRIOR, 0.2, mask=m)),
    "kernel": (Smoothing(0.2, SIMILARITY), lambda y, m: kernel(y, SIMILARITY, 0.2, mask=m)),
    "tree": (Smoothing(0.2, TREE, decay=0.7), lambda y, m: hierarchical(y, TREE, 0.2, 0.7, mask=m)),
    "tree whole": (Smoothing(None, TREE, decay=0.7), lambda y, m: hierarchical(y, TREE, None, 0.7, mask=m)),
    "negative": (Smoothing(-0.3), lambda y, m: uniform(y, 5, -0.3, mask=m)),
    "pure": (Smoothing(1, "binomial"), lambda y, m: ordinal(y, 5, 1.0, "binomial", mask=m)),
    "half edge": (
        Smoothing(0.2, "adjacent", edge="half"),
        lambda y, m: ordinal(y, 5, 0.2, "adjacent", edge="half", mask=m),
    ),
    "width": (
        Smoothing(0.2, "triangular", width=3.5),
        lambda y, m: ordinal(y, 5, 0.2, "triangular", width=3.5, mask=m),
    ),
    "power": (
        Smoothing(0.2, "exponential", decay=0.3, power=1.0),
        lambda y, m: ordinal(y, 5, 0.2, "exponential", decay=0.3, power=1.0, mask=m),
    ),
    "beta": (
        Smoothing(None, "beta", concentration=8.0),
        lambda y, m: ordinal(y, 5, None, "beta", concentration=8.0, mask=m),
    ),
    **{name: (Smoothing(0.2, name), lambda y, m, name=name: ordinal(y, 5, 0.2, name, mask=m)) for name in ORDERED},
    **{
        f"{name} whole": (Smoothing(None, name), lambda y, m, name=name: ordinal(y, 5, None, name, mask=m))
        for name in ORDERED[1:]
    },
}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("validate", [False, True])
def test_a_recipe_makes_the_builders_target(name: str, masked: bool, validate: bool, device: torch.device) -> None:
    recipe, build = RECIPES[name]
    labels = torch.randint(5, (2, 6), device=device)
    mask = (torch.rand(2, 6, 5, device=device) < 0.6).scatter(-1, labels.unsqueeze(-1), True) if masked else None
    for _ in range(2):  # the second time from the table made at the first
        target = recipe(labels, 5, mask, validate=validate)
        expected = build(labels, mask)
        torch.testing.assert_close(target.dense(torch.float64), expected.dense(torch.float64), rtol=0, atol=1e-15)
        assert target.batch_shape == (2, 6)
        assert target.device == labels.device
    torch.testing.assert_close(target.mass(), torch.ones(2, 6, dtype=torch.float64, device=device))


@pytest.mark.parametrize("name", RECIPES)
def test_config_round_trip_through_json(name: str) -> None:
    recipe, _ = RECIPES[name]
    again = Smoothing.from_config(json.loads(json.dumps(recipe.to_config())))
    assert again.to_config() == recipe.to_config()
    labels = torch.arange(5)
    torch.testing.assert_close(again(labels, 5).dense(torch.float64), recipe(labels, 5).dense(torch.float64))


def test_config_keeps_schedules_tensors_and_single_precision() -> None:
    linear = Smoothing.from_config(json.loads(json.dumps(Smoothing("lin_0.3").to_config())))
    assert linear.alpha == "lin_0.3"
    rows = Smoothing(torch.tensor([0.1, 0.25], dtype=torch.float32), PRIOR.float(), spread="others")
    again = Smoothing.from_config(json.loads(json.dumps(rows.to_config())))
    assert isinstance(again.alpha, Tensor)
    assert again.spread == "others"
    torch.testing.assert_close(again([0, 1], 5).dense(), rows([0, 1], 5).dense())


def test_a_callable_has_no_config() -> None:
    with pytest.raises(ValueError, match=r'callable alpha can\'t be written to a file: use a number or "lin_…"'):
        Smoothing(lambda progress: 0.1).to_config()


@pytest.mark.parametrize(("progress", "alpha"), [(1.0, 0.2), (0.5, 0.1), (0.25, 0.05), (0.0, 0.0)])
def test_schedules_of_the_progress_remaining(progress: float, alpha: float) -> None:
    labels = torch.arange(3)
    for recipe in (Smoothing("lin_0.2"), Smoothing(lambda remaining: 0.2 * remaining)):
        assert recipe.alpha_at(progress) == pytest.approx(alpha)
        expected = uniform(labels, 3, alpha).dense(torch.float64)
        torch.testing.assert_close(recipe(labels, 3, progress=progress).dense(torch.float64), expected)
        assert not recipe.is_constant
    assert Smoothing("lin_-0.2").alpha_at(0.5) == pytest.approx(-0.1)
    assert Smoothing("lin_1").alpha_at(1.0) == 1.0


def test_a_schedule_that_ends_at_zero_ends_hard() -> None:
    target = Smoothing("lin_0.2")([0, 1], 3, progress=0.0)
    assert target.background_weight is None
    assert target.dense().tolist() == [[1.0, 0, 0], [0, 1.0, 0]]


@pytest.mark.parametrize("value", [1.5, math.nan, math.inf])
def test_a_schedule_that_leaves_the_range_is_an_error(value: float) -> None:
    with pytest.raises(ValueError, match=rf"^alpha={value!r} must be finite and at most 1"):
        Smoothing(lambda progress: value).alpha_at(0.5)
    with pytest.raises(TypeError, match=r"^alpha must be a number or a tensor, got str"):
        Smoothing(lambda progress: "0.1").alpha_at(0.5)  # type: ignore[arg-type, return-value]


def test_alpha_may_be_a_tensor_or_a_schedule_of_tensors(device: torch.device) -> None:
    labels = torch.arange(3, device=device)
    alpha = torch.tensor([0.0, 0.5, 1.0], device=device)
    for reference in (
        "uniform",
        "poisson",
        torch.full((3,), 1 / 3, dtype=torch.float64),
        Tree.from_nested(list("abc")),
    ):
        dense = Smoothing(alpha, reference)(labels, 3).dense(torch.float64)
        assert dense[0].tolist() == [1.0, 0.0, 0.0]
        for row, level in enumerate(alpha.tolist()):
            torch.testing.assert_close(dense[row], Smoothing(level, reference)(labels[row], 3).dense(torch.float64))
    scheduled = Smoothing(lambda progress: torch.tensor(0.1) * progress)  # type: ignore[arg-type, return-value]
    torch.testing.assert_close(scheduled(labels, 3, progress=0.5).dense(), uniform(labels, 3, 0.05).dense())


def test_off_and_constant() -> None:
    assert Smoothing(0).is_off
    assert Smoothing(0.0, "poisson").is_off
    assert Smoothing(0).is_constant
    assert not Smoothing(0.1).is_off
    assert not Smoothing(None, "poisson").is_off
    assert Smoothing(None, "poisson").is_constant
    assert not Smoothing("lin_0.1").is_off
    assert not Smoothing(torch.zeros(())).is_off  # reading it would wait for the device
    assert Smoothing(torch.zeros(())).is_constant
    assert not Smoothing(lambda progress: 0.0).is_off


@pytest.mark.parametrize("recipe", [Smoothing(0), Smoothing(0, "poisson"), Smoothing(0.0, TREE), Smoothing(0, PRIOR)])
def test_zero_is_exactly_the_hard_target(recipe: Smoothing) -> None:
    target = recipe([0, 4], 5)
    assert target.background_weight is None
    assert target.reference is None
    torch.testing.assert_close(target.dense(torch.float64), torch.eye(5, dtype=torch.float64)[[0, 4]], rtol=0, atol=0)


def test_as_smoothing() -> None:
    recipe = Smoothing(0.3)
    assert as_smoothing(recipe) is recipe
    assert as_smoothing(0.1).alpha == 0.1
    assert as_smoothing(0).is_off
    assert as_smoothing("lin_0.1").alpha_at(0.5) == pytest.approx(0.05)
    assert as_smoothing(0.1).reference == "uniform"
    for value in (True, None, [0.1], torch.tensor(0.1), lambda progress: 0.1):
        with pytest.raises(
            TypeError, match=rf'^smoothing must be a number, "lin_…" or a Smoothing, got {type(value).__name__} '
        ):
            as_smoothing(value)  # type: ignore[arg-type]
    assert_raises(ValueError, r"^smoothing=2: alpha=2 must be finite and at most 1", as_smoothing, 2)


def test_one_recipe_serves_any_number_of_classes() -> None:
    recipe = Smoothing(0.1, "binomial")
    for num_classes in (1, 2, 7, 3):
        assert recipe([0], num_classes).num_classes == num_classes


def test_copies_and_pickles() -> None:
    recipe = Smoothing(0.1, TREE)
    expected = recipe([0], 5).dense()
    for again in (copy.deepcopy(recipe), pickle.loads(pickle.dumps(recipe))):
        torch.testing.assert_close(again([0], 5).dense(), expected)


def test_frozen() -> None:
    with pytest.raises(AttributeError):
        Smoothing(0.1).alpha = 0.2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"alpha": 1.01}, ValueError, "alpha=1.01 must be finite and at most 1"),
        ({"alpha": math.nan}, ValueError, "alpha=nan must be finite and at most 1"),
        ({"alpha": -math.inf}, ValueError, "alpha=-inf must be finite and at most 1"),
        ({"alpha": True}, TypeError, "alpha must be a number or a tensor, got bool True."),
        ({"alpha": [0.1]}, TypeError, "alpha must be a number or a tensor, got list [0.1]."),
        ({"alpha": "0.1"}, ValueError, "alpha='0.1' is no schedule: give a number, \"lin_0.1\""),
        ({"alpha": "lin"}, ValueError, "alpha='lin' is no schedule"),
        ({"alpha": "lin_"}, ValueError, "alpha='lin_' is no schedule"),
        ({"alpha": "lin_x"}, ValueError, "alpha='lin_x' is no schedule"),
        ({"alpha": "exp_0.1"}, ValueError, "alpha='exp_0.1' is no schedule"),
        ({"alpha": "lin_0_1"}, ValueError, "alpha='lin_0_1' is no schedule"),
        ({"alpha": torch.tensor([0.1, 2.0])}, ValueError, "alpha[1]=2.0 must be finite and at most 1"),
        ({"alpha": "lin_2"}, ValueError, "alpha=2.0 must be finite and at most 1"),
        ({"alpha": "lin_nan"}, ValueError, "alpha=nan must be finite and at most 1"),
        ({"alpha": None}, ValueError, "alpha=None needs a reference with a whole distribution"),
        (
            {"alpha": None, "reference": "adjacent"},
            ValueError,
            "alpha=None needs a reference with a whole distribution",
        ),
        ({"alpha": None, "reference": PRIOR}, ValueError, "alpha=None needs a reference with a whole distribution"),
        (
            {"alpha": None, "reference": SIMILARITY},
            ValueError,
            "alpha=None needs a reference with a whole distribution",
        ),
        ({"reference": "normal"}, ValueError, "reference='normal' is not known: choose one of 'uniform', 'adjacent'"),
        ({"reference": [0.5, 0.5]}, TypeError, "reference must be a name, a tensor ([K] prior or [K, K] kernel) or a"),
        ({"reference": torch.tensor([0.5, 0.6])}, ValueError, "reference sums to 1.1, must sum to 1: give counts /"),
        ({"reference": torch.tensor([1.5, -0.5])}, ValueError, "reference[1]=-0.5 is no probability"),
        ({"reference": torch.ones(2, 3)}, ValueError, "reference has shape (2, 3)"),
        ({"reference": torch.ones(2, 2, 2)}, ValueError, "reference has shape (2, 2, 2)"),
        ({"reference": -torch.ones(2, 2)}, ValueError, "reference[0, 0]=-1.0 must be finite and at least 0"),
        ({"reference": torch.eye(2)}, ValueError, "reference[0] is 0 for every class but its own"),
        ({"edge": "none"}, ValueError, "edge='none' is not known"),
        ({"width": -1.0}, ValueError, "width=-1.0 must be"),
        ({"power": math.nan}, ValueError, "power=nan must be"),
        ({"concentration": 0.0}, ValueError, "concentration=0.0 must be"),
        ({"spread": "some"}, ValueError, "spread='some' is not known: choose one of 'all', 'others'."),
        ({"decay": -1.0}, ValueError, "decay=-1.0 must be a finite number in [0, inf]."),
        ({"reference": "exponential", "power": 0.0}, ValueError, "power=0.0 must be a finite number in (0, inf]."),
        ({"reference": "triangular", "width": 1.0}, ValueError, "width=1.0 must be a finite number in (1, inf]."),
        (
            {"reference": "beta", "concentration": 1.0},
            ValueError,
            "concentration=1.0 must be a finite number in [2, inf]",
        ),
        (
            {"reference": "adjacent", "edge": "none"},
            ValueError,
            "edge='none' is not known: choose one of 'all', 'half'.",
        ),
    ],
)
def test_bad_recipes(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    assert_refuses(error, message, Smoothing, **({"alpha": 0.1} | arguments))


@pytest.mark.parametrize("reference", [TREE, PRIOR, SIMILARITY])
def test_a_reference_of_another_number_of_classes(reference: Any) -> None:
    with pytest.raises(ValueError, match=r"^The smoothing's reference is made for 5 classes, the labels have 4\.$"):
        Smoothing(0.1, reference)([0], 4)


def test_a_call_checks_its_values_unless_told_not_to() -> None:
    for recipe in (Smoothing(0), Smoothing(0.1), Smoothing(0.1, TREE), Smoothing(0.1, PRIOR)):
        assert_raises(ValueError, r"^labels\[1\]=5 is outside \[0, 5\)", recipe, [0, 5], 5)
        with pytest.raises(ValueError, match=r"^labels\[0\]=0 is illegal under its mask"):
            recipe([0], 5, torch.tensor([False, True, True, True, True]))
        recipe(torch.tensor([0, 5]), 5, validate=False)


@pytest.mark.parametrize("alpha", [0.1, None])
def test_a_sharp_beta_that_suits_its_classes_is_accepted(alpha: float | None) -> None:
    """ordinal([0], 50, alpha, "beta", concentration=20_000.0) is fine, so its recipe must be."""
    Smoothing(alpha, "beta", concentration=20_000.0)


@pytest.mark.parametrize("change", [{"alhpa": 0.1}, None])
def test_a_config_with_missing_or_unknown_keys_is_a_clear_error(change: dict[str, Any] | None) -> None:
    config = {} if change is None else {**Smoothing(0.1).to_config(), **change}
    assert_raises(ValueError, "alhpa" if change else "alpha", Smoothing.from_config, config)


# ---- any shape, mask and alpha: sums, signs, illegal actions, and the formula itself


Array = np.ndarray[Any, Any]
SCHEMES: list[Any] = ["adjacent", "triangular", "binomial", "poisson", "exponential"]


@dataclass
class Case:
    """Labels `[...]`, alpha that broadcasts over them, a mask `[..., K]` or None, and numbers to make the rest from."""

    labels: Tensor
    num_classes: int
    alpha: float | Tensor
    mask: Tensor | None
    numbers: np.random.Generator

    def onehot(self) -> Array:
        return np.eye(self.num_classes)[self.labels.numpy()]

    def level(self) -> Array:
        return np.broadcast_to(np.asarray(self.alpha, dtype=float), self.labels.shape)[..., None]

    def legal(self) -> Array:
        shape = (*self.labels.shape, self.num_classes)
        return np.ones(shape) if self.mask is None else self.mask.numpy().astype(float)

    def around(self, background: Array) -> Array:
        """The formula: the background `[..., K]` cut to the legal classes and renormalised; hard where none is left."""
        cut = background * self.legal()
        total = cut.sum(-1, keepdims=True)
        level = np.where(total > 0, self.level(), 0.0)
        return (1 - level) * self.onehot() + level * cut / np.where(total > 0, total, 1.0)


@st.composite
def cases(draw: st.DrawFn, lowest: float = 0.0, most_classes: int = 9) -> Case:
    num_classes = draw(st.integers(1, most_classes))
    shape = draw(st.sampled_from([(), (1,), (4,), (2, 3), (3, 1, 2), (0,)]))
    numbers = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = torch.from_numpy(np.asarray(numbers.integers(num_classes, size=shape)))
    number = st.one_of(st.sampled_from([0.0, 1.0, 0.1]), st.floats(lowest, 1.0))
    alpha: float | Tensor = draw(number)
    if draw(st.booleans()):
        broadcast = tuple(1 if draw(st.booleans()) else size for size in shape)[draw(st.integers(0, len(shape))) :]
        values = draw(st.lists(number, min_size=int(np.prod(broadcast)), max_size=int(np.prod(broadcast))))
        alpha = torch.tensor(values, dtype=torch.float64).reshape(broadcast)
    mask = None
    if draw(st.booleans()):
        mask = torch.from_numpy(numbers.random((*shape, num_classes)) < draw(st.sampled_from([0.2, 0.6, 1.0])))
        mask = mask.scatter(-1, labels.unsqueeze(-1), True)
    return Case(labels, num_classes, alpha, mask, numbers)


def random_tree(case: Case) -> Tree:
    """`K` leaves below two levels of groups, drawn at random."""
    rows = [(f"a{case.numbers.integers(2)}", f"{case.numbers.integers(4)}") for _ in range(case.num_classes)]
    return Tree.from_table([(a, a + b, str(place)) for place, (a, b) in enumerate(rows)])


def off_label(weights: Array) -> Array:
    weights = weights.copy()
    np.fill_diagonal(weights, 0.0)
    total = weights.sum(-1, keepdims=True)
    return np.eye(len(weights)) if len(weights) == 1 else weights / total


def make_uniform(case: Case) -> tuple[Target, Array]:
    target = uniform(case.labels, case.num_classes, case.alpha, mask=case.mask)
    return target, case.around(case.legal())


def make_others(case: Case) -> tuple[Target, Array]:
    target = uniform(case.labels, case.num_classes, case.alpha, "others", mask=case.mask)
    return target, case.around(case.legal() - case.onehot())


def make_prior(case: Case) -> tuple[Target, Array]:
    weights = case.numbers.dirichlet(np.ones(case.num_classes))
    target = prior(case.labels, torch.from_numpy(weights), case.alpha, mask=case.mask)
    return target, case.around(np.broadcast_to(weights, case.legal().shape))


def make_kernel(case: Case) -> tuple[Target, Array]:
    table = case.numbers.random((case.num_classes, case.num_classes)) + 0.01
    target = kernel(case.labels, torch.from_numpy(table), case.alpha, mask=case.mask)
    return target, case.around(off_label(table)[case.labels.numpy()])


def make_tree(case: Case) -> tuple[Target, Array]:
    tree, decay = random_tree(case), float(case.numbers.uniform(0, 3))
    target = hierarchical(case.labels, tree, case.alpha, decay, mask=case.mask)
    return target, case.around(off_label(np.exp(-decay * tree.distances.numpy()))[case.labels.numpy()])


def make_ordinal(case: Case) -> tuple[Target, Array]:
    scheme = SCHEMES[case.numbers.integers(len(SCHEMES))]
    target = ordinal(case.labels, case.num_classes, case.alpha, scheme, mask=case.mask)
    table = ordinal_kernel(case.num_classes, scheme).numpy() if case.num_classes > 1 else np.ones((1, 1))
    return target, case.around(table[case.labels.numpy()])


def make_mixture(case: Case) -> tuple[Target, Array]:
    """Parents among the legal classes, the label one of them; weights may be 0 and parents may repeat."""
    legal, labels = case.legal().reshape(-1, case.num_classes), case.labels.numpy().reshape(-1)
    count = int(case.numbers.integers(1, 4))
    rows = [
        [label, *case.numbers.choice(np.flatnonzero(row), count - 1)] for label, row in zip(labels, legal, strict=True)
    ]
    parents = np.array(rows, dtype=np.int64).reshape(*case.labels.shape, count)
    weights = case.numbers.dirichlet(np.ones(count), size=case.labels.shape)
    shares = (np.eye(case.num_classes)[parents] * weights[..., None]).sum(-2)
    others = case.legal() * (np.eye(case.num_classes)[parents].sum(-2) == 0)
    number = others.sum(-1, keepdims=True)
    level = np.where(number > 0, case.level(), 0.0)
    target = mixture(torch.from_numpy(parents), torch.from_numpy(weights), case.num_classes, case.alpha, mask=case.mask)
    return target, (1 - level) * shares + level * others / np.maximum(number, 1)


def make_teacher(case: Case) -> tuple[Target, Array]:
    logits = case.numbers.normal(size=case.legal().shape) * 3
    target = teacher(torch.from_numpy(logits), 2.0, case.labels, case.alpha, mask=case.mask)
    return target, case.around(scipy.special.softmax(logits / 2, -1))


def make_recipe(case: Case) -> tuple[Target, Array]:
    target = Smoothing(case.alpha)(case.labels, case.num_classes, case.mask)
    return target, case.around(case.legal())


SMOOTHED: dict[str, Callable[[Case], tuple[Target, Array]]] = {
    "uniform": make_uniform,
    "others": make_others,
    "prior": make_prior,
    "kernel": make_kernel,
    "tree": make_tree,
    "ordinal": make_ordinal,
    "mixture": make_mixture,
    "teacher": make_teacher,
    "recipe": make_recipe,
}


def make_one_hot(case: Case) -> tuple[Target, Array]:
    return one_hot(case.labels, case.num_classes, mask=case.mask), case.onehot()


def make_boltzmann(case: Case) -> tuple[Target, Array]:
    values = case.numbers.normal(size=case.legal().shape) * 10
    target = boltzmann(torch.from_numpy(values), 3.0, mask=case.mask)
    return target, scipy.special.softmax(np.where(case.legal() > 0, values / 3, -np.inf), -1)


def make_visits(case: Case) -> tuple[Target, Array]:
    counts = (case.numbers.integers(0, 50, size=case.legal().shape) + case.onehot()) * case.legal()
    target = visit_counts(torch.from_numpy(counts), 0.5, mask=case.mask)
    return target, counts**2 / (counts**2).sum(-1, keepdims=True)


def make_probs(case: Case) -> tuple[Target, Array]:
    probs = (case.numbers.random(case.legal().shape) + case.onehot()) * case.legal()
    probs /= probs.sum(-1, keepdims=True)
    return from_probs(torch.from_numpy(probs), mask=case.mask), probs


def make_tree_whole(case: Case) -> tuple[Target, Array]:
    tree, decay = random_tree(case), float(case.numbers.uniform(0, 3))
    rows = np.exp(-decay * tree.distances.numpy())[case.labels.numpy()] * case.legal()
    target = hierarchical(case.labels, tree, None, decay, mask=case.mask)
    return target, rows / rows.sum(-1, keepdims=True)


def make_ordinal_whole(case: Case) -> tuple[Target, Array]:
    scheme = SCHEMES[case.numbers.integers(1, len(SCHEMES))]
    rows = ordinal_kernel(case.num_classes, scheme, include_label=True).numpy()[case.labels.numpy()] * case.legal()
    target = ordinal(case.labels, case.num_classes, None, scheme, mask=case.mask)
    return target, rows / rows.sum(-1, keepdims=True)


WHOLE: dict[str, Callable[[Case], tuple[Target, Array]]] = {
    "one_hot": make_one_hot,
    "boltzmann": make_boltzmann,
    "visit_counts": make_visits,
    "from_probs": make_probs,
    "tree whole": make_tree_whole,
    "ordinal whole": make_ordinal_whole,
}


def assert_formula(case: Case, target: Target, expected: Array) -> Array:
    dense = target.dense(torch.float64)
    assert target.num_classes == case.num_classes
    assert target.batch_shape == case.labels.shape
    assert dense.shape == (*case.labels.shape, case.num_classes)
    np.testing.assert_allclose(dense, expected, rtol=0, atol=1e-12 * (1 + abs(case.level()).max(initial=0)))
    np.testing.assert_allclose(dense.sum(-1), 1.0, rtol=0, atol=1e-12)
    np.testing.assert_allclose(target.mass(), dense.sum(-1), rtol=0, atol=1e-12)
    if case.mask is not None:
        assert (dense[~case.mask] == 0).all()
    return dense.numpy()


@pytest.mark.parametrize("name", [*SMOOTHED, *WHOLE])
@given(case=cases())
def test_distributions(name: str, case: Case) -> None:
    """0 <= alpha <= 1: sums to 1, non-negative, nothing illegal, and what the formula says."""
    target, expected = (SMOOTHED | WHOLE)[name](case)
    dense = assert_formula(case, target, expected)
    assert (dense >= -1e-15).all()  # to rounding; exact zeros are test_labelled's
    assert (dense <= 1 + 1e-14).all()
    if (dense >= 0).all():
        np.testing.assert_allclose(target.entropy(), scipy.special.entr(dense).sum(-1), atol=1e-12)
        assert (target.entropy() <= np.log(case.num_classes) + 1e-12).all()


@pytest.mark.parametrize("name", SMOOTHED)
@given(case=cases(lowest=-5.0))
def test_negative_smoothing(name: str, case: Case) -> None:
    """alpha < 0 takes from the background what it gives to the label: still the formula, still a sum of 1."""
    target, expected = SMOOTHED[name](case)
    assert_formula(case, target, expected)


@given(case=cases(lowest=-1.0))
def test_others_is_all_at_a_rescaled_alpha(case: Case) -> None:
    """`spread="others"` at a is `spread="all"` at a·n/(n-1), n the row's number of legal classes."""
    number = torch.as_tensor(case.legal().sum(-1))
    alpha = (
        torch.as_tensor(case.alpha, dtype=torch.float64) * (number - 1).clamp_min(0) / number
    )  # so that both stay <= 1
    others = uniform(case.labels, case.num_classes, alpha, "others", mask=case.mask).dense(torch.float64)
    rescaled = alpha * number / (number - 1).clamp_min(1)
    everything = uniform(case.labels, case.num_classes, rescaled, mask=case.mask).dense(torch.float64)
    torch.testing.assert_close(others, everything, rtol=0, atol=1e-14)


@given(case=cases())
def test_alpha_one_is_the_background_and_alpha_zero_the_label(case: Case) -> None:
    for build in SMOOTHED.values():
        if build is make_mixture:  # several labels
            continue
        case.alpha = 0.0
        np.testing.assert_array_equal(build(case)[0].dense(torch.float64), case.onehot())
        case.alpha = 1.0
        target, expected = build(case)
        np.testing.assert_allclose(target.dense(torch.float64), expected, atol=1e-13)


@given(case=cases(), lam=st.floats(0, 1))
def test_smoothing_and_mixing_commute(case: Case, lam: float) -> None:
    """Mixup of two smoothed targets is the smoothed mixup: linear in the target, whatever the reference."""
    other = torch.from_numpy(np.asarray(case.numbers.permutation(case.labels.numpy().reshape(-1)))).reshape(
        case.labels.shape
    )
    one = uniform(case.labels, case.num_classes, case.alpha)
    two = uniform(other, case.num_classes, case.alpha)
    mixed = lam * case.onehot() + (1 - lam) * np.eye(case.num_classes)[other.numpy()]
    expected = (1 - case.level()) * mixed + case.level() / case.num_classes
    np.testing.assert_allclose(Target.mix(one, two, lam).dense(torch.float64), expected, atol=1e-14)


@given(size=st.integers(1, 6), atoms=st.lists(st.tuples(st.integers(0, 5), st.floats(-1e6, 1e6)), max_size=8))
def test_sparse_is_a_sum_over_its_atoms(size: int, atoms: list[tuple[int, float]]) -> None:
    expected = np.zeros(size)
    for index, weight in atoms:
        expected[index % size] += weight
    indices = torch.tensor([index % size for index, _ in atoms], dtype=torch.int64)
    weights = torch.tensor([weight for _, weight in atoms], dtype=torch.float64)
    target = sparse(indices, weights, size)
    np.testing.assert_allclose(target.dense(torch.float64), expected, atol=1e-9)
    np.testing.assert_allclose(target.mass(), sum(weight for _, weight in atoms), atol=1e-9)


@given(
    num_classes=st.integers(2, 40),
    scheme=st.sampled_from(SCHEMES[1:]),
    decay=st.floats(0.01, 5),
    power=st.floats(0.2, 3),
    width=st.floats(1.01, 50),
)
def test_ordered_schemes_fall_away_from_the_label(
    num_classes: int, scheme: Any, decay: float, power: float, width: float
) -> None:
    """One mode, at the label, and no rise on either side of it."""
    table = ordinal_kernel(num_classes, scheme, include_label=True, decay=decay, power=power, width=width)
    assert (table.argmax(-1) == torch.arange(num_classes)).all()
    for label, row in enumerate(table):
        assert (row[label:].diff() <= 0).all()
        assert (row[: label + 1].diff() >= 0).all()
    off = ordinal_kernel(num_classes, scheme, decay=decay, power=power, width=width)
    np.testing.assert_allclose(off.sum(-1), 1.0, atol=1e-13)
    if scheme != "poisson":
        torch.testing.assert_close(table, table.flip(0, 1), rtol=1e-10, atol=1e-15)


MASK = torch.tensor([[True, True, False], [True, True, True]])
ALIKE: dict[str, tuple[Smoothing, Callable[[Tensor, Tensor | None], Target]]] = {
    "hard": (Smoothing(0.0), lambda labels, mask: one_hot(labels, 3, mask=mask)),
    "uniform": (Smoothing(0.2), lambda labels, mask: uniform(labels, 3, 0.2, mask=mask)),
    "others": (Smoothing(0.2, spread="others"), lambda labels, mask: uniform(labels, 3, 0.2, "others", mask=mask)),
    "ordinal": (Smoothing(0.2, "exponential"), lambda labels, mask: ordinal(labels, 3, 0.2, mask=mask)),
}


@pytest.mark.parametrize("name", ALIKE)
@pytest.mark.parametrize("mask", [None, MASK])
def test_later_targets_are_the_builders_too(name: str, mask: Tensor | None) -> None:
    """The first of a shape leaves a pattern behind; what is checked, checked it is each time."""
    smoothing, build = ALIKE[name]
    for numbers in ([0, 1], [1, 0], [1, 2]):
        labels = torch.tensor(numbers)
        made = smoothing(labels, 3, mask)
        assert made == build(labels, mask)
        torch.testing.assert_close(made.dense(), build(labels, mask).dense(), rtol=0, atol=0)
    assert_raises(ValueError, r"labels\[1\]=3 is outside", smoothing, torch.tensor([0, 3]), 3, mask)
    if mask is not None:
        assert_raises(ValueError, r"labels\[0\]=2 is illegal", smoothing, torch.tensor([2, 0]), 3, mask)
        assert_raises(
            ValueError, r"mask\[0\] allows no class", smoothing, torch.tensor([1, 0]), 3, mask & MASK[:1] & False
        )
    if name != "ordinal":  # a table of 3 classes is found by 3.0 too
        assert_raises(TypeError, "num_classes must be a whole number", smoothing, torch.tensor([0, 1]), 3.0, mask)


def test_what_is_written_into_one_target_stays_out_of_the_next() -> None:
    smoothing, labels = Smoothing(0.2), torch.tensor([0, 1])
    for _ in range(2):
        smoothing(labels, 3).atom_weights[0] = 5.0  # a view of one number, which all rows share
        assert smoothing(labels, 3) == uniform(labels, 3, 0.2)
    with pytest.raises(RuntimeError, match="single memory location"):
        smoothing(labels, 3).atom_weights.mul_(2.0)
