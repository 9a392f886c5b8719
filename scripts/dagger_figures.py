"""The pictures of `rlsmooth dagger`: one figure that tells how a run went, and one that compares several runs."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlsmooth.scripts.dagger_report import DAggerReport, result_rows, setting_rows
from rlsmooth.scripts.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    RED,
    STYLE,
    Values,
    comparison,
    draw_line,
    draw_returns,
    finish,
    page,
    show_shares,
    table,
)

__all__ = ["dagger_comparison_figure", "dagger_figure"]


def dagger_figure(report: DAggerReport) -> Figure:
    """One run at a glance, 1600 x 1000 pixels: returns, agreement, the mixture; cloning, entropy, key figures."""
    settings = report.settings
    title = f"DAgger · {settings['env']} · expert's {settings['expert_targets']}, smoothing {settings['smoothing']}"
    with mpl.rc_context(STYLE):
        figure = page(f"{title} · seed {settings['seed']}")
        (returns, agreement, mixture), (cloning, entropies, results) = figure.subplots(2, 3)
        _draw_returns(returns, report)
        _draw_agreement(agreement, report)
        _draw_mixture(mixture, report)
        _draw_cloning(cloning, report)
        _draw_entropy(entropies, report)
        table(results, "Results", (result_rows(report), setting_rows(report)))
    return figure


def dagger_comparison_figure(reports: Sequence[DAggerReport]) -> Figure:
    """Several runs, 1600 x 1000 pixels: return, agreement with the expert, entropy, likelihood of its actions."""
    is_box = any("dagger/expert_error" in report.curves for report in reports)
    agreement = (
        ("expert_error", "Distance from the expert's actions", "root mean square, units of the action")
        if is_box
        else ("expert_agreement", "Does as the expert did, before training", "share")
    )
    shown = (
        ("mean_reward_sampled", "Return of sampled actions", "mean return"),
        agreement,
        ("policy_entropy", "Policy entropy", "nats"),
        ("nll_hard", "Negative log-likelihood of the expert's actions", "nats"),
    )

    def name(report: DAggerReport) -> str:
        settings = report.settings
        return f"{report.name}: {settings['beta_schedule']}, {settings['smoothing']}, {settings['seed']}"

    return comparison(
        reports,
        shown,
        curve=_curve,
        name=name,
        close=functools.partial(_finish, with_legend=False),
        legend_title="run: beta schedule, smoothing, seed",
    )


def _draw_returns(ax: Axes, report: DAggerReport) -> None:
    if "expert_return" in report.summary:
        ax.axhline(report.summary["expert_return"], color=GREY, linestyle="--", linewidth=1.5, label="expert")
    draw_returns(ax, functools.partial(_curve, report))
    _finish(ax, "Return (band: ± std over episodes)", "return")


def _draw_agreement(ax: Axes, report: DAggerReport) -> None:
    if "dagger/expert_error" in report.curves:
        draw_line(ax, _curve(report, "expert_error"), "before training on them", RED, marker="o")
        ax.set_ylim(bottom=0)
        _finish(ax, "Distance from the expert's actions", "root mean square, units of the action")
        return
    draw_line(ax, _curve(report, "accuracy"), "all rows, after training", GREEN, marker="o")
    draw_line(ax, _curve(report, "expert_agreement"), "new rows, before", RED, marker="o")
    if ax.lines:
        show_shares(ax)
    _finish(ax, "Learner does as the expert did", "share")


def _draw_mixture(ax: Axes, report: DAggerReport) -> None:
    draw_line(ax, _curve(report, "beta"), "beta, of the expert", ORANGE, marker="o")
    draw_line(ax, _curve(report, "learner_share"), "done by the learner", INK, marker="o")
    ax.set_ylim(-0.05, 1.05)
    _finish(ax, "Who acts", "share of the steps")


def _draw_cloning(ax: Axes, report: DAggerReport) -> None:
    draw_line(ax, _curve(report, "cross_entropy"), "loss (smoothed)", BLUE, marker="o")
    draw_line(ax, _curve(report, "nll_hard"), "neg. log-likelihood", RED, marker="o")
    _finish(ax, "Cloning of all rows so far", "nats")


def _draw_entropy(ax: Axes, report: DAggerReport) -> None:
    draw_line(ax, _curve(report, "policy_entropy"), "at the states visited", PURPLE, marker="o")
    entropy, fraction = report.summary.get("policy_entropy"), report.summary.get("entropy_frac")
    if entropy is not None and fraction:
        ax.axhline(entropy / fraction, color=GREY, linestyle="--", linewidth=1.5, label="log n (uniform)")
        ax.set_ylim(0, 1.08 * entropy / fraction)
    _finish(ax, "Policy entropy", "nats")


def _finish(ax: Axes, title: str, unit: str, *, with_legend: bool = True) -> None:
    finish(ax, title, unit, steps="steps in the environment", with_legend=with_legend)


def _curve(report: DAggerReport, tag: str) -> Values:
    steps, values = report.curves.get(f"dagger/{tag.removeprefix('eval/')}", ([], []))
    return np.array(steps), np.array(values)
