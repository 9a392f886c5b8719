"""What cloning from observation is given, checked and brought into the form that its rounds use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rlsmooth.agents.bc_targets import Smoothings
from rlsmooth.agents.spaces import check_same_spaces
from rlsmooth.agents.transition_features import INPUTS
from rlsmooth.checks import check_choice
from rlsmooth.data import Demonstrations, ObservationOnly
from rlsmooth.data.observation_only import transitions_with_next
from rlsmooth.training.learning_rate import as_schedule

if TYPE_CHECKING:
    from rlsmooth.agents.bco import BCO

__all__ = ["check_inverse_arguments", "check_observed", "check_ready", "read_pairs"]


def check_observed(value: object) -> None:
    """Raise TypeError unless `value` is something to clone from observation, or None."""
    if value is not None and not isinstance(value, (Demonstrations, ObservationOnly)):
        raise TypeError(
            f"demonstrations must be ObservationOnly or Demonstrations, got {type(value).__name__}: "
            "use ObservationOnly.from_trajectories."
        )


def check_inverse_arguments(inputs: object, learning_rate: object, smoothings: Smoothings) -> None:
    """Check what the inverse dynamics model will be given, before there is one.

    Raises:
        TypeError: a callable, which no file can hold: resuming a run would ask for it.
        ValueError: an unknown word, or a learning rate that is not above 0.
    """
    check_choice("inverse_inputs", inputs, INPUTS)
    if not isinstance(learning_rate, (float, int, str)):
        raise TypeError(f'inverse_learning_rate={learning_rate!r} must be a number or "lin_1e-3".')
    try:
        as_schedule(learning_rate)
    except ValueError as error:
        raise ValueError(f"inverse_learning_rate={learning_rate!r} can't be used: {error}") from error
    if any(callable(recipe.alpha) for recipe in smoothings):
        raise TypeError('inverse_smoothing has a callable alpha, which no file can hold: use a number or "lin_0.1".')


def read_pairs(
    given: Demonstrations | ObservationOnly, own: tuple[spaces.Space[Any], spaces.Space[Any]]
) -> tuple[Demonstrations, NDArray[Any] | None]:
    """The pairs of observations, with actions of no meaning, and the true actions if they are known.

    Args:
        given: what to clone.
        own: the agent's observation space and action space.

    Raises:
        ValueError: spaces that differ, masks that don't fit the action space, no pair at all.
    """
    actions = None
    if isinstance(given, Demonstrations):
        check_same_spaces("demonstrations", (given.observation_space, given.action_space), own)
        actions = np.asarray(given.actions[transitions_with_next(given)])
        given = ObservationOnly.from_demonstrations(given)
    check_same_spaces("demonstrations", (given.observation_space, own[1]), own)
    return given.as_demonstrations(own[1]), actions


def check_ready(agent: BCO) -> None:
    """Raise ValueError unless the agent has all that `learn` needs."""
    agent._check_can_learn()
    if agent.pairs is None:
        raise ValueError("demonstrations is None, so there is nothing to clone: give them to BCO(...) or BCO.load.")
