"""Plain images of a state, for `render_mode="rgb_array"`: SB3's `make_vec_env` and video recorders ask for one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rlsmooth.checks import check_choice

RenderMode = Literal["rgb_array"]

BLACK, WHITE, GREEN, RED = (0, 0, 0), (255, 255, 255), (0, 110, 60), (90, 20, 20)

_WIDTH, _BAND_HEIGHT = 192, 32


def check_render_mode(render_mode: object) -> None:
    """Raise ValueError unless `render_mode` is None or `"rgb_array"`."""
    if render_mode is not None:
        check_choice("render_mode", render_mode, ("rgb_array",))


def warn_no_render_mode() -> None:
    """Warn that there is nothing to render, as Gymnasium's own environments do."""
    gym.logger.warn('render() draws nothing without a render mode: make the environment with render_mode="rgb_array".')


def paint_bands(
    bands: Sequence[tuple[NDArray[np.bool_], tuple[int, int, int], tuple[int, int, int]]],
) -> NDArray[np.uint8]:
    """Return an image of horizontal bands, `[32 * len(bands), 192, 3]` uint8.

    Args:
        bands: for each, which of its cells are on (`[n]` bool), the colour of those that are, and of those that are
            not.

    Examples:
        >>> image = paint_bands([(np.array([True, False]), WHITE, BLACK)])
        >>> image.shape, image[0, 0].tolist(), image[0, -1].tolist()
        ((32, 192, 3), [255, 255, 255], [0, 0, 0])
    """
    painted = []
    for cells, on, off in bands:
        stretched = cells[np.arange(_WIDTH) * len(cells) // _WIDTH]  # [W]
        colours = np.where(stretched[:, None], np.array(on), np.array(off)).astype(np.uint8)  # [W, 3]
        painted.append(np.repeat(colours[None], _BAND_HEIGHT, axis=0))
    return np.concatenate(painted, axis=0)
