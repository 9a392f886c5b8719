"""What `rlsmooth self-train` does: rows in, a classifier that labelled most of them itself, its logs and report out."""

from __future__ import annotations

import copy
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
from numpy.typing import NDArray

from rlsmooth.checks import check_positive_int, check_writable_folder
from rlsmooth.data import LabelledData
from rlsmooth.scripts.bc_training import number_or_word
from rlsmooth.scripts.classification import (
    Measured,
    check_numbers,
    data_name,
    load_rows,
    make_network,
    measure_rows,
    training_arguments,
    with_noise,
    write_history,
)
from rlsmooth.scripts.drawing import save_figure
from rlsmooth.scripts.environment import check_device
from rlsmooth.scripts.report_file import save_report_file
from rlsmooth.scripts.run_folder import new_run_folder, plain, write_settings
from rlsmooth.scripts.self_train_figures import self_train_figure
from rlsmooth.scripts.self_train_report import SelfTrainReport, print_self_train_results
from rlsmooth.training import Classifier, SelfTraining, latest_checkpoint

if TYPE_CHECKING:
    from rlsmooth.scripts.self_train import Args

__all__ = ["train"]

UNLABELLED = -1
CHECKPOINT_EVERY = 25
PREFIX = "self_train"
TEST = {"accuracy": "test_accuracy", "nll": "test_nll", "ece": "test_ece"}


def train(args: Args) -> Path:
    """Train, or go on with training, and return the run's folder; see `scripts/self_train.py`."""
    check_numbers(args)
    check_device(args.device)
    check_positive_int("rounds", args.rounds)
    rows, test = load_rows(args)
    labels = given_labels(args, rows)
    given = int((labels != UNLABELLED).sum())
    print(f"Rows with a label: {given:,}; without: {len(rows) - given:,}; test: {len(test):,}. {test.source}".strip())
    folder = args.resume or new_run_folder(args.log_folder, "self-train", data_name(args.data))
    try:
        events = folder
        if args.tensorboard_log is not None:
            events = check_writable_folder("tensorboard_log", args.tensorboard_log / folder.name)
        model = make_model(args, rows, folder, events)
        if args.resume is None:
            write_settings(folder, "self-train", args)
        print(f"Training on {args.device} in {folder}", flush=True)
        started = time.perf_counter()
        model.fit(rows.features, labels, true_labels=rows.labels, resume=args.resume is not None)
    except KeyboardInterrupt:
        print(f"\nTo go on from the last checkpoint: rlsmooth self-train --resume {shlex.quote(str(folder))}")
        raise
    except (TypeError, ValueError):
        if args.resume is None:
            shutil.rmtree(folder)  # an argument is wrong, and nothing has been trained
        raise
    print(f"Trained for {model.n_iter_} rounds in {time.perf_counter() - started:.1f} s.")
    model.classifier_.save(folder / "classifier.zip")
    report = make_report(args, folder, model, test, {"with a label": given, "without": len(rows) - given})
    write_rounds(events, report)
    save_report_file(folder, report)
    save_figure(folder / "report.png", self_train_figure(report))
    print_self_train_results(report)
    logs = shlex.quote(str(args.tensorboard_log or folder))
    print(f"Classifier, report and logs are in {folder}. Watch them: tensorboard --logdir {logs}")
    return folder


def given_labels(args: Args, rows: LabelledData) -> NDArray[np.int64]:
    """The labels that are trained on, noise and all, and -1 for the rows that lose theirs.

    Raises:
        ValueError: there are not so many rows, or a class is left without a label.
    """
    if check_positive_int("n_labels", args.n_labels) >= len(rows):
        raise ValueError(f"n_labels={args.n_labels} leaves none of the {len(rows)} rows without a label: give fewer.")
    kept = rows.sample_indices(args.n_labels, args.seed)
    noisy = with_noise(args, rows)
    counts = np.bincount(noisy.labels[kept], minlength=rows.num_classes)
    if not counts.all():
        raise ValueError(
            f"n_labels={args.n_labels} gives class {rows.class_names[int(counts.argmin())]!r} no label: give at least "
            f"{rows.num_classes}, or more where labels are noisy."
        )
    labels = np.full(len(rows), UNLABELLED, dtype=np.int64)
    labels[kept] = noisy.labels[kept]
    return labels


