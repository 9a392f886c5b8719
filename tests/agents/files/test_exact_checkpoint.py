"""Checkpoints: a run that was cut off and resumed ends as one that never was, bit for bit."""

from __future__ import annotations

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
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize

from rlsmooth.agents.files.exact_checkpoint import (
    MODEL_FILE,
    ExactCheckpointCallback,
    callback_states,
    load_checkpoint,
    set_callback_states,
)
from rlsmooth.envs import Resumable
from rlsmooth.training import checkpoint_steps, rng_state, seed_everything

MASKED = "rlsmooth.envs:rlsmooth/IdentityMasked-v0"
Build = Callable[[VecEnv], OnPolicyAlgorithm]


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


def plain(name: str, count: int = 2) -> VecEnv:
    return make_vec_env(name, count)


def normalised(name: str) -> VecEnv:
    return VecNormalize(VecFrameStack(make_vec_env(name, 2), 2))


def monitored(name: str) -> VecEnv:
    return VecMonitor(make_vec_env(name, 3, monitor_dir=None))


CASES: dict[str, tuple[Callable[[], VecEnv], Build]] = {
    "PPO-CartPole": (
        partial(plain, "CartPole-v1"),
        lambda env: PPO("MlpPolicy", env, n_steps=64, n_epochs=3, seed=1, learning_rate=LinearSchedule(1e-3, 0.0, 1.0)),
    ),
    "A2C-CartPole": (
        partial(plain, "CartPole-v1"),
        lambda env: A2C("MlpPolicy", env, seed=1, learning_rate=lambda progress: 1e-3 * progress),
    ),
    "PPO-Pendulum-normalised": (
        partial(normalised, "Pendulum-v1"),
        lambda env: PPO("MlpPolicy", env, n_steps=64, n_epochs=3, seed=1),
    ),
    "A2C-Pendulum": (partial(plain, "Pendulum-v1", 1), lambda env: A2C("MlpPolicy", env, n_steps=20, seed=1)),
    "PPO-Pendulum-gSDE": (
        partial(plain, "Pendulum-v1"),
        lambda env: PPO("MlpPolicy", env, n_steps=64, n_epochs=3, seed=1, use_sde=True),
    ),
    "A2C-Pendulum-gSDE-resampled": (
        partial(plain, "Pendulum-v1"),
        lambda env: A2C("MlpPolicy", env, n_steps=16, seed=1, use_sde=True, sde_sample_freq=4),
    ),
    "MaskablePPO": (partial(plain, MASKED), lambda env: MaskablePPO("MlpPolicy", env, n_steps=64, n_epochs=3, seed=1)),
    "RecurrentPPO-CartPole": (
        partial(plain, "CartPole-v1"),
        lambda env: RecurrentPPO(
            "MlpLstmPolicy", env, n_steps=64, n_epochs=2, seed=1, policy_kwargs={"lstm_hidden_size": 8}
        ),
    ),
    "RecurrentPPO-Pendulum": (
        partial(plain, "Pendulum-v1"),
        lambda env: RecurrentPPO(
            "MlpLstmPolicy", env, n_steps=64, n_epochs=2, seed=1, policy_kwargs={"lstm_hidden_size": 8}
        ),
    ),
}


