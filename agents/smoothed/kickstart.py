"""From a cloned policy to reinforcement learning: the same weights, a critic fitted first, and KL to the clone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv

from rlsmooth.agents.acting import copy_actor
from rlsmooth.agents.cloning.bc import BC
from rlsmooth.agents.files.policy_file import constructor_arguments
from rlsmooth.agents.smoothed.arguments import ScheduleLike, has_default_reference
from rlsmooth.agents.spaces import check_same_spaces, wrap_env
from rlsmooth.checks import check_positive_int
from rlsmooth.targets import Smoothing

if TYPE_CHECKING:
    from rlsmooth.agents.smoothed.algorithms import SmoothedTraining

__all__ = ["algorithm_from_bc"]


ALIASES = {
    "ActorCriticPolicy": "MlpPolicy",
    "ActorCriticCnnPolicy": "CnnPolicy",
    "MultiInputActorCriticPolicy": "MultiInputPolicy",
}
# Of the algorithm, not of the clone.
NOT_COPIED = ("observation_space", "action_space", "optimizer_class", "optimizer_kwargs", "use_sde")
SMOOTHED_ONLY = ("reference", "exploration_floor", "reference_std")
GAUSSIAN_ONLY = ("log_std_init", "full_std", "use_expln", "squash_output")


def algorithm_from_bc(
    algorithm: type[SmoothedTraining],
    bc_agent: BC,
    env: GymEnv | str,
    *,
    policy: type[BasePolicy] | None,
    smoothing: ScheduleLike | Smoothing,
    exploration_floor: ScheduleLike,
    value_warmup_steps: int,
    policy_kwargs: Mapping[str, Any] | None,
    arguments: Mapping[str, Any],
) -> SmoothedTraining:
    """Build what `SmoothedPPO.from_bc` returns; see there for the arguments.

    Args:
        algorithm: the class.
        bc_agent: see there.
        env: see there.
        policy: see there.
        smoothing: see there.
        exploration_floor: see there.
        value_warmup_steps: see there.
        policy_kwargs: see there.
        arguments: the rest.
    """
    if not isinstance(bc_agent, BC):
        raise TypeError(f"bc_agent must be an rlsmooth.agents.BC, got {type(bc_agent).__name__}: load it by BC.load.")
    check_positive_int("value_warmup_steps", value_warmup_steps, minimum=0)
    if bc_agent.bins is not None:
        raise ValueError(
            f"bc_agent cuts its actions into bins (action_bins={bc_agent.bins.num_bins}), so that its policy has "
            f"another action space than the environment: clone without action_bins."
        )
    if bc_agent._action_start is not None:
        raise ValueError(
            f"bc_agent has action_space={bc_agent.action_space!r}, whose actions do not count from 0 as those of "
            "Stable-Baselines3's algorithms do: clone and train in a wrapper that subtracts the start."
        )
    if isinstance(smoothing, Smoothing) and not has_default_reference(smoothing):
        raise ValueError(
            f"smoothing has reference={smoothing.reference!r}, but the clone is the reference here: give a number or a "
            'schedule; policy_kwargs={"reference": ...} is what an exploration floor mixes with.'
        )
    wrapped = wrap_env("env", env, int(arguments.get("verbose", 0)))
    check_same_spaces(
        "env",
        (wrapped.observation_space, wrapped.action_space),
        (bc_agent.observation_space, bc_agent.action_space),
    )
    model = algorithm(
        _policy_class(algorithm, bc_agent.policy) if policy is None else policy,
        wrapped,
        smoothing=smoothing,
        exploration_floor=exploration_floor,
        policy_kwargs={**_architecture(bc_agent), **(policy_kwargs or {})},
        **arguments,
    )
    copy_actor(bc_agent.policy, model)
    if model.is_smoothed:
        model.keep_reference_policy()
    model.value_warmup_left = value_warmup_steps
    return model


def _policy_class(algorithm: type[SmoothedTraining], policy: BasePolicy) -> type[BasePolicy]:
    """The algorithm's form of a cloned policy's class."""
    name = type(policy).__name__.removeprefix("Smoothed")
    is_maskable = name.startswith("Maskable")
    chosen = algorithm.policy_aliases.get(ALIASES.get(name.removeprefix("Maskable"), ""))
    if "MlpPolicy" not in algorithm.policy_aliases:
        raise TypeError(
            f"{algorithm.__name__} trains recurrent policies, which BC does not clone: use SmoothedPPO.from_bc."
        )
    known = type(policy).__module__.startswith(("stable_baselines3.", "sb3_contrib.", "rlsmooth."))
    if chosen is None or not known:
        raise TypeError(
            f"bc_agent has a policy of its own class, {type(policy).__name__}: give policy=, a class with the same "
            "layers and with SmoothedPolicy among its bases."
        )
    if is_maskable and "Maskable" not in chosen.__name__:
        raise TypeError(
            f"bc_agent's {type(policy).__name__} acts under masks, which {algorithm.__name__} does not use: use "
            "SmoothedMaskablePPO.from_bc."
        )
    return chosen


def _architecture(bc_agent: BC) -> dict[str, Any]:
    """The policy's arguments that decide its layers."""
    is_box = isinstance(bc_agent.action_space, spaces.Box)
    left_out = (*NOT_COPIED, *SMOOTHED_ONLY, *(() if is_box else GAUSSIAN_ONLY))
    found = {name: value for name, value in constructor_arguments(bc_agent.policy).items() if name not in left_out}
    if is_box and bc_agent.reference_std is not None:
        found["reference_std"] = bc_agent.reference_std
    return found
