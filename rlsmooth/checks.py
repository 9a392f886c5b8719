"""Argument checks whose messages name the argument, the value and the fix. Floor 0: imports nothing of ours."""

from __future__ import annotations

import math
import numbers
import tempfile
from collections.abc import Collection
from pathlib import Path


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if not (isinstance(value, str) and value in choices):
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}={value!r} is not known: choose one of {listed}.")


def check_in_range(
    name: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    low_open: bool = False,
    high_open: bool = False,
) -> float:
    """Return `value` as a float, or raise: TypeError if it is no number, ValueError if it is not finite or outside."""
    if isinstance(value, bool) or not isinstance(value, (int, float, numbers.Real)):  # numpy's scalars are Real
        raise TypeError(f"{name} must be a number, got {type(value).__name__} {value!r}.")
    number = float(value)
    below = number <= low if low_open else number < low
    above = number >= high if high_open else number > high
    if not -math.inf < number < math.inf or below or above:  # not math.isfinite, which no compiler can trace
        interval = f"{'(' if low_open else '['}{low:g}, {high:g}{')' if high_open else ']'}"
        raise ValueError(f"{name}={value!r} must be a finite number in {interval}.")
    return number


def check_positive_int(name: str, value: object, minimum: int = 1) -> int:
    """Return `value` as an int, or raise: TypeError if it is no whole number, ValueError if it is under `minimum`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, got {type(value).__name__} {value!r}.")
    number = int(value.__index__())
    if number < minimum:
        raise ValueError(f"{name}={number} must be at least {minimum}.")
    return number


def check_writable_folder(name: str, folder: str | Path) -> Path:
    """Create `folder` if need be and return it; raise ValueError if nothing can be written there.

    Called before a long run starts, so that the run does not end in a failure to save.
    """
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):  # under a new name, so that no link of a stranger's is followed
            pass
    except OSError as error:
        raise ValueError(
            f"{name}={str(folder)!r} can't be written to ({error.strerror}): name another folder."
        ) from error
    return path


def check_optional_folder(name: str, folder: str | Path | None) -> Path | None:
    """The folder as `check_writable_folder` gives it; None where there is none.

    Raises:
        ValueError: it can't be written to.
    """
    return None if folder is None else check_writable_folder(name, folder)
