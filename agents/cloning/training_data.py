"""Demonstrations as tensors on the training device, cut into the batches of an epoch: no per-item Python.

An epoch is one permutation. It is gathered in blocks of at most 64 MiB, one `index_select` a tensor and block, and the
batches are views of a block. Memory-mapped demonstrations are read from the disk block by block; the batches are the
same to the bit. Where they are larger than half of the memory, the permutation is one of shards of neighbours and of
the transitions in a pool of shards, so that an epoch reads the disk about once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import maybe_transpose
from torch import Tensor

from rlsmooth.agents.heads import ActionHead, ActionTarget, CategoricalHead, TensorBatch, TensorObservations
from rlsmooth.agents.spaces import ActionBins
from rlsmooth.checks import check_choice
from rlsmooth.data import Demonstrations
from rlsmooth.data.arrays import action_starts, forward, in_memory, reading_ahead
from rlsmooth.targets import GaussianTarget, Smoothing, Target, Tree, as_smoothing, from_probs, gaussian
from rlsmooth.training import run
from rlsmooth.training.distributed import Ranks
from rlsmooth.training.seeding import (
    EpochCut,
    check_trains_on_one,
    epoch_permutation,
    has_batch_norm,
    mean_weight,
)
from rlsmooth.untrusted import open_regular

Smoothings: TypeAlias = tuple[Smoothing, ...]
"""One for each group of the head."""
ReferenceLike: TypeAlias = str | Tensor | Tree

DENSE_CLASSES = 32
"""Up to so many classes a smoothed target is kept dense: faster to compare with, at 4 bytes a class and transition."""
DRAWN_CLASSES = 64
HASHED_TRANSITIONS = 4096
HASHED_FIELDS = ("actions", "action_masks", "weights", "action_probs")
MATRICES = 8


def as_smoothings(value: Any, head: ActionHead) -> Smoothings:
    """The recipes that a `smoothing=` argument means for `head`, one a group of its components.

    Args:
        value: a number, `"lin_…"` or `Smoothing` for all components, or a sequence of such, one a MultiDiscrete
            dimension.
        head: of the action space.

    Raises:
        TypeError: it is none of these.
        ValueError: a sequence for another kind of space or of another length; a Box with another reference than the
            default one; a reference made for another number of classes.
    """
    groups = _group_sizes(head)
    if isinstance(value, (float, int, str, Smoothing)):
        recipes = (as_smoothing(value),) * len(groups)
    elif isinstance(value, Sequence):
        if not (isinstance(head, CategoricalHead) and head.kind == "multi_discrete"):
            raise ValueError("smoothing is a sequence, which only a MultiDiscrete action space can use: give one.")
        if len(value) != len(groups):
            raise ValueError(f"smoothing has {len(value)} entries, but the action space {len(groups)} dimensions.")
        recipes = tuple(as_smoothing(entry) for entry in value)
    else:
        raise TypeError(
            f'smoothing must be a number, "lin_…", a Smoothing or a sequence of such, got {type(value).__name__}.'
        )
    for recipe, size in zip(recipes, groups, strict=True):
        if size is None:
            if recipe.alpha is None or not (isinstance(recipe.reference, str) and recipe.reference == "uniform"):
                raise ValueError(
                    "smoothing of a Box action space is towards a broad Gaussian: give alpha, and reference_std for it."
                )
        elif not recipe.is_off and _alpha_fits_any_batch(recipe):
            recipe(torch.zeros(1, dtype=torch.int64), size)  # makes the recipe's table, or says why it does not fit
    return recipes


def as_references(value: Any, head: ActionHead) -> Smoothings | None:
    """The recipes that a `reference=` argument means, whose targets are the reference alone; None for the uniform one.

    Raises:
        TypeError: it is nothing that `Smoothing(reference=)` takes.
        ValueError: a Box, whose reference is set by `reference_std`; a sequence that does not fit; see `Smoothing`.
    """
    if value is None:
        return None
    if not isinstance(head, CategoricalHead):
        raise ValueError("reference of a Box action space is a Gaussian: leave it out and use reference_std.")
    groups = _group_sizes(head)
    if isinstance(value, Sequence) and not isinstance(value, str):
        if head.kind != "multi_discrete" or len(value) != len(groups):
            raise ValueError(
                f"reference has {len(value)} entries: a sequence needs one for each dimension of a MultiDiscrete space."
            )
        entries = tuple(value)
    else:
        entries = (value,) * len(groups)
    recipes = tuple(Smoothing(alpha=1.0, reference=entry) for entry in entries)
    return as_smoothings(recipes if len(groups) > 1 else recipes[0], head)


def action_target(
    head: ActionHead, smoothings: Smoothings, batch: TensorBatch, *, progress: float = 1.0
) -> ActionTarget:
    """The target of some transitions. Values were checked with the demonstrations; nothing waits for the device.

    With soft targets `p` it is `(1 - alpha) · p + alpha · reference`, the demonstrated action being the label that is
    looked up in a kernel or a tree.

    Args:
        head: of the action space.
        smoothings: see `as_smoothings`; an alpha of one number a transition must already be that of these.
        batch: its labels, masks and soft targets are read.
        progress: remaining, 1 at the start.
    """
    if not isinstance(head, CategoricalHead):
        alpha = smoothings[0].alpha_at(progress)
        assert alpha is not None
        return gaussian(
            batch.labels,
            alpha,
            reference_mean=head.reference_mean,
            reference_std=head.reference_std,
            validate=False,
        )
    labels, masks = head.label_groups(batch.labels), head.mask_groups(batch.masks)
    sizes = _group_sizes(head)
    targets = []
    for recipe, label, mask, size in zip(smoothings, labels, masks, sizes, strict=True):
        assert size is not None
        recipe = _for_components(recipe, label)
        if batch.probs is None:
            target = recipe(label, size, mask, progress, validate=False)
        else:
            target = _mixed(recipe, batch.probs, label, size, mask, progress)
        targets.append(target)
    return tuple(targets)


def to_dense(target: ActionTarget) -> ActionTarget:
    """The same target, smoothed ones of few classes as one tensor each: made once, sliced and read often.

    It no longer contains labels and references, and making it waits for the device.
    """
    if isinstance(target, GaussianTarget):
        return target
    return tuple(
        part.written_out(find_positive=True)
        if part.reference is not None and part.num_classes <= DENSE_CLASSES
        else part
        for part in target
    )


def kl_references(head: ActionHead, references: Smoothings | None, batch: TensorBatch) -> tuple[Target, ...] | None:
    """The KL term's reference for some transitions, without the atoms of weight 0; None for the uniform one."""
    if references is None:
        return None
    targets = action_target(head, references, batch._replace(probs=None))
    assert isinstance(targets, tuple)
    return tuple(
        Target(
            target.num_classes,
            target.atom_indices[..., :0],
            target.atom_weights[..., :0],
            target.background_weight,
            target.reference,
        )
        for target in targets
    )


