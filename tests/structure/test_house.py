"""House rules: no import circle, a class in one file, short functions, modules of one topic, no foreign privates."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import FOLDERS, product_files, sources

MOST_BODY_LINES = 60
MOST_MODULE_LINES = 800
SB3_ROOM = "agents/sb3.py"  # the one place for the private names of Stable-Baselines3
# Lists of exceptions that guess what can be raised: none where a file is read, for which there is `untrusted.refused`.
GUESSES = {
    "rlsmooth/data/actors.py": 1,  # a function's signature
    "rlsmooth/data/files.py": 1,  # writes JSON
    "rlsmooth/data/space_json.py": 1,  # raised as they are
    "rlsmooth/data/validation.py": 1,
    "rlsmooth/data/vec_env_adapter.py": 1,  # makes an environment
    "rlsmooth/schedules.py": 1,
    "rlsmooth/targets/arguments.py": 1,
    "rlsmooth/targets/target.py": 1,  # the caller's arrays
    "rlsmooth/training/classifier_model.py": 1,  # the caller's network
    "rlsmooth/training/safe_file.py": 1,  # writes tensors
    "scripts/classify.py": 1,  # wrong arguments
    "scripts/command.py": 1,
    "scripts/environment.py": 4,  # workers, devices, and what makes environments
    "scripts/self_train.py": 1,
}
READS = re.compile(r"json\.loads?\(|yaml\.safe_load\(|(torch|np)\.load\(|\.read_(text|bytes)\(|ZipFile\((?!.*\"w\")")
# All others read by `untrusted` alone.
READERS = {
    "rlsmooth/untrusted.py": 1,
    "rlsmooth/data/arrays.py": 1,  # an opened file
    "rlsmooth/data/files.py": 2,  # an opened file; a folder's arrays, mapped
    "rlsmooth/training/safe_file.py": 2,  # an opened file; bytes
    "scripts/loading.py": 1,  # an opened file
    "scripts/run_folder.py": 2,  # bytes; a word
}
MEASURING = ("scripts/bench/", "scripts/studies/")
SELF_CAST = re.compile(r"""cast\(\s*["'][A-Z]\w*["'],\s*(self|cls)\s*\)""")


def imported_modules(source: str, known: set[str]) -> set[str]:
    """The modules of `known` that `source` imports, wherever the import stands, typing-only ones included."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` does not mean the package's __init__.
            modules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (modules & known) | (set() if modules <= known else {node.module})
    return found & known


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other, by Tarjan's algorithm."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = low[module] = len(number)
        stack.append(module)
        for other in graph[module]:
            if other not in number:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], number[other])
        if low[module] == number[module]:
            group = [stack.pop()]
            while group[-1] != module:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for module in graph:
        if module not in number:
            visit(module)
    return found


def long_functions(source: str) -> Iterator[tuple[str, int]]:
    """Name and length of each function whose body, without its docstring, is too long to see at once."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None and len(node.body) > 1 else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1
            if lines > MOST_BODY_LINES:
                yield node.name, lines


def test_no_modules_import_each_other() -> None:
    files = product_files()
    graph = {module: imported_modules(path.read_text("utf-8"), set(files)) - {module} for module, path in files.items()}
    assert circles(graph) == []


def test_no_class_casts_itself_to_its_child() -> None:
    assert [name for name, source in sources().items() if SELF_CAST.search(source)] == []


def test_every_function_can_be_seen_at_once() -> None:
    found = {name: list(long_functions(source)) for name, source in sources().items()}
    assert {name: functions for name, functions in found.items() if functions} == {}


def test_every_module_has_one_topic() -> None:
    lengths = {name: len(source.splitlines()) for name, source in sources().items()}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_MODULE_LINES} == {}


def guesses(source: str) -> int:
    """The number of handlers of two exceptions or more."""
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ExceptHandler)]
    return sum(isinstance(node.type, ast.Tuple) for node in found)


def reads(source: str) -> int:
    """The number of lines that read a file by other means than `rlsmooth.untrusted`, examples apart."""
    lines = [line.split("#")[0] for line in source.splitlines() if "`" not in line and ">>>" not in line]
    return sum(bool(READS.search(line)) for line in lines)


@pytest.mark.parametrize(("count", "allowed"), [(guesses, GUESSES), (reads, READERS)])
def test_one_place_opens_files_and_turns_what_readers_raise_into_one_error(count: Any, allowed: dict[str, int]) -> None:
    found = {name: count(source) for name, source in sources().items() if not name.startswith(MEASURING)}
    assert {name: number for name, number in found.items() if number} == allowed


def test_no_module_reaches_into_the_privates_of_another(repository: Path) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--select", "SLF001", "--no-cache", "--output-format", "json"]
    finished = subprocess.run([*command, *FOLDERS], cwd=repository, capture_output=True, text=True, check=False)
    found = [
        f"{problem['filename']}:{problem['location']['row']} {problem['message']}"
        for problem in json.loads(finished.stdout)
        if Path(problem["filename"]) != repository / SB3_ROOM
    ]
    assert not found, "\n".join(found)


def test_a_planted_circle_is_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert circles(graph) == [["a", "b", "c"]]
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from rlsmooth.x import y\ndef f():\n    import z"
    assert imported_modules(source, {"rlsmooth.x", "z", "q"}) == {"rlsmooth.x", "z"}
    assert imported_modules("from rlsmooth import x", {"rlsmooth", "rlsmooth.x"}) == {"rlsmooth.x"}


@pytest.mark.parametrize("source", ['cast("BC", self)', "cast('BC', cls)", 'typing.cast(\n    "BC", self\n)'])
def test_a_planted_self_cast_is_found(source: str) -> None:
    assert SELF_CAST.search(source)
    assert not SELF_CAST.search(source.replace("self", "other").replace("cls", "other"))


def test_a_planted_long_function_is_found() -> None:
    lines = "\n".join("    x = 1" for _ in range(MOST_BODY_LINES))
    assert not list(long_functions(f'def f():\n    """Docstring\n\n    of three lines."""\n{lines}'))
    assert list(long_functions(f"def f():\n{lines}\n    return x")) == [("f", MOST_BODY_LINES + 1)]
