"""Agent files of off-policy algorithms: everything comes back, the replay buffer too if it is asked for."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, CrossQ
from stable_baselines3 import DDPG, DQN, PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.noise import (
    ActionNoise,
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    VectorizedActionNoise,
)
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.sac.policies import SACPolicy
from torch import nn

from rlsmooth.agents import load_agent, load_agent_file, save_agent
from rlsmooth.agents.files.algorithm_file import noise_to_plain
from rlsmooth.agents.files.algorithm_state import buffer_state, cut_off_episodes, set_buffer_state
from rlsmooth.training import SafeFileError, isolated_rng, read_safe_file, rng_state, write_safe_file

SMALL: dict[str, Any] = {"buffer_size": 500, "learning_starts": 20, "batch_size": 8}
IMAGES: dict[str, Any] = {"buffer_size": 60, "learning_starts": 55}
NARROW: dict[str, Any] = {"net_arch": [8, 8]}
OU = OrnsteinUhlenbeckActionNoise(np.zeros(1), 0.2 * np.ones(1), theta=0.3, initial_noise=np.ones(1))
CASES: dict[str, tuple[type[OffPolicyAlgorithm], str, Any, dict[str, Any]]] = {
    "DQN": (
        DQN,
        "MlpPolicy",
        "CartPole-v1",
        {"train_freq": 2, "exploration_fraction": 0.5, "target_update_interval": 8},
    ),
    "DQN-schedule": (DQN, "MlpPolicy", "CartPole-v1", {"learning_rate": LinearSchedule(1e-3, 1e-4, 0.5), "n_steps": 3}),
    "DQN-Cnn": (DQN, "CnnPolicy", lambda: FakeImageEnv(discrete=True), IMAGES),
    "DQN-MultiInput": (
        DQN,
        "MultiInputPolicy",
        lambda: SimpleMultiObsEnv(discrete_actions=True),
        {"learning_starts": 50},
    ),
    "SAC": (SAC, "MlpPolicy", "Pendulum-v1", {"policy_kwargs": {**NARROW, "n_critics": 3}}),
    "SAC-fixed": (SAC, "MlpPolicy", "Pendulum-v1", {"ent_coef": 0.3, "target_entropy": -0.5, "action_noise": OU}),
    "SAC-gSDE": (SAC, "MlpPolicy", "Pendulum-v1", {"use_sde": True, "policy_kwargs": {"log_std_init": -2.0, **NARROW}}),
    "SAC-shared": (
        SAC,
        "CnnPolicy",
        lambda: FakeImageEnv(discrete=False),
        {
            **IMAGES,
            "policy_kwargs": {
                "share_features_extractor": True,
                "features_extractor_kwargs": {"features_dim": 8},
                **NARROW,
            },
        },
    ),
    "TD3": (
        TD3,
        "MlpPolicy",
        "Pendulum-v1",
        {"action_noise": NormalActionNoise(np.zeros(1), 0.1 * np.ones(1)), "policy_kwargs": NARROW, "policy_delay": 3},
    ),
    "TD3-episodes": (TD3, "MlpPolicy", "Pendulum-v1", {"train_freq": (1, "episode"), "gradient_steps": 3}),
    "TD3-shared": (TD3, "MlpPolicy", "Pendulum-v1", {"policy_kwargs": {"share_features_extractor": True, **NARROW}}),
    "DDPG": (DDPG, "MlpPolicy", "Pendulum-v1", {"policy_kwargs": {"activation_fn": nn.Tanh, **NARROW}}),
    "QRDQN": (QRDQN, "MlpPolicy", "CartPole-v1", {"policy_kwargs": {"n_quantiles": 7}}),
    "TQC": (
        TQC,
        "MlpPolicy",
        "Pendulum-v1",
        {"top_quantiles_to_drop_per_net": 3, "policy_kwargs": {"n_quantiles": 9, **NARROW}},
    ),
    "CrossQ": (CrossQ, "MlpPolicy", "Pendulum-v1", {"policy_kwargs": {"net_arch": {"pi": [8], "qf": [16]}}}),
}
LEFT_OUT = {  # the environment's, the logger's, this process's, aliases, and what the two sides of this test give apart
    "_last_episode_starts", "_last_obs", "_last_original_obs", "_logger", "action_noise", "actor", "actor_target",
    "critic", "critic_target", "device", "env", "ent_coef_optimizer", "ep_info_buffer", "ep_success_buffer",
    "exploration_schedule", "lr_schedule", "policy", "q_net", "q_net_target", "quantile_net", "quantile_net_target",
    "replay_buffer", "start_time",
}  # fmt: skip


def assert_same(one: Any, other: Any, where: str = "model") -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert type(one) is type(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{index}]")
    else:
        assert one == other or repr(one) == repr(other), where


def environment(source: Any) -> Any:
    """Some draw what they show from the global generator when they are built: all of a test the same."""
    with isolated_rng(3):
        return make_vec_env(source, 1) if isinstance(source, str) else source()


def trained(name: str, steps: int = 60) -> OffPolicyAlgorithm:
    algorithm, policy, source, arguments = CASES[name]
    arguments = copy.deepcopy({**SMALL, **arguments})
    model: OffPolicyAlgorithm = algorithm(policy, environment(source), seed=1, **arguments)  # type: ignore[arg-type]
    return model.learn(200 if "episodes" in name else steps)


@pytest.mark.parametrize("name", CASES)
def test_everything_comes_back(name: str, tmp_path: Path) -> None:
    model = trained(name)
    source = CASES[name][2]
    path = save_agent(model, tmp_path / "agent")
    env = environment(source)
    before = rng_state()
    loaded = load_agent(path, env=env)
    assert_same(rng_state(), before)  # the caller's random state
    assert type(loaded) is type(model)
    assert type(loaded.policy) is type(model.policy)
    assert_same(loaded.get_parameters(), model.get_parameters())  # networks, targets, optimisers, ent_coef
    kept = {key: value for key, value in vars(model).items() if key not in LEFT_OUT}
    assert_same({key: value for key, value in vars(loaded).items() if key in kept}, kept)
    assert repr(loaded.action_noise) == repr(model.action_noise)
    assert loaded.replay_buffer.size() == 0  # as from Stable-Baselines3's own zip
    assert model.env is not None
    observation = model.env.reset()
    action = model.predict(observation, deterministic=True)[0]  # type: ignore[arg-type]
    for env in (None, environment(source)):
        other = load_agent(path, env=env)
        assert np.array_equal(other.predict(observation, deterministic=True)[0], action)
    loaded.learn(60, reset_num_timesteps=False)
    assert loaded.num_timesteps > model.num_timesteps


@pytest.mark.filterwarnings("ignore:.*is ignored because a custom `replay_buffer_class`")  # their load, to itself
@pytest.mark.parametrize("name", ["DQN-schedule", "SAC", "TD3", "DQN-MultiInput"])
def test_training_on_with_the_replay_buffer_equals_that_of_stable_baselines3(name: str, tmp_path: Path) -> None:
    model = trained(name)
    model.save(tmp_path / "theirs.zip")
    model.save_replay_buffer(tmp_path / "theirs.pkl")
    path = save_agent(model, tmp_path / "ours.zip", include_replay_buffer=True)
    source = CASES[name][2]
    ours = load_agent(path, env=environment(source))
    theirs = type(model).load(tmp_path / "theirs.zip", env=environment(source))
    theirs.load_replay_buffer(tmp_path / "theirs.pkl", truncate_last_traj=False)
    for loaded in (ours, theirs):
        loaded.set_random_seed(5)
        loaded.learn(40, reset_num_timesteps=False)
    assert_same(ours.get_parameters(), theirs.get_parameters())
    assert ours.replay_buffer.size() == theirs.replay_buffer.size() == 100  # type: ignore[union-attr]


def test_a_full_replay_buffer_and_several_environments(tmp_path: Path) -> None:
    env = make_vec_env("Pendulum-v1", 3)
    model = SAC("MlpPolicy", env, buffer_size=90, learning_starts=10**6, seed=1, policy_kwargs=dict(NARROW)).learn(120)
    path = save_agent(model, tmp_path / "agent.zip", include_replay_buffer=True)
    loaded = load_agent(path, env=make_vec_env("Pendulum-v1", 3))
    one, other = loaded.replay_buffer, model.replay_buffer
    assert isinstance(other, ReplayBuffer)
    assert (one.pos, one.full, one.size()) == (other.pos, other.full, other.size()) == (10, True, 30)
    cut_off_episodes(other)  # as loading does: the environments begin new ones
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        assert np.array_equal(getattr(one, name), getattr(other, name))
    assert load_agent(path).replay_buffer.size() == 30  # for as many environments as there were
    with pytest.raises(SafeFileError, match="give as many environments and the same buffer_size"):
        load_agent(path, env=make_vec_env("Pendulum-v1", 2))
    loaded = load_agent(save_agent(model, path), env=make_vec_env("Pendulum-v1", 2))
    assert (loaded.n_envs, loaded.replay_buffer.size()) == (2, 0)


def test_statistics_of_vec_normalize(tmp_path: Path) -> None:
    env = VecNormalize(make_vec_env("Pendulum-v1", 1), clip_obs=3.0)
    model = TD3("MlpPolicy", env, **SMALL, policy_kwargs=dict(NARROW)).learn(50)
    loaded = load_agent(save_agent(model, tmp_path / "agent.zip"), env="Pendulum-v1")
    found = loaded.get_vec_normalize_env()
    assert np.array_equal(found.obs_rms.mean, env.obs_rms.mean)  # type: ignore[union-attr]
    assert found.clip_obs == 3.0


class MyNoise(NormalActionNoise):
    """A noise that no file may name."""


class MyPolicy(SACPolicy):
    """A policy that no file may name."""


class MySAC(SAC):
    """An algorithm that no file may name."""


def test_what_is_ones_own_is_asked_for(tmp_path: Path) -> None:
    noise = MyNoise(np.zeros(1), np.ones(1))
    model = MySAC(MyPolicy, "Pendulum-v1", buffer_size=10, action_noise=noise, policy_kwargs=dict(NARROW))
    path = save_agent(model, tmp_path / "agent.zip")
    with pytest.raises(SafeFileError, match="load with policy_class=MyPolicy"):
        load_agent(path)
    with pytest.raises(SafeFileError, match="load with model_class=MySAC"):
        load_agent(path, policy_class=MyPolicy)
    with pytest.raises(SafeFileError, match=r"action_noise that no file can hold \(.*MyNoise\)"):
        load_agent(path, policy_class=MyPolicy, model_class=MySAC)
    custom = {"action_noise": noise, "gamma": 0.5}
    loaded = load_agent(path, policy_class=MyPolicy, model_class=MySAC, custom_objects=custom)
    assert (type(loaded), type(loaded.policy), loaded.gamma) == (MySAC, MyPolicy, 0.5)
    assert loaded.action_noise is noise


def test_a_replay_buffer_of_another_class_is_asked_for(tmp_path: Path) -> None:
    env = BitFlippingEnv(n_bits=3, continuous=False)
    her: dict[str, Any] = {"replay_buffer_class": HerReplayBuffer, "replay_buffer_kwargs": {"n_sampled_goal": 2}}
    model = DQN("MultiInputPolicy", env, **SMALL, **her).learn(40)
    path = save_agent(model, tmp_path / "agent.zip")
    with pytest.raises(SafeFileError, match=r"replay_buffer_class that no file can hold \(.*HerReplayBuffer\)"):
        load_agent(path, env=env)
    loaded = load_agent(path, env=env, custom_objects={"replay_buffer_class": HerReplayBuffer})
    assert loaded.replay_buffer.n_sampled_goal == 2
    with pytest.raises(TypeError, match="is a HerReplayBuffer: only ReplayBuffer, DictReplayBuffer"):
        save_agent(model, tmp_path / "x.zip", include_replay_buffer=True)
    with pytest.raises(TypeError, match="is a NoneType"):
        save_agent(PPO("MlpPolicy", "CartPole-v1"), tmp_path / "x.zip", include_replay_buffer=True)
    saving: dict[str, Any] = {"handle_timeout_termination": False}
    model = DQN("MlpPolicy", "CartPole-v1", buffer_size=10, optimize_memory_usage=True, replay_buffer_kwargs=saving)
    with pytest.raises(TypeError, match="has optimize_memory_usage=True"):
        save_agent(model, tmp_path / "x.zip", include_replay_buffer=True)
    assert load_agent(save_agent(model, path)).optimize_memory_usage
    given = {"n_steps": 2, "gamma": 0.9}
    model = DQN("MlpPolicy", "CartPole-v1", replay_buffer_class=NStepReplayBuffer, replay_buffer_kwargs=given)
    assert type(load_agent(save_agent(model, path)).replay_buffer) is NStepReplayBuffer  # n_steps=1 would not choose it


def test_noises_of_several_environments(tmp_path: Path) -> None:
    env = make_vec_env("Pendulum-v1", 2)
    model = TD3("MlpPolicy", env, **SMALL, action_noise=copy.deepcopy(OU), policy_kwargs=dict(NARROW)).learn(40)
    assert isinstance(model.action_noise, VectorizedActionNoise)
    path = save_agent(model, tmp_path / "agent.zip")
    loaded = load_agent(path, env=make_vec_env("Pendulum-v1", 3)).learn(30)
    assert len(loaded.action_noise.noises) == 3
    noise: Any = load_agent(path).action_noise
    assert type(noise) is OrnsteinUhlenbeckActionNoise
    assert (noise._theta, noise._dt, noise._dtype) == (OU._theta, OU._dt, OU._dtype)
    assert noise.initial_noise == OU.initial_noise
    assert noise.noise_prev == noise.initial_noise  # a new process
    unlike: list[ActionNoise] = [copy.deepcopy(OU), OrnsteinUhlenbeckActionNoise(np.zeros(1), np.ones(1))]
    model.action_noise.noises = unlike
    with pytest.raises(SafeFileError, match="VectorizedActionNoise"):
        load_agent(save_agent(model, path))


def test_a_policy_alone(tmp_path: Path) -> None:
    model = trained("SAC-gSDE")
    policy = load_agent_file(save_agent(model, tmp_path / "agent.zip")).policy
    assert type(policy) is SACPolicy
    assert_same(policy.state_dict(), model.policy.state_dict())
    assert policy.observation_space == spaces.Box(np.array([-1, -1, -8]), np.array([1, 1, 8]), dtype=np.float32)


FORGED: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "policy": (("policy", "class"), "CnnPolicy", "not known"),
    "noise": (("config", "arguments", "action_noise"), {"__noise__": {"class": "os.system"}}, "malformed action_noise"),
    "noise's array": (("config", "arguments", "action_noise", "__noise__", "mean"), "x", "malformed action_noise"),
    "noise's dtype": (("config", "arguments", "action_noise", "__noise__", "dtype"), "O", "malformed action_noise"),
    "buffer's class": (
        ("config", "arguments", "replay_buffer_class"),
        {"__custom__": "subprocess.Popen"},
        "no file can hold",
    ),
    "frequency": (("config", "arguments", "train_freq"), "often", "can't be built"),
    "optimisers": (("config", "optimizer", "env.close"), {}, "malformed training state"),
    "optimiser": (("config", "optimizer", "critic.optimizer"), 3, "malformed training state"),
    "module": (("config", "attributes", "replay_buffer"), 3, "no counter"),
    "place": (("config", "replay_buffer", "place"), 10**9, "stands at 1000000000"),
    "negative place": (("config", "replay_buffer", "place"), -1, "stands at -1"),
    "rows": (("config", "replay_buffer", "place"), 3, "other shapes"),
    "buffer": (("config", "replay_buffer"), 3, "does not fit"),
    "shapes": (("config", "replay_buffer", "shapes"), {}, "does not fit"),
}


@pytest.fixture(scope="module")
def head_and_tensors(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    path = save_agent(trained("TD3"), tmp_path_factory.mktemp("files") / "agent.zip", include_replay_buffer=True)
    file = read_safe_file(path, format_name="rlsmooth-agent", format_version=1)
    return file.config, dict(file.tensors)


@pytest.mark.parametrize("name", FORGED)
def test_forged_files_are_refused(name: str, head_and_tensors: Any, tmp_path: Path) -> None:
    config, tensors = copy.deepcopy(head_and_tensors)
    *where, last = FORGED[name][0]
    place = config
    for key in where:
        place = place[key]
    place[last] = FORGED[name][1]
    write_safe_file(tmp_path / "a.zip", config, tensors=tensors, format_name="rlsmooth-agent", format_version=1)
    with pytest.raises(SafeFileError, match=FORGED[name][2]):
        load_agent(tmp_path / "a.zip")


def test_a_q_network_in_a_file_of_a_ppo_is_refused(tmp_path: Path) -> None:
    path = save_agent(trained("DQN"), tmp_path / "agent.zip")
    file = read_safe_file(path, format_name="rlsmooth-agent", format_version=1)
    for kind in ("PPO", "bc", "SAC"):
        config = {**file.config, "kind": kind}
        write_safe_file(path, config, tensors=file.tensors, format_name="rlsmooth-agent", format_version=1)
        with pytest.raises(SafeFileError):
            load_agent(path)


def test_contrib_is_asked_for(programs: Any, tmp_path: Path) -> None:
    sac, tqc = (save_agent(trained(name), tmp_path / f"{name}.zip") for name in ("SAC", "TQC"))
    code = (
        "import sys; sys.modules['sb3_contrib'] = None\n"
        "from rlsmooth.agents import load_agent\n"
        f"print(type(load_agent({str(sac)!r})).__name__)\n"
        f"load_agent({str(tqc)!r})"
    )
    finished = programs.run(code, tmp_path)
    assert finished.stdout.strip() == "SAC"
    assert "TQCPolicy needs sb3-contrib. Install it" in finished.stderr


def test_devices(device: torch.device, tmp_path: Path) -> None:
    path = save_agent(trained("SAC-gSDE"), tmp_path / "agent.zip", include_replay_buffer=True)
    model = load_agent(path, env="Pendulum-v1", device=device)
    assert model.policy.device.type == model.log_ent_coef.device.type == device.type
    model.learn(30, reset_num_timesteps=False)


def test_a_buffer_of_other_steps_than_the_algorithms_comes_back(tmp_path: Path) -> None:
    own: dict[str, Any] = {
        "replay_buffer_class": NStepReplayBuffer,
        "replay_buffer_kwargs": {"n_steps": 7, "gamma": 0.5},
    }
    with pytest.warns(UserWarning, match="`n_steps=3` is ignored"):
        model = DQN("MlpPolicy", "CartPole-v1", buffer_size=20, n_steps=3, device="cpu", **own)
    path = save_agent(model, tmp_path / "own")
    with pytest.warns(UserWarning, match="`n_steps=3` is ignored"):
        loaded = load_agent(path, device="cpu")
    buffer = loaded.replay_buffer
    assert (type(buffer), buffer.n_steps, buffer.gamma) == (NStepReplayBuffer, 7, 0.5)
    model = DQN("MlpPolicy", "CartPole-v1", buffer_size=20, n_steps=3, device="cpu")
    path = save_agent(model, tmp_path / "automatic")
    buffer = load_agent(path, device="cpu", custom_objects={"gamma": 0.9}).replay_buffer
    assert (type(buffer), buffer.n_steps, buffer.gamma) == (NStepReplayBuffer, 3, 0.9)
    assert type(load_agent(path, device="cpu", custom_objects={"n_steps": 1}).replay_buffer) is ReplayBuffer


def test_noises_that_only_print_alike_are_told_apart() -> None:
    noise = VectorizedActionNoise(NormalActionNoise(np.zeros(1), np.array([0.1])), 2)
    assert noise_to_plain(noise) is not None
    noise.noises = [NormalActionNoise(np.zeros(1), np.array([sigma])) for sigma in (0.1, 0.1000001)]
    assert noise_to_plain(noise) is None


def test_rows_that_were_never_used_are_not_written_to() -> None:
    model = DQN("MlpPolicy", "CartPole-v1", buffer_size=20, learning_starts=50, device="cpu").learn(4)
    assert model.replay_buffer is not None
    head, rows = buffer_state(model.replay_buffer)
    other = DQN("MlpPolicy", "CartPole-v1", buffer_size=20, learning_starts=50, device="cpu").learn(8).replay_buffer
    assert other is not None
    other.rewards[15:] = 7.0  # a mark on rows that no transition was ever written to
    set_buffer_state(other, head, rows)
    assert other.rewards[4:8].tolist() == [[0.0]] * 4
    assert (other.rewards[15:] == 7.0).all()


def test_no_return_leads_from_a_kept_episode_into_a_new_one(tmp_path: Path) -> None:
    model = DQN("MlpPolicy", "CartPole-v1", n_steps=3, buffer_size=50, learning_starts=90, seed=0, device="cpu")
    path = save_agent(model.learn(4), tmp_path / "agent", include_replay_buffer=True)
    loaded = load_agent(path, env="CartPole-v1", device="cpu").learn(4, reset_num_timesteps=False)
    assert loaded.replay_buffer.dones[:4].sum() == 0  # the episode was under way
    assert loaded.replay_buffer.timeouts[:5, 0].tolist() == [0, 0, 0, 1, 0]
