"""Whom DAgger can ask: models, policies, agents, files, functions; with masks, state, normalised observations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from rlsmooth.agents import BC, BCO, DAgger, SmoothedPPO, save_agent
from rlsmooth.agents.cloning.expert import Expert
from rlsmooth.agents.spaces import wrap_env
from rlsmooth.data import ObservationOnly, record
from rlsmooth.data.actors import checked_action
from rlsmooth.envs import IdentityBoxEnv, IdentityEnv, IdentityMaskedEnv, IdentityMultiBinaryEnv
from rlsmooth.training import SafeFileError


def small() -> dict[str, Any]:
    """New ones each time: SB3's constructors write into `policy_kwargs`."""
    return {"seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [8]}}


def ask(given: Any, env: Any, **arguments: Any) -> Expert:
    settings: dict[str, Any] = {"targets": "actions", "deterministic": True, "batched": False, **arguments}
    return Expert(given, env if isinstance(env, VecEnv) else wrap_env("env", env), **settings)


def learn(env: Any, expert: Any, **arguments: Any) -> DAgger:
    settings = {**small(), "rollout_round_min_timesteps": 40, "bc_train_n_epochs": 1, **arguments}
    return DAgger("MlpPolicy", env, expert, **settings).learn(80)


def labels_of(agent: DAgger) -> Any:
    return np.asarray(agent.demonstrations.observations), np.asarray(agent.demonstrations.actions)


# ---- every kind
def test_models_policies_agents_and_files_say_the_same(tmp_path: Path) -> None:
    model = PPO("MlpPolicy", IdentityEnv(6), n_steps=16, batch_size=16, **small())
    agents = [learn(IdentityEnv(6), given) for given in (model, model.policy, save_agent(model, tmp_path / "expert"))]
    agents.append(learn(IdentityEnv(6), str(tmp_path / "expert.zip")))
    seen, labels = labels_of(agents[0])
    assert np.array_equal(labels, model.predict(seen, deterministic=True)[0])
    for other in agents[1:]:
        assert np.array_equal(labels_of(other)[1], labels)
        assert other.history == agents[0].history


def test_our_own_agents_are_experts() -> None:
    env = IdentityEnv(5)
    data = record(env.expert_action, env, 4)
    cloned = BC("MlpPolicy", env, data, **small()).learn(total_epochs=1)
    watched = ObservationOnly.from_demonstrations(data)
    found = BCO("MlpPolicy", env, watched, n_rounds=1, transitions_per_round=50, n_epochs=1, **small()).learn()
    for agent in (cloned, found, learn(env, env.expert_action)):
        seen, labels = labels_of(learn(env, agent))
        assert np.array_equal(labels, agent.predict(seen, deterministic=True)[0])


@pytest.mark.parametrize("kind", ["SAC", "DQN", "multi_binary"])
def test_off_policy_models_and_bits(kind: str) -> None:
    if kind == "SAC":
        env: Any = IdentityBoxEnv(2)
        model: Any = SAC("MlpPolicy", env, buffer_size=10, **small())
    elif kind == "DQN":
        env = IdentityEnv(4)
        model = DQN("MlpPolicy", env, buffer_size=10, **small())
    else:
        env = IdentityMultiBinaryEnv(3)
        model = PPO("MlpPolicy", env, n_steps=16, batch_size=16, **small())
    seen, labels = labels_of(learn(env, model))
    np.testing.assert_allclose(labels, model.predict(seen, deterministic=True)[0], atol=1e-6)


def test_functions_get_one_observation_or_batches_as_of_record() -> None:
    def one(seen: Any) -> Any:
        assert np.shape(seen) == ()
        return int(seen)

    def many(seen: Any) -> Any:
        assert np.shape(seen) == (3,)
        return seen

    def as_imitation(seen: Any, state: Any, episode_start: Any) -> Any:
        assert np.shape(seen) == np.shape(episode_start) == (3,)
        steps = np.zeros(3, int) if state is None else state[0] + 1
        steps[episode_start] = 0
        assert steps.max() < 10  # an episode's length: the state starts anew
        return seen, (steps,)

    vectorised = make_vec_env(lambda: IdentityEnv(4), n_envs=3)
    for env, expert in ((IdentityEnv(4), one), (vectorised, many), (vectorised, as_imitation)):
        seen, labels = labels_of(learn(env, expert))
        assert np.array_equal(seen, labels)


def test_a_recurrent_experts_state_goes_with_the_episode() -> None:
    env = make_vec_env(lambda: IdentityEnv(4, episode_length=10), n_envs=2)
    model = RecurrentPPO("MlpLstmPolicy", env, n_steps=16, batch_size=16, **small())
    with torch.no_grad():  # a fresh one says the same whatever it remembers
        for parameter in model.policy.parameters():
            parameter.mul_(5)
    agent = learn(env, model, beta_schedule=1.0)
    data = agent.demonstrations
    forgetful = model.predict(np.asarray(data.observations), deterministic=True)[0]
    assert not np.array_equal(forgetful, data.actions)
    for number in range(data.num_episodes):
        episode = data.select_episodes([number])
        state = None
        for step, (seen, label) in enumerate(zip(episode.observations, episode.actions, strict=True)):
            action, state = model.predict(
                np.array([seen, seen]), state=state, episode_start=np.full(2, step == 0), deterministic=True
            )
            assert action[0] == label


def test_a_model_of_normalised_observations_sees_them_normalised(tmp_path: Path) -> None:
    normalised = VecNormalize(DummyVecEnv([lambda: IdentityBoxEnv(2)]))
    model = PPO("MlpPolicy", normalised, n_steps=64, batch_size=64, **small()).learn(256)
    normalised.training = False
    path = save_agent(model, tmp_path / "expert")
    statistics = normalised.obs_rms.mean.copy()
    for expert in (model, path):
        seen, labels = labels_of(learn(IdentityBoxEnv(2), expert))
        expected = model.predict(normalised.normalize_obs(seen), deterministic=True)[0]
        np.testing.assert_allclose(labels, expected, atol=1e-6)
        assert not np.allclose(labels, model.predict(seen, deterministic=True)[0], atol=1e-3)
    # In the environment that normalises, both see what it shows.
    normalised.norm_reward = False
    seen, labels = labels_of(learn(normalised, model))
    np.testing.assert_allclose(labels, model.predict(seen, deterministic=True)[0], atol=1e-6)
    assert np.array_equal(normalised.obs_rms.mean, statistics)


def test_a_normaliser_that_moves_is_refused() -> None:
    with pytest.raises(ValueError, match="statistics would move"):
        learn(VecNormalize(DummyVecEnv([lambda: IdentityBoxEnv(2)])), lambda seen: seen)


# ---- masks
def test_masks_reach_whoever_takes_them() -> None:
    env = IdentityMaskedEnv(5, illegal_action="raise")
    model = MaskablePPO("MlpPolicy", env, n_steps=16, batch_size=16, **small())
    agent = learn(env, model, beta_schedule=0.5)
    data = agent.demonstrations
    masks = np.asarray(data.action_masks)
    seen, labels = labels_of(agent)
    assert np.array_equal(labels, model.predict(seen, deterministic=True, action_masks=masks)[0])
    assert not np.array_equal(labels, model.predict(seen, deterministic=True)[0])
    # A clone whose policy knows no masks is held to them.
    cloned = BC("MlpPolicy", (env.observation_space, env.action_space), None, **small())
    assert (labels_of(learn(env, cloned))[1] != cloned.predict(seen[:1], deterministic=True)[0]).any()


def test_an_illegal_action_of_the_expert_is_told_before_it_is_done() -> None:
    env = IdentityMaskedEnv(4, illegal_action="raise")
    with pytest.raises(ValueError, match=r"the expert chose 3 in environment 0, which its action mask forbids"):
        learn(env, lambda _: 3)
    with pytest.raises(ValueError, match="the expert chose 7, which is outside action_space=Discrete"):
        learn(IdentityEnv(4), lambda _: 7)
    with pytest.raises(ValueError, match=r"illegal action's must be 0"):
        learn(env, lambda _: np.full(4, 0.25), expert_targets="probabilities")


# ---- probabilities
def test_probabilities_of_models_are_those_they_act_by() -> None:
    env = IdentityMaskedEnv(4, illegal_action="raise")
    model = MaskablePPO("MlpPolicy", env, n_steps=16, batch_size=16, **small())
    plain = PPO("MlpPolicy", IdentityEnv(4), n_steps=16, batch_size=16, **small())
    floor = SmoothedPPO("MlpPolicy", IdentityEnv(4), n_steps=16, batch_size=16, exploration_floor=0.4, **small())
    generator = np.random.default_rng(0)
    masks = np.array([[True, False, True, True]])
    seen = [np.int64(2)]
    for asked, given in (
        (ask(model, env, targets="probabilities"), model),
        (ask(plain, IdentityEnv(4), targets="probabilities"), plain),
    ):
        mask = masks if given is model else None
        labels = asked.label(seen, mask, generator)
        tensors, _ = given.policy.obs_to_tensor(np.array(seen))
        more = {"action_masks": masks} if given is model else {}
        expected = given.policy.get_distribution(tensors, **more).distribution.probs.detach().numpy()
        np.testing.assert_allclose(labels.probabilities, expected, atol=1e-6)
        assert labels.actions[0] == expected.argmax()
    (row,) = ask(floor, IdentityEnv(4), targets="probabilities").label(seen, None, generator).probabilities  # type: ignore[misc]
    np.testing.assert_allclose(row, floor.policy.action_probabilities(np.array(seen))[0].detach().numpy(), atol=1e-6)


def test_sampled_labels_follow_the_probabilities() -> None:
    given = np.array([0.0, 0.6, 0.1, 0.3])
    asked = ask(lambda _: given, IdentityEnv(4), targets="probabilities", deterministic=False)
    generator = np.random.default_rng(0)
    drawn = np.array([asked.label([np.int64(0)], None, generator).actions[0] for _ in range(2000)])
    counts = np.bincount(drawn, minlength=4)
    assert counts[0] == 0
    assert (np.abs(counts / 2000 - given) < 0.04).all()


def test_soft_targets_come_from_a_file_or_an_agent(tmp_path: Path) -> None:
    env = IdentityEnv(4)
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=16, **small())
    agent = learn(env, save_agent(model, tmp_path / "expert"), expert_targets="probabilities")
    again = learn(env, agent, expert_targets="probabilities")
    for one in (agent, again):
        assert np.asarray(one.demonstrations.action_probs).shape == (len(one.demonstrations), 4)


