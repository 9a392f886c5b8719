"""An algorithm's VecNormalize, replay buffer and action noise as JSON and tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.noise import (
    ActionNoise,
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    VectorizedActionNoise,
)
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import Tensor

from rlsmooth.agents.sb3 import noise_parameters
from rlsmooth.training import tree_from_json, tree_to_json
from rlsmooth.untrusted import Within, decode_fields

# ---- VecNormalize

SETTINGS: dict[str, Any] = {
    **dict.fromkeys(("training", "norm_obs", "norm_reward"), bool),
    **dict.fromkeys(("clip_obs", "clip_reward"), Annotated[float, Within(0, finite=False)]),
    **dict.fromkeys(("gamma", "epsilon"), float),
    "norm_obs_keys": list[str] | None,
}
"""The arguments of VecNormalize, with their kinds."""


def encode_normalization(normalizer: VecNormalize | None) -> tuple[Any, dict[str, Tensor]]:
    """Settings and statistics; None if there is no normaliser.

    Examples:
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


def normalization_settings(encoded: Any) -> dict[str, Any]:
    """The arguments of `VecNormalize` in what `encode_normalization` gave.

    Raises:
        KeyError, TypeError, ValueError: the data is malformed.

    Examples:
        >>> from stable_baselines3.common.env_util import make_vec_env
        >>> encoded, _ = encode_normalization(VecNormalize(make_vec_env("CartPole-v1"), gamma=0.9))
        >>> normalization_settings(encoded)["gamma"]
        0.9
    """
    return dict(decode_fields(SETTINGS, tree_from_json(encoded["settings"], {}), "settings"))


def apply_normalization(env: VecEnv, encoded: Any, tensors: Mapping[str, Tensor]) -> VecEnv:
    """The environment with the statistics: in its own VecNormalize if it has one, else wrapped in a new one.

    Args:
        env: the environment.
        encoded: what `encode_normalization` gave.
        tensors: those of `encode_normalization`.

    Raises:
        KeyError, TypeError, ValueError: the data is malformed, or of other observations, or one of the two normalises
            observations and the other does not.
    """
    settings = normalization_settings(encoded)
    state = tree_from_json(encoded, {name: tensor.cpu() for name, tensor in tensors.items()})
    layer: Any = env
    while not isinstance(layer, VecNormalize) and getattr(layer, "venv", None) is not None:
        layer = layer.venv
    if not isinstance(layer, VecNormalize):
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

    Examples:
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


# ---- replay buffers

KNOWN_BUFFERS = (ReplayBuffer, DictReplayBuffer, NStepReplayBuffer)
"""They keep the reward of each step with its transition; a file may name them."""

ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def has_automatic_buffer(algorithm: OffPolicyAlgorithm) -> bool:
    """Whether the algorithm would choose the same replay buffer, steps and discount of its returns included.

    Examples:
        >>> from stable_baselines3 import DQN
        >>> own = {"replay_buffer_class": NStepReplayBuffer, "replay_buffer_kwargs": {"n_steps": 7, "gamma": 0.5}}
        >>> has_automatic_buffer(DQN("MlpPolicy", "CartPole-v1", buffer_size=10, **own))
        False
    """
    automatic: type[ReplayBuffer] = NStepReplayBuffer if algorithm.n_steps > 1 else ReplayBuffer
    if isinstance(algorithm.observation_space, spaces.Dict):
        automatic = DictReplayBuffer
    if algorithm.replay_buffer_class is not automatic:
        return False
    buffer, own = algorithm.replay_buffer, (algorithm.n_steps, algorithm.gamma)
    return not isinstance(buffer, NStepReplayBuffer) or (buffer.n_steps, buffer.gamma) == own


def check_buffer(name: str, buffer: object) -> ReplayBuffer:
    """The buffer, if it is of a kind whose content can be kept.

    Args:
        name: what errors call it.
        buffer: of an algorithm.

    Raises:
        TypeError: it is of another class, such as HerReplayBuffer, or saves memory by sharing its observations.
    """
    if type(buffer) not in KNOWN_BUFFERS:
        known = ", ".join(kind.__name__ for kind in KNOWN_BUFFERS)
        raise TypeError(f"{name} is a {type(buffer).__name__}: only {known} can be kept in a file.")
    assert isinstance(buffer, ReplayBuffer)
    if buffer.optimize_memory_usage:
        raise TypeError(f"{name} has optimize_memory_usage=True: it can't be kept in a file. Set it to False.")
    return buffer


