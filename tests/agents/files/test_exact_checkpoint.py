"""Checkpoints: a run that was cut off and resumed ends as one that never was, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib import QRDQN, TQC, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv, SimpleMultiObsEnv
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise, VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecFrameStack, VecNormalize

from rlsmooth.agents.files.exact_checkpoint import (
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
Build = Callable[[VecEnv], Any]
PASSING = ("start_time", "_num_timesteps_at_start", "target_entropy")  # the last: TQC's is numpy's, then Python's
ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
OU = OrnsteinUhlenbeckActionNoise(np.zeros(1), 0.2 * np.ones(1), dt=0.3)
NORMAL = NormalActionNoise(np.zeros(1), 0.1 * np.ones(1))


def built(algorithm: type[Any], policy: str = "MlpPolicy", **arguments: Any) -> Build:
    """Builds an algorithm; an off-policy one small."""
    small: dict[str, Any] = {}
    if issubclass(algorithm, OffPolicyAlgorithm):
        small = {"buffer_size": 1000, "learning_starts": 50, "batch_size": 8}
        small |= {} if policy == "MultiInputPolicy" else {"policy_kwargs": {"net_arch": [8, 8]}}
    return lambda env: algorithm(policy, env, seed=1, **copy.deepcopy({**small, **arguments}))


def normalised() -> VecEnv:
    return VecNormalize(VecFrameStack(make_vec_env("Pendulum-v1", 2), 2))


def dict_env() -> VecEnv:
    """Draws what it shows from the global generator when it is built, so all of a test from the same seed."""
    np.random.seed(3)  # noqa: NPY002
    return make_vec_env(SimpleMultiObsEnv, 2, env_kwargs={"discrete_actions": True})


CARTPOLE, CARTPOLES = partial(make_vec_env, "CartPole-v1", 1), partial(make_vec_env, "CartPole-v1", 2)
PENDULUM, PENDULUMS = partial(make_vec_env, "Pendulum-v1", 1), partial(make_vec_env, "Pendulum-v1", 2)
SHORT = {"n_steps": 64, "n_epochs": 3}
LSTM = {"n_steps": 64, "n_epochs": 2, "policy_kwargs": {"lstm_hidden_size": 8}}
LINE = LinearSchedule(1e-3, 0.0, 1.0)
CASES: dict[str, tuple[Callable[[], VecEnv], Build]] = {
    "PPO-CartPole": (CARTPOLES, built(PPO, **SHORT, learning_rate=LINE)),
    "A2C-CartPole": (CARTPOLES, built(A2C, learning_rate=lambda progress: 1e-3 * progress)),
    "PPO-Pendulum-normalised": (normalised, built(PPO, **SHORT)),
    "A2C-Pendulum": (PENDULUM, built(A2C, n_steps=20)),
    "PPO-Pendulum-gSDE": (PENDULUMS, built(PPO, **SHORT, use_sde=True)),
    "A2C-Pendulum-gSDE-resampled": (PENDULUMS, built(A2C, n_steps=16, use_sde=True, sde_sample_freq=4)),
    "MaskablePPO": (partial(make_vec_env, MASKED, 2), built(MaskablePPO, **SHORT)),
    "RecurrentPPO-CartPole": (CARTPOLES, built(RecurrentPPO, "MlpLstmPolicy", **LSTM)),
    "RecurrentPPO-Pendulum": (PENDULUMS, built(RecurrentPPO, "MlpLstmPolicy", **LSTM)),
    "DQN": (CARTPOLE, built(DQN, train_freq=4, target_update_interval=30, exploration_fraction=0.8)),
    "DQN-n-steps": (CARTPOLES, built(DQN, n_steps=3, buffer_size=100, train_freq=2)),
    "DQN-Dict": (dict_env, built(DQN, "MultiInputPolicy", buffer_size=100, train_freq=16, learning_starts=100)),
    "SAC": (PENDULUM, built(SAC)),
    "SAC-normalised": (normalised, built(SAC, ent_coef=0.1, gradient_steps=-1)),
    "SAC-gSDE": (PENDULUMS, built(SAC, use_sde=True, train_freq=8, use_sde_at_warmup=True)),
    "SAC-gSDE-resampled": (PENDULUMS, built(SAC, use_sde=True, sde_sample_freq=3, train_freq=8)),
    "TD3": (PENDULUMS, built(TD3, action_noise=OU, policy_delay=3)),
    "TD3-episodes": (PENDULUM, built(TD3, train_freq=(1, "episode"), gradient_steps=20, buffer_size=150)),
    "DDPG": (PENDULUM, built(DDPG, action_noise=NORMAL)),
    "QRDQN": (CARTPOLE, built(QRDQN, train_freq=4)),
    "TQC": (PENDULUM, built(TQC, train_freq=2)),
    "CrossQ": (PENDULUM, built(CrossQ, train_freq=2)),
}
OFTEN = ("PPO-CartPole", "A2C-CartPole", "PPO-Pendulum-normalised", "MaskablePPO", "RecurrentPPO-Pendulum")
OFTEN += ("DQN-n-steps", "SAC-gSDE", "TD3-episodes")


def end_state(model: Any) -> dict[str, Any]:
    """All that could differ at the end of a run, the clock excepted."""
    normaliser = model.get_vec_normalize_env()
    found = {
        "parameters": model.get_parameters(),  # networks, targets, optimisers, ent_coef
        "counters": {
            name: value
            for name, value in vars(model).items()
            if type(value) in (bool, int, float) and name not in PASSING
        },
        "episodes": [(float(info["r"]), int(info["l"])) for info in model.ep_info_buffer or ()],
        "last_obs": model._last_obs,
        "episode_starts": model._last_episode_starts,
        "original_obs": model._last_original_obs,
        "logged": {name: value for name, value in model.logger.name_to_value.items() if not name.startswith("time/")},
        "statistics": None if normaliser is None else (normaliser.obs_rms.mean, normaliser.ret_rms.var),
        "rng": rng_state(),
        "next_action": model.action_space.sample(),
        "next_obs": model.env.reset(),  # the environments' own generators
    }
    if isinstance(model, OffPolicyAlgorithm):
        buffer: Any = model.replay_buffer
        noise: Any = model.action_noise
        found |= {"buffer": {name: getattr(buffer, name) for name in ARRAYS}, "place": (buffer.pos, buffer.full)}
        if isinstance(noise, VectorizedActionNoise):
            found["noise"] = [each.noise_prev for each in noise.noises]
        del found["episode_starts"]
    return found


def uninterrupted(make_env: Callable[[], VecEnv], build: Build, total: int, *callbacks: BaseCallback) -> dict[str, Any]:
    env = make_env()
    seed_everything(7)
    state = end_state(build(env).learn(total, callback=list(callbacks)))
    env.close()
    return state


def cut_off(
    make_env: Callable[[], VecEnv], build: Build, total: int, folder: Path, at: int, *callbacks: BaseCallback
) -> None:
    env = make_env()
    seed_everything(7)
    model = build(env)
    every = 60 if isinstance(model, OffPolicyAlgorithm) else 100
    with pytest.raises(KilledError):
        model.learn(total, callback=[ExactCheckpointCallback(every, folder), *callbacks, KillAt(at)])
    env.close()
    seed_everything(99)  # whatever a new process starts from


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in OFTEN else pytest.mark.slow) for case in CASES]
)
def test_a_resumed_run_ends_as_an_uninterrupted_one(case: str, tmp_path: Path) -> None:
    make_env, build = CASES[case]
    is_on_policy = case.startswith(("PPO", "A2C", "Mask", "Rec"))
    total, at = (640, 390) if is_on_policy else (800, 650) if "episodes" in case else (280, 190)
    expected = uninterrupted(make_env, build, total)
    cut_off(make_env, build, total, tmp_path, at)
    env = make_env()
    custom = {"learning_rate": lambda progress: 1e-3 * progress} if case == "A2C-CartPole" else None
    run = load_checkpoint(tmp_path, env, custom_objects=custom)
    assert run.is_exact
    assert (201 if is_on_policy else 120) <= run.model.num_timesteps < at
    assert run.total_timesteps == run.model.num_timesteps + run.remaining_timesteps == total
    run.model.learn(run.remaining_timesteps, callback=[run.callback, KillAt(10**9)], reset_num_timesteps=False)
    assert_equal(end_state(run.model), expected)
    env.close()


def test_environments_in_processes_of_their_own(tmp_path: Path) -> None:
    def make_env() -> VecEnv:
        given: dict[str, Any] = {"wrapper_class": Resumable, "vec_env_cls": SubprocVecEnv}
        given |= {"vec_env_kwargs": {"start_method": "fork"}}
        return make_vec_env("Pendulum-v1", 2, **given)

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
    seed_everything(7)
    expected = end_state(build(make_env()).learn(512).learn(256, reset_num_timesteps=False))
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
        given: dict[str, Any] = {"eval_freq": frequency, "n_eval_episodes": 2, "deterministic": False}
        given |= {"log_path": str(log), "verbose": 0, "warn": False}
        return EvalCallback(eval_env, **given)

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


@pytest.mark.parametrize(
    ("case", "total", "at", "more"), [("RecurrentPPO-Pendulum", 256, 100, 128), ("SAC-gSDE", 240, 30, 80)]
)
def test_cut_off_before_the_first_update_and_resumed_from_the_end(
    case: str, total: int, at: int, more: int, tmp_path: Path
) -> None:
    """What happens between loading and learning does not matter."""
    make_env, build = CASES[case]
    seed_everything(7)
    expected = end_state(build(make_env()).learn(total).learn(more, reset_num_timesteps=False))
    cut_off(make_env, build, total, tmp_path, at)
    run = load_checkpoint(tmp_path, make_env())
    assert run.model.num_timesteps == 0
    run.model.env.reset()
    run.model.env.step(np.zeros((2, 1)))
    run.model.learn(run.remaining_timesteps, callback=[run.callback, KillAt(10**9)])  # resets the environments
    seed_everything(6)
    run = load_checkpoint(tmp_path, make_env())
    assert run.remaining_timesteps == 0
    run.model.learn(more, callback=[run.callback, KillAt(10**9)], reset_num_timesteps=False)
    assert_equal(end_state(run.model), expected)


@pytest.mark.parametrize(("build", "total", "more"), [(built(PPO, n_steps=64), 256, 128), (CASES["TD3"][1], 200, 50)])
def test_environments_that_can_not_be_kept_start_new_episodes(
    build: Build, total: int, more: int, tmp_path: Path
) -> None:
    def make_env() -> VecEnv:
        return VecNormalize(make_vec_env("Pendulum-v1", 2, wrapper_class=Hidden))

    model = build(make_env())
    with pytest.warns(RuntimeWarning, match=r"A run resumed from here starts new episodes: env\.hidden is a torch"):
        model.learn(total, callback=ExactCheckpointCallback(50, tmp_path))
    with pytest.warns(RuntimeWarning, match=r"The resumed run starts new episodes: env\.hidden"):
        run = load_checkpoint(tmp_path, make_env())
    assert not run.is_exact
    assert_equal(run.model.get_parameters(), model.get_parameters())
    normaliser, expected = run.model.get_vec_normalize_env(), model.get_vec_normalize_env()
    assert_equal(normaliser.obs_rms.mean, expected.obs_rms.mean)
    if isinstance(model, OffPolicyAlgorithm):
        assert_equal(run.model.replay_buffer.observations, model.replay_buffer.observations)
    run.model.learn(more, callback=run.callback, reset_num_timesteps=False)
    assert run.model.num_timesteps == total + more
    assert getattr(run.model, "replay_buffer", None) is None or run.model.replay_buffer.size() == (total + more) // 2


def test_environments_in_processes_without_our_wrapper_are_named(tmp_path: Path) -> None:
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


# ---- off-policy algorithms
def test_checkpoints_fall_in_the_middle_of_episodes_and_of_learning(tmp_path: Path) -> None:
    """Otherwise the tests of resumed runs would show less than they say."""
    make_env, build = CASES["PPO-Pendulum-gSDE"]
    cut_off(make_env, build, 640, tmp_path / "on", 390)
    model = load_checkpoint(tmp_path / "on", make_env()).model
    assert not model._last_episode_starts.any()
    assert 0 < model.env.get_attr("_elapsed_steps")[0] < 200
    cut_off(*CASES["TD3"], 280, tmp_path, 190)
    model = load_checkpoint(tmp_path, CASES["TD3"][0]()).model
    assert 0 < model.env.get_attr("_elapsed_steps")[0] < 200
    assert model.replay_buffer.size() == model.num_timesteps // 2
    assert model._n_updates > 20
    cut_off(*CASES["DQN-n-steps"], 280, tmp_path / "full", 190)
    assert load_checkpoint(tmp_path / "full", CASES["DQN-n-steps"][0]()).model.replay_buffer.full


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
    cut_off(*CASES["TD3"], 280, tmp_path, 190)
    with pytest.raises(ValueError, match="the algorithm's is a ReplayBuffer with"):
        load_checkpoint(tmp_path, PENDULUMS(), custom_objects={"buffer_size": 100})
    run = load_checkpoint(tmp_path, PENDULUMS(), custom_objects={"action_noise": None})
    with pytest.raises(CannotSnapshotError, match="don't both have an action_noise"):
        run.model.learn(run.remaining_timesteps, callback=run.callback, reset_num_timesteps=False)
    noise = HiddenNoise(np.zeros(1), np.ones(1))
    noise.hidden = torch.zeros(1)
    model = CASES["DDPG"][1](PENDULUM())
    model.action_noise = noise
    with pytest.raises(CannotSnapshotError, match=r"action_noise\.hidden is a torch"):
        model.learn(10, callback=ExactCheckpointCallback(10, tmp_path / "other"))
