"""GAIL and AIRL on the disk: trainers, reward networks, and runs that are killed and resumed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize
from torch import nn

from rlsmooth.agents import (
    AIRL,
    GAIL,
    ExactCheckpointCallback,
    LearnedRewardVecEnv,
    RewardNet,
    ShapedRewardNet,
    SmoothedPPO,
    Transitions,
    load_checkpoint,
    load_reward_net,
    save_reward_net,
)
from rlsmooth.agents.adversarial.reward_envs import install
from rlsmooth.agents.adversarial.trainer import AdversarialImitation
from rlsmooth.data import Demonstrations, record
from rlsmooth.training import SafeFileError
from support import (
    KillAt,
    KilledError,
    assert_equal,
    assert_raises,
    forge,
    put,
    recorded,
    same_parameters,
    same_tensors,
)
from trainers import cartpole_ppo as ppo
from trainers import expert, transitions_of

MASKED = "rlsmooth.envs:rlsmooth/IdentityMasked-v0"
SMALL = {"net_arch": [16]}


def pendulum() -> Demonstrations:
    generator = np.random.default_rng(0)
    states = generator.normal(size=(201, 3)).clip(-1, 1).astype(np.float32)
    env, actions = make_vec_env("Pendulum-v1"), generator.uniform(-2, 2, (200, 1)).astype(np.float32)
    return recorded(states[:-1], actions, env.observation_space, env.action_space, next_observations=states[1:])


def a2c() -> Any:
    return A2C("MlpPolicy", make_vec_env("CartPole-v1", n_envs=2, seed=0), n_steps=16, seed=0, device="cpu")


def normalised(*, norm_reward: bool = False) -> Any:
    env = VecNormalize(make_vec_env("CartPole-v1", n_envs=2, seed=0), norm_reward=norm_reward)
    return PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=2, seed=0, device="cpu")


def masked() -> Any:
    env = make_vec_env(MASKED, n_envs=2, seed=0)
    return MaskablePPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu")


def dqn() -> Any:
    env = make_vec_env("CartPole-v1", n_envs=2, seed=0)
    return DQN("MlpPolicy", env, learning_starts=100, buffer_size=2000, seed=0, device="cpu", policy_kwargs=dict(SMALL))


def sac() -> Any:
    env = make_vec_env("Pendulum-v1", seed=0)
    given: dict[str, Any] = {"learning_starts": 50, "buffer_size": 2000, "seed": 0, "device": "cpu"}
    return SAC("MlpPolicy", env, train_freq=4, policy_kwargs=dict(SMALL), **given)


def mask_data() -> Demonstrations:
    return record(masked(), MASKED, 3, seed=0)


def assert_same(one: AdversarialImitation, other: AdversarialImitation) -> None:
    assert same_parameters(one, other)
    assert same_tensors(one.reward_net.state_dict(), other.reward_net.state_dict())
    assert one.rounds == other.rounds
    assert one.draws.bit_generator.state == other.draws.bit_generator.state
    assert one.gen_algo.num_timesteps == other.gen_algo.num_timesteps


@pytest.mark.parametrize(
    ("trainer_class", "build", "data"),
    [
        (GAIL, ppo, expert),
        (GAIL, lambda: ppo(SmoothedPPO, target_entropy_frac=0.5), expert),
        (GAIL, normalised, expert),
        pytest.param(GAIL, dqn, expert, marks=pytest.mark.slow),
        (AIRL, ppo, expert),
        (AIRL, masked, mask_data),
        pytest.param(AIRL, sac, pendulum, marks=pytest.mark.slow),
    ],
    ids=["ppo", "smoothed", "normalised", "dqn", "airl-ppo", "airl-masked", "airl-sac"],
)
def test_a_file_brings_all_back(trainer_class: Any, build: Any, data: Any, tmp_path: Path) -> None:
    given = {"demo_batch_size": 32, "gen_train_timesteps": 128, "real_target": 0.9, "seed": 3}
    trainer = trainer_class(data(), build(), **given).learn(256)
    path = trainer.save(tmp_path / "new" / "trainer")
    assert path.name == "trainer.zip"
    generator, demonstrations = build(), data()
    before = torch.get_rng_state()
    loaded = trainer_class.load(tmp_path / "new" / "trainer", demonstrations, generator)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(loaded, trainer)
    assert loaded.arguments == trainer.arguments
    assert_equal(loaded.optimizer.state_dict(), trainer.optimizer.state_dict())
    rows, _ = trainer.expert.sample(8, np.random.default_rng(0), torch.device("cpu"))
    arrays = (rows.observations.numpy(), rows.actions.numpy(), rows.next_observations.numpy(), np.zeros(8, bool))
    np.testing.assert_array_equal(loaded.predict_reward(*arrays), trainer.predict_reward(*arrays))
    if isinstance(generator, SAC):
        assert torch.equal(generator.log_ent_coef, trainer.gen_algo.log_ent_coef)
    normalizer = generator.get_vec_normalize_env()
    if normalizer is not None:
        np.testing.assert_array_equal(normalizer.obs_rms.mean, trainer.gen_algo.get_vec_normalize_env().obs_rms.mean)
    loaded.learn(128, reset_num_timesteps=False)
    assert (loaded.rounds, generator.num_timesteps) == (3, 384)


class Own(nn.Module):
    """A network that files can't describe."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, rows: Transitions) -> torch.Tensor:
        assert isinstance(rows.observations, torch.Tensor)
        assert rows.absorbing is not None
        return self.layer(rows.observations)[:, 0].masked_fill(rows.absorbing, 0.0)


