"""The exploration study: its tasks are the environments they are named after, and its comparisons count as they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from scipy import stats

from commands import written
from rlsmooth.audits import Interval
from rlsmooth.scripts.studies import entropy_guarantee, exploration
from rlsmooth.scripts.studies.claims import mean_interval
from rlsmooth.scripts.studies.exploration_tasks import DeepSea, Ladder, MountainCar, Moved


class Listed:
    """A policy that takes the action listed for each one-hot observation."""

    def __init__(self, actions: Any) -> None:
        self.actions = np.asarray(actions).ravel()

    def predict(self, observations: Any, **named: Any) -> tuple[Any, None]:
        return self.actions[observations.argmax(-1)], None


def test_the_studys_deep_sea_is_the_environments() -> None:
    rng, ours = np.random.default_rng(0), DeepSea(3, 3)
    envs = [gym.make("rlsmooth/DeepSea-v0", size=3) for _ in range(3)]
    observations = [env.reset()[0] for env in envs]
    np.testing.assert_array_equal(ours.reset(), observations)
    found = 0
    for _ in range(90):
        actions = rng.integers(2, size=3)
        shown, rewards, dones, infos = ours.step(actions)
        for place, env in enumerate(envs):
            last, reward, terminated, truncated, _ = env.step(actions[place])
            assert rewards[place] == pytest.approx(float(reward))
            assert (dones[place], truncated) == (terminated, False)
            if terminated:
                np.testing.assert_array_equal(infos[place]["terminal_observation"], last)
                assert not infos[place]["TimeLimit.truncated"]
                last = env.reset()[0]
            np.testing.assert_array_equal(shown[place], last)
            found += float(reward) > 0.5
    assert found
    assert len(ours.returns) == 90
    assert sum(value > 0.5 for value in ours.returns) == found
    right = ours.mapping.copy()
    assert ours.greedy_score(Listed(right)) == 1
    right[2, 2] = 1 - right[2, 2]
    assert ours.greedy_score(Listed(right)) == 0


def test_the_studys_mountain_car_is_gymnasiums() -> None:
    rng, env, ours = np.random.default_rng(0), gym.make("MountainCar-v0").unwrapped, MountainCar(300)
    ours.reset()
    assert -0.6 <= ours.position.min() < -0.59
    assert -0.41 < ours.position.max() <= -0.4
    ours.position, ours.velocity = rng.uniform(-1.2, 0.6, 300), rng.uniform(-0.07, 0.07, 300)
    states, actions = np.stack([ours.position, ours.velocity], 1), rng.integers(3, size=300)
    rewards, terminated, truncated = ours.move(actions)
    env.reset(seed=0)
    for place, state in enumerate(states):
        env.state = tuple(state)  # type: ignore[attr-defined]
        seen, reward, over, *_ = env.step(actions[place])
        np.testing.assert_allclose((ours.position[place], ours.velocity[place]), seen, atol=1e-6)
        assert (rewards[place], terminated[place]) == (reward, over)
    assert terminated.any()
    assert not truncated.any()
    ours._time[:] = 199
    assert ours.move(actions)[2].all()
    np.testing.assert_allclose(ours.observe()[:, 0], (ours.position + 0.3) / 0.9, atol=1e-6)


def test_the_studys_ladders_pay_as_they_say() -> None:
    ours = Ladder(2, (0.1, 0.3))
    ours.reset()
    up, out = (codes[:, 0] for codes in (ours.up, ours.out))  # of the lowest rungs
    ladders = ours._ladder.copy()
    assert ours.action_masks().sum(-1).tolist() == ours.legal[ladders, 0].sum(-1).tolist()
    _, rewards, dones, _ = ours.step(np.array([up[ladders[0]], out[ladders[1]]]))
    assert (rewards.tolist(), dones.tolist()) == (pytest.approx([0, 0.1]), [False, True])
    np.testing.assert_array_equal(ours.action_masks()[0], ours.legal[ladders[0], 1])
    first = int(np.flatnonzero(ours.legal[ours._ladder[1], 0] & (np.arange(64) != ours.up[ours._ladder[1], 0]))[0])
    _, rewards, dones, infos = ours.step(np.array([ours.up[ladders[0], 1], first]))
    assert dones.all()
    assert rewards[0] == 1
    assert not infos[0]["terminal_observation"].any()
    assert ours.returns[0] == pytest.approx(0.1)
    assert ours.greedy_score(Listed(ours.up)) == 1
    assert ours.greedy_score(Listed([*ours.up[0], *ours.out[1]])) == 0.5


def test_the_studys_rewards_move_at_half_time() -> None:
    ours = Moved(4, 8)
    ours.reset()
    assert (ours.before != ours.after).all()
    for step in range(4):
        _, rewards, dones, _ = ours.step(ours.before[ours._context])
        assert dones.all()
        assert (rewards == (step < 2)).all()
        assert ours.greedy_score(Listed(ours.before)) == (step < 1)


@pytest.mark.parametrize("task", ["Ladders, masked", "Moved rewards"])
def test_a_guarantee_holds_in_every_look_of_the_study(task: str) -> None:
    result = exploration.train(exploration.job("test", task, "guarantee", 1, 0, small=True).settings)
    assert 0.6 - 1e-5 <= result["lowest"] <= result["entropy_frac"] + 1e-5
    assert 0 < result["share"] <= 1
    assert result["solved"] == (result["share"] < 1)


def test_differences_of_the_study_are_of_one_seed_and_have_a_t_interval() -> None:
    def runs(*shares: float) -> list[dict[str, float]]:
        return [{"share": share} for share in shares]

    tests = {"x": {"PPO": runs(1.0, 0.5, 0.75), "floor": runs(0.5, 0.5, 0.5)}, "y": {"PPO": runs(1.0, 1.0, 1.0)}}
    found = exploration.differences(tests, "floor", "PPO")
    assert found == {"x": [-0.5, 0.0, -0.25]}
    theirs = stats.t.interval(0.95, 2, loc=-0.25, scale=stats.sem(found["x"]))
    np.testing.assert_allclose(mean_interval(found["x"])[1:], theirs, rtol=1e-9)
    assert exploration.verdict_of({"x": Interval(-0.25, -0.4, -0.1), "y": Interval(-0.04, -0.05, -0.03)}) == (
        "holds only if the task is x"
    )


@pytest.mark.slow
def test_the_exploration_study_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments: dict[str, Any] = {"folder": tmp_path / "runs", "results": tmp_path, "workers": 1, "small": True}
    exploration.main(exploration.ExplorationArgs(**arguments, tuning_only=True))
    chosen = (tmp_path / "exploration_settings.json").read_bytes()
    assert not (tmp_path / "exploration.json").exists()
    exploration.main(exploration.ExplorationArgs(**arguments))
    result, page = written("exploration", tmp_path)
    assert page in capsys.readouterr().out
    assert (tmp_path / "exploration_settings.json").read_bytes() == chosen
    assert json.loads(chosen)["chosen"] == result["chosen"]
    for task, arms in result["tests"].items():
        assert list(arms) == exploration.arms_of(task)
        assert all(len(runs) == 3 for runs in arms.values())


def test_the_committed_study_of_the_guarantee_has_no_state_below() -> None:
    path = Path(entropy_guarantee.__file__).parent / "results" / "entropy_guarantee.json"
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    for kind, (_, _, given) in entropy_guarantee.KINDS.items():
        found = [run for run in runs if run.get("kind") == kind]
        assert sum(run["rollouts"] for run in found) >= 100
        assert sum(run["below"] for run in found) == 0
        assert max(run["gap"] for run in found) < 1e-5
        # the network itself fell below: without the guarantee the states would have
        assert min(run["network"] for run in found) < given.get("min_entropy_frac", given.get("min_entropy_nats"))
