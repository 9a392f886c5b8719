"""Agent files for algorithms of Stable-Baselines3: save and load without pickle, beside SB3's own zip.

    save_agent(model, "agent.zip")
    model = load_agent("agent.zip", env=env)

for PPO, A2C, TRPO, MaskablePPO, RecurrentPPO and ours, and for DQN, DDPG, SAC, TD3, CrossQ, QRDQN and TQC; the file of
a BC gives a BC.

A file holds weights, optimisers, arguments, counters, VecNormalize's statistics, and what our algorithms keep besides
(adaptive coefficient, warm-up, reference policy); the replay buffer only if you ask for it. Loading runs no code that
the file could name. See `agent_file`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.noise import (
    ActionNoise,
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    VectorizedActionNoise,
)
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.type_aliases import GymEnv, TrainFreq
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from torch import Tensor

from rlsmooth.agents.cloning.bc import BC
from rlsmooth.agents.files.algorithm_state import (
    apply_normalization,
    buffer_state,
    check_buffer,
    cut_off_episodes,
    encode_normalization,
    set_buffer_state,
)
from rlsmooth.agents.files.known_classes import resample_noise
from rlsmooth.agents.files.policy_file import (
    AgentFile,
    agent_from_safe_file,
    custom_name,
    decode_arguments,
    encode_arguments,
    load_parameters,
    mark_custom,
    read_agent_file,
    save_agent_file,
)
from rlsmooth.agents.sb3 import noise_parameters, set_up_model, torch_parts
from rlsmooth.agents.spaces import check_same_spaces, wrap_env
from rlsmooth.targets import Smoothing
from rlsmooth.training import (
    SafeFileError,
    isolated_rng,
    load_optimizer,
    optimizer_to_tensors,
    tree_from_json,
    tree_to_json,
)

__all__ = [
    "ALGORITHM_BASES",
    "BUFFERS",
    "KNOWN_ALGORITHMS",
    "Algorithm",
    "automatic_buffer_class",
    "constructor_names",
    "decode_model_arguments",
    "encode_model_arguments",
    "extra_modules",
    "has_automatic_buffer",
    "listed_algorithm",
    "load_agent",
    "load_extra_modules",
    "load_optimizers",
    "model_arguments",
    "model_class_by_name",
    "noise_from_plain",
    "noise_to_plain",
    "optimizers",
    "plain_attributes",
    "save_agent",
    "set_plain_attributes",
]


Algorithm: TypeAlias = OnPolicyAlgorithm | OffPolicyAlgorithm
ALGORITHM_BASES = (OnPolicyAlgorithm, OffPolicyAlgorithm)
"""What every algorithm here is one of."""

STANDARD: tuple[type[Algorithm], ...] = (A2C, PPO, DDPG, DQN, SAC, TD3)
SB3: dict[str, type[Algorithm]] = {algorithm.__name__: algorithm for algorithm in STANDARD}
CONTRIB = ("MaskablePPO", "RecurrentPPO", "TRPO", "CrossQ", "QRDQN", "TQC")
SMOOTHED = ("SmoothedA2C", "SmoothedPPO")
SMOOTHED_CONTRIB = ("SmoothedMaskablePPO", "SmoothedRecurrentPPO")
LIBRARIES = ("rlsmooth", "sb3_contrib", "stable_baselines3")
KNOWN_ALGORITHMS = (*SB3, *CONTRIB, *SMOOTHED, *SMOOTHED_CONTRIB)
"""Their short names."""


def model_class_by_name(name: Any) -> type[Algorithm]:
    """The algorithm of that short name.

    Args:
        name: anything that a file may hold; only the names of the tables above are known.

    Raises:
        ValueError: the name is not known, or it needs sb3-contrib, which is not installed.

    Example:
        >>> model_class_by_name("PPO").__name__
        'PPO'
    """
    if not (isinstance(name, str) and name in KNOWN_ALGORITHMS):
        raise ValueError(f"the algorithm {name!r} is not known (known: {', '.join(KNOWN_ALGORITHMS)}).")
    try:
        return SB3[name] if name in SB3 else _looked_up(name)
    except ImportError as error:
        raise ValueError(f"{name} needs sb3-contrib. Install it: pip install 'rlsmooth[contrib]'.") from error


def listed_algorithm(model: Algorithm) -> str | None:
    """The short name of the nearest of the model's class and its ancestors that a file may name; None: there is none.

    Example:
        >>> listed_algorithm(PPO("MlpPolicy", "CartPole-v1"))
        'PPO'
    """
    for ancestor in type(model).__mro__:
        name, module = ancestor.__name__, ancestor.__module__
        # A namesake from elsewhere must not make us import anything.
        listed = name in KNOWN_ALGORITHMS and module.split(".")[0] in LIBRARIES
        if listed and model_class_by_name(name) is ancestor:
            return name
    return None


def _looked_up(name: str) -> type[Algorithm]:
    # Imported by names that stand here, and only when asked for: sb3-contrib is an optional extra.
    if name in CONTRIB:
        import sb3_contrib

        found = getattr(sb3_contrib, name)
    elif name in SMOOTHED_CONTRIB:
        from rlsmooth.agents.smoothed import contrib_algorithms as smoothed_contrib_algorithms

        found = getattr(smoothed_contrib_algorithms, name)
    else:
        from rlsmooth.agents.smoothed import algorithms as smoothed_algorithms

        found = getattr(smoothed_algorithms, name)
    algorithm: type[Algorithm] = found
    return algorithm


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


# Not in the file: what the loader gives, what the policy's part of the file holds, and where to write, which is not for
# a file from elsewhere to say. The last two only choose an optimiser, which the policy's arguments name.
NOT_KEPT = {
    "_init_setup_model",
    "device",
    "env",
    "policy",
    "policy_kwargs",
    "rms_prop_eps",
    "tensorboard_log",
    "use_rms_prop",
    "verbose",
}
ATTRIBUTES = {"stats_window_size": "_stats_window_size"}
SB3_LIBRARIES = ("stable_baselines3", "sb3_contrib")
LINEAR, SMOOTHING, NOISE, BUFFER = "__linear__", "__smoothing__", "__noise__", "__buffer__"
REPLAY_BUFFER = "replay_buffer_class"


def constructor_names(model_class: type[BaseAlgorithm]) -> list[str]:
    """The names of the constructor's arguments, those that it passes on to its parents included.

    Example:
        >>> from stable_baselines3 import A2C
        >>> constructor_names(A2C)[:4]
        ['policy', 'env', 'learning_rate', 'n_steps']
    """
    names: dict[str, None] = {}
    passed_on = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for ancestor in model_class.__mro__:
        if "__init__" not in vars(ancestor):
            continue
        parameters = list(inspect.signature(vars(ancestor)["__init__"]).parameters.values())[1:]
        names |= {parameter.name: None for parameter in parameters if parameter.kind not in passed_on}
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            break
    return list(names)


def model_arguments(model: BaseAlgorithm) -> dict[str, Any]:
    """What the constructor would have to be given for an algorithm with the same arguments.

    Raises:
        TypeError: the constructor takes something that the algorithm keeps under no attribute of that name.
    """
    found = {}
    for name in constructor_names(type(model)):
        if name in NOT_KEPT:
            continue
        attribute = ATTRIBUTES.get(name, name)
        if attribute not in vars(model):
            raise TypeError(
                f"model is a {type(model).__name__}, whose constructor takes {name!r} but keeps it under no attribute "
                "of that name: keep it, so that a file can hold it."
            )
        found[name] = vars(model)[attribute]
    if isinstance(model, OffPolicyAlgorithm) and has_automatic_buffer(model):
        found[REPLAY_BUFFER] = None  # as it was given, or as good as that
        # What the algorithm itself adds to them; it will again, also if custom_objects change n_steps or gamma.
        given = found["replay_buffer_kwargs"]
        found["replay_buffer_kwargs"] = {name: given[name] for name in given if name not in ("n_steps", "gamma")}
    return found


def encode_model_arguments(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """JSON and tensors. What a file can't hold, such as a callable, is marked, and loading asks for it.

    Example:
        >>> encode_model_arguments({"clip_range": FloatSchedule(0.2), "learning_rate": abs})[0]
        {'clip_range': 0.2, 'learning_rate': {'__custom__': 'builtins.abs'}}
    """
    encoded: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, value in arguments.items():
        encoded[name], found = _encode(name, value)
        tensors |= found
    return encoded, tensors


def decode_model_arguments(
    path: Path, encoded: Mapping[str, Any], *, tensors: Mapping[str, Tensor], custom_objects: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of `encode_model_arguments`; `custom_objects` take the place of the file's.

    Args:
        path: what errors call the file.
        encoded: the JSON.
        tensors: the tensors that it names.
        custom_objects: argument to value.

    Raises:
        SafeFileError: one was marked and is not in `custom_objects`, or is malformed.
    """
    arguments: dict[str, Any] = {}
    for name, value in encoded.items():
        if name in custom_objects:
            arguments[name] = custom_objects[name]
            continue
        custom = custom_name(value)
        if custom is not None:
            raise SafeFileError(
                f"{str(path)!r} was saved with a {name} that no file can hold ({custom}). "
                f"Load it with custom_objects={{{name!r}: ...}}."
            )
        try:
            arguments[name] = _decode(value, tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise SafeFileError(f"{str(path)!r} has a malformed {name} ({error}). Use another copy.") from error
    return arguments


def _encode(name: str, value: Any) -> tuple[Any, dict[str, Tensor]]:
    while type(value) is FloatSchedule:  # what the algorithms wrap numbers and schedules in themselves
        value = value.value_schedule
    if type(value) is ConstantSchedule:
        value = value.val
    if type(value) is LinearSchedule:
        return {LINEAR: [float(value.start), float(value.end), float(value.end_fraction)]}, {}
    if isinstance(value, Smoothing):
        if callable(value.alpha):
            return mark(value.alpha), {}
        return {SMOOTHING: value.to_config()}, {}
    if name == REPLAY_BUFFER and value in BUFFERS.values():
        return {BUFFER: value.__name__}, {}
    if isinstance(value, type):
        # Rollout buffers of the libraries: the algorithm chooses the same one again.
        is_chosen_again = name != REPLAY_BUFFER and value.__module__.split(".")[0] in SB3_LIBRARIES
        return (None if is_chosen_again else mark_custom(value)), {}
    if isinstance(value, TrainFreq):
        value = (value.frequency, value.unit.value)
    if isinstance(value, ActionNoise):
        plain = noise_to_plain(value)
        if plain is None:
            return mark(value), {}
        encoded, tensors = tree_to_json(plain, f"argument.{name}")
        return {NOISE: encoded}, tensors
    if isinstance(value, np.generic):
        value = value.item()
    try:
        return tree_to_json(value, f"argument.{name}")
    except TypeError:
        return mark(value), {}


def mark(value: Any) -> dict[str, str]:
    """What stands for a value that no file can hold: a function's own name tells the reader most."""
    return mark_custom(value if isinstance(getattr(value, "__qualname__", None), str) else type(value))


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict) and set(value) == {LINEAR}:
        start, end, fraction = (float(number) for number in value[LINEAR])
        return LinearSchedule(start, end, fraction)
    if isinstance(value, dict) and set(value) == {SMOOTHING}:
        return Smoothing.from_config(value[SMOOTHING])
    if isinstance(value, dict) and set(value) == {NOISE}:
        return noise_from_plain(tree_from_json(value[NOISE], tensors))
    if isinstance(value, dict) and set(value) == {BUFFER}:
        return BUFFERS[value[BUFFER]]
    return tree_from_json(value, tensors)


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
    modules, variables = torch_parts(model)
    others = [name for name in modules if name != POLICY and not _is_optimizer(model, name)]
    return {"modules": others, "variables": list(variables)}


