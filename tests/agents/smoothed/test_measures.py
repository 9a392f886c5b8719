"""Measures of policies against torch, SB3 and sb3-contrib, and the callback that writes them."""

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
import scipy.integrate
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN, TRPO, MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from rlsmooth.agents import (
    SmoothedA2C,
    SmoothedActorCriticPolicy,
    SmoothedMaskableActorCriticPolicy,
    SmoothedMaskablePPO,
    SmoothedPPO,
    SmoothedRecurrentPPO,
)
from rlsmooth.agents.smoothed.callback import PolicyEntropyCallback
from rlsmooth.agents.smoothed.measures import PolicyMeasures, measure_policy, measure_rollout, record_measures
from rlsmooth.envs import IdentityEnv, IdentityMaskedEnv, IdentityMultiDiscreteEnv
from rlsmooth.training import rng_state
from support import InTwoParts, assert_raises, read_events, same_parameters, same_tensors
from trainers import Dropping

OBSERVATIONS = spaces.Box(-1.0, 1.0, (3,))
DISCRETE, MULTI = spaces.Discrete(5), spaces.MultiDiscrete([3, 4])
BITS, BOX = spaces.MultiBinary(3), spaces.Box(-2.0, 2.0, (2,))


def build(policy: type[Any], space: spaces.Space[Any], device: torch.device, **arguments: Any) -> Any:
    """A policy whose distributions are far from uniform, and differ from state to state."""
    made = policy(OBSERVATIONS, space, lambda _: 1e-3, **arguments).to(device)
    with torch.no_grad():
        made.action_net.weight.mul_(300.0)
        made.action_net.bias.normal_()
    return made


def states(device: torch.device, rows: int = 20) -> Tensor:
    return torch.rand(rows, 3, device=device) * 2 - 1


def logits_of(policy: Any, observations: Tensor) -> list[Tensor]:
    """One component's logits in float64 after the other, from the network itself; a bit x has (0, x)."""
    with torch.no_grad():
        features = policy.mlp_extractor.forward_actor(policy.extract_features(observations))
        outputs = policy.action_net(features).double()
    if isinstance(policy.action_space, spaces.Discrete):
        return [outputs]
    if isinstance(policy.action_space, spaces.MultiDiscrete):
        return list(outputs.split(policy.action_space.nvec.tolist(), dim=1))
    bits = outputs.unsqueeze(-1)
    return list(torch.cat((torch.zeros_like(bits), bits), dim=-1).unbind(1))


def close(value: Any, expected: Any) -> None:
    torch.testing.assert_close(torch.as_tensor(value).double().cpu(), torch.as_tensor(expected).double().cpu(),
                               rtol=2e-5, atol=2e-6)  # fmt: skip


def uniform(logits: Tensor) -> Categorical:
    return Categorical(logits=torch.zeros_like(logits))


# ---- values
@pytest.mark.parametrize("policy", [ActorCriticPolicy, SmoothedActorCriticPolicy])
@pytest.mark.parametrize("space", [DISCRETE, MULTI, BITS])
def test_discrete_spaces_against_torch(policy: type[Any], space: spaces.Space[Any], device: torch.device) -> None:
    made, seen = build(policy, space, device), states(device)
    found = measure_policy(made, seen)
    parts = [Categorical(logits=logits) for logits in logits_of(made, seen)]
    entropies = torch.stack([part.entropy() for part in parts], dim=1)
    kl = sum(kl_divergence(uniform(part.logits), part) for part in parts)
    most = sum(math.log(part.logits.shape[-1]) for part in parts)
    assert entropies.sum(1).std() > 0.05
    close(found.entropies, entropies.sum(1))
    close(found.policy_entropy, entropies.sum(1).mean())
    close(found.entropy_frac, entropies.sum(1).mean() / most)
    close(found.kl_uniform, kl.mean())
    close(found.kl_reference, kl.mean())
    close(found.fractions, entropies.sum(1) / most)
    close(found.entropy_frac_min, entropies.sum(1).amin() / most)
    assert found.has_choice.all()
    by_dimension = entropies.mean(0) if space is MULTI else []
    assert len(found.entropy_by_dimension) == len(by_dimension)
    for value, expected in zip(found.entropy_by_dimension, by_dimension, strict=True):
        close(value, expected)


