"""Arrow's IPC files: what they unfold to is known before they are read, and what repeats or points away is refused."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlsmooth.data.arrow import check_arrow, check_unfolded_batches, read_arrow
from rlsmooth.untrusted import FileRefusedError
from support import assert_raises

pa = pytest.importorskip("pyarrow")
WRITERS = {"stream": pa.ipc.new_stream, "footer": pa.ipc.new_file}


def write(path: Path, table: Any, kind: str, **options: Any) -> Path:
    with WRITERS[kind](str(path), table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=400)
    return path


def some_table() -> Any:
    rng = np.random.default_rng(0)
    numbers = pa.array(rng.integers(0, 9, 3000))
    lists = pa.ListArray.from_arrays(np.arange(0, 3001, 3), numbers)
    return pa.table(
        {
            "number": rng.normal(size=1000),
            "flag": pa.array(rng.random(1000) < 0.5),
            "text": ["x" * (n % 50) for n in range(1000)],
            "list": lists,
            "fixed": pa.FixedSizeListArray.from_arrays(numbers, 3),
            "both": pa.StructArray.from_arrays([numbers[:1000], lists], ["a", "b"]),
            "missing": [None if n % 3 else 1.5 for n in range(1000)],
        }
    )


@pytest.mark.parametrize("options", [{}, {"compression": "lz4"}, {"compression": "zstd"}], ids=str)
@pytest.mark.parametrize("kind", WRITERS)
def test_the_size_in_memory_is_known_before_reading(
    kind: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = some_table()
    path = write(tmp_path / "data.arrow", table, kind, **options)
    assert read_arrow(path) == table
    check_arrow(path, path)
    counted: list[int] = []
    monkeypatch.setattr("rlsmooth.data.arrow.check_unfolded", lambda unfolded, *_: counted.append(unfolded))
    check_unfolded_batches(path)
    assert table.nbytes <= counted[-1] < 3 * table.nbytes  # a value counts twice as a bool of one bit, and so on


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize("kind", WRITERS)
def test_compressed_files_do_not_unfold_without_end(
    kind: str, compression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlsmooth.untrusted.FREE_BYTES", 2**16)  # in place of 128 MiB
    table = pa.table({"zeros": np.zeros(400_000)})
    with WRITERS[kind](
        str(path := tmp_path / "data.arrow"), table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)
    ) as writer:
        writer.write_table(table)
    for read in (read_arrow, check_arrow):
        assert_raises(FileRefusedError, "unfold from .* to .* bytes.*read it by pyarrow", read, path)


def test_rows_without_bytes_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlsmooth.untrusted.FREE_BYTES", 2**16)
    path = tmp_path / "data.arrow"
    with pa.ipc.new_stream(str(path), pa.schema({"none": pa.null()})) as writer:
        writer.write_batch(pa.record_batch({"none": pa.nulls(2**24)}))
    assert_raises(FileRefusedError, "unfold from", read_arrow, path)


def test_a_batch_that_the_footer_names_often_counts_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlsmooth.untrusted.FREE_BYTES", 2**16)
    monkeypatch.setattr("rlsmooth.untrusted.MOST_FOLDED", 2)
    table = pa.table({"a": np.arange(8192.0)})
    with pa.ipc.new_file(str(path := tmp_path / "data.arrow"), table.schema) as writer:
        for rows in (8000, *[64] * 8):
            writer.write_batch(table[:rows].to_batches()[0])
    data = path.read_bytes()
    assert len(read_arrow(path)) == 8000 + 8 * 64
    blocks = [struct.pack("<qi4xq", *block) for block in blocks_of(data)]
    assert len(blocks) == 9
    for block in blocks[1:]:
        data = data.replace(block, blocks[0])
    path.write_bytes(data)
    assert len(pa.ipc.open_file(str(path)).read_all()) == 9 * 8000  # pyarrow reads it
    assert_raises(FileRefusedError, "unfold from", read_arrow, path)


def blocks_of(data: bytes) -> list[tuple[int, int, int]]:
    """The blocks of the footer: each batch's offset, length of its message, and of its body."""
    size = struct.unpack_from("<i", data, len(data) - 10)[0]
    footer = data[-10 - size : -10]
    found = []
    for place in range(0, len(footer) - 24, 4):
        offset, length, body = struct.unpack_from("<qi4xq", footer, place)
        is_message = 8 <= offset < len(data) - 8 and data[offset : offset + 4] == b"\xff" * 4
        if is_message and length == 8 + struct.unpack_from("<i", data, offset + 4)[0] and body > 0:
            found.append((offset, length, body))
    return found


REPEATING = {
    "dictionary": lambda: pa.DictionaryArray.from_arrays([0] * 9, ["x" * 1000]),
    "run": lambda: pa.RunEndEncodedArray.from_arrays([9], pa.array(["x" * 1000])),
    "union": lambda: pa.UnionArray.from_dense(
        pa.array([0] * 9, pa.int8()), pa.array([0] * 9, pa.int32()), [pa.array(["x"])]
    ),
    "view": lambda: pa.array(["x" * 1000] * 9, pa.string_view()),
    "in a list": lambda: pa.FixedSizeListArray.from_arrays(pa.DictionaryArray.from_arrays([0] * 9, ["x"]), 3),
}


@pytest.mark.parametrize("name", [name for name in REPEATING if name != "view" or hasattr(pa, "string_view")])
def test_columns_that_repeat_values_are_refused(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "data.arrow", pa.table({"obs": REPEATING[name]()}), "stream")
    for read in (read_arrow, check_arrow):
        assert_raises(FileRefusedError, "column 'obs' is of .*, which repeats values", read, path)


@pytest.mark.parametrize("kind", WRITERS)
def test_offsets_that_point_away_are_found(kind: str, tmp_path: Path) -> None:
    lists = pa.ListArray.from_arrays(np.array([0, 77_001, 77_002], np.int32), np.arange(77_002))
    path = write(tmp_path / "data.arrow", pa.table({"obs": lists}), kind)
    data = path.read_bytes()
    for value in (2**30, -5):
        path.write_bytes(data.replace(struct.pack("<iii", 0, 77_001, 77_002), struct.pack("<iii", 0, value, 77_002)))
        assert path.read_bytes() != data
        for read in (read_arrow, check_arrow):
            with pytest.raises(ValueError, match=r"(?i)offset|length"):
                read(path)


@pytest.mark.parametrize("kind", WRITERS)
def test_damaged_files_end_in_an_error_or_in_the_same_sizes(kind: str, tmp_path: Path) -> None:
    original = write(tmp_path / "data.arrow", some_table(), kind, compression="lz4").read_bytes()
    path, rng = tmp_path / "damaged.arrow", np.random.default_rng(0)
    errors = 0
    for number in range(300):
        data = bytearray(original)
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(256)
        path.write_bytes(bytes(data[: rng.integers(len(data))]) if number % 3 == 0 else bytes(data))
        try:
            check_unfolded_batches(path)
            read_arrow(path)
        except (ValueError, OSError, NotImplementedError):  # pyarrow's ArrowInvalid is a ValueError
            errors += 1
    assert errors > 100
