"""Run folders of the commands: the arguments and the report of a finished run, and two runs that were cut off."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from frozen_cases.common import Tensors
from rlsmooth.scripts.main import main

EVALUATION = "--eval-episodes 2 --device cpu"
ALGORITHM = "n_envs=2 n_steps=16 batch_size=16 n_epochs=2 policy_kwargs=dict(net_arch=[8])"
OFF_POLICY = "n_envs=2 buffer_size=60 learning_starts=8 batch_size=8 train_freq=2 gradient_steps=1 "
OFF_POLICY += "policy_kwargs=dict(net_arch=[8])"
KEPT = ("config.json", "report.json")
CHANGES = ("time", "fps", "second", "speed")
"""In the names of numbers that are others in each run."""


@dataclass(frozen=True)
class Command:
    """A run of a command.

    Attributes:
        words: the command line.
        cut: after so many steps of Adam the run is cut off, and its checkpoints kept; None: it is kept without
            checkpoints, which is to be resumed from the beginning.
    """

    words: str
    cut: int | None = None


COMMANDS: dict[str, Command] = {
    "command_bc": Command(
        "bc --n-episodes 1 --smoothing lin_0.2 --net-arch 8 --epochs 2 --eval-freq 500 --checkpoint-freq 250 "
        f"--n-envs 2 {EVALUATION}",
        cut=10,
    ),
    "command_bco": Command(
        "bco --n-episodes 1 --rounds 2 --transitions-per-round 40 --net-arch 8 --epochs 1 --inverse-epochs 1 "
        f"--n-envs 2 {EVALUATION}"
    ),
    "command_dagger": Command(
        "dagger --train-expert 64 --round-min-episodes 1 --round-min-timesteps 40 -n 80 --epochs 1 --net-arch 8 "
        f"--n-envs 2 --n-eval-envs 2 {EVALUATION}"
    ),
    "command_ppo": Command(
        "ppo -n 128 --smoothing lin_0.1 --exploration-floor 0.1 --eval-freq 40 --save-freq 16 --n-eval-envs 2 "
        f"{EVALUATION} -params {ALGORITHM}",
        cut=11,
    ),
    "command_gail": Command(  # cut off between two lines of its metrics
        "gail --algo dqn -n 128 --n-episodes 1 --eval-freq -1 --save-freq 16 --n-eval-envs 2 --demo-batch-size 8 "
        f"--gen-train-timesteps 32 --reward-net-arch 4 {EVALUATION} -params {OFF_POLICY}",
        cut=27,
    ),
    "command_airl": Command(
        "airl -n 64 --n-episodes 1 --eval-freq 40 --save-freq 16 --n-eval-envs 2 --demo-batch-size 8 "
        "--gen-train-timesteps 32 --reward-net-arch 4 --potential-net-arch 4 "
        f"{EVALUATION} -params {ALGORITHM}"
    ),
    "command_classify": Command(
        "classify --data iris --hidden-sizes 8 --smoothing lin_0.1 --epochs 6 --checkpoint-freq 2 --device cpu"
    ),
    "command_self_train": Command(
        "self-train --data iris --hidden-sizes 8 --n-labels 30 --criterion k_best --k-best 10 --rounds 2 --epochs 3 "
        "--device cpu"
    ),
    "command_gan": Command(
        "gan --case ring --hidden 8 --eval-freq 10 --eval-samples 20 -n 12 --checkpoint-freq 8 --device cpu"
    ),
}


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Be in a folder, so that no file names it, without a screen and in silence."""
    before, threads = Path.cwd(), torch.get_num_threads()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)


@contextlib.contextmanager
def interrupted(cut: int) -> Iterator[None]:
    """Let Adam fail after so many steps, as Ctrl-C would."""
    step, left = torch.optim.Adam.step, cut

    def counting(self: Any, *arguments: Any, **more: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return step(self, *arguments, **more)

    with mock.patch.object(torch.optim.Adam, "step", counting):
        yield


def write_command(command: Command, folder: Path) -> Tensors:
    """Run it to its end, keep what says how it went, and cut a second one off; return the numbers of the first.

    The folder gets `finished`, and `unfinished` if the command has a `cut`.
    """
    work = folder / "work"
    work.mkdir()
    with inside(work):
        assert main([*command.words.split(), "-f", "logs"]) == 0
        if command.cut is not None:
            with interrupted(command.cut), contextlib.redirect_stderr(io.StringIO()):
                assert main([*command.words.split(), "-f", "logs"]) != 0
    name = command.words.split()[0]
    finished, *others = sorted((work / "logs" / name).iterdir())
    (folder / "finished").mkdir()
    for kept in KEPT:
        shutil.copy(finished / kept, folder / "finished")
    for unfinished in others:
        ignored = shutil.ignore_patterns("events.*", "*.png", "command.txt")
        shutil.copytree(unfinished, folder / "unfinished", ignore=ignored)
    shutil.rmtree(work)
    return numbers(json.loads((folder / "finished" / "report.json").read_text(encoding="utf-8")))


def resume_command(command: Command, kept: Path, folder: Path) -> Tensors:
    """Resume a run that `write_command` kept, and return the numbers of its report.

    Of `finished` only the arguments are taken, so that it begins again; `unfinished` is resumed.
    """
    if kept.name == "finished":
        (folder / "run").mkdir()
        shutil.copy(kept / "config.json", folder / "run")
    else:
        shutil.copytree(kept, folder / "run")
    with inside(folder):
        assert main([command.words.split()[0], "--resume", "run"]) == 0
    return numbers(json.loads((folder / "run" / "report.json").read_text(encoding="utf-8")))


def plot_command(kept: Path, folder: Path) -> bool:
    with inside(folder):
        return main(["plot", str(kept), "--output", "report.svg"]) == 0


def numbers(report: Mapping[str, Any]) -> Tensors:
    """All curves and the last values, but for those of speed."""
    found = {f"{part}.{name}": value for part in ("curves", "summary") for name, value in report[part].items()}
    return {
        name: torch.tensor(value, dtype=torch.float64)
        for name, value in found.items()
        if not any(word in name for word in CHANGES) and not isinstance(value, (str, type(None)))
    }
