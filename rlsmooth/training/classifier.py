"""Classification with smoothed targets, on any torch module, with scikit-learn's conventions."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlsmooth.audits import calibration_error, reliability_bins
from rlsmooth.audits.figures import draw_reliability, draw_target_matrix, new_figure
from rlsmooth.checks import check_in_range, check_positive_int, check_writable_folder
from rlsmooth.losses import cross_entropy, log_probabilities
from rlsmooth.losses.arguments import reduce
from rlsmooth.losses.measures import PredictionMeasures, measure_predictions
from rlsmooth.schedules import LearningRate, as_schedule
from rlsmooth.targets import Smoothing, Target, as_smoothing
from rlsmooth.training.checkpoint import (
    Checkpoint,
    checkpoint_steps,
    latest_checkpoint,
    load_optimizer,
    optimizer_to_tensors,
    save_checkpoint,
)
from rlsmooth.training.classifier_model import (
    ModelLike,
    ScikitLearnEstimator,
    as_device,
    build_model,
    check_feature_names,
    check_model,
    make_optimizer,
    model_dtype,
    not_fitted_error,
)
from rlsmooth.training.classifier_samples import (
    Data,
    Rows,
    as_inputs,
    as_label_array,
    as_mask,
    as_weights,
    feature_names,
    mix_rows,
    prepare,
)
from rlsmooth.training.run import EarlyStopping, divergence_error
from rlsmooth.training.safe_file import (
    SafeFileError,
    decode_smoothing,
    encode_smoothing,
    read_safe_file,
    write_safe_file,
)
from rlsmooth.training.seeding import (
    epoch_permutation,
    execution_state,
    isolated_rng,
    rng_state,
    set_rng_state,
    warn_if_execution_differs,
)

__all__ = [
    "Classifier",
    "Monitor",
    "Run",
    "SavedClassifier",
    "begin",
    "check_arguments",
    "find_checkpoint",
    "fingerprint",
    "restore",
    "write_checkpoint",
]


HASHED_ROWS = 4096


@dataclass
class Run:
    """What training reads and changes.

    Attributes:
        data: see `Data`.
        module: in training.
        optimizer: over its parameters.
        schedule: the learning rate at a progress remaining.
        seed: of this run.
        max_epochs: when it ends.
        batches_per_epoch: updates.
        first_epoch: epochs that the module has behind it (`warm_start`): it sees other orders then.
        stopping: early stopping, or None.
        rng: the state of the random generators with which training starts.
        epoch: whole epochs done.
        step: updates done.
        history: of each quantity one number an epoch.
    """

    data: Data
    module: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Callable[[float], float]
    seed: int
    max_epochs: int
    batches_per_epoch: int
    first_epoch: int
    stopping: EarlyStopping | None
    rng: dict[str, Tensor]
    epoch: int = 0
    step: int = 0
    history: dict[str, list[float]] = field(default_factory=dict)

    @property
    def progress(self) -> float:
        """Of the whole run, what remains before the next update: 1 at the start."""
        return 1.0 - self.step / (self.max_epochs * self.batches_per_epoch)

    @property
    def is_over(self) -> bool:
        """Whether all epochs are done, or patience is used up."""
        return self.epoch >= self.max_epochs or (self.stopping is not None and self.stopping.should_stop)


def check_arguments(classifier: Classifier) -> None:
    """Raise TypeError or ValueError for an argument of the constructor that is outside its range.

    Not in the constructor: there scikit-learn's tools want every argument kept as it was given.
    """
    check_positive_int("batch_size", classifier.batch_size)
    check_positive_int("max_epochs", classifier.max_epochs)
    check_positive_int("checkpoint_every", classifier.checkpoint_every)
    check_in_range("weight_decay", classifier.weight_decay, 0.0)
    check_in_range("mixup", classifier.mixup, 0.0)
    check_in_range("validation_fraction", classifier.validation_fraction, 0.0, 1.0, high_open=True)
    if classifier.max_grad_norm is not None:
        check_in_range("max_grad_norm", classifier.max_grad_norm, 0.0, low_open=True)
    if classifier.early_stopping_patience is not None:
        check_positive_int("early_stopping_patience", classifier.early_stopping_patience)
    if classifier.seed is not None:
        check_positive_int("seed", classifier.seed, minimum=0)
    as_schedule(classifier.learning_rate)
    as_smoothing(classifier.smoothing)


def begin(classifier: Classifier, data: Data, *, seed: int, start: nn.Module | None, first_epoch: int) -> Run:
    """The run before its first update.

    Args:
        classifier: whose arguments are used.
        data: see `prepare`.
        seed: of the initial weights, dropout and mixup.
        start: a module to train on, instead of a new one.
        first_epoch: epochs that it has behind it.
    """
    device = data.rows.labels.device
    num_features, num_classes = data.rows.inputs[:1].numel(), len(data.classes)
    module = build_model(classifier.model if start is None else start, num_features, num_classes, seed=seed).to(device)
    data = _in_dtype(data, model_dtype(module))
    check_model(module, data.rows.inputs, num_classes, seed=seed)
    _refuse_a_lone_row(module, len(data.rows), classifier.batch_size)
    schedule = as_schedule(classifier.learning_rate)
    patience = classifier.early_stopping_patience
    with isolated_rng((seed + 1 + first_epoch) % 2**32):  # a warm start draws other noise than what came before
        rng = rng_state()
    return Run(
        data,
        module,
        make_optimizer(module, learning_rate=schedule(1.0), weight_decay=classifier.weight_decay),
        schedule,
        seed,
        classifier.max_epochs,
        -(-len(data.rows) // classifier.batch_size),
        first_epoch,
        None if patience is None else EarlyStopping(patience),
        rng,
    )


def fingerprint(data: Data) -> str:
    """A sha256 that tells data sets apart: of classes, labels, weights and up to 4096 rows of the rest."""
    digest = hashlib.sha256(repr(data.classes.tolist()).encode())
    for rows in (data.rows, data.validation):
        if rows is None:
            continue
        # In float64: float32 can't tell row numbers above 2^24 apart.
        spread = torch.linspace(0, len(rows) - 1, min(len(rows), HASHED_ROWS), dtype=torch.float64)
        sample = rows[spread.round().long().to(rows.labels.device)]
        goal = None if sample.target is None else sample.target.dense()
        for tensor in (rows.labels, rows.weights, sample.inputs, sample.mask, goal):
            if tensor is not None:
                kept = tensor.detach().cpu().contiguous()
                digest.update(f"{kept.dtype} {tuple(kept.shape)}".encode())
                digest.update(kept.view(torch.uint8).numpy().tobytes() if kept.numel() else b"")
    return digest.hexdigest()


def _in_dtype(data: Data, dtype: torch.dtype) -> Data:
    """The data for a network that turned out to be of another floating-point type than expected."""

    def cast(rows: Rows) -> Rows:
        inputs = rows.inputs.to(dtype) if rows.inputs.is_floating_point() else rows.inputs
        return dataclasses.replace(rows, inputs=inputs)

    held_out = None if data.validation is None else cast(data.validation)
    return dataclasses.replace(data, rows=cast(data.rows), validation=held_out)


def _refuse_a_lone_row(module: nn.Module, num_rows: int, batch_size: int) -> None:
    """BatchNorm can't train on one row, which is better said before the first epoch than at its end."""
    normalises = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())
    if normalises and num_rows > 0 and num_rows % batch_size == 1:
        raise ValueError(
            f"batch_size={batch_size} leaves one row of {num_rows} for an epoch's last batch, which BatchNorm can't "
            "train on: choose another batch_size."
        )


