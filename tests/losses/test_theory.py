"""What theory says of smoothing exactly, and the closed form against the dense reference for any input."""

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
ALPHAS = [0.05, 0.1, 0.3, 0.7]


def draw(rows: int, classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    return 3 * torch.randn(rows, classes, dtype=F64, device=device), torch.randint(classes, (rows,), device=device)


def gradient(logits: Tensor, target: Target | Tensor) -> Tensor:
    leaf = logits.detach().clone().requires_grad_(True)
    (result,) = torch.autograd.grad(cross_entropy(leaf, target, reduction="sum"), leaf)
    return result


def close(actual: Tensor, expected: Tensor | float) -> None:
    torch.testing.assert_close(
        actual, torch.as_tensor(expected, dtype=F64).expand_as(actual).to(actual), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("background", ["uniform", "uniform over legal", "prior", "kernel"])
@pytest.mark.parametrize("alpha", [-0.2, *ALPHAS, 1.0])
def test_smoothing_is_a_kl_regulariser(background: str, alpha: float, device: torch.device) -> None:
    # CE((1-a)·onehot + a·r, p) = (1-a)·CE(onehot, p) + a·KL(r‖p) + a·H(r)
    classes = 6
    logits, labels = draw(9, classes, device)
    mask = None
    share = torch.rand(classes, dtype=F64, device=device)
    similarity = torch.rand(classes, classes, dtype=F64, device=device)
    if background == "uniform over legal":
        mask = (torch.rand(9, classes, device=device) < 0.5).scatter(-1, labels.unsqueeze(-1), True)

    def target(amount: float) -> Target:
        if background == "prior":
            return prior(labels, share / share.sum(), amount)
        return (
            kernel(labels, similarity, amount)
            if background == "kernel"
            else uniform(labels, classes, amount, mask=mask)
        )

    reference = target(1.0)
    kl = kl_divergence(logits, reference, direction="reference_to_policy", mask=mask, reduction="none")
    hard = cross_entropy(logits, one_hot(labels, classes), mask=mask, reduction="none")
    smoothed = cross_entropy(logits, target(alpha), mask=mask, reduction="none")
    close(smoothed, (1 - alpha) * hard + alpha * kl + alpha * reference.entropy().to(F64))
    if background.startswith("uniform"):
        none = kl_divergence(logits, None, direction="reference_to_policy", mask=mask, reduction="none")
        close(kl, none)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_margin_gradient_shifts_by_alpha(classes: int, alpha: float, device: torch.device) -> None:
    logits, labels = draw(9, classes, device)
    others = torch.ones(9, classes, dtype=torch.bool, device=device).scatter(-1, labels.unsqueeze(-1), False)

    def margin_gradient(target: Target) -> Tensor:
        """How the loss pulls the label's logit away from each other logit. `[9, K - 1]`"""
        slope = gradient(logits, target)
        return (slope.gather(-1, labels.unsqueeze(-1)) - slope)[others]

    hard = margin_gradient(one_hot(labels, classes))
    close(margin_gradient(uniform(labels, classes, alpha)) - hard, alpha)
    if alpha * classes / (classes - 1) <= 1:
        close(margin_gradient(uniform(labels, classes, alpha, "others")) - hard, alpha * classes / (classes - 1))


@pytest.mark.parametrize(
    ("spread", "margin"),
    [("all", lambda K, a: math.log(1 + K * (1 - a) / a)), ("others", lambda K, a: math.log((1 - a) * (K - 1) / a))],
)
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
def test_optimal_margin(spread: str, margin: object, classes: int, alpha: float, device: torch.device) -> None:
    target = uniform(torch.tensor([1], device=device), classes, alpha, spread)  # type: ignore[arg-type]
    best = margin(classes, alpha)  # type: ignore[operator]
    logits = torch.zeros(1, classes, dtype=F64, device=device)
    logits[0, 1] = best
    close(gradient(logits, target), 0.0)
    for nudge in (-1e-3, 1e-3):  # the loss is convex: a zero of the gradient is the minimum
        moved = logits.clone()
        moved[0, 1] += nudge
        assert cross_entropy(moved, target) > cross_entropy(logits, target)
    if (classes, alpha) == (10, 0.1):
        assert best == pytest.approx({"all": 4.511, "others": 4.394}[spread], abs=1e-3)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_how_much_smaller_the_smoothed_gradient_is(classes: int, alpha: float, device: torch.device) -> None:
    # ‖g_hard‖² - ‖g_LS‖² = 2a(1 - p_c) - a²(K - 1)/K
    logits, labels = draw(9, classes, device)
    hard = gradient(logits, labels).square().sum(-1)
    smoothed = gradient(logits, uniform(labels, classes, alpha)).square().sum(-1)
    at_label = logits.softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    close(hard - smoothed, 2 * alpha * (1 - at_label) - alpha**2 * (classes - 1) / classes)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_gradient_norm_of_a_certain_pseudo_label(classes: int, alpha: float, device: torch.device) -> None:
    logits = torch.full((1, classes), -torch.inf, dtype=F64, device=device)
    logits[0, 0] = 0.0
    slope = gradient(logits, uniform(torch.tensor([0], device=device), classes, alpha))
    close(slope.norm(), alpha * math.sqrt((classes - 1) / classes))


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.3])
def test_distance_between_the_gradients_of_two_labels(classes: int, alpha: float, device: torch.device) -> None:
    logits, _ = draw(1, classes, device)
    both = logits.expand(2, classes)
    labels = torch.tensor([0, classes - 1], device=device)
    for spread, factor in (("all", 1.0), ("others", classes / (classes - 1))):
        first, second = gradient(both, uniform(labels, classes, alpha, spread))  # type: ignore[arg-type]
        close((first - second).square().sum(), 2 * (1 - alpha * factor) ** 2)


def test_one_gradient_gives_the_target_away_at_any_alpha(device: torch.device) -> None:
    # From dW and db of one sample: h = dW_k/db_k, p = softmax(Wh + b), q = p - db.
    classes, width = 5, 3
    weights = torch.randn(classes, width, dtype=F64, device=device, requires_grad=True)
    bias = torch.randn(classes, dtype=F64, device=device, requires_grad=True)
    features = torch.randn(width, dtype=F64, device=device)
    target = uniform(torch.tensor([2], device=device), classes, 0.4)
    loss = cross_entropy((weights @ features + bias).unsqueeze(0), target)
    dweights, dbias = torch.autograd.grad(loss, (weights, bias))
    recovered = dweights[2] / dbias[2]
    close(recovered, features)
    close((weights @ recovered + bias).softmax(0).detach() - dbias, target.dense(F64)[0])


# ---- any logits, target and mask
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
        divergences = [
            kl_divergence(leaf, target, direction=direction, mask=mask, reduction="none") for direction in DIRECTIONS
        ]
        losses = [value, level, *divergences]
        return [
            *losses,
            *(torch.autograd.grad(loss.sum(), leaf)[0] for loss in losses),
            *statistics(leaf.detach(), target, mask),
        ]

    whole = everything()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(closed_form, "_FEW_ELEMENTS", 1)
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
