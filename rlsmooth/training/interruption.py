"""Let SIGINT and SIGTERM end a run at the next safe point, after a checkpoint.

A command handles the signals (`handled_signals`). A trainer that keeps checkpoints says while it trains that it looks
for them (`safe_points`), and at each safe point it asks `stop_requested`, saves, and calls `stop`. Without a command
nothing changes: the trainers leave the handlers of the calling program alone.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingInterrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM ended the run.

    Attributes:
        exit_code: the exit code of a command that ends so: 130 or 143.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.exit_code = 128 + number


@dataclass
class _Requests:
    """How many trainers look for a request at their safe points, and the signal that requested the end."""

    depth: int = 0
    number: int | None = None

    def handle(self, number: int, _: FrameType | None) -> None:
        if self.depth == 0 or self.number is not None:
            raise TrainingInterrupted(number)
        self.number = number
        print("\nInterrupted: a checkpoint follows at the next safe point; again: stop at once.", file=sys.stderr)


_REQUESTS = _Requests()


@contextmanager
def handled_signals() -> Iterator[None]:
    """Handle both signals inside the `with` block, and restore the previous handlers after it.

    Outside the main thread, where Python allows no handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _REQUESTS.depth, _REQUESTS.number = 0, None  # a `learn` that an error ended may have left them
    before = {number: signal.signal(number, _REQUESTS.handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _REQUESTS.depth, _REQUESTS.number = 0, None


def begin_safe_points() -> None:
    """Say that a trainer looks for requests from now on; see `safe_points`."""
    _REQUESTS.depth += 1


def end_safe_points() -> None:
    """End what `begin_safe_points` began, and stop if a request came after the last safe point."""
    _REQUESTS.depth = max(0, _REQUESTS.depth - 1)
    if _REQUESTS.number is not None and _REQUESTS.depth == 0:
        stop("The training is over.")


@contextmanager
def safe_points(*, used: bool = True) -> Iterator[None]:
    """Inside the `with` block the trainer looks for requests at its safe points, and a signal waits for the next one.

    Args:
        used: False: the trainer keeps no checkpoints, and a signal ends the run at once.

    Example:
        >>> with safe_points():
        ...     stop_requested()
        False
    """
    if not used:
        yield
        return
    begin_safe_points()
    try:
        yield
    except BaseException:
        _REQUESTS.depth = max(0, _REQUESTS.depth - 1)
        raise
    end_safe_points()


def stop_requested() -> bool:
    """Whether a signal has requested the end of the run."""
    return _REQUESTS.number is not None


def stop(message: str) -> NoReturn:
    """End the run at a safe point.

    Args:
        message: what was saved.

    Raises:
        TrainingInterrupted: always.
    """
    number = signal.SIGINT if _REQUESTS.number is None else _REQUESTS.number
    _REQUESTS.number = None
    raise TrainingInterrupted(number, message)
