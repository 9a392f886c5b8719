"""Runs of DAgger: repeats, second calls, callbacks, logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger

from rlsmooth.agents import DAgger, SmoothedPPO
from rlsmooth.envs import IdentityEnv, IdentityMultiDiscreteEnv


def make(env: Any = None, **arguments: Any) -> DAgger:
    world = IdentityEnv(4) if env is None else env
    given: dict[str, Any] = {
        "rollout_round_min_timesteps": 50,
        "bc_train_n_epochs": 2,
        "policy_kwargs": {"net_arch": [8]},
        "seed": 0,
        "device": "cpu",
        **arguments,
    }
    return DAgger("MlpPolicy", world, given.pop("expert", lambda seen: int(seen)), **given)


def same_parameters(one: Any, two: Any) -> bool:
    pairs = zip(one.policy.state_dict().values(), two.policy.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_seed_repeats_and_nobody_elses_numbers_are_drawn() -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    state, words = torch.get_rng_state(), np.random.get_state()[1]  # type: ignore[index]  # noqa: NPY002
    one, two = (make(beta_schedule=0.5, smoothing="lin_0.2").learn(150) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], words)  # type: ignore[index]  # noqa: NPY002
    assert same_parameters(one, two)
    assert one.history == two.history
    assert np.array_equal(one.demonstrations.observations, two.demonstrations.observations)  # type: ignore[union-attr]
    assert not same_parameters(one, make(beta_schedule=0.5, smoothing="lin_0.2", seed=1).learn(150))
    # What somebody draws in the meantime changes nothing.
    torch.rand(7)
    assert same_parameters(one, make(beta_schedule=0.5, smoothing="lin_0.2").learn(150))


def test_a_second_call_goes_on() -> None:
    twice = make(beta_schedule=2).learn(50).learn(100)
    whole = make(beta_schedule=2).learn(150)
    assert twice.round == whole.round == 3
    assert same_parameters(twice, whole)
    assert twice.history == whole.history
    assert [line["beta"] for line in whole.history] == [1.0, 0.5, 0.0]
    first, second, _ = (part.observations for part in whole.rounds)
    assert not np.array_equal(first, second)  # each round has a seed of its own


def test_rounds_are_whole() -> None:
    agent = make(rollout_round_min_timesteps=70).learn(101)
    assert agent.num_timesteps == 140
    assert [line["round_timestep_count"] for line in agent.history] == [70.0, 70.0]
    assert [line["round_episode_count"] for line in agent.history] == [7.0, 7.0]


class Counter(BaseCallback):
    """Counts what a callback is told; stops after `most` steps."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.told: list[str] = []

    def _on_training_start(self) -> None:
        self.told.append(f"total {self.locals['total_timesteps']}")

    def _on_rollout_start(self) -> None:
        self.told.append("rollout")

    def _on_step(self) -> bool:
        return self.n_calls < self.most

    def _on_rollout_end(self) -> None:
        self.told.append(f"{self.num_timesteps}")

    def _on_training_end(self) -> None:
        self.told.append("end")


def test_callbacks_see_rounds_as_rollouts_and_may_stop() -> None:
    counter = Counter(10**6)
    make().learn(100, counter, progress_bar=True)
    assert counter.told == ["total 100", "rollout", "50", "rollout", "100", "end"]
    assert counter.n_calls == 100
    stopped = make().learn(100, [Counter(75)])
    assert (stopped.round, stopped.num_timesteps) == (1, 50)
    assert stopped.learn(100).round == 3
    assert same_parameters(stopped, make().learn(150))


def test_steps_after_the_last_episode_are_not_counted() -> None:
    env = make_vec_env(lambda: IdentityEnv(4), n_envs=4)
    counter = Counter(10**6)
    agent = make(env, expert=lambda seen: seen, rollout_round_min_timesteps=45).learn(90, counter)
    assert agent.num_timesteps == len(agent.demonstrations or ()) == 160  # 4 episodes of 10, twice, in each round
    assert counter.n_calls == 40


