"""One `.npz` of demonstrations: `header.json`, one `.npy` member an array, and `infos.json` if there are infos.

Nothing in it is pickled, and reading it unpickles nothing, so a file from a stranger can't run code. Every member's
SHA-256 is in the header: that finds damage and careless edits, not forgery. `np.load(path)["actions"]` reads it too.
Where `next_observations` are the observations one row on, as they are in whole recorded episodes, only the final ones
of the episodes are stored; where actions and groups fit a smaller integer, it is used. Both are undone on reading. The
same set always gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from rlsmooth.atomic import atomic_file
from rlsmooth.data.arrays import AnyArray, Array
from rlsmooth.data.demonstrations import Demonstrations
from rlsmooth.data.file_format import (
    FORMAT,
    MAX_HEADER_BYTES,
    DemonstrationsFileError,
    build,
    encode_json,
    file_path,
    make_header,
    named_arrays,
    read_header,
)

__all__ = ["compact", "expand", "load_npz", "read_archive", "save_npz", "write_archive"]

FINAL = "final_observations"


def save_npz(data: Demonstrations, path: str | Path) -> None:
    """Write the set to one `.npz`, whole or not at all. Memory-mapped arrays are read into memory one by one.

    Raises:
        ValueError: `path` does not end in `.npz`, its folder can't be written to, or infos or metadata are not JSON.
    """
    arrays = compact(data)
    infos = None if data.infos is None else encode_json("infos", list(data.infos))
    write_archive(path, arrays, infos, lambda described: make_header(data, described))


def write_archive(
    path: str | Path,
    arrays: Mapping[str, Array],
    infos: bytes | None,
    header: Callable[[Mapping[str, Any]], bytes],
) -> None:
    """Write arrays and their header to one `.npz`, whole or not at all.

    Args:
        path: ends in `.npz`.
        arrays: by name.
        infos: JSON, or None.
        header: of what is told about each member.

    Raises:
        ValueError: another ending, or a folder that can't be written to.
    """
    target = file_path(path)
    if target.suffix != ".npz":
        raise ValueError(f"path={str(path)!r} must end in .npz.")
    hashes: dict[str, dict[str, str]] = {}
    with atomic_file(target) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(_entry(f"{name}.npy"), "w", force_zip64=True) as member:
                hasher = _HashingFile(member)
                np.lib.format.write_array(hasher, np.asarray(array), allow_pickle=False)
            hashes[name] = {"member": f"{name}.npy", "sha256": hasher.sha256.hexdigest()}
        if infos is not None:
            archive.writestr(_entry("infos.json"), infos)
            hashes["infos"] = {"member": "infos.json", "sha256": hashlib.sha256(infos).hexdigest()}
        archive.writestr(_entry("header.json"), header(hashes))


def load_npz(path: str | Path) -> Demonstrations:
    """Read a file of `save_npz` into memory and check it.

    Raises:
        DemonstrationsFileError: the file is missing, empty, truncated, damaged, edited, a pickle, another program's, or
            a newer version's; or what it holds does not pass the checks of `Demonstrations`.
    """
    source = file_path(path)
    header, arrays, infos = read_archive(source, FORMAT, "Demonstrations.from_arrays")
    return build(header, expand(arrays, source), infos, source)


def read_archive(source: Path, kind: str, reader: str) -> tuple[dict[str, Any], dict[str, AnyArray], Any]:
    """Header, arrays and infos of a file of `write_archive`, whose hashes were checked.

    Args:
        source: the file.
        kind: the `format` that its header must name.
        reader: what reads arrays that come from elsewhere, for messages.

    Raises:
        DemonstrationsFileError: see `load_npz`.
    """
    _check_kind(source, reader)
    try:
        with zipfile.ZipFile(source) as archive:
            names = archive.namelist()
            if "header.json" not in names:
                raise DemonstrationsFileError(
                    f"{source} is a .npz of something else (it holds {', '.join(names[:8])}): "
                    f"read it with np.load and use {reader}."
                )
            if archive.getinfo("header.json").file_size > MAX_HEADER_BYTES:
                raise DemonstrationsFileError(f"{source}: header.json is larger than {MAX_HEADER_BYTES} bytes.")
            header = read_header(archive.read("header.json"), source, kind)
            members = _members(header, names, source)
            arrays = {name: _read_array(archive, entry, source) for name, entry in members.items() if name != "infos"}
            infos = _read_infos(archive, members["infos"], source) if "infos" in members else None
    except DemonstrationsFileError:
        raise
    except MemoryError as error:
        raise DemonstrationsFileError(
            f"{source} does not fit in memory: keep large sets as a folder (Demonstrations.save_folder)."
        ) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        # A damaged archive makes zipfile raise any of these.
        raise DemonstrationsFileError(f"{source} is truncated or damaged: {error}") from error
    return header, arrays, infos


def compact(data: Demonstrations) -> dict[str, AnyArray]:
    """Every array of the set by name, as the file stores them: see the top of this module."""
    arrays = {name: np.asarray(array) for name, array in named_arrays(data).items()}
    for name in ("actions", "groups", "episode_ends"):
        if name in arrays and arrays[name].dtype.kind in "iu":
            low, high = int(arrays[name].min()), int(arrays[name].max())
            arrays[name] = arrays[name].astype(np.result_type(np.min_scalar_type(low), np.min_scalar_type(high)))
    following = {name: array for name, array in arrays.items() if name.startswith("next_observations")}
    inner = np.ones(len(data), dtype=bool)
    inner[data.episode_ends - 1] = False
    rows = np.flatnonzero(inner)
    if all(
        np.array_equal(array[rows], arrays[name.removeprefix("next_")][rows + 1]) for name, array in following.items()
    ):
        for name, array in following.items():
            del arrays[name]
            arrays[name.replace("next_observations", FINAL)] = array[data.episode_ends - 1]
    return arrays


def expand(arrays: dict[str, AnyArray], path: Path) -> dict[str, AnyArray]:
    """Undo what `compact` did to the next observations.

    Raises:
        DemonstrationsFileError: the final observations don't fit.
    """
    expanded = {}
    for name, array in arrays.items():
        if not name.startswith(FINAL):
            expanded[name] = array
            continue
        try:
            following = np.roll(arrays[name.replace(FINAL, "observations")], -1, axis=0)
            following[arrays["episode_ends"].astype(np.int64) - 1] = array
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DemonstrationsFileError(f"{path}: {name} does not fit the observations ({error}).") from error
        expanded[name.replace(FINAL, "next_observations")] = following
    return expanded


def _check_kind(path: Path, reader: str) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except FileNotFoundError as error:
        raise DemonstrationsFileError(f"{path} does not exist.") from error
    except OSError as error:
        raise DemonstrationsFileError(f"{path} can't be read ({error.strerror}).") from error
    if not start:
        raise DemonstrationsFileError(f"{path} is empty.")
    if start[:1] == b"\x80":
        raise DemonstrationsFileError(f"{path} is a pickle, which can run code when opened: it is not read.")
    if start[:6] == b"\x93NUMPY":
        raise DemonstrationsFileError(f"{path} is one bare .npy array: use {reader}.")
    if start[:2] != b"PK":
        raise DemonstrationsFileError(f"{path} is not a .npz file.")


def _members(header: Mapping[str, Any], names: list[str], path: Path) -> dict[str, dict[str, str]]:
    members: dict[str, dict[str, str]] = header["arrays"]
    for name, entry in members.items():
        if not (
            isinstance(entry, dict) and isinstance(entry.get("member"), str) and isinstance(entry.get("sha256"), str)
        ):
            raise DemonstrationsFileError(f"{path}: header.json does not describe {name!r:.80} fully.")
    listed = sorted(["header.json", *(entry["member"] for entry in members.values())])
    if sorted(names) != listed:
        odd = sorted(set(names) ^ set(listed)) or [name for name in set(names) if names.count(name) > 1]
        raise DemonstrationsFileError(f"{path}: its members and its header.json disagree about {', '.join(odd)}.")
    return members


def _read_array(archive: zipfile.ZipFile, entry: Mapping[str, str], path: Path) -> AnyArray:
    with archive.open(entry["member"]) as member:
        hasher = _HashingFile(member)
        try:
            array: AnyArray = np.lib.format.read_array(hasher, allow_pickle=False)
        except ValueError as error:
            raise DemonstrationsFileError(f"{path}: {entry['member']} is no plain array ({error}).") from error
        hasher.read(1)
    _check_hash(hasher.sha256.hexdigest(), entry, path)
    return array


def _read_infos(archive: zipfile.ZipFile, entry: Mapping[str, str], path: Path) -> Any:
    raw = archive.read(entry["member"])
    _check_hash(hashlib.sha256(raw).hexdigest(), entry, path)
    infos = json.loads(raw)
    if not isinstance(infos, list):
        raise DemonstrationsFileError(f"{path}: infos.json is no list.")
    return infos


def _check_hash(found: str, entry: Mapping[str, str], path: Path) -> None:
    if found != entry["sha256"]:
        raise DemonstrationsFileError(f"{path}: {entry['member']} is damaged or was edited (its hash is wrong).")


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))  # no clock: the same set gives the same bytes
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry


class _HashingFile:
    """Passes reads and writes on to a zip member and hashes what went through."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.sha256.update(data)
        return data

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)
