"""The Gymnasium environment around a `TabularProblem`: draws states, checks actions, pays rewards."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from rlsmooth.checks import check_choice, check_positive_int
from rlsmooth.envs.images import (
    BLACK,
    GREEN,
    RED,
    WHITE,
    RenderMode,
    check_render_mode,
    paint_bands,
    warn_no_render_mode,
)
from rlsmooth.envs.observations import Observation, ObservationForm, Observer, StateObserver
from rlsmooth.envs.optima import Direction
from rlsmooth.envs.tabular import TabularProblem, enumerate_states
from rlsmooth.targets import Smoothing

Action = int | np.integer[Any] | NDArray[Any]
IllegalAction = Literal["penalise", "raise"]


class TabularEnv(gym.Env[Any, Any]):
    """A contextual bandit played `episode_length` times; the families differ in problem and action space only.

    Each step draws the next state uniformly, whatever the action was. An episode ends by **truncation**, never by
    termination: the clock is not part of the observation and the process would continue alike, so the value of
    a state is `r(s, a) + discount * mean value` at every step, and an algorithm that bootstraps from the final
    observation (as SB3 does on truncation) sees one stationary value function. Termination would make values depend on
    the unseen time left. Since actions never influence states, the best policy is the same for every discount;
    `gamma=0` learns fastest.

    Reproducible: all randomness is `np_random`, which only `reset(seed=...)` seeds.

    Args:
        problem: the tables.
        action_space: Discrete, MultiDiscrete or MultiBinary over `problem.dims`.
        episode_length: steps in an episode, at least 1 (Gymnasium's `check_env` wants 2 or more).
        observation: `"native"`, `"one_hot"`, `"dict"` or `"image"`; see `rlsmooth.envs.observations.StateObserver`; or
            an observer of another kind.
        illegal_action: what a masked action does: `"penalise"` (pay its reward of the table, set
            `info["illegal_action"]`) or `"raise"` a ValueError.
        render_mode: None or `"rgb_array"`: above, the state's components in white; below, what is legal in green.

    Raises:
        TypeError: if `episode_length` is no whole number.
        ValueError: if an argument is out of range or unknown.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 4}  # type: ignore[misc]  # gymnasium leaves ClassVar out

    def __init__(
        self,
        problem: TabularProblem,
        action_space: spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary,
        *,
        episode_length: int,
        observation: ObservationForm | Observer,
        illegal_action: IllegalAction = "penalise",
        render_mode: RenderMode | None = None,
    ) -> None:
        check_render_mode(render_mode)
        check_choice("illegal_action", illegal_action, ("penalise", "raise"))
        self.problem = problem
        self.episode_length = check_positive_int("episode_length", episode_length)
        self.illegal_action = illegal_action
        self.render_mode = render_mode
        self.action_space = action_space
        self._finite_space = action_space  # the same object, with the type that Gymnasium's attribute forgets
        self.observer: Observer
        if isinstance(observation, str):
            self.observer = StateObserver(problem.dims, action_space, observation)
        else:
            self.observer = observation
        self.observation_space = self.observer.space()
        self._states = enumerate_states(self.observer.dims)  # [S, D]
        if len(self._states) != problem.num_states:
            raise ValueError(f"problem has {problem.num_states} states: dims={problem.dims} need {len(self._states)}.")
        self._best = problem.best_actions()  # [S, D]
        self._offsets = problem.offsets  # [D]
        self._sizes = np.array(problem.dims)  # [D]
        self._paid = problem.rewards
        self._state = 0
        self._steps_left = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode in a random state; `options` are not used."""
        super().reset(seed=seed)
        self._steps_left = self.episode_length
        return self._draw_state(), {}

    def step(self, action: Action) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Pay the reward of `action` in the current state and draw the next one.

        Returns:
            The next observation, the reward, False, whether the episode is over, and `info`, empty but for illegal
            actions.

        Raises:
            ResetNeeded: before the first `reset`, or after the end of an episode.
            TypeError: if the action's dtype is not the space's kind.
            ValueError: if its shape is wrong or a value is out of range, or it is illegal under
                `illegal_action="raise"`.
        """
        if self._steps_left == 0:
            raise ResetNeeded("The episode is over or has not begun: call reset() before step().")
        columns = self._offsets + read_action(action, self._finite_space, self._sizes)  # [D]
        info: dict[str, Any] = {}
        if not self.problem.legal[self._state, columns].all():
            if self.illegal_action == "raise":
                raise ValueError(
                    f"action {action!r} is illegal in state {self._state}: choose one that action_masks() allows."
                )
            info["illegal_action"] = True
        reward = float(self._paid[self._state, columns].sum())
        self._steps_left -= 1
        return self._draw_state(), reward, False, self._steps_left == 0, info

    def render(self) -> Any:
        """Return an image of the current state, `[64, 192, 3]` uint8; None and a warning without a render mode."""
        if self.render_mode is None:
            warn_no_render_mode()
            return None
        shown = np.zeros(sum(self.problem.dims), dtype=np.bool_)
        shown[self.shown_columns()] = True
        return paint_bands([(shown, WHITE, BLACK), (self.problem.legal[self._state], GREEN, RED)])

    def shown_columns(self) -> NDArray[np.int64]:
        """The columns of the tables that an image of the current state has in white."""
        columns: NDArray[np.int64] = self.problem.offsets + self._states[self._state]
        return columns

    def expert_action(self, observation: Observation | int) -> Any:
        """Return the best action for one observation, in the action space's dtype and shape (the lowest of several).

        Raises:
            ValueError: if the observation shows no state.
        """
        best = self._best[self.state_of(observation)]  # [D]
        if isinstance(self._finite_space, spaces.Discrete):
            return np.int64(best[0])
        return best.astype(self._finite_space.dtype)

    def state_of(self, observation: Observation | int) -> int:
        """Return the row of the tables that belongs to one observation.

        Raises:
            ValueError: if the observation shows no state.
        """
        return int(np.ravel_multi_index(tuple(self.observer.decode(observation)), self.observer.dims))

    def observation_of(self, state: int) -> Any:
        """Return the observation of row `state` of the tables.

        Raises:
            ValueError: if there is no such row.
        """
        if not 0 <= state < self.problem.num_states:
            raise ValueError(f"state={state} must lie in [0, {self.problem.num_states}).")
        return self.observer.encode(self._states[state])

    def optimal_return(self) -> float:
        """Return the best policy's expected undiscounted return: `episode_length * mean_s max_a r(s, a)`."""
        return self.episode_length * self.problem.optimal_reward()

    def expected_return(self, policy: NDArray[np.floating]) -> float:
        """Return the expected undiscounted return of an episode under a tabular policy, exactly.

        Args:
            policy: `[n_states, sum(dims)]` probabilities, `[n_states, n_actions]` for a Discrete action space.

        Raises:
            ValueError: if it is no policy (shape, negative entries, sums), or gives an illegal action a positive
                probability under `illegal_action="raise"`, where such a step has no reward.
        """
        value = self.episode_length * self.problem.expected_reward(policy)
        if self.illegal_action == "raise" and (np.asarray(policy)[~self.problem.legal] > 0).any():
            raise ValueError(
                "policy gives illegal actions a positive probability: mask it, or use illegal_action='penalise'."
            )
        return value

    def optimal_smoothed_policy(self, alpha: float | str | Smoothing) -> NDArray[np.float64]:
        """Return the minimiser of the smoothed cross-entropy against the best actions.

        For a number it is `(1 - alpha) * onehot(best) + alpha * uniform`. The uniform part covers the legal actions;
        another `Smoothing` gives another background (ordinal, hierarchical).

        Returns:
            `[n_states, sum(dims)]` float64, `[n_states, n_actions]` for a Discrete action space.

        Raises:
            ValueError: if `rlsmooth.targets` rejects `alpha`.
        """
        return self.problem.smoothed_policy(alpha)

    def soft_optimal_policy(
        self, coefficient: float, *, direction: Direction = "policy_to_reference"
    ) -> NDArray[np.float64]:
        """Return the best policy of one step under a bonus: entropy (the default), or minus KL(uniform to policy).

        `coefficient` is in reward per nat, summed over the action's components, as SB3's `ent_coef` is when advantages
        are not normalised. Formulas and source: `rlsmooth.envs.optima.soft_optimum`.

        Returns:
            `[n_states, sum(dims)]` float64, 0 at illegal actions.

        Raises:
            TypeError: if `coefficient` is no number.
            ValueError: if `coefficient` is not above 0 or `direction` is unknown.
        """
        return self.problem.soft_policy(coefficient, direction=direction)

    def _draw_state(self) -> Observation:
        self._state = int(self.np_random.integers(self.problem.num_states))
        return self.observer.encode(self._states[self._state])


