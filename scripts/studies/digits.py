"""Study: digits, smoothed and not, with and without wrong labels, and temperature scaling beside each.

Fixed before running. Data: the 1,797 digits of scikit-learn, pixels divided by 16; each seed has its own stratified
split into 1,078 rows to train on, 360 to fit the temperature on and 359 to test. With label noise each training label
is replaced by one of the other nine with probability 0.2; the other two parts keep their true labels, so that
temperature scaling has the best case: a clean set of its own. Model: the MLP with two hidden layers of 64, Adam at
0.001, batches of 64, 60 epochs, no early stopping. Arms: alpha 0, 0.05, 0.1 and 0.2, spread over all classes. Seeds 0
to 9; arms of one seed share split, noise, initial weights and order of the data. Nothing is chosen: all arms are shown.

Reported on the test rows, each as trained and with the logits divided by the fitted temperature: accuracy, negative
log-likelihood (NLL, nats), Brier score, expected calibration error of 15 bins of equal width (ECE) and of equal counts
(adaptive ECE), area under the risk-coverage curve (AURC), and mean confidence less accuracy (gap; below 0 is
underconfident). Beside them the mean logit margin over the training rows and their given labels, and the margin that
minimises the loss, log(1 + K (1 - alpha) / alpha). Interquartile means over seeds with 95 % bootstrap intervals;
differences are seed by seed. Those of scaled against scaled were added after the first look at the results.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlsmooth.audits import (
    classification_summary,
    fit_temperature,
    interquartile_mean_interval,
    mean_logit_margin,
    optimal_margin,
    reliability_bins,
)
from rlsmooth.data import load_labelled
from rlsmooth.losses import log_probabilities
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.figures.page import BLUE, GREEN, GREY, INK, ORANGE, STYLE, save_figure
from rlsmooth.scripts.studies.runner import Args, Job, Result, by_arm, in_words, results_folder, run_jobs, write_study
from rlsmooth.targets import uniform
from rlsmooth.training import Classifier

ALPHAS = (0.0, 0.05, 0.1, 0.2)
NOISES = (0.0, 0.2)
CLASSES = 10
DRAWN_BINS = 10
MEASURES = {
    "accuracy": "accuracy",
    "nll": "NLL",
    "brier": "Brier",
    "ece": "ECE",
    "adaptive_ece": "adaptive ECE",
    "aurc": "AURC",
    "confidence_gap": "gap",
}
KINDS = {"plain": "as trained", "scaled": "scaled"}
COLOURS = dict(zip(ALPHAS, (GREY, ORANGE, BLUE, GREEN), strict=True))


def arm_of(alpha: float, noise: float) -> str:
    """An arm's name."""
    return f"alpha {alpha:g}, noise {noise:g}"


def train(settings: dict[str, Any]) -> Result:
    """One run."""
    seed = settings["seed"]
    fitting, test = load_labelled("digits").split(0.2, seed=seed)
    training, tuning = fitting.split(0.25, seed=seed)
    if settings["noise"]:
        training = training.with_label_noise(settings["noise"], seed=seed)
    classifier = Classifier(
        "mlp", smoothing=settings["alpha"], max_epochs=settings["epochs"], seed=seed, device="cpu"
    ).fit(training.features / 16, training.labels)
    temperature = fit_temperature(classifier.logits(tuning.features / 16), torch.from_numpy(tuning.labels))
    logits, labels = classifier.logits(test.features / 16), torch.from_numpy(test.labels)
    probabilities = log_probabilities(logits).exp()
    confidences, predictions = probabilities.max(-1)
    bins = reliability_bins(confidences, predictions == labels, num_bins=DRAWN_BINS)
    given = mean_logit_margin(classifier.logits(training.features / 16), torch.from_numpy(training.labels))
    return {
        "plain": classification_summary(logits, labels),
        "scaled": classification_summary(logits, labels, temperature=temperature),
        "temperature": float(temperature),
        "training_margin": float(given),
        "rows": [len(training), len(tuning), len(test)],
        "bins": {
            "counts": bins.counts.tolist(),
            "confidence": bins.mean_confidence.nan_to_num().tolist(),
            "accuracy": bins.accuracy.nan_to_num().tolist(),
        },
    }


def best_margin(alpha: float) -> float:
    """The margin that minimises the loss, in nats: without smoothing there is none."""
    return float(optimal_margin(uniform(torch.tensor([0]), CLASSES, alpha=alpha)))


def scores(runs: list[Result], kind: str, measure: str) -> list[float]:
    """One measure of each run, `"plain"` or `"scaled"`."""
    return [run[kind][measure] for run in runs]


def tables(arms: dict[str, list[Result]], noise: float) -> list[str]:
    """Scores, margins and differences of one kind of data."""
    head, rule = " | ".join(MEASURES.values()), "|---|---|" + "---:|" * len(MEASURES)
    lines = [f"| alpha | | {head} |", rule]
    for alpha in ALPHAS:
        runs = arms[arm_of(alpha, noise)]
        for kind, words in KINDS.items():
            cells = [in_words(interquartile_mean_interval(scores(runs, kind, name)), ".3f") for name in MEASURES]
            lines.append(f"| {alpha:g} | {words} | {' | '.join(cells)} |")
    lines += [
        "",
        "| alpha | temperature | margin on the training rows | margin of the optimum |",
        "|---|---:|---:|---:|",
    ]
    for alpha in ALPHAS:
        runs = arms[arm_of(alpha, noise)]
        temperature = interquartile_mean_interval([run["temperature"] for run in runs])
        margin = interquartile_mean_interval([run["training_margin"] for run in runs])
        goal = best_margin(alpha)
        shown = "none" if goal == float("inf") else f"{goal:.2f}"
        lines.append(f"| {alpha:g} | {in_words(temperature, '.2f')} | {in_words(margin, '.2f')} | {shown} |")
    lines += ["", f"| difference | | {head} |", rule]
    for ours, theirs in (("plain", "plain"), ("plain", "scaled"), ("scaled", "scaled")):
        for alpha in ALPHAS[1:]:
            one, other = arms[arm_of(alpha, noise)], arms[arm_of(0.0, noise)]
            cells = [_difference(scores(one, ours, name), scores(other, theirs, name)) for name in MEASURES]
            lines.append(f"| alpha {alpha:g} {KINDS[ours]} | less alpha 0 {KINDS[theirs]} | {' | '.join(cells)} |")
    return [*lines, ""]


