"""SelfTraining against scikit-learn's: pseudo-labels of each round, targets made of them, and the report."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binned_statistic
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris, make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rlsmooth.targets import Smoothing, Target, confidence_adaptive, one_hot, uniform
from rlsmooth.training import (
    Classifier,
    ConfirmationBias,
    RoundReport,
    SelfTraining,
    confirmation_bias,
    gradient_bins,
    logit_gradient_norms,
)
from rlsmooth.training.classifier_model import average_into
from rlsmooth.training.self_training_labels import select
from support import assert_raises


class Wrapped:
    """scikit-learn's classifiers behind our interface: the targets are ignored, the labels are learnt."""

    def __init__(
        self, base: Any, *, smoothing: float = 0.0, warm_start: bool = False, checkpoint_folder: str | None = None
    ) -> None:
        self.base = base
        self.smoothing = smoothing
        self.warm_start = warm_start
        self.checkpoint_folder = checkpoint_folder

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        names = ("base", "smoothing", "warm_start", "checkpoint_folder")
        return {name: getattr(self, name) for name in names}

    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, target: Any = None, resume: bool = False) -> Wrapped:
        self.fitted_ = clone(self.base).fit(X, y)
        self.classes_ = self.fitted_.classes_
        self.n_features_in_ = X.shape[1]
        return self

    def predict_proba(self, X: Any, mask: Any = None) -> NDArray[np.float64]:
        found: NDArray[np.float64] = self.fitted_.predict_proba(X)
        return found

    def logits(self, X: Any) -> Tensor:
        return torch.from_numpy(self.predict_proba(X)).log()

    def predict(self, X: Any, mask: Any = None) -> NDArray[Any]:
        found: NDArray[Any] = self.fitted_.predict(X)
        return found


def partly_labelled(labels: NDArray[Any], share: float, seed: int) -> NDArray[Any]:
    """`labels` with -1 in place of most; one of each class stays."""
    generator = np.random.default_rng(seed)
    keep = generator.random(len(labels)) < share
    for label in np.unique(labels):
        keep[generator.choice(np.flatnonzero(labels == label))] = True
    given_labels = labels.copy()
    given_labels[~keep] = -1
    return given_labels


def assert_equal_to_sklearn(base: Any, X: Any, y: Any, **arguments: Any) -> SelfTraining:
    theirs = SelfTrainingClassifier(base, **arguments).fit(X, y)
    ours = SelfTraining(Wrapped(base), **arguments).fit(X, y)
    np.testing.assert_array_equal(ours.transduction_, theirs.transduction_)
    np.testing.assert_array_equal(ours.labeled_iter_, theirs.labeled_iter_.astype(np.int64))
    np.testing.assert_array_equal(ours.classes_, theirs.classes_)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    np.testing.assert_array_equal(ours.predict_proba(X), theirs.predict_proba(X))
    assert ours.n_iter_ == theirs.n_iter_ == len(ours.rounds_)
    assert ours.n_features_in_ == theirs.n_features_in_
    assert ours.transduction_.dtype == theirs.transduction_.dtype
    if theirs.n_iter_ or not (theirs.transduction_ == -1).any() or theirs.max_iter == 0:
        assert ours.termination_condition_ == theirs.termination_condition_
    return ours


BASES = {
    "logistic": LogisticRegression(max_iter=500),
    "bayes": GaussianNB(),
    "neighbours": KNeighborsClassifier(5),
    "tree": DecisionTreeClassifier(max_depth=3, random_state=0),
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"threshold": 0.95},
        {"threshold": 0.0, "max_iter": None},
        {"threshold": 0.9, "max_iter": 1},
        {"max_iter": 0},
        {"criterion": "k_best", "k_best": 23, "max_iter": None},
        {"criterion": "k_best", "k_best": 20, "max_iter": 3},
    ],
    ids=str,
)
def test_labels_the_rows_that_scikit_learn_labels(base: str, arguments: dict[str, Any]) -> None:
    X, labels = load_iris(return_X_y=True)
    assert_equal_to_sklearn(BASES[base], X, partly_labelled(labels, 0.1, seed=1), **arguments)


