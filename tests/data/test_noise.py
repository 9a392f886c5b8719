"""Label noise: its rate, that it is another legal action, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from rlsmooth.data import Demonstrations


def with_actions(actions: Any, space: spaces.Space[Any], masks: Any = None) -> Demonstrations:
    count = len(actions)
    return Demonstrations.from_arrays(
        np.arange(count)[:, None].astype(np.float32),
        actions,
        observation_space=spaces.Box(-np.inf, np.inf, (1,)),
        action_space=space,
        episode_ends=[count],
        action_masks=masks,
    )


def test_a_discrete_action_becomes_each_other_one_equally_often() -> None:
    count = 40_000
    clean = with_actions(np.full(count, 7), spaces.Discrete(4, start=5))
    noisy = np.asarray(clean.with_action_noise(0.3, seed=1).actions)
    shares = np.bincount(noisy - 5, minlength=4) / count
    # Standard deviations: 0.0023 for the rate, 0.0015 for each other action.
    np.testing.assert_allclose(shares, [0.1, 0.1, 0.7, 0.1], atol=0.01)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_the_ends_of_the_range_are_exact(p: float) -> None:
    clean = with_actions(np.arange(300) % 3, spaces.Discrete(3))
    changed = np.asarray(clean.with_action_noise(p, seed=0).actions) != np.asarray(clean.actions)
    assert changed.all() == (p == 1)
    assert changed.any() == (p == 1)


def test_dimensions_and_bits_are_changed_one_by_one() -> None:
    count = 40_000
    grid = with_actions(np.tile([1, 0], (count, 1)), spaces.MultiDiscrete([3, 2]))
    noisy = np.asarray(grid.with_action_noise(0.4, seed=2).actions)
    np.testing.assert_allclose(np.bincount(noisy[:, 0], minlength=3) / count, [0.2, 0.6, 0.2], atol=0.015)
    np.testing.assert_allclose(np.bincount(noisy[:, 1], minlength=2) / count, [0.6, 0.4], atol=0.015)
    both = (noisy != [1, 0]).all(axis=1).mean()
    assert abs(both - 0.16) < 0.015  # independent
    bits = with_actions(np.tile([1, 0], (count, 1)), spaces.MultiBinary(2)).with_action_noise(0.25, seed=3)
    np.testing.assert_allclose(np.asarray(bits.actions).mean(axis=0), [0.75, 0.25], atol=0.015)


def test_a_box_action_is_drawn_anew_between_the_bounds() -> None:
    space = spaces.Box(np.array([0, 10], np.float32), np.array([1, 30], np.float32))
    clean = with_actions(np.tile([0.5, 20], (20_000, 1)), space)
    noisy = np.asarray(clean.with_action_noise(0.5, seed=4).actions)
    changed = (noisy != [0.5, 20]).any(axis=1)
    assert abs(changed.mean() - 0.5) < 0.02
    assert (noisy[changed] != [0.5, 20]).all()  # the vector as a whole
    np.testing.assert_allclose(noisy[changed].mean(axis=0), [0.5, 20], rtol=0.03)
    np.testing.assert_allclose(noisy[changed].std(axis=0), [1 / 12**0.5, 20 / 12**0.5], rtol=0.03)
    with pytest.raises(ValueError, match="no finite bounds"):
        with_actions([[0.0]], spaces.Box(-np.inf, np.inf, (1,))).with_action_noise(0.5)
    whole = with_actions(np.zeros((1000, 1), np.int32), spaces.Box(0, 3, (1,), np.int32)).with_action_noise(1.0)
    assert set(np.asarray(whole.actions).reshape(-1).tolist()) == {0, 1, 2, 3}


@given(data=st.data(), p=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_noise_stays_legal(data: st.DataObject, p: float, seed: int) -> None:
    dims = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    count = data.draw(st.integers(1, 20))
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.integers(0, n, count) for n in dims], axis=1)
    masks = rng.random((count, sum(dims))) < 0.5
    masks[np.arange(count)[:, None], labels + np.cumsum([0, *dims[:-1]])] = True
    space = spaces.MultiDiscrete(dims)
    noisy = with_actions(labels, space, masks).with_action_noise(p, seed)
    with_actions(np.asarray(noisy.actions), space, masks)  # the checks on entry find every illegal action
    if p == 1:
        for dim, start in enumerate(np.cumsum([0, *dims[:-1]])):
            choices = masks[:, start : start + dims[dim]].sum(axis=1)
            changed = np.asarray(noisy.actions)[:, dim] != labels[:, dim]
            assert (changed == (choices > 1)).all()


def test_only_the_actions_change_and_the_seed_decides() -> None:
    clean = with_actions(np.arange(100) % 2, spaces.Discrete(2))
    noisy = clean.with_action_noise(0.5, seed=7)
    assert noisy.observations is clean.observations
    assert clean.actions.tolist() == (np.arange(100) % 2).tolist()  # type: ignore[union-attr]
    assert noisy.metadata["action_noise"] == {"p": 0.5, "seed": 7}
    assert "action_noise" not in clean.metadata
    assert np.array_equal(noisy.actions, clean.with_action_noise(0.5, seed=7).actions)
    assert not np.array_equal(noisy.actions, clean.with_action_noise(0.5, seed=8).actions)


@pytest.mark.parametrize(("p", "error"), [(1.1, ValueError), (-0.1, ValueError), ("0.1", TypeError)])
def test_the_rate_is_a_probability(p: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="p"):
        with_actions([0], spaces.Discrete(2)).with_action_noise(p)


def test_soft_targets_would_hide_the_noise() -> None:
    soft = Demonstrations.from_arrays(
        [0], [0], observation_space=spaces.Discrete(1), action_space=spaces.Discrete(2), episode_ends=[1],
        action_probs=[[0.5, 0.5]],
    )  # fmt: skip
    with pytest.raises(ValueError, match="action_probs would be used"):
        soft.with_action_noise(0.1)
