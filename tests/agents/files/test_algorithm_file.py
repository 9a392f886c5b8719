"""Agent files of algorithms, on-policy and off-policy: everything comes back, and a stranger's file runs no code."""

from __future__ import annotations

import copy
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import spaces
from packaging.version import Version
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.noise import (
    ActionNoise,
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    VectorizedActionNoise,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.sac.policies import SACPolicy
from torch import nn

from rlsmooth.agents import BC, SmoothedMaskablePPO, SmoothedPPO, load_agent_file
from rlsmooth.agents.files.algorithm_file import load_agent, save_agent
from rlsmooth.agents.files.algorithm_state import buffer_state, cut_off_episodes, noise_to_plain, set_buffer_state
from rlsmooth.training import SafeFileError, isolated_rng, read_safe_file, rng_state, write_safe_file
from support import Bomb, assert_equal, assert_raises, mostly_slow, put

MASKED = "rlsmooth.envs:rlsmooth/IdentityMasked-v0"
SHORT: dict[str, Any] = {"n_steps": 32, "batch_size": 32}
SMALL: dict[str, Any] = {"buffer_size": 500, "learning_starts": 20, "batch_size": 8}
IMAGES: dict[str, Any] = {**SMALL, "buffer_size": 60, "learning_starts": 55}
NARROW: dict[str, Any] = {"net_arch": [8, 8]}
LINE = LinearSchedule(1e-3, 1e-4, 0.5)
OU = OrnsteinUhlenbeckActionNoise(np.zeros(1), 0.2 * np.ones(1), theta=0.3, initial_noise=np.ones(1))
NORMAL = NormalActionNoise(np.zeros(1), 0.1 * np.ones(1))
RELU = {"activation_fn": nn.ReLU, "net_arch": {"pi": [5], "vf": [6, 7]}, "ortho_init": False}
FEATURES = {"features_extractor_kwargs": {"features_dim": 8}}
SHARED = {"share_features_extractor": True, **NARROW}
LSTM = {"lstm_hidden_size": 8, "n_lstm_layers": 2}
CARTPOLE, PENDULUM = "CartPole-v1", "Pendulum-v1"
ON_POLICY: dict[str, tuple[Any, str, Any, dict[str, Any]]] = {
    "PPO": (PPO, "MlpPolicy", CARTPOLE, {**SHORT, "gamma": 0.9, "target_kl": 0.5}),
    "PPO-schedules": (PPO, "MlpPolicy", CARTPOLE, {**SHORT, "learning_rate": LINE, "clip_range_vf": 0.3}),
    "PPO-gSDE": (PPO, "MlpPolicy", PENDULUM, {**SHORT, "use_sde": True}),
    "PPO-policy": (PPO, "MlpPolicy", CARTPOLE, {**SHORT, "policy_kwargs": RELU}),
    "A2C": (A2C, "MlpPolicy", CARTPOLE, {"gae_lambda": np.float64(0.9), "rms_prop_eps": 1e-4}),
    "A2C-Adam": (A2C, "MlpPolicy", PENDULUM, {"use_rms_prop": False}),
    "TRPO": (TRPO, "MlpPolicy", CARTPOLE, {**SHORT, "cg_max_steps": 3}),
    "MaskablePPO": (MaskablePPO, "MlpPolicy", MASKED, SHORT),
    "RecurrentPPO": (RecurrentPPO, "MlpLstmPolicy", CARTPOLE, {**SHORT, "policy_kwargs": LSTM}),
    "Cnn": (A2C, "CnnPolicy", FakeImageEnv, {"policy_kwargs": FEATURES}),
    "MultiInput": (A2C, "MultiInputPolicy", SimpleMultiObsEnv, {}),
}
OFF_POLICY: dict[str, tuple[Any, str, Any, dict[str, Any]]] = {
    "DQN": (DQN, "MlpPolicy", CARTPOLE, {"train_freq": 2, "exploration_fraction": 0.5, "target_update_interval": 8}),
    "DQN-schedule": (DQN, "MlpPolicy", CARTPOLE, {"learning_rate": LINE, "n_steps": 3}),
    "DQN-Cnn": (DQN, "CnnPolicy", lambda: FakeImageEnv(discrete=True), IMAGES),
    "DQN-MultiInput": (
        DQN, "MultiInputPolicy", lambda: SimpleMultiObsEnv(discrete_actions=True), {"learning_starts": 50},
    ),
    "SAC": (SAC, "MlpPolicy", PENDULUM, {"policy_kwargs": {**NARROW, "n_critics": 3}}),
    "SAC-fixed": (SAC, "MlpPolicy", PENDULUM, {"ent_coef": 0.3, "target_entropy": -0.5, "action_noise": OU}),
    "SAC-gSDE": (SAC, "MlpPolicy", PENDULUM, {"use_sde": True, "policy_kwargs": {"log_std_init": -2.0, **NARROW}}),
    "SAC-shared": (
        SAC, "CnnPolicy", lambda: FakeImageEnv(discrete=False), {**IMAGES, "policy_kwargs": {**SHARED, **FEATURES}},
    ),
    "TD3": (TD3, "MlpPolicy", PENDULUM, {"action_noise": NORMAL, "policy_kwargs": NARROW, "policy_delay": 3}),
    "TD3-episodes": (TD3, "MlpPolicy", PENDULUM, {"train_freq": (1, "episode"), "gradient_steps": 3}),
    "TD3-shared": (TD3, "MlpPolicy", PENDULUM, {"policy_kwargs": SHARED}),
    "DDPG": (DDPG, "MlpPolicy", PENDULUM, {"policy_kwargs": {"activation_fn": nn.Tanh, **NARROW}}),
    "QRDQN": (QRDQN, "MlpPolicy", CARTPOLE, {"policy_kwargs": {"n_quantiles": 7}}),
    "TQC": (
        TQC, "MlpPolicy", PENDULUM, {"top_quantiles_to_drop_per_net": 3, "policy_kwargs": {"n_quantiles": 9, **NARROW}},
    ),
    "CrossQ": (CrossQ, "MlpPolicy", PENDULUM, {"policy_kwargs": {"net_arch": {"pi": [8], "qf": [16]}}}),
}  # fmt: skip


class MyPPO(PPO):
    """An algorithm that no file may name."""


class MyPolicy(ActorCriticPolicy):
    """A policy that no file may name."""


class MySAC(SAC):
    """Another algorithm that no file may name."""


class MySACPolicy(SACPolicy):
    """Another policy that no file may name."""


class MyNoise(NormalActionNoise):
    """A noise that no file may name."""


def halved(progress: float) -> float:
    return 1e-3 * progress / 2


# The environment's, the logger's, this process's, aliases, and what the two sides of this test give apart.
LEFT_OUT = {
    "_last_episode_starts", "_last_lstm_states", "_last_obs", "_last_original_obs", "_logger", "action_noise", "actor",
    "actor_target", "critic", "critic_target", "device", "env", "ent_coef_optimizer", "ep_info_buffer",
    "ep_success_buffer", "exploration_schedule", "lr_schedule", "policy", "q_net", "q_net_target", "quantile_net",
    "quantile_net_target", "replay_buffer", "rollout_buffer", "start_time",
}  # fmt: skip


def make_environment(source: Any) -> Any:
    """Some draw what they show from the global generator when they are built: all of a test the same."""
    with isolated_rng(3):
        return make_vec_env(source, 1) if isinstance(source, str) else source()


def trained(name: str) -> Any:
    algorithm, policy, source, arguments = (ON_POLICY | OFF_POLICY)[name]
    given = copy.deepcopy({**(SMALL if name in OFF_POLICY else {}), **arguments})
    return algorithm(policy, make_environment(source), seed=1, **given).learn(200 if "episodes" in name else 60)


@pytest.mark.parametrize("name", [*ON_POLICY, *mostly_slow(OFF_POLICY, "DQN-MultiInput", "SAC-gSDE", "TQC")])
def test_everything_comes_back(name: str, tmp_path: Path) -> None:
    model, source = trained(name), (ON_POLICY | OFF_POLICY)[name][2]
    path = save_agent(model, tmp_path / "agent")
    env = make_environment(source)
    before = rng_state()
    loaded = load_agent(path, env=env)
    assert_equal(rng_state(), before)  # the caller's random state
    assert type(loaded) is type(model)
    assert type(loaded.policy) is type(model.policy)
    assert_equal(loaded.get_parameters(), model.get_parameters())  # networks, targets, optimisers, ent_coef
    left_out = LEFT_OUT | ({"n_envs"} if name in ON_POLICY else set())
    kept = {key: value for key, value in vars(model).items() if key not in left_out}
    assert_equal({key: value for key, value in vars(loaded).items() if key in kept}, kept)
    if name in OFF_POLICY:
        assert repr(loaded.action_noise) == repr(model.action_noise)
        assert loaded.replay_buffer.size() == 0  # as from Stable-Baselines3's own zip
    observation = model.env.reset()
    action = model.predict(observation, deterministic=True)[0]
    for env in (None, make_environment(source)):
        other = load_agent(path, env=env)
        assert np.array_equal(other.predict(observation, deterministic=True)[0], action)
    loaded.learn(60, reset_num_timesteps=False)
    assert loaded.num_timesteps > model.num_timesteps


def test_training_on_equals_training_on_after_the_zip_of_stable_baselines3(tmp_path: Path) -> None:
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, seed=1, learning_rate=LinearSchedule(1e-2, 0, 1))
    model.learn(64)
    model.save(tmp_path / "theirs.zip")
    ours = load_agent(save_agent(model, tmp_path / "ours.zip"), env="CartPole-v1")
    theirs = PPO.load(tmp_path / "theirs.zip", env=make_vec_env("CartPole-v1"))
    for loaded in (ours, theirs):
        loaded.set_random_seed(5)
        loaded.learn(64, reset_num_timesteps=False)
    assert_equal(ours.get_parameters(), theirs.get_parameters())


