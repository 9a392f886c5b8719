"""What cloning converges to, where that is known: optimal smoothed policies, margins, entropies, Gaussians."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn import functional as F

from rlsmooth.agents import BC
from rlsmooth.data import Demonstrations, cartpole_v1
from rlsmooth.envs import IdentityBoxEnv, MaskedTabularEnv, TabularEnv
from rlsmooth.targets import Smoothing, Tree

PROBLEMS = [
    ("rlsmooth/Identity-v0", {}),
    ("rlsmooth/IdentityOrdered-v0", {}),
    ("rlsmooth/IdentityMultiDiscrete-v0", {"dims": (3, 2)}),
    ("rlsmooth/IdentityMultiBinary-v0", {}),
    ("rlsmooth/IdentityMasked-v0", {}),
    ("rlsmooth/IdentityMaskedMultiDiscrete-v0", {"dims": (2, 3)}),
    ("rlsmooth/IdentityMaskedMultiBinary-v0", {}),
]


def every_state(env: TabularEnv, **more: Any) -> Demonstrations:
    """Each state once, as the unit matrix, with the best action and its mask."""
    count = env.problem.num_states
    actions = np.stack([np.asarray(env.expert_action(env.observation_of(state))) for state in range(count)])
    masks = env.problem.legal if isinstance(env, MaskedTabularEnv) else None
    return Demonstrations.from_arrays(
        np.eye(count, dtype=np.float32),
        actions,
        observation_space=spaces.Box(0.0, 1.0, (count,)),
        action_space=env.action_space,
        episode_ends=[count],
        action_masks=masks,
        **more,
    )


def tabular(name: str, **arguments: Any) -> TabularEnv:
    env = gym.make(name, **arguments).unwrapped
    assert isinstance(env, TabularEnv)
    return env


LINEAR = {"net_arch": [], "optimizer_kwargs": {"betas": (0.8, 0.9), "eps": 1e-5}}


def fit(demonstrations: Demonstrations, batches: int = 120, **arguments: Any) -> BC:
    """Full-batch training of a linear policy with a step size that goes to 0: exact to about 1e-4."""
    agent = BC(
        "MlpPolicy",
        None,
        demonstrations,
        batch_size=len(demonstrations),
        **{"learning_rate": "lin_0.3", "policy_kwargs": LINEAR, "seed": 0, "device": "cpu", **arguments},
    )
    return agent.learn(total_batches=batches)


@torch.no_grad()
def probabilities(agent: BC, demonstrations: Demonstrations) -> np.ndarray:
    """`[N, sum of choices]`, the policy's probabilities over the legal actions, through SB3's own distribution."""
    distribution: Any = agent.policy.get_distribution(torch.as_tensor(demonstrations.observations))  # type: ignore[operator]
    parts = distribution.distribution
    if isinstance(demonstrations.action_space, spaces.MultiBinary):
        ones = parts.probs
        flat = torch.stack((1 - ones, ones), dim=-1).flatten(1)
    else:
        flat = torch.cat([part.probs for part in parts] if isinstance(parts, list) else [parts.probs], dim=-1)
    if demonstrations.action_masks is not None:
        flat = flat * torch.as_tensor(demonstrations.action_masks)
        dims = agent.head.dims  # type: ignore[union-attr]
        flat = torch.cat([part / part.sum(-1, keepdim=True) for part in flat.split(list(dims), dim=-1)], dim=-1)
    return np.asarray(flat.numpy(), dtype=np.float64)


@pytest.mark.parametrize(("name", "arguments"), PROBLEMS)
def test_the_optimal_smoothed_policy_is_found(name: str, arguments: dict[str, Any]) -> None:
    env = tabular(name, **arguments)
    demonstrations = every_state(env)
    agent = fit(demonstrations, smoothing=0.2)
    np.testing.assert_allclose(probabilities(agent, demonstrations), env.optimal_smoothed_policy(0.2), atol=1e-3)


@pytest.mark.parametrize(
    "smoothing",
    [
        Smoothing(0.3, reference="exponential", decay=0.7),
        Smoothing(0.3, reference=torch.tensor([0.1, 0.2, 0.3, 0.4])),
        Smoothing(0.3, reference=Tree.from_nested({"a": ["0", "1"], "b": ["2", "3"]})),
        Smoothing(0.3, spread="others"),
        Smoothing(None, reference="binomial"),
    ],
    ids=["ordinal", "prior", "tree", "others", "whole"],
)
def test_structured_smoothing_has_its_own_optimum(smoothing: Smoothing) -> None:
    env = tabular("rlsmooth/Identity-v0")
    demonstrations = every_state(env)
    agent = fit(demonstrations, smoothing=smoothing)
    np.testing.assert_allclose(probabilities(agent, demonstrations), env.optimal_smoothed_policy(smoothing), atol=1e-3)


def test_each_dimension_may_have_its_own_smoothing() -> None:
    env = tabular("rlsmooth/IdentityMultiDiscrete-v0", dims=(3, 2))
    demonstrations = every_state(env)
    found = probabilities(fit(demonstrations, smoothing=[0.3, Smoothing(0.1)]), demonstrations)
    np.testing.assert_allclose(found[:, :3], env.optimal_smoothed_policy(0.3)[:, :3], atol=1e-3)
    np.testing.assert_allclose(found[:, 3:], env.optimal_smoothed_policy(0.1)[:, 3:], atol=1e-3)


@pytest.mark.parametrize(("name", "arguments"), [PROBLEMS[0], *PROBLEMS[3:6]])
@pytest.mark.parametrize("alpha", [0.3])
def test_smoothing_and_the_kl_term_have_the_same_optimum(name: str, arguments: dict[str, Any], alpha: float) -> None:
    demonstrations = every_state(tabular(name, **arguments))
    smoothed = fit(demonstrations, smoothing=alpha)
    regularised = fit(demonstrations, smoothing=0.0, kl_coef=alpha / (1 - alpha))
    np.testing.assert_allclose(
        probabilities(smoothed, demonstrations), probabilities(regularised, demonstrations), atol=1e-3
    )


def test_the_kl_term_takes_another_reference() -> None:
    demonstrations = every_state(tabular("rlsmooth/Identity-v0"))
    prior, alpha = torch.tensor([0.1, 0.2, 0.3, 0.4]), 0.2
    smoothed = fit(demonstrations, smoothing=Smoothing(alpha, reference=prior))
    regularised = fit(demonstrations, smoothing=0, kl_coef=alpha / (1 - alpha), reference=prior)
    np.testing.assert_allclose(
        probabilities(smoothed, demonstrations), probabilities(regularised, demonstrations), atol=1e-3
    )


@pytest.mark.parametrize(("count", "alpha", "spread"), [(10, 0.1, "all"), (10, 0.1, "others"), (4, 0.3, "all")])
def test_the_optimal_margin_is_the_published_formula(count: int, alpha: float, spread: Any) -> None:
    demonstrations = every_state(tabular("rlsmooth/Identity-v0", num_actions=count))
    agent = fit(demonstrations, batches=200, smoothing=Smoothing(alpha, spread=spread))
    with torch.no_grad():
        logits: Tensor = agent.head.outputs(torch.eye(count))[0]
    own = logits.diagonal()
    others = logits[~torch.eye(count, dtype=torch.bool)].reshape(count, count - 1)
    margin = {"all": np.log(1 + count * (1 - alpha) / alpha), "others": np.log((1 - alpha) * (count - 1) / alpha)}[
        spread
    ]
    np.testing.assert_allclose((own.unsqueeze(-1) - others).numpy(), margin, atol=1e-3)


def test_soft_targets_are_matched_and_smoothed() -> None:
    env = tabular("rlsmooth/Identity-v0", num_actions=3)
    probs = np.array([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5], [0.1, 0.1, 0.8]])
    demonstrations = every_state(env, action_probs=probs)
    np.testing.assert_allclose(
        probabilities(fit(demonstrations, smoothing=0.0, batches=200), demonstrations), probs, atol=5e-3
    )
    smoothed = fit(demonstrations, smoothing=Smoothing(0.3, reference=torch.tensor([0.5, 0.25, 0.25])))
    np.testing.assert_allclose(
        probabilities(smoothed, demonstrations), 0.7 * probs + 0.3 * np.array([0.5, 0.25, 0.25]), atol=1e-3
    )


def test_weights_decide_between_contradictory_rows() -> None:
    observations = np.ones((4, 1), dtype=np.float32)
    demonstrations = Demonstrations.from_arrays(
        observations,
        [0, 1, 1, 1],
        observation_space=spaces.Box(0, 1, (1,)),
        action_space=spaces.Discrete(2),
        episode_ends=[4],
        weights=[6.0, 1.0, 1.0, 0.0],
    )
    agent = fit(demonstrations, smoothing=0.0)
    np.testing.assert_allclose(probabilities(agent, demonstrations)[0], [0.75, 0.25], atol=1e-3)


def test_alpha_may_differ_from_row_to_row() -> None:
    env = tabular("rlsmooth/Identity-v0")
    demonstrations = every_state(env)
    alphas = torch.tensor([0.05, 0.2, 0.4, 0.8])
    found = probabilities(fit(demonstrations, smoothing=Smoothing(alphas)), demonstrations)
    for state, alpha in enumerate(alphas.tolist()):
        np.testing.assert_allclose(found[state], env.optimal_smoothed_policy(alpha)[state], atol=1e-3)


def test_a_gaussian_has_the_moments_of_its_smoothed_target() -> None:
    """One observation, one expert action: the closed form of the environment, with its reference N(0, 1)."""
    env = gym.make("rlsmooth/IdentityBox-v0").unwrapped
    assert isinstance(env, IdentityBoxEnv)
    state, _ = env.reset(seed=0)
    action = env.expert_action(state)
    demonstrations = Demonstrations.from_arrays(
        np.ones((1, 1), np.float32),
        action[None],
        observation_space=spaces.Box(0, 1, (1,)),
        action_space=env.action_space,
        episode_ends=[1],
    )
    low, high = env.action_space.low, env.action_space.high
    assert np.allclose(low, -high)  # so that the reference's mean is 0
    agent = fit(demonstrations, batches=300, smoothing=0.3, reference_std=1.0, learning_rate="lin_0.05")
    mean, std = env.optimal_smoothed_policy(state, 0.3, reference_std=1.0)
    found_mean, found_log_std = (output.detach() for output in agent.head.outputs(torch.ones(1, 1)))
    np.testing.assert_allclose(found_mean[0].numpy(), mean, atol=1e-3)
    np.testing.assert_allclose(found_log_std.exp().numpy(), std, atol=1e-3)


def test_both_smoothings_agree_for_a_gaussian() -> None:
    rng = np.random.default_rng(0)
    demonstrations = Demonstrations.from_arrays(
        np.ones((8, 1), np.float32),
        rng.uniform(0.0, 3.0, (8, 2)).astype(np.float32),
        observation_space=spaces.Box(0, 1, (1,)),
        action_space=spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([3.0, 3.0], np.float32)),
        episode_ends=[8],
    )
    arguments: dict[str, Any] = {"batches": 400, "learning_rate": "lin_0.05"}
    smoothed = fit(demonstrations, smoothing=0.2, **arguments)
    regularised = fit(demonstrations, smoothing=0.0, kl_coef=0.25, **arguments)
    # The reference is the middle and half the width of each dimension's bounds.
    actions = np.asarray(demonstrations.actions, dtype=np.float64)
    middle, half = np.array([1.0, 1.5]), np.array([2.0, 1.5])
    mean = 0.8 * actions.mean(0) + 0.2 * middle
    variance = 0.8 * ((actions - mean) ** 2).mean(0) + 0.2 * ((middle - mean) ** 2 + half**2)
    for agent in (smoothed, regularised):
        found_mean, log_std = (output.detach() for output in agent.head.outputs(torch.ones(1, 1)))
        np.testing.assert_allclose(found_mean[0].numpy(), mean, atol=2e-3)
        np.testing.assert_allclose(log_std.exp().numpy(), np.sqrt(variance), atol=2e-3)


def test_entropy_rises_with_alpha_on_the_shipped_set() -> None:
    entropies = []
    for alpha in (0.0, 0.05, 0.1, 0.3):
        agent = BC(
            "MlpPolicy", None, cartpole_v1(), smoothing=alpha, batch_size=256, learning_rate=3e-3, seed=0, device="cpu"
        )
        agent.learn(total_epochs=8)
        with torch.no_grad():
            distribution: Any = agent.policy.get_distribution(torch.as_tensor(cartpole_v1().observations))  # type: ignore[operator]
            entropies.append(float(distribution.entropy().mean()))
    assert np.all(np.diff(entropies) > 0.01), entropies


def test_the_shipped_set_is_enough_for_the_highest_return() -> None:
    agent = BC(
        "MlpPolicy",
        "CartPole-v1",
        cartpole_v1(),
        batch_size=256,
        learning_rate=3e-3,
        seed=0,
        device="cpu",
        n_eval_episodes=3,
    )
    agent.learn(total_epochs=8)
    found = agent.evaluate()
    assert found["mean_reward"] >= 475.0
    assert found["mean_ep_length"] == found["mean_reward"]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_run_equals_a_loop_written_by_hand(smoothing: float) -> None:
    """Without smoothing this is plain cloning; with it, torch's own label smoothing."""
    demonstrations = cartpole_v1().select_episodes([0, 1])
    agent = BC("MlpPolicy", None, demonstrations, smoothing=smoothing, batch_size=100, seed=3, device="cpu")
    start = {name: tensor.clone() for name, tensor in agent.policy.state_dict().items()}
    agent.learn(total_epochs=2)
    by_hand = BC("MlpPolicy", None, demonstrations, seed=3, device="cpu").policy
    by_hand.load_state_dict(start)
    observations = torch.as_tensor(demonstrations.observations)
    labels = torch.as_tensor(demonstrations.actions)
    from rlsmooth.training import epoch_permutation

    for epoch in range(2):
        for rows in epoch_permutation(3, epoch, len(labels)).split(100):
            distribution: Any = by_hand.get_distribution(observations[rows])  # type: ignore[operator]
            loss = F.cross_entropy(distribution.distribution.logits, labels[rows], label_smoothing=smoothing)
            by_hand.optimizer.zero_grad()
            loss.backward()
            by_hand.optimizer.step()
    for name, parameter in agent.policy.state_dict().items():
        torch.testing.assert_close(parameter, by_hand.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_alpha_zero_is_exactly_the_hard_target() -> None:
    demonstrations = cartpole_v1().select_episodes([0])
    runs = [
        BC("MlpPolicy", None, demonstrations, smoothing=smoothing, seed=0, device="cpu").learn(total_epochs=2)
        for smoothing in (0.0, 0, Smoothing(0.0, reference="adjacent"), "lin_0.0")
    ]
    for other in runs[1:]:
        for one, two in zip(runs[0].policy.parameters(), other.policy.parameters(), strict=True):
            assert torch.equal(one, two)
