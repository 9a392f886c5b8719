"""The transitions that a discriminator learns from: the expert's, and the generator's latest."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rlsmooth.agents.adversarial.generator import outer_stacklevel
from rlsmooth.agents.adversarial.reward_nets import Transitions, map_parts, oriented
from rlsmooth.checks import check_positive_int
from rlsmooth.data import Demonstrations
from rlsmooth.data.arrays import forward
from rlsmooth.data.observation_only import transitions_with_next
from rlsmooth.untrusted import Count, decode

Array = NDArray[Any]
Observations = Array | dict[str, Array]


class TransitionStore:
    """A ring of the newest `capacity` transitions, drawn from as if terminated episodes continued.

    After a terminal state an episode continues in the absorbing state until the horizon (Kostrikov et al. 2019). Its
    steps there are identical, so that only their number is stored: a draw takes one with the probability of its share.

    Args:
        observation_space: channels first, as the algorithm's.
        action_space: the algorithm's.
        capacity: how many are kept.
        num_masks: choices of all dimensions together where there are action masks, else 0.

    Attributes:
        added: how many were ever added.
    """

    def __init__(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], capacity: int, num_masks: int = 0
    ) -> None:
        self.capacity = check_positive_int("capacity", capacity)
        self.observations = _empty(observation_space, capacity)
        self.next_observations = _empty(observation_space, capacity)
        shape: tuple[int, ...] = tuple(action_space.shape or ())
        self.actions = np.zeros((capacity, *shape), dtype=action_space.dtype)
        self.terminated = np.zeros(capacity, dtype=bool)
        self.absorbing_steps = np.zeros(capacity, dtype=np.float64)
        self.masks = np.ones((capacity, num_masks), dtype=bool) if num_masks else None
        self.added = 0

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    @property
    def has_absorbing(self) -> bool:
        """Whether steps in the absorbing state follow any of the transitions."""
        return bool(self.absorbing_steps[: len(self)].any())

    def absorbing_ratio(self, more_absorbing: float = 0.0) -> float:
        """Steps in the absorbing state, `more_absorbing` among them, for each transition."""
        return (float(self.absorbing_steps[: len(self)].sum()) + more_absorbing) / max(1, len(self))

    def add(
        self,
        observations: Observations,
        actions: Array,
        next_observations: Observations,
        terminated: Array,
        absorbing_steps: Array,
        masks: Array | None = None,
    ) -> None:
        """Add transitions, which push out the oldest.

        Args:
            observations: `[B, ...]`, or a dict of such.
            actions: `[B, ...]`.
            next_observations: those after the actions; at the end of an episode its last ones.
            terminated: bool `[B]`.
            absorbing_steps: `[B]`: how many steps in the absorbing state follow; 0 where not terminated.
            masks: bool `[B, num_masks]`.
        """
        count = len(terminated)
        kept = slice(max(0, count - self.capacity), count)
        first = self.added % self.capacity
        places: slice | NDArray[np.int64] = slice(first, first + count)
        if first + count > self.capacity:  # round the ring
            places = np.arange(self.added, self.added + count)[kept] % self.capacity
        for store, given in ((self.observations, observations), (self.next_observations, next_observations)):
            for part, values in zip(_parts(store), _parts(given), strict=True):
                part[places] = values[kept]
        self.actions[places] = actions[kept]
        self.terminated[places] = terminated[kept]
        self.absorbing_steps[places] = absorbing_steps[kept]
        if self.masks is not None:
            assert masks is not None
            self.masks[places] = masks[kept]
        self.added += count

    def sample(
        self,
        count: int,
        generator: np.random.Generator,
        device: torch.device,
        with_absorbing: bool = True,
        *,
        more_absorbing: float = 0.0,
    ) -> tuple[Transitions, Tensor | None]:
        """Draw with replacement; returns the transitions and their action masks, `[count, num_masks]`.

        Args:
            count: how many.
            generator: draws.
            device: of the tensors.
            with_absorbing: whether steps in the absorbing state are drawn.
            more_absorbing: so many steps in the absorbing state are drawn from beside those that were seen.

        Raises:
            ValueError: there are none.
        """
        size = len(self)
        if size == 0:
            raise ValueError("there are no transitions to draw from.")
        padding = float(self.absorbing_steps[:size].sum()) + more_absorbing
        absorbing = generator.random(count) < with_absorbing * padding / (padding + size)
        places = generator.integers(0, size, count)
        taken = Transitions(
            map_parts(self.observations, lambda part: _to_tensor(part[places], device)),
            torch.as_tensor(self.actions[places], device=device),
            map_parts(self.next_observations, lambda part: _to_tensor(part[places], device)),
            # The step into the absorbing state is one; its self-loops are another.
            torch.as_tensor(self.terminated[places] & ~absorbing, device=device),
            torch.as_tensor(absorbing, device=device),
        )
        return taken, None if self.masks is None else torch.as_tensor(self.masks[places], device=device)

    def latest(self, back: int, count: int) -> tuple[Observations, Array, Observations, Array]:
        """Observations, actions, next observations and `terminated` of `count` transitions, the first `back` ago.

        Raises:
            ValueError: they are no longer kept.
        """
        if back > len(self):
            raise ValueError(f"transition {back} from the end is asked for, {len(self)} are kept.")
        places = np.arange(self.added - back, self.added - back + count) % self.capacity
        return (
            map_parts(self.observations, lambda part: part[places]),
            self.actions[places],
            map_parts(self.next_observations, lambda part: part[places]),
            self.terminated[places],
        )

    def state(self) -> dict[str, Any]:
        """All that a file must keep."""
        size = len(self)
        return {
            "added": self.added,
            "observations": map_parts(self.observations, lambda part: part[:size].copy()),
            "next_observations": map_parts(self.next_observations, lambda part: part[:size].copy()),
            "actions": self.actions[:size].copy(),
            "terminated": self.terminated[:size].copy(),
            "absorbing_rows": self.absorbing_steps[:size].copy(),
            "masks": None if self.masks is None else self.masks[:size].copy(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave.

        Raises:
            ValueError: it is of another store.
        """
        added = decode(Count, state["added"], "added")
        size = min(added, self.capacity)
        pairs = [*zip(_parts(self.observations), _parts(state["observations"]), strict=True)]
        pairs += zip(_parts(self.next_observations), _parts(state["next_observations"]), strict=True)
        pairs += [(self.actions, state["actions"]), (self.terminated, state["terminated"])]
        pairs.append((self.absorbing_steps, state["absorbing_rows"]))
        if self.masks is not None:
            pairs.append((self.masks, state["masks"]))
        for own, given in pairs:
            if given.shape != (size, *own.shape[1:]):
                raise ValueError(f"kept transitions have the shape {given.shape}, these need {(size, *own.shape[1:])}.")
            own[:size] = given
        self.added = added


