"""The closed forms against other people's optimisers, distributions and losses, against play and against learners."""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from torch.distributions import Categorical, Normal, kl_divergence

from rlsmooth.data import LabelledData
from rlsmooth.envs import (
    DatasetBanditEnv,
    DatasetBanditMaskedEnv,
    IdentityBoxEnv,
    IdentityEnv,
    IdentityMaskedEnv,
    IdentityMaskedMultiBinaryEnv,
    IdentityMaskedMultiDiscreteEnv,
    IdentityMultiBinaryEnv,
    IdentityMultiDiscreteEnv,
    IdentityOrderedEnv,
    MaskedTabularEnv,
    TabularEnv,
    TabularProblem,
    soft_optimum,
)
from rlsmooth.envs.optima import Direction
from rlsmooth.targets import Smoothing, ordinal
from support import assert_raises

LIVING = LabelledData(
    np.random.default_rng(0).normal(size=(6, 2)),
    np.array([0, 1, 2, 3, 1, 0]),
    ("wolf", "lion", "oak", "tiger"),
    hierarchy={"plants": ["oak"], "animals": {"cats": ["lion", "tiger"], "dogs": ["wolf"]}},
)
GRADES = LabelledData(np.arange(10.0).reshape(5, 2), np.array([0, 1, 2, 3, 1]), tuple("abcd"), is_ordered=True)
DIRECTIONS: tuple[Direction, ...] = ("policy_to_reference", "reference_to_policy")
TABULAR = [
    IdentityEnv(3),
    IdentityOrderedEnv(4),
    IdentityMultiDiscreteEnv((3, 2)),
    IdentityMultiBinaryEnv(3),
    IdentityMaskedEnv(4),
    IdentityMaskedMultiDiscreteEnv((2, 4)),
    IdentityMaskedMultiBinaryEnv(2),
    DatasetBanditEnv(LIVING),
    DatasetBanditMaskedEnv(GRADES, legal=0.6),
]
every_tabular = pytest.mark.parametrize("env", TABULAR, ids=lambda env: type(env).__name__)


def random_policy(env: TabularEnv, seed: int = 0) -> NDArray[np.float64]:
    """A random policy on the legal actions."""
    weights = np.random.default_rng(seed).random(env.problem.rewards.shape) * env.problem.legal
    return np.concatenate([b / b.sum(axis=-1, keepdims=True) for b in env.problem.split(weights)], axis=-1)


def objective(logits: torch.Tensor, rewards: torch.Tensor, coefficient: float, direction: Direction) -> torch.Tensor:
    """`E[r] - c * KL`, by torch's own distributions."""
    policy, reference = Categorical(logits=logits), Categorical(logits=torch.zeros_like(logits))
    pair = (policy, reference) if direction == "policy_to_reference" else (reference, policy)
    return (policy.probs * rewards).sum() - coefficient * kl_divergence(*pair)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("coefficient", [0.1, 1.0, 7.0])
