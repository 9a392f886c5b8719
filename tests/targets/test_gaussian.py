"""Targets for continuous actions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rlsmooth.targets import GaussianTarget, gaussian


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (0,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.1, 1.0])
def test_weights_and_reference(shape: tuple[int, ...], dtype: torch.dtype, alpha: float, device: torch.device) -> None:
    actions = torch.randn(*shape, 3, dtype=dtype, device=device)
    target = gaussian(actions, alpha, reference_mean=0.5, reference_std=2)
    assert target.batch_shape == shape
    torch.testing.assert_close(target.actions, actions)
    assert target.background_weight is not None
    assert target.atom_weight.dtype == target.background_weight.dtype == torch.float64
    torch.testing.assert_close(target.atom_weight, torch.full(shape, 1 - alpha, dtype=torch.float64, device=device))
    torch.testing.assert_close(target.background_weight, torch.full(shape, alpha, dtype=torch.float64, device=device))
    torch.testing.assert_close(target.mass(), torch.ones(shape, dtype=torch.float64, device=device))
    assert target.reference_mean.item() == 0.5
    assert target.reference_std.item() == 2
    assert target.reference_mean.dtype == target.reference_std.dtype == dtype


def test_reference_a_dimension_and_alpha_a_row(device: torch.device) -> None:
    alpha = torch.rand(2, 1, device=device)
    mean, std = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 3.0])
    target = gaussian(torch.randn(2, 5, 3, device=device), alpha, reference_mean=mean, reference_std=std)
    assert target.background_weight is not None
    torch.testing.assert_close(target.background_weight, alpha.double().expand(2, 5))
    assert target.reference_mean.tolist() == [0.0, 1.0, 2.0]
    assert target.reference_std.tolist() == [1.0, 2.0, 3.0]
    assert target.reference_std.device == target.actions.device
    one = gaussian(torch.randn(2, 3), reference_std=torch.tensor([2.0]))
    assert one.reference_std.tolist() == [2.0]


def test_no_dimension_at_all() -> None:
    assert gaussian(torch.zeros(4, 0), 0.1).mass().tolist() == [1.0] * 4


@pytest.mark.parametrize("index", [1, slice(1, 3), torch.tensor([2, 0]), torch.tensor([True, False, True, False])])
def test_indexing(index: Any) -> None:
    alpha = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    actions = torch.randn(4, 3)
    target = gaussian(actions, alpha, reference_std=torch.tensor([1.0, 2.0, 3.0]))[index]
    torch.testing.assert_close(target.actions, actions[index])
    assert target.background_weight is not None
    torch.testing.assert_close(target.background_weight, alpha[index])
    torch.testing.assert_close(target.atom_weight, 1 - alpha[index])
    assert target.reference_std.tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(IndexError):
        gaussian(actions[0])[0]


def test_to_and_without_background(device: torch.device) -> None:
    moved = gaussian(torch.randn(2, 3), 0.1).to(device)
    assert moved.actions.device.type == moved.reference_std.device.type == moved.mass().device.type == device.type
    hard = GaussianTarget(torch.randn(2, 3), torch.ones(2), None, torch.zeros(()), torch.ones(()))
    assert hard.to(device).background_weight is None
    assert hard[0].background_weight is None
    assert hard.mass().tolist() == [1.0, 1.0]


def test_frozen() -> None:
    with pytest.raises(AttributeError):
        gaussian(torch.zeros(1, 1)).actions = torch.ones(1, 1)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"actions": [[0.5]]}, TypeError, r"actions must be a floating-point tensor \[..., D\], got \[\[0.5\]\]"),
        ({"actions": torch.tensor([[1]])}, TypeError, r"actions must be a floating-point .* got torch.int64"),
        ({"actions": torch.tensor(1.0)}, TypeError, r"actions must be a floating-point tensor \[..., D\]"),
        ({"actions": torch.tensor([[0.0, math.nan]])}, ValueError, r"actions\[0, 1\]=nan must be finite"),
        ({"alpha": 1.5}, ValueError, r"alpha=1.5 must be finite and at most 1"),
        ({"alpha": torch.zeros(3)}, ValueError, r"alpha of shape \(3,\) does not broadcast over the batch \(1,\)"),
        ({"reference_std": 0.0}, ValueError, r"reference_std=0.0 must be finite and above 0"),
        ({"reference_std": torch.tensor([1.0, -1.0])}, ValueError, r"reference_std=\[1.0, -1.0\] must be"),
        ({"reference_std": math.nan}, ValueError, r"reference_std=nan must be"),
        ({"reference_mean": math.inf}, ValueError, r"reference_mean=inf must be finite"),
        ({"reference_mean": torch.zeros(3)}, ValueError, r"reference_mean has shape \(3,\), needs a number or \(2,\)"),
        ({"reference_std": torch.ones(1, 2)}, ValueError, r"reference_std has shape \(1, 2\), needs a number or"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        gaussian(**{"actions": torch.zeros(1, 2), **arguments})


def test_unchecked_values_pass() -> None:
    target = gaussian(torch.tensor([[math.nan]]), torch.tensor(2.0), reference_std=-1.0, validate=False)
    assert target.mass().tolist() == [1.0]


def test_labels_and_alpha_carry_no_gradient() -> None:
    actions = torch.zeros(2, 3, requires_grad=True)
    alpha = torch.full((2,), 0.5, requires_grad=True)
    target = gaussian(actions, alpha)
    assert not target.actions.requires_grad
    assert not target.mass().requires_grad


def test_the_reference_carries_no_gradient() -> None:
    learned = torch.ones(3, requires_grad=True)
    target = gaussian(torch.zeros(2, 3), reference_mean=learned, reference_std=learned)
    assert not target.reference_mean.requires_grad
    assert not target.reference_std.requires_grad
