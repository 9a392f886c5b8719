"""A run's folder: `logs/<algo>/<env>_<n>/`, its numbering, and the files that say how the run was made."""

from __future__ import annotations

import dataclasses
import json
import platform
import re
import shlex
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rlsmooth.atomic import write_bytes_atomically
from rlsmooth.untrusted import decode, parse_json, read_regular, refused

SHOWN = ("data", "env", "seed")
"""Options that a run's command names even if they are the defaults."""
LIBRARIES = ("rlsmooth", "stable-baselines3", "gymnasium", "numpy", "torch", "safetensors", "tensorboard")


def new_run_folder(log_folder: Path, algo: str, env: str) -> Path:
    """Make `<log_folder>/<algo>/<env>_<n>/` with the number after the highest one taken.

    Two runs that start at once get two folders: making a folder that is there already fails, whoever was first.

    Raises:
        ValueError: nothing can be written there.
    """
    parent = log_folder.expanduser() / algo
    name = env.replace("/", "-").replace(":", "-")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        number = 1 + max((_number(path.name, name) for path in parent.iterdir()), default=0)
        while not _made(parent / f"{name}_{number}"):
            number += 1
    except OSError as error:
        raise ValueError(
            f"log_folder={str(log_folder)!r} can't be written to ({error.strerror}): name another folder."
        ) from error
    return parent / f"{name}_{number}"


def _made(folder: Path) -> bool:
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def _number(taken: str, name: str) -> int:
    start, _, end = taken.rpartition("_")
    return int(end) if start == name and end.isascii() and end.isdigit() else 0


def write_settings(folder: Path, command: str, args: Any, more: Mapping[str, Any] | None = None) -> None:
    """Write `config.json` (all arguments, and the versions) and `command.txt` (what to type to get the same run).

    Args:
        folder: of the run.
        command: what follows `rlsmooth`.
        args: a dataclass.
        more: what else `config.json` is to hold, such as hyperparameters that came from a file.
    """
    settings = {
        "command": command,
        "arguments": plain(dataclasses.asdict(args)),
        **(more or {}),
        "versions": versions(),
    }
    write_json(folder / "config.json", settings)
    write_bytes_atomically(folder / "command.txt", f"{command_line(command, args)}\n".encode())


def read_command(folder: Path) -> str:
    """The command that began a run.

    Raises:
        ValueError: there is no such folder or file, or none of our commands wrote it.
    """
    settings = _read_config(folder)
    if not isinstance(settings.get("command"), str) or not isinstance(settings.get("arguments"), dict):
        raise ValueError(f"{str(folder / 'config.json')!r} was not written by a command of rlsmooth.")
    return str(settings["command"])


def read_settings(folder: Path, command: str, part: str = "arguments") -> dict[str, Any]:
    """The arguments, or another part, in a run's `config.json`.

    Raises:
        ValueError: there is no such folder or file, or another command wrote it.
    """
    settings = _read_config(folder)
    if settings.get("command") != command or not isinstance(settings.get(part), dict):
        raise ValueError(f"{str(folder / 'config.json')!r} was not written by `rlsmooth {command}`.")
    return dict(settings[part])


def env_of_run(path: Path, given: str | None = None, words: Sequence[str] = ()) -> tuple[str, dict[str, Any]]:
    """The environment's id and its arguments, of the run that wrote the agent in `path`.

    Args:
        path: the agent's file.
        given: an id that comes first; the run's arguments are kept if it has the same.
        words: arguments, as key=value, that come in place of the run's.

    Raises:
        ValueError: no `config.json` beside it says so, or it has an id or arguments that a file from elsewhere must
            not choose.
    """
    config, own = path.parent / "config.json", read_kwargs(words)
    try:
        with refused(config, ValueError):
            command = read_command(path.parent)
            arguments = read_settings(path.parent, command)
            env = decode(str, arguments["env"], "env")
            is_cloned = command in ("bc", "bco", "dagger")
            stored = decode(list[str], arguments.get("env_kwargs", []), "env_kwargs") if is_cloned else []
            kwargs = stored_kwargs(path.parent)
    except ValueError as error:
        if given is not None:
            return given, own
        raise ValueError("no config.json beside the agent names an environment: give --env.") from error
    if given is None and imports_module(env):
        raise ValueError(
            f"the config.json beside the agent imports a module, env={env!r}: if you trust it, give --env."
        )
    if given not in (None, env) or own:
        return given or env, own
    words = [*stored, *kwargs_words(kwargs)]
    if choosing_kwargs(words):
        raise ValueError(
            f"the config.json beside the agent has arguments of the environment {CHOICE}: if you trust it, give "
            f"--env-kwargs {shlex.join(words)}."
        )
    return env, {**read_kwargs(stored), **kwargs}


