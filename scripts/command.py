"""How a script becomes a command: arguments in, one clear line out if they are wrong. Imports nothing heavy."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro

ArgsT = TypeVar("ArgsT")

# Errors of wrong input. Ours are ValueError (SafeFileError and DemonstrationsFileError among them), TypeError and, of
# a loss that became NaN, ArithmeticError; OSError is a full disk, ImportError an extra that is not installed.
EXPECTED = (ValueError, TypeError, ArithmeticError, OSError, ImportError)


def run_command(
    name: str,
    args_type: type[ArgsT],
    main: Callable[[ArgsT], object],
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse `arguments` (those of the process, if None) and call `main`; return the exit code.

    0: done. 2: wrong arguments or input, reported in one line on stderr (with its traceback by `RLSMOOTH_TRACEBACK=1`).
    130 and 143: ended by SIGINT and SIGTERM.
    """
    program = f"rlsmooth {name}"
    args = tyro.cli(args_type, prog=program, args=arguments)  # exits with 2 itself
    try:
        main(args)
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        print(f"{program}: interrupted", file=sys.stderr)
        return getattr(error, "exit_code", 130)  # of TrainingInterrupted
    except EXPECTED as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        if os.environ.get("RLSMOOTH_TRACEBACK") == "1":
            raise
        return fail(program, f"{error}" or type(error).__name__)
    return 0


def _reader_is_gone() -> bool:
    """Whether the reader of our output, such as `head`, has gone: another pipe may be the one that broke."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
    except (AttributeError, OSError, ValueError):  # Windows; no real file
        return sys.stdout is sys.__stdout__
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def fail(program: str, message: str) -> int:
    """Print the one line and return the exit code."""
    print(f"{program}: error: {' '.join(message.split())}", file=sys.stderr)
    return 2
