"""Time and memory of one loss: `rlsmooth.losses.cross_entropy` beside torch's own, forward and backward, interleaved.

Each contender gets the same float32 logits and int64 labels and returns the gradient of the mean loss. Ours builds its
target anew every time, since torch's `label_smoothing` is applied anew too; the rows "made before" show the loss alone,
as in a trainer whose alpha is constant. torch has no smoothing under a mask and none towards near classes: those
opponents are what one would write with it. They make before what ours makes before: a table of ordered classes always,
a mask's counts only where our target is made before too. Contenders take turns in a new random order each round, and
ratios are taken within a round. Memory is the peak of what is allocated during one forward and backward beyond the
inputs.

On the CPU all is measured twice: with the C library's allocator as it comes, which gives large blocks back to the
system and pays for every page of the next one, and set to keep them, as a training process often does by itself.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import tyro
from torch import Tensor
from torch.nn.functional import cross_entropy as torch_cross_entropy
from torch.nn.functional import nll_loss

from rlsmooth.losses import cross_entropy
from rlsmooth.scripts.bench.measure import (
    Spread,
    command_line,
    load_average,
    machine,
    markdown_table,
    paired_ratio,
    spread,
    versions,
    write_result,
)
from rlsmooth.targets import Smoothing

SCRIPT = "scripts/bench/loss_speed.py"
ALPHA = 0.1
LARGEST_WRITTEN_OUT = 64  # classes up to which behaviour cloning keeps its targets written out
LARGEST_KERNEL = 4096  # a [K, K] kernel of more classes is itself larger than the logits

Step = Callable[[], None]  # one forward and backward
TORCH_HARD, TORCH_SMOOTHED = "torch, hard labels", "torch, label_smoothing=0.1"
TORCH_MASKED, TORCH_TABLE = "torch, masked smoothing", "torch, rows of a table"
TORCH_MASKED_BEFORE = "torch, masked smoothing, counts made before"
BASELINES = {
    "hard labels": TORCH_HARD,
    "masked, made before": TORCH_MASKED_BEFORE,
    "masked": TORCH_MASKED,
    "ordinal": TORCH_TABLE,
    "kernel": TORCH_TABLE,
}

Allocator: TypeAlias = Literal["default", "keeping"]
ALLOCATORS: dict[str, dict[str, str]] = {
    "default": {},
    "keeping": dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(1 << 34))
    | {"MALLOC_TOP_PAD_": str(1 << 28)},
}


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    shapes: tuple[str, ...] = ("256x6", "4096x18", "1024x1000", "1024x32000", "256x128000")
    """Shapes of the logits, rows x classes."""
    rounds: int = 9
    """Timed segments of each contender at each shape."""
    seconds: float = 0.3
    """Length of a timed segment; the number of calls in it is set once, in the warm-up, and is at least 1."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to measure; auto: the CPU, and the CUDA device too if there is one."""
    allocators: tuple[Allocator, ...] = ("default", "keeping")
    """Settings of the C library's allocator (glibc's) to measure the CPU with, each in a process of its own."""
    threads: int = 1
    """CPU threads of torch."""
    seed: int = 0
    """Seed of the logits, the labels and the order of the segments."""
    output: Path | None = None
    """Folder of `loss_speed.json` and `loss_speed.md`; default: results/ beside this file, or nowhere with --quick."""
    quick: bool = False
    """Two rounds of two small shapes, the first allocator: shows that it works, measures nothing worth keeping."""


def parse_shape(shape: str) -> tuple[int, int]:
    """`"256x2"` -> (256, 2).

    Raises:
        ValueError: `shape` is not two positive whole numbers.
    """
    parts = shape.split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"shapes has {shape!r}: write ROWSxCLASSES, for example 256x2.")
    return int(parts[0]), int(parts[1])


