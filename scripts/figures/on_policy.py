"""Table rows and figure panels of `rlsmooth ppo`, `a2c`, `maskable-ppo` and `recurrent-ppo`."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from rlsmooth.scripts.arguments import number_of
from rlsmooth.scripts.figures.page import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    RED,
    SKY,
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

ON_POLICY = {"ppo": "PPO", "a2c": "A2C", "maskable-ppo": "MaskablePPO", "recurrent-ppo": "RecurrentPPO"}
DEFAULT_RATES = {"ppo": 3e-4, "a2c": 7e-4, "maskable-ppo": 3e-4, "recurrent-ppo": 3e-4}
"""SB3's and sb3-contrib's; a test compares them with the signatures."""
AXIS = RunAxis(label="steps in the environment")


def _result_rows(report: RunReport) -> list[Row]:
    found = report.summary
    rows = return_rows(found) + best_rows(found)
    if "ep_rew_mean" in found:
        rows.append(("return in training", return_words(found["ep_rew_mean"])))
    if "mean_ep_length" in found:
        rows.append(("episode length", f"{found['mean_ep_length']:.1f}"))
    rows += entropy_rows(found)
    reference = "clone" if report.settings["from_bc"] else "reference"
    for tag, name in (("kl_uniform", "uniform"), ("kl_reference", reference)):
        if tag in found and (tag == "kl_uniform" or found[tag] != found.get("kl_uniform")):
            rows.append((f"KL({name}‖policy)", f"{found[tag]:.3f} nats"))
    if found.get("smoothing"):
        rows.append(("coefficient of KL, last", f"{found['smoothing']:.3g}"))
    return rows + speed_rows(found)


def _setting_rows(report: RunReport) -> list[Row]:
    settings, values = report.settings, report.extras["hyperparameters"]
    rows: list[Row] = [("smoothing", smoothing_words(report))]
    if values.get("exploration_floor"):
        rows.append(("exploration floor", str(values["exploration_floor"])))
    rows += [
        ("guaranteed entropy", f"{values[name]} {unit}")
        for name, unit in (("min_entropy_frac", "of log n"), ("min_entropy_nats", "nats"))
        if values.get(name) is not None
    ]
    if begun_with := settings["from_bc"] or settings.get("trained_agent"):
        path = Path(begun_with)
        rows.append(("begun with", (path.parent.name or path.name) if path.suffix == ".zip" else path.name))
    rows.append(("entropy coefficient", f"{values.get('ent_coef', 0.0):g}"))
    rows.append(("learning rate", _learning_rate(report)))
    rows.append(("environments", f"{values.get('n_envs', 1)}{', normalised' if values.get('normalize') else ''}"))
    return rows


def _learning_rate(report: RunReport) -> str:
    """The number or schedule of the hyperparameters; where they name none, the algorithm's default."""
    value = report.extras["hyperparameters"].get("learning_rate")
    return f"{DEFAULT_RATES[report.command]:g}" if value is None else str(value)


def smoothing_words(report: RunReport) -> str:
    """How the policy was kept from certainty: `0.01 towards uniform`, `entropy target 30 % of log n`, `none`, ..."""
    values = report.extras["hyperparameters"]
    reference = "the clone" if report.settings["from_bc"] else report.settings["reference"]
    if reference == "uniform" and report.settings.get("trained_agent"):
        reference = "the agent's reference"
    if reference == "uniform" and "train/policy_entropy" in report.curves and "train/kl_uniform" not in report.curves:
        reference = "a Gaussian"  # a Box has no uniform policy
    if values.get("target_entropy_frac") is not None:
        return f"entropy target {100 * values['target_entropy_frac']:g} % of log n"
    if values.get("target_entropy_nats") is not None:
        return f"entropy target {values['target_entropy_nats']:g} nats"
    smoothing = values.get("smoothing", 0)
    return f"{smoothing} towards {reference}" if smoothing not in (0, 0.0, "0") else "none"