def take_alpha(smoothings: Smoothings, chosen: Tensor, num_transitions: int) -> Smoothings:
    """Recipes whose alphas by transition, if any, are those of `chosen`.

    Raises:
        ValueError: an alpha tensor that is neither one number nor one a transition.
    """
    return tuple(_take_alpha_of(recipe, chosen, num_transitions) for recipe in smoothings)


def refuse_alphas_by_transition(smoothings: Smoothings, why: str) -> None:
    """Raise ValueError, which says `why`, if an alpha has one number a training transition."""
    if not all(_alpha_fits_any_batch(recipe) for recipe in smoothings):
        raise ValueError(f"smoothing has an alpha for each training transition, but {why}: give one number.")


def alpha_in_force(smoothings: Smoothings, progress: float) -> float:
    """The alpha of a log line: the mean over transitions and components; None (a whole distribution) counts as 1."""
    values = [recipe.alpha_at(progress) for recipe in smoothings]
    numbers = [
        1.0 if value is None else float(value.mean() if isinstance(value, Tensor) else value) for value in values
    ]
    return sum(numbers) / len(numbers)


def target_matrices(head: ActionHead, smoothings: Smoothings) -> dict[str, Tensor]:
    """The target of each label, `[K, K]`, for figures: `target_matrix`, or one a MultiDiscrete dimension.

    Masks and soft targets are left out, an alpha by transition counts with its mean, a schedule with its start, and of
    many dimensions the first eight.
    """
    if not isinstance(head, CategoricalHead):
        return {}
    found = {}
    sizes = _group_sizes(head)
    for place, (recipe, size) in enumerate(zip(smoothings, sizes, strict=True)):
        if size is None or size > DRAWN_CLASSES or place >= MATRICES:
            continue
        if not _alpha_fits_any_batch(recipe):
            assert isinstance(recipe.alpha, Tensor)
            recipe = dataclasses.replace(recipe, alpha=recipe.alpha.mean())
        name = "target_matrix" if len(sizes) == 1 else f"target_matrix_dim{place}"
        found[name] = recipe(torch.arange(size), size).dense()
    return found