def expert_store(
    demonstrations: Demonstrations,
    observation_space: spaces.Space[Any],
    *,
    horizon: int | None,
    needs_next: bool,
    masks_terminal: bool = False,
    gamma: float = 1.0,
    num_masks: int = 0,
) -> TransitionStore:
    """The demonstrations as a store.

    Args:
        demonstrations: where `next_observations` are missing and needed, the next observation of the episode is taken,
            and its last transition left out, unless that is a terminated one and `masks_terminal`.
        observation_space: the algorithm's.
        horizon: steps up to which a terminated episode continues in the absorbing state; None: not at all.
        needs_next: whether next observations are read.
        masks_terminal: whether they are not read of terminated transitions.
        gamma: the discount factor of absorbing steps.
        num_masks: choices of all dimensions together where there are action masks, else 0.

    Raises:
        ValueError: no transition is left, or masks are needed and missing.

    Warns:
        UserWarning: last transitions are left out.
    """
    if num_masks and demonstrations.action_masks is None:
        raise ValueError("demonstrations have no action_masks, which this policy needs: record them with masks.")
    has_next = demonstrations.next_observations is not None
    last = demonstrations.episode_ends - 1
    terminated = np.zeros(len(demonstrations), dtype=bool)
    if demonstrations.terminations is not None:
        terminated = np.asarray(demonstrations.terminations[:], dtype=bool)
    kept = np.arange(len(demonstrations))
    if needs_next and not has_next:
        kept = transitions_with_next(demonstrations)
        if masks_terminal:
            kept = np.union1d(kept, last[terminated[last]])
    if len(kept) == 0:
        raise ValueError("demonstrations have no transition whose next observation is known.")
    if len(kept) < len(demonstrations):
        left_out = "truncated episodes" if masks_terminal else "the episodes"
        warnings.warn(
            f"demonstrations have no next_observations: the last transitions of {left_out}, "
            f"{len(demonstrations) - len(kept)} in all, are left out. Record next_observations to keep them.",
            UserWarning,
            stacklevel=outer_stacklevel(),
        )
    batch = demonstrations[kept]
    observations = oriented(batch.observations, observation_space)
    if has_next:
        after = oriented(batch.next_observations, observation_space)
    elif needs_next:
        # Nobody reads what follows a terminated transition: its own observation is the placeholder.
        following = np.where(np.isin(kept, last), kept, kept + 1)
        after = oriented(demonstrations[following].observations, observation_space)
    else:
        after = observations
    padding = np.zeros(len(kept))
    if horizon is not None:
        steps = absorbing_steps(demonstrations.episode_lengths(), horizon, gamma)
        # Only the sum is drawn by: where an episode's last transition is left out, the one before has its steps.
        places = np.maximum(np.searchsorted(kept, last, side="right") - 1, 0)
        np.add.at(padding, places, np.where(terminated[last], steps, 0.0))
    store = TransitionStore(observation_space, demonstrations.action_space, len(kept), num_masks)
    store.add(observations, batch.actions, after, terminated[kept], padding, batch.action_masks if num_masks else None)
    return store


