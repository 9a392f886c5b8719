"""What `rlsmooth classify` does: rows in, a trained classifier, its logs and its report out."""

from __future__ import annotations

import dataclasses
import math
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rlsmooth.audits import fit_temperature, implied_alpha, optimal_margin
from rlsmooth.checks import check_positive_int, check_writable_folder
from rlsmooth.data import LabelledData
from rlsmooth.scripts.bc_training import number_or_word
from rlsmooth.scripts.classification import (
    check_numbers,
    data_name,
    load_rows,
    make_network,
    training_arguments,
    with_noise,
)
from rlsmooth.scripts.environment import check_device
from rlsmooth.scripts.figures.kinds import new_report, publish_report
from rlsmooth.scripts.measure import measure_samples
from rlsmooth.scripts.metrics_file import write_history
from rlsmooth.scripts.reports import RunReport
from rlsmooth.scripts.run_folder import new_run_folder, plain, write_settings
from rlsmooth.targets import Smoothing, Tree
from rlsmooth.training import Classifier

if TYPE_CHECKING:
    from rlsmooth.scripts.classify import Args

__all__ = ["train"]


@dataclasses.dataclass(frozen=True)
class _Split:
    training: LabelledData
    validation: LabelledData | None
    test: LabelledData


def train(args: Args) -> Path:
    """Train, or go on with training, and return the run's folder; see `scripts/classify.py`."""
    check_numbers(args)
    if args.checkpoint_freq != -1:
        check_positive_int("checkpoint_freq", args.checkpoint_freq)
    check_device(args.device)
    rows, test = load_rows(args)
    held_out = args.validation_fraction != 0
    training, validation = rows.split(args.validation_fraction, args.seed) if held_out else (rows, None)
    training = with_noise(args, training)
    split = _Split(training, validation, test)
    smoothing = make_smoothing(args, training)
    held_out_rows = 0 if validation is None else len(validation)
    print(
        f"Rows to train on: {len(training):,}; held out: {held_out_rows:,}; test: {len(test):,}. {test.source}".strip()
    )
    folder = args.resume or new_run_folder(args.log_folder, "classify", data_name(args.data))
    try:
        events = folder
        if args.tensorboard_log is not None:
            events = check_writable_folder("tensorboard_log", args.tensorboard_log / folder.name)
        classifier = make_classifier(args, training, smoothing, folder, events)
        if args.resume is None:
            write_settings(folder, "classify", args)
        print(f"Training on {args.device} in {folder}", flush=True)
        started = time.perf_counter()
        fit(classifier, split, resume=args.resume is not None)
    except KeyboardInterrupt:
        if args.checkpoint_freq > 0:
            print(f"\nTo go on from the last checkpoint: rlsmooth classify --resume {shlex.quote(str(folder))}")
        raise
    except (TypeError, ValueError):
        if args.resume is None:
            shutil.rmtree(folder)  # an argument is wrong, and nothing has been trained
        raise
    print(f"Trained for {classifier.n_iter_} epochs in {time.perf_counter() - started:.1f} s.")
    classifier.save(folder / "classifier.zip")
    report = make_report(args, folder, classifier, smoothing, split)
    publish_report(folder, report)
    logs = shlex.quote(str(args.tensorboard_log or folder))
    print(f"Classifier, report and logs are in {folder}. Watch them: tensorboard --logdir {logs}")
    return folder


def make_smoothing(args: Args, training: LabelledData) -> Smoothing:
    """The recipe that the arguments describe.

    Raises:
        ValueError: it can't be used, or not with these data.
    """
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
        reference = Tree.from_nested(training.hierarchy)
    alpha = None if args.smoothing == "none" else number_or_word(args.smoothing)
    try:
        return Smoothing(alpha, reference, args.spread, decay=args.decay)
    except ValueError as error:
        raise ValueError(f"smoothing={args.smoothing!r} can't be used: {error}") from error


def similarity_of_means(training: LabelledData) -> Tensor:
    """How alike classes are: `exp(-d / median d)`, d between the classes' mean features, standardised; `[K, K]`.

    A class without a row is as far from all as the farthest is.
    """
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
    try:
        kernel = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"kernel={str(path)!r} can't be read as an .npy: {error}") from error
    size = training.num_classes
    if not isinstance(kernel, np.ndarray) or kernel.shape != (size, size) or kernel.dtype.kind not in "fiub":
        found = f"{kernel.dtype} {kernel.shape}" if isinstance(kernel, np.ndarray) else "several arrays"
        raise ValueError(f"kernel={str(path)!r} holds {found}: it must be numbers [{size}, {size}].")
    return torch.from_numpy(kernel.astype(np.float64))


def make_classifier(args: Args, training: LabelledData, smoothing: Smoothing, folder: Path, events: Path) -> Classifier:
    """The classifier that the arguments describe; `fit` checks them."""
    return Classifier(
        make_network(args, training),
        smoothing=smoothing,
        mixup=args.mixup,
        max_epochs=check_positive_int("epochs", args.epochs),
        early_stopping_patience=args.early_stopping_patience,
        amp=args.amp,
        device=args.device,
        checkpoint_folder=None if args.checkpoint_freq < 0 else folder / "checkpoints",
        checkpoint_every=max(1, args.checkpoint_freq),
        tensorboard_log=events,
        verbose=args.verbose,
        progress_bar=args.progress or sys.stderr.isatty(),
        **training_arguments(args),
    )


def fit(classifier: Classifier, split: _Split, *, resume: bool) -> None:
    """Train, from the last checkpoint if the run goes on and has one."""
    validation = None if split.validation is None else (split.validation.features, split.validation.labels)
    classifier.fit(
        split.training.features,
        split.training.labels,
        validation=validation,
        classes=np.arange(split.training.num_classes),
        resume=resume and classifier.checkpoint_folder is not None,
    )


def make_report(args: Args, folder: Path, classifier: Classifier, smoothing: Smoothing, split: _Split) -> RunReport:
    """The run in numbers."""
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
    return new_report(
        "classify",
        name=folder.name,
        settings=plain(dataclasses.asdict(args)),
        curves=write_history(folder / "metrics.csv", classifier.history_, "classifier"),
        summary=measured.summary,
        scaled={} if scaled is None else scaled.summary,
        data={name: f"{len(part):,}" for name, part in parts.items() if part is not None},
        source=test.source,
        class_names=list(test.class_names),
        reliability=measured.reliability,
        reliability_scaled=None if scaled is None else scaled.reliability,
        risk_coverage=measured.risk_coverage,
        risk_coverage_scaled=None if scaled is None else scaled.risk_coverage,
        confusion=confusion,
        target_matrix=targets.dense(torch.float64).tolist(),
        optimal_margin=margin if math.isfinite(margin) else None,
        implied_alpha=implied_alpha(targets.dense(torch.float64)).tolist(),
        best_epoch=classifier.best_epoch_,
    )
