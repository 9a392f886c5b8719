"""The report of an on-policy run: kept as `report.json`, so that `rlsmooth plot` can draw it again; its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlsmooth.scripts.metrics_file import Curve, read_metrics
from rlsmooth.scripts.results import print_table, return_words
from rlsmooth.scripts.run_folder import read_command, read_json, read_settings, write_json

__all__ = [
    "ON_POLICY",
    "OnPolicyReport",
    "load_on_policy_report",
    "print_on_policy_results",
    "result_rows",
    "save_on_policy_report",
    "setting_rows",
]

ON_POLICY = {"ppo": "PPO", "a2c": "A2C", "maskable-ppo": "MaskablePPO", "recurrent-ppo": "RecurrentPPO"}
"""The commands whose runs have such a report, and what they train."""
SHOWN = ("env", "seed", "reference", "smoothing", "from_bc", "eval_episodes")
"""The settings without which no figure can be drawn."""


@dataclass(frozen=True, kw_only=True)
class OnPolicyReport:
    """A run in numbers; plain data only.

    Attributes:
        name: of the run's folder.
        command: that made it; a key of `ON_POLICY`.
        settings: the arguments of the run.
        hyperparameters: those of the file and of the command line.
        curves: by column of `metrics.csv`, what was logged over the run, by environment step.
        summary: what the run ended with.
    """

    name: str
    command: str
    settings: Mapping[str, Any]
    hyperparameters: Mapping[str, Any]
    curves: Mapping[str, Curve]
    summary: Mapping[str, float] = field(default_factory=dict)


def save_on_policy_report(folder: Path, report: OnPolicyReport) -> None:
    """Write `report.json`."""
    write_json(folder / "report.json", asdict(report))


def load_on_policy_report(folder: Path) -> OnPolicyReport:
    """A run's report; of a run that has not ended, the curves so far.

    Raises:
        ValueError: it is no folder of such a run, or the report is malformed.
    """
    command = read_command(folder)
    if command not in ON_POLICY:
        raise ValueError(f"{str(folder / 'config.json')!r} was written by none of {', '.join(ON_POLICY)}.")
    settings = read_settings(folder, command)
    _check_settings(settings, folder / "config.json")
    path = folder / "report.json"
    if not path.exists():
        return OnPolicyReport(
            name=folder.name,
            command=command,
            settings=settings,
            hyperparameters=read_settings(folder, command, "hyperparameters"),
            curves=read_metrics(folder / "metrics.csv"),
        )
    try:
        report = OnPolicyReport(**read_json(path))
    except TypeError as error:
        raise ValueError(f"{str(path)!r} is no report of this version: {error}.") from error
    _check_settings(report.settings, path)
    return report


def result_rows(report: OnPolicyReport) -> list[tuple[str, str]]:
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
    if "ep_rew_mean" in found:
        rows.append(("return in training", return_words(found["ep_rew_mean"])))
    if "mean_ep_length" in found:
        rows.append(("episode length", f"{found['mean_ep_length']:.1f}"))
    if "policy_entropy" in found:
        kind = "policy entropy" if "entropy_frac" in found else "differential entropy"
        share = f" ({100 * found['entropy_frac']:.1f} % of log n)" if "entropy_frac" in found else ""
        rows.append((kind, f"{found['policy_entropy']:.3f} nats{share}"))
    for tag, name in (("kl_uniform", "KL(uniform‖policy)"), ("kl_reference", _kl_name(report))):
        if tag in found and (tag == "kl_uniform" or found[tag] != found.get("kl_uniform")):
            rows.append((name, f"{found[tag]:.3f} nats"))
    if found.get("smoothing"):
        rows.append(("coefficient of KL, last", f"{found['smoothing']:.3g}"))
    if "steps" in found:
        speed = f", {found['steps_per_second']:,.0f} a second" if "steps_per_second" in found else ""
        rows.append(("training", f"{found['steps']:,.0f} steps{speed}"))
    return rows


def setting_rows(report: OnPolicyReport) -> list[tuple[str, str]]:
    """(name, value) of the settings that tell most about a run."""
    settings, values = report.settings, report.hyperparameters
    rows = [("smoothing", smoothing_words(report))]
    if values.get("exploration_floor"):
        rows.append(("exploration floor", str(values["exploration_floor"])))
    if settings["from_bc"]:
        path = Path(settings["from_bc"])
        rows.append(("begun with", (path.parent.name or path.name) if path.suffix == ".zip" else path.name))
    rows.append(("entropy coefficient", f"{values.get('ent_coef', 0.0):g}"))
    rows.append(("learning rate", str(values.get("learning_rate", "SB3's default"))))
    rows.append(("environments", f"{values.get('n_envs', 1)}{', normalised' if values.get('normalize') else ''}"))
    return rows


def smoothing_words(report: OnPolicyReport) -> str:
    """How the policy was kept from certainty: `0.01 towards uniform`, `entropy target 30 % of log n`, `none`, ..."""
    values = report.hyperparameters
    reference = "the clone" if report.settings["from_bc"] else report.settings["reference"]
    if reference == "uniform" and "train/policy_entropy" in report.curves and "train/kl_uniform" not in report.curves:
        reference = "a Gaussian"  # a Box has no uniform policy
    if values.get("target_entropy_frac") is not None:
        return f"entropy target {100 * values['target_entropy_frac']:g} % of log n"
    if values.get("target_entropy_nats") is not None:
        return f"entropy target {values['target_entropy_nats']:g} nats"
    smoothing = values.get("smoothing", 0)
    return f"{smoothing} towards {reference}" if smoothing not in (0, 0.0, "0") else "none"


def print_on_policy_results(report: OnPolicyReport) -> None:
    """Print a run's table."""
    title = f"{ON_POLICY[report.command]}, {report.settings['env']}, {report.name}"
    note = (
        f"Returns: mean ± std of {report.settings['eval_episodes']} episodes. "
        "Entropy and KL: mean over the states of the last update."
    )
    print_table(title, result_rows(report), note)


def _kl_name(report: OnPolicyReport) -> str:
    return "KL(clone‖policy)" if report.settings["from_bc"] else "KL(reference‖policy)"


def _check_settings(settings: Mapping[str, Any], path: Path) -> None:
    missing = [name for name in SHOWN if name not in settings]
    if missing:
        raise ValueError(f"{str(path)!r} is not of this version: it lacks {', '.join(missing)}.")
