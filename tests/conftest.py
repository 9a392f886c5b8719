"""What every test shares: the devices, fixed seeds, no screen, one thread, and the built wheel."""

from __future__ import annotations

import os

# Set before torch, pygame and matplotlib are imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: more threads only wait for each other
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
os.environ["MPLBACKEND"] = "Agg"

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import filelock
import hypothesis
import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from rlsmooth.training import seeding
from support import REPOSITORY

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]

# The same examples in every run: a failure that comes and goes teaches nobody. HYPOTHESIS_MAX_EXAMPLES asks for more.
hypothesis.settings.register_profile(
    "rlsmooth", deadline=None, derandomize=True, max_examples=int(os.environ.get("HYPOTHESIS_MAX_EXAMPLES", "50"))
)
hypothesis.settings.load_profile("rlsmooth")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--seed`, for `make fuzz`, and `--plain-paths`, for `make test-paths`."""
    parser.addoption("--seed", type=int, default=0, help="seed of the fuzzers in tests/fuzz")
    parser.addoption("--plain-paths", action="store_true", help="the ways of torch and SB3 in place of the quick ones")


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine of two cores, where the user has not set the number of threads of torch and numpy."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr("rlsmooth.training.seeding._THREADS_AT_IMPORT", 2)
    with threadpool_limits(2, user_api="blas"):
        numbers = dict.fromkeys(seeding._BLAS_THREADS_AT_IMPORT, 2)
        monkeypatch.setattr("rlsmooth.training.seeding._BLAS_THREADS_AT_IMPORT", numbers)
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def quick_paths(request: pytest.FixtureRequest) -> None:
    """For tests of whether a quick path was taken, or of the bits of a run that a shared fixture made by one."""
    if request.config.getoption("--plain-paths"):
        pytest.skip("no quick path is taken with --plain-paths")


@pytest.fixture(autouse=True)
def _validated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's distributions check their arguments, as they do by default; importing TorchRL switches that off."""
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)


@pytest.fixture(autouse=True)
def _paths(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `--plain-paths` nothing takes a quick path; tests that compare the two compare one with itself then."""
    if not request.config.getoption("--plain-paths"):
        return
    for where, name, answer in (
        ("rlsmooth.training.flat", "_is_plain", False),  # Adam's step
        ("rlsmooth.agents.heads", "_is_unhooked", False),  # layers of an actor
        ("rlsmooth.agents.acting", "predict_plainly", None),  # `predict`
        ("rlsmooth.agents.heads", "plain_network", None),  # cloning's gradients
        ("rlsmooth.agents.smoothed.policies", "plain_network", None),  # rollouts
        ("rlsmooth.agents.smoothed.contrib", "plain_network", None),
        ("rlsmooth.agents.smoothed.algorithms", "plain_network_of", None),  # updates
        ("rlsmooth.losses.closed_form", "_is_few", False),  # torch's own loss
        ("rlsmooth.losses.closed_form", "_is_small", False),
    ):
        monkeypatch.setattr(f"{where}.{name}", lambda *given, answer=answer, **named: answer)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """What a fuzzer draws its cases from."""
    return int(request.config.getoption("--seed"))


@pytest.fixture(scope="session", params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device at hand. Session scope, so that it can stand beside hypothesis' `given`."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Start every test from the same random state, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  gymnasium, SB3 and scipy read the global generator
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root folder."""
    return REPOSITORY


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that was built from that sdist, offline, from a copy of the tree.

    From a copy, because setuptools keeps a `build` folder beside the sources and packs what is long deleted. Workers
    of one run share the folder: the first that needs it builds, and the others wait.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "distributions"
    with filelock.FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            home = tmp_path_factory.mktemp("sources")
            tree, built = home / "tree", home / "built"
            ignored = shutil.ignore_patterns(
                ".git", ".venv*", "build", "dist", "logs", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"
            )
            shutil.copytree(REPOSITORY, tree, symlinks=True, ignore=ignored)
            run_checked(
                [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(built), str(tree)], tree.parent
            )
            built.rename(folder)
    return folder


@pytest.fixture(scope="session")
def wheel(distributions: Path) -> Path:
    """The built wheel."""
    (path,) = distributions.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def wheel_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has only the wheel, and our dependencies: what another project would have.

    The dependencies come from the environment that runs the tests, through a path file. Path files inside that folder
    are not read then, so its editable rlsmooth stays out of reach.
    """
    folder = tmp_path_factory.mktemp("another project") / "venv"
    run_checked([sys.executable, "-m", "venv", "--without-pip", str(folder)], folder.parent)
    python = folder / "bin" / "python"
    install = ["install", "--no-deps", "--no-index", str(wheel)]
    run_checked([sys.executable, "-m", "pip", "--python", str(python), *install], folder)
    (site_packages,) = (folder / "lib").glob("python*/site-packages")
    dependencies = [path for path in sys.path if Path(path).name == "site-packages"]
    (site_packages / "dependencies.pth").write_text("".join(f"{path}\n" for path in dependencies))
    return python


# Importing torch and Stable-Baselines3 takes longer than most programs of the tests. Only other people's libraries are
# imported beforehand: a program's `import rlsmooth` is its own.
FORKING = """
import gc, json, os, runpy, sys, warnings
import gymnasium, stable_baselines3, torch._dynamo

gc.freeze()  # a program need not take the libraries apart when it ends: that takes a second
for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if child == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
os.chdir(request["folder"])
for descriptor, name in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
    os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), descriptor)
if request["warnings_are_errors"]:
    warnings.simplefilter("error")
sys.argv[:] = request["argv"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Programs:
    """Runs Python programs, each in a process of its own, which is forked from one that has imported the libraries."""

    def __init__(self, python: Path, folder: Path) -> None:
        self.folder = folder
        self.number = 0
        if sys.platform == "win32":
            pytest.skip("needs fork")
        self.process = subprocess.Popen(
            [str(python), "-P", "-c", FORKING],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def run(
        self, code: str, folder: Path, *arguments: str, warnings_are_errors: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run `code` in `folder` with `arguments`, to its end."""
        self.number += 1
        script, out, err = (self.folder / f"program_{self.number}.{kind}" for kind in ("py", "out", "err"))
        script.write_text(code, encoding="utf-8")
        argv = [str(script), *arguments]
        request = {"argv": argv, "folder": str(folder), "stdout": str(out), "stderr": str(err)}
        assert self.process.stdin is not None
        print(json.dumps({**request, "warnings_are_errors": warnings_are_errors}), file=self.process.stdin, flush=True)
        returncode = int(self.process.stdout.readline())
        return subprocess.CompletedProcess(argv, returncode, out.read_text("utf-8"), err.read_text("utf-8"))

    def close(self) -> None:
        """End the process that forks."""
        self.process.communicate()


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    """Programs of the Python that runs the tests."""
    running = Programs(Path(sys.executable), tmp_path_factory.mktemp("programs"))
    yield running
    running.close()


@pytest.fixture(scope="session")
def wheel_programs(wheel_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    """Programs of another project: see `wheel_python`."""
    running = Programs(wheel_python, tmp_path_factory.mktemp("programs with the wheel"))
    yield running
    running.close()


def run_checked(command: list[str], folder: Path) -> None:
    """Run `command` in `folder`, and fail with all that it printed if it fails."""
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        pytest.fail(f"{' '.join(command)} exited with {finished.returncode}:\n{finished.stdout}\n{finished.stderr}")