def test_soft_optimum_agrees_with_scipy(direction: Direction, coefficient: float) -> None:
    rewards = torch.tensor([0.3, -1.0, 1.0, 0.9], dtype=torch.float64)

    def loss(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logits = torch.tensor(x, requires_grad=True)
        value = -objective(logits, rewards, coefficient, direction)
        value.backward()
        return value.item(), logits.grad.numpy()

    found = optimize.minimize(loss, np.zeros(4), jac=True, method="BFGS", options={"gtol": 1e-9})
    expected = torch.softmax(torch.tensor(found.x), dim=-1).numpy()
    assert soft_optimum(rewards.numpy(), coefficient, direction=direction) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("direction", DIRECTIONS)
@settings(deadline=None, max_examples=60)
@given(rewards=st.lists(st.floats(-50, 50), min_size=1, max_size=8), coefficient=st.floats(1e-3, 1e3), data=st.data())
def test_soft_optimum_is_a_policy_on_the_legal_actions(
    direction: Direction, rewards: list[float], coefficient: float, data: st.DataObject
) -> None:
    legal = np.array(data.draw(st.lists(st.booleans(), min_size=len(rewards), max_size=len(rewards)).filter(any)))
    r = np.array(rewards)
    pi = soft_optimum(r, coefficient, direction=direction, legal=legal)
    assert pi.sum() == pytest.approx(1.0, abs=1e-12)
    assert (pi[~legal] == 0).all()
    assert (pi >= 0).all()
    assert (np.diff(pi[legal][np.argsort(r[legal], kind="stable")]) >= -1e-12).all()  # better actions are likelier
    if direction == "reference_to_policy":  # stationary: r_i + c * u / pi_i is the same number for each legal action
        multiplier = r[legal] + coefficient / legal.sum() / pi[legal]
        assert np.ptp(multiplier) <= 1e-9 * (1 + np.abs(multiplier).max())


def test_two_actions_by_hand() -> None:
    # c = 1/2, r = (1, 0): sum = 1 reads 1/4 / (l - 1) + 1/4 / l = 1, so l = (3 + sqrt 5) / 4
    multiplier = (3 + 5**0.5) / 4
    expected = [0.25 / (multiplier - 1), 0.25 / multiplier]
    assert soft_optimum(np.array([1.0, 0.0]), 0.5, direction="reference_to_policy") == pytest.approx(
        expected, abs=1e-12
    )
    expected_entropy = [np.e**2 / (1 + np.e**2), 1 / (1 + np.e**2)]
    assert soft_optimum(np.array([1.0, 0.0]), 0.5) == pytest.approx(expected_entropy, abs=1e-12)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_limits_of_the_coefficient(direction: Direction) -> None:
    rewards = np.array([[0.0, 1.0, 0.5]])
    assert soft_optimum(rewards, 1e-6, direction=direction) == pytest.approx(np.array([[0, 1, 0]]), abs=1e-5)
    assert soft_optimum(rewards, 1e6, direction=direction) == pytest.approx(np.full((1, 3), 1 / 3), abs=1e-5)


@pytest.mark.parametrize("direction", DIRECTIONS)
@every_tabular
def test_no_nearby_policy_is_better_than_the_soft_optimum(env: TabularEnv, direction: Direction) -> None:
    c = 0.4
    table = env.soft_optimal_policy(c, direction=direction)

    def value(policy: NDArray[np.float64]) -> float:
        """Expected return of one step minus c times the KL of the whole (joint) action."""
        penalty = 0.0
        for block, legal in zip(env.problem.split(policy), env.problem.split(env.problem.legal), strict=True):
            for row, allowed in zip(block, legal, strict=True):
                p = torch.from_numpy(row[allowed])
                pair = Categorical(probs=p), Categorical(probs=torch.ones_like(p))
                ordered = pair if direction == "policy_to_reference" else pair[::-1]
                penalty += kl_divergence(*ordered).item()
        return env.expected_return(policy) / env.episode_length - c * penalty / env.problem.num_states

    best = value(table)
    assert env.expected_return(table) < env.optimal_return()
    for seed in range(5):
        for step in (0.01, 0.3):
            assert value((1 - step) * table + step * random_policy(env, seed)) < best


@every_tabular
def test_expected_return_is_the_sum_over_joint_actions(env: TabularEnv) -> None:
    policy = random_policy(env)
    blocks = env.problem.split(policy)
    total = 0.0
    for state in range(env.problem.num_states):
        for values in itertools.product(*(range(n) for n in env.problem.dims)):
            probability = np.prod([block[state, value] for block, value in zip(blocks, values, strict=True)])
            total += probability * env.problem.rewards[state, env.problem.offsets + values].sum()
    assert env.expected_return(policy) == pytest.approx(env.episode_length * total / env.problem.num_states)


@every_tabular
def test_expected_return_is_what_play_pays(env: TabularEnv) -> None:
    policy, rng, returns = random_policy(env), np.random.default_rng(1), []
    blocks = env.problem.split(policy)
    observation, _ = env.reset(seed=3)
    for _ in range(400):
        total, over = 0.0, False
        while not over:
            state = env.state_of(observation)
            action = np.array([rng.choice(block.shape[-1], p=block[state]) for block in blocks])
            observation, reward, _, over, _ = env.step(action if env.action_space.shape else action[0])
            total += reward
        returns.append(total)
        observation, _ = env.reset()
    error = np.std(returns) / len(returns) ** 0.5
    assert abs(np.mean(returns) - env.expected_return(policy)) < 4 * error


@every_tabular
def test_the_expert_earns_the_optimal_return_and_no_policy_earns_more(env: TabularEnv) -> None:
    observation, _ = env.reset(seed=0)
    total, over = 0.0, False
    while not over:
        action = env.expert_action(observation)
        assert env.action_space.contains(action)
        observation, reward, terminated, over, info = env.step(action)
        assert not terminated
        assert info == {}
        total += reward
    assert total == pytest.approx(env.optimal_return())  # each of these pays the same in every state
    assert env.expected_return(env.optimal_smoothed_policy(0.0)) == pytest.approx(env.optimal_return())
    assert all(env.expected_return(random_policy(env, seed)) < env.optimal_return() for seed in range(5))


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.7, 1.0])
def test_the_smoothed_policy_is_the_stationary_point_of_torchs_smoothed_loss(alpha: float) -> None:
    env = IdentityEnv(5)
    table = env.optimal_smoothed_policy(alpha)
    logits = torch.from_numpy(table).clamp_min(1e-30).log().requires_grad_()
    torch.nn.functional.cross_entropy(logits, torch.arange(5), label_smoothing=alpha).backward()
    assert logits.grad.abs().max() < 1e-12
    assert table.sum(axis=-1) == pytest.approx(np.ones(5), abs=1e-12)


