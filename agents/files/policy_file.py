"""Agent files: a policy of Stable-Baselines3 and the rest of its agent in a file that can't run code.

The file names classes by short names from fixed tables. A class that is not in them is never looked up: the caller
passes it by `policy_class=` or `custom_objects=`. See `rlsmooth.training.safe_file` for the format.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.utils import get_device
from stable_baselines3.dqn import policies as dqn_policies
from stable_baselines3.sac import policies as sac_policies
from stable_baselines3.td3 import policies as td3_policies
from torch import Tensor, nn

from rlsmooth.agents.cloning.transition_features import TransitionFeatures
from rlsmooth.agents.sb3 import (
    MASKABLE,
    RECURRENT,
    constructor_parameters,
    contrib_is_loaded,
    contrib_policies,
    recurrent_arguments,
)
from rlsmooth.agents.smoothed.policies import (
    SmoothedActorCriticCnnPolicy,
    SmoothedActorCriticPolicy,
    SmoothedMultiInputActorCriticPolicy,
)
from rlsmooth.checks import check_writable_folder
from rlsmooth.data.space_json import space_from_json, space_to_json
from rlsmooth.targets import Smoothing, Tree
from rlsmooth.training import SafeFileError, isolated_rng, read_safe_file, tree_from_json, tree_to_json, write_safe_file
from rlsmooth.training.divergence import refuse_spoilt
from rlsmooth.training.safe_file import SafeFile, with_zip_suffix
from rlsmooth.untrusted import budget, modules_within, refused

# ---- the classes that a file may name; sb3-contrib's are looked up only when one of them is asked for

ACTIVATIONS: dict[str, type] = {
    name: getattr(nn, name)
    for name in (
        *("CELU", "ELU", "GELU", "Hardsigmoid", "Hardswish", "Hardtanh", "Identity", "LeakyReLU", "LogSigmoid", "Mish"),
        *("PReLU", "ReLU", "ReLU6", "SELU", "Sigmoid", "SiLU", "Softplus", "Softsign", "Tanh", "Tanhshrink"),
    )
}
"""Activation functions by short name."""

OPTIMIZERS: dict[str, type] = {
    **{name: getattr(torch.optim, name) for name in ("Adam", "AdamW", "RMSprop", "SGD")},
    "RMSpropTFLike": RMSpropTFLike,
}
"""Optimisers by short name."""

EXTRACTORS: dict[str, type] = {
    extractor.__name__: extractor for extractor in (CombinedExtractor, FlattenExtractor, NatureCNN, TransitionFeatures)
}
"""Features extractors by short name."""

MODULES = {"DQN": dqn_policies, "SAC": sac_policies, "TD3": td3_policies}
CONTRIB_MODULES = {
    "CrossQ": "sb3_contrib.crossq.policies",
    "QRDQN": "sb3_contrib.qrdqn.policies",
    "TQC": "sb3_contrib.tqc.policies",
}


def _found(module: ModuleType, algorithm: str, ending: str) -> type[BasePolicy]:
    policy: type[BasePolicy] = getattr(module, f"{algorithm}{ending}" if ending == "Policy" else ending)
    return policy


OFF_POLICY_POLICIES: dict[str, type[BasePolicy]] = {
    f"{algorithm}{ending}": _found(module, algorithm, ending)
    for algorithm, module in MODULES.items()
    for ending in ("Policy", "CnnPolicy", "MultiInputPolicy")
}
"""Off-policy policies of Stable-Baselines3: DDPG has TD3's."""

CONTRIB_OFF_POLICY_POLICIES: dict[str, tuple[str, str]] = {
    f"{algorithm}{ending}": (algorithm, ending)
    for algorithm in CONTRIB_MODULES
    for ending in (("Policy",) if algorithm == "CrossQ" else ("Policy", "CnnPolicy", "MultiInputPolicy"))
}
"""Off-policy policies of sb3-contrib: the algorithm, and the rest of the name."""

POLICIES: dict[str, type[BasePolicy]] = {
    policy.__name__: policy
    for policy in (
        ActorCriticPolicy,
        ActorCriticCnnPolicy,
        MultiInputActorCriticPolicy,
        SmoothedActorCriticPolicy,
        SmoothedActorCriticCnnPolicy,
        SmoothedMultiInputActorCriticPolicy,
    )
} | OFF_POLICY_POLICIES
SMOOTHED_CONTRIB = tuple(f"Smoothed{name}" for name in (*MASKABLE, *RECURRENT))
CONTRIB = (*MASKABLE, *RECURRENT, *SMOOTHED_CONTRIB, *CONTRIB_OFF_POLICY_POLICIES)


