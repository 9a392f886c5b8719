"""Acting under masks by a clone, whether or not its policy knows of masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlsmooth.agents import spaces as agent_spaces
from rlsmooth.agents.bc import BC
from rlsmooth.agents.bc_setup import is_maskable
from rlsmooth.agents.heads import CategoricalHead
from rlsmooth.losses import log_probabilities

__all__ = ["action_probabilities", "legal_actions"]


def legal_actions(
    agent: BC, observations: Any, masks: NDArray[np.bool_] | None, *, deterministic: bool = False
) -> NDArray[Any]:
    """Actions of a batch, as the environment takes them; none that a mask forbids.

    Sampled ones are drawn from torch's global generator.

    Args:
        agent: whose policy acts.
        observations: `[n, ...]`, or a dict of such.
        masks: bool `[n, sum of the dimensions' choices]`, True = legal; None: everything is.
        deterministic: the most probable legal action, else a sampled one.
    """
    if masks is None:
        return agent.predict(observations, deterministic=deterministic)[0]
    if is_maskable(agent.policy):
        return agent.predict(observations, deterministic=deterministic, action_masks=masks)[0]
    picked = []
    with torch.no_grad():
        for probabilities in _probabilities(agent.head, observations, masks):
            flat = probabilities.reshape(-1, probabilities.shape[-1])
            drawn = flat.argmax(dim=-1) if deterministic else torch.multinomial(flat, 1)
            picked.append(drawn.reshape(len(masks), -1))
    start = agent_spaces.action_start(agent.action_space)
    actions: NDArray[Any] = torch.cat(picked, dim=1).cpu().numpy()
    actions = actions.reshape(len(masks), *(agent.action_space.shape or ()))
    return actions if start is None else actions + start


def action_probabilities(
    head: CategoricalHead, observations: Any, masks: NDArray[np.bool_] | None
) -> NDArray[np.float32]:
    """float32 `[n, K]`: the probability of each action of a Discrete space, 0 where a mask forbids it.

    Args:
        head: of the policy.
        observations: `[n, ...]`, or a dict of such.
        masks: bool `[n, K]`, True = legal; None: everything is.
    """
    with torch.no_grad():
        (probabilities,) = _probabilities(head, observations, masks)
    found: NDArray[np.float32] = probabilities.float().cpu().numpy()
    return found


def _probabilities(
    head: CategoricalHead | Any, observations: Any, masks: NDArray[np.bool_] | None
) -> list[torch.Tensor]:
    """Of each group of components (see `CategoricalHead`)."""
    assert isinstance(head, CategoricalHead)
    policy = head.policy
    policy.set_training_mode(False)
    tensors, _ = policy.obs_to_tensor(observations)
    legal = head.mask_groups(None if masks is None else torch.as_tensor(masks, device=policy.device))
    return [log_probabilities(logits, mask).exp() for logits, mask in zip(head.outputs(tensors), legal, strict=True)]
