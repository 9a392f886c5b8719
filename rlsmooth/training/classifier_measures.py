"""Measures of a network on the samples of a fit, once an epoch, and figures of its targets and calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlsmooth.audits import calibration_error
from rlsmooth.audits.calibration import diagram_bins
from rlsmooth.audits.figures import draw_reliability, draw_target_matrix, new_figure
from rlsmooth.checks import check_writable_folder
from rlsmooth.losses.arguments import reduce
from rlsmooth.losses.categorical import PredictionMeasures, measure_predictions
from rlsmooth.targets import Smoothing
from rlsmooth.training.classifier_samples import ClassifierData, ClassifierSamples
from rlsmooth.training.run import samples_at_once, spread_evenly

MEASURED_SAMPLES = 2048
MEASURED_BYTES = 64 * 2**20
DRAWN_CLASSES = 64
EVENTS_FOLDER = "Classifier"


def training_sample(samples: ClassifierSamples) -> ClassifierSamples:
    """Up to 2048 samples and 64 MiB of them, evenly spread."""
    sample_bytes = max(1, samples.inputs.element_size() * samples.inputs[:1].numel())
    most = min(MEASURED_SAMPLES, max(1, MEASURED_BYTES // sample_bytes))
    if most >= len(samples):
        return samples
    return samples[spread_evenly(len(samples), most).to(samples.labels.device)]


def measure(
    module: nn.Module, samples: ClassifierSamples, data: ClassifierData, remaining: float, batch_size: int
) -> dict[str, Tensor]:
    """Means over some samples, 0-dim on the device. The module is in training mode afterwards.

    Args:
        module: the network as it is.
        samples: measured in blocks of at most 2048 (see `samples_at_once`).
        data: whose targets are made where the samples have none.
        remaining: the progress remaining, which such targets follow.
        batch_size: samples of a minibatch of training.
    """
    module.eval()
    found, weights = _predictions(module, samples, data, remaining, batch_size)
    module.train()
    return {
        "cross_entropy": reduce(found.cross_entropy, weights, "mean"),
        "nll_hard": found.nll.mean(),
        "accuracy": found.hit.to(torch.float32).mean(),
        "ece": calibration_error(found.confidence, found.hit),
        "entropy": found.entropy.mean(),
    }


@torch.no_grad()
def _predictions(
    module: nn.Module, samples: ClassifierSamples, data: ClassifierData, remaining: float, batch_size: int
) -> tuple[PredictionMeasures, Tensor]:
    """The measures of each sample, and their weights."""

    def measured(block: ClassifierSamples) -> PredictionMeasures:
        target = data.target_of(block, remaining)
        return measure_predictions(module(block.inputs), target, block.mask, labels=block.labels)

    most = samples_at_once(lambda: measured(samples[:1]), batch_size, min(len(samples), MEASURED_SAMPLES))
    parts = [measured(samples[start : start + most]) for start in range(0, len(samples), most)]
    joined = PredictionMeasures.concatenate(parts)
    return joined, torch.ones_like(joined.nll) if samples.weights is None else samples.weights


def mean_alpha(smoothing: Smoothing, remaining: float) -> float:
    """Alpha in force; None (a whole distribution) counts as 1."""
    alpha = smoothing.alpha_at(remaining)
    return 1.0 if alpha is None else float(alpha.mean() if isinstance(alpha, Tensor) else alpha)


def events_folder(folder: str | Path, *, is_resumed: bool) -> tuple[Path, bool]:
    """A run's own folder, `Classifier_<n>`, and whether it is an earlier one: a resumed run continues the latest."""
    root = check_writable_folder("tensorboard_log", folder)
    names = [path.name.removeprefix(f"{EVENTS_FOLDER}_") for path in root.glob(f"{EVENTS_FOLDER}_*")]
    number = max((int(name) for name in names if name.isdigit()), default=0)
    if is_resumed and number:
        return root / f"{EVENTS_FOLDER}_{number}", True
    while True:  # other fits may begin at this moment
        number += 1
        own = root / f"{EVENTS_FOLDER}_{number}"
        try:
            own.mkdir()
        except FileExistsError:
            continue
        return own, False


def draw_targets(writer: Any, data: ClassifierData) -> None:
    """Add a figure of each label's target to TensorBoard, if all samples of a label have the same."""
    num_classes, alpha = len(data.classes), data.smoothing.alpha
    if data.has_given_target or (isinstance(alpha, Tensor) and alpha.ndim > 0) or num_classes > DRAWN_CLASSES:
        return
    figure, axes = new_figure()
    matrix = data.smoothing(torch.arange(num_classes), num_classes).dense()
    draw_target_matrix(axes, matrix, names=[str(name) for name in data.classes])
    writer.add_figure("classifier/target_matrix", figure, 0, close=False)


def draw_calibration(
    writer: Any, step: int, module: nn.Module, data: ClassifierData, remaining: float, batch_size: int
) -> None:
    """Add the reliability diagram of the validation samples, or of training samples, to TensorBoard."""
    samples = training_sample(data.samples) if data.validation is None else data.validation
    found, _ = _predictions(module, samples, data, remaining, batch_size)
    figure, axes = new_figure()
    ece = float(calibration_error(found.confidence, found.hit))
    draw_reliability(axes, diagram_bins(found.confidence, found.hit), ece=ece)
    writer.add_figure("classifier/reliability", figure, step, close=False)
