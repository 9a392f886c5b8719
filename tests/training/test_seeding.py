from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn

from rlsmooth.training import (
    epoch_permutation,
    execution_state,
    isolated_rng,
    read_safe_file,
    rng_state,
    seed_everything,
    set_rng_state,
    warn_if_execution_differs,
    write_safe_file,
)
from rlsmooth.training.seeding import few_threads, set_threads
from support import assert_raises


def draw(device: torch.device) -> list[float]:
    """One draw, and a normal one, from each generator: normal ones keep a second value for the next call."""
    values = [random.random(), random.gauss(0, 1)]
    values += [np.random.rand(), np.random.randn()]  # noqa: NPY002
    values += [torch.rand(()).item(), torch.randn(3).sum().item(), torch.rand((), device=device).item()]
    return values


def test_a_seed_repeats_every_generator(device: torch.device) -> None:
    seed_everything(5)
    first = draw(device)
    seed_everything(5)
    assert draw(device) == first
    seed_everything(6)
    assert all(a != b for a, b in zip(draw(device), first, strict=True))


def test_a_seed_is_what_everybody_elses_seeding_gives() -> None:
    seed_everything(2**32 - 1)
    ours = (random.random(), np.random.rand(), torch.rand(1).item())  # noqa: NPY002
    random.seed(2**32 - 1)
    np.random.seed(2**32 - 1)  # noqa: NPY002
    torch.manual_seed(2**32 - 1)
    assert ours == (random.random(), np.random.rand(), torch.rand(1).item())  # noqa: NPY002


@pytest.mark.parametrize("draws", [0, 1, 2, 700])
def test_a_state_comes_back_from_a_file(tmp_path: Path, device: torch.device, draws: int) -> None:
    for _ in range(draws):
        draw(device)
    write_safe_file(tmp_path / "a", {}, tensors={"rng": rng_state()}, format_name="rng", format_version=1)
    expected = [draw(device) for _ in range(3)]
    set_rng_state(read_safe_file(tmp_path / "a", format_name="rng", format_version=1).tensors["rng"])
    assert [draw(device) for _ in range(3)] == expected


def test_a_state_is_a_copy() -> None:
    state = rng_state()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    draw(torch.device("cpu"))
    assert all(torch.equal(state[name], kept[name]) for name in kept)


@pytest.mark.parametrize("key", ["torch", "numpy_words", "numpy_gauss", "python_words", "python_gauss"])
def test_a_bad_state_is_a_clear_error_and_changes_nothing(key: str) -> None:
    state = rng_state()
    draw(torch.device("cpu"))
    now = rng_state()
    with pytest.raises(ValueError, match=rf"state lacks \['{key}'\]"):
        set_rng_state({name: tensor for name, tensor in state.items() if name != key})
    if key != "python_gauss":
        with pytest.raises(ValueError, match=r"not what rng_state\(\) gave"):
            set_rng_state({**state, key: torch.tensor([1, 2, 3])})
    assert all(torch.equal(tensor, now[name]) for name, tensor in rng_state().items())


def test_another_numpy_generator_is_a_clear_error() -> None:
    generators: Any = np.random
    before = generators.get_bit_generator()
    generators.set_bit_generator(np.random.PCG64(0))
    try:
        assert_raises(ValueError, "PCG64", rng_state)
    finally:
        generators.set_bit_generator(before)


def test_a_gpu_that_is_not_here_gives_a_warning() -> None:
    state = {**rng_state(), "cuda_99": torch.zeros(16, dtype=torch.uint8)}
    with pytest.warns(RuntimeWarning, match="cuda_99"):
        set_rng_state(state)


@pytest.mark.parametrize("seed", [None, 3])
def test_a_block_leaves_the_generators_as_they_were(device: torch.device, seed: int | None) -> None:
    seed_everything(1)
    draw(device)
    expected = draw(device)
    seed_everything(1)
    draw(device)
    with isolated_rng(seed):
        within = draw(device)
    assert draw(device) == expected
    assert (within == expected) is (seed is None)
    seed_everything(1)
    draw(device)
    with contextlib.suppress(KeyError), isolated_rng(seed):
        draw(device)
        raise KeyError
    assert draw(device) == expected