def one_or_list(values: Sequence[Any]) -> Any:
    """The only value, or all of them: recipes or references as a `smoothing=` or `reference=` argument is given."""
    return values[0] if len(values) == 1 else list(values)


def _group_sizes(head: ActionHead) -> tuple[int | None, ...]:
    if not isinstance(head, CategoricalHead):
        return (None,)
    return head.dims if head.kind == "multi_discrete" else head.dims[:1]


def _alpha_fits_any_batch(recipe: Smoothing) -> bool:
    return not (isinstance(recipe.alpha, Tensor) and recipe.alpha.ndim > 0)


def _take_alpha_of(recipe: Smoothing, chosen: Tensor, num_transitions: int) -> Smoothing:
    if not isinstance(recipe.alpha, Tensor) or recipe.alpha.ndim == 0:
        return recipe
    if recipe.alpha.shape != (num_transitions,):
        raise ValueError(
            f"smoothing has an alpha of shape {tuple(recipe.alpha.shape)} for {num_transitions} transitions: give one "
            "number, or one a transition."
        )
    return dataclasses.replace(recipe, alpha=recipe.alpha.to(chosen.device)[chosen])


def _for_components(recipe: Smoothing, label: Tensor) -> Smoothing:
    """An alpha by transition, `[B]`, for labels `[B, D]`."""
    if label.ndim == 1 or _alpha_fits_any_batch(recipe):
        return recipe
    assert isinstance(recipe.alpha, Tensor)
    return dataclasses.replace(recipe, alpha=recipe.alpha.unsqueeze(-1))


def _mixed(recipe: Smoothing, probs: Tensor, label: Tensor, size: int, mask: Tensor | None, progress: float) -> Target:
    soft = from_probs(probs, validate=False)
    alpha = recipe.alpha_at(progress)
    if alpha is None:
        raise ValueError("smoothing has alpha=None, but the demonstrations have action_probs to mix with: give alpha.")
    if not isinstance(alpha, Tensor) and alpha == 0:
        return soft
    background = dataclasses.replace(recipe, alpha=1.0)(label, size, mask, validate=False)
    share = alpha.to(label.device) if isinstance(alpha, Tensor) else alpha
    return Target.mix(background, soft, share)


BLOCK_BYTES = 64 * 2**20
READ_BYTES = 4 * 2**20
TARGET_BYTES = 8 * 2**20
"""Targets that take more are made anew for each block: they would add half of what many transitions themselves take."""
CUT_UPDATES = 256
"""A block is cut into batches for so many updates at once: cutting each when it is needed takes twice as long."""
SHARD_BYTES = 4 * 2**20
"""Of observations and actions on the disk, what `shuffle="blocks"` keeps together. A seeded order depends on it."""
SAMPLED_TRANSITIONS = 2048
Shuffle: TypeAlias = Literal["full", "blocks"]


