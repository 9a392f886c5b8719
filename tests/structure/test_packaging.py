"""pyproject.toml, constraints.txt and the Makefile agree with each other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from support import REPOSITORY

EXTRAS = "contrib minari datasets envpool hub optuna privacy torchrl rllib flower docs envs wandb trackio video".split()  # noqa: SIM905

# Stands in for a Python: notes each call, makes .venv by copying itself, and fails at the step that FAIL_AT names.
FAKE_PYTHON = """#!/bin/sh
echo "$*" >> calls.txt
case "$*" in
    *"$FAIL_AT"*)
        exit 1 ;;
    "-m venv"*)
        mkdir -p .venv/bin && cp "$0" .venv/bin/python
        printf '#!/bin/sh\\necho trained "$@"\\n' > .venv/bin/rlsmooth && chmod +x .venv/bin/rlsmooth ;;
esac
"""


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    path = REPOSITORY / "pyproject.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))["project"]


def constraints_of(extra: str) -> list[str]:
    """The lines of the constraints for an extra: for Flower, those of its own file and the others'."""
    own, others = (
        (REPOSITORY / name).read_text(encoding="utf-8").splitlines()
        for name in ("constraints-flower.txt", "constraints.txt")
    )
    replaced = {line.partition("==")[0] for line in own}
    return (
        [*own, *(line for line in others if line.partition("==")[0] not in replaced)] if extra == "flower" else others
    )


@pytest.fixture(scope="module", params=["dev", "flower"])
def pins(request: pytest.FixtureRequest) -> dict[str, Requirement]:
    lines = constraints_of(request.param)
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pins = {canonicalize_name(requirement.name): requirement for requirement in requirements}
    assert len(pins) == len(requirements), "a package is pinned twice"
    return pins


def version_of(pin: Requirement) -> str:
    """Return the one version that `pin` allows."""
    (specifier,) = pin.specifier
    assert specifier.operator == "=="
    return specifier.version


def test_python_311_is_the_oldest(project: dict[str, Any]) -> None:
    versions = SpecifierSet(project["requires-python"])
    assert "3.11" in versions
    assert "3.10" not in versions
    assert sys.version_info >= (3, 11)


def test_the_core_dependencies_are_those_of_the_design(project: dict[str, Any]) -> None:
    core = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    environments_and_arrays = {"gymnasium", "numpy", "stable-baselines3", "torch"}
    files_and_threads = {"pyyaml", "safetensors", "threadpoolctl"}
    assert core == {*environments_and_arrays, *files_and_threads, "matplotlib", "rich", "tensorboard", "tqdm", "tyro"}
    assert set(project["optional-dependencies"]) == {
        *EXTRAS,
        "test",
        "dev",
    }


def test_every_dependency_is_pinned_within_its_range(project: dict[str, Any], pins: dict[str, Requirement]) -> None:
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    for requirement in map(Requirement, lines):
        if canonicalize_name(requirement.name) not in ("rlsmooth", *({"flwr"} - pins.keys())):
            version = version_of(pins[canonicalize_name(requirement.name)])
            assert version in requirement.specifier, f"{requirement} does not allow {version}"


@pytest.mark.slow
@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_is_resolved_against_the_constraints(extra: str, repository: Path, tmp_path: Path) -> None:
    pinned = tmp_path / "constraints.txt"
    pinned.write_text("\n".join(constraints_of(extra)), encoding="utf-8")
    words = ["install", "--dry-run", "--ignore-installed", "--quiet", "--constraint", str(pinned), f".[{extra}]"]
    found = subprocess.run(
        [sys.executable, "-m", "pip", *words], cwd=repository, capture_output=True, text=True, check=False
    )
    if "No matching distribution found for setuptools" in found.stderr:
        pytest.skip("no package index can be reached")
    assert found.returncode == 0, found.stderr


def test_a_pin_fits_every_machine(pins: dict[str, Requirement]) -> None:
    for pin in pins.values():
        assert "+" not in version_of(pin)  # a local build, such as +cpu
        assert pin.url is None


