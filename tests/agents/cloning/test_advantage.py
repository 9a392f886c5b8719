"""Weights by advantages: returns, critics and weights against formulas, and cloning with them in every engine."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsmooth.agents import BC, AdvantageWeights
from rlsmooth.agents.cloning.advantage import critic_advantages, effective_share, returns_to_go
from rlsmooth.data import Demonstrations
from support import FLAT, KillAt, KilledError, assert_raises, draw, draw_masks, recorded, same_parameters, samples
from trainers import small_bc

pytestmark = pytest.mark.filterwarnings("ignore:weights=.*the critic explains:UserWarning")  # rewards of noise

FORMS = (
    AdvantageWeights(temperature=0.3),
    AdvantageWeights("positive"),
    AdvantageWeights("top", share=0.3),
    AdvantageWeights("top", values="returns"),
    AdvantageWeights(values="returns", gamma=1.0),
)


def rewarded(seed: int = 0, **changes: Any) -> Demonstrations:
    """Four episodes of noise with rewards, two of which were cut off."""
    rng = np.random.default_rng(seed)
    ends = np.isin(np.arange(40), (9, 19, 29, 39))
    given = {"rewards": rng.normal(size=40), "terminations": ends & (np.arange(40) < 20)}
    given |= {"next_observations": rng.normal(size=(40, 3)).astype(np.float32)}
    return draw(seed=seed, **{**given, **changes})


def weighed(agent: BC) -> np.ndarray:
    assert agent.weighed is not None
    return np.asarray(agent.weighed.training.weights)


# ---- returns, weights and critics


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), gamma=st.sampled_from([0.0, 0.5, 0.99, 1.0]), count=st.integers(1, 12))
def test_returns_are_the_sums_of_their_definition(seed: int, gamma: float, count: int) -> None:
    rng = np.random.default_rng(seed)
    rewards, ends = rng.normal(size=count), np.unique([*rng.integers(1, count + 1, size=3), count])
    found, discount = returns_to_go(rewards, ends, gamma)
    for step in range(count):
        end = ends[np.searchsorted(ends, step, side="right")]
        assert found[step] == pytest.approx(sum(rewards[t] * gamma ** (t - step) for t in range(step, end)), abs=1e-12)
        assert discount[step] == pytest.approx(gamma ** (end - step))


@settings(max_examples=25)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8), st.sampled_from([1e-3, 0.5, 10.0]))
def test_exponential_weights_are_those_of_exact_numbers(values: list[float], temperature: float) -> None:
    advantages = np.array(values)
    for cap in (1.0, 20.0, None):
        found = AdvantageWeights(temperature=temperature, cap=cap).weights(advantages)
        with mpmath.workdps(60):
            c = mpmath.sqrt(sum(mpmath.mpf(a) ** 2 for a in values) / len(values)) or mpmath.mpf(1)
            exact = [mpmath.exp(mpmath.mpf(a) / (mpmath.mpf(temperature) * c)) for a in values]
            exact = exact if cap is None else [min(one, mpmath.mpf(cap)) for one in exact]
            if c < 1e-150:
                return  # squares of such advantages are 0 in float64
            mean = sum(exact) / len(exact)
            np.testing.assert_allclose(found, [float(one / mean) for one in exact], rtol=1e-9, atol=1e-300)


def test_filters_keep_ties_together_and_never_more_than_the_share() -> None:
    advantages = np.array([3.0, 1.0, 1.0, 1.0, 2.0, 0.0, 0.0, -1.0])
    for share, kept in ((0.01, 1), (0.25, 2), (0.5, 2), (0.625, 5), (1.0, 8)):
        found = AdvantageWeights("top", share=share).weights(advantages)
        assert (found > 0).sum() == kept
        assert found.mean() == pytest.approx(1.0)
    np.testing.assert_array_equal(AdvantageWeights("positive").weights(advantages) > 0, advantages > 0)
    assert not AdvantageWeights("positive").weights(np.zeros(3)).any()
    assert effective_share([2.0, 2.0, 0.0, 0.0]) == 0.5


@functools.cache
def chain(kind: str) -> tuple[Demonstrations, np.ndarray]:
    """Walks on a ring of six states, and the exact advantage of each step by the state that it led to.

    With `"ends"` state 0 may be terminal; no episode is longer than 12 steps, which is where it is cut off.
    """
    rng, gamma, count = np.random.default_rng(0), 0.9, 6
    reward = np.array([1.0, -1.0, 0.0, 2.0, 0.0, 5.0])
    stays = np.ones(count)
    stays[0] = 0.3 if kind == "ends" else 1.0
    step = 0.5 * np.eye(count) + 0.5 * np.roll(np.eye(count), 1, axis=1)
    exact = np.linalg.solve(np.eye(count) - gamma * stays[:, None] * step, reward)
    states: list[int] = []
    following: list[int] = []
    terminal: list[bool] = []
    ends: list[int] = []
    while len(states) < 4000:
        state = int(rng.integers(count))
        for time in range(12):
            after = (state + int(rng.integers(2))) % count
            stop = bool(rng.random() > stays[state])
            states.append(state)
            following.append(after)
            terminal.append(stop)
            state = after
            if stop or time == 11:
                break
        ends.append(len(states))
    eye, space = np.eye(count, dtype=np.float32), spaces.Box(0, 1, (count,))
    more = {"rewards": reward[states], "terminations": terminal, "next_observations": eye[following]}
    data = recorded(eye[states], np.zeros(len(states), int), space, spaces.Discrete(2), ends, **more)
    return data, reward[states] + gamma * np.where(terminal, 0.0, exact[following]) - exact[states]


@pytest.mark.parametrize("kind", ["ends", "never ends"])
@pytest.mark.parametrize("has_next", [True, False])
def test_advantages_are_exact_on_average_where_episodes_end_and_where_they_are_cut_off(
    kind: str, has_next: bool
) -> None:
    data, exact = chain(kind)
    given = data if has_next else data.replace_unchecked(next_observations=None)
    (found,), explained = critic_advantages(given, None, 0.9, small_bc(data).policy, 0)
    cut = data.episode_ends - 1
    cut = cut[~np.asarray(data.terminations)[cut]]
    if not has_next:
        assert np.abs(found[cut]).max() < 1e-9  # G is V of the same observation
    rest = np.setdiff1d(np.arange(len(data)), [] if has_next else cut)
    for value in np.unique(exact.round(6)):
        alike = rest[np.isclose(exact[rest], value)]
        assert found[alike].mean() == pytest.approx(
            value, abs=0.06 * np.ptp(exact) + 4 * found.std() / len(alike) ** 0.5
        )
    assert 0.0 < explained < 1.0


def test_an_episode_is_valued_by_the_others_alone() -> None:
    data = rewarded(terminations=np.isin(np.arange(40), (9, 19, 29, 39)))
    policy, own = small_bc(data).policy, slice(10, 20)
    changed = np.array(data.rewards)
    changed[own] += 7.0
    before, after = (
        critic_advantages(data.replace_unchecked(rewards=rewards), None, 0.9, policy, 0)[0][0]
        for rewards in (data.rewards, changed)
    )
    expected, _ = returns_to_go(np.full(10, 7.0), np.array([10]), 0.9)
    np.testing.assert_allclose(after[own] - before[own], expected)
    assert np.abs(np.delete(after - before, np.arange(10, 20))).min() > 0


def test_a_critic_that_knows_nothing_of_other_episodes_is_reported() -> None:
    with pytest.warns(UserWarning, match=r"weights='positive': the critic explains -.*values='returns'") as found:
        agent = BC(
            "MlpPolicy",
            None,
            rewarded(terminations=np.isin(np.arange(40), (9, 19, 29, 39))),
            weights="positive",
            seed=0,
            device="cpu",
        )
    assert agent.weighed is not None
    assert f"explains {agent.weighed.explained_variance:.2f} of" in str(found[0].message)
    assert found[0].filename == __file__


def test_cloning_finds_the_policy_that_the_weights_make() -> None:
    rng = np.random.default_rng(0)
    states, actions = rng.integers(3, size=1200), rng.integers(2, size=1200)
    rewards = np.array([[0.0, 1.0], [5.0, 4.0], [-2.0, -2.0]])[states, actions]
    eye = np.eye(3, dtype=np.float32)
    data = recorded(
        eye[states], actions, spaces.Box(0, 1, (3,)), spaces.Discrete(2), np.arange(1, 1201), rewards=rewards,
        terminations=np.ones(1200, bool),
    )  # fmt: skip
    recipe = AdvantageWeights(temperature=0.5)
    linear = {"net_arch": [], "optimizer_kwargs": {"betas": (0.8, 0.9), "eps": 1e-5}}
    agent = BC(
        "MlpPolicy", None, data, smoothing=0.0, weights=recipe, batch_size=1200, learning_rate="lin_0.3", seed=0,
        policy_kwargs=linear, device="cpu",
    ).learn(total_batches=120)  # fmt: skip
    means = np.array([rewards[states == state].mean() for state in range(3)])
    exact = recipe.weights(rewards - means[states])
    np.testing.assert_allclose(weighed(agent), exact, rtol=0.15)
    table = np.zeros((3, 2))
    np.add.at(table, (states, actions), weighed(agent))
    with torch.no_grad():
        found = agent.policy.get_distribution(torch.as_tensor(eye)).distribution.probs.numpy()  # type: ignore[operator]
    np.testing.assert_allclose(found, table / table.sum(1, keepdims=True), atol=2e-3)


# ---- in a clone: engines, spaces, files, runs that are cut off


@pytest.mark.parametrize("recipe", FORMS, ids=str)
@pytest.mark.parametrize("engine", ["torch", "numpy"])
def test_weights_are_those_that_demonstrations_may_have(recipe: Any, engine: Any) -> None:
    data = rewarded(weights=np.linspace(1.0, 2.0, 40))
    agent = small_bc(data, weights=recipe, engine=engine).learn(total_batches=6)
    found = weighed(agent)
    assert found.mean() == pytest.approx(1.0, abs=1e-6)
    same = small_bc(data.replace_unchecked(weights=found), engine=engine).learn(total_batches=6)
    assert same_parameters(agent, same)
    own = np.asarray(data.weights)
    given = small_bc(data, weights=lambda part: found / own[: len(part)], engine=engine)
    np.testing.assert_allclose(weighed(given), found, rtol=1e-6)


IMAGES = spaces.Box(0, 255, (3, 36, 36), np.uint8)


@pytest.mark.parametrize(
    ("observations", "actions"),
    [
        (spaces.Discrete(5), spaces.Discrete(3)),
        (IMAGES, spaces.Discrete(3, start=2)),
        (spaces.Dict({"image": IMAGES, "flat": FLAT}), spaces.MultiDiscrete([3, 2])),
        (spaces.Box(0, 255, (36, 36, 3), np.uint8), spaces.MultiBinary(2)),
        (FLAT, spaces.Box(-2, 2, (2,))),
        (spaces.Box(-1, 1, (1500,)), spaces.Discrete(2)),
    ],
    ids=str,
)
def test_every_space_and_held_out_episodes(observations: Any, actions: Any) -> None:
    seen, count = samples(observations, 20, 0), 20
    masks = draw_masks((3,), count).numpy() if isinstance(observations, spaces.Discrete) else None
    chosen = samples(actions, count, 0) if masks is None else masks.argmax(1)
    ends = np.isin(np.arange(count), (4, 9, 14, 19))
    more = {"rewards": np.arange(count) % 7, "truncations": ends & (np.arange(count) > 10), "action_masks": masks}
    data = recorded(seen, chosen, observations, actions, [5, 10, 15, 20], **more)
    policy = "MultiInputPolicy" if isinstance(observations, spaces.Dict) else "MlpPolicy"
    agent = BC(policy, None, data, weights="advantage", validation_fraction=0.25, seed=0, device="cpu")
    assert agent.weighed is not None
    for part in (agent.weighed.training, agent.weighed.validation):
        assert part is not None
        weights = np.asarray(part.weights)
        assert weights.mean() == pytest.approx(1.0, abs=1e-5)
        assert weights.std() > 0
    agent.learn(total_batches=1)
    assert agent.measures.validation(1.0)["loss"] > 0


def test_data_on_the_disk_get_the_same_weights(tmp_path: Path) -> None:
    data = rewarded()
    data.save_folder(tmp_path / "data")
    mapped = Demonstrations.load(tmp_path / "data")
    agents = [small_bc(part, weights="advantage").learn(total_batches=3) for part in (data, mapped)]
    np.testing.assert_array_equal(*map(weighed, agents))
    assert same_parameters(*agents)


@pytest.mark.parametrize("engine", ["torch", "numpy"])
def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path: Path, engine: Any) -> None:
    recipe = AdvantageWeights(temperature=0.5, gamma=0.9)
    arguments = {"weights": recipe, "engine": engine, "checkpoint_every": 2}
    whole = small_bc(rewarded(), **arguments).learn(total_batches=8)
    with pytest.raises(KilledError):
        small_bc(rewarded(), checkpoint_folder=tmp_path / "run", **arguments).learn(total_batches=8, callback=KillAt(5))
    other = rewarded().replace_unchecked(rewards=np.ones(40))
    assert_raises(ValueError, "demonstrations: these are not those", BC.resume, tmp_path / "run", None, other)
    agent = BC.resume(tmp_path / "run", None, rewarded(), device="cpu")
    assert agent.weights == recipe
    np.testing.assert_array_equal(weighed(agent), weighed(whole))
    assert same_parameters(agent.learn(total_batches=8), whole)


def test_files_keep_the_recipe_and_ask_for_a_function(tmp_path: Path) -> None:
    for recipe in (*FORMS, None):
        path = small_bc(rewarded(), weights=recipe).save(tmp_path / "agent.zip")
        assert BC.load(path, device="cpu").weights == recipe
    path = small_bc(rewarded(), weights=lambda part: np.ones(len(part))).save(tmp_path / "agent.zip")
    agent = BC.load(path, demonstrations=rewarded(), device="cpu")
    assert_raises(ValueError, "weights was a callable", agent.learn, total_batches=1)
    again = BC.load(path, demonstrations=rewarded(), device="cpu", custom_objects={"weights": "top"})
    assert again.learn(total_batches=1).weights == AdvantageWeights("top")


def test_what_does_not_fit_is_said() -> None:
    data, cut = rewarded(), rewarded(terminations=None)
    for changes, message in (
        ({"rewards": None}, "demonstrations have no rewards"),
        ({"terminations": None, "truncations": None}, "neither terminations nor truncations"),
    ):
        bad = data.replace_unchecked(**changes)
        assert_raises(ValueError, message, small_bc, bad, weights="advantage")
    small_bc(cut, weights=AdvantageWeights(values="returns"))
    assert_raises(ValueError, "validation have no rewards", small_bc, data, validation=draw(), weights="top")
    worse = data.select_episodes([0]).replace_unchecked(rewards=np.full(10, -9.0))
    best = AdvantageWeights("top", values="returns")
    assert_raises(ValueError, "validation: every weight is 0", small_bc, data, validation=worse, weights=best)
    same = data.replace_unchecked(rewards=np.zeros(40))
    assert_raises(ValueError, "demonstrations: every weight is 0", small_bc, same, weights="positive")
    assert_raises(ValueError, "gamma=1 with 2 episodes", small_bc, data, weights=AdvantageWeights(gamma=1.0))
    assert_raises(ValueError, "weights='best'", small_bc, data, weights="best")
    assert_raises(TypeError, "numbers belong in the demonstrations", small_bc, data, weights=np.ones(40))
    for found, message in (
        (np.ones(3), r"weights\(demonstrations\) has shape \(3,\)"),
        (np.full(40, np.nan), "is nan for transition 0"),
        (-np.ones(40), "is -1.0 for transition 0"),
        (np.zeros(40), "every weight is 0"),
    ):
        assert_raises(ValueError, message, small_bc, data, weights=lambda _, found=found: found)
    for arguments, message in (
        ({"temperature": 0.0}, "temperature=0"),
        ({"form": "best"}, "form='best'"),
        ({"share": 0.1}, "share=0.1 is for form='top'"),
        ({"form": "top", "cap": None}, "cap=None is for form='advantage'"),
        ({"cap": 0.5}, "cap=0.5"),
        ({"gamma": 1.5}, "gamma=1.5"),
    ):
        assert_raises(ValueError, message, AdvantageWeights, **arguments)
    assert dataclasses.replace(AdvantageWeights(), temperature=2).temperature == 2
