"""Samples a second of behaviour cloning: ours, a hand-written torch loop, and two peers, interleaved in one run.

Every competitor trains a 64x64 tanh network on the same CartPole data at learning rate 1e-3 with Adam, on one thread,
in a process of its own that lives as long as the run. The driver asks them in turn, in a new random order each round,
for a timed segment of a fixed number of batches; ratios are taken within a round, so that a slow moment of the machine
strikes both sides. What each competitor does in a batch is in `bc_worker.py`; how to install the peers, in
`README.md`.
"""

from __future__ import annotations

import dataclasses
import math
import random
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from rlsmooth.scripts.bench.measure import (
    Spread,
    command_line,
    load_average,
    machine,
    markdown_table,
    paired_ratio,
    spread,
    write_result,
)
from rlsmooth.scripts.bench.worker import Worker

SCRIPT = "scripts/bench/bc_speed.py"
LABELS = {
    "rlsmooth": "rlsmooth.agents.BC, logging on",
    "rlsmooth_numpy": "the same, engine numpy",
    "torch": "hand-written loop",
    "torch_fused": "hand-written loop, fused Adam",
    "imitation": "imitation.BC",
    "d3rlpy": "d3rlpy.DiscreteBC",
}
REQUIRED = ("rlsmooth", "rlsmooth_numpy", "torch", "torch_fused")
NUM_ROWS = 12_288  # a multiple of every default batch size: nobody meets a smaller last batch
REQUIRED_BATCH_SIZE, REQUIRED_RATIO = 256, 0.9


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    batch_sizes: tuple[int, ...] = (32, 256, 4096)
    """Batch sizes, each a divisor of 12,288."""
    rounds: int = 9
    """Timed segments of each competitor at each batch size."""
    seconds: float = 1.5
    """Length of a timed segment; the number of batches in it is set once, in the warm-up."""
    imitation_python: Path | None = None
    """Interpreter of the environment that has `imitation`; without it the row says so."""
    d3rlpy_python: Path | None = None
    """Interpreter of the environment that has `d3rlpy`; without it the row says so."""
    data: Literal["cartpole-v1", "random"] = "cartpole-v1"
    """The shipped demonstrations (repeated or cut to 12,288 transitions) or random ones of the same shape."""
    seed: int = 0
    """Seed of the order of the segments and of the random data."""
    output: Path | None = None
    """Folder of `bc_speed.json` and `bc_speed.md`; default: results/ beside this file, or nowhere with --quick."""
    quick: bool = False
    """Two rounds of a few batches: shows that the benchmark works, measures nothing worth keeping."""