def test_what_is_the_writers_own_is_asked_for(tmp_path: Path) -> None:
    class OwnAdam(torch.optim.Adam):
        """Not in the table."""

    trainer = GAIL(expert(), ppo(), Own(), disc_opt_cls=OwnAdam, demo_batch_size=32, seed=0).learn(128)
    path = trainer.save(tmp_path / "trainer")
    message, custom = r"custom_objects=\{'disc_opt_cls': OwnAdam\}", {"disc_opt_cls": OwnAdam}
    assert_raises(SafeFileError, message, GAIL.load, path, expert(), ppo(), Own())
    assert_raises(SafeFileError, "reward_net=", GAIL.load, path, expert(), ppo(), custom_objects=custom)
    net = RewardNet(trainer.gen_algo.observation_space, trainer.gen_algo.action_space)
    assert_raises(SafeFileError, "does not fit RewardNet", GAIL.load, path, expert(), ppo(), net, custom_objects=custom)
    loaded = GAIL.load(path, expert(), ppo(), Own(), custom_objects=custom)
    assert_same(loaded, trainer)
    assert type(loaded.optimizer) is OwnAdam
    assert loaded.optimizer.param_groups[0]["lr"] == 1e-3
    faster = GAIL.load(path, expert(), ppo(), Own(), custom_objects={**custom, "disc_learning_rate": 0.25})
    assert faster.optimizer.param_groups[0]["lr"] == 0.25


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = GAIL(expert(), ppo(), demo_batch_size=32, seed=0).learn(128).save(tmp_path / "trainer")
    assert_raises(SafeFileError, "is of GAIL: use that class, not AIRL", AIRL.load, path, expert(), ppo())
    with pytest.raises(SafeFileError, match="has a PPO, gen_algo is a A2C"):
        GAIL.load(path, expert(), A2C("MlpPolicy", "CartPole-v1", device="cpu"))
    assert_raises(SafeFileError, "does not fit", GAIL.load, path, expert(), ppo(policy_kwargs={"net_arch": [8]}))
    assert_raises(SafeFileError, "wrap it as before", GAIL.load, path, expert(), normalised())
    assert_raises(ValueError, "gen_algo", GAIL.load, path, expert(), PPO("MlpPolicy", "Pendulum-v1", device="cpu"))
    assert_raises(SafeFileError, "does not exist", GAIL.load, tmp_path / "nothing", expert(), ppo())


