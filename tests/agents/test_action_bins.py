"""A Box cut into bins: coding, cloning with ordinal smoothing, and acting in the Box again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import PPO

from rlsmooth.agents import BC
from rlsmooth.agents.spaces import ActionBins
from rlsmooth.data import Demonstrations
from rlsmooth.targets import Smoothing, ordinal_kernel

BOX = spaces.Box(np.array([[-1.0, 0.0]], np.float32), np.array([[1.0, 10.0]], np.float32))


@given(count=st.integers(2, 40), share=st.lists(st.floats(0.0, 1.0, width=32), min_size=2, max_size=2))
def test_decoding_is_within_half_a_bin_and_encoding_undoes_it(count: int, share: list[float]) -> None:
    bins = ActionBins(BOX, count)
    low, high = BOX.low.astype(np.float64), BOX.high.astype(np.float64)
    action = (low + np.array([share]) * (high - low)).reshape(1, 2)
    places = bins.encode(action)
    assert bins.space.contains(places[0])
    back = bins.decode(places)
    assert back.shape == (1, 1, 2)
    assert BOX.contains(back[0])
    assert (np.abs(back[0] - action) <= (high - low) / count / 2 + 1e-5).all()
    assert np.array_equal(bins.encode(back.reshape(1, 2)), places)


def two_modes() -> Demonstrations:
    """An expert that turns sharply left or sharply right, never straight on."""
    actions = np.array([[[-0.9, 2.0]], [[0.9, 2.0]], [[0.9, 2.0]], [[0.9, 2.0]]], np.float32)
    return Demonstrations.from_arrays(
        np.ones((4, 1), np.float32),
        actions,
        observation_space=spaces.Box(0, 1, (1,)),
        action_space=BOX,
        episode_ends=[4],
    )


def clone(**arguments: Any) -> BC:
    linear = {"net_arch": [], "optimizer_kwargs": {"betas": (0.8, 0.9), "eps": 1e-5}}
    agent = BC(
        "MlpPolicy",
        None,
        two_modes(),
        learning_rate="lin_0.3",
        policy_kwargs=linear,
        action_bins=5,
        seed=0,
        device="cpu",
        **arguments,
    )
    return agent.learn(total_batches=150)


def test_the_policy_keeps_both_modes_and_acts_in_the_box() -> None:
    agent = clone(smoothing=0.0)
    action, _ = agent.predict(np.ones(1, np.float32), deterministic=True)
    np.testing.assert_allclose(action, [[0.8, 3.0]], atol=1e-6)  # 2.0 lies on the edge: it belongs to the bin above
    assert action.dtype == np.float32
    sampled, _ = agent.predict(np.ones((200, 1), np.float32))
    assert sampled.shape == (200, 1, 2)
    assert all(BOX.contains(one) for one in sampled)
    sharply = np.abs(np.abs(sampled[:, 0, 0]) - 0.8) < 1e-6
    assert sharply.mean() > 0.95
    assert 0.1 < (sampled[:, 0, 0] < 0).mean() < 0.4


def test_ordinal_smoothing_has_its_own_optimum() -> None:
    agent = clone(smoothing=Smoothing(0.3, reference="triangular", width=2.0))
    logits = agent.head.outputs(agent.policy.obs_to_tensor(np.ones((1, 1), np.float32))[0])  # type: ignore[arg-type]
    found = logits[0].detach().softmax(-1)[0].numpy()
    table = ordinal_kernel(5, "triangular", width=2.0).numpy()
    hard = np.array([0.25, 0, 0, 0, 0.75])
    np.testing.assert_allclose(found, 0.7 * hard + 0.3 * (0.25 * table[0] + 0.75 * table[4]), atol=1e-3)


def test_a_file_keeps_the_bins(tmp_path: Path) -> None:
    agent = clone(smoothing=0.1)
    loaded = BC.load(agent.save(tmp_path / "agent"), demonstrations=two_modes(), device="cpu")
    assert loaded.action_space == BOX
    one, _ = agent.predict(np.ones(1, np.float32), deterministic=True)
    two, _ = loaded.predict(np.ones(1, np.float32), deterministic=True)
    assert np.array_equal(one, two)
    loaded.learn(total_batches=1)


def test_what_has_no_bins_is_refused() -> None:
    unbounded = spaces.Box(-np.inf, np.inf, (2,))
    for space, bins, error, message in [
        (spaces.Discrete(3), 4, TypeError, "Box action space"),
        (unbounded, 4, ValueError, "finite bounds"),
        (BOX, 1, ValueError, "action_bins=1"),
        (BOX, 2.5, TypeError, "action_bins"),
    ]:
        with pytest.raises(error, match=message):
            BC("MlpPolicy", (spaces.Box(0, 1, (1,)), space), None, action_bins=bins, device="cpu")  # type: ignore[arg-type]
    agent = BC("MlpPolicy", "Pendulum-v1", None, action_bins=4, device="cpu")
    with pytest.raises(ValueError, match="model has action_space"):
        agent.warm_start(PPO("MlpPolicy", "Pendulum-v1", device="cpu"))
