"""Regularisers, statistics and measures against their papers' formulas written out and an oracle in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from rlsmooth.losses import (
    Statistics,
    closed_form,
    confidence_penalty,
    cross_entropy,
    entropy,
    label_relaxation,
    margin_penalty,
    reference,
    statistics,
)
from rlsmooth.losses import kl_divergence as our_kl
from rlsmooth.losses.arguments import reduce
from rlsmooth.losses.categorical import PredictionMeasures, measure_predictions
from rlsmooth.targets import (
    Target,
    boltzmann,
    from_probs,
    hierarchical,
    kernel,
    mixture,
    one_hot,
    ordinal,
    prior,
    sparse,
    teacher,
    uniform,
)
from rlsmooth.targets.tree import Tree
from support import assert_raises

K = 5
F64 = torch.float64


def draw(device: torch.device, rows: int = 12) -> tuple[Tensor, Tensor]:
    return 2 * torch.randn(rows, K, dtype=F64, device=device), torch.randint(K, (rows,), device=device)


def nearest_credible(p: Tensor, label: int, least: float) -> Tensor:
    """Lienen and Hüllermeier (2021), equation 6: the label gets `least`, the others keep their proportions. `[K]`"""
    result = (1 - least) * p / (1 - p[label])
    result[label] = least
    return result


def paper_relaxation(logits: Tensor, label: int, least: float) -> Tensor:
    """Their equation 7: 0 inside the credal set, else KL from the nearest of its members, which is a constant."""
    p = logits.softmax(-1)
    if p[label] >= least:
        return 0 * p.sum()
    # Held constant: where r is the nearest, the KL divergence does not change with r to first order.
    return kl_divergence(Categorical(nearest_credible(p.detach(), label, least)), Categorical(p))


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.4])
def test_relaxation_is_the_papers(alpha: float, device: torch.device) -> None:
    logits, labels = draw(device)
    logits[0, labels[0]] = 20.0  # surely satisfied
    leaf = logits.requires_grad_(True)
    target = uniform(labels, K, alpha, "others")
    rows = label_relaxation(leaf, target, reduction="none")
    expected = torch.stack([paper_relaxation(leaf[i], int(labels[i]), 1 - alpha) for i in range(len(labels))])
    assert 0 < (expected == 0).sum() < len(labels)
    torch.testing.assert_close(rows, expected)
    torch.testing.assert_close(torch.autograd.grad(rows.sum(), leaf)[0], torch.autograd.grad(expected.sum(), leaf)[0])


def test_relaxation_is_the_least_kl_of_all_that_the_target_allows(device: torch.device) -> None:
    logits, labels = draw(device, 4)
    rows = label_relaxation(logits, uniform(labels, K, 0.1, "others"), reduction="none")
    policy = Categorical(logits=logits)
    for _ in range(300):  # members of the credal set, at random
        member = torch.rand(4, K, dtype=F64, device=device) ** 3
        member = 0.1 * torch.rand(4, 1, dtype=F64, device=device) * member / member.sum(-1, keepdim=True)
        member.scatter_add_(-1, labels.unsqueeze(-1), 1 - member.sum(-1, keepdim=True))
        assert (kl_divergence(Categorical(member), policy) >= rows - 1e-12).all()


@pytest.mark.parametrize("kind", ["uniform over all", "hierarchical", "ordinal", "mixture", "one_hot"])
def test_relaxation_reads_the_targets_mass_on_its_label(kind: str, device: torch.device) -> None:
    logits, labels = draw(device)
    tree = Tree.from_nested({"a": ["b", "c"], "d": ["e", "f", "g"]})
    target: Target = {
        "uniform over all": lambda: uniform(labels, K, 0.2),
        "hierarchical": lambda: hierarchical(labels, tree, None),
        "ordinal": lambda: ordinal(labels, K, 0.3),
        "mixture": lambda: mixture(torch.stack((labels, labels), -1), None, K, 0.1),
        "one_hot": lambda: one_hot(labels, K),
    }[kind]()
    least = target.dense(F64).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    expected = [paper_relaxation(logits[i], int(labels[i]), float(least[i])) for i in range(len(labels))]
    if kind == "one_hot":
        expected = list(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
    torch.testing.assert_close(label_relaxation(logits, target, reduction="none"), torch.stack(expected))


def test_relaxation_under_a_mask(device: torch.device) -> None:
    mask = torch.tensor([[True, True, True, False], [False, True, False, False]], device=device)
    labels = torch.tensor([0, 1], device=device)
    for fill in (-torch.inf, -1e8, torch.nan):
        logits = torch.tensor([[0.0, 1.0, 2.0, fill], [fill, 0.0, fill, fill]], dtype=F64, device=device)
        leaf = logits.requires_grad_(True)
        rows = label_relaxation(leaf, uniform(labels, 4, 0.1, "others", mask=mask), mask=mask, reduction="none")
        expected = paper_relaxation(torch.tensor([0.0, 1.0, 2.0], dtype=F64), 0, 0.9)
        assert rows.tolist() == pytest.approx([expected.item(), 0.0])
        (gradient,) = torch.autograd.grad(rows.sum(), leaf)
        assert gradient.isfinite().all()
        assert (gradient[~mask] == 0).all()
        assert (gradient[1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_relaxation_of_certain_policies(dtype: torch.dtype, device: torch.device) -> None:
    logits = torch.tensor([[1e4, 0.0], [-1e4, 0.0], [0.0, -torch.inf], [2.25, 0.0]], device=device).to(dtype)
    leaf = logits.requires_grad_(True)
    target = uniform(torch.zeros(4, dtype=torch.int64, device=device), 2, 0.1, "others")
    rows = label_relaxation(leaf, target, reduction="none")
    assert rows.dtype == torch.float32
    far = 0.9 * math.log(0.9) + 0.1 * math.log(0.1) + 0.9 * 1e4
    assert rows.tolist() == pytest.approx([0.0, far, 0.0, 0.0], rel=2e-3)
    (gradient,) = torch.autograd.grad(rows.sum(), leaf)
    assert gradient.dtype == dtype
    assert gradient.tolist() == [[0, 0], pytest.approx([-0.9, 0.9], abs=0.01), [0, 0], [0, 0]]


@pytest.mark.parametrize("threshold", [None, 0.0, 1.2, 5.0])
def test_confidence_penalty_is_the_negative_entropy_and_its_hinge(
    threshold: float | None, device: torch.device
) -> None:
    logits, _ = draw(device)
    leaf = logits.requires_grad_(True)
    level = Categorical(logits=leaf).entropy()
    expected = -level if threshold is None else torch.clamp(threshold - level, min=0)
    rows = confidence_penalty(leaf, entropy_threshold_nats=threshold, reduction="none")
    torch.testing.assert_close(rows, expected)
    torch.testing.assert_close(torch.autograd.grad(rows.sum(), leaf)[0], torch.autograd.grad(expected.sum(), leaf)[0])


def test_confidence_penalty_under_a_mask(device: torch.device) -> None:
    mask = torch.tensor([[True, True, False]], device=device)
    logits = torch.tensor([[1.0, 1.0, torch.nan]], device=device, requires_grad=True)
    value = confidence_penalty(logits, entropy_threshold_nats=1.0, mask=mask)
    assert value.item() == pytest.approx(1 - math.log(2))
    assert torch.autograd.grad(value, logits)[0].tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("margin", [0.0, 1.5, 100.0])
def test_margin_penalty_is_the_papers(margin: float, device: torch.device) -> None:
    # Liu et al. (2022), equation 7, class by class
    logits, _ = draw(device)
    leaf = logits.requires_grad_(True)
    expected = torch.stack(
        [sum((torch.relu(row.max() - row[k] - margin) for k in range(K)), start=0 * row[0]) for row in leaf]
    )
    rows = margin_penalty(leaf, margin=margin, reduction="none")
    torch.testing.assert_close(rows, expected)
    torch.testing.assert_close(torch.autograd.grad(rows.sum(), leaf)[0], torch.autograd.grad(expected.sum(), leaf)[0])


@pytest.mark.parametrize("fill", [-math.inf, -1e8, math.nan, 1e8])
def test_margin_penalty_under_a_mask(fill: float, device: torch.device) -> None:
    mask = torch.tensor([[True, True, False]], device=device)
    logits = torch.tensor([[5.0, 1.0, fill]], device=device, requires_grad=True)
    value = margin_penalty(logits, margin=1.0, mask=mask)
    assert value.item() == 3
    assert torch.autograd.grad(value, logits)[0].tolist() == [[1, -1, 0]]


def relaxed(logits: Tensor, **arguments: object) -> Tensor:
    labels = torch.zeros(logits.shape[:-1], dtype=torch.int64, device=logits.device)
    return label_relaxation(logits, uniform(labels, logits.shape[-1], 0.1), **arguments)  # type: ignore[arg-type]


def hinged(logits: Tensor, **arguments: object) -> Tensor:
    return confidence_penalty(logits, entropy_threshold_nats=2.0, **arguments)  # type: ignore[arg-type]


def margins(logits: Tensor, **arguments: object) -> Tensor:
    return margin_penalty(logits, margin=0.5, **arguments)  # type: ignore[arg-type]


every_regulariser = pytest.mark.parametrize("loss", [relaxed, hinged, confidence_penalty, margins])


@every_regulariser
def test_reductions_weights_and_ignored_rows(loss: Callable[..., Tensor], device: torch.device) -> None:
    kept, _ = draw(device, 3)
    logits = torch.cat((torch.full((2, K), torch.nan, dtype=F64, device=device), kept)).requires_grad_(True)
    weight = torch.tensor([0.0, 0.0, 1.0, 2.0, 4.0], device=device)
    alone = kept.requires_grad_(True)
    rows = loss(alone, reduction="none") * weight[2:]
    for reduction, expected in (("none", rows), ("sum", rows.sum()), ("mean", rows.sum() / 7)):
        value = loss(logits, weight=weight, reduction=reduction)
        torch.testing.assert_close(value[2:] if reduction == "none" else value, expected)
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert (gradient[:2] == 0).all()
        torch.testing.assert_close(gradient[2:], torch.autograd.grad(expected.sum(), alone, retain_graph=True)[0])
    torch.testing.assert_close(loss(alone), loss(alone, reduction="none").mean())
    assert loss(logits, weight=torch.zeros(5, device=device)).item() == 0


@every_regulariser
def test_derivatives(loss: Callable[..., Tensor], device: torch.device) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.5, -1.0], [-3.0, 0.2, 0.1, 2.0]], dtype=F64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: loss(x, reduction="none"), logits)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, reduction="none"), logits)


@every_regulariser
@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (2, 0)])
def test_any_batch_shape(loss: Callable[..., Tensor], shape: tuple[int, ...], device: torch.device) -> None:
    logits = torch.randn(*shape, K, device=device, requires_grad=True)
    assert loss(logits, reduction="none").shape == shape
    mean = loss(logits)
    if 0 in shape:
        assert mean.item() == 0
    assert torch.autograd.grad(mean, logits)[0].shape == logits.shape


@every_regulariser
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_inf_come_out(loss: Callable[..., Tensor], bad: float, device: torch.device) -> None:
    for place in range(3):
        logits = torch.zeros(1, 3, device=device)
        logits[0, place] = bad
        assert loss(logits).isnan()


def test_inf_beside_a_hard_label_comes_out_of_relaxation(device: torch.device) -> None:
    logits = torch.tensor([[0.0, math.inf]], device=device)
    assert label_relaxation(logits, one_hot(torch.tensor([0], device=device), 2)).isnan()


# ---- statistics
CHOICES = 6
KINDS = ["labels", "one_hot", "uniform", "others", "negative", "prior", "kernel", "mixture", "sparse", "teacher"]
KINDS += ["teacher and labels", "boltzmann", "from_probs", "written out", "weighted"]
DTYPES = [(torch.float32, 3e-6), (F64, 1e-12), (torch.bfloat16, 3e-6), (torch.float16, 3e-6)]


def draw_logits(dtype: torch.dtype, device: torch.device, *shape: int) -> Tensor:
    return (3 * torch.randn(*shape, CHOICES, dtype=F64, device=device)).to(dtype)


def draw_labelled(masked: bool, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Labels `[3, 5]`, and where `masked` a mask that allows each label and the class after it."""
    labels = torch.randint(CHOICES, (3, 5), device=device)
    if not masked:
        return labels, None
    mask = torch.rand(3, 5, CHOICES, device=device) < 0.5
    return labels, mask.scatter(-1, torch.stack((labels, (labels + 1) % CHOICES), -1), True)