def test_the_smoothed_policy_of_several_components_holds_one_distribution_for_each() -> None:
    table = IdentityMultiDiscreteEnv((3, 2)).optimal_smoothed_policy(0.3)
    first, second = IdentityEnv(3).optimal_smoothed_policy(0.3), IdentityEnv(2).optimal_smoothed_policy(0.3)
    expected = [np.concatenate([first[a], second[b]]) for a in range(3) for b in range(2)]
    assert table == pytest.approx(np.array(expected), abs=1e-12)


def test_the_smoothed_policy_of_the_masked_form_stays_on_legal_actions() -> None:
    expected = [[1, 0, 0, 0], [0, 0.85, 0.15, 0], [0.1, 0, 0.8, 0.1], [0.075, 0.075, 0.075, 0.775]]
    assert IdentityMaskedEnv(4).optimal_smoothed_policy(0.3) == pytest.approx(np.array(expected), abs=1e-12)


def test_ordinal_smoothing_costs_less_than_uniform_where_actions_are_ordered() -> None:
    env = IdentityOrderedEnv(6)
    near = Smoothing(alpha=0.3, reference="adjacent")
    table = env.optimal_smoothed_policy(near)
    assert torch.from_numpy(table).equal(ordinal(torch.arange(6), 6, 0.3, "adjacent").dense(torch.float64))
    # Neighbours lose 1/5 each, so 0.3 * 0.2 a step
    assert env.expected_return(table) == pytest.approx(env.optimal_return() - 10 * 0.3 * 0.2)
    assert env.expected_return(table) > env.expected_return(env.optimal_smoothed_policy(0.3))


def test_the_soft_optimum_of_ordered_actions_is_the_geometric_ordinal_target() -> None:
    env, c = IdentityOrderedEnv(5), 0.2
    decay = 1 / (4 * c)
    target = ordinal(torch.arange(5), 5, None, "exponential", decay=decay, power=1.0)
    assert env.soft_optimal_policy(c) == pytest.approx(target.dense(torch.float64).numpy(), abs=1e-9)


def test_ties_go_to_the_lowest_action() -> None:
    rewards = np.array([[1.0, 1.0], [0.0, 1.0]])
    problem = TabularProblem((2,), rewards, np.ones((2, 2), dtype=bool))
    assert problem.best_actions().tolist() == [[0], [1]]


def test_an_illegal_action_is_never_best() -> None:
    problem = TabularProblem((2,), np.array([[9.0, 1.0], [0.0, 1.0]]), np.array([[False, True], [True, True]]))
    assert problem.best_actions().tolist() == [[1], [1]]
    assert problem.optimal_reward() == 1.0


