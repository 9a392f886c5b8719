"""Closed-form optima of a one-step choice under a regulariser: what a regularised learner converges to.

Pure functions on numpy arrays, over the LAST axis (the actions). The bonuses are named as in
`rlsmooth.losses.kl_divergence`:

- `"policy_to_reference"`: `max E_pi[r] - c * KL(pi || u)`, an entropy bonus (`KL(pi || u) = log n - H(pi)` for the
  uniform `u`);
- `"reference_to_policy"`: `max E_pi[r] - c * KL(u || pi)`, what label smoothing adds.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from rlsmooth.checks import check_choice, check_in_range
from rlsmooth.targets import boltzmann

Direction = Literal["policy_to_reference", "reference_to_policy"]

_HALVINGS = 100  # the bracket shrinks by 2**-100: below the spacing of float64 whatever the number of actions


def soft_optimum(
    rewards: NDArray[np.float64],
    coefficient: float,
    *,
    direction: Direction = "policy_to_reference",
    legal: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """Return the policy that maximises expected reward minus `coefficient` times a KL to the uniform.

    With `u` uniform over the legal actions and `c = coefficient`, both optima are stationary points of a Lagrangian:

        policy_to_reference:  r_i - c * (log(pi_i / u_i) + 1) = lambda   =>   pi = softmax(r / c)
        reference_to_policy:  r_i + c * u_i / pi_i = lambda              =>   pi_i = c * u_i / (lambda - r_i)

    The first is `rlsmooth.targets.boltzmann` (Ziebart 2010, "Modeling purposeful adaptive behavior"). In the second
    `lambda` is the root of `sum_i c * u_i / (lambda - r_i) = 1`, above `max r`; it lies between `max r + c / n` and
    `max r + c` (Grill et al. 2020, "Monte-Carlo tree search as regularized policy optimization", with a uniform
    prior).

    Args:
        rewards: `[..., n]` expected reward of each action, finite.
        coefficient: weight of the KL, in reward per nat, above 0.
        direction: which KL, as described above.
        legal: `[..., n]` bool, True where the action is legal, at least one a row. Default: all.

    Returns:
        `[..., n]` float64 probabilities: rows sum to 1, illegal actions get exactly 0.

    Raises:
        TypeError: if `coefficient` is no number.
        ValueError: if `coefficient` is not above 0, `direction` is unknown, a reward is not finite, `legal` has
            another shape, or a row has no legal action.

    Examples:
        >>> soft_optimum(np.array([1.0, 0.0]), 0.5, direction="reference_to_policy").round(4)
        array([0.809, 0.191])
    """
    c = check_in_range("coefficient", coefficient, 0.0, low_open=True)
    check_choice("direction", direction, ("policy_to_reference", "reference_to_policy"))
    r = np.asarray(rewards, dtype=np.float64)
    if r.ndim == 0 or not np.isfinite(r).all():
        raise ValueError(
            f"rewards of shape {r.shape} must be [..., n] and finite: mark illegal actions by legal=, not by -inf."
        )
    mask = np.ones(r.shape, dtype=np.bool_) if legal is None else np.asarray(legal, dtype=np.bool_)
    if mask.shape != r.shape or not mask.any(axis=-1).all():
        raise ValueError(
            f"legal of shape {mask.shape} must have the shape of rewards, {r.shape}, and a legal action in every row."
        )

    if direction == "policy_to_reference":
        target = boltzmann(torch.from_numpy(r.copy()), temperature=c, mask=torch.from_numpy(mask.copy()))
        return np.asarray(target.dense(torch.float64).numpy(), dtype=np.float64)

    r = np.where(mask, r, -np.inf)
    gap = r.max(axis=-1, keepdims=True) - r  # [..., n], 0 at the best action, +inf (so probability 0) at illegal ones
    u = 1.0 / mask.sum(axis=-1, keepdims=True)  # [..., 1]
    low, high = c * u, np.full_like(u, c)  # brackets lambda - max r
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        too_much = (c * u / (middle + gap)).sum(axis=-1, keepdims=True) > 1.0
        low, high = np.where(too_much, middle, low), np.where(too_much, high, middle)
    pi: NDArray[np.float64] = c * u / (0.5 * (low + high) + gap)
    return pi
