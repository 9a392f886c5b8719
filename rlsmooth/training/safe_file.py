"""Files that hold tensors and plain data, and no code: a zip of `config.json` and `*.safetensors`.

Loading never unpickles and never imports a name that the file gives, so a file from a stranger can't run code. Every
member has its sha256 in `config.json`, and the whole archive's is in its comment. The hashes find damage (a bad disk,
half a download), not forgery: whoever changes a file on purpose can write new hashes too.

`tree_to_json` and `encode_smoothing` bring into that form what JSON can't hold as it is.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import platform
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import safetensors.torch
import torch
from torch import Tensor

from rlsmooth.atomic import write_bytes_atomically
from rlsmooth.checks import check_positive_int
from rlsmooth.targets import Smoothing
from rlsmooth.untrusted import decode, open_regular, parse_json, refused

CONFIG_MEMBER = "config.json"
MAX_CONFIG_BYTES = 64 * 2**20
MAX_HEADER_BYTES = 16 * 2**20
"""Of a safetensors member: 100,000 tensors need about as much."""
GROUP_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-]{0,99}")
TENSOR_MEMBER = re.compile(rf"(?P<group>{GROUP_NAME.pattern})\.safetensors")
LIBRARIES = ("rlsmooth", "torch", "numpy", "gymnasium", "stable_baselines3", "safetensors")
HEAD = {
    "format": str,
    "format_version": int,
    "versions": dict[str, str],
    "members": dict[str, Any],
    "aliases": dict[str, Any],
    "config": dict[str, Any],
}
MAX_MEMBERS = 64
COMMENT_PREFIX = b"sha256:"
DIGEST_LENGTH = 64
END_RECORD = b"PK\x05\x06"
END_RECORD_LENGTH = 22
MAX_END_LENGTH = END_RECORD_LENGTH + 2**16
TUPLE, DICT, TENSOR = "__tuple__", "__dict__", "__tensor__"


class SafeFileError(ValueError):
    """A file that can't be read safely and whole; the message names the path, what is wrong, and what to do."""


@dataclass(frozen=True, kw_only=True)
class SafeFile:
    """The content of a file, read and checked.

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

    Examples:
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
    config_name: str = "config",
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
        config_name: what errors call `config`; "": its keys alone.

    Raises:
        TypeError: something in `config` is not JSON-able, or a value in `tensors` is not a dense tensor.
        ValueError: a group's name has other characters, a tensor is called `__metadata__`, `format_version` is under 1,
            or the folder is missing or can't be written to.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.zip"
        >>> write_safe_file(path, {"n": 3}, tensors={"net": {"w": torch.ones(2)}}, format_name="demo", format_version=1)
        >>> file = read_safe_file(path, format_name="demo", format_version=1)
        >>> file.config, file.tensors["net"]["w"]
        ({'n': 3}, tensor([1., 1.]))
    """
    check_positive_int("format_version", format_version)
    check_json(dict(config), config_name)
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
    write_bytes_atomically(path, _pack_zip({CONFIG_MEMBER: json.dumps(head, indent=1).encode(), **payloads}))


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
    with refused(path, SafeFileError), _opened(path) as file:
        members = _unpack_zip(path, file, required=CONFIG_MEMBER, allowed=TENSOR_MEMBER)
        head = _read_head(path, members.pop(CONFIG_MEMBER), format_name, format_version)
        _check_hashes(path, members, head["members"])
        tensors: dict[str, dict[str, Tensor]] = {}
        for name, payload in members.items():
            group = name.removesuffix(".safetensors")
            tensors[group] = _tensors_from_bytes(path, name, payload)
    for group, named in tensors.items():
        tensors[group] = {name: tensor.to(device) for name, tensor in named.items()}
        tensors[group] |= _aliased(path, group, tensors[group], head["aliases"].get(group, {}))
    return SafeFile(
        config=head["config"], tensors=tensors, versions=head["versions"], format_version=head["format_version"]
    )


