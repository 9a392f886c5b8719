"""Tables and figure panels of `rlsmooth audit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from rlsmooth.scripts.figures.page import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, SKY, legend, write_into
from rlsmooth.scripts.reports import ReportKind, Row, RunReport, print_table

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED)
MOST_NAMED = 8
"""Groups that the figure's legend has room for."""


class AuditKind(ReportKind):
    """Reports of several tables, below a line on what smoothing does not do."""

    def print(self, report: RunReport) -> None:
        """Print the line and the tables."""
        found, total = (int(report.summary[name]) for name in ("exact_found", "exact_of"))
        print(f"Smoothing does not hide labels: exact attack {found} of {total}.")
        super().print(report)
        note = (
            "Intervals are over samples, not over seeds of training. Half: temperatures are fitted on one half of the "
            "samples and measured on the other."
        )
        header = ["signed disparity", "samples", "gap", "95 %", "kind of interval"]
        print_table("Gap of a group minus that of the reference", _disparity_rows(report), note, header)
        known = "does not know" if report.settings["alpha_unknown"] else "knows"
        note = (
            "Labels: share of the samples whose label is found, or counted to the right class, by an attacker who "
            f"{known} alpha={report.extras['alpha']:g}. Prior: by the frequencies of the labels, without a gradient."
        )
        header = ["attack", "batch", "gradients", "labels", "95 %", "prior", "target's error"]
        print_table("Labels found in gradients", _attack_rows(report), note, header)
        note = "Of one sample, by an attacker who knows features and network; gradients are not clipped."
        header = ["noise on each entry", "labels", "95 %", "theory", "same for hard labels", "prior"]
        if rows := _noise_rows(report):
            print_table("Labels found through noise", rows, note, header)


# ---- rows


def _components(report: RunReport) -> Sequence[Mapping[str, Any]]:
    components: Sequence[Mapping[str, Any]] = report.extras["components"]
    return components


def _prefix(report: RunReport, component: Mapping[str, Any]) -> str:
    return f"{component['name']}: " if len(_components(report)) > 1 else ""


def _number(value: float | None, words: str = "+.3f") -> str:
    return "" if value is None else f"{value:{words}}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None else f"{low:+.3f} to {high:+.3f}"


def _shares(line: Mapping[str, Any]) -> Row:
    """The share found, and its interval."""
    share, low, high = (100 * value for value in line["success"])
    return f"{share:.1f} %", f"{low:.1f} to {high:.1f}"


def _pair(line: Mapping[str, Any]) -> str:
    return f"{line['group']} minus {line['reference']}"


def _group_rows(report: RunReport) -> list[Row]:
    return [
        (
            f"{_prefix(report, component)}{group['group']}",
            f"{group['rows']:,}",
            _number(group["gap"]),
            _interval(*group["gap_interval"][1:]),
            *(_number(group[name], ".3f") for name in ("accuracy", "confidence", "ece", "smooth_ece")),
            _number(group["skce"], "+.5f"),
        )
        for component in _components(report)
        for group in component["groups"]
    ]


def _disparity_rows(report: RunReport) -> list[Row]:
    """A row for each disparity, below the two groups that it is of, where these change."""
    rows: list[Row] = []
    for component in _components(report):
        above = ""
        for line in component["disparities"]:
            name, samples = f"  {line['name']}", f"{line['samples']:,}"
            if line["group"] is None:
                rows.append((name, samples, "", "", "none: fewer than two groups of two"))
                continue
            if _pair(line) != above:
                above = _pair(line)
                rows.append((f"{_prefix(report, component)}{above}", "", "", "", ""))
            value, low, high = line["disparity"]
            rows.append((name, samples, _number(value), _interval(low, high), line["method"]))
            others = [(group, each) for group, each in line["against"].items() if group != line["group"]]
            if line["p_value"] is None or not others:
                continue
            above = ""
            for group, (value, low, high) in others:
                words = f"{group} minus {line['reference']}"
                rows.append((words, "", _number(value), _interval(low, high), "" if low is None else "Welch's t"))
            rows.append(
                ("greatest minus least", "", _number(line["spread"]), "", f"permutation, p {line['p_value']:.4f}")
            )
    return rows


