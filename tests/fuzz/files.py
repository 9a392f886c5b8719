"""Damaged and forged files of every format: the format's own error or the same reading, in little memory and time."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import json
import os
import random
import shutil
import sys
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from torch import nn

from rlsmooth.agents import (
    AIRL,
    BC,
    BCO,
    GAIL,
    DAgger,
    InverseDynamics,
    RewardNet,
    load_agent,
    load_checkpoint,
    load_reward_net,
    save_agent,
    save_reward_net,
)
from rlsmooth.agents.cloning.policy_building import encode_arguments
from rlsmooth.data import Demonstrations, DemonstrationsFileError, ObservationOnly, load_labelled
from rlsmooth.envs import IdentityEnv
from rlsmooth.scripts import ppo
from rlsmooth.scripts.arguments import resumed
from rlsmooth.scripts.figures.kinds import draw_reports, load_reports
from rlsmooth.scripts.hyperparameters import resolve_hyperparameters
from rlsmooth.scripts.metrics_file import read_metrics
from rlsmooth.scripts.run_folder import plain, read_settings, write_settings
from rlsmooth.training import (
    Classifier,
    GANTrainer,
    SafeFileError,
    latest_checkpoint,
    optimizer_to_tensors,
    save_checkpoint,
    set_rng_state,
)
from support import REPOSITORY, KillAt, KilledError, draw, product_files
from trainers import CUSTOM, TRAINERS, OfBCO, cartpole_ppo, expert

pytestmark = [pytest.mark.fuzz, pytest.mark.filterwarnings("ignore")]
COUNT = 17  # damaged and forged files a format, of which there are thirty
MOST_BYTES = 2**30
MOST_SECONDS = 20.0
COMMANDS = (ValueError, TypeError)  # become one line on stderr
OURS = {str(path) for path in product_files().values()}
BOX, TWO = spaces.Box(-1, 1, (3,)), spaces.Discrete(2)


class Format(NamedTuple):
    """One kind of file: how it is written, read, and refused.

    Attributes:
        write: into an empty folder; returns the file, or the folder of several.
        read: what is in it, as a fingerprint.
        error: of the format.
        is_checked: whether damage can't go unseen.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], Any]
    error: type[ValueError] | tuple[type[Exception], ...]
    is_checked: bool = True


