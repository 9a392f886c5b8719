"""What all audits share: arrays of any kind, dtypes and leading shapes, NaN, and no wait for the device."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from rlsmooth import audits, losses
from support import assert_equal, assert_raises

LOGITS = np.random.default_rng(0).normal(size=(20, 4))
LABELS = np.random.default_rng(1).integers(0, 4, 20)
CONFIDENCES, HITS = np.exp(-abs(LOGITS[:, 0])), LABELS < 2
COSTS = abs(np.arange(4)[:, None] - np.arange(4))
ARRAYS: dict[str, tuple[Any, ...]] = {
    "accuracy": (LOGITS, LABELS),
    "brier_score": (LOGITS, LABELS),
    "negative_log_likelihood": (LOGITS, LABELS),
    "mean_logit_margin": (LOGITS, LABELS),
    "ranked_probability_score": (LOGITS, LABELS),
    "classification_summary": (LOGITS, LABELS),
    "fit_temperature": (LOGITS, LABELS),
    "classwise_calibration_error": (abs(LOGITS) / 5, LABELS),
    "calibration_error": (CONFIDENCES, HITS),
    "adaptive_calibration_error": (CONFIDENCES, HITS),
    "confidence_gap": (CONFIDENCES, HITS),
    "reliability_bins": (CONFIDENCES, HITS),
    "risk_coverage": (CONFIDENCES, HITS),
    "distance_at_k": (LOGITS, LABELS, COSTS),
    "mistake_severity": (LABELS[::-1], LABELS, COSTS * 0.5),
    "mean_absolute_error": (LABELS[::-1], LABELS),
    "average_mean_absolute_error": (LABELS[::-1], LABELS),
    "implied_alpha": (abs(LOGITS[:4]) + 1,),
}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "calibration_error": [{"norm": "l1"}, {"norm": "l2"}, {"norm": "max"}],
    "distance_at_k": [{"k": 2}],
    "average_mean_absolute_error": [{"num_classes": 4}],
}
CASES = [(name, more) for name in ARRAYS for more in OPTIONS.get(name, [{}])]
EVERY = pytest.mark.parametrize(("name", "more"), CASES)
WITH_TENSORS = pytest.mark.parametrize(
    ("name", "more"), [case for case in CASES if case[0] != "classification_summary"]
)
OF_SAMPLES = pytest.mark.parametrize(
    ("name", "more"), [case for case in CASES if case[0] not in ("classification_summary", "implied_alpha")]
)


def tensors(name: str, device: Any = "cpu", dtype: torch.dtype = torch.float64) -> list[Tensor]:
    placed = [torch.from_numpy(one.copy()).to(device) for one in ARRAYS[name]]
    return [one.to(dtype) if one.is_floating_point() else one for one in placed]


def parts_of(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, tuple) else [result]


def takes_weights(name: str) -> bool:
    return "weights" in inspect.signature(getattr(audits, name)).parameters


@EVERY
def test_audits_take_arrays_of_any_kind(name: str, more: dict[str, Any]) -> None:
    audit, given = getattr(audits, name), ARRAYS[name]
    expected = audit(*(torch.from_numpy(one.copy()) for one in given), **more)
    foreign = [one.astype(one.dtype.newbyteorder(">")) for one in given]  # of another machine's file
    read_only = [np.broadcast_to(one, one.shape) for one in given]
    narrow = [one.astype(np.int32) if one.dtype.kind == "i" else one for one in given]
    turned = [one[::-1].copy()[::-1] for one in given]  # strides below 0
    columns = [pd.Series(one, index=np.arange(len(one)) + 7) if one.ndim == 1 else pd.DataFrame(one) for one in given]
    for arrays in (given, foreign, read_only, narrow, turned, columns):
        assert_equal(audit(*arrays, **more), expected)


def test_audits_take_weights_as_arrays_and_name_what_they_refuse() -> None:
    weights = np.arange(20)
    assert audits.accuracy(LOGITS, LABELS, weights=weights) == audits.accuracy(
        torch.from_numpy(LOGITS), torch.from_numpy(LABELS), weights=torch.from_numpy(weights)
    )
    assert_raises(
        TypeError, "probabilities is a list: pass a floating-point tensor or array", audits.accuracy, [[0.5]], LABELS
    )
    assert_raises(TypeError, r"probabilities has dtype torch\.int64", audits.accuracy, LABELS[:, None], LABELS)
    assert_raises(TypeError, "array of whole numbers, got torch.float64", audits.accuracy, LOGITS, LABELS * 1.0)
    assert_raises(TypeError, "probabilities is a ndarray", audits.accuracy, LOGITS.astype(str), LABELS)
    message = "logits must be a floating-point tensor, got ndarray"
    assert_raises(TypeError, message, losses.cross_entropy, LOGITS, torch.from_numpy(LABELS))


@WITH_TENSORS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_leading_shapes(device: torch.device, dtype: torch.dtype, name: str, more: dict[str, Any]) -> None:
    audit, given = getattr(audits, name), tensors(name, device, dtype)
    has_floats = any(one.is_floating_point() for one in given)
    wide = dtype if dtype.itemsize > 2 and has_floats else torch.float32
    folded = [one.reshape(4, 5, *one.shape[1:]) if len(one) == 20 else one for one in given]
    flat = [one.to(wide) if one.is_floating_point() else one.long() for one in given]
    for ours, expected in zip(parts_of(audit(*folded, **more)), parts_of(audit(*flat, **more)), strict=True):
        assert ours.dtype == wide
        torch.testing.assert_close(ours, expected, atol=0, rtol=0, equal_nan=True)  # shape and device, too


@WITH_TENSORS
def test_no_gradient_no_change_and_no_wait_for_the_device(name: str, more: dict[str, Any]) -> None:
    """On the meta device every read of a value is an error."""
    audit, given = getattr(audits, name), tensors(name)
    leaves = [one.clone().requires_grad_() if one.is_floating_point() else one.clone() for one in given]
    found = parts_of(audit(*leaves, **more))
    assert not any(one.requires_grad for one in found)
    assert all(torch.equal(one, before) for one, before in zip(leaves, given, strict=True))
    weights = {"weights": torch.rand(20, device="meta")} if takes_weights(name) else {}
    meta = parts_of(audit(*tensors(name, "meta"), **weights, **more))
    assert [one.shape for one in meta] == [one.shape for one in found]


def bad_values(name: str, argument: str) -> tuple[float, ...]:
    """What is no value of this argument: no audit of it can be a number."""
    if argument == "labels" or (name, argument) == ("mistake_severity", "predictions"):
        return () if name == "mean_absolute_error" else (-1, 4, -100)
    if argument in ("hits", "predictions", "distances"):
        return ()
    if "calibration" in name or name in ("confidence_gap", "reliability_bins"):
        return (torch.nan, -0.1, 1.1, torch.inf)
    return (torch.nan, torch.inf) if name == "fit_temperature" else (torch.nan,)


def all_nan(result: Any) -> bool:
    """Bins keep their edges, and a curve its coverage."""
    parts = {audits.ReliabilityBins: ("counts",), audits.RiskCoverage: ("risk", "area")}.get(type(result))
    return all(bool(one.isnan().all()) for one in ([getattr(result, part) for part in parts] if parts else [result]))


@OF_SAMPLES
def test_what_is_no_number_or_no_class_gives_nan_unless_its_weight_is_zero(
    device: torch.device, name: str, more: dict[str, Any]
) -> None:
    audit, given = getattr(audits, name), tensors(name, device)
    for place, argument in enumerate(list(inspect.signature(audit).parameters)[: len(given)]):
        for bad in bad_values(name, argument):
            wrong = [one.clone() for one in given]
            wrong[place][-1] = bad
            assert all_nan(audit(*wrong, **more)), (argument, bad)
            if takes_weights(name):
                weights = torch.ones(20, device=device)
                weights[-1] = 0
                rest = parts_of(audit(*(one[:-1] for one in given), **more))
                for ours, expected in zip(parts_of(audit(*wrong, weights=weights, **more)), rest, strict=True):
                    torch.testing.assert_close(ours, expected, equal_nan=True)


@OF_SAMPLES
def test_no_samples_or_no_weight_give_nan_and_not_perfect(
    device: torch.device, name: str, more: dict[str, Any]
) -> None:
    audit, given = getattr(audits, name), tensors(name, device)
    found = [audit(*(one[:0] if len(one) == 20 else one for one in given), **more)]
    if takes_weights(name):
        found.append(audit(*given, weights=torch.zeros(20, device=device), **more))
    for result in found:
        if isinstance(result, audits.ReliabilityBins):
            assert result.counts.tolist() == [0.0] * 15
        else:
            assert all_nan(result)
