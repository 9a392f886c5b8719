"""Checkpoints: a run that was cut off and resumed ends as one that never was, bit for bit."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib import QRDQN, TQC, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv, SimpleMultiObsEnv
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize

from killing import kill_and_resume
from rlsmooth.agents.files.exact_checkpoint import (
    MODEL_FILE,
    ExactCheckpointCallback,
    callback_states,
    load_checkpoint,
    set_callback_states,
)
from rlsmooth.envs import Resumable
from rlsmooth.envs.snapshot_values import CannotSnapshotError
from rlsmooth.training import checkpoint_steps, rng_state, seed_everything
from support import Hidden, KillAt, KilledError, assert_equal

MASKED = "rlsmooth.envs:rlsmooth/IdentityMasked-v0"
Build = Callable[[VecEnv], OnPolicyAlgorithm]


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
    run.model.env.reset()
    run.model.env.step(np.zeros((2, 1)))
    run.model.learn(run.remaining_timesteps, callback=run.callback)  # resets the environments
    assert_equal(end_state(run.model), expected)


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
    assert_equal(normaliser.obs_rms.mean, expected.obs_rms.mean)
    run.model.learn(128, callback=run.callback, reset_num_timesteps=False)
    assert run.model.num_timesteps == 384
    env = make_vec_env("CartPole-v1", 1, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})
    with pytest.warns(RuntimeWarning, match=r"processes of their own.*wrapper_class=rlsmooth\.envs"):
        PPO("MlpPolicy", env, n_steps=64).learn(64, callback=ExactCheckpointCallback(64, tmp_path / "other"))
    env.close()


def test_misuse_is_refused(tmp_path: Path) -> None:
    make_env, build = CASES["PPO-CartPole"]
    cut_off(make_env, build, 640, tmp_path, 390)
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
folder, end, total = sys.argv[1], sys.argv[2], int(sys.argv[3])
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
    policy, rewards = kill_and_resume(SCRIPT, folder, end, total)
    assert_equal(policy, model.policy.state_dict())
    assert rewards == [info["r"] for info in model.ep_info_buffer or ()]
    assert checkpoint_steps(folder)[-1] == total
    assert sorted(path.name for path in folder.glob("*") if "checkpoint" not in path.name) == [MODEL_FILE]


# ---- off-policy algorithms
OffPolicyBuild = Callable[[VecEnv], OffPolicyAlgorithm]
TOTAL, AT = 280, 190
PASSING = ("start_time", "_num_timesteps_at_start", "target_entropy")  # the last: TQC's is numpy's, then Python's
ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def normalised_pendulum() -> VecEnv:
    return VecNormalize(VecFrameStack(make_vec_env("Pendulum-v1", 2), 2))


def dict_env() -> VecEnv:
    """Draws what it shows from the global generator when it is built, so all of a test from the same seed."""
    np.random.seed(3)  # noqa: NPY002
    return make_vec_env(SimpleMultiObsEnv, 2, env_kwargs={"discrete_actions": True})


def built(algorithm: type[Any], policy: str = "MlpPolicy", **arguments: Any) -> OffPolicyBuild:
    def build(env: VecEnv) -> OffPolicyAlgorithm:
        small = {"buffer_size": 1000, "learning_starts": 50, "batch_size": 8, "seed": 1}
        narrow = {} if policy == "MultiInputPolicy" else {"policy_kwargs": {"net_arch": [8, 8]}}
        model: OffPolicyAlgorithm = algorithm(policy, env, **copy.deepcopy({**small, **narrow, **arguments}))
        return model

    return build


OU = OrnsteinUhlenbeckActionNoise(np.zeros(1), 0.2 * np.ones(1), dt=0.3)
PENDULUM, TWO_PENDULUMS = partial(plain, "Pendulum-v1", 1), partial(plain, "Pendulum-v1", 2)
OFF_POLICY_CASES: dict[str, tuple[Callable[[], VecEnv], OffPolicyBuild]] = {
    "DQN": (
        partial(plain, "CartPole-v1", 1),
        built(DQN, train_freq=4, target_update_interval=30, exploration_fraction=0.8),
    ),
    "DQN-n-steps": (partial(plain, "CartPole-v1", 2), built(DQN, n_steps=3, buffer_size=100, train_freq=2)),
    "DQN-Dict": (dict_env, built(DQN, "MultiInputPolicy", buffer_size=100, train_freq=16, learning_starts=100)),
    "SAC": (PENDULUM, built(SAC)),
    "SAC-normalised": (normalised_pendulum, built(SAC, ent_coef=0.1, gradient_steps=-1)),
    "SAC-gSDE": (TWO_PENDULUMS, built(SAC, use_sde=True, train_freq=8, use_sde_at_warmup=True)),
    "SAC-gSDE-resampled": (TWO_PENDULUMS, built(SAC, use_sde=True, sde_sample_freq=3, train_freq=8)),
    "TD3": (TWO_PENDULUMS, built(TD3, action_noise=OU, policy_delay=3)),
    "TD3-episodes": (PENDULUM, built(TD3, train_freq=(1, "episode"), gradient_steps=20, buffer_size=150)),
    "DDPG": (PENDULUM, built(DDPG, action_noise=NormalActionNoise(np.zeros(1), 0.1 * np.ones(1)))),
    "QRDQN": (partial(plain, "CartPole-v1", 1), built(QRDQN, train_freq=4)),
    "TQC": (PENDULUM, built(TQC, train_freq=2)),
    "CrossQ": (PENDULUM, built(CrossQ, train_freq=2)),
}
OFF_POLICY_OFTEN = ("DQN", "DQN-n-steps", "SAC", "SAC-gSDE", "TD3", "TD3-episodes")


def off_policy_state(model: OffPolicyAlgorithm) -> dict[str, Any]:
    """All that could differ at the end of a run, the clock excepted."""
    normaliser = model.get_vec_normalize_env()
    buffer: Any = model.replay_buffer
    noise: Any = model.action_noise
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


def uninterrupted_off_policy(case: str, total: int) -> dict[str, Any]:
    make_env, build = OFF_POLICY_CASES[case]
    env = make_env()
    seed_everything(7)
    state = off_policy_state(build(env).learn(total))
    env.close()
    return state


def cut_off_policy(case: str, total: int, folder: Path, at: int) -> None:
    make_env, build = OFF_POLICY_CASES[case]
    env = make_env()
    seed_everything(7)
    with pytest.raises(KilledError):
        build(env).learn(total, callback=[ExactCheckpointCallback(60, folder), KillAt(at)])
    env.close()


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case in OFF_POLICY_OFTEN else pytest.mark.slow) for case in OFF_POLICY_CASES],
)
def test_a_resumed_run_ends_as_an_uninterrupted_one_off_policy(case: str, tmp_path: Path) -> None:
    total, at = (800, 650) if "episodes" in case else (TOTAL, AT)
    expected = uninterrupted_off_policy(case, total)
    cut_off_policy(case, total, tmp_path, at)
    env = OFF_POLICY_CASES[case][0]()
    seed_everything(99)  # whatever a new process starts from
    run = load_checkpoint(tmp_path, env)
    assert run.is_exact
    assert 120 <= run.model.num_timesteps < at
    assert run.total_timesteps == run.model.num_timesteps + run.remaining_timesteps == total
    run.model.learn(run.remaining_timesteps, callback=[run.callback, KillAt(10**9)], reset_num_timesteps=False)
    assert_equal(off_policy_state(run.model), expected)
    env.close()


def test_checkpoints_fall_in_the_middle_of_episodes_and_of_learning(tmp_path: Path) -> None:
    """Otherwise the test above would show less than it says."""
    cut_off_policy("TD3", TOTAL, tmp_path, AT)
    model = load_checkpoint(tmp_path, OFF_POLICY_CASES["TD3"][0]()).model
    assert 0 < model.env.get_attr("_elapsed_steps")[0] < 200
    assert model.replay_buffer.size() == model.num_timesteps // 2
    assert model._n_updates > 20
    cut_off_policy("DQN-n-steps", TOTAL, tmp_path / "full", AT)
    assert load_checkpoint(tmp_path / "full", OFF_POLICY_CASES["DQN-n-steps"][0]()).model.replay_buffer.full


def test_before_learning_starts_and_after_the_end(tmp_path: Path) -> None:
    make_env, build = OFF_POLICY_CASES["SAC-gSDE"]
    seed_everything(7)
    model = build(make_env())
    expected = off_policy_state(model.learn(240).learn(80, reset_num_timesteps=False))
    cut_off_policy("SAC-gSDE", 240, tmp_path, 30)
    run = load_checkpoint(tmp_path, make_env())
    assert run.model.num_timesteps == 0
    run.model.env.reset()
    run.model.env.step(np.zeros((2, 1)))
    run.model.learn(run.remaining_timesteps, callback=[run.callback, KillAt(10**9)])  # resets the environments
    seed_everything(6)
    run = load_checkpoint(tmp_path, make_env())
    assert run.remaining_timesteps == 0
    run.model.learn(80, callback=[run.callback, KillAt(10**9)], reset_num_timesteps=False)
    assert_equal(off_policy_state(run.model), expected)


def test_environments_that_can_not_be_kept_start_new_episodes_off_policy(tmp_path: Path) -> None:
    def make_env() -> VecEnv:
        return VecNormalize(make_vec_env("Pendulum-v1", 2, wrapper_class=Hidden))

    build = OFF_POLICY_CASES["TD3"][1]
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


def test_misuse_is_refused_off_policy(tmp_path: Path) -> None:
    cut_off_policy("TD3", TOTAL, tmp_path, AT)
    with pytest.raises(ValueError, match="the algorithm's is a ReplayBuffer with"):
        load_checkpoint(tmp_path, TWO_PENDULUMS(), custom_objects={"buffer_size": 100})
    run = load_checkpoint(tmp_path, TWO_PENDULUMS(), custom_objects={"action_noise": None})
    with pytest.raises(CannotSnapshotError, match="don't both have an action_noise"):
        run.model.learn(run.remaining_timesteps, callback=run.callback, reset_num_timesteps=False)
    noise = HiddenNoise(np.zeros(1), np.ones(1))
    noise.hidden = torch.zeros(1)
    model = OFF_POLICY_CASES["DDPG"][1](PENDULUM())
    model.action_noise = noise
    with pytest.raises(CannotSnapshotError, match=r"action_noise\.hidden is a torch"):
        model.learn(10, callback=ExactCheckpointCallback(10, tmp_path / "other"))


OFF_POLICY_SCRIPT = """
import sys, torch
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from rlsmooth.agents.files.exact_checkpoint import ExactCheckpointCallback, load_checkpoint
from rlsmooth.training import checkpoint_steps
torch.set_num_threads(1)
folder, end, total, name, save_freq = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
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
def test_a_run_killed_at_any_moment_goes_on_in_a_new_process_off_policy(name: str, tmp_path: Path) -> None:
    total, folder, end, whole = 600, tmp_path / "run", tmp_path / "end.pt", tmp_path / "whole.pt"
    resumed = kill_and_resume(OFF_POLICY_SCRIPT, folder, end, total, name, 30)
    command = [sys.executable, "-P", "-c", OFF_POLICY_SCRIPT, str(tmp_path / "none"), str(whole), str(total), name, "0"]
    subprocess.run(command, check=True)
    assert_equal(resumed, torch.load(whole, weights_only=True))
    assert checkpoint_steps(folder)[-1] == total
    assert sorted(path.name for path in folder.glob("*") if "checkpoint" not in path.name) == [MODEL_FILE]
