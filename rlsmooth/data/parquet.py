"""Demonstrations as Parquet: a row a transition, which pandas, `datasets`, Ray Data and Polars read.

    episode, step                      int64; steps count from 0 in each episode
    observation, next_observation      a number, or nested lists of fixed sizes; of a Dict space, `observation.<key>`
    action                             the same
    reward, terminated, truncated, weight, group, action_mask, action_probs       where the demonstrations have them
    info                               JSON text

The file's metadata hold the spaces under `rlsmooth`, as JSON. A file of another program is read with the spaces given,
and `columns` says what its columns are called. Needs pyarrow: `pip install "rlsmooth[datasets]"`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from rlsmooth.atomic import atomic_file
from rlsmooth.checks import check_writable_folder
from rlsmooth.data.arrays import AnyArray, Fields
from rlsmooth.data.files import DemonstrationsFileError, naming_file
from rlsmooth.data.readers import nested_to_numpy
from rlsmooth.data.space_json import space_from_json, space_to_json
from rlsmooth.untrusted import check_unfolded, open_regular, parse_json

COLUMNS = {
    "actions": "action",
    "rewards": "reward",
    "terminations": "terminated",
    "truncations": "truncated",
    "action_masks": "action_mask",
    "weights": "weight",
    "groups": "group",
    "action_probs": "action_probs",
}
"""The column of each field that has one array."""
OBSERVATIONS = {"observations": "observation", "next_observations": "next_observation"}
KEY = b"rlsmooth"
WAY = "read it by pyarrow, and use Demonstrations.from_arrays"
ROWS = 65_536
SIZES = {
    "INT_8": 1,
    "UINT_8": 1,
    "INT_16": 2,
    "UINT_16": 2,
    "BOOLEAN": 1,
    "INT32": 4,
    "FLOAT": 4,
    "INT64": 8,
    "DOUBLE": 8,
}
"""Bytes of a value, by Parquet's names."""


