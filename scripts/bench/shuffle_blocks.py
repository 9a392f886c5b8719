"""Accuracy after training on data sorted by label, by how many shards are mixed at a time.

python scripts/bench/shuffle_blocks.py

`shuffle="blocks"` keeps neighbours on the disk together for a while, and neighbours of a sorted set have one label.
200,000 samples of ten classes are cut into 782 shards of 256, as 3 GB are into shards of 4 MiB; a pool of 64 shards
lasts 256 updates.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rlsmooth.losses import cross_entropy
from rlsmooth.targets import uniform
from rlsmooth.training import isolated_rng
from rlsmooth.training.seeding import epoch_permutation

RESULTS = Path(__file__).parent / "results"
CLASSES, FEATURES, CENTRES, HIDDEN = 10, 16, 3, 64
SHARD, BATCH, HELD_OUT = 256, 64, 20_000
POOLS = (1, 4, 16, 64, 256)
FULL, UNSORTED = "full", "64, data in random order"


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
    """Run all seeds and write both results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="only show that it works; writes nothing")
    quick = parser.parse_args().quick
    count, epochs, seeds = (4_000, 1, 2) if quick else (200_000, 3, 10)
    orders = (*map(str, POOLS), FULL, UNSORTED)
    found = {}
    for name in orders:
        found[name] = accuracies(seeds, name, count, epochs)
        print(name, found[name], flush=True)
    text = report(found, count)
    print(text)
    if not quick:
        (RESULTS / "shuffle_blocks.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "shuffle_blocks.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
