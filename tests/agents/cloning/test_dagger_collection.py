"""What DAgger collects: who acts, when a round ends, what is kept; and the schedules that decide it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from rlsmooth.agents import BC, DAgger
from rlsmooth.agents.cloning.collection import Collected, collect_round
from rlsmooth.agents.cloning.dagger import as_beta_schedule
from rlsmooth.agents.cloning.expert import Expert
from rlsmooth.data import record
from rlsmooth.envs import IdentityEnv


def make(env: Any, expert: Any, **arguments: Any) -> DAgger:
    given: dict[str, Any] = {"rollout_round_min_timesteps": 100, "bc_train_n_epochs": 1, "seed": 0, "device": "cpu"}
    return DAgger("MlpPolicy", env, expert, **{**given, **arguments})


def collect(env: Any, expert: Any, learner: BC, **arguments: Any) -> Collected:
    asked = Expert(expert, env, targets="actions", deterministic=True, batched=False)
    given: dict[str, Any] = {
        "beta": 0.5,
        "min_episodes": 1,
        "min_timesteps": 1,
        "seed": 0,
        "learner_deterministic": False,
        "after_step": lambda _: True,
        **arguments,
    }
    made = collect_round(learner, asked, env, **given)
    assert made is not None
    return made


class Diary(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps what was done."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.actions: list[int] = []

    def step(self, action: Any) -> Any:
        self.actions.append(int(action))
        return super().step(action)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_a_coin_decides_who_acts_and_the_expert_labels_all(beta: float) -> None:
    diary = Diary(IdentityEnv(50, episode_length=1000))
    env = make_vec_env(lambda: diary)
    learner = BC("MlpPolicy", env, None, seed=0, device="cpu")
    made = collect(env, diary.unwrapped.expert_action, learner, beta=beta)  # type: ignore[attr-defined]
    labels = np.asarray(made.demonstrations.actions)
    assert np.array_equal(labels, made.demonstrations.observations)  # identity: the expert's, whoever acted
    by_expert = float(np.mean(labels == np.array(diary.actions)))
    assert made.learner_share == pytest.approx(1 - beta, abs=0.06)
    assert by_expert == pytest.approx(beta + (1 - beta) / 50, abs=0.07)  # a fresh learner is right by chance
    assert made.returns.tolist() == [float((labels == np.array(diary.actions)).sum())]
    assert made.demonstrations.rewards is None
    assert made.demonstrations.next_observations is None


def test_the_experts_own_round_is_a_recording() -> None:
    env = make_vec_env("CartPole-v1", n_envs=2)
    learner = BC("MlpPolicy", env, None, seed=0, device="cpu")

    def expert(seen: Any) -> Any:
        return int(seen[2] + 0.3 * seen[3] > 0)

    def of_many(seen: Any) -> Any:
        return np.array([expert(one) for one in seen])

    made = collect(env, expert, learner, beta=1.0, min_episodes=2, seed=5)
    told = record(of_many, env, 2, seed=5)
    assert made.learner_share == 0.0
    order = np.argsort(told.episode_lengths(), kind="stable")  # here they lie as they ended
    told = told.select_episodes(order)
    assert np.array_equal(made.demonstrations.observations, told.observations)
    assert np.array_equal(made.demonstrations.actions, told.actions)
    assert np.array_equal(made.demonstrations.truncations, told.truncations)
    assert np.array_equal(made.returns, told.episode_returns())


def test_a_round_holds_whole_episodes_and_reaches_both_minima() -> None:
    lengths = iter([3, 9, 2, 5, 4, 7, 6, 8] * 50)

    def varying() -> Any:
        env = IdentityEnv(3)
        plain = env.reset

        def reset(**arguments: Any) -> Any:
            env.episode_length = next(lengths)
            return plain(**arguments)

        env.reset = reset  # type: ignore[method-assign]
        return env

    env = make_vec_env(varying, n_envs=3)
    learner = BC("MlpPolicy", env, None, seed=0, device="cpu")
    kept: list[int] = []

    def after_step(number: int) -> bool:
        kept.append(number)
        return True

    for min_episodes, min_timesteps in ((1, 40), (9, 1), (4, 30)):
        kept.clear()
        made = collect(
            env,
            IdentityEnv(3).expert_action,
            learner,
            min_episodes=min_episodes,
            min_timesteps=min_timesteps,
            after_step=after_step,
        )
        data = made.demonstrations
        assert data.num_episodes >= min_episodes
        assert len(data) >= min_timesteps
        assert sum(kept) == len(data)
        assert np.asarray(data.truncations)[data.episode_ends - 1].all()
        # Before the last three, at most, one of the minima was not reached.
        early = data.select_episodes(np.arange(data.num_episodes - env.num_envs))
        assert early.num_episodes < min_episodes or len(early) < min_timesteps
    assert (
        collect_round(
            learner,
            Expert(IdentityEnv(3).expert_action, env, targets="actions", deterministic=True, batched=False),
            env,
            beta=1.0,
            min_episodes=1,
            min_timesteps=1,
            seed=0,
            learner_deterministic=False,
            after_step=lambda _: False,
        )
        is None
    )


def test_schedules() -> None:
    linear = as_beta_schedule(15)
    assert [linear(0), linear(3), linear(15), linear(16)] == [1.0, 0.8, 0.0, 0.0]
    assert [as_beta_schedule(0.7)(number) for number in range(3)] == pytest.approx([1.0, 0.7, 0.49])
    assert as_beta_schedule(1.0)(9) == 1.0
    assert as_beta_schedule(1)(1) == 0.0
    env = IdentityEnv(3)
    agent = make(env, env.expert_action, beta_schedule=lambda number: 1 / (1 + number)).learn(300)
    assert [line["beta"] for line in agent.history] == [1.0, 0.5, 1 / 3]
    for wrong in (0.0, -0.1, 1.1, 2.0, 0, -3):
        with pytest.raises(ValueError, match="beta_schedule="):
            make(env, env.expert_action, beta_schedule=wrong)
    for odd in ("15", None, True):
        with pytest.raises(TypeError, match="beta_schedule must be"):
            make(env, env.expert_action, beta_schedule=odd)
    with pytest.raises(ValueError, match=r"beta_schedule\(0\)=1.5"):
        make(env, env.expert_action, beta_schedule=lambda _: 1.5).learn(100)


class Shifted(gym.ActionWrapper[Any, Any, Any]):
    """Actions from 3 on."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.action_space = spaces.Discrete(4, start=3)

    def action(self, action: Any) -> Any:
        return action - 3