def make(folder: Path, *arguments: str, fail_at: str = "nothing") -> subprocess.CompletedProcess[str]:
    """Run make in `folder` with the fake Python, free of what an outer make has set."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment |= {"FAIL_AT": fail_at, "PYTHON": str(folder / "fake-python")}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def checkout(tmp_path: Path, repository: Path) -> Path:
    """A folder, with a space in its name, that has the Makefile and a fake Python."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(repository / name, folder)
    (folder / "fake-python").write_text(FAKE_PYTHON)
    (folder / "fake-python").chmod(0o755)
    return folder


def calls(folder: Path) -> list[str]:
    """List what the fake Python was asked to do about environments and packages since the last look."""
    path = folder / "calls.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [line for line in lines if re.match(r"(-P )?-m (venv|pip install|pytest)", line)]


def test_make_train_installs_once_with_torch_first(checkout: Path) -> None:
    first = make(checkout, "train")
    assert first.returncode == 0, first.stderr
    assert "trained bc --env CartPole-v1" in first.stdout
    venv, torch, package = calls(checkout)
    assert venv.startswith("-m venv")
    assert "--constraint constraints.txt" in torch
    assert re.search(r" torch==[\d.]+$", torch)
    assert package.endswith("--editable .")
    assert "trained" in make(checkout, "train").stdout
    assert calls(checkout) == []


def test_make_test_adds_the_development_tools(checkout: Path) -> None:
    assert make(checkout, "test").returncode == 0
    *_, tools, pytest_call = calls(checkout)
    assert tools.endswith("--editable .[dev]")
    assert pytest_call.startswith("-P -m pytest")


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt"])
def test_a_changed_file_installs_again(checkout: Path, changed: str) -> None:
    make(checkout, "train")
    calls(checkout)
    newer = (checkout / ".venv").stat().st_mtime + 10
    os.utime(checkout / changed, (newer, newer))
    assert make(checkout, "train").returncode == 0
    assert len(calls(checkout)) == 2


@pytest.mark.parametrize("step", ["--editable", "torch=="])
def test_an_installation_that_failed_is_done_again(checkout: Path, step: str) -> None:
    failed = make(checkout, "train", fail_at=step)
    assert failed.returncode != 0
    assert "trained" not in failed.stdout
    calls(checkout)
    assert "trained" in make(checkout, "train").stdout
    assert calls(checkout)[-1].endswith("--editable .")


def test_a_moved_tree_installs_again(checkout: Path) -> None:
    make(checkout, "train")
    moved = checkout.rename(checkout.with_name("another folder"))
    calls(moved)
    assert make(moved, "train").returncode == 0
    assert calls(moved)[-1].endswith("--editable .")


@pytest.mark.parametrize(
    ("fails", "says"),
    [("version_info", "No Python >= 3.11 found"), ("ensurepip", "lacks the venv or ensurepip module")],
)
def test_a_python_that_will_not_do_is_a_clear_error(checkout: Path, fails: str, says: str) -> None:
    failed = make(checkout, "train", fail_at=fails)
    assert failed.returncode != 0
    assert says in failed.stderr
    assert not (checkout / ".venv").exists()


def test_make_alone_lists_the_targets(checkout: Path) -> None:
    listed = make(checkout).stdout
    for target in [
        "train",
        "train-ppo",
        "test",
        "test-slow",
        "test-flower",
        "lint",
        "types",
        "wheel-check",
        "bench",
        "coverage",
        "clean",
    ]:
        assert f"make {target} " in listed


def test_make_runs_modules_of_the_checkout_that_the_wheel_leaves_out(repository: Path) -> None:
    recipes = (repository / "Makefile").read_text(encoding="utf-8")
    modules = re.findall(r"-m (rlsmooth\.scripts\.(?:bench|studies)\.\w+)", recipes)
    assert len(modules) > 10
    for module in modules:
        spec = find_spec(module)
        assert spec is not None, module
        assert spec.origin is not None
        assert Path(spec.origin).resolve().is_relative_to(repository / "scripts")
