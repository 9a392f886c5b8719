"""The behaviours that imitation's `tests/algorithms/test_base.py` checks: horizons, and data in several forms.

Which behaviour is whose test, and what differs: docs/imitation-tests.md."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO

from rlsmooth.agents import BC, GAIL, Transitions
from rlsmooth.agents.adversarial.transitions import expert_store
from rlsmooth.data import Demonstrations, cartpole_v1, record
from support import Trajectory, assert_raises, recorded, same_parameters

STATES = spaces.Discrete(14)
ACTIONS = spaces.Discrete(7, start=100)
SPACES: dict[str, Any] = {"observation_space": STATES, "action_space": ACTIONS}


class NeverTrained(torch.nn.Module):
    """A discriminator that can't tell the sides apart, whatever it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def forward(self, rows: Transitions) -> torch.Tensor:
        return 0 * self.unused * rows.terminated


@pytest.mark.parametrize(("terminal_states", "reward"), [("absorbing", 0.0), ("as_is", math.log(2))])
def test_episodes_of_any_length_are_taken_and_their_ends_told_apart(terminal_states: Any, reward: float) -> None:
    """imitation stops at a second length, unless `allow_variable_horizon=True`, which is our `"as_is"`.

    Where nothing is known of the expert, `"as_is"` still pays for each step that an episode lasts: the bias that
    imitation's check guards against. `"absorbing"` pays for none.
    """
    short = record(lambda observation: 0, "CartPole-v1", 3, seed=0)
    assert len(set(short.episode_lengths().tolist())) > 1
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu")
    trainer = GAIL(short, model, NeverTrained(), terminal_states=terminal_states, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.learn(128)
    assert trainer.generated.terminated.any()
    batch = short[:]
    ends = np.asarray(batch.terminations)
    found = trainer.predict_reward(batch.observations, batch.actions, batch.next_observations, ends)
    np.testing.assert_allclose(found, reward, atol=1e-6)


@pytest.mark.parametrize("lengths", [[5], [5, 5, 5], [5, 42], [4, 6, 1]])
def test_demonstrations_may_have_any_lengths(lengths: list[int]) -> None:
    rows = sum(lengths)
    data = recorded(np.zeros(rows, np.int64), np.full(rows, 100), STATES, ACTIONS, np.cumsum(lengths))
    assert data.episode_lengths().tolist() == lengths


@pytest.mark.parametrize("size", [0, -1, -42])
def test_a_batch_size_must_be_positive(size: int) -> None:
    assert_raises(ValueError, "batch_size", BC, "MlpPolicy", None, cartpole_v1(), batch_size=size)
    assert_raises(ValueError, "batch_size", next, cartpole_v1().batches(size))
    with pytest.raises(ValueError, match="demo_batch_size"):
        GAIL(cartpole_v1(), PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8), demo_batch_size=size)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 42])
def test_batches_of_every_size_hold_each_row_once(size: int) -> None:
    """imitation refuses a batch larger than the data and drops what is left over; here the last batch is smaller."""
    data = Demonstrations.from_arrays(np.arange(5), np.full(5, 100), episode_ends=[5], **SPACES)
    batches = list(data.batches(size, seed=0))
    assert [len(batch) for batch in batches] == [size] * (5 // size) + [5 % size] * (5 % size > 0)
    assert sorted(np.concatenate([batch.observations for batch in batches]).tolist()) == list(range(5))


def test_columns_of_different_lengths_are_refused() -> None:
    wrong: Any = np.full(5, 100), STATES, ACTIONS
    assert_raises(ValueError, "observations", recorded, np.arange(6), *wrong)
    assert_raises(ValueError, "next_observations", recorded, np.arange(5), *wrong, next_observations=np.arange(4))


def test_every_form_of_the_same_data_gives_the_same_rows() -> None:
    trajectories = [Trajectory(np.array([0, 1]), np.array([100]), None, True)]
    trajectories += [Trajectory(np.array([4, 5, 6]), np.array([102, 103]), None, True)]
    trajectories += [Trajectory(np.array([10, 11, 12, 13]), np.array([104, 105, 106]), None, False)]
    columns: dict[str, Any] = {"observations": [0, 4, 5, 10, 11, 12], "actions": [100, 102, 103, 104, 105, 106]}
    columns |= {"next_observations": [1, 5, 6, 11, 12, 13], "terminations": [True, False, True, False, False, False]}
    columns |= {"truncations": [False, False, False, False, False, True]}
    read = Demonstrations.from_imitation(trajectories, **SPACES)
    made = Demonstrations.from_arrays(**columns, **SPACES)
    for data in (read, made):
        assert data.episode_lengths().tolist() == [1, 2, 3]
        parts = list(data.batches(2))
        assert [len(part) for part in parts] == [2, 2, 2]
        for name, wanted in columns.items():
            found = np.concatenate([getattr(part, name) for part in parts])
            assert found.tolist() == wanted, name
    agents = [BC("MlpPolicy", None, data, batch_size=2, seed=0).learn(total_epochs=2) for data in (read, made)]
    assert same_parameters(*agents)
    stores = [expert_store(data, STATES, horizon=None, needs_next=True).state() for data in (read, made)]
    assert stores[0].keys() == stores[1].keys()
    assert all(np.array_equal(stores[0][name], stores[1][name]) for name in ("observations", "actions", "terminated"))
