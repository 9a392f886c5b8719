"""Deep sea against an independent statement of its rules, played side by side, and against exhaustive search."""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import SyncVectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv

from rlsmooth.envs import DeepSeaEnv


def play_by_the_definition(
    size: int, actions: NDArray[np.int64], mapping_seed: int, move_cost: float
) -> tuple[list[tuple[int, int]], list[float]]:
    """Cells before each step and rewards, by the rules as the paper tells them, on a lattice of horizontal places.

    Osband et al. 2020, appendix A.7: N x N cells, start top left, each step descends; the treasure of 1 lies bottom
    right and moving right costs 0.01 / N; which action means right differs from state to state.
    """
    means_right = np.random.RandomState(mapping_seed).binomial(1, 0.5, [size, size])
    place, cells, rewards = 0, [], []
    for depth, action in enumerate(actions):
        cells.append((depth, place))
        if action == means_right[depth][place]:
            rewards.append(float(place == size - 1) - move_cost / size)
            place += place < size - 1
        else:
            rewards.append(0.0)
            place -= place > 0
    return cells, rewards


@pytest.mark.parametrize("size", range(5, 51))
def test_random_play_is_the_definitions(size: int) -> None:
    rng = np.random.default_rng(size)
    env = DeepSeaEnv(size, mapping_seed=size % 3, unscaled_move_cost=0.01)
    right = np.random.RandomState(size % 3).binomial(1, 0.5, [size, size])
    for episode in range(60):
        actions = rng.integers(2, size=size)
        if episode % 3 == 1:  # a uniform policy never sees the treasure at these sizes
            actions = right.diagonal().copy()
        elif episode % 3 == 2:  # leaving the diagonal now and then
            actions = np.where(rng.random(size) < 1 / size, 1 - right.diagonal(), right.diagonal())
        cells, rewards = play_by_the_definition(size, actions, size % 3, 0.01)
        observation, info = env.reset(seed=episode)
        for step, (action, (row, column), reward) in enumerate(zip(actions, cells, rewards, strict=True)):
            expected = np.zeros((size, size), dtype=np.float32)
            expected[row, column] = 1
            assert observation.dtype == np.float32
            assert np.array_equal(observation, expected.ravel())
            assert info == {}
            observation, paid, terminated, truncated, info = env.step(action)
            assert paid == reward
            assert (terminated, truncated) == (step == size - 1, False)
        assert not observation.any()
        assert info == {"is_bad_episode": any(row != column for row, column in cells) or rewards[-1] < 0.5}


def test_the_grid_is_the_flat_observation_in_rows() -> None:
    flat, grid = DeepSeaEnv(6), DeepSeaEnv(6, observation="grid")
    pairs = [(flat.reset()[0], grid.reset()[0])]
    pairs += [(flat.step(action)[0], grid.step(action)[0]) for action in (0, 1, 1, 0, 1, 1)]
    for one, other in pairs:
        assert other.shape == (6, 6)
        assert np.array_equal(one, other.ravel())
    assert flat.expert_action(pairs[0][0]) == grid.expert_action(pairs[0][1])


def test_without_random_actions_one_goes_right() -> None:
    env = DeepSeaEnv(5, randomize_actions=False)
    env.reset()
    assert [env.step(1)[1] for _ in range(5)] == [*[-0.01 / 5] * 4, 1 - 0.01 / 5]


def test_the_mapping_is_that_of_its_seed_or_another_each_time() -> None:
    expected = np.random.RandomState(42).binomial(1, 0.5, (10, 10))
    assert np.array_equal(DeepSeaEnv().action_mapping, expected)
    assert not np.array_equal(DeepSeaEnv(mapping_seed=1).action_mapping, expected)
    first, second = (DeepSeaEnv(20, mapping_seed=None) for _ in range(2))  # alike by chance once in 2^400
    assert not np.array_equal(first.action_mapping, second.action_mapping)


@pytest.mark.parametrize("move_cost", [0.0, 0.01, 0.6, 1.7])
def test_optimal_return_is_the_best_of_all_action_sequences(move_cost: float) -> None:
    env = DeepSeaEnv(7, unscaled_move_cost=move_cost)
    returns = [
        sum(play_by_the_definition(7, np.array(actions), 42, move_cost)[1])
        for actions in itertools.product((0, 1), repeat=7)
    ]
    assert env.optimal_return() == pytest.approx(max(returns), abs=1e-12)


