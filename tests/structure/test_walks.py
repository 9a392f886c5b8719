"""How many of the project's own files a step passes through: few enough to read it whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlsmooth.agents import BC
from rlsmooth.data import cartpole_v1
from support import calls_of_own_files


def make(**arguments: Any) -> BC:
    torch.manual_seed(0)
    return BC("MlpPolicy", None, cartpole_v1(), smoothing=0.1, seed=0, device="cpu", **arguments)


def update(folder: Path) -> Callable[[], object]:
    agent = make()
    agent.learn(total_batches=1)  # tables that are made once
    batch = next(agent._data.updates(torch.arange(len(agent._data)), agent.batch_size, 1))
    return lambda: agent._update(*batch, samples=sum(part.size for part in batch))


def learn(folder: Path) -> Callable[[], object]:
    agent = make()
    return lambda: agent.learn(total_batches=1)


def resume(folder: Path) -> Callable[[], object]:
    make(checkpoint_folder=folder, checkpoint_every=1).learn(total_batches=2)
    demonstrations = cartpole_v1()
    return lambda: BC.resume(folder, None, demonstrations, device="cpu")


@pytest.mark.parametrize(("walk", "most"), [(update, 7), (learn, 19), (resume, 23)])
def test_a_walk_passes_through_few_own_files(
    walk: Callable[[Path], Callable[[], object]], most: int, tmp_path: Path
) -> None:
    step = walk(tmp_path)
    with calls_of_own_files() as calls:
        step()
    files = {file for file, _ in calls}  # with comprehensions and lambdas
    assert files, "nothing was traced"
    assert len(files) <= most, f"{len(files)} files: {sorted(files)}"


def test_the_tracer_counts_a_call() -> None:
    with calls_of_own_files() as calls:
        cartpole_v1()
    assert ("rlsmooth/data/shipped.py", "cartpole_v1") in calls
