"""`rlsmooth evaluate`, `enjoy` and `record` of off-policy agents, and the distributions that these act from."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib import QRDQN, TQC
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from rlsmooth.agents import save_agent
from rlsmooth.agents.acting_distributions import CategoricalActing, GaussianActing
from rlsmooth.data import Demonstrations
from rlsmooth.scripts.enjoy_panel import choices_of, entropy_of_choice, read_choice
from rlsmooth.scripts.loading import off_policy_acting
from rlsmooth.scripts.main import main


def small() -> dict[str, Any]:
    """Arguments of a small algorithm; made anew, since SB3 writes into its `policy_kwargs`."""
    return {"buffer_size": 10, "policy_kwargs": {"net_arch": [8]}, "seed": 0, "device": "cpu"}


@pytest.mark.parametrize("algorithm", [DQN, QRDQN])
def test_a_q_network_acts_greedily_but_for_its_exploration(algorithm: type[DQN] | type[QRDQN]) -> None:
    agent = algorithm("MlpPolicy", "CartPole-v1", **small())
    agent.exploration_rate = 0.4
    observations = np.repeat(np.array([[0.1, -0.2, 0.3, 0.4]], np.float32), 4000, axis=0)
    acting = off_policy_acting(agent, torch.as_tensor(observations[:1]))
    assert isinstance(acting, CategoricalActing)
    greedy = int(agent.predict(observations[0], deterministic=True)[0])
    expected = np.full(2, 0.2)
    expected[greedy] = 0.8
    assert acting.probabilities()[0][0].tolist() == pytest.approx(expected)
    nats, fraction = entropy_of_choice(acting)
    assert nats == pytest.approx(-(0.2 * math.log(0.2) + 0.8 * math.log(0.8)))
    assert fraction == pytest.approx(nats / math.log(2))
    # SB3 tosses one coin for a whole batch: single states are asked.
    drawn = [int(agent.predict(observations[0])[0]) for _ in range(1000)]
    assert np.mean(np.array(drawn) == greedy) == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / 1000))


@pytest.mark.parametrize("algorithm", [SAC, TQC])
def test_sac_acts_from_a_squashed_gaussian(algorithm: type[SAC] | type[TQC]) -> None:
    agent = algorithm("MlpPolicy", "Pendulum-v1", **small())
    observation = np.array([[0.5, 0.2, -1.0]], np.float32)
    acting = read_choice(agent, observation, None, None, np.ones(1, dtype=bool))
    assert isinstance(acting, GaussianActing)
    drawn = agent.predict(np.repeat(observation, 4000, axis=0))[0][:, 0] / 2  # Pendulum's actions are in [-2, 2]
    before = np.arctanh(np.clip(drawn.astype(np.float64), -1 + 1e-9, 1 - 1e-9))
    std = float(acting.log_std.exp())
    assert before.mean() == pytest.approx(float(acting.mean), abs=4 * std / math.sqrt(4000))
    assert before.std() == pytest.approx(std, rel=0.06)
    assert entropy_of_choice(acting) == (pytest.approx(0.5 * math.log(2 * math.pi * math.e * std**2)), None)
    action = agent.predict(observation, deterministic=True)[0][0]
    (choice,) = choices_of(acting, action, agent=agent)
    assert choice.mean == pytest.approx(2 * math.tanh(float(acting.mean)), abs=0.2)  # type: ignore[union-attr]


def saved(agent: OffPolicyAlgorithm, env: str, folder: Path) -> Path:
    """The agent's file, with what names its environment."""
    settings = {"command": "ppo", "arguments": {"env": env}, "hyperparameters": {}}
    (folder / "config.json").write_text(json.dumps(settings))
    return save_agent(agent, folder / "agent.zip")


def test_the_commands_read_their_files(tmp_path: Path) -> None:
    path = saved(DQN("MlpPolicy", "CartPole-v1", **small()), "CartPole-v1", tmp_path)
    numbers = tmp_path / "numbers.json"
    assert main(["evaluate", "-i", str(path), "--eval-episodes", "3", "--json", str(numbers)]) == 0
    found = json.loads(numbers.read_text())["sampled"]
    assert found["policy_entropy"] == 0  # its exploration begins with `learn`
    assert "kl_uniform" not in found
    assert main(["enjoy", str(path), "--no-render", "--max-steps", "3"]) == 0
    output = tmp_path / "demonstrations.npz"
    assert main(["record", "-i", str(path), "--n-episodes", "2", "--output", str(output)]) == 0
    assert Demonstrations.load(output).num_episodes == 2


def test_an_agent_without_a_distribution_is_played_and_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(TD3("MlpPolicy", "Pendulum-v1", **small()), "Pendulum-v1", tmp_path)
    numbers = tmp_path / "numbers.json"
    assert main(["evaluate", "-i", str(path), "--eval-episodes", "1", "--json", str(numbers)]) == 0
    assert set(json.loads(numbers.read_text())["sampled"]) == {
        "mean_reward",
        "std_reward",
        "min_reward",
        "mean_ep_length",
    }
    capsys.readouterr()
    assert main(["enjoy", str(path), "--no-render", "--max-steps", "3"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rlsmooth enjoy: error: a TD3 acts from no distribution")
