"""Checks and architecture for an algorithm that starts from a cloned policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy

from rlsmooth.agents.cloning.bc import BC
from rlsmooth.agents.files.policy_file import constructor_arguments
from rlsmooth.agents.smoothed.arguments import has_default_reference
from rlsmooth.schedules import ScheduleLike
from rlsmooth.targets import Smoothing

__all__ = ["check_clone", "layer_arguments", "smoothed_form"]


ALIASES = {
    "ActorCriticPolicy": "MlpPolicy",
    "ActorCriticCnnPolicy": "CnnPolicy",
    "MultiInputActorCriticPolicy": "MultiInputPolicy",
}
# Of the algorithm, not of the clone.
NOT_COPIED = ("observation_space", "action_space", "optimizer_class", "optimizer_kwargs", "use_sde")
SMOOTHED_ONLY = ("reference", "exploration_floor", "reference_std")
GAUSSIAN_ONLY = ("log_std_init", "full_std", "use_expln", "squash_output")


def check_clone(bc_agent: BC, smoothing: ScheduleLike | Smoothing) -> None:
    """Check that an on-policy algorithm can start from the clone.

    Raises:
        TypeError: it is no `BC`.
        ValueError: its actions are binned or do not count from 0; `smoothing` has a reference of its own.
    """
    if not isinstance(bc_agent, BC):
        raise TypeError(f"bc_agent must be an rlsmooth.agents.BC, got {type(bc_agent).__name__}: load it by BC.load.")
    if bc_agent.bins is not None:
        raise ValueError(
            f"bc_agent cuts its actions into bins (action_bins={bc_agent.bins.num_bins}), so that its policy has "
            f"another action space than the environment: clone without action_bins."
        )
    if bc_agent.action_start is not None:
        raise ValueError(
            f"bc_agent has action_space={bc_agent.action_space!r}, whose actions do not count from 0 as those of "
            "Stable-Baselines3's algorithms do: clone and train in a wrapper that subtracts the start."
        )
    if isinstance(smoothing, Smoothing) and not has_default_reference(smoothing):
        raise ValueError(
            f"smoothing has reference={smoothing.reference!r}, but the clone is the reference here: give a number or a "
            'schedule; policy_kwargs={"reference": ...} is what an exploration floor mixes with.'
        )


def smoothed_form(policy: BasePolicy, aliases: Mapping[str, type[BasePolicy]], algorithm: str) -> type[BasePolicy]:
    """The algorithm's form of a cloned policy's class.

    Args:
        policy: the clone's.
        aliases: the algorithm's policies by name.
        algorithm: the algorithm's name, for messages.

    Raises:
        TypeError: the algorithm has no form of it.
    """
    name = type(policy).__name__.removeprefix("Smoothed")
    is_maskable = name.startswith("Maskable")
    chosen = aliases.get(ALIASES.get(name.removeprefix("Maskable"), ""))
    if "MlpPolicy" not in aliases:
        raise TypeError(f"{algorithm} trains recurrent policies, which BC does not clone: use SmoothedPPO.from_bc.")
    known = type(policy).__module__.startswith(("stable_baselines3.", "sb3_contrib.", "rlsmooth."))
    if chosen is None or not known:
        raise TypeError(
            f"bc_agent has a policy of its own class, {type(policy).__name__}: give policy=, a class with the same "
            "layers and with SmoothedPolicy among its bases."
        )
    if is_maskable and "Maskable" not in chosen.__name__:
        raise TypeError(
            f"bc_agent's {type(policy).__name__} acts under masks, which {algorithm} does not use: use "
            "SmoothedMaskablePPO.from_bc."
        )
    return chosen


def layer_arguments(bc_agent: BC) -> dict[str, Any]:
    """The policy's arguments that decide its layers."""
    is_box = isinstance(bc_agent.action_space, spaces.Box)
    left_out = (*NOT_COPIED, *SMOOTHED_ONLY, *(() if is_box else GAUSSIAN_ONLY))
    found = {name: value for name, value in constructor_arguments(bc_agent.policy).items() if name not in left_out}
    if is_box and bc_agent.reference_std is not None:
        found["reference_std"] = bc_agent.reference_std
    return found
