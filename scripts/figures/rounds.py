"""Table rows and figure panels of `rlsmooth bco` and `rlsmooth dagger`, which clone in rounds."""

from __future__ import annotations

import functools

from matplotlib.axes import Axes

from rlsmooth.scripts.arguments import number_of
from rlsmooth.scripts.figures.page import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    RED,
    RunAxis,
    draw_largest_entropy,
    results_table,
    show_shares,
)
from rlsmooth.scripts.reports import (
    FEW_SAMPLES,
    Comparison,
    ReportKind,
    Row,
    RunReport,
    Runs,
    entropy_rows,
    layers_words,
    leading_number,
    return_rows,
    return_words,
    share_words,
)

# BCO's logs count transitions; each log line says which round those made.
BCO_AXIS = RunAxis(label="round", prefix="bco/", counted_by="bco/round", whole=True)
DAGGER_AXIS = RunAxis(label="steps in the environment", prefix="dagger/")


def _draw_entropy(ax: Axes, report: RunReport, *, axis: RunAxis, name: str, colour: str) -> None:
    axis.draw(ax, report, "policy_entropy", name, colour, marker="o")
    draw_largest_entropy(ax, report)
    axis.finish(ax, "Policy entropy", "nats")


def _draw_cloning(ax: Axes, report: RunReport, *, axis: RunAxis, title: str) -> None:
    axis.draw(ax, report, "cross_entropy", "loss (smoothed)", BLUE, marker="o")
    axis.draw(ax, report, "nll_hard", "neg. log-likelihood", RED, marker="o")
    axis.finish(ax, title, "nats")


def _smoothing_row(report: RunReport) -> Row:
    return ("smoothing", f"{report.settings['smoothing']} towards {report.settings['reference']}")


# ---- bco


