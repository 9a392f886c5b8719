"""The iris study: its targets are those that it describes, and it runs from start to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from rlsmooth.data import load_labelled
from rlsmooth.scripts.studies import hybrid_iris
from rlsmooth.scripts.studies.runner import Args


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        ("hybrids (1/3, 2/3)", [[1, 0], [1 / 3, 2 / 3], [0, 1]]),
        ("hybrids (1/2, 1/2)", [[1, 0], [1 / 2, 1 / 2], [0, 1]]),
        ("three classes", [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
    ],
)
def test_what_the_arms_train_on(arm: str, expected: list[list[float]]) -> None:
    target = hybrid_iris.target_of(torch.arange(3), **hybrid_iris.ARMS[arm])
    torch.testing.assert_close(target.dense(torch.float64), torch.tensor(expected, dtype=torch.float64))


def test_what_the_parents_alone_train_on() -> None:
    parents = torch.tensor([hybrid_iris.SETOSA, hybrid_iris.VIRGINICA])
    hard = hybrid_iris.target_of(parents, **hybrid_iris.ARMS["parents, hard"])
    torch.testing.assert_close(hard.dense(), torch.eye(2))
    smoothed = hybrid_iris.target_of(parents, **hybrid_iris.ARMS["parents, smoothed by 0.1"])
    torch.testing.assert_close(smoothed.dense(), torch.tensor([[0.95, 0.05], [0.05, 0.95]]))


def test_the_discriminant_is_scikit_learns() -> None:
    data = load_labelled("iris")
    parents = data.labels != hybrid_iris.VERSICOLOR
    model = LinearDiscriminantAnalysis(solver="lsqr").fit(data.features[parents], data.labels[parents])
    setosa, versicolor, virginica = (
        float((data.features[data.labels == species].astype(np.float64) @ model.coef_[0]).mean())
        for species in range(3)
    )
    ours = hybrid_iris.discriminant_place(data)
    assert ours == pytest.approx((versicolor - setosa) / (virginica - setosa), rel=1e-4)


@pytest.mark.parametrize("arm", ["parents, hard", "hybrids (1/3, 2/3)", "three classes"])
def test_one_run(arm: str) -> None:
    settings: dict[str, Any] = {"arm": arm, "seed": 0, "epochs": 60, **hybrid_iris.ARMS[arm]}
    result = hybrid_iris.train(settings)
    assert [len(shares) for shares in result["shares"]] == [15, 15, 15]
    assert result["hybrid_share"] == pytest.approx(np.mean(result["shares"][1]))
    assert result["setosa_share"] > 0.9
    assert result["virginica_share"] > 0.8
    assert result["told"] > (0.6 if arm == "parents, hard" else 0.85)
    errors = [abs(np.asarray(shares) - truth) for shares, truth in zip(result["shares"], (0, 2 / 3, 1), strict=True)]
    assert result["error"] == pytest.approx(np.concatenate(errors).mean())


@pytest.mark.slow
def test_it_runs_from_start_to_end(tmp_path: Path) -> None:
    hybrid_iris.main(Args(folder=tmp_path / "runs", results=tmp_path, workers=1, small=True))
    assert (tmp_path / "hybrid_iris.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((tmp_path / "hybrid_iris.json").read_text())
    assert {arm: len(runs) for arm, runs in result["runs"].items()} == dict.fromkeys(hybrid_iris.ARMS, 2)
    page = (tmp_path / "hybrid_iris.md").read_text()
    assert all(f"\n| {arm} |" in page for arm in hybrid_iris.ARMS)
