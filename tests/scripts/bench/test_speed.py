"""The speed benchmarks run from start to end without the peers, and their statistics, ratios and verdicts are right."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from rlsmooth.agents import SmoothedPPO
from rlsmooth.agents.smoothed.callback import PolicyEntropyCallback
from rlsmooth.scripts.bench import bc_speed, loss_speed, ppo_overhead
from rlsmooth.scripts.bench.measure import command_line, paired_ratio, spread
from rlsmooth.scripts.bench.ppo_overhead import LABELS, SETTINGS, build, order_of, summarise, verdict

BENCH = Path(bc_speed.__file__).resolve().parent


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCH / script), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def rows_of(result: dict[str, Any], **wanted: object) -> list[dict[str, Any]]:
    return [row for row in result["rows"] if all(row[key] == value for key, value in wanted.items())]


@pytest.mark.slow
def test_bc_speed_runs_without_the_peers(tmp_path: Path) -> None:
    absent = tmp_path / "no-such-python"
    done = run("bc_speed.py", "--quick", "--data", "random", "--batch-sizes", "256", "--output", str(tmp_path),
               "--d3rlpy-python", str(absent))  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "bc_speed.json").read_text())
    for peer in ("imitation", "d3rlpy"):
        (row,) = rows_of(result, competitor=peer)
        assert row["status"] == "not installed"
        assert "samples_per_second" not in row
    for name in ("rlsmooth", "torch", "torch_fused"):
        (row,) = rows_of(result, competitor=name)
        segments = [part for part in result["segments"] if part["competitor"] == name]
        rates = [part["num_batches"] * 256 / part["seconds"] for part in segments]
        assert len(rates) == 2
        assert row["samples_per_second"]["median"] == pytest.approx(statistics.median(rates))
        assert result["environments"][name]["threads"] == 1
    assert rows_of(result, competitor="torch")[0]["ratio_to_torch"]["median"] == 1.0
    page = (tmp_path / "bc_speed.md").read_text()
    assert page in done.stdout
    assert "| imitation.BC | not installed |" in page
    assert "--quick" in result["command"]


@pytest.mark.slow
def test_loss_speed_runs(tmp_path: Path) -> None:
    done = run("loss_speed.py", "--quick", "--device", "cpu", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "loss_speed.json").read_text())
    assert {row["shape"] for row in result["rows"]} == {"256x2", "64x10"}
    for shape in ("256x2", "64x10"):
        names = {row["contender"] for row in rows_of(result, shape=shape)}
        assert {"rlsmooth, uniform", "rlsmooth, kernel", "rlsmooth, prior", loss_speed.TORCH_SMOOTHED} <= names
        for row in rows_of(result, shape=shape):
            assert row["milliseconds"]["median"] > 0
            assert row["peak_in_logits"] >= 1.0  # the gradient at least
    assert (tmp_path / "loss_speed.md").read_text() in done.stdout


def test_quick_writes_nothing_unless_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the committed result would be overwritten")

    monkeypatch.setattr(loss_speed, "write_result", refuse)
    monkeypatch.setattr(loss_speed, "measure", lambda *_: [])
    loss_speed.main(loss_speed.Args(quick=True, device="cpu", threads=torch.get_num_threads()))
    assert "--quick" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="overwritten"):
        loss_speed.main(loss_speed.Args(device="cpu", threads=torch.get_num_threads()))


def test_contenders_agree_on_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    original = torch.autograd.grad

    def keep(loss: torch.Tensor, logits: torch.Tensor) -> None:
        gradients.append(original(loss, logits)[0])

    monkeypatch.setattr(torch.autograd, "grad", keep)
    steps = loss_speed.contenders(32, 5, "cpu", seed=1)
    by_name = {}
    for name, step in steps.items():
        step()
        by_name[name] = gradients[-1]
    torch.testing.assert_close(by_name["rlsmooth, hard labels"], by_name[loss_speed.TORCH_HARD])
    for name in ("rlsmooth, uniform", "rlsmooth, uniform, made before", "rlsmooth, uniform, written out before"):
        torch.testing.assert_close(by_name[name], by_name[loss_speed.TORCH_SMOOTHED])
    assert not torch.allclose(by_name["rlsmooth, prior"], by_name[loss_speed.TORCH_SMOOTHED])


def test_peak_bytes_sees_what_a_step_allocates() -> None:
    def step() -> None:
        first = torch.ones(1000)
        second = first + 1  # 8,000 bytes held at once
        del first
        third = second + 1  # and again
        del second, third

    assert 8000 <= loss_speed.peak_bytes(step, "cpu") < 8100  # the number 1 is a tensor too


def test_spread_and_paired_ratio_against_numpy() -> None:
    values = [3.0, 1.0, 7.0, 2.0, 9.0, 4.0]
    result = spread(values)
    assert result.median == np.median(values)
    assert (result.lower_quartile, result.upper_quartile) == tuple(np.percentile(values, [25, 75]))
    assert (result.minimum, result.maximum, result.count) == (1.0, 9.0, 6)
    baseline = [2.0, 4.0, 1.0, 5.0, 3.0, 8.0]
    assert paired_ratio(values, baseline).median == pytest.approx(np.median(np.divide(values, baseline)))
    with pytest.raises(ValueError, match="empty"):
        spread([])
    with pytest.raises(ValueError, match="6 rounds and baseline 1"):
        paired_ratio(values, [1.0])


def test_command_line_gives_what_differs_from_the_defaults() -> None:
    args = dataclasses.replace(bc_speed.Args(), rounds=11, batch_sizes=(32, 256), quick=True, output=Path("a b"))
    assert command_line("x.py", args) == "python x.py --batch-sizes 32 256 --rounds 11 --output 'a b' --quick"
    assert command_line("x.py", bc_speed.Args()) == "python x.py"


def test_random_data_has_the_shape_of_cartpole() -> None:
    data = bc_speed.make_data("random", 3)
    assert data["observations"].shape == (bc_speed.NUM_ROWS, 4)
    assert data["observations"].dtype == np.float32
    assert set(np.unique(data["actions"])) == {0, 1}
    assert data["episode_ends"][-1] == bc_speed.NUM_ROWS
    assert (np.diff(data["episode_ends"]) > 0).all()


def test_shipped_data_keeps_its_rows() -> None:
    from rlsmooth.data import cartpole_v1

    shipped = cartpole_v1()
    data = bc_speed.make_data("cartpole-v1", 0)
    shared = min(len(shipped), bc_speed.NUM_ROWS)
    np.testing.assert_array_equal(data["observations"][:shared], np.asarray(shipped.observations)[:shared])
    np.testing.assert_array_equal(data["actions"][:shared], np.asarray(shipped.actions)[:shared])
    assert data["episode_ends"][-1] == bc_speed.NUM_ROWS
    assert (np.diff(data["episode_ends"]) > 0).all()


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="batch_sizes has 100"):
        bc_speed.main(bc_speed.Args(batch_sizes=(100,)))
    with pytest.raises(ValueError, match="shapes has '4by5'"):
        loss_speed.parse_shape("4by5")


@pytest.mark.parametrize(("ratio", "met"), [(0.95, "met"), (0.85, "NOT met")])
def test_verdict(ratio: float, met: str) -> None:
    row = {"competitor": "rlsmooth", "batch_size": 256}
    row |= {"ratio_to_torch": {"median": ratio}, "ratio_to_torch_fused": {"median": 0.7}}
    assert f"Measured: {ratio:.3f}x, {met} (0.700x" in bc_speed.verdict([row])
    assert bc_speed.verdict([]).endswith("Not measured.")


# ---- PPO's overhead
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


def test_quick_writes_nothing_unless_told_of_ppo_overhead(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_bad_arguments_are_named_of_ppo_overhead() -> None:
    with pytest.raises(ValueError, match="settings has"):
        ppo_overhead.main(ppo_overhead.Args(settings=("atari",)))
    with pytest.raises(ValueError, match="rounds=0"):
        ppo_overhead.main(ppo_overhead.Args(rounds=0))
