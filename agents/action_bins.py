"""A Box action cut into ordered bins, so that a categorical policy with ordinal smoothing can clone it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rlsmooth.checks import check_positive_int

__all__ = ["ActionBins"]


@dataclass(frozen=True, eq=False)
class ActionBins:
    """Each dimension of a Box cut into bins of equal width; a bin acts by its middle.

    A categorical policy over bins can have several modes where a Gaussian would answer their mean, at the price of a
    resolution of half a bin.

    Attributes:
        box: the action space.
        num_bins: of each dimension.

    Raises:
        TypeError: another space than a Box, or a number of bins that is not whole.
        ValueError: fewer than two bins, or a dimension without finite bounds or without width.

    Example:
        >>> bins = ActionBins(spaces.Box(-1.0, 1.0, (1,)), 4)
        >>> bins.encode(np.array([[-1.0], [0.1], [1.0]])).ravel().tolist()
        [0, 2, 3]
        >>> bins.decode(np.array([[0], [3]])).ravel().tolist()
        [-0.75, 0.75]
    """

    box: spaces.Space[Any]
    num_bins: int

    def __post_init__(self) -> None:
        check_positive_int("action_bins", self.num_bins, minimum=2)
        if not isinstance(self.box, spaces.Box):
            raise TypeError(f"action_bins={self.num_bins} is for a Box action space, this one is {self.box!r}.")
        low, width = self._low_and_width()
        if not (np.isfinite(low).all() and np.isfinite(width).all() and (width > 0).all()):
            raise ValueError(f"action_bins={self.num_bins} needs finite bounds in every dimension, got {self.box!r}.")

    @property
    def space(self) -> spaces.MultiDiscrete:
        """The policy's action space: one dimension of `num_bins` values for each of the Box."""
        return spaces.MultiDiscrete([self.num_bins] * self._low_and_width()[0].size)

    def encode(self, actions: NDArray[Any]) -> NDArray[np.int64]:
        """Bins of actions `[N, D]`, int64; the upper bound belongs to the last bin."""
        low, width = self._low_and_width()
        places = np.floor((actions.astype(np.float64) - low) / width * self.num_bins).astype(np.int64)
        return np.clip(places, 0, self.num_bins - 1)

    def decode(self, places: NDArray[Any]) -> NDArray[Any]:
        """The middles of bins `[..., D]`, in the Box's shape and dtype."""
        low, width = self._low_and_width()
        actions = low + (places.astype(np.float64) + 0.5) / self.num_bins * width
        return actions.astype(self.box.dtype).reshape((*places.shape[:-1], *(self.box.shape or ())))

    def _low_and_width(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        assert isinstance(self.box, spaces.Box)
        low, high = (bound.astype(np.float64).ravel() for bound in (self.box.low, self.box.high))
        return low, high - low
