"""The pictures of `rlsmooth gail` and `airl`: one figure that tells how a run went, and one that compares several."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlsmooth.scripts.adversarial_report import (
    ADVERSARIAL,
    AdversarialReport,
    generator_words,
    result_rows,
    setting_rows,
    target_words,
)
from rlsmooth.scripts.drawing import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    RED,
    STYLE,
    Values,
    comparison,
    draw_line,
    draw_returns,
    finish,
    page,
    table,
)

__all__ = ["adversarial_comparison_figure", "adversarial_figure"]

DISCRIMINATOR = "mean/disc/disc_"


def adversarial_figure(report: AdversarialReport) -> Figure:
    """One run at a glance, 1600 x 1000 pixels: returns, learned return, entropy; the discriminator, key figures."""
    settings = report.settings
    title = f"{ADVERSARIAL[report.command]} · {settings['env']} · targets {target_words(report)}"
    with mpl.rc_context(STYLE):
        figure = page(f"{title} · {generator_words(report)} · seed {settings['seed']}")
        (returns, learned, entropies), (probabilities, accuracies, results) = figure.subplots(2, 3)
        _draw_returns(returns, report)
        _draw_learned(learned, report)
        _draw_entropies(entropies, report)
        _draw_probabilities(probabilities, report)
        _draw_accuracies(accuracies, report)
        table(results, "Results", (result_rows(report), setting_rows(report)))
    return figure


def adversarial_comparison_figure(reports: Sequence[AdversarialReport]) -> Figure:
    """Several runs, 1600 x 1000 pixels: return, what D says of the generator, entropies of the policy and of D."""
    shown = (
        ("eval/mean_reward_sampled", "Return of sampled actions", "mean return"),
        (f"{DISCRIMINATOR}probability_gen", "D on the generator", "mean probability of the expert"),
        ("train/policy_entropy", "Policy entropy", "nats"),
        (f"{DISCRIMINATOR}entropy", "Entropy of the discriminator", "nats"),
    )

    def name(report: AdversarialReport) -> str:
        words = f"{target_words(report)}, {generator_words(report)}, {report.settings['seed']}"
        return f"{ADVERSARIAL[report.command]} {report.name}: {words}"

    return comparison(
        reports,
        shown,
        curve=_curve,
        name=name,
        close=functools.partial(_finish, with_legend=False),
        legend_title="run: targets of D, generator, seed",
        ncols=2,
    )


def _draw_returns(ax: Axes, report: AdversarialReport) -> None:
    if "demonstrated_return" in report.summary:
        ax.axhline(
            report.summary["demonstrated_return"], color=GREY, linestyle="--", linewidth=1.5, label="demonstrated"
        )
    draw_returns(ax, functools.partial(_curve, report))
    _finish(ax, "True return (band: ± std over episodes)", "return")


def _draw_learned(ax: Axes, report: AdversarialReport) -> None:
    draw_line(ax, _curve(report, "rollout/ep_rew_wrapped_mean"), "of finished episodes", ORANGE)
    _finish(ax, "Learned return: what is paid", "return in the learned reward")


def _draw_entropies(ax: Axes, report: AdversarialReport) -> None:
    draw_line(ax, _curve(report, "train/policy_entropy"), "policy", BLUE)
    draw_line(ax, _curve(report, f"{DISCRIMINATOR}entropy"), "discriminator", RED)
    largest, target = report.summary.get("largest_entropy"), report.summary.get("target_entropy")
    if target is not None:
        ax.axhline(target, color=BLUE, linestyle=":", linewidth=1.5, label="target")
    if largest is not None:
        ax.axhline(largest, color=GREY, linestyle="--", linewidth=1.5, label="log n (uniform)")
        ax.set_ylim(0, 1.08 * max(largest, math.log(2)))
    _finish(ax, "Entropy of policy and discriminator", "nats")


def _draw_probabilities(ax: Axes, report: AdversarialReport) -> None:
    settings = report.settings
    draw_line(ax, _curve(report, f"{DISCRIMINATOR}probability_expert"), "expert", INK)
    draw_line(ax, _curve(report, f"{DISCRIMINATOR}probability_gen"), "generator", RED)
    # Where both sides are alike: the best discriminator's answer everywhere.
    balance = (settings["real_target"] + settings["fake_target"]) / 2
    ax.axhline(balance, color=GREY, linestyle="--", linewidth=1.5, label="where both are alike")
    ax.set_ylim(-0.02, 1.02)
    _finish(ax, "D: probability of the expert", "mean probability")


def _draw_accuracies(ax: Axes, report: AdversarialReport) -> None:
    draw_line(ax, _curve(report, f"{DISCRIMINATOR}acc_expert"), "expert", INK)
    draw_line(ax, _curve(report, f"{DISCRIMINATOR}acc_gen"), "generator", RED)
    ax.set_ylim(-0.02, 1.02)
    _finish(ax, "D: transitions told right", "share")


def _curve(report: AdversarialReport, tag: str) -> Values:
    steps, values = report.curves.get(tag, ([], []))
    return np.array(steps), np.array(values)


def _finish(ax: Axes, title: str, unit: str, *, with_legend: bool = True) -> None:
    finish(ax, title, unit, steps="steps of the generator", with_legend=with_legend)
