"""What DAgger is given, checked and brought into the form that its rounds use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecTransposeImage

from rlsmooth.agents.bco_collection import join
from rlsmooth.agents.spaces import check_demonstrations, check_same_spaces
from rlsmooth.data import Demonstrations
from rlsmooth.targets import one_hot

if TYPE_CHECKING:
    from rlsmooth.agents.dagger import DAgger

__all__ = ["aggregate", "check_ready", "initial_rows", "shown_by"]


def shown_by(env: VecEnv, given: object) -> VecEnv:
    """The environment with images as the caller's shows them: Stable-Baselines3 puts a transposer around it.

    Demonstrations and functions as experts know them that way; policies transpose what they get.

    Args:
        env: as Stable-Baselines3 wrapped it.
        given: what the caller gave.
    """
    return env.venv if isinstance(env, VecTransposeImage) and env is not given else env


def initial_rows(
    given: Demonstrations, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> Demonstrations:
    """Initial demonstrations as rounds have them: without rewards and next observations, images in the same layout.

    Args:
        given: what the expert did before.
        observation_space: of the environment.
        action_space: likewise.

    Raises:
        TypeError: they are no demonstrations.
        ValueError: spaces that differ.
    """
    check_demonstrations("demonstrations", given)
    check_same_spaces(
        "demonstrations", (given.observation_space, given.action_space), (observation_space, action_space)
    )
    whole = given[:]
    rows = whole.observations
    return Demonstrations(
        observations={key: _as_shown(rows[key], observation_space[key]) for key in rows}
        if isinstance(rows, dict) and isinstance(observation_space, spaces.Dict)
        else _as_shown(np.asarray(rows), observation_space),
        actions=whole.actions,
        observation_space=observation_space,
        action_space=action_space,
        episode_ends=given.episode_ends,
        terminations=whole.terminations,
        truncations=whole.truncations,
        action_masks=whole.action_masks,
        weights=whole.weights,
        action_probs=whole.action_probs,
    )


def check_ready(agent: DAgger) -> None:
    """Raise ValueError unless the agent has all that `learn` needs."""
    agent._check_can_learn()
    if agent.expert is None:
        raise ValueError("expert is None, so there is nobody to learn from: give it to DAgger(...) or DAgger.load.")
    assert agent.env is not None
    has_masks = agent.env.has_attr("action_masks")
    parts = [*([] if agent.initial is None else [agent.initial]), *agent.rounds]
    for number, part in enumerate(parts, start=0 if agent.initial is None else -1):
        if (part.action_masks is not None) != has_masks:
            raise ValueError(
                f"{'demonstrations' if number < 0 else f'the transitions of round {number}'} "
                f"{'lack' if has_masks else 'have'} action_masks, which the environment "
                f"{'has' if has_masks else 'lacks'}: record and train in the same environment."
            )


def aggregate(initial: Demonstrations | None, rounds: Sequence[Demonstrations]) -> Demonstrations:
    """The initial demonstrations and all rounds so far, one after the other.

    Where one part has soft targets the others' actions become such, of probability 1; where one has weights the others
    weigh 1.
    """
    parts = [*([] if initial is None else [initial]), *rounds]
    latest = parts[-1].observation_space  # another environment may show images in another layout
    parts = [
        part if part.observation_space == latest else initial_rows(part, latest, part.action_space) for part in parts
    ]
    if any(part.action_probs is not None for part in parts):
        parts = [
            part if part.action_probs is not None else part.replace_unchecked(action_probs=_certain(part))
            for part in parts
        ]
    if any(part.weights is not None for part in parts):
        parts = [
            part if part.weights is not None else part.replace_unchecked(weights=np.ones(len(part))) for part in parts
        ]
    return join(parts)


def _certain(part: Demonstrations) -> NDArray[np.float64]:
    assert isinstance(part.action_space, spaces.Discrete)
    labels = torch.from_numpy(part.action_labels)
    found: NDArray[np.float64] = one_hot(labels, int(part.action_space.n)).dense(torch.float64).numpy()
    return found


def _as_shown(images: NDArray[Any], space: spaces.Space[Any]) -> NDArray[Any]:
    """Images whose channels come first where the environment's come last, or the other way round."""
    shape = space.shape or ()
    if images.shape[1:] == shape or len(shape) != 3:
        return images
    last = np.moveaxis(images, 1, -1)
    return last if last.shape[1:] == shape else np.moveaxis(images, -1, 1)
