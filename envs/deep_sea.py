"""Deep sea: a treasure at the end of a long way that costs a little at every step, the standard test of exploration."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, final

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from rlsmooth.checks import check_choice, check_in_range, check_positive_int
from rlsmooth.envs.images import BLACK, GREEN, WHITE, RenderMode, check_render_mode, warn_no_render_mode
from rlsmooth.envs.tabular_env import read_action

_SIZES = np.array([2])
_CELL = 16  # pixels


@final
class DeepSeaEnv(gym.Env[NDArray[np.float32], Any]):
    """Deep sea of `size` rows and columns, as bsuite defines it. Registered as `rlsmooth/DeepSea-v0`.

    A diver starts at the top left and sinks one row a step, going left or right as well. In each cell a fair coin,
    thrown once by `mapping_seed`, decided which of the two actions goes right there, so that nothing can be learnt
    from one cell for another. With `N = size`:

        right:  column <- min(column + 1, N - 1), reward -unscaled_move_cost / N, and +1 from the last column
        left:   column <- max(column - 1, 0), reward 0

    Only a diver who has never gone left is in the last column before the last step: of the 2^N ways down exactly one
    gives the treasure, and each step on it costs more than a step to the left, so that a policy that follows the
    rewards it has seen turns away from it. A uniform policy finds it in one of 2^N episodes.

    Episodes end by termination after `size` steps: the row is observed, so no hidden clock runs. `info` is empty
    but for the last step's, whose `is_bad_episode` says whether the diver has left the diagonal (bsuite's measure).

    The observation is the one-hot code of the cell, and all zeros after the last step. bsuite shows it as `[N, N]`; so
    does `observation="grid"`. The default is the grid's rows side by side, `[N * N]`: SB3's checker takes an
    observation of two dimensions for a mistake.

    Reproducible: the coins depend on `mapping_seed` alone, and are bsuite's own (numpy's RandomState); all other
    randomness, that of `deterministic=False`, is `np_random`, which only `reset(seed=...)` seeds.

    Args:
        size: rows and columns N, at least 2; bsuite's sweep has 10, 12, ..., 50.
        deterministic: False: a step to the right fails to move with probability 1 / N (it costs all the same), and a
            last step from the first or the last column adds N(0, 1) to its reward.
        unscaled_move_cost: what N steps to the right cost, at least 0.
        randomize_actions: False: action 1 goes right everywhere, for debugging.
        mapping_seed: of the coins, from 0; bsuite's sweep has 42. None: other coins in each environment that is made,
            so that copies of it in a vector environment differ.
        observation: `"flat"` or `"grid"`.
        render_mode: None or `"rgb_array"`: the cells, the diver's in white, the treasure's in green.

    Attributes:
        size: the argument.
        action_mapping: `[N, N]` int64 of 0 and 1: the action that goes right in each cell.

    Raises:
        TypeError: if a number is no number, or no whole number.
        ValueError: if an argument is out of range or unknown.

    Source:
        Osband et al. 2020, "Behaviour Suite for Reinforcement Learning": bsuite 0.3.6, `deep_sea`, and
        `deep_sea_stochastic` for `deterministic=False`. Osband et al. 2019, "Deep Exploration via Randomized Value
        Functions".

    Examples:
        >>> env = DeepSeaEnv(4)
        >>> observation, info = env.reset()
        >>> rewards = []
        >>> while len(rewards) < 4:
        ...     observation, reward, terminated, truncated, info = env.step(env.expert_action(observation))
        ...     rewards.append(reward)
        >>> rewards, info
        ([-0.0025, -0.0025, -0.0025, 0.9975], {'is_bad_episode': False})
        >>> round(env.optimal_return(), 6)
        0.99
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 4}  # type: ignore[misc]  # gymnasium leaves ClassVar out

    def __init__(
        self,
        size: int = 10,
        *,
        deterministic: bool = True,
        unscaled_move_cost: float = 0.01,
        randomize_actions: bool = True,
        mapping_seed: int | None = 42,
        observation: Literal["flat", "grid"] = "flat",
        render_mode: RenderMode | None = None,
    ) -> None:
        check_render_mode(render_mode)
        check_choice("observation", observation, ("flat", "grid"))
        self.size = check_positive_int("size", size, 2)
        self.deterministic = bool(deterministic)
        self.unscaled_move_cost = check_in_range("unscaled_move_cost", unscaled_move_cost, 0.0)
        self.render_mode = render_mode
        cells = (self.size, self.size)
        self._shape = cells if observation == "grid" else (self.size * self.size,)
        self.observation_space = spaces.Box(0.0, 1.0, self._shape, np.float32)
        self.action_space = self._discrete = spaces.Discrete(2)
        if mapping_seed is not None:
            check_positive_int("mapping_seed", mapping_seed, 0)
        self.action_mapping = np.ones(cells, dtype=np.int64)  # [N, N]
        if randomize_actions:
            generator = np.random.RandomState(mapping_seed)  # not default_rng: the same coins as in bsuite
            self.action_mapping = generator.binomial(1, 0.5, cells).astype(np.int64)
        self._row, self._column = self.size, 0  # no episode has begun
        self._is_bad_episode = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode at the top left; `options` are not used."""
        super().reset(seed=seed)
        self._row, self._column, self._is_bad_episode = 0, 0, False
        return self._observe(), {}

    def step(self, action: int | np.integer[Any]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Sink by one row, to the left or to the right.

        Returns:
            The observation, the reward, whether it was the last step, False, and the `info` of the class.

        Raises:
            ResetNeeded: before the first `reset`, or after the end of an episode.
            TypeError: if the action is no whole number.
            ValueError: if it is neither 0 nor 1.
        """
        last = self.size - 1
        if self._row > last:
            raise ResetNeeded("The episode is over or has not begun: call reset() before step().")
        chosen = int(read_action(action, self._discrete, _SIZES)[0])
        goes_right = chosen == int(self.action_mapping[self._row, self._column])
        reward = 1.0 if goes_right and self._column == last else 0.0
        if not self.deterministic and self._row == last and self._column in (0, last):
            reward += float(self.np_random.standard_normal())
        if goes_right:
            reward -= self.unscaled_move_cost / self.size
            if self.deterministic or self.np_random.random() > 1.0 / self.size:
                self._column = min(self._column + 1, last)
        else:
            self._is_bad_episode |= self._row == self._column
            self._column = max(self._column - 1, 0)
        self._row += 1
        is_over = self._row > last
        return self._observe(), reward, is_over, False, {"is_bad_episode": self._is_bad_episode} if is_over else {}

    def render(self) -> Any:
        """Return an image of the cells, `[16 * N, 16 * N, 3]` uint8; None and a warning without a render mode."""
        if self.render_mode is None:
            warn_no_render_mode()
            return None
        colours = np.full((self.size, self.size, 3), BLACK, dtype=np.uint8)
        colours[-1, -1] = GREEN
        if self._row < self.size:
            colours[self._row, self._column] = WHITE
        return colours.repeat(_CELL, axis=0).repeat(_CELL, axis=1)

    def expert_action(self, observation: NDArray[np.float32]) -> np.int64:
        """Return the action that goes right in the cell that one observation shows: the best one on the diagonal.

        Raises:
            ValueError: if the observation shows no cell, as the one after the last step.
        """
        values = np.asarray(observation)
        ones = np.flatnonzero(values)
        if values.shape != self._shape or len(ones) != 1 or values.reshape(-1)[ones[0]] != 1:
            raise ValueError(
                f"observation of shape {values.shape} must be the one-hot code of a cell, of shape {self._shape}: pass "
                "one, not a batch, and not the zeros after the last step."
            )
        return np.int64(self.action_mapping.reshape(-1)[ones[0]])

    def optimal_return(self) -> float:
        """Return the best policy's expected return, exactly: `max(0, 1 - unscaled_move_cost)` when deterministic.

        Off the diagonal the treasure is out of reach and going left costs nothing, so that the value is 0 there. On
        it, in row k (from 0), with `p` = 1 - 1 / N the chance that a step to the right succeeds (1 if deterministic):

            V_{N-1} = max(0, 1 - cost / N),    V_k = max(0, p · V_{k+1} - cost / N)

        (For the windy form bsuite states `p^(N-1) - cost`, the return of going right everywhere. That is a little
        less, since it pays for steps to the right after the treasure is lost.)
        """
        chance = 1.0 if self.deterministic else 1.0 - 1.0 / self.size
        cost = self.unscaled_move_cost / self.size
        value = max(0.0, 1.0 - cost)
        for _ in range(self.size - 1):
            value = max(0.0, chance * value - cost)
        return value

    def _observe(self) -> NDArray[np.float32]:
        cells = np.zeros((self.size, self.size), dtype=np.float32)
        if self._row < self.size:
            cells[self._row, self._column] = 1.0
        return cells.reshape(self._shape)
