"""DAgger: every action and observation space, known optima, what it collects and how the two take turns."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecTransposeImage

from rlsmooth.agents import BC, DAgger
from rlsmooth.data import Demonstrations, record
from rlsmooth.envs import (
    IdentityBoxEnv,
    IdentityEnv,
    IdentityMaskedEnv,
    IdentityMaskedMultiBinaryEnv,
    IdentityMaskedMultiDiscreteEnv,
    IdentityMultiBinaryEnv,
    IdentityMultiDiscreteEnv,
)

QUICK: dict[str, Any] = {
    "rollout_round_min_timesteps": 100,
    "bc_train_n_epochs": 8,
    "learning_rate": 0.02,
    "policy_kwargs": {"net_arch": [32]},
    "seed": 0,
    "device": "cpu",
}


def make(env: Any, expert: Any, **arguments: Any) -> DAgger:
    given = {**QUICK, **arguments}
    return DAgger(given.pop("policy", "MlpPolicy"), env, expert, **given)


def same_parameters(one: Any, two: Any) -> bool:
    pairs = zip(one.policy.state_dict().values(), two.policy.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# ---- learning


@pytest.mark.parametrize(
    "env",
    [
        IdentityEnv(6),
        IdentityMultiDiscreteEnv((3, 4)),
        IdentityMultiBinaryEnv(3),
        IdentityMaskedEnv(5, illegal_action="raise"),
        IdentityMaskedMultiDiscreteEnv((3, 4), illegal_action="raise"),
        IdentityMaskedMultiBinaryEnv(3, illegal_action="raise"),
    ],
    ids=lambda env: type(env).__name__,
)
def test_it_reaches_the_optimum_of_every_finite_action_space(env: Any) -> None:
    policy = "MaskableMlpPolicy" if hasattr(env, "action_masks") else "MlpPolicy"
    agent = make(env, env.expert_action, policy=policy, beta_schedule=0.5, learning_rate=0.05).learn(400)
    assert agent.round == 4
    assert agent.history[-1]["expert_agreement"] == 1.0
    assert agent.evaluate()["mean_reward"] == pytest.approx(env.optimal_return())


def test_a_policy_that_knows_no_masks_takes_no_illegal_action_all_the_same() -> None:
    env = IdentityMaskedEnv(5, illegal_action="raise")  # raises where one is taken
    agent = make(env, env.expert_action, beta_schedule=lambda _: 0.0, smoothing=0.3).learn(300)
    assert agent.history[-1]["learner_share"] == 1.0
    assert agent.history[-1]["expert_agreement"] == 1.0
    assert agent.demonstrations is not None
    assert agent.demonstrations.action_masks is not None


@pytest.mark.parametrize("action_bins", [None, 21])
def test_box_actions(action_bins: int | None) -> None:
    env = IdentityBoxEnv(2)
    agent = make(env, env.expert_action, action_bins=action_bins, beta_schedule=0.5, learning_rate=0.01)
    agent.learn(1200)
    errors = [line["expert_error"] for line in agent.history]
    assert errors[0] > 0.25  # the states' own spread is 0.29
    assert errors[-1] < 0.1
    assert agent.evaluate()["mean_reward"] > -10 * 0.1**2


@pytest.mark.parametrize("form", ["native", "one_hot", "dict", "image"])
def test_every_kind_of_observation(form: Any) -> None:
    env = IdentityEnv(4, observation=form)
    policy = {"dict": "MultiInputPolicy", "image": "CnnPolicy"}.get(form, "MlpPolicy")
    more: dict[str, Any] = {"policy_kwargs": None, "learning_rate": 2e-3} if form == "image" else {}
    agent = make(env, env.expert_action, policy=policy, beta_schedule=0.5, bc_train_n_epochs=12, **more).learn(200)
    assert agent.evaluate()["mean_reward"] == 10.0
    assert agent.demonstrations is not None
    assert agent.demonstrations.observation_space == env.observation_space  # images as the environment shows them


def test_images_are_shown_to_a_function_as_its_environment_shows_them() -> None:
    shapes: list[tuple[int, ...]] = []

    def expert(seen: Any) -> Any:
        shapes.append(seen.shape)
        return np.zeros(len(seen), int)

    plain = make_vec_env(lambda: IdentityEnv(4, observation="image"), n_envs=2)
    for env in (plain, VecTransposeImage(plain)):
        agent = make(env, expert, policy="CnnPolicy", policy_kwargs=None, bc_train_n_epochs=1, beta_schedule=0.5)
        agent.learn(200)
        assert agent.demonstrations is not None
        assert agent.demonstrations.observation_space == env.observation_space
        assert agent.observation_space.shape == (1, 36, 36)
    assert set(shapes) == {(2, 36, 36, 1), (2, 1, 36, 36)}
    agent.set_env(plain)
    shapes.clear()
    assert agent.learn(100).round == 3
    assert set(shapes) == {(2, 36, 36, 1)}


def test_few_demonstrations_leave_states_out_that_dagger_asks_about() -> None:
    env = IdentityEnv(24, episode_length=8)
    demonstrations = record(env.expert_action, env, 2, seed=0)
    cloned = BC("MlpPolicy", env, demonstrations, **{name: QUICK[name] for name in ("learning_rate", "seed", "device")})
    cloned.learn(total_epochs=100)
    agent = make(env, env.expert_action, demonstrations=demonstrations, learner_deterministic=True).learn(600)
    assert cloned.evaluate()["mean_reward"] < 0.75 * env.optimal_return()
    assert agent.evaluate()["mean_reward"] == env.optimal_return()


def probabilities_of(agent: DAgger, env: Any) -> Any:
    seen = np.stack([env.observation_of(state) for state in range(env.problem.num_states)])
    tensors, _ = agent.policy.obs_to_tensor(seen)
    with torch.no_grad():
        return agent.policy.get_distribution(tensors).distribution.probs.numpy()  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_the_policy_becomes_the_optimal_smoothed_one(smoothing: float) -> None:
    env = IdentityEnv(4)
    agent = make(env, env.expert_action, smoothing=smoothing, beta_schedule=0.5, bc_train_n_epochs=30).learn(300)
    np.testing.assert_allclose(probabilities_of(agent, env), env.optimal_smoothed_policy(smoothing), atol=0.01)


def test_all_of_an_experts_probabilities_can_be_cloned() -> None:
    env = IdentityEnv(4)
    soft = env.soft_optimal_policy(0.5)
    agent = make(
        env,
        lambda observation: soft[int(observation)],
        expert_targets="probabilities",
        smoothing=0.0,
        beta_schedule=0.5,
        bc_train_n_epochs=30,
    ).learn(300)
    assert 0.6 < soft[0, 0] < 0.9  # a policy far from certain
    np.testing.assert_allclose(probabilities_of(agent, env), soft, atol=0.01)


class Ridge(gym.Env[Any, Any]):
    """A walk along a ridge, reward 1 where it is on the top: who has slipped must know the way back.

    Every place of every step has its own observation and its own action back, so that nothing can be learnt from one
    place for another, and an expert who never slips shows the top only.
    """

    LENGTH, WIDTH = 20, 5

    def __init__(self) -> None:
        self.observation_space = spaces.Discrete(self.LENGTH * self.WIDTH)
        self.action_space = spaces.Discrete(3)
        self.shift = np.random.default_rng(0).integers(3, size=self.LENGTH * self.WIDTH)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time, self.place = 0, self.WIDTH // 2
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        move = (action + self.shift[self._seen()]) % 3 - 1
        self.place = int(np.clip(self.place + move, 0, self.WIDTH - 1))
        reward = float(self.place == self.WIDTH // 2)
        self.time += 1
        return self._seen(), reward, False, self.time == self.LENGTH, {}

    def expert_action(self, observation: Any) -> Any:
        """Back to the top, or stay there."""
        place = int(observation) % self.WIDTH
        return (np.sign(self.WIDTH // 2 - place) + 1 - self.shift[int(observation)]) % 3

    def _seen(self) -> Any:
        return np.int64(min(self.time, self.LENGTH - 1) * self.WIDTH + self.place)

    def expected_return(self, right: float) -> float:
        """Of a policy that goes the right way with probability `right`, either other way equally often; exactly."""
        top, wrong = self.WIDTH // 2, (1 - right) / 2
        moves = np.zeros((self.WIDTH, self.WIDTH))
        for place in range(self.WIDTH):
            for move in (-1, 0, 1):
                chance = right if move == np.sign(top - place) else wrong
                moves[place, int(np.clip(place + move, 0, self.WIDTH - 1))] += chance
        return float(sum(np.linalg.matrix_power(moves, step)[top, top] for step in range(1, self.LENGTH + 1)))


def test_mistakes_add_up_in_cloning_and_do_not_in_dagger() -> None:
    """The same number of the expert's answers for both; policies act with their smoothing, so that they do slip."""
    env, budget, smoothing = Ridge(), 2080, 0.15
    demonstrations = record(env.expert_action, env, budget // env.LENGTH, seed=0)
    assert (np.asarray(demonstrations.observations) % env.WIDTH == env.WIDTH // 2).all()
    shared: dict[str, Any] = {"smoothing": smoothing, "learning_rate": 0.02, "seed": 0, "device": "cpu"}
    shared |= {"n_eval_episodes": 40, "batch_size": 32}
    cloned = BC("MlpPolicy", env, demonstrations, **shared)
    cloned.learn(total_epochs=20)
    agent = DAgger("MlpPolicy", env, env.expert_action, rollout_round_min_timesteps=250, beta_schedule=2, **shared)
    agent.learn(budget)
    assert len(agent.demonstrations or ()) == budget
    plain, asked = cloned.evaluate(), agent.evaluate()
    assert plain["mean_reward"] == asked["mean_reward"] == env.LENGTH  # neither slips where it is certain
    optimum = env.expected_return(1 - smoothing + smoothing / 3)
    assert plain["mean_reward_sampled"] < 0.8 * optimum
    assert asked["mean_reward_sampled"] > 0.95 * optimum


# ---- what is cloned


def test_a_round_is_cloning_of_what_it_saw() -> None:
    env = IdentityEnv(5)
    agent, twin = (make(env, env.expert_action, smoothing=0.2) for _ in range(2))
    seed = agent._seed_of(1)
    agent.learn(100)
    plain = BC(
        twin.policy,
        None,
        agent.demonstrations,
        smoothing=0.2,
        learning_rate=0.02,
        batch_size=32,
        seed=seed,
        device="cpu",
    ).learn(total_epochs=8)
    assert same_parameters(agent, plain)
    assert same_parameters(agent.bc, plain)


def test_initial_demonstrations_are_part_of_every_round() -> None:
    env = IdentityEnv(5, observation="image")
    given = record(env.expert_action, env, 2, seed=3)
    weighed = Demonstrations.from_arrays(
        given.observations,
        given.actions,
        observation_space=given.observation_space,
        action_space=given.action_space,
        episode_ends=given.episode_ends,
        rewards=given.rewards,
        weights=np.full(len(given), 2.0),
    )
    agent = make(
        env, env.expert_action, policy="CnnPolicy", policy_kwargs=None, demonstrations=weighed, bc_train_n_epochs=1
    )
    assert agent.demonstrations is not None
    assert len(agent.demonstrations) == 20
    agent.learn(200)
    together = agent.demonstrations
    assert [line["transitions"] for line in agent.history] == [120.0, 220.0]
    assert len(together) == 220
    assert np.array_equal(np.asarray(together.observations)[:20], given.observations)
    assert np.asarray(together.weights).tolist() == [2.0] * 20 + [1.0] * 200
    assert together.rewards is None
    # Channels first, as a VecTransposeImage would have shown them.
    moved = Demonstrations.from_arrays(
        np.moveaxis(np.asarray(given.observations), -1, 1),
        given.actions,
        observation_space=spaces.Box(0, 255, (1, 36, 36), np.uint8),
        action_space=given.action_space,
        episode_ends=given.episode_ends,
    )
    other = make(env, env.expert_action, policy="CnnPolicy", policy_kwargs=None, demonstrations=moved)
    assert other.initial is not None
    assert np.array_equal(other.initial.observations, given.observations)


def test_actions_and_probabilities_go_together() -> None:
    env = IdentityEnv(3)
    hard = record(env.expert_action, env, 1, seed=0)
    agent = make(env, lambda _: np.full(3, 1 / 3), demonstrations=hard, expert_targets="probabilities").learn(100)
    assert agent.demonstrations is not None
    probabilities = np.asarray(agent.demonstrations.action_probs)
    assert np.array_equal(probabilities[:10], np.eye(3)[np.asarray(hard.actions)])
    assert (probabilities[10:] == 1 / 3).all()


# ---- mistakes


def test_mistakes_are_told() -> None:
    env = IdentityEnv(4)
    expert = env.expert_action
    for name in ("rollout_round_min_episodes", "rollout_round_min_timesteps", "bc_train_n_epochs", "n_eval_episodes"):
        with pytest.raises(ValueError, match=f"{name}=0"):
            make(env, expert, **{name: 0})
    with pytest.raises(ValueError, match="expert_targets='logits'"):
        make(env, expert, expert_targets="logits")
    with pytest.raises(TypeError, match="env is None"):
        make(None, expert)
    with pytest.raises(TypeError, match=r"demonstrations must be rlsmooth\.data\.Demonstrations"):
        make(env, expert, demonstrations=[1, 2])
    wider = IdentityEnv(5)
    with pytest.raises(ValueError, match="demonstrations has observation_space"):
        make(env, expert, demonstrations=record(wider.expert_action, wider, 1))
    with pytest.raises(ValueError, match="eval_env has observation_space"):
        make(env, expert, eval_env=wider)
    with pytest.raises(ValueError, match="total_timesteps=0"):
        make(env, expert).learn(0)
    with pytest.raises(ValueError, match="expert is None"):
        make(env, None).learn(100)
    spaces_only = make((env.observation_space, env.action_space), expert)
    with pytest.raises(ValueError, match="no environment to act in"):
        spaces_only.learn(100)
    with pytest.raises(ValueError, match="no environment to evaluate in"):
        spaces_only.evaluate()
    spaces_only.set_env(env)
    assert spaces_only.learn(100).round == 1


def test_demonstrations_and_environment_agree_on_masks() -> None:
    masked = IdentityMaskedEnv(4)
    without = record(masked.expert_action, masked, 1, action_masks=False)
    with pytest.raises(ValueError, match="demonstrations lack action_masks, which the environment has"):
        make(masked, masked.expert_action, demonstrations=without).learn(100)
    plain = IdentityEnv(4)
    with pytest.raises(ValueError, match="demonstrations have action_masks, which the environment lacks"):
        make(plain, plain.expert_action, demonstrations=record(masked.expert_action, masked, 1)).learn(100)
    agent = make(masked, masked.expert_action, demonstrations=record(masked.expert_action, masked, 1)).learn(100)
    assert agent.demonstrations is not None
    assert len(np.asarray(agent.demonstrations.action_masks)) == len(agent.demonstrations) == 110


def test_rounds_and_environment_agree_on_masks() -> None:
    agent = make(IdentityMaskedEnv(4), IdentityMaskedEnv(4).expert_action, rollout_round_min_timesteps=20).learn(20)
    agent.set_env(IdentityEnv(4))
    with pytest.raises(ValueError, match="transitions of round 0 have action_masks"):
        agent.learn(20)
