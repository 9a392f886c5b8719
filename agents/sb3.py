"""Stable-Baselines3 and sb3-contrib: the class names and private names of theirs that this package relies on."""

from __future__ import annotations

import sys
from typing import Any

from stable_baselines3.common.policies import (
    BasePolicy,
)

__all__ = [
    "MASKABLE",
    "RECURRENT",
    "contrib_is_loaded",
    "contrib_policies",
    "has_base",
    "is_maskable",
    "recurrent_arguments",
]


def is_maskable(policy: BasePolicy) -> bool:
    """Whether it is one of sb3-contrib's maskable policies, which take `action_masks` in `predict`."""
    return has_base(type(policy), "MaskableActorCriticPolicy")


def has_base(policy_class: type, name: str) -> bool:
    """Whether a class of that name is among the ancestors."""
    # By name: sb3-contrib is an optional extra, which nothing here should import.
    return any(base.__name__ == name for base in policy_class.__mro__)


MASKABLE = ("MaskableActorCriticPolicy", "MaskableActorCriticCnnPolicy", "MaskableMultiInputActorCriticPolicy")


RECURRENT = ("RecurrentActorCriticPolicy", "RecurrentActorCriticCnnPolicy", "RecurrentMultiInputActorCriticPolicy")


def recurrent_arguments(policy: BasePolicy) -> dict[str, Any]:
    """The constructor arguments of sb3-contrib's recurrent policies, which their own list leaves out; else `{}`."""
    if not contrib_is_loaded():
        return {}
    base = contrib_policies(RECURRENT[0])[RECURRENT[0]]
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


def contrib_is_loaded() -> bool:
    """Whether the program has imported sb3-contrib."""
    return sys.modules.get("sb3_contrib") is not None


def contrib_policies(name: str) -> dict[str, type[BasePolicy]]:
    """The policies of the module that has the one of that name."""
    # Imported by names that stand here, and only when asked for: sb3-contrib is an optional extra.
    if name in MASKABLE:
        from sb3_contrib.common.maskable import policies as maskable_policies

        return {known: getattr(maskable_policies, known) for known in MASKABLE}
    from sb3_contrib.common.recurrent import policies as recurrent_policies

    return {known: getattr(recurrent_policies, known) for known in RECURRENT}
