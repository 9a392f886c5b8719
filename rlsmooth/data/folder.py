"""A folder of demonstrations for sets larger than memory: `header.json` and one `.npy` file an array.

`np.load` of an `.npz` silently reads all of it; the `.npy` files of a folder are memory-mapped, and only the rows that
are asked for are read. To make such a folder from data that never fit in memory, write each array with
`np.lib.format.open_memmap`, open them with `np.load(..., mmap_mode="r")`, give them to `Demonstrations.from_arrays` and
call `save_folder`: it copies in chunks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rlsmooth.atomic import write_bytes_atomically
from rlsmooth.checks import check_writable_folder
from rlsmooth.data.arrays import AnyArray, chunks
from rlsmooth.data.demonstrations import Demonstrations
from rlsmooth.data.file_format import (
    DemonstrationsFileError,
    build,
    file_path,
    make_header,
    named_arrays,
    read_header,
)

__all__ = ["load_folder", "save_folder"]


def save_folder(data: Demonstrations, path: str | Path) -> None:
    """Write the set as a folder. The header comes last, so a folder that was cut off while it was written is not read.

    Raises:
        ValueError: the folder can't be written to or holds demonstrations already; there are infos, which have no
            place in a folder; or the metadata are not JSON.
    """
    if data.infos is not None:
        raise ValueError("infos can't be stored in a folder: set them to None, or save a .npz.")
    folder = check_writable_folder("path", path)
    if (folder / "header.json").exists():
        raise ValueError(f"path={str(path)!r} already holds demonstrations: name another folder.")
    arrays = named_arrays(data)
    described = {
        name: {"member": f"{name}.npy", "shape": list(array.shape), "dtype": array.dtype.str}
        for name, array in arrays.items()
    }
    header = make_header(data, described)
    for name, array in arrays.items():
        target = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=array.dtype, shape=array.shape)
        for start, stop in chunks(array):
            target[start:stop] = array[start:stop]
        target.flush()
    write_bytes_atomically(folder / "header.json", header)


def load_folder(path: str | Path) -> Demonstrations:
    """Open a folder of `save_folder`: every array is memory-mapped, read-only, and checked in chunks.

    Raises:
        DemonstrationsFileError: the folder or a file of it is missing, truncated or damaged, another program's or a
            newer version's; or what it holds does not pass the checks of `Demonstrations`.
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
    header = read_header(header_file.read_bytes(), folder)
    arrays = {name: _open(folder, name, entry) for name, entry in header["arrays"].items()}
    return build(header, arrays, None, folder)


def _open(folder: Path, name: str, entry: object) -> AnyArray:
    if not isinstance(entry, dict) or entry.get("member") != f"{name}.npy" or Path(name).name != name:
        raise DemonstrationsFileError(f"{folder}: header.json does not describe {name!r:.80} as save_folder does.")
    file = folder / f"{name}.npy"
    try:
        array: AnyArray = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DemonstrationsFileError(f"{file} is missing, truncated or no plain array ({error}).") from error
    if list(array.shape) != entry.get("shape") or array.dtype.str != entry.get("dtype"):
        raise DemonstrationsFileError(
            f"{file} holds {array.dtype.str} {list(array.shape)}, but header.json says "
            f"{entry.get('dtype')} {entry.get('shape')}."
        )
    return array
