"""The pages of docs/ tell the truth: their Python runs, from top to bottom, without a warning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from rlsmooth.scripts.main import COMMANDS
from support import REPOSITORY

PAGES = sorted((REPOSITORY / "docs").glob("*.md"))
TABLES = ("imitation-tests.md",)  # pages without Python, which have a test of their own
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    return [code for found, code in BLOCK.findall(page.read_text(encoding="utf-8")) if found == language]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in TABLES], ids=lambda page: page.stem)
def test_the_python_of_a_page_runs_as_one_program(page: Path, programs: Any, tmp_path: Path) -> None:
    program = "\n".join(blocks(page, "python"))
    assert program
    finished = programs.run(program, tmp_path, warnings_are_errors=True)
    assert finished.returncode == 0, finished.stderr
    assert "Warning" not in finished.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_its_commands_and_links_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    commands = re.findall(r"\brlsmooth ([a-z][a-z0-9-]*)\b", "\n".join(blocks(page, "console")))
    assert [name for name in commands if name not in COMMANDS] == []
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
