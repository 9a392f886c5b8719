"""What an algorithm knows besides its arguments and its policy: counters, optimisers, other modules and variables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.save_util import recursive_getattr
from torch import Tensor

from rlsmooth.agents.agent_file import load_parameters
from rlsmooth.agents.model_arguments import constructor_names
from rlsmooth.agents.model_classes import Algorithm
from rlsmooth.training import SafeFileError, load_optimizer, optimizer_to_tensors

__all__ = [
    "extra_modules",
    "load_extra_modules",
    "load_optimizers",
    "optimizers",
    "plain_attributes",
    "set_plain_attributes",
]

POLICY, POLICY_OPTIMIZER = "policy", "policy.optimizer"
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
    "ent_coef_optimizer",
    "entropy_target",
    "env",
    "ep_info_buffer",
    "ep_success_buffer",
    "log_ent_coef",
    "n_envs",
    "n_quantiles",
    "reference_policy",
    "replay_buffer",
    "rollout_buffer_class",
    "start_time",
    "verbose",
}


def plain_attributes(model: Algorithm) -> dict[str, int | float | bool]:
    """The counters and switches that an algorithm keeps besides its arguments: its attributes that are plain numbers.

    Example:
        >>> from stable_baselines3 import PPO
        >>> plain_attributes(PPO("MlpPolicy", "CartPole-v1"))["num_timesteps"]
        0
    """
    names = _counter_names(model)
    return {name: value for name, value in vars(model).items() if name in names and value is not None}


def set_plain_attributes(model: Algorithm, values: Mapping[str, Any]) -> None:
    """Put back what `plain_attributes` gave: only what the algorithm has under that name, and numbers only.

    Raises:
        ValueError: there is another name, or something that is no number.
    """
    allowed = _counter_names(model)
    for name, value in values.items():
        if name not in allowed or type(value) not in (bool, int, float):
            raise ValueError(f"{name}={value!r} is no counter of {type(model).__name__}: use another copy.")
        setattr(model, name, value)


def optimizers(model: Algorithm) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The state of all optimisers that the algorithm says it has, as JSON and tensors.

    Example:
        >>> from stable_baselines3 import SAC
        >>> sorted(optimizers(SAC("MlpPolicy", "Pendulum-v1", buffer_size=10))[0])
        ['actor.optimizer', 'critic.optimizer', 'ent_coef_optimizer']
    """
    names = _optimizer_names(model)
    if names == [POLICY_OPTIMIZER]:  # the form of on-policy algorithms' files
        tensors, config = optimizer_to_tensors(model.policy.optimizer)
        return config, tensors
    configs: dict[str, Any] = {}
    all_tensors: dict[str, Tensor] = {}
    for name in names:
        tensors, configs[name] = optimizer_to_tensors(recursive_getattr(model, name))
        all_tensors |= {f"{name}/{key}": tensor for key, tensor in tensors.items()}
    return configs, all_tensors


def load_optimizers(model: Algorithm, saved: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizers` gave.

    Args:
        model: which names the optimisers; the file does not.
        saved: the JSON.
        tensors: by name.

    Raises:
        ValueError: the algorithm has others, or a state does not fit.
    """
    names = _optimizer_names(model)
    if names == [POLICY_OPTIMIZER]:
        load_optimizer(model.policy.optimizer, tensors, saved)
        return
    if sorted(saved) != sorted(names):
        raise ValueError(f"the state is of the optimisers {sorted(saved)}, the algorithm has {sorted(names)}")
    for name in names:
        own = {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}
        load_optimizer(recursive_getattr(model, name), own, saved[name])


def extra_modules(model: Algorithm) -> tuple[dict[str, list[str]], dict[str, Tensor]]:
    """What the algorithm itself says that Stable-Baselines3's zip should hold, besides policy and optimisers.

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


def load_extra_modules(path: Path, model: Algorithm, saved: Any, tensors: Mapping[str, Tensor]) -> None:
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


def _counter_names(model: Algorithm) -> set[str]:
    excluded = {*constructor_names(type(model)), *NOT_COUNTERS}
    return {
        name
        for name, value in vars(model).items()
        if name not in excluded and (value is None or type(value) in (bool, int, float))
    }


def _extra_names(model: Algorithm) -> dict[str, list[str]]:
    modules, variables = model._get_torch_save_params()
    others = [name for name in modules if name != POLICY and not _is_optimizer(model, name)]
    return {"modules": others, "variables": list(variables)}


def _optimizer_names(model: Algorithm) -> list[str]:
    return [name for name in model._get_torch_save_params()[0] if _is_optimizer(model, name)]


def _is_optimizer(model: Algorithm, name: str) -> bool:
    return isinstance(recursive_getattr(model, name), torch.optim.Optimizer)
