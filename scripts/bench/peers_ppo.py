"""PPO on CartPole-v1 beside other libraries: steps a CPU second, CPU seconds from the command to a return of 475.

Each run is a process of its own on one core and one thread, which imports, compiles, trains for the same number of
steps with the same hyperparameters, and is evaluated. The competitors of a seed run one after the other in a random
order. How each is run is in `peers_ppo_worker.py`; how to install the peers, and what differs, in `README.md`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import tyro

from rlsmooth.scripts.bench.measure import (
    command_line,
    load_average,
    machine,
    markdown_table,
    paired_ratio,
    write_result,
)
from rlsmooth.scripts.bench.peers_ppo_worker import ENV, EPISODES, LEANRL_CHANGES, N_ENVS, ROLLOUT, SETTINGS, SOLVED
from rlsmooth.scripts.bench.worker import ONE_THREAD

SCRIPT = "scripts/bench/peers_ppo.py"
BASELINE = "stock"


@dataclasses.dataclass(frozen=True)
class Competitor:
    """Its name on the page, how the worker runs it, and which of the interpreters and checkouts it needs."""

    label: str
    kind: str
    options: Any = None
    python: str = ""
    checkout: str = ""


COMPETITORS = {
    BASELINE: Competitor("stable_baselines3.PPO", "stock"),
    "sbx": Competitor("SBX", "sbx", python="sbx"),
    "cleanrl": Competitor("CleanRL, ppo.py", "cleanrl", python="scripts", checkout="cleanrl"),
    "leanrl": Competitor("LeanRL, not compiled", "leanrl", [], "scripts", "leanrl"),
    "leanrl_compiled": Competitor("LeanRL, compiled", "leanrl", ["--compile"], "scripts", "leanrl"),
    "torch": Competitor("SmoothedPPO, torch", "ours", {"engine": "torch"}),
    "numpy": Competitor("SmoothedPPO, numpy", "ours", {"engine": "numpy"}),
    "smoothed": Competitor("SmoothedPPO(smoothing=0.01), numpy", "ours", {"engine": "numpy", "smoothing": 0.01}),
    "command_torch": Competitor("rlsmooth ppo --engine torch", "command", {"engine": "torch"}),
    "command_numpy": Competitor("rlsmooth ppo", "command", {"engine": "numpy"}),
}
DIFFERENCES = (
    "Stable-Baselines3, SBX and ours add the value of the last state where an episode is cut off after 500 steps;"
    " CleanRL and LeanRL take it for a terminal state.",
    "SBX has an Adam and a limit of the gradient's norm for each of the two networks, the others one for both; its"
    " initial weights are Flax's, the others' orthogonal.",
    "All write TensorBoard files but LeanRL, whose Weights & Biases is left out; CleanRL prints each return.",
    "CleanRL's `ppo.py` is unchanged. It and LeanRL halve the value loss, so their `--vf-coef` is 1.",
    "SmoothedPPO smooths nothing where the row doesn't say so, and is Stable-Baselines3's PPO bit for bit in torch;"
    " numpy draws the actions with other random numbers.",
    "`rlsmooth ppo` takes numpy by itself, writes a checkpoint each 50,000 steps, and evaluates after training"
    " (`--eval-freq -1`), as the others do.",
)


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    seeds: int = 5
    """Runs of each competitor, with seeds from 0."""
    steps: int = 61_440
    """Steps of all environments together, a multiple of a rollout's 256."""
    competitors: tuple[str, ...] = tuple(COMPETITORS)
    """Which to run; stock Stable-Baselines3 is what the ratios are taken to."""
    sbx_python: Path | None = None
    """Interpreter of the environment that has SBX; without it the row says so."""
    scripts_python: Path | None = None
    """Interpreter of the environment for the scripts of CleanRL and LeanRL; without it the rows say so."""
    cleanrl_checkout: Path | None = None
    """Folder of CleanRL's repository; without it the row says so."""
    leanrl_checkout: Path | None = None
    """Folder of LeanRL's repository; without it the rows say so."""
    seed: int = 0
    """Seed of the order of the runs."""
    limit_s: float = 1_200.0
    """Wall-clock seconds after which a run is ended and counts as failed."""
    work: Path | None = None
    """Folder of the finished runs, so that a benchmark that was broken off resumes; default: none are kept."""
    output: Path | None = None
    """Folder of `peers_ppo.json` and `peers_ppo.md`; default: results/ beside this file."""


def job_of(name: str, seed: int, args: Args) -> tuple[Path | None, dict[str, Any]]:
    """The interpreter of a run (None: not there), and what its process is asked to do."""
    competitor = COMPETITORS[name]
    job = {"kind": competitor.kind, "seed": seed, "steps": args.steps, "options": competitor.options}
    python = getattr(args, f"{competitor.python}_python") if competitor.python else Path(sys.executable)
    if competitor.checkout:
        checkout = getattr(args, f"{competitor.checkout}_checkout")
        if checkout is None or not checkout.is_dir():
            return None, job
        job["checkout"] = str(checkout.absolute())
    return python, job


