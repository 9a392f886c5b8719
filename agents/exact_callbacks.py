"""What the callbacks of a run have counted and collected, as plain data, and back.

Of most callbacks the attributes that are plain data are kept. One that has methods `exact_state` and `set_exact_state`
says itself what is kept of it: see `HasExactState`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback
from stable_baselines3.common.vec_env import VecEnv

from rlsmooth.agents.exact_values import state_from_tree, state_to_tree
from rlsmooth.agents.vec_env_snapshot import set_vec_env_state, vec_env_state
from rlsmooth.envs.snapshot_values import (
    CannotSnapshotError,
    class_name,
    may_hold_data,
    plain_value,
    value_from_plain,
)

__all__ = [
    "HasExactState",
    "callback_states",
    "changed_states",
    "own_states",
    "set_callback_states",
    "set_own_states",
]

CALLBACK_LEAVES = {"model", "logger", "training_env", "locals", "globals", "parent"}


@runtime_checkable
class HasExactState(Protocol):
    """A callback that knows what a resumed run needs of it, such as the rest of a trainer that it belongs to.

    Give a `BaseCallback` the two methods; it need not inherit from this class. The state is a dict with str keys of
    numbers, text, None, arrays, tensors, random generators of numpy and of Python, and containers of these. All come
    back as they were, tensors on the CPU.

    Example:
        >>> class Count(BaseCallback):
        ...     steps = 0
        ...     def _on_step(self): self.steps += 1; return True
        ...     def exact_state(self): return {"steps": self.steps}
        ...     def set_exact_state(self, state, *, episodes_go_on): self.steps = state["steps"]
        >>> isinstance(Count(), HasExactState)
        True
    """

    def exact_state(self) -> dict[str, Any]:
        """The state between two rollouts; not changed afterwards by what the callback does next."""

    def set_exact_state(self, state: dict[str, Any], *, episodes_go_on: bool) -> None:
        """Put it back; called when the first rollout of the resumed `learn` starts, after earlier callbacks.

        Args:
            state: what `exact_state` gave.
            episodes_go_on: False: the environments could not be put back and were reset, so what belongs to running
                episodes must not come back either.

        Raises:
            ValueError: it does not fit.
        """


def callback_states(root: Any, own: BaseCallback) -> list[dict[str, Any]]:
    """What each callback of a run has counted and collected, and where its own environments are.

    Args:
        root: the callback that `learn` made of what it was given.
        own: the one to leave out.

    Returns:
        One entry a callback, in order, those with a state of their own apart: `"class"`, `"values"` (attributes that
        are plain data without text, which may say where to write), `"envs"`.
    """
    return [
        {
            "class": class_name(callback),
            "values": dict(_plain_values(callback)),
            "envs": {name: vec_env_state(env) for name, env in vars(callback).items() if _is_own_env(name, env)},
        }
        for callback in _callbacks(root, own)
        if not isinstance(callback, HasExactState)
    ]


def set_callback_states(root: Any, own: BaseCallback, states: list[dict[str, Any]]) -> str:
    """Put back what `callback_states` gave: into the first callback of a class what the first had, and so on.

    A callback of a class that the run did not have starts anew, and what a class had that is not there any more is
    left out. Text and methods are never replaced: a file from elsewhere must not say where a callback writes.

    Returns:
        "", or what could not be put back.
    """
    problems = []
    for name, callbacks, saved in _matched(root, own, states):
        if callbacks and len(callbacks) != len(saved):
            problems.append(f"there were {len(saved)} callbacks of class {name}, and are {len(callbacks)}")
            continue
        problems += [_set_callback(callback, state) for callback, state in zip(callbacks, saved, strict=False)]
    return "; ".join(problem for problem in problems if problem)


def own_states(root: Any, own: BaseCallback) -> list[dict[str, Any]]:
    """What the callbacks with a state of their own (`HasExactState`) give.

    Args:
        root: the callback that `learn` made of what it was given.
        own: the one to leave out.

    Returns:
        One entry a callback, in order: `"class"`, `"state"`.

    Raises:
        CannotSnapshotError: a state is not what `HasExactState` allows; the message says where.
    """
    return [
        {"class": class_name(callback), "state": state_to_tree(callback.exact_state(), class_name(callback))}
        for callback in _callbacks(root, own)
        if isinstance(callback, HasExactState)
    ]


def set_own_states(root: Any, own: BaseCallback, states: list[dict[str, Any]], *, episodes_go_on: bool) -> str:
    """Put back what `own_states` gave; a callback of another class starts anew.

    Returns:
        "", or which callbacks are not there: a run without them is another run.

    Raises:
        CannotSnapshotError: the data is malformed.
        ValueError: by a callback, if its state does not fit it.
    """
    problems = []
    for name, callbacks, saved in _matched(root, own, states):
        if len(callbacks) != len(saved):
            problems.append(f"there were {len(saved)} callbacks of class {name}, and are {len(callbacks)}")
            continue
        for callback, state in zip(callbacks, saved, strict=True):
            assert isinstance(callback, HasExactState)
            callback.set_exact_state(state_from_tree(state["state"]), episodes_go_on=episodes_go_on)
    return "; ".join(problems)


def changed_states(states: list[dict[str, Any]], baseline: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The states without the values that are as they were: arguments, which a resumed run may give anew."""
    return [
        {
            **state,
            "values": {
                name: value
                for name, value in state["values"].items()
                if name not in before["values"] or not _equal(value, before["values"][name])
            },
        }
        for state, before in zip(states, baseline, strict=True)
    ]


