"""The page of a report's figure: colours, style, axes, panels that several kinds of runs have, and how it is written.

Drawn with matplotlib's object interface: no screen, no global state. One colour means one thing in all panels (the
palette of Okabe and Ito, which colour-blind people can distinguish), and legends stand above the axes, never on data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rlsmooth.atomic import atomic_file
from rlsmooth.scripts.arguments import number_of
from rlsmooth.scripts.figures.seeds import HIGH, LEAST_RUNS, LOW, merge_seeds
from rlsmooth.scripts.reports import Comparison, ReportKind, Row, RunReport, Runs

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


# ---- figures


def report_figure(kind: ReportKind, report: RunReport) -> Figure:
    """One run at a glance, 1600 x 1000 pixels: six panels or four, one of them with the key figures."""
    with mpl.rc_context(STYLE):
        figure = _page(kind.title(report))
        for ax, draw in zip(figure.subplots(2, len(kind.panels) // 2).flat, kind.panels, strict=True):
            draw(ax, report)
    return figure


def comparison_figure(comparison: Comparison, reports: Sequence[RunReport]) -> Figure:
    """Several runs, 1600 x 1000 pixels: four panels, a shade for each setting, and one legend below all.

    Runs that differ in their seed alone are one line, with a band of its interval.
    """
    merged = merge_seeds(reports)
    ordered = merged if comparison.order is None else sorted(merged, key=comparison.order)
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(ordered)))
    runs = [(report, comparison.name(report), colour) for report, colour in zip(ordered, shades, strict=True)]
    with mpl.rc_context({**STYLE, "axes.titlepad": 10}):
        settings = f", {number_of(len(runs), 'setting')}" if len(runs) < len(reports) else ""
        figure = _page(f"Comparison of {len(reports)} runs{settings}")
        places = figure.subplots(2, 2).ravel()
        for ax, draw in zip(places, comparison.panels, strict=True):
            draw(ax, runs)
        handles, names = places[0].get_legend_handles_labels()
        words = f". Several seeds: mean; of {LEAST_RUNS} or more, the interquartile mean and its 95 % interval"
        figure.legend(
            handles,
            names,
            title=comparison.legend_title + (words if settings else ""),
            loc="outside lower left",
            alignment="left",
            ncols=comparison.ncols,
            frameon=False,
        )
    return figure


def _page(title: str) -> Figure:
    """An empty page of 1600 x 1000 pixels with a title."""
    figure = Figure(figsize=(16, 10), dpi=100, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.12, wspace=0.04, hspace=0.04)  # type: ignore[union-attr, call-arg]
    figure.suptitle(title, x=0.012, ha="left", fontsize=18, fontweight="bold", color=INK)
    return figure


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure, whole or not at all.

    Raises:
        ValueError: the file's suffix is none of .png, .svg and .pdf, or the folder can't be written to.
    """
    kind = path.suffix.removeprefix(".").lower()
    if kind not in ("png", "svg", "pdf"):
        raise ValueError(f"{str(path)!r} names no kind of figure: end it in .png, .svg or .pdf.")
    with atomic_file(path) as file:
        figure.savefig(file, format=kind)


# ---- the curves of a run over its horizontal axis


