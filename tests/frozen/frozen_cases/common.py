"""What all cases share: how a case is described, how runs are cut off, and what is compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlsmooth.targets import Tree

Tensors = dict[str, Tensor]

CARTPOLE, PENDULUM, MASKED = "CartPole-v1", "Pendulum-v1", "rlsmooth.envs:rlsmooth/IdentityMasked-v0"
SMALL = {"net_arch": [8]}
TREE = Tree.from_nested({"a": ["0", "1"], "b": ["2", "3"]})
PRIOR = torch.tensor([0.1, 0.2, 0.3, 0.4])
KERNEL = torch.tensor([[0.0, 0.7, 0.2, 0.1], [0.5, 0.0, 0.4, 0.1], [0.1, 0.4, 0.0, 0.5], [0.1, 0.2, 0.7, 0.0]])


class CutOffError(Exception):
    """Ends a run in the middle, as a kill would."""


@dataclass(frozen=True)
class File:
    """One kind of file.

    Attributes:
        write: makes the thing and writes it into a folder.
        read: reads it from there.
        kept: what the file holds; the same on every machine.
        answers: what is computed from it.
        train_on: trains it further and returns the parameters then; None: it is nothing that trains.
    """

    write: Callable[[Path], object]
    read: Callable[[Path], Any]
    kept: Callable[[Any], Tensors]
    answers: Callable[[Any], Tensors]
    train_on: Callable[[Any], Tensors] | None = None


@dataclass(frozen=True)
class Run:
    """One kind of run.

    Attributes:
        start: trains from the beginning; without a folder to the end, with one until it is cut off, with checkpoints.
        resume: resumes from the checkpoints of a folder, and trains to the end.
        state: what both end with.
    """

    start: Callable[[Path | None], Any]
    resume: Callable[[Path], Any]
    state: Callable[[Any], Tensors]


def of_module(name: str, module: nn.Module) -> Tensors:
    return {f"{name}.{key}": value.detach().clone() for key, value in module.state_dict().items()}


def of_optimizer(name: str, optimizer: torch.optim.Optimizer) -> Tensors:
    state = optimizer.state_dict()
    found = {
        f"{name}.{number}.{key}": torch.as_tensor(value).clone()
        for number, values in state["state"].items()
        for key, value in values.items()
    }
    return found | {f"{name}.lr": torch.tensor([group["lr"] for group in state["param_groups"]], dtype=torch.float64)}


def of_policy(agent: Any) -> Tensors:
    found = of_module("policy", agent.policy)
    optimizer = getattr(agent.policy, "optimizer", None)
    return found if optimizer is None else found | of_optimizer("optimizer", optimizer)


def of_arrays(arrays: Mapping[str, Any]) -> Tensors:
    """Arrays by name, those in dicts too; None is left out."""
    found: Tensors = {}
    for name, value in arrays.items():
        if isinstance(value, Mapping):
            found |= of_arrays({f"{name}.{key}": entry for key, entry in value.items()})
        elif value is not None:
            found[name] = torch.as_tensor(np.array(value))
    return found


def uniform(*shape: int, seed: int = 0) -> Any:
    return (2 * np.random.default_rng(seed).random(shape) - 1).astype(np.float32)


def cut_at(step: int) -> Callable[[dict[str, Any], dict[str, Any]], bool]:

    def callback(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["self"].num_timesteps >= step:
            raise CutOffError
        return True

    return callback
