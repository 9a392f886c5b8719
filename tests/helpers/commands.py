"""Run `rlsmooth` commands and check what they all have in common: files, resuming, and one line for each mistake."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import shlex
import shutil
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from torch import Tensor

from rlsmooth.agents import load_agent
from rlsmooth.scripts.figures.kinds import KINDS, load_reports
from rlsmooth.scripts.main import main
from rlsmooth.scripts.metrics_file import read_metrics
from support import same_tensors

COMMAND = "import sys; from rlsmooth.scripts.main import main; sys.exit(main(sys.argv[1:]))"
OF_EVERY_RUN = {
    *("README.md", "card.json", "checkpoints", "command.txt", "config.json", "metrics.csv", "report.json", "report.png")
}


def run_command(programs: Any, home: Path, *words: str) -> tuple[Path, str]:
    """Run a command in a process of its own, where warnings are errors; return its run's folder and what it printed."""
    result = programs.run(COMMAND, home, *words, warnings_are_errors=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (folder,) = (home / "logs" / words[0]).iterdir()
    return folder, result.stdout


def finished_run(*words: str) -> Any:
    """A fixture of a module: the folder of a run, in a process of its own, and what it printed."""

    @pytest.fixture(scope="module")
    def run(tmp_path_factory: pytest.TempPathFactory, programs: Any) -> tuple[Path, str]:
        return run_command(programs, tmp_path_factory.mktemp("home"), *words)

    return run


def run_here(logs: Path, *words: str) -> Path:
    """Run a command in this process, below `logs`; return its run's folder."""
    before = set(logs.glob("*/*"))
    assert main([*words, "-f", str(logs)]) == 0
    (folder,) = set(logs.glob("*/*")) - before
    return folder


def zoo_file(algorithm: str) -> Path:
    """The hyperparameters of the installed RL Zoo; importing the package would patch gymnasium for the tests after."""
    spec = importlib.util.find_spec("rl_zoo3")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "hyperparams" / f"{algorithm}.yml"


def report_of(folder: Path) -> dict[str, Any]:
    """What report.json holds."""
    return dict(json.loads((folder / "report.json").read_text()))


def parameters(folder: Path) -> dict[str, Tensor]:
    """The parameters of a run's saved agent."""
    state: dict[str, Tensor] = load_agent(folder / "agent.zip", device="cpu").policy.state_dict()
    return state


def assert_picture(path: Path) -> None:
    """The picture has the stated size, and is no empty page."""
    pixels = imread(path)
    assert pixels.shape[:2] == (1000, 1600)
    assert pixels[..., :3].std() > 0.05


def assert_written(
    folder: Path, printed: str, files: Collection[str], words: Collection[str], *, exactly: bool = True
) -> None:
    """A run wrote the files of every run, `files`, and one file of events; kept its command; and printed its report."""
    names = {path.name for path in folder.iterdir()}
    assert names >= OF_EVERY_RUN | set(files)
    rest = names - OF_EVERY_RUN - set(files)
    assert [name.startswith("events.out.tfevents.") for name in rest] == [True] * len(rest)
    assert len(rest) <= 1
    command = shlex.split((folder / "command.txt").read_text())
    assert command[:2] == ["rlsmooth", folder.parent.name]
    assert {*words, "--seed", "0"} == set(command[2:]) if exactly else {*words, "--seed", "0"} <= set(command)
    assert_picture(folder / "report.png")
    (report,) = load_reports([folder])
    with contextlib.redirect_stdout(io.StringIO()) as table:
        KINDS[report.command].print(report)
    assert table.getvalue() in printed
    assert f"tensorboard --logdir logs/{folder.parent.name}/{folder.name}" in printed


def evaluated(agent: Path, *words: str, episodes: int = 1) -> dict[str, Any]:
    """What `evaluate` says of an agent's file or a run's folder."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "numbers.json"
        given = ["-i", str(agent), "--eval-episodes", str(episodes), "--json", str(path)]
        assert main(["evaluate", *given, *words]) == 0
        return dict(json.loads(path.read_text()))


def assert_filmed(agent: Path, tmp_path: Path) -> None:
    """`enjoy` films the agent."""
    pytest.importorskip("pygame")
    film = tmp_path / "agent.gif"
    assert main(["enjoy", str(agent), "--video", str(film), "--max-steps", "5"]) == 0
    assert film.read_bytes()[:3] == b"GIF"


def assert_drawn_again(folder: Path, tmp_path: Path) -> Path:
    """`plot` draws the same picture again, compares runs, and draws one without a report; return the copy it drew."""
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    (copy / "report.png").unlink()
    assert main(["plot", str(copy)]) == 0
    assert (imread(copy / "report.png") == imread(folder / "report.png")).all()
    (copy / "report.json").unlink()  # as of a run that is under way: what it logged so far
    assert main(["plot", str(copy)]) == 0
    assert main(["plot", str(copy), str(folder), "--output", str(tmp_path / "both.png")]) == 0
    for path in (copy / "report.png", tmp_path / "both.png"):
        assert_picture(path)
    return copy


def assert_resumed_unchanged(
    folder: Path, tmp_path: Path, parameters: Callable[[Path], dict[str, Tensor]] = parameters, *, metrics: bool = True
) -> Path:
    """Resuming a finished run changes neither its parameters nor (where `metrics`) its metrics; return the copy."""
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    assert main([folder.parent.name, "--resume", str(copy)]) == 0
    assert same_tensors(parameters(folder), parameters(copy))
    assert not metrics or read_metrics(copy / "metrics.csv") == read_metrics(folder / "metrics.csv")
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    return copy


def assert_same_run(
    one: Path, other: Path, parameters: Callable[[Path], dict[str, Tensor]] = parameters, *, timed: str = "time/"
) -> None:
    """Two runs have the same parameters, metrics (but for those of names that begin with `timed`) and evaluations."""
    assert same_tensors(parameters(one), parameters(other))
    there, here = (
        {name: curve for name, curve in read_metrics(folder / "metrics.csv").items() if not name.startswith(timed)}
        for folder in (one, other)
    )
    assert there == here
    if (one / "evaluations.npz").exists():
        with np.load(one / "evaluations.npz") as these, np.load(other / "evaluations.npz") as those:
            assert all((these[name] == those[name]).all() for name in these)


def assert_refused(says: str, words: Sequence[str], capsys: Any) -> None:
    """A command ends with one line that says what was wrong."""
    capsys.readouterr()
    assert main([*words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"rlsmooth {words[0]}: error: ")
    assert says in line


def written(name: str, folder: Path) -> tuple[dict[str, Any], str]:
    """The result and the page of a study, which has drawn a figure, too."""
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    result: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    assert result["versions"]
    return result, (folder / f"{name}.md").read_text(encoding="utf-8")
