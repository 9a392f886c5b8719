from __future__ import annotations

import hashlib
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from rlsmooth.training import SafeFile, SafeFileError, read_safe_file, write_safe_file


def write(path: Path) -> Path:
    tensors = {"net": {"weight": torch.ones(2, 3), "bias": torch.tensor(-0.0)}, "rng": {"torch": torch.arange(5)}}
    write_safe_file(path, {"steps": 12}, tensors=tensors, format_name="demo", format_version=3)
    return path


def read(path: Path) -> SafeFile:
    return read_safe_file(path, format_name="demo", format_version=3)


def repack(path: Path, change: Callable[[dict[str, bytes]], object], *, compression: int = zipfile.ZIP_STORED) -> Path:
    """Write the archive again by Python's own zipfile, with changed members."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, payload in members.items():
            archive.writestr(name, payload)
    return path


def change_head(**changes: Any) -> Callable[[dict[str, bytes]], object]:
    def change(members: dict[str, bytes]) -> None:
        head = json.loads(members["config.json"])
        for key, value in changes.items():
            if value is ...:
                del head[key]
            else:
                head[key] = value
        members["config.json"] = json.dumps(head).encode()

    return change


def test_a_missing_file_a_folder_and_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(SafeFileError, match="does not exist"):
        read(tmp_path / "none.zip")
    with pytest.raises(SafeFileError, match="can't be read"):
        read(tmp_path)
    (tmp_path / "empty.zip").touch()
    with pytest.raises(SafeFileError, match="is empty"):
        read(tmp_path / "empty.zip")


class Bomb:
    """Unpickling it makes a file: the proof that code ran."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_pickles_are_named_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "code ran"
    for name, data in {"pickle": pickle.dumps(Bomb(mark)), "text": b"not a zip at all"}.items():
        (tmp_path / name).write_bytes(data)
    torch.save({"w": Bomb(mark)}, tmp_path / "new.pt")
    torch.save({"w": Bomb(mark)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("pickle", "old.pt"):
        with pytest.raises(SafeFileError, match="is a pickle"):
            read(tmp_path / name)
    with pytest.raises(SafeFileError, match=r"is a torch\.save file"):
        read(tmp_path / "new.pt")
    with pytest.raises(SafeFileError, match="is not a zip"):
        read(tmp_path / "text")
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists(), "the bomb is a dud: the test would prove nothing"


def test_stable_baselines3s_own_zip_is_named(tmp_path: Path) -> None:
    PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu").save(tmp_path / "ppo.zip")
    with pytest.raises(SafeFileError, match=r"Stable-Baselines3's own zip.*PPO\.load"):
        read(tmp_path / "ppo.zip")


@pytest.mark.parametrize(
    "name",
    ["../evil.safetensors", "/etc/passwd", "..\\x.safetensors", "a/b.safetensors", "code.py", ".safetensors", "x.pkl"],
)
def test_a_member_that_does_not_belong_is_an_error(tmp_path: Path, name: str) -> None:
    path = repack(write(tmp_path / "a.zip"), lambda members: members.update({name: b"x"}))
    with pytest.raises(SafeFileError, match="which does not belong there"):
        read(path)


def test_unlisted_missing_and_double_members(tmp_path: Path) -> None:
    extra = repack(write(tmp_path / "extra.zip"), lambda members: members.update({"more.safetensors": b"x"}))
    with pytest.raises(SafeFileError, match=r"more\.safetensors.*does not list"):
        read(extra)
    missing = repack(write(tmp_path / "missing.zip"), lambda members: members.pop("net.safetensors"))
    with pytest.raises(SafeFileError, match=r"lacks its member 'net\.safetensors'"):
        read(missing)
    headless = repack(write(tmp_path / "headless.zip"), lambda members: members.pop("config.json"))
    with pytest.raises(SafeFileError, match=r"has no config\.json"):
        read(headless)
    double = write(tmp_path / "double.zip")
    with zipfile.ZipFile(double, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("net.safetensors", b"other")
    with pytest.raises(SafeFileError, match=r"'net\.safetensors' twice"):
        read(double)


def test_compressed_members_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", b" " * 100_000_000)
    assert path.stat().st_size < 200_000
    with pytest.raises(SafeFileError, match="compressed or encrypted"):
        read(path)


def test_members_that_declare_more_than_there_is_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip")
    data = bytearray(path.read_bytes())
    central = data.find(b"PK\x01\x02")
    data[central + 20 : central + 28] = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(bytes(data))
    with pytest.raises(SafeFileError, match="declares more bytes than it has"):
        read(path)


def test_members_that_overlap_are_refused(tmp_path: Path) -> None:
    """Two central records that point at one local file: the trick of quoted and overlapping zip bombs."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", b"{}" + b" " * 5000)
    data = path.read_bytes()
    start, end = data.find(b"PK\x01\x02"), data.find(b"PK\x05\x06")
    record = bytearray(data[start:end])
    record[46:57] = b"a" + b"b" * 10
    second = bytes(record[:28]) + struct.pack("<H", 13) + bytes(record[30:46]) + b"a.safetensors"
    body = data[:start] + data[start:end] + second
    end_record = bytearray(data[end:])
    end_record[8:12] = struct.pack("<HH", 2, 2)
    end_record[12:16] = struct.pack("<I", len(body) - start)
    path.write_bytes(body + bytes(end_record))
    with pytest.raises(SafeFileError, match="declares more bytes"):
        read(path)


def test_too_many_members(tmp_path: Path) -> None:
    path = repack(
        write(tmp_path / "a.zip"), lambda members: members.update({f"m{i}.safetensors": b"" for i in range(70)})
    )
    with pytest.raises(SafeFileError, match="members, more than 64"):
        read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_head(format=...), "without 'format'"),
        (change_head(format_version=...), "without 'format_version'"),
        (change_head(versions=[]), "without 'versions'"),
        (change_head(members=None), "without 'members'"),
        (change_head(aliases=3), "without 'aliases'"),
        (change_head(config="x"), "without 'config'"),
        (change_head(format_version=True), "without 'format_version'"),
        (change_head(format_version=0), "format version 0"),
        (change_head(format_version=4), "newer than 3.*written by rlsmooth.*Upgrade"),
        (change_head(format="other"), "is a 'other' file, not 'demo'"),
        (change_head(aliases={"net": {"new": "none"}}), "second names"),
        (change_head(aliases={"net": {"weight": "bias"}}), "second names"),
        (change_head(aliases={"net": {"new": ["bias"]}}), "second names"),
        (change_head(members={"net.safetensors": 3, "rng.safetensors": None}), "does not match its sha256"),
        (lambda members: members.update({"config.json": b"{"}), "not JSON"),
        (lambda members: members.update({"config.json": b"\xff\xfe\xff"}), "not JSON"),
        (lambda members: members.update({"config.json": b"[" * 100_000}), "not JSON"),
        (lambda members: members.update({"config.json": b"[1]"}), "without 'format'"),
    ],
)
def test_a_bad_head_is_one_clear_error(
    tmp_path: Path, change: Callable[[dict[str, bytes]], object], message: str
) -> None:
    with pytest.raises(SafeFileError, match=message):
        read(repack(write(tmp_path / "a.zip"), change))


def hostile_safetensors() -> list[bytes]:
    def pack(header: object, body: bytes = b"") -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + body

    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    return [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 2**63) + b"{}",
        pack(b"not json"),
        pack({"t": {**entry, "dtype": "PICKLE"}}, b"\0" * 4),
        pack({"t": {**entry, "shape": [2**62, 4]}}, b"\0" * 4),
        pack({"t": {**entry, "data_offsets": [0, 2**40]}}, b"\0" * 4),
        pack({"t": {**entry, "shape": [-1]}}, b"\0" * 4),
        pack({"t": entry}, b"\0" * 8),
    ]


@pytest.mark.parametrize("payload", hostile_safetensors())
def test_tensors_that_are_malformed_but_rightly_hashed_are_one_clear_error(tmp_path: Path, payload: bytes) -> None:
    def change(members: dict[str, bytes]) -> None:
        members["net.safetensors"] = payload
        head = json.loads(members["config.json"])
        head["members"]["net.safetensors"] = hashlib.sha256(payload).hexdigest()
        members["config.json"] = json.dumps(head).encode()

    with pytest.raises(SafeFileError, match="not in safetensors form"):
        read(repack(write(tmp_path / "a.zip"), change))


def test_random_bytes_behind_a_zips_first_letters(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    path = tmp_path / "a.zip"
    for size in range(2, 200):
        path.write_bytes(b"PK\x03\x04" + generator.bytes(size) + b"PK\x05\x06" + generator.bytes(18))
        with pytest.raises(SafeFileError):
            read(path)
