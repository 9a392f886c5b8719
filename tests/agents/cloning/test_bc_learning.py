"""What cloning converges to, where that is known; actions in bins; agent files, data on the disk, warm starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import A2C, DQN, PPO
from torch import Tensor
from torch.nn import functional as F

from rlsmooth.agents import BC, TrainingDivergedError
from rlsmooth.agents.cloning import training_data
from rlsmooth.agents.heads import actor_output
from rlsmooth.agents.spaces import ActionBins
from rlsmooth.data import Demonstrations, cartpole_v1, cartpole_v1_noisy
from rlsmooth.envs import IdentityBoxEnv, MaskedTabularEnv, TabularEnv
from rlsmooth.targets import Smoothing, Tree, ordinal_kernel
from rlsmooth.training import SafeFileError, checkpoint_steps, seeding
from rlsmooth.training import run as engine
from support import KillAt, assert_raises, draw, recorded, same_parameters
from trainers import small_bc as make

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
    states, space = np.eye(count, dtype=np.float32), spaces.Box(0.0, 1.0, (count,))
    return recorded(states, actions, space, env.action_space, action_masks=masks, **more)


def tabular(name: str, **arguments: Any) -> TabularEnv:
    env = gym.make(name, **arguments).unwrapped
    assert isinstance(env, TabularEnv)
    return env


LINEAR = {"net_arch": [], "optimizer_kwargs": {"betas": (0.8, 0.9), "eps": 1e-5}}


def fit(demonstrations: Demonstrations, batches: int = 120, **arguments: Any) -> BC:
    """Full-batch training of a linear policy with a step size that goes to 0: exact to about 1e-4."""
    given = {"batch_size": len(demonstrations), "learning_rate": "lin_0.3", "policy_kwargs": LINEAR, **arguments}
    return make(demonstrations, **given).learn(total_batches=batches)


@torch.no_grad()
def probabilities(agent: BC, demonstrations: Demonstrations) -> np.ndarray:
    """`[N, sum of choices]`, the policy's probabilities over the legal actions, through SB3's own distribution."""
    distribution: Any = agent.policy.get_distribution(torch.as_tensor(demonstrations.observations))  # type: ignore[operator]
    parts = getattr(distribution, "distributions", None) or distribution.distribution  # sb3-contrib's, or SB3's
    if isinstance(demonstrations.action_space, spaces.MultiBinary) and not isinstance(parts, list):
        ones = parts.probs
        flat = torch.stack((1 - ones, ones), dim=-1).flatten(1)
    else:
        flat = torch.cat([part.probs for part in parts] if isinstance(parts, list) else [parts.probs], dim=-1)
    if demonstrations.action_masks is not None:
        flat = flat * torch.as_tensor(demonstrations.action_masks)
        dims = agent.head.dims  # type: ignore[union-attr]
        flat = torch.cat([part / part.sum(-1, keepdim=True) for part in flat.split(list(dims), dim=-1)], dim=-1)
    return np.asarray(flat.numpy(), dtype=np.float64)


PRIOR = torch.tensor([0.1, 0.2, 0.3, 0.4])
SMOOTHINGS = [
    Smoothing(0.3, reference="exponential", decay=0.7),
    Smoothing(0.3, reference=PRIOR),
    Smoothing(0.3, reference=Tree.from_nested({"a": ["0", "1"], "b": ["2", "3"]})),
    Smoothing(0.3, spread="others"),
    Smoothing(None, reference="binomial"),
]


@pytest.mark.parametrize(
    ("name", "arguments", "smoothing"),
    [*((*problem, 0.2) for problem in PROBLEMS), *((*PROBLEMS[0], smoothing) for smoothing in SMOOTHINGS)],
)
def test_the_optimal_smoothed_policy_is_found(name: str, arguments: dict[str, Any], smoothing: Any) -> None:
    env = tabular(name, **arguments)
    demonstrations = every_state(env)
    found = probabilities(fit(demonstrations, smoothing=smoothing), demonstrations)
    np.testing.assert_allclose(found, env.optimal_smoothed_policy(smoothing), atol=1e-3)


def test_each_dimension_may_have_its_own_smoothing() -> None:
    env = tabular("rlsmooth/IdentityMultiDiscrete-v0", dims=(3, 2))
    demonstrations = every_state(env)
    found = probabilities(fit(demonstrations, smoothing=[0.3, Smoothing(0.1)]), demonstrations)
    np.testing.assert_allclose(found[:, :3], env.optimal_smoothed_policy(0.3)[:, :3], atol=1e-3)
    np.testing.assert_allclose(found[:, 3:], env.optimal_smoothed_policy(0.1)[:, 3:], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "arguments", "reference"),
    [(*problem, "uniform") for problem in (PROBLEMS[0], *PROBLEMS[3:6])] + [(*PROBLEMS[0], PRIOR)],
)
def test_smoothing_and_the_kl_term_have_the_same_optimum(name: str, arguments: dict[str, Any], reference: Any) -> None:
    demonstrations = every_state(tabular(name, **arguments))
    smoothed = fit(demonstrations, smoothing=Smoothing(0.3, reference=reference))
    regularised = fit(demonstrations, smoothing=0.0, kl_coef=0.3 / 0.7, reference=reference)
    found, expected = (probabilities(agent, demonstrations) for agent in (smoothed, regularised))
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize(("count", "alpha", "spread"), [(10, 0.1, "all"), (10, 0.1, "others"), (4, 0.3, "all")])
def test_the_optimal_margin_is_the_published_formula(count: int, alpha: float, spread: Any) -> None:
    demonstrations = every_state(tabular("rlsmooth/Identity-v0", num_actions=count))
    agent = fit(demonstrations, batches=200, smoothing=Smoothing(alpha, spread=spread))
    with torch.no_grad():
        logits: Tensor = agent.head.outputs(torch.eye(count))[0]
    own = logits.diagonal()
    others = logits[~torch.eye(count, dtype=torch.bool)].reshape(count, count - 1)
    margin = np.log(1 + count * (1 - alpha) / alpha) if spread == "all" else np.log((1 - alpha) * (count - 1) / alpha)
    np.testing.assert_allclose((own.unsqueeze(-1) - others).numpy(), margin, atol=1e-3)


def test_soft_targets_are_matched_and_smoothed() -> None:
    env = tabular("rlsmooth/Identity-v0", num_actions=3)
    probs = np.array([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5], [0.1, 0.1, 0.8]])
    demonstrations = every_state(env, action_probs=probs)
    found = probabilities(fit(demonstrations, smoothing=0.0, batches=200), demonstrations)
    np.testing.assert_allclose(found, probs, atol=5e-3)
    smoothed = fit(demonstrations, smoothing=Smoothing(0.3, reference=torch.tensor([0.5, 0.25, 0.25])))
    expected = 0.7 * probs + 0.3 * np.array([0.5, 0.25, 0.25])
    np.testing.assert_allclose(probabilities(smoothed, demonstrations), expected, atol=1e-3)


def test_weights_decide_between_contradictory_rows() -> None:
    observations = np.ones((4, 1), dtype=np.float32)
    weights, space = [6.0, 1.0, 1.0, 0.0], spaces.Box(0, 1, (1,))
    demonstrations = recorded(observations, [0, 1, 1, 1], space, spaces.Discrete(2), weights=weights)
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
    demonstrations = recorded(np.ones((1, 1), np.float32), action[None], spaces.Box(0, 1, (1,)), env.action_space)
    low, high = env.action_space.low, env.action_space.high
    assert np.allclose(low, -high)  # so that the reference's mean is 0
    agent = fit(demonstrations, batches=300, smoothing=0.3, reference_std=1.0, learning_rate="lin_0.05")
    mean, std = env.optimal_smoothed_policy(state, 0.3, reference_std=1.0)
    found_mean, found_log_std = (output.detach() for output in agent.head.outputs(torch.ones(1, 1)))
    np.testing.assert_allclose(found_mean[0].numpy(), mean, atol=1e-3)
    np.testing.assert_allclose(found_log_std.exp().numpy(), std, atol=1e-3)


def test_both_smoothings_agree_for_a_gaussian() -> None:
    chosen = np.random.default_rng(0).uniform(0.0, 3.0, (8, 2)).astype(np.float32)
    space = spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([3.0, 3.0], np.float32))
    demonstrations = recorded(np.ones((8, 1), np.float32), chosen, spaces.Box(0, 1, (1,)), space)
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
        given = {"batch_size": 256, "learning_rate": 3e-3, "policy_kwargs": None}
        agent = make(cartpole_v1(), smoothing=alpha, **given).learn(total_epochs=8)
        with torch.no_grad():
            distribution: Any = agent.policy.get_distribution(torch.as_tensor(cartpole_v1().observations))  # type: ignore[operator]
            entropies.append(float(distribution.entropy().mean()))
    assert np.all(np.diff(entropies) > 0.01), entropies


def test_the_shipped_set_is_enough_for_the_highest_return() -> None:
    given: dict[str, Any] = {"batch_size": 256, "learning_rate": 3e-3, "seed": 0, "device": "cpu", "n_eval_episodes": 3}
    agent = BC("MlpPolicy", "CartPole-v1", cartpole_v1(), **given)
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
    torch.testing.assert_close(agent.policy.state_dict(), by_hand.state_dict(), rtol=1e-4, atol=1e-5)


def test_alpha_zero_is_exactly_the_hard_target() -> None:
    demonstrations = cartpole_v1().select_episodes([0])
    runs = [
        BC("MlpPolicy", None, demonstrations, smoothing=smoothing, seed=0, device="cpu").learn(total_epochs=2)
        for smoothing in (0.0, 0, Smoothing(0.0, reference="adjacent"), "lin_0.0")
    ]
    assert all(same_parameters(runs[0], other) for other in runs[1:])


# ---- a Box cut into bins
BOX = spaces.Box(np.array([[-1.0, 0.0]], np.float32), np.array([[1.0, 10.0]], np.float32))


@given(count=st.integers(2, 40), share=st.lists(st.floats(0.0, 1.0, width=32), min_size=2, max_size=2))
def test_decoding_is_within_half_a_bin_and_encoding_undoes_it(count: int, share: list[float]) -> None:
    bins = ActionBins(BOX, count)
    low, high = BOX.low.astype(np.float64), BOX.high.astype(np.float64)
    action = (low + np.array([share]) * (high - low)).reshape(1, 2)
    places = bins.encode(action)
    assert bins.space.contains(places[0])
    back = bins.decode(places)
    assert back.shape == (1, 1, 2)
    assert BOX.contains(back[0])
    assert (np.abs(back[0] - action) <= (high - low) / count / 2 + 1e-5).all()
    assert np.array_equal(bins.encode(back.reshape(1, 2)), places)


def two_modes() -> Demonstrations:
    """An expert that turns sharply left or sharply right, never straight on."""
    actions = np.array([[[-0.9, 2.0]], [[0.9, 2.0]], [[0.9, 2.0]], [[0.9, 2.0]]], np.float32)
    return recorded(np.ones((4, 1), np.float32), actions, spaces.Box(0, 1, (1,)), BOX)


def clone(**arguments: Any) -> BC:
    return fit(two_modes(), 150, action_bins=5, **arguments)


def test_the_policy_keeps_both_modes_and_acts_in_the_box() -> None:
    agent = clone(smoothing=0.0)
    action, _ = agent.predict(np.ones(1, np.float32), deterministic=True)
    np.testing.assert_allclose(action, [[0.8, 3.0]], atol=1e-6)  # 2.0 lies on the edge: it belongs to the bin above
    assert action.dtype == np.float32
    sampled, _ = agent.predict(np.ones((200, 1), np.float32))
    assert sampled.shape == (200, 1, 2)
    assert all(BOX.contains(one) for one in sampled)
    sharply = np.abs(np.abs(sampled[:, 0, 0]) - 0.8) < 1e-6
    assert sharply.mean() > 0.95
    assert 0.1 < (sampled[:, 0, 0] < 0).mean() < 0.4


def test_ordinal_smoothing_has_its_own_optimum() -> None:
    agent = clone(smoothing=Smoothing(0.3, reference="triangular", width=2.0))
    logits = agent.head.outputs(agent.policy.obs_to_tensor(np.ones((1, 1), np.float32))[0])  # type: ignore[arg-type]
    found = logits[0].detach().softmax(-1)[0].numpy()
    table = ordinal_kernel(5, "triangular", width=2.0).numpy()
    hard = np.array([0.25, 0, 0, 0, 0.75])
    np.testing.assert_allclose(found, 0.7 * hard + 0.3 * (0.25 * table[0] + 0.75 * table[4]), atol=1e-3)


def test_a_file_keeps_the_bins(tmp_path: Path) -> None:
    agent = clone(smoothing=0.1)
    loaded = BC.load(agent.save(tmp_path / "agent"), demonstrations=two_modes(), device="cpu")
    assert loaded.action_space == BOX
    one, _ = agent.predict(np.ones(1, np.float32), deterministic=True)
    two, _ = loaded.predict(np.ones(1, np.float32), deterministic=True)
    assert np.array_equal(one, two)
    loaded.learn(total_batches=1)


def test_what_has_no_bins_is_refused() -> None:
    unbounded = spaces.Box(-np.inf, np.inf, (2,))
    for space, bins, error, message in [
        (spaces.Discrete(3), 4, TypeError, "Box action space"),
        (unbounded, 4, ValueError, "finite bounds"),
        (BOX, 1, ValueError, "action_bins=1"),
        (BOX, 2.5, TypeError, "action_bins"),
    ]:
        with pytest.raises(error, match=message):
            BC("MlpPolicy", (spaces.Box(0, 1, (1,)), space), None, action_bins=bins, device="cpu")  # type: ignore[arg-type]
    agent = BC("MlpPolicy", "Pendulum-v1", None, action_bins=4, device="cpu")
    assert_raises(ValueError, "model has action_space", agent.warm_start, PPO("MlpPolicy", "Pendulum-v1", device="cpu"))


# ---- agent files
TREE = Tree.from_nested({"a": ["0", "1"], "b": ["2"]})


@pytest.mark.parametrize(
    "arguments",
    [
        {"smoothing": Smoothing(0.2, reference=TREE, decay=0.5), "max_grad_norm": 0.5, "l2_coef": 0.01},
        {"smoothing": "lin_0.3", "learning_rate": "lin_0.01", "kl_coef": 0.2, "reference": TREE},
        {"smoothing": Smoothing(torch.tensor(0.3)), "kl_coef": 0.1, "reference": torch.tensor([0.5, 0.25, 0.25])},
        {"validation_fraction": 0.25, "early_stopping_patience": 4, "gradient_accumulation": 2},
    ],
    ids=["tree", "schedules", "prior", "early stopping"],
)
def test_a_loaded_agent_trains_on_as_if_it_had_never_been_saved(arguments: dict[str, Any], tmp_path: Path) -> None:
    agent = make(batch_size=8, **arguments)
    agent.learn(total_batches=4)
    path = agent.save(tmp_path / "agent.zip")
    loaded = BC.load(path, demonstrations=draw(), device="cpu")
    assert same_parameters(agent, loaded)
    assert loaded.num_timesteps == 4
    for one in (agent, loaded):
        one.learn(total_batches=6, reset_num_timesteps=False)
    assert same_parameters(agent, loaded)
    assert BC.load(path, device="cpu").demonstrations is None


def test_callables_are_asked_for_again(tmp_path: Path) -> None:
    schedules: dict[str, Any] = {
        "learning_rate": lambda progress: 0.01 * progress,
        "smoothing": Smoothing(lambda progress: 0.3 * progress),
    }
    agent = make(**schedules).learn(total_batches=2)
    path = agent.save(tmp_path / "agent")
    acting = BC.load(path, demonstrations=draw(), device="cpu")
    acting.predict(np.zeros(3, np.float32))
    assert_raises(ValueError, r"smoothing, learning_rate was a callable.*custom_objects", acting.learn, total_batches=1)
    loaded = BC.load(path, demonstrations=draw(), device="cpu", custom_objects=schedules)
    for one in (agent, loaded):
        one.learn(total_batches=3, reset_num_timesteps=False)
    assert same_parameters(agent, loaded)


@pytest.mark.parametrize("saved", [0.01, lambda progress: 0.01 * progress])
@pytest.mark.parametrize("given", [0.5, "lin_0.5"])
def test_a_learning_rate_given_to_load_is_used(saved: Any, given: Any, tmp_path: Path) -> None:
    path = make(learning_rate=saved).learn(total_batches=2).save(tmp_path / "agent")
    loaded = BC.load(path, demonstrations=draw(), device="cpu", custom_objects={"learning_rate": given})
    loaded.learn(total_batches=1)
    assert loaded.policy.optimizer.param_groups[0]["lr"] == 0.5


def test_images_and_starts_survive_a_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, actions = rng.integers(256, size=(6, 36, 36, 3), dtype=np.uint8), rng.integers(7, 10, size=6)
    space = spaces.Box(0, 255, (36, 36, 3), dtype=np.uint8)
    demonstrations = recorded(images, actions, space, spaces.Discrete(3, start=7))
    agent = BC("CnnPolicy", None, demonstrations, seed=0, device="cpu").learn(total_batches=1)
    loaded = BC.load(agent.save(tmp_path / "agent"), demonstrations=demonstrations, device="cpu")
    one, _ = agent.predict(demonstrations.observations, deterministic=True)
    two, _ = loaded.predict(demonstrations.observations, deterministic=True)
    assert np.array_equal(one, two)
    assert one.min() >= 7


def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path) -> None:
    path = make().save(tmp_path / "agent")
    path.write_bytes(path.read_bytes()[:-100])
    assert_raises(SafeFileError, None, BC.load, path)
    from rlsmooth.agents import save_agent_file

    other = save_agent_file(tmp_path / "other", kind="dagger", policy=make().policy, config={})
    assert_raises(SafeFileError, "dagger", BC.load, other)
    malformed = save_agent_file(tmp_path / "malformed", kind="bc", policy=make().policy, config={"arguments": {}})
    assert_raises(SafeFileError, "arguments", BC.load, malformed)
    assert_raises(ValueError, "observation_space", BC.load, make().save(tmp_path / "whole"), env="CartPole-v1")


# ---- checkpoints
def checkpointed(folder: Path, **arguments: Any) -> BC:
    return make(batch_size=4, checkpoint_folder=folder, checkpoint_every=3, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"smoothing": "lin_0.3", "learning_rate": "lin_0.01", "gradient_accumulation": 2},
        {"validation_fraction": 0.25, "early_stopping_patience": 2, "learning_rate": 0.05},
        {"policy_kwargs": {"optimizer_class": torch.optim.RMSprop}},
    ],
    ids=["plain", "schedules", "early stopping", "RMSprop"],
)
@pytest.mark.parametrize("cut", [1, 7])
def test_a_resumed_run_ends_as_an_uninterrupted_one(arguments: dict[str, Any], cut: int, tmp_path: Path) -> None:
    whole = make(batch_size=4, **arguments).learn(total_epochs=3)
    with pytest.raises(KeyboardInterrupt):
        checkpointed(tmp_path, **arguments).learn(total_epochs=3, callback=KillAt(cut, KeyboardInterrupt))
    resumed = BC.resume(tmp_path, None, draw(), device="cpu")
    assert resumed.num_timesteps == cut - cut % 3 - (3 if cut % 3 == 0 else 0)
    assert_raises(ValueError, "schedules depend on it", resumed.learn, total_epochs=4)
    resumed.learn(total_epochs=3)
    assert resumed.num_timesteps == whole.num_timesteps
    assert same_parameters(whole, resumed)
    again = BC.resume(tmp_path, None, draw(), device="cpu").learn(total_epochs=3)  # of a run that has ended
    assert same_parameters(whole, again)
    again.learn(total_batches=2, reset_num_timesteps=False)


def test_a_run_that_was_killed_before_its_first_checkpoint_is_resumed(tmp_path: Path, monkeypatch: Any) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine, "save_checkpoint", fail)
        assert_raises(KeyboardInterrupt, None, checkpointed(tmp_path).learn, total_epochs=2)
    assert checkpoint_steps(tmp_path) == []
    resumed = BC.resume(tmp_path, None, draw(), device="cpu").learn(total_epochs=2)
    assert same_parameters(resumed, make(batch_size=4).learn(total_epochs=2))


def test_a_second_call_is_refused_or_goes_on_but_loses_nothing(tmp_path: Path) -> None:
    agent = checkpointed(tmp_path).learn(total_batches=4)
    assert_raises(ValueError, "reset_num_timesteps=False", agent.learn, total_batches=4)
    assert agent.num_timesteps == 4
    agent.learn(total_batches=4, reset_num_timesteps=False)
    assert checkpoint_steps(tmp_path) == [6, 8]
    with torch.no_grad():
        next(agent.policy.parameters()).fill_(torch.nan)
    assert_raises(TrainingDivergedError, None, agent.learn, total_batches=4, reset_num_timesteps=False)
    good = BC.resume(tmp_path, None, draw(), device="cpu")
    assert all(parameter.isfinite().all() for parameter in good.policy.parameters())


def test_what_does_not_belong_together_is_not_resumed(tmp_path: Path) -> None:
    checkpointed(tmp_path).learn(total_batches=4)
    message = "^demonstrations is None: a run is resumed with those that it was started"
    assert_raises(ValueError, message, BC.resume, tmp_path, device="cpu")
    with pytest.raises(ValueError, match="validation: these are not those"):
        BC.resume(tmp_path, None, draw(), validation=draw(seed=2), device="cpu")
    assert checkpoint_steps(tmp_path) == [3, 4]
    (tmp_path / "checkpoint_4.zip").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="Passed over a bad checkpoint"):
        assert BC.resume(tmp_path, None, draw(), device="cpu").num_timesteps == 3


# ---- data on the disk
@pytest.mark.parametrize(
    "arguments", [{}, {"smoothing": "lin_0.2"}, {"kl_coef": 0.2, "reference": torch.tensor([0.5, 0.25, 0.25])}]
)
def test_a_memory_mapped_folder_trains_as_an_array_does(arguments: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(training_data, "BLOCK_BYTES", 1500)  # several blocks an epoch
    masks = np.ones((40, 3), dtype=bool)
    demonstrations = draw(weights=np.linspace(0.5, 2, 40), action_masks=masks)
    demonstrations.save_folder(tmp_path / "folder")
    mapped = Demonstrations.load(tmp_path / "folder")
    agents = [
        make(data, batch_size=8, validation_fraction=0.25, **arguments).learn(total_epochs=3)
        for data in (demonstrations, mapped)
    ]
    assert [agent._data.is_streamed for agent in agents if agent._data is not None] == [False, True]
    assert same_parameters(*agents)
    assert agents[0].fingerprints == agents[1].fingerprints


@pytest.mark.parametrize("arguments", [{}, {"kl_coef": 0.2, "reference": torch.tensor([0.5, 0.25, 0.25])}])
def test_targets_made_for_each_block_are_those_made_once(arguments: Any, monkeypatch: Any) -> None:
    data = draw(weights=np.linspace(0.5, 2, 40), action_masks=np.ones((40, 3), dtype=bool))
    once = make(data, batch_size=8, validation_fraction=0.25, **arguments).learn(total_epochs=3)
    monkeypatch.setattr(training_data, "TARGET_BYTES", 0)
    monkeypatch.setattr(training_data, "READ_BYTES", 300)  # several parts
    each = make(data, batch_size=8, validation_fraction=0.25, **arguments).learn(total_epochs=3)
    assert [agent._data._whole.target is None for agent in (once, each)] == [False, True]  # type: ignore[union-attr]
    assert same_parameters(once, each)
    assert once.measures.validation(0.0) == each.measures.validation(0.0)


BUILD = """
import resource
import numpy as np
from gymnasium import spaces
from rlsmooth.agents import BC
from rlsmooth.data import Demonstrations