def test_another_number_of_environments(tmp_path: Path) -> None:
    model = PPO("MlpPolicy", make_vec_env("CartPole-v1", 3), n_steps=32, batch_size=32)
    loaded = load_agent(save_agent(model, tmp_path / "agent.zip"), env=make_vec_env("CartPole-v1", 2)).learn(64)
    assert loaded.n_envs == 2
    assert load_agent(tmp_path / "agent").n_envs == 3


def test_statistics_of_vec_normalize(tmp_path: Path) -> None:
    env = VecNormalize(make_vec_env("Pendulum-v1", 2), clip_obs=3.0, gamma=0.8)
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=32).learn(128)
    path = save_agent(model, tmp_path / "agent.zip")
    for given in (make_vec_env("Pendulum-v1", 1), VecNormalize(make_vec_env("Pendulum-v1", 1), clip_obs=3.0)):
        found = load_agent(path, env=given).get_vec_normalize_env()
        assert_equal(found.obs_rms.mean.tolist(), env.obs_rms.mean.tolist())
        assert_equal(found.obs_rms.var.tolist(), env.obs_rms.var.tolist())
        assert (float(found.ret_rms.var), found.ret_rms.count) == (float(env.ret_rms.var), env.ret_rms.count)
        assert found.clip_obs == 3.0
    with pytest.raises(SafeFileError, match="has norm_obs=False, and the agent was trained with True"):
        load_agent(path, env=VecNormalize(make_vec_env("Pendulum-v1", 1), norm_obs=False))
    normalised = VecNormalize(make_vec_env("Pendulum-v1", 1), clip_obs=3.0)
    off_policy = TD3("MlpPolicy", normalised, **SMALL, policy_kwargs=dict(NARROW)).learn(50)
    again = load_agent(save_agent(off_policy, tmp_path / "td3.zip"), env="Pendulum-v1").get_vec_normalize_env()
    assert np.array_equal(again.obs_rms.mean, normalised.obs_rms.mean)
    assert again.clip_obs == 3.0
    raw = np.array([[0.5, 0.1, 3.0]], np.float32)
    assert np.array_equal(found.normalize_obs(raw), env.normalize_obs(raw))
    keyed = VecNormalize(make_vec_env(SimpleMultiObsEnv, 1), norm_obs_keys=["vec"])
    path = save_agent(A2C("MultiInputPolicy", keyed).learn(20), path)
    found = load_agent(path, env=make_vec_env(SimpleMultiObsEnv, 1)).get_vec_normalize_env()
    assert_equal(found.obs_rms["vec"].mean.tolist(), keyed.obs_rms["vec"].mean.tolist())
    with pytest.raises(SafeFileError, match="statistics that don't fit env"):
        load_agent(path, env=VecNormalize(make_vec_env(SimpleMultiObsEnv, 1), norm_obs_keys=[]))


