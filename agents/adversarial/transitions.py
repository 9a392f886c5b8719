"""The rows that a discriminator learns from: the expert's, and the generator's latest."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import maybe_transpose
from torch import Tensor

from rlsmooth.agents.adversarial.reward_nets import TensorObservations, Transitions
from rlsmooth.checks import check_positive_int
from rlsmooth.data import Demonstrations
from rlsmooth.data.observation_only import transitions_with_next

__all__ = ["TransitionStore", "absorbing_steps", "expert_store"]


Array = NDArray[Any]
Observations = Array | dict[str, Array]


class TransitionStore:
    """Transitions in a ring: the newest `capacity` are kept. Drawn from as if terminated episodes went on.

    Behind a terminal state lies the absorbing state, which leads to itself until the horizon. These self-loops are all
    alike, so that only their number is kept: a draw takes one with the probability of its share.

    Args:
        observation_space: channels first, as the algorithm's.
        action_space: the algorithm's.
        capacity: rows.
        num_masks: choices of all dimensions together where there are action masks, else 0.

    Attributes:
        added: rows that were ever added.
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
        self.absorbing_rows = np.zeros(capacity, dtype=np.float64)
        self.masks = np.ones((capacity, num_masks), dtype=bool) if num_masks else None
        self.added = 0

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    @property
    def has_absorbing(self) -> bool:
        """Whether an absorbing state lies behind any of the rows."""
        return bool(self.absorbing_rows[: len(self)].any())

    def add(
        self,
        observations: Observations,
        actions: Array,
        next_observations: Observations,
        terminated: Array,
        absorbing_rows: Array,
        masks: Array | None = None,
    ) -> None:
        """Add rows, which push out the oldest.

        Args:
            observations: `[B, ...]`, or a dict of such.
            actions: `[B, ...]`.
            next_observations: as `observations`.
            terminated: bool `[B]`.
            absorbing_rows: `[B]`: how many self-loops of the absorbing state follow; 0 where not terminated.
            masks: bool `[B, num_masks]`.
        """
        count = len(terminated)
        kept = slice(max(0, count - self.capacity), count)
        first = self.added % self.capacity
        rows: slice | NDArray[np.int64] = slice(first, first + count)
        if first + count > self.capacity:  # round the ring
            rows = np.arange(self.added, self.added + count)[kept] % self.capacity
        for store, given in ((self.observations, observations), (self.next_observations, next_observations)):
            for part, values in zip(_parts(store), _parts(given), strict=True):
                part[rows] = values[kept]
        self.actions[rows] = actions[kept]
        self.terminated[rows] = terminated[kept]
        self.absorbing_rows[rows] = absorbing_rows[kept]
        if self.masks is not None:
            assert masks is not None
            self.masks[rows] = masks[kept]
        self.added += count

    def sample(
        self, count: int, generator: np.random.Generator, device: torch.device, *, more_absorbing: float = 0.0
    ) -> tuple[Transitions, Tensor | None]:
        """Draw rows with replacement; returns them and their action masks, `[count, num_masks]`.

        Args:
            count: how many.
            generator: draws.
            device: of the tensors.
            more_absorbing: so many self-loops of the absorbing state are drawn from beside those that were seen.

        Raises:
            ValueError: there are none.
        """
        size = len(self)
        if size == 0:
            raise ValueError("there are no transitions to draw from.")
        padding = float(self.absorbing_rows[:size].sum()) + more_absorbing
        absorbing = generator.random(count) < padding / (padding + size)
        rows = generator.integers(0, size, count)
        taken = Transitions(
            _to_tensors(self.observations, rows, device),
            torch.as_tensor(self.actions[rows], device=device),
            _to_tensors(self.next_observations, rows, device),
            # The step into the absorbing state is one; its self-loops are another.
            torch.as_tensor(self.terminated[rows] & ~absorbing, device=device),
            torch.as_tensor(absorbing, device=device),
        )
        return taken, None if self.masks is None else torch.as_tensor(self.masks[rows], device=device)

    def latest(self, back: int, count: int) -> tuple[Observations, Array, Observations, Array]:
        """Observations, actions, next observations and `terminated` of `count` rows, the first `back` rows ago.

        Raises:
            ValueError: they are no longer kept.
        """
        if back > len(self):
            raise ValueError(f"row {back} from the end is asked for, {len(self)} are kept.")
        rows = np.arange(self.added - back, self.added - back + count) % self.capacity
        return (
            _taken(self.observations, rows),
            self.actions[rows],
            _taken(self.next_observations, rows),
            self.terminated[rows],
        )

    def state(self) -> dict[str, Any]:
        """All that a file must keep."""
        size = len(self)
        return {
            "added": self.added,
            "observations": _cut(self.observations, size),
            "next_observations": _cut(self.next_observations, size),
            "actions": self.actions[:size].copy(),
            "terminated": self.terminated[:size].copy(),
            "absorbing_rows": self.absorbing_rows[:size].copy(),
            "masks": None if self.masks is None else self.masks[:size].copy(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave.

        Raises:
            ValueError: it is of another store.
        """
        added = int(state["added"])
        size = min(added, self.capacity)
        pairs = [*zip(_parts(self.observations), _parts(state["observations"]), strict=True)]
        pairs += zip(_parts(self.next_observations), _parts(state["next_observations"]), strict=True)
        pairs += [(getattr(self, name), state[name]) for name in ("actions", "terminated", "absorbing_rows")]
        if self.masks is not None:
            pairs.append((self.masks, state["masks"]))
        for own, given in pairs:
            if given.shape != (size, *own.shape[1:]):
                raise ValueError(f"kept rows have the shape {given.shape}, these need {(size, *own.shape[1:])}.")
            own[:size] = given
        self.added = added


def expert_store(
    demonstrations: Demonstrations,
    observation_space: spaces.Space[Any],
    *,
    horizon: int | None,
    needs_next: bool,
    masks_ends: bool = False,
    gamma: float = 1.0,
    num_masks: int = 0,
) -> TransitionStore:
    """The demonstrations as a store.

    Args:
        demonstrations: where `next_observations` are missing and needed, the next row stands for them, and the last
            row of an episode is left out, unless it is a terminated one and `masks_ends`.
        observation_space: the algorithm's.
        horizon: steps up to which a terminated episode is padded with absorbing rows; None: not at all.
        needs_next: whether next observations are read.
        masks_ends: whether they are not read of terminated rows.
        gamma: see `absorbing_steps`.
        num_masks: see `TransitionStore`.

    Raises:
        ValueError: no row is left, masks are needed and missing.

    Warns:
        UserWarning: last rows are left out.
    """
    if num_masks and demonstrations.action_masks is None:
        raise ValueError("demonstrations have no action_masks, which this policy needs: record them with masks.")
    has_next = demonstrations.next_observations is not None
    ends = demonstrations.episode_ends - 1
    terminated = np.zeros(len(demonstrations), dtype=bool)
    if demonstrations.terminations is not None:
        terminated = np.asarray(demonstrations.terminations[:], dtype=bool)
    rows = np.arange(len(demonstrations))
    if needs_next and not has_next:
        rows = transitions_with_next(demonstrations)
        if masks_ends:
            rows = np.union1d(rows, ends[terminated[ends]])
    if len(rows) == 0:
        raise ValueError("demonstrations have no transition whose next observation is known.")
    if len(rows) < len(demonstrations):
        left_out = "truncated episodes" if masks_ends else "the episodes"
        warnings.warn(
            f"demonstrations have no next_observations: the last rows of {left_out}, "
            f"{len(demonstrations) - len(rows)} rows in all, are left out. Record next_observations to keep them.",
            UserWarning,
            stacklevel=4,
        )
    batch = demonstrations[rows]
    observations = _oriented(batch.observations, observation_space)
    if has_next:
        after = _oriented(batch.next_observations, observation_space)
    elif needs_next:
        # What stands behind a terminated row is its own observation, which nobody reads.
        following = np.where(np.isin(rows, ends), rows, rows + 1)
        after = _oriented(demonstrations[following].observations, observation_space)
    else:
        after = observations
    padding = np.zeros(len(rows))
    if horizon is not None:
        steps = absorbing_steps(demonstrations.episode_lengths(), horizon, gamma)
        # Only the sum is drawn by: where an episode's last row is left out, the one before has its padding.
        kept = np.maximum(np.searchsorted(rows, ends, side="right") - 1, 0)
        np.add.at(padding, kept, np.where(terminated[ends], steps, 0.0))
    store = TransitionStore(observation_space, demonstrations.action_space, len(rows), num_masks)
    store.add(observations, batch.actions, after, terminated[rows], padding, batch.action_masks if num_masks else None)
    return store


def absorbing_steps(lengths: NDArray[np.int64], horizon: int, gamma: float) -> NDArray[np.float64]:
    """How many self-loops of the absorbing state an episode is followed by that ended after so many steps.

    Those up to the horizon, n of them, discounted: `(1 - gamma^n) / (1 - gamma)`. So many of them count for the
    generator, which maximises a discounted return. All n would leave hardly any other row in the batches where an
    expert ends early, as in Acrobot-v1, and nothing to be told apart.

    Args:
        lengths: int64 `[E]`.
        horizon: steps after which an episode would have ended anyway.
        gamma: the discount factor, in [0, 1].

    Example:
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


def _cut(observations: Observations, size: int) -> Observations:
    if isinstance(observations, dict):
        return {key: part[:size].copy() for key, part in observations.items()}
    return observations[:size].copy()


def _taken(observations: Observations, rows: NDArray[np.int64]) -> Observations:
    if isinstance(observations, dict):
        return {key: part[rows] for key, part in observations.items()}
    return observations[rows]


def _to_tensors(observations: Observations, rows: NDArray[np.int64], device: torch.device) -> TensorObservations:
    if isinstance(observations, dict):
        return {key: _to_tensor(part[rows], device) for key, part in observations.items()}
    return _to_tensor(observations[rows], device)


def _to_tensor(values: Array, device: torch.device) -> Tensor:
    return torch.as_tensor(values.astype(np.float32) if values.dtype == np.float64 else values, device=device)


def _oriented(observations: Any, space: spaces.Space[Any]) -> Any:
    """Images with their channels first, as the algorithm's space has them."""
    if isinstance(space, spaces.Dict):
        return {key: maybe_transpose(np.asarray(observations[key]), part) for key, part in space.spaces.items()}
    return maybe_transpose(np.asarray(observations), space)
