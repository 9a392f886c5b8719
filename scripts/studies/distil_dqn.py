"""Study: a policy supervised by a value function, by distilling a DQN.

CartPole-v1 and Acrobot-v1; SB3's DQN with rl-zoo3's hyperparameters, 50,000 steps on CartPole-v1 and 20,000 (of
rl-zoo3's 100,000) on Acrobot-v1, as it is after the last step. Teachers are the first 3 seeds that return more than 400
and -150: in a first run without that bar 2 of 6 had failed (19 and -500), and there was nothing to distil. All else was
fixed before running, after a pilot with another teacher. A teacher acts greedily for 20 episodes to learn from and for
20 held-out ones. 10 students an arm: student s learns from teacher s mod 3, from 2 (CartPole-v1) or 4 (Acrobot-v1) of
its episodes, drawn by s, by BC for 1,000 batches of 64. The target of each state, by arm: the action of the highest
value (*one-hot*); the same smoothed by 0.1; or all values, as softmax(Q / T), with T the median gap between the two
highest values of the 20 episodes, or a quarter of it (a median, since gaps have a long tail: in most states it matters
little what one does).

Reported: the return of 30 episodes of sampled and of deterministic actions; the policy's entropy over log n, its
agreement with the teacher (same most probable action), its calibration error against the teacher's action (15 bins)
and the signed gap (confidence less agreement), all on the held-out episodes. Beside them a random policy, the teachers,
and the teachers when they sample from softmax(Q / T) themselves. Interquartile means over students with 95 % bootstrap
intervals; the students' differences from *one-hot* are taken student by student, since the arms share teacher, episodes
and initial weights. The intervals are about students of these teachers, not about other teachers.
"""

from __future__ import annotations

import dataclasses
import functools
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
from torch import Tensor

from rlsmooth.agents import BC
from rlsmooth.audits import calibration_error, confidence_gap, interquartile_mean_interval
from rlsmooth.data import Demonstrations
from rlsmooth.losses import entropy, log_probabilities
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.figures.page import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, STYLE, save_figure
from rlsmooth.scripts.studies.distil_dqn_teachers import (
    BARS,
    BUDGETS,
    TEACHERS,
    TEMPERATURES,
    median_gap,
    taught,
    values_in,
)
from rlsmooth.scripts.studies.runner import Args, Job, Result, in_words, results_folder, run_jobs, write_study
from rlsmooth.scripts.studies.study_callbacks import mean_return
from rlsmooth.targets import boltzmann

EPISODES = {"CartPole-v1": 2, "Acrobot-v1": 4}  # a student's
NUM_TEACHERS = 3
# Smoothing of the teacher's action, or the temperature of its values.
ARMS: dict[str, dict[str, float | None]] = {
    "one-hot": {"smoothing": 0.0, "temperature": None},
    "one-hot, smoothed by 0.1": {"smoothing": 0.1, "temperature": None},
    **{arm: {"smoothing": 0.0, "temperature": temperature} for arm, temperature in TEMPERATURES.items()},
}
MEASURES = {
    "sampled": ("return, sampled", ".1f"),
    "deterministic": ("return, deterministic", ".1f"),
    "entropy": ("entropy / log n", ".3f"),
    "agreement": ("agreement", ".3f"),
    "ece": ("calibration error", ".3f"),
    "gap": ("confidence less agreement", "+.3f"),
}
COLOURS = (GREY, BLUE, ORANGE, PURPLE)


def lesson(demonstrations: Demonstrations, q_values: Tensor, temperature: float | None) -> Demonstrations:
    """The episodes, with softmax(Q / T) in place of their actions unless there is no temperature.

    Args:
        demonstrations: N transitions.
        q_values: `[N, K]`.
        temperature: T in median gaps of these values.
    """
    if temperature is None:
        return demonstrations
    target = boltzmann(q_values.double(), temperature * median_gap(q_values))
    return dataclasses.replace(demonstrations, action_probs=target.dense(torch.float64).numpy())