def policy_class_by_name(name: Any) -> type[BasePolicy]:
    """The policy class of that short name, if `name`, which may be anything, is in the tables above.

    Raises:
        ValueError: the name is not known, or it is one of sb3-contrib's, which is not installed.

    Examples:
        >>> policy_class_by_name("ActorCriticPolicy").__name__
        'ActorCriticPolicy'
    """
    if isinstance(name, str) and name in POLICIES:
        return POLICIES[name]
    if isinstance(name, str) and name in CONTRIB:
        try:
            return _contrib_policy(name)
        except ImportError as error:
            raise ValueError(f"{name} needs sb3-contrib. Install it: pip install 'rlsmooth[contrib]'.") from error
    known = ", ".join([*POLICIES, *CONTRIB])
    raise ValueError(f"the policy class {name!r} is not known (known: {known}). If you trust it, pass policy_class=.")


def listed_policy_name(policy_class: type[BasePolicy]) -> str | None:
    """The name by which a file may name that very class, no subclass of it; None: none.

    Examples:
        >>> from stable_baselines3.sac.policies import CnnPolicy
        >>> listed_policy_name(ActorCriticPolicy), listed_policy_name(CnnPolicy), listed_policy_name(BasePolicy)
        ('ActorCriticPolicy', 'SACCnnPolicy', None)
    """
    name = off_policy_name(policy_class) or policy_class.__name__
    if name in CONTRIB and not contrib_is_loaded():
        return None  # a namesake: sb3-contrib's class can't exist before its module does
    try:
        return name if policy_class_by_name(name) is policy_class else None
    except ValueError:
        return None


def is_known_policy(policy: BasePolicy) -> bool:
    """Whether the policy's class is one that a file may name, or a subclass of one."""
    return any(issubclass(ancestor, BasePolicy) and listed_policy_name(ancestor) for ancestor in type(policy).__mro__)


def _contrib_policy(name: str) -> type[BasePolicy]:
    # Imported by names that stand here, and only when asked for: sb3-contrib is an optional extra.
    if name in CONTRIB_OFF_POLICY_POLICIES:
        algorithm, ending = CONTRIB_OFF_POLICY_POLICIES[name]
        return _found(importlib.import_module(CONTRIB_MODULES[algorithm]), algorithm, ending)
    if name in SMOOTHED_CONTRIB:
        from rlsmooth.agents.smoothed import contrib

        found: type[BasePolicy] = getattr(contrib, name)
        return found
    return contrib_policies(name)[name]


def off_policy_name(policy_class: type[BasePolicy]) -> str | None:
    """The name that a class of these modules has here; None for a class from elsewhere.

    Examples:
        >>> off_policy_name(dqn_policies.CnnPolicy), off_policy_name(BasePolicy)
        ('DQNCnnPolicy', None)
    """
    modules = {**{name: module.__name__ for name, module in MODULES.items()}, **CONTRIB_MODULES}
    for algorithm, module in modules.items():
        if policy_class.__module__ == module:
            return f"{algorithm}{policy_class.__name__.removeprefix(algorithm)}"
    return None


# ---- constructor arguments

CUSTOM = "__custom__"
TWICE = re.compile(r"got multiple values for (?:keyword )?argument '(\w+)'")
FIX = "Check policy_class and custom_objects, or use another copy."
PASSED_ON = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
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


def mark_custom(value: Any) -> dict[str, str]:
    """The mark in place of a class or function that no file can hold, or of an object of such a class.

    The full name in it is for messages: nothing ever imports it.
    """
    named = value if isinstance(getattr(value, "__qualname__", None), str) else type(value)
    return {CUSTOM: f"{named.__module__}.{named.__qualname__}"}


def custom_name(encoded: Any) -> str | None:
    """The full name in a mark of `mark_custom`, or None if `encoded` is no such mark."""
    if isinstance(encoded, dict) and isinstance(encoded.get(CUSTOM), str):
        return str(encoded[CUSTOM])
    return None


