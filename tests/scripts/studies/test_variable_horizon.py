"""The study of variable horizons: its discriminator that can't learn, its reward of 0, and a small version of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlsmooth.agents import GAIL
from rlsmooth.scripts.studies import variable_horizon
from rlsmooth.scripts.studies.imitation_runs import demonstrations, make_generator
from rlsmooth.scripts.studies.runner import Args
from rlsmooth.scripts.studies.variable_horizon import ARMS, PREDICTED, ConstantLogit


@pytest.mark.parametrize(("form", "sign"), [("minus_log_one_minus_d", 1), ("log_d", -1)])
def test_a_constant_discriminator_never_learns_and_pays_by_the_step(form: Any, sign: int) -> None:
    given = demonstrations("CartPole-v1", 1, seed=0)
    states = np.asarray(given[np.arange(6)].observations)
    actions, ends = np.zeros(6, dtype=np.int64), np.array([False, True] * 3)
    for terminal_states, expected in (("as_is", sign * math.log(2)), ("absorbing", 0.0)):
        generator = make_generator("CartPole-v1", 0)
        trainer = GAIL(given, generator, ConstantLogit(), reward_form=form, terminal_states=terminal_states, seed=0)  # type: ignore[arg-type]
        trainer.learn(1_024)
        assert trainer.rounds == 2
        assert all(float(parameter.detach()) == 0 for parameter in trainer.reward_net.parameters())
        rewards = trainer.predict_reward(states, actions, states, ends)
        np.testing.assert_allclose(rewards, expected, atol=1e-6)
        assert expected != 0 or not rewards.any()  # exactly 0


def test_arms_have_predictions_and_both_experts_are_what_the_study_says() -> None:
    for env, arms in ARMS.items():
        assert list(PREDICTED[env]) == [arm for arm in arms if arm.startswith("D ")]
    assert (demonstrations("CartPole-v1", 2, seed=0).episode_returns() == 500).all()
    assert float(np.mean(demonstrations("Acrobot-v1", 10, seed=0).episode_returns())) > -100


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_study_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_rng_state()
    variable_horizon.main(Args(folder=tmp_path / "runs", results=tmp_path, workers=1, small=True))
    assert torch.equal(before, torch.get_rng_state())
    page = (tmp_path / "variable_horizon.md").read_text(encoding="utf-8")
    assert page in capsys.readouterr().out
    assert (tmp_path / "variable_horizon.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((tmp_path / "variable_horizon.json").read_text(encoding="utf-8"))
    for env, arms in ARMS.items():
        assert list(result["runs"][env]) == list(arms)
        assert all(len(runs) == 2 for runs in result["runs"][env].values())
        assert result["runs"][env]["PPO, true reward"][0]["steps"] == [8_192]