def fingerprint(*parts: Any) -> str:
    """Of tensors, arrays and plain data."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, dict):
            found.update(fingerprint(*(value for pair in sorted(part.items()) for value in pair)).encode())
        elif isinstance(part, (list, tuple)):
            found.update(fingerprint(*part).encode())
        elif isinstance(part, (torch.Tensor, np.ndarray)):
            array = np.asarray(part)
            found.update(f"{array.dtype} {array.shape} {array.tobytes() if array.dtype != object else array}".encode())
        else:
            found.update(f"{part!r};".encode())
    return found.hexdigest()


def demonstrations() -> Demonstrations:
    """Two short episodes."""
    rng = np.random.default_rng(0)
    return Demonstrations.from_arrays(
        observations=rng.uniform(-1, 1, (12, 3)).astype(np.float32),
        actions=rng.integers(0, 2, 12),
        observation_space=BOX,
        action_space=TWO,
        episode_ends=np.array([5, 12]),
        next_observations=rng.uniform(-1, 1, (12, 3)).astype(np.float32),
        rewards=np.ones(12, np.float32),
    )


def write_bc(folder: Path) -> Path:
    agent = BC("MlpPolicy", (BOX, TWO), demonstrations(), seed=0, device="cpu", batch_size=4)
    agent.learn(total_batches=2)
    return agent.save(folder / "bc.zip")


def read_bc(path: Path) -> str:
    agent = BC.load(path, device="cpu")
    return fingerprint(agent.policy.state_dict(), encode_arguments(agent), agent._counters())


def write_algorithm(build: type[Any], **arguments: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        return save_agent(build("MlpPolicy", "CartPole-v1", seed=0, device="cpu", **arguments), folder / "agent.zip")

    return write


def read_algorithm(path: Path) -> str:
    agent = load_agent(path, device="cpu")
    return fingerprint(agent.policy.state_dict(), agent.gamma, agent.num_timesteps, agent.predict(np.zeros(4))[0])


def write_inverse(folder: Path) -> Path:
    model = InverseDynamics(
        BOX, TWO, seed=0, device="cpu", max_epochs=1, validation_fraction=0.0, early_stopping_patience=None
    )
    model.fit(demonstrations())
    return model.save(folder / "inverse.zip")


def write_checkpoint(folder: Path) -> Path:
    net = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    tensors, config = optimizer_to_tensors(optimizer)
    return save_checkpoint(
        folder, 3, config={"optimizer": config, "n": 3}, tensors={"net": net.state_dict(), "optimizer": tensors}
    )


def read_checkpoint(path: Path) -> str:
    found = latest_checkpoint(path.parent)
    assert found is not None
    return fingerprint(found.config, found.tensors)


def write_classifier(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    model = Classifier("mlp", max_epochs=2, seed=0, device="cpu")
    model.fit(rng.normal(size=(20, 3)).astype(np.float32), np.array(list("ab") * 10))
    return model.save(folder / "classifier.zip")


def read_classifier(path: Path) -> str:
    model = Classifier.load(path, device="cpu")
    return fingerprint(model.module_.state_dict(), model.classes_, model.history_, model.get_params()["batch_size"])


def networks() -> tuple[nn.Module, nn.Module]:
    return nn.Linear(2, 3), nn.Linear(3, 1)


def write_gan(folder: Path) -> Path:
    trainer = GANTrainer(*networks(), torch.randn(16, 3), latent_size=2, batch_size=4, seed=0, device="cpu")
    trainer.train(2)
    return trainer.save(folder / "gan.zip")


def read_gan(path: Path) -> str:
    trainer = GANTrainer.load(path, *networks(), device="cpu")
    return fingerprint(trainer.generator.state_dict(), trainer.history, trainer.step)


def of_demonstrations(read: Callable[[Path], Any]) -> Callable[[Path], str]:
    def found(path: Path) -> str:
        data = read(path)
        more = [data.actions, data.rewards] if isinstance(data, Demonstrations) else []
        return fingerprint(data.observations, data.next_observations, data.episode_ends, *more)

    return found


def save_folder(folder: Path) -> Path:
    demonstrations().save_folder(folder / "data")
    return folder / "data"


def save_npz(folder: Path) -> Path:
    demonstrations().save(folder / "data.npz")
    return folder / "data.npz"


def save_observations(folder: Path) -> Path:
    ObservationOnly.from_demonstrations(demonstrations()).save(folder / "data.npz")
    return folder / "data.npz"


def save_imitation(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    arrays = {"obs": rng.normal(size=(14, 3)), "acts": rng.integers(0, 2, 12), "terminal": np.array([True, False])}
    np.savez(folder / "data.npz", indices=np.array([5]), rews=np.ones(12), **arrays)
    return folder / "data.npz"


def save_lerobot(folder: Path) -> Path:
    demonstrations().to_lerobot(folder / "data", fps=10)
    return folder / "data"


def save_parquet(folder: Path) -> Path:
    demonstrations().to_parquet(folder / "data.parquet")
    return folder / "data.parquet"


def save_arrow(folder: Path) -> Path:
    """As `datasets` writes imitation's trajectories, but compressed."""
    import pyarrow as pa

    path = folder / "set"
    path.mkdir()
    rows = {"obs": [[[0.5] * 3] * 6, [[0.25] * 3] * 8], "acts": [[0, 1] * 2 + [0], [1] * 7], "terminal": [True, False]}
    table, options = pa.table(rows), pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(str(path / "data.arrow"), table.schema, options=options) as writer:
        writer.write_table(table)
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    return path


