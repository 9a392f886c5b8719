"""All scores of a classifier in one dictionary of numbers, for reports."""

from __future__ import annotations

import torch
from torch import Tensor

from rlsmooth.audits.arguments import as_samples, takes_arrays
from rlsmooth.audits.calibration import (
    adaptive_calibration_error,
    calibration_error,
    classwise_calibration_error,
    confidence_gap,
)
from rlsmooth.audits.classification import accuracy, brier_score, negative_log_likelihood
from rlsmooth.audits.margins import mean_logit_margin
from rlsmooth.audits.mistakes import distance_at_k, mistake_severity
from rlsmooth.audits.ordinal import average_mean_absolute_error, mean_absolute_error, ranked_probability_score
from rlsmooth.audits.selective import risk_coverage
from rlsmooth.checks import check_in_range
from rlsmooth.losses import log_probabilities
from rlsmooth.targets import Tree

DISTANCES_AT = (1, 5, 20)


@takes_arrays
def classification_summary(
    logits: Tensor,
    labels: Tensor,
    *,
    distances: Tensor | Tree | None = None,
    ordered: bool = False,
    temperature: float | Tensor | None = None,
    num_bins: int = 15,
) -> dict[str, float]:
    """The scores of this package for one set of samples, as plain numbers: what a trainer prints and a report shows.

    | key | function | with |
    |---|---|---|
    | `accuracy`, `nll` (nats), `brier` | `accuracy`, `negative_log_likelihood`, `brier_score` | |
    | `ece`, `adaptive_ece`, `classwise_ece` | `calibration_error` and its relatives | |
    | `confidence_gap`, `margin` (nats), `aurc` | `confidence_gap`, `mean_logit_margin`, `risk_coverage` | |
    | `distance_at_1`, `_5`, `_20`, `mistake_severity` | `distance_at_k` for each k up to K | `distances` |
    | `mae`, `amae`, `rps` | the ordinal scores | `ordered` |
    | `temperature` | the one given | `temperature` |

    The prediction is the most probable class, the first one among equals.

    Args:
        logits: float [..., K].
        labels: int64 [...], in [0, K).
        distances: [K, K] between classes, row = label, column = prediction, see `tree_distances`; or a tree: its
            heights, without a table of all pairs.
        ordered: whether the classes are ordered.
        temperature: the logits are divided by it first; see `fit_temperature`.
        num_bins: of the calibration errors.

    Returns:
        name to number; NaN where a score has nothing to be computed of: no samples, a NaN among the logits, the
        severity where nothing is mistaken.

    Raises:
        TypeError: `logits` is not floating, `labels` not int64.
        ValueError: shapes that do not fit, a label that is no class, a temperature that is not above 0.

    Examples:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> summary = classification_summary(logits, torch.tensor([0, 1, 1]))
        >>> {name: round(summary[name], 3) for name in ("accuracy", "nll", "ece", "margin")}
        {'accuracy': 0.667, 'nll': 0.584, 'ece': 0.194, 'margin': 0.667}
    """
    samples, _, _, _ = as_samples(logits, labels, name="logits")
    label, num_classes = labels.reshape(-1), samples.shape[-1]
    outside = (label < 0) | (label >= num_classes)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise ValueError(f"labels[{row}]={int(label[row])} is no class: use 0 to {num_classes - 1}.")
    found: dict[str, Tensor] = {}
    if temperature is not None:
        divisor = check_in_range("temperature", float(temperature), 0.0, low_open=True)
        samples = samples / divisor
        found["temperature"] = torch.tensor(divisor, dtype=torch.float64)
    probabilities = log_probabilities(samples).exp()
    confidences, predictions = probabilities.max(-1).values, samples.argmax(-1)
    hits = predictions == label
    found |= {
        "accuracy": accuracy(samples, label),
        "nll": negative_log_likelihood(samples, label),
        "brier": brier_score(probabilities, label),
        "ece": calibration_error(confidences, hits, num_bins=num_bins),
        "adaptive_ece": adaptive_calibration_error(confidences, hits, num_bins=num_bins),
        "classwise_ece": classwise_calibration_error(probabilities, label, num_bins=num_bins),
        "confidence_gap": confidence_gap(confidences, hits),
        "margin": mean_logit_margin(samples, label),
        "aurc": risk_coverage(confidences, hits).area,
    }
    if distances is not None:
        for k in DISTANCES_AT:
            if k <= num_classes:
                found[f"distance_at_{k}"] = distance_at_k(samples, label, distances, k=k)
        found["mistake_severity"] = mistake_severity(predictions, label, distances)
    if ordered:
        found["mae"] = mean_absolute_error(predictions, label)
        found["amae"] = average_mean_absolute_error(predictions, label, num_classes=num_classes)
        found["rps"] = ranked_probability_score(probabilities, label)
    return {name: float(value) for name, value in found.items()}
