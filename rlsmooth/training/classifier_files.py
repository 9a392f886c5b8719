"""What a classifier keeps on the disk: its own file, and checkpoints that a killed run goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlsmooth.checks import check_writable_folder
from rlsmooth.schedules import LearningRate
from rlsmooth.targets import Smoothing, as_smoothing
from rlsmooth.training.checkpoint import (
    Checkpoint,
    checkpoint_steps,
    latest_checkpoint,
    load_optimizer,
    optimizer_to_tensors,
    save_checkpoint,
)
from rlsmooth.training.classifier_model import ModelLike, as_device, build_model
from rlsmooth.training.classifier_run import Run, fingerprint
from rlsmooth.training.safe_file import (
    SafeFileError,
    decode_smoothing,
    encode_smoothing,
    read_safe_file,
    write_safe_file,
)
from rlsmooth.training.seeding import execution_state, rng_state, warn_if_execution_differs

if TYPE_CHECKING:
    from rlsmooth.training.classifier import Classifier

__all__ = ["SavedClassifier", "find_checkpoint", "restore", "write_checkpoint"]

FORMAT_NAME = "rlsmooth-classifier"
FORMAT_VERSION = 1
TRAINING_ARGUMENTS = (
    "weight_decay",
    "batch_size",
    "max_epochs",
    "mixup",
    "validation_fraction",
    "early_stopping_patience",
    "max_grad_norm",
    "amp",
)
"""Beside `smoothing`, `class_weight` and `learning_rate`: what a resumed run must have as it was."""


class SavedClassifier:
    """The part of `Classifier` that reads and writes files."""

    def save(self, path: str | Path) -> Path:
        """Write parameters, classes, history and arguments to a file that holds no code (see `write_safe_file`).

        A module's code can't be kept, nor callables (`learning_rate`, a `Smoothing`'s alpha): give them to `load`.

        Args:
            path: `.zip` is added to a name without a suffix.

        Returns:
            The path written.

        Raises:
            ValueError: it is not fitted, or the folder can't be written to.
        """
        classifier = cast("Classifier", self)
        module = classifier._fitted()
        path = Path(path).expanduser()
        path = path if path.suffix else path.with_suffix(".zip")
        check_writable_folder("path", path.parent)
        names = vars(classifier).get("feature_names_in_")
        config = {
            "arguments": {**_arguments(classifier), "seed": classifier.seed, "warm_start": classifier.warm_start},
            "model": classifier.model if isinstance(classifier.model, str) else None,
            "classes": {"dtype": classifier.classes_.dtype.str, "values": classifier.classes_.tolist()},
            "input_shape": list(classifier._input_shape),
            "feature_names": None if names is None else names.tolist(),
            "history": classifier.history_,
            "n_iter": classifier.n_iter_,
            "best_epoch": classifier.best_epoch_,
            "total_epochs": classifier._total_epochs,
            "seed": classifier._seed,
        }
        write_safe_file(
            path,
            config,
            tensors={"module": module.state_dict()},
            format_name=FORMAT_NAME,
            format_version=FORMAT_VERSION,
        )
        return path

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: ModelLike | None = None,
        *,
        device: torch.device | str = "auto",
        smoothing: float | str | Smoothing | None = None,
        learning_rate: LearningRate | None = None,
    ) -> Self:
        """Read a file that `save` wrote. Runs no code that the file could name.

        Args:
            path: the file.
            model: what the classifier was made with: a module of the same shapes (copied), or the callable. None is
                enough for `"mlp"`.
            device: where it goes.
            smoothing: in place of the file's; to fit again, a callable one must be given.
            learning_rate: likewise.

        Raises:
            SafeFileError: the file is damaged or no classifier's.
            ValueError: `model` is needed, or its parameters are others than the file's.
        """
        path = Path(path).expanduser()
        file = read_safe_file(path, format_name=FORMAT_NAME, format_version=FORMAT_VERSION)
        config = file.config
        model = config.get("model") if model is None else model
        if model is None:
            raise ValueError(f"{str(path)!r} holds no code: give the model that the classifier was made with.")
        try:
            arguments = _decoded_arguments(config["arguments"], path)
            classes: NDArray[Any] = np.array(config["classes"]["values"], dtype=np.dtype(config["classes"]["dtype"]))
            shape = tuple(int(size) for size in config["input_shape"])
            fitted = {
                "classes_": classes,
                "history_": {name: [float(value) for value in column] for name, column in config["history"].items()},
                "n_iter_": int(config["n_iter"]),
                "best_epoch_": int(config["best_epoch"]),
                "n_features_in_": shape[0],
                "_input_shape": shape,
                "_total_epochs": int(config["total_epochs"]),
                "_seed": int(config["seed"]),
            }
            if config["feature_names"] is not None:
                fitted["feature_names_in_"] = np.asarray(config["feature_names"], dtype=object)
            state = file.tensors["module"]
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise SafeFileError(f"{str(path)!r} is malformed ({error!r}). Use another copy.") from error
        if smoothing is not None:
            arguments["smoothing"] = smoothing
        if learning_rate is not None:
            arguments["learning_rate"] = learning_rate
        build: Any = cls
        classifier: Any = build(model, device=device, **arguments)
        module = build_model(model, int(np.prod(shape)), len(classes), seed=0)
        _load_state(module, state, f"the file {str(path)!r}")
        fitted["module_"] = module.to(as_device(device)).eval()
        for name, value in fitted.items():
            setattr(classifier, name, value)
        loaded: Self = classifier
        return loaded


def find_checkpoint(classifier: Classifier, *, resume: bool) -> Checkpoint | None:
    """The checkpoint to go on from; None: start at the beginning.

    Raises:
        ValueError: there is no folder to resume from, or it holds another run's checkpoints.
        SafeFileError: no checkpoint can be read.
    """
    folder = classifier.checkpoint_folder
    if folder is None:
        if resume:
            raise ValueError("resume=True needs checkpoint_folder: name the one of the run that was cut off.")
        return None
    check_writable_folder("checkpoint_folder", folder)
    if resume:
        return latest_checkpoint(folder)
    steps = checkpoint_steps(folder)
    if steps:
        raise ValueError(
            f"checkpoint_folder={str(folder)!r} holds another run's checkpoints (epoch {steps[-1]}): go on from them "
            "by fit(..., resume=True), or name another folder."
        )
    return None


def write_checkpoint(classifier: Classifier, run: Run, data_hash: str) -> None:
    """Write all that changes during a run: parameters, optimiser, random state, counters, history, early stopping."""
    assert classifier.checkpoint_folder is not None
    tensors, optimizer = optimizer_to_tensors(run.optimizer)
    stopping = run.stopping
    save_checkpoint(
        classifier.checkpoint_folder,
        run.epoch,
        config={
            "arguments": _arguments(classifier),
            "seed": run.seed,
            "first_epoch": run.first_epoch,
            "step": run.step,
            "history": run.history,
            "optimizer": optimizer,
            "early_stopping": None if stopping is None else stopping.to_config(),
            "data": data_hash,
            "execution": execution_state(),
        },
        tensors={
            "module": run.module.state_dict(),
            "optimizer": tensors,
            "best": {} if stopping is None else stopping.parameters,
            "rng": rng_state(),
        },
    )


def restore(classifier: Classifier, run: Run, checkpoint: Checkpoint) -> None:
    """Bring a run to where a checkpoint was written.

    Raises:
        ValueError: the data, an argument that decides the outcome, or the model's parameters are others.
    """
    config, tensors = checkpoint.config, checkpoint.tensors
    where = f"the run in {str(classifier.checkpoint_folder)!r}"
    now = _arguments(classifier)
    for name, saved in config["arguments"].items():
        if saved != now[name]:
            raise ValueError(f"{name} is {now[name]!r}, but {where} was started with {saved!r}: set it as it was.")
    if classifier.seed is not None and classifier.seed != config["seed"]:
        raise ValueError(f"seed is {classifier.seed}, but {where} was started with {config['seed']}: set it as it was.")
    if config["data"] != fingerprint(run.data):
        raise ValueError(f"X, y or what else was given to fit is not what {where} was started with.")
    warn_if_execution_differs(config["execution"])
    _load_state(run.module, tensors["module"], where)
    load_optimizer(run.optimizer, tensors["optimizer"], config["optimizer"])
    if run.stopping is not None:
        device = run.data.rows.labels.device
        run.stopping.load(config["early_stopping"], {name: best.to(device) for name, best in tensors["best"].items()})
    run.epoch, run.step = checkpoint.step, int(config["step"])
    run.first_epoch = int(config["first_epoch"])
    run.history = {name: list(values) for name, values in config["history"].items()}
    run.rng = tensors["rng"]


def _load_state(module: torch.nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        raise ValueError(f"model does not fit {where}: {error}") from error


def _arguments(classifier: Classifier) -> dict[str, Any]:
    """What decides how a run ends, as JSON; a callable learning rate is None."""
    recipe = encode_smoothing([as_smoothing(classifier.smoothing)])
    rate = classifier.learning_rate
    return {
        **{name: getattr(classifier, name) for name in TRAINING_ARGUMENTS},
        "smoothing": recipe,
        "class_weight": _encode_class_weight(classifier.class_weight),
        "learning_rate": None if callable(rate) else rate,
    }


def _decoded_arguments(saved: Mapping[str, Any], path: Path) -> dict[str, Any]:
    arguments = dict(saved)
    recipes = decode_smoothing(saved["smoothing"], "smoothing", path)
    assert recipes is not None
    arguments["smoothing"] = None if saved["smoothing"][0]["is_function"] else recipes[0]
    weight = saved["class_weight"]
    if isinstance(weight, dict):
        arguments["class_weight"] = dict(zip(weight["labels"], weight["factors"], strict=True))
    return arguments


def _encode_class_weight(weight: Any) -> Any:
    if isinstance(weight, Mapping):
        labels = [label.item() if isinstance(label, np.generic) else label for label in weight]
        return {"labels": labels, "factors": [float(factor) for factor in weight.values()]}
    if weight is None or isinstance(weight, str):
        return weight
    return np.asarray(weight, dtype=np.float64).tolist()
