"""Writes the files beside it: one of every kind that the package writes, and checkpoint folders of unfinished runs.

The files in the repository were written by version 0.1.0 at commit 4fa6d8d. They are never written again, only added
to: a case whose folder exists is left alone. Whatever is read from them later must be what was written then.

    python -P tests/frozen/make.py

`FILES` and `RUNS` say of each case how it was made, and how to read it back; `tests/test_frozen.py` does the latter.
Only names that the packages of `rlsmooth` export are used, so that modules may move. The data are uniform random
numbers, which, other than normal ones, are the same on every processor: resumed runs compare them with their own.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import sb3_contrib
import stable_baselines3
import torch
from gymnasium import spaces
from safetensors import safe_open
from safetensors.torch import save_file
from sb3_contrib import QRDQN, TQC, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import Tensor, nn

from rlsmooth.agents import (
    AIRL,
    BC,
    BCO,
    GAIL,
    DAgger,
    ExactCheckpointCallback,
    InverseDynamics,
    PolicyEntropyCallback,
    RewardNet,
    ShapedRewardNet,
    SmoothedA2C,
    SmoothedMaskablePPO,
    SmoothedPPO,
    SmoothedRecurrentPPO,
    Transitions,
    load_agent,
    load_checkpoint,
    load_reward_net,
    save_agent,
    save_reward_net,
)
from rlsmooth.data import Demonstrations, LabelledData, ObservationOnly, cartpole_v1, load_demonstrations, load_labelled
from rlsmooth.envs import IdentityEnv
from rlsmooth.targets import Smoothing, Tree
from rlsmooth.training import Classifier, GANTrainer, SelfTraining

Tensors = dict[str, Tensor]

FOLDER = Path(__file__).resolve().parent
EXPECTED = "expected.safetensors"

CARTPOLE, PENDULUM, MASKED = "CartPole-v1", "Pendulum-v1", "rlsmooth.envs:rlsmooth/IdentityMasked-v0"
SMALL = {"net_arch": [8]}
TREE = Tree.from_nested({"a": ["0", "1"], "b": ["2", "3"]})
PRIOR = torch.tensor([0.1, 0.2, 0.3, 0.4])
KERNEL = torch.tensor([[0.0, 0.7, 0.2, 0.1], [0.5, 0.0, 0.4, 0.1], [0.1, 0.4, 0.0, 0.5], [0.1, 0.2, 0.7, 0.0]])


class CutOffError(Exception):
    """Ends a run in the middle, as a kill would."""


@dataclass(frozen=True)
class File:
    """One kind of file.

    Attributes:
        write: makes the thing and writes it into a folder.
        read: reads it from there.
        kept: what the file holds; the same on every machine.
        answers: what is computed from it.
        train_on: trains it further and returns the parameters then; None: it is nothing that trains.
    """

    write: Callable[[Path], object]
    read: Callable[[Path], Any]
    kept: Callable[[Any], Tensors]
    answers: Callable[[Any], Tensors]
    train_on: Callable[[Any], Tensors] | None = None


@dataclass(frozen=True)
class Run:
    """One kind of run.

    Attributes:
        start: trains from the beginning; without a folder to the end, with one until it is cut off, with checkpoints.
        resume: goes on from the checkpoints of a folder, to the end.
        state: what both end with.
    """

    start: Callable[[Path | None], Any]
    resume: Callable[[Path], Any]
    state: Callable[[Any], Tensors]


# ---- what is compared


def of_module(name: str, module: nn.Module) -> Tensors:
    """Parameters and buffers."""
    return {f"{name}.{key}": value.detach().clone() for key, value in module.state_dict().items()}


def of_optimizer(name: str, optimizer: torch.optim.Optimizer) -> Tensors:
    """Moments and learning rates."""
    state = optimizer.state_dict()
    found = {
        f"{name}.{number}.{key}": torch.as_tensor(value).clone()
        for number, values in state["state"].items()
        for key, value in values.items()
    }
    return found | {f"{name}.lr": torch.tensor([group["lr"] for group in state["param_groups"]], dtype=torch.float64)}


def of_policy(agent: Any) -> Tensors:
    """Of anything with a policy."""
    found = of_module("policy", agent.policy)
    optimizer = getattr(agent.policy, "optimizer", None)
    return found if optimizer is None else found | of_optimizer("optimizer", optimizer)


def of_arrays(arrays: Mapping[str, Any]) -> Tensors:
    """Arrays by name, those in dicts too; None is left out."""
    found: Tensors = {}
    for name, value in arrays.items():
        if isinstance(value, Mapping):
            found |= of_arrays({f"{name}.{key}": entry for key, entry in value.items()})
        elif value is not None:
            found[name] = torch.as_tensor(np.array(value))
    return found


# ---- data


def uniform(*shape: int, seed: int = 0) -> Any:
    """Numbers in [-1, 1)."""
    return (2 * np.random.default_rng(seed).random(shape) - 1).astype(np.float32)


def four_episodes(observations: Any, actions: Any, action_space: Any, **more: Any) -> Demonstrations:
    """40 transitions."""
    space: spaces.Space[Any] = spaces.Box(-1, 1, (3,))
    if isinstance(observations, dict):
        space = spaces.Dict({"place": spaces.Box(-1, 1, (2,)), "kind": spaces.Discrete(3)})
    ends = [10, 20, 30, 40]
    return Demonstrations.from_arrays(
        observations, actions, observation_space=space, action_space=action_space, episode_ends=ends, **more
    )


def masked_data() -> Demonstrations:
    """Four actions, of which the taken one and some others are legal; weighted."""
    rng = np.random.default_rng(1)
    actions = rng.integers(4, size=40)
    masks = rng.random((40, 4)) < 0.6
    masks[np.arange(40), actions] = True
    given = {"action_masks": masks, "weights": rng.random(40).astype(np.float32), "groups": np.arange(40) // 5}
    return four_episodes(uniform(40, 3), actions, spaces.Discrete(4), **given)


def soft_data() -> Demonstrations:
    """Probabilities of four actions that count from 7."""
    rng = np.random.default_rng(2)
    probabilities = rng.integers(1, 9, size=(40, 4)).astype(np.float64)
    probabilities /= probabilities.sum(-1, keepdims=True)
    actions = 7 + probabilities.argmax(-1)
    return four_episodes(uniform(40, 3), actions, spaces.Discrete(4, start=7), action_probs=probabilities)


def multi_discrete_data() -> Demonstrations:
    """Two components, with masks."""
    rng = np.random.default_rng(3)
    actions = np.stack([rng.integers(3, size=40), rng.integers(4, size=40)], -1)
    masks = np.ones((40, 7), dtype=bool)
    masks[np.arange(40), (actions[:, 0] + 1) % 3] = False
    return four_episodes(uniform(40, 3), actions, spaces.MultiDiscrete([3, 4]), action_masks=masks)


def multi_binary_data() -> Demonstrations:
    """Three bits."""
    actions = np.random.default_rng(4).integers(2, size=(40, 3)).astype(np.int8)
    return four_episodes(uniform(40, 3), actions, spaces.MultiBinary(3))


def box_data() -> Demonstrations:
    """Two numbers, and all that demonstrations can hold besides."""
    return four_episodes(
        uniform(40, 3),
        uniform(40, 2, seed=5),
        spaces.Box(-1, 1, (2,)),
        next_observations=uniform(40, 3, seed=6),
        rewards=uniform(40, seed=7),
        terminations=np.arange(40) == 39,
        truncations=np.isin(np.arange(40), [9, 19, 29]),
        infos=[{"number": number} for number in range(40)],
        metadata={"by": "nobody"},
    )


def dict_data() -> Demonstrations:
    """Observations of two parts."""
    rng = np.random.default_rng(8)
    seen = {"place": uniform(40, 2), "kind": rng.integers(3, size=40)}
    return four_episodes(seen, rng.integers(4, size=40), spaces.Discrete(4))


def cartpole_data() -> Demonstrations:
    """One shipped episode."""
    return cartpole_v1().sample_episodes(1, seed=0)


def pendulum_data() -> Demonstrations:
    """An episode of no meaning."""
    env = gym.make(PENDULUM)
    states = uniform(201, 3, seed=9)
    given: dict[str, Any] = {"observation_space": env.observation_space, "action_space": env.action_space}
    actions = 2 * uniform(200, 1, seed=10)
    return Demonstrations.from_arrays(
        states[:-1], actions, episode_ends=[200], next_observations=states[1:], rewards=uniform(200), **given
    )


def identity_data() -> Demonstrations:
    """For the masked identity environment: in state s the s + 1 actions from s on are legal."""
    states = np.random.default_rng(11).integers(4, size=41)
    masks = np.array([[(action - state) % 4 <= state for action in range(4)] for state in states[:-1]])
    return Demonstrations.from_arrays(
        states[:-1],
        states[:-1],
        observation_space=spaces.Discrete(4),
        action_space=spaces.Discrete(4),
        episode_ends=[10, 20, 30, 40],
        next_observations=states[1:],
        terminations=np.isin(np.arange(40), [9, 19, 29, 39]),
        action_masks=masks,
    )


def labelled_data() -> LabelledData:
    """Three classes in a hierarchy."""
    return LabelledData(
        features=uniform(12, 2),
        labels=np.arange(12) % 3,
        class_names=("one", "two", "three"),
        feature_names=("x", "y"),
        hierarchy={"small": ["one", "two"], "large": ["three"]},
        is_ordered=True,
        source="make.py",
    )


# ---- behavioural cloning

BC_CASES: dict[str, tuple[Callable[[], Demonstrations], dict[str, Any]]] = {
    "bc_masks": (
        masked_data,
        {
            "policy": "MaskableMlpPolicy",
            "smoothing": Smoothing("lin_0.3", reference=TREE, decay=0.5),
            "learning_rate": "lin_0.01",
            "kl_coef": 0.2,
            "max_grad_norm": 0.5,
        },
    ),
    "bc_soft_targets": (
        soft_data,
        {"smoothing": Smoothing(torch.tensor(0.2), reference=PRIOR), "kl_coef": 0.1, "reference": TREE},
    ),
    "bc_multi_discrete": (
        multi_discrete_data,
        {
            "smoothing": [0.1, Smoothing("lin_0.2", reference="binomial")],
            "kl_coef": 0.1,
            "reference": [torch.tensor([0.5, 0.3, 0.2]), "uniform"],
            "gradient_accumulation": 2,
        },
    ),
    "bc_multi_binary": (multi_binary_data, {"smoothing": Smoothing(0.2, spread="others")}),
    "bc_box": (box_data, {"smoothing": "lin_0.1", "reference_std": 0.7, "l2_coef": 0.01}),
    "bc_box_bins": (
        box_data,
        {"action_bins": 5, "smoothing": Smoothing(None, reference="exponential", decay=0.8, power=1.5)},
    ),
    "bc_dict": (dict_data, {"policy": "MultiInputPolicy", "smoothing": Smoothing(0.3, reference=KERNEL)}),
    "bc_early_stopping": (
        masked_data,
        {
            "smoothing": Smoothing(0.2, reference="triangular", width=3.0),
            "validation_fraction": 0.25,
            "early_stopping_patience": 3,
            "policy_kwargs": {**SMALL, "optimizer_class": torch.optim.RMSprop, "activation_fn": nn.ReLU},
        },
    ),
}


def make_bc(case: str, **more: Any) -> BC:
    """The agent of a case."""
    data, arguments = BC_CASES[case]
    given = {"policy": "MlpPolicy", "batch_size": 8, "seed": 0, "device": "cpu", "policy_kwargs": dict(SMALL)}
    given |= arguments | more
    return BC(given.pop("policy"), None, data(), **given)


def bc_answers(case: str, agent: Any) -> Tensors:
    """Actions, with masks too where there are some."""
    data = BC_CASES[case][0]()
    found = {"actions": agent.predict(data.observations, deterministic=True)[0]}
    if data.action_masks is not None and case == "bc_masks":
        found["masked"] = agent.predict(data.observations, deterministic=True, action_masks=data.action_masks)[0]
    return of_arrays(found)


def bc_file(case: str) -> File:
    """The file of a case."""
    return File(
        write=lambda folder: make_bc(case).learn(total_batches=4).save(folder / "agent"),
        read=lambda folder: BC.load(folder / "agent.zip", demonstrations=BC_CASES[case][0](), device="cpu"),
        kept=of_policy,
        answers=lambda agent: bc_answers(case, agent),
        train_on=lambda agent: of_policy(agent.learn(total_batches=6, reset_num_timesteps=False)),
    )


def bc_run(case: str) -> Run:
    """A run of a case that is cut off at batch 9 of 14."""
    total, cut = 14, 9

    def start(folder: Path | None) -> BC:
        if folder is None:
            return make_bc(case).learn(total_batches=total)
        return make_bc(case, checkpoint_folder=folder, checkpoint_every=4).learn(
            total_batches=total, callback=cut_at(cut)
        )

    def resume(folder: Path) -> BC:
        return BC.resume(folder, None, BC_CASES[case][0](), device="cpu").learn(total_batches=total)

    return Run(start, resume, of_policy)


def cut_at(step: int) -> Callable[[dict[str, Any], dict[str, Any]], bool]:
    """A callback of Stable-Baselines3's."""

    def callback(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["self"].num_timesteps >= step:
            raise CutOffError
        return True

    return callback


# ---- rounds: BCO and DAgger


def make_bco(**more: Any) -> BCO:
    """Cloning from observation, with schedules and soft pseudo-labels."""
    return BCO(
        "MlpPolicy",
        CARTPOLE,
        ObservationOnly.from_demonstrations(cartpole_data()),
        n_rounds=3,
        transitions_per_round=40,
        n_epochs=1,
        smoothing=Smoothing("lin_0.3", reference=torch.tensor([0.25, 0.75])),
        learning_rate="lin_0.01",
        pseudo_labels="soft",
        inverse_smoothing="lin_0.1",
        inverse_epochs=2,
        inverse_net_arch=(8,),
        policy_kwargs=dict(SMALL),
        seed=0,
        device="cpu",
        **more,
    )


def of_bco(agent: BCO) -> Tensors:
    """Also what was made in the environment, and what it logged."""
    assert agent.transitions is not None
    made = {"actions": agent.transitions.actions, "observations": agent.transitions.observations}
    return of_policy(agent) | of_arrays(made | of_history(agent.history))


def of_history(history: list[dict[str, float]]) -> dict[str, Any]:
    """The log lines of rounds, without times."""
    return {
        f"history.{number}.{name}": np.float64(value)
        for number, line in enumerate(history)
        for name, value in line.items()
        if "time" not in name or "timestep" in name
    }


def expert(seen: Any) -> int:
    """Of the identity environment."""
    return int(seen)


def make_dagger(**more: Any) -> DAgger:
    """DAgger with a mixture in every round but the last."""
    return DAgger(
        "MlpPolicy",
        IdentityEnv(4),
        expert,
        smoothing=Smoothing(0.2, reference=PRIOR),
        learning_rate="lin_0.01",
        rollout_round_min_timesteps=40,
        bc_train_n_epochs=1,
        beta_schedule=2,
        policy_kwargs=dict(SMALL),
        seed=0,
        device="cpu",
        **more,
    )


def of_dagger(agent: DAgger) -> Tensors:
    """Also what was seen, and what it logged."""
    assert agent.demonstrations is not None
    made = {"actions": agent.demonstrations.actions, "observations": agent.demonstrations.observations}
    return of_policy(agent) | of_arrays(made | of_history(agent.history))


def make_inverse() -> InverseDynamics:
    """A model of the actions of two numbers."""
    data = box_data()
    return InverseDynamics(
        data.observation_space,
        data.action_space,
        action_bins=3,
        smoothing=Smoothing(0.1, reference="adjacent", edge="half"),
        batch_size=8,
        max_epochs=2,
        validation_fraction=0.25,
        policy_kwargs=dict(SMALL),
        seed=0,
        device="cpu",
    )


def inverse_answers(model: InverseDynamics) -> Tensors:
    """Actions and their probabilities."""
    data = box_data()
    seen = data.observations, data.next_observations
    return of_arrays({"actions": model.predict(*seen), "metrics": model.metrics})


# ---- algorithms of Stable-Baselines3 and ours

FEW = {"n_steps": 16, "batch_size": 16, "n_epochs": 2}
BUFFER = {"buffer_size": 60, "learning_starts": 8, "batch_size": 8}


def vec_env(name: str, *, normalises: bool = False, **more: Any) -> VecEnv:
    """Two environments."""
    env = make_vec_env(name, n_envs=2, seed=0)
    return VecNormalize(env, **more) if normalises else env


def make_clone() -> BC:
    """A clone to start from."""
    data, kwargs = cartpole_data(), {"net_arch": [8]}
    return BC("MlpPolicy", None, data, seed=0, device="cpu", policy_kwargs=kwargs).learn(total_batches=3)


def algorithm(model_class: Any, env: str, *, normalises: bool = False, policy: str = "MlpPolicy", **more: Any) -> Any:
    """A small algorithm."""
    given = {"policy_kwargs": dict(SMALL), "seed": 0, "device": "cpu", **more}
    return model_class(policy, vec_env(env, normalises=normalises), **given)


def kickstarted() -> Any:
    """PPO that starts from a clone, in the middle of the critic's warm-up."""
    return SmoothedPPO.from_bc(
        make_clone(), vec_env(CARTPOLE), smoothing="lin_0.2", value_warmup_steps=64, **FEW, seed=0, device="cpu"
    )


LSTM = {"net_arch": [4], "lstm_hidden_size": 4, "enable_critic_lstm": False, "shared_lstm": True}
NOISE = OrnsteinUhlenbeckActionNoise(np.zeros(1), np.full(1, 0.2))

ALGORITHMS: dict[str, tuple[str, bool, Callable[[], Any]]] = {
    # name: environment, whether it is normalised, how it is built
    "ppo": (PENDULUM, True, lambda: algorithm(PPO, PENDULUM, normalises=True, use_sde=True, sde_sample_freq=4, **FEW)),
    "a2c": (CARTPOLE, False, lambda: algorithm(A2C, CARTPOLE, n_steps=8, policy_kwargs={"net_arch": {"pi": [4]}})),
    "smoothed_ppo": (
        CARTPOLE,
        False,
        lambda: algorithm(
            SmoothedPPO,
            CARTPOLE,
            smoothing=Smoothing("lin_0.2", reference=torch.tensor([0.3, 0.7])),
            exploration_floor="lin_0.1",
            learning_rate=0.01,
            **FEW,
        ),
    ),
    "smoothed_ppo_target": (
        CARTPOLE,
        True,
        lambda: algorithm(SmoothedPPO, CARTPOLE, normalises=True, target_entropy_frac=0.9, **FEW),
    ),
    "smoothed_ppo_sde": (
        PENDULUM,
        False,
        lambda: algorithm(SmoothedPPO, PENDULUM, target_entropy_nats=1.0, use_sde=True, **FEW),
    ),
    "smoothed_ppo_from_bc": (CARTPOLE, False, kickstarted),
    "smoothed_a2c": (PENDULUM, False, lambda: algorithm(SmoothedA2C, PENDULUM, smoothing="lin_0.2", n_steps=8)),
    "maskable_ppo": (MASKED, False, lambda: algorithm(MaskablePPO, MASKED, **FEW)),
    "smoothed_maskable_ppo": (
        MASKED,
        False,
        lambda: algorithm(
            SmoothedMaskablePPO, MASKED, smoothing=Smoothing(0.1, reference=PRIOR), exploration_floor=0.1, **FEW
        ),
    ),
    "recurrent_ppo": (
        CARTPOLE,
        False,
        lambda: algorithm(RecurrentPPO, CARTPOLE, policy="MlpLstmPolicy", **{**FEW, "policy_kwargs": LSTM}),
    ),
    "smoothed_recurrent_ppo": (
        CARTPOLE,
        False,
        lambda: algorithm(
            SmoothedRecurrentPPO,
            CARTPOLE,
            policy="MlpLstmPolicy",
            target_entropy_frac=0.9,
            **{**FEW, "policy_kwargs": LSTM},
        ),
    ),
    "dqn": (CARTPOLE, False, lambda: algorithm(DQN, CARTPOLE, target_update_interval=8, train_freq=2, **BUFFER)),
    "qrdqn": (
        CARTPOLE,
        False,
        lambda: algorithm(QRDQN, CARTPOLE, policy_kwargs={"net_arch": [4], "n_quantiles": 5}, train_freq=2, **BUFFER),
    ),
    "sac": (PENDULUM, True, lambda: algorithm(SAC, PENDULUM, normalises=True, train_freq=2, **BUFFER)),
    "td3": (PENDULUM, False, lambda: algorithm(TD3, PENDULUM, train_freq=2, action_noise=NOISE, **BUFFER)),
    "tqc": (PENDULUM, False, lambda: algorithm(TQC, PENDULUM, train_freq=2, **BUFFER)),
}
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
    """Actions, and for actor-critic policies log-probabilities and values."""
    space = model.observation_space
    count = 6
    seen = np.arange(count) % 4 if isinstance(space, spaces.Discrete) else uniform(count, *space.shape, seed=12)
    return of_arrays({"actions": model.predict(seen, deterministic=True)[0]})


def algorithm_file(name: str) -> File:
    """The file of an algorithm, with its replay buffer if it has one."""
    env, normalises, build = ALGORITHMS[name]
    off_policy = name in OFF_POLICY

    def write(folder: Path) -> None:
        model = build().learn(40, log_interval=None)
        save_agent(model, folder / "agent", include_replay_buffer=off_policy)

    def read(folder: Path) -> Any:
        return load_agent(folder / "agent", env=vec_env(env, normalises=normalises), device="cpu")

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
        """Remember it."""
        if key == "train/entropy_collapse":
            self.lines.append((self.model.num_timesteps, float(value)))
        super().record(key, value, exclude)


def algorithm_run(name: str, total: int = 128, cut: int = 72) -> Run:
    """A run that is cut off, with a callback of ours beside the checkpoints, whose state goes on too."""
    env, normalises, build = ALGORITHMS[name]
    every = 30  # more than a rollout of an off-policy algorithm: when it looks next, it must know

    def beside(model: Any) -> PolicyEntropyCallback:
        model.set_logger(Seen(model))
        return PolicyEntropyCallback(measure_freq=every, collapse_threshold=0.999, histogram=False)

    def start(folder: Path | None) -> Any:
        model = build()
        callbacks: list[Any] = []
        if name not in ("sac", "td3", "tqc"):
            callbacks.append(beside(model))
        if folder is not None:
            callbacks += [ExactCheckpointCallback(16, folder, keep=1), ConvertCallback(cut_at(cut))]
        return model.learn(total, callbacks, log_interval=None)

    def resume(folder: Path) -> Any:
        run = load_checkpoint(folder, vec_env(env, normalises=normalises), device="cpu")
        assert run.is_exact
        assert 0 < run.remaining_timesteps < total
        callbacks: list[Any] = [] if name in ("sac", "td3", "tqc") else [beside(run.model)]
        return run.model.learn(
            run.remaining_timesteps, [*callbacks, run.callback], log_interval=None, reset_num_timesteps=False
        )

    def state(model: Any) -> Tensors:
        found = of_algorithm(model)
        if isinstance(model.logger, Seen):
            found["seen"] = torch.tensor([line for line in model.logger.lines if line[0] > cut], dtype=torch.float64)
        return found

    return Run(start, resume, state)


# ---- adversarial imitation


def of_imitation(trainer: Any) -> Tensors:
    """Both networks and their optimisers."""
    found = of_algorithm(trainer.gen_algo) | of_module("reward", trainer.reward_net)
    return found | of_optimizer("reward_optimizer", trainer.optimizer) | of_arrays({"rounds": trainer.rounds})


IMITATIONS: dict[str, tuple[Any, Callable[[], Demonstrations], str, Callable[[], Any], dict[str, Any]]] = {
    "gail": (
        GAIL,
        cartpole_data,
        CARTPOLE,
        lambda: algorithm(SmoothedPPO, CARTPOLE, normalises=True, target_entropy_frac=0.9, **FEW),
        {"real_target": 0.9, "terminal_states": "absorbing", "gen_replay_buffer_capacity": 50},
    ),
    "gail_dqn": (
        GAIL,
        cartpole_data,
        CARTPOLE,
        lambda: algorithm(DQN, CARTPOLE, train_freq=2, **BUFFER),
        {"reward_form": "log_d", "disc_learning_rate": 0.01},
    ),
    "airl": (
        AIRL,
        identity_data,
        MASKED,
        lambda: algorithm(SmoothedMaskablePPO, MASKED, smoothing=0.1, **FEW),
        {"disc_opt_cls": torch.optim.RMSprop, "horizon": 10},
    ),
    "airl_sac": (AIRL, pendulum_data, PENDULUM, lambda: algorithm(SAC, PENDULUM, train_freq=2, **BUFFER), {}),
}


def make_imitation(name: str) -> Any:
    """The trainer of a case."""
    trainer_class, data, _, build, arguments = IMITATIONS[name]
    model = build()
    if trainer_class is AIRL:
        reward = RewardNet(model.observation_space, model.action_space, net_arch=[4], use_action=True)
        net: nn.Module = ShapedRewardNet(reward, gamma=0.9, potential_net_arch=[4])
    else:
        net = RewardNet(model.observation_space, model.action_space, net_arch=[4], use_done=True)
    given = {"demo_batch_size": 8, "gen_train_timesteps": 32, "seed": 0, **arguments}
    return trainer_class(data(), model, net, **given)


def imitation_file(name: str) -> File:
    """The file of a whole trainer."""
    trainer_class, data, _, build, _ = IMITATIONS[name]

    def train_on(trainer: Any) -> Tensors:
        trainer.gen_algo.set_random_seed(3)
        return of_imitation(trainer.learn(32, reset_num_timesteps=False))

    return File(
        write=lambda folder: make_imitation(name).learn(64).save(folder / "trainer"),
        read=lambda folder: trainer_class.load(folder / "trainer.zip", data(), build()),
        kept=of_imitation,
        answers=lambda trainer: algorithm_answers(trainer.gen_algo),
        train_on=train_on,
    )


def imitation_run(name: str, total: int = 160, cut: int = 110) -> Run:
    """A run that is cut off in a round."""
    trainer_class, data, env, build, _ = IMITATIONS[name]

    def start(folder: Path | None) -> Any:
        callbacks = (
            [] if folder is None else [ExactCheckpointCallback(16, folder, keep=1), ConvertCallback(cut_at(cut))]
        )
        return make_imitation(name).learn(total, callbacks)

    def resume(folder: Path) -> Any:
        normalises = build().get_vec_normalize_env() is not None
        run = trainer_class.resume(folder, data(), vec_env(env, normalises=normalises), device="cpu")
        assert run.is_exact
        assert 0 < run.remaining_timesteps < total
        return run.trainer.learn(run.remaining_timesteps, run.callback, reset_num_timesteps=False)

    return Run(start, resume, of_imitation)


def reward_net(*, is_shaped: bool) -> RewardNet | ShapedRewardNet:
    """A network whose statistics have seen a batch."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = RewardNet(spaces.Box(-1, 1, (3,)), spaces.Discrete(4), net_arch=[8], use_next_state=True, use_done=True)
        chosen = ShapedRewardNet(net, gamma=0.9, potential_net_arch=[4]) if is_shaped else net
        chosen.train()(transitions())
    return chosen


def transitions() -> Transitions:
    """Eight, one of them absorbing."""
    states = torch.from_numpy(uniform(8, 3)), torch.from_numpy(uniform(8, 3, seed=1))
    flags = torch.arange(8) == 5, torch.arange(8) == 6
    return Transitions(states[0], torch.arange(8) % 4, states[1], *flags)


def reward_file(*, is_shaped: bool) -> File:
    """The file of a reward network."""
    return File(
        write=lambda folder: save_reward_net(reward_net(is_shaped=is_shaped), folder / "net"),
        read=lambda folder: load_reward_net(folder / "net"),
        kept=lambda net: of_module("net", net),
        answers=lambda net: {"rewards": net(transitions()).detach()},
    )


# ---- classification


class Fragile(nn.Sequential):
    """A network that can be made to fail after so many batches of training."""

    batches_left: ClassVar[int | None] = None

    def forward(self, inputs: Tensor) -> Tensor:
        """As its parent's."""
        if self.training and Fragile.batches_left is not None:
            Fragile.batches_left -= 1
            if Fragile.batches_left < 0:
                raise CutOffError
        found: Tensor = super().forward(inputs)
        return found


def fragile(features: int, classes: int) -> Fragile:
    """With dropout and running statistics."""
    return Fragile(
        nn.Linear(features, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, classes)
    )


X = uniform(60, 4, seed=13)
Y = np.array(["low", "mid", "top"], dtype=object)[np.arange(60) % 3]
PARTLY = np.where(np.arange(60) % 4 == 0, Y, np.array(-1, dtype=object))


def make_classifier(**more: Any) -> Classifier:
    """All that can change during a run is on."""
    given: dict[str, Any] = {
        "mixup": 0.3,
        "smoothing": Smoothing("lin_0.2", reference=torch.tensor([0.2, 0.3, 0.5])),
        "learning_rate": "lin_0.01",
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "validation_fraction": 0.2,
        "early_stopping_patience": 20,
        "class_weight": {"low": 2.0, "mid": 1.0, "top": 1.0},
        "batch_size": 16,
        "max_epochs": 6,
        "seed": 0,
        "device": "cpu",
        **more,
    }
    return Classifier(given.pop("model", fragile), **given)


def of_classifier(classifier: Classifier) -> Tensors:
    """The network and the history."""
    numbers = {"epochs": classifier.n_iter_, "best": classifier.best_epoch_, "history": classifier.history_}
    return of_module("module", classifier.module_) | of_arrays(numbers)


def classifier_answers(classifier: Any) -> Tensors:
    """Probabilities; labels as places in `classes_`."""
    places = np.searchsorted(classifier.classes_.astype(str), classifier.predict(X).astype(str))
    return of_arrays({"probabilities": classifier.predict_proba(X), "labels": places})


def classifier_file() -> File:
    """Of a network by name, that trains on."""
    tree = Tree.from_nested({"a": ["low", "mid"], "b": ["top"]})
    smoothing = Smoothing(0.2, reference=tree, decay=0.5)
    return File(
        write=lambda folder: (
            make_classifier(model="mlp", smoothing=smoothing, warm_start=True, max_epochs=2)
            .fit(X, Y)
            .save(folder / "classifier")
        ),
        read=lambda folder: Classifier.load(folder / "classifier.zip", device="cpu"),
        kept=of_classifier,
        answers=classifier_answers,
        train_on=lambda classifier: of_classifier(classifier.fit(X, Y)),
    )


def interrupted(train: Callable[[], Any], batches: int | None) -> Any:
    """Train, and fail after so many batches."""
    Fragile.batches_left = batches
    try:
        return train()
    finally:
        Fragile.batches_left = None


def classifier_run() -> Run:
    """Three batches an epoch, cut off in the fifth epoch."""

    def start(folder: Path | None) -> Classifier:
        classifier = make_classifier(checkpoint_folder=folder, checkpoint_every=2)
        found: Classifier = interrupted(
            lambda: classifier.fit(X, Y, np.linspace(0.5, 1.5, 60)), None if folder is None else 14
        )
        return found

    def resume(folder: Path) -> Classifier:
        classifier = make_classifier(checkpoint_folder=folder, checkpoint_every=2)
        return classifier.fit(X, Y, np.linspace(0.5, 1.5, 60), resume=True)

    return Run(start, resume, of_classifier)


def make_self_training(folder: Path | None) -> SelfTraining:
    """With a teacher that is an average.

    Labels are hard: soft ones are data of the next round, and would be others, by a bit, on another machine.
    """
    student = make_classifier(
        mixup=0.0,
        smoothing=0.1,
        validation_fraction=0.0,
        early_stopping_patience=None,
        max_epochs=4,
        warm_start=True,
        checkpoint_folder=folder,
        checkpoint_every=2,
    )
    return SelfTraining(student, criterion="k_best", k_best=8, max_iter=3, smoothing=0.1, ema_decay=0.5)


def of_self_training(model: SelfTraining) -> Tensors:
    """Student, teacher and who was labelled when."""
    found = of_module("student", model.classifier_.module_) | of_module("teacher", model.teacher_.module_)
    places = [{"low": 0, "mid": 1, "top": 2}.get(label, -1) for label in model.transduction_]
    return found | of_arrays({"round": model.labeled_iter_, "labels": np.array(places)})


def self_training_run() -> Run:
    """Cut off in the third of four fits."""

    def start(folder: Path | None) -> SelfTraining:
        model = make_self_training(folder)
        found: SelfTraining = interrupted(lambda: model.fit(X, PARTLY), None if folder is None else 4 + 8 + 10)
        return found

    return Run(start, lambda folder: make_self_training(folder).fit(X, PARTLY, resume=True), of_self_training)


# ---- GAN


def make_gan(folder: Path | None = None) -> GANTrainer:
    """All that can change during a run is on."""
    return GANTrainer(
        lambda: nn.Sequential(nn.Linear(3, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)),
        lambda: nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(0.2), nn.Dropout(0.2), nn.Linear(8, 1)),
        torch.from_numpy(uniform(40, 2, seed=14) + 1),
        latent_size=3,
        batch_size=8,
        learning_rate="lin_0.01",
        real_target="lin_0.8",
        discriminator_updates=2,
        ema_decay=0.9,
        evaluate=lambda samples: {"mean": samples.mean()},
        evaluate_every=4,
        evaluation_samples=10,
        seed=0,
        device="cpu",
        checkpoint_folder=folder,
        checkpoint_every=5,
    )


