"""Minari data sets (extra `minari`), by id or by folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rlsmooth.data.demonstrations import Demonstrations
from rlsmooth.data.file_format import DemonstrationsFileError, file_path

__all__ = ["demonstrations_from_minari"]


def demonstrations_from_minari(source: str | Path) -> Demonstrations:
    """Read a Minari data set; see `Demonstrations.from_minari`."""
    try:
        import minari
    except ImportError as error:
        raise ImportError('Minari data sets need minari: pip install "rlsmooth[minari]".') from error

    path = file_path(source)
    # A data set's folder holds its files in data/; both are taken.
    folders = [folder for folder in (path, path / "data") if (folder / "metadata.json").is_file()]
    try:
        data = minari.MinariDataset(folders[0]) if folders else minari.load_dataset(str(source), download=False)
        episodes = list(data.iterate_episodes())
    except (OSError, ValueError, KeyError, AssertionError, TypeError) as error:
        raise DemonstrationsFileError(
            f"{str(source)!r} is neither a folder nor the id of a downloaded Minari data set ({error}): "
            "`minari list local` shows the ids, `minari download` gets more."
        ) from error
    if not episodes:
        raise DemonstrationsFileError(f"{str(source)!r} has no episodes.")
    env_spec = data.env_spec
    return Demonstrations(
        observations=_join([_cut(episode.observations, slice(None, -1)) for episode in episodes]),
        actions=np.concatenate([np.asarray(episode.actions) for episode in episodes]),
        observation_space=data.observation_space,
        action_space=data.action_space,
        episode_ends=np.cumsum([len(episode.rewards) for episode in episodes]),
        next_observations=_join([_cut(episode.observations, slice(1, None)) for episode in episodes]),
        rewards=np.concatenate([np.asarray(episode.rewards) for episode in episodes]),
        terminations=np.concatenate([np.asarray(episode.terminations, dtype=bool) for episode in episodes]),
        truncations=np.concatenate([np.asarray(episode.truncations, dtype=bool) for episode in episodes]),
        metadata={"source": "minari", "name": data.id, "env_id": None if env_spec is None else env_spec.id},
    )


def _cut(observations: Any, rows: slice) -> Any:
    """All T + 1 observations of an episode less its last or its first."""
    if isinstance(observations, dict):
        return {key: _cut(part, rows) for key, part in observations.items()}
    return np.asarray(observations)[rows]


def _join(parts: list[Any]) -> Any:
    if isinstance(parts[0], dict):
        return {key: _join([part[key] for part in parts]) for key in parts[0]}
    return np.concatenate(parts)