def check_json(value: object, where: str) -> None:
    """Raise TypeError, with the place in `value`, unless a safe file's config can hold it.

    Args:
        value: anything.
        where: what the message calls it; "": of a dict, the keys alone.

    Examples:
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
            check_json(item, f"{where}[{key!r}]" if where else key)
    else:
        raise TypeError(
            f"{where} is a {type(value).__name__}, which JSON can't hold: convert it to a number, a string, a list or "
            "a dict, or pass it among the tensors."
        )


# ---- writing the members


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


@functools.cache  # the installed packages' descriptions are read once, and not for each checkpoint
def _library_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    return versions


# ---- reading the members


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        file = open_regular(path)
    except FileNotFoundError as error:
        raise _fault(path, "does not exist", "Check the path.") from error
    except OSError as error:
        raise _fault(path, f"can't be read ({error.strerror})", "Name a file that you may read.") from error
    with file:
        yield file


def _read_head(path: Path, payload: bytes, format_name: str, format_version: int) -> dict[str, Any]:
    ours = "Name a file that rlsmooth saved."
    if len(payload) > MAX_CONFIG_BYTES:
        raise _fault(path, f"has a {CONFIG_MEMBER} of over {MAX_CONFIG_BYTES} bytes", ours)
    with refused(path, SafeFileError, problem=f"has a {CONFIG_MEMBER} that is not JSON"):
        head: dict[str, Any] = parse_json(payload)
    for key, kind in HEAD.items():
        with refused(path, SafeFileError, ours, f"has a {CONFIG_MEMBER} without {key!r}"):
            decode(kind, head[key], key)
    if head["format"] != format_name:
        raise _fault(path, f"is a {head['format']!r} file, not {format_name!r}", "Load it with what saved it.")
    if head["format_version"] > format_version:
        raise _fault(
            path,
            f"has format version {head['format_version']}, newer than {format_version}, the newest known here "
            f"(written by rlsmooth {head['versions'].get('rlsmooth', '?')})",
            "Upgrade rlsmooth.",
        )
    if head["format_version"] < 1:
        raise _fault(path, f"has format version {head['format_version']}", ours)
    return head


def _check_hashes(path: Path, members: Mapping[str, bytes], hashes: Mapping[str, Any]) -> None:
    for name in sorted(members.keys() - hashes.keys()):
        raise _fault(path, f"has the member {name!r}, which its {CONFIG_MEMBER} does not list", "Use another copy.")
    for name in sorted(hashes.keys() - members.keys()):
        raise _fault(path, f"lacks its member {name!r}", "Use another copy.")
    for name, payload in members.items():
        if hashlib.sha256(payload).hexdigest() != hashes[name]:
            raise _fault(path, f"is damaged: {name} does not match its sha256", "Use another copy.")


def _tensors_from_bytes(path: Path, name: str, payload: bytes) -> dict[str, Tensor]:
    with refused(path, SafeFileError, problem=f"is damaged: {name} is not in safetensors form"):
        length = int.from_bytes(payload[:8], "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"{name} says that its header has {length} bytes")
        header = parse_json(payload[8 : 8 + length])
        if not isinstance(header, dict):
            raise ValueError(f"the header of {name} is no object")
        loaded = safetensors.torch.load(payload)
    # A copy: what safetensors gives may view the read-only bytes.
    return {key: tensor.clone() for key, tensor in loaded.items()}


def _aliased(path: Path, group: str, tensors: Mapping[str, Tensor], aliases: Any) -> dict[str, Tensor]:
    if not isinstance(aliases, dict) or not all(
        isinstance(first, str) and first in tensors and name not in tensors for name, first in aliases.items()
    ):
        raise _fault(path, f"gives second names to tensors that {group!r} does not have", "Use another copy.")
    return {name: tensors[first] for name, first in aliases.items()}


# ---- the archive: named members in an uncompressed zip, checked before anything in it is believed


def _fault(path: Path, problem: str, fix: str) -> SafeFileError:
    """The error for `path`, to be raised: "'agent.zip' is damaged. Use another copy."."""
    return SafeFileError(f"{str(path)!r} {problem}. {fix}")


def _pack_zip(members: Mapping[str, bytes]) -> bytes:
    """The members as an uncompressed zip; the same members give the same bytes.

    The comment holds the sha256 of all that comes before it, which finds flips in the archive's own bookkeeping too.
    """
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = COMMENT_PREFIX + b"0" * DIGEST_LENGTH
        for name, payload in members.items():
            archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), payload)
    with buffer.getbuffer() as data:
        data[-DIGEST_LENGTH:] = _digest(data)
    return buffer.getvalue()


def _unpack_zip(path: Path, file: BinaryIO, *, required: str, allowed: re.Pattern[str]) -> dict[str, bytes]:
    """The members of the zip in `file`, in its order.

    An archive that another tool packed again, uncompressed, is read too: it has no comment to compare.

    Args:
        path: what errors call the file.
        file: open for reading.
        required: the member that must be there.
        allowed: what every other member's name must match in full. It must leave no room for a path.

    Raises:
        SafeFileError: the file is no zip, a pickle, cut short or damaged; a member is compressed, encrypted, missing,
            there twice, or not allowed; or the members declare more bytes than there are.
    """
    _check_start(path, file.read(2))
    with refused(path, SafeFileError, "Use another copy, or save it again.", "is damaged or cut short"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with zipfile.ZipFile(file) as archive:  # reads the list of members alone
                _check_origin(path, archive.namelist())
                size = file.seek(0, 2)
                _check_members(path, archive.infolist(), size, required, allowed)
                members = {name: archive.read(name) for name in archive.namelist()}
                comment = archive.comment
        _check_end(path, file, size, comment)
    return members


def _check_end(path: Path, file: BinaryIO, size: int, comment: bytes) -> None:
    # zipfile overlooks trailing bytes, and a comment shorter than declared.
    file.seek(max(0, size - MAX_END_LENGTH))
    tail = file.read()
    end = tail.rfind(END_RECORD) + END_RECORD_LENGTH
    declared = int.from_bytes(tail[end - 2 : end], "little")
    if end + declared != len(tail) or declared != len(comment):
        raise _fault(path, "is damaged or cut short: it does not end where it says", "Use another copy.")
    if comment != b"" and comment != COMMENT_PREFIX + _digest_of(file, size):
        raise _fault(path, "is damaged: it does not match its own sha256", "Use another copy.")


def _digest(data: memoryview) -> bytes:
    """Of all but the digest's own place at the end."""
    return hashlib.sha256(data[:-DIGEST_LENGTH]).hexdigest().encode()


