"""How often the expert acts: beta, of the number of the round."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import TypeAlias

from rlsmooth.checks import check_in_range, check_positive_int

__all__ = ["BetaSchedule", "as_beta_schedule"]

BetaSchedule: TypeAlias = int | float | Callable[[int], float]


def as_beta_schedule(given: BetaSchedule) -> Callable[[int], float]:
    """The probability that the expert acts, as a function of the round, which counts from 0.

    Args:
        given: a whole number n: from 1 in round 0 straight down to 0 in round n (imitation's `LinearBetaSchedule`); a
            float b in (0, 1]: `b ** round` (its `ExponentialBetaSchedule`); or a function, whose values are checked.

    Raises:
        TypeError: it is none of these; the function's value is no number.
        ValueError: it is outside its range; the function's value is outside [0, 1].

    Example:
        >>> [as_beta_schedule(4)(number) for number in (0, 1, 4, 9)]
        [1.0, 0.75, 0.0, 0.0]
        >>> [as_beta_schedule(0.5)(number) for number in (0, 1, 2)]
        [1.0, 0.5, 0.25]
    """
    if callable(given):
        return lambda number: check_in_range(f"beta_schedule({number})", given(number), 0.0, 1.0)
    value: object = None if isinstance(given, bool) else given  # numpy's numbers are neither int nor float
    if isinstance(value, Integral):
        rounds = check_positive_int("beta_schedule", value)
        return lambda number: max(0.0, (rounds - number) / rounds)
    if isinstance(value, Real):
        base = check_in_range("beta_schedule", value, 0.0, 1.0, low_open=True)
        return lambda number: base**number
    raise TypeError(
        f"beta_schedule must be a whole number of rounds, a float in (0, 1] or a function of the round, got {given!r}."
    )
