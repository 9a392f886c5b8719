"""Table rows and figure panels of `rlsmooth classify`, and the words for scores that `self-train` shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from rlsmooth.audits.calibration import has_equal_widths
from rlsmooth.scripts.figures.page import BLUE, GREY, INK, ORANGE, RED, RunAxis, legend, table, write_into
from rlsmooth.scripts.measure import bins_from_json
from rlsmooth.scripts.metrics_file import Curve, curves_of
from rlsmooth.scripts.reports import (
    Comparison,
    ReportKind,
    Row,
    RunReport,
    Runs,
    layers_words,
    leading_number,
    share_words,
)
from rlsmooth.training import checkpoint_steps, latest_checkpoint

AXIS = RunAxis(label="epochs", prefix="classifier/", whole=True)
SCORES = {
    "accuracy": ("accuracy", "%"),
    "nll": ("neg. log-likelihood", "nats"),
    "brier": ("Brier score", ""),
    "ece": ("calibration error, ECE", ""),
    "adaptive_ece": ("ECE, equal-sized bins", ""),
    "classwise_ece": ("ECE, class by class", ""),
    "confidence_gap": ("confidence - accuracy", "signed"),
    "aurc": ("risk-coverage area", ""),
    "margin": ("logit margin", "nats"),
    "distance_at_1": ("tree distance @1", ""),
    "distance_at_5": ("tree distance @5", ""),
    "distance_at_20": ("tree distance @20", ""),
    "mistake_severity": ("mistake severity", ""),
    "mae": ("mean absolute error", ""),
    "amae": ("MAE over classes", ""),
    "rps": ("ranked prob. score", ""),
}
"""Of each score, what people call it, and its unit."""
NOT_DRAWN = ("classwise_ece", "distance_at_5", "distance_at_20")
"""The scores that are printed, and for which the figure has no room."""
NUMBERED_CLASSES = 10
"""Up to so many, cells have numbers."""


# ---- rows


def score_row(tag: str, columns: Sequence[Mapping[str, float]], count: int | None) -> Row:
    """A score's name, and its value in each column, with its unit; `count`: of how many test samples."""
    name, unit = SCORES[tag]
    return (name, *(_score_words(column[tag], unit, count) if tag in column else "" for column in columns))


def num_tested(report: RunReport) -> int | None:
    """How many test samples the scores are of; None where the report does not say so."""
    return leading_number(report.extras["data"].get("test", ""))


def _score_words(value: float, unit: str, count: int | None) -> str:
    if unit in ("%", "signed"):
        return share_words(value, count, "+" if unit == "signed" else "")
    return f"{value:.3f} {unit}".strip() if abs(value) < 1e4 else f"{value:.2e} {unit}".strip()


def _columns(report: RunReport) -> list[Mapping[str, float]]:
    """The scores as trained, and those with a temperature if there are any."""
    return [report.summary, *([report.extras["scaled"]] if report.extras["scaled"] else [])]


def _result_rows(report: RunReport) -> list[Row]:
    return [score_row(tag, _columns(report), num_tested(report)) for tag in SCORES if tag in report.summary]


def _setting_rows(report: RunReport) -> list[Row]:
    settings, alphas = report.settings, report.extras["implied_alpha"]
    rows: list[Row] = [(f"samples, {name}", size) for name, size in report.extras["data"].items()]
    rows.append(("smoothing", _smoothing_words(settings)))
    if alphas and max(alphas) - min(alphas) > 5e-4:
        rows.append(("off the label, by class", f"{min(alphas):.3f} to {max(alphas):.3f}"))
    if settings["label_noise"]:
        rows.append(("label noise", f"{100 * settings['label_noise']:g} % of training labels"))
    if settings["mixup"]:
        rows.append(("mixup", f"Beta({settings['mixup']:g}, {settings['mixup']:g})"))
    rows.append(("learning rate, batch", f"{settings['learning_rate']}, {settings['batch_size']}"))
    rows.append(("hidden layers", layers_words(settings["hidden_sizes"])))
    return rows


def _smoothing_words(settings: Mapping[str, Any]) -> str:
    """How targets were smoothed: `0.1 towards uniform`, `none`, `the whole tree`, ..."""
    smoothing = str(settings["smoothing"])
    if smoothing == "none":
        return f"all of {settings['reference']}"
    return "none" if smoothing in ("0", "0.0") else f"{smoothing} towards {settings['reference']}"


def _margin_words(report: RunReport) -> str:
    """What the targets ask of the margin."""
    margin = report.extras["optimal_margin"]
    return "unbounded" if margin is None else f"{margin:.3f} nats"


def _header(report: RunReport) -> list[str]:
    scaled = report.extras["scaled"]
    return ["", "as trained", *([f"temperature {scaled['temperature']:.3g}"] if scaled else [])]


def _note(report: RunReport) -> str:
    unbounded = report.extras["optimal_margin"] is None
    asked = "an unbounded margin" if unbounded else f"a margin of {_margin_words(report)}"
    return f"Of the {report.extras['data']['test']} test samples. The targets ask for {asked}." + (
        " The temperature has the least negative log-likelihood on the validation samples."
        if report.extras["scaled"]
        else " No temperature: it needs validation samples."
    )


