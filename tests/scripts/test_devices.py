"""Commands that train in several processes: started, killed, resumed, and with one process that fails."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from commands import parameters
from killing import assert_ended, children
from support import REPOSITORY

pytestmark = pytest.mark.slow
BC = ("bc", "--epochs", "4", "--eval-freq", "-1", "--eval-episodes", "2", "--checkpoint-freq", "1000")


def start(home: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "rlsmooth", *words],
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    said = process.communicate(timeout=120)
    assert process.returncode == code, said
    return said


def workers(process: subprocess.Popen[str]) -> list[int]:
    """The processes that train, in the order of their ranks."""
    while len(found := {entries[b"RANK"]: pid for pid, entries in children(process) if b"RANK" in entries}) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return [found[b"0"], found[b"1"]]


def wait_for_checkpoints(folder: Path, count: int) -> None:
    while len(list(folder.glob("checkpoint_*.zip"))) < 2 or _newest(folder) < count:
        time.sleep(0.02)


def _newest(folder: Path) -> int:
    return max(int(path.stem.partition("_")[2]) for path in folder.glob("checkpoint_*.zip"))


def test_killed_processes_resume_to_the_same_bits_and_one_may_resume_alone(tmp_path: Path) -> None:
    ended(start(tmp_path, *BC, "--devices", "2", "-f", "whole"))
    whole = tmp_path / "whole/bc/CartPole-v1_1"
    for name in ("both", "one"):
        process = start(tmp_path, *BC, "--devices", "2", "-f", name)
        folder = tmp_path / name / "bc/CartPole-v1_1"
        wait_for_checkpoints(folder / "checkpoints", 64)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        devices = ("--devices", "2") if name == "both" else ()
        said, warned = ended(start(tmp_path, "bc", "--resume", f"{name}/bc/CartPole-v1_1", *devices))
        assert "from batch" in said
        assert ("num_processes was 2, is 1" in warned) == (name == "one")
        end, expected = parameters(folder), parameters(whole)
        if name == "both":
            assert all(torch.equal(end[key], expected[key]) for key in expected)
        for key in expected:
            torch.testing.assert_close(end[key], expected[key], rtol=0, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 1])
def test_all_end_soon_after_one_is_killed_and_its_run_can_be_resumed(rank: int, tmp_path: Path) -> None:
    process = start(tmp_path, *BC, "--epochs", "400", "--devices", "2")
    folder = tmp_path / "logs/bc/CartPole-v1_1"
    pids = workers(process)
    wait_for_checkpoints(folder / "checkpoints", 32)
    started = time.monotonic()
    os.kill(pids[rank], signal.SIGKILL)
    out, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert time.monotonic() - started < 30
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    if rank == 1:
        assert "another process of this run has ended" in errors
        assert "rlsmooth bc --resume" in out
    assert sorted(path.name for path in (tmp_path / "logs/bc").iterdir()) == ["CartPole-v1_1"]
    from rlsmooth.training import latest_checkpoint

    assert latest_checkpoint(folder / "checkpoints") is not None


def test_processes_save_and_end_when_their_launcher_is_killed(tmp_path: Path) -> None:
    process = start(tmp_path, *BC, "--epochs", "100000", "--devices", "2")
    pids = workers(process)
    wait_for_checkpoints(tmp_path / "logs/bc/CartPole-v1_1/checkpoints", 32)
    process.kill()
    assert_ended(pids)
    assert "rlsmooth bc --resume" in process.communicate()[0]


FAILS = """
import time
def fails(known, _):
    if ranks.rank == 1 and known["self"].num_timesteps > 90:
        print(time.time(), flush=True)
        raise ArithmeticError("this process failed")
    return True
"""


def test_the_pages_program_ends_in_all_with_the_message_of_the_one_that_raises(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "scale.md").read_text(encoding="utf-8")
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "process_group()" in code)
    for name, program in (("whole", code), ("cut", FAILS + code.replace("=50)", "=9999, callback=fails)"))):
        (tmp_path / f"{name}.py").write_text(program)
        words = ["-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", f"{name}.py"]
        found = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, timeout=150)
        fails = name == "cut"
        assert (found.returncode != 0) == fails, found.stderr
        assert ("this process failed" in found.stderr) == fails
        assert not fails or time.time() - float(found.stdout) < 30
    assert (tmp_path / "agent.zip").exists()


def test_an_error_in_one_process_is_said_once(tmp_path: Path) -> None:
    _, errors = ended(start(tmp_path, "bc", "--devices", "2", "--demonstrations", "none.npz"), 2)
    assert "none.npz" in errors
    _, errors = ended(start(tmp_path, "bc", "--devices", "0"), 2)
    assert "devices=0" in errors
    environment = {"WORLD_SIZE": "2", "RANK": "0"}
    found = subprocess.run(
        [sys.executable, "-P", "-m", "rlsmooth", "ppo"], env=os.environ | environment, capture_output=True, text=True
    )
    assert found.returncode == 2
    assert "trains in one process" in found.stderr


@pytest.mark.parametrize(
    "words",
    [("classify", "--epochs", "3"), ("self-train", "--epochs", "3"), ("bco", "--rounds", "1", "--epochs", "1")],
)
def test_the_other_commands_train_in_processes(words: tuple[str, ...], tmp_path: Path) -> None:
    said, _ = ended(start(tmp_path, *words, "--devices", "2"))
    assert "in 2 processes" in said
    alone, _ = ended(start(tmp_path, *words, *(("--engine", "torch") if words[0] == "bco" else ())))
    assert _results(said) == _results(alone)


def _results(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("│") and "speed" not in line]
