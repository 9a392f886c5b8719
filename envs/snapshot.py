"""Capture and restore the state of an environment in the middle of an episode as plain data: no pickle, no code.

Kept is all that Python can see: the attributes of the environment and of each wrapper around it, as far as they
are numbers, strings, arrays, containers of these, random generators, spaces (their generators), or objects that hold
such. An environment that keeps its state elsewhere (MuJoCo, Box2D, an emulator) gives a clear error, unless it has
methods `get_state()`, which returns plain data, and `set_state(state)`: then these are used.

The state is put back into an environment that was built in the same way, attribute by attribute. Nothing is built from
a class name that the data could give, and no method is replaced. Text in the wrappers of Gymnasium and of
Stable-Baselines3 says where to write (a folder of videos) and stays as it stands; text that your own environment keeps
is put back, so don't give a stranger's state to one that uses such text as a path.
"""

from __future__ import annotations

import enum
import logging
import re
import types
from collections import deque
from collections.abc import Collection, Mapping
from pathlib import PurePath
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import PassiveEnvChecker

from rlsmooth.envs.snapshot_values import (
    CannotSnapshotError,
    Same,
    class_name,
    decode_value,
    encode_value,
    may_hold_data,
    module_name,
    same_class,
)
from rlsmooth.untrusted import refused

# Constants, or belonging to the process: what the new environment has of these is right already.
LEFT_NAMES = frozenset(
    {
        "_cached_spec",
        "_previous_data",  # what gymnasium's checker saw last
        "_saved_kwargs",
        "episode_start_time",  # clocks
        "render_mode",
        "results_writer",  # an open file
        "spec",
        "t_start",
    }
)
LEFT_TYPES = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    type,
    np.dtype,
    np.ufunc,
    logging.Logger,
    re.Pattern,
    PurePath,
    EnvSpec,
)
# Of a space. Its public name, `np_random`, would seed a space that has none yet.
GENERATOR = "_np_random"
CHECKED = ("checked_step", "checked_data_reuse")
RECORDING_MODULES = ("gymnasium.wrappers.", "stable_baselines3.common.")
BASE_MODULE = "stable_baselines3.common.vec_env.base_vec_env"  # of every vectorised wrapper
LEFT_MODULES = frozenset({"pygame"})  # windows and clocks: they draw, they decide nothing


class _Plain:
    """A class with nothing but attributes: objects that are larger than its own hide more behind C."""


@runtime_checkable
class Stateful(Protocol):
    """An object that knows its own state."""

    def get_state(self) -> Any:
        """The state, as plain data."""

    def set_state(self, state: Any, /) -> Any:
        """Put it back."""


def env_state(env: gym.Env[Any, Any]) -> dict[str, Any]:
    """The state of an environment and of all its wrappers, as plain data.

    Args:
        env: the environment, with the wrappers around it.

    Returns:
        Nested dicts (str keys) and lists of None, bool, int, float, str and numpy arrays; copied, so later steps don't
        change them.

    Raises:
        CannotSnapshotError: there is something in it that is not plain data; the message says where.

    Examples:
        >>> env = gym.make("CartPole-v1"); _ = env.reset(seed=0)
        >>> state = env_state(env); first = env.step(1)[0]
        >>> other = gym.make("CartPole-v1"); set_env_state(other, state)
        >>> bool((other.step(1)[0] == first).all())
        True
    """
    return object_state(env, "env")


def set_env_state(env: gym.Env[Any, Any], state: Mapping[str, Any]) -> None:
    """Put an environment, built in the same way, into the state that `env_state` gave.

    Raises:
        CannotSnapshotError: the environment or a wrapper is of another class, or lacks an object that the state is of
            (one that is only made by `reset`, say: reset the environment first). It may have changed in part by then:
            reset it before using it.
    """
    set_object_state(env, state, "env")


def object_state(value: object, where: str, *, leave: Collection[str] = ()) -> dict[str, Any]:
    """The attributes of one object, and of those that it holds, as plain data (as `env_state` gives them).

    Args:
        value: the object.
        where: what errors call it.
        leave: names of attributes of this object to leave out.

    Raises:
        CannotSnapshotError: as in `env_state`.
    """
    try:
        encoded: dict[str, Any] = _encode_object(value, where, Same(), frozenset(leave))
    except RecursionError as error:
        raise CannotSnapshotError(f"{where} is nested too deeply to be kept.") from error
    return encoded


