"""`ObservationOnly`: demonstrations without actions, for cloning from observation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rlsmooth.data.arrays import (
    AnyArray,
    Array,
    Observations,
    action_dims,
    action_starts,
    as_array,
    as_observations,
    in_memory,
    join_observations,
    readable,
    select_episodes,
    take,
)
from rlsmooth.data.demonstrations import Demonstrations, sampled_episodes
from rlsmooth.data.files import (
    OBSERVATION_FORMAT,
    DemonstrationsFileError,
    file_path,
    naming_file,
    read_npz,
    write_npz,
)
from rlsmooth.data.validation import checked_fields

NO_ACTIONS = spaces.Discrete(1)
"""The placeholder of an action space where there are no actions."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ObservationOnly:
    """Pairs `(observation, next observation)` of whole episodes, checked once when they enter.

    The pairs of an episode are in time order, and the episodes lie end to end, as in `Demonstrations`.
    What the expert did is not known, nor is the action space: `as_demonstrations` brings the two together.

    Args:
        observations: `[N, *observation_space.shape]`, or a dict of such arrays for a Dict space.
        next_observations: of the same shape: the observation after each.
        observation_space: Box, Discrete, MultiDiscrete, MultiBinary, or one Dict of those.
        episode_ends: int `[E]`, strictly increasing: the index after the last pair of each episode; the last one is N.
        action_masks: bool `[N, sum of the dimensions' choices]`, True = legal: which actions the expert could choose
            from, laid out as in `Demonstrations`.
        weights: `[N]`, finite and >= 0: how much each transition counts.
        metadata: where the data come from; JSON.

    Raises:
        TypeError: a space, a type or a dtype is not one of the above.
        ValueError: a length, shape or value is wrong; the message names the first offending pair.

    Examples:
        >>> seen = ObservationOnly.from_trajectories([[0, 1, 2], [2, 1]], observation_space=spaces.Discrete(3))
        >>> len(seen), seen.num_episodes, seen.next_observations.tolist()
        (3, 2, [1, 2, 1])
    """

    observations: Observations
    next_observations: Observations
    observation_space: spaces.Space[Any]
    episode_ends: npt.NDArray[np.int64]
    action_masks: Array | None = None
    weights: Array | None = None
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        ends = np.asarray(self.episode_ends)
        if ends.ndim != 1 or ends.size == 0 or ends.dtype.kind not in "iu" or ends[-1] < 1:
            raise ValueError(f"episode_ends={ends!r} must be a list of whole numbers that ends with their number.")
        count = int(ends[-1])
        # The masks' width depends on an action space, which is not known here.
        placeholder = {"actions": np.zeros(count, np.int64), "action_space": NO_ACTIONS, "action_masks": None}
        checked = checked_fields({**vars(self), **placeholder})
        for name in ("observations", "next_observations", "episode_ends"):
            object.__setattr__(self, name, checked[name])
        object.__setattr__(self, "weights", checked.get("weights"))
        if self.action_masks is not None:
            object.__setattr__(self, "action_masks", _checked_masks(self.action_masks, count))

    def __len__(self) -> int:
        return int(self.episode_ends[-1])

    def __repr__(self) -> str:
        return f"ObservationOnly({self.num_episodes} episodes, {len(self)} transitions, {self.observation_space})"

    @property
    def num_episodes(self) -> int:
        """E, the number of episodes."""
        return len(self.episode_ends)

    @classmethod
    def from_demonstrations(cls, demonstrations: Demonstrations) -> ObservationOnly:
        """Leave out the actions, rewards, groups and infos of demonstrations.

        Where they have no next observations, the observation of the next transition takes their place, and the last
        transition of each episode, which nothing follows, is left out.

        Raises:
            TypeError: they are no `Demonstrations`.
            ValueError: there is no pair of observations in them.

        Examples:
            >>> from rlsmooth.data import cartpole_v1
            >>> ObservationOnly.from_demonstrations(cartpole_v1()).num_episodes
            24
        """
        if not isinstance(demonstrations, Demonstrations):
            raise TypeError(f"demonstrations must be Demonstrations, got {type(demonstrations).__name__}.")
        given = demonstrations
        fields: dict[str, Any] = {
            "observations": given.observations,
            "next_observations": given.next_observations,
            "episode_ends": given.episode_ends,
            "action_masks": given.action_masks,
            "weights": given.weights,
        }
        if given.next_observations is None:
            followed = transitions_with_next(given)
            if len(followed) == 0:
                raise ValueError("demonstrations have no next_observations, and no episode has two observations.")
            fields = {name: take(value, followed) for name, value in fields.items() if name != "episode_ends"}
            fields["next_observations"] = take(given.observations, followed + 1)
            lengths = given.episode_lengths() - 1
            fields["episode_ends"] = np.cumsum(lengths[lengths > 0])
        return cls(observation_space=given.observation_space, metadata=dict(given.metadata), **fields)

    @classmethod
    def from_trajectories(
        cls,
        trajectories: Sequence[Any],
        *,
        observation_space: spaces.Space[Any],
        action_masks: Sequence[npt.ArrayLike] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> ObservationOnly:
        """Build from whole episodes, the final observation included.

        Args:
            trajectories: of each episode `[T + 1, *observation_space.shape]`, or a dict of such for a Dict space.
            observation_space: of the observations.
            action_masks: of each episode bool `[T, sum of the dimensions' choices]`, True = legal.
            metadata: where the data come from; JSON.

        Raises:
            TypeError, ValueError: as the class; or an episode has fewer than two observations, or as many masks as
                observations.

        Examples:
            >>> episodes = [[0, 1, 2], [2, 1]]
            >>> ObservationOnly.from_trajectories(episodes, observation_space=spaces.Discrete(3)).num_episodes
            2
        """
        episodes = [as_observations(episode) for episode in trajectories]
        counts = [_count(episode) - 1 for episode in episodes]
        if not counts or min(counts) < 1:
            raise ValueError(
                f"trajectories have {[count + 1 for count in counts]} observations: each needs two or more, "
                "the final one included."
            )
        masks = None
        if action_masks is not None:
            given = [np.asarray(mask) for mask in action_masks]
            if [len(mask) for mask in given] != counts:
                raise ValueError(
                    f"action_masks have {[len(mask) for mask in given]} entries, but the episodes {counts} "
                    "transitions: none is needed for a final observation."
                )
            masks = np.concatenate(given)
        return cls(
            observations=join_observations([take(episode, slice(None, -1)) for episode in episodes]),
            next_observations=join_observations([take(episode, slice(1, None)) for episode in episodes]),
            observation_space=observation_space,
            episode_ends=np.cumsum(counts),
            action_masks=masks,
            metadata=dict(metadata or {}),
        )

    def as_demonstrations(self, action_space: spaces.Space[Any]) -> Demonstrations:
        """Demonstrations with a placeholder action in every transition: the lowest legal one, or any within a Box.

        Replace them by the actions that an inverse dynamics model finds.

        Raises:
            TypeError: demonstrations can't hold actions of such a space.
            ValueError: the masks are not such as `action_space` needs.

        Examples:
            >>> seen = ObservationOnly.from_trajectories([[0, 1, 2]], observation_space=spaces.Discrete(3))
            >>> seen.as_demonstrations(spaces.Discrete(2, start=5)).actions.tolist()
            [5, 5]
        """
        return Demonstrations(
            observations=self.observations,
            actions=_lowest_actions(action_space, self.action_masks, len(self)),
            observation_space=self.observation_space,
            action_space=action_space,
            episode_ends=self.episode_ends,
            next_observations=self.next_observations,
            action_masks=self.action_masks,
            weights=self.weights,
            metadata=self.metadata,
        )

    def sample_episodes(self, n_episodes: int, seed: int = 0) -> ObservationOnly:
        """`n_episodes` different episodes drawn at random, in their original order.

        Raises:
            TypeError, ValueError: `n_episodes` is no whole number from 1 to E.
        """
        selected = select_episodes(vars(self), sampled_episodes(self.num_episodes, n_episodes, seed))
        return dataclasses.replace(self, **selected)

    def save(self, path: str | Path) -> None:
        """Write one `.npz`, atomically and without pickle, as `Demonstrations.save` does.

        Raises:
            ValueError: `path` does not end in `.npz`, its folder can't be written to, or the metadata are not JSON.
        """
        write_npz(path, vars(self), OBSERVATION_FORMAT)

    @classmethod
    def load(cls, path: str | Path) -> ObservationOnly:
        """Read a file of `save` into memory and check it.

        Raises:
            DemonstrationsFileError: the file is missing, damaged, edited, a pickle, demonstrations, or another
                program's, or what it holds does not pass the checks.
        """
        source = file_path(path)
        fields = read_npz(source, OBSERVATION_FORMAT)
        if "actions" in fields:
            raise DemonstrationsFileError(f"{source} holds actions, which observations without actions have not.")
        with naming_file(source, "observations"):
            return cls(**fields)


def transitions_with_next(demonstrations: Demonstrations) -> npt.NDArray[np.int64]:
    """The indices of the transitions whose next observation is known.

    These are all, or without `next_observations` all but each episode's last.
    """
    index = np.arange(len(demonstrations), dtype=np.int64)
    if demonstrations.next_observations is not None:
        return index
    return np.delete(index, demonstrations.episode_ends - 1)


def _checked_masks(masks: Array, count: int) -> Array:
    array = as_array(masks)
    if array.ndim != 2 or len(array) != count:
        raise ValueError(
            f"action_masks has shape {array.shape}, but there are {count} transitions: [{count}, choices]."
        )
    array = readable(array) if in_memory(array) else array
    if array.dtype != np.bool_:
        raise TypeError(f"action_masks has dtype {array.dtype}, but must hold Booleans (True = legal).")
    return array


def _lowest_actions(space: spaces.Space[Any], masks: Array | None, count: int) -> AnyArray:
    """`[count, *space.shape]`: the lowest legal choice of each dimension; of a Box the number nearest 0 within it."""
    dims = action_dims(space)
    if isinstance(space, spaces.Box):
        return np.broadcast_to(np.clip(np.zeros(space.shape), space.low, space.high), (count, *space.shape)).astype(
            space.dtype
        )
    lowest = np.zeros((count, len(dims)), np.int64)
    if masks is not None and masks.shape[1:] == (int(dims.sum()),):  # other shapes are refused later
        parts = np.split(np.asarray(masks), np.cumsum(dims)[:-1], axis=1)
        lowest = np.stack([part.argmax(axis=1) for part in parts], axis=1)
    return (lowest + action_starts(space)).reshape(count, *(space.shape or ()))


def _count(episode: Observations) -> int:
    return len(next(iter(episode.values())) if isinstance(episode, dict) else episode)
