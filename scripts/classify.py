"""Train a classifier with smoothed targets, measure it on test data, and write classifier, report and logs.

rlsmooth classify --data digits --smoothing 0.1 --label-noise 0.2
rlsmooth classify --data olive --smoothing 0.2 --reference tree
rlsmooth classify --resume logs/classify/digits_1
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from rlsmooth.checks import check_positive_int
from rlsmooth.scripts.arguments import ClassificationArgs, ClassReference, alias, number_of, number_or_word, resumed
from rlsmooth.scripts.command import run_command
from rlsmooth.untrusted import open_regular, refused

if TYPE_CHECKING:
    from torch import Tensor

    from rlsmooth.data import LabelledData
    from rlsmooth.scripts.training_run import TrainingRun
    from rlsmooth.targets import Smoothing
    from rlsmooth.training import Classifier


@dataclasses.dataclass(frozen=True)
class Args(ClassificationArgs):
    """Train a classifier, with temperature scaling as the baseline beside it."""

    validation_fraction: float = 0.2
    """The share of the samples that are left for training to hold out: for temperature, early stopping and curves; 0:
    none."""
    smoothing: str = "0.1"
    """How much of the target leaves the label: a number, lin_0.1 for one that falls to 0, or none: the reference's
    whole distribution (tree and ordinal schemes)."""
    reference: ClassReference = "uniform"
    """Where it goes: to all classes alike, by the classes' shares (prior), to relatives (tree), to similar ones
    (kernel), or to neighbours of ordered classes by an ordinal scheme."""
    spread: Literal["all", "others"] = "all"
    """Whether the uniform reference includes the label."""
    decay: float = 1.0
    """Of tree, for each edge of the hierarchy, and of exponential: how fast the mass falls with the distance."""
    kernel: Path | None = None
    """With --reference kernel: an .npy of similarities [K, K]. Default: exp(-distance of the classes' means / the
    median one)."""
    mixup: float = 0.0
    """Mix pairs of samples and their targets, with a share from Beta(mixup, mixup); 0: off."""

    epochs: int = 50
    """How often to go through the samples."""
    early_stopping_patience: int | None = None
    """Stop after so many epochs without a lower validation loss, and keep the best parameters."""
    amp: bool = False
    """Forward passes of the training in bfloat16, for GPUs."""
    checkpoint_freq: Annotated[int, alias(aliases=["--save-freq"])] = 10
    """Write a checkpoint each time that so many epochs are done, and at the end; -1: none."""


class Split(NamedTuple):
    """The parts of a data set."""

    training: LabelledData
    validation: LabelledData | None
    test: LabelledData


def main(args: Args) -> Path:
    """Train, or resume training, and return the run's folder.

    Raises:
        ImportError: the data come with a package that is missing.
        ValueError: an argument is wrong, or names something that is not there or can't be written to.
    """
    args = resumed(args, "classify")
    # Imported here: options can be listed, and a wrong one reported, without waiting for torch.
    from rlsmooth.scripts.classification import check_numbers, data_name
    from rlsmooth.scripts.environment import check_device
    from rlsmooth.scripts.training_run import TrainingRun
    from rlsmooth.training.classifier_model import as_device

    check_numbers(args)
    if args.checkpoint_freq != -1:
        check_positive_int("checkpoint_freq", args.checkpoint_freq)
    check_device(args.device)
    split = load_data(args)
    smoothing = make_smoothing(args, split.training)
    with TrainingRun("classify", args, data_name(args.data)) as run:
        classifier = make_classifier(
            args,
            split.training,
            smoothing,
            checkpoint_folder=None if args.checkpoint_freq < 0 else run.checkpoints,
            checkpoint_every=max(1, args.checkpoint_freq),
            tensorboard_log=run.events(),
            progress_bar=run.shows_bar,
        )
        run.begin(
            f"Training on {as_device(args.device).type}", resume_from="checkpoint" if args.checkpoint_freq > 0 else ""
        )
        started = time.perf_counter()
        try:
            fit(classifier, split, resume=args.resume is not None)
        except (TypeError, ValueError):  # an argument is wrong, and nothing has been trained
            run.discard()
            raise
        print(f"Trained for {number_of(classifier.n_iter_, 'epoch')} in {time.perf_counter() - started:.1f} s.")
        classifier.save(run.folder / "classifier.zip")
        return run.finish("Classifier, report and logs", **results(run, classifier, smoothing, split))


def load_data(args: Args) -> Split:
    """Data to train on, with the label noise that is asked for, to hold out, and to test on."""
    from rlsmooth.scripts.classification import load_parts, with_noise

    rest, test = load_parts(args)
    held_out = args.validation_fraction != 0
    training, validation = rest.split(args.validation_fraction, args.seed) if held_out else (rest, None)
    count = 0 if validation is None else len(validation)
    print(f"Samples to train on: {len(training):,}; held out: {count:,}; test: {len(test):,}. {test.source}".strip())
    return Split(with_noise(args, training), validation, test)


def make_smoothing(args: Args, training: LabelledData) -> Smoothing:
    """The recipe that the arguments describe.

    Raises:
        ValueError: it can't be used, or not with these data.
    """
    import torch

    from rlsmooth.targets import Smoothing, Tree

    if args.kernel is not None and args.reference != "kernel":
        raise ValueError(f"--kernel is for --reference kernel, not for {args.reference}: leave it out.")
    reference: Any = args.reference
    if args.reference == "prior":
        reference = torch.from_numpy(training.class_counts() / len(training))
    elif args.reference == "kernel":
        reference = similarity_of_means(training) if args.kernel is None else read_kernel(args.kernel, training)
    elif args.reference == "tree":
        if training.hierarchy is None:
            raise ValueError(
                f"--reference tree needs classes with a hierarchy, and data={args.data!r} has none: use olive, "
                "rodents, or an .npz with one."
            )
        reference = Tree.from_nested(training.hierarchy, class_names=training.class_names)
    alpha = None if args.smoothing == "none" else number_or_word(args.smoothing)
    try:
        return Smoothing(alpha, reference, args.spread, decay=args.decay)
    except ValueError as error:
        raise ValueError(f"smoothing={args.smoothing!r} can't be used: {error}") from error


def similarity_of_means(training: LabelledData) -> Tensor:
    """How alike classes are: `exp(-d / median d)`, d between the classes' mean features, standardised; `[K, K]`.

    A class without a sample is as far from all as the farthest is.
    """
    import numpy as np
    import torch

    features, size = training.standardised().features.astype(np.float64), training.num_classes
    present = np.flatnonzero(training.class_counts())
    means = np.stack([features[training.labels == label].mean(axis=0) for label in present])
    gaps = np.linalg.norm(means[:, None] - means[None], axis=-1)
    distances = np.full((size, size), gaps.max())
    distances[np.ix_(present, present)] = gaps
    off_diagonal = gaps[~np.eye(len(present), dtype=bool)]
    unit = np.median(off_diagonal) if off_diagonal.any() else 1.0
    return torch.from_numpy(np.exp(-distances / unit))


def read_kernel(path: Path, training: LabelledData) -> Tensor:
    """The similarities of an .npy file.

    Raises:
        ValueError: it can't be read, or is for another number of classes.
    """
    import numpy as np
    import torch

    try:
        with refused(path, ValueError, "Name an .npy of numbers.", "can't be read"), open_regular(path) as file:
            kernel = np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"kernel={error}") from error
    size = training.num_classes
    if not isinstance(kernel, np.ndarray) or kernel.shape != (size, size) or kernel.dtype.kind not in "fiub":
        found = f"{kernel.dtype} {kernel.shape}" if isinstance(kernel, np.ndarray) else "several arrays"
        raise ValueError(f"kernel={str(path)!r} holds {found}: it must be numbers [{size}, {size}].")
    return torch.from_numpy(kernel.astype(np.float64))


def make_classifier(args: Args, training: LabelledData, smoothing: Smoothing, **outputs: Any) -> Classifier:
    """The classifier that the arguments describe; `fit` checks them. `outputs` are arguments too: what it writes."""
    from rlsmooth.scripts.classification import make_network, training_arguments
    from rlsmooth.training import Classifier

    return Classifier(
        make_network(args, training),
        smoothing=smoothing,
        mixup=args.mixup,
        max_epochs=check_positive_int("epochs", args.epochs),
        early_stopping_patience=args.early_stopping_patience,
        amp=args.amp,
        device=args.device,
        verbose=args.verbose,
        **outputs,
        **training_arguments(args),
    )


def fit(classifier: Classifier, split: Split, *, resume: bool, on_epoch: Callable[..., None] | None = None) -> None:
    """Train, from the last checkpoint if the run is resumed and has one; `on_epoch` gets the history so far."""
    import numpy as np

    validation = None if split.validation is None else (split.validation.features, split.validation.labels)
    classifier.fit(
        split.training.features,
        split.training.labels,
        validation=validation,
        classes=np.arange(split.training.num_classes),
        resume=resume and classifier.checkpoint_folder is not None,
        on_epoch=on_epoch,
    )


def results(run: TrainingRun, classifier: Classifier, smoothing: Smoothing, split: Split) -> dict[str, Any]:
    """The entries of the report, measured on the test data."""
    import torch

    from rlsmooth.audits import fit_temperature, implied_alpha, optimal_margin
    from rlsmooth.scripts.measure import measure_samples
    from rlsmooth.scripts.metrics_file import write_history

    test, training = split.test, split.training
    logits, labels = classifier.logits(test.features), torch.from_numpy(test.labels)
    measured, confusion = measure_samples(logits, labels, test)
    scaled = None
    if split.validation is not None:
        held_out = classifier.logits(split.validation.features)
        temperature = float(fit_temperature(held_out, torch.from_numpy(split.validation.labels)))
        scaled, _ = measure_samples(logits, labels, test, temperature=temperature)
    targets = smoothing(torch.arange(test.num_classes), test.num_classes)
    counts = torch.from_numpy(training.class_counts()).to(torch.float64)
    margin = float((optimal_margin(targets) * counts).sum() / counts.sum())
    parts = {"training": training, "validation": split.validation, "test": test}
    return {
        "curves": write_history(run.folder / "metrics.csv", classifier.history_, "classifier"),
        "summary": measured.summary,
        "scaled": {} if scaled is None else scaled.summary,
        "data": {name: f"{len(part):,}" for name, part in parts.items() if part is not None},
        "source": test.source,
        "class_names": list(test.class_names),
        "reliability": measured.reliability,
        "reliability_scaled": None if scaled is None else scaled.reliability,
        "risk_coverage": measured.risk_coverage,
        "risk_coverage_scaled": None if scaled is None else scaled.risk_coverage,
        "confusion": confusion,
        "target_matrix": targets.dense(torch.float64).tolist(),
        "optimal_margin": margin if math.isfinite(margin) else None,
        "implied_alpha": implied_alpha(targets.dense(torch.float64)).tolist(),
        "best_epoch": classifier.best_epoch_,
    }


if __name__ == "__main__":
    sys.exit(run_command("classify", Args, main))
