"""Study: what to make of pseudo-labels: digits with 50 labels, 10 seeds.

Fixed before running: the 1,797 digits of scikit-learn, a quarter of them (stratified, by the seed) for the test; of the
other 1,348 rows 50 keep their label (stratified, by the seed). The student is two hidden layers of 64, Adam at 0.01,
batches of 64, 30 epochs, trained afresh in each round from the seed's initial weights; given labels are never smoothed,
so that arms differ in their pseudo-labels alone. These settings come from supervised runs with seeds 100 to 102.
Self-training labels the 220 most confident rows in each of 6 rounds (`criterion="k_best"`), after which all are
labelled: all arms then have as many pseudo-labels. Arms: hard, smoothed by 0.1, confidence-adaptive, soft, and soft
sharpened by a temperature of 0.5; and the first three again with the default threshold of 0.75, at most 10 rounds,
where an arm also decides by its confidence what it labels. Bounds: the 50 labels alone, and all 1,348. Seeds 0 to 9.

Reported: accuracy and expected calibration error (15 bins) on the test; the share of all pseudo-labels that are right
at the end; of the wrong ones (confirmation bias) their mean confidence when they were made, and how much higher their
probability is under the student that was trained on them: the share of them that grew, and the mean. A cautious teacher
leaves more room to grow, so the growth alone does not rank the arms. Interquartile means over seeds with 95 % bootstrap
intervals; differences are to *hard* under the same rule of selection, seed by seed, since arms share rows and weights.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlsmooth.audits import (
    calibration_error,
    interquartile_mean_band,
    interquartile_mean_interval,
)
from rlsmooth.data import load_labelled
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.figures.page import BLUE, GREEN, GREY, ORANGE, RED, STYLE, save_figure
from rlsmooth.scripts.studies.runner import Args, Job, Result, by_arm, in_words, results_folder, run_jobs, write_study
from rlsmooth.training import Classifier, SelfTraining

ALPHA = 0.1
CLASSES = 10
LABELS = 50
K_BEST: dict[str, Any] = {"criterion": "k_best", "k_best": 220, "max_iter": 6}
THRESHOLD: dict[str, Any] = {"threshold": 0.75, "max_iter": 10}
BOUNDS = ("50 labels alone", "all labels")
ARMS: dict[str, dict[str, Any]] = {
    "hard": {**K_BEST},
    "smoothed 0.1": {**K_BEST, "smoothing": ALPHA},
    "confidence-adaptive": {**K_BEST, "smoothing": "confidence_adaptive"},
    "soft": {**K_BEST, "labels": "soft"},
    "soft, temperature 0.5": {**K_BEST, "labels": "soft", "temperature": 0.5},
    "hard, threshold": {**THRESHOLD},
    "smoothed 0.1, threshold": {**THRESHOLD, "smoothing": ALPHA},
    "confidence-adaptive, threshold": {**THRESHOLD, "smoothing": "confidence_adaptive"},
}
DRAWN = {"hard": GREY, "smoothed 0.1": BLUE, "confidence-adaptive": RED, "soft": GREEN, "soft, temperature 0.5": ORANGE}


def train(settings: dict[str, Any]) -> Result:
    """One run."""
    seed, arm = settings["seed"], settings["arm"]
    training, test = load_labelled("digits").split(0.25, seed=seed)
    features, truth = training.features / 16, training.labels
    given = np.full_like(truth, -1)
    kept = training.sample_indices(LABELS, seed=seed)
    given[kept] = truth[kept]
    student = Classifier(
        "mlp",
        smoothing=0.0,
        learning_rate=0.01,
        batch_size=64,
        max_epochs=settings["epochs"],
        seed=seed,
        device="cpu",
    )
    if arm in BOUNDS:
        rows = given >= 0 if arm == BOUNDS[0] else np.ones(len(truth), dtype=bool)
        return score(student.fit(features[rows], truth[rows]), test.features / 16, test.labels)
    model = SelfTraining(student, **settings["arguments"]).fit(features, given, true_labels=truth)
    last = model.rounds_[-1]
    assert last.confirmation_bias is not None
    return {
        **score(model, test.features / 16, test.labels),
        "pseudo_label_accuracy": last.pseudo_label_accuracy,
        "share_grown": last.confirmation_bias.share_grown,
        "mean_growth": last.confirmation_bias.mean_growth,
        "wrong_confidence": last.confirmation_bias.mean_confidence,
        "termination_condition": model.termination_condition_,
        "rounds": [dataclasses.asdict(report) for report in model.rounds_],
    }


def score(model: Classifier | SelfTraining, features: Any, labels: Any) -> Result:
    """Accuracy and calibration on the test."""
    confidences, places = torch.from_numpy(model.predict_proba(features)).max(-1)
    hits = places == torch.from_numpy(labels)
    return {"accuracy": float(hits.double().mean()), "ece": float(calibration_error(confidences, hits))}


def main(args: Args) -> None:
    """Run it and write the summary."""
    runs, summary = results_folder(args, "self_training")
    seeds, epochs = (range(3), 3) if args.small else (range(10), 30)
    arms: dict[str, dict[str, Any]] = {BOUNDS[0]: {}, **ARMS, BOUNDS[1]: {}}
    jobs = [
        Job(
            f"{arm.replace(', ', '_').replace(' ', '_')}_{seed}",
            {"arm": arm, "seed": seed, "epochs": epochs, "arguments": arguments},
        )
        for seed in seeds
        for arm, arguments in arms.items()
    ]
    found = by_arm(jobs, run_jobs(jobs, train, folder=runs, workers=args.workers))
    lines = [
        "# Self-training on digits with 50 labels\n",
        f"{(__doc__ or '').partition(chr(10) + chr(10))[2].strip()}\n",
        "| pseudo-labels | test accuracy | minus *hard* | ECE | right pseudo-labels | confidence of wrong ones | "
        "share of these that grew | mean growth |",
        "|---|" + "---:|" * 7,
        *(table_row(arm, found) for arm in found),
        f"\n{counts(found)}\n",
        "Reproduce: `make study-self-training`. Figure: [self_training.png](self_training.png).\n",
    ]
    write_study(
        summary,
        "self_training",
        report="\n".join(lines),
        data={
            "arms": ARMS,
            "epochs": epochs,
            "runs": {arm: [without_later_gradients(run) for run in found[arm]] for arm in found},
        },
    )
    draw(summary / "self_training.png", found)
    print("\n".join(lines))


def without_later_gradients(run: Result) -> Result:
    """A run without what nobody draws, and what would be most of the file."""
    if "rounds" not in run:
        return run
    first, *later = run["rounds"]
    return {**run, "rounds": [first, *({**one, "gradients": None} for one in later)]}


def table_row(arm: str, found: Mapping[str, Sequence[Result]]) -> str:
    """One arm's row: interquartile means and intervals."""

    def values(name: str, key: str) -> list[float]:
        return [float(run[key]) for run in found[name] if run.get(key) is not None]

    def cell(key: str, form: str) -> str:
        given = values(arm, key)
        return in_words(interquartile_mean_interval(given), form) if given else ""

    baseline = "hard, threshold" if arm.endswith("threshold") else "hard"
    gap = ""
    if arm != baseline:
        gaps = np.subtract(values(arm, "accuracy"), values(baseline, "accuracy"))
        gap = in_words(interquartile_mean_interval(gaps), "+.3f")
    cells = (
        cell("accuracy", ".3f"),
        gap,
        cell("ece", ".3f"),
        cell("pseudo_label_accuracy", ".3f"),
        cell("wrong_confidence", ".2f"),
        cell("share_grown", ".2f"),
        cell("mean_growth", "+.3f"),
    )
    return f"| {arm} | {' | '.join(cells)} |"


