"""The arguments of a run that goes on: those that it began with. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

from rlsmooth.scripts.run_folder import read_settings

__all__ = ["resumed"]

ArgsT = TypeVar("ArgsT", bound=Any)

SHOWN = ("resume", "progress", "verbose", "device")
"""What may differ: how a run is shown, and where it is computed."""


def resumed(args: ArgsT, command: str, *, tuples: tuple[str, ...], paths: tuple[str, ...]) -> ArgsT:
    """The arguments that the run in `args.resume` began with, or `args` where that is None.

    Args:
        args: of the command line; a dataclass with the fields of `SHOWN`.
        command: that must have made the run.
        tuples: fields that JSON holds as lists.
        paths: fields that it holds as text, or null.

    Raises:
        ValueError: there is no such run of this command, or an argument was given that the run already has.
    """
    if args.resume is None:
        return args
    fields = dataclasses.fields(args)
    changed = [
        f"--{field.name.replace('_', '-')}"
        for field in fields
        if field.name not in SHOWN and getattr(args, field.name) != field.default
    ]
    if changed:
        raise ValueError(
            f"--resume goes on with the arguments that the run began with: leave out {', '.join(changed)}."
        )
    stored = read_settings(args.resume, command)
    path = str(args.resume / "config.json")
    odd = {field.name for field in fields} ^ set(stored)
    if odd:
        raise ValueError(f"{path!r} is not of this version: its arguments differ in {', '.join(sorted(odd))}.")
    try:
        stored |= {name: tuple(stored[name]) for name in tuples}
        stored |= {name: None if stored[name] is None else Path(stored[name]) for name in paths}
    except TypeError as error:
        raise ValueError(f"{path!r} is not of this version: {error}.") from error
    began: ArgsT = type(args)(**stored)
    device = began.device if args.device == "auto" else args.device
    return dataclasses.replace(began, resume=args.resume, progress=args.progress, verbose=args.verbose, device=device)
