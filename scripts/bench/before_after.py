"""Speed of two checkouts beside each other: behaviour cloning, PPO with and without smoothing, the cross-entropy.

A process for each checkout lives as long as the run. The driver asks them in turn for the same segment, which comes
first changes from round to round, and ratios are taken within a round, so that a slow moment of the machine strikes
both. Time is CPU time of the process, on one thread, or, with `--default-threads`, CPU and wall-clock time on as many
threads as torch and numpy take. Only public names of `rlsmooth` are used.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

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

SCRIPT = "scripts/bench/before_after.py"
WORKER = "--worker"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
Step = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Args:
    """What to compare."""

    before: Path
    """Checkout of the state before."""
    after: Path = Path()
    """Checkout of the state after."""
    processes: int = 3
    """Processes of each checkout, one after the other: where one gets its memory moves a segment by some percent."""
    rounds: int = 5
    """Timed segments of each process and task."""
    tasks: tuple[str, ...] = ()
    """Tasks to time, by the start of their names; none: all."""
    default_threads: bool = False
    """Leave the number of threads to torch, numpy and us, as a user does who says nothing."""
    output: Path | None = None
    """Folder of `before_after` or `default_threads` (`.json`, `.md`); default: results/ here; --quick: none."""
    quick: bool = False
    """Two rounds of short segments: shows that the benchmark works, measures nothing worth keeping."""


# ---- what is timed


def cloning(batch_size: int, batches: int, engine: Any = "torch") -> Step:
    """Updates of `BC`, its log lines to TensorBoard included."""
    from rlsmooth.agents import BC
    from rlsmooth.data import cartpole_v1

    folder = tempfile.mkdtemp()
    agent = BC(
        "MlpPolicy",
        None,
        cartpole_v1(),
        batch_size=batch_size,
        seed=0,
        device="cpu",
        tensorboard_log=folder,
        engine=engine,
    )
    return lambda: agent.learn(total_batches=batches, reset_num_timesteps=False)


def ppo(smoothing: float, engine: Any = "torch", batch_size: int = 64) -> Step:
    """Two rollouts and their updates with Stable-Baselines3's defaults on CartPole-v1."""
    from rlsmooth.agents import SmoothedPPO

    given: dict[str, Any] = {"smoothing": smoothing, "engine": engine, "batch_size": batch_size}
    algorithm = SmoothedPPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu", **given)
    return lambda: algorithm.learn(4096, reset_num_timesteps=False)


def loss(batch: int, classes: int, calls: int) -> Step:
    """Forward and backward of the cross-entropy with a smoothed target."""
    import torch

    from rlsmooth.losses import cross_entropy
    from rlsmooth.targets import Smoothing

    torch.manual_seed(0)
    logits = torch.randn(batch, classes, requires_grad=True)
    target = Smoothing(0.1)(torch.randint(classes, (batch,)), classes)

    def step() -> None:
        for _ in range(calls):
            logits.grad = None
            cross_entropy(logits, target).backward()  # type: ignore[no-untyped-call]

    return step


TASKS: dict[str, Callable[[], Step]] = {
    "BC, batch 32": lambda: cloning(32, 2500),
    "BC, batch 256": lambda: cloning(256, 1500),
    "BC, batch 4096": lambda: cloning(4096, 200),
    "BC, numpy, batch 32": lambda: cloning(32, 7500, "numpy"),
    "BC, numpy, batch 256": lambda: cloning(256, 3000, "numpy"),
    "BC, numpy, batch 1024": lambda: cloning(1024, 1000, "numpy"),
    "BC, numpy, batch 4096": lambda: cloning(4096, 300, "numpy"),
    "SmoothedPPO, off": lambda: ppo(0.0),
    "SmoothedPPO, smoothing 0.1": lambda: ppo(0.1),
    "SmoothedPPO, numpy": lambda: ppo(0.1, "numpy"),
    "SmoothedPPO, numpy, batch 256": lambda: ppo(0.1, "numpy", 256),
    "cross-entropy [64, 4]": lambda: loss(64, 4, 6000),
    "cross-entropy [4096, 18]": lambda: loss(4096, 18, 600),
    "cross-entropy [1024, 1000]": lambda: loss(1024, 1000, 60),
}