def _optimizer_names(model: Algorithm) -> list[str]:
    return [name for name in torch_parts(model)[0] if _is_optimizer(model, name)]


def _is_optimizer(model: Algorithm, name: str) -> bool:
    return isinstance(recursive_getattr(model, name), torch.optim.Optimizer)


PARTS = {"class", "arguments", "policy_kwargs", "n_envs", "attributes", "optimizer", "modules", "normalization"}
BUFFER = "replay_buffer"  # beside PARTS: files of on-policy algorithms lack it


def save_agent(model: BaseAlgorithm | BC, path: str | Path, *, include_replay_buffer: bool = False) -> Path:
    """Write an agent file, whole or not at all.

    Args:
        model: PPO, A2C, TRPO, MaskablePPO, RecurrentPPO, SmoothedPPO, SmoothedA2C, SmoothedMaskablePPO,
            SmoothedRecurrentPPO, DQN, DDPG, SAC, TD3, CrossQ, QRDQN, TQC, or a class of your own below one of these
            (loading then asks for it); or a BC. Callables among its arguments, and classes of your own, are kept by
            name only: loading asks for them too, and for a replay buffer's class that the algorithm would not choose.
            The environment, callbacks, the logger and its folder are not kept.
        path: the file. As in Stable-Baselines3, `.zip` is added to a name without a suffix, and a missing folder made.
        include_replay_buffer: of an off-policy algorithm: keep its transitions too, so that training can go on with
            them. Acting needs none.

    Returns:
        The path written, with its suffix.

    Raises:
        TypeError: it is no such algorithm, or one without a replay buffer that can be kept (HerReplayBuffer can't).
        ValueError: the folder can't be written to.

    Example:
        >>> import tempfile
        >>> from stable_baselines3 import PPO
        >>> model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, gamma=0.9)
        >>> path = save_agent(model, f"{tempfile.mkdtemp()}/agent"); path.name
        'agent.zip'
        >>> loaded = load_agent(path); type(loaded).__name__, loaded.n_steps, loaded.gamma
        ('PPO', 64, 0.9)
    """
    if include_replay_buffer:
        check_buffer("replay_buffer of model", getattr(model, "replay_buffer", None))
    if isinstance(model, BC):
        return model.save(path)
    kind = listed_algorithm(model) if isinstance(model, ALGORITHM_BASES) else None
    if kind is None or not isinstance(model, ALGORITHM_BASES):
        raise TypeError(
            f"model is a {type(model).__name__}: pass one of {', '.join(KNOWN_ALGORITHMS)}, a subclass of one, or a BC."
        )
    arguments, tensors = encode_model_arguments(model_arguments(model))
    policy_kwargs, of_policy = encode_arguments(model.policy_kwargs)
    optimizer, of_optimizer = optimizers(model)
    normalization, of_normalization = encode_normalization(model.get_vec_normalize_env())
    modules, of_modules = extra_modules(model)
    config = {
        "class": None if type(model).__name__ == kind else mark_custom(type(model)),
        "arguments": arguments,
        "policy_kwargs": policy_kwargs,
        "n_envs": model.n_envs,
        "attributes": plain_attributes(model),
        "optimizer": optimizer,
        "modules": modules,
        "normalization": normalization,
    }
    if include_replay_buffer:
        assert isinstance(model, OffPolicyAlgorithm)
        assert model.replay_buffer is not None
        config[BUFFER], rows = buffer_state(model.replay_buffer)
        tensors |= {f"{BUFFER}/{name}": tensor for name, tensor in rows.items()}
    kwargs_tensors = {f"policy_kwargs/{name}": tensor for name, tensor in of_policy.items()}
    extra = {**tensors, **kwargs_tensors, **of_optimizer, **of_normalization, **of_modules}
    return save_agent_file(path, kind=kind, policy=model.policy, config=config, tensors=extra)


