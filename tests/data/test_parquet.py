"""Demonstrations as Parquet: written, read by others, and read from others."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from rlsmooth.data import Demonstrations, DemonstrationsFileError, cartpole_v1
from support import assert_equal, draw, recorded, samples

pa = pytest.importorskip("pyarrow")
SPACES = {
    "box": (spaces.Box(-1, 1, (2, 3), np.float32), spaces.MultiDiscrete([3, 4])),
    "pixels": (spaces.Box(0, 255, (4, 4, 1), np.uint8), spaces.MultiBinary(3)),
    "dict": (
        spaces.Dict({"a": spaces.Discrete(5), "b": spaces.Box(-1, 1, (2,), np.float64)}),
        spaces.Discrete(3, start=2),
    ),
    "discrete": (spaces.Discrete(7), spaces.Box(-3, 5, (2,), np.float32)),
}


def made(kind: str) -> Demonstrations:
    observation_space, action_space = SPACES[kind]
    observations, actions = samples(observation_space, 11, 0), samples(action_space, 11, 1)
    return recorded(observations, actions, observation_space, action_space, [4, 11], rewards=np.arange(11) / 3)


def full() -> Demonstrations:
    given = draw(12)
    rng = np.random.default_rng(0)
    masks = np.ones((12, 3), bool)
    probs = rng.dirichlet(np.ones(3), 12)
    flags = np.zeros(12, bool)
    flags[[2, 5, 8, 11]] = True
    return dataclasses.replace(
        given,
        next_observations=np.asarray(given.observations) + 1,
        terminations=flags,
        truncations=np.zeros(12, bool),
        action_masks=masks,
        weights=rng.random(12),
        groups=np.arange(12),
        action_probs=probs,
        infos=[{"number": number, "text": "ä"} for number in range(12)],
        metadata={"from": "here"},
    )


def assert_same(one: Demonstrations, other: Demonstrations) -> None:
    for field in dataclasses.fields(one):
        assert_equal(getattr(one, field.name), getattr(other, field.name), field.name)


@pytest.mark.parametrize("kind", [*SPACES, "full"])
def test_what_was_written_is_read(kind: str, tmp_path: Path) -> None:
    given = full() if kind == "full" else made(kind)
    given.to_parquet(tmp_path / "data.parquet")
    assert_same(Demonstrations.from_parquet(tmp_path / "data.parquet"), given)


def test_memory_mapped_data_are_written_in_parts(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("rlsmooth.data.parquet.ROWS", 5)
    full_set = dataclasses.replace(full(), infos=None)
    full_set.save_folder(tmp_path / "folder")
    Demonstrations.load(tmp_path / "folder").to_parquet(tmp_path / "data.parquet")
    assert_same(Demonstrations.from_parquet(tmp_path / "data.parquet"), full_set)
    assert pa.parquet.ParquetFile(tmp_path / "data.parquet").num_row_groups == 3


def test_pandas_reads_it(tmp_path: Path) -> None:
    import pandas as pd

    given = cartpole_v1().select_episodes([0, 1])
    given.to_parquet(tmp_path / "data.parquet")
    table = pd.read_parquet(tmp_path / "data.parquet")
    np.testing.assert_array_equal(np.stack(table["observation"].to_list()), given.observations)
    assert table["action"].tolist() == np.asarray(given.actions).tolist()
    assert table.groupby("episode")["step"].max().tolist() == [
        length - 1 for length in given.episode_lengths().tolist()
    ]


def test_a_file_of_another_program_is_read_with_names_and_spaces(tmp_path: Path) -> None:
    import pandas as pd

    table = pd.DataFrame({"obs": [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]], "a": [0, 1, 1], "eps": [7, 7, 2]})
    table.to_parquet(path := tmp_path / "theirs.parquet")
    own = {"observation_space": spaces.Box(-1, 1, (2,), np.float32), "action_space": spaces.Discrete(2)}
    names = {"observation": "obs", "action": "a", "episode": "eps"}
    found = Demonstrations.from_parquet(path, columns=names, **own)
    assert found.episode_ends.tolist() == [2, 3]
    assert found.observations.dtype == np.float32
    with pytest.raises(DemonstrationsFileError, match="does not say its observation_space"):
        Demonstrations.from_parquet(path, columns=names)
    with pytest.raises(DemonstrationsFileError, match="no column 'observation' but"):
        Demonstrations.from_parquet(path, **own)
    with pytest.raises(DemonstrationsFileError, match="action"):
        Demonstrations.from_parquet(path, columns=names, **{**own, "action_space": spaces.Discrete(1)})
    for order, steps in (([0, 2, 1], [0, 1, 0]), ([0, 1, 2], [1, 0, 0])):  # an episode in two parts; backwards
        table.iloc[order].assign(step=steps).to_parquet(path)
        with pytest.raises(DemonstrationsFileError, match="not in the order of time"):
            Demonstrations.from_parquet(path, columns=names, **own)
    path.write_bytes(b"no parquet")
    with pytest.raises(DemonstrationsFileError, match="no Parquet file"):
        Demonstrations.from_parquet(path)
