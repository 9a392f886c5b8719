"""`GANTrainer`: a GAN with one-sided smoothing, whose discriminator takes the same step as that of GAIL and AIRL.

`history` has a number for each log line, and TensorBoard the same under `gan/`: of the steps since the last line the
means `discriminator_loss`, `generator_loss`, `accuracy`, `accuracy_real`, `accuracy_fake`, `entropy` (nats),
`probability_real` (D on real samples) and `probability_fake`; of the last step `probability_real_max` (the largest D on
a real sample), `generator_gradient_norm` (after clipping), `real_target`, `fake_target` and `learning_rate`. Accuracies
are on hard labels. `evaluations` has what `evaluate` gave, TensorBoard the same under `eval/`, with histograms of the
logits of real and fake samples and a figure of samples: images, or points beside the data's.

Logging and evaluation do not touch the random generators that training draws from, and nothing waits for the device
between log lines.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, TypedDict, final, get_type_hints

import torch
from torch import Tensor, nn

from rlsmooth.checks import check_choice, check_in_range, check_optional_folder, check_positive_int
from rlsmooth.losses import binary_cross_entropy
from rlsmooth.schedules import LearningRate, ScheduleLike, as_schedule, value_at
from rlsmooth.training.checkpoint import Checkpoint, decode_history, load_module, load_optimizer, optimizer_to_tensors
from rlsmooth.training.classifier_model import as_device, average_into, model_dtype
from rlsmooth.training.discriminator import DiscriminatorStatistics, check_targets, discriminator_step
from rlsmooth.training.divergence import FiniteWatch, last_interval
from rlsmooth.training.flat import clear_gradients, take_step
from rlsmooth.training.gan_cases import draw_points, image_grid
from rlsmooth.training.gan_data import RealData, RealSamples
from rlsmooth.training.run import (
    EventLog,
    OnLog,
    Progress,
    RunFolder,
    Stopwatch,
    append_values,
    check_folder_given,
    check_given,
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
from rlsmooth.training.safe_file import SafeFileError, read_safe_file, with_zip_suffix, write_safe_file
from rlsmooth.training.seeding import (
    check_trains_on_one,
    few_threads,
    has_batch_norm,
    isolated_rng,
    rng_state,
    set_rng_state,
)
from rlsmooth.untrusted import Count, Positive, Within, decode, refused

GeneratorLoss: TypeAlias = Literal["non_saturating", "saturating"]
Evaluate: TypeAlias = Callable[[Tensor], Mapping[str, float | Tensor]]

GENERATOR_LOSSES = ("non_saturating", "saturating")
SAMPLED_AT_ONCE = 1024
DRAWN_IMAGES = 64
MEANS = tuple(name for name in DiscriminatorStatistics._fields if not name.startswith(("loss", "share")))
SHOWN = ("discriminator_loss", "generator_loss", "probability_real", "probability_fake")

FORMAT_NAME = "rlsmooth-gan"
FORMAT_VERSION = 1


class GANCheckpoint(TypedDict):
    """What a checkpoint holds besides networks, optimisers and history."""

    arguments: dict[str, Any]
    step: Count
    start: Count
    end: Count
    fingerprint: str


class GANArguments(TypedDict):
    """The constructor's arguments that a file holds; a function is a word there."""

    latent_size: Positive | list[Positive]
    generator_loss: GeneratorLoss
    real_target: Annotated[float, Within(0, 1)] | str
    fake_target: Annotated[float, Within(0, 1)]
    learning_rate: Annotated[float, Within(0)] | str
    discriminator_learning_rate: Annotated[float, Within(0)] | str | None
    betas: tuple[Annotated[float, Within(0, 1)], Annotated[float, Within(0, 1)]]
    batch_size: Positive
    discriminator_updates: Positive
    ema_decay: Annotated[float, Within(0, 1)] | None
    max_grad_norm: Annotated[float, Within(0)] | None
    evaluate_every: Positive | None
    evaluation_samples: Positive
    seed: Count
    checkpoint_every: Positive