def contenders(rows: int, num_classes: int, device: str, seed: int) -> dict[str, Step]:
    """Every contender's step at one shape, all on the same logits `[rows, num_classes]` and labels `[rows]`."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, num_classes, generator=generator).to(device).requires_grad_()
    labels = torch.randint(num_classes, (rows,), generator=generator).to(device)
    class_prior = torch.rand(num_classes, generator=generator, dtype=torch.float64) + 0.1
    mask = (torch.rand(rows, num_classes, generator=generator) > 0.2).to(device).scatter(-1, labels.unsqueeze(-1), True)
    illegal, counts = ~mask, mask.sum(-1)
    uniform = Smoothing(ALPHA)
    prior = Smoothing(ALPHA, reference=(class_prior / class_prior.sum()).to(device))
    made_before, masked = uniform(labels, num_classes), uniform(labels, num_classes, mask)

    def step(loss: Callable[[], Tensor]) -> Step:
        def forward_and_backward() -> None:
            torch.autograd.grad(loss(), logits)

        return forward_and_backward

    def smoothed(smoothing: Smoothing) -> Step:
        return step(lambda: cross_entropy(logits, smoothing(labels, num_classes, validate=False)))

    def masked_by_torch(illegal: Tensor, counts: Tensor) -> Tensor:
        log_p = logits.masked_fill(illegal, -torch.inf).log_softmax(-1)
        smooth = log_p.masked_fill(illegal, 0.0).sum(-1) / counts
        return ((1 - ALPHA) * nll_loss(log_p, labels, reduction="none") - ALPHA * smooth).mean()

    steps = {
        TORCH_HARD: step(lambda: torch_cross_entropy(logits, labels)),
        "rlsmooth, hard labels": step(lambda: cross_entropy(logits, labels)),
        TORCH_SMOOTHED: step(lambda: torch_cross_entropy(logits, labels, label_smoothing=ALPHA)),
        "rlsmooth, uniform": smoothed(uniform),
        "rlsmooth, uniform, made before": step(lambda: cross_entropy(logits, made_before)),
        "rlsmooth, prior": smoothed(prior),
        TORCH_MASKED_BEFORE: step(lambda: masked_by_torch(illegal, counts)),
        TORCH_MASKED: step(lambda: masked_by_torch(~mask, mask.sum(-1))),
        "rlsmooth, masked, made before": step(lambda: cross_entropy(logits, masked, mask=mask)),
        "rlsmooth, masked": step(
            lambda: cross_entropy(logits, uniform(labels, num_classes, mask, validate=False), mask=mask)
        ),
    }
    if num_classes <= LARGEST_WRITTEN_OUT:
        written_out = made_before.written_out()
        steps["rlsmooth, uniform, written out before"] = step(lambda: cross_entropy(logits, written_out))
    if num_classes <= LARGEST_KERNEL:
        similarity = torch.rand(num_classes, num_classes, generator=generator, dtype=torch.float64) + 0.1
        ordinal = Smoothing(ALPHA, reference="exponential")
        near = ordinal(labels, num_classes)
        table = ordinal(torch.arange(num_classes, device=device), num_classes).dense(torch.float32)
        steps["rlsmooth, kernel"] = smoothed(Smoothing(ALPHA, reference=similarity.to(device)))
        steps["rlsmooth, ordinal"] = smoothed(ordinal)
        steps["rlsmooth, ordinal, made before"] = step(lambda: cross_entropy(logits, near))
        steps[TORCH_TABLE] = step(lambda: torch_cross_entropy(logits, table[labels]))
    return steps


def seconds_of(step: Step, calls: int, device: str) -> tuple[float, float]:
    """Seconds of one call, mean of `calls`: by the clock, and of this process's own CPU time."""
    if device == "cuda":
        torch.cuda.synchronize()
    start, start_cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls, (time.process_time() - start_cpu) / calls


def peak_bytes(step: Step, device: str) -> int:
    """Most bytes allocated at one time during one call, beyond what was allocated before it.

    On CUDA the allocator keeps count; on the CPU the count is the running sum of torch's own allocation events.
    """
    step()
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own chatter on standard error
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    changes.sort(key=lambda event: float(event["ts"]))
    now = peak = 0
    for event in changes:
        now += int(event["args"]["Bytes"])
        peak = max(peak, now)
    return peak


