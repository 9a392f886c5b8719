"""Action spaces that do not start at 0: a policy's distribution counts from their start, or the policy is refused."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from rlsmooth.agents.spaces import action_start
from rlsmooth.data.arrays import action_dims, action_starts

LARGEST_FLOAT32_INTEGER = 2**24


class FromStart:
    """A mixin before a categorical distribution of Stable-Baselines3, whose actions then count from `start`.

    `sample`, `mode` and `log_prob` speak of the environment's actions; logits and probabilities are what they were.

    Attributes:
        start: the first action, of each dimension for MultiDiscrete.
    """

    start: tuple[int, ...]

    def sample(self) -> Tensor:
        """Draw actions."""
        parent: Any = super()
        return shifted(parent.sample(), self.start)

    def mode(self) -> Tensor:
        """The most probable action."""
        parent: Any = super()
        return shifted(parent.mode(), self.start)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-probability of the environment's actions, `[B]`."""
        parent: Any = super()
        found: Tensor = parent.log_prob(shifted(actions, self.start, sign=-1))
        return found

    def __reduce__(self) -> tuple[Any, ...]:  # a class made at run time has no name by which pickle could find it
        return _restored, (type(self).__mro__[2],), dict(vars(self))


def shifted(actions: Tensor, start: tuple[int, ...], sign: int = 1) -> Tensor:
    """`actions + sign · start`, of one number for Discrete actions, else of one a dimension."""
    return actions + sign * (start[0] if len(start) == 1 else _on_device(start, actions.device))


def fill_padding(actions: Tensor, start: tuple[int, ...], dims: tuple[int, ...]) -> Tensor:
    """The actions, with an action of the space where sb3-contrib's sequences are padded by 0, which counts nowhere."""
    counted = shifted(actions, start, sign=-1).clamp(min=0)
    largest = tuple(size - 1 for size in dims)
    counted = counted.clamp(max=largest[0]) if len(dims) == 1 else counted.minimum(_on_device(largest, actions.device))
    return shifted(counted, start)


def start_of(space: spaces.Space[Any]) -> tuple[int, ...] | None:
    """The first action of each dimension; None where all are 0."""
    start = action_start(space)
    return None if start is None else tuple(int(one) for one in start.reshape(-1))


def count_from_start(policy: BasePolicy) -> None:
    """Let an actor-critic policy act in its own action space, whatever that starts at, in `forward` too.

    The policy's class and its parameters stay as they are.
    """
    start = start_of(policy.action_space)
    distribution = getattr(policy, "action_dist", None)
    if start is None or distribution is None or isinstance(distribution, FromStart):
        return
    counting = _restored(type(distribution))
    vars(counting).update(vars(distribution), start=start)
    owner: Any = policy
    owner.action_dist = counting


def plain_class(distribution: Distribution) -> type[Distribution]:
    """The distribution's class, that of Stable-Baselines3 if `count_from_start` changed it."""
    found = type(distribution)
    return found.__mro__[2] if isinstance(distribution, FromStart) else found


def check_counts_from_start(name: str, policy: BasePolicy) -> None:
    """Raise ValueError if the policy's actions count from 0 and its action space does not.

    Args:
        name: of the argument that has the policy.
        policy: of any algorithm.
    """
    if start_of(policy.action_space) is None or isinstance(getattr(policy, "action_dist", None), FromStart):
        return
    raise ValueError(
        f"{name} has action_space={policy.action_space!r}, but the actions of its {type(policy).__name__} count from "
        "0, as those of Stable-Baselines3 do: use a smoothed policy (SmoothedActorCriticPolicy, or SmoothedPPO), which "
        "counts from the start, or subtract the start in a wrapper of the environment."
    )


def check_float32_actions(space: spaces.Space[Any]) -> None:
    """Raise ValueError for actions that the buffers of Stable-Baselines3, which are float32, can't keep."""
    starts = action_starts(space)
    largest = max(np.abs(starts).max(), np.abs(starts + action_dims(space) - 1).max())
    if largest > LARGEST_FLOAT32_INTEGER:
        raise ValueError(
            f"action_space={space!r} has actions beyond {LARGEST_FLOAT32_INTEGER}, which Stable-Baselines3's float32 "
            "buffers round: subtract the start in a wrapper of the environment."
        )


@functools.cache
def _class_from_start(plain: type) -> Any:
    return type(f"{plain.__name__}FromStart", (FromStart, plain), {})


def _restored(plain: type) -> Any:
    made = _class_from_start(plain)
    return made.__new__(made)


@functools.lru_cache(maxsize=64)
def _on_device(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(numbers, device=device)