def _digest_of(file: BinaryIO, size: int) -> bytes:
    """The same of a file, in pieces."""
    file.seek(0)
    found, left = hashlib.sha256(), size - DIGEST_LENGTH
    while left > 0 and (piece := file.read(min(left, 2**20))):
        found.update(piece)
        left -= len(piece)
    return found.hexdigest().encode()


def _check_start(path: Path, start: bytes) -> None:
    if not start:
        raise _fault(path, "is empty", "Use another copy, or save it again.")
    if start.startswith(b"\x80"):
        raise _fault(path, "is a pickle, which can run code when loaded", "Save the agent with rlsmooth instead.")
    if start != b"PK":
        raise _fault(path, "is not a zip archive", "Name a file that rlsmooth saved.")


def _check_origin(path: Path, names: list[str]) -> None:
    if {"policy.pth", "pytorch_variables.pth", "_stable_baselines3_version"} & set(names):
        raise _fault(
            path,
            "is Stable-Baselines3's own zip, which holds pickles",
            "Load it with Stable-Baselines3 (for example PPO.load), if you trust whoever made it.",
        )
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        raise _fault(path, "is a torch.save file, which holds pickles", "Save the agent with rlsmooth instead.")


def _check_members(
    path: Path, infos: list[zipfile.ZipInfo], num_bytes: int, required: str, allowed: re.Pattern[str]
) -> None:
    ours = "Name a file that rlsmooth saved."
    if len(infos) > MAX_MEMBERS:
        raise _fault(path, f"has {len(infos)} members, more than {MAX_MEMBERS}", ours)
    seen: set[str] = set()
    for info in infos:
        name = info.filename
        if name in seen:
            raise _fault(path, f"has the member {name!r} twice", "Use another copy.")
        seen.add(name)
        if name != required and not allowed.fullmatch(name):
            raise _fault(path, f"has the member {name!r}, which does not belong there", ours)
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1:
            raise _fault(path, f"has the compressed or encrypted member {name!r}", "Pack it again with `zip -0`.")
    if required not in seen:
        raise _fault(path, f"has no {required}", ours)
    # Members that overlap, or claim more than there is, are how a small file poses as a large one.
    if sum(max(info.file_size, info.compress_size) for info in infos) > num_bytes:
        raise _fault(path, "declares more bytes than it has", "Use another copy.")


# ---- nested Python values as JSON and named tensors, exactly: tuples stay tuples and int keys stay ints