@given(
    seed=st.integers(0, 2**16),
    share=st.floats(0.05, 0.9),
    threshold=st.sampled_from([0.0, 0.5, 0.6, 0.8, 0.99]),
    criterion=st.sampled_from(["threshold", "k_best"]),
    k_best=st.integers(1, 12),
    max_iter=st.sampled_from([0, 1, 2, 5, None]),
)
def test_labels_as_scikit_learn_whatever_the_data(
    seed: int, share: float, threshold: float, criterion: str, k_best: int, max_iter: int | None
) -> None:
    generator = np.random.default_rng(seed)
    labels = np.arange(40) % 3
    X = generator.normal(size=(40, 2)) + labels[:, None]
    y = partly_labelled(labels, share, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of k_best, which has a test of its own
        assert_equal_to_sklearn(
            KNeighborsClassifier(3), X, y, threshold=threshold, criterion=criterion, k_best=k_best, max_iter=max_iter
        )


def test_all_ends_of_a_run_are_seen() -> None:
    X, labels = load_iris(return_X_y=True)
    y = partly_labelled(labels, 0.1, seed=1)
    ends = {
        assert_equal_to_sklearn(BASES["logistic"], X, y, **arguments).termination_condition_
        for arguments in ({"threshold": 0.0}, {"threshold": 0.95, "max_iter": 1}, {"threshold": 0.9, "max_iter": None})
    }
    assert ends == {"all_labeled", "max_iter", "no_change"}


def test_labels_may_be_text_in_an_array_of_objects() -> None:
    X, labels = load_iris(return_X_y=True)
    y = partly_labelled(load_iris().target_names[labels].astype(object), 0.2, seed=2)
    model = assert_equal_to_sklearn(BASES["neighbours"], X, y)
    assert set(model.predict(X)) == {"setosa", "versicolor", "virginica"}
    assert model.labeled_iter_.dtype == np.int64


@pytest.mark.parametrize("arguments", [{}, {"criterion": "k_best", "k_best": 500}])
def test_warns_as_scikit_learn(arguments: dict[str, Any]) -> None:
    X, labels = load_iris(return_X_y=True)
    y = partly_labelled(labels, 0.5, seed=1) if arguments else labels
    found = []
    for model in (
        SelfTrainingClassifier(BASES["neighbours"], **arguments),
        SelfTraining(Wrapped(BASES["neighbours"]), **arguments),
    ):
        with pytest.warns(UserWarning, match="unlabeled") as record:
            model.fit(X, y)
        found.append([str(warning.message) for warning in record])
    assert found[0] == found[1]
    assert len(found[0]) == 1


def test_prints_as_scikit_learn(capsys: pytest.CaptureFixture[str]) -> None:
    X, labels = load_iris(return_X_y=True)
    y = partly_labelled(labels, 0.1, seed=1)
    SelfTrainingClassifier(BASES["logistic"], verbose=True).fit(X, y)
    theirs = capsys.readouterr().out
    SelfTraining(Wrapped(BASES["logistic"]), verbose=1).fit(X, y)
    assert capsys.readouterr().out == theirs != ""


DIGITS, DIGIT_LABELS = load_digits(return_X_y=True)
DIGITS = (DIGITS[:300] / 16).astype(np.float32)
DIGIT_LABELS = DIGIT_LABELS[:300]
PARTLY = partly_labelled(DIGIT_LABELS, 0.2, seed=0)


def student(**arguments: Any) -> Classifier:
    return Classifier(torch.nn.Linear, **{"learning_rate": 0.03, "max_epochs": 10, "seed": 0, **arguments})


def parameters(model: SelfTraining | Classifier) -> list[Tensor]:
    module = model.classifier_.module_ if isinstance(model, SelfTraining) else model.module_
    return [tensor.cpu() for tensor in module.state_dict().values()]


@pytest.mark.parametrize("as_tensor", [False, True])
def test_without_rounds_it_is_the_classifier(as_tensor: bool, device: torch.device) -> None:
    X: Any = torch.from_numpy(DIGITS).to(device) if as_tensor else DIGITS
    base = student(device=device)
    model = SelfTraining(base, max_iter=0).fit(X, PARTLY)
    plain = student(device=device).fit(X[PARTLY >= 0], PARTLY[PARTLY >= 0])
    for ours, theirs in zip(parameters(model), parameters(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert model.score(X, DIGIT_LABELS) == plain.score(X, DIGIT_LABELS)
    np.testing.assert_array_equal(model.predict_log_proba(X), plain.predict_log_proba(X))
    torch.testing.assert_close(model.logits(X), plain.logits(X), rtol=0, atol=0)
    assert (model.labeled_iter_ == np.where(PARTLY >= 0, 0, -1)).all()


def test_hard_unsmoothed_rounds_with_our_classifier_are_scikit_learns(device: torch.device) -> None:
    base = student(device=device, smoothing=0.0)
    theirs = SelfTrainingClassifier(base, threshold=0.8, max_iter=3).fit(DIGITS, PARTLY)
    ours = SelfTraining(base, threshold=0.8, max_iter=3).fit(DIGITS, PARTLY)
    np.testing.assert_array_equal(ours.transduction_, theirs.transduction_)
    np.testing.assert_array_equal(ours.labeled_iter_, theirs.labeled_iter_)
    assert ours.labeled_iter_.max() == 3
    np.testing.assert_array_equal(ours.predict_proba(DIGITS), theirs.predict_proba(DIGITS))


def test_what_it_is_given_stays_as_it_is() -> None:
    base, y = student(device="cpu"), PARTLY.copy()
    before = base.get_params()
    model = SelfTraining(base, max_iter=1).fit(DIGITS, y)
    assert base.get_params() == before
    assert "module_" not in vars(base)
    assert model.classifier_ is not base
    assert model.teacher_ is model.classifier_
    np.testing.assert_array_equal(y, PARTLY)


def test_a_seeded_run_repeats() -> None:
    first, second = (
        SelfTraining(student(device="cpu"), threshold=0.7, smoothing=0.1, max_iter=2).fit(DIGITS, PARTLY)
        for _ in range(2)
    )
    for ours, theirs in zip(parameters(first), parameters(second), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert first.rounds_ == second.rounds_


@pytest.mark.parametrize("arguments", [{}, {"warm_start": True}])
def test_a_run_that_was_cut_off_goes_on(arguments: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    def model(folder: Path) -> SelfTraining:
        base = student(device="cpu", checkpoint_folder=folder, checkpoint_every=5, **arguments)
        return SelfTraining(base, threshold=0.7, smoothing=0.1, max_iter=3, ema_decay=0.5 if arguments else None)

    whole = model(tmp_path / "whole").fit(DIGITS, PARTLY)
    assert whole.n_iter_ == 3
    update, calls = Classifier._update, 0

    def killed(self: Classifier, *given_arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 38:
            raise KeyboardInterrupt
        return update(self, *given_arguments)

    monkeypatch.setattr(Classifier, "_update", killed)
    assert_raises(KeyboardInterrupt, None, model(tmp_path / "cut").fit, DIGITS, PARTLY)
    assert len(list((tmp_path / "cut").iterdir())) == 2  # within the second fit
    resumed = model(tmp_path / "cut").fit(DIGITS, PARTLY, resume=True)
    np.testing.assert_array_equal(resumed.transduction_, whole.transduction_)
    assert resumed.rounds_ == whole.rounds_
    for ours, theirs in zip(parameters(resumed), parameters(whole), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_is_an_estimator_of_scikit_learn() -> None:
    model = SelfTraining(student(device="cpu", max_epochs=3), smoothing=0.1, max_iter=1)
    twin = clone(model)
    assert twin.classifier is not model.classifier
    assert twin.get_params(deep=False).keys() == model.get_params(deep=False).keys()
    assert (twin.smoothing, twin.max_iter, twin.get_params()["classifier__max_epochs"]) == (0.1, 1, 3)
    assert "smoothing=0.1" in repr(model)
    assert_raises(NotFittedError, None, model.predict, DIGITS)
    search = GridSearchCV(model, {"threshold": [0.5, 0.9], "classifier__smoothing": [0.0, 0.2]}, cv=2)
    search.fit(DIGITS, DIGIT_LABELS * (PARTLY >= 0) - (PARTLY < 0))
    assert set(search.best_params_) == {"threshold", "classifier__smoothing"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # no row is unlabelled
        scores = cross_val_score(model.set_params(classifier__max_epochs=15), DIGITS, DIGIT_LABELS, cv=3)
    assert scores.mean() > 0.5
    assert model.classifier.max_epochs == 15
    weights = np.arange(300.0)
    fitted = clone(model).fit(DIGITS, PARTLY)
    expected = accuracy_score(DIGIT_LABELS, fitted.predict(DIGITS), sample_weight=weights)
    assert fitted.score(DIGITS, DIGIT_LABELS, weights) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.0}, r"threshold=1.0 must be a finite number in \[0, 1\)"),
        ({"threshold": -0.1}, r"threshold=-0.1"),
        ({"criterion": "best"}, "criterion='best' is not known"),
        ({"criterion": "k_best", "k_best": 0}, "k_best=0 must be at least 1"),
        ({"criterion": "k_best", "k_best": 3, "class_balance": True}, "k_best=3 is less than the 10 classes"),
        ({"max_iter": -1}, "max_iter=-1 must be at least 0"),
        ({"labels": "fuzzy"}, "labels='fuzzy' is not known"),
        ({"temperature": 0.0, "labels": "soft"}, r"temperature=0.0 must be a finite number in \(0"),
        ({"temperature": 0.5}, 'set labels="soft"'),
        ({"ema_decay": 1.0}, r"ema_decay=1.0"),
        ({"ema_decay": 0.9}, "warm_start=True"),
        ({"smoothing": "confidence_adaptive", "labels": "soft"}, "hold their confidence already"),
        ({"smoothing": "lin_0.1"}, "smoothing follows a schedule"),
        ({"smoothing": 1.5}, "alpha=1.5 must be finite and at most 1"),
        ({"smoothing": Smoothing(alpha=torch.tensor([0.1, 0.2]))}, "an alpha for each sample"),
        ({"smoothing": Smoothing(alpha=None, reference="binomial"), "labels": "soft"}, "alpha=None"),
    ],
    ids=str,
)
def test_an_argument_that_makes_no_sense_is_named(arguments: dict[str, Any], message: str) -> None:
    assert_raises(ValueError, message, SelfTraining(student(device="cpu"), **arguments).fit, DIGITS, PARTLY)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"y": np.full(300, -1)}, ValueError, "y has no sample with a label"),
        ({"y": PARTLY[:10]}, ValueError, "y has 10 labels, but X has 300 samples"),
        ({"y": np.eye(300)}, ValueError, r"y has shape \(300, 300\)"),
        ({"y": PARTLY + 0.5}, ValueError, "continuous"),
        ({"y": PARTLY.astype(str)}, ValueError, "y has dtype string"),
        ({"true_labels": DIGIT_LABELS[:5]}, ValueError, "true_labels has 5 labels"),
        ({"sample_weight": np.ones(5)}, ValueError, r"sample_weight has shape \(5,\)"),
        ({"X": DIGITS[:, 0]}, ValueError, r"X has shape \(300,\)"),
        ({"X": np.full_like(DIGITS, np.nan)}, ValueError, "NaN"),
    ],
)
def test_data_that_do_not_fit_are_named(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    data = {"X": DIGITS, "y": PARTLY, "sample_weight": None, "true_labels": None, **changed}
    with pytest.raises(error, match=message):
        SelfTraining(student(device="cpu"), max_iter=1).fit(
            data["X"], data["y"], data["sample_weight"], true_labels=data["true_labels"]
        )


@pytest.mark.parametrize("classifier", [LogisticRegression(), Classifier, None])
def test_another_kind_of_classifier_is_refused(classifier: Any) -> None:
    with pytest.raises(TypeError, match=r"classifier must be an rlsmooth\.training\.Classifier"):
        SelfTraining(classifier).fit(DIGITS, PARTLY)


def test_a_schedule_of_the_classifier_is_refused() -> None:
    with pytest.raises(ValueError, match=r"classifier\.smoothing follows a schedule"):
        SelfTraining(student(device="cpu", smoothing="lin_0.1")).fit(DIGITS, PARTLY)


# ---- pseudo-labels: targets by hand, the teacher's average, the balance of classes
F64 = torch.float64


class Scripted:
    """Gives the logits that its features are, times a factor that each fit makes larger, and keeps what it is given."""

    def __init__(
        self,
        *,
        smoothing: float | Smoothing = 0.0,
        warm_start: bool = False,
        checkpoint_folder: str | None = None,
        log: Any = None,
    ) -> None:
        self.smoothing = smoothing
        self.warm_start = warm_start
        self.checkpoint_folder = checkpoint_folder
        self.log = log
        self.module_ = nn.Linear(1, 1, bias=False, dtype=F64)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("smoothing", "warm_start", "checkpoint_folder", "log")}

    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, target: Any = None, resume: bool = False) -> Scripted:
        fits = vars(self).setdefault("fits_", [])
        self.classes_, self.n_features_in_ = np.unique(y), X.shape[1]
        fits.append((X, y, sample_weight, target))
        with torch.no_grad():
            self.module_.weight.fill_(float(len(fits)))
        return self

    def logits(self, X: Any) -> Tensor:
        return torch.from_numpy(np.asarray(X)) * self.module_.weight.detach()[0]

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        found: NDArray[np.float64] = self.logits(X).softmax(-1).numpy()
        return found