def test_a_file_of_bc_gives_a_bc(tmp_path: Path) -> None:
    agent = BC("MlpPolicy", (spaces.Box(-1, 1, (4,)), spaces.Discrete(2)), None, seed=1)
    loaded = load_agent(save_agent(agent, tmp_path / "agent"))
    assert type(loaded) is BC
    assert_equal(loaded.policy.state_dict(), agent.policy.state_dict())


NOISE = MyNoise(np.zeros(1), np.ones(1))
OF_MY_PPO, OF_MY_SAC = {"learning_rate": halved, "clip_range": halved}, {"action_noise": NOISE}
ONES_OWN: list[tuple[Any, Any, str, dict[str, Any], str]] = [
    (MyPPO, MyPolicy, CARTPOLE, {**SHORT, **OF_MY_PPO}, r"^learning_rate, clip_range was a callable.*custom_objects"),
    (MySAC, MySACPolicy, PENDULUM, {**SMALL, **OF_MY_SAC}, r"^action_noise was a callable.*custom_objects"),
]


@pytest.mark.parametrize(("algorithm", "policy", "env", "arguments", "message"), ONES_OWN)
def test_what_is_ones_own_is_asked_for(
    algorithm: Any, policy: Any, env: str, arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = algorithm(policy, env, **arguments)
    path = save_agent(model, tmp_path / "agent.zip")
    assert_raises(SafeFileError, f"load with policy_class={policy.__name__}", load_agent, path)
    assert_raises(SafeFileError, f"load with model_class={algorithm.__name__}", load_agent, path, policy_class=policy)
    given = {"policy_class": policy, "model_class": algorithm}
    acting = load_agent(path, **given)  # which needs neither schedule nor noise
    assert_equal(acting.policy.state_dict(), model.policy.state_dict())
    assert_raises(ValueError, message, acting.learn, 1)
    custom = {"learning_rate": halved, "clip_range": 0.25, "n_steps": 64} if algorithm is MyPPO else OF_MY_SAC
    loaded = load_agent(path, **given, custom_objects={"gamma": 0.5, **custom})
    assert (type(loaded), type(loaded.policy), loaded.gamma) == (algorithm, policy, 0.5)
    if algorithm is MySAC:
        assert loaded.action_noise is NOISE
        return
    assert (loaded.lr_schedule(0.5), loaded.clip_range(1.0), loaded.n_steps) == (halved(0.5), 0.25, 64)
    again = read_safe_file(save_agent(acting, tmp_path / "again"), format_name="rlsmooth-agent", format_version=1)
    kept = again.config["config"]["arguments"]
    assert all(kept[name]["__custom__"].endswith("halved") for name in ("learning_rate", "clip_range"))


def test_a_target_entropy_is_turned_on_and_off_at_loading(tmp_path: Path) -> None:
    target = {"target_entropy_frac": 0.9, "smoothing": 0.03}
    plain = SmoothedPPO("MlpPolicy", CARTPOLE, **SHORT, seed=0).learn(SHORT["n_steps"])
    path = save_agent(plain, tmp_path / "plain.zip")
    on = load_agent(path, env=CARTPOLE, custom_objects=target)
    assert_equal(on.policy.state_dict(), plain.policy.state_dict())
    assert on.entropy_target.is_new()
    assert on.alpha == pytest.approx(0.03)
    on.learn(2 * SHORT["n_steps"])
    assert not on.entropy_target.is_new()
    # As in a run with a target from its beginning, the set-point moves with what the rollouts show.
    whole = SmoothedPPO("MlpPolicy", CARTPOLE, **SHORT, seed=0, **target).learn(2 * SHORT["n_steps"])
    for model in (on, whole):
        assert 0 < abs(model.entropy_target.set_point - 0.9) < 0.2
    path = save_agent(on, tmp_path / "on.zip")
    assert load_agent(path, custom_objects={"target_entropy_frac": 0.5}).alpha == on.alpha  # another one goes on
    off = load_agent(path, env=CARTPOLE, custom_objects={"target_entropy_frac": None, "smoothing": 0.02})
    assert (off.entropy_target, off.alpha) == (None, 0.02)
    off.learn(SHORT["n_steps"])
    # A file that lacks the target's state, or has one that nobody asks for, is damaged if nobody changes the target.
    for name, changed in (("plain", "on"), ("on", "plain")):
        form = {"format_name": "rlsmooth-agent", "format_version": 1}
        content, other = (read_safe_file(tmp_path / f"{one}.zip", **form) for one in (name, changed))
        content.config["config"]["arguments"] = other.config["config"]["arguments"]
        write_safe_file(tmp_path / "damaged.zip", content.config, tensors=content.tensors, **form)
        assert_raises(SafeFileError, "Use another copy", load_agent, tmp_path / "damaged.zip")


def test_an_agent_without_an_environment_says_that_it_can_not_learn(tmp_path: Path) -> None:
    path = save_agent(SmoothedPPO("MlpPolicy", CARTPOLE, **SHORT), tmp_path / "agent.zip")
    loaded = load_agent(path)
    assert_raises(ValueError, r"no environment to learn in.*load_agent\(path, env=env\)", loaded.learn, 1)
    loaded.set_env(make_vec_env(CARTPOLE))
    loaded.learn(1)


def test_an_agent_with_a_function_as_exploration_floor_acts_with_the_last_one(tmp_path: Path) -> None:
    model = SmoothedPPO("MlpPolicy", CARTPOLE, **SHORT, exploration_floor=halved, smoothing=halved, seed=0)
    for _ in range(2):
        loaded = load_agent(save_agent(model, tmp_path / "agent.zip"))
        assert loaded.policy.exploration_floor == model.policy.exploration_floor > 0
        assert_equal(loaded.policy.state_dict(), model.policy.state_dict())
        assert_raises(ValueError, "smoothing, exploration_floor was a callable.*custom_objects", loaded.learn, 1)
        model = load_agent(
            save_agent(loaded, tmp_path / "again.zip"),
            env=CARTPOLE,
            custom_objects={"exploration_floor": halved, "smoothing": halved},
        ).learn(1)


@pytest.mark.parametrize("algorithm", [SmoothedPPO, SmoothedMaskablePPO])
def test_a_pointer_of_git_lfs_is_named_by_our_loaders_of_sb3_files(algorithm: Any, tmp_path: Path) -> None:
    (tmp_path / "agent.zip").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    for name in ("agent", "agent.zip"):
        assert_raises(ValueError, "git lfs pull", algorithm.load, tmp_path / name)


class Wide(ActorCriticPolicy):
    """Takes a keyword of its own, which Stable-Baselines3's list of arguments lacks."""

    def __init__(self, *spaces_and_rate: Any, width: int = 8, **more: Any) -> None:
        super().__init__(*spaces_and_rate, **(more | {"net_arch": [width]}))


def test_a_keyword_of_ones_own_policy_is_asked_for(tmp_path: Path) -> None:
    path = save_agent(PPO(Wide, CARTPOLE, policy_kwargs={"width": 16}, **SHORT), tmp_path / "agent.zip")
    message = r"Load it with custom_objects=\{'width': \.\.\.\}"
    assert_raises(SafeFileError, message, load_agent, path, policy_class=Wide)
    loaded = load_agent(path, policy_class=Wide, custom_objects={"width": 16})
    assert loaded.policy.action_net.in_features == 16


def test_arguments_are_checked(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="model is a ARS: pass one of A2C, PPO"):
        save_agent(ARS("LinearPolicy", "CartPole-v1"), tmp_path / "x")  # type: ignore[arg-type]
    path = save_agent(PPO("MlpPolicy", "CartPole-v1"), tmp_path / "agent.zip")
    assert_raises(ValueError, "env has observation_space", load_agent, path, env="Pendulum-v1")
    assert_raises(TypeError, r"model_class=.*ARS.* is no algorithm", load_agent, path, model_class=ARS)
    assert_raises(SafeFileError, "arguments from which DQN can't be built", load_agent, path, model_class=DQN)
    assert_raises(SafeFileError, "does not exist", load_agent, tmp_path / "nothing.zip")


# ---- files from a stranger
def test_pickles_run_no_code(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32)
    good = save_agent(model, tmp_path / "good.zip").read_bytes()
    model.policy_kwargs = {"payload": Bomb(marker)}
    model.save(tmp_path / "sb3.zip")
    (tmp_path / "pickle.zip").write_bytes(pickle.dumps(Bomb(marker)))
    torch.save(Bomb(marker), tmp_path / "torch.zip")
    (tmp_path / "member.zip").write_bytes(good)
    with zipfile.ZipFile(tmp_path / "member.zip", "a") as archive:
        archive.writestr("policy.pth", pickle.dumps(Bomb(marker)))
    for name in ("sb3", "pickle", "torch", "member"):
        assert_raises(SafeFileError, None, load_agent, tmp_path / f"{name}.zip")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists()  # the payload does work


FORGED: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "kind": (("kind",), "os.system", "algorithm 'os.system' is not known"),
    "kind of another type": (("kind",), ["PPO"], "lacks a part"),
    "policy": (("policy", "class"), "subprocess.Popen", "not known"),
    "algorithm": (("config", "class"), {"__custom__": "subprocess.Popen"}, "load with model_class"),
    "argument": (("config", "arguments", "gamma"), {"__custom__": "os.system"}, "no file can hold"),
    "more arguments": (("config", "arguments", "monitor_wrapper"), "x", "can't be built"),
    "folder": (("config", "arguments", "tensorboard_log"), "/tmp/elsewhere", "can't be built"),
    "batch": (("config", "arguments", "batch_size"), -3, "can't be built|malformed"),
    "recipe": (("config", "arguments", "gamma"), {"__smoothing__": {"alpha": "os.system"}}, "malformed gamma"),
    "line": (("config", "arguments", "gamma"), {"__linear__": ["a", 1, 2]}, "malformed gamma"),
    "attribute": (("config", "attributes", "__class__"), 3, "no counter"),
    "method": (("config", "attributes", "predict"), 3, "no counter"),
    "text": (("config", "attributes", "num_timesteps"), "os.system", "no counter"),
    "object": (("config", "attributes", "_last_obs"), 3, "no counter"),
    "extractor": (("config", "policy_kwargs", "features_extractor_class"), "os.system", "features_extractor_class"),
    "modules": (("config", "modules"), {"modules": ["env.close"], "variables": []}, "holds"),
    "optimiser": (("config", "optimizer", "class"), "os.system", "malformed training state"),
    "optimiser's state": (("config", "optimizer"), 3, "malformed training state"),
    "statistics": (("config", "normalization"), {"settings": 3}, "statistics"),
    "no arguments": (("config", "arguments"), 3, "malformed"),
    "environments": (("config", "n_envs"), "many", "n_envs"),
}


