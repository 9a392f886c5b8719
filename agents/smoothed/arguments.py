"""What the smoothed algorithms are given, checked, and what of it goes to their policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rlsmooth.agents.smoothed.policies import SmoothedPolicy
from rlsmooth.checks import check_in_range
from rlsmooth.schedules import ScheduleLike, is_zero
from rlsmooth.targets import Smoothing, as_smoothing

__all__ = [
    "check_policy_class",
    "coefficient_at",
    "has_default_reference",
    "policy_arguments_of",
    "training_smoothing",
]


def training_smoothing(value: ScheduleLike | Smoothing) -> Smoothing:
    """What a `smoothing=` argument of an algorithm means, whose alpha is a coefficient of KL(reference‖pi).

    Raises:
        TypeError: it is neither a callable nor what `as_smoothing` takes.
        ValueError: alpha is below 0, None, or one for each row.

    Example:
        >>> training_smoothing("lin_0.1").alpha_at(0.5)
        0.05
    """
    is_schedule = callable(value) and not isinstance(value, (Smoothing, Tensor))
    smoothing = Smoothing(alpha=value) if is_schedule else as_smoothing(value)  # type: ignore[arg-type]
    alpha = smoothing.alpha
    if alpha is None:
        raise ValueError(
            "smoothing has alpha=None, which is no coefficient: give a number to smoothing and the recipe to the "
            'policy: policy_kwargs={"reference": Smoothing(alpha=None, ...)}.'
        )
    if isinstance(alpha, Tensor):
        if alpha.ndim:
            raise ValueError(f"smoothing has an alpha of shape {tuple(alpha.shape)}: an algorithm needs one number.")
        smoothing = dataclasses.replace(smoothing, alpha=float(alpha))
    start = smoothing.alpha if callable(smoothing.alpha) else smoothing.alpha_at(1.0)
    if not callable(start):
        check_in_range("smoothing", start, 0.0)
    return smoothing


def has_default_reference(smoothing: Smoothing) -> bool:
    """Whether it names no reference of its own: the uniform one over all legal actions."""
    return isinstance(smoothing.reference, str) and smoothing.reference == "uniform" and smoothing.spread == "all"


def coefficient_at(smoothing: Smoothing, progress: float) -> float:
    """The coefficient in force when `progress` remains.

    Raises:
        ValueError: a schedule gave a number below 0.

    Example:
        >>> coefficient_at(training_smoothing(0.1), 0.5)
        0.1
    """
    alpha = smoothing.alpha_at(progress)
    return check_in_range("smoothing", float(alpha) if isinstance(alpha, Tensor) else alpha, 0.0)


def check_policy_class(policy_class: type, *, is_smoothed: bool, floor: ScheduleLike) -> None:
    """Raise TypeError if the policy lacks what an argument needs; with all of them off any policy will do.

    Args:
        policy_class: of the algorithm's policy.
        is_smoothed: whether KL(reference‖pi) is part of the loss.
        floor: the exploration floor.
    """
    if issubclass(policy_class, SmoothedPolicy):
        return
    wanting = "smoothing (or a target entropy)" if is_smoothed else None if is_zero(floor) else "exploration_floor"
    if wanting is not None:
        raise TypeError(
            f"policy={policy_class.__name__} can't be used with {wanting}: give a name such as 'MlpPolicy', a class "
            "such as rlsmooth.agents.SmoothedActorCriticPolicy, or your own class with SmoothedPolicy before its base."
        )


def policy_arguments_of(
    policy_kwargs: Mapping[str, Any], smoothing: Smoothing, *, is_smoothed: bool, floor: ScheduleLike
) -> dict[str, Any]:
    """The policy's arguments, with the smoothing's reference where it has one of its own.

    Args:
        policy_kwargs: the user's.
        smoothing: of the algorithm; the uniform reference is the default and leaves the policy's as it is.
        is_smoothed: whether KL(reference‖pi) is part of the loss.
        floor: the exploration floor.

    Raises:
        ValueError: reference or floor are in both places and differ.
    """
    arguments = dict(policy_kwargs)
    if not is_zero(floor) and arguments.get("exploration_floor", floor) != floor:
        raise ValueError(
            f"exploration_floor={floor!r} differs from policy_kwargs['exploration_floor']="
            f"{arguments['exploration_floor']!r}: give one of them."
        )
    if not is_smoothed or has_default_reference(smoothing):
        return arguments
    ours = dataclasses.replace(smoothing, alpha=1.0)
    theirs = arguments.get("reference")
    if theirs is not None and not _same(theirs, ours):
        raise ValueError(
            f"smoothing has reference={smoothing.reference!r}, but policy_kwargs['reference']={theirs!r}: give one of "
            "them (a number as smoothing leaves the reference to the policy)."
        )
    arguments["reference"] = ours
    return arguments


def _same(theirs: Any, ours: Smoothing) -> bool:
    if isinstance(theirs, (tuple, list)):
        return False
    recipe = theirs if isinstance(theirs, Smoothing) else Smoothing(alpha=1.0, reference=theirs)
    if recipe.alpha is not None:
        recipe = dataclasses.replace(recipe, alpha=1.0)
    return recipe.to_config() == ours.to_config()
