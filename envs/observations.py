"""The forms in which a tabular environment shows its state: several observation spaces for one state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rlsmooth.checks import check_choice

Observation = np.int64 | NDArray[Any] | dict[str, Any]
ObservationForm = Literal["native", "one_hot", "dict", "image"]

IMAGE_SIDE = 36
"""Height and width of the image form in pixels: the least that SB3's `NatureCNN` takes."""


class Observer(Protocol):
    """Turns the components of a state into an observation and back."""

    @property
    def dims(self) -> tuple[int, ...]:
        """The number of values of each component of a state."""

    def space(self) -> spaces.Space[Any]:
        """A new observation space."""

    def encode(self, components: NDArray[np.int64]) -> Observation:
        """The observation of a state; a new array at each call."""

    def decode(self, observation: Observation | int) -> NDArray[np.int64]:
        """The components of the state that is shown, or ValueError."""


@dataclass(frozen=True)
class StateObserver:
    """Turns the components of a state, `[D]`, into an observation and back.

    Forms:

    - `"native"`: the components themselves, in a Discrete, MultiDiscrete or MultiBinary space, like the actions';
    - `"one_hot"`: float32 Box `[sum(dims)]` in [0, 1], the components' one-hot codes side by side;
    - `"dict"`: `{"native": ..., "one_hot": ...}`;
    - `"image"`: uint8 Box `[36, 36, 1]` (height, width, channel), vertical stripes: stripe `f` is 255 where one-hot
      entry `f` is 1.

    Attributes:
        dims: the number of values of each component.
        native_space: Discrete, MultiDiscrete or MultiBinary, matching `dims`.
        form: one of the four above.

    Raises:
        ValueError: if `form` is unknown, or the image has fewer columns than `sum(dims)`.

    Examples:
        >>> observer = StateObserver((3,), spaces.Discrete(3), "one_hot")
        >>> observer.encode(np.array([1]))
        array([0., 1., 0.], dtype=float32)
        >>> observer.decode(np.array([0.0, 1.0, 0.0], dtype=np.float32))
        array([1])
    """

    dims: tuple[int, ...]
    native_space: spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary
    form: ObservationForm

    def __post_init__(self) -> None:
        check_choice("observation", self.form, ("native", "one_hot", "dict", "image"))
        if self.form == "image" and sum(self.dims) > IMAGE_SIDE:
            raise ValueError(
                f"observation='image' shows at most {IMAGE_SIDE} stripes and dims={self.dims} need {sum(self.dims)}: "
                "use fewer actions or observation='one_hot'."
            )

    def space(self) -> spaces.Space[Any]:
        """Return a new observation space of this form."""
        one_hot = spaces.Box(0.0, 1.0, (sum(self.dims),), np.float32)
        native = _fresh(self.native_space)
        if self.form == "native":
            return native
        if self.form == "one_hot":
            return one_hot
        if self.form == "dict":
            return spaces.Dict({"native": native, "one_hot": one_hot})
        return spaces.Box(0, 255, (IMAGE_SIDE, IMAGE_SIDE, 1), np.uint8)

    def encode(self, components: NDArray[np.int64]) -> Observation:
        """Return the observation of the state with these components (`[D]` int64); a new array at each call."""
        if self.form == "native":
            return self._native(components)
        one_hot = np.concatenate(
            [np.arange(n) == value for n, value in zip(self.dims, components, strict=True)]
        )  # [F] bool
        if self.form == "one_hot":
            return one_hot.astype(np.float32)
        if self.form == "dict":
            return {"native": self._native(components), "one_hot": one_hot.astype(np.float32)}
        row = one_hot[self._stripes()].astype(np.uint8) * np.uint8(255)  # [36]
        return np.tile(row[None, :, None], (IMAGE_SIDE, 1, 1))  # [36, 36, 1]

    def decode(self, observation: Observation | int) -> NDArray[np.int64]:
        """Return the components, `[D]` int64, of the state that `observation` shows.

        Raises:
            ValueError: if it shows none: wrong type, shape or dtype, a value out of range, or no one-hot code.
        """
        if self.space().contains(observation):
            components = self._read(observation)
            if _same(self.encode(components), observation):
                return components
        raise ValueError(
            f"observation {_shorten(observation)} shows no state: pass one (not a batch) as step() returns it."
        )

    def _read(self, observation: Any) -> NDArray[np.int64]:
        native = observation["native"] if self.form == "dict" else observation
        if self.form in ("native", "dict"):
            return np.atleast_1d(np.asarray(native, dtype=np.int64))
        flat = (
            observation
            if self.form == "one_hot"
            else observation[0, np.unique(self._stripes(), return_index=True)[1], 0]
        )
        return np.array([block.argmax() for block in np.split(flat, np.cumsum(self.dims)[:-1])], dtype=np.int64)

    def _native(self, components: NDArray[np.int64]) -> np.int64 | NDArray[Any]:
        if isinstance(self.native_space, spaces.Discrete):
            return np.int64(components[0])
        return components.astype(self.native_space.dtype)

    def _stripes(self) -> NDArray[np.int64]:
        """`[36]`: which one-hot entry each image column shows; every entry has at least one column."""
        return np.arange(IMAGE_SIDE) * sum(self.dims) // IMAGE_SIDE


def _fresh(space: spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary) -> spaces.Space[Any]:
    # A copy with its own generator: sampling observations must not disturb the sampling of actions.
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.MultiDiscrete(space.nvec.copy())
    return spaces.MultiBinary(space.n)


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, Mapping):
        return all(np.array_equal(one[key], two[key]) for key in one)
    return bool(np.array_equal(one, two))


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
