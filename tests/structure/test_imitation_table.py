"""docs/imitation-tests.md tells the truth: its tests exist, none is left out, and its numbers are those of its rows."""

from __future__ import annotations

import ast
import re
from typing import NamedTuple

import pytest

from support import REPOSITORY

TESTS = REPOSITORY / "tests" / "imitation"
PAGE = (REPOSITORY / "docs" / "imitation-tests.md").read_text(encoding="utf-8")
FILES = {
    "test_bc.py": ("`algorithms/test_bc.py`", 9),
    "test_dagger.py": ("`algorithms/test_dagger.py`", 15),
    "test_adversarial.py": ("`algorithms/test_adversarial.py`", 10),
    "test_base.py": ("`algorithms/test_base.py`", 4),
    "test_rewards.py": ("`rewards/`", 31),
}
"""Ours: theirs, and how many tests they had."""
RESULTS = ("passes", "differs", "not here")


class Row(NamedTuple):
    theirs: str
    behaviour: str
    ours: list[str]
    result: str


def rows_of(name: str) -> list[Row]:
    """The rows of the section that names the file."""
    (section,) = [part for part in PAGE.split("\n## ")[1:] if f"../tests/imitation/{name}" in part]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    assert all(len(row) == 4 for row in cells), cells
    return [
        Row(theirs, behaviour, re.findall(r"`(\w+)`", ours), result) for theirs, behaviour, ours, result in cells[2:]
    ]


def functions(name: str) -> set[str]:
    tree = ast.parse((TESTS / name).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("name", FILES)
def test_every_test_that_is_named_exists_and_every_test_is_named(name: str) -> None:
    assert {ours for row in rows_of(name) for ours in row.ours} == functions(name)


@pytest.mark.parametrize("name", FILES)
def test_each_of_theirs_has_one_row_with_a_behaviour_and_a_result(name: str) -> None:
    rows = rows_of(name)
    assert len({row.theirs for row in rows}) == len(rows) == FILES[name][1]
    for row in rows:
        assert re.fullmatch(r"`test_\w+`", row.theirs), row
        assert len(row.behaviour) > 10, row
        (kind,) = [result for result in RESULTS if row.result.startswith(result)]
        assert bool(row.ours) == (kind != "not here"), row
        assert kind == "passes" or len(row.result) > len(f"{kind}: ") + 10, row  # it says why


@pytest.mark.parametrize("name", FILES)
def test_the_numbers_are_those_of_the_rows(name: str) -> None:
    theirs, total = FILES[name]
    counts = [sum(row.result.startswith(result) for row in rows_of(name)) for result in RESULTS]
    assert f"| {theirs} | {total} | {' | '.join(map(str, counts))} |" in PAGE
    assert f"each of the {sum(count for _, count in FILES.values())} in" in PAGE