def _note(report: RunReport) -> str:
    return (
        f"Returns: mean ± std of {number_of(report.settings['eval_episodes'], 'episode')}. "
        "Entropy and KL: mean over the states of the last update."
    )


def _title(report: RunReport) -> str:
    settings = report.settings
    title = f"{ON_POLICY[report.command]} · {settings['env']} · smoothing: {smoothing_words(report)}"
    return f"{title} · seed {settings['seed']}"


def _draw_returns(ax: Axes, report: RunReport) -> None:
    AXIS.draw(ax, report, "rollout/ep_rew_mean", "training", SKY, width=1.5)
    AXIS.draw_returns(ax, report)


def _draw_entropy(ax: Axes, report: RunReport) -> None:
    AXIS.draw(ax, report, "train/policy_entropy", "policy", BLUE)
    if "target_entropy" in report.summary:
        draw_level(ax, report.summary["target_entropy"], "target", ORANGE)
    draw_uniform_entropy(ax, report.summary.get("largest_entropy"))
    AXIS.finish(ax, "Policy entropy", "nats")


def _draw_divergences(ax: Axes, report: RunReport) -> None:
    curves = report.curves
    AXIS.draw(ax, report, "train/kl_uniform", "from uniform", BLUE)
    if curves.get("train/kl_reference") != curves.get("train/kl_uniform"):
        name = "from the clone" if report.settings["from_bc"] else "from the reference"
        AXIS.draw(ax, report, "train/kl_reference", name, RED)
    ax.set_ylim(bottom=0)
    AXIS.finish(ax, "KL(reference‖policy)", "nats")


def _draw_coefficients(ax: Axes, report: RunReport) -> None:
    _, alphas = AXIS.curve(report, "train/smoothing")
    AXIS.draw(ax, report, "train/smoothing", "of KL (alpha)", PURPLE)
    if any(report.curves.get("train/exploration_floor", ([], []))[1]):  # at 0 throughout it would lie on the frame
        AXIS.draw(ax, report, "train/exploration_floor", "exploration floor", ORANGE)
    if len(alphas) and alphas.min() > 0 and alphas.max() > 20 * alphas.min():  # found by feedback
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)
        # A common exponent would lie on the legend.
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    AXIS.finish(ax, "Coefficients in force", "")


def _draw_updates(ax: Axes, report: RunReport) -> None:
    AXIS.draw(ax, report, "train/explained_variance", "explained variance", GREEN)
    AXIS.draw(ax, report, "train/clip_fraction", "clipped", ORANGE)
    AXIS.draw(ax, report, "train/approx_kl", "KL of the update", RED)
    ax.set_ylim(-0.3, 1.05)  # an untrained critic can be far below
    AXIS.finish(ax, "Updates", "")


def _run_name(report: RunReport) -> str:
    return f"{ON_POLICY[report.command]} {report.name}: {smoothing_words(report)}, {report.settings['seed']}"


KIND = ReportKind(
    name="on-policy",
    commands=ON_POLICY,
    needed=("env", "seed", "reference", "smoothing", "from_bc", "eval_episodes"),
    extras={"hyperparameters": {}},  # those of the file and of the command line
    results=_result_rows,
    note=_note,
    title=_title,
    panels=(
        _draw_returns,
        _draw_entropy,
        _draw_divergences,
        _draw_coefficients,
        _draw_updates,
        results_table(_result_rows, _setting_rows),
    ),
    comparison=Comparison(
        panels=(
            AXIS.comparison_panel("Return of sampled actions", "mean return", "eval/mean_reward_sampled", marked=True),
            AXIS.comparison_panel("Policy entropy", "nats", "train/policy_entropy", marked=False),
            AXIS.comparison_panel("KL(reference‖policy)", "nats", "train/kl_reference", marked=False),
            AXIS.comparison_panel("Coefficient of KL", "", "train/smoothing", marked=False),
        ),
        name=_run_name,
        legend_title="run: smoothing, seed",
        ncols=2,
    ),
)
