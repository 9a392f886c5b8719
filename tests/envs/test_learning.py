"""Unmodified SB3 algorithms find the known optimum, judged exactly by the environment's own `expected_return`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from torch.distributions import Categorical

from rlsmooth.envs import IdentityBoxEnv, MaskedTabularEnv, TabularEnv

# Actions don't influence states, so gamma = 0 loses nothing. The entropy bonus keeps a state from settling on a wrong
# action by chance: with these settings every seed tried reaches the exact optimum.
PPO_ARGUMENTS: dict[str, Any] = {
    "n_steps": 50,
    "batch_size": 100,
    "n_epochs": 6,
    "gamma": 0.0,
    "ent_coef": 0.05,
    "learning_rate": 5e-3,
    "seed": 0,
    "device": "cpu",
}


def make_tabular(name: str, **arguments: Any) -> TabularEnv:
    env = gym.make(name, **arguments).unwrapped
    assert isinstance(env, TabularEnv)
    return env


def greedy_return(model: Any, env: TabularEnv) -> float:
    """The exact expected return of the deterministic policy, relative to the best one's."""
    table: NDArray[np.float64] = np.zeros_like(env.problem.rewards)
    for state in range(env.problem.num_states):
        masks = {"action_masks": env.problem.legal[state]} if isinstance(env, MaskedTabularEnv) else {}
        action, _ = model.predict(env.observation_of(state), deterministic=True, **masks)
        table[state, env.problem.offsets + np.atleast_1d(action).astype(np.int64)] = 1.0
    return env.expected_return(table) / env.optimal_return()


@pytest.mark.parametrize(
    ("name", "arguments", "policy"),
    [
        ("rlsmooth/Identity-v0", {}, "MlpPolicy"),
        ("rlsmooth/Identity-v0", {"observation": "dict"}, "MultiInputPolicy"),
        pytest.param("rlsmooth/IdentityOrdered-v0", {"observation": "one_hot"}, "MlpPolicy", marks=pytest.mark.slow),
        ("rlsmooth/IdentityMultiDiscrete-v0", {"dims": (2, 3)}, "MlpPolicy"),
        ("rlsmooth/IdentityMultiBinary-v0", {}, "MlpPolicy"),
    ],
)
def test_ppo_finds_the_optimum(name: str, arguments: dict[str, Any], policy: str) -> None:
    model = PPO(policy, make_vec_env(name, 4, env_kwargs=arguments), **PPO_ARGUMENTS).learn(4000)
    assert greedy_return(model, make_tabular(name, **arguments)) >= 0.97


@pytest.mark.slow
def test_ppo_learns_from_images() -> None:
    arguments = {"observation": "image", "num_actions": 3}
    model = PPO(
        "CnnPolicy",
        make_vec_env("rlsmooth/Identity-v0", 4, env_kwargs=arguments),
        **{**PPO_ARGUMENTS, "n_steps": 25, "batch_size": 50, "n_epochs": 4, "learning_rate": 1e-3},
        policy_kwargs={"features_extractor_kwargs": {"features_dim": 16}},
    ).learn(800)
    mean, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=5)
    assert mean == 10.0


@pytest.mark.slow
def test_a2c_finds_the_optimum() -> None:
    name = "rlsmooth/Identity-v0"
    vec_env = make_vec_env(name, 8)
    model = A2C("MlpPolicy", vec_env, gamma=0.0, learning_rate=5e-3, n_steps=5, seed=0, device="cpu").learn(5000)
    assert greedy_return(model, make_tabular(name)) >= 0.97


@pytest.mark.slow
def test_ppo_with_an_entropy_bonus_comes_near_the_soft_optimum() -> None:
    env = make_tabular("rlsmooth/Identity-v0", num_actions=3, observation="one_hot")
    coefficient = 0.5
    # One step of unclipped, unnormalised policy gradient a rollout: only then is the fixed point the closed form.
    model = PPO(
        "MlpPolicy",
        make_vec_env("rlsmooth/Identity-v0", 4, env_kwargs={"num_actions": 3, "observation": "one_hot"}),
        n_steps=25,
        batch_size=100,
        n_epochs=1,
        gamma=0.0,
        learning_rate=0.03,
        ent_coef=coefficient,
        max_grad_norm=10.0,
        normalize_advantage=False,
        policy_kwargs={"net_arch": []},
        seed=0,
        device="cpu",
    ).learn(8000)
    with torch.no_grad():  # the one-hot observations of all states are the unit matrix
        distribution = model.policy.get_distribution(torch.eye(3)).distribution
    assert isinstance(distribution, Categorical)
    # The right action has 0.79 there; the greedy policy is 0.21 away, the uniform one 0.45.
    assert np.abs(distribution.probs.numpy() - env.soft_optimal_policy(coefficient)).max() < 0.08


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("rlsmooth/IdentityMasked-v0", {}),
        ("rlsmooth/IdentityMaskedMultiDiscrete-v0", {"dims": (2, 3)}),
        pytest.param("rlsmooth/IdentityMaskedMultiBinary-v0", {}, marks=pytest.mark.slow),
    ],
)
def test_maskable_ppo_finds_the_optimum_and_takes_no_illegal_action_on_the_way(
    name: str, arguments: dict[str, Any]
) -> None:
    contrib = pytest.importorskip("sb3_contrib")
    vec_env = make_vec_env(name, 4, env_kwargs={**arguments, "illegal_action": "raise"})
    model = contrib.MaskablePPO("MlpPolicy", vec_env, **PPO_ARGUMENTS).learn(4000)
    assert greedy_return(model, make_tabular(name, **arguments)) >= 0.97


def test_ppo_learns_the_masked_form_from_penalties_alone() -> None:
    model = PPO("MlpPolicy", make_vec_env("rlsmooth/IdentityMasked-v0", 4), **PPO_ARGUMENTS).learn(3000)
    mean, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=8)
    assert mean >= 9.0


def test_ppo_learns_the_continuous_form() -> None:
    model = PPO(
        "MlpPolicy",
        make_vec_env("rlsmooth/IdentityBox-v0", 4, env_kwargs={"num_dims": 1}),
        **{**PPO_ARGUMENTS, "ent_coef": 0.0},
        policy_kwargs={"log_std_init": -1.0},
    ).learn(4000)
    mean, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=12)
    # Always answering 0 earns -10 * 0.5^2 / 3 = -0.83
    assert IdentityBoxEnv(1).expected_return(gain=0.0) == pytest.approx(-10 * 0.25 / 3)
    assert mean > -0.1
