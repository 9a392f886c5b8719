"""The algorithms that an agent file may name. Those of sb3-contrib are looked up only when they are asked for."""

from __future__ import annotations

from typing import Any, TypeAlias

from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

__all__ = ["ALGORITHM_BASES", "KNOWN_ALGORITHMS", "Algorithm", "listed_algorithm", "model_class_by_name"]

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
        from rlsmooth.agents import smoothed_contrib_algorithms

        found = getattr(smoothed_contrib_algorithms, name)
    else:
        from rlsmooth.agents import smoothed_algorithms

        found = getattr(smoothed_algorithms, name)
    algorithm: type[Algorithm] = found
    return algorithm