def check_pyarrow() -> None:
    """Raise ImportError, with what to install, if pyarrow is missing."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ImportError('Parquet files need pyarrow: pip install "rlsmooth[datasets]".') from error


def write_parquet(path: str | Path, fields: Fields) -> None:
    """Write one Parquet file, whole or not at all; memory-mapped demonstrations are read in parts.

    Args:
        path: of the file.
        fields: of `Demonstrations`.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: the folder can't be written to.
    """
    check_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path).expanduser()
    check_writable_folder("path", path.parent)
    header = {
        "observation_space": space_to_json(fields["observation_space"]),
        "action_space": space_to_json(fields["action_space"]),
        "metadata": dict(fields["metadata"]),
    }
    ends = np.asarray(fields["episode_ends"])
    writer = None
    with atomic_file(path) as file:
        for start, end in _parts(len(fields["actions"])):
            table = pa.table(_columns(fields, ends, start, end))
            if writer is None:
                known = {KEY: json.dumps(header).encode()}
                writer = pq.ParquetWriter(file, table.schema.with_metadata(known))
            writer.write_table(table)
        assert writer is not None  # there is no empty set of demonstrations
        writer.close()


def read_parquet(
    path: str | Path,
    observation_space: spaces.Space[Any] | None,
    action_space: spaces.Space[Any] | None,
    columns: Mapping[str, str] | None,
) -> dict[str, Any]:
    """The fields of `Demonstrations` in a Parquet file.

    Args:
        path: of the file.
        observation_space: of a file that does not say so.
        action_space: of a file that does not say so.
        columns: this page's names of columns, and those of the file: `{"observation": "obs"}`.

    Raises:
        DemonstrationsFileError: it is no Parquet file, lacks a column, or has other values than it should.
        ImportError: pyarrow is not installed.
        ValueError: a space is needed.
    """
    check_pyarrow()
    path = Path(path).expanduser()
    with naming_file(path):
        table = read_table(path)
        header = parse_json((table.schema.metadata or {}).get(KEY, b"{}"))
        header = header if isinstance(header, dict) else {}
        for name, given in (("observation_space", observation_space), ("action_space", action_space)):
            if given is None and name not in header:
                raise DemonstrationsFileError(f"{path} does not say its {name}: give {name}.")
        if observation_space is None:
            observation_space = space_from_json(header["observation_space"])
        if action_space is None:
            action_space = space_from_json(header["action_space"])
        metadata = header.get("metadata", {})
        return _fields(table, observation_space, action_space, dict(columns or {}), metadata, path)


def read_table(path: Path, columns: list[str] | None = None) -> Any:
    """An Arrow table of a Parquet file, or of some of its columns, unless it unfolds far beyond the file's size.

    Raises:
        DemonstrationsFileError: it is no Parquet file, or lacks a column.
        FileRefusedError: it is no regular file, or unfolds too much.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_regular(path) as opened:
        try:
            check_parquet(path)
            metadata = pq.read_metadata(opened)
            leaves = [metadata.schema.column(place) for place in range(metadata.num_columns)]
            texts = {leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"}
            file = pq.ParquetFile(opened, metadata=metadata, read_dictionary=texts)  # one text, however often
            names = file.schema_arrow.names
            missing = sorted(set(columns or ()) - set(names))
            if missing:
                raise DemonstrationsFileError(f"{path} lacks the columns {missing}: it has {names}.")
            within = {text.split(".")[0] for text in texts - set(names)}  # lists of texts: none is demonstrations'
            table = file.read([name for name in columns or names if name not in within])
            check_unfolded(sum(map(_length_of_texts, table.columns)), path.stat().st_size, WAY)
            return table
        except pa.ArrowException as error:
            raise DemonstrationsFileError(f"{path} is no Parquet file that can be read: {error}") from error


def check_parquet(*paths: Path) -> None:
    """Refuse Parquet files whose numbers unfold far beyond the files' size: repeated ones take next to nothing there.

    Raises:
        FileRefusedError: they do, or one is no regular file.
    """
    import pyarrow.parquet as pq

    unfolded = 0
    for path in paths:
        with open_regular(path) as opened:
            found: Any = pq.read_metadata(opened)
        kinds = [found.schema.column(place) for place in range(found.num_columns)]
        sizes = [SIZES.get(kind.converted_type) or SIZES.get(kind.physical_type, 16) for kind in kinds]
        sizes = [max(kind.length or 0, size) for kind, size in zip(kinds, sizes, strict=True)]
        groups = [found.row_group(number) for number in range(found.num_row_groups)]
        columns = [(group.column(place), size) for group in groups for place, size in enumerate(sizes)]
        unfolded += sum(max(column.num_values * size, column.total_uncompressed_size) for column, size in columns)
    check_unfolded(unfolded, sum(path.stat().st_size for path in paths), WAY)


def _length_of_texts(column: Any) -> int:
    """The bytes of a column's texts, each as often as it is there."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_dictionary(column.type):
        return 0
    lengths = [pc.binary_length(chunk.dictionary).take(chunk.indices) for chunk in column.chunks]
    return sum(pc.sum(one.cast("int64")).as_py() or 0 for one in lengths)


def _parts(count: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, ROWS):
        yield start, min(start + ROWS, count)


def _columns(fields: Fields, ends: AnyArray, start: int, end: int) -> dict[str, Any]:
    """The columns of some transitions."""
    places = np.arange(start, end)
    episode = np.searchsorted(ends, places, side="right")
    starts = np.concatenate(([0], ends[:-1]))
    found: dict[str, Any] = {"episode": episode, "step": places - starts[episode]}
    for name, column in OBSERVATIONS.items():
        value = fields.get(name)
        if isinstance(value, dict):
            found |= {f"{column}.{key}": nested(np.asarray(part[start:end])) for key, part in value.items()}
        elif value is not None:
            found[column] = nested(np.asarray(value[start:end]))
    for name, column in COLUMNS.items():
        if fields.get(name) is not None:
            found[column] = nested(np.asarray(fields[name][start:end]))
    if fields.get("infos") is not None:
        found["info"] = [json.dumps(dict(info)) for info in fields["infos"][start:end]]
    return found


def nested(values: AnyArray) -> Any:
    """`[N, a, b]` as an Arrow array of lists of fixed sizes."""
    import pyarrow as pa

    array = pa.array(np.ascontiguousarray(values).reshape(-1))
    for size in reversed(values.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


def _fields(
    table: Any,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    columns: dict[str, str],
    metadata: Any,
    path: Path,
) -> dict[str, Any]:
    names = set(table.column_names)

    def column(name: str) -> AnyArray | None:
        name = columns.get(name, name)
        if name not in names:
            return None
        parts = [nested_to_numpy(chunk, name, 0) for chunk in table[name].chunks if len(chunk)]
        return np.concatenate(parts) if parts else np.zeros(0)

    fields: dict[str, Any] = {"observation_space": observation_space, "action_space": action_space}
    fields["metadata"] = metadata if isinstance(metadata, dict) else {}
    for name, own in OBSERVATIONS.items():
        if isinstance(observation_space, spaces.Dict):
            value: Any = {key: column(f"{own}.{key}") for key in observation_space}
            fields[name] = None if any(part is None for part in value.values()) else value
        else:
            fields[name] = column(own)
    fields |= {name: column(own) for name, own in COLUMNS.items()}
    episode = column("episode")
    for name, value in (("observation", fields["observations"]), ("action", fields["actions"]), ("episode", episode)):
        if value is None:
            raise DemonstrationsFileError(
                f"{path} has no column {columns.get(name, name)!r} but {sorted(names)}: name it in columns."
            )
    assert episode is not None
    breaks = np.flatnonzero(episode[1:] != episode[:-1]) + 1
    step = column("step")
    back: Any = [] if step is None else np.setdiff1d(np.flatnonzero(step[1:] < step[:-1]) + 1, breaks)
    if len(breaks) >= len(np.unique(episode)) > 0 or len(back):
        raise DemonstrationsFileError(
            f"{path} has transitions that are not in the order of time, or two episodes of one number: number episodes "
            "differently, and sort by episode and step."
        )
    fields["episode_ends"] = np.append(breaks, len(episode))
    if columns.get("info", "info") in names:
        fields["infos"] = [parse_json(text.encode()) for text in table[columns.get("info", "info")].to_pylist()]
    return fields
