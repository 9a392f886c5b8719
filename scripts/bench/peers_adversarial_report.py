"""The page of `peers_adversarial.py`: a table of returns and a table of times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlsmooth.audits import interquartile_mean_difference, interquartile_mean_interval
from rlsmooth.audits.intervals import Interval, mean_interval
from rlsmooth.scripts.bench.measure import markdown_table, paired_ratio, spread

PEER, QUIET = "imitation", "imitation, quiet"
KINDS = ("deterministic", "sampled")
OURS = ("hard labels", "smoothing 0.1", "as imitation", "defaults", "real_target 0.9")
ARMS = (PEER, QUIET, *OURS, "learned", "learned, real_target 0.9")
PLANNED_SEEDS = 10
"""Those of the first table; later ones were added afterwards, and have a table of their own."""
Run = dict[str, Any]
Cells = dict[tuple[str, str], dict[str, list[Run]]]


def cells_of(runs: Sequence[Run]) -> Cells:
    """The runs by (environment, algorithm) and arm, in the order of their seeds."""
    cells: Cells = {}
    for run in sorted(runs, key=lambda run: (run["job"]["seed"], ARMS.index(run["job"]["arm"]))):
        job = run["job"]
        cells.setdefault((job["env"], job["algorithm"]), {}).setdefault(job["arm"], []).append(run)
    return {cell: {arm: arms[arm] for arm in ARMS if arm in arms} for cell, arms in sorted(cells.items(), key=_place)}


def _place(item: tuple[tuple[str, str], Any]) -> tuple[int, str]:
    (env, algorithm), _ = item
    return ("BC", "DAgger", "GAIL", "AIRL").index(algorithm), env


def report(head: str, runs: Sequence[Run], times: Sequence[Run], *, command: str, machine: dict[str, Any]) -> str:
    """The page.

    Args:
        head: the script's docstring.
        runs: of the first pass.
        times: of the second.
        command: that makes the results again.
        machine: what they were measured on.
    """
    lines = ["# BC, DAgger, GAIL and AIRL beside imitation\n", f"{head.partition(chr(10) + chr(10))[2].strip()}\n"]
    for side, found in sorted({run["job"]["side"]: run["environment"] for run in (*runs, *times)}.items()):
        lines.append(f"- {side}: {', '.join(f'{name} {version}' for name, version in found.items())}")
    if not any(run["job"]["side"] == "imitation" for run in (*runs, *times)):
        lines.append("- imitation: not installed, so that nothing is compared")
    lines.append(f"- machine: {machine['cpu']}, {machine['cores']} cores, {machine['system']}, {machine['date']}\n")
    planned = [run for run in runs if run["job"]["seed"] < PLANNED_SEEDS]
    lines += ["## Returns\n", returns_table(cells_of(planned)), ""]
    lines += later_table(cells_of([run for run in runs if run["job"]["seed"] >= PLANNED_SEEDS]))
    lines += ["## Times of training\n", times_table(cells_of(times))]
    loads = [run["result"]["load"][0] for run in times if run["result"].get("load")]
    if loads:
        found = spread(loads)
        lines.append(
            f"\nLoad average before these runs: {found.median:.1f} ({found.minimum:.1f} to {found.maximum:.1f}). They "
            "make 1 of it; more is other work, which lengthens wall times too: compare the CPU times then."
        )
    lines.append(f"\nReproduce: `{command}`.")
    return "\n".join(lines)


def returns_table(cells: Cells) -> str:
    """Interquartile means over seeds, with 95 % intervals of three and more, and the lead over the peer."""
    rows = []
    for (env, algorithm), arms in cells.items():
        for arm, runs in arms.items():
            row = [f"{algorithm}, {env}: {arm}", str(len(runs))]
            for kind in KINDS:
                values = [run["result"][kind] for run in runs]
                enough = len(values) >= 3
                row.append(_words(interquartile_mean_interval(values), ".1f") if enough else f"{np.mean(values):.1f}")
                peer = [run["result"][kind] for run in arms.get(PEER, [])]
                is_compared = enough and len(peer) >= 3 and arm != PEER
                row.append(_words(interquartile_mean_difference(values, peer), "+.1f") if is_compared else "")
            rows.append(row)
    return markdown_table(("cell", "seeds", "deterministic", "less imitation's", "sampled", "less imitation's"), rows)


def later_table(cells: Cells) -> list[str]:
    """The returns on seeds that were added, and the leads seed by seed; empty where there are none."""
    if not cells:
        return []
    seeds = sorted({run["job"]["seed"] for arms in cells.values() for runs in arms.values() for run in runs})
    lines = [f"### Seeds {seeds[0]} to {seeds[-1]}, added afterwards\n", returns_table(cells), ""]
    for (env, algorithm), arms in cells.items():
        for arm, runs in arms.items():
            peer = arms.get(PEER, [])
            if arm == PEER or len(peer) != len(runs) or len(runs) < 3:
                continue
            less = {
                kind: [one["result"][kind] - other["result"][kind] for one, other in zip(runs, peer, strict=True)]
                for kind in KINDS
            }
            words = ", ".join(f"{kind} {_words(mean_interval(gaps), '+.1f')}" for kind, gaps in less.items())
            lines.append(
                f"{algorithm}, {env}, {arm} less imitation, seed by seed (both have the same demonstrations), mean "
                f"with Student's t interval: {words}.\n"
            )
    return lines


def times_table(cells: Cells) -> str:
    """Medians over the repeats, and the median ratio to the peer's time of the same repeat."""
    rows = []
    for (env, algorithm), arms in cells.items():
        for arm, runs in arms.items():
            row = [f"{algorithm}, {env}: {arm}", str(len(runs))]
            for unit in ("seconds", "cpu_seconds"):
                values = [run["result"][unit] for run in runs]
                found = spread(values)
                row.append(f"{found.median:.2f} ({found.minimum:.2f} to {found.maximum:.2f})")
                peer = [run["result"][unit] for run in arms.get(PEER, [])]
                ratio = paired_ratio(values, peer) if len(peer) == len(values) and arm != PEER else None
                row.append("" if ratio is None else f"{ratio.median:.2f} ({ratio.minimum:.2f} to {ratio.maximum:.2f})")
            rows.append(row)
    return markdown_table(("cell", "runs", "wall s", "to imitation's", "CPU s", "to imitation's"), rows)


def _words(interval: Interval, form: str) -> str:
    return f"{interval.estimate:{form}} ({interval.low:{form}} to {interval.high:{form}})"
