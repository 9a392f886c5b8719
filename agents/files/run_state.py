"""Capture and restore a run's state between two rollouts: environments, last observations, noise, log values."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper
from torch import Tensor

from rlsmooth.agents.files.algorithm_file import Algorithm
from rlsmooth.agents.files.policy_file import resample_noise
from rlsmooth.agents.sb3 import lstm_states, set_lstm_states, set_pending_reset, stats_window_size
from rlsmooth.envs.snapshot import (
    Resumable,
    env_state,
    object_state,
    set_env_state,
    set_object_state,
)
from rlsmooth.envs.snapshot_values import (
    CannotSnapshotError,
    Same,
    class_name,
    decode_value,
    encode_value,
    plain_value,
    value_from_plain,
)
from rlsmooth.envs.vector_bridge import VectorEnvBridge
from rlsmooth.untrusted import refused

TENSOR = "tensor"
DTYPES = {
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
}


def state_to_tree(state: Any, where: str) -> Any:
    """A callback's state as a tree of plain data and arrays; tensors are copied to the CPU.

    Args:
        state: numbers, text, arrays, tensors, random generators of numpy and of Python, containers of these.
        where: what errors call it.

    Raises:
        CannotSnapshotError: there is something else in it.

    Examples:
        >>> state_from_tree(state_to_tree({"weight": torch.ones(2), "rounds": (3,)}, "state"))
        {'weight': tensor([1., 1.]), 'rounds': (3,)}
    """
    return _encode(state, where, Same())


def state_from_tree(tree: Any) -> Any:
    """The state that `state_to_tree` was given.

    Raises:
        CannotSnapshotError: the tree is malformed.
    """
    with refused("the state", CannotSnapshotError):
        return _decode(tree, None, "the state", {})


def _encode(value: Any, where: str, same: Same) -> Any:
    if isinstance(value, Tensor):
        if value.dtype not in DTYPES:
            raise CannotSnapshotError(f"{where} is a tensor of {value.dtype}, which numpy lacks: convert it first.")
        return {"kind": TENSOR, "array": value.detach().cpu().numpy().copy()}
    encoded = encode_value(value, where, same, _encode)
    if encoded is NotImplemented:
        raise CannotSnapshotError(f"{where} is a {class_name(value)}, which is no plain data.")
    return encoded


def _decode(encoded: Any, current: Any, where: str, made: dict[int, Any]) -> Any:
    if isinstance(encoded, dict) and encoded["kind"] == TENSOR:
        return torch.from_numpy(np.asarray(encoded["array"]).copy())
    return decode_value(encoded, current, where, made, _decode)


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


# ---- environments

# A wrapper's link to the wrapped VecEnv, and attributes that every step overwrites.
WRAPPER_LEAVES = ("venv", "class_attributes", "reset_infos", "metadata")
BASE_KEPT = ("observation_space", "action_space", "_seeds", "_options")


class TransientVecEnvWrapper(VecEnvWrapper):
    """Marks a wrapper that is there for the time of one `learn` only: snapshots pass it over.

    The trainer that puts it there keeps its state in a callback (see `exact_checkpoint.HasExactState`).
    """


class _Base:
    """The kept attributes of the innermost VecEnv itself. Checkpoints hold the class's name."""

    def __init__(self, venv: VecEnv) -> None:
        self.kept = {name: getattr(venv, name) for name in BASE_KEPT}


