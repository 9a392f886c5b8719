"""The table of claims is that of the committed results, and its verdicts follow the rules."""

from __future__ import annotations

import dataclasses

import pytest

from rlsmooth.audits import Interval
from rlsmooth.scripts.studies.claims import BEGIN, END, LINES, NAMES, PAGE, judge, read_studies, table, verdict

ABOVE, BELOW, NEITHER, SMALL = (0.5, 0.2, 0.8), (-0.5, -0.8, -0.2), (0.1, -0.4, 0.6), (0.01, 0.005, 0.015)
LINE = dataclasses.replace(LINES[0], side=1, least=0.1, find=lambda studies: iter(()))


def test_the_page_has_the_table_of_the_committed_results() -> None:
    page = PAGE.read_text(encoding="utf-8")
    judged = judge(read_studies())
    assert page.partition(BEGIN)[2].partition(END)[0].strip() == table(judged)
    assert {entry.line.number for entry in judged} == set(NAMES) == set(range(1, 11))
    assert all(entry.seeds >= 10 for entry in judged if entry.line.find is not None)


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({"x": ABOVE, "y": ABOVE}, "holds"),
        ({"x": ABOVE, "y": NEITHER}, "holds only if the data are x"),
        ({"x": ABOVE, "y": BELOW}, "holds only if the data are x"),
        ({"x": ABOVE, "y": SMALL}, "holds only if the data are x"),
        ({"x": BELOW, "y": NEITHER}, "does not hold"),
        ({"x": NEITHER, "y": NEITHER}, "not shown"),
        ({"x": SMALL}, "not shown"),
    ],
)
def test_verdicts_follow_the_rules(found: dict[str, tuple[float, float, float]], says: str, side: int) -> None:
    intervals = {name: Interval(*(side * part for part in parts)) for name, parts in found.items()}
    turned = {name: Interval(it.estimate, *sorted((it.low, it.high))) for name, it in intervals.items()}
    assert verdict(dataclasses.replace(LINE, side=side), turned) == says
    assert verdict(dataclasses.replace(LINE, side=side, contradicted=True), turned) == "does not hold"
    assert verdict(dataclasses.replace(LINE, side=side, condition="it rains"), turned) == "holds only if it rains"


def test_an_identity_holds() -> None:
    assert verdict(LINE, {}) == "holds"
