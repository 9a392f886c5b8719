"""`Classifier`: classification with smoothed targets, on any torch module, with scikit-learn's conventions.

`history_` has one value per epoch of each quantity below, and TensorBoard shows the same under `classifier/`:

- `loss`: the mean over the epoch's updates;
- `cross_entropy` (with the targets of training), `nll_hard`, `accuracy`, `ece`, `entropy`: measured with the parameters
  after the epoch, as means over up to 2048 training samples;
- `smoothing` (the current mean alpha) and `learning_rate`;
- `val_*`: the same measures over all validation samples.

Early stopping uses `val_loss`. It is `val_cross_entropy`, or `val_nll_hard` if alpha follows a schedule, because losses
with different targets can't be compared between epochs. `cross_entropy` weights samples as training does; all other
measures count each sample once. Losses and entropies are in nats. TensorBoard's steps are updates; it also gets a
figure of the targets at the start and a reliability diagram at the end.

Logging does not change the state of training's random generators, and nothing waits for the device within an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlsmooth.checks import check_in_range, check_positive_int, check_writable_folder
from rlsmooth.losses import cross_entropy, log_probabilities
from rlsmooth.schedules import LearningRate, Schedule, as_schedule
from rlsmooth.targets import Smoothing, Target, as_smoothing
from rlsmooth.training import classifier_measures, seeding
from rlsmooth.training.checkpoint import Checkpoint, decode_history, load_module, load_optimizer, optimizer_to_tensors
from rlsmooth.training.classifier_measures import events_folder, mean_alpha, measure, training_sample
from rlsmooth.training.classifier_model import (
    ClassifierCheckpoint,
    ModelLike,
    ScikitLearnEstimator,
    as_device,
    build_model,
    check_feature_names,
    check_model,
    check_saved,
    decoded_arguments,
    decoded_classes,
    encode_class_weight,
    make_optimizer,
    model_dtype,
    not_fitted_error,
)
from rlsmooth.training.classifier_samples import (
    ClassifierData,
    ClassifierSamples,
    as_inputs,
    as_label_array,
    as_mask,
    as_weights,
    feature_names,
    features_and_classes,
    keep_feature_names,
    mix_samples,
    prepare_data,
)
from rlsmooth.training.distributed import Ranks, join_ranks
from rlsmooth.training.divergence import FiniteWatch
from rlsmooth.training.flat import clear_gradients, run_backward, take_step
from rlsmooth.training.run import (
    EarlyStopping,
    EventLog,
    Progress,
    RunFolder,
    append_values,
    check_folder_given,
    check_given_again,
    check_no_missing,
    check_same_arguments,
    learning_rate_of,
    log_line,
    safe_points,
    samples_at_once,
    set_learning_rate,
    stop,
    stop_requested,
)
from rlsmooth.training.safe_file import (
    SafeFileError,
    encode_smoothing,
    read_safe_file,
    with_zip_suffix,
    write_safe_file,
)
from rlsmooth.training.seeding import EpochCut, epoch_permutation, few_threads, isolated_rng, rng_state, set_rng_state
from rlsmooth.untrusted import modules_within, refused

PREDICTED_AT_ONCE = 4096
SHOWN = ("loss", "accuracy", "val_loss", "val_accuracy")

FORMAT_NAME = "rlsmooth-classifier"
FORMAT_VERSION = 1
DATA = "X, y, sample_weight, target, mask or validation"


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
"""Arguments that a resumed run must keep, besides `smoothing`, `class_weight` and `learning_rate`."""


@dataclass
class _FitState:
    """The state of one call of `fit`. The classifier keeps the result of an earlier fit until this one has succeeded.

    Attributes:
        data: the prepared arguments of `fit`.
        module: the network in training.
        optimizer: the optimiser of its parameters.
        rate_at: the learning rate as a function of the progress remaining.
        seed: the seed of this run.
        first_epoch: epochs trained by earlier fits (`warm_start`), so that the data are shuffled in new orders.
        cut: how an epoch is divided into updates.
        progress: counted in updates.
        stopping: early stopping, or None.
        rng: the state of the random generators at the start of training.
        watch: the losses of the epoch.
        ranks: the processes that train together.
        history: one value per epoch of each quantity.
    """

    data: ClassifierData
    module: nn.Module
    optimizer: torch.optim.Optimizer
    rate_at: Schedule
    seed: int
    first_epoch: int
    cut: EpochCut
    progress: Progress
    stopping: EarlyStopping | None
    rng: dict[str, Tensor]
    watch: FiniteWatch
    ranks: Ranks
    history: dict[str, list[float]] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """The number of completed epochs."""
        return self.progress.step // len(self.cut)

    @property
    def is_over(self) -> bool:
        """Whether all epochs are done, or patience is used up."""
        return self.progress.is_over or (self.stopping is not None and self.stopping.should_stop)


@final
class Classifier(ScikitLearnEstimator):
    """A classifier that is trained on smoothed targets, which keep it from certainty.

        loss = sum_i w_i · CE(smoothing(y_i), softmax(model(x_i))) / (B · mean w)     (nats, over a minibatch of B)

    `w_i` is the sample weight times the weight of its class, as in scikit-learn: weight 2 counts a sample twice. The
    mean weight is that of all training samples, so that weights count the same at every batch size. Torch weights each
    class of a smoothed target instead (`Target.weight_classes`); without smoothing, both are the same.
    Uniform, prior, hierarchical, ordinal and kernel targets are set by `Smoothing(reference=...)`; any other target,
    such as one of hybrids or of a teacher, is passed as `fit(target=)`. Only the target changes, never the loss.

    It is a scikit-learn classifier (pipelines, searches, cross-validation, calibration), without needing scikit-learn:
    arguments are stored as given and checked by `fit`. A seeded fit repeats bit for bit; training has its own random
    state. The logged quantities are listed in `rlsmooth.training.classifier`.

    Args:
        model: a module that maps `[N, ...]` to logits `[N, K]` (copied by `fit`; its parameters are the start), or a
            callable `(num_features, num_classes) -> Module` (with seeded initial weights, for example `nn.Linear`), or
            `"mlp"`: two hidden layers of 64. A module's frozen parameters stay as they are.
        smoothing: alpha, a schedule `"lin_0.1"`, or a `Smoothing`; 0: hard targets.
        class_weight: `"balanced"`, a dict of label to factor, or an array `[K]` in the order of `classes_`.
        learning_rate: for Adam: a number, `"lin_1e-3"` (down to 0), or a callable of the progress remaining (1 to 0).
        weight_decay: decoupled from the gradient (AdamW).
        batch_size: samples per update; an epoch's last minibatch may have fewer, with BatchNorm at least two.
        max_epochs: passes over the data.
        mixup: mix pairs of samples and their targets with `lam ~ Beta(mixup, mixup)`; 0: off.
        validation_fraction: hold out this fraction of the samples, class by class (stratified).
        early_stopping_patience: stop after this many epochs without a lower validation loss, and restore the best
            parameters; None: neither.
        max_grad_norm: the gradient's norm is clipped to it; None: no clipping.
        amp: forward passes of training in bfloat16 (losses stay in float32); meant for CUDA.
        seed: for initial weights, order of the data, dropout, mixup, held-out samples; None: from torch's generator.
        device: `"auto"` is the GPU if there is one.
        warm_start: a second `fit` continues with the parameters of the first, in new orders of the data.
        checkpoint_folder: the folder for the checkpoints that `fit(resume=True)` resumes from; None: none are written.
        checkpoint_every: epochs between two checkpoints.
        tensorboard_log: folder for TensorBoard files; each fit has its own subfolder `Classifier_<n>`. None: none.
        verbose: 1 prints a line per epoch.
        progress_bar: show a progress bar of updates.

    Attributes:
        classes_: `[K]`, the sorted labels, in the order of the logits.
        n_features_in_: the size of the second axis of `X`; `feature_names_in_` exists if `X` was a data frame.
        module_: the trained network, in evaluation mode.
        history_: one value per epoch of each quantity.
        n_iter_: epochs trained; `best_epoch_` (from 1) is the epoch of the parameters: the last, or early stopping's.

    Examples:
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
    _missing: tuple[str, ...] = ()

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
        on_epoch: Callable[[Mapping[str, list[float]]], None] | None = None,
    ) -> Self:
        """Train.

        Args:
            X: `[N, ...]`: an array, data frame or list, which is converted to the model's floating-point type; or a
                tensor, which is passed on as it is if it has integers (pixels, tokens).
            y: `[N]` labels: whole numbers, text or bools.
            sample_weight: `[N]`, 0 or more; a sample of weight 0 does not contribute to the loss.
            validation: held-out `(X, y)`, for `val_*` and early stopping.
            target: a target of batch shape `[N]`, over the sorted classes, that replaces `smoothing(y)`. The labels are
                then used only to count correct predictions.
            mask: bool `[N, K]`, True = legal: the softmax and the smoothing are over a sample's legal classes.
            classes: all labels, if some may be missing from `y`.
            resume: continue from the last checkpoint of an interrupted run, or start if it has none. On the CPU, the
                final parameters are those of an uninterrupted run, bit for bit.
            on_epoch: called with the history so far after each epoch; an error that it raises ends the training.

        Returns:
            The classifier itself.

        Raises:
            TypeError: an argument of a kind that is not listed.
            ValueError: a value out of range, shapes that do not match, NaN in `X`, an illegal label, early stopping
                without validation data, a checkpoint folder of another run, a resumed run with other data (up to 4096
                samples of `X` are compared).
            TrainingDivergedError: the loss or a parameter became NaN or infinite.
        """
        self._check_arguments()
        check_folder_given(self.checkpoint_folder, resume=resume)
        checkpoint = None if self.checkpoint_folder is None else self._run_folder().begin(resume=resume)
        seed = self._seed_of_fit(checkpoint)
        if self._is_warm:
            check_feature_names(feature_names(X), vars(self).get("feature_names_in_"))
        num_features, labels, known = features_and_classes(X, y, classes)
        module = build_model(self.module_ if self._is_warm else self.model, num_features, len(known), seed=seed)
        data = prepare_data(
            X,
            labels,
            sample_weight,
            validation=validation,
            target=target,
            mask=mask,
            classes=known,
            smoothing=as_smoothing(self.smoothing),
            class_weight=self.class_weight,
            validation_fraction=self.validation_fraction,
            seed=seed,
            device=as_device(self.device),
            dtype=model_dtype(module),
        )
        state = self._begin(data, module, seed)
        if checkpoint is not None:
            self._restore(state, checkpoint)
        with (
            safe_points(self.checkpoint_folder, shared=True),
            self._event_log(state, is_resumed=checkpoint is not None) as events,
            isolated_rng(),
            few_threads(module, batch_size=self.batch_size),
        ):
            set_rng_state(state.rng)
            self._train(state, events, on_epoch)
            self._finish(state, events)
        self._keep(state)
        keep_feature_names(X, self)
        return self

    # ---- training

    def _check_arguments(self) -> None:
        """Raise TypeError or ValueError for an argument of the constructor that is outside its range.

        The constructor does not check them, because scikit-learn's tools require that it stores arguments unchanged.
        """
        check_no_missing([name for name in self._missing if getattr(self, name) is None], "give it to Classifier.load")
        check_positive_int("batch_size", self.batch_size)
        check_positive_int("max_epochs", self.max_epochs)
        check_positive_int("checkpoint_every", self.checkpoint_every)
        check_in_range("weight_decay", self.weight_decay, 0.0)
        check_in_range("mixup", self.mixup, 0.0)
        check_in_range("validation_fraction", self.validation_fraction, 0.0, 1.0, high_open=True)
        if self.max_grad_norm is not None:
            check_in_range("max_grad_norm", self.max_grad_norm, 0.0, low_open=True)
        if self.early_stopping_patience is not None:
            check_positive_int("early_stopping_patience", self.early_stopping_patience)
        if self.seed is not None:
            check_positive_int("seed", self.seed, minimum=0)
        as_schedule(self.learning_rate)
        as_smoothing(self.smoothing)

    @property
    def _is_warm(self) -> bool:
        """Whether the next fit starts from the parameters of the last one."""
        return self.warm_start and self.__sklearn_is_fitted__()

    def _seed_of_fit(self, checkpoint: Checkpoint | None) -> int:
        if self.seed is not None:
            return self.seed
        if checkpoint is not None:
            return int(checkpoint.decoded(ClassifierCheckpoint)["seed"])
        if self._is_warm:  # the same samples are held out again
            return self._seed
        return int(torch.randint(2**31, ()))

    def _begin(self, data: ClassifierData, module: nn.Module, seed: int) -> _FitState:
        """Prepare the state of a run before its first update."""
        first_epoch = self._total_epochs if self._is_warm else 0
        if self._is_warm and self.classes_.tolist() != data.classes.tolist():
            raise ValueError(
                f"warm_start can only be used where `y` has the same classes as in the previous call: {self.classes_}, "
                f"got {data.classes}."
            )
        if self.mixup and not data.samples.inputs.is_floating_point():
            raise ValueError(
                f"X is {data.samples.inputs.dtype}, which mixup can't mix: give floating-point features, or mixup=0."
            )
        patience = self.early_stopping_patience
        if patience is not None and data.validation is None:
            raise ValueError("early_stopping_patience needs validation data: validation_fraction or fit(validation=).")
        num_samples, num_classes = len(data.samples), len(data.classes)
        module = module.to(data.samples.labels.device)
        check_model(module, data.samples.inputs, num_classes, seed=seed)
        cut = EpochCut(num_samples, self.batch_size, joins_single=seeding.has_batch_norm(module))
        if cut.joins_single and cut.smallest == 1:
            why = f"batch_size={self.batch_size} makes minibatches of one sample of {num_samples}"
            seeding.check_trains_on_one(module, lambda: module(data.samples.inputs[:1]), why)
        rate_at = as_schedule(self.learning_rate)
        ranks = join_ranks(module, mixup=self.mixup, seed=seed)
        with isolated_rng((seed + 1 + first_epoch) % 2**32):  # a warm start draws new random numbers
            rng = rng_state()
        return _FitState(
            data,
            module,
            make_optimizer(module, learning_rate=rate_at(1.0), weight_decay=self.weight_decay),
            rate_at,
            seed,
            first_epoch,
            cut,
            Progress(end=self.max_epochs * len(cut)),
            None if patience is None else EarlyStopping(patience),
            rng,
            FiniteWatch(module, data="training data"),
            ranks,
        )

    def _train(self, state: _FitState, events: EventLog, on_epoch: Callable[..., None] | None) -> None:
        """The training loop: shuffle the data, update, log after each epoch, and save checkpoints at intervals."""
        samples, progress, ranks = state.data.samples, state.progress, state.ranks
        measured = training_sample(samples)
        fingerprint = "" if self.checkpoint_folder is None and ranks.size == 1 else state.data.fingerprint()
        ranks.check_same(data=fingerprint, step=progress.step)
        state.module.train()
        while not state.is_over:
            order = epoch_permutation(state.seed, state.first_epoch + state.epoch, len(samples))
            for number, batch in enumerate(samples.batches(order, state.cut, ranks)):
                start, end = state.cut.bounds(number)
                divisor = math.inf if ranks.is_idle(start, end) else end - start  # what has no share adds 0
                state.watch.add(self._update(state, batch, divisor), samples=end - start)
                progress.step += 1
                events.advance()
            self._log(state, events, measured)
            if on_epoch is not None:
                on_epoch(state.history)
            if self.checkpoint_folder is None:
                continue
            (stops,) = ranks.any(stop_requested())
            if stops or state.epoch % self.checkpoint_every == 0 or state.is_over:
                self._save_checkpoint(state, fingerprint)
            if stops:
                stop(f"A checkpoint of epoch {state.epoch:,} was written.")

    def _update(self, state: _FitState, batch: ClassifierSamples, size: float) -> Tensor:
        """One optimiser step on the mean loss of `size` samples, of which `batch` is this process's share."""
        progress = state.progress.remaining
        if not isinstance(self.learning_rate, (int, float)):
            set_learning_rate(state.optimizer, state.rate_at(progress))
        target = state.data.target_of(batch, progress)
        if self.mixup:
            batch, target = mix_samples(batch, target, self.mixup, weighted=state.data.mean_weight is not None)
        clear_gradients(state.optimizer)
        state.ranks.seed_draws(state.seed, state.first_epoch, state.progress.step)
        with torch.autocast(batch.inputs.device.type, torch.bfloat16) if self.amp else nullcontext():
            logits = state.module(batch.inputs)
        mean_weight = state.data.mean_weight
        if mean_weight is None and state.ranks.size == 1:
            loss = cross_entropy(logits, target, mask=batch.mask)
        else:
            weight = None if self.mixup or mean_weight is None else batch.weights  # mixup's are in the target
            total = cross_entropy(logits, target, mask=batch.mask, weight=weight, reduction="sum")
            loss = total / (size * (mean_weight or 1.0))
        run_backward(loss)
        mean = state.ranks.sum_gradients(state.optimizer, loss.detach())
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(state.module.parameters(), self.max_grad_norm)
        take_step(state.optimizer)
        return mean

    def _finish(self, state: _FitState, events: EventLog) -> None:
        """Restore the best parameters if there is early stopping, and draw the reliability diagram."""
        if state.stopping is not None:
            state.stopping.restore(state.module, state.epoch)
        state.module.eval()
        if events.writer is not None:
            step, remaining = state.progress.step, state.progress.remaining
            classifier_measures.draw_calibration(
                events.writer, step, state.module, state.data, remaining, self.batch_size
            )

    def _keep(self, state: _FitState) -> None:
        """Set the attributes of a fitted estimator."""
        inputs = state.data.samples.inputs
        self.classes_ = state.data.classes
        self.n_features_in_ = inputs.shape[1]
        self.module_ = state.module
        self.history_ = state.history
        self.n_iter_ = state.epoch
        # If no validation loss was finite, there is no best epoch, and the last parameters are kept.
        self.best_epoch_ = state.epoch if state.stopping is None else state.stopping.best_step or state.epoch
        self._input_shape = tuple(inputs.shape[1:])
        self._total_epochs = state.first_epoch + state.epoch
        self._seed = state.seed

    # ---- log lines, divergence

    def _event_log(self, state: _FitState, *, is_resumed: bool) -> EventLog:
        """The log of a run, with a figure of its targets at the start."""
        progress, folder, continues, is_main = state.progress, None, False, state.ranks.is_main
        if self.tensorboard_log is not None and is_main:
            folder, continues = events_folder(self.tensorboard_log, is_resumed=is_resumed)
        events = EventLog(
            folder,
            resumed_at=progress.step if continues else None,
            bar=(progress.total, progress.step, "batch") if self.progress_bar and is_main else None,
        )
        if events.writer is not None and not is_resumed:
            classifier_measures.draw_targets(events.writer, state.data)
        return events

    def _log(self, state: _FitState, events: EventLog, measured: ClassifierSamples) -> None:
        """Check that all is finite, then measure, validate and log an epoch."""
        data, module = state.data, state.module
        step, remaining, rate = state.progress.step, state.progress.remaining, learning_rate_of(state.optimizer)
        folder = None if self.checkpoint_folder is None else Path(self.checkpoint_folder)
        state.watch.check(step, partial(self._minibatch_of, state), rate=rate, checkpoint_folder=folder)
        found = {"loss": state.watch.mean_loss(), **measure(module, measured, data, remaining, self.batch_size)}
        if data.validation is not None:
            held_out = measure(module, data.validation, data, remaining, self.batch_size)
            name = "cross_entropy" if data.smoothing.is_constant else "nll_hard"
            found |= {"val_loss": held_out[name], **{f"val_{key}": value for key, value in held_out.items()}}
        numbers = torch.stack([value.to(torch.float32) for value in found.values()]).tolist()
        values = dict(zip(found, numbers, strict=True))
        values |= {"smoothing": mean_alpha(data.smoothing, remaining), "learning_rate": rate}
        append_values(state.history, values)
        events.write("classifier", values, step)
        if state.stopping is not None:
            state.stopping.update(state.ranks.of_main(values["val_loss"]), state.epoch, module)
        if self.verbose and state.ranks.is_main:
            print(log_line(f"epoch {state.epoch}/{self.max_epochs}", values, SHOWN))
        state.watch.clear()

    def _minibatch_of(self, state: _FitState, step: int) -> tuple[Tensor, list[Tensor]]:
        """The samples in the minibatch of an update, as indices into `X`, and their tensors."""
        epoch, update = divmod(step - 1, len(state.cut))
        start, end = state.cut.bounds(update)
        order = epoch_permutation(state.seed, state.first_epoch + epoch, len(state.data.samples))
        seen = order[start:end]
        batch = state.data.samples[seen.to(state.data.samples.labels.device)]
        places = seen if state.data.places is None else state.data.places[seen]
        return places, [batch.inputs] if batch.weights is None else [batch.inputs, batch.weights]

    # ---- predictions

    def __sklearn_is_fitted__(self) -> bool:
        return "module_" in vars(self)

    def _fitted(self) -> nn.Module:
        if not self.__sklearn_is_fitted__():
            raise not_fitted_error(type(self).__name__)
        return self.module_

    def logits(self, X: Any) -> Tensor:
        """The logits in evaluation mode: `[N, K]` on the CPU, float32 (float64 for a float64 network).

        Args:
            X: as in `fit`.

        Raises:
            ValueError: the classifier is not fitted; the features differ from those in `fit`; NaN in `X`.
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
        most = samples_at_once(
            lambda: module(inputs[:1].to(device)), self.batch_size, min(len(inputs), PREDICTED_AT_ONCE)
        )
        with torch.no_grad():
            parts = [module(inputs[start : start + most].to(device)) for start in range(0, len(inputs), most)]
        joined = torch.cat(parts).cpu()
        return joined if joined.dtype == torch.float64 else joined.to(torch.float32)

    def predict(self, X: Any, mask: Any = None) -> NDArray[Any]:
        """The most probable label of each sample, `[N]`.

        Args:
            X: as in `fit`.
            mask: bool `[N, K]`, True = legal: only legal classes are chosen.
        """
        logits = self.logits(X)
        legal = as_mask(mask, len(logits), self.classes_)
        if legal is not None:
            logits = logits.masked_fill(~legal.cpu(), -torch.inf)
        best: NDArray[Any] = self.classes_[logits.argmax(-1).numpy()]
        return best

    def predict_log_proba(self, X: Any, mask: Any = None) -> NDArray[np.float64]:
        """Log-probabilities (nats), float64 `[N, K]`, in the order of `classes_`; -inf where `mask` forbids a class."""
        logits = self.logits(X).to(torch.float64)
        legal = as_mask(mask, len(logits), self.classes_)
        found: NDArray[np.float64] = log_probabilities(logits, None if legal is None else legal.cpu()).numpy()
        return found

    def predict_proba(self, X: Any, mask: Any = None) -> NDArray[np.float64]:
        """Probabilities, float64 `[N, K]`, in the order of `classes_`; 0 where `mask` forbids a class."""
        return np.asarray(np.exp(self.predict_log_proba(X, mask)))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy: the fraction of samples whose most probable label is `y`, weighted by `sample_weight`."""
        hits = self.predict(X)
        truth = as_label_array(y, len(hits))
        return float(np.average(hits == truth, weights=as_weights(sample_weight, len(hits))))

    # ---- files

    def save(self, path: str | Path) -> Path:
        """Write parameters, classes, history and arguments to a file without code (see `write_safe_file`).

        A module's code and callables (`learning_rate`, a `Smoothing`'s alpha) are not stored: pass them to `load`.

        Args:
            path: `.zip` is added to a name without a suffix.

        Returns:
            The path written.

        Raises:
            ValueError: the classifier is not fitted, or the folder can't be written to.
        """
        module = self._fitted()
        path = with_zip_suffix(path)
        check_writable_folder("path", path.parent)
        names = vars(self).get("feature_names_in_")
        config = {
            "arguments": {**self._arguments(), "seed": self.seed, "warm_start": self.warm_start},
            "model": self.model if isinstance(self.model, str) else None,
            "classes": {"dtype": self.classes_.dtype.str, "values": self.classes_.tolist()},
            "input_shape": list(self._input_shape),
            "feature_names": None if names is None else names.tolist(),
            "history": self.history_,
            "n_iter": self.n_iter_,
            "best_epoch": self.best_epoch_,
            "total_epochs": self._total_epochs,
            "seed": self._seed,
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
    def from_module(cls, module: nn.Module, classes: Any, input_shape: Sequence[int], **arguments: Any) -> Self:
        """A fitted classifier around a network that something else trained, such as `FederatedTrainer`.

        Args:
            module: maps `[N, *input_shape]` to logits `[N, K]`; used as it is, in evaluation mode.
            classes: `[K]`, the labels, sorted, in the order of the logits.
            input_shape: of one sample.
            arguments: of the constructor.

        Examples:
            >>> Classifier.from_module(nn.Linear(2, 2), ["no", "yes"], (2,)).predict([[0.0, 0.0]]).shape
            (1,)
        """
        classifier = cls(module, **arguments)
        classifier.classes_ = np.asarray(classes)
        classifier.module_ = module.eval()
        classifier.history_, classifier.n_iter_, classifier.best_epoch_ = {}, 0, 0
        classifier.n_features_in_, classifier._input_shape = int(input_shape[0]), tuple(input_shape)
        classifier._total_epochs, classifier._seed = 0, classifier.seed or 0
        return classifier

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
            model: the classifier's `model`: a module of the same shapes (copied), or the callable. None suffices for
                `"mlp"`.
            device: the device of the network.
            smoothing: replaces the file's. If it was a callable, it must be passed again to fit again.
            learning_rate: replaces the file's, as for `smoothing`.

        Raises:
            SafeFileError: the file is damaged or not a classifier's.
            ValueError: `model` is needed, or its parameters do not match the file's.
        """
        path = Path(path).expanduser()
        file = read_safe_file(path, format_name=FORMAT_NAME, format_version=FORMAT_VERSION)
        config = file.config
        with refused(path, SafeFileError):
            model = config["model"] if model is None else model
        if model is None:
            raise ValueError(f"{str(path)!r} holds no code: give the model that the classifier was made with.")
        with refused(path, SafeFileError):
            arguments = decoded_arguments(config["arguments"], path)
            check_saved(config)
            classes = decoded_classes(config["classes"])
            shape = tuple(config["input_shape"])
            fitted = {
                "classes_": classes,
                "history_": config["history"],
                "n_iter_": config["n_iter"],
                "best_epoch_": config["best_epoch"],
                "n_features_in_": shape[0],
                "_input_shape": shape,
                "_total_epochs": config["total_epochs"],
                "_seed": config["seed"],
            }
            if config["feature_names"] is not None:
                fitted["feature_names_in_"] = np.asarray(config["feature_names"], dtype=object)
            state = file.tensors["module"]
        given_again = {"smoothing": smoothing, "learning_rate": learning_rate}
        arguments |= {name: value for name, value in given_again.items() if value is not None}
        classifier = cls(model, device=device, **arguments)
        of_file = refused(path, SafeFileError) if isinstance(model, str) else nullcontext()
        with of_file, modules_within(state):
            module = build_model(model, math.prod(shape), len(classes), seed=0)
            load_module("model", module, state, f"the file {str(path)!r}")
        fitted["_missing"] = tuple(name for name in given_again if arguments[name] is None)
        fitted["module_"] = module.to(as_device(device)).eval()
        for name, value in fitted.items():
            setattr(classifier, name, value)
        return classifier

    def _arguments(self) -> dict[str, Any]:
        """The arguments that affect the result of a run, as JSON-able values; a callable learning rate becomes None."""
        return {
            **{name: getattr(self, name) for name in TRAINING_ARGUMENTS},
            "smoothing": encode_smoothing([as_smoothing(self.smoothing)]),
            "class_weight": encode_class_weight(self.class_weight),
            "learning_rate": None if callable(self.learning_rate) else self.learning_rate,
        }

    def _run_folder(self) -> RunFolder:
        assert self.checkpoint_folder is not None
        return RunFolder(self.checkpoint_folder, unit="epoch", resume="fit(..., resume=True)", shared=True)

    def _save_checkpoint(self, state: _FitState, fingerprint: str) -> None:
        """Write a checkpoint of everything that changes during a run."""
        tensors, optimizer = optimizer_to_tensors(state.optimizer)
        stopping = state.stopping
        config = {
            "arguments": self._arguments(),
            "seed": state.seed,
            "first_epoch": state.first_epoch,
            "step": state.progress.step,
            "history": state.history,
            "optimizer": optimizer,
            "early_stopping": None if stopping is None else stopping.to_config(),
            "data": fingerprint,
        }
        best = {} if stopping is None else stopping.parameters
        module = state.module.state_dict()
        self._run_folder().save(state.epoch, config, {"module": module, "optimizer": tensors, "best": best})

    def _restore(self, state: _FitState, checkpoint: Checkpoint) -> None:
        """Restore the state from a checkpoint, after a check that data and arguments are the same."""
        config, tensors = checkpoint.decoded(ClassifierCheckpoint), checkpoint.tensors
        folder, seed = self._run_folder().path, {"seed": config["seed"]}
        check_same_arguments(config["arguments"] | seed, self._arguments() | {"seed": state.seed}, folder)
        check_given_again({DATA: config["data"]}, {DATA: state.data.fingerprint()}, folder)
        with checkpoint.refused():
            state.progress.step, state.first_epoch = config["step"], config["first_epoch"]
            if state.epoch != checkpoint.step or state.progress.step > state.progress.end:
                raise ValueError(f"step={config['step']} is not that of epoch {checkpoint.step}")
            state.history = decode_history(config["history"], "history", state.epoch)
            load_module("model", state.module, tensors["module"], f"the run in {str(folder)!r}")
            load_optimizer(state.optimizer, tensors["optimizer"], config["optimizer"])
            if state.stopping is not None:
                state.stopping.load(config["early_stopping"], tensors["best"], state.module, state.epoch)
            state.rng = tensors["rng"]
