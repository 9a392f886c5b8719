"""A target for the policy's entropy: the coefficient of KL(reference‖pi) that holds it, found by feedback."""

from __future__ import annotations

import math

import torch
from gymnasium import spaces
from torch import Tensor

from rlsmooth.agents.smoothed.policies import SmoothedPolicy
from rlsmooth.agents.smoothed.references import action_components
from rlsmooth.checks import check_in_range
from rlsmooth.losses import gaussian_entropy
from rlsmooth.targets import Smoothing

__all__ = ["EntropyTarget", "check_targets", "entropy_target_for"]


LOWEST_ALPHA, HIGHEST_ALPHA = 1e-6, 1e2
INITIAL_ALPHA = 0.01
LOG_RANGE = (math.log(LOWEST_ALPHA) + 3e-6, math.log(HIGHEST_ALPHA) - 3e-6)  # float32's rounding stays inside

# Chosen on CartPole-v1 (PPO at two settings, A2C; targets of 0.5 to 0.9) and Pendulum-v1.
PROPORTIONAL = 10.0
INTEGRAL = 0.2
SLOWEST_FALL = 0.02


class EntropyTarget:
    """Feedback on log alpha, one step for each gradient step: a proportional and an integral part.

        error = (target - mean entropy of the minibatch's rows) / scale
        integral <- integral + 0.2 · max(error, -0.02)
        log alpha = integral + 10 · error

    Both logarithms are cut to [log 1e-6, log 1e2]. Alpha rises fast where the entropy is too low, and the proportional
    part lifts it before a falling entropy reaches the target. The integral falls slowly, and not at all while alpha is
    1e-6, so that it does not run away while the entropy is far above the target and alpha has nothing to do:
    KL(reference‖pi) can only be added, so that a policy with more entropy than the target by itself stays there.

    Args:
        target: a fraction of log n_legal, or nats.
        is_fraction: which of the two.
        scale: the difference that counts as an error of 1: the target itself, or a Box's number of dimensions in nats.
        initial_alpha: to start from.
        device: of the training.

    Attributes:
        target: as the argument.
        is_fraction: as the argument.
        scale: as the argument.
        state: float32 `[2]` on the device: the integral and the last error. All that changes.

    Example:
        >>> feedback = EntropyTarget(0.5, is_fraction=False, scale=0.5)
        >>> feedback.update(torch.tensor([0.1, 0.2]), None, None)
        >>> bool(feedback.coefficient() > 0.01)
        True
    """

    def __init__(
        self,
        target: float,
        *,
        is_fraction: bool,
        scale: float,
        initial_alpha: float = INITIAL_ALPHA,
        device: torch.device | str = "cpu",
    ) -> None:
        self.target = target
        self.is_fraction = is_fraction
        self.scale = scale
        self.state = torch.tensor([math.log(initial_alpha), 0.0], device=device)

    def coefficient(self) -> Tensor:
        """Alpha in force: 0-dimensional, on the device, without a graph."""
        integral, error = self.state.unbind()
        return (integral + PROPORTIONAL * error).clamp(*LOG_RANGE).exp()

    @torch.no_grad()
    def update(self, entropies: Tensor, fractions: tuple[Tensor, Tensor] | None, row_weights: Tensor | None) -> None:
        """Take one step from the rows of a minibatch, without waiting for the device.

        Args:
            entropies: `[B]`, nats.
            fractions: `([B], [B] bool)`: H / log n_legal, and the rows with at least two legal actions, which alone
                count for a fraction; None for a Box.
            row_weights: `[B]`, 0 for padding; None: all rows count. Without a row that counts there is no error.
        """
        values, weights = entropies, row_weights
        if self.is_fraction:
            assert fractions is not None
            values, has_choice = fractions
            weights = has_choice.to(values.dtype) if weights is None else has_choice * weights
        if weights is None:
            mean = values.mean()
        else:
            mean = torch.where(weights > 0, values * weights, 0.0).sum() / weights.sum()
        error = torch.where(mean.isnan(), 0.0, (self.target - mean) / self.scale)
        step = INTEGRAL * error.clamp_min(-SLOWEST_FALL)
        integral, last = self.state.unbind()
        last.copy_(error)
        # Where alpha is at its least already, a lower integral would only make it late when the entropy has fallen.
        is_least = integral + PROPORTIONAL * error <= LOG_RANGE[0]
        integral.add_(torch.where(is_least, step.clamp_min(0.0), step)).clamp_(*LOG_RANGE)


