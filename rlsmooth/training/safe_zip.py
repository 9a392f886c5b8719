"""The archive of a safe file: named members in an uncompressed zip, checked before anything in it is believed."""

from __future__ import annotations

import hashlib
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import TypeVar

__all__ = ["SafeFileError", "fault", "pack_zip", "unpack_zip"]

T = TypeVar("T")

MAX_MEMBERS = 64
COMMENT_PREFIX = b"sha256:"
DIGEST_LENGTH = 64
END_RECORD = b"PK\x05\x06"
END_RECORD_LENGTH = 22


class SafeFileError(ValueError):
    """A file that can't be read safely and whole; the message names the path, what is wrong, and what to do."""


def fault(path: Path, problem: str, fix: str) -> SafeFileError:
    """The error for `path`, to be raised: "'agent.zip' is damaged. Use another copy."."""
    return SafeFileError(f"{str(path)!r} {problem}. {fix}")


def pack_zip(members: Mapping[str, bytes]) -> bytes:
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


def unpack_zip(path: Path, data: bytes, *, required: str, allowed: re.Pattern[str]) -> dict[str, bytes]:
    """The members of the zip in `data`, in its order.

    An archive that another tool packed again, uncompressed, is read too: it has no comment to compare.

    Args:
        path: what errors call the file.
        data: the file's bytes.
        required: the member that must be there.
        allowed: what every other member's name must match in full. It must leave no room for a path.

    Raises:
        SafeFileError: the data are no zip, a pickle, cut short or damaged; a member is compressed, encrypted, missing,
            there twice, or not allowed; or the members declare more bytes than there are.
    """
    archive = _open(path, data)
    _check_members(path, archive.infolist(), len(data), required, allowed)
    members = _guard(path, lambda: {name: archive.read(name) for name in archive.namelist()})
    # zipfile overlooks bytes after the end, and a comment shorter than declared.
    end = data.rfind(END_RECORD) + END_RECORD_LENGTH
    declared = int.from_bytes(data[end - 2 : end], "little")
    if end + declared != len(data) or declared != len(archive.comment):
        raise fault(path, "is damaged or cut short: it does not end where it says", "Use another copy.")
    if archive.comment not in (b"", COMMENT_PREFIX + _digest(memoryview(data))):
        raise fault(path, "is damaged: it does not match its own sha256", "Use another copy.")
    return members


def _digest(data: memoryview) -> bytes:
    """Of all but the digest's own place at the end."""
    return hashlib.sha256(data[:-DIGEST_LENGTH]).hexdigest().encode()


def _open(path: Path, data: bytes) -> zipfile.ZipFile:
    if not data:
        raise fault(path, "is empty", "Use another copy, or save it again.")
    if data.startswith(b"\x80"):
        raise fault(path, "is a pickle, which can run code when loaded", "Save the agent with rlsmooth instead.")
    if not data.startswith(b"PK"):
        raise fault(path, "is not a zip archive", "Name a file that rlsmooth saved.")
    archive = _guard(path, lambda: zipfile.ZipFile(BytesIO(data)))
    names = archive.namelist()
    if {"policy.pth", "pytorch_variables.pth", "_stable_baselines3_version"} & set(names):
        raise fault(
            path,
            "is Stable-Baselines3's own zip, which holds pickles",
            "Load it with Stable-Baselines3 (for example PPO.load), if you trust whoever made it.",
        )
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        raise fault(path, "is a torch.save file, which holds pickles", "Save the agent with rlsmooth instead.")
    return archive


def _guard(path: Path, call: Callable[[], T]) -> T:
    # zipfile raises a dozen kinds of exception on bytes that are no proper zip (BadZipFile, EOFError, struct.error,
    # NotImplementedError, OverflowError, ...); to the user they are all the same fault.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()
    except Exception as error:
        raise fault(path, f"is damaged or cut short ({error})", "Use another copy, or save it again.") from error


def _check_members(
    path: Path, infos: list[zipfile.ZipInfo], num_bytes: int, required: str, allowed: re.Pattern[str]
) -> None:
    ours = "Name a file that rlsmooth saved."
    if len(infos) > MAX_MEMBERS:
        raise fault(path, f"has {len(infos)} members, more than {MAX_MEMBERS}", ours)
    seen: set[str] = set()
    for info in infos:
        name = info.filename
        if name in seen:
            raise fault(path, f"has the member {name!r} twice", "Use another copy.")
        seen.add(name)
        if name != required and not allowed.fullmatch(name):
            raise fault(path, f"has the member {name!r}, which does not belong there", ours)
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1:
            raise fault(path, f"has the compressed or encrypted member {name!r}", "Pack it again with `zip -0`.")
    if required not in seen:
        raise fault(path, f"has no {required}", ours)
    # Members that overlap, or claim more than there is, are how a small file poses as a large one.
    if sum(max(info.file_size, info.compress_size) for info in infos) > num_bytes:
        raise fault(path, "declares more bytes than it has", "Use another copy.")