@dataclass(frozen=True, kw_only=True)
class RunAxis:
    """The horizontal axis of a kind of runs, and the curves that are drawn over it.

    Attributes:
        label: what it counts.
        prefix: of the tags. Where there is one, evaluations are logged with it too, and else with `eval/`.
        counted_by: a tag whose values are the places of the steps that were logged; None: the steps themselves.
        whole: the axis counts rounds: few, and no halves.
        empty: said in a panel without data.
    """

    label: str
    prefix: str = ""
    counted_by: str | None = None
    whole: bool = False
    empty: str = "nothing logged"

    def curve(self, report: RunReport, tag: str) -> Values:
        """Places and values; empty if nothing was logged."""
        steps, values = report.curves.get(self.prefix + tag, ([], []))
        if self.counted_by is None:
            return np.array(steps, dtype=np.float64), np.array(values, dtype=np.float64)
        known_steps, known = report.curves.get(self.counted_by, ([], []))
        return np.interp(steps, [0, *known_steps], [0, *known]), np.array(values, dtype=np.float64)

    def draw(self, ax: Axes, report: RunReport, tag: str, name: str, colour: Any, **style: Any) -> None:
        """Draw a curve of the run, if it has it; `style`: as `draw_line` takes it."""
        draw_line(ax, self.curve(report, tag), name, colour, **style)

    def draw_returns(
        self,
        ax: Axes,
        report: RunReport,
        *,
        level: tuple[str, str] | None = None,
        title: str = "Return (band: ± std over episodes)",
    ) -> None:
        """A panel of the evaluations' returns, deterministic and sampled, with their spread over episodes.

        Args:
            ax: the panel.
            report: of the run.
            level: entry of the summary that is marked by a line, and the line's name.
            title: of the panel.
        """
        if level is not None and level[0] in report.summary:
            draw_level(ax, report.summary[level[0]], level[1])
        # The sampled curve is thinner and on top: where both are the same, both can be seen.
        for suffix, name, colour, width in (("", "deterministic", GREEN, 4.0), ("_sampled", "sampled", PURPLE, 1.8)):
            prefix = "" if self.prefix else "eval/"
            places, means = self.curve(report, f"{prefix}mean_reward{suffix}")
            _, spreads = self.curve(report, f"{prefix}std_reward{suffix}")
            draw_line(ax, (places, means), name, colour, marker="o", width=width)
            if len(spreads) == len(means):
                ax.fill_between(places, means - spreads, means + spreads, color=colour, alpha=0.15, linewidth=0)
        self.finish(ax, title, "return")

    def comparison_panel(
        self, title: str, unit: str, *tags: str, marked: bool | None = None
    ) -> Callable[[Axes, Runs], None]:
        """A panel with a line for each run.

        Args:
            title: of the panel.
            unit: of the values; shares are drawn up to 1.
            tags: the first of them that a run has is drawn.
            marked: whether points are marked; None: if they are few.
        """

        def draw(ax: Axes, runs: Runs) -> None:
            for report, name, colour in runs:
                tag = next((tag for tag in tags if self.prefix + tag in report.curves), tags[-1])
                values = self.curve(report, tag)
                is_marked = len(values[0]) <= FEW_POINTS if marked is None else marked
                draw_line(ax, values, name, colour, marker="o" if is_marked else None)
                places, low = self.curve(report, tag + LOW)
                _, high = self.curve(report, tag + HIGH)
                if len(places):  # of one point, a bar
                    ax.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0 if len(places) > 1 else 3)
            if unit == "share" and ax.lines:
                show_shares(ax)
            self.finish(ax, title, unit, with_legend=False)

        return draw

    def finish(
        self, ax: Axes, title: str, unit: str, *, with_legend: bool = True, has_data: bool | None = None
    ) -> None:
        """Title, axes and legend of a panel; `has_data`: whether something was drawn (None: if there are lines)."""
        ax.set(title=title, xlabel=self.label, ylabel=unit)
        if self.whole:
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        else:
            ax.set_xlim(left=0)
            ax.xaxis.set_major_locator(MaxNLocator(5))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, ax.get_xlim()[1])))
        if not (bool(ax.lines) if has_data is None else has_data):
            write_into(ax, self.empty)
        elif with_legend:
            legend(ax)


def _tick(value: float, largest: float) -> str:
    """The words of a tick, in the unit of its axis: `800`, `25k`, `1.5M`."""
    divisor, unit = (1e6, "M") if largest >= 1e6 else (1e3, "k") if largest >= 1e4 else (1.0, "")
    return f"{value / divisor:,g}{unit}" if value else "0"


# ---- parts of panels


