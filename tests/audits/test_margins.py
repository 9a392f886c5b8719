"""Margins: what logits have, what targets ask for, and that the best logits have just that."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from rlsmooth.audits import implied_alpha, mean_logit_margin, optimal_margin
from rlsmooth.losses import cross_entropy
from rlsmooth.targets import Tree, from_probs, hierarchical, kernel, mixture, one_hot, ordinal, ordinal_kernel, uniform


@pytest.mark.parametrize("num_classes", [2, 3, 10])
@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.5])
def test_the_optimal_margin_is_that_of_the_theory(device: torch.device, num_classes: int, alpha: float) -> None:
    labels = torch.arange(num_classes, device=device)
    spread_over_all = optimal_margin(uniform(labels, num_classes, alpha))
    expected = math.log(1 + num_classes * (1 - alpha) / alpha)
    torch.testing.assert_close(spread_over_all, torch.full_like(spread_over_all, expected), rtol=0, atol=1e-9)
    over_others = optimal_margin(uniform(labels, num_classes, alpha, spread="others"))
    expected = math.log((1 - alpha) * (num_classes - 1) / alpha)
    torch.testing.assert_close(over_others, torch.full_like(over_others, expected), rtol=0, atol=1e-9)


def test_logits_at_the_optimum_have_the_optimal_margin(device: torch.device) -> None:
    labels = torch.arange(6, device=device)
    tree = Tree.from_nested({"a": ["p", "q"], "b": ["r", "s"], "c": ["t", "u"]})
    for target in (hierarchical(labels, tree, 0.2, 1.0), ordinal(labels, 6, 0.3, "exponential")):
        logits = target.dense(torch.float64).log() + 3.0
        logits.requires_grad_()
        gradient = torch.autograd.grad(cross_entropy(logits, target), logits)[0]
        assert gradient.abs().max() < 1e-12  # it is the optimum
        torch.testing.assert_close(mean_logit_margin(logits, labels), optimal_margin(target).mean(), rtol=0, atol=1e-9)


def test_the_margin_by_numpy(device: torch.device) -> None:
    logits, labels = torch.randn(30, 5, dtype=torch.float64), torch.randint(5, (30,))
    rows = [row[label] - row[torch.arange(5) != label].mean() for row, label in zip(logits, labels, strict=True)]
    ours = mean_logit_margin(logits.to(device), labels.to(device))
    assert ours.item() == pytest.approx(torch.stack(rows).mean().item(), abs=1e-9)
    weights = torch.randint(0, 3, (30,))
    again = logits.repeat_interleave(weights, 0), labels.repeat_interleave(weights)
    weighted = mean_logit_margin(logits.to(device), labels.to(device), weights=weights.to(device))
    assert weighted.item() == pytest.approx(mean_logit_margin(*again).item(), abs=1e-9)


def test_the_margin_of_two_classes_is_scikit_learns_decision() -> None:
    features = torch.randn(80, 3, dtype=torch.float64)
    labels = (features[:, 0] + 0.5 * torch.randn(80, dtype=torch.float64) > 0).long()
    model = LogisticRegression().fit(features.numpy(), labels.numpy())
    decision = torch.from_numpy(model.decision_function(features.numpy()))
    logits = torch.stack((torch.zeros_like(decision), decision), -1)
    expected = (decision * (2 * labels - 1)).mean().item()
    assert mean_logit_margin(logits, labels).item() == pytest.approx(expected, abs=1e-9)


def test_special_margins(device: torch.device) -> None:
    labels = torch.tensor([0, 1], device=device)
    assert optimal_margin(one_hot(labels, 3)).tolist() == [math.inf, math.inf]
    assert optimal_margin(uniform(labels, 3, 1.0)).tolist() == [0.0, 0.0]
    assert optimal_margin(uniform(labels, 3, -0.1)).isnan().all()
    assert optimal_margin(one_hot(labels.clamp(max=0), 1)).isnan().all()
    dense = from_probs(torch.tensor([[0.2, 0.7, 0.1]], device=device, dtype=torch.float64))  # no atom: the greatest
    expected = math.log(0.7) - (math.log(0.2) + math.log(0.1)) / 2
    assert optimal_margin(dense).item() == pytest.approx(expected, abs=1e-7)
    parents, weights = torch.tensor([[1, 0]], device=device), torch.tensor([[0.2, 0.8]], device=device)
    hybrid = mixture(parents, weights, 2)  # the first atom is the label, not the greatest
    assert optimal_margin(hybrid).item() == pytest.approx(math.log(0.2 / 0.8), abs=1e-6)
    masked = torch.tensor([[1.0, 0.0, -torch.inf]], device=device)
    assert mean_logit_margin(masked, labels[:1]).item() == math.inf
    assert mean_logit_margin(torch.zeros(2, 1, device=device), torch.zeros_like(labels)).isnan()
    assert mean_logit_margin(torch.zeros(0, 3, device=device), labels[:0]).isnan()
    assert mean_logit_margin(torch.zeros(2, 2, device=device), labels + 1).isnan()
    assert mean_logit_margin(torch.full((2, 2), torch.nan, device=device), labels).isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_leading_shapes(device: torch.device, dtype: torch.dtype) -> None:
    logits, labels = torch.rand(4, 5, 3, device=device).to(dtype), torch.randint(3, (4, 5), device=device)
    wide = torch.float32 if dtype.itemsize == 2 else dtype
    ours = mean_logit_margin(logits, labels)
    assert (ours.dtype, ours.shape, ours.device.type) == (wide, (), device.type)
    flat = mean_logit_margin(logits.to(wide).reshape(20, 3), labels.reshape(20))
    torch.testing.assert_close(ours, flat, atol=0, rtol=0)
    assert optimal_margin(uniform(labels, 3, 0.1)).shape == (4, 5)
    assert implied_alpha(torch.rand(3, 3, device=device).to(dtype)).dtype == wide


def test_the_implied_alpha_is_the_mass_off_the_label(device: torch.device) -> None:
    labels = torch.arange(7)
    for scheme in ("poisson", "binomial", "beta", "exponential", "triangular"):
        table = ordinal_kernel(7, scheme, include_label=True)  # type: ignore[arg-type]
        dense = ordinal(labels, 7, None, scheme).dense(torch.float64)  # type: ignore[arg-type]
        expected = 1 - dense.diagonal()
        torch.testing.assert_close(implied_alpha(table.to(device)).cpu(), expected, rtol=0, atol=1e-9)
        torch.testing.assert_close(implied_alpha(5 * table), expected, rtol=0, atol=1e-9)  # rows need no sum
    torch.testing.assert_close(implied_alpha(torch.eye(3)), torch.zeros(3))
    assert implied_alpha(torch.zeros(2, 2)).isnan().all()


def test_kernel_smoothing_by_the_implied_alpha_is_the_table_itself() -> None:
    table = torch.rand(5, 5, dtype=torch.float64) + 0.1
    labels = torch.arange(5)
    smoothed = kernel(labels, table, implied_alpha(table)).dense(torch.float64)
    torch.testing.assert_close(smoothed, table / table.sum(-1, keepdim=True), rtol=0, atol=1e-9)


def test_nothing_waits_for_the_device() -> None:
    logits, labels = torch.rand(9, 3, device="meta"), torch.zeros(9, dtype=torch.int64, device="meta")
    assert mean_logit_margin(logits, labels).shape == ()
    assert implied_alpha(torch.rand(3, 3, device="meta")).shape == (3,)


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match=r"kernel has dtype torch\.int64"):
        implied_alpha(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"kernel has shape \(2, 3\), needs \[K, K\]"):
        implied_alpha(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"labels has shape \(1,\), needs one per sample of logits"):
        mean_logit_margin(torch.rand(2, 3), torch.tensor([0]))