def work() -> None:
    """Answer the driver's requests: a task's name a line, its CPU and wall-clock seconds back."""
    warnings.simplefilter("ignore")
    import rlsmooth

    steps: dict[str, Step] = {}
    print(Path(rlsmooth.__file__).resolve().parent.parent, flush=True)
    for line in sys.stdin:
        name = line.strip()
        if name not in steps:
            steps[name] = TASKS[name]()
        start, begin = time.process_time(), time.perf_counter()
        steps[name]()
        print(time.process_time() - start, time.perf_counter() - begin, flush=True)


# ---- the driver


def start(checkout: Path, default_threads: bool) -> subprocess.Popen[str]:
    """A worker that runs the code of `checkout`."""
    environment = {name: value for name, value in os.environ.items() if name not in ONE_THREAD}
    environment |= {} if default_threads else ONE_THREAD
    environment |= {"PYTHONPATH": str(checkout.resolve()), "CUDA_VISIBLE_DEVICES": ""}
    # The script's own folder must not be searched: it holds a module called `measure`.
    command = [sys.executable, "-P", str(Path(__file__).resolve()), WORKER]
    worker = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=tempfile.mkdtemp()
    )
    assert worker.stdout is not None
    found = worker.stdout.readline().strip()
    if found != str(checkout.resolve()):
        raise SystemExit(f"the worker for {checkout} runs the code of {found!r}: name the root of a checkout.")
    return worker


def ask(worker: subprocess.Popen[str], name: str) -> tuple[float, float]:
    """CPU and wall-clock seconds of one segment."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    print(name, file=worker.stdin, flush=True)
    cpu, wall = map(float, worker.stdout.readline().split())
    return cpu, wall


def measure(args: Args) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """`ask`'s seconds of each segment, by task and checkout; a process's first round warms up and is not kept."""
    names = [name for name in TASKS if name.startswith(args.tasks or "")]
    found: dict[str, dict[str, list[tuple[float, float]]]] = {name: {"before": [], "after": []} for name in names}
    for process in range(1 if args.quick else args.processes):
        workers = {
            side: start(place, args.default_threads) for side, place in (("before", args.before), ("after", args.after))
        }
        for number in range((2 if args.quick else args.rounds) + 1):
            for name in names:
                for side in sorted(workers, reverse=(number + process) % 2 == 0):
                    seconds = ask(workers[side], name)
                    if number:
                        found[name][side].append(seconds)
            print(f"process {process + 1}, round {number}", file=sys.stderr)
        for worker in workers.values():
            worker.communicate()
    return found


def to_markdown(result: dict[str, Any]) -> str:
    """The table that a person reads."""

    def words(value: Spread, digits: int) -> str:
        return f"{value.median:.{digits}f} [{value.lower_quartile:.{digits}f}, {value.upper_quartile:.{digits}f}]"

    rows, header = [], ["task"]
    clocks = ("CPU", "wall-clock") if result["default_threads"] else ("CPU",)
    for clock in clocks:
        header += [f"before, {clock} s", f"after, {clock} s", "after / before"]
    for name, sides in result["seconds"].items():
        row = [name]
        for place in range(len(clocks)):
            before, after = ([seconds[place] for seconds in sides[side]] for side in ("before", "after"))
            row += [words(spread(before), 3), words(spread(after), 3), words(paired_ratio(after, before), 3)]
        rows.append(row)
    threads = "As many threads as torch, numpy and we take" if result["default_threads"] else "One thread"
    return (
        f"# Speed before and after\n\n    {result['command']}\n\n"
        f"{markdown_table(header, rows)}\n\nMedians of {result['rounds']} interleaved rounds with their quartiles. "
        f"Before: {result['before']}, after: {result['after']}. {threads}, load average before and after the run "
        f"{result['load_before']} and {result['load_after']}.\n"
    )


def commit(checkout: Path) -> str:
    """The commit of a checkout, abbreviated."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    return finished.stdout.strip() or "unknown"


def main(args: Args) -> None:
    """Compare, print the table and write the result."""
    load = load_average()
    result = {
        "command": command_line(SCRIPT, args),
        "before": commit(args.before),
        "after": commit(args.after),
        "default_threads": args.default_threads,
        "rounds": 2 if args.quick else args.processes * args.rounds,
        "machine": machine(),
        "load_before": load,
        "seconds": measure(args),
        "load_after": load_average(),
    }
    markdown = to_markdown(result)
    print(markdown)
    folder = args.output or (None if args.quick else Path(__file__).with_name("results"))
    if folder is not None:
        write_result(folder, "default_threads" if args.default_threads else "before_after", result, markdown)


if __name__ == "__main__":
    if sys.argv[1:] == [WORKER]:
        work()
    else:
        main(tyro.cli(Args))
