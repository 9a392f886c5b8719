"""Measure an agent on demonstrations, as its log lines do, and a classifier on labelled samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rlsmooth.agents import BC
from rlsmooth.agents.cloning.measures import measure_in_parts, summarise
from rlsmooth.agents.cloning.training_data import TrainingData, action_target, as_smoothings
from rlsmooth.audits import ReliabilityBins, classification_summary, risk_coverage
from rlsmooth.audits.calibration import diagram_bins
from rlsmooth.data import Demonstrations, LabelledData
from rlsmooth.losses.categorical import measure_predictions
from rlsmooth.targets import Tree

MEASURED = ("accuracy", "nll_hard", "ece", "policy_entropy", "entropy_frac", "entropy_frac_min", "kl_uniform")
CURVE_POINTS = 200


@dataclass(frozen=True)
class Measured:
    """The scores of a classifier on some samples; plain data only.

    Attributes:
        summary: as `classification_summary` gives it; what can't be computed is left out.
        reliability: the columns of `ReliabilityBins`.
        risk_coverage: `coverage` and `risk`, at most 200 points.
    """

    summary: dict[str, float]
    reliability: dict[str, list[float | None]]
    risk_coverage: dict[str, list[float]]


def measure(agent: BC, demonstrations: Demonstrations) -> tuple[dict[str, float], ReliabilityBins | None]:
    """Means over the transitions, nats, and reliability bins.

    `nll_hard`, `policy_entropy` and, but for continuous actions, which have no most probable one, `accuracy`, `ece`,
    `entropy_frac`, `entropy_frac_min`, `kl_uniform` and the bins. How the agent was smoothed plays no part.
    """
    head = agent.head
    hard = as_smoothings(0.0, head)
    data = TrainingData(
        demonstrations,
        head,
        agent.observation_space,
        smoothings=hard,
        references=None,
        bins=agent.bins,
        device=agent.device,
    )
    agent.policy.set_training_mode(False)
    rows = measure_in_parts(
        head,
        data.chunks(),
        lambda part: action_target(head, hard, part),
        own_reference=False,
        batch_size=agent.batch_size,
    )
    found = summarise(rows, kl_coef=0.0, by_component=False)
    return {
        name: found[name] for name in MEASURED if name in found
    }, None if rows.confidence is None else rows.reliability()


def measure_samples(
    logits: Tensor, labels: Tensor, data: LabelledData, *, temperature: float | None = None
) -> tuple[Measured, list[list[int]]]:
    """All scores of some samples, and the confusion matrix: row = label, column = prediction.

    Args:
        logits: float `[N, K]`.
        labels: int64 `[N]`.
        data: whose hierarchy and order of classes are used.
        temperature: the logits are divided by it first; None: they are taken as they are.
    """
    distances = None
    if data.hierarchy is not None:
        distances = Tree.from_nested(data.hierarchy, class_names=data.class_names)
    summary = classification_summary(
        logits, labels, distances=distances, ordered=data.is_ordered, temperature=temperature
    )
    wide = logits.to(torch.float64) / (1.0 if temperature is None else temperature)
    predictions = wide.argmax(-1)
    found = measure_predictions(wide, labels)
    curve = risk_coverage(found.confidence, found.hit)
    shown = torch.linspace(0, len(labels) - 1, min(len(labels), CURVE_POINTS)).round().long()
    size = data.num_classes
    confusion = torch.bincount(labels * size + predictions, minlength=size * size).reshape(size, size)
    measured = Measured(
        {name: value for name, value in summary.items() if math.isfinite(value)},
        bins_to_json(diagram_bins(found.confidence, found.hit)),
        {"coverage": curve.coverage[shown].tolist(), "risk": curve.risk[shown].tolist()},
    )
    return measured, confusion.tolist()


def bins_to_json(bins: ReliabilityBins) -> dict[str, list[float | None]]:
    """Plain lists; NaN, which JSON lacks, is None."""
    return {name: [_finite(value) for value in column.tolist()] for name, column in bins._asdict().items()}


def bins_from_json(columns: dict[str, list[float | None]]) -> ReliabilityBins:
    """The inverse of `bins_to_json`."""
    return ReliabilityBins(**{name: _column(values) for name, values in columns.items()})


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _column(values: list[float | None]) -> Tensor:
    return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float64)