def _noise_words(settings: Mapping[str, Any], separator: str) -> str:
    return f"{separator}label noise {100 * settings['label_noise']:g} %" if settings["label_noise"] else ""


def _title(report: RunReport) -> str:
    settings = report.settings
    words = f"{_smoothing_words(settings)}{_noise_words(settings, ' · ')}"
    return f"Classification · {settings['data'].rpartition('/')[2]} · smoothing: {words} · seed {settings['seed']}"


def _run_name(report: RunReport) -> str:
    settings = report.settings
    words = f"{_smoothing_words(settings)}{_noise_words(settings, ', ')}"
    return f"{report.name}: {words}, seed {settings['seed']}"


# ---- panels


def _draw_training(ax: Axes, report: RunReport) -> None:
    AXIS.draw(ax, report, "nll_hard", "training", BLUE)
    AXIS.draw(ax, report, "val_nll_hard", "validation", RED)
    places, losses = AXIS.curve(report, "loss")
    if len(places):
        ax.plot(places, losses, color=GREY, linestyle="--", linewidth=1.5, label="loss (smoothed targets)")
    best_epoch = report.extras["best_epoch"]
    if best_epoch is not None and report.settings.get("early_stopping_patience") is not None:
        ax.axvline(best_epoch, color=INK, linestyle=":", linewidth=1.5, label="kept")
    AXIS.finish(ax, "Negative log-likelihood", "nats")
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _draw_calibration(ax: Axes, report: RunReport) -> None:
    if report.extras["reliability"] is None:
        _write_later(ax, "Calibration")
        return
    ax.plot([0, 1], [0, 1], linestyle="--", linewidth=1.5, color=GREY)
    named = _named(report, "reliability")
    for side, (name, columns, found, colour) in enumerate(named):
        bins = bins_from_json(columns)
        share = (bins.counts / bins.counts.sum()).numpy()
        filled = share > 0
        # Bars side by side in each bin; a point is as large as its bin, so that a few samples don't seem to be a trend.
        edges, width = bins.edges.numpy(), np.diff(bins.edges.numpy()) / len(named)
        if has_equal_widths(bins):
            ax.bar(edges[:-1] + side * width, share, width=width, align="edge", color=colour, alpha=0.25)
        places, heights = bins.mean_confidence.numpy()[filled], bins.accuracy.numpy()[filled]
        ax.plot(places, heights, color=colour, linewidth=1.0, alpha=0.6)
        ax.scatter(places, heights, s=12 + 400 * share[filled], color=colour, alpha=0.85, zorder=3, linewidths=0)
        ax.plot([], [], color=colour, marker="o", label=f"{name}, ECE {found['ece']:.3f}")
    ax.set(xlim=(0, 1), ylim=(0, 1.03), title="Calibration on test samples", xlabel="confidence (largest probability)")
    count = f"{float(bins.counts.sum()):,.0f} samples"
    ax.set_ylabel(f"accuracy (bars: share of the {count})" if has_equal_widths(bins) else f"accuracy ({count})")
    legend(ax)


def _draw_risk(ax: Axes, report: RunReport) -> None:
    title = "Errors among the surest samples"
    if report.extras["risk_coverage"] is None:
        _write_later(ax, title)
        return
    for (name, columns, found, colour), width in zip(_named(report, "risk_coverage"), (2.0, 1.2), strict=False):
        label = f"{name}, AURC {found['aurc']:.3f}"
        ax.plot(columns["coverage"], columns["risk"], color=colour, linewidth=width, label=label)
    ax.set(title=title, xlabel="share of samples answered", ylabel="share of those wrong", xlim=(0, 1))
    ax.set_ylim(bottom=0)
    legend(ax)


def _named(report: RunReport, entry: str) -> list[tuple[str, Any, Mapping[str, float], str]]:
    """Name, entry, scores and colour: as trained, and with a temperature if there is one."""
    extras = report.extras
    named = [("trained", extras[entry], report.summary, BLUE)]
    if extras[f"{entry}_scaled"] is not None:
        named.append(("temp.", extras[f"{entry}_scaled"], extras["scaled"], ORANGE))
    return named


