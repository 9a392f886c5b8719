"""The behaviours that imitation's `tests/algorithms/test_dagger.py` checks, of our `DAgger`.

Which behaviour is whose test, and what differs: docs/imitation-tests.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import ActionWrapper, spaces
from numpy.typing import NDArray
from scipy import stats
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv

from rlsmooth.agents import BC, DAgger, load_agent
from rlsmooth.agents.cloning.dagger import as_beta_schedule
from rlsmooth.data import Demonstrations, record
from support import assert_raises, same_parameters

EPISODE = 200  # steps of Pendulum-v1
SMALL: dict[str, Any] = {"policy_kwargs": {"net_arch": [16]}, "seed": 0, "device": "cpu"}


def swing_up(observations: NDArray[np.float32]) -> NDArray[np.float32]:
    """An expert on batches: pump energy up, then hold."""
    cosine, sine, speed = observations.T
    angle = np.arctan2(sine, cosine)
    energy = speed**2 / 6 + 5 * (cosine - 1)
    hold = (np.abs(angle) < 0.4) & (np.abs(speed) < 4)
    torque = np.where(hold, -8 * angle - 1.5 * speed, -4 * energy * np.where(speed >= 0, 1, -1))
    clipped: NDArray[np.float32] = np.clip(torque, -2, 2)[:, None].astype(np.float32)
    return clipped


def idle(observations: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.zeros((len(observations), 1), np.float32)


def pendulum(n_envs: int = 8, **more: Any) -> VecEnv:
    return make_vec_env("Pendulum-v1", n_envs, seed=0, **more)


@pytest.fixture(scope="module")
def demonstrations() -> Demonstrations:
    return record(swing_up, pendulum(), 8, seed=0)


@pytest.mark.parametrize("rounds", [1, 2, 3, 10])
def test_the_linear_schedule_falls_to_0_and_stays_there(rounds: int) -> None:
    schedule = as_beta_schedule(rounds)
    found = [schedule(number) for number in range(rounds + 10)]
    np.testing.assert_allclose(found[: rounds + 1], np.linspace(1, 0, rounds + 1))
    assert not any(found[rounds:])


@pytest.mark.parametrize("base", [0.1, 0.5, 0.9, 1.0])
def test_the_exponential_schedule_is_a_power_of_the_round(base: float) -> None:
    schedule = as_beta_schedule(base)
    np.testing.assert_allclose([schedule(number) for number in range(10)], base ** np.arange(10.0))


@pytest.mark.parametrize("base", [-0.1, 0.0, 1.1, 2.0, 0, -3])
def test_schedules_outside_their_range_are_refused(base: float) -> None:
    assert_raises(ValueError, "beta_schedule=", DAgger, "MlpPolicy", pendulum(1), idle, beta_schedule=base, **SMALL)


def test_the_seed_decides_how_episodes_begin() -> None:
    starts = []
    short: dict[str, Any] = {"rollout_round_min_episodes": 1, "rollout_round_min_timesteps": 1, "bc_train_n_epochs": 1}
    for seed in (42, 42, 43):
        agent = DAgger("MlpPolicy", pendulum(2), idle, **short, **{**SMALL, "seed": seed}).learn(1)
        data = agent.demonstrations
        starts.append(np.asarray(data.observations)[data.episode_starts])
    assert np.array_equal(starts[0], starts[1])
    assert not np.array_equal(starts[0], starts[2])


class Noted(ActionWrapper[Any, Any, Any]):
    """Keeps the actions that really reach the environment."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.done: list[float] = []

    def action(self, action: Any) -> Any:
        self.done.append(float(action[0]))
        return action


