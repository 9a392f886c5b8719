"""Read and write the files of demonstrations: one `.npz`, or a folder of `.npy` files for sets larger than memory.

Both hold a JSON header and one array per field. Nothing in them is pickled, and reading them unpickles nothing, so that
a file from a stranger can't run code. The functions take and return fields: the arguments of `Demonstrations` or of
`ObservationOnly` by name. Whether they fit each other is for those classes to check.

The `.npz` holds `header.json`, one `.npy` member per array, and `infos.json` if there are infos. The SHA-256 of every
member is in the header, which finds damage and careless edits, not forgery. `np.load(path)["actions"]` reads it too.
Where `next_observations` are the observations of the next transition, as they are in whole recorded episodes, only the
final ones of the episodes are stored; where actions and groups fit a smaller integer, it is used. Both are undone on
reading. The same set always gives the same bytes.

The arrays of a folder are memory-mapped, so that only what is asked for is read (`np.load` of an `.npz` silently reads
all of it). To make such a folder from data that never fit in memory, write each array with
`np.lib.format.open_memmap`, open them with `np.load(..., mmap_mode="r")`, give them to `Demonstrations.from_arrays` and
call `save_folder`: it copies in chunks.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

import rlsmooth
from rlsmooth.atomic import atomic_file, write_bytes_atomically
from rlsmooth.checks import check_writable_folder
from rlsmooth.data.arrays import TRANSITION_FIELDS, AnyArray, Array, Fields, chunks
from rlsmooth.data.space_json import space_from_json, space_to_json
from rlsmooth.untrusted import (
    budget,
    check_unfolded,
    decode,
    is_folded_too_much,
    open_regular,
    parse_json,
    read_regular,
    refused,
)

FORMAT = "rlsmooth-demonstrations"
OBSERVATION_FORMAT = "rlsmooth-observations"
NAMES = {FORMAT: "demonstrations", OBSERVATION_FORMAT: "observations without actions"}
READERS = {FORMAT: "Demonstrations.load", OBSERVATION_FORMAT: "ObservationOnly.load"}
BUILDERS = {FORMAT: "Demonstrations.from_arrays", OBSERVATION_FORMAT: "ObservationOnly.from_trajectories"}
NEEDED = {
    FORMAT: ("observations", "actions", "episode_ends"),
    OBSERVATION_FORMAT: ("observations", "next_observations", "episode_ends"),
}
VERSION = 1
MAX_MEMBERS = 1024
MAX_HEADER_BYTES = 64 * 2**20
FINAL = "final_observations"


class DemonstrationsFileError(ValueError):
    """A file or folder of demonstrations is missing, damaged, or of another kind; the message names the path."""


def file_path(path: str | Path) -> Path:
    """`path` with `~` expanded."""
    return Path(path).expanduser()


@contextmanager
def naming_file(path: Path, what: str = "demonstrations") -> Iterator[None]:
    """Turn what the contents of a file make the block raise into a `DemonstrationsFileError` that names the file."""
    with refused(path, DemonstrationsFileError, problem=f"does not hold valid {what}"):
        yield


def write_npz(path: str | Path, fields: Fields, kind: str = FORMAT) -> None:
    """Write one `.npz`, whole or not at all. Memory-mapped arrays are read into memory one by one.

    Raises:
        ValueError: `path` does not end in `.npz`, its folder can't be written to, or infos or metadata are not JSON.
    """
    target = file_path(path)
    arrays = _compact(fields)
    if kind == OBSERVATION_FORMAT and "action_masks" in arrays:
        arrays["action_masks"] = arrays.pop("action_masks")  # the last member, as in every file of this kind
    infos = None if fields.get("infos") is None else _encode_json("infos", list(fields["infos"]))
    if target.suffix != ".npz":
        raise ValueError(f"path={str(path)!r} must end in .npz.")
    with atomic_file(target) as file:
        written = _write_members(file, kind, fields, arrays, infos, zipfile.ZIP_DEFLATED)
        if is_folded_too_much(written, file.tell()):  # as a reader refuses: a stranger's file may unfold without end
            file.seek(0)
            file.truncate()
            _write_members(file, kind, fields, arrays, infos, zipfile.ZIP_STORED)


def _write_members(
    file: BinaryIO, kind: str, fields: Fields, arrays: Mapping[str, AnyArray], infos: bytes | None, compression: int
) -> int:
    """Write the archive, and return the number of bytes that it unfolds to."""
    described: dict[str, dict[str, str]] = {}
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(_entry(f"{name}.npy", compression), "w", force_zip64=True) as member:
                hasher = _HashingFile(member)
                np.lib.format.write_array(hasher, np.asarray(array), allow_pickle=False)
            described[name] = {"member": f"{name}.npy", "sha256": hasher.sha256.hexdigest()}
        if infos is not None:
            archive.writestr(_entry("infos.json", compression), infos)
            described["infos"] = {"member": "infos.json", "sha256": hashlib.sha256(infos).hexdigest()}
        archive.writestr(_entry("header.json", compression), _make_header(kind, fields, described))
        return sum(info.file_size for info in archive.infolist())


def read_npz(path: str | Path, kind: str = FORMAT) -> dict[str, Any]:
    """Read the fields of a file of `write_npz` into memory.

    Raises:
        DemonstrationsFileError: the file is missing, empty, truncated, damaged, edited, a pickle, of another kind, or a
            newer version's.
    """
    source = file_path(path)
    damaged = refused(source, DemonstrationsFileError, problem="is truncated or damaged")
    with damaged, _opened(source, kind) as file, zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if "header.json" not in names:
            raise DemonstrationsFileError(
                f"{source} is a .npz of something else (it holds {', '.join(names[:8])}): "
                f"read it with np.load and use {BUILDERS[kind]}."
            )
        if archive.getinfo("header.json").file_size > MAX_HEADER_BYTES:
            raise DemonstrationsFileError(f"{source}: header.json is larger than {MAX_HEADER_BYTES} bytes.")
        _check_size(archive, source)
        header = _read_header(archive.read("header.json"), source, kind)
        members = _members(header, names, source)
        arrays = {name: _read_array(archive, entry, source) for name, entry in members.items() if name != "infos"}
        infos = _read_infos(archive, members["infos"], source) if "infos" in members else None
    return _to_fields(header, _expand(arrays, source), infos, source)


def write_folder(path: str | Path, fields: Fields) -> None:
    """Write a folder. The header comes last, so a folder that was cut off while it was written is not read.

    Raises:
        ValueError: the folder can't be written to or holds demonstrations already; there are infos, which have no
            place in a folder; or the metadata are not JSON.
    """
    if fields.get("infos") is not None:
        raise ValueError("infos can't be stored in a folder: set them to None, or save a .npz.")
    folder = check_writable_folder("path", path)
    if (folder / "header.json").exists():
        raise ValueError(f"path={str(path)!r} already holds demonstrations: name another folder.")
    arrays = _named_arrays(fields)
    described = {
        name: {"member": f"{name}.npy", "shape": list(array.shape), "dtype": array.dtype.str}
        for name, array in arrays.items()
    }
    header = _make_header(FORMAT, fields, described)
    for name, array in arrays.items():
        target = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=array.dtype, shape=array.shape)
        for start, stop in chunks(array):
            target[start:stop] = array[start:stop]
        target.flush()
    write_bytes_atomically(folder / "header.json", header)


def read_folder(path: str | Path) -> dict[str, Any]:
    """Open the fields of a folder of `write_folder`: every array is memory-mapped and read-only.

    Raises:
        DemonstrationsFileError: the folder or a file of it is missing, truncated or damaged, another program's or a
            newer version's.
    """
    folder = file_path(path)
    header_file = folder / "header.json"
    if not folder.is_dir():
        raise DemonstrationsFileError(f"{folder} is no folder, or does not exist.")
    if not header_file.is_file():
        kind = "imitation's trajectories: use Demonstrations.from_imitation" if (folder / "state.json").exists() else ""
        raise DemonstrationsFileError(
            f"{folder} has no header.json, so it holds no demonstrations{kind and ', but '}{kind}."
        )
    with refused(folder, DemonstrationsFileError):
        header = _read_header(read_regular(header_file, MAX_HEADER_BYTES), folder, FORMAT)
        arrays = {name: _map_array(folder, name, entry) for name, entry in header["arrays"].items()}
    return _to_fields(header, arrays, None, folder)


def _named_arrays(fields: Fields) -> dict[str, Array]:
    """Every array by the name it is stored under; the parts of a dict are `field.0`, `field.1`, ..."""
    arrays: dict[str, Array] = {"episode_ends": fields["episode_ends"]}
    arrays |= {name: value for name in TRANSITION_FIELDS if (value := fields.get(name)) is not None}
    for name in ("observations", "next_observations"):
        value = fields.get(name)
        if isinstance(value, dict):
            arrays |= {f"{name}.{number}": part for number, part in enumerate(value.values())}
        elif value is not None:
            arrays[name] = value
    return arrays


def _check_size(archive: zipfile.ZipFile, path: Path) -> None:
    """Raise if the members claim more than the file can hold, or fold up far more than real data does."""
    unfolded = sum(info.file_size for info in archive.infolist())
    if len(archive.infolist()) > MAX_MEMBERS:
        raise DemonstrationsFileError(f"{path} has {len(archive.infolist())} members, over {MAX_MEMBERS}.")
    check_unfolded(unfolded, sum(info.compress_size for info in archive.infolist()))
    check_unfolded(unfolded, path.stat().st_size)


def _make_header(kind: str, fields: Fields, described: Mapping[str, Any]) -> bytes:
    """The JSON header; `described` says where each array is stored."""
    observations = fields["observations"]
    header = {
        "format": kind,
        "version": VERSION,
        "rlsmooth": rlsmooth.__version__,
        **{name: space_to_json(fields[name]) for name in ("observation_space", "action_space") if name in fields},
        "observation_keys": list(observations) if isinstance(observations, dict) else None,
        "num_transitions": int(fields["episode_ends"][-1]),
        "num_episodes": len(fields["episode_ends"]),
        "arrays": dict(described),
        "metadata": dict(fields["metadata"]),
    }
    return _encode_json("metadata", header)


def _to_fields(header: Mapping[str, Any], arrays: Mapping[str, AnyArray], infos: Any, path: Path) -> dict[str, Any]:
    """The fields of a header and its arrays: all that are needed and none that is not known."""
    left = dict(arrays)
    fields: dict[str, Any] = {"metadata": header["metadata"]}
    if infos is not None:
        fields["infos"] = infos
    with naming_file(path), budget(sum(array.size for array in arrays.values())):
        keys = decode(list[str] | None, header["observation_keys"], "observation_keys")
        for name in ("observations", "next_observations"):
            if keys is not None and f"{name}.0" in left:
                fields[name] = {key: left.pop(f"{name}.{number}") for number, key in enumerate(keys)}
            elif name in left:
                fields[name] = left.pop(name)
        for name in (*TRANSITION_FIELDS, "episode_ends"):
            if name in left:
                fields[name] = left.pop(name)
        if left:
            raise DemonstrationsFileError(f"{path} holds arrays that are not known: {sorted(left)}.")
        missing = [name for name in NEEDED[header["format"]] if name not in fields]
        if missing:
            raise DemonstrationsFileError(f"{path} lacks {missing}.")
        fields["observation_space"] = space_from_json(header["observation_space"])
        if header["format"] == FORMAT:
            fields["action_space"] = space_from_json(header["action_space"])
    return fields


def _compact(fields: Fields) -> dict[str, AnyArray]:
    """Every array by name, as the `.npz` stores them: see the top of this module."""
    arrays = {name: np.asarray(array) for name, array in _named_arrays(fields).items()}
    for name in ("actions", "groups", "episode_ends"):
        if name in arrays and arrays[name].dtype.kind in "iu":
            low, high = int(arrays[name].min()), int(arrays[name].max())
            arrays[name] = arrays[name].astype(np.result_type(np.min_scalar_type(low), np.min_scalar_type(high)))
    following = {name: array for name, array in arrays.items() if name.startswith("next_observations")}
    final = fields["episode_ends"] - 1
    inner = np.delete(np.arange(final[-1] + 1), final)
    if all(
        np.array_equal(array[inner], arrays[name.removeprefix("next_")][inner + 1]) for name, array in following.items()
    ):
        for name, array in following.items():
            del arrays[name]
            arrays[name.replace("next_observations", FINAL)] = array[final]
    return arrays


def _expand(arrays: dict[str, AnyArray], path: Path) -> dict[str, AnyArray]:
    """Undo what `_compact` did to the next observations."""
    expanded = {}
    for name, array in arrays.items():
        if not name.startswith(FINAL):
            expanded[name] = array
            continue
        with refused(path, DemonstrationsFileError, problem=f"holds {name} that do not fit the observations"):
            following = np.roll(arrays[name.replace(FINAL, "observations")], -1, axis=0)
            following[arrays["episode_ends"].astype(np.int64) - 1] = array
        expanded[name.replace(FINAL, "next_observations")] = following
    return expanded


def _read_header(raw: bytes, path: Path, kind: str) -> dict[str, Any]:
    """Parse and check a header whose `format` is `kind`."""
    with refused(path, DemonstrationsFileError, problem="has a header.json that is damaged"):
        header = parse_json(raw)
    if not isinstance(header, dict) or header.get("format") != kind:
        found = header.get("format") if isinstance(header, dict) else None
        reader = READERS.get(found) if isinstance(found, str) else None
        fix = f" It holds {found}: use {reader}." if reader else ""
        raise DemonstrationsFileError(f"{path}: header.json does not describe {NAMES[kind]} of rlsmooth.{fix}")
    version = header.get("version")
    if type(version) is not int or version < 1:
        raise DemonstrationsFileError(f"{path}: header.json has no sensible format version ({version!r:.50}).")
    if version > VERSION:
        raise DemonstrationsFileError(
            f"{path} was written by a newer rlsmooth ({header.get('rlsmooth')!r:.50}; format {version}, this one reads "
            f"up to {VERSION}): upgrade rlsmooth."
        )
    needed = {"observation_keys", "observation_space", *(("action_space",) if kind == FORMAT else ())}
    if not needed <= set(header):
        raise DemonstrationsFileError(f"{path}: header.json lacks {', '.join(sorted(needed - set(header)))}.")
    if not isinstance(header.get("arrays"), dict) or not isinstance(header.get("metadata"), dict):
        raise DemonstrationsFileError(f"{path}: header.json lacks its list of arrays or its metadata.")
    return header


def _encode_json(name: str, value: Any) -> bytes:
    """Strict JSON (no NaN), with numpy's numbers and arrays as plain numbers and lists. An error names `name`."""
    try:
        return json.dumps(value, default=_plain, allow_nan=False, indent=1).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} can't be written as JSON: {error}.") from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a {type(value).__name__} is no JSON value")


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[BinaryIO]:
    """The file, open at its start, if it begins like a zip."""
    try:
        file = open_regular(path)
    except FileNotFoundError as error:
        raise DemonstrationsFileError(f"{path} does not exist.") from error
    except OSError as error:
        raise DemonstrationsFileError(f"{path} can't be read ({error.strerror}).") from error
    with file:
        start = file.read(8)
        if not start:
            raise DemonstrationsFileError(f"{path} is empty.")
        if start[:1] == b"\x80":
            raise DemonstrationsFileError(f"{path} is a pickle, which can run code when opened: it is not read.")
        if start[:6] == b"\x93NUMPY":
            raise DemonstrationsFileError(f"{path} is one bare .npy array: use {BUILDERS[kind]}.")
        if start[:2] != b"PK":
            raise DemonstrationsFileError(f"{path} is not a .npz file.")
        file.seek(0)
        yield file


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
    infos = parse_json(raw)
    if not isinstance(infos, list):
        raise DemonstrationsFileError(f"{path}: infos.json is no list.")
    return infos


def _check_hash(found: str, entry: Mapping[str, str], path: Path) -> None:
    if found != entry["sha256"]:
        raise DemonstrationsFileError(f"{path}: {entry['member']} is damaged or was edited (its hash is wrong).")


def _entry(name: str, compression: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))  # no clock: the same set gives the same bytes
    entry.compress_type = compression
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


def _map_array(folder: Path, name: str, entry: object) -> AnyArray:
    if not isinstance(entry, dict) or entry.get("member") != f"{name}.npy" or Path(name).name != name:
        raise DemonstrationsFileError(f"{folder}: header.json does not describe {name!r:.80} as save_folder does.")
    file = folder / f"{name}.npy"
    with refused(file, DemonstrationsFileError, problem="is missing, truncated or no plain array"):
        open_regular(file).close()
        array: AnyArray = np.load(file, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.memmap):
            raise ValueError("it is no array")
    if list(array.shape) != entry.get("shape") or array.dtype.str != entry.get("dtype"):
        raise DemonstrationsFileError(
            f"{file} holds {array.dtype.str} {list(array.shape)}, but header.json says "
            f"{entry.get('dtype')} {entry.get('shape')}."
        )
    return array
