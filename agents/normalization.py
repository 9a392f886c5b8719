"""Running statistics of VecNormalize as JSON and tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import Tensor

from rlsmooth.training import tree_from_json, tree_to_json

__all__ = ["apply_normalization", "encode_normalization", "observations_differ"]

SETTINGS = ("training", "norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs_keys")


def encode_normalization(normalizer: VecNormalize | None) -> tuple[Any, dict[str, Tensor]]:
    """Settings and statistics; None if there is no normaliser.

    Example:
        >>> encode_normalization(None)
        (None, {})
    """
    if normalizer is None:
        return None, {}
    observations: Any = None
    if normalizer.norm_obs:
        statistics: Any = normalizer.obs_rms
        observations = (
            {"keys": {key: _plain(value) for key, value in statistics.items()}}
            if isinstance(statistics, dict)
            else _plain(statistics)
        )
    settings = {name: getattr(normalizer, name) for name in SETTINGS}
    return tree_to_json(
        {"settings": settings, "observations": observations, "returns": _plain(normalizer.ret_rms)}, "normalization"
    )


def apply_normalization(env: VecEnv, encoded: Any, tensors: Mapping[str, Tensor]) -> VecEnv:
    """The environment with the statistics: in its own VecNormalize if it has one, else wrapped in a new one.

    Args:
        env: the environment.
        encoded: what `encode_normalization` gave.
        tensors: likewise.

    Raises:
        KeyError, TypeError, ValueError: the data is malformed, or of other observations, or one of the two normalises
            observations and the other does not.
    """
    state = tree_from_json(encoded, {name: tensor.cpu() for name, tensor in tensors.items()})
    layer: Any = env
    while not isinstance(layer, VecNormalize) and getattr(layer, "venv", None) is not None:
        layer = layer.venv
    if not isinstance(layer, VecNormalize):
        settings = {name: state["settings"][name] for name in SETTINGS}
        env = layer = VecNormalize(env, **settings)
    _fill(layer.ret_rms, state["returns"])
    observations = state["observations"]
    if (observations is not None) != layer.norm_obs:
        raise ValueError(
            f"VecNormalize has norm_obs={layer.norm_obs}, and the agent was trained with {not layer.norm_obs}"
        )
    if observations is None:
        return env
    if "keys" in observations:
        if set(observations["keys"]) != set(layer.obs_rms):
            raise ValueError(f"VecNormalize has the keys {sorted(layer.obs_rms)}, not {sorted(observations['keys'])}")
        for key, values in observations["keys"].items():
            _fill(layer.obs_rms[key], values)
    else:
        _fill(layer.obs_rms, observations)
    return env


def observations_differ(one: VecNormalize, other: VecNormalize) -> str:
    """Which setting or statistic makes the two show the same observation differently, with both values; "" if none.

    Example:
        >>> from stable_baselines3.common.env_util import make_vec_env
        >>> envs = [make_vec_env("CartPole-v1") for _ in range(2)]
        >>> observations_differ(VecNormalize(envs[0]), VecNormalize(envs[1], clip_obs=5.0))
        'clip_obs is 10.0 in one, 5.0 in the other'
    """
    names = ("norm_obs", "clip_obs", "epsilon") if one.norm_obs or other.norm_obs else ()
    for name in names:
        if getattr(one, name) != getattr(other, name):
            return f"{name} is {getattr(one, name)} in one, {getattr(other, name)} in the other"
    if not names:
        return ""
    of_one, of_other = _statistics(one), _statistics(other)
    if set(of_one) != set(of_other):
        return f"norm_obs_keys is {sorted(of_one)} in one, {sorted(of_other)} in the other"
    for key, statistics in of_one.items():
        for name in ("mean", "var"):
            values = getattr(statistics, name), getattr(of_other[key], name)
            if not np.array_equal(*values):
                where = f"obs_rms[{key!r}].{name}" if key else f"obs_rms.{name}"
                return f"{where} is {values[0]} in one, {values[1]} in the other"
    return ""


def _statistics(normalizer: VecNormalize) -> dict[str, RunningMeanStd]:
    found: Any = normalizer.obs_rms
    return found if isinstance(found, dict) else {"": found}


def _plain(statistics: RunningMeanStd) -> dict[str, Any]:
    return {
        "mean": torch.tensor(statistics.mean, dtype=torch.float64),
        "var": torch.tensor(statistics.var, dtype=torch.float64),
        "count": float(statistics.count),
    }


def _fill(statistics: RunningMeanStd, values: Mapping[str, Any]) -> None:
    mean, var = values["mean"].numpy().copy(), values["var"].numpy().copy()
    if mean.shape != statistics.mean.shape or var.shape != statistics.var.shape:
        raise ValueError(f"VecNormalize has statistics of shape {statistics.mean.shape}, not {mean.shape}")
    statistics.mean, statistics.var, statistics.count = mean, var, float(values["count"])
