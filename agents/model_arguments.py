"""What an algorithm's constructor took, as JSON and tensors and back; schedules among it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFreq
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from torch import Tensor

from rlsmooth.agents.off_policy_arguments import BUFFERS, has_automatic_buffer, noise_from_plain, noise_to_plain
from rlsmooth.agents.policy_arguments import custom_name, mark_custom
from rlsmooth.targets import Smoothing
from rlsmooth.training import SafeFileError, tree_from_json, tree_to_json

__all__ = ["constructor_names", "decode_model_arguments", "encode_model_arguments", "model_arguments"]

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
LIBRARIES = ("stable_baselines3", "sb3_contrib")
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
        is_chosen_again = name != REPLAY_BUFFER and value.__module__.split(".")[0] in LIBRARIES
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
