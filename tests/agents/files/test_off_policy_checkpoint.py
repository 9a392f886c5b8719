"""Checkpoints of off-policy algorithms: a run that was cut off and resumed ends as one that never was, bit for bit."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import QRDQN, TQC, CrossQ
from stable_baselines3 import DDPG, DQN, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv, SimpleMultiObsEnv
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

from rlsmooth.agents.files.exact_checkpoint import MODEL_FILE, ExactCheckpointCallback, load_checkpoint
from rlsmooth.envs.snapshot_values import CannotSnapshotError
from rlsmooth.training import checkpoint_steps, rng_state, seed_everything

Build = Callable[[VecEnv], OffPolicyAlgorithm]
TOTAL, AT = 280, 190
PASSING = ("start_time", "_num_timesteps_at_start", "target_entropy")  # the last: TQC's is numpy's, then Python's
ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class KilledError(Exception):
    """Ends a run in the middle of a rollout, as a kill does: nothing of it is used again."""


class KillAt(BaseCallback):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.step:
            raise KilledError
        return True


class Hidden(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps something where Python can't see it."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.hidden = torch.zeros(1)


def plain(name: str, count: int) -> VecEnv:
    return make_vec_env(name, count)


def normalised() -> VecEnv:
    return VecNormalize(VecFrameStack(make_vec_env("Pendulum-v1", 2), 2))


def dict_env() -> VecEnv:
    """Draws what it shows from the global generator when it is built, so all of a test from the same seed."""
    np.random.seed(3)  # noqa: NPY002
    return make_vec_env(SimpleMultiObsEnv, 2, env_kwargs={"discrete_actions": True})


def built(algorithm: type[Any], policy: str = "MlpPolicy", **arguments: Any) -> Build:
    def build(env: VecEnv) -> OffPolicyAlgorithm:
        small = {"buffer_size": 1000, "learning_starts": 50, "batch_size": 8, "seed": 1}
        narrow = {} if policy == "MultiInputPolicy" else {"policy_kwargs": {"net_arch": [8, 8]}}
        model: OffPolicyAlgorithm = algorithm(policy, env, **copy.deepcopy({**small, **narrow, **arguments}))
        return model

    return build


OU = OrnsteinUhlenbeckActionNoise(np.zeros(1), 0.2 * np.ones(1), dt=0.3)
PENDULUM, TWO_PENDULUMS = partial(plain, "Pendulum-v1", 1), partial(plain, "Pendulum-v1", 2)
CASES: dict[str, tuple[Callable[[], VecEnv], Build]] = {
    "DQN": (
        partial(plain, "CartPole-v1", 1),
        built(DQN, train_freq=4, target_update_interval=30, exploration_fraction=0.8),
    ),
    "DQN-n-steps": (partial(plain, "CartPole-v1", 2), built(DQN, n_steps=3, buffer_size=100, train_freq=2)),
    "DQN-Dict": (dict_env, built(DQN, "MultiInputPolicy", buffer_size=100, train_freq=16, learning_starts=100)),
    "SAC": (PENDULUM, built(SAC)),
    "SAC-normalised": (normalised, built(SAC, ent_coef=0.1, gradient_steps=-1)),
    "SAC-gSDE": (TWO_PENDULUMS, built(SAC, use_sde=True, train_freq=8, use_sde_at_warmup=True)),
    "SAC-gSDE-resampled": (TWO_PENDULUMS, built(SAC, use_sde=True, sde_sample_freq=3, train_freq=8)),
    "TD3": (TWO_PENDULUMS, built(TD3, action_noise=OU, policy_delay=3)),
    "TD3-episodes": (PENDULUM, built(TD3, train_freq=(1, "episode"), gradient_steps=20, buffer_size=150)),
    "DDPG": (PENDULUM, built(DDPG, action_noise=NormalActionNoise(np.zeros(1), 0.1 * np.ones(1)))),
    "QRDQN": (partial(plain, "CartPole-v1", 1), built(QRDQN, train_freq=4)),
    "TQC": (PENDULUM, built(TQC, train_freq=2)),
    "CrossQ": (PENDULUM, built(CrossQ, train_freq=2)),
}
OFTEN = ("DQN", "DQN-n-steps", "SAC", "SAC-gSDE", "TD3", "TD3-episodes")


def end_state(model: OffPolicyAlgorithm) -> dict[str, Any]:
    """All that could differ at the end of a run, the clock excepted."""
    normaliser = model.get_vec_normalize_env()
    buffer: Any = model.replay_buffer
    noise: Any = model.action_noise
    assert model.env is not None
    return {
        "parameters": model.get_parameters(),  # networks, targets, optimisers, ent_coef
        "counters": {
            name: value
            for name, value in vars(model).items()
            if type(value) in (bool, int, float) and name not in PASSING
        },
        "buffer": {name: getattr(buffer, name) for name in ARRAYS},
        "place": (buffer.pos, buffer.full),
        "noise": [each.noise_prev for each in noise.noises] if isinstance(noise, VectorizedActionNoise) else None,
        "episodes": [(float(info["r"]), int(info["l"])) for info in model.ep_info_buffer or ()],
        "last_obs": model._last_obs,
        "original_obs": model._last_original_obs,
        "logged": {name: value for name, value in model.logger.name_to_value.items() if not name.startswith("time/")},
        "statistics": None if normaliser is None else (normaliser.obs_rms.mean, normaliser.ret_rms.var),
        "rng": rng_state(),
        "next_action": model.action_space.sample(),
        "next_obs": model.env.reset(),  # the environments' own generators
    }


def assert_equal(one: Any, other: Any, where: str = "") -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{where}[{index}]")
    elif isinstance(one, (torch.Tensor, np.ndarray)):
        assert one.dtype == other.dtype, where
        assert np.array_equal(np.asarray(one), np.asarray(other), equal_nan=one.dtype != np.uint8), where
    else:
        assert one == other, where


def uninterrupted(case: str, total: int) -> dict[str, Any]:
    make_env, build = CASES[case]
    env = make_env()
    seed_everything(7)
    state = end_state(build(env).learn(total))
    env.close()
    return state


def cut_off(case: str, total: int, folder: Path, at: int) -> None:
    make_env, build = CASES[case]
    env = make_env()
    seed_everything(7)
    with pytest.raises(KilledError):
        build(env).learn(total, callback=[ExactCheckpointCallback(60, folder), KillAt(at)])
    env.close()


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in OFTEN else pytest.mark.slow) for case in CASES]
)
def test_a_resumed_run_ends_as_an_uninterrupted_one(case: str, tmp_path: Path) -> None:
    total, at = (800, 650) if "episodes" in case else (TOTAL, AT)
    expected = uninterrupted(case, total)
    cut_off(case, total, tmp_path, at)
    env = CASES[case][0]()
    seed_everything(99)  # whatever a new process starts from
    run = load_checkpoint(tmp_path, env)
    assert run.is_exact
    assert 120 <= run.model.num_timesteps < at
    assert run.total_timesteps == run.model.num_timesteps + run.remaining_timesteps == total
    run.model.learn(run.remaining_timesteps, callback=[run.callback, KillAt(10**9)], reset_num_timesteps=False)
    assert_equal(end_state(run.model), expected)
    env.close()


def test_checkpoints_fall_in_the_middle_of_episodes_and_of_learning(tmp_path: Path) -> None:
    """Otherwise the test above would show less than it says."""
    cut_off("TD3", TOTAL, tmp_path, AT)
    model = load_checkpoint(tmp_path, CASES["TD3"][0]()).model
    assert 0 < model.env.get_attr("_elapsed_steps")[0] < 200
    assert model.replay_buffer.size() == model.num_timesteps // 2
    assert model._n_updates > 20
    cut_off("DQN-n-steps", TOTAL, tmp_path / "full", AT)
    assert load_checkpoint(tmp_path / "full", CASES["DQN-n-steps"][0]()).model.replay_buffer.full


def test_before_learning_starts_and_after_the_end(tmp_path: Path) -> None:
    make_env, build = CASES["SAC-gSDE"]
    seed_everything(7)
    model = build(make_env())
    expected = end_state(model.learn(240).learn(80, reset_num_timesteps=False))
    cut_off("SAC-gSDE", 240, tmp_path, 30)
    run = load_checkpoint(tmp_path, make_env())
    assert run.model.num_timesteps == 0
    run.model.env.reset()
    run.model.env.step(np.zeros((2, 1)))
    run.model.learn(run.remaining_timesteps, callback=[run.callback, KillAt(10**9)])  # resets the environments
    seed_everything(6)
    run = load_checkpoint(tmp_path, make_env())
    assert run.remaining_timesteps == 0
    run.model.learn(80, callback=[run.callback, KillAt(10**9)], reset_num_timesteps=False)
    assert_equal(end_state(run.model), expected)


def test_environments_that_can_not_be_kept_start_new_episodes(tmp_path: Path) -> None:
    def make_env() -> VecEnv:
        return VecNormalize(make_vec_env("Pendulum-v1", 2, wrapper_class=Hidden))

    build = CASES["TD3"][1]
    model = build(make_env())
    with pytest.warns(RuntimeWarning, match="A run resumed from here starts new episodes"):
        model.learn(200, callback=ExactCheckpointCallback(50, tmp_path))
    with pytest.warns(RuntimeWarning, match="The resumed run starts new episodes"):
        run = load_checkpoint(tmp_path, make_env())
    assert not run.is_exact
    assert_equal(run.model.get_parameters(), model.get_parameters())
    assert isinstance(model.replay_buffer, ReplayBuffer)
    assert np.array_equal(run.model.replay_buffer.observations, model.replay_buffer.observations)
    run.model.learn(50, callback=run.callback, reset_num_timesteps=False)
    assert (run.model.num_timesteps, run.model.replay_buffer.size()) == (250, 125)


def test_what_can_not_be_kept_is_refused_at_the_start(tmp_path: Path) -> None:
    env = BitFlippingEnv(n_bits=3, continuous=False)
    her: dict[str, Any] = {"replay_buffer_class": HerReplayBuffer}
    model: DQN = DQN("MultiInputPolicy", env, buffer_size=50, **her)
    with pytest.raises(TypeError, match="is a HerReplayBuffer: only ReplayBuffer"):
        model.learn(10, callback=ExactCheckpointCallback(10, tmp_path))
    saving: dict[str, Any] = {"handle_timeout_termination": False}
    model = DQN("MlpPolicy", "CartPole-v1", buffer_size=50, optimize_memory_usage=True, replay_buffer_kwargs=saving)
    with pytest.raises(TypeError, match="has optimize_memory_usage=True"):
        model.learn(10, callback=ExactCheckpointCallback(10, tmp_path))
    assert not list(tmp_path.iterdir())


class HiddenNoise(NormalActionNoise):
    """Keeps something where Python can't see it."""

    hidden: Any = None


