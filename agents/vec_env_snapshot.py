"""The state of a vectorised environment of Stable-Baselines3: of its wrappers and of each environment in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

from rlsmooth.envs.snapshot import (
    CannotSnapshotError,
    Resumable,
    env_state,
    object_state,
    set_env_state,
    set_object_state,
)

__all__ = ["TransientVecEnvWrapper", "set_vec_env_state", "vec_env_state"]

# A wrapper's link to what it wraps, and what is written anew by every step.
WRAPPER_LEAVES = ("venv", "class_attributes", "reset_infos", "metadata")
BASE_KEPT = ("observation_space", "action_space", "_seeds", "_options")


class TransientVecEnvWrapper(VecEnvWrapper):
    """Marks a wrapper that is there for the time of one `learn` only: snapshots pass it over.

    Whoever puts it there keeps its state, in a callback (see `rlsmooth.agents.exact_callbacks.HasExactState`).
    """


class _Base:
    """What is kept of the innermost VecEnv itself."""

    def __init__(self, venv: VecEnv) -> None:
        self.kept = {name: getattr(venv, name) for name in BASE_KEPT}


def vec_env_state(venv: VecEnv) -> dict[str, Any]:
    """The state of a VecEnv as plain data (see `rlsmooth.envs.snapshot`).

    Args:
        venv: a DummyVecEnv, or a SubprocVecEnv whose environments are wrapped in `rlsmooth.envs.Resumable`,
            inside any number of VecEnvWrappers (VecNormalize, VecMonitor, VecFrameStack, ...).

    Returns:
        `"wrappers"`, from the outside in; `"base"`; `"envs"`, one a member. What can't be kept is None there, and
        `"problem"` says why, else "".

    Example:
        >>> import gymnasium as gym
        >>> venv = DummyVecEnv([lambda: gym.make("CartPole-v1")]); _ = venv.reset()
        >>> state = vec_env_state(venv); state["problem"]
        ''
        >>> set_vec_env_state(venv, state)
        ''
    """
    *wrappers, base = _layers(venv)
    problems: list[str] = []
    state = {
        "wrappers": [_or_none(problems, partial(_wrapper_state, layer)) for layer in wrappers],
        "base": object_state(_Base(base), type(base).__name__),
        "envs": _or_none(problems, partial(_env_states, base)),
    }
    return {**state, "problem": " ".join(problems)}


def set_vec_env_state(venv: VecEnv, state: Mapping[str, Any]) -> str:
    """Put a VecEnv, built in the same way, into the state that `vec_env_state` gave.

    Returns:
        "", or why the environments could not be put back: reset the VecEnv then. Statistics of the wrappers have been.

    Raises:
        CannotSnapshotError: the wrappers are others.
    """
    *wrappers, base = _layers(venv)
    if len(wrappers) != len(state["wrappers"]):
        raise CannotSnapshotError(
            f"env has {len(wrappers)} VecEnvWrappers, the saved one had {len(state['wrappers'])}: wrap it as it was."
        )
    for layer, kept in zip(wrappers, state["wrappers"], strict=True):
        if kept is not None:
            set_object_state(layer, kept, type(layer).__name__)
    holder = _Base(base)
    set_object_state(holder, state["base"], type(base).__name__)
    base._seeds, base._options = holder.kept["_seeds"], holder.kept["_options"]
    if state["problem"]:
        return str(state["problem"])
    if base.num_envs != len(state["envs"]):
        return f"there were {len(state['envs'])} environments, and are {base.num_envs}"
    return _set_env_states(base, state["envs"])


def _wrapper_state(layer: VecEnv) -> dict[str, Any]:
    return object_state(layer, type(layer).__name__, leave=WRAPPER_LEAVES)


def _or_none(problems: list[str], read: Callable[[], Any]) -> Any:
    try:
        return read()
    except CannotSnapshotError as error:
        problems.append(str(error))
        return None


def _layers(venv: VecEnv) -> Iterator[VecEnv]:
    """The wrappers from the outside in, then what they wrap; without those of the moment."""
    while isinstance(venv, VecEnvWrapper):
        if not isinstance(venv, TransientVecEnvWrapper):
            yield venv
        venv = venv.venv
    yield venv


def _env_states(base: VecEnv) -> list[dict[str, Any]]:
    if isinstance(base, DummyVecEnv):
        return [env_state(env) for env in base.envs]
    _check_reachable(base)
    found = base.env_method("get_snapshot")
    for state, problem in found:
        if state is None:
            raise CannotSnapshotError(problem)
    return [state for state, _ in found]


def _set_env_states(base: VecEnv, states: list[dict[str, Any]]) -> str:
    try:
        if isinstance(base, DummyVecEnv):
            for env, kept in zip(base.envs, states, strict=True):
                set_env_state(env, kept)
            return ""
        _check_reachable(base)
    except CannotSnapshotError as error:
        return str(error)
    problems = [base.env_method("set_snapshot", kept, indices=[index])[0] for index, kept in enumerate(states)]
    return next((str(problem) for problem in problems if problem), "")


def _check_reachable(base: VecEnv) -> None:
    if not isinstance(base, SubprocVecEnv):
        raise CannotSnapshotError(f"env is a {type(base).__name__}: only DummyVecEnv and SubprocVecEnv are known.")
    if not all(base.env_is_wrapped(Resumable)):
        raise CannotSnapshotError(
            "the environments are in processes of their own: build them with make_vec_env(..., "
            "wrapper_class=rlsmooth.envs.Resumable)."
        )
