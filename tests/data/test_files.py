"""The two file forms: what goes in comes out, and what is damaged is named."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from rlsmooth.data import Demonstrations, DemonstrationsFileError, load_demonstrations

DICT = spaces.Dict({"z/../odd name": spaces.Box(0, 255, (2, 2, 1), np.uint8), "a": spaces.Discrete(9)})


def small(**changes: Any) -> Demonstrations:
    fields: dict[str, Any] = {
        "observations": np.arange(10, dtype=np.float32).reshape(5, 2),
        "actions": [300, 301, 300, 301, 301],
        "observation_space": spaces.Box(-np.inf, np.inf, (2,)),
        "action_space": spaces.Discrete(2, start=300),
        "episode_ends": [2, 5],
    }
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
    for field in dataclasses.fields(Demonstrations):
        first, second = getattr(one, field.name), getattr(two, field.name)
        if field.name in ("infos", "metadata"):
            continue
        if isinstance(first, dict):
            assert list(first) == list(second)
            for key in first:
                assert first[key].dtype == second[key].dtype
                assert np.array_equal(first[key], second[key])
        elif isinstance(first, np.ndarray):
            assert first.dtype == second.dtype
            assert np.array_equal(first, second)
        else:
            assert first == second


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


def test_numpy_reads_the_file_without_pickle(tmp_path: Path) -> None:
    small().save(tmp_path / "set.npz")
    with np.load(tmp_path / "set.npz", allow_pickle=False) as data:
        assert data["actions"].tolist() == [300, 301, 300, 301, 301]
        assert data["observations"].shape == (5, 2)


def test_the_same_set_gives_the_same_bytes(tmp_path: Path) -> None:
    full().save(tmp_path / "one.npz")
    full().save(tmp_path / "two.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


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
    with pytest.raises(ValueError, match="metadata can't be written as JSON"):
        small(metadata={"x": float("nan")}).save(path)
    with pytest.raises(ValueError, match="infos can't be written as JSON"):
        small(infos=[{"x": object()}] * 5).save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["set.npz"]
    full().save(path)
    assert_same(full(), Demonstrations.load(path))


@pytest.mark.parametrize("name", ["set.zip", "set", "missing/set.npz"])
def test_a_path_that_can_not_be_written_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"set"):
        small().save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def rewrite(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """Rewrite the archive's members, so that its checksums are right and only the content is wrong."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


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
        (with_member("header.json", b"{"), "header.json is damaged"),
        (with_member("header.json", b"[" * 100_000), "header.json"),
        (with_member("extra.npy", b""), "disagree about extra.npy"),
        (with_member("actions.npy", array_bytes(np.zeros(5, int))), "actions.npy is damaged or was edited"),
        (with_member("actions.npy", array_bytes(np.array([Trap()]), allow_pickle=True)), "is no plain array"),
        (with_member("actions.npy", b"nothing"), "is no plain array"),
        (
            lambda members: members.update({"actions.npy": members["actions.npy"] + b"x"}),
            "actions.npy is damaged or was",
        ),
    ],
)
def test_a_file_that_was_tampered_with_is_refused(
    change: Callable[[dict[str, bytes]], None], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "set.npz"
    small().save(path)
    rewrite(path, change)
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

    rewrite(path, forge)
    with pytest.raises(DemonstrationsFileError, match=r"set.npz does not hold valid.*actions\[2\] is 302"):
        Demonstrations.load(path)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_is_refused(share: float, tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    full().save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DemonstrationsFileError, match=r"set.npz.*(truncated|damaged)"):
        Demonstrations.load(path)


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
    with pytest.raises(DemonstrationsFileError, match=message):
        Demonstrations.load(path)


@pytest.mark.parametrize("keys", [7, [], ["a"], ["a", "b"], [["a"], "b"]])
def test_the_keys_of_a_dict_must_fit(keys: Any, tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    full().save(path)
    rewrite(path, edit_header(observation_keys=keys))
    with pytest.raises(DemonstrationsFileError, match=r"set\.npz"):
        Demonstrations.load(path)


def test_missing_files_and_names(tmp_path: Path) -> None:
    with pytest.raises(DemonstrationsFileError, match="does not exist"):
        Demonstrations.load(tmp_path / "no.npz")
    with pytest.raises(DemonstrationsFileError, match="shipped sets: cartpole-v1"):
        load_demonstrations(tmp_path / "no.npz")
    with pytest.raises(DemonstrationsFileError, match="shipped sets: cartpole-v1"):
        load_demonstrations("cartpole-v9")
    np.savez(tmp_path / "x.npz", obs=np.zeros(3))
    with pytest.raises(DemonstrationsFileError, match=r"holds obs.npy.*from_arrays"):
        load_demonstrations(tmp_path / "x.npz")


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
    with pytest.raises(ValueError, match="already holds demonstrations"):
        small().save_folder(tmp_path / "set")
    with pytest.raises(ValueError, match="infos can't be stored"):
        full().save_folder(tmp_path / "other")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "header.json").unlink(), "has no header.json"),
        (lambda folder: (folder / "header.json").write_text("{}"), "does not describe demonstrations"),
        (lambda folder: (folder / "actions.npy").unlink(), r"actions.npy is missing"),
        (lambda folder: (folder / "actions.npy").write_bytes(b""), r"actions.npy is missing, truncated"),
        (lambda folder: cut(folder / "observations.npy"), r"observations.npy is missing, truncated"),
        (lambda folder: np.save(folder / "actions.npy", np.zeros(5)), r"actions.npy holds <f8 \[5\], but header"),
        (
            lambda folder: np.save(folder / "actions.npy", np.array([Trap()])),
            r"actions.npy is missing, truncated or no",
        ),
        (lambda folder: np.save(folder / "actions.npy", np.zeros(5, int)), r"does not hold valid.*actions\[0\] is 0"),
        (lambda folder: redirect(folder), "does not describe '../actions' as save_folder does"),
    ],
)
def test_a_damaged_folder_is_refused(damage: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    small().save_folder(tmp_path / "set")
    damage(tmp_path / "set")
    with pytest.raises(DemonstrationsFileError, match=message):
        Demonstrations.load(tmp_path / "set")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def redirect(folder: Path) -> None:
    header = json.loads((folder / "header.json").read_text())
    header["arrays"]["../actions"] = header["arrays"].pop("actions") | {"member": "../actions.npy"}
    (folder / "header.json").write_text(json.dumps(header))
