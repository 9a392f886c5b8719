"""How a script becomes a command: arguments in, one clear line out if they are wrong. Imports nothing heavy."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import importlib
import inspect
import io
import json
import os
import re
import select
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro

ArgsT = TypeVar("ArgsT")


@dataclasses.dataclass(frozen=True)
class SharedArgs:
    """Options that every command understands and no run keeps."""

    conf: Annotated[Path | None, tyro.conf.arg(metavar="FILE.yml")] = None
    """Read options from this file; those on the command line come first."""
    save_conf: Annotated[Path | None, tyro.conf.arg(metavar="FILE.yml")] = None
    """Write all options to this file, for --conf, and end."""
    seeds: tuple[int, ...] = ()
    """Train once with each of these seeds, in processes of their own; report means and intervals."""


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
    try:
        args, shared = parse(name, args_type, words)
    except ValueError as error:
        return fail(program, str(error))
    except BrokenPipeError:
        return _without_reader()
    if shared.save_conf is not None:
        return call(name, lambda _: save_conf(name, args, shared.save_conf, shared.seeds), args, words)
    if shared.seeds:
        from rlsmooth.scripts.seeds import train_seeds

        return call(name, lambda _: train_seeds(name, args, shared.seeds, train_alone), args, words)
    return call(name, main, args, words)


def call(name: str, main: Callable[[ArgsT], object], args: ArgsT, words: Sequence[str] = ()) -> int:
    """Call `main` and return the exit code, as `run_command` does.

    Args:
        name: of the command.
        main: what to call.
        args: with which.
        words: what they were read from, for commands that train in several processes together.
    """
    program = rank = f"rlsmooth {name}"
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
            return _without_reader()
        if os.environ.get("RLSMOOTH_TRACEBACK") == "1":
            raise
        return fail(rank, f"{error}" or type(error).__name__)
    return 0


def train_alone(name: str, args: Any, send: Callable[[str], object]) -> int:
    """Run a command in this process, send its result, and return the exit code.

    Args:
        name: of the command.
        args: of the command.
        send: is called with the folder of the run.
    """
    from rlsmooth.scripts.run_folder import command_line

    main = importlib.import_module(f"rlsmooth.scripts.{name.replace('-', '_')}").main
    return call(name, lambda args: send(str(main(args))), args, shlex.split(command_line(name, args))[2:])


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


def _without_reader() -> int:
    """Let what is still to be printed go nowhere; return the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _reader_is_gone() -> bool:
    """Whether the reader of our output, such as `head`, has gone: another pipe may be the one that broke."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
    except (AttributeError, OSError, ValueError):  # Windows; no real file
        return sys.stdout is sys.__stdout__
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def parse(name: str, args_type: type[ArgsT], words: list[str]) -> tuple[ArgsT, SharedArgs]:
    """The arguments, and those that every command has; a mistake exits with 2 and one line in place of tyro's box.

    Args:
        name: of the command.
        args_type: its dataclass.
        words: of the command line, which come before those of a file that `--conf` names.

    Raises:
        ValueError: that file can't be read, or has an option that the command lacks.
    """
    for place, word in enumerate(words):  # RL Zoo's names of algorithms are understood too
        before = words[place - 1] if place else ""
        option, separator, value = word.rpartition("=")
        if before == "--algo" or option == "--algo":
            words[place] = f"{option}{separator}{RL_ZOO.get(value, value)}"
    own = words[: words.index("--")] if "--" in words else words  # what follows is of another command
    named = next((place for place, word in enumerate(own) if word.partition("=")[0] == "--conf"), None)
    if named is None or not (file := own[named].partition("=")[2] or "".join(own[named + 1 : named + 2])):
        return _parse(name, args_type, words)
    stored, after, is_run = conf_words(Path(file), name, args_type)
    # In between, an option that takes one word: a list of words would take the positional arguments too.
    args, shared = _parse(name, args_type, [*stored, "--conf", file, *words, *(after if own is words else [])])
    if is_run:
        from rlsmooth.scripts.arguments import check_chosen

        check_chosen(args, _parse(name, args_type, words)[0], file)
    return args, shared


def _parse(name: str, args_type: type[ArgsT], words: list[str]) -> tuple[ArgsT, SharedArgs]:
    program, box = f"rlsmooth {name}", io.StringIO()
    own_type: Any = args_type
    grouped = grouped_options(name, own_type)
    try:
        with redirect_stderr(box):
            groups = tyro.cli(grouped, prog=program, args=words, description=args_type.__doc__)
            *own, shared = vars(groups).values()
            args = args_type(**{field: value for group in own for field, value in vars(group).items()})
            return args, SharedArgs(**vars(shared))
    except SystemExit as ended:
        if ended.code == 2:
            raise SystemExit(fail(program, _one_line(box.getvalue(), program))) from None
        sys.stderr.write(box.getvalue())
        raise


# ---- groups of options


@functools.cache
def grouped_options(name: str, args_type: type[Any]) -> type[Any]:
    """A dataclass of dataclasses with the options of `args_type`, by the class that declares each, and the shared ones.

    So `--help` and the shells' completions show them in groups.

    Args:
        name: of the command; titles its own options.
        args_type: its dataclass.
    """
    classes = [each for each in args_type.__mro__ if dataclasses.is_dataclass(each)]
    hints, sentences = get_type_hints(args_type, include_extras=True), option_sentences(args_type)
    groups: dict[str, list[dataclasses.Field[Any]]] = {}
    titles = {each: _title(each) if each is not args_type else re.sub(r"\W", "_", name) for each in classes}
    for each in reversed(classes):  # from the environment to the command's own
        groups.setdefault(titles[each], [])
    abouts = {titles[each]: str(each.__doc__).partition("\n")[0] for each in classes if each is not args_type}
    for field in dataclasses.fields(args_type):
        first = next(each for each in reversed(classes) if field.name in vars(each).get("__annotations__", {}))
        groups[titles[first]].append(field)
    for field in dataclasses.fields(SharedArgs):
        if field.name != "seeds" or {"seed", "resume"} <= set(hints):
            groups.setdefault("shared", []).append(field)
    hints, sentences = (
        {**get_type_hints(SharedArgs, include_extras=True), **hints},
        {**option_sentences(SharedArgs), **sentences},
    )
    abouts["shared"] = str(SharedArgs.__doc__)
    members: list[Any] = []
    for title in sorted(filter(groups.get, groups), key=lambda title: title in ("track", "process", "run", "shared")):
        entries = [(field.name, hints[field.name], _default(field)) for field in groups[title]]
        lines = "".join(f"\n    {field.name}: {sentences.get(field.name, '')}" for field in groups[title])
        namespace = {"__doc__": f"{abouts.get(title, '')}\n\nAttributes:{lines}"}
        group = dataclasses.make_dataclass(f"{title}_options", entries, kw_only=True, frozen=True, namespace=namespace)
        members.append((title, Annotated[group, tyro.conf.OmitArgPrefixes]))
    lines = "".join(f"\n    {title}: {abouts.get(title) or title}" for title, _ in members)
    # Without these lines tyro would look for them in this file, each time.
    return dataclasses.make_dataclass("Grouped", members, namespace={"__doc__": f"{name}\n\nAttributes:{lines}"})


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=field.default_factory)
    return dataclasses.field(default=field.default)


def _title(args_type: type[Any]) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", args_type.__name__.removesuffix("Args")).lower() or "own"


def option_sentences(args_type: type[Any]) -> dict[str, str]:
    """What stands below each field of a dataclass and of its parents."""
    found: dict[str, str] = {}
    for each in filter(dataclasses.is_dataclass, reversed(args_type.__mro__)):
        found |= _sentences_of_module(each.__module__).get(each.__name__, {})
    return found


@functools.cache
def _sentences_of_module(module: str) -> dict[str, dict[str, str]]:
    """By class and field."""
    if getattr(sys.modules[module], "__file__", None) is None:  # it was typed
        return {}
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    found: dict[str, dict[str, str]] = {}
    for node in ast.walk(tree):
        for field, below in pairwise(node.body if isinstance(node, ast.ClassDef) else []):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                text = str(ast.literal_eval(below.value))
                found.setdefault(node.name, {})[ast.unparse(field.target)] = " ".join(text.split())  # type: ignore[attr-defined]
    return found


# ---- options in files


def conf_words(path: Path, command: str, args_type: type[Any]) -> tuple[list[str], list[str], bool]:
    """The options in a YAML file, or in the `config.json` of a run of the command, as words of a command line.

    Args:
        path: of the file.
        command: that is to understand them.
        args_type: its dataclass.

    Returns:
        Options, what follows them after --, and whether the file is of a run.

    Raises:
        ValueError: the file can't be read, or has an option that the command lacks.
    """
    from rlsmooth.scripts.run_folder import read_yaml

    try:
        values = read_yaml(path, "Name a YAML file of options.")
    except ValueError as error:
        raise ValueError(f"conf={error}") from error
    fields = {field.name for field in dataclasses.fields(args_type)}
    is_run = isinstance(values, dict) and {"command", "arguments"} <= values.keys()
    if is_run:
        _check_run(path, values["command"], command, trains="resume" in fields)
        values = values["arguments"]
    if not isinstance(values, dict):
        raise ValueError(f"conf={str(path)!r} must be a mapping of options, such as {{seed: 3}}.")
    fields |= {"seeds"} if {"seed", "resume"} <= fields else set()
    positional = {name for name, hint in get_type_hints(args_type, include_extras=True).items() if _is_positional(hint)}
    words, after = [], []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name == "options" and name in fields:  # of the command that `rlsmooth tune` tunes
            after = ["--", *map(str, value if isinstance(value, list) else [value])]
            continue
        if name not in fields or name in positional:
            near = difflib.get_close_matches(name, fields - positional, n=1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"conf={str(path)!r} has {str(key)!r}, which is no option of rlsmooth {command}{meant}.")
        words += option_words(name, value)
    return words, after, is_run


def _check_run(path: Path, made_by: Any, command: str, *, trains: bool) -> None:
    """Raise ValueError unless a `config.json` was written by a run of the command, and has options that it may have."""
    if made_by == command and trains:
        return
    if made_by == "tune":  # its options are words of a third command, in which a stranger could name code
        fix = "the settings that the study chose are in its report.md, and the command that resumes it in command.txt"
    elif command == "tune":
        fix = f"give options of {made_by} after --, as in `rlsmooth tune {made_by} -- --conf {path}`"
    else:
        fix = f"name {'the config.json of such a run, or ' if trains else ''}a file that --save-conf wrote"
    raise ValueError(f"conf={str(path)!r} is of `rlsmooth {made_by}`, not of a run of `rlsmooth {command}`: {fix}.")


def _is_positional(hint: Any) -> bool:
    return tyro.conf.Positional[int].__metadata__[0] in getattr(hint, "__metadata__", ())  # type: ignore[attr-defined]


def option_words(name: str, value: Any) -> list[str]:
    """An option and its value, as they are typed.

    Examples:
        >>> option_words("env_kwargs", {"g": 9.5}), option_words("net_arch", [8, 4]), option_words("progress", False)
        (['--env-kwargs', 'g=9.5'], ['--net-arch', '8', '4'], ['--no-progress'])
    """
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{option}"] if value else [] if option.startswith("no-") else [f"--no-{option}"]
    if isinstance(value, dict):
        value = [f"{key}={part if isinstance(part, str) else json.dumps(part)}" for key, part in value.items()]
    return [f"--{option}", *(str(part) for part in (value if isinstance(value, (list, tuple)) else (value,)))]


def save_conf(command: str, args: Any, path: Path | None, seeds: Sequence[int] = ()) -> None:
    """Write all options to a file that `--conf` reads."""
    import yaml

    from rlsmooth.atomic import write_bytes_atomically
    from rlsmooth.checks import check_writable_folder
    from rlsmooth.scripts.run_folder import plain

    assert path is not None
    check_writable_folder("save_conf", path.parent)
    hints = get_type_hints(type(args), include_extras=True)
    values = {name: value for name, value in vars(args).items() if not _is_positional(hints[name]) or name == "options"}
    values |= {"seeds": seeds} if seeds else {}
    text = f"# rlsmooth {command} --conf {path.name}\n{yaml.safe_dump(plain(values), sort_keys=False)}"
    write_bytes_atomically(path, text.encode())
    print(f"written to {path}")


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
    elif program.endswith(" tune") and words.startswith("Unrecognized options: "):
        words += " (options of the command that is tuned come after --)"
    return f"{words or 'the arguments can not be read'}; {program} --help lists the options."


def fail(program: str, message: str) -> int:
    """Print the one line and return the exit code."""
    print(f"{program}: error: {' '.join(message.split())}", file=sys.stderr)
    return 2
