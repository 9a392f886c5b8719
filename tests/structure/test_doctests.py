"""Every example in a docstring runs. pytest's own --doctest-modules would collect the linked folders twice."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

from support import REPOSITORY

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def module_names() -> list[str]:
    """List all modules by their folders; the benchmarks are left out, since they import other libraries."""
    names = []
    for top in ("rlsmooth", "agents", "envs", "scripts"):
        for path in sorted((REPOSITORY / top).rglob("*.py")):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            if "bench" not in parts:
                names.append(".".join(parts if top == "rlsmooth" else ("rlsmooth", *parts)).removesuffix(".__init__"))
    return names


@pytest.mark.parametrize("name", module_names())
def test_the_examples_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(name)
    monkeypatch.chdir(tmp_path)  # an example may save a file
    result = doctest.testmod(module, optionflags=OPTIONS)
    assert result.failed == 0, capsys.readouterr().out


def test_the_two_libraries_have_examples() -> None:
    tests = [
        test
        for name in module_names()
        if name.startswith(("rlsmooth.losses", "rlsmooth.targets"))
        for test in doctest.DocTestFinder().find(importlib.import_module(name))
    ]
    assert sum(bool(test.examples) for test in tests) >= 20
