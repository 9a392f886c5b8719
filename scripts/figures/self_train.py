"""Table rows and figure panels of `rlsmooth self-train`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from rlsmooth.scripts.figures.classify import num_tested, score_row
from rlsmooth.scripts.figures.page import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    RED,
    SKY,
    RunAxis,
    draw_level,
    legend,
    show_shares,
    table,
    write_into,
)
from rlsmooth.scripts.reports import FEW_SAMPLES, Comparison, ReportKind, Row, RunReport, share_words

LATER = "drawn when the run ends"
AXIS = RunAxis(label="round (0: given labels only)", prefix="self_train/", whole=True, empty=LATER)
ENDED_AXIS = dataclasses.replace(AXIS, empty="nothing was labelled")
SHOWN = ("accuracy", "nll", "brier", "ece", "confidence_gap", "distance_at_1", "mistake_severity", "mae", "rps")
ENDED = {
    "all_labeled": "all samples have a label",
    "max_iter": "limit reached",
    "no_change": "a round labelled nothing",
}
"""What scikit-learn's `termination_condition_` means."""


# ---- rows


def pseudo_label_words(settings: Mapping[str, Any]) -> str:
    """What pseudo-labels were trained on: `hard`, `hard, smoothing 0.1`, `hard, by confidence`, `soft`, ..."""
    smoothing = str(settings["smoothing"])
    if smoothing == "confidence":
        return f"{settings['pseudo_labels']}, smoothed by confidence"
    off = smoothing in ("0", "0.0")
    return str(settings["pseudo_labels"]) + ("" if off else f", smoothing {smoothing}")


def _score_rows(report: RunReport) -> list[Row]:
    """Of each score: its name, its value with the given labels alone, and after self-training."""
    columns = (report.extras["before"], report.summary)
    shown = [tag for tag in SHOWN if all(tag in column for column in columns)]
    return [score_row(tag, columns, num_tested(report)) for tag in shown]


def _pseudo_label_rows(report: RunReport) -> list[Row]:
    """What became of the samples without a label."""
    rounds, ended = report.extras["rounds"], report.extras["ended"]
    if not rounds:
        return [("rounds", f"0: {ENDED[ended]}")] if ended else []
    last = rounds[-1]
    made = sum(entry["num_new"] for entry in rounds)
    accuracy = last["pseudo_label_accuracy"]
    right = "" if accuracy is None else f", {share_words(accuracy, max(made, FEW_SAMPLES))} right"
    rows: list[Row] = [("pseudo-labels", f"{made:,}{right}")]
    bias = last["confirmation_bias"]
    if bias is not None and bias["share_grown"] is not None:
        rows.append(("wrong ones grown surer", f"{100 * bias['share_grown']:.0f} % of {bias['num_wrong']:,}"))
    rows.append(("rounds", f"{len(rounds)}: {ENDED[ended]}"))
    return rows


def _result_rows(report: RunReport) -> list[Row]:
    return [*_score_rows(report), *((name, "", value) for name, value in _pseudo_label_rows(report))]


def _setting_rows(report: RunReport) -> list[Row]:
    settings = report.settings
    taken = f"above {settings['threshold']:g}" if settings["criterion"] == "threshold" else f"{settings['k_best']} best"
    rows: list[Row] = [(f"samples, {name}", size) for name, size in report.extras["data"].items()]
    rows.append(("trained on", pseudo_label_words(settings)))
    rows.append(("become labels", taken))
    if settings["ema"] is not None:
        rows.append(("teacher", f"moving average, {settings['ema']:g}"))
    return rows


def _header(report: RunReport) -> list[str]:
    return ["", f"{report.settings['n_labels']} labels", "self-trained"]


def _note(report: RunReport) -> str:
    test = report.extras["data"]["test"]
    return f"Scores of the {test} test samples. Whether pseudo-labels are right is known here, and not used."


def _title(report: RunReport) -> str:
    settings = report.settings
    title = f"Self-training · {settings['data'].rpartition('/')[2]}, {settings['n_labels']} labels"
    return f"{title} · pseudo-labels: {pseudo_label_words(settings)} · seed {settings['seed']}"


def _run_name(report: RunReport) -> str:
    return f"{report.name}: {pseudo_label_words(report.settings)}, seed {report.settings['seed']}"


# ---- panels


def _axis(report: RunReport) -> RunAxis:
    return ENDED_AXIS if report.summary else AXIS