def vec_env_state(venv: VecEnv) -> dict[str, Any]:
    """The state of a VecEnv as plain data (see `rlsmooth.envs.snapshot`).

    Args:
        venv: a DummyVecEnv, a VectorEnvBridge, or a SubprocVecEnv whose environments are wrapped in
            `rlsmooth.envs.Resumable`, inside any number of VecEnvWrappers (VecNormalize, VecMonitor, ...).

    Returns:
        `"wrappers"`, from the outside in; `"base"`; `"envs"`, one a member (of a VectorEnvBridge one for all). A part
        that can't be kept is None, and `"problem"` says why, else "".

    Examples:
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
        "", or why the environments could not be restored: reset the VecEnv then. The wrappers' statistics are restored.

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
    set_pending_reset(base, holder.kept["_seeds"], holder.kept["_options"])
    if state["problem"]:
        return str(state["problem"])
    kept = state["envs"][0].get("num_envs", len(state["envs"])) if state["envs"] else 0
    if base.num_envs != kept:
        return f"there were {kept} environments, and are {base.num_envs}"
    if isinstance(base, VectorEnvBridge) != ("num_envs" in state["envs"][0]):
        return "the environments were vectorised in another way: give them as they were"
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
    """The wrappers from the outside in, then the wrapped VecEnv; without transient wrappers."""
    while isinstance(venv, VecEnvWrapper):
        if not isinstance(venv, TransientVecEnvWrapper):
            yield venv
        venv = venv.venv
    yield venv


def _env_states(base: VecEnv) -> list[dict[str, Any]]:
    if isinstance(base, DummyVecEnv):
        return [env_state(env) for env in base.envs]
    if isinstance(base, VectorEnvBridge):
        return [base.get_snapshot()]
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
        if isinstance(base, VectorEnvBridge):
            base.set_snapshot(states[0])
            return ""
        _check_reachable(base)
    except CannotSnapshotError as error:
        return str(error)
    problems = [base.env_method("set_snapshot", kept, indices=[index])[0] for index, kept in enumerate(states)]
    return next((str(problem) for problem in problems if problem), "")


def _check_reachable(base: VecEnv) -> None:
    if not isinstance(base, SubprocVecEnv):
        raise CannotSnapshotError(
            f"env is a {type(base).__name__}: only DummyVecEnv, SubprocVecEnv and VectorEnvBridge are known."
        )
    if not all(base.env_is_wrapped(Resumable)):
        raise CannotSnapshotError(
            "the environments are in processes of their own: build them with make_vec_env(..., "
            "wrapper_class=rlsmooth.envs.Resumable)."
        )


# ---- the algorithm

NOISE = ("exploration_mat", "exploration_matrices")
SEEN = ("_last_obs", "_last_episode_starts", "_last_original_obs")


def interaction_state(algorithm: Algorithm) -> dict[str, Any]:
    """Where the algorithm and its environments are in their episodes, between two rollouts."""
    assert algorithm.env is not None
    infos = list(algorithm.ep_info_buffer or ())
    try:
        episodes = plain_value(infos, "ep_info_buffer")
    except CannotSnapshotError:  # info_keywords of the user's own
        episodes = plain_value([{key: info[key] for key in "rlt" if key in info} for info in infos], "ep_info_buffer")
    last = lstm_states(algorithm)
    flat = None if last is None else [state.cpu().numpy() for pair in last for state in pair]
    return {
        "env": vec_env_state(algorithm.env),
        "seen": {name: plain_value(getattr(algorithm, name), name) for name in SEEN},
        "episodes": episodes,
        "successes": plain_value([bool(success) for success in algorithm.ep_success_buffer or ()], "ep_success_buffer"),
        "lstm_states": plain_value(flat, "lstm_states"),
    }


def set_interaction_state(algorithm: Algorithm, state: Mapping[str, Any]) -> str:
    """Restore `interaction_state`.

    Returns:
        "", or why the environments could not be restored: `learn` then starts new episodes.

    Raises:
        CannotSnapshotError: wrappers of the environment differ, or the data is malformed.
    """
    assert algorithm.env is not None
    window = stats_window_size(algorithm)
    episodes = value_from_plain(state["episodes"])
    if not all(isinstance(episode.get(key), (int, float, np.number)) for episode in episodes for key in "rl"):
        raise CannotSnapshotError("the last episodes have no returns and lengths.")
    algorithm.ep_info_buffer = deque(episodes, maxlen=window)
    algorithm.ep_success_buffer = deque(value_from_plain(state["successes"]), maxlen=window)
    flat = value_from_plain(state["lstm_states"])
    if flat is not None:
        states = lstm_states(algorithm)
        pairs = [tuple(torch.from_numpy(array).to(algorithm.device) for array in flat[i : i + 2]) for i in (0, 2)]
        if [tensor.shape for pair in states for tensor in pair] != [tensor.shape for pair in pairs for tensor in pair]:
            raise CannotSnapshotError("the states of the LSTM have other shapes: give as many environments as before.")
        set_lstm_states(algorithm, type(states)(*pairs))
    problem = set_vec_env_state(algorithm.env, state["env"])
    for name in SEEN:
        value = None if problem else value_from_plain(state["seen"][name])
        _check_seen(name, value, algorithm.n_envs)
        setattr(algorithm, name, value)
    return problem


def _check_seen(name: str, value: Any, n_envs: int) -> None:
    """Raise CannotSnapshotError unless the value is None, or has arrays with an entry for each environment."""
    for part in value.values() if isinstance(value, dict) else () if value is None else (value,):
        if not isinstance(part, np.ndarray) or part.shape[:1] != (n_envs,):
            raise CannotSnapshotError(f"{name} is no array with an entry for each of {n_envs} environments.")


def noise_state(algorithm: Algorithm) -> dict[str, Tensor]:
    """The noise that gSDE explores with during a rollout; `{}` without gSDE."""
    if not algorithm.use_sde:
        return {}
    distribution = _noise_distribution(algorithm)
    return {name: getattr(distribution, name) for name in NOISE}


def set_noise_state(algorithm: Algorithm, noise: Mapping[str, Tensor] | None) -> None:
    """Restore `noise_state`; None: draw it, as the start of a rollout does."""
    if not algorithm.use_sde:
        return
    if noise is None:
        resample_noise(algorithm.policy, algorithm.n_envs)
        return
    distribution = _noise_distribution(algorithm)
    for name in NOISE:
        setattr(distribution, name, noise[name].to(algorithm.device))


def _noise_distribution(algorithm: Algorithm) -> Any:
    owner: Any = algorithm.actor if isinstance(algorithm, OffPolicyAlgorithm) else algorithm.policy
    return owner.action_dist


def action_noise_state(algorithm: Algorithm) -> dict[str, Any] | None:
    """The state of the noise that an off-policy algorithm adds to its actions; None without such noise.

    Raises:
        CannotSnapshotError: it is of the user's own class and keeps something else than plain data.
    """
    noise = algorithm.action_noise
    return None if noise is None else object_state(noise, "action_noise")


def set_action_noise_state(algorithm: Algorithm, state: Mapping[str, Any] | None) -> None:
    """Restore `action_noise_state`, in place.

    Only within `learn`, which makes a noise for each environment.

    Raises:
        CannotSnapshotError: the noise is of another class, or there are others of it.
    """
    if (state is None) != (algorithm.action_noise is None):
        raise CannotSnapshotError("the run and this algorithm don't both have an action_noise: build it as it was.")
    if state is not None:
        set_object_state(algorithm.action_noise, state, "action_noise")


def logger_state(logger: Logger) -> dict[str, Any]:
    """The numbers and text recorded since the last dump."""
    kept = {
        name: value for name, value in logger.name_to_value.items() if isinstance(value, (str, int, float, np.number))
    }
    return {
        "values": plain_value(kept, "logger"),
        "counts": {name: logger.name_to_count[name] for name in kept if name in logger.name_to_count},
        "excluded": plain_value({name: logger.name_to_excluded.get(name) for name in kept}, "logger"),
    }


def set_logger_state(logger: Logger, state: Mapping[str, Any]) -> None:
    """Restore `logger_state`, into a logger that has recorded nothing."""
    logger.name_to_value.update(value_from_plain(state["values"]))
    logger.name_to_count.update(state["counts"])
    excluded = value_from_plain(state["excluded"])
    logger.name_to_excluded.update({name: value for name, value in excluded.items() if value is not None})
