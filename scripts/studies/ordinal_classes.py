"""Study: classification on ordered labels: does spreading mass over neighbouring grades teach their order?

Fixed before running. Data: three sets of real ordered labels: `marriages` (601 answers, 5 grades), `poverty` (5,381
answers, 3 grades) and `diamonds` (3,000 of 53,940 by the seed, 5 grades). Each seed has its own stratified split, 30 %
to test; features standardised by the training samples. Model: the MLP with two hidden layers of 64, Adam at 0.001,
batches of 64, 60 epochs, no early stopping. Arms: hard labels; flat smoothing of alpha 0.1 over all classes; and alpha
0.1 over the neighbours by each of four schemes: adjacent, binomial, poisson, exponential. Seeds 0 to 9; arms of one
seed share split, initial weights and order of the data. The least effect that counts: 0.005 in the mean absolute error.

Reported on the test samples: accuracy, mean absolute error of the grade (MAE), ranked probability score (RPS), negative
log-likelihood (NLL, nats). Interquartile means over seeds with 95 % bootstrap intervals; differences are seed by seed,
of each scheme against FLAT smoothing of the same mass, and of flat smoothing against hard labels.
"""

from __future__ import annotations

import sys
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from rlsmooth.audits import classification_summary, interquartile_mean_interval
from rlsmooth.data import load_labelled
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.figures.page import BLUE, GREY, INK, STYLE, save_figure
from rlsmooth.scripts.studies.runner import Args, Job, Result, by_arm, in_words, results_folder, run_jobs, write_study
from rlsmooth.targets import Smoothing
from rlsmooth.training import Classifier

DATA = {"marriages": None, "poverty": None, "diamonds": 3000}
SCHEMES = ("adjacent", "binomial", "poisson", "exponential")
ARMS = ("hard", "flat", *SCHEMES)
ALPHA = 0.1
MEASURES = {"accuracy": "accuracy", "mae": "MAE", "rps": "RPS", "nll": "NLL"}


def train(settings: dict[str, Any]) -> Result:
    """One run."""
    seed, scheme = settings["seed"], settings["scheme"]
    data = load_labelled(settings["data"])
    if settings["samples"] is not None:
        data = data.take(data.sample_indices(settings["samples"], seed))
    training, test = data.split(0.3, seed=seed)
    test, training = test.standardised(training), training.standardised()
    smoothing = Smoothing(0.0 if scheme == "hard" else ALPHA, "uniform" if scheme in ("hard", "flat") else scheme)
    classifier = Classifier("mlp", smoothing=smoothing, max_epochs=settings["epochs"], seed=seed, device="cpu")
    classifier.fit(training.features, training.labels, classes=np.arange(data.num_classes))
    summary = classification_summary(classifier.logits(test.features), torch.from_numpy(test.labels), ordered=True)
    return {name: summary[name] for name in MEASURES}


def differences(arms: dict[str, list[Result]], data: str, one: str, other: str) -> dict[str, list[float]]:
    """Seed by seed, arm `one` less arm `other`, of each measure."""
    pairs = list(zip(arms[f"{data}, {one}"], arms[f"{data}, {other}"], strict=True))
    return {name: [a[name] - b[name] for a, b in pairs] for name in MEASURES}


def tables(arms: dict[str, list[Result]], data: str) -> list[str]:
    """Scores and differences of one data set."""
    head, rule = " | ".join(MEASURES.values()), "---:|" * len(MEASURES)
    lines = [f"| targets | {head} |", f"|---|{rule}"]
    for name in ARMS:
        runs = arms[f"{data}, {name}"]
        cells = [in_words(interquartile_mean_interval([run[tag] for run in runs]), ".3f") for tag in MEASURES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", f"| difference | {head} |", f"|---|{rule}"]
    for one, other in [("flat", "hard"), *((scheme, "flat") for scheme in SCHEMES)]:
        found = [interquartile_mean_interval(values) for values in differences(arms, data, one, other).values()]
        words = [in_words(interval, "+.3f") for interval in found]
        cells = [f"**{w}**" if i.low > 0 or i.high < 0 else w for w, i in zip(words, found, strict=True)]
        lines.append(f"| {one} less {other} | {' | '.join(cells)} |")
    return [*lines, ""]


def main(args: Args) -> None:
    """Run it and write the summary."""
    runs, summary = results_folder(args, "ordinal_classes")
    seeds, epochs = (range(3), 2) if args.small else (range(10), 60)
    jobs = [
        Job(
            f"{data}_{scheme}_{seed}",
            {"arm": f"{data}, {scheme}", "data": data, "samples": samples, "scheme": scheme, "seed": seed}
            | {"epochs": epochs},
        )
        for seed in seeds
        for data, samples in DATA.items()
        for scheme in ARMS
    ]
    arms = by_arm(jobs, run_jobs(jobs, train, folder=runs, workers=args.workers))
    lines = ["# Ordered classes: flat smoothing and smoothing over neighbours\n"]
    lines.append(f"{(__doc__ or '').partition(chr(10) + chr(10))[2].strip()}\n")
    lines.append("Differences whose interval leaves out 0 are in bold; there are many, so that some would by chance.\n")
    for data in DATA:
        lines += [f"## {data.capitalize()}\n", *tables(arms, data)]
    lines.append("Reproduce: `make study-ordinal-classes`. Figure: [ordinal_classes.png](ordinal_classes.png).\n")
    write_study(summary, "ordinal_classes", report="\n".join(lines), data={"alpha": ALPHA, "runs": arms})
    with mpl.rc_context({**STYLE, "axes.titlepad": 8}):
        figure = Figure(figsize=(15, 5), dpi=100, layout="constrained")
        figure.suptitle(f"Mean absolute error of the grade, less that of flat smoothing; {len(seeds)} seeds, 95 %")
        for axes, data in zip(figure.subplots(1, len(DATA)), DATA, strict=True):
            for place, name in enumerate(("hard", *SCHEMES)):
                found = interquartile_mean_interval(differences(arms, data, name, "flat")["mae"])
                colour = GREY if name == "hard" else BLUE
                axes.errorbar(place, found.estimate, [[found.estimate - found.low], [found.high - found.estimate]],
                              fmt="o", color=colour, capsize=4)  # fmt: skip
            axes.axhline(0, color=INK, linewidth=1)
            axes.set_xticks(range(len(SCHEMES) + 1), ("hard", *SCHEMES), rotation=20)
            axes.set_title(f"{data} (below 0: better)")
        save_figure(summary / "ordinal_classes.png", figure)
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(run_command("study ordinal_classes", Args, main))
