"""Losses with their gradients with respect to a network's outputs, in closed form, for arrays and tensors alike.

An engine without automatic differentiation asks here for what it feeds to its backward pass. Nothing is checked: what
it trains on was checked where it came in.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from rlsmooth.losses.gaussian import HALF_LOG_TWO_PI

Values: TypeAlias = Any
"""A numpy array or a tensor; all arguments of a call are of one of the two kinds."""
_ILLEGAL = -1e30  # exp() of it is 0, and 0 times it is 0


def cross_entropy_gradient(
    logits: Values, probs: Values, *, mass: Values | None = None, mask: Values | None = None
) -> tuple[Values, Values]:
    """`sum_i CE(q_i, softmax(z_i))` in nats, and its gradient `M_i · softmax(z_i) - q_i`.

    The weights of samples, and what the sum is divided by, are factors of `q`.

    Args:
        logits: `z`, `[B, K]`.
        probs: `q`, `[B, K]`, 0 at illegal classes.
        mass: `M`, `[B, 1]`, the sums of `q`; None: they are taken.
        mask: bool `[B, K]`, True = legal.

    Returns:
        The loss, 0-dimensional, and its gradient, `[B, K]`.

    Examples:
        >>> loss, gradient = cross_entropy_gradient(np.zeros((1, 2)), np.array([[1.0, 0.0]]))
        >>> round(float(loss), 4), gradient.tolist()
        (0.6931, [[-0.5, 0.5]])
    """
    xp = _module_of(logits)
    shifted, gradient, sums = _softmax_terms(xp, logits, mask)
    if mass is None:
        mass = probs.sum(-1, keepdims=True)
    gradient *= mass / sums
    gradient -= probs
    shifted *= probs
    return (mass * xp.log(sums)).sum() - shifted.sum(), gradient


class CategoricalOutputs:
    """A categorical policy pi of logits: what the losses of reinforcement learning read, and their gradient.

    Args:
        logits: `[B, K]`.
        mask: bool `[B, K]`, True = legal.
        floor: the share of the uniform in the behaviour policy, `(1 - floor) · pi + floor / K`; without a mask.

    Attributes:
        log_probs: `[B, K]`, far below all others where illegal.
        probs: `[B, K]`.
        behaviour: `[B, K]`, the behaviour policy's probabilities.

    Examples:
        >>> pi = CategoricalOutputs(np.zeros((1, 2)))
        >>> pi.log_prob(np.array([1])).round(4), pi.entropy().round(4), pi.kl_uniform()
        (array([-0.6931]), array([0.6931]), array([0.]))
        >>> pi.gradient(np.array([1]), np.array([1.0]))
        array([[-0.5,  0.5]])
    """

    def __init__(self, logits: Values, mask: Values | None = None, floor: float = 0.0) -> None:
        xp = _module_of(logits)
        shifted, exponentials, sums = _softmax_terms(xp, logits, mask)
        self.log_probs = shifted
        self.log_probs -= xp.log(sums)
        self.probs = exponentials
        self.probs /= sums
        # In the dtype of the logits: a count of bools has another.
        self._legal: Values | None = None if mask is None else xp.ones_like(self.probs) * mask
        self._entropy: Values | None = None
        self._floor = floor
        self.behaviour = (1 - floor) * self.probs + floor / logits.shape[-1] if floor else self.probs

    def log_prob(self, actions: Values) -> Values:
        """The behaviour policy's `log p(a)`, `[B]`, of actions int64 `[B]`."""
        places = _places(self.log_probs, actions)
        if not self._floor:
            return self.log_probs[places, actions]
        return _module_of(self.probs).log(self.behaviour[places, actions])

    def behaviour_entropy(self) -> Values:
        """The behaviour policy's entropy, `[B]`, in nats."""
        if not self._floor:
            return self.entropy()
        return -(self.behaviour * _module_of(self.probs).log(self.behaviour)).sum(-1)

    def entropy(self) -> Values:
        """`H(pi)`, `[B]`, in nats."""
        if self._entropy is None:
            self._entropy = -(self.probs * self.log_probs).sum(-1)
        return self._entropy

    def kl_uniform(self) -> Values:
        """`KL(uniform over the legal‖pi)`, `[B]`, in nats."""
        xp = _module_of(self.probs)
        if self._legal is None:
            return -self.log_probs.mean(-1) - math.log(self.probs.shape[-1])
        count = self._legal.sum(-1)
        return -(self.log_probs * self._legal).sum(-1) / count - xp.log(count)

    def gradient(self, actions: Values, by_log_prob: Values, *, by_entropy: float = 0.0, by_kl: float = 0.0) -> Values:
        """The gradient with respect to the logits, `[B, K]`, from those with respect to what is read from pi.

        Args:
            actions: int64 `[B]`.
            by_log_prob: the gradient with respect to the behaviour policy's `log p(a)`, `[B]`.
            by_entropy: with respect to each state's `H(pi)`.
            by_kl: with respect to each state's KL(uniform‖pi).
        """
        if self._floor:  # pi's part of p(a)
            places = _places(self.probs, actions)
            share = (1 - self._floor) * self.probs[places, actions] / self.behaviour[places, actions]
            by_log_prob = by_log_prob * share
        found = self.probs * (by_kl - by_log_prob)[:, None]
        if by_kl and self._legal is not None:
            found -= by_kl * self._legal / self._legal.sum(-1)[:, None]
        elif by_kl:
            found -= by_kl / self.probs.shape[-1]
        if by_entropy:
            found -= by_entropy * self.probs * (self.log_probs + self.entropy()[:, None])
        found[_places(found, actions), actions] += by_log_prob
        return found