@pytest.mark.parametrize("policy", [MaskableActorCriticPolicy, SmoothedMaskableActorCriticPolicy])
def test_masks_leave_the_legal_actions(policy: type[Any], device: torch.device) -> None:
    made, seen = build(policy, DISCRETE, device), states(device)
    masks = torch.rand(20, 5, device=device) < 0.4
    masks[:, 0] |= ~masks.any(1)
    masks[:4] = torch.tensor([False, True, False, False, False])
    found = measure_policy(made, seen, action_masks=masks)
    rows = [Categorical(logits=row[mask]) for row, mask in zip(logits_of(made, seen)[0], masks, strict=True)]
    entropies = torch.stack([row.entropy() for row in rows])
    counts = masks.sum(1).double()
    close(found.entropies, entropies)
    close(found.kl_uniform, torch.stack([kl_divergence(uniform(row.logits), row) for row in rows]).mean())
    choice = counts >= 2
    assert 4 <= (~choice).sum() < 15
    close(found.entropy_frac, (entropies[choice] / counts[choice].log()).mean())  # rows with a choice alone
    assert found.has_choice is not None
    assert torch.equal(found.has_choice, choice)
    expected = (entropies[choice] / counts[choice].log() < 0.5).double().mean()
    assert 0 < expected < 1
    close(found.entropy_collapse(0.5), expected)
    close(found.entropy_below(0.5, is_fraction=True), expected)
    close(found.entropy_below(0.5, is_fraction=False), (entropies < 0.5).double().mean())
    close(found.entropy_frac_min, (entropies[choice] / counts[choice].log()).amin())  # one legal action has 0
    alone = measure_policy(made, seen[:4], action_masks=masks[:4])
    assert alone.entropy_frac == alone.entropy_frac_min == 0
    assert alone.entropy_collapse(1.0) == 0


@pytest.mark.parametrize("policy", [ActorCriticPolicy, SmoothedActorCriticPolicy])
@pytest.mark.parametrize("log_std", [0.3, -4.0])
def test_box_against_torch(policy: type[Any], log_std: float, device: torch.device) -> None:
    made, seen = build(policy, BOX, device, log_std_init=log_std), states(device)
    found = measure_policy(made, seen)
    with torch.no_grad():
        normal = made.get_distribution(seen).distribution
    own = Independent(Normal(normal.mean.double(), normal.stddev.double()), 1)
    broad = Independent(Normal(torch.zeros_like(own.mean), 2.0), 1)  # the middle of the box, half its width
    assert (own.entropy().mean() < 0) == (log_std < -3)
    close(found.entropies, own.entropy())
    close(found.policy_entropy, own.entropy().mean())
    close(found.kl_reference, kl_divergence(broad, own).mean())
    assert set(found.tags()) == {"policy_entropy", "kl_reference"}
    assert found.entropy_collapse(float(own.entropy()[0]) + 0.01) == 1
    assert found.entropy_collapse(float(own.entropy()[0]) - 0.01) == 0


def test_box_with_a_floor_against_an_integral(device: torch.device) -> None:
    space = spaces.Box(-2.0, 2.0, (1,))
    made = build(SmoothedActorCriticPolicy, space, device, exploration_floor=0.3, log_std_init=-1.5)
    seen = states(device, 3)
    with torch.no_grad():
        means = made.get_distribution(seen).mode().double().cpu()
    expected = []
    for mean in means.flatten():
        both = Normal(torch.stack((mean, torch.zeros_like(mean))), torch.tensor([math.exp(-1.5), 2.0]).double())
        mixture = MixtureSameFamily(Categorical(torch.tensor([0.7, 0.3]).double()), both)

        def integrand(x: float, mixture: MixtureSameFamily = mixture) -> float:
            log_density = float(mixture.log_prob(torch.tensor(x, dtype=torch.float64)))
            return -math.exp(log_density) * log_density

        expected.append(scipy.integrate.quad(integrand, -25, 25, points=[float(mean)], limit=200)[0])
    found = measure_policy(made, seen)
    torch.testing.assert_close(found.entropies.double().cpu(), torch.tensor(expected).double(), rtol=0, atol=0.15)
    many = measure_policy(made, seen.repeat(300, 1))
    assert float(many.policy_entropy) == pytest.approx(np.mean(expected), abs=0.02)