ARGUMENTS = tuple(get_type_hints(GANArguments))
"""In a file and in a checkpoint: what a resumed run must have as it was."""
CALLABLES = ("real_target", "learning_rate", "discriminator_learning_rate")
IS_FUNCTION = "function"
PLACEHOLDERS: dict[str, Any] = {"real_target": 1.0, "learning_rate": 2e-4, "discriminator_learning_rate": None}
"""For functions that a file could not hold; `train` refuses to start."""


def generator_loss(fake_logits: Tensor, kind: GeneratorLoss = "non_saturating") -> Tensor:
    """The loss that the generator makes small, in nats; it knows no smoothing.

    `"non_saturating"`: `-log D`, the cross-entropy with "real". At the optimal discriminator its gradient is the same
    for every one-sided target. `"saturating"`: `log(1 - D)`, the minimax game itself, less its smoothing: its gradient
    vanishes where the discriminator is sure, and is scaled there by `a / ((1 - a) r + 1)` for a real target `a`, with
    `r = p_real / p_fake` (Goodfellow et al. 2014).

    Args:
        fake_logits: `[B]` or any shape, high = real.
        kind: `"non_saturating"` or `"saturating"`.

    Raises:
        ValueError: another kind.

    Examples:
        >>> generator_loss(torch.zeros(3)), generator_loss(torch.zeros(3), "saturating")
        (tensor(0.6931), tensor(-0.6931))
    """
    check_choice("kind", kind, GENERATOR_LOSSES)
    if kind == "non_saturating":
        return binary_cross_entropy(fake_logits, torch.ones_like(fake_logits))
    return -binary_cross_entropy(fake_logits, torch.zeros_like(fake_logits))


