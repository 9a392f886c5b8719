"""Table rows and figure panels of `rlsmooth gan`."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes

from rlsmooth.scripts.figures.page import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    RunAxis,
    draw_level,
    draw_line,
    results_table,
    write_into,
)
from rlsmooth.scripts.reports import ReportKind, Row, RunReport, share_words
from rlsmooth.training.gan_cases import image_grid, scatter

AXIS = RunAxis(label="steps")
RESULTS = {
    "modes": ("modes recovered", ".0f"),
    "high_quality": ("high-quality samples", "share"),
    "reverse_kl": ("reverse KL over modes", ".3f"),
    "digits": ("digits found", ".0f"),
    "rarest_digit": ("the rarest digit's share", "share"),
    "distance": ("distance to real images", ".2f"),
    "probability_real": ("D(real)", ".3f"),
    "probability_fake": ("D(fake)", ".3f"),
    "probability_real_max": ("largest D(real)", ".3f"),
    "accuracy": ("discriminator's accuracy", "%"),
    "generator_gradient_norm": ("generator's gradient", ".3f"),
}


def _result_rows(report: RunReport) -> list[Row]:
    rows: list[Row] = []
    for tag, (name, form) in RESULTS.items():
        if tag in report.summary:
            of_all = f" of {report.extras['num_modes']}" if tag == "modes" else " of 10" if tag == "digits" else ""
            value, count = report.summary[tag], report.settings["eval_samples"] if form == "share" else None
            words = share_words(value, count) if form in ("share", "%") else f"{value:{form}}"
            rows.append((name, words + of_all))
    return rows


def _setting_rows(report: RunReport) -> list[Row]:
    settings = report.settings
    return [
        ("targets, real and fake", f"{settings['real_target']}, {settings['fake_target']:g}"),
        ("generator's loss", str(settings["generator_loss"]).replace("_", "-")),
        ("steps, batch", f"{settings['steps']:,}, {settings['batch_size']}"),
        ("learning rate", str(settings["learning_rate"])),
    ]


def _note(report: RunReport) -> str:
    return f"Of {report.settings['eval_samples']:,} samples after the last step; D over the last log line's steps."


def _title(report: RunReport) -> str:
    settings = report.settings
    targets = f"real target {settings['real_target']}"
    if settings["fake_target"]:
        targets += f", fake target {settings['fake_target']:g}"
    return f"GAN · {settings['case']} · {targets} · seed {settings['seed']}"


def _draw_samples(ax: Axes, report: RunReport) -> None:
    _draw_points_or_images(ax, report, "samples")


def _draw_data(ax: Axes, report: RunReport) -> None:
    _draw_points_or_images(ax, report, "real")


def _draw_points_or_images(ax: Axes, report: RunReport, entry: str) -> None:
    """Points with those of the data behind them, or images side by side."""
    ax.set_title("Samples" if entry == "samples" else "Data")
    ax.grid(False)
    if not report.extras["samples"]:
        ax.set_axis_off()
        write_into(ax, "drawn when the run ends", x=0.0, y=0.95)
        return
    shown, real = torch.tensor(report.extras[entry]), torch.tensor(report.extras["real"])
    if shown.ndim == 2:
        scatter(ax, shown if entry == "samples" else real[:0], real)
        return
    pixels = image_grid(shown).permute(1, 2, 0).numpy()
    ax.imshow(pixels, cmap="gray" if pixels.shape[-1] == 1 else None, vmin=0, vmax=255)
    ax.set_axis_off()


def _draw_losses(ax: Axes, report: RunReport) -> None:
    AXIS.draw(ax, report, "gan/discriminator_loss", "discriminator", BLUE)
    AXIS.draw(ax, report, "gan/generator_loss", "generator", ORANGE)
    AXIS.finish(ax, "Loss", "nats")


def _draw_probabilities(ax: Axes, report: RunReport) -> None:
    word = str(report.settings["real_target"])
    if not word.startswith("lin_"):
        draw_level(ax, (float(word) + report.settings["fake_target"]) / 2, None)
        words = "dashed: where both sides are alike"
        ax.text(0.99, 0.02, words, transform=ax.transAxes, ha="right", va="bottom", color=GREY)
    AXIS.draw(ax, report, "gan/probability_real_max", "largest", PURPLE, width=1.0)
    AXIS.draw(ax, report, "gan/probability_real", "D(real)", GREEN)
    AXIS.draw(ax, report, "gan/probability_fake", "D(fake)", RED)
    AXIS.finish(ax, "Discriminator's probability of real", "mean over a batch")
    ax.set_ylim(0, 1)


def _draw_measures(ax: Axes, report: RunReport) -> None:
    if report.settings["case"] == "digits":
        AXIS.draw(ax, report, "eval/digits", "digits with 1 % of samples", BLUE, marker="o")
        AXIS.draw(ax, report, "eval/distance", "distance to real images", RED, marker="o")
        AXIS.finish(ax, "Digits found, and how near", "number; relative distance")
        ax.set_ylim(0, 10.5)
        return
    count = report.extras["num_modes"]
    if count is not None:  # known when the run has ended
        steps, modes = AXIS.curve(report, "eval/modes")
        draw_line(ax, (steps, modes / count), f"modes, of {count}", BLUE, marker="o")
    AXIS.draw(ax, report, "eval/high_quality", "high-quality samples", RED, marker="o")
    AXIS.finish(ax, "Modes and quality", "share")
    ax.set_ylim(0, 1.04)


KIND = ReportKind(
    name="gan",
    commands={"gan": ""},
    subject="case",
    needed=("case", "real_target", "fake_target", "generator_loss", "seed", "steps", "batch_size", "learning_rate"),
    extras={
        "num_modes": None,  # of the density, where it is known
        "samples": [],  # generated points [N, 2] or images [N, C, H, W]
        "real": [],  # points or images of the data
    },
    results=_result_rows,
    note=_note,
    title=_title,
    panels=(
        _draw_samples,
        _draw_data,
        results_table(_result_rows, _setting_rows),
        _draw_losses,
        _draw_probabilities,
        _draw_measures,
    ),
)