def save_labelled(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    np.savez(
        folder / "data.npz", features=rng.normal(size=(9, 2)), labels=np.arange(9) % 3, hierarchy='["0", "1", "2"]'
    )
    return folder / "data.npz"


def save_run(folder: Path) -> Path:
    write_settings(
        folder, "ppo", ppo.Args(), {"hyperparameters": {"n_timesteps": 100, "n_steps": 8, "normalize": True}}
    )
    return folder / "config.json"


def read_run(path: Path) -> str:
    args = resumed(ppo.Args(resume=path.parent), "ppo")
    values = read_settings(path.parent, "ppo", "hyperparameters")
    return fingerprint(plain(dataclasses.asdict(args)), repr(resolve_hyperparameters(values, PPO)))


def write_imitation(kind: type[Any]) -> Callable[[Path], Path]:
    return lambda folder: kind(expert(), cartpole_ppo(), seed=0).save(folder / "trainer.zip")


def read_imitation(kind: type[Any]) -> Callable[[Path], str]:
    def read(path: Path) -> str:
        trainer = kind.load(path, expert(), cartpole_ppo())
        return fingerprint(trainer.reward_net.state_dict(), trainer.gen_algo.policy.state_dict(), trainer.arguments)

    return read


def save_report(folder: Path) -> Path:
    original = REPOSITORY / "tests" / "frozen" / "reports" / "ppo"
    return Path(shutil.copytree(original, folder / "run", ignore=shutil.ignore_patterns("table.txt")))


def draw_report(path: Path) -> str:
    report = load_reports([path])
    figure = draw_reports(report)
    plt.close(figure)
    return fingerprint(repr(report))


# ---- runs that were cut off: what they are after they resumed, and after one step more where the total is the file's


def resume_bc(path: Path, stop: Any) -> Iterator[Any]:
    yield (agent := BC.resume(path, None, draw(), custom_objects=CUSTOM, device="cpu"))
    agent.learn(total_epochs=3, callback=stop)


def resume_bco(path: Path, stop: Any) -> Iterator[Any]:
    yield (agent := BCO.resume(path, "CartPole-v1", OfBCO.data, custom_objects=CUSTOM, device="cpu"))
    agent.learn(stop)


def resume_dagger(path: Path, stop: Any) -> Iterator[Any]:
    yield (agent := DAgger.resume(path, IdentityEnv(4), int, custom_objects=CUSTOM, device="cpu"))
    agent.learn(120, stop)


def resume_algorithm(path: Path, stop: Any) -> Iterator[Any]:
    run = load_checkpoint(path, make_vec_env("CartPole-v1", 2), device="cpu")
    yield run.model
    run.model.learn(run.remaining_timesteps, [run.callback, stop], reset_num_timesteps=False)


def resume_imitation(kind: type[Any]) -> Callable[[Path, Any], Iterator[Any]]:
    def resume(path: Path, stop: Any) -> Iterator[Any]:
        run = kind.resume(path, expert(), make_vec_env("CartPole-v1", 2), device="cpu")
        yield run.trainer
        run.trainer.learn(run.remaining_timesteps, [run.callback, stop], reset_num_timesteps=False)

    return resume


RESUME: dict[str, Callable[[Path, Any], Iterator[Any]]] = {
    "BC": resume_bc,
    "BCO": resume_bco,
    "DAgger": resume_dagger,
    "GAIL": resume_imitation(GAIL),
    "AIRL": resume_imitation(AIRL),
    "PPO": resume_algorithm,
    "DQN": resume_algorithm,
}


def of_run(name: str) -> Format:
    trainer = TRAINERS[name]

    def write(folder: Path) -> Path:
        with suppress(KilledError):
            trainer.start(folder / "run", trainer.at)
        return folder / "run"

    def read(path: Path) -> str:
        if name not in RESUME:
            return fingerprint(trainer.state(trainer.resume(path)))
        steps = RESUME[name](path, KillAt(0))
        trained = next(steps)
        with suppress(KilledError, StopIteration):
            next(steps)
        return fingerprint(trainer.state(trained))

    return Format(write, read, ValueError)


def save_metrics(folder: Path) -> Path:
    (folder / "metrics.csv").write_text("step,train/loss\n1,0.5\n2,0.25\n")
    return folder / "metrics.csv"


def read_labelled(path: Path) -> str:
    data = load_labelled(path)
    return fingerprint(data.features, data.labels, list(data.class_names))


RUNS = {f"{name} run": of_run(name) for name in TRAINERS}
FORMATS = {
    "bc": Format(write_bc, read_bc, SafeFileError),
    "ppo": Format(write_algorithm(PPO, n_steps=8, batch_size=8), read_algorithm, SafeFileError),
    "dqn": Format(write_algorithm(DQN, buffer_size=64), read_algorithm, SafeFileError),
    "inverse": Format(
        write_inverse,
        lambda path: fingerprint(InverseDynamics.load(path, device="cpu").bc.policy.state_dict()),
        SafeFileError,
    ),
    "reward": Format(
        lambda folder: save_reward_net(RewardNet(BOX, TWO, net_arch=[8]), folder / "net.zip"),
        lambda path: fingerprint(load_reward_net(path).state_dict()),
        SafeFileError,
    ),
    "checkpoint": Format(write_checkpoint, read_checkpoint, SafeFileError),
    "classifier": Format(write_classifier, read_classifier, ValueError),  # it may ask for the model, too
    "gan": Format(write_gan, read_gan, SafeFileError),
    "npz": Format(save_npz, of_demonstrations(Demonstrations.load), DemonstrationsFileError),
    "folder": Format(save_folder, of_demonstrations(Demonstrations.load), DemonstrationsFileError, is_checked=False),
    "observations": Format(save_observations, of_demonstrations(ObservationOnly.load), DemonstrationsFileError),
    "imitation": Format(
        save_imitation,
        of_demonstrations(lambda path: Demonstrations.from_imitation(path, observation_space=BOX, action_space=TWO)),
        ValueError,
        is_checked=False,
    ),
    "arrow": Format(
        save_arrow,
        of_demonstrations(lambda path: Demonstrations.from_imitation(path, observation_space=BOX, action_space=TWO)),
        ValueError,
        is_checked=False,
    ),
    "lerobot": Format(
        save_lerobot, of_demonstrations(Demonstrations.from_lerobot), DemonstrationsFileError, is_checked=False
    ),
    "parquet": Format(
        save_parquet, of_demonstrations(Demonstrations.from_parquet), DemonstrationsFileError, is_checked=False
    ),
    "labelled": Format(save_labelled, read_labelled, ValueError),
    "dagger": Format(
        lambda folder: DAgger("MlpPolicy", IdentityEnv(4), int, seed=0, device="cpu").save(folder / "agent.zip"),
        lambda path: fingerprint(DAgger.load(path, device="cpu").policy.state_dict()),
        SafeFileError,
    ),
    "bco": Format(
        lambda folder: BCO("MlpPolicy", IdentityEnv(4), None, seed=0, device="cpu").save(folder / "agent.zip"),
        lambda path: fingerprint(BCO.load(path, device="cpu").policy.state_dict()),
        SafeFileError,
    ),
    "gail": Format(write_imitation(GAIL), read_imitation(GAIL), SafeFileError),
    "airl": Format(write_imitation(AIRL), read_imitation(AIRL), SafeFileError),
    **RUNS,
    "settings": Format(save_run, read_run, COMMANDS, is_checked=False),
    "report": Format(save_report, draw_report, COMMANDS, is_checked=False),
    "metrics": Format(save_metrics, lambda path: fingerprint(read_metrics(path)), ValueError, is_checked=False),
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, str]]:
    """The good file of each format, and what is in it."""
    made: dict[str, tuple[Path, str]] = {}

    def find(name: str) -> tuple[Path, str]:
        if name not in made:
            path = FORMATS[name].write(tmp_path_factory.mktemp(name))
            made[name] = path, FORMATS[name].read(path)
        return made[name]

    return find