LOGITS = np.random.default_rng(0).normal(size=(60, 4)) * 2
GIVEN = np.where(np.arange(60) < 8, np.arange(60) % 4, -1)


def fitted(scripted: Scripted | None = None, **arguments: Any) -> tuple[SelfTraining, list[Any]]:
    """A run over `LOGITS`, and what each fit was given."""
    base = Scripted() if scripted is None else scripted
    model = SelfTraining(base, **arguments).fit(LOGITS, GIVEN, np.arange(60) + 1.0)  # type: ignore[arg-type]
    return model, model.classifier_.fits_  # type: ignore[attr-defined]


def rounds_of(model: SelfTraining, fits: list[Any], number: int) -> tuple[Tensor, NDArray[np.int64], NDArray[np.int64]]:
    """The target of the fit after round `number`, its rows, and in which round each got its label."""
    rows = np.flatnonzero((model.labeled_iter_ >= 0) & (model.labeled_iter_ <= number))
    X, y, weights, target = fits[number]
    np.testing.assert_array_equal(X, LOGITS[rows])
    np.testing.assert_array_equal(y, model.transduction_[rows])
    np.testing.assert_array_equal(weights, rows + 1.0)
    assert isinstance(target, Target)
    return target.dense(F64), rows, model.labeled_iter_[rows]