def check_targets(
    frac: float | None, nats: float | None, smoothing: Smoothing, action_space: spaces.Space[object]
) -> None:
    """Raise unless at most one target is given, and one that the action space and the smoothing allow.

    Raises:
        TypeError: a target is no number.
        ValueError: both are given, one is out of range, a fraction for a Box, or an alpha that follows a schedule.
    """
    if frac is None and nats is None:
        return
    if frac is not None and nats is not None:
        raise ValueError(f"target_entropy_frac={frac} and target_entropy_nats={nats} are both given: choose one.")
    is_box = isinstance(action_space, spaces.Box)
    if frac is not None:
        if is_box:
            raise ValueError(
                f"target_entropy_frac={frac} can't be used for a Box, whose entropy has no greatest value: give "
                "target_entropy_nats (differential entropy, which may be negative)."
            )
        check_in_range("target_entropy_frac", frac, 0.0, 1.0, low_open=True)
    elif is_box:
        check_in_range("target_entropy_nats", nats)
    else:
        check_in_range("target_entropy_nats", nats, 0.0, low_open=True)
    if not smoothing.is_constant:
        raise ValueError(
            f"smoothing has the schedule alpha={smoothing.alpha!r}, but a target entropy finds alpha itself: give a "
            "number (the alpha to start from) or leave smoothing out."
        )


def entropy_target_for(
    policy: SmoothedPolicy,
    *,
    frac: float | None,
    nats: float | None,
    initial_alpha: float,
    device: torch.device | str,
    has_static_reference: bool = True,
) -> EntropyTarget:
    """The feedback for a policy.

    Args:
        policy: whose reference bounds the entropy.
        frac: see `check_targets`.
        nats: see `check_targets`; exactly one of the two is given.
        initial_alpha: to start from; 0: 0.01.
        device: of the training.
        has_static_reference: False where another policy is the reference, whose entropy depends on the state.

    Raises:
        ValueError: the target exceeds the reference's entropy, which even the largest alpha can't do.
    """
    scale, greatest = _scale_and_greatest(policy)
    wanted = nats if frac is None else frac * scale
    assert wanted is not None
    if has_static_reference and wanted > greatest + 1e-6:
        given = f"target_entropy_nats={nats}" if frac is None else f"target_entropy_frac={frac} ({wanted:.4g} nats)"
        raise ValueError(
            f"{given} exceeds the entropy of the reference, {greatest:.4g} nats, towards which smoothing draws the "
            "policy: give a smaller target or a broader reference."
        )
    start = min(max(initial_alpha or INITIAL_ALPHA, LOWEST_ALPHA), HIGHEST_ALPHA)
    target = nats if frac is None else frac
    assert target is not None
    size = scale if isinstance(policy.action_space, spaces.Box) else target
    return EntropyTarget(target, is_fraction=frac is not None, scale=size, initial_alpha=start, device=device)


def _scale_and_greatest(policy: SmoothedPolicy) -> tuple[float, float]:
    """`(log of the number of actions, or a Box's dimensions; the reference's greatest entropy)`."""
    if isinstance(policy.action_space, spaces.Box):
        log_std = policy.get_buffer("reference_stds").log()
        return float(log_std.numel()), float(gaussian_entropy(log_std))
    components = action_components(policy.action_space)
    assert components is not None
    sizes = components[1]
    recipes = policy.references or (None,) * len(sizes)
    entropies = [
        math.log(size)
        if recipe is None
        else float(recipe(torch.arange(size), size).entropy().max())  # one row for each greedy action
        for size, recipe in zip(sizes, recipes, strict=True)
    ]
    return sum(map(math.log, sizes)), sum(entropies)
