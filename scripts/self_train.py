"""Train a classifier on a few labels and on pseudo-labels that it gives to the other samples, round by round.

rlsmooth self-train --data digits --n-labels 50 --smoothing 0.1
rlsmooth self-train --smoothing confidence --threshold 0.9
rlsmooth self-train --pseudo-labels soft --temperature 0.5
"""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlsmooth.checks import check_positive_int
from rlsmooth.scripts.arguments import ClassificationArgs, number_of, number_or_word, resumed
from rlsmooth.scripts.command import run_command

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rlsmooth.data import LabelledData
    from rlsmooth.scripts.measure import Measured
    from rlsmooth.scripts.metrics_file import Curve
    from rlsmooth.scripts.training_run import TrainingRun
    from rlsmooth.training import SelfTraining

UNLABELLED = -1
CHECKPOINT_EVERY = 25
PREFIX = "self_train"
TEST = {"accuracy": "test_accuracy", "nll": "test_nll", "ece": "test_ece"}


@dataclasses.dataclass(frozen=True)
class Args(ClassificationArgs):
    """Train a classifier by self-training, and measure how right its pseudo-labels were."""

    n_labels: int = 50
    """How many samples keep their label, class by class in proportion; the others lose it."""
    pseudo_labels: Literal["hard", "soft"] = "hard"
    """What a sample without a label gets: the most probable class, or all probabilities."""
    smoothing: str = "0.1"
    """How much of a pseudo-label's target leaves it for all classes alike: a number, or confidence: so much that the
    target's probability is the confidence with which the label was made."""
    given_smoothing: float = 0.0
    """The same of the labels that are given."""
    threshold: float = 0.75
    """A prediction of a higher probability becomes a label."""
    criterion: Literal["threshold", "k_best"] = "threshold"
    """Whether all above the threshold become labels, or the most probable ones of each round."""
    k_best: int = 10
    """With --criterion k_best: how many in each round."""
    temperature: float = 1.0
    """Of soft pseudo-labels: below 1 they are sharper than the classifier's probabilities."""
    class_balance: bool = False
    """Take as many pseudo-labels of each class as of the others."""
    ema: float | None = None
    """Label by a moving average of the networks of all rounds, which keeps this share of itself in each."""
    rounds: int = 10
    """How many rounds of labelling and training there are at most."""
    epochs: int = 50
    """How often each round's training goes through the samples with a label."""


def main(args: Args) -> Path:
    """Train, or resume training, and return the run's folder.

    Raises:
        ImportError: the data come with a package that is missing.
        ValueError: an argument is wrong, or names something that is not there or can't be written to.
    """
    args = resumed(args, "self-train")
    # Imported here: options can be listed, and a wrong one reported, without waiting for torch.
    from rlsmooth.scripts.classification import check_numbers, data_name, load_parts
    from rlsmooth.scripts.environment import check_device
    from rlsmooth.scripts.training_run import TrainingRun
    from rlsmooth.training.classifier_model import as_device

    check_numbers(args)
    check_device(args.device)
    check_positive_int("rounds", args.rounds)
    training, test = load_parts(args)
    labels = given_labels(args, training)
    given = int((labels != UNLABELLED).sum())
    counts = {"with a label": given, "without": len(training) - given}
    print(
        f"Samples with a label: {given:,}; without: {counts['without']:,}; test: {len(test):,}. {test.source}".strip()
    )
    with TrainingRun("self-train", args, data_name(args.data)) as run:
        model = make_model(args, run, training)
        run.begin(f"Training on {as_device(args.device).type}")
        started = time.perf_counter()
        try:
            model.fit(training.features, labels, true_labels=training.labels, resume=args.resume is not None)
        except (TypeError, ValueError):  # an argument is wrong, and nothing has been trained
            run.discard()
            raise
        print(f"Trained for {number_of(model.n_iter_, 'round')} in {time.perf_counter() - started:.1f} s.")
        model.classifier_.save(run.folder / "classifier.zip")
        entries = results(run, model, test, counts)
        write_rounds(run.events(), entries["curves"])
        return run.finish("Classifier, report and logs", **entries)


