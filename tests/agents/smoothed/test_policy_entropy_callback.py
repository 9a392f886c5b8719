"""What the callback and our algorithms write to TensorBoard, and that looking changes nothing."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import QRDQN, TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributions import Categorical

from rlsmooth.agents import SmoothedA2C, SmoothedMaskablePPO, SmoothedPPO, SmoothedRecurrentPPO
from rlsmooth.agents.smoothed.callback import PolicyEntropyCallback
from rlsmooth.envs import IdentityEnv, IdentityMaskedEnv, IdentityMultiDiscreteEnv

DISCRETE = {"policy_entropy", "entropy_frac", "kl_uniform", "kl_reference"}
WATCHED = {"entropy_collapse"}
PPO_SMALL = {"n_steps": 64, "batch_size": 64, "n_epochs": 2}
LSTM = {**PPO_SMALL, "policy_kwargs": {"lstm_hidden_size": 8}}
TRPO_SMALL = {"n_steps": 64, "batch_size": 64}
OFF_POLICY = {"buffer_size": 200, "learning_starts": 50, "batch_size": 16}


def cartpole() -> gym.Env[Any, Any]:
    return gym.make("CartPole-v1")


def pendulum() -> gym.Env[Any, Any]:
    return gym.make("Pendulum-v1")


def build(algorithm: type[Any], env: Callable[[], gym.Env[Any, Any]], n_envs: int = 2, **arguments: Any) -> Any:
    policy = "MlpLstmPolicy" if "Recurrent" in algorithm.__name__ else "MlpPolicy"
    return algorithm(policy, DummyVecEnv([env] * n_envs), seed=0, device="cpu", **arguments)


def learn(model: Any, steps: int, callback: BaseCallback | None, **more: Any) -> Any:
    """With a log line for each rollout, or for DQN each episode."""
    return model.learn(steps, callback=callback, log_interval=1, **more)


def events(folder: Path) -> EventAccumulator:
    (file,) = folder.rglob("events.out.tfevents*")
    return EventAccumulator(str(file), size_guidance={"histograms": 0}).Reload()  # 0: all of them


def scalars(folder: Path) -> dict[str, list[float]]:
    found = events(folder)
    return {name: [event.value for event in found.Scalars(name)] for name in found.Tags()["scalars"]}


def ours(tags: Any) -> set[str]:
    """Of all tags those that this test is about, without the prefix."""
    known = (
        "policy_entropy",
        "entropy_frac",
        "kl_uniform",
        "kl_reference",
        "entropy_dim",
        "entropy_collapse",
        "smoothing",
        "exploration",
    )
    return {tag.removeprefix("train/") for tag in tags if tag.removeprefix("train/").startswith(known)}


# ---- tags

UNMODIFIED = {
    "ppo": (PPO, cartpole, PPO_SMALL, DISCRETE),
    "ppo box": (PPO, pendulum, PPO_SMALL, {"policy_entropy", "kl_reference"}),
    "ppo multi": (PPO, IdentityMultiDiscreteEnv, PPO_SMALL, DISCRETE | {"entropy_dim0", "entropy_dim1"}),
    "a2c": (A2C, cartpole, {}, DISCRETE),
    "trpo": (TRPO, cartpole, TRPO_SMALL, DISCRETE),
    "dqn": (DQN, cartpole, OFF_POLICY, DISCRETE),
    "qrdqn": (QRDQN, cartpole, OFF_POLICY, DISCRETE),
    "masked": (MaskablePPO, IdentityMaskedEnv, PPO_SMALL, DISCRETE),
    "recurrent": (RecurrentPPO, cartpole, LSTM, DISCRETE),
}


@pytest.mark.parametrize("name", UNMODIFIED)
def test_unmodified_algorithms_write_the_tags(name: str, tmp_path: Path) -> None:
    algorithm, env, arguments, expected = UNMODIFIED[name]
    model = build(algorithm, env, tensorboard_log=str(tmp_path), **arguments)
    learn(model, 256, PolicyEntropyCallback(measure_freq=1))
    found = scalars(tmp_path)
    assert ours(found) == expected | WATCHED
    assert all(np.isfinite(values).all() for values in found.values())
    assert len(found["train/policy_entropy"]) >= 2
    assert events(tmp_path).Tags()["histograms"] == ["train/policy_entropy_hist"]


OURS = {
    "ppo": (SmoothedPPO, cartpole, PPO_SMALL, DISCRETE),
    "ppo box": (SmoothedPPO, pendulum, PPO_SMALL, {"policy_entropy", "kl_reference"}),
    "a2c": (SmoothedA2C, cartpole, {}, DISCRETE),
    "masked": (SmoothedMaskablePPO, IdentityMaskedEnv, PPO_SMALL, DISCRETE),
    "recurrent": (SmoothedRecurrentPPO, cartpole, LSTM, DISCRETE),
}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", OURS)
def test_our_algorithms_write_the_tags_themselves(name: str, smoothing: float, tmp_path: Path) -> None:
    algorithm, env, arguments, expected = OURS[name]
    model = build(algorithm, env, tensorboard_log=str(tmp_path), smoothing=smoothing, **arguments)
    learn(model, 256, None)
    found = scalars(tmp_path)
    assert ours(found) == expected | {"smoothing", "exploration_floor"}
    assert found["train/smoothing"][0] == pytest.approx(smoothing)


def test_on_our_algorithms_the_callback_adds_what_they_lack(tmp_path: Path) -> None:
    model = build(SmoothedPPO, cartpole, tensorboard_log=str(tmp_path), smoothing=0.1, **PPO_SMALL)
    learn(model, 256, PolicyEntropyCallback(prefix="watch"))
    tags = events(tmp_path).Tags()
    assert {tag for tag in tags["scalars"] if tag.startswith("watch/")} == {"watch/entropy_collapse"}
    assert tags["histograms"] == ["watch/policy_entropy_hist"]


class Oracle(BaseCallback):
    """Reads all states of a rollout with Stable-Baselines3's own distribution and torch's formulas in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.entropies: list[np.ndarray[Any, Any]] = []
        self.kl: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        model: Any = self.model
        seen = torch.as_tensor(model.rollout_buffer.observations.reshape(-1, *model.rollout_buffer.obs_shape))
        with torch.no_grad():
            logits = model.policy.get_distribution(seen).distribution.logits.double()
        found = Categorical(logits=logits)
        self.entropies.append(found.entropy().numpy())
        reference = Categorical(logits=torch.zeros_like(logits))
        self.kl.append(float(torch.distributions.kl_divergence(reference, found).mean()))