def test_a_seeded_block_repeats() -> None:
    values = []
    for _ in range(2):
        with isolated_rng(9):
            values.append(draw(torch.device("cpu")))
    assert values[0] == values[1]


def test_seeds_outside_and_what_is_no_whole_number_are_errors() -> None:
    cases = [(ValueError, f"seed={seed}", seed) for seed in (-1, 2**32)]
    cases += [(TypeError, "seed must be a whole number", bad) for bad in (1.0, "1", True)]
    for error, message, seed in cases:
        assert_raises(error, message, seed_everything, seed)
        with pytest.raises(error, match=message), isolated_rng(seed):
            pass


def test_an_epochs_order_depends_on_seed_and_epoch_only(device: torch.device) -> None:
    order = epoch_permutation(3, 7, 1000, device)
    assert order.dtype == torch.int64
    assert order.device.type == device.type
    assert order.sort().values.tolist() == list(range(1000))
    before = rng_state()
    torch.rand(10)
    assert torch.equal(epoch_permutation(3, 7, 1000).to(device), order)
    set_rng_state(before)
    epoch_permutation(3, 7, 1000)
    assert all(torch.equal(tensor, before[name]) for name, tensor in rng_state().items())


def test_epochs_differ_and_positions_are_uniform() -> None:
    orders = torch.stack([epoch_permutation(seed, epoch, 10) for seed in range(60) for epoch in range(60)])
    assert len({tuple(order.tolist()) for order in orders}) > 3590  # of 10! orders, two of 3600 may agree
    counts = torch.stack([orders[:, place].bincount(minlength=10) for place in range(10)])
    chi_squared = ((counts - 360.0) ** 2 / 360).sum().item()  # 81 degrees of freedom: 99.99 % lie under 137
    assert chi_squared < 137


def test_the_order_is_the_same_in_every_version() -> None:
    """A run that is resumed after an upgrade must not meet its data in another order."""
    assert epoch_permutation(0, 0, 8).tolist() == [4, 1, 3, 5, 0, 2, 6, 7]
    assert epoch_permutation(1, 0, 8).tolist() != epoch_permutation(0, 1, 8).tolist()


def test_small_and_bad_epochs() -> None:
    assert epoch_permutation(0, 0, 0).tolist() == []
    assert epoch_permutation(0, 0, 1).tolist() == [0]
    for name, arguments in {"seed": (-1, 0, 1), "epoch": (0, -1, 1), "n": (0, 0, -1)}.items():
        assert_raises(ValueError, f"{name}=-1", epoch_permutation, *arguments)
    for name, floats in {"seed": (1.5, 0, 1), "epoch": (0, 1.5, 1), "n": (0, 0, 1.5)}.items():
        assert_raises(TypeError, f"{name} must be a whole number", epoch_permutation, *floats)


def test_a_differing_thread_count_gives_one_clear_warning() -> None:
    saved = execution_state()
    assert warn_if_execution_differs(saved) == []
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(
            RuntimeWarning, match=f"num_threads was {threads}, is {threads + 1}.*set_num_threads"
        ) as caught:
            assert warn_if_execution_differs(saved) == ["num_threads"]
        assert len(caught) == 1
    finally:
        torch.set_num_threads(threads)


SMALL, WIDE, CONVOLUTION = nn.Linear(4, 64), nn.Linear(181, 181), nn.Conv2d(1, 2, 3)