def given_labels(args: Args, training: LabelledData) -> NDArray[np.int64]:
    """The labels that are trained on, noise and all, and -1 for the samples that lose theirs.

    Raises:
        ValueError: there are not so many samples, or a class is left without a label.
    """
    import numpy as np

    from rlsmooth.scripts.classification import with_noise

    if check_positive_int("n_labels", args.n_labels) >= len(training):
        raise ValueError(
            f"n_labels={args.n_labels} leaves none of the {len(training)} samples without a label: give fewer."
        )
    kept = training.sample_indices(args.n_labels, args.seed)
    noisy = with_noise(args, training)
    counts = np.bincount(noisy.labels[kept], minlength=training.num_classes)
    if not counts.all():
        raise ValueError(
            f"n_labels={args.n_labels} gives class {training.class_names[int(counts.argmin())]!r} no label: give at "
            f"least {training.num_classes}, or more where labels are noisy."
        )
    labels = np.full(len(training), UNLABELLED, dtype=np.int64)
    labels[kept] = noisy.labels[kept]
    return labels


def make_model(args: Args, run: TrainingRun, training: LabelledData) -> SelfTraining:
    """What the arguments describe; `fit` checks them."""
    from rlsmooth.scripts.classification import make_network, training_arguments
    from rlsmooth.training import Classifier, SelfTraining

    classifier = Classifier(
        make_network(args, training),
        smoothing=args.given_smoothing,
        max_epochs=check_positive_int("epochs", args.epochs),
        device=args.device,
        # What is averaged must continue from round to round.
        warm_start=args.ema is not None,
        checkpoint_folder=run.checkpoints,
        checkpoint_every=CHECKPOINT_EVERY,
        tensorboard_log=run.events(),
        verbose=max(0, args.verbose - 1),
        progress_bar=run.shows_bar,
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


def measured_rounds(model: SelfTraining, checkpoints: Path, test: LabelledData) -> list[Measured]:
    """The student of each round, from 0 on, on the test data: its last checkpoint has its parameters."""
    import torch

    from rlsmooth.scripts.measure import measure_samples
    from rlsmooth.training import latest_checkpoint

    labels = torch.from_numpy(test.labels)
    student = copy.copy(model.classifier_)
    student.module_ = copy.deepcopy(model.classifier_.module_)
    found = []
    for number in range(model.n_iter_ + 1):
        folder = checkpoints / f"fit_{number}"
        if folder.is_dir():  # a round that labels nothing trains nothing
            checkpoint = latest_checkpoint(folder)
            assert checkpoint is not None
            student.module_.load_state_dict(checkpoint.tensors["module"])
        found.append(measure_samples(student.logits(test.features), labels, test)[0])
    return found


def results(run: TrainingRun, model: SelfTraining, test: LabelledData, counts: dict[str, int]) -> dict[str, Any]:
    """The entries of the report, each round measured on the test data."""
    from rlsmooth.scripts.metrics_file import write_history
    from rlsmooth.scripts.run_folder import plain

    measured = measured_rounds(model, run.checkpoints, test)
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
    return {
        "curves": write_history(run.folder / "metrics.csv", history, PREFIX, first=0),
        "rounds": plain(rounds),
        "before": measured[0].summary,
        "summary": measured[-1].summary,
        "data": {**{name: f"{count:,}" for name, count in counts.items()}, "test": f"{len(test):,}"},
        "source": test.source,
        "ended": model.termination_condition_,
    }


def write_rounds(events: Path, curves: dict[str, Curve]) -> None:
    """The rounds' numbers for TensorBoard, beside those of each round's training."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(events))
    for tag, (steps, values) in curves.items():
        for step, value in zip(steps, values, strict=True):
            writer.add_scalar(tag, value, int(step))
    writer.close()


if __name__ == "__main__":
    sys.exit(run_command("self-train", Args, main))
