"""Identity with action masks: in each state only some actions are legal, among them the right one."""

from __future__ import annotations

from typing import final

import numpy as np
from gymnasium import spaces

from rlsmooth.checks import check_positive_int
from rlsmooth.envs.identity import check_sizes, identity_problem
from rlsmooth.envs.images import RenderMode
from rlsmooth.envs.observations import ObservationForm
from rlsmooth.envs.tabular_env import IllegalAction, MaskedTabularEnv


@final
class IdentityMaskedEnv(MaskedTabularEnv):
    """Discrete identity with masks: in state `s`, the `s + 1` actions from `s` on (cyclically) are legal.

    Registered as `rlsmooth/IdentityMasked-v0`.

    Args:
        num_actions: number of states and of actions, at least 2.
        episode_length: steps in an episode.
        observation: how the state is shown; see `IdentityEnv`.
        illegal_action: `"penalise"` (reward -1) or `"raise"` a ValueError. Environment checkers sample actions
            blindly, so the default must let them.
        render_mode: None or `"rgb_array"`.

    Raises:
        TypeError: if a number is not whole.
        ValueError: if an argument is out of range or unknown.

    Examples:
        >>> env = IdentityMaskedEnv(3)
        >>> env.optimal_smoothed_policy(0.2).round(2).tolist()
        [[1.0, 0.0, 0.0], [0.0, 0.9, 0.1], [0.07, 0.07, 0.87]]
    """

    def __init__(
        self,
        num_actions: int = 4,
        *,
        episode_length: int = 10,
        observation: ObservationForm = "native",
        illegal_action: IllegalAction = "penalise",
        render_mode: RenderMode | None = None,
    ) -> None:
        n = check_positive_int("num_actions", num_actions, 2)
        super().__init__(
            identity_problem((n,), masked=True),
            spaces.Discrete(n),
            episode_length=episode_length,
            observation=observation,
            illegal_action=illegal_action,
            render_mode=render_mode,
        )


@final
class IdentityMaskedMultiDiscreteEnv(MaskedTabularEnv):
    """MultiDiscrete identity with a mask for each component.

    Registered as `rlsmooth/IdentityMaskedMultiDiscrete-v0`.

    Args:
        dims: the number of values of each component, each at least 2.
        episode_length: steps in an episode.
        observation: how the state is shown; see `IdentityMultiDiscreteEnv`.
        illegal_action: `"penalise"` (-1 / number of components, for each illegal one) or `"raise"` a ValueError.
        render_mode: None or `"rgb_array"`.

    Raises:
        TypeError: if a number is not whole.
        ValueError: if an argument is out of range or unknown.

    Examples:
        >>> env = IdentityMaskedMultiDiscreteEnv((3, 2))
        >>> env.problem.legal[0].tolist()  # state (0, 0): one legal value in each component
        [True, False, False, True, False]
    """

    def __init__(
        self,
        dims: tuple[int, ...] = (3, 4),
        *,
        episode_length: int = 10,
        observation: ObservationForm = "native",
        illegal_action: IllegalAction = "penalise",
        render_mode: RenderMode | None = None,
    ) -> None:
        sizes = check_sizes(dims)
        super().__init__(
            identity_problem(sizes, masked=True),
            spaces.MultiDiscrete(np.array(sizes)),
            episode_length=episode_length,
            observation=observation,
            illegal_action=illegal_action,
            render_mode=render_mode,
        )


@final
class IdentityMaskedMultiBinaryEnv(MaskedTabularEnv):
    """MultiBinary identity with a mask for each bit.

    Where the state's bit is 0, so must be the action's; where it is 1, both are legal. Registered as
    `rlsmooth/IdentityMaskedMultiBinary-v0`.

    Args:
        num_bits: number of bits, from 1 to 16.
        episode_length: steps in an episode.
        observation: how the state is shown; see `IdentityMultiBinaryEnv`.
        illegal_action: `"penalise"` (-1 / number of bits, for each illegal one) or `"raise"` a ValueError.
        render_mode: None or `"rgb_array"`.

    Raises:
        TypeError: if a number is not whole.
        ValueError: if an argument is out of range or unknown.

    Examples:
        >>> env = IdentityMaskedMultiBinaryEnv(1)
        >>> env.optimal_smoothed_policy(0.2).tolist()
        [[1.0, 0.0], [0.1, 0.9]]
    """

    def __init__(
        self,
        num_bits: int = 3,
        *,
        episode_length: int = 10,
        observation: ObservationForm = "native",
        illegal_action: IllegalAction = "penalise",
        render_mode: RenderMode | None = None,
    ) -> None:
        bits = check_positive_int("num_bits", num_bits)
        super().__init__(
            identity_problem((2,) * bits, masked=True),
            spaces.MultiBinary(bits),
            episode_length=episode_length,
            observation=observation,
            illegal_action=illegal_action,
            render_mode=render_mode,
        )
