"""Helpers that tests of several folders share. `tests/helpers` is on pytest's path, and nothing else of the tree is."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlsmooth.data import Demonstrations

RECOMPILE_LIMIT = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
"""What torch calls it; the older name is that of versions that can't compile every recipe."""
REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = ("rlsmooth", "agents", "envs", "scripts")
FLAT = spaces.Box(-np.inf, np.inf, (3,))


# ---- the same, bit for bit
def product_files() -> dict[str, Path]:
    """Map the dotted name of each product module to its file. The links inside rlsmooth/ are not followed."""
    files = {}
    for top in FOLDERS:
        for path in sorted((REPOSITORY / top).rglob("*.py")):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            if not (top == "rlsmooth" and parts[1] in FOLDERS):
                files[".".join(parts if top == "rlsmooth" else ("rlsmooth", *parts)).removesuffix(".__init__")] = path
    return files


def sources() -> dict[str, str]:
    """Map the path of each product module, from the repository's root, to its source."""
    return {path.relative_to(REPOSITORY).as_posix(): path.read_text("utf-8") for path in product_files().values()}


def assert_equal(one: Any, other: Any, where: str = "value", *, types: bool = False) -> None:
    """Compare nested values: tensors and arrays by dtype and bits, the rest by `==`, and by type where `types`."""
    if isinstance(one, Mapping):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}", types=types)
        return
    assert type(one) is type(other) or not (types or isinstance(one, (list, tuple))), where
    if isinstance(one, (list, tuple)):
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{where}[{index}]", types=types)
    elif isinstance(one, Tensor):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True, msg=where)  # dtype and device, too
    elif isinstance(one, np.ndarray):
        np.testing.assert_array_equal(one, other, where, strict=True)
    else:
        assert one == other or repr(one) == repr(other), where


def same_tensors(one: Mapping[str, Tensor] | Iterable[Tensor], other: Mapping[str, Tensor] | Iterable[Tensor]) -> bool:
    """Whether two state dicts, or two series of tensors, hold the same names and bits."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def same_parameters(one: Any, other: Any) -> bool:
    """Whether the policies of two agents have the same parameters and buffers."""
    return same_tensors(one.policy.state_dict(), other.policy.state_dict())


def assert_raises(
    error: type[BaseException], match: str | None, call: Callable[..., object], /, *args: Any, **named: Any
) -> None:
    """`call` raises `error`, and `match` is found in its message."""
    with pytest.raises(error, match=match):
        call(*args, **named)


def assert_refuses(
    error: type[BaseException], message: str, call: Callable[..., object], /, *args: Any, **named: Any
) -> None:
    """`call` raises `error`, and its message begins with `message`, letter by letter."""
    assert_raises(error, f"^{re.escape(message)}", call, *args, **named)


# ---- numbers
def value_and_gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    """A loss, and the gradient of its rows weighed 1, 2, 3, … where it has rows."""
    leaf = logits.detach().clone().requires_grad_(True)
    value = loss(leaf)
    upstream = torch.arange(1, value.numel() + 1, dtype=value.dtype, device=value.device).reshape(value.shape)
    (gradient,) = torch.autograd.grad(value, leaf, upstream)
    return value.detach(), gradient


class NoWaiting(TorchDispatchMode):
    """Raises where an operation's result, or its size, must come back to the host, which then waits for a GPU."""

    waiting = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "item", "masked_select", "unique", "_unique2")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        self.seen.append(name)
        places = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_bools = any(place is not None and place.dtype in (torch.bool, torch.uint8) for place in places)
        if by_bools or name.startswith(self.waiting):
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def calls_of_own_files() -> Iterator[list[tuple[str, str]]]:
    """Collect (file, qualified name) of each call of the block that enters a function of ours, in their order."""
    calls: list[tuple[str, str]] = []

    @functools.cache
    def own_file(name: str) -> str | None:
        path = Path(name).resolve()
        is_own = any(path.is_relative_to(REPOSITORY / folder) for folder in FOLDERS)
        return str(path.relative_to(REPOSITORY)) if is_own else None

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and (file := own_file(frame.f_code.co_filename)) is not None:
            calls.append((file, frame.f_code.co_qualname))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(before)