def test_stable_baselines_callback_and_evaluation(tmp_path: Path) -> None:
    world = make_vec_env(lambda: IdentityEnv(4))
    evaluation = EvalCallback(world, eval_freq=50, log_path=str(tmp_path), n_eval_episodes=2, verbose=0)
    agent = make(world, expert=lambda seen: seen).learn(100, evaluation)
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [50, 100]
    mean, _ = evaluate_policy(agent, world, n_eval_episodes=2)
    assert 0 <= mean <= 10


class Lines(KVWriter):
    """Keeps every log line."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, Any]]] = []

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        self.lines.append((step, dict(key_values)))


def test_each_round_has_one_log_line() -> None:
    lines = Lines()
    agent = make(beta_schedule=2, eval_env=IdentityEnv(4), n_eval_episodes=3)
    agent.set_logger(Logger(None, [lines]))
    agent.learn(150)
    assert [step for step, _ in lines.lines] == [50, 100, 150]
    tags = lines.lines[1][1]
    assert {f"dagger/{name}": value for name, value in agent.history[1].items()} == tags
    assert {
        "dagger/accuracy",
        "dagger/beta",
        "dagger/cross_entropy",
        "dagger/ece",
        "dagger/entropy_frac",
        "dagger/expert_agreement",
        "dagger/kl_uniform",
        "dagger/learner_share",
        "dagger/mean_ep_length",
        "dagger/mean_episode_reward",
        "dagger/mean_reward",
        "dagger/mean_reward_sampled",
        "dagger/nll_hard",
        "dagger/policy_entropy",
        "dagger/round",
        "dagger/round_episode_count",
        "dagger/round_num",
        "dagger/round_timestep_count",
        "dagger/smoothing",
        "dagger/total_timesteps",
        "dagger/transitions",
    } <= set(tags)
    assert (tags["dagger/round"], tags["dagger/round_num"], tags["dagger/beta"]) == (2.0, 1.0, 0.5)
    assert (tags["dagger/transitions"], tags["dagger/total_timesteps"]) == (100.0, 100.0)
    assert lines.lines[0][1]["dagger/mean_episode_reward"] == 10.0  # the expert's own
    assert lines.lines[0][1]["dagger/learner_share"] == 0.0
    assert lines.lines[2][1]["dagger/learner_share"] == 1.0
    assert agent.evaluate()["mean_reward"] == lines.lines[2][1]["dagger/mean_reward"]


def test_agreement_is_of_whole_actions_before_they_are_learnt() -> None:
    env = IdentityMultiDiscreteEnv((3, 4))
    twin = make(env, expert=env.expert_action)
    agent = make(env, expert=env.expert_action, beta_schedule=1.0).learn(50)
    assert agent.demonstrations is not None
    guessed = twin.predict(np.asarray(agent.demonstrations.observations), deterministic=True)[0]
    equal = (guessed == np.asarray(agent.demonstrations.actions)).all(axis=1)
    assert agent.history[0]["expert_agreement"] == pytest.approx(equal.mean())
    assert 0 < equal.mean() < 1


def test_tensorboard_gets_the_tags(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    make(tensorboard_log=tmp_path).learn(100)
    events = EventAccumulator(str(tmp_path / "DAgger_1"))
    events.Reload()
    assert [point.step for point in events.Scalars("dagger/expert_agreement")] == [50, 100]
    assert [point.value for point in events.Scalars("dagger/round_num")] == [0.0, 1.0]


def test_the_clone_starts_reinforcement_learning() -> None:
    agent = make().learn(100)
    settings: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "n_steps": 16, "batch_size": 16, "device": "cpu"}
    model = PPO("MlpPolicy", IdentityEnv(4), **settings)
    agent.warm_start(model)
    seen = np.arange(4)
    expected = agent.predict(seen, deterministic=True)[0]
    assert np.array_equal(model.predict(seen, deterministic=True)[0], expected)
    fresh = SmoothedPPO.from_bc(agent.bc, IdentityEnv(4), n_steps=16, batch_size=16, device="cpu")
    assert np.array_equal(fresh.predict(seen, deterministic=True)[0], expected)
