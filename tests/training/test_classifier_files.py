"""Logs and files of the classification trainer, checkpoints, and its place among scikit-learn's tools."""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import config_context, datasets
from sklearn.base import clone, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import BaggingClassifier, VotingClassifier
from sklearn.exceptions import NotFittedError, UnsetMetadataPassedError
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional
from torchmetrics.functional.classification import multiclass_calibration_error

from rlsmooth.targets import Smoothing, uniform
from rlsmooth.training import (
    Classifier,
    SafeFileError,
    SelfTraining,
    TrainingDivergedError,
    checkpoint_steps,
    epoch_permutation,
)
from rlsmooth.training import run as engine
from support import assert_raises, read_events


def noise(rows: int = 60, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, 4)).astype(np.float32), np.arange(rows) % 3


X, y = noise()


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


def make(model: Any = None, **arguments: Any) -> Classifier:
    chosen = network() if model is None else model
    return Classifier(chosen, **{"seed": 0, "device": "cpu", "max_epochs": 6, "batch_size": 16, **arguments})


def assert_same(one: Classifier, two: Classifier) -> None:
    for first, second in zip(one.module_.state_dict().values(), two.module_.state_dict().values(), strict=True):
        assert torch.equal(first, second)
    assert one.history_ == two.history_
    assert (one.n_iter_, one.best_epoch_) == (two.n_iter_, two.best_epoch_)


# ---- files
@pytest.mark.parametrize("names", [["a", "bb", "c"], [5, -1, 7], [False, True, True]])
def test_a_file_brings_everything_back(names: list[Any], tmp_path: Path) -> None:
    labels = np.array(names)[y]
    classes = len(set(names))
    given = make(lambda features, _classes: nn.Linear(features, classes), class_weight={names[0]: 2.0}, max_epochs=2)
    path = given.fit(X, labels).save(tmp_path / "classifier")
    assert path.name == "classifier.zip"
    loaded = Classifier.load(path, nn.Linear(4, classes), device="cpu")
    assert_same(given, loaded)
    assert loaded.classes_.dtype == given.classes_.dtype
    assert loaded.predict(X).tolist() == given.predict(X).tolist()
    np.testing.assert_array_equal(loaded.predict_proba(X), given.predict_proba(X))
    assert loaded.class_weight == {names[0]: 2.0}
    assert loaded.n_features_in_ == 4
    assert loaded.fit(X, labels).n_iter_ == 2


def test_an_mlp_needs_no_model(tmp_path: Path) -> None:
    smoothing = Smoothing(0.2, reference=torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64))
    path = make("mlp", smoothing=smoothing, warm_start=True).fit(X, y).save(tmp_path / "mlp.zip")
    loaded = Classifier.load(path, device="cpu")
    assert torch.equal(loaded.smoothing.reference, smoothing.reference)
    assert loaded.fit(X, y).history_["loss"][0] < make("mlp", smoothing=smoothing).fit(X, y).history_["loss"][0]


def test_what_a_file_can_not_hold_is_asked_for(tmp_path: Path) -> None:
    model = network()
    given = make(model, smoothing=Smoothing(lambda progress: 0.1 * progress), learning_rate=lambda _: 1e-3).fit(X, y)
    path = given.save(tmp_path / "own.zip")
    assert_raises(ValueError, "give the model", Classifier.load, path)
    assert_raises(ValueError, "model does not fit the file", Classifier.load, path, nn.Linear(4, 3))
    loaded = Classifier.load(path, model, device="cpu")
    np.testing.assert_array_equal(loaded.predict_proba(X), given.predict_proba(X))
    with pytest.raises(ValueError, match=r"^smoothing, learning_rate was a callable, which no file can hold"):
        loaded.fit(X, y)
    ready = Classifier.load(path, model, device="cpu", smoothing=0.1, learning_rate=1e-3)
    assert_same(ready.fit(X, y), make(model).fit(X, y))