def load_agent(
    path: str | Path,
    *,
    env: GymEnv | str | None = None,
    device: torch.device | str = "auto",
    model_class: type[Algorithm] | None = None,
    policy_class: type[BasePolicy] | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    tensorboard_log: str | Path | None = None,
    verbose: int = 0,
) -> Any:
    """Read an agent file and build its algorithm, ready to act and to train on. Runs no code that the file could name.

    The caller's random state does not move. With an environment, statistics of VecNormalize go into its VecNormalize,
    or it is wrapped in one: `model.get_env()` has it, and `model.get_vec_normalize_env().training = False` is right for
    evaluation.

    Args:
        path: the file; `.zip` is added to a name without a suffix if there is no such file.
        env: an environment with the same spaces, or its id; acting needs none. Its number may differ from the saved,
            unless the file holds a replay buffer.
        device: as in Stable-Baselines3.
        model_class: built in place of the class named in the file; needed if that is a class of your own.
        policy_class: likewise, of the policy.
        custom_objects: argument to value, of the algorithm or the policy, taken in place of the file's: for callables
            and classes of your own (`{"learning_rate": my_schedule}`), or to change an argument; not to one that needs
            other parts than the file has: an ent_coef of SAC's that is learnt ("auto") can't become a number here.
        tensorboard_log: where to log; a file does not say it.
        verbose: as in Stable-Baselines3.

    Returns:
        The algorithm, of the class that was saved; a `BC` for a file of BC.

    Raises:
        SafeFileError: as in `load_agent_file`; also if the algorithm is not known here, or can't be built.
        ValueError: the environment's spaces differ.
        TypeError: `model_class` is no algorithm with a policy and a `learn`.

    Example:
        See `save_agent`.
    """
    path, content = read_agent_file(path)
    custom = dict(custom_objects or {})
    kind, own = _kind_and_arguments(content.config)
    if kind == "bc":
        return BC.load(path, env, device=device, policy_class=policy_class, custom_objects=custom)
    of_policy = {name: value for name, value in custom.items() if name not in own}
    file = agent_from_safe_file(
        path, content, kind=None, device=device, policy_class=policy_class, custom_objects=of_policy
    )
    build = _model_class(path, file, model_class)
    try:
        with isolated_rng():
            return _build(path, file, build, env, device, custom, tensorboard_log, verbose)
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise SafeFileError(f"{str(path)!r} has malformed training state ({error!r}). Use another copy.") from error


