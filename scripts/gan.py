"""Train a GAN with one-sided smoothing on a ready case, and write the networks, report and logs.

rlsmooth gan --case ring --real-target 0.9 --seed 0
rlsmooth gan --case digits --steps 3000 --ema-decay 0.99
rlsmooth gan --resume logs/gan/ring_1
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from rlsmooth.checks import check_positive_int
from rlsmooth.scripts.arguments import RunArgs, number_or_word, resumed
from rlsmooth.scripts.command import run_command

if TYPE_CHECKING:
    from rlsmooth.scripts.training_run import TrainingRun
    from rlsmooth.training import GANCase, GANTrainer

alias = tyro.conf.arg

LOG_LINES = 100
SHOWN_POINTS = 2_500
SHOWN_IMAGES = 100


@dataclasses.dataclass(frozen=True)
class Args(RunArgs):
    """Train a GAN on a density of known modes or on images of digits."""

    log_folder: Annotated[Path, alias(aliases=["-f"])] = Path("logs")
    """The run goes to <log folder>/gan/<case>_<n>/."""
    tensorboard_log: Annotated[Path | None, alias(aliases=["-tb"])] = None
    """Where TensorBoard's files go, as <tensorboard log>/<case>_<n>/. Default: to the run's folder."""

    case: Literal["ring", "grid", "digits"] = "ring"
    """8 Gaussians on a circle or 25 on a grid, as in PacGAN; or scikit-learn's digits (extra: datasets)."""
    hidden: tuple[int, ...] = (128, 128)
    """Ring and grid: the sizes of both networks' hidden layers."""
    image_size: int = 8
    """Digits: the side that the images are enlarged to, a power of 2."""
    width: int = 32
    """Digits: the channels of the convolutions next to the image; twice as many each layer further in."""

    real_target: str = "0.9"
    """What the discriminator is trained towards on real samples: a number, or lin_0.9 for one that rises to 1."""
    fake_target: float = 0.0
    """What it is trained towards on fakes. Above 0 the generator learns least where it should most."""
    generator_loss: Literal["non_saturating", "saturating"] = "non_saturating"
    """The generator minimises -log D, or log(1 - D)."""

    steps: Annotated[int, alias(aliases=["-n"])] = 5_000
    """How many updates of the generator."""
    discriminator_updates: int = 1
    """How many of the discriminator for each of them."""
    batch_size: int = 128
    """How many real samples, and how many fakes, are in an update."""
    learning_rate: str = "lin_1e-3"
    """Adam's step size: a number, or lin_1e-3 for one that falls to 0."""
    discriminator_learning_rate: str | None = None
    """That of the discriminator. Default: the same."""
    beta1: float = 0.5
    """Adam's first beta."""
    ema_decay: float | None = None
    """Sample from an average of the generator's parameters with this decay, such as 0.99."""
    max_grad_norm: float | None = None
    """Clip both gradients' norms to this."""

    eval_freq: int = 500
    """Measure samples each time that so many steps are done, and at the end; -1: only at the end."""
    eval_samples: int = 2_500
    """How many."""
    checkpoint_freq: Annotated[int, alias(aliases=["--save-freq"])] = 1_000
    """Write a checkpoint each time that so many steps are done; -1: none."""
    seed: int = 0
    """Decides points, initial weights, noise and the order of the data."""


def main(args: Args) -> Path:
    """Train, or resume training, and return the run's folder; raise ValueError for an argument that can't be used."""
    args = resumed(args, "gan")
    # Imported here: options can be listed, and a wrong one reported, without waiting for torch.
    from rlsmooth.scripts.environment import check_seed, limit_threads
    from rlsmooth.scripts.training_run import TrainingRun
    from rlsmooth.training import checkpoint_steps, gan_case

    limit_threads(args.num_threads)
    check_seed(args.seed)
    steps = check_positive_int("steps", args.steps)
    for name, value in (("eval_freq", args.eval_freq), ("checkpoint_freq", args.checkpoint_freq)):
        if value != -1:
            check_positive_int(name, value)
    case = gan_case(args.case, seed=args.seed, hidden=args.hidden, image_size=args.image_size, width=args.width)
    with TrainingRun("gan", args, args.case) as run:
        trainer = make_trainer(args, case, run)
        last_step = max(checkpoint_steps(run.checkpoints), default=0) if args.resume is not None else 0
        run.begin(
            f"Training on {trainer.device.type}",
            f"step {last_step}" if last_step else "",
            resume_from="checkpoint" if args.checkpoint_freq > 0 else "",
        )
        metrics = run.metrics_file(last_step or None)

        def write(step: int, values: Mapping[str, float]) -> None:
            metrics.write(dict(values), {}, step)

        started = time.perf_counter()
        trainer.train(
            steps,
            resume=args.resume is not None and trainer.checkpoint_folder is not None,
            log_every=max(1, steps // LOG_LINES),
            on_log=write,
            progress_bar=run.shows_bar,
        )
        print(f"Trained in {time.perf_counter() - started:.1f} s.")
        trainer.save(run.folder / "gan.zip")
        return run.finish("Networks, report and logs", **results(run, trainer, case, args.seed))


def make_trainer(args: Args, case: GANCase, run: TrainingRun) -> GANTrainer:
    """The trainer that the arguments describe."""
    from rlsmooth.scripts.environment import check_device
    from rlsmooth.training import GANTrainer

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
        tensorboard_log=run.events(),
        verbose=args.verbose,
        checkpoint_folder=None if args.checkpoint_freq < 0 else run.checkpoints,
        checkpoint_every=max(1, args.checkpoint_freq),
    )


def results(run: TrainingRun, trainer: GANTrainer, case: GANCase, seed: int) -> dict[str, Any]:
    """The entries of the report, with samples and data to show."""
    count = SHOWN_POINTS if case.mixture is not None else SHOWN_IMAGES
    samples, real = trainer.sample(count, seed=seed).cpu(), case.data[:count]
    last = {name: values[-1] for name, values in {**trainer.history, **trainer.evaluations}.items()}
    return {
        "curves": run.curves(),
        "summary": {name: value for name, value in last.items() if value == value},  # JSON has no NaN
        "num_modes": None if case.mixture is None else len(case.mixture.centres),
        "samples": samples.double().mul(1e4).round().div(1e4).tolist(),
        "real": real.double().mul(1e4).round().div(1e4).tolist(),
    }


if __name__ == "__main__":
    sys.exit(run_command("gan", Args, main))
