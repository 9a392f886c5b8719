"""Accuracy after training on data sorted by label, by how many shards are mixed at a time; and what the disk is asked.

python scripts/bench/shuffle_blocks.py
python scripts/bench/shuffle_blocks.py --part bytes

`shuffle="blocks"` keeps neighbours on the disk together for a while, and neighbours of a sorted set have one label.
200,000 samples of ten classes are cut into 782 shards of 256, as 3 GB are into shards of 4 MiB; a pool of 64 shards
lasts 256 updates.

Bytes are those that Linux has read from the disk for this process (`/proc/self/io`) while BC trains on a folder of
demonstrations, whose pages were dropped from memory before.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlsmooth.agents import BC
from rlsmooth.data import Demonstrations
from rlsmooth.losses import cross_entropy
from rlsmooth.targets import uniform
from rlsmooth.training import isolated_rng
from rlsmooth.training.seeding import epoch_permutation

RESULTS = Path(__file__).parent / "results"
CLASSES, FEATURES, CENTRES, HIDDEN = 10, 16, 3, 64
SHARD, BATCH, HELD_OUT = 256, 64, 20_000
POOLS = (1, 4, 16, 64, 256)
FULL, UNSORTED = "full", "64, data in random order"
ON_DISK, WIDTH, READ_BATCH, UPDATES = 2_000_000, 96, 1024, (300, 1_000)


def make_data(seed: int, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training samples sorted by label, and held-out ones: each class has a few centres, and they overlap."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(CLASSES, CENTRES, FEATURES)) * 1.2
    labels = np.concatenate((np.sort(rng.integers(CLASSES, size=count)), rng.integers(CLASSES, size=HELD_OUT)))
    inputs = centres[labels, rng.integers(CENTRES, size=len(labels))] + rng.normal(size=(len(labels), FEATURES))
    x, y = torch.from_numpy(inputs).float(), torch.from_numpy(labels)
    return x[:count], y[:count], x[count:], y[count:]


def accuracies(seeds: int, order: str, count: int, epochs: int) -> list[list[float]]:
    """The held-out accuracy after each epoch, a list a seed. All seeds are trained side by side in stacked tensors."""
    data = zip(*(make_data(seed, count) for seed in range(seeds)), strict=True)
    x, y, held_x, held_y = map(torch.stack, data)
    if order == UNSORTED:
        places = torch.from_numpy(np.stack([np.random.default_rng(seed).permutation(count) for seed in range(seeds)]))
        x, y = x.gather(1, places.unsqueeze(-1).expand_as(x)), y.gather(1, places)
    shard = None if order == FULL else SHARD
    pool = 64 if order in (FULL, UNSORTED) else int(order)
    with isolated_rng(0):
        layers = [[nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, CLASSES)] for _ in range(seeds)]
    stacks = [torch.stack([layer.weight.detach().T for layer in same]) for same in zip(*layers, strict=True)]
    stacks += [torch.stack([layer.bias.detach()[None] for layer in same]) for same in zip(*layers, strict=True)]
    first, second, first_bias, second_bias = (stack.clone().requires_grad_() for stack in stacks)
    optimizer = torch.optim.Adam([first, second, first_bias, second_bias], lr=1e-3)

    def logits(inputs: Tensor) -> Tensor:
        return torch.baddbmm(second_bias, torch.baddbmm(first_bias, inputs, first).relu(), second)

    found, each = [], torch.arange(seeds)[:, None]
    for epoch in range(epochs):
        orders = torch.stack([epoch_permutation(seed, epoch, count, shard=shard, pool=pool) for seed in range(seeds)])
        for chosen in torch.split(orders, BATCH, -1):
            optimizer.zero_grad()
            target = uniform(y[each, chosen], CLASSES, 0.1, validate=False)
            loss = cross_entropy(logits(x[each, chosen]), target, reduction="sum") / chosen.shape[-1]
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            found.append((logits(held_x).argmax(-1) == held_y).double().mean(-1).tolist())
    return [list(run) for run in zip(*found, strict=True)]


def drop_pages(folder: Path, array: Any) -> None:
    """Let the system forget what it keeps of a folder's files, one of which is mapped by an array."""
    while not isinstance(array, mmap.mmap):
        array = array.base
    array.madvise(mmap.MADV_DONTNEED)
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bytes_read() -> int:
    """From the disk, by this process so far."""
    lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])


