"""Trajectories of the `imitation` library: folders as its `serialize.save` writes them, its older `.npz`, or objects.

A trajectory has one observation more than actions: the last one is what the episode ended in. The folders are Arrow
files, read here with pyarrow alone. Their `infos` are jsonpickle strings, which can run code when decoded, and are left
alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from gymnasium import spaces

from rlsmooth.checks import check_positive_int
from rlsmooth.data.arrays import AnyArray
from rlsmooth.data.demonstrations import Demonstrations
from rlsmooth.data.file_format import DemonstrationsFileError, file_path

__all__ = ["demonstrations_from_imitation"]


@runtime_checkable
class Trajectory(Protocol):
    """imitation's `Trajectory`: T actions and T + 1 observations."""

    obs: Any
    acts: Any
    terminal: bool


def demonstrations_from_imitation(
    source: str | Path | Iterable[Trajectory],
    *,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    time_limit: int | None = None,
) -> Demonstrations:
    """Read imitation's trajectories; see `Demonstrations.from_imitation`."""
    limit = None if time_limit is None else check_positive_int("time_limit", time_limit)
    if isinstance(source, (str, Path)):
        path = file_path(source)
        trajectories = _read_folder(path) if path.is_dir() else _read_npz(path)
        metadata = {"source": "imitation", "name": path.name}
    else:
        trajectories = [_fields_of(item, number) for number, item in enumerate(source)]
        metadata = {"source": "imitation"}
    if not trajectories:
        raise ValueError("there are no trajectories: demonstrations need at least one.")
    for number, (obs, acts, _, rews) in enumerate(trajectories):
        steps = len(acts)
        lengths = {len(part) for part in (obs.values() if isinstance(obs, dict) else [obs])}
        if steps == 0 or lengths != {steps + 1} or (rews is not None and len(rews) != steps):
            raise ValueError(
                f"trajectory {number} has {steps} actions, {sorted(lengths)} observations and "
                f"{'no' if rews is None else len(rews)} rewards: it needs T > 0 actions, T + 1 observations, T rewards."
            )
    ends = np.cumsum([len(acts) for _, acts, _, _ in trajectories])
    terminations, truncations = np.zeros(ends[-1], dtype=bool), np.zeros(ends[-1], dtype=bool)
    # `terminal=False` is a trajectory that was cut off, by a time limit or by whoever recorded it.
    terminal = np.array([bool(flag) for _, _, flag, _ in trajectories])
    if limit is not None:
        lengths_of = np.diff(ends, prepend=0)
        if lengths_of.max() > limit:
            raise ValueError(
                f"time_limit={limit}, but trajectory {int(lengths_of.argmax())} has {lengths_of.max()} steps."
            )
        # SB3's vectorised environments say `done` at a time limit too, and imitation stores that.
        terminal &= lengths_of < limit
    terminations[ends - 1], truncations[ends - 1] = terminal, ~terminal
    rewards = [rews for _, _, _, rews in trajectories if rews is not None]
    return Demonstrations(
        observations=_join([obs for obs, _, _, _ in trajectories], slice(None, -1)),
        actions=np.concatenate([acts for _, acts, _, _ in trajectories]),
        observation_space=observation_space,
        action_space=action_space,
        episode_ends=ends,
        next_observations=_join([obs for obs, _, _, _ in trajectories], slice(1, None)),
        rewards=np.concatenate(rewards) if len(rewards) == len(trajectories) else None,
        terminations=terminations,
        truncations=truncations,
        metadata=metadata,
    )


Fields = tuple[Any, AnyArray, bool, AnyArray | None]  # obs, acts, terminal, rews


def _join(observations: Sequence[Any], rows: slice) -> Any:
    if isinstance(observations[0], dict):
        return {key: np.concatenate([obs[key][rows] for obs in observations]) for key in observations[0]}
    return np.concatenate([obs[rows] for obs in observations])


