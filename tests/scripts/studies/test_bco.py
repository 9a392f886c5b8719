"""The study of cloning from observation: its experts, and a small version from start to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rlsmooth.scripts.studies import bco, bco_experts
from rlsmooth.scripts.studies.runner import Args


def test_the_grid_knows_mountain_cars_dynamics() -> None:
    env: Any = gym.make("MountainCar-v0").unwrapped
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    for _ in range(200):
        position, velocity, action = rng.uniform(-1.2, 0.6), rng.uniform(-0.07, 0.07), int(rng.integers(3))
        env.state = (position, velocity)
        seen, *_ = env.step(action)
        moved = bco_experts._moved(np.array([position]), np.array([velocity]), action)
        np.testing.assert_allclose(np.concatenate(moved), seen, atol=1e-6)


@pytest.mark.slow
def test_experts_are_experts(tmp_path: Path) -> None:
    bco_experts.make_experts(tmp_path, small=True)
    found = bco_experts.references(tmp_path)
    assert found["CartPole-v1"]["expert"] == 500
    assert found["MountainCar-v0"]["expert"] > -110  # solved
    assert found["Acrobot-v1"]["expert"] > -100  # solved
    assert found["MountainCar-v0"]["random"] == -200


@pytest.mark.slow
def test_the_study_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bco.main(Args(folder=tmp_path / "runs", results=tmp_path, workers=1, small=True))
    page = (tmp_path / "bco.md").read_text(encoding="utf-8")
    assert page in capsys.readouterr().out
    assert (tmp_path / "bco.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((tmp_path / "bco.json").read_text(encoding="utf-8"))
    for env in bco.ENVS:
        runs = result["runs"][env]
        assert list(runs) == list(bco.ARMS)
        assert all(len(of_arm) == 2 for of_arm in runs.values())
        assert runs["BCO, smoothing 0.1"][0]["transitions"] == [200, 400]
        assert f"{result['references'][env]['expert']:.1f}" in page