def make_target(kind: str, labels: Tensor, mask: Tensor | None) -> tuple[Target | Tensor, Tensor | None, Tensor]:
    """A target, its reference by definition (None for the uniform over legal classes), and its own labels."""
    pair = torch.stack((labels, (labels + 1) % CHOICES), -1)
    share = torch.rand(CHOICES, dtype=F64, device=labels.device) + 0.1
    table = torch.rand(CHOICES, CHOICES, dtype=F64, device=labels.device)
    values = torch.randn(*labels.shape, CHOICES, dtype=F64, device=labels.device)

    def normalised(weights: Tensor) -> Tensor:
        legal = weights if mask is None else weights * mask
        return legal / legal.sum(-1, keepdim=True)

    given, even = normalised(values.exp()), uniform(labels, CHOICES, 0.2, mask=mask)
    best, written = given.argmax(-1), even.written_out(F64)
    cases: dict[str, tuple[Target | Tensor, Tensor | None, Tensor]] = {
        "labels": (labels, None, labels),
        "one_hot": (one_hot(labels, CHOICES), None, labels),
        "uniform": (even, None, labels),
        "others": (uniform(labels, CHOICES, 0.2, "others", mask=mask), None, labels),
        "negative": (uniform(labels, CHOICES, -0.2, mask=mask), None, labels),
        "prior": (prior(labels, share / share.sum(), 0.3, mask=mask), normalised(share), labels),
        "kernel": (kernel(labels, table, 0.3, mask=mask), normalised(table.clone().fill_diagonal_(0)[labels]), labels),
        "mixture": (mixture(pair, None, CHOICES, 0.2, mask=mask), None, labels),
        "sparse": (sparse(pair, values[..., :2].exp(), CHOICES), None, labels),
        "teacher": (teacher(values, mask=mask), given, best),
        "teacher and labels": (teacher(values, 1.0, labels, 0.3, mask=mask), given, labels),
        "boltzmann": (boltzmann(values, mask=mask), given, best),
        "from_probs": (from_probs(given), given, best),
        "written out": (written, written.dense(F64), labels),
        "weighted": (even.scale(2.5), None, labels),
    }
    return cases[kind]


