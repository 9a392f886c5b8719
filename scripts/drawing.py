"""What all pictures of runs share: colours, style, the page, legends, the table, and how a picture is written.

Drawn with matplotlib's object interface: no screen, no global state. One colour means one thing in all panels (the
palette of Okabe and Ito, which colour-blind people can tell apart), and legends stand above the axes, never on data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rlsmooth.atomic import atomic_file

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "INK",
    "ORANGE",
    "PURPLE",
    "RED",
    "SKY",
    "STYLE",
    "Values",
    "comparison",
    "draw_line",
    "draw_returns",
    "finish",
    "legend",
    "page",
    "save_figure",
    "show_shares",
    "table",
]

ReportT = TypeVar("ReportT")
Values: TypeAlias = tuple[np.ndarray[Any, np.dtype[np.float64]], np.ndarray[Any, np.dtype[np.float64]]]
"""Places on the horizontal axis, and values."""

BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
INK, GREY = "#222222", "#767676"
FEW_POINTS = 40
"""Of a line whose points are marked."""
STYLE: Any = {
    "font.size": 11.5,
    "axes.titlesize": 14,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 30,  # room for the legend
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "lines.linewidth": 2.0,
    "xtick.color": INK,
    "ytick.color": INK,
}


def page(title: str) -> Figure:
    """An empty page of 1600 x 1000 pixels with a title."""
    figure = Figure(figsize=(16, 10), dpi=100, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.12, wspace=0.04, hspace=0.04)  # type: ignore[union-attr, call-arg]
    figure.suptitle(title, x=0.012, ha="left", fontsize=18, fontweight="bold", color=INK)
    return figure


def comparison(
    reports: Sequence[ReportT],
    panels: Sequence[tuple[str, str, str]],
    *,
    curve: Callable[[ReportT, str], Values],
    name: Callable[[ReportT], str],
    close: Callable[[Axes, str, str], None],
    legend_title: str,
    ncols: int = 3,
) -> Figure:
    """Several runs on a page of four panels, a shade each, with one legend below all.

    Args:
        reports: of the runs.
        panels: tag, title and unit of each; shares are drawn from 0 to 1.
        curve: of a run and a tag.
        name: of a run, in the legend.
        close: called with a panel, its title and its unit when its lines are drawn.
        legend_title: what the names are made of.
        ncols: of the legend.
    """
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(reports)))
    with mpl.rc_context({**STYLE, "axes.titlepad": 10}):
        figure = page(f"Comparison of {len(reports)} runs")
        places = figure.subplots(2, 2).ravel()
        for ax, (tag, title, unit) in zip(places, panels, strict=True):
            for colour, report in zip(shades, reports, strict=True):
                values = curve(report, tag)
                draw_line(ax, values, name(report), colour, marker="o" if len(values[0]) <= FEW_POINTS else None)
            if unit == "share" and ax.lines:
                show_shares(ax)
            close(ax, title, unit)
        handles, names = places[0].get_legend_handles_labels()
        figure.legend(
            handles,
            names,
            title=legend_title,
            loc="outside lower left",
            alignment="left",
            ncols=ncols,
            frameon=False,
        )
    return figure


def save_figure(path: Path, figure: Figure) -> None:
    """Write a picture, whole or not at all.

    Raises:
        ValueError: the file's suffix is none of .png, .svg and .pdf, or the folder can't be written to.
    """
    kind = path.suffix.removeprefix(".").lower()
    if kind not in ("png", "svg", "pdf"):
        raise ValueError(f"{str(path)!r} names no kind of picture: end it in .png, .svg or .pdf.")
    with atomic_file(path) as file:
        figure.savefig(file, format=kind)


def finish(ax: Axes, title: str, unit: str, *, steps: str, with_legend: bool = True) -> None:
    """Title, axes and legend of a panel whose horizontal axis counts `steps`."""
    ax.set_title(title)
    ax.set_ylabel(unit)
    ax.set_xlabel(steps)
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.xaxis.set_major_formatter(FuncFormatter(_thousands))
    if not ax.lines:
        ax.text(0.5, 0.5, "nothing logged yet", transform=ax.transAxes, ha="center", color=GREY)
    elif with_legend:
        legend(ax)


def _thousands(value: float, _: object) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1000:g}k" if value else "0"


def draw_line(ax: Axes, curve: Values, name: str, colour: Any, marker: str | None = None, width: float = 2.0) -> None:
    """A curve of `(places, values)`, a lone value as a point; nothing where there is none."""
    places, values = curve
    if len(values):
        lone = marker or ("o" if len(values) == 1 else None)
        ax.plot(places, values, color=colour, label=name, marker=lone, markersize=3 + width, linewidth=width)


def draw_returns(ax: Axes, curve: Callable[[str], Values]) -> None:
    """Returns of the evaluations, deterministic and sampled, with their spread over episodes.

    Args:
        ax: the panel.
        curve: `(places, values)` of a tag.
    """
    # The sampled curve is thinner and on top: where both are the same, both can be seen.
    for suffix, name, colour, width in (("", "deterministic", GREEN, 4.0), ("_sampled", "sampled", PURPLE, 1.8)):
        places, means = curve(f"eval/mean_reward{suffix}")
        _, spreads = curve(f"eval/std_reward{suffix}")
        draw_line(ax, (places, means), name, colour, marker="o", width=width)
        if len(spreads) == len(means):
            ax.fill_between(places, means - spreads, means + spreads, color=colour, alpha=0.15, linewidth=0)


def show_shares(ax: Axes) -> None:
    """A vertical axis of shares that ends at 1 and does not blow up what is as good as constant."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in ax.lines] or [np.ones(1)])
    low = float(values.min(initial=1.0))
    ax.set_ylim(min(low - 0.05 * (1 - low), 0.9), 1 + 0.05 * max(1 - low, 0.1))


def legend(ax: Axes) -> None:
    """Above the axes and under the title, where no data are."""
    shown = ax.legend(
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=3,
        frameon=False,
        borderaxespad=0.1,
        columnspacing=1.0,
        handlelength=1.4,
        fontsize=10.5,
    )
    shown.set_in_layout(False)  # the title's pad makes room for it; all columns keep the same width


def table(ax: Axes, title: str, groups: Sequence[Sequence[tuple[str, str]]]) -> None:
    """Rows of name and value, in groups."""
    ax.set_axis_off()
    ax.set_title(title)
    height = 1.03
    for rows in groups:
        for name, value in rows:
            for x, words, colour in ((0.0, name, GREY), (0.48, value, INK)):
                ax.text(x, height, words, transform=ax.transAxes, va="center", color=colour).set_in_layout(False)
            height -= 0.077
        height -= 0.04