def tree_to_json(tree: object, name: str = "tree") -> tuple[Any, dict[str, Tensor]]:
    """Split a nested value into JSON and the tensors in it.

    None, bool, int, float, str, lists and dicts with str keys are themselves in JSON. The rest is tagged: a tuple is
    `{"__tuple__": [...]}`, a dict with other keys `{"__dict__": [[key, value], ...]}`, a tensor `{"__tensor__": name}`.

    Args:
        tree: the value.
        name: what the tensors' names start with, and what errors call the value.

    Returns:
        The JSON, and the tensors by their names `<name>.<key>.<key>...`, not copied.

    Raises:
        TypeError: there is a value of another type in it; the message says where.

    Examples:
        >>> tree_to_json({"betas": (0.9, 0.999), "eps": 1e-8})
        ({'betas': {'__tuple__': [0.9, 0.999]}, 'eps': 1e-08}, {})
    """
    tensors: dict[str, Tensor] = {}
    return _tree_encode(tree, name, tensors), tensors


def tree_from_json(encoded: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Give back the value that `tree_to_json` split; the tensors are used as they are, not copied.

    Raises:
        ValueError: the JSON names a tensor that is not there, or a tag is malformed.

    Examples:
        >>> tree_from_json({"betas": {"__tuple__": [0.9, 0.999]}}, {})
        {'betas': (0.9, 0.999)}
    """
    if isinstance(encoded, list):
        return [tree_from_json(item, tensors) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded
    if len(encoded) == 1:
        [(tag, content)] = encoded.items()
        if tag == TENSOR:
            if not isinstance(content, str) or content not in tensors:
                raise ValueError(f"there is no tensor named {content!r}: the file is incomplete, use another copy.")
            return tensors[content]
        if tag == TUPLE and isinstance(content, list):
            return tuple(tree_from_json(item, tensors) for item in content)
        if tag == DICT and isinstance(content, list):
            return dict(_tree_decode_pair(pair, tensors) for pair in content)
        if tag in (TUPLE, DICT):
            raise ValueError(f"{tag!r} must hold a list, got {type(content).__name__}: the file is malformed.")
    return {key: tree_from_json(item, tensors) for key, item in encoded.items()}


def _tree_encode(value: object, name: str, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        if name in tensors:
            raise TypeError(f"two tensors would both be called {name!r}: rename a key.")
        tensors[name] = value
        return {TENSOR: name}
    if isinstance(value, tuple):
        return {TUPLE: [_tree_encode(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]}
    if isinstance(value, list):
        return [_tree_encode(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        pairs = [(key, _tree_encode(item, f"{name}.{key}", tensors)) for key, item in value.items()]
        if all(isinstance(key, str) and key not in (TUPLE, DICT, TENSOR) for key, _ in pairs):
            return dict(pairs)
        for key, _ in pairs:
            if not isinstance(key, (str, int)):
                raise TypeError(f"{name} has the key {key!r} of type {type(key).__name__}: keys must be str or int.")
        return {DICT: [[key, item] for key, item in pairs]}
    raise TypeError(
        f"{name} is a {type(value).__name__}: only None, numbers, strings, tensors, lists, tuples and dicts are kept."
    )


def _tree_decode_pair(pair: Any, tensors: Mapping[str, Tensor]) -> tuple[str | int, Any]:
    if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], (str, int))):
        raise ValueError(f"{DICT!r} must hold [key, value] pairs, got {pair!r}: the file is malformed.")
    return pair[0], tree_from_json(pair[1], tensors)


# ---- smoothing recipes as JSON


class Recipe(TypedDict):
    """A `Smoothing` of a file."""

    recipe: dict[str, Any]
    is_function: bool


def encode_smoothing(recipes: Iterable[Smoothing] | None) -> list[dict[str, Any]] | None:
    """JSON of some recipes; a callable alpha, which no file can hold, becomes None there."""
    if recipes is None:
        return None
    encoded = []
    for recipe in recipes:
        is_function = callable(recipe.alpha)
        kept = dataclasses.replace(recipe, alpha=0.0) if is_function else recipe
        encoded.append({"recipe": kept.to_config(), "is_function": is_function})
    return encoded


def decode_smoothing(encoded: Any, name: str, path: Path) -> list[Smoothing] | None:
    """The recipes that `encode_smoothing` wrote.

    Raises:
        SafeFileError: it is malformed.
    """
    if encoded is None:
        return None
    with refused(path, SafeFileError, problem=f"has a malformed {name}"):
        recipes = [Smoothing.from_config(entry["recipe"]) for entry in decode(list[Recipe], encoded, name)]
    if not recipes:
        raise SafeFileError(f"{str(path)!r} has an empty {name}. Use another copy.")
    return recipes