def make_model(args: Args, rows: LabelledData, folder: Path, events: Path) -> SelfTraining:
    """What the arguments describe; `fit` checks them."""
    classifier = Classifier(
        make_network(args, rows),
        smoothing=args.given_smoothing,
        max_epochs=check_positive_int("epochs", args.epochs),
        device=args.device,
        # Whatever the average is to be of must go on from round to round.
        warm_start=args.ema is not None,
        checkpoint_folder=folder / "checkpoints",
        checkpoint_every=CHECKPOINT_EVERY,
        tensorboard_log=events,
        verbose=max(0, args.verbose - 1),
        progress_bar=args.progress or sys.stderr.isatty(),
        **training_arguments(args),
    )
    smoothing: Any = "confidence_adaptive" if args.smoothing == "confidence" else number_or_word(args.smoothing)
    return SelfTraining(
        classifier,
        threshold=args.threshold,
        criterion=args.criterion,
        k_best=args.k_best,
        max_iter=args.rounds,
        smoothing=smoothing,
        labels=args.pseudo_labels,
        temperature=args.temperature,
        ema_decay=args.ema,
        class_balance=args.class_balance,
        verbose=min(1, args.verbose),
    )


def measured_rounds(model: SelfTraining, folder: Path, test: LabelledData) -> list[Measured]:
    """The student of each round, from 0 on, on the test rows: its last checkpoint has its parameters."""
    labels = torch.from_numpy(test.labels)
    student = copy.copy(model.classifier_)
    student.module_ = copy.deepcopy(model.classifier_.module_)
    found = []
    for number in range(model.n_iter_ + 1):
        checkpoints = folder / "checkpoints" / f"fit_{number}"
        if checkpoints.is_dir():  # a round that labels nothing trains nothing
            checkpoint = latest_checkpoint(checkpoints)
            assert checkpoint is not None
            student.module_.load_state_dict(checkpoint.tensors["module"])
        found.append(measure_rows(student.logits(test.features), labels, test)[0])
    return found


def make_report(
    args: Args, folder: Path, model: SelfTraining, test: LabelledData, counts: dict[str, int]
) -> SelfTrainReport:
    """The run in numbers."""
    measured = measured_rounds(model, folder, test)
    rounds = [dataclasses.asdict(entry) for entry in model.rounds_]
    history = {name: [found.summary.get(tag, math.nan) for found in measured] for tag, name in TEST.items()}
    history |= {
        name: [start, *(math.nan if entry[name] is None else float(entry[name]) for entry in rounds)]
        for name, start in (
            ("num_labelled", float(counts["with a label"])),
            ("num_new", 0.0),
            ("mean_confidence", math.nan),
            ("new_accuracy", math.nan),
            ("pseudo_label_accuracy", math.nan),
        )
    }
    for name in ("num_wrong", "share_grown", "mean_growth", "mean_growth_of_right"):
        biases = [(entry["confirmation_bias"] or {}).get(name) for entry in rounds]
        history[name] = [math.nan, *(math.nan if bias is None else float(bias) for bias in biases)]
    return SelfTrainReport(
        name=folder.name,
        settings=plain(dataclasses.asdict(args)),
        curves=write_history(folder / "metrics.csv", history, PREFIX, first=0),
        rounds=plain(rounds),
        before=measured[0].summary,
        summary=measured[-1].summary,
        data={**{name: f"{count:,}" for name, count in counts.items()}, "test": f"{len(test):,}"},
        source=test.source,
        ended=model.termination_condition_,
    )


def write_rounds(events: Path, report: SelfTrainReport) -> None:
    """The rounds' numbers for TensorBoard, beside those of each round's training."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(events))
    for tag, (steps, values) in report.curves.items():
        for step, value in zip(steps, values, strict=True):
            writer.add_scalar(tag, value, int(step))
    writer.close()
