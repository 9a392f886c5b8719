"""The behaviours that imitation's `tests/algorithms/test_bc.py` checks, of our `BC`.

Which behaviour is whose test, and what differs: docs/imitation-tests.md."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv

from rlsmooth.agents import BC
from rlsmooth.data import Demonstrations, cartpole_v1, record
from support import Counter, Trajectory, assert_raises, recorded, same_parameters

ENVIRONMENTS = ("CartPole-v1", "Pendulum-v1")


@dataclasses.dataclass
class TrajectoryWithRew(Trajectory):
    """imitation's, by its field names."""

    rews: Any


@pytest.fixture(scope="module")
def experts() -> dict[str, Demonstrations]:
    """Two episodes an environment: of the shipped expert, and of a controller that does next to nothing."""
    idle = record(lambda observation: -0.1 * observation[2:], "Pendulum-v1", 2, seed=0)
    return {"CartPole-v1": cartpole_v1().sample_episodes(2, seed=0), "Pendulum-v1": idle}


def as_given(data: Demonstrations, kind: str) -> Demonstrations:
    """The demonstrations by another way in: of trajectory objects as imitation has them, or of plain arrays."""
    spaces_of: dict[str, Any] = {"observation_space": data.observation_space, "action_space": data.action_space}
    batch, ends = data[:], data.episode_ends
    if kind == "arrays":
        return recorded(batch.observations, batch.actions, **spaces_of, ends=ends)
    if kind == "trajectories":
        states, after, rewards = np.asarray(batch.observations), np.asarray(batch.next_observations), batch.rewards
        parts = [slice(start, end) for start, end in zip(data.episode_starts, ends, strict=True)]
        seen = [np.vstack([states[rows], after[rows][-1:]]) for rows in parts]
        acts, rews = ([column[rows] for rows in parts] for column in (batch.actions, rewards))
        columns = zip(seen, acts, rews, strict=True)
        trajectories = [TrajectoryWithRew(*pair, None, True, rew) for *pair, rew in columns]
        return Demonstrations.from_imitation(trajectories, **spaces_of)
    return data