# ---- loading


def _kind_and_arguments(head: Mapping[str, Any]) -> tuple[str, set[str]]:
    """The kind of agent, and which arguments are the algorithm's and not the policy's."""
    config: Any = head.get("config")
    arguments = config.get("arguments") if isinstance(config, dict) else None
    own = set(arguments if isinstance(arguments, dict) else ())
    return str(head.get("kind")), own - {"use_sde"}  # the policy's too


def _model_class(path: Path, file: AgentFile, given: type[Algorithm] | None) -> type[Algorithm]:
    if not set(file.config) >= PARTS:
        raise SafeFileError(f"{str(path)!r} holds a {file.kind!r} agent of a form not known here. Use another copy.")
    if given is not None:
        if not (isinstance(given, type) and issubclass(given, ALGORITHM_BASES)):
            raise TypeError(f"model_class={given!r} is no algorithm: pass a subclass of PPO or SAC, say.")
        return given
    custom = custom_name(file.config["class"])
    if custom is not None:
        raise SafeFileError(
            f"{str(path)!r} was saved with an algorithm of its writer's own ({custom}). "
            f"Import that class and load with model_class={custom.rpartition('.')[2]}."
        )
    try:
        return model_class_by_name(file.kind)
    except ValueError as error:
        raise SafeFileError(f"{str(path)!r}: {error}") from error


