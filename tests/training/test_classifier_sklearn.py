"""The classification trainer among scikit-learn's own tools, and under scikit-learn's own checks."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rlsmooth.targets import Smoothing
from rlsmooth.training import Classifier

sklearn = pytest.importorskip("sklearn", minversion="1.6")

from sklearn import datasets  # noqa: E402
from sklearn.base import clone, is_classifier  # noqa: E402
from sklearn.calibration import CalibratedClassifierCV  # noqa: E402
from sklearn.ensemble import BaggingClassifier, VotingClassifier  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.metrics import accuracy_score  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.multiclass import OneVsRestClassifier  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils import estimator_checks  # noqa: E402

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
    with pytest.raises(NotFittedError):
        copied.predict(X)
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
    with pytest.raises(ValueError, match="Invalid parameter 'alpha'"):
        Classifier().set_params(alpha=0.1)


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
