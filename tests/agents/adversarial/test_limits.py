"""GAIL and AIRL with unusual environments, demonstrations, buffers, spaces, masks and arguments."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN, TRPO, MaskablePPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from stable_baselines3.common.vec_env import DummyVecEnv, VecCheckNan, VecNormalize, VecTransposeImage

from rlsmooth.agents import (
    AIRL,
    GAIL,
    ExactCheckpointCallback,
    LearnedRewardVecEnv,
    RewardNet,
    ShapedRewardNet,
    SmoothedPPO,
)
from rlsmooth.agents.adversarial.airl import log_probability
from rlsmooth.agents.adversarial.generator import num_masks
from rlsmooth.agents.adversarial.trainer import AdversarialImitation
from rlsmooth.agents.adversarial.transitions import absorbing_steps, expert_store
from rlsmooth.data import Demonstrations, cartpole_v1, record
from rlsmooth.training import TrainingDivergedError
from support import assert_raises, listen, mostly_slow, recorded
from trainers import expert

BOX = spaces.Box(-9, 9, (2,))


def ppo(env: Any = "CartPole-v1", **arguments: Any) -> PPO:
    return PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu", **arguments)


def dqn(**arguments: Any) -> DQN:
    return DQN("MlpPolicy", "CartPole-v1", learning_starts=10, buffer_size=500, seed=0, device="cpu", **arguments)


class Walk(gym.Env[Any, Any]):
    """Has no spec; ends after 5 steps."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = BOX, spaces.Discrete(2)
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return np.full(2, self.steps, np.float32), 0.0, self.steps >= 5, False, {}


class MaskedWalk(Walk):
    def action_masks(self) -> Any:
        return np.array([True, self.steps >= 0])


class Unready(Walk):
    def action_masks(self) -> Any:
        raise RuntimeError("reset first")


def walks(*, has_next: bool = True, last_ends: bool = True) -> Demonstrations:
    """Two episodes, of 3 and 5 steps; the first one ends."""
    states = np.arange(16, dtype=np.float32).reshape(8, 2) % 9
    terminations = np.arange(8) == 2
    terminations[-1] = last_ends
    given = {"terminations": terminations, "next_observations": states if has_next else None}
    return recorded(states, np.zeros(8, np.int64), BOX, spaces.Discrete(2), [3, 8], **given)


def test_the_time_limit_of_an_environment_without_a_spec_is_found() -> None:
    env = gym.wrappers.TimeLimit(Walk(), 50)
    assert env.spec is None
    assert GAIL(walks(), ppo(env), seed=0).horizon == 50
    with pytest.warns(UserWarning, match=r"no time limit is known, .* after 5 steps.*say horizon=") as caught:
        assert GAIL(walks(), ppo(Walk()), seed=0).horizon == 5
    assert caught[0].filename == __file__
    assert GAIL(walks(), ppo(Walk()), horizon=7, seed=0).horizon == 7
    assert GAIL(walks(last_ends=False), ppo(Walk()), seed=0).horizon == 5  # cut off: that is the limit


@pytest.mark.parametrize("last_ends", [True, False])
def test_ends_are_kept_without_next_observations(last_ends: bool) -> None:
    data: Any = walks(has_next=False, last_ends=last_ends)
    padding = absorbing_steps(np.array([3, 5]), 50, 0.9) * [1, last_ends]
    known: dict[str, Any] = {"horizon": 50, "gamma": 0.9, "needs_next": True}
    expects = pytest.warns(UserWarning, match="last transitions of truncated episodes, 1 in all")
    with contextlib.nullcontext() if last_ends else expects:
        store = expert_store(data, BOX, masks_terminal=True, **known)
    assert isinstance(store.observations, np.ndarray)
    assert isinstance(store.next_observations, np.ndarray)
    np.testing.assert_array_equal(store.observations, data.observations[: len(store)])
    assert np.flatnonzero(store.terminated).tolist() == ([2, 7] if last_ends else [2])
    assert store.absorbing_steps.sum() == pytest.approx(padding.sum())
    np.testing.assert_array_equal(store.next_observations[[0, 1, 3]], data.observations[[1, 2, 4]])
    # Of a net that may look behind the end, the row is left out, but not what follows it.
    with pytest.warns(UserWarning, match="2 in all"):
        store = expert_store(data, BOX, **known)
    assert len(store) == 6
    assert not store.terminated.any()
    assert store.absorbing_steps.sum() == pytest.approx(padding.sum())


def test_log_probabilities_of_squashed_policies_are_of_the_environments_actions() -> None:
    model = ppo("Pendulum-v1", use_sde=True, policy_kwargs={"squash_output": True})
    observations = torch.linspace(-1, 1, 15).reshape(5, 3)
    with torch.no_grad():
        drawn, _, expected = model.policy(observations)
    actions = torch.as_tensor(model.policy.unscale_action(drawn.numpy()))
    torch.testing.assert_close(log_probability(model, observations, actions), expected, rtol=1e-3, atol=1e-3)


