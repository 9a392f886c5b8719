"""Study: hybrids whose parentage is known: pixel averages of two digits, with mass for all other classes beside them.

Fixed before running. Data: scikit-learn's digits, pixels divided by 16; each seed has its own stratified split, 25 % to
test. A hybrid is `w · one image + (1 - w) · another` of a different class, so that its parentage is w and 1 - w. For
training, 1,000 hybrids of training images, for the test 500 of test images, both at w = 0.5 ("even") or at w = 0.7
("uneven"). Model: the MLP with two hidden layers of 64, Adam at 0.001, batches of 64, 60 epochs. Arms: the pure images
alone, hard; and pure images and hybrids, the hybrids' targets the mixture of their parents with weights (1/2, 1/2) and
with the true weights, each with alpha 0, 0.1 and 0.3 spread over the eight classes that are no parents; pure images
keep hard labels. Seeds 0 to 9; arms of one seed share split, hybrids and weights. The least effect that counts: 0.01.

Reported of the test hybrids: the predicted share of the first parent among both, its error (mean distance from w), the
mass outside the parents, the negative log-likelihood of the true parentage (nats), and the accuracy on pure test
images. Interquartile means over seeds with 95 % bootstrap intervals.
"""

from __future__ import annotations

import sys
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rlsmooth.audits import interquartile_mean_interval
from rlsmooth.data import LabelledData, load_labelled
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.figures.page import BLUE, GREY, INK, ORANGE, STYLE, save_figure
from rlsmooth.scripts.studies.runner import Args, Job, Result, by_arm, in_words, results_folder, run_jobs, write_study
from rlsmooth.targets import Target, mixture, one_hot
from rlsmooth.training import Classifier

CLASSES = 10
ALPHAS = (0.0, 0.1, 0.3)
SHARES = {"even": 0.5, "uneven": 0.7}
ARMS: dict[str, dict[str, Any]] = {
    "pure images": {"weights": None, "alpha": 0.0},
    **{
        f"{weights} weights, alpha {alpha:g}": {"weights": weights, "alpha": alpha}
        for weights in ("even", "true")
        for alpha in ALPHAS
    },
}
MEASURES = {
    "share": "share of the first parent",
    "error": "its error",
    "outside": "mass outside the parents",
    "nll": "NLL of the parentage",
    "accuracy": "accuracy, pure images",
}


def arms_of(kind: str) -> dict[str, dict[str, Any]]:
    """The arms by name; even weights are the true ones of even hybrids."""
    return {name: arm for name, arm in ARMS.items() if kind == "uneven" or arm["weights"] != "true"}


def crossed(data: LabelledData, count: int, share: float, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Hybrids `[count, 64]`, and their parents' classes `[count, 2]`."""
    generator = np.random.default_rng(seed)
    first = generator.integers(0, len(data), count)
    second = np.array([generator.choice(np.flatnonzero(data.labels != label)) for label in data.labels[first]])
    images = (share * data.features[first] + (1 - share) * data.features[second]) / 16
    return images.astype(np.float32), np.stack((data.labels[first], data.labels[second]), -1)


def train(settings: dict[str, Any]) -> Result:
    """One run."""
    seed, share = settings["seed"], settings["share"]
    training, test = load_labelled("digits").split(0.25, seed=seed)
    features, labels = training.features / 16, training.labels
    target = one_hot(torch.from_numpy(labels), CLASSES)
    if settings["weights"] is not None:
        images, parents = crossed(training, settings["hybrids"], share, seed)
        weights = (0.5, 0.5) if settings["weights"] == "even" else (share, 1 - share)
        mixed = mixture(torch.from_numpy(parents), torch.tensor(weights), CLASSES, alpha=settings["alpha"])
        target = Target.cat((target, mixed))
        features, labels = np.concatenate((features, images)), np.concatenate((labels, parents[:, 0]))
    classifier = Classifier("mlp", max_epochs=settings["epochs"], seed=seed, device="cpu")
    classifier.fit(features, labels, target=target)
    images, parents = crossed(test, 500, share, seed + 1000)
    logs = classifier.predict_log_proba(images)
    own = np.take_along_axis(logs, parents, axis=1)
    both = np.exp(own)
    first = both[:, 0] / both.sum(1)
    return {
        "share": float(first.mean()),
        "error": float(np.abs(first - share).mean()),
        "outside": float(1 - both.sum(1).mean()),
        "nll": float(-(own @ np.array([share, 1 - share])).mean()),
        "accuracy": float((classifier.predict(test.features / 16) == test.labels).mean()),
    }


def main(args: Args) -> None:
    """Run it and write the summary."""
    runs, summary = results_folder(args, "hybrid_digits")
    seeds, epochs = (range(3), 2) if args.small else (range(10), 60)
    jobs = [
        Job(
            f"{kind}_{name.replace(', ', '_').replace(' ', '_')}_{seed}",
            {"arm": f"{kind}, {name}", "share": share, "seed": seed, "epochs": epochs, "hybrids": 1000, **arm},
        )
        for seed in seeds
        for kind, share in SHARES.items()
        for name, arm in arms_of(kind).items()
    ]
    arms = by_arm(jobs, run_jobs(jobs, train, folder=runs, workers=args.workers))
    lines = ["# Hybrids of two digits: even or true weights, and mass outside the parents\n"]
    lines.append(f"{(__doc__ or '').partition(chr(10) + chr(10))[2].strip()}\n")
    for kind, share in SHARES.items():
        lines += [
            f"## {kind.capitalize()} hybrids (parentage {share:g})\n",
            f"| arm | {' | '.join(MEASURES.values())} |",
        ]
        lines.append("|---|" + "---:|" * len(MEASURES))
        for name in arms_of(kind):
            found = [interquartile_mean_interval([r[tag] for r in arms[f"{kind}, {name}"]]) for tag in MEASURES]
            lines.append(f"| {name} | {' | '.join(in_words(interval, '.3f') for interval in found)} |")
        lines.append("")
    lines.append("Reproduce: `make study-hybrid-digits`. Figure: [hybrid_digits.png](hybrid_digits.png).\n")
    write_study(summary, "hybrid_digits", report="\n".join(lines), data={"shares": SHARES, "runs": arms})
    with mpl.rc_context({**STYLE, "axes.titlepad": 8}):
        figure = Figure(figsize=(15, 6), dpi=100, layout="constrained")
        figure.suptitle(f"Error of the predicted parentage of test hybrids; {len(seeds)} seeds, 95 % intervals")
        for axes, kind in zip(figure.subplots(1, 2, sharey=True), SHARES, strict=True):
            for place, name in enumerate(arms_of(kind)):
                error = interquartile_mean_interval([run["error"] for run in arms[f"{kind}, {name}"]])
                colour = GREY if place == 0 else ORANGE if name.startswith("even") else BLUE
                reach = [[error.estimate - error.low], [error.high - error.estimate]]
                axes.errorbar(place, error.estimate, reach, fmt="o", color=colour, capsize=4)
            axes.set_ylim(bottom=0)
            axes.axhline(0, color=INK, linewidth=1)
            axes.set_xticks(range(len(arms_of(kind))), [name.replace(", ", "\n") for name in arms_of(kind)], fontsize=9)
            axes.set_title(f"{kind} hybrids (parentage {SHARES[kind]:g})")
        save_figure(summary / "hybrid_digits.png", figure)
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(run_command("study hybrid_digits", Args, main))