def mostly_slow(names: Iterable[str], *quick: str) -> list[Any]:
    """Names as parameters of a test, all but the quick ones left to the slow tests."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


# ---- data
def draw(rows: int = 40, actions: int = 3, seed: int = 0, **more: Any) -> Demonstrations:
    """Four episodes of noise."""
    rng = np.random.default_rng(seed)
    return Demonstrations.from_arrays(
        rng.normal(size=(rows, 3)).astype(np.float32),
        rng.integers(actions, size=rows),
        observation_space=FLAT,
        action_space=spaces.Discrete(actions),
        episode_ends=[rows // 4, rows // 2, 3 * rows // 4, rows],
        **more,
    )


def recorded(
    observations: Any, actions: Any, observation_space: Any, action_space: Any, ends: Any = None, **more: Any
) -> Demonstrations:
    """Demonstrations from arrays: one episode, unless `ends` says where several end."""
    more |= {"episode_ends": [len(actions)] if ends is None else ends, "action_space": action_space}
    return Demonstrations.from_arrays(observations, actions, observation_space=observation_space, **more)


def samples(space: spaces.Space[Any], count: int, seed: int | None = None) -> Any:
    """Samples of a space, stacked; of a Dict space part by part; the same ones each time where there is a seed."""
    if seed is not None:
        space.seed(seed)
    drawn = [space.sample() for _ in range(count)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([one[key] for one in drawn]) for key in space}
    return np.stack([np.asarray(one) for one in drawn])


def draw_masks(sizes: Sequence[int], rows: int, seed: int = 7) -> Tensor:
    """Masks of components of these sizes, each with something legal, and in one row of four with one choice alone."""
    draw, parts = torch.Generator().manual_seed(seed), []
    for size in sizes:
        mask = torch.rand(rows, size, generator=draw) < 0.5
        mask[::4] = False
        mask[torch.arange(rows), torch.randint(size, (rows,), generator=draw)] = True
        parts.append(mask)
    return torch.cat(parts, dim=1)


def tensor_samples(space: spaces.Space[Any], count: int) -> Any:
    """`samples` as tensors."""
    drawn = samples(space, count)
    return (
        {key: torch.as_tensor(part) for key, part in drawn.items()}
        if isinstance(drawn, dict)
        else torch.as_tensor(drawn)
    )


@dataclasses.dataclass
class Trajectory:
    """imitation's `Trajectory`, by its field names."""

    obs: Any
    acts: Any
    infos: Any
    terminal: bool


# ---- logs
class Lines(KVWriter):
    """Keeps every log line."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, Any]]] = []

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        self.lines.append((step, dict(key_values)))

    def column(self, name: str) -> list[tuple[int, Any]]:
        return [(step, line[name]) for step, line in self.lines if name in line]


def listen(agent: Any) -> Lines:
    """Give an agent a logger that keeps its lines."""
    lines = Lines()
    agent.set_logger(Logger(None, [lines]))
    return lines


def read_events(folder: Path) -> Any:
    """TensorBoard's own reading of a folder or file of events, every point of it."""
    everything = {"images": 0, "histograms": 0, "scalars": 0}
    return EventAccumulator(str(folder), size_guidance=everything).Reload()


# ---- runs that end too early
class KilledError(Exception):
    """Ends a run in the middle of a rollout, as a kill does: nothing of it is used again."""


class KillAt(BaseCallback):
    """Raises an error once an algorithm has taken `step` steps."""

    def __init__(self, step: int, error: type[BaseException] = KilledError) -> None:
        super().__init__()
        self.step, self.error = step, error

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.step:
            raise self.error
        return True


class Counter(BaseCallback):
    """Counts what a callback is told; stops after `most` steps."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.told: list[str] = []

    def _on_training_start(self) -> None:
        self.told.append(f"total {self.locals['total_timesteps']}")

    def _on_rollout_start(self) -> None:
        self.told.append("rollout")

    def _on_step(self) -> bool:
        return self.n_calls < self.most

    def _on_rollout_end(self) -> None:
        self.told.append(f"{self.num_timesteps}")

    def _on_training_end(self) -> None:
        self.told.append("end")


class Hidden(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps something where Python can't see it, so that the environment's state can't be kept."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.hidden = torch.zeros(1)


class InTwoParts(gym.ObservationWrapper[Any, Any, Any]):
    """CartPole's observation as a Dict of two parts."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        half = spaces.Box(-np.inf, np.inf, (2,))
        self.observation_space = spaces.Dict({"one": half, "two": half})

    def observation(self, observation: Any) -> Any:
        return {"one": observation[:2], "two": observation[2:]}


# ---- files that were tampered with
class Bomb:
    """Unpickling it makes a file: the proof that code ran."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def put(tree: Any, keys: Sequence[str], value: Any) -> None:
    """Set one value of nested dicts."""
    for key in keys[:-1]:
        tree = tree[key]
    tree[keys[-1]] = value


def forge(path: Path, change: Callable[[dict[str, Any], dict[str, bytes]], object]) -> Path:
    """A forger's copy of a safe file: config.json and other members changed, and all hashes right."""

    def rewrite(members: dict[str, bytes]) -> None:
        rest = dict(members)
        head = json.loads(rest.pop("config.json"))
        change(head, rest)
        head["members"] = {name: hashlib.sha256(payload).hexdigest() for name, payload in rest.items()}
        members.clear()
        members |= {"config.json": json.dumps(head).encode(), **rest}

    return repack(path, rewrite)


def repack(path: Path, change: Callable[[dict[str, bytes]], object], *, compression: int = zipfile.ZIP_STORED) -> Path:
    """Write the archive again by Python's own zipfile, with changed members."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, payload in members.items():
            archive.writestr(name, payload)
    return path
