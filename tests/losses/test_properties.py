"""For any logits, target and mask the closed form equals the dense reference, which equals its definition."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlsmooth.losses import closed_form, cross_entropy, entropy, kl_divergence, reference, statistics
from rlsmooth.targets import Target, boltzmann, from_probs, kernel, mixture, one_hot, prior, sparse, teacher, uniform

F64 = torch.float64
DIRECTIONS: tuple[Any, ...] = ("reference_to_policy", "policy_to_reference")
LOGITS = (
    st.floats(-20, 20)
    | st.sampled_from([-math.inf, -1e8, -1e4, 1e4, 0.0])
    | st.floats(-1e30, 1e30)
)  # fmt: skip


@dataclass
class Case:
    logits: Tensor
    target: Target
    mask: Tensor | None
    tame: bool
    """Whether no logit is far from the others: the two layers then agree in float32 too."""


@st.composite
def cases(draw: st.DrawFn, tame: bool | None = None, masked: bool | None = None) -> Case:
    rows, classes = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    tame = draw(st.booleans()) if tame is None else tame
    numbers = st.floats(-20, 20) if tame else LOGITS
    logits = torch.tensor(
        draw(st.lists(st.lists(numbers, min_size=classes, max_size=classes), min_size=rows, max_size=rows))
    )
    # A row that is -inf everywhere is no policy.
    logits = torch.where(logits.isneginf().all(-1, keepdim=True), 0.0, logits).to(F64)
    index = st.integers(0, classes - 1)
    labels = torch.tensor(draw(st.lists(index, min_size=rows, max_size=rows)))
    others = torch.tensor(draw(st.lists(index, min_size=rows, max_size=rows)))
    mask = None
    if draw(st.booleans()) if masked is None else masked:
        bits = st.lists(st.booleans(), min_size=classes, max_size=classes)
        mask = torch.tensor(draw(st.lists(bits, min_size=rows, max_size=rows)))
        mask = mask.scatter(-1, labels.unsqueeze(-1), True).scatter(-1, others.unsqueeze(-1), True)
        legal = logits.masked_fill(~mask, -torch.inf)
        logits = torch.where(legal.isneginf().all(-1, keepdim=True), 0.0, logits)
    alpha = torch.tensor(
        draw(st.lists(st.sampled_from([0.0, 0.1, 0.75, 1.0]), min_size=rows, max_size=rows)), dtype=F64
    )
    weights = torch.tensor(draw(st.lists(st.integers(1, 9), min_size=classes, max_size=classes)), dtype=F64)
    table = torch.tensor([[1.0 + (3 * i + j) % 5 for j in range(classes)] for i in range(classes)], dtype=F64)
    values = torch.sin(7.0 * torch.arange(rows * classes, dtype=F64)).reshape(rows, classes)
    legal_values = values if mask is None else values.masked_fill(~mask, -torch.inf)
    kind = draw(st.integers(0, 9))
    target = [
        lambda: one_hot(labels, classes, mask=mask),
        lambda: uniform(labels, classes, alpha, mask=mask),
        lambda: uniform(labels, classes, 0.25 * alpha, "others", mask=mask),
        lambda: prior(labels, weights / weights.sum(), alpha, mask=mask),
        lambda: kernel(labels, table, alpha, mask=mask),
        lambda: mixture(torch.stack((labels, others), -1), None, classes, 0.25 * alpha, mask=mask),
        lambda: sparse(torch.stack((labels, others), -1), torch.stack((alpha, 1 - alpha), -1), classes),
        lambda: boltzmann(values, 0.5, mask=mask),
        lambda: teacher(values, 2.0, labels, alpha, mask=mask),
        lambda: from_probs(legal_values.softmax(-1), mask=mask),
    ][kind]()
    change = draw(st.sampled_from(["nothing", "scale", "class weights", "mix"]))
    if change == "scale":
        target = target.scale(2 * alpha)
    elif change == "class weights":
        target = target.weight_classes(weights)
    elif change == "mix":
        target = Target.mix(target, one_hot(labels, classes), alpha)
    return Case(logits, target, mask, tame)


def assert_equal(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@given(case=cases())
def test_cross_entropy_equals_the_dense_reference(case: Case, device: torch.device) -> None:
    mask = None if case.mask is None else case.mask.to(device)
    leaf, target = case.logits.to(device).requires_grad_(True), case.target.to(device)
    values = []
    for loss in (cross_entropy, reference.cross_entropy):
        rows = loss(leaf, target, mask=mask, reduction="none")
        values.append((rows, torch.autograd.grad(rows.sum(), leaf)[0]))
    (rows, gradient), (expected, expected_gradient) = values
    assert_equal(rows, expected, 1e-12)
    assert_equal(gradient, expected_gradient, 1e-12)
    assert not rows.isnan().any()
    assert gradient.isfinite().all()


@given(case=cases())
def test_the_reference_equals_the_definition(case: Case, device: torch.device) -> None:
    rows = reference.cross_entropy(case.logits, case.target, mask=case.mask, reduction="none")
    q = case.target.dense(F64)
    for row in range(len(rows)):
        legal = range(case.logits.shape[-1]) if case.mask is None else case.mask[row].nonzero().flatten().tolist()
        numbers = {k: case.logits[row, k].item() for k in legal}
        top = max(numbers.values())
        log_sum = math.log(math.fsum(math.exp(x - top) for x in numbers.values()))
        shares = {k: q[row, k].item() for k in range(case.logits.shape[-1]) if q[row, k] != 0}
        terms = [-share * (numbers[k] - top - log_sum) if k in numbers else math.inf for k, share in shares.items()]
        assert rows[row].item() == pytest.approx(sum(terms), rel=1e-12, abs=1e-12)


@given(case=cases(tame=True))
def test_float32_stays_near_float64(case: Case, device: torch.device) -> None:
    mask = None if case.mask is None else case.mask.to(device)
    target = case.target.to(device)
    leaf = case.logits.float().to(device).requires_grad_(True)
    rows = cross_entropy(leaf, target, mask=mask, reduction="none")
    exact_leaf = leaf.detach().double().requires_grad_(True)
    exact = reference.cross_entropy(exact_leaf, target, mask=mask, reduction="none")
    scale = 1 + target.mass().abs().max().item()
    assert_equal(rows.double(), exact, 1e-5 * scale)
    gradient, exact_gradient = (
        torch.autograd.grad(value.sum(), x)[0].double() for value, x in ((rows, leaf), (exact, exact_leaf))
    )
    assert_equal(gradient, exact_gradient, 1e-6 * scale)


@given(case=cases())
def test_kl_and_entropy_equal_the_dense_reference(case: Case, device: torch.device) -> None:
    mask = None if case.mask is None else case.mask.to(device)
    logits, target = case.logits.to(device), case.target.to(device)
    assert_equal(entropy(logits, mask), reference.entropy(logits, mask), 1e-12)
    for direction in DIRECTIONS:
        for goal in (None, target):
            values = [
                loss(logits, goal, direction=direction, mask=mask, reduction="none")
                for loss in (kl_divergence, reference.kl_divergence)
            ]
            assert_equal(*values, 1e-12)


@given(case=cases(tame=True))
def test_kl_is_at_least_0_and_entropy_within_its_range(case: Case, device: torch.device) -> None:
    logits, mask = case.logits.to(device), None if case.mask is None else case.mask.to(device)
    n = torch.full(logits.shape[:-1], logits.shape[-1], device=device) if mask is None else mask.sum(-1)
    level = entropy(logits, mask)
    assert (level >= -1e-15).all()
    assert (level <= n.log() + 1e-12).all()
    for direction in DIRECTIONS:
        assert (kl_divergence(logits, direction=direction, mask=mask, reduction="none") >= -1e-12).all()


@given(case=cases(tame=True))
def test_the_gradient_sums_to_0_over_the_legal_classes(case: Case, device: torch.device) -> None:
    leaf, mask = case.logits.to(device).requires_grad_(True), None if case.mask is None else case.mask.to(device)
    (gradient,) = torch.autograd.grad(cross_entropy(leaf, case.target.to(device), mask=mask, reduction="sum"), leaf)
    legal_mass = case.target.dense(F64) if case.mask is None else case.target.dense(F64) * case.mask
    missing = case.target.mass() - legal_mass.sum(-1)
    assert_equal(gradient.sum(-1).cpu(), missing, 1e-12)


@given(case=cases(), rows=st.integers(1, 3))
def test_blocks_of_any_size_give_the_same(case: Case, rows: int, device: torch.device) -> None:
    mask = None if case.mask is None else case.mask.to(device)
    leaf, target = case.logits.to(device).requires_grad_(True), case.target.to(device)

    def everything() -> list[Tensor]:
        value = cross_entropy(leaf, target, mask=mask, reduction="none")
        level = entropy(leaf, mask)
        gradients = [torch.autograd.grad(loss.sum(), leaf)[0] for loss in (value, level)]
        return [value, level, *gradients, *statistics(leaf.detach(), target, mask)]

    whole = everything()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(closed_form._BLOCK_ELEMENTS, device.type, rows * leaf.shape[-1])
        blocks = everything()
    for one, other in zip(whole, blocks, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13, equal_nan=True)


@pytest.mark.parametrize("kind", ["teacher", "boltzmann"])
def test_softmax_targets_keep_their_mass_in_float32(kind: str, device: torch.device) -> None:
    logits, values = torch.randn(4, 50, device=device), torch.randn(4, 50, device=device)
    target = teacher(values + 1e4) if kind == "teacher" else boltzmann(values + 100, 0.01)
    exact = reference.cross_entropy(logits.double(), target, reduction="none")
    assert_equal(cross_entropy(logits, target, reduction="none").double(), exact, 1e-5)
