"""The units in which a Gaussian policy's action layer is trained: about [-1, 1], whatever the environment's are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn

from rlsmooth.data import Demonstrations

CHUNK_TRANSITIONS = 65_536


@dataclass(frozen=True, eq=False)
class ActionUnits:
    """An affine map of each action dimension, `action = shift + scale · normalised action`, and the layer it is for.

    The policy answers in the environment's units at all times, as Stable-Baselines3 expects, and its files are those of
    any policy. Only an optimiser's step sees the layer in normalised units: gradients are multiplied by `scale`, and
    weights are converted there and back. So a step of the same learning rate is the same share of any width.

    Attributes:
        layer: the last layer of the actor.
        shift: `[D]`.
        scale: `[D]`, powers of two, by which numbers are multiplied and divided without rounding.
        spread: `[D]`, half the width, or the standard deviation of the demonstrated actions.
        unbounded: bool `[D]`: these dimensions have no finite bounds.
    """

    layer: nn.Linear
    shift: Tensor
    scale: Tensor
    spread: Tensor
    unbounded: Tensor

    def reference(self, mean: Tensor, std: Tensor, *, std_given: bool) -> tuple[Tensor, Tensor]:
        """The broad Gaussian `[D]` of smoothing, that of the demonstrated actions where there are no bounds."""
        mean = torch.where(self.unbounded, self.shift, mean)
        return mean, std if std_given else torch.where(self.unbounded, self.spread, std)

    @torch.no_grad()
    def scale_gradients(self) -> None:
        """Turn the gradients of the layer in place into those of its normalised form."""
        for parameter, factor in ((self.layer.weight, self.scale.unsqueeze(1)), (self.layer.bias, self.scale)):
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def normalised_parameters(self) -> dict[int, Tensor]:
        """By `id`, what the layer's parameters are in normalised units; gradients run through."""
        weight, bias = self.layer.weight, self.layer.bias
        return {id(weight): weight / self.scale.unsqueeze(1), id(bias): (bias - self.shift) / self.scale}

    @contextmanager
    def normalised(self) -> Iterator[None]:
        """Within the block, the layer's output is in normalised units."""
        with torch.no_grad():
            self.layer.weight.div_(self.scale.unsqueeze(1))
            self.layer.bias.sub_(self.shift).div_(self.scale)
        yield
        with torch.no_grad():
            self.layer.weight.mul_(self.scale.unsqueeze(1))
            self.layer.bias.mul_(self.scale).add_(self.shift)


def make_units(
    policy: BasePolicy,
    space: spaces.Space[Any],
    demonstrations: Demonstrations | None,
    *,
    given: object,
    policy_kwargs: Mapping[str, Any] | None,
) -> ActionUnits | None:
    """The units of a policy's Box; a policy that was just built is moved to the middle of the actions.

    A dimension with finite bounds has their middle and half their distance; one without has the mean and the standard
    deviation of the demonstrated actions, or 0 and 1 where there are none.

    Args:
        policy: a Gaussian one, on its device.
        space: of its actions.
        demonstrations: where dimensions without bounds take their units from.
        given: what the user gave as the policy; an instance is not moved.
        policy_kwargs: with a `log_std_init` other than 0, the initial standard deviation is the user's and stays.

    Returns:
        None if the units are the environment's own already: another space than a Box, one of about [-1, 1], or a policy
        whose last layer is not linear.
    """
    layer = getattr(policy, "action_net", None)
    if not isinstance(space, spaces.Box) or not isinstance(layer, nn.Linear):
        return None
    middle, spread, bounded = _middle_and_spread(space, demonstrations)
    if layer.out_features != len(middle) or (not middle.any() and (spread == 1.0).all()):
        return None
    shift, scale, width = (
        torch.as_tensor(values, dtype=layer.weight.dtype, device=layer.weight.device)
        for values in (middle, np.exp2(np.round(np.log2(spread))), spread)
    )
    if not isinstance(given, BasePolicy):
        with torch.no_grad():
            layer.weight.mul_(scale.unsqueeze(1))
            layer.bias.mul_(scale).add_(shift)
            log_std = getattr(policy, "log_std", None)
            if isinstance(log_std, Tensor) and not (policy_kwargs or {}).get("log_std_init", 0.0):
                log_std.add_(width.log())
    return ActionUnits(layer, shift, scale, width, torch.as_tensor(~bounded, device=layer.weight.device))


def step_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Iterable[Tensor],
    max_grad_norm: float | None,
    units: ActionUnits | None,
) -> None:
    """Clip the gradient's norm, and take one step, both with the action layer in normalised units."""
    if units is not None:
        units.scale_gradients()
    if max_grad_norm is not None:
        nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    if units is None:
        optimizer.step()
        return
    with units.normalised():
        optimizer.step()


def _middle_and_spread(space: spaces.Box, demonstrations: Demonstrations | None) -> tuple[Any, Any, Any]:
    """Middle and half width of each dimension, float64 `[D]`, and whether it has bounds."""
    low, high = (bound.astype(np.float64).ravel() for bound in (space.low, space.high))
    with np.errstate(invalid="ignore"):  # where there are no bounds
        half, middle = high / 2 - low / 2, low / 2 + high / 2
    bounded = np.square(half) < float(np.finfo(np.float32).max)  # as `box_reference` says
    middle, spread = np.where(bounded, middle, 0.0), np.where(bounded & (half > 0), half, 1.0)
    if demonstrations is not None and len(demonstrations) and not bounded.all():
        mean, std = _moments(demonstrations)
        middle = np.where(bounded, middle, mean)
        spread = np.where(bounded | (std <= np.abs(mean) * 1e-6), spread, std)
    return middle, spread, bounded


def _moments(demonstrations: Demonstrations) -> tuple[Any, Any]:
    """Mean and standard deviation of each action dimension, in float64, read in chunks."""
    count = len(demonstrations)
    chunks = [slice(start, start + CHUNK_TRANSITIONS) for start in range(0, count, CHUNK_TRANSITIONS)]

    def rows(chosen: slice) -> Any:
        values = np.asarray(demonstrations.actions[chosen], dtype=np.float64)
        return values.reshape(len(values), -1)

    mean = sum(rows(chosen).sum(0) for chosen in chunks) / count
    variance = sum(np.square(rows(chosen) - mean).sum(0) for chosen in chunks) / count
    return mean, np.sqrt(variance)
