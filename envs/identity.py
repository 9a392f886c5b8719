"""Identity: the right action is the state itself, for every kind of finite action space."""

from __future__ import annotations

from typing import final

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rlsmooth.checks import check_positive_int
from rlsmooth.envs.images import RenderMode
from rlsmooth.envs.observations import ObservationForm
from rlsmooth.envs.tabular import TabularProblem, enumerate_states
from rlsmooth.envs.tabular_env import TabularEnv


def identity_problem(dims: tuple[int, ...], *, masked: bool = False) -> TabularProblem:
    """Return the problem in which an action earns the share of its components that equal the state's.

    The share, not SB3's all-or-nothing, so that the reward is a sum over components and the optima are products. The
    best policy earns 1 a step, a uniform one `mean_d 1 / dims[d]`.

    Args:
        dims: the number of values of each component.
        masked: a component with value `s` leaves `s + 1` values legal: `s` and those that follow it, cyclically. So
            the right action is always legal, some rows have one legal action (`s = 0`) and some have all
            (`s = n - 1`), and an agent can't rely on the mask alone. An illegal component costs `1 / D`.

    Raises:
        ValueError: if `dims` is refused by `enumerate_states`.

    Examples:
        >>> identity_problem((3,), masked=True).rewards.tolist()
        [[1.0, -1.0, -1.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    states = enumerate_states(dims)  # [S, D]
    rewards, legal = [], []
    for state, n in zip(states.T, dims, strict=True):
        distance: NDArray[np.int64] = (np.arange(n) - state[:, None]) % n  # [S, n], 0 at the right action
        allowed = distance <= state[:, None] if masked else np.ones_like(distance, dtype=np.bool_)
        rewards.append(np.where(allowed, (distance == 0).astype(np.float64), -1.0) / len(dims))
        legal.append(allowed)
    return TabularProblem(dims, np.concatenate(rewards, axis=-1), np.concatenate(legal, axis=-1))


@final
class IdentityEnv(TabularEnv):
    """Discrete identity: reward 1 for `action == state`, else 0. Registered as `rlsmooth/Identity-v0`.

    Args:
        num_actions: number of states and of actions, at least 2.
        episode_length: steps in an episode.
        observation: how the state is shown: `"native"` (Discrete), `"one_hot"`, `"dict"` or `"image"`.
        render_mode: None or `"rgb_array"`.

    Raises:
        TypeError: if a number is not whole.
        ValueError: if an argument is out of range or unknown.

    Examples:
        >>> env = IdentityEnv(4)
        >>> observation, info = env.reset(seed=0)
        >>> env.step(env.expert_action(observation))[1]
        1.0
        >>> env.optimal_return()
        10.0
        >>> env.optimal_smoothed_policy(0.2)[0].round(2).tolist()
        [0.85, 0.05, 0.05, 0.05]
    """

    def __init__(
        self,
        num_actions: int = 4,
        *,
        episode_length: int = 10,
        observation: ObservationForm = "native",
        render_mode: RenderMode | None = None,
    ) -> None:
        n = check_positive_int("num_actions", num_actions, 2)
        super().__init__(
            identity_problem((n,)),
            spaces.Discrete(n),
            episode_length=episode_length,
            observation=observation,
            render_mode=render_mode,
        )


@final
class IdentityMultiDiscreteEnv(TabularEnv):
    """MultiDiscrete identity: reward is the share of components that match.

    Registered as `rlsmooth/IdentityMultiDiscrete-v0`.

    Args:
        dims: the number of values of each component, each at least 2.
        episode_length: steps in an episode.
        observation: how the state is shown: `"native"` (MultiDiscrete), `"one_hot"`, `"dict"` or `"image"`.
        render_mode: None or `"rgb_array"`.

    Raises:
        TypeError: if a number is not whole.
        ValueError: if an argument is out of range or unknown.

    Examples:
        >>> env = IdentityMultiDiscreteEnv((3, 2))
        >>> env.optimal_smoothed_policy(0.3)[1].round(2).tolist()  # state (0, 1): two distributions side by side
        [0.8, 0.1, 0.1, 0.15, 0.85]
    """

    def __init__(
        self,
        dims: tuple[int, ...] = (3, 4),
        *,
        episode_length: int = 10,
        observation: ObservationForm = "native",
        render_mode: RenderMode | None = None,
    ) -> None:
        sizes = check_sizes(dims)
        super().__init__(
            identity_problem(sizes),
            spaces.MultiDiscrete(np.array(sizes)),
            episode_length=episode_length,
            observation=observation,
            render_mode=render_mode,
        )


@final
class IdentityMultiBinaryEnv(TabularEnv):
    """MultiBinary identity: reward is the share of bits that match.

    Registered as `rlsmooth/IdentityMultiBinary-v0`. Tables have two columns a bit, for 0 and
    for 1: `[2 ** num_bits, 2 * num_bits]`.

    Args:
        num_bits: number of bits, from 1 to 16.
        episode_length: steps in an episode.
        observation: how the state is shown: `"native"` (MultiBinary), `"one_hot"`, `"dict"` or `"image"`.
        render_mode: None or `"rgb_array"`.

    Raises:
        TypeError: if a number is not whole.
        ValueError: if an argument is out of range or unknown.

    Examples:
        >>> env = IdentityMultiBinaryEnv(2)
        >>> env.expected_return(np.full((4, 4), 0.5))  # a fair coin for each bit
        5.0
    """

    def __init__(
        self,
        num_bits: int = 3,
        *,
        episode_length: int = 10,
        observation: ObservationForm = "native",
        render_mode: RenderMode | None = None,
    ) -> None:
        bits = check_positive_int("num_bits", num_bits)
        super().__init__(
            identity_problem((2,) * bits),
            spaces.MultiBinary(bits),
            episode_length=episode_length,
            observation=observation,
            render_mode=render_mode,
        )


def check_sizes(dims: tuple[int, ...]) -> tuple[int, ...]:
    """Return `dims` as ints; raise TypeError if one is no whole number, ValueError if one is under 2."""
    return tuple(check_positive_int(f"dims[{index}]", size, 2) for index, size in enumerate(dims))
