"""Minibatches: how an epoch is divided, what a weighted sample counts, and how many samples a forward pass may have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from rlsmooth.training.seeding import isolated_rng

MEASURED_BYTES = 32 * 2**20
"""Bound of all that one forward pass of an evaluation allocates, unless a minibatch of training has more."""


# ---- the division of an epoch


@dataclass(frozen=True)
class EpochCut:
    """An epoch of `count` samples, divided into minibatches of `size`, of which the last may be smaller.

    Attributes:
        count: samples of the epoch.
        size: samples of a minibatch.
        joins_single: a last minibatch of one sample joins the one before it.

    Example:
        >>> [EpochCut(9, 4, joins_single=joins).bounds(1) for joins in (False, True)]
        [(4, 8), (4, 9)]
    """

    count: int
    size: int
    joins_single: bool = False

    def __len__(self) -> int:
        joined = self.joins_single and self.count > self.size > 1 and self.count % self.size == 1
        return -(-self.count // self.size) - joined

    def bounds(self, number: int) -> tuple[int, int]:
        """Where minibatch `number` (from 0) begins and ends."""
        start = number * self.size
        return start, self.count if number == len(self) - 1 else start + self.size

    @property
    def smallest(self) -> int:
        """The number of samples of the smallest minibatch."""
        start, end = self.bounds(len(self) - 1)
        return min(end - start, self.size)


def has_batch_norm(module: nn.Module) -> bool:
    """Whether training normalises by the minibatch, so that a minibatch of one sample says little or nothing."""
    return any(isinstance(part, _BatchNorm) for part in module.modules())


def check_trains_on_one(module: nn.Module, forward: Callable[[], object], why: str) -> None:
    """Raise ValueError if BatchNorm can't train on one sample. It can on one image, which has many values a channel.

    Args:
        module: with BatchNorm; its mode and buffers stay as they are.
        forward: one sample's forward pass through it.
        why: the beginning of the message: why there is a minibatch of one sample.
    """
    was_training, kept = module.training, [buffer.clone() for buffer in module.buffers()]
    module.train()
    try:
        with torch.no_grad(), isolated_rng():
            forward()
    except ValueError as error:
        raise ValueError(
            f"{why}, which BatchNorm can't train on ({error}): choose a larger batch_size, or give more samples."
        ) from error
    finally:
        for buffer, old in zip(module.buffers(), kept, strict=True):
            buffer.copy_(old)
        module.train(was_training)


# ---- weights


def mean_weight(weights: ArrayLike | None) -> float | None:
    """The mean weight of a data set; None where all samples weigh the same, so that weights change nothing.

    A minibatch's loss is `sum_i w_i · loss_i / (samples · mean weight of the data set)`, so that a sample of weight 2
    counts twice in whatever minibatch it is. Divided by the minibatch's own weights, it would count the less the
    smaller the minibatch is: alone in one, its weight would cancel.

    Args:
        weights: `[N]`, at least 0; None: there are none.

    Example:
        >>> mean_weight([1.0, 3.0]), mean_weight([2.0, 2.0])
        (2.0, None)
    """
    if weights is None:
        return None
    values: NDArray[np.float64] = np.asarray(weights, dtype=np.float64)
    if not len(values) or (values[0] > 0 and (values == values[0]).all()):
        return None
    return float(values.mean()) or 1.0  # where nothing weighs, nothing is learned


# ---- forward passes of evaluation


class _AllocatedBytes(TorchFunctionMode):
    """Counts the bytes of the tensors that torch's functions return."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for part in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(part, Tensor):
                self.total += part.numel() * part.element_size()
        return found


def samples_at_once(measure_one: Callable[[], object], batch_size: int, most: int) -> int:
    """How many samples an evaluation may send through a network at once.

    As many as allocate 32 MiB, or as many as a minibatch of training, which fits into memory with gradients too.

    Args:
        measure_one: does with one sample what will be done with all of them.
        batch_size: samples of a minibatch of training.
        most: upper bound.
    """
    with torch.no_grad(), _AllocatedBytes() as allocated:
        measure_one()
    return min(most, max(batch_size, MEASURED_BYTES // max(allocated.total, 1)))