def of_gan(trainer: GANTrainer) -> Tensors:
    """All three networks, both optimisers, and what was logged."""
    assert trainer.average is not None
    return (
        of_module("generator", trainer.generator)
        | of_module("discriminator", trainer.discriminator)
        | of_module("average", trainer.average)
        | of_optimizer("generator_optimizer", trainer.generator_optimizer)
        | of_optimizer("discriminator_optimizer", trainer.discriminator_optimizer)
        | of_arrays({"history": trainer.history, "evaluations": trainer.evaluations})
    )


def gan_run() -> Run:
    """Cut off at step 13 of 17."""

    def cut(trainer: GANTrainer) -> None:
        if trainer.step == 13:
            raise CutOffError

    def start(folder: Path | None) -> GANTrainer:
        return make_gan(folder).train(17, log_every=3, callback=None if folder is None else cut)

    return Run(start, lambda folder: make_gan(folder).train(17, log_every=3, resume=True), of_gan)


def read_gan(folder: Path) -> GANTrainer:
    """The trainer of the file."""
    fresh = make_gan()
    data = torch.from_numpy(uniform(40, 2, seed=14) + 1)
    return GANTrainer.load(folder / "gan.zip", fresh.generator, fresh.discriminator, data, device="cpu")


# ---- data


def demonstrations_file(data: Callable[[], Any], *, is_folder: bool = False) -> File:
    """Demonstrations in one of their two formats."""
    name = "demonstrations" if is_folder else "demonstrations.npz"

    def write(folder: Path) -> None:
        if is_folder:
            data().save_folder(folder / name)
        else:
            data().save(folder / name)

    def read(folder: Path) -> Demonstrations:
        found = load_demonstrations(folder / name)
        expected = data()
        assert (found.observation_space, found.action_space) == (expected.observation_space, expected.action_space)
        assert dict(found.metadata) == dict(expected.metadata)
        assert (found.infos is None) == (expected.infos is None)
        assert found.infos is None or [*map(dict, found.infos)] == [*map(dict, expected.infos)]
        return found

    fields = ("observations", "actions", "episode_ends", "next_observations", "rewards", "terminations", "truncations")
    more = ("action_masks", "weights", "groups", "action_probs")
    return File(
        write,
        read,
        kept=lambda found: of_arrays({field: getattr(found, field) for field in (*fields, *more)}),
        answers=lambda found: {"lengths": torch.as_tensor(found.episode_lengths())},
    )


