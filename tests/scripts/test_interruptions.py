"""Kills, signals, full disks, dead workers and second starts: what a training command leaves, and what it says."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shlex
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from commands import run_here
from killing import assert_same_runs, command_interrupted
from rlsmooth.scripts import command as command_module
from rlsmooth.scripts.environment import WorkerDiedError, make_envs
from rlsmooth.scripts.main import main

CPU = ("--device", "cpu")
PLAY = ("--eval-freq", "-1", "--eval-episodes", "2", *CPU)
OFTEN = ("--save-freq", "256", *PLAY)
TEN = {
    "bc": ("--epochs", "20", "--checkpoint-freq", "6400", *PLAY),
    "bco": ("--rounds", "4", "--transitions-per-round", "500", "--epochs", "2", "--eval-episodes", "2", *CPU),
    "dagger": ("-n", "2500", "--train-expert", "2048", "--epochs", "2", "--eval-episodes", "2", *CPU),
    "gail": ("-n", "4096", *OFTEN),
    "airl": ("-n", "4096", *OFTEN),
    "ppo": ("-n", "8192", "--smoothing", "0.1", *OFTEN),
    "a2c": ("-n", "6000", "--env", "CartPole-v1", *OFTEN),
    "classify": ("--epochs", "40", "--checkpoint-freq", "2", "--smoothing", "lin_0.2", *CPU),
    "self-train": ("--rounds", "4", "--epochs", "20", "--criterion", "k_best", "--k-best", "200", *CPU),
    "gan": ("--steps", "1000", "--checkpoint-freq", "100", "--eval-freq", "250", "--eval-samples", "100", *CPU),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", TEN)
def test_five_kills_at_random_moments_lead_to_the_same_bits(programs: Any, tmp_path: Path, command: str) -> None:
    whole, killed, lines = command_interrupted(programs, tmp_path, [signal.SIGKILL] * 5, command, *TEN[command])
    assert "stopped 5" in lines or "stopped 4" in lines, lines
    assert_same_runs(whole, killed, same_windows=command != "bc")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", TEN)
def test_a_signal_leaves_a_checkpoint_of_the_moment(programs: Any, tmp_path: Path, command: str, number: int) -> None:
    whole, stopped, lines = command_interrupted(programs, tmp_path, [number, signal.SIGKILL], command, *TEN[command])
    assert "stopped 2" in lines
    assert "moment True" in lines, lines
    assert any(re.search(f"To resume from the last checkpoint: rlsmooth {command} --resume", line) for line in lines)
    assert_same_runs(whole, stopped, same_windows=command != "bc")


def send_when(is_there: Callable[[], bool], send: Callable[[], object]) -> threading.Thread:
    """Call `send` as soon as `is_there()`, in a thread."""

    def wait() -> None:
        end = time.monotonic() + 60
        while not is_there() and time.monotonic() < end:
            time.sleep(0.005)
        send()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "number", "unit"),
    [
        (("ppo", "-n", "100000000", "--save-freq", "100000000", *PLAY), signal.SIGTERM, "step"),
        (("bc", "--epochs", "100000", "--checkpoint-freq", "100000000", *PLAY), signal.SIGINT, "batch"),
        (("gan", "--steps", "1000000", "--eval-freq", "-1", *CPU), signal.SIGTERM, "step"),
        (("classify", "--data", "iris", "--epochs", "1000000", *CPU), signal.SIGINT, "epoch"),
        (
            ("bco", "--transitions-per-round", "200", "--rounds", "2", "--epochs", "100000", *CPU),
            signal.SIGTERM,
            "batch",
        ),
        (
            ("dagger", "--train-expert", "256", "--epochs", "100000", "--eval-episodes", "1", *CPU),
            signal.SIGINT,
            "batch",
        ),
        (("self-train", "--data", "iris", "--n-labels", "20", "--epochs", "100000", *CPU), signal.SIGTERM, "epoch"),
    ],
)
def test_a_command_that_is_told_to_end_saves_first(
    tmp_path: Path, capsys: Any, words: tuple[str, ...], number: int, unit: str
) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]

    def is_there() -> bool:
        inner = {"bco": "checkpoints/round_*", "dagger": "checkpoints/round_*", "self-train": "checkpoints/fit_*"}.get(
            words[0], "checkpoints"
        )
        return bool(list(tmp_path.glob("*/*/config.json")) and list(tmp_path.glob(f"*/*/{inner}/checkpoint_*.zip")))

    thread = send_when(is_there, lambda: (time.sleep(0.3), os.kill(os.getpid(), number)))
    assert main([*words, "-f", str(tmp_path)]) == 128 + number
    thread.join()
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before
    (folder,) = tmp_path.glob("*/*")
    newest = max(folder.rglob("checkpoint_*.zip"), key=lambda path: path.stat().st_mtime_ns)
    step = int(newest.stem.split("_")[1])
    printed = capsys.readouterr()
    assert f"A checkpoint of {unit} {step:,} was written. To resume" in printed.out
    assert f"rlsmooth {words[0]} --resume {folder}" in printed.out
    assert step > 0


SAID = re.compile(r"rlsmooth ((?:[\w-]+ --resume|evaluate -i) .*)")
LONG = {  # too long to end within the test
    "bc": ("--epochs", "100000", "--checkpoint-freq", "640", *PLAY),
    "bco": ("--transitions-per-round", "200", "--rounds", "2", "--epochs", "100000", "--eval-episodes", "2", *CPU),
    "dagger": ("--train-expert", "256", "--epochs", "100000", "--eval-episodes", "1", *CPU),
    "gail": ("-n", "100000000", "--n-episodes", "4", *OFTEN),
    "airl": ("-n", "100000000", "--n-episodes", "4", *OFTEN),
    "ppo": ("-n", "100000000", "--env", "Pendulum-v1", "--env-kwargs", "g:9.0", "--frame-stack", "2", *OFTEN),
    "a2c": ("-n", "100000000", *OFTEN),
    "maskable-ppo": ("-n", "100000000", *OFTEN),
    "recurrent-ppo": ("-n", "100000000", *OFTEN, "-params", "n_steps=32"),
    "classify": ("--data", "iris", "--epochs", "1000000", "--checkpoint-freq", "20", *CPU),
    "self-train": ("--data", "iris", "--n-labels", "20", "--epochs", "100000", *CPU),
    "gan": ("--steps", "1000000", "--eval-freq", "-1", "--checkpoint-freq", "20", *CPU),
    "federated": ("--data", "iris", "--auxiliary", "20", "--rounds", "100000", *CPU),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", LONG)
def test_what_an_interrupted_command_says_can_be_typed(tmp_path: Path, capsys: Any, command: str) -> None:
    """It is resumed, interrupted once more, and evaluated, by nothing but the lines that were printed."""

    def interrupted(*words: str) -> list[str]:
        begun = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/checkpoints/**/checkpoint_*.zip")}

        def is_further() -> bool:
            now = tmp_path.glob("*/*/checkpoints/**/checkpoint_*.zip")
            return any(begun.get(path) != path.stat().st_mtime_ns for path in now if path.exists())

        thread = send_when(is_further, lambda: (time.sleep(0.2), os.kill(os.getpid(), signal.SIGINT)))
        assert main([*words]) == 130
        thread.join()
        return SAID.findall(capsys.readouterr().out)

    said = interrupted(command, *LONG[command], "-f", str(tmp_path))
    assert said[0].startswith(f"{command} --resume ")
    said = interrupted(*shlex.split(said[0]))
    assert said[0].startswith(f"{command} --resume ")
    if command in ("classify", "self-train", "gan", "federated"):
        return
    assert said[1].startswith("evaluate -i ")
    assert main([*shlex.split(said[1]), "--eval-episodes", "1", *CPU]) == 0


def test_a_run_without_checkpoints_says_that_it_is_lost(tmp_path: Path, capsys: Any) -> None:
    thread = send_when(
        lambda: bool(list(tmp_path.glob("*/*/config.json"))),
        lambda: (time.sleep(0.3), os.kill(os.getpid(), signal.SIGTERM)),
    )
    assert main(["ppo", "-n", "100000000", "--save-freq", "-1", *PLAY, "-f", str(tmp_path)]) == 143
    thread.join()
    assert "wrote no checkpoints, so it can't be resumed" in capsys.readouterr().out


# ---- a folder is one process's


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_here(tmp_path_factory.mktemp("small"), "gan", "--steps", "20", "--checkpoint-freq", "10", *CPU)


def test_a_second_process_is_refused(small: Path, capsys: Any) -> None:
    other = os.open(small, os.O_RDONLY)  # an open file of its own, as another process has
    fcntl.flock(other, fcntl.LOCK_EX)
    before = {path: path.read_bytes() for path in small.rglob("*") if path.is_file()}
    assert main(["gan", "--resume", str(small)]) == 2
    assert "another process is training in" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in small.rglob("*") if path.is_file()} == before
    os.close(other)
    assert main(["gan", "--resume", str(small)]) == 0
    assert main(["gan", "--resume", str(small)]) == 0  # the lock is gone with the run


def test_temporary_files_of_kills_are_deleted(small: Path) -> None:
    left = [small / ".metrics.csv.tmp", small / ".gan.zip.0a_b12zz.tmp"]
    left += [small / "checkpoints" / ".checkpoint_10.zip.abcd_123.tmp", small / "deeper" / ".a.npz.12345678.tmp"]
    mine = [small / ".notes.tmp.txt", small / "checkpoints" / "notes.tmp"]
    for path in (*left, *mine):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert main(["gan", "--resume", str(small)]) == 0
    assert [path.exists() for path in (*left, *mine)] == [False] * len(left) + [True] * len(mine)


# ---- full disks and dead workers


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, ("ppo", "-n", "512", *OFTEN)),
        pytest.param(errno.EDQUOT, ("bc", "--epochs", "1", "--checkpoint-freq", "640", *PLAY), marks=pytest.mark.slow),
        (errno.EIO, ("gan", "--steps", "20", "--checkpoint-freq", "5", "--eval-freq", "-1", *CPU)),
        (errno.ENOSPC, ("classify", "--data", "iris", "--epochs", "2", *CPU)),
    ],
)
def test_a_full_disk_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, number: int, words: tuple[str, ...]
) -> None:
    calls = 0

    def fsync(_: int) -> None:
        nonlocal calls
        calls += len(list(tmp_path.glob("*/*/checkpoints/*.zip")))
        if calls > 2:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr("rlsmooth.atomic.os.fsync", fsync)
    assert main([*words, "-f", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert f"could not be written ({os.strerror(number)}). What was saved before is as it was" in printed.err
    assert str(tmp_path) in printed.err
    (folder,) = tmp_path.glob("*/*")
    assert f"To resume from the last checkpoint: rlsmooth {words[0]} --resume {folder}" in printed.out
    assert not list(folder.rglob("*.tmp"))
    monkeypatch.undo()
    assert main([words[0], "--resume", str(folder)]) == 0


@pytest.mark.slow
def test_a_dead_worker_is_named_whether_it_is_found_when_sending_or_receiving() -> None:
    env: Any = make_envs("CartPole-v1", 2, 0, vec_env="subproc")
    env.reset()
    actions = [0, 0]
    env.step_async(actions)
    env.step_wait()
    os.kill(env.processes[1].pid, signal.SIGKILL)
    env.processes[1].join()
    message = rf"environment 1 \(pid {env.processes[1].pid}\) has ended by signal 9 \(SIGKILL\).*--vec-env subproc"
    for _ in range(3):
        with pytest.raises(WorkerDiedError, match=message):
            env.step(actions)
    env.processes[0].kill()
    env.closed = True


def test_only_a_reader_that_has_gone_ends_a_command_without_a_word(
    capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(_: Any) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    from rlsmooth.scripts.plot import Args

    assert command_module.run_command("plot", Args, broken, [str(tmp_path)]) == 2
    assert "Broken pipe" in capsys.readouterr().err


# ---- an interrupted run is evaluated and shown as it was at its last checkpoint


@pytest.mark.parametrize(
    "words",
    [
        ("ppo", "--env", "Pendulum-v1", "-n", "512", *OFTEN, "-params", "normalize=True", "use_sde=False"),
        pytest.param(("bc", "--epochs", "1", *PLAY), marks=pytest.mark.slow),
        pytest.param(
            ("dagger", "-n", "200", "--train-expert", "256", "--epochs", "1", "--eval-episodes", "1", *CPU),
            marks=pytest.mark.slow,
        ),
        pytest.param(("gail", "-n", "512", *OFTEN, "--n-envs", "1", "-params", "n_steps=256"), marks=pytest.mark.slow),
    ],
)
def test_the_last_checkpoint_is_evaluated(tmp_path: Path, capsys: Any, words: tuple[str, ...]) -> None:
    folder = run_here(tmp_path, *words)
    command = ["evaluate", "-i", str(folder), "--eval-episodes", "3", *CPU, "--json"]
    assert main([*command, str(tmp_path / "whole.json")]) == 0
    (folder / "agent.zip").unlink()
    assert main([*command, str(tmp_path / "checkpoint.json")]) == 0
    assert "has not ended: this is its agent at checkpoint" in capsys.readouterr().out
    whole, checkpoint = ((tmp_path / f"{name}.json").read_text() for name in ("whole", "checkpoint"))
    assert whole.replace("whole.json", "") == checkpoint.replace("checkpoint.json", "")
    assert main(["enjoy", str(folder), "--no-render", "--max-steps", "5", *CPU]) == 0
