"""SB3's buffers, filled by hand and by SB3's own algorithms."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.buffers import DictReplayBuffer, DictRolloutBuffer, ReplayBuffer, RolloutBuffer
from stable_baselines3.common.vec_env import DummyVecEnv

from rlsmooth.data import Demonstrations

BOX = spaces.Box(0, 1000, (2,))
TWO = spaces.Discrete(2)
DICT = spaces.Dict({"box": BOX, "step": spaces.Discrete(1000)})


def fill(buffer: Any, steps: int, episode: int, *, truncates: bool = False) -> None:
    """Environment e shows (e, time); its episodes end whenever time + e is a multiple of `episode`, time going on."""
    n_envs = buffer.n_envs
    for time in range(steps):
        now = np.array([[env, time] for env in range(n_envs)], np.float32)
        done = (time + 1 + np.arange(n_envs)) % episode == 0
        infos = [{"TimeLimit.truncated": bool(flag and truncates)} for flag in done]
        actions = (np.arange(n_envs) + time) % 2
        buffer.add(observe(buffer, now), observe(buffer, now + np.array([0, 1])), actions, now[:, 1], done, infos)


def observe(buffer: Any, now: Any) -> Any:
    return {"box": now, "step": now[:, 1].astype(int)} if isinstance(buffer.observation_space, spaces.Dict) else now


def rows_of(demonstrations: Demonstrations) -> list[list[float]]:
    observations = demonstrations.observations
    return np.asarray(observations["box"] if isinstance(observations, dict) else observations).tolist()  # type: ignore[no-any-return]


def test_a_replay_buffer_that_is_not_full() -> None:
    buffer = ReplayBuffer(40, BOX, TWO, n_envs=2)
    fill(buffer, 5, episode=3)
    read = Demonstrations.from_replay_buffer(buffer)
    assert rows_of(read) == [[env, time] for env in range(2) for time in range(5)]
    assert np.asarray(read.next_observations).tolist() == [[env, time + 1] for env in range(2) for time in range(5)]
    # Environment 0 ends at time 2, environment 1 at times 1 and 4; what is left of environment 0 is cut off.
    assert read.episode_ends.tolist() == [3, 5, 7, 10]
    assert np.flatnonzero(read.terminations).tolist() == [2, 6, 9]  # type: ignore[arg-type]
    assert not np.any(read.truncations)  # type: ignore[arg-type]
    assert np.asarray(read.actions).tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    assert read.episode_returns().tolist() == [0 + 1 + 2, 3 + 4, 0 + 1, 2 + 3 + 4]


@pytest.mark.parametrize("steps", [10, 13, 20, 27])
def test_a_full_replay_buffer_is_put_in_time_order(steps: int) -> None:
    buffer = ReplayBuffer(20, BOX, TWO, n_envs=2)  # 10 rows an environment
    fill(buffer, steps, episode=4, truncates=True)
    read = Demonstrations.from_replay_buffer(buffer)
    times = range(steps - 10, steps)
    assert rows_of(read) == [[env, time] for env in range(2) for time in times]
    ends = [(time + 1 + env) % 4 == 0 for env in range(2) for time in times]
    assert np.asarray(read.truncations).tolist() == ends
    assert not np.any(read.terminations)  # type: ignore[arg-type]
    expected = {row + 1 for row, end in enumerate(ends) if end} | {10, 20}
    assert read.episode_ends.tolist() == sorted(expected)


@pytest.mark.parametrize("steps", [7, 10, 14])
def test_a_memory_saving_buffer_leaves_out_its_overwritten_row(steps: int) -> None:
    buffer = ReplayBuffer(10, BOX, TWO, optimize_memory_usage=True, handle_timeout_termination=False)
    fill(buffer, steps, episode=4)
    read = Demonstrations.from_replay_buffer(buffer)
    times = range(7) if steps == 7 else range(steps - 9, steps)
    assert rows_of(read) == [[0, time] for time in times]
    assert np.asarray(read.actions).tolist() == [time % 2 for time in times]  # each still beside its own observation
    assert read.next_observations is None
    assert read.terminations is None
    assert read.truncations is None
    assert read.episode_lengths().sum() == len(times)


def test_dict_and_discrete_observations() -> None:
    buffer = DictReplayBuffer(20, DICT, TWO, n_envs=2)
    fill(buffer, 13, episode=4)
    read = Demonstrations.from_replay_buffer(buffer)
    assert isinstance(read.observations, dict)
    assert rows_of(read) == [[env, time] for env in range(2) for time in range(3, 13)]
    assert np.asarray(read.observations["step"]).tolist() == [*range(3, 13), *range(3, 13)]


@pytest.mark.parametrize("space", [spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(2)])
def test_factored_actions(space: spaces.Space[Any]) -> None:
    buffer = ReplayBuffer(8, BOX, space, n_envs=2)
    now = np.zeros((2, 2), np.float32)
    buffer.add(now, now, np.array([[0, 1], [1, 0]]), np.zeros(2), np.zeros(2), [{}, {}])
    assert np.asarray(Demonstrations.from_replay_buffer(buffer).actions).tolist() == [[0, 1], [1, 0]]


class Ramp(gym.Env[Any, Any]):
    """The reward is the first action, so that a buffer's actions can be checked against what the environment got."""

    observation_space = spaces.Box(-100, 100, (1,))
    action_space = spaces.Box(np.array([0, -5], np.float32), np.array([10, 1], np.float32))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.step_number = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.step_number += 1
        return np.full(1, self.step_number, np.float32), float(action[0]), False, self.step_number == 4, {}


