"""Hyperparameters by environment, from plain YAML with RL Zoo's names, and what the command line changes in them."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stable_baselines3.common.utils import LinearSchedule

from rlsmooth.agents.files.policy_file import ACTIVATIONS, EXTRACTORS, OPTIMIZERS
from rlsmooth.checks import check_positive_int
from rlsmooth.schedules import linear_start
from rlsmooth.scripts.run_folder import read_pair, read_yaml, with_numbers

FOLDER = Path(__file__).parent / "hyperparams"
OF_THE_RUN = ("n_timesteps", "n_envs", "policy", "normalize", "env_kwargs", "env_wrapper", "frame_stack")
NOT_SUPPORTED = ("vec_env_wrapper", "callback", "monitor_kwargs")
"""RL Zoo's names for things that are imported or built; an agent file could not bring them back."""
SET_ELSEWHERE = ("self", "env", "seed", "device", "verbose", "tensorboard_log", "policy", "_init_setup_model")
MAY_BE_WORDS = ("smoothing", "exploration_floor")
PASSED_ON = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
SCHEDULES = ("learning_rate", "clip_range", "clip_range_vf")


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """The settings that a run is made with.

    Attributes:
        n_timesteps: how many steps to train.
        n_envs: in how many environments.
        policy: SB3's alias, or None: the one that fits the observations.
        normalize: the arguments of `VecNormalize`, or None: no normalisation.
        env_kwargs: arguments of the environment.
        env_wrapper: of `wrapper_words`.
        frame_stack: how many of the latest observations are seen at once; None: one.
        arguments: those of the algorithm's constructor, schedules and classes in place.
    """

    n_timesteps: int
    n_envs: int = 1
    policy: str | None = None
    normalize: Mapping[str, Any] | None = None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    env_wrapper: tuple[str, ...] = ()
    frame_stack: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


