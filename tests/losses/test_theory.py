"""What theory says of smoothing exactly, at 1e-9 in float64: identities, margins, gradients, distances."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlsmooth.losses import cross_entropy, entropy, kl_divergence
from rlsmooth.targets import Target, from_probs, kernel, one_hot, prior, uniform

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


def test_an_entropy_bonus_is_the_other_kl(device: torch.device) -> None:
    logits, _ = draw(9, 6, device)
    reverse = kl_divergence(logits, direction="policy_to_reference", reduction="none")
    close(reverse, math.log(6) - entropy(logits))
    forward = kl_divergence(logits, direction="reference_to_policy", reduction="none")
    assert (forward - reverse).abs().min() > 1e-3


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


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
def test_others_is_all_at_a_larger_alpha(classes: int, alpha: float, device: torch.device) -> None:
    logits, labels = draw(9, classes, device)
    wider = uniform(labels, classes, alpha * classes / (classes - 1))
    narrow = uniform(labels, classes, alpha, "others")
    close(cross_entropy(logits, narrow, reduction="none"), cross_entropy(logits, wider, reduction="none"))
    close(gradient(logits, narrow), gradient(logits, wider))


@pytest.mark.parametrize(
    ("spread", "margin"),
    [
        ("all", lambda K, a: math.log(1 + K * (1 - a) / a)),
        ("others", lambda K, a: math.log((1 - a) * (K - 1) / a)),
    ],
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


def test_gradient_descent_finds_the_optimal_margin(device: torch.device) -> None:
    classes, alpha = 5, 0.1
    target = uniform(torch.tensor([0], device=device), classes, alpha)
    logits = torch.zeros(1, classes, dtype=F64, device=device)
    for _ in range(400):
        logits -= 3 * gradient(logits, target)
    assert (logits[0, 0] - logits[0, 1]).item() == pytest.approx(math.log(1 + classes * (1 - alpha) / alpha), abs=1e-3)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_how_much_smaller_the_smoothed_gradient_is(classes: int, alpha: float, device: torch.device) -> None:
    # ‖g_hard‖² - ‖g_LS‖² = 2a(1 - p_c) - a²(K - 1)/K
    logits, labels = draw(9, classes, device)
    hard = gradient(logits, labels).square().sum(-1)
    smoothed = gradient(logits, uniform(labels, classes, alpha)).square().sum(-1)
    at_label = logits.softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    close(hard - smoothed, 2 * alpha * (1 - at_label) - alpha**2 * (classes - 1) / classes)


@pytest.mark.parametrize(("confidence", "published"), [(0.1, 0.9), (0.91, 0.0), (0.99, 8.0), (0.5, 0.82)])
def test_gradient_ratio_of_pseudo_labels(confidence: float, published: float, device: torch.device) -> None:
    # The rest of p uniform: ‖g_LS‖ / ‖g_hard‖ = |p_c - t| / (1 - p_c), t = 1 - a + a/K
    classes, alpha = 10, 0.1
    probabilities = torch.full((1, classes), (1 - confidence) / (classes - 1), dtype=F64, device=device)
    probabilities[0, 3] = confidence
    label = torch.tensor([3], device=device)
    hard, smoothed = gradient(probabilities.log(), label), gradient(probabilities.log(), uniform(label, classes, alpha))
    ratio = smoothed.norm() / hard.norm()
    goal = 1 - alpha + alpha / classes
    close(ratio, abs(confidence - goal) / (1 - confidence))
    assert ratio.item() == pytest.approx(published, abs=1e-9)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_alpha_that_makes_the_pseudo_label_its_own_target(classes: int, device: torch.device) -> None:
    # alpha_i = K(1 - q_c)/(K - 1) puts q_c on the label
    logits, _ = draw(9, classes, device)
    confidence, labels = logits.softmax(-1).max(-1)
    target = uniform(labels, classes, classes * (1 - confidence) / (classes - 1))
    close(target.dense(F64).gather(-1, labels.unsqueeze(-1)).squeeze(-1), confidence)
    close(gradient(logits, target).gather(-1, labels.unsqueeze(-1)), 0.0)


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


def test_scaling_a_target_scales_its_loss(device: torch.device) -> None:
    logits, labels = draw(9, 6, device)
    factor = torch.rand(9, dtype=F64, device=device)
    target = uniform(labels, 6)
    rows = cross_entropy(logits, target, reduction="none")
    close(cross_entropy(logits, target.scale(factor), reduction="none"), factor * rows)


def test_mixing_targets_mixes_their_losses(device: torch.device) -> None:
    logits, labels = draw(9, 6, device)
    lam = torch.rand(9, dtype=F64, device=device)
    first, second = uniform(labels, 6, 0.3), from_probs(torch.rand(9, 6, dtype=F64, device=device).softmax(-1))
    parts = [cross_entropy(logits, target, reduction="none") for target in (first, second)]
    close(
        cross_entropy(logits, Target.mix(first, second, lam), reduction="none"), lam * parts[0] + (1 - lam) * parts[1]
    )