def _draw_confusion(ax: Axes, report: RunReport) -> None:
    if report.extras["confusion"] is None:
        _write_later(ax, "Confusion")
        return
    counts = np.array(report.extras["confusion"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax.set(title="Confusion (test samples)", xlabel="prediction", ylabel="label")
    _draw_cells(ax, shares, [[str(count) if count else "" for count in row] for row in counts], white=0.6, size=9.5)
    _name_classes(ax, report.extras["class_names"])


def _draw_targets(ax: Axes, report: RunReport) -> None:
    if report.extras["target_matrix"] is None:
        _write_later(ax, "Target of each label")
        return
    start = " at the start" if str(report.settings["smoothing"]).startswith("lin_") else ""
    matrix = np.array(report.extras["target_matrix"])
    ax.set(title=f"Target of each label{start}", xlabel="class", ylabel="label")
    # The root of the probability is shown: what is off the label would be invisible beside what is on it.
    words = [[_probability_words(value) for value in row] for row in matrix]
    _draw_cells(ax, np.sqrt(matrix.clip(min=0)), words, white=0.7, size=8.5)
    _name_classes(ax, report.extras["class_names"], with_names=False)


def _probability_words(value: float) -> str:
    """`.91`, `.013`, nothing below 0.0005."""
    words = f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}".rstrip("0")
    return words.replace("0.", ".", 1) if abs(value) >= 5e-4 else ""


def _draw_cells(ax: Axes, shown: Any, words: Sequence[Sequence[str]], *, white: float, size: float) -> None:
    """A matrix as shades of blue with words in the cells, which are white on shades darker than `white`."""
    ax.imshow(shown, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    ax.grid(False)
    if len(shown) > NUMBERED_CLASSES:
        return
    for row, column in np.ndindex(*shown.shape):
        if not words[row][column]:
            continue
        colour = "white" if shown[row, column] > white else INK
        ax.text(column, row, words[row][column], ha="center", va="center", color=colour, fontsize=size)


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


def _draw_table(ax: Axes, report: RunReport) -> None:
    rows: list[Row] = []
    if report.summary:
        scaled = report.extras["scaled"]
        rows.append(("", "as trained", *([f"temp. {scaled['temperature']:.3g}"] if scaled else [])))
        shown = [tag for tag in SCORES if tag in report.summary and tag not in NOT_DRAWN]
        rows += [score_row(tag, _columns(report), num_tested(report)) for tag in shown]
        rows += [(), ("margin asked for", _margin_words(report))]
    title = "Results on test samples" if report.summary else "Results"
    table(ax, title, rows + _setting_rows(report), wide=True)


def _write_later(ax: Axes, title: str) -> None:
    write_into(ax, "drawn when the run ends", title=title)


# ---- the comparison


def _compare_likelihoods(ax: Axes, runs: Runs) -> None:
    for report, name, colour in runs:
        tag = "val_nll_hard" if "classifier/val_nll_hard" in report.curves else "nll_hard"
        AXIS.draw(ax, report, tag, name, colour)
    title = "Negative log-likelihood (held-out samples where there are any)"
    ax.set(title=title, xlabel=AXIS.label, ylabel="nats")
    ax.set_xlim(left=0)


def _bars_panel(tag: str, title: str, unit: str) -> Callable[[Axes, Runs], None]:
    """A bar for each run, and a pale one beside it with the temperature."""

    def draw(ax: Axes, runs: Runs) -> None:
        for place, (report, _, colour) in enumerate(runs):
            found = [column[tag] for column in _columns(report) if tag in column]
            for side, value in enumerate([1 - value if tag == "accuracy" else value for value in found]):
                ax.bar(place + 0.38 * side, value, width=0.36, color=colour, alpha=1.0 if side == 0 else 0.4)
        ax.set(title=title, ylabel=unit)
        ax.set_xticks([])
        ax.grid(axis="x", visible=False)

    return draw


def _curves_of_checkpoint(folder: Path) -> Mapping[str, Curve]:
    """The history in the last checkpoint: `metrics.csv` is written when the run ends."""
    if not checkpoint_steps(folder / "checkpoints"):
        return {}
    checkpoint = latest_checkpoint(folder / "checkpoints")
    return {} if checkpoint is None else curves_of(checkpoint.config["history"], "classifier")


KIND = ReportKind(
    name="classify",
    commands={"classify": ""},
    subject="data",
    needed=(
        "data",
        "smoothing",
        "reference",
        "seed",
        "label_noise",
        "hidden_sizes",
        "batch_size",
        "learning_rate",
        "mixup",
    ),
    extras={
        "scaled": {},  # the summary with the temperature that the validation samples ask for; empty without any
        "data": {},  # how many samples were trained on, held out and tested, in words
        "source": "",  # where the data are from
        "class_names": (),  # [K]
        "reliability": None,  # of the test samples, the columns of `ReliabilityBins`
        "reliability_scaled": None,  # with the temperature
        "risk_coverage": None,  # `coverage` and `risk`
        "risk_coverage_scaled": None,  # with the temperature
        "confusion": None,  # [K, K], test samples by label and prediction
        "target_matrix": None,  # [K, K], the target of each label, at the start of the training
        "optimal_margin": None,  # mean over training samples of what targets ask for, nats; None: unbounded or unknown
        "implied_alpha": (),  # [K], the share of each class's target that is off the label
        "best_epoch": None,  # whose parameters were kept
    },
    results=_result_rows,
    header=_header,
    note=_note,
    title=_title,
    panels=(_draw_training, _draw_calibration, _draw_risk, _draw_confusion, _draw_targets, _draw_table),
    comparison=Comparison(
        panels=(
            _compare_likelihoods,
            _bars_panel("accuracy", "Error on test samples", "share of wrong predictions"),
            _bars_panel("nll", "Negative log-likelihood on test samples", "nats"),
            _bars_panel("ece", "Calibration error (ECE) on test samples", "ECE"),
        ),
        name=_run_name,
        legend_title="run: smoothing. Pale bars: with temperature",
    ),
    logged=_curves_of_checkpoint,
)