def kwargs_words(kwargs: Mapping[str, Any]) -> list[str]:
    """Arguments of an environment as key=value words."""
    return [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in kwargs.items()]


def stored_kwargs(folder: Path) -> dict[str, Any]:
    """The arguments of the environment among the hyperparameters in a run's `config.json`.

    Raises:
        ValueError: they are malformed.
    """
    with refused(folder / "config.json", ValueError):
        return dict(decode(dict, stored_hyperparameters(folder).get("env_kwargs") or {}, "env_kwargs"))


def stored_hyperparameters(folder: Path) -> dict[str, Any]:
    """The hyperparameters in a run's `config.json`; none where there are neither.

    Raises:
        ValueError: they are malformed.
    """
    path = folder / "config.json"
    if not path.is_file():
        return {}
    with refused(path, ValueError):
        return dict(decode(dict, read_json(path).get("hyperparameters", {}), "hyperparameters"))


CHOICE = "that may name code, a place or a window"
NO_CHOICE = re.compile(r"(?!render_mode)\w+[=:] ?([\w-]*|[-+]?[\d.]+(e[-+]?\d+)?)")


def choosing_kwargs(words: Sequence[str]) -> list[str]:
    """Those of an environment's key=value words that no file may choose: all but numbers, switches and plain words.

    Examples:
        >>> choosing_kwargs(["size=8", "map_name=8x8", "slip=1e-3", "xml_file=/a.xml", "id=mine:A-v0", "a=[1]"])
        ['xml_file=/a.xml', 'id=mine:A-v0', 'a=[1]']
    """
    return [word for word in words if not NO_CHOICE.fullmatch(word)]


def imports_module(env: str) -> bool:
    """Whether making the environment of that id imports a module of its choice: `module:Env-v0`.

    Examples:
        >>> imports_module("CartPole-v1"), imports_module("rlsmooth.envs:DeepSea-v0"), imports_module("mine:Env-v0")
        (False, False, True)
    """
    return env.rpartition(":")[0] not in ("", "rlsmooth.envs")


def refuse_links(folder: Path) -> None:
    """Raise ValueError if a run's folder contains a link, through which a stranger's run could write elsewhere."""
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise ValueError(
                f"{str(path)!r} is a link, and a resumed run writes to its folder: put the files themselves there."
            )


def read_kwargs(words: Sequence[str]) -> dict[str, Any]:
    """The arguments of an environment from key=value words, with values as in YAML.

    Raises:
        ValueError: one is no key=value.
    """
    if not words:
        return {}
    from rlsmooth.scripts.hyperparameters import read_pair  # imports torch

    return dict(read_pair("env_kwargs", word) for word in words)


def agent_file(name: str, path: Path, *, or_checkpoints: bool = False) -> Path:
    """The agent's file that an option names: itself, or `agent.zip` in a run's folder.

    Args:
        name: of the option.
        path: what was given.
        or_checkpoints: of a run that has not ended, return the folder of its checkpoints.

    Raises:
        ValueError: there is no such file.
    """
    file = path / "agent.zip" if path.is_dir() else path
    if path.is_dir() and not file.is_file() and list(path.glob("checkpoints/checkpoint_*.zip")):
        if or_checkpoints:
            return path / "checkpoints"
        raise ValueError(f"{name}={str(path)!r} is a run that has not ended, without an agent.zip: resume it first.")
    if not file.is_file():
        raise ValueError(f"{name}={str(path)!r} is neither an agent's file nor a run's folder.")
    return file


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.exists():
        raise ValueError(f"{str(folder)!r} is no folder of a run: it has no config.json.")
    return read_json(path)


def command_line(command: str, args: Any) -> str:
    """The data or environment, the seed and the options that differ from the defaults, ready for a shell."""
    words = ["rlsmooth", command]
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if field.name == "options" or (value == field.default and (value is None or field.name not in SHOWN)):
            continue
        if field.default is dataclasses.MISSING:  # positional, without an option
            words.append(str(value))
            continue
        option = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{option}")
        else:
            parts = value if isinstance(value, tuple) else (value,)
            words += [f"--{option}", *(str(part) for part in parts)]
    if options := getattr(args, "options", ()):  # of the command that `rlsmooth tune` tunes
        words += ["--", *options]
    return shlex.join(words)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: the file is not there or not a JSON object.
    """
    with refused(path, ValueError):
        value = parse_json(read_regular(path))
    if not isinstance(value, dict):
        raise ValueError(f"{str(path)!r} holds no JSON object.")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    write_bytes_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def versions() -> dict[str, str]:
    """Python's version and those of the libraries that decide a run."""
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}


def plain(value: Any) -> Any:
    """Paths and tuples as JSON has them."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value