@pytest.fixture
def in_little_memory() -> Iterator[None]:
    """Fail if the process held more than `MOST_BYTES` beyond what it held before."""
    status = Path("/proc/self/status")
    if not status.exists():
        yield
        return
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = kilobytes(status, "VmRSS")
    yield
    assert (kilobytes(status, "VmHWM") - before) * 1024 < MOST_BYTES


def kilobytes(status: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))


def outcome(form: Format, path: Path, what: str) -> Any:
    """The fingerprint, or None if the format's own error came; anything else is a failure that says what was done."""
    start = time.monotonic()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = form.read(path)
        if any("Passed over a bad checkpoint" in str(each.message) for each in caught):
            found = None  # and the one before it was read
    except form.error as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        is_named = isinstance(error, (SafeFileError, DemonstrationsFileError))
        if not is_named and os.path.realpath(place.filename) not in OURS:
            raise AssertionError(f"{what}: {error!r}, which no line of ours raised, but {place}") from error
        found = None
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    assert time.monotonic() - start < MOST_SECONDS, what
    return found


# ---- damage


def damaged(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Some bytes flipped, cut off, zeroed, inserted, deleted or swapped."""
    kind = rng.choice(["flip", "cut", "zero", "insert", "delete", "append", "repeat"])
    place, size = rng.randrange(len(data)), rng.choice([1, 1, 4, 64, 512])
    end = min(len(data), place + size)
    if kind == "flip":
        new = data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]
    elif kind == "cut":
        new = data[:place]
    elif kind == "zero":
        new = data[:place] + bytes(end - place) + data[end:]
    elif kind in ("insert", "append"):
        where = place if kind == "insert" else len(data)
        new = data[:where] + rng.randbytes(size) + data[where:]
    elif kind == "delete":
        new = data[:place] + data[end:]
    else:
        new = data[:end] + data[place:]
    return new, f"{kind} {size} at {place}"


@pytest.mark.usefixtures("in_little_memory")
@pytest.mark.parametrize("name", FORMATS)
def test_damage_is_found(name: str, seed: int, originals: Any, tmp_path: Path) -> None:
    form, rng = FORMATS[name], random.Random(f"{seed} damage {name}")
    original, expected = originals(name)
    for number in range(COUNT):
        path = copied(original, tmp_path)
        victim = rng.choice(files_of(path))
        new, what = damaged(victim.read_bytes(), rng)
        victim.write_bytes(new)
        found = outcome(form, path, f"{name} {number}, {victim.name}: {what}")
        if form.is_checked:
            assert found in (None, expected), f"{name} {number}, {victim.name}: {what}: a silent change"


def files_of(path: Path) -> list[Path]:
    return sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]


def copied(original: Path, folder: Path) -> Path:
    path = folder / original.name
    if original.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(original, path)
    else:
        shutil.copyfile(original, path)
    return path


# ---- forgery: every hash is right

DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**63, -(2**70), 10**400, 0.5, -0.0, 1e308, float("inf"), float("nan")),
    *("", "yes", "x" * 5000, "../../x", "os.system", "float32", [], {}, [1], [[]], {"a": 1}, [2**28], [10**400], DEEP),
    *([0] * 100_000, {"__tensor__": "x"}, {"__tuple__": 3}, {"__dict__": [[1]]}, {"__custom__": "os.system"}),
    {"type": "Box", "shape": [2**28], "dtype": "float32", "low": 0, "high": 1},
    {"type": "Discrete", "n": 2**62, "start": 0, "dtype": "int64"},
    {"type": "MultiDiscrete", "nvec": [2**40] * 50, "start": [0] * 50, "dtype": "int64"},
    {"type": "Dict", "spaces": [[f"{n}", {"type": "Box", "shape": [2**27], "dtype": "uint8", "low": 0, "high": 1}]
                                for n in range(9)]},
)  # fmt: skip


def at(tree: Any, way: list[Any]) -> Any:
    """The value that a way of keys and places leads to."""
    for key in way:
        tree = tree[key]
    return tree


def random_way(tree: Any, rng: random.Random) -> list[Any]:
    """A way to some value of a JSON tree, which stops anywhere."""
    way: list[Any] = []
    while True:
        node = at(tree, way)
        inside = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        if not inside or (way and rng.random() < 0.15):
            return way
        way.append(rng.choice(inside))


def changed(tree: Any, rng: random.Random) -> tuple[Any, str]:
    """The tree with one value replaced, removed, added or of another size."""
    tree = copy.deepcopy(tree)
    *way, last = random_way(tree, rng)
    node = at(tree, way)
    kind = rng.choice(["replace"] * 4 + ["remove", "add", "multiply"])
    value = rng.choice(NASTY)
    if kind == "remove":
        del node[last]
    elif kind == "add" and isinstance(node, dict):
        node["added"] = value
    elif kind == "multiply" and isinstance(node[last], (int, float)):
        value = node[last] * rng.choice([-1, 1000, 10**9, 0.5])
        node[last] = value
    else:
        node[last] = value
    return tree, f"{kind} {'.'.join(map(str, (*way, last)))} {str(value)[:60]}"


def header_changed(payload: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A safetensors member or an `.npy` with another header."""
    if payload[:6] == b"\x93NUMPY":
        header = rng.choice(["('<f8', (10**400,))", "(2**40,)", "(-1,)", "(3, 4)", "()"])
        dtype = rng.choice(["<f8", "|O", "<U9999999", "<M8[ns]", "|b1", "x", "<i2", "<c16"])
        text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {header}, }}".encode()
        start = payload.index(b"\n") + 1 if b"\n" in payload else 128
        text += b" " * max(0, start - 10 - len(text) - 1) + b"\n"
        return payload[:8] + len(text).to_bytes(2, "little") + text + payload[start:], f"npy {dtype} {header}"
    length = int.from_bytes(payload[:8], "little")
    tree, what = changed(json.loads(payload[8 : 8 + length]) or {"x": {}}, rng)
    text = json.dumps(tree).encode()
    return len(text).to_bytes(8, "little") + text + payload[8 + length :], f"header {what}"


