"""What the report of `rlsmooth gan` is drawn from, kept as `report.json`, its picture and its rows for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlsmooth.scripts.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    STYLE,
    Values,
    draw_line,
    finish,
    page,
    table,
)
from rlsmooth.scripts.report import Curve
from rlsmooth.scripts.report_file import load_report_file
from rlsmooth.scripts.results import print_table
from rlsmooth.training.gan_cases import image_grid, scatter

__all__ = ["GANReport", "gan_figure", "load_gan_report", "print_gan_results", "result_rows"]

SHOWN = ("case", "real_target", "fake_target", "generator_loss", "seed", "steps", "batch_size", "learning_rate")
"""The settings without which no figure can be drawn."""

RESULTS = {
    "modes": ("modes recovered", ".0f"),
    "high_quality": ("high-quality samples", ".1%"),
    "reverse_kl": ("reverse KL over modes", ".3f"),
    "digits": ("digits found", ".0f"),
    "rarest_digit": ("the rarest digit's share", ".1%"),
    "distance": ("distance to real images", ".2f"),
    "probability_real": ("D(real)", ".3f"),
    "probability_fake": ("D(fake)", ".3f"),
    "probability_real_max": ("largest D(real)", ".3f"),
    "accuracy": ("discriminator's accuracy", ".1%"),
    "generator_gradient_norm": ("generator's gradient", ".3f"),
}


@dataclass(frozen=True, kw_only=True)
class GANReport:
    """A run in numbers; plain data only.

    Attributes:
        name: of the run's folder.
        settings: the arguments of the run.
        curves: by column of `metrics.csv`, what was logged over the run.
        summary: the last number of each.
        num_modes: of the density, where it is known.
        samples: generated points `[N, 2]` or images `[N, C, H, W]`.
        real: likewise, of the data.
    """

    name: str
    settings: Mapping[str, Any]
    curves: Mapping[str, Curve] = field(default_factory=dict)
    summary: Mapping[str, float] = field(default_factory=dict)
    num_modes: int | None = None
    samples: list[Any] = field(default_factory=list)
    real: list[Any] = field(default_factory=list)


def load_gan_report(folder: Path) -> GANReport:
    """A run's report; of a run that has not ended, its settings alone.

    Raises:
        ValueError: it is no folder of such a run, or the report is malformed.
    """
    return load_report_file(folder, GANReport, command="gan", needed=SHOWN)


def result_rows(report: GANReport) -> list[tuple[str, str]]:
    """(name, value) of each result that the run has."""
    rows = []
    for tag, (name, form) in RESULTS.items():
        if tag in report.summary:
            of_all = f" of {report.num_modes}" if tag == "modes" else " of 10" if tag == "digits" else ""
            rows.append((name, f"{report.summary[tag]:{form}}{of_all}"))
    return rows


def setting_rows(report: GANReport) -> list[tuple[str, str]]:
    """(name, value) of the settings that tell most about a run."""
    settings = report.settings
    return [
        ("targets, real and fake", f"{settings['real_target']}, {settings['fake_target']:g}"),
        ("generator's loss", str(settings["generator_loss"]).replace("_", "-")),
        ("steps, batch", f"{settings['steps']:,}, {settings['batch_size']}"),
        ("learning rate", str(settings["learning_rate"])),
    ]


def print_gan_results(report: GANReport) -> None:
    """Print a run's table."""
    note = f"Of {report.settings['eval_samples']:,} samples after the last step; D over the last log line's steps."
    print_table(f"{report.settings['case']}, {report.name}", result_rows(report), note)


def gan_figure(report: GANReport) -> Figure:
    """One run at a glance, 1600 x 1000 pixels: samples beside data, losses, D on both sides, measures, key figures."""
    with mpl.rc_context(STYLE):
        figure = page(_title(report))
        (samples, data, results), (losses, probabilities, measures) = figure.subplots(2, 3)
        _draw_rows(samples, data, report)
        table(results, "Results", (result_rows(report), setting_rows(report)))
        _line(losses, report, "gan/discriminator_loss", "discriminator", BLUE)
        _line(losses, report, "gan/generator_loss", "generator", ORANGE)
        finish(losses, "Loss", "nats", steps="steps")
        _draw_probabilities(probabilities, report)
        _draw_measures(measures, report)
    return figure


def _title(report: GANReport) -> str:
    settings = report.settings
    targets = f"real target {settings['real_target']}"
    if settings["fake_target"]:
        targets += f", fake target {settings['fake_target']:g}"
    return f"GAN · {settings['case']} · {targets} · seed {settings['seed']}"


def _draw_rows(samples: Axes, data: Axes, report: GANReport) -> None:
    """Generated rows and real ones, each in a panel of its own."""
    for ax, title in ((samples, "Samples"), (data, "Data")):
        ax.set_title(title)
        ax.grid(False)
    if not report.samples:
        for ax in (samples, data):
            ax.set_axis_off()
            ax.text(0, 0.95, "drawn when the run ends", transform=ax.transAxes, color=GREY)
        return
    made, real = torch.tensor(report.samples), torch.tensor(report.real)
    if made.ndim == 2:
        scatter(samples, made, real)
        scatter(data, real[:0], real)
        return
    for ax, images in ((samples, made), (data, real)):
        pixels = image_grid(images).permute(1, 2, 0).numpy()
        ax.imshow(pixels, cmap="gray" if pixels.shape[-1] == 1 else None, vmin=0, vmax=255)
        ax.set_axis_off()


def _draw_probabilities(ax: Axes, report: GANReport) -> None:
    word = str(report.settings["real_target"])
    start = float(word.removeprefix("lin_"))
    if not word.startswith("lin_"):
        level = (start + report.settings["fake_target"]) / 2
        ax.axhline(level, color=GREY, linestyle="--", linewidth=1.5)
        words = "dashed: where both sides are alike"
        ax.text(0.99, 0.02, words, transform=ax.transAxes, ha="right", va="bottom", color=GREY)
    _line(ax, report, "gan/probability_real_max", "largest", PURPLE, width=1.0)
    _line(ax, report, "gan/probability_real", "D(real)", GREEN)
    _line(ax, report, "gan/probability_fake", "D(fake)", RED)
    finish(ax, "Discriminator's probability of real", "mean over a batch", steps="steps")
    ax.set_ylim(0, 1)


def _draw_measures(ax: Axes, report: GANReport) -> None:
    if report.settings["case"] == "digits":
        _line(ax, report, "eval/digits", "digits with 1 % of samples", BLUE, marker="o")
        _line(ax, report, "eval/distance", "distance to real images", RED, marker="o")
        finish(ax, "Digits found, and how near", "number; relative distance", steps="steps")
        ax.set_ylim(0, 10.5)
        return
    count = report.num_modes or 1
    steps, modes = _curve(report, "eval/modes")
    draw_line(ax, (steps, modes / count), f"modes, of {count}", BLUE, marker="o")
    _line(ax, report, "eval/high_quality", "high-quality samples", RED, marker="o")
    finish(ax, "Modes and quality", "share", steps="steps")
    ax.set_ylim(0, 1.04)


def _line(
    ax: Axes, report: GANReport, tag: str, name: str, colour: str, marker: str | None = None, width: float = 2.0
) -> None:
    draw_line(ax, _curve(report, tag), name, colour, marker, width)


def _curve(report: GANReport, tag: str) -> Values:
    steps, values = report.curves.get(tag, ([], []))
    return np.array(steps, dtype=np.float64), np.array(values, dtype=np.float64)
