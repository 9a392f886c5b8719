"""`rlsmooth gail` and `airl` as their users run them: files, numbers, `plot`, `evaluate`, `enjoy`, and a killed run."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from rlsmooth.agents import GAIL, RewardNet, SmoothedPPO, load_agent, load_reward_net
from rlsmooth.agents.adversarial.reward_nets import build_net
from rlsmooth.data import cartpole_v1
from rlsmooth.scripts.environment import make_envs
from rlsmooth.scripts.hyperparameters import read_hyperparameters, resolve_hyperparameters
from rlsmooth.scripts.main import main
from rlsmooth.scripts.metrics_file import read_metrics
from rlsmooth.training import checkpoint_steps

if TYPE_CHECKING:
    from conftest import Programs

COMMAND = "import sys; from rlsmooth.scripts.main import main; sys.exit(main(sys.argv[1:]))"
ON = ("--real-target", "0.9", "--smoothing", "0.05", "--n-episodes", "2", "--reward-net-arch", "8", "8")
TINY = ("-n", "768", "--eval-freq", "512", "--save-freq", "256", "--eval-episodes", "2", "--device", "cpu")
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
    "reward_net.zip",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, programs: Programs) -> tuple[Path, str]:
    """The folder of a tiny run of GAIL, in a process of its own, and what it printed."""
    home = tmp_path_factory.mktemp("home")
    result = programs.run(COMMAND, home, "gail", *TINY, *ON, warnings_are_errors=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return home / "logs" / "gail" / "CartPole-v1_1", result.stdout


@pytest.fixture(scope="module")
def report(finished: tuple[Path, str]) -> dict[str, Any]:
    return dict(json.loads((finished[0] / "report.json").read_text()))


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    """Of the generator and of the reward net, of the saved run."""
    policy = load_agent(folder / "agent.zip", device="cpu").policy.state_dict()
    return {**policy, **load_reward_net(folder / "reward_net.zip").state_dict(prefix="reward_net.")}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_all_files_are_written(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    names = {path.name for path in folder.iterdir()}
    assert names >= FILES
    assert [name.startswith("events.out.tfevents.") for name in names - FILES] == [True]
    words = shlex.split((folder / "command.txt").read_text())
    assert words[:2] == ["rlsmooth", "gail"]
    assert {*ON, "--n-timesteps", "768", "--env", "CartPole-v1", "--seed", "0"} <= set(words)
    assert imread(folder / "report.png").shape[:2] == (1000, 1600)
    assert checkpoint_steps(folder / "checkpoints") == [512, 768]


def test_the_run_is_that_of_gail(finished: tuple[Path, str], report: dict[str, Any]) -> None:
    folder, _ = finished
    values = {**read_hyperparameters("ppo", "CartPole-v1"), "n_timesteps": 768, "smoothing": 0.05}
    settings = resolve_hyperparameters(values, SmoothedPPO)
    generator = SmoothedPPO("MlpPolicy", make_envs("CartPole-v1", 8, 0), seed=0, device="cpu", **settings.arguments)
    spaces = generator.observation_space, generator.action_space
    net = build_net(lambda: RewardNet(*spaces, net_arch=[8, 8]), 0)
    demonstrations = cartpole_v1().sample_episodes(2, 0)
    trainer = GAIL(demonstrations, generator, net, real_target=0.9, seed=0).learn(768)
    expected = {**generator.policy.state_dict(), **net.state_dict(prefix="reward_net.")}
    assert same(parameters(folder), expected)
    assert trainer.rounds == 3
    curves = read_metrics(folder / "metrics.csv")
    assert curves["mean/disc/disc_acc_expert"][0] == [256, 512, 768]
    assert curves["train/policy_entropy"][0] == [256, 512, 768]
    assert curves["eval/mean_reward"][0] == [0, 512, 768]
    summary = report["summary"]
    assert summary["demonstrated_return"] == 500
    assert summary["disc/disc_probability_gen"] == curves["mean/disc/disc_probability_gen"][1][-1]
    assert summary["steps"] == 768
    assert summary["largest_entropy"] == pytest.approx(math.log(2))


def test_tensorboard_and_the_table_say_the_same(finished: tuple[Path, str], report: dict[str, Any]) -> None:
    folder, printed = finished
    events = EventAccumulator(str(folder))
    events.Reload()
    found = report["summary"]
    scalars = events.Scalars("mean/disc/disc_acc_expert")
    assert [event.step for event in scalars] == [256, 512, 768]
    assert scalars[-1].value == pytest.approx(found["disc/disc_acc_expert"])
    probability, accuracy = found["disc/disc_probability_expert"], found["disc/disc_acc_expert"]
    for row, words in {
        "return, sampled": f"{found['mean_reward_sampled']:.1f} ± {found['std_reward_sampled']:.1f}",
        "return, demonstrations": "500.0",
        "D on the expert": f"{probability:.3f}, right {100 * accuracy:.1f} %",
        "policy entropy": f"{found['policy_entropy']:.3f} nats",
        "training": "768 steps",
    }.items():
        assert any(row in line and words in line for line in printed.splitlines()), row
    assert "1,000 in 2 episodes" in printed


def test_evaluate_and_plot_work_on_it(finished: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = finished
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    numbers = tmp_path / "numbers.json"
    for agent in (copy, copy / "best_agent.zip"):
        assert main(["evaluate", "-i", str(agent), "--eval-episodes", "1", "--json", str(numbers)]) == 0
        assert json.loads(numbers.read_text())["sampled"]["policy_entropy"] > 0
    (copy / "report.png").unlink()
    assert main(["plot", str(copy)]) == 0
    assert (imread(copy / "report.png") == imread(folder / "report.png")).all()
    (copy / "report.json").unlink()  # as of a run that goes on: what was logged so far
    assert main(["plot", str(copy)]) == 0
    assert imread(copy / "report.png").shape[:2] == (1000, 1600)


def test_enjoy_films_it(finished: tuple[Path, str], tmp_path: Path) -> None:
    pytest.importorskip("pygame")
    film = tmp_path / "agent.gif"
    assert main(["enjoy", str(finished[0]), "--video", str(film), "--max-steps", "5"]) == 0
    assert film.read_bytes()[:3] == b"GIF"


def test_airl_runs_and_is_compared_with_gail(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, "--potential-net-arch", "8", "--terminal-states", "as_is", "-f", str(tmp_path)]
    assert main(["airl", *words, "--n-disc-updates-per-round", "1"]) == 0
    folder = tmp_path / "airl" / "CartPole-v1_1"
    assert {path.name for path in folder.iterdir()} >= FILES
    net = load_reward_net(folder / "reward_net.zip")
    assert type(net).__name__ == "ShapedRewardNet"
    assert net.gamma == load_agent(folder / "agent.zip", device="cpu").gamma == 0.98  # type: ignore[comparison-overlap]
    assert [layer.out_features for layer in net.potential.layers if isinstance(layer, torch.nn.Linear)] == [8, 1]  # type: ignore[union-attr]
    output = tmp_path / "both.svg"
    assert main(["plot", str(finished[0]), str(folder), "--output", str(output)]) == 0
    assert "<svg" in output.read_text()
    capsys.readouterr()
    assert main(["ppo", "-n", "256", "--eval-episodes", "1", "--device", "cpu", "-f", str(tmp_path)]) == 0
    assert main(["plot", str(folder), str(tmp_path / "ppo" / "CartPole-v1_1")]) == 2
    assert "runs of gail or airl and on-policy can't be compared" in capsys.readouterr().err


def test_resuming_a_finished_run_changes_nothing(finished: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "CartPole-v1_1"
    shutil.copytree(finished[0], folder)
    assert main(["gail", "--resume", str(folder)]) == 0
    assert same(parameters(finished[0]), parameters(folder))
    assert read_metrics(folder / "metrics.csv") == read_metrics(finished[0] / "metrics.csv")


@pytest.mark.parametrize("command", ["gail", pytest.param("airl", marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_to_the_same_parameters(command: str, tmp_path: Path, repository: Path) -> None:
    settings = [*ON, "-n", "2048", "--save-freq", "256"]
    settings += ["--eval-freq", "1024", "--eval-episodes", "2", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, repository / "scripts" / f"{command}.py", *settings, "-f", tmp_path / "killed"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    folder = tmp_path / "killed" / command / "CartPole-v1_1"
    end = time.monotonic() + 120
    while not (folder / "checkpoints").is_dir() or max(checkpoint_steps(folder / "checkpoints"), default=0) < 512:
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        assert time.monotonic() < end
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / "agent.zip").exists()
    assert main(["plot", str(folder)]) == 0
    assert main([command, "--resume", str(folder)]) == 0
    assert main([command, *settings, "-f", str(tmp_path / "whole")]) == 0
    whole = tmp_path / "whole" / command / "CartPole-v1_1"
    assert same(parameters(whole), parameters(folder))
    there, here = (read_metrics(path / "metrics.csv") for path in (whole, folder))
    assert {name: curve for name, curve in there.items() if name[:5] != "time/"} == {
        name: curve for name, curve in here.items() if name[:5] != "time/"
    }
    with np.load(whole / "evaluations.npz") as one, np.load(folder / "evaluations.npz") as other:
        assert all((one[name] == other[name]).all() for name in one.files)