def oracle(
    logits: Tensor, target: Target, background: Tensor | None, labels: Tensor, mask: Tensor | None
) -> Statistics:
    """By definition; `background` is the reference's own distribution, `[..., K]`, None for the uniform over legal."""
    legal = torch.ones_like(logits, dtype=torch.bool) if mask is None else mask
    log_p = logits.double().masked_fill(~legal, -torch.inf).log_softmax(-1)
    p, q = log_p.exp(), target.dense(F64)
    r = legal.double() / legal.sum(-1, keepdim=True) if background is None else background
    return Statistics(
        -torch.where(q != 0, q * log_p, 0.0).sum(-1),
        -torch.where(p > 0, p * log_p, 0.0).sum(-1),
        torch.where(r > 0, r * (r.log() - log_p), 0.0).sum(-1),
        p.gather(-1, labels.unsqueeze(-1)).squeeze(-1),
        log_p.argmax(-1) == labels,
    )


def assert_same(
    actual: Statistics | PredictionMeasures, expected: Statistics | PredictionMeasures, tolerance: float
) -> None:
    for name, mine, wanted in zip(actual._fields, actual, expected, strict=True):
        assert mine.shape == wanted.shape, name
        if name in ("top1_hit", "hit"):
            assert mine.dtype == torch.bool
            assert torch.equal(mine, wanted)
        else:
            torch.testing.assert_close(mine.to(F64), wanted.to(F64), rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (F64, 1e-12), (torch.bfloat16, 3e-6)])
