"""What a policy's constructor takes, as JSON and tensors and back, without a class being looked up by a file's word."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from rlsmooth.agents.policy_classes import ACTIVATIONS, EXTRACTORS, OPTIMIZERS, recurrent_arguments
from rlsmooth.agents.policy_reference import reference_from_plain, reference_to_plain
from rlsmooth.data.space_json import space_from_json, space_to_json
from rlsmooth.training import SafeFileError, tree_from_json, tree_to_json

__all__ = [
    "constant_zero",
    "constructor_arguments",
    "custom_name",
    "decode_arguments",
    "encode_arguments",
    "mark_custom",
]

CUSTOM = "__custom__"
SHARED = "share_features_extractor"
SPACES = ("observation_space", "action_space")
CLASS_TABLES: dict[str, dict[str, type]] = {
    "activation_fn": ACTIVATIONS,
    "features_extractor_class": EXTRACTORS,
    "optimizer_class": OPTIMIZERS,
}


def constant_zero(_: float) -> float:
    """The learning-rate schedule of a policy that is built for its weights."""
    return 0.0


def mark_custom(named: type) -> dict[str, str]:
    """What stands for a class that is not in the tables. The full name is for messages: nothing ever imports it."""
    return {CUSTOM: f"{named.__module__}.{named.__qualname__}"}


def custom_name(encoded: Any) -> str | None:
    """The full name of a class that is not in the tables, or None if `encoded` is no such mark."""
    if isinstance(encoded, dict) and isinstance(encoded.get(CUSTOM), str):
        return str(encoded[CUSTOM])
    return None


def constructor_arguments(policy: BasePolicy) -> dict[str, Any]:
    """What the policy's constructor was given, without `lr_schedule`.

    Raises:
        ValueError: the constructor can't be called with these.
    """
    arguments = dict(policy._get_constructor_parameters())
    arguments.pop("lr_schedule", None)
    # Stable-Baselines3 leaves this out of its own list; without it the weights would not fit. The default, which is not
    # the same for all, stays out, for the sake of subclasses whose constructor does not take it.
    is_shared = getattr(policy, SHARED, None)
    if is_shared is not None and is_shared is not _default(type(policy), SHARED):
        arguments[SHARED] = is_shared
    arguments |= recurrent_arguments(policy)
    # None here means "no gSDE"; the constructor's own defaults say it better.
    for name in ("squash_output", "full_std", "use_expln"):
        if name in arguments and arguments[name] is None:
            del arguments[name]
    try:
        inspect.signature(type(policy)).bind(lr_schedule=constant_zero, **arguments)
    except TypeError as error:
        raise ValueError(
            f"policy is a {type(policy).__name__} that could not be built again ({error}): let its "
            "_get_constructor_parameters() give exactly what its constructor takes."
        ) from error
    return arguments


def _default(policy_class: type[BasePolicy], name: str) -> Any:
    """The default of a constructor argument, from the nearest class that takes it."""
    for ancestor in policy_class.__mro__:
        parameter = inspect.signature(vars(ancestor).get("__init__", _takes_nothing)).parameters.get(name)
        if parameter is not None:
            return parameter.default
    return None


def _takes_nothing() -> None:
    """Stands for a class without a constructor of its own."""


def encode_arguments(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """JSON and tensors. A class that is not in the tables, or a value that JSON can't hold, is marked as the user's."""
    encoded: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, value in arguments.items():
        if name in SPACES:
            encoded[name] = space_to_json(value)
        elif name in CLASS_TABLES:
            listed = CLASS_TABLES[name].get(value.__name__) is value
            encoded[name] = value.__name__ if listed else mark_custom(value)
        else:
            try:
                encoded[name], found = tree_to_json(reference_to_plain(value), name)
            except TypeError as error:
                encoded[name] = {CUSTOM: str(error)}
            else:
                tensors |= found
    return encoded, tensors


def decode_arguments(
    path: Path, encoded: Mapping[str, Any], *, tensors: Mapping[str, Tensor], custom_objects: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of `encode_arguments`; `custom_objects` take the place of the file's.

    Args:
        path: what errors call the file.
        encoded: the JSON.
        tensors: the tensors that it names.
        custom_objects: argument to value.

    Raises:
        SafeFileError: a class is not in the tables and not in `custom_objects`, or a value is malformed.
    """
    arguments: dict[str, Any] = dict(custom_objects)
    for name, value in encoded.items():
        if name in arguments:
            continue
        custom = custom_name(value)
        if custom is not None:
            example = custom.rpartition(".")[2] if name in CLASS_TABLES else "..."
            raise SafeFileError(
                f"{str(path)!r} was saved with a {name} of its writer's own ({custom}). "
                f"Load it with custom_objects={{{name!r}: {example}}}."
            )
        try:
            if name in SPACES:
                arguments[name] = space_from_json(value)
            elif name in CLASS_TABLES:
                arguments[name] = CLASS_TABLES[name][value]
            else:
                arguments[name] = reference_from_plain(tree_from_json(value, tensors))
        except (ValueError, TypeError, KeyError) as error:
            known = f"one of {sorted(CLASS_TABLES[name])}" if name in CLASS_TABLES else "what rlsmooth writes"
            raise SafeFileError(
                f"{str(path)!r} has {name}={value!r}, which is not {known} ({error}). "
                f"Use another copy, or give your own: custom_objects={{{name!r}: ...}}."
            ) from error
    return arguments
