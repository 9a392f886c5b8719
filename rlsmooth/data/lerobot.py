"""Read and write data sets in LeRobot's layout, with pyarrow alone (extra `datasets`).

    meta/info.json                             counts, fps, and dtype and shape of each column ("feature")
    meta/tasks.parquet, meta/stats.json        what LeRobot needs besides
    meta/episodes/chunk-000/file-000.parquet   where each episode lies
    meta/rlsmooth.json                         the spaces and the metadata, which LeRobot has no place for
    data/chunk-000/file-000.parquet            a row a transition

Written is version 3.0; versions 2.0 and 2.1, with a file an episode, are read too. Read are all files below `data/`:
the paths in `info.json` are not followed.

    episode_index, frame_index, index, timestamp, task_index
    observation.state, action, next.reward, next.done
    next.terminated, next.truncated, next.observation.state, rlsmooth.<field>       where the demonstrations have them
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from rlsmooth.atomic import atomic_file, write_bytes_atomically
from rlsmooth.checks import check_positive_int, check_writable_folder
from rlsmooth.data.arrays import AnyArray, Fields
from rlsmooth.data.files import DemonstrationsFileError, file_path
from rlsmooth.data.parquet import check_parquet, check_pyarrow, nested, read_table
from rlsmooth.data.readers import nested_to_numpy
from rlsmooth.data.space_json import space_from_json, space_to_json
from rlsmooth.untrusted import Count, decode, parse_json, read_regular, refused

STATE = "observation.state"
FEATURES = {
    "observations": STATE,
    "actions": "action",
    "next_observations": f"next.{STATE}",
    "rewards": "next.reward",
    "terminations": "next.terminated",
    "truncations": "next.truncated",
    **{name: f"rlsmooth.{name}" for name in ("action_masks", "weights", "groups", "action_probs")},
}
"""The column of each field of demonstrations."""
OWN = ("timestamp", "frame_index", "episode_index", "index", "task_index")
FIRST = "chunk-000/file-000.parquet"
TEMPLATE = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
ROWS, FILES = 65_536, 1000
"""From how many transitions on another file begins, and how many files are in a folder."""


# ---- writing


def write_lerobot(path: str | Path, fields: Fields, fps: int, task: str | None) -> None:
    """Write a folder, `info.json` last, so that one that was cut off is not read; see `Demonstrations.to_lerobot`."""
    check_pyarrow()
    check_positive_int("fps", fps)
    columns = _writable_columns(fields)
    folder = check_writable_folder("path", path)
    if any(folder.iterdir()):
        raise ValueError(f"path={str(path)!r} is not empty: name another folder.")
    task = task or str(fields["metadata"].get("env_id") or "demonstrations")
    ends = np.asarray(fields["episode_ends"])
    episodes: dict[str, Any] = {"episode_index": np.arange(len(ends)), "tasks": [[task]] * len(ends)}
    episodes |= {"length": np.diff(ends, prepend=0), "dataset_from_index": np.concatenate(([0], ends[:-1]))}
    files = np.zeros(len(ends), np.int64)
    features: dict[str, Any] = {}
    stats: dict[str, _Stats] = {}
    for number, (first, last) in enumerate(_parts(ends)):
        files[first:last] = number
        table = _rows(columns, ends, first, last, fps)
        for name, values in table.items():
            features[name] = {"dtype": values.dtype.name, "shape": list(values.shape[1:]) or [1], "names": None}
            stats.setdefault(name, _Stats()).add(values)
        place = TEMPLATE.format(chunk_index=number // FILES, file_index=number % FILES)
        _write_table(folder / place, {name: nested(values) for name, values in table.items()})
    episodes |= {"dataset_to_index": ends, "data/chunk_index": files // FILES, "data/file_index": files % FILES}
    episodes |= dict.fromkeys(("meta/episodes/chunk_index", "meta/episodes/file_index"), np.zeros(len(ends), np.int64))
    _write_table(folder / "meta/episodes" / FIRST, episodes)
    _write_table(folder / "meta/tasks.parquet", {"task_index": np.zeros(1, np.int64), "task": [task]}, index="task")
    own = {name: space_to_json(fields[name]) for name in ("observation_space", "action_space")}
    _write_json(folder / "meta/rlsmooth.json", {**own, "metadata": dict(fields["metadata"])})
    _write_json(folder / "meta/stats.json", {name: found.to_json() for name, found in stats.items()})
    info = {
        "codebase_version": "v3.0",
        "robot_type": None,
        "total_episodes": len(ends),
        "total_frames": int(ends[-1]),
        "total_tasks": 1,
        "chunks_size": FILES,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {"train": f"0:{len(ends)}"},
        "data_path": TEMPLATE,
        "video_path": None,
        "features": features,
    }
    _write_json(folder / "meta/info.json", info)


def _writable_columns(fields: Fields) -> dict[str, Any]:
    if fields.get("infos") is not None:
        raise ValueError("infos have no place in LeRobot's layout: set them to None by dataclasses.replace.")
    for name in ("observation_space", "action_space"):
        space = fields[name]
        if isinstance(space, spaces.Dict) or len(space.shape or ()) > 1:
            raise ValueError(
                f"{name}={space!r:.200}: a state or action in LeRobot's layout is a vector, and images are videos, "
                "which are not written: flatten them, or use to_parquet."
            )
    return {column: fields[name] for name, column in FEATURES.items() if fields.get(name) is not None}


def _parts(ends: AnyArray) -> Iterator[tuple[int, int]]:
    """The first episode of each file, and the one after its last."""
    first = 0
    while first < len(ends):
        start = 0 if first == 0 else ends[first - 1]
        last = max(first + 1, int(np.searchsorted(ends, start + ROWS, side="right")))
        yield first, last
        first = last


def _rows(columns: Mapping[str, Any], ends: AnyArray, first: int, last: int, fps: int) -> dict[str, AnyArray]:
    """The columns of some episodes."""
    start, end = 0 if first == 0 else int(ends[first - 1]), int(ends[last - 1])
    index = np.arange(start, end)
    episode = np.searchsorted(ends, index, side="right")
    frame = index - np.concatenate(([0], ends))[episode]
    found = {name: np.asarray(values[start:end]) for name, values in columns.items()}
    # A vector of one number is kept as the number.
    found = {name: values[:, 0] if values.shape[1:] == (1,) else values for name, values in found.items()}
    found["next.done"] = index + 1 == ends[episode]
    own = ((frame / fps).astype(np.float32), frame, episode, index, np.zeros_like(index))
    return found | dict(zip(OWN, own, strict=True))


class _Stats:
    """Smallest, largest, mean and standard deviation of each number of a column, from its parts."""

    def __init__(self) -> None:
        self.count, self.low, self.high, self.mean, self.squares = 0, np.inf, -np.inf, 0.0, 0.0

    def add(self, values: AnyArray) -> None:
        """Take another part of the column, `[N, ...]`."""
        part = values.astype(np.float64).reshape(len(values), -1)
        self.low, self.high = np.minimum(self.low, part.min(axis=0)), np.maximum(self.high, part.max(axis=0))
        total, away = self.count + len(part), part.mean(axis=0) - self.mean
        self.squares = self.squares + part.var(axis=0) * len(part) + away**2 * (self.count * len(part) / total)
        self.mean, self.count = self.mean + away * (len(part) / total), total

    def to_json(self) -> dict[str, Any]:
        """As LeRobot writes them."""
        found = {"min": self.low, "max": self.high, "mean": self.mean, "std": np.sqrt(self.squares / self.count)}
        return {name: np.asarray(values).tolist() for name, values in found.items()} | {"count": [self.count]}


def _write_table(path: Path, columns: Mapping[str, Any], index: str | None = None) -> None:
    """Write a table; `index` names the column of texts that pandas makes the index of the rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(dict(columns))
    if index is not None:
        kinds = {"task_index": ("int64", "int64"), index: ("unicode", "object")}
        described = [
            {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
            for name, (kind, numpy) in kinds.items()
        ]
        words = {"index_columns": [index], "column_indexes": [], "columns": described, "pandas_version": "2.0.0"}
        table = table.replace_schema_metadata({"pandas": json.dumps(words)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        pq.write_table(table, file)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_bytes_atomically(path, json.dumps(value, indent=4).encode())


# ---- reading


def read_lerobot(
    path: str | Path,
    observation: str | None,
    observation_space: spaces.Space[Any] | None,
    action_space: spaces.Space[Any] | None,
) -> dict[str, Any]:
    """The fields of `Demonstrations` in a folder; see `Demonstrations.from_lerobot`."""
    check_pyarrow()
    folder = file_path(path)
    with refused(folder, DemonstrationsFileError, problem="is no folder in LeRobot's layout that can be read"):
        info = parse_json(read_regular(folder / "meta/info.json"))
        version = decode(str, info["codebase_version"], "codebase_version")
        if not version.startswith(("v2.", "v3.")):
            raise DemonstrationsFileError(
                f"{folder} is of LeRobot's layout {version!r:.20}, and 2.0 to 3.0 are read: convert it by lerobot."
            )
        kinds = {
            name: (decode(str, feature["dtype"], "dtype"), decode(tuple[int, ...], feature["shape"], "shape"))
            for name, feature in decode(dict[str, dict[str, Any]], info["features"], "features").items()
        }
        seen = _observation(kinds, observation, folder)
        own, metadata = _own_spaces(folder)
        if observation_space is None and seen == STATE:
            observation_space = own.get("observation_space")
        acted = own.get("action_space") if action_space is None else action_space
        found_spaces = {
            "observation_space": _space("observation_space", observation_space, kinds[seen], seen, folder),
            "action_space": _space("action_space", acted, kinds["action"], "action", folder),
        }
        columns = FEATURES | {"observations": seen, "next_observations": f"next.{seen}"}
        wanted = {name: column for name, column in columns.items() if column in kinds}
        read = _read_columns(folder, [*wanted.values(), "episode_index", "frame_index"])
        ends, order = _episodes(read, info, folder)
        fields = {name: read[column] if order is None else read[column][order] for name, column in wanted.items()}
    for name in ("observations", "actions", "next_observations"):
        if name in fields:
            space = found_spaces["action_space" if name == "actions" else "observation_space"]
            fields[name] = fields[name].reshape(len(fields[name]), *(space.shape or ()))
    for name in {"action_masks", "action_probs"} & fields.keys():  # one choice is kept as a number
        fields[name] = fields[name].reshape(len(fields[name]), -1)
    more = {"source": "lerobot", "name": folder.name, "fps": info.get("fps")} if metadata is None else metadata
    return {**fields, **found_spaces, "episode_ends": ends, "metadata": more}


def _observation(kinds: Mapping[str, Any], given: str | None, folder: Path) -> str:
    """The column to learn from."""
    seen = [name for name in kinds if name.startswith("observation")]
    images = [name for name in seen if kinds[name][0] in ("image", "video")]
    vectors = [name for name in seen if name not in images]
    if given in vectors or (given is None and seen == [STATE]):
        return given or STATE
    if given is not None and given not in images:
        raise DemonstrationsFileError(f"{folder} has no observation={given!r}: it has {', '.join(seen) or 'none'}.")
    named = f"observation={given!r}" if given else ", ".join(images or seen or ["no observation"])
    what = "images or videos, which are not read" if images else "not one state"
    fix = f"give observation={vectors[0]!r} to learn from it alone" if vectors else "learn from another set"
    raise DemonstrationsFileError(f"{folder} has {named}: {what}. Choose: {fix}.")


def _own_spaces(folder: Path) -> tuple[dict[str, spaces.Space[Any]], Any]:
    """The spaces and the metadata that `write_lerobot` has kept, where it wrote the folder."""
    path = folder / "meta/rlsmooth.json"
    if not path.exists():
        return {}, None
    own = parse_json(read_regular(path))
    metadata = decode(dict[str, Any], own["metadata"], "metadata")
    return {name: space_from_json(own[name]) for name in ("observation_space", "action_space")}, metadata


def _space(
    name: str, given: spaces.Space[Any] | None, kind: tuple[str, tuple[int, ...]], column: str, folder: Path
) -> spaces.Space[Any]:
    """The space that was given, if it fits, or a Box without bounds."""
    dtype, shape = kind
    if given is None:
        if dtype not in ("float32", "float64") or len(shape) != 1:
            raise DemonstrationsFileError(
                f"{folder} has {column} of {dtype} {list(shape)}, and does not say what can be there: give {name}."
            )
        return spaces.Box(-np.inf, np.inf, shape, np.dtype(dtype).type)
    if isinstance(given, spaces.Dict) or int(np.prod(given.shape or (1,))) != int(np.prod(shape)):
        raise DemonstrationsFileError(
            f"{folder} has {column} of shape {list(shape)}, which does not fit {name}={given!r:.200}."
        )
    return given


def _read_columns(folder: Path, names: list[str]) -> dict[str, AnyArray]:
    """Columns of all files below `data/`, each `[N, ...]`."""
    files = sorted((folder / "data").glob("chunk-*/*.parquet"))
    if not files:
        raise ValueError("there are no data/chunk-*/*.parquet")
    check_parquet(*files)
    parts: dict[str, list[AnyArray]] = {name: [] for name in names}
    for file in files:
        table = read_table(file, names)
        for name in names:
            parts[name] += [nested_to_numpy(chunk, name, 0) for chunk in table[name].chunks if len(chunk)]
    return {name: np.concatenate(found) for name, found in parts.items()}


def _episodes(read: Mapping[str, AnyArray], info: Any, folder: Path) -> tuple[AnyArray, AnyArray | None]:
    """The episodes' ends, and the order of the rows, or None if they are in order."""
    episode, frame = read["episode_index"].reshape(-1), read["frame_index"].reshape(-1)
    order = np.lexsort((frame, episode))
    numbers, lengths = np.unique(episode, return_counts=True)
    for name, count in (("total_frames", len(episode)), ("total_episodes", len(numbers))):
        if decode(Count, info[name], name) != count:
            raise DemonstrationsFileError(
                f"{folder} has {count:,} of {info[name]:,} {name}: files are missing, or info.json is of another set."
            )
    ends = np.cumsum(lengths)
    wrong = frame[order] != np.arange(len(frame)) - np.repeat(ends - lengths, lengths)
    if wrong.any():
        raise DemonstrationsFileError(
            f"{folder}: the frames of episode {episode[order][wrong.argmax()]} are not numbered from 0 on, one by one."
        )
    return ends, None if (order == np.arange(len(order))).all() else order
