"""Arrow's IPC files, streams and those with a footer, as `datasets` and Minari write them: read within bounds.

Arrow believes a file: what its compressed buffers say that they unfold to is allocated, offsets are followed, and some
kinds of columns repeat values without end. So the sizes are added up before anything is read, from the messages' own
tables (https://arrow.apache.org/docs/format/Columnar.html), and what was read is validated.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlsmooth.untrusted import FileRefusedError, check_unfolded, open_regular

MAGIC = b"ARROW1"
WAY = "read it by pyarrow, and use Demonstrations.from_arrays"
BYTES_OF_BUFFER, BYTES_OF_VALUE = 64, 4
"""What a buffer takes at least, and a value: one of the null type has no buffer."""
BATCH_OF_DICTIONARY, BATCH = 2, 3
"""The kinds of messages that hold columns."""


def read_arrow(path: Path) -> Any:
    """The table in a file.

    Raises:
        FileRefusedError: it is no regular file, or one that can take far more memory than it has bytes.
        ValueError: it is damaged.
    """
    import pyarrow as pa

    check_unfolded_batches(path)
    with pa.memory_map(str(path)) as file:
        table = _opened(file).read_all()
    table.validate(full=True)
    return table


def check_arrow(*paths: Path) -> None:
    """Refuse files that another program is to read, if `read_arrow` would refuse them.

    Raises:
        FileRefusedError: one is no regular file, or they can take far more memory than they have bytes.
        ValueError: one is damaged.
    """
    import pyarrow as pa

    check_unfolded_batches(*paths)
    for path in paths:
        with pa.memory_map(str(path)) as file:
            reader = _opened(file)
            is_stream = isinstance(reader, pa.RecordBatchStreamReader)
            for batch in reader if is_stream else map(reader.get_batch, range(reader.num_record_batches)):
                batch.validate(full=True)


def check_unfolded_batches(*paths: Path) -> None:
    """Refuse files whose columns take far more memory than the files have bytes; nothing is unfolded for it.

    Raises:
        FileRefusedError: they do, or one is no regular file.
        ValueError: one is damaged.
    """
    stored, unfolded = sum(path.stat().st_size for path in paths), 0
    for path in paths:
        with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as opened:
            data = _Tables(opened)
            for batch, body in data.batches():
                for size in data.sizes(batch, body):
                    unfolded += size
                    check_unfolded(unfolded, stored, WAY)


def _opened(file: Any) -> Any:
    """A reader of the file, whose columns are of kinds that have each value once."""
    import pyarrow as pa

    has_footer = file.read(len(MAGIC)) == MAGIC
    file.seek(0)
    reader = pa.ipc.open_file(file) if has_footer else pa.ipc.open_stream(file)
    for field in reader.schema:
        if not _has_each_value_once(field.type):
            raise FileRefusedError(f"column {field.name!r:.80} is of {field.type!s:.80}, which repeats values: {WAY}.")
    return reader


def _has_each_value_once(kind: Any) -> bool:
    from pyarrow import BaseExtensionType, types

    if isinstance(kind, BaseExtensionType):
        return _has_each_value_once(kind.storage_type)
    nested = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_struct, types.is_map)
    if any(is_kind(kind) for is_kind in nested):
        return all(_has_each_value_once(kind.field(place).type) for place in range(kind.num_fields))
    texts = (types.is_string, types.is_binary, types.is_large_string, types.is_large_binary)
    plain = (types.is_primitive, types.is_decimal, types.is_fixed_size_binary, types.is_null, *texts)
    return any(is_kind(kind) for is_kind in plain)


class _Tables:
    """The tables of FlatBuffers in an IPC file, whose fields are numbered as in Arrow's Message.fbs and File.fbs."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def batches(self) -> Iterator[tuple[int, int]]:
        """Where the table of each batch of columns is, and where its buffers begin."""
        for message, body in self._with_footer() if self.data[: len(MAGIC)] == MAGIC else self._stream():
            place, batch = self._field(message, 1), self._follow(message, 2)
            kind = None if place is None else self._read("<B", place)[0]
            if kind == BATCH_OF_DICTIONARY and batch is not None:
                batch = self._follow(batch, 1)
            if kind in (BATCH_OF_DICTIONARY, BATCH) and batch is not None:
                yield batch, body

    def sizes(self, batch: int, body: int) -> Iterator[int]:
        """The bytes that each column and each buffer of a batch takes in memory."""
        is_compressed = self._field(batch, 3) is not None
        for count, _ in self._vector(batch, 1, "<qq"):
            yield BYTES_OF_VALUE * max(0, count)
        for offset, size in self._vector(batch, 2, "<qq"):
            if is_compressed and size >= 8:  # -1: this one is not
                size = max(size, self._read("<q", body + offset)[0])
            yield max(BYTES_OF_BUFFER, size)

    def _with_footer(self) -> Iterator[tuple[int, int]]:
        end = len(self.data) - len(MAGIC) - 4
        footer = self._root(end - self._read("<i", end)[0])
        for number in (2, 3):
            for offset, size, _ in self._vector(footer, number, "<qi4xq"):
                yield self._root(self._after_length(offset)[0]), offset + size

    def _stream(self) -> Iterator[tuple[int, int]]:
        place = 0
        while place + 4 <= len(self.data):
            start, size = self._after_length(place)
            if size == 0:
                return
            message = self._root(start)
            length = self._field(message, 3)
            place = start + size
            yield message, place
            place += 0 if length is None else self._at_least_0(self._read("<q", length)[0])

    def _after_length(self, place: int) -> tuple[int, int]:
        """Where a message begins, and its bytes; before Arrow 0.15 no -1 stood before them."""
        (size,) = self._read("<i", place)
        if size == -1:
            place += 4
            (size,) = self._read("<i", place)
        return place + 4, self._at_least_0(size)

    def _at_least_0(self, size: int) -> int:
        if size < 0:
            raise ValueError("a message has a negative size")
        return size

    def _read(self, form: str, place: int) -> tuple[Any, ...]:
        if place < 0 or place + struct.calcsize(form) > len(self.data):
            raise ValueError("a message points out of the file")
        return struct.unpack_from(form, self.data, place)

    def _root(self, place: int) -> int:
        return place + int(self._read("<I", place)[0])

    def _field(self, table: int, number: int) -> int | None:
        """Where a field of a table is; None where it is left out."""
        names = table - int(self._read("<i", table)[0])
        if 4 + 2 * number >= self._read("<H", names)[0]:
            return None
        offset = self._read("<H", names + 4 + 2 * number)[0]
        return table + offset if offset else None

    def _follow(self, table: int, number: int) -> int | None:
        place = self._field(table, number)
        return None if place is None else self._root(place)

    def _vector(self, table: int, number: int, form: str) -> Iterator[tuple[Any, ...]]:
        place = self._follow(table, number)
        if place is not None:
            for each in range(self._read("<I", place)[0]):
                yield self._read(form, place + 4 + each * struct.calcsize(form))