def judged(logits: Tensor, actions: Tensor) -> dict[str, float]:
    """Entropy, agreement and calibration of a policy, given a teacher's actions.

    Args:
        logits: `[N, K]`, the policy's.
        actions: int64 `[N]`, the teacher's.
    """
    confidences, chosen = log_probabilities(logits.double()).exp().max(-1)
    hits = chosen == actions
    return {
        "entropy": float(entropy(logits.double(), reduction="mean")) / math.log(logits.shape[-1]),
        "agreement": float(hits.double().mean()),
        "ece": float(calibration_error(confidences, hits)),
        "gap": float(confidence_gap(confidences, hits)),
    }


def distil(settings: dict[str, Any], *, folder: Path) -> Result:
    """One student."""
    env, seed, number = settings["env"], settings["seed"], settings["teacher"]
    demonstrations, held_out = (
        Demonstrations.load(folder / f"{env}_{number}_{part}.npz") for part in ("training", "held_out")
    )
    episodes = lesson(demonstrations, values_in(folder, env, number, "training"), settings["temperature"])
    episodes = episodes.sample_episodes(settings["episodes"], seed=seed)
    student = BC("MlpPolicy", None, episodes, smoothing=settings["smoothing"], seed=seed, device="cpu")
    student.learn(total_batches=settings["batches"])
    policy: Any = student.policy
    with torch.no_grad():
        logits = policy.get_distribution(torch.as_tensor(np.asarray(held_out.observations))).distribution.logits
    returns = {
        kind: mean_return(
            student,
            env,
            seed=4_000 + seed,
            episodes=settings["evaluation"],
            deterministic=kind == "deterministic",
        )
        for kind in ("sampled", "deterministic")
    }
    return {**returns, **judged(logits, torch.as_tensor(held_out.action_labels)), "transitions": len(episodes)}


def draw_measure(axes: Axes, arms: Mapping[str, Sequence[Result]], measure: str) -> None:
    """Each student a dot, the interquartile mean and its interval beside them."""
    rng = np.random.default_rng(0)
    for place, (colour, runs) in enumerate(zip(COLOURS, arms.values(), strict=True)):
        values = [run[measure] for run in runs]
        spread = rng.uniform(-0.16, 0.0, len(values))
        axes.scatter(values, place + spread - 0.08, s=18, color=colour, alpha=0.5, linewidths=0)
        found = interquartile_mean_interval(values)
        axes.hlines(place + 0.2, found.low, found.high, color=colour, linewidth=3)
        axes.plot(found.estimate, place + 0.2, "o", color=colour, markersize=8)
    axes.set(ylim=(len(arms) - 0.5, -0.6), yticks=range(len(arms)))
    axes.set_xlabel(MEASURES[measure][0])


def chart(path: Path, students: Mapping[str, Mapping[str, Sequence[Result]]], teachers: Mapping[str, Any]) -> None:
    """Draw a row an environment, a column a measure."""
    measures = ("sampled", "entropy", "agreement", "ece")
    with mpl.rc_context({**STYLE, "axes.titlepad": 8, "axes.titlesize": 13}):
        figure = Figure(figsize=(4.1 * len(measures) + 2.4, 3.3 * len(students) + 0.6), dpi=100, layout="constrained")
        figure.suptitle("A DQN distilled into a policy: the student's target of each state")
        grid = figure.subplots(len(students), len(measures), sharey=True, squeeze=False)
        for row, (env, arms) in zip(grid, students.items(), strict=True):
            for axes, measure in zip(row, measures, strict=True):
                draw_measure(axes, arms, measure)
            row[0].set_yticks(range(len(arms)), list(arms))
            row[0].set_title(env)
            greedy = [teacher["deterministic"] for teacher in teachers[env]]
            row[0].axvline(float(np.mean(greedy)), color=GREEN, linestyle="--", label="teachers, greedy")
            chance = [teacher["random"] for teacher in teachers[env]]
            row[0].axvline(float(np.mean(chance)), color=INK, linestyle=":", label="random policy")
        above = grid[0, 0].legend(frameon=False, loc="lower left", bbox_to_anchor=(0.35, 1.0), ncols=2, fontsize=10)
        above.set_in_layout(False)  # wider than its axes
        save_figure(path, figure)


