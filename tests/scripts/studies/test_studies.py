"""The studies run from start to end in a small version, go on where they were broken off, and count as they say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import PPO

from rlsmooth.scripts.studies import collapse, deep_sea
from rlsmooth.scripts.studies.runner import Args, Job, results_folder, run_jobs
from rlsmooth.scripts.studies.study_callbacks import Watch, mean_return

NAMES = ("bc_to_ppo", "cartpole", "collapse", "deep_sea")
PNG = b"\x89PNG\r\n\x1a\n"


def run_study(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", f"rlsmooth.scripts.studies.{name}", "--small", "--workers", "2"]
    return subprocess.run(
        [*command, "--folder", str(folder / "runs"), "--results", str(folder)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def summary(name: str, folder: Path) -> dict[str, Any]:
    assert (folder / f"{name}.png").read_bytes().startswith(PNG)
    result: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    assert result["versions"]
    return result


@pytest.mark.slow
def test_cartpole_goes_on_run_by_run(tmp_path: Path) -> None:
    first = run_study("cartpole", tmp_path)
    assert first.returncode == 0, first.stderr
    result = summary("cartpole", tmp_path)
    page = (tmp_path / "cartpole.md").read_text()
    assert page in first.stdout
    assert f"{sum(run['deterministic'] == 500 for run in result['runs'])} of 2 seeds" in page
    kept, lost = tmp_path / "runs" / "seed_0.json", tmp_path / "runs" / "seed_1.json"
    before, content = kept.stat().st_mtime_ns, lost.read_bytes()
    assert json.loads(content)["result"] == result["runs"][1]
    lost.unlink()  # as if it had been broken off before this run ended
    second = run_study("cartpole", tmp_path)
    assert second.returncode == 0, second.stderr
    assert "1 of 2 runs are done" in second.stdout
    assert kept.stat().st_mtime_ns == before
    assert lost.read_bytes() == content  # the seed decides everything
    assert (tmp_path / "cartpole.md").read_text() == page


@pytest.mark.slow
def test_bc_to_ppo_runs(tmp_path: Path) -> None:
    done = run_study("bc_to_ppo", tmp_path)
    assert done.returncode == 0, done.stderr
    result = summary("bc_to_ppo", tmp_path)
    assert list(result["runs"]) == ["neither", "KL to the clone", "value warm-up", "both"]
    for arm, runs in result["runs"].items():
        for place, run in enumerate(runs):
            assert run["returns"][0] == result["runs"]["neither"][place]["returns"][0]  # all arms start from one clone
            assert result["scores"][arm]["lowest"][place] == min(run["returns"][1:])
            assert result["scores"][arm]["mean over training"][place] == pytest.approx(np.mean(run["returns"][1:]))
            if arm in ("value warm-up", "both"):  # the small budget is less than the warm-up: the actor stays
                assert len(set(run["returns"])) == 1
    assert len(set(result["runs"]["neither"][0]["returns"])) > 1


@pytest.mark.slow
def test_collapse_runs(tmp_path: Path) -> None:
    done = run_study("collapse", tmp_path)
    assert done.returncode == 0, done.stderr
    result = summary("collapse", tmp_path)
    assert {arm: len(runs) for arm, runs in result["runs"].items()} == dict.fromkeys(collapse.ARMS, 2)
    for runs in result["runs"].values():
        for run in runs:
            assert all(0 < fraction <= 1 for fraction in run["entropy_fractions"])
            assert run["entropy_steps"] == sorted(set(run["entropy_steps"]))


@pytest.mark.slow
def test_deep_sea_runs(tmp_path: Path) -> None:
    done = run_study("deep_sea", tmp_path)
    assert done.returncode == 0, done.stderr
    result = summary("deep_sea", tmp_path)
    assert result["chosen"] == deep_sea.chosen_settings(result["tuning"])
    page = (tmp_path / "deep_sea.md").read_text()
    for arm, by_size in result["tests"].items():
        solved = sum(run["solved"] for run in by_size["4"])
        assert re.search(rf"^\| {re.escape(arm)} \| [^|]+ \| {solved} \(", page, flags=re.MULTILINE)
    settings = [json.loads(path.read_text())["settings"] for path in (tmp_path / "runs").iterdir()]
    assert {run["seed"] for run in settings} == {100, 0, 1}


def test_a_failed_run_keeps_what_is_done(tmp_path: Path) -> None:
    # dict(settings) is the settings again, and fails on those that are no mapping.
    jobs = [Job("good", {"number": 1}), Job("bad", 7)]  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not iterable"):
        run_jobs(jobs, dict, folder=tmp_path, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["good.json"]
    written = (tmp_path / "good.json").stat().st_mtime_ns
    assert run_jobs([jobs[0], Job("other", {"number": 2})], dict, folder=tmp_path, workers=1) == [
        {"number": 1},
        {"number": 2},
    ]
    assert (tmp_path / "good.json").stat().st_mtime_ns == written


def test_results_of_other_settings_are_refused(tmp_path: Path) -> None:
    run_jobs([Job("one", {"seeds": (1, 2)})], dict, folder=tmp_path, workers=1)
    assert run_jobs([Job("one", {"seeds": (1, 2)})], dict, folder=tmp_path, workers=1) == [{"seeds": [1, 2]}]
    with pytest.raises(ValueError, match=r"one\.json' was made by other settings: remove it"):
        run_jobs([Job("one", {"seeds": (1, 3)})], dict, folder=tmp_path, workers=1)


@pytest.mark.parametrize("name", NAMES)
def test_small_versions_write_nothing_among_the_results(name: str, repository: Path) -> None:
    runs, results = results_folder(Args(small=True), name)
    assert results == runs == Path(f"logs/studies/{name}-small")
    assert results_folder(Args(), name)[1].resolve() == (repository / "scripts" / "studies" / "results").resolve()


@pytest.mark.parametrize("name", NAMES)
def test_each_study_has_a_make_target(name: str, repository: Path) -> None:
    makefile = (repository / "Makefile").read_text()
    target = f"study-{name.replace('_', '-')}"
    assert re.search(rf"^{target}: .*##.*\n\t.* -m rlsmooth\.scripts\.studies\.{name} ", makefile, flags=re.MULTILINE)
    assert re.search(rf"^\.PHONY:.* {target}\b", makefile, flags=re.MULTILINE)


def test_the_shares_near_and_below_the_target() -> None:
    # The first 20 % of 100 steps do not count; of the rest, two of four lie in 0.45 to 0.55, and one below.
    run = {"entropy_steps": [10, 20, 40, 60, 80, 100], "entropy_fractions": [0.5, 0.5, 0.46, 0.54, 0.44, 0.56]}
    assert collapse.shares(run, 0.5, budget=100) == (0.5, 0.25)


def test_tuning_favours_solved_then_fast_then_first() -> None:
    def runs(*solved_steps: tuple[bool, int]) -> list[dict[str, Any]]:
        return [{"solved": solved, "steps": steps} for solved, steps in solved_steps]

    tuning = {
        "solved": [runs((False, 10), (True, 10)), runs((True, 90), (True, 90))],
        "fast": [runs((True, 50), (True, 50)), runs((True, 20), (True, 60)), runs((True, 45), (True, 45))],
        "first": [runs((False, 99)), runs((False, 99))],
    }
    assert deep_sea.chosen_settings(tuning) == {"solved": 1, "fast": 1, "first": 0}


def test_watching_changes_nothing() -> None:
    parameters = []
    for callback in (
        None,
        Watch(32, lambda model: mean_return(model, "CartPole-v1", seed=3, episodes=2, deterministic=False)),
    ):
        model = PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, seed=0, device="cpu")
        model.learn(96, callback=callback)
        parameters.append([parameter.detach().numpy().copy() for parameter in model.policy.parameters()])
        if callback is not None:
            assert callback.steps == [0, 32, 64, 96]
            assert callback.entropy_steps == [32, 64, 96]
            assert len(callback.seen) == 4
    for plain, watched in zip(*parameters, strict=True):
        np.testing.assert_array_equal(plain, watched)