@final
class GANTrainer:
    """Train a generator against a discriminator, with a target for real samples that keeps the latter from certainty.

        discriminator: (CE(real_target, D(real)) + CE(fake_target, D(G(noise)))) / 2
        generator:     -log D(G(noise))                                              (see `generator_loss`)

    One-sided smoothing (Salimans et al. 2016) is `real_target=0.9`. One step is `discriminator_updates` updates of the
    discriminator, each on a real minibatch of its own, and one of the generator; all by Adam. Real and fake samples go
    through the discriminator apart, which matters to batch normalisation. A seeded run repeats bit for bit; training
    draws from random generators of its own.

    Args:
        generator: noise `[B, *latent_size]` to samples like the data's; a module, which is trained in place, or a
            function without arguments that builds one, whose initial weights the seed then decides.
        discriminator: samples to logits, high = real, `[B]`, `[B, 1]` or any other shape; a module or a function that
            builds one.
        data: floating-point tensor `[N, ...]`, or a function of a number `n` that draws `[n, ...]`; from torch's,
            numpy's or Python's global generator, or a resumed run will not be the same. None: to sample only.
        latent_size: of one sample's noise, which is standard normal: a number or a shape.
        generator_loss: `"non_saturating"` or `"saturating"`, the `kind` of the function `generator_loss`.
        real_target: the target of real samples: a number, `"lin_0.9"` (a smoothing of 0.1 that falls to 0, so that the
            target rises to 1), or a function of the progress remaining (1 to 0).
        fake_target: the target of fake samples; above 0 warns: the generator then learns least where it should most.
        learning_rate: a number, `"lin_2e-4"` (down to 0), or a function of the progress remaining.
        discriminator_learning_rate: None: the same.
        betas: of Adam.
        batch_size: real samples and fake samples of an update.
        discriminator_updates: for one of the generator.
        ema_decay: keep an average of the generator's parameters and of BatchNorm's running statistics, which `sample`
            then uses: after step t, `d · average + (1 - d) · now` with `d = min(ema_decay, (1 + t) / (10 + t))`. None:
            no average.
        max_grad_norm: to which either gradient's norm is clipped; None: not.
        evaluate: a function of samples `[evaluation_samples, ...]` that gives numbers by name.
        evaluate_every: steps from one evaluation to the next, with figures of samples and histograms of logits for
            TensorBoard; None: at the end only.
        evaluation_samples: the same noise each time.
        seed: of the noise, the order of the data, dropout, evaluations; None: drawn from torch's generator.
        device: `"auto"` is the GPU where there is one.
        tensorboard_log: folder for TensorBoard's files; None: none.
        verbose: 1 prints the log lines.
        checkpoint_folder: where checkpoints go that `train(..., resume=True)` resumes from; None: none are written.
        checkpoint_every: steps from one checkpoint to the next.

    Attributes:
        generator, discriminator: the modules.
        average: the averaged generator, or None.
        targets: of real and fake samples, in force.
        logits: of the last discriminator update, real and fake; None before the first.
        history: by name one number a log line, `"step"` among them; see the module.
        evaluations: the same of what `evaluate` gave.

    Raises:
        TypeError: an argument of another kind.
        ValueError: a value outside its range, a generator or discriminator that does not fit the data.

    Examples:
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
        real_target: ScheduleLike = 1.0,
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
        check_choice("generator_loss", generator_loss, GENERATOR_LOSSES)
        self.latent_size = _as_shape("latent_size", latent_size)
        self.generator_loss: GeneratorLoss = generator_loss
        self.real_target = real_target
        first_target = value_at("real_target", real_target, 1.0, low=0.0, high=1.0, end=1.0)
        self.targets = check_targets(first_target, fake_target, stacklevel=3)
        self.fake_target = self.targets[1]
        self.learning_rate = learning_rate
        self.discriminator_learning_rate = discriminator_learning_rate
        self._rate_at = self._discriminator_rate_at = as_schedule(learning_rate)
        if discriminator_learning_rate is not None:
            self._discriminator_rate_at = as_schedule(discriminator_learning_rate, "discriminator_learning_rate")
        first_beta, second_beta = betas
        self.betas = (
            check_in_range("betas[0]", first_beta, 0.0, 1.0, high_open=True),
            check_in_range("betas[1]", second_beta, 0.0, 1.0, high_open=True),
        )
        self.batch_size = check_positive_int("batch_size", batch_size)
        self.discriminator_updates = check_positive_int("discriminator_updates", discriminator_updates)
        self.ema_decay = _optional("ema_decay", ema_decay, 0.0, 1.0)
        self.max_grad_norm = _optional("max_grad_norm", max_grad_norm, 0.0)
        self.evaluate = evaluate
        self.evaluate_every = None if evaluate_every is None else check_positive_int("evaluate_every", evaluate_every)
        self.evaluation_samples = check_positive_int("evaluation_samples", evaluation_samples)
        self.seed = int(torch.randint(2**31, ())) if seed is None else check_positive_int("seed", seed, minimum=0)
        self.device = as_device(device)
        self.tensorboard_log = check_optional_folder("tensorboard_log", tensorboard_log)
        self.verbose = verbose
        self.checkpoint_folder = check_optional_folder("checkpoint_folder", checkpoint_folder)
        self.checkpoint_every = check_positive_int("checkpoint_every", checkpoint_every)
        self._build(generator, discriminator, data)
        self.history: dict[str, list[float]] = {}
        self.evaluations: dict[str, list[float]] = {}
        self.missing: tuple[str, ...] = ()

    def _build(
        self,
        generator: nn.Module | Callable[[], nn.Module],
        discriminator: nn.Module | Callable[[], nn.Module],
        data: RealData | None,
    ) -> None:
        """Set the networks, the data, the optimisers, and where a run stands."""
        with isolated_rng(self.seed % 2**32):
            self.generator = _as_module("generator", generator).to(self.device)
            self.discriminator = _as_module("discriminator", discriminator).to(self.device)
        self.average: nn.Module | None = None
        if self.ema_decay is not None:
            self.average = copy.deepcopy(self.generator).requires_grad_(False).eval()
        self.data: RealSamples | None = None
        if data is not None:
            self.data = RealSamples(data, self.batch_size, seed=self.seed, device=self.device)
            _check_fit(self.generator, self.discriminator, self.data, self.latent_size, self.seed)
        self.generator_optimizer = _make_optimizer(self.generator, self._rate_at(1.0), self.betas)
        self.discriminator_optimizer = _make_optimizer(self.discriminator, self._discriminator_rate_at(1.0), self.betas)
        self._generator_parameters = [part for part in self.generator.parameters() if part.requires_grad]
        with isolated_rng((self.seed + 1) % 2**32):
            self._rng = rng_state()
        self._progress = Progress()
        self._watch = FiniteWatch(
            self.generator, self.discriminator, losses_per_step=self.discriminator_updates + 1, model="GAN"
        )
        # Of the steps since the last log line, on the device.
        self._statistics: list[DiscriminatorStatistics] = []
        self._generator_losses: list[Tensor] = []
        self._earlier: tuple[list[DiscriminatorStatistics], list[Tensor]] = ([], [])  # of the last log line
        self._evaluated_step = -1
        self._stopwatch = Stopwatch()
        self.logits: tuple[Tensor, Tensor] | None = None

    # ---- training

    @property
    def step(self) -> int:
        """Steps done, over all calls of `train`."""
        return self._progress.step

    @property
    def progress(self) -> float:
        """The share of the run that remains before the next step: 1 at the start, 0 at the end."""
        return self._progress.remaining

    def train(
        self,
        total_steps: int,
        *,
        resume: bool = False,
        callback: Callable[[GANTrainer], object] | None = None,
        log_every: int = 100,
        on_log: OnLog | None = None,
        progress_bar: bool = False,
    ) -> Self:
        """Train for `total_steps` steps; a second call trains on, with schedules of its own.

        Args:
            total_steps: of this call.
            resume: resume from the last good checkpoint of a call that was killed, with the same arguments and total.
                At the end all parameters equal those of a run that was never cut off, bit for bit (on the CPU). Where
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
        is_resumed = self._plan(total_steps, resume)
        self._evaluated_step = int(self.evaluations["step"][-1]) if self.evaluations else -1
        done = self.step - self._progress.start
        with isolated_rng(), few_threads(self.generator, self.discriminator, batch_size=self.batch_size):
            set_rng_state(self._rng)
            try:
                with (
                    safe_points(self.checkpoint_folder),
                    EventLog(
                        self.tensorboard_log,
                        resumed_at=self.step if is_resumed else None,
                        on_log=on_log,
                        bar=(total_steps, done, "step") if progress_bar else None,
                    ) as events,
                ):
                    if self.checkpoint_folder is not None and not is_resumed:
                        self._save_checkpoint()
                    self.generator.train()
                    self.discriminator.train()
                    self._stopwatch.restart()
                    self._train(events, callback, log_every)
                    self._finish(events)
            finally:
                self.generator.eval()
                self.discriminator.eval()
            self._rng = rng_state()
        return self

    def _plan(self, total_steps: int, resume: bool) -> bool:
        """Set where the run starts and ends; return whether it resumes one that was killed."""
        check_given("data", self.data, "GANTrainer")
        check_no_missing(self.missing)
        check_folder_given(self.checkpoint_folder, resume=resume)
        self._check_minibatches()
        folder, own = self.checkpoint_folder, self.step or None
        checkpoint = None if folder is None else self._run_folder(folder).begin(resume=resume, own_up_to=own)
        if checkpoint is None:
            self._statistics, self._generator_losses, self._earlier = [], [], ([], [])
        else:
            self._restore(checkpoint)
        self._watch.clear()
        self._progress.begin(total_steps, "total_steps", is_resumed=checkpoint is not None)
        return checkpoint is not None

    def _check_minibatches(self) -> None:
        """Raise ValueError if a network's BatchNorm can't train on the minibatches, which have one sample."""
        assert self.data is not None
        real = self.data.batch_size
        why = f"batch_size={self.batch_size} makes minibatches of one sample"
        if real == 1 and has_batch_norm(self.discriminator):
            one = self.data.example(1)
            check_trains_on_one(self.discriminator, lambda: self.discriminator(one), why)
        if 1 in (real, self.batch_size) and has_batch_norm(self.generator):
            check_trains_on_one(self.generator, lambda: self.generator(self.noise(1)), why)

    def _train(self, events: EventLog, callback: Callable[[GANTrainer], object] | None, log_every: int) -> None:
        """The loop: updates of both sides, and what is due after each step."""
        progress = self._progress
        while not progress.is_over:
            set_learning_rate(self.generator_optimizer, self._rate_at(progress.remaining))
            set_learning_rate(self.discriminator_optimizer, self._discriminator_rate_at(progress.remaining))
            self.targets = (self._real_target_at(progress.remaining), self.fake_target)
            statistics = [self._update_discriminator(update) for update in range(self.discriminator_updates)]
            loss = self._update_generator()
            self._statistics += statistics
            self._generator_losses.append(loss)
            self._watch.add(*(update.loss for update in statistics), loss)
            progress.step += 1
            if self.average is not None:
                assert self.ema_decay is not None
                average_into(self.average, self.generator, min(self.ema_decay, (1 + self.step) / (10 + self.step)))
            continues = callback is None or callback(self) is not False
            events.advance()
            if self.step % log_every == 0:
                self._log(events)
            if self.evaluate_every is not None and self.step % self.evaluate_every == 0:
                self._evaluate(events)
            if not continues or progress.is_over:  # `_finish` logs before it saves: no later step fills a log line
                break
            stops = self.checkpoint_folder is not None and stop_requested()
            if stops or (self.checkpoint_folder is not None and self.step % self.checkpoint_every == 0):
                self._save_checkpoint()
            if stops:
                stop(f"A checkpoint of step {self.step:,} was written.")

    def _finish(self, events: EventLog) -> None:
        """The last log line, evaluation and checkpoint."""
        if self._generator_losses:
            self._log(events)
        if self._evaluated_step != self.step:
            self._evaluate(events)
        if self.checkpoint_folder is not None:
            self._save_checkpoint()

    def _real_target_at(self, progress: float) -> float:
        target = value_at("real_target", self.real_target, progress, low=0.0, high=1.0, end=1.0)
        if target <= self.fake_target:
            raise ValueError(
                f"real_target={target:g} at progress {progress:g} must be above fake_target={self.fake_target:g}."
            )
        return target

    def _update_discriminator(self, update: int) -> DiscriminatorStatistics:
        """One update on a real minibatch of its own and as many fakes."""
        assert self.data is not None
        real = self.data.batch(self.step * self.discriminator_updates + update)  # [B, ...]
        with torch.no_grad():
            fake = self.generator(self.noise(len(real)))  # [B, ...]
        real_logits, fake_logits = self.discriminator(real), self.discriminator(fake)
        self.logits = (real_logits.detach(), fake_logits.detach())
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
        clear_gradients(self.generator_optimizer)
        # Only the generator's: the discriminator's gradients would be computed for nothing.
        loss.backward(inputs=self._generator_parameters)  # type: ignore[no-untyped-call]
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._generator_parameters, self.max_grad_norm)
        take_step(self.generator_optimizer)
        return loss.detach()

    # ---- sampling

    def noise(self, count: int) -> Tensor:
        """Standard normal noise `[count, *latent_size]` from torch's generator, of the generator's type."""
        return torch.randn(count, *self.latent_size, device=self.device, dtype=model_dtype(self.generator))

    @torch.no_grad()
    def sample(self, count: int, *, seed: int | None = None, use_average: bool = True) -> Tensor:
        """Samples of the generator, which is in evaluation mode for that.

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
        with isolated_rng():
            one = self.noise(1)
        most = samples_at_once(lambda: module(one), self.batch_size, min(count, SAMPLED_AT_ONCE))
        samples = torch.cat([module(part) for size in sizes for part in torch.split(self.noise(size), most)])
        module.train(was_training)
        return samples

    # ---- log lines, evaluations, divergence

    def _log(self, events: EventLog) -> None:
        """Write one log line."""
        self._check_finite()
        assert self.logits is not None
        statistics = last_interval(self._earlier[0], self._statistics)  # a short interval at the end would jump
        table = torch.stack([torch.stack(update) for update in statistics]).mean(0)
        means = dict(zip(DiscriminatorStatistics._fields, table.unbind(), strict=True))
        gradients = [part.grad for part in self._generator_parameters if part.grad is not None]
        found = {
            "discriminator_loss": means["loss"],
            "generator_loss": torch.stack(last_interval(self._earlier[1], self._generator_losses)).mean(),
            **{name: means[name] for name in MEANS},
            "probability_real_max": self.logits[0].max().sigmoid(),
            "generator_gradient_norm": torch.stack([gradient.norm() for gradient in gradients]).norm(),
        }
        numbers = torch.stack([value.float() for value in found.values()]).tolist()
        values = dict(zip(found, numbers, strict=True))
        values["real_target"], values["fake_target"] = float(self.targets[0]), self.targets[1]
        values["learning_rate"] = learning_rate_of(self.generator_optimizer)
        append_values(self.history, {"step": float(self.step), **values})
        speed = {"steps_per_second": len(self._generator_losses) / self._stopwatch.seconds}
        events.write("gan", values | speed, self.step)
        if self.verbose:
            print(log_line(f"step {self.step}", values, SHOWN))
        self._watch.clear()
        self._earlier = self._statistics, self._generator_losses
        self._statistics, self._generator_losses = [], []
        self._stopwatch.restart()

    def _evaluate(self, events: EventLog) -> None:
        """Measure samples, and show them in TensorBoard."""
        self._evaluated_step = self.step
        if self.evaluate is None and events.writer is None:
            return
        with self._stopwatch.paused(), isolated_rng(self.seed % 2**32):
            samples = self.sample(self.evaluation_samples)
            if self.evaluate is not None:
                values = {name: float(value) for name, value in self.evaluate(samples).items()}
                append_values(self.evaluations, {"step": float(self.step), **values})
                events.write("eval", values, self.step)
            if events.writer is not None:
                self._show(events.writer, samples)

    def _show(self, writer: Any, samples: Tensor) -> None:
        if self.logits is not None:
            for name, logits in zip(("real", "fake"), self.logits, strict=True):
                writer.add_histogram(f"gan/logits_{name}", logits.float().cpu(), self.step)
        assert self.data is not None
        if samples.ndim == 4 and samples.shape[1] in (1, 3):
            writer.add_image("eval/samples", image_grid(samples[:DRAWN_IMAGES]).numpy(), self.step)
        elif samples.ndim == 2 and samples.shape[1] == 2:
            figure = draw_points(samples, self.data.example(len(samples)))
            writer.add_figure("eval/samples", figure, self.step, close=False)
        else:
            writer.add_histogram("eval/samples", samples.float().cpu(), self.step)

    def _check_finite(self) -> None:
        """Raise TrainingDivergedError unless all losses since the last log line and all parameters are finite."""
        assert self.data is not None
        self._watch.check(
            self.step,
            None if self.data.tensor is None else self._minibatch_of,
            rate=learning_rate_of(self.generator_optimizer),
            checkpoint_folder=self.checkpoint_folder,
        )

    def _minibatch_of(self, step: int) -> tuple[Tensor, list[Tensor]]:
        """The real samples that a step was trained on."""
        assert self.data is not None
        assert self.data.tensor is not None
        first = (step - 1) * self.discriminator_updates
        places = torch.cat([self.data.places(first + update) for update in range(self.discriminator_updates)])
        return places, [self.data.tensor[places.to(self.device)]]

    # ---- files

    def save(self, path: str | Path) -> Path:
        """Write both networks, their optimisers, the average, the arguments and the history; whole or not at all.

        Functions (`real_target`, `learning_rate`) can't be kept: to train on after `load`, pass them again.

        Args:
            path: `.zip` is added to a name without a suffix.

        Returns:
            The path written.

        Raises:
            ValueError: the folder is missing or can't be written to.
        """
        path = with_zip_suffix(path)
        config, tensors = self._state()
        write_safe_file(path, config, tensors=tensors, format_name=FORMAT_NAME, format_version=FORMAT_VERSION)
        return path

    @classmethod
    def load(
        cls,
        path: str | Path,
        generator: nn.Module | Callable[[], nn.Module],
        discriminator: nn.Module | Callable[[], nn.Module],
        data: RealData | None = None,
        *,
        device: torch.device | str = "auto",
        custom_objects: Mapping[str, Any] | None = None,
    ) -> Self:
        """Read a file that `save` wrote. Runs no code that the file could name: the networks are the caller's.

        Args:
            path: the file.
            generator: of the same shapes; its parameters are replaced.
            discriminator: of the same shapes; its parameters are replaced.
            data: to train on; sampling needs none.
            device: where the networks are moved; `"auto"`: CUDA where there is a GPU, else the CPU.
            custom_objects: arguments of `GANTrainer` in place of the file's; those that were functions at least.

        Raises:
            SafeFileError: the file is damaged or none of this kind.
            ValueError: networks of other shapes.
        """
        path = Path(path).expanduser()
        file = read_safe_file(path, format_name=FORMAT_NAME, format_version=FORMAT_VERSION)
        own = dict(custom_objects or {})
        with refused(path, SafeFileError):
            saved: Any = decode(GANArguments, file.config.get("arguments"), "arguments")
        missing = tuple(name for name in CALLABLES if saved[name] == IS_FUNCTION and name not in own)
        arguments = saved | {name: PLACEHOLDERS[name] for name in missing} | own
        arguments["latent_size"], arguments["betas"] = tuple(arguments["latent_size"]), tuple(arguments["betas"])
        with refused(path, SafeFileError, "Use another copy, or other arguments of load."):
            trainer = cls(generator, discriminator, data, device=device, **arguments)
        with refused(path, SafeFileError, problem="has malformed training state"):
            trainer._set_state(file.config, file.tensors, f"the file {str(path)!r}")
        trainer.missing = missing
        return trainer

    def _state(self) -> tuple[dict[str, Any], dict[str, Mapping[str, Tensor]]]:
        generator_state, generator_config = optimizer_to_tensors(self.generator_optimizer)
        discriminator_state, discriminator_config = optimizer_to_tensors(self.discriminator_optimizer)
        config = {
            "arguments": self._arguments(),
            "step": self.step,
            "history": self.history,
            "evaluations": self.evaluations,
            "generator_optimizer": generator_config,
            "discriminator_optimizer": discriminator_config,
        }
        tensors: dict[str, Mapping[str, Tensor]] = {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "average": {} if self.average is None else self.average.state_dict(),
            "generator_optimizer": generator_state,
            "discriminator_optimizer": discriminator_state,
        }
        return config, tensors

    def _set_state(self, config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], where: str) -> None:
        load_module("generator", self.generator, tensors["generator"], where)
        load_module("discriminator", self.discriminator, tensors["discriminator"], where)
        if self.average is not None:  # trained without one so far: it begins at the generator
            load_module("average", self.average, tensors["average"] or tensors["generator"], where)
        load_optimizer(self.generator_optimizer, tensors["generator_optimizer"], config["generator_optimizer"])
        load_optimizer(
            self.discriminator_optimizer, tensors["discriminator_optimizer"], config["discriminator_optimizer"]
        )
        self._progress.step = decode(Count, config["step"], "step")
        self.history = decode_history(config["history"], "history")
        self.evaluations = decode_history(config["evaluations"], "evaluations")
        if any(found and "step" not in found for found in (self.history, self.evaluations)):
            raise ValueError("history or evaluations lacks its steps")

    def _arguments(self) -> dict[str, Any]:
        """The constructor's arguments as JSON holds them."""
        found = {name: getattr(self, name) for name in ARGUMENTS}
        found |= {name: IS_FUNCTION for name in CALLABLES if callable(found[name])}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}

    def _run_folder(self, folder: Path) -> RunFolder:
        return RunFolder(folder, unit="step", resume="train(..., resume=True)")

    def _save_checkpoint(self) -> None:
        """Write all that changes during a run, if all is finite: a spoilt network must not replace a good one."""
        self._check_finite()
        assert self.checkpoint_folder is not None
        assert self.data is not None
        config, tensors = self._state()
        config |= {
            "start": self._progress.start,
            "end": self._progress.end,
            "fingerprint": self.data.fingerprint(),
        }
        window: dict[str, Tensor] = {}  # so that the next log line is about the same steps
        for prefix, (statistics, losses) in (
            ("", (self._statistics, self._generator_losses)),
            ("earlier_", self._earlier),
        ):
            if losses:
                window[f"{prefix}statistics"] = torch.stack([torch.stack(update) for update in statistics])
                window[f"{prefix}generator_losses"] = torch.stack(losses)
        self._run_folder(self.checkpoint_folder).save(
            self.step, config, tensors | {"window": window}, may_hold_nan=("window",)
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Bring the run to where a checkpoint was written."""
        assert self.checkpoint_folder is not None
        assert self.data is not None
        config, tensors, folder = checkpoint.decoded(GANCheckpoint), checkpoint.tensors, self.checkpoint_folder
        check_same_arguments(config["arguments"], self._arguments(), folder)
        check_given_again({"data": config["fingerprint"]}, {"data": self.data.fingerprint()}, folder)
        with checkpoint.refused():
            self._progress.start, self._progress.end = config["start"], config["end"]
            if not config["start"] <= config["step"] == checkpoint.step <= config["end"]:
                raise ValueError(f"start, step and end must ascend, and step be {checkpoint.step}")
            self._set_state(checkpoint.config, tensors, f"the run in {str(folder)!r}")
            self._rng = tensors["rng"]
            window = {name: kept.to(self.device) for name, kept in tensors["window"].items()}
            self._statistics, self._generator_losses = _window(window, "")
            self._earlier = _window(window, "earlier_")


def _window(saved: Mapping[str, Tensor], prefix: str) -> tuple[list[DiscriminatorStatistics], list[Tensor]]:
    """The statistics and losses of some steps, as a checkpoint holds them."""
    if f"{prefix}statistics" not in saved:
        return [], []
    statistics = [DiscriminatorStatistics(*row.unbind()) for row in saved[f"{prefix}statistics"].unbind()]
    return statistics, list(saved[f"{prefix}generator_losses"].unbind())


# ---- arguments, checked and built


def _as_shape(name: str, size: int | tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one sample's noise."""
    sizes = tuple(size) if isinstance(size, (tuple, list)) else (size,)
    return tuple(check_positive_int(name, one) for one in sizes)


def _optional(name: str, value: float | None, low: float, high: float = float("inf")) -> float | None:
    """None, or a number between the two."""
    return None if value is None else check_in_range(name, value, low, high, low_open=True, high_open=True)


def _as_module(name: str, given: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """The module, built if need be; TypeError if it is none, or has nothing to train."""
    module = given if isinstance(given, nn.Module) or not callable(given) else given()
    if not isinstance(module, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module or a function that builds one, got {type(module).__name__}.")
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise TypeError(f"{name} has no parameter to train.")
    return module


def _make_optimizer(module: nn.Module, rate: float, betas: tuple[float, float]) -> torch.optim.Adam:
    """Adam over what is to be trained, in one kernel where torch has it: small networks spend their time on calls."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    fused = all(part.is_floating_point() and part.device.type in ("cpu", "cuda") for part in parameters)
    return torch.optim.Adam(parameters, lr=rate, betas=betas, fused=fused)


def _check_fit(
    generator: nn.Module, discriminator: nn.Module, data: RealSamples, latent_size: tuple[int, ...], seed: int
) -> None:
    """Send two samples through both networks, in evaluation mode, and compare shapes and types."""
    modes = generator.training, discriminator.training
    generator.eval()
    discriminator.eval()
    try:
        with torch.no_grad(), isolated_rng(seed % 2**32):
            real = data.example(2)
            fake = generator(torch.randn(2, *latent_size, device=data.device, dtype=model_dtype(generator)))
            if fake.shape[1:] != real.shape[1:] or fake.dtype != real.dtype:
                raise ValueError(
                    f"generator gives samples {tuple(fake.shape[1:])} of {fake.dtype}, data has samples "
                    f"{tuple(real.shape[1:])} of {real.dtype}: they must be alike."
                )
            logits = discriminator(fake)
    except RuntimeError as error:
        raise ValueError(f"generator and discriminator can't be run on latent_size={latent_size}: {error}") from error
    finally:
        generator.train(modes[0])
        discriminator.train(modes[1])
    if logits.shape[:1] != (2,) or not logits.is_floating_point():
        raise ValueError(
            f"discriminator gives {logits.dtype} {tuple(logits.shape)} for two samples: it must give floating-point "
            "logits [2], [2, 1] or [2, ...]."
        )
