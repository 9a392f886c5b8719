"""The set that ships: what its documentation promises, and that the real environment agrees with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import rlsmooth.data
from rlsmooth.data import Demonstrations, cartpole_v1, cartpole_v1_noisy, load_demonstrations

FILE = Path(rlsmooth.data.__file__).with_name("cartpole_v1.npz")


def test_every_episode_is_an_experts() -> None:
    demonstrations = cartpole_v1()
    assert demonstrations.num_episodes == 24
    assert demonstrations.episode_returns().tolist() == [500.0] * 24
    ends = demonstrations.episode_ends - 1
    assert np.asarray(demonstrations.truncations)[ends].all()
    assert not np.asarray(demonstrations.terminations).any()
    with gym.make("CartPole-v1") as env:
        assert demonstrations.observation_space == env.observation_space
        assert demonstrations.action_space == env.action_space
    first = np.asarray(demonstrations.observations)[demonstrations.episode_starts]
    assert len(np.unique(first, axis=0)) == 24  # no episode twice


def test_the_file_is_small_and_says_where_it_comes_from() -> None:
    assert FILE.stat().st_size < 250_000
    metadata = cartpole_v1().metadata
    assert metadata["env_id"] == "CartPole-v1"
    assert metadata["command"].startswith("rlsmooth record --n-timesteps 100000")
    assert metadata["expert"]["evaluation"]["deterministic"]["mean_return"] == 500
    assert metadata["expert"]["evaluation"]["deterministic"]["n_episodes"] == 100
    assert {"gymnasium", "numpy", "python", "rlsmooth", "stable-baselines3", "torch"} == set(metadata["versions"])


def test_replaying_the_actions_gives_the_recorded_observations() -> None:
    """Environment i of 8 was seeded with `seed + i`, and its first episode is number 3 i: 24 episodes of 8."""
    demonstrations = cartpole_v1()
    assert demonstrations.metadata["n_envs"] == 8
    for number in (0, 7):
        env = gym.make("CartPole-v1")
        observation, _ = env.reset(seed=demonstrations.metadata["seed"] + number)
        episode = demonstrations.select_episodes([3 * number])[:]
        assert episode.next_observations is not None
        for row in range(len(episode)):
            np.testing.assert_allclose(observation, episode.observations[row], rtol=1e-5, atol=1e-6)  # type: ignore[index, call-overload]
            observation, _, terminated, truncated, _ = env.step(int(episode.actions[row]))
            np.testing.assert_allclose(observation, episode.next_observations[row], rtol=1e-5, atol=1e-6)  # type: ignore[index, call-overload]
            assert (terminated or truncated) == (row == 499)
        env.close()


def test_the_noisy_variant_is_small_noisy_and_fixed_by_its_seed() -> None:
    noisy = cartpole_v1_noisy(n_episodes=4, p=0.25, seed=3)
    clean = cartpole_v1().sample_episodes(4, seed=3)
    assert np.array_equal(noisy.observations, clean.observations)  # type: ignore[arg-type]
    assert abs((np.asarray(noisy.actions) != np.asarray(clean.actions)).mean() - 0.25) < 0.03
    assert np.array_equal(noisy.actions, cartpole_v1_noisy(n_episodes=4, p=0.25, seed=3).actions)
    default = cartpole_v1_noisy()
    assert (default.num_episodes, default.metadata["action_noise"]["p"]) == (1, 0.3)
    with pytest.raises(ValueError, match="n_episodes=25"):
        cartpole_v1_noisy(25)


def test_sets_are_found_by_name_and_by_path(tmp_path: Path) -> None:
    assert len(load_demonstrations("cartpole-v1")) == 12_000
    assert len(load_demonstrations("cartpole-v1-noisy")) == 500
    assert len(load_demonstrations(FILE)) == 12_000
    few = cartpole_v1().select_episodes([0])
    few.save(tmp_path / "few.npz")
    few.save_folder(tmp_path / "few")
    for path in (tmp_path / "few.npz", str(tmp_path / "few")):
        assert len(load_demonstrations(path)) == 500


def test_next_observations_were_not_stored_twice() -> None:
    read = Demonstrations.load(FILE)
    assert np.asarray(read.next_observations).shape == (12_000, 4)
    with np.load(FILE) as data:
        assert data["final_observations"].shape == (24, 4)
        assert "next_observations" not in data
        assert data["actions"].dtype == np.uint8


def test_importing_the_package_loads_no_framework() -> None:
    heavy = ("minari", "pyarrow", "stable_baselines3", "torch")
    code = f"import sys, rlsmooth.data; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