def _attack_rows(report: RunReport) -> list[Row]:
    return [
        (
            f"{_prefix(report, component)}{line['attack']}",
            f"{line['batch_size']}",
            f"{line['trials']:,}",
            *_shares(line),
            f"{100 * line['prior']:.1f} %",
            _number(line["error"], ".0e"),
        )
        for component in _components(report)
        for line in component["attacks"]
    ]


def _noise_rows(report: RunReport) -> list[Row]:
    return [
        (
            f"{_prefix(report, component)}{line['noise']:g}",
            *_shares(line),
            f"{100 * line['expected']:.1f} %",
            f"{line['equivalent_noise']:.3g}",
            f"{100 * line['prior']:.1f} %",
        )
        for component in _components(report)
        for line in component["noise"]
    ]


def _note(report: RunReport) -> str:
    words = (
        f"Of {report.extras['samples']}. Gap: mean confidence minus accuracy, positive is overconfident. Of fewer than "
        "30 samples there is no ECE; SKCE is squared, and where it is negative nothing is found."
    )
    caution = " Demonstrators visit other states, and the accuracy on one who acts at random is bounded by that."
    return words + (caution if report.settings["demonstrations"] else "")


def _title(report: RunReport) -> str:
    settings = report.settings
    on = settings["data"] or " + ".join(settings["demonstrations"])
    return f"Audit · {settings['file']} · {on} · alpha {report.extras['alpha']:g} · seed {settings['seed']}"


# ---- panels


def _begin(ax: Axes, report: RunReport, title: str) -> Mapping[str, Any]:
    """Title a panel, and return what it draws: of several components the first; empty lists before there are any."""
    components = _components(report)
    ax.set_title(title + (f" ({components[0]['name']})" if len(components) > 1 else ""))
    if not components:
        write_into(ax, "drawn when the run ends")
    return components[0] if components else {"groups": [], "disparities": [], "attacks": [], "noise": []}


def _colours(count: int) -> Sequence[Any]:
    return COLOURS[:count] if count <= len(COLOURS) else [*mpl.colormaps["viridis"](np.linspace(0, 0.9, count))]


def _draw_reliability(ax: Axes, report: RunReport) -> None:
    groups = _begin(ax, report, "Calibration by group")["groups"]
    lowest = 1.0
    for place, (group, colour) in enumerate(zip(groups, _colours(len(groups)), strict=True)):
        if not group["reliability"]:
            continue
        confidences, accuracies, counts = np.array(group["reliability"]).T
        ax.plot(confidences, accuracies, color=colour, linewidth=1.0, alpha=0.6)
        # A point is as large as its share of the group: few large ones are of a small group.
        ax.scatter(confidences, accuracies, s=12 + 300 * counts / counts.sum(), color=colour, alpha=0.85, linewidths=0)
        name = f"{group['group']} ({group['rows']:,})" if place < MOST_NAMED else None
        ax.plot([], [], color=colour, marker="o", label=name)
        lowest = min(lowest, confidences.min(), accuracies.min())
    low, high = lowest - 0.04 * (1 - lowest) - 1e-3, 1 + 0.04 * (1 - lowest) + 1e-3
    ax.plot([0, 1], [0, 1], linestyle="--", linewidth=1.5, color=GREY)
    ax.set(xlim=(low, high), ylim=(low, high), xlabel="confidence (points of as many samples)", ylabel="accuracy")
    legend(ax)


