"""The study of smoothed discriminators: what it looks at, how it judges its predictions, and a small version of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlsmooth.agents import GAIL
from rlsmooth.scripts.studies import gail_smoothing
from rlsmooth.scripts.studies.gail_smoothing import STEPS, TARGETS, Looks, outcomes
from rlsmooth.scripts.studies.imitation_runs import demonstrations, make_generator
from rlsmooth.scripts.studies.runner import Args


def test_looking_changes_nothing() -> None:
    parameters = []
    for is_watched in (False, True):
        generator = make_generator("CartPole-v1", 0)
        trainer = GAIL(demonstrations("CartPole-v1", 1, seed=0), generator, real_target=0.9, seed=0)
        looks = Looks(trainer, every=4)
        trainer.learn(8_192, callback=looks if is_watched else None)
        parameters.append([part.detach().numpy().copy() for part in (*generator.policy.parameters(),)])
        parameters[-1] += [part.detach().numpy().copy() for part in trainer.reward_net.parameters()]
    for plain, watched in zip(*parameters, strict=True):
        np.testing.assert_array_equal(plain, watched)
    assert looks.steps == [8_192]
    assert looks.seen_at == [2_048, 4_096, 6_144, 8_192]
    assert all(len(values) == 4 for values in looks.seen.values())
    assert 0 < looks.seen["probability_generator"][-1] < looks.seen["probability_expert"][-1] < 1
    assert looks.seen["reward_max"][-1] > 0


def runs_of(targets: str, **changed: float) -> list[dict[str, Any]]:
    logit = {"hard": 4.0, "one-sided 0.9": 2.3, "one-sided 0.7": 1.0, "two-sided": 2.3}[targets]
    found = {"logit_max": logit, "probability_expert": 0.9 if targets == "hard" else 0.8, **changed}
    curves = {name: [value, value] for name, value in found.items() if name != "deterministic"}
    return [{"deterministic": changed.get("deterministic", -80.0) + seed / 100, **curves} for seed in range(10)]


def test_predictions_are_judged() -> None:
    env = "Acrobot-v1"
    as_predicted = {env: {targets: runs_of(targets) for targets in TARGETS}}
    assert all(held for _, held in outcomes(as_predicted))

    def failed(**changed: float) -> list[str]:
        arms = {targets: runs_of(targets, **(changed if targets == "two-sided" else {})) for targets in TARGETS}
        return [text.removeprefix(f"{env}: ") for text, held in outcomes({env: arms}) if not held]

    assert failed(logit_max=2.8) == ["largest logits of smoothed targets below 2.7, 1.3 and 2.7"]
    assert failed(probability_expert=0.95) == ["D on the expert's rows is lower in all smoothed arms"]
    clear = "two-sided makes no clear difference to the deterministic return"
    assert failed(deterministic=-90) == [clear]
    assert failed(deterministic=-200) == ["deterministic return above -150 in all arms", clear]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_study_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gail_smoothing.main(Args(folder=tmp_path / "runs", results=tmp_path, workers=1, small=True))
    page = (tmp_path / "gail_smoothing.md").read_text(encoding="utf-8")
    assert page in capsys.readouterr().out
    assert (tmp_path / "gail_smoothing.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((tmp_path / "gail_smoothing.json").read_text(encoding="utf-8"))
    assert list(result["runs"]) == list(STEPS)
    for arms in result["runs"].values():
        assert {targets: len(runs) for targets, runs in arms.items()} == dict.fromkeys(TARGETS, 2)
        assert all(run["steps"] == [8_192] for runs in arms.values() for run in runs)
