"""Losses of PPO and A2C in the order of Stable-Baselines3's own operations, to which they are equal bit for bit.

Their closed-form gradients, for arrays, are in `rlsmooth.losses.output_gradients`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class PPOLosses(NamedTuple):
    """Means over a minibatch, 0-dimensional; `loss` has a graph."""

    entropy_loss: Tensor
    policy_loss: Tensor
    value_loss: Tensor
    approx_kl: Tensor
    clip_fraction: Tensor
    loss: Tensor


class A2CLosses(NamedTuple):
    """Means over a rollout, 0-dimensional; `loss` has a graph."""

    entropy_loss: Tensor
    policy_loss: Tensor
    value_loss: Tensor
    loss: Tensor


def normalised_advantages(advantages: Tensor) -> Tensor:
    """`(A - mean A) / (std A + 1e-8)`, `[B]`.

    Examples:
        >>> normalised_advantages(torch.tensor([1.0, 3.0]))
        tensor([-0.7071,  0.7071])
    """
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)


def ppo_losses(
    values: Tensor,
    log_prob: Tensor,
    entropy: Tensor | None,
    *,
    old_values: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    returns: Tensor,
    clip_range: float,
    clip_range_vf: float | None,
    ent_coef: float,
    vf_coef: float,
) -> PPOLosses:
    """PPO's losses of one minibatch: clipped surrogate, squared error of the values, and negative entropy.

    Args:
        values: `[B]`.
        log_prob: `[B]`, of the actions.
        entropy: `[B]`, or what replaces it; None: it has no closed form, and `-log_prob` is its estimate.
        old_values: `[B]`, of the rollout, as are all that follow.
        old_log_prob: `[B]`.
        advantages: `[B]`, normalised or not.
        returns: `[B]`.
        clip_range: of the ratio of probabilities.
        clip_range_vf: of the values; None: they are not clipped.
        ent_coef: coefficient of the entropy loss.
        vf_coef: coefficient of the value loss.

    Source:
        Schulman et al. 2017, Proximal Policy Optimization Algorithms.

    Examples:
        >>> one = torch.ones(1)
        >>> rollout = {"old_values": one, "old_log_prob": -one, "advantages": one, "returns": one}
        >>> ppo_losses(one, -one, one, clip_range=0.2, clip_range_vf=None, ent_coef=0.5, vf_coef=0.5, **rollout).loss
        tensor(-1.5000)
    """
    log_ratio = log_prob - old_log_prob
    ratio = torch.exp(log_ratio)
    clipped = advantages * torch.clamp(ratio, 1 - clip_range, 1 + clip_range)
    policy_loss = -torch.min(advantages * ratio, clipped).mean()
    if clip_range_vf is not None:
        values = old_values + torch.clamp(values - old_values, -clip_range_vf, clip_range_vf)
    value_loss = F.mse_loss(returns, values)
    entropy_loss = -torch.mean(-log_prob if entropy is None else entropy)
    loss = policy_loss + ent_coef * entropy_loss + vf_coef * value_loss
    with torch.no_grad():
        clip_fraction = torch.mean((torch.abs(ratio - 1) > clip_range).float())
        approx_kl = torch.mean((ratio - 1) - log_ratio)
    return PPOLosses(entropy_loss, policy_loss, value_loss, approx_kl, clip_fraction, loss)


def a2c_losses(
    values: Tensor,
    log_prob: Tensor,
    entropy: Tensor | None,
    *,
    advantages: Tensor,
    returns: Tensor,
    ent_coef: float,
    vf_coef: float,
) -> A2CLosses:
    """A2C's losses of a rollout; the arguments are those of `ppo_losses`.

    Examples:
        >>> one = torch.ones(1)
        >>> a2c_losses(one, -one, one, advantages=one, returns=one, ent_coef=0.5, vf_coef=0.5).loss
        tensor(0.5000)
    """
    policy_loss = -(advantages * log_prob).mean()
    value_loss = F.mse_loss(returns, values)
    entropy_loss = -torch.mean(-log_prob if entropy is None else entropy)
    return A2CLosses(
        entropy_loss, policy_loss, value_loss, policy_loss + ent_coef * entropy_loss + vf_coef * value_loss
    )


def bernoulli_log_prob(actions: Tensor, logits: Tensor) -> Tensor:
    """Log-probabilities of independent bits, summed over them: `[B]` of `[B, D]`.

    Examples:
        >>> bernoulli_log_prob(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2))
        tensor([-1.3863])
    """
    return -F.binary_cross_entropy_with_logits(logits, actions, reduction="none").sum(dim=1)


def bernoulli_entropy(logits: Tensor) -> Tensor:
    """Entropies of independent bits, summed over them: `[B]` of `[B, D]`.

    Examples:
        >>> bernoulli_entropy(torch.zeros(1, 2))
        tensor([1.3863])
    """
    return F.binary_cross_entropy_with_logits(logits, logits.sigmoid(), reduction="none").sum(dim=1)


def normal_log_prob(actions: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """`log N(a; mean, std²)` summed over dimensions, `[B]`, with the last bit of torch's `Normal`.

    `rlsmooth.losses.gaussian_log_prob` is the one for all else: it takes log std, and is exact where that is small.

    Examples:
        >>> normal_log_prob(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1))
        tensor([-0.9189])
    """
    each = -((actions - mean) ** 2) / (2 * std**2) - std.log() - math.log(math.sqrt(2 * math.pi))
    return each.sum(dim=1)


def normal_entropy(std: Tensor) -> Tensor:
    """The differential entropy of `N(mean, std²)`, `[B]`, with the last bit of torch's `Normal`.

    Examples:
        >>> normal_entropy(torch.ones(1, 1))
        tensor([1.4189])
    """
    return (0.5 + 0.5 * math.log(2 * math.pi) + torch.log(std)).sum(dim=1)
