"""docs/from-imitation.md: what test_docs.py leaves out, imitation's side and the folder that imitation wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlsmooth.data import cartpole_v1
from support import REPOSITORY

PAGE = (REPOSITORY / "docs" / "from-imitation.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```python(?: (imitation|rollouts))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(kind: str) -> list[str]:
    return [code for found, code in BLOCK.findall(PAGE) if found == kind]


def write_folder(folder: Path) -> None:
    """Two episodes as imitation's `serialize.save` writes them: types and flags as in a folder that it really wrote."""
    pa = pytest.importorskip("pyarrow")
    data = cartpole_v1().select_episodes([0, 1])
    parts = [data[start:end] for start, end in zip(data.episode_starts, data.episode_ends, strict=True)]
    columns = {
        "obs": [[*np.asarray(part.observations), np.asarray(part.next_observations)[-1]] for part in parts],
        "acts": [part.actions for part in parts],
        "infos": [["{}"] * len(part) for part in parts],
        "terminal": [True, True],  # although the time limit ended them
        "rews": [part.rewards for part in parts],
    }
    schema = pa.schema(
        {
            "obs": pa.list_(pa.list_(pa.float32())),
            "acts": pa.list_(pa.int64()),
            "infos": pa.list_(pa.string()),
            "terminal": pa.bool_(),
            "rews": pa.list_(pa.float64()),
        }
    )
    folder.mkdir()
    with pa.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), schema) as writer:
        writer.write_table(pa.table(columns, schema=schema))
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_format_type": None, "_split": None}
    (folder / "state.json").write_text(json.dumps(state))


def test_ours_stands_beside_each_of_theirs() -> None:
    theirs = blocks("imitation")
    assert len(theirs) == 10
    for code in theirs:
        assert code.startswith("# imitation\n")
        compile(code, "block", "exec")
    sections = PAGE.split("\n## ")[1:]
    numbered = [section for section in sections if re.match(r"\d+\. ", section)]
    assert len(numbered) == 10
    for section in numbered:
        assert [kind for kind, _ in BLOCK.findall(section)][:2] == ["imitation", ""], section.splitlines()[0]


def test_a_folder_of_imitations_is_read(tmp_path: Path, programs: Any) -> None:
    write_folder(tmp_path / "rollouts")
    (code,) = blocks("rollouts")
    check = "assert read.num_episodes == 2 and read.truncations.sum() == 2 and not read.terminations.any()\n"
    program = f"from rlsmooth.data import Demonstrations\n{code}{check}"
    finished = programs.run(program, tmp_path, warnings_are_errors=True)
    assert finished.returncode == 0, finished.stderr
    assert "2 episodes, 1000 transitions, return 500.0" in finished.stdout
