"""Where a GAN's real rows come from: a tensor, in an order that the seed decides, or a function that draws them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from rlsmooth.training.seeding import epoch_permutation, isolated_rng

__all__ = ["RealData", "RealRows"]

RealData: TypeAlias = Tensor | Callable[[int], Tensor]

HASHED_ROWS = 4096


class RealRows:
    """Batches of real rows, by their number.

    A tensor is gone through epoch by epoch, each in an order of its own; the rows that do not fill a last batch are
    left out of that epoch. The order depends on seed and number alone, so that a resumed run needs no state for it.

    Args:
        data: floating-point `[N, ...]`, moved to the device, or a function of a number of rows.
        batch_size: rows of a batch; all `N` where there are fewer.
        seed: of the orders.
        device: where the batches are wanted.

    Raises:
        TypeError: `data` is neither, or not floating-point.
        ValueError: it has no rows, or holds NaN or infinity.
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
                raise ValueError(f"data {tuple(data.shape)} has no rows.")
            if not bool(data.isfinite().all()):
                raise ValueError("data holds NaN or infinity: drop or mend those rows.")
            self.tensor = data.detach().to(device)
            self.batch_size = min(batch_size, len(data))
        elif callable(data):
            self._draw = data
        else:
            raise TypeError(f"data must be a tensor or a function that draws rows, got {type(data).__name__}.")

    def batch(self, number: int) -> Tensor:
        """Batch `number` of the run, counted from 0: `[batch_size, ...]` on the device."""
        if self._draw is not None:
            return self._draw(self.batch_size).to(self.device)
        assert self.tensor is not None
        return self.tensor[self.rows(number)]

    def rows(self, number: int) -> Tensor:
        """Which rows of the tensor batch `number` has: int64 `[batch_size]`, none where rows are drawn."""
        if self.tensor is None:
            return torch.zeros(0, dtype=torch.int64)
        epoch, place = divmod(number, len(self.tensor) // self.batch_size)
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, epoch_permutation(self.seed, epoch, len(self.tensor), self.device))
        return self._order[1][place * self.batch_size : (place + 1) * self.batch_size]

    def example(self, count: int) -> Tensor:
        """Some rows to look at, `[count or fewer, ...]`; moves no random generator."""
        if self.tensor is not None:
            return self.tensor[:count]
        assert self._draw is not None
        with isolated_rng(self.seed):
            return self._draw(count).to(self.device)

    def fingerprint(self) -> str | None:
        """A sha256 that tells one tensor from another, of up to 4096 of its rows; None where rows are drawn."""
        if self.tensor is None:
            return None
        few = (
            torch.linspace(0, len(self.tensor) - 1, min(len(self.tensor), HASHED_ROWS), dtype=torch.float64)
            .round()
            .long()
        )
        kept = self.tensor[few.to(self.device)].cpu().contiguous()
        digest = hashlib.sha256(f"{kept.dtype} {tuple(self.tensor.shape)}".encode())
        digest.update(kept.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()
