"""The pictures of on-policy runs: one figure that tells how a run went, and one that compares several runs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlsmooth.scripts.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    STYLE,
    Values,
    draw_line,
    draw_returns,
    finish,
    page,
    table,
)
from rlsmooth.scripts.on_policy_report import (
    ON_POLICY,
    OnPolicyReport,
    result_rows,
    setting_rows,
    smoothing_words,
)

__all__ = ["on_policy_comparison_figure", "on_policy_figure"]


def on_policy_figure(report: OnPolicyReport) -> Figure:
    """One run at a glance, 1600 x 1000 pixels: returns, entropy, KL; coefficients, updates, key figures."""
    settings = report.settings
    title = f"{ON_POLICY[report.command]} · {settings['env']} · smoothing: {smoothing_words(report)}"
    with mpl.rc_context(STYLE):
        figure = page(f"{title} · seed {settings['seed']}")
        (returns, entropies, divergences), (coefficients, updates, results) = figure.subplots(2, 3)
        _draw_returns(returns, report)
        _draw_entropy(entropies, report)
        _draw_divergences(divergences, report)
        _draw_coefficients(coefficients, report)
        _draw_updates(updates, report)
        table(results, "Results", (result_rows(report), setting_rows(report)))
    return figure


def on_policy_comparison_figure(reports: Sequence[OnPolicyReport]) -> Figure:
    """Several runs, 1600 x 1000 pixels: return, entropy, KL to the reference and its coefficient over training."""
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(reports)))
    with mpl.rc_context({**STYLE, "axes.titlepad": 10}):
        figure = page(f"Comparison of {len(reports)} runs")
        (returns, entropies), (divergences, coefficients) = figure.subplots(2, 2)
        for colour, report in zip(shades, reports, strict=True):
            name = f"{ON_POLICY[report.command]} {report.name}: {smoothing_words(report)}, {report.settings['seed']}"
            _line(returns, report, "eval/mean_reward_sampled", name, colour, marker="o")
            _line(entropies, report, "train/policy_entropy", name, colour)
            _line(divergences, report, "train/kl_reference", name, colour)
            _line(coefficients, report, "train/smoothing", name, colour)
        _finish(returns, "Return of sampled actions", "mean return", with_legend=False)
        _finish(entropies, "Policy entropy", "nats", with_legend=False)
        _finish(divergences, "KL(reference‖policy)", "nats", with_legend=False)
        _finish(coefficients, "Coefficient of KL", "", with_legend=False)
        handles, labels = returns.get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            title="run: smoothing, seed",
            loc="outside lower left",
            alignment="left",
            ncols=2,
            frameon=False,
        )
    return figure


def _draw_returns(ax: Axes, report: OnPolicyReport) -> None:
    _line(ax, report, "rollout/ep_rew_mean", "training", SKY, width=1.5)
    draw_returns(ax, functools.partial(_curve, report))
    _finish(ax, "Return (band: ± std over episodes)", "return")


def _draw_entropy(ax: Axes, report: OnPolicyReport) -> None:
    _line(ax, report, "train/policy_entropy", "policy", BLUE)
    largest, target = report.summary.get("largest_entropy"), report.summary.get("target_entropy")
    if target is not None:
        ax.axhline(target, color=ORANGE, linestyle="--", linewidth=1.5, label="target")
    if largest is not None:
        ax.axhline(largest, color=GREY, linestyle="--", linewidth=1.5, label="log n (uniform)")
        ax.set_ylim(0, 1.08 * largest)
    _finish(ax, "Policy entropy", "nats")


def _draw_divergences(ax: Axes, report: OnPolicyReport) -> None:
    curves = report.curves
    _line(ax, report, "train/kl_uniform", "from uniform", BLUE)
    if curves.get("train/kl_reference") != curves.get("train/kl_uniform"):
        name = "from the clone" if report.settings["from_bc"] else "from the reference"
        _line(ax, report, "train/kl_reference", name, RED)
    ax.set_ylim(bottom=0)
    _finish(ax, "KL(reference‖policy)", "nats")


def _draw_coefficients(ax: Axes, report: OnPolicyReport) -> None:
    _, alphas = _curve(report, "train/smoothing")
    _line(ax, report, "train/smoothing", "of KL (alpha)", PURPLE)
    if any(report.curves.get("train/exploration_floor", ([], []))[1]):  # at 0 throughout it would lie on the frame
        _line(ax, report, "train/exploration_floor", "exploration floor", ORANGE)
    if len(alphas) and alphas.min() > 0 and alphas.max() > 20 * alphas.min():  # found by feedback
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)
    _finish(ax, "Coefficients in force", "")


def _draw_updates(ax: Axes, report: OnPolicyReport) -> None:
    _line(ax, report, "train/explained_variance", "explained variance", GREEN)
    _line(ax, report, "train/clip_fraction", "clipped", ORANGE)
    _line(ax, report, "train/approx_kl", "KL of the update", RED)
    ax.set_ylim(-0.3, 1.05)  # an untrained critic can be far below
    _finish(ax, "Updates", "")


def _line(
    ax: Axes,
    report: OnPolicyReport,
    tag: str,
    name: str,
    colour: Any,
    marker: str | None = None,
    width: float = 2.0,
) -> None:
    draw_line(ax, _curve(report, tag), name, colour, marker, width)


def _curve(report: OnPolicyReport, tag: str) -> Values:
    steps, values = report.curves.get(tag, ([], []))
    return np.array(steps), np.array(values)


def _finish(ax: Axes, title: str, unit: str, *, with_legend: bool = True) -> None:
    finish(ax, title, unit, steps="steps in the environment", with_legend=with_legend)