def counts(found: Mapping[str, Sequence[Result]]) -> str:
    """How many rows the arms with a threshold labelled, and in how many rounds."""
    parts = []
    for arm in ARMS:
        if arm.endswith("threshold"):
            labelled = np.mean([run["rounds"][-1]["num_labelled"] - LABELS for run in found[arm]])
            rounds = np.mean([len(run["rounds"]) for run in found[arm]])
            parts.append(f"*{arm}* {labelled:.0f} in {rounds:.1f} rounds")
    return f"Pseudo-labels made, on average over seeds: {'; '.join(parts)}; all other arms 1,298 in 6 rounds."


def draw(path: Path, found: Mapping[str, Sequence[Result]]) -> None:
    """Pseudo-labels and their confirmation by round, and gradients by confidence in the first round."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(19, 5.6), dpi=100, layout="constrained")
        right, growth, gradient = figure.subplots(1, 3)
        for arm, colour in DRAWN.items():
            rounds = [run["rounds"] for run in found[arm]]
            draw_rounds(right, arm, colour, [[one["pseudo_label_accuracy"] for one in run] for run in rounds])
            draw_rounds(growth, arm, colour, [[bias_of(one) for one in run] for run in rounds])
        right.set(title="Right among all pseudo-labels", xlabel="round", ylabel="share")
        growth.set(
            title="Wrong pseudo-labels after training on them", xlabel="round", ylabel="mean growth of confidence"
        )
        growth.axhline(0, color="#888888", linewidth=1, zorder=0)
        draw_gradients(gradient, found)
        for axes in (right, growth):
            axes.set_xticks(range(1, K_BEST["max_iter"] + 1))
        for axes in (right, growth, gradient):
            axes.set_title(axes.get_title(loc="left"), pad=12)
        handles, names = right.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
        save_figure(path, figure)


def bias_of(report: Mapping[str, Any]) -> float:
    """Mean growth of the wrong pseudo-labels; NaN where there are none."""
    value = report["confirmation_bias"]["mean_growth"]
    return math.nan if value is None else float(value)


def draw_rounds(axes: Axes, arm: str, colour: str, curves: Sequence[Sequence[float]]) -> None:
    """Interquartile mean and band by round; a round in which a run has no value is left out."""
    values = np.array(curves, dtype=np.float64)
    places = np.flatnonzero(np.isfinite(values).all(0))
    if not len(places):
        return
    band = interquartile_mean_band(values[:, places], num_resamples=2_000)
    axes.plot(places + 1, band.estimate, color=colour, label=arm, marker="o")
    axes.fill_between(places + 1, band.low, band.high, color=colour, alpha=0.12, linewidth=0)


def draw_gradients(axes: Axes, found: Mapping[str, Sequence[Result]]) -> None:
    """Mean norm by confidence in the first round, whose teacher is the same in all arms; and its closed form."""
    for arm, colour in DRAWN.items():
        bins = [run["rounds"][0]["gradients"] for run in found[arm]]
        weights = np.array([one["counts"] for one in bins], dtype=np.float64)
        total = weights.sum(0)
        filled = total > 0

        def pooled(
            key: str, bins: Sequence[Any] = bins, weights: Any = weights, total: Any = total, filled: Any = filled
        ) -> Any:
            values = np.nan_to_num(np.array([one[key] for one in bins], dtype=np.float64))  # empty bins weigh 0
            return (values * weights).sum(0)[filled] / total[filled]

        axes.plot(pooled("confidence"), pooled("target"), color=colour, label=arm, marker="o")
    confidence = np.linspace(1 / CLASSES, 1, 200)
    goal, stretch = 1 - ALPHA + ALPHA / CLASSES, math.sqrt(CLASSES / (CLASSES - 1))
    for colour, norm in ((GREY, 1 - confidence), (BLUE, np.abs(confidence - goal))):
        axes.plot(confidence, stretch * norm, color=colour, linestyle=":", linewidth=1.3)
    axes.set(
        title="Gradient on the logits, round 1",
        xlabel="confidence of the pseudo-label (dotted: the other classes even)",
        ylabel="mean norm",
    )


if __name__ == "__main__":
    sys.exit(run_command("study self-training", Args, main))