MONITOR_ROWS = 2048
MONITOR_BYTES = 64 * 2**20
DRAWN_CLASSES = 64
RUN_NAME = "Classifier"


class Monitor:
    """Watches one run.

    Args:
        classifier: whose arguments are used.
        run: what is watched.
        is_resumed: whether the run goes on with an earlier one's TensorBoard folder.

    Attributes:
        losses: of each update since the last epoch's end, on the device.
    """

    def __init__(self, classifier: Classifier, run: Run, *, is_resumed: bool) -> None:
        self.run = run
        self.batch_size = classifier.batch_size
        self.checkpoint_folder = None if classifier.checkpoint_folder is None else Path(classifier.checkpoint_folder)
        self.verbose = classifier.verbose
        self.losses: list[Tensor] = []
        self._rows = _spread(run.data.rows)
        self._writer: Any = None
        if classifier.tensorboard_log is not None:
            self._writer = _writer(classifier.tensorboard_log, run.step, is_resumed)
            if not is_resumed:
                self._draw_targets()
        self._bar: Any = None
        if classifier.progress_bar:
            from tqdm.auto import tqdm  # type: ignore[import-untyped]

            total = run.max_epochs * run.batches_per_epoch
            self._bar = tqdm(total=total, initial=run.step, unit="batch", mininterval=0.5)

    def after_update(self, loss: Tensor) -> None:
        """Keep a loss, without waiting for it."""
        self.losses.append(loss)
        if self._bar is not None:
            self._bar.update(1)

    def end_epoch(self) -> None:
        """Check that all is finite, then measure, validate and log.

        Raises:
            TrainingDivergedError: a loss or a parameter is not finite.
        """
        run = self.run
        self._check()
        found = {"loss": torch.stack(self.losses).mean(), **self._measure([self._rows])}
        if run.data.validation is not None:
            held_out = self._measure(_blocks(run.data.validation))
            name = "cross_entropy" if run.data.smoothing.is_constant else "nll_hard"
            found |= {"val_loss": held_out[name], **{f"val_{key}": value for key, value in held_out.items()}}
        numbers = torch.stack([value.to(torch.float32) for value in found.values()]).tolist()
        values = dict(zip(found, numbers, strict=True))
        values["smoothing"] = _mean_alpha(run)
        values["learning_rate"] = float(run.optimizer.param_groups[0]["lr"])
        for key, value in values.items():
            run.history.setdefault(key, []).append(value)
            if self._writer is not None:
                self._writer.add_scalar(f"classifier/{key}", value, run.step)
        if run.stopping is not None:
            run.stopping.update(values["val_loss"], run.epoch, run.module)
        if self.verbose:
            shown = [key for key in ("loss", "accuracy", "val_loss", "val_accuracy") if key in values]
            print(f"epoch {run.epoch}/{run.max_epochs}: " + ", ".join(f"{key} {values[key]:.4f}" for key in shown))
        self.losses.clear()

    def finish(self) -> None:
        """Go back to the best parameters, if training looked for them, and draw the reliability diagram."""
        run = self.run
        if run.stopping is not None:
            run.stopping.restore(run.module, run.epoch)
        run.module.eval()
        if self._writer is not None:
            self._draw_reliability()

    def close(self) -> None:
        """Close what is open, also after an error."""
        if self._bar is not None:
            self._bar.close()
        if self._writer is not None:
            self._writer.close()

    def _check(self) -> None:
        """Wait for the device and raise unless all losses of the epoch and all parameters are finite."""
        run = self.run
        finite = [parameter.isfinite().all() for parameter in run.module.parameters()]
        flags = torch.cat((torch.stack(self.losses).isfinite(), torch.stack(finite).all().unsqueeze(0))).tolist()
        if all(flags):
            return
        update = min(flags.index(False), len(self.losses) - 1)
        order = epoch_permutation(run.seed, run.first_epoch + run.epoch - 1, len(run.data.rows))
        seen = order[update * self.batch_size : (update + 1) * self.batch_size]
        rows = run.data.rows[seen.to(run.data.rows.labels.device)]
        raise divergence_error(
            run.step - len(self.losses) + update + 1,
            float(self.losses[update]),
            seen if run.data.row_numbers is None else run.data.row_numbers[seen],
            [tensor for tensor in (rows.inputs, rows.weights) if tensor is not None],
            learning_rate=float(run.optimizer.param_groups[0]["lr"]),
            checkpoint_folder=self.checkpoint_folder,
            data="training data",
            model="model",
        )

    def _measure(self, parts: Iterable[Rows]) -> dict[str, Tensor]:
        """Means over some rows under the model as it is, on the device."""
        self.run.module.eval()
        found, weights = self._predictions(parts)
        self.run.module.train()
        return {
            "cross_entropy": reduce(found.cross_entropy, weights, "mean"),
            "nll_hard": found.nll.mean(),
            "accuracy": found.hit.to(torch.float32).mean(),
            "ece": calibration_error(found.confidence, found.hit),
            "entropy": found.entropy.mean(),
        }

    @torch.no_grad()
    def _predictions(self, parts: Iterable[Rows]) -> tuple[PredictionMeasures, Tensor]:
        """The measures of some rows, and their weights."""
        run = self.run
        found, weights = [], []
        for rows in parts:
            target = rows.target
            if target is None:
                target = run.data.smoothing(
                    rows.labels, len(run.data.classes), rows.mask, max(run.progress, 0.0), validate=False
                )
            measured = measure_predictions(run.module(rows.inputs), target, rows.mask, labels=rows.labels)
            found.append(measured)
            weights.append(torch.ones_like(measured.nll) if rows.weights is None else rows.weights)
        return PredictionMeasures.concatenate(found), torch.cat(weights)

    def _draw_targets(self) -> None:
        data, smoothing = self.run.data, self.run.data.smoothing
        num_classes = len(data.classes)
        per_row = isinstance(smoothing.alpha, Tensor) and smoothing.alpha.ndim > 0
        if data.is_of_targets or per_row or num_classes > DRAWN_CLASSES:
            return
        figure, axes = new_figure()
        matrix = smoothing(torch.arange(num_classes), num_classes).dense()
        draw_target_matrix(axes, matrix, names=[str(name) for name in data.classes])
        self._writer.add_figure("classifier/target_matrix", figure, 0, close=False)

    def _draw_reliability(self) -> None:
        run = self.run
        parts = [self._rows] if run.data.validation is None else _blocks(run.data.validation)
        found, _ = self._predictions(parts)
        figure, axes = new_figure()
        ece = float(calibration_error(found.confidence, found.hit))
        draw_reliability(axes, reliability_bins(found.confidence, found.hit), ece=ece)
        self._writer.add_figure("classifier/reliability", figure, run.step, close=False)


