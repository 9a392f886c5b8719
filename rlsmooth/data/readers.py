"""Read other programs' data as the fields of `Demonstrations`: imitation's trajectories and SB3's buffers.

A trajectory of the `imitation` library has one observation more than actions: the last one is what the episode ended
in. Read are folders as its `serialize.save` writes them (Arrow files, for which pyarrow is enough), the `.npz` of its
older versions, and objects. The folders' `infos` are jsonpickle strings, which can run code when decoded: they are left
alone. SB3's buffers hold `[time, environment, ...]`; here each environment's transitions are put in time order, end to
end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rlsmooth.checks import check_positive_int
from rlsmooth.data.arrays import AnyArray, breaks, join_observations, read_plain_npz, take
from rlsmooth.data.arrow import read_arrow
from rlsmooth.data.files import DemonstrationsFileError, file_path
from rlsmooth.untrusted import parse_json, read_regular, refused

if TYPE_CHECKING:
    from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer


@runtime_checkable
class Trajectory(Protocol):
    """imitation's `Trajectory`: T actions and T + 1 observations."""

    obs: Any
    acts: Any
    terminal: bool


Parts = tuple[Any, AnyArray, bool, AnyArray | None]  # obs, acts, terminal, rews


def read_imitation(source: str | Path | Iterable[Trajectory], time_limit: int | None) -> dict[str, Any]:
    """Read imitation's trajectories; see `Demonstrations.from_imitation`. The spaces are not among the fields."""
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
        # SB3's vectorised environments set `done` at a time limit too, and imitation stores that.
        terminal &= lengths_of < limit
    terminations[ends - 1], truncations[ends - 1] = terminal, ~terminal
    rewards = [rews for _, _, _, rews in trajectories if rews is not None]
    return {
        "observations": join_observations([take(obs, slice(None, -1)) for obs, _, _, _ in trajectories]),
        "actions": np.concatenate([acts for _, acts, _, _ in trajectories]),
        "episode_ends": ends,
        "next_observations": join_observations([take(obs, slice(1, None)) for obs, _, _, _ in trajectories]),
        "rewards": np.concatenate(rewards) if len(rewards) == len(trajectories) else None,
        "terminations": terminations,
        "truncations": truncations,
        "metadata": metadata,
    }


def read_replay_buffer(buffer: ReplayBuffer, *, actions_are_scaled: bool) -> dict[str, Any]:
    """Read an SB3 `ReplayBuffer` or `DictReplayBuffer`; see `Demonstrations.from_replay_buffer`."""
    from stable_baselines3.common.buffers import ReplayBuffer

    if not isinstance(buffer, ReplayBuffer):
        raise TypeError(f"buffer must be an SB3 ReplayBuffer, got {type(buffer).__name__}.")
    size = buffer.size()
    kept = np.arange(size)  # in time order
    if buffer.full:
        kept = (kept + buffer.pos) % buffer.buffer_size
        if buffer.optimize_memory_usage:
            # Observation `pos` was overwritten by the newest transition's next one: its action is another's.
            kept = kept[1:]
    if len(kept) == 0:
        raise ValueError("the buffer is empty: demonstrations need at least one transition.")

    def flatten(array: AnyArray) -> AnyArray:
        return _environment_major(array[kept])

    dones, timeouts = flatten(buffer.dones) > 0, flatten(buffer.timeouts) > 0
    space = buffer.action_space
    actions = _unflatten_actions(flatten(buffer.actions), space)
    if isinstance(space, spaces.Box) and actions_are_scaled:
        actions = _unscale(actions, space)
    seen = buffer.observation_space
    observations = _map(buffer.observations, flatten, seen)
    # The memory-saving form has no place for final observations: a restart overwrites them.
    following = None if buffer.optimize_memory_usage else _map(buffer.next_observations, flatten, seen)
    # Each `learn` starts the environments anew, and leaves no flag at the transition before.
    ended = dones if following is None else dones | breaks(observations, following, seen)
    return {
        "observations": observations,
        "actions": actions,
        "observation_space": seen,
        "action_space": space,
        "episode_ends": _episode_ends(ended, len(kept)),
        "next_observations": following,
        "rewards": flatten(buffer.rewards),
        # Without timeout handling, a time limit looks like a terminal state.
        "terminations": dones & ~timeouts if buffer.handle_timeout_termination else None,
        "truncations": dones & timeouts if buffer.handle_timeout_termination else None,
        "metadata": {"source": type(buffer).__name__},
    }


def read_rollout_buffer(buffer: RolloutBuffer) -> dict[str, Any]:
    """Read an SB3 `RolloutBuffer` or `DictRolloutBuffer`; see `Demonstrations.from_rollout_buffer`."""
    from stable_baselines3.common.buffers import RolloutBuffer

    if not isinstance(buffer, RolloutBuffer):
        raise TypeError(f"buffer must be an SB3 RolloutBuffer, got {type(buffer).__name__}.")
    count = buffer.pos
    if count == 0:
        raise ValueError("the buffer is empty: demonstrations need at least one transition.")

    def flatten(array: AnyArray) -> AnyArray:
        # `get` flattens some arrays in place, in our order; the flags and rewards keep their shape.
        return array if buffer.generator_ready else _environment_major(array[:count])

    starts = buffer.episode_starts[:count] > 0  # [time, environment]
    dones = np.zeros_like(starts)
    dones[:-1] = starts[1:]
    space = buffer.action_space
    actions = _unflatten_actions(flatten(buffer.actions), space)
    if isinstance(space, spaces.Box):
        actions = np.clip(actions, space.low, space.high)
    masks = getattr(buffer, "action_masks", None)  # sb3-contrib's maskable buffers
    if masks is not None:
        masks = flatten(masks).reshape(len(actions), -1) > 0
    return {
        "observations": _map(buffer.observations, flatten, buffer.observation_space),
        "actions": actions,
        "observation_space": buffer.observation_space,
        "action_space": space,
        "episode_ends": _episode_ends(_environment_major(dones), count),
        "rewards": _environment_major(buffer.rewards[:count]),
        "action_masks": masks,
        "metadata": {"source": type(buffer).__name__},
    }


