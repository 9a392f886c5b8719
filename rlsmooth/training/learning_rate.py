"""The learning rate of a trainer: a number, `"lin_1e-3"`, or a callable of the progress remaining."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from rlsmooth.checks import check_in_range, linear_start

__all__ = ["LearningRate", "as_schedule"]

LearningRate: TypeAlias = float | str | Callable[[float], float]


def as_schedule(learning_rate: LearningRate) -> Callable[[float], float]:
    """The learning rate as a function of the progress remaining, from 1 to 0.

    Args:
        learning_rate: a number above 0, `"lin_1e-3"` (from 1e-3 down to 0), or such a function.

    Raises:
        TypeError: it is none of these.
        ValueError: it is not above 0, or another word.

    Example:
        >>> as_schedule("lin_0.5")(0.5)
        0.25
    """
    if callable(learning_rate):
        return learning_rate
    if isinstance(learning_rate, str):
        start = linear_start(learning_rate)
        if start is None or not 0 < start < float("inf"):
            raise ValueError(f'learning_rate={learning_rate!r} is no schedule: write "lin_1e-3", or give a callable.')
        return lambda progress: progress * start
    rate = check_in_range("learning_rate", learning_rate, 0.0, low_open=True)
    return lambda _: rate
