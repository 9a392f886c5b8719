"""Study: smoothing along a taxonomy against flat smoothing and none, on rodents and olive oils.

Fixed before running. Data: rodents of a desert (24 species in 9 genera; from weight, hindfoot, sex, season and plot)
and olive oils (9 areas of Italy in 3 regions; from 8 fatty acids). 10 seeds, each with its own stratified split: of the
rodents 1,500 rows to train on, 500 to fit the temperature on and 4,000 to test; of the olive oils 114, 115 and 343.
The network ("mlp", learning rate 0.001) is trained for 40 epochs in batches of 32, on olive oils for 100 in batches of
16. Arms: no smoothing; flat, the mass 0.1 or 0.3 spread evenly over the other classes; hierarchical, the same mass
spread by exp(-decay · edges) with decay 0.5, 1 or 2 (a relative has 2.7, 7.4 or 55 times what a stranger has); and the
whole Boltzmann distribution with decay 1, which fixes the mass by itself. Nothing is chosen: all arms are shown.

Reported: accuracy; mistake severity, the mean height of the lowest common ancestor over the mistakes (1: the right
genus or region, 2: a wrong one); the same over all rows (distance@1) and over the five most probable classes of each
row (distance@5); negative log-likelihood and expected calibration error (15 bins), as trained and after temperature
scaling, the post-hoc baseline. Interquartile means over seeds with 95 % bootstrap intervals. Beside them the
differences hierarchical less flat of the same mass, and flat less none, seed by seed on the same split.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlsmooth.audits import (
    classification_summary,
    fit_temperature,
    implied_alpha,
    interquartile_mean_interval,
    tree_distances,
)
from rlsmooth.data import load_labelled
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.figures.page import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, STYLE, save_figure
from rlsmooth.scripts.studies.runner import Args, Job, Result, by_arm, in_words, results_folder, run_jobs, write_study
from rlsmooth.targets import Smoothing, Tree
from rlsmooth.training import Classifier

ARMS: dict[str, dict[str, Any]] = {
    "none": {"alpha": 0.0, "decay": 0.0},
    "flat 0.1": {"alpha": 0.1, "decay": 0.0},
    "flat 0.3": {"alpha": 0.3, "decay": 0.0},
    "hierarchical 0.1, decay 0.5": {"alpha": 0.1, "decay": 0.5},
    "hierarchical 0.1, decay 1": {"alpha": 0.1, "decay": 1.0},
    "hierarchical 0.1, decay 2": {"alpha": 0.1, "decay": 2.0},
    "hierarchical 0.3, decay 0.5": {"alpha": 0.3, "decay": 0.5},
    "hierarchical 0.3, decay 1": {"alpha": 0.3, "decay": 1.0},
    "hierarchical 0.3, decay 2": {"alpha": 0.3, "decay": 2.0},
    "Boltzmann, decay 1": {"alpha": None, "decay": 1.0},
}
DATA: dict[str, dict[str, int]] = {
    "rodents": {"train": 1_500, "tune": 500, "test": 4_000, "epochs": 40, "batch_size": 32},
    "olive": {"train": 114, "tune": 115, "test": 343, "epochs": 100, "batch_size": 16},
}
MEASURES = {
    "accuracy": "accuracy",
    "mistake_severity": "mistake severity",
    "distance_at_1": "distance@1",
    "distance_at_5": "distance@5",
    "nll": "NLL",
    "ece": "ECE",
    "scaled_nll": "NLL, scaled",
    "scaled_ece": "ECE, scaled",
}
# By how an arm's name begins or ends; the first that fits.
COLOURS = {"none": GREY, "flat": ORANGE, "Boltzmann": PURPLE, "decay 0.5": SKY, "decay 1": BLUE, "decay 2": GREEN}


def smoothing_of(tree: Tree, *, alpha: float | None, decay: float) -> Smoothing:
    """Flat smoothing leaves the label alone too (`spread="others"`), so that arms of one alpha move the same mass."""
    if decay == 0:
        return Smoothing(alpha=alpha, spread="others")
    return Smoothing(alpha=alpha, reference=tree, decay=decay)


def train(settings: dict[str, Any]) -> Result:
    """One run."""
    seed = settings["seed"]
    data = load_labelled(settings["data"])
    # All three parts have each class in proportion, the small ones at least one row where there are enough.
    chosen = data.take(data.sample_indices(settings["train"] + settings["tune"] + settings["test"], seed))
    fitting, test = chosen.split(settings["test"] / len(chosen), seed)
    training, tuning = fitting.split(settings["tune"] / len(fitting), seed)
    assert data.hierarchy is not None
    tree = Tree.from_nested(data.hierarchy, class_names=data.class_names)
    classifier = Classifier(
        "mlp",
        smoothing=smoothing_of(tree, alpha=settings["alpha"], decay=settings["decay"]),
        max_epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        seed=seed,
        device="cpu",
    )
    classes = np.arange(data.num_classes)
    classifier.fit(training.standardised(training).features, training.labels, classes=classes)
    tuning_logits = classifier.logits(tuning.standardised(training).features)
    temperature = fit_temperature(tuning_logits, torch.from_numpy(tuning.labels))
    logits, labels = classifier.logits(test.standardised(training).features), torch.from_numpy(test.labels)
    plain = classification_summary(logits, labels, distances=tree_distances(tree))
    scaled = classification_summary(logits, labels, temperature=temperature)
    more = {"scaled_nll": scaled["nll"], "scaled_ece": scaled["ece"], "temperature": scaled["temperature"]}
    sizes = {"rows": [len(training), len(tuning), len(test)]}
    return {**plain, **more, **sizes}


def differences(arms: dict[str, list[Result]], measure: str, one: str, other: str) -> list[float]:
    """Of two arms, seed by seed."""
    return [a[measure] - b[measure] for a, b in zip(arms[one], arms[other], strict=True)]


def planned_pairs() -> list[tuple[str, str]]:
    """Pairs of arms: flat and none, hierarchical and flat of the same mass."""
    pairs = [("flat 0.1", "none"), ("flat 0.3", "none")]
    pairs += [(arm, f"flat {settings['alpha']}") for arm, settings in ARMS.items() if arm.startswith("hierarchical")]
    return [*pairs, ("Boltzmann, decay 1", "none")]


def tables(arms: dict[str, list[Result]]) -> list[str]:
    """The tables of one data set."""
    lines = [*_head("arm")]
    for arm, runs in arms.items():
        cells = [in_words(interquartile_mean_interval([run[name] for run in runs]), ".3f") for name in MEASURES]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    lines += ["", *_head("difference")]
    lines += [_difference_row(arms, one, other) for one, other in planned_pairs()]
    lines += ["", "Not planned, added after the runs:", "", *_head("difference")]
    lines += [_difference_row(arms, arm, "none") for arm in arms if arm.startswith("hierarchical")]
    return [*lines, ""]


def _head(first: str) -> tuple[str, str]:
    return f"| {first} | {' | '.join(MEASURES.values())} |", "|---|" + "---:|" * len(MEASURES)


def _difference_row(arms: dict[str, list[Result]], one: str, other: str) -> str:
    cells = []
    for name in MEASURES:
        interval = interquartile_mean_interval(differences(arms, name, one, other))
        words = in_words(interval, "+.3f")
        cells.append(f"**{words}**" if interval.low > 0 or interval.high < 0 else words)
    return f"| {one} less {other} | {' | '.join(cells)} |"


def colour_of(arm: str) -> str:
    """One colour a kind of smoothing."""
    return next(colour for kind, colour in COLOURS.items() if arm.startswith(kind) or arm.endswith(kind))


def chart(path: Path, by_data: dict[str, dict[str, list[Result]]]) -> None:
    """Draw the interquartile mean and interval of each arm: a row a data set, a column a measure."""
    shown = ("accuracy", "mistake_severity", "distance_at_5", "nll", "ece", "scaled_ece")
    with mpl.rc_context({**STYLE, "axes.titlepad": 8, "axes.titlesize": 10.5, "font.size": 9.5}):
        figure = Figure(figsize=(16, 4.2 * len(by_data)), dpi=110, layout="constrained")
        figure.suptitle("Smoothing along a taxonomy: interquartile mean over seeds, 95 % bootstrap interval")
        grid = figure.subplots(len(by_data), len(shown), sharey=True, squeeze=False)
        grid[0][0].invert_yaxis()  # for all: the first arm on top
        for row, (name, arms) in zip(grid, by_data.items(), strict=True):
            for axes, measure in zip(row, shown, strict=True):
                for place, (arm, runs) in enumerate(arms.items()):
                    found = interquartile_mean_interval([run[measure] for run in runs])
                    colour = colour_of(arm)
                    axes.plot([found.low, found.high], [place, place], color=colour, linewidth=2.5)
                    axes.plot([found.estimate], [place], marker="o", color=colour, markersize=7)
                axes.set_yticks(range(len(arms)), list(arms))
                axes.set_title(f"{name}: {MEASURES[measure]}")
                axes.xaxis.set_major_locator(MaxNLocator(4))
        save_figure(path, figure)


def main(args: Args) -> None:
    """Run it and write the summary."""
    runs, summary = results_folder(args, "hierarchy")
    seeds = range(3) if args.small else range(10)
    small = {"train": 100, "tune": 100, "test": 100, "epochs": 3}
    jobs = [
        Job(
            f"{data}_{number}_{seed}",
            {"arm": arm, "seed": seed, "data": data, **fixed, **(small if args.small else {}), **settings},
        )
        for data, fixed in DATA.items()
        for seed in seeds
        for number, (arm, settings) in enumerate(ARMS.items())
    ]
    results = run_jobs(jobs, train, folder=runs, workers=args.workers)
    by_data = {}
    lines = ["# Making better mistakes: smoothing along a taxonomy\n"]
    lines.append(f"{(__doc__ or '').partition(chr(10) + chr(10))[2].strip()}\n")
    lines.append("Differences whose interval leaves out 0 are in bold; there are many, so that some would by chance.\n")
    for name in DATA:
        mine = [place for place, job in enumerate(jobs) if job.settings["data"] == name]
        arms = by_arm([jobs[place] for place in mine], [results[place] for place in mine])
        by_data[name] = arms
        data = load_labelled(name)
        assert data.hierarchy is not None
        mass = implied_alpha(
            Tree.from_nested(data.hierarchy, class_names=data.class_names).kernel(1.0, include_label=True)
        )
        lines.append(f"## {name}\n")
        lines.append(
            f"{data.num_classes} classes. The Boltzmann form takes {float(mass.min()):.2f} to {float(mass.max()):.2f} "
            "off the label, by how many relatives it has.\n"
        )
        lines += tables(arms)
    lines.append("Reproduce: `make study-hierarchy`. Figure: [hierarchy.png](hierarchy.png).\n")
    write_study(summary, "hierarchy", report="\n".join(lines), data={"arms": ARMS, "data": DATA, "runs": by_data})
    chart(summary / "hierarchy.png", by_data)
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(run_command("study hierarchy", Args, main))
