"""Numbers that may change over a run: a constant, `"lin_0.1"`, or a callable of the progress remaining."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from rlsmooth.checks import check_in_range, linear_start

__all__ = ["ScheduleLike", "check_schedule", "is_zero", "value_at"]

ScheduleLike: TypeAlias = float | str | Callable[[float], float]
"""A number; `"lin_0.1"` (from 0.1 down to 0); or a callable of the progress remaining, from 1 down to 0."""


def check_schedule(name: str, value: object, *, low: float, high: float) -> None:
    """Raise unless `value` is a schedule whose numbers, as far as they are known before a run, lie in `[low, high]`.

    Args:
        name: what errors call it.
        value: anything.
        low: the least number.
        high: the greatest.

    Raises:
        TypeError: it is neither a number, nor text, nor callable.
        ValueError: a number outside the interval, or text that is no `"lin_…"`.
    """
    if isinstance(value, str):
        check_in_range(name, _start_of(name, value), low, high)
    elif not callable(value):
        check_in_range(name, value, low, high)


def value_at(name: str, value: ScheduleLike, progress: float, *, low: float, high: float) -> float:
    """The number in force when `progress` remains.

    Args:
        name: what errors call it.
        value: see `ScheduleLike`.
        progress: remaining, 1 at the start.
        low: the least number.
        high: the greatest.

    Raises:
        TypeError: a callable gave no number.
        ValueError: a number outside `[low, high]`.

    Example:
        >>> value_at("exploration_floor", "lin_0.2", 0.5, low=0.0, high=1.0)
        0.1
    """
    if isinstance(value, str):
        return check_in_range(name, _start_of(name, value) * progress, low, high)
    if callable(value):
        number: object = value(progress)
        try:
            return check_in_range(name, number, low, high)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}, a callable, gave {number!r} at progress {progress:g}: {error}") from None
    return check_in_range(name, value, low, high)


def is_zero(value: ScheduleLike) -> bool:
    """Whether it is the number 0, so that nothing of it is ever in force."""
    return not isinstance(value, str) and not callable(value) and value == 0


def _start_of(name: str, text: str) -> float:
    start = linear_start(text)
    if start is None:
        raise ValueError(f'{name}={text!r} is no schedule: write "lin_0.1" (from 0.1 down to 0), or give a callable.')
    return start
