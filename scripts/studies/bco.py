"""Study: cloning observation-only demonstrations, against cloning with the true actions, 10 seeds.

Fixed before running: CartPole-v1, 2 episodes of the shipped demonstrations; MountainCar-v0 and Acrobot-v1, 10 episodes
of a scripted expert each (`bco_experts`); drawn by the seed, about 1,000 transitions each. BCO: 5 rounds of 1,000
transitions and 40 epochs of cloning, MlpPolicy, learning rates 0.003, batches of 128, hard pseudo-labels, the inverse
dynamics model shown `s` and `s' - s`, without smoothing, at most 15 epochs; smoothing of the pseudo-labels 0 and 0.1.
BC: the true actions, as many epochs in all, smoothing 0 and 0.1. Seeds 0 to 9. The policy after the last round, 20
episodes of deterministic and 20 of sampled actions on seeds of their own. Reported: interquartile means over seeds of
the mean return, with bootstrap intervals, and the share of pseudo-labels that are the expert's actions. Beside them
what IL-Datasets publishes for BC and BCO, whose experts, networks and budgets are others.

Changed after a first run: MountainCar's expert. Where actions were equally good, which all are close to the goal, it
had taken the first, a push to the left. BC, which learns these actions, then got -142, and BCO, whose pseudo-labels
there were pushes to the right, -101. Now it takes the last.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rlsmooth.agents import BC, BCO
from rlsmooth.audits import interquartile_mean_band, interquartile_mean_difference, interquartile_mean_interval
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.figures.page import BLUE, GREY, INK, ORANGE, STYLE
from rlsmooth.scripts.studies.bco_experts import ENVS, demonstrations, make_experts, references
from rlsmooth.scripts.studies.runner import Args, Job, Result, in_words, results_folder, run_jobs, write_study
from rlsmooth.scripts.studies.study_callbacks import mean_return

EPISODES = {"CartPole-v1": 2, "MountainCar-v0": 10, "Acrobot-v1": 10}
PUBLISHED = {"CartPole-v1": (500.0, 500.0), "MountainCar-v0": (-100.2, -99.5), "Acrobot-v1": (-73.6, -75.2)}
ARMS: dict[str, tuple[bool, float]] = {
    "BC, smoothing 0": (True, 0.0),
    "BC, smoothing 0.1": (True, 0.1),
    "BCO, smoothing 0": (False, 0.0),
    "BCO, smoothing 0.1": (False, 0.1),
}
COLOURS = dict(zip(ARMS, (GREY, INK, ORANGE, BLUE), strict=True))
BUDGET = {"n_rounds": 5, "transitions_per_round": 1_000, "n_epochs": 40, "inverse_epochs": 15, "episodes": 20}
SMALL = {"n_rounds": 2, "transitions_per_round": 200, "n_epochs": 2, "inverse_epochs": 2, "episodes": 2}
TRAINING = {"learning_rate": 0.003, "batch_size": 128}
KINDS = ("deterministic", "sampled")


def train(settings: dict[str, Any]) -> Result:
    """One run."""
    env, seed, budget = settings["env"], settings["seed"], settings["budget"]
    is_told, smoothing = ARMS[settings["arm"]]
    given = demonstrations(Path(settings["experts"]), env).sample_episodes(EPISODES[env], seed=seed)
    common: dict[str, Any] = {"smoothing": smoothing, **TRAINING, "seed": seed, "device": "cpu"}
    found: Result = {"transitions": [], "pseudo_label_accuracy": []}
    agent: Any
    if is_told:
        agent = BC("MlpPolicy", None, given, **common).learn(total_epochs=budget["n_rounds"] * budget["n_epochs"])
    else:
        names = ("n_rounds", "transitions_per_round", "n_epochs", "inverse_epochs")
        own = {name: budget[name] for name in names}
        agent = BCO("MlpPolicy", env, given, inverse_learning_rate=0.003, **common, **own).learn()
        found = {name: [line[name] for line in agent.history] for name in found}
    for kind in KINDS:
        found[kind] = mean_return(
            agent, env, seed=20_000 + seed, episodes=budget["episodes"], deterministic=kind == "deterministic"
        )
    return found


def main(args: Args) -> None:
    """Run it and write the summary."""
    runs, summary = results_folder(args, "bco")
    make_experts(runs / "experts", small=args.small)
    settings = {"experts": str(runs / "experts"), "budget": SMALL if args.small else BUDGET}
    jobs = [
        Job(
            f"{env}_{arm.replace(', smoothing ', '_')}_{seed}",
            {**settings, "env": env, "arm": arm, "seed": seed},
        )
        for seed in range(3 if args.small else 10)
        for env in ENVS
        for arm in ARMS
    ]
    results = run_jobs(jobs, train, folder=runs, workers=args.workers)
    found: dict[str, dict[str, list[Result]]] = {env: {arm: [] for arm in ARMS} for env in ENVS}
    for job, result in zip(jobs, results, strict=True):
        found[job.settings["env"]][job.settings["arm"]].append(result)
    levels = references(runs / "experts")
    page = report(found, levels)
    data = {"budget": settings["budget"], "references": levels, "published": PUBLISHED, "runs": found}
    write_study(summary, "bco", report=page, data=data)
    draw(summary / "bco.png", found, levels)
    print(page)


def report(found: dict[str, dict[str, list[Result]]], levels: dict[str, dict[str, float]]) -> str:
    """The page: one table of returns, one of the difference that smoothing makes."""
    lines = [
        "# Cloning from observation\n",
        f"{(__doc__ or '').partition(chr(10) + chr(10))[2].strip()}\n",
        "| environment | who | deterministic actions | sampled actions | right pseudo-labels | IL-Datasets |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for env, arms in found.items():
        lines.append(f"| {env} | random | {levels[env]['random']:.1f} | | | |")
        for arm, runs in arms.items():
            cells = [in_words(interquartile_mean_interval([run[kind] for run in runs]), ".1f") for kind in KINDS]
            labels = [run["pseudo_label_accuracy"][-1] for run in runs if run["pseudo_label_accuracy"]]
            cells.append(in_words(interquartile_mean_interval(labels), ".3f") if labels else "")
            cells.append(f"{PUBLISHED[env][arm.startswith('BCO')]:.1f}" if arm.endswith(" 0") else "")
            lines.append(f"| {env} | {arm} | {' | '.join(cells)} |")
        lines.append(f"| {env} | expert | {levels[env]['expert']:.1f} | | | |")
    lines += [
        "\nWhat changes, interquartile means with 95 % intervals:\n",
        "| environment | return of deterministic actions | difference |",
        "|---|---|---:|",
    ]
    for env, arms in found.items():
        returns = {arm: [run["deterministic"] for run in runs] for arm, runs in arms.items()}
        for one, other in (
            ("BCO, smoothing 0.1", "BCO, smoothing 0"),
            ("BC, smoothing 0.1", "BC, smoothing 0"),
            ("BCO, smoothing 0", "BC, smoothing 0"),
            ("BCO, smoothing 0.1", "BC, smoothing 0.1"),
        ):
            gap = in_words(interquartile_mean_difference(returns[one], returns[other]), "+.1f")
            lines.append(f"| {env} | {one} less {other} | {gap} |")
    lines.append("\nReproduce: `make study-bco`. Figure: [bco.png](bco.png).\n")
    return "\n".join(lines)


def draw(path: Path, found: dict[str, dict[str, list[Result]]], levels: dict[str, dict[str, float]]) -> None:
    """Above each arm's returns, run by run; below how many pseudo-labels are right as rounds go by."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(15, 8.4), dpi=110, layout="constrained")
        rows = figure.subplots(2, len(ENVS))
        for env, above, below in zip(ENVS, rows[0], rows[1], strict=True):
            _draw_returns(above, found[env], levels[env], PUBLISHED[env])
            above.set_title(env, pad=8)
            for arm, runs in found[env].items():
                if runs[0]["transitions"]:
                    values = np.asarray([run["pseudo_label_accuracy"] for run in runs])
                    band = interquartile_mean_band(values, num_resamples=2_000)
                    steps = runs[0]["transitions"]
                    below.plot(steps, band.estimate, color=COLOURS[arm], label=arm, marker="o", markersize=4)
                    below.fill_between(steps, band.low, band.high, color=COLOURS[arm], alpha=0.18, linewidth=0)
            below.set(xlabel="transitions of its own", ylabel="right pseudo-labels (share)")
            below.set_ylim(top=1.005)
        rows[0][0].set_ylabel("mean return of a seed")
        rows[0][0].set_ylim(0, 540)
        rows[1][0].set_ylim(0.8, 1.005)
        published = Line2D([], [], color="#888888", linewidth=1.2, linestyle=":", label="IL-Datasets")
        rows[0][0].legend(handles=[published], frameon=False, loc="lower right")
        rows[1][0].legend(frameon=False, loc="lower right")
        figure.savefig(path)


