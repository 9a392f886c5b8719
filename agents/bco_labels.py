"""Pseudo-labels: the actions that an inverse dynamics model reads off pairs of observations."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rlsmooth.agents.heads import CategoricalHead
from rlsmooth.agents.inverse_dynamics import InverseDynamics
from rlsmooth.data import Demonstrations

__all__ = ["pseudo_labelled"]


def pseudo_labelled(
    pairs: Demonstrations, inverse: InverseDynamics, *, soft: bool, true_actions: NDArray[Any] | None
) -> tuple[Demonstrations, dict[str, float]]:
    """The same transitions with the most probable actions, and how sure and how right these are.

    Args:
        pairs: whose observations, next observations and masks are read; the actions are not.
        inverse: fitted.
        soft: give them all probabilities too, as `action_probs`; a Discrete action space.
        true_actions: `[N, ...]`, if they are known.

    Returns:
        The demonstrations, and `pseudo_label_confidence` (mean probability of the labels; not for a Box) and
        `pseudo_label_accuracy` (share of right components) or, for a Box, `pseudo_label_error` (root mean square).
    """
    masks: Any = pairs.action_masks
    actions = inverse.predict(pairs.observations, pairs.next_observations, masks)
    found: dict[str, float] = {}
    probabilities: Any = None
    if isinstance(inverse.bc.head, CategoricalHead):
        probabilities = inverse.probabilities(pairs.observations, pairs.next_observations, masks)
        groups = probabilities if isinstance(probabilities, tuple) else (probabilities,)
        most = [group.max(axis=-1).reshape(len(pairs), -1) for group in groups]
        found["pseudo_label_confidence"] = float(np.concatenate(most, axis=1).mean(dtype=np.float64))
    if true_actions is not None:
        if isinstance(pairs.action_space, spaces.Box):
            gaps = actions.astype(np.float64) - true_actions
            found["pseudo_label_error"] = float(np.sqrt(np.mean(gaps**2)))
        else:
            found["pseudo_label_accuracy"] = float(np.mean(actions == true_actions))
    # Known to be right: predictions are legal actions, probabilities sum to 1.
    return pairs.replace_unchecked(actions=actions, action_probs=probabilities if soft else None), found