def section(
    env: str, arms: Mapping[str, Sequence[Result]], teachers: Sequence[Result], failed: list[float]
) -> list[str]:
    """An environment's part of the report."""
    others = [("random policy", "random"), ("teachers, greedy", "deterministic")]
    others += [(f"teachers, {arm}", arm) for arm in TEMPERATURES]
    lengths = [run["transitions"] for run in arms["one-hot"]]
    value_gaps = [teacher["gap"] for teacher in teachers]
    lines = [
        f"\n## {env}\n",
        "Returns, teacher by teacher: "
        + "; ".join(f"{name} {', '.join(f'{teacher[key]:.1f}' for teacher in teachers)}" for name, key in others)
        + f". The median gaps of their values: {', '.join(f'{gap:.3f}' for gap in value_gaps)}. "
        f"Teachers left out, by their return: {', '.join(f'{value:.1f}' for value in failed) or 'none'}. "
        f"A student learns from {min(lengths)} to {max(lengths)} transitions.\n",
        f"| students | {' | '.join(label for label, _ in MEASURES.values())} |",
        "|---|" + "---:|" * len(MEASURES),
    ]
    for arm, runs in arms.items():
        cells = [
            in_words(interquartile_mean_interval([run[measure] for run in runs]), form)
            for measure, (_, form) in MEASURES.items()
        ]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    lines += [
        f"\n| less *one-hot*, student by student | {' | '.join(label for label, _ in MEASURES.values())} |",
        "|---|" + "---:|" * len(MEASURES),
    ]
    for arm, runs in list(arms.items())[1:]:
        cells = []
        for measure, (_, form) in MEASURES.items():
            gaps = [run[measure] - hard[measure] for run, hard in zip(runs, arms["one-hot"], strict=True)]
            cells.append(in_words(interquartile_mean_interval(gaps), f"+{form.lstrip('+')}"))
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return lines


def main(args: Args) -> None:
    """Run it and write the summary."""
    runs, summary = results_folder(args, "distil_dqn")
    seeds, num_teachers = (range(3), 1) if args.small else (range(10), NUM_TEACHERS)
    episodes, evaluation, batches = (4, 2, 100) if args.small else (20, 30, 1_000)
    budgets = {"CartPole-v1": 1_200} if args.small else BUDGETS
    teachers, failed, jobs = {}, {}, []
    for env, budget in budgets.items():
        found = taught(
            env,
            {"budget": budget, "episodes": episodes, "evaluation": evaluation},
            wanted=num_teachers,
            bar=-math.inf if args.small else BARS[env],
            folder=runs / "teachers",
            workers=args.workers,
        )
        good = [(number, result) for number, result in found if args.small or result["deterministic"] > BARS[env]]
        teachers[env] = [result for _, result in good]
        failed[env] = [result["deterministic"] for number, result in found if (number, result) not in good]
        jobs += [
            Job(
                f"{env}_{place}_{seed}",
                {
                    "arm": arm,
                    "env": env,
                    "seed": seed,
                    "teacher": good[seed % num_teachers][0],
                    "episodes": EPISODES[env],
                    "evaluation": evaluation,
                    "batches": batches,
                    **chosen,
                },
            )
            for seed in seeds
            for place, (arm, chosen) in enumerate(ARMS.items())
        ]
    results = run_jobs(
        jobs, functools.partial(distil, folder=runs / "teachers"), folder=runs / "students", workers=args.workers
    )
    students: dict[str, dict[str, list[Result]]] = {env: {arm: [] for arm in ARMS} for env in budgets}
    for job, result in zip(jobs, results, strict=True):
        students[job.settings["env"]][job.settings["arm"]].append(result)
    lines = ["# A policy supervised by a value function\n", (__doc__ or "").partition("\n\n")[2].strip()]
    for env, arms in students.items():
        lines += section(env, arms, teachers[env], failed[env])
    lines.append("\nReproduce: `make study-distil-dqn`. Figure: [distil_dqn.png](distil_dqn.png).\n")
    chosen_before = {"arms": ARMS, "budgets": budgets, "bars": BARS, "hyperparameters": TEACHERS}
    data = {**chosen_before, "teachers": teachers, "failed": failed, "students": students}
    write_study(summary, "distil_dqn", report="\n".join(lines), data=data)
    chart(summary / "distil_dqn.png", students, teachers)
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(run_command("study distil-dqn", Args, main))
