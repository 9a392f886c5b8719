"""Files that are either whole or not there. Floor 0: imports no other."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)
"""A full disk, a used-up quota, a disk that fails, a file beyond the limit."""
EXPLAINED = "What was saved before is as it was"


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

    Examples:
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
        with explained_disk_errors(target):
            descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise
        raise ValueError(f"path={str(target)!r} can't be written ({error.strerror}): name another folder.") from error
    try:
        with explained_disk_errors(target):
            yield from _filled(target, descriptor, temporary)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(target.parent)


def _filled(target: Path, descriptor: int, temporary: str) -> Iterator[BinaryIO]:
    with os.fdopen(descriptor, "w+b") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.chmod(temporary, _file_mode(target))
    os.replace(temporary, target)


@contextmanager
def explained_disk_errors(path: Path) -> Iterator[None]:
    """Say which file could not be written, and what to do, if the disk is full or fails inside the `with` block.

    Args:
        path: the file that is written.

    Raises:
        OSError: with the same `errno`, from the system's own.

    Examples:
        >>> try:
        ...     with explained_disk_errors(Path("runs/agent.zip")):
        ...         raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        ... except OSError as error:
        ...     print(error.strerror)
        'runs/agent.zip' could not be written (No space left on device). What was saved before is as it was: free some
        space on the disk of 'runs', then save again, or resume the run.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS or EXPLAINED in str(error):
            raise
        raise OSError(
            error.errno,
            f"{str(path)!r} could not be written ({os.strerror(error.errno)}). {EXPLAINED}: free some space on the "
            f"disk of {str(path.parent)!r}, then save again, or resume the run.",
        ) from error


def write_bytes_atomically(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, or a crash, never sees half of it; see `atomic_file`.

    Raises:
        ValueError: the folder does not exist or can't be written to, or `path` is itself a folder.
        OSError: the disk failed or is full while writing.

    Examples:
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
