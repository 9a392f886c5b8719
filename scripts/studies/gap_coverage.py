"""Study: how often do the intervals of a group's signed gap, and of two groups' difference, hold the truth?

Fixed before running: simulated rows of two classes, `z` normal with a standard deviation of 2, a hit with probability
`sigmoid(|z|)`. The confidence of a calibrated group is that probability, of an overconfident one `sigmoid(2 |z|)`,
whose gap is 0.09. Group B has 30, 100 or 300 rows; the reference A has 1,000 or as many as B. Cells: both calibrated,
both overconfident, A calibrated and B overconfident. Intervals of 95 %: B's own gap; the difference by Welch and by the
bootstrap, as `group_calibration` and `gap_disparity` report them; the difference by Welch without pseudo-rows; and of
three groups (another one like B), the group furthest from A, with the interval that allows for the choice. 4,000 data
sets a cell, of which 1,000 for the bootstrap of 300 resamples: the standard error of a coverage of 95 % is 0.3 and 0.7
points. How many pseudo-rows to add (half a hit and half a miss) was chosen before, among 0, 1/2, 1 and 2 of each, by a
simulation of this law and three others with other random numbers: of these, 1/2 alone stayed within 93 to 97 %.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from scipy import stats

from rlsmooth.audits import gap_disparity, group_calibration
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.studies.runner import Args, Job, Result, results_folder, run_jobs, write_study

SLOPES = {"calibrated": 1.0, "overconfident": 2.0}
CELLS = (("calibrated", "calibrated"), ("overconfident", "overconfident"), ("calibrated", "overconfident"))
COLUMNS = ("gap of B", "Welch", "bootstrap", "furthest of three", "Welch without pseudo-rows")


def true_gap(kind: str) -> float:
    """The signed gap of the law itself, by the trapezoid rule."""
    z = np.linspace(0.0, 24.0, 200_001)
    density = np.exp(-(z**2) / 8.0)
    excess = 1.0 / (1.0 + np.exp(-SLOPES[kind] * z)) - 1.0 / (1.0 + np.exp(-z))
    return float((excess * density).sum() / density.sum())


def draw(kind: str, rows: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Confidences and hits of one group."""
    z = np.abs(generator.normal(0.0, 2.0, rows))
    hits = generator.random(rows) < 1.0 / (1.0 + np.exp(-z))
    return 1.0 / (1.0 + np.exp(-SLOPES[kind] * z)), hits.astype(np.float64)


def simulate(settings: dict[str, Any]) -> Result:
    """The share of data sets whose interval holds the truth, by column of the table."""
    one, other, rows, reference_rows = (settings[name] for name in ("A", "B", "rows", "reference_rows"))
    generator = np.random.default_rng(settings["seed"])
    own_truth = true_gap(other)
    truth = own_truth - true_gap(one)
    held: dict[str, list[bool]] = {name: [] for name in COLUMNS}
    for trial in range(settings["trials"]):
        parts = [draw(one, reference_rows, generator), draw(other, rows, generator), draw(other, rows, generator)]
        names = ["A"] * reference_rows + ["B"] * rows
        confidences, hits = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        two = confidences[: len(names)], hits[: len(names)], names
        found = gap_disparity(*two, reference="A", num_resamples=1)
        three = gap_disparity(confidences, hits, [*names, *["C"] * rows], reference="A", num_resamples=1)
        own = group_calibration(*parts[1], names[reference_rows:], min_rows=10**9)[0].gap_interval
        plain = stats.ttest_ind(parts[1][0] - parts[1][1], parts[0][0] - parts[0][1], equal_var=False)
        held["gap of B"].append(own.low <= own_truth <= own.high)
        held["Welch"].append(found.low <= truth <= found.high)
        held["furthest of three"].append(three.low <= truth <= three.high)
        low, high = plain.confidence_interval()
        held["Welch without pseudo-rows"].append(bool(low <= truth <= high))
        if trial < settings["bootstrapped"]:
            drawn = gap_disparity(*two, reference="A", method="bootstrap", num_resamples=300, seed=trial)
            held["bootstrap"].append(drawn.low <= truth <= drawn.high)
    return {name: float(np.mean(values)) for name, values in held.items()}


def cells(*, trials: int, bootstrapped: int) -> list[Job]:
    """One job a cell of the table."""
    return [
        Job(
            f"{one}_{other}_{rows}_{reference}",
            {"A": one, "B": other, "rows": rows, "reference_rows": reference, "seed": seed}
            | {"trials": trials, "bootstrapped": bootstrapped},
        )
        for seed, (one, other) in enumerate(CELLS)
        for rows in (30, 100, 300)
        for reference in (1000, rows)
    ]


def main(args: Args) -> None:
    """Run it and write the table."""
    runs, summary = results_folder(args, "gap_coverage")
    jobs = cells(trials=20, bootstrapped=2) if args.small else cells(trials=4000, bootstrapped=1000)
    results = run_jobs(jobs, simulate, folder=runs, workers=args.workers)
    lines = [
        "# Coverage of the intervals of a group's signed gap\n",
        f"{(__doc__ or '').partition(chr(10) + chr(10))[2].strip()}\n",
        "Share of the data sets whose interval holds the truth, in percent:\n",
        f"| A | B | rows of A | rows of B | {' | '.join(COLUMNS)} |",
        f"|---|---|{'---:|' * (2 + len(COLUMNS))}",
    ]
    for job, result in zip(jobs, results, strict=True):
        cell = job.settings
        numbers = " | ".join(f"{100 * result[name]:.1f}" for name in COLUMNS)
        lines.append(f"| {cell['A']} | {cell['B']} | {cell['reference_rows']} | {cell['rows']} | {numbers} |")
    lines.append("\nReproduce: `make study-gap-coverage`.\n")
    data = {"cells": [{**job.settings, **result} for job, result in zip(jobs, results, strict=True)]}
    write_study(summary, "gap_coverage", report="\n".join(lines), data=data)
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(run_command("study gap-coverage", Args, main))
