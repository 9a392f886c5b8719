"""The words and curves of on-policy reports that depend on the action space and on what was switched on."""

from __future__ import annotations

import pytest

from rlsmooth.scripts.figures.kinds import draw_reports, new_report
from rlsmooth.scripts.figures.on_policy import smoothing_words
from rlsmooth.scripts.reports import RunReport


def _report(*, box: bool = False, floor: float = 0.0) -> RunReport:
    tags = {
        "train/smoothing": 0.05,
        "train/exploration_floor": floor,
        "train/policy_entropy": 0.6,
        "train/kl_reference": 0.1,
    }
    if not box:
        tags["train/kl_uniform"] = 0.1
    return new_report(
        "ppo",
        name="run_1",
        settings={"env": "E-v0", "seed": 0, "reference": "uniform", "smoothing": "0.05", "from_bc": None},
        hyperparameters={"smoothing": "0.05"},
        curves={tag: ([256, 512], [value, value]) for tag, value in tags.items()},
    )


def test_a_box_is_not_said_to_be_smoothed_towards_uniform() -> None:
    assert smoothing_words(_report()) == "0.05 towards uniform"
    assert smoothing_words(_report(box=True)) == "0.05 towards a Gaussian"


@pytest.mark.parametrize(("floor", "shown"), [(0.0, False), (0.05, True)])
def test_a_floor_that_was_never_on_is_not_in_the_legend(floor: float, shown: bool) -> None:
    axes = draw_reports([_report(floor=floor)]).axes
    drawn = {str(line.get_label()) for ax in axes for line in ax.get_lines()}
    assert ("exploration floor" in drawn) is shown
    assert "of KL (alpha)" in drawn
