"""Labels and targets read from gradients that autograd takes of whole networks: identities, cases by hand, edges."""

from __future__ import annotations

import functools
import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy.integrate import quad
from scipy.stats import binom, norm
from stable_baselines3 import DQN, PPO
from torch import Tensor, nn

from rlsmooth import audits
from rlsmooth.agents import BC, action_layers
from rlsmooth.audits import LastLayer, attack_batches, attack_rows, noise_curve, optimal_margin
from rlsmooth.data import Demonstrations
from rlsmooth.losses import cross_entropy
from rlsmooth.targets import Target, from_probs, mixture, one_hot, ordinal, uniform
from support import FLAT, assert_raises, draw, draw_masks, recorded, samples

K, ROWS = 6, 20
ALPHAS = (0.0, 0.05, 0.1, 0.2)
LABELS = torch.arange(ROWS) % (K - 1)  # the last class is absent


@functools.cache
def build(kind: str, num_classes: int = K, *, bias: bool = True, steps: int = 0, alpha: float = 0.0) -> Any:
    """A float64 network and inputs; `steps` of Adam on the labels."""
    torch.manual_seed(3)
    hidden = {"linear": [], "relu": [nn.Linear(8, 16), nn.ReLU()], "tanh": [nn.Linear(8, 16), nn.Tanh()]}[kind]
    net = nn.Sequential(*hidden, nn.Linear(16 if hidden else 8, num_classes, bias=bias)).double()
    labels = LABELS % num_classes
    inputs = torch.randn(ROWS, 8, dtype=torch.float64) + 0.3 * torch.eye(8, dtype=torch.float64)[labels]
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(net(inputs), uniform(labels, num_classes, alpha)).backward()
        optimizer.step()
    return net, inputs, labels