@pytest.mark.parametrize("alpha", [0.05, 0.5, 1.0])
def test_the_box_smoothed_policy_is_the_stationary_point_of_its_loss(alpha: float) -> None:
    env = IdentityBoxEnv(2)
    observation, _ = env.reset(seed=5)
    mean, std = env.optimal_smoothed_policy(observation, alpha, reference_mean=0.1, reference_std=0.8)
    parameters = [torch.from_numpy(x).requires_grad_() for x in (mean, std)]
    policy, state = Normal(*parameters), torch.from_numpy(observation.astype(np.float64))
    reference = Normal(torch.full((2,), 0.1, dtype=torch.float64), torch.full((2,), 0.8, dtype=torch.float64))
    loss = -(1 - alpha) * policy.log_prob(state).sum() + alpha * kl_divergence(reference, policy).sum()
    for gradient in torch.autograd.grad(loss, parameters):
        assert gradient.abs().max() < 1e-10


def test_the_box_soft_optimum_is_the_stationary_point_of_its_objective() -> None:
    env, c = IdentityBoxEnv(3), 0.02
    observation, _ = env.reset(seed=5)
    parameters = [torch.from_numpy(x).requires_grad_() for x in env.soft_optimal_policy(observation, c)]
    mean, std = parameters
    state = torch.from_numpy(observation.astype(np.float64))
    value = -((mean - state).square() + std.square()).mean() + c * Normal(mean, std).entropy().sum()
    for gradient in torch.autograd.grad(value, parameters):
        assert gradient.abs().max() < 1e-12


def test_the_box_expected_return_is_what_play_pays() -> None:
    env, rng, returns = IdentityBoxEnv(2), np.random.default_rng(0), []
    for episode in range(400):
        observation, _ = env.reset(seed=0 if episode == 0 else None)
        total, over = 0.0, False
        while not over:
            observation, reward, _, over, _ = env.step(0.5 * observation + 0.1 + rng.normal(0, 0.1, 2))
            total += reward
        returns.append(total)
    expected = env.expected_return(gain=0.5, offset=0.1, std=0.1)
    assert abs(np.mean(returns) - expected) < 4 * np.std(returns) / len(returns) ** 0.5
    assert env.expected_return() == env.optimal_return() == 0.0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"coefficient": 0.0}, ValueError, "coefficient=0.0"),
        ({"coefficient": "1"}, TypeError, "coefficient"),
        ({"coefficient": 1.0, "direction": "both"}, ValueError, "direction='both'"),
        ({"coefficient": 1.0, "legal": np.ones(3, dtype=bool)}, ValueError, "legal of shape"),
        ({"coefficient": 1.0, "legal": np.zeros(2, dtype=bool)}, ValueError, "a legal action in every row"),
        ({"coefficient": 1.0, "rewards": np.array([0.0, -np.inf])}, ValueError, "finite"),
    ],
)
def test_soft_optimum_refuses(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    assert_raises(error, message, soft_optimum, **{"rewards": np.zeros(2), **arguments})


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (np.full((3, 2), 0.5), r"shape \(3, 2\)"),
        (np.array([[1.5, -0.5], [1.0, 0.0]]), "negative"),
        (np.array([[np.nan, 1.0], [1.0, 0.0]]), "non-finite"),
        (np.array([[1.0, 0.0], [0.5, 0.2]]), "row 1, component 0 sums to 0.7"),
    ],
)
def test_expected_return_refuses_what_is_no_policy(policy: NDArray[np.float64], message: str) -> None:
    assert_raises(ValueError, message, IdentityEnv(2).expected_return, policy)


def test_a_policy_on_illegal_actions_pays_the_penalty_or_is_an_error() -> None:
    coin = np.full((2, 2), 0.5)  # state 0: +1 or -1 (illegal); state 1: 1 or 0
    assert IdentityMaskedEnv(2, episode_length=1).expected_return(coin) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="illegal actions a positive probability"):
        IdentityMaskedEnv(2, illegal_action="raise").expected_return(coin)


@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_an_alpha_without_an_optimal_policy_is_an_error(alpha: float) -> None:
    assert_raises(ValueError, r"alpha|negative", IdentityEnv(3).optimal_smoothed_policy, alpha)


@pytest.mark.parametrize(
    ("dims", "shape", "message"),
    [((), (1, 0), "at least one number"), ((3,), (3, 2), "must both have the shape"), ((300, 300), (1, 1), "states")],
)
def test_problem_refuses(dims: tuple[int, ...], shape: tuple[int, int], message: str) -> None:
    assert_raises(ValueError, message, TabularProblem, dims, np.zeros(shape), np.ones(shape, dtype=bool))


