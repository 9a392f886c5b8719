"""Kill runs by SIGKILL, in processes of their own, and resume them: trainers, SB3's algorithms, and commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlsmooth.scripts.main import main
from rlsmooth.training import checkpoint_steps
from support import REPOSITORY, same_tensors

# Between these two comes code that defines `train(name)`: it trains or resumes the run in the folder `name`, prints the
# name and where it begins, and saves tensors as `name`.pt.
BEFORE = """
import os, random, signal, time
import numpy as np, torch
from rlsmooth.training import checkpoint_steps
from stable_baselines3.common.torch_layers import FlattenExtractor
torch.set_num_threads(1)

class Dropping(FlattenExtractor):  # draws from torch's generator in every forward pass
    def __init__(self, space):
        super().__init__(space)
        self.dropout = torch.nn.Dropout(0.2)

    def forward(self, observations):
        return self.dropout(super().forward(observations))
"""
AFTER = """
def start(name):  # forked, so that the libraries are imported once; killed all the same
    process = os.fork()
    if process == 0:
        train(name)
        os._exit(0)
    return process

assert os.waitpid(start("whole"), 0)[1] == 0
last = max(checkpoint_steps("whole"))
moments = random.Random(0)
for goal in GOALS:  # checkpoints: a fixed time would be too early or too late on another machine
    process = start("killed")
    while max([-1, *checkpoint_steps("killed")]) < goal and os.waitpid(process, os.WNOHANG)[0] == 0:
        time.sleep(0.001)
    time.sleep(moments.uniform(0.0, 0.04))
    os.kill(process, signal.SIGKILL)
    print("killed" if os.WIFSIGNALED(os.waitpid(process, 0)[1]) else "too late", flush=True)
assert os.waitpid(start("killed"), 0)[1] == 0
"""


def assert_same_after_kills(programs: Any, folder: Path, train: str, goals: Sequence[int] | str) -> None:
    """Kill a run whenever its checkpoints reach the next goal, and compare what it saves with an uninterrupted run's.

    `goals` may be an expression with `last`, the last checkpoint of the uninterrupted run.
    """
    program = BEFORE + textwrap.dedent(train) + AFTER.replace("GOALS", str(goals))
    done = programs.run(program, folder, "-")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines.count("killed") >= (4 if isinstance(goals, str) else len(goals)), lines
    assert "too late" not in lines, lines
    assert any(line.startswith("killed ") and not line.endswith(" 0") for line in lines), lines  # resumed midway
    one, two = (torch.load(folder / f"{name}.pt", weights_only=True) for name in ("whole", "killed"))
    assert same_tensors(one, two)


def kill(process: subprocess.Popen[bytes], is_there: Callable[[], bool], delay: float = 0.0) -> None:
    """Wait until `is_there()`, then `delay` seconds, then send SIGKILL; the process must still be running."""
    end = time.monotonic() + 120
    while not is_there():
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        assert time.monotonic() < end
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def kill_and_resume(script: str, folder: Path, end: Path, *arguments: object) -> Any:
    """Kill `script FOLDER END ARGUMENTS` after its second checkpoint, run it again, and load what it saved at `end`."""
    command = [sys.executable, "-P", "-c", script, str(folder), str(end), *map(str, arguments)]
    moment = float(np.random.default_rng(os.getpid()).uniform(0.0, 0.3))  # any moment, that of a save too
    kill(subprocess.Popen(command), lambda: len(checkpoint_steps(folder)) >= 2, moment)
    assert not end.exists()
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    assert finished.stdout.startswith("resumed at ")
    return torch.load(end, weights_only=True)


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
