"""How time and memory grow: with samples and classes of a loss, transitions, environments, and classes of a tree.

Each size has a process of its own, on one thread. There the work is done once at a small size, which leaves behind
what is made once in a process; then at its own size, for the peak of resident memory (Linux alone reports it) and three
times for the least time of the processor. The slope is that of a line through the logarithms of the larger half of the
sizes: 1 is proportional growth, and more than 1 would be too much.

The C library is set to keep what is freed. By default it gives blocks above 32 MiB back, and the system fills new
pages with zeros for each of them: the loss then takes two to four times as long from that size on. Python's collector
leaves out what is alive before: the libraries, and what the work is given.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import tyro
from matplotlib.figure import Figure

from rlsmooth.scripts.bench.measure import (
    command_line,
    load_average,
    machine,
    markdown_table,
    versions,
    write_result,
)
from rlsmooth.scripts.bench.worker import ONE_THREAD
from rlsmooth.scripts.figures.page import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, STYLE

SCRIPT = "scripts/bench/growth.py"
REPETITIONS = 3
KEEPING = dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(1 << 34))
MOST = 1.0
PACKAGES = ("torch", "numpy", "stable-baselines3", "gymnasium")


@dataclasses.dataclass(frozen=True)
class Axis:
    """What grows, and the work at a size."""

    label: str
    what: str
    sizes: tuple[int, ...]
    prepare: Callable[[int], Callable[[], object]]
    """Makes the inputs, which do not count, and gives the work."""
    colour: str


def loss(batch: int, classes: int) -> Callable[[], object]:
    """Forward and backward of a smoothed cross-entropy, target included."""
    import torch

    from rlsmooth.losses import cross_entropy
    from rlsmooth.targets import uniform

    logits = torch.randn(batch, classes, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.arange(batch) % classes
    return lambda: torch.autograd.grad(cross_entropy(logits, uniform(labels, classes, 0.1)), logits)


def cloning(transitions: int) -> Callable[[], object]:
    """Make a BC agent and train it for one epoch."""
    from gymnasium import spaces

    from rlsmooth.agents import BC
    from rlsmooth.data import Demonstrations

    rng = np.random.default_rng(0)
    data = Demonstrations(
        observations=rng.standard_normal((transitions, 8), np.float32),
        actions=rng.integers(4, size=transitions),
        observation_space=spaces.Box(-np.inf, np.inf, (8,)),
        action_space=spaces.Discrete(4),
        episode_ends=np.array([transitions]),
    )
    return lambda: BC("MlpPolicy", None, data, smoothing=0.1, batch_size=4096, device="cpu").learn(total_epochs=1)


def ppo(environments: int) -> Callable[[], object]:
    """A rollout of 64 steps of each CartPole, and the update with it."""
    from stable_baselines3.common.env_util import make_vec_env

    from rlsmooth.agents import SmoothedPPO

    def work() -> object:
        env = make_vec_env("CartPole-v1", environments, seed=0)
        model = SmoothedPPO("MlpPolicy", env, smoothing=0.1, n_steps=64, n_epochs=2, seed=0, device="cpu")
        return model.learn(64 * environments)

    return work


def tree(classes: int) -> Callable[[], object]:
    """Make a tree of ten children a node, targets along it, and forward and backward of the loss for 64 samples."""
    import torch

    from rlsmooth.losses import cross_entropy
    from rlsmooth.targets import Tree, hierarchical

    nested: dict[str, Any] = {}  # what one has: a mapping of names, as read from a file
    for number in range(classes):
        nested.setdefault(f"{number // 100}", {}).setdefault(f"{number // 10}", []).append(f"class {number}")
    logits = torch.randn(64, classes, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.arange(64) * (classes // 64)

    def work() -> object:
        made = Tree.from_nested(nested)
        return torch.autograd.grad(cross_entropy(logits, hierarchical(labels, made, 0.1)), logits)

    return work


def powers(first: int, last: int) -> tuple[int, ...]:
    """Powers of two."""
    return tuple(2**power for power in range(first, last + 1))


AXES = {
    "batch": Axis("samples", "loss of 100 classes", powers(13, 19), lambda size: loss(size, 100), BLUE),
    "classes": Axis("classes", "loss of 256 samples", powers(11, 17), lambda size: loss(256, size), ORANGE),
    "transitions": Axis("transitions", "BC, one epoch", powers(15, 21), cloning, GREEN),
    "environments": Axis("environments", "PPO, rollout and update", powers(2, 8), ppo, PURPLE),
    "tree": Axis("classes of a tree", "tree, targets and loss", powers(13, 19), tree, RED),
}


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    axes: tuple[str, ...] = tuple(AXES)
    """Of `batch`, `classes`, `transitions`, `environments` and `tree`."""
    output: Path | None = None
    """Folder of `growth.json`, `.md` and `.png`; default: results/ beside this file, or nowhere with --quick."""
    quick: bool = False
    """Two small sizes: shows that it works, measures nothing worth keeping."""
    worker: tuple[str, int] | None = None
    """An axis and a size, to be measured in this process and printed."""


def peak_mib() -> float:
    """The most resident memory since it was asked for last."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = float(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return found