def probabilities(rows: NDArray[np.int64], rounds: NDArray[np.int64]) -> Tensor:
    """What the teacher gave when it labelled the rows: fit number r multiplies the logits by r."""
    return (torch.from_numpy(LOGITS[rows]) * torch.from_numpy(rounds).unsqueeze(-1)).softmax(-1)


@pytest.mark.parametrize(
    "own", [0.0, 0.2, Smoothing(0.3, torch.tensor([0.1, 0.2, 0.3, 0.4]))], ids=["0", "0.2", "prior"]
)
@pytest.mark.parametrize("pseudo", [0.0, 0.2, 0.1, Smoothing(0.3, "adjacent"), Smoothing(0.2, spread="others")])
def test_given_labels_and_pseudo_labels_have_their_own_smoothing(own: Any, pseudo: Any) -> None:
    model, fits = fitted(Scripted(smoothing=own), smoothing=pseudo, threshold=0.9)
    assert model.n_iter_ >= 2
    for number in range(len(fits)):
        target, rows, rounds = rounds_of(model, fits, number)
        labels = torch.from_numpy(model.transduction_[rows])
        for recipe, places in ((own, rounds == 0), (pseudo, rounds > 0)):
            recipe = recipe if isinstance(recipe, Smoothing) else Smoothing(recipe)
            expected = recipe(labels[places], 4).dense(F64)
            torch.testing.assert_close(target[places], expected, rtol=0, atol=1e-12)