# ---- mistakes
def test_mistakes_are_told(tmp_path: Path) -> None:
    env = IdentityEnv(4)
    wide, box = IdentityEnv(5), IdentityBoxEnv(2)
    with pytest.raises(ValueError, match="expert has observation_space=Discrete"):
        learn(env, PPO("MlpPolicy", wide, n_steps=16, batch_size=16, **small()))
    with pytest.raises(ValueError, match="expert has action_space=Box"):
        learn(env, BC("MlpPolicy", (env.observation_space, box.action_space), None, **small()))
    with pytest.raises(TypeError, match="expert must have SB3's predict, be a function or name an agent file, got int"):
        learn(env, 3)
    with pytest.raises(SafeFileError, match=r"none\.zip' does not exist"):
        learn(env, tmp_path / "none.zip")
    with pytest.raises(ValueError, match="needs a Discrete action space"):
        learn(box, box.expert_action, expert_targets="probabilities")
    with pytest.raises(TypeError, match="expert has the policy DQNPolicy, which does not provide the probabilities"):
        learn(env, DQN("MlpPolicy", env, buffer_size=10, **small()), expert_targets="probabilities")
    recurrent = RecurrentPPO("MlpLstmPolicy", env, n_steps=16, batch_size=16, **small())
    with pytest.raises(TypeError, match="expert has the policy RecurrentActorCriticPolicy"):
        learn(env, recurrent, expert_targets="probabilities")

    class Acting:
        def predict(
            self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
        ) -> Any:
            return observation, state

    with pytest.raises(TypeError, match="expert is a Acting, whose predict gives actions, no probabilities"):
        learn(env, Acting(), expert_targets="probabilities")
    for row, words in (
        (np.full(4, 0.3), "sum to 1"),
        (np.array([1.5, -0.5, 0.0, 0.0]), ">= 0"),
        (np.array([np.nan, 1.0, 0.0, 0.0]), "finite"),
        (np.full(3, 1 / 3), r"floats of shape \(1, 4\)"),
        (np.array([1, 0, 0, 0]), "dtype int64"),
    ):
        with pytest.raises(ValueError, match=words):
            learn(env, lambda _, row=row: row, expert_targets="probabilities")
    with pytest.raises(ValueError, match="returned 1 actions for 2 environments"):
        learn(make_vec_env(lambda: IdentityEnv(4), n_envs=2), lambda seen: seen[:1])


