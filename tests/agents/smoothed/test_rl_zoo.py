"""RL Zoo uses our policies by their import path: nothing of it is changed, only a line in its YAML."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CONFIGURATION = """\
CartPole-v1:
  n_timesteps: 500
  n_envs: 2
  policy: "rlsmooth.agents.{policy}"
  policy_kwargs: "dict(reference='uniform', exploration_floor=0.1)"
  n_steps: 32
  batch_size: 32
  ent_coef: 0.05
"""


@pytest.mark.parametrize(
    ("algo", "policy"),
    [
        ("ppo", "SmoothedActorCriticPolicy"),
        pytest.param("ppo_lstm", "SmoothedRecurrentActorCriticPolicy", marks=pytest.mark.slow),
    ],
)
def test_rl_zoo_trains_our_policies(algo: str, policy: str, tmp_path: Path) -> None:
    import sb3_contrib
    import stable_baselines3

    (tmp_path / "conf.yml").write_text(CONFIGURATION.format(policy=policy))
    command = [sys.executable, "-m", "rl_zoo3.train", "--algo", algo, "--env", "CartPole-v1", "-n", "500"]
    command += ["--conf-file", "conf.yml", "-f", "logs", "--eval-freq", "-1", "--seed", "0", "--device", "cpu"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    algorithm: Any = stable_baselines3.PPO if algo == "ppo" else sb3_contrib.RecurrentPPO
    (saved,) = (tmp_path / "logs" / algo / "CartPole-v1_1").glob("*.zip")
    model = algorithm.load(saved, device="cpu")
    assert type(model.policy).__name__ == policy
    assert model.num_timesteps >= 500
    assert model.policy.exploration_floor == 0.1
    # SB3's tag holds the term in place of the entropy: KL, which is positive and small for so young a policy.
    (line,) = [line for line in finished.stdout.splitlines() if "entropy_loss" in line][-1:]
    assert 0 <= float(line.split("|")[2]) < 0.2
