"""Arguments that only off-policy algorithms take, as plain data and back: noise, training frequency, replay buffer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.noise import (
    ActionNoise,
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    VectorizedActionNoise,
)
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

__all__ = ["BUFFERS", "automatic_buffer_class", "has_automatic_buffer", "noise_from_plain", "noise_to_plain"]

BUFFERS = {kind.__name__: kind for kind in (ReplayBuffer, DictReplayBuffer, NStepReplayBuffer)}
"""Replay buffers that a file may name."""
NORMAL, ORNSTEIN_UHLENBECK = "normal", "ornstein_uhlenbeck"


def automatic_buffer_class(model: OffPolicyAlgorithm) -> type[ReplayBuffer]:
    """The class of replay buffer that the algorithm takes if it is given none.

    Example:
        >>> from stable_baselines3 import DQN
        >>> automatic_buffer_class(DQN("MlpPolicy", "CartPole-v1", buffer_size=10, n_steps=3)).__name__
        'NStepReplayBuffer'
    """
    if isinstance(model.observation_space, spaces.Dict):
        return DictReplayBuffer
    return NStepReplayBuffer if model.n_steps > 1 else ReplayBuffer


def has_automatic_buffer(model: OffPolicyAlgorithm) -> bool:
    """Whether the algorithm would choose the same replay buffer, steps and discount of its returns included.

    Example:
        >>> from stable_baselines3 import DQN
        >>> own = {"replay_buffer_class": NStepReplayBuffer, "replay_buffer_kwargs": {"n_steps": 7, "gamma": 0.5}}
        >>> has_automatic_buffer(DQN("MlpPolicy", "CartPole-v1", buffer_size=10, **own))
        False
    """
    if model.replay_buffer_class is not automatic_buffer_class(model):
        return False
    buffer = model.replay_buffer
    return not isinstance(buffer, NStepReplayBuffer) or (buffer.n_steps, buffer.gamma) == (model.n_steps, model.gamma)


def noise_to_plain(noise: ActionNoise) -> dict[str, Any] | None:
    """What the noise's constructor took, as JSON with tensors; None for a noise of another class.

    Of the noises of several environments the one that all are copies of is kept: `learn` makes as many as it needs.

    Example:
        >>> noise = NormalActionNoise(np.zeros(2), 0.1 * np.ones(2))
        >>> noise_from_plain(noise_to_plain(noise))
        NormalActionNoise(mu=[0. 0.], sigma=[0.1 0.1])
    """
    if type(noise) is VectorizedActionNoise:
        base = noise_to_plain(noise.base_noise)
        return base if base is not None and all(_is_alike(base, each) for each in noise.noises) else None
    if type(noise) is NormalActionNoise:
        return {
            "class": NORMAL,
            "dtype": np.dtype(noise._dtype).str,
            **_tensors({"mean": noise._mu, "sigma": noise._sigma}),
        }
    if type(noise) is OrnsteinUhlenbeckActionNoise:
        settings: dict[str, Any] = {"mean": noise._mu, "sigma": noise._sigma, "initial_noise": noise.initial_noise}
        numbers = {"theta": float(noise._theta), "dt": float(noise._dt)}
        return {"class": ORNSTEIN_UHLENBECK, "dtype": np.dtype(noise._dtype).str, **_tensors(settings), **numbers}
    return None


def noise_from_plain(plain: Any) -> ActionNoise:
    """The noise that `noise_to_plain` was given.

    Raises:
        KeyError, TypeError, ValueError: the data is malformed.
    """
    dtype = np.dtype(str(plain["dtype"]))
    if dtype.kind != "f":
        raise ValueError(f"the noise's dtype is {dtype}: it must be a float")
    mean, sigma = _array(plain["mean"]), _array(plain["sigma"])
    if plain["class"] == NORMAL:
        return NormalActionNoise(mean, sigma, dtype.type)
    if plain["class"] != ORNSTEIN_UHLENBECK:
        raise ValueError(f"the noise is a {plain['class']!r}: known are {NORMAL!r} and {ORNSTEIN_UHLENBECK!r}")
    initial = None if plain["initial_noise"] is None else _array(plain["initial_noise"])
    theta, dt = float(plain["theta"]), float(plain["dt"])
    return OrnsteinUhlenbeckActionNoise(mean, sigma, theta, dt, initial, dtype.type)


def _is_alike(base: dict[str, Any], noise: ActionNoise) -> bool:
    other = noise_to_plain(noise)
    return other is not None and other.keys() == base.keys() and all(_is_equal(other[key], base[key]) for key in base)


def _is_equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)


def _tensors(settings: dict[str, Any]) -> dict[str, torch.Tensor | None]:
    return {name: None if value is None else torch.as_tensor(np.array(value)) for name, value in settings.items()}


def _array(tensor: Any) -> Any:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"the noise has a {type(tensor).__name__} in place of an array")
    return tensor.cpu().numpy()