def test_floor_and_reference_of_a_smoothed_policy(device: torch.device) -> None:
    prior = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1])
    made = build(SmoothedActorCriticPolicy, DISCRETE, device, reference=prior, exploration_floor=0.25)
    seen = states(device)
    found = measure_policy(made, seen)
    own, reference = Categorical(logits=logits_of(made, seen)[0]), Categorical(prior.double().to(device))
    close(found.entropies, Categorical(0.75 * own.probs + 0.25 * reference.probs).entropy())  # what acts
    close(found.kl_uniform, kl_divergence(uniform(own.logits), own).mean())  # the network
    close(found.kl_reference, kl_divergence(reference, own).mean())


@pytest.mark.parametrize("algorithm", [DQN, QRDQN])
def test_dqn_is_the_softmax_of_its_values_on_normalised_states(algorithm: type[Any]) -> None:
    env = VecNormalize(make_vec_env("CartPole-v1", 2))
    model = algorithm("MlpPolicy", env, buffer_size=64, learning_starts=10**6, seed=0, device="cpu").learn(200)
    found = measure_rollout(model, max_states=10**6)
    stored = env.normalize_obs(model.replay_buffer.observations).swapaxes(0, 1).reshape(-1, 4)
    with torch.no_grad():
        policy, seen = model.policy, torch.as_tensor(stored)
        values = policy.q_net(seen) if algorithm is DQN else policy.quantile_net(seen).mean(1)
    entropies = Categorical(logits=values.double()).entropy()
    assert len(found.entropies) == 64
    close(found.entropies.sort()[0], entropies.sort()[0])  # the buffer is a ring
    assert len(measure_rollout(model, max_states=7).entropies) == 7


