"""Every documented `Raises` of the losses: the kind of error, and that the message names argument, value and fix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rlsmooth.losses import (
    binary_cross_entropy,
    confidence_penalty,
    cross_entropy,
    entropy,
    gaussian_cross_entropy,
    gaussian_entropy,
    gaussian_kl_divergence,
    kl_divergence,
    label_relaxation,
    margin_penalty,
    reference,
    statistics,
)
from rlsmooth.targets import from_probs, gaussian, one_hot, uniform

LABELS = torch.tensor([0, 2])
TARGET = uniform(LABELS, 3)
LOGITS = torch.zeros(2, 3)
Call = Callable[..., Any]

WITH_LOGITS: dict[str, Call] = {
    "cross_entropy": lambda x, **k: cross_entropy(x, TARGET, **k),
    "reference.cross_entropy": lambda x, **k: reference.cross_entropy(x, TARGET, **k),
    "entropy": entropy,
    "reference.entropy": reference.entropy,
    "kl_divergence": lambda x, **k: kl_divergence(x, direction="policy_to_reference", **k),
    "reference.kl_divergence": lambda x, **k: reference.kl_divergence(x, direction="policy_to_reference", **k),
    "statistics": lambda x, **k: statistics(x, TARGET, **k),
    "label_relaxation": lambda x, **k: label_relaxation(x, TARGET, **k),
    "confidence_penalty": confidence_penalty,
    "margin_penalty": lambda x, **k: margin_penalty(x, margin=1.0, **k),
}
WITH_TARGET: dict[str, Call] = {
    "cross_entropy": cross_entropy,
    "reference.cross_entropy": reference.cross_entropy,
    "kl_divergence": lambda x, t: kl_divergence(x, t, direction="reference_to_policy"),
    "statistics": statistics,
    "label_relaxation": label_relaxation,
}
WITH_WEIGHT: dict[str, Call] = {
    "cross_entropy": lambda **k: cross_entropy(LOGITS, TARGET, **k),
    "reference.cross_entropy": lambda **k: reference.cross_entropy(LOGITS, TARGET, **k),
    "label_relaxation": lambda **k: label_relaxation(LOGITS, TARGET, **k),
    "confidence_penalty": lambda **k: confidence_penalty(LOGITS, **k),
    "margin_penalty": lambda **k: margin_penalty(LOGITS, margin=1.0, **k),
    "binary_cross_entropy": lambda **k: binary_cross_entropy(torch.zeros(2), torch.ones(2), **k),
    "gaussian_cross_entropy": lambda **k: gaussian_cross_entropy(LOGITS, LOGITS, gaussian(LOGITS), **k),
}
WITH_REDUCTION: dict[str, Call] = WITH_WEIGHT | {
    "entropy": lambda **k: entropy(LOGITS, **k),
    "kl_divergence": lambda **k: kl_divergence(LOGITS, direction="policy_to_reference", **k),
    "gaussian_kl_divergence": lambda **k: gaussian_kl_divergence(LOGITS, LOGITS, direction="policy_to_reference", **k),
    "gaussian_entropy": lambda **k: gaussian_entropy(LOGITS, **k),
}


@pytest.mark.parametrize("name", WITH_LOGITS)
@pytest.mark.parametrize(
    ("logits", "found"),
    [(torch.zeros(2, 3, dtype=torch.int64), "torch.int64"), (torch.zeros(2, 3, dtype=torch.complex64), "complex64"),
     ([[0.0, 1.0, 2.0]], "list"), (None, "NoneType")],
)  # fmt: skip
def test_logits_of_a_wrong_kind(name: str, logits: object, found: str) -> None:
    with pytest.raises(TypeError, match=f"logits must be a floating-point tensor, got .*{found}"):
        WITH_LOGITS[name](logits)


@pytest.mark.parametrize("name", WITH_LOGITS)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0)])
def test_logits_without_classes(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"logits has shape \(.*\), needs \[\.\.\., K\] with at least one class"):
        WITH_LOGITS[name](torch.zeros(shape))


@pytest.mark.parametrize("name", WITH_LOGITS)
@pytest.mark.parametrize("mask", [torch.ones(2, 3), torch.ones(2, 3, dtype=torch.int64), [[True, True, True]]])
def test_mask_of_a_wrong_kind(name: str, mask: object) -> None:
    with pytest.raises(TypeError, match=r"mask must be a bool tensor \(True = legal\), got .*: use mask\.bool\(\)"):
        WITH_LOGITS[name](LOGITS, mask=mask)


@pytest.mark.parametrize("name", WITH_LOGITS)
@pytest.mark.parametrize("shape", [(), (2,), (1,), (3, 2), (3, 3), (1, 2, 3)])
def test_mask_of_a_wrong_shape(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"mask of shape \(.*\) does not broadcast to \(2, 3\)"):
        WITH_LOGITS[name](LOGITS, mask=torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("name", WITH_TARGET)
@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (uniform(LABELS, 4), ValueError, r"target is for batch \(2,\) and 4 classes, logits have shape \(2, 3\)"),
        (uniform(LABELS[:1], 3), ValueError, r"target is for batch \(1,\) and 3 classes"),
        (uniform(LABELS.unsqueeze(0), 3), ValueError, r"target is for batch \(1, 2\)"),
        (0, TypeError, r"must be a Target .*, got int"),
        (gaussian(LOGITS), TypeError, r"must be a Target .*, got GaussianTarget"),
    ],
)
def test_target_that_does_not_fit(name: str, target: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        WITH_TARGET[name](LOGITS, target)


@pytest.mark.parametrize("name", [name for name in WITH_TARGET if name != "kl_divergence"])
@pytest.mark.parametrize("labels", [LABELS.int(), LABELS.float(), torch.tensor([True, False]), torch.zeros(2, 3)])
def test_labels_of_a_wrong_dtype(name: str, labels: Tensor) -> None:
    with pytest.raises(TypeError, match=r"target must be a Target or int64 labels, got torch\..*rlsmooth\.targets"):
        WITH_TARGET[name](LOGITS, labels)


@pytest.mark.parametrize("name", [name for name in WITH_TARGET if name != "kl_divergence"])
def test_labels_of_a_wrong_shape(name: str) -> None:
    with pytest.raises(ValueError, match=r"target has shape \(3,\), needs one label a row: \(2,\)"):
        WITH_TARGET[name](LOGITS, torch.tensor([0, 1, 2]))


def test_labels_are_no_reference() -> None:
    with pytest.raises(TypeError, match=r"reference must be a Target or None, got Tensor: see rlsmooth\.targets"):
        kl_divergence(LOGITS, LABELS, direction="reference_to_policy")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", WITH_WEIGHT)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1), (2, 3)])
def test_weight_of_a_wrong_shape(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"weight has shape \(.*\), needs the batch shape \(2,\)"):
        WITH_WEIGHT[name](weight=torch.ones(shape))


@pytest.mark.parametrize("name", WITH_REDUCTION)
@pytest.mark.parametrize("reduction", ["average", "", None, 1])
def test_unknown_reduction(name: str, reduction: object) -> None:
    with pytest.raises(ValueError, match=r"reduction=.* is not known: choose one of 'none', 'mean', 'sum'"):
        WITH_REDUCTION[name](reduction=reduction)


@pytest.mark.parametrize("direction", ["forward", "", None])
def test_unknown_direction(direction: Any) -> None:
    message = r"direction=.* is not known: choose one of 'reference_to_policy', 'policy_to_reference'"
    with pytest.raises(ValueError, match=message):
        kl_divergence(LOGITS, direction=direction)
    with pytest.raises(ValueError, match=message):
        gaussian_kl_divergence(LOGITS, LOGITS, direction=direction)


def test_direction_has_no_default() -> None:
    for function in (kl_divergence, gaussian_kl_divergence):
        with pytest.raises(TypeError, match="direction"):
            function(LOGITS, LOGITS)  # type: ignore[arg-type, call-arg]


def test_relaxation_needs_a_label() -> None:
    with pytest.raises(ValueError, match="target has no atom, so no label"):
        label_relaxation(LOGITS, from_probs(torch.full((2, 3), 1 / 3)))


@pytest.mark.parametrize(("value", "error"), [(-0.1, ValueError), (float("nan"), ValueError), ("1", TypeError)])
def test_thresholds(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"entropy_threshold_nats"):
        confidence_penalty(LOGITS, entropy_threshold_nats=value)
    with pytest.raises(error, match=r"margin"):
        margin_penalty(LOGITS, margin=value)


@pytest.mark.parametrize("side", ["real_target", "fake_target"])
@pytest.mark.parametrize(
    ("value", "error"), [(-0.1, ValueError), (1.1, ValueError), (float("nan"), ValueError), (True, TypeError)]
)
def test_binary_targets(side: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=side):
        binary_cross_entropy(torch.zeros(2), torch.ones(2), **{side: value})


def test_binary_logits_and_labels() -> None:
    with pytest.raises(TypeError, match=r"logits must be a floating-point tensor, got torch\.int64"):
        binary_cross_entropy(torch.zeros(2, dtype=torch.int64), torch.ones(2))
    with pytest.raises(TypeError, match=r"logits must be a floating-point tensor, got <class 'list'>"):
        binary_cross_entropy([0.0], torch.ones(1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"labels_real_is_one \(2,\) and logits \(2, 1\) differ in shape"):
        binary_cross_entropy(torch.zeros(2, 1), torch.ones(2))


def test_gaussian_arguments() -> None:
    target = gaussian(LOGITS)
    for mean in (torch.zeros(2, 3, dtype=torch.int64), 0.0):
        with pytest.raises(TypeError, match="mean must be a floating-point tensor"):
            gaussian_cross_entropy(mean, LOGITS, target)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="mean must be a floating-point tensor"):
            gaussian_kl_divergence(mean, LOGITS, direction="policy_to_reference")  # type: ignore[arg-type]
    with pytest.raises(
        TypeError, match=r"target must be a GaussianTarget, got Target: see rlsmooth\.targets\.gaussian"
    ):
        gaussian_cross_entropy(LOGITS, LOGITS, TARGET)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"target is for actions \(2, 3\), mean has shape \(1, 3\)"):
        gaussian_cross_entropy(LOGITS[:1], LOGITS, target)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 1, 3)])
def test_a_target_of_one_row_does_not_serve_many(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"target is for batch \(1,\)"):
        cross_entropy(torch.zeros(shape), one_hot(torch.tensor([0]), 3))


def test_functional_transforms_raise() -> None:
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.grad(lambda x: cross_entropy(x, TARGET))(LOGITS)


@pytest.mark.parametrize("name", WITH_WEIGHT)
def test_weight_that_is_a_number(name: str) -> None:
    with pytest.raises(TypeError, match="weight"):
        WITH_WEIGHT[name](weight=2.0)


def test_binary_labels_that_are_a_list() -> None:
    with pytest.raises(TypeError, match="labels_real_is_one"):
        binary_cross_entropy(torch.zeros(2), [0, 1])  # type: ignore[arg-type]