def absorbing_steps(lengths: NDArray[np.int64], horizon: int, gamma: float) -> NDArray[np.float64]:
    """How many steps in the absorbing state follow episodes that terminated, by their lengths.

    Those up to the horizon, n of them, discounted: `(1 - gamma^n) / (1 - gamma)`. So many of them count for the
    generator, which maximises a discounted return. All n would leave hardly any other transition in the batches where
    an expert terminates early, as in Acrobot-v1, and nothing to be told apart.

    Args:
        lengths: int64 `[E]`.
        horizon: steps after which episodes are truncated.
        gamma: the discount factor, in [0, 1].

    Examples:
        >>> absorbing_steps(np.array([8, 10, 12]), 10, 1.0).tolist()
        [2.0, 0.0, 0.0]
        >>> absorbing_steps(np.array([75]), 500, 0.95).round(3).tolist()
        [20.0]
    """
    rest = np.maximum(horizon - lengths, 0).astype(np.float64)
    if gamma == 1:
        return rest
    discounted: NDArray[np.float64] = (1 - gamma**rest) / (1 - gamma)
    return discounted


def _empty(space: spaces.Space[Any], capacity: int) -> Observations:
    if isinstance(space, spaces.Dict):
        return {key: np.zeros((capacity, *(part.shape or ())), dtype=part.dtype) for key, part in space.spaces.items()}
    shape: tuple[int, ...] = tuple(space.shape or ())
    return np.zeros((capacity, *shape), dtype=space.dtype)


def _parts(observations: Observations) -> Iterator[Array]:
    if isinstance(observations, dict):
        yield from (observations[key] for key in sorted(observations))
    else:
        yield observations


def _to_tensor(values: Array, device: torch.device) -> Tensor:
    values = values.astype(np.float32) if values.dtype == np.float64 else values
    return torch.as_tensor(forward(values), device=device)


def joined(one: Any, other: Any, part: slice) -> Any:
    """The same part of two tensors, or dicts of tensors, behind each other."""
    if isinstance(one, dict):
        return {key: torch.cat((one[key][part], other[key][part])) for key in one}
    return torch.cat((one[part], other[part]))
