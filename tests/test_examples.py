"""The example projects of docs/examples run in an empty directory where only the wheel is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from rlsmooth.agents import BC
from rlsmooth.data import cartpole_v1


@pytest.fixture(scope="module")
def agent_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    agent = BC("MlpPolicy", None, cartpole_v1(), smoothing=0.1, seed=0, device="cpu")
    agent.learn(total_epochs=3)
    return agent.save(tmp_path_factory.mktemp("agent") / "agent.zip")


@pytest.mark.parametrize(
    ("example", "pattern"),
    [("act_with_agent", r"return (\d+)"), ("ppo_from_agent", r"return before (\d+), after (\d+)")],
)
def test_an_example_runs_with_the_wheel_alone(
    example: str, pattern: str, agent_file: Path, repository: Path, wheel_python: Path, tmp_path: Path
) -> None:
    shutil.copy(repository / "docs" / "examples" / example / "main.py", tmp_path)
    shutil.copy(agent_file, tmp_path / "mine.zip")
    command = [str(wheel_python), "main.py", "mine.zip"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    match = re.search(pattern, finished.stdout)
    assert match is not None, finished.stdout
    # A warm start that copied nothing would leave PPO's return near 20.
    assert all(float(number) >= 150 for number in match.groups()), finished.stdout
