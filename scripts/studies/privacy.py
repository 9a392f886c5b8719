"""Study: do smoothed targets hide labels from an observer of gradients?

Fixed before running. Data: scikit-learn's digits, pixels divided by 16; each seed has its own stratified split, 25 % to
test. Arms: alpha 0, 0.05, 0.1 and 0.2 over all classes. Seeds 0 to 9; arms of one seed share split and initial weights.

One sample, and minibatches: the MLP with two hidden layers of 64 ReLUs, before and after 60 epochs (Adam at 0.001,
batches of 64). 300 training samples are attacked: each by itself, by the exact attack, the sign rule, argmin and iDLG;
and in minibatches of 8 and 32, once drawn at random and once from samples of three classes only, where the prior says
less, by LLG, iLRG, counts with softmax(bias), and counts with the class means of 200 auxiliary test samples, alpha
known. Beside each, what the prior alone finds. Noise: of standard deviation 0.1, 0.5 and 2 on each entry of the last
layer's gradient of one sample, without clipping, an observer who knows network and features.

Federated: 6 clients, Dirichlet(0.3), 30 rounds of one epoch, SGD at 0.1, batches of 32; the best attack of the server
in the first and the last round. Labels: training for 60 epochs on smoothed targets, and on labels drawn once from them.
DP-SGD: one client with all samples, noise multiplier 1, clipping to 1, 10 rounds of one epoch, SGD at 0.5; test
accuracy, epsilon at delta 1e-5, and how often an informed observer of one clipped and noisy gradient over all
parameters finds its label (100 samples, after training).

Interquartile means over seeds with 95 % bootstrap intervals. The verdict goes by the best attack.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from rlsmooth.audits import LastLayer, attack_batches, attack_rows, interquartile_mean_interval, noise_curve
from rlsmooth.data import LabelledData, load_labelled
from rlsmooth.losses import cross_entropy
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.figures.page import BLUE, GREEN, GREY, ORANGE, STYLE, save_figure
from rlsmooth.scripts.studies.runner import Args, Job, Result, by_arm, in_words, results_folder, run_jobs, write_study
from rlsmooth.targets import Smoothing, uniform
from rlsmooth.training import (
    Classifier,
    ClipAndNoise,
    CuriousServer,
    FederatedClient,
    FederatedTrainer,
    dirichlet_split,
    label_dp_epsilon,
)
from rlsmooth.training.classifier_model import build_model
from rlsmooth.training.federated_client import draw_labels

ALPHAS = (0.0, 0.05, 0.1, 0.2)
COLOURS = dict(zip(ALPHAS, (GREY, ORANGE, BLUE, GREEN), strict=True))
CLASSES, ATTACKED, FEW_CLASSES = 10, 300, 3
NOISES = (0.1, 0.5, 2.0)
STATES = ("before", "after")


def features_of(data: LabelledData) -> Tensor:
    """`[N, 64]`, from 0 to 1."""
    return torch.from_numpy(data.features / 16)


def layer_of(module: nn.Module, data: LabelledData, alpha: float) -> LastLayer:
    """The last layer with the samples that reach it."""
    target = uniform(torch.from_numpy(data.labels), CLASSES, alpha)
    return LastLayer.of_module(module, features_of(data), target)


def attacks(module: nn.Module, training: LabelledData, auxiliary: LabelledData, alpha: float) -> dict[str, Any]:
    """The success of each attack, and of the prior."""
    few = training.take(np.flatnonzero(training.labels < FEW_CLASSES)[:ATTACKED])
    some = training.take(np.arange(ATTACKED))
    layer, own = layer_of(module, some, alpha), layer_of(module, auxiliary, alpha)
    found: dict[str, Any] = {result.attack: result.success.estimate for result in attack_rows(layer)}
    for kind, part in (("any", layer), ("three", layer_of(module, few, alpha))):
        for result in attack_batches(part, (8, 32), alpha=alpha, auxiliary=own):
            found[f"{result.attack}, {kind} {result.batch_size}"] = result.success.estimate
            found[f"prior, {kind} {result.batch_size}"] = result.prior
    for point in noise_curve(layer, NOISES, alpha=alpha):
        found[f"noise {point.noise:g}"], found[f"theory {point.noise:g}"] = point.success.estimate, point.expected
    return found


def federated(training: LabelledData, test: LabelledData, auxiliary: LabelledData, settings: dict[str, Any]) -> Result:
    """Accuracy and leakage in the first and the last round."""
    alpha, seed = settings["alpha"], settings["seed"]
    module = build_model("mlp", 64, CLASSES, seed=seed)
    parts = [training.take(part) for part in dirichlet_split(training.labels, 6, 0.3, seed=seed)]
    clients = [
        FederatedClient(module, features_of(part), part.labels, CLASSES, smoothing=alpha, seed=seed + place)
        for place, part in enumerate(parts)
    ]
    labels = [torch.from_numpy(part.labels) for part in parts]
    own = (features_of(auxiliary), auxiliary.labels)
    server = CuriousServer(module, labels, CLASSES, auxiliary=own, smoothing=alpha)
    trainer = FederatedTrainer(module, clients, audit=server, evaluation=(features_of(test), test.labels))
    history = trainer.train(settings["rounds"]).history
    best = np.nanmax(
        [column for name, column in history.items() if name.startswith("audit_") and "prior" not in name], 0
    )
    return {
        "accuracy": history["accuracy"][-1],
        "first": float(best[0]),
        "last": float(best[-1]),
        "llg_last": history["audit_llg"][-1],
        "prior": history["audit_prior"][-1],
    }


def private(training: LabelledData, test: LabelledData, settings: dict[str, Any]) -> Result:
    """DP-SGD: accuracy, epsilon, and how often an informed observer finds the label of one sample."""
    alpha, seed, defence = settings["alpha"], settings["seed"], ClipAndNoise(1.0, 1.0)
    module = build_model("mlp", 64, CLASSES, seed=seed)
    client = FederatedClient(
        module, features_of(training), training.labels, CLASSES,
        smoothing=alpha, learning_rate=0.5, batch_size=64, defence=defence, seed=seed,
    )  # fmt: skip
    trainer = FederatedTrainer(module, [client], evaluation=(features_of(test), test.labels))
    history = trainer.train(settings["private_rounds"]).history
    generator = torch.Generator().manual_seed(seed)
    found = [_found(module, features_of(training)[i], int(training.labels[i]), alpha, generator) for i in range(100)]
    return {"accuracy": history["accuracy"][-1], "epsilon": history["epsilon"][-1], "found": float(np.mean(found))}


def _found(module: nn.Module, one: Tensor, label: int, alpha: float, generator: torch.Generator) -> bool:
    """Whether the nearest of the ten possible clipped gradients to the noisy one is the true label's."""
    candidates = []
    for candidate in range(CLASSES):
        loss = cross_entropy(module(one[None]), uniform(torch.tensor([candidate]), CLASSES, alpha))
        flat = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(module.parameters()))])
        candidates.append(flat / flat.norm().clamp(min=1.0))
    table = torch.stack(candidates)
    seen = table[label] + torch.randn(table.shape[1], generator=generator)
    return int((table - seen).norm(dim=-1).argmin()) == label