@given(name=st.sampled_from(ENVIRONMENTS), n_envs=st.integers(1, 10), size=st.integers(1, 50), parts=st.integers(1, 10))
@pytest.mark.parametrize("kind", ["recorded", "trajectories", "arrays"])
@settings(max_examples=5)
def test_an_agent_is_made_of_every_kind_of_expert_data(
    experts: dict[str, Demonstrations], name: str, n_envs: int, size: int, parts: int, kind: str
) -> None:
    data = as_given(experts[name], kind)
    agent = BC("MlpPolicy", make_vec_env(name, n_envs), data, batch_size=size, gradient_accumulation=parts, seed=0)
    assert agent.n_envs == n_envs
    assert agent.batches_per_epoch == -(-len(data) // (size * parts))
    assert np.array_equal(data.actions, experts[name].actions)
    assert np.array_equal(data.observations, experts[name].observations)  # type: ignore[arg-type]


@given(
    name=st.sampled_from(ENVIRONMENTS),
    n_envs=st.sampled_from([0, 1, 2, 3]),
    options=st.fixed_dictionaries(
        {"batch_size": st.integers(20, 50), "gradient_accumulation": st.integers(1, 10)},
        optional={"n_eval_episodes": st.integers(1, 2)},
    ),
    learning=st.fixed_dictionaries(
        {"log_interval": st.sampled_from([1, 2, 500])}
        | {"progress_bar": st.booleans(), "reset_num_timesteps": st.booleans()}
    ),
    length=st.tuples(st.sampled_from(["total_batches", "total_epochs"]), st.integers(1, 3)),
    counted=st.booleans(),
)
@settings(max_examples=8)
def test_an_agent_trains_under_every_option(
    experts: dict[str, Demonstrations], name: str, n_envs: int, options: Any, learning: Any, length: Any, counted: bool
) -> None:
    counter = Counter(10**9)
    env = make_vec_env(name, n_envs) if n_envs else None
    agent = BC("MlpPolicy", None, experts[name], eval_env=env, seed=0, **options)
    before = [parameter.clone() for parameter in agent.policy.parameters()]
    for _ in range(2):
        agent.learn(**dict([length]), callback=counter if counted else None, **learning)
    batches = length[1] * (agent.batches_per_epoch if length[0] == "total_epochs" else 1)
    assert agent.num_timesteps == batches * (1 if learning["reset_num_timesteps"] else 2)
    if counted:
        assert counter.n_calls == 2 * batches
    after = list(agent.policy.parameters())
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(parameter.isfinite().all() for parameter in after)


@pytest.mark.parametrize(("n_envs", "smoothing"), [(1, 0.0), (4, 0.1)])
def test_one_epoch_makes_the_return_clearly_better(n_envs: int, smoothing: float) -> None:
    env = make_vec_env("CartPole-v1", n_envs, seed=0)
    agent = BC("MlpPolicy", env, cartpole_v1(), smoothing=smoothing, batch_size=50, seed=1, device="cpu")
    novice, _ = evaluate_policy(agent.policy, env, 15, return_episode_rewards=True)
    agent.learn(total_epochs=1)
    trained, _ = evaluate_policy(agent.policy, env, 15, return_episode_rewards=True)
    gain = np.mean(trained) - np.mean(novice)
    assert gain > 50
    test = stats.permutation_test(
        (novice, trained), lambda x, y: np.mean(x) - np.mean(y), alternative="less", n_resamples=2000, rng=0
    )
    assert test.pvalue < 0.05


def test_two_half_batches_are_one_batch() -> None:
    data = cartpole_v1().sample_episodes(5, seed=0)
    pair = [
        BC("MlpPolicy", None, data, batch_size=size, gradient_accumulation=parts, seed=7, device="cpu")
        for size, parts in ((6, 1), (3, 2))
    ]
    for step in range(8):
        for agent in pair:
            agent.learn(total_batches=1, reset_num_timesteps=step == 0)
        torch.testing.assert_close(*(agent.policy.state_dict() for agent in pair), atol=1e-5, rtol=1e-5)


def test_a_saved_agent_has_the_same_parameters(tmp_path: Path) -> None:
    agent = BC("MlpPolicy", None, cartpole_v1(), seed=0, device="cpu").learn(total_batches=3)
    loaded = BC.load(agent.save(tmp_path / "policy.zip"), device="cpu")
    assert same_parameters(loaded, agent)
    observations: Any = cartpole_v1()[:50].observations
    one, other = (each.predict(observations, deterministic=True)[0] for each in (agent, loaded))
    assert np.array_equal(one, other)


def test_dict_observations_with_a_policy_that_is_built_already() -> None:
    env = DummyVecEnv([lambda: SimpleMultiObsEnv(channel_last=False)] * 2)
    assert isinstance(env.observation_space, spaces.Dict)
    policy = MultiInputActorCriticPolicy(env.observation_space, env.action_space, lambda _: 0.001)
    env.action_space.seed(0)
    data = record(lambda seen: np.array([env.action_space.sample() for _ in seen["vec"]]), env, 50, seed=0)
    before = [parameter.clone() for parameter in policy.action_net.parameters()]
    agent = BC(policy, env, data, seed=0).learn(total_epochs=1)
    assert agent.policy is policy
    assert any(not torch.equal(*pair) for pair in zip(before, policy.action_net.parameters(), strict=True))


def test_weight_decay_is_the_optimisers_and_equals_l2_coef() -> None:
    """imitation refuses `weight_decay`. Here it is an optimiser's argument as in SB3; of SGD it equals `l2_coef`."""
    found = []
    for decay, l2_coef in ((0.1, 0.0), (0.0, 0.1)):
        optimizer = {"optimizer_class": torch.optim.SGD, "optimizer_kwargs": {"weight_decay": decay}}
        agent = BC("MlpPolicy", None, cartpole_v1(), l2_coef=l2_coef, policy_kwargs=optimizer, seed=0, device="cpu")
        # Actor and features: SGD leaves the critic, which has no gradient, as it is; l2_coef counts it in.
        learned = agent.learn(total_batches=20).policy
        found.append({n: p for n, p in learned.named_parameters() if not n.startswith(("value", "mlp_extractor.val"))})
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    "duration",
    [{"total_epochs": 1, "total_batches": 10}, {}, {"total_epochs": None, "total_batches": None}],
    ids=["both", "neither", "both None"],
)
def test_a_wrong_duration_is_an_error(duration: dict[str, Any]) -> None:
    agent = BC("MlpPolicy", None, cartpole_v1(), seed=0, device="cpu")
    assert_raises(ValueError, "exactly one", agent.learn, **duration)


def test_no_data_is_an_error_where_it_enters() -> None:
    """imitation finds out when a loader stops to give batches; here whole sets enter, and an empty one does not."""
    data = cartpole_v1()
    nothing: dict[str, Any] = {"observation_space": data.observation_space, "action_space": data.action_space}
    with pytest.raises(ValueError, match="at least one"):
        Demonstrations.from_arrays(np.zeros((0, 4), np.float32), [], episode_ends=[], **nothing)
    assert_raises(ValueError, "no trajectories", Demonstrations.from_imitation, [], **nothing)
    with pytest.raises(ValueError, match="nothing to learn from"):
        BC("MlpPolicy", tuple(nothing.values()), None, seed=0).learn(total_batches=1)
    loader: Any = iter([{"obs": np.zeros((5, 4)), "acts": np.zeros(5)}])
    assert_raises(TypeError, "from_imitation", BC, "MlpPolicy", None, loader)


@pytest.mark.parametrize("batches", [1, 2, 6, 20])
def test_batches_go_round_the_data_as_often_as_asked(batches: int, experts: dict[str, Demonstrations]) -> None:
    counter = Counter(10**9)
    agent = BC("MlpPolicy", None, experts["CartPole-v1"], batch_size=400, seed=0)
    assert agent.batches_per_epoch == 3
    agent.learn(total_batches=batches, callback=counter)
    assert counter.n_calls == batches
