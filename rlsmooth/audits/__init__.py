"""Audits of a trained policy: pure functions on tensors. Fairness, privacy and mistake severity come here later."""

from rlsmooth.audits.calibration import ReliabilityBins, calibration_error, confidence_gap, reliability_bins

__all__ = ["ReliabilityBins", "calibration_error", "confidence_gap", "reliability_bins"]
