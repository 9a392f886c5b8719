"""What a set holds and how it is cut: every value here is written out by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from rlsmooth.data import Demonstrations


def numbered(lengths: list[int], **changes: Any) -> Demonstrations:
    """Episodes whose observation is (episode, step), so that every row says where it belongs."""
    rows = [(episode, step) for episode, length in enumerate(lengths) for step in range(length)]
    fields: dict[str, Any] = {
        "observations": np.array(rows, dtype=np.float32),
        "actions": [step % 3 for _, step in rows],
        "observation_space": spaces.Box(-np.inf, np.inf, (2,)),
        "action_space": spaces.Discrete(3),
        "episode_ends": np.cumsum(lengths),
        "rewards": [10.0 * episode + step for episode, step in rows],
    }
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


def test_returns_need_rewards() -> None:
    with pytest.raises(ValueError, match="rewards is None"):
        numbered([2], rewards=None).episode_returns()


def test_rows_are_read_as_a_batch() -> None:
    demonstrations = numbered([2, 3], weights=[1, 2, 3, 4, 5], groups=[7, 7, 8, 8, 8])
    batch = demonstrations[[4, 0]]
    assert len(batch) == 2
    assert batch.observations.tolist() == [[1, 2], [0, 0]]  # type: ignore[union-attr]
    assert batch.actions.tolist() == [2, 0]
    assert batch.actions.dtype == np.int64
    assert batch.weights is not None
    assert batch.groups is not None
    assert (batch.weights.tolist(), batch.groups.tolist()) == ([5, 1], [8, 7])
    assert batch.rewards is not None
    assert batch.rewards.tolist() == [12, 0]
    assert batch.action_masks is None
    assert len(demonstrations[1:3]) == 2
    assert demonstrations[np.array([True, False, False, False, True])].actions.tolist() == [0, 2]


def test_one_row_needs_a_slice() -> None:
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
    assert chosen.action_masks is not None
    assert chosen.action_masks.shape == (5, 3)
    # What was selected passes the checks that the selection skipped.
    dataclasses.replace(chosen)


@pytest.mark.parametrize("indices", [[], [3], [-1], [0.5], [[0, 1]]])
def test_unknown_episodes_are_refused(indices: Any) -> None:
    with pytest.raises(ValueError, match="indices="):
        numbered([2, 3, 1]).select_episodes(indices)


@given(
    lengths=st.lists(st.integers(1, 5), min_size=2, max_size=12),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32),
)
def test_a_split_is_disjoint_exhaustive_and_by_episode(lengths: list[int], fraction: float, seed: int) -> None:
    demonstrations = numbered(lengths)
    held_out = round(fraction * len(lengths))
    if held_out in (0, len(lengths)):
        with pytest.raises(ValueError, match="leaves a side empty"):
            demonstrations.split(fraction, seed)
        return
    training, validation = demonstrations.split(fraction, seed)
    assert validation.num_episodes == held_out
    assert sorted(episodes_of(training) + episodes_of(validation)) == list(range(len(lengths)))
    for side in (training, validation):
        assert side.episode_lengths().tolist() == [lengths[episode] for episode in episodes_of(side)]
    again = demonstrations.split(fraction, seed)
    assert episodes_of(again[0]) == episodes_of(training)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_a_split_fraction_is_inside_0_and_1(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction="):
        numbered([1, 1, 1]).split(fraction)


def test_sampled_episodes_differ_and_repeat_with_the_seed() -> None:
    demonstrations = numbered([2] * 20)
    sampled = episodes_of(demonstrations.sample_episodes(7, seed=3))
    assert len(set(sampled)) == 7
    assert sampled == episodes_of(demonstrations.sample_episodes(7, seed=3))
    assert sampled != episodes_of(demonstrations.sample_episodes(7, seed=4))
    assert episodes_of(demonstrations.sample_episodes(20)) == list(range(20))


@pytest.mark.parametrize(("count", "error"), [(21, ValueError), (0, ValueError), (1.5, TypeError)])
def test_samples_have_a_sensible_size(count: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="n_episodes"):
        numbered([2] * 20).sample_episodes(count)


def test_episode_ends_come_from_flags() -> None:
    flags: dict[str, Any] = {
        "terminations": [False, True, False, False, False],
        "truncations": [False, False, False, True, False],
    }
    demonstrations = numbered([5], episode_ends=None, **flags)
    assert demonstrations.episode_ends.tolist() == [2, 4, 5]
    with pytest.raises(ValueError, match="episode_ends is missing"):
        numbered([5], episode_ends=None)


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