def run_once(python: Path | None, job: dict[str, Any], limit_s: float) -> dict[str, Any]:
    """The answer of the process, or an "error": "not installed", or what failed; details go to standard error."""
    if python is None:
        return {"error": "not installed"}
    worker = Path(__file__).with_name("peers_ppo_worker.py").absolute()
    load = load_average()
    with tempfile.TemporaryDirectory(prefix="peers_ppo_") as folder:
        alone = {
            **ONE_THREAD,
            "CUDA_VISIBLE_DEVICES": "",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
            # Nothing compiled before is found, and compilers are children that end, so that their seconds count.
            "TORCHINDUCTOR_CACHE_DIR": f"{folder}/compiled",
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
        }
        # absolute(), not resolve(): the link in a virtual environment is what makes it one
        words = [str(python.absolute()), "-P", str(worker), json.dumps(job)]
        try:
            done = subprocess.run(
                words,
                capture_output=True,
                text=True,
                cwd=folder,
                env={**os.environ, **alone},
                timeout=limit_s,
                check=False,
            )
        except OSError as error:
            print(f"{python} can't be run: {error.strerror}", file=sys.stderr)
            return {"error": "not installed"}
        except subprocess.TimeoutExpired:
            return {"error": f"failed (more than {limit_s:.0f} s)"}
    reply: dict[str, Any] = json.loads(done.stdout) if done.stdout else {"error": f"exit code {done.returncode}"}
    if "error" in reply:
        print(done.stderr[-3000:], file=sys.stderr)
        missing = reply["error"] == "ModuleNotFoundError"
        return {"error": "not installed" if missing else f"failed ({reply['error']})"}
    return {**reply, "load": load}


def measure(args: Args) -> list[dict[str, Any]]:
    """The runs, seed by seed, in each seed in a random order; those in the work folder are not made again."""
    order = random.Random(args.seed)
    log = None if args.work is None else args.work / f"runs_{args.steps}.jsonl"
    runs: list[dict[str, Any]] = []
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists():
            runs = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    done = {(run["competitor"], run["seed"]) for run in runs}
    for seed in range(args.seeds):
        for name in order.sample(args.competitors, len(args.competitors)):
            if (name, seed) in done:
                continue
            print(f"seed {seed}: {name}", file=sys.stderr)
            run = {"competitor": name, "seed": seed, **run_once(*job_of(name, seed, args), args.limit_s)}
            runs.append(run)
            if log is not None and "error" not in run:
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(run) + "\n")
    return [run for run in runs if run["seed"] < args.seeds and run["competitor"] in args.competitors]


def summarise(runs: list[dict[str, Any]], names: tuple[str, ...]) -> list[dict[str, Any]]:
    """One row a competitor: medians over the seeds, and ratios to stock Stable-Baselines3 seed by seed."""
    finished = {(run["competitor"], run["seed"]): run for run in runs if "error" not in run}
    rows = []
    for name in names:
        row: dict[str, Any] = {"competitor": name, "label": COMPETITORS[name].label, "status": "measured"}
        errors = [run["error"] for run in runs if run["competitor"] == name and "error" in run]
        mine = [run for (of, _), run in finished.items() if of == name]
        if errors or not mine:
            rows.append({**row, "status": errors[0] if errors else "not run"})
            continue
        for field in ("steps_per_cpu_second", "before_training", "first_fifth", "cpu_seconds", "final_return"):
            row[field] = [run[field] for run in mine]
        row["solved"] = [(run["steps_to_475"], run["cpu_seconds_to_475"]) for run in mine if run["steps_to_475"]]
        pairs = [(run, finished[BASELINE, run["seed"]]) for run in mine if (BASELINE, run["seed"]) in finished]
        for field, key in (("steps_per_cpu_second", "speed_ratio"), ("cpu_seconds_to_475", "time_ratio")):
            both = [(a[field], b[field]) for a, b in pairs if a[field] and b[field]]
            if both:
                row[key] = dataclasses.asdict(paired_ratio([a for a, _ in both], [b for _, b in both]))
        rows.append(row)
    return rows


def middle(values: list[float], digits: int) -> str:
    """Median and range."""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def table_of(rows: list[dict[str, Any]]) -> str:
    """The competitors' medians and ranges."""
    header = [
        "",
        "steps a CPU second",
        "x",
        "CPU s to 475",
        "x",
        "reached",
        "steps to 475",
        "CPU s before the first step",
    ]
    table = []
    for row in rows:
        if row["status"] != "measured":
            table.append([row["label"], row["status"], *[""] * 7])
            continue
        solved, seeds = row["solved"], len(row["final_return"])
        ratios = [f"{row[key]['median']:.2f}" if key in row else "" for key in ("speed_ratio", "time_ratio")]
        cells = [middle(row["steps_per_cpu_second"], 0), ratios[0]]
        cells += [
            middle([seconds for _, seconds in solved], 1) if solved else "",
            ratios[1],
            f"{len(solved)} of {seeds}",
        ]
        cells += [middle([steps for steps, _ in solved], 0) if solved else "", middle(row["before_training"], 1)]
        table.append([row["label"], *cells, middle(row["final_return"], 0)])
    return markdown_table([*header, "final return"], table)


