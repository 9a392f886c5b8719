"""What the report of `rlsmooth gail` and `airl` is drawn from, kept as `report.json`, and its rows for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlsmooth.scripts.metrics_file import Curve, read_metrics
from rlsmooth.scripts.report_file import load_report_file
from rlsmooth.scripts.results import print_table, return_words
from rlsmooth.scripts.run_folder import read_command

__all__ = [
    "ADVERSARIAL",
    "AdversarialReport",
    "generator_words",
    "load_adversarial_report",
    "print_adversarial_results",
    "result_rows",
    "setting_rows",
    "target_words",
]

ADVERSARIAL = {"gail": "GAIL", "airl": "AIRL"}
"""The commands whose runs have such a report, and what they train."""
SHOWN = (
    "env",
    "seed",
    "algo",
    "real_target",
    "fake_target",
    "terminal_states",
    "demo_batch_size",
    "n_disc_updates_per_round",
    "eval_episodes",
)
"""The settings without which no figure can be drawn."""


@dataclass(frozen=True, kw_only=True)
class AdversarialReport:
    """A run in numbers; plain data only.

    Attributes:
        name: of the run's folder.
        settings: the arguments of the run.
        command: that made it; a key of `ADVERSARIAL`.
        hyperparameters: the generator's, of the file and of the command line.
        curves: by column of `metrics.csv`, over the generator's steps.
        summary: what the run ended with, and `demonstrated_return` where it is known.
        demonstrated: how many episodes and transitions the expert gave, in words.
    """

    name: str
    settings: Mapping[str, Any]
    command: str = ""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    summary: Mapping[str, float] = field(default_factory=dict)
    demonstrated: str = ""


def load_adversarial_report(folder: Path) -> AdversarialReport:
    """A run's report; of a run that has not ended, the curves so far.

    Raises:
        ValueError: it is no folder of such a run, or the report is malformed.
    """
    command = read_command(folder)
    if command not in ADVERSARIAL:
        raise ValueError(f"{str(folder / 'config.json')!r} was written by none of {', '.join(ADVERSARIAL)}.")
    report = load_report_file(folder, AdversarialReport, command=command, needed=SHOWN)
    if report.curves:
        return report
    return dataclasses.replace(report, command=command, curves=read_metrics(folder / "metrics.csv"))


def result_rows(report: AdversarialReport) -> list[tuple[str, str]]:
    """(name, value with its unit) of each result that the run has."""
    found = report.summary
    rows: list[tuple[str, str]] = []
    for suffix, how in (("", "deterministic"), ("_sampled", "sampled")):
        if f"mean_reward{suffix}" in found:
            value = f"{return_words(found[f'mean_reward{suffix}'])} ± {return_words(found[f'std_reward{suffix}'])}"
            rows.append((f"return, {how}", value))
    if "best_mean_reward" in found:
        best = return_words(found["best_mean_reward"])
        rows.append(("best evaluation", f"{best} at {found['best_step']:,.0f} steps"))
    if "demonstrated_return" in found:
        rows.append(("return, demonstrations", return_words(found["demonstrated_return"])))
    if "ep_rew_wrapped_mean" in found:
        rows.append(("learned return", return_words(found["ep_rew_wrapped_mean"])))
    for side, name in (("expert", "on the expert"), ("gen", "on the generator")):
        if f"disc/disc_acc_{side}" in found:
            accuracy, probability = found[f"disc/disc_acc_{side}"], found[f"disc/disc_probability_{side}"]
            rows.append((f"D {name}", f"{probability:.3f}, right {100 * accuracy:.1f} %"))
    if "policy_entropy" in found:
        kind = "policy entropy" if "entropy_frac" in found else "differential entropy"
        share = f" ({100 * found['entropy_frac']:.1f} % of log n)" if "entropy_frac" in found else ""
        rows.append((kind, f"{found['policy_entropy']:.3f} nats{share}"))
    if "steps" in found:
        speed = f", {found['steps_per_second']:,.0f} a second" if "steps_per_second" in found else ""
        rows.append(("training", f"{found['steps']:,.0f} steps{speed}"))
    return rows


def setting_rows(report: AdversarialReport) -> list[tuple[str, str]]:
    """(name, value) of the settings that tell most about a run, with how much the expert gave."""
    settings, values = report.settings, report.hyperparameters
    rows = [("demonstrated", report.demonstrated)] if report.demonstrated else []
    count = values.get("n_envs", 1)
    normalised = ", normalised" if values.get("normalize") else ""
    rows.append(("generator", f"{settings['algo']} in {count} environment{'s' if count != 1 else ''}{normalised}"))
    if settings.get("reward_form"):
        rows.append(("reward", REWARDS.get(settings["reward_form"], settings["reward_form"])))
    updates, size = settings["n_disc_updates_per_round"], settings["demo_batch_size"]
    rows.append(("terminal states", settings["terminal_states"].replace("_", " ")))
    rows.append(("updates of D", f"{updates} a round, {size} + {size} rows"))
    return rows


REWARDS = {"minus_log_one_minus_d": "-log(1 - D)", "log_d": "log D", "logit": "log D - log(1 - D)"}


def target_words(report: AdversarialReport) -> str:
    """What the discriminator is trained towards: `1 and 0`, `0.9 and 0`."""
    return f"{report.settings['real_target']:g} and {report.settings['fake_target']:g}"


def generator_words(report: AdversarialReport) -> str:
    """The algorithm, and how it is smoothed: `ppo`, `ppo, smoothing 0.01`."""
    smoothing = report.hyperparameters.get("smoothing", 0)
    words = str(report.settings["algo"])
    return words if smoothing in (0, 0.0, "0") else f"{words}, smoothing {smoothing}"


def print_adversarial_results(report: AdversarialReport) -> None:
    """Print a run's table."""
    note = (
        f"Returns: the environment's own, mean ± std of {report.settings['eval_episodes']} episodes. "
        "D: the discriminator's mean probability of the expert, in the last round."
    )
    title = f"{ADVERSARIAL[report.command]}, {report.settings['env']}, {report.name}"
    print_table(title, result_rows(report), note)