def test_other_files_are_refused(tmp_path: Path) -> None:
    assert_raises(ValueError, "not fitted", make().save, tmp_path / "none.zip")
    (tmp_path / "pickle.zip").write_bytes(pickle.dumps({"model": 1}))
    assert_raises(SafeFileError, None, Classifier.load, tmp_path / "pickle.zip", "mlp")
    whole = make("mlp").fit(X, y).save(tmp_path / "whole.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    assert_raises(SafeFileError, None, Classifier.load, tmp_path / "cut.zip")
    assert_raises(SafeFileError, "does not exist", Classifier.load, tmp_path / "missing.zip")


def test_a_fitted_classifier_can_be_pickled() -> None:
    fitted = make().fit(X, y)
    assert_same(fitted, pickle.loads(pickle.dumps(fitted)))


# ---- checkpoints
def stop_after(monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    """Make the run break off once the checkpoint of that epoch is written."""
    original = engine.save_checkpoint

    def write(folder: Any, step: int, **content: Any) -> Path:
        path = original(folder, step, **content)
        if step >= epochs:
            raise KeyboardInterrupt
        return path

    monkeypatch.setattr(engine, "save_checkpoint", write)


HARD: dict[str, Any] = {"mixup": 0.3, "smoothing": "lin_0.2", "learning_rate": "lin_1e-2", "weight_decay": 0.01}
HARD |= {"max_grad_norm": 1.0, "validation_fraction": 0.2, "early_stopping_patience": 20, "class_weight": "balanced"}


def test_checkpoints_do_not_change_a_run(tmp_path: Path) -> None:
    assert_same(make(**HARD).fit(X, y), make(**HARD, checkpoint_folder=tmp_path, checkpoint_every=1).fit(X, y))
    assert checkpoint_steps(tmp_path) == [5, 6]


def test_a_warm_start_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make(warm_start=True).fit(X, y).fit(X, y)
    first = make(warm_start=True).fit(X, y)
    first.set_params(checkpoint_folder=tmp_path, checkpoint_every=3)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert_raises(KeyboardInterrupt, None, first.fit, X, y)
    resumed = make(checkpoint_folder=tmp_path).fit(X, y, resume=True)
    assert_same(whole, resumed)


def test_a_seed_that_was_drawn_is_that_of_the_run(tmp_path: Path) -> None:
    arguments = {"seed": None, "validation_fraction": 0.2, "checkpoint_folder": tmp_path}
    one = make("mlp", **arguments).fit(X, y)
    assert_same(one, make("mlp", **arguments).fit(X, y, resume=True))


def test_what_does_not_belong_together_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resume=True needs the run's checkpoint_folder"):
        make().fit(X, y, resume=True)
    make(checkpoint_folder=tmp_path).fit(X, y)

    def resume(X: Any = X, y: Any = y, model: Any = None, **changed: Any) -> None:
        given = {name: changed.pop(name) for name in ("target", "mask", "sample_weight") if name in changed}
        make(model, checkpoint_folder=tmp_path, **changed).fit(X, y, **given, resume=True)

    assert_raises(ValueError, "^smoothing=.* was started with", resume, smoothing=0.2)
    assert_raises(ValueError, "^class_weight=.* was started with", resume, class_weight="balanced")
    assert_raises(ValueError, "seed=1 was 0", resume, seed=1)
    assert_raises(ValueError, "model does not fit", resume, model=nn.Linear(4, 3))
    moved = X.copy()
    moved[17, 2] += 1
    others = (
        {"X": moved},
        {"y": y[::-1].copy()},
        {"sample_weight": np.ones(60)},
        {"target": uniform(torch.tensor(y), 3, alpha=0.2)},
        {"mask": np.ones((60, 3), dtype=bool)},
    )
    for other in others:
        assert_raises(ValueError, r"^X, y, .*: these are not those", resume, **other)
    resume()


# ---- what a fit reports: history, TensorBoard files, lines, and the end of a fit that diverges
three_epochs = functools.partial(make, "mlp", max_epochs=3)
MEASURED = ["accuracy", "cross_entropy", "ece", "entropy", "nll_hard"]


def measured(logits: Tensor, labels: Tensor, alpha: float) -> dict[str, float]:
    """The metrics, each as somebody else computes it."""
    return {
        "cross_entropy": float(functional.cross_entropy(logits, labels, label_smoothing=alpha)),
        "nll_hard": float(functional.cross_entropy(logits, labels)),
        "accuracy": float((logits.argmax(1) == labels).float().mean()),
        "ece": float(multiclass_calibration_error(logits.softmax(1), labels, num_classes=3, n_bins=15)),
        "entropy": float(Categorical(logits=logits).entropy().mean()),
    }


def test_the_history_has_what_others_compute() -> None:
    held_out = noise(rows=30, seed=1)
    fitted = three_epochs(smoothing=0.2).fit(X, y, validation=held_out)
    expected = measured(fitted.logits(X), torch.tensor(y), 0.2)
    theirs = measured(fitted.logits(held_out[0]), torch.tensor(held_out[1]), 0.2)
    history = fitted.history_
    assert sorted(history) == sorted(
        ["loss", "learning_rate", "smoothing", "val_loss", *MEASURED, *(f"val_{name}" for name in MEASURED)]
    )
    assert all(len(values) == 3 for values in history.values())
    for name in MEASURED:
        assert history[name][-1] == pytest.approx(expected[name], abs=1e-5), name
        assert history[f"val_{name}"][-1] == pytest.approx(theirs[name], abs=1e-5), name
    assert history["val_loss"] == history["val_cross_entropy"]
    assert history["learning_rate"] == pytest.approx([1e-3] * 3)
    assert history["smoothing"] == pytest.approx([0.2] * 3)


def test_the_loss_is_the_mean_over_an_epochs_samples() -> None:
    given = {"max_epochs": 3, "learning_rate": 1e-12, "batch_size": 32}
    fitted = make(lambda _features, _classes: nn.Linear(4, 3), **given).fit(X, y)
    each = functional.cross_entropy(fitted.logits(X), torch.tensor(y), label_smoothing=0.1, reduction="none")
    assert fitted.history_["loss"][-1] == pytest.approx(float(each.mean()), abs=1e-6)


def test_only_the_cross_entropy_weighs_rows() -> None:
    weights = np.arange(60) + 1.0
    fitted = three_epochs(smoothing=0.2).fit(X, y, weights)
    logits, labels = fitted.logits(X), torch.tensor(y)
    each = functional.cross_entropy(logits, labels, label_smoothing=0.2, reduction="none")
    assert fitted.history_["cross_entropy"][-1] == pytest.approx(np.average(each.numpy(), weights=weights), abs=1e-5)
    assert fitted.history_["nll_hard"][-1] == pytest.approx(measured(logits, labels, 0.2)["nll_hard"], abs=1e-5)


def test_metrics_are_over_the_legal_classes() -> None:
    mask = np.ones((60, 3), dtype=bool)
    mask[np.arange(60), (y + 1) % 3] = False
    fitted = three_epochs(smoothing=0.2).fit(X, y, mask=mask)
    assert fitted.history_["accuracy"][-1] == pytest.approx(np.mean(fitted.predict(X, mask=mask) == y))
    target = uniform(torch.tensor(y), 3, alpha=0.2, mask=torch.tensor(mask)).dense(torch.float64)
    log_probs = np.where(mask, fitted.predict_log_proba(X, mask=mask), 0.0)
    assert fitted.history_["cross_entropy"][-1] == pytest.approx(-(target.numpy() * log_probs).sum(1).mean(), abs=1e-5)
    assert max(fitted.history_["entropy"]) <= np.log(2) + 1e-6


def test_tensorboard_has_the_history_and_pictures(tmp_path: Path) -> None:
    fitted = three_epochs(tensorboard_log=tmp_path, validation_fraction=0.2).fit(X, y)
    three_epochs(tensorboard_log=tmp_path).fit(X, y)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Classifier_1", "Classifier_2"]
    found = read_events(tmp_path / "Classifier_1")
    assert set(found.Tags()["scalars"]) == {f"classifier/{name}" for name in fitted.history_}
    for name, values in fitted.history_.items():
        events = found.Scalars(f"classifier/{name}")
        assert [event.step for event in events] == [3, 6, 9]  # 48 of 60 rows
        assert [event.value for event in events] == pytest.approx(values)
    assert found.Tags()["images"] == ["classifier/target_matrix", "classifier/reliability"]


def test_a_resumed_fit_goes_on_in_its_tensorboard_folder(tmp_path: Path) -> None:
    stops = {"at": 4}

    class Breaking(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            if self.training:
                stops["at"] -= 1
                if stops["at"] == 0:
                    raise KeyboardInterrupt
            return super().forward(inputs)

    arguments = {"tensorboard_log": tmp_path / "logs", "checkpoint_folder": tmp_path / "run", "checkpoint_every": 2}
    model = Breaking(4, 3)
    stops["at"] = 14  # in the fourth epoch, after a log line that no checkpoint has
    assert_raises(KeyboardInterrupt, None, make(model, max_epochs=5, **arguments).fit, X, y)
    assert checkpoint_steps(tmp_path / "run") == [2]
    fitted = make(model, max_epochs=5, **arguments).fit(X, y, resume=True)
    (folder,) = (tmp_path / "logs").iterdir()
    events = read_events(folder).Scalars("classifier/loss")
    assert [event.step for event in events] == [4, 8, 12, 16, 20]
    assert [event.value for event in events] == pytest.approx(fitted.history_["loss"])


def test_lines_and_a_bar_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    three_epochs(verbose=1, progress_bar=True, validation_fraction=0.2).fit(X, y)
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert all(name in lines[0] for name in ("loss", "accuracy", "val_loss", "val_accuracy"))
    assert "9/9" in shown.err
    three_epochs().fit(X, y)
    assert capsys.readouterr() == ("", "")


class Exploding(nn.Linear):
    """Gives NaN from the given training batch on."""

    def __init__(self, at: int) -> None:
        super().__init__(4, 3)
        self.at = at
        self.seen = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen += self.training
        return super().forward(inputs) * (torch.nan if self.seen >= self.at and self.training else 1.0)


def test_a_fit_that_diverges_names_the_batch_and_its_rows(tmp_path: Path) -> None:
    classifier = make(Exploding(at=10), max_epochs=3, checkpoint_folder=tmp_path, checkpoint_every=1)
    with pytest.raises(TrainingDivergedError, match=r"step 10: the loss is nan.*lower learning_rate") as caught:
        classifier.fit(X, y)
    assert caught.value.step == 10
    assert caught.value.rows.tolist() == epoch_permutation(0, 2, 60)[16:32].tolist()
    assert checkpoint_steps(tmp_path) == [1, 2]
    assert str(tmp_path) in str(caught.value)
    assert_raises(ValueError, "not fitted", classifier.predict, X)


def test_parameters_that_are_spoilt_by_a_finite_loss_are_found() -> None:
    with pytest.raises(TrainingDivergedError, match="step 1: the parameters are not finite"):
        three_epochs(learning_rate=1e39, batch_size=60, max_epochs=1).fit(X, y)


def test_the_rows_of_a_held_out_fit_are_those_that_were_given() -> None:
    with pytest.raises(TrainingDivergedError) as caught:
        make(Exploding(at=1), max_epochs=3, validation_fraction=0.5, batch_size=1000).fit(X, y)
    kept = set(caught.value.rows.tolist())
    assert len(kept) == 30
    assert max(kept) > 30  # rows of X, not of the training half


# ---- among scikit-learn's own tools, and under its own checks


sklearn = pytest.importorskip("sklearn", minversion="1.6")


QUICK: dict[str, Any] = {"max_epochs": 10, "learning_rate": 0.03, "seed": 0, "device": "cpu"}
EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": "equal to float32's rounding only: see the test in float64 below"
}


def all_checks() -> list[Any]:
    """scikit-learn's checks of API and behaviour for a classifier."""
    with warnings.catch_warnings():
        # The package may not import scikit-learn, so that it can't inherit from its base class.
        warnings.filterwarnings("ignore", "Estimator Classifier does not inherit")
        return [
            pytest.param(estimator, check, id=f"{number}_{check.func.__name__}")
            for number, (estimator, check) in enumerate(
                estimator_checks.estimator_checks_generator(Classifier(**QUICK), mark=None)
            )
        ]


@pytest.mark.parametrize(("estimator", "check"), all_checks())
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scikit_learns_checks_pass(estimator: Classifier, check: Callable[[Any], None], request: Any) -> None:
    name = check.func.__name__  # type: ignore[attr-defined]
    if name in EXPECTED_FAILURES:
        request.applymarker(pytest.mark.xfail(reason=EXPECTED_FAILURES[name], raises=AssertionError, strict=True))
    try:
        check(estimator)
    except estimator_checks.SkipTest as skipped:
        pytest.skip(str(skipped))


def test_whole_weights_are_repeated_rows_by_scikit_learns_check_in_float64() -> None:
    model = nn.Linear(30, 3, dtype=torch.float64)
    estimator_checks.check_sample_weight_equivalence_on_dense_data("Classifier", Classifier(model, **QUICK))


def test_columns_of_data_frames_are_checked_by_name() -> None:
    pytest.importorskip("pandas")
    estimator_checks.check_dataframe_column_names_consistency("Classifier", Classifier(**QUICK))


class Frame:
    """What is asked of a data frame: names of its columns, in pandas' or Arrow's attribute, and an array."""

    def __init__(self, values: Any, names: list[Any], attribute: str = "columns") -> None:
        self.values = np.asarray(values)
        setattr(self, attribute, names)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.values if dtype is None else self.values.astype(dtype)


NAMES = ["a", "b", "c", "d"]


def partly(y: Any) -> Any:
    """Half of the labels."""
    return np.where(np.arange(len(y)) % 2 == 0, y, -1)


@pytest.mark.parametrize("attribute", ["columns", "column_names"])
@pytest.mark.parametrize("self_trains", [False, True])
def test_reordered_columns_are_refused_wherever_features_are_given(attribute: str, self_trains: bool) -> None:
    frame = Frame(X, NAMES, attribute)
    reordered = Frame(X[:, ::-1], NAMES[::-1], attribute)
    classifier: Any = Classifier(warm_start=True, **QUICK)
    estimator = SelfTraining(classifier, max_iter=2, smoothing=0.1, threshold=0.0) if self_trains else classifier
    fitted = estimator.fit(frame, partly(y) if self_trains else y)
    assert fitted.feature_names_in_.tolist() == NAMES
    assert fitted.n_features_in_ == 4
    for method in ("predict", "predict_proba", "predict_log_proba", "logits"):
        assert len(getattr(fitted, method)(frame)) == len(X)
        assert_raises(ValueError, "must be in the same order", getattr(fitted, method), reordered)
    assert_raises(ValueError, "must be in the same order", fitted.score, reordered, y)
    assert_raises(TypeError, "columns named by text and columns that are not", fitted.predict, Frame(X, [*"abc", 3]))
    if self_trains:  # its networks are saved and asked alone, too
        for part in (fitted.classifier_, fitted.teacher_):
            assert_raises(ValueError, "must be in the same order", part.predict, reordered)
    else:
        assert_raises(ValueError, "must be in the same order", fitted.fit, reordered, y)  # a warm start
        assert_raises(ValueError, "validation: The feature", fitted.fit, frame, y, validation=(reordered, y))
    assert "feature_names_in_" not in vars(estimator.fit(X, partly(y) if self_trains else y))


def test_a_mask_with_the_columns_of_other_classes_first_is_refused() -> None:
    mask = np.ones((60, 3), dtype=bool)
    classifier = Classifier(**QUICK)
    classifier.fit(X, y, mask=Frame(mask, [0, 1, 2]))
    assert_raises(ValueError, r"mask has the columns \[2, 1, 0\]", classifier.fit, X, y, mask=Frame(mask, [2, 1, 0]))
    assert_raises(ValueError, r"mask has the columns \[1, 0, 2\]", classifier.predict, X, Frame(mask, [1, 0, 2]))


@pytest.mark.parametrize("self_trains", [False, True])
def test_a_network_in_float64_that_a_function_builds_is_given_float64(self_trains: bool) -> None:
    """Classes that float32 can't tell apart are learned, and numbers that it can't hold are taken."""
    rng = np.random.default_rng(0)
    y = np.arange(80) % 2
    X = np.stack([1 + 1e-12 * (2 * y - 1) * (1 + rng.random(80)), rng.random(80)], axis=1)

    def centred(features: int, classes: int) -> nn.Module:
        class Centre(nn.Module):
            def forward(self, inputs: Tensor) -> Tensor:
                return (inputs - 1) * torch.tensor([1e12, 1.0], dtype=torch.float64)

        return nn.Sequential(Centre(), nn.Linear(features, classes)).double()

    classifier: Any = Classifier(centred, learning_rate=0.05, max_epochs=20, seed=0, device="cpu")
    estimator = SelfTraining(classifier, smoothing=0.1) if self_trains else classifier
    labels = np.where(np.arange(80) < 40, y, -1) if self_trains else y
    assert estimator.fit(X, labels).score(X, y) > 0.98
    assert estimator.logits(X).dtype == torch.float64
    huge = Classifier(lambda features, classes: nn.Linear(features, classes).double(), **QUICK)
    assert huge.fit(X * 1e39, y).predict(X * 1e39).shape == (80,)
    held_out = Classifier(centred, **QUICK).fit(X, y, validation=(X, y))
    assert held_out.history_["val_accuracy"] == held_out.history_["accuracy"]


class NAType:
    """As pandas' own, which need not be installed."""

    def __eq__(self, other: object) -> Any:
        return self

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")

    __hash__ = object.__hash__


@pytest.mark.parametrize("kind", ["text", "numbers"])
@pytest.mark.parametrize(
    "missing",
    [None, float("nan"), np.float32("nan"), NAType(), "masked"],
    ids=["None", "NaN", "float32", "NA", "masked"],
)
@pytest.mark.parametrize("self_trains", [False, True])
def test_missing_labels_are_called_so(kind: str, missing: Any, self_trains: bool) -> None:
    X, _ = noise(6)
    labels: Any = ["a", "b", "a", "b", "a", "b"] if kind == "text" else [0, 1, 0, 1, 0, 1]
    if isinstance(missing, str):
        labels = np.ma.array(labels, mask=np.arange(6) == 3)
    else:
        labels[3] = missing
    classifier: Any = Classifier(**QUICK)
    estimator = SelfTraining(classifier) if self_trains else classifier
    for given in (labels,) if isinstance(missing, str) else (labels, np.array(labels, dtype=object)):
        with pytest.raises(ValueError, match=r"y\[3\].* is .*a missing label: drop the sample, or label it.*-1"):
            estimator.fit(X, given)
    if not self_trains:
        with pytest.raises(ValueError, match=r"validation's y\[3\].*missing label"):
            estimator.fit(X, np.arange(6) % 2, validation=(X, labels))


@pytest.fixture
def routing() -> Iterator[None]:
    with config_context(enable_metadata_routing=True):
        yield


@pytest.mark.parametrize("self_trains", [False, True])
@pytest.mark.usefixtures("routing")
def test_metadata_routing_passes_weights_on(self_trains: bool) -> None:
    X, y = iris()
    y = np.unique(y, return_inverse=True)[1]
    weights = (y != 2).astype(float)  # without the third class
    classifier: Any = Classifier(**{**QUICK, "max_epochs": 5})
    plain = SelfTraining(classifier, threshold=0.5, max_iter=1) if self_trains else classifier
    labels = np.where(np.arange(150) % 10 == 0, -1, y) if self_trains else y
    assert len(cross_validate(plain, X, labels, cv=2)["test_score"]) == 2
    weighted = clone(plain).set_fit_request(sample_weight=True).set_score_request(sample_weight=False)
    pipeline = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), weighted)
    assert set(pipeline.fit(X, labels, sample_weight=weights).predict(X)) == {0, 1}
    search = GridSearchCV(weighted, {"verbose": [0]}, cv=2)
    assert set(search.fit(X, labels, sample_weight=weights).predict(X)) == {0, 1}
    given = {"params": {"w": weights}, "cv": 2}
    renamed = clone(plain).set_fit_request(sample_weight="w").set_score_request(sample_weight="w")
    assert cross_validate(renamed, X, labels, **given)["test_score"].max() > 0.5
    unasked = {"sample_weight": weights}
    again = clone(weighted).get_metadata_routing()  # requests are cloned
    assert again.fit.requests["sample_weight"] is True
    assert again.score.requests["sample_weight"] is False
    assert_raises(UnsetMetadataPassedError, "set_fit_request", cross_validate, plain, X, labels, params=unasked)
    assert_raises(TypeError, "'weight' is no argument of fit", plain.set_fit_request, weight=True)
    if not self_trains:
        calibrated = CalibratedClassifierCV(weighted, cv=2).fit(X, y, sample_weight=weights)
        assert calibrated.predict_proba(X)[:, 2].max() < 0.5