@pytest.mark.parametrize(
    ("networks", "batch_size", "threads"),
    [
        ([SMALL], 511, 1),  # 32,704 outputs
        ([SMALL], 512, 2),
        ([WIDE], 1, 2),  # 32,942 parameters
        ([SMALL, CONVOLUTION], 1, 2),
        ([nn.Linear(4, 64, device="meta")], 1, 2),
        ([SMALL, SMALL], 32, 1),
    ],
)
def test_small_networks_get_one_thread(networks: Any, batch_size: int, threads: int, two_threads: None) -> None:
    saved = execution_state()
    with pytest.raises(KeyError), few_threads(*networks, batch_size=batch_size):  # noqa: PT012
        assert torch.get_num_threads() == threads
        with few_threads(SMALL, batch_size=1), few_threads(WIDE, batch_size=1):
            assert torch.get_num_threads() == 2
        with few_threads(SMALL, batch_size=1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == threads
        assert execution_state() == saved  # a checkpoint of a run that resumes outside
        raise KeyError
    assert torch.get_num_threads() == 2
    assert execution_state() == saved


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "set_num_threads"])
def test_a_number_of_threads_that_the_user_sets_stays(
    name: str, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = execution_state()
    if name == "set_num_threads":
        torch.set_num_threads(3)
    else:
        monkeypatch.setenv(name, "2")
    threads = torch.get_num_threads()
    with few_threads(SMALL, batch_size=1):
        assert torch.get_num_threads() == threads
    with pytest.warns(RuntimeWarning, match="num_threads_of_small_networks was 1, is None"):
        warn_if_execution_differs(chosen)
    with few_threads(SMALL, batch_size=1):
        torch.set_num_threads(5)  # as a callback may
    assert torch.get_num_threads() == 5


class Library:
    """A library of matrix products, as `threadpoolctl` controls it."""

    def __init__(self, name: str, number: int) -> None:
        self.filepath, self.internal_api, self.number = name, "openblas", number

    def get_num_threads(self) -> int:
        return self.number

    def set_num_threads(self, number: int) -> None:
        self.number = number


class Controller:
    def __init__(self, libraries: list[Library]) -> None:
        self.lib_controllers = libraries

    def select(self, filepath: list[str]) -> Controller:
        return Controller([library for library in self.lib_controllers if library.filepath in filepath])

    @contextlib.contextmanager
    def limit(self, limits: int) -> Iterator[None]:
        before = [library.number for library in self.lib_controllers]
        for library in self.lib_controllers:
            library.set_num_threads(limits)
        yield
        for library, number in zip(self.lib_controllers, before, strict=True):
            library.set_num_threads(number)


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> list[Library]:
    """Two libraries, as with numpy and OpenCV, on a machine of four cores."""
    for name in ("OMP", "MKL", "OPENBLAS"):
        monkeypatch.delenv(f"{name}_NUM_THREADS", raising=False)
    found = [Library("numpy", 4), Library("opencv", 3)]
    monkeypatch.setattr("rlsmooth.training.seeding._BLAS", Controller(found))
    monkeypatch.setattr("rlsmooth.training.seeding._BLAS_THREADS_AT_IMPORT", {"numpy": 4, "opencv": 3})
    return found


def test_numpys_engine_has_one_thread_for_networks_of_any_size(two_threads: None, libraries: list[Library]) -> None:
    with few_threads(SMALL, batch_size=1):
        assert [library.number for library in libraries] == [4, 3]  # numpy computes nothing
        assert "num_blas_threads" not in execution_state()
    with few_threads(WIDE, batch_size=1, engine="numpy"):
        assert torch.get_num_threads() == 1
        assert [library.number for library in libraries] == [1, 1]
        with few_threads(SMALL, batch_size=1):  # as of BCO's inverse dynamics
            assert execution_state()["num_blas_threads"] == 1
        libraries[0].number = 2  # as a callback may
        assert execution_state()["num_blas_threads"] == 2
    assert torch.get_num_threads() == 2
    assert [library.number for library in libraries] == [4, 3]


def test_a_library_that_shares_its_threads_with_torch_gives_no_false_alarm(
    two_threads: None, libraries: list[Library], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Library, "get_num_threads", lambda _: torch.get_num_threads())
    monkeypatch.setattr(Library, "set_num_threads", lambda _, number: torch.set_num_threads(number))
    monkeypatch.setattr("rlsmooth.training.seeding._BLAS_THREADS_AT_IMPORT", {"numpy": 2, "opencv": 2})
    for library in libraries:
        library.number = 2
    with few_threads(SMALL, batch_size=1, engine="numpy"):
        saved = execution_state()
    torch.set_num_threads(2)
    assert warn_if_execution_differs(saved) == []


@pytest.mark.parametrize("way", ["OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "set", "one"])
def test_a_number_of_numpys_threads_that_the_user_sets_stays(
    way: str, two_threads: None, libraries: list[Library], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = execution_state()
    with few_threads(SMALL, batch_size=1, engine="numpy"):
        chosen = execution_state()
    assert warn_if_execution_differs(chosen) == []
    if way == "set":
        set_threads(2)
    elif way == "one":
        libraries[1].number = 2
    else:
        monkeypatch.setenv(way, "4")
    expected = {"OPENBLAS_NUM_THREADS": [4, 3], "MKL_NUM_THREADS": [1, 1], "set": [2, 2], "one": [1, 2]}[way]
    with few_threads(SMALL, batch_size=1, engine="numpy"):
        assert [library.number for library in libraries] == expected
        assert execution_state()["num_blas_threads"] == max(expected)
        if way != "MKL_NUM_THREADS":  # which is torch's too
            assert warn_if_execution_differs(before) == []  # of torch's engine, or of earlier versions
    if way != "MKL_NUM_THREADS":
        with pytest.warns(RuntimeWarning, match=f"num_blas_threads was 1, is {max(expected)}.*OPENBLAS_NUM_THREADS"):
            warn_if_execution_differs(chosen)


def test_another_thread_may_set_numpys_number_afterwards() -> None:
    """Of the real libraries."""
    set_threads(torch.get_num_threads())
    with few_threads(SMALL, batch_size=1, engine="numpy"):
        pass
    seen = []

    def work() -> None:
        with threadpool_limits(2, user_api="blas"):
            seen.extend(one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [2] * len([one for one in threadpool_info() if one["user_api"] == "blas"])


def test_a_number_that_a_callback_sets_stays_within_it_too(two_threads: None) -> None:
    with few_threads(SMALL, batch_size=1):
        torch.set_num_threads(5)
        with few_threads(SMALL, batch_size=1):  # the callback evaluates or trains
            assert torch.get_num_threads() == 5
            assert execution_state()["num_threads"] == 5
    assert torch.get_num_threads() == 5


def test_the_trainers_own_entries_count_too() -> None:
    with pytest.warns(RuntimeWarning, match="compiled was True, is False; torch_version was 'x', is None"):
        differing = warn_if_execution_differs(
            {"compiled": True, "torch_version": "x", "a": 1}, {"compiled": False, "a": 1}
        )
    assert differing == ["compiled", "torch_version"]


def test_execution_state_is_json_and_follows_the_flags(tmp_path: Path) -> None:
    before = execution_state()
    write_safe_file(tmp_path / "a", {"run": before}, tensors={}, format_name="run", format_version=1)
    assert read_safe_file(tmp_path / "a", format_name="run", format_version=1).config["run"] == before
    torch.use_deterministic_algorithms(True)
    try:
        assert execution_state() == {**before, "deterministic_algorithms": True}
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("n", "shard", "pool"), [(100, 7, 3), (64, 8, 8), (5, 9, 1), (1000, 1, 10), (30, 10, 1), (0, 4, 2)]
)
def test_blocks_mix_the_shards_of_a_pool_and_no_others(n: int, shard: int, pool: int) -> None:
    order = epoch_permutation(3, 7, n, shard=shard, pool=pool)
    assert order.sort().values.tolist() == list(range(n))
    assert torch.equal(epoch_permutation(3, 7, n, shard=shard, pool=pool), order)
    if n == 100:
        assert not torch.equal(epoch_permutation(3, 8, n, shard=shard, pool=pool), order)
    pools = []
    while len(order):
        shards, members = [], 0
        for sample in order.tolist():  # until so many shards have been seen as a whole
            shards += [] if sample // shard in shards else [sample // shard]
            members += 1
            size = sum(min(shard, n - one * shard) for one in shards)
            if members == size and (len(shards) == pool or members == len(order)):
                break
        assert len(shards) <= pool
        pools += shards
        order = order[members:]
    assert sorted(pools) == list(range(-(-n // shard)))


def test_shards_are_named_in_errors() -> None:
    assert_raises(ValueError, "shard=0", epoch_permutation, 0, 0, 5, shard=0)
    assert_raises(ValueError, "pool=0", epoch_permutation, 0, 0, 5, shard=1, pool=0)
