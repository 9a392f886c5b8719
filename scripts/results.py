"""The results of a run as words: for the table on the terminal and the last panel of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from rlsmooth.scripts.report import Report

__all__ = ["print_evaluation", "print_results", "print_table", "result_rows", "return_words", "setting_rows"]

EVALUATED = {
    "mean_reward": ("return, mean", "return"),
    "std_reward": ("return, std", "return"),
    "min_reward": ("return, lowest", "return"),
    "mean_ep_length": ("episode length", "return"),
    "accuracy": ("accuracy", "%"),
    "nll_hard": ("negative log-likelihood", "nats"),
    "ece": ("calibration error (ECE)", ""),
    "policy_entropy": ("policy entropy", "nats"),
    "entropy_frac": ("of the largest possible", "%"),
    "kl_uniform": ("KL(uniform‖policy)", "nats"),
}


def result_rows(report: Report) -> list[tuple[str, str]]:
    """(name, value with its unit) of each result that the run has."""
    found = report.summary
    rows: list[tuple[str, str]] = []
    for suffix, how in (("", "deterministic"), ("_sampled", "sampled")):
        if f"mean_reward{suffix}" in found:
            value = f"{found[f'mean_reward{suffix}']:.1f} ± {found[f'std_reward{suffix}']:.1f}"
            rows.append((f"return, {how}", value))
    for name, tag, unit in (
        ("accuracy", "accuracy", "%"),
        ("negative log-likelihood", "nll_hard", "nats"),
        ("calibration error (ECE)", "ece", ""),
    ):
        if tag in found:
            rows.append((name, _with_unit(found[tag], unit)))
    if "policy_entropy" in found:
        kind = "policy entropy" if "entropy_frac" in found else "differential entropy"
        share = f" ({100 * found['entropy_frac']:.1f} % of log n)" if "entropy_frac" in found else ""
        rows.append((kind, _with_unit(found["policy_entropy"], "nats") + share))
    if "kl_uniform" in found:
        rows.append(("KL(uniform‖policy)", _with_unit(found["kl_uniform"], "nats")))
    if "samples_per_second" in found:
        rows.append(("training speed", f"{_rounded(found['samples_per_second'])} samples a second"))
    return rows


def setting_rows(report: Report) -> list[tuple[str, str]]:
    """(name, value) of the settings that tell most about a run, with how much data it had."""
    settings = report.settings
    updates = settings["batch_size"] * settings["gradient_accumulation"]
    continuous = bool(report.summary) and not report.target_matrices
    reference = "a broad Gaussian" if continuous else settings["reference"]
    rows = [(f"transitions, {name}", size) for name, size in report.data.items()]
    rows += [
        ("smoothing", f"{settings['smoothing']} towards {reference}"),
        ("learning rate, batch", f"{settings['learning_rate']}, {updates}"),
        ("hidden layers", " × ".join(map(str, settings["net_arch"])) or "none"),
    ]
    if settings["kl_coef"]:
        rows.insert(-2, ("KL coefficient", f"{settings['kl_coef']:g}"))
    return rows


def print_results(report: Report) -> None:
    """Print a run's table."""
    note = f"Returns: mean ± std of {report.settings['eval_episodes']} episodes. The rest: {report.measured_on}."
    print_table(f"{report.settings['env']}, {report.name}", result_rows(report), note)


def print_evaluation(title: str, found: Mapping[str, Mapping[str, float]]) -> None:
    """Print an evaluation's table, a column for each way of playing and one for the demonstrations."""
    names = [name for name in EVALUATED if any(name in column for column in found.values())]
    rows = []
    for name in names:
        label, unit = EVALUATED[name]
        rows.append((label, *(_with_unit(column[name], unit) if name in column else "" for column in found.values())))
    print_table(title, rows, "Entropy and KL: mean over the states that were met.", header=["", *found])


def print_table(title: str, rows: Sequence[Sequence[str]], note: str, header: Sequence[str] | None = None) -> None:
    """Print rows with a title above and a note below."""
    table = Table(show_header=header is not None)
    for place, name in enumerate(header or [""] * len(rows[0])):
        table.add_column(name, style="cyan" if place == 0 else None, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # A pipe has no width of its own: 80 columns would cut the rows of long names.
    console = Console()
    console = console if console.is_terminal else Console(width=120)
    console.print(title, style="italic", highlight=False, soft_wrap=True)  # a table would break it at its own width
    console.print(table)
    console.print(note, style="dim", highlight=False)


def return_words(value: float) -> str:
    """A return: with more digits where all of it is small, as on DeepSea."""
    return f"{value:.1f}" if abs(value) >= 1 or value == 0 else f"{value:.3f}"


def _with_unit(value: float, unit: str) -> str:
    if unit == "return":
        return f"{value:.1f}"
    return f"{100 * value:.1f} %" if unit == "%" else f"{value:.3f} {unit}".strip()


def _rounded(value: float) -> str:
    """Three digits that count, with thousands separated."""
    digits = max(0, math.floor(math.log10(value)) - 2) if value > 0 else 0
    return f"{round(value, -digits):,.0f}"
