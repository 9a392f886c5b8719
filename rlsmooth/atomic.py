"""Files that are either whole or not there. Floor 0: imports nothing of ours."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for binary writing that takes the place of `path` only when the block ends well.

    What is written goes to a temporary file in the same folder, is flushed to the disk, and then renamed over `path`
    in one step (`os.replace`). Whoever reads `path` at any moment, after a power cut too, sees the whole old file or
    the whole new one. If the block raises, the temporary file goes and `path` is as it was.

    Args:
        path: the file to write; its folder must exist.

    Yields:
        A seekable binary file object, open for writing and reading.

    Raises:
        ValueError: the folder does not exist or can't be written to, or `path` is itself a folder.
        OSError: the disk failed or is full while writing.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with atomic_file(folder / "note.txt") as file:
        ...     _ = file.write(b"whole")
        >>> (folder / "note.txt").read_bytes()
        b'whole'
    """
    target = Path(path).expanduser()
    if target.is_dir():
        raise ValueError(f"path={str(target)!r} is a folder: name a file.")
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    except OSError as error:
        raise ValueError(f"path={str(target)!r} can't be written ({error.strerror}): name another folder.") from error
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _file_mode(target))
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(target.parent)


def write_bytes_atomically(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, or a crash, never sees half of it; see `atomic_file`.

    Raises:
        ValueError: the folder does not exist or can't be written to, or `path` is itself a folder.
        OSError: the disk failed or is full while writing.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.bin"
        >>> write_bytes_atomically(path, b"123")
        >>> path.read_bytes()
        b'123'
    """
    with atomic_file(path) as file:
        file.write(data)


def _file_mode(target: Path) -> int:
    """The mode an ordinary `open` would give: the replaced file's, else 0o666 less the umask (mkstemp makes 0o600)."""
    try:
        return target.stat().st_mode & 0o777
    except OSError:
        # Reading the umask means setting it; both calls are immediate, and there is no other portable way.
        umask = os.umask(0)
        os.umask(umask)
        return 0o666 & ~umask


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system can open folders (not on Windows)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
