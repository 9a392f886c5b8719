"""Imports point strictly down: the floors of the design, checked in every file, at every depth of nesting."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from support import product_files

FLOORS = {
    "checks": 0,  # and every other single file directly in rlsmooth/
    "targets": 1,
    "losses": 2,
    "audits": 3,
    "data": 3,
    "envs": 3.5,  # may use data: an environment is made of a labelled set
    "training": 4,
    "agents": 5,
    "integrations": 6,  # beside the scripts: nobody imports it
    "scripts": 6,
}
OUTSIDE = {"agents", "envs", "scripts"}  # folders at the top of the tree, imported as rlsmooth.<name>
THIRD_PARTY = {
    "checks": {"numpy", "torch"},
    "targets": {"torch"},
    "losses": {"numpy", "torch", "triton"},
}  # the lower floors stay light
HEAVY = {"stable_baselines3", "gymnasium", "matplotlib", "sklearn", "tensorboard", "pandas"}


def imported(source: str, module: str, *, is_package: bool) -> list[tuple[int, str]]:
    """List (line, dotted name) of all that `source` imports, with relative names made absolute.

    `from a import b` gives `a.b`, since b may be a module. Imports inside functions and constant strings given to
    `import_module` or `__import__` count too.
    """
    package = module.split(".") if is_package else module.split(".")[:-1]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - (node.level - 1)] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            found += [(node.lineno, ".".join([*base, alias.name])) for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                found.append((node.lineno, node.args[0].value))
    return found


def part_of(dotted: str) -> str:
    """Name the part of rlsmooth that holds `dotted`: a package of the table, or "checks" for a single file."""
    parts = dotted.split(".")
    if parts == ["rlsmooth", "__main__"]:  # `python -m rlsmooth`: the command
        return "scripts"
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS else "checks"


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Describe every import of `source` that does not point strictly down."""
    here = part_of(module)
    found = []
    for line, name in imported(source, module, is_package=is_package):
        top = name.split(".")[0]
        if top in OUTSIDE or top == "tests":
            found.append(f"{module}:{line} imports top-level {name}: write rlsmooth.{name}")
        elif top == "rlsmooth":
            there = part_of(name)
            if there != here and FLOORS[there] >= FLOORS[here]:
                found.append(f"{module}:{line} (floor {FLOORS[here]}) imports {name} (floor {FLOORS[there]})")
        elif here in THIRD_PARTY and top not in sys.stdlib_module_names and top not in THIRD_PARTY[here]:
            found.append(f"{module}:{line} imports {name}: {here} may import {sorted(THIRD_PARTY[here])} only")
    return found


def test_every_import_points_down() -> None:
    files = product_files()
    assert {"rlsmooth", "rlsmooth.checks", "rlsmooth.agents", "rlsmooth.envs", "rlsmooth.scripts.main"} <= files.keys()
    found = [
        violation
        for module, path in files.items()
        for violation in violations(path.read_text(encoding="utf-8"), module, is_package=path.name == "__init__.py")
    ]
    assert not found, "\n".join(found)


def test_every_package_stands_in_the_table() -> None:
    packages = {name.split(".")[1] for name, path in product_files().items() if path.parent.name != "rlsmooth"}
    assert packages == FLOORS.keys() - {"checks"}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rlsmooth.targets.tree", "import rlsmooth.losses"),
        ("rlsmooth.targets.tree", "from rlsmooth import losses"),
        ("rlsmooth.targets.tree", "from rlsmooth.losses import cross_entropy"),
        ("rlsmooth.targets.tree", "from ..losses import cross_entropy"),
        ("rlsmooth.targets.tree", "from .. import losses"),
        ("rlsmooth.targets.tree", "def f():\n    import rlsmooth.losses.dense as d"),
        ("rlsmooth.targets.tree", "import importlib\nimportlib.import_module('rlsmooth.agents')"),
        ("rlsmooth.targets.tree", "import numpy as np"),
        ("rlsmooth.losses.dense", "from torchmetrics import Metric"),
        ("rlsmooth.data.arrays", "from rlsmooth.audits.calibration import calibration_error"),  # sideways
        ("rlsmooth.data.arrays", "from rlsmooth.envs import optima"),
        ("rlsmooth.training.checkpoint", "from rlsmooth.agents import BC"),
        ("rlsmooth.checks", "from rlsmooth.targets import Target"),
        ("rlsmooth.agents.bc", "import agents"),
        ("rlsmooth.agents.bc", "from envs.identity import Identity"),
        ("rlsmooth.agents.bc", "from tests.conftest import DEVICES"),
    ],
)
def test_a_planted_violation_is_found(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


def test_a_relative_import_is_resolved_from_its_own_package() -> None:
    assert imported("from .bc import BC", "rlsmooth.agents", is_package=True) == [(1, "rlsmooth.agents.bc.BC")]
    assert imported("from .x import f", "rlsmooth.agents.bc", is_package=False) == [(1, "rlsmooth.agents.x.f")]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rlsmooth.losses.dense", "import math\nimport torch\nfrom torch import nn"),
        ("rlsmooth.losses.dense", "from rlsmooth.targets import Target"),
        (
            "rlsmooth.agents.bc",
            "import numpy\nfrom rlsmooth.checks import check_choice\nfrom rlsmooth.agents import files",
        ),
        ("rlsmooth.scripts.main", "from rlsmooth import __version__\nfrom rlsmooth.scripts import bc"),
    ],
)
def test_an_import_that_points_down_passes(module: str, source: str) -> None:
    assert violations(source, module) == []


@pytest.mark.parametrize("module", ["rlsmooth", "rlsmooth.checks", "rlsmooth.targets", "rlsmooth.losses"])
def test_a_light_import_loads_nothing_heavy(module: str) -> None:
    code = f"import json, sys, {module}; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(finished.stdout))
    assert "rlsmooth" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("name", sorted(HEAVY - {"pandas"}))  # pandas is nobody's dependency here
def test_the_heavy_names_are_those_of_real_packages(name: str) -> None:
    assert find_spec(name) is not None


@pytest.mark.parametrize(
    "module", ["rlsmooth", "rlsmooth.targets", "rlsmooth.data", "rlsmooth.agents", "rlsmooth.scripts.main"]
)
def test_a_checkout_that_is_not_installed_says_what_to_do(module: str) -> None:
    code = f"""
import importlib.metadata as metadata
def version(name):
    raise metadata.PackageNotFoundError(name)
metadata.version = version
try:
    import {module}
except ImportError as error:
    assert type(error) is ImportError
    print(error)
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "it is not installed: run `pip install -e .` in the checkout" in finished.stdout
