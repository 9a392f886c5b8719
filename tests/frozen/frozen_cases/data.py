"""Demonstrations and labelled data: what the cases train on, and their own files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from frozen_cases.common import PENDULUM, File, of_arrays, uniform
from rlsmooth.data import Demonstrations, LabelledData, ObservationOnly, cartpole_v1, load_demonstrations, load_labelled

BOX = spaces.Box(-1, 1, (3,))


def four_episodes(observations: Any, actions: Any, action_space: Any, space: Any = BOX, **more: Any) -> Demonstrations:
    more |= {"action_space": action_space, "episode_ends": [10, 20, 30, 40]}
    return Demonstrations.from_arrays(observations, actions, observation_space=space, **more)


def masked_data() -> Demonstrations:
    """Four actions, of which the taken one and some others are legal; weighted."""
    rng = np.random.default_rng(1)
    actions = rng.integers(4, size=40)
    masks = rng.random((40, 4)) < 0.6
    masks[np.arange(40), actions] = True
    given = {"action_masks": masks, "weights": rng.random(40).astype(np.float32), "groups": np.arange(40) // 5}
    return four_episodes(uniform(40, 3), actions, spaces.Discrete(4), **given)


def soft_data() -> Demonstrations:
    rng = np.random.default_rng(2)
    probabilities = rng.integers(1, 9, size=(40, 4)).astype(np.float64)
    probabilities /= probabilities.sum(-1, keepdims=True)
    actions = 7 + probabilities.argmax(-1)
    return four_episodes(uniform(40, 3), actions, spaces.Discrete(4, start=7), action_probs=probabilities)


def multi_discrete_data() -> Demonstrations:
    rng = np.random.default_rng(3)
    actions = np.stack([rng.integers(3, size=40), rng.integers(4, size=40)], -1)
    masks = np.ones((40, 7), dtype=bool)
    masks[np.arange(40), (actions[:, 0] + 1) % 3] = False
    return four_episodes(uniform(40, 3), actions, spaces.MultiDiscrete([3, 4]), action_masks=masks)


def multi_binary_data() -> Demonstrations:
    actions = np.random.default_rng(4).integers(2, size=(40, 3)).astype(np.int8)
    return four_episodes(uniform(40, 3), actions, spaces.MultiBinary(3))


def box_data() -> Demonstrations:
    """Two numbers, and all that demonstrations can hold besides."""
    given = {"next_observations": uniform(40, 3, seed=6), "rewards": uniform(40, seed=7), "metadata": {"by": "nobody"}}
    given |= {"terminations": np.arange(40) == 39, "truncations": np.isin(np.arange(40), [9, 19, 29])}
    given |= {"infos": [{"number": number} for number in range(40)]}
    return four_episodes(uniform(40, 3), uniform(40, 2, seed=5), spaces.Box(-1, 1, (2,)), **given)


def dict_data() -> Demonstrations:
    rng = np.random.default_rng(8)
    seen = {"place": uniform(40, 2), "kind": rng.integers(3, size=40)}
    space = spaces.Dict({"place": spaces.Box(-1, 1, (2,)), "kind": spaces.Discrete(3)})
    return four_episodes(seen, rng.integers(4, size=40), spaces.Discrete(4), space)


def cartpole_data() -> Demonstrations:
    return cartpole_v1().sample_episodes(1, seed=0)


def pendulum_data() -> Demonstrations:
    env = gym.make(PENDULUM)
    states = uniform(201, 3, seed=9)
    given: dict[str, Any] = {"observation_space": env.observation_space, "action_space": env.action_space}
    actions = 2 * uniform(200, 1, seed=10)
    return Demonstrations.from_arrays(
        states[:-1], actions, episode_ends=[200], next_observations=states[1:], rewards=uniform(200), **given
    )


def identity_data() -> Demonstrations:
    """For the masked identity environment: in state s the s + 1 actions from s on are legal."""
    states = np.random.default_rng(11).integers(4, size=41)
    masks = np.array([[(action - state) % 4 <= state for action in range(4)] for state in states[:-1]])
    given = {"next_observations": states[1:], "terminations": np.arange(40) % 10 == 9, "action_masks": masks}
    return four_episodes(states[:-1], states[:-1], spaces.Discrete(4), spaces.Discrete(4), **given)


def labelled_data() -> LabelledData:
    return LabelledData(
        features=uniform(12, 2),
        labels=np.arange(12) % 3,
        class_names=("one", "two", "three"),
        feature_names=("x", "y"),
        hierarchy={"small": ["one", "two"], "large": ["three"]},
        is_ordered=True,
        source="make.py",
    )


def demonstrations_file(data: Callable[[], Any], *, is_folder: bool = False) -> File:
    name = "demonstrations" if is_folder else "demonstrations.npz"

    def write(folder: Path) -> None:
        if is_folder:
            data().save_folder(folder / name)
        else:
            data().save(folder / name)

    def read(folder: Path) -> Demonstrations:
        found = load_demonstrations(folder / name)
        expected = data()
        assert (found.observation_space, found.action_space) == (expected.observation_space, expected.action_space)
        assert dict(found.metadata) == dict(expected.metadata)
        assert (found.infos is None) == (expected.infos is None)
        assert found.infos is None or [*map(dict, found.infos)] == [*map(dict, expected.infos)]
        return found

    fields = ("observations", "actions", "episode_ends", "next_observations", "rewards", "terminations", "truncations")
    more = ("action_masks", "weights", "groups", "action_probs")
    return File(
        write,
        read,
        kept=lambda found: of_arrays({field: getattr(found, field) for field in (*fields, *more)}),
        answers=lambda found: {"lengths": torch.as_tensor(found.episode_lengths())},
    )


OBSERVED = ("observations", "next_observations", "episode_ends", "action_masks", "weights")


def observation_only() -> ObservationOnly:
    return ObservationOnly.from_demonstrations(box_data())


def read_labelled(folder: Path) -> LabelledData:
    found, expected = load_labelled(folder / "data.npz"), labelled_data()
    for name in ("class_names", "feature_names", "hierarchy", "is_ordered", "source"):
        assert getattr(found, name) == getattr(expected, name), name
    return found


FILES: dict[str, File] = {
    "demonstrations_masks": demonstrations_file(masked_data),
    "demonstrations_soft": demonstrations_file(soft_data),
    "demonstrations_box": demonstrations_file(box_data),
    "demonstrations_dict": demonstrations_file(dict_data),
    "demonstrations_folder_box": demonstrations_file(lambda: replace(box_data(), infos=None), is_folder=True),
    "demonstrations_folder_masks": demonstrations_file(masked_data, is_folder=True),
    "demonstrations_folder_dict": demonstrations_file(dict_data, is_folder=True),
    "observation_only": File(
        write=lambda folder: observation_only().save(folder / "data.npz"),
        read=lambda folder: ObservationOnly.load(folder / "data.npz"),
        kept=lambda found: of_arrays({name: getattr(found, name) for name in OBSERVED}),
        answers=lambda found: {"episodes": torch.tensor(found.num_episodes)},
    ),
    "labelled_data": File(
        write=lambda folder: labelled_data().save(folder / "data.npz"),
        read=read_labelled,
        kept=lambda found: of_arrays({"features": found.features, "labels": found.labels}),
        answers=lambda found: {"counts": torch.as_tensor(found.class_counts())},
    ),
}