def _draw_returns(
    axes: Axes, arms: dict[str, list[Result]], level: dict[str, float], published: tuple[float, float]
) -> None:
    for place, (arm, runs) in enumerate(arms.items()):
        returns = [run["deterministic"] for run in runs]
        spread = np.linspace(-0.16, 0.16, len(returns))
        axes.scatter(place + spread, returns, color=COLOURS[arm], s=16, alpha=0.5, linewidths=0)
        interval = interquartile_mean_interval(returns)
        axes.plot([place] * 2, [interval.low, interval.high], color=COLOURS[arm], linewidth=3)
        axes.plot(place, interval.estimate, "D", color=COLOURS[arm], markersize=8)
        shown = published[arm.startswith("BCO")]
        axes.plot([place - 0.3, place + 0.3], [shown] * 2, color="#888888", linewidth=1.2, linestyle=":")
    axes.axhline(level["expert"], color="#888888", linewidth=1.2, linestyle="--")
    axes.text(3.45, level["expert"], "expert", ha="right", va="bottom", color=GREY, fontsize=10)
    axes.set_xticks(range(len(arms)), [arm.replace(", smoothing ", "\n") for arm in arms])
    axes.set_xlim(-0.5, len(arms) - 0.5)


if __name__ == "__main__":
    sys.exit(run_command("study bco", Args, main))
