"""One environment at a time: rewards, masks, observations, seeds, terminations, bad arguments, official checkers."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from gymnasium.vector import SyncVectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.vec_env import DummyVecEnv

import rlsmooth.envs
from rlsmooth.envs import (
    ENVIRONMENTS,
    DeepSeaEnv,
    IdentityBoxEnv,
    IdentityEnv,
    IdentityMaskedEnv,
    IdentityMaskedMultiBinaryEnv,
    IdentityMaskedMultiDiscreteEnv,
    IdentityMultiBinaryEnv,
    IdentityMultiDiscreteEnv,
    IdentityOrderedEnv,
    TabularEnv,
    register_environments,
)
from rlsmooth.envs.observations import ObservationForm
from rlsmooth.envs.registration import Entry
from support import assert_raises

FORMS: tuple[ObservationForm, ...] = ("native", "one_hot", "dict", "image")
MAKERS: list[Callable[..., Any]] = [
    IdentityEnv,
    IdentityOrderedEnv,
    IdentityMultiDiscreteEnv,
    IdentityMultiBinaryEnv,
    IdentityMaskedEnv,
    IdentityMaskedMultiDiscreteEnv,
    IdentityMaskedMultiBinaryEnv,
    IdentityBoxEnv,
]
TABULAR = MAKERS[:-1]


def test_rewards_by_hand() -> None:
    identity, ordered, multi = IdentityEnv(4), IdentityOrderedEnv(5), IdentityMultiDiscreteEnv((3, 4))
    for env, pays in (
        (identity, lambda state, action: float(state == action)),
        (ordered, lambda state, action: 1 - abs(int(state) - int(action)) / 4),
        (multi, lambda state, action: float(np.mean(state == action))),
        (IdentityMultiBinaryEnv(3), lambda state, action: float(np.mean(state == action))),
    ):
        env.action_space.seed(0)
        observation, _ = env.reset(seed=0)
        for _ in range(env.episode_length):
            action = env.action_space.sample()
            expected = pays(observation, action)
            observation, reward, *_ = env.step(action)
            assert reward == pytest.approx(expected)


def test_masks_are_the_cyclic_window_of_the_state_shown() -> None:
    env = IdentityMaskedEnv(4)
    windows = [[1, 0, 0, 0], [0, 1, 1, 0], [1, 0, 1, 1], [1, 1, 1, 1]]
    observation, _ = env.reset(seed=0)
    seen = set()
    for _ in range(env.episode_length):
        mask = env.action_masks()
        seen.add(int(observation))
        assert mask.dtype == np.bool_
        assert mask.tolist() == windows[observation]
        observation, *_ = env.step(env.expert_action(observation))
    assert len(seen) > 2


def test_masks_of_several_components_lie_side_by_side() -> None:
    env = IdentityMaskedMultiDiscreteEnv((3, 2))
    observation, _ = env.reset(seed=0)
    for _ in range(env.episode_length):
        first, second = ([1, 0, 0], [0, 1, 1], [1, 1, 1]), ([1, 0], [1, 1])
        assert env.action_masks().tolist() == first[observation[0]] + second[observation[1]]
        observation, *_ = env.step(env.expert_action(observation))
    assert IdentityMaskedMultiBinaryEnv(3).action_masks().shape == (6,)


def test_changing_a_returned_mask_does_not_change_the_environment() -> None:
    env = IdentityMaskedEnv(4)
    env.reset(seed=0)
    before = env.action_masks()
    env.action_masks()[:] = False
    assert np.array_equal(env.action_masks(), before)


def to_state(env: IdentityMaskedEnv, state: int) -> None:
    """Reset until the environment is in `state`."""
    seed = next(seed for seed in range(1000) if env.reset(seed=seed)[0] == state)
    env.reset(seed=seed)


def test_an_illegal_action_is_penalised_and_reported() -> None:
    env = IdentityMaskedEnv(4)
    to_state(env, 1)
    assert env.step(0)[1::3] == (-1.0, {"illegal_action": True})
    to_state(env, 1)
    assert env.step(2)[1::3] == (0.0, {})


def test_an_illegal_action_raises_if_asked_to_and_leaves_the_state() -> None:
    env = IdentityMaskedEnv(4, illegal_action="raise")
    to_state(env, 1)
    assert_raises(ValueError, r"action 0 is illegal in state 1: choose one that action_masks\(\) allows", env.step, 0)
    assert env.step(1)[1] == 1.0
    both = IdentityMaskedMultiBinaryEnv(2, illegal_action="raise")
    both.reset(seed=next(s for s in range(99) if both.reset(seed=s)[0].tolist() == [0, 1]))
    assert_raises(ValueError, "illegal in state 1", both.step, np.array([1, 1]))


@pytest.mark.parametrize("maker", MAKERS)
def test_one_seed_gives_one_stream_and_seeds_differ(maker: Callable[..., Any]) -> None:
    def play(seed: int) -> list[tuple[str, float]]:
        env = maker(episode_length=20)
        env.action_space.seed(0)
        env.reset(seed=seed)
        history = []
        for episode in range(2):
            if episode:
                env.reset()  # goes on with the stream
            for _ in range(20):
                observation, reward, *_ = env.step(env.action_space.sample())
                history.append((np.asarray(observation).tolist(), reward))
        return history

    assert play(7) == play(7)
    assert play(7) != play(8)
    first, second = play(7)[:20], play(7)[20:]
    assert first != second


def test_states_do_not_depend_on_actions_or_on_global_generators() -> None:
    def states(action: int) -> list[int]:
        np.random.seed(action)  # noqa: NPY002  # the point: it must not matter
        env = IdentityEnv(4, episode_length=50)
        observations = [env.reset(seed=3)[0], *(env.step(action)[0] for _ in range(50))]
        return [int(o) for o in observations]

    assert states(0) == states(3)


def test_states_are_uniform() -> None:
    env = IdentityMultiDiscreteEnv((2, 3), episode_length=6000)
    env.reset(seed=0)
    counts = np.bincount([env.state_of(env.step(np.array([0, 0]))[0]) for _ in range(6000)], minlength=6)
    assert ((counts - 1000) ** 2 / 1000).sum() < 20.5  # chi-square with 5 degrees of freedom, p = 0.001


@pytest.mark.parametrize("maker", MAKERS)
def test_episodes_end_by_truncation_and_need_a_reset(maker: Callable[..., Any]) -> None:
    env = maker(episode_length=3)
    action = env.action_space.sample()
    assert_raises(ResetNeeded, r"call reset\(\)", env.step, action)
    for _ in range(2):
        env.reset(seed=0)
        assert [env.step(action)[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]
        assert_raises(ResetNeeded, "episode is over", env.step, action)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("maker", TABULAR)
def test_every_form_shows_every_state_and_is_read_back(maker: Callable[..., Any], form: ObservationForm) -> None:
    env: TabularEnv = maker(observation=form)
    for state in range(env.problem.num_states):
        observation = env.observation_of(state)
        assert env.observation_space.contains(observation)
        assert env.state_of(observation) == state
        assert np.array_equal(np.atleast_1d(env.expert_action(observation)), env.problem.best_actions()[state])
    assert_raises(ValueError, "state=-1", env.observation_of, -1)


def test_forms_by_hand() -> None:
    one_hot: Any = IdentityMultiDiscreteEnv((2, 3), observation="one_hot").observation_of(5)
    assert one_hot.tolist() == [0, 1, 0, 0, 1]
    image: Any = IdentityEnv(3, observation="image").observation_of(1)
    assert image.dtype == np.uint8
    assert (image == np.repeat([0, 255, 0], 12)[None, :, None]).all()
    both: Any = IdentityMultiBinaryEnv(2, observation="dict").observation_of(1)
    assert {key: value.tolist() for key, value in both.items()} == {"native": [0, 1], "one_hot": [1, 0, 0, 1]}


@pytest.mark.parametrize(
    ("form", "observation"),
    [
        ("native", 4),
        ("native", np.array([1, 2])),
        ("native", 1.0),
        ("one_hot", np.array([1.0, 1.0, 0.0, 0.0], dtype=np.float32)),
        ("one_hot", np.zeros(4, dtype=np.float32)),
        ("one_hot", np.array([0.5, 0.0, 0.0, 0.0], dtype=np.float32)),
        ("dict", {"native": np.int64(1), "one_hot": np.array([1.0, 0.0, 0.0, 0.0], dtype=np.float32)}),
        ("image", np.full((36, 36, 1), 255, dtype=np.uint8)),
    ],
)
def test_an_observation_that_shows_no_state_is_an_error(form: ObservationForm, observation: Any) -> None:
    assert_raises(ValueError, "shows no state", IdentityEnv(4, observation=form).expert_action, observation)


@pytest.mark.parametrize(
    ("env", "action", "error", "message"),
    [
        (IdentityEnv(4), 4, ValueError, "out of range"),
        (IdentityEnv(4), -1, ValueError, "out of range"),
        (IdentityEnv(4), 1.0, TypeError, "dtype float64"),
        (IdentityEnv(4), True, TypeError, "dtype bool"),
        (IdentityEnv(4), "1", TypeError, "dtype <U1"),
        (IdentityEnv(4), None, TypeError, "dtype object"),
        (IdentityEnv(4), np.array([1]), ValueError, r"shape \(1,\)"),
        (IdentityMultiDiscreteEnv((3, 4)), np.array([1, 4]), ValueError, "out of range"),
        (IdentityMultiDiscreteEnv((3, 4)), np.array([1, 1, 1]), ValueError, r"shape \(3,\)"),
        (IdentityMultiDiscreteEnv((3, 4)), 1, ValueError, r"shape \(\)"),
        (IdentityMultiDiscreteEnv((3, 4)), np.array([1.0, 1.0]), TypeError, "dtype float64"),
        (IdentityMultiBinaryEnv(2), np.array([0.5, 1.0]), ValueError, "out of range"),
        (IdentityMultiBinaryEnv(2), np.array([np.nan, 1.0]), ValueError, "out of range"),
        (IdentityMultiBinaryEnv(2), np.array([0, 2]), ValueError, "out of range"),
        (IdentityBoxEnv(2), np.array([0.0, 1.1]), ValueError, "clip it"),
        (IdentityBoxEnv(2), np.array([0.0, np.nan]), ValueError, "clip it"),
        (IdentityBoxEnv(2), np.array([0, 1]), TypeError, "dtype int64"),
        (IdentityBoxEnv(2), np.array([0.0]), ValueError, r"shape \(1,\)"),
    ],
)
def test_a_wrong_action_is_a_clear_error_and_costs_no_step(
    env: Any, action: Any, error: type[Exception], message: str
) -> None:
    env.reset(seed=0)
    before = env.np_random.bit_generator.state
    assert_raises(error, message, env.step, action)
    assert env.np_random.bit_generator.state == before


def test_actions_as_sb3_sends_them_are_accepted() -> None:
    env = IdentityEnv(4)
    env.reset(seed=0)
    for action in (1, np.int64(1), np.int32(1), np.array(1), np.uint8(1)):
        env.step(action)
    bits = IdentityMultiBinaryEnv(2)
    actions: list[NDArray[Any]] = [np.array([0.0, 1.0], dtype=np.float32), np.array([False, True]), np.array([0, 1])]
    rewards = []
    for action in actions:
        bits.reset(seed=0)
        rewards.append(bits.step(action)[1])
    assert len(set(rewards)) == 1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: IdentityEnv(1), ValueError, "num_actions=1 must be at least 2"),
        (lambda: IdentityEnv(2.5), TypeError, "num_actions"),
        (lambda: IdentityEnv(4, episode_length=0), ValueError, "episode_length=0"),
        (lambda: IdentityEnv(4, episode_length="3"), TypeError, "episode_length"),
        (lambda: IdentityEnv(4, observation="pixels"), ValueError, "observation='pixels'"),
        (lambda: IdentityEnv(37, observation="image"), ValueError, "36 stripes"),
        (lambda: IdentityOrderedEnv(1), ValueError, "num_actions=1"),
        (lambda: IdentityMultiDiscreteEnv(()), ValueError, "dims"),
        (lambda: IdentityMultiDiscreteEnv((3, 1)), ValueError, r"dims\[1\]=1"),
        (lambda: IdentityMultiDiscreteEnv((3, 1.5)), TypeError, r"dims\[1\]"),
        (lambda: IdentityMultiDiscreteEnv((300, 300)), ValueError, "90000 states"),
        (lambda: IdentityMultiBinaryEnv(0), ValueError, "num_bits=0"),
        (lambda: IdentityMultiBinaryEnv(17), ValueError, "131072 states"),
        (lambda: IdentityMaskedEnv(4, illegal_action="ignore"), ValueError, "illegal_action='ignore'"),
        (lambda: IdentityMaskedMultiBinaryEnv(0), ValueError, "num_bits=0"),
        (lambda: IdentityMaskedMultiDiscreteEnv((1,)), ValueError, r"dims\[0\]=1"),
        (lambda: IdentityBoxEnv(0), ValueError, "num_dims=0"),
        (lambda: IdentityBoxEnv(2, state_bound=1.5), ValueError, "state_bound=1.5"),
        (lambda: IdentityBoxEnv(2, state_bound=0.0), ValueError, "state_bound=0.0"),
        (lambda: IdentityBoxEnv().expected_return(std=-1.0), ValueError, "std=-1.0"),
        (lambda: IdentityBoxEnv(2).expert_action(np.zeros(3, dtype=np.float32)), ValueError, "not a batch"),
        (lambda: IdentityBoxEnv(1).optimal_smoothed_policy(np.zeros(1, np.float32), 0.0), ValueError, "alpha=0.0"),
        (lambda: IdentityBoxEnv(1).soft_optimal_policy(np.zeros(1, np.float32), 0.0), ValueError, "coefficient=0.0"),
        (lambda: DeepSeaEnv(1), ValueError, "size=1 must be at least 2"),
        (lambda: DeepSeaEnv(2.5), TypeError, "size must be a whole number"),
        (lambda: DeepSeaEnv(unscaled_move_cost=-0.1), ValueError, "unscaled_move_cost"),
        (lambda: DeepSeaEnv(mapping_seed=-1), ValueError, "mapping_seed=-1"),
        (lambda: DeepSeaEnv(observation="image"), ValueError, "observation='image'"),
    ],
)
def test_bad_arguments(make: Callable[[], object], error: type[Exception], message: str) -> None:
    assert_raises(error, message, make)


def test_pictures_show_the_state_and_what_is_legal() -> None:
    env = IdentityMaskedEnv(4, render_mode="rgb_array")
    to_state(env, 1)
    picture = env.render()
    assert picture.shape == (64, 192, 3)
    assert picture.dtype == np.uint8
    cells = picture[[10, 50]][:, [20, 70, 120, 170]]  # the middles of the four actions' cells, above and below
    assert (cells[0] == 255).all(axis=-1).tolist() == [False, True, False, False]
    green = cells[1, :, 1] > cells[1, :, 0]
    assert green.tolist() == [False, True, True, False]
    box = IdentityBoxEnv(2, render_mode="rgb_array")
    state, _ = box.reset(seed=0)
    picture = box.render()
    assert picture.shape == (64, 192, 3)
    places = [np.flatnonzero(picture[row, :, 0]).mean() / 191 * 2 - 1 for row in (10, 50)]
    assert places == pytest.approx(state, abs=0.03)


@pytest.mark.parametrize("maker", [*MAKERS, DeepSeaEnv])
def test_without_a_render_mode_there_is_a_warning_and_no_picture(maker: Callable[..., Any]) -> None:
    env = maker()
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render mode"):
        assert env.render() is None
    assert maker(render_mode="rgb_array").render_mode == "rgb_array"
    assert_raises(ValueError, "render_mode='human'", maker, render_mode="human")


# ---- registered environments under the checkers of Gymnasium and SB3, and in vector environments
IDS = [entry.id for entry in ENVIRONMENTS]
IDENTITY_IDS = [name for name in IDS if "Identity" in name]  # their episodes are as long as asked for
WRAPPED = ("native", "one_hot", "dict", "image")
CASES = [
    (name, {"observation": form}) for name in IDENTITY_IDS if name != "rlsmooth/IdentityBox-v0" for form in WRAPPED
]
CASES += [("rlsmooth/IdentityBox-v0", {}), ("rlsmooth/IdentityBox-v0", {"num_dims": 1, "state_bound": 1.0})]
CASES += [(f"rlsmooth/DatasetBandit{form}-v0", {"data": "iris"}) for form in ("", "Masked")]
CASES += [("rlsmooth/DeepSea-v0", {}), ("rlsmooth/DeepSea-v0", {"size": 50, "deterministic": False})]


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_both_checkers_pass_without_a_warning(name: str, arguments: dict[str, Any]) -> None:
    gymnasium_check_env(gym.make(name, **arguments).unwrapped)  # pytest turns their warnings into errors
    sb3_check_env(gym.make(name, **arguments))


def test_the_ids_of_issue_2_are_there_and_well_formed() -> None:
    wanted = {"Identity", "IdentityMultiDiscrete", "IdentityMultiBinary", "IdentityOrdered", "IdentityMasked"}
    assert {f"rlsmooth/{name}-v0" for name in wanted} <= set(IDS)
    assert len(set(IDS)) == len(IDS)
    assert all(re.fullmatch(r"rlsmooth/[A-Z]\w*-v\d+", name) for name in IDS)


def test_every_class_is_exported_under_its_own_name() -> None:
    for entry in ENVIRONMENTS:
        env = gym.make(entry.id).unwrapped
        assert type(env) is getattr(rlsmooth.envs, type(env).__name__)
        assert type(env).__name__ in rlsmooth.envs.__all__


def test_registering_again_changes_nothing() -> None:
    before = dict(gym.registry)
    register_environments()
    assert dict(gym.registry) == before


def test_an_id_taken_by_somebody_else_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = Entry("rlsmooth/Identity-v0", "elsewhere:Env")
    monkeypatch.setattr("rlsmooth.envs.registration.ENVIRONMENTS", (taken,))
    assert_raises(ValueError, r"already registered for 'rlsmooth\.envs\.identity:IdentityEnv'", register_environments)


def test_gym_make_imports_the_module_named_before_the_colon() -> None:
    code = (
        "import gymnasium as gym\n"
        "assert not any('rlsmooth' in name for name in gym.registry)\n"
        "env = gym.make('rlsmooth.envs:rlsmooth/Identity-v0', num_actions=3)\n"
        "print(env.spec.id, env.action_space)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "rlsmooth/Identity-v0 Discrete(3)"


@pytest.mark.parametrize("name", IDENTITY_IDS)
def test_vector_environments(name: str) -> None:
    length = 4
    vector = SyncVectorEnv([lambda: gym.make(name, episode_length=length)] * 3)
    vector.reset(seed=1)
    ends = [vector.step(vector.action_space.sample())[3] for _ in range(length)]
    assert np.array_equal(np.stack(ends), [[False] * 3] * (length - 1) + [[True] * 3])
    dummy = DummyVecEnv([lambda: gym.make(name, episode_length=length)] * 3)
    dummy.seed(1)
    dummy.reset()
    for step in range(length):
        _, _, dones, infos = dummy.step(np.stack([dummy.action_space.sample() for _ in range(3)]))
        assert list(dones) == [step == length - 1] * 3
    # SB3 bootstraps from the last observation where it finds these two
    assert all(info["TimeLimit.truncated"] for info in infos)
    assert all(dummy.observation_space.contains(info["terminal_observation"]) for info in infos)


@pytest.mark.parametrize("name", IDS)
def test_vector_environment_masks(name: str) -> None:
    dummy = DummyVecEnv([lambda: gym.make(name)] * 2)
    dummy.seed(0)
    observations = dummy.reset()
    assert dummy.has_attr("action_masks") == ("Masked" in name)
    if "Masked" in name:
        env = dummy.envs[0].unwrapped
        assert isinstance(env, TabularEnv)
        masks = np.stack(dummy.env_method("action_masks"))
        assert np.array_equal(masks, env.problem.legal[[env.state_of(row) for row in observations]])


# ---- deep sea against an independent statement of its rules, and against exhaustive search


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


def test_a_step_out_of_turn_and_wrong_actions_are_errors() -> None:
    env = DeepSeaEnv(2)
    assert_raises(ResetNeeded, "call reset", env.step, 0)
    env.reset()
    assert_raises(ValueError, "action 2 is out of range", env.step, 2)
    assert_raises(TypeError, "whole numbers", env.step, 0.5)
    env.step(0)
    env.step(0)
    assert_raises(ResetNeeded, None, env.step, 0)
    assert_raises(ValueError, "one-hot code of a cell", env.expert_action, np.zeros(4, dtype=np.float32))
    assert_raises(ValueError, r"shape \(1, 4\)", env.expert_action, np.array([[1, 0, 0, 0]], dtype=np.float32))
