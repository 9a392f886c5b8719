"""`rlsmooth bc` as its users run it: what it writes, what it prints, and that a killed run goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from commands import OF_EVERY_RUN, assert_resumed_unchanged, assert_table, assert_written, parameters
from killing import kill_command
from rlsmooth.agents import BC
from rlsmooth.data import cartpole_v1, record
from rlsmooth.scripts.main import main
from rlsmooth.scripts.metrics_file import read_metrics
from support import read_events, same_tensors

FEW = ("--n-episodes", "3", "--validation-fraction", "0.34", "--device", "cpu")
TINY = (*FEW, "--epochs", "2", "--eval-episodes", "2")


def run(command: Sequence[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in `folder`, and fail with what it printed if it fails."""
    finished = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a tiny run, started as a user would, and what it printed."""
    home = tmp_path_factory.mktemp("home")
    result = run([sys.executable, "-W", "error", "-m", "rlsmooth.scripts.main", "bc", *TINY], home)
    return home / "logs" / "bc" / "CartPole-v1_1", result.stdout


def test_all_files_are_written(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    assert_written(folder, ["agent.zip"], [*TINY, "--env", "CartPole-v1"])
    settings = json.loads((folder / "config.json").read_text())
    assert settings["arguments"]["n_episodes"] == 3
    assert settings["arguments"]["smoothing"] == "0.1"
    assert settings["versions"]["torch"] == torch.__version__


def test_the_agent_acts(finished: tuple[Path, str]) -> None:
    agent = BC.load(finished[0] / "agent.zip")
    action, _ = agent.predict(np.zeros(4, np.float32), deterministic=True)
    assert int(action) in (0, 1)
    assert agent.num_timesteps == 2 * 16  # 1,000 transitions in batches of 64


def test_the_metrics_have_a_row_for_each_log_line_and_evaluation(finished: tuple[Path, str]) -> None:
    curves = read_metrics(finished[0] / "metrics.csv")
    assert curves["bc/loss"][0] == list(range(1, 33))
    assert curves["bc/val_loss"][0] == curves["bc/loss"][0]
    assert curves["eval/mean_reward"][0] == [0, 32]
    assert curves["bc/loss"][1][-1] < curves["bc/loss"][1][0]


def test_tensorboard_reads_the_events(finished: tuple[Path, str]) -> None:
    events = read_events(finished[0])
    tags = events.Tags()
    assert {"bc/loss", "bc/policy_entropy", "bc/val_ece", "eval/mean_reward", "eval/mean_reward_sampled"} <= set(
        tags["scalars"]
    )
    assert "bc/target_matrix" in tags["images"]
    assert [name for name in tags["images"] if "reliability" in name]
    assert [name for name in tags["histograms"] if "entropy" in name]
    assert [event.step for event in events.Scalars("bc/loss")] == list(range(1, 33))


def test_the_table_says_what_the_report_says(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    summary = json.loads((folder / "report.json").read_text())["summary"]
    rows = {
        "return, deterministic": f"{summary['mean_reward']:.1f} ± {summary['std_reward']:.1f}",
        "return, sampled": f"{summary['mean_reward_sampled']:.1f} ± {summary['std_reward_sampled']:.1f}",
        "accuracy": f"{100 * summary['accuracy']:.1f} %",
        "negative log-likelihood": f"{summary['nll_hard']:.3f} nats",
        "calibration error (ECE)": f"{summary['ece']:.3f}",
        "policy entropy": f"{summary['policy_entropy']:.3f} nats ({100 * summary['entropy_frac']:.1f} % of log n)",
        "KL(uniform‖policy)": f"{summary['kl_uniform']:.3f} nats",
    }
    assert_table(printed, rows)
    assert "samples a second" in printed
    assert "tensorboard --logdir logs/bc/CartPole-v1_1" in printed
    assert "the 1 held-out episodes" in printed


def test_the_summary_is_that_of_the_agent_on_the_held_out_episode(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    summary = json.loads((folder / "report.json").read_text())["summary"]
    _, held_out = cartpole_v1().sample_episodes(3, 0).split(0.34, 0)
    policy: Any = BC.load(folder / "agent.zip", device="cpu").policy
    observations = torch.as_tensor(np.asarray(held_out.observations))
    with torch.no_grad():
        probs = policy.get_distribution(observations).distribution.probs.double().numpy()
    labels = np.asarray(held_out.action_labels)
    assert summary["accuracy"] == pytest.approx(np.mean(probs.argmax(-1) == labels), abs=1e-6)
    assert summary["nll_hard"] == pytest.approx(-np.log(probs[np.arange(len(labels)), labels]).mean(), rel=1e-4)
    assert summary["policy_entropy"] == pytest.approx(-(probs * np.log(probs)).sum(-1).mean(), rel=1e-4)
    assert summary["kl_uniform"] == pytest.approx(-np.log(2) - 0.5 * np.log(probs).sum(-1).mean(), rel=1e-3)


def test_a_run_killed_at_any_moment_goes_on_to_the_same_parameters(tmp_path: Path) -> None:
    settings = [*FEW, "--epochs", "16", "--eval-freq", "-1", "--checkpoint-freq", "3200", "--eval-episodes", "1"]
    whole, folder = kill_command("bc", settings, tmp_path, 100)
    expected, resumed = map(parameters, (whole, folder))
    assert same_tensors(expected, resumed)
    there, here = (read_metrics(path / "metrics.csv") for path in (whole, folder))
    assert there["bc/val_loss"] == here["bc/val_loss"]
    assert there["bc/loss"][0] == here["bc/loss"][0]


def test_resuming_a_finished_run_changes_nothing_but_its_report(finished: tuple[Path, str], tmp_path: Path) -> None:
    assert_resumed_unchanged(finished[0], tmp_path, metrics=False)


def test_timesteps_schedules_patience_noise_and_another_tensorboard_folder(tmp_path: Path) -> None:
    words = [
        "--demonstrations",
        "cartpole-v1-noisy",
        "-n",
        "640",
        "--smoothing",
        "lin_0.2",
        "--learning-rate",
        "lin_3e-3",
    ]
    words += ["--batch-size", "32", "--gradient-accumulation", "2", "--action-noise", "0.1", "--spread", "others"]
    words += ["--net-arch", "8", "--eval-episodes", "1", "-f", str(tmp_path / "logs"), "-tb", str(tmp_path / "tb")]
    assert main(["bc", *words, "--checkpoint-freq", "-1", "--eval-freq", "-1"]) == 0
    folder = tmp_path / "logs" / "bc" / "CartPole-v1_1"
    curves = read_metrics(folder / "metrics.csv")
    assert curves["bc/batch"][1][-1] == 10
    assert curves["bc/smoothing"][1][-1] == 0
    assert "bc/val_loss" not in curves  # one episode: none is held out
    assert curves["eval/mean_reward"][0] == [10]
    assert not (folder / "checkpoints").exists()
    assert [path.name for path in (tmp_path / "tb").iterdir()] == ["CartPole-v1_1"]
    assert not list(folder.glob("events*"))


def demonstrations_of(env: str, path: Path) -> Path:
    """Four episodes of random actions; where there are masks, of the action that is always legal."""
    space = gym.make(env).action_space
    space.seed(0)
    record((lambda state: state) if "Masked" in env else (lambda _: space.sample()), env, 4, seed=0).save(path)
    return path


@pytest.mark.parametrize(
    ("env", "options"),
    [
        ("rlsmooth/IdentityBox-v0", []),
        ("rlsmooth/IdentityBox-v0", ["--action-bins", "5", "--reference", "triangular"]),
        ("rlsmooth/IdentityMultiDiscrete-v0", ["--kl-coef", "0.1"]),
        pytest.param("rlsmooth/IdentityMultiBinary-v0", [], marks=pytest.mark.slow),
        ("rlsmooth/IdentityMasked-v0", []),
        ("rlsmooth/IdentityMasked-v0", ["--policy", "MlpPolicy"]),
    ],
)
def test_other_action_spaces(env: str, options: list[str], tmp_path: Path) -> None:
    path = demonstrations_of(env, tmp_path / "demonstrations.npz")
    words = ["bc", "--env", env, "--demonstrations", str(path), "--epochs", "2", "--eval-episodes", "1"]
    assert main([*words, *options, "-f", str(tmp_path)]) == 0
    folder = tmp_path / "bc" / f"{env.replace('/', '-')}_1"
    assert {path.name for path in folder.iterdir()} >= OF_EVERY_RUN | {"agent.zip"}
    assert main(["evaluate", "-i", str(folder), "--eval-episodes", "1", "--demonstrations", str(path)]) == 0
