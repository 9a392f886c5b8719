"""`rlsmooth ppo` as its users run it: what it writes, what it prints, and that a killed run goes on."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from rlsmooth.agents import SmoothedPPO, load_agent
from rlsmooth.scripts.main import main
from rlsmooth.scripts.metrics_file import read_metrics
from rlsmooth.training import checkpoint_steps

TINY = ("-n", "1024", "--eval-freq", "512", "--save-freq", "512", "--eval-episodes", "3", "--device", "cpu")
ON = ("--smoothing", "0.05", "--exploration-floor", "0.1")
FILES = {
    "agent.zip",
    "best_agent.zip",
    "checkpoints",
    "command.txt",
    "config.json",
    "evaluations.npz",
    "metrics.csv",
    "report.json",
    "report.png",
}


def run(command: Sequence[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in `folder`, and fail with what it printed if it fails."""
    finished = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_agent(folder / "agent.zip", device="cpu").policy.state_dict()
    return state


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a tiny run, started as a user would, and what it printed."""
    home = tmp_path_factory.mktemp("home")
    result = run([sys.executable, "-W", "error", "-m", "rlsmooth.scripts.main", "ppo", *TINY, *ON], home)
    return home / "logs" / "ppo" / "CartPole-v1_1", result.stdout


def test_all_files_are_written(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    names = {path.name for path in folder.iterdir()}
    assert names >= FILES
    assert [name.startswith("events.out.tfevents.") for name in names - FILES] == [True]


def test_the_settings_say_how_the_run_was_made(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    settings = json.loads((folder / "config.json").read_text())
    assert settings["command"] == "ppo"
    assert settings["arguments"]["smoothing"] == "0.05"
    assert settings["hyperparameters"]["smoothing"] == "0.05"
    assert settings["hyperparameters"]["n_timesteps"] == 1024
    assert settings["hyperparameters"]["clip_range"] == "lin_0.2"
    words = shlex.split((folder / "command.txt").read_text())
    assert words[:2] == ["rlsmooth", "ppo"]
    assert {*ON, "--n-timesteps", "1024"} <= set(words)


def test_the_agent_is_what_was_asked_for(finished: tuple[Path, str]) -> None:
    agent = load_agent(finished[0] / "agent.zip", device="cpu")
    assert type(agent) is SmoothedPPO
    assert (agent.num_timesteps, agent.n_steps, agent.batch_size, agent.gamma) == (1024, 32, 256, 0.98)
    assert agent.alpha == 0.05
    assert agent.policy.exploration_floor == 0.1
    action, _ = agent.predict(np.zeros(4, np.float32), deterministic=True)
    assert int(action) in (0, 1)


def test_the_metrics_have_a_row_for_each_update_and_evaluation(finished: tuple[Path, str]) -> None:
    curves = read_metrics(finished[0] / "metrics.csv")
    assert curves["train/policy_entropy"][0] == [256, 512, 768, 1024]
    assert curves["eval/mean_reward"][0] == [0, 512, 1024]
    assert curves["rollout/ep_rew_mean"][0] == [256, 512, 768, 1024]
    assert set(curves["train/smoothing"][1]) == {0.05}
    assert set(curves["train/exploration_floor"][1]) == {0.1}
    assert curves["train/policy_entropy"][1][0] == pytest.approx(math.log(2), rel=1e-3)
    assert curves["train/entropy_frac"][1][0] == pytest.approx(1.0, rel=1e-3)


def test_tensorboard_reads_the_events(finished: tuple[Path, str]) -> None:
    events = EventAccumulator(str(finished[0]))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert tags >= {
        "eval/mean_reward",
        "eval/mean_reward_sampled",
        "rollout/ep_rew_mean",
        "time/fps",
        "train/approx_kl",
        "train/entropy_frac",
        "train/entropy_loss",
        "train/exploration_floor",
        "train/kl_reference",
        "train/kl_uniform",
        "train/policy_entropy",
        "train/smoothing",
        "train/value_loss",
    }
    curves = read_metrics(finished[0] / "metrics.csv")
    logged = events.Scalars("train/policy_entropy")
    assert [event.step for event in logged] == curves["train/policy_entropy"][0]
    assert [event.value for event in logged] == pytest.approx(curves["train/policy_entropy"][1])


def test_the_table_says_what_the_report_says(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    summary = json.loads((folder / "report.json").read_text())["summary"]
    for row, value in {
        "return, deterministic": f"{summary['mean_reward']:.1f} ± ",
        "return, sampled": f"{summary['mean_reward_sampled']:.1f} ± ",
        "best evaluation": f"{summary['best_mean_reward']:.1f} at {summary['best_step']:,.0f} steps",
        "policy entropy": f"{summary['policy_entropy']:.3f} nats ({100 * summary['entropy_frac']:.1f} % of log n)",
        "KL(uniform‖policy)": f"{summary['kl_uniform']:.3f} nats",
        "training": "1,024 steps, ",
    }.items():
        assert any(row in line and value in line for line in printed.splitlines()), row
    assert "tensorboard --logdir logs/ppo/CartPole-v1_1" in printed


def test_the_evaluations_are_those_of_sb3(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    with np.load(folder / "evaluations.npz") as file:
        steps, returns, lengths = file["timesteps"], file["results"], file["ep_lengths"]
    assert steps.tolist() == [0, 512, 1024]
    assert returns.shape == lengths.shape == (3, 3)
    best = load_agent(folder / "best_agent.zip", device="cpu")
    # The first evaluation, of an untrained network, does not count: here it is the best by luck
    assert returns[0].mean() > returns[1:].mean(1).max()
    assert best.num_timesteps == steps[1:][returns[1:].mean(1).argmax()]
    env = make_vec_env("CartPole-v1", 3)
    for name, agent in (("best_agent", best), ("agent", load_agent(folder / "agent.zip", device="cpu"))):
        env.seed(1_000_000)
        again, _ = evaluate_policy(agent, env, 3, return_episode_rewards=True)
        assert sorted(again) == sorted(returns[steps.tolist().index(agent.num_timesteps)]), name


def test_the_report_is_a_picture_of_the_stated_size(finished: tuple[Path, str]) -> None:
    pixels = imread(finished[0] / "report.png")
    assert pixels.shape[:2] == (1000, 1600)
    assert pixels[..., :3].std() > 0.05  # not an empty page


def test_with_everything_off_it_is_sb3s_ppo(tmp_path: Path) -> None:
    assert main(["ppo", *TINY, "--seed", "3", "-f", str(tmp_path)]) == 0
    env = make_vec_env("CartPole-v1", 8, seed=3)
    model = PPO(
        "MlpPolicy",
        env,
        n_steps=32,
        batch_size=256,
        gae_lambda=0.8,
        gamma=0.98,
        n_epochs=20,
        ent_coef=0.0,
        learning_rate=LinearSchedule(0.001, 0.0, 1.0),
        clip_range=LinearSchedule(0.2, 0.0, 1.0),
        seed=3,
        device="cpu",
    )
    torch.set_num_threads(1)
    model.learn(1024)
    assert same(parameters(tmp_path / "ppo" / "CartPole-v1_1"), model.policy.state_dict())


def test_a_run_killed_at_any_moment_goes_on_to_the_same_agent(tmp_path: Path, repository: Path) -> None:
    settings = ["-n", "2560", "--eval-freq", "1024", "--save-freq", "512", "--eval-episodes", "1", "--device", "cpu"]
    settings += ["--target-entropy-frac", "0.9", "--exploration-floor", "lin_0.2"]
    process = subprocess.Popen(
        [sys.executable, repository / "scripts" / "ppo.py", *settings, "-f", tmp_path / "killed"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    folder = tmp_path / "killed" / "ppo" / "CartPole-v1_1"
    end = time.monotonic() + 120
    while max(checkpoint_steps(folder / "checkpoints"), default=0) < 1024:
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        assert time.monotonic() < end
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / "agent.zip").exists()

    assert main(["plot", str(folder)]) == 0  # as far as it is
    assert main(["ppo", "--resume", str(folder)]) == 0
    assert main(["ppo", *settings, "-f", str(tmp_path / "whole")]) == 0

    whole = tmp_path / "whole" / "ppo" / "CartPole-v1_1"
    assert same(parameters(whole), parameters(folder))
    there, here = (read_metrics(path / "metrics.csv") for path in (whole, folder))
    assert there.keys() == here.keys()
    assert {name for name in there if there[name] != here[name]} <= {"time/fps", "time/time_elapsed"}
    # Not byte for byte: the episodes in the file have their clock times
    best = [load_agent(path / "best_agent.zip", device="cpu") for path in (whole, folder)]
    assert best[0].num_timesteps == best[1].num_timesteps
    assert same(best[0].policy.state_dict(), best[1].policy.state_dict())
    with np.load(whole / "evaluations.npz") as one, np.load(folder / "evaluations.npz") as other:
        assert all((one[name] == other[name]).all() for name in one)


def test_resuming_a_finished_run_changes_nothing_but_its_report(finished: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "CartPole-v1_1"
    run(["cp", "-r", finished[0], folder], tmp_path)
    before = parameters(folder), read_metrics(folder / "metrics.csv"), (folder / "evaluations.npz").read_bytes()
    assert main(["ppo", "--resume", str(folder)]) == 0
    assert same(before[0], parameters(folder))
    assert before[1:] == (read_metrics(folder / "metrics.csv"), (folder / "evaluations.npz").read_bytes())
    assert len(list(tmp_path.iterdir())) == 1


def test_evaluate_agrees_with_sb3(finished: tuple[Path, str], tmp_path: Path) -> None:
    output = tmp_path / "numbers.json"
    words = ["evaluate", "-i", str(finished[0]), "--eval-episodes", "3", "--n-envs", "1", "--seed", "7"]
    assert main([*words, "--json", str(output)]) == 0
    found: dict[str, Any] = json.loads(output.read_text())
    agent = load_agent(finished[0] / "agent.zip", device="cpu")
    env = make_vec_env("CartPole-v1", 1, seed=7)
    mean, std = evaluate_policy(agent, env, 3)
    assert found["deterministic"]["mean_reward"] == pytest.approx(mean)
    assert found["deterministic"]["std_reward"] == pytest.approx(std)
    assert 0 < found["sampled"]["policy_entropy"] <= math.log(2)
    assert found["sampled"]["entropy_frac"] == pytest.approx(found["sampled"]["policy_entropy"] / math.log(2))


def test_record_plays_the_agent(finished: tuple[Path, str], tmp_path: Path) -> None:
    from rlsmooth.data import Demonstrations

    path = tmp_path / "demonstrations.npz"
    words = ["record", "-i", str(finished[0] / "agent.zip"), "--n-episodes", "2", "--output", str(path)]
    assert main(words) == 0
    recorded = Demonstrations.load(path)
    assert recorded.metadata["expert"] == {"algo": "SmoothedPPO"}
    agent = load_agent(finished[0] / "agent.zip", device="cpu")
    actions, _ = agent.predict(np.asarray(recorded.observations), deterministic=True)
    assert (actions == recorded.actions).all()
