from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from torch import nn

from rlsmooth.training import (
    SafeFileError,
    checkpoint_steps,
    latest_checkpoint,
    load_optimizer,
    optimizer_to_tensors,
    save_checkpoint,
    tree_from_json,
    tree_to_json,
)
from support import assert_equal, assert_raises


def save(folder: Path, step: int, *, keep: int = 2) -> Path:
    return save_checkpoint(
        folder, step, config={"step": step}, tensors={"net": {"w": torch.full((50,), step)}}, keep=keep
    )


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


# ---- folders
def test_the_latest_comes_back_and_the_last_two_stay(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    for step in (0, 9, 10, 100):  # in the order of numbers, not of letters
        assert save(folder, step) == folder / f"checkpoint_{step}.zip"
    latest = latest_checkpoint(folder)
    assert (latest.step, latest.config, latest.path) == (100, {"step": 100}, folder / "checkpoint_100.zip")
    assert latest.tensors["net"]["w"].tolist() == [100] * 50
    assert "torch" in latest.versions
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint_10.zip", "checkpoint_100.zip"]


def test_keep_says_how_many_stay_and_the_same_step_replaces_its_file(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is latest_checkpoint(tmp_path / "none") is None
    assert checkpoint_steps(tmp_path / "none") == []
    for keep in (1, 3):
        folder = tmp_path / f"{keep}"
        for step in range(5):
            save(folder, step, keep=keep)
        assert checkpoint_steps(folder) == list(range(5))[-keep:]
        save_checkpoint(folder, 4, config={"again": True}, tensors={})
        assert latest_checkpoint(folder).config == {"again": True}


def test_other_files_and_half_written_ones_are_passed_over(tmp_path: Path) -> None:
    names = ".checkpoint_9.zip.abc.tmp checkpoint_8.zip.tmp checkpoint_x.zip checkpoint_07.zip notes.txt"
    for name in names.split():
        (tmp_path / name).write_bytes(b"PK half")
    assert latest_checkpoint(tmp_path) is None
    save(tmp_path, 5)
    assert checkpoint_steps(tmp_path) == [5]


def test_damaged_ones_are_passed_over_with_a_warning_that_names_them(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, keep=3)
    truncate(tmp_path / "checkpoint_3.zip")
    (tmp_path / "checkpoint_2.zip").write_bytes(b"")
    with pytest.warns(RuntimeWarning) as caught:
        latest = latest_checkpoint(tmp_path)
    assert latest.step == 1
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2
    assert "checkpoint_3.zip" in messages[0]
    assert "checkpoint_2.zip" in messages[1]


def test_all_damaged_is_an_error_and_not_a_new_start(tmp_path: Path) -> None:
    for step in (1, 2):
        truncate(save(tmp_path, step))
    with pytest.raises(SafeFileError, match=r"No checkpoint in .*checkpoint_2\.zip.*checkpoint_1\.zip"):
        latest_checkpoint(tmp_path)


def test_a_renamed_checkpoint_is_not_believed(tmp_path: Path) -> None:
    save(tmp_path, 4).rename(tmp_path / "checkpoint_400.zip")
    assert_raises(SafeFileError, "of another step", latest_checkpoint, tmp_path)


def test_going_back_behind_a_damaged_one_does_not_lose_the_good_ones(tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    truncate(tmp_path / "checkpoint_20.zip")
    save(tmp_path, 11)  # the run resumed at 10
    assert checkpoint_steps(tmp_path) == [10, 11, 20]
    with pytest.warns(RuntimeWarning, match=r"checkpoint_20\.zip"):
        latest = latest_checkpoint(tmp_path)
    assert latest.step == 11
    save(tmp_path, 20)  # written again, and good
    assert checkpoint_steps(tmp_path) == [11, 20]


def test_a_failed_save_deletes_nothing(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    assert_raises(TypeError, "config", save_checkpoint, tmp_path, 3, config={"x": object()}, tensors={})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_1.zip", "checkpoint_2.zip"]


def test_bad_arguments(tmp_path: Path) -> None:
    assert_raises(ValueError, "step=-1", save, tmp_path, -1)
    assert_raises(TypeError, "step must be a whole number", save, tmp_path, 1.5)
    assert_raises(ValueError, "keep=0", save, tmp_path, 1, keep=0)
    assert_raises(TypeError, "keep must be a whole number", save, tmp_path, 1, keep=None)
    (tmp_path / "file").touch()
    assert_raises(ValueError, r"folder=.*file", save, tmp_path / "file", 1)


KILLER = """
import json, os, signal, sys, time, warnings
import torch
from rlsmooth.training import latest_checkpoint, save_checkpoint

folder = sys.argv[1]
warnings.simplefilter("error")  # not even one file to pass over
step = 0
for attempt in range(30):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        while True:
            tensors = {"net": {"w": torch.full((200_000,), float(step))}}
            save_checkpoint(folder, step, config={"step": step}, tensors=tensors)
            os.write(writer, f"{step} ".encode())
            step += 1
    os.close(writer)
    said = os.read(reader, 100)
    time.sleep(0.0011 * attempt)  # so that the kill comes at another moment of a save
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    said = [int(word) for word in (said + os.read(reader, 100_000)).split()][-1]
    os.close(reader)
    latest = latest_checkpoint(folder)
    print(json.dumps([said, latest.step, latest.tensors["net"]["w"].unique().tolist()]))
    step = latest.step + 1
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forks and SIGKILL")
def test_a_kill_at_any_moment_leaves_a_readable_checkpoint(tmp_path: Path) -> None:
    """SIGKILL processes that save without a pause; what each said was saved is there, and it is whole."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", KILLER, str(tmp_path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 30
    for said, step, values in map(json.loads, lines):
        assert step in (said, said + 1)  # the last file may be there before it was said
        assert values == [float(step)]
    leftovers = [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]
    assert leftovers, "no kill came in the middle of a save: the test shows nothing"
    assert len(checkpoint_steps(tmp_path)) <= 3  # a kill between the new file and the old one's end leaves one more


@pytest.mark.skipif(sys.platform == "win32", reason="a folder's mode is POSIX's")
def test_an_old_checkpoint_goes_only_after_the_new_one_is_on_the_disk(tmp_path: Path, monkeypatch: Any) -> None:
    save(tmp_path, 1, keep=1)
    seen: list[list[int]] = []
    fsync, unlink = os.fsync, Path.unlink

    def watched_fsync(descriptor: int) -> None:
        seen.append(checkpoint_steps(tmp_path))
        fsync(descriptor)

    def watched_unlink(path: Path, missing_ok: bool = False) -> None:
        seen.append([-1])
        unlink(path, missing_ok)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    save(tmp_path, 1, keep=1)
    seen.clear()
    monkeypatch.setattr(Path, "unlink", watched_unlink)
    save(tmp_path, 2, keep=1)
    assert seen == [[1], [1, 2], [-1]]  # file synced beside the old; folder synced; then the old one goes


# ---- optimisers
def step_of(optimizer: torch.optim.Optimizer, module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = torch.randn(8, 3, generator=generator)
    optimizer.zero_grad()
    module(batch.to(next(module.parameters()).device)).square().sum().backward()
    optimizer.step()


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, betas=(0.8, 0.99), eps=1e-5),
    "adam amsgrad": lambda p: torch.optim.Adam(p, amsgrad=True, weight_decay=0.1),
    "adam tensor lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-2)),
    "adam groups": lambda p: torch.optim.Adam([{"params": q, "lr": 0.1 / (i + 1)} for i, q in enumerate(p)]),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2),
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.5, centered=True),
    "rmsprop like tf": lambda p: RMSpropTFLike(p, lr=1e-2, momentum=0.5),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimiser_goes_on_bit_for_bit(name: str, tmp_path: Path, device: torch.device) -> None:
    build = OPTIMIZERS[name]
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(device)
    optimizer = build(list(module.parameters()))
    for seed in range(3):
        step_of(optimizer, module, seed)
    tensors, config = optimizer_to_tensors(optimizer)
    groups = {"net": module.state_dict(), "optimizer": tensors}
    save_checkpoint(tmp_path, 3, config={"optimizer": json.loads(json.dumps(config))}, tensors=groups)
    other = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(device)
    resumed = build(list(other.parameters()))
    checkpoint = latest_checkpoint(tmp_path)
    other.load_state_dict(checkpoint.tensors["net"])
    load_optimizer(resumed, checkpoint.tensors["optimizer"], checkpoint.config["optimizer"])
    assert_equal(resumed.state_dict(), optimizer.state_dict(), types=True)
    for seed in range(3, 6):
        step_of(optimizer, module, seed)
        step_of(resumed, other, seed)
    for mine, theirs in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert_equal(resumed.state_dict(), optimizer.state_dict(), types=True)


def test_an_optimiser_that_has_not_stepped(tmp_path: Path) -> None:
    module = nn.Linear(2, 2)
    tensors, config = optimizer_to_tensors(torch.optim.Adam(module.parameters(), lr=0.3))
    assert tensors == {}
    fresh = torch.optim.Adam(module.parameters())
    load_optimizer(fresh, tensors, config)
    assert fresh.param_groups[0]["lr"] == 0.3


def test_loading_takes_copies(tmp_path: Path) -> None:
    module = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(module.parameters())
    step_of(optimizer, module, 0)
    tensors, config = optimizer_to_tensors(optimizer)
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    other = torch.optim.Adam(module.parameters())
    load_optimizer(other, kept, config)
    before = {name: tensor.clone() for name, tensor in kept.items()}
    step_of(other, module, 1)
    assert_equal(kept, before, types=True)


def test_a_state_that_does_not_fit_is_a_clear_error() -> None:
    module = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(module.parameters())
    step_of(optimizer, module, 0)
    tensors, config = optimizer_to_tensors(optimizer)
    with pytest.raises(ValueError, match="of a Adam, the optimizer is a SGD"):
        load_optimizer(torch.optim.SGD(module.parameters()), tensors, config)
    with pytest.raises(ValueError, match=r"groups of shapes \[\[\[2, 3\], \[2\]\]\]"):
        load_optimizer(torch.optim.Adam(nn.Linear(3, 3).parameters()), tensors, config)
    with pytest.raises(ValueError, match="groups of shapes"):
        load_optimizer(torch.optim.Adam([{"params": p} for p in module.parameters()]), tensors, config)
    assert_raises(ValueError, "lacks 'class'", load_optimizer, optimizer, tensors, {})
    for name, value in {"newer": True, "new": 0, "weight_decay": ...}.items():
        group = dict(config["state_dict"]["param_groups"][0])
        group.pop(name, None)
        forged = group if value is ... else {**group, name: value}
        changed = {**config, "state_dict": {**config["state_dict"], "param_groups": [forged]}}
        assert_raises(ValueError, name, load_optimizer, optimizer, tensors, changed)
    assert_raises(ValueError, r"no tensor named 'optimizer\.state\.0\.step'", load_optimizer, optimizer, {}, config)
    malformed: list[Any] = [3, [], {"state": {}}, {"state": 3, "param_groups": [{}]}, {"param_groups": [], "state": {}}]
    for broken in malformed:
        with pytest.raises(ValueError, match=r"malformed|different number of parameter groups"):
            load_optimizer(optimizer, tensors, {**config, "state_dict": broken})


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_a_state_of_another_version_of_torch_is_fitted_to_this_one(kind: Any) -> None:
    optimizer = kind([nn.Parameter(torch.ones(1))])
    tensors, config = optimizer_to_tensors(optimizer)
    (group,) = config["state_dict"]["param_groups"]
    group.pop("decoupled_weight_decay", None)  # which torch 2.6 does not have, for AdamW either
    load_optimizer(other := kind([nn.Parameter(torch.ones(1))]), tensors, config)
    assert_equal(other.state_dict(), optimizer.state_dict(), types=True)
    group.update(newer=False, decoupled_weight_decay=kind is torch.optim.AdamW)
    for each in other.param_groups:
        each.pop("decoupled_weight_decay", None)
    load_optimizer(other, tensors, config)


def test_a_state_with_code_in_it_is_an_error() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    optimizer.param_groups[0]["schedule"] = lambda x: x
    assert_raises(TypeError, r"optimizer\.param_groups\.0\.schedule is a function", optimizer_to_tensors, optimizer)


# ---- trees
@pytest.mark.parametrize(
    "tree",
    [
        None,
        (1, (2.5, "x"), [True, None], ()),
        {1: {"a": (1,)}, 0: []},
        {"__tuple__": 3},
        {"__dict__": {"__tensor__": "x"}},
        {"a": {}, "b": {"c": float("inf")}},
        {"": [{}, {"x": ({2: 3},)}]},
    ],
)
def test_a_tree_comes_back_as_it_was(tree: Any) -> None:
    encoded, tensors = tree_to_json(tree)
    assert tensors == {}
    assert_equal(tree_from_json(json.loads(json.dumps(encoded)), tensors), tree, types=True)


def test_tensors_in_a_tree_are_named_by_their_place() -> None:
    tree = {"a": [torch.ones(1), (torch.zeros(2),)], 3: torch.tensor(4)}
    encoded, tensors = tree_to_json(tree, "top")
    assert sorted(tensors) == ["top.3", "top.a.0", "top.a.1.0"]
    assert_equal(tree_from_json(json.loads(json.dumps(encoded)), tensors), tree, types=True)


def test_what_a_tree_can_not_hold() -> None:
    assert_raises(TypeError, r"tree\.a\.0 is a set", tree_to_json, {"a": [{1}]})
    assert_raises(TypeError, r"key \(1, 2\) of type tuple", tree_to_json, {(1, 2): 3})
    with pytest.raises(TypeError, match=r"both be called 'tree\.a\.b'"):
        tree_to_json({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}})


@pytest.mark.parametrize(
    "encoded",
    [
        {"__tensor__": "none"},
        {"__tensor__": ["none"]},
        {"__tuple__": 3},
        {"__dict__": {"a": 1}},
        {"__dict__": [[1]]},
        {"__dict__": [[[1], 2]]},
        {"__dict__": ["ab"]},
    ],
)
def test_a_malformed_tree_is_a_clear_error(encoded: Any) -> None:
    assert_raises(ValueError, r"use another copy|malformed", tree_from_json, encoded, {})