OFF_POLICY_FORGED: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "policy": (("policy", "class"), "CnnPolicy", "not known"),
    "noise": (("config", "arguments", "action_noise"), {"__noise__": {"class": "os.system"}}, "malformed action_noise"),
    "noise's array": (("config", "arguments", "action_noise", "__noise__", "mean"), "x", "malformed action_noise"),
    "noise's dtype": (("config", "arguments", "action_noise", "__noise__", "dtype"), "O", "malformed action_noise"),
    "buffer's class": (("config", "arguments", "replay_buffer_class"), {"__custom__": "os.system"}, "no file can hold"),
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
def good_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder, files = tmp_path_factory.mktemp("files"), {}
    for name in ("PPO", "TD3"):
        path = save_agent(trained(name), folder / f"{name}.zip", include_replay_buffer=name == "TD3")
        files[name] = read_safe_file(path, format_name="rlsmooth-agent", format_version=1)
    return files


@pytest.mark.parametrize(
    ("kind", "name"), [*(("PPO", one) for one in FORGED), *(("TD3", one) for one in OFF_POLICY_FORGED)]
)
def test_forged_files_are_refused(kind: str, name: str, good_files: dict[str, Any], tmp_path: Path) -> None:
    keys, value, message = (FORGED if kind == "PPO" else OFF_POLICY_FORGED)[name]
    config = copy.deepcopy(good_files[kind].config)
    put(config, keys, value)
    tensors = good_files[kind].tensors
    write_safe_file(tmp_path / "a.zip", config, tensors=tensors, format_name="rlsmooth-agent", format_version=1)
    with pytest.raises(SafeFileError, match=message):
        load_agent(tmp_path / "a.zip", env="CartPole-v1" if name == "statistics" else None)


