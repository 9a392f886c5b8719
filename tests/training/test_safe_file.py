from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from rlsmooth.training import SafeFileError, read_safe_file, write_safe_file

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


def repack(path: Path, change: Callable[[dict[str, bytes]], object], *, compression: int = zipfile.ZIP_STORED) -> Path:
    """Write the archive again by Python's own zipfile, with changed members."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, payload in members.items():
            archive.writestr(name, payload)
    return path


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
    assert {group: sorted(named) for group, named in file.tensors.items()} == {
        "net": ["bias", "weight"],
        "rng": ["torch"],
    }
    assert (
        file.versions["torch"] == torch.__version__.removesuffix("+cpu") or file.versions["torch"] == torch.__version__
    )
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


def test_the_same_contents_give_the_same_bytes(tmp_path: Path) -> None:
    assert write(tmp_path / "a.zip").read_bytes() == write(tmp_path / "b.zip").read_bytes()


def test_loaded_tensors_can_be_written_to(tmp_path: Path) -> None:
    loaded = read(write(tmp_path / "a.zip")).tensors["net"]["weight"]
    loaded.zero_()
    assert read(tmp_path / "a.zip").tensors["net"]["weight"].sum() == 15


def test_a_file_packed_again_by_another_tool_is_read(tmp_path: Path) -> None:
    path = repack(write(tmp_path / "a.zip"), lambda members: None)
    assert read(path).config == CONFIG


def test_an_older_version_is_read_and_said(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.zip"), format_version=5).format_version == 3


# ---- damage


def test_cut_short_anywhere_is_one_clear_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(SafeFileError, match=r"a\.zip"):
            read(path)


@pytest.mark.parametrize(("flip", "stride"), [(0x01, 1), (0x80, 5), (0xFF, 3)])
def test_a_flipped_byte_anywhere_is_one_clear_error(tmp_path: Path, flip: int, stride: int) -> None:
    path = write(tmp_path / "a.zip")
    whole = path.read_bytes()
    for offset in range(0, len(whole), stride):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ flip]) + whole[offset + 1 :])
        with pytest.raises(SafeFileError, match=r"a\.zip"):
            read(path)


def test_a_zeroed_byte_or_one_more_anywhere_is_one_clear_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip")
    whole = path.read_bytes()
    for offset in range(0, len(whole) + 1, 4):
        changed = [whole[:offset] + b"\0" + whole[offset:]]
        if offset < len(whole) and whole[offset] != 0:
            changed.append(whole[:offset] + b"\0" + whole[offset + 1 :])
        for data in changed:
            path.write_bytes(data)
            with pytest.raises(SafeFileError, match=r"a\.zip"):
                read(path)


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
    with pytest.raises(TypeError, match=message):
        write(tmp_path / "a.zip", config=config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("group", ["", "../a", "a b", "-a", "x" * 101, "a/b", "a.b"])
def test_a_bad_group_name_is_an_error(tmp_path: Path, group: str) -> None:
    with pytest.raises(ValueError, match="has the group"):
        write(tmp_path / "a.zip", tensors={group: {}})


def test_tensors_that_can_not_be_kept_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with pytest.raises(TypeError, match=r"\['g'\]\['t'\] is a ndarray"):
        write(path, tensors={"g": {"t": np.ones(2)}})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="sparse, quantized or meta"):
        write(path, tensors={"g": {"t": torch.eye(2).to_sparse()}})
    with pytest.raises(TypeError, match="sparse, quantized or meta"):
        write(path, tensors={"g": {"t": torch.ones(2, device="meta")}})
    with pytest.raises(TypeError, match="dtype that safetensors can't hold"):
        write(path, tensors={"g": {"t": torch.ones(2, dtype=torch.complex128)}})
    with pytest.raises(ValueError, match="__metadata__"):
        write(path, tensors={"g": {"__metadata__": torch.ones(2)}})
    with pytest.raises(ValueError, match="format_version=0"):
        write_safe_file(path, {}, tensors={}, format_name="demo", format_version=0)
    assert not path.exists()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip")
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write(path, config={"a": object()})
    with pytest.raises(ValueError, match="none"):
        write(tmp_path / "none" / "a.zip")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]
