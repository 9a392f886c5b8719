"""The house's words: docs, docstrings, comments and messages use the field's terms, and a name means one thing."""

from __future__ import annotations

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from support import REPOSITORY, sources

PAGES = ("*.md", "docs/*.md", "docs/examples/*.md", "scripts/bench/*.md", "scripts/*/results/*.md")

# What to say, and the words not to say it with. Names between backticks and code are not read.
FORBIDDEN = {
    "likewise (repeat it)": r"\blikewise\b",
    "as of, see there (say it, or: as in `X`)": r"\bas of (`|(the (run|parent)|Stable-Baselines3)\b)|\bsee there\b",
    "guess (pseudo-label, predict)": r"\bguess(es|ed|ing)?\b",
    "watched (observation-only, observed)": r"\bwatched\b",
    "slot (entropy term)": r"\bslots?\b",
    "mend (fix)": r"\bmend(s|ed|ing)?\b",
    "go on (continue, resume)": r"\b(go|goes|going|went|gone) on\b",
    "stand in (replace, placeholder)": r"\bstand(s|ing)? in\b|\bstand-ins?\b",
    "picture (figure, image)": r"\bpictures?\b",
    "lone (only)": r"\blone\b",
    "tell (contain, provide, report)": r"\b(tells?|told|telling)\b(?!.{0,50}\b(apart|from)\b)",
    "what acts (behaviour policy)": r"\bwhat acts\b",
    "ends (terminal states, termination)": (
        r"\b(where episodes end\b(?! early)|ends (are|is|matter)|treats? ends|(behind|after) (the|an) end)\b(?! of)"
        r"|\bepisodes that end\b|\b(an|no) end\b(?! of)"
    ),
}
"""The words of the left column of the glossary, each with what to say instead; not case-sensitive."""
ROWS = re.compile(r"\brows?\b", re.IGNORECASE)
ROWS_THAT_ARE_ROWS = re.compile(
    r"\brows? (of|in|from) (a|an|the|its|each|this|that) [\w ]*(matrix|kernel|table|CSV|file|report)\b", re.IGNORECASE
)
"""In agents/ a row of data is a transition, a sample or a step; a matrix and a table do have rows."""
ONLY_A_REFERENCE = re.compile(r"(\w+( \([^)]*\))?: *)?(as of|see)\b[^.;:]{0,60}\.?", re.IGNORECASE)
CLASS_NAMES = re.compile(r"Rows|Run|Monitor|\w*Slot\w*")
NAMES = re.compile(r"(\w*_)?(slots?|guess|guesses|guessed|watched|mended|stand_ins?|pictures?)(_\w*)?")
SLOTS = {"slots", "_slots", "__slots__"}  # of Python's classes


class Prose(NamedTuple):
    """One line that people read, with its place and kind ("page", "docstring", "comment" or "message")."""

    file: str
    line: int
    kind: str
    text: str


def without_code(text: str) -> str:
    """`text` without what stands between backticks, which are names."""
    return re.sub(r"`[^`\n]*`", "``", text)


def prose_of_page(path: Path, name: str) -> Iterator[Prose]:
    """The lines of a page outside its blocks of code."""
    is_code = False
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if line.startswith("```"):
            is_code = not is_code
        elif not is_code and not line.startswith("    "):
            yield Prose(name, number, "page", without_code(line))


