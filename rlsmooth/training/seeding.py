"""Random state as tensors, the order and division of epochs, threads, and what else a run's repetition depends on."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import ThreadpoolController
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rlsmooth.checks import check_positive_int
from rlsmooth.training.distributed import Ranks
from rlsmooth.training.mlp_engine import Engine

CUDA_PREFIX = "cuda_"
CPU_KEYS = ("torch", "numpy_words", "numpy_gauss", "python_words", "python_gauss")


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python's `random`, numpy and torch (the CPU's and every GPU's).

    Environments and spaces have generators of their own: seed them by `env.reset(seed=...)` and `space.seed(...)`.

    Args:
        seed: 0 to 2**32 - 1.

    Raises:
        TypeError: `seed` is no whole number.
        ValueError: `seed` is outside.

    Examples:
        >>> seed_everything(3); first = torch.rand(2)
        >>> seed_everything(3); torch.equal(torch.rand(2), first)
        True
    """
    seed = _check_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  the global generator is the one that other people's code draws from
    torch.manual_seed(seed)


def rng_state() -> dict[str, Tensor]:
    """The state of every global generator, as CPU tensors that a safe file can hold.

    Returns:
        `"torch"` uint8, `"numpy_words"` int64 [625] and `"numpy_gauss"` float64 [2], `"python_words"` int64 [626] and
        `"python_gauss"` float64 [0 or 1], and `"cuda_<i>"` uint8 for each GPU.

    Raises:
        ValueError: numpy's global generator was replaced by one that is not MT19937.

    Examples:
        >>> state = rng_state(); first = torch.rand(2)
        >>> set_rng_state(state); torch.equal(torch.rand(2), first)
        True
    """
    numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    if numpy_state["bit_generator"] != "MT19937":
        raise ValueError(f"numpy's global generator is {numpy_state['bit_generator']}: only MT19937 can be kept.")
    numpy_words = [*numpy_state["state"]["key"].tolist(), numpy_state["state"]["pos"]]
    python_version, python_words, python_gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state().clone(),
        "numpy_words": torch.tensor(numpy_words, dtype=torch.int64),
        "numpy_gauss": torch.tensor([numpy_state["has_gauss"], numpy_state["gauss"]], dtype=torch.float64),
        "python_words": torch.tensor([python_version, *python_words], dtype=torch.int64),
        "python_gauss": torch.tensor([] if python_gauss is None else [python_gauss], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        state |= {f"{CUDA_PREFIX}{index}": cuda for index, cuda in enumerate(torch.cuda.get_rng_state_all())}
    return state


def set_rng_state(state: Mapping[str, Tensor]) -> None:
    """Put every global generator back into the state that `rng_state` gave.

    A state with GPUs that this machine lacks is put back without them, with a RuntimeWarning: no exact repeat then.

    Raises:
        ValueError: an entry is missing, or is no such state; no generator has changed then.
    """
    missing = [key for key in CPU_KEYS if key not in state]
    if missing:
        raise ValueError(f"state lacks {missing}: pass what rng_state() gave.")
    before = rng_state()
    try:
        _apply(state)
    except Exception as error:  # a file can make torch, numpy and Python raise anything
        _apply(before)
        raise ValueError(f"state is not what rng_state() gave ({error}).") from error
    cuda_keys = [key for key in state if key.startswith(CUDA_PREFIX)]
    lost = [key for key in cuda_keys if key not in before]
    if lost:
        warnings.warn(
            f"The random state of {lost} was left out, since this machine has no such GPU: "
            "the run will not repeat bit for bit.",
            RuntimeWarning,
            stacklevel=2,
        )


def check_rng_state(state: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless `set_rng_state` can put the state back; no generator changes."""
    with isolated_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of GPUs that this machine lacks
        set_rng_state(state)


@contextmanager
def isolated_rng(seed: int | None = None) -> Iterator[None]:
    """Leave every global generator as it was when the block ends, also by an exception.

    So an evaluation in the middle of training does not change what training draws next.

    Args:
        seed: seeds the generators within the block; None continues from where they are.

    Raises:
        TypeError: `seed` is no whole number.
        ValueError: `seed` is outside 0 to 2**32 - 1.

    Examples:
        >>> seed_everything(0); first = torch.rand(1)
        >>> seed_everything(0)
        >>> with isolated_rng(seed=7):
        ...     _ = torch.rand(1000)
        >>> torch.equal(torch.rand(1), first)
        True
    """
    if seed is not None:
        seed = _check_seed(seed)
    before = rng_state()
    try:
        if seed is not None:
            seed_everything(seed)
        yield
    finally:
        set_rng_state(before)


POOL_SHARDS = 64
"""So many shards `shuffle="blocks"` mixes at a time. A seeded order depends on it."""


def epoch_permutation(
    seed: int,
    epoch: int,
    n: int,
    device: torch.device | str = "cpu",
    *,
    shard: int | None = None,
    pool: int = POOL_SHARDS,
) -> Tensor:
    """The order of `n` samples in one epoch, from a generator of its own: the same for the same `(seed, epoch, n)`.

    It neither reads nor moves a global generator, so a resumed run needs no state for the order of its data. It is
    drawn on the CPU, so that it is the same for every device.

    With `shard`, the samples are cut into shards of neighbours, which come in random order; `pool` of them at a time
    are mixed. A reader then has to hold one pool, not the whole set.

    Args:
        seed: 0 or more.
        epoch: 0 or more.
        n: number of samples, 0 or more.
        device: where the result goes.
        shard: samples of a shard; None: each sample may come at any place.
        pool: shards whose samples are mixed.

    Returns:
        int64 [n], a permutation of 0 ... n-1.

    Raises:
        TypeError: `seed`, `epoch`, `n`, `shard` or `pool` is no whole number.
        ValueError: one of them is negative, or `shard` or `pool` is 0.

    Examples:
        >>> sorted(epoch_permutation(0, 3, 5).tolist())
        [0, 1, 2, 3, 4]
    """
    entropy = [check_positive_int("seed", seed, minimum=0), check_positive_int("epoch", epoch, minimum=0)]
    n = check_positive_int("n", n, minimum=0)
    # SeedSequence mixes the two, so that (0, 1) and (1, 0) differ and neighbouring epochs are not alike.
    mixed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
    generator = torch.Generator().manual_seed(mixed)
    if shard is None or not n:
        return torch.randperm(n, generator=generator).to(device)
    size = min(check_positive_int("shard", shard), n)
    starts = torch.randperm(-(-n // size), generator=generator) * size
    pools = []
    for some in torch.split(starts, check_positive_int("pool", pool)):
        members = (some.unsqueeze(-1) + torch.arange(size)).reshape(-1)
        members = members[members < n]
        pools.append(members[torch.randperm(len(members), generator=generator)])
    return torch.cat(pools).to(device)


@dataclass(frozen=True)
class EpochCut:
    """An epoch of `count` samples, divided into minibatches of `size`, of which the last may be smaller.

    Attributes:
        count: samples of the epoch.
        size: samples of a minibatch.
        joins_single: a last minibatch of one sample joins the one before it.

    Examples:
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
        return end - start if len(self) == 1 else min(end - start, self.size)


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


def mean_weight(weights: ArrayLike | None) -> float | None:
    """The mean weight of a data set; None where all samples weigh the same, so that weights change nothing.

    A minibatch's loss is `sum_i w_i · loss_i / (samples · mean weight of the data set)`, so that a sample of weight 2
    counts twice in whatever minibatch it is. Divided by the minibatch's own weights, it would count the less the
    smaller the minibatch is: alone in one, its weight would cancel.

    Args:
        weights: `[N]`, at least 0; None: there are none.

    Examples:
        >>> mean_weight([1.0, 3.0]), mean_weight([2.0, 2.0])
        (2.0, None)
    """
    if weights is None:
        return None
    values: NDArray[np.float64] = np.asarray(weights, dtype=np.float64)
    if not len(values) or (values[0] > 0 and (values == values[0]).all()):
        return None
    return float(values.mean()) or 1.0  # where nothing weighs, nothing is learned


_THREADS_AT_IMPORT = torch.get_num_threads()
_BLAS = ThreadpoolController().select(user_api="blas")
_BLAS_THREADS_AT_IMPORT = {library.filepath: library.get_num_threads() for library in _BLAS.lib_controllers}
_BLAS_VARIABLES = {"openblas": ("OPENBLAS", "GOTO", "OMP"), "mkl": ("MKL", "OMP"), "blis": ("BLIS", "OMP")}
_engines: list[Engine] = []  # those of each `few_threads` around
_SPLIT_FROM = 32_768
"""Of so many numbers, torch begins to split an operation between threads."""
_chosen: list[int] = []  # the numbers of threads that each `few_threads` around has set


def _chooses_threads() -> bool:
    """Whether `few_threads` may choose, since the user has not."""
    now = torch.get_num_threads()
    if _chosen:
        return now == _chosen[-1]  # else a callback has set another
    return 1 < now == _THREADS_AT_IMPORT and not {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & os.environ.keys()


def set_threads(num_threads: int) -> None:
    """Let torch and numpy's matrix products use so many threads, at least 1, until they are set again."""
    torch.set_num_threads(num_threads)
    for library in _BLAS.lib_controllers:
        library.set_num_threads(num_threads)
        # Else threadpoolctl (from 3.8 on) lets no other thread of the process set it as long as this one lives.
        getattr(library, "clear_controlling_thread", lambda: None)()


def _blas_to_limit() -> list[str]:
    """The libraries of matrix products whose number of threads is not the user's, by path."""
    return [
        library.filepath
        for library in _BLAS.lib_controllers
        if library.get_num_threads() == _BLAS_THREADS_AT_IMPORT[library.filepath]
        and not any(f"{name}_NUM_THREADS" in os.environ for name in _BLAS_VARIABLES.get(library.internal_api, ()))
    ]


def _num_blas_threads() -> int:
    """How many threads matrix products have in `engine="numpy"`: what is set within it, what would be set outside."""
    ours = [] if "numpy" in _engines else _blas_to_limit()
    return max(
        (1 if library.filepath in ours else library.get_num_threads() for library in _BLAS.lib_controllers), default=1
    )


@contextmanager
def few_threads(*networks: nn.Module, batch_size: int, engine: Engine = "torch") -> Iterator[None]:
    """Within it torch uses one thread if the networks are small, on the CPU, and the user has not set the number.

    A network is small if it has fewer parameters, and its widest layer gives fewer numbers for a minibatch, than torch
    splits between threads. A second one then only waits for the first: it costs time of the processor and saves none.
    The number is the user's if `OMP_NUM_THREADS` or `MKL_NUM_THREADS` is set, or `torch.set_num_threads` was called
    after the import of this package, with another number than torch had.

    In `engine="numpy"` networks of any size are trained on one thread of torch and of numpy's matrix products, each
    unless the user has set its number (of the latter by `OPENBLAS_NUM_THREADS` or what else its library reads, or by
    `threadpoolctl` or `set_threads` to another number than it had at the import). Numbers hold for the whole process:
    trainings in two threads of one process change each other's.

    Args:
        networks: all that are trained.
        batch_size: of their minibatches.
        engine: what computes their updates.

    Examples:
        >>> before = torch.get_num_threads()
        >>> with few_threads(nn.Linear(4, 2), batch_size=32):
        ...     within = torch.get_num_threads()
        >>> within <= before == torch.get_num_threads()
        True
    """
    parameters = [one for network in networks for one in network.parameters()]
    are_small = engine == "numpy" or (
        sum(one.numel() for one in parameters) < _SPLIT_FROM
        and all(
            one.device.type == "cpu" and one.ndim <= 2 and batch_size * max(one.shape, default=1) < _SPLIT_FROM
            for one in parameters
        )
    )
    _engines.append(engine)
    try:
        with (
            _few_torch_threads(are_small),  # first: a library may share its threads with torch
            _BLAS.select(filepath=_blas_to_limit()).limit(limits=1) if engine == "numpy" else nullcontext(),
        ):
            yield
    finally:
        _engines.pop()


@contextmanager
def _few_torch_threads(are_small: bool) -> Iterator[None]:
    before = torch.get_num_threads()
    wanted = before
    if _chooses_threads():
        wanted = 1 if are_small else _THREADS_AT_IMPORT
    if wanted == before:
        yield
        return
    _chosen.append(wanted)
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        _chosen.pop()
        if torch.get_num_threads() == wanted:  # a callback may have set another
            torch.set_num_threads(before)


def execution_state() -> dict[str, Any]:
    """The settings that order floating-point sums, as JSON-able data: a run repeats exactly only where they agree.

    Returns:
        `torch_version`, `num_threads` and `num_processes` (a sum is split by their number), `cpu_capability` (vector
        width), `deterministic_algorithms`, `cudnn_deterministic`, `cudnn_benchmark`, `float32_matmul_precision`,
        and `gpus` (names). Where `few_threads` chooses, `num_threads` is the number of networks that get more than one,
        and `num_threads_of_small_networks` is there too; so is `num_blas_threads` within it, in `engine="numpy"`.

    Examples:
        >>> execution_state()["num_threads"] == torch.get_num_threads()
        True
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "torch_version": str(torch.__version__),
        "num_threads": _THREADS_AT_IMPORT if _chosen and _chooses_threads() else torch.get_num_threads(),
        **({"num_threads_of_small_networks": 1} if _chooses_threads() else {}),
        **({"num_blas_threads": _num_blas_threads()} if "numpy" in _engines else {}),
        "num_processes": Ranks.current().size,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(count)],
    }


def warn_if_execution_differs(saved: Mapping[str, Any], current: Mapping[str, Any] | None = None) -> list[str]:
    """Give one RuntimeWarning if a resumed run will not repeat bit for bit, naming each difference.

    Args:
        saved: `execution_state()` when the run was saved, with whatever entries the trainer added.
        current: the same now; None is `execution_state()`.

    Returns:
        The names of the entries that differ, sorted; empty means no warning.

    Examples:
        >>> warn_if_execution_differs(execution_state())
        []
    """
    current = execution_state() if current is None else current
    saved, current = ({"num_processes": 1, **state} for state in (saved, current))  # earlier versions did not say
    if "num_blas_threads" in saved:
        current.setdefault("num_blas_threads", _num_blas_threads())
    else:
        current.pop("num_blas_threads", None)
    differing = sorted(key for key in {*saved, *current} if saved.get(key) != current.get(key))
    if differing:
        listed = "; ".join(f"{key} was {saved.get(key)!r}, is {current.get(key)!r}" for key in differing)
        warnings.warn(
            f"The resumed run will not repeat the saved one bit for bit: {listed}. "
            "Set them as they were if it has to (num_threads: torch.set_num_threads; num_blas_threads: "
            "OPENBLAS_NUM_THREADS before the start; both: --num-threads of a command).",
            RuntimeWarning,
            stacklevel=2,
        )
    return differing


def _check_seed(seed: int) -> int:
    seed = check_positive_int("seed", seed, minimum=0)
    if seed >= 2**32:
        raise ValueError(f"seed={seed} must be under 2**32, since numpy takes no larger one.")
    return seed


def _apply(state: Mapping[str, Tensor]) -> None:
    numpy_words = state["numpy_words"].cpu().numpy()
    has_gauss, gauss = state["numpy_gauss"].tolist()
    python_version, *python_words = state["python_words"].tolist()
    python_gauss = state["python_gauss"].tolist()
    torch.set_rng_state(state["torch"].cpu())
    np.random.set_state(  # noqa: NPY002
        ("MT19937", numpy_words[:-1].astype(np.uint32), int(numpy_words[-1]), int(has_gauss), gauss)
    )
    random.setstate((python_version, tuple(python_words), python_gauss[0] if python_gauss else None))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if f"{CUDA_PREFIX}{index}" in state:
                torch.cuda.set_rng_state(state[f"{CUDA_PREFIX}{index}"].cpu(), index)
