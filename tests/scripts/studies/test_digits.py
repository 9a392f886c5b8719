"""The digits study: its arms differ in what they say they do, and it runs from start to end."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlsmooth.scripts.studies import digits
from rlsmooth.scripts.studies.runner import Args


def test_the_best_margins_are_the_formulas() -> None:
    assert digits.best_margin(0.0) == math.inf
    for alpha in digits.ALPHAS[1:]:
        assert digits.best_margin(alpha) == pytest.approx(math.log(1 + 10 * (1 - alpha) / alpha))


def run(alpha: float, noise: float, epochs: int = 8) -> dict[str, Any]:
    settings = {"arm": "x", "alpha": alpha, "noise": noise, "seed": 0, "epochs": epochs}
    return digits.train(settings)


def test_one_run() -> None:
    plain, noisy = run(0.0, 0.0), run(0.2, 0.2)
    assert plain["rows"] == [1078, 360, 359]
    assert sum(plain["bins"]["counts"]) == 359
    assert plain["plain"]["accuracy"] == plain["scaled"]["accuracy"] > 0.85
    assert plain["temperature"] == pytest.approx(plain["scaled"]["temperature"])
    assert noisy["plain"]["accuracy"] > 0.7
    assert noisy["training_margin"] < plain["training_margin"]
    hits = np.dot(plain["bins"]["counts"], plain["bins"]["accuracy"])
    assert hits / 359 == pytest.approx(plain["plain"]["accuracy"])


@pytest.mark.slow
def test_it_runs_from_start_to_end(tmp_path: Path) -> None:
    digits.main(Args(folder=tmp_path / "runs", results=tmp_path, workers=1, small=True))
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "digits.json").read_text())
    assert set(found["runs"]) == {digits.arm_of(alpha, noise) for alpha in digits.ALPHAS for noise in digits.NOISES}
    assert all(len(runs) == 2 for runs in found["runs"].values())
    assert "| 0.1 | scaled |" in (tmp_path / "digits.md").read_text()
