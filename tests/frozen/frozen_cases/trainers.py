"""Classifier, self-training and GAN."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from frozen_cases.common import CutOffError, File, Run, Tensors, of_arrays, of_module, of_optimizer, uniform
from rlsmooth.targets import Smoothing, Tree
from rlsmooth.training import Classifier, GANTrainer, SelfTraining


class Fragile(nn.Sequential):
    """A network that can be made to fail after so many batches of training."""

    batches_left: ClassVar[int | None] = None

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and Fragile.batches_left is not None:
            Fragile.batches_left -= 1
            if Fragile.batches_left < 0:
                raise CutOffError
        found: Tensor = super().forward(inputs)
        return found


def fragile(features: int, classes: int) -> Fragile:
    return Fragile(
        nn.Linear(features, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, classes)
    )


X, WEIGHTS = uniform(60, 4, seed=13), np.linspace(0.5, 1.5, 60)
Y = np.array(["low", "mid", "top"], dtype=object)[np.arange(60) % 3]
PARTLY = np.where(np.arange(60) % 4 == 0, Y, np.array(-1, dtype=object))


def make_classifier(**more: Any) -> Classifier:
    """All that can change during a run is on."""
    given: dict[str, Any] = {"smoothing": Smoothing("lin_0.2", reference=torch.tensor([0.2, 0.3, 0.5])), "mixup": 0.3}
    given |= {"learning_rate": "lin_0.01", "weight_decay": 0.01, "max_grad_norm": 1.0, "validation_fraction": 0.2}
    given |= {"early_stopping_patience": 20, "class_weight": {"low": 2.0, "mid": 1.0, "top": 1.0}, "batch_size": 16}
    given |= {"max_epochs": 6, "seed": 0, "device": "cpu", **more}
    return Classifier(given.pop("model", fragile), **given)


def of_classifier(classifier: Classifier) -> Tensors:
    numbers = {"epochs": classifier.n_iter_, "best": classifier.best_epoch_, "history": classifier.history_}
    return of_module("module", classifier.module_) | of_arrays(numbers)


def classifier_answers(classifier: Any) -> Tensors:
    """Probabilities; labels as places in `classes_`."""
    places = np.searchsorted(classifier.classes_.astype(str), classifier.predict(X).astype(str))
    return of_arrays({"probabilities": classifier.predict_proba(X), "labels": places})


def classifier_file() -> File:
    """Of a network by name, that trains on."""
    tree = Tree.from_nested({"a": ["low", "mid"], "b": ["top"]})
    smoothing = Smoothing(0.2, reference=tree, decay=0.5)
    return File(
        write=lambda folder: (
            make_classifier(model="mlp", smoothing=smoothing, warm_start=True, max_epochs=2)
            .fit(X, Y)
            .save(folder / "classifier")
        ),
        read=lambda folder: Classifier.load(folder / "classifier.zip", device="cpu"),
        kept=of_classifier,
        answers=classifier_answers,
        train_on=lambda classifier: of_classifier(classifier.fit(X, Y)),
    )


def interrupted(train: Callable[[], Any], batches: int | None) -> Any:
    Fragile.batches_left = batches
    try:
        return train()
    finally:
        Fragile.batches_left = None


def classifier_run(*, is_weighted: bool) -> Run:
    """Three batches an epoch, cut off in the fifth epoch."""
    weights = WEIGHTS if is_weighted else None

    def start(folder: Path | None) -> Any:
        classifier = make(folder)
        return interrupted(lambda: classifier.fit(X, Y, weights), None if folder is None else 14)

    def make(folder: Path | None) -> Classifier:
        more = {} if is_weighted else {"class_weight": None}
        return make_classifier(checkpoint_folder=folder, checkpoint_every=2, **more)

    def resume(folder: Path) -> Classifier:
        return make(folder).fit(X, Y, weights, resume=True)

    return Run(start, resume, of_classifier)


def make_self_training(folder: Path | None, **more: Any) -> SelfTraining:
    """With a teacher that is an average.

    Labels are hard: soft ones are data of the next round, and would be others, by a bit, on another machine.
    """
    given: dict[str, Any] = {"mixup": 0.0, "smoothing": 0.1, "validation_fraction": 0.0, "max_epochs": 4}
    given |= {"early_stopping_patience": None, "checkpoint_folder": folder, "checkpoint_every": 2}
    student = make_classifier(warm_start=True, **given, **more)
    return SelfTraining(student, criterion="k_best", k_best=8, max_iter=3, smoothing=0.1, ema_decay=0.5)


def of_self_training(model: SelfTraining) -> Tensors:
    found = of_module("student", model.classifier_.module_) | of_module("teacher", model.teacher_.module_)
    places = [{"low": 0, "mid": 1, "top": 2}.get(label, -1) for label in model.transduction_]
    return found | of_arrays({"round": model.labeled_iter_, "labels": np.array(places)})


def self_training_run(**more: Any) -> Run:
    """Cut off in the third of four fits."""

    def start(folder: Path | None) -> Any:
        model = make_self_training(folder, **more)
        return interrupted(lambda: model.fit(X, PARTLY), None if folder is None else 4 + 8 + 10)

    return Run(start, lambda folder: make_self_training(folder, **more).fit(X, PARTLY, resume=True), of_self_training)


GAN_DATA = torch.from_numpy(uniform(40, 2, seed=14) + 1)


def make_gan(folder: Path | None = None) -> GANTrainer:
    """All that can change during a run is on."""
    given: dict[str, Any] = {"latent_size": 3, "batch_size": 8, "learning_rate": "lin_0.01", "real_target": "lin_0.8"}
    given |= {"discriminator_updates": 2, "ema_decay": 0.9, "evaluate": lambda samples: {"mean": samples.mean()}}
    given |= {"evaluate_every": 4, "evaluation_samples": 10, "seed": 0, "device": "cpu"}
    return GANTrainer(
        lambda: nn.Sequential(nn.Linear(3, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)),
        lambda: nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(0.2), nn.Dropout(0.2), nn.Linear(8, 1)),
        GAN_DATA,
        checkpoint_folder=folder,
        checkpoint_every=5,
        **given,
    )


def of_gan(trainer: GANTrainer) -> Tensors:
    assert trainer.average is not None
    return (
        of_module("generator", trainer.generator)
        | of_module("discriminator", trainer.discriminator)
        | of_module("average", trainer.average)
        | of_optimizer("generator_optimizer", trainer.generator_optimizer)
        | of_optimizer("discriminator_optimizer", trainer.discriminator_optimizer)
        | of_arrays({"history": trainer.history, "evaluations": trainer.evaluations})
    )


def gan_run() -> Run:
    """Cut off at step 13 of 17."""

    def cut(trainer: GANTrainer) -> None:
        if trainer.step == 13:
            raise CutOffError

    def start(folder: Path | None) -> GANTrainer:
        return make_gan(folder).train(17, log_every=3, callback=None if folder is None else cut)

    return Run(start, lambda folder: make_gan(folder).train(17, log_every=3, resume=True), of_gan)


def read_gan(folder: Path) -> GANTrainer:
    fresh = make_gan()
    return GANTrainer.load(folder / "gan.zip", fresh.generator, fresh.discriminator, GAN_DATA, device="cpu")


FILES: dict[str, File] = {
    "classifier": classifier_file(),
    "gan": File(
        write=lambda folder: make_gan().train(4).save(folder / "gan"),
        read=read_gan,
        kept=of_gan,
        answers=lambda trainer: {"samples": trainer.sample(4, seed=0)},
        train_on=lambda trainer: of_gan(trainer.train(3)),
    ),
}
RUNS: dict[str, Run] = {
    "run_classifier": classifier_run(is_weighted=True),
    "run_self_training": self_training_run(),
    "run_classifier_unweighted": classifier_run(is_weighted=False),
    "run_self_training_unweighted": self_training_run(class_weight=None),
    "run_gan": gan_run(),
}