def test_metadata_is_requested_only_where_routing_is_on() -> None:
    assert_raises(RuntimeError, "set_config", Classifier().set_fit_request, sample_weight=True)


def iris() -> tuple[Any, Any]:
    X, y = datasets.load_iris(return_X_y=True)
    return X, np.array(["setosa", "versicolor", "virginica"])[y]


def test_clones_have_the_same_arguments_and_no_fit() -> None:
    X, y = iris()
    prior = Smoothing(0.2, reference=torch.tensor([0.5, 0.3, 0.2]))
    given = Classifier(nn.Linear(4, 3), smoothing=prior, class_weight={"setosa": 2.0}, **QUICK)
    copied = clone(given.fit(X, y))
    assert copied.get_params().keys() == given.get_params().keys()
    assert copied.class_weight == {"setosa": 2.0}
    assert torch.equal(copied.model.weight, given.model.weight)
    assert torch.equal(copied.smoothing.reference, prior.reference)
    assert_raises(NotFittedError, None, copied.predict, X)
    again = clone(given).fit(X, y)
    assert torch.equal(again.module_.weight, given.module_.weight)


def test_it_works_in_pipelines_searches_and_cross_validation() -> None:
    X, y = iris()
    pipeline = make_pipeline(StandardScaler(), Classifier(**QUICK))
    assert cross_val_score(pipeline, X, y, cv=3).mean() > 0.9
    search = GridSearchCV(pipeline, {"classifier__smoothing": [0.0, 0.1, Smoothing(0.2, spread="others")]}, cv=2)
    search.fit(X, y)
    assert len(search.cv_results_["params"]) == 3
    assert search.best_score_ > 0.9
    weighted = pipeline.fit(X, y, classifier__sample_weight=(y != "virginica").astype(float))
    assert "virginica" not in weighted.predict(X)
    assert is_classifier(pipeline)
    assert "Classifier" in pipeline._repr_html_()


