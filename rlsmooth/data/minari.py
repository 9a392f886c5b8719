"""Read and write Minari's data sets, by the package itself (extra `minari`).

Minari keeps T + 1 observations of an episode of T actions, and all of the rewards, terminations and truncations.
"""

from __future__ import annotations

import json
import shutil
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from rlsmooth.data.arrays import AnyArray, Fields, breaks, join_observations, take
from rlsmooth.data.arrow import check_arrow
from rlsmooth.data.files import DemonstrationsFileError, file_path
from rlsmooth.data.parquet import check_parquet
from rlsmooth.data.validation import check_spaces
from rlsmooth.untrusted import (
    FileRefusedError,
    Within,
    check_unfolded,
    decode,
    open_regular,
    parse_json,
    read_regular,
    refused,
)

NEEDED = ("next_observations", "rewards", "terminations", "truncations")
NO_PLACE = ("action_masks", "weights", "groups", "action_probs", "infos")
IGNORED = ("_", ".", "metadata.json")
"""How the names of files begin that Minari does not take for data."""
WAY = "read it by minari, and use Demonstrations.from_arrays"


def read_minari(source: str | Path) -> dict[str, Any]:
    """Read a Minari data set; see `Demonstrations.from_minari`."""
    minari = _import_minari()
    from minari.storage import get_dataset_path

    path = file_path(source)
    # A data set's folder holds its files in data/; both are taken.
    places = (path, path / "data", Path(get_dataset_path(str(source))) / "data")
    folders = [folder for folder in places if (folder / "metadata.json").is_file()]
    fix = "`minari list local` shows the ids, `minari download` gets more."
    problem = "is neither a folder nor the id of a downloaded Minari data set"
    with refused(str(source), DemonstrationsFileError, fix, problem):
        if not folders:
            raise ValueError("there is no metadata.json")
        _check_folder(folders[0])
        data = minari.MinariDataset(folders[0])
        episodes = list(data.iterate_episodes())
    if not episodes:
        raise DemonstrationsFileError(f"{str(source)!r} has no episodes.")
    check_spaces(data.observation_space, data.action_space)
    for episode in episodes:
        _check_minari_episode(source, episode)
    env_spec = data.env_spec
    return {
        "observations": join_observations([take(episode.observations, slice(None, -1)) for episode in episodes]),
        "actions": np.concatenate([np.asarray(episode.actions) for episode in episodes]),
        "observation_space": data.observation_space,
        "action_space": data.action_space,
        "episode_ends": np.cumsum([len(episode.rewards) for episode in episodes]),
        "next_observations": join_observations([take(episode.observations, slice(1, None)) for episode in episodes]),
        "rewards": np.concatenate([np.asarray(episode.rewards) for episode in episodes]),
        "terminations": np.concatenate([np.asarray(episode.terminations, dtype=bool) for episode in episodes]),
        "truncations": np.concatenate([np.asarray(episode.truncations, dtype=bool) for episode in episodes]),
        "metadata": {"source": "minari", "name": data.id, "env_id": None if env_spec is None else env_spec.id},
    }


def _check_folder(folder: Path) -> None:
    """Refuse what Minari would read at its word: code that makes the spaces, sizes without data, other files."""
    size = 0
    files = [file for file in folder.rglob("*") if file.is_symlink() or not file.is_dir()]
    for file in files:
        open_regular(file).close()  # Git LFS may have left pointers, of which minari says nothing
        size += file.stat().st_size
    metadata = parse_json(read_regular(folder / "metadata.json"))
    for name in ("observation_space", "action_space"):
        if not isinstance(metadata.get(name), str):
            raise FileRefusedError(
                f"metadata.json has no {name}, for which Minari would make the environment that it names, by code of "
                f"its choice. If you trust it, {WAY}."
            )
    for name in ("total_episodes", "total_steps"):
        decode(Annotated[int, Within(0, size)], metadata.get(name), name)
    if (data := folder / "main_data.hdf5").is_file():
        _check_hdf5(data, size)
    checks = {"arrow": check_arrow, "parquet": check_parquet}
    if check := checks.get(metadata.get("data_format")):
        check(*(file for file in files if not file.name.startswith(IGNORED)))


def _check_hdf5(path: Path, size: int) -> None:
    import h5py

    def is_elsewhere(item: Any) -> bool:
        return isinstance(item, h5py.Dataset) and bool(item.external or item.is_virtual)

    sizes = []
    with h5py.File(path) as file:  # h5py stops at what a callback returns, and must not see it raise
        place = file.visititems_links(lambda name, link: None if isinstance(link, h5py.HardLink) else name)
        place = place or file.visititems(lambda name, item: name if is_elsewhere(item) else None)
        file.visititems(lambda _, item: sizes.append(getattr(item, "nbytes", 0)))
    if place is not None:
        raise FileRefusedError(f"{path.name}: {place} is kept in another file. Use a copy that is whole.")
    check_unfolded(sum(sizes), size, WAY)


