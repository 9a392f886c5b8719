"""Ask any kind of policy for actions: an object with SB3's `predict`, or a function of observations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from gymnasium import spaces

from rlsmooth.data.arrays import AnyArray, stack_observations, stored_dtype
from rlsmooth.data.vec_env_adapter import Observation

STATEFUL_ARGUMENTS = 3
"""Observations, state and episode starts: what a function of the imitation library takes."""


ROUNDING = 1e-6
"""How far outside a Box an action may be, absolutely and relatively to the bound."""


@runtime_checkable
class Predictor(Protocol):
    """Whatever has SB3's `predict`: an algorithm, a policy, or an agent of ours."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """Actions and the next recurrent state."""


PolicyLike: TypeAlias = Predictor | Callable[..., Any]


class Actor:
    """Asks a policy for one answer an environment, and keeps a recurrent policy's state.

    Args:
        policy: with SB3's `predict`, or a function. A function of one argument gets one observation and returns one
            answer, or batches of them if `batched`. A function that needs three arguments is called as the imitation
            library calls it: `function(observations, state, episode_start) -> (answers, state)`, always with batches.
        batched: whether a function of one argument gets and returns batches.
        deterministic: the policy's most probable action in place of a sampled one; ignored by a function.

    Raises:
        TypeError: `policy` has no `predict` and is no function.
    """

    def __init__(self, policy: PolicyLike, *, batched: bool, deterministic: bool) -> None:
        if not isinstance(policy, Predictor) and not callable(policy):
            raise TypeError(f"policy must have SB3's predict or be a function, got {type(policy).__name__}.")
        self.policy = policy
        self.batched = batched
        self.deterministic = deterministic
        self.state: Any = None
        self.takes_masks = isinstance(policy, Predictor) and "action_masks" in _parameters(policy.predict)
        self.takes_state = not isinstance(policy, Predictor) and _num_required(policy) >= STATEFUL_ARGUMENTS

    def __call__(
        self, observations: Sequence[Observation], masks: Sequence[AnyArray] | None, starts: AnyArray
    ) -> Sequence[Any]:
        """One answer an environment, unchecked.

        Args:
            observations: one an environment.
            masks: each environment's flat mask of legal actions, or None.
            starts: bool `[n]`: whether an episode begins with this observation.

        Raises:
            ValueError: there are more or fewer answers than environments.
        """
        if isinstance(self.policy, Predictor):
            more = {"action_masks": np.stack(masks)} if masks is not None and self.takes_masks else {}
            answers, self.state = self.policy.predict(
                stack_observations(observations),
                state=self.state,
                episode_start=starts,
                deterministic=self.deterministic,
                **more,
            )
        elif self.takes_state:
            answers, self.state = self.policy(stack_observations(observations), self.state, starts)
        elif self.batched:
            answers = self.policy(stack_observations(observations))
        else:
            answers = [self.policy(observation) for observation in observations]
        if len(answers) != len(observations):
            raise ValueError(f"the policy returned {len(answers)} actions for {len(observations)} environments.")
        given: Sequence[Any] = answers
        return given


def checked_action(action: Any, space: spaces.Space[Any], who: str = "policy") -> AnyArray:
    """One action in the form in which demonstrations store it.

    A Box's action that is outside its bounds by a rounding error, as SB3's policies that scale tanh choose them, comes
    back as the bound.

    Raises:
        ValueError: it is outside the action space by more.
    """
    array = np.asarray(action)
    whole = not isinstance(space, spaces.Box)
    if isinstance(space, spaces.MultiBinary) and array.dtype.kind == "f" and np.isin(array, (0, 1)).all():
        array = array.astype(np.int8)  # SB3's Bernoulli policies choose 0.0 and 1.0
    if array.shape == space.shape and not (whole and array.dtype.kind not in "biu"):
        cast = array.astype(stored_dtype(space))
        if isinstance(space, spaces.Box) and cast.dtype.kind == "f":
            nearest = np.asarray(np.clip(cast, space.low, space.high))
            cast = nearest if np.allclose(cast, nearest, rtol=ROUNDING, atol=ROUNDING) else cast
        if space.contains(cast[()] if whole else cast):
            return cast
    raise ValueError(f"the {who} chose {action!r}, which is outside action_space={space!r}.")


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # some functions in C have no signature
        return {}


def _num_required(function: Callable[..., Any]) -> int:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in positional and one.default is one.empty for one in _parameters(function).values())
