"""Algorithms of Stable-Baselines3 and ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from frozen_cases.common import (
    CARTPOLE,
    MASKED,
    PENDULUM,
    PRIOR,
    SMALL,
    TREE,
    File,
    Run,
    Tensors,
    cut_at,
    of_arrays,
    of_module,
    of_optimizer,
    uniform,
)
from frozen_cases.data import cartpole_data
from rlsmooth.agents import (
    BC,
    ExactCheckpointCallback,
    PolicyEntropyCallback,
    SmoothedA2C,
    SmoothedMaskablePPO,
    SmoothedPPO,
    SmoothedRecurrentPPO,
    load_agent,
    load_checkpoint,
    save_agent,
)
from rlsmooth.envs import IdentityEnv
from rlsmooth.targets import Smoothing

FEW = {"n_steps": 16, "batch_size": 16, "n_epochs": 2}
BUFFER = {"buffer_size": 60, "learning_starts": 8, "batch_size": 8}


def vec_env(name: str, *, normalises: bool = False, **more: Any) -> VecEnv:
    """Two environments."""
    env = make_vec_env(name, n_envs=2, seed=0)
    return VecNormalize(env, **more) if normalises else env


def make_clone() -> BC:
    data = cartpole_data()
    return BC("MlpPolicy", None, data, seed=0, device="cpu", policy_kwargs=dict(SMALL)).learn(total_batches=3)


def algorithm(model_class: Any, env: str, *, normalises: bool = False, policy: str = "MlpPolicy", **more: Any) -> Any:
    given = {"policy_kwargs": dict(SMALL), "seed": 0, "device": "cpu", **more}
    return model_class(policy, vec_env(env, normalises=normalises), **given)


def kickstarted() -> Any:
    """PPO that starts from a clone, in the middle of the critic's warm-up."""
    given: dict[str, Any] = {"smoothing": "lin_0.2", "value_warmup_steps": 64, **FEW, "seed": 0, "device": "cpu"}
    return SmoothedPPO.from_bc(make_clone(), vec_env(CARTPOLE), **given)


MULTI_DISCRETE = "rlsmooth.envs:rlsmooth/IdentityMultiDiscrete-v0"
DICT = "FrozenIdentityDict-v0"
gym.register(DICT, entry_point=IdentityEnv, kwargs={"observation": "dict"})
LSTM = {"net_arch": [4], "lstm_hidden_size": 4, "enable_critic_lstm": False, "shared_lstm": True}
RECURRENT: dict[str, Any] = {"policy": "MlpLstmPolicy", "policy_kwargs": LSTM, **FEW}
SKEWED = Smoothing("lin_0.2", reference=torch.tensor([0.3, 0.7]))
OF_TREE, OF_PRIOR = Smoothing(0.1, reference=TREE), Smoothing(0.1, reference=PRIOR)
FLOOR, FALLING = {"exploration_floor": 0.1}, {"exploration_floor": "lin_0.1"}
NOISE = OrnsteinUhlenbeckActionNoise(np.zeros(1), np.full(1, 0.2))

ALGORITHMS: dict[str, tuple[Any, str, dict[str, Any]]] = {  # name: class, environment, arguments of `algorithm`
    "ppo": (PPO, PENDULUM, {"normalises": True, "use_sde": True, "sde_sample_freq": 4, **FEW}),
    "a2c": (A2C, CARTPOLE, {"n_steps": 8, "policy_kwargs": {"net_arch": {"pi": [4]}}}),
    "smoothed_ppo": (SmoothedPPO, CARTPOLE, {"smoothing": SKEWED, "learning_rate": 0.01, **FALLING, **FEW}),
    "smoothed_ppo_target": (SmoothedPPO, CARTPOLE, {"normalises": True, "target_entropy_frac": 0.9, **FEW}),
    "smoothed_ppo_sde": (SmoothedPPO, PENDULUM, {"target_entropy_nats": 1.0, "use_sde": True, **FEW}),
    "smoothed_ppo_from_bc": (kickstarted, CARTPOLE, {}),
    "smoothed_ppo_dict": (SmoothedPPO, DICT, {"policy": "MultiInputPolicy", "smoothing": OF_TREE, **FEW}),
    "smoothed_ppo_multi_discrete": (SmoothedPPO, MULTI_DISCRETE, {"target_entropy_frac": 0.9, **FLOOR, **FEW}),
    "smoothed_a2c": (SmoothedA2C, PENDULUM, {"smoothing": "lin_0.2", "n_steps": 8}),
    "maskable_ppo": (MaskablePPO, MASKED, FEW),
    "smoothed_maskable_ppo": (SmoothedMaskablePPO, MASKED, {"smoothing": OF_PRIOR, **FLOOR, **FEW}),
    "recurrent_ppo": (RecurrentPPO, CARTPOLE, RECURRENT),
    "smoothed_recurrent_ppo": (SmoothedRecurrentPPO, CARTPOLE, {"target_entropy_frac": 0.9, **RECURRENT}),
    "dqn": (DQN, CARTPOLE, {"target_update_interval": 8, "train_freq": 2, **BUFFER}),
    "qrdqn": (QRDQN, CARTPOLE, {"policy_kwargs": {"net_arch": [4], "n_quantiles": 5}, "train_freq": 2, **BUFFER}),
    "sac": (SAC, PENDULUM, {"normalises": True, "train_freq": 2, **BUFFER}),
    "td3": (TD3, PENDULUM, {"train_freq": 2, "action_noise": NOISE, **BUFFER}),
    "tqc": (TQC, PENDULUM, {"train_freq": 2, **BUFFER}),
}