def test_forged_files_are_refused(tmp_path: Path) -> None:
    path = GAIL(expert(), ppo(), demo_batch_size=32, seed=0).save(tmp_path / "trainer")
    whole = path.read_bytes()
    changes: list[tuple[tuple[str, ...], Any]] = [
        (("trainer", "arguments", "seed"), "x"),
        (("trainer", "arguments", "extra"), 1),
        (("trainer", "net", "arguments", "net_arch"), 3),
        (("trainer", "net", "kind"), "other"),
        (("trainer", "draws"), {}),
        (("trainer", "rounds"), None),
        (("trainer", "rounds"), float("1e999")),
        (("trainer", "optimizer"), {}),
        (("trainer",), []),
        (("spaces",), []),
        (("generator",), 3),
        (("generator", "attributes"), {"policy": 1}),
    ]
    for keys, value in changes:
        path.write_bytes(whole)
        forge(path, lambda head, _, keys=keys, value=value: put(head["config"], keys, value))
        assert_raises(SafeFileError, None, GAIL.load, path, expert(), ppo())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer_class", "build", "data", "env"),
    [
        (GAIL, lambda: ppo(SmoothedPPO, target_entropy_frac=0.5), expert, "CartPole-v1"),
        (GAIL, a2c, expert, "CartPole-v1"),
        (GAIL, lambda: normalised(norm_reward=True), expert, "CartPole-v1"),
        (GAIL, dqn, expert, "CartPole-v1"),
        (AIRL, masked, mask_data, MASKED),
        pytest.param(AIRL, sac, pendulum, "Pendulum-v1", marks=pytest.mark.slow),
    ],
    ids=["smoothed", "a2c", "normalised", "dqn", "airl-masked", "airl-sac"],
)
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(
    trainer_class: Any, build: Any, data: Any, env: str, tmp_path: Path
) -> None:
    # More rows than a round has, so that older ones count too.
    given = {"demo_batch_size": 32, "gen_train_timesteps": 128, "gen_replay_buffer_capacity": 200, "seed": 3}
    whole = trainer_class(data(), build(), **given).learn(640)
    cut = trainer_class(data(), build(), **given)
    assert_raises(KilledError, None, cut.learn, 640, [ExactCheckpointCallback(100, tmp_path), KillAt(420)])

    def env_again() -> Any:
        venv = make_vec_env(env, n_envs=whole.gen_algo.n_envs, seed=9)
        return VecNormalize(venv) if whole.gen_algo.get_vec_normalize_env() else venv

    run = trainer_class.resume(tmp_path, data(), env_again(), device="cpu")
    assert run.is_exact
    assert 0 < run.remaining_timesteps < 640
    run.trainer.learn(run.remaining_timesteps, run.callback, reset_num_timesteps=False)
    assert_same(run.trainer, whole)
    np.testing.assert_array_equal(run.trainer.generated.observations, whole.generated.observations)
    finished = trainer_class.resume(tmp_path, data(), env_again(), device="cpu")
    assert (finished.remaining_timesteps, finished.total_timesteps) == (0, 640)
    assert_same(finished.trainer, whole)


def test_another_run_is_not_resumed(tmp_path: Path) -> None:
    GAIL(expert(), ppo(), demo_batch_size=32, seed=0).learn(128, ExactCheckpointCallback(64, tmp_path / "gail"))
    ppo().learn(128, ExactCheckpointCallback(64, tmp_path / "ppo"))
    env = make_vec_env("CartPole-v1", n_envs=2)
    assert_raises(SafeFileError, "is of GAIL", AIRL.resume, tmp_path / "gail", expert(), env, device="cpu")
    assert_raises(SafeFileError, "without a discriminator", GAIL.resume, tmp_path / "ppo", expert(), env, device="cpu")


# ---- reward networks, and environments with a learned reward
BOX = spaces.Box(-1, 1, (3,))


