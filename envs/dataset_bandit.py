"""A labelled data set as a contextual bandit: the action is a class, and the nearer it is to the label the better.

Here classification meets reinforcement learning: a classifier's targets and a policy's can be compared on the same
data, since the optimum and its smoothed and entropy-regularised forms are known for every sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rlsmooth.checks import check_choice, check_in_range, check_positive_int
from rlsmooth.data.labelled import LabelledData, load_labelled
from rlsmooth.envs.images import RenderMode
from rlsmooth.envs.observations import Observation
from rlsmooth.envs.tabular import MAX_STATES, TabularProblem
from rlsmooth.envs.tabular_env import IllegalAction, MaskedTabularEnv, TabularEnv
from rlsmooth.targets import Tree

Distance = Literal["auto", "tree", "ordinal", "zero_one"]
MAX_ENTRIES = 2**25
ILLEGAL_REWARD = -1.0


@dataclass(frozen=True)
class SampleObserver:
    """Shows the features of a sample, in the place of `StateObserver`.

    Attributes:
        features: `[N, D]` float32.
    """

    features: NDArray[np.float32]

    @property
    def dims(self) -> tuple[int, ...]:
        """`(N,)`: a state has one component, the number of its sample."""
        return (len(self.features),)

    def space(self) -> spaces.Space[Any]:
        """A Box from the least feature to the largest."""
        low, high = float(self.features.min()), float(self.features.max())
        return spaces.Box(low, max(high, low + 1.0), self.features.shape[1:], np.float32)

    def encode(self, components: NDArray[np.int64]) -> Observation:
        """The features of the sample of that number; a new array at each call."""
        return np.array(self.features[components[0]])

    def decode(self, observation: Observation | int) -> NDArray[np.int64]:
        """The number, `[1]`, of the first sample with these features.

        Raises:
            ValueError: there is none.
        """
        seen: Any = observation
        if np.shape(seen) == self.features.shape[1:]:
            found = np.flatnonzero((self.features == seen).all(axis=-1))
            if len(found):
                return found[:1]
        raise ValueError(f"observation {observation!r:.80} has no sample's features: pass one as step() returns it.")


class DatasetBanditEnv(TabularEnv):
    """A bandit whose contexts are samples, drawn uniformly. Registered as `rlsmooth/DatasetBandit-v0`.

    The reward is `1 - distance(action, label) / largest distance`: 1 for the label, 0 for the class farthest away. All
    that `TabularEnv` knows in closed form has a row for each sample. Samples with the same features look the
    same to a policy, so their rows are the same: of the mean rewards.

    Args:
        data: a set that `rlsmooth.data.load_labelled` finds by name or in an `.npz`, or a `LabelledData`.
        distance: between classes: the edges between them in the set's hierarchy (`"tree"`), the steps between them in
            their order (`"ordinal"`), or 0 and 1 (`"zero_one"`). `"auto"`: the first of these that the set has.
        episode_length: steps in an episode.
        standardise: bring features to mean 0 and standard deviation 1.
        legal: which classes are legal for each sample, bool `[N, K]`; `DatasetBanditMaskedEnv` shows them as masks.
        illegal_action: `"penalise"` (reward -1) or `"raise"` a ValueError.
        render_mode: None or `"rgb_array"`: above, the label in white; below, what is legal in green.

    Raises:
        ImportError: the set needs the extra `datasets`.
        TypeError: an argument is of the wrong kind.
        ValueError: the set is not known, is too large, has one class or sample, or lacks what `distance` needs.

    Examples:
        >>> data = LabelledData(np.eye(3), np.array([0, 1, 2]), ("low", "middle", "high"), is_ordered=True)
        >>> env = DatasetBanditEnv(data)
        >>> env.problem.rewards.tolist()
        [[1.0, 0.5, 0.0], [0.5, 1.0, 0.5], [0.0, 0.5, 1.0]]
        >>> observation, _ = env.reset(seed=0)
        >>> env.step(env.expert_action(observation))[1], env.optimal_return()
        (1.0, 10.0)
    """

    def __init__(
        self,
        data: LabelledData | str | Path = "digits",
        *,
        distance: Distance = "auto",
        episode_length: int = 10,
        standardise: bool = True,
        legal: NDArray[np.bool_] | None = None,
        illegal_action: IllegalAction = "penalise",
        render_mode: RenderMode | None = None,
    ) -> None:
        labelled = check_data(data)
        distances = class_distances(labelled, distance)
        shown = (labelled.standardised() if standardise else labelled).features
        shape = (len(labelled), labelled.num_classes)
        allowed = np.ones(shape, np.bool_) if legal is None else np.asarray(legal, dtype=np.bool_)
        if allowed.shape != shape:
            raise ValueError(f"legal has shape {allowed.shape}: it must be {shape}, a row for each sample.")
        paid = np.where(allowed, 1.0 - distances[labelled.labels] / distances.max(), ILLEGAL_REWARD)
        _, group = np.unique(np.concatenate((shown, allowed), axis=-1), axis=0, return_inverse=True)
        group = group.ravel()  # of samples that look alike to a policy
        means = np.zeros_like(paid)
        np.add.at(means, group, paid)
        means = means[group] / np.bincount(group)[group, None]
        super().__init__(
            TabularProblem((labelled.num_classes,), means, allowed),
            spaces.Discrete(labelled.num_classes),
            episode_length=episode_length,
            observation=SampleObserver(shown),
            illegal_action=illegal_action,
            render_mode=render_mode,
        )
        self.labels: NDArray[np.int64] = labelled.labels
        self._paid = paid

    def state_of(self, observation: Observation | int) -> int:
        """The number of the sample that an observation shows: the current one, or the first with these features.

        Raises:
            ValueError: if it shows none.
        """
        seen: Any = observation
        is_current = np.array_equal(self.observation_of(self._state), seen)
        return self._state if is_current else super().state_of(observation)

    def shown_columns(self) -> NDArray[np.int64]:
        """The label of the current sample."""
        return self.labels[self._state : self._state + 1]

    def get_state(self) -> dict[str, int]:
        """Where the episode is: for checkpoints, which need not keep the data."""
        return {"sample": self._state, "steps_left": self._steps_left}

    def set_state(self, state: dict[str, int]) -> None:
        """Put back what `get_state` gave.

        Raises:
            ValueError: there is no such sample.
        """
        self.observation_of(state["sample"])
        self._state, self._steps_left = int(state["sample"]), int(state["steps_left"])


class DatasetBanditMaskedEnv(DatasetBanditEnv, MaskedTabularEnv):
    """A `DatasetBanditEnv` with action masks: the label is legal, and each other class by chance, once for all.

    Registered as `rlsmooth/DatasetBanditMasked-v0`. An illegal action pays -1.

    Args:
        data: a set, as `DatasetBanditEnv` takes it.
        legal: the probability with which a class that is not the sample's label is legal; or which classes are legal,
            bool `[N, K]`, at least one a sample.
        mask_seed: draws the masks.
        arguments: further ones of `DatasetBanditEnv`.

    Raises:
        ImportError, TypeError, ValueError: as `DatasetBanditEnv`, or `legal` is no probability and no such table.

    Examples:
        >>> data = LabelledData(np.eye(3), np.array([0, 1, 2]), ("a", "b", "c"))
        >>> DatasetBanditMaskedEnv(data, legal=0.0).problem.legal.tolist()
        [[True, False, False], [False, True, False], [False, False, True]]
    """

    def __init__(
        self,
        data: LabelledData | str | Path = "digits",
        *,
        legal: float | NDArray[np.bool_] = 0.5,
        mask_seed: int = 0,
        **arguments: Any,
    ) -> None:
        labelled = check_data(data)
        if not isinstance(legal, np.ndarray):
            share = check_in_range("legal", legal, 0, 1)
            rng = np.random.default_rng(check_positive_int("mask_seed", mask_seed, minimum=0))
            legal = rng.random((len(labelled), labelled.num_classes)) < share
            legal[np.arange(len(labelled)), labelled.labels] = True
        super().__init__(labelled, legal=legal, **arguments)


def check_data(data: LabelledData | str | Path) -> LabelledData:
    """The set itself, small enough for tables of all samples and classes.

    Raises:
        TypeError, ValueError: it is no set, or too large or too small.
    """
    found = load_labelled(data) if isinstance(data, (str, Path)) else data
    if not isinstance(found, LabelledData):
        raise TypeError(f"data must be a LabelledData, or a set's name or .npz, got {type(data).__name__}.")
    if found.num_classes < 2 or len(found) < 2:
        raise ValueError(
            f"data={found.name!r} has {found.num_classes} classes and {len(found)} samples: give 2 or more."
        )
    if len(found) > MAX_STATES or len(found) * found.num_classes > MAX_ENTRIES:
        raise ValueError(
            f"data={found.name!r} has {len(found)} samples of {found.num_classes} classes, more than {MAX_STATES} or "
            f"{MAX_ENTRIES} together: take fewer, by data.take(data.sample_indices(n))."
        )
    return found


def class_distances(data: LabelledData, distance: Distance) -> NDArray[np.float64]:
    """How far apart the classes are, `[K, K]`.

    Raises:
        ValueError: `distance` is unknown, or the set lacks the hierarchy or the order.
    """
    check_choice("distance", distance, ("auto", "tree", "ordinal", "zero_one"))
    if distance == "tree" and data.hierarchy is None:
        raise ValueError(f"distance='tree' needs a hierarchy, and data={data.name!r} has none: use 'zero_one'.")
    if distance == "ordinal" and not data.is_ordered:
        raise ValueError(f"distance='ordinal' needs ordered classes, which data={data.name!r} has not: use 'zero_one'.")
    if data.hierarchy is not None and distance in ("auto", "tree"):
        tree = Tree.from_nested(data.hierarchy, class_names=data.class_names)
        return np.asarray(tree.distance_table("edges").numpy(), dtype=np.float64)
    places = np.arange(data.num_classes)
    steps = np.abs(places - places[:, None])
    is_ordinal = data.is_ordered and distance in ("auto", "ordinal")
    return np.asarray(steps if is_ordinal else steps > 0, dtype=np.float64)
