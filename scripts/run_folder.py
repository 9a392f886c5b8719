"""A run's folder: `logs/<algo>/<env>_<n>/`, its numbering, and the files that say how the run was made."""

from __future__ import annotations

import dataclasses
import json
import math
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvironmentSettings:
    """What environments are made of; see `environment.make_envs`.

    Attributes:
        env: the id, or `module:id`; empty: none is given.
        env_kwargs: arguments of each environment.
        packages: modules that register environments, to be imported first.
        wrappers: `module.Class`, or `module.Class:{key: value}`, from the inside out.
        frame_stack: how many of the latest observations are seen at once; None: one.
    """

    env: str = ""
    env_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    packages: tuple[str, ...] = ()
    wrappers: tuple[str, ...] = ()
    frame_stack: int | None = None


def env_of_run(path: Path, given: EnvironmentSettings | None = None, *, evaluation: bool = True) -> EnvironmentSettings:
    """What environments are made of, of the run that wrote the agent in `path`.

    Args:
        path: the agent's file.
        given: what comes first. Another id than the run's comes with arguments of its own, but with the run's wrappers
            and frame stack, without which the agent could not see it.
        evaluation: take the arguments of the run's evaluations, where it has such.

    Raises:
        ValueError: no `config.json` beside it says so, or it has something that a file from elsewhere must not choose.
    """
    own = given or EnvironmentSettings()
    config = path.parent / "config.json"
    try:
        with refused(config, ValueError):
            arguments = read_settings(path.parent, read_command(path.parent))
            env = decode(str, arguments["env"], "env")
            names = ("env_kwargs", "eval_env_kwargs", "gym_packages", "env_wrapper")
            lists = {name: decode(list[str], arguments.get(name, []), name) for name in names}
            values = stored_hyperparameters(path.parent)
            wrappers = decode(list[str], values.get("env_wrapper") or lists["env_wrapper"], "env_wrapper")
            sizes = (values.get("frame_stack"), arguments.get("frame_stack"))
            frame_stack = decode(int | None, next((size for size in sizes if size is not None), None), "frame_stack")
            kwargs = stored_kwargs(path.parent)
    except ValueError as error:
        if own.env:
            return own
        raise ValueError("no config.json beside the agent names an environment: give --env.") from error
    begin, trusted = "the config.json beside the agent", "if you trust it, give"
    if not own.env and imports_module(env):
        raise ValueError(f"{begin} imports a module, env={env!r}: {trusted} --env {shlex.quote(env)}.")
    packages, is_same = lists["gym_packages"], own.env in ("", env)
    if is_same and packages and not own.packages:
        raise ValueError(f"{begin} imports modules: {trusted} --gym-packages {shlex.join(packages)}.")
    if not own.wrappers and choosing_wrappers(wrappers):
        raise ValueError(f"{begin} has wrappers {CHOICE}: {trusted} --env-wrapper {shlex.join(wrappers)}.")
    if own.frame_stack is None and (frame_stack or 0) > MOST_FRAMES:
        raise ValueError(f"{begin} has frame_stack={frame_stack}: {trusted} --frame-stack {frame_stack}.")
    found = dataclasses.replace(
        own, env=own.env or env, wrappers=own.wrappers or tuple(wrappers), frame_stack=own.frame_stack or frame_stack
    )
    if own.env_kwargs or not is_same:
        return found
    words = [*lists["env_kwargs"], *kwargs_words(kwargs)]
    if evaluation and lists["eval_env_kwargs"]:
        words, kwargs = lists["eval_env_kwargs"], {}
    if choosing_kwargs(words):
        raise ValueError(
            f"{begin} has arguments of the environment {CHOICE}: {trusted} --env-kwargs {shlex.join(words)}."
        )
    return dataclasses.replace(found, env_kwargs={**read_kwargs(words), **kwargs})


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
MOST_FRAMES = 64
KNOWN_MODULES = ("", "rlsmooth.envs", "minigrid", "ale_py")
"""Whose environments a file may name: importing them only registers them."""
KNOWN_WRAPPER = re.compile(
    r"(gymnasium\.wrappers(\.\w+)?|minigrid\.wrappers|stable_baselines3\.common\.atari_wrappers|rl_zoo3\.wrappers)"
    r"\.(?!HumanRendering)\w+(: ?\{(['\"\w\s\[\],:.+-]*)\})?"
)
MOST_OF_WRAPPERS = 2**20
"""What the numbers in the arguments of a file's wrappers may multiply to: sizes of images, of stacks, of skips."""
NO_CHOICE = re.compile(r"(?!render_mode)\w+[=:] ?([\w-]*|[-+]?[\d.]+(e[-+]?\d+)?)")


def choosing_kwargs(words: Sequence[str]) -> list[str]:
    """Those of an environment's key=value words that no file may choose: all but numbers, switches and plain words.

    Examples:
        >>> choosing_kwargs(["size=8", "map_name=8x8", "slip=1e-3", "xml_file=/a.xml", "id=mine:A-v0", "a=[1]"])
        ['xml_file=/a.xml', 'id=mine:A-v0', 'a=[1]']
    """
    return [word for word in words if not NO_CHOICE.fullmatch(word)]


