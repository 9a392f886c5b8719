"""Kill runs by SIGKILL, in processes of their own, and resume them: of every trainer, and of commands."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlsmooth.scripts.main import main
from rlsmooth.scripts.metrics_file import read_metrics
from rlsmooth.training import checkpoint_steps
from support import REPOSITORY, assert_equal

PROGRAM = """
import os, pickle, random, signal, sys, time
from pathlib import Path
import torch
sys.path.insert(0, HELPERS)
from trainers import TRAINERS
torch.set_num_threads(1)
trainer = TRAINERS[sys.argv[1]]
trainer.times = int(sys.argv[2])

def place(name):  # how far the checkpoints of a run have come
    newest = {}
    for path in Path(name).rglob("checkpoint_*.zip"):
        newest[path.parent] = max(int(path.stem.split("_")[1]), newest.get(path.parent, 0))
    return sum(newest.values())

def train(name):
    print(name, place(name), flush=True)
    try:
        trained = trainer.resume(Path(name))
    except ValueError:  # killed before its first checkpoint
        trained = trainer.start(Path(name))
    Path(f"{name}.pickle").write_bytes(pickle.dumps(trainer.state(trained)))

def start(name):  # forked, so that the libraries are imported once; killed all the same
    process = os.fork()
    if process == 0:
        train(name)
        os._exit(0)
    return process

assert os.waitpid(start("whole"), 0)[1] == 0
moments = random.Random(0)
for share in (0, 0.25, 0.5, 0.75):  # of the whole run: a fixed time would be too early or too late on another machine
    process, goal = start("killed"), share * place("whole")
    while place("killed") < goal and os.waitpid(process, os.WNOHANG)[0] == 0:
        time.sleep(0.001)
    time.sleep(moments.uniform(0.0, 0.03))
    os.kill(process, signal.SIGKILL)
    print("killed" if os.WIFSIGNALED(os.waitpid(process, 0)[1]) else "too late", flush=True)