def _spread(rows: Rows) -> Rows:
    """Up to 2048 rows, evenly spread."""
    row_bytes = max(1, rows.inputs.element_size() * rows.inputs[:1].numel())
    count = min(len(rows), MONITOR_ROWS, max(1, MONITOR_BYTES // row_bytes))
    if count == len(rows):
        return rows
    return rows[torch.linspace(0, len(rows) - 1, count, dtype=torch.float64).round().long().to(rows.labels.device)]


def _blocks(rows: Rows) -> Iterator[Rows]:
    return (rows[start : start + MONITOR_ROWS] for start in range(0, len(rows), MONITOR_ROWS))


def _mean_alpha(run: Run) -> float:
    """Alpha in force; None (a whole distribution) counts as 1."""
    alpha = run.data.smoothing.alpha_at(max(run.progress, 0.0))
    return 1.0 if alpha is None else float(alpha.mean() if isinstance(alpha, Tensor) else alpha)


def _writer(folder: str | Path, step: int, is_resumed: bool) -> Any:
    """A TensorBoard writer in a folder of its own, `Classifier_<n>`; a resumed run goes on with the latest."""
    from torch.utils.tensorboard import SummaryWriter

    root = check_writable_folder("tensorboard_log", folder)
    numbers = [int(path.name.rpartition("_")[2]) for path in root.glob(f"{RUN_NAME}_*") if path.name[11:].isdigit()]
    number = max(numbers, default=0)
    if is_resumed and number:  # what the killed run logged after its last checkpoint comes again
        return SummaryWriter(str(root / f"{RUN_NAME}_{number}"), purge_step=step + 1)
    while True:  # other fits may begin at this moment
        number += 1
        try:
            (root / f"{RUN_NAME}_{number}").mkdir()
        except FileExistsError:
            continue
        return SummaryWriter(str(root / f"{RUN_NAME}_{number}"))


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


PREDICTED_ROWS = 4096


@final
class Classifier(ScikitLearnEstimator, SavedClassifier):
    """Train a network to classify, with a target that keeps it from certainty.

        loss = sum_i w_i · CE(smoothing(y_i), softmax(model(x_i))) / sum_i w_i     (nats, over a batch)

    `w_i` is the sample weight times the weight of the row's class, as in scikit-learn: weight 2 is the row twice. Torch
    weighs a smoothed target class by class instead (`Target.weight_classes`); without smoothing both are the same.
    Uniform, prior, hierarchical, ordinal and kernel targets are `Smoothing(reference=...)`; any other target, hybrids
    and teachers among them, is given to `fit(target=)`. Whatever it is, only the target changes, never the loss.

    It is a scikit-learn classifier (pipelines, searches, cross-validation, calibration), without needing scikit-learn:
    arguments are kept as given and checked by `fit`. A seeded fit repeats bit for bit; training draws from random
    generators of its own. What is logged is listed in `rlsmooth.training.classifier`.

    Args:
        model: a module that maps `[N, ...]` to logits `[N, K]` (copied by `fit`; its parameters are the start), or a
            callable `(num_features, num_classes) -> Module` (with seeded initial weights, for example `nn.Linear`), or
            `"mlp"`: two hidden layers of 64. A module's frozen parameters stay as they are.
        smoothing: alpha, or a schedule `"lin_0.1"`, or a `Smoothing`; 0: hard targets.
        class_weight: `"balanced"`, a dict of label to factor, or an array `[K]` in the order of `classes_`.
        learning_rate: of Adam: a number, `"lin_1e-3"` (down to 0), or a callable of the progress remaining (1 to 0).
        weight_decay: decoupled from the gradient (AdamW).
        batch_size: rows of an update; an epoch's last batch may have fewer.
        max_epochs: passes over the data.
        mixup: mix pairs of rows and their targets with `lam ~ Beta(mixup, mixup)`; 0: off.
        validation_fraction: hold out this share of the rows, class by class.
        early_stopping_patience: stop after so many epochs without a lower validation loss, and go back to the best
            parameters; None: neither.
        max_grad_norm: to which the gradient's norm is clipped; None: not.
        amp: forward passes of training in bfloat16 (losses stay in float32); meant for CUDA.
        seed: of initial weights, order of the data, dropout, mixup, held-out rows; None: drawn from torch's generator.
        device: `"auto"` is the GPU where there is one.
        warm_start: a second `fit` goes on with the parameters of the first, in new orders of the data.
        checkpoint_folder: where checkpoints go that `fit(resume=True)` goes on from; None: none are written.
        checkpoint_every: epochs from one checkpoint to the next.
        tensorboard_log: folder for TensorBoard files, each fit in a folder `Classifier_<n>` of its own; None: none.
        verbose: 1 prints a line an epoch.
        progress_bar: show one, of updates.

    Attributes:
        classes_: `[K]`, the labels, sorted: what the places of the logits mean.
        n_features_in_: second axis of `X`; `feature_names_in_` where `X` was a data frame.
        module_: the trained network, in evaluation mode.
        history_: of each quantity one number an epoch.
        n_iter_: epochs trained; `best_epoch_` (from 1) is that of the parameters: the last, or early stopping's best.

    Example:
        >>> import torch
        >>> X = torch.tensor([[0.0], [0.1], [0.9], [1.0]])
        >>> classifier = Classifier(torch.nn.Linear, learning_rate=0.1, max_epochs=100, seed=0, device="cpu")
        >>> classifier.fit(X, ["low", "low", "high", "high"]).predict([[0.2], [0.8]]).tolist()
        ['low', 'high']
    """

    classes_: NDArray[Any]
    n_features_in_: int
    feature_names_in_: NDArray[np.object_]
    module_: nn.Module
    history_: dict[str, list[float]]
    n_iter_: int
    best_epoch_: int
    _input_shape: tuple[int, ...]
    _total_epochs: int
    _seed: int

    def __init__(
        self,
        model: ModelLike = "mlp",
        *,
        smoothing: float | str | Smoothing = 0.1,
        class_weight: Any = None,
        learning_rate: LearningRate = 1e-3,
        weight_decay: float = 0.0,
        batch_size: int = 64,
        max_epochs: int = 50,
        mixup: float = 0.0,
        validation_fraction: float = 0.0,
        early_stopping_patience: int | None = None,
        max_grad_norm: float | None = None,
        amp: bool = False,
        seed: int | None = None,
        device: torch.device | str = "auto",
        warm_start: bool = False,
        checkpoint_folder: str | Path | None = None,
        checkpoint_every: int = 10,
        tensorboard_log: str | Path | None = None,
        verbose: int = 0,
        progress_bar: bool = False,
    ) -> None:
        self.model = model
        self.smoothing = smoothing
        self.class_weight = class_weight
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.mixup = mixup
        self.validation_fraction = validation_fraction
        self.early_stopping_patience = early_stopping_patience
        self.max_grad_norm = max_grad_norm
        self.amp = amp
        self.seed = seed
        self.device = device
        self.warm_start = warm_start
        self.checkpoint_folder = checkpoint_folder
        self.checkpoint_every = checkpoint_every
        self.tensorboard_log = tensorboard_log
        self.verbose = verbose
        self.progress_bar = progress_bar

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        validation: tuple[Any, Any] | None = None,
        target: Target | None = None,
        mask: Any = None,
        classes: Any = None,
        resume: bool = False,
    ) -> Self:
        """Train.

        Args:
            X: `[N, ...]`: an array, data frame or list, whose numbers become the model's floating-point type; or a
                tensor, of which integers (pixels, tokens) are left to the model.
            y: `[N]` labels: whole numbers, text or bools.
            sample_weight: `[N]`, 0 or more; a row of weight 0 has no part in the loss.
            validation: held-out `(X, y)`, for `val_*` and early stopping.
            target: of batch shape `[N]`, over the classes in sorted order: used in place of `smoothing(y)`. The labels
                then only say what a hit is.
            mask: bool `[N, K]`, True = legal: the softmax and the smoothing are over a row's legal classes.
            classes: all labels, where `y` may lack some.
            resume: go on from the last checkpoint of a run that was cut off, or start if it has none. The parameters at
                the end are those of a run that never was, bit for bit.

        Returns:
            The classifier itself.

        Raises:
            TypeError: an argument of a kind that is not listed.
            ValueError: a value out of range, shapes that do not fit, NaN in `X`, a label that is illegal, validation
                that early stopping lacks, a checkpoint folder of another run, a resumed run with other data (up to 4096
                rows of `X` are compared).
            TrainingDivergedError: the loss or a parameter became NaN or infinite.
        """
        check_arguments(self)
        saved = find_checkpoint(self, resume=resume)
        goes_on = self.warm_start and self.__sklearn_is_fitted__()
        seed = self.seed
        if seed is None and saved is not None:
            seed = int(saved.config["seed"])
        elif seed is None:  # a warm start keeps its seed: rows once held out stay so
            seed = self._seed if goes_on else int(torch.randint(2**31, ()))
        data = prepare(
            self, X, y, sample_weight, validation=validation, target=target, mask=mask, classes=classes, seed=seed
        )
        if goes_on and self.classes_.tolist() != data.classes.tolist():
            raise ValueError(
                f"warm_start can only be used where `y` has the same classes as in the previous call: {self.classes_}, "
                f"got {data.classes}."
            )
        start, first_epoch = (self.module_, self._total_epochs) if goes_on else (None, 0)
        run = begin(self, data, seed=seed, start=start, first_epoch=first_epoch)
        if saved is not None:
            restore(self, run, saved)
        monitor = Monitor(self, run, is_resumed=saved is not None)
        try:
            with isolated_rng():
                set_rng_state(run.rng)
                self._train(run, monitor)
                monitor.finish()
        finally:
            monitor.close()
        self._keep(run, feature_names(X))
        return self

    def _train(self, run: Run, monitor: Monitor) -> None:
        """The loop: orders of the data, updates, and what is due after each epoch."""
        saves = self.checkpoint_folder is not None
        data_hash = fingerprint(run.data) if saves else ""
        run.module.train()
        while not run.is_over:
            order = epoch_permutation(run.seed, run.first_epoch + run.epoch, len(run.data.rows))
            for batch in run.data.rows.batches(order, self.batch_size):
                monitor.after_update(self._update(run, batch))
                run.step += 1
            run.epoch += 1
            monitor.end_epoch()
            if saves and (run.epoch % self.checkpoint_every == 0 or run.is_over):
                write_checkpoint(self, run, data_hash)

    def _update(self, run: Run, batch: Rows) -> Tensor:
        """One step of the optimiser on the mean loss of a batch; returns that loss, without a wait for it."""
        progress = run.progress
        if not isinstance(self.learning_rate, (int, float)):
            for group in run.optimizer.param_groups:
                group["lr"] = run.schedule(progress)
        target = batch.target
        if target is None:  # alpha follows a schedule
            target = run.data.smoothing(batch.labels, len(run.data.classes), batch.mask, progress, validate=False)
        if self.mixup:
            batch, target = mix_rows(batch, target, self.mixup)
        run.optimizer.zero_grad()
        with torch.autocast(batch.inputs.device.type, torch.bfloat16) if self.amp else nullcontext():
            logits = run.module(batch.inputs)
        if self.mixup and batch.weights is not None:  # the weights are in the target
            total = batch.weights.sum()
            loss = cross_entropy(logits, target, mask=batch.mask, reduction="sum") / torch.where(total > 0, total, 1.0)
        else:
            loss = cross_entropy(logits, target, mask=batch.mask, weight=batch.weights)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(run.module.parameters(), self.max_grad_norm)
        run.optimizer.step()
        return loss.detach()

    def _keep(self, run: Run, names: NDArray[np.object_] | None) -> None:
        """Set what a fitted estimator has."""
        self.classes_ = run.data.classes
        self.n_features_in_ = run.data.num_features
        if names is not None:
            self.feature_names_in_ = names
        elif "feature_names_in_" in vars(self):
            del self.feature_names_in_
        self.module_ = run.module
        self.history_ = run.history
        self.n_iter_ = run.epoch
        # Where no validation loss was finite there is no best: the last parameters stay.
        self.best_epoch_ = run.epoch if run.stopping is None else run.stopping.best_step or run.epoch
        self._input_shape = tuple(run.data.rows.inputs.shape[1:])
        self._total_epochs = run.first_epoch + run.epoch
        self._seed = run.seed

    def _fitted(self) -> nn.Module:
        if not self.__sklearn_is_fitted__():
            raise not_fitted_error(type(self).__name__)
        return self.module_

    def logits(self, X: Any) -> Tensor:
        """What the network gives, in evaluation mode: `[N, K]` on the CPU, float32 (float64 of a float64 network).

        Args:
            X: as in `fit`.

        Raises:
            ValueError: it is not fitted; other features than in `fit`; NaN in `X`.
        """
        module = self._fitted().eval()
        check_feature_names(feature_names(X), vars(self).get("feature_names_in_"))
        inputs = as_inputs(X, model_dtype(module))
        if inputs.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {inputs.shape[1]} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                "features as input."
            )
        parameter = next(module.parameters(), None)
        device = inputs.device if parameter is None else parameter.device
        with torch.no_grad():
            starts = range(0, len(inputs), PREDICTED_ROWS)
            parts = [module(inputs[start : start + PREDICTED_ROWS].to(device)) for start in starts]
        joined = torch.cat(parts).cpu()
        return joined if joined.dtype == torch.float64 else joined.to(torch.float32)

    def predict(self, X: Any, mask: Any = None) -> NDArray[Any]:
        """The most probable label of each row, `[N]`.

        Args:
            X: as in `fit`.
            mask: bool `[N, K]`, True = legal: only legal classes are chosen.
        """
        logits = self.logits(X)
        legal = as_mask(mask, *logits.shape)
        if legal is not None:
            logits = logits.masked_fill(~legal.cpu(), -torch.inf)
        best: NDArray[Any] = self.classes_[logits.argmax(-1).numpy()]
        return best

    def predict_log_proba(self, X: Any, mask: Any = None) -> NDArray[np.float64]:
        """Log-probabilities (nats), float64 `[N, K]`, in the order of `classes_`; -inf where `mask` forbids a class."""
        logits = self.logits(X).to(torch.float64)
        legal = as_mask(mask, *logits.shape)
        found: NDArray[np.float64] = log_probabilities(logits, None if legal is None else legal.cpu()).numpy()
        return found

    def predict_proba(self, X: Any, mask: Any = None) -> NDArray[np.float64]:
        """Probabilities, float64 `[N, K]`, in the order of `classes_`; 0 where `mask` forbids a class."""
        found: NDArray[np.float64] = np.exp(self.predict_log_proba(X, mask))
        return found

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy: the share of rows whose most probable label is `y`, rows counted by `sample_weight`."""
        hits = self.predict(X)
        truth = as_label_array(y, len(hits))
        return float(np.average(hits == truth, weights=as_weights(sample_weight, len(hits))))