def observation_only() -> ObservationOnly:
    """Without actions."""
    return ObservationOnly.from_demonstrations(box_data())


def read_labelled(folder: Path) -> LabelledData:
    """The data of the file."""
    found, expected = load_labelled(folder / "data.npz"), labelled_data()
    assert (found.class_names, found.feature_names) == (expected.class_names, expected.feature_names)
    assert (found.hierarchy, found.is_ordered, found.source) == (
        expected.hierarchy,
        expected.is_ordered,
        expected.source,
    )
    return found


# ---- all cases

FILES: dict[str, File] = {
    **{name: bc_file(name) for name in BC_CASES},
    "bco": File(
        write=lambda folder: make_bco().learn().save(folder / "agent"),
        read=lambda folder: BCO.load(
            folder / "agent.zip", CARTPOLE, ObservationOnly.from_demonstrations(cartpole_data()), device="cpu"
        ),
        kept=of_policy,
        answers=lambda agent: of_arrays({"actions": agent.predict(uniform(6, 4), deterministic=True)[0]}),
        train_on=lambda agent: of_bco(agent.learn()),
    ),
    "dagger": File(
        write=lambda folder: make_dagger().learn(80).save(folder / "agent"),
        read=lambda folder: DAgger.load(folder / "agent.zip", IdentityEnv(4), expert, device="cpu"),
        kept=of_policy,
        answers=lambda agent: of_arrays({"actions": agent.predict(np.arange(4), deterministic=True)[0]}),
        train_on=lambda agent: of_dagger(agent.learn(40)),
    ),
    "inverse_dynamics": File(
        write=lambda folder: make_inverse().fit(box_data()).save(folder / "model"),
        read=lambda folder: InverseDynamics.load(folder / "model.zip", device="cpu"),
        kept=lambda model: of_policy(model.bc),
        answers=inverse_answers,
        train_on=lambda model: of_policy(model.fit(box_data()).bc),
    ),
    **{name: algorithm_file(name) for name in ALGORITHMS},
    **{name: imitation_file(name) for name in IMITATIONS},
    "reward_net": reward_file(is_shaped=False),
    "shaped_reward_net": reward_file(is_shaped=True),
    "classifier": classifier_file(),
    "gan": File(
        write=lambda folder: make_gan().train(4).save(folder / "gan"),
        read=read_gan,
        kept=of_gan,
        answers=lambda trainer: {"samples": trainer.sample(4, seed=0)},
        train_on=lambda trainer: of_gan(trainer.train(3)),
    ),
    "demonstrations_masks": demonstrations_file(masked_data),
    "demonstrations_soft": demonstrations_file(soft_data),
    "demonstrations_box": demonstrations_file(box_data),
    "demonstrations_dict": demonstrations_file(dict_data),
    "demonstrations_folder_box": demonstrations_file(lambda: replace(box_data(), infos=None), is_folder=True),
    "demonstrations_folder_masks": demonstrations_file(masked_data, is_folder=True),
    "demonstrations_folder_dict": demonstrations_file(dict_data, is_folder=True),
    "observation_only": File(
        write=lambda folder: observation_only().save(folder / "data.npz"),
        read=lambda folder: ObservationOnly.load(folder / "data.npz"),
        kept=lambda found: of_arrays(
            {name: getattr(found, name) for name in ("observations", "episode_starts") if hasattr(found, name)}
        ),
        answers=lambda found: {"episodes": torch.tensor(found.num_episodes)},
    ),
    "labelled_data": File(
        write=lambda folder: labelled_data().save(folder / "data.npz"),
        read=read_labelled,
        kept=lambda found: of_arrays({"features": found.features, "labels": found.labels}),
        answers=lambda found: {"counts": torch.as_tensor(found.class_counts())},
    ),
}

