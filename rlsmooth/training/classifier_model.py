"""Networks of classifiers, and what scikit-learn asks of an estimator, without importing it before it does."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Self, TypeAlias, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlsmooth.training.seeding import isolated_rng
from rlsmooth.untrusted import AnyNumber, Count, Positive, Within

ModelLike: TypeAlias = str | nn.Module | Callable[[int, int], nn.Module]
HIDDEN = 64
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


# ---- the network


def mlp(num_features: int, num_classes: int) -> nn.Module:
    """Two hidden layers of 64 units with ReLU, over the flattened features."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(num_features, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, num_classes),
    )


def as_device(device: torch.device | str) -> torch.device:
    """`"auto"` is the GPU where there is one.

    Raises:
        RuntimeError: torch's own, for a device that it does not know.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def model_dtype(model: Any) -> torch.dtype:
    """The type of floating-point inputs: that of the first parameter which has one, else torch's default."""
    if isinstance(model, nn.Module):
        for parameter in model.parameters():
            if parameter.is_floating_point():
                return parameter.dtype
    return torch.get_default_dtype()


def build_model(model: Any, num_features: int, num_classes: int, *, seed: int) -> nn.Module:
    """The network to train; the argument itself stays as it is.

    Args:
        model: `"mlp"`, a module (copied) or a callable of `(num_features, num_classes)`.
        num_features: of one sample, all axes counted.
        num_classes: `K`.
        seed: of the initial weights.

    Raises:
        TypeError: none of these, or a callable that gives no module.
        ValueError: another word.
    """
    with isolated_rng(seed):
        if isinstance(model, nn.Module):
            return copy.deepcopy(model)
        if isinstance(model, str):
            if model != "mlp":
                raise ValueError(f'model={model!r} is not known: give "mlp", a torch.nn.Module or a callable.')
            return mlp(num_features, num_classes)
        if not callable(model):
            raise TypeError(
                'model must be "mlp", a torch.nn.Module or a callable (num_features, num_classes) -> Module, got '
                f"{type(model).__name__}."
            )
        built = model(num_features, num_classes)
    if not isinstance(built, nn.Module):
        raise TypeError(f"model({num_features}, {num_classes}) gave a {type(built).__name__}, no torch.nn.Module.")
    return built


def check_model(module: nn.Module, inputs: Tensor, num_classes: int, *, seed: int) -> None:
    """Ask the module for the logits of two samples, before training: lazy layers take their shapes here.

    Raises:
        ValueError: the module can't read the samples, or gives anything but floating-point `[samples, K]`.
    """
    few = inputs[:2]
    module.eval()
    with torch.no_grad(), isolated_rng(seed):
        try:
            logits = module(few)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ValueError(f"model can't read inputs of shape {tuple(few.shape)} {few.dtype}: {error}") from error
    wanted = (len(few), num_classes)
    if not isinstance(logits, Tensor) or logits.shape != wanted or not logits.is_floating_point():
        found = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"model gives {found} for {len(few)} samples, needs floating-point logits {wanted}: one output a class."
        )


def check_last_minibatch(module: nn.Module, num_samples: int, batch_size: int) -> None:
    """Raise ValueError if an epoch's last minibatch is one sample and BatchNorm, which can't train on it, is there."""
    if num_samples % batch_size == 1 and any(isinstance(part, BATCH_NORMS) for part in module.modules()):
        raise ValueError(
            f"batch_size={batch_size} leaves one sample of {num_samples} for an epoch's last minibatch, which "
            "BatchNorm can't train on: choose another batch_size."
        )


def make_optimizer(module: nn.Module, *, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW, which is Adam where `weight_decay` is 0, over the parameters that are not frozen; fused where it can be.

    Raises:
        ValueError: there is no such parameter.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("model has no parameter that requires a gradient: nothing in it can be trained.")
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=fused)


# ---- scikit-learn's conventions


