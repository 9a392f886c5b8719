"""Sets larger than memory: nothing but the asked-for rows may be read, whichever episodes were chosen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from rlsmooth.data import Demonstrations, EpisodeView


@st.composite
def views(draw: st.DrawFn) -> tuple[EpisodeView, np.ndarray[Any, Any]]:
    """A view of episodes of an array, and the same rows put together by hand."""
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    base = np.arange(sum(lengths) * 2).reshape(-1, 2)
    starts = np.cumsum(lengths) - lengths
    chosen = draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=8))
    by_hand = np.concatenate([base[starts[i] : starts[i] + lengths[i]] for i in chosen])
    return EpisodeView(base, starts[chosen], np.array(lengths)[chosen]), by_hand


@given(pair=views(), data=st.data())
def test_a_view_indexes_as_an_array(pair: tuple[EpisodeView, np.ndarray[Any, Any]], data: st.DataObject) -> None:
    view, array = pair
    count = len(array)
    assert (len(view), view.shape, view.dtype, view.ndim) == (count, array.shape, array.dtype, 2)
    assert np.array_equal(np.asarray(view), array)
    assert np.asarray(view, dtype=np.float32).dtype == np.float32
    bound = st.integers(-count - 2, count + 2) | st.none()
    step = data.draw(st.integers(-3, 3).filter(bool))
    rows = slice(data.draw(bound), data.draw(bound), step)
    assert np.array_equal(view[rows], array[rows])
    index = np.array(data.draw(st.lists(st.integers(-count, count - 1), max_size=9)), dtype=np.int64)
    assert np.array_equal(view[index], array[index])
    flags = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    assert np.array_equal(view[flags], array[flags])
    assert np.array_equal(view[-1], array[-1])
    for outside in (count, -count - 1, [0, count]):
        with pytest.raises(IndexError):
            view[outside]
    with pytest.raises(IndexError):
        view[np.ones(count + 1, bool)]
    with pytest.raises(ValueError, match="copy=False is not possible"):
        view.__array__(copy=False)


@pytest.fixture
def mapped(tmp_path: Path) -> tuple[Demonstrations, Demonstrations]:
    """The same set in memory and on the disk."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, 30)
    count = int(lengths.sum())
    in_memory = Demonstrations.from_arrays(
        {"box": rng.random((count, 3)), "bits": rng.integers(0, 2, (count, 2))},
        rng.integers(0, 2, (count, 2)),
        observation_space=spaces.Dict({"box": spaces.Box(0, 1, (3,)), "bits": spaces.MultiBinary(2)}),
        action_space=spaces.MultiDiscrete([2, 2]),
        episode_ends=np.cumsum(lengths),
        rewards=rng.random(count),
        action_masks=np.ones((count, 4), bool),
    )
    in_memory.save_folder(tmp_path / "set")
    return in_memory, Demonstrations.load(tmp_path / "set")


def test_a_choice_of_a_choice_stays_on_the_disk(mapped: tuple[Demonstrations, Demonstrations]) -> None:
    for steps in (
        lambda d: d.split(0.3, seed=1)[0],
        lambda d: d.split(0.3, seed=1)[0].sample_episodes(7, seed=2),
        lambda d: d.select_episodes([29, 3, 3, 0]).select_episodes([2, 0]),
        lambda d: d.sample_episodes(9, seed=3).with_action_noise(0.5, seed=4).split(0.5, seed=5)[1],
    ):
        in_memory, on_disk = steps(mapped[0]), steps(mapped[1])
        assert isinstance(on_disk.observations, dict)
        assert all(isinstance(part, EpisodeView) for part in on_disk.observations.values())
        rows = np.random.default_rng(1).permutation(len(in_memory))
        one, two = in_memory[rows], on_disk[rows]
        for key in ("box", "bits"):
            assert np.array_equal(one.observations[key], two.observations[key])  # type: ignore[call-overload, index]
        assert np.array_equal(one.actions, two.actions)
        assert np.array_equal(in_memory.action_labels, on_disk.action_labels)
        assert in_memory.episode_ends.tolist() == on_disk.episode_ends.tolist()
        np.testing.assert_allclose(in_memory.episode_returns(), on_disk.episode_returns())