def to_markdown(result: dict[str, Any]) -> str:
    """The page a person reads: the table, the hyperparameters, what differs, and what the figures were taken on."""
    args, where = result["settings"], result["machine"]
    lines = ["# PPO on CartPole-v1 beside other libraries", ""]
    lines += [
        f"Median (smallest to largest) of {args['seeds']} seeds; CPU seconds of one core, in user and system mode."
    ]
    lines += [f"x: the median ratio to {COMPETITORS[BASELINE].label}, seed by seed.", ""]
    lines += [table_of(result["rows"]), "", "## What is measured", ""]
    lines += [
        f"- *CPU s to 475*: from the start of the process until the mean return of the last {EPISODES} finished"
        f" training episodes is {SOLVED:.0f}, imports and compiling included. One rule for all: steps and episodes are"
        " counted inside the environment.",
        f"- *Steps a CPU second*: rollouts and updates, from the first fifth to the end of {args['steps']:,} steps. By"
        " then everything is compiled.",
        f"- *Final return*: mean of {EPISODES} episodes of the likeliest actions after all steps, in one environment.",
        "- Compilers' caches are empty at the start of each run, and compiling is done in the process, partly before"
        " the first step, as imports are, and partly after it.",
        "",
        "## How",
        "",
        f"- Hyperparameters of all ({ENV}, {N_ENVS} environments in one process, two networks of 64x64 with tanh, Adam"
        " with eps 1e-5, normalised advantages, no clipping of the value function, nothing annealed): "
        + ", ".join(f"{name} {value}" for name, value in SETTINGS.items())
        + ".",
        *(f"- {difference}" for difference in DIFFERENCES),
        "- LeanRL's script is for Box actions of one environment. Changed in it: "
        + "; ".join(f"`{old}` to `{' '.join(new.split())}`" for old, new in LEANRL_CHANGES)
        + ". `discrete` is in `peers_ppo_worker.py`.",
        f"- `{result['command']}`",
        f"- {where['date']}, {where['cpu']}, {where['cores']} cores, {where['system']}; load average at the start of a"
        f" run {middle(result['loads'], 1)} (more than 1 is somebody else's work).",
    ]
    shared: dict[str, list[str]] = {}
    for name, environment in result["environments"].items():
        shown = ", ".join(f"{package} {version}" for package, version in environment.items())
        shared.setdefault(shown, []).append(COMPETITORS[name].label)
    lines += [f"- {'; '.join(labels)}: {shown}." for shown, labels in shared.items()]
    return "\n".join(lines)


def portable(args: Args) -> Args:
    """`args` with the peers beside the repository, so that the command names no folder of this machine."""
    changed: dict[str, Any] = {"work": None, "output": None}
    for name in ("sbx_python", "scripts_python"):
        path: Path | None = getattr(args, name)
        changed[name] = path and Path("..", *path.absolute().parts[-3:])
    for name in ("cleanrl_checkout", "leanrl_checkout"):
        path = getattr(args, name)
        changed[name] = path and Path("..", path.absolute().name)
    return dataclasses.replace(args, **changed)


def main(args: Args) -> None:
    """Measure, print and write; exit with 1 if stock Stable-Baselines3 or one of ours failed."""
    unknown = set(args.competitors) - COMPETITORS.keys()
    if unknown:
        raise ValueError(f"competitors has {min(unknown)!r}: use {', '.join(COMPETITORS)}.")
    if args.steps < 10 * ROLLOUT or args.steps % ROLLOUT:
        raise ValueError(f"steps={args.steps}: use a multiple of {ROLLOUT}, at least {10 * ROLLOUT}.")
    if args.seeds < 1:
        raise ValueError(f"seeds={args.seeds}: use at least 1.")
    runs = measure(args)
    environments = {run["competitor"]: run["environment"] for run in runs if "environment" in run}
    rows = summarise(runs, args.competitors)
    result = {
        "command": command_line(SCRIPT, portable(args)),
        "machine": machine(),
        "loads": [run["load"][0] for run in runs if run.get("load")] or [0.0],
        "settings": {"seeds": args.seeds, "steps": args.steps, "order": args.seed, "hyperparameters": SETTINGS},
        "environments": {name: environments[name] for name in args.competitors if name in environments},
        "rows": rows,
        "runs": [{key: value for key, value in run.items() if key != "environment"} for run in runs],
    }
    markdown = to_markdown(result)
    print(markdown)
    write_result(args.output or Path(__file__).with_name("results"), "peers_ppo", result, markdown)
    failed = [row["label"] for row in rows if row["status"] != "measured" and not COMPETITORS[row["competitor"]].python]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main(tyro.cli(Args))