def choosing_wrappers(words: Sequence[str]) -> list[str]:
    """Those of the wrappers that no file may choose: all but Gymnasium's, MiniGrid's, SB3's for Atari and RL Zoo's.

    Their arguments are numbers, whose product is bounded, and switches: a name of a folder is none.

    Examples:
        >>> choosing_wrappers(["minigrid.wrappers.FlatObsWrapper", "rl_zoo3.wrappers.FrameSkip:{skip: 2}"])
        []
        >>> choosing_wrappers(["mine.Wrapper", "gymnasium.wrappers.RecordVideo:{video_folder: x}"])
        ['mine.Wrapper', 'gymnasium.wrappers.RecordVideo:{video_folder: x}']
    """
    found, product = [], 1.0
    for word in words:
        match = KNOWN_WRAPPER.fullmatch(word)
        values = re.split(r"[\s\[\],]+|['\"]?[A-Za-z_]\w*['\"]?\s*:", (match and match[4]) or "")
        numbers = [value for value in values if value and value.lower() not in ("true", "false")]
        if match is None or not all(re.fullmatch(r"[-+]?\d{1,9}(\.\d*)?", value) for value in numbers):
            found.append(word)
            continue
        product *= math.prod(max(1.0, abs(float(value))) for value in numbers)
        if product > MOST_OF_WRAPPERS:
            found.append(word)
    return found


def imports_module(env: str) -> bool:
    """Whether making the environment of that id imports a module of its choice: `module:Env-v0`.

    Examples:
        >>> imports_module("CartPole-v1"), imports_module("rlsmooth.envs:DeepSea-v0"), imports_module("mine:Env-v0")
        (False, False, True)
    """
    return env.rpartition(":")[0] not in KNOWN_MODULES


def refuse_links(folder: Path) -> None:
    """Raise ValueError if a run's folder contains a link, through which a stranger's run could write elsewhere."""
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise ValueError(
                f"{str(path)!r} is a link, and a resumed run writes to its folder: put the files themselves there."
            )


def read_kwargs(words: Sequence[str], option: str = "env_kwargs") -> dict[str, Any]:
    """The arguments of an environment from key=value words, with values as in YAML.

    Raises:
        ValueError: one is no key=value.
    """
    return dict(read_pair(option, word) for word in words)


def agent_file(name: str, path: Path, *, or_checkpoints: bool = False) -> Path:
    """The agent's file that an option names: itself, or `agent.zip` in a run's folder.

    Args:
        name: of the option.
        path: what was given.
        or_checkpoints: of a run that has not ended, return the folder of its checkpoints.

    Raises:
        ValueError: there is no such file.
    """
    refuse_several(path)
    file = path / "agent.zip" if path.is_dir() else path
    if path.is_dir() and not file.is_file() and list(path.glob("checkpoints/checkpoint_*.zip")):
        if or_checkpoints:
            return path / "checkpoints"
        raise ValueError(f"{name}={str(path)!r} is a run that has not ended, without an agent.zip: resume it first.")
    if not file.is_file():
        raise ValueError(f"{name}={str(path)!r} is neither an agent's file nor a run's folder.")
    return file


def runs_in(folder: Path) -> list[Path]:
    """The folders of the runs that a folder of `--seeds` reports; of another folder, itself.

    They are beside it: of the places in its file only the names count, since it may be moved, or a stranger's.

    Raises:
        ValueError: its `seeds.json` is malformed.
    """
    path = folder / "seeds.json"
    if not path.is_file():
        return [folder]
    with refused(path, ValueError):
        runs = decode(dict[str, str], read_json(path)["runs"], "runs")
        return [folder.parent / Path(run).name for run in runs.values()]


def refuse_several(folder: Path) -> None:
    """Raise ValueError if a folder is one of `--seeds`, where that of one run is needed; the message names the runs."""
    if (runs := runs_in(folder)) != [folder]:
        raise ValueError(f"{str(folder)!r} reports several runs: name one of {', '.join(map(str, runs))}.")
    if not (folder / "config.json").exists() and list(folder.glob("seed_*.log")):
        raise ValueError(f"{str(folder)!r} is of --seeds that have not ended: name the folder of a run beside it.")


def _read_config(folder: Path) -> dict[str, Any]:
    refuse_several(folder)
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


def read_pair(option: str, word: str) -> tuple[str, Any]:
    """The name and the value of `key=value`, or RL Zoo's `key:value`; the value as in YAML.

    Raises:
        ValueError: `word` is malformed; the message names the option.
    """
    places = [place for place in (word.find("="), word.find(":")) if place > 0]
    if not places:
        raise ValueError(f"{option}: {word!r} must be key=value, such as n_steps=64.")
    name, value = word[: min(places)], word[min(places) + 1 :]
    import yaml

    try:
        return name, with_numbers(yaml.safe_load(value))
    except Exception as error:  # YAML's, Python's of a date that is none or of what is nested too deeply
        raise ValueError(f"{option}: the value of {word!r} can't be read: {error}") from error


def with_numbers(value: Any) -> Any:
    """YAML's values, with `1e-3` as a number too: without a dot YAML takes it for a word."""
    if isinstance(value, dict):
        return {name: with_numbers(part) for name, part in value.items()}
    if isinstance(value, list):
        return [with_numbers(part) for part in value]
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def read_yaml(path: Path, advice: str) -> Any:
    """What a YAML file holds: plain values, no objects.

    Args:
        path: of a regular file.
        advice: what errors say at their end.

    Raises:
        ValueError: it can't be read.
    """
    import yaml  # takes longer than all else that this module imports

    with refused(path, ValueError, advice, "can't be read"):
        return yaml.safe_load(read_regular(path))


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
