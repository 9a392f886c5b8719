"""Networks of classifiers, and what scikit-learn asks of an estimator, without importing it before it does."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self, TypeAlias, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlsmooth.checks import check_in_range
from rlsmooth.training.checkpoint import decode_history
from rlsmooth.training.safe_file import decode_smoothing
from rlsmooth.training.seeding import isolated_rng
from rlsmooth.untrusted import AnyNumber, Count, Positive, Within, decode

ModelLike: TypeAlias = str | nn.Module | Callable[[int, int], nn.Module]
HIDDEN = 64
ROUTED_METHODS = ("fit", "predict", "predict_proba", "predict_log_proba", "score")


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


@torch.no_grad()
def average_into(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """`teacher = decay · teacher + (1 - decay) · student`, in place, for parameters and floating-point buffers.

    Other buffers (counters) are the student's. After n more students the first teacher has become
    `decay^n · first + (1 - decay) · sum_i decay^(n - i) · student_i`: mean teachers (Tarvainen and Valpola 2017).

    Args:
        teacher: changed in place; of the same shapes.
        student: read.
        decay: in [0, 1): 0 is the student itself.

    Examples:
        >>> teacher, student = nn.Linear(1, 1), nn.Linear(1, 1)
        >>> _ = nn.init.zeros_(teacher.weight), nn.init.ones_(student.weight)
        >>> average_into(teacher, student, 0.75)
        >>> teacher.weight.item()
        0.25
    """
    decay = check_in_range("decay", decay, 0.0, 1.0, high_open=True)
    # Not state_dict, which names a shared parameter twice.
    for mean, now in zip(
        (*teacher.parameters(), *teacher.buffers()), (*student.parameters(), *student.buffers()), strict=True
    ):
        if mean.is_floating_point():
            mean.lerp_(now.to(mean), 1 - decay)
        else:
            mean.copy_(now)


# ---- scikit-learn's conventions


class ScikitLearnEstimator:
    """A classifier that scikit-learn's `clone`, pipelines and searches accept: its arguments are kept as given."""

    _estimator_type = "classifier"  # scikit-learn before 1.6 asks for this, later ones for the tags

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(three_d_array=True),
        )

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

    # scikit-learn's metadata routing: which arguments its pipelines, searches and scorers pass on, and as what

    def set_fit_request(self, **requests: bool | str | None) -> Self:
        """Say which arguments of `fit` metadata routing passes on, as in `set_fit_request(sample_weight=True)`.

        True passes it on, False doesn't, text takes it from that name, None makes passing it an error.

        Raises:
            RuntimeError: routing is off; see `sklearn.set_config(enable_metadata_routing=True)`.
            TypeError: a name that is no such argument.
        """
        return self._request("fit", requests)

    def set_predict_request(self, **requests: bool | str | None) -> Self:
        """The same for `predict`."""
        return self._request("predict", requests)

    def set_predict_proba_request(self, **requests: bool | str | None) -> Self:
        """The same for `predict_proba`."""
        return self._request("predict_proba", requests)

    def set_predict_log_proba_request(self, **requests: bool | str | None) -> Self:
        """The same for `predict_log_proba`."""
        return self._request("predict_log_proba", requests)

    def set_score_request(self, **requests: bool | str | None) -> Self:
        """The same for `score`."""
        return self._request("score", requests)

    def get_metadata_routing(self) -> Any:
        """What has been requested so far, a copy: scikit-learn's `MetadataRequest`."""
        if "_metadata_request" in vars(self):
            return copy.deepcopy(self._metadata_request)
        from sklearn.utils.metadata_routing import MetadataRequest

        routing = MetadataRequest(owner=type(self).__name__)
        for method in ROUTED_METHODS:
            for name in self._routed(method):
                getattr(routing, method).add_request(param=name, alias=None)
        return routing

    def _request(self, method: str, requests: dict[str, bool | str | None]) -> Self:
        from sklearn import get_config

        if not get_config().get("enable_metadata_routing"):
            raise RuntimeError(
                f"set_{method}_request is for metadata routing, which is off: call "
                "sklearn.set_config(enable_metadata_routing=True) first."
            )
        unknown = [name for name in requests if name not in self._routed(method)]
        if unknown:
            raise TypeError(f"{unknown[0]!r} is no argument of {method}: give some of {self._routed(method)}.")
        routing = self.get_metadata_routing()
        for name, alias in requests.items():
            getattr(routing, method).add_request(param=name, alias=alias)
        self._metadata_request = routing  # the name that scikit-learn's `clone` copies
        return self

    @classmethod
    def _routed(cls, method: str) -> list[str]:
        """The arguments of a method besides features and labels."""
        return [name for name in inspect.signature(getattr(cls, method)).parameters if name not in ("self", "X", "y")]

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


def check_feature_names(
    names: NDArray[np.object_] | None, expected: NDArray[np.object_] | None, given: str = ""
) -> None:
    """Raise ValueError unless the columns are those of `fit`, where both came as data frames.

    Args:
        names: of the columns.
        expected: those of `fit`.
        given: the beginning of the message: what has these columns.
    """
    if names is None or expected is None or names.tolist() == expected.tolist():
        return
    message = f"{given}The feature names should match those that were passed during fit.\n"
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


class ClassifierCheckpoint(TypedDict):
    """What a checkpoint holds besides tensors."""

    arguments: dict[str, Any]
    seed: Count
    first_epoch: Count
    step: Count
    history: dict[str, Any]
    optimizer: dict[str, Any]
    early_stopping: dict[str, Any] | None
    data: str


def check_saved(config: Mapping[str, Any]) -> None:
    """Raise ValueError unless it is the configuration of a file, whose epochs and history agree."""
    found = decode(SavedClassifier, config, "config")
    if not found["best_epoch"] <= found["n_iter"] <= found["total_epochs"]:
        raise ValueError("best_epoch, n_iter and total_epochs must ascend")
    decode_history(found["history"], "history", found["n_iter"])


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


def decoded_arguments(saved: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The constructor's arguments from those in a file."""
    arguments = dict(saved)
    recipes = decode_smoothing(saved["smoothing"], "smoothing", path)
    assert recipes is not None
    arguments["smoothing"] = None if saved["smoothing"][0]["is_function"] else recipes[0]
    weight = saved["class_weight"]
    if isinstance(weight, dict):
        arguments["class_weight"] = dict(zip(weight["labels"], weight["factors"], strict=True))
    return arguments


def encode_class_weight(weight: Any) -> Any:
    """A class weight as JSON can hold it."""
    if isinstance(weight, Mapping):
        labels = [label.item() if isinstance(label, np.generic) else label for label in weight]
        return {"labels": labels, "factors": [float(factor) for factor in weight.values()]}
    if weight is None or isinstance(weight, str):
        return weight
    return np.asarray(weight, dtype=np.float64).tolist()