assert os.waitpid(start("killed"), 0)[1] == 0
"""


def assert_same_after_kills(programs: Any, folder: Path, trainer: str, times: int) -> None:
    """Kill a run of `trainers.TRAINERS` four times, and compare its end with that of an uninterrupted run."""
    helpers = repr(str(REPOSITORY / "tests" / "helpers"))
    done = programs.run(PROGRAM.replace("HELPERS", helpers), folder, trainer, str(times))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines.count("killed") == 4, lines
    assert any(line.startswith("killed ") and not line.endswith(" 0") for line in lines), lines  # resumed midway
    assert not list(folder.rglob(".*.tmp"))  # of a save that was killed
    one, two = (pickle.loads((folder / f"{name}.pickle").read_bytes()) for name in ("whole", "killed"))
    assert_equal(one, two)


def kill(process: subprocess.Popen[bytes], is_there: Callable[[], bool]) -> None:
    """Wait until `is_there()`, then send SIGKILL; the process must still be running."""
    end = time.monotonic() + 120
    while not is_there():
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        assert time.monotonic() < end
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def children(process: subprocess.Popen[Any]) -> Iterator[tuple[int, dict[bytes, bytes]]]:
    """The process ids of those that a process has started, and their environments."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            entries = dict(part.partition(b"=")[::2] for part in path.read_bytes().split(b"\0"))
            parent = int(path.with_name("stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent == process.pid:
            yield int(path.parent.name), entries


def assert_ended(pids: Collection[int], seconds: float = 60) -> None:
    """Processes end within that time by themselves; those that do not are killed here."""
    end = time.monotonic() + seconds
    while (there := [pid for pid in pids if Path(f"/proc/{pid}").exists()]) and time.monotonic() < end:
        time.sleep(0.05)
    for pid in there:
        os.kill(pid, signal.SIGKILL)
    assert not there


def kill_command(
    command: str,
    settings: Sequence[str],
    logs: Path,
    reached: int | Callable[[Path], bool],
    *,
    run: str = "CartPole-v1_1",
    result: str = "agent.zip",
) -> tuple[Path, Path]:
    """Kill `rlsmooth COMMAND SETTINGS` once a checkpoint is reached; plot it, resume it, and run it without a kill.

    Returns:
        The folder of the whole run, and that of the one that was killed.
    """
    whole, killed = (logs / name / command / run for name in ("whole", "killed"))
    process = subprocess.Popen(
        [sys.executable, REPOSITORY / "scripts" / f"{command.replace('-', '_')}.py", *settings, "-f", logs / "killed"],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )

    def is_there() -> bool:
        if callable(reached):
            return reached(killed / "checkpoints")
        return max(checkpoint_steps(killed / "checkpoints"), default=0) >= reached

    kill(process, is_there)
    assert not (killed / result).exists()
    assert main(["plot", str(killed)]) == 0  # as far as it is
    assert main([command, "--resume", str(killed)]) == 0
    assert main([command, *settings, "-f", str(logs / "whole")]) == 0
    return whole, killed


COMMANDS = """
import os, pathlib, random, signal, sys, time
import torch, stable_baselines3, sb3_contrib, sklearn.datasets, matplotlib.pyplot  # once, before the forks
from rlsmooth.scripts.main import main
from rlsmooth.scripts.metrics_file import read_metrics
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
numbers, command, *words = sys.argv[1:]
moments = random.Random(len(command))

def start(*more):
    process = os.fork()
    if process == 0:
        code = 1
        try:
            code = main([command, *more])
        finally:
            sys.stdout.flush()
            os._exit(code)
    return process

def newest():  # a run that was killed before it had its settings begins anew, in another folder
    found = sorted(pathlib.Path("killed").glob("*/*/config.json"), key=lambda path: path.stat().st_mtime)
    return found[-1].parent if found else None

def seconds(process):  # its own, on the CPU: a loaded machine does not move the moment
    try:
        user, system = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    except (FileNotFoundError, ProcessLookupError):
        return float("inf")
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

_, status, usage = os.wait4(start(*words, "-f", "whole"), 0)
assert status == 0
whole = usage.ru_utime + usage.ru_stime
stopped = 0
for number in map(int, numbers.split(",")):
    folder, before = newest(), time.time()
    process = start(*words, "-f", "killed") if folder is None else start("--resume", str(folder))
    while newest() is None and os.waitpid(process, os.WNOHANG)[0] == 0:
        time.sleep(0.001)
    moment = seconds(process) + moments.uniform(0.05, 0.3) * whole
    while seconds(process) < moment and os.waitpid(process, os.WNOHANG)[0] == 0:
        time.sleep(0.001)
    try:
        os.kill(process, number)
    except ProcessLookupError:
        continue
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in (0, -9 if number == 9 else 128 + number), code
    stopped += code != 0
    if number != 9 and code != 0:
        recent = [path for path in newest().rglob("checkpoint_*.zip") if path.stat().st_mtime >= before]
        print("moment", bool(recent))
print("stopped", stopped)
assert os.waitpid(start("--resume", str(newest())), 0)[1] == 0
print("folder", newest())
"""
CLOCK = ("time/", "bc/samples_per_second", "gan/steps_per_second")


def command_interrupted(programs: Any, home: Path, numbers: Sequence[int], *words: str) -> tuple[Path, Path, list[str]]:
    """Run a command whole, and once more with a signal of each of `numbers` at a random moment, resumed after each.

    Returns:
        The folder of the whole run, that of the other one, and the lines that were printed.
    """
    done = programs.run(COMMANDS, home, ",".join(map(str, numbers)), *words)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    folder = next(line.removeprefix("folder ") for line in lines if line.startswith("folder "))
    (whole,) = (home / "whole").glob("*/*")
    return whole, home / folder, lines


def assert_same_runs(whole: Path, killed: Path, *, same_windows: bool = True) -> None:
    """Both runs have the same tensors in all their files, the same metrics but for clocks, and no temporary file."""
    assert not list(killed.rglob(".*.tmp"))
    there, here = (read_metrics(path / "metrics.csv") for path in (whole, killed))
    steps = [line.split(",")[0] for line in (killed / "metrics.csv").read_text().splitlines()]
    assert len(set(steps)) == len(steps)
    assert there.keys() == here.keys()
    for name, curve in there.items():
        if not name.startswith(CLOCK):
            assert curve[0] == here[name][0], name
            assert not same_windows or curve == here[name], name
    names = [path.name for path in whole.glob("*.zip")]
    assert names
    for name in names:
        with zipfile.ZipFile(whole / name) as one, zipfile.ZipFile(killed / name) as other:
            tensors = [member for member in one.namelist() if member.endswith(".safetensors")]
            assert tensors == [member for member in other.namelist() if member.endswith(".safetensors")]
            assert all(one.read(member) == other.read(member) for member in tensors), name
    if (whole / "evaluations.npz").exists():
        with np.load(whole / "evaluations.npz") as one_file, np.load(killed / "evaluations.npz") as other_file:
            assert_equal(dict(one_file), dict(other_file))
