"""`Demonstrations`: transitions of an expert, episode by episode, with the spaces they live in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rlsmooth.checks import check_in_range, check_positive_int
from rlsmooth.data.arrays import (
    TRANSITION_FIELDS,
    AnyArray,
    Array,
    Index,
    Observations,
    action_dims,
    action_starts,
    as_array,
    as_observations,
    join_observations,
    select_episodes,
    stored_dtype,
    take,
)
from rlsmooth.data.files import file_path, naming_file, read_folder, read_npz, write_folder, write_npz
from rlsmooth.data.lerobot import read_lerobot, write_lerobot
from rlsmooth.data.minari import read_minari, write_minari
from rlsmooth.data.parquet import read_parquet, write_parquet
from rlsmooth.data.readers import read_imitation, read_replay_buffer, read_rollout_buffer
from rlsmooth.data.validation import checked_fields, ends_of_flags, with_breaks

if TYPE_CHECKING:
    from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer


NOISE_CHUNK = 65_536
"""Transitions whose noise is drawn at once. Fixed, since it is part of what a seed means."""


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Some transitions, read into memory; the fields are those of `Demonstrations`, `None` where it has none."""

    observations: AnyArray | dict[str, AnyArray]
    actions: AnyArray
    next_observations: AnyArray | dict[str, AnyArray] | None = None
    rewards: AnyArray | None = None
    terminations: AnyArray | None = None
    truncations: AnyArray | None = None
    action_masks: AnyArray | None = None
    weights: AnyArray | None = None
    groups: AnyArray | None = None
    action_probs: AnyArray | None = None

    def __len__(self) -> int:
        return len(self.actions)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Demonstrations:
    """Transitions `(observation, action, ...)` of whole episodes, checked once when they enter.

    The transitions of an episode are in time order, and the episodes lie end to end. `demonstrations[index]` reads some
    (by a slice, index array or Boolean array) as a `Batch`. Arrays in memory are stored in the spaces' own dtypes
    (Discrete and MultiDiscrete: int64, MultiBinary: int8); do not write to them, since nothing checks them again.
    Memory-mapped arrays stay on the disk: they are checked in chunks of 16 MiB and keep their dtype, and a choice of
    episodes from them is an `EpisodeView`, which reads transitions when indexed and holds three numbers an episode.

    Actions have the environment's own numbering, so that those of `Discrete(n, start=s)` run from `s` to `s + n - 1`;
    `action_labels` counts from 0, as losses and policies do.

    Args:
        observations: `[N, *observation_space.shape]`, or a dict of such arrays for a Dict space. A Box's bounds are
            not enforced (many environments overstep them), but its floats must be finite; other spaces are enforced.
        actions: `[N, *action_space.shape]`; every action must be inside the space, a Box's bounds included.
        observation_space: Box, Discrete, MultiDiscrete, MultiBinary, or one Dict of those.
        action_space: Discrete, MultiDiscrete, MultiBinary or Box.
        episode_ends: int `[E]`, strictly increasing: the index after the last transition of each episode; the last one
            is N.
        next_observations: of the same shape: the observation after the action, at an episode's end its true final
            observation.
        rewards: `[N]`, finite.
        terminations: bool `[N]`: the episode ended in a terminal state here. May be True only at an episode's end; an
            episode whose last transition has neither flag was cut off there.
        truncations: bool `[N]`: the episode was ended from outside here, as by a time limit.
        action_masks: bool `[N, sum of the dimensions' choices]`, True = legal, as sb3-contrib lays them out (a
            MultiBinary dimension has two choices). Each dimension needs a legal choice, and the action must be legal.
        weights: `[N]`, finite and >= 0: how much each transition counts.
        groups: int `[N]`: a group number for audits or per-group smoothing.
        action_probs: `[N, K]` soft targets for a Discrete space, used in place of smoothed labels; non-negative, rows
            sum to 1 within 1e-4.
        infos: N mappings. `save` needs them to be JSON.
        metadata: where the data come from; JSON.

    Raises:
        TypeError: a space, a type or a dtype is not one of the above.
        ValueError: a length, shape or value is wrong; the message names the first offending transition.

    Examples:
        >>> demonstrations = Demonstrations.from_arrays(
        ...     np.zeros((3, 2), np.float32), [0, 1, 1], observation_space=spaces.Box(-1, 1, (2,)),
        ...     action_space=spaces.Discrete(2), episode_ends=[2, 3])
        >>> len(demonstrations), demonstrations.num_episodes, demonstrations.episode_lengths().tolist()
        (3, 2, [2, 1])
        >>> demonstrations[1:].actions.tolist()
        [1, 1]
    """

    observations: Observations
    actions: Array
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    episode_ends: npt.NDArray[np.int64]
    next_observations: Observations | None = None
    rewards: Array | None = None
    terminations: Array | None = None
    truncations: Array | None = None
    action_masks: Array | None = None
    weights: Array | None = None
    groups: Array | None = None
    action_probs: Array | None = None
    infos: Sequence[Mapping[str, Any]] | None = None
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in checked_fields(vars(self)).items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.actions)

    def __getitem__(self, index: Index) -> Batch:
        if not isinstance(index, slice) and np.ndim(index) == 0:
            raise TypeError(
                f"index={index} must be a slice or an array of indices: use [{index} : {index} + 1] for one transition."
            )
        parts = {name: take(getattr(self, name), index) for name in TRANSITION_FIELDS}
        # A file on the disk may have other dtypes than the spaces.
        parts["actions"] = parts["actions"].astype(stored_dtype(self.action_space), copy=False)
        for name in ("observations", "next_observations"):
            parts[name] = _in_stored_dtype(take(getattr(self, name), index), self.observation_space)
        return Batch(**parts)

    def __repr__(self) -> str:
        returns = "" if self.rewards is None else f", return {np.mean(self.episode_returns()):.1f}"
        return (
            f"Demonstrations({self.num_episodes} episodes, {len(self)} transitions{returns}, "
            f"{self.observation_space} -> {self.action_space})"
        )

    @classmethod
    def from_arrays(
        cls,
        observations: Any,
        actions: npt.ArrayLike,
        *,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        episode_ends: npt.ArrayLike | None = None,
        next_observations: Any = None,
        rewards: npt.ArrayLike | None = None,
        terminations: npt.ArrayLike | None = None,
        truncations: npt.ArrayLike | None = None,
        action_masks: npt.ArrayLike | None = None,
        weights: npt.ArrayLike | None = None,
        groups: npt.ArrayLike | None = None,
        action_probs: npt.ArrayLike | None = None,
        infos: Sequence[Mapping[str, Any]] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Demonstrations:
        """Build from arrays, lists or memory-mapped arrays; the arguments are those of the class.

        `episode_ends` may be left out when `terminations` or `truncations` are given; what follows the
        last of them is one more episode, cut off. So is what lies before a break: a next observation that is not the
        one that the following transition begins with, where `next_observations` are given.

        Raises:
            TypeError, ValueError: as the class; or there are no `episode_ends`, `terminations` or `truncations`.

        Examples:
            >>> demonstrations = Demonstrations.from_arrays(
            ...     [0, 1, 2], [1, 0, 1], observation_space=spaces.Discrete(3), action_space=spaces.Discrete(2),
            ...     terminations=[False, True, False])
            >>> demonstrations.episode_ends.tolist()
            [2, 3]
        """
        seen, then = as_observations(observations), None
        if next_observations is not None:
            then = as_observations(next_observations)
        if episode_ends is None:
            episode_ends = ends_of_flags(terminations, truncations)
            if then is not None:
                episode_ends = with_breaks(episode_ends, seen, then, observation_space)
        optional = {
            "rewards": rewards,
            "terminations": terminations,
            "truncations": truncations,
            "action_masks": action_masks,
            "weights": weights,
            "groups": groups,
            "action_probs": action_probs,
        }
        arrays: dict[str, Any] = {name: as_array(value) for name, value in optional.items() if value is not None}
        return cls(
            observations=seen,
            actions=as_array(actions),
            observation_space=observation_space,
            action_space=action_space,
            episode_ends=np.asarray(episode_ends),
            next_observations=then,
            infos=infos,
            metadata=dict(metadata or {}),
            **arrays,
        )

    @classmethod
    def from_imitation(
        cls,
        source: str | Path | Iterable[Any],
        *,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        time_limit: int | None = None,
    ) -> Demonstrations:
        """Read trajectories of the `imitation` library (folders need the extra `datasets`).

        Args:
            source: a folder of its `serialize.save`, an `.npz` of its older versions, or trajectory objects with `obs`
                `[T + 1, ...]`, `acts` `[T, ...]`, `terminal` and perhaps `rews`. Its infos are not read: they are
                jsonpickle strings, which can run code when decoded. A trajectory that is not terminal is truncated.
            observation_space: imitation does not store the spaces.
            action_space: imitation does not store it either.
            time_limit: the environment's. imitation's `terminal` is also True where a time limit ended the episode;
                trajectories of so many steps are truncated here. None: `terminal` is taken at its word.

        Raises:
            DemonstrationsFileError: the folder or file is missing, damaged or something else.
            TypeError, ValueError: as the class; or lengths do not fit, or exceed the time limit.
            ImportError: pyarrow is not installed.
        """
        return cls(observation_space=observation_space, action_space=action_space, **read_imitation(source, time_limit))

    @classmethod
    def from_minari(cls, source: str | Path) -> Demonstrations:
        """Read a Minari data set (extra `minari`): the id of one that is on this machine, or its folder.

        Nothing is downloaded. Episodes of Dict observations are fine, Tuple and Text spaces are not.

        Raises:
            DemonstrationsFileError: there is no such data set, or it can't be read.
            TypeError, ValueError: as the class.
            ImportError: minari is not installed.
        """
        return cls(**read_minari(source))

    @classmethod
    def from_replay_buffer(cls, buffer: ReplayBuffer, *, actions_are_scaled: bool = True) -> Demonstrations:
        """Read an SB3 `ReplayBuffer` or `DictReplayBuffer`, each environment's transitions in time order.

        The newest episode of each environment may be cut off, and in a full buffer the oldest may lack its beginning.
        Each `learn` starts the environments anew: a transition whose next observation is not the one that the following
        begins with ends an episode that was cut off. Buffers that save memory have no final observations, so
        `next_observations` is None for them, and such a break can't be seen in them unless SB3 marked it itself.

        Args:
            buffer: the buffer; `algorithm.load_replay_buffer` reads SB3's files (pickles, which can run code).
            actions_are_scaled: whether Box actions are scaled to [-1, 1], as SB3's own off-policy algorithms store
                them, and must be put back between the space's bounds.

        Raises:
            TypeError, ValueError: as the class; or the buffer is empty.
        """
        return cls(**read_replay_buffer(buffer, actions_are_scaled=actions_are_scaled))

    @classmethod
    def from_rollout_buffer(cls, buffer: RolloutBuffer) -> Demonstrations:
        """Read an SB3 `RolloutBuffer` or `DictRolloutBuffer`, or sb3-contrib's maskable ones with their masks.

        The buffer holds no next observations and does not distinguish a terminal state from a time limit, so those
        fields are None; its last episodes are mostly cut off. Its rewards are SB3's: at a time limit they include the
        value of the final observation. Box actions are stored before SB3 clips them to the bounds for the environment;
        here they are as the environment got them, so policies with `squash_output=True` are not for this reader.

        Raises:
            TypeError, ValueError: as the class; or the buffer is empty.
        """
        return cls(**read_rollout_buffer(buffer))

    @property
    def num_episodes(self) -> int:
        """E, the number of episodes."""
        return len(self.episode_ends)

    @property
    def episode_starts(self) -> npt.NDArray[np.int64]:
        """int64 `[E]`: the index of the first transition of each episode."""
        return self.episode_ends - self.episode_lengths()

    @property
    def action_labels(self) -> AnyArray:
        """The actions counted from 0, in memory: int64 `[N]` (Discrete) or `[N, D]`; a Box's actions as they are."""
        actions = np.asarray(self.actions)
        if isinstance(self.action_space, spaces.Box):
            return actions
        flat = actions.astype(np.int64).reshape(len(self), -1) - action_starts(self.action_space)
        return flat[:, 0] if isinstance(self.action_space, spaces.Discrete) else flat

    def episode_lengths(self) -> npt.NDArray[np.int64]:
        """int64 `[E]`: the number of transitions of each episode."""
        return np.diff(self.episode_ends, prepend=0)

    def episode_returns(self) -> npt.NDArray[np.float64]:
        """float64 `[E]`: the undiscounted sum of each episode's rewards.

        Raises:
            ValueError: there are no rewards.
        """
        if self.rewards is None:
            raise ValueError("rewards is None: these demonstrations have no returns.")
        return np.add.reduceat(np.asarray(self.rewards, dtype=np.float64), self.episode_starts)

    def select_episodes(self, indices: npt.ArrayLike) -> Demonstrations:
        """The episodes of the given numbers, in that order; a number may be repeated.

        Raises:
            ValueError: `indices` is empty or no list of whole numbers from 0 to E - 1.
        """
        chosen = np.asarray(indices)
        if chosen.ndim != 1 or chosen.size == 0 or chosen.dtype.kind not in "iu":
            raise ValueError(f"indices={indices!r} must be a non-empty list of episode numbers.")
        if chosen.min() < 0 or chosen.max() >= self.num_episodes:
            raise ValueError(f"indices={indices!r}: the episodes are numbered from 0 to {self.num_episodes - 1}.")
        return self.replace_unchecked(**select_episodes(vars(self), chosen.astype(np.int64)))

    def sample_episodes(self, n_episodes: int, seed: int = 0) -> Demonstrations:
        """`n_episodes` different episodes drawn at random, in their original order.

        Raises:
            TypeError, ValueError: `n_episodes` is no whole number from 1 to E.
        """
        return self.select_episodes(sampled_episodes(self.num_episodes, n_episodes, seed))

    def split(self, fraction: float, seed: int = 0) -> tuple[Demonstrations, Demonstrations]:
        """Split by episode into (training, validation); `fraction` of the episodes, rounded, go to validation.

        Never by transition: neighbouring transitions are nearly equal, so a split by transition would validate on what
        was trained on. Every episode is on one side, and the same seed gives the same split.

        Raises:
            TypeError, ValueError: `fraction` is no number in (0, 1), or a side would be empty.

        Examples:
            >>> from rlsmooth.data import cartpole_v1
            >>> training, validation = cartpole_v1().split(0.25, seed=0)
            >>> training.num_episodes, validation.num_episodes
            (18, 6)
        """
        fraction = check_in_range("fraction", fraction, 0, 1, low_open=True, high_open=True)
        held_out = round(fraction * self.num_episodes)
        if held_out in (0, self.num_episodes):
            raise ValueError(
                f"fraction={fraction} of {self.num_episodes} episodes leaves a side empty: "
                "use another fraction, or more episodes."
            )
        order = np.random.default_rng(seed).permutation(self.num_episodes)
        return self.select_episodes(np.sort(order[held_out:])), self.select_episodes(np.sort(order[:held_out]))

    def with_action_noise(self, p: float, seed: int = 0) -> Demonstrations:
        """Replace each action, with probability `p`, by another one: label noise, for studies.

        Discrete: uniformly one of the OTHER legal actions (the action stays if it is the only one). MultiDiscrete: each
        dimension by itself, in the same way. MultiBinary: each bit by itself is flipped, if its mask allows. Box: the
        vector is replaced by a uniform draw between the bounds. Only the labels change; the episodes stay as they went.

        Args:
            p: the probability, in [0, 1].
            seed: the same seed gives the same noise.

        Raises:
            TypeError, ValueError: `p` is no number in [0, 1]; a Box has no finite bounds; or there are `action_probs`,
                which would be trained on in place of the noisy labels.
        """
        p = check_in_range("p", p, 0, 1)
        if self.action_probs is not None:
            raise ValueError("action_probs would be used in place of the noisy actions: set them to None first.")
        actions = _noisy_actions(self.actions, self.action_space, self.action_masks, p=p, seed=seed)
        return self.replace_unchecked(
            actions=actions, metadata={**self.metadata, "action_noise": {"p": p, "seed": seed}}
        )

    def batches(self, batch_size: int, seed: int | None = None) -> Iterator[Batch]:
        """One pass over the transitions in batches, in order, or in an order drawn from `seed`; the last may be small.

        Reads only the batch from memory-mapped arrays, so that the set may be larger than memory.

        Raises:
            TypeError, ValueError: `batch_size` is no whole number >= 1.
        """
        size = check_positive_int("batch_size", batch_size)
        order = None if seed is None else np.random.default_rng(seed).permutation(len(self))
        for start in range(0, len(self), size):
            batch = slice(start, min(start + size, len(self)))
            yield self[batch if order is None else order[batch]]

    def save(self, path: str | Path) -> None:
        """Write one `.npz`, whole or not at all, and without pickle; `rlsmooth.data.files` describes it.

        Raises:
            ValueError: `path` does not end in `.npz`, its folder can't be written to, or infos or metadata are not
                JSON.
        """
        write_npz(path, vars(self))

    @classmethod
    def load(cls, path: str | Path) -> Demonstrations:
        """Read a `.npz` of `save` into memory, or a folder of `save_folder`, memory-mapped.

        Raises:
            DemonstrationsFileError: the file or folder is missing, damaged, edited, a pickle, another program's or a
                newer version's; or what it holds does not pass the checks.
        """
        source = file_path(path)
        fields = read_folder(source) if source.is_dir() else read_npz(source)
        with naming_file(source):
            return cls(**fields)

    def save_folder(self, path: str | Path) -> None:
        """Write a folder of `.npy` files, for sets larger than memory; `rlsmooth.data.files` describes it.

        Raises:
            ValueError: the folder can't be written to or holds demonstrations already; there are infos, which have no
                place in a folder; or the metadata are not JSON.
        """
        write_folder(path, vars(self))

    def to_parquet(self, path: str | Path) -> None:
        """Write a Parquet file, a row a transition, for pandas, `datasets`, Ray Data; see `rlsmooth.data.parquet`.

        Raises:
            ImportError: pyarrow is not installed.
            ValueError: the folder can't be written to.
        """
        write_parquet(path, vars(self))

    @classmethod
    def from_parquet(
        cls,
        path: str | Path,
        *,
        observation_space: spaces.Space[Any] | None = None,
        action_space: spaces.Space[Any] | None = None,
        columns: Mapping[str, str] | None = None,
    ) -> Demonstrations:
        """Read a Parquet file with a row a transition, in the order of time; see `rlsmooth.data.parquet`.

        Args:
            path: of the file.
            observation_space: of a file that `to_parquet` did not write.
            action_space: of a file that `to_parquet` did not write.
            columns: what its columns are called, by their names in `rlsmooth.data.parquet`: `{"observation": "obs"}`.

        Raises:
            DemonstrationsFileError: it is no such file, or what it holds does not pass the checks.
            ImportError: pyarrow is not installed.
        """
        fields = read_parquet(path, observation_space, action_space, columns)
        with naming_file(Path(path)):
            return cls(**fields)

    def to_minari(self, dataset_id: str, **details: Any) -> Path:
        """Write a Minari data set (extra `minari`) among those of this machine, and return its folder.

        Images are kept exactly, and Dict observations with their keys. The metadata are left behind.

        Args:
            dataset_id: its new id, such as `"cartpole/expert-v0"`.
            details: arguments of `minari.create_dataset_from_buffers`: `env` (which `recover_environment` makes),
                `author`, `author_email`, `algorithm_name`, `code_permalink`, `description`.

        Raises:
            ValueError: the id is taken or malformed; next observations, rewards, terminations or truncations are
                missing; or there is what Minari has no place for, such as masks and weights.
            ImportError: minari is not installed.
        """
        return write_minari(dataset_id, vars(self), details)

    def to_lerobot(self, path: str | Path, *, fps: int, task: str | None = None) -> None:
        """Write a folder in LeRobot's layout, version 3.0 (extra `datasets`); see `rlsmooth.data.lerobot`.

        LeRobot reads it, and `from_lerobot` gives the same demonstrations back.

        Args:
            path: a folder that is empty, or not there yet.
            fps: transitions a second, which LeRobot computes times by: the environment's `render_fps`, for example.
            task: what the episodes do, in words. Default: the environment's id in the metadata.

        Raises:
            ValueError: the folder is not empty or can't be written to, observations or actions are no vectors or
                numbers, or there are infos.
            ImportError: pyarrow is not installed.
        """
        write_lerobot(path, vars(self), fps, task)

    @classmethod
    def from_lerobot(
        cls,
        path: str | Path,
        *,
        observation: str | None = None,
        observation_space: spaces.Space[Any] | None = None,
        action_space: spaces.Space[Any] | None = None,
    ) -> Demonstrations:
        """Read a folder in LeRobot's layout, of versions 2.0 to 3.0 (extra `datasets`). Nothing is downloaded.

        LeRobot's own sets have no final observations, so `next_observations` is None for them, and their `next.done`
        does not distinguish a terminal state from a time limit, so that there are no flags either.

        Args:
            path: of the folder.
            observation: the column to learn from. Default: `observation.state`, if the set has no other observation.
                Images and videos are not read.
            observation_space: default: the one that `to_lerobot` kept, or a Box without bounds.
            action_space: the same. Actions that are whole numbers need one, if another program wrote the set.

        Raises:
            DemonstrationsFileError: it is no such folder, is damaged or incomplete, or a choice must be made.
            TypeError, ValueError: as the class.
            ImportError: pyarrow is not installed.
        """
        fields = read_lerobot(path, observation, observation_space, action_space)
        with naming_file(Path(path)):
            return cls(**fields)

    def replace_unchecked(self, **changes: Any) -> Demonstrations:
        """A copy with fields changed to values known to be right: not checked, so nothing is read from the disk."""
        copy = object.__new__(Demonstrations)
        for field in dataclasses.fields(self):
            object.__setattr__(copy, field.name, changes.get(field.name, getattr(self, field.name)))
        return copy


def concatenate(parts: Sequence[Demonstrations]) -> Demonstrations:
    """The transitions of several sets, one set after the other, in memory.

    A field that one of the sets lacks is left out, and so are the infos. The spaces and the metadata are those of the
    first set. A single set comes back as it is.

    Raises:
        ValueError: there is no set, or their spaces differ.

    Examples:
        >>> from rlsmooth.data import cartpole_v1
        >>> first, rest = cartpole_v1().split(0.25, seed=0)
        >>> concatenate([first, rest]).num_episodes
        24
    """
    if not parts:
        raise ValueError("parts is empty: there is nothing to concatenate.")
    first = parts[0]
    if len(parts) == 1:
        return first
    for number, part in enumerate(parts):
        same = part.observation_space == first.observation_space and _same_actions(
            part.action_space, first.action_space
        )
        if not same:
            raise ValueError(
                f"parts[{number}] has the spaces {part.observation_space} -> {part.action_space}, but the first set "
                f"{first.observation_space} -> {first.action_space}: they must be the same."
            )
    starts = np.cumsum([0, *(len(part) for part in parts[:-1])])
    fields: dict[str, Any] = {}
    for name in ("observations", "next_observations", *TRANSITION_FIELDS):
        values = [getattr(part, name) for part in parts]
        fields[name] = None if any(value is None for value in values) else join_observations(values)
    fields["episode_ends"] = np.concatenate(
        [part.episode_ends + start for part, start in zip(parts, starts, strict=True)]
    )
    return first.replace_unchecked(infos=None, **fields)


def sampled_episodes(num_episodes: int, n_episodes: int, seed: int) -> npt.NDArray[np.int64]:
    """The numbers of `n_episodes` different episodes, drawn at random and sorted: int64 `[n_episodes]`.

    Raises:
        TypeError, ValueError: `n_episodes` is no whole number from 1 to `num_episodes`.
    """
    count = check_positive_int("n_episodes", n_episodes)
    if count > num_episodes:
        raise ValueError(f"n_episodes={count} is more than the {num_episodes} episodes there are.")
    return np.sort(np.random.default_rng(seed).choice(num_episodes, size=count, replace=False))


def _same_actions(one: spaces.Space[Any], other: spaces.Space[Any]) -> bool:
    """Whether the spaces are equal, but for the rounding of a Box's bounds."""
    if isinstance(one, spaces.Box) and isinstance(other, spaces.Box) and one.shape == other.shape:
        return np.allclose(one.low, other.low) and np.allclose(one.high, other.high)
    return bool(one == other)


def _in_stored_dtype(observations: Any, space: spaces.Space[Any]) -> Any:
    if isinstance(space, spaces.Dict) and observations is not None:
        return {key: _in_stored_dtype(part, space[key]) for key, part in observations.items()}
    return None if observations is None else observations.astype(stored_dtype(space), copy=False)


def _noisy_actions(actions: Array, space: spaces.Space[Any], masks: Array | None, *, p: float, seed: int) -> AnyArray:
    """A copy of the actions, `[N, *space.shape]`, of which a share `p` is replaced by another legal one."""
    rng = np.random.default_rng(seed)
    noisy = np.empty(actions.shape, dtype=stored_dtype(space))
    for start in range(0, len(actions), NOISE_CHUNK):
        chunk = slice(start, min(start + NOISE_CHUNK, len(actions)))
        part = np.asarray(actions[chunk])
        if isinstance(space, spaces.Box):
            noisy[chunk] = _noisy_box(part, space, p, rng)
        else:
            mask = None if masks is None else np.asarray(masks[chunk])
            noisy[chunk] = _noisy_choices(part, space, mask, p, rng)
    return noisy


def _noisy_box(actions: AnyArray, space: spaces.Box, p: float, rng: np.random.Generator) -> AnyArray:
    if not space.is_bounded():
        raise ValueError(f"action_space={space!r} has no finite bounds to draw noise between: use a bounded Box.")
    hit = rng.random(len(actions)) < p  # [n]
    if np.dtype(space.dtype).kind == "f":
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        drawn = rng.uniform(low, high, size=actions.shape).astype(space.dtype)
    else:
        bounds = space.low.astype(np.int64), space.high.astype(np.int64)
        drawn = rng.integers(*bounds, size=actions.shape, endpoint=True).astype(space.dtype)
    return np.where(hit.reshape(-1, *(1,) * (actions.ndim - 1)), drawn, actions)


def _noisy_choices(
    actions: AnyArray, space: spaces.Space[Any], mask: AnyArray | None, p: float, rng: np.random.Generator
) -> AnyArray:
    dims, first = action_dims(space), action_starts(space)
    labels = actions.reshape(len(actions), -1).astype(np.int64) - first  # [n, D], from 0
    hit = rng.random(labels.shape) < p
    column = 0
    for dim, choices in enumerate(dims):
        legal = np.ones((len(labels), int(choices)), dtype=bool) if mask is None else mask[:, column : column + choices]
        labels[:, dim] = np.where(hit[:, dim], _another_choice(labels[:, dim], legal, rng), labels[:, dim])
        column += int(choices)
    return (labels + first).reshape(actions.shape)


def _another_choice(label: npt.NDArray[np.int64], legal: AnyArray, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """A uniformly random legal choice other than the label, or the label where there is no other: int64 `[n]`."""
    others = legal.copy()  # [n, K]
    others[np.arange(len(label)), label] = False
    count = others.sum(axis=1)
    rank = rng.integers(np.maximum(count, 1))  # which of the others, counted from 0
    chosen = (np.cumsum(others, axis=1) > rank[:, None]).argmax(axis=1)
    return np.where(count > 0, chosen, label)
