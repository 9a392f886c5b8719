"""The studies in a small version: they run to the end, resume, count as they say, and their arms differ as they say."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from stable_baselines3 import DQN, PPO
from torch import nn
from torchmetrics.functional.classification import multiclass_calibration_error

from commands import written, zoo_file
from rlsmooth.agents import GAIL
from rlsmooth.data import Demonstrations, load_labelled, record
from rlsmooth.scripts.studies import (
    bco,
    bco_experts,
    collapse,
    deep_sea,
    digits,
    distil_dqn,
    distil_dqn_teachers,
    entropy_guarantee,
    fairness,
    gail_smoothing,
    gan_modes,
    hierarchy,
    hybrid_digits,
    hybrid_iris,
    ordinal_bins,
    ordinal_classes,
    policies,
    privacy,
    pseudo_gradients,
    self_training,
    value_targets,
    variable_horizon,
)
from rlsmooth.scripts.studies.gail_smoothing import STEPS, TARGETS, Looks, outcomes
from rlsmooth.scripts.studies.imitation_runs import demonstrations as few_episodes
from rlsmooth.scripts.studies.imitation_runs import make_generator
from rlsmooth.scripts.studies.runner import Args, Job, Result
from rlsmooth.scripts.studies.study_callbacks import Watch, mean_return
from rlsmooth.scripts.studies.variable_horizon import ARMS, PREDICTED, ConstantLogit
from rlsmooth.targets import Smoothing, Tree
from rlsmooth.training import generator_loss


def run_study(name: str, folder: Path, workers: int = 2) -> tuple[dict[str, Any], str, str]:
    """The result, the page and the output of a study's small version, in a process of its own."""
    command = [sys.executable, "-P", "-m", f"rlsmooth.scripts.studies.{name}", "--small", "--workers", str(workers)]
    given: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 240, "check": False, "cwd": folder}
    given |= {"env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    done = subprocess.run([*command, "--folder", str(folder / "runs"), "--results", str(folder)], **given)
    assert done.returncode == 0, done.stderr
    return *written(name, folder), done.stdout


def run_here(study: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """The result and the page of a study's small version, in this process; the page is printed."""
    study.main(Args(folder=folder / "runs", results=folder, workers=1, small=True))
    result, page = written(study.__name__.rpartition(".")[2], folder)
    assert page in capsys.readouterr().out
    return result, page


@pytest.mark.slow
def test_cartpole_goes_on_run_by_run(tmp_path: Path) -> None:
    result, page, printed = run_study("cartpole", tmp_path)
    assert page in printed
    assert f"{sum(run['deterministic'] == 500 for run in result['runs'])} of 3 seeds" in page
    kept, lost = tmp_path / "runs" / "seed_0.json", tmp_path / "runs" / "seed_1.json"
    before, content = kept.stat().st_mtime_ns, lost.read_bytes()
    assert json.loads(content)["result"] == result["runs"][1]
    lost.unlink()  # as if it had been broken off before this run ended
    _, again, printed = run_study("cartpole", tmp_path)
    assert "2 of 3 runs are done" in printed
    assert kept.stat().st_mtime_ns == before
    assert lost.read_bytes() == content  # the seed decides everything
    assert again == page


@pytest.mark.slow
def test_bc_to_ppo_runs(tmp_path: Path) -> None:
    result, _, _ = run_study("bc_to_ppo", tmp_path)
    assert list(result["runs"]) == ["neither", "KL to the clone", "value warm-up", "both", "both, guarantee"]
    for arm, runs in result["runs"].items():
        for place, run in enumerate(runs):
            if arm != "both, guarantee":  # all others start as the clone itself
                assert run["returns"][0] == result["runs"]["neither"][place]["returns"][0]
            else:
                assert min(run["entropy_fractions"]) >= 0.3
            assert result["scores"][arm]["lowest"][place] == min(run["returns"][1:])
            assert result["scores"][arm]["mean over training"][place] == pytest.approx(np.mean(run["returns"][1:]))
            if arm not in ("neither", "KL to the clone"):  # the small budget is less than the warm-up: the actor stays
                assert len(set(run["returns"])) == 1
    assert len(set(result["runs"]["neither"][0]["returns"])) > 1


@pytest.mark.slow
def test_entropy_guarantee_runs(tmp_path: Path) -> None:
    given = Args(folder=tmp_path / "runs", results=tmp_path, workers=1, small=True)
    entropy_guarantee.main(given)
    runs = json.loads((tmp_path / "entropy_guarantee.json").read_text(encoding="utf-8"))["runs"]
    assert {run["kind"] for run in runs if "kind" in run} == set(entropy_guarantee.KINDS)
    assert {(run["task"], run["arm"]) for run in runs if "task" in run} >= {("Deep Sea", "after, min 0.3")}
    for run in runs:
        if "kind" in run:
            assert (run["rollouts"], run["below"]) == (4, 0)
            assert run["gap"] < 1e-5
        else:
            assert all(0 < mean <= 1 for mean in run["means"])


@pytest.mark.slow
def test_collapse_runs(tmp_path: Path) -> None:
    result, _, _ = run_study("collapse", tmp_path)
    assert {arm: len(runs) for arm, runs in result["runs"].items()} == dict.fromkeys(collapse.ARMS, 3)
    for runs in result["runs"].values():
        for run in runs:
            assert all(0 < fraction <= 1 for fraction in run["entropy_fractions"])
            assert run["entropy_steps"] == sorted(set(run["entropy_steps"]))


@pytest.mark.slow
def test_deep_sea_runs(tmp_path: Path) -> None:
    result, page, _ = run_study("deep_sea", tmp_path)
    assert result["chosen"] == deep_sea.chosen_settings(result["tuning"])
    for arm, by_size in result["tests"].items():
        solved = sum(run["solved"] for run in by_size["4"])
        assert re.search(rf"^\| {re.escape(arm)} \| [^|]+ \| {solved} \(", page, flags=re.MULTILINE)
    settings = [json.loads(path.read_text())["settings"] for path in (tmp_path / "runs").iterdir()]
    assert {run["seed"] for run in settings} == {100, 0, 1}


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


# ---- agents


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
    result, page = run_here(bco, tmp_path, capsys)
    for env in bco.ENVS:
        runs = result["runs"][env]
        assert list(runs) == list(bco.ARMS)
        assert all(len(of_arm) == 3 for of_arm in runs.values())
        assert runs["BCO, smoothing 0.1"][0]["transitions"] == [200, 400]
        assert f"{result['references'][env]['expert']:.1f}" in page


# ---- a distilled DQN
VALUES = torch.tensor([[2.0, 1.0, -9.0], [0.0, 3.0, 1.0], [5.0, 4.5, 4.0]])  # gaps 1, 2 and 0.5
ACTIONS = [0, 1, 0]


def demonstrations() -> Demonstrations:
    given: dict[str, Any] = {"observation_space": spaces.Box(-1, 1, (1,)), "action_space": spaces.Discrete(3)}
    given |= {"episode_ends": [2, 3]}
    return Demonstrations.from_arrays(np.zeros((3, 1), np.float32), ACTIONS, **given)


def test_the_hyperparameters_are_rl_zoos() -> None:
    yaml = pytest.importorskip("yaml")
    page = yaml.safe_load(zoo_file("dqn").read_text())
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
    result, _ = run_here(distil_dqn, tmp_path, capsys)
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
@pytest.mark.slow
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
    result, _ = run_here(gail_smoothing, tmp_path, capsys)
    assert list(result["runs"]) == list(STEPS)
    for arms in result["runs"].values():
        assert {targets: len(runs) for targets, runs in arms.items()} == dict.fromkeys(TARGETS, 3)
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


# ---- variable horizons
@pytest.mark.parametrize(("form", "sign"), [("minus_log_one_minus_d", 1), ("log_d", -1)])
def test_a_constant_discriminator_never_learns_and_pays_by_the_step(form: Any, sign: int) -> None:
    given = few_episodes("CartPole-v1", 1, seed=0)
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
    assert (few_episodes("CartPole-v1", 2, seed=0).episode_returns() == 500).all()
    assert float(np.mean(few_episodes("Acrobot-v1", 10, seed=0).episode_returns())) > -100


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_study_runs_of_variable_horizon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_rng_state()
    result, _ = run_here(variable_horizon, tmp_path, capsys)
    assert torch.equal(before, torch.get_rng_state())
    for env, arms in ARMS.items():
        assert list(result["runs"][env]) == list(arms)
        assert all(len(runs) == 3 for runs in result["runs"][env].values())
        assert result["runs"][env]["PPO, true reward"][0]["steps"] == [8_192]


# ---- classifiers and GANs


def test_the_best_margins_are_the_formulas() -> None:
    assert digits.best_margin(0.0) == math.inf
    for alpha in digits.ALPHAS[1:]:
        assert digits.best_margin(alpha) == pytest.approx(math.log(1 + 10 * (1 - alpha) / alpha))


def test_one_run() -> None:
    plain, noisy = (
        digits.train({"arm": "x", "alpha": value, "noise": value, "seed": 0, "epochs": 8}) for value in (0.0, 0.2)
    )
    assert plain["rows"] == [1078, 360, 359]
    assert sum(plain["bins"]["counts"]) == 359
    assert plain["plain"]["accuracy"] == plain["scaled"]["accuracy"] > 0.85
    assert plain["temperature"] == pytest.approx(plain["scaled"]["temperature"])
    assert noisy["plain"]["accuracy"] > 0.7
    assert noisy["training_margin"] < plain["training_margin"]
    hits = np.dot(plain["bins"]["counts"], plain["bins"]["accuracy"])
    assert hits / 359 == pytest.approx(plain["plain"]["accuracy"])


ARMS_OF: dict[Any, tuple[Any, str]] = {  # and what the page has of an arm
    ordinal_bins: ([f"{arm}|{number}" for arm in ordinal_bins.ARMS for number in ordinal_bins.EPISODES], ""),
    digits: ([digits.arm_of(alpha, noise) for alpha in digits.ALPHAS for noise in digits.NOISES], ""),
    hybrid_iris: (hybrid_iris.ARMS, "\n| {} |"),
    ordinal_classes: ([f"{data}, {arm}" for data in ordinal_classes.DATA for arm in ordinal_classes.ARMS], ""),
    hybrid_digits: ([f"{kind}, {arm}" for kind in hybrid_digits.SHARES for arm in hybrid_digits.arms_of(kind)], ""),
    fairness: (
        [fairness.arm_of(*arm) for arm in itertools.product(fairness.DATA, fairness.EPOCHS, fairness.ALPHAS)],
        "",
    ),
    privacy: ([f"alpha {alpha:g}" for alpha in privacy.ALPHAS], ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("study", ARMS_OF)
def test_it_runs_from_start_to_end(study: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, page = run_here(study, tmp_path, capsys)
    arms, shown = ARMS_OF[study]
    assert {arm: len(runs) for arm, runs in result["runs"].items()} == dict.fromkeys(arms, 3)
    assert all(shown.format(arm) in page for arm in arms)
    assert study is not digits or "| 0.1 | scaled |" in page


@pytest.mark.slow
def test_it_runs_from_start_to_end_of_pseudo_gradients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, page = run_here(pseudo_gradients, tmp_path, capsys)
    assert len(result["runs"]) == 3
    assert all(f"\n| {alpha:g} |" in page for alpha in pseudo_gradients.ALPHAS)
    for run in result["runs"]:
        assert run["ratios"]["0.1"][0] < 1 < run["ratios"]["0.1"][-1]


@pytest.mark.slow
def test_it_runs_from_start_to_end_of_policies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, _ = run_here(policies, tmp_path, capsys)
    arms = [policies.arm_of(env, alpha) for env in policies.ENVS for alpha in policies.ALPHAS]
    assert list(result["runs"]) == arms
    for arm in arms:
        columns, hard = result["runs"][arm], result["runs"][f"{arm.partition(',')[0]}, alpha 0"]
        assert {len(column) for column in columns.values()} == {3}
        assert columns["before: exact"] == columns["after: exact"] == [1.0] * 3
        gap = {skill: np.array(columns[f"gap, {skill}"]) for skill in policies.SKILLS}
        np.testing.assert_allclose(columns["D, plain"], gap["weak"] - gap["skilled"], atol=2e-6)
        assert columns["rows, weak"] == hard["rows, weak"]  # arms share the split, and the agent as built
        assert columns["before: LLG, 8"] == hard["before: LLG, 8"]
    assert len(set(columns["gap, weak"])) == 3


def test_d_within_shared_cells_compares_like_with_like() -> None:
    cells = np.repeat([0, 1, 2], (60, 60, 9))
    is_weak = np.tile([True, False, False], 43)
    hits = np.where(cells == 0, 0.0, 1.0)
    sure = 0.5 + 0.1 * is_weak  # within a cell D is 0.1, and the third has too few
    found, share = policies.within_cells(sure, hits, is_weak, cells)
    assert found == pytest.approx(0.1)
    assert share == pytest.approx(120 / 129)
    assert np.isnan(policies.within_cells(sure[120:], hits[120:], is_weak[120:], cells[120:])[0])


@pytest.mark.slow
def test_it_runs_from_start_to_end_of_value_targets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "hl_gauss" in run_here(value_targets, tmp_path, capsys)[1]


# ---- taxonomy
TREE = Tree.from_nested({"a": ["p", "q", "r"], "b": ["s"], "c": ["t", "u"]})


@pytest.mark.parametrize("arm", [arm for arm in hierarchy.ARMS if arm != "Boltzmann, decay 1"])
def test_an_arm_takes_its_mass_off_the_label(arm: str) -> None:
    settings = hierarchy.ARMS[arm]
    smoothing = hierarchy.smoothing_of(TREE, alpha=settings["alpha"], decay=settings["decay"])
    dense = smoothing(torch.arange(6), 6).dense(torch.float64)
    expected = torch.full((6,), 1 - settings["alpha"], dtype=torch.float64)
    torch.testing.assert_close(dense.diagonal(), expected, rtol=0, atol=1e-12)
    ratio = dense[0, 1] / dense[0, 3]  # a relative's share to a stranger's
    if settings["alpha"]:
        ratios = {0.0: 1.0, 0.5: 2.718, 1.0: 7.389, 2.0: 54.6}
        assert ratio.item() == pytest.approx(ratios[settings["decay"]], rel=1e-3)


def test_each_comparison_is_of_two_arms_of_one_mass_or_of_flat_and_none() -> None:
    pairs = hierarchy.planned_pairs()
    assert len(pairs) == len(hierarchy.ARMS) - 1
    for one, other in pairs:
        assert {one, other} <= hierarchy.ARMS.keys()
        if other.startswith("flat"):
            assert hierarchy.ARMS[one]["alpha"] == hierarchy.ARMS[other]["alpha"]
        else:
            assert other == "none"


def test_differences_go_seed_by_seed() -> None:
    arms = {"x": [{"nll": 3.0}, {"nll": 1.0}], "y": [{"nll": 1.0}, {"nll": 2.0}]}
    assert hierarchy.differences(arms, "nll", "x", "y") == [2.0, -1.0]


def test_every_arm_has_a_colour_of_its_kind() -> None:
    assert hierarchy.colour_of("none") == hierarchy.COLOURS["none"]
    assert hierarchy.colour_of("hierarchical 0.3, decay 2") == hierarchy.COLOURS["decay 2"]
    assert hierarchy.colour_of("Boltzmann, decay 1") != hierarchy.colour_of("hierarchical 0.1, decay 1")


def test_one_run_of_hierarchy() -> None:
    arm = "hierarchical 0.1, decay 1"
    settings: dict[str, Any] = {"arm": arm, "data": "olive", "seed": 0, **hierarchy.DATA["olive"]}
    settings |= {**hierarchy.ARMS[arm]}
    result = hierarchy.train({**settings, "epochs": 20})
    assert result["rows"] == [114, 115, 343]
    assert result["accuracy"] > 0.5
    assert 1 <= result["mistake_severity"] <= 2
    assert result["distance_at_1"] == pytest.approx(result["mistake_severity"] * (1 - result["accuracy"]), abs=1e-6)
    assert result["scaled_nll"] < result["nll"]  # so early it is not confident enough
    assert result["temperature"] < 1


def test_the_rodents_are_a_taxonomy_of_two_levels() -> None:
    data = load_labelled("rodents")
    assert (data.num_classes, len(data.hierarchy)) == (24, 9)
    needed = sum(hierarchy.DATA["rodents"][part] for part in ("train", "tune", "test"))
    assert needed < len(data)


@pytest.mark.slow
def test_it_runs_from_start_to_end_of_hierarchy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, page = run_here(hierarchy, tmp_path, capsys)
    for name in hierarchy.DATA:
        assert {arm: len(runs) for arm, runs in result["runs"][name].items()} == dict.fromkeys(hierarchy.ARMS, 3)
    assert all(page.count(f"\n| {arm} |") == 2 for arm in hierarchy.ARMS)


# ---- iris
@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        ("hybrids (1/3, 2/3)", [[1, 0], [1 / 3, 2 / 3], [0, 1]]),
        ("hybrids (1/2, 1/2)", [[1, 0], [1 / 2, 1 / 2], [0, 1]]),
        ("three classes", [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
    ],
)
def test_what_the_arms_train_on(arm: str, expected: list[list[float]]) -> None:
    target = hybrid_iris.target_of(torch.arange(3), **hybrid_iris.ARMS[arm])
    torch.testing.assert_close(target.dense(torch.float64), torch.tensor(expected, dtype=torch.float64))


def test_what_the_parents_alone_train_on() -> None:
    parents = torch.tensor([hybrid_iris.SETOSA, hybrid_iris.VIRGINICA])
    hard = hybrid_iris.target_of(parents, **hybrid_iris.ARMS["parents, hard"])
    torch.testing.assert_close(hard.dense(), torch.eye(2))
    smoothed = hybrid_iris.target_of(parents, **hybrid_iris.ARMS["parents, smoothed by 0.1"])
    torch.testing.assert_close(smoothed.dense(), torch.tensor([[0.95, 0.05], [0.05, 0.95]]))


def test_the_discriminant_is_scikit_learns() -> None:
    data = load_labelled("iris")
    parents = data.labels != hybrid_iris.VERSICOLOR
    model = LinearDiscriminantAnalysis(solver="lsqr").fit(data.features[parents], data.labels[parents])
    setosa, versicolor, virginica = (
        float((data.features[data.labels == species].astype(np.float64) @ model.coef_[0]).mean())
        for species in range(3)
    )
    ours = hybrid_iris.discriminant_place(data)
    assert ours == pytest.approx((versicolor - setosa) / (virginica - setosa), rel=1e-4)


@pytest.mark.parametrize("arm", ["parents, hard", "hybrids (1/3, 2/3)", "three classes"])
def test_one_run_of_hybrid_iris(arm: str) -> None:
    settings: dict[str, Any] = {"arm": arm, "seed": 0, "epochs": 60, **hybrid_iris.ARMS[arm]}
    result = hybrid_iris.train(settings)
    assert [len(shares) for shares in result["shares"]] == [15, 15, 15]
    assert result["hybrid_share"] == pytest.approx(np.mean(result["shares"][1]))
    assert result["setosa_share"] > 0.9
    assert result["virginica_share"] > 0.8
    assert result["told"] > (0.6 if arm == "parents, hard" else 0.85)
    errors = [abs(np.asarray(shares) - truth) for shares, truth in zip(result["shares"], (0, 2 / 3, 1), strict=True)]
    assert result["error"] == pytest.approx(np.concatenate(errors).mean())


# ---- self-training
def settings(arm: str, epochs: int = 8) -> dict[str, Any]:
    return {"arm": arm, "seed": 0, "epochs": epochs, "arguments": self_training.ARMS.get(arm, {})}


def test_the_rounds_of_an_arm_without_a_threshold_label_every_row() -> None:
    rows = len(load_labelled("digits").split(0.25, seed=0)[0])
    assert rows == 1348
    arms = [arguments for arguments in self_training.ARMS.values() if "k_best" in arguments]
    assert len(arms) == 5
    for arguments in arms:
        assert (arguments["max_iter"] - 1) * arguments["k_best"] < rows - self_training.LABELS
        assert arguments["max_iter"] * arguments["k_best"] >= rows - self_training.LABELS


def test_all_arms_start_from_one_teacher_and_the_bound_is_that_teacher() -> None:
    arms = {
        arm: self_training.train({**settings(arm), "arguments": {**self_training.ARMS[arm], "max_iter": 1}})
        for arm in ("hard", "smoothed 0.1", "confidence-adaptive")
    }
    first = {arm: result["rounds"][0] for arm, result in arms.items()}
    for arm in ("smoothed 0.1", "confidence-adaptive"):
        assert first[arm]["gradients"]["hard"] == first["hard"]["gradients"]["hard"]
        assert first[arm]["gradients"]["target"] != first[arm]["gradients"]["hard"]
        assert first[arm]["new_accuracy"] == first["hard"]["new_accuracy"]
    assert first["hard"]["gradients"]["target"] == first["hard"]["gradients"]["hard"]
    assert first["hard"]["num_labelled"] == 50 + 220
    few = self_training.train(settings("50 labels alone"))
    assert few.keys() == {"accuracy", "ece"}
    assert 0.2 < few["accuracy"] < 0.95


@pytest.mark.slow
def test_it_runs_from_start_to_end_of_self_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, page = run_here(self_training, tmp_path, capsys)
    arms = (self_training.BOUNDS[0], *self_training.ARMS, self_training.BOUNDS[1])
    assert {arm: len(runs) for arm, runs in result["runs"].items()} == dict.fromkeys(arms, 3)
    for arm, runs in result["runs"].items():
        mean = sum(run["accuracy"] for run in runs) / 3  # of three, all is the middle half
        (shown,) = re.findall(rf"^\| {re.escape(arm)} \| (\S+) ", page, flags=re.MULTILINE)
        assert float(shown) == pytest.approx(mean, abs=6e-4)


# ---- GAN modes
def test_a_stack_is_as_many_networks_apart() -> None:
    stack = gan_modes.StackedMLP(3, (2, 5, 4, 1))
    rows = torch.randn(7, 3, 2)
    optimizer = torch.optim.Adam(stack.parameters(), lr=0.01)
    apart = []
    for run in range(3):
        layers: list[nn.Module] = []
        for weight, bias in zip(stack.weights, stack.biases, strict=True):
            layer = nn.Linear(weight.shape[1], weight.shape[2])
            layer.weight.data, layer.bias.data = weight[run].detach().T.clone(), bias[run, 0].detach().clone()
            layers += [layer, nn.ReLU()]
        apart.append(nn.Sequential(*layers[:-1]))
    optimizers = [torch.optim.Adam(network.parameters(), lr=0.01) for network in apart]
    for _ in range(3):
        optimizer.zero_grad()
        generator_loss(stack(rows)).backward()
        norms = []
        for run, network in enumerate(apart):
            optimizers[run].zero_grad()
            generator_loss(network(rows[:, run])).backward()
            gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
            norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm())
            optimizers[run].step()
        torch.testing.assert_close(gan_modes.gradient_norms(stack), torch.stack(norms), rtol=1e-4, atol=1e-6)
        optimizer.step()
    for run, network in enumerate(apart):
        torch.testing.assert_close(stack(rows)[:, run], network(rows[:, run]), rtol=1e-4, atol=1e-5)


def test_an_arm_measures_each_run() -> None:
    settings = {"case": "ring", "arm": "two-sided", "targets": (0.9, 0.1), "runs": 2, "steps": 100, "points": 500}
    result = gan_modes.train({**settings, "seed": 1})
    assert result["steps"] == list(range(5, 101, 5))
    for name in gan_modes.MEASURES:
        assert np.shape(result[name]) == (2,), name
    assert np.shape(result["curves"]["modes"]) == (20, 2)
    assert result["modes"] == result["curves"]["modes"][-1]
    assert result["gradient_norm"][0] != result["gradient_norm"][1]


def test_means_have_standard_errors() -> None:
    assert gan_modes._mean_and_error([1.0, 2.0, 3.0, 6.0], ".2f") == "3.00 ± 1.08"


@pytest.mark.slow
def test_the_small_study_runs(tmp_path: Path) -> None:
    result, page, printed = run_study("gan_modes", tmp_path, workers=1)
    assert page in printed
    assert "| *GAN, published* | 17.3 ± 0.8 | 94.8 ± 0.7 % | 0.70 ± 0.07 |" in page
    found = result["runs"]
    assert set(found["grid"]) == set(gan_modes.ARMS)
    mean = np.mean(found["grid"]["hard"]["modes"])
    assert re.search(rf"2D-grid\n.*?\| hard \| {mean:.1f} ± ", page, flags=re.DOTALL)
    assert (tmp_path / "gan_modes.png").stat().st_size > 10_000
