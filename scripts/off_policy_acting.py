"""What off-policy agents act from: a DQN's greedy action with its exploration, SAC's Gaussian; others have nothing."""

from __future__ import annotations

from typing import Any

import torch

from rlsmooth.agents.smoothed.distributions import CategoricalActing, GaussianActing
from rlsmooth.agents.smoothed.measures import read_distribution
from rlsmooth.agents.smoothed.references import box_reference

__all__ = ["off_policy_acting"]

GAUSSIAN = ("SACPolicy", "TQCPolicy", "CrossQPolicy")
"""By name: sb3-contrib, which has two of them, may be missing."""


@torch.no_grad()
def off_policy_acting(agent: Any, observations: Any) -> CategoricalActing | GaussianActing:
    """The distribution that the agent's sampled actions come from, a row for each observation.

    Args:
        agent: DQN, QR-DQN (the greedy action, or with the exploration rate in force any), SAC, TQC or CrossQ (a
            Gaussian before it is squashed, of which entropies are).
        observations: tensors, as its policy takes them.

    Raises:
        ValueError: the agent has none, as TD3.
    """
    policy: Any = agent.policy
    if type(policy).__name__ in GAUSSIAN:
        mean, log_std, _ = policy.actor.get_action_dist_params(observations)
        centre, spread = box_reference(agent.action_space)
        return GaussianActing(centre.to(agent.device), spread.to(agent.device)).proba_distribution(mean, log_std)
    try:
        values = read_distribution(policy, observations, None, None, None)
    except TypeError as error:
        raise ValueError(
            f"a {type(agent).__name__} acts from no distribution, so there are no probabilities to show: play it by "
            "`rlsmooth evaluate`."
        ) from error
    greedy = values.mode()
    outputs = torch.full((len(greedy), agent.action_space.n), -torch.inf, device=agent.device)
    outputs.scatter_(-1, greedy.unsqueeze(-1), 0.0)
    acting = CategoricalActing("discrete", (outputs.shape[-1],), floor=float(agent.exploration_rate))
    return acting.proba_distribution(outputs)