RUNS: dict[str, Run] = {
    **{f"run_{name}": bc_run(name) for name in ("bc_masks", "bc_multi_discrete", "bc_box_bins", "bc_early_stopping")},
    "run_bco": Run(
        start=lambda folder: make_bco(checkpoint_folder=folder).learn(None if folder is None else cut_at(101)),
        resume=lambda folder: BCO.resume(
            folder, CARTPOLE, ObservationOnly.from_demonstrations(cartpole_data()), device="cpu"
        ).learn(),
        state=of_bco,
    ),
    "run_dagger": Run(
        start=lambda folder: make_dagger(scratch_dir=folder).learn(
            120, callback=None if folder is None else cut_at(101)
        ),
        resume=lambda folder: DAgger.resume(folder, IdentityEnv(4), expert, device="cpu").learn(120),
        state=of_dagger,
    ),
    **{
        f"run_{name}": algorithm_run(name)
        for name in ("ppo", "smoothed_ppo", "smoothed_ppo_target", "smoothed_ppo_from_bc", "smoothed_maskable_ppo")
    },
    **{f"run_{name}": algorithm_run(name) for name in ("smoothed_recurrent_ppo", "dqn", "sac")},
    **{f"run_{name}": imitation_run(name) for name in IMITATIONS},
    "run_classifier": classifier_run(),
    "run_self_training": self_training_run(),
    "run_gan": gan_run(),
}


