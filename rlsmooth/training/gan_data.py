"""Minibatches of real samples for a GAN: from a tensor, in an order that the seed decides, or drawn by a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from rlsmooth.training.run import fingerprint, spread_evenly
from rlsmooth.training.seeding import epoch_permutation, isolated_rng

RealData: TypeAlias = Tensor | Callable[[int], Tensor]

HASHED_SAMPLES = 4096


class RealSamples:
    """Minibatches of real samples, by their number.

    A tensor is gone through epoch by epoch, each in an order of its own; the samples that do not fill a last minibatch
    are left out of that epoch. The order depends on seed and number alone, so that a resumed run needs no state for it.

    Args:
        data: floating-point `[N, ...]`, moved to the device, or a function of a number of samples.
        batch_size: samples of a minibatch; all `N` where there are fewer.
        seed: of the orders.
        device: where the minibatches are wanted.

    Raises:
        TypeError: `data` is neither, or not floating-point.
        ValueError: it has no samples, or holds NaN or infinity.
    """

    def __init__(self, data: RealData, batch_size: int, *, seed: int, device: torch.device) -> None:
        self.seed = seed
        self.device = device
        self.batch_size = batch_size
        self.tensor: Tensor | None = None
        self._draw: Callable[[int], Tensor] | None = None
        self._order: tuple[int, Tensor] | None = None
        if isinstance(data, Tensor):
            if not data.is_floating_point():
                raise TypeError(f"data must be floating-point, got {data.dtype}: scale it, for example to [-1, 1].")
            if data.ndim < 1 or not len(data):
                raise ValueError(f"data {tuple(data.shape)} has no samples.")
            if not bool(data.isfinite().all()):
                raise ValueError("data holds NaN or infinity: drop or fix those samples.")
            self.tensor = data.detach().to(device)
            self.batch_size = min(batch_size, len(data))
        elif callable(data):
            self._draw = data
        else:
            raise TypeError(f"data must be a tensor or a function that draws samples, got {type(data).__name__}.")

    def batch(self, number: int) -> Tensor:
        """Minibatch `number` of the run, counted from 0: `[batch_size, ...]` on the device."""
        if self._draw is not None:
            return self._draw(self.batch_size).to(self.device)
        assert self.tensor is not None
        return self.tensor[self.places(number)]

    def places(self, number: int) -> Tensor:
        """Which samples of the tensor minibatch `number` has: int64 `[batch_size]`, none where they are drawn."""
        if self.tensor is None:
            return torch.zeros(0, dtype=torch.int64)
        epoch, place = divmod(number, len(self.tensor) // self.batch_size)
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, epoch_permutation(self.seed, epoch, len(self.tensor), self.device))
        return self._order[1][place * self.batch_size : (place + 1) * self.batch_size]

    def example(self, count: int) -> Tensor:
        """Some samples to look at, `[count or fewer, ...]`; moves no random generator."""
        if self.tensor is not None:
            return self.tensor[:count]
        assert self._draw is not None
        with isolated_rng(self.seed):
            return self._draw(count).to(self.device)

    def fingerprint(self) -> str | None:
        """A sha256 that tells one tensor from another, of up to 4096 of its samples; None where they are drawn."""
        if self.tensor is None:
            return None
        few = spread_evenly(len(self.tensor), HASHED_SAMPLES)
        kept = self.tensor[few.to(self.device)]
        return fingerprint(f"{kept.dtype} {tuple(self.tensor.shape)}", kept)
