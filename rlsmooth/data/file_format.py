"""What the two file forms share: which arrays a set is made of, and the JSON header that describes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import rlsmooth
from rlsmooth.data.arrays import AnyArray, Array
from rlsmooth.data.batch import ROW_FIELDS
from rlsmooth.data.demonstrations import Demonstrations
from rlsmooth.data.space_json import space_from_json, space_to_json

__all__ = [
    "FORMAT",
    "MAX_HEADER_BYTES",
    "OBSERVATION_FORMAT",
    "VERSION",
    "DemonstrationsFileError",
    "build",
    "encode_json",
    "file_path",
    "make_header",
    "named_arrays",
    "read_header",
]

FORMAT = "rlsmooth-demonstrations"
OBSERVATION_FORMAT = "rlsmooth-observations"
NAMES = {FORMAT: "demonstrations", OBSERVATION_FORMAT: "observations without actions"}
READERS = {FORMAT: "Demonstrations.load", OBSERVATION_FORMAT: "ObservationOnly.load"}
VERSION = 1
MAX_HEADER_BYTES = 64 * 2**20


class DemonstrationsFileError(ValueError):
    """A file or folder of demonstrations is missing, damaged, or of another kind; the message names the path."""


def file_path(path: str | Path) -> Path:
    """`path` with `~` expanded."""
    return Path(path).expanduser()


def named_arrays(data: Demonstrations) -> dict[str, Array]:
    """Every array of the set by the name it is stored under; the parts of a dict are `field.0`, `field.1`, ..."""
    arrays: dict[str, Array] = {"episode_ends": data.episode_ends}
    for name in ROW_FIELDS:
        if (value := getattr(data, name)) is not None:
            arrays[name] = value
    for name in ("observations", "next_observations"):
        value = getattr(data, name)
        if isinstance(value, dict):
            arrays |= {f"{name}.{number}": part for number, part in enumerate(value.values())}
        elif value is not None:
            arrays[name] = value
    return arrays


def make_header(data: Demonstrations, arrays: Mapping[str, Any]) -> bytes:
    """The JSON header; `arrays` describes each stored array."""
    return encode_json(
        "metadata",
        {
            "format": FORMAT,
            "version": VERSION,
            "rlsmooth": rlsmooth.__version__,
            "observation_space": space_to_json(data.observation_space),
            "action_space": space_to_json(data.action_space),
            "observation_keys": list(data.observations) if isinstance(data.observations, dict) else None,
            "num_transitions": len(data),
            "num_episodes": data.num_episodes,
            "arrays": dict(arrays),
            "metadata": dict(data.metadata),
        },
    )


def read_header(raw: bytes, path: Path, kind: str = FORMAT) -> dict[str, Any]:
    """Parse and check a header whose `format` is `kind`.

    Raises:
        DemonstrationsFileError: it is no header of ours, or of a newer version.
    """
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DemonstrationsFileError(f"{path}: header.json is damaged ({error}).") from error
    if not isinstance(header, dict) or header.get("format") != kind:
        found = header.get("format") if isinstance(header, dict) else None
        reader = READERS.get(found) if isinstance(found, str) else None
        fix = f" It holds {found}: use {reader}." if reader else ""
        raise DemonstrationsFileError(f"{path}: header.json does not describe {NAMES[kind]} of rlsmooth.{fix}")
    version = header.get("version")
    if not isinstance(version, int) or version < 1:
        raise DemonstrationsFileError(f"{path}: header.json has no sensible format version ({version!r:.50}).")
    if version > VERSION:
        raise DemonstrationsFileError(
            f"{path} was written by a newer rlsmooth ({header.get('rlsmooth')!r:.50}; format {version}, this one reads "
            f"up to {VERSION}): upgrade rlsmooth."
        )
    if not isinstance(header.get("arrays"), dict) or not isinstance(header.get("metadata"), dict):
        raise DemonstrationsFileError(f"{path}: header.json lacks its list of arrays or its metadata.")
    return header


def build(header: Mapping[str, Any], arrays: Mapping[str, AnyArray], infos: Any, path: Path) -> Demonstrations:
    """Put the set together again, which checks all of it.

    Raises:
        DemonstrationsFileError: something is missing, unknown or does not pass the checks.
    """
    left = dict(arrays)
    fields: dict[str, Any] = {"infos": infos, "metadata": header["metadata"]}
    try:
        keys = header["observation_keys"]
        for name in ("observations", "next_observations"):
            if keys is not None and f"{name}.0" in left:
                fields[name] = {key: left.pop(f"{name}.{number}") for number, key in enumerate(keys)}
            elif name in left:
                fields[name] = left.pop(name)
        for name in (*ROW_FIELDS, "episode_ends"):
            if name in left:
                fields[name] = left.pop(name)
        if left:
            raise DemonstrationsFileError(f"{path} holds arrays that are not known: {sorted(left)}.")
        missing = [name for name in ("observations", "actions", "episode_ends") if name not in fields]
        if missing:
            raise DemonstrationsFileError(f"{path} lacks {missing}.")
        return Demonstrations(
            observation_space=space_from_json(header["observation_space"]),
            action_space=space_from_json(header["action_space"]),
            **fields,
        )
    except DemonstrationsFileError:
        raise
    except KeyError as error:
        raise DemonstrationsFileError(f"{path}: header.json or an array lacks {error}.") from error
    except (TypeError, ValueError) as error:
        raise DemonstrationsFileError(f"{path} does not hold valid demonstrations: {error}") from error


def encode_json(name: str, value: Any) -> bytes:
    """Strict JSON (no NaN), with numpy's numbers and arrays as plain numbers and lists.

    Raises:
        ValueError: `value` holds something that JSON can't; the message names `name`.
    """
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
