"""Demonstrations as tensors on the training device, cut into the batches of an epoch: no per-item Python.

An epoch is one permutation. It is gathered in blocks of at most 64 MiB, one `index_select` a tensor and block, and the
batches are views of a block. Memory-mapped demonstrations are read from the disk block by block; the batches are the
same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import maybe_transpose
from torch import Tensor

from rlsmooth.agents.action_bins import ActionBins
from rlsmooth.agents.bc_targets import Smoothings, action_target, kl_references, of_rows, refuse_row_alphas, written_out
from rlsmooth.agents.heads import ActionHead, Batch, CategoricalHead, TensorObservations
from rlsmooth.data import Demonstrations
from rlsmooth.data.arrays import in_memory
from rlsmooth.data.validation import action_starts
from rlsmooth.targets import GaussianTarget

__all__ = ["TrainingRows"]

BLOCK_BYTES = 64 * 2**20


class TrainingRows:
    """The rows of a set of demonstrations, on `device`.

    Args:
        demonstrations: in memory (then all of it goes to the device) or memory-mapped (then a block at a time does).
        head: of the action space.
        observation_space: the policy's, whose images are channel-first.
        smoothings: how labels become targets. Targets of a constant alpha are made once.
        references: of the KL term, or None.
        bins: how a Box's actions become labels, if they do.
        device: where the batches are wanted.

    Attributes:
        row_bytes: what a row takes on the device.
        is_constant: whether targets can be made once.
        is_streamed: whether the demonstrations stay on the disk.

    Raises:
        ValueError: a per-row alpha that has not one number a transition, or that is beside a schedule; soft targets
            with `alpha=None`.
    """

    def __init__(
        self,
        demonstrations: Demonstrations,
        head: ActionHead,
        observation_space: spaces.Space[Any],
        *,
        smoothings: Smoothings,
        references: Smoothings | None,
        bins: ActionBins | None,
        device: torch.device,
    ) -> None:
        # Without the fields that cloning does not use: from the disk they would double what is read.
        self.demonstrations = demonstrations.replace_unchecked(
            next_observations=None, rewards=None, terminations=None, truncations=None, groups=None, infos=None
        )
        self.head = head
        self.observation_space = observation_space
        self.smoothings = smoothings
        self.references = references
        self.bins = bins
        self.device = device
        self.is_constant = all(recipe.is_constant for recipe in smoothings)
        if not self.is_constant:
            refuse_row_alphas(smoothings, "beside a schedule alphas are not told row by row")
        of_rows(smoothings, torch.zeros(1, dtype=torch.int64), len(demonstrations))  # says why an alpha does not fit
        first = self.read(slice(0, 1))
        self.row_bytes = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(first))
        observations = demonstrations.observations
        arrays = list(observations.values()) if isinstance(observations, dict) else [observations]
        self.is_streamed = not all(in_memory(array) for array in [*arrays, demonstrations.actions])
        self._whole = None if self.is_streamed else self.read(slice(0, len(demonstrations)))

    def __len__(self) -> int:
        return len(self.demonstrations)

    def updates(self, order: Tensor, batch_size: int, num_parts: int, skip: int = 0) -> Iterator[tuple[Batch, ...]]:
        """The updates of one epoch: `num_parts` batches of `batch_size` rows each, the epoch's last may have fewer.

        Args:
            order: int64 `[N]`, a permutation, on the CPU.
            batch_size: rows of a batch.
            num_parts: batches of an update.
            skip: leave out so many updates, without gathering what only they need. The blocks stay the same, so that a
                resumed epoch has every row at the same place in memory: sums depend on that in their last bits.
        """
        update_rows = batch_size * num_parts
        block_rows = max(1, BLOCK_BYTES // (self.row_bytes * update_rows)) * update_rows
        for start in range(skip * update_rows // block_rows * block_rows, len(self), block_rows):
            rows = order[start : start + block_rows]
            block = self.take(rows)
            for offset in range(max(0, skip * update_rows - start), len(rows), update_rows):
                end = min(offset + update_rows, len(rows))
                yield tuple(
                    slice_batch(block, part, min(part + batch_size, end)) for part in range(offset, end, batch_size)
                )

    def take(self, rows: Tensor) -> Batch:
        """Copies of some rows, with their targets where alpha is constant."""
        if self._whole is None:
            return self.read(rows.numpy())
        index = rows.to(self.device)
        return _map(self._whole, lambda tensor: tensor.index_select(0, index), index)

    def chunks(self) -> Iterator[Batch]:
        """All rows in order, a block at a time."""
        step = max(1, BLOCK_BYTES // self.row_bytes)
        for start in range(0, len(self), step):
            end = min(start + step, len(self))
            yield self.read(slice(start, end)) if self._whole is None else slice_batch(self._whole, start, end)

    def read(self, rows: slice | NDArray[np.int64]) -> Batch:
        """Some rows from the demonstrations to the device, with their targets where alpha is constant."""
        given = self.demonstrations[rows]
        actions: NDArray[Any] = given.actions.reshape(len(given), -1)
        if self.bins is not None:
            actions = self.bins.encode(actions)
        elif isinstance(self.head, CategoricalHead):
            actions = actions.astype(np.int64) - action_starts(self.demonstrations.action_space)
            actions = actions[:, 0] if self.head.kind == "discrete" else actions
        else:
            actions = actions.astype(np.float32)
        batch = Batch(
            observations=self._observations(given.observations),
            labels=self._tensor(actions),
            masks=None if given.action_masks is None else self._tensor(given.action_masks),
            weights=None if given.weights is None else self._tensor(given.weights.astype(np.float32)),
            probs=None if given.action_probs is None else self._tensor(given.action_probs),
        )
        reference = kl_references(self.head, self.references, batch)
        if not self.is_constant:
            return batch._replace(reference=reference)
        index = torch.arange(*rows.indices(len(self))) if isinstance(rows, slice) else torch.from_numpy(rows)
        smoothings = of_rows(self.smoothings, index.to(self.device), len(self))
        target = written_out(action_target(self.head, smoothings, batch))
        return batch._replace(target=target, reference=reference)

    def compact(self, rows: Tensor) -> Batch:
        """Copies of some rows whose targets, where alpha is constant, tell their labels and references."""
        batch = self.take(rows)
        if not self.is_constant:
            return batch
        smoothings = of_rows(self.smoothings, rows.to(self.device), len(self))
        return batch._replace(target=action_target(self.head, smoothings, batch))

    def _observations(self, observations: NDArray[Any] | dict[str, NDArray[Any]]) -> TensorObservations:
        if isinstance(observations, dict):
            assert isinstance(self.observation_space, spaces.Dict)
            return {key: self._image(value, self.observation_space[key]) for key, value in observations.items()}
        return self._image(observations, self.observation_space)

    def _image(self, values: NDArray[Any], space: spaces.Space[Any]) -> Tensor:
        values = maybe_transpose(values, space)
        # float64 observations become float32 in every forward pass otherwise.
        return self._tensor(values.astype(np.float32) if values.dtype == np.float64 else values)

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        # A copy in torch's own memory: the alignment of numpy's differs, and with it the last bits of a product.
        return torch.tensor(array, device=self.device)


def slice_batch(batch: Batch, start: int, end: int) -> Batch:
    """Views of the rows from `start` up to `end`."""
    rows = slice(start, end)
    return _map(batch, lambda tensor: tensor[rows], rows)


def _map(batch: Batch, select: Any, index: slice | Tensor) -> Batch:
    observations, target = batch.observations, batch.target
    if target is not None:
        target = target[index] if isinstance(target, GaussianTarget) else tuple(part[index] for part in target)
    return Batch(
        {key: select(value) for key, value in observations.items()}
        if isinstance(observations, dict)
        else select(observations),
        select(batch.labels),
        None if batch.masks is None else select(batch.masks),
        None if batch.weights is None else select(batch.weights),
        None if batch.probs is None else select(batch.probs),
        target,
        None if batch.reference is None else tuple(part[index] for part in batch.reference),
    )


def _tensors(batch: Batch) -> list[Tensor]:
    observations = batch.observations
    parts = [*observations.values()] if isinstance(observations, dict) else [observations]
    parts += [tensor for tensor in (batch.labels, batch.masks, batch.weights, batch.probs) if tensor is not None]
    for target in (*(batch.target if isinstance(batch.target, tuple) else ()), *(batch.reference or ())):
        parts += [target.atom_indices, target.atom_weights]
        if target.reference is not None and target.reference.values is not None:
            parts.append(target.reference.values)
    return parts
