"""The self-training study: its arms differ in their pseudo-labels alone, and it runs from start to end."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rlsmooth.data import load_labelled
from rlsmooth.scripts.studies import self_training
from rlsmooth.scripts.studies.runner import Args


def settings(arm: str, epochs: int = 8) -> dict[str, Any]:
    return {"arm": arm, "seed": 0, "epochs": epochs, "arguments": self_training.ARMS.get(arm, {})}


def test_the_rounds_of_an_arm_without_a_threshold_label_every_row() -> None:
    rows = len(load_labelled("digits").split(0.25, seed=0)[0])
    assert rows == 1348
    arms = [arguments for arguments in self_training.ARMS.values() if "k_best" in arguments]
    assert len(arms) == 5
    for arguments in arms:
        assert (arguments["max_iter"] - 1) * arguments["k_best"] < rows - self_training.LABELS
        assert arguments["max_iter"] * arguments["k_best"] >= rows - self_training.LABELS


def test_all_arms_start_from_one_teacher_and_the_bound_is_that_teacher() -> None:
    arms = {
        arm: self_training.train({**settings(arm), "arguments": {**self_training.ARMS[arm], "max_iter": 1}})
        for arm in ("hard", "smoothed 0.1", "confidence-adaptive")
    }
    first = {arm: result["rounds"][0] for arm, result in arms.items()}
    for arm in ("smoothed 0.1", "confidence-adaptive"):
        assert first[arm]["gradients"]["hard"] == first["hard"]["gradients"]["hard"]
        assert first[arm]["gradients"]["target"] != first[arm]["gradients"]["hard"]
        assert first[arm]["new_accuracy"] == first["hard"]["new_accuracy"]
    assert first["hard"]["gradients"]["target"] == first["hard"]["gradients"]["hard"]
    assert first["hard"]["num_labelled"] == 50 + 220
    few = self_training.train(settings("50 labels alone"))
    assert few.keys() == {"accuracy", "ece"}
    assert 0.2 < few["accuracy"] < 0.95


@pytest.mark.slow
def test_it_runs_from_start_to_end(tmp_path: Path) -> None:
    self_training.main(Args(folder=tmp_path / "runs", results=tmp_path, workers=1, small=True))
    assert (tmp_path / "self_training.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((tmp_path / "self_training.json").read_text())
    arms = (self_training.BOUNDS[0], *self_training.ARMS, self_training.BOUNDS[1])
    assert {arm: len(runs) for arm, runs in result["runs"].items()} == dict.fromkeys(arms, 2)
    page = (tmp_path / "self_training.md").read_text()
    for arm, runs in result["runs"].items():
        mean = sum(run["accuracy"] for run in runs) / 2  # of two, all is the middle half
        (shown,) = re.findall(rf"^\| {re.escape(arm)} \| (\S+) ", page, flags=re.MULTILINE)
        assert float(shown) == pytest.approx(mean, abs=6e-4)
