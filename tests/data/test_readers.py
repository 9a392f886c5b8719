"""Readers of data sets of imitation and Minari, and of SB3's buffers."""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.buffers import DictReplayBuffer, DictRolloutBuffer, ReplayBuffer, RolloutBuffer
from stable_baselines3.common.vec_env import DummyVecEnv

from rlsmooth.data import Demonstrations, DemonstrationsFileError, load_demonstrations
from rlsmooth.data.arrays import take
from support import Trajectory, assert_equal, assert_raises, recorded, samples

BOX = spaces.Box(-10, 10, (2,))
TWO = spaces.Discrete(2)


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
    given: dict[str, Any] = {"obs": np.concatenate([first.obs, second.obs])}
    given |= {"acts": np.concatenate([first.acts, second.acts]), "rews": np.concatenate([first.rews, second.rews])}
    given |= {"infos": np.array([{}] * 5, dtype=object), "terminal": np.array([True, False]), "indices": np.array([3])}
    np.savez(tmp_path / "set.npz", **given)
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
        ({"obs": [[[0.0, 1], [2]], [[0.0, 1]]]}, "trajectory 0: obs is missing, or its steps differ in shape"),
        ({"acts": [[0, None, 1], [0, 1]]}, "trajectory 0: acts has missing values"),
        ({"acts": [[0, 1, 1], None]}, "trajectory 1: acts is missing"),
    ],
)
def test_a_folder_whose_columns_are_wrong(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    table = {name: values for name, values in {**columns(two_trajectories()), **change}.items() if values is not None}
    assert_raises(DemonstrationsFileError, message, from_imitation, write_with_pyarrow(tmp_path / "set", table))


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
        DemonstrationsFileError, match=r"set' is no readable folder" + (".*sub-folders" if damage == "dict" else "")
    ):
        from_imitation(folder)


def test_lengths_that_do_not_fit() -> None:
    first, second = two_trajectories()
    with pytest.raises(ValueError, match=r"trajectory 1 has 2 actions, \[2\] observations"):
        from_imitation([first, dataclasses.replace(second, obs=second.obs[:-1])])
    assert_raises(ValueError, "1 rewards", from_imitation, [first, dataclasses.replace(second, rews=[1.0])])
    assert_raises(ValueError, "no trajectories", from_imitation, [])
    assert_raises(TypeError, "trajectory 0 is a int", from_imitation, [3])


def test_pickles_and_missing_files_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "old.pkl").write_bytes(b"\x80\x04N.")
    for name in ("old.pkl", "missing"):
        with pytest.raises(DemonstrationsFileError, match=rf"{name}' is neither.*Pickles are not read"):
            from_imitation(tmp_path / name)


def test_our_loader_points_to_the_right_reader(tmp_path: Path) -> None:
    folder = write_with_pyarrow(tmp_path / "set", columns(two_trajectories()))
    assert_raises(DemonstrationsFileError, r"use Demonstrations\.from_imitation", load_demonstrations, folder)


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


def write_minari(name: str, space: spaces.Space[Any], observe: Any, **options: Any) -> None:
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
    minari.create_dataset_from_buffers(name, episodes, observation_space=space, action_space=TWO, **options)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Minari's, about authors and links that the tiny set lacks
