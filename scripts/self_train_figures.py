"""The pictures of `rlsmooth self-train`: one figure that tells how a run went, and one that compares several runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rlsmooth.scripts.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    RED,
    SKY,
    STYLE,
    draw_line,
    legend,
    page,
    show_shares,
)
from rlsmooth.scripts.self_train_report import (
    SelfTrainReport,
    pseudo_label_rows,
    pseudo_label_words,
    score_rows,
    setting_rows,
)

__all__ = ["self_train_comparison_figure", "self_train_figure"]


def self_train_figure(report: SelfTrainReport) -> Figure:
    """One run at a glance, 1600 x 1000 pixels: accuracy, labels, how right; confirmation, gradients, key figures."""
    settings = report.settings
    title = f"Self-training · {settings['data'].rpartition('/')[2]}, {settings['n_labels']} labels"
    with mpl.rc_context(STYLE):
        figure = page(f"{title} · pseudo-labels: {pseudo_label_words(settings)} · seed {settings['seed']}")
        (accuracy, labels, rightness), (bias, gradients, results) = figure.subplots(2, 3)
        _draw_accuracy(accuracy, report)
        _draw_labels(labels, report)
        _draw_rightness(rightness, report)
        _draw_bias(bias, report)
        _draw_gradients(gradients, report)
        _draw_table(results, report)
    return figure


def self_train_comparison_figure(reports: Sequence[SelfTrainReport]) -> Figure:
    """Several runs, 1600 x 1000 pixels: test accuracy, likelihood, pseudo-labels and how right they are, by round."""
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(reports)))
    with mpl.rc_context({**STYLE, "axes.titlepad": 10}):
        figure = page(f"Comparison of {len(reports)} runs")
        panels = figure.subplots(2, 2).ravel()
        shown = (
            ("test_accuracy", "Accuracy on test rows", "share right"),
            ("test_nll", "Negative log-likelihood on test rows", "nats"),
            ("num_labelled", "Rows with a label", "rows"),
            ("pseudo_label_accuracy", "Pseudo-labels that are right", "share of all so far"),
        )
        for ax, (tag, title, unit) in zip(panels, shown, strict=True):
            for colour, report in zip(shades, reports, strict=True):
                name = f"{report.name}: {pseudo_label_words(report.settings)}, seed {report.settings['seed']}"
                draw_line(ax, _curve(report, tag), name, colour, marker="o")
            _by_round(ax, title, unit, with_legend=False)
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(
            handles,
            names,
            title="run: pseudo-labels, seed",
            loc="outside lower left",
            alignment="left",
            ncols=3,
            frameon=False,
        )
    return figure


def _draw_accuracy(ax: Axes, report: SelfTrainReport) -> None:
    if "accuracy" in report.before:
        level = report.before["accuracy"]
        ax.axhline(level, color=GREY, linestyle="--", linewidth=1.5, label="given labels only")
    draw_line(ax, _curve(report, "test_accuracy"), "after each round", BLUE, marker="o")
    _by_round(ax, "Accuracy on test rows", "share right")


def _draw_labels(ax: Axes, report: SelfTrainReport) -> None:
    places, labelled = _curve(report, "num_labelled")
    if len(places):
        given = labelled[0]
        _, wrong = _curve(report, "num_wrong")
        mistakes = np.concatenate([[0.0], wrong]) if len(wrong) == len(places) - 1 else np.zeros(len(places))
        parts = ((np.full(len(places), given), "given", GREY), (labelled - given - mistakes, "right", GREEN))
        bottom = np.zeros(len(places))
        for heights, name, colour in (*parts, (mistakes, "wrong", RED)):
            ax.bar(places, heights, bottom=bottom, width=0.8, color=colour, label=name)
            bottom = bottom + heights
        ax.grid(axis="x", visible=False)
    _by_round(ax, "Rows with a label", "rows", has_data=len(places) > 0)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _draw_rightness(ax: Axes, report: SelfTrainReport) -> None:
    draw_line(ax, _curve(report, "pseudo_label_accuracy"), "all: right", GREEN, marker="o")
    draw_line(ax, _curve(report, "new_accuracy"), "new: right", SKY, marker="o")
    draw_line(ax, _curve(report, "mean_confidence"), "new: confidence", ORANGE, marker="o")
    show_shares(ax)
    _by_round(ax, "Pseudo-labels", "share, or mean probability")


def _draw_bias(ax: Axes, report: SelfTrainReport) -> None:
    ax.axhline(0, color=INK, linewidth=1.0)
    draw_line(ax, _curve(report, "mean_growth"), "wrong ones", RED, marker="o")
    draw_line(ax, _curve(report, "mean_growth_of_right"), "right ones", GREEN, marker="o")
    _by_round(ax, "Confidence gained by training on them", "probability", has_data=len(ax.lines) > 1)


def _draw_gradients(ax: Axes, report: SelfTrainReport) -> None:
    """Of round 1, whose candidates are all rows without a label."""
    first = report.rounds[0]["gradients"] if report.rounds else None
    ax.set(title="Gradient of a pseudo-label (round 1)", xlabel="confidence", ylabel="norm on the logits")
    if first is None:
        _say(ax)
        return
    filled = [place for place, count in enumerate(first["counts"]) if count]
    columns = {
        name: np.array([first[name][place] for place in filled]) for name in ("confidence", "counts", "hard", "target")
    }
    share = columns["counts"] / columns["counts"].sum()
    words = pseudo_label_words(report.settings)
    lines = [("hard", "hard", INK)] if words == "hard" else [("hard", "hard", INK), ("target", words, BLUE)]
    for name, label, colour in lines:
        ax.plot(columns["confidence"], columns[name], color=colour, linewidth=1.5, label=label)
        ax.scatter(columns["confidence"], columns[name], s=16 + 300 * share, color=colour, zorder=3, linewidths=0)
    if report.settings["criterion"] == "threshold":
        ax.axvline(report.settings["threshold"], color=GREY, linestyle=":", linewidth=1.5, label="threshold")
    ax.set_xlim(0, 1)
    ax.set_ylim(bottom=0)
    legend(ax)


def _draw_table(ax: Axes, report: SelfTrainReport) -> None:
    ax.set_axis_off()
    ax.set_title("Results on test rows" if report.summary else "Results")
    rows: list[tuple[str, ...]] = []
    if report.summary:
        rows += [("", f"{report.settings['n_labels']} labels", "self-trained"), *score_rows(report), ()]
        rows += pseudo_label_rows(report)
    rows += setting_rows(report)
    step = min(0.077, 1.05 / max(1, len(rows)))
    height = 1.03
    for row in rows:
        for place, words in zip((0.0, 0.47, 0.76), row, strict=False):
            colour = GREY if place == 0.0 or not row[0] else INK
            shown = ax.text(place, height, words, transform=ax.transAxes, va="center", color=colour, fontsize=11)
            shown.set_in_layout(False)
        height -= step if row else step / 2


def _by_round(ax: Axes, title: str, unit: str, *, with_legend: bool = True, has_data: bool | None = None) -> None:
    ax.set(title=title, xlabel="round (0: given labels only)", ylabel=unit)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not (bool(ax.lines) if has_data is None else has_data):
        _say(ax)
    elif with_legend:
        legend(ax)


def _say(ax: Axes) -> None:
    ax.text(0.5, 0.5, "drawn when the run ends", transform=ax.transAxes, ha="center", color=GREY)


def _curve(report: SelfTrainReport, name: str) -> Any:
    places, values = report.curves.get(f"self_train/{name}", ([], []))
    return np.array(places), np.array(values)