def draw_line(ax: Axes, curve: Values, name: str, colour: Any, marker: str | None = None, width: float = 2.0) -> None:
    """A curve of `(places, values)`, a single value as a point; nothing where there is none."""
    places, values = curve
    if len(values):
        shown = marker or ("o" if len(values) == 1 else None)
        ax.plot(places, values, color=colour, label=name, marker=shown, markersize=3 + width, linewidth=width)


def draw_level(ax: Axes, value: float, name: str | None, colour: str = GREY, linestyle: str = "--") -> None:
    """A horizontal line, dashed and grey by default."""
    ax.axhline(value, color=colour, linestyle=linestyle, linewidth=1.5, label=name)


def draw_uniform_entropy(ax: Axes, largest: float | None, least_height: float = 0.0) -> None:
    """A line at the entropy of the uniform policy, if there is one, and an axis from 0 to above it."""
    if largest is not None:
        draw_level(ax, largest, "log n (uniform)")
        ax.set_ylim(0, 1.08 * max(largest, least_height))


def draw_largest_entropy(ax: Axes, report: RunReport) -> None:
    """The same line, where it follows from the entropy that the run ended with and its share of the largest."""
    entropy, fraction = report.summary.get("policy_entropy"), report.summary.get("entropy_frac")
    draw_uniform_entropy(ax, entropy / fraction if entropy is not None and fraction else None)


def show_shares(ax: Axes) -> None:
    """A vertical axis of shares that ends at 1 and does not blow up what is as good as constant."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in ax.lines] or [np.ones(1)])
    low = float(values.min(initial=1.0))
    ax.set_ylim(min(low - 0.05 * (1 - low), 0.9), 1 + 0.05 * max(1 - low, 0.1))


def legend(ax: Axes) -> None:
    """Above the axes and under the title, where no data are."""
    if not ax.get_legend_handles_labels()[0]:
        return
    grid = ax.get_gridspec()
    shown = ax.legend(
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=5 if grid is not None and grid.ncols == 2 else 3,  # there is one row
        frameon=False,
        borderaxespad=0.1,
        columnspacing=1.0,
        handlelength=1.4,
        fontsize=10.5,
    )
    shown.set_in_layout(False)  # the title's pad makes room for it; all columns keep the same width


def write_into(ax: Axes, words: str, *, title: str | None = None, x: float = 0.5, y: float = 0.5) -> None:
    """Write words inside a panel; with a title, they replace the axes."""
    if title is not None:
        ax.set_title(title)
        ax.set_axis_off()
    ax.text(x, y, words, transform=ax.transAxes, ha="center" if x else "left", color=GREY)


def results_table(*groups: Callable[[RunReport], list[Row]]) -> Callable[[Axes, RunReport], None]:
    """The panel of key figures: rows of results, and below a gap rows of settings."""

    def draw(ax: Axes, report: RunReport) -> None:
        table(ax, "Results", [row for group in groups for row in (*group(report), ())])

    return draw


def table(ax: Axes, title: str, rows: Sequence[Row], *, wide: bool = False) -> None:
    """Rows of words, names on the left; an empty row is a gap; `wide`: two or three values a row, as low as must be."""
    ax.set_axis_off()
    ax.set_title(title)
    places: tuple[float, ...] = (0.0, 0.47, 0.76) if wide else (0.0, 0.48)
    size = 11.0 if wide else None
    if wide and max(map(len, rows), default=0) > 3:
        places = (0.0, 0.43, 0.62, 0.81)
    step = min(0.077, 1.05 / max(1, len(rows))) if wide else 0.077
    height = 1.03
    for row in rows:
        for place, words in zip(places, row, strict=False):
            colour = GREY if place == 0.0 or not row[0] else INK
            shown = ax.text(place, height, words, transform=ax.transAxes, va="center", color=colour, fontsize=size)
            shown.set_in_layout(False)
        height -= step if row else step / 2 if wide else 0.04