def test_it_works_in_ensembles_and_under_calibration() -> None:
    X, y = iris()
    X = StandardScaler().fit_transform(X)
    classifier = Classifier(**QUICK)
    calibrated = CalibratedClassifierCV(classifier, cv=2, method="isotonic").fit(X, y)
    assert calibrated.score(X, y) > 0.9
    assert OneVsRestClassifier(classifier).fit(X, y).score(X, y) > 0.8
    assert BaggingClassifier(classifier, n_estimators=2, random_state=0).fit(X, y).score(X, y) > 0.9
    voting = VotingClassifier([("a", classifier), ("b", clone(classifier).set_params(seed=1))], voting="soft")
    assert voting.fit(X, y).score(X, y) > 0.9


def test_the_score_is_scikit_learns_accuracy() -> None:
    X, y = iris()
    classifier = Classifier(**{**QUICK, "max_epochs": 2}).fit(X, y)
    weights = np.random.default_rng(0).random(len(y))
    predicted = classifier.predict(X)
    assert classifier.score(X, y) == accuracy_score(y, predicted)
    assert classifier.score(X, y, weights) == pytest.approx(accuracy_score(y, predicted, sample_weight=weights))


def test_the_repr_names_what_was_changed() -> None:
    assert repr(Classifier()) == "Classifier()"
    assert repr(Classifier(smoothing=0.2, seed=3)) == "Classifier(seed=3, smoothing=0.2)"
    assert_raises(ValueError, "Invalid parameter 'alpha'", Classifier().set_params, alpha=0.1)


@pytest.mark.slow
def test_it_needs_neither_scikit_learn_nor_gymnasium() -> None:
    """With both out of reach it fits, predicts, and says when it is not fitted."""
    code = """
        import sys
        for name in ("sklearn", "gymnasium", "stable_baselines3", "pandas", "matplotlib"):
            sys.modules[name] = None
        import numpy as np
        from rlsmooth.training import Classifier
        X, y = np.eye(4), np.arange(4) % 2
        fitted = Classifier(seed=0, max_epochs=1, device="cpu").fit(X, y)
        assert fitted.predict(X).shape == (4,)
        try:
            Classifier().predict(X)
        except ValueError as error:
            assert "not fitted" in str(error)
        else:
            raise AssertionError
    """
    lines = [line[8:] for line in code.splitlines()]
    done = subprocess.run([sys.executable, "-P", "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