def measure_here(axis: str, size: int) -> dict[str, float]:
    """Processor seconds, and MiB above what was resident before, of the work at one size."""
    import torch

    torch.set_num_threads(1)
    chosen = AXES[axis]
    chosen.prepare(chosen.sizes[0] // 4 or 1)()
    work = chosen.prepare(size)
    gc.collect()
    gc.freeze()
    peak_mib()
    before = peak_mib()
    work()
    memory = peak_mib() - before
    found = []
    for _ in range(REPETITIONS):
        gc.collect()
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return {"size": size, "seconds": min(found), "mib": memory}


def measure(axis: str, sizes: tuple[int, ...]) -> list[dict[str, float]]:
    """All sizes of an axis, a process each."""
    found = []
    for size in sizes:
        command = [sys.executable, "-P", str(Path(__file__).resolve()), "--worker", axis, str(size)]
        given: Any = {
            "capture_output": True,
            "text": True,
            "check": True,
            "env": {**os.environ, **ONE_THREAD, **KEEPING},
        }
        found.append(json.loads(subprocess.run(command, **given).stdout.splitlines()[-1]))
        print(axis, found[-1], file=sys.stderr)
    return found


def slope(points: list[dict[str, float]], name: str) -> tuple[float, float]:
    """Of a line through the logarithms of the larger half of the sizes, with its standard error.

    Examples:
        >>> [round(each, 3) for each in slope([{"size": n, "mib": n**0.5} for n in (1, 2, 4, 8, 16)], "mib")]
        [0.5, 0.0]
    """
    last = points[(len(points) - 1) // 2 :]
    x, y = np.log([[point["size"], point[name]] for point in last]).T
    found, start = np.polyfit(x, y, 1)
    rest, free = y - start - found * x, max(len(last) - 2, 1)
    return float(found), float(np.sqrt(rest @ rest / free / np.square(x - x.mean()).sum()))


def draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """Time and memory by size relative to the smallest, both logarithmic, with a line of proportional growth."""
    with mpl.rc_context({**STYLE, "axes.titlepad": 10}):
        figure = Figure(figsize=(15, 7.2), dpi=110, layout="constrained")
        for ax, name, title in zip(
            figure.subplots(1, 2), ("seconds", "mib"), ("Processor seconds", "Peak of memory, MiB"), strict=True
        ):
            for row in rows:
                axis, points = AXES[row["axis"]], row["points"]
                sizes = [point["size"] / points[0]["size"] for point in points]
                label = f"{axis.label} ({axis.what}), from {points[0]['size']:,}: slope {row[f'{name}_slope']:.2f}"
                ax.plot(sizes, [point[name] for point in points], color=axis.colour, marker="o", label=label)
            low = min(row["points"][0][name] for row in rows) / 3
            most = max(len(row["points"]) for row in rows)
            ends = np.array([1, 2 ** (most - 1)])
            ax.plot(ends, low * ends, color=GREY, linestyle="--", label="proportional: slope 1")
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            ax.set_xticks([2**power for power in range(most)], [f"x{2**power}" for power in range(most)])
            ax.set_xlabel("size, relative to the smallest", color=INK)
            ax.set_title(title)
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), frameon=False, fontsize=10.5)
        figure.savefig(path)


