"""What `rlsmooth gan` does: a ready case in, trained networks, logs and a report out."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rlsmooth.checks import check_positive_int, check_writable_folder
from rlsmooth.scripts.bc_training import number_or_word
from rlsmooth.scripts.environment import check_device, check_seed, limit_threads
from rlsmooth.scripts.figures.kinds import new_report, publish_report
from rlsmooth.scripts.metrics_file import MetricsFile, read_metrics
from rlsmooth.scripts.reports import RunReport
from rlsmooth.scripts.run_folder import new_run_folder, plain, write_settings
from rlsmooth.training import GANCase, GANTrainer, checkpoint_steps, gan_case

if TYPE_CHECKING:
    from rlsmooth.scripts.gan import Args

__all__ = ["train"]

LOG_LINES = 100
SHOWN_POINTS = 2_500
SHOWN_IMAGES = 100


def train(args: Args) -> Path:
    """Train, or go on with training, and return the run's folder; see `scripts/gan.py`."""
    limit_threads(args.num_threads)
    check_seed(args.seed)
    steps = check_positive_int("steps", args.steps)
    for name, value in (("eval_freq", args.eval_freq), ("checkpoint_freq", args.checkpoint_freq)):
        if value != -1:
            check_positive_int(name, value)
    case = gan_case(args.case, seed=args.seed, hidden=args.hidden, image_size=args.image_size, width=args.width)
    folder = args.resume or new_run_folder(args.log_folder, "gan", args.case)
    checkpoints = folder / "checkpoints"
    try:
        trainer = make_trainer(args, case, folder)
        if args.resume is None:
            write_settings(folder, "gan", args)
    except BaseException:
        if args.resume is None:
            shutil.rmtree(folder)  # made a moment ago, and nobody's work is in it
        raise
    last_step = max(checkpoint_steps(checkpoints), default=0) if args.resume is not None else 0
    going_on = f", from step {last_step}" if last_step else ""
    print(f"Training on {trainer.device.type} in {folder}{going_on}", flush=True)
    metrics = MetricsFile(folder / "metrics.csv", last_step or None)

    def write(step: int, values: Mapping[str, float]) -> None:
        metrics.write(dict(values), {}, step)

    started = time.perf_counter()
    try:
        trainer.train(
            steps,
            resume=args.resume is not None and trainer.checkpoint_folder is not None,
            log_every=max(1, steps // LOG_LINES),
            on_log=write,
            progress_bar=args.progress or sys.stderr.isatty(),
        )
    except KeyboardInterrupt:
        if args.checkpoint_freq > 0:
            print(f"\nTo go on from the last checkpoint: rlsmooth gan --resume {shlex.quote(str(folder))}")
        raise
    finally:
        metrics.close()
    print(f"Trained in {time.perf_counter() - started:.1f} s.")
    trainer.save(folder / "gan.zip")
    report = make_report(args, folder, trainer, case)
    publish_report(folder, report)
    events = shlex.quote(str(args.tensorboard_log or folder))
    print(f"Networks, report and logs are in {folder}. Watch them: tensorboard --logdir {events}")
    return folder


def make_trainer(args: Args, case: GANCase, folder: Path) -> GANTrainer:
    """The trainer that the arguments describe."""
    events = folder
    if args.tensorboard_log is not None:
        events = check_writable_folder("tensorboard_log", args.tensorboard_log / folder.name)
    second = args.discriminator_learning_rate
    return GANTrainer(
        case.make_generator,
        case.make_discriminator,
        case.data,
        latent_size=case.latent_size,
        generator_loss=args.generator_loss,
        real_target=number_or_word(args.real_target),
        fake_target=args.fake_target,
        learning_rate=number_or_word(args.learning_rate),
        discriminator_learning_rate=None if second is None else number_or_word(second),
        betas=(args.beta1, 0.999),
        batch_size=args.batch_size,
        discriminator_updates=args.discriminator_updates,
        ema_decay=args.ema_decay,
        max_grad_norm=args.max_grad_norm,
        evaluate=case.evaluate,
        evaluate_every=None if args.eval_freq < 0 else args.eval_freq,
        evaluation_samples=args.eval_samples,
        seed=args.seed,
        device=check_device(args.device),
        tensorboard_log=events,
        verbose=args.verbose,
        checkpoint_folder=None if args.checkpoint_freq < 0 else folder / "checkpoints",
        checkpoint_every=max(1, args.checkpoint_freq),
    )


def make_report(args: Args, folder: Path, trainer: GANTrainer, case: GANCase) -> RunReport:
    """The run in numbers, with samples and data to show."""
    count = SHOWN_POINTS if case.mixture is not None else SHOWN_IMAGES
    samples, real = trainer.sample(count, seed=args.seed).cpu(), case.data[:count]
    last = {name: values[-1] for name, values in {**trainer.history, **trainer.evaluations}.items()}
    return new_report(
        "gan",
        name=folder.name,
        settings=plain(dataclasses.asdict(args)),
        curves=read_metrics(folder / "metrics.csv"),
        summary={name: value for name, value in last.items() if value == value},  # JSON has no NaN
        num_modes=None if case.mixture is None else len(case.mixture.centres),
        samples=samples.double().mul(1e4).round().div(1e4).tolist(),
        real=real.double().mul(1e4).round().div(1e4).tolist(),
    )