def _fields_of(item: Trajectory, number: int) -> Fields:
    if not isinstance(item, Trajectory):
        raise TypeError(f"trajectory {number} is a {type(item).__name__}, which lacks obs, acts or terminal.")
    obs: Any = item.obs
    unwrap = getattr(obs, "unwrap", None)  # imitation's DictObs
    obs = unwrap() if callable(unwrap) else obs
    if isinstance(obs, dict):
        obs = {key: np.asarray(value) for key, value in obs.items()}
    else:
        obs = np.asarray(obs)
    rews = getattr(item, "rews", None)
    return obs, np.asarray(item.acts), bool(item.terminal), None if rews is None else np.asarray(rews)


def _read_npz(path: Path) -> list[Fields]:
    try:
        with np.load(path, allow_pickle=False) as data:
            # `infos` is a pickled member and is never touched: members are read one by one.
            obs, acts, terminal, cuts = (data[name] for name in ("obs", "acts", "terminal", "indices"))
            rews = data["rews"] if "rews" in data.files else None
    except (OSError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DemonstrationsFileError(
            f"{path} is neither a folder nor an .npz of imitation's trajectories ({error}); pickles are not read."
        ) from error
    parts = len(cuts) + 1
    return list(
        zip(
            np.split(obs, cuts + np.arange(len(cuts)) + 1),
            np.split(acts, cuts),
            terminal.tolist(),
            [None] * parts if rews is None else np.split(rews, cuts),
            strict=True,
        )
    )


def _read_folder(path: Path) -> list[Fields]:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise ImportError('imitation\'s folders need pyarrow: pip install "rlsmooth[datasets]".') from error

    try:
        state = json.loads((path / "state.json").read_text())
        names = [entry["filename"] for entry in state["_data_files"]]
        if any(Path(name).name != name for name in names):
            raise ValueError(f"state.json names a file outside the folder: {names}")
        tables = [_read_table(path / name) for name in names]
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        hint = ": name one of its sub-folders" if (path / "dataset_dict.json").exists() else ""
        raise DemonstrationsFileError(
            f"{path} is no readable folder of imitation's trajectories ({error}){hint}."
        ) from error
    trajectories: list[Fields] = []
    for table in tables:
        missing = [name for name in ("obs", "acts", "terminal") if name not in table.column_names]
        if missing:
            raise DemonstrationsFileError(f"{path} lacks the columns {missing}: it has {table.column_names}.")
        try:
            columns = [_column(table, name) for name in ("obs", "acts")]
            rews = _column(table, "rews") if "rews" in table.column_names else [None] * len(table)
            terminal = table["terminal"].to_pylist()
        except ValueError as error:
            raise DemonstrationsFileError(f"{path}: {error}") from error
        trajectories.extend(zip(*columns, terminal, rews, strict=True))
    return trajectories


def _read_table(path: Path) -> Any:
    """HuggingFace writes Arrow's stream format; older versions and other writers its file format."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        try:
            return pa.ipc.open_stream(file).read_all()
        except pa.ArrowInvalid:
            file.seek(0)
            return pa.ipc.open_file(file).read_all()


def _column(table: Any, name: str) -> list[AnyArray]:
    """One array a trajectory: the column's nested lists, of which only the first level may vary in length."""
    arrays: list[AnyArray] = []
    for chunk in table[name].chunks:
        for row in range(len(chunk)):
            arrays.append(_nested_to_numpy(chunk.slice(row, 1), name, len(arrays)))
    return arrays


def _nested_to_numpy(array: Any, name: str, number: int) -> AnyArray:
    import pyarrow as pa
    import pyarrow.compute as pc  # no part of `import pyarrow` by itself

    if isinstance(array, pa.ExtensionArray):  # as `datasets` marks arrays of a fixed number of axes
        array = array.storage
    shape: list[int] = []
    while pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        lengths = set(pc.list_value_length(array).to_pylist())
        if len(lengths) != 1 or None in lengths:
            raise ValueError(f"trajectory {number}: {name} is missing, or its rows differ in shape")
        shape.append(lengths.pop())
        array = array.flatten()
    if array.null_count:
        raise ValueError(f"trajectory {number}: {name} has missing values")
    return np.asarray(array.to_numpy(zero_copy_only=False)).reshape(shape)
