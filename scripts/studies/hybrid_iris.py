"""Study: a hybrid species as a mixture of its parents, on Fisher's iris.

Fixed before running: Fisher (1936) takes *Iris versicolor* for a hybrid of *setosa* and *virginica*, two thirds of the
way to *virginica*. 10 seeds, each with its own split: of the 50 specimens of a species 35 are trained on and 15 held
out; features standardised by the parents' training rows, which every arm has. The network ("mlp", learning rate 0.001,
batches of 16, 200 epochs) has two outputs, *setosa* and *virginica*, except in the last arm. Arms: the two parents
alone, with hard labels; the same smoothed by 0.1; parents and hybrids, the hybrids labelled
`mixture([setosa, virginica], weights)` with weights (1/3, 2/3); the same with (1/2, 1/2); three classes with hard
labels, whose share of *virginica* is p(virginica) + 2/3 p(versicolor).

Reported, of the held-out specimens: the share of *virginica* that is predicted for hybrids, and how much it varies
between them; how sure the network is of the more probable parent where the plant is a hybrid; each pure species' share
of itself; the mean distance of the predicted share from Fisher's (0, 2/3, 1); and how many of all specimens are
classified right by the nearest of the shares 0, 2/3, 1 (0, 1/2, 1 where the hybrids were labelled so; by the most
probable class where there are three). Also, without a network: where the linear discriminant of the parents puts the
mean hybrid, from 0 (the mean *setosa*) to 1 (the mean *virginica*).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from rlsmooth.audits import Interval, interquartile_mean_interval
from rlsmooth.data import LabelledData, load_labelled
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.figures.page import BLUE, GREEN, ORANGE, STYLE, save_figure
from rlsmooth.scripts.studies.runner import Args, Job, Result, by_arm, in_words, results_folder, run_jobs, write_study
from rlsmooth.targets import Target, mixture, one_hot, uniform
from rlsmooth.training import Classifier

SETOSA, VERSICOLOR, VIRGINICA = range(3)  # as in the data
SPECIES = ("setosa", "versicolor", "virginica")
FISHER = (0.0, 2 / 3, 1.0)  # each species' share of virginica
ARMS: dict[str, dict[str, Any]] = {
    "parents, hard": {"hybrid": None, "alpha": 0.0},
    "parents, smoothed by 0.1": {"hybrid": None, "alpha": 0.1},
    "hybrids (1/3, 2/3)": {"hybrid": 2 / 3, "alpha": 0.0},
    "hybrids (1/2, 1/2)": {"hybrid": 1 / 2, "alpha": 0.0},
    "three classes": {"hybrid": "class", "alpha": 0.0},
}
MEASURES = {
    "hybrid_share": "hybrids: share of *virginica*",
    "hybrid_spread": "its standard deviation",
    "hybrid_confidence": "hybrids: surest of one parent",
    "setosa_share": "*setosa*: share of itself",
    "virginica_share": "*virginica*: share of itself",
    "error": "distance from Fisher's share",
    "told": "species classified right",
}


def target_of(labels: torch.Tensor, *, hybrid: float | str | None, alpha: float) -> Target:
    """What an arm trains on. With two outputs, setosa is 0 and virginica 1."""
    if hybrid == "class":
        return one_hot(labels, 3)
    if hybrid is None:
        return uniform((labels == VIRGINICA).long(), 2, alpha)
    share = torch.tensor([0.0, float(hybrid), 1.0], dtype=torch.float64)[labels]
    weights = torch.stack((1 - share, share), -1)
    return mixture(torch.tensor([0, 1]).expand(len(labels), 2), weights, 2)


def levels_of(hybrid: float | str | None) -> tuple[float, ...]:
    """The shares of virginica that a network without error would predict for the three species."""
    return (0.0, hybrid, 1.0) if isinstance(hybrid, float) else FISHER


def discriminant_place(training: LabelledData) -> float:
    """Where the mean versicolor lies along the linear discriminant of the parents, from setosa (0) to virginica (1)."""
    groups = [training.features[training.labels == species].astype(np.float64) for species in range(3)]
    means = [group.mean(0) for group in groups]
    pooled = np.cov(groups[SETOSA], rowvar=False) + np.cov(groups[VIRGINICA], rowvar=False)
    direction = np.linalg.solve(pooled, means[VIRGINICA] - means[SETOSA])
    setosa, versicolor, virginica = (float(mean @ direction) for mean in means)
    return (versicolor - setosa) / (virginica - setosa)


def train(settings: dict[str, Any]) -> Result:
    """One run."""
    seed, hybrid, alpha = settings["seed"], settings["hybrid"], settings["alpha"]
    training, test = load_labelled("iris").split(0.3, seed=seed)
    parents = training.take(training.labels != VERSICOLOR)
    place = discriminant_place(training)
    test, training = test.standardised(parents), training.standardised(parents)
    if hybrid is None:
        training = training.take(training.labels != VERSICOLOR)
    labels = torch.from_numpy(training.labels)
    # The classifier's labels only say what a hit is: the target is what it learns.
    hits = training.labels if hybrid == "class" else (training.labels != SETOSA).astype(np.int64)
    classifier = Classifier("mlp", batch_size=16, max_epochs=settings["epochs"], seed=seed, device="cpu")
    classifier.fit(training.features, hits, target=target_of(labels, hybrid=hybrid, alpha=alpha))
    probabilities = classifier.predict_proba(test.features)
    if hybrid == "class":
        shares = probabilities @ np.asarray(FISHER)
        told = float((probabilities.argmax(-1) == test.labels).mean())
    else:
        shares = probabilities[:, 1]
        nearest = np.abs(shares[:, None] - np.asarray(levels_of(hybrid))).argmin(-1)
        told = float((nearest == test.labels).mean())
    by_species = [shares[test.labels == species] for species in range(3)]
    hybrids = probabilities[test.labels == VERSICOLOR]
    if hybrid == "class":  # of the two parents alone
        hybrids = hybrids[:, [SETOSA, VIRGINICA]] / hybrids[:, [SETOSA, VIRGINICA]].sum(-1, keepdims=True)
    return {
        "hybrid_share": float(by_species[VERSICOLOR].mean()),
        "hybrid_spread": float(by_species[VERSICOLOR].std()),
        "hybrid_confidence": float(hybrids.max(-1).mean()),
        "setosa_share": float(1 - by_species[SETOSA].mean()),
        "virginica_share": float(by_species[VIRGINICA].mean()),
        "error": float(np.abs(shares - np.asarray(FISHER)[test.labels]).mean()),
        "told": told,
        "discriminant": place,
        "shares": [group.tolist() for group in by_species],
    }


def chart(path: Path, arms: dict[str, list[Result]]) -> None:
    """Draw the predicted share of every held-out specimen, one panel an arm."""
    rng = np.random.default_rng(0)
    with mpl.rc_context({**STYLE, "axes.titlepad": 8, "axes.titlesize": 12}):
        figure = Figure(figsize=(3.3 * len(arms), 4.6), dpi=120, layout="constrained")
        figure.suptitle("Iris: share of virginica predicted for held-out specimens, all seeds")
        for axes, (arm, runs) in zip(figure.subplots(1, len(arms), sharey=True), arms.items(), strict=True):
            levels = levels_of(ARMS[arm]["hybrid"])
            for species, colour in enumerate((BLUE, GREEN, ORANGE)):
                values = np.concatenate([run["shares"][species] for run in runs])
                places = species + rng.uniform(-0.3, 0.3, len(values))
                axes.scatter(places, values, s=9, color=colour, alpha=0.45, linewidths=0)
                axes.hlines(levels[species], species - 0.42, species + 0.42, color="#222222", linewidth=1.4)
            trained = ARMS[arm]["hybrid"] is not None
            names = ["setosa", "versicolor" if trained else "versicolor\n(unseen)", "virginica"]
            axes.set_xticks(range(3), names, fontsize=9.5)
            axes.set(title=arm, ylim=(-0.04, 1.04), xlim=(-0.6, 2.6))
        figure.axes[0].set_ylabel("share of virginica (line: expected)")
        save_figure(path, figure)


def main(args: Args) -> None:
    """Run it and write the summary."""
    runs, summary = results_folder(args, "hybrid_iris")
    seeds, epochs = (range(3), 20) if args.small else (range(10), 200)
    jobs = [
        Job(f"{number}_{seed}", {"arm": arm, "seed": seed, "epochs": epochs, **settings})
        for seed in seeds
        for number, (arm, settings) in enumerate(ARMS.items())
    ]
    results = run_jobs(jobs, train, folder=runs, workers=args.workers)
    arms = by_arm(jobs, results)
    intervals: dict[str, dict[str, Interval]] = {
        arm: {measure: interquartile_mean_interval([run[measure] for run in found]) for measure in MEASURES}
        for arm, found in arms.items()
    }
    place = interquartile_mean_interval([run["discriminant"] for run in next(iter(arms.values()))])
    lines = [
        "# Hybrid species: versicolor between its parents\n",
        f"{(__doc__ or '').partition(chr(10) + chr(10))[2].strip()}\n",
        f"The linear discriminant of the parents puts the mean hybrid at {in_words(place, '.2f')}; Fisher's theory "
        "says 0.67. Interquartile means over seeds with 95 % bootstrap intervals:\n",
        f"| arm | {' | '.join(MEASURES.values())} |",
        "|---|" + "---:|" * len(MEASURES),
    ]
    for arm, found in intervals.items():
        lines.append(f"| {arm} | {' | '.join(in_words(found[measure], '.2f') for measure in MEASURES)} |")
    lines.append(
        "\nWhere there are three classes, *surest of one parent* is of p(setosa) and p(virginica), brought to a sum of "
        "1.\n\nReproduce: `make study-hybrid-iris`. Figure: [hybrid_iris.png](hybrid_iris.png).\n"
    )
    data = {"arms": ARMS, "epochs": epochs, "fisher": FISHER, "runs": arms}
    write_study(summary, "hybrid_iris", report="\n".join(lines), data=data)
    chart(summary / "hybrid_iris.png", arms)
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(run_command("study hybrid-iris", Args, main))
