"""`rlsmooth self-train` as its users run it: its files, its rounds, mistakes, and that a killed run goes on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands import assert_drawn_again, assert_written, report_of, run_command, run_here
from killing import kill_command
from rlsmooth.data import load_labelled
from rlsmooth.scripts.classification import network
from rlsmooth.scripts.figures.self_train import pseudo_label_words
from rlsmooth.scripts.metrics_file import read_metrics
from rlsmooth.scripts.self_train import Args, given_labels
from rlsmooth.training import Classifier, SelfTraining
from support import read_events, same_tensors

WINE = ("--data", "wine", "--n-labels", "9", "--epochs", "40", "--rounds", "3", "--threshold", "0.5", "--device", "cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, programs: Any) -> tuple[Path, str]:
    """The folder of a small run, in a process of its own, and what it printed."""
    return run_command(programs, tmp_path_factory.mktemp("home"), "self-train", *WINE)


@pytest.fixture(scope="module")
def report(finished: tuple[Path, str]) -> dict[str, Any]:
    return report_of(finished[0])


def test_all_files_are_written(finished: tuple[Path, str]) -> None:
    assert_written(finished[0], ["classifier.zip", *(path.name for path in finished[0].glob("Classifier_*"))], WINE)


def test_the_rounds_are_those_of_self_training(finished: tuple[Path, str], report: dict[str, Any]) -> None:
    rows, test = load_labelled("wine").split(0.25, 0)
    labels = np.full(len(rows), -1)
    kept = rows.sample_indices(9, 0)
    labels[kept] = rows.labels[kept]
    student = Classifier(network((64, 64), rows.features), smoothing=0.0, max_epochs=40, seed=0, device="cpu")
    expected: list[float] = []
    for rounds in range(4):
        model = SelfTraining(student, threshold=0.5, smoothing=0.1, max_iter=rounds)
        model.fit(rows.features, labels, true_labels=rows.labels)
        expected.append(model.score(test.features, test.labels))
    assert report["curves"]["self_train/test_accuracy"] == [[0, 1, 2, 3], pytest.approx(expected, abs=1e-6)]
    assert report["rounds"] == json.loads(json.dumps([dataclasses.asdict(entry) for entry in model.rounds_]))
    assert report["ended"] == model.termination_condition_
    assert report["before"]["accuracy"] == pytest.approx(expected[0], abs=1e-6)
    assert report["summary"]["accuracy"] == pytest.approx(expected[-1], abs=1e-6)
    saved = Classifier.load(finished[0] / "classifier.zip", network(), device="cpu")
    np.testing.assert_array_equal(saved.predict(test.features), model.predict(test.features))
    assert report["data"] == {"with a label": "9", "without": str(len(rows) - 9), "test": str(len(test))}


def test_metrics_and_tensorboard_have_the_rounds(finished: tuple[Path, str], report: dict[str, Any]) -> None:
    folder, _ = finished
    curves = read_metrics(folder / "metrics.csv")
    assert {name: list(map(list, curve)) for name, curve in curves.items()} == report["curves"]
    labelled = curves["self_train/num_labelled"][1]
    assert labelled[0] == 9
    assert np.diff(labelled).tolist() == curves["self_train/num_new"][1][1:]
    events = read_events(folder)
    logged = events.Scalars("self_train/test_accuracy")
    assert [event.step for event in logged] == [0, 1, 2, 3]
    assert [event.value for event in logged] == pytest.approx(curves["self_train/test_accuracy"][1])


def test_the_table_says_what_the_report_says(finished: tuple[Path, str], report: dict[str, Any]) -> None:
    _, printed = finished
    line = next(line for line in printed.splitlines() if "accuracy " in line)
    assert f"{100 * report['before']['accuracy']:.1f} %" in line
    assert f"{100 * report['summary']['accuracy']:.1f} %" in line
    last = report["rounds"][-1]
    made = sum(entry["num_new"] for entry in report["rounds"])
    assert f"{made:,}, {100 * last['pseudo_label_accuracy']:.1f} % right" in printed
    assert "Samples with a label: 9; without: 125; test: 44" in printed


def test_plot_draws_again_compares_and_draws_what_has_only_begun(finished: tuple[Path, str], tmp_path: Path) -> None:
    assert_drawn_again(finished[0], tmp_path)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--smoothing confidence", "hard, smoothed by confidence"),
        pytest.param(
            "--pseudo-labels soft --temperature 0.5 --smoothing 0 --class-balance", "soft", marks=pytest.mark.slow
        ),
        ("--criterion k_best --k-best 5 --ema 0.5 --label-noise 0.1", "hard, smoothing 0.1"),
        ("--threshold 0.999", "hard, smoothing 0.1"),  # a round labels nothing
    ],
)
def test_kinds_of_pseudo_labels(words: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlsmooth.scripts.figures.kinds.save_figure", lambda path, figure: None)  # takes a second
    few = ["--data", "wine", "--n-labels", "15", "--epochs", "2", "--rounds", "2"]
    report = report_of(run_here(tmp_path, "self-train", *few, *words.split(), "--device", "cpu"))
    assert pseudo_label_words(report["settings"]) == says
    if "k_best" in words:
        assert [entry["num_new"] for entry in report["rounds"]] == [5, 5]
    if "0.999" in words:
        assert report["ended"] == "no_change"
        assert report["curves"]["self_train/test_accuracy"][1][0] == report["curves"]["self_train/test_accuracy"][1][1]


def test_noise_is_on_the_given_labels_alone() -> None:
    rows, _ = load_labelled("digits").split(0.25, 0)
    clean = given_labels(Args(n_labels=400), rows)
    noisy = given_labels(Args(n_labels=400, label_noise=0.3), rows)
    assert ((clean >= 0) == (noisy >= 0)).all()
    assert (clean >= 0).sum() == 400
    np.testing.assert_array_equal(clean[clean >= 0], rows.labels[clean >= 0])
    assert np.mean(clean[clean >= 0] != noisy[clean >= 0]) == pytest.approx(0.3, abs=0.08)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--data mnist", "data='mnist' is not known"),
        ("--n-labels 0", "n_labels=0"),
        ("--n-labels 5000", "n_labels=5000 leaves none of the 1348"),
        ("--n-labels 9", "gives class '8' no label: give at least 10"),
        ("--smoothing lots", "lots"),
        ("--smoothing lin_0.1", "smoothing follows a schedule"),
        ("--smoothing 2", "alpha=2"),
        ("--given-smoothing 2", "alpha=2"),
        ("--smoothing confidence --pseudo-labels soft", "confidence_adaptive"),
        ("--temperature 0.5", "temperature=0.5 sharpens soft labels only"),
        ("--threshold 1", "threshold=1"),
        ("--k-best 0", "k_best=0"),
        ("--rounds 0", "rounds=0"),
        ("--ema 1", "ema_decay=1"),
        ("--epochs 0", "epochs=0"),
        ("--learning-rate -1", "learning_rate=-1"),
        ("--hidden-sizes 0", "hidden_sizes=0"),
        ("--label-noise 2", "p=2.0"),
        ("--device toaster", "device='toaster' can't be used"),
        ("-f {file}/below", "can't be written to"),
        ("--resume nowhere", "'nowhere' is no folder of a run"),
    ],
)
def test_wrong_input_is_told_in_one_line_and_leaves_nothing(words: str, says: str, refused: Any) -> None:
    refused(f"self-train {words}", says)


@pytest.mark.slow
def test_a_run_killed_in_a_round_goes_on_to_the_same_parameters(tmp_path: Path) -> None:
    settings = ["--rounds", "4", "--epochs", "30", "--criterion", "k_best", "--k-best", "200", "--device", "cpu"]
    whole, folder = kill_command(
        "self-train",
        settings,
        tmp_path,
        lambda checkpoints: bool(list((checkpoints / "fit_2").glob("*.zip"))),
        run="digits_1",
        result="classifier.zip",
    )
    expected, resumed = (
        Classifier.load(path / "classifier.zip", network(), device="cpu").module_.state_dict()
        for path in (whole, folder)
    )
    assert same_tensors(expected, resumed)
    assert read_metrics(whole / "metrics.csv") == read_metrics(folder / "metrics.csv")
