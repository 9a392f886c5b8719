"""Trajectories of imitation and data sets of Minari, written as those libraries write them."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from rlsmooth.data import Demonstrations, DemonstrationsFileError, load_demonstrations

BOX = spaces.Box(-10, 10, (2,))
TWO = spaces.Discrete(2)


@dataclasses.dataclass
class Trajectory:
    """imitation's, with its field names."""

    obs: Any
    acts: Any
    infos: Any
    terminal: bool


@dataclasses.dataclass
class TrajectoryWithRew(Trajectory):
    rews: Any


def two_trajectories() -> list[TrajectoryWithRew]:
    """3 and 2 steps; the observation is (trajectory, step)."""
    return [
        TrajectoryWithRew(
            obs=np.array([[number, step] for step in range(length + 1)], np.float32),
            acts=np.arange(length) % 2,
            infos=['{"py/object": "os.system"}'] * length,
            terminal=number == 0,
            rews=np.arange(length) + 0.5,
        )
        for number, length in enumerate([3, 2])
    ]


def check_two(demonstrations: Demonstrations) -> None:
    assert np.asarray(demonstrations.observations).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1]]
    assert np.asarray(demonstrations.next_observations).tolist() == [[0, 1], [0, 2], [0, 3], [1, 1], [1, 2]]
    assert np.asarray(demonstrations.actions).tolist() == [0, 1, 0, 0, 1]
    assert demonstrations.episode_returns().tolist() == [4.5, 2]
    assert np.asarray(demonstrations.terminations).tolist() == [False, False, True, False, False]
    assert np.asarray(demonstrations.truncations).tolist() == [False, False, False, False, True]
    assert demonstrations.episode_ends.tolist() == [3, 5]


def from_imitation(source: Any, space: spaces.Space[Any] = BOX, actions: spaces.Space[Any] = TWO) -> Demonstrations:
    return Demonstrations.from_imitation(source, observation_space=space, action_space=actions)


def columns(trajectories: list[TrajectoryWithRew]) -> dict[str, list[Any]]:
    """The table of imitation's `trajectories_to_dict`."""
    return {
        name: [getattr(part, name) for part in trajectories] for name in ("obs", "acts", "infos", "terminal", "rews")
    }


def write_with_pyarrow(folder: Path, table: dict[str, list[Any]], *, stream: bool = True, shards: int = 1) -> Path:
    """What `datasets.save_to_disk` writes, by hand."""
    pa = pytest.importorskip("pyarrow")
    folder.mkdir()
    plain = {name: [v.tolist() if isinstance(v, np.ndarray) else v for v in values] for name, values in table.items()}
    arrow = pa.table(plain)
    names = [f"data-{shard:05d}-of-{shards:05d}.arrow" for shard in range(shards)]
    for shard, name in enumerate(names):
        part = arrow.slice(shard) if shard == shards - 1 else arrow.slice(shard, 1)
        open_writer = pa.ipc.new_stream if stream else pa.ipc.new_file
        with open_writer(str(folder / name), arrow.schema) as writer:
            writer.write_table(part)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    return folder


def test_trajectory_objects() -> None:
    check_two(from_imitation(two_trajectories()))
    without = [Trajectory(part.obs, part.acts, None, part.terminal) for part in two_trajectories()]
    assert from_imitation(without).rewards is None


def test_an_episode_as_long_as_the_time_limit_was_cut_off() -> None:
    flagged = [dataclasses.replace(part, terminal=True) for part in two_trajectories()]
    spaces_of: dict[str, Any] = {"observation_space": BOX, "action_space": TWO}
    word = Demonstrations.from_imitation(flagged, **spaces_of)
    assert np.flatnonzero(word.terminations).tolist() == [2, 4]  # type: ignore[arg-type]
    cut = Demonstrations.from_imitation(flagged, time_limit=3, **spaces_of)
    assert np.flatnonzero(cut.truncations).tolist() == [2]  # type: ignore[arg-type]
    assert np.flatnonzero(cut.terminations).tolist() == [4]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="time_limit=2, but trajectory 0 has 3 steps"):
        Demonstrations.from_imitation(flagged, time_limit=2, **spaces_of)


