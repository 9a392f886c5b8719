"""SelfTraining against scikit-learn's: which rows get which label in which round; and the rules that only ours has."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor

from rlsmooth.targets import Smoothing
from rlsmooth.training import Classifier, SelfTraining


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
def test_a_run_that_was_cut_off_goes_on(
    arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    with pytest.raises(KeyboardInterrupt):
        model(tmp_path / "cut").fit(DIGITS, PARTLY)
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
    with pytest.raises(NotFittedError):
        model.predict(DIGITS)
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
        ({"smoothing": Smoothing(alpha=torch.tensor([0.1, 0.2]))}, "an alpha for each row"),
        ({"smoothing": Smoothing(alpha=None, reference="binomial"), "labels": "soft"}, "alpha=None"),
    ],
    ids=str,
)
def test_an_argument_that_makes_no_sense_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelfTraining(student(device="cpu"), **arguments).fit(DIGITS, PARTLY)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"y": np.full(300, -1)}, ValueError, "y has no row with a label"),
        ({"y": PARTLY[:10]}, ValueError, "y has 10 labels, but X 300 rows"),
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
