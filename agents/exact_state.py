"""What a run of an algorithm stands on between two rollouts, as plain data, and back."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import Tensor

from rlsmooth.agents.model_classes import Algorithm
from rlsmooth.agents.policy_classes import resample_noise
from rlsmooth.agents.vec_env_snapshot import set_vec_env_state, vec_env_state
from rlsmooth.envs.snapshot import object_state, set_object_state
from rlsmooth.envs.snapshot_values import CannotSnapshotError, plain_value, value_from_plain

__all__ = [
    "action_noise_state",
    "interaction_state",
    "logger_state",
    "noise_state",
    "set_action_noise_state",
    "set_interaction_state",
    "set_logger_state",
    "set_noise_state",
]

NOISE = ("exploration_mat", "exploration_matrices")
SEEN = ("_last_obs", "_last_episode_starts", "_last_original_obs")


def interaction_state(model: Algorithm) -> dict[str, Any]:
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


def set_interaction_state(model: Algorithm, state: Mapping[str, Any]) -> str:
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


def noise_state(model: Algorithm) -> dict[str, Tensor]:
    """The noise that gSDE explores with during a rollout; `{}` without gSDE."""
    if not model.use_sde:
        return {}
    distribution = _noise_distribution(model)
    return {name: getattr(distribution, name) for name in NOISE}


def set_noise_state(model: Algorithm, noise: Mapping[str, Tensor] | None) -> None:
    """Put back what `noise_state` gave; None: draw it, as the start of a rollout does."""
    if not model.use_sde:
        return
    if noise is None:
        resample_noise(model.policy, model.n_envs)
        return
    distribution = _noise_distribution(model)
    for name in NOISE:
        setattr(distribution, name, noise[name].to(model.device))


def _noise_distribution(model: Algorithm) -> Any:
    owner: Any = model.actor if isinstance(model, OffPolicyAlgorithm) else model.policy
    return owner.action_dist


def action_noise_state(model: Algorithm) -> dict[str, Any] | None:
    """Where the noise that an off-policy algorithm adds to its actions stands; None without such noise.

    Raises:
        CannotSnapshotError: it is of a class of its own, which keeps what is no plain data.
    """
    noise = model.action_noise
    return None if noise is None else object_state(noise, "action_noise")


def set_action_noise_state(model: Algorithm, state: Mapping[str, Any] | None) -> None:
    """Put back what `action_noise_state` gave, in place.

    Args:
        model: in `learn`, which makes a noise for each environment.
        state: what `action_noise_state` gave.

    Raises:
        CannotSnapshotError: the noise is of another class, or there are others of it.
    """
    if (state is None) != (model.action_noise is None):
        raise CannotSnapshotError("the run and this algorithm don't both have an action_noise: build it as it was.")
    if state is not None:
        set_object_state(model.action_noise, state, "action_noise")


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
