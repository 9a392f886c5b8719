"""A reward or observation that is not finite never replaces a good checkpoint, whatever algorithm is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from rlsmooth.agents import (
    GAIL,
    ExactCheckpointCallback,
    SmoothedA2C,
    SmoothedPPO,
    TrainingDivergedError,
    load_checkpoint,
    save_agent,
)
from rlsmooth.data import cartpole_v1

FIRST = 150
ON, OFF = {"n_steps": 32, "batch_size": 32}, {"learning_starts": 20}


class Spoilt(gym.Wrapper[Any, Any, Any, Any]):
    """Gives `value` as a reward, or in the observation, from step `FIRST` on."""

    def __init__(self, env: str, what: str, value: float) -> None:
        super().__init__(gym.make(env))
        self.what, self.value, self.steps = what, value, 0

    def step(self, action: Any) -> Any:
        observation, reward, *rest = self.env.step(action)
        self.steps += 1
        if self.steps >= FIRST and self.what == "reward":
            reward = self.value
        elif self.steps >= FIRST:
            observation = np.where(np.arange(len(observation)) == 0, np.float32(self.value), observation)
        return observation, reward, *rest


def is_finite(module: torch.nn.Module) -> bool:
    return all(bool(value.isfinite().all()) for value in module.state_dict().values())


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("what", ["reward", "observation"])
@pytest.mark.parametrize(
    ("algorithm", "env", "arguments"),
    [
        (SmoothedPPO, "CartPole-v1", ON),
        (SmoothedA2C, "CartPole-v1", {}),
        (PPO, "CartPole-v1", ON),
        (A2C, "CartPole-v1", {}),
        (DQN, "CartPole-v1", OFF),
        (SAC, "Pendulum-v1", OFF),
    ],
)
def test_the_last_checkpoint_stays_good(
    tmp_path: Path, algorithm: Any, env: str, arguments: dict[str, Any], what: str, value: float
) -> None:
    model = algorithm("MlpPolicy", Spoilt(env, what, value), seed=0, device="cpu", **arguments)
    message = rf"stopped at step {FIRST}: environment 0 gave .*{what}.* {value}.*last good checkpoint stays in"
    with pytest.raises(TrainingDivergedError, match=message):
        model.learn(400, callback=ExactCheckpointCallback(32, tmp_path, keep=1))
    assert is_finite(model.policy)
    run = load_checkpoint(tmp_path, Spoilt(env, what, value), device="cpu")
    assert FIRST - 64 < run.model.num_timesteps < FIRST
    assert is_finite(run.model.policy)


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy's, while SB3 computes advantages
@pytest.mark.parametrize("algorithm", [SmoothedPPO, SmoothedA2C])
@pytest.mark.parametrize("normalised", [False, True])
def test_without_a_callback_the_policy_stays_good(algorithm: Any, normalised: bool) -> None:
    venv: Any = DummyVecEnv([lambda: Spoilt("CartPole-v1", "reward", -np.inf)] * 2)
    venv = VecNormalize(venv) if normalised else venv
    model = algorithm("MlpPolicy", venv, n_steps=32, seed=0, device="cpu")
    with pytest.raises(TrainingDivergedError, match=rf"stopped at step {2 * FIRST}: environment 0 gave the reward"):
        model.learn(800)
    assert is_finite(model.policy)


def test_a_reward_that_nothing_learns_from_does_not_matter(tmp_path: Path) -> None:
    generator = PPO("MlpPolicy", Spoilt("CartPole-v1", "reward", np.nan), n_steps=64, seed=0, device="cpu")
    trainer = GAIL(cartpole_v1(), generator, seed=0)
    trainer.learn(256, callback=ExactCheckpointCallback(64, tmp_path, keep=1))
    assert load_checkpoint(tmp_path, Spoilt("CartPole-v1", "reward", np.nan), device="cpu").model.num_timesteps == 256


def test_a_policy_that_diverged_replaces_nothing(tmp_path: Path) -> None:
    model = SmoothedPPO("MlpPolicy", "CartPole-v1", **ON, learning_rate=1e30, seed=0, device="cpu")
    message = r"stopped at step \d+: the policy's .* is not finite.*learning_rate"
    with pytest.raises(TrainingDivergedError, match=message):
        model.learn(400, callback=ExactCheckpointCallback(32, tmp_path / "run", keep=1))
    assert is_finite(load_checkpoint(tmp_path / "run", "CartPole-v1", device="cpu").model.policy)
    good = SmoothedPPO("MlpPolicy", "CartPole-v1", **ON, seed=0, device="cpu")
    path = save_agent(good, tmp_path / "agent.zip")
    before = path.read_bytes()
    with torch.no_grad():
        good.policy.action_net.weight[0, 0] = torch.nan
    with pytest.raises(TrainingDivergedError, match=r"action_net.weight is not finite, so nothing was written"):
        save_agent(good, path)
    assert path.read_bytes() == before