def _build(
    path: Path,
    file: AgentFile,
    build: type[Algorithm],
    env: GymEnv | str | None,
    device: torch.device | str,
    custom: Mapping[str, Any],
    tensorboard_log: str | Path | None,
    verbose: int,
) -> Algorithm:
    config, tensors = file.config, file.tensors
    arguments = decode_model_arguments(path, config["arguments"], tensors=tensors, custom_objects=custom)
    encoded_kwargs: Mapping[str, Any] = config["policy_kwargs"]
    policy_kwargs = decode_arguments(
        path,
        encoded_kwargs,
        tensors={name.removeprefix("policy_kwargs/"): tensor.cpu() for name, tensor in tensors.items()},
        custom_objects={name: value for name, value in custom.items() if name in encoded_kwargs},
    )
    venv = None if env is None else _environment(path, file, env, verbose)
    constructor: Any = build
    # The arguments are the file's to fill, so any error of torch's or Stable-Baselines3's can come.
    try:
        model: Algorithm = constructor(
            type(file.policy),
            venv,
            device=device,
            tensorboard_log=None if tensorboard_log is None else str(tensorboard_log),
            verbose=verbose,
            policy_kwargs=dict(policy_kwargs),
            _init_setup_model=False,
            **arguments,
        )
        model.policy_kwargs = policy_kwargs  # the constructor may have added its default optimiser
        if venv is None:
            model.observation_space, model.action_space = file.policy.observation_space, file.policy.action_space
            model.n_envs = int(config["n_envs"])
        set_plain_attributes(model, config["attributes"])
        set_up_model(model)
    except Exception as error:
        raise SafeFileError(
            f"{str(path)!r}: {build.__name__} can't be built from the file's arguments ({type(error).__name__}: "
            f"{error}). Check model_class and custom_objects, or use another copy."
        ) from error
    _restore(path, file, model)
    return model