@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
def test_a_minari_set_by_id_and_by_folder(data_format: str, minari_folder: Path) -> None:
    write_minari("tiny/box-v0", BOX, lambda obs: obs, data_format=data_format)
    if data_format != "hdf5":  # a folder an episode; the file of metadata alone is of more bytes than there are steps
        known = json.loads((metadata := minari_folder / "tiny/box-v0/data/metadata.json").read_text())
        metadata.write_text(json.dumps(known | {"total_steps": metadata.stat().st_size + 1}))
    for source in ("tiny/box-v0", minari_folder / "tiny" / "box-v0", str(minari_folder / "tiny" / "box-v0" / "data")):
        read = Demonstrations.from_minari(source)
        check_two(read)
        assert read.metadata["name"] == "tiny/box-v0"
        assert read.observation_space == BOX


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize("source", ["minari", "datasets"])
def test_compressed_arrow_files_are_bounded(
    source: str, compression: str, minari_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa

    if source == "minari":
        write_minari("tiny/box-v0", BOX, lambda obs: obs, data_format="arrow")
        folder, read = minari_folder / "tiny/box-v0/data", Demonstrations.from_minari
        (folder / "0" / ".DS_Store").write_text("none of Minari's")
    else:
        folder, read = write_with_pyarrow(minari_folder / "set", columns(two_trajectories())), from_imitation
    read(folder)
    path = next(folder.rglob("*.arrow"))
    reader = pa.ipc.open_file(str(path)) if source == "minari" else pa.ipc.open_stream(str(path))
    table = reader.read_all()
    many = pa.concat_tables([table.slice(0, 1)] * 20_000).combine_chunks()
    open_writer = pa.ipc.new_file if source == "minari" else pa.ipc.new_stream
    with open_writer(str(path), many.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(many)
    monkeypatch.setattr("rlsmooth.untrusted.FREE_BYTES", 2**16)  # in place of 128 MiB
    monkeypatch.setattr("rlsmooth.untrusted.MOST_FOLDED", 4)
    assert_raises(DemonstrationsFileError, "unfold from", read, folder)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["main_data.hdf5", "metadata.json"])
def test_a_pointer_of_git_lfs_in_a_minari_folder_is_named(name: str, minari_folder: Path) -> None:
    write_minari("tiny/box-v0", BOX, lambda obs: obs)
    folder = minari_folder / "tiny" / "box-v0"
    (folder / "data" / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert_raises(DemonstrationsFileError, rf"{name}' is a pointer.*git lfs pull", Demonstrations.from_minari, folder)


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
    for source in ("tiny/none-v0", "not an id", minari_folder / "broken"):
        with pytest.raises(DemonstrationsFileError, match="neither a folder nor the id of a downloaded Minari"):
            Demonstrations.from_minari(source)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation_space": None, "env_spec": '{"entry_point": "os:system"}'}, "code of its choice"),
        ({"total_episodes": 10**12}, "total_episodes=1000000000000"),
        ("link", "episode_9 is kept in another file"),
        ("holes", "unfold from .* to 8,000,000,.* bytes.*by minari"),
    ],
)
def test_a_minari_set_chooses_no_code_place_or_memory(change: Any, message: str, minari_folder: Path) -> None:
    import h5py

    write_minari("tiny/box-v0", BOX, lambda obs: obs)
    data = minari_folder / "tiny" / "box-v0" / "data"
    if isinstance(change, dict):
        known = json.loads((data / "metadata.json").read_text())
        (data / "metadata.json").write_text(json.dumps({**known, **change}))
    else:
        with h5py.File(data / "main_data.hdf5", "a") as file:
            if change == "link":
                file["episode_9"] = h5py.ExternalLink("/etc/passwd", "/")
            else:
                file.create_dataset("episode_9/rewards", (10**9,), "f8", chunks=(10**6,))
    assert_raises(DemonstrationsFileError, message, Demonstrations.from_minari, "tiny/box-v0")


PIXELS = spaces.Box(0, 255, (8, 8, 3), np.uint8)
DICT_SPACE = spaces.Dict({"at": BOX, "number": spaces.Discrete(5)})