@pytest.mark.parametrize(("env", "scale"), [(cartpole, 1000.0), (IdentityEnv, 400.0)])
def test_values_and_histogram_against_torch(env: Callable[[], gym.Env[Any, Any]], scale: float, tmp_path: Path) -> None:
    model = build(PPO, env, tensorboard_log=str(tmp_path), learning_rate=0.01, **{**PPO_SMALL, "n_epochs": 10})
    oracle = Oracle()
    with torch.no_grad():
        model.policy.action_net.weight.mul_(scale)
    learn(model, 512, [oracle, PolicyEntropyCallback(collapse_threshold=0.8, measure_freq=1)])  # type: ignore[arg-type]
    found, actions = scalars(tmp_path), model.action_space.n
    means = [float(entropies.mean()) for entropies in oracle.entropies]
    below = [float((entropies < 0.8 * math.log(actions)).mean()) for entropies in oracle.entropies]
    assert 0 < below[0] < 1
    assert len(means) == 4
    np.testing.assert_allclose(found["train/policy_entropy"], means, rtol=1e-4)
    np.testing.assert_allclose(found["train/entropy_frac"], np.divide(means, math.log(actions)), rtol=1e-4)
    np.testing.assert_allclose(found["train/kl_uniform"], oracle.kl, rtol=1e-4)
    np.testing.assert_allclose(found["train/kl_reference"], oracle.kl, rtol=1e-4)
    np.testing.assert_allclose(found["train/entropy_collapse"], below, atol=1e-6)
    for event, entropies in zip(
        events(tmp_path).Histograms("train/policy_entropy_hist"), oracle.entropies, strict=True
    ):
        histogram = event.histogram_value
        assert histogram.num == 128
        assert sum(histogram.bucket) == 128
        np.testing.assert_allclose(
            (histogram.min, histogram.max), (entropies.min(), entropies.max()), rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(histogram.sum, entropies.sum(), rtol=1e-4)


def test_masked_states_without_a_choice_do_not_count(tmp_path: Path) -> None:
    model = build(MaskablePPO, IdentityMaskedEnv, tensorboard_log=str(tmp_path), **PPO_SMALL)
    with torch.no_grad():
        model.policy.action_net.weight.zero_()  # uniform over the legal actions, one of them in a quarter of the states
    learn(model, 128, PolicyEntropyCallback())
    found = scalars(tmp_path)
    assert found["train/entropy_frac"] == pytest.approx([1.0])
    assert found["train/entropy_collapse"] == [0.0]
    assert found["train/policy_entropy"][0] < math.log(4) - 0.1


@pytest.mark.parametrize(
    ("log_std", "nats", "expected"),
    # By default below a twentieth of the broad Gaussian's std, which is 2 for Pendulum: 0.1, whose log is -2.30.
    [(-2.2, None, 0.0), (-2.4, None, 1.0), (0.0, 1.41, 0.0), (0.0, 1.43, 1.0)],
)
def test_collapse_of_a_box(log_std: float, nats: float | None, expected: float) -> None:
    model = build(PPO, pendulum, policy_kwargs={"log_std_init": log_std}, **PPO_SMALL)
    model.learn(128, callback=PolicyEntropyCallback(collapse_nats=nats), log_interval=None)
    assert model.logger.name_to_value["train/entropy_collapse"] == expected
    entropy = log_std + 0.5 * math.log(2 * math.pi * math.e)
    assert model.logger.name_to_value["train/policy_entropy"] == pytest.approx(entropy, rel=1e-4)  # negative for two


# ---- where it writes


def test_files_of_text_get_the_numbers_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build(PPO, cartpole, **PPO_SMALL)
    model.set_logger(configure(str(tmp_path), ["stdout", "csv", "json", "log", "tensorboard"]))
    learn(model, 256, PolicyEntropyCallback(measure_freq=1))
    model.logger.close()
    with (tmp_path / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert len(rows) == len(lines) == 2
    for row in [*rows, *lines]:
        assert 0.6 < float(row["train/policy_entropy"]) < 0.7
        assert "train/policy_entropy_hist" not in row
    assert "policy_entropy " in capsys.readouterr().out
    assert events(tmp_path).Tags()["histograms"] == ["train/policy_entropy_hist"]


@pytest.mark.parametrize(("histogram", "formats"), [(False, ["tensorboard"]), (True, ["csv"]), (True, [])])
def test_no_histogram_unless_wanted_and_drawn(histogram: bool, formats: list[str], tmp_path: Path) -> None:
    model = build(PPO, cartpole, **PPO_SMALL)
    model.set_logger(configure(str(tmp_path), formats))
    model.learn(128, callback=PolicyEntropyCallback(histogram=histogram), log_interval=None)
    model.logger.close()
    assert "train/policy_entropy" in model.logger.name_to_value
    assert "train/policy_entropy_hist" not in model.logger.name_to_value


def test_measurements_keep_their_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    import rlsmooth.agents.smoothed.callback as module

    steps: list[int] = []
    measure = module.measure_rollout
    monkeypatch.setattr(module, "measure_rollout", lambda model: steps.append(model.num_timesteps) or measure(model))
    model = build(A2C, cartpole, n_envs=4)  # a rollout of 20 steps
    model.learn(400, callback=PolicyEntropyCallback(measure_freq=110))
    assert steps == [20, 140, 260, 380]
    steps.clear()
    callback = PolicyEntropyCallback(measure_freq=110)
    model.learn(60, callback=callback)
    model.learn(60, callback=callback, reset_num_timesteps=False)  # each call has its first
    assert steps == [20, 80]


# ---- what it leaves alone

WATCHED_RUNS = {
    **{name: UNMODIFIED[name][:3] for name in ("ppo", "ppo box", "a2c", "trpo", "dqn", "qrdqn", "masked", "recurrent")},
    "ours": (SmoothedPPO, cartpole, {**PPO_SMALL, "smoothing": 0.1}),
    "ours, box, floor": (SmoothedPPO, pendulum, {**PPO_SMALL, "exploration_floor": 0.2}),
    "noise": (PPO, pendulum, {**PPO_SMALL, "use_sde": True}),
}


RARELY = ("trpo", "qrdqn", "noise", "ours")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in RARELY else ()) for name in WATCHED_RUNS]
)
def test_training_is_the_same_bit_for_bit(name: str, tmp_path: Path) -> None:
    algorithm, env, arguments = WATCHED_RUNS[name]
    plain = build(algorithm, env, **arguments)
    start = {key: value.clone() for key, value in plain.policy.state_dict().items()}
    learn(plain, 384, None)
    watched = build(algorithm, env, tensorboard_log=str(tmp_path), **arguments)
    learn(watched, 384, PolicyEntropyCallback(measure_freq=1))
    ends = plain.policy.state_dict()
    assert any(not torch.equal(start[key], value) for key, value in ends.items())
    for key, value in watched.policy.state_dict().items():
        assert torch.equal(value, ends[key]), key


# ---- errors


def test_an_algorithm_without_such_a_policy_is_refused_before_it_trains() -> None:
    model = SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, device="cpu")
    with pytest.raises(TypeError, match="got SACPolicy"):
        model.learn(10, callback=PolicyEntropyCallback())
    assert model.num_timesteps == 0


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"collapse_threshold": 1.5}, ValueError, "collapse_threshold"),
        ({"collapse_threshold": "low"}, TypeError, "collapse_threshold"),
        ({"collapse_nats": math.nan}, ValueError, "collapse_nats"),
        ({"measure_freq": 0}, ValueError, "measure_freq"),
        ({"measure_freq": 2.5}, TypeError, "measure_freq"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        PolicyEntropyCallback(**arguments)
