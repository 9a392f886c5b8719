"""What a policy chose from in one state, in the environment's terms: for the pictures of `rlsmooth enjoy`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from rlsmooth.agents import BC
from rlsmooth.agents.smoothed.distributions import CategoricalActing, GaussianActing
from rlsmooth.agents.smoothed.measures import read_distribution
from rlsmooth.scripts.off_policy_acting import off_policy_acting
from rlsmooth.scripts.overlay import BoxChoice, Choices

__all__ = ["action_names", "choices_of", "entropy_of_choice", "read_choice"]

NAMES = {
    "CartPole": ("left", "right"),
    "MountainCar": ("left", "none", "right"),
    "Acrobot": ("torque -1", "none", "torque +1"),
    "LunarLander": ("none", "left engine", "main engine", "right engine"),
    "FrozenLake": ("left", "down", "right", "up"),
    "CliffWalking": ("up", "right", "down", "left"),
    "Taxi": ("south", "north", "east", "west", "pick up", "drop off"),
    "Blackjack": ("stick", "hit"),
}
"""Of Gymnasium's own environments, by the id without its version."""


def action_names(env_id: str, meanings: Sequence[str] | None, space: spaces.Space[Any]) -> tuple[str, ...] | None:
    """Names of a Discrete space's actions, or None where nobody has given any.

    Args:
        env_id: of the environment.
        meanings: what the environment's `get_action_meanings()` gave, as Atari's do, or None.
        space: of the actions.

    Example:
        >>> action_names("CartPole-v1", None, spaces.Discrete(2))
        ('left', 'right')
    """
    if not isinstance(space, spaces.Discrete):
        return None
    known = tuple(meanings) if meanings is not None else NAMES.get(env_id.rpartition("-v")[0], ())
    return tuple(name.lower() for name in known) if len(known) == space.n else None


@torch.no_grad()
def read_choice(
    agent: Any, observation: Any, masks: NDArray[Any] | None, state: Any, starts: NDArray[Any]
) -> CategoricalActing | GaussianActing:
    """The distribution from which an agent is about to act; no random generator moves.

    Args:
        agent: a `BC` or an algorithm.
        observation: a batch of them, as `predict` takes.
        masks: bool, True = legal, or None.
        state: as `predict` gave it, or None.
        starts: bool, 1 where an episode begins.

    Raises:
        ValueError: the agent acts from no distribution.
    """
    policy = agent.policy
    policy.set_training_mode(False)
    tensors, _ = policy.obs_to_tensor(observation)
    if isinstance(agent, OffPolicyAlgorithm):
        return off_policy_acting(agent, tensors)
    action_masks = None if masks is None else torch.as_tensor(masks, dtype=torch.bool, device=policy.device)
    if state is None:  # no memory, or none yet
        return read_distribution(policy, tensors, action_masks, None, None)
    hidden, cell = (torch.as_tensor(part, device=policy.device) for part in state)
    begins = torch.as_tensor(starts, dtype=torch.float32, device=policy.device)
    return read_distribution(policy, tensors, action_masks, (hidden, cell), begins)


def choices_of(
    acting: CategoricalActing | GaussianActing,
    action: NDArray[Any],
    *,
    agent: Any,
    masks: NDArray[Any] | None = None,
    names: tuple[str, ...] | None = None,
) -> list[Choices] | list[BoxChoice]:
    """What the first row of a distribution gives each action, and the one taken.

    Args:
        acting: of one state.
        action: taken there, as the environment takes it.
        agent: whose distribution it is.
        masks: bool `[1, number of choices]`, or None: all are legal.
        names: of a Discrete space's actions; None: their numbers.
    """
    space = agent.action_space
    if isinstance(acting, GaussianActing):
        return _dimensions(acting, np.asarray(action, dtype=np.float64).ravel(), space, agent.policy.squash_output)
    bins = agent.bins if isinstance(agent, BC) else None
    if bins is not None:
        chosen = bins.encode(np.asarray(action).reshape(1, -1))[0]
        middles = [bins.decode(np.full(len(acting.dims), place)).ravel() for place in range(bins.num_bins)]
        named = [tuple(f"{row[part]:.3g}" for row in middles) for part in range(len(acting.dims))]
    else:
        starts = np.ravel(space.start) if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) else 0
        first = np.broadcast_to(starts, (len(acting.dims),))
        chosen = np.asarray(action).ravel().astype(np.int64) - first
        named = [
            tuple(str(int(begin) + place) for place in range(size))
            for begin, size in zip(first, acting.dims, strict=True)
        ]
    probabilities = [part[0].double().cpu().numpy() for part in acting.probabilities()]
    legal = _legal(acting.dims, masks)
    return [
        Choices(probabilities=part, legal=allowed, chosen=int(taken), names=names or numbers)
        for part, allowed, taken, numbers in zip(probabilities, legal, chosen, named, strict=True)
    ]


def entropy_of_choice(acting: CategoricalActing | GaussianActing) -> tuple[float, float | None]:
    """Entropy of what acts in the first row, nats, and its fraction of the largest.

    The fraction is NaN where there was no choice, and None for continuous actions.
    """
    exact = acting.acting_entropy()
    if isinstance(acting, GaussianActing):
        return float((acting.acting_entropy_estimate(256) if exact is None else exact)[0]), None
    assert exact is not None
    fractions, has_choice = acting.entropy_fractions()
    return float(exact[0]) + 0.0, float(fractions[0]) + 0.0 if bool(has_choice[0]) else math.nan


def _legal(dims: tuple[int, ...], masks: NDArray[Any] | None) -> list[NDArray[np.bool_]]:
    flat = np.ones(sum(dims), dtype=bool) if masks is None else np.asarray(masks, dtype=bool).ravel()
    return np.split(flat, np.cumsum(dims)[:-1])


def _dimensions(
    acting: GaussianActing, taken: NDArray[np.float64], space: spaces.Box, is_squashed: bool
) -> list[BoxChoice]:
    # A policy's standard deviations are one a dimension, a row's own with gSDE.
    mean = acting.mean[0].double().cpu().numpy().ravel()
    std = np.broadcast_to(acting.log_std.exp().double().cpu().numpy(), acting.mean.shape)[0].ravel()
    low, high = space.low.astype(np.float64).ravel(), space.high.astype(np.float64).ravel()
    if is_squashed:
        ends = [low + (np.tanh(mean + side * std) + 1) / 2 * (high - low) for side in (-1, 0, 1)]
        mean, std = ends[1], (ends[2] - ends[0]) / 2
    return [
        BoxChoice(
            mean=float(mean[i]),
            std=float(std[i]),
            low=float(low[i]),
            high=float(high[i]),
            taken=float(taken[i]),
            name=str(i),
        )
        for i in range(len(mean))
    ]
