"""Writes `files/`: one file of every kind that the package writes, checkpoint folders of unfinished runs, and reports.

They were written by version 0.1.0 at commit 4fa6d8d, and are never written again, only added to: a case whose folder
exists is left alone. Whatever is read from them later must be what was written then.

    python -P tests/frozen/make.py

`FILES`, `RUNS` and `COMMANDS` say of each case how it was made and how to read it back; `tests/test_frozen.py` does the
latter. Only names that the packages of `rlsmooth` export are used, so that modules may move. Training data are uniform
random numbers, which, other than normal ones, are the same on every processor: a resumed run compares them.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import sb3_contrib
import stable_baselines3
import torch
from safetensors import safe_open
from safetensors.torch import save_file

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER))  # neither the tests nor this folder are a package

from frozen_cases import algorithms, cloning, commands, data, imitation, trainers  # noqa: E402
from frozen_cases.common import CutOffError, File, Run, Tensors  # noqa: E402

EXPECTED = "expected.safetensors"

FILES: dict[str, File] = {**cloning.FILES, **algorithms.FILES, **imitation.FILES, **trainers.FILES, **data.FILES}
RUNS: dict[str, Run] = {**cloning.RUNS, **algorithms.RUNS, **imitation.RUNS, **trainers.RUNS}
COMMANDS: dict[str, commands.Command] = commands.COMMANDS


def machine() -> dict[str, str]:
    """What decides about the last bits of a number."""
    model = platform.processor()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return {
        "processor": model,
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "gymnasium": gym.__version__,
        "stable_baselines3": stable_baselines3.__version__,
        "sb3_contrib": sb3_contrib.__version__,
    }


def expected(name: str) -> tuple[Tensors, dict[str, str]]:
    """What was stored for a case, and the machine that it comes from."""
    with safe_open(FOLDER / "files" / name / EXPECTED, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["machine"])  # noqa: SIM118


def file_state(case: File, folder: Path) -> Tensors:
    """All that is compared of a file, by `kept/`, `answers/` and `trained/`."""
    read = case.read(folder)
    found = {f"kept/{name}": tensor for name, tensor in case.kept(read).items()}
    found |= {f"answers/{name}": tensor for name, tensor in case.answers(read).items()}
    if case.train_on is not None:
        found |= {f"trained/{name}": tensor for name, tensor in case.train_on(read).items()}
    return found


def write_case(name: str, folder: Path) -> None:
    """Write one case into its folder, and what is expected of it."""
    folder.mkdir(parents=True)
    if name in COMMANDS:
        found = commands.write_command(COMMANDS[name], folder)
    elif name in FILES:
        FILES[name].write(folder)
        found = file_state(FILES[name], folder)
    else:
        run, checkpoints = RUNS[name], folder / "checkpoints"
        try:
            run.start(checkpoints)
        except CutOffError:
            pass
        else:
            raise AssertionError(f"{name} was not cut off")
        found = run.state(run.start(None))
    found = {key: tensor.contiguous().clone() for key, tensor in found.items()}
    save_file(found, folder / EXPECTED, {"machine": json.dumps(machine())})


def main() -> None:
    """Write the cases that are missing."""
    torch.set_num_threads(1)
    for name in [*FILES, *RUNS, *COMMANDS]:
        folder = FOLDER / "files" / name
        if folder.exists():
            continue
        try:
            write_case(name, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            print(f"{name} failed", file=sys.stderr)
            raise
        print(f"{name}: {sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) // 1024} KB")


if __name__ == "__main__":
    main()