def _matched(
    root: Any, own: BaseCallback, states: list[dict[str, Any]]
) -> Iterator[tuple[str, list[BaseCallback], list[dict[str, Any]]]]:
    """For each class in the states its name, the callbacks of it, and its states."""
    found = list(_callbacks(root, own))
    for name in dict.fromkeys(state["class"] for state in states):
        callbacks = [callback for callback in found if class_name(callback) == name]
        yield name, callbacks, [state for state in states if state["class"] == name]


def _set_callback(callback: BaseCallback, state: Mapping[str, Any]) -> str:
    problems = []
    for name, encoded in state["values"].items():
        value = value_from_plain(encoded)
        if name in CALLBACK_LEAVES or not may_hold_data(type(callback), name) or _has_text(value):
            problems.append(f"{name} of {class_name(callback)} is not the file's to set")
        else:
            vars(callback)[name] = value
    for name, kept in state["envs"].items():
        env = vars(callback).get(name)
        try:
            problems.append(set_vec_env_state(env, kept) if isinstance(env, VecEnv) else f"{name} is no VecEnv")
        except CannotSnapshotError as error:
            problems.append(str(error))
    return "; ".join(problem for problem in problems if problem)


def _callbacks(root: Any, own: BaseCallback) -> Iterator[BaseCallback]:
    """The callback and those in it, outside in, each once."""
    seen: set[int] = set()
    stack = [root]
    while stack:
        callback = stack.pop()
        if not isinstance(callback, BaseCallback) or id(callback) in seen:
            continue
        seen.add(id(callback))
        if callback is not own and not isinstance(callback, (CallbackList, ProgressBarCallback)):
            yield callback
        inner = [value for name, value in vars(callback).items() if name not in CALLBACK_LEAVES]
        lists = [item for value in inner if isinstance(value, (list, tuple)) for item in value]
        stack += reversed([value for value in [*inner, *lists] if isinstance(value, BaseCallback)])


def _plain_values(callback: BaseCallback) -> Iterator[tuple[str, Any]]:
    for name, value in vars(callback).items():
        if name in CALLBACK_LEAVES or not may_hold_data(type(callback), name) or _has_text(value):
            continue
        try:
            yield name, plain_value(value, name)
        except CannotSnapshotError:
            continue  # loggers, files, networks: the resumed run makes its own


def _has_text(value: object) -> bool:
    """Whether it is text or a container with text in it, names of entries apart."""
    if isinstance(value, (str, bytes)):
        return True
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "SU"
    items = list(value.values()) if isinstance(value, dict) else value
    try:
        return isinstance(items, (list, tuple, set, frozenset, deque)) and any(map(_has_text, items))
    except RecursionError:  # it holds itself, and nobody knows what else
        return True


def _is_own_env(name: str, value: object) -> bool:
    return isinstance(value, VecEnv) and name not in CALLBACK_LEAVES


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return type(one) is type(other) and bool(one == other)
