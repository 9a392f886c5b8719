"""The README tells the truth: its Python runs where only the wheel is installed, and its commands and files exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from support import REPOSITORY

BLOCK = re.compile(r"(?P<not_run><!-- not run: .+? -->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def readme() -> str:
    return (REPOSITORY / "README.md").read_text(encoding="utf-8")


def blocks(readme: str, language: str) -> list[tuple[str, bool]]:
    """List (code, whether it runs) of the fenced blocks. `<!-- not run: why -->` on the line above leaves one out."""
    found = [match for match in BLOCK.finditer(readme) if match["language"] == language]
    return [(match["code"], match["not_run"] is None) for match in found]


@pytest.mark.timeout(600)
def test_the_python_blocks_run_as_programs_of_another_project(readme: str, wheel_programs: Any, tmp_path: Path) -> None:
    found = blocks(readme, "python")
    assert sum(runs for _, runs in found) >= 3
    for code, runs in found:
        compile(code, "block", "exec")
        if runs:
            finished = wheel_programs.run(code, tmp_path)  # the first one saves the agent that the later ones load
            assert finished.returncode == 0, f"{code}\n{finished.stderr}"
            assert "Warning" not in finished.stderr, f"{code}\n{finished.stderr}"


def test_an_agent_is_loaded_and_acts_in_three_lines(readme: str) -> None:
    loads = [code for code, _ in blocks(readme, "python") if "BC.load(" in code]
    assert min(len([line for line in code.splitlines() if line.strip()]) for code in loads) == 3


def test_the_first_example_has_about_ten_lines(readme: str) -> None:
    code, runs = blocks(readme, "python")[0]
    assert runs
    assert len([line for line in code.splitlines() if line.strip()]) <= 12


def test_every_command_exists(readme: str, repository: Path) -> None:
    consoles = "\n".join(code for code, _ in blocks(readme, "console"))
    commands = set(re.findall(r"\brlsmooth ([a-z0-9-]+)", consoles))
    assert commands >= {"bc", "record", "evaluate", "plot"}
    files = {name: repository / "scripts" / f"{name.replace('-', '_')}.py" for name in sorted(commands)}
    assert [name for name, file in files.items() if not file.exists()] == []


def test_every_make_target_exists(readme: str, repository: Path) -> None:
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    targets = set(
        re.findall(r"\bmake ([a-z][a-z-]*)", "\n".join(re.findall(r"```console\n.*?```|`[^`\n]+`", readme, re.DOTALL)))
    )
    assert targets >= {"train", "test"}
    assert [name for name in sorted(targets) if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []


def test_every_linked_file_exists(readme: str, repository: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", readme) if "://" not in link]
    assert links
    assert [link for link in links if not (repository / link).exists()] == []
