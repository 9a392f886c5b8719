"""One call of `Classifier.fit`: the rows, the network and the counters, before the first update."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rlsmooth.checks import check_in_range, check_positive_int
from rlsmooth.schedules import as_schedule
from rlsmooth.targets import as_smoothing
from rlsmooth.training.classifier_data import Rows
from rlsmooth.training.classifier_model import build_model, check_model, make_optimizer, model_dtype
from rlsmooth.training.classifier_prepare import Data
from rlsmooth.training.run import EarlyStopping
from rlsmooth.training.seeding import isolated_rng, rng_state

if TYPE_CHECKING:
    from rlsmooth.training.classifier import Classifier

__all__ = ["Run", "begin", "check_arguments", "fingerprint"]

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
