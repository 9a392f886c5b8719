"""Demonstrations as Parquet and in LeRobot's layout: written, read by others, and read from others."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from rlsmooth.data import Demonstrations, DemonstrationsFileError, cartpole_v1
from rlsmooth.data.parquet import check_parquet
from support import assert_equal, assert_raises, draw, recorded, samples

pa = pytest.importorskip("pyarrow")
SPACES = {
    "box": (spaces.Box(-1, 1, (2, 3), np.float32), spaces.MultiDiscrete([3, 4])),
    "pixels": (spaces.Box(0, 255, (4, 4, 1), np.uint8), spaces.MultiBinary(3)),
    "dict": (
        spaces.Dict({"a": spaces.Discrete(5), "b": spaces.Box(-1, 1, (2,), np.float64)}),
        spaces.Discrete(3, start=2),
    ),
    "discrete": (spaces.Discrete(7), spaces.Box(-3, 5, (2,), np.float32)),
}


def made(kind: str) -> Demonstrations:
    observation_space, action_space = SPACES[kind]
    observations, actions = samples(observation_space, 11, 0), samples(action_space, 11, 1)
    return recorded(observations, actions, observation_space, action_space, [4, 11], rewards=np.arange(11) / 3)


def full() -> Demonstrations:
    given = draw(12)
    rng = np.random.default_rng(0)
    masks = np.ones((12, 3), bool)
    probs = rng.dirichlet(np.ones(3), 12)
    flags = np.zeros(12, bool)
    flags[[2, 5, 8, 11]] = True
    return dataclasses.replace(
        given,
        next_observations=np.asarray(given.observations) + 1,
        terminations=flags,
        truncations=np.zeros(12, bool),
        action_masks=masks,
        weights=rng.random(12),
        groups=np.arange(12),
        action_probs=probs,
        infos=[{"number": number, "text": "ä"} for number in range(12)],
        metadata={"from": "here"},
    )


def assert_same(one: Demonstrations, other: Demonstrations) -> None:
    for field in dataclasses.fields(one):
        assert_equal(getattr(one, field.name), getattr(other, field.name), field.name)


@pytest.mark.parametrize("kind", [*SPACES, "full"])
def test_what_was_written_is_read(kind: str, tmp_path: Path) -> None:
    given = full() if kind == "full" else made(kind)
    given.to_parquet(tmp_path / "data.parquet")
    assert_same(Demonstrations.from_parquet(tmp_path / "data.parquet"), given)


def test_memory_mapped_data_are_written_in_parts(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("rlsmooth.data.parquet.ROWS", 5)
    full_set = dataclasses.replace(full(), infos=None)
    full_set.save_folder(tmp_path / "folder")
    Demonstrations.load(tmp_path / "folder").to_parquet(tmp_path / "data.parquet")
    assert_same(Demonstrations.from_parquet(tmp_path / "data.parquet"), full_set)
    assert pa.parquet.ParquetFile(tmp_path / "data.parquet").num_row_groups == 3


def test_pandas_reads_it(tmp_path: Path) -> None:
    import pandas as pd

    given = cartpole_v1().select_episodes([0, 1])
    given.to_parquet(tmp_path / "data.parquet")
    table = pd.read_parquet(tmp_path / "data.parquet")
    np.testing.assert_array_equal(np.stack(table["observation"].to_list()), given.observations)
    assert table["action"].tolist() == np.asarray(given.actions).tolist()
    assert table.groupby("episode")["step"].max().tolist() == [
        length - 1 for length in given.episode_lengths().tolist()
    ]


def test_a_file_of_another_program_is_read_with_names_and_spaces(tmp_path: Path) -> None:
    import pandas as pd

    table = pd.DataFrame({"obs": [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]], "a": [0, 1, 1], "eps": [7, 7, 2]})
    table.to_parquet(path := tmp_path / "theirs.parquet")
    own = {"observation_space": spaces.Box(-1, 1, (2,), np.float32), "action_space": spaces.Discrete(2)}
    names = {"observation": "obs", "action": "a", "episode": "eps"}
    found = Demonstrations.from_parquet(path, columns=names, **own)
    assert found.episode_ends.tolist() == [2, 3]
    assert found.observations.dtype == np.float32
    with pytest.raises(DemonstrationsFileError, match="does not say its observation_space"):
        Demonstrations.from_parquet(path, columns=names)
    with pytest.raises(DemonstrationsFileError, match="no column 'observation' but"):
        Demonstrations.from_parquet(path, **own)
    with pytest.raises(DemonstrationsFileError, match="action"):
        Demonstrations.from_parquet(path, columns=names, **{**own, "action_space": spaces.Discrete(1)})
    for order, steps in (([0, 2, 1], [0, 1, 0]), ([0, 1, 2], [1, 0, 0])):  # an episode in two parts; backwards
        table.iloc[order].assign(step=steps).to_parquet(path)
        with pytest.raises(DemonstrationsFileError, match="not in the order of time"):
            Demonstrations.from_parquet(path, columns=names, **own)
    path.write_bytes(b"no parquet")
    with pytest.raises(DemonstrationsFileError, match="no Parquet file"):
        Demonstrations.from_parquet(path)


@pytest.mark.parametrize("call", [Demonstrations.from_parquet, Demonstrations.from_lerobot])
def test_pyarrow_is_named_where_it_is_missing(call: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert_raises(ImportError, r'pip install "rlsmooth\[datasets\]"', call, "anything")


@pytest.mark.parametrize("names", [("observation", "action", "episode"), ("info",)])
def test_a_file_that_unfolds_without_end_is_refused(names: tuple[str, ...], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("rlsmooth.untrusted.FREE_BYTES", 2**16)  # in place of 128 MiB
    # All the same, which takes next to nothing in a file.
    values = pa.array(np.zeros(10**5)) if len(names) > 1 else pa.array(["x" * 600] * 4000)
    pa.parquet.write_table(pa.table(dict.fromkeys(names, values)), tmp_path / "data.parquet")
    message = "unfold from .* to 2,400,000 bytes.*by pyarrow"
    assert_raises(DemonstrationsFileError, message, Demonstrations.from_parquet, tmp_path / "data.parquet")


# ---- LeRobot's layout
VECTORS = {
    "vectors": (spaces.Box(-1, 1, (3,), np.float32), spaces.MultiDiscrete([3, 4])),
    "one": (spaces.Box(-1, 1, (1,), np.float64), spaces.Box(-2, 2, (1,), np.float32)),
    "numbers": (spaces.Discrete(7), spaces.Discrete(3, start=2)),
    "bits": (spaces.MultiBinary(4), spaces.MultiBinary(1)),
}


def vectors(kind: str) -> Demonstrations:
    """Episodes of 4 and 7 transitions; or of four, with all that demonstrations can hold."""
    if kind == "full":
        return dataclasses.replace(full(), infos=None)
    seen, acted = VECTORS[kind]
    return recorded(samples(seen, 11, 0), samples(acted, 11, 1), seen, acted, [4, 11], rewards=np.arange(11) / 3)


@pytest.mark.parametrize("kind", [*VECTORS, "full"])
@pytest.mark.parametrize("rows", [5, 100])
def test_lerobots_layout_gives_back_what_was_written(kind: str, rows: int, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("rlsmooth.data.lerobot.ROWS", rows)  # where the next file begins
    monkeypatch.setattr("rlsmooth.data.lerobot.FILES", 1)  # in a folder
    given = vectors(kind)
    given.to_lerobot(tmp_path / "set", fps=10)
    assert_same(Demonstrations.from_lerobot(tmp_path / "set"), given)
    files = sorted(str(path.relative_to(tmp_path / "set/data")) for path in tmp_path.glob("set/data/*/*"))
    assert files == [f"chunk-00{number}/file-000.parquet" for number in range(1 if rows == 100 else len(files))]
    assert (len(files) > 1) == (rows == 5)


def test_lerobots_files_say_what_its_documents_ask_for(tmp_path: Path, monkeypatch: Any) -> None:
    import pandas as pd

    monkeypatch.setattr("rlsmooth.data.lerobot.ROWS", 5)
    given = vectors("vectors")
    given.to_lerobot(tmp_path, fps=10, task="balance")
    info = json.loads((tmp_path / "meta/info.json").read_text())
    assert (info["codebase_version"], info["total_frames"], info["total_episodes"], info["fps"]) == ("v3.0", 11, 2, 10)
    assert info["features"]["observation.state"] == {"dtype": "float32", "shape": [3], "names": None}
    assert info["features"]["next.reward"]["shape"] == [1]
    assert pd.read_parquet(tmp_path / "meta/tasks.parquet").iloc[0].name == "balance"
    episodes = pd.read_parquet(tmp_path / "meta/episodes/chunk-000/file-000.parquet")
    for number, row in episodes.iterrows():
        place = info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        rows = pd.read_parquet(tmp_path / place).query(f"episode_index == {number}")
        assert rows["index"].tolist() == list(range(row["dataset_from_index"], row["dataset_to_index"]))
        np.testing.assert_allclose(rows["timestamp"], np.arange(row["length"]) / 10, rtol=1e-6)
        assert rows["next.done"].tolist() == [False] * (row["length"] - 1) + [True]
        assert list(row["tasks"]) == ["balance"]
    stats = json.loads((tmp_path / "meta/stats.json").read_text())["observation.state"]
    for name, found in stats.items():  # of several files
        seen = np.asarray(given.observations, np.float64)
        np.testing.assert_allclose(found, [11] if name == "count" else getattr(seen, name)(axis=0), rtol=1e-12)


def test_lerobot_reads_it(tmp_path: Path) -> None:
    reader = pytest.importorskip("lerobot.datasets.lerobot_dataset")  # it can't be installed beside our pins
    given = vectors("full")
    given.to_lerobot(tmp_path / "set", fps=10)
    found = reader.LeRobotDataset("local/set", root=tmp_path / "set")
    assert (found.num_episodes, found.num_frames) == (4, 12)
    np.testing.assert_array_equal([frame["observation.state"].numpy() for frame in found], given.observations)


def write_old(folder: Path, **changes: Any) -> None:
    """A set of version 2.1 as its documents describe it, a file an episode: 3 and 2 frames."""
    features = {
        "observation.state": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
        "action": {"dtype": "float32", "shape": [1], "names": None},
        **{name: {"dtype": "int64", "shape": [1], "names": None} for name in ("episode_index", "frame_index")},
        **changes.pop("features", {}),
    }
    known = {"codebase_version": "v2.1", "total_episodes": 2, "total_frames": 5, "fps": 10, "features": features}
    known["data_path"] = "/etc/{episode_chunk}/../{episode_index}"  # which is not followed
    for name in ("meta", "data/chunk-000"):
        (folder / name).mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps({**known, **changes}))
    for episode, length in enumerate((3, 2)):
        table = {
            "observation.state": pa.array([[float(episode), float(step)] for step in range(length)]),
            "action": pa.array(np.full(length, episode, features["action"]["dtype"])),
            "episode_index": pa.array([1 - episode] * length),  # the second file is of the first episode
            "frame_index": pa.array(range(length)),
        }
        pa.parquet.write_table(pa.table(table), folder / f"data/chunk-000/episode_{episode:06}.parquet")


def test_a_set_of_lerobots_is_read(tmp_path: Path) -> None:
    write_old(tmp_path / "theirs")
    found = Demonstrations.from_lerobot(tmp_path / "theirs")
    assert found.episode_ends.tolist() == [2, 5]
    assert np.asarray(found.observations).tolist() == [[1, 0], [1, 1], [0, 0], [0, 1], [0, 2]]
    assert found.actions.tolist() == [[1], [1], [0], [0], [0]]
    assert found.action_space == spaces.Box(-np.inf, np.inf, (1,))
    assert (found.next_observations, found.terminations, found.rewards) == (None, None, None)
    assert found.metadata == {"source": "lerobot", "name": "theirs", "fps": 10}


def test_many_small_files_of_a_set_are_counted_together(tmp_path: Path, monkeypatch: Any) -> None:
    write_old(tmp_path / "theirs")
    monkeypatch.setattr("rlsmooth.untrusted.MOST_FOLDED", 0)
    files = sorted((tmp_path / "theirs/data/chunk-000").iterdir())
    monkeypatch.setattr("rlsmooth.untrusted.FREE_BYTES", 600)
    for file in files:
        check_parquet(file)
    assert_raises(DemonstrationsFileError, "unfold from", Demonstrations.from_lerobot, tmp_path / "theirs")


IMAGE = {"observation.images.top": {"dtype": "video", "shape": [64, 64, 3], "names": None}}
WHOLE = {"action": {"dtype": "int64", "shape": [1], "names": None}}


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({"features": IMAGE}, {}, "observation.images.top: images or videos, which are not read. Choose: give obs"),
        ({"features": IMAGE}, {"observation": "observation.images.top"}, "images or videos, which are not read"),
        ({"features": IMAGE}, {"observation": "observation.stat"}, "has no observation='observation.stat': it has"),
        ({"features": WHOLE}, {}, "action of int64 \\[1\\], and does not say what can be there: give action_space"),
        (
            {"features": WHOLE},
            {"action_space": spaces.MultiDiscrete([2, 2])},
            "does not fit action_space=Multi",
        ),
        ({"features": WHOLE}, {"action_space": spaces.Discrete(1)}, "does not hold valid demonstrations.*actions"),
        ({"total_frames": 6}, {}, "has 5 of 6 total_frames: files are missing"),
        ({"total_episodes": 3}, {}, "has 2 of 3 total_episodes"),
        ({"codebase_version": "v1.6"}, {}, "layout 'v1.6', and 2.0 to 3.0 are read"),
        ({"features": {"next.reward": WHOLE["action"]}}, {}, r"lacks the columns \['next.reward'\]"),
        ({"features": []}, {}, "features must be an object|not a mapping"),
    ],
)
def test_a_set_of_lerobots_that_does_not_fit_is_refused(changes: Any, given: Any, message: str, tmp_path: Path) -> None:
    if changes.get("features") == []:
        write_old(tmp_path / "theirs")
        (tmp_path / "theirs/meta/info.json").write_text('{"codebase_version": "v3.0", "features": []}')
    else:
        write_old(tmp_path / "theirs", **changes)
    with pytest.raises(DemonstrationsFileError, match=message):
        Demonstrations.from_lerobot(tmp_path / "theirs", **given)


def test_a_state_beside_images_is_read_if_it_is_named_and_integers_with_their_space(tmp_path: Path) -> None:
    write_old(tmp_path / "theirs", features=IMAGE | WHOLE)
    chosen = {"observation": "observation.state", "action_space": spaces.Discrete(2)}
    assert Demonstrations.from_lerobot(tmp_path / "theirs", **chosen).actions.tolist() == [1, 1, 0, 0, 0]


def test_frames_that_are_missing_and_folders_that_are_not_empty_are_refused(tmp_path: Path) -> None:
    write_old(tmp_path / "theirs")
    file = tmp_path / "theirs/data/chunk-000/episode_000001.parquet"
    table = pa.parquet.read_table(file)
    pa.parquet.write_table(table.set_column(3, "frame_index", pa.array([0, 2])), file)
    message = "frames of episode 0 are not numbered"
    assert_raises(DemonstrationsFileError, message, Demonstrations.from_lerobot, tmp_path / "theirs")
    assert_raises(DemonstrationsFileError, "is no folder in LeRobot's", Demonstrations.from_lerobot, tmp_path)
    assert_raises(ValueError, "is not empty", vectors("one").to_lerobot, tmp_path / "theirs", fps=10)
    assert_raises(ValueError, "infos have no place", full().to_lerobot, tmp_path / "new", fps=10)
    for kind in ("dict", "pixels"):
        assert_raises(ValueError, "observation_space=.* is a vector", made(kind).to_lerobot, tmp_path / "new", fps=10)
    assert not (tmp_path / "new").exists()
