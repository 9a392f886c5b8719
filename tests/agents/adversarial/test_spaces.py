"""GAIL and AIRL over spaces, masks, normalised environments and generators; and the reward that AIRL recovers."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import QRDQN, TRPO, MaskablePPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize, VecTransposeImage

from rlsmooth.agents import AIRL, GAIL, LearnedRewardVecEnv, ShapedRewardNet, SmoothedPPO
from rlsmooth.agents.adversarial.trainer import AdversarialImitation
from rlsmooth.data import Demonstrations, cartpole_v1, record

IDENTITY = "rlsmooth.envs:rlsmooth/Identity"
FORMS = {"native": "MlpPolicy", "one_hot": "MlpPolicy", "dict": "MultiInputPolicy", "image": "CnnPolicy"}
KINDS = ("", "MultiDiscrete", "MultiBinary")


def identity(kind: str = "", n_envs: int = 2, **arguments: Any) -> DummyVecEnv:
    env = make_vec_env(f"{IDENTITY}{kind}-v0", n_envs=n_envs, seed=0, env_kwargs=arguments)
    assert isinstance(env, DummyVecEnv)
    return env


def experts(kind: str = "", n_episodes: int = 4, **arguments: Any) -> Demonstrations:
    """Demonstrations of the known optimum."""
    env = gym.make(f"{IDENTITY}{kind}-v0", **arguments)
    return record(env.unwrapped.expert_action, env, n_episodes, seed=0)  # type: ignore[attr-defined]


def small(policy: str, env: Any, **arguments: Any) -> PPO:
    return PPO(policy, env, n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu", **arguments)


def assert_learns(trainer: AdversarialImitation, steps: int) -> None:
    """Every parameter of the network moves, and stays a number; what was done is kept, and lies in its space."""
    before = [parameter.clone() for parameter in trainer.reward_net.parameters()]
    trainer.learn(steps)
    for parameter, old in zip(trainer.reward_net.parameters(), before, strict=True):
        assert parameter.isfinite().all()
        assert not torch.equal(parameter, old)
    space = trainer.gen_algo.action_space
    assert all(space.contains(action) for action in trainer.generated.actions)
    store = trainer.generated
    assert len(store) == min(steps, store.capacity)
    rows = store.latest(len(store), len(store))
    for function in (trainer.predict_reward, trainer.reward_function):
        rewards = function(*rows)
        assert rewards.shape == (len(store),)
        assert np.isfinite(rewards).all()
        assert rewards.dtype == np.float32


@pytest.mark.parametrize("trainer_class", [GAIL, AIRL])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_every_kind_of_observation_and_action(trainer_class: Any, kind: str, form: str) -> None:
    if form == "image" and kind == "MultiBinary":
        pytest.skip("the other two kinds show that images and actions are independent")
    arguments: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}}
    if form == "image":
        arguments["policy_kwargs"] |= {"features_extractor_kwargs": {"features_dim": 8}}
    model = small(FORMS[form], identity(kind, observation=form), **arguments)
    assert isinstance(model.env, VecTransposeImage) == (form == "image")
    # The demonstrations have images as the environment shows them, channels last.
    trainer = trainer_class(experts(kind, observation=form), model, demo_batch_size=16, seed=0)
    assert_learns(trainer, 64)
    if form == "image":
        space: Any = model.observation_space
        assert trainer.generated.observations.shape[1:] == trainer.expert.observations.shape[1:] == space.shape
        seen = {picture.tobytes() for picture in trainer.generated.observations}
        assert seen & {picture.tobytes() for picture in trainer.expert.observations}  # the same way round


@pytest.mark.parametrize("trainer_class", [GAIL, AIRL])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_every_kind_of_action(trainer_class: Any, kind: str) -> None:
    env_id = f"{IDENTITY}Masked{kind}-v0"
    env = make_vec_env(env_id, n_envs=2, seed=0)
    model = MaskablePPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu")
    single = gym.make(env_id)
    data = record(single.unwrapped.expert_action, single, 4, seed=0)  # type: ignore[attr-defined]
    trainer = trainer_class(data, model, demo_batch_size=16, seed=0)
    assert_learns(trainer, 128)
    masks = trainer.generated.masks
    assert not masks.all()
    unmasked = Demonstrations.from_arrays(
        data.observations[:],
        data.actions[:],
        observation_space=data.observation_space,
        action_space=data.action_space,
        episode_ends=data.episode_ends,
        next_observations=data.next_observations[:],
        terminations=data.terminations[:],
    )
    with pytest.raises(ValueError, match="action_masks"):
        trainer_class(unmasked, model, seed=0)


@pytest.mark.parametrize("trainer_class", [GAIL, AIRL])
@pytest.mark.parametrize("norm_reward", [True, False])
def test_vec_normalize(trainer_class: Any, norm_reward: bool) -> None:
    env = VecNormalize(make_vec_env("CartPole-v1", n_envs=2, seed=0), norm_reward=norm_reward)
    model = small("MlpPolicy", env)
    data = cartpole_v1().sample_episodes(2, seed=0)
    trainer = trainer_class(data, model, demo_batch_size=32, seed=0)
    assert_learns(trainer, 128)
    # With rewards to be normalised each step must have its own at once.
    assert (env.ret_rms.mean != 0) == norm_reward
    assert np.abs(model.rollout_buffer.rewards).min() > 0


GENERATORS = {
    "a2c": (A2C, "CartPole-v1", {"n_steps": 16}),
    "trpo": (TRPO, "CartPole-v1", {"n_steps": 32, "batch_size": 32}),
    "smoothed": (SmoothedPPO, "CartPole-v1", {"n_steps": 32, "batch_size": 32, "smoothing": 0.1}),
    "dqn": (DQN, "CartPole-v1", {"learning_starts": 40, "buffer_size": 500}),
    "qrdqn": (QRDQN, "CartPole-v1", {"learning_starts": 40, "buffer_size": 500}),
    "sac": (SAC, "rlsmooth.envs:rlsmooth/IdentityBox-v0", {"learning_starts": 40, "buffer_size": 500}),
    "td3": (TD3, "rlsmooth.envs:rlsmooth/IdentityBox-v0", {"learning_starts": 40, "buffer_size": 500}),
    "ppo-box": (PPO, "rlsmooth.envs:rlsmooth/IdentityBox-v0", {"n_steps": 32, "batch_size": 32}),
}


@pytest.mark.parametrize("trainer_class", [GAIL, AIRL])
@pytest.mark.parametrize("name", GENERATORS)
def test_generators(trainer_class: Any, name: str) -> None:
    model_class, env_id, arguments = GENERATORS[name]
    build: Any = model_class
    model = build("MlpPolicy", make_vec_env(env_id, seed=0), seed=0, device="cpu", **arguments)
    if "Box" in env_id:
        env = gym.make(env_id)
        data = record(env.unwrapped.expert_action, env, 4, seed=0)  # type: ignore[attr-defined]
    else:
        data = cartpole_v1().sample_episodes(1, seed=0)
    if trainer_class is AIRL and name in ("dqn", "qrdqn", "td3"):
        with pytest.raises(TypeError, match="log-probability"):
            AIRL(data, model, seed=0)
        return
    trainer = trainer_class(data, model, demo_batch_size=16, gen_train_timesteps=32, seed=0)
    assert_learns(trainer, 96)
    assert trainer.rounds == 3


def test_airl_recovers_a_reward_that_trains_another_agent() -> None:
    env = identity(n_envs=4)
    arguments: dict[str, Any] = {"gamma": 0.0, "learning_rate": 1e-3, "ent_coef": 0.1, "device": "cpu"}
    generator = PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=5, seed=0, **arguments)
    settings: dict[str, Any] = {"disc_learning_rate": 5e-3, "n_disc_updates_per_round": 8}
    trainer = AIRL(experts(n_episodes=20), generator, seed=0, **settings).learn(4096)
    assert isinstance(trainer.reward_net, ShapedRewardNet)
    states, actions = (grid.reshape(-1) for grid in np.meshgrid(np.arange(4), np.arange(4), indexing="ij"))
    table = trainer.reward_function(states, actions, states, np.zeros(16, bool)).reshape(4, 4)
    others = table[~np.eye(4, dtype=bool)].reshape(4, 3)
    assert (np.diag(table) > others.max(axis=1)).all()
    learned = LearnedRewardVecEnv(identity(n_envs=4), trainer.reward_function)
    fresh = PPO("MlpPolicy", learned, n_steps=64, batch_size=64, n_epochs=5, seed=1, **arguments).learn(4096)
    optimum = gym.make(f"{IDENTITY}-v0").unwrapped.optimal_return()  # type: ignore[attr-defined]
    assert evaluate_policy(fresh, identity(n_envs=1), n_eval_episodes=5)[0] == optimum


@pytest.mark.slow
@pytest.mark.parametrize("trainer_class", [GAIL, AIRL])
def test_the_defaults_reach_the_experts_return(trainer_class: Any) -> None:
    model = PPO("MlpPolicy", make_vec_env("CartPole-v1", n_envs=8, seed=0), n_steps=128, seed=0, device="cpu")
    trainer = trainer_class(cartpole_v1(), model, seed=0).learn(102_400)
    mean, _ = evaluate_policy(trainer.policy, make_vec_env("CartPole-v1", seed=9), n_eval_episodes=10)
    assert isinstance(mean, float)
    assert mean > 475
