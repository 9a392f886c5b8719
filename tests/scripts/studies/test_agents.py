"""Small versions of the studies of agents: experts, arms and measures are as they say, and they run to the end."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from torchmetrics.functional.classification import multiclass_calibration_error

from rlsmooth.agents import GAIL
from rlsmooth.data import Demonstrations, record
from rlsmooth.scripts.studies import (
    bco,
    bco_experts,
    distil_dqn,
    distil_dqn_teachers,
    gail_smoothing,
    ordinal_bins,
    value_targets,
    variable_horizon,
)
from rlsmooth.scripts.studies.gail_smoothing import STEPS, TARGETS, Looks, outcomes
from rlsmooth.scripts.studies.imitation_runs import demonstrations as few_episodes
from rlsmooth.scripts.studies.imitation_runs import demonstrations as one_episode
from rlsmooth.scripts.studies.imitation_runs import make_generator
from rlsmooth.scripts.studies.runner import Args, Job, Result
from rlsmooth.scripts.studies.variable_horizon import ARMS, PREDICTED, ConstantLogit
from rlsmooth.targets import Smoothing


def test_the_grid_knows_mountain_cars_dynamics() -> None:
    env: Any = gym.make("MountainCar-v0").unwrapped
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    for _ in range(200):
        position, velocity, action = rng.uniform(-1.2, 0.6), rng.uniform(-0.07, 0.07), int(rng.integers(3))
        env.state = (position, velocity)
        seen, *_ = env.step(action)
        moved = bco_experts._moved(np.array([position]), np.array([velocity]), action)
        np.testing.assert_allclose(np.concatenate(moved), seen, atol=1e-6)


@pytest.mark.slow
def test_experts_are_experts(tmp_path: Path) -> None:
    bco_experts.make_experts(tmp_path, small=True)
    found = bco_experts.references(tmp_path)
    assert found["CartPole-v1"]["expert"] == 500
    assert found["MountainCar-v0"]["expert"] > -110  # solved
    assert found["Acrobot-v1"]["expert"] > -100  # solved
    assert found["MountainCar-v0"]["random"] == -200


@pytest.mark.slow
def test_the_study_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bco.main(Args(folder=tmp_path / "runs", results=tmp_path, workers=1, small=True))
    page = (tmp_path / "bco.md").read_text(encoding="utf-8")
    assert page in capsys.readouterr().out
    assert (tmp_path / "bco.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((tmp_path / "bco.json").read_text(encoding="utf-8"))
    for env in bco.ENVS:
        runs = result["runs"][env]
        assert list(runs) == list(bco.ARMS)
        assert all(len(of_arm) == 2 for of_arm in runs.values())
        assert runs["BCO, smoothing 0.1"][0]["transitions"] == [200, 400]
        assert f"{result['references'][env]['expert']:.1f}" in page


# ---- a distilled DQN
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


# ---- smoothed discriminators
def test_looking_changes_nothing() -> None:
    parameters = []
    for is_watched in (False, True):
        generator = make_generator("CartPole-v1", 0)
        trainer = GAIL(few_episodes("CartPole-v1", 1, seed=0), generator, real_target=0.9, seed=0)
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
def test_the_study_runs_of_gail_smoothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gail_smoothing.main(Args(folder=tmp_path / "runs", results=tmp_path, workers=1, small=True))
    page = (tmp_path / "gail_smoothing.md").read_text(encoding="utf-8")
    assert page in capsys.readouterr().out
    assert (tmp_path / "gail_smoothing.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((tmp_path / "gail_smoothing.json").read_text(encoding="utf-8"))
    assert list(result["runs"]) == list(STEPS)
    for arms in result["runs"].values():
        assert {targets: len(runs) for targets, runs in arms.items()} == dict.fromkeys(TARGETS, 2)
        assert all(run["steps"] == [8_192] for runs in arms.values() for run in runs)


# ---- ordered bins
def test_the_controller_is_an_expert() -> None:
    episodes = record(ordinal_bins.controller, ordinal_bins.ENV, 10, seed=0)
    assert float(np.mean(episodes.episode_returns())) > -250  # random actions: about -1200


def test_the_ordinal_arm_smooths_near_bins_alone() -> None:
    arm = ordinal_bins.ARMS["bins, ordinal 0.1"]
    target = Smoothing(arm["alpha"], arm["reference"])(torch.tensor([10]), arm["bins"]).dense()[0]
    assert float(target[10]) == pytest.approx(0.9)
    assert float(target[9] + target[11]) > 0.09
    assert float(target[7:14].sum()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.slow
def test_it_runs_from_start_to_end(tmp_path: Path) -> None:
    ordinal_bins.main(Args(folder=tmp_path / "runs", results=tmp_path, workers=1, small=True))
    assert (tmp_path / "ordinal_bins.png").read_bytes().startswith(PNG)
    assert set(json.loads((tmp_path / "ordinal_bins.json").read_text())["runs"]) == {
        f"{arm}|{episodes}" for arm in ordinal_bins.ARMS for episodes in ordinal_bins.EPISODES
    }


# ---- value targets
def test_the_chances_are_of_a_walk_that_stays_at_the_goal() -> None:
    chances, cells, goal = value_targets.four_rooms()
    assert len(cells) == 104
    np.testing.assert_allclose(chances.sum(-1), 1.0)
    np.testing.assert_array_equal(chances[goal[0], :, goal[0]], 1.0)


def test_the_optimum_is_that_of_policy_iteration() -> None:
    chances, _, goal = value_targets.four_rooms()
    best = value_targets.optimum(chances, goal)
    rewards = chances[:, :, goal[0]].copy()
    rewards[goal] = 0.0
    actions = np.zeros(len(chances), dtype=np.int64)
    for _ in range(100):  # Howard's policy iteration, each policy evaluated exactly
        rows = np.arange(len(chances))
        steps = chances[rows, actions]
        values = np.linalg.solve(np.eye(len(chances)) - value_targets.DISCOUNT * steps, rewards[rows, actions])
        q = rewards + value_targets.DISCOUNT * chances @ values
        improved = q.argmax(-1)
        if (q[rows, improved] <= q[rows, actions] + 1e-12).all():
            break
        actions = improved
    np.testing.assert_allclose(best, q, atol=1e-9)
    assert value_targets.policy_value(best.argmax(-1), chances, goal) == pytest.approx(np.delete(values, goal).mean())


@pytest.mark.parametrize("head", value_targets.HEADS)
def test_each_head_learns_constant_values(head: str) -> None:
    torch.manual_seed(0)
    critic = value_targets.Critic(head)
    optimiser = torch.optim.Adam(critic.parameters(), lr=0.01)
    places, actions = torch.rand(64, 2 * len(value_targets.ROOMS)), torch.zeros(64, dtype=torch.int64)
    goals = critic.goals(torch.full((64,), 0.4))
    for _ in range(150):
        optimiser.zero_grad()
        critic.loss(places, actions, goals).backward()
        optimiser.step()
    assert critic(places)[:, 0].sub(0.4).abs().max() < 0.05


@pytest.mark.slow
def test_it_runs_from_start_to_end_of_value_targets(tmp_path: Path) -> None:
    value_targets.main(Args(folder=tmp_path / "runs", results=tmp_path, workers=1, small=True))
    assert (tmp_path / "value_targets.png").read_bytes().startswith(PNG)
    assert json.loads((tmp_path / "value_targets.json").read_text())
    assert "hl_gauss" in (tmp_path / "value_targets.md").read_text()


# ---- variable horizons
@pytest.mark.parametrize(("form", "sign"), [("minus_log_one_minus_d", 1), ("log_d", -1)])
def test_a_constant_discriminator_never_learns_and_pays_by_the_step(form: Any, sign: int) -> None:
    given = one_episode("CartPole-v1", 1, seed=0)
    states = np.asarray(given[np.arange(6)].observations)
    actions, ends = np.zeros(6, dtype=np.int64), np.array([False, True] * 3)
    for terminal_states, expected in (("as_is", sign * math.log(2)), ("absorbing", 0.0)):
        generator = make_generator("CartPole-v1", 0)
        trainer = GAIL(given, generator, ConstantLogit(), reward_form=form, terminal_states=terminal_states, seed=0)  # type: ignore[arg-type]
        trainer.learn(1_024)
        assert trainer.rounds == 2
        assert all(float(parameter.detach()) == 0 for parameter in trainer.reward_net.parameters())
        rewards = trainer.predict_reward(states, actions, states, ends)
        np.testing.assert_allclose(rewards, expected, atol=1e-6)
        assert expected != 0 or not rewards.any()  # exactly 0


def test_arms_have_predictions_and_both_experts_are_what_the_study_says() -> None:
    for env, arms in ARMS.items():
        assert list(PREDICTED[env]) == [arm for arm in arms if arm.startswith("D ")]
    assert (one_episode("CartPole-v1", 2, seed=0).episode_returns() == 500).all()
    assert float(np.mean(one_episode("Acrobot-v1", 10, seed=0).episode_returns())) > -100


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_study_runs_of_variable_horizon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_rng_state()
    variable_horizon.main(Args(folder=tmp_path / "runs", results=tmp_path, workers=1, small=True))
    assert torch.equal(before, torch.get_rng_state())
    page = (tmp_path / "variable_horizon.md").read_text(encoding="utf-8")
    assert page in capsys.readouterr().out
    assert (tmp_path / "variable_horizon.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((tmp_path / "variable_horizon.json").read_text(encoding="utf-8"))
    for env, arms in ARMS.items():
        assert list(result["runs"][env]) == list(arms)
        assert all(len(runs) == 2 for runs in result["runs"][env].values())
        assert result["runs"][env]["PPO, true reward"][0]["steps"] == [8_192]