def make_data(name: str, seed: int) -> dict[str, np.ndarray]:
    """12,288 CartPole transitions: observations [N, 4] float32, actions [N] int64 in {0, 1}, episode_ends [E] int64."""
    if name == "random":
        rng = np.random.default_rng(seed)
        observations = rng.normal(scale=[0.5, 0.5, 0.05, 0.5], size=(NUM_ROWS, 4)).astype(np.float32)
        pushes_right = observations[:, 2] + 0.1 * observations[:, 3] > 0
        actions = np.where(rng.random(NUM_ROWS) < 0.1, ~pushes_right, pushes_right).astype(np.int64)
        ends = np.append(np.arange(512, NUM_ROWS, 512), NUM_ROWS)
    else:
        from rlsmooth.data import cartpole_v1

        shipped = cartpole_v1()
        length = len(shipped)
        rows = np.arange(NUM_ROWS) % length
        observations = np.asarray(shipped.observations)[rows].astype(np.float32)
        actions = np.asarray(shipped.actions)[rows].astype(np.int64)
        repeats = np.concatenate(
            [np.asarray(shipped.episode_ends) + length * copy for copy in range(-(-NUM_ROWS // length))]
        )
        ends = np.append(repeats[repeats < NUM_ROWS], NUM_ROWS)
    return {
        "observations": observations,
        "actions": actions,
        "episode_ends": ends.astype(np.int64),
        "num_actions": np.array(2),
    }


def save_data(path: Path, data: dict[str, np.ndarray]) -> None:
    """Write `data` where the workers read it."""
    np.savez(
        path,
        observations=data["observations"],
        actions=data["actions"],
        episode_ends=data["episode_ends"],
        num_actions=data["num_actions"],
    )


def warm_up(worker: Worker, batch_size: int, seconds: float, quick: bool) -> int:
    """Build the competitor, warm it up and return how many batches take `seconds` (0: it failed)."""
    num_batches = 2 if quick else 50
    worker.ask("prepare", batch_size, num_batches)
    for _ in range(1 if quick else 3):
        if worker.problem:
            return 0
        reply = worker.ask("run", batch_size, num_batches)
        if "error" not in reply:
            num_batches = max(1, math.ceil(num_batches * seconds / reply["seconds"]))
    return num_batches


def measure(workers: dict[str, Worker], args: Args) -> tuple[dict[tuple[str, int], int], list[dict[str, Any]]]:
    """Run all rounds; return the batches of a segment by competitor and batch size, and one record a segment."""
    rounds, seconds = (2, 0.02) if args.quick else (args.rounds, args.seconds)
    segment_batches = {}
    for name, worker in workers.items():
        worker.environment = worker.ask("environment")
        for batch_size in args.batch_sizes:
            if not worker.problem:
                print(f"warming up {name} at batch {batch_size}", file=sys.stderr)
                segment_batches[name, batch_size] = warm_up(worker, batch_size, seconds, args.quick)
    order = random.Random(args.seed)
    records = []
    for round_number in range(rounds):
        print(f"round {round_number + 1} of {rounds}", file=sys.stderr)
        for batch_size in order.sample(args.batch_sizes, len(args.batch_sizes)):
            running = [worker for worker in workers.values() if not worker.problem]
            for worker in order.sample(running, len(running)):
                num_batches = segment_batches[worker.competitor, batch_size]
                reply = worker.ask("run", batch_size, num_batches)
                if "error" not in reply:
                    record = {"round": round_number, "competitor": worker.competitor, "batch_size": batch_size}
                    records.append({**record, "num_batches": num_batches, **reply})
    return segment_batches, records


def summarise(workers: dict[str, Worker], records: list[dict[str, Any]], args: Args) -> list[dict[str, Any]]:
    """One row a batch size and competitor: samples a second, and ratios to both hand-written loops, round by round."""
    rows = []
    for batch_size in args.batch_sizes:
        of_size = [record for record in records if record["batch_size"] == batch_size]
        rates, cpu_rates, busy = {}, {}, {}
        for name, worker in workers.items():
            runs = [record for record in of_size if record["competitor"] == name] if not worker.problem else []
            rates[name] = [run["num_batches"] * batch_size / run["seconds"] for run in runs]
            cpu_rates[name] = [run["num_batches"] * batch_size / max(run["cpu_seconds"], 1e-9) for run in runs]
            busy[name] = [run["cpu_seconds"] / run["seconds"] for run in runs]
        for name, worker in workers.items():
            row: dict[str, Any] = {"batch_size": batch_size, "competitor": name, "label": LABELS[name]}
            row["status"] = worker.problem or "measured"
            if rates[name]:
                row["samples_per_second"] = dataclasses.asdict(spread(rates[name]))
                row["cpu_share"] = spread(busy[name]).median
                for loop in ("torch", "torch_fused"):
                    if rates[loop]:
                        row[f"ratio_to_{loop}"] = dataclasses.asdict(paired_ratio(rates[name], rates[loop]))
                        row[f"cpu_ratio_to_{loop}"] = dataclasses.asdict(paired_ratio(cpu_rates[name], cpu_rates[loop]))
            rows.append(row)
    return rows


def to_markdown(result: dict[str, Any]) -> str:
    """The page a person reads: one table a batch size, the requirement, and what the figures were taken on."""
    lines = ["# Behaviour cloning: samples a second", ""]
    lines += ["MLP 64x64 (tanh), CartPole (4 observations, 2 actions), one thread. Median [quartiles] over rounds.", ""]
    header = ["competitor", "samples/s", "quartiles", "x loop", "quartiles", "x fused loop", "x loop, CPU time", "busy"]
    for batch_size in result["settings"]["batch_sizes"]:
        table = [_cells(row) for row in result["rows"] if row["batch_size"] == batch_size]
        lines += [f"## Batch {batch_size}", "", markdown_table(header, table), ""]
    lines += [f"**{result['verdict']}**", "", "## How", ""]
    where, settings = result["machine"], result["settings"]
    lines += [
        f"- `{result['command']}`",
        f"- {where['date']}, {where['cpu']}, {where['cores']} cores, {where['system']}; load average before"
        f" {result['load_before']}, after {result['load_after']} (the run itself makes 1; more is somebody else).",
        f"- {settings['rounds']} interleaved rounds in random order (seed {settings['seed']}), segments of about"
        f" {settings['seconds']} s, data {settings['data']}, {NUM_ROWS:,} transitions.",
        "- Ratios are taken round by round. 'CPU time' counts the process's own CPU seconds, which time lost to other"
        " programs does not enter; 'busy' is CPU time over wall-clock time (below 1: others took the core).",
    ]
    for name, environment in result["environments"].items():
        if "error" not in environment:
            shown = ", ".join(f"{package} {version}" for package, version in environment.items())
            lines.append(f"- {LABELS[name]}: {shown}")
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    if "samples_per_second" not in row:
        return [row["label"], row["status"], "", "", "", "", "", ""]
    rate = Spread(**row["samples_per_second"])
    cells = [row["label"], f"{rate.median:,.0f}", f"{rate.lower_quartile:,.0f}-{rate.upper_quartile:,.0f}"]
    if "ratio_to_torch" in row:
        ratio = Spread(**row["ratio_to_torch"])
        cells += [f"{ratio.median:.3f}", f"{ratio.lower_quartile:.3f}-{ratio.upper_quartile:.3f}"]
    else:
        cells += ["", ""]
    for key in ("ratio_to_torch_fused", "cpu_ratio_to_torch"):
        cells.append(f"{row[key]['median']:.3f}" if key in row else "")
    return [*cells, f"{row['cpu_share']:.2f}"]


def verdict(rows: list[dict[str, Any]]) -> str:
    """The requirement and whether these rows meet it."""
    goal = f"{REQUIRED_RATIO}x of the hand-written loop at batch {REQUIRED_BATCH_SIZE}, logging included"
    requirement = f"Required: at least {goal}"
    for row in rows:
        of_interest = row["competitor"] == "rlsmooth" and row["batch_size"] == REQUIRED_BATCH_SIZE
        if of_interest and "ratio_to_torch_fused" in row:
            ratio = row["ratio_to_torch"]["median"]
            fused = row["ratio_to_torch_fused"]["median"]
            met = "met" if ratio >= REQUIRED_RATIO else "NOT met"
            return f"{requirement}. Measured: {ratio:.3f}x, {met} ({fused:.3f}x of the loop with fused Adam)."
    return f"{requirement}. Not measured."


def main(args: Args) -> None:
    """Measure, print and write; exit with 1 if ours or a hand-written loop failed."""
    for batch_size in args.batch_sizes:
        if batch_size < 1 or NUM_ROWS % batch_size:
            raise ValueError(f"batch_sizes has {batch_size}, which does not divide {NUM_ROWS}: use a divisor.")
    load_before = load_average()
    with tempfile.TemporaryDirectory(prefix="bc_speed_") as name:
        folder = Path(name)
        save_data(folder / "data.npz", make_data(args.data, args.seed))
        pythons: dict[str, Path | None] = {
            **dict.fromkeys(REQUIRED, Path(sys.executable)),
            "imitation": args.imitation_python,
            "d3rlpy": args.d3rlpy_python,
        }
        workers = {name: Worker(name, python, folder / "data.npz", folder) for name, python in pythons.items()}
        try:
            segment_batches, records = measure(workers, args)
        finally:
            for worker in workers.values():
                worker.close()
    rows = summarise(workers, records, args)
    result = {
        "command": command_line(SCRIPT, args),
        "machine": machine(),
        "load_before": load_before,
        "load_after": load_average(),
        "settings": {
            "batch_sizes": list(args.batch_sizes),
            "rounds": 2 if args.quick else args.rounds,
            "seconds": 0.02 if args.quick else args.seconds,
            "data": args.data,
            "seed": args.seed,
            "num_rows": NUM_ROWS,
            "segment_batches": {f"{name}/{size}": count for (name, size), count in segment_batches.items()},
        },
        "environments": {name: worker.environment for name, worker in workers.items()},
        "verdict": verdict(rows),
        "rows": rows,
        "segments": records,
    }
    markdown = to_markdown(result)
    print(markdown)
    if args.output is not None or not args.quick:
        write_result(args.output or Path(__file__).with_name("results"), "bc_speed", result, markdown)
    failed = [name for name in REQUIRED if workers[name].problem]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main(tyro.cli(Args))