def end_state(model: OnPolicyAlgorithm) -> dict[str, Any]:
    """All that could differ at the end of a run, the clock excepted."""
    normaliser = model.get_vec_normalize_env()
    assert model.env is not None
    return {
        "policy": model.policy.state_dict(),
        "optimizer": model.policy.optimizer.state_dict()["state"],
        "lr": model.policy.optimizer.param_groups[0]["lr"],
        "num_timesteps": model.num_timesteps,
        "n_updates": model._n_updates,
        "progress": model._current_progress_remaining,
        "episodes": [(float(info["r"]), int(info["l"])) for info in model.ep_info_buffer or ()],
        "last_obs": model._last_obs,
        "episode_starts": model._last_episode_starts,
        "original_obs": model._last_original_obs,
        "logged": {name: value for name, value in model.logger.name_to_value.items() if not name.startswith("time/")},
        "statistics": None if normaliser is None else (normaliser.obs_rms.mean, normaliser.ret_rms.var),
        "rng": rng_state(),
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


def uninterrupted(make_env: Callable[[], VecEnv], build: Build, total: int, *callbacks: BaseCallback) -> dict[str, Any]:
    env = make_env()
    seed_everything(7)
    model = build(env)
    model.learn(total, callback=list(callbacks))
    state = end_state(model)
    env.close()
    return state


def cut_off(
    make_env: Callable[[], VecEnv], build: Build, total: int, folder: Path, at: int, *callbacks: BaseCallback
) -> None:
    env = make_env()
    seed_everything(7)
    with pytest.raises(KilledError):
        build(env).learn(total, callback=[ExactCheckpointCallback(100, folder), *callbacks, KillAt(at)])
    env.close()
    seed_everything(99)  # whatever a new process starts from


OFTEN = ("PPO-CartPole", "A2C-CartPole", "PPO-Pendulum-normalised", "MaskablePPO", "RecurrentPPO-Pendulum")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in OFTEN else pytest.mark.slow) for case in CASES]
)
def test_a_resumed_run_ends_as_an_uninterrupted_one(case: str, tmp_path: Path) -> None:
    make_env, build = CASES[case]
    total = 640
    expected = uninterrupted(make_env, build, total)
    cut_off(make_env, build, total, tmp_path, 390)
    env = make_env()
    custom = {"learning_rate": lambda progress: 1e-3 * progress} if case == "A2C-CartPole" else None
    run = load_checkpoint(tmp_path, env, custom_objects=custom)
    assert run.is_exact
    assert 200 < run.model.num_timesteps < 390
    assert run.total_timesteps == run.model.num_timesteps + run.remaining_timesteps == total
    run.model.learn(run.remaining_timesteps, callback=[run.callback, KillAt(10**9)], reset_num_timesteps=False)
    assert_equal(end_state(run.model), expected)
    env.close()


def test_checkpoints_fall_in_the_middle_of_episodes(tmp_path: Path) -> None:
    """Otherwise the test above would show less than it says."""
    make_env, build = CASES["PPO-Pendulum-gSDE"]
    cut_off(make_env, build, 640, tmp_path, 390)
    model = load_checkpoint(tmp_path, make_env()).model
    assert model.env is not None
    assert model._last_episode_starts is not None
    assert not model._last_episode_starts.any()
    assert 0 < model.env.get_attr("_elapsed_steps")[0] < 200


def test_environments_in_processes_of_their_own(tmp_path: Path) -> None:
    def make_env() -> VecEnv:
        return make_vec_env(
            "Pendulum-v1",
            2,
            wrapper_class=Resumable,
            vec_env_cls=SubprocVecEnv,
            vec_env_kwargs={"start_method": "fork"},
        )

    def build(env: VecEnv) -> OnPolicyAlgorithm:
        return PPO("MlpPolicy", env, n_steps=64, seed=1)

    expected = uninterrupted(make_env, build, 512)
    cut_off(make_env, build, 512, tmp_path, 300)
    env = make_env()
    run = load_checkpoint(tmp_path, env)
    run.model.learn(run.remaining_timesteps, callback=run.callback, reset_num_timesteps=False)
    assert_equal(end_state(run.model), expected)
    env.close()


def test_a_run_cut_off_twice_and_one_resumed_from_its_end(tmp_path: Path) -> None:
    make_env, build = CASES["PPO-Pendulum-gSDE"]

    def twice() -> dict[str, Any]:
        env = make_env()
        seed_everything(7)
        model = build(env)
        model.learn(512).learn(256, reset_num_timesteps=False)
        return end_state(model)

    expected = twice()
    cut_off(make_env, build, 512, tmp_path, 200)
    run = load_checkpoint(tmp_path, make_env())
    with pytest.raises(KilledError):
        run.model.learn(run.remaining_timesteps, callback=[run.callback, KillAt(390)], reset_num_timesteps=False)
    seed_everything(5)
    run = load_checkpoint(tmp_path, make_env())
    run.model.learn(run.remaining_timesteps, callback=[run.callback, KillAt(10**9)], reset_num_timesteps=False)
    seed_everything(6)
    run = load_checkpoint(tmp_path, make_env())
    assert run.remaining_timesteps == 0
    run.model.learn(256, callback=[run.callback, KillAt(10**9)], reset_num_timesteps=False)
    assert_equal(end_state(run.model), expected)


