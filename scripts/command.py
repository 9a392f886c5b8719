"""How a script becomes a command: arguments in, one clear line out if they are wrong. Imports nothing heavy."""

from __future__ import annotations

import difflib
import io
import os
import re
import select
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from typing import TypeVar

import tyro

ArgsT = TypeVar("ArgsT")

RL_ZOO = {"ppo_mask": "maskable-ppo", "ppo_lstm": "recurrent-ppo"}
"""RL Zoo's names of algorithms, and ours."""

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
    program, words = f"rlsmooth {name}", list(sys.argv[1:] if arguments is None else arguments)
    args = parse_arguments(program, args_type, words)
    rank = program
    try:
        if _num_processes() > 1:
            rank += f" [rank {os.environ.get('RANK', 'unknown')}]"
        if _num_processes() == 1 and getattr(args, "devices", 1) != 1:
            from rlsmooth.scripts.launch import launch

            return launch(name, words, getattr(args, "devices", 1))
        _call(name, main, args)
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
        return fail(rank, f"{error}" or type(error).__name__)
    return 0


def _num_processes() -> int:
    """How many processes a launcher, such as torchrun, has started."""
    size = os.environ.get("WORLD_SIZE") or "1"
    if not size.isdecimal():
        raise ValueError(f"WORLD_SIZE={size!r} must say how many processes were started: unset it, or use torchrun.")
    return int(size)


def _call(name: str, main: Callable[[ArgsT], object], args: ArgsT) -> None:
    if _num_processes() == 1:
        main(args)
        return
    if not hasattr(args, "devices"):
        raise ValueError(
            f"rlsmooth {name} trains in one process, and {_num_processes()} were started (WORLD_SIZE): start it "
            "without a launcher."
        )
    from rlsmooth.scripts.launch import joined_processes  # imports torch

    with joined_processes():
        main(args)


def _reader_is_gone() -> bool:
    """Whether the reader of our output, such as `head`, has gone: another pipe may be the one that broke."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
    except (AttributeError, OSError, ValueError):  # Windows; no real file
        return sys.stdout is sys.__stdout__
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def parse_arguments(program: str, args_type: type[ArgsT], words: list[str]) -> ArgsT:
    """The arguments; a mistake in them exits with 2 and one line in place of tyro's box of ten."""
    for place, word in enumerate(words):  # RL Zoo's names of algorithms are understood too
        before = words[place - 1] if place else ""
        option, separator, value = word.rpartition("=")
        if before == "--algo" or option == "--algo":
            words[place] = f"{option}{separator}{RL_ZOO.get(value, value)}"
    box = io.StringIO()
    try:
        with redirect_stderr(box):
            return tyro.cli(args_type, prog=program, args=words)
    except SystemExit as ended:
        if ended.code == 2:
            raise SystemExit(fail(program, _one_line(box.getvalue(), program))) from None
        sys.stderr.write(box.getvalue())
        raise


def _one_line(box: str, program: str) -> str:
    """The message in a box of tyro's, the option that was meant, and where to read on."""
    lines = box.splitlines()
    inside = [line[1:-1].removeprefix(" ").rstrip() for line in lines if line.startswith("│")]
    if not inside:  # in ASCII: a title and a rule, and no frame
        inside = [line[2:].rstrip() for line in lines[2:]]
    rules = [place for place, line in enumerate(inside) if line and not line.strip("─-")]
    parts = [
        inside[start:stop] for start, stop in zip([0, *(place + 1 for place in rules)], [*rules, None], strict=True)
    ]
    message = parts[0]
    if message and message[0].startswith("Missing from"):
        message = ["missing:", *(line.strip() for line in message if re.match(r" {4}\S", line))]
    words = " ".join(line.strip() for line in message).rstrip(".")
    meant = [line.split()[0] for part in parts[1:] for line in part if re.match(r" +--\S", line)]
    if choice := re.match(r"invalid choice '(.+?)' .*\((.*)\)$", words):
        meant = difflib.get_close_matches(choice[1], re.findall(r"'(.+?)'", choice[2]), n=1, cutoff=0.5)
    if meant and (choice or words.startswith("Unrecognized options: ")):
        words += f" (did you mean {meant[0]}?)"
    return f"{words or 'the arguments can not be read'}; {program} --help lists the options."


def fail(program: str, message: str) -> int:
    """Print the one line and return the exit code."""
    print(f"{program}: error: {' '.join(message.split())}", file=sys.stderr)
    return 2