def forged(path: Path, rng: random.Random) -> str:
    """Change one thing in a file, and every hash with it; returns what."""
    if path.is_dir():
        victim = rng.choice(files_of(path))
        return f"{victim.name} {forged(victim, rng)}"
    if path.suffix == ".npy":
        new, what = header_changed(path.read_bytes(), rng)
        path.write_bytes(new)
        return what
    if path.suffix == ".json":
        tree, what = changed(json.loads(path.read_bytes()), rng)
        path.write_text(json.dumps(tree))
        return what
    if path.suffix in (".parquet", ".arrow"):  # without hashes
        new, what = damaged(path.read_bytes(), rng)
        path.write_bytes(new)
        return what
    if path.suffix == ".csv":
        cell = rng.choice(["nan", "inf", "1e999", "x", '"', "\0", "9" * 5000, ",", "\n"])
        path.write_text(path.read_text().replace(rng.choice(["step", "0.5", "2", "\n", ","]), cell, 1))
        return cell[:20]
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    jsons = [name for name in members if name.endswith(".json")]
    name = rng.choice(jsons if jsons and rng.random() < 0.8 else sorted(members))
    if name in jsons:
        tree, what = changed(json.loads(members[name]), rng)
        members[name] = json.dumps(tree).encode()
    else:
        members[name], what = header_changed(members[name], rng)
    repack(path, members, "members" not in what)
    return f"{name} {what}"