def buffer_state(buffer: ReplayBuffer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The position in the buffer and its transitions so far, not copied.

    Returns:
        JSON, and the tensors, `[steps, environments, ...]`.

    Raises:
        TypeError: the buffer is of a kind that `check_buffer` refuses.

    Examples:
        >>> from stable_baselines3 import DQN
        >>> model = DQN("MlpPolicy", "CartPole-v1", learning_starts=50).learn(20)
        >>> head, tensors = buffer_state(model.replay_buffer)
        >>> head["place"], tensors["observations"].shape
        (20, torch.Size([20, 1, 4]))
    """
    check_buffer("replay_buffer", buffer)
    steps = buffer.size()
    arrays = _arrays(buffer)
    head = {
        "class": type(buffer).__name__,
        "place": int(buffer.pos),
        "is_full": bool(buffer.full),
        "shapes": {name: list(array.shape) for name, array in arrays.items()},
    }
    return head, {name: torch.from_numpy(array[:steps]) for name, array in arrays.items()}


def set_buffer_state(buffer: Any, head: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Restore `buffer_state`, into a buffer of the same size, in place.

    Raises:
        TypeError: the buffer is of a kind that `check_buffer` refuses.
        ValueError: the buffer is of another class or size, or the data is malformed.
    """
    buffer = check_buffer("replay_buffer", buffer)
    arrays = _arrays(buffer)
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    if (head["class"], head["shapes"]) != (type(buffer).__name__, shapes):
        raise ValueError(
            f"the saved replay buffer is a {head['class']} with arrays {head['shapes']}, the algorithm's is a "
            f"{type(buffer).__name__} with {shapes}: give as many environments and the same buffer_size."
        )
    place, is_full = head["place"], head["is_full"]
    if not (type(place) is int and 0 <= place < buffer.buffer_size and isinstance(is_full, bool)):
        raise ValueError(f"the saved replay buffer stands at {place!r} of {buffer.buffer_size}: use another copy.")
    steps = buffer.buffer_size if is_full else place
    kept = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    expected = {name: ([steps, *array.shape[1:]], array.dtype) for name, array in arrays.items()}
    if {name: (list(array.shape), array.dtype) for name, array in kept.items()} != expected:
        raise ValueError("the saved replay buffer has arrays of other shapes or dtypes: use another copy.")
    used = buffer.size()
    for name, array in arrays.items():
        array[:steps] = kept[name]
        array[steps:used] = 0  # writing to the others would take the memory that the system has not yet given
    buffer.pos, buffer.full = place, is_full


def cut_off_episodes(buffer: ReplayBuffer) -> None:
    """Truncate the episodes that are under way at the last step, as a time limit would, in place.

    For environments that begin new episodes: otherwise a return of n steps would lead from one into the other.

    Examples:
        >>> from stable_baselines3 import DQN
        >>> model = DQN("MlpPolicy", "CartPole-v1", learning_starts=50, seed=0).learn(4)
        >>> cut_off_episodes(model.replay_buffer)
        >>> model.replay_buffer.timeouts[:5, 0].tolist()
        [0.0, 0.0, 0.0, 1.0, 0.0]
    """
    if buffer.size():
        last = (buffer.pos - 1) % buffer.buffer_size
        buffer.timeouts[last] = np.logical_or(buffer.timeouts[last], buffer.dones[last] == 0)


def _arrays(buffer: ReplayBuffer) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for name in ARRAYS:
        value: Any = getattr(buffer, name)
        parts: dict[str, NDArray[np.generic]] = value if isinstance(value, dict) else {"": value}
        arrays |= {f"{name}/{key}" if key else name: array for key, array in parts.items()}
    return arrays


# ---- action noise

NORMAL, ORNSTEIN_UHLENBECK = "normal", "ornstein_uhlenbeck"


def noise_to_plain(noise: ActionNoise) -> dict[str, Any] | None:
    """The arguments of the noise's constructor, as JSON with tensors; None for a noise of another class.

    Of the noises of several environments the one that all are copies of is kept: `learn` makes as many as it needs.

    Examples:
        >>> noise = NormalActionNoise(np.zeros(2), 0.1 * np.ones(2))
        >>> noise_from_plain(noise_to_plain(noise))
        NormalActionNoise(mu=[0. 0.], sigma=[0.1 0.1])
    """
    if type(noise) is VectorizedActionNoise:
        base = noise_to_plain(noise.base_noise)
        return base if base is not None and all(_is_alike(base, each) for each in noise.noises) else None
    if type(noise) is not NormalActionNoise and type(noise) is not OrnsteinUhlenbeckActionNoise:
        return None
    found = noise_parameters(noise)
    settings = {"mean": found["mean"], "sigma": found["sigma"]}
    head = {"class": NORMAL, "dtype": np.dtype(found["dtype"]).str}
    if type(noise) is NormalActionNoise:
        return {**head, **_tensors(settings)}
    assert type(noise) is OrnsteinUhlenbeckActionNoise
    settings["initial_noise"] = noise.initial_noise
    numbers = {"theta": found["theta"], "dt": found["dt"]}
    return {**head, "class": ORNSTEIN_UHLENBECK, **_tensors(settings), **numbers}


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