class MaskedTabularEnv(TabularEnv):
    """A `TabularEnv` with action masks, in a method whose name sb3-contrib knows."""

    def action_masks(self) -> NDArray[np.bool_]:
        """Return `[sum(dims)]` bool for the current state, True = legal; `[n_actions]` for a Discrete action space."""
        mask: NDArray[np.bool_] = self.problem.legal[self._state].copy()
        return mask


def read_action(
    action: Action, space: spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary, sizes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the components, `[D]` int64, of an action with `sizes` `[D]` values each, or say what is wrong with it.

    A MultiBinary action may also be bool or float: SB3's policies return 0.0 and 1.0 there.

    Raises:
        TypeError: if the dtype is of another kind.
        ValueError: if the shape is wrong, or a value is out of range.
    """
    values = np.asarray(action)
    kinds = "iubf" if isinstance(space, spaces.MultiBinary) else "iu"
    if values.dtype.kind not in kinds:
        raise TypeError(f"action {action!r} has dtype {values.dtype}: {space} takes whole numbers.")
    if values.shape != space.shape:
        raise ValueError(f"action {action!r} has shape {values.shape}: {space} takes {space.shape}.")
    components = np.atleast_1d(values)  # [D]
    in_range = (components >= 0) & (components < sizes) & (components == np.floor(components))  # NaN is not
    if not in_range.all():
        raise ValueError(f"action {action!r} is out of range: {space} takes whole numbers from 0 to {sizes - 1}.")
    return components.astype(np.int64)
