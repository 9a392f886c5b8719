"""Audits of a trained policy or classifier, and statistics of a few runs. Privacy comes here later."""

from rlsmooth.audits.calibration import (
    ReliabilityBins,
    adaptive_calibration_error,
    calibration_error,
    classwise_calibration_error,
    confidence_gap,
    debiased_calibration_error,
    kernel_calibration_error,
    reliability_bins,
    smooth_calibration_error,
)
from rlsmooth.audits.classification import accuracy, brier_score, negative_log_likelihood
from rlsmooth.audits.fairness import (
    GapDisparity,
    GroupCalibration,
    GroupTemperatures,
    Multicalibration,
    fairlearn_metric,
    fit_group_temperatures,
    fit_multicalibration,
    gap_disparity,
    group_calibration,
    predicted_gap,
)
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
    "GapDisparity",
    "GroupCalibration",
    "GroupTemperatures",
    "Interval",
    "Multicalibration",
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
    "debiased_calibration_error",
    "distance_at_k",
    "fairlearn_metric",
    "fit_group_temperatures",
    "fit_multicalibration",
    "fit_temperature",
    "gap_disparity",
    "group_calibration",
    "implied_alpha",
    "interquartile_mean",
    "interquartile_mean_band",
    "interquartile_mean_difference",
    "interquartile_mean_interval",
    "kernel_calibration_error",
    "mean_absolute_error",
    "mean_logit_margin",
    "mistake_severity",
    "negative_log_likelihood",
    "optimal_margin",
    "predicted_gap",
    "proportion_interval",
    "ranked_probability_score",
    "reliability_bins",
    "risk_coverage",
    "smooth_calibration_error",
    "tree_distances",
]