def test_by_half_the_learner_acts_and_the_expert_labels_it_all(tmp_path: Path) -> None:
    env = pendulum(wrapper_class=Noted)
    given: dict[str, Any] = {"beta_schedule": lambda number: 0.5, "rollout_round_min_episodes": 8}
    given |= {"bc_train_n_epochs": 1, "scratch_dir": tmp_path}
    agent = DAgger("MlpPolicy", env, idle, **given, **SMALL).learn(8 * EPISODE)
    learned = agent.history[0]
    assert learned["round_episode_count"] == 8
    assert learned["mean_episode_reward"] < 0
    done = np.array([part.get_wrapper_attr("done")[:EPISODE] for part in env.envs])  # type: ignore[attr-defined]
    # A share of 1600 fair coins further than 0.06 from a half has a chance below 1e-5.
    assert abs((done != 0).mean() - 0.5) < 0.06
    assert learned["learner_share"] == pytest.approx((done != 0).mean())
    files = sorted((tmp_path / "demos" / "round-000").glob("*.npz"))
    assert len(files) == 8
    assert all(not np.asarray(Demonstrations.load(file).actions).any() for file in files)


def test_a_seeded_run_collects_the_same_files_and_ends_with_the_same_policy(tmp_path: Path) -> None:
    found, played = [], []
    for name in ("one", "two"):
        folder = tmp_path / name
        agent = DAgger("MlpPolicy", pendulum(2), swing_up, beta_schedule=2, scratch_dir=folder, **SMALL)
        agent.learn(2 * 4 * EPISODE)
        files = sorted((folder / "demos").rglob("*.npz"))
        found.append([(str(file.relative_to(folder)), file.read_bytes()) for file in files])
        played.append(np.asarray(record(agent, "Pendulum-v1", 2, seed=5).observations))
    assert found[0] == found[1]
    assert len(found[0]) > 2
    assert np.array_equal(played[0], played[1])


@pytest.mark.parametrize("given", [True, False], ids=["initial", "none"])
def test_without_an_expert_there_is_nothing_to_learn_from(given: bool, demonstrations: Demonstrations) -> None:
    """imitation's collector may be left empty, which is an error of its trainer's; here `learn` collects by itself."""
    agent = DAgger("MlpPolicy", pendulum(1), None, demonstrations=demonstrations if given else None, **SMALL)
    for _ in range(2):
        assert_raises(ValueError, "expert is None", agent.learn, EPISODE)
    assert agent.round == 0