def _check_minari_episode(source: str | Path, episode: Any) -> None:
    """T actions need T + 1 observations and T of the rest: some writers leave the final observation out."""
    steps = len(episode.actions)
    counts = {name: len(getattr(episode, name)) for name in ("rewards", "terminations", "truncations")}
    for key, part in _named_parts("observations", episode.observations):
        if len(part) != steps + 1:
            raise DemonstrationsFileError(
                f"{str(source)!r}: episode {episode.id} has {steps} actions and {len(part)} {key}, but Minari's form "
                f"is {steps + 1}, the final one included. Where final observations are missing, read the episodes by "
                "minari and build Demonstrations.from_arrays without next_observations."
            )
    if steps == 0 or set(counts.values()) != {steps}:
        raise DemonstrationsFileError(
            f"{str(source)!r}: episode {episode.id} has {steps} actions, but {counts}: it needs T > 0 of each."
        )


def _named_parts(name: str, observations: Any) -> Iterator[tuple[str, AnyArray]]:
    if isinstance(observations, dict):
        for key, part in observations.items():
            yield from _named_parts(f"{name}[{key!r}]", part)
    else:
        yield name, observations


def write_minari(dataset_id: str, fields: Fields, details: dict[str, Any]) -> Path:
    """Write a Minari data set; see `Demonstrations.to_minari`."""
    minari = _import_minari()
    from minari.data_collector import EpisodeBuffer
    from minari.storage import get_dataset_path

    ends = np.asarray(fields["episode_ends"])
    _check_writable(fields, ends)
    folder = Path(get_dataset_path(dataset_id))
    taken = ValueError(f"dataset_id={dataset_id!r} is in {str(folder)!r} already: name another one.")
    if folder.exists():
        raise taken

    def episodes() -> Iterator[Any]:
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            seen, last = take(fields["observations"], slice(start, end)), slice(end - 1, end)
            parts = {name: take(fields[name], slice(start, end)) for name in ("actions", *NEEDED[1:])}
            whole = join_observations([seen, take(fields["next_observations"], last)])
            yield EpisodeBuffer(observations=whole, **parts)

    given = {name: fields[name] for name in ("observation_space", "action_space")}
    options = {"jpeg_encoding": False, **details}  # Minari's default would not keep images as they are
    place = f"rlsmooth-{uuid.uuid4().hex}"  # a namespace of this call alone: another may write the same id meanwhile
    own = Path(get_dataset_path(place))
    try:
        with warnings.catch_warnings():  # six, about an author and the like, which whoever publishes gives
            warnings.filterwarnings("ignore", ".* is set to None|env_spec is None", UserWarning)
            minari.create_dataset_from_buffers(f"{place}/{dataset_id}", episodes(), **given, **options)
        metadata = own / dataset_id / "data" / "metadata.json"
        metadata.write_text(json.dumps(parse_json(read_regular(metadata)) | {"dataset_id": dataset_id}))
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            (own / dataset_id).rename(folder)  # whole, or not at all
        except OSError as error:
            raise (taken if folder.exists() else error) from error
    finally:
        shutil.rmtree(own, ignore_errors=True)
    return folder


def _import_minari() -> Any:
    try:
        import minari
    except ImportError as error:
        raise ImportError('Minari data sets need minari: pip install "rlsmooth[minari]".') from error
    return minari


def _check_writable(fields: Fields, ends: AnyArray) -> None:
    """Raise ValueError if Minari's form lacks a place for something, or these lack what it needs."""
    missing = [name for name in NEEDED if fields.get(name) is None]
    if missing:
        raise ValueError(
            f"{', '.join(missing)}: these demonstrations have none, and a Minari data set needs them. `record` writes "
            "all; or fill them in by dataclasses.replace."
        )
    without = [name for name in NO_PLACE if fields.get(name) is not None]
    if without:
        raise ValueError(
            f"{', '.join(without)}: a Minari data set has no place for them. Set them to None by dataclasses.replace, "
            "or use to_parquet, which keeps all."
        )
    broken = breaks(fields["observations"], fields["next_observations"], fields["observation_space"])
    broken[ends - 1] = False
    if broken.any():
        raise ValueError(
            f"transition {int(broken.argmax())}: its next observation is not the one that the following transition "
            "begins with, and a Minari data set keeps one of the two: end the episode there, by episode_ends."
        )