def constructor_arguments(policy: BasePolicy) -> dict[str, Any]:
    """The arguments of the policy's constructor, without `lr_schedule`.

    Raises:
        ValueError: the constructor can't be called with these.
    """
    arguments = constructor_parameters(policy)
    arguments.pop("lr_schedule", None)
    # Stable-Baselines3 leaves this out of its own list; without it the weights would not fit. The default, which is not
    # the same for all, stays out, for the sake of subclasses whose constructor does not take it.
    is_shared = getattr(policy, SHARED, None)
    if is_shared is not None and is_shared is not _default(type(policy), SHARED):
        arguments[SHARED] = is_shared
    arguments |= recurrent_arguments(policy)
    arguments = _of_its_own_signature(type(policy), arguments)
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


def _of_its_own_signature(policy_class: type[BasePolicy], arguments: dict[str, Any]) -> dict[str, Any]:
    """Without what a class of the user's passes to `super().__init__` itself, and would then get twice.

    Such a class takes `**kwargs` and sets some of them: its own list, which is its parent's, has them too. The class
    itself is asked, by building a copy, which arguments it can't take.
    """
    signature = inspect.signature(policy_class)
    if listed_policy_name(policy_class) or inspect.Parameter.VAR_KEYWORD not in {
        parameter.kind for parameter in signature.parameters.values()
    }:
        return arguments
    left = dict(arguments)
    for _ in arguments:
        try:
            with isolated_rng():
                policy_class(lr_schedule=constant_zero, **left)
        except TypeError as error:
            twice = TWICE.search(str(error))
            if twice is None or twice[1] not in left:
                break
            del left[twice[1]]
        else:
            return left
    return arguments


def _default(policy_class: type[BasePolicy], name: str) -> Any:
    """The default of a constructor argument, from the nearest class that takes it."""
    for ancestor in policy_class.__mro__:
        parameter = inspect.signature(vars(ancestor).get("__init__", _takes_nothing)).parameters.get(name)
        if parameter is not None:
            return parameter.default
    return None


def _takes_nothing() -> None:
    """The constructor of a class without one of its own."""


def encode_argument(name: str, value: Any) -> tuple[Any, dict[str, Tensor]]:
    """One argument of a policy as JSON and tensors; a class that is not in the tables, say, is marked."""
    if name in SPACES:
        return space_to_json(value), {}
    if name in CLASS_TABLES:
        is_listed = CLASS_TABLES[name].get(value.__name__) is value
        return value.__name__ if is_listed else mark_custom(value), {}
    try:
        return tree_to_json(reference_to_plain(value), name)
    except TypeError as error:
        return {CUSTOM: str(error)}, {}


