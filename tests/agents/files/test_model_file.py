"""Agent files of on-policy algorithms: everything comes back, and a stranger's file runs no code."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import ARS, TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor, nn

from rlsmooth.agents import BC
from rlsmooth.agents.files.algorithm_file import load_agent, save_agent
from rlsmooth.training import SafeFileError, read_safe_file, rng_state, write_safe_file

MASKED = "rlsmooth.envs:rlsmooth/IdentityMasked-v0"
CASES: dict[str, tuple[type[OnPolicyAlgorithm], str, Any, dict[str, Any]]] = {
    "PPO": (PPO, "MlpPolicy", "CartPole-v1", {"n_steps": 32, "batch_size": 32, "gamma": 0.9, "target_kl": 0.5}),
    "PPO-schedules": (
        PPO,
        "MlpPolicy",
        "CartPole-v1",
        {"n_steps": 32, "batch_size": 32, "learning_rate": LinearSchedule(1e-3, 1e-4, 0.5), "clip_range_vf": 0.3},
    ),
    "PPO-gSDE": (PPO, "MlpPolicy", "Pendulum-v1", {"n_steps": 32, "batch_size": 32, "use_sde": True}),
    "PPO-policy": (
        PPO,
        "MlpPolicy",
        "CartPole-v1",
        {
            "n_steps": 32,
            "batch_size": 32,
            "policy_kwargs": {"activation_fn": nn.ReLU, "net_arch": {"pi": [5], "vf": [6, 7]}, "ortho_init": False},
        },
    ),
    "A2C": (A2C, "MlpPolicy", "CartPole-v1", {"gae_lambda": np.float64(0.9), "rms_prop_eps": 1e-4}),
    "A2C-Adam": (A2C, "MlpPolicy", "Pendulum-v1", {"use_rms_prop": False}),
    "TRPO": (TRPO, "MlpPolicy", "CartPole-v1", {"n_steps": 32, "batch_size": 32, "cg_max_steps": 3}),
    "MaskablePPO": (MaskablePPO, "MlpPolicy", MASKED, {"n_steps": 32, "batch_size": 32}),
    "RecurrentPPO": (
        RecurrentPPO,
        "MlpLstmPolicy",
        "CartPole-v1",
        {"n_steps": 32, "batch_size": 32, "policy_kwargs": {"lstm_hidden_size": 8, "n_lstm_layers": 2}},
    ),
    "Cnn": (A2C, "CnnPolicy", FakeImageEnv, {"policy_kwargs": {"features_extractor_kwargs": {"features_dim": 8}}}),
    "MultiInput": (A2C, "MultiInputPolicy", SimpleMultiObsEnv, {}),
}


class MyPPO(PPO):
    """An algorithm that no file may name."""


class MyPolicy(ActorCriticPolicy):
    """A policy that no file may name."""


def environment(source: Any) -> Any:
    return source if isinstance(source, str) else source()


def assert_same(one: Any, other: Any, where: str = "model") -> None:
    if isinstance(one, Tensor):
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


LEFT_OUT = {  # the environment's, the logger's, this process's; and what the two sides of this test give apart
    "_last_episode_starts", "_last_lstm_states", "_last_obs", "_last_original_obs", "_logger", "device", "env",
    "ep_info_buffer", "ep_success_buffer", "lr_schedule", "n_envs", "policy", "rollout_buffer", "start_time",
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_everything_comes_back(name: str, tmp_path: Path) -> None:
    algorithm, policy, source, arguments = CASES[name]
    model: OnPolicyAlgorithm = algorithm(policy, environment(source), seed=1, **arguments)  # type: ignore[arg-type]
    model.learn(64)
    path = save_agent(model, tmp_path / "agent")
    env = environment(source)
    before = rng_state()
    loaded = load_agent(path, env=env)
    assert_same(rng_state(), before)  # the caller's random state
    assert type(loaded) is algorithm
    assert_same(loaded.get_parameters(), model.get_parameters())  # policy and optimiser
    kept = {name: value for name, value in vars(model).items() if name not in LEFT_OUT}
    assert_same({name: value for name, value in vars(loaded).items() if name in kept}, kept)
    assert model.env is not None
    observation = model.env.reset()
    action = model.predict(observation, deterministic=True)[0]  # type: ignore[arg-type]
    for env in (None, environment(source)):
        other = load_agent(path, env=env)
        assert np.array_equal(other.predict(observation, deterministic=True)[0], action)
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.num_timesteps > 64


def test_training_on_equals_training_on_after_the_zip_of_stable_baselines3(tmp_path: Path) -> None:
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, seed=1, learning_rate=LinearSchedule(1e-2, 0, 1))
    model.learn(64)
    model.save(tmp_path / "theirs.zip")
    ours = load_agent(save_agent(model, tmp_path / "ours.zip"), env="CartPole-v1")
    theirs = PPO.load(tmp_path / "theirs.zip", env=make_vec_env("CartPole-v1"))
    for loaded in (ours, theirs):
        loaded.set_random_seed(5)
        loaded.learn(64, reset_num_timesteps=False)
    assert_same(ours.get_parameters(), theirs.get_parameters())


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
        assert found is not None
        assert_same(found.obs_rms.mean.tolist(), env.obs_rms.mean.tolist())
        assert_same(found.obs_rms.var.tolist(), env.obs_rms.var.tolist())
        assert (float(found.ret_rms.var), found.ret_rms.count) == (float(env.ret_rms.var), env.ret_rms.count)
        assert found.clip_obs == 3.0
    with pytest.raises(SafeFileError, match="has norm_obs=False, and the agent was trained with True"):
        load_agent(path, env=VecNormalize(make_vec_env("Pendulum-v1", 1), norm_obs=False))
    raw = np.array([[0.5, 0.1, 3.0]], np.float32)
    assert np.array_equal(found.normalize_obs(raw), env.normalize_obs(raw))
    keyed = VecNormalize(make_vec_env(SimpleMultiObsEnv, 1), norm_obs_keys=["vec"])
    path = save_agent(A2C("MultiInputPolicy", keyed).learn(20), path)
    found = load_agent(path, env=make_vec_env(SimpleMultiObsEnv, 1)).get_vec_normalize_env()
    assert_same(found.obs_rms["vec"].mean.tolist(), keyed.obs_rms["vec"].mean.tolist())
    with pytest.raises(SafeFileError, match="statistics that don't fit env"):
        load_agent(path, env=VecNormalize(make_vec_env(SimpleMultiObsEnv, 1), norm_obs_keys=[]))


def test_a_file_of_bc_gives_a_bc(tmp_path: Path) -> None:
    agent = BC("MlpPolicy", (spaces.Box(-1, 1, (4,)), spaces.Discrete(2)), None, seed=1)
    loaded = load_agent(save_agent(agent, tmp_path / "agent"))
    assert type(loaded) is BC
    assert_same(loaded.policy.state_dict(), agent.policy.state_dict())


def test_callables_and_classes_of_ones_own_are_asked_for(tmp_path: Path) -> None:
    def halved(progress: float) -> float:
        return 1e-3 * progress / 2

    model = MyPPO(MyPolicy, "CartPole-v1", n_steps=32, batch_size=32, learning_rate=halved, clip_range=halved)
    path = save_agent(model, tmp_path / "agent.zip")
    with pytest.raises(SafeFileError, match="load with policy_class=MyPolicy"):
        load_agent(path)
    with pytest.raises(SafeFileError, match="load with model_class=MyPPO"):
        load_agent(path, policy_class=MyPolicy)
    with pytest.raises(SafeFileError, match=r"learning_rate that no file can hold \(.*halved\)"):
        load_agent(path, policy_class=MyPolicy, model_class=MyPPO)
    custom = {"learning_rate": halved, "clip_range": 0.25, "n_steps": 64}
    loaded = load_agent(path, policy_class=MyPolicy, model_class=MyPPO, custom_objects=custom)
    assert (type(loaded), type(loaded.policy), loaded.n_steps) == (MyPPO, MyPolicy, 64)
    assert (loaded.lr_schedule(0.5), loaded.clip_range(1.0)) == (halved(0.5), 0.25)


def test_arguments_are_checked(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="model is a ARS: pass one of A2C, PPO"):
        save_agent(ARS("LinearPolicy", "CartPole-v1"), tmp_path / "x")  # type: ignore[arg-type]
    path = save_agent(PPO("MlpPolicy", "CartPole-v1"), tmp_path / "agent.zip")
    with pytest.raises(ValueError, match="env has observation_space"):
        load_agent(path, env="Pendulum-v1")
    with pytest.raises(TypeError, match=r"model_class=.*ARS.* is no algorithm"):
        load_agent(path, model_class=ARS)  # type: ignore[arg-type]
    with pytest.raises(SafeFileError, match="DQN can't be built from the file's arguments"):
        load_agent(path, model_class=DQN)
    with pytest.raises(SafeFileError, match="does not exist"):
        load_agent(tmp_path / "nothing.zip")


# ---- files from a stranger


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_pickles_run_no_code(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32)
    good = save_agent(model, tmp_path / "good.zip").read_bytes()
    model.policy_kwargs = {"payload": Payload(marker)}
    model.save(tmp_path / "sb3.zip")
    (tmp_path / "pickle.zip").write_bytes(pickle.dumps(Payload(marker)))
    torch.save(Payload(marker), tmp_path / "torch.zip")
    (tmp_path / "member.zip").write_bytes(good)
    with zipfile.ZipFile(tmp_path / "member.zip", "a") as archive:
        archive.writestr("policy.pth", pickle.dumps(Payload(marker)))
    for name in ("sb3", "pickle", "torch", "member"):
        with pytest.raises(SafeFileError):
            load_agent(tmp_path / f"{name}.zip")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()  # the payload does work


FORGED: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "kind": (("kind",), "os.system", "algorithm 'os.system' is not known"),
    "kind of another type": (("kind",), ["PPO"], "lacks a part"),
    "policy": (("policy", "class"), "subprocess.Popen", "not known"),
    "algorithm": (("config", "class"), {"__custom__": "subprocess.Popen"}, "load with model_class"),
    "argument": (("config", "arguments", "learning_rate"), {"__custom__": "os.system"}, "no file can hold"),
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
    "environments": (("config", "n_envs"), "many", "can't be built"),
}


@pytest.fixture(scope="module")
def head_and_tensors(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Mapping[str, Any]]:
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32)
    path = save_agent(model, tmp_path_factory.mktemp("files") / "agent.zip")
    file = read_safe_file(path, format_name="rlsmooth-agent", format_version=1)
    return file.config, file.tensors


@pytest.mark.parametrize("name", FORGED)
def test_forged_files_are_refused(name: str, head_and_tensors: Any, tmp_path: Path) -> None:
    config, tensors = pickle.loads(pickle.dumps(head_and_tensors))
    *where, last = FORGED[name][0]
    place = config
    for key in where:
        place = place[key]
    place[last] = FORGED[name][1]
    write_safe_file(tmp_path / "a.zip", config, tensors=tensors, format_name="rlsmooth-agent", format_version=1)
    env = "CartPole-v1" if name == "statistics" else None
    with pytest.raises(SafeFileError, match=FORGED[name][2]):
        load_agent(tmp_path / "a.zip", env=env)


def test_loading_works_without_contrib(programs: Any, tmp_path: Path) -> None:
    path = save_agent(PPO("MlpPolicy", "CartPole-v1"), tmp_path / "agent.zip")
    code = (
        "import sys; sys.modules['sb3_contrib'] = None\n"
        "from rlsmooth.agents.files.algorithm_file import load_agent\n"
        f"print(type(load_agent({str(path)!r})).__name__)"
    )
    finished = programs.run(code, tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == "PPO"
