"""The study of weighted cloning in a small version, and how it asks its peer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlsmooth.scripts.studies import weighted_cloning as study
from support import assert_raises


def peer(folder: Path, answer: str) -> Path:
    """An interpreter that reads a job as the worker does, and answers without training."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\nimport json, sys\njob = json.loads(sys.stdin.readline())\nprint({answer})\n")
    path.chmod(0o755)
    return path


def test_the_peer_gets_the_job_and_its_answer_or_error_comes_back(tmp_path: Path, monkeypatch: Any) -> None:
    settings = {"env": "Pendulum-v1", "arm": study.PEER, "seed": 3, "demonstrations": str(tmp_path / "a.npz")}
    answer = "json.dumps({'sampled': job['seed'], 'deterministic': job['beta'], 'rate': job['update_rate']})"
    monkeypatch.setenv(study.PEER_PYTHON, str(peer(tmp_path, answer)))
    assert study.train(settings) == {"sampled": 3, "deterministic": 1.0, "rate": 1e-2}
    monkeypatch.setenv(study.PEER_PYTHON, str(peer(tmp_path, "json.dumps({'error': 'TypeError: no'})")))
    assert_raises(ValueError, "RLlib's MARWIL, Pendulum-v1, seed 3: TypeError: no", study.train, settings)


def test_files_begin_with_the_experts_episodes_and_verdicts_follow_the_differences(tmp_path: Path) -> None:
    study.make_demonstrations("Acrobot-v1", 0, tmp_path, small=True)
    data = study.read_demonstrations("Acrobot-v1", tmp_path / "Acrobot-v1_0.npz")
    returns, count = data.episode_returns(), int(data.episode_ends[1])
    assert returns[:2].min() > -200 > returns[2:].max()
    assert len(data) >= 2 * count > len(data) - int(data.episode_lengths()[-1])
    levels = {env: {"random": 0.0, "expert": 200.0} for env in study.EPISODES}
    found: dict[str, Any] = {
        env: {
            arm: [dict.fromkeys(study.KINDS, 100.0 * (place > 0) + seed) for seed in range(10)]
            for place, arm in enumerate(study.WEIGHTS)
        }
        for env in study.EPISODES
    }
    page = study.report(found, levels)
    assert page.count("| not installed | | |") == 3
    assert "CartPole-v1, sampled +50.0" in page
    assert page.count("**holds**") == len(study.WEIGHTS) - 1
    assert page.count("**not shown**") == 1  # equal filters and weights; the peer's pairs are left out


@pytest.mark.slow
def test_it_runs_from_start_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = "json.dumps({'sampled': job['seed'], 'deterministic': 1.0})"
    given: dict[str, Any] = {"folder": tmp_path / "runs", "results": tmp_path, "workers": 1, "small": True}
    study.main(study.Args(**given))
    assert "not installed" in capsys.readouterr().out
    study.main(study.Args(**given, peer_python=peer(tmp_path, answer)))
    page = (tmp_path / "weighted_cloning.md").read_text("utf-8")
    assert "not installed" not in page
    assert page in capsys.readouterr().out
    assert (tmp_path / "weighted_cloning.png").stat().st_size > 1000
    assert np.isfinite(float(page.split("| Pendulum-v1 | expert | | ")[1].split(" ")[0]))
