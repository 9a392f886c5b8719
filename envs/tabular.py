"""A small decision problem as tables, and everything that is known about it in closed form. No state, no randomness."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from rlsmooth.envs.optima import Direction, soft_optimum
from rlsmooth.targets import Smoothing, as_smoothing

MAX_STATES = 65_536

Scalar = TypeVar("Scalar", bound=np.generic)


def enumerate_states(dims: tuple[int, ...]) -> NDArray[np.int64]:
    """Return every state of a problem: row `s` holds the components of state `s`, the last component running fastest.

    Args:
        dims: the number of values of each component, each at least 2.

    Returns:
        `[prod(dims), len(dims)]` int64.

    Raises:
        ValueError: if there is no component, one has fewer than 2 values, or there are more than 65,536 states.

    Examples:
        >>> enumerate_states((2, 2)).tolist()
        [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    if not dims or min(dims) < 2:
        raise ValueError(
            f"dims={dims} must hold at least one number, each at least 2: with one action there is nothing to choose."
        )
    if math.prod(dims) > MAX_STATES:
        raise ValueError(
            f"dims={dims} give {math.prod(dims)} states, more than {MAX_STATES}: use fewer or smaller dimensions."
        )
    return np.stack([axis.ravel() for axis in np.indices(dims)], axis=-1).astype(np.int64)


@dataclass(frozen=True, eq=False)
class TabularProblem:
    """A contextual bandit: the state is drawn uniformly at each step, and the reward depends on state and action only.

    An action has `D = len(dims)` components, and so has a state, of the same sizes. The reward is a sum over the
    components, so that the best policy, its smoothed form and its entropy-regularised form are all products over
    components. Tables therefore have one column for each value of each component, `F = sum(dims)` in all
    (sb3-contrib's layout of action masks): row `s` of a policy holds `D` distributions side by side, and for a
    Discrete action space it is simply `[S, n_actions]`.

    The states are those of `enumerate_states(dims)`, or, for a `DatasetBanditEnv`, the samples of a data set.

    Attributes:
        dims: the number of values of each component; `(n,)` for a Discrete action space.
        rewards: `[S, F]` float64: what each component's value adds to the reward, illegal ones included.
        legal: `[S, F]` bool, True where legal; every component has a legal value in every state.

    Raises:
        ValueError: if `dims` is refused by `enumerate_states`, a table has another shape than `[S, F]`, or a component
            has no legal value.

    Examples:
        >>> problem = TabularProblem(dims=(2,), rewards=np.eye(2), legal=np.ones((2, 2), dtype=bool))
        >>> problem.optimal_reward()
        1.0
        >>> problem.smoothed_policy(0.2).tolist()
        [[0.9, 0.1], [0.1, 0.9]]
    """

    dims: tuple[int, ...]
    rewards: NDArray[np.float64]
    legal: NDArray[np.bool_]

    def __post_init__(self) -> None:
        enumerate_states(self.dims)  # checks them
        shape = (len(self.rewards), sum(self.dims))
        if self.rewards.shape != shape or self.legal.shape != shape:
            raise ValueError(
                f"rewards {self.rewards.shape} and legal {self.legal.shape} must both have the shape {shape}."
            )
        if not all(block.any(axis=-1).all() for block in self.split(self.legal)):
            raise ValueError("legal leaves some state without a legal value in one component: each needs at least one.")

    @property
    def num_states(self) -> int:
        """The number of states, `S`."""
        return len(self.rewards)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """`[D]` int64: the first column of each component."""
        return np.cumsum((0, *self.dims[:-1]), dtype=np.int64)

    def split(self, table: NDArray[Scalar]) -> list[NDArray[Scalar]]:
        """Return the `D` blocks `[..., dims[d]]` of a table `[..., F]`."""
        return np.split(table, self.offsets[1:], axis=-1)

    def best_actions(self) -> NDArray[np.int64]:
        """Return the best legal action in each state, `[S, D]` int64; the lowest one where several are best."""
        blocks = self.split(np.where(self.legal, self.rewards, -np.inf))
        return np.stack([block.argmax(axis=-1) for block in blocks], axis=-1)

    def optimal_reward(self) -> float:
        """Return the expected reward of one step under the best policy."""
        blocks = self.split(np.where(self.legal, self.rewards, -np.inf))
        return float(np.mean(np.sum([block.max(axis=-1) for block in blocks], axis=0)))

    def expected_reward(self, policy: NDArray[np.floating]) -> float:
        """Return the expected reward of one step under `policy`: `mean_s sum_f policy[s, f] * rewards[s, f]`.

        Args:
            policy: `[S, F]` probabilities; each component's block sums to 1 (within 1e-4) in each row.

        Raises:
            ValueError: if the shape is another, a probability is negative or not finite, or a block doesn't sum to 1.
        """
        table = np.asarray(policy, dtype=np.float64)
        if table.shape != self.rewards.shape:
            raise ValueError(f"policy has shape {table.shape}: it must be {self.rewards.shape}, one row a state.")
        if not np.isfinite(table).all() or (table < 0).any():
            raise ValueError("policy holds a negative or non-finite probability: pass probabilities, not logits.")
        for component, block in enumerate(self.split(table)):
            sums = block.sum(axis=-1)
            if not np.allclose(sums, 1.0, rtol=0.0, atol=1e-4):
                row = int(np.abs(sums - 1.0).argmax())
                raise ValueError(
                    f"policy row {row}, component {component} sums to {sums[row]:g}: divide it by its sum."
                )
        return float((table * self.rewards).sum(axis=-1).mean())

    def smoothed_policy(self, smoothing: float | str | Smoothing) -> NDArray[np.float64]:
        """Return the policy that minimises the smoothed cross-entropy against the best actions: the target itself.

        `CE(q, pi) = H(q) + KL(q || pi)` is least at `pi = q`, for each component. For a number,
        `q = (1 - alpha) * onehot(best) + alpha * uniform(legal)`.

        Args:
            smoothing: `alpha` in [0, 1], or any `rlsmooth.targets.Smoothing` (ordinal, hierarchical, ...).

        Returns:
            `[S, F]` float64.

        Raises:
            ValueError: if `rlsmooth.targets` rejects the smoothing, or alpha is negative: cross-entropy then has no
                minimum.
        """
        recipe = as_smoothing(smoothing)
        masks = self.split(self.legal)
        blocks = [
            recipe(torch.from_numpy(best.copy()), n, mask=None if mask.all() else torch.from_numpy(mask.copy()))
            .dense(torch.float64)
            .numpy()
            for best, n, mask in zip(self.best_actions().T, self.dims, masks, strict=True)
        ]
        table = np.concatenate(blocks, axis=-1)
        if (table < 0).any():
            raise ValueError(f"smoothing={smoothing!r} gives negative weights: no policy minimises that cross-entropy.")
        return table

    def soft_policy(self, coefficient: float, *, direction: Direction = "policy_to_reference") -> NDArray[np.float64]:
        """Return the policy that maximises `E[reward] - coefficient * KL`, KL to or from the uniform: `[S, F]` float64.

        This applies `rlsmooth.envs.optima.soft_optimum` to each component.
        """
        pairs = zip(self.split(self.rewards), self.split(self.legal), strict=True)
        blocks = [soft_optimum(r, coefficient, direction=direction, legal=legal) for r, legal in pairs]
        return np.concatenate(blocks, axis=-1)
