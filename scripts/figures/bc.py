"""Table rows and figure panels of `rlsmooth bc`."""

from __future__ import annotations

import functools
import math

import torch
from matplotlib.axes import Axes

from rlsmooth.audits.figures import draw_reliability, draw_target_matrix
from rlsmooth.scripts.arguments import number_of
from rlsmooth.scripts.figures.page import (
    BLUE,
    RED,
    RunAxis,
    draw_largest_entropy,
    legend,
    results_table,
    write_into,
)
from rlsmooth.scripts.measure import bins_from_json
from rlsmooth.scripts.reports import (
    Comparison,
    ReportKind,
    Row,
    RunReport,
    Runs,
    entropy_rows,
    layers_words,
    leading_number,
    return_rows,
    with_unit,
)

# Logs count updates; each log line says how many transitions those were.
AXIS = RunAxis(label="transitions trained on", counted_by="bc/samples_so_far")
MATRIX_TAG, FIRST_ACTION = "target_matrix", "first_action"
"""Of the matrices, and in the summary of the first action of each, where that is not 0."""
MOST_MATRICES = 6
"""More in one panel can't be read."""
LIKELIHOOD = "Negative log-likelihood (held-out data where there are any)"


def _result_rows(report: RunReport) -> list[Row]:
    found = report.summary
    rows = return_rows(found)
    for name, tag, unit in (
        ("accuracy", "accuracy", "share"),
        ("negative log-likelihood", "nll_hard", "nats"),
        ("calibration error (ECE)", "ece", ""),
    ):
        if tag in found:
            rows.append((name, with_unit(found[tag], unit, _num_measured(report))))
    rows += entropy_rows(found)
    if "kl_uniform" in found:
        rows.append(("KL(uniform‖policy)", with_unit(found["kl_uniform"], "nats")))
    if "effective_share" in found:
        rows.append(("transitions that count", f"{found['effective_share']:.0%} (weights by {_weights(report)})"))
    if "samples_per_second" in found:
        rows.append(("training speed", f"{_rounded(found['samples_per_second'])} samples a second"))
    return rows


def _weights(report: RunReport) -> str:
    explained = report.summary.get("explained_variance")
    by = "" if explained is None else f"; the critic explains {explained:.0%} of the returns' variance"
    return f"{report.settings['weights']}{by}"


def _num_measured(report: RunReport) -> int | None:
    """How many actions, of each dimension, accuracy is of; None where the report does not say so."""
    sizes = report.extras["data"]
    transitions = leading_number(sizes.get("held out", sizes.get("training", "")))
    return None if transitions is None else transitions * max(1, len(report.extras["target_matrices"]))


def _rounded(value: float) -> str:
    """Three digits that count, with thousands separated."""
    digits = max(0, math.floor(math.log10(value)) - 2) if value > 0 else 0
    return f"{round(value, -digits):,.0f}"


def _setting_rows(report: RunReport) -> list[Row]:
    settings = report.settings
    updates = settings["batch_size"] * settings["gradient_accumulation"]
    continuous = bool(report.summary) and not report.extras["target_matrices"]
    reference = "a broad Gaussian" if continuous else settings["reference"]
    rows: list[Row] = [(f"transitions, {name}", size) for name, size in report.extras["data"].items()]
    rows.append(("smoothing", f"{settings['smoothing']} towards {reference}"))
    if settings["kl_coef"]:
        rows.append(("KL coefficient", f"{settings['kl_coef']:g}"))
    rows.append(("learning rate, batch", f"{settings['learning_rate']}, {updates}"))
    rows.append(("hidden layers", layers_words(settings["net_arch"])))
    return rows


def _note(report: RunReport) -> str:
    episodes = number_of(report.settings["eval_episodes"], "episode")
    return f"Returns: mean ± std of {episodes}. The rest: {report.extras['measured_on']}."


def _title(report: RunReport) -> str:
    settings = report.settings
    return f"Behaviour cloning · {settings['env']} · smoothing {settings['smoothing']} · seed {settings['seed']}"


def _draw_losses(ax: Axes, report: RunReport) -> None:
    AXIS.draw(ax, report, "bc/loss", "training", BLUE)
    AXIS.draw(ax, report, "bc/val_loss", "validation", RED)
    AXIS.finish(ax, "Loss", "nats")


def _draw_entropy(ax: Axes, report: RunReport) -> None:
    AXIS.draw(ax, report, "bc/policy_entropy", "training", BLUE)
    AXIS.draw(ax, report, "bc/val_policy_entropy", "validation", RED)
    draw_largest_entropy(ax, report)
    AXIS.finish(ax, "Policy entropy", "nats")


