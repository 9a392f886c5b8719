"""What scikit-learn's tools ask of an estimator that holds another one."""

from __future__ import annotations

import copy
import inspect
from typing import Any, Self

__all__ = ["MetaEstimator", "clone_classifier", "own_parameters"]


def own_parameters(estimator: object) -> dict[str, Any]:
    """The constructor's arguments as they were given."""
    names = sorted(name for name in inspect.signature(type(estimator).__init__).parameters if name != "self")
    return {name: getattr(estimator, name) for name in names}


def clone_classifier(classifier: Any) -> Any:
    """An unfitted classifier with copies of the same arguments, as scikit-learn's `clone` makes it.

    Raises:
        TypeError: it is none whose `fit` takes `target=`.
    """
    is_instance = not isinstance(classifier, type)
    fit = getattr(classifier, "fit", None)
    if not (is_instance and callable(fit) and "target" in inspect.signature(fit).parameters):
        given = classifier.__name__ if isinstance(classifier, type) else type(classifier).__name__
        raise TypeError(
            f"classifier must be an rlsmooth.training.Classifier (its fit takes target=), got {given}"
            f"{'' if is_instance else ', which is the class: give an instance'}."
        )
    arguments = classifier.get_params(deep=False)
    return type(classifier)(**{name: copy.deepcopy(value) for name, value in arguments.items()})


class MetaEstimator:
    """The part of `SelfTraining` that scikit-learn's `clone`, pipelines and searches call."""

    _estimator_type = "classifier"  # scikit-learn before 1.6 asks for this, later ones for the tags

    classifier: Any

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments as they were given.

        Args:
            deep: with the classifier's own, as `classifier__<name>`.
        """
        parameters = own_parameters(self)
        if deep and not isinstance(self.classifier, type):
            inner = self.classifier.get_params()
            parameters |= {f"classifier__{name}": value for name, value in inner.items()}
        return parameters

    def set_params(self, **params: Any) -> Self:
        """Change some of the constructor's arguments, or of the classifier's (`classifier__<name>`), for the next fit.

        Raises:
            ValueError: a name that is no argument.
        """
        names = list(own_parameters(self))
        inner = {}
        for name, value in params.items():
            outer, _, rest = name.partition("__")
            if rest and outer == "classifier":
                inner[rest] = value
            elif name in names:
                setattr(self, name, value)
            else:
                raise ValueError(f"Invalid parameter {name!r} for estimator {self!r}. Valid parameters are: {names}.")
        if inner:
            self.classifier.set_params(**inner)
        return self

    def __repr__(self) -> str:
        parameters = inspect.signature(type(self).__init__).parameters
        changed = [
            f"{name}={value!r}"
            for name, value in own_parameters(self).items()
            if repr(value) != repr(parameters[name].default)
        ]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __sklearn_tags__(self) -> Any:
        return self.classifier.__sklearn_tags__()

    def __sklearn_is_fitted__(self) -> bool:
        return "classifier_" in vars(self)
