"""What may not enter, and that the error names the first offending row."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from rlsmooth.data import Demonstrations

BOX = spaces.Box(-np.inf, np.inf, (2,))
ROWS = 6


def valid(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "observations": np.zeros((ROWS, 2), np.float32),
        "actions": [0, 1, 2, 0, 1, 2],
        "observation_space": BOX,
        "action_space": spaces.Discrete(3),
        "episode_ends": [2, 6],
    }
    return {**fields, **changes}


def with_value(array: Any, row: int, value: Any) -> Any:
    array = np.array(array)
    array[row] = value
    return array


OBS = np.zeros((ROWS, 2), np.float32)
MASKS = np.ones((ROWS, 3), bool)
PROBS = np.full((ROWS, 3), 1 / 3)
FLAGS = np.zeros(ROWS, bool)

BAD: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("nan", ValueError, r"observations\[4\] holds NaN or infinity", {"observations": with_value(OBS, 4, np.nan)}),
    ("inf", ValueError, r"observations\[1\] holds NaN or infinity", {"observations": with_value(OBS, 1, np.inf)}),
    ("overflow", ValueError, r"observations\[3\]", {"observations": with_value(OBS.astype(float), 3, 1e300)}),
    ("next", ValueError, r"next_observations\[5\]", {"next_observations": with_value(OBS, 5, -np.inf)}),
    ("action", ValueError, r"actions\[3\] is 3, which is outside Discrete\(3\)", {"actions": [0, 1, 2, 3, 0, 4]}),
    ("negative", ValueError, r"actions\[0\] is -1", {"actions": [-1, 1, 2, 0, 0, 0]}),
    ("start", ValueError, r"actions\[0\] is 0", {"action_space": spaces.Discrete(3, start=1)}),
    ("float", TypeError, "actions has dtype float64", {"actions": [0.0, 1, 2, 0, 1, 2]}),
    ("text", TypeError, "actions has dtype", {"actions": list("abcdef")}),
    ("object", TypeError, "observations has dtype object", {"observations": OBS.astype(object)}),
    ("short", ValueError, r"observations has shape \(5, 2\)", {"observations": OBS[:5]}),
    ("wide", ValueError, r"needs? \(6, 2\)", {"observations": np.zeros((ROWS, 3), np.float32)}),
    ("empty", ValueError, "at least one transition", {"actions": [], "observations": OBS[:0], "episode_ends": []}),
    ("ends", ValueError, r"episode_ends\[-1\]=5", {"episode_ends": [2, 5]}),
    ("repeat", ValueError, r"episode_ends\[1\]=2", {"episode_ends": [2, 2, 6]}),
    ("falling", ValueError, r"episode_ends\[0\]=0", {"episode_ends": [0, 6]}),
    ("fraction", ValueError, "episode_ends must be", {"episode_ends": [2.0, 6.0]}),
    ("rewards", ValueError, r"rewards\[2\] is nan", {"rewards": with_value(np.zeros(ROWS), 2, np.nan)}),
    ("reward shape", ValueError, r"rewards has shape \(6, 1\)", {"rewards": np.zeros((ROWS, 1))}),
    ("reward type", TypeError, "rewards has dtype", {"rewards": ["1"] * ROWS}),
    ("weight", ValueError, r"weights\[1\] is -1", {"weights": [1.0, -1, 1, 1, 1, 1]}),
    ("weight inf", ValueError, r"weights\[5\] is inf", {"weights": [1.0, 1, 1, 1, 1, np.inf]}),
    ("groups", TypeError, "groups has dtype float64", {"groups": [0.0] * ROWS}),
    ("flags", TypeError, "terminations has dtype int64", {"terminations": [0] * ROWS}),
    ("inner", ValueError, r"terminations\[3\] is True", {"terminations": with_value(FLAGS, 3, True)}),
    ("inner 2", ValueError, r"truncations\[0\] is True", {"truncations": with_value(FLAGS, 0, True)}),
    ("mask shape", ValueError, r"action_masks has shape \(6, 2\)", {"action_masks": MASKS[:, :2]}),
    ("mask type", TypeError, "action_masks has dtype int64", {"action_masks": MASKS.astype(int)}),
    ("no choice", ValueError, r"action_masks\[2\].*no legal action", {"action_masks": with_value(MASKS, 2, False)}),
    (
        "illegal",
        ValueError,
        r"actions\[4\] is 1, which its action mask forbids",
        {"action_masks": with_value(MASKS, 4, [True, False, True])},
    ),
    ("probs sum", ValueError, r"action_probs\[3\].*sum to 1", {"action_probs": with_value(PROBS, 3, 0.2)}),
    ("probs sign", ValueError, r"action_probs\[0\]", {"action_probs": with_value(PROBS, 0, [1.5, -0.5, 0])}),
    ("probs shape", ValueError, r"action_probs has shape \(6, 2\)", {"action_probs": np.full((ROWS, 2), 0.5)}),
    ("probs type", TypeError, "action_probs has dtype int64", {"action_probs": np.eye(3, dtype=int)[[0] * ROWS]}),
    (
        "probs mask",
        ValueError,
        r"action_probs\[1\].*mask forbids",
        {"action_probs": PROBS, "action_masks": with_value(MASKS, 1, [False, True, True])},
    ),
    ("infos", ValueError, "infos has 2 entries", {"infos": [{}, {}]}),
    ("dict", TypeError, "is no Dict space", {"observations": {"a": OBS}}),
    (
        "keys",
        ValueError,
        r"has the keys \['a'\]",
        {"observations": {"a": OBS}, "observation_space": spaces.Dict({"b": BOX})},
    ),
    ("no dict", TypeError, "must be a dict", {"observation_space": spaces.Dict({"b": BOX})}),
    (
        "part",
        ValueError,
        r"observations\['a'\]\[4\]",
        {"observations": {"a": with_value(OBS, 4, np.nan)}, "observation_space": spaces.Dict({"a": BOX})},
    ),
    ("tuple", TypeError, "not supported", {"observation_space": spaces.Tuple([BOX])}),
    ("text space", TypeError, "action_space=.*not supported", {"action_space": spaces.Text(3)}),
    (
        "pixels",
        TypeError,
        "observations has dtype int64",
        {"observations": np.zeros((ROWS, 2), int), "observation_space": spaces.Box(0, 255, (2,), np.uint8)},
    ),
    (
        "state",
        ValueError,
        r"observations\[2\] is 4, which is outside Discrete\(4\)",
        {"observations": [0, 1, 4, 0, 0, 0], "observation_space": spaces.Discrete(4)},
    ),
    (
        "box mask",
        ValueError,
        "action_masks can't be used",
        {
            "actions": np.zeros((ROWS, 1)),
            "action_space": spaces.Box(-1, 1, (1,)),
            "action_masks": np.ones((ROWS, 1), bool),
        },
    ),
    (
        "box action",
        ValueError,
        r"actions\[2\] is \[1.5\], which is outside Box",
        {"actions": with_value(np.zeros((ROWS, 1)), 2, 1.5), "action_space": spaces.Box(-1, 1, (1,))},
    ),
    (
        "wrapped bit",
        ValueError,
        r"actions\[1\] is \[256",
        {"actions": with_value(np.zeros((ROWS, 2), int), 1, 256), "action_space": spaces.MultiBinary(2)},
    ),
    (
        "dimension",
        ValueError,
        r"actions\[5\]",
        {"actions": with_value(np.zeros((ROWS, 2), int), 5, [0, 2]), "action_space": spaces.MultiDiscrete([3, 2])},
    ),
    (
        "probs of a box",
        ValueError,
        "needs a Discrete action space",
        {"actions": np.zeros((ROWS, 2), int), "action_space": spaces.MultiBinary(2), "action_probs": PROBS},
    ),
]


@pytest.mark.parametrize(("error", "message", "changes"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_data_are_refused(error: type[Exception], message: str, changes: dict[str, Any]) -> None:
    Demonstrations.from_arrays(**valid())
    with pytest.raises(error, match=message):
        Demonstrations.from_arrays(**valid(**changes))


def test_lists_go_through_from_arrays() -> None:
    fields = valid(episode_ends=np.array([2, 6]))
    with pytest.raises(TypeError, match=r"actions must be a numpy array, got list: use Demonstrations\.from_arrays"):
        Demonstrations(**fields)


def test_masks_of_factored_spaces_lie_end_to_end() -> None:
    space = spaces.MultiDiscrete([3, 2], start=[0, 10])
    mask = np.array([[True, False, True, False, True]])
    fields = valid(observations=OBS[:1], action_space=space, episode_ends=[1], action_masks=mask)
    Demonstrations.from_arrays(**{**fields, "actions": [[2, 11]]})
    with pytest.raises(ValueError, match=r"actions\[0\].*forbids"):
        Demonstrations.from_arrays(**{**fields, "actions": [[1, 11]]})
    with pytest.raises(ValueError, match=r"actions\[0\].*forbids"):
        Demonstrations.from_arrays(**{**fields, "actions": [[2, 10]]})
    with pytest.raises(ValueError, match=r"leaves a dimension with no legal action"):
        Demonstrations.from_arrays(
            **{**fields, "actions": [[2, 11]], "action_masks": np.array([[True, True, True, False, False]])}
        )
    bits = valid(observations=OBS[:1], action_space=spaces.MultiBinary(2), episode_ends=[1])
    Demonstrations.from_arrays(**bits | {"actions": [[0, 1]], "action_masks": np.array([[True, False, False, True]])})
    with pytest.raises(ValueError, match="forbids"):
        Demonstrations.from_arrays(
            **bits | {"actions": [[0, 0]], "action_masks": np.array([[True, False, False, True]])}
        )


@pytest.mark.parametrize(
    ("space", "values", "dtype"),
    [
        (spaces.Box(-1, 1, (2,)), np.zeros((ROWS, 2), np.float64), np.float32),
        (spaces.Box(-1, 1, (2,), np.float64), np.zeros((ROWS, 2), np.float32), np.float64),
        (spaces.Box(0, 255, (2, 3, 1), np.uint8), np.zeros((ROWS, 2, 3, 1), np.uint8), np.uint8),
        (spaces.Discrete(4, start=-2), np.full(ROWS, -2, np.int8), np.int64),
        (spaces.MultiDiscrete([[2, 3]]), np.zeros((ROWS, 1, 2), np.uint8), np.int64),
        (spaces.MultiBinary([2, 1]), np.ones((ROWS, 2, 1), bool), np.int8),
    ],
    ids=str,
)
def test_arrays_are_stored_in_the_dtype_of_their_space(space: spaces.Space[Any], values: Any, dtype: Any) -> None:
    demonstrations = Demonstrations.from_arrays(**valid(observations=values, observation_space=space))
    assert demonstrations.observations.dtype == dtype  # type: ignore[union-attr]
    as_actions = Demonstrations.from_arrays(**valid(actions=values, action_space=space))
    assert as_actions.actions.dtype == dtype
    both = spaces.Dict({"a": space, "b": BOX})
    parts = Demonstrations.from_arrays(**valid(observations={"b": OBS, "a": values}, observation_space=both))
    assert isinstance(parts.observations, dict)
    assert parts.observations["a"].dtype == dtype


def test_observations_may_overstep_a_box_but_actions_may_not() -> None:
    tight = spaces.Box(-1, 1, (2,))
    Demonstrations.from_arrays(**valid(observations=OBS + 2, observation_space=tight))
    with pytest.raises(ValueError, match=r"actions\[0\]"):
        Demonstrations.from_arrays(**valid(actions=OBS + 2, action_space=tight))


def test_a_million_transitions_are_checked_in_well_under_a_second() -> None:
    count = 1_000_000
    fields = valid(
        observations=np.ones((count, 4), np.float32),
        observation_space=spaces.Box(-np.inf, np.inf, (4,)),
        actions=np.zeros(count, np.int64),
        action_masks=np.ones((count, 3), bool),
        rewards=np.ones(count),
        weights=np.ones(count),
        episode_ends=np.arange(100, count + 1, 100),
    )
    durations = []
    for _ in range(3):  # the least of three: other work on the machine only adds
        start = time.perf_counter()
        Demonstrations.from_arrays(**fields)
        durations.append(time.perf_counter() - start)
    assert min(durations) < 0.5