def reading(count: int, updates: tuple[int, ...]) -> list[dict[str, Any]]:
    """MB wanted by so many updates from the start of an epoch, and MB read, in each way of shuffling."""
    rng, found = np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "data"
        Demonstrations(
            observations=rng.standard_normal((count, WIDTH), np.float32),
            actions=rng.integers(4, size=count),
            observation_space=spaces.Box(-np.inf, np.inf, (WIDTH,)),
            action_space=spaces.Discrete(4),
            episode_ends=np.array([count]),
        ).save_folder(folder)
        data = Demonstrations.load(folder)
        size = (data.observations.nbytes + data.actions.nbytes) / count  # type: ignore[union-attr]
        given: Any = {"batch_size": READ_BATCH, "seed": 0, "device": "cpu"}
        for number in updates:
            for shuffle in ("full", "blocks"):
                agent = BC("MlpPolicy", None, data, shuffle=shuffle, **given)
                drop_pages(folder, data.observations)
                before = bytes_read()
                agent.learn(total_batches=number)
                wanted, read = number * READ_BATCH * size / 1e6, (bytes_read() - before) / 1e6
                found.append({"updates": number, "shuffle": shuffle, "wanted": wanted, "read": read})
                print(found[-1], flush=True)
    return found


def report_bytes(found: list[dict[str, Any]], count: int) -> str:
    """The table of what was read."""
    lines = [
        "",
        "# Bytes read from the disk",
        "",
        "`python scripts/bench/shuffle_blocks.py --part bytes`",
        "",
        f"BC on {count:,} transitions of {WIDTH} float32 on disk ({count * WIDTH * 4 / 1e6:.0f} MB), minibatches of",
        f"{READ_BATCH:,}, none of it in memory at first. Required: `blocks` reads at most 3 times what is wanted.",
        "",
        "| updates | shuffle | wanted, MB | read, MB | times |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for row in found:
        cells = f"{row['wanted']:.0f} | {row['read']:.0f} | {row['read'] / row['wanted']:.1f}"
        lines.append(f"| {row['updates']:,} | {row['shuffle']} | {cells} |")
    return "\n".join(lines) + "\n"


def report(found: dict[str, list[list[float]]], count: int) -> str:
    """The table: mean and standard error over seeds, in percent."""
    full = found[FULL]
    lines = [
        "# Data sorted by label, shuffled in blocks",
        "",
        "`python scripts/bench/shuffle_blocks.py`",
        "",
        f"Held-out accuracy (%) after each epoch over {count:,} samples of {CLASSES} classes, sorted by label, in",
        f"shards of {SHARD} and minibatches of {BATCH}; mean ± standard error of {len(full)} seeds. The last column is",
        "the difference to `full` with the same seeds after the last epoch.",
        "",
        "| shards in a pool | " + " | ".join(f"epoch {place + 1}" for place in range(len(full[0]))) + " | less full |",
        "|---|" + "---|" * (len(full[0]) + 1),
    ]
    for name, runs in found.items():
        last = [run[-1] - other[-1] for run, other in zip(runs, full, strict=True)]
        cells = [*(mean_and_error([run[place] for run in runs]) for place in range(len(full[0]))), mean_and_error(last)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def mean_and_error(values: list[float]) -> str:
    """In percent."""
    return f"{100 * statistics.fmean(values):.2f} ± {100 * statistics.stdev(values) / len(values) ** 0.5:.2f}"


def main() -> None:
    """Run a part and write both results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--part", choices=("accuracy", "bytes"), default="accuracy", help="which to measure")
    parser.add_argument("--quick", action="store_true", help="only show that it works; writes nothing")
    args = parser.parse_args()
    count, epochs, seeds = (4_000, 1, 2) if args.quick else (200_000, 3, 10)
    file = RESULTS / "shuffle_blocks.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    if args.part == "bytes":
        found["bytes"] = reading(20_000, (3,)) if args.quick else reading(ON_DISK, UPDATES)
    else:
        found["accuracy"] = {}
        for name in (*map(str, POOLS), FULL, UNSORTED):
            found["accuracy"][name] = accuracies(seeds, name, count, epochs)
            print(name, found["accuracy"][name], flush=True)
    text = report(found["accuracy"], 200_000) + report_bytes(found["bytes"], ON_DISK)
    print(text)
    if not args.quick:
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        file.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