def test_an_adaptive_target_has_the_confidence_of_its_pseudo_label() -> None:
    model, fits = fitted(Scripted(smoothing=0.1), smoothing="confidence_adaptive", threshold=0.8)
    assert model.n_iter_ >= 2
    target, rows, rounds = rounds_of(model, fits, len(fits) - 1)
    made = rounds > 0
    confidence, best = probabilities(rows[made], rounds[made]).max(-1)
    np.testing.assert_array_equal(model.transduction_[rows[made]], best.numpy())
    expected = (
        ((1 - confidence) / 3).unsqueeze(-1).expand(-1, 4).scatter(-1, best.unsqueeze(-1), confidence.unsqueeze(-1))
    )
    torch.testing.assert_close(target[made], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(target[~made].max(-1).values, torch.full((8,), 0.925, dtype=F64))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("alpha", [0.0, 0.2])
def test_soft_labels_are_sharpened_then_smoothed(temperature: float, alpha: float) -> None:
    model, fits = fitted(labels="soft", temperature=temperature, smoothing=alpha, threshold=0.8)
    hard, _ = fitted(threshold=0.8)
    np.testing.assert_array_equal(model.labeled_iter_, hard.labeled_iter_)  # the threshold sees no temperature
    target, rows, rounds = rounds_of(model, fits, len(fits) - 1)
    made = rounds > 0
    power = probabilities(rows[made], rounds[made]) ** (1 / temperature)
    sharpened = power / power.sum(-1, keepdim=True)
    torch.testing.assert_close(target[made], (1 - alpha) * sharpened + alpha / 4, rtol=0, atol=1e-12)
    own = nn.functional.one_hot(torch.from_numpy(GIVEN[:8]), 4).to(F64)
    torch.testing.assert_close(target[~made], own, rtol=0, atol=0)


def test_the_teacher_is_the_average_of_the_students() -> None:
    decay = 0.75
    model, fits = fitted(Scripted(warm_start=True), ema_decay=decay, threshold=0.8)
    assert model.n_iter_ >= 3
    average, teachers = 1.0, [1.0]
    for number in range(2, len(fits) + 1):
        average = decay * average + (1 - decay) * number
        teachers.append(average)
    assert model.teacher_.module_.weight.item() == pytest.approx(average, abs=1e-12)
    assert model.classifier_.module_.weight.item() == len(fits)
    for number in range(1, model.n_iter_ + 1):  # it is the teacher whose confidence counts
        waiting = (model.labeled_iter_ == -1) | (model.labeled_iter_ >= number)
        confidence = (torch.from_numpy(LOGITS) * teachers[number - 1]).softmax(-1).amax(-1).numpy()
        np.testing.assert_array_equal(model.labeled_iter_ == number, waiting & (confidence > 0.8))


def test_the_average_is_torchs(device: torch.device) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.second = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)
            self.second.weight = self.first.weight

    students = [Tied().to(device) for _ in range(4)]
    for step, network in enumerate(students):
        network.norm(torch.randn(5, 3, device=device))
        network.norm.num_batches_tracked += step
    ours, theirs = Tied().to(device), None
    ours.load_state_dict(students[0].state_dict())
    theirs = AveragedModel(students[0], multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    theirs.update_parameters(students[0])
    for network in students[1:]:
        average_into(ours, network, 0.9)
        theirs.update_parameters(network)
    for (name, mean), expected in zip(ours.state_dict().items(), theirs.module.state_dict().values(), strict=True):
        if mean.is_floating_point():
            torch.testing.assert_close(mean, expected, msg=name)
    assert ours.norm.num_batches_tracked == students[-1].norm.num_batches_tracked
    assert ours.second.weight is ours.first.weight


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    assert_raises(ValueError, "decay=", average_into, nn.Linear(1, 1), nn.Linear(1, 1), decay)


@given(
    seed=st.integers(0, 2**16),
    size=st.integers(1, 60),
    threshold=st.sampled_from([0.3, 0.5, 0.7]),
    criterion=st.sampled_from(["threshold", "k_best"]),
    k_best=st.integers(4, 20),
)
def test_a_balanced_round_takes_the_best_of_each_class(
    seed: int, size: int, threshold: float, criterion: str, k_best: int
) -> None:
    generator = np.random.default_rng(seed)
    confidence, places = generator.uniform(0.25, 1, size), generator.integers(4, size=size)
    arguments: dict[str, Any] = {"criterion": criterion, "threshold": threshold, "k_best": k_best}
    chosen = select(confidence, places, 4, class_balance=True, **arguments)
    assert len(set(chosen.tolist())) == len(chosen)
    eligible = confidence > threshold if criterion == "threshold" else np.ones(size, dtype=bool)
    available = np.bincount(places[eligible], minlength=4)
    taken = np.bincount(places[chosen], minlength=4)
    if criterion == "threshold":
        assert set(taken[available > 0].tolist()) <= {available[available > 0].min(initial=size)}
    else:
        np.testing.assert_array_equal(taken, np.minimum(available, k_best // 4))
    left = eligible.copy()
    left[chosen] = False
    for place in range(4):
        worst = confidence[chosen][places[chosen] == place].min(initial=1.0)
        assert (confidence[left & (places == place)] <= worst).all()


def test_balance_reaches_the_rounds() -> None:
    X, labels = make_blobs(  # two of three classes are rare
        n_samples=[120, 30, 30], centers=[[-3, 0], [3, 0], [0, 4]], cluster_std=1.2, random_state=0
    )
    y = np.full(len(X), -1)
    for label in range(3):
        y[np.flatnonzero(labels == label)[:5]] = label
    base = Classifier(nn.Linear, learning_rate=0.1, max_epochs=20, seed=0, device="cpu")
    for arguments in ({"threshold": 0.7}, {"criterion": "k_best", "k_best": 30}):
        plain = SelfTraining(base, max_iter=2, **arguments).fit(X, y)  # type: ignore[arg-type]
        even = SelfTraining(base, max_iter=2, class_balance=True, **arguments).fit(X, y)  # type: ignore[arg-type]
        for number in (1, 2):
            made = np.bincount(even.transduction_[even.labeled_iter_ == number], minlength=3)
            assert made.max() == made.min() > 0
        first = np.bincount(plain.transduction_[plain.labeled_iter_ == 1], minlength=3)
        assert first.max() > first.min()


# ---- the report of a round: gradients, confirmation bias and accuracy by hand
def even_logits(confidence: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Logits with `confidence` on a label and the rest even, `[N, K]`, and the labels."""
    labels = torch.arange(len(confidence), device=confidence.device) % classes
    rest = ((1 - confidence) / (classes - 1)).unsqueeze(-1).expand(-1, classes)
    return rest.scatter(-1, labels.unsqueeze(-1), confidence.unsqueeze(-1)).log(), labels


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
def test_gradient_norms_against_confidence_have_their_closed_form(
    classes: int, alpha: float, device: torch.device
) -> None:
    goal = 1 - alpha + alpha / classes
    confidence = torch.cat((torch.linspace(1 / classes, 0.999, 50, dtype=F64), torch.tensor([goal], dtype=F64)))
    confidence = confidence.to(device)
    logits, labels = even_logits(confidence, classes)
    hard = logit_gradient_norms(logits, labels)
    smoothed = logit_gradient_norms(logits, uniform(labels, classes, alpha))
    stretch = math.sqrt(classes / (classes - 1))
    torch.testing.assert_close(hard, (1 - confidence) * stretch, rtol=0, atol=1e-9)
    torch.testing.assert_close(smoothed, (confidence - goal).abs() * stretch, rtol=0, atol=1e-9)
    ratio = (confidence - goal).abs() / (1 - confidence)  # damps least where the pseudo-label is uncertain
    torch.testing.assert_close(smoothed / hard, ratio, rtol=0, atol=1e-9)
    assert smoothed[-1].item() == pytest.approx(0, abs=1e-9)
    adaptive = logit_gradient_norms(logits, confidence_adaptive(labels, confidence, classes))
    torch.testing.assert_close(adaptive, torch.zeros_like(adaptive), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("confidence", "published"), [(0.1, 0.9), (0.91, 0.0), (0.99, 8.0)])
def test_the_ratios_of_ten_classes_at_a_tenth(confidence: float, published: float) -> None:
    logits, labels = even_logits(torch.tensor([confidence], dtype=F64), 10)
    ratio = logit_gradient_norms(logits, uniform(labels, 10, 0.1)) / logit_gradient_norms(logits, labels)
    assert ratio.item() == pytest.approx(published, abs=1e-9)


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("alpha", [0.1, 0.3])
def test_a_certain_pseudo_label_still_has_a_gradient(classes: int, alpha: float, device: torch.device) -> None:
    logits = torch.full((1, classes), -torch.inf, dtype=F64, device=device)
    logits[0, 0] = 0.0
    label = torch.zeros(1, dtype=torch.int64, device=device)
    norm = logit_gradient_norms(logits, uniform(label, classes, alpha))
    assert norm.item() == pytest.approx(alpha * math.sqrt((classes - 1) / classes), abs=1e-9)
    assert logit_gradient_norms(logits, label).item() == 0


def test_smoothing_shortens_gradients_as_the_identity_says(device: torch.device) -> None:
    # ‖g_hard‖² - ‖g_LS‖² = 2a(1 - q_c) - a²(K - 1)/K, whatever the rest of q
    classes, alpha = 7, 0.2
    logits = 3 * torch.randn(200, classes, dtype=F64, device=device)
    confidence, labels = logits.softmax(-1).max(-1)
    hard = logit_gradient_norms(logits, labels)
    smoothed = logit_gradient_norms(logits, uniform(labels, classes, alpha))
    expected = 2 * alpha * (1 - confidence) - alpha**2 * (classes - 1) / classes
    torch.testing.assert_close(hard.square() - smoothed.square(), expected, rtol=0, atol=1e-9)


def test_bins_are_scipys() -> None:
    logits = 2 * torch.randn(500, 4, dtype=F64)
    confidence, labels = logits.softmax(-1).max(-1)
    confidence[:2] = torch.tensor([1.0, 0.0], dtype=F64)  # the ends
    target = uniform(labels, 4, 0.1)
    bins = gradient_bins(logits, labels, confidence, target, num_bins=8)
    assert sum(bins.counts) == 500
    for ours, values in (
        (bins.confidence, confidence),
        (bins.hard, logit_gradient_norms(logits, one_hot(labels, 4))),
        (bins.target, logit_gradient_norms(logits, target)),
    ):
        theirs = binned_statistic(confidence, values, bins=np.array(bins.edges)).statistic
        np.testing.assert_allclose(np.array(ours, dtype=np.float64), theirs, rtol=0, atol=1e-12)
    assert None in bins.hard
    np.testing.assert_array_equal(np.histogram(confidence, bins=np.array(bins.edges))[0], bins.counts)


def test_no_bins_are_refused() -> None:
    logits, labels = torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="num_bins=0"):
        gradient_bins(logits, labels, torch.ones(1), one_hot(labels, 2), num_bins=0)


def test_confirmation_bias_by_hand() -> None:
    before, after = np.array([0.8, 0.9, 0.7, 0.6]), np.array([0.9, 0.5, 0.8, 0.6])
    found = confirmation_bias(before, after, np.array([False, False, True, False]))
    assert found.num_wrong == 3
    assert found.share_grown == pytest.approx(1 / 3)  # the same confidence is no growth
    assert found.mean_growth == pytest.approx(-0.1)
    assert found.mean_growth_of_right == pytest.approx(0.1)
    assert found.mean_confidence == pytest.approx((0.8 + 0.9 + 0.6) / 3)
    none = np.zeros(0)
    assert confirmation_bias(none, none, none.astype(bool)) == ConfirmationBias(0, None, None, None, None)
    assert_raises(ValueError, "must have one shape", confirmation_bias, before, after[:1], np.ones(4, dtype=bool))


X, LABELS = load_digits(return_X_y=True)
X, LABELS = X[:400] / 16, LABELS[:400]
Y = np.where(np.arange(400) < 20, LABELS, -1)
BASE = Classifier(nn.Linear, smoothing=0.1, learning_rate=0.03, max_epochs=12, seed=0, device="cpu")


def run(max_iter: int, truth: Any = LABELS, **arguments: Any) -> SelfTraining:
    return SelfTraining(BASE, threshold=0.5, max_iter=max_iter, **arguments).fit(X, Y, true_labels=truth)


def test_a_report_says_what_happened() -> None:
    """Runs of 0, 1, 2 rounds are the stages of the longer one, whose reports are counted again from them."""
    stages = [run(number, smoothing=0.1) for number in range(4)]
    whole = stages[-1]
    assert [report.round for report in whole.rounds_] == [1, 2, 3]
    for before, after, report in zip(stages[:-1], stages[1:], whole.rounds_, strict=True):
        new = after.labeled_iter_ == report.round
        made = after.labeled_iter_ > 0
        assert report == after.rounds_[-1]
        assert (report.num_new, report.num_labelled) == (new.sum(), 20 + made.sum())
        teacher = before.predict_proba(X)
        assert report.mean_confidence == pytest.approx(teacher[new].max(-1).mean(), abs=1e-12)
        assert report.new_accuracy == accuracy_score(LABELS[new], after.transduction_[new])
        assert report.pseudo_label_accuracy == accuracy_score(LABELS[made], after.transduction_[made])
        candidates = before.labeled_iter_ == -1
        assert sum(report.gradients.counts) == candidates.sum()
        confidence = teacher[candidates].max(-1)
        np.testing.assert_array_equal(np.histogram(confidence, report.gradients.edges)[0], report.gradients.counts)
    made, report = whole.labeled_iter_ > 0, whole.rounds_[-1]
    given = np.array(
        [stages[number - 1].predict_proba(X[[row]]).max() for row, number in enumerate(whole.labeled_iter_)]
    )
    growth = whole.predict_proba(X)[np.arange(400), whole.transduction_] - given
    wrong = made & (whole.transduction_ != LABELS)
    assert report.confirmation_bias.num_wrong == wrong.sum() > 0
    assert report.confirmation_bias.share_grown == pytest.approx((growth[wrong] > 0).mean())
    assert report.confirmation_bias.mean_growth == pytest.approx(growth[wrong].mean(), abs=1e-6)
    assert report.confirmation_bias.mean_confidence == pytest.approx(given[wrong].mean(), abs=1e-6)
    assert report.confirmation_bias.mean_growth_of_right == pytest.approx(growth[made & ~wrong].mean(), abs=1e-6)
    assert json.loads(json.dumps(dataclasses.asdict(report)))["gradients"]["counts"] == list(report.gradients.counts)


def test_a_report_without_the_truth_and_with_part_of_it() -> None:
    none, part = run(1, truth=None), run(1, truth=np.where(np.arange(400) % 2, LABELS, -1))
    (report,) = none.rounds_
    assert (report.new_accuracy, report.pseudo_label_accuracy, report.confirmation_bias) == (None, None, None)
    (report,) = part.rounds_
    known = (part.labeled_iter_ == 1) & (np.arange(400) % 2 == 1)
    assert report.new_accuracy == accuracy_score(LABELS[known], part.transduction_[known])
    np.testing.assert_array_equal(none.transduction_, part.transduction_)  # the truth is for the report alone


def test_a_round_that_labels_nothing_is_reported() -> None:
    model = SelfTraining(BASE, threshold=0.999).fit(X, Y, true_labels=LABELS)
    (report,) = model.rounds_
    assert model.termination_condition_ == "no_change"
    assert (report.num_new, report.num_labelled, report.mean_confidence, report.new_accuracy) == (0, 20, None, None)
    assert report.confirmation_bias == ConfirmationBias(0, None, None, None, None)


@pytest.mark.parametrize("smoothing", [0.0, 0.2, "confidence_adaptive"])
def test_reported_gradients_are_those_of_the_targets_trained_on(smoothing: Any) -> None:
    report: RoundReport = run(1, smoothing=smoothing).rounds_[0]
    teacher = run(0)
    rows = Y == -1
    logits = teacher.logits(X[rows]).to(F64)
    confidence, labels = logits.softmax(-1).max(-1)
    target = (
        confidence_adaptive(labels, confidence, 10) if isinstance(smoothing, str) else uniform(labels, 10, smoothing)
    )
    # p - q is the gradient
    norms = (logits.softmax(-1) - target.dense(F64)).norm(dim=-1)
    theirs = binned_statistic(confidence, norms, bins=np.array(report.gradients.edges)).statistic
    np.testing.assert_allclose(np.array(report.gradients.target, dtype=np.float64), theirs, rtol=0, atol=1e-9)
    hard = (logits.softmax(-1) - nn.functional.one_hot(labels, 10)).norm(dim=-1)
    theirs = binned_statistic(confidence, hard, bins=np.array(report.gradients.edges)).statistic
    np.testing.assert_allclose(np.array(report.gradients.hard, dtype=np.float64), theirs, rtol=0, atol=1e-9)
