"""What happens beside training, once an epoch: metrics, validation, TensorBoard, and the watch for NaN and infinity.

`history_` and the tags under `classifier/` are the same: `loss` (mean over the epoch's updates), and under the model as
it is after the epoch, as means over up to 2048 training rows, `cross_entropy` (with the targets that are trained on),
`nll_hard`, `accuracy`, `ece`, `entropy`; `smoothing` (the mean alpha in force), `learning_rate`; and `val_*` over all
validation rows, where `val_loss` is what early stopping looks at: `val_cross_entropy`, or `val_nll_hard` where alpha
follows a schedule, since a loss whose target moves can't be compared between epochs. `cross_entropy` weighs the rows as
training does, all others count each row once. Nats. TensorBoard's steps are updates; at the start it gets a picture of
the targets, at the end a reliability diagram.

Nothing here touches the random generators that training draws from, and nothing waits for the device within an epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlsmooth.audits import calibration_error, reliability_bins
from rlsmooth.audits.figures import draw_reliability, draw_target_matrix, new_figure
from rlsmooth.checks import check_writable_folder
from rlsmooth.losses.arguments import reduce
from rlsmooth.losses.categorical import PredictionMeasures, measure_predictions
from rlsmooth.training.classifier_data import Rows
from rlsmooth.training.classifier_run import Run
from rlsmooth.training.run import divergence_error
from rlsmooth.training.seeding import epoch_permutation

if TYPE_CHECKING:
    from rlsmooth.training.classifier import Classifier

__all__ = ["Monitor"]

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