class ScikitLearnEstimator:
    """A classifier that scikit-learn's `clone`, pipelines and searches accept: its arguments are kept as given."""

    _estimator_type = "classifier"  # scikit-learn before 1.6 asks for this, later ones for the tags

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        """The constructor's arguments by name."""
        parameters = sorted(inspect.signature(cls.__init__).parameters.items())
        return {name: parameter.default for name, parameter in parameters if name != "self"}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments as they were given.

        Args:
            deep: with those of an estimator among them, as `<name>__<its name>`.
        """
        parameters = {name: getattr(self, name) for name in self._defaults()}
        for name, value in tuple(parameters.items()):
            if deep and hasattr(value, "get_params") and not isinstance(value, type):
                parameters |= {f"{name}__{inner}": given for inner, given in value.get_params().items()}
        return parameters

    def set_params(self, **params: Any) -> Self:
        """Change some of the constructor's arguments, or of an estimator's among them (`<name>__<its name>`).

        They count from the next `fit` on.

        Raises:
            ValueError: a name that is no argument.
        """
        names = list(self._defaults())
        nested: dict[str, dict[str, Any]] = {}
        for name, value in params.items():
            outer, _, inner = name.partition("__")
            if inner and hasattr(params.get(outer, getattr(self, outer, None)), "set_params"):
                nested.setdefault(outer, {})[inner] = value
            elif name in names:
                setattr(self, name, value)
            else:
                raise ValueError(f"Invalid parameter {name!r} for estimator {self!r}. Valid parameters are: {names}.")
        for outer, given in nested.items():
            getattr(self, outer).set_params(**given)
        return self

    def __repr__(self) -> str:
        defaults = self._defaults()
        changed = [
            f"{name}={value!r}"
            for name, value in self.get_params(deep=False).items()
            if value is not defaults[name] and repr(value) != repr(defaults[name])
        ]
        return f"{type(self).__name__}({', '.join(changed)})"


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


# ---- files


class SavedArguments(TypedDict):
    """The constructor's arguments in a file; a callable is None there, or marked in the recipe."""

    weight_decay: Annotated[float, Within(0)]
    batch_size: Positive
    max_epochs: Positive
    mixup: Annotated[float, Within(0)] | None
    validation_fraction: Annotated[float, Within(0, 1, high_open=True)]
    early_stopping_patience: Positive | None
    max_grad_norm: Annotated[float, Within(0, low_open=True)] | None
    amp: bool
    seed: Count | None
    warm_start: bool
    smoothing: list[dict[str, Any]]
    class_weight: str | list[AnyNumber] | dict[str, list[Any]] | None
    learning_rate: Annotated[float, Within(0)] | str | None


class SavedClasses(TypedDict):
    """The labels of a file."""

    dtype: str
    values: list[bool | int | AnyNumber | str | None]


class SavedClassifier(TypedDict):
    """The configuration of a file."""

    arguments: SavedArguments
    model: str | None
    classes: SavedClasses
    input_shape: list[Positive]
    feature_names: list[str] | None
    history: dict[str, list[AnyNumber]]
    n_iter: Count
    best_epoch: Count
    total_epochs: Count
    seed: Count


def decoded_classes(saved: Mapping[str, Any]) -> NDArray[Any]:
    """The labels of a file; ValueError if they are no different labels of the dtype that it names."""
    dtype, values = np.dtype(saved["dtype"]), saved["values"]
    longest = max((len(value) for value in values if isinstance(value, str)), default=1)
    if dtype.kind not in "biufUO" or dtype.itemsize > max(8, 4 * longest):
        raise ValueError(f"classes.dtype={saved['dtype']!r:.50} does not fit the values")
    classes: NDArray[Any] = np.array(values, dtype=dtype)
    if classes.ndim != 1 or classes.tolist() != values or len(set(values)) != len(values):
        raise ValueError(f"classes.values are no different labels of dtype {saved['dtype']!r:.50}")
    return classes