def test_other_callbacks_go_on_where_they_were(tmp_path: Path) -> None:
    make_env, build = CASES["PPO-CartPole"]

    def evaluation(log: Path, frequency: int = 50) -> EvalCallback:
        eval_env = make_vec_env("CartPole-v1", 1, seed=3)
        return EvalCallback(
            eval_env,
            eval_freq=frequency,
            n_eval_episodes=2,
            deterministic=False,
            log_path=str(log),
            verbose=0,
            warn=False,
        )

    def results(callback: EvalCallback) -> Any:
        return callback.n_calls, callback.best_mean_reward, callback.evaluations_results, callback.evaluations_timesteps

    first, second, third = (evaluation(tmp_path / name) for name in ("first", "second", "third"))
    expected = uninterrupted(make_env, build, 640, first)
    cut_off(make_env, build, 640, tmp_path / "run", 390, second)
    run = load_checkpoint(tmp_path / "run", make_env())
    callbacks = [run.callback, third, KillAt(10**9)]
    run.model.learn(run.remaining_timesteps, callback=callbacks, reset_num_timesteps=False)
    assert_equal(end_state(run.model), expected)  # a stochastic evaluation draws from the global generators
    assert results(third) == results(first)
    assert third.log_path == str(tmp_path / "third" / "evaluations")  # an argument: the new one holds


def test_a_forged_state_of_callbacks_says_not_where_to_write(tmp_path: Path) -> None:
    """A checkpoint from elsewhere could otherwise have a resumed run write its agents and evaluations anywhere."""
    callback = EvalCallback(make_vec_env("CartPole-v1", 1), best_model_save_path="here", warn=False)
    own = ExactCheckpointCallback(100, tmp_path)
    (state,) = callback_states(callback, own)
    assert "best_model_save_path" not in state["values"]
    state["values"] |= {"n_calls": 7}
    assert set_callback_states(callback, own, [state]) == ""
    assert callback.n_calls == 7
    forged = ["there", {"kind": "list", "number": 0, "items": ["there"]}, {"kind": "numpy_text", "text": "there"}]
    for name in ("best_model_save_path", "log_path", "model", "_on_step", "__class__"):
        for value in [*forged, *([] if "path" in name else [None])]:
            problem = set_callback_states(callback, own, [{**state, "values": {name: value}}])
            assert problem.startswith(f"{name} of stable_baselines3.common.callbacks.EvalCallback is not the file's")
    assert (callback.best_model_save_path, callback.log_path, type(callback)) == ("here", None, EvalCallback)
    assert "_on_step" not in vars(callback)


def test_what_happens_between_loading_and_learning_does_not_matter(tmp_path: Path) -> None:
    make_env, build = CASES["RecurrentPPO-Pendulum"]
    expected = uninterrupted(make_env, build, 256)
    cut_off(make_env, build, 256, tmp_path, 100)  # killed in the first rollout
    run = load_checkpoint(tmp_path, make_env())
    assert run.model.num_timesteps == 0
    assert run.model.env is not None
    run.model.env.reset()
    run.model.env.step(np.zeros((2, 1)))
    run.model.learn(run.remaining_timesteps, callback=run.callback)  # resets the environments
    assert_equal(end_state(run.model), expected)


