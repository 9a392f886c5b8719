"""SB3's own zips, which are pickles, are evaluated and shown only where `--trust` asks for it."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from commands import assert_refused, evaluated
from rlsmooth.scripts.main import main

CPU = ("--device", "cpu")


def test_without_trust_a_zip_of_sb3s_is_refused_and_nothing_in_it_runs(tmp_path: Path, capsys: Any) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "mark",)

    path = tmp_path / "agent.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data", pickle.dumps(Runs()))
        file.writestr("policy.pth", pickle.dumps(Runs()))
    says = "a pickle, which can run any code when it is loaded: if you trust who made it, give --trust"
    for words in (["evaluate", "-i", str(path)], ["enjoy", str(path), "--no-render"]):
        assert_refused(says, [*words, "--env", "CartPole-v1", *CPU], capsys)
        assert not (tmp_path / "mark").exists()
    words = ["evaluate", "-i", str(path), "--env", "CartPole-v1", "--trust", "--algo", "a2c"]
    assert_refused("can't be loaded as a2c", words, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("algo", [A2C, DQN, PPO])
def test_with_trust_it_plays_as_sb3_says(algo: Any, tmp_path: Path, capsys: Any) -> None:
    path, trust = tmp_path / "agent.zip", ("--env", "CartPole-v1", "--trust", "--algo", algo.__name__.lower(), *CPU)
    model = algo("MlpPolicy", "CartPole-v1", seed=1, device="cpu")
    model.save(path)
    found = evaluated(path, *trust, "--n-envs", "1", "--seed", "3", episodes=2)
    env = make_vec_env("CartPole-v1", 1, seed=3)
    assert found["deterministic"]["mean_reward"] == evaluate_policy(model, env, 2)[0]
    assert "is a pickle: code in it runs now" in capsys.readouterr().out
    assert main(["enjoy", str(path), *trust, "--no-render", "--max-steps", "3"]) == 0


@pytest.mark.slow
def test_rl_zoos_statistics_beside_it_are_used(tmp_path: Path) -> None:
    venv = VecNormalize(make_vec_env("Pendulum-v1", 2, seed=0))
    model = PPO("MlpPolicy", venv, seed=1, device="cpu", n_steps=64, batch_size=64, learning_rate=0.01).learn(1024)
    model.save(tmp_path / "Pendulum-v1.zip")
    (tmp_path / "Pendulum-v1").mkdir()
    venv.save(str(tmp_path / "Pendulum-v1" / "vecnormalize.pkl"))
    words = ("--env", "Pendulum-v1", "--trust", "--n-envs", "1", "--seed", "3", *CPU)
    found = evaluated(tmp_path / "Pendulum-v1.zip", *words, episodes=2)
    plain = VecNormalize.load(
        str(tmp_path / "Pendulum-v1" / "vecnormalize.pkl"), make_vec_env("Pendulum-v1", 1, seed=3)
    )
    plain.training = plain.norm_reward = False
    assert found["deterministic"]["mean_reward"] == pytest.approx(evaluate_policy(model, plain, 2)[0], abs=1e-3)
