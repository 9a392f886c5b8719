"""Spaces as JSON: equal to the last bit after a round trip, and nothing but spaces can come out."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from rlsmooth.data import space_from_json, space_to_json

FLOATS = np.array([0.1, 1 / 3, -np.inf, 1e-45, 3.4028235e38], np.float32)

SPACES: list[spaces.Space[Any]] = [
    spaces.Box(-np.inf, np.inf, (3,)),
    spaces.Box(-np.abs(FLOATS), np.abs(FLOATS)),
    spaces.Box(np.array([-0.1, 2]), np.array([1 / 3, np.inf]), dtype=np.float64),
    spaces.Box(np.float16(-0.1), np.float16(0.1), (2, 2), np.float16),
    spaces.Box(0, 255, (84, 84, 3), np.uint8),
    spaces.Box(-(2**63), 2**63 - 1, (1,), np.int64),
    spaces.Box(0, 1, (), np.float32),
    spaces.Box(0, 1, (0,), np.float32),
    spaces.Discrete(4),
    spaces.Discrete(4, start=-2),
    spaces.MultiDiscrete([3, 2]),
    spaces.MultiDiscrete([[3, 2], [1, 4]], start=[[0, 5], [-1, 2]], dtype=np.int32),
    spaces.MultiBinary(5),
    spaces.MultiBinary([2, 3]),
    spaces.Dict({"z": spaces.Discrete(2), "a": spaces.Box(0, 1, (2,))}),
    spaces.Dict([("z", spaces.Discrete(2)), ("a", spaces.Dict({"deep": spaces.MultiBinary(1)}))]),
    spaces.Tuple([spaces.Discrete(2), spaces.Box(-1, 1, (1,))]),
]


def assert_same(one: spaces.Space[Any], two: spaces.Space[Any]) -> None:
    """Stricter than ==, which compares bounds with a tolerance and forgets dtypes and orders."""
    assert type(one) is type(two)
    assert one == two
    assert one.dtype == two.dtype
    if isinstance(one, spaces.Box):
        assert isinstance(two, spaces.Box)
        assert np.array_equal(one.low, two.low)
        assert np.array_equal(one.high, two.high)
        assert np.array_equal(one.bounded_above, two.bounded_above)
    if isinstance(one, spaces.Dict):
        assert isinstance(two, spaces.Dict)
        assert list(one) == list(two)
        for key in one:
            assert_same(one[key], two[key])
    if isinstance(one, spaces.Tuple):
        assert isinstance(two, spaces.Tuple)
        for part, other in zip(one.spaces, two.spaces, strict=True):
            assert_same(part, other)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_round_trip_through_strict_json_is_exact(space: spaces.Space[Any]) -> None:
    text = json.dumps(space_to_json(space), allow_nan=False)
    assert_same(space_from_json(json.loads(text)), space)


@given(
    bounds=st.lists(
        st.tuples(st.floats(width=32, allow_nan=False), st.floats(width=32, allow_nan=False)), min_size=1, max_size=4
    )
)
def test_any_float_bounds_survive(bounds: list[tuple[float, float]]) -> None:
    low = np.array([min(pair) for pair in bounds], np.float32)
    high = np.array([max(pair) for pair in bounds], np.float32)
    if (low == np.inf).any() or (high == -np.inf).any():
        return  # no such Box
    assert_same(space_from_json(json.loads(json.dumps(space_to_json(spaces.Box(low, high))))), spaces.Box(low, high))


def test_an_image_space_is_short() -> None:
    assert len(json.dumps(space_to_json(spaces.Box(0, 255, (84, 84, 3), np.uint8)))) < 120


@pytest.mark.parametrize(
    "space", [spaces.Text(4), spaces.Sequence(spaces.Discrete(2)), spaces.Dict({"a": spaces.Text(1)})]
)
def test_other_kinds_are_refused(space: spaces.Space[Any]) -> None:
    with pytest.raises(TypeError, match="can't be written as JSON"):
        space_to_json(space)


def test_keys_must_be_strings() -> None:
    with pytest.raises(TypeError, match="has the key 1"):
        space_to_json(spaces.Dict([(1, spaces.Discrete(2))]))  # type: ignore[list-item]


def nested(depth: int) -> dict[str, Any]:
    return {"type": "Tuple", "spaces": [nested(depth - 1)]} if depth else {"type": "Discrete", "n": 1}


BOX = {"type": "Box", "shape": [2], "dtype": "float32", "low": 0, "high": 1}
DISCRETE = {"type": "Discrete", "n": 3, "start": 0, "dtype": "int64"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "must be a JSON object"),
        ({}, "must be a JSON object"),
        ({"type": "os.system"}, "'os.system' is not known"),
        ({"type": ["Box"]}, "is not known"),
        ({"type": "Discrete"}, "not well formed"),
        (DISCRETE | {"n": 0}, "not well formed"),
        (DISCRETE | {"n": "3"}, "whole number is needed"),
        (DISCRETE | {"n": True}, "whole number is needed"),
        (BOX | {"dtype": "O"}, "dtype 'O' is not one of"),
        (BOX | {"dtype": None}, "is not one of"),
        (BOX | {"low": [0]}, "has 1 bounds, but needs 2"),
        (BOX | {"low": "minus infinity"}, "a bound must be a number"),
        (BOX | {"low": 2}, "not well formed"),
        (BOX | {"shape": [10**9, 10**9]}, "has more than"),
        (BOX | {"shape": [-1]}, "is negative"),
        (BOX | {"shape": 3}, "not well formed"),
        ({"type": "MultiBinary", "shape": [10**12], "flat": True}, "has more than"),
        ({"type": "MultiDiscrete", "nvec": [1.5], "start": [0], "dtype": "int64"}, "whole numbers are needed"),
        ({"type": "MultiDiscrete", "nvec": [0], "start": [0], "dtype": "int64"}, "not well formed"),
        ({"type": "Dict", "spaces": [[1, DISCRETE]]}, "must be a string"),
        ({"type": "Dict", "spaces": {"a": DISCRETE}}, "space"),
        ({"type": "Tuple", "spaces": None}, "not well formed"),
        (nested(100), "nested more than"),
    ],
)  # fmt: skip
def test_what_is_no_space_gives_a_clear_error(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        space_from_json(data)