def test_a_folder_written_by_huggingface_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns(two_trajectories())).save_to_disk(str(tmp_path / "set"), num_shards=2)
    check_two(from_imitation(tmp_path / "set"))


@pytest.mark.parametrize("stream", [True, False])
def test_a_folder_written_by_hand(stream: bool, tmp_path: Path) -> None:
    folder = write_with_pyarrow(tmp_path / "set", columns(two_trajectories()), stream=stream, shards=2)
    demonstrations = from_imitation(str(folder))
    check_two(demonstrations)
    assert demonstrations.infos is None  # they would be code


def test_images_and_vector_actions_in_a_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    images = [np.random.default_rng(n).integers(0, 256, (n + 3, 4, 5, 3)).astype(np.uint8) for n in range(2)]
    actions = [np.linspace(-1, 1, 2 * (n + 2)).reshape(-1, 2).astype(np.float32) for n in range(2)]
    table = {"obs": images, "acts": actions, "infos": [["{}"] * 2, ["{}"] * 3], "terminal": [True, True]}
    datasets.Dataset.from_dict(table).save_to_disk(str(tmp_path / "set"))
    read = from_imitation(tmp_path / "set", spaces.Box(0, 255, (4, 5, 3), np.uint8), spaces.Box(-1, 1, (2,)))
    assert np.array_equal(read.observations, np.concatenate([part[:-1] for part in images]))  # type: ignore[arg-type]
    assert np.array_equal(read.next_observations, np.concatenate([part[1:] for part in images]))  # type: ignore[arg-type]
    assert np.array_equal(read.actions, np.concatenate(actions))
    assert read.rewards is None


def test_an_older_npz_whose_infos_are_pickled(tmp_path: Path) -> None:
    first, second = two_trajectories()
    np.savez(
        tmp_path / "set.npz",
        obs=np.concatenate([first.obs, second.obs]),
        acts=np.concatenate([first.acts, second.acts]),
        rews=np.concatenate([first.rews, second.rews]),
        infos=np.array([{}] * 5, dtype=object),
        terminal=np.array([True, False]),
        indices=np.array([3]),
    )
    check_two(from_imitation(tmp_path / "set.npz"))


def test_dict_observations_of_trajectory_objects() -> None:
    class DictObs:
        def __init__(self, parts: dict[str, Any]) -> None:
            self.parts = parts

        def unwrap(self) -> dict[str, Any]:
            return self.parts

    parts = [
        Trajectory(DictObs({"a": t.obs, "b": np.arange(len(t.obs))}), t.acts, None, True) for t in two_trajectories()
    ]
    read = from_imitation(parts, spaces.Dict({"a": BOX, "b": spaces.Discrete(4)}))
    assert isinstance(read.observations, dict)
    assert read.observations["b"].tolist() == [0, 1, 2, 0, 1]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"terminal": None}, r"lacks the columns \['terminal'\]"),
        ({"obs": [[[0.0, 1], [2]], [[0.0, 1]]]}, "trajectory 0: obs is missing, or its rows differ in shape"),
        ({"acts": [[0, None, 1], [0, 1]]}, "trajectory 0: acts has missing values"),
        ({"acts": [[0, 1, 1], None]}, "trajectory 1: acts is missing"),
    ],
)
def test_a_folder_whose_columns_are_wrong(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    table = {name: values for name, values in {**columns(two_trajectories()), **change}.items() if values is not None}
    with pytest.raises(DemonstrationsFileError, match=message):
        from_imitation(write_with_pyarrow(tmp_path / "set", table))


@pytest.mark.parametrize("damage", ["no state", "bad state", "outside", "truncated", "no data", "dict"])
def test_a_folder_that_is_damaged(damage: str, tmp_path: Path) -> None:
    folder = write_with_pyarrow(tmp_path / "set", columns(two_trajectories()))
    data = next(folder.glob("*.arrow"))
    if damage == "no state":
        (folder / "state.json").unlink()
    elif damage == "bad state":
        (folder / "state.json").write_text("[1]")
    elif damage == "outside":
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": f"../set/{data.name}"}]}))
    elif damage == "truncated":
        data.write_bytes(data.read_bytes()[:200])
    elif damage == "no data":
        data.unlink()
    else:
        (folder / "state.json").unlink()
        (folder / "dataset_dict.json").write_text("{}")
    with pytest.raises(
        DemonstrationsFileError, match=r"set is no readable folder" + (".*sub-folders" if damage == "dict" else "")
    ):
        from_imitation(folder)


def test_lengths_that_do_not_fit() -> None:
    first, second = two_trajectories()
    with pytest.raises(ValueError, match=r"trajectory 1 has 2 actions, \[2\] observations"):
        from_imitation([first, dataclasses.replace(second, obs=second.obs[:-1])])
    with pytest.raises(ValueError, match="1 rewards"):
        from_imitation([first, dataclasses.replace(second, rews=[1.0])])
    with pytest.raises(ValueError, match="no trajectories"):
        from_imitation([])
    with pytest.raises(TypeError, match="trajectory 0 is a int"):
        from_imitation([3])


def test_pickles_and_missing_files_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "old.pkl").write_bytes(b"\x80\x04N.")
    for name in ("old.pkl", "missing"):
        with pytest.raises(DemonstrationsFileError, match=rf"{name} is neither.*pickles are not read"):
            from_imitation(tmp_path / name)