def test_sacs_scaled_actions_are_put_back_between_the_bounds() -> None:
    agent = SAC("MlpPolicy", DummyVecEnv([Ramp, Ramp]), learning_starts=1000, buffer_size=100, seed=0, device="cpu")
    agent.learn(22)
    assert agent.replay_buffer is not None
    read = Demonstrations.from_replay_buffer(agent.replay_buffer)
    np.testing.assert_allclose(np.asarray(read.actions)[:, 0], np.asarray(read.rewards), rtol=1e-5)
    assert np.asarray(read.actions).max() > 2  # not the stored [-1, 1]
    assert read.episode_lengths().tolist() == [4, 4, 3, 4, 4, 3]
    assert np.flatnonzero(read.truncations).tolist() == [3, 7, 14, 18]  # type: ignore[arg-type]
    assert np.asarray(read.next_observations)[[3, 7]].tolist() == [[4], [4]]  # final, not that of the restart
    raw = ReplayBuffer(4, Ramp.observation_space, Ramp.action_space)
    raw.add(np.zeros(1), np.zeros(1), np.array([3.0, -4]), np.zeros(1), np.zeros(1), [{}])
    assert np.asarray(Demonstrations.from_replay_buffer(raw, actions_are_scaled=False).actions).tolist() == [[3, -4]]


def fill_rollout(buffer: Any, steps: int, episode: int) -> None:
    start = np.ones(buffer.n_envs)
    for time in range(steps):
        now = np.array([[env, time] for env in range(buffer.n_envs)], np.float32)
        actions = (np.arange(buffer.n_envs) + time) % 2
        zeros = torch.zeros(buffer.n_envs)
        buffer.add(observe(buffer, now), actions, now[:, 1], start, zeros, zeros)
        start = ((time + 1 + np.arange(buffer.n_envs)) % episode == 0).astype(float)


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("kind", [RolloutBuffer, DictRolloutBuffer])
def test_a_rollout_buffer_before_and_after_training_used_it(kind: Any, used: bool) -> None:
    buffer = kind(6, DICT if kind is DictRolloutBuffer else BOX, TWO, n_envs=2, device="cpu")
    fill_rollout(buffer, 6, episode=4)
    if used:
        next(buffer.get(4))  # flattens some of the arrays in place
    read = Demonstrations.from_rollout_buffer(buffer)
    assert rows_of(read) == [[env, time] for env in range(2) for time in range(6)]
    assert np.asarray(read.actions).tolist() == [0, 1, 0, 1, 0, 1, 1, 0, 1, 0, 1, 0]
    assert np.asarray(read.rewards).tolist() == [*range(6), *range(6)]
    assert read.episode_ends.tolist() == [4, 6, 9, 12]
    assert read.next_observations is None
    assert read.terminations is None


def test_a_rollout_buffer_that_is_not_full() -> None:
    buffer = RolloutBuffer(6, BOX, TWO, n_envs=2, device="cpu")
    fill_rollout(buffer, 3, episode=2)
    read = Demonstrations.from_rollout_buffer(buffer)
    assert rows_of(read) == [[env, time] for env in range(2) for time in range(3)]
    assert read.episode_ends.tolist() == [2, 3, 4, 6]


def test_ppos_box_actions_are_those_that_the_environment_got() -> None:
    agent = PPO("MlpPolicy", DummyVecEnv([Ramp, Ramp]), n_steps=8, batch_size=16, seed=0, device="cpu", gamma=0.0)
    agent.learn(16)
    read = Demonstrations.from_rollout_buffer(agent.rollout_buffer)
    stored = agent.rollout_buffer.actions.reshape(2, 8, 2)[:, :, 0].reshape(-1)
    assert (stored < 0).any()  # SB3 stores them unclipped
    np.testing.assert_allclose(np.asarray(read.actions)[:, 0], np.asarray(read.rewards), rtol=1e-5)
    assert read.episode_lengths().tolist() == [4, 4, 4, 4]


class Masked(gym.Env[Any, Any]):
    observation_space = spaces.Discrete(3)
    action_space = spaces.Discrete(3)

    def action_masks(self) -> Any:
        return np.arange(3) >= self.state

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = 0
        return self.state, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.state = (self.state + 1) % 3
        return self.state, 0.0, self.state == 0, False, {}


def test_maskable_buffers_bring_their_masks() -> None:
    contrib = pytest.importorskip("sb3_contrib")
    agent = contrib.MaskablePPO(
        "MlpPolicy", DummyVecEnv([Masked, Masked]), n_steps=8, batch_size=16, seed=0, device="cpu"
    )
    agent.learn(16)
    read = Demonstrations.from_rollout_buffer(agent.rollout_buffer)
    assert np.array_equal(read.action_masks, np.arange(3) >= np.asarray(read.observations)[:, None])  # type: ignore[arg-type]
    assert read.episode_lengths().tolist() == [3, 3, 2, 3, 3, 2]


def test_what_is_no_filled_buffer_is_refused() -> None:
    replay, rollout = ReplayBuffer(4, BOX, TWO), RolloutBuffer(4, BOX, TWO)
    with pytest.raises(ValueError, match="the buffer is empty"):
        Demonstrations.from_replay_buffer(replay)
    with pytest.raises(ValueError, match="the buffer is empty"):
        Demonstrations.from_rollout_buffer(rollout)
    with pytest.raises(TypeError, match="must be an SB3 ReplayBuffer, got RolloutBuffer"):
        Demonstrations.from_replay_buffer(rollout)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be an SB3 RolloutBuffer, got ReplayBuffer"):
        Demonstrations.from_rollout_buffer(replay)  # type: ignore[arg-type]
