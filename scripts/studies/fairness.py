"""Study: calibration of groups: does smoothing make it more alike, and does it help a model that is overconfident?

Fixed before running. Data: `hmda` (group afam: yes), `arrests` (colour: Black), `credit` (age: under 26), and `rodents`
(sex: F; 6,000 drawn by the seed), which is a null case: the groups should not differ. Each seed has its own stratified
split: half to train on, 20 % to fit temperatures on, 30 % to test; features standardised by the training samples.
Model: the MLP with two hidden layers of 64, Adam at 0.001, batches of 64, no early stopping, trained for 10 epochs
(well fitted) or 100 (overfitted). Arms: alpha 0, 0.05, 0.1, 0.2 over all classes. Seeds 0 to 9; arms of one seed share
split, initial weights and order of the data. B is the group named above, A all others. The least effect that counts:
0.005.

Reported on the test samples: the expected calibration error of 15 bins (ECE) and the signed gap, mean confidence less
accuracy, of all and of each group; the disparity in both, B less A. The signed gap comes first: the ECE is biased
upwards, the more the fewer samples a group has, so that its difference is no estimate of unequal calibration. Also the
disparity that theory predicts from alpha 0, `D - alpha · (confidence_B - confidence_A)`; and, of alpha 0, after a
temperature for all, a temperature for each group, a temperature and a bias for each group, and multicalibration (10
levels).
Interquartile means over seeds with 95 % bootstrap intervals: they say how much training varies, not how much a test set
of this size does.
"""

from __future__ import annotations

import sys
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from rlsmooth.audits import (
    calibration_error,
    fit_group_temperatures,
    fit_multicalibration,
    fit_temperature,
    interquartile_mean_interval,
)
from rlsmooth.data import load_labelled
from rlsmooth.losses import log_probabilities
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.figures.page import BLUE, GREEN, GREY, INK, ORANGE, STYLE, save_figure
from rlsmooth.scripts.studies.runner import Args, Job, Result, by_arm, in_words, results_folder, run_jobs, write_study
from rlsmooth.training import Classifier

DATA = {"hmda": ("afam", "yes"), "arrests": ("colour", "Black"), "credit": ("age", "under 26"), "rodents": ("sex", "F")}
SAMPLES = {"rodents": 6000}
EPOCHS = (10, 100)
ALPHAS = (0.0, 0.05, 0.1, 0.2)
COLOURS = dict(zip(ALPHAS, (GREY, ORANGE, BLUE, GREEN), strict=True))
AFTER = {
    "plain": "as trained",
    "temperature": "one temperature",
    "by_group": "a temperature a group",
    "with_bias": "temperature and bias a group",
    "multicalibration": "multicalibration",
}


def arm_of(data: str, epochs: int, alpha: float) -> str:
    """An arm's name."""
    return f"{data}, {epochs} epochs, alpha {alpha:g}"


def confidences_of(logits: Tensor, prediction: Tensor) -> Tensor:
    """The probability of the class predicted without any correction: a bias does not change the prediction."""
    return log_probabilities(logits.double()).exp().gather(-1, prediction.unsqueeze(-1)).squeeze(-1)


def measured(confidence: Tensor, hits: Tensor, in_b: NDArray[np.bool_]) -> dict[str, dict[str, float]]:
    """Scores of all, of group A and of group B, to ten digits."""
    found: dict[str, dict[str, float]] = {}
    for name, chosen in (("all", np.ones_like(in_b)), ("A", ~in_b), ("B", in_b)):
        part = torch.from_numpy(chosen)
        scores = {
            "accuracy": hits[part].double().mean(),
            "confidence": confidence[part].mean(),
            "gap": confidence[part].mean() - hits[part].double().mean(),
            "ece": calibration_error(confidence[part], hits[part]),
        }
        found[name] = {"rows": int(chosen.sum())} | {tag: float(f"{float(one):.10g}") for tag, one in scores.items()}
    return found


def train(settings: dict[str, Any]) -> Result:
    """One run."""
    seed, name = settings["seed"], settings["data"]
    data = load_labelled(name)
    if name in SAMPLES:
        data = data.take(data.sample_indices(SAMPLES[name], seed))
    training, rest = data.split(0.5, seed=seed)
    tuning, test = rest.split(0.6, seed=seed)
    tuning, test = (part.standardised(training) for part in (tuning, test))
    training = training.standardised()
    classifier = Classifier(
        "mlp", smoothing=settings["alpha"], max_epochs=settings["epochs"], seed=seed, device="cpu"
    ).fit(training.features, training.labels, classes=np.arange(data.num_classes))
    column, member = DATA[name]
    groups = {part: source.groups[column] == member for part, source in (("tuning", tuning), ("test", test))}
    logits, labels = classifier.logits(test.features), torch.from_numpy(test.labels)
    prediction = logits.argmax(-1)
    if settings["alpha"]:  # what follows is read of alpha 0 only
        return {"plain": measured(confidences_of(logits, prediction), prediction == labels, groups["test"])}
    held_out, fitted = classifier.logits(tuning.features), torch.from_numpy(tuning.labels)
    known = held_out.argmax(-1)
    scaled = {"plain": logits, "temperature": logits / fit_temperature(held_out, fitted)}
    for kind, bias in (("by_group", False), ("with_bias", True)):
        scalers = fit_group_temperatures(held_out, fitted, groups["tuning"].astype(int), bias=bias)
        scaled[kind] = scalers.calibrated(logits, groups["test"].astype(int))
    confidences = {kind: confidences_of(found, prediction) for kind, found in scaled.items()}
    patches = fit_multicalibration(confidences_of(held_out, known), known == fitted, groups["tuning"].astype(int))
    patched = patches.calibrated(confidences["plain"], groups["test"].astype(int))
    confidences["multicalibration"] = torch.from_numpy(patched)
    return {kind: measured(found, prediction == labels, groups["test"]) for kind, found in confidences.items()}