def test_problem_refuses_a_state_without_a_legal_action() -> None:
    with pytest.raises(ValueError, match="without a legal value"):
        TabularProblem((2,), np.zeros((2, 2)), np.array([[True, True], [False, False]]))


def test_a_bandits_reward_falls_with_the_distance_in_the_tree_and_in_the_order() -> None:
    # by hand: cats are 2 edges apart, cat and dog 4, animal and plant 5 (oak is 2 below the root, cats 3)
    wolf, lion = DatasetBanditEnv(LIVING).problem.rewards[:2]
    assert wolf == pytest.approx([1, 1 - 4 / 5, 0, 1 - 4 / 5])
    assert lion == pytest.approx([1 - 4 / 5, 1, 0, 1 - 2 / 5])
    assert DatasetBanditEnv(LIVING, distance="zero_one").problem.rewards[1].tolist() == [0, 1, 0, 0]
    assert DatasetBanditEnv(GRADES).problem.rewards[1] == pytest.approx([2 / 3, 1, 2 / 3, 1 / 3])
    masked = DatasetBanditMaskedEnv(GRADES, legal=0.0, episode_length=1, render_mode="rgb_array")
    observation, _ = masked.reset(seed=0)
    white = (masked.render()[10, 24::48] == 255).all(axis=-1)  # the middles of the four classes' cells, above
    assert np.array_equal(white, masked.action_masks())
    assert np.flatnonzero(masked.action_masks()).tolist() == [GRADES.labels[masked.state_of(observation)]]
    _, reward, _, truncated, info = masked.step(np.flatnonzero(~masked.action_masks())[0])
    assert (reward, truncated, info) == (-1.0, True, {"illegal_action": True})


def test_samples_that_look_alike_have_one_optimum() -> None:
    # class 0 twice and class 2 once under the same features: 0 pays (1 + 1 + 0) / 3, and 1 pays 1/2 always
    alike = LabelledData(np.eye(4)[:, 3:], np.array([0, 0, 2, 1]), tuple("abc"), is_ordered=True)
    env = DatasetBanditEnv(alike, standardise=False)
    assert env.problem.rewards[:3] == pytest.approx(np.array([[2 / 3, 1 / 2, 1 / 3]] * 3))
    assert env.optimal_return() == pytest.approx(10 * (3 * 2 / 3 + 1) / 4)
    assert [int(env.expert_action(row)) for row in alike.features] == [0, 0, 0, 1]
    paid = set()
    observation, _ = env.reset(seed=0)
    for _ in range(400):
        row = env.state_of(observation)
        observation, reward, _, over, _ = env.step(0)
        paid.add((int(alike.labels[row]), reward))  # each sample pays by its own label
        observation = env.reset()[0] if over else observation
    assert paid == {(0, 1.0), (1, 0.5), (2, 0.0)}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DatasetBanditEnv("no set"), ValueError, "data='no set' is not known"),
        (lambda: DatasetBanditEnv(np.zeros(3)), TypeError, "data must be a LabelledData"),
        (lambda: DatasetBanditEnv(GRADES, distance="tree"), ValueError, "distance='tree' needs a hierarchy"),
        (lambda: DatasetBanditEnv(LIVING, distance="ordinal"), ValueError, "distance='ordinal' needs ordered classes"),
        (lambda: DatasetBanditEnv(LIVING, distance="far"), ValueError, "distance='far'"),
        (lambda: DatasetBanditEnv(GRADES.take(np.array([0]))), ValueError, "1 samples"),
        (lambda: DatasetBanditMaskedEnv(GRADES, legal=1.5), ValueError, "legal=1.5"),
        (lambda: DatasetBanditMaskedEnv(GRADES, legal=np.ones((5, 3), bool)), ValueError, r"legal has shape \(5, 3\)"),
        (lambda: DatasetBanditEnv(GRADES).state_of(np.full(2, 9, np.float32)), ValueError, "no sample's features"),
    ],
)
def test_a_bandit_refuses(make: Any, error: type[Exception], message: str) -> None:
    assert_raises(error, message, make)


# ---- unmodified SB3 algorithms find the known optimum
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
        pytest.param("rlsmooth/DatasetBandit-v0", {"data": LIVING}, "MlpPolicy", marks=pytest.mark.slow),
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