def gradients(net: Any, inputs: Tensor, target: Target, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Of the last layer, through the whole network."""
    net.zero_grad()
    cross_entropy(net(inputs), target, mask=mask).backward()
    bias = net[-1].bias
    return net[-1].weight.grad.clone(), None if bias is None else bias.grad.clone()


def by_sample(net: Any, inputs: Tensor, target: Target, mask: Tensor | None = None) -> list[Any]:
    each = [
        gradients(net, inputs[[row]], target[row : row + 1], None if mask is None else mask[[row]])
        for row in range(len(inputs))
    ]
    return [None if column[0] is None else torch.stack(column) for column in zip(*each, strict=True)]


def close(one: Any, other: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance, check_dtype=False)


# ---- one sample
MASKS = draw_masks([K], ROWS) | nn.functional.one_hot(LABELS, K).bool()
MASKS[3] = nn.functional.one_hot(LABELS[3], K).bool()  # one legal class
TARGETS = {
    "hard": one_hot(LABELS, K),
    "others": uniform(LABELS, K, 0.3, "others"),
    "masked": uniform(LABELS, K, 0.2, mask=MASKS),
    "ordinal": ordinal(LABELS, K, 0.4, "exponential"),
    "parents": mixture(torch.stack((LABELS, 5 - LABELS), -1), torch.tensor([0.3, 0.7]), K, 0.1),
    "soft": from_probs(torch.rand(ROWS, K, dtype=torch.float64).softmax(-1)),
}


@pytest.mark.parametrize("kind", ["linear", "relu", "tanh"])
@pytest.mark.parametrize("steps", [0, 100])
def test_the_target_of_one_sample_is_recovered_at_every_alpha(kind: str, steps: int) -> None:
    for alpha in ALPHAS:
        net, inputs, labels = build(kind, steps=steps, alpha=alpha)
        target = uniform(labels, K, alpha)
        slopes, errors = by_sample(net, inputs, target)
        found = audits.recover_target(slopes, errors, net[-1].weight, net[-1].bias)
        close(found.target, target.dense(torch.float64))
        close(found.feature, net[:-1](inputs), 1e-8)
        assert float(found.residual.max()) < 1e-12
        assert torch.equal(found.target.argmax(-1), labels)
        exact = attack_rows(LastLayer.of_module(net, inputs, target))[0]
        assert exact.success.estimate == 1.0
        assert exact.error < 1e-9


@pytest.mark.parametrize("name", TARGETS)
def test_any_target_of_mass_one_is_recovered(name: str) -> None:
    net, inputs, _ = build("relu", steps=20)
    mask = MASKS if name == "masked" else None
    slopes, errors = by_sample(net, inputs, TARGETS[name], mask)
    found = audits.recover_target(
        slopes.view(2, 10, K, -1),
        errors.view(2, 10, K),
        net[-1].weight,
        net[-1].bias,
        mask=None if mask is None else mask.view(2, 10, K),
    )
    wanted = TARGETS[name].dense(torch.float64).view(2, 10, K)
    unknown = (errors == 0).all(-1).view(2, 10)  # one legal class
    assert unknown.any() == (name == "masked")
    assert found.target[unknown].isnan().all()
    assert found.residual[unknown].isnan().all()
    close(found.target[~unknown], wanted[~unknown])


@pytest.mark.parametrize(("kind", "steps"), [("relu", 0), ("relu", 100), ("tanh", 60)])
@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_without_bias_a_uniformly_smoothed_target_is_recovered(kind: str, steps: int, alpha: float) -> None:
    net, inputs, labels = build(kind, bias=False, steps=steps, alpha=alpha)
    inputs, target = inputs[:10], uniform(labels[:10], K, alpha)
    slopes, _ = by_sample(net, inputs, target)
    for known in (alpha, None):
        found = audits.recover_target_without_bias(slopes, net[-1].weight, alpha=known)
        close(found.target, target.dense(torch.float64), 1e-8)
        close(found.feature, net[:-1](inputs), 1e-6)
    float32 = audits.recover_target_without_bias(slopes.float(), net[-1].weight.float())
    close(float32.target, target.dense(torch.float64), 0.01)


def test_without_bias_over_the_others_and_under_masks() -> None:
    net, inputs, _ = build("relu", bias=False, steps=20)
    for target, mask in ((TARGETS["others"], None), (uniform(LABELS, K, 0.2, mask=MASKS), MASKS)):
        slopes, _ = by_sample(net, inputs, target, mask)
        found = audits.recover_target_without_bias(slopes, net[-1].weight, mask=mask).target
        known = ~found.isnan().any(-1)
        assert known.all() if mask is None else known[MASKS.sum(-1) > 3].all() and not known[MASKS.sum(-1) < 3].any()
        close(found[known], target.dense(torch.float64)[known], 1e-8)


@pytest.mark.parametrize("kind", ["relu", "tanh"])
@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_without_bias_two_classes_need_alpha_and_a_sign_and_three_need_alpha(kind: str, alpha: float) -> None:
    for num_classes in (2, 3):
        net, inputs, labels = build(kind, num_classes, bias=False)
        target = uniform(labels, num_classes, alpha)
        slopes, _ = by_sample(net, inputs, target)
        unknown = audits.recover_target_without_bias(slopes, net[-1].weight).target
        wrong = (unknown - target.dense(torch.float64)).abs().amax(-1) > 1e-8
        assert unknown.isnan().all() if num_classes == 2 else not wrong.any()  # NaN is not wrong
        known = audits.recover_target_without_bias(slopes, net[-1].weight, alpha=alpha).target
        if num_classes == 3 or (kind == "relu" and alpha == 0):
            close(known, target.dense(torch.float64), 1e-8)
        else:  # -h fits with the other label, and for alpha > 0 some h of the same sign may
            close(known[~known.isnan()], target.dense(torch.float64)[~known.isnan()], 1e-8)
            assert known.isnan().any()


def test_of_several_samples_the_residual_says_so() -> None:
    net, inputs, labels = build("relu")
    slopes, errors = gradients(net, inputs[:2], uniform(labels, K, 0.1)[:2])
    assert audits.recover_target(slopes, errors, net[-1].weight, net[-1].bias).residual > 1e-3
    alone = audits.recover_target_without_bias(slopes, net[-1].weight)
    assert alone.residual > 1e-3
    assert alone.target.isnan().all()


@pytest.mark.parametrize("kind", ["linear", "relu"])
@pytest.mark.parametrize("steps", [0, 100])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_each_rule_fails_exactly_where_its_inequality_does(kind: str, steps: int, alpha: float) -> None:
    net, inputs, labels = build(kind, steps=steps, alpha=alpha)
    slopes, errors = by_sample(net, inputs, uniform(labels, K, alpha))
    p = net(inputs).softmax(-1)
    at_label = nn.functional.one_hot(labels, K).bool()
    only_negative = (p.masked_fill(at_label, 1.0) >= alpha / K).all(-1)
    assert torch.equal(audits.label_by_sign(errors) == labels, only_negative)
    least = p[at_label] - p.amin(-1) <= 1 - alpha
    assert torch.equal(audits.label_by_argmin(errors) == labels, least)
    published = torch.argmin(torch.sum(slopes, dim=-1), dim=-1)  # iDLG's own formula
    assert torch.equal(audits.label_by_idlg(slopes), published)
    positive = net[:-1](inputs).sum(-1) > 0
    assert torch.equal((published == audits.label_by_argmin(errors))[positive], torch.ones_like(positive)[positive])
    assert alpha or (only_negative.all() and least.all())
    assert not (alpha and steps) or not only_negative.all()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_attacks_on_one_sample_are_those_of_breaching(alpha: float) -> None:
    """Of breaching 0.1.2, which is no development package: it needs torchvision, hydra-core and lpips."""
    attacks = pytest.importorskip("breaching.attacks")
    net, inputs, labels = build("relu", steps=100, alpha=alpha)
    slopes, errors = by_sample(net, inputs, uniform(labels, K, alpha))
    found: dict[str, list[int]] = {"iDLG": [], "analytic": []}
    for strategy, column in found.items():
        impl = SimpleNamespace(mixed_precision=False, dtype="double")
        config = SimpleNamespace(attack_type="analytic", label_strategy=strategy, impl=impl)
        attacker = attacks.prepare_attack(net, nn.CrossEntropyLoss(), config)
        for each in zip(slopes, errors, strict=True):
            shared = {"metadata": {"num_data_points": 1}, "gradients": each}
            column.append(int(attacker._recover_label_information([shared], None, None)))
            if not alpha:  # later a class's error may be near 0
                feature = attacker.invert_fc_layer(*each, column[-1:])
                close(audits.recover_target(*each, net[-1].weight, net[-1].bias).feature, feature, 1e-6)
    assert audits.label_by_idlg(slopes).tolist() == found["iDLG"]
    signs = audits.label_by_sign(errors)
    assert signs[signs >= 0].tolist() == torch.tensor(found["analytic"])[signs >= 0].tolist()
    assert (signs >= 0).all() or alpha


# ---- counts
@pytest.mark.parametrize("spread", ["all", "others"])
@pytest.mark.parametrize("masks", ["none", "equal", "different"])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_counts_and_alpha_are_identities(spread: Any, masks: str, alpha: float) -> None:
    net, inputs, labels = build("tanh", steps=30, alpha=alpha)
    mask = {"none": None, "equal": torch.arange(K).expand(ROWS, K) != 4, "different": MASKS}[masks]
    labels = labels if masks != "equal" else LABELS % 4
    target = uniform(labels, K, alpha, spread, mask=mask)
    halves = (slice(0, 10), slice(10, 20))
    parts = [gradients(net, inputs[half], target[half], None if mask is None else mask[half]) for half in halves]
    errors = torch.stack([each for _, each in parts if each is not None])
    logits = net(inputs).detach() if mask is None else net(inputs).detach().masked_fill(~mask, -torch.inf)
    mean_probs = logits.softmax(-1).view(2, 10, K).mean(1)
    truth = nn.functional.one_hot(labels, K).view(2, 10, K).sum(1)
    more: Any = {"spread": spread, "mask": None if mask is None else mask.view(2, 10, K)}
    if masks == "different" and spread == "others":
        with pytest.raises(ValueError, match="mask allows different numbers of classes"):
            audits.label_counts(errors, mean_probs, 10, alpha=alpha, **more)
        return
    close(audits.label_counts(errors, mean_probs, 10, alpha=alpha, **more), truth)
    found = audits.alpha_from_absent_class(errors, mean_probs, **more)
    close(found, torch.full((2,), alpha, dtype=torch.float64))
    close(audits.label_counts(errors, mean_probs, 10, alpha=found, **more), truth)
    if alpha > 0.05:
        assert not torch.allclose(audits.label_counts(errors, mean_probs, 10, **more), truth.double(), atol=0.05)


def test_llg_by_hand() -> None:
    # B = 8, K = 4, features 1 and 1. Row sums g = (0.5, -0.7, 0.4, -0.2). m = (1 + 1/4) / 8 · (-0.9) = -0.140625.
    # Stage 1: classes 1 and 3 have a sample, g_1 = -0.559375 and g_3 = -0.059375. Stage 2, six more: class 1 four
    # times (-0.41875, -0.278125, -0.1375, 0.003125), class 3 (0.08125), class 1: six of class 1 and two of class 3.
    rows = torch.tensor([[0.25, 0.25], [-0.35, -0.35], [0.2, 0.2], [-0.1, -0.1]], dtype=torch.float64)
    assert audits.counts_llg(rows, 8).tolist() == [0, 6, 0, 2]
    assert audits.counts_llg(torch.stack((rows, rows.flip(0))), 8).tolist() == [[0, 6, 0, 2], [2, 0, 6, 0]]
    assert audits.counts_llg(rows, 1).tolist() == [0, 1, 0, 0]
    assert audits.counts_llg(rows.abs(), 8).isnan().all()


def test_ilrg_and_class_means_by_hand() -> None:
    # One feature, W = (0, 0), b = (log 3, 0): p = (3/4, 1/4) whatever the features. n = (1, 3), B = 4:
    # db = p - n/B = (3/4 - 1/4, 1/4 - 3/4) = (1/2, -1/2). The system is (3/4 - 1) n_0 + 3/4 n_1 = 4 · 1/2 = 2,
    # 1/4 n_0 + (1/4 - 1) n_1 = -2 and n_0 + n_1 = 4: n_1 = (2 + 1/4 n_0) 4/3, so that n_0 = 1 and n_1 = 3.
    errors = torch.tensor([0.5, -0.5], dtype=torch.float64)
    weight, bias = torch.zeros(2, 1), torch.tensor([math.log(3), 0.0], dtype=torch.float64)
    close(audits.counts_ilrg(errors.unsqueeze(-1), errors, weight, bias, 4), torch.tensor([1.0, 3.0]))
    # Class means (0.8, 0.2) and (0.4, 0.6), alpha = 0.2, n = (3, 1): mean p = (0.7, 0.3), the mean target is
    # 0.8 (3/4, 1/4) + 0.1 = (0.7, 0.3), db = 0.
    means = torch.tensor([[0.8, 0.2], [0.4, 0.6]], dtype=torch.float64)
    close(audits.counts_from_class_means(means, 0 * errors, 4, alpha=0.2), torch.tensor([3.0, 1.0]))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("spread", ["all", "others"])
def test_class_means_give_the_counts_with_and_without_alpha(alpha: float, spread: Any) -> None:
    means = torch.rand(K, K, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul(2).softmax(-1)
    truth = torch.tensor([[5.0, 0, 3, 0, 2, 0], [0, 0, 0, 10, 0, 0]], dtype=torch.float64)
    target = uniform(torch.arange(K), K, alpha, spread).dense(torch.float64)
    errors = truth / 10 @ (means - target)
    for known in (alpha, None):
        found = audits.counts_from_class_means(means, errors, 10, alpha=known, spread=spread)
        close(found, truth, 1e-5 if known is None else 1e-9)
    unseen = means.clone()
    unseen[1] = torch.nan
    close(audits.counts_from_class_means(unseen, errors, 10, alpha=alpha, spread=spread), truth)


def test_counts_are_rounded_to_the_nearest_that_sum_to_the_size() -> None:
    draws = torch.rand(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 8 - 2
    points = [each for each in itertools.product(range(6), repeat=3) if sum(each) == 5]
    allowed = torch.tensor(points, dtype=torch.float64)
    found = audits.round_counts(draws, 5)
    best = (draws.unsqueeze(1) - allowed).square().sum(-1).amin(-1)
    close((draws - found).square().sum(-1), best)
    assert audits.round_counts(torch.tensor([[1.0, math.nan], [0.5, 0.5]]), 1).tolist() == [[-1, -1], [1, 0]]


# ---- distances, noise, randomised response
@pytest.mark.parametrize("spread", ["all", "others"])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_distance_of_two_labels_gradients(spread: Any, alpha: float) -> None:
    net, inputs, _ = build("relu", steps=30)
    (one, two), size = (
        [gradients(net, inputs[:1], uniform(torch.tensor([label]), K, alpha, spread)) for label in (1, 4)],
        float(net[:-1](inputs[:1]).detach().norm()),
    )
    assert one[1] is not None
    assert two[1] is not None
    by_bias = float((one[1] - two[1]).square().sum())
    assert by_bias == pytest.approx(audits.label_gradient_distance(alpha, K, spread), abs=1e-9)
    whole = by_bias + float((one[0] - two[0]).square().sum())
    assert whole == pytest.approx(audits.label_gradient_distance(alpha, K, spread, feature_norm=size), rel=1e-9)
    # Of all parameters the difference is that of hard labels, shorter: noise of 0.3 hides as much as more does there.
    apart = []
    for level in (alpha, 0.0):
        net.zero_grad()
        both = uniform(torch.tensor([1, 4]), K, level, spread)
        logs = net(inputs[[0, 0]]).log_softmax(-1)
        (both.dense(torch.float64) * logs * torch.tensor([[-1.0], [1.0]])).sum().backward()
        apart.append(torch.cat([part.grad.flatten() for part in net.parameters()]))
    scale = 1 - alpha if spread == "all" else 1 - alpha * K / (K - 1)
    close(apart[0] / 0.3, apart[1] / (0.3 / scale))
    assert spread != "all" or audits.equivalent_noise(0.3, alpha) == 0.3 / scale


@pytest.mark.parametrize(
    ("noise", "num_classes", "alpha"), [(0.5, 10, 0.2), (2.0, 3, 0.0), (0.05, 100, 0.5), (9.0, 2, 0.1)]
)
def test_what_noise_hides(noise: float, num_classes: int, alpha: float) -> None:
    found = audits.informed_success(noise, num_classes, alpha)

    def integrand(z: float) -> float:
        return float(norm.pdf(z) * norm.cdf(z + (1 - alpha) / noise) ** (num_classes - 1))

    assert found == pytest.approx(quad(integrand, -12, 12, epsabs=1e-12, limit=200)[0], abs=1e-9)
    assert found == pytest.approx(
        audits.informed_success(audits.equivalent_noise(noise, alpha), num_classes), abs=1e-12
    )
    assert audits.informed_success(noise * 5, num_classes, alpha, math.sqrt(24)) == pytest.approx(found, abs=1e-12)
    drawn = noise * torch.randn(60_000, num_classes, generator=torch.Generator().manual_seed(0))
    drawn[:, 0] += 1 - alpha
    assert found == pytest.approx(float((drawn.argmax(-1) == 0).double().mean()), abs=0.008)


def test_the_epsilon_of_randomised_response_is_the_optimal_margin() -> None:
    for alpha, num_classes in itertools.product((0.05, 0.1, 0.7, 1.0), (2, 10)):
        margin = optimal_margin(uniform(torch.tensor([1]), num_classes, alpha))
        assert audits.randomised_response_epsilon(alpha, num_classes) == pytest.approx(float(margin), abs=1e-12)
    assert audits.randomised_response_epsilon(0.0, 10) == math.inf
    assert audits.randomised_response_epsilon(0.0, 1) == 0.0


# ---- edges
def test_a_gradient_of_zero_and_one_class_say_nothing() -> None:
    zero = torch.zeros(2, K)
    for rule in (audits.label_by_sign, audits.label_by_argmin):
        assert rule(zero).tolist() == [-1, -1]
        assert rule(zero[:, :1]).tolist() == [-1, -1]
        assert rule(zero.fill_(torch.nan)).tolist() == [-1, -1]
    assert audits.label_by_idlg(torch.zeros(2, 3, 4)).tolist() == [-1, -1]
    for num_classes in (1, 3):
        slopes, errors = torch.zeros(num_classes, 4), torch.zeros(num_classes)
        for found in (
            audits.recover_target(slopes, errors, slopes, errors),
            audits.recover_target_without_bias(slopes, slopes),
        ):
            assert found.target.isnan().all()
            assert found.residual.isnan()
    assert audits.counts_ilrg(torch.zeros(3, 2), torch.zeros(3), torch.ones(3, 2), torch.zeros(3), 4).isnan().all()
    assert audits.alpha_from_absent_class(torch.zeros(1), torch.ones(1)).isnan()
    assert audits.label_counts(torch.zeros(1), torch.ones(1), 7, alpha=0.1).tolist() == [7.0]
    assert math.isnan(audits.label_gradient_distance(0.1, 1))
    for alpha in (0.0, 1.0):
        assert audits.informed_success(0.0, 4, alpha) == pytest.approx(1.0 if alpha == 0 else 0.25, abs=1e-12)


def test_no_samples_are_counted_as_none() -> None:
    errors, means = torch.full((K,), torch.nan), torch.full((K, K), 1 / K)
    assert audits.label_counts(errors, errors, 0).tolist() == [0.0] * K
    assert audits.counts_from_class_means(means, errors, 0).tolist() == [0.0] * K
    assert audits.counts_llg(torch.zeros(K, 2), 0).tolist() == [0.0] * K
    assert audits.round_counts(torch.zeros(K), 0).tolist() == [0] * K
    assert audits.label_by_argmin(torch.zeros(0, K)).shape == (0,)
    assert audits.recover_target_without_bias(torch.zeros(0, K, 3), torch.zeros(K, 3)).target.shape == (0, K)


@pytest.mark.parametrize("scale", [1e-30, 1e-180, 1e-300])
def test_probabilities_that_almost_vanish_keep_the_target(scale: float) -> None:
    feature = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    errors = scale * torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
    bias = torch.tensor([0.0, 0.0, 800.0], dtype=torch.float64)
    slopes = errors.unsqueeze(-1) * feature
    found = audits.recover_target(slopes, errors, torch.zeros(3, 3), bias)
    close(found.feature, feature)
    close(found.target, torch.tensor([0.0, 0.0, 1.0]))


ZERO, PAIR = torch.zeros(K), torch.ones(K, 2)
ONE = one_hot([0], 3)
MISTAKES: list[tuple[type[Exception], str, Any]] = [
    (TypeError, "bias_grad has dtype torch.int64", lambda: audits.label_by_sign(LABELS)),
    (ValueError, "weight_grad has shape .6,., needs", lambda: audits.label_by_idlg(ZERO)),
    (ValueError, "bias_grad has shape .5,.", lambda: audits.recover_target(PAIR, ZERO[:5], PAIR, ZERO)),
    (ValueError, "weight has shape .6, 1., needs .6, 2.", lambda: audits.recover_target(PAIR, ZERO, PAIR[:, :1], ZERO)),
    (ValueError, "allows no class", lambda: audits.recover_target(PAIR, ZERO, PAIR, ZERO, mask=ZERO > 0)),
    (ValueError, "alpha=1.0 must be", lambda: audits.recover_target_without_bias(PAIR, PAIR, alpha=1.0)),
    (ValueError, "alpha=1.0 makes every label's target", lambda: audits.label_counts(ZERO, ZERO, 2, alpha=1.0)),
    (ValueError, "makes every label's", lambda: audits.label_counts(ZERO, ZERO, 2, alpha=5 / 6, spread="others")),
    (ValueError, "spread='most' is not known", lambda: audits.label_counts(ZERO, ZERO, 2, spread="most")),
    (ValueError, "batch_size=-1 must be at least 0", lambda: audits.counts_llg(PAIR, -1)),
    (ValueError, "mask has shape .3, 6.", lambda: audits.label_counts(ZERO, ZERO, 2, mask=torch.ones(3, K) > 0)),
    (ValueError, "alpha=1.0 must be", lambda: audits.equivalent_noise(0.5, 1.0)),
    (ValueError, "noise=-1.0 must be", lambda: audits.informed_success(-1.0, 3)),
    (ValueError, "alpha=-0.1 must be", lambda: audits.randomised_response_epsilon(-0.1, 3)),
    (
        TypeError,
        "must end in an nn.Linear",
        lambda: LastLayer.of_module(nn.Softmax(-1), PAIR, one_hot([0] * K, 2)),
    ),
    (ValueError, "target is for batch .1,. and 3 classes", lambda: LastLayer(PAIR, PAIR[:3], None, ONE)),
    (ValueError, "mass 2 to 2: it must be 1", lambda: LastLayer(PAIR[:1], PAIR[:3], None, ONE.scale(2.0))),
    (ValueError, "has no samples", lambda: attack_rows(LastLayer(PAIR[:0], PAIR[:3], None, ONE[:0]))),
    (ValueError, "batch_sizes has 9", lambda: attack_batches(LastLayer(PAIR[:1], PAIR[:3], None, ONE), [9])),
]


@pytest.mark.parametrize(("error", "match", "call"), MISTAKES, ids=[match for _, match, _ in MISTAKES])
def test_mistakes_are_named(error: type[Exception], match: str, call: Any) -> None:
    assert_raises(error, match, call)


# ---- policies
def cloned(space: spaces.Space[Any], masks: Tensor | None = None, **more: Any) -> tuple[BC, Demonstrations]:
    data = recorded(samples(FLAT, ROWS, 0), samples(space, ROWS, 0), FLAT, space)
    if masks is not None:
        chosen = torch.stack([part.double().multinomial(1)[:, 0] for part in masks.split([3, 4], 1)], 1)
        data = recorded(samples(FLAT, ROWS, 0), chosen.numpy(), FLAT, space, action_masks=masks.numpy())
    agent = BC(more.pop("policy", "MlpPolicy"), None, data, seed=0, device="cpu", batch_size=16, **more)
    agent.learn(total_epochs=2)
    return agent, data


@pytest.mark.parametrize("kind", ["discrete", "multi", "masked", "binary", "bins"])
@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_of_a_policy_every_component_leaks_its_targets(kind: str, alpha: float) -> None:
    space = {
        "discrete": spaces.Discrete(3, start=2),
        "binary": spaces.MultiBinary(2),
        "bins": spaces.Box(-1, 1, (2,)),
    }.get(kind, spaces.MultiDiscrete([3, 4]))
    more: dict[str, Any] = {"action_bins": 5} if kind == "bins" else {}
    masks = draw_masks([3, 4], ROWS) if kind == "masked" else None
    agent, data = cloned(space, masks, smoothing=alpha, **more)
    layers = action_layers(agent, data)
    assert [len(layer.weight) for layer in layers] == {"discrete": [3], "binary": [2, 2], "bins": [5, 5]}.get(
        kind, [3, 4]
    )
    for layer in layers:
        exact = attack_rows(layer)[0]
        assert (exact.attack, exact.success.estimate, exact.trials) == ("exact", 1.0, ROWS)
        assert exact.error < 1e-5  # float32
    # The gradient of the agent's own loss over all transitions is that of the layers.
    whole = torch.arange(ROWS).unsqueeze(0)
    agent.policy.zero_grad()
    assert agent._data is not None
    own = agent._data.read(slice(0, ROWS))
    assert own.target is not None
    outputs = agent.head.outputs(own.observations)
    agent.head.loss(outputs, own, own.target, 0.0, "mean").backward()
    rows = [layer.gradients(whole)[0][0][1:] if kind == "binary" else layer.gradients(whole)[0][0] for layer in layers]
    close(torch.cat(rows), agent.policy.action_net.weight.grad, 1e-6)


def test_policies_that_have_no_label_layer_are_named() -> None:
    env: Any = "Pendulum-v1"
    box = PPO("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu")
    assert_raises(TypeError, "Gaussian head has no labels", action_layers, box, draw(), 0.1)
    assert_raises(
        TypeError, "DQNPolicy: use an actor-critic", action_layers, DQN("MlpPolicy", "CartPole-v1"), draw(), 0.1
    )
    plain = BC("MlpPolicy", None, draw(), seed=0, device="cpu")
    assert_raises(ValueError, "give the smoothing", action_layers, plain.policy, draw())
    assert_raises(TypeError, "demonstrations must be .*Demonstrations, got Batch", action_layers, plain, draw()[:5])
    (layer,) = action_layers(plain.policy, draw(), 0.3)
    close(layer.target.dense().amax(-1), torch.full((40,), 0.8), 1e-6)


# ---- tables and intervals
def test_the_tables_are_those_of_the_attacks() -> None:
    net, inputs, labels = build("relu", steps=40, alpha=0.1)
    target = uniform(labels, K, 0.1)
    layer = LastLayer.of_module(net, inputs, target)
    rows = {result.attack: result for result in attack_rows(layer)}
    errors = by_sample(net, inputs, target)[1]
    assert rows["argmin"].success.estimate == float((errors.argmin(-1) == labels).double().mean())
    assert rows["sign"].prior == float((labels == 0).double().mean())
    assert rows["exact"].success[:] == audits.proportion_interval(ROWS, ROWS)[:]
    results = attack_batches(layer, [5, 10], alpha=0.1, auxiliary=layer)
    assert {(result.attack, result.batch_size, result.trials) for result in results} >= {("LLG", 5, 4), ("iLRG", 10, 2)}
    known = [result.success.estimate for result in results if result.attack.endswith("known")]
    assert known == [1.0, 1.0]
    assert all(0 < result.prior < 1 for result in results)
    assert results == attack_batches(layer, [5, 10], alpha=0.1, auxiliary=layer)
    inferred = attack_batches(layer, [10], alpha=None, auxiliary=layer)
    assert [result.success.estimate for result in inferred if result.attack.endswith("known")] == [1.0]
    no_bias = LastLayer.of_module(*build("relu", bias=False)[:2], target)
    assert [result.attack for result in attack_batches(no_bias, [8])] == ["LLG"]


def test_the_noise_curve_agrees_with_theory() -> None:
    net, inputs, labels = build("relu", steps=40, alpha=0.2)
    inputs, labels = inputs.repeat(20, 1), labels.repeat(20)
    layer = LastLayer.of_module(net, inputs, uniform(labels, K, 0.2))
    points = noise_curve(layer, [0.0, 1.0, 4.0], alpha=0.2)
    assert points[0].success.estimate == points[0].expected == 1.0
    for point in points[1:]:
        assert 0.2 < point.expected < 0.99
        assert abs(point.success.estimate - point.expected) < 4 * math.sqrt(0.25 / len(labels))
        assert point.equivalent_noise == pytest.approx(point.noise / 0.8)


@pytest.mark.parametrize("trials", [30, 100, 300])
def test_the_interval_of_a_success_rate_covers_it(trials: int) -> None:
    successes = np.arange(trials + 1)
    bounds = np.array([audits.proportion_interval(int(each), trials)[1:] for each in successes])
    for truth in (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9):
        covers = (bounds[:, 0] <= truth) & (truth <= bounds[:, 1])
        assert 0.925 <= float(binom.pmf(successes, trials, truth)[covers].sum()) <= 0.975, truth  # exact, no simulation


@pytest.mark.slow
@pytest.mark.parametrize("batches", [5, 30, 100, 300])
@pytest.mark.parametrize("law", [(40.0, 10.0), (3.0, 3.0), (8.0, 0.5)], ids=["narrow", "wide", "near 1"])
def test_the_interval_of_a_mean_overlap_covers_it(batches: int, law: tuple[float, float]) -> None:
    rng, hits = np.random.default_rng(batches), 0
    truth = law[0] / sum(law)
    for shares in rng.beta(*law, size=(4000, batches)):
        _, low, high = audits.share_interval(shares)
        hits += low <= truth <= high
    fewest = 0.90 if batches < 30 and law[1] < 1 else 0.93  # a few skewed shares often look alike
    assert fewest - 0.007 < hits / 4000 < 0.97 + 0.007


def test_the_interval_of_equal_shares_is_that_of_so_many_trials() -> None:
    assert audits.share_interval([1.0] * 30)[:] == audits.proportion_interval(30, 30)[:]
    assert audits.share_interval([0.0])[:] == audits.proportion_interval(0, 1)[:]
    assert_raises(ValueError, "each from 0 to 1", audits.share_interval, [0.5, 1.5])
