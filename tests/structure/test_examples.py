"""The example projects of docs/examples run in an empty directory where only the wheel is installed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

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
    example: str, pattern: str, agent_file: Path, repository: Path, wheel_programs: Any, tmp_path: Path
) -> None:
    program = (repository / "docs" / "examples" / example / "main.py").read_text(encoding="utf-8")
    shutil.copy(agent_file, tmp_path / "mine.zip")
    finished = wheel_programs.run(program, tmp_path, "mine.zip")
    assert finished.returncode == 0, finished.stderr
    match = re.search(pattern, finished.stdout)
    assert match is not None, finished.stdout
    # A warm start that copied nothing would leave PPO's return near 20.
    assert all(float(number) >= 150 for number in match.groups()), finished.stdout