@pytest.mark.parametrize("size", [3, 5, 10])
@pytest.mark.parametrize("move_cost", [0.01, 0.9])
def test_optimal_return_of_the_windy_form_is_that_of_dynamic_programming(size: int, move_cost: float) -> None:
    # Over all cells, where the closed form looks at the diagonal only; the noise has mean 0
    values = np.zeros(size)
    for row in reversed(range(size)):
        after, fail = (np.zeros(size) if row == size - 1 else values), 1 / size
        onward = np.append(after[1:], after[-1])
        right = (1 - fail) * onward + fail * after - move_cost / size + (np.arange(size) == size - 1)
        values = np.maximum(right, np.append(after[:1], after[:-1]))
    env = DeepSeaEnv(size, deterministic=False, unscaled_move_cost=move_cost)
    assert env.optimal_return() == pytest.approx(values[0], abs=1e-12)


def returns_of(env: DeepSeaEnv, episodes: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Returns of going right everywhere, and columns before the last step."""
    returns, columns = np.zeros(episodes), np.zeros(episodes, dtype=np.int64)
    for episode in range(episodes):
        observation, _ = env.reset(seed=0 if episode == 0 else None)
        over = False
        while not over:
            columns[episode] = observation.argmax() % env.size
            observation, reward, over, _, _ = env.step(env.expert_action(observation))
            returns[episode] += reward
    return returns, columns


def test_the_windy_form_fails_and_is_noisy_as_often_as_the_definition_says() -> None:
    size, episodes = 5, 4000
    returns, columns = returns_of(DeepSeaEnv(size, deterministic=False), episodes)
    arrived = columns == size - 1
    chance = (1 - 1 / size) ** (size - 1)
    assert abs(arrived.mean() - chance) < 4 * np.sqrt(chance * (1 - chance) / episodes)
    error = 4 / np.sqrt(arrived.sum())
    assert abs(returns[arrived].mean() - 0.99) < error
    assert abs(returns[arrived].std() - 1.0) < error
    between = ~arrived & (columns > 0)
    assert returns[between] == pytest.approx(np.full(between.sum(), -0.01), abs=1e-12)


def test_one_seed_gives_one_stream() -> None:
    first, again = (returns_of(DeepSeaEnv(5, deterministic=False), 20)[0] for _ in range(2))
    assert np.array_equal(first, again)


def test_vector_environments_see_a_termination() -> None:
    vector = SyncVectorEnv([lambda: gym.make("rlsmooth/DeepSea-v0", size=5)] * 2)
    vector.reset(seed=0)
    ends = [vector.step(vector.action_space.sample())[2] for _ in range(5)]
    assert np.array_equal(np.stack(ends), [[False] * 2] * 4 + [[True] * 2])
    dummy = DummyVecEnv([lambda: gym.make("rlsmooth/DeepSea-v0", size=5)] * 2)
    dummy.reset()
    for _ in range(5):
        _, _, dones, infos = dummy.step(np.array([0, 1]))
    assert dones.all()
    assert not any(info["TimeLimit.truncated"] for info in infos)
    assert all(not info["terminal_observation"].any() for info in infos)


def test_the_picture_shows_the_diver_and_the_treasure() -> None:
    env = DeepSeaEnv(4, render_mode="rgb_array", randomize_actions=False)
    env.reset()
    env.step(1)
    picture = env.render()
    assert picture.shape == (64, 64, 3)
    middles = picture[8::16, 8::16].astype(int)
    assert np.argwhere((middles == 255).all(axis=-1)).tolist() == [[1, 1]]
    assert np.argwhere(middles.sum(axis=-1) > 0).tolist() == [[1, 1], [3, 3]]


def test_without_a_render_mode_there_is_a_warning_and_no_picture() -> None:
    with pytest.warns(UserWarning, match="render mode"):
        assert DeepSeaEnv(4).render() is None


def test_a_step_out_of_turn_and_wrong_actions_are_errors() -> None:
    env = DeepSeaEnv(2)
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(0)
    env.reset()
    with pytest.raises(ValueError, match="action 2 is out of range"):
        env.step(2)
    with pytest.raises(TypeError, match="whole numbers"):
        env.step(0.5)  # type: ignore[arg-type]
    env.step(0)
    env.step(0)
    with pytest.raises(ResetNeeded):
        env.step(0)
    with pytest.raises(ValueError, match="one-hot code of a cell"):
        env.expert_action(np.zeros(4, dtype=np.float32))
    with pytest.raises(ValueError, match=r"shape \(1, 4\)"):
        env.expert_action(np.array([[1, 0, 0, 0]], dtype=np.float32))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"size": 1}, ValueError, "size=1 must be at least 2"),
        ({"size": 2.5}, TypeError, "size must be a whole number"),
        ({"unscaled_move_cost": -0.1}, ValueError, "unscaled_move_cost"),
        ({"mapping_seed": -1}, ValueError, "mapping_seed=-1"),
        ({"observation": "image"}, ValueError, "observation='image'"),
        ({"render_mode": "human"}, ValueError, "render_mode='human'"),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DeepSeaEnv(**arguments)
