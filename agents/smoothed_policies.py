"""Smoothed forms of Stable-Baselines3's actor-critic policies, for its unmodified algorithms and for ours."""

from __future__ import annotations

from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    MultiInputActorCriticPolicy,
)

from rlsmooth.agents.smoothed_policy import SmoothedPolicy

__all__ = ["SmoothedActorCriticCnnPolicy", "SmoothedActorCriticPolicy", "SmoothedMultiInputActorCriticPolicy"]


class SmoothedActorCriticPolicy(SmoothedPolicy, ActorCriticPolicy):
    """`MlpPolicy` with a regulariser in the entropy slot and an exploration floor; see `SmoothedPolicy` for both.

    For PPO and A2C, on Discrete, MultiDiscrete, MultiBinary and Box actions.

    Example:
        >>> from stable_baselines3 import PPO
        >>> knobs = dict(reference="uniform", exploration_floor=0.05)
        >>> model = PPO(SmoothedActorCriticPolicy, "CartPole-v1", ent_coef=0.01, policy_kwargs=knobs, device="cpu")
        >>> model.policy.action_probabilities([0.0, 0.0, 0.0, 0.0]).sum().round().item()
        1.0
    """


class SmoothedActorCriticCnnPolicy(SmoothedActorCriticPolicy, ActorCriticCnnPolicy):
    """`CnnPolicy` with the knobs of `SmoothedPolicy`."""


class SmoothedMultiInputActorCriticPolicy(SmoothedActorCriticPolicy, MultiInputActorCriticPolicy):
    """`MultiInputPolicy` with the knobs of `SmoothedPolicy`."""
