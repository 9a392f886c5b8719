"""Study: which pseudo-labels' gradients does smoothing damp: those of uncertain samples, or of confident ones?

Fixed before running: digits as in the study of self-training: 50 labels, the other 1,298 training samples without; the
student is two hidden layers of 64, Adam at 0.01, batches of 64, 30 epochs, on the 50 hard labels. Then one forward pass
over the samples without a label: each gets its most probable class as pseudo-label. For each sample, the norm of the
gradient of its loss on the logits, with the hard pseudo-label and with the same smoothed by 0.05, 0.1 and 0.2 over all
classes. Bins of confidence: up to .5, .5 to .7, .7 to .9, .9 to .97, above. Seeds 0 to 9.

Reported by bin: the mean norm smoothed over the mean norm hard. Below 1 smoothing damps. If the claim held that it
damps uncertain pseudo-labels most, the ratio would grow with confidence from its lowest value in the first bin; theory
says `|q - t| / (1 - q)` with `t = 1 - alpha + alpha / K`: near 1 - alpha for small q, 0 at q = t, growing beyond.
Interquartile means over seeds with 95 % bootstrap intervals.
"""

from __future__ import annotations

import sys
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from rlsmooth.audits import interquartile_mean_interval
from rlsmooth.data import load_labelled
from rlsmooth.losses import log_probabilities
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.figures.page import BLUE, GREEN, INK, ORANGE, STYLE, save_figure
from rlsmooth.scripts.studies.runner import Args, Job, Result, in_words, results_folder, run_jobs, write_study
from rlsmooth.targets import one_hot, uniform
from rlsmooth.training import Classifier, logit_gradient_norms

ALPHAS = {0.05: ORANGE, 0.1: BLUE, 0.2: GREEN}
EDGES = (0.0, 0.5, 0.7, 0.9, 0.97, 1.0)
BINS = ("up to .5", ".5 to .7", ".7 to .9", ".9 to .97", "above .97")
CLASSES, LABELS = 10, 50


def train(settings: dict[str, Any]) -> Result:
    """One run: by alpha, the ratio in each bin; and the bins' mean confidence and number of samples."""
    seed = settings["seed"]
    training, _ = load_labelled("digits").split(0.25, seed=seed)
    kept = training.sample_indices(LABELS, seed)
    rest = training.take(np.setdiff1d(np.arange(len(training)), kept))
    classifier = Classifier(
        "mlp", smoothing=0.0, learning_rate=0.01, max_epochs=settings["epochs"], seed=seed, device="cpu"
    ).fit(training.features[kept] / 16, training.labels[kept])
    logits = classifier.logits(rest.features / 16).double()
    confidence, labels = log_probabilities(logits).exp().max(-1)
    place = torch.bucketize(confidence, torch.tensor(EDGES[1:-1], dtype=torch.float64))
    counts = torch.bincount(place, minlength=len(BINS))

    def by_bin(values: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(BINS), dtype=torch.float64).index_add_(0, place, values)

    hard = by_bin(logit_gradient_norms(logits, one_hot(labels, CLASSES)))
    ratios = {
        f"{alpha:g}": (by_bin(logit_gradient_norms(logits, uniform(labels, CLASSES, alpha))) / hard).tolist()
        for alpha in ALPHAS
    }
    return {"ratios": ratios, "counts": counts.tolist(), "confidence": (by_bin(confidence) / counts).tolist()}


def main(args: Args) -> None:
    """Run it and write the summary."""
    runs, summary = results_folder(args, "pseudo_gradients")
    seeds = range(3) if args.small else range(10)
    jobs = [Job(f"seed_{seed}", {"seed": seed, "epochs": 30}) for seed in seeds]
    results = run_jobs(jobs, train, folder=runs, workers=args.workers)
    lines = ["# Gradients of pseudo-labels, by confidence\n"]
    lines.append(f"{(__doc__ or '').partition(chr(10) + chr(10))[2].strip()}\n")
    lines += [f"| alpha | {' | '.join(BINS)} |", "|---|" + "---:|" * len(BINS)]
    ratios = {
        alpha: [[run["ratios"][f"{alpha:g}"][place] for run in results] for place in range(len(BINS))]
        for alpha in ALPHAS
    }
    intervals = {
        alpha: [interquartile_mean_interval([v for v in column if np.isfinite(v)]) for column in columns]
        for alpha, columns in ratios.items()
    }
    for alpha, found in intervals.items():
        lines.append(f"| {alpha:g} | {' | '.join(in_words(interval, '.2f') for interval in found)} |")
    counts = np.mean([run["counts"] for run in results], axis=0)
    lines += [f"| samples | {' | '.join(f'{count:.0f}' for count in counts)} |", ""]
    lines.append("Reproduce: `make study-pseudo-gradients`. Figure: [pseudo_gradients.png](pseudo_gradients.png).\n")
    write_study(summary, "pseudo_gradients", report="\n".join(lines), data={"bins": BINS, "runs": results})
    with mpl.rc_context({**STYLE, "axes.titlepad": 8}):
        figure = Figure(figsize=(10, 6), dpi=100, layout="constrained")
        axes = figure.subplots()
        for shift, (alpha, colour) in zip((-0.1, 0.0, 0.1), ALPHAS.items(), strict=True):
            for place, interval in enumerate(intervals[alpha]):
                reach = [[interval.estimate - interval.low], [interval.high - interval.estimate]]
                name = f"alpha {alpha:g}" if place == 0 else None
                axes.errorbar(place + shift, interval.estimate, reach, fmt="o", color=colour, capsize=4, label=name)
        axes.axhline(1, color=INK, linewidth=1, linestyle="--")
        axes.set_yscale("log")
        axes.set_xticks(range(len(BINS)), BINS)
        axes.set(xlabel="confidence of the pseudo-label", ylabel="gradient norm, smoothed / hard")
        axes.set_title(f"Smoothing damps least where the pseudo-label is uncertain; {len(results)} seeds, 95 %")
        axes.legend(frameon=False)
        save_figure(summary / "pseudo_gradients.png", figure)
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(run_command("study pseudo_gradients", Args, main))
