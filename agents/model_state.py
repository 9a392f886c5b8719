"""What an on-policy algorithm knows besides its arguments, its policy and its optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.save_util import recursive_getattr
from torch import Tensor

from rlsmooth.agents.agent_file import load_parameters
from rlsmooth.agents.model_arguments import constructor_names
from rlsmooth.training import SafeFileError

__all__ = ["extra_modules", "load_extra_modules", "plain_attributes", "set_plain_attributes"]

STANDARD_MODULES = ("policy", "policy.optimizer")
# Numbers that are no counters, and objects that may be None.
NOT_COUNTERS = {
    "_custom_logger",
    "_last_episode_starts",
    "_last_lstm_states",
    "_last_obs",
    "_last_original_obs",
    "_stats_window_size",
    "_vec_normalize_env",
    "action_noise",
    "clip_range_vf",
    "entropy_target",
    "env",
    "ep_info_buffer",
    "ep_success_buffer",
    "n_envs",
    "reference_policy",
    "rollout_buffer_class",
    "start_time",
    "verbose",
}


def plain_attributes(model: OnPolicyAlgorithm) -> dict[str, int | float | bool]:
    """The counters and switches that an algorithm keeps besides its arguments: its attributes that are plain numbers.

    Example:
        >>> from stable_baselines3 import PPO
        >>> plain_attributes(PPO("MlpPolicy", "CartPole-v1"))["num_timesteps"]
        0
    """
    names = _counter_names(model)
    return {name: value for name, value in vars(model).items() if name in names and value is not None}


def set_plain_attributes(model: OnPolicyAlgorithm, values: Mapping[str, Any]) -> None:
    """Put back what `plain_attributes` gave: only what the algorithm has under that name, and numbers only.

    Raises:
        ValueError: there is another name, or something that is no number.
    """
    allowed = _counter_names(model)
    for name, value in values.items():
        if name not in allowed or type(value) not in (bool, int, float):
            raise ValueError(f"{name}={value!r} is no counter of {type(model).__name__}: use another copy.")
        setattr(model, name, value)


def extra_modules(model: OnPolicyAlgorithm) -> tuple[dict[str, list[str]], dict[str, Tensor]]:
    """What the algorithm itself says that Stable-Baselines3's zip should hold, besides policy and optimiser.

    Example:
        >>> from stable_baselines3 import PPO
        >>> extra_modules(PPO("MlpPolicy", "CartPole-v1"))
        ({'modules': [], 'variables': []}, {})
    """
    names = _extra_names(model)
    tensors = {f"variable/{name}": recursive_getattr(model, name).data for name in names["variables"]}
    for name in names["modules"]:
        state = recursive_getattr(model, name).state_dict()
        tensors |= {f"module/{name}/{key}": tensor for key, tensor in state.items()}
    return names, tensors


def load_extra_modules(path: Path, model: OnPolicyAlgorithm, saved: Any, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `extra_modules` gave.

    Args:
        path: what errors call the file.
        model: which names the attributes; the file does not.
        saved: the names in the file.
        tensors: by name.

    Raises:
        SafeFileError: the file holds others, or of other shapes.
    """
    names = _extra_names(model)
    if saved != names:
        raise SafeFileError(f"{str(path)!r} holds {saved}, and the algorithm has {names}. Use another copy.")
    for name in names["modules"]:
        prefix = f"module/{name}/"
        state = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        load_parameters(path, recursive_getattr(model, name), state)
    for name in names["variables"]:
        value, own = tensors.get(f"variable/{name}"), recursive_getattr(model, name)
        if value is None or value.shape != own.shape:
            raise SafeFileError(f"{str(path)!r} lacks {name} of shape {tuple(own.shape)}. Use another copy.")
        own.data.copy_(value)


def _counter_names(model: OnPolicyAlgorithm) -> set[str]:
    excluded = {*constructor_names(type(model)), *NOT_COUNTERS}
    return {
        name
        for name, value in vars(model).items()
        if name not in excluded and (value is None or type(value) in (bool, int, float))
    }


def _extra_names(model: OnPolicyAlgorithm) -> dict[str, list[str]]:
    modules, variables = model._get_torch_save_params()
    return {"modules": [name for name in modules if name not in STANDARD_MODULES], "variables": list(variables)}
