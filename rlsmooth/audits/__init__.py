"""Audits of a trained policy, and of what a few runs show. Fairness, privacy and mistake severity come here later."""

from rlsmooth.audits.calibration import ReliabilityBins, calibration_error, confidence_gap, reliability_bins
from rlsmooth.audits.intervals import (
    Band,
    Interval,
    interquartile_mean,
    interquartile_mean_band,
    interquartile_mean_difference,
    interquartile_mean_interval,
    proportion_interval,
)

__all__ = [
    "Band",
    "Interval",
    "ReliabilityBins",
    "calibration_error",
    "confidence_gap",
    "interquartile_mean",
    "interquartile_mean_band",
    "interquartile_mean_difference",
    "interquartile_mean_interval",
    "proportion_interval",
    "reliability_bins",
]
