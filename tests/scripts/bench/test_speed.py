"""The benchmarks run from start to end without the peers; statistics, ratios, pages, records and verdicts are right."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from stable_baselines3 import PPO

from rlsmooth.agents import SmoothedPPO
from rlsmooth.agents.smoothed.callback import PolicyEntropyCallback
from rlsmooth.scripts.bench import (
    bc_speed,
    growth,
    loss_speed,
    peers_adversarial_report,
    peers_adversarial_worker,
    peers_ppo,
    peers_ppo_worker,
    ppo_overhead,
    same_numbers,
    sb3_conformance,
    shuffle_blocks,
    vector_bridge,
)
from rlsmooth.scripts.bench import peers_adversarial as bench
from rlsmooth.scripts.bench.measure import command_line, paired_ratio, spread
from rlsmooth.scripts.bench.ppo_overhead import LABELS, SETTINGS, build, order_of, summarise, verdict
from rlsmooth.scripts.bench.same_numbers import Args as RecordingArgs
from rlsmooth.scripts.bench.same_numbers import Log, digest, largest_difference
from rlsmooth.scripts.bench.same_numbers import compare as compare_recordings
from rlsmooth.scripts.bench.same_numbers import main as record_main
from rlsmooth.scripts.bench.sb3_conformance import Args, check_checkout, compare, fingerprints, main
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.studies.bco_experts import swing_up
from rlsmooth.scripts.studies.ordinal_bins import controller
from support import assert_raises

BENCH = Path(bc_speed.__file__).resolve().parent


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    given: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 120, "check": False}
    given |= {"env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    return subprocess.run([sys.executable, str(BENCH / script), *arguments], **given)


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
    opponents = {
        "masked": loss_speed.TORCH_MASKED,
        "masked, made before": loss_speed.TORCH_MASKED_BEFORE,
        "ordinal": loss_speed.TORCH_TABLE,
        "ordinal, made before": loss_speed.TORCH_TABLE,
    }
    for kind, opponent in opponents.items():
        assert loss_speed.baseline_of(f"rlsmooth, {kind}") == opponent
        torch.testing.assert_close(by_name[f"rlsmooth, {kind}"], by_name[opponent])


def test_another_allocator_is_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[list[str], dict[str, str]]] = []

    def run(words: list[str], *, env: dict[str, str], **_: Any) -> None:
        given.append((words, env))
        folder = Path(words[words.index("--output") + 1])
        (folder / "loss_speed.json").write_text('{"rows": [{"shape": "4x4"}]}')

    monkeypatch.setattr(loss_speed.subprocess, "run", run)
    for name in loss_speed.ALLOCATORS["keeping"]:
        monkeypatch.delenv(name, raising=False)
    args = loss_speed.Args(shapes=("4x4",), rounds=7)
    assert loss_speed.rows_of("cpu", "keeping", ("4x4",), args) == [{"shape": "4x4"}]
    words, environment = given[0]
    assert loss_speed.ALLOCATORS["keeping"].items() <= environment.items()
    assert words[words.index("--allocators") + 1] == "keeping"
    assert words[words.index("--rounds") + 1] == "7"
    monkeypatch.setattr(loss_speed, "measure", lambda *_: [{"shape": "here"}])
    assert loss_speed.rows_of("cpu", "default", ("4x4",), args) == [{"allocator": "default", "shape": "here"}]
    assert len(given) == 1


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
    assert_raises(ValueError, "empty", spread, [])
    assert_raises(ValueError, "6 rounds and baseline 1", paired_ratio, values, [1.0])


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
    assert_raises(ValueError, "batch_sizes has 100", bc_speed.main, bc_speed.Args(batch_sizes=(100,)))
    assert_raises(ValueError, "shapes has '4by5'", loss_speed.parse_shape, "4by5")
    assert_raises(ValueError, "settings has", ppo_overhead.main, ppo_overhead.Args(settings=("atari",)))
    assert_raises(ValueError, "rounds=0", ppo_overhead.main, ppo_overhead.Args(rounds=0))


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
    assert len(result["trainings"]) == 3 * len(LABELS)
    assert len({(run["steps"], run["updates"]) for run in result["trainings"]}) == 1  # all do the same work
    for row in result["rows"]:
        own = [run["seconds"] for run in result["trainings"] if run["contender"] == row["contender"]]
        assert row["seconds"]["median"] == pytest.approx(statistics.median(own))
        assert row["seconds_ratio"]["low"] <= row["seconds_ratio"]["estimate"] <= row["seconds_ratio"]["high"]
    assert result["rows"][0]["seconds_ratio"] == {"estimate": 1.0, "low": 1.0, "high": 1.0}
    assert (tmp_path / "ppo_overhead.md").read_text() in capsys.readouterr().out


@pytest.mark.parametrize("module", [loss_speed, ppo_overhead])
def test_quick_writes_nothing_unless_told(module: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the committed result would be overwritten")

    measured = [{**run, "steps": 1} for run in records({name: [1.0] * 3 for name in LABELS})]
    monkeypatch.setattr(module, "write_result", refuse)
    monkeypatch.setattr(module, "measure", lambda *_: [] if module is loss_speed else measured)
    monkeypatch.setattr(ppo_overhead, "predict_times", lambda *_: [])
    threads = {"device": "cpu", "threads": torch.get_num_threads()}
    given: dict[str, Any] = {**threads, "allocators": ("default",)} if module is loss_speed else {"settings": ("zoo",)}
    module.main(module.Args(quick=True, **given))
    assert "--quick" in capsys.readouterr().out
    assert_raises(AssertionError, "overwritten", module.main, module.Args(**given))


def test_each_contender_is_what_its_label_says() -> None:
    found = {name: build(name, SETTINGS["zoo"], 0, None) for name in LABELS}
    assert {name: type(model) for name, (model, _) in found.items()} == {
        "ppo": PPO,
        "smoothed": SmoothedPPO,
        "numpy": SmoothedPPO,
        "guarantee": SmoothedPPO,
        "off": SmoothedPPO,
        "callback": PPO,
    }
    assert [found[name][0].engine for name in ("smoothed", "numpy", "off")] == ["torch", "numpy", "torch"]  # type: ignore[attr-defined]
    smoothed, off = found["smoothed"][0], found["off"][0]
    assert isinstance(smoothed, SmoothedPPO)
    assert isinstance(off, SmoothedPPO)
    assert smoothed.is_smoothed
    assert not off.is_smoothed
    assert found["guarantee"][0].policy.min_entropy_frac == 0.5
    assert isinstance(found["callback"][1], PolicyEntropyCallback)
    assert all(found[name][1] is None for name in ("ppo", "smoothed", "off"))
    assert all(model.n_envs == 8 and model.n_steps == 32 for model, _ in found.values())


def test_nobody_is_favoured_by_the_order() -> None:
    rounds = [order_of(number) for number in range(24)]
    for one, two in itertools.combinations(LABELS, 2):
        assert sum(order.index(one) < order.index(two) for order in rounds) == 12
    for name in LABELS:
        assert [sum(order[place] == name for order in rounds) for place in range(6)] == [4] * 6


def test_ratios_are_taken_within_a_round() -> None:
    base = [1.0, 10.0, 2.0, 4.0]  # a slow round strikes both
    rows = summarise(records({name: [value * 1.02 for value in base] for name in LABELS} | {"ppo": base}))
    by_name = {row["contender"]: row for row in rows}
    assert by_name["smoothed"]["seconds_ratio"] == pytest.approx({"estimate": 1.02, "low": 1.02, "high": 1.02})
    assert by_name["smoothed"]["cpu_seconds_ratio"]["estimate"] == pytest.approx(1.02)
    assert verdict(rows).count(", met") == 2  # the guarantee and the callback; smoothing has to be faster


def test_the_verdict_is_about_the_upper_end() -> None:
    base, some = [1.0] * 8, [0.8, 0.8, 0.82, 0.82, 0.83, 0.83, 1.0, 1.0]
    rows = summarise(
        records({"ppo": base, "smoothed": some, "numpy": [0.1] * 8, "guarantee": some, "off": some, "callback": base})
    )
    row = next(row for row in rows if row["contender"] == "smoothed")
    assert row["cpu_seconds_ratio"]["estimate"] < 1 / 1.15 < row["cpu_seconds_ratio"]["high"]
    assert verdict(rows).count("NOT met") == 1
    assert "PolicyEntropyCallback (zoo): 1.000 [1.000, 1.000], met" in verdict(rows)


# ---- beside imitation: its experts, its settings, its page, and a small run of our side


EXPERTS = peers_adversarial_worker.EXPERTS
MACHINE = {"cpu": "a CPU", "cores": 2, "system": "Linux", "date": "today"}


def a_run(arm: str, seed: int, value: float, *, seconds: float = 1.0) -> dict[str, Any]:
    side = "imitation" if arm.startswith("imitation") else "rlsmooth"
    return {
        "job": {"side": side, "algorithm": "GAIL", "env": "CartPole-v1", "arm": arm, "seed": seed},
        "result": {"deterministic": value, "sampled": value, "seconds": seconds, "cpu_seconds": seconds},
        "environment": {"torch": "2"},
    }


@pytest.mark.parametrize(("env", "one_by_one"), [("Acrobot-v1", swing_up), ("Pendulum-v1", controller)])
def test_experts_are_those_of_the_studies(env: str, one_by_one: Any) -> None:
    generator = np.random.default_rng(0)
    angles = generator.uniform(-np.pi, np.pi, (200, 2))
    speeds = generator.uniform(-6, 6, (200, 2))
    columns = [np.cos(angles[:, 0]), np.sin(angles[:, 0]), np.cos(angles[:, 1]), np.sin(angles[:, 1])]
    if env == "Pendulum-v1":
        columns = columns[:2]
    observations = np.stack([*columns, *speeds.T[: 2 if env == "Acrobot-v1" else 1]], axis=1).astype(np.float32)
    expected = np.stack([np.asarray(one_by_one(observation)) for observation in observations])
    np.testing.assert_allclose(EXPERTS[env](observations), expected, rtol=1e-6)


def test_the_expert_of_cartpole_balances() -> None:
    env = gym.make("CartPole-v1")
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        steps, is_over = 0, False
        while not is_over:
            observation, _, terminated, truncated, _ = env.step(int(EXPERTS["CartPole-v1"](observation[None])[0]))
            steps, is_over = steps + 1, terminated or truncated
        assert steps == 500


def test_every_cell_is_the_same_for_both_sides(tmp_path: Path) -> None:
    jobs = bench.jobs_of(bench.Args(seeds=1), tmp_path, timed=False)
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for job in jobs:
        cells.setdefault((job["env"], job["algorithm"]), []).append(job)
    assert len(cells) == 13
    own = ("key", "side", "arm", "options")
    for cell, some in cells.items():
        shared = [{name: value for name, value in job.items() if name not in own} for job in some]
        assert all(one == shared[0] for one in shared), cell
        assert [job["side"] for job in some].count("imitation") == 1
    assert len({job["key"] for job in jobs}) == len(jobs)
    assert (tmp_path / "demonstrations" / jobs[0]["demonstrations"]).is_file()


def test_a_result_of_other_settings_is_refused(tmp_path: Path) -> None:
    (job, *_) = bench.jobs_of(bench.Args(small=True, algorithms=("BC",)), tmp_path, timed=False)
    assert not bench.is_done(job, tmp_path)
    path = tmp_path / f"{job['key']}.json"
    path.write_text(json.dumps({"job": job, "result": {}}))
    assert bench.is_done(job, tmp_path)
    path.write_text(json.dumps({"job": {**job, "epochs": 99}, "result": {}}))
    assert_raises(ValueError, "other settings", bench.is_done, job, tmp_path)


def test_the_page_compares_seed_by_seed_and_repeat_by_repeat() -> None:
    runs = [a_run(arm, seed, value) for arm, value in (("imitation", 100.0), ("defaults", 130.0)) for seed in range(4)]
    times = [a_run("imitation", seed, 0.0, seconds=2.0 + seed) for seed in range(3)]
    times += [a_run("defaults", seed, 0.0, seconds=(2.0 + seed) / 4) for seed in reversed(range(3))]
    page = peers_adversarial_report.report("Title.\n\nText.", runs, times, command="python x", machine=MACHINE)
    assert "| GAIL, CartPole-v1: defaults | 4 | 130.0 (130.0 to 130.0) | +30.0 (+30.0 to +30.0) |" in page
    assert "added afterwards" not in page
    runs += [
        a_run(arm, seed, seed + more) for arm, more in (("imitation", 0), ("defaults", -7)) for seed in range(10, 14)
    ]
    later = peers_adversarial_report.report("Title.\n\nText.", runs, times, command="python x", machine=MACHINE)
    assert page.split("## Returns")[1].split("\n\n")[1] in later  # the planned seeds' table is what it was
    assert "### Seeds 10 to 13, added afterwards" in later
    assert (
        "seed by seed (both have the same demonstrations), mean with Student's t interval: deterministic -7.0" in later
    )
    assert "0.25 (0.25 to 0.25)" in page
    assert "not installed" not in page


def test_a_peer_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    absent = tmp_path / "no-such-python"
    arguments = ["--peer-python", str(absent), "--folder", str(tmp_path), "--small", "--sides", "imitation"]
    code = run_command("bench peers-adversarial", bench.Args, bench.main, [*arguments, "--algorithms", "BC"])
    assert code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "--peer-python" in line
    assert "can't be run" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithms", "envs"),
    [(("BC",), ("CartPole-v1",)), pytest.param(("BC", "DAgger", "GAIL", "AIRL"), bench.ENVS, marks=pytest.mark.slow)],
)
def test_our_side_runs_alone(algorithms: Any, envs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = bench.Args(small=True, folder=tmp_path, workers=1, algorithms=algorithms, envs=envs)
    bench.main(args)
    said = capsys.readouterr().out
    assert "imitation: no --peer-python, so its runs are left out" in said.splitlines()
    data = json.loads((tmp_path / "peers_adversarial.json").read_text())
    cells = {(run["job"]["env"], run["job"]["algorithm"], run["job"]["arm"]) for run in data["runs"]}
    expected = {
        (env, algorithm, arm)
        for env in envs
        for algorithm in algorithms
        for arm, (side, _) in bench.arms_of(algorithm, env).items()
        if side == "rlsmooth" and (algorithm, env) in bench.CELLS
    }
    assert cells == expected
    assert {(run["job"]["env"], run["job"]["algorithm"], run["job"]["arm"]) for run in data["times"]} == expected
    assert str(tmp_path) not in json.dumps(data)
    assert data["environments"]["rlsmooth"]["threads"] == 1
    page = (tmp_path / "peers_adversarial.md").read_text()
    assert "imitation: not installed" in page
    bench.main(args)  # all is done
    assert "0 runs to make" in capsys.readouterr().out


# ---- PPO beside its peers


def a_ppo_run(name: str, seed: int, speed: float, solved: float | None) -> dict[str, Any]:
    run = {"competitor": name, "seed": seed, "steps_per_cpu_second": speed, "final_return": 500.0, "load": [1.0]}
    run |= {"before_training": 3.0, "first_fifth": 1.0, "cpu_seconds": 9.0, "environment": {"torch": "2"}}
    return {**run, "steps_to_475": solved and 30_000, "cpu_seconds_to_475": solved}


def test_the_page_of_ppo_compares_seed_by_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {("stock", 0): (1e3, 20.0), ("stock", 1): (3e3, 30.0), ("numpy", 0): (4e3, None), ("numpy", 1): (6e3, 10.0)}

    def run_once(python: Path | None, job: dict[str, Any], _: float) -> dict[str, Any]:
        name = "stock" if job["kind"] == "stock" else "numpy"
        return a_ppo_run(name, job["seed"], *made[name, job["seed"]]) if python else {"error": "not installed"}

    monkeypatch.setattr(peers_ppo, "run_once", run_once)
    names = ("stock", "cleanrl", "numpy")
    python, absent = tmp_path / "peer-scripts" / "bin" / "python", tmp_path / "cleanrl"
    args = peers_ppo.Args(2, competitors=names, work=tmp_path, output=tmp_path, scripts_python=python)
    peers_ppo.main(dataclasses.replace(args, cleanrl_checkout=absent))
    monkeypatch.delattr(peers_ppo, "run_once")
    page, found = (tmp_path / "peers_ppo.md").read_text(), json.loads((tmp_path / "peers_ppo.json").read_text())
    assert "| stable_baselines3.PPO | 2,000 (1,000 to 3,000) | 1.00 | 25.0 (20.0 to 30.0) | 1.00 | 2 of 2 |" in page
    assert "| SmoothedPPO, numpy | 5,000 (4,000 to 6,000) | 3.00 | 10.0 (10.0 to 10.0) | 0.33 | 1 of 2 |" in page
    assert "| CleanRL, ppo.py | not installed |" in page
    assert str(tmp_path) not in page + json.dumps(found)
    assert "--scripts-python ../peer-scripts/bin/python --cleanrl-checkout ../cleanrl" in found["command"]
    # What is done is not done again, and only that: run_once is gone.
    assert peers_ppo.measure(dataclasses.replace(args, competitors=("stock", "numpy")))[0]["final_return"] == 500
    with pytest.raises(NameError, match="run_once"):
        peers_ppo.measure(args)


def test_a_peer_that_cannot_be_run_is_not_installed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert peers_ppo.job_of("leanrl", 0, peers_ppo.Args(scripts_python=Path(sys.executable)))[0] is None
    assert peers_ppo.run_once(tmp_path / "python", {}, 1.0) == {"error": "not installed"}
    assert "python can't be run" in capsys.readouterr().err


def test_training_is_seen_from_inside_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("step", "reset"):  # so that both are as before afterwards
        monkeypatch.setattr(CartPoleEnv, name, getattr(CartPoleEnv, name))
    watch = peers_ppo_worker.Watch(2 * peers_ppo_worker.ROLLOUT)
    watch.install()
    envs = [gym.make("CartPole-v1"), gym.make("CartPole-v1")]
    lengths, steps, own = [], 0, [0, 0]
    for env in envs:
        env.reset(seed=1)
    while steps < 2 * peers_ppo_worker.ROLLOUT + 40:
        for number, env in enumerate(envs):
            *_, terminated, truncated, _ = env.step(steps // 2 % 2)
            steps, own[number] = steps + 1, own[number] + 1
            if terminated or truncated:
                lengths += [own[number]] if steps <= 2 * peers_ppo_worker.ROLLOUT else []
                own[number] = 0
                env.reset()
    assert watch.returns == lengths
    assert len(lengths) > 5
    assert len(watch.rollouts) == 2
    assert 0 < watch.began <= watch.rollouts[0] <= watch.rollouts[1] <= peers_ppo_worker.cpu_seconds()
    assert watch.solved is None
    for length in [9, *[450, 500] * 9, 450]:
        watch.finished(length)
    assert watch.solved is None
    watch.finished(500)
    assert watch.solved is not None
    assert watch.solved[0] == steps


@pytest.mark.slow
def test_our_runs_of_ppo_and_stock_answer(tmp_path: Path) -> None:
    names = ("stock", "torch", "numpy", "command_numpy", "sbx")
    peers_ppo.main(peers_ppo.Args(1, 5_120, names, output=tmp_path))
    found = json.loads((tmp_path / "peers_ppo.json").read_text())
    runs = {run["competitor"]: run for run in found["runs"]}
    assert runs.pop("sbx")["error"] == "not installed"
    for run in runs.values():
        assert 0 < run["before_training"] < run["before_training"] + run["first_fifth"] < run["cpu_seconds"]
    for key in ("final_return", "last_training_returns"):  # smoothing 0 is the same algorithm, bit for bit
        assert runs["stock"][key] == runs["torch"][key]


# ---- SB3's own tests with our classes


TESTS = """
import pytest
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.ppo import MlpPolicy


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_the_name(algorithm):
    assert algorithm.__name__ in ("PPO", "A2C")