def test_misuse_is_refused(tmp_path: Path) -> None:
    cut_off("TD3", TOTAL, tmp_path, AT)
    with pytest.raises(ValueError, match="env has 3 environments, the run had 2"):
        load_checkpoint(tmp_path, make_vec_env("Pendulum-v1", 3))
    with pytest.raises(ValueError, match="the algorithm's is a ReplayBuffer with"):
        load_checkpoint(tmp_path, TWO_PENDULUMS(), custom_objects={"buffer_size": 100})
    run = load_checkpoint(tmp_path, TWO_PENDULUMS(), custom_objects={"action_noise": None})
    with pytest.raises(CannotSnapshotError, match="don't both have an action_noise"):
        run.model.learn(run.remaining_timesteps, callback=run.callback, reset_num_timesteps=False)
    noise = HiddenNoise(np.zeros(1), np.ones(1))
    noise.hidden = torch.zeros(1)
    model = CASES["DDPG"][1](PENDULUM())
    model.action_noise = noise
    with pytest.raises(CannotSnapshotError, match=r"action_noise\.hidden is a torch"):
        model.learn(10, callback=ExactCheckpointCallback(10, tmp_path / "other"))


SCRIPT = """
import sys, torch
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from rlsmooth.agents.files.exact_checkpoint import ExactCheckpointCallback, load_checkpoint
from rlsmooth.training import checkpoint_steps
torch.set_num_threads(1)
folder, total, end, name, save_freq = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5])
env = make_vec_env("CartPole-v1" if name == "DQN" else "Pendulum-v1", 1)
if checkpoint_steps(folder):
    run = load_checkpoint(folder, env, device="cpu")
    print("resumed at", run.model.num_timesteps, flush=True)
    model, left, callback = run.model, run.remaining_timesteps, run.callback
else:
    model = {"DQN": DQN, "SAC": SAC, "TD3": TD3}[name](
        "MlpPolicy", env, learning_starts=100, batch_size=16, seed=1, device="cpu", policy_kwargs={"net_arch": [8]}
    )
    left, callback = total, ExactCheckpointCallback(save_freq, folder) if save_freq else None
model.learn(left, callback=callback, reset_num_timesteps=model.num_timesteps == 0)
torch.save([model.policy.state_dict(), [info["r"] for info in model.ep_info_buffer], model.num_timesteps], end)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DQN", "SAC", "TD3"])
def test_a_run_killed_at_any_moment_goes_on_in_a_new_process(name: str, tmp_path: Path) -> None:
    total, folder, end, whole = 600, tmp_path / "run", tmp_path / "end.pt", tmp_path / "whole.pt"
    command = [sys.executable, "-P", "-c", SCRIPT]
    process = subprocess.Popen([*command, str(folder), str(total), str(end), name, "30"])
    while len(checkpoint_steps(folder)) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(float(np.random.default_rng(os.getpid()).uniform(0.0, 0.3)))  # any moment, that of a save too
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not end.exists()
    resumed = subprocess.run(
        [*command, str(folder), str(total), str(end), name, "30"], check=True, capture_output=True, text=True
    )
    assert resumed.stdout.startswith("resumed at ")
    subprocess.run([*command, str(tmp_path / "none"), str(total), str(whole), name, "0"], check=True)
    assert_equal(torch.load(end, weights_only=True), torch.load(whole, weights_only=True))
    assert checkpoint_steps(folder)[-1] == total
    assert sorted(path.name for path in folder.glob("*") if "checkpoint" not in path.name) == [MODEL_FILE]
