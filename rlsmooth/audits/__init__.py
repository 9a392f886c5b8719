"""Audits of a trained policy or classifier, and statistics of a few runs. Fairness and privacy come here later."""

from rlsmooth.audits.calibration import (
    ReliabilityBins,
    adaptive_calibration_error,
    calibration_error,
    classwise_calibration_error,
    confidence_gap,
    reliability_bins,
)
from rlsmooth.audits.classification import accuracy, brier_score, negative_log_likelihood
from rlsmooth.audits.intervals import (
    Band,
    Interval,
    interquartile_mean,
    interquartile_mean_band,
    interquartile_mean_difference,
    interquartile_mean_interval,
    proportion_interval,
)
from rlsmooth.audits.margins import implied_alpha, mean_logit_margin, optimal_margin
from rlsmooth.audits.mistakes import distance_at_k, mistake_severity, tree_distances
from rlsmooth.audits.ordinal import average_mean_absolute_error, mean_absolute_error, ranked_probability_score
from rlsmooth.audits.selective import RiskCoverage, risk_coverage
from rlsmooth.audits.summary import classification_summary
from rlsmooth.audits.temperature import fit_temperature

__all__ = [
    "Band",
    "Interval",
    "ReliabilityBins",
    "RiskCoverage",
    "accuracy",
    "adaptive_calibration_error",
    "average_mean_absolute_error",
    "brier_score",
    "calibration_error",
    "classification_summary",
    "classwise_calibration_error",
    "confidence_gap",
    "distance_at_k",
    "fit_temperature",
    "implied_alpha",
    "interquartile_mean",
    "interquartile_mean_band",
    "interquartile_mean_difference",
    "interquartile_mean_interval",
    "mean_absolute_error",
    "mean_logit_margin",
    "mistake_severity",
    "negative_log_likelihood",
    "optimal_margin",
    "proportion_interval",
    "ranked_probability_score",
    "reliability_bins",
    "risk_coverage",
    "tree_distances",
]