def check_shuffle(shuffle: Shuffle | None) -> Shuffle | None:
    """The argument `shuffle`; raise ValueError if it is neither one of the two nor None."""
    if shuffle is not None:
        check_choice("shuffle", shuffle, ("full", "blocks"))
    return shuffle


def memory_bytes() -> float:
    """The memory of this machine or of the container that limits it; infinity where neither is known."""
    sizes = [math.inf]
    if hasattr(os, "sysconf"):  # not on Windows
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # of version 2 and version 1 of control groups
        with contextlib.suppress(OSError, ValueError), open_regular(f"/sys/fs/cgroup/{limit}") as file:
            sizes.append(int(file.read(32)))  # ValueError: "max", there is no limit
    return min(sizes)


class BlockPart(NamedTuple):
    """The transitions of a block from `start` up to `end`."""

    block: TensorBatch
    start: int
    end: int

    @property
    def size(self) -> int:
        """How many they are."""
        return self.end - self.start

    def tensors(self) -> TensorBatch:
        """Views of them."""
        return slice_batch(self.block, self.start, self.end)


class TrainingData:
    """The transitions of a set of demonstrations, on `device`.

    Args:
        demonstrations: in memory (then all of it goes to the device) or memory-mapped (then a block at a time does).
        head: of the action space.
        observation_space: the policy's, whose images are channel-first.
        smoothings: how labels become targets. Targets of a constant alpha are made once.
        references: of the KL term, or None.
        bins: how a Box's actions become labels, if they do.
        device: where the batches are wanted.
        shuffle: `"full"`; `"blocks"`, in which a pool of shards is shuffled at a time; None: in blocks where they are
            streamed and larger than half of the memory.

    Attributes:
        shuffle: the choice made.
        transition_bytes: what one takes on the device.
        is_constant: whether targets can be made once.
        is_streamed: whether the demonstrations stay on the disk.
        ranks: the processes that train together; the trainer sets them.
        mean_weight: of the transitions; None where all weigh the same: weights are left out then.
        alpha: of smoothing where it is constant, the mean over transitions and components; else NaN.

    Raises:
        ValueError: an alpha by transition of another length, or beside a schedule; soft targets with `alpha=None`.
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
        shuffle: Shuffle | None = None,
    ) -> None:
        # Without the fields that cloning does not use: from the disk they would double what is read.
        self.demonstrations = demonstrations.replace_unchecked(
            next_observations=None, rewards=None, terminations=None, truncations=None, groups=None, infos=None
        )
        self._count = len(demonstrations)
        self.ranks = Ranks()
        self.mean_weight = mean_weight(demonstrations.weights)
        self.head = head
        self._has_batch_norm = has_batch_norm(head.policy)
        self.observation_space = observation_space
        self.smoothings = smoothings
        self.references = references
        self.bins = bins
        self.device = device
        self.is_constant = all(recipe.is_constant for recipe in smoothings)
        if not self.is_constant:
            refuse_alphas_by_transition(smoothings, "beside a schedule alphas are not looked up by transition")
        take_alpha(smoothings, torch.zeros(1, dtype=torch.int64), len(demonstrations))  # says why an alpha does not fit
        fields, first = self._read_fields(slice(0, 1)), self.read(slice(0, 1))
        self.transition_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(first))
        observations = demonstrations.observations
        self._arrays = list(observations.values()) if isinstance(observations, dict) else [observations]
        self._arrays.append(demonstrations.actions)
        self.is_streamed = not all(map(in_memory, self._arrays))
        target_bytes = sum(part.nbytes for part in _tensors(first)) - sum(part.nbytes for part in _tensors(fields))
        self._keeps_targets = target_bytes * len(self) <= TARGET_BYTES
        stored = [array.dtype.itemsize * math.prod(array.shape[1:]) for array in self._arrays]
        is_large = self.is_streamed and sum(stored) * self._count > memory_bytes() / 2
        self.shuffle: Shuffle = shuffle or ("blocks" if is_large else "full")
        self._shard = max(1, SHARD_BYTES // sum(stored))
        self._whole = None if self.is_streamed else self._read_whole()
        self._sample: TensorBatch | None = None
        self.alpha = alpha_in_force(smoothings, 1.0) if self.is_constant else math.nan

    def __len__(self) -> int:
        return self._count

    def order(self, seed: int, epoch: int) -> Tensor:
        """The order of the transitions in an epoch: it depends on these two, their number and how they are shuffled."""
        return epoch_permutation(seed, epoch, len(self), shard=self._shard if self.shuffle == "blocks" else None)

    def cut(self, batch_size: int, num_parts: int) -> EpochCut:
        """How an epoch is divided into updates of `num_parts` batches."""
        return EpochCut(len(self), batch_size * num_parts, joins_single=self._has_batch_norm)

    def blocks(
        self, order: Tensor, batch_size: int, num_parts: int, skip: int = 0, end: int | None = None
    ) -> Iterator[tuple[TensorBatch, int, range]]:
        """The transitions of some updates of an epoch in blocks: each with the place where it begins, and its updates.

        Args:
            order: int64 `[N]`, a permutation, on the CPU.
            batch_size: transitions of a batch.
            num_parts: batches of an update.
            skip: leave out so many updates, without gathering what only they need. The blocks stay the same, so that a
                resumed epoch has every transition at the same place in memory: sums depend on that in their last bits.
            end: stop before this update; None: at the end of the epoch.
        """
        cut = self.cut(batch_size, num_parts)
        in_block = max(1, BLOCK_BYTES // (self.transition_bytes * cut.size))
        stop = len(cut) if end is None else min(end, len(cut))
        for first in range(skip // in_block * in_block, stop, in_block):
            numbers = range(first, min(first + in_block, stop))
            begin = cut.bounds(first)[0]
            block = self._take_block(order[begin : cut.bounds(numbers[-1])[1]])
            yield block, begin, range(max(first, skip), numbers.stop)

    def updates(
        self, order: Tensor, batch_size: int, num_parts: int, skip: int = 0, end: int | None = None
    ) -> Iterator[tuple[TensorBatch, ...]]:
        """The updates of one epoch: `num_parts` batches of `batch_size` each, the epoch's last may have fewer.

        Of processes that train together, each gets its share of every batch, and reads no more than that. The
        arguments are those of `blocks`.
        """
        if self.ranks.size > 1:
            yield from self._shares(order, batch_size, num_parts, skip, end)
            return
        cut = self.cut(batch_size, num_parts)
        for block, begin, numbers in self.blocks(order, batch_size, num_parts, skip, end):
            for group in range(numbers.start, numbers.stop, CUT_UPDATES):
                chosen = range(group, min(group + CUT_UPDATES, numbers.stop))
                start, last = cut.bounds(chosen.start)[0], cut.bounds(chosen[-1])[1]
                sizes = [self._part_sizes(cut, number, batch_size) for number in chosen]
                parts = iter(split_batch(slice_batch(block, start - begin, last - begin), [*itertools.chain(*sizes)]))
                for of_update in sizes:
                    yield tuple(itertools.islice(parts, len(of_update)))

    def _shares(
        self, order: Tensor, batch_size: int, num_parts: int, skip: int, end: int | None
    ) -> Iterator[tuple[TensorBatch, ...]]:
        """This process's share of each batch of the updates; see `updates`."""
        cut, ranks = self.cut(batch_size, num_parts), self.ranks
        in_block = max(1, BLOCK_BYTES * ranks.size // (self.transition_bytes * cut.size))
        stop = len(cut) if end is None else min(end, len(cut))
        for first in range(skip // in_block * in_block, stop, in_block):
            numbers = range(first, min(first + in_block, stop))
            bounds = [each for number in numbers for each in self._part_bounds(cut, number, batch_size)]
            places = [ranks.share(*each) for each in bounds]
            block = self._take_block(torch.cat([order[start:end] for start, end in places]))
            cut_out = split_batch(block, [end - start for start, end in places])
            parts = (
                part._replace(weights=torch.zeros(1, device=self.device)) if ranks.is_idle(*each) else part
                for part, each in zip(cut_out, bounds, strict=True)
            )
            for number in numbers:
                update = tuple(itertools.islice(parts, len(self._part_bounds(cut, number, batch_size))))
                if number >= skip:
                    yield update

    def size_of(self, number: int, batch_size: int, num_parts: int) -> int:
        """How many transitions an update of an epoch has, over all processes."""
        start, end = self.cut(batch_size, num_parts).bounds(number)
        return end - start

    def _part_bounds(self, cut: EpochCut, number: int, batch_size: int) -> list[tuple[int, int]]:
        """Where the batches of an update begin and end in the epoch's order."""
        start, end = cut.bounds(number)
        parts = EpochCut(end - start, batch_size, cut.joins_single)
        return [(start + begin, start + stop) for begin, stop in map(parts.bounds, range(len(parts)))]

    def _part_sizes(self, cut: EpochCut, number: int, batch_size: int) -> list[int]:
        """How many transitions the batches of an update have."""
        return [end - start for start, end in self._part_bounds(cut, number, batch_size)]

    def check_trains(self, batch_size: int, num_parts: int) -> None:
        """Raise ValueError if a batch has one transition and the policy BatchNorm that can't train on it."""
        cut = self.cut(batch_size, num_parts)
        start, end = cut.bounds(len(cut) - 1)
        smallest = min(batch_size, EpochCut(end - start, batch_size, cut.joins_single).smallest)
        if self._has_batch_norm and smallest == 1:
            one = self.take(torch.zeros(1, dtype=torch.int64))
            why = f"batch_size={batch_size} makes batches of one transition of {len(self)}"
            check_trains_on_one(self.head.policy, lambda: self.head.outputs(one.observations), why)

    def values_of(self, update: int, order: Tensor, batch_size: int, num_parts: int) -> tuple[Tensor, list[Tensor]]:
        """The indices of the transitions of one update of an epoch, and the tensors whose values may be at fault."""
        start, end = self.cut(batch_size, num_parts).bounds(update)
        batch = self.take(order[start:end])
        return order[start:end], tensors_of(batch._replace(masks=None, target=None, reference=None))

    def _take_block(self, chosen: Tensor) -> TensorBatch:
        if not self.is_streamed or self.shuffle == "full":
            return self.take(chosen)
        size, count = self._shard, len(self)
        starts = torch.unique(chosen // size) * size
        with reading_ahead(self._arrays, [(start, min(start + size, count)) for start in starts.tolist()]):
            return self.take(chosen)

    def take(self, chosen: Tensor) -> TensorBatch:
        """Copies of some transitions, with their targets where alpha is constant."""
        if self._whole is None:
            return self.read(chosen.numpy())
        index = chosen.to(self.device)
        return self._with_targets(_map(self._whole, lambda tensor: tensor.index_select(0, index)), index)

    def chunks(self) -> Iterator[TensorBatch]:
        """All transitions in order, a block at a time."""
        step = max(1, BLOCK_BYTES // self.transition_bytes)
        for start in range(0, len(self), step):
            end = min(start + step, len(self))
            if self._whole is None:
                yield self.read(slice(start, end))
            else:
                index = torch.arange(start, end, device=self.device)
                yield self._with_targets(slice_batch(self._whole, start, end), index)

    def read(self, chosen: slice | NDArray[np.int64]) -> TensorBatch:
        """Some transitions from the demonstrations to the device, with their targets where alpha is constant."""
        index = torch.arange(*chosen.indices(len(self))) if isinstance(chosen, slice) else torch.from_numpy(chosen)
        return self._with_targets(self._read_fields(chosen), index.to(self.device))

    def _read_whole(self) -> TensorBatch:
        """All transitions, read in parts, so that little is written besides the result, and their targets if small."""
        step = max(1, READ_BYTES // self.transition_bytes)
        whole = _map(self._read_fields(slice(0, 1)), lambda row: row.new_empty((len(self), *row.shape[1:])))
        for start in range(0, len(self), step):
            end = min(start + step, len(self))
            goals, parts = (_tensors(b) for b in (slice_batch(whole, start, end), self._read_fields(slice(start, end))))
            for goal, part in zip(goals, parts, strict=True):
                goal.copy_(part)
        return self._with_targets(whole, torch.arange(len(self), device=self.device)) if self._keeps_targets else whole

    def _read_fields(self, chosen: slice | NDArray[np.int64]) -> TensorBatch:
        given = self.demonstrations[chosen]
        actions: NDArray[Any] = given.actions.reshape(len(given), -1)
        if self.bins is not None:
            actions = self.bins.encode(actions)
        elif isinstance(self.head, CategoricalHead):
            actions = actions.astype(np.int64) - action_starts(self.demonstrations.action_space)
            actions = actions[:, 0] if self.head.kind == "discrete" else actions
        else:
            actions = actions.astype(np.float32)
        return TensorBatch(
            observations=self._observations(given.observations),
            labels=self._tensor(actions),
            masks=None if given.action_masks is None else self._tensor(given.action_masks),
            weights=None
            if given.weights is None or self.mean_weight is None
            else self._tensor(given.weights.astype(np.float32)),
            probs=None if given.action_probs is None else self._tensor(given.action_probs),
        )

    def _with_targets(self, batch: TensorBatch, index: Tensor) -> TensorBatch:
        """The transitions `index` with their reference and, where alpha is constant, their targets."""
        if batch.target is not None or batch.reference is not None:  # they are kept
            return batch
        reference = kl_references(self.head, self.references, batch)
        if not self.is_constant:
            return batch._replace(reference=reference)
        smoothings = take_alpha(self.smoothings, index, len(self))
        target = to_dense(action_target(self.head, smoothings, batch))
        return batch._replace(target=target, reference=reference)

    @property
    def sample(self) -> TensorBatch:
        """Up to 2048 transitions, evenly spread, that represent all in log lines; made once."""
        if self._sample is None:
            count = min(len(self), SAMPLED_TRANSITIONS, max(1, BLOCK_BYTES // self.transition_bytes))
            self._sample = self.compact(run.spread_evenly(len(self), count))
        return self._sample

    def compact(self, chosen: Tensor) -> TensorBatch:
        """Copies of some transitions whose targets, where alpha is constant, contain their labels and references."""
        with reading_ahead(self._arrays, [(place, place + 1) for place in chosen.tolist()]):
            batch = self.take(chosen)
        if not self.is_constant:
            return batch
        smoothings = take_alpha(self.smoothings, chosen.to(self.device), len(self))
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
        return torch.tensor(forward(array), device=self.device)


def update_size(update: Sequence[TensorBatch | BlockPart]) -> int:
    """How many transitions the parts of an update have."""
    return sum([part.size for part in update])  # quicker than a generator


def slice_batch(batch: TensorBatch, start: int, end: int) -> TensorBatch:
    """Views of the transitions from `start` up to `end`."""
    return _map(batch, lambda tensor: tensor[start:end])


def split_batch(batch: TensorBatch, sizes: list[int]) -> list[TensorBatch]:
    """Views of the transitions in pieces of these sizes: each tensor is cut once, not once a piece."""
    columns = [torch.split(tensor, sizes) for tensor in _tensors(batch)]

    def piece(tensors: Iterator[Tensor]) -> TensorBatch:
        return _map(batch, lambda _: next(tensors))

    return [piece(iter(tensors)) for tensors in zip(*columns, strict=True)]


def _tensors(batch: TensorBatch) -> list[Tensor]:
    """The tensors of a batch that have an entry for each transition, in the order of `_map`."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _map(batch, note)
    return found


def _map(batch: TensorBatch, select: Callable[[Tensor], Tensor]) -> TensorBatch:
    observations, target = batch.observations, batch.target
    if target is not None:
        target = (
            target.map_rows(select)
            if isinstance(target, GaussianTarget)
            else tuple([part.map_rows(select) for part in target])
        )
    return TensorBatch(
        {key: select(value) for key, value in observations.items()}
        if isinstance(observations, dict)
        else select(observations),
        select(batch.labels),
        None if batch.masks is None else select(batch.masks),
        None if batch.weights is None else select(batch.weights),
        None if batch.probs is None else select(batch.probs),
        target,
        None if batch.reference is None else tuple([part.map_rows(select) for part in batch.reference]),
    )


def tensors_of(batch: TensorBatch) -> list[Tensor]:
    """All tensors of a batch, those of its targets' atoms and references included."""
    observations = batch.observations
    parts = [*observations.values()] if isinstance(observations, dict) else [observations]
    parts += [tensor for tensor in (batch.labels, batch.masks, batch.weights, batch.probs) if tensor is not None]
    for target in (*(batch.target if isinstance(batch.target, tuple) else ()), *(batch.reference or ())):
        parts += [target.atom_indices, target.atom_weights]
        if target.reference is not None and target.reference.values is not None:
            parts.append(target.reference.values)
    return parts


def split_validation(
    demonstrations: Demonstrations | None, validation: Demonstrations | None, fraction: float, seed: int
) -> tuple[Demonstrations | None, Demonstrations | None]:
    """`(training, validation)` demonstrations.

    Raises:
        ValueError: there are validation data and a fraction too, or too few episodes for it; nothing that is held out
            has a weight above 0.
    """
    if fraction == 0.0 or demonstrations is None:
        return demonstrations, validation
    if validation is not None:
        raise ValueError(f"validation and validation_fraction={fraction} are both given: choose one.")
    training, held_out = demonstrations.split(fraction, seed)
    if held_out.weights is not None and not np.any(held_out.weights) and np.any(demonstrations.weights):
        raise ValueError(
            f"validation_fraction={fraction} holds out transitions of weight 0 only, whose loss is 0: change the seed, "
            "the fraction or the weights."
        )
    return training, held_out


def fingerprint(demonstrations: Demonstrations, *, rewards: bool = False) -> str:
    """A sha256 that differs between sets of demonstrations: of their size, episodes and up to 4096 transitions.

    With `rewards` these count too, and how episodes ended.

    They are spread evenly, so that a set larger than memory need not be read; the same set in memory and on the
    disk has the same fingerprint.

    Examples:
        >>> from rlsmooth.data import cartpole_v1
        >>> fingerprint(cartpole_v1()) == fingerprint(cartpole_v1())
        True
    """
    count = len(demonstrations)
    chosen: NDArray[np.int64] = np.unique(np.linspace(0, count - 1, min(count, HASHED_TRANSITIONS)).astype(np.int64))
    parts: list[str | NDArray[Any]] = [
        f"{count} {demonstrations.observation_space} {demonstrations.action_space}",
        np.asarray(demonstrations.episode_ends, dtype=np.int64),
    ]
    batch = demonstrations[chosen]
    observations = batch.observations if isinstance(batch.observations, dict) else {"": batch.observations}
    fields = {f"observations.{key}": value for key, value in sorted(observations.items())}
    names = (*HASHED_FIELDS, "rewards", "terminations", "truncations") if rewards else HASHED_FIELDS
    fields |= {name: value for name in names if (value := getattr(batch, name)) is not None}
    for name, value in fields.items():
        parts += [f"{name} {value.dtype} {value.shape}", value]
    return run.fingerprint(*parts)