def _draw_accuracy(ax: Axes, report: RunReport) -> None:
    before = report.extras["before"]
    if "accuracy" in before:
        draw_level(ax, before["accuracy"], "given labels only")
    AXIS.draw(ax, report, "test_accuracy", "after each round", BLUE, marker="o")
    AXIS.finish(ax, "Accuracy on test samples", "share right")


def _draw_labels(ax: Axes, report: RunReport) -> None:
    places, labelled = AXIS.curve(report, "num_labelled")
    if len(places):
        given = labelled[0]
        _, wrong = AXIS.curve(report, "num_wrong")
        mistakes = np.concatenate([[0.0], wrong]) if len(wrong) == len(places) - 1 else np.zeros(len(places))
        parts = ((np.full(len(places), given), "given", GREY), (labelled - given - mistakes, "right", GREEN))
        bottom = np.zeros(len(places))
        for heights, name, colour in (*parts, (mistakes, "wrong", RED)):
            ax.bar(places, heights, bottom=bottom, width=0.8, color=colour, label=name)
            bottom = bottom + heights
        ax.grid(axis="x", visible=False)
    AXIS.finish(ax, "Samples with a label", "samples", has_data=len(places) > 0)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _draw_correctness(ax: Axes, report: RunReport) -> None:
    AXIS.draw(ax, report, "pseudo_label_accuracy", "all: right", GREEN, marker="o")
    AXIS.draw(ax, report, "new_accuracy", "new: right", SKY, marker="o")
    AXIS.draw(ax, report, "mean_confidence", "new: confidence", ORANGE, marker="o")
    show_shares(ax)
    _axis(report).finish(ax, "Pseudo-labels", "share, or mean probability")


def _draw_bias(ax: Axes, report: RunReport) -> None:
    ax.axhline(0, color=INK, linewidth=1.0)
    AXIS.draw(ax, report, "mean_growth", "wrong ones", RED, marker="o")
    AXIS.draw(ax, report, "mean_growth_of_right", "right ones", GREEN, marker="o")
    _axis(report).finish(ax, "Confidence gained by training on them", "probability", has_data=len(ax.lines) > 1)


def _draw_gradients(ax: Axes, report: RunReport) -> None:
    """Of round 1, whose candidates are all samples without a label."""
    rounds = report.extras["rounds"]
    first = rounds[0]["gradients"] if rounds else None
    ax.set(title="Gradient of a pseudo-label (round 1)", xlabel="confidence", ylabel="norm on the logits")
    if first is None:
        write_into(ax, _axis(report).empty)
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


def _draw_table(ax: Axes, report: RunReport) -> None:
    rows: list[Row] = []
    if report.summary:
        rows = [tuple(_header(report)), *_score_rows(report), (), *_pseudo_label_rows(report)]
    title = "Results on test samples" if report.summary else "Results"
    table(ax, title, rows + _setting_rows(report), wide=True)


KIND = ReportKind(
    name="self-train",
    commands={"self-train": ""},
    subject="data",
    needed=(
        "data",
        "n_labels",
        "pseudo_labels",
        "smoothing",
        "threshold",
        "criterion",
        "k_best",
        "ema",
        "seed",
        "epochs",
    ),
    extras={
        "rounds": (),  # a `RoundReport` a round, as a dictionary
        "before": {},  # the scores after round 0, which is trained on the given labels alone
        "data": {},  # how many samples had a label, had none, and were tested, in words
        "source": "",  # where the data are from
        "ended": "",  # scikit-learn's `termination_condition_`
    },
    results=_result_rows,
    header=_header,
    note=_note,
    title=_title,
    panels=(_draw_accuracy, _draw_labels, _draw_correctness, _draw_bias, _draw_gradients, _draw_table),
    comparison=Comparison(
        panels=(
            AXIS.comparison_panel("Accuracy on test samples", "share right", "test_accuracy", marked=True),
            AXIS.comparison_panel("Negative log-likelihood on test samples", "nats", "test_nll", marked=True),
            AXIS.comparison_panel("Samples with a label", "samples", "num_labelled", marked=True),
            AXIS.comparison_panel(
                "Pseudo-labels that are right", "share of all so far", "pseudo_label_accuracy", marked=True
            ),
        ),
        name=_run_name,
        legend_title="run: pseudo-labels, seed",
    ),
)
