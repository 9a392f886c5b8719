"""measure_predictions against the separate losses, each read on its own in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlsmooth.losses import closed_form, cross_entropy, entropy, kl_divergence
from rlsmooth.losses.arguments import reduce
from rlsmooth.losses.categorical import PredictionMeasures, measure_predictions
from rlsmooth.targets import Target, from_probs, kernel, mixture, one_hot, prior, sparse, teacher, uniform

K = 6
F64 = torch.float64
NUMBERS = [name for name in PredictionMeasures._fields if name != "hit"]


def separately(
    logits: Tensor, target: Target | Tensor, mask: Tensor | None, labels: Tensor, reference: Target | None
) -> PredictionMeasures:
    """Each measure by the public loss of its own, on float64 logits."""
    wide = logits.to(F64)

    def loss(goal: Target | Tensor) -> Tensor:
        return cross_entropy(wide, goal, mask=mask, reduction="none")

    def divergence(towards: Target | None) -> Tensor:
        return kl_divergence(wide, towards, direction="reference_to_policy", mask=mask, reduction="none")

    own = target.reference if isinstance(target, Target) else None
    if reference is None and own is not None:
        none = labels.new_zeros((*labels.shape, 0))
        reference = Target(K, none, none.to(F64), torch.ones_like(labels, dtype=F64), own)
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


def assert_same(actual: PredictionMeasures, expected: PredictionMeasures, tolerance: float) -> None:
    for name in NUMBERS:
        mine, theirs = getattr(actual, name), getattr(expected, name)
        assert mine.shape == theirs.shape, name
        torch.testing.assert_close(mine.to(F64), theirs, rtol=tolerance, atol=tolerance, equal_nan=True, msg=name)
    assert actual.hit.dtype == torch.bool
    assert torch.equal(actual.hit, expected.hit)


def draw_logits(dtype: torch.dtype, device: torch.device, *shape: int) -> Tensor:
    return (3 * torch.randn(*shape, K, dtype=F64, device=device)).to(dtype)


def draw_mask(labels: Tensor) -> Tensor:
    mask = torch.rand(*labels.shape, K, device=labels.device) < 0.5
    second = (labels + 1) % K
    return mask.scatter(-1, torch.stack((labels, second), -1), True)


def make_target(kind: str, labels: Tensor, mask: Tensor | None) -> Target | Tensor:
    second = (labels + 1) % K
    share = torch.rand(K, dtype=F64, device=labels.device) + 0.1
    table = torch.rand(K, K, dtype=F64, device=labels.device)
    values = torch.randn(*labels.shape, K, dtype=F64, device=labels.device)
    legal = torch.ones_like(values) if mask is None else mask.to(F64)
    given = values.exp() * legal / (values.exp() * legal).sum(-1, keepdim=True)
    makers = {
        "labels": lambda: labels,
        "one_hot": lambda: one_hot(labels, K),
        "uniform": lambda: uniform(labels, K, 0.2, mask=mask),
        "others": lambda: uniform(labels, K, 0.2, "others", mask=mask),
        "negative": lambda: uniform(labels, K, -0.2, mask=mask),
        "prior": lambda: prior(labels, share / share.sum(), 0.3, mask=mask),
        "kernel": lambda: kernel(labels, table, 0.3, mask=mask),
        "mixture": lambda: mixture(torch.stack((labels, second), -1), None, K, 0.2, mask=mask),
        "sparse": lambda: sparse(torch.stack((labels, second), -1), given[..., :2] + 0.1, K),
        "teacher": lambda: teacher(values, 1.0, labels, 0.3, mask=mask),
        "from_probs": lambda: from_probs(given),
        "written out": lambda: uniform(labels, K, 0.2, mask=mask).written_out(F64),
        "weighted": lambda: uniform(labels, K, 0.2, mask=mask).scale(2.5),
    }
    target: Target | Tensor = makers[kind]()
    return target


KINDS = ["labels", "one_hot", "uniform", "others", "negative", "prior", "kernel", "mixture", "sparse", "teacher"]
KINDS += ["from_probs", "written out", "weighted"]
DTYPES = [(torch.float32, 3e-6), (F64, 1e-12), (torch.bfloat16, 3e-6), (torch.float16, 3e-6)]


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
    labels = torch.randint(K, (3, 5), device=device)
    mask = draw_mask(labels) if masked else None
    target = make_target(kind, labels, mask)
    given = make_target("kernel", labels, mask) if towards == "given" else None
    assert not isinstance(given, Tensor)
    expected = separately(logits, target, mask, labels, given)
    monkeypatch.setitem(closed_form._BLOCK_ELEMENTS, device.type, 4 * K)  # several blocks, the last one short
    found = measure_predictions(logits, target, mask, labels=labels, reference=given)
    assert_same(found, expected, tolerance)
    assert found.nll.dtype == (F64 if dtype == F64 else torch.float32)


@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 0), (2, 3)])
def test_any_batch_shape(shape: tuple[int, ...], device: torch.device) -> None:
    logits, labels = draw_logits(F64, device, *shape), torch.zeros(shape, dtype=torch.int64, device=device)
    found = measure_predictions(logits, labels, labels=labels)
    assert_same(found, separately(logits, labels, None, labels, None), 1e-12)


def test_labels_are_the_targets_own_where_none_are_given(device: torch.device) -> None:
    logits, labels = draw_logits(F64, device, 8), torch.randint(K, (8,), device=device)
    for kind in ("uniform", "kernel", "written out"):  # the last has no atom: its most probable class
        target = make_target(kind, labels, None)
        assert_same(measure_predictions(logits, target), measure_predictions(logits, target, labels=labels), 0.0)
    other = (labels + 2) % K
    found = measure_predictions(logits, make_target("uniform", labels, None), labels=other)
    torch.testing.assert_close(found.nll, cross_entropy(logits, other, reduction="none"))


def test_a_single_legal_class(device: torch.device) -> None:
    logits, labels = draw_logits(torch.float32, device, 5), torch.randint(K, (5,), device=device)
    mask = torch.nn.functional.one_hot(labels, K).bool()
    found = measure_predictions(logits, uniform(labels, K, 0.3, mask=mask), mask, labels=labels)
    for name in ("cross_entropy", "nll", "entropy", "kl_reference", "kl_uniform", "max_entropy"):
        assert getattr(found, name).tolist() == [0.0] * 5, name
    assert found.confidence.tolist() == found.label_probability.tolist() == [1.0] * 5
    assert found.hit.all()


def test_impossible_classes(device: torch.device) -> None:
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
    logits, labels = draw_logits(torch.float32, device, 4), torch.randint(K, (4,), device=device)
    logits[1, 3] = bad
    found = measure_predictions(logits, uniform(labels, K), labels=labels)
    for name in NUMBERS:
        assert getattr(found, name).isnan().tolist() == [False, name != "max_entropy", False, False], name
    assert not found.hit[1]
    weights, kept = torch.tensor([2.0, 0.0, 0.5, 1.0], device=device), torch.tensor([0, 2, 3], device=device)
    whole = separately(logits[kept], uniform(labels[kept], K), None, labels[kept], None)
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


def test_has_no_graph(device: torch.device) -> None:
    logits = torch.randn(4, K, device=device, requires_grad=True)
    assert not any(column.requires_grad for column in measure_predictions(logits, torch.arange(4, device=device)))


def test_wrong_labels_are_refused(device: torch.device) -> None:
    logits, labels = torch.zeros(2, K, device=device), torch.zeros(2, dtype=torch.int64, device=device)
    with pytest.raises(TypeError, match="int64 labels"):
        measure_predictions(logits, labels, labels=labels.float())
    with pytest.raises(ValueError, match="one label a row"):
        measure_predictions(logits, labels, labels=labels[:1])
    with pytest.raises(ValueError, match="target is for batch"):
        measure_predictions(logits, labels, reference=uniform(labels, K + 1))
