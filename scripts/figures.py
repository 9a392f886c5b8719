"""The pictures of cloning: one figure that tells how a run went, and one that compares several runs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlsmooth.audits.figures import draw_reliability, draw_target_matrix
from rlsmooth.scripts.drawing import (
    BLUE,
    GREY,
    RED,
    STYLE,
    Values,
    draw_line,
    draw_returns,
    finish,
    legend,
    page,
    table,
)
from rlsmooth.scripts.measure import bins_from_json
from rlsmooth.scripts.report import Report
from rlsmooth.scripts.results import result_rows, setting_rows

__all__ = ["comparison_figure", "report_figure"]


def report_figure(report: Report) -> Figure:
    """One run at a glance, 1600 x 1000 pixels: losses, returns, entropy, calibration, targets, key figures."""
    with mpl.rc_context(STYLE):
        figure = page(_title(report))
        (losses, returns, entropies), (calibration, targets, results) = figure.subplots(2, 3)
        _draw_losses(losses, report)
        _draw_returns(returns, report)
        _draw_entropy(entropies, report)
        _draw_calibration(calibration, report)
        _draw_targets(targets, report)
        table(results, "Results", (result_rows(report), setting_rows(report)))
    return figure


def comparison_figure(reports: Sequence[Report]) -> Figure:
    """Several runs, 1600 x 1000 pixels: likelihood, return and entropy over training, and entropy by smoothing."""
    names = [_run_name(report) for report in reports]
    # Ordered by smoothing, so that the colours run from dark (none) to light (most).
    order = sorted(range(len(reports)), key=lambda place: (_alpha(reports[place]), names[place]))
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(reports)))
    with mpl.rc_context({**STYLE, "axes.titlepad": 10}):
        figure = page(f"Comparison of {len(reports)} runs")
        (likelihoods, returns), (entropies, by_alpha) = figure.subplots(2, 2)
        for colour, place in zip(shades, order, strict=True):
            report, name = reports[place], names[place]
            prefix = "bc/val_" if "bc/val_nll_hard" in report.curves else "bc/"
            _line(likelihoods, report, f"{prefix}nll_hard", name, colour)
            _line(returns, report, "eval/mean_reward_sampled", name, colour, marker="o")
            _line(entropies, report, f"{prefix}policy_entropy", name, colour)
            if "policy_entropy" in report.summary and not str(report.settings["smoothing"]).startswith("lin_"):
                by_alpha.plot(_alpha(report), report.summary["policy_entropy"], "o", markersize=11, color=colour)
        _finish(likelihoods, "Negative log-likelihood (held-out data where there are any)", "nats", with_legend=False)
        _finish(returns, "Return of sampled actions", "mean return", with_legend=False)
        _finish(entropies, "Policy entropy", "nats", with_legend=False)
        by_alpha.set(title="Policy entropy at the end", xlabel="smoothing (constant ones)", ylabel="nats")
        handles, labels = likelihoods.get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            title="run: smoothing, seed",
            loc="outside lower left",
            alignment="left",
            ncols=3,
            frameon=False,
        )
    return figure


def _run_name(report: Report) -> str:
    return f"{report.name}: {report.settings['smoothing']}, {report.settings['seed']}"


def _alpha(report: Report) -> float:
    return float(str(report.settings["smoothing"]).removeprefix("lin_"))


def _title(report: Report) -> str:
    settings = report.settings
    return f"Behaviour cloning · {settings['env']} · smoothing {settings['smoothing']} · seed {settings['seed']}"


def _draw_losses(ax: Axes, report: Report) -> None:
    _line(ax, report, "bc/loss", "training", BLUE)
    _line(ax, report, "bc/val_loss", "validation", RED)
    _finish(ax, "Loss", "nats")


def _draw_returns(ax: Axes, report: Report) -> None:
    if "demonstrated_return" in report.summary:
        level = report.summary["demonstrated_return"]
        ax.axhline(level, color=GREY, linestyle="--", linewidth=1.5, label="demonstrations")
    draw_returns(ax, functools.partial(_curve, report))
    _finish(ax, "Return (band: ± std over episodes)", "return")


def _draw_entropy(ax: Axes, report: Report) -> None:
    _line(ax, report, "bc/policy_entropy", "training", BLUE)
    _line(ax, report, "bc/val_policy_entropy", "validation", RED)
    entropy, fraction = report.summary.get("policy_entropy"), report.summary.get("entropy_frac")
    if entropy is not None and fraction:
        ax.axhline(entropy / fraction, color=GREY, linestyle="--", linewidth=1.5, label="log n (uniform)")
        ax.set_ylim(0, 1.08 * entropy / fraction)
    _finish(ax, "Policy entropy", "nats")


def _draw_calibration(ax: Axes, report: Report) -> None:
    if report.reliability is None:
        _say(ax, "Calibration", report)
        return
    draw_reliability(ax, bins_from_json(report.reliability), ece=report.summary.get("ece"), title="Calibration")
    legend(ax)


def _draw_targets(ax: Axes, report: Report) -> None:
    if not report.target_matrices:
        _say(ax, "Target probabilities", report)
        return
    several = f", dimension 1 of {len(report.target_matrices)}" if len(report.target_matrices) > 1 else ""
    title = "Targets at the start" if str(report.settings["smoothing"]).startswith("lin_") else "Target probabilities"
    matrix = torch.tensor(next(iter(report.target_matrices.values())))
    draw_target_matrix(ax, matrix, title=f"{title}{several}")
    ax.grid(False)


def _say(ax: Axes, title: str, report: Report) -> None:
    ax.set_title(title)
    ax.set_axis_off()
    words = "continuous actions have none" if report.summary else "drawn when the run ends"
    ax.text(0, 0.95, words, transform=ax.transAxes, color=GREY)


def _line(
    ax: Axes, report: Report, tag: str, name: str, colour: Any, marker: str | None = None, width: float = 2.0
) -> None:
    draw_line(ax, _curve(report, tag), name, colour, marker, width)


def _curve(report: Report, tag: str) -> Values:
    """Transitions trained on, and values. Logs count updates; each log line says how many transitions those were."""
    steps, values = report.curves.get(tag, ([], []))
    known_steps, known = report.curves.get("bc/samples_so_far", ([], []))
    return np.interp(steps, [0, *known_steps], [0, *known]), np.array(values)


def _finish(ax: Axes, title: str, unit: str, *, with_legend: bool = True) -> None:
    finish(ax, title, unit, steps="transitions trained on", with_legend=with_legend)
