"""Losses, divergences and measures that compare logits with a target.

A loss knows no alpha: all smoothing is in the target. `reference` holds the definitions, dense and exact; `closed_form`
the fast layer behind the public functions; `categorical` also measures all that a log line says of predictions.
"""

from rlsmooth.losses.binary import binary_cross_entropy
from rlsmooth.losses.categorical import Statistics, cross_entropy, entropy, entropy_fractions, kl_divergence, statistics
from rlsmooth.losses.expectation import expected_value
from rlsmooth.losses.gaussian import (
    gaussian_cross_entropy,
    gaussian_entropy,
    gaussian_kl_divergence,
    widened_log_std,
)
from rlsmooth.losses.policy import (
    entropy_of,
    gaussian_log_prob,
    gaussian_mixture_entropy_estimate,
    gaussian_mixture_log_prob,
    guaranteed_floor,
    guaranteed_floors,
    kl_from_log_probabilities,
    log_probabilities,
    mixture_log_probabilities,
)
from rlsmooth.losses.regularisers import confidence_penalty, label_relaxation, margin_penalty

__all__ = [
    "Statistics",
    "binary_cross_entropy",
    "confidence_penalty",
    "cross_entropy",
    "entropy",
    "entropy_fractions",
    "entropy_of",
    "expected_value",
    "gaussian_cross_entropy",
    "gaussian_entropy",
    "gaussian_kl_divergence",
    "gaussian_log_prob",
    "gaussian_mixture_entropy_estimate",
    "gaussian_mixture_log_prob",
    "guaranteed_floor",
    "guaranteed_floors",
    "kl_divergence",
    "kl_from_log_probabilities",
    "label_relaxation",
    "log_probabilities",
    "margin_penalty",
    "mixture_log_probabilities",
    "statistics",
    "widened_log_std",
]
