"""Boxes of any width, place and number of bounds are cloned as well as [-1, 1], and policies answer in their units."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy

from rlsmooth.agents import BC, DAgger, InverseDynamics, SmoothedPPO, load_agent
from rlsmooth.data import Demonstrations
from support import KillAt, KilledError, mostly_slow, recorded, same_parameters

OBSERVATION = spaces.Box(-1.0, 1.0, (1,))
EPISODES, LENGTH = 8, 250

BOXES = {
    "about [-1, 1]": ([-1], [1]),
    "far": ([300], [500]),
    "wide": ([0], [1e5]),
    "narrow": ([-1e-3], [1e-3]),
    "far and narrow": ([1e5], [1e5 + 10]),
    "of sizes that differ by 1e6": ([-1, -1e6, 300], [1, 1e6, 300.5]),
    "without bounds": ([-np.inf, -np.inf], [np.inf, np.inf]),
    "with some bounds": ([-1e-3, 0, -np.inf], [1e-3, np.inf, 5]),
}


class RandomStates(gym.Env[Any, Any]):
    """Observations of `[-1, 1]` that no action changes, and any Box of actions."""

    observation_space = OBSERVATION

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        self.action_space = action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.steps += 1
        return self._observe(), 0.0, False, self.steps == 50, {}

    def _observe(self) -> Any:
        return self.np_random.uniform(-1, 1, 1).astype(np.float32)


def expert(box: str, *, noise: float = 0.0) -> tuple[Demonstrations, Any]:
    """Demonstrations of `middle + 0.9 · half · observation`, and the width of each dimension."""
    low, high = (np.asarray(bound, dtype=np.float64) for bound in BOXES[box])
    has_bounds = np.isfinite(low) & np.isfinite(high)
    with np.errstate(invalid="ignore"):
        middle = np.where(has_bounds, (low + high) / 2, [400.0, 5e4, -7e3][: len(low)])
        half = np.where(has_bounds, (high - low) / 2, [100.0, 5e3, 70.0][: len(low)])
    rng = np.random.default_rng(0)
    observations = rng.uniform(-1, 1, (EPISODES * LENGTH, 1)).astype(np.float32)
    normal = np.clip(0.9 * observations + noise * rng.normal(size=(len(observations), len(low))), -1, 1)
    actions = middle + half * normal
    space = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
    ends = np.arange(LENGTH, len(observations) + 1, LENGTH)
    return recorded(observations, actions.astype(np.float32), OBSERVATION, space, ends), 2 * half


def error(model: Any, data: Demonstrations, width: Any) -> float:
    """The largest mean error of a dimension, as a share of its width."""
    actions, _ = model.predict(np.asarray(data.observations), deterministic=True)
    return float((np.abs(actions - data.actions).mean(0) / width).max())


@pytest.mark.parametrize("box", mostly_slow(BOXES, "far", "of sizes that differ by 1e6", "with some bounds"))
def test_any_box_is_cloned_to_one_percent_of_its_width(box: str, tmp_path: Path) -> None:
    data, width = expert(box)
    agent = BC("MlpPolicy", None, data, smoothing=0, seed=0, device="cpu").learn(total_epochs=25)
    assert error(agent, data, width) < 0.01
    # What Stable-Baselines3 and files see answers in the environment's units.
    if box != "with some bounds":
        assert error(agent.policy, data, width) < 0.01
    agent.save(tmp_path / "agent.zip")
    agent.policy.save(str(tmp_path / "policy.zip"))
    loaded = load_agent(tmp_path / "agent.zip", device="cpu")
    assert error(loaded, data, width) == error(agent, data, width)
    assert error(ActorCriticPolicy.load(str(tmp_path / "policy.zip"), device="cpu"), data, width) < 0.01


@pytest.mark.parametrize("box", ["narrow", "of sizes that differ by 1e6"])
def test_bins_are_half_a_bin_off(box: str) -> None:
    data, width = expert(box)
    agent = BC("MlpPolicy", None, data, smoothing=0, action_bins=64, learning_rate="lin_1e-2", seed=0, device="cpu")
    agent.learn(total_epochs=20)
    assert error(agent, data, width) < 0.01


@pytest.mark.parametrize(
    "arguments", [{}, {"smoothing": 0.1}, {"l2_coef": 0.01}, {"max_grad_norm": 0.1}, {"kl_coef": 1.0}]
)
def test_it_is_training_on_normalised_actions(arguments: dict[str, Any]) -> None:
    """The same as a clone of `(action - 40) / 4`; scale and shift are such that hardly anything is rounded."""
    data, _ = expert("about [-1, 1]", noise=0.1)
    moved = data.replace_unchecked(
        actions=40 + 4 * np.asarray(data.actions), action_space=spaces.Box(36.0, 44.0, (1,), np.float32)
    )
    normal, scaled = (
        BC("MlpPolicy", None, one, seed=0, device="cpu", **arguments).learn(total_batches=60) for one in (data, moved)
    )
    observations = torch.linspace(-1, 1, 50).unsqueeze(1)
    with torch.no_grad():
        one, other = (agent.policy.get_distribution(observations).distribution for agent in (normal, scaled))
    torch.testing.assert_close(other.mean, 40 + 4 * one.mean, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(other.stddev, 4 * one.stddev, rtol=1e-4, atol=0)
    found, expected = scaled.measures.training(1.0), normal.measures.training(1.0)
    assert found["nll_hard"] - np.log(4) == pytest.approx(expected["nll_hard"], abs=1e-3)


def test_a_run_on_a_far_box_resumes_to_the_same_bits(tmp_path: Path) -> None:
    data, _ = expert("far")

    def start(folder: Path) -> BC:
        arguments: dict[str, Any] = {"seed": 0, "device": "cpu", "checkpoint_folder": folder, "checkpoint_every": 30}
        return BC("MlpPolicy", None, data, **arguments)

    whole = start(tmp_path / "whole").learn(total_batches=100)
    with pytest.raises(KilledError):
        start(tmp_path / "cut").learn(total_batches=100, callback=KillAt(70))
    resumed = BC.resume(tmp_path / "cut", None, data, device="cpu").learn(total_batches=100)
    assert same_parameters(whole, resumed)


def test_the_initial_policy_lies_in_the_middle_of_the_box() -> None:
    data, _ = expert("of sizes that differ by 1e6")
    agent = BC("MlpPolicy", None, data, seed=0, device="cpu")
    plain = BC("MlpPolicy", None, data, seed=0, device="cpu", policy_kwargs={"log_std_init": -3.0})
    middle, half = np.array([0.0, 0.0, 300.25]), np.array([1.0, 1e6, 0.25])
    observations = torch.linspace(-1, 1, 20).unsqueeze(1)
    with torch.no_grad():
        normal = agent.policy.get_distribution(observations).distribution
    assert (np.abs(normal.mean.numpy() - middle) < 0.1 * half).all()
    np.testing.assert_allclose(normal.stddev[0].numpy(), half, rtol=1e-5)
    assert plain.policy.log_std.unique().tolist() == [-3.0]  # the user's own number
    given = ActorCriticPolicy(OBSERVATION, data.action_space, lambda _: 1e-3)
    before = {name: value.clone() for name, value in given.state_dict().items()}
    after = BC(given, None, data, seed=0, device="cpu").policy.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)  # a policy that was given is not moved


def test_ppo_starts_where_the_clone_ended(tmp_path: Path) -> None:
    data, width = expert("far")
    agent = BC("MlpPolicy", None, data, smoothing=0, seed=0, device="cpu").learn(total_epochs=25)
    env = RandomStates(data.action_space)
    plain = PPO("MlpPolicy", env, n_steps=32, batch_size=32, seed=0, device="cpu")
    agent.warm_start(plain)
    started = SmoothedPPO.from_bc(agent, env, n_steps=32, batch_size=32, seed=0, device="cpu")
    for model in (plain, started):
        assert error(model, data, width) == error(agent, data, width)
        model.learn(64)
        assert error(model, data, width) < 0.05  # small steps away from there, not a leap
    plain.save(tmp_path / "ppo.zip")
    loaded = PPO.load(tmp_path / "ppo.zip", device="cpu")
    assert error(loaded, data, width) == error(plain, data, width)


@pytest.mark.parametrize("box", ["far", "narrow"])
def test_dagger_learns_any_box(box: str) -> None:
    data, width = expert(box)
    space: Any = data.action_space
    middle, half = (space.low + space.high) / 2, (space.high - space.low) / 2
    env = RandomStates(space)
    agent = DAgger(
        "MlpPolicy", env, lambda observations: middle + 0.9 * half * observations, smoothing=0, seed=0, device="cpu"
    )
    agent.learn(total_timesteps=1_000)
    assert error(agent, data, width) < 0.01


@pytest.mark.parametrize("box", ["far", "narrow"])
def test_actions_of_any_box_are_inferred(box: str) -> None:
    """Where an action moves the observation by what it is in normalised units."""
    data, width = expert(box)
    space: Any = data.action_space
    normal = (np.asarray(data.actions) - (space.low + space.high) / 2) / (width / 2)
    seen = data.replace_unchecked(next_observations=(np.asarray(data.observations) + 0.1 * normal).astype(np.float32))
    model = InverseDynamics(OBSERVATION, space, smoothing=0, seed=0, device="cpu", max_epochs=25).fit(seen)
    found = model.predict(seen.observations, seen.next_observations)
    assert float((np.abs(found - data.actions).mean(0) / width).max()) < 0.01
