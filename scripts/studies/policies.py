"""Study: a clone of two demonstrators of different skill: its calibration by group, and what its gradients leak.

Fixed before running. CartPole-v1 (two actions): the demonstrations that ship with the package, and as many episodes of
a weak demonstrator: a clone of all of them, which samples its actions as their PPO agent does, but draws 20 % of them
from all actions alike. Acrobot-v1 (three actions): 120 episodes of a scripted expert that never rests, and 120 of the
same with 20 % random actions. Each seed splits each demonstrator's episodes: half to train on, 20 % to fit temperatures
on, 30 % held out. Model: `BC` with its defaults, on both demonstrators at once, for 20 epochs. Arms: alpha 0, 0.05,
0.1, 0.2 over all actions. Seeds 0 to 9; arms of one seed share split, initial weights and order of the data.

Calibration, on held-out transitions: confidence is the probability of the most probable action, a hit that it is the
demonstrator's. By demonstrator, and by region: CartPole upright (the pole less than 0.01 rad off: the expert hardly
ever lets it tilt by 0.05) or tilted, Acrobot low or high (its tip below or above the fixed joint). The signed gap, mean
confidence less accuracy, comes first; D is the gap of the weak demonstrator (the tilted, the high region) less the
other's, and as predicted from alpha 0 of the same seed. Random actions cap the accuracy on the weak demonstrator; and
demonstrators visit different states, so D is also given within shared regions: cells of quartiles of two observations
(angle and its velocity; height of the tip and velocity of the first joint), those with ten held-out transitions of
each, weighted by n_weak n_skilled / (n_weak + n_skilled). Then D after a temperature for all, one a demonstrator, and
one with a bias.

Leakage: of 640 training transitions, before training (the agent as built) and after: each by itself, and minibatches of
8 and 32 by counts of labels with alpha known and with alpha ignored, beside what the prior (from 200 auxiliary
transitions that were not trained on) finds. The observer does not know the mean probabilities; counts with those known
are a bound. The policy's hidden layers end in tanh, and iDLG and LLG are made for features of one sign: they count as
any other, and the verdict goes by the best attack that an observer can make.

Interquartile means over seeds with 95 % bootstrap intervals: they say how much training and split vary. Welch intervals
over the held-out transitions of a seed are given apart, as means of their ends; they take transitions for independent,
which those of an episode are not, and are too narrow by that.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from rlsmooth.agents import BC, action_layers
from rlsmooth.audits import (
    LastLayer,
    attack_batches,
    attack_rows,
    fit_group_temperatures,
    fit_temperature,
    gap_disparity,
    group_calibration,
    interquartile_mean_interval,
    predicted_gap,
)
from rlsmooth.data import Demonstrations, cartpole_v1, concatenate, record
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.figures.page import BLUE, GREEN, GREY, INK, ORANGE, RED, STYLE, save_figure
from rlsmooth.scripts.studies.bco_experts import swing_up
from rlsmooth.scripts.studies.runner import Args, Job, Result, by_arm, in_words, results_folder, run_jobs, write_study

ENVS = {"CartPole-v1": 2, "Acrobot-v1": 3}
"""With the number of actions."""
REGIONS = {"CartPole-v1": ("upright", "tilted"), "Acrobot-v1": ("low", "high")}
ALPHAS = (0.0, 0.05, 0.1, 0.2)
COLOURS = dict(zip(ALPHAS, (GREY, ORANGE, BLUE, GREEN), strict=True))
SKILLS = ("skilled", "weak")
RANDOM_SHARE, WEAK_SEED = 0.2, 200_000
AUXILIARY, SIZES, LEAST_IN_CELL = 200, (8, 32), 10
STATES = ("before", "after")
AFTER = {
    "plain": "as trained",
    "temperature": "one temperature",
    "by_group": "a temperature a demonstrator",
    "with_bias": "temperature and bias a demonstrator",
}
Floats = NDArray[np.float64]
Columns = dict[str, list[float]]
"""By measure, a number a seed."""


# ---- demonstrators


class Weak:
    """The expert, but for a share of random actions."""

    def __init__(self, expert: Callable[[Any], int], num_actions: int) -> None:
        self.expert, self.num_actions, self.generator = expert, num_actions, np.random.default_rng(WEAK_SEED)

    def __call__(self, observation: Any) -> int:
        """An action for one observation."""
        chosen = self.expert(observation)
        is_random = self.generator.random() < RANDOM_SHARE
        return int(self.generator.integers(self.num_actions)) if is_random else chosen


def make_demonstrations(folder: Path, *, small: bool) -> dict[str, dict[str, float]]:
    """Write what is missing, `<env>_<skill>.npz`; of each environment the mean return of each demonstrator."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, float]] = {}
    for env, num_actions in ENVS.items():
        skilled, weak = (folder / f"{env}_{skill}.npz" for skill in SKILLS)
        if not skilled.is_file() or not weak.is_file():
            shown, expert = _expert(env, small=small)
            shown.save(skilled)
            record(Weak(expert, num_actions), env, shown.num_episodes, seed=WEAK_SEED).save(weak)
        returns = {skill: demonstrations(folder, env, skill).episode_returns() for skill in SKILLS}
        found[env] = {skill: float(column.mean()) for skill, column in returns.items()}
    return found