def repack(path: Path, members: dict[str, bytes], with_hashes: bool) -> None:
    head_name = next((name for name in ("config.json", "header.json") if name in members), None)
    if head_name is not None and with_hashes:
        head = json.loads(members[head_name])
        if isinstance(head, dict) and isinstance(head.get("members"), dict):
            head["members"] = {name: sha256(data) for name, data in members.items() if name != head_name}
        for entry in head.get("arrays", {}).values() if isinstance(head.get("arrays"), dict) else ():
            if isinstance(entry, dict) and isinstance(entry.get("member"), str) and entry["member"] in members:
                entry["sha256"] = sha256(members[entry["member"]])
        members[head_name] = json.dumps(head).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    path.write_bytes(buffer.getvalue())


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.usefixtures("in_little_memory")
@pytest.mark.parametrize("name", FORMATS)
def test_forgery_ends_in_the_formats_own_error(name: str, seed: int, originals: Any, tmp_path: Path) -> None:
    form, rng = FORMATS[name], random.Random(f"{seed} forgery {name}")
    original, _ = originals(name)
    for number in range(COUNT):
        path = copied(original, tmp_path)
        what = forged(path, rng)
        outcome(form, path, f"{name} {number}: {what}")


# ---- small files that ask for much


@pytest.mark.usefixtures("in_little_memory")
def test_deflated_members_do_not_unfold_without_end(originals: Any, tmp_path: Path) -> None:
    for name in ("npz", "observations", "labelled", "imitation"):
        path = copied(originals(name)[0], tmp_path)
        with zipfile.ZipFile(path) as archive:
            members = {each: archive.read(each) for each in archive.namelist()}
        victim = next(each for each in members if each.startswith(("observations", "features", "obs")))
        buffer = io.BytesIO()
        np.lib.format.write_array_header_2_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (2**26 // 3, 3)})
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for each, data in members.items():
                archive.writestr(each, buffer.getvalue() + bytes(2**28) if each == victim else data)
        assert path.stat().st_size < 2**20
        with pytest.raises(FORMATS[name].error, match="unfold"):
            FORMATS[name].read(path)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices are POSIX's")
@pytest.mark.parametrize(
    "name", [name for name in FORMATS if name not in ("folder", "checkpoint", "report", "arrow", "lerobot", *RUNS)]
)
def test_only_regular_files_are_opened(name: str, tmp_path: Path, originals: Any) -> None:
    form, original = FORMATS[name], originals(name)[0]
    path = tmp_path / original.name
    os.mkfifo(path)
    with pytest.raises(form.error, match="no regular file"):
        form.read(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(form.error, match=r"no regular file|is a link"):
        form.read(path)
    path.unlink()
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(form.error, match="git lfs pull"):
        form.read(path)
    with path.open("wb") as file:
        file.write(original.read_bytes())
        file.truncate(2**36)
    with pytest.raises(form.error, match="claims"):
        form.read(path)


def test_labels_far_apart_are_no_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", features=np.ones((2, 1)), labels=np.array([0, 20240131]))
    with pytest.raises(ValueError, match=r"labels reach 20240131.*class_names"):
        load_labelled(tmp_path / "data.npz")


def test_a_random_state_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="state"):
        set_rng_state({"python": torch.zeros(3), "numpy": torch.zeros(3), "torch": torch.zeros(3)})


@pytest.mark.usefixtures("in_little_memory")
@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("net_arch", {"pi": [1] * 100_000, "vf": [1]}),
        ("net_arch", [2**17, 2**17]),
        ("observation_space", NASTY[-1]),
        ("observation_space", NASTY[-4]),
        ("action_space", NASTY[-3]),
    ],
)
@pytest.mark.parametrize("name", ["bc", "ppo"])
def test_networks_and_spaces_are_no_larger_than_the_tensors_justify(
    name: str, place: str, value: Any, originals: Any, tmp_path: Path
) -> None:
    path = copied(originals(name)[0], tmp_path)
    with zipfile.ZipFile(path) as archive:
        members = {each: archive.read(each) for each in archive.namelist()}
    head = json.loads(members["config.json"])
    head["config"]["policy"]["arguments"][place] = value
    members["config.json"] = json.dumps(head).encode()
    repack(path, members, True)
    assert outcome(FORMATS[name], path, f"{place}={str(value)[:50]}") is None
