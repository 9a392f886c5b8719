"""Rollouts, updates and predictions of plain MLP policies equal Stable-Baselines3's own, bit for bit."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import nn

from rlsmooth.agents.smoothed import algorithms, lean
from rlsmooth.agents.smoothed.algorithms import SmoothedA2C, SmoothedPPO
from rlsmooth.agents.smoothed.contrib import SmoothedMaskableActorCriticPolicy
from rlsmooth.agents.smoothed.contrib_algorithms import SmoothedMaskablePPO
from rlsmooth.agents.smoothed.policies import SmoothedActorCriticPolicy
from rlsmooth.envs import IdentityMaskedEnv, IdentityMaskedMultiDiscreteEnv
from rlsmooth.targets import Smoothing


class Wandering(gym.Env[Any, Any]):
    """A state that drifts with the action, in episodes that end or are cut at random."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**30)))
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        ends, cut = (bool(chance) for chance in self.np_random.random(2) < 0.1)
        reward = float(np.sum(action)) + float(self.np_random.normal())
        return self.observation_space.sample(), reward, ends, cut, {}


pytestmark = pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
SHORT = {"n_steps": 32, "batch_size": 32, "n_epochs": 3}
BOX = spaces.Box(-1.0, 1.0, (3,))
MULTI = spaces.MultiDiscrete([3, 2, 4])
ARM = spaces.Box(np.float32([-1, -2]), np.float32([1, 0.5]))


def make(name: str) -> Any:
    if name == "masked":
        return IdentityMaskedEnv(5)
    if name == "masked components":
        return IdentityMaskedMultiDiscreteEnv((3, 4))
    kinds = {
        "discrete": (BOX, spaces.Discrete(4)),
        "components": (spaces.Box(-1, 1, (2, 3), np.float64), MULTI),
        "arm": (BOX, ARM),
        "matrix": (spaces.Discrete(5), spaces.Box(-1.0, 1.0, (2, 2))),
        "bits": (spaces.MultiBinary(4), spaces.Discrete(2)),
    }
    if name in kinds:
        return make_vec_env(lambda: gym.wrappers.TimeLimit(Wandering(*kinds[name]), 20), 2, seed=4)
    return make_vec_env(name, 2, seed=4)


class Recorded(BaseCallback):
    """Keeps the logged numbers of each update, and stops early if asked to."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.stop_at = stop_at
        self.numbers: list[dict[str, Any]] = []

    def _on_rollout_start(self) -> None:
        self.numbers.append({name: value for name, value in self.logger.name_to_value.items() if "time/" not in name})

    def _on_step(self) -> bool:
        return self.stop_at is None or self.num_timesteps < self.stop_at


def trained(
    algorithm: type[OnPolicyAlgorithm],
    env: str,
    policy: Any = "MlpPolicy",
    stop_at: int | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Parameters, optimiser's state, the rollout, the random generators and the logged numbers after some updates."""
    model = algorithm(policy, make(env), seed=3, device="cpu", **arguments)
    callback = Recorded(stop_at)
    model.learn(129, callback, log_interval=1)
    buffer = model.rollout_buffer
    found: dict[str, Any] = dict(model.policy.state_dict())
    for place, entry in model.policy.optimizer.state_dict()["state"].items():
        found |= {f"optimizer {place} {name}": value for name, value in entry.items()}
    found |= {f"gradient {name}": one.grad for name, one in model.policy.named_parameters() if one.grad is not None}
    found |= {name: getattr(buffer, name) for name in ("observations", "actions", "returns", "log_probs", "values")}
    found |= {"torch": torch.get_rng_state(), "numpy": np.random.get_state()[1], "log": callback.numbers}  # noqa: NPY002
    found["updates"] = model._n_updates
    return found