# ---- off-policy algorithms, the replay buffer too if it is asked for
@pytest.mark.filterwarnings("ignore:.*is ignored because a custom `replay_buffer_class`")  # their load, to itself
@pytest.mark.parametrize("name", ["DQN-schedule", "SAC", "TD3", "DQN-MultiInput"])
def test_training_on_with_the_replay_buffer_equals_that_of_stable_baselines3(name: str, tmp_path: Path) -> None:
    model = trained(name)
    model.save(tmp_path / "theirs.zip")
    model.save_replay_buffer(tmp_path / "theirs.pkl")
    path = save_agent(model, tmp_path / "ours.zip", include_replay_buffer=True)
    source = OFF_POLICY[name][2]
    ours = load_agent(path, env=make_environment(source))
    theirs = type(model).load(tmp_path / "theirs.zip", env=make_environment(source))
    theirs.load_replay_buffer(tmp_path / "theirs.pkl", truncate_last_traj=False)
    for loaded in (ours, theirs):
        loaded.set_random_seed(5)
        loaded.learn(40, reset_num_timesteps=False)
    assert_equal(ours.get_parameters(), theirs.get_parameters())
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
    config = read_safe_file(path, format_name="rlsmooth-agent", format_version=1).config["config"]
    assert config["arguments"]["replay_buffer_class"] == {"__buffer__": "NStepReplayBuffer"}  # as in files of before


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
    acting = load_agent(save_agent(model, path))
    assert_raises(ValueError, "action_noise was a callable", acting.learn, 1)


