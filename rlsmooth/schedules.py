"""Numbers that change over a run: a constant, `"lin_0.1"`, or a callable of the progress remaining. Floor 0.

The one place that knows how `"lin_…"` is read. Learning rates, exploration floors, a `Smoothing`'s alpha, coefficients
and a GAN's target all go through it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from rlsmooth.checks import check_in_range

Schedule: TypeAlias = Callable[[float], float]
"""A function of the progress remaining: 1 at the start of a run, 0 at its end, as in Stable-Baselines3."""

ScheduleLike: TypeAlias = float | str | Schedule
"""A number; `"lin_0.1"` (from 0.1 down to 0); or a function of the progress remaining."""

LearningRate: TypeAlias = ScheduleLike
"""A schedule whose numbers are above 0 until the run ends."""


def linear_start(text: str) -> float | None:
    """The number of a schedule such as `"lin_0.1"`, or None where the text is no such schedule.

    Examples:
        >>> linear_start("lin_0.1"), linear_start("cosine_0.1")
        (0.1, None)
    """
    kind, _, number = text.partition("_")
    if kind != "lin" or "_" in number:  # float() would read "0_1" as 1
        return None
    try:
        return float(number)
    except ValueError:
        return None


def start_of(name: str, text: str, *, end: float = 0.0) -> float:
    """The number that the linear schedule `text` starts from; its range is not checked.

    Args:
        name: what errors call it.
        text: `"lin_0.1"`.
        end: where the schedule ends, for the message.

    Raises:
        ValueError: the text is no such schedule.
    """
    start = linear_start(text)
    if start is None:
        example = '"lin_0.1" (from 0.1 down to 0)' if end == 0 else f'"lin_0.9" (from 0.9 to {end:g})'
        raise ValueError(f"{name}={text!r} is no schedule: give a number, {example} or a callable.")
    return start


def check_schedule(name: str, value: object, *, low: float, high: float, end: float = 0.0) -> None:
    """Raise unless `value` is a schedule whose numbers, as far as they are known before a run, lie in `[low, high]`.

    Args:
        name: what errors call it.
        value: anything.
        low: the least number.
        high: the greatest.
        end: where `"lin_…"` ends.

    Raises:
        TypeError: it is neither a number, nor text, nor callable.
        ValueError: a number outside the interval, or text that is no `"lin_…"`.
    """
    if isinstance(value, str):
        check_in_range(name, start_of(name, value, end=end), low, high)
    elif not callable(value):
        check_in_range(name, value, low, high)


def value_at(name: str, value: ScheduleLike, progress: float, *, low: float, high: float, end: float = 0.0) -> float:
    """The number in force when `progress` remains.

    Args:
        name: what errors call it.
        value: a number, `"lin_…"`, or a function of the progress that remains.
        progress: remaining, 1 at the start.
        low: the least number.
        high: the greatest.
        end: where `"lin_…"` ends: 0, or for example 1 for a target that rises to 1.

    Raises:
        TypeError: a callable gave no number.
        ValueError: a number outside `[low, high]`.

    Examples:
        >>> value_at("exploration_floor", "lin_0.2", 0.5, low=0.0, high=1.0)
        0.1
        >>> value_at("real_target", "lin_0.5", 0.5, low=0.0, high=1.0, end=1.0)
        0.75
    """
    if isinstance(value, str):
        start = start_of(name, value, end=end)
        return check_in_range(name, end + progress * (start - end), low, high)
    if callable(value):
        number: object = value(progress)
        try:
            return check_in_range(name, number, low, high)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}, a callable, gave {number!r} at progress {progress:g}: {error}") from None
    return check_in_range(name, value, low, high)


def as_schedule(learning_rate: LearningRate, name: str = "learning_rate") -> Schedule:
    """The learning rate as a function of the progress remaining, from 1 to 0.

    Args:
        learning_rate: a number above 0, `"lin_1e-3"` (from 1e-3 down to 0), or such a function.
        name: what errors call it.

    Raises:
        TypeError: it is none of these.
        ValueError: it is not above 0, or text that is no `"lin_…"`.

    Examples:
        >>> as_schedule("lin_0.5")(0.5)
        0.25
    """
    if callable(learning_rate):
        return lambda progress: value_at(name, learning_rate, progress, low=0.0, high=math.inf)
    if isinstance(learning_rate, str):
        start = start_of(name, learning_rate)
        if not 0.0 < start < math.inf:
            raise ValueError(f"{name}={learning_rate!r} must start from a finite number above 0.")
        return lambda progress: progress * start
    rate = check_in_range(name, learning_rate, 0.0, low_open=True)
    return lambda _: rate


def is_zero(value: ScheduleLike) -> bool:
    """Whether it is the number 0, so that nothing of it is ever in force."""
    return not isinstance(value, str) and not callable(value) and value == 0
