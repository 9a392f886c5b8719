"""`Smoothing`, the recipe: the same targets as the builders, schedules, and what a file of it holds."""

from __future__ import annotations

import copy
import json
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rlsmooth.targets import (
    Smoothing,
    Target,
    Tree,
    as_smoothing,
    hierarchical,
    kernel,
    one_hot,
    ordinal,
    prior,
    uniform,
)

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
    with pytest.raises(ValueError, match=r"^alpha=2 must be finite and at most 1"):
        as_smoothing(2)


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
        ({"alpha": "0.1"}, ValueError, "alpha='0.1' is no schedule: write \"lin_0.1\""),
        ({"alpha": "lin"}, ValueError, "alpha='lin' is no schedule"),
        ({"alpha": "lin_"}, ValueError, "alpha='lin_' is no schedule"),
        ({"alpha": "lin_x"}, ValueError, "alpha='lin_x' is no schedule"),
        ({"alpha": "exp_0.1"}, ValueError, "alpha='exp_0.1' is no schedule"),
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
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        Smoothing(**arguments)


def test_bad_kernels() -> None:
    for table, message in (
        (torch.ones(2, 3), r"shape \(2, 3\)"),
        (torch.ones(2, 2, 2), r"shape \(2, 2, 2\)"),
        (-torch.ones(2, 2), r"\[0, 0\]=-1.0 must be finite and at least 0"),
        (torch.eye(2), r"\[0\] is 0 for every class but its own"),
    ):
        with pytest.raises(ValueError, match=message):
            Smoothing(0.1, table)


@pytest.mark.parametrize("reference", [TREE, PRIOR, SIMILARITY])
def test_a_reference_of_another_number_of_classes(reference: Any) -> None:
    with pytest.raises(ValueError, match=r"^The smoothing's reference is made for 5 classes, the labels have 4\.$"):
        Smoothing(0.1, reference)([0], 4)


def test_a_call_checks_its_values_unless_told_not_to() -> None:
    for recipe in (Smoothing(0), Smoothing(0.1), Smoothing(0.1, TREE), Smoothing(0.1, PRIOR)):
        with pytest.raises(ValueError, match=r"^labels\[1\]=5 is outside \[0, 5\)"):
            recipe([0, 5], 5)
        with pytest.raises(ValueError, match=r"^labels\[0\]=0 is illegal under its mask"):
            recipe([0], 5, torch.tensor([False, True, True, True, True]))
        recipe(torch.tensor([0, 5]), 5, validate=False)
    with pytest.raises(ValueError, match=r"^alpha\[0\]=2.0 must be finite and at most 1"):
        Smoothing(torch.tensor([2.0]))([0], 5)


@pytest.mark.parametrize("alpha", [0.1, None])
def test_a_sharp_beta_that_suits_its_classes_is_accepted(alpha: float | None) -> None:
    """ordinal([0], 50, alpha, "beta", concentration=20_000.0) is fine, so its recipe must be."""
    Smoothing(alpha, "beta", concentration=20_000.0)


@pytest.mark.parametrize("arguments", [{"edge": "none"}, {"width": -1.0}, {"power": math.nan}, {"concentration": 0.0}])
def test_unused_parameters_are_checked_too(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Smoothing(**arguments)


def test_a_tensor_alpha_is_checked_when_the_recipe_is_made() -> None:
    with pytest.raises(ValueError, match=r"alpha\[1\]=2.0 must be finite and at most 1"):
        Smoothing(torch.tensor([0.1, 2.0]))


def test_an_underscore_for_a_point_is_refused() -> None:
    with pytest.raises(ValueError, match="no schedule"):
        Smoothing("lin_0_1")


def test_a_bad_kernel_is_called_by_its_arguments_name() -> None:
    with pytest.raises(ValueError, match=r"^reference"):
        Smoothing(0.1, torch.ones(2, 3))


@pytest.mark.parametrize("change", [{"alhpa": 0.1}, None])
def test_a_config_with_missing_or_unknown_keys_is_a_clear_error(change: dict[str, Any] | None) -> None:
    config = {} if change is None else {**Smoothing(0.1).to_config(), **change}
    with pytest.raises(ValueError, match="alhpa" if change else "alpha"):
        Smoothing.from_config(config)
