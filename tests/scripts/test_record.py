"""`rlsmooth record`, run as a file and called from Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tyro
from stable_baselines3 import A2C

from rlsmooth.data import Demonstrations
from rlsmooth.scripts import record
from support import REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "record.py"


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, cwd=folder, check=False
    )


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("agent") / "agent.zip"
    A2C("MlpPolicy", "CartPole-v1", seed=0, device="cpu").save(path)
    return path


def test_an_expert_is_trained_evaluated_saved_and_recorded(tmp_path: Path) -> None:
    arguments = ["--env", "CartPole-v1", "--train-expert", "256", "--n-episodes", "5", "--eval-episodes", "3"]
    result = run(*arguments, "--n-envs", "2", "--seed", "1", "--device", "cpu", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "logs" / "record" / "CartPole-v1_1"
    assert sorted(path.name for path in folder.iterdir()) == ["demonstrations.npz", "expert.zip"]
    read = Demonstrations.load(folder / "demonstrations.npz")
    assert read.num_episodes == 5
    assert read.metadata["expert"]["n_timesteps"] == 256
    assert read.metadata["expert"]["evaluation"]["sampled"]["n_episodes"] == 3
    assert str(tmp_path) not in str(read.metadata)
    assert "expert, deterministic: return" in result.stdout
    assert "5 episodes" in result.stdout


def test_the_same_command_gives_the_same_file(tmp_path: Path) -> None:
    files = []
    for name in ("one.npz", "two.npz"):
        arguments = record.Args(
            env="MountainCar-v0",
            n_timesteps=256,
            n_episodes=2,
            eval_episodes=1,
            device="cpu",
            log_folder=tmp_path / "logs",
            output=tmp_path / name,
        )
        assert record.main(arguments) == tmp_path / name
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]
    assert sorted(path.name for path in (tmp_path / "logs" / "record").iterdir()) == [
        "MountainCar-v0_1",
        "MountainCar-v0_2",
    ]


def test_a_trained_agent_is_recorded_with_the_short_flags(agent: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = ["--algo", "a2c", "-i", str(agent), "--n-episodes", "3", "--stochastic", "-f", str(tmp_path), "-P"]
    path = record.main(tyro.cli(record.Args, args=arguments))
    assert "3/3" in capsys.readouterr().err  # the progress bar
    assert path == tmp_path / "record" / "CartPole-v1_1" / "demonstrations.npz"
    read = Demonstrations.load(path)
    assert read.metadata["deterministic"] is False
    assert read.metadata["command"] == "rlsmooth record --algo a2c --n-episodes 3 --stochastic"


def test_agents_of_sb3_contrib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contrib = pytest.importorskip("sb3_contrib")
    contrib.RecurrentPPO(
        "MlpLstmPolicy", "CartPole-v1", seed=0, device="cpu", policy_kwargs={"lstm_hidden_size": 4}
    ).save(tmp_path / "agent.zip")
    arguments = record.Args(
        algo="ppo_lstm", trained_agent=tmp_path / "agent.zip", n_episodes=2, output=tmp_path / "out.npz", device="cpu"
    )
    assert Demonstrations.load(record.main(arguments)).metadata["policy"] == "RecurrentPPO"
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(ValueError, match=r'pip install "rlsmooth\[contrib\]"'):
        record.main(arguments)


def test_an_error_is_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    result = run("--env", "NoSuchEnv-v0", "--train-expert", "10", folder=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("rlsmooth record: error: env='NoSuchEnv-v0' is not known")
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "give either --trained-agent, or --train-expert"),
        ({"trained_agent": Path("x.zip"), "n_timesteps": 5}, "give either"),
        ({"trained_agent": Path("missing.zip")}, "trained_agent='missing.zip' is no file"),
        ({"n_timesteps": -1}, "n_timesteps=-1"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        record.main(record.Args(log_folder=tmp_path, device="cpu", **changes))


def test_bad_agents_and_low_returns(agent: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npz"
    broken = tmp_path / "broken.zip"
    broken.write_bytes(agent.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"broken.zip' can't be loaded as a2c"):
        record.main(record.Args(algo="a2c", trained_agent=broken, output=output, device="cpu"))
    with pytest.raises(ValueError, match=r"less than min_return=500: nothing was written"):
        record.main(
            record.Args(algo="a2c", trained_agent=agent, output=output, device="cpu", n_episodes=2, min_return=500)
        )
    assert not output.exists()