def test_a_policy_alone(tmp_path: Path) -> None:
    model = trained("SAC-gSDE")
    policy = load_agent_file(save_agent(model, tmp_path / "agent.zip")).policy
    assert type(policy) is SACPolicy
    assert_equal(policy.state_dict(), model.policy.state_dict())
    assert policy.observation_space == spaces.Box(np.array([-1, -1, -8]), np.array([1, 1, 8]), dtype=np.float32)


def test_a_q_network_in_a_file_of_a_ppo_is_refused(tmp_path: Path) -> None:
    path = save_agent(trained("DQN"), tmp_path / "agent.zip")
    file = read_safe_file(path, format_name="rlsmooth-agent", format_version=1)
    for kind in ("PPO", "bc", "SAC"):
        config = {**file.config, "kind": kind}
        write_safe_file(path, config, tensors=file.tensors, format_name="rlsmooth-agent", format_version=1)
        assert_raises(SafeFileError, None, load_agent, path)


def test_contrib_is_asked_for(programs: Any, tmp_path: Path) -> None:
    paths = [str(save_agent(trained(name), tmp_path / f"{name}.zip")) for name in ("PPO", "SAC", "TQC")]
    code = (
        "import sys; sys.modules['sb3_contrib'] = None\n"
        "from rlsmooth.agents import load_agent\n"
        f"for path in {paths!r}: print(type(load_agent(path)).__name__)"
    )
    finished = programs.run(code, tmp_path)
    assert finished.stdout.split() == ["PPO", "SAC"]
    assert "TQCPolicy needs sb3-contrib. Install it" in finished.stderr