def _expert(env: str, *, small: bool) -> tuple[Demonstrations, Callable[[Any], int]]:
    if env == "Acrobot-v1":
        return record(swing_up, env, 24 if small else 120, seed=WEAK_SEED // 2), swing_up
    shown = cartpole_v1().sample_episodes(8) if small else cartpole_v1()
    clone = BC("MlpPolicy", None, shown, smoothing=0.0, seed=0, device="cpu").learn(5 if small else 20)
    return shown, lambda observation: int(clone.predict(observation)[0])


def demonstrations(folder: Path, env: str, skill: str) -> Demonstrations:
    """One demonstrator's episodes."""
    return Demonstrations.load(folder / f"{env}_{skill}.npz")


def coordinates(env: str, part: Demonstrations) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Of each transition the two numbers that cells are made of, and whether it is tilted, or high."""
    seen: Any = np.asarray(part[:].observations, dtype=np.float64)
    if env == "CartPole-v1":
        return seen[:, 2], seen[:, 3], np.abs(seen[:, 2]) >= 0.01
    height = -seen[:, 0] - (seen[:, 0] * seen[:, 2] - seen[:, 1] * seen[:, 3])
    return height, seen[:, 4], height > 0


# ---- one run


def logits_of(layer: LastLayer) -> Tensor:
    """float64 `[N, K]`."""
    assert layer.bias is not None
    return layer.features.double() @ layer.weight.double().mT + layer.bias.double()


def within_cells(confidence: Floats, hits: Floats, is_weak: NDArray[np.bool_], cells: Any) -> tuple[float, float]:
    """D within shared cells, and the share of the transitions that these hold."""
    total, mass, rows = 0.0, 0.0, 0
    for cell in np.unique(cells):
        weak, skilled = (cells == cell) & is_weak, (cells == cell) & ~is_weak
        if min(weak.sum(), skilled.sum()) >= LEAST_IN_CELL:
            weight = weak.sum() * skilled.sum() / (weak.sum() + skilled.sum())
            gap = confidence - hits
            total, mass = total + weight * (gap[weak].mean() - gap[skilled].mean()), mass + weight
            rows += int(weak.sum() + skilled.sum())
    return total / mass if mass else float("nan"), rows / len(hits)


def calibration(agent: BC, env: str, parts: dict[str, list[Demonstrations]]) -> dict[str, float]:
    """Measures by demonstrator and by region, on held-out transitions."""
    joined = {name: concatenate(both) for name, both in parts.items()}
    weak = {name: np.repeat([False, True], [len(one) for one in both]) for name, both in parts.items()}
    (held_out,), (test,) = (action_layers(agent, joined[name]) for name in ("tuning", "test"))
    logits, labels = logits_of(test), test.labels
    chosen = logits.argmax(-1)
    hits = (chosen == labels).numpy()
    tuned, fitted = logits_of(held_out), held_out.labels
    scaled = {"plain": logits, "temperature": logits / fit_temperature(tuned, fitted)}
    for kind, bias in (("by_group", False), ("with_bias", True)):
        scalers = fit_group_temperatures(tuned, fitted, weak["tuning"].astype(int), bias=bias)
        scaled[kind] = scalers.calibrated(logits, weak["test"].astype(int))
    first, second, outside = coordinates(env, joined["test"])
    edges = [np.quantile(column, (0.25, 0.5, 0.75)) for column in coordinates(env, joined["training"])[:2]]
    cells = 4 * np.searchsorted(edges[0], first) + np.searchsorted(edges[1], second)
    found: dict[str, float] = {}
    for kind, values in scaled.items():
        sure = values.softmax(-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1).numpy()
        by_skill = np.where(weak["test"], *reversed(SKILLS))
        lines = group_calibration(sure, hits, by_skill)
        d = gap_disparity(sure, hits, by_skill, reference="skilled", num_resamples=1)
        found |= {f"D, {kind}": d.estimate, f"D low, {kind}": d.low, f"D high, {kind}": d.high}
        found[f"ECE difference, {kind}"] = lines[1].ece - lines[0].ece
        if kind != "plain":
            continue
        found["D in cells"], found["share in cells"] = within_cells(sure, hits, weak["test"], cells)
        low, high = REGIONS[env]
        by_region = np.where(outside, high, low)
        for name, here in ((low, ~outside), (high, outside)):
            gap = gap_disparity(sure[here], hits[here], by_skill[here], reference="skilled", num_resamples=1)
            found[f"D, {name}"] = gap.estimate
        d = gap_disparity(sure, hits, by_region, reference=low, num_resamples=1)
        found |= {"D of regions": d.estimate, "D of regions low": d.low, "D of regions high": d.high}
        for line in lines + group_calibration(sure, hits, by_region):
            ends = {"gap low": line.gap_interval.low, "gap high": line.gap_interval.high}
            both = {name: getattr(line, name) for name in ("rows", "accuracy", "confidence", "gap", "ece")}
            found |= {f"{name}, {line.group}": float(number) for name, number in {**both, **ends}.items()}
    return found


def leakage(agent: BC, training: Demonstrations, others: Demonstrations, settings: dict[str, Any]) -> dict[str, float]:
    """The success of each attack, and of the prior."""
    seed = settings["seed"]
    (layer,), (more,) = action_layers(agent, training), action_layers(agent, others)

    def some(of: LastLayer, count: int) -> LastLayer:
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(of.features))[:count])
        return dataclasses.replace(of, features=of.features[order], target=of.target[order])

    layer, own = some(layer, settings["attacked"]), some(more, AUXILIARY)
    prior = torch.bincount(own.labels, minlength=len(own.weight)).double()
    found: dict[str, float] = {}
    for result in attack_rows(layer, prior=prior):
        found[result.attack], found["prior"] = result.success.estimate, result.prior
    for known in (True, False):
        alpha = settings["alpha"] if known else 0.0
        for result in attack_batches(layer, SIZES, alpha=alpha, auxiliary=own, seed=seed):
            size, is_llg = result.batch_size, result.attack == "LLG"
            knows = "" if is_llg else ", alpha known" if known else ", alpha ignored"
            found[f"{result.attack}{knows}, {size}"] = result.success.estimate
            found[f"prior, {size}"] = result.prior
    return found


def train(settings: dict[str, Any], *, folder: Path) -> Result:
    """One run."""
    env, seed = settings["env"], settings["seed"]
    parts: dict[str, list[Demonstrations]] = {"training": [], "tuning": [], "test": []}
    for skill in SKILLS:
        training, rest = demonstrations(folder, env, skill).split(0.5, seed=seed)
        for name, part in zip(parts, (training, *rest.split(0.6, seed=seed)), strict=True):
            parts[name].append(part)
    training, others = (concatenate(parts[name]) for name in ("training", "tuning"))
    agent = BC("MlpPolicy", None, training, smoothing=settings["alpha"], seed=seed, device="cpu")
    leaks = {"before": leakage(agent, training, others, settings)}
    agent.learn(settings["epochs"])
    leaks["after"] = leakage(agent, training, others, settings)
    found = calibration(agent, env, parts)
    found |= {f"{state}: {name}": number for state, one in leaks.items() for name, number in one.items()}
    return {name: round(number, 6) for name, number in found.items()}


# ---- tables and figure


def arm_of(env: str, alpha: float) -> str:
    """An arm's name."""
    return f"{env}, alpha {alpha:g}"


def predicted(base: Columns, alpha: float, num_actions: int, groups: Sequence[str] = SKILLS) -> list[float]:
    """D that theory expects of alpha, from the runs without smoothing of the same seeds."""
    reference, other = (
        predicted_gap(np.array(base[f"gap, {name}"]), np.array(base[f"confidence, {name}"]), alpha, num_actions)
        for name in groups
    )
    return list(other - reference)


def table(arms: Sequence[Columns], names: Mapping[str, str | list[list[float]]], form: str = "+.3f") -> list[str]:
    """A line a measure (its words, and its name or its columns), a column an alpha."""
    lines = [f"| | {' | '.join(f'alpha {alpha:g}' for alpha in ALPHAS)} |", "|---|" + "---:|" * len(ALPHAS)]
    for words, name in names.items():
        columns = [arm[name] for arm in arms] if isinstance(name, str) else name
        if not np.isfinite(columns).all():  # too few transitions of a kind, with --small
            continue
        cells = [in_words(interquartile_mean_interval(column), form) for column in columns]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    return [*lines, ""]


def over_rows(arms: Sequence[Columns], names: dict[str, tuple[str, str]]) -> list[str]:
    """Lines of mean ends of Welch intervals, and how many seeds' lie on one side of 0."""
    lines = []
    for words, (low, high) in names.items():
        cells = []
        for arm in arms:
            apart = sum(a > 0 or b < 0 for a, b in zip(arm[low], arm[high], strict=True))
            cells.append(f"{np.mean(arm[low]):+.3f} to {np.mean(arm[high]):+.3f}; {apart} of {len(arm[low])}")
        lines.append(f"| {words} | {' | '.join(cells)} |")
    return [*lines, ""]


def tables(runs: dict[str, Columns], env: str, returns: dict[str, float]) -> list[str]:
    """All tables of one environment."""
    arms, actions, (low, high) = [runs[arm_of(env, alpha)] for alpha in ALPHAS], ENVS[env], REGIONS[env]
    expected = {
        groups: [predicted(arms[0], alpha, actions, groups) for alpha in ALPHAS] for groups in (SKILLS, REGIONS[env])
    }
    rows = {name: np.mean(arms[0][f"rows, {name}"]) for name in (*SKILLS, low, high)}
    sizes = ", ".join(f"{name} {number:,.0f}" for name, number in rows.items())
    lines = [f"## {env}\n"]
    lines.append(
        f"Returns of the demonstrators: {returns['skilled']:.0f} and {returns['weak']:.0f}. Held-out transitions, mean "
        f"over seeds: {sizes}; {np.mean(arms[0]['share in cells']):.0%} of them in shared cells.\n"
    )
    lines += ["Over seeds:\n"]
    lines += table(
        arms,
        {f"{what}, {skill}": f"{what}, {skill}" for what in ("accuracy", "confidence", "gap") for skill in SKILLS}
        | {"D = gap_weak - gap_skilled": "D, plain"}
        | {"D predicted": expected[SKILLS]}
        | {"D within shared cells": "D in cells", f"D, {low} only": f"D, {low}", f"D, {high} only": f"D, {high}"}
        | {"ECE_weak - ECE_skilled": "ECE difference, plain"},
    )
    lines += ["D afterwards, over seeds:\n"]
    lines += table(arms, {words: f"D, {kind}" for kind, words in AFTER.items()})
    lines += ["Regions, over seeds:\n"]
    lines += table(
        arms,
        {f"{what}, {name}": f"{what}, {name}" for what in ("accuracy", "confidence", "gap") for name in (low, high)}
        | {f"gap_{high} - gap_{low}": "D of regions"}
        | {"predicted": expected[REGIONS[env]]},
    )
    lines += ["Over a seed's held-out transitions: mean ends of the Welch interval; seeds in which it leaves out 0:\n"]
    lines += table(arms, {})[:2]
    lines += over_rows(
        arms,
        {f"gap, {name}": (f"gap low, {name}", f"gap high, {name}") for name in (*SKILLS, low, high)}
        | {f"D, {words}": (f"D low, {kind}", f"D high, {kind}") for kind, words in AFTER.items()}
        | {f"gap_{high} - gap_{low}": ("D of regions low", "D of regions high")},
    )
    for state in STATES:
        lines += [f"Share of actions found, {state} training:\n"]
        names = [name for name in arms[0] if name.startswith(f"{state}: ")]
        lines += table(arms, {name.partition(": ")[2]: name for name in names}, ".3f")
    return lines


def draw(path: Path, runs: dict[str, Columns], seeds: int) -> None:
    """A row an environment: gaps, D, and attacks."""
    with mpl.rc_context({**STYLE, "axes.titlepad": 8}):
        figure = Figure(figsize=(17, 9), dpi=100, layout="constrained")
        figure.suptitle(f"A clone of a skilled and a weak demonstrator; {seeds} seeds, 95 % intervals over seeds")
        for (env, actions), (gaps, disparities, attacks) in zip(ENVS.items(), figure.subplots(2, 3), strict=True):
            arms = [runs[arm_of(env, alpha)] for alpha in ALPHAS]
            for shift, (name, colour) in zip((-1.0, 1.0), zip(SKILLS, (BLUE, ORANGE), strict=True), strict=True):
                marks(gaps, [arm[f"gap, {name}"] for arm in arms], shift, colour, name)
            gaps.set(title=f"{env}: signed gap, by demonstrator", xlabel="alpha")
            kinds = [("D, plain", "all states", BLUE), ("D in cells", "shared cells", GREEN)]
            kinds += [("D, by_group", AFTER["by_group"], ORANGE), ("D, with_bias", "with a bias", RED)]
            for shift, (name, words, colour) in zip((-1.5, -0.5, 0.5, 1.5), kinds, strict=True):
                marks(disparities, [arm[name] for arm in arms], shift, colour, words)
            theory = [interquartile_mean_interval(predicted(arms[0], alpha, actions)).estimate for alpha in ALPHAS]
            disparities.plot(ALPHAS, theory, "--", color=INK, linewidth=1, label="predicted")
            disparities.set(title=f"{env}: gap of the weak less the skilled", xlabel="alpha")
            for axes in (gaps, disparities):
                axes.axhline(0, color=INK, linewidth=1)
                axes.legend(frameon=False, fontsize=9)
            counted = ("iLRG", "auxiliary", "counts, softmax(bias)")
            batches = ["LLG, 32", *(f"{name}, alpha known, 32" for name in counted)]
            shown = ["prior", "exact", "sign", "argmin", "iDLG", "prior, 32", *batches]
            for shift, alpha, arm in zip((-1.5, -0.5, 0.5, 1.5), ALPHAS, arms, strict=True):
                columns = [arm[f"after: {name}"] for name in shown]
                places = np.arange(len(shown)) + 0.15 * shift
                bars(attacks, places, columns, COLOURS[alpha], f"alpha {alpha:g}")
            ticks = [re.sub(r"counts, |softmax|[()]|, alpha known", "", name).replace(", ", "\n") for name in shown]
            attacks.set_xticks(range(len(shown)), ticks, fontsize=8)
            attacks.set(ylim=(0, 1.05), title=f"{env}: actions found, after training")
            attacks.legend(frameon=False, loc="lower left", fontsize=9)
        save_figure(path, figure)


def marks(axes: Any, columns: list[list[float]], shift: float, colour: str, words: str) -> None:
    """A point an alpha, beside it."""
    bars(axes, np.array(ALPHAS) + 0.004 * shift, columns, colour, words)


def bars(axes: Any, places: Any, columns: list[list[float]], colour: str, words: str) -> None:
    """Points with their intervals over seeds."""
    found = [interquartile_mean_interval(column) for column in columns]
    reach = [[it.estimate - it.low for it in found], [it.high - it.estimate for it in found]]
    axes.errorbar(places, [it.estimate for it in found], reach, fmt="o", markersize=4, color=colour, label=words)


def main(args: Args) -> None:
    """Run it and write the summary."""
    folder, summary = results_folder(args, "policies")
    returns = make_demonstrations(folder, small=args.small)
    seeds = range(3) if args.small else range(10)
    size = {"epochs": 1, "attacked": 64} if args.small else {"epochs": 20, "attacked": 640}
    jobs = [
        Job(f"{env}_{alpha:g}_{seed}", {"arm": arm_of(env, alpha), "env": env, "alpha": alpha, "seed": seed, **size})
        for env in ENVS
        for seed in seeds
        for alpha in ALPHAS
    ]
    found = run_jobs(jobs, functools.partial(train, folder=folder), folder=folder, workers=args.workers)
    arms = by_arm(jobs, found)
    runs = {arm: {name: [run[name] for run in of_arm] for name in of_arm[0]} for arm, of_arm in arms.items()}
    lines = ["# A clone of two demonstrators: calibration by group, and actions in its gradients\n"]
    lines.append(f"{(__doc__ or '').partition(chr(10) + chr(10))[2].strip()}\n")
    for env in ENVS:
        lines += tables(runs, env, returns[env])
    lines.append("Reproduce: `make study-policies`. Figure: [policies.png](policies.png).\n")
    write_study(summary, "policies", report="\n".join(lines), data={"alphas": ALPHAS, "returns": returns, "runs": runs})
    draw(summary / "policies.png", runs, len(seeds))
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(run_command("study policies", Args, main))