# ---- writing


def machine() -> dict[str, str]:
    """What decides about the last bits of a number."""
    model = platform.processor()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return {
        "processor": model,
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "gymnasium": gym.__version__,
        "stable_baselines3": stable_baselines3.__version__,
        "sb3_contrib": sb3_contrib.__version__,
    }


def expected(name: str) -> tuple[Tensors, dict[str, str]]:
    """What was stored for a case, and the machine that it comes from."""
    with safe_open(FOLDER / name / EXPECTED, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["machine"])  # noqa: SIM118


def file_state(case: File, folder: Path) -> Tensors:
    """All that is compared of a file, by `kept/`, `answers/` and `trained/`."""
    read = case.read(folder)
    found = {f"kept/{name}": tensor for name, tensor in case.kept(read).items()}
    found |= {f"answers/{name}": tensor for name, tensor in case.answers(read).items()}
    if case.train_on is not None:
        found |= {f"trained/{name}": tensor for name, tensor in case.train_on(read).items()}
    return found


def write_case(name: str, folder: Path) -> None:
    """Write one case into its folder, and what is expected of it."""
    folder.mkdir(parents=True)
    if name in FILES:
        FILES[name].write(folder)
        found = file_state(FILES[name], folder)
    else:
        run, checkpoints = RUNS[name], folder / "checkpoints"
        try:
            run.start(checkpoints)
        except CutOffError:
            pass
        else:
            raise AssertionError(f"{name} was not cut off")
        found = run.state(run.start(None))
    found = {key: tensor.contiguous().clone() for key, tensor in found.items()}
    save_file(found, folder / EXPECTED, {"machine": json.dumps(machine())})


def main() -> None:
    """Write the cases that are missing."""
    torch.set_num_threads(1)
    for name in [*FILES, *RUNS]:
        folder = FOLDER / name
        if folder.exists():
            continue
        try:
            write_case(name, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            print(f"{name} failed", file=sys.stderr)
            raise
        print(f"{name}: {sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) // 1024} KB")


if __name__ == "__main__":
    main()
