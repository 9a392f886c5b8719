"""The policy classes of off-policy algorithms, by names that tell them apart.

Each algorithm calls its policies for images and for dicts `CnnPolicy` and `MultiInputPolicy`: here the algorithm's name
stands before these, as in `SACCnnPolicy`.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.dqn import policies as dqn_policies
from stable_baselines3.sac import policies as sac_policies
from stable_baselines3.td3 import policies as td3_policies

__all__ = [
    "CONTRIB_OFF_POLICY_POLICIES",
    "OFF_POLICY_POLICIES",
    "contrib_off_policy_policy",
    "off_policy_name",
]

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
"""Those of Stable-Baselines3: DDPG has TD3's."""

CONTRIB_OFF_POLICY_POLICIES: dict[str, tuple[str, str]] = {
    f"{algorithm}{ending}": (algorithm, ending)
    for algorithm in CONTRIB_MODULES
    for ending in (("Policy",) if algorithm == "CrossQ" else ("Policy", "CnnPolicy", "MultiInputPolicy"))
}
"""Those of sb3-contrib: which algorithm's, and the rest of the name."""


def contrib_off_policy_policy(name: str) -> type[BasePolicy]:
    """The class of a name of `CONTRIB_OFF_POLICY_POLICIES`.

    Raises:
        ImportError: sb3-contrib is not installed.
    """
    # Imported by names that stand here, and only when asked for: sb3-contrib is an optional extra.
    algorithm, ending = CONTRIB_OFF_POLICY_POLICIES[name]
    return _found(importlib.import_module(CONTRIB_MODULES[algorithm]), algorithm, ending)


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
