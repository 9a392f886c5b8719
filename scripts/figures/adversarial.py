"""Table rows and figure panels of `rlsmooth gail` and `rlsmooth airl`."""

from __future__ import annotations

import functools
import math

from matplotlib.axes import Axes

from rlsmooth.scripts.arguments import number_of
from rlsmooth.scripts.figures.page import (
    BLUE,
    INK,
    ORANGE,
    RED,
    RunAxis,
    draw_level,
    draw_uniform_entropy,
    results_table,
)
from rlsmooth.scripts.reports import (
    Comparison,
    ReportKind,
    Row,
    RunReport,
    best_rows,
    entropy_rows,
    return_rows,
    return_words,
    speed_rows,
)

ADVERSARIAL = {"gail": "GAIL", "airl": "AIRL"}
"""The commands, and what they train."""
AXIS = RunAxis(label="steps of the generator")
DISCRIMINATOR = "mean/disc/disc_"
REWARDS = {"minus_log_one_minus_d": "-log(1 - D)", "log_d": "log D", "logit": "log D - log(1 - D)"}


def _result_rows(report: RunReport) -> list[Row]:
    found = report.summary
    rows = return_rows(found) + best_rows(found)
    if "demonstrated_return" in found:
        rows.append(("return, demonstrations", return_words(found["demonstrated_return"])))
    if "ep_rew_wrapped_mean" in found:
        rows.append(("learned return", return_words(found["ep_rew_wrapped_mean"])))
    for side, name in (("expert", "on the expert"), ("gen", "on the generator")):
        if f"disc/disc_probability_{side}" in found:
            # The share of right answers is left out: where smoothing ends below 1/2, it is 0 for a perfect D.
            rows.append((f"D {name}", f"{found[f'disc/disc_probability_{side}']:.3f}"))
    if "disc/disc_probability_expert" in found:
        rows.append(("D where both are alike", f"{_alike(report):.3g}"))
    return rows + entropy_rows(found) + speed_rows(found)


def _setting_rows(report: RunReport) -> list[Row]:
    settings, values, demonstrated = report.settings, report.extras["hyperparameters"], report.extras["demonstrated"]
    rows: list[Row] = [("demonstrated", demonstrated)] if demonstrated else []
    count = number_of(values.get("n_envs", 1), "environment")
    normalised = ", normalised" if values.get("normalize") else ""
    rows.append(("generator", f"{settings['algo']} in {count}{normalised}"))
    if settings.get("reward_form"):
        rows.append(("reward", REWARDS.get(settings["reward_form"], settings["reward_form"])))
    updates, size = settings["n_disc_updates_per_round"], settings["demo_batch_size"]
    rows.append(("terminal states", settings["terminal_states"].replace("_", " ")))
    rows.append(("updates of D", f"{updates} a round, {size} + {size} samples"))
    return rows


def _alike(report: RunReport) -> float:
    """The best discriminator's answer where expert and generator are alike."""
    return float(report.settings["real_target"] + report.settings["fake_target"]) / 2


def _target_words(report: RunReport) -> str:
    """What the discriminator is trained towards: `1 and 0`, `0.9 and 0`."""
    return f"{report.settings['real_target']:g} and {report.settings['fake_target']:g}"


def _generator_words(report: RunReport) -> str:
    """The algorithm, and how it is smoothed: `ppo`, `ppo, smoothing 0.01`."""
    smoothing = report.extras["hyperparameters"].get("smoothing", 0)
    words = str(report.settings["algo"])
    return words if smoothing in (0, 0.0, "0") else f"{words}, smoothing {smoothing}"


def _note(report: RunReport) -> str:
    return (
        f"Returns: the environment's own, mean ± std of {number_of(report.settings['eval_episodes'], 'episode')}. "
        "D: the discriminator's mean probability of the expert, in the last round."
    )


def _title(report: RunReport) -> str:
    settings = report.settings
    title = f"{ADVERSARIAL[report.command]} · {settings['env']} · targets {_target_words(report)}"
    return f"{title} · {_generator_words(report)} · seed {settings['seed']}"


def _draw_learned(ax: Axes, report: RunReport) -> None:
    AXIS.draw(ax, report, "rollout/ep_rew_wrapped_mean", "of finished episodes", ORANGE)
    AXIS.finish(ax, "Learned return: what is paid", "return in the learned reward")


def _draw_entropies(ax: Axes, report: RunReport) -> None:
    AXIS.draw(ax, report, "train/policy_entropy", "policy", BLUE)
    AXIS.draw(ax, report, f"{DISCRIMINATOR}entropy", "discriminator", RED)
    if "target_entropy" in report.summary:
        draw_level(ax, report.summary["target_entropy"], "target", BLUE, ":")
    draw_uniform_entropy(ax, report.summary.get("largest_entropy"), math.log(2))
    AXIS.finish(ax, "Entropy of policy and discriminator", "nats")


def _draw_both_sides(ax: Axes, report: RunReport, tag: str) -> None:
    AXIS.draw(ax, report, f"{DISCRIMINATOR}{tag}_expert", "expert", INK)
    AXIS.draw(ax, report, f"{DISCRIMINATOR}{tag}_gen", "generator", RED)
    ax.set_ylim(-0.02, 1.02)


def _draw_probabilities(ax: Axes, report: RunReport) -> None:
    _draw_both_sides(ax, report, "probability")
    draw_level(ax, _alike(report), "where both are alike")
    AXIS.finish(ax, "D: probability of the expert", "mean probability")


def _draw_accuracies(ax: Axes, report: RunReport) -> None:
    _draw_both_sides(ax, report, "acc")
    AXIS.finish(ax, "D: transitions on the right side of 1/2", "share")


def _run_name(report: RunReport) -> str:
    words = f"{_target_words(report)}, {_generator_words(report)}, {report.settings['seed']}"
    return f"{ADVERSARIAL[report.command]} {report.name}: {words}"


KIND = ReportKind(
    name="gail or airl",
    commands=ADVERSARIAL,
    needed=(
        "env",
        "seed",
        "algo",
        "real_target",
        "fake_target",
        "terminal_states",
        "demo_batch_size",
        "n_disc_updates_per_round",
        "eval_episodes",
    ),
    extras={
        "hyperparameters": {},  # the generator's, of the file and of the command line
        "demonstrated": "",  # how many episodes and transitions the expert gave, in words
    },
    results=_result_rows,
    note=_note,
    title=_title,
    panels=(
        functools.partial(
            AXIS.draw_returns,
            level=("demonstrated_return", "demonstrated"),
            title="True return (band: ± std over episodes)",
        ),
        _draw_learned,
        _draw_entropies,
        _draw_probabilities,
        _draw_accuracies,
        results_table(_result_rows, _setting_rows),
    ),
    comparison=Comparison(
        panels=(
            AXIS.comparison_panel("Return of sampled actions", "mean return", "eval/mean_reward_sampled"),
            AXIS.comparison_panel(
                "D on the generator", "mean probability of the expert", f"{DISCRIMINATOR}probability_gen"
            ),
            AXIS.comparison_panel("Policy entropy", "nats", "train/policy_entropy"),
            AXIS.comparison_panel("Entropy of the discriminator", "nats", f"{DISCRIMINATOR}entropy"),
        ),
        name=_run_name,
        legend_title="run: targets of D, generator, seed",
        ncols=2,
    ),
)