def _draw_gaps(ax: Axes, report: RunReport) -> None:
    component = _begin(ax, report, "Signed gap, 95 % over samples")
    groups, lines = component["groups"], [line for line in component["disparities"] if line["group"] is not None]
    bars = [
        (group["group"], colour, *group["gap_interval"])
        for group, colour in zip(groups, _colours(len(groups)), strict=True)
    ]
    bars += [(line["name"].replace("temperature", "T"), INK, *line["disparity"]) for line in lines]
    for place, (_, colour, *values) in enumerate(bars):
        value, low, high = np.array(values, dtype=float)  # NaN of a group without samples: nothing is drawn
        ax.plot([value], [place], marker="o", color=colour)
        ax.plot([low, high], [place, place], color=colour, linewidth=2.5)
    ax.axvline(0, color=GREY, linewidth=1.0)
    ax.axhline(len(groups) - 0.5, color=GREY, linewidth=0.8, linestyle=":")
    ax.set_yticks(range(len(bars)), [name for name, *_ in bars])
    ax.set_ylim(max(len(bars), 1) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    pairs = {_pair(line) for line in lines}
    black = f"; black: {pairs.pop()}" if len(pairs) == 1 else "; black: of two groups" if pairs else ""
    ax.set_xlabel(f"confidence minus accuracy{black}")


def _draw_attacks(ax: Axes, report: RunReport) -> None:
    lines = _begin(ax, report, "Labels found in gradients")["attacks"]
    sizes = sorted({line["batch_size"] for line in lines})
    for size, colour in zip(sizes, _colours(len(sizes)), strict=True):
        places = [place for place, line in enumerate(lines) if line["batch_size"] == size]
        shares = [lines[place]["success"][0] for place in places]
        ax.barh(places, shares, color=colour, height=0.7, label=f"{size} sample{'s' if size > 1 else ''}")
    priors, thick = [line["prior"] for line in lines], {"markersize": 13.0, "markeredgewidth": 2.5}
    ax.plot(priors, range(len(lines)), "|", color=INK, label="prior", **thick)  # type: ignore[arg-type]
    ax.set_yticks(range(len(lines)), [line["attack"].replace("mean probabilities", "mean p") for line in lines])
    ax.tick_params(axis="y", labelsize=10)
    ax.set(xlim=(0, 1.01), ylim=(max(len(lines), 1) - 0.5, -0.5))
    ax.set_xlabel("share of labels found, or counted to the right class")
    ax.grid(axis="y", visible=False)
    legend(ax)


def _draw_noise(ax: Axes, report: RunReport) -> None:
    lines = _begin(ax, report, "Labels found through noise")["noise"]
    if lines:
        noises, expected, prior = (np.array([line[name] for line in lines]) for name in ("noise", "expected", "prior"))
        shares, low, high = np.array([line["success"] for line in lines]).T
        order, alpha = np.argsort(noises), report.extras["alpha"]
        ax.plot(noises[order], expected[order], color=BLUE, linewidth=1.5, label="theory")
        hard = noises[order] / (1 - alpha)
        ax.plot(hard, expected[order], color=ORANGE, linestyle="--", linewidth=1.5, label="hard: noise / (1 - alpha)")
        spread = np.maximum((shares - low, high - shares), 0)
        ax.errorbar(noises, shares, yerr=spread, fmt="o", color=BLUE, capsize=3, label="measured")
        ax.axhline(prior[0], color=INK, linestyle=":", linewidth=1.5, label="prior")
    ax.set(xlabel="noise on each entry (standard deviation), not clipped", ylabel="share of labels found")
    ax.set_ylim(0, 1.03)
    legend(ax)


KIND = AuditKind(
    name="audit",
    commands={"audit": ""},
    subject="file",
    needed=("file", "demonstrations", "data", "alpha_unknown", "seed"),
    extras={
        "components": [],  # of the action, or of the classifier: groups, disparities, attacks and noise
        "alpha": 0.0,  # of the targets whose gradients are attacked
        "samples": "",  # which they are, in words
    },
    results=_group_rows,
    header=lambda report: ["group", "samples", "gap", "95 %", "accuracy", "confidence", "ECE", "smooth ECE", "SKCE"],
    note=_note,
    title=_title,
    panels=(_draw_reliability, _draw_gaps, _draw_attacks, _draw_noise),
)