def whole_episodes(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> Demonstrations:
    """Episodes of 3 and 2: a terminal state, and one cut off without a flag."""
    whole = samples(observation_space, 7, 0)
    seen, after = (take(whole, np.array(places)) for places in ([0, 1, 2, 4, 5], [1, 2, 3, 5, 6]))
    flags = {"terminations": [False, False, True, False, False], "truncations": np.zeros(5, bool)}
    rewards = np.arange(5) / 3
    made = {"next_observations": after, "rewards": rewards, **flags}
    return recorded(seen, samples(action_space, 5, 1), observation_space, action_space, [3, 5], **made)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("seen", "acted"),
    [(BOX, spaces.Discrete(3, start=1)), (PIXELS, spaces.Box(-1, 1, (2,))), (DICT_SPACE, spaces.MultiDiscrete([2, 3]))],
)
def test_a_minari_set_that_was_written_is_read_by_minari_and_by_us(
    seen: spaces.Space[Any], acted: spaces.Space[Any], minari_folder: Path
) -> None:
    import minari

    given = whole_episodes(seen, acted)
    assert given.to_minari("ours/set-v0", author="me") == minari_folder / "ours" / "set-v0"
    theirs = list(minari.load_dataset("ours/set-v0").iterate_episodes())
    assert [len(episode.rewards) for episode in theirs] == [3, 2]
    assert [bool(episode.terminations[-1]) for episode in theirs] == [True, False]
    assert not any(episode.truncations.any() for episode in theirs)
    np.testing.assert_array_equal(theirs[1].actions, np.asarray(given.actions)[3:])
    last, final = take(given.next_observations, slice(4, 5)), take(theirs[1].observations, slice(2, 3))
    assert_equal(final, last, "the final observation")
    read = Demonstrations.from_minari("ours/set-v0")
    for name in [field.name for field in dataclasses.fields(given) if field.name != "metadata"]:
        assert_equal(getattr(read, name), getattr(given, name), name)
    with pytest.raises(ValueError, match="already: name another"):
        given.to_minari("ours/set-v0")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_minari_set_that_another_process_writes_meanwhile_is_kept(
    minari_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import minari

    create, others = minari.create_dataset_from_buffers, minari_folder / "ours/set-v0/data/metadata.json"

    def meanwhile(*args: Any, **named: Any) -> Any:
        others.parent.mkdir(parents=True)
        others.write_text("theirs")
        return create(*args, **named)

    monkeypatch.setattr(minari, "create_dataset_from_buffers", meanwhile)
    assert_raises(ValueError, "set-v0' already: name another", whole_episodes(BOX, TWO).to_minari, "ours/set-v0")
    assert others.read_text() == "theirs"
    assert [path.name for path in minari_folder.iterdir()] == ["ours"]


def test_what_a_minari_set_can_not_hold_is_refused(minari_folder: Path) -> None:
    given = whole_episodes(BOX, TWO)
    for change, message in (
        ({"rewards": None, "truncations": None}, "rewards, truncations: these demonstrations have none"),
        ({"weights": np.ones(5)}, "weights: a Minari data set has no place"),
        ({"next_observations": np.asarray(given.observations)}, "transition 0: its next observation is not"),
    ):
        changed = dataclasses.replace(given, **change)
        assert_raises(ValueError, message, changed.to_minari, "ours/set-v0")
    assert_raises(ValueError, "Malformed dataset ID", given.to_minari, "no id")
    assert list(minari_folder.iterdir()) == []  # what was begun is gone


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("nested", [False, True])
def test_minari_episodes_without_their_final_observation(nested: bool, minari_folder: Path) -> None:
    import h5py

    space: Any = spaces.Dict({"now": BOX}) if nested else BOX
    write_minari("tiny/short-v0", space, lambda obs: {"now": obs} if nested else obs)
    with h5py.File(minari_folder / "tiny" / "short-v0" / "data" / "main_data.hdf5", "a") as file:
        group, name = (file["episode_1/observations"], "now") if nested else (file["episode_1"], "observations")
        values = group[name][:-1]
        del group[name]
        group[name] = values
    message = r"tiny/short-v0': episode 1 has 2 actions and 2 observations.*Minari's form is 3.*from_arrays"
    assert_raises(DemonstrationsFileError, message, Demonstrations.from_minari, "tiny/short-v0")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_minari_space_that_can_not_be_held_is_named(minari_folder: Path) -> None:
    write_minari("tiny/tuple-v0", spaces.Tuple((BOX,)), lambda obs: (obs,))
    message = r"observation_space: Tuple\(.*is not supported: use Box"
    assert_raises(TypeError, message, Demonstrations.from_minari, "tiny/tuple-v0")


# ---- SB3's buffers, filled by hand and by SB3's own algorithms
NARROW = spaces.Box(0, 1000, (2,))
DICT = spaces.Dict({"box": NARROW, "step": spaces.Discrete(1000)})


def fill(buffer: Any, steps: int, episode: int, *, truncates: bool = False) -> None:
    """Environment e shows (e, time); its episodes end whenever time + e is a multiple of `episode`, time going on."""
    n_envs = buffer.n_envs
    for time in range(steps):
        now = np.array([[env, time] for env in range(n_envs)], np.float32)
        done = (time + 1 + np.arange(n_envs)) % episode == 0
        infos = [{"TimeLimit.truncated": bool(flag and truncates)} for flag in done]
        actions = (np.arange(n_envs) + time) % 2
        buffer.add(observe(buffer, now), observe(buffer, now + np.array([0, 1])), actions, now[:, 1], done, infos)


def observe(buffer: Any, now: Any) -> Any:
    return {"box": now, "step": now[:, 1].astype(int)} if isinstance(buffer.observation_space, spaces.Dict) else now


def rows_of(demonstrations: Demonstrations) -> list[list[float]]:
    observations = demonstrations.observations
    return np.asarray(observations["box"] if isinstance(observations, dict) else observations).tolist()  # type: ignore[no-any-return]


def test_a_replay_buffer_that_is_not_full() -> None:
    buffer = ReplayBuffer(40, NARROW, TWO, n_envs=2)
    fill(buffer, 5, episode=3)
    read = Demonstrations.from_replay_buffer(buffer)
    assert rows_of(read) == [[env, time] for env in range(2) for time in range(5)]
    assert np.asarray(read.next_observations).tolist() == [[env, time + 1] for env in range(2) for time in range(5)]
    # Environment 0 ends at time 2, environment 1 at times 1 and 4; what is left of environment 0 is cut off.
    assert read.episode_ends.tolist() == [3, 5, 7, 10]
    assert np.flatnonzero(read.terminations).tolist() == [2, 6, 9]  # type: ignore[arg-type]
    assert not np.any(read.truncations)  # type: ignore[arg-type]
    assert np.asarray(read.actions).tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    assert read.episode_returns().tolist() == [0 + 1 + 2, 3 + 4, 0 + 1, 2 + 3 + 4]


@pytest.mark.parametrize("steps", [10, 13, 20, 27])
def test_a_full_replay_buffer_is_put_in_time_order(steps: int) -> None:
    buffer = ReplayBuffer(20, NARROW, TWO, n_envs=2)  # 10 rows an environment
    fill(buffer, steps, episode=4, truncates=True)
    read = Demonstrations.from_replay_buffer(buffer)
    times = range(steps - 10, steps)
    assert rows_of(read) == [[env, time] for env in range(2) for time in times]
    ends = [(time + 1 + env) % 4 == 0 for env in range(2) for time in times]
    assert np.asarray(read.truncations).tolist() == ends
    assert not np.any(read.terminations)  # type: ignore[arg-type]
    expected = {row + 1 for row, end in enumerate(ends) if end} | {10, 20}
    assert read.episode_ends.tolist() == sorted(expected)


@pytest.mark.parametrize("capacity", [40, 12], ids=["not-full", "wrapped"])
@pytest.mark.parametrize("kind", [ReplayBuffer, DictReplayBuffer])
@pytest.mark.parametrize("first", [1, 5])
def test_a_second_learn_begins_another_episode(kind: Any, capacity: int, first: int) -> None:
    buffer = kind(2 * capacity, DICT if kind is DictReplayBuffer else NARROW, TWO, n_envs=2)
    fill(buffer, first, episode=100)  # no episode ends by itself; each call starts the environments anew, at time 0
    fill(buffer, 8, episode=100)
    fill(buffer, 2, episode=100)
    read = Demonstrations.from_replay_buffer(buffer)
    kept = min(first, capacity - 10)
    assert read.episode_lengths().tolist() == 2 * [kept, 8, 2]
    assert [row[1] for row in rows_of(read)] == 2 * [*range(first - kept, first), *range(8), *range(2)]
    assert not np.any(read.terminations)  # type: ignore[arg-type]
    assert not np.any(read.truncations)  # type: ignore[arg-type]


@pytest.mark.parametrize("saves_memory", [False, True])
def test_a_real_algorithms_second_learn(saves_memory: bool) -> None:
    options = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    agent = DQN(
        "MlpPolicy", "CartPole-v1", buffer_size=500, learning_starts=999, **(options if saves_memory else {}), seed=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # SB3 says that it marks the last transition
        for steps in (7, 8, 9):
            agent.learn(steps)
    read = Demonstrations.from_replay_buffer(agent.replay_buffer)  # type: ignore[arg-type]
    assert read.episode_ends.tolist() == [8, 16, 28]  # DQN steps in fours; CartPole does not fall so soon


def test_arrays_without_ends_break_where_a_transition_does_not_continue_the_one_before() -> None:
    arrays: dict[str, Any] = {"observation_space": NARROW, "action_space": TWO, "terminations": np.zeros(4, bool)}
    now = np.array([[0, 0.1], [1, 0.1], [0, 0.2], [1, 0.2]])  # float64, of which the next ones are rounded
    after = (now + np.array([1, 0])).astype(np.float32)
    assert Demonstrations.from_arrays(now, [0] * 4, next_observations=after, **arrays).episode_ends.tolist() == [2, 4]
    said = Demonstrations.from_arrays(now, [0] * 4, next_observations=after, episode_ends=[4], **arrays)
    assert said.episode_ends.tolist() == [4]


@pytest.mark.parametrize("steps", [7, 10, 14])
def test_a_memory_saving_buffer_leaves_out_its_overwritten_row(steps: int) -> None:
    buffer = ReplayBuffer(10, NARROW, TWO, optimize_memory_usage=True, handle_timeout_termination=False)
    fill(buffer, steps, episode=4)
    read = Demonstrations.from_replay_buffer(buffer)
    times = range(7) if steps == 7 else range(steps - 9, steps)
    assert rows_of(read) == [[0, time] for time in times]
    assert np.asarray(read.actions).tolist() == [time % 2 for time in times]  # each still beside its own observation
    assert read.next_observations is None
    assert read.terminations is None
    assert read.truncations is None
    assert read.episode_lengths().sum() == len(times)


def test_dict_and_discrete_observations() -> None:
    buffer = DictReplayBuffer(20, DICT, TWO, n_envs=2)
    fill(buffer, 13, episode=4)
    read = Demonstrations.from_replay_buffer(buffer)
    assert isinstance(read.observations, dict)
    assert rows_of(read) == [[env, time] for env in range(2) for time in range(3, 13)]
    assert np.asarray(read.observations["step"]).tolist() == [*range(3, 13), *range(3, 13)]


@pytest.mark.parametrize("space", [spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(2)])
def test_factored_actions(space: spaces.Space[Any]) -> None:
    buffer = ReplayBuffer(8, NARROW, space, n_envs=2)
    now = np.zeros((2, 2), np.float32)
    buffer.add(now, now, np.array([[0, 1], [1, 0]]), np.zeros(2), np.zeros(2), [{}, {}])
    assert np.asarray(Demonstrations.from_replay_buffer(buffer).actions).tolist() == [[0, 1], [1, 0]]


class Ramp(gym.Env[Any, Any]):
    """The reward is the first action, so that a buffer's actions can be checked against what the environment got."""

    observation_space = spaces.Box(-100, 100, (1,))
    action_space = spaces.Box(np.array([0, -5], np.float32), np.array([10, 1], np.float32))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.step_number = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.step_number += 1
        return np.full(1, self.step_number, np.float32), float(action[0]), False, self.step_number == 4, {}


def test_sacs_scaled_actions_are_put_back_between_the_bounds() -> None:
    agent = SAC("MlpPolicy", DummyVecEnv([Ramp, Ramp]), learning_starts=1000, buffer_size=100, seed=0, device="cpu")
    agent.learn(22)
    assert agent.replay_buffer is not None
    read = Demonstrations.from_replay_buffer(agent.replay_buffer)
    np.testing.assert_allclose(np.asarray(read.actions)[:, 0], np.asarray(read.rewards), rtol=1e-5)
    assert np.asarray(read.actions).max() > 2  # not the stored [-1, 1]
    assert read.episode_lengths().tolist() == [4, 4, 3, 4, 4, 3]
    assert np.flatnonzero(read.truncations).tolist() == [3, 7, 14, 18]  # type: ignore[arg-type]
    assert np.asarray(read.next_observations)[[3, 7]].tolist() == [[4], [4]]  # final, not that of the restart
    raw = ReplayBuffer(4, Ramp.observation_space, Ramp.action_space)
    raw.add(np.zeros(1), np.zeros(1), np.array([3.0, -4]), np.zeros(1), np.zeros(1), [{}])
    assert np.asarray(Demonstrations.from_replay_buffer(raw, actions_are_scaled=False).actions).tolist() == [[3, -4]]


def fill_rollout(buffer: Any, steps: int, episode: int) -> None:
    start = np.ones(buffer.n_envs)
    for time in range(steps):
        now = np.array([[env, time] for env in range(buffer.n_envs)], np.float32)
        actions = (np.arange(buffer.n_envs) + time) % 2
        zeros = torch.zeros(buffer.n_envs)
        buffer.add(observe(buffer, now), actions, now[:, 1], start, zeros, zeros)
        start = ((time + 1 + np.arange(buffer.n_envs)) % episode == 0).astype(float)


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("kind", [RolloutBuffer, DictRolloutBuffer])
def test_a_rollout_buffer_before_and_after_training_used_it(kind: Any, used: bool) -> None:
    buffer = kind(6, DICT if kind is DictRolloutBuffer else NARROW, TWO, n_envs=2, device="cpu")
    fill_rollout(buffer, 6, episode=4)
    if used:
        next(buffer.get(4))  # flattens some of the arrays in place
    read = Demonstrations.from_rollout_buffer(buffer)
    assert rows_of(read) == [[env, time] for env in range(2) for time in range(6)]
    assert np.asarray(read.actions).tolist() == [0, 1, 0, 1, 0, 1, 1, 0, 1, 0, 1, 0]
    assert np.asarray(read.rewards).tolist() == [*range(6), *range(6)]
    assert read.episode_ends.tolist() == [4, 6, 9, 12]
    assert read.next_observations is None
    assert read.terminations is None


def test_a_rollout_buffer_that_is_not_full() -> None:
    buffer = RolloutBuffer(6, NARROW, TWO, n_envs=2, device="cpu")
    fill_rollout(buffer, 3, episode=2)
    read = Demonstrations.from_rollout_buffer(buffer)
    assert rows_of(read) == [[env, time] for env in range(2) for time in range(3)]
    assert read.episode_ends.tolist() == [2, 3, 4, 6]


def test_ppos_box_actions_are_those_that_the_environment_got() -> None:
    agent = PPO("MlpPolicy", DummyVecEnv([Ramp, Ramp]), n_steps=8, batch_size=16, seed=0, device="cpu", gamma=0.0)
    agent.learn(16)
    read = Demonstrations.from_rollout_buffer(agent.rollout_buffer)
    stored = agent.rollout_buffer.actions.reshape(2, 8, 2)[:, :, 0].reshape(-1)
    assert (stored < 0).any()  # SB3 stores them unclipped
    np.testing.assert_allclose(np.asarray(read.actions)[:, 0], np.asarray(read.rewards), rtol=1e-5)
    assert read.episode_lengths().tolist() == [4, 4, 4, 4]


class Masked(gym.Env[Any, Any]):
    observation_space = spaces.Discrete(3)
    action_space = spaces.Discrete(3)

    def action_masks(self) -> Any:
        return np.arange(3) >= self.state

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = 0
        return self.state, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.state = (self.state + 1) % 3
        return self.state, 0.0, self.state == 0, False, {}


def test_maskable_buffers_bring_their_masks() -> None:
    contrib = pytest.importorskip("sb3_contrib")
    agent = contrib.MaskablePPO(
        "MlpPolicy", DummyVecEnv([Masked, Masked]), n_steps=8, batch_size=16, seed=0, device="cpu"
    )
    agent.learn(16)
    read = Demonstrations.from_rollout_buffer(agent.rollout_buffer)
    assert np.array_equal(read.action_masks, np.arange(3) >= np.asarray(read.observations)[:, None])  # type: ignore[arg-type]
    assert read.episode_lengths().tolist() == [3, 3, 2, 3, 3, 2]


def test_what_is_no_filled_buffer_is_refused() -> None:
    replay, rollout = ReplayBuffer(4, NARROW, TWO), RolloutBuffer(4, NARROW, TWO)
    assert_raises(ValueError, "the buffer is empty", Demonstrations.from_replay_buffer, replay)
    assert_raises(ValueError, "the buffer is empty", Demonstrations.from_rollout_buffer, rollout)
    with pytest.raises(TypeError, match="must be an SB3 ReplayBuffer, got RolloutBuffer"):
        Demonstrations.from_replay_buffer(rollout)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be an SB3 RolloutBuffer, got ReplayBuffer"):
        Demonstrations.from_rollout_buffer(replay)  # type: ignore[arg-type]
