"""The taxonomy study: its arms move the mass that they say, and it runs from start to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlsmooth.data import load_labelled
from rlsmooth.scripts.studies import hierarchy
from rlsmooth.scripts.studies.runner import Args
from rlsmooth.targets import Tree

TREE = Tree.from_nested({"a": ["p", "q", "r"], "b": ["s"], "c": ["t", "u"]})


@pytest.mark.parametrize("arm", [arm for arm in hierarchy.ARMS if arm != "Boltzmann, decay 1"])
def test_an_arm_takes_its_mass_off_the_label(arm: str) -> None:
    settings = hierarchy.ARMS[arm]
    smoothing = hierarchy.smoothing_of(TREE, alpha=settings["alpha"], decay=settings["decay"])
    dense = smoothing(torch.arange(6), 6).dense(torch.float64)
    expected = torch.full((6,), 1 - settings["alpha"], dtype=torch.float64)
    torch.testing.assert_close(dense.diagonal(), expected, rtol=0, atol=1e-12)
    ratio = dense[0, 1] / dense[0, 3]  # a relative's share to a stranger's
    if settings["alpha"]:
        ratios = {0.0: 1.0, 0.5: 2.718, 1.0: 7.389, 2.0: 54.6}
        assert ratio.item() == pytest.approx(ratios[settings["decay"]], rel=1e-3)


def test_each_comparison_is_of_two_arms_of_one_mass_or_of_flat_and_none() -> None:
    pairs = hierarchy.planned_pairs()
    assert len(pairs) == len(hierarchy.ARMS) - 1
    for one, other in pairs:
        assert {one, other} <= hierarchy.ARMS.keys()
        if other.startswith("flat"):
            assert hierarchy.ARMS[one]["alpha"] == hierarchy.ARMS[other]["alpha"]
        else:
            assert other == "none"


def test_differences_go_seed_by_seed() -> None:
    arms = {"x": [{"nll": 3.0}, {"nll": 1.0}], "y": [{"nll": 1.0}, {"nll": 2.0}]}
    assert hierarchy.differences(arms, "nll", "x", "y") == [2.0, -1.0]


def test_every_arm_has_a_colour_of_its_kind() -> None:
    assert hierarchy.colour_of("none") == hierarchy.COLOURS["none"]
    assert hierarchy.colour_of("hierarchical 0.3, decay 2") == hierarchy.COLOURS["decay 2"]
    assert hierarchy.colour_of("Boltzmann, decay 1") != hierarchy.colour_of("hierarchical 0.1, decay 1")


def test_one_run() -> None:
    arm = "hierarchical 0.1, decay 1"
    settings: dict[str, Any] = {
        "arm": arm,
        "data": "olive",
        "seed": 0,
        **hierarchy.DATA["olive"],
        **hierarchy.ARMS[arm],
    }
    result = hierarchy.train({**settings, "epochs": 20})
    assert result["rows"] == [114, 115, 343]
    assert result["accuracy"] > 0.5
    assert 1 <= result["mistake_severity"] <= 2
    assert result["distance_at_1"] == pytest.approx(result["mistake_severity"] * (1 - result["accuracy"]), abs=1e-6)
    assert result["scaled_nll"] < result["nll"]  # so early it is not confident enough
    assert result["temperature"] < 1


def test_the_rodents_are_a_taxonomy_of_two_levels() -> None:
    data = load_labelled("rodents")
    assert data.hierarchy is not None
    assert (data.num_classes, len(data.hierarchy)) == (24, 9)
    needed = sum(hierarchy.DATA["rodents"][part] for part in ("train", "tune", "test"))
    assert needed < len(data)


@pytest.mark.slow
def test_it_runs_from_start_to_end(tmp_path: Path) -> None:
    hierarchy.main(Args(folder=tmp_path / "runs", results=tmp_path, workers=1, small=True))
    assert (tmp_path / "hierarchy.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((tmp_path / "hierarchy.json").read_text())
    for name in hierarchy.DATA:
        assert {arm: len(runs) for arm, runs in result["runs"][name].items()} == dict.fromkeys(hierarchy.ARMS, 2)
    page = (tmp_path / "hierarchy.md").read_text()
    assert all(page.count(f"\n| {arm} |") == 2 for arm in hierarchy.ARMS)
