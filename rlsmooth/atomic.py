"""Files that are either whole or not there, and folders that one process at a time uses. Floor 0: imports no other."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)
"""A full disk, a used-up quota, a disk that fails, a file beyond the limit."""
EXPLAINED = "What was saved before is as it was"
_LOCKED: dict[Path, int] = {}
"""The folders that this process has reserved, with their descriptors."""


def _forget_locks() -> None:
    """In a process that was forked: the folders are the parent's, and free when that ends, however long this lives."""
    for descriptor in _LOCKED.values():
        os.close(descriptor)
    _LOCKED.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


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

    Example:
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

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.bin"
        >>> write_bytes_atomically(path, b"123")
        >>> path.read_bytes()
        b'123'
    """
    with atomic_file(path) as file:
        file.write(data)


def lock_folder(folder: str | Path) -> bool:
    """Reserve a folder for this process, until `unlock_folder` or its end, however it ends.

    Nothing is written. Where the system has no such locks (Windows, some network drives), nothing is checked.

    Returns:
        Whether this call reserved it: False if this process had done so before, or can't.

    Raises:
        ValueError: another process has reserved it.

    Example:
        >>> folder = tempfile.mkdtemp()
        >>> lock_folder(folder), lock_folder(folder)  # this process may do so again
        (True, False)
        >>> unlock_folder(folder)
    """
    path = Path(folder).expanduser().resolve()
    if fcntl is None or path in _LOCKED or not path.is_dir():
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ValueError(
            f"another process is training in {str(folder)!r}: wait until it ends, or end it, before the run is resumed."
        ) from error
    except OSError:
        os.close(descriptor)
        return False
    _LOCKED[path] = descriptor
    return True


def unlock_folder(folder: str | Path) -> None:
    """Undo `lock_folder`; of a folder that is not reserved, do nothing."""
    descriptor = _LOCKED.pop(Path(folder).expanduser().resolve(), None)
    if descriptor is not None:
        os.close(descriptor)


@contextmanager
def locked_folder(folder: str | Path) -> Iterator[None]:
    """Reserve a folder inside the `with` block; see `lock_folder`. What was reserved before it stays so after it."""
    is_new = lock_folder(folder)
    try:
        yield
    finally:
        if is_new:
            unlock_folder(folder)


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
