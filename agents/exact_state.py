"""What a run of an on-policy algorithm stands on between two rollouts, as plain data, and back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from rlsmooth.agents.vec_env_snapshot import set_vec_env_state, vec_env_state
from rlsmooth.envs.snapshot_values import (
    CannotSnapshotError,
    class_name,
    may_hold_data,
    plain_value,
    value_from_plain,
)

__all__ = [
    "arrays_from_tensors",
    "callback_states",
    "changed_states",
    "interaction_state",
    "logger_state",
    "noise_state",
    "set_callback_states",
    "set_interaction_state",
    "set_logger_state",
    "set_noise_state",
    "tensors_from_arrays",
]

NOISE = ("exploration_mat", "exploration_matrices")
SEEN = ("_last_obs", "_last_episode_starts", "_last_original_obs")
CALLBACK_LEAVES = {"model", "logger", "training_env", "locals", "globals", "parent"}


def interaction_state(model: OnPolicyAlgorithm) -> dict[str, Any]:
    """Where the algorithm and its environments are in their episodes.

    Args:
        model: between two rollouts.
    """
    assert model.env is not None
    infos = list(model.ep_info_buffer or ())
    try:
        episodes = plain_value(infos, "ep_info_buffer")
    except CannotSnapshotError:  # info_keywords of the user's own
        episodes = plain_value([{key: info[key] for key in "rlt" if key in info} for info in infos], "ep_info_buffer")
    lstm_states = getattr(model, "_last_lstm_states", None)
    flat = None if lstm_states is None else [state.cpu().numpy() for pair in lstm_states for state in pair]
    return {
        "env": vec_env_state(model.env),
        "seen": {name: plain_value(getattr(model, name), name) for name in SEEN},
        "episodes": episodes,
        "successes": plain_value([bool(success) for success in model.ep_success_buffer or ()], "ep_success_buffer"),
        "lstm_states": plain_value(flat, "lstm_states"),
    }


def set_interaction_state(model: OnPolicyAlgorithm, state: Mapping[str, Any]) -> str:
    """Put back what `interaction_state` gave.

    Returns:
        "", or why the environments could not be put back: `learn` then starts new episodes.

    Raises:
        CannotSnapshotError: wrappers of the environment differ, or the data is malformed.
    """
    assert model.env is not None
    window = model._stats_window_size
    model.ep_info_buffer = deque(value_from_plain(state["episodes"]), maxlen=window)
    model.ep_success_buffer = deque(value_from_plain(state["successes"]), maxlen=window)
    flat = value_from_plain(state["lstm_states"])
    recurrent: Any = model
    if flat is not None:
        states = recurrent._last_lstm_states
        pairs = [tuple(torch.from_numpy(array).to(model.device) for array in flat[i : i + 2]) for i in (0, 2)]
        if [tensor.shape for pair in states for tensor in pair] != [tensor.shape for pair in pairs for tensor in pair]:
            raise CannotSnapshotError("the states of the LSTM have other shapes: give as many environments as before.")
        recurrent._last_lstm_states = type(states)(*pairs)
    problem = set_vec_env_state(model.env, state["env"])
    for name in SEEN:
        setattr(model, name, None if problem else value_from_plain(state["seen"][name]))
    return problem


def noise_state(model: OnPolicyAlgorithm) -> dict[str, Tensor]:
    """The noise that gSDE explores with during a rollout; `{}` without gSDE."""
    if not model.use_sde:
        return {}
    distribution: Any = model.policy.action_dist
    return {name: getattr(distribution, name) for name in NOISE}


def set_noise_state(model: OnPolicyAlgorithm, noise: Mapping[str, Tensor] | None) -> None:
    """Put back what `noise_state` gave; None: draw it, as the start of a rollout does."""
    if not model.use_sde:
        return
    if noise is None:
        model.policy.reset_noise(model.n_envs)
        return
    distribution: Any = model.policy.action_dist
    for name in NOISE:
        setattr(distribution, name, noise[name].to(model.device))


def logger_state(logger: Logger) -> dict[str, Any]:
    """What was recorded since the last dump, as far as it is numbers and text."""
    kept = {
        name: value for name, value in logger.name_to_value.items() if isinstance(value, (str, int, float, np.number))
    }
    return {
        "values": plain_value(kept, "logger"),
        "counts": {name: logger.name_to_count[name] for name in kept if name in logger.name_to_count},
        "excluded": plain_value({name: logger.name_to_excluded.get(name) for name in kept}, "logger"),
    }


def set_logger_state(logger: Logger, state: Mapping[str, Any]) -> None:
    """Put back what `logger_state` gave, into a logger that has recorded nothing."""
    logger.name_to_value.update(value_from_plain(state["values"]))
    logger.name_to_count.update(state["counts"])
    excluded = value_from_plain(state["excluded"])
    logger.name_to_excluded.update({name: value for name, value in excluded.items() if value is not None})


# ---- callbacks


def callback_states(root: Any, own: BaseCallback) -> list[dict[str, Any]]:
    """What each callback of a run has counted and collected, and where its own environments are.

    Args:
        root: the callback that `learn` made of what it was given.
        own: the one to leave out.

    Returns:
        One entry a callback, in order: `"class"`, `"values"` (attributes that are plain data without text, which may
        say where to write), `"envs"`.
    """
    return [
        {
            "class": class_name(callback),
            "values": dict(_plain_values(callback)),
            "envs": {name: vec_env_state(env) for name, env in vars(callback).items() if _is_own_env(name, env)},
        }
        for callback in _callbacks(root, own)
    ]


def set_callback_states(root: Any, own: BaseCallback, states: list[dict[str, Any]]) -> str:
    """Put back what `callback_states` gave: into the first callback of a class what the first had, and so on.

    A callback of a class that the run did not have starts anew, and what a class had that is not there any more is
    left out. Text and methods are never replaced: a file from elsewhere must not say where a callback writes.

    Returns:
        "", or what could not be put back.
    """
    problems = []
    found = list(_callbacks(root, own))
    for name in dict.fromkeys(state["class"] for state in states):
        callbacks = [callback for callback in found if class_name(callback) == name]
        saved = [state for state in states if state["class"] == name]
        if callbacks and len(callbacks) != len(saved):
            problems.append(f"there were {len(saved)} callbacks of class {name}, and are {len(callbacks)}")
            continue
        problems += [_set_callback(callback, state) for callback, state in zip(callbacks, saved, strict=False)]
    return "; ".join(problem for problem in problems if problem)


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


# ---- arrays, which environments give, and tensors, which files hold


def tensors_from_arrays(tree: Any) -> Any:
    """The tree with a tensor in place of each numpy array."""
    return _mapped(tree, lambda leaf: torch.from_numpy(leaf.copy()) if isinstance(leaf, np.ndarray) else leaf)


def arrays_from_tensors(tree: Any) -> Any:
    """The tree with a numpy array in place of each tensor."""
    return _mapped(tree, lambda leaf: leaf.cpu().numpy().copy() if isinstance(leaf, Tensor) else leaf)


def _mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(tree, dict):
        return {key: _mapped(item, change) for key, item in tree.items()}
    if isinstance(tree, list):
        return [_mapped(item, change) for item in tree]
    return change(tree)