def _difference(ours: list[float], theirs: list[float]) -> str:
    found = interquartile_mean_interval(np.subtract(ours, theirs))
    words = in_words(found, "+.3f")
    return f"**{words}**" if found.low > 0 or found.high < 0 else words


def _reliability(axes: Axes, arms: dict[str, list[Result]], noise: float) -> None:
    """Accuracy against confidence, the seeds' test rows together; the larger the point, the more rows it has."""
    axes.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1)
    for alpha in ALPHAS:
        bins = [run["bins"] for run in arms[arm_of(alpha, noise)]]
        counts = np.array([one["counts"] for one in bins])
        total = counts.sum(0)
        filled = total >= 20  # fewer rows say nothing
        places, heights = (
            (counts * np.array([one[name] for one in bins])).sum(0)[filled] / total[filled]
            for name in ("confidence", "accuracy")
        )
        axes.plot(places, heights, color=COLOURS[alpha], label=f"alpha {alpha:g}")
        axes.scatter(places, heights, s=200 * np.sqrt(total[filled] / total.sum()), color=COLOURS[alpha], zorder=3)
    axes.set(xlim=(0, 1), ylim=(0, 1.03), xlabel="confidence (larger point: more rows)", ylabel="accuracy")
    axes.set_title(f"Reliability as trained, {_percent(noise)}")
    axes.legend(frameon=False, loc="upper left")


def _bars(axes: Axes, arms: dict[str, list[Result]], measure: str) -> None:
    """A bar (or a point) for each arm as trained, and a hollow one beside it after temperature scaling."""
    for group, noise in enumerate(NOISES):
        for place, alpha in enumerate(ALPHAS):
            for side, kind in enumerate(KINDS):
                found = interquartile_mean_interval(scores(arms[arm_of(alpha, noise)], kind, measure))
                where = group * 10 + place * 2.2 + side
                colour, fill = COLOURS[alpha], COLOURS[alpha] if side == 0 else "white"
                axes.plot([where, where], [found.low, found.high], color=INK, linewidth=1.5)
                if measure == "accuracy":  # far from 0, where a bar has to begin
                    axes.plot(where, found.estimate, "o", markersize=9, color=colour, markerfacecolor=fill)
                else:
                    axes.bar(where, found.estimate, 0.9, color=fill, edgecolor=colour, linewidth=2)
    axes.set_xticks([group * 10 + 3.8 for group in range(len(NOISES))], [_percent(noise) for noise in NOISES])
    axes.set_title(f"{MEASURES[measure]} (full: as trained, hollow: scaled)")
    axes.grid(axis="x", visible=False)


def _percent(noise: float) -> str:
    return "clean labels" if noise == 0 else f"{noise:.0%} of the labels wrong"


def chart(path: Path, arms: dict[str, list[Result]]) -> None:
    """Reliability diagrams above, scores with intervals below."""
    with mpl.rc_context({**STYLE, "axes.titlepad": 8, "axes.titlesize": 13}):
        figure = Figure(figsize=(16, 10), dpi=100, layout="constrained")
        seeds = len(next(iter(arms.values())))
        figure.suptitle(f"Digits, MLP: label smoothing and temperature scaling, {seeds} seeds, 95 % intervals")
        grid = figure.add_gridspec(2, 6, height_ratios=(1.25, 1))
        for place, noise in enumerate(NOISES):
            _reliability(figure.add_subplot(grid[0, 3 * place : 3 * place + 3]), arms, noise)
        for place, measure in enumerate(("accuracy", "nll", "ece")):
            _bars(figure.add_subplot(grid[1, 2 * place : 2 * place + 2]), arms, measure)
        save_figure(path, figure)


def main(args: Args) -> None:
    """Run it and write the summary."""
    runs, summary = results_folder(args, "digits")
    seeds, epochs = (range(3), 2) if args.small else (range(10), 60)
    jobs = [
        Job(
            f"{arm_of(alpha, noise).replace(', ', '_').replace(' ', '_')}_{seed}",
            {"arm": arm_of(alpha, noise), "alpha": alpha, "noise": noise, "seed": seed, "epochs": epochs},
        )
        for seed in seeds
        for noise in NOISES
        for alpha in ALPHAS
    ]
    results = run_jobs(jobs, train, folder=runs, workers=args.workers)
    arms = by_arm(jobs, results)
    lines = ["# Digits: label smoothing, label noise and temperature scaling\n"]
    lines.append(f"{(__doc__ or '').partition(chr(10) + chr(10))[2].strip()}\n")
    lines.append("Differences whose interval leaves out 0 are in bold; there are many, so that some would by chance.\n")
    for noise in NOISES:
        lines += [f"## {_percent(noise).capitalize()}\n", *tables(arms, noise)]
    lines.append("Reproduce: `make study-digits`. Figure: [digits.png](digits.png).\n")
    write_study(summary, "digits", report="\n".join(lines), data={"alphas": ALPHAS, "noises": NOISES, "runs": arms})
    chart(summary / "digits.png", arms)
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(run_command("study digits", Args, main))
