"""The benchmark beside imitation: its experts, its settings, its page, and a small run of our side alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rlsmooth.scripts.bench import peers_adversarial as bench
from rlsmooth.scripts.bench import peers_adversarial_report, peers_adversarial_worker
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.studies.bco_experts import swing_up
from rlsmooth.scripts.studies.ordinal_bins import controller

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
    assert len(cells) == 12
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
    with pytest.raises(ValueError, match="other settings"):
        bench.is_done(job, tmp_path)


def test_the_page_compares_seed_by_seed_and_repeat_by_repeat() -> None:
    runs = [a_run(arm, seed, value) for arm, value in (("imitation", 100.0), ("defaults", 130.0)) for seed in range(4)]
    times = [a_run("imitation", seed, 0.0, seconds=2.0 + seed) for seed in range(3)]
    times += [a_run("defaults", seed, 0.0, seconds=(2.0 + seed) / 4) for seed in reversed(range(3))]
    page = peers_adversarial_report.report("Title.\n\nText.", runs, times, command="python x", machine=MACHINE)
    assert "| GAIL, CartPole-v1: defaults | 4 | 130.0 (130.0 to 130.0) | +30.0 (+30.0 to +30.0) |" in page
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
        if side == "rlsmooth"
    }
    assert cells == expected
    assert {(run["job"]["env"], run["job"]["algorithm"], run["job"]["arm"]) for run in data["times"]} == expected
    assert str(tmp_path) not in json.dumps(data)
    assert data["environments"]["rlsmooth"]["threads"] == 1
    page = (tmp_path / "peers_adversarial.md").read_text()
    assert "imitation: not installed" in page
    bench.main(args)  # all is done
    assert "0 runs to make" in capsys.readouterr().out
