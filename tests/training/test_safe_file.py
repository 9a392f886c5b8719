"""Files that hold tensors and JSON and nothing else: what comes back, and every fault of a file."""

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
import safetensors.torch
import torch
from stable_baselines3 import PPO
from torch import Tensor

from rlsmooth.training import SafeFileError, read_safe_file, write_safe_file
from rlsmooth.untrusted import FileRefusedError, modules_within
from support import Bomb, assert_raises, repack

TENSORS = {
    "net": {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor(-0.0)},
    "rng": {"torch": torch.arange(5, dtype=torch.uint8)},
}
CONFIG = {"steps": 12, "name": "naïve", "nested": {"list": [1, 2.5, None, True]}}


def write(path: Path, *, config: dict[str, Any] = CONFIG, tensors: dict[str, dict[str, Tensor]] = TENSORS) -> Path:
    write_safe_file(path, config, tensors=tensors, format_name="demo", format_version=3)
    return path


def read(path: Path, *, format_version: int = 3, device: str = "cpu") -> Any:
    return read_safe_file(path, format_name="demo", format_version=format_version, device=device)


def bits(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    """Dtype, shape and raw bytes: NaNs and negative zeros count too."""
    return tensor.dtype, tuple(tensor.shape), tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.5),
        torch.tensor(7, dtype=torch.int64),
        torch.tensor([True, False]),
        torch.tensor([1.0, float("nan"), -0.0, float("inf"), 1e-45]),
        torch.tensor([1.1, 2.2], dtype=torch.float64),
        torch.tensor([1.1, 2.2], dtype=torch.bfloat16),
        torch.tensor([1.1, 2.2], dtype=torch.float16),
        torch.tensor([2**62, -(2**63)], dtype=torch.int64),
        torch.tensor([255, 0], dtype=torch.uint8),
        torch.tensor([-128], dtype=torch.int8),
        torch.tensor([1 + 2j]),
        torch.tensor([1 + 2j]).conj(),
        torch.zeros(0, 4),
        torch.arange(12.0).reshape(3, 4).t(),
        torch.arange(12.0)[3:9:2],
        torch.ones(1).expand(5),
        torch.nn.Parameter(torch.ones(2)),
    ],
    ids=lambda tensor: f"{tensor.dtype}-{tuple(tensor.shape)}",
)
def test_a_tensor_comes_back_bit_for_bit(tmp_path: Path, tensor: Tensor) -> None:
    loaded = read(write(tmp_path / "a.zip", tensors={"g": {"t": tensor}})).tensors["g"]["t"]
    assert bits(loaded) == bits(tensor.detach().resolve_conj())
    assert not loaded.requires_grad


def test_config_groups_and_versions_come_back(tmp_path: Path) -> None:
    file = read(write(tmp_path / "a.zip", config={**CONFIG, "pair": (1, 2), "inf": float("inf")}))
    assert file.config == {**CONFIG, "pair": [1, 2], "inf": float("inf")}
    groups = {group: sorted(named) for group, named in file.tensors.items()}
    assert groups == {"net": ["bias", "weight"], "rng": ["torch"]}
    assert torch.__version__.startswith(file.versions["torch"])  # with or without the build, such as +cpu
    assert file.format_version == 3


def test_tensors_go_to_the_device_asked_for(tmp_path: Path, device: torch.device) -> None:
    tensors = {"g": {"t": torch.ones(2, device=device)}}
    loaded = read(write(tmp_path / "a.zip", tensors=tensors), device=str(device)).tensors["g"]["t"]
    assert loaded.device.type == device.type
    assert loaded.tolist() == [1.0, 1.0]


def test_a_tensor_under_two_names_is_written_once_and_comes_back_under_both(tmp_path: Path) -> None:
    shared = torch.randn(1000)
    tensors = {"g": {"a": shared, "b": shared, "overlap": shared[1:], "scaled": shared * 2}}
    path = write(tmp_path / "a.zip", tensors=tensors)
    loaded = read(path).tensors["g"]
    assert {name: bits(tensor) for name, tensor in loaded.items()} == {n: bits(t) for n, t in tensors["g"].items()}
    with zipfile.ZipFile(path) as archive:
        assert sorted(safetensors.torch.load(archive.read("g.safetensors"))) == ["a", "overlap", "scaled"]


