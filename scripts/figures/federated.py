"""Table rows and figure panels of `rlsmooth federated`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from rlsmooth.scripts.figures.page import GREY, RunAxis, legend, show_shares, table, write_into
from rlsmooth.scripts.reports import ReportKind, Row, RunReport, layers_words, share_words

LATER = "drawn when the run ends"
AXIS = RunAxis(label="round", prefix="federated/", whole=True, empty=LATER)
ATTACKS = {
    "prior": "class shares of the server's own samples",
    "llg": "LLG",
    "ilrg": "iLRG",
    "mean_probabilities": "counts from mean probabilities",
    "class_means": "counts from class means",
}
"""Of each attack, what people call it. The first needs no gradients: what it has, any server has."""
BEST = "best"


# ---- rows


def _last(report: RunReport) -> Mapping[str, Mapping[str, float]]:
    last: Mapping[str, Mapping[str, float]] = report.extras["last"]
    return last


def _result_rows(report: RunReport) -> list[Row]:
    last, tested = _last(report), _num_tested(report)
    if not last:
        return []
    columns = list(last.values())
    rows: list[Row] = [
        ("accuracy", *(share_words(column["accuracy"], tested) for column in columns)),
        ("neg. log-likelihood", *(f"{column['nll']:.3f} nats" for column in columns)),
        ("calibration error, ECE", *(f"{column['ece']:.3f}" for column in columns)),
        ("label counts known: best attack", *(_overlap(column, BEST) for column in columns)),
    ]
    rows += [
        (f"  {name}", *(_overlap(column, attack) for column in columns))
        for attack, name in ATTACKS.items()
        if any(f"audit_{attack}" in column for column in columns)
    ]
    if any("epsilon" in column for column in columns):
        rows.append(("epsilon of the defence", *(f"{column.get('epsilon', math.inf):.2f}" for column in columns)))
    return rows


def _overlap(column: Mapping[str, float], attack: str) -> str:
    value = column.get(f"audit_{attack}")
    return "" if value is None or not np.isfinite(value) else f"{100 * value:.0f} %"


def _num_tested(report: RunReport) -> int | None:
    words = report.extras["data"].get("test", "").replace(",", "")
    return int(words) if words.isdigit() else None


def _setting_rows(report: RunReport) -> list[Row]:
    settings = report.settings
    steps = f"{settings['local_epochs']} × batches of {settings['batch_size']}"
    data = report.extras["data"]  # known once the run has ended
    rows: list[Row] = [(f"samples, {name}", size) for name, size in data.items() if name != "clients"]
    of_clients = f"{len(data['clients'].split(' + '))}, " if "clients" in data else ""
    rows += [
        ("clients, split", f"{of_clients}{settings['split']}"),
        ("clients send", "gradients" if settings["share"] == "gradients" else f"weights after {steps}"),
        ("optimiser", f"{settings['optimizer']}, {settings['learning_rate']:g}"),
        ("defence", settings["defence"]),
        ("hidden layers", layers_words(settings["hidden_sizes"])),
    ]
    return rows


def _header(report: RunReport) -> list[str]:
    return ["", *(f"smoothing {word}" for word in report.settings["smoothing"])]


def _note(report: RunReport) -> str:
    return (
        f"After {report.settings['rounds']} rounds, on {report.extras['data']['test']} test samples. Label counts: the "
        "share of a client's samples whose class the server counts right, in the last round, mean over clients. "
        "Compare attacks with the first, which uses no gradient. Smoothing does not hide labels."
    )


def _title(report: RunReport) -> str:
    settings = report.settings
    data = settings["data"].rpartition("/")[2]
    defence = "" if settings["defence"] == "none" else f" · {settings['defence']}"
    return f"Federated training · {data} · {settings['split']}{defence} · seed {settings['seed']}"


# ---- panels


def _runs(report: RunReport) -> list[tuple[str, Any]]:
    words = list(report.settings["smoothing"])
    return list(zip(words, mpl.colormaps["viridis"](np.linspace(0, 0.85, len(words))), strict=True))


def _draw_accuracy(ax: Axes, report: RunReport) -> None:
    for word, colour in _runs(report):
        AXIS.draw(ax, report, f"smoothing_{word}/accuracy", f"smoothing {word}", colour)
    AXIS.finish(ax, "Accuracy on test samples", "share right")


def _draw_leakage(ax: Axes, report: RunReport) -> None:
    for word, colour in _runs(report):
        AXIS.draw(ax, report, f"smoothing_{word}/audit_{BEST}", f"smoothing {word}", colour)
    first = report.settings["smoothing"][0]
    places, shares = AXIS.curve(report, f"smoothing_{first}/audit_prior")
    ax.plot(places, shares, color=GREY, linestyle="--", label="no gradients")
    show_shares(ax)
    AXIS.finish(ax, "Label counts that the server knows: best attack", "share of samples")


def _draw_attacks(ax: Axes, report: RunReport) -> None:
    last, runs = _last(report), _runs(report)
    ax.set(title="By attack, in the last round", ylabel="share of samples")
    shown = [name for name in ATTACKS if any(f"audit_{name}" in column for column in last.values())]
    if not shown:
        write_into(ax, LATER)
        return
    width = 0.8 / len(runs)
    for place, (word, colour) in enumerate(runs):
        heights = [last[word].get(f"audit_{name}", np.nan) for name in shown]
        at = np.arange(len(shown)) + (place - (len(runs) - 1) / 2) * width
        ax.bar(at, heights, width=width, color=colour, label=f"smoothing {word}")
    names = ["no gradients" if name == "prior" else ATTACKS[name].replace("counts from ", "from\n") for name in shown]
    ax.set_xticks(range(len(shown)), names)
    ax.set_ylim(0, 1)
    ax.grid(axis="x", visible=False)
    legend(ax)


def _draw_table(ax: Axes, report: RunReport) -> None:
    rows: list[Row] = []
    if _last(report):
        rows = [tuple(_header(report)), *_result_rows(report)[:4], ()]
    table(ax, "Results", rows + _setting_rows(report), wide=True)


KIND = ReportKind(
    name="federated",
    commands={"federated": ""},
    subject="data",
    needed=("device", "data", "demonstrations", "split", "smoothing", "rounds", "seed", "share", "defence"),
    extras={
        "last": {},  # by smoothing, the values of the last round
        "data": {},  # how many samples the clients, the server and the test have, in words
        "source": "",  # where the data are from
    },
    results=_result_rows,
    header=_header,
    note=_note,
    title=_title,
    panels=(_draw_accuracy, _draw_leakage, _draw_attacks, _draw_table),
)