class GaussianOutputs:
    """A diagonal Gaussian policy pi: what the losses of reinforcement learning read, and their gradient.

    Args:
        mean: `[B, D]`.
        log_std: `[D]`.

    Examples:
        >>> pi = GaussianOutputs(np.zeros((1, 1)), np.zeros(1))
        >>> pi.log_prob(np.zeros((1, 1))).round(4), round(float(pi.entropy()), 4)
        (array([-0.9189]), 1.4189)
    """

    def __init__(self, mean: Values, log_std: Values) -> None:
        self.mean, self.log_std = mean, log_std
        self._inverse = _module_of(mean).exp(-log_std)

    def log_prob(self, actions: Values) -> Values:
        """`log N(a; mean, std²)`, `[B]`, of actions `[B, D]`."""
        self._standard = standard = (actions - self.mean) * self._inverse
        return (standard * standard).sum(-1) * -0.5 - (self.log_std + HALF_LOG_TWO_PI).sum()

    def entropy(self) -> Values:
        """The differential entropy, 0-dimensional, the same in each state, in nats."""
        return (self.log_std + (HALF_LOG_TWO_PI + 0.5)).sum()

    def kl_reference(self, reference_mean: Values, reference_std: Values) -> Values:
        """`KL(N(reference_mean, reference_std²)‖pi)`, `[B]`, in nats."""
        xp = _module_of(self.mean)
        gap = self.log_std - xp.log(reference_std)
        offset = (self.mean - reference_mean) * self._inverse
        return (gap + 0.5 * (xp.exp(-2 * gap) + offset * offset) - 0.5).sum(-1)

    def gradient(
        self,
        by_log_prob: Values,
        *,
        by_entropy: float = 0.0,
        by_kl: float = 0.0,
        reference: tuple[Values, Values] | None = None,
    ) -> tuple[Values, Values]:
        """The gradients with respect to the mean, `[B, D]`, and to log std, `[D]`, after a call of `log_prob`.

        Args:
            by_log_prob: the gradient with respect to `log pi(a)`, `[B]`.
            by_entropy: with respect to each state's entropy.
            by_kl: with respect to each state's KL(reference‖pi).
            reference: mean and standard deviation, for `by_kl`.
        """
        standard, by_log_prob = self._standard, by_log_prob[:, None]
        by_mean = by_log_prob * standard * self._inverse
        by_log_std = (by_log_prob * (standard * standard - 1)).sum(0) + by_entropy * len(standard)
        if by_kl:
            assert reference is not None
            offset = (self.mean - reference[0]) * self._inverse
            spread = reference[1] * self._inverse
            by_mean = by_mean + by_kl * offset * self._inverse
            by_log_std = by_log_std + by_kl * (1 - spread * spread - offset * offset).sum(0)
        return by_mean, by_log_std


class Surrogate(NamedTuple):
    """A policy loss of a minibatch: its value, its gradient with respect to log pi(a), and what logs say of it."""

    loss: float
    gradient: Values
    kl: float
    clip_fraction: float