def test_the_members_are_what_other_programs_can_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(write(tmp_path / "a.zip")) as archive:
        head = json.loads(archive.read("config.json"))
        weights = archive.read("net.safetensors")
    assert torch.equal(safetensors.torch.load(weights)["weight"], TENSORS["net"]["weight"])
    assert head["members"]["net.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert head["config"] == CONFIG


def test_the_same_contents_give_the_same_bytes_and_what_is_loaded_is_a_copy(tmp_path: Path) -> None:
    assert write(tmp_path / "a.zip").read_bytes() == write(tmp_path / "b.zip").read_bytes()
    read(tmp_path / "a.zip").tensors["net"]["weight"].zero_()
    assert read(tmp_path / "a.zip").tensors["net"]["weight"].sum() == 15


def test_a_file_of_an_older_version_or_packed_again_by_another_tool_is_read(tmp_path: Path) -> None:
    path = repack(write(tmp_path / "a.zip"), lambda members: None)
    assert read(path).config == CONFIG
    assert read(path, format_version=5).format_version == 3


# ---- damage
DAMAGES: dict[str, Callable[[bytes], list[bytes]]] = {
    "cut short": lambda whole: [whole[:length] for length in range(len(whole))],
    "another bit": lambda whole: flipped(whole, 0x01, 1),
    "the highest bit": lambda whole: flipped(whole, 0x80, 5),
    "all bits": lambda whole: flipped(whole, 0xFF, 3),
    "a zero more": lambda whole: [whole[:place] + b"\0" + whole[place:] for place in range(0, len(whole) + 1, 4)],
    "a zero": lambda whole: [
        whole[:place] + b"\0" + whole[place + 1 :] for place in range(0, len(whole), 4) if whole[place] != 0
    ],
}


def flipped(whole: bytes, bits: int, stride: int) -> list[bytes]:
    places = range(0, len(whole), stride)
    return [whole[:place] + bytes([whole[place] ^ bits]) + whole[place + 1 :] for place in places]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_anywhere_is_one_clear_error(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path / "a.zip")
    for data in DAMAGES[damage](path.read_bytes()):
        path.write_bytes(data)
        assert_raises(SafeFileError, r"a\.zip", read, path)


def test_a_changed_member_of_a_repacked_file_is_found_by_its_hash(tmp_path: Path) -> None:
    def change(members: dict[str, bytes]) -> None:
        payload = bytearray(members["net.safetensors"])
        payload[-1] ^= 1
        members["net.safetensors"] = bytes(payload)

    with pytest.raises(SafeFileError, match=r"net\.safetensors does not match its sha256"):
        read(repack(write(tmp_path / "a.zip"), change))


# ---- what can't be written
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"a": {1: 2}}, r"config\['a'\] has the key 1 of type int"),
        ({"a": [torch.ones(1)]}, r"config\['a'\]\[0\] is a Tensor"),
        ({"a": np.int64(3)}, r"config\['a'\] is a int64"),
        ({"a": {1, 2}}, r"config\['a'\] is a set"),
    ],
)
def test_a_config_that_is_not_json_is_an_error_and_leaves_no_file(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    assert_raises(TypeError, message, write, tmp_path / "a.zip", config=config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("group", ["", "../a", "a b", "-a", "x" * 101, "a/b", "a.b"])
def test_a_bad_group_name_is_an_error(tmp_path: Path, group: str) -> None:
    assert_raises(ValueError, "has the group", write, tmp_path / "a.zip", tensors={group: {}})


def test_tensors_that_can_not_be_kept_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    assert_raises(TypeError, r"\['g'\]\['t'\] is a ndarray", write, path, tensors={"g": {"t": np.ones(2)}})
    assert_raises(TypeError, "sparse, quantized or meta", write, path, tensors={"g": {"t": torch.eye(2).to_sparse()}})
    with pytest.raises(TypeError, match="sparse, quantized or meta"):
        write(path, tensors={"g": {"t": torch.ones(2, device="meta")}})
    with pytest.raises(TypeError, match="dtype that safetensors can't hold"):
        write(path, tensors={"g": {"t": torch.ones(2, dtype=torch.complex128)}})
    assert_raises(ValueError, "__metadata__", write, path, tensors={"g": {"__metadata__": torch.ones(2)}})
    with pytest.raises(ValueError, match="format_version=0"):
        write_safe_file(path, {}, tensors={}, format_name="demo", format_version=0)
    assert not path.exists()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip")
    before = path.read_bytes()
    assert_raises(TypeError, None, write, path, config={"a": object()})
    assert_raises(ValueError, "none", write, tmp_path / "none" / "a.zip")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


# ---- faults
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
    assert_raises(SafeFileError, "does not exist", read, tmp_path / "none.zip")
    assert_raises(SafeFileError, "can't be read", read, tmp_path)
    (tmp_path / "empty.zip").touch()
    assert_raises(SafeFileError, "is empty", read, tmp_path / "empty.zip")


def test_pickles_are_named_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "code ran"
    for name, data in {"pickle": pickle.dumps(Bomb(mark)), "text": b"not a zip at all"}.items():
        (tmp_path / name).write_bytes(data)
    torch.save({"w": Bomb(mark)}, tmp_path / "new.pt")
    torch.save({"w": Bomb(mark)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("pickle", "old.pt"):
        assert_raises(SafeFileError, "is a pickle", read, tmp_path / name)
    assert_raises(SafeFileError, r"is a torch\.save file", read, tmp_path / "new.pt")
    assert_raises(SafeFileError, "is not a zip", read, tmp_path / "text")
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists(), "the bomb is a dud: the test would prove nothing"


def test_stable_baselines3s_own_zip_is_named(tmp_path: Path) -> None:
    PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu").save(tmp_path / "ppo.zip")
    assert_raises(SafeFileError, r"Stable-Baselines3's own zip.*PPO\.load", read, tmp_path / "ppo.zip")


@pytest.mark.parametrize(
    "name",
    ["../evil.safetensors", "/etc/passwd", "..\\x.safetensors", "a/b.safetensors", "code.py", ".safetensors", "x.pkl"],
)
def test_a_member_that_does_not_belong_is_an_error(tmp_path: Path, name: str) -> None:
    path = repack(write(tmp_path / "a.zip"), lambda members: members.update({name: b"x"}))
    assert_raises(SafeFileError, "which does not belong there", read, path)


def test_unlisted_missing_and_double_members(tmp_path: Path) -> None:
    extra = repack(write(tmp_path / "extra.zip"), lambda members: members.update({"more.safetensors": b"x"}))
    assert_raises(SafeFileError, r"more\.safetensors.*does not list", read, extra)
    missing = repack(write(tmp_path / "missing.zip"), lambda members: members.pop("net.safetensors"))
    assert_raises(SafeFileError, r"lacks its member 'net\.safetensors'", read, missing)
    headless = repack(write(tmp_path / "headless.zip"), lambda members: members.pop("config.json"))
    assert_raises(SafeFileError, r"has no config\.json", read, headless)
    double = write(tmp_path / "double.zip")
    with zipfile.ZipFile(double, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("net.safetensors", b"other")
    assert_raises(SafeFileError, r"'net\.safetensors' twice", read, double)


def test_compressed_members_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", b" " * 100_000_000)
    assert path.stat().st_size < 200_000
    assert_raises(SafeFileError, "compressed or encrypted", read, path)


def test_members_that_declare_more_than_there_is_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip")
    data = bytearray(path.read_bytes())
    central = data.find(b"PK\x01\x02")
    data[central + 20 : central + 28] = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(bytes(data))
    assert_raises(SafeFileError, "declares more bytes than it has", read, path)


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
    assert_raises(SafeFileError, "declares more bytes", read, path)


def test_too_many_members(tmp_path: Path) -> None:
    path = repack(
        write(tmp_path / "a.zip"), lambda members: members.update({f"m{i}.safetensors": b"" for i in range(70)})
    )
    assert_raises(SafeFileError, "members, more than 64", read, path)


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
    assert_raises(SafeFileError, message, read, repack(write(tmp_path / "a.zip"), change))


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

    assert_raises(SafeFileError, "not in safetensors form", read, repack(write(tmp_path / "a.zip"), change))


def test_random_bytes_behind_a_zips_first_letters(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    path = tmp_path / "a.zip"
    for size in range(2, 200):
        path.write_bytes(b"PK\x03\x04" + generator.bytes(size) + b"PK\x05\x06" + generator.bytes(18))
        assert_raises(SafeFileError, None, read, path)


@pytest.mark.parametrize(
    "make", [lambda: torch.zeros(2**40), lambda: torch.nn.Linear(2**40, 4), lambda: torch.ones(2**34, 64)]
)
def test_building_a_network_for_a_file_takes_no_more_memory_than_its_tensors_justify(make: Any) -> None:
    with pytest.raises(FileRefusedError, match="tensors"), modules_within({"weight": torch.zeros(4)}):
        make()
    with modules_within({"weight": torch.zeros(4)}):
        assert torch.nn.Linear(3, 2).weight.shape == (2, 3)
