"""`rlsmooth classify` as its users run it: its files, its numbers against scikit-learn's, mistakes, a killed run."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import confusion_matrix, log_loss
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from rlsmooth.data import LabelledData, load_labelled
from rlsmooth.scripts import classify
from rlsmooth.scripts.classification import network
from rlsmooth.scripts.figures.kinds import load_reports
from rlsmooth.scripts.main import main
from rlsmooth.scripts.metrics_file import read_metrics
from rlsmooth.scripts.run_folder import new_run_folder
from rlsmooth.targets import Smoothing, Tree
from rlsmooth.training import Classifier, checkpoint_steps

if TYPE_CHECKING:
    from conftest import Programs

FILES = {
    "Classifier_1",
    "checkpoints",
    "classifier.zip",
    "command.txt",
    "config.json",
    "metrics.csv",
    "report.json",
    "report.png",
}
COMMAND = "import sys; from rlsmooth.scripts.main import main; sys.exit(main(sys.argv[1:]))"
OLIVE = ("--data", "olive", "--reference", "tree", "--smoothing", "0.2", "--epochs", "6", "--device", "cpu")


def report_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "report.json").read_text()))


def load(folder: Path, hidden: tuple[int, ...] = (64, 64)) -> Classifier:
    return Classifier.load(folder / "classifier.zip", network(hidden), device="cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, programs: Programs) -> tuple[Path, str]:
    """The folder of a small run, in a process of its own, and what it printed."""
    home = tmp_path_factory.mktemp("home")
    result = programs.run(COMMAND, home, "classify", *OLIVE, warnings_are_errors=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return home / "logs" / "classify" / "olive_1", result.stdout


@pytest.fixture(scope="module")
def splits() -> tuple[LabelledData, LabelledData, LabelledData]:
    rows, test = load_labelled("olive").split(0.25, 0)
    return (*rows.split(0.2, 0), test)


def test_all_files_are_written(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    assert {path.name for path in folder.iterdir()} == FILES
    words = shlex.split((folder / "command.txt").read_text())
    assert words[:2] == ["rlsmooth", "classify"]
    assert {*OLIVE, "--seed", "0"} == set(words[2:])
    assert imread(folder / "report.png").shape[:2] == (1000, 1600)


def test_the_scores_are_scikit_learns_on_the_test_rows(
    finished: tuple[Path, str], splits: tuple[LabelledData, LabelledData, LabelledData]
) -> None:
    folder, _ = finished
    report, classifier, (_, validation, test) = report_of(folder), load(folder), splits
    logits = classifier.logits(test.features).double().numpy()
    found = report["summary"]
    assert found["accuracy"] == pytest.approx(np.mean(logits.argmax(1) == test.labels))
    assert found["nll"] == pytest.approx(log_loss(test.labels, softmax(logits, axis=1), labels=range(9)), rel=1e-5)
    one_hot = np.eye(9)[test.labels]
    brier = ((softmax(logits, axis=1) - one_hot) ** 2).sum(1).mean()
    assert found["brier"] == pytest.approx(brier, rel=1e-5)
    assert report["confusion"] == confusion_matrix(test.labels, logits.argmax(1), labels=range(9)).tolist()

    # The temperature is what scipy finds on the validation rows; the second column is the first with it.
    held_out = classifier.logits(validation.features).double().numpy()
    rows = np.arange(len(validation))
    best = minimize_scalar(
        lambda log_t: -log_softmax(held_out / np.exp(log_t), axis=1)[rows, validation.labels].mean(),
        bounds=(-5, 5),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert report["scaled"]["temperature"] == pytest.approx(np.exp(best.x), rel=1e-4)
    scaled = logits / report["scaled"]["temperature"]
    assert report["scaled"]["nll"] == pytest.approx(
        log_loss(test.labels, softmax(scaled, axis=1), labels=range(9)), rel=1e-5
    )
    assert report["scaled"]["accuracy"] == found["accuracy"]


def test_the_report_holds_the_curves_the_targets_and_the_risk(
    finished: tuple[Path, str], splits: tuple[LabelledData, LabelledData, LabelledData]
) -> None:
    report, (training, _, test) = report_of(finished[0]), splits
    targets = Smoothing(0.2, Tree.from_nested(test.hierarchy or {}))(torch.arange(9), 9).dense(torch.float64)
    np.testing.assert_allclose(report["target_matrix"], targets, atol=1e-12)
    np.testing.assert_allclose(report["implied_alpha"], 0.2, atol=1e-12)
    assert report["data"] == {"training": str(len(training)), "validation": "86", "test": str(len(test))}
    assert report["risk_coverage"]["coverage"][-1] == pytest.approx(1)
    assert report["risk_coverage"]["risk"][-1] == pytest.approx(1 - report["summary"]["accuracy"])
    assert sum(map(sum, report["confusion"])) == len(test)
    share = [row[place] for place, row in enumerate(report["confusion"])]
    assert sum(share) / len(test) == pytest.approx(report["summary"]["accuracy"])
    assert report["summary"]["distance_at_1"] == pytest.approx(
        report["summary"]["mistake_severity"] * (1 - report["summary"]["accuracy"])
    )


def test_the_metrics_are_the_classifiers_history_and_tensorboards(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    curves, history = read_metrics(folder / "metrics.csv"), load(folder).history_
    assert curves.keys() == {f"classifier/{name}" for name in history}
    for name, values in history.items():
        assert curves[f"classifier/{name}"] == ([1, 2, 3, 4, 5, 6], values)
    events = EventAccumulator(str(folder / "Classifier_1"))
    events.Reload()
    logged = [event.value for event in events.Scalars("classifier/val_loss")]
    assert logged == pytest.approx(history["val_loss"])


def test_the_table_says_what_the_report_says(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    report = report_of(folder)
    for row, tag, words in (
        ("accuracy", "accuracy", "{:.1%}"),
        ("neg. log-likelihood", "nll", "{:.3f} nats"),
        ("calibration error, ECE", "ece", "{:.3f}"),
        ("risk-coverage area", "aurc", "{:.3f}"),
        ("tree distance @5", "distance_at_5", "{:.3f}"),
        ("mistake severity", "mistake_severity", "{:.3f}"),
    ):
        line = next(line for line in printed.splitlines() if row in line)
        for column in ("summary", "scaled"):
            assert words.format(report[column][tag]).replace("%", " %") in line
    assert f"temperature {report['scaled']['temperature']:.3g}" in printed
    assert f"margin of {report['optimal_margin']:.3f} nats" in printed
    assert "tensorboard --logdir logs/classify/olive_1" in printed
    assert "572 oils" in printed


def test_plot_draws_again_compares_and_draws_what_has_only_begun(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = finished
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    (copy / "report.png").unlink()
    assert main(["plot", str(copy)]) == 0
    assert (imread(copy / "report.png") == imread(folder / "report.png")).all()
    assert main(["plot", str(copy), str(folder), "--output", str(tmp_path / "both.png")]) == 0
    assert imread(tmp_path / "both.png").shape[:2] == (1000, 1600)
    (copy / "report.json").unlink()  # as after a kill: the curves are those of the last checkpoint
    assert main(["plot", str(copy)]) == 0
    (report,) = load_reports([copy])
    assert len(report.curves["classifier/val_loss"][0]) == 6
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"command": "ppo", "arguments": {}}))
    capsys.readouterr()
    assert main(["plot", str(copy), str(tmp_path / "other")]) == 2
    assert "runs of classify and on-policy can't be compared" in capsys.readouterr().err


def test_a_spoilt_report_is_told(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in (("report.json", '{"name": 1, "unknown": 2}'), ("config.json", '{"command": "classify"}')):
        folder = tmp_path / name
        shutil.copytree(finished[0], folder)
        (folder / name).write_text(content)
        assert main(["plot", str(folder)]) == 2
        assert name in capsys.readouterr().err
    folder = tmp_path / "lacking"
    shutil.copytree(finished[0], folder)
    settings = json.loads((folder / "config.json").read_text())
    del settings["arguments"]["mixup"]
    (folder / "config.json").write_text(json.dumps(settings))
    assert main(["plot", str(folder)]) == 2
    assert "it lacks mixup" in capsys.readouterr().err


# ---- going on


@pytest.mark.slow
def test_resuming_a_finished_run_changes_nothing(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "olive_1"
    shutil.copytree(finished[0], folder)
    assert main(["classify", "--resume", str(folder)]) == 0
    before, after = load(finished[0]).module_.state_dict(), load(folder).module_.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {**report_of(folder), "settings": None} == {**report_of(finished[0]), "settings": None}
    capsys.readouterr()
    assert main(["classify", "--resume", str(folder), "--epochs", "9"]) == 2
    assert "leave out --epochs" in capsys.readouterr().err


def test_an_interrupted_run_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rlsmooth.scripts.classify.fit", interrupted)
    assert main(["classify", "--data", "iris", "--epochs", "1", "-f", str(tmp_path)]) == 130
    folder = tmp_path / "classify" / "iris_1"
    assert f"rlsmooth classify --resume {folder}" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setattr("rlsmooth.scripts.figures.kinds.save_figure", lambda path, figure: None)  # takes a second
    assert main(["classify", "--resume", str(folder)]) == 0  # before the first checkpoint: from the beginning
    assert (folder / "report.json").exists()


def test_the_folder_is_called_after_the_file(tmp_path: Path) -> None:
    assert new_run_folder(tmp_path, "classify", "a b").name == "a b_1"
    assert classify.Args().data == "digits"


@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on_to_the_same_parameters(tmp_path: Path, repository: Path) -> None:
    settings = [
        "--data",
        "digits",
        "--epochs",
        "60",
        "--checkpoint-freq",
        "2",
        "--smoothing",
        "lin_0.2",
        "--mixup",
        "0.2",
    ]
    settings += ["--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, repository / "scripts" / "classify.py", *settings, "-f", tmp_path / "killed"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    folder = tmp_path / "killed" / "classify" / "digits_1"
    end = time.monotonic() + 120
    while not (folder / "checkpoints").is_dir() or max(checkpoint_steps(folder / "checkpoints"), default=0) < 10:
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        assert time.monotonic() < end
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / "classifier.zip").exists()

    assert main(["plot", str(folder)]) == 0  # as far as it is
    assert main(["classify", "--resume", str(folder)]) == 0
    assert main(["classify", *settings, "-f", str(tmp_path / "whole")]) == 0
    whole = tmp_path / "whole" / "classify" / "digits_1"
    expected, resumed = load(whole).module_.state_dict(), load(folder).module_.state_dict()
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    with (whole / "metrics.csv").open() as there, (folder / "metrics.csv").open() as here:
        assert list(csv.reader(there)) == list(csv.reader(here))
