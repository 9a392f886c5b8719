"""The pictures of `rlsmooth bco`: one figure that tells how a run went, and one that compares several runs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlsmooth.scripts.bco_report import BCOReport, result_rows, setting_rows
from rlsmooth.scripts.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    STYLE,
    Values,
    comparison,
    draw_line,
    draw_returns,
    legend,
    page,
    show_shares,
    table,
)

__all__ = ["bco_comparison_figure", "bco_figure"]


def bco_figure(report: BCOReport) -> Figure:
    """One run at a glance, 1600 x 1000 pixels: returns, guesses, entropy; what was learned, cloning, key figures."""
    settings = report.settings
    title = f"Cloning from observation · {settings['env']} · {settings['pseudo_labels']} guesses"
    with mpl.rc_context(STYLE):
        figure = page(f"{title}, smoothing {settings['smoothing']} · seed {settings['seed']}")
        (returns, guesses, entropies), (model, cloning, results) = figure.subplots(2, 3)
        _draw_returns(returns, report)
        _draw_guesses(guesses, report)
        _draw_entropy(entropies, report)
        _draw_model(model, report)
        _draw_cloning(cloning, report)
        table(results, "Results", (result_rows(report), setting_rows(report)))
    return figure


def bco_comparison_figure(reports: Sequence[BCOReport]) -> Figure:
    """Several runs, 1600 x 1000 pixels: return, right guesses, entropy and likelihood of the guesses, by round."""
    shown = (
        ("mean_reward_sampled", "Return of sampled actions", "mean return"),
        ("pseudo_label_accuracy", "Guessed actions that are right", "share"),
        ("policy_entropy", "Policy entropy", "nats"),
        ("nll_hard", "Negative log-likelihood of the guesses", "nats"),
    )

    def name(report: BCOReport) -> str:
        settings = report.settings
        return f"{report.name}: {settings['pseudo_labels']}, {settings['smoothing']}, {settings['seed']}"

    return comparison(
        reports,
        shown,
        curve=_curve,
        name=name,
        close=functools.partial(_finish, with_legend=False),
        legend_title="run: guesses, smoothing, seed",
    )


def _draw_returns(ax: Axes, report: BCOReport) -> None:
    if "demonstrated_return" in report.summary:
        level = report.summary["demonstrated_return"]
        ax.axhline(level, color=GREY, linestyle="--", linewidth=1.5, label="watched")
    draw_returns(ax, functools.partial(_curve, report))
    _finish(ax, "Return (band: ± std over episodes)", "return")


def _draw_guesses(ax: Axes, report: BCOReport) -> None:
    if "bco/pseudo_label_error" in report.curves:
        draw_line(ax, _curve(report, "pseudo_label_error"), "root mean square", RED, marker="o")
        ax.set_ylim(bottom=0)
        _finish(ax, "Error of guessed actions", "action")
        return
    draw_line(ax, _curve(report, "pseudo_label_accuracy"), "right", GREEN, marker="o", width=4.0)
    draw_line(ax, _curve(report, "pseudo_label_confidence"), "confidence", ORANGE, marker="o")
    show_shares(ax)
    _finish(ax, "Guessed actions of the demonstrations", "share, or mean probability")


def _draw_entropy(ax: Axes, report: BCOReport) -> None:
    draw_line(ax, _curve(report, "policy_entropy"), "on the demonstrations", BLUE, marker="o")
    entropy, fraction = report.summary.get("policy_entropy"), report.summary.get("entropy_frac")
    if entropy is not None and fraction:
        ax.axhline(entropy / fraction, color=GREY, linestyle="--", linewidth=1.5, label="log n (uniform)")
        ax.set_ylim(0, 1.08 * entropy / fraction)
    _finish(ax, "Policy entropy", "nats")


def _draw_model(ax: Axes, report: BCOReport) -> None:
    if "bco/inverse_dynamics_accuracy" in report.curves:
        draw_line(ax, _curve(report, "inverse_dynamics_accuracy"), "held-out actions: right", GREEN, marker="o")
        show_shares(ax)
        _finish(ax, "Model of what actions do", "share")
        return
    draw_line(ax, _curve(report, "inverse_dynamics_cross_entropy"), "held-out transitions", PURPLE, marker="o")
    _finish(ax, "Model of what actions do", "cross-entropy, nats")


def _draw_cloning(ax: Axes, report: BCOReport) -> None:
    draw_line(ax, _curve(report, "cross_entropy"), "loss (smoothed guesses)", BLUE, marker="o")
    draw_line(ax, _curve(report, "nll_hard"), "neg. log-likelihood", RED, marker="o")
    _finish(ax, "Cloning of the guesses", "nats")


def _finish(ax: Axes, title: str, unit: str, *, with_legend: bool = True) -> None:
    ax.set(title=title, xlabel="round", ylabel=unit)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not ax.lines:
        ax.text(0.5, 0.5, "nothing logged yet", transform=ax.transAxes, ha="center", color=GREY)
    elif with_legend:
        legend(ax)


def _curve(report: BCOReport, tag: str) -> Values:
    """Rounds, and values. Logs count transitions; each log line says which round those made."""
    steps, values = report.curves.get(f"bco/{tag.removeprefix('eval/')}", ([], []))
    known_steps, known = report.curves.get("bco/round", ([0.0], [0.0]))
    places: Any = np.interp(steps, known_steps, known) if len(steps) else np.array([])
    return places, np.array(values)
