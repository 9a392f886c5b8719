"""Classification with smoothed targets, on any torch module, with scikit-learn's conventions."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlsmooth.losses import cross_entropy, log_probabilities
from rlsmooth.schedules import LearningRate
from rlsmooth.targets import Smoothing, Target
from rlsmooth.training.classifier_data import Rows, as_inputs, as_mask, feature_names, mix_rows
from rlsmooth.training.classifier_files import SavedClassifier, find_checkpoint, restore, write_checkpoint
from rlsmooth.training.classifier_labels import as_label_array, as_weights
from rlsmooth.training.classifier_model import ModelLike, model_dtype
from rlsmooth.training.classifier_monitor import Monitor
from rlsmooth.training.classifier_prepare import prepare
from rlsmooth.training.classifier_run import Run, begin, check_arguments, fingerprint
from rlsmooth.training.classifier_sklearn import ScikitLearnEstimator, check_feature_names, not_fitted_error
from rlsmooth.training.seeding import epoch_permutation, isolated_rng, set_rng_state

__all__ = ["Classifier"]

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
    generators of its own. What is logged is listed in `rlsmooth.training.classifier_monitor`.

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
