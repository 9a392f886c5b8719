"""Normalised observations of environments whose own are whole numbers: stored and learned from as they were seen."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from rlsmooth.agents import SmoothedA2C, SmoothedMaskablePPO, SmoothedPPO, SmoothedRecurrentPPO

WHOLE = spaces.Box(0, 255, (3,), np.uint8)
KEYED = spaces.Dict({"grid": WHOLE, "far": spaces.Box(-9.0, 9.0, (2,)), "left": spaces.Box(0, 9, (1,), np.int64)})


def grid_of(state: int) -> np.ndarray[Any, Any]:
    return np.array([10 * state, 100 * (state == 1), 250 - 10 * state], np.uint8)


class WholeNumbers(gym.Env[Any, Any]):
    """A state of 0, 10 or 20, shown as whole numbers; right is the action that is a tenth of it."""

    action_space = spaces.Discrete(3)

    def __init__(self, *, keyed: bool = False) -> None:
        self.observation_space = KEYED if keyed else WHOLE

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.shown(), {}

    def shown(self) -> Any:
        self.state = int(self.np_random.integers(3))
        grid = grid_of(self.state)
        if self.observation_space is WHOLE:
            return grid
        far = self.np_random.normal(size=2).astype(np.float32)
        return {"grid": grid, "far": far, "left": np.array([3 * self.state], np.int64)}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        reward = float(action == self.state)
        return self.shown(), reward, False, self.steps == 8, {}

    def action_masks(self) -> np.ndarray[Any, Any]:
        return np.ones(3, np.bool_)


class Seen(BaseCallback):
    """Keeps what the environments showed at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def _on_rollout_start(self) -> None:
        self.seen = [self.model._last_obs]

    def _on_step(self) -> bool:
        self.seen.append(self.locals["new_obs"])
        return True


ALGORITHMS = {
    "PPO": (SmoothedPPO, {"n_steps": 16, "batch_size": 16}),
    "PPO, numpy": (SmoothedPPO, {"n_steps": 16, "batch_size": 16, "engine": "numpy"}),
    "A2C": (SmoothedA2C, {"n_steps": 16}),
    "masked": (SmoothedMaskablePPO, {"n_steps": 16, "batch_size": 16}),
    "recurrent": (SmoothedRecurrentPPO, {"n_steps": 16, "batch_size": 16}),
}


def built(name: str, *, keyed: bool = False, **more: Any) -> Any:
    kind, arguments = ALGORITHMS[name]
    envs = make_vec_env(WholeNumbers, 4, seed=0, env_kwargs={"keyed": keyed})
    policy = "MultiInput" if keyed else "Mlp"
    policy += "LstmPolicy" if name == "recurrent" else "Policy"
    keys = {"norm_obs_keys": ["grid"]} if keyed else {}
    return kind(policy, VecNormalize(envs, **keys), seed=0, device="cpu", **{**arguments, **more})


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_rollout_stores_what_the_policy_has_seen(name: str, smoothing: float) -> None:
    agent, looks = built(name, smoothing=smoothing), Seen()
    agent.learn(3 * 16 * 4, callback=looks)
    stored = agent.rollout_buffer.observations
    seen = np.stack(looks.seen[:-1])
    assert seen.dtype == np.float32
    assert seen.min() < -0.5  # whole numbers without a sign can't hold it
    # Once a buffer has been read, it lies environment by environment.
    flat = {tuple(row) for row in np.round(np.reshape(stored, (-1, 3)), 5).tolist()}
    assert flat == {tuple(row) for row in np.round(seen.reshape(-1, 3), 5).tolist()}
    assert agent.observation_space == WHOLE  # files and `set_env` know the environment's own


@pytest.mark.parametrize("name", ["PPO", "A2C", "masked", "recurrent"])
def test_of_a_dict_the_normalised_entries_are_stored_as_floats(name: str) -> None:
    agent, looks = built(name, keyed=True), Seen()
    agent.learn(2 * 16 * 4, callback=looks)
    stored = agent.rollout_buffer.observations
    assert {key: value.dtype for key, value in stored.items()} == {
        "grid": np.float32,
        "far": np.float32,
        "left": np.int64,  # not normalised
    }
    for key, value in stored.items():
        seen = np.stack([one[key] for one in looks.seen[:-1]])
        assert sorted(np.ravel(value).tolist()) == sorted(seen.ravel().tolist())


LONGER = [pytest.param(name, marks=pytest.mark.slow) for name in ("masked", "recurrent")]


@pytest.mark.parametrize("name", ["PPO", "PPO, numpy", "A2C", *LONGER])
def test_it_is_learned(name: str) -> None:
    more = {"n_steps": 32, "gamma": 0.0, "learning_rate": 0.003}
    if name != "A2C":
        more |= {"batch_size": 32, "n_epochs": 4}
    agent = built(name, **more)
    agent.learn(6_000)
    right = 0
    for state in range(3):
        shown = agent.get_vec_normalize_env().normalize_obs(grid_of(state)[None])
        right += int(agent.predict(shown, deterministic=True)[0][0]) == state
    assert right == 3


def test_whole_numbers_that_are_not_normalised_stay_so() -> None:
    envs = VecNormalize(make_vec_env(WholeNumbers, 4, seed=0), norm_obs=False)
    agent = SmoothedPPO("MlpPolicy", envs, n_steps=16, batch_size=16, seed=0, device="cpu")
    agent.learn(64)
    assert agent.rollout_buffer.observations.dtype == np.uint8
    assert torch.as_tensor(agent.rollout_buffer.observations).max() == 250
