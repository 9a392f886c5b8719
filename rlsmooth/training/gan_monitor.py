"""What happens beside a GAN's training: log lines, evaluations, TensorBoard, and the watch for NaN and infinity.

`history` has a number for each log line, and TensorBoard the same under `gan/`: of the steps since the last line the
means `discriminator_loss`, `generator_loss`, `accuracy`, `accuracy_real`, `accuracy_fake`, `entropy` (nats),
`probability_real` (D on real rows) and `probability_fake`; of the last step `probability_real_max` (the largest D on a
real row), `generator_gradient_norm` (after clipping), `real_target`, `fake_target` and `learning_rate`. Accuracies are
on hard labels. `evaluations` has what `evaluate` gave, TensorBoard the same under `eval/`, with histograms of the
logits of real and fake rows and a picture of samples: images, or points beside the data's.

Nothing here touches the random generators that training draws from, and nothing waits for the device between log lines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rlsmooth.training.discriminator import DiscriminatorStatistics
from rlsmooth.training.gan_files import write_checkpoint
from rlsmooth.training.gan_pictures import draw_points, image_grid
from rlsmooth.training.run import TrainingDivergedError, divergence_error
from rlsmooth.training.seeding import isolated_rng

if TYPE_CHECKING:
    from rlsmooth.training.gan import GANTrainer

__all__ = ["Monitor"]

MEANS = tuple(name for name in DiscriminatorStatistics._fields if not name.startswith(("loss", "share")))
DRAWN_IMAGES = 64
OnLog = Callable[[int, Mapping[str, float]], object]


class Monitor:
    """Watches a trainer.

    Attributes:
        statistics: of each discriminator update since the last log line, on the device.
        generator_losses: of each generator update since then.
        logits: of the last discriminator update, real and fake.
    """

    def __init__(self, trainer: GANTrainer) -> None:
        self.trainer = trainer
        self.statistics: list[DiscriminatorStatistics] = []
        self.generator_losses: list[Tensor] = []
        self.logits: tuple[Tensor, Tensor] | None = None
        self._log_every = 1
        self._on_log: OnLog | None = None
        self._evaluated_step = -1
        self._writer: Any = None
        self._bar: Any = None
        self._since = 0.0

    def start(self, log_every: int, on_log: OnLog | None, *, progress_bar: bool, is_resumed: bool) -> None:
        """A run begins."""
        trainer = self.trainer
        self._log_every, self._on_log = log_every, on_log
        self._evaluated_step = int(trainer.evaluations["step"][-1]) if trainer.evaluations else -1
        if not is_resumed:
            self.statistics.clear()
            self.generator_losses.clear()
        if trainer.tensorboard_log is not None:
            from torch.utils.tensorboard import SummaryWriter

            # What a killed run logged after its last checkpoint comes again.
            purge = trainer.step + 1 if is_resumed else None
            self._writer = SummaryWriter(str(trainer.tensorboard_log), purge_step=purge)
        if progress_bar:
            from tqdm.auto import tqdm  # type: ignore[import-untyped]

            total = trainer._end - trainer._start
            self._bar = tqdm(total=total, initial=trainer.step - trainer._start, unit="step", mininterval=0.5)
        self._since = time.perf_counter()

    def after_step(self) -> None:
        """Log, if it is time."""
        if self._bar is not None:
            self._bar.update(1)
        if self.trainer.step % self._log_every == 0:
            self.log()

    def finish(self) -> None:
        """A run ends: the last checkpoint, log line and evaluation."""
        if self.generator_losses:
            self.log()
        if self._evaluated_step != self.trainer.step:
            self.evaluate()
        if self.trainer.checkpoint_folder is not None:
            self.checkpoint()

    def close(self) -> None:
        """Close what is open, also after an error."""
        if self._bar is not None:
            self._bar.close()
        if self._writer is not None:
            self._writer.close()
        self._bar = self._writer = None

    def check(self) -> None:
        """Wait for the device and raise unless all losses since the last log line and all parameters are finite.

        Raises:
            TrainingDivergedError: they are not; it names the first step whose loss is not.
        """
        trainer = self.trainer
        modules = (trainer.generator, trainer.discriminator)
        finite = [part.isfinite().all() for module in modules for part in module.parameters()]
        per_step = trainer.discriminator_updates
        losses = [statistics.loss for statistics in self.statistics]
        steps = [
            torch.stack([*losses[place * per_step : (place + 1) * per_step], loss])
            for place, loss in enumerate(self.generator_losses)
        ]
        flags = torch.stack([*(step.isfinite().all() for step in steps), torch.stack(finite).all()]).tolist()
        if all(flags):
            return
        place = min(flags.index(False), max(len(steps) - 1, 0))
        step = trainer.step - len(steps) + place + 1
        found = steps[place].tolist() if steps else [0.0]
        loss = next((value for value in found if not np.isfinite(value)), found[-1])
        rate = float(trainer.generator_optimizer.param_groups[0]["lr"])
        if trainer.data is None or trainer.data.tensor is None:
            raise TrainingDivergedError(
                f"Training stopped at step {step}: the loss is {loss}. The GAN diverged, or the drawn rows were not "
                f"finite: lower learning_rate (it was {rate:g}), or set max_grad_norm. The GAN in memory is spoilt.",
                step,
                np.zeros(0, np.int64),
            )
        rows = torch.cat([trainer.data.rows((step - 1) * per_step + update) for update in range(per_step)]).cpu()
        values = [trainer.data.tensor[rows.to(trainer.device)]]
        raise divergence_error(
            step,
            loss,
            rows,
            values,
            learning_rate=rate,
            checkpoint_folder=trainer.checkpoint_folder,
            data="data",
            model="GAN",
        )

    def checkpoint(self) -> None:
        """Write a checkpoint, if all is finite."""
        self.check()
        write_checkpoint(self.trainer)

    def window(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, so that the next log line is about the same steps."""
        if not self.generator_losses:
            return {}
        rows = torch.stack([torch.stack(statistics) for statistics in self.statistics])
        return {"statistics": rows, "generator_losses": torch.stack(self.generator_losses)}

    def set_window(self, window: Mapping[str, Tensor]) -> None:
        """The inverse of `window`."""
        device = self.trainer.device
        self.statistics = []
        self.generator_losses = []
        if window:
            rows = window["statistics"].to(device).unbind()
            self.statistics = [DiscriminatorStatistics(*row.unbind()) for row in rows]
            self.generator_losses = list(window["generator_losses"].to(device).unbind())

    def log(self) -> None:
        """Write one log line."""
        self.check()
        trainer = self.trainer
        assert self.logits is not None
        table = torch.stack([torch.stack(statistics) for statistics in self.statistics]).mean(0)
        means = dict(zip(DiscriminatorStatistics._fields, table.unbind(), strict=True))
        gradients = [part.grad for part in trainer._generator_parameters if part.grad is not None]
        found = {
            "discriminator_loss": means["loss"],
            "generator_loss": torch.stack(self.generator_losses).mean(),
            **{name: means[name] for name in MEANS},
            "probability_real_max": self.logits[0].max().sigmoid(),
            "generator_gradient_norm": torch.stack([gradient.norm() for gradient in gradients]).norm(),
        }
        numbers = torch.stack([value.float() for value in found.values()]).tolist()
        values = dict(zip(found, numbers, strict=True))
        values["real_target"] = float(trainer.targets[0])
        values["fake_target"] = trainer.targets[1]
        values["learning_rate"] = float(trainer.generator_optimizer.param_groups[0]["lr"])
        _append(trainer.history, trainer.step, values)
        now = time.perf_counter()
        speed = {"steps_per_second": len(self.generator_losses) / max(now - self._since, 1e-9)}
        self._tell("gan", values | speed)
        if trainer.verbose:
            shown = ("discriminator_loss", "generator_loss", "probability_real", "probability_fake")
            print(f"step {trainer.step}: " + ", ".join(f"{name} {values[name]:.4f}" for name in shown))
        self.statistics.clear()
        self.generator_losses.clear()
        self._since = time.perf_counter()

    def evaluate(self) -> None:
        """Measure samples, and show them in TensorBoard."""
        trainer = self.trainer
        before = time.perf_counter()
        self._evaluated_step = trainer.step
        if trainer.evaluate is None and self._writer is None:
            return
        with isolated_rng(trainer.seed % 2**32):
            samples = trainer.sample(trainer.evaluation_samples)
            if trainer.evaluate is not None:
                values = {name: float(value) for name, value in trainer.evaluate(samples).items()}
                _append(trainer.evaluations, trainer.step, values)
                self._tell("eval", values)
            if self._writer is not None:
                self._show(samples)
        self._since += time.perf_counter() - before  # not the training's time

    def _tell(self, prefix: str, values: Mapping[str, float]) -> None:
        step = self.trainer.step
        named = {f"{prefix}/{name}": value for name, value in values.items()}
        if self._writer is not None:
            for name, value in named.items():
                self._writer.add_scalar(name, value, step)
        if self._on_log is not None:
            self._on_log(step, named)

    def _show(self, samples: Tensor) -> None:
        step = self.trainer.step
        if self.logits is not None:
            for name, logits in zip(("real", "fake"), self.logits, strict=True):
                self._writer.add_histogram(f"gan/logits_{name}", logits.float().cpu(), step)
        assert self.trainer.data is not None
        if samples.ndim == 4 and samples.shape[1] in (1, 3):
            self._writer.add_image("eval/samples", image_grid(samples[:DRAWN_IMAGES]).numpy(), step)
        elif samples.ndim == 2 and samples.shape[1] == 2:
            figure = draw_points(samples, self.trainer.data.example(len(samples)))
            self._writer.add_figure("eval/samples", figure, step, close=False)
        else:
            self._writer.add_histogram("eval/samples", samples.float().cpu(), step)


def _append(table: dict[str, list[float]], step: int, values: Mapping[str, float]) -> None:
    for name, value in {"step": float(step), **values}.items():
        table.setdefault(name, []).append(value)
