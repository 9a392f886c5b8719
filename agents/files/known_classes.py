"""The classes that an agent file may name. sb3-contrib's are looked up only when one of them is asked for."""

from __future__ import annotations

import importlib
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
from stable_baselines3.dqn import policies as dqn_policies
from stable_baselines3.sac import policies as sac_policies
from stable_baselines3.td3 import policies as td3_policies
from torch import nn

from rlsmooth.agents.cloning.transition_features import TransitionFeatures
from rlsmooth.agents.sb3 import MASKABLE, RECURRENT, contrib_is_loaded, contrib_policies
from rlsmooth.agents.smoothed.policies import (
    SmoothedActorCriticCnnPolicy,
    SmoothedActorCriticPolicy,
    SmoothedMultiInputActorCriticPolicy,
)

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

    Example:
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

    Example:
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

    Example:
        >>> off_policy_name(dqn_policies.CnnPolicy), off_policy_name(BasePolicy)
        ('DQNCnnPolicy', None)
    """
    modules = {**{name: module.__name__ for name, module in MODULES.items()}, **CONTRIB_MODULES}
    for algorithm, module in modules.items():
        if policy_class.__module__ == module:
            return f"{algorithm}{policy_class.__name__.removeprefix(algorithm)}"
    return None
