"""Print the script by which a shell completes commands and options.

rlsmooth completion bash > ~/.local/share/bash-completion/completions/rlsmooth
rlsmooth completion zsh > ~/.zfunc/_rlsmooth
rlsmooth completion fish > ~/.config/fish/completions/rlsmooth.fish

The folders must be there: `mkdir -p` makes them.
"""

from __future__ import annotations

import dataclasses
import io
import sys
from contextlib import redirect_stdout, suppress
from functools import reduce
from importlib import import_module
from operator import or_
from typing import Annotated, Any, Literal

import tyro

from rlsmooth.scripts.command import grouped_options, run_command


@dataclasses.dataclass(frozen=True)
class Args:
    """Print the script by which a shell completes commands and options; --help says where to put it."""

    shell: Annotated[tyro.conf.Positional[Literal["bash", "zsh", "fish"]], tyro.conf.arg(metavar="SHELL")]
    """For bash, put it into ~/.local/share/bash-completion/completions/rlsmooth; for zsh, into a folder of $fpath, as
    _rlsmooth; for fish, into ~/.config/fish/completions/rlsmooth.fish."""


def main(args: Args) -> None:
    """Print the script."""
    from rlsmooth.scripts.main import COMMANDS  # it imports this module only when it is asked for it

    choices: list[Any] = []
    for name, what in COMMANDS.items():
        module = import_module(f"rlsmooth.scripts.{name.replace('-', '_')}")
        options = grouped_options(name, module.Args)
        choices.append(Annotated[options, tyro.conf.subcommand(name, description=what, prefix_name=False)])
    commands: Any = tyro.conf.OmitSubcommandPrefixes[reduce(or_, choices)]  # type: ignore[misc]
    script = io.StringIO()
    with suppress(SystemExit), redirect_stdout(script):  # it ends the process once it has printed
        tyro.cli(commands, prog="rlsmooth", args=["--tyro-print-completion", args.shell])
    words = script.getvalue()
    for name, what in COMMANDS.items():  # tyro describes a command by its name
        words = words.replace(f"{name!r}: {{'description': {name!r}", f"{name!r}: {{'description': {what!r}")
    # For fish, tyro gives Python the program as one argument, and Linux allows no argument of more than 128 KiB.
    print(words.replace('$python_cmd -c "$pycode"', "printf '%s\\n' \"$pycode\" | $python_cmd -"), end="")


if __name__ == "__main__":
    sys.exit(run_command("completion", Args, main))
