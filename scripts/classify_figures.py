"""The pictures of `rlsmooth classify`: one figure that tells how a run went, and one that compares several runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlsmooth.scripts.classify_report import (
    SCORES,
    ClassifyReport,
    columns,
    margin_words,
    score_text,
    setting_rows,
    smoothing_words,
)
from rlsmooth.scripts.drawing import BLUE, GREY, INK, ORANGE, RED, STYLE, draw_line, legend, page
from rlsmooth.scripts.measure import bins_from_json
from rlsmooth.scripts.metrics_file import Curve

__all__ = ["classify_comparison_figure", "classify_figure"]

TABLE = ("accuracy", "nll", "brier", "ece", "adaptive_ece", "confidence_gap", "aurc", "margin")
HIERARCHICAL = ("distance_at_1", "mistake_severity")
ORDINAL = ("mae", "amae", "rps")
NUMBERED_CLASSES = 10
"""Up to so many, cells have numbers."""


def classify_figure(report: ClassifyReport) -> Figure:
    """One run at a glance, 1600 x 1000 pixels: training, calibration, risk; confusion, targets, key figures."""
    with mpl.rc_context(STYLE):
        figure = page(_title(report))
        grid = figure.add_gridspec(2, 3)
        axes = [figure.add_subplot(grid[row, column]) for row in range(2) for column in range(3)]
        training, calibration, risk, confusion, targets, results = axes
        _draw_training(training, report)
        _draw_calibration(calibration, report)
        _draw_risk(risk, report)
        _draw_confusion(confusion, report)
        _draw_targets(targets, report)
        _draw_table(results, report)
    return figure


def classify_comparison_figure(reports: Sequence[ClassifyReport]) -> Figure:
    """Several runs, 1600 x 1000 pixels: likelihood over training; error, likelihood and calibration of test rows."""
    names = [_run_name(report) for report in reports]
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(reports)))
    with mpl.rc_context({**STYLE, "axes.titlepad": 10}):
        figure = page(f"Comparison of {len(reports)} runs")
        (curves, errors), (likelihoods, calibration) = figure.subplots(2, 2)
        for colour, report, name in zip(shades, reports, names, strict=True):
            tag = "classifier/val_nll_hard" if "classifier/val_nll_hard" in report.curves else "classifier/nll_hard"
            draw_line(curves, _values(report.curves.get(tag)), name, colour)
        curves.set(title="Negative log-likelihood (held-out rows where there are any)", xlabel="epochs", ylabel="nats")
        curves.set_xlim(left=0)
        _draw_bars(errors, reports, shades, "accuracy", "Error on test rows", "share of wrong predictions")
        _draw_bars(likelihoods, reports, shades, "nll", "Negative log-likelihood on test rows", "nats")
        _draw_bars(calibration, reports, shades, "ece", "Calibration error (ECE) on test rows", "ECE")
        handles, labels = curves.get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            title="run: smoothing. Pale bars: with temperature",
            loc="outside lower left",
            alignment="left",
            ncols=3,
            frameon=False,
        )
    return figure


def _run_name(report: ClassifyReport) -> str:
    settings = report.settings
    noise = f", label noise {100 * settings['label_noise']:g} %" if settings["label_noise"] else ""
    return f"{report.name}: {smoothing_words(settings)}{noise}, seed {settings['seed']}"


def _title(report: ClassifyReport) -> str:
    settings = report.settings
    noise = f" · label noise {100 * settings['label_noise']:g} %" if settings["label_noise"] else ""
    data = settings["data"].rpartition("/")[2]
    return f"Classification · {data} · smoothing: {smoothing_words(settings)}{noise} · seed {settings['seed']}"


def _draw_training(ax: Axes, report: ClassifyReport) -> None:
    for tag, name, colour in (("nll_hard", "training", BLUE), ("val_nll_hard", "validation", RED)):
        draw_line(ax, _values(report.curves.get(f"classifier/{tag}")), name, colour)
    loss = _values(report.curves.get("classifier/loss"))
    if len(loss[0]):
        ax.plot(*loss, color=GREY, linestyle="--", linewidth=1.5, label="loss (smoothed targets)")
    if report.best_epoch is not None and report.settings.get("early_stopping_patience") is not None:
        ax.axvline(report.best_epoch, color=INK, linestyle=":", linewidth=1.5, label="kept")
    ax.set(title="Negative log-likelihood", xlabel="epochs", ylabel="nats")
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if ax.lines:
        legend(ax)
    else:
        _say(ax, "nothing logged yet")


def _draw_calibration(ax: Axes, report: ClassifyReport) -> None:
    if report.reliability is None:
        _later(ax, "Calibration")
        return
    ax.plot([0, 1], [0, 1], linestyle="--", linewidth=1.5, color=GREY)
    named = [("trained", report.reliability, report.summary, BLUE)]
    if report.reliability_scaled is not None:
        named.append(("temp.", report.reliability_scaled, report.scaled, ORANGE))
    for side, (name, columns_of_bins, found, colour) in enumerate(named):
        bins = bins_from_json(columns_of_bins)
        share = (bins.counts / bins.counts.sum()).numpy()
        filled = share > 0
        # Bars side by side in each bin; a point is as large as its bin, so that a few rows don't seem to be a trend.
        edges, width = bins.edges.numpy(), np.diff(bins.edges.numpy()) / len(named)
        ax.bar(edges[:-1] + side * width, share, width=width, align="edge", color=colour, alpha=0.25)
        places, heights = bins.mean_confidence.numpy()[filled], bins.accuracy.numpy()[filled]
        ax.plot(places, heights, color=colour, linewidth=1.0, alpha=0.6)
        ax.scatter(places, heights, s=12 + 400 * share[filled], color=colour, alpha=0.85, zorder=3, linewidths=0)
        ax.plot([], [], color=colour, marker="o", label=f"{name}, ECE {found['ece']:.3f}")
    ax.set(xlim=(0, 1), ylim=(0, 1.03), title="Calibration on test rows", xlabel="confidence (largest probability)")
    ax.set_ylabel("accuracy (bars: share of rows)")
    legend(ax)


def _draw_risk(ax: Axes, report: ClassifyReport) -> None:
    if report.risk_coverage is None:
        _later(ax, "Errors among the surest rows")
        return
    ax.plot(
        report.risk_coverage["coverage"],
        report.risk_coverage["risk"],
        color=BLUE,
        label=f"trained, AURC {report.summary['aurc']:.3f}",
    )
    if report.risk_coverage_scaled is not None:
        ax.plot(
            report.risk_coverage_scaled["coverage"],
            report.risk_coverage_scaled["risk"],
            color=ORANGE,
            linewidth=1.2,
            label=f"temp., AURC {report.scaled['aurc']:.3f}",
        )
    ax.set(title="Errors among the surest rows", xlabel="share of rows answered", ylabel="share of those wrong")
    ax.set_xlim(0, 1)
    ax.set_ylim(bottom=0)
    legend(ax)


def _draw_confusion(ax: Axes, report: ClassifyReport) -> None:
    if report.confusion is None:
        _later(ax, "Confusion")
        return
    counts = np.array(report.confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax.imshow(shares, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    ax.set(title="Confusion (test rows)", xlabel="prediction", ylabel="label")
    ax.grid(False)
    _name_classes(ax, report.class_names)
    if len(counts) > NUMBERED_CLASSES:
        return
    for row, column in np.ndindex(*counts.shape):
        if counts[row, column]:
            colour = "white" if shares[row, column] > 0.6 else INK
            ax.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=9.5)


def _draw_targets(ax: Axes, report: ClassifyReport) -> None:
    if report.target_matrix is None:
        _later(ax, "Target of each label")
        return
    start = " at the start" if str(report.settings["smoothing"]).startswith("lin_") else ""
    matrix = np.array(report.target_matrix)
    # The root of the probability is shown: what is off the label would be invisible beside what is on it.
    shown = np.sqrt(matrix.clip(min=0))
    ax.imshow(shown, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    ax.set(title=f"Target of each label{start}", xlabel="class", ylabel="label")
    ax.grid(False)
    _name_classes(ax, report.class_names, with_names=False)
    if len(matrix) > NUMBERED_CLASSES:
        return
    for row, column in np.ndindex(*matrix.shape):
        value = matrix[row, column]
        words = f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}".rstrip("0")
        if abs(value) >= 5e-4:
            colour = "white" if shown[row, column] > 0.7 else INK
            ax.text(column, row, words.replace("0.", ".", 1), ha="center", va="center", color=colour, fontsize=8.5)


def _draw_table(ax: Axes, report: ClassifyReport) -> None:
    ax.set_axis_off()
    ax.set_title("Results on test rows" if report.summary else "Results")
    rows: list[tuple[str, ...]] = []
    if report.summary:
        rows.append(("", "as trained", *([f"temp. {report.scaled['temperature']:.3g}"] if report.scaled else [])))
        for tag in (*TABLE, *HIERARCHICAL, *ORDINAL):
            if tag in report.summary:
                name, unit = SCORES[tag]
                rows.append((name, *(score_text(found[tag], unit) for found in columns(report) if tag in found)))
        rows += [(), ("margin asked for", margin_words(report))]
    rows += setting_rows(report)
    step = min(0.077, 1.05 / max(1, len(rows)))
    height = 1.03
    for row in rows:
        for place, words in zip((0.0, 0.47, 0.76), row, strict=False):
            colour = GREY if place == 0.0 or not row[0] else INK
            shown = ax.text(place, height, words, transform=ax.transAxes, va="center", color=colour, fontsize=11)
            shown.set_in_layout(False)
        height -= step if row else step / 2


def _draw_bars(ax: Axes, reports: Sequence[ClassifyReport], shades: Any, tag: str, title: str, unit: str) -> None:
    """A bar for each run, and a pale one beside it with the temperature."""
    for place, (report, colour) in enumerate(zip(reports, shades, strict=True)):
        found = [column[tag] for column in columns(report) if tag in column]
        for side, value in enumerate([1 - value if tag == "accuracy" else value for value in found]):
            ax.bar(place + 0.38 * side, value, width=0.36, color=colour, alpha=1.0 if side == 0 else 0.4)
    ax.set(title=title, ylabel=unit)
    ax.set_xticks([])
    ax.grid(axis="x", visible=False)


def _name_classes(ax: Axes, names: Sequence[str], *, with_names: bool = True) -> None:
    """Numbers on both axes, and names beside those of the vertical one."""
    size = len(names)
    if size > 30:
        return
    numbers = [str(place) for place in range(size)]
    named = [name if name == number else f"{name}  {number}" for name, number in zip(names, numbers, strict=True)]
    size_of_text = 8.5 if size > 12 else 11.5
    ax.set_xticks(range(size), numbers, fontsize=size_of_text, rotation=90 if size > 12 else 0)
    ax.set_yticks(range(size), named if with_names else numbers, fontsize=size_of_text)


def _later(ax: Axes, title: str) -> None:
    ax.set_title(title)
    ax.set_axis_off()
    _say(ax, "drawn when the run ends")


def _say(ax: Axes, words: str) -> None:
    ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", color=GREY)


def _values(curve: Curve | None) -> Any:
    places, values = curve or ([], [])
    return np.array(places), np.array(values)
