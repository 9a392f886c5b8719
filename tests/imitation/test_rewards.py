"""The behaviours that imitation's `tests/rewards/` check, of our reward networks and `LearnedRewardVecEnv`.

Which behaviour is whose test, and what differs: docs/imitation-tests.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn

from rlsmooth.agents import (
    GAIL,
    LearnedRewardVecEnv,
    RewardNet,
    ShapedRewardNet,
    Transitions,
    load_reward_net,
    save_reward_net,
)
from rlsmooth.data import record
from rlsmooth.training import SafeFileError
from support import assert_raises
from trainers import transitions_of

ENVIRONMENTS = ["FrozenLake-v1", "CartPole-v1", "Pendulum-v1"]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"normalize_inputs": False},
    {"use_next_state": True},
    {"use_done": True},
    {"use_next_state": True, "use_action": False},
]
IMAGES = spaces.Box(0, 255, (3, 64, 64), np.uint8)
each_option = pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options) or "plain")
each_shape = pytest.mark.parametrize("is_shaped", [False, True], ids=["reward", "shaped"])


def spaces_of(env_id: str) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    if env_id == "images":
        return IMAGES, spaces.Discrete(6)
    env = gym.make(env_id)
    return env.observation_space, env.action_space


def net_of(env_id: str, is_shaped: bool, **options: Any) -> RewardNet | ShapedRewardNet:
    net = RewardNet(*spaces_of(env_id), net_arch=(3,), **options)
    return ShapedRewardNet(net, gamma=0.99, potential_net_arch=(3,)) if is_shaped else net


def sampled(observation_space: Any, action_space: Any, count: int = 10) -> Transitions:
    rows = transitions_of(observation_space, action_space, count)
    return rows._replace(terminated=torch.arange(count) == count - 1, absorbing=None)


@each_option
@each_shape
@pytest.mark.parametrize("env_id", [*ENVIRONMENTS, "images"])
def test_every_net_scores_every_environment(env_id: str, is_shaped: bool, options: dict[str, Any]) -> None:
    rows = sampled(*spaces_of(env_id))
    net = net_of(env_id, is_shaped, **options)
    score = net(rows)
    assert score.shape == (10,)
    assert score.dtype == torch.float32
    assert score.isfinite().all()


def test_a_net_that_reads_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="needs an input"):
        RewardNet(IMAGES, spaces.Discrete(14), use_state=False, use_action=False)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 255, (48, 40, 3), np.float32),
        spaces.Box(0, 254, (48, 40, 3), np.uint8),
        spaces.Box(1, 255, (48, 40, 3), np.uint8),
        spaces.Box(0, 255, (48, 40), np.uint8),
    ],
    ids=["floats", "up to 254", "from 1", "two axes"],
)
def test_what_is_no_image_is_flattened(space: spaces.Box) -> None:
    """imitation's CnnRewardNet refuses these. Here, as in SB3's policies, they are flat vectors to the net."""
    net = ShapedRewardNet(RewardNet(space, spaces.Discrete(14)))
    assert net(sampled(space, spaces.Discrete(14))).isfinite().all()
    assert not any(isinstance(part, nn.Conv2d) for part in net.modules())
    images = RewardNet(IMAGES, spaces.MultiDiscrete([2, 2]))  # not Discrete alone, as imitation's
    assert images(sampled(IMAGES, spaces.MultiDiscrete([2, 2]))).shape == (10,)
    assert any(isinstance(part, nn.Conv2d) for part in images.modules())


@pytest.mark.parametrize("channels_last", [True, False])
def test_channels_may_come_last(channels_last: bool) -> None:
    size = {"screen_height": 40, "screen_width": 40, "n_channels": 1}

    def env() -> gym.Env[Any, Any]:
        return FakeImageEnv(**size, discrete=True, channel_first=not channels_last)

    data = record(lambda observation: 1, env(), 2, seed=0)
    model = PPO("CnnPolicy", env(), n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu")
    trainer = GAIL(data, model, demo_batch_size=8, seed=0).learn(16)
    assert trainer.rounds == 1
    assert trainer.expert.observations.shape[1:] == (1, 40, 40)  # type: ignore[union-attr]
    assert all(parameter.isfinite().all() for parameter in trainer.reward_net.parameters())


@each_shape
@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_a_trainers_reward_is_an_array_of_numbers(env_id: str, is_shaped: bool) -> None:
    model = PPO("MlpPolicy", env_id, n_steps=16, batch_size=16, seed=0, device="cpu")
    model.action_space.seed(0)
    data = record(lambda observation: model.action_space.sample(), env_id, 1, seed=0)
    trainer = GAIL(data, model, net_of(env_id, is_shaped), seed=0)
    rows = sampled(model.observation_space, model.action_space)
    found = trainer.reward_function(*(np.asarray(part) for part in rows[:4]))
    assert isinstance(found, np.ndarray)
    assert found.shape == (10,)
    assert found.dtype == np.float32


@pytest.mark.parametrize("env_id", ["FrozenLake-v1", "images"])
def test_the_reward_without_its_shaping_is_at_hand(env_id: str) -> None:
    net = net_of(env_id, is_shaped=True)
    assert isinstance(net, ShapedRewardNet)
    rows = sampled(*spaces_of(env_id))
    net.eval()
    assert isinstance(net.reward, RewardNet)
    assert not torch.allclose(net.reward(rows), net(rows))


@each_option
@each_shape
@pytest.mark.parametrize("env_id", [*ENVIRONMENTS, "images"])
def test_a_net_that_was_saved_scores_the_same(
    env_id: str, is_shaped: bool, options: dict[str, Any], tmp_path: Path
) -> None:
    net = net_of(env_id, is_shaped, **options)
    rows = sampled(*spaces_of(env_id))
    net(rows)  # moves the running statistics
    net.eval()
    path = tmp_path / "reward_net.zip"
    save_reward_net(net, path)
    loaded = load_reward_net(path).eval()
    assert type(loaded) is type(net)
    assert torch.equal(loaded(rows), net(rows))
    base, other = (each.reward if isinstance(each, ShapedRewardNet) else each for each in (net, loaded))
    assert isinstance(base, RewardNet)
    assert isinstance(other, RewardNet)
    assert (base.observation_space, base.action_space) == (other.observation_space, other.action_space)
    assert torch.equal(other(rows), base(rows))


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save(net_of("CartPole-v1", is_shaped=False), tmp_path / "net.pt")  # imitation's way: a pickle
    assert_raises(SafeFileError, None, load_reward_net, tmp_path / "net.pt")


def test_potentials_of_states_with_two_axes() -> None:
    """imitation once handed them on without flattening them."""
    space = spaces.Box(-1, 1, (5, 5))
    net = ShapedRewardNet(RewardNet(space, spaces.Discrete(2)))
    assert net(sampled(space, spaces.Discrete(2), 1)).shape == (1,)


class Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, rows: Transitions) -> Tensor:
        return torch.full((len(rows.actions),), self.value)


def test_the_shaped_reward_is_gamma_h_after_less_h_before() -> None:
    net = ShapedRewardNet(RewardNet(*spaces_of("CartPole-v1")), gamma=0.9)
    rows = sampled(*spaces_of("CartPole-v1"))._replace(terminated=torch.zeros(10, dtype=torch.bool))
    with torch.no_grad():
        for part, value in ((net.reward, 0.0), (net.potential, 10.0)):
            for parameter in part.layers[-1].parameters():
                parameter.zero_()
            part.layers[-1].bias.fill_(value)  # type: ignore[operator]
        torch.testing.assert_close(net(rows), torch.full((10,), -1.0))
        ended = net(rows._replace(terminated=torch.ones(10, dtype=torch.bool)))
        torch.testing.assert_close(ended, torch.full((10,), -10.0))  # nothing lies behind an end


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_a_reward_without_parameters(env_id: str) -> None:
    env = LearnedRewardVecEnv(make_vec_env(env_id, 2, seed=0), Constant(3.0))
    env.reset()
    _, rewards, _, _ = env.step(np.stack([env.action_space.sample() for _ in range(2)]))
    assert rewards.tolist() == [3, 3]


@pytest.mark.parametrize("normalize_inputs", [True, False])
def test_a_net_learns_a_reward_by_regression(normalize_inputs: bool) -> None:
    data = record(lambda observation: -observation[2:] / 8, "Pendulum-v1", 2, seed=0)
    batch = data[:]
    states, after = (torch.as_tensor(np.asarray(part)) for part in (batch.observations, batch.next_observations))
    rows = Transitions(states, torch.as_tensor(batch.actions), after, torch.zeros(len(data), dtype=torch.bool))
    rewards = torch.as_tensor(batch.rewards, dtype=torch.float32)
    torch.manual_seed(0)
    net = RewardNet(data.observation_space, data.action_space, normalize_inputs=normalize_inputs)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(200):
        loss = (net(rows) - rewards).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    net.eval()
    assert torch.equal(net(rows), net(rows))  # acting moves no statistics


class ByPlace:
    """1 in the first environment, 2 in the second and so on."""

    def __call__(self, observations: Any, actions: Any, next_observations: Any, terminated: Any) -> Any:
        return np.arange(1, len(actions) + 1, dtype=np.float32)


def test_a_rewarded_environment_pays_the_new_reward_and_tells_the_old_one() -> None:
    env = make_vec_env("Pendulum-v1", 3, seed=0)
    env.action_space.seed(0)
    wrapped = LearnedRewardVecEnv(env, ByPlace())

    def act(seen: Any) -> Any:
        return np.stack([env.action_space.sample() for _ in seen])

    true, learned = (record(act, each, 9, seed=0) for each in (env, wrapped))
    assert true.episode_returns().max() < 0
    assert sorted(set(learned.episode_returns().tolist())) == [200, 400, 600]
    wrapped.reset()
    for _ in range(200):
        _, rewards, _, infos = wrapped.step(act(range(3)))
        assert rewards.tolist() == [1, 2, 3]
        assert all(info["original_env_rew"] < 0 for info in infos)
    assert all(info["episode"]["r"] < 0 for info in infos)  # SB3's Monitor keeps the true return
    assert wrapped.finished_returns[-3:] == [200, 400, 600]


@pytest.mark.parametrize("shape", [(2,), (3, 1)], ids=["too few", "two axes"])
def test_a_reward_of_another_length_is_an_error(shape: Any) -> None:
    env = LearnedRewardVecEnv(make_vec_env("CartPole-v1", 3, seed=0), lambda *_: np.zeros(shape, np.float32))
    env.reset()
    assert_raises(ValueError, "reward", env.step, np.zeros(3, dtype=np.int64))


def test_an_ensemble_is_a_module_of_ones_own() -> None:
    """imitation ships ensembles and wrappers for learning from preferences; here any module of transitions serves."""

    class Ensemble(nn.Module):
        def __init__(self, members: list[RewardNet]) -> None:
            super().__init__()
            self.members = nn.ModuleList(members)

        def forward(self, rows: Transitions) -> Tensor:
            return torch.stack([member(rows) for member in self.members]).mean(0)

    model = PPO("MlpPolicy", DummyVecEnv([lambda: gym.make("Pendulum-v1")]), n_steps=16, batch_size=16, device="cpu")
    data = record(lambda observation: -observation[2:] / 8, "Pendulum-v1", 1, seed=0)
    members = [RewardNet(model.observation_space, model.action_space) for _ in range(3)]
    first, second = (next(member.parameters()) for member in members[:2])
    assert not torch.allclose(first, second)
    trainer = GAIL(data, model, Ensemble(members), demo_batch_size=8, seed=0).learn(32)
    assert trainer.rounds == 2
    scores = torch.stack([member.eval()(sampled(model.observation_space, model.action_space)) for member in members])
    assert scores.std(0).min().item() > 0