def to_markdown(result: dict[str, Any]) -> str:
    """The page a person reads."""
    where = result["machine"]
    cells = []
    for row in result["rows"]:
        axis, (first, *_, last) = AXES[row["axis"]], row["points"]
        line = [f"{axis.label}: {axis.what}", f"{first['size']:,} to {last['size']:,}"]
        for name in ("seconds", "mib"):
            line += [
                f"{first[name]:.3g} to {last[name]:.3g}",
                f"{row[f'{name}_slope']:.2f} ± {row[f'{name}_error']:.2f}",
            ]
        cells.append(line)
    header = ["what grows", "sizes", "processor seconds", "slope", "peak, MiB", "slope"]
    lines = ["# How time and memory grow", "", markdown_table(header, cells), "", "![](growth.png)", ""]
    lines += [f"**{result['verdict']}**", "", "## How", "", f"- `{result['command']}`"]
    lines += [
        f"- {where['date']}, {where['cpu']}, {where['cores']} cores, {where['system']}; load average before"
        f" {result['load_before']}, after {result['load_after']}.",
        f"- A process for each size, one thread; the least of {REPETITIONS} times, the peak of resident memory above"
        " what was resident before (inputs of the loss, demonstrations and a tree's mapping of names are; what is made"
        " of them counts).",
        "- The C library keeps what is freed. By default, blocks above 32 MiB are new pages each time, which the system"
        " fills with zeros: the loss then takes two to four times as long from that size on.",
        "- Slopes: least squares of logarithms over the larger half of the sizes, where what is constant weighs less,"
        " ± the standard error that the points' distances from the line give.",
        "- Python's collector leaves out what the process had before the work.",
        "- Trees of at most 1,024 classes are not shown: their targets come from a table, which takes up to 63 MiB.",
        f"- {', '.join(f'{package} {version}' for package, version in result['versions'].items())}",
    ]
    return "\n".join(lines)


def main(args: Args) -> None:
    """Measure, print and write."""
    if args.worker is not None:
        print(json.dumps(measure_here(*args.worker)))
        return
    unknown = [name for name in args.axes if name not in AXES]
    if unknown or not args.axes:
        raise ValueError(f"axes has {unknown}: use some of {list(AXES)}.")
    load_before, rows = load_average(), list[dict[str, Any]]()
    for name in args.axes:
        points = measure(name, AXES[name].sizes[:2] if args.quick else AXES[name].sizes)
        row: dict[str, Any] = {"axis": name, "points": points}
        for unit in UNITS:
            row[f"{unit}_slope"], row[f"{unit}_error"] = slope(points, unit)
        rows.append(row)
    worst = max(row[f"{unit}_slope"] for row in rows for unit in UNITS)
    result = {
        "command": command_line(SCRIPT, args),
        "machine": machine(),
        "load_before": load_before,
        "load_after": load_average(),
        "versions": versions(PACKAGES),
        "verdict": f"Required: slopes at most {MOST:g}. Measured: at most {worst:.2f}, "
        + ("met." if round(worst, 2) <= MOST else "NOT met."),
        "rows": rows,
    }
    markdown = to_markdown(result)
    print(markdown)
    if args.output is not None or not args.quick:
        folder = args.output or Path(__file__).with_name("results")
        write_result(folder, "growth", result, markdown)
        draw(folder / "growth.png", rows)


UNITS = ("seconds", "mib")


if __name__ == "__main__":
    main(tyro.cli(Args))