def _fields_of(item: Trajectory, number: int) -> Parts:
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


def _read_npz(path: Path) -> list[Parts]:
    problem = "is neither a folder nor an .npz of imitation's trajectories"
    with refused(path, DemonstrationsFileError, "Pickles are not read.", problem):
        # `infos` is a pickled member and is never touched.
        data = read_plain_npz(path, ("obs", "acts", "terminal", "indices", "rews"))
        obs, acts, terminal, cuts = (data[name] for name in ("obs", "acts", "terminal", "indices"))
        rews = data.get("rews")
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


def _read_folder(path: Path) -> list[Parts]:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ImportError('imitation\'s folders need pyarrow: pip install "rlsmooth[datasets]".') from error

    fix = "Name one of its sub-folders." if (path / "dataset_dict.json").exists() else "Use another copy."
    with refused(path, DemonstrationsFileError, fix, "is no readable folder of imitation's trajectories"):
        state = parse_json(read_regular(path / "state.json"))
        names = [entry["filename"] for entry in state["_data_files"]]
        if any(Path(name).name != name for name in names):
            raise ValueError(f"state.json names a file outside the folder: {names}")
        tables = [read_arrow(path / name) for name in names]
        trajectories: list[Parts] = []
        for table in tables:
            missing = [name for name in ("obs", "acts", "terminal") if name not in table.column_names]
            if missing:
                raise DemonstrationsFileError(f"{path} lacks the columns {missing}: it has {table.column_names}.")
            columns = [_column(table, name) for name in ("obs", "acts")]
            rews = _column(table, "rews") if "rews" in table.column_names else [None] * len(table)
            trajectories.extend(zip(*columns, table["terminal"].to_pylist(), rews, strict=True))
    return trajectories


def _column(table: Any, name: str) -> list[AnyArray]:
    """One array a trajectory: the column's nested lists, of which only the first level may vary in length."""
    arrays: list[AnyArray] = []
    for chunk in table[name].chunks:
        for place in range(len(chunk)):
            arrays.append(nested_to_numpy(chunk.slice(place, 1), name, len(arrays))[0])
    return arrays


def nested_to_numpy(array: Any, name: str, number: int) -> AnyArray:
    """An Arrow array of N nested lists, of which each level has one length: `[N, ...]`; the rest is for messages."""
    import pyarrow as pa
    import pyarrow.compute as pc  # no part of `import pyarrow` by itself

    if isinstance(array, pa.ExtensionArray):  # as `datasets` marks arrays of a fixed number of axes
        array = array.storage
    shape = [len(array)]
    while pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        lengths = set(pc.list_value_length(array).to_pylist())
        if len(lengths) != 1 or None in lengths:
            raise ValueError(f"trajectory {number}: {name} is missing, or its steps differ in shape")
        shape.append(lengths.pop())
        array = array.flatten()
    if array.null_count:
        raise ValueError(f"trajectory {number}: {name} has missing values")
    return np.asarray(array.to_numpy(zero_copy_only=False)).reshape(shape)


def _environment_major(array: AnyArray) -> AnyArray:
    """`[time, environment, ...]` to `[environment * time, ...]`."""
    return array.swapaxes(0, 1).reshape(-1, *array.shape[2:])


def _episode_ends(dones: AnyArray, steps_per_env: int) -> npt.NDArray[np.int64]:
    """Episodes end where they are done, and with the last transition of each environment."""
    last = np.arange(steps_per_env, len(dones) + 1, steps_per_env)
    return np.union1d(np.flatnonzero(dones) + 1, last)


def _map(observations: Any, flatten: Callable[[AnyArray], AnyArray], space: spaces.Space[Any]) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _map(observations[key], flatten, part) for key, part in space.spaces.items()}
    flat = flatten(observations)
    return flat.reshape(len(flat), *(space.shape or ()))  # SB3 stores a Discrete observation as [1]


def _unflatten_actions(actions: AnyArray, space: spaces.Space[Any]) -> AnyArray:
    actions = actions.reshape(len(actions), *(space.shape or ()))
    # SB3's buffers may hold whole numbers as floats.
    return actions if isinstance(space, spaces.Box) else actions.astype(np.int64)


def _unscale(actions: AnyArray, space: spaces.Box) -> AnyArray:
    """SB3's off-policy algorithms store actions scaled to [-1, 1]; this is `BasePolicy.unscale_action`."""
    unscaled: AnyArray = space.low + 0.5 * (actions + 1.0) * (space.high - space.low)
    # Rounding in float32 can step over a bound by one unit in the last place.
    return np.clip(unscaled, space.low, space.high)