def read_hyperparameters(
    command: str, env: str, conf_file: Path | None = None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """The plain values of `env` (else of `atari`, where it is such, or `default`) in a file, with the overrides on top.

    Args:
        command: names the package's own file, `hyperparams/<command>.yml`.
        env: the environment's id.
        conf_file: another file of the same form, such as one of RL Zoo's.
        overrides: `key=value`, as RL Zoo's `key:value`; values as in YAML.

    Raises:
        ValueError: the file can't be read, holds neither `env` nor `default`, or an override is malformed.
    """
    path = FOLDER / f"{command.replace('-', '_')}.yml" if conf_file is None else conf_file
    table = read_table("conf_file", path, "environment ids to hyperparameters")
    name = env.rpartition(":")[2]
    group = "atari" if name.startswith("ALE/") or "NoFrameskip-v" in name else "default"
    found = table.get(env, table.get(name, table.get(group, table.get("default"))))
    if not isinstance(found, dict):
        raise ValueError(f"conf_file={str(path)!r} has hyperparameters neither for {env!r} nor by `default`.")
    values = {str(name): with_numbers(value) for name, value in found.items()}
    for word in overrides:
        name, value = read_pair("hyperparams", word)
        values[name] = value
    if "env_wrapper" in values:
        values["env_wrapper"] = wrapper_words(values["env_wrapper"])
    return values


def read_table(option: str, path: Path, what: str) -> dict[Any, Any]:
    """The mapping in a YAML file.

    Args:
        option: that names the file.
        path: of the file.
        what: it maps, in words.

    Raises:
        ValueError: the file can't be read, or holds something else.
    """
    try:
        table = read_yaml(path, f"Name a YAML file, a mapping of {what}.")
    except ValueError as error:
        raise ValueError(f"{option}={error}") from error
    if not isinstance(table, dict):
        raise ValueError(f"{option}={str(path)!r} must be a mapping of {what}.")
    return table


def resolve_hyperparameters(values: Mapping[str, Any], algorithm: type) -> Hyperparameters:
    """Check names and kinds, and put schedules and classes in place.

    Args:
        values: of `read_hyperparameters`, with those of the command line.
        algorithm: its constructor says which names there are.

    Raises:
        ValueError: an unknown name, or a value of the wrong kind.
    """
    known = _parameters(algorithm)
    _check_names(values, set(known) - set(SET_ELSEWHERE), algorithm.__name__)
    gamma = values.get("gamma", known["gamma"].default)
    policy = values.get("policy")
    if policy is not None and not isinstance(policy, str):
        raise ValueError(f"policy={policy!r} must be an alias, such as MlpPolicy.")
    arguments = {name: value for name, value in values.items() if name not in OF_THE_RUN}
    for name, value in arguments.items():
        if name in SCHEDULES:
            arguments[name] = _schedule(name, value)
        elif isinstance(known[name].default, (bool, int, float)) and name not in MAY_BE_WORDS:
            arguments[name] = _of_kind(name, value, type(known[name].default))
        elif name == "target_kl" and value is not None:
            arguments[name] = _of_kind(name, value, float)
        elif name.endswith("_kwargs") and name != "policy_kwargs" and value is not None:
            arguments[name] = _mapping(name, value)
    if "stats_window_size" in arguments:
        check_positive_int("stats_window_size", arguments["stats_window_size"])
    if "policy_kwargs" in arguments:
        arguments["policy_kwargs"] = _policy_kwargs(arguments["policy_kwargs"])
    return Hyperparameters(
        n_timesteps=check_positive_int("n_timesteps", _whole("n_timesteps", values.get("n_timesteps", 1_000_000))),
        n_envs=check_positive_int("n_envs", _whole("n_envs", values.get("n_envs", 1))),
        policy=policy,
        normalize=_normalize(values.get("normalize", False), float(gamma)),
        env_kwargs=_mapping("env_kwargs", values.get("env_kwargs", {})),
        env_wrapper=tuple(wrapper_words(values.get("env_wrapper"))),
        frame_stack=_frame_stack(values.get("frame_stack")),
        arguments=arguments,
    )


def wrapper_words(value: Any) -> list[str]:
    """RL Zoo's `env_wrapper` as a list of `module.Class` and `module.Class:{arguments}`.

    Args:
        value: such a word, `{module.Class: {arguments}}`, a list of either, or None.

    Raises:
        ValueError: it is something else; the message names it.

    Examples:
        >>> wrapper_words(["a.B", {"a.C": {"skip": 2}}]), wrapper_words("a.D:{shape: [8, 8]}")
        (['a.B', 'a.C:{"skip": 2}'], ['a.D:{"shape": [8, 8]}'])
    """
    found = []
    for word in value if isinstance(value, (list, tuple)) else [] if value is None else [value]:
        if isinstance(word, dict) and len(word) == 1:
            (name, arguments), *_ = word.items()
        elif isinstance(word, str):
            name, separator, text = word.partition(":")
            arguments = read_pair("env_wrapper", f"{name}={text}")[1] if separator else {}
        else:
            name = arguments = None
        if not (isinstance(name, str) and name.rpartition(".")[0] and isinstance(arguments or {}, dict)):
            raise ValueError(
                f'env_wrapper={word!r} must be such as gymnasium.wrappers.ClipAction, or with arguments "module.Class:'
                '{key: value}".'
            )
        found.append(f"{name}:{json.dumps(arguments)}" if arguments else name)
    return found


def _frame_stack(value: Any) -> int | None:
    return None if value is None else check_positive_int("frame_stack", _whole("frame_stack", value))


@contextmanager
def named_hyperparameters(values: Mapping[str, Any], folder: Path | None) -> Iterator[None]:
    """Turn what an algorithm or an environment says of wrong hyperparameters into an error that names them.

    Args:
        values: that the block uses.
        folder: of a resumed run, whose `config.json` they are of; None: of the command line.

    Raises:
        ValueError: in place of whatever the block raises.
    """
    try:
        yield
    except Exception as error:  # SB3 only asserts much, and passes the rest on to Python
        if folder is None and not isinstance(error, AssertionError):
            raise
        said = f"{error}".rstrip(".") or type(error).__name__
        if not any(name in said for name in values):
            said = f"{said} (of the hyperparameters {', '.join(values)})"
        if folder is None:
            raise ValueError(f"{said}.") from error
        path = str(folder / "config.json")
        raise ValueError(f"hyperparameters in {path!r} can't be used: {said}. Put them back as they were.") from error


def _parameters(algorithm: type) -> dict[str, inspect.Parameter]:
    """Those of its constructor by name, and of its parents' where it passes **kwargs on."""
    found: dict[str, inspect.Parameter] = {}
    for base in algorithm.__mro__[:-1]:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters  # type: ignore[misc]
        kinds = {parameter.kind for parameter in parameters.values()}
        found = {**{name: one for name, one in parameters.items() if one.kind not in PASSED_ON}, **found}
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    return found


def _check_names(values: Mapping[str, Any], known: set[str], algorithm: str) -> None:
    for name in values:
        if name in NOT_SUPPORTED:
            raise ValueError(f"hyperparameter {name!r} of RL Zoo can't be used here: use rl_zoo3.train for it.")
        if name not in OF_THE_RUN and name not in known:
            listed = ", ".join([*OF_THE_RUN, *sorted(known)])
            raise ValueError(f"hyperparameter {name!r} is unknown to {algorithm}: choose of {listed}.")


def _of_kind(name: str, value: Any, kind: type) -> Any:
    """The value, of the kind that the argument's default has."""
    if kind is bool or isinstance(value, bool):
        if kind is not bool or not isinstance(value, bool):
            raise ValueError(f"{name}={value!r} must be {'true or false' if kind is bool else 'a number'}.")
        return value
    value = _whole(name, value) if kind is int else value
    if not isinstance(value, int if kind is int else (int, float)):
        raise ValueError(f"{name}={value!r} must be a {'whole number' if kind is int else 'number'}.")
    return value


def _whole(name: str, value: Any) -> Any:
    """1e6, as RL Zoo writes it, is 1,000,000."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _schedule(name: str, value: Any) -> Any:
    if isinstance(value, str):
        number = linear_start(value)
        if number is None or not 0 < number < float("inf"):
            raise ValueError(f'{name}={value!r} must be a number, or such as "lin_0.001".')
        return LinearSchedule(number, 0.0, 1.0)
    if value is None and name == "clip_range_vf":
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ValueError(f'{name}={value!r} must be a number above 0, or such as "lin_0.001".')
    return float(value)


def _normalize(value: Any, gamma: float) -> dict[str, Any] | None:
    if isinstance(value, str):
        value = _dict_expression("normalize", value)
    if isinstance(value, bool):
        return {"gamma": gamma} if value else None
    return {"gamma": gamma, **_mapping("normalize", value)}


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        value = _dict_expression(name, value)
    if not isinstance(value, dict):
        raise ValueError(f"{name}={value!r} must be a mapping, such as {{key: value}}.")
    return value


def _policy_kwargs(value: Any) -> dict[str, Any]:
    """With the classes that the names of activations, optimisers and extractors stand for."""
    kwargs = dict(_mapping("policy_kwargs", value))
    tables = (("activation_fn", ACTIVATIONS), ("optimizer_class", OPTIMIZERS), ("features_extractor_class", EXTRACTORS))
    for name, table in tables:
        if isinstance(kwargs.get(name), str):
            word = kwargs[name].rpartition(".")[2]
            if word not in table:
                raise ValueError(
                    f"policy_kwargs: {name}={kwargs[name]!r} is unknown: choose one of {', '.join(table)}."
                )
            kwargs[name] = table[word]
    return kwargs


def _dict_expression(name: str, text: str) -> Any:
    """RL Zoo's `"dict(ortho_init=False, activation_fn=nn.ReLU)"`, read and not run: literals, `dict(...)` and names."""

    def read(node: ast.expr) -> Any:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
            return {word.arg: read(word.value) for word in node.keywords if word.arg is not None}
        if isinstance(node, (ast.Name, ast.Attribute)):
            return ast.unparse(node)
        return ast.literal_eval(node)

    try:
        return read(ast.parse(text.strip(), mode="eval").body)
    except Exception as error:  # Python's, of what is malformed or nested too deeply
        raise ValueError(f"{name}={text!r} can't be read: write a mapping, such as {{ortho_init: false}}.") from error