def test_our_loader_points_to_the_right_reader(tmp_path: Path) -> None:
    folder = write_with_pyarrow(tmp_path / "set", columns(two_trajectories()))
    with pytest.raises(DemonstrationsFileError, match=r"use Demonstrations\.from_imitation"):
        load_demonstrations(folder)


@pytest.mark.parametrize(("module", "call"), [("pyarrow", "folder"), ("minari", "minari")])
def test_a_missing_extra_is_named(module: str, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install "rlsmooth\['):
        from_imitation(tmp_path) if call == "folder" else Demonstrations.from_minari("x/y-v0")


@pytest.fixture
def minari_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


def write_minari(name: str, space: spaces.Space[Any], observe: Any) -> None:
    import minari
    from minari.data_collector import EpisodeBuffer

    episodes = [
        EpisodeBuffer(
            observations=observe(part.obs),
            actions=part.acts,
            rewards=part.rews,
            terminations=[False] * (len(part.acts) - 1) + [part.terminal],
            truncations=[False] * (len(part.acts) - 1) + [not part.terminal],
        )
        for part in two_trajectories()
    ]
    minari.create_dataset_from_buffers(name, episodes, observation_space=space, action_space=TWO)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Minari's, about authors and links that the tiny set lacks
def test_a_minari_set_by_id_and_by_folder(minari_folder: Path) -> None:
    write_minari("tiny/box-v0", BOX, lambda obs: obs)
    for source in ("tiny/box-v0", minari_folder / "tiny" / "box-v0", str(minari_folder / "tiny" / "box-v0" / "data")):
        read = Demonstrations.from_minari(source)
        check_two(read)
        assert read.metadata["name"] == "tiny/box-v0"
        assert read.observation_space == BOX


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_minari_set_of_dicts(minari_folder: Path) -> None:
    space = spaces.Dict({"now": BOX, "step": spaces.Discrete(9)})
    write_minari("tiny/dict-v0", space, lambda obs: {"now": obs, "step": obs[:, 1].astype(int)})
    read = Demonstrations.from_minari("tiny/dict-v0")
    assert isinstance(read.observations, dict)
    assert isinstance(read.next_observations, dict)
    assert read.observations["step"].tolist() == [0, 1, 2, 0, 1]  # type: ignore[union-attr]
    assert read.next_observations["step"].tolist() == [1, 2, 3, 1, 2]  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_minari_set_that_is_not_there(minari_folder: Path) -> None:
    (minari_folder / "broken").mkdir()
    (minari_folder / "broken" / "metadata.json").write_text("{}")
    for source in ("tiny/none-v0", "not an id", minari_folder / "broken"):
        with pytest.raises(DemonstrationsFileError, match="neither a folder nor the id of a downloaded Minari"):
            Demonstrations.from_minari(source)
