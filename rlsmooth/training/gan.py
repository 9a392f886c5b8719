"""A GAN trainer with one-sided smoothing: the discriminator's step is the one that GAIL and AIRL take."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self, TypeAlias, final

import torch
from torch import Tensor, nn

from rlsmooth.checks import check_choice, check_in_range, check_positive_int, check_writable_folder
from rlsmooth.schedules import LearningRate, as_schedule
from rlsmooth.training import gan_setup
from rlsmooth.training.classifier_model import as_device
from rlsmooth.training.discriminator import DiscriminatorStatistics, check_targets, discriminator_step
from rlsmooth.training.gan_data import RealData, RealRows
from rlsmooth.training.gan_files import SavedGAN, begin_checkpoints
from rlsmooth.training.gan_loss import KINDS, GeneratorLoss, generator_loss
from rlsmooth.training.gan_monitor import Monitor
from rlsmooth.training.gan_setup import TargetSchedule
from rlsmooth.training.seeding import isolated_rng, rng_state, set_rng_state

__all__ = ["GANTrainer"]

Evaluate: TypeAlias = Callable[[Tensor], Mapping[str, float | Tensor]]
SAMPLED_AT_ONCE = 1024


@final
class GANTrainer(SavedGAN):
    """Train a generator against a discriminator, with a target for real rows that keeps the latter from certainty.

        discriminator: (CE(real_target, D(real)) + CE(fake_target, D(G(noise)))) / 2
        generator:     -log D(G(noise))                                              (see `generator_loss`)

    One-sided smoothing (Salimans et al. 2016) is `real_target=0.9`. One step is `discriminator_updates` updates of the
    discriminator, each on real rows of its own, and one of the generator; all by Adam. Real and fake rows go through
    the discriminator apart, which matters to batch normalisation. A seeded run repeats bit for bit; training draws from
    random generators of its own.

    Args:
        generator: noise `[B, *latent_size]` to rows like the data's; a module, which is trained in place, or a function
            without arguments that builds one, whose initial weights the seed then decides.
        discriminator: rows to logits, high = real, `[B]`, `[B, 1]` or any other shape; likewise.
        data: floating-point tensor `[N, ...]`, or a function of a number `n` that draws `[n, ...]`; from torch's,
            numpy's or Python's global generator, or a resumed run will not be the same. None: to sample only.
        latent_size: of a row of noise, which is standard normal: a number or a shape.
        generator_loss: see the function of that name.
        real_target: what real rows are trained on: a number, `"lin_0.9"` (a smoothing of 0.1 that falls to 0, so that
            the target rises to 1), or a function of the progress remaining (1 to 0).
        fake_target: what fake rows are trained on; above 0 warns: the generator then learns least where it should most.
        learning_rate: a number, `"lin_2e-4"` (down to 0), or a function of the progress remaining.
        discriminator_learning_rate: None: the same.
        betas: of Adam.
        batch_size: real rows and fake rows of an update.
        discriminator_updates: for one of the generator.
        ema_decay: keep an average of the generator's parameters, which `sample` then uses: after step t,
            `d · average + (1 - d) · parameters` with `d = min(ema_decay, (1 + t) / (10 + t))`. None: no average.
        max_grad_norm: to which either gradient's norm is clipped; None: not.
        evaluate: a function of samples `[evaluation_samples, ...]` that gives numbers by name.
        evaluate_every: steps from one evaluation to the next, with pictures of samples and histograms of logits for
            TensorBoard; None: at the end only.
        evaluation_samples: the same noise each time.
        seed: of the noise, the order of the data, dropout, evaluations; None: drawn from torch's generator.
        device: `"auto"` is the GPU where there is one.
        tensorboard_log: folder for TensorBoard's files; None: none.
        verbose: 1 prints the log lines.
        checkpoint_folder: where checkpoints go that `train(..., resume=True)` goes on from; None: none are written.
        checkpoint_every: steps from one checkpoint to the next.

    Attributes:
        generator, discriminator: the modules.
        average: the averaged generator, or None.
        targets: of real and fake rows, in force.
        step: steps done.
        history: by name one number a log line, `"step"` among them; see `gan_monitor`.
        evaluations: the same of what `evaluate` gave.

    Raises:
        TypeError: an argument of another kind.
        ValueError: a value outside its range, a generator or discriminator that does not fit the data.

    Example:
        >>> data = torch.randn(256, 1) + 3
        >>> trainer = GANTrainer(nn.Linear(1, 1), nn.Linear(1, 1), data, latent_size=1, real_target=0.9, seed=0)
        >>> trainer.train(20).sample(5, seed=0).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        generator: nn.Module | Callable[[], nn.Module],
        discriminator: nn.Module | Callable[[], nn.Module],
        data: RealData | None,
        *,
        latent_size: int | tuple[int, ...],
        generator_loss: GeneratorLoss = "non_saturating",
        real_target: TargetSchedule = 1.0,
        fake_target: float = 0.0,
        learning_rate: LearningRate = 2e-4,
        discriminator_learning_rate: LearningRate | None = None,
        betas: tuple[float, float] = (0.5, 0.999),
        batch_size: int = 64,
        discriminator_updates: int = 1,
        ema_decay: float | None = None,
        max_grad_norm: float | None = None,
        evaluate: Evaluate | None = None,
        evaluate_every: int | None = None,
        evaluation_samples: int = 2500,
        seed: int | None = None,
        device: torch.device | str = "auto",
        tensorboard_log: str | Path | None = None,
        verbose: int = 0,
        checkpoint_folder: str | Path | None = None,
        checkpoint_every: int = 1000,
    ) -> None:
        check_choice("generator_loss", generator_loss, KINDS)
        self.latent_size = gan_setup.as_shape("latent_size", latent_size)
        self.generator_loss: GeneratorLoss = generator_loss
        self.real_target = real_target
        self._real_target_at = gan_setup.as_target_schedule(real_target)
        self.targets = check_targets(self._real_target_at(1.0), fake_target, stacklevel=3)
        self.fake_target = self.targets[1]
        self.learning_rate = learning_rate
        self.discriminator_learning_rate = discriminator_learning_rate
        self._rate_at = as_schedule(learning_rate)
        second = learning_rate if discriminator_learning_rate is None else discriminator_learning_rate
        self._discriminator_rate_at = as_schedule(second)
        first_beta, second_beta = betas
        self.betas = (
            check_in_range("betas[0]", first_beta, 0.0, 1.0, high_open=True),
            check_in_range("betas[1]", second_beta, 0.0, 1.0, high_open=True),
        )
        self.batch_size = check_positive_int("batch_size", batch_size)
        self.discriminator_updates = check_positive_int("discriminator_updates", discriminator_updates)
        self.ema_decay = gan_setup.optional("ema_decay", ema_decay, 0.0, 1.0)
        self.max_grad_norm = gan_setup.optional("max_grad_norm", max_grad_norm, 0.0)
        self.evaluate = evaluate
        self.evaluate_every = None if evaluate_every is None else check_positive_int("evaluate_every", evaluate_every)
        self.evaluation_samples = check_positive_int("evaluation_samples", evaluation_samples)
        self.seed = int(torch.randint(2**31, ())) if seed is None else check_positive_int("seed", seed, minimum=0)
        self.device = as_device(device)
        self.tensorboard_log = None
        if tensorboard_log is not None:
            self.tensorboard_log = check_writable_folder("tensorboard_log", tensorboard_log)
        self.verbose = verbose
        self.checkpoint_folder = None
        if checkpoint_folder is not None:
            self.checkpoint_folder = check_writable_folder("checkpoint_folder", checkpoint_folder)
        self.checkpoint_every = check_positive_int("checkpoint_every", checkpoint_every)

        with isolated_rng(self.seed % 2**32):
            self.generator = gan_setup.as_module("generator", generator).to(self.device)
            self.discriminator = gan_setup.as_module("discriminator", discriminator).to(self.device)
        self.average: nn.Module | None = None
        if self.ema_decay is not None:
            self.average = copy.deepcopy(self.generator).requires_grad_(False).eval()
        self.data: RealRows | None = None
        if data is not None:
            self.data = RealRows(data, self.batch_size, seed=self.seed, device=self.device)
            gan_setup.check_fit(self.generator, self.discriminator, self.data, self.latent_size, self.seed)
        self.generator_optimizer = gan_setup.make_optimizer(self.generator, self._rate_at(1.0), self.betas)
        self.discriminator_optimizer = gan_setup.make_optimizer(
            self.discriminator, self._discriminator_rate_at(1.0), self.betas
        )
        self._generator_parameters = [part for part in self.generator.parameters() if part.requires_grad]
        with isolated_rng((self.seed + 1) % 2**32):
            self._rng = rng_state()
        self.step = self._start = self._end = 0
        self.history: dict[str, list[float]] = {}
        self.evaluations: dict[str, list[float]] = {}
        self.missing: tuple[str, ...] = ()
        self.monitor = Monitor(self)

    def train(
        self,
        total_steps: int,
        *,
        resume: bool = False,
        callback: Callable[[GANTrainer], object] | None = None,
        log_every: int = 100,
        on_log: Callable[[int, Mapping[str, float]], object] | None = None,
        progress_bar: bool = False,
    ) -> Self:
        """Train for `total_steps` steps; a second call trains on, with schedules of its own.

        Args:
            total_steps: of this call.
            resume: go on from the last good checkpoint of a call that was killed, with the same arguments and total. At
                the end all parameters equal those of a run that was never cut off, bit for bit (on the CPU). Where
                there is no checkpoint yet, the run begins.
            callback: called with the trainer after each step; False ends the run.
            log_every: steps from one log line to the next; there is always one at the end.
            on_log: called with the step and the numbers of each log line and each evaluation.
            progress_bar: show one.

        Returns:
            The trainer itself.

        Raises:
            TypeError: a number is not whole.
            ValueError: there are no data; checkpoints of another run; a resumed run with other arguments.
            TrainingDivergedError: a loss or a parameter became NaN or infinite; no checkpoint is written then.
        """
        check_positive_int("total_steps", total_steps)
        check_positive_int("log_every", log_every)
        is_resumed = gan_setup.plan(self, total_steps, resume)
        with isolated_rng():
            set_rng_state(self._rng)
            self.monitor.start(log_every, on_log, progress_bar=progress_bar, is_resumed=is_resumed)
            try:
                if self.checkpoint_folder is not None and not is_resumed:
                    begin_checkpoints(self)
                self.generator.train()
                self.discriminator.train()
                self._train(callback)
                self.monitor.finish()
            finally:
                self.monitor.close()
                self.generator.eval()
                self.discriminator.eval()
            self._rng = rng_state()
        return self

    def _train(self, callback: Callable[[GANTrainer], object] | None) -> None:
        """The loop: updates of both sides, and what is due after each step."""
        monitor = self.monitor
        while self.step < self._end:
            gan_setup.set_rate(self.generator_optimizer, self._rate_at(self.progress))
            gan_setup.set_rate(self.discriminator_optimizer, self._discriminator_rate_at(self.progress))
            real_target = gan_setup.checked_target(self._real_target_at, self.progress, self.fake_target)
            self.targets = (real_target, self.fake_target)
            for update in range(self.discriminator_updates):
                monitor.statistics.append(self._update_discriminator(update))
            monitor.generator_losses.append(self._update_generator())
            self.step += 1
            if self.average is not None:
                self._update_average(self.average)
            goes_on = callback is None or callback(self) is not False
            monitor.after_step()
            if self.evaluate_every is not None and self.step % self.evaluate_every == 0:
                monitor.evaluate()
            if self.checkpoint_folder is not None and self.step % self.checkpoint_every == 0:
                monitor.checkpoint()
            if not goes_on:
                break

    def _update_discriminator(self, update: int) -> DiscriminatorStatistics:
        """One update on real rows of its own and as many fakes."""
        assert self.data is not None
        real = self.data.batch(self.step * self.discriminator_updates + update)  # [B, ...]
        with torch.no_grad():
            fake = self.generator(self.noise(len(real)))  # [B, ...]
        real_logits, fake_logits = self.discriminator(real), self.discriminator(fake)
        self.monitor.logits = (real_logits.detach(), fake_logits.detach())
        real_target, fake_target = self.targets
        return discriminator_step(
            self.discriminator_optimizer,
            real_logits,
            fake_logits,
            real_target=real_target,
            fake_target=fake_target,
            max_grad_norm=self.max_grad_norm,
        )

    def _update_generator(self) -> Tensor:
        """One update on fakes of its own; returns their loss, without a wait for it."""
        fake_logits = self.discriminator(self.generator(self.noise(self.batch_size)))
        loss = generator_loss(fake_logits, self.generator_loss)
        self.generator_optimizer.zero_grad(set_to_none=True)
        # Only the generator's: the discriminator's gradients would be computed for nothing.
        loss.backward(inputs=self._generator_parameters)  # type: ignore[no-untyped-call]
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._generator_parameters, self.max_grad_norm)
        self.generator_optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def _update_average(self, average: nn.Module) -> None:
        assert self.ema_decay is not None
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        for kept, now in zip(average.parameters(), self.generator.parameters(), strict=True):
            kept.lerp_(now, 1 - decay)
        for buffer, current in zip(average.buffers(), self.generator.buffers(), strict=True):
            buffer.copy_(current)  # of batch normalisation: averages already

    @property
    def progress(self) -> float:
        """What remains of the run before the next step: 1 at the start, 0 at the end."""
        return 1.0 - (self.step - self._start) / max(self._end - self._start, 1)

    def noise(self, count: int) -> Tensor:
        """Standard normal noise `[count, *latent_size]` from torch's generator."""
        return torch.randn(count, *self.latent_size, device=self.device)

    @torch.no_grad()
    def sample(self, count: int, *, seed: int | None = None, use_average: bool = True) -> Tensor:
        """Rows of the generator, which is in evaluation mode for that.

        Args:
            count: how many, 0 or more.
            seed: of the noise; None draws from torch's generator.
            use_average: take the averaged generator, where there is one.

        Returns:
            `[count, ...]`, on the device.

        Raises:
            TypeError: `count` is no whole number.
            ValueError: `count` is negative.
        """
        check_positive_int("count", count, minimum=0)
        if seed is not None:
            with isolated_rng(seed):
                return self.sample(count, use_average=use_average)
        module = self.average if use_average and self.average is not None else self.generator
        was_training = module.training
        module.eval()
        sizes = [min(SAMPLED_AT_ONCE, count - start) for start in range(0, count, SAMPLED_AT_ONCE)] or [0]
        rows = torch.cat([module(self.noise(size)) for size in sizes])
        module.train(was_training)
        return rows
