"""What tests of several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from commands import assert_refused, run_here


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run of cloning."""
    words = ["bc", "--n-episodes", "3", "--epochs", "3", "--eval-episodes", "1", "--eval-freq", "-1"]
    return run_here(tmp_path_factory.mktemp("clone"), *words, "--checkpoint-freq", "-1", "--device", "cpu")


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Assert that a command says in one line what is wrong, and leaves nothing in the folder it was run in."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file.txt"
    file.write_text("neither a folder nor an agent")

    def check(words: str, says: str, **places: object) -> None:
        before = {path for path in tmp_path.rglob("*") if path.is_file()}
        assert_refused(says, words.format(file=file, **places).split(), capsys)
        assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
        assert file.read_text() == "neither a folder nor an agent"
        assert not list(tmp_path.glob("logs/*/*"))

    return check