def test_equals_the_oracle(
    kind: str, masked: bool, dtype: torch.dtype, tolerance: float, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(closed_form._BLOCK_ELEMENTS, device.type, 4 * CHOICES)  # several blocks, the last one short
    logits = draw_logits(dtype, device, 3, 5)
    drawn, mask = draw_labelled(masked, device)
    target, background, labels = make_target(kind, drawn, mask)
    result = statistics(logits, target, mask)
    written = target if isinstance(target, Target) else one_hot(target, CHOICES)
    assert_same(result, oracle(logits, written, background, labels, mask), tolerance)
    assert result.cross_entropy.dtype == (F64 if dtype == F64 else torch.float32)


def test_has_no_graph(device: torch.device) -> None:
    logits = torch.randn(4, CHOICES, device=device, requires_grad=True)
    result = statistics(logits, uniform(torch.arange(4, device=device), CHOICES))
    assert not any(column.requires_grad for column in result)
    assert not any(column.requires_grad for column in measure_predictions(logits, torch.arange(4, device=device)))


def test_impossible_classes(device: torch.device) -> None:
    logits = torch.tensor([[1.0, -torch.inf, 1.0]], dtype=F64, device=device)
    mask = torch.tensor([[True, False, True]], device=device)
    label = torch.tensor([2], device=device)
    masked = statistics(logits, uniform(label, 3, mask=mask), mask)
    assert [column.item() for column in masked] == pytest.approx([math.log(2), math.log(2), 0, 0.5, 0])
    # Without the mask the uniform reference has an action that the policy can't take.
    plain = statistics(logits, label)
    assert [column.item() for column in plain] == pytest.approx([math.log(2), math.log(2), math.inf, 0.5, 0])
    impossible = statistics(logits, torch.tensor([1], device=device))
    assert (impossible.cross_entropy.item(), impossible.label_probability.item()) == (math.inf, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_inf_come_out_of_statistics(bad: float, device: torch.device) -> None:
    logits = torch.tensor([[0.0, bad, 1.0]], device=device)
    result = statistics(logits, uniform(torch.tensor([2], device=device), 3))
    assert all(column.isnan() for column in result[:4])
    assert not result.top1_hit


def test_agrees_with_the_losses(device: torch.device) -> None:
    logits = torch.randn(7, CHOICES, dtype=F64, device=device)
    target = prior(torch.randint(CHOICES, (7,), device=device), torch.full((CHOICES,), 1 / CHOICES, dtype=F64), 0.3)
    result = statistics(logits, target)
    torch.testing.assert_close(result.cross_entropy, reference.cross_entropy(logits, target, reduction="none"))
    torch.testing.assert_close(result.entropy, entropy(logits))


def test_a_broken_row_is_no_hit(device: torch.device) -> None:
    logits = torch.full((1, 3), math.nan, device=device)
    assert not statistics(logits, torch.tensor([0], device=device)).top1_hit


# ---- measures of predictions


NUMBERS = [name for name in PredictionMeasures._fields if name != "hit"]


def separately(
    logits: Tensor, target: Target | Tensor, mask: Tensor | None, labels: Tensor, reference: Target | None
) -> PredictionMeasures:
    """Each measure by the public loss of its own, on float64 logits."""
    wide = logits.to(F64)

    def loss(goal: Target | Tensor) -> Tensor:
        return cross_entropy(wide, goal, mask=mask, reduction="none")

    def divergence(towards: Target | None) -> Tensor:
        return our_kl(wide, towards, direction="reference_to_policy", mask=mask, reduction="none")

    own = target.reference if isinstance(target, Target) else None
    if reference is None and own is not None:
        none = labels.new_zeros((*labels.shape, 0))
        reference = Target(CHOICES, none, none.to(F64), torch.ones_like(labels, dtype=F64), own)
    best = (wide if mask is None else wide.masked_fill(~mask, -torch.inf)).argmax(-1)
    return PredictionMeasures(
        loss(target),
        loss(labels),
        (-loss(labels)).exp(),
        entropy(wide, mask),
        divergence(reference),
        divergence(None),
        entropy(torch.zeros_like(wide), mask),
        (-loss(best)).exp(),
        best == labels,
    )


@pytest.mark.parametrize("towards", ["own", "given"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_equals_the_separate_losses(
    kind: str,
    masked: bool,
    towards: str,
    dtype: torch.dtype,
    tolerance: float,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = draw_logits(dtype, device, 3, 5)
    labels, mask = draw_labelled(masked, device)
    target, _, _ = make_target(kind, labels, mask)
    given = make_target("kernel", labels, mask)[0] if towards == "given" else None
    assert not isinstance(given, Tensor)
    expected = separately(logits, target, mask, labels, given)
    monkeypatch.setitem(closed_form._BLOCK_ELEMENTS, device.type, 4 * CHOICES)  # several blocks, the last one short
    found = measure_predictions(logits, target, mask, labels=labels, reference=given)
    assert_same(found, expected, tolerance)
    assert found.nll.dtype == (F64 if dtype == F64 else torch.float32)


@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 0), (2, 3)])
def test_any_batch_shape_of_measures(shape: tuple[int, ...], device: torch.device) -> None:
    logits, labels = draw_logits(F64, device, *shape), torch.zeros(shape, dtype=torch.int64, device=device)
    found = measure_predictions(logits, labels, labels=labels)
    assert_same(found, separately(logits, labels, None, labels, None), 1e-12)


def test_labels_are_the_targets_own_where_none_are_given(device: torch.device) -> None:
    logits, labels = draw_logits(F64, device, 8), torch.randint(CHOICES, (8,), device=device)
    for kind in ("uniform", "kernel", "written out"):  # the last has no atom: its most probable class
        target, _, _ = make_target(kind, labels, None)
        assert_same(measure_predictions(logits, target), measure_predictions(logits, target, labels=labels), 0.0)
    other = (labels + 2) % CHOICES
    found = measure_predictions(logits, make_target("uniform", labels, None)[0], labels=other)
    torch.testing.assert_close(found.nll, cross_entropy(logits, other, reduction="none"))


def test_a_single_legal_class(device: torch.device) -> None:
    logits, labels = draw_logits(torch.float32, device, 5), torch.randint(CHOICES, (5,), device=device)
    mask = torch.nn.functional.one_hot(labels, CHOICES).bool()
    found = measure_predictions(logits, uniform(labels, CHOICES, 0.3, mask=mask), mask, labels=labels)
    for name in ("cross_entropy", "nll", "entropy", "kl_reference", "kl_uniform", "max_entropy"):
        assert getattr(found, name).tolist() == [0.0] * 5, name
    assert found.confidence.tolist() == found.label_probability.tolist() == [1.0] * 5
    assert found.hit.all()


def test_impossible_classes_of_measures(device: torch.device) -> None:
    logits = torch.tensor([[1.0, -torch.inf, 1.0]], device=device)
    possible, impossible = torch.tensor([2], device=device), torch.tensor([1], device=device)
    found = measure_predictions(logits, possible)
    expected = [math.log(2), math.log(2), 0.5, math.log(2), math.inf, math.inf, math.log(3), 0.5]
    assert [getattr(found, name).item() for name in NUMBERS] == pytest.approx(expected)
    found = measure_predictions(logits, impossible)
    assert (found.nll.item(), found.label_probability.item()) == (math.inf, 0.0)
    mask = torch.tensor([[True, False, True]], device=device)
    found = measure_predictions(logits, uniform(possible, 3, mask=mask), mask)
    assert (found.kl_uniform.item(), found.kl_reference.item()) == pytest.approx((0.0, 0.0))
    assert found.max_entropy.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_row_is_nan_and_counts_for_nothing_at_weight_0(bad: float, device: torch.device) -> None:
    logits, labels = draw_logits(torch.float32, device, 4), torch.randint(CHOICES, (4,), device=device)
    logits[1, 3] = bad
    found = measure_predictions(logits, uniform(labels, CHOICES), labels=labels)
    for name in NUMBERS:
        assert getattr(found, name).isnan().tolist() == [False, name != "max_entropy", False, False], name
    assert not found.hit[1]
    weights, kept = torch.tensor([2.0, 0.0, 0.5, 1.0], device=device), torch.tensor([0, 2, 3], device=device)
    whole = separately(logits[kept], uniform(labels[kept], CHOICES), None, labels[kept], None)
    for name in NUMBERS:
        expected = (getattr(whole, name) * weights[kept]).sum() / 3.5
        torch.testing.assert_close(reduce(getattr(found, name), weights, "mean").to(F64), expected, rtol=3e-6, atol=0)


def test_components_are_joined_along_their_own_axis(device: torch.device) -> None:
    sizes, labels = (2, 1, 5), torch.zeros(7, dtype=torch.int64, device=device)
    groups = [torch.randn(7, size, device=device) for size in sizes]
    parts = [measure_predictions(logits, labels) for logits in groups]
    parts = [PredictionMeasures(*(column.unsqueeze(-1) for column in part)) for part in parts]
    joined = PredictionMeasures.concatenate(parts, dim=-1)
    assert {column.shape for column in joined} == {(7, 3)}
    assert joined.max_entropy[0].tolist() == pytest.approx([math.log(size) for size in sizes])
    expected = sum(cross_entropy(logits, labels, reduction="none") for logits in groups)
    torch.testing.assert_close(joined.nll.sum(-1), expected)


def test_wrong_labels_are_refused(device: torch.device) -> None:
    logits, labels = torch.zeros(2, CHOICES, device=device), torch.zeros(2, dtype=torch.int64, device=device)
    assert_raises(TypeError, "int64 labels", measure_predictions, logits, labels, labels=labels.float())
    assert_raises(ValueError, "one label a row", measure_predictions, logits, labels, labels=labels[:1])
    with pytest.raises(ValueError, match="target is for batch"):
        measure_predictions(logits, labels, reference=uniform(labels, CHOICES + 1))
