"""Pictures of what a generator makes: images side by side, points in the plane."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlsmooth.audits.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_points", "image_grid", "scatter"]

REAL_COLOUR, FAKE_COLOUR = "#9a9a9a", "#D55E00"


def image_grid(images: Tensor, *, padding: int = 1) -> Tensor:
    """Images as one, in rows of about as many as there are rows.

    Args:
        images: floating-point `[N, C, H, W]` in `[-1, 1]`; what is outside is shown as the end of that range.
        padding: black pixels around each.

    Returns:
        uint8 `[C, rows · (H + padding) + padding, columns · (W + padding) + padding]`, on the CPU.

    Example:
        >>> image_grid(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([1, 19, 28])
    """
    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    grid = torch.full((channels, rows * (height + padding) + padding, columns * (width + padding) + padding), -1.0)
    for place, image in enumerate(images.detach().float().cpu()):
        top = padding + place // columns * (height + padding)
        left = padding + place % columns * (width + padding)
        grid[:, top : top + height, left : left + width] = image
    return ((grid.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def draw_points(samples: Tensor, real: Tensor) -> Figure:
    """A figure of generated points on real ones; see `scatter`."""
    figure, axes = new_figure(4.5, 4.5)
    scatter(axes, samples, real)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.1), ncols=2, frameon=False)
    return figure


def scatter(axes: Axes, samples: Tensor, real: Tensor) -> None:
    """Generated points on real ones, in a window that shows all the real ones.

    Args:
        axes: where to draw.
        samples: `[N, 2]`.
        real: `[M, 2]`.
    """
    for points, colour, size, label in ((real, REAL_COLOUR, 8, "data"), (samples, FAKE_COLOUR, 3, "generated")):
        x, y = points.detach().float().cpu().numpy().T
        axes.scatter(x, y, s=size, color=colour, alpha=0.5, linewidths=0, label=label, rasterized=True)
    low, high = real.min(0).values.cpu(), real.max(0).values.cpu()
    margin = 0.15 * (high - low).max().item() + 1e-9
    axes.set_xlim(low[0].item() - margin, high[0].item() + margin)
    axes.set_ylim(low[1].item() - margin, high[1].item() + margin)
    axes.set_aspect("equal")
