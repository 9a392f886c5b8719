"""Demonstrations without actions: what they are made of, what they check, their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from rlsmooth.data import Demonstrations, DemonstrationsFileError, ObservationOnly, cartpole_v1

SPACE = spaces.Box(-np.inf, np.inf, (2,))
BOTH = spaces.Dict({"place": SPACE, "room": spaces.Discrete(4)})


def episode(length: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(length, 2)).astype(np.float32)


def both(length: int) -> dict[str, Any]:
    return {"place": episode(length), "room": np.arange(length) % 4}


def same(one: ObservationOnly, two: ObservationOnly) -> bool:
    for name in ("observations", "next_observations", "episode_ends", "action_masks", "weights"):
        first, second = getattr(one, name), getattr(two, name)
        if isinstance(first, dict):
            if not all(np.array_equal(first[key], second[key]) for key in first):
                return False
        elif (first is None) != (second is None) or (first is not None and not np.array_equal(first, second)):
            return False
    return one.observation_space == two.observation_space and one.metadata == two.metadata


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
    with pytest.raises(ValueError, match=r"action_masks has shape \(5, 5\)"):
        watched.as_demonstrations(spaces.Discrete(4))


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
    given = cartpole_v1()._with(weights=np.linspace(0, 1, 12000))
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
    given = Demonstrations.from_arrays(
        observations,
        [0, 1, 0, 0, 0, 0],
        observation_space=spaces.Discrete(6),
        action_space=spaces.Discrete(2),
        episode_ends=[3, 4, 6],
        action_masks=masks,
    )
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
    assert same(ObservationOnly.load(path), watched)
    before = path.read_bytes()
    watched.save(path)
    assert path.read_bytes() == before
    with np.load(path, allow_pickle=False) as archive:
        assert "actions" not in archive.files
    plain = ObservationOnly.from_trajectories(episodes, observation_space=space)
    plain.save(path)
    assert same(ObservationOnly.load(path), plain)


def test_other_files_are_refused_with_a_way_out(tmp_path: Path) -> None:
    watched = ObservationOnly.from_trajectories([episode(4)], observation_space=SPACE)
    watched.save(tmp_path / "watched.npz")
    cartpole_v1().select_episodes([0]).save(tmp_path / "done.npz")
    with pytest.raises(DemonstrationsFileError, match=r"use ObservationOnly\.load"):
        Demonstrations.load(tmp_path / "watched.npz")
    with pytest.raises(DemonstrationsFileError, match=r"use Demonstrations\.load"):
        ObservationOnly.load(tmp_path / "done.npz")
    np.savez(tmp_path / "other.npz", observations=np.zeros(3))
    with pytest.raises(DemonstrationsFileError, match=r"use ObservationOnly\.from_trajectories"):
        ObservationOnly.load(tmp_path / "other.npz")
    damaged = bytearray((tmp_path / "watched.npz").read_bytes())
    damaged[len(damaged) // 3] ^= 1
    (tmp_path / "damaged.npz").write_bytes(damaged)
    with pytest.raises(DemonstrationsFileError):
        ObservationOnly.load(tmp_path / "damaged.npz")
    (tmp_path / "pickle.npz").write_bytes(b"\x80\x04N.")
    with pytest.raises(DemonstrationsFileError, match="pickle"):
        ObservationOnly.load(tmp_path / "pickle.npz")
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        watched.save(tmp_path / "watched.zip")


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
    fields: dict[str, Any] = {
        "observations": episode(3),
        "next_observations": episode(3, seed=1),
        "observation_space": SPACE,
        "episode_ends": np.array([3]),
    }
    with pytest.raises(error, match=problem):
        ObservationOnly(**{**fields, **changes})


def test_trajectories_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[3, 1\] observations"):
        ObservationOnly.from_trajectories([episode(3), episode(1)], observation_space=SPACE)
    with pytest.raises(ValueError, match=r"\[\] observations"):
        ObservationOnly.from_trajectories([], observation_space=SPACE)
    with pytest.raises(ValueError, match="none is needed for a final observation"):
        ObservationOnly.from_trajectories([episode(3)], observation_space=SPACE, action_masks=[np.ones((3, 2), bool)])
    with pytest.raises(TypeError, match="must be Demonstrations"):
        ObservationOnly.from_demonstrations(episode(3))