def decode_argument(name: str, value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The argument that `encode_argument` was given.

    Raises:
        KeyError, TypeError, ValueError: a class is not in the tables, or the data is malformed.
    """
    if name in SPACES:
        return space_from_json(value)
    if name in CLASS_TABLES:
        if value not in CLASS_TABLES[name]:
            raise ValueError(f"it must be one of {sorted(CLASS_TABLES[name])}")
        return CLASS_TABLES[name][value]
    return reference_from_plain(tree_from_json(value, tensors))


def encode_arguments(
    arguments: Mapping[str, Any], encode: Callable[[str, Any], tuple[Any, dict[str, Tensor]]] = encode_argument
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """JSON and tensors of a constructor's arguments, each by `encode`. What no file can hold is marked."""
    encoded: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, value in arguments.items():
        encoded[name], found = encode(name, value)
        tensors |= found
    return encoded, tensors


def decode_arguments(
    path: Path,
    encoded: Mapping[str, Any],
    *,
    tensors: Mapping[str, Tensor],
    custom_objects: Mapping[str, Any],
    decode: Callable[[str, Any, Mapping[str, Tensor]], Any] = decode_argument,
) -> dict[str, Any]:
    """The arguments of `encode_arguments`; `custom_objects` take the place of the file's.

    Args:
        path: what errors call the file.
        encoded: the JSON.
        tensors: the tensors that it names.
        custom_objects: argument to value.
        decode: gives back what `encode` was given.

    Raises:
        SafeFileError: an argument was marked and is not in `custom_objects`, or is malformed.
    """
    arguments: dict[str, Any] = dict(custom_objects)
    for name, value in encoded.items():
        if name in arguments:
            continue
        custom = custom_name(value)
        if custom is not None:
            example = custom.rpartition(".")[2] if name in CLASS_TABLES else "..."
            raise SafeFileError(
                f"{str(path)!r} was saved with a {name} that no file can hold ({custom}). "
                f"Load it with custom_objects={{{name!r}: {example}}}."
            )
        fix = f"Use another copy, or give your own: custom_objects={{{name!r}: ...}}."
        with refused(path, SafeFileError, fix, f"has a malformed {name}, {str(value)[:100]!r}"):
            arguments[name] = decode(name, value, tensors)
    return arguments


# ---- files

FORMAT_NAME = "rlsmooth-agent"
FORMAT_VERSION = 1
MEMBERS = {"policy", "arguments", "extra"}
KEPT_ON_CPU = "replay_buffer/"  # may be larger than a GPU, and is wanted in numpy
BUILT_FROM = {"observation_space", "action_space"}


@dataclass(frozen=True, kw_only=True)
class AgentFile:
    """The content of an agent file, read, checked and built.

    Attributes:
        kind: the algorithm that wrote it, such as `"bc"`.
        policy: the policy, on the device asked for, in evaluation mode, with a fresh optimiser of learning rate 0.
        config: the plain data that the writer gave (tuples have become lists).
        tensors: the tensors that the writer gave besides the policy's.
        versions: version of Python and of each library that wrote the file.
    """

    kind: str
    policy: BasePolicy
    config: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def save_agent_file(
    path: str | Path,
    *,
    kind: str,
    policy: BasePolicy,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write an agent file, whole or not at all.

    Args:
        path: the file. As in Stable-Baselines3, `.zip` is added to a name without a suffix, and a missing folder made.
        kind: the algorithm's short name; `load_agent_file(kind=...)` checks it.
        policy: of any on-policy or off-policy algorithm of Stable-Baselines3 or sb3-contrib, or ours. Of a policy,
            extractor, activation or optimiser class of your own the file keeps the name only, and loading asks for it.
        config: JSON-able: arguments, counters, whatever the algorithm needs to continue.
        tensors: whatever tensors it needs besides the policy's.

    Returns:
        The path written, with its suffix.

    Raises:
        TypeError: `policy` is of no known kind, or a space of its is of an unknown kind, or `config` is not
            JSON-able.
        ValueError: the policy's constructor can't be called with what its `_get_constructor_parameters()` gives, or the
            folder can't be written to.
        TrainingDivergedError: a parameter is not finite: such a policy must not replace a good one.

    Examples:
        >>> import tempfile
        >>> from gymnasium import spaces
        >>> from stable_baselines3.common.policies import ActorCriticPolicy
        >>> policy = ActorCriticPolicy(spaces.Box(-1, 1, (4,)), spaces.Discrete(2), lambda _: 1e-3)
        >>> path = save_agent_file(f"{tempfile.mkdtemp()}/agent", kind="bc", policy=policy, config={"alpha": 0.1})
        >>> path.name, load_agent_file(path).config
        ('agent.zip', {'alpha': 0.1})
    """
    if not (isinstance(policy, BasePolicy) and is_known_policy(policy)):
        raise TypeError(f"policy is a {type(policy).__name__}: pass the policy of an algorithm, such as agent.policy.")
    path = with_zip_suffix(path)
    refuse_spoilt("policy", policy, path)
    encoded, argument_tensors = encode_arguments(constructor_arguments(policy))
    description = {"class": listed_policy_name(type(policy)) or mark_custom(type(policy)), "arguments": encoded}
    check_writable_folder("path", path.parent)
    write_safe_file(
        path,
        {"kind": kind, "policy": description, "config": dict(config)},
        tensors={"policy": policy.state_dict(), "arguments": argument_tensors, "extra": tensors or {}},
        format_name=FORMAT_NAME,
        format_version=FORMAT_VERSION,
        config_name="",
    )
    return path


def load_agent_file(
    path: str | Path,
    *,
    kind: str | None = None,
    device: torch.device | str = "auto",
    policy_class: type[BasePolicy] | None = None,
    custom_objects: Mapping[str, Any] | None = None,
) -> AgentFile:
    """Read an agent file and build its policy. Runs no code that the file could name.

    A policy that would be far larger than the tensors in the file is not built.

    Args:
        path: the file; `.zip` is added to a name without a suffix if there is no such file.
        kind: the algorithm's short name that the file must have; None takes any.
        device: where the policy and the tensors go, as in Stable-Baselines3: `"auto"` is CUDA if there is one.
        policy_class: built in place of the class named in the file; needed if that is a class of your own.
        custom_objects: constructor argument to value, taken in place of the file's: for classes and values of your own,
            such as `{"features_extractor_class": MyExtractor}`.

    Raises:
        SafeFileError: it is no whole agent file, of another kind, names a class that is not known here (the message
            says what to pass), can't be built from its arguments, or its tensors don't fit the policy.
    """
    path, file = read_agent_file(path)
    return agent_from_safe_file(
        path, file, kind=kind, device=device, policy_class=policy_class, custom_objects=custom_objects
    )


def read_agent_file(path: str | Path) -> tuple[Path, SafeFile]:
    """The file's path, with `.zip` if there is no file without it, and its content, of which nothing is built.

    Raises:
        SafeFileError: it is no whole agent file.
    """
    path = Path(path).expanduser()
    path = path if path.exists() else with_zip_suffix(path)
    return path, read_safe_file(path, format_name=FORMAT_NAME, format_version=FORMAT_VERSION)


def agent_from_safe_file(
    path: Path,
    file: SafeFile,
    *,
    kind: str | None,
    device: torch.device | str,
    policy_class: type[BasePolicy] | None,
    custom_objects: Mapping[str, Any] | None,
) -> AgentFile:
    """Build the policy of a file that `read_agent_file` has read, as `load_agent_file` does.

    Args:
        path: what errors call the file.
        file: its content.
        kind: the algorithm's short name that the file must have; None takes any.
        device: where the policy and the tensors go.
        policy_class: built in place of the class named in the file, or None.
        custom_objects: constructor argument to value, taken in place of the file's, or None.

    Raises:
        SafeFileError: it is of another kind, or the policy can't be built.
    """
    description = _checked_description(path, file.config, set(file.tensors))
    if kind is not None and file.config["kind"] != kind:
        raise SafeFileError(
            f"{str(path)!r} holds a {file.config['kind']!r} agent, not {kind!r}: read it by load_agent(path, env=env)."
        )
    build = _policy_class(path, description["class"], policy_class)
    present = sum(tensor.numel() for named in file.tensors.values() for tensor in named.values())
    with budget(present):
        arguments = decode_arguments(
            path, description["arguments"], tensors=file.tensors["arguments"], custom_objects=custom_objects or {}
        )
    # Building draws initial weights that are overwritten at once: the caller's random state must not move for it.
    with isolated_rng():
        with modules_within(file.tensors["policy"]):
            policy = _build_policy(path, build, arguments)
        load_parameters(path, policy, file.tensors["policy"], _fix(build, arguments))
        target = get_device(device)
        policy.to(target)
        policy.set_training_mode(False)
        resample_noise(policy)  # drawn from the fresh weights, on the CPU, until now
    return AgentFile(
        kind=file.config["kind"],
        policy=policy,
        config=file.config["config"],
        tensors={
            name: tensor if name.startswith(KEPT_ON_CPU) else tensor.to(target)
            for name, tensor in file.tensors["extra"].items()
        },
        versions=file.versions,
    )


def _checked_description(path: Path, config: Mapping[str, Any], groups: set[str]) -> dict[str, Any]:
    description = config.get("policy")
    if not (
        isinstance(config.get("kind"), str)
        and isinstance(config.get("config"), dict)
        and isinstance(description, dict)
        and isinstance(description.get("arguments"), dict)
        and set(description["arguments"]) >= BUILT_FROM
        and "class" in description
        and groups == MEMBERS
    ):
        raise SafeFileError(f"{str(path)!r} lacks a part of an agent file. Use another copy, or save the agent again.")
    return description


def _policy_class(path: Path, named: Any, given: type[BasePolicy] | None) -> type[BasePolicy]:
    if given is not None:
        if not (isinstance(given, type) and issubclass(given, BasePolicy)):
            raise TypeError(
                f"policy_class={given!r} is no policy class: pass a subclass of BasePolicy, such as ActorCriticPolicy."
            )
        return given
    custom = custom_name(named)
    if custom is not None:
        raise SafeFileError(
            f"{str(path)!r} was saved with a policy class of its writer's own ({custom}). "
            f"Import that class and load with policy_class={custom.rpartition('.')[2]}."
        )
    try:
        return policy_class_by_name(named)
    except ValueError as error:
        raise SafeFileError(f"{str(path)!r}: {error}") from error


def _build_policy(path: Path, build: type[BasePolicy], arguments: Mapping[str, Any]) -> BasePolicy:
    # The arguments are the file's to fill, so any error of torch's, Stable-Baselines3's or a custom class's can come.
    with refused(
        path, SafeFileError, _fix(build, arguments), f"gives arguments from which {build.__name__} can't be built"
    ):
        return build(lr_schedule=constant_zero, **arguments)


def _fix(build: type[BasePolicy], given: Mapping[str, Any]) -> str:
    """What to do where a policy does not fit its file: a class of the user's may take what the file lacks."""
    parameters = inspect.signature(build).parameters.values()
    own = [] if listed_policy_name(build) else [each.name for each in parameters if each.kind not in PASSED_ON]
    lacking = ", ".join(f"{name!r}: ..." for name in own if name not in {*given, "lr_schedule"})
    return f"Load it with custom_objects={{{lacking}}}, which the file lacks." if lacking else FIX


def load_parameters(path: Path, policy: BasePolicy, state: Mapping[str, Tensor], fix: str = FIX) -> None:
    """Put a file's parameters and buffers into a policy, in the dtypes that they have in the file.

    Args:
        path: what errors call the file.
        policy: built already.
        state: all of its `state_dict()`, on any device.
        fix: the message's last sentence.

    Raises:
        SafeFileError: something is missing, too many, or of another shape.
    """
    own = policy.state_dict()
    problems = [f"lacks {name}" for name in sorted(own.keys() - state.keys())]
    problems += [f"has {name}, which the policy lacks" for name in sorted(state.keys() - own.keys())]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, the policy's has {tuple(own[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if own[name].shape != state[name].shape
    ]
    if problems:
        raise SafeFileError(
            f"{str(path)!r} does not fit {type(policy).__name__}: {'; '.join(problems[:5])}"
            f"{f' and {len(problems) - 5} more' if len(problems) > 5 else ''}. {fix}"
        )
    # load_state_dict would cast to the dtype that the policy was built in; the file's is the one that was trained.
    for name, tensor in [*policy.named_parameters(), *policy.named_buffers()]:
        if name in state and tensor.dtype != state[name].dtype:
            tensor.data = tensor.data.to(state[name].dtype)
    policy.load_state_dict(dict(state))


def resample_noise(policy: BasePolicy, count: int = 1) -> None:
    """Draw the noise that gSDE explores with, of the weights that the policy has now; nothing without gSDE.

    Args:
        policy: of any algorithm.
        count: the number of environments.
    """
    owner: Any = policy if isinstance(policy, ActorCriticPolicy) else getattr(policy, "actor", None)
    if getattr(owner, "use_sde", False):
        owner.reset_noise(count)


SMOOTHING, TREE = "__smoothing__", "__tree__"


def reference_to_plain(value: Any) -> Any:
    """`Smoothing` and `Tree`, also in tuples and lists, as dicts that JSON can hold; the rest as it is.

    Examples:
        >>> plain = reference_to_plain(("uniform", Smoothing(alpha=None, reference="binomial")))
        >>> plain[1]["__smoothing__"]["reference"]
        'binomial'
    """
    if isinstance(value, Smoothing):
        return {SMOOTHING: value.to_config()}
    if isinstance(value, Tree):
        return {TREE: value.to_config()}
    if type(value) in (tuple, list):
        return type(value)(reference_to_plain(entry) for entry in value)
    return value


def reference_from_plain(value: Any) -> Any:
    """Give back what `reference_to_plain` was given.

    Raises:
        KeyError, TypeError, ValueError: a dict that it did not write.
    """
    if isinstance(value, Mapping) and len(value) == 1:
        [(tag, config)] = value.items()
        if tag == SMOOTHING:
            return Smoothing.from_config(config)
        if tag == TREE:
            return Tree.from_config(config)
    if type(value) in (tuple, list):
        return type(value)(reference_from_plain(entry) for entry in value)
    return value