def test_smoothing():
    assert getattr(PPO("MlpPolicy", "CartPole-v1", device="cpu"), "smoothing", None) is None


def test_nothing_on():
    model = PPO("MlpPolicy", "CartPole-v1", device="cpu")
    assert not getattr(model, "is_smoothed", False)


def test_policies():
    model = PPO(MlpPolicy, "CartPole-v1", device="cpu")
    assert isinstance(model.policy, ActorCriticPolicy) and MlpPolicy is ActorCriticPolicy


@pytest.mark.skip
def test_left_out():
    pass


@pytest.mark.xfail
def test_wrong():
    assert 1 == 2


def test_sac():
    assert False
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    (folder / "tests").mkdir(parents=True)
    (folder / "stable_baselines3").mkdir()
    (folder / "stable_baselines3" / "version.txt").write_text(f"{stable_baselines3.__version__}\n")
    (folder / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (folder / "tests" / "test_small.py").write_text(TESTS)
    other = "from stable_baselines3 import SAC\n\ndef test_it(): assert False\n"
    (folder / "tests" / "test_other.py").write_text(other)
    return folder


@pytest.mark.slow
def test_it_finds_what_ends_otherwise(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sb3_conformance, "fingerprints", list)
    work = tmp_path / "work"
    work.mkdir()
    # As if an earlier process had been cut off after this test, which would pass if it ran again.
    kept = {"test": "tests/test_small.py::test_policies", "outcome": "failed", "message": "kept", "built": []}
    (work / "checkout-on.jsonl").write_text(json.dumps(kept) + "\n")
    result = main(Args(checkout, output=tmp_path / "results", work=work, workers=2))
    named = {(found["test"].partition("::")[2], found["mode"]) for found in result["differences"]}
    both = {("test_the_name[PPO]", "off"), ("test_the_name[A2C]", "off"), ("test_smoothing", "off")}
    assert named == both | {(test, "on") for test, _ in both} | {("test_nothing_on", "on"), ("test_policies", "on")}
    endings = result["tests"]["stable-baselines3"]
    assert endings["tests/test_small.py::test_policies"] == ["passed", "passed", "failed"]
    assert endings["tests/test_small.py::test_left_out"] == ["skipped"] * 3
    assert endings["tests/test_small.py::test_wrong"] == ["xfailed"] * 3
    assert result["counts"]["stable-baselines3"]["parents"] == {"passed": 5, "skipped": 1, "xfailed": 1}
    assert result["built_ours"]["stable-baselines3"] == {"parents": 0, "off": 3, "on": 2}
    assert json.loads((tmp_path / "results" / "sb3_conformance.json").read_text()) == result
    page = (tmp_path / "results" / "sb3_conformance.md").read_text()
    assert "`tests/test_small.py::test_nothing_on`, ours, smoothing on: failed" in page
    assert str(tmp_path) not in page


def test_a_test_that_is_missing_is_a_difference() -> None:
    passed: dict[str, Any] = {"outcome": "passed", "message": ""}
    found = compare(
        "a", {"parents": {"t": passed, "u": passed}, "off": {"t": passed}, "on": {"t": passed, "u": passed}}
    )
    assert [(one.test, one.mode, one.parents, one.ours) for one in found] == [("u", "off", "passed", "not run")]


@pytest.mark.slow
def test_off_is_the_parent_and_on_is_not() -> None:
    rows = fingerprints(128)
    assert len(rows) == 7
    for row in rows:
        assert row["parents"] == row["off"] != row["on"], row


def test_another_version_is_told(checkout: Path) -> None:
    (checkout / "stable_baselines3" / "version.txt").write_text("2.0.0")
    with pytest.raises(ValueError, match=r"checkout is of version 2\.0\.0, installed is"):
        check_checkout("checkout", checkout, "stable_baselines3")
    with pytest.raises(ValueError, match="is no source folder of stable_baselines3"):
        check_checkout("checkout", checkout / "tests", "stable_baselines3")


# ---- the recorder of digests


ENVIRONMENT = {"torch": "2"}
RECORDING: dict[str, Any] = {
    "environment": ENVIRONMENT,
    "runs": {
        "first": {"parameters": "a1", "tags": {"bc/loss": [[1, 2], [0.5, 0.25]], "bc/ece": [[2], ["nan"]]}},
        "second": {"parameters": "b2", "tags": {"train/loss": [[8], [300.0]]}},
    },
}


@pytest.fixture
def after() -> dict[str, Any]:
    """A second recording, equal to the first."""
    return copy.deepcopy(RECORDING)


def test_equal_recordings_have_no_difference(after: dict[str, Any]) -> None:
    table, faults = compare_recordings(RECORDING, after)
    assert faults == []
    assert table.splitlines()[2:] == ["| first | a1 | a1 | yes | 2 | 0 |", "| second | b2 | b2 | yes | 1 | 0 |"]


def test_another_digest_is_found(after: dict[str, Any]) -> None:
    after["runs"]["second"]["parameters"] = "b3"
    table, faults = compare_recordings(RECORDING, after)
    assert faults == ["second: the parameters differ"]
    assert "| second | b2 | b3 | NO | 1 | 0 |" in table


def test_another_value_is_found(after: dict[str, Any]) -> None:
    after["runs"]["first"]["tags"]["bc/loss"][1][1] += 5e-7
    after["runs"]["second"]["tags"]["train/loss"][1][0] += 2e-4  # relative: 7e-7
    assert compare_recordings(RECORDING, after)[1] == []
    after["runs"]["first"]["tags"]["bc/loss"][1][1] = 0.26
    table, faults = compare_recordings(RECORDING, after)
    assert faults == ["first: bc/loss differs by 0.01"]
    assert "| first | a1 | a1 | yes | 2 | 0.01 |" in table


@pytest.mark.parametrize(
    "other", [[[1, 3], [0.5, 0.25]], [[1], [0.5]], [[1, 2], [0.5, "nan"]], [[1, 2], ["inf", 0.25]]]
)
def test_other_steps_and_lost_numbers_are_found(other: list[Any]) -> None:
    assert largest_difference([[1, 2], [0.5, 0.25]], other) == float("inf")
    assert largest_difference(other, [[1, 2], [0.5, 0.25]]) == float("inf")


def test_a_missing_tag_and_a_missing_run_are_found_and_a_new_tag_is_shown(after: dict[str, Any]) -> None:
    tags = after["runs"]["first"]["tags"]
    tags["bc/error"] = tags.pop("bc/ece")
    del after["runs"]["second"]
    table, faults = compare_recordings(RECORDING, after)
    assert faults == ["first: bc/ece is missing", "second: the run is missing"]
    assert "| first | a1 | a1 | yes | 1, 1 missing, 1 new | 0 |" in table


def test_the_exit_status_says_whether_files_differ(tmp_path: Path, after: dict[str, Any]) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text(json.dumps(RECORDING))
    second.write_text(json.dumps(after))
    assert record_main(RecordingArgs(compare=(first, second))) == 0
    del after["runs"]["first"]["tags"]["bc/loss"]
    second.write_text(json.dumps(after))
    assert record_main(RecordingArgs(compare=(first, second))) == 1


def test_a_digest_sees_one_bit() -> None:
    linear = torch.nn.Linear(2, 2)
    found = digest([linear])
    assert found == digest([copy.deepcopy(linear)])
    with torch.no_grad():
        linear.bias[0] = torch.nextafter(linear.bias[0], torch.tensor(2.0))
    assert found != digest([linear])


def test_a_log_keeps_all_but_timings() -> None:
    log = Log()
    logger = log.logger
    logger.record("train/loss", 1 / 3)
    logger.record("train/n_updates", 4, exclude="tensorboard")
    logger.record("train/histogram", torch.tensor([1.0, 3.0]))
    logger.record("time/fps", 100)
    logger.dump(7)
    assert log.tags == {
        "train/loss": ([7], [0.333333333]),
        "train/n_updates": ([7], [4.0]),
        "train/histogram/mean": ([7], [2.0]),
        "train/histogram/std": ([7], [1.0]),
    }


def test_a_run_is_recorded_and_repeats(tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    name = "inverse-dynamics-box"
    for file in (first, second):
        torch.rand(3)
        assert record_main(RecordingArgs(output=file, only=(name,))) == 0
    assert first.read_text() == second.read_text()
    run = json.loads(first.read_text())["runs"][name]
    assert len(run["parameters"]) == 64
    assert run["tags"]["inverse_dynamics/val_accuracy"][1][0] > 0


def test_an_unknown_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no such run: nothing\. There are bc-discrete, "):
        record_main(RecordingArgs(only=("nothing",)))


def test_the_reference_holds_every_run() -> None:
    reference = Path(same_numbers.__file__).parent / "results" / "same_numbers_before.json"
    assert json.loads(reference.read_text())["runs"].keys() == same_numbers.RUNS.keys()


def test_shuffling_in_blocks_is_compared_with_the_full_shuffle_seed_by_seed() -> None:
    found = {name: shuffle_blocks.accuracies(2, name, 300, 2) for name in ("1", shuffle_blocks.FULL)}
    assert [[len(run) for run in runs] for runs in found.values()] == [[2, 2], [2, 2]]
    assert found["1"] != found["full"]
    text = shuffle_blocks.report({"1": [[0.5, 0.6], [0.5, 0.4]], "full": [[0.5, 0.7], [0.5, 0.7]]}, 300)
    assert "| 1 | 50.00 ± 0.00 | 50.00 ± 10.00 | -20.00 ± 10.00 |" in text
    assert "| full | 50.00 ± 0.00 | 70.00 ± 0.00 | 0.00 ± 0.00 |" in text
    rows = shuffle_blocks.reading(1_100, (1, 2))
    assert [row["wanted"] for row in rows] == [1024 * 392 / 1e6] * 2 + [2 * 1024 * 392 / 1e6] * 2
    assert "| 300 | blocks | 120 | 269 | 2.2 |" in shuffle_blocks.report_bytes(
        [{"updates": 300, "shuffle": "blocks", "wanted": 120.4, "read": 268.9}], 10
    )


def test_growth_has_slopes_and_a_figure(tmp_path: Path) -> None:
    points = [{"size": size, "seconds": size**0.5, "mib": 3.0 * size} for size in (1, 2, 4, 8, 16, 32)]
    assert [round(growth.slope(points, name)[0], 6) for name in growth.UNITS] == [0.5, 1.0]
    bent = [{**point, "mib": 9.0 if point["size"] < 4 else point["size"]} for point in points]
    assert round(growth.slope(bent, "mib")[0], 6) == 1.0  # what is constant at first does not count
    rows = [{"axis": "tree", "points": points, "seconds_slope": 0.5, "mib_slope": 1.0}]
    growth.draw(tmp_path / "growth.png", rows)
    assert (tmp_path / "growth.png").stat().st_size > 10_000
    found = growth.measure_here("classes", 2_048)
    assert found["size"] == 2_048
    assert found["seconds"] > 0
    assert 0 <= found["mib"] < 20  # memory that the process has already counts for nothing


@pytest.mark.slow
def test_the_bridge_is_measured(tmp_path: Path) -> None:
    vector_bridge.main(vector_bridge.Args(quick=True, output=tmp_path))
    result = json.loads((tmp_path / "vector_bridge.json").read_text())
    assert {row["n_envs"] for row in result["raw"]} == {row["n_envs"] for row in result["training"]} == {8, 64, 256}
    dummy, bridge, *_ = result["curves"]
    assert dummy["returns"] == bridge["returns"]  # the same numbers, seed by seed
    assert vector_bridge.mean_with_interval([1.0, 2.0, 3.0]) == "2.0 [-0.5, 4.5]"  # 4.303 / sqrt(3) = 2.48 around 2