def _draw_calibration(ax: Axes, report: RunReport) -> None:
    reliability = report.extras["reliability"]
    if reliability is None:
        _write_why_not(ax, "Calibration", report)
        return
    draw_reliability(ax, bins_from_json(reliability), ece=report.summary.get("ece"), title="Calibration")
    legend(ax)


def _draw_targets(ax: Axes, report: RunReport) -> None:
    matrices = report.extras["target_matrices"]
    if not matrices:
        _write_why_not(ax, "Target probabilities", report)
        return
    title = "Targets at the start" if str(report.settings["smoothing"]).startswith("lin_") else "Target probabilities"
    if len(matrices) == 1:
        ((tag, matrix),) = matrices.items()
        draw_target_matrix(ax, torch.tensor(matrix), names=_action_names(report, tag), title=title)
        ax.grid(False)
        return
    shown = list(matrices.items())[:MOST_MATRICES]
    ax.set_title(f"{title}, {'the first dimensions' if len(shown) < len(matrices) else 'by dimension'}")
    ax.set_axis_off()
    rows = 1 if len(shown) < 3 else 2
    columns = -(-len(shown) // rows)
    for place, (tag, matrix) in enumerate(shown):
        row, column = divmod(place, columns)
        corner = (column / columns, 1 - (row + 1) / rows)
        part = ax.inset_axes((*corner, 0.86 / columns, 0.8 / rows))
        draw_target_matrix(part, torch.tensor(matrix), names=_action_names(report, tag), title="")
        part.set(xlabel="", ylabel="")
        number = tag.removeprefix(f"{MATRIX_TAG}_dim")  # one with too many choices to draw is left out
        part.set_title(
            f"dimension {int(number) + 1 if number.isdigit() else place + 1}", fontsize=10.5, fontweight="normal", pad=3
        )
        part.tick_params(labelsize=8)
        part.grid(False)


def _action_names(report: RunReport, tag: str) -> list[str]:
    """The actions' numbers, which need not begin with 0."""
    first = int(report.summary.get(tag.replace(MATRIX_TAG, FIRST_ACTION), 0))
    return [str(first + place) for place in range(len(report.extras["target_matrices"][tag]))]


def _write_why_not(ax: Axes, title: str, report: RunReport) -> None:
    words = "continuous actions have none" if report.summary else "drawn when the run ends"
    write_into(ax, words, title=title, x=0.0, y=0.95)


def _compare_final_entropies(ax: Axes, runs: Runs) -> None:
    for report, _, colour in runs:
        if "policy_entropy" in report.summary and not str(report.settings["smoothing"]).startswith("lin_"):
            ax.plot(_alpha(report), report.summary["policy_entropy"], "o", markersize=11, color=colour)
    ax.set(title="Policy entropy at the end", xlabel="smoothing (constant ones)", ylabel="nats")


def _run_name(report: RunReport) -> str:
    return f"{report.name}: {report.settings['smoothing']}, {report.settings['seed']}"


def _alpha(report: RunReport) -> float:
    return float(str(report.settings["smoothing"]).removeprefix("lin_"))


KIND = ReportKind(
    name="bc",
    commands={"bc": ""},
    needed=(
        "env",
        "smoothing",
        "reference",
        "seed",
        "batch_size",
        "gradient_accumulation",
        "learning_rate",
        "net_arch",
        "kl_coef",
    ),
    extras={
        "data": {},  # how many episodes and transitions were trained on and held out, in words
        "measured_on": "",  # which of them accuracy and so on are of
        "reliability": None,  # the columns of `ReliabilityBins`; None for continuous actions
        "target_matrices": {},  # by tag, target probabilities, a row for each label; empty for continuous actions
    },
    results=_result_rows,
    note=_note,
    title=_title,
    panels=(
        _draw_losses,
        functools.partial(AXIS.draw_returns, level=("demonstrated_return", "demonstrations")),
        _draw_entropy,
        _draw_calibration,
        _draw_targets,
        results_table(_result_rows, _setting_rows),
    ),
    comparison=Comparison(
        panels=(
            AXIS.comparison_panel(LIKELIHOOD, "nats", "bc/val_nll_hard", "bc/nll_hard", marked=False),
            AXIS.comparison_panel("Return of sampled actions", "mean return", "eval/mean_reward_sampled", marked=True),
            AXIS.comparison_panel("Policy entropy", "nats", "bc/val_policy_entropy", "bc/policy_entropy", marked=False),
            _compare_final_entropies,
        ),
        name=_run_name,
        legend_title="run: smoothing, seed",
        order=lambda report: (_alpha(report), _run_name(report)),  # from dark (no smoothing) to light (most)
    ),
)