def set_object_state(value: object, state: Mapping[str, Any], where: str) -> None:
    """Put back what `object_state` gave.

    Raises:
        CannotSnapshotError: as in `set_env_state`, or the data is malformed.
    """
    with refused(
        where, CannotSnapshotError, "Build it as it was, or use another copy.", "does not fit its saved state"
    ):
        _decode_object(dict(state), value, where, {})


class Resumable(gym.Wrapper[Any, Any, Any, Any]):
    """Makes the state of an environment in another process reachable: wrap each environment of a `SubprocVecEnv` in it.

    For example `make_vec_env("CartPole-v1", 4, wrapper_class=Resumable, vec_env_cls=SubprocVecEnv)`, or each of an
    `AsyncVectorEnv`. It changes nothing else. Environments in a `DummyVecEnv` don't need it.

    Args:
        env: the environment, with its other wrappers.

    Examples:
        >>> env = Resumable(gym.make("CartPole-v1")); _ = env.reset(seed=0)
        >>> state, problem = env.get_snapshot(); problem
        ''
        >>> env.set_snapshot(state)
        ''
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.kept: Any = None  # what `set_kept` restores: an AsyncVectorEnv can set attributes one by one, not call

    def get_snapshot(self) -> tuple[dict[str, Any] | None, str]:
        """`env_state` of the wrapped environment, and why there is none, or "".

        The error is returned, since one that is raised in a worker of SubprocVecEnv kills that worker.
        """
        try:
            return env_state(self.env), ""
        except CannotSnapshotError as error:
            return None, str(error)

    def set_snapshot(self, state: Mapping[str, Any]) -> str:
        """`set_env_state` of the wrapped environment; returns why it failed, or ""."""
        try:
            set_env_state(self.env, state)
        except CannotSnapshotError as error:
            return str(error)
        return ""

    def set_kept(self) -> str:
        """`set_snapshot` of the attribute `kept`."""
        state, self.kept = self.kept, None
        return self.set_snapshot(state)

    def is_wrapped(self, wrapper_class: type[Any]) -> bool:
        """Whether the environment is in such a wrapper."""
        layer: Any = self
        while isinstance(layer, gym.Wrapper) and not isinstance(layer, wrapper_class):
            layer = layer.env
        return isinstance(layer, wrapper_class)


# ---- objects


def _encode(value: Any, where: str, same: Same) -> Any:
    if isinstance(value, LEFT_TYPES) or module_name(value).split(".")[0] in LEFT_MODULES:
        return {"kind": "left"}
    if isinstance(value, enum.Enum):
        return {"kind": "enum", "class": class_name(value), "name": value.name}
    if isinstance(value, gym.Space):
        return same.first(value) or {"kind": "space", "number": same.number(value), "state": _space(value, where, same)}
    encoded = encode_value(value, where, same, _encode)
    return _encode_object(value, where, same, frozenset()) if encoded is NotImplemented else encoded


def _encode_object(value: Any, where: str, same: Same, leave: frozenset[str]) -> dict[str, Any]:
    known = same.first(value)
    if known is not None:
        return known
    head = {"number": same.number(value), "class": class_name(value)}
    if isinstance(value, Stateful) and not isinstance(value, gym.Wrapper):
        # What it gives says nothing of the generators that gymnasium keeps for it.
        kept = ("_np_random", "_np_random_seed", "action_space", "observation_space")
        state = {name: _encode(vars(value)[name], f"{where}.{name}", same) for name in kept if name in vars(value)}
        own = _encode(_own_state(value, where), f"{where}.get_state()", same)
        return {"kind": "own", **head, "own": own, "state": state}
    state = {
        name: _encode(item, f"{where}.{name}", same)
        for name, item in _attributes(value, where).items()
        if name not in LEFT_NAMES and name not in leave
    }
    return {"kind": "object", **head, "state": state}


def _own_state(value: Stateful, where: str) -> Any:
    try:
        return value.get_state()
    except TypeError as error:  # a method of that name that is another thing, and wants arguments
        raise CannotSnapshotError(f"{where} is a {class_name(value)}, whose get_state() fails: {error}.") from error


def _attributes(value: Any, where: str) -> dict[str, Any]:
    slots = _slots(type(value))
    own = getattr(value, "__dict__", None)
    if type(value).__basicsize__ > _Plain.__basicsize__ + 8 * len(slots) or (own is None and not slots):
        raise CannotSnapshotError(
            f"{where} is a {class_name(value)}, which keeps its state where Python can't see it: give the environment "
            "get_state() and set_state(state) of its own."
        )
    missing = object()
    slotted = {name: getattr(value, name, missing) for name in slots}
    return {**(own or {}), **{name: item for name, item in slotted.items() if item is not missing}}


def _slots(owner: type) -> list[str]:
    names: list[str] = []
    for ancestor in owner.__mro__[:-1]:
        declared = vars(ancestor).get("__slots__", ())
        names += [declared] if isinstance(declared, str) else list(declared)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _space(space: gym.Space[Any], where: str, same: Same) -> dict[str, Any]:
    parts = {name: _encode(part, f"{where}[{name!r}]", same) for name, part in _subspaces(space).items()}
    return {"random": _encode(vars(space)[GENERATOR], f"{where}.np_random", same), "spaces": parts}


def _subspaces(space: gym.Space[Any]) -> dict[str, gym.Space[Any]]:
    if isinstance(space, gym.spaces.Dict):
        return dict(space.spaces)
    if isinstance(space, (gym.spaces.Tuple, gym.spaces.OneOf)):
        return {str(index): part for index, part in enumerate(space.spaces)}
    return {}


# ---- restoring


def _decode(encoded: Any, current: Any, where: str, made: dict[int, Any]) -> Any:
    kind = encoded.get("kind") if isinstance(encoded, dict) else None
    if kind == "left":
        return current
    if kind == "enum":
        same_class(current, encoded["class"], where)
        return type(current)[encoded["name"]]
    if kind == "space":
        _decode_space(encoded, current, where, made)
        return current
    if kind in ("object", "own"):
        _decode_object(encoded, current, where, made)
        return current
    return decode_value(encoded, current, where, made, _decode)


def _decode_object(encoded: dict[str, Any], current: Any, where: str, made: dict[int, Any]) -> None:
    same_class(current, encoded["class"], where)
    made[encoded["number"]] = current
    before = _attributes(current, where)
    slots = _slots(type(current))
    records = _records(type(current))
    for name, item in encoded["state"].items():
        if not (name in slots or may_hold_data(type(current), name) or _is_left(item)):
            raise CannotSnapshotError(f"the state of {where} has {name!r}, which is no data there: use another copy.")
        if _is_left(item) and name not in before:
            continue
        value = _decode(item, before.get(name), f"{where}.{name}", made)
        if records and isinstance(value, (str, bytes)):
            continue
        if records and not _is_alike(value, before.get(name)):
            raise CannotSnapshotError(
                f"the state of {where} has {name}={value!r:.80} of another type: use another copy."
            )
        if name in slots:
            object.__setattr__(current, name, value)
        else:
            vars(current)[name] = value  # past properties, and past what forbids it in a frozen dataclass
    if isinstance(current, PassiveEnvChecker):
        # It compares the first two steps with what was returned before them, which is not kept (infos hold anything).
        vars(current).update({name: True for name in CHECKED if name in before})
    if encoded["kind"] == "own":
        current.set_state(_decode(encoded["own"], None, f"{where}.get_state()", made))


def _is_left(encoded: Any) -> bool:
    return isinstance(encoded, dict) and encoded.get("kind") == "left"


def _records(owner: type) -> bool:
    """Whether it is a wrapper of Gymnasium's or of Stable-Baselines3's, or below one: these may write files."""
    modules = {base.__module__ for base in owner.__mro__} - {BASE_MODULE}
    return any(module.startswith(RECORDING_MODULES) for module in modules)


def _is_alike(value: Any, current: Any) -> bool:
    """Whether both are numbers, switches, or of the same type, as far as both are there; a list must be of one type."""
    numbers = (int, float, np.number, np.ndarray)  # a statistic may be any of them
    if isinstance(value, (list, deque)) and len({isinstance(item, numbers) for item in value}) > 1:
        return False
    if isinstance(value, numbers) and not isinstance(value, bool):
        return current is None or (isinstance(current, numbers) and not isinstance(current, bool))
    return value is None or current is None or type(value) is type(current)


def _decode_space(encoded: dict[str, Any], current: Any, where: str, made: dict[int, Any]) -> None:
    if not isinstance(current, gym.Space):
        raise CannotSnapshotError(f"{where} was a space and is a {class_name(current)}: build the environment alike.")
    made[encoded["number"]] = current
    parts = _subspaces(current)
    for name, item in encoded["state"]["spaces"].items():
        _decode(item, parts[name], f"{where}[{name!r}]", made)
    vars(current)[GENERATOR] = _decode(encoded["state"]["random"], vars(current)[GENERATOR], f"{where}.np_random", made)
