"""Checks of arguments, whose messages name the argument, the value and the fix, and of folders that are in use.

Floor 0: imports nothing of ours.
"""

from __future__ import annotations

import math
import numbers
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


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


# ---- folders that one process at a time uses


_LOCKED: dict[Path, int] = {}
"""The folders that this process has reserved, with their descriptors."""


def _forget_locks() -> None:
    """In a process that was forked: the folders are the parent's, and free when that ends, however long this lives."""
    for descriptor in _LOCKED.values():
        os.close(descriptor)
    _LOCKED.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


def lock_folder(folder: str | Path) -> bool:
    """Reserve a folder for this process, until `unlock_folder` or its end, however it ends.

    Nothing is written. Where the system has no such locks (Windows, some network drives), nothing is checked.

    Returns:
        Whether this call reserved it: False if this process had done so before, or can't.

    Raises:
        ValueError: another process has reserved it.

    Examples:
        >>> folder = tempfile.mkdtemp()
        >>> lock_folder(folder), lock_folder(folder)  # this process may do so again
        (True, False)
        >>> unlock_folder(folder)
    """
    path = Path(folder).expanduser().resolve()
    if fcntl is None or path in _LOCKED or not path.is_dir():
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ValueError(
            f"another process is training in {str(folder)!r}: wait until it ends, or end it, before the run is resumed."
        ) from error
    except OSError:
        os.close(descriptor)
        return False
    _LOCKED[path] = descriptor
    return True


def unlock_folder(folder: str | Path) -> None:
    """Undo `lock_folder`; of a folder that is not reserved, do nothing."""
    descriptor = _LOCKED.pop(Path(folder).expanduser().resolve(), None)
    if descriptor is not None:
        os.close(descriptor)


@contextmanager
def locked_folder(folder: str | Path) -> Iterator[None]:
    """Reserve a folder inside the `with` block; see `lock_folder`. What was reserved before it stays so after it."""
    is_new = lock_folder(folder)
    try:
        yield
    finally:
        if is_new:
            unlock_folder(folder)


# ---- what environments give


def first_not_finite(name: str, values: Any) -> tuple[str, int, float] | None:
    """The part, the environment and the number of the first value that is not finite; None: all are.

    Args:
        name: what the values are, for the name of the part.
        values: an array with a row for each environment, or a dict or tuple of such.

    Examples:
        >>> import numpy as np
        >>> first_not_finite("observation", {"a": np.zeros(2), "b": np.array([0.0, np.inf])})
        ("observation 'b'", 1, inf)
    """
    import numpy as np

    if isinstance(values, (Mapping, tuple)):
        parts = values.items() if isinstance(values, Mapping) else enumerate(values)
        found = (first_not_finite(f"{name} {key!r}", value) for key, value in parts)
        return next((one for one in found if one is not None), None)
    array = np.asarray(values)
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return None
    env = int(np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(-1))[0])
    worst = array[env].reshape(-1)
    return name, env, float(worst[~np.isfinite(worst)][0])


def check_finite_observations(step: int, observations: Any) -> None:
    """Raise ValueError if an observation that an agent is to act on is not finite.

    Args:
        step: how many steps each environment has made.
        observations: an array with a row for each environment, or a dict or tuple of such.

    Examples:
        >>> import numpy as np
        >>> check_finite_observations(3, np.array([[0.0, np.nan]]))
        Traceback (most recent call last):
        ...
        ValueError: environment 0 gave an observation that holds nan after step 3 of these episodes: no agent can act on
        it. Fix the environment's observation.
    """
    found = first_not_finite("observation", observations)
    if found is not None:
        name, env, bad = found
        raise ValueError(
            f"environment {env} gave an {name} that holds {bad} after step {step} of these episodes: no agent can act "
            f"on it. Fix the environment's {name}."
        )
