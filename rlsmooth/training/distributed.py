"""Data-parallel training: each process computes its share of every update, and the gradients are added up.

Torch's launcher starts the processes, and nothing else changes:

    torchrun --nproc-per-node 2 -m rlsmooth bc --env CartPole-v1

Updates, learning rate, losses and checkpoints mean the same as with one process, because the order of the data is the
same in all: a minibatch of B is cut into as many shares as there are processes, every loss is divided by what belongs
to all B, and one `all_reduce` adds the gradients before they are clipped. The parameters differ from those of one
process by rounding only. The first process (rank 0) writes files and logs, and evaluates.

This is not `DistributedDataParallel`, which takes the mean of the processes' means: that is another loss where samples
have weights or a share is smaller. For networks that need their parameters divided among GPUs, use the losses of
`rlsmooth.losses` in Lightning Fabric.
"""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from rlsmooth.checks import locked_folder

PATIENCE = timedelta(hours=6)
"""How long processes wait for each other: the first one evaluates while the others wait."""
CHOOSES = (
    "other parameters have gradients in this update than at first, or than in another process: the network chooses by "
    "its input or by chance what it uses, so train it in one process."
)
_USED: WeakKeyDictionary[torch.optim.Optimizer, tuple[tuple[bool, ...], list[bool]]] = WeakKeyDictionary()
"""For each optimizer, which of its parameters are trained, and which have gradients: agreed at the first update."""