def train(settings: dict[str, Any]) -> Result:
    """One run."""
    alpha, seed = settings["alpha"], settings["seed"]
    training, test = load_labelled("digits").split(0.25, seed=seed)
    auxiliary = test.take(test.sample_indices(200, seed))
    untrained = build_model("mlp", 64, CLASSES, seed=seed)  # as the classifier of this seed begins

    def fitted(labels: Any, smoothing: float) -> Classifier:
        classifier = Classifier("mlp", smoothing=smoothing, max_epochs=settings["epochs"], seed=seed, device="cpu")
        return classifier.fit(features_of(training), labels)

    trained = fitted(training.labels, alpha)
    drawn = draw_labels(Smoothing(alpha), torch.from_numpy(training.labels), CLASSES, seed=seed)
    modules = dict(zip(STATES, (untrained, trained.module_), strict=True))
    return {
        **{state: attacks(copy.deepcopy(module), training, auxiliary, alpha) for state, module in modules.items()},
        "federated": federated(training, test, auxiliary, settings),
        "labels": {
            "smoothed": trained.score(features_of(test), test.labels),
            "drawn": fitted(drawn.numpy(), 0.0).score(features_of(test), test.labels),
            "epsilon": min(label_dp_epsilon(alpha, CLASSES), 1e9),
        },
        "private": private(training, test, settings),
    }