class Hidden(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps something where Python can't see it."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.hidden = torch.zeros(1)


def test_environments_that_can_not_be_kept_start_new_episodes(tmp_path: Path) -> None:
    def make_env() -> VecEnv:
        return VecNormalize(make_vec_env("Pendulum-v1", 2, wrapper_class=Hidden))

    model = PPO("MlpPolicy", make_env(), n_steps=64, seed=1)
    with pytest.warns(RuntimeWarning, match=r"A run resumed from here starts new episodes: env\.hidden is a torch"):
        model.learn(256, callback=ExactCheckpointCallback(1, tmp_path))
    with pytest.warns(RuntimeWarning, match=r"The resumed run starts new episodes: env\.hidden"):
        run = load_checkpoint(tmp_path, make_env())
    assert not run.is_exact
    assert_equal(run.model.policy.state_dict(), model.policy.state_dict())
    normaliser, expected = run.model.get_vec_normalize_env(), model.get_vec_normalize_env()
    assert normaliser is not None
    assert expected is not None
    assert_equal(normaliser.obs_rms.mean, expected.obs_rms.mean)
    run.model.learn(128, callback=run.callback, reset_num_timesteps=False)
    assert run.model.num_timesteps == 384
    env = make_vec_env("CartPole-v1", 1, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})
    with pytest.warns(RuntimeWarning, match=r"processes of their own.*wrapper_class=rlsmooth\.envs"):
        PPO("MlpPolicy", env, n_steps=64).learn(64, callback=ExactCheckpointCallback(64, tmp_path / "other"))
    env.close()


def test_misuse_is_refused(tmp_path: Path) -> None:
    make_env, build = CASES["PPO-CartPole"]
    with pytest.raises(ValueError, match="holds no run to go on with"):
        load_checkpoint(tmp_path, make_env())
    cut_off(make_env, build, 640, tmp_path, 390)
    with pytest.raises(ValueError, match="holds the checkpoints of a run that reached 384"):
        build(make_env()).learn(64, callback=ExactCheckpointCallback(100, tmp_path))
    with pytest.raises(ValueError, match="env has 3 environments, the run had 2"):
        load_checkpoint(tmp_path, make_vec_env("CartPole-v1", 3))
    run = load_checkpoint(tmp_path, make_env())
    reached = run.model.num_timesteps
    with pytest.raises(ValueError, match="reset_num_timesteps=False"):
        run.model.learn(run.remaining_timesteps, callback=run.callback)
    newest = tmp_path / f"checkpoint_{checkpoint_steps(tmp_path)[-1]}.zip"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(RuntimeWarning, match="Passed over a bad checkpoint"):
        assert load_checkpoint(tmp_path, make_env()).model.num_timesteps < reached


SCRIPT = """
import sys, torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from rlsmooth.agents.files.exact_checkpoint import ExactCheckpointCallback, load_checkpoint
from rlsmooth.training import checkpoint_steps
folder, total, end = sys.argv[1], int(sys.argv[2]), sys.argv[3]
env = make_vec_env("CartPole-v1", 2)
if checkpoint_steps(folder):
    run = load_checkpoint(folder, env, device="cpu")
    print("resumed at", run.model.num_timesteps, flush=True)
    run.model.learn(run.remaining_timesteps, callback=run.callback, reset_num_timesteps=False)
    torch.save([run.model.policy.state_dict(), [info["r"] for info in run.model.ep_info_buffer]], end)
else:
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=2, seed=1, device="cpu")
    model.learn(total, callback=ExactCheckpointCallback(1, folder))
    torch.save([model.policy.state_dict(), [info["r"] for info in model.ep_info_buffer]], end)
"""


@pytest.mark.slow  # `rlsmooth ppo` is killed in the same way in scripts/test_ppo.py
def test_a_run_killed_at_any_moment_goes_on_in_a_new_process(tmp_path: Path) -> None:
    total, folder, end = 2048, tmp_path / "run", tmp_path / "end.pt"
    env = make_vec_env("CartPole-v1", 2)
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=2, seed=1, device="cpu").learn(total)
    command = [sys.executable, "-P", "-c", SCRIPT, str(folder), str(total), str(end)]
    process = subprocess.Popen(command)
    while len(checkpoint_steps(folder)) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(float(np.random.default_rng(os.getpid()).uniform(0.0, 0.3)))  # any moment, that of a save too
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not end.exists()
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    assert finished.stdout.startswith("resumed at ")
    policy, rewards = torch.load(end, weights_only=True)
    assert_equal(policy, model.policy.state_dict())
    assert rewards == [info["r"] for info in model.ep_info_buffer or ()]
    assert checkpoint_steps(folder)[-1] == total
    assert sorted(path.name for path in folder.glob("*") if "checkpoint" not in path.name) == [MODEL_FILE]
