"""An agent measured on a whole set of demonstrations, the way its log lines measure it on a part."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlsmooth.agents import BC
from rlsmooth.agents.cloning.measures import concatenate, measure_transitions, summarise
from rlsmooth.agents.cloning.training_data import TrainingData, action_target, as_smoothings
from rlsmooth.audits import ReliabilityBins
from rlsmooth.data import Demonstrations

__all__ = ["bins_from_json", "bins_to_json", "measure"]

MEASURED = ("accuracy", "nll_hard", "ece", "policy_entropy", "entropy_frac", "kl_uniform")


def measure(agent: BC, demonstrations: Demonstrations) -> tuple[dict[str, float], ReliabilityBins | None]:
    """Means over the transitions, nats, and reliability bins.

    `nll_hard`, `policy_entropy` and, but for continuous actions, which have no most probable one, `accuracy`, `ece`,
    `entropy_frac`, `kl_uniform` and the bins. How the agent was smoothed plays no part.
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
    rows = concatenate(
        measure_transitions(head, batch, action_target(head, hard, batch), own_reference=False)
        for batch in data.chunks()
    )
    found = summarise(rows, kl_coef=0.0, by_component=False)
    return {
        name: found[name] for name in MEASURED if name in found
    }, None if rows.confidence is None else rows.reliability()


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