def row(name: str, columns: list[list[float]], form: str = ".3f") -> str:
    """A line of a table: of each alpha the interquartile mean with its interval."""
    return f"| {name} | {' | '.join(in_words(interquartile_mean_interval(column), form) for column in columns)} |"


def tables(arms: dict[str, list[Result]]) -> list[str]:
    """All tables."""
    head = [f"| | {' | '.join(f'alpha {alpha:g}' for alpha in ALPHAS)} |", "|---|" + "---:|" * len(ALPHAS)]
    runs = [arms[f"alpha {alpha:g}"] for alpha in ALPHAS]
    lines = []
    for state in STATES:
        names = [
            name for name in runs[0][0][state] if np.isfinite([run[state][name] for arm in runs for run in arm]).all()
        ]
        lines += [f"## Share of labels found, {state} training\n", *head]
        lines += [row(name, [[run[state][name] for run in arm] for arm in runs]) for name in names]
        lines.append("")
    for part, title in (
        ("federated", "Federated: accuracy, and label counts known by the best attack"),
        ("labels", "Accuracy with smoothed targets, and with labels drawn once from them"),
        ("private", "DP-SGD, noise multiplier 1"),
    ):
        lines += [f"## {title}\n", *head]
        lines += [row(name, [[run[part][name] for run in arm] for arm in runs]) for name in runs[0][0][part]]
        lines.append("")
    return lines


def main(args: Args) -> None:
    """Run it and write the summary."""
    folder, summary = results_folder(args, "privacy")
    seeds = range(3) if args.small else range(10)
    size = {"epochs": 1, "rounds": 2, "private_rounds": 1} if args.small else {
        "epochs": 60, "rounds": 30, "private_rounds": 10,
    }  # fmt: skip
    jobs = [
        Job(f"alpha_{alpha:g}_{seed}", {"arm": f"alpha {alpha:g}", "alpha": alpha, "seed": seed, **size})
        for seed in seeds
        for alpha in ALPHAS
    ]
    arms = by_arm(jobs, run_jobs(jobs, train, folder=folder, workers=args.workers))
    lines = ["# Labels in gradients, with and without smoothing\n"]
    lines.append(f"{(__doc__ or '').partition(chr(10) + chr(10))[2].strip()}\n")
    lines += tables(arms)
    lines.append("Reproduce: `make study-privacy`. Figure: [privacy.png](privacy.png).\n")
    write_study(summary, "privacy", report="\n".join(lines), data={"alphas": ALPHAS, "runs": arms})
    with mpl.rc_context({**STYLE, "axes.titlepad": 8}):
        figure = Figure(figsize=(16, 6), dpi=100, layout="constrained")
        figure.suptitle(f"Labels found from the gradient of one sample; {len(seeds)} seeds, 95 % intervals")
        shown = ("exact", "sign", "argmin", "iDLG", *(f"noise {noise:g}" for noise in NOISES))
        for axes, state in zip(figure.subplots(1, 2, sharey=True), STATES, strict=True):
            for shift, alpha in zip(np.linspace(-0.24, 0.24, len(ALPHAS)), ALPHAS, strict=True):
                for place, name in enumerate(shown):
                    found = interquartile_mean_interval([run[state][name] for run in arms[f"alpha {alpha:g}"]])
                    reach = [[found.estimate - found.low], [found.high - found.estimate]]
                    words = f"alpha {alpha:g}" if place == 0 else None
                    axes.errorbar(place + shift, found.estimate, reach, fmt="o", color=COLOURS[alpha], label=words)
            axes.set_xticks(range(len(shown)), [name.replace(" ", "\n") for name in shown])
            axes.set(ylim=(0, 1.05), title=f"{state} training", ylabel="share of labels")
        axes.legend(frameon=False, loc="lower left")
        save_figure(summary / "privacy.png", figure)
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(run_command("study privacy", Args, main))
