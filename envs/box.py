"""Continuous identity: a Box action should equal the state; the optima are Gaussians in closed form."""

from __future__ import annotations

from typing import Any, ClassVar, final

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from rlsmooth.checks import check_in_range, check_positive_int
from rlsmooth.envs.images import BLACK, WHITE, RenderMode, check_render_mode, paint_bands, warn_no_render_mode
from rlsmooth.targets import gaussian


@final
class IdentityBoxEnv(gym.Env[NDArray[np.float32], NDArray[np.floating]]):
    """Continuous identity: reward `-mean_d (action_d - state_d)^2`, best 0. Registered as `rlsmooth/IdentityBox-v0`.

    States are uniform in `[-state_bound, state_bound]^D`, actions lie in `[-1, 1]^D` (the normalised box that SB3
    recommends). States keep away from the edge, so that a Gaussian policy of moderate width is hardly ever clipped;
    the closed forms below are those of the unclipped Gaussian. Each step draws a new state; episodes end by
    truncation, for the reasons given in `rlsmooth.envs.TabularEnv`. Policies are diagonal Gaussians, given by mean and
    standard deviation of each dimension.

    Args:
        num_dims: dimensions of state and action, at least 1.
        state_bound: half-width of the states' interval, in (0, 1].
        episode_length: steps in an episode, at least 1.
        render_mode: None or `"rgb_array"`: a band for each dimension, with the state's place in white.

    Raises:
        TypeError: if an argument is no number, or no whole number.
        ValueError: if an argument is out of range.

    Examples:
        >>> env = IdentityBoxEnv(1)
        >>> observation, info = env.reset(seed=0)
        >>> env.step(env.expert_action(observation))[1]
        0.0
        >>> round(env.expected_return(std=0.1), 6)  # a policy centred on the state
        -0.1
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 4}  # type: ignore[misc]  # gymnasium leaves ClassVar out

    def __init__(
        self,
        num_dims: int = 2,
        *,
        state_bound: float = 0.5,
        episode_length: int = 10,
        render_mode: RenderMode | None = None,
    ) -> None:
        check_render_mode(render_mode)
        self.render_mode = render_mode
        self.num_dims = check_positive_int("num_dims", num_dims)
        self.state_bound = check_in_range("state_bound", state_bound, 0.0, 1.0, low_open=True)
        self.episode_length = check_positive_int("episode_length", episode_length)
        self._edge = np.float32(self.state_bound)
        self.observation_space = spaces.Box(-self._edge, self._edge, (self.num_dims,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (self.num_dims,), np.float32)
        self._state = np.zeros(self.num_dims, dtype=np.float32)
        self._steps_left = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode in a random state; `options` are not used."""
        super().reset(seed=seed)
        self._steps_left = self.episode_length
        return self._draw_state(), {}

    def step(self, action: NDArray[np.floating]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Pay the reward of `action` in the current state and draw the next one.

        Raises:
            ResetNeeded: before the first `reset`, or after the end of an episode.
            TypeError: if the action is not of floating dtype.
            ValueError: if its shape is wrong, or a value is not a number or outside [-1, 1].
        """
        if self._steps_left == 0:
            raise ResetNeeded("The episode is over or has not begun: call reset() before step().")
        values = np.asarray(action)
        if values.dtype.kind != "f":
            raise TypeError(f"action {action!r} has dtype {values.dtype}: it must be of floating dtype.")
        if values.shape != (self.num_dims,):
            raise ValueError(f"action {action!r} has shape {values.shape}: it must be ({self.num_dims},).")
        if not (np.abs(values) <= 1.0).all():  # false for NaN too
            raise ValueError(f"action {action!r} is not in [-1, 1]: clip it first.")
        reward = 0.0 - float(np.mean(np.square(values.astype(np.float64) - self._state)))  # not -0.0
        self._steps_left -= 1
        return self._draw_state(), reward, False, self._steps_left == 0, {}

    def render(self) -> Any:
        """Return an image of the state, `[32 * num_dims, 192, 3]` uint8; None and a warning without a render mode."""
        if self.render_mode is None:
            warn_no_render_mode()
            return None
        cells = np.arange(64)
        places = np.round((self._state + 1.0) / 2.0 * 63)  # [-1, 1] is the whole width
        return paint_bands([(cells == place, WHITE, BLACK) for place in places])

    def expert_action(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the best action for one observation: a copy of it.

        Raises:
            ValueError: if it is no observation of this environment.
        """
        if not self.observation_space.contains(observation):
            raise ValueError(
                f"observation {observation!r} does not lie in {self.observation_space}: pass one, not a batch."
            )
        return observation.copy()

    def optimal_return(self) -> float:
        """Return the expected return of the best policy: 0."""
        return 0.0

    def expected_return(self, *, gain: float = 1.0, offset: float = 0.0, std: float = 0.0) -> float:
        """Return the expected undiscounted return of a policy `N(gain * state + offset, std^2)`, not clipped.

        The same numbers hold in every dimension. With `T` the episode length and `bound` the states' half-width:

            E[return] = -T * ((gain - 1)^2 * bound^2 / 3 + offset^2 + std^2)

        Raises:
            TypeError: if an argument is no number.
            ValueError: if one is not finite, or `std` is negative.
        """
        g, b = check_in_range("gain", gain), check_in_range("offset", offset)
        sigma = check_in_range("std", std, 0.0)
        return 0.0 - self.episode_length * ((g - 1.0) ** 2 * self.state_bound**2 / 3.0 + b**2 + sigma**2)

    def optimal_smoothed_policy(
        self, observation: NDArray[np.float32], alpha: float, *, reference_mean: float = 0.0, reference_std: float = 1.0
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and std, `[D]` each, of the Gaussian that minimises the smoothed cross-entropy.

        The smoothed target is `(1 - alpha) * delta(state) + alpha * N(m, s^2)`. Cross-entropy against a Gaussian
        depends on the target's first two moments only, so the minimiser has those moments:

            mean = (1 - alpha) * state + alpha * m
            var  = (1 - alpha) * (state - mean)^2 + alpha * (s^2 + (m - mean)^2)

        Raises:
            TypeError: if a number is none.
            ValueError: if `alpha` is not in (0, 1] (at 0 the variance is 0 and there is no minimiser), `reference_std`
                not above 0, or the observation is none of this environment's.
        """
        check_in_range("alpha", alpha, 0.0, 1.0, low_open=True)
        action = torch.from_numpy(self.expert_action(observation).astype(np.float64))
        target = gaussian(action, alpha, reference_mean=reference_mean, reference_std=reference_std)
        atom, background = target.atom_weight, target.mass() - target.atom_weight
        m, s = target.reference_mean, target.reference_std
        mean = atom * action + background * m  # [D]
        variance = atom * (action - mean).square() + background * (s.square() + (m - mean).square())
        return mean.numpy(), variance.sqrt().numpy()

    def soft_optimal_policy(
        self, observation: NDArray[np.float32], coefficient: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and std, `[D]` each, of the best policy under an entropy bonus: `N(state, coefficient * D / 2)`.

        Per dimension, `max -((mean - state)^2 + var) / D + coefficient * log(2 * pi * e * var) / 2`. The optimum over
        ALL densities is the Boltzmann density `exp(r / coefficient)`, which is this Gaussian.

        Raises:
            TypeError: if `coefficient` is no number.
            ValueError: if it is not above 0, or the observation is none of this environment's.
        """
        c = check_in_range("coefficient", coefficient, 0.0, low_open=True)
        state = self.expert_action(observation).astype(np.float64)
        return state, np.full(self.num_dims, np.sqrt(c * self.num_dims / 2.0))

    def _draw_state(self) -> NDArray[np.float32]:
        draw = self.np_random.uniform(-self.state_bound, self.state_bound, self.num_dims)
        # Rounding to float32 may step over the edge; rewards use the rounded state, which is the one that is seen.
        self._state = np.clip(draw.astype(np.float32), -self._edge, self._edge)
        return self._state.copy()
