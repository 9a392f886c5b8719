"""What scikit-learn's tools ask of an estimator, without importing scikit-learn before they do."""

from __future__ import annotations

import inspect
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["ScikitLearnEstimator", "check_feature_names", "not_fitted_error"]


class ScikitLearnEstimator:
    """The part of `Classifier` that scikit-learn's `clone`, pipelines and searches call."""

    _estimator_type = "classifier"  # scikit-learn before 1.6 asks for this, later ones for the tags

    @classmethod
    def _parameter_names(cls) -> list[str]:
        return sorted(name for name in inspect.signature(cls.__init__).parameters if name != "self")

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments as they were given.

        Args:
            deep: for scikit-learn's sake; there are no nested estimators.
        """
        return {name: getattr(self, name) for name in self._parameter_names()}

    def set_params(self, **params: Any) -> Self:
        """Change some of the constructor's arguments, for the next `fit`.

        Raises:
            ValueError: a name that is no argument.
        """
        names = self._parameter_names()
        for name, value in params.items():
            if name not in names:
                raise ValueError(f"Invalid parameter {name!r} for estimator {self!r}. Valid parameters are: {names}.")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        parameters = inspect.signature(type(self).__init__).parameters
        changed = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if value is not parameters[name].default and repr(value) != repr(parameters[name].default)
        ]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(three_d_array=True),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return "module_" in vars(self)


def not_fitted_error(name: str) -> Exception:
    """scikit-learn's NotFittedError where it is installed, otherwise the ValueError that it is made of."""
    message = f"This {name} instance is not fitted yet: call fit before asking it for predictions."
    try:
        from sklearn.exceptions import NotFittedError
    except ModuleNotFoundError:
        return ValueError(message)
    error: Exception = NotFittedError(message)
    return error


def check_feature_names(names: NDArray[np.object_] | None, expected: NDArray[np.object_] | None) -> None:
    """Raise ValueError unless the columns are those of `fit`, where both came as data frames."""
    if names is None or expected is None or names.tolist() == expected.tolist():
        return
    message = "The feature names should match those that were passed during fit.\n"
    unseen, missing = sorted(set(names) - set(expected)), sorted(set(expected) - set(names))
    if unseen:
        message += f"Feature names unseen at fit time:\n{_listed(unseen)}"
    if missing:
        message += f"Feature names seen at fit time, yet now missing:\n{_listed(missing)}"
    if not unseen and not missing:
        message += "Feature names must be in the same order as they were in fit.\n"
    raise ValueError(message)


def _listed(names: list[str]) -> str:
    return "".join(f"- {name}\n" for name in names[:5])
