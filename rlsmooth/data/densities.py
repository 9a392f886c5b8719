"""Mixtures of Gaussians on a ring and on a grid: densities of known modes, to test generators on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlsmooth.checks import check_in_range, check_positive_int


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """Equally probable Gaussians of one standard deviation in all directions.

    Attributes:
        centres: float64 `[M, D]`, the modes.
        deviation: standard deviation along each axis.

    Examples:
        >>> GaussianMixture(np.zeros((1, 2)), 0.5).sample(3, seed=0).shape
        (3, 2)
    """

    centres: NDArray[np.float64]
    deviation: float

    def __post_init__(self) -> None:
        centres = np.asarray(self.centres, dtype=np.float64)
        if centres.ndim != 2 or not centres.size or not np.isfinite(centres).all():
            raise ValueError(f"centres must be finite and of shape [M, D], got shape {centres.shape}.")
        check_in_range("deviation", self.deviation, 0.0, low_open=True)
        object.__setattr__(self, "centres", centres)

    def sample(self, count: int, seed: int | np.random.Generator) -> NDArray[np.float32]:
        """Independent draws.

        Args:
            count: how many, 0 or more.
            seed: or a generator, which moves on.

        Returns:
            float32 `[count, D]`.

        Raises:
            TypeError: `count` is no whole number.
            ValueError: `count` is negative.
        """
        count = check_positive_int("count", count, minimum=0)
        rng = np.random.default_rng(seed)
        modes = rng.integers(len(self.centres), size=count)
        noise = rng.normal(scale=self.deviation, size=(count, self.centres.shape[1]))
        drawn: NDArray[Any] = self.centres[modes] + noise
        return drawn.astype(np.float32)


def ring_of_gaussians(num_modes: int = 8, *, radius: float = 1.0, deviation: float = 0.01) -> GaussianMixture:
    """Modes evenly spaced on a circle; the defaults are the 2D-ring of PacGAN (Lin et al. 2018).

    Args:
        num_modes: 1 or more.
        radius: of the circle.
        deviation: of each mode.

    Raises:
        TypeError: an argument is no number.
        ValueError: one is out of range.

    Examples:
        >>> ring_of_gaussians(4).centres.round(6)[:2]
        array([[1., 0.],
               [0., 1.]])
    """
    angles = 2 * np.pi * np.arange(check_positive_int("num_modes", num_modes)) / num_modes
    radius = check_in_range("radius", radius, 0.0)
    return GaussianMixture(radius * np.stack((np.cos(angles), np.sin(angles)), axis=1), deviation)


def grid_of_gaussians(side: int = 5, *, spacing: float = 2.0, deviation: float = 0.05) -> GaussianMixture:
    """Modes on a square grid around 0; the defaults are the 2D-grid of PacGAN (Lin et al. 2018).

    Args:
        side: modes along each axis, 1 or more.
        spacing: between neighbours.
        deviation: of each mode.

    Raises:
        TypeError: an argument is no number.
        ValueError: one is out of range.

    Examples:
        >>> grid_of_gaussians().centres[:2]
        array([[-4., -4.],
               [-4., -2.]])
    """
    places = check_in_range("spacing", spacing, 0.0) * (np.arange(check_positive_int("side", side)) - (side - 1) / 2)
    first, second = np.meshgrid(places, places, indexing="ij")
    return GaussianMixture(np.stack((first.ravel(), second.ravel()), axis=1), deviation)