def clipped_surrogate(log_prob: Values, old_log_prob: Values, advantages: Values, clip_range: float) -> Surrogate:
    """PPO's policy loss `-mean min(A r, A clip(r, 1 - c, 1 + c))`, `r = exp(log pi(a) - log pi_old(a))`.

    Args:
        log_prob: `[B]`, an array.
        old_log_prob: `[B]`, of the policy that drew the actions.
        advantages: `A`, `[B]`.
        clip_range: `c`.

    Returns:
        With `kl`, the estimate `mean(r - 1 - log r)` of the divergence from the old policy, and the share of ratios
        beyond the range.

    Source:
        Schulman et al. 2017, Proximal Policy Optimization Algorithms; the estimate: Schulman, Approximating KL
        Divergence (2020).

    Examples:
        >>> clipped_surrogate(np.log([1.5, 1.0]), np.zeros(2), np.array([1.0, 1.0]), 0.2).gradient
        array([-0. , -0.5])
    """
    size = len(log_prob)
    log_ratio = log_prob - old_log_prob
    ratio = np.exp(log_ratio)
    offset = ratio - 1
    plain = advantages * ratio
    clipped = advantages * np.minimum(np.maximum(ratio, 1 - clip_range), 1 + clip_range)
    gradient = plain * (plain <= clipped)
    gradient *= -1 / size
    loss = -float(np.add.reduce(np.minimum(plain, clipped))) / size
    kl = float(np.add.reduce(offset - log_ratio)) / size
    return Surrogate(loss, gradient, kl, np.count_nonzero(np.abs(offset) > clip_range) / size)


def policy_gradient_surrogate(log_prob: Values, advantages: Values) -> Surrogate:
    """A2C's policy loss `-mean A log pi(a)`, with nothing to say of an old policy.

    Args:
        log_prob: `[B]`, an array.
        advantages: `A`, `[B]`.

    Examples:
        >>> policy_gradient_surrogate(np.log([0.5, 1.0]), np.array([2.0, 4.0])).gradient
        array([-1., -2.])
    """
    size = len(log_prob)
    loss = -float(np.dot(advantages, log_prob)) / size
    return Surrogate(loss, advantages * advantages.dtype.type(-1 / size), 0.0, 0.0)


def squared_error_gradient(
    values: Values, returns: Values, old_values: Values | None = None, clip_range: float | None = None
) -> tuple[float, Values]:
    """The critic's loss `mean (V - returns)²`, and its gradient with respect to the values, `[B]`.

    Args:
        values: `V`, `[B]`, an array.
        returns: `[B]`.
        old_values: `[B]`; with `clip_range`, V may differ from them by no more than that, as in PPO's value clipping.
        clip_range: None: no clipping.

    Examples:
        >>> squared_error_gradient(np.array([1.0, 3.0]), np.array([0.0, 3.0]))
        (0.5, array([1., 0.]))
    """
    size = len(values)
    if clip_range is None:
        errors = values - returns
        return float(np.dot(errors, errors)) / size, errors * (2 / size)
    assert old_values is not None
    change = values - old_values
    errors = old_values + np.clip(change, -clip_range, clip_range) - returns
    return float(np.dot(errors, errors)) / size, errors * (np.abs(change) <= clip_range) * (2 / size)


def _softmax_terms(xp: Any, logits: Values, mask: Values | None) -> tuple[Values, Values, Values]:
    """`z - max z`, its exponentials, and their sums `[B, 1]`."""
    if mask is not None:
        logits = xp.where(mask, logits, xp.full_like(logits[:1, :1], _ILLEGAL))
    if xp is np:  # the reductions themselves: what wraps them takes as long as they do
        shifted = logits - np.maximum.reduce(logits, -1, keepdims=True)
        exponentials = np.exp(shifted)
        return shifted, exponentials, np.add.reduce(exponentials, -1, keepdims=True)
    shifted = logits - logits.amax(-1, keepdim=True)
    exponentials = shifted.exp()
    return shifted, exponentials, exponentials.sum(-1, keepdim=True)


def _module_of(values: Values) -> Any:
    return np if isinstance(values, np.ndarray) else torch


def _places(values: Values, actions: Values) -> Values:
    if isinstance(values, np.ndarray):
        return np.arange(len(actions))
    return torch.arange(len(actions), device=values.device)
