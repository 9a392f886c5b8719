"""The classes that an agent file may name. sb3-contrib's are looked up only when one of them is asked for."""

from __future__ import annotations

import sys
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
from torch import nn

from rlsmooth.agents.off_policy_policies import (
    CONTRIB_OFF_POLICY_POLICIES,
    OFF_POLICY_POLICIES,
    contrib_off_policy_policy,
    off_policy_name,
)
from rlsmooth.agents.smoothed_policies import (
    SmoothedActorCriticCnnPolicy,
    SmoothedActorCriticPolicy,
    SmoothedMultiInputActorCriticPolicy,
)
from rlsmooth.agents.transition_features import TransitionFeatures

__all__ = [
    "ACTIVATIONS",
    "EXTRACTORS",
    "OPTIMIZERS",
    "is_known_policy",
    "listed_policy_name",
    "policy_class_by_name",
    "recurrent_arguments",
    "resample_noise",
]

ACTIVATIONS: dict[str, type] = {
    activation.__name__: activation
    for activation in (
        nn.CELU,
        nn.ELU,
        nn.GELU,
        nn.Hardsigmoid,
        nn.Hardswish,
        nn.Hardtanh,
        nn.Identity,
        nn.LeakyReLU,
        nn.LogSigmoid,
        nn.Mish,
        nn.PReLU,
        nn.ReLU,
        nn.ReLU6,
        nn.SELU,
        nn.Sigmoid,
        nn.SiLU,
        nn.Softplus,
        nn.Softsign,
        nn.Tanh,
        nn.Tanhshrink,
    )
}
"""Activation functions by short name."""

OPTIMIZERS: dict[str, type] = {
    optimizer.__name__: optimizer
    for optimizer in (
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.RMSprop,
        torch.optim.SGD,
        RMSpropTFLike,
    )
}
"""Optimisers by short name."""

EXTRACTORS: dict[str, type] = {
    extractor.__name__: extractor for extractor in (CombinedExtractor, FlattenExtractor, NatureCNN, TransitionFeatures)
}
"""Features extractors by short name."""

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
MASKABLE = ("MaskableActorCriticPolicy", "MaskableActorCriticCnnPolicy", "MaskableMultiInputActorCriticPolicy")
RECURRENT = ("RecurrentActorCriticPolicy", "RecurrentActorCriticCnnPolicy", "RecurrentMultiInputActorCriticPolicy")
SMOOTHED_CONTRIB = tuple(f"Smoothed{name}" for name in (*MASKABLE, *RECURRENT))
CONTRIB = (*MASKABLE, *RECURRENT, *SMOOTHED_CONTRIB, *CONTRIB_OFF_POLICY_POLICIES)


def policy_class_by_name(name: Any) -> type[BasePolicy]:
    """The policy class of that short name.

    Args:
        name: anything that a file may hold; only the names of the tables above are known.

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
    if name in CONTRIB and not _contrib_is_loaded():
        return None  # a namesake: sb3-contrib's class can't exist before its module does
    try:
        return name if policy_class_by_name(name) is policy_class else None
    except ValueError:
        return None


def is_known_policy(policy: BasePolicy) -> bool:
    """Whether the policy's class is one that a file may name, or a subclass of one."""
    return any(issubclass(ancestor, BasePolicy) and listed_policy_name(ancestor) for ancestor in type(policy).__mro__)


def resample_noise(policy: BasePolicy, count: int = 1) -> None:
    """Draw the noise that gSDE explores with, of the weights that the policy has now; nothing without gSDE.

    Args:
        policy: any.
        count: of environments.
    """
    owner: Any = policy if isinstance(policy, ActorCriticPolicy) else getattr(policy, "actor", None)
    if getattr(owner, "use_sde", False):
        owner.reset_noise(count)


def recurrent_arguments(policy: BasePolicy) -> dict[str, Any]:
    """The constructor arguments of sb3-contrib's recurrent policies, which their own list leaves out; else `{}`."""
    if not _contrib_is_loaded():
        return {}
    base = _contrib_policies(RECURRENT[0])[RECURRENT[0]]
    if not isinstance(policy, base):
        return {}
    policy_of_base: Any = policy
    return {
        "lstm_hidden_size": policy_of_base.lstm_output_dim,
        "n_lstm_layers": policy_of_base.lstm_hidden_state_shape[0],
        "shared_lstm": policy_of_base.shared_lstm,
        "enable_critic_lstm": policy_of_base.enable_critic_lstm,
        "lstm_kwargs": policy_of_base.lstm_kwargs,
    }


def _contrib_is_loaded() -> bool:
    return sys.modules.get("sb3_contrib") is not None


def _contrib_policy(name: str) -> type[BasePolicy]:
    return contrib_off_policy_policy(name) if name in CONTRIB_OFF_POLICY_POLICIES else _contrib_policies(name)[name]


def _contrib_policies(name: str) -> dict[str, type[BasePolicy]]:
    """The policies of the module that has the one of that name."""
    # Imported by names that stand here, and only when asked for: sb3-contrib is an optional extra.
    if name in SMOOTHED_CONTRIB:
        from rlsmooth.agents import smoothed_contrib_policies

        return {known: getattr(smoothed_contrib_policies, known) for known in SMOOTHED_CONTRIB}
    if name in MASKABLE:
        from sb3_contrib.common.maskable import policies as maskable_policies

        return {known: getattr(maskable_policies, known) for known in MASKABLE}
    from sb3_contrib.common.recurrent import policies as recurrent_policies

    return {known: getattr(recurrent_policies, known) for known in RECURRENT}