def _bco_results(report: RunReport) -> list[Row]:
    found = report.summary
    rows = return_rows(found)
    if "demonstrated_return" in found:
        rows.append(("return, demonstrations", return_words(found["demonstrated_return"])))
    count = leading_number(report.extras["watched"])
    held_out = max(FEW_SAMPLES, int(found.get("transitions", 0)) // 10)  # about: episodes are held out as a whole
    shares = (
        ("pseudo-labels: right", "pseudo_label_accuracy", count),
        ("confidence in them", "pseudo_label_confidence", None if count is None else max(FEW_SAMPLES, count)),
        ("policy agrees with them", "accuracy", count),
        ("held-out actions: right", "inverse_dynamics_accuracy", held_out),
    )
    rows += [(name, share_words(found[tag], of)) for name, tag, of in shares if tag in found]
    if "pseudo_label_error" in found:
        rows.append(("pseudo-labels: error", f"{found['pseudo_label_error']:.3f}"))
    return rows + entropy_rows(found)


def _bco_settings(report: RunReport) -> list[Row]:
    settings, observed = report.settings, report.extras["watched"]
    return [
        *([("demonstrations", observed)] if observed else []),
        ("rounds", f"{settings['rounds']} of {settings['transitions_per_round']:,} transitions"),
        ("trained on", f"{settings['pseudo_labels']} pseudo-labels"),
        _smoothing_row(report),
        ("hidden layers", layers_words(settings["net_arch"])),
    ]


def _bco_note(report: RunReport) -> str:
    episodes = number_of(report.settings["eval_episodes"], "episode")
    return f"Returns: mean ± std of {episodes}. Entropy: mean over the demonstrations' states."


def _bco_title(report: RunReport) -> str:
    settings = report.settings
    title = f"Cloning from observation · {settings['env']} · {settings['pseudo_labels']} pseudo-labels"
    return f"{title}, smoothing {settings['smoothing']} · seed {settings['seed']}"


def _draw_pseudo_labels(ax: Axes, report: RunReport) -> None:
    if "bco/pseudo_label_error" in report.curves:
        BCO_AXIS.draw(ax, report, "pseudo_label_error", "root mean square", RED, marker="o")
        ax.set_ylim(bottom=0)
        BCO_AXIS.finish(ax, "Error of the pseudo-labels", "action")
        return
    BCO_AXIS.draw(ax, report, "pseudo_label_accuracy", "right", GREEN, marker="o", width=4.0)
    BCO_AXIS.draw(ax, report, "pseudo_label_confidence", "confidence", ORANGE, marker="o")
    show_shares(ax)
    BCO_AXIS.finish(ax, "Pseudo-labels of the demonstrations", "share, or mean probability")


def _draw_inverse_dynamics(ax: Axes, report: RunReport) -> None:
    title = "Model of what actions do"
    if "bco/inverse_dynamics_accuracy" in report.curves:
        BCO_AXIS.draw(ax, report, "inverse_dynamics_accuracy", "held-out actions: right", GREEN, marker="o")
        show_shares(ax)
        BCO_AXIS.finish(ax, title, "share")
        return
    BCO_AXIS.draw(ax, report, "inverse_dynamics_cross_entropy", "held-out transitions", PURPLE, marker="o")
    BCO_AXIS.finish(ax, title, "cross-entropy, nats")


def _bco_run_name(report: RunReport) -> str:
    settings = report.settings
    return f"{report.name}: {settings['pseudo_labels']}, {settings['smoothing']}, {settings['seed']}"


BCO = ReportKind(
    name="bco",
    commands={"bco": ""},
    needed=("env", "smoothing", "reference", "pseudo_labels", "seed", "rounds", "transitions_per_round", "net_arch"),
    extras={"watched": ""},  # the demonstrations: how many episodes and transitions were given, in words
    results=_bco_results,
    note=_bco_note,
    title=_bco_title,
    panels=(
        functools.partial(BCO_AXIS.draw_returns, level=("demonstrated_return", "demonstrations")),
        _draw_pseudo_labels,
        functools.partial(_draw_entropy, axis=BCO_AXIS, name="on the demonstrations", colour=BLUE),
        _draw_inverse_dynamics,
        functools.partial(_draw_cloning, axis=BCO_AXIS, title="Cloning of the pseudo-labels"),
        results_table(_bco_results, _bco_settings),
    ),
    comparison=Comparison(
        panels=(
            BCO_AXIS.comparison_panel("Return of sampled actions", "mean return", "mean_reward_sampled"),
            BCO_AXIS.comparison_panel("Pseudo-labels that are right", "share", "pseudo_label_accuracy"),
            BCO_AXIS.comparison_panel("Policy entropy", "nats", "policy_entropy"),
            BCO_AXIS.comparison_panel("Negative log-likelihood of the pseudo-labels", "nats", "nll_hard"),
        ),
        name=_bco_run_name,
        legend_title="run: pseudo-labels, smoothing, seed",
    ),
)


# ---- dagger


def _dagger_results(report: RunReport) -> list[Row]:
    found = report.summary
    rows = return_rows(found)
    if "expert_return" in found:
        rows.append(("return, expert", return_words(found["expert_return"])))
    counts = [0.0, *report.curves.get("dagger/transitions", ((), ()))[1]][-2:]
    shares = (
        ("does as the expert did", "expert_agreement", int(counts[-1] - counts[0]) or None),
        ("the same, after training", "accuracy", int(counts[-1]) or None),
    )
    rows += [(name, share_words(found[tag], of)) for name, tag, of in shares if tag in found]
    if "expert_error" in found:
        rows.append(("from the expert's action", f"{found['expert_error']:.3f} (root mean square)"))
    if "nll_hard" in found:
        rows.append(("neg. log-likelihood", f"{found['nll_hard']:.3f} nats"))
    rows += entropy_rows(found)
    if "transitions" in found:
        rows.append(("labelled", f"{found['transitions']:,.0f} in {number_of(found['rounds'], 'round')}"))
    return rows


def _dagger_settings(report: RunReport) -> list[Row]:
    settings, expert = report.settings, report.extras["expert"]
    return [
        *([("expert", expert)] if expert else []),
        ("cloned", f"its {settings['expert_targets']}"),
        _smoothing_row(report),
        ("beta schedule", beta_words(settings["beta_schedule"])),
        ("hidden layers", layers_words(settings["net_arch"])),
    ]


def beta_words(schedule: str) -> str:
    """`1 to 0 in 15 rounds`, `0.7 to the power of the round`."""
    return f"1 to 0 in {schedule} rounds" if schedule.isdigit() else f"{schedule} to the power of the round"


def _dagger_note(report: RunReport) -> str:
    row = "From the expert's action" if "expert_error" in report.summary else "Does as the expert did"
    episodes = number_of(report.settings["eval_episodes"], "episode")
    return f"Returns: mean ± std of {episodes}. {row}: at the states of the last round, before it was trained on them."


def _dagger_title(report: RunReport) -> str:
    settings = report.settings
    title = f"DAgger · {settings['env']} · expert's {settings['expert_targets']}, smoothing {settings['smoothing']}"
    return f"{title} · seed {settings['seed']}"


EXPERT_ERROR = ("Distance from the expert's actions", "root mean square, units of the action")
"""Title and unit of a panel."""


def _draw_agreement(ax: Axes, report: RunReport) -> None:
    if "dagger/expert_error" in report.curves:
        DAGGER_AXIS.draw(ax, report, "expert_error", "before training on them", RED, marker="o")
        ax.set_ylim(bottom=0)
        DAGGER_AXIS.finish(ax, *EXPERT_ERROR)
        return
    DAGGER_AXIS.draw(ax, report, "accuracy", "all transitions, after training", GREEN, marker="o")
    DAGGER_AXIS.draw(ax, report, "expert_agreement", "new ones, before", RED, marker="o")
    if ax.lines:
        show_shares(ax)
    DAGGER_AXIS.finish(ax, "Learner does as the expert did", "share")


def _draw_mixture(ax: Axes, report: RunReport) -> None:
    DAGGER_AXIS.draw(ax, report, "beta", "beta, of the expert", ORANGE, marker="o")
    DAGGER_AXIS.draw(ax, report, "learner_share", "done by the learner", INK, marker="o")
    ax.set_ylim(-0.05, 1.05)
    DAGGER_AXIS.finish(ax, "Behaviour policy", "share of the steps")


def _compare_agreement(ax: Axes, runs: Runs) -> None:
    if any("dagger/expert_error" in report.curves for report, _, _ in runs):
        draw = DAGGER_AXIS.comparison_panel(*EXPERT_ERROR, "expert_error")
    else:
        draw = DAGGER_AXIS.comparison_panel("Does as the expert did, before training", "share", "expert_agreement")
    draw(ax, runs)


def _dagger_run_name(report: RunReport) -> str:
    settings = report.settings
    return f"{report.name}: {settings['beta_schedule']}, {settings['smoothing']}, {settings['seed']}"


DAGGER = ReportKind(
    name="dagger",
    commands={"dagger": "DAgger"},
    needed=("env", "seed", "smoothing", "reference", "beta_schedule", "expert_targets", "net_arch", "eval_episodes"),
    extras={"expert": ""},  # who was asked, in words
    results=_dagger_results,
    note=_dagger_note,
    title=_dagger_title,
    panels=(
        functools.partial(DAGGER_AXIS.draw_returns, level=("expert_return", "expert")),
        _draw_agreement,
        _draw_mixture,
        functools.partial(_draw_cloning, axis=DAGGER_AXIS, title="Cloning of all transitions so far"),
        functools.partial(_draw_entropy, axis=DAGGER_AXIS, name="at the states visited", colour=PURPLE),
        results_table(_dagger_results, _dagger_settings),
    ),
    comparison=Comparison(
        panels=(
            DAGGER_AXIS.comparison_panel("Return of sampled actions", "mean return", "mean_reward_sampled"),
            _compare_agreement,
            DAGGER_AXIS.comparison_panel("Policy entropy", "nats", "policy_entropy"),
            DAGGER_AXIS.comparison_panel("Negative log-likelihood of the expert's actions", "nats", "nll_hard"),
        ),
        name=_dagger_run_name,
        legend_title="run: beta schedule, smoothing, seed",
    ),
)