def disparity(run: Result, measure: str, kind: str = "plain") -> float:
    """B less A."""
    return float(run[kind]["B"][measure] - run[kind]["A"][measure])


def predicted(run: Result, alpha: float) -> float:
    """The disparity of signed gaps that theory expects of alpha, from the run without smoothing of the same seed."""
    return disparity(run, "gap") - alpha * disparity(run, "confidence")


def tables(arms: dict[str, list[Result]], data: str, epochs: int) -> list[str]:
    """Scores and disparities of one data set and training."""
    base = arms[arm_of(data, epochs, 0.0)]
    head = "accuracy | gap | ECE | gap_B - gap_A | predicted | ECE_B - ECE_A"
    lines = [f"| alpha | {head} |", "|---|" + "---:|" * 6]
    for alpha in ALPHAS:
        runs = arms[arm_of(data, epochs, alpha)]
        columns = [[run["plain"]["all"][tag] for run in runs] for tag in ("accuracy", "gap", "ece")]
        columns += [[disparity(run, "gap") for run in runs], [predicted(run, alpha) for run in base]]
        columns += [[disparity(run, "ece") for run in runs]]
        cells = [in_words(interquartile_mean_interval(column), ".3f") for column in columns]
        lines.append(f"| {alpha:g} | {' | '.join(cells)} |")
    lines += ["", "| alpha 0, afterwards | gap | gap_B - gap_A | ECE_B - ECE_A |", "|---|---:|---:|---:|"]
    for kind, words in AFTER.items():
        columns = [[run[kind]["all"]["gap"] for run in base], [disparity(run, "gap", kind) for run in base]]
        columns += [[disparity(run, "ece", kind) for run in base]]
        cells = [in_words(interquartile_mean_interval(column), "+.3f") for column in columns]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    return [*lines, ""]


def main(args: Args) -> None:
    """Run it and write the summary."""
    runs, summary = results_folder(args, "fairness")
    seeds, shorter = (range(3), 10) if args.small else (range(10), 1)
    jobs = [
        Job(
            f"{data}_{epochs}_{alpha:g}_{seed}",
            {"arm": arm_of(data, epochs, alpha), "data": data, "alpha": alpha, "seed": seed}
            | {"epochs": max(1, epochs // shorter)},
        )
        for seed in seeds
        for data in DATA
        for epochs in EPOCHS
        for alpha in ALPHAS
    ]
    arms = by_arm(jobs, run_jobs(jobs, train, folder=runs, workers=args.workers))
    lines = ["# Calibration of groups, with and without smoothing\n"]
    lines.append(f"{(__doc__ or '').partition(chr(10) + chr(10))[2].strip()}\n")
    for data, (column, member) in DATA.items():
        for epochs in EPOCHS:
            one = arms[arm_of(data, epochs, 0.0)][0]["plain"]
            sizes = f"B: {column} {member}, {one['B']['rows']} of {one['all']['rows']} test samples"
            lines += [f"## {data.capitalize()}, {epochs} epochs ({sizes})\n", *tables(arms, data, epochs)]
    lines.append("Reproduce: `make study-fairness`. Figure: [fairness.png](fairness.png).\n")
    write_study(summary, "fairness", report="\n".join(lines), data={"alphas": ALPHAS, "runs": arms})
    with mpl.rc_context({**STYLE, "axes.titlepad": 8}):
        figure = Figure(figsize=(16, 8), dpi=100, layout="constrained")
        figure.suptitle(f"Signed gap of B less that of A; dashes: predicted from alpha 0; {len(seeds)} seeds, 95 %")
        grid = figure.subplots(len(EPOCHS), len(DATA))
        for row, epochs in zip(grid, EPOCHS, strict=True):
            for axes, data in zip(row, DATA, strict=True):
                for alpha in ALPHAS:
                    runs_of = arms[arm_of(data, epochs, alpha)]
                    found = interquartile_mean_interval([disparity(run, "gap") for run in runs_of])
                    reach = [[found.estimate - found.low], [found.high - found.estimate]]
                    axes.errorbar(alpha, found.estimate, reach, fmt="o", color=COLOURS[alpha], capsize=4)
                theory = [
                    interquartile_mean_interval([predicted(run, a) for run in arms[arm_of(data, epochs, 0.0)]]).estimate
                    for a in ALPHAS
                ]
                axes.plot(ALPHAS, theory, linestyle="--", color=INK, linewidth=1)
                axes.axhline(0, color=INK, linewidth=1)
                axes.set_title(f"{data}, {epochs} epochs")
                axes.set_xlabel("alpha")
        save_figure(summary / "fairness.png", figure)
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(run_command("study fairness", Args, main))