def test_a_choice_can_be_saved_in_both_forms(mapped: tuple[Demonstrations, Demonstrations], tmp_path: Path) -> None:
    chosen = mapped[1].select_episodes([5, 1])
    chosen.save(tmp_path / "chosen.npz")
    chosen.save_folder(tmp_path / "chosen")
    expected = mapped[0].select_episodes([5, 1])
    for path in ("chosen.npz", "chosen"):
        read = Demonstrations.load(tmp_path / path)
        assert np.array_equal(read[:].observations["box"], expected[:].observations["box"])  # type: ignore[call-overload, index]
        assert np.array_equal(read[:].actions, expected[:].actions)


def test_mapped_arrays_keep_their_dtype_and_batches_have_that_of_the_space(tmp_path: Path) -> None:
    np.save(tmp_path / "obs.npy", np.arange(6, dtype=np.float64).reshape(3, 2))
    np.save(tmp_path / "acts.npy", np.array([0, 1, 1], dtype=np.uint8))
    obs, acts = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("obs", "acts"))
    demonstrations = Demonstrations.from_arrays(
        obs, acts, observation_space=spaces.Box(0, 9, (2,)), action_space=spaces.Discrete(2), episode_ends=[3]
    )
    assert demonstrations.observations is obs
    assert demonstrations.actions is acts
    batch = demonstrations[1:]
    assert batch.observations.dtype == np.float32  # type: ignore[union-attr]
    assert batch.actions.dtype == np.int64
    assert not isinstance(batch.observations, np.memmap)


def test_mapped_arrays_are_checked_beyond_the_first_chunk(tmp_path: Path) -> None:
    count = 3_000_000  # 24 MB: two chunks
    array = np.lib.format.open_memmap(tmp_path / "obs.npy", mode="w+", dtype=np.float32, shape=(count, 2))
    array[count - 5, 1] = np.nan
    with pytest.raises(ValueError, match=rf"observations\[{count - 5}\] holds NaN"):
        Demonstrations.from_arrays(
            array,
            np.zeros(count, np.int8),
            observation_space=spaces.Box(0, 1, (2,)),
            action_space=spaces.Discrete(2),
            episode_ends=[count],
        )


SCRIPT = """
import sys
import numpy as np
from rlsmooth.data import Demonstrations
demonstrations = Demonstrations.load(sys.argv[1])
training, validation = demonstrations.split(0.5, seed=0)
for number, batch in enumerate(training.batches(256, seed=0)):
    if number == 20:
        break
noisy = training.with_action_noise(0.1).sample_episodes(10)
smaps = open("/proc/self/smaps").read()
print(sum(int(l.split()[1]) for l in smaps.splitlines() if l.startswith("Private_Dirty")) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads Linux's memory maps")
def test_splitting_and_reading_take_no_memory_in_proportion_to_the_set(tmp_path: Path) -> None:
    """A set of 240 MB: what is not backed by its files must stay far below that."""
    count = 30_000
    folder = tmp_path / "set"
    pixels = np.lib.format.open_memmap(tmp_path / "pixels.npy", mode="w+", dtype=np.uint8, shape=(count, 80, 100))
    demonstrations = Demonstrations.from_arrays(
        pixels,
        np.zeros(count, np.int64),
        observation_space=spaces.Box(0, 255, (80, 100), np.uint8),
        action_space=spaces.Discrete(2),
        episode_ends=np.arange(100, count + 1, 100),
    )
    assert len(demonstrations) == count
    demonstrations.save_folder(folder)
    result = subprocess.run([sys.executable, "-c", SCRIPT, str(folder)], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 100
