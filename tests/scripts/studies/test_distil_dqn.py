"""The study of a distilled DQN: what the arms are told, what is measured, and that it runs from start to end."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from torchmetrics.functional.classification import multiclass_calibration_error

from rlsmooth.data import Demonstrations
from rlsmooth.scripts.studies import distil_dqn, distil_dqn_teachers
from rlsmooth.scripts.studies.runner import Args, Job, Result

PNG = b"\x89PNG\r\n\x1a\n"
VALUES = torch.tensor([[2.0, 1.0, -9.0], [0.0, 3.0, 1.0], [5.0, 4.5, 4.0]])  # gaps 1, 2 and 0.5
ACTIONS = [0, 1, 0]


def demonstrations() -> Demonstrations:
    return Demonstrations.from_arrays(
        np.zeros((3, 1), np.float32),
        ACTIONS,
        observation_space=spaces.Box(-1, 1, (1,)),
        action_space=spaces.Discrete(3),
        episode_ends=[2, 3],
    )


def test_the_hyperparameters_are_rl_zoos() -> None:
    zoo = pytest.importorskip("rl_zoo3")
    yaml = pytest.importorskip("yaml")
    page = yaml.safe_load((Path(zoo.__file__).parent / "hyperparams" / "dqn.yml").read_text())
    for env, ours in distil_dqn_teachers.TEACHERS.items():
        theirs = page[env]
        assert {name: theirs[name] for name in ours} == ours
        assert theirs["gamma"] == 0.99
        assert theirs["policy_kwargs"] == "dict(net_arch=[256, 256])"
        assert set(theirs) == {*ours, "gamma", "policy", "policy_kwargs", "n_timesteps"}


def test_without_a_temperature_the_actions_are_the_lesson() -> None:
    assert distil_dqn.lesson(demonstrations(), VALUES, None).action_probs is None


@pytest.mark.parametrize("temperature", [0.25, 1.0])
def test_with_a_temperature_all_values_are(temperature: float) -> None:
    taught = distil_dqn.lesson(demonstrations(), VALUES, temperature)
    powers = np.exp(VALUES.double().numpy() / temperature)  # the median gap is 1
    expected = powers / powers.sum(-1, keepdims=True)
    np.testing.assert_allclose(taught.action_probs, expected, rtol=1e-7)
    assert taught.actions.tolist() == ACTIONS
    assert taught.sample_episodes(1, seed=0).action_probs is not None


def test_the_measures_against_torchmetrics() -> None:
    logits = 3 * torch.randn(200, 3)
    actions = torch.where(torch.rand(200) < 0.7, logits.argmax(-1), torch.randint(3, (200,)))
    found = distil_dqn.judged(logits, actions)
    probabilities = logits.double().softmax(-1)
    confidence, chosen = probabilities.max(-1)
    hits = (chosen == actions).double().mean()
    assert found["agreement"] == pytest.approx(float(hits))
    assert found["gap"] == pytest.approx(float(confidence.mean() - hits))
    theirs = multiclass_calibration_error(probabilities, actions, num_classes=3, n_bins=15)
    assert found["ece"] == pytest.approx(float(theirs), abs=1e-6)
    nats = torch.distributions.Categorical(probs=probabilities).entropy().mean()
    assert found["entropy"] == pytest.approx(float(nats) / math.log(3))


def test_a_teacher_samples_by_its_values() -> None:
    model = DQN("MlpPolicy", "CartPole-v1", seed=0, device="cpu", policy_kwargs={"net_arch": [8]})
    observations = np.random.default_rng(0).normal(size=(1, 4)).astype(np.float32).repeat(20_000, 0)
    (values,) = distil_dqn_teachers.values_of(model, observations[:1]).double().numpy()
    temperature = float(abs(values[0] - values[1]))  # softmax(1, 0)
    actions, _ = distil_dqn_teachers.ValuePlayer(model, temperature).predict(observations)
    assert np.mean(actions == values.argmax()) == pytest.approx(1 / (1 + math.exp(-1)), abs=0.015)
    greedy, _ = distil_dqn_teachers.ValuePlayer(model, 1e-6).predict(observations[:50])
    assert set(greedy) == {values.argmax()}


def test_teachers_that_did_not_learn_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    returns = [20.0, 500.0, 400.0, 450.0, 9.0, 401.0]

    def scripted(jobs: Sequence[Job], work: object, *, folder: Path, workers: int) -> list[Result]:
        return [{"deterministic": returns[job.settings["teacher"]]} for job in jobs]

    monkeypatch.setattr(distil_dqn_teachers, "run_jobs", scripted)
    found = distil_dqn_teachers.taught("CartPole-v1", {}, wanted=3, bar=400.0, folder=tmp_path, workers=1)
    assert [(number, result["deterministic"]) for number, result in found] == list(enumerate(returns))


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def here(jobs: Sequence[Job], work: Callable[[dict[str, Any]], Result], *, folder: Path, workers: int) -> Any:
        assert len({job.key for job in jobs}) == len(jobs)
        assert folder.is_relative_to(tmp_path / "runs")
        assert workers == 1
        return [work(json.loads(json.dumps(job.settings))) for job in jobs]

    for module in (distil_dqn, distil_dqn_teachers):  # a process for each would take longer than all runs
        monkeypatch.setattr(module, "run_jobs", here)
    distil_dqn.main(Args(folder=tmp_path / "runs", results=tmp_path, workers=1, small=True))
    assert (tmp_path / "distil_dqn.png").read_bytes().startswith(PNG)
    page = (tmp_path / "distil_dqn.md").read_text()
    assert page in capsys.readouterr().out
    result = json.loads((tmp_path / "distil_dqn.json").read_text())
    (teacher,) = result["teachers"]["CartPole-v1"]
    assert teacher["gap"] > 0
    students = result["students"]["CartPole-v1"]
    assert list(students) == list(distil_dqn.ARMS)
    for place in range(2):
        those = [runs[place] for runs in students.values()]
        assert len({run["transitions"] for run in those}) == 1  # all arms learn from the same episodes
        assert len({run["entropy"] for run in those}) == 4
        assert those[0]["entropy"] < those[1]["entropy"]
