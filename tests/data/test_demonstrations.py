"""What a set of demonstrations holds, how it is cut, what it refuses, and sets without actions."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from rlsmooth.data import Demonstrations, DemonstrationsFileError, ObservationOnly, cartpole_v1, concatenate
from support import assert_equal, assert_raises


def numbered(lengths: list[int], **changes: Any) -> Demonstrations:
    """Episodes whose observation is (episode, step), so that every row says where it belongs."""
    rows = [(episode, step) for episode, length in enumerate(lengths) for step in range(length)]
    fields: dict[str, Any] = {"observations": np.array(rows, dtype=np.float32)}
    fields |= {"actions": [step % 3 for _, step in rows], "observation_space": spaces.Box(-np.inf, np.inf, (2,))}
    fields |= {"action_space": spaces.Discrete(3), "episode_ends": np.cumsum(lengths)}
    fields |= {"rewards": [10.0 * episode + step for episode, step in rows]}
    return Demonstrations.from_arrays(**{**fields, **changes})


def episodes_of(demonstrations: Demonstrations) -> list[int]:
    return [int(demonstrations[[start]].observations[0, 0]) for start in demonstrations.episode_starts.tolist()]  # type: ignore[call-overload]


def test_lengths_returns_and_starts() -> None:
    demonstrations = numbered([2, 3, 1])
    assert len(demonstrations) == 6
    assert demonstrations.num_episodes == 3
    assert demonstrations.episode_lengths().tolist() == [2, 3, 1]
    assert demonstrations.episode_starts.tolist() == [0, 2, 5]
    assert demonstrations.episode_returns().tolist() == [0 + 1, 10 + 11 + 12, 20]
    assert "3 episodes, 6 transitions, return 18.0" in repr(demonstrations)
    assert_raises(ValueError, "rewards is None", numbered([2], rewards=None).episode_returns)


def test_rows_are_read_as_a_batch() -> None:
    demonstrations = numbered([2, 3], weights=[1, 2, 3, 4, 5], groups=[7, 7, 8, 8, 8])
    batch = demonstrations[[4, 0]]
    assert len(batch) == 2
    assert batch.observations.tolist() == [[1, 2], [0, 0]]  # type: ignore[union-attr]
    assert batch.actions.tolist() == [2, 0]
    assert batch.actions.dtype == np.int64
    assert (batch.weights.tolist(), batch.groups.tolist()) == ([5, 1], [8, 7])
    assert batch.rewards.tolist() == [12, 0]
    assert batch.action_masks is None
    assert len(demonstrations[1:3]) == 2
    assert demonstrations[np.array([True, False, False, False, True])].actions.tolist() == [0, 2]
    with pytest.raises(TypeError, match=r"use \[1 : 1 \+ 1\]"):
        numbered([2])[1]  # type: ignore[index]


def test_batches_cover_each_row_once() -> None:
    demonstrations = numbered([4, 3])
    in_order = [batch.observations.tolist() for batch in demonstrations.batches(3)]  # type: ignore[union-attr]
    assert [len(batch) for batch in in_order] == [3, 3, 1]
    assert sum(in_order, []) == demonstrations.observations.tolist()  # type: ignore[union-attr]  # noqa: RUF017
    shuffled = [tuple(row) for batch in demonstrations.batches(3, seed=1) for row in batch.observations.tolist()]  # type: ignore[union-attr]
    assert sorted(shuffled) == [tuple(row) for row in demonstrations.observations.tolist()]  # type: ignore[union-attr]
    assert shuffled != sorted(shuffled)


def test_selected_episodes_keep_their_rows_together() -> None:
    infos = [{"row": row} for row in range(6)]
    chosen = numbered([2, 3, 1], infos=infos, action_masks=np.ones((6, 3), bool)).select_episodes([2, 1, 2])
    assert chosen.observations.tolist() == [[2, 0], [1, 0], [1, 1], [1, 2], [2, 0]]  # type: ignore[union-attr]
    assert chosen.episode_ends.tolist() == [1, 4, 5]
    assert chosen.episode_returns().tolist() == [20, 33, 20]
    assert chosen.infos == ({"row": 5}, {"row": 2}, {"row": 3}, {"row": 4}, {"row": 5})
    assert chosen.action_masks.shape == (5, 3)
    # What was selected passes the checks that the selection skipped.
    dataclasses.replace(chosen)


def test_unknown_episodes_and_shares_outside_0_and_1_are_refused() -> None:
    demonstrations = numbered([2, 3, 1])
    for indices in ([], [3], [-1], [0.5], [[0, 1]]):
        assert_raises(ValueError, "indices=", demonstrations.select_episodes, indices)
    for fraction in (0.0, 1.0, -0.1, float("nan")):
        assert_raises(ValueError, "fraction=", demonstrations.split, fraction)


@given(
    lengths=st.lists(st.integers(1, 5), min_size=2, max_size=12),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32),
)
def test_a_split_is_disjoint_exhaustive_and_by_episode(lengths: list[int], fraction: float, seed: int) -> None:
    demonstrations = numbered(lengths)
    held_out = round(fraction * len(lengths))
    if held_out in (0, len(lengths)):
        assert_raises(ValueError, "leaves a side empty", demonstrations.split, fraction, seed)
        return
    training, validation = demonstrations.split(fraction, seed)
    assert validation.num_episodes == held_out
    assert sorted(episodes_of(training) + episodes_of(validation)) == list(range(len(lengths)))
    for side in (training, validation):
        assert side.episode_lengths().tolist() == [lengths[episode] for episode in episodes_of(side)]
    again = demonstrations.split(fraction, seed)
    assert episodes_of(again[0]) == episodes_of(training)


def test_sampled_episodes_differ_and_repeat_with_the_seed() -> None:
    demonstrations = numbered([2] * 20)
    sampled = episodes_of(demonstrations.sample_episodes(7, seed=3))
    assert len(set(sampled)) == 7
    assert sampled == episodes_of(demonstrations.sample_episodes(7, seed=3))
    assert sampled != episodes_of(demonstrations.sample_episodes(7, seed=4))
    assert episodes_of(demonstrations.sample_episodes(20)) == list(range(20))
    for count, error in ((21, ValueError), (0, ValueError), (1.5, TypeError)):
        assert_raises(error, "n_episodes", demonstrations.sample_episodes, count)


def test_episode_ends_come_from_flags() -> None:
    flags: dict[str, Any] = {
        "terminations": [False, True, False, False, False],
        "truncations": [False, False, False, True, False],
    }
    demonstrations = numbered([5], episode_ends=None, **flags)
    assert demonstrations.episode_ends.tolist() == [2, 4, 5]
    assert_raises(ValueError, "episode_ends is missing", numbered, [5], episode_ends=None)


def test_labels_count_from_zero() -> None:
    discrete = numbered([3], actions=[5, 6, 7], action_space=spaces.Discrete(3, start=5))
    assert discrete.actions.tolist() == [5, 6, 7]  # type: ignore[union-attr]
    assert discrete.action_labels.tolist() == [0, 1, 2]
    grid = numbered([1], actions=[[[1, 2]]], action_space=spaces.MultiDiscrete([[2, 4]], start=[[1, 0]]))
    assert grid.action_labels.tolist() == [[0, 2]]
    bits = numbered([2], actions=[[0, 1], [1, 1]], action_space=spaces.MultiBinary(2))
    assert bits.action_labels.tolist() == [[0, 1], [1, 1]]
    box = numbered([1], actions=[[0.5]], action_space=spaces.Box(-1, 1, (1,)))
    assert box.action_labels.tolist() == [[0.5]]


def test_sets_are_concatenated_with_the_fields_that_all_of_them_have() -> None:
    first, second = numbered([2, 1], weights=[1, 2, 3], groups=[0, 0, 1], infos=[{}] * 3), numbered([3], groups=[7] * 3)
    both = concatenate([first, second])
    assert both.episode_ends.tolist() == [2, 3, 6]
    assert both[:].observations.tolist() == first[:].observations.tolist() + second[:].observations.tolist()
    assert both[:].actions.tolist() == [0, 1, 0, 0, 1, 2]
    assert np.asarray(both.groups).tolist() == [0, 0, 1, 7, 7, 7]
    assert both.weights is None
    assert both.infos is None
    assert concatenate([first]) is first


def test_sets_of_other_spaces_or_none_are_not_concatenated() -> None:
    assert_raises(ValueError, "parts is empty", concatenate, [])
    with pytest.raises(ValueError, match=r"parts\[1\] has the spaces .* -> Discrete\(4\), but the first set"):
        concatenate([numbered([2]), numbered([2], action_space=spaces.Discrete(4))])


def test_the_bounds_of_concatenated_box_actions_may_differ_by_rounding() -> None:
    boxes = [spaces.Box(-1, 1, (1,)), spaces.Box(-1.0000001, 1, (1,)), spaces.Box(-2, 1, (1,))]
    sets = [numbered([2], actions=np.zeros((2, 1), np.float32), action_space=box) for box in boxes]
    assert len(concatenate(sets[:2])) == 4
    assert_raises(ValueError, "the first set", concatenate, sets[1:])


# ---- what may not enter: the error names the first offending row
BOX = spaces.Box(-np.inf, np.inf, (2,))
ROWS = 6


def valid(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"observations": np.zeros((ROWS, 2), np.float32), "actions": [0, 1, 2, 0, 1, 2]}
    fields |= {"observation_space": BOX, "action_space": spaces.Discrete(3), "episode_ends": [2, 6]}
    return {**fields, **changes}


def put(array: Any, row: int, value: Any) -> Any:
    array = np.array(array)
    array[row] = value
    return array


OBS = np.zeros((ROWS, 2), np.float32)
MASKS = np.ones((ROWS, 3), bool)
PROBS = np.full((ROWS, 3), 1 / 3)
FLAGS = np.zeros(ROWS, bool)
PAIRS, COLUMN = np.zeros((ROWS, 2), int), np.zeros((ROWS, 1))
UNIT, BITS, PIXELS = spaces.Box(-1, 1, (1,)), spaces.MultiBinary(2), spaces.Box(0, 255, (2,), np.uint8)
NOT_1 = [True, False, True]


def bad(error: type[Exception], message: str, **changes: Any) -> Any:
    return pytest.param(error, message, changes)


BAD = [
    bad(ValueError, r"observations\[4\] holds NaN or infinity", observations=put(OBS, 4, np.nan)),
    bad(ValueError, r"observations\[1\] holds NaN or infinity", observations=put(OBS, 1, np.inf)),
    bad(ValueError, r"observations\[3\]", observations=put(OBS.astype(float), 3, 1e300)),
    bad(ValueError, r"next_observations\[5\]", next_observations=put(OBS, 5, -np.inf)),
    bad(ValueError, r"actions\[3\] is 3, which is outside Discrete\(3\)", actions=[0, 1, 2, 3, 0, 4]),
    bad(ValueError, r"actions\[0\] is -1", actions=[-1, 1, 2, 0, 0, 0]),
    bad(ValueError, r"actions\[0\] is 0", action_space=spaces.Discrete(3, start=1)),
    bad(TypeError, "actions has dtype float64", actions=[0.0, 1, 2, 0, 1, 2]),
    bad(TypeError, "actions has dtype", actions=list("abcdef")),
    bad(TypeError, "observations has dtype object", observations=OBS.astype(object)),
    bad(ValueError, r"observations has shape \(5, 2\)", observations=OBS[:5]),
    bad(ValueError, r"needs? \(6, 2\)", observations=np.zeros((ROWS, 3), np.float32)),
    bad(ValueError, "at least one transition", actions=[], observations=OBS[:0], episode_ends=[]),
    bad(ValueError, r"episode_ends\[-1\]=5", episode_ends=[2, 5]),
    bad(ValueError, r"episode_ends\[1\]=2", episode_ends=[2, 2, 6]),
    bad(ValueError, r"episode_ends\[0\]=0", episode_ends=[0, 6]),
    bad(ValueError, "episode_ends must be", episode_ends=[2.0, 6.0]),
    bad(ValueError, r"rewards\[2\] is nan", rewards=put(np.zeros(ROWS), 2, np.nan)),
    bad(ValueError, r"rewards has shape \(6, 1\)", rewards=COLUMN),
    bad(TypeError, "rewards has dtype", rewards=["1"] * ROWS),
    bad(ValueError, r"weights\[1\] is -1", weights=[1.0, -1, 1, 1, 1, 1]),
    bad(ValueError, r"weights\[5\] is inf", weights=[1.0, 1, 1, 1, 1, np.inf]),
    bad(TypeError, "groups has dtype float64", groups=[0.0] * ROWS),
    bad(TypeError, "terminations has dtype int64", terminations=[0] * ROWS),
    bad(ValueError, r"terminations\[3\] is True", terminations=put(FLAGS, 3, True)),
    bad(ValueError, r"truncations\[0\] is True", truncations=put(FLAGS, 0, True)),
    bad(ValueError, r"action_masks has shape \(6, 2\)", action_masks=MASKS[:, :2]),
    bad(TypeError, "action_masks has dtype int64", action_masks=MASKS.astype(int)),
    bad(ValueError, r"action_masks\[2\].*no legal action", action_masks=put(MASKS, 2, False)),
    bad(ValueError, r"actions\[4\] is 1, which its action mask forbids: allow it", action_masks=put(MASKS, 4, NOT_1)),
    bad(ValueError, r"action_probs\[3\].*sum to 1", action_probs=put(PROBS, 3, 0.2)),
    bad(ValueError, r"action_probs\[0\]", action_probs=put(PROBS, 0, [1.5, -0.5, 0])),
    bad(ValueError, r"action_probs has shape \(6, 2\)", action_probs=np.full((ROWS, 2), 0.5)),
    bad(TypeError, "action_probs has dtype int64", action_probs=np.eye(3, dtype=int)[[0] * ROWS]),
    bad(ValueError, r"action_probs\[2\].*mask forbids", action_probs=PROBS, action_masks=put(MASKS, 2, NOT_1)),
    bad(ValueError, "infos has 2 entries", infos=[{}, {}]),
    bad(TypeError, "is no Dict space", observations={"a": OBS}),
    bad(ValueError, r"has the keys \['a'\]", observations={"a": OBS}, observation_space=spaces.Dict({"b": BOX})),
    bad(TypeError, "must be a dict", observation_space=spaces.Dict({"b": BOX})),
    bad(
        ValueError, r"\['a'\]\[4\]", observations={"a": put(OBS, 4, np.nan)}, observation_space=spaces.Dict({"a": BOX})
    ),
    bad(TypeError, "not supported", observation_space=spaces.Tuple([BOX])),
    bad(TypeError, "action_space=.*not supported", action_space=spaces.Text(3)),
    bad(TypeError, "observations has dtype int64", observations=PAIRS, observation_space=PIXELS),
    bad(ValueError, r"\[2\] is 4, .*outside D", observations=[0, 1, 4, 0, 0, 0], observation_space=spaces.Discrete(4)),
    bad(ValueError, "action_masks can't be used", actions=COLUMN, action_space=UNIT, action_masks=MASKS[:, :1]),
    bad(ValueError, r"actions\[2\] is \[1.5\], which is outside Box", actions=put(COLUMN, 2, 1.5), action_space=UNIT),
    bad(ValueError, r"actions\[1\] is \[256", actions=put(PAIRS, 1, 256), action_space=BITS),
    bad(ValueError, r"actions\[5\]", actions=put(PAIRS, 5, [0, 2]), action_space=spaces.MultiDiscrete([3, 2])),
    bad(ValueError, "needs a Discrete action space", actions=PAIRS, action_space=BITS, action_probs=PROBS),
]


@pytest.mark.parametrize(("error", "message", "changes"), BAD)
def test_bad_data_are_refused(error: type[Exception], message: str, changes: dict[str, Any]) -> None:
    Demonstrations.from_arrays(**valid())
    assert_raises(error, message, Demonstrations.from_arrays, **valid(**changes))


def test_lists_go_through_from_arrays() -> None:
    fields = valid(episode_ends=np.array([2, 6]))
    with pytest.raises(TypeError, match=r"actions must be a numpy array, got list: use Demonstrations\.from_arrays"):
        Demonstrations(**fields)


def test_masks_of_factored_spaces_lie_end_to_end() -> None:
    space = spaces.MultiDiscrete([3, 2], start=[0, 10])
    mask = np.array([[True, False, True, False, True]])
    fields = valid(observations=OBS[:1], action_space=space, episode_ends=[1], action_masks=mask)
    Demonstrations.from_arrays(**{**fields, "actions": [[2, 11]]})
    for actions in ([[1, 11]], [[2, 10]]):
        with pytest.raises(ValueError, match=r"actions\[0\].*forbids"):
            Demonstrations.from_arrays(**{**fields, "actions": actions})
    nothing = {"actions": [[2, 11]], "action_masks": np.array([[True, True, True, False, False]])}
    with pytest.raises(ValueError, match=r"leaves a dimension with no legal action"):
        Demonstrations.from_arrays(**{**fields, **nothing})
    mask = np.array([[True, False, False, True]])
    bits = valid(observations=OBS[:1], action_space=BITS, episode_ends=[1], action_masks=mask)
    Demonstrations.from_arrays(**{**bits, "actions": [[0, 1]]})
    assert_raises(ValueError, "forbids", Demonstrations.from_arrays, **{**bits, "actions": [[0, 0]]})


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
    assert_raises(ValueError, r"actions\[0\]", Demonstrations.from_arrays, **valid(actions=OBS + 2, action_space=tight))


def test_a_million_transitions_are_checked_in_well_under_a_second() -> None:
    count = 1_000_000
    given: dict[str, Any] = {"observations": np.ones((count, 4), np.float32)}
    given |= {"observation_space": spaces.Box(-np.inf, np.inf, (4,)), "actions": np.zeros(count, np.int64)}
    given |= {"action_masks": np.ones((count, 3), bool), "rewards": np.ones(count), "weights": np.ones(count)}
    given |= {"episode_ends": np.arange(100, count + 1, 100)}
    fields = valid(**given)
    durations = []
    for _ in range(3):  # the least of three: other work on the machine only adds
        start = time.perf_counter()
        Demonstrations.from_arrays(**fields)
        durations.append(time.perf_counter() - start)
    assert min(durations) < 0.5


# ---- observation-only demonstrations
SPACE = spaces.Box(-np.inf, np.inf, (2,))
BOTH = spaces.Dict({"place": SPACE, "room": spaces.Discrete(4)})


def episode(length: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(length, 2)).astype(np.float32)


def both(length: int) -> dict[str, Any]:
    return {"place": episode(length), "room": np.arange(length) % 4}


def fields_of(watched: ObservationOnly) -> dict[str, Any]:
    return {field.name: getattr(watched, field.name) for field in dataclasses.fields(watched)}


def test_trajectories_become_pairs() -> None:
    first, second = episode(4), episode(2, seed=1)
    watched = ObservationOnly.from_trajectories([first, second], observation_space=SPACE, metadata={"from": "a video"})
    assert len(watched) == 4
    assert watched.num_episodes == 2
    assert watched.episode_ends.tolist() == [3, 4]
    assert np.array_equal(watched.observations, np.concatenate([first[:-1], second[:-1]]))
    assert np.array_equal(watched.next_observations, np.concatenate([first[1:], second[1:]]))
    assert repr(watched).startswith("ObservationOnly(2 episodes, 4 transitions")


def test_dicts_and_masks() -> None:
    masks = [np.ones((3, 5), bool), np.eye(5, dtype=bool)[:2]]
    watched = ObservationOnly.from_trajectories([both(4), both(3)], observation_space=BOTH, action_masks=masks)
    assert watched.observations["room"].tolist() == [0, 1, 2, 0, 1]
    assert watched.next_observations["room"].tolist() == [1, 2, 3, 1, 2]
    filled = watched.as_demonstrations(spaces.Discrete(5, start=2))
    assert filled.actions.tolist() == [2, 2, 2, 2, 3]  # the lowest legal one
    assert np.array_equal(filled.action_masks, np.concatenate(masks))
    assert_raises(ValueError, r"action_masks has shape \(5, 5\)", watched.as_demonstrations, spaces.Discrete(4))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3, start=-1),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiBinary(2),
        spaces.Box(np.array([1, -2], np.float32), np.array([3, -1], np.float32)),
        spaces.Box(-np.inf, np.inf, (2, 2)),
    ],
    ids=str,
)
def test_actions_without_a_meaning_are_inside_the_space(space: spaces.Space[Any]) -> None:
    watched = ObservationOnly.from_trajectories([episode(4)], observation_space=SPACE)
    actions = watched.as_demonstrations(space).actions
    assert all(space.contains(action) for action in actions)


def test_demonstrations_lose_their_actions() -> None:
    given = cartpole_v1().replace_unchecked(weights=np.linspace(0, 1, 12000))
    watched = ObservationOnly.from_demonstrations(given)
    assert np.array_equal(watched.observations, given.observations)
    assert np.array_equal(watched.next_observations, given.next_observations)
    assert np.array_equal(watched.weights, given.weights)
    assert not hasattr(watched, "actions")
    chosen = watched.sample_episodes(3, seed=5)
    theirs = given.sample_episodes(3, seed=5)
    assert np.array_equal(chosen.observations, theirs.observations)
    assert chosen.num_episodes == 3


def test_without_next_observations_the_last_of_each_episode_is_not_a_pair() -> None:
    observations = np.arange(6)
    masks = np.eye(6, 2, dtype=bool)
    masks[2:] = True
    settings: dict[str, Any] = {"observation_space": spaces.Discrete(6), "action_space": spaces.Discrete(2)}
    settings |= {"episode_ends": [3, 4, 6], "action_masks": masks}
    given = Demonstrations.from_arrays(observations, [0, 1, 0, 0, 0, 0], **settings)
    watched = ObservationOnly.from_demonstrations(given)
    assert watched.observations.tolist() == [0, 1, 4]
    assert watched.next_observations.tolist() == [1, 2, 5]
    assert watched.episode_ends.tolist() == [2, 3]  # the episode of one row is gone
    assert np.array_equal(watched.action_masks, masks[[0, 1, 4]])
    with pytest.raises(ValueError, match="no episode has two observations"):
        ObservationOnly.from_demonstrations(given.select_episodes([1]))


@pytest.mark.parametrize("form", ["box", "dict"])
def test_a_file_gives_back_the_same(form: str, tmp_path: Path) -> None:
    path = tmp_path / "watched.npz"
    episodes: list[Any] = [episode(4), episode(3)] if form == "box" else [both(4), both(3)]
    masks = [np.ones((3, 2), bool), np.eye(2, dtype=bool)]
    space = SPACE if form == "box" else BOTH
    watched = ObservationOnly.from_trajectories(
        episodes, observation_space=space, action_masks=masks, metadata={"seed": 3}
    )
    watched.save(path)
    assert_equal(fields_of(ObservationOnly.load(path)), fields_of(watched))
    before = path.read_bytes()
    watched.save(path)
    assert path.read_bytes() == before
    with np.load(path, allow_pickle=False) as archive:
        assert "actions" not in archive.files
    plain = ObservationOnly.from_trajectories(episodes, observation_space=space)
    plain.save(path)
    assert_equal(fields_of(ObservationOnly.load(path)), fields_of(plain))


def test_other_files_are_refused_with_a_way_out(tmp_path: Path) -> None:
    watched = ObservationOnly.from_trajectories([episode(4)], observation_space=SPACE)
    watched.save(tmp_path / "watched.npz")
    cartpole_v1().select_episodes([0]).save(tmp_path / "done.npz")
    assert_raises(DemonstrationsFileError, r"use ObservationOnly\.load", Demonstrations.load, tmp_path / "watched.npz")
    assert_raises(DemonstrationsFileError, r"use Demonstrations\.load", ObservationOnly.load, tmp_path / "done.npz")
    np.savez(tmp_path / "other.npz", observations=np.zeros(3))
    with pytest.raises(DemonstrationsFileError, match=r"use ObservationOnly\.from_trajectories"):
        ObservationOnly.load(tmp_path / "other.npz")
    damaged = bytearray((tmp_path / "watched.npz").read_bytes())
    damaged[len(damaged) // 3] ^= 1
    (tmp_path / "damaged.npz").write_bytes(damaged)
    assert_raises(DemonstrationsFileError, None, ObservationOnly.load, tmp_path / "damaged.npz")
    (tmp_path / "pickle.npz").write_bytes(b"\x80\x04N.")
    assert_raises(DemonstrationsFileError, "pickle", ObservationOnly.load, tmp_path / "pickle.npz")
    assert_raises(ValueError, r"must end in \.npz", watched.save, tmp_path / "watched.zip")


@pytest.mark.parametrize(
    ("changes", "error", "problem"),
    [
        ({"episode_ends": np.array([2, 2, 3])}, ValueError, r"episode_ends\[1\]=2"),
        ({"episode_ends": np.array([4])}, ValueError, "observations has shape"),
        ({"episode_ends": np.zeros(0, np.int64)}, ValueError, "episode_ends"),
        ({"next_observations": episode(2)}, ValueError, "next_observations has shape"),
        ({"observations": episode(3) * np.float32(np.nan)}, ValueError, "NaN or infinity"),
        ({"observations": [[0.0, 1.0]] * 3}, TypeError, "observations must be a numpy array"),
        ({"observation_space": spaces.Text(3)}, TypeError, "not supported"),
        ({"action_masks": np.ones(3, bool)}, ValueError, r"action_masks has shape \(3,\)"),
        ({"action_masks": np.ones((3, 2))}, TypeError, "must hold Booleans"),
        ({"weights": np.array([1.0, -1.0, 0.0])}, ValueError, r"weights\[1\] is -1"),
    ],
)
def test_what_is_wrong_is_told(changes: dict[str, Any], error: type[Exception], problem: str) -> None:
    fields: dict[str, Any] = {"observations": episode(3), "next_observations": episode(3, seed=1)}
    fields |= {"observation_space": SPACE, "episode_ends": np.array([3])}
    assert_raises(error, problem, ObservationOnly, **{**fields, **changes})


def test_trajectories_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[3, 1\] observations"):
        ObservationOnly.from_trajectories([episode(3), episode(1)], observation_space=SPACE)
    assert_raises(ValueError, r"\[\] observations", ObservationOnly.from_trajectories, [], observation_space=SPACE)
    with pytest.raises(ValueError, match="none is needed for a final observation"):
        ObservationOnly.from_trajectories([episode(3)], observation_space=SPACE, action_masks=[np.ones((3, 2), bool)])
    assert_raises(TypeError, "must be Demonstrations", ObservationOnly.from_demonstrations, episode(3))


# ---- arrays as numpy makes them
FORMS: dict[str, Any] = {
    "mirrored": lambda x: x[..., ::-1],
    "upside down": lambda x: x[:, ::-1],
    "backwards": lambda x: x[::-1],
    "Fortran order": np.asfortranarray,
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("on_disk", [False, True])
def test_arrays_of_every_layout_can_be_read_by_torch(form: str, on_disk: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    change = FORMS[form]
    given = {"observations": rng.random((6, 2, 3)), "actions": rng.random((6, 2)), "action_probs": None}
    given["next_observations"] = rng.random((6, 2, 3))
    arrays = {name: change(value) for name, value in given.items() if value is not None}
    if on_disk:
        for name, value in list(arrays.items()):
            np.save(tmp_path / f"{name}.npy", given[name] if "big" not in form else value)
            loaded = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
            arrays[name] = loaded if "big" in form else change(loaded)
    flat = {"rewards": rng.random(6), "weights": rng.random(6)}
    arrays |= {name: value[::-1] if form == "backwards" else value.astype(">f8") for name, value in flat.items()}
    spaces_of: dict[str, Any] = {
        "observation_space": spaces.Box(0, 1, (2, 3), np.float64),
        "action_space": spaces.Box(0, 1, (2,), np.float64),
    }
    made = Demonstrations.from_arrays(**arrays, **spaces_of, episode_ends=[6])
    batches = [made[:], made[[3, 1]], *made.batches(4), *made.batches(4, seed=0)]
    if not on_disk:
        batches.append(made)  # type: ignore[arg-type]
    for batch in batches:
        for name in arrays:
            torch.from_numpy(np.array(getattr(batch, name), copy=not getattr(batch, name).flags.writeable))
    for name, value in arrays.items():
        np.testing.assert_array_equal(getattr(made[:], name), value)