@pytest.mark.parametrize("targets", ["actions", "probabilities"])
def test_actions_that_do_not_start_at_zero(targets: Any) -> None:
    env = Shifted(IdentityEnv(4))
    answers = {"actions": lambda seen: int(seen) + 3, "probabilities": lambda seen: np.eye(4)[int(seen)]}
    settings: dict[str, Any] = {"learning_rate": 0.05, "bc_train_n_epochs": 8, "beta_schedule": 0.5}
    agent = make(env, answers[targets], expert_targets=targets, **settings).learn(200)
    assert agent.demonstrations is not None
    assert np.array_equal(agent.demonstrations.actions, np.asarray(agent.demonstrations.observations) + 3)
    assert agent.history[-1]["expert_agreement"] == 1.0
    assert agent.evaluate()["mean_reward"] == 10.0


def test_another_expert_may_take_over() -> None:
    env = IdentityEnv(4)
    agent = make(env, lambda _: 0, beta_schedule=1.0).learn(100)
    agent.expert = lambda _: 1
    agent.learn(100)
    assert [set(np.asarray(part.actions).tolist()) for part in agent.rounds] == [{0}, {1}]


def test_each_round_begins_with_a_fresh_state_of_the_expert() -> None:
    calls: list[tuple[bool, list[bool]]] = []

    def expert(seen: Any, state: Any, episode_start: Any) -> Any:
        calls.append((state is None, episode_start.tolist()))
        return seen, (np.zeros(2),)

    agent = make(make_vec_env(lambda: IdentityEnv(4), n_envs=2), expert, rollout_round_min_timesteps=40)
    agent.learn(40, lambda local, _: local["self"].num_timesteps < 10)  # broken off in the middle of an episode
    assert agent.round == 0
    begun = len(calls)
    agent.learn(80)
    assert [place for place, (is_fresh, _) in enumerate(calls) if is_fresh] == [0, begun, begun + 20]
    assert all(starts == [True, True] for is_fresh, starts in calls if is_fresh)
    assert [starts for _, starts in calls[begun : begun + 20]].count([True, True]) == 2  # episodes of 10 steps


class Draws(gym.Env[Any, Any]):
    """Each step draws one number, as slippery environments do."""

    observation_space = spaces.Box(0, 1, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.seen: list[tuple[float, int]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.time, self.noise = 0, self.np_random.random()
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.seen.append((self.noise, int(action)))
        self.time, self.noise = self.time + 1, self.np_random.random()
        return np.zeros(1, np.float32), 0.0, self.time >= 60, False, {}


def test_the_coin_is_not_the_environments_own_noise() -> None:
    env = Draws()
    learner = BC("MlpPolicy", env, None, seed=0, device="cpu")
    with torch.no_grad():  # the learner does 1, the expert 0
        learner.policy.action_net.weight.zero_()  # type: ignore[operator,union-attr]
        learner.policy.action_net.bias.copy_(torch.tensor([-9.0, 9.0]))  # type: ignore[operator,union-attr]
    collect(make_vec_env(lambda: env), lambda _: 0, learner, seed=3, learner_deterministic=True)
    noise, actions = np.array(env.seen).T
    assert len(actions) == 60
    assert 0.2 < np.mean((noise >= 0.5) == (actions == 1)) < 0.8