def assert_same(mine: dict[str, Any], its: dict[str, Any], *, without: tuple[str, ...] = ()) -> None:
    assert mine.keys() == its.keys()
    for name, value in its.items():
        if name == "log":
            assert len(mine[name]) == len(value)
            for own, one in zip(mine[name], value, strict=True):
                names = [tag for tag in one if tag not in without]
                np.testing.assert_equal([own[tag] for tag in names], [one[tag] for tag in names], err_msg=str(names))
        else:
            np.testing.assert_array_equal(np.asarray(mine[name]), np.asarray(value), err_msg=name)


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the lean updates that ran."""
    names: list[str] = []

    def watched(train: Any) -> Any:
        update = lean.lean_update_of(train)

        def run(*arguments: Any) -> None:
            assert update is not None
            names.append(update.__name__)
            update(*arguments)

        return None if update is None else run

    monkeypatch.setattr(algorithms, "lean_update_of", watched)
    return names


TWO_SIZES = {"net_arch": {"pi": [8], "vf": [16, 16]}, "activation_fn": nn.ReLU}
LINEAR = {"net_arch": []}
OFF = [
    ("discrete", SmoothedPPO, PPO, {**SHORT, "ent_coef": 0.01}),
    ("discrete", SmoothedPPO, PPO, {**SHORT, "policy_kwargs": TWO_SIZES, "clip_range_vf": 0.2, "max_grad_norm": 0.01}),
    ("discrete", SmoothedPPO, PPO, {**SHORT, "policy_kwargs": LINEAR, "target_kl": 1e-4, "learning_rate": 1e-2}),
    ("components", SmoothedPPO, PPO, {**SHORT, "ent_coef": 0.02, "batch_size": 21}),  # the last minibatch has one
    ("arm", SmoothedPPO, PPO, {**SHORT, "ent_coef": 0.02, "clip_range": lambda left: 0.3 * left}),
    ("arm", SmoothedPPO, PPO, {**SHORT, "normalize_advantage": False, "vf_coef": 0.3}),
    ("arm", SmoothedPPO, PPO, {**SHORT, "policy_kwargs": {"optimizer_kwargs": {"weight_decay": 0.1}}}),
    ("arm", SmoothedPPO, PPO, {**SHORT, "policy_kwargs": {"optimizer_class": torch.optim.AdamW}}),
    ("matrix", SmoothedPPO, PPO, {**SHORT, "ent_coef": 0.02}),
    ("bits", SmoothedPPO, PPO, SHORT),
    ("CartPole-v1", SmoothedPPO, PPO, {**SHORT, "n_steps": 50, "batch_size": 7}),
    ("masked", SmoothedMaskablePPO, MaskablePPO, {**SHORT, "ent_coef": 0.01}),
    ("masked components", SmoothedMaskablePPO, MaskablePPO, {**SHORT, "clip_range_vf": 0.2}),
    ("discrete", SmoothedA2C, A2C, {"ent_coef": 0.01}),
    ("components", SmoothedA2C, A2C, {"normalize_advantage": True}),
    ("arm", SmoothedA2C, A2C, {"ent_coef": 0.01, "use_rms_prop": False}),
]


@pytest.mark.parametrize(("env", "ours", "parent", "arguments"), OFF)
def test_off_equals_the_parent(env: str, ours: Any, parent: Any, arguments: dict[str, Any], updates: list[str]) -> None:
    its = trained(parent, env, **arguments)
    assert_same(trained(ours, env, **arguments), its)
    assert updates, "the parent's own train ran"


class Slow(SmoothedActorCriticPolicy):
    """Another class, so that the parent's way is taken."""


class SlowMaskable(SmoothedMaskableActorCriticPolicy):
    """Another class, so that the parent's way is taken."""


ORDINAL = Smoothing(alpha=0.2, reference="triangular")
ON = [
    ("discrete", SmoothedPPO, {**SHORT, "smoothing": 0.1, "ent_coef": 0.01}),
    ("discrete", SmoothedPPO, {**SHORT, "smoothing": "lin_0.1", "exploration_floor": 0.1}),
    ("discrete", SmoothedPPO, {**SHORT, "exploration_floor": "lin_0.2", "ent_coef": 0.01}),
    ("discrete", SmoothedPPO, {**SHORT, "target_entropy_frac": 0.9}),
    ("components", SmoothedPPO, {**SHORT, "smoothing": 0.1, "batch_size": 21}),
    ("arm", SmoothedPPO, {**SHORT, "smoothing": 0.1, "ent_coef": 0.01}),
    ("arm", SmoothedPPO, {**SHORT, "smoothing": 0.1, "exploration_floor": 0.1}),
    ("arm", SmoothedPPO, {**SHORT, "target_entropy_nats": 2.0, "target_kl": 0.01}),
    ("masked", SmoothedMaskablePPO, {**SHORT, "smoothing": 0.1, "ent_coef": 0.01}),
    ("masked components", SmoothedMaskablePPO, {**SHORT, "smoothing": 0.1, "exploration_floor": 0.1}),
    ("discrete", SmoothedA2C, {"smoothing": 0.1}),
    ("arm", SmoothedA2C, {"smoothing": 0.1, "ent_coef": 0.01}),
]


@pytest.mark.parametrize(("env", "algorithm", "arguments"), ON)
def test_on_equals_the_slow_way(env: str, algorithm: Any, arguments: dict[str, Any], updates: list[str]) -> None:
    slow = trained(algorithm, env, SlowMaskable if algorithm is SmoothedMaskablePPO else Slow, **arguments)
    assert not updates
    assert_same(trained(algorithm, env, **arguments), slow)
    assert updates