NETS: dict[str, Any] = {
    "plain": lambda: RewardNet(BOX, spaces.Discrete(4)),
    "all-inputs": lambda: RewardNet(BOX, spaces.MultiBinary(3), use_next_state=True, use_done=True, net_arch=[8]),
    "no-norm": lambda: RewardNet(BOX, spaces.MultiDiscrete([2, 3]), normalize_inputs=False, activation_fn=nn.Tanh),
    "action-only": lambda: RewardNet(spaces.Discrete(3), spaces.Box(-2, 2, (2,)), use_state=False),
    "dict": lambda: RewardNet(spaces.Dict({"a": BOX, "b": spaces.Discrete(2)}), spaces.Discrete(2)),
    "image": lambda: RewardNet(
        spaces.Box(0, 255, (3, 36, 36), np.uint8), spaces.Discrete(2), features_extractor_kwargs={"features_dim": 8}
    ),
    "shaped": lambda: ShapedRewardNet(
        RewardNet(BOX, spaces.Discrete(4), net_arch=[4]), gamma=0.9, potential_net_arch=[5, 6]
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_a_network_comes_back(name: str, tmp_path: Path) -> None:
    net: RewardNet | ShapedRewardNet = NETS[name]()
    base = net.reward if isinstance(net, ShapedRewardNet) else net
    rows = transitions_of(base.observation_space, base.action_space, 6)
    rows = rows._replace(terminated=torch.arange(6) % 2 == 0, absorbing=torch.arange(6) > 4)
    net(rows)  # statistics that are not those of a new network
    path = save_reward_net(net, tmp_path / "new" / "reward")
    assert path == tmp_path / "new" / "reward.zip"
    before = torch.get_rng_state()
    loaded = load_reward_net(tmp_path / "new" / "reward")
    assert torch.equal(torch.get_rng_state(), before)
    assert type(loaded) is type(net)
    assert not loaded.training
    assert torch.equal(loaded(rows), net.eval()(rows))


class Twice(FlattenExtractor):
    """An extractor of the user's own."""

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(observations)


def test_what_is_the_writers_own_is_asked_for_of_a_net(tmp_path: Path) -> None:
    net = RewardNet(BOX, spaces.Discrete(4), features_extractor_class=Twice)
    path = save_reward_net(net, tmp_path / "reward.zip")
    assert_raises(SafeFileError, "Twice", load_reward_net, path)
    loaded = load_reward_net(path, custom_objects={"features_extractor_class": Twice})
    rows = transitions_of(BOX, spaces.Discrete(4))
    assert torch.equal(loaded(rows), net.eval()(rows))
    assert isinstance(loaded, RewardNet)
    assert isinstance(loaded.extractor, BaseFeaturesExtractor)
    other: Any = nn.Linear(3, 1)
    assert_raises(TypeError, "pass a RewardNet", save_reward_net, other, tmp_path / "other")


def test_forged_and_foreign_networks_are_refused(tmp_path: Path) -> None:
    path = save_reward_net(NETS["shaped"](), tmp_path / "reward")
    whole = path.read_bytes()
    assert_raises(SafeFileError, "does not exist", load_reward_net, tmp_path / "nothing")
    for keys, value in {
        ("config", "kind"): "other",
        ("config", "gamma"): 2.0,
        ("config", "potential_net_arch"): [5],
        ("config", "arguments", "net_arch"): "x",
        ("config", "arguments", "activation_fn"): "os.system",
        ("config", "arguments", "observation_space"): {"type": "Box"},
        ("config", "arguments", "unknown"): 1,
        ("config", "arguments"): None,
        ("format",): "rlsmooth-agent",
    }.items():
        path.write_bytes(whole)
        forge(path, lambda head, _, keys=keys, value=value: put(head, keys, value))
        assert_raises(SafeFileError, None, load_reward_net, path)


class Counter(gym.Env[Any, Any]):
    """The observation counts the steps; ends after 3, or is cut off after 2 if `cut`; pays 7."""

    def __init__(self, cut: bool = False) -> None:
        self.observation_space, self.action_space = spaces.Box(0, 9, (1,)), spaces.Discrete(2)
        self.cut, self.steps = cut, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return np.full(1, self.steps, np.float32), 7.0, self.steps == 3, self.cut and self.steps == 2, {}


def test_the_function_gets_what_happened_and_its_rewards_are_paid() -> None:
    seen: list[Any] = []

    def reward(observations: Any, actions: Any, after: Any, terminated: Any) -> Any:
        seen.append([np.array(part).reshape(-1).tolist() for part in (observations, actions, after, terminated)])
        return observations[:, 0] + 0.5

    for cut in (False, True):
        seen.clear()
        env = LearnedRewardVecEnv(make_vec_env(lambda cut=cut: Counter(cut), 1), reward)
        env.reset()
        paid, infos = [], []
        for _ in range(4):
            _, rewards, _, info = env.step(np.array([1]))
            assert rewards.dtype == np.float32
            paid.append(float(rewards[0]))
            infos.append(info[0])
        length = 2 if cut else 3
        assert paid == [step % length + 0.5 for step in range(4)]
        # The last observation of an episode, not the first of the next; a time limit is no end.
        assert seen[length - 1] == [[length - 1.0], [1], [float(length)], [not cut]]
        assert seen[length][0] == [0.0]
        assert env.finished_returns == [sum(paid[:length])] * (4 // length)
        assert [info["original_env_rew"] for info in infos] == [7.0] * 4
        assert infos[length - 1]["episode"]["r"] == 7.0 * length  # Monitor's is the true return


def test_networks_are_taken_too_and_wrong_rewards_refused() -> None:
    net = RewardNet(spaces.Box(0, 9, (1,)), spaces.Discrete(2))
    env = LearnedRewardVecEnv(make_vec_env(Counter, 2), net)
    env.reset()
    _, rewards, _, _ = env.step(np.array([0, 1]))
    with torch.no_grad():
        nothing = torch.zeros(2, dtype=torch.bool)
        rows = Transitions(torch.zeros(2, 1), torch.tensor([0, 1]), torch.ones(2, 1), nothing, nothing)
        np.testing.assert_allclose(rewards, net(rows), rtol=1e-6)
    for wrong in (np.zeros(3, np.float32), np.zeros((2, 1)), np.zeros(2, np.int64), 1.0):
        env = LearnedRewardVecEnv(make_vec_env(Counter, 2), lambda *_, wrong=wrong: wrong)
        env.reset()
        assert_raises(ValueError, "one floating-point number for each environment", env.step, np.array([0, 1]))
    no_function: Any = 3
    assert_raises(TypeError, "reward is a int", LearnedRewardVecEnv, make_vec_env(Counter, 2), no_function)


@pytest.mark.parametrize("is_shaped", [False, True])
def test_an_end_is_worth_nothing_where_it_is_asked_for(is_shaped: bool) -> None:
    plain = RewardNet(spaces.Box(0, 9, (1,)), spaces.Discrete(2), normalize_inputs=False)
    net = ShapedRewardNet(plain) if is_shaped else plain
    rewards = []
    for absorbing_is_zero in (False, True):
        env = LearnedRewardVecEnv(make_vec_env(Counter, 2), net, absorbing_is_zero=absorbing_is_zero)
        env.reset()
        rewards.append(env.step(np.array([0, 1]))[1])
    nothing = torch.zeros(1, dtype=torch.bool)
    with torch.no_grad():
        absorbing = net(Transitions(torch.ones(1, 1), torch.tensor([1]), torch.ones(1, 1), nothing, ~nothing)).item()
    assert absorbing != 0
    np.testing.assert_allclose(rewards[0] - rewards[1], absorbing, rtol=1e-4)
    with pytest.raises(ValueError, match="absorbing_is_zero=True needs a network"):
        LearnedRewardVecEnv(make_vec_env(Counter, 2), lambda *_: np.zeros(2, np.float32), absorbing_is_zero=True)


def test_rewards_are_of_raw_observations() -> None:
    net = RewardNet(spaces.Box(0, 9, (1,)), spaces.Discrete(2))
    with pytest.raises(ValueError, match=r"VecNormalize\(LearnedRewardVecEnv"):
        LearnedRewardVecEnv(VecNormalize(make_vec_env(Counter, 2)), net)
    LearnedRewardVecEnv(VecNormalize(make_vec_env(Counter, 2), norm_obs=False), net)
    VecNormalize(LearnedRewardVecEnv(make_vec_env(Counter, 2), net))


def test_a_wrapped_environment_is_kept_in_exact_checkpoints(tmp_path: Path) -> None:
    def build() -> LearnedRewardVecEnv:
        env = make_vec_env("CartPole-v1", n_envs=2, seed=0)
        net = RewardNet(env.observation_space, env.action_space)
        for parameter in net.parameters():
            nn.init.constant_(parameter, 0.1)
        return LearnedRewardVecEnv(env, net)

    given = {"n_steps": 32, "batch_size": 32, "n_epochs": 1, "seed": 0, "device": "cpu"}
    whole = PPO("MlpPolicy", build(), **given).learn(256)
    PPO("MlpPolicy", build(), **given).learn(128, callback=ExactCheckpointCallback(64, tmp_path))
    env = build()
    run = load_checkpoint(tmp_path, env, device="cpu")
    assert run.is_exact
    run.model.learn(128, callback=run.callback, reset_num_timesteps=False)
    assert same_parameters(whole, run.model)
    kept = whole.get_env()
    assert isinstance(kept, LearnedRewardVecEnv)
    assert env.finished_returns == kept.finished_returns


def test_it_can_not_be_pickled_or_put_in_the_wrong_place() -> None:
    with pytest.raises(TypeError, match="can't be pickled"):
        pickle.dumps(LearnedRewardVecEnv(make_vec_env(Counter, 1), lambda *_: np.zeros(1)))
    inner = VecFrameStack(VecNormalize(make_vec_env("CartPole-v1")), 2)
    algorithm = PPO("MlpPolicy", inner, n_steps=8, batch_size=8, device="cpu")
    with pytest.raises(ValueError, match=r"lies below another wrapper.*VecNormalize\(VecTransposeImage\(env\)\)"):
        install(algorithm, lambda venv: LearnedRewardVecEnv(venv, lambda *_: np.zeros(1)))  # type: ignore[arg-type,return-value]
