"""The benchmark of PPO's overhead runs from start to end, and its ratios, order and verdict are right."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3 import PPO

from rlsmooth.agents import SmoothedPPO
from rlsmooth.agents.smoothed.callback import PolicyEntropyCallback
from rlsmooth.scripts.bench import ppo_overhead
from rlsmooth.scripts.bench.ppo_overhead import LABELS, SETTINGS, build, order_of, summarise, verdict


def records(seconds: dict[str, list[float]], setting: str = "zoo") -> list[dict[str, Any]]:
    return [
        {"setting": setting, "round": number, "contender": name, "seconds": value, "cpu_seconds": 2 * value}
        for name, values in seconds.items()
        for number, value in enumerate(values)
    ]


@pytest.mark.slow
def test_quick_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    ppo_overhead.main(ppo_overhead.Args(quick=True, settings=("zoo",), output=tmp_path))
    assert torch.get_num_threads() == threads
    result = json.loads((tmp_path / "ppo_overhead.json").read_text())
    assert [row["contender"] for row in result["rows"]] == list(LABELS)
    assert len(result["trainings"]) == 2 * len(LABELS)
    assert len({(run["steps"], run["updates"]) for run in result["trainings"]}) == 1  # all do the same work
    for row in result["rows"]:
        own = [run["seconds"] for run in result["trainings"] if run["contender"] == row["contender"]]
        assert row["seconds"]["median"] == pytest.approx(statistics.median(own))
        assert row["seconds_ratio"]["low"] <= row["seconds_ratio"]["estimate"] <= row["seconds_ratio"]["high"]
    assert result["rows"][0]["seconds_ratio"] == {"estimate": 1.0, "low": 1.0, "high": 1.0}
    assert (tmp_path / "ppo_overhead.md").read_text() in capsys.readouterr().out


def test_quick_writes_nothing_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the committed result would be overwritten")

    seconds = {name: [1.0, 1.0] for name in LABELS}
    monkeypatch.setattr(ppo_overhead, "write_result", refuse)
    monkeypatch.setattr(ppo_overhead, "measure", lambda _: [{**run, "steps": 1} for run in records(seconds)])
    ppo_overhead.main(ppo_overhead.Args(quick=True, settings=("zoo",)))
    with pytest.raises(AssertionError, match="overwritten"):
        ppo_overhead.main(ppo_overhead.Args(settings=("zoo",)))


def test_each_contender_is_what_its_label_says() -> None:
    found = {name: build(name, SETTINGS["zoo"], 0, None) for name in LABELS}
    assert {name: type(model) for name, (model, _) in found.items()} == {
        "ppo": PPO,
        "smoothed": SmoothedPPO,
        "off": SmoothedPPO,
        "callback": PPO,
    }
    smoothed, off = found["smoothed"][0], found["off"][0]
    assert isinstance(smoothed, SmoothedPPO)
    assert isinstance(off, SmoothedPPO)
    assert smoothed.is_smoothed
    assert not off.is_smoothed
    assert isinstance(found["callback"][1], PolicyEntropyCallback)
    assert all(found[name][1] is None for name in ("ppo", "smoothed", "off"))
    assert all(model.n_envs == 8 and model.n_steps == 32 for model, _ in found.values())


def test_nobody_is_favoured_by_the_order() -> None:
    rounds = [order_of(number) for number in range(24)]
    for one, two in itertools.combinations(LABELS, 2):
        assert sum(order.index(one) < order.index(two) for order in rounds) == 12
    for name in LABELS:
        assert [sum(order[place] == name for order in rounds) for place in range(4)] == [6, 6, 6, 6]


def test_ratios_are_taken_within_a_round() -> None:
    base = [1.0, 10.0, 2.0, 4.0]  # a slow round strikes both
    rows = summarise(records({name: [value * 1.02 for value in base] for name in LABELS} | {"ppo": base}))
    by_name = {row["contender"]: row for row in rows}
    assert by_name["smoothed"]["seconds_ratio"] == pytest.approx({"estimate": 1.02, "low": 1.02, "high": 1.02})
    assert by_name["smoothed"]["cpu_seconds_ratio"]["estimate"] == pytest.approx(1.02)
    assert verdict(rows).count(", met") == 2


def test_the_verdict_is_about_the_upper_end() -> None:
    base, some = [1.0] * 8, [1.0, 1.0, 1.02, 1.02, 1.03, 1.03, 1.2, 1.2]
    rows = summarise(records({"ppo": base, "smoothed": some, "off": some, "callback": base}))
    row = next(row for row in rows if row["contender"] == "smoothed")
    assert row["seconds_ratio"]["estimate"] < 1.05 < row["seconds_ratio"]["high"]
    assert verdict(rows).count("NOT met") == 1
    assert "PolicyEntropyCallback (zoo): 1.000 [1.000, 1.000], met" in verdict(rows)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="settings has"):
        ppo_overhead.main(ppo_overhead.Args(settings=("atari",)))
    with pytest.raises(ValueError, match="rounds=0"):
        ppo_overhead.main(ppo_overhead.Args(rounds=0))