@pytest.mark.parametrize("epochs", [None, 1, 3])
def test_a_round_trains_so_many_epochs(epochs: int | None) -> None:
    arguments: dict[str, Any] = {} if epochs is None else {"bc_train_n_epochs": epochs}
    agent = DAgger("MlpPolicy", pendulum(1), idle, rollout_round_min_episodes=1, **arguments, **SMALL)
    agent.learn(EPISODE)
    assert agent.bc_train_n_epochs == (epochs or 4)
    rows = agent.history[0]["transitions"]
    assert agent.bc.num_timesteps == agent.bc_train_n_epochs * -(-rows // 32)


@pytest.mark.slow
@pytest.mark.parametrize(("beta_schedule", "given"), [(15, False), (1, True)], ids=["15 rounds", "1 round, initial"])
def test_five_rounds_make_progress(beta_schedule: int, given: bool, demonstrations: Demonstrations) -> None:
    settings: dict[str, Any] = {"demonstrations": demonstrations if given else None, "beta_schedule": beta_schedule}
    settings |= {"seed": 0, "device": "cpu"}
    agent = DAgger("MlpPolicy", pendulum(), swing_up, **settings)
    env = pendulum()
    novice, _ = evaluate_policy(agent.policy, env, 24, return_episode_rewards=True)
    assert np.mean(novice) < -1000
    agent.learn(5 * 8 * EPISODE)
    assert agent.round == 5
    trained, _ = evaluate_policy(agent.policy, env, 24, return_episode_rewards=True)
    assert np.mean(trained) - np.mean(novice) > 300
    test = stats.permutation_test(
        (novice, trained), lambda x, y: np.mean(x) - np.mean(y), alternative="less", n_resamples=2000, rng=0
    )
    assert test.pvalue < 0.05


@pytest.mark.parametrize("given", [True, False], ids=["initial", "none"])
def test_a_trainer_is_found_again_in_its_folder(given: bool, demonstrations: Demonstrations, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"demonstrations": demonstrations if given else None, **SMALL}
    agent = DAgger("MlpPolicy", pendulum(1), swing_up, scratch_dir=tmp_path, **arguments).learn(2 * 3 * EPISODE)
    found = DAgger.resume(tmp_path, pendulum(1), swing_up, device="cpu")
    assert found.round == agent.round == 2
    assert same_parameters(found, agent)
    assert not same_parameters(DAgger("MlpPolicy", pendulum(1), swing_up, **arguments), agent)
    assert np.array_equal(found.demonstrations.actions, agent.demonstrations.actions)  # type: ignore[union-attr]


@pytest.mark.parametrize("n_envs", [1, 8])
@pytest.mark.parametrize("episodes", [1, 4])
def test_rounds_are_whole_and_have_a_folder_each(n_envs: int, episodes: int, tmp_path: Path) -> None:
    given: dict[str, Any] = {"rollout_round_min_episodes": 2, "rollout_round_min_timesteps": 1, "bc_train_n_epochs": 1}
    given |= {"scratch_dir": tmp_path}
    agent = DAgger("MlpPolicy", pendulum(n_envs), idle, **given, **SMALL).learn(episodes * EPISODE)
    a_round = max(2, n_envs)  # environments finish the episodes that they are in
    folders = sorted((tmp_path / "demos").glob("round-*"))
    assert [folder.name for folder in folders] == [f"round-{number:03d}" for number in range(-(-episodes // a_round))]
    assert agent.round == len(folders)
    for folder in folders:
        assert len(list(folder.glob("*.npz"))) == a_round


def test_a_round_goes_on_until_it_has_both_minima() -> None:
    arguments: dict[str, Any] = {"bc_train_n_epochs": 1, **SMALL}
    by_steps = DAgger("MlpPolicy", pendulum(1), idle, rollout_round_min_episodes=1, **arguments).learn(1)
    assert by_steps.history[0]["round_episode_count"] == 3  # 500 steps
    by_episodes = DAgger("MlpPolicy", pendulum(1), idle, rollout_round_min_episodes=4, **arguments).learn(1)
    assert by_episodes.history[0]["round_episode_count"] == 4


def test_the_policy_alone_is_saved_and_read(tmp_path: Path) -> None:
    agent = DAgger("MlpPolicy", pendulum(1), swing_up, **SMALL).learn(EPISODE)
    path = agent.save(tmp_path / "policy.zip")
    observations = np.asarray(agent.demonstrations.observations)  # type: ignore[union-attr]
    wanted, _ = agent.predict(observations, deterministic=True)
    for read in (BC.load(path), DAgger.load(path), load_agent(path)):
        assert isinstance(read.policy, BasePolicy)
        assert np.array_equal(read.predict(observations, deterministic=True)[0], wanted)


@pytest.mark.parametrize(
    ("name", "space"), [("observation_space", spaces.Box(-1, 1, (4,))), ("action_space", spaces.Discrete(3))]
)
def test_an_expert_of_other_spaces_is_refused(name: str, space: Any) -> None:
    expert = PPO("MlpPolicy", pendulum(1), n_steps=8, batch_size=8, device="cpu")
    DAgger("MlpPolicy", pendulum(1), expert, **SMALL)
    setattr(expert, name, space)
    assert_raises(ValueError, rf"expert.*{name}", DAgger, "MlpPolicy", pendulum(1), expert, **SMALL)
    setattr(expert.policy, name, space)
    assert_raises(ValueError, rf"expert.*{name}", DAgger, "MlpPolicy", pendulum(1), expert.policy, **SMALL)


def test_fewer_transitions_than_a_batch_are_a_batch() -> None:
    """imitation leaves the last, smaller batch out, and stops where nothing is left. Here each row is trained on."""
    agent = DAgger("MlpPolicy", pendulum(1), idle, batch_size=100_000, **SMALL)
    before = [parameter.clone() for parameter in agent.policy.parameters()]
    agent.learn(EPISODE)
    assert agent.bc.num_timesteps == 4  # one batch an epoch
    pairs = zip(before, agent.bc.policy.parameters(), strict=True)
    assert any(not torch.equal(one, other) for one, other in pairs)
