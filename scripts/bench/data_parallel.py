"""Transitions a second of behaviour cloning in one and two processes, by size of the network, beside Lightning Fabric.

python scripts/bench/data_parallel.py --fabric-python ../peer-fabric/bin/python
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from gymnasium import spaces
from torch import nn

from rlsmooth.losses import cross_entropy
from rlsmooth.scripts.bench.measure import (
    command_line,
    load_average,
    machine,
    markdown_table,
    paired_ratio,
    spread,
    versions,
    write_result,
)
from rlsmooth.targets import uniform

FEATURES, ACTIONS = 16, 6
NETWORKS = {"9k": 85, "0.5M": 700, "2M": 1420}
"""The parameters of each actor, and the width of its two hidden layers."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure, and write the results."""

    fabric_python: str | None = None
    """An interpreter that has lightning-fabric and torch."""
    rounds: int = 5
    """How often each is measured."""
    batch_size: int = 1024
    """Transitions of an update, over all processes."""
    seconds: float = 2.0
    """How long each network trains in a round, about."""
    quick: bool = False
    """Only show that it works."""
    output: Path = Path(__file__).parent / "results"
    """The folder of the results."""
    worker: str | None = None
    """Used by the script itself: what to measure in this process."""


def data(count: int) -> tuple[Any, Any]:
    """Observations and actions, the same in all processes."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, FEATURES)).astype(np.float32), rng.integers(ACTIONS, size=count)


def ours(width: int, batch_size: int, updates: int) -> Any:
    """A function that makes so many updates of BC's torch engine in the processes that were started."""
    from rlsmooth.agents import BC
    from rlsmooth.data import Demonstrations

    observations, actions = data(batch_size * 16)
    demonstrations = Demonstrations.from_arrays(
        observations,
        actions,
        observation_space=spaces.Box(-np.inf, np.inf, (FEATURES,), np.float32),
        action_space=spaces.Discrete(ACTIONS),
        episode_ends=[len(actions)],
    )
    kwargs = {"net_arch": [width, width]}
    agent = BC(
        "MlpPolicy", None, demonstrations, batch_size=batch_size, policy_kwargs=kwargs, seed=0, device="cpu", verbose=0
    )
    return lambda: agent.learn(total_batches=updates, log_interval=10**6)


def fabric(width: int, batch_size: int, updates: int) -> Any:
    """The same by a loop of Lightning Fabric over the public loss; the actor alone."""
    from lightning_fabric import Fabric  # type: ignore[import-not-found, unused-ignore]

    size, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    engine = Fabric(accelerator="cpu", devices=size, strategy="ddp")
    engine.launch()
    torch.manual_seed(0)
    layers = [nn.Linear(FEATURES, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, ACTIONS)]
    network = nn.Sequential(*layers)
    model, optimizer = engine.setup(network, torch.optim.Adam(network.parameters(), lr=1e-3))
    x, y = map(torch.from_numpy, data(batch_size * 16))
    share = batch_size // size

    def train() -> None:
        for update in range(updates):
            start = (update % 16) * batch_size + rank * share
            labels = uniform(y[start : start + share], ACTIONS, 0.1, validate=False)
            loss = cross_entropy(model(x[start : start + share]), labels)
            optimizer.zero_grad()
            engine.backward(loss)
            optimizer.step()

    return train


def work(args: Args) -> None:
    """What a process does: train each network for a while, and print transitions a second."""
    from rlsmooth.training.distributed import process_group

    torch.set_num_threads(1)
    make = {"ours": ours, "fabric": fabric}[str(args.worker)]
    with process_group():
        found = {}
        for name, width in NETWORKS.items():
            rates = {"9k": 150_000, "0.5M": 8_000, "2M": 2_500}
            updates = 2 if args.quick else max(5, int(args.seconds * rates[name] / args.batch_size))
            make(width, args.batch_size, 2)()  # warm-up
            train = make(width, args.batch_size, updates)
            started = time.perf_counter()
            train()
            found[name] = updates * args.batch_size / (time.perf_counter() - started)
    if os.environ["RANK"] == "0":
        print("FOUND", json.dumps(found))


def measure(python: str, method: str, size: int, args: Args) -> dict[str, float]:
    """Transitions a second of each network, by a method in so many processes."""
    words = [python, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}", __file__]
    words += ["--worker", method, "--batch-size", str(args.batch_size), "--seconds", str(args.seconds)]
    words += ["--quick"] if args.quick else []
    found = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    lines = [line for line in found.stdout.splitlines() if line.startswith("FOUND ")]
    if not lines:
        raise RuntimeError(f"{method} in {size} processes failed: {found.stderr[-2000:]}")
    return dict(json.loads(lines[0].removeprefix("FOUND ")))


def main(args: Args) -> None:
    """Measure all in turn, and write JSON and table."""
    methods = {"ours": sys.executable} | ({"fabric": args.fabric_python} if args.fabric_python else {})
    load, rounds = load_average(), []
    for place in range(1 if args.quick else args.rounds):
        line: dict[str, dict[str, float]] = {}
        cases = [(method, size) for method in methods for size in (1, 2)]
        for method, size in cases if place % 2 == 0 else reversed(cases):
            line[f"{method}, {size}"] = measure(methods[method], method, size, args)
        rounds.append(line)
        print(json.dumps(line), flush=True)
    columns = {case: {name: [line[case][name] for line in rounds] for name in NETWORKS} for case in rounds[0]}
    table = []
    for name in NETWORKS:
        row = [name]
        for method in methods:
            one, two = columns[f"{method}, 1"][name], columns[f"{method}, 2"][name]
            gain = paired_ratio(two, one)
            row += [f"{spread(one).median:,.0f}", f"{spread(two).median:,.0f}", _range(gain)]
        table.append(row)
    heads = {"ours": "rlsmooth", "fabric": "Fabric"}
    header = ["parameters"] + [f"{heads[m]}, {what}" for m in methods for what in ("1 process", "2", "2 over 1")]
    about = machine() | {"load_before": load, "load_after": load_average()}
    command = command_line("scripts/bench/data_parallel.py", args)
    text = "\n".join(
        [
            "# Behaviour cloning in one and two processes",
            "",
            f"Transitions a second (wall time; median of {len(rounds)} interleaved rounds), minibatches of "
            f"{args.batch_size} over all processes, gloo on one machine, one thread a process. *2 over 1*: median of "
            "the rounds' ratios, and their quartiles.",
            "",
            markdown_table(header, table),
            "",
            'rlsmooth: `BC(engine="torch")`, its checks and log on, with gradients added so that an update is that of '
            'one process. Fabric: an actor alone, `cross_entropy` of a uniform target, `strategy="ddp"`, which takes '
            "the mean of the processes' means.",
            "",
            f"    {command}",
            "",
            f"{about['cpu']}, {about['cores']} cores, {about['date']}; load {load}, after it {about['load_after']}.",
        ]
    )
    print(text)
    if not args.quick:
        result = {"command": command, "machine": about, "versions": versions(("torch", "rlsmooth")), "rounds": rounds}
        write_result(args.output, "data_parallel", result, text)


def _range(found: Any) -> str:
    return f"{found.median:.2f} ({found.lower_quartile:.2f} to {found.upper_quartile:.2f})"


if __name__ == "__main__":
    given = tyro.cli(Args)
    if given.worker is None:
        main(given)
    else:
        work(given)