def build(count):
    fields = {"observations": np.ones((count, 8), np.float32), "actions": np.arange(count) % 2}
    places = {"observation_space": spaces.Box(-np.inf, np.inf, (8,)), "action_space": spaces.Discrete(2)}
    data = Demonstrations(**fields, **places, episode_ends=np.array([count]))
    return BC("MlpPolicy", None, data, seed=0, device="cpu")

build(10).learn(total_batches=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
build(3_000_000)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (3_000_000 * 40))
"""


@pytest.mark.slow
def test_building_an_agent_takes_twice_the_data() -> None:
    found = subprocess.run([sys.executable, "-c", BUILD], capture_output=True, text=True, check=True).stdout
    assert float(found) < 2.2


@pytest.mark.parametrize("activation", [torch.nn.Tanh, torch.nn.ReLU])
def test_the_actor_is_called_as_modules_are(activation: Any) -> None:
    policy = make(policy_kwargs={"net_arch": [7, 5], "activation_fn": activation}).policy
    parts = [*policy.mlp_extractor.policy_net, policy.action_net]  # type: ignore[union-attr, misc]
    observations = torch.randn(9, *policy.observation_space.shape)  # type: ignore[misc]
    bare = actor_output(policy, observations)
    expected: Any = observations
    for part in parts:
        expected = part(expected)
    assert torch.equal(bare, expected)
    extractor: Any = policy.features_extractor
    for module in (extractor, extractor.flatten, policy.mlp_extractor.policy_net, *parts):  # type: ignore[union-attr]
        with torch.no_grad():
            handle = module.register_forward_hook(lambda module, inputs, output: output + 1)
            assert not torch.equal(actor_output(policy, observations), bare)
            handle.remove()
            handle = module.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
            assert not torch.equal(actor_output(policy, observations), bare)
            handle.remove()
    seen: list[type] = []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    actor_output(policy, observations)
    handle.remove()
    assert seen.count(torch.nn.Linear) == 3
    policy.action_net = torch.nn.Linear(5, 3)
    assert not torch.equal(actor_output(policy, observations), bare)


def test_blocks_are_the_same_on_the_disk_in_memory_and_when_resumed_elsewhere(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(training_data, "SHARD_BYTES", 40)
    monkeypatch.setattr(seeding.epoch_permutation, "__kwdefaults__", {"shard": None, "pool": 3})
    monkeypatch.setattr(training_data, "BLOCK_BYTES", 1500)
    draw().save_folder(tmp_path / "folder")
    mapped = Demonstrations.load(tmp_path / "folder")
    arguments: Any = {"batch_size": 8, "validation_fraction": 0.25}  # so that a view of some episodes is read
    in_memory = make(draw(), shuffle="blocks", **arguments).learn(total_epochs=2)
    monkeypatch.setattr(training_data, "memory_bytes", lambda: 100.0)
    streamed = make(mapped, **arguments)
    assert streamed.shuffle == "blocks"
    assert same_parameters(in_memory, streamed.learn(total_epochs=2))
    assert not same_parameters(in_memory, make(draw(), **arguments).learn(total_epochs=2))
    run = tmp_path / "run"
    cut = make(mapped, checkpoint_folder=run, checkpoint_every=3, **arguments)
    with pytest.raises(KeyboardInterrupt):
        cut.learn(total_batches=in_memory.num_timesteps, callback=KillAt(6, KeyboardInterrupt))
    monkeypatch.setattr(training_data, "memory_bytes", lambda: 1e12)
    resumed = BC.resume(run, None, mapped, device="cpu")
    assert resumed.shuffle == "blocks"
    assert same_parameters(in_memory, resumed.learn(total_batches=in_memory.num_timesteps))


def test_how_the_data_are_shuffled(tmp_path: Path, monkeypatch: Any) -> None:
    draw().save_folder(tmp_path / "folder")
    mapped = Demonstrations.load(tmp_path / "folder")
    assert make(mapped).shuffle == "full"
    monkeypatch.setattr(training_data, "memory_bytes", lambda: 100.0)
    assert make(draw()).shuffle == "full"  # it is in memory already
    assert make(mapped, shuffle="full").shuffle == "full"
    assert same_parameters(*(make(data, shuffle="blocks").learn(total_batches=3) for data in (draw(), mapped)))
    assert_raises(ValueError, "shuffle='some' is not known: choose one of 'full'", make, mapped, shuffle="some")
    asked: list[Any] = []  # for the sample of log lines, not what lies around each transition
    read = training_data.reading_ahead
    monkeypatch.setattr(
        training_data, "reading_ahead", lambda arrays, ranges: asked.append(ranges) or read(arrays, ranges)
    )
    assert torch.equal(make(mapped)._data.sample.observations, make(draw())._data.sample.observations)
    assert asked[0] == [(place, place + 1) for place in range(len(mapped))]
    monkeypatch.undo()
    assert 2**28 < training_data.memory_bytes() < 2**50


def test_an_epoch_reads_every_row_once_and_skips_to_any_update() -> None:
    agent = make(batch_size=6, gradient_accumulation=2)
    order = torch.randperm(40)
    updates = list(agent._data.updates(order, 6, 2))
    assert [[len(part.labels) for part in update] for update in updates] == [[6, 6], [6, 6], [6, 6], [4]]
    rows = torch.cat([part.observations for update in updates for part in update])  # type: ignore[misc]
    torch.testing.assert_close(rows, torch.as_tensor(draw().observations)[order])
    (last,) = agent._data.updates(order, 6, 2, skip=3)
    assert torch.equal(last[0].observations, updates[3][0].observations)  # type: ignore[arg-type]


# ---- warm starts
@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_an_sb3_algorithm_starts_where_cloning_ended(algorithm: Any) -> None:
    agent = BC("MlpPolicy", "CartPole-v1", cartpole_v1_noisy(), seed=0, device="cpu").learn(total_epochs=2)
    model = algorithm("MlpPolicy", "CartPole-v1", seed=1, device="cpu")
    critic = model.policy.value_net.weight.clone()
    agent.warm_start(model)
    observations = cartpole_v1().observations[:500]
    one, _ = agent.predict(observations, deterministic=True)
    two, _ = model.predict(observations, deterministic=True)
    assert np.array_equal(one, two)
    assert torch.equal(model.policy.value_net.weight, critic)
    model.learn(256)


def test_a_model_that_does_not_fit_is_not_warm_started() -> None:
    agent = BC("MlpPolicy", "CartPole-v1", cartpole_v1_noisy(), seed=0, device="cpu")
    with pytest.raises(ValueError, match="shape"):
        agent.warm_start(PPO("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [32, 32]}, device="cpu"))
    with pytest.raises(ValueError, match="activation_fn"):
        agent.warm_start(PPO("MlpPolicy", "CartPole-v1", policy_kwargs={"activation_fn": torch.nn.ReLU}, device="cpu"))
    assert_raises(ValueError, "architecture", agent.warm_start, DQN("MlpPolicy", "CartPole-v1", device="cpu"))
    assert_raises(ValueError, "observation_space", agent.warm_start, PPO("MlpPolicy", "Acrobot-v1", device="cpu"))
    assert_raises(TypeError, "PPO", agent.warm_start, torch.nn.Linear(1, 1))


def test_maskable_ppo_starts_from_a_maskable_agent() -> None:
    contrib = pytest.importorskip("sb3_contrib")
    from rlsmooth.data import record

    env = gym.make("rlsmooth.envs:rlsmooth/IdentityMasked-v0")
    expert: Any = env.unwrapped
    demonstrations = record(expert.expert_action, env, 10, seed=0)
    agent = BC("MaskableMlpPolicy", env, demonstrations, learning_rate=1e-2, seed=0, device="cpu").learn(total_epochs=5)
    model = contrib.MaskablePPO("MlpPolicy", env, device="cpu")
    agent.warm_start(model)
    masks = demonstrations.action_masks
    one, _ = agent.predict(demonstrations.observations, deterministic=True, action_masks=masks)
    two, _ = model.predict(demonstrations.observations, deterministic=True, action_masks=masks)
    assert np.array_equal(one, two)
    assert masks is not None
    with pytest.raises(ValueError, match=r"action_masks has shape \(2, \d+\), but each observation needs \d+ Booleans"):
        agent.predict(demonstrations.observations, action_masks=masks[:2])


def test_numbers_of_numpy_are_kept_as_plain_ones(tmp_path: Path) -> None:
    agent = make(max_grad_norm=np.float32(0.5), tensorboard_log=tmp_path / "log")
    assert type(agent.max_grad_norm) is float
    assert agent.tensorboard_log == str(tmp_path / "log")
    agent.save(tmp_path / "agent")
    assert BC.load(tmp_path / "agent.zip").max_grad_norm == 0.5
