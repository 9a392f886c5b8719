"""Files that hold tensors and plain data, and no code: a zip of `config.json` and `*.safetensors`.

Loading never unpickles and never imports a name that the file gives, so a file from a stranger can't run code. Every
member has its sha256 in `config.json`, and the whole archive's is in its comment. The hashes find damage (a bad disk,
half a download), not forgery: whoever changes a file on purpose can write new hashes too.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from rlsmooth.atomic import write_bytes_atomically
from rlsmooth.checks import check_positive_int
from rlsmooth.training.safe_zip import SafeFileError, fault, pack_zip, unpack_zip

__all__ = ["SafeFile", "SafeFileError", "check_json", "read_safe_file", "with_zip_suffix", "write_safe_file"]

CONFIG_MEMBER = "config.json"
MAX_CONFIG_BYTES = 64 * 2**20
GROUP_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-]{0,99}")
TENSOR_MEMBER = re.compile(rf"(?P<group>{GROUP_NAME.pattern})\.safetensors")
LIBRARIES = ("rlsmooth", "torch", "numpy", "gymnasium", "stable_baselines3", "safetensors")
HEAD_KEYS = {"format": str, "format_version": int, "versions": dict, "members": dict, "aliases": dict, "config": dict}


@dataclass(frozen=True, kw_only=True)
class SafeFile:
    """What a file held, read and checked.

    Attributes:
        config: the plain data that the writer gave (tuples have become lists).
        tensors: group name to tensor name to tensor, on the device asked for.
        versions: version of Python and of each library that wrote the file; for messages, nothing depends on them.
        format_version: the version that the file was written in, 1 up to the reader's.
    """

    config: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]
    versions: dict[str, str]
    format_version: int


def with_zip_suffix(path: str | Path) -> Path:
    """The path, its `~` expanded, with `.zip` added to a name without a suffix.

    Example:
        >>> with_zip_suffix("runs/agent").name, with_zip_suffix("runs/agent.old").name
        ('agent.zip', 'agent.old')
    """
    path = Path(path).expanduser()
    return path if path.suffix else path.with_name(f"{path.name}.zip")


def write_safe_file(
    path: str | Path,
    config: Mapping[str, Any],
    *,
    tensors: Mapping[str, Mapping[str, Tensor]],
    format_name: str,
    format_version: int,
) -> None:
    """Write `config` and `tensors` to `path`, whole or not at all (see `rlsmooth.atomic`).

    Args:
        path: the file; its folder must exist.
        config: JSON-able: None, bool, int, float (inf and NaN too, as Python's json spells them), str, list, tuple
            (read back as a list) and dict with str keys, nested at will.
        tensors: group name (letters, digits, `_`, `-`) to tensor name to tensor; each group becomes
            `<group>.safetensors`. Any dtype that safetensors knows (bool, int8 to int64, uint8, float16, bfloat16,
            float32, float64, ...), any shape, 0-dim and empty ones included, any device. Views are written in full, as
            values; the same tensor under two names of a group is written once.
        format_name: what kind of file this is, for example `"rlsmooth-agent"`; the reader asks for the same one.
        format_version: 1 or more; raised when an older reader could no longer read the file.

    Raises:
        TypeError: something in `config` is not JSON-able, or a value in `tensors` is not a dense tensor.
        ValueError: a group's name has other characters, a tensor is called `__metadata__`, `format_version` is under 1,
            or the folder is missing or can't be written to.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.zip"
        >>> write_safe_file(path, {"n": 3}, tensors={"net": {"w": torch.ones(2)}}, format_name="demo", format_version=1)
        >>> file = read_safe_file(path, format_name="demo", format_version=1)
        >>> file.config, file.tensors["net"]["w"]
        ({'n': 3}, tensor([1., 1.]))
    """
    check_positive_int("format_version", format_version)
    check_json(dict(config), "config")
    payloads: dict[str, bytes] = {}
    aliases: dict[str, dict[str, str]] = {}
    for group, named in tensors.items():
        if not GROUP_NAME.fullmatch(group):
            raise ValueError(f"tensors has the group {group!r}: use 1 to 100 letters, digits, '_' or '-'.")
        aliases[group] = _aliases(group, named)
        unique = {name: tensor for name, tensor in named.items() if name not in aliases[group]}
        payloads[f"{group}.safetensors"] = _tensors_to_bytes(group, unique)
    head = {
        "format": format_name,
        "format_version": format_version,
        "versions": _library_versions(),
        "members": {name: hashlib.sha256(payload).hexdigest() for name, payload in payloads.items()},
        "aliases": {group: names for group, names in aliases.items() if names},
        "config": dict(config),
    }
    write_bytes_atomically(path, pack_zip({CONFIG_MEMBER: json.dumps(head, indent=1).encode(), **payloads}))


def read_safe_file(
    path: str | Path,
    *,
    format_name: str,
    format_version: int,
    device: torch.device | str = "cpu",
) -> SafeFile:
    """Read and check a file that `write_safe_file` wrote. Never unpickles, never imports.

    Only uncompressed archives are read, so that a small file can't unfold into a large one.

    Args:
        path: the file.
        format_name: the kind of file wanted; another kind is an error.
        format_version: the newest version that the caller understands; older ones are read too: the result says which.
        device: where the tensors go.

    Raises:
        SafeFileError: the file is missing, is no such file (a pickle, Stable-Baselines3's own zip, another zip), is cut
            short or damaged, has a member too many, too few, twice or with a path in its name, is compressed or
            declares more bytes than it has, is of another kind, or is newer than the caller.
    """
    path = Path(path).expanduser()
    members = unpack_zip(path, _read_bytes(path), required=CONFIG_MEMBER, allowed=TENSOR_MEMBER)
    head = _read_head(path, members.pop(CONFIG_MEMBER), format_name, format_version)
    _check_hashes(path, members, head["members"])
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, payload in members.items():
        group = name.removesuffix(".safetensors")
        tensors[group] = _tensors_from_bytes(path, name, payload, device)
        tensors[group] |= _aliased(path, group, tensors[group], head["aliases"].get(group, {}))
    return SafeFile(
        config=head["config"],
        tensors=tensors,
        versions={library: str(number) for library, number in head["versions"].items()},
        format_version=head["format_version"],
    )


def check_json(value: object, where: str) -> None:
    """Raise TypeError, with the place in `value` (which is called `where`), unless a safe file's config can hold it.

    Example:
        >>> check_json({"a": [1, {"b": None}]}, "config")
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            check_json(item, f"{where}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r} of type {type(key).__name__}: JSON keys must be strings.")
            check_json(item, f"{where}[{key!r}]")
    else:
        raise TypeError(
            f"{where} is a {type(value).__name__}, which JSON can't hold: convert it to a number, a string, a list or "
            "a dict, or pass it among the tensors."
        )


# ---- writing


def _aliases(group: str, named: Mapping[str, Tensor]) -> dict[str, str]:
    """Name to the earlier name of the same tensor: SB3's policies have their shared features extractor three times."""
    first: dict[tuple[object, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"tensors[{group!r}][{name!r}] is a {type(tensor).__name__}: pass a torch.Tensor.")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise TypeError(f"tensors[{group!r}][{name!r}] is sparse, quantized or meta: pass a dense tensor.")
        if name == "__metadata__":
            raise ValueError(f"tensors[{group!r}] has the name '__metadata__', which safetensors keeps for itself.")
        if tensor.numel() == 0:
            continue
        bits = (tensor.dtype, tensor.is_conj(), tensor.is_neg())
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), *bits)
        if place in first:
            aliases[name] = first[place]
        else:
            first[place] = name
    return aliases


def _tensors_to_bytes(group: str, named: Mapping[str, Tensor]) -> bytes:
    # safetensors refuses storage that two tensors share in part; a copy each is right: a file holds values.
    copies = {
        name: tensor.detach().resolve_conj().resolve_neg().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in named.items()
    }
    try:
        return safetensors.torch.save(copies)
    except (KeyError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise TypeError(f"tensors[{group!r}] has a dtype that safetensors can't hold ({error}): convert it.") from error


def _library_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    return versions


# ---- reading


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise fault(path, "does not exist", "Check the path.") from error
    except OSError as error:
        raise fault(path, f"can't be read ({error.strerror})", "Name a file that you may read.") from error


def _read_head(path: Path, payload: bytes, format_name: str, format_version: int) -> dict[str, Any]:
    ours = "Name a file that rlsmooth saved."
    if len(payload) > MAX_CONFIG_BYTES:
        raise fault(path, f"has a {CONFIG_MEMBER} of over {MAX_CONFIG_BYTES} bytes", ours)
    try:
        head: dict[str, Any] = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise fault(path, f"has a {CONFIG_MEMBER} that is not JSON ({error})", "Use another copy.") from error
    for key, kind in HEAD_KEYS.items():
        if not isinstance(head, dict) or type(head.get(key)) is not kind:
            raise fault(path, f"has a {CONFIG_MEMBER} without {key!r}, a {kind.__name__}", ours)
    if head["format"] != format_name:
        raise fault(path, f"is a {head['format']!r} file, not {format_name!r}", "Load it with what saved it.")
    if head["format_version"] > format_version:
        raise fault(
            path,
            f"has format version {head['format_version']}, newer than {format_version}, the newest known here "
            f"(written by rlsmooth {head['versions'].get('rlsmooth', '?')})",
            "Upgrade rlsmooth.",
        )
    if head["format_version"] < 1:
        raise fault(path, f"has format version {head['format_version']}", ours)
    return head


def _check_hashes(path: Path, members: Mapping[str, bytes], hashes: Mapping[str, Any]) -> None:
    for name in sorted(members.keys() - hashes.keys()):
        raise fault(path, f"has the member {name!r}, which its {CONFIG_MEMBER} does not list", "Use another copy.")
    for name in sorted(hashes.keys() - members.keys()):
        raise fault(path, f"lacks its member {name!r}", "Use another copy.")
    for name, payload in members.items():
        if hashlib.sha256(payload).hexdigest() != hashes[name]:
            raise fault(path, f"is damaged: {name} does not match its sha256", "Use another copy.")


def _tensors_from_bytes(path: Path, name: str, payload: bytes, device: torch.device | str) -> dict[str, Tensor]:
    # The header is the file's to fill: SafetensorError, KeyError (dtype) and RuntimeError (shape) can come of it.
    try:
        loaded = safetensors.torch.load(payload)
    except Exception as error:
        raise fault(path, f"is damaged: {name} is not in safetensors form ({error})", "Use another copy.") from error
    # A copy: what safetensors gives may view the read-only bytes.
    return {key: tensor.clone().to(device) for key, tensor in loaded.items()}


def _aliased(path: Path, group: str, tensors: Mapping[str, Tensor], aliases: Any) -> dict[str, Tensor]:
    if not isinstance(aliases, dict) or not all(
        isinstance(first, str) and first in tensors and name not in tensors for name, first in aliases.items()
    ):
        raise fault(path, f"gives second names to tensors that {group!r} does not have", "Use another copy.")
    return {name: tensors[first] for name, first in aliases.items()}