def test_a_normalised_generator_that_has_learned_before_goes_on() -> None:
    model = ppo(VecNormalize(make_vec_env("CartPole-v1", 1)))
    model.learn(64)
    trainer = GAIL(expert(), model, demo_batch_size=16, seed=0).learn(64, reset_num_timesteps=False)
    assert (trainer.rounds, model.num_timesteps) == (1, 128)


class Rewards(BaseCallback):
    """The first rewards of the replay buffer, when the training starts."""

    def _on_step(self) -> bool:
        return True

    def _on_training_start(self) -> None:
        self.found = self.model.replay_buffer.rewards[:50].copy()


def test_true_rewards_in_a_replay_buffer_are_made_anew() -> None:
    model, seen = dqn(), Rewards()
    model.learn(100)
    assert set(model.replay_buffer.rewards[:50].ravel()) == {1.0}
    GAIL(expert(), model, demo_batch_size=16, seed=0).learn(20, seen)
    assert 1.0 not in seen.found
    trainer = GAIL(expert(), model, relabel_replay_buffer=False, seed=0)
    with pytest.warns(UserWarning, match=r"replay buffer holds 20 |replay buffer holds 1\d\d transitions"):
        trainer.learn(20, reset_num_timesteps=False)
    trainer.learn(20, reset_num_timesteps=False)  # these are its own


def test_buffers_that_can_not_be_relabelled_are_refused_at_once() -> None:
    class Own(ReplayBuffer):
        pass

    own = dqn(replay_buffer_class=Own)
    assert_raises(TypeError, "Own", GAIL, expert(), own, seed=0)
    GAIL(expert(), own, relabel_replay_buffer=False, seed=0)
    steps = dqn(n_steps=3)
    assert isinstance(steps.replay_buffer, NStepReplayBuffer)
    trainer = GAIL(expert(), steps, gen_train_timesteps=50, demo_batch_size=16, seed=0).learn(100)
    rows = trainer.generated.latest(50, 50)
    np.testing.assert_allclose(
        steps.replay_buffer.rewards[50:100, 0], trainer.predict_reward(*rows), rtol=1e-4, atol=1e-5
    )


def test_masks_are_counted_before_any_reset() -> None:
    model = MaskablePPO("MlpPolicy", Unready(), n_steps=8, batch_size=8, device="cpu")
    assert num_masks(model) == 2
    for space, count in ((spaces.MultiDiscrete([2, 3]), 5), (spaces.MultiBinary(3), 6)):
        env = Unready()
        env.action_space = space
        assert num_masks(MaskablePPO("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu")) == count


class Twice(FlattenExtractor):
    """An extractor of the user's own."""


def test_a_resumed_run_takes_the_networks_custom_objects(tmp_path: Path) -> None:
    model = ppo(policy_kwargs={"features_extractor_class": Twice})
    net = RewardNet(model.observation_space, model.action_space, features_extractor_class=Twice)
    GAIL(expert(), model, net, demo_batch_size=16, seed=0).learn(128, ExactCheckpointCallback(64, tmp_path))
    custom = {"features_extractor_class": Twice}
    run = GAIL.resume(tmp_path, expert(), "CartPole-v1", device="cpu", custom_objects=custom)
    assert isinstance(run.trainer.reward_net.extractor, Twice)
    with pytest.raises(ValueError, match="custom_objects has disc_learning_rate"):
        GAIL.resume(tmp_path, expert(), "CartPole-v1", custom_objects={"disc_learning_rate": 1.0})


def test_gails_discriminator_is_trained_once_for_each_64_steps_of_a_rollout() -> None:
    """And AIRL's twice: with more it fails."""
    for model, given, updates in (
        (ppo(), {}, 2),
        (ppo(make_vec_env("CartPole-v1", 4)), {}, 4),
        (ppo(), {"gen_train_timesteps": 640}, 10),
        (ppo(), {"gen_train_timesteps": 640, "n_disc_updates_per_round": 3}, 3),
        (dqn(), {"gen_train_timesteps": 640}, 2),
    ):
        assert GAIL(expert(), model, seed=0, **given).n_disc_updates_per_round == updates
        if isinstance(model, PPO):
            least = given.get("n_disc_updates_per_round", 2)
            assert AIRL(expert(), model, seed=0, **given).n_disc_updates_per_round == least
    assert_raises(ValueError, "n_disc_updates_per_round=0", GAIL, expert(), ppo(), n_disc_updates_per_round=0)


def test_wrong_arguments_are_named() -> None:
    assert_raises(ValueError, "gen_train_timesteps", GAIL, expert(), dqn(), gen_train_timesteps=0, seed=0)
    text: Any = "PPO"
    for trainer_class in (GAIL, AIRL):
        with pytest.raises(TypeError, match="gen_algo must be an algorithm of Stable-Baselines3, got str"):
            trainer_class(expert(), text)


