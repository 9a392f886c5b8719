"""The wheel holds all that the tree holds, nothing more, and works in an environment of its own, away from the tree."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(600)  # the first test here builds the wheel
DATA_FILES = ("*.npz", "*.yml", "py.typed")
CHECKOUT_ONLY = ("scripts/bench/", "scripts/studies/")


def expected_files(repository: Path) -> set[str]:
    """List the Python and data files of the tree that belong in the wheel, named as they are once installed."""
    files = set()
    for top in ("rlsmooth", "agents", "envs", "scripts"):
        for pattern in ("*.py", *DATA_FILES):
            for path in (repository / top).rglob(pattern):
                relative = path.relative_to(repository).as_posix()
                if relative.startswith(CHECKOUT_ONLY):
                    continue
                files.add(relative if top == "rlsmooth" else f"rlsmooth/{relative}")
    return files


def run(python: Path, code: str, folder: Path) -> str:
    """Run `code` in `folder`, away from the tree, and return what it prints."""
    finished = subprocess.run([str(python), "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_the_wheel_holds_every_file_of_the_tree_and_no_other(wheel: Path, repository: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == expected_files(repository)
    assert {"rlsmooth/py.typed", "rlsmooth/agents/__init__.py", "rlsmooth/scripts/main.py"} <= packed


def test_the_wheel_has_one_top_level_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"rlsmooth"}
    (top_level,) = [name for name in names if name.endswith("top_level.txt")]
    assert zipfile.ZipFile(wheel).read(top_level).decode().split() == ["rlsmooth"]


def test_the_wheel_carries_the_licence_and_the_command(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    names = archive.namelist()
    (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
    assert any(name.endswith("LICENSE") for name in names)
    assert "rlsmooth = rlsmooth.scripts.main:main" in archive.read(entry_points).decode()


def test_the_sdist_holds_what_the_wheel_is_built_from(distributions: Path) -> None:
    (path,) = distributions.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "agents/__init__.py",
        "envs/__init__.py",
        "scripts/main.py",
    } <= names


def test_an_index_would_take_the_files(distributions: Path) -> None:
    files = [str(path) for path in distributions.iterdir()]
    command = [sys.executable, "-m", "twine", "--no-color", "check", "--strict", *files]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout
    assert finished.stdout.count("PASSED") == len(files) == 2


def test_every_module_is_imported_from_the_wheel(wheel_python: Path, repository: Path, tmp_path: Path) -> None:
    modules = [
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in sorted(expected_files(repository))
        # The libraries of these two are in no environment here.
        if name.endswith(".py") and not name.startswith(("rlsmooth/integrations/rllib", "rlsmooth/integrations/flower"))
    ]
    code = f"""
import importlib, json
print(json.dumps([importlib.import_module(name).__file__ for name in {modules!r}]))
"""
    files = [Path(file) for file in json.loads(run(wheel_python, code, tmp_path))]
    environment = wheel_python.parent.parent
    assert len(files) == len(modules)
    assert [file for file in files if environment not in file.parents] == []


def test_no_package_called_agents_or_envs_comes_with_it(wheel_python: Path, tmp_path: Path) -> None:
    code = "from importlib.metadata import files; print(sorted({file.parts[0] for file in files('rlsmooth')}))"
    found = run(wheel_python, code, tmp_path)  # of this wheel: other packages may bring a folder `scripts`
    assert "'rlsmooth'" in found
    assert not any(f"'{name}'" in found for name in ("agents", "envs", "scripts"))


def test_the_command_is_installed_and_helps(wheel_python: Path, tmp_path: Path) -> None:
    command = wheel_python.with_name("rlsmooth")
    finished = subprocess.run([str(command), "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    for name in ("bc", "record", "evaluate", "plot"):
        assert name in finished.stdout