def test_an_expert_of_other_statistics_is_refused(tmp_path: Path) -> None:
    def plain() -> VecEnv:
        return make_vec_env("CartPole-v1")

    trained = VecNormalize(plain())
    model = PPO("MlpPolicy", trained, n_steps=16, batch_size=16, **small()).learn(16)
    alike = VecNormalize(plain(), norm_reward=False, training=False)
    alike.obs_rms = trained.obs_rms
    other = VecNormalize(plain(), norm_reward=False, training=False)
    for given in (model, save_agent(model, tmp_path / "expert")):
        assert ask(given, alike).normalizer is None
        for env, what in (
            (other, r"obs_rms\.mean is"),
            (VecNormalize(plain(), norm_obs=False, norm_reward=False, training=False), "norm_obs is True"),
        ):
            with pytest.raises(ValueError, match=f"another VecNormalize than env has.*{what}"):
                ask(given, env)
    assert not np.array_equal(other.obs_rms.mean, trained.obs_rms.mean)  # type: ignore[union-attr]
    alike.clip_obs = 5.0
    with pytest.raises(ValueError, match=r"clip_obs is 10\.0 in one, 5\.0 in the other"):
        ask(model, alike)


def test_an_action_outside_the_bounds_by_rounding_is_the_bound() -> None:
    space = spaces.Box(np.float32(-0.3), np.float32(0.9), (1,))
    above = np.nextafter(space.high, np.float32(2))
    assert np.array_equal(checked_action(above, space), space.high)
    inside = np.array([0.1], np.float32)
    assert np.array_equal(checked_action(inside, space), inside)
    with pytest.raises(ValueError, match="outside action_space"):
        checked_action(space.high + np.float32(1e-4), space)


@pytest.mark.parametrize("algorithm", [PPO, SmoothedPPO])
def test_probabilities_of_a_policy_without_masks_are_those_of_the_legal_actions(algorithm: Any) -> None:
    model = algorithm("MlpPolicy", IdentityEnv(3), n_steps=16, batch_size=16, **small())
    expert = ask(model, IdentityEnv(3), targets="probabilities")
    seen, masks = [np.array(1)], np.array([[True, True, False]])
    whole = expert.label(seen, None, np.random.default_rng(0)).probabilities
    legal = expert.label(seen, masks, np.random.default_rng(0)).probabilities
    assert legal[0, 2] == 0
    assert legal[0, :2] == pytest.approx(whole[0, :2] / whole[0, :2].sum(), rel=1e-5)
