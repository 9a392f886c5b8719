"""The study of value targets: its truth is the truth, its heads learn, and it runs from start to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rlsmooth.scripts.studies import value_targets
from rlsmooth.scripts.studies.runner import Args

PNG = b"\x89PNG\r\n\x1a\n"


def test_the_chances_are_of_a_walk_that_stays_at_the_goal() -> None:
    chances, cells, goal = value_targets.four_rooms()
    assert len(cells) == 104
    np.testing.assert_allclose(chances.sum(-1), 1.0)
    np.testing.assert_array_equal(chances[goal[0], :, goal[0]], 1.0)


def test_the_optimum_is_that_of_policy_iteration() -> None:
    chances, _, goal = value_targets.four_rooms()
    best = value_targets.optimum(chances, goal)
    rewards = chances[:, :, goal[0]].copy()
    rewards[goal] = 0.0
    actions = np.zeros(len(chances), dtype=np.int64)
    for _ in range(100):  # Howard's policy iteration, each policy evaluated exactly
        rows = np.arange(len(chances))
        steps = chances[rows, actions]
        values = np.linalg.solve(np.eye(len(chances)) - value_targets.DISCOUNT * steps, rewards[rows, actions])
        q = rewards + value_targets.DISCOUNT * chances @ values
        improved = q.argmax(-1)
        if (q[rows, improved] <= q[rows, actions] + 1e-12).all():
            break
        actions = improved
    np.testing.assert_allclose(best, q, atol=1e-9)
    assert value_targets.policy_value(best.argmax(-1), chances, goal) == pytest.approx(np.delete(values, goal).mean())


@pytest.mark.parametrize("head", value_targets.HEADS)
def test_each_head_learns_constant_values(head: str) -> None:
    torch.manual_seed(0)
    critic = value_targets.Critic(head)
    optimiser = torch.optim.Adam(critic.parameters(), lr=0.01)
    places, actions = torch.rand(64, 2 * len(value_targets.ROOMS)), torch.zeros(64, dtype=torch.int64)
    goals = critic.goals(torch.full((64,), 0.4))
    for _ in range(150):
        optimiser.zero_grad()
        critic.loss(places, actions, goals).backward()
        optimiser.step()
    assert critic(places)[:, 0].sub(0.4).abs().max() < 0.05


@pytest.mark.slow
def test_it_runs_from_start_to_end(tmp_path: Path) -> None:
    value_targets.main(Args(folder=tmp_path / "runs", results=tmp_path, workers=1, small=True))
    assert (tmp_path / "value_targets.png").read_bytes().startswith(PNG)
    assert json.loads((tmp_path / "value_targets.json").read_text())
    assert "hl_gauss" in (tmp_path / "value_targets.md").read_text()
