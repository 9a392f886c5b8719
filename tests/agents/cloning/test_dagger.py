"""DAgger: every action and observation space, known optima, the behaviour policy, rounds and schedules."""

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
from rlsmooth.agents.cloning.collection import collect_round
from rlsmooth.agents.cloning.expert import Expert
from rlsmooth.data import record
from rlsmooth.envs import (
    IdentityBoxEnv,
    IdentityEnv,
    IdentityMaskedEnv,
    IdentityMaskedMultiBinaryEnv,
    IdentityMaskedMultiDiscreteEnv,
    IdentityMultiBinaryEnv,
    IdentityMultiDiscreteEnv,
)
from support import assert_raises, recorded, same_parameters

QUICK: dict[str, Any] = {"rollout_round_min_timesteps": 100, "bc_train_n_epochs": 8, "learning_rate": 0.02}
QUICK |= {"policy_kwargs": {"net_arch": [32]}, "seed": 0, "device": "cpu"}


def make(env: Any, expert: Any, **arguments: Any) -> DAgger:
    given = {**QUICK, **arguments}
    return DAgger(given.pop("policy", "MlpPolicy"), env, expert, **given)


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
    given: dict[str, Any] = {"expert_targets": "probabilities", "smoothing": 0.0, "beta_schedule": 0.5}
    given |= {"bc_train_n_epochs": 30}
    agent = make(env, lambda observation: soft[int(observation)], **given).learn(300)
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
    given: dict[str, Any] = {"smoothing": 0.2, "learning_rate": 0.02, "batch_size": 32, "seed": seed, "device": "cpu"}
    plain = BC(twin.policy, None, agent.demonstrations, **given).learn(total_epochs=8)
    assert same_parameters(agent, plain)
    assert same_parameters(agent.bc, plain)


def test_initial_demonstrations_are_part_of_every_round() -> None:
    env = IdentityEnv(5, observation="image")
    given = record(env.expert_action, env, 2, seed=3)
    weighed = given.replace_unchecked(weights=np.full(len(given), 2.0), next_observations=None)
    settings: dict[str, Any] = {"policy": "CnnPolicy", "policy_kwargs": None, "bc_train_n_epochs": 1}
    agent = make(env, env.expert_action, demonstrations=weighed, **settings)
    assert len(agent.demonstrations) == 20
    agent.learn(200)
    together = agent.demonstrations
    assert [line["transitions"] for line in agent.history] == [120.0, 220.0]
    assert len(together) == 220
    assert np.array_equal(np.asarray(together.observations)[:20], given.observations)
    assert np.asarray(together.weights).tolist() == [2.0] * 20 + [1.0] * 200
    assert together.rewards is None
    # Channels first, as a VecTransposeImage would have shown them.
    images, space = np.moveaxis(np.asarray(given.observations), -1, 1), spaces.Box(0, 255, (1, 36, 36), np.uint8)
    moved = recorded(images, given.actions, space, given.action_space, given.episode_ends)
    other = make(env, env.expert_action, demonstrations=moved, **settings)
    assert np.array_equal(other.initial.observations, given.observations)


def test_actions_and_probabilities_go_together() -> None:
    env = IdentityEnv(3)
    hard = record(env.expert_action, env, 1, seed=0)
    agent = make(env, lambda _: np.full(3, 1 / 3), demonstrations=hard, expert_targets="probabilities").learn(100)
    probabilities = np.asarray(agent.demonstrations.action_probs)
    assert np.array_equal(probabilities[:10], np.eye(3)[np.asarray(hard.actions)])
    assert (probabilities[10:] == 1 / 3).all()


# ---- mistakes
def test_mistakes_are_told() -> None:
    env = IdentityEnv(4)
    expert = env.expert_action
    for name in ("rollout_round_min_episodes", "rollout_round_min_timesteps", "bc_train_n_epochs", "n_eval_episodes"):
        assert_raises(ValueError, f"{name}=0", make, env, expert, **{name: 0})
    assert_raises(ValueError, "expert_targets='logits'", make, env, expert, expert_targets="logits")
    assert_raises(TypeError, "env is None", make, None, expert)
    with pytest.raises(TypeError, match=r"demonstrations must be rlsmooth\.data\.Demonstrations"):
        make(env, expert, demonstrations=[1, 2])
    wider = IdentityEnv(5)
    with pytest.raises(ValueError, match="demonstrations has observation_space"):
        make(env, expert, demonstrations=record(wider.expert_action, wider, 1))
    assert_raises(ValueError, "eval_env has observation_space", make, env, expert, eval_env=wider)
    assert_raises(ValueError, "total_timesteps=0", make(env, expert).learn, 0)
    assert_raises(ValueError, "expert is None", make(env, None).learn, 100)
    spaces_only = make((env.observation_space, env.action_space), expert)
    assert_raises(ValueError, "no environment to act in", spaces_only.learn, 100)
    assert_raises(ValueError, "no environment to evaluate in", spaces_only.evaluate)
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
    assert len(np.asarray(agent.demonstrations.action_masks)) == len(agent.demonstrations) == 110