def test_devices(device: torch.device, tmp_path: Path) -> None:
    path = save_agent(trained("SAC-gSDE"), tmp_path / "agent.zip", include_replay_buffer=True)
    model = load_agent(path, env="Pendulum-v1", device=device)
    assert model.policy.device.type == model.log_ent_coef.device.type == device.type
    model.learn(30, reset_num_timesteps=False)


@pytest.mark.skipif(Version(stable_baselines3.__version__) < Version("2.9"), reason="older versions do not warn")
def test_a_buffer_of_other_steps_than_the_algorithms_comes_back(tmp_path: Path) -> None:
    own: dict[str, Any] = {"replay_buffer_class": NStepReplayBuffer}
    own |= {"replay_buffer_kwargs": {"n_steps": 7, "gamma": 0.5}}
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


class NarrowPolicy(ActorCriticPolicy):
    """A policy that passes keywords of its own to its parent."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, net_arch={"pi": [8], "vf": [4]}, activation_fn=nn.ReLU)


def test_a_policy_that_passes_keywords_of_its_own_is_built_again(tmp_path: Path) -> None:
    model = PPO(NarrowPolicy, "CartPole-v1", n_steps=32, batch_size=32)
    loaded = load_agent(save_agent(model, tmp_path / "agent"), policy_class=NarrowPolicy)
    assert_equal(loaded.policy.state_dict(), model.policy.state_dict())
    agent = BC(NarrowPolicy, (spaces.Box(-1, 1, (4,)), spaces.Discrete(2)), None, seed=1)
    again = BC.load(agent.save(tmp_path / "bc"), policy_class=NarrowPolicy)
    assert_equal(again.policy.state_dict(), agent.policy.state_dict())
