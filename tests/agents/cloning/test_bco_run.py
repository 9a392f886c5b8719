"""Runs of cloning from observation: repeats, callbacks, logs; on CartPole-v1, with few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import KVWriter, Logger

from rlsmooth.agents import BCO
from rlsmooth.data import Demonstrations, cartpole_v1

ENV = "CartPole-v1"


def watched() -> Demonstrations:
    return cartpole_v1().select_episodes([0])


def make(data: Demonstrations, env: Any = ENV, **arguments: Any) -> BCO:
    given: dict[str, Any] = {
        "n_rounds": 2,
        "transitions_per_round": 100,
        "n_epochs": 1,
        "inverse_epochs": 2,
        "inverse_net_arch": (8,),
        "policy_kwargs": {"net_arch": [16]},
        "seed": 0,
        "device": "cpu",
        **arguments,
    }
    return BCO("MlpPolicy", env, data, **given)


def same_parameters(one: Any, two: Any) -> bool:
    pairs = zip(one.policy.state_dict().values(), two.policy.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_seed_repeats_and_nobody_elses_numbers_are_drawn() -> None:
    data = watched()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = make(data).learn()
    assert torch.equal(torch.get_rng_state(), state)
    two = make(data).learn()
    assert same_parameters(one, two)
    assert one.history == two.history
    assert not same_parameters(one, make(data, seed=1).learn())


def test_a_second_call_goes_on() -> None:
    data = watched()
    agent = make(data, n_rounds=1).learn()
    agent.learn()
    whole = make(data, n_rounds=2).learn()
    assert same_parameters(agent, whole)
    assert agent.round == 2


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
    data = watched()
    counter = Counter(10**6)
    agent = make(data).learn(counter, progress_bar=True)
    assert counter.told == ["total 200", "rollout", "100", "rollout", "200", "end"]
    assert counter.n_calls == 200
    stopped = make(data).learn(Counter(150))
    assert (stopped.round, stopped.num_timesteps) == (1, 100)
    stopped.learn()
    assert stopped.round == 3
    whole = make(data, n_rounds=3).learn()
    assert same_parameters(stopped, whole)
    assert not same_parameters(stopped, agent)


def test_stable_baselines_callback_evaluates(tmp_path: Path) -> None:
    evaluation = EvalCallback(make_vec_env(ENV), eval_freq=100, log_path=str(tmp_path), n_eval_episodes=2, verbose=0)
    make(watched(), make_vec_env(ENV)).learn(evaluation)
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [100, 200]


class Lines(KVWriter):
    """Keeps every log line."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, Any]]] = []

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        self.lines.append((step, dict(key_values)))


def test_each_round_has_one_log_line() -> None:
    lines = Lines()
    agent = make(watched(), eval_env=ENV, n_eval_episodes=3)
    agent.set_logger(Logger(None, [lines]))
    agent.learn()
    assert [step for step, _ in lines.lines] == [100, 200]
    tags = lines.lines[-1][1]
    assert {
        "bco/round",
        "bco/transitions",
        "bco/inverse_dynamics_accuracy",
        "bco/inverse_dynamics_cross_entropy",
        "bco/pseudo_label_accuracy",
        "bco/pseudo_label_confidence",
        "bco/cross_entropy",
        "bco/policy_entropy",
        "bco/smoothing",
        "bco/mean_reward",
        "bco/mean_reward_sampled",
    } <= set(tags)
    assert {f"bco/{name}": value for name, value in agent.history[-1].items()} == tags
    assert tags["bco/smoothing"] == pytest.approx(0.1)
    assert agent.evaluate()["mean_reward"] == tags["bco/mean_reward"]


def test_tensorboard_gets_the_tags(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    make(watched(), tensorboard_log=tmp_path).learn()
    events = EventAccumulator(str(tmp_path / "BCO_1"))
    events.Reload()
    assert [point.step for point in events.Scalars("bco/pseudo_label_accuracy")] == [100, 200]


def test_the_clone_starts_reinforcement_learning() -> None:
    agent = make(watched(), n_rounds=1).learn()
    model = PPO("MlpPolicy", ENV, policy_kwargs={"net_arch": [16]}, n_steps=16, batch_size=16, device="cpu")
    agent.warm_start(model)
    seen = watched().observations
    assert np.array_equal(model.predict(seen, deterministic=True)[0], agent.predict(seen, deterministic=True)[0])