class RankFailedError(ConnectionError):
    """Another process of a data-parallel run has ended, so that the run can't go further."""


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, as one of them sees them; without a process group it is the only one.

    Attributes:
        rank: the number of this process, from 0.
        size: how many there are.
        has_dropout: whether the network that they train draws from torch's generator.

    Examples:
        >>> Ranks.current().size, Ranks(1, 2).share(10, 15)
        (1, (12, 15))
    """

    rank: int = 0
    size: int = 1
    has_dropout: bool = False

    @classmethod
    def current(cls) -> Ranks:
        """Those of torch's default process group."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else cls()

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and logs."""
        return self.rank == 0

    def share(self, start: int, end: int) -> tuple[int, int]:
        """Where this process's share of the samples from `start` up to `end` begins and ends.

        Where there are fewer samples than processes, some have none (see `is_idle`). They get the first sample, to be
        given weight 0: so the same parameters get gradients in all, and no network sees a minibatch without samples.
        """
        count = end - start
        first, last = start + count * self.rank // self.size, start + count * (self.rank + 1) // self.size
        return (first, last) if first < last else (start, start + 1)

    def is_idle(self, start: int, end: int) -> bool:
        """Whether none of the samples from `start` up to `end` is this process's."""
        return (end - start) * self.rank // self.size == (end - start) * (self.rank + 1) // self.size

    def seed_draws(self, *place: int) -> None:
        """Let dropout draw anew in each process and at each place, such as an update; a resumed run repeats the draws.

        The generators alone would be alike in all processes, and a checkpoint keeps the first one's.
        """
        if self.has_dropout:
            torch.manual_seed(zlib.crc32(repr((self.rank, *place)).encode()))

    def sum_gradients(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
        """Add up the gradients of all processes, in place, and return the sum of their losses.

        Args:
            optimizer: of parameters whose gradients are those of this process's part of the loss.
            loss: that part, detached, 0-dim.

        Raises:
            RankFailedError: another process has ended.
            ValueError: other parameters have gradients in other processes, or than at the first update.
        """
        if self.size == 1:
            return loss
        every = [each for group in optimizer.param_groups for each in group["params"]]
        trained = tuple(each.requires_grad for each in every)
        used = [each.grad is not None for each in every]
        if optimizer not in _USED or _USED[optimizer][0] != trained:
            if any(other != used for other in self._gather(used)):
                raise ValueError(CHOOSES)
            _USED[optimizer] = trained, used
        expected = _USED[optimizer][1]
        differs = used != expected
        if differs and not loss.is_cpu:  # the others end when this process does
            raise ValueError(CHOOSES)
        # What is sent has the same length in all, whatever they have: other lengths end gloo's processes at once.
        sent = [each.grad if each.grad is not None else each for each, one in zip(every, expected, strict=True) if one]
        numbers = torch.stack([loss, loss.new_full((), float(differs))])
        numbers = numbers.to(sent[0].device, torch.promote_types(sent[0].dtype, torch.float32))
        flat = torch.cat([*(part.detach().reshape(-1) for part in sent), numbers])
        with _explained():
            dist.all_reduce(flat)
        *parts, total, known = torch.split(flat, [*(part.numel() for part in sent), 1, 1])
        if known.is_cpu and known.item():
            raise ValueError(CHOOSES)
        for gradient, part in zip(sent, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return total.reshape(()).to(loss.dtype)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set in any process: what one decides, all do at the same update."""
        if self.size == 1:
            return flags
        with _explained():
            shared = torch.tensor(flags, dtype=torch.int32, device=_device())
            dist.all_reduce(shared, dist.ReduceOp.MAX)
            return tuple(map(bool, shared.tolist()))

    def of_main(self, number: float) -> float:
        """The first process's number: what follows from it is the same in all."""
        if self.size == 1:
            return number
        with _explained():
            shared = torch.tensor(number, dtype=torch.float64, device=_device())
            dist.broadcast(shared, 0)
            return float(shared)

    def check_same(self, **values: object) -> None:
        """Raise ValueError unless each value is the same in all processes; `values` are named like arguments."""
        if self.size == 1:
            return
        found = self._gather({name: repr(value) for name, value in values.items()})
        for name in values:
            own = [each[name] for each in found]
            if len(set(own)) > 1:
                raise ValueError(
                    f"{name} differs between the processes that train together ({own[0]} in rank 0; "
                    f"{next(each for each in own if each != own[0])} in another): give all the same, and a seed."
                )

    def _gather(self, value: Any) -> list[Any]:
        """The value of each process."""
        found: list[Any] = [None] * self.size
        with _explained():
            dist.all_gather_object(found, value)
        return found


@contextmanager
def process_group() -> Iterator[Ranks]:
    """Join the processes that torch's launcher has started (`WORLD_SIZE`), for the `with` block.

    Without a launcher, and in a program that has joined them already, nothing changes. The backend is gloo for tensors
    on the CPU and NCCL for those on GPUs, of which each process takes the one of its local rank. Where the machine has
    fewer GPUs than processes, they share them, and all is gloo's.

    Raises:
        ValueError: `WORLD_SIZE` is set, but not by a launcher of torch's kind.

    Examples:
        >>> with process_group() as ranks:
        ...     ranks.is_main
        True
    """
    size = int(os.environ.get("WORLD_SIZE") or 1)
    if size == 1 or dist.is_initialized():
        yield Ranks.current()
        return
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise ValueError(
                f"WORLD_SIZE={size} says that so many processes were started, but {name} is not set: start them by "
                "torchrun, or unset WORLD_SIZE."
            )
    dist.init_process_group(_choose_gpu(), timeout=PATIENCE)
    try:
        yield Ranks.current()
    finally:
        dist.destroy_process_group()


def own_folder(folder: str | Path, *, shared: bool) -> AbstractContextManager[None]:
    """Reserve a folder for the `with` block in the process that writes to it: of a shared run the first one.

    Raises:
        ValueError: another run is in it.
    """
    return locked_folder(folder) if not shared or Ranks.current().is_main else nullcontext()


def join_ranks(module: nn.Module, *, engine: str = "torch", mixup: float = 0.0, **same: object) -> Ranks:
    """The processes that train together, after a check that they can and that all begin alike.

    Args:
        module: what they train.
        engine: of the trainer.
        mixup: of the trainer.
        same: what must be equal in all, besides the parameters, by the names of arguments.

    Raises:
        ValueError: something differs; an engine other than torch's; BatchNorm and mixup, which would see only a share.

    Warns:
        UserWarning: the network has dropout, which draws other units than with one process.
    """
    ranks = Ranks.current()
    if ranks.size == 1:
        return ranks
    parts = list(module.modules())
    if engine != "torch":
        raise ValueError(f'engine={engine!r} trains in one process: use engine="torch" for {ranks.size}.')
    if mixup:
        raise ValueError(f"mixup={mixup} would mix within each process's share of a minibatch: use one process.")
    if any(isinstance(part, _BatchNorm) and not isinstance(part, nn.SyncBatchNorm) for part in parts):
        raise ValueError(
            "the network has BatchNorm, which would normalise each process's share of a minibatch by itself: use "
            "LayerNorm or GroupNorm, on GPUs SyncBatchNorm, or one process."
        )
    has_dropout = any(_drops(part) for part in parts)
    if has_dropout:
        warnings.warn(
            f"the network has dropout: with {ranks.size} processes it drops other units than with one, so that the "
            "results are alike but not the same.",
            UserWarning,
            stacklevel=3,
        )
    parameters = nn.utils.parameters_to_vector(module.parameters()).detach().cpu().view(torch.uint8)
    ranks.check_same(**same, parameters=zlib.crc32(parameters.numpy().tobytes()))
    return replace(ranks, has_dropout=has_dropout)


def _drops(part: nn.Module) -> bool:
    """Whether a layer has dropout: as one of its own, or, as recurrent layers and attention, inside."""
    share = part.p if isinstance(part, _DropoutNd) else getattr(part, "dropout", 0.0)
    return isinstance(share, (int, float)) and share > 0


def _choose_gpu() -> str:
    """Take this process's GPU, if there are any, and return the backend."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % count)
    return "cpu:gloo,cuda:nccl" if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= count else "gloo"


def _device() -> torch.device:
    """Where small messages are: NCCL, if it is alone, takes none on the CPU."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankFailedError(
            f"another process of this run has ended, so this one does too: its message says why ({error})."
        ) from error