def test_weights_are_not_used_and_it_says_so() -> None:
    data = walks(last_ends=False)
    env = gym.wrappers.TimeLimit(Walk(), 50)
    uneven = dataclasses.replace(data, weights=np.arange(8.0))
    for trainer_class in (GAIL, AIRL):
        with pytest.warns(UserWarning, match="draw all transitions alike") as caught:
            trainer_class(uneven, ppo(env), seed=0)
        assert [warning.filename for warning in caught] == [__file__]
    for trainer_class in (GAIL, AIRL):
        with pytest.warns(UserWarning, match=r"no next_observations|fake_target=0\.1") as caught:
            trainer_class(walks(has_next=False, last_ends=False), ppo(env), fake_target=0.1, seed=0)
        assert {warning.filename for warning in caught} == {__file__}
    GAIL(dataclasses.replace(data, weights=np.ones(8)), ppo(env), seed=0)


def test_a_discriminator_that_diverges_stops_the_run_and_says_when() -> None:
    trainer = GAIL(expert(), ppo(), demo_batch_size=16, disc_learning_rate=0.5, seed=0).learn(64)
    with torch.no_grad():
        next(trainer.reward_net.parameters()).fill_(torch.nan)
    message = r"stopped at step 3: the loss is nan.* discriminator diverged: lower disc_learning_rate \(it was 0\.5\)"
    assert_raises(TrainingDivergedError, message, trainer.train_discriminator)


def test_a_function_is_a_callback_and_the_last_rounds_numbers_are_written() -> None:
    model, seen = ppo(), []
    kept = listen(model)
    GAIL(expert(), model, demo_batch_size=16, seed=0).learn(128, lambda local, _: not seen.append(local["self"]))
    assert len(seen) == 128
    assert [step for step, _ in kept.column("mean/disc/disc_loss")] == [128, 128]
    assert [step for step, _ in kept.column("time/fps")] == [64, 128]  # the algorithm's own


def test_an_evaluation_environment_with_one_wrapper_more_is_synchronised() -> None:
    model = ppo(VecNormalize(make_vec_env("CartPole-v1", 1)))
    evaluated = VecNormalize(VecCheckNan(make_vec_env("CartPole-v1", 1)), training=False)
    callback = EvalCallback(evaluated, eval_freq=64, n_eval_episodes=1, verbose=0)
    GAIL(expert(), model, demo_batch_size=16, seed=0).learn(64, callback)
    obs_rms: Any = evaluated.obs_rms
    assert obs_rms.count > 1


def test_small_images_are_flattened() -> None:
    for shape, expected in (((8, 8, 1), FlattenExtractor), ((3, 35, 64), FlattenExtractor), ((3, 36, 36), NatureCNN)):
        net = RewardNet(spaces.Box(0, 255, shape, np.uint8), spaces.Discrete(2))
        assert net.arguments["features_extractor_class"] is expected


# ---- spaces, masks, normalised environments and generators; and the reward that AIRL recovers
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
    env, data = identity(f"Masked{kind}"), experts(f"Masked{kind}")
    model = MaskablePPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu")
    trainer = trainer_class(data, model, demo_batch_size=16, seed=0)
    assert_learns(trainer, 128)
    masks = trainer.generated.masks
    assert trainer.rounds == 2
    assert not masks.all()
    assert kind or masks[np.arange(64), trainer.generated.actions].all()  # kept with what was done under them
    unmasked = dataclasses.replace(data, action_masks=None)
    assert_raises(ValueError, "action_masks", trainer_class, unmasked, model, seed=0)


@pytest.mark.parametrize("trainer_class", [GAIL, AIRL])
@pytest.mark.parametrize("norm_reward", [True, False])
def test_vec_normalize(trainer_class: Any, norm_reward: bool) -> None:
    env = VecNormalize(make_vec_env("CartPole-v1", n_envs=2, seed=0), norm_reward=norm_reward)
    model = small("MlpPolicy", env)
    trainer = trainer_class(expert(), model, demo_batch_size=32, seed=0)
    assert_learns(trainer, 128)
    assert model.env is env
    assert np.abs(trainer.generated.observations[:, 2]).max() < 0.42  # angles in radians, not in standard deviations
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
@pytest.mark.parametrize("name", mostly_slow(GENERATORS, "smoothed", "dqn", "sac"))
def test_generators(trainer_class: Any, name: str) -> None:
    build, env_id, arguments = GENERATORS[name]
    model = build("MlpPolicy", make_vec_env(env_id, seed=0), seed=0, device="cpu", **arguments)
    data = experts("Box") if "Box" in env_id else cartpole_v1().sample_episodes(1, seed=0)
    if trainer_class is AIRL and name in ("dqn", "qrdqn", "td3"):
        assert_raises(TypeError, "log-probability", AIRL, data, model, seed=0)
        return
    trainer = trainer_class(data, model, demo_batch_size=16, gen_train_timesteps=32, seed=0)
    assert_learns(trainer, 96)
    assert trainer.rounds == 3


@pytest.mark.slow
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