def baseline_of(name: str) -> str:
    """torch's contender that does the same work."""
    if name.startswith("torch"):
        return name
    return next((opponent for word, opponent in BASELINES.items() if word in name), TORCH_SMOOTHED)


def measure(shape: str, device: str, args: Args) -> list[dict[str, Any]]:
    """One row a contender at one shape: milliseconds a call, time over torch's, peak memory in logits."""
    rows, num_classes = parse_shape(shape)
    rounds, seconds = (2, 0.002) if args.quick else (args.rounds, args.seconds)
    steps = contenders(rows, num_classes, device, args.seed)
    calls = {}
    for name, step in steps.items():
        seconds_of(step, 1, device)
        probe = 3 if rows * num_classes > 1_000_000 else 30
        calls[name] = max(1, math.ceil(seconds / seconds_of(step, probe, device)[0]))
    times: dict[str, list[float]] = {name: [] for name in steps}
    cpu_times: dict[str, list[float]] = {name: [] for name in steps}
    order = random.Random(args.seed)
    for _ in range(rounds):
        for name in order.sample(list(steps), len(steps)):
            wall, cpu = seconds_of(steps[name], calls[name], device)
            times[name].append(wall)
            cpu_times[name].append(max(cpu, 1e-9))
    result = []
    for name, step in steps.items():
        baseline = baseline_of(name)
        over_smoothed = paired_ratio(cpu_times[name], cpu_times[TORCH_SMOOTHED])
        peak = peak_bytes(step, device)
        result.append(
            {
                "device": device,
                "shape": shape,
                "contender": name,
                "calls": calls[name],
                "milliseconds": dataclasses.asdict(spread([1e3 * value for value in times[name]])),
                "baseline": baseline,
                "over_torch": dataclasses.asdict(paired_ratio(times[name], times[baseline])),
                "cpu_over_torch": dataclasses.asdict(paired_ratio(cpu_times[name], cpu_times[baseline])),
                "cpu_over_label_smoothing": dataclasses.asdict(over_smoothed),
                "peak_bytes": peak,
                "peak_in_logits": peak / (4 * rows * num_classes),
                "rounds_seconds": times[name],
                "rounds_cpu_seconds": cpu_times[name],
            }
        )
    return result


def to_markdown(result: dict[str, Any]) -> str:
    """The page a person reads: one table a device and shape, and what the figures were taken on."""
    lines = ["# Cross-entropy: forward and backward, float32", ""]
    lines += [
        "Median and quartiles over rounds. 'Over torch' is the time over that of torch's contender for the same work",
        "within a round: below 1 is faster. 'By CPU time' is the same of the process's own CPU seconds, which other",
        "programs' work hardly enters; 'over label_smoothing' sets torch's plain label smoothing against all.",
        "Peak memory is in multiples of the logits, which are not counted themselves (their gradient is).",
        "Rows 'made before' are what a trainer with a constant alpha pays, such as behaviour cloning, which",
        "makes its targets once: they measure the loss. The others make a target anew each call, as one would",
        "who draws labels or masks as they come: torch then counts what its mask leaves in the timed part too.",
        "Its table of ordered classes is always made before, as ours is.",
        "",
    ]
    header = ["contender", "ms", "quartiles", "over torch", "by CPU time", "quartiles", "over label_smoothing"]
    header += ["peak memory / logits"]
    rows = result["rows"]
    for place in dict.fromkeys((row["shape"], row["device"], row["allocator"]) for row in rows):
        table = []
        for row in rows:
            if (row["shape"], row["device"], row["allocator"]) == place:
                took, cpu = Spread(**row["milliseconds"]), Spread(**row["cpu_over_torch"])
                table.append(
                    [
                        row["contender"],
                        f"{took.median:.4g}",
                        f"{took.lower_quartile:.4g}-{took.upper_quartile:.4g}",
                        f"{row['over_torch']['median']:.2f}",
                        f"{cpu.median:.2f}",
                        f"{cpu.lower_quartile:.2f}-{cpu.upper_quartile:.2f}",
                        f"{row['cpu_over_label_smoothing']['median']:.2f}",
                        f"{row['peak_in_logits']:.2f}",
                    ]
                )
        shape, device, allocator = place
        title = f"{shape} on {device}" + (f", {allocator} allocator" if allocator else "")
        lines += [f"## {title}", "", markdown_table(header, table), ""]
    where, settings = result["machine"], result["settings"]
    shown = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    lines += [
        "## How",
        "",
        f"- `{result['command']}`",
        f"- {where['date']}, {where['cpu']}, {where['cores']} cores, {where['system']}"
        + (f", {result['cuda_device']}" if result["cuda_device"] else "")
        + f"; load average before {result['load_before']}, after {result['load_after']} (the run itself makes 1).",
        f"- {settings['rounds']} interleaved rounds in random order (seed {settings['seed']}), segments of about"
        f" {settings['seconds']} s, {settings['threads']} thread(s).",
        f"- {shown}",
        f"- Written out: one dense tensor, as behaviour cloning keeps its targets up to {LARGEST_WRITTEN_OUT} classes.",
        f"- Kernels and ordinal targets are left out above {LARGEST_KERNEL} classes: larger than the logits.",
    ]
    for name in settings["allocators"]:
        chosen = " ".join(f"{key}={value}" for key, value in ALLOCATORS[name].items())
        lines.append(f"- Allocator, {name}: {f'`{chosen}`' if chosen else 'as it comes'}.")
    return "\n".join(lines)