# ---- the rollout
class Look(BaseCallback):
    """Measures at each rollout's end."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[PolicyMeasures] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.found.append(measure_rollout(self.model))


def cartpole() -> gym.Env[Any, Any]:
    return gym.make("CartPole-v1")


def pendulum() -> gym.Env[Any, Any]:
    return gym.make("Pendulum-v1")


def dict_env() -> gym.Env[Any, Any]:
    return InTwoParts(gym.make("CartPole-v1"))


SMALL = {"n_steps": 32, "batch_size": 32, "n_epochs": 1, "learning_rate": 0.0, "device": "cpu", "seed": 0}
NARROW = {"policy_kwargs": {"lstm_hidden_size": 8}}
ROLLOUTS = {
    "ppo": (PPO, "MlpPolicy", cartpole, {}),
    "dict": (PPO, "MultiInputPolicy", dict_env, {}),
    "discrete": (PPO, "MlpPolicy", IdentityEnv, {}),
    "multi": (PPO, "MlpPolicy", IdentityMultiDiscreteEnv, {}),
    "box": (PPO, "MlpPolicy", pendulum, {}),
    "noise": (PPO, "MlpPolicy", pendulum, {"use_sde": True}),
    "masked": (MaskablePPO, "MlpPolicy", IdentityMaskedEnv, {}),
    "recurrent": (RecurrentPPO, "MlpLstmPolicy", cartpole, NARROW),
    "recurrent dict": (RecurrentPPO, "MultiInputLstmPolicy", dict_env, NARROW),
}


@pytest.mark.parametrize("name", ROLLOUTS)
def test_rollout_rows_are_those_that_the_algorithm_evaluates(name: str) -> None:
    algorithm, policy, env, more = ROLLOUTS[name]
    look = Look()
    model = algorithm(policy, DummyVecEnv([env] * 3), **{**SMALL, **more})
    with torch.no_grad():
        model.policy.action_net.weight.mul_(200.0)
    model.learn(96, callback=look)
    (found,) = look.found
    (batch,) = list(model.rollout_buffer.get(None))
    arguments = [batch.observations, batch.actions.long() if name != "box" and name != "noise" else batch.actions]
    weights = torch.ones(96)
    if name == "masked":
        arguments.append(batch.action_masks)
    if name.startswith("recurrent"):
        arguments = [batch.observations, batch.actions.flatten(), batch.lstm_states, batch.episode_starts]
        weights = batch.mask
    elif name in ("ppo", "dict", "discrete", "masked"):
        arguments[1] = arguments[1].flatten()
    with torch.no_grad():
        _, _, entropies = model.policy.evaluate_actions(*arguments)
    entropies = entropies.expand(weights.shape)[weights > 0.5]
    assert len(entropies) == 96
    close(found.entropies.sort()[0], entropies.sort()[0])
    close(found.policy_entropy, entropies.mean())
    again = measure_rollout(model)  # the update has flattened the buffer
    close(again.entropies, found.entropies)
    if name not in ("box", "noise"):
        assert entropies.std() > 1e-3


@pytest.mark.parametrize("algorithm", [RecurrentPPO, SmoothedRecurrentPPO])
def test_one_sequence_is_remembered_row_after_row(algorithm: type[Any]) -> None:
    policy = algorithm("MlpLstmPolicy", "CartPole-v1", **SMALL, **NARROW).policy
    with torch.no_grad():
        policy.action_net.weight.mul_(300.0)
    seen, starts = torch.randn(6, 4), torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    states = zeros = (torch.zeros(1, 1, 8), torch.zeros(1, 1, 8))
    expected = []
    with torch.no_grad():
        for row, start in zip(seen, starts, strict=True):
            found, states = policy.get_distribution(row.unsqueeze(0), states, start.unsqueeze(0))
            expected.append(found.entropy())
    close(measure_policy(policy, seen, lstm_states=zeros, episode_starts=starts).entropies, torch.cat(expected))
    apart = measure_policy(policy, seen).entropies  # six sequences of one row
    assert not torch.allclose(apart, torch.cat(expected), rtol=1e-3)


def test_rows_are_spread_over_time_and_environments() -> None:
    model = PPO("MlpPolicy", make_vec_env("CartPole-v1", 4), **{**SMALL, "n_steps": 64}).learn(256)
    with torch.no_grad():
        model.policy.action_net.weight.mul_(200.0)
    every = measure_rollout(model).entropies
    some = measure_rollout(model, max_states=16).entropies
    places = [int((every == entropy).nonzero()[0]) for entropy in some]
    assert places[0] == 0
    assert places[-1] == 255
    assert max(np.diff(places)) <= 18
    assert {place // 64 for place in places} == {0, 1, 2, 3}


def test_large_pictures_are_measured_on_fewer_rows() -> None:
    class Pictures(gym.Env[Any, Any]):
        observation_space = spaces.Box(0, 255, (3, 200, 200), np.uint8)
        action_space = spaces.Discrete(2)

        def reset(self, **_: Any) -> Any:
            return self.observation_space.sample(), {}

        def step(self, action: Any) -> Any:
            return self.observation_space.sample(), 0.0, False, False, {}

    kwargs = {"features_extractor_kwargs": {"features_dim": 4}}
    given = {**SMALL, "n_steps": 90, "batch_size": 90, "policy_kwargs": kwargs}
    model = PPO("CnnPolicy", DummyVecEnv([Pictures]), **given).learn(90)
    assert len(measure_rollout(model).entropies) == 2**25 // (4 * 3 * 200 * 200)


# ---- what it leaves alone


@pytest.mark.parametrize(("space", "floor"), [(DISCRETE, 0.0), (BOX, 0.2)])
def test_no_generator_moves_and_dropout_rests(space: spaces.Space[Any], floor: float, device: torch.device) -> None:
    made = build(SmoothedActorCriticPolicy, space, device, exploration_floor=floor, features_extractor_class=Dropping)
    seen = states(device)
    made.set_training_mode(True)
    before = rng_state()
    one, two = measure_policy(made, seen), measure_policy(made, seen)
    after = rng_state()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(one.entropies, two.entropies)
    assert not one.entropies.requires_grad
    assert made.training
    assert made.features_extractor.training


def test_mode_comes_back_after_an_error(device: torch.device) -> None:
    made = build(ActorCriticPolicy, DISCRETE, device)
    made.set_training_mode(True)
    assert_raises(RuntimeError, None, measure_policy, made, torch.zeros(1, 7, device=device))
    assert made.training


# ---- recording, errors
def test_record_writes_each_mean_once() -> None:
    logger = configure(None, [])
    made = build(ActorCriticPolicy, MULTI, torch.device("cpu"))
    found = measure_policy(made, states(torch.device("cpu")))
    record_measures(logger, found, prefix="watch")
    names = ("policy_entropy", "entropy_frac", "entropy_frac_min", "kl_uniform", "kl_reference")
    names += ("entropy_dim0", "entropy_dim1")
    assert set(logger.name_to_value) == {f"watch/{name}" for name in names}
    assert logger.name_to_value["watch/policy_entropy"] == pytest.approx(float(found.policy_entropy))
    assert logger.name_to_value["watch/entropy_dim1"] == pytest.approx(float(found.entropy_by_dimension[1]))
    assert all(isinstance(value, float) for value in logger.name_to_value.values())


@pytest.mark.parametrize("algorithm", [PPO, A2C, TRPO, DQN])
def test_an_empty_buffer_is_an_error(algorithm: type[Any]) -> None:
    assert_raises(ValueError, "buffer is empty", measure_rollout, algorithm("MlpPolicy", "CartPole-v1", device="cpu"))


def test_bad_arguments_are_named(device: torch.device) -> None:
    made, seen = build(ActorCriticPolicy, DISCRETE, device), states(device)
    with pytest.raises(ValueError, match="action_masks can't be used by ActorCriticPolicy"):
        measure_policy(made, seen, action_masks=torch.ones(20, 5, dtype=torch.bool, device=device))
    with pytest.raises(ValueError, match="not recurrent"):
        measure_policy(made, seen, episode_starts=torch.zeros(20, device=device))
    with pytest.raises(TypeError, match="got SACPolicy"):
        measure_policy(SAC("MlpPolicy", "Pendulum-v1", device="cpu", buffer_size=10).policy, seen)
    with pytest.raises(ValueError, match="max_states"):
        measure_rollout(PPO("MlpPolicy", "CartPole-v1", device="cpu"), max_states=0)


# ---- what the callback and our algorithms write to TensorBoard, and that looking changes nothing
FOUR = {"policy_entropy", "entropy_frac", "entropy_frac_min", "kl_uniform", "kl_reference"}
WATCHED = {"entropy_collapse"}
PPO_SMALL = {"n_steps": 64, "batch_size": 64, "n_epochs": 2}
LSTM = {**PPO_SMALL, "policy_kwargs": {"lstm_hidden_size": 8}}
TRPO_SMALL = {"n_steps": 64, "batch_size": 64}
OFF_POLICY = {"buffer_size": 200, "learning_starts": 50, "batch_size": 16}


def build_algorithm(algorithm: Any, env: Any, n_envs: int = 2, **arguments: Any) -> Any:
    policy = "MlpLstmPolicy" if "Recurrent" in algorithm.__name__ else "MlpPolicy"
    return algorithm(policy, DummyVecEnv([env] * n_envs), seed=0, device="cpu", **arguments)


def learn(model: Any, steps: int, callback: BaseCallback | None, **more: Any) -> Any:
    """With a log line for each rollout, or for DQN each episode."""
    return model.learn(steps, callback=callback, log_interval=1, **more)


def events(folder: Path) -> Any:
    (file,) = folder.rglob("events.out.tfevents*")
    return read_events(file)


def scalars(folder: Path) -> dict[str, list[float]]:
    found = events(folder)
    return {name: [event.value for event in found.Scalars(name)] for name in found.Tags()["scalars"]}


def ours(tags: Any) -> set[str]:
    """Of all tags those that this test is about, without the prefix."""
    known = ("policy_entropy", "entropy_frac", "kl_uniform", "kl_reference", "entropy_dim", "entropy_collapse")
    known += ("smoothing", "exploration")
    return {tag.removeprefix("train/") for tag in tags if tag.removeprefix("train/").startswith(known)}


# ---- tags
UNMODIFIED = {
    "ppo": (PPO, cartpole, PPO_SMALL, FOUR),
    "ppo box": (PPO, pendulum, PPO_SMALL, {"policy_entropy", "kl_reference"}),
    "ppo multi": (PPO, IdentityMultiDiscreteEnv, PPO_SMALL, FOUR | {"entropy_dim0", "entropy_dim1"}),
    "a2c": (A2C, cartpole, {}, FOUR),
    "trpo": (TRPO, cartpole, TRPO_SMALL, FOUR),
    "dqn": (DQN, cartpole, OFF_POLICY, FOUR),
    "qrdqn": (QRDQN, cartpole, OFF_POLICY, FOUR),
    "masked": (MaskablePPO, IdentityMaskedEnv, PPO_SMALL, FOUR),
    "recurrent": (RecurrentPPO, cartpole, LSTM, FOUR),
}


@pytest.mark.parametrize("name", UNMODIFIED)
def test_unmodified_algorithms_write_the_tags(name: str, tmp_path: Path) -> None:
    algorithm, env, arguments, expected = UNMODIFIED[name]
    model = build_algorithm(algorithm, env, tensorboard_log=str(tmp_path), **arguments)
    learn(model, 256, PolicyEntropyCallback(measure_freq=1))
    found = scalars(tmp_path)
    assert ours(found) == expected | WATCHED
    assert all(np.isfinite(values).all() for values in found.values())
    assert len(found["train/policy_entropy"]) >= 2
    assert events(tmp_path).Tags()["histograms"] == ["train/policy_entropy_hist"]


OURS = {
    "ppo": (SmoothedPPO, cartpole, PPO_SMALL, FOUR),
    "ppo box": (SmoothedPPO, pendulum, PPO_SMALL, {"policy_entropy", "kl_reference"}),
    "a2c": (SmoothedA2C, cartpole, {}, FOUR),
    "masked": (SmoothedMaskablePPO, IdentityMaskedEnv, PPO_SMALL, FOUR),
    "recurrent": (SmoothedRecurrentPPO, cartpole, LSTM, FOUR),
}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", OURS)
def test_our_algorithms_write_the_tags_themselves(name: str, smoothing: float, tmp_path: Path) -> None:
    algorithm, env, arguments, expected = OURS[name]
    model = build_algorithm(algorithm, env, tensorboard_log=str(tmp_path), smoothing=smoothing, **arguments)
    learn(model, 256, None)
    found = scalars(tmp_path)
    assert ours(found) == expected | {"smoothing", "exploration_floor"}
    assert found["train/smoothing"][0] == pytest.approx(smoothing)


def test_on_our_algorithms_the_callback_adds_what_they_lack(tmp_path: Path) -> None:
    model = build_algorithm(SmoothedPPO, cartpole, tensorboard_log=str(tmp_path), smoothing=0.1, **PPO_SMALL)
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
    arguments = {**PPO_SMALL, "n_epochs": 10, "learning_rate": 0.01, "tensorboard_log": str(tmp_path)}
    model = build_algorithm(PPO, env, **arguments)
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
    drawn = events(tmp_path).Histograms("train/policy_entropy_hist")
    for event, entropies in zip(drawn, oracle.entropies, strict=True):
        histogram = event.histogram_value
        assert histogram.num == sum(histogram.bucket) == 128
        bounds = entropies.min(), entropies.max()
        np.testing.assert_allclose((histogram.min, histogram.max), bounds, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(histogram.sum, entropies.sum(), rtol=1e-4)


def test_masked_states_without_a_choice_do_not_count(tmp_path: Path) -> None:
    model = build_algorithm(MaskablePPO, IdentityMaskedEnv, tensorboard_log=str(tmp_path), **PPO_SMALL)
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
    model = build_algorithm(PPO, pendulum, policy_kwargs={"log_std_init": log_std}, **PPO_SMALL)
    model.learn(128, callback=PolicyEntropyCallback(collapse_nats=nats), log_interval=None)
    assert model.logger.name_to_value["train/entropy_collapse"] == expected
    entropy = log_std + 0.5 * math.log(2 * math.pi * math.e)
    assert model.logger.name_to_value["train/policy_entropy"] == pytest.approx(entropy, rel=1e-4)  # negative for two


# ---- where it writes
def test_files_of_text_get_the_numbers_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build_algorithm(PPO, cartpole, **PPO_SMALL)
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
    model = build_algorithm(PPO, cartpole, **PPO_SMALL)
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
    model = build_algorithm(A2C, cartpole, n_envs=4)  # a rollout of 20 steps
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
    plain = build_algorithm(algorithm, env, **arguments)
    start = {key: value.clone() for key, value in plain.policy.state_dict().items()}
    learn(plain, 384, None)
    watched = build_algorithm(algorithm, env, tensorboard_log=str(tmp_path), **arguments)
    learn(watched, 384, PolicyEntropyCallback(measure_freq=1))
    assert not same_tensors(plain.policy.state_dict(), start)
    assert same_parameters(watched, plain)


# ---- errors
def test_an_algorithm_without_such_a_policy_is_refused_before_it_trains() -> None:
    model = SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, device="cpu")
    assert_raises(TypeError, "got SACPolicy", model.learn, 10, callback=PolicyEntropyCallback())
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
def test_bad_arguments_are_named_of_the_callback(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    assert_raises(error, words, PolicyEntropyCallback, **arguments)