def _restore(path: Path, file: AgentFile, model: Algorithm) -> None:
    load_parameters(path, model.policy, file.policy.state_dict())
    load_extra_modules(path, model, file.config["modules"], file.tensors)
    set_plain_attributes(model, file.config["attributes"])
    try:
        load_optimizers(model, file.config["optimizer"], file.tensors)
    except ValueError as error:
        raise SafeFileError(f"{str(path)!r} has malformed training state ({error}). Use another copy.") from error
    model.policy.set_training_mode(False)
    resample_noise(model.policy, model.n_envs)  # of the fresh weights until now
    if file.config.get(BUFFER) is not None:
        _restore_buffer(path, file, model)


def _restore_buffer(path: Path, file: AgentFile, model: Algorithm) -> None:
    prefix = f"{BUFFER}/"
    rows = {name.removeprefix(prefix): tensor for name, tensor in file.tensors.items() if name.startswith(prefix)}
    try:
        buffer = getattr(model, "replay_buffer", None)
        set_buffer_state(buffer, file.config[BUFFER], rows)
    except (TypeError, ValueError) as error:
        raise SafeFileError(f"{str(path)!r} holds a replay buffer that does not fit: {error}") from error
    cut_off_episodes(check_buffer("replay_buffer", buffer))  # the environment begins new ones


def _environment(path: Path, file: AgentFile, env: GymEnv | str, verbose: int) -> VecEnv:
    venv = wrap_env("env", env, verbose)
    check_same_spaces(
        "env", (venv.observation_space, venv.action_space), (file.policy.observation_space, file.policy.action_space)
    )
    if file.config["normalization"] is None:
        return venv
    try:
        venv = apply_normalization(venv, file.config["normalization"], file.tensors)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise SafeFileError(f"{str(path)!r} has statistics that don't fit env ({error}).") from error
    assert unwrap_vec_normalize(venv) is not None
    return venv