def rows_of(device: str, allocator: Allocator | None, shapes: Sequence[str], args: Args) -> list[dict[str, Any]]:
    """The rows of all shapes; in a process of its own where this one's allocator is set otherwise."""
    names = ALLOCATORS["keeping"]
    wanted = ALLOCATORS[allocator or "default"]
    if allocator is None or {name: os.environ[name] for name in names if name in os.environ} == wanted:
        rows = []
        for shape in shapes:
            print(f"{shape} on {device}" + (f", {allocator} allocator" if allocator else ""), file=sys.stderr)
            rows += [{"allocator": allocator, **row} for row in measure(shape, device, args)]
        return rows
    environment = {name: value for name, value in os.environ.items() if name not in names} | wanted
    with tempfile.TemporaryDirectory() as folder:
        own = dataclasses.replace(args, device="cpu", allocators=(allocator,), output=Path(folder))
        words = shlex.split(command_line(SCRIPT, own))[2:]
        subprocess.run([sys.executable, __file__, *words], env=environment, check=True, stdout=subprocess.DEVNULL)
        found: list[dict[str, Any]] = json.loads((Path(folder) / "loss_speed.json").read_text(encoding="utf-8"))["rows"]
    return found


def main(args: Args) -> None:
    """Measure, print and write."""
    torch.set_num_threads(args.threads)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda', but torch finds no CUDA device: use cpu.")
    devices = [args.device] if args.device != "auto" else ["cpu"] + ["cuda"] * torch.cuda.is_available()
    shapes = ("256x2", "64x10") if args.quick else args.shapes
    for shape in shapes:
        parse_shape(shape)
    load_before = load_average()
    allocators = args.allocators[:1] if args.quick else args.allocators
    rows = []
    for device in devices:
        for allocator in allocators if device == "cpu" else (None,):
            rows += rows_of(device, allocator, shapes, args)
    result = {
        "command": command_line(SCRIPT, args),
        "machine": machine(),
        "cuda_device": torch.cuda.get_device_name() if "cuda" in devices else None,
        "load_before": load_before,
        "load_after": load_average(),
        "settings": {
            "shapes": list(shapes),
            "allocators": list(allocators),
            "rounds": 2 if args.quick else args.rounds,
            "seconds": 0.002 if args.quick else args.seconds,
            "threads": args.threads,
            "seed": args.seed,
        },
        "versions": versions(["torch", "rlsmooth", "numpy"]),
        "rows": rows,
    }
    markdown = to_markdown(result)
    print(markdown)
    if args.output is not None or not args.quick:
        write_result(args.output or Path(__file__).with_name("results"), "loss_speed", result, markdown)


if __name__ == "__main__":
    main(tyro.cli(Args))
