"""The discriminator step that GAN, GAIL and AIRL share: high logits mean real (or expert)."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from rlsmooth.checks import check_in_range
from rlsmooth.losses import binary_cross_entropy
from rlsmooth.training.flat import clear_gradients, run_backward, take_step


class DiscriminatorStatistics(NamedTuple):
    """How well a discriminator tells the two sides apart, always on hard labels: smoothing changes the loss only.

    All are 0-dim tensors on the logits' device, so that reading them is the caller's choice of a moment to wait.

    Attributes:
        loss: the loss that was trained on, in nats.
        accuracy: share of all samples on the right side of logit 0 (a logit of exactly 0 counts as real).
        accuracy_real: of the real samples; NaN where there are none.
        accuracy_fake: of the fake samples; NaN where there are none.
        entropy: mean Bernoulli entropy of the predictions, in nats.
        probability_real: mean D on real samples, `sigmoid(logit)`.
        probability_fake: mean D on fake samples.
        share_real: real samples among all.
        share_predicted_real: samples predicted to be real among all.
    """

    loss: Tensor
    accuracy: Tensor
    accuracy_real: Tensor
    accuracy_fake: Tensor
    entropy: Tensor
    probability_real: Tensor
    probability_fake: Tensor
    share_real: Tensor
    share_predicted_real: Tensor


def check_targets(real_target: float, fake_target: float, *, stacklevel: int = 2) -> tuple[float, float]:
    """The two targets, checked: each in `[0, 1]`, the real one above the fake one.

    Args:
        real_target: probability of "real" that real samples are trained on.
        fake_target: probability of "real" that fake samples are trained on.
        stacklevel: of the warning, as in `warnings.warn`; 2 is the caller's line.

    Raises:
        TypeError: one is no number.
        ValueError: one is outside `[0, 1]`, or real is not above fake.

    Warns:
        UserWarning: fakes are smoothed. At the optimal discriminator the gradient of the non-saturating generator is
            then scaled by `(a - b) r / (a r + b)` with `r = p_real / p_fake`, which vanishes where real data are rare:
            where the generator has the most to learn. Smooth the real side alone (b = 0: the factor is 1).

    Examples:
        >>> check_targets(0.9, 0.0)
        (0.9, 0.0)
    """
    real = check_in_range("real_target", real_target, 0.0, 1.0)
    fake = check_in_range("fake_target", fake_target, 0.0, 1.0)
    if real <= fake:
        raise ValueError(
            f"real_target={real} must be above fake_target={fake}: high logits mean real "
            "(try real_target=0.9, fake_target=0)."
        )
    if fake > 0:
        warnings.warn(
            f"fake_target={fake} smooths the fakes too: the generator's gradient then vanishes where real data are "
            "rare. Leave fake_target at 0 and smooth the real side alone (one-sided smoothing).",
            UserWarning,
            stacklevel=stacklevel,
        )
    return real, fake


def discriminator_loss(
    real_logits: Tensor,
    fake_logits: Tensor,
    *,
    real_target: float = 1.0,
    fake_target: float = 0.0,
    real_weight: Tensor | None = None,
    fake_weight: Tensor | None = None,
) -> Tensor:
    """Half the mean binary cross-entropy of each side, in nats: of equal batches it is the mean over all samples.

    With targets `a` and `b` and densities `p_real`, `p_fake` it is least at
    `D = (a p_real + b p_fake) / (p_real + p_fake)` (Goodfellow et al. 2014 with Salimans et al. 2016), so that a
    one-sided logit is capped at `log(a / (1 - a))`. A side without samples, or of weights that are all 0, adds 0.

    Args:
        real_logits: `[R]` or any shape, high = real.
        fake_logits: `[F]` or any shape.
        real_target: probability of "real" that real samples are trained on.
        fake_target: probability of "real" that fake samples are trained on.
        real_weight: as `real_logits`, a factor a sample; the side's mean is divided by their sum.
        fake_weight: as `fake_logits`.

    Raises:
        TypeError: logits that are not floating-point.
        ValueError: a target outside `[0, 1]`, weights of another shape.

    Examples:
        >>> discriminator_loss(torch.zeros(4), torch.zeros(2))
        tensor(0.6931)
    """
    side = functools.partial(binary_cross_entropy, real_target=real_target, fake_target=fake_target)
    real = side(real_logits, torch.ones_like(real_logits), weight=real_weight)
    fake = side(fake_logits, torch.zeros_like(fake_logits), weight=fake_weight)
    return (real + fake) / 2


@torch.no_grad()
def discriminator_statistics(real_logits: Tensor, fake_logits: Tensor, loss: Tensor) -> DiscriminatorStatistics:
    """`DiscriminatorStatistics` of a batch; `loss` is passed through.

    Args:
        real_logits: `[R]` or any shape, high = real.
        fake_logits: `[F]` or any shape.
        loss: 0-dim.

    Examples:
        >>> statistics = discriminator_statistics(torch.tensor([2.0, -1.0]), torch.tensor([-3.0]), torch.tensor(0.5))
        >>> statistics.accuracy_real, statistics.accuracy_fake
        (tensor(0.5000), tensor(1.))
    """
    real, fake = (logits.detach().float().flatten() for logits in (real_logits, fake_logits))
    both = torch.cat((real, fake))  # [R + F]
    probability = both.sigmoid()
    predicted_real = (both >= 0).float()
    is_hit = torch.cat((predicted_real[: len(real)], 1 - predicted_real[len(real) :]))
    # The entropy of a Bernoulli is its cross-entropy with itself.
    entropies = binary_cross_entropy(both, probability, reduction="none")
    rows = torch.stack((is_hit, probability, predicted_real, entropies))  # [4, R + F]
    accuracy, _, share_predicted_real, entropy = rows.mean(1).unbind()
    accuracy_real, probability_real = rows[:2, : len(real)].mean(1).unbind()
    accuracy_fake, probability_fake = rows[:2, len(real) :].mean(1).unbind()
    return DiscriminatorStatistics(
        loss=loss.detach(),
        accuracy=accuracy,
        accuracy_real=accuracy_real,
        accuracy_fake=accuracy_fake,
        entropy=entropy,
        probability_real=probability_real,
        probability_fake=probability_fake,
        share_real=both.new_tensor(len(real) / len(both) if len(both) else torch.nan),
        share_predicted_real=share_predicted_real,
    )


def discriminator_step(
    optimizer: torch.optim.Optimizer,
    real_logits: Tensor,
    fake_logits: Tensor,
    *,
    real_target: float = 1.0,
    fake_target: float = 0.0,
    real_weight: Tensor | None = None,
    fake_weight: Tensor | None = None,
    penalty: Tensor | None = None,
    max_grad_norm: float | None = None,
) -> DiscriminatorStatistics:
    """One update: loss, backward, step. Nothing waits for the device.

    Args:
        optimizer: of the discriminator's parameters, which the logits were made with.
        real_logits: `[R]` or any shape, high = real, with their graph.
        fake_logits: `[F]` or any shape, made from detached fakes, or their gradient runs into the generator.
        real_target: probability of "real" that real samples are trained on; check it once by `check_targets`.
        fake_target: probability of "real" that fake samples are trained on.
        real_weight: as `real_logits`, a factor a sample.
        fake_weight: as `fake_logits`, a factor a sample.
        penalty: 0-dim, added to the loss: a gradient penalty, weight decay.
        max_grad_norm: to which the norm of the gradient of all the optimiser's parameters is clipped; None: not.

    Returns:
        The statistics of this batch, before the update; their loss includes the penalty.

    Raises:
        TypeError, ValueError: see `discriminator_loss`.

    Examples:
        >>> weight = torch.zeros(1, requires_grad=True)
        >>> optimizer = torch.optim.SGD([weight], lr=1.0)
        >>> statistics = discriminator_step(optimizer, weight * torch.ones(2), weight * -torch.ones(2))
        >>> weight
        tensor([0.5000], requires_grad=True)
    """
    loss = discriminator_loss(
        real_logits,
        fake_logits,
        real_target=real_target,
        fake_target=fake_target,
        real_weight=real_weight,
        fake_weight=fake_weight,
    )
    if penalty is not None:
        loss = loss + penalty
    clear_gradients(optimizer)
    run_backward(loss)
    _update(optimizer, max_grad_norm)
    return discriminator_statistics(real_logits, fake_logits, loss)


def accumulated_discriminator_step(
    optimizer: torch.optim.Optimizer,
    parts: Iterable[tuple[Tensor, Tensor]],
    num_parts: int,
    *,
    real_target: float = 1.0,
    fake_target: float = 0.0,
    max_grad_norm: float | None = None,
) -> DiscriminatorStatistics:
    """One update on a batch that comes in parts, so that the memory for one part's graph is enough.

    Parts of the same size give what `discriminator_step` gives on all samples at once, but for rounding.

    Args:
        optimizer: of the discriminator's parameters; it takes one step.
        parts: real and fake logits of each part, made when they are asked for.
        num_parts: how many parts come; the mean of their losses is trained on.
        real_target: probability of "real" that real samples are trained on.
        fake_target: probability of "real" that fake samples are trained on.
        max_grad_norm: of the gradient, which is clipped to it; None: not clipped.

    Returns:
        The statistics of all samples together.

    Raises:
        ValueError: there come more parts, or fewer.

    Examples:
        >>> weight = torch.zeros(1, requires_grad=True)
        >>> optimizer = torch.optim.SGD([weight], lr=1.0)
        >>> parts = ((weight * torch.ones(2), weight * -torch.ones(2)) for _ in range(2))
        >>> statistics = accumulated_discriminator_step(optimizer, parts, 2)
        >>> weight
        tensor([0.5000], requires_grad=True)
    """
    clear_gradients(optimizer)
    reals, fakes, losses = [], [], []
    for real_logits, fake_logits in parts:
        loss = discriminator_loss(real_logits, fake_logits, real_target=real_target, fake_target=fake_target)
        run_backward(loss / num_parts)
        reals.append(real_logits.detach())
        fakes.append(fake_logits.detach())
        losses.append(loss.detach())
    if len(losses) != num_parts:
        raise ValueError(f"num_parts={num_parts}, and {len(losses)} came.")
    _update(optimizer, max_grad_norm)
    return discriminator_statistics(torch.cat(reals), torch.cat(fakes), torch.stack(losses).mean())


def _update(optimizer: torch.optim.Optimizer, max_grad_norm: float | None) -> None:
    if max_grad_norm is not None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    take_step(optimizer)