def prose_of_module(source: str, name: str) -> Iterator[Prose]:
    """The docstrings, comments and messages (string constants of several words) of a module."""
    tree = ast.parse(source)
    docstrings = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            for statement in body:  # the docstring of a module, class or function, or one that follows an attribute
                if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                    docstrings.add(id(statement.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            is_docstring = id(node) in docstrings
            if is_docstring or len(node.value.split()) > 2:
                for offset, line in enumerate(node.value.splitlines()):
                    if not line.lstrip().startswith((">>>", "...")):
                        kind = "docstring" if is_docstring else "message"
                        yield Prose(name, node.lineno + offset, kind, without_code(line))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Prose(name, token.start[0], "comment", without_code(token.string))


@functools.cache
def prose() -> tuple[Prose, ...]:
    pages = {path for pattern in PAGES for path in REPOSITORY.glob(pattern)}
    lines = [line for path in sorted(pages) for line in prose_of_page(path, str(path.relative_to(REPOSITORY)))]
    return *lines, *(line for name, source in sources().items() for line in prose_of_module(source, name))


def broken(rule: str, lines: Iterable[Prose]) -> list[Prose]:
    """Those of `lines` that break the rule."""
    if rule == "rows":
        agents = [line for line in lines if line.file.startswith("agents/")]
        return [line for line in agents if ROWS.search(ROWS_THAT_ARE_ROWS.sub("", line.text))]
    if rule == "only a reference":
        return [line for line in lines if line.kind == "docstring" and ONLY_A_REFERENCE.fullmatch(line.text.strip())]
    if rule == "What ...":
        return [line for line in lines if line.kind == "docstring" and line.line == 1 and line.text.startswith("What ")]
    pattern = re.compile(FORBIDDEN[rule], re.IGNORECASE)
    return [line for line in lines if pattern.search(line.text)]


def names_of(source: str) -> Iterator[tuple[int, str]]:
    """(line, name) of each class, function, argument, attribute and variable that a module gives a name to."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def classes() -> Iterator[tuple[str, str]]:
    """(file, name) of each public class at the top of a product module; each command has its `Args`."""
    for file, source in sources().items():
        if not file.startswith(("scripts/bench", "scripts/studies")):
            names = [node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
            yield from ((file, name) for name in names if name not in ("Args", "OwnArgs") and name[0] != "_")


@pytest.mark.parametrize("rule", [*FORBIDDEN, "rows", "only a reference", "What ..."])
def test_no_line_uses_words_of_the_forbidden_kind(rule: str) -> None:
    found = broken(rule, prose())
    assert not found, "\n".join(f"{line.file}:{line.line}: {line.text.strip()}" for line in found)


def test_no_name_uses_them() -> None:
    names = [(f"{file}:{line}", name) for file, source in sources().items() for line, name in names_of(source)]
    assert [(place, name) for place, name in names if NAMES.fullmatch(name) and name not in SLOTS] == []


def test_a_class_name_means_one_thing() -> None:
    files: dict[str, list[str]] = {}
    for file, name in classes():
        files.setdefault(name, []).append(file)
    assert {name: where for name, where in files.items() if CLASS_NAMES.fullmatch(name) or len(where) > 1} == {}


@pytest.mark.parametrize(
    ("rule", "bad", "good"),
    [
        ("likewise (repeat it)", "x: likewise.", "x: likely."),
        ("as of, see there (say it, or: as in `X`)", "seed: as of ``, too.", "as many of each class as of the others"),
        ("slot (entropy term)", "the entropy slot", "one's lot"),
        ("go on (continue, resume)", "a run that went on", "they go only so far"),
        ("stand in (replace, placeholder)", "a stand-in of the text", "it stands alone"),
        ("tell (contain, provide, report)", "they do not tell the actions", "it tells one side from the other"),
        ("ends (terminal states, termination)", "ends are judged where an end comes", "where episodes end early"),
        ("ends (terminal states, termination)", "an end is worth 0", "it depends on the end of the run"),
        ("rows", "the rows of the learner", "a row of the similarity matrix"),
        ("only a reference", "seed: see ``.", "seed: of the networks; see `` for the order of the data."),
        ("What ...", "What a trainer shares.", "Services of trainers."),
    ],
)
def test_a_planted_word_is_found(rule: str, bad: str, good: str) -> None:
    found = broken(rule, [Prose("agents/a.py", 1, "docstring", bad), Prose("agents/a.py", 1, "docstring", good)])
    assert [line.text for line in found] == [bad]


def test_code_is_not_read_and_messages_are() -> None:
    source = '"""Doc of `slot`.\n\n>>> tell = 1\n"""\nx = "told"  # why\nraise ValueError(f"{x}: a message of ours")\n'
    lines = [(line.kind, line.text) for line in prose_of_module(source, "a.py")]
    assert lines == [
        ("docstring", "Doc of ``."),
        ("docstring", ""),
        ("message", ": a message of ours"),
        ("comment", "# why"),
    ]
