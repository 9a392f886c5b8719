"""Learned rewards as functions of arrays, which is what environments and buffers hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import maybe_transpose
from torch import nn

from rlsmooth.agents.adversarial_setup import absorbing_row
from rlsmooth.agents.reward_net import RewardNet, ShapedRewardNet, Transitions

__all__ = ["RewardFunction", "as_tensors", "reward_of"]

RewardFunction: TypeAlias = Callable[[Any, NDArray[Any], Any, NDArray[np.bool_]], NDArray[np.float32]]
"""Of observations, actions, next observations (of an ended episode its last one) and `terminated`, float32 `[B]`."""


def reward_of(net: nn.Module, *, absorbing_is_zero: bool = False) -> RewardFunction:
    """The scores of a network as a function of observations, actions, next observations and `terminated`.

    Args:
        net: of `Transitions`. Images are given to a `RewardNet` channels first, whichever way they come.
        absorbing_is_zero: the score of the absorbing state is taken off every score, so that an end is worth 0, as
            algorithms take it; the net must know `Transitions.absorbing`, as a `RewardNet` does.

    Example:
        >>> from gymnasium import spaces
        >>> reward = reward_of(RewardNet(spaces.Box(-1, 1, (3,)), spaces.Discrete(2)))
        >>> states = np.zeros((5, 3), np.float32)
        >>> reward(states, np.zeros(5, np.int64), states, np.zeros(5, bool)).shape
        (5,)
    """
    base = net.reward if isinstance(net, ShapedRewardNet) else net
    space = base.observation_space if isinstance(base, RewardNet) else None

    @torch.no_grad()
    def reward(
        observations: Any, actions: NDArray[Any], next_observations: Any, terminated: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        if net.training:
            net.eval()
        device = next((tensor.device for tensor in net.parameters()), torch.device("cpu"))
        here, after = (as_tensors(given, space, device) for given in (observations, next_observations))
        ended = torch.as_tensor(terminated, device=device)
        rows = Transitions(here, torch.as_tensor(actions, device=device), after, ended, torch.zeros_like(ended))
        found = net(rows)
        if absorbing_is_zero:
            found = found - net(absorbing_row(rows))
        scores: NDArray[np.float32] = found.float().cpu().numpy()
        return scores

    return reward


def as_tensors(observations: Any, space: Any, device: torch.device) -> Any:
    """Observations as tensors; images as `space` has them, if it is given."""
    if isinstance(observations, dict):
        parts = {} if space is None else space.spaces
        return {key: as_tensors(part, parts.get(key), device) for key, part in observations.items()}
    values = np.asarray(observations)
    return torch.as_tensor(values if space is None else maybe_transpose(values, space), device=device)