def build(name: str) -> Any:
    model_class, env, arguments = ALGORITHMS[name]
    return model_class() if model_class is kickstarted else algorithm(model_class, env, **arguments)


def new_env(name: str) -> VecEnv:
    _, env, arguments = ALGORITHMS[name]
    return vec_env(env, normalises=arguments.get("normalises", False))


OFF_POLICY = ("dqn", "qrdqn", "sac", "td3", "tqc")


def of_algorithm(model: Any) -> Tensors:
    """The policy, statistics of the normalisation, what is in the buffer, and numbers that change."""
    found = of_module("policy", model.policy)
    for name in ("optimizer", "actor.optimizer", "critic.optimizer"):
        owner: Any = model.policy
        for part in name.split("."):
            owner = getattr(owner, part, None)
        found |= {} if owner is None else of_optimizer(name, owner)
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None:
        statistics = {name: getattr(normalizer.obs_rms, name) for name in ("mean", "var", "count")}
        found |= of_arrays({f"normalizer.{name}": value for name, value in statistics.items()})
    buffer = getattr(model, "replay_buffer", None)
    if buffer is not None:
        count = buffer.size()
        fields = ("observations", "actions", "rewards", "dones")
        found |= of_arrays({f"buffer.{name}": getattr(buffer, name)[:count] for name in fields})
    names = ("num_timesteps", "_n_updates", "_episode_num", "_current_progress_remaining", "value_warmup_left")
    return found | of_arrays({name: vars(model).get(name) for name in names})


def algorithm_answers(model: Any) -> Tensors:
    space, count = model.observation_space, 6
    if isinstance(space, spaces.Dict):
        seen: Any = {key: np.zeros((count, *part.shape), part.dtype) for key, part in space.spaces.items()}
    elif isinstance(space, spaces.Box):
        seen = uniform(count, *space.shape, seed=12)
    else:
        seen = np.arange(count) % 4 if isinstance(space, spaces.Discrete) else np.zeros((count, *space.shape), np.int64)
    return of_arrays({"actions": model.predict(seen, deterministic=True)[0]})


def algorithm_file(name: str) -> File:
    off_policy = name in OFF_POLICY

    def write(folder: Path) -> None:
        model = build(name).learn(40, log_interval=None)
        save_agent(model, folder / "agent", include_replay_buffer=off_policy)

    def read(folder: Path) -> Any:
        return load_agent(folder / "agent", env=new_env(name), device="cpu")

    def train_on(model: Any) -> Tensors:
        model.set_random_seed(3)  # of the environments, too
        return of_algorithm(model.learn(32, log_interval=None, reset_num_timesteps=False))

    return File(write, read, of_algorithm, algorithm_answers, train_on)


class Seen(Logger):
    """A logger that remembers what the callback beside the checkpoints has recorded, and when."""

    def __init__(self, model: Any) -> None:
        super().__init__(None, [])
        self.model = model
        self.lines: list[tuple[int, float]] = []

    def record(self, key: str, value: Any, exclude: Any = None) -> None:
        if key == "train/entropy_collapse":
            self.lines.append((self.model.num_timesteps, float(value)))
        super().record(key, value, exclude)


def checkpoints(folder: Path | None, cut: int) -> list[Any]:
    return [] if folder is None else [ExactCheckpointCallback(16, folder, keep=1), ConvertCallback(cut_at(cut))]


def algorithm_run(name: str, total: int = 128, cut: int = 72) -> Run:
    """A run that is cut off, with a callback of ours beside the checkpoints, whose state is kept too."""
    every = 24  # more than a rollout of an off-policy algorithm: when it looks next depends on its state

    def beside(model: Any) -> list[Any]:
        if name in ("sac", "td3", "tqc"):
            return []
        model.set_logger(Seen(model))
        return [PolicyEntropyCallback(measure_freq=every, collapse_threshold=0.999, histogram=False)]

    def start(folder: Path | None) -> Any:
        model = build(name)
        return model.learn(total, [*beside(model), *checkpoints(folder, cut)], log_interval=None)

    def resume(folder: Path) -> Any:
        run = load_checkpoint(folder, new_env(name), device="cpu")
        assert run.is_exact
        assert 0 < run.remaining_timesteps < total
        callbacks = [*beside(run.model), run.callback]
        return run.model.learn(run.remaining_timesteps, callbacks, log_interval=None, reset_num_timesteps=False)

    def state(model: Any) -> Tensors:
        found = of_algorithm(model)
        if isinstance(model.logger, Seen):
            found["seen"] = torch.tensor([line for line in model.logger.lines if line[0] > cut], dtype=torch.float64)
        return found

    return Run(start, resume, state)


RESUMED = (
    *("ppo", "smoothed_ppo", "smoothed_ppo_target", "smoothed_ppo_from_bc"),
    *("smoothed_maskable_ppo", "smoothed_recurrent_ppo", "dqn", "sac"),
)
FILES: dict[str, File] = {name: algorithm_file(name) for name in ALGORITHMS}
RUNS: dict[str, Run] = {f"run_{name}": algorithm_run(name) for name in RESUMED}
