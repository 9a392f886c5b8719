"""The study of ordered bins: its expert is one, its arms differ as it says, and it runs from start to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rlsmooth.data import record
from rlsmooth.scripts.studies import ordinal_bins
from rlsmooth.scripts.studies.runner import Args
from rlsmooth.targets import Smoothing

PNG = b"\x89PNG\r\n\x1a\n"


def test_the_controller_is_an_expert() -> None:
    episodes = record(ordinal_bins.controller, ordinal_bins.ENV, 10, seed=0)
    assert float(np.mean(episodes.episode_returns())) > -250  # random actions: about -1200


def test_the_ordinal_arm_smooths_near_bins_alone() -> None:
    arm = ordinal_bins.ARMS["bins, ordinal 0.1"]
    target = Smoothing(arm["alpha"], arm["reference"])(torch.tensor([10]), arm["bins"]).dense()[0]
    assert float(target[10]) == pytest.approx(0.9)
    assert float(target[9] + target[11]) > 0.09
    assert float(target[7:14].sum()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.slow
def test_it_runs_from_start_to_end(tmp_path: Path) -> None:
    ordinal_bins.main(Args(folder=tmp_path / "runs", results=tmp_path, workers=1, small=True))
    assert (tmp_path / "ordinal_bins.png").read_bytes().startswith(PNG)
    assert set(json.loads((tmp_path / "ordinal_bins.json").read_text())["runs"]) == {
        f"{arm}|{episodes}" for arm in ordinal_bins.ARMS for episodes in ordinal_bins.EPISODES
    }