def test_rounds_and_environment_agree_on_masks() -> None:
    agent = make(IdentityMaskedEnv(4), IdentityMaskedEnv(4).expert_action, rollout_round_min_timesteps=20).learn(20)
    agent.set_env(IdentityEnv(4))
    assert_raises(ValueError, "transitions of round 0 have action_masks", agent.learn, 20)


# ---- collection: who acts, when a round ends, what is kept; and the schedules that decide it
def make_collecting(env: Any, expert: Any, **arguments: Any) -> DAgger:
    given: dict[str, Any] = {"rollout_round_min_timesteps": 100, "bc_train_n_epochs": 1, "seed": 0, "device": "cpu"}
    return DAgger("MlpPolicy", env, expert, **{**given, **arguments})


def collect(env: Any, expert: Any, learner: BC, **arguments: Any) -> Any:
    asked = Expert(expert, env, targets="actions", deterministic=True, batched=False)
    given: dict[str, Any] = {"beta": 0.5, "min_episodes": 1, "min_timesteps": 1, "seed": 0}
    given |= {"learner_deterministic": False, "after_step": lambda _: True, **arguments}
    return collect_round(learner, asked, env, **given)


class Diary(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps what was done."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.actions: list[int] = []

    def step(self, action: Any) -> Any:
        self.actions.append(int(action))
        return super().step(action)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_a_coin_decides_who_acts_and_the_expert_labels_all(beta: float) -> None:
    diary = Diary(IdentityEnv(50, episode_length=1000))
    env = make_vec_env(lambda: diary)
    learner = BC("MlpPolicy", env, None, seed=0, device="cpu")
    made = collect(env, diary.unwrapped.expert_action, learner, beta=beta)  # type: ignore[attr-defined]
    labels = np.asarray(made.demonstrations.actions)
    assert np.array_equal(labels, made.demonstrations.observations)  # identity: the expert's, whoever acted
    by_expert = float(np.mean(labels == np.array(diary.actions)))
    assert made.learner_share == pytest.approx(1 - beta, abs=0.06)
    assert by_expert == pytest.approx(beta + (1 - beta) / 50, abs=0.07)  # a fresh learner is right by chance
    assert made.returns.tolist() == [float((labels == np.array(diary.actions)).sum())]
    assert made.demonstrations.rewards is None
    assert made.demonstrations.next_observations is None


def test_the_experts_own_round_is_a_recording() -> None:
    env = make_vec_env("CartPole-v1", n_envs=2)
    learner = BC("MlpPolicy", env, None, seed=0, device="cpu")

    def expert(seen: Any) -> Any:
        return int(seen[2] + 0.3 * seen[3] > 0)

    made = collect(env, expert, learner, beta=1.0, min_episodes=2, seed=5)
    told = record(lambda seen: np.array([expert(one) for one in seen]), env, 2, seed=5)
    assert made.learner_share == 0.0
    order = np.argsort(told.episode_lengths(), kind="stable")  # here they lie as they ended
    told = told.select_episodes(order)
    assert np.array_equal(made.demonstrations.observations, told.observations)
    assert np.array_equal(made.demonstrations.actions, told.actions)
    assert np.array_equal(made.demonstrations.truncations, told.truncations)
    assert np.array_equal(made.returns, told.episode_returns())


def test_a_round_holds_whole_episodes_and_reaches_both_minima() -> None:
    lengths = iter([3, 9, 2, 5, 4, 7, 6, 8] * 50)

    def varying() -> Any:
        env = IdentityEnv(3)
        plain = env.reset

        def reset(**arguments: Any) -> Any:
            env.episode_length = next(lengths)
            return plain(**arguments)

        env.reset = reset  # type: ignore[method-assign]
        return env

    env = make_vec_env(varying, n_envs=3)
    learner = BC("MlpPolicy", env, None, seed=0, device="cpu")
    kept: list[int] = []

    def after_step(number: int) -> bool:
        kept.append(number)
        return True

    for min_episodes, min_timesteps in ((1, 40), (9, 1), (4, 30)):
        kept.clear()
        given: dict[str, Any] = {"min_episodes": min_episodes, "min_timesteps": min_timesteps, "after_step": after_step}
        made = collect(env, IdentityEnv(3).expert_action, learner, **given)
        data = made.demonstrations
        assert data.num_episodes >= min_episodes
        assert len(data) >= min_timesteps
        assert sum(kept) == len(data)
        assert np.asarray(data.truncations)[data.episode_ends - 1].all()
        # Before the last three, at most, one of the minima was not reached.
        early = data.select_episodes(np.arange(data.num_episodes - env.num_envs))
        assert early.num_episodes < min_episodes or len(early) < min_timesteps
    assert collect(env, IdentityEnv(3).expert_action, learner, after_step=lambda _: False) is None


def test_schedules_may_be_functions_and_nothing_else() -> None:
    env = IdentityEnv(3)
    agent = make_collecting(env, env.expert_action, beta_schedule=lambda number: 1 / (1 + number)).learn(300)
    assert [line["beta"] for line in agent.history] == [1.0, 0.5, 1 / 3]
    for odd in ("15", None, True):
        assert_raises(TypeError, "beta_schedule must be", make_collecting, env, env.expert_action, beta_schedule=odd)
    with pytest.raises(ValueError, match=r"beta_schedule\(0\)=1.5"):
        make_collecting(env, env.expert_action, beta_schedule=lambda _: 1.5).learn(100)


class Shifted(gym.ActionWrapper[Any, Any, Any]):
    """Actions from 3 on."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.action_space = spaces.Discrete(4, start=3)

    def action(self, action: Any) -> Any:
        return action - 3


@pytest.mark.parametrize("targets", ["actions", "probabilities"])
def test_actions_that_do_not_start_at_zero(targets: Any) -> None:
    env = Shifted(IdentityEnv(4))
    answers = {"actions": lambda seen: int(seen) + 3, "probabilities": lambda seen: np.eye(4)[int(seen)]}
    settings: dict[str, Any] = {"learning_rate": 0.05, "bc_train_n_epochs": 8, "beta_schedule": 0.5}
    agent = make_collecting(env, answers[targets], expert_targets=targets, **settings).learn(200)
    assert np.array_equal(agent.demonstrations.actions, np.asarray(agent.demonstrations.observations) + 3)
    assert agent.history[-1]["expert_agreement"] == 1.0
    assert agent.evaluate()["mean_reward"] == 10.0


def test_another_expert_may_take_over() -> None:
    env = IdentityEnv(4)
    agent = make_collecting(env, lambda _: 0, beta_schedule=1.0).learn(100)
    agent.expert = lambda _: 1
    agent.learn(100)
    assert [set(np.asarray(part.actions).tolist()) for part in agent.rounds] == [{0}, {1}]


def test_each_round_begins_with_a_fresh_state_of_the_expert() -> None:
    calls: list[tuple[bool, list[bool]]] = []

    def expert(seen: Any, state: Any, episode_start: Any) -> Any:
        calls.append((state is None, episode_start.tolist()))
        return seen, (np.zeros(2),)

    agent = make_collecting(make_vec_env(lambda: IdentityEnv(4), n_envs=2), expert, rollout_round_min_timesteps=40)
    agent.learn(40, lambda local, _: local["self"].num_timesteps < 10)  # broken off in the middle of an episode
    assert agent.round == 0
    begun = len(calls)
    agent.learn(80)
    assert [place for place, (is_fresh, _) in enumerate(calls) if is_fresh] == [0, begun, begun + 20]
    assert all(starts == [True, True] for is_fresh, starts in calls if is_fresh)
    assert [starts for _, starts in calls[begun : begun + 20]].count([True, True]) == 2  # episodes of 10 steps


class Draws(gym.Env[Any, Any]):
    """Each step draws one number, as slippery environments do."""

    observation_space = spaces.Box(0, 1, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.seen: list[tuple[float, int]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.time, self.noise = 0, self.np_random.random()
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.seen.append((self.noise, int(action)))
        self.time, self.noise = self.time + 1, self.np_random.random()
        return np.zeros(1, np.float32), 0.0, self.time >= 60, False, {}


def test_the_coin_is_not_the_environments_own_noise() -> None:
    env = Draws()
    learner = BC("MlpPolicy", env, None, seed=0, device="cpu")
    with torch.no_grad():  # the learner does 1, the expert 0
        learner.policy.action_net.weight.zero_()  # type: ignore[operator,union-attr]
        learner.policy.action_net.bias.copy_(torch.tensor([-9.0, 9.0]))  # type: ignore[operator,union-attr]
    collect(make_vec_env(lambda: env), lambda _: 0, learner, seed=3, learner_deterministic=True)
    noise, actions = np.array(env.seen).T
    assert len(actions) == 60
    assert 0.2 < np.mean((noise >= 0.5) == (actions == 1)) < 0.8
