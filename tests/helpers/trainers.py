"""One small run of every trainer, to be started, cut off and resumed: what `test_resume_contract.py` compares."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from rlsmooth.agents import AIRL, BC, BCO, GAIL, DAgger, ExactCheckpointCallback, Transitions, load_checkpoint
from rlsmooth.data import ObservationOnly, cartpole_v1
from rlsmooth.envs import IdentityEnv
from rlsmooth.training import Classifier, GANTrainer, SelfTraining, seed_everything
from support import KillAt, KilledError, draw, tensor_samples

SMALL: dict[str, Any] = {"seed": 0, "device": "cpu"}
NEVER = 10**9


class Dropping(FlattenExtractor):
    """Draws from torch's generator in every forward pass."""

    def __init__(self, space: Any) -> None:
        super().__init__(space)
        self.dropout = nn.Dropout(0.2)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.dropout(super().forward(observations))


CUSTOM = {"features_extractor_class": Dropping}
NET = {"net_arch": [8]}


def small_bc(demonstrations: Any = None, **arguments: Any) -> BC:
    """A small clone, of `draw()` where no demonstrations are given."""
    given = {**SMALL, "policy_kwargs": dict(NET), **arguments}
    return BC("MlpPolicy", None, draw() if demonstrations is None else demonstrations, **given)


def expert() -> Any:
    """Two episodes of the shipped expert."""
    return cartpole_v1().sample_episodes(2, seed=0)


def cartpole_ppo(kind: Any = PPO, **arguments: Any) -> Any:
    """A small PPO, or another algorithm of its arguments, in two environments."""
    given = {"n_steps": 64, "batch_size": 64, "n_epochs": 1, **SMALL, **arguments}
    return kind("MlpPolicy", make_vec_env("CartPole-v1", n_envs=2, seed=0), **given)


def transitions_of(observation_space: Any, action_space: Any, count: int = 5) -> Transitions:
    """Samples of two spaces, none of which is at an end."""
    observation_space.seed(0)
    action_space.seed(0)
    seen, after = tensor_samples(observation_space, count), tensor_samples(observation_space, count)
    nothing = torch.zeros(count, dtype=torch.bool)
    return Transitions(seen, tensor_samples(action_space, count), after, nothing, nothing)


class LogProbsAgree(BaseCallback):
    """At each rollout's end: its floor, and how far the log-probabilities of its update are from those it acted by."""

    def __init__(self) -> None:
        super().__init__()
        self.floors: list[float] = []
        self.gaps: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        policy: Any = self.model.policy
        policy.set_training_mode(False)
        self.floors.append(policy.exploration_floor)
        (data,) = copy.deepcopy(self.model.rollout_buffer).get(None)
        is_discrete = isinstance(self.model.action_space, spaces.Discrete)
        actions = data.actions.long().flatten() if is_discrete else data.actions
        more, counts = (), torch.ones_like(data.old_log_prob, dtype=torch.bool)
        if isinstance(self.model, RecurrentPPO):
            more, counts = (data.lstm_states, data.episode_starts), data.mask > 1e-8
        elif isinstance(self.model, MaskablePPO):
            more = (data.action_masks,)
        with torch.no_grad():
            log_prob = policy.evaluate_actions(data.observations, actions, *more)[1]
        self.gaps.append(float((log_prob - data.old_log_prob)[counts].abs().max()))


class Trainer:
    """`start` begins a run in a folder, `resume` takes it up there; both go to its end."""

    times = 1  # how many times as long as the shortest
    begins_anew = False  # where resume=True of an empty folder begins the run
    at: int  # the step at which the shortest run is cut off: its middle

    def start(self, folder: Path | None, die_at: int = NEVER, **changed: Any) -> Any:
        raise NotImplementedError

    def resume(self, folder: Path, **changed: Any) -> Any:
        raise NotImplementedError

    def state(self, trained: Any) -> Any:
        return {"policy": trained.policy.state_dict(), "steps": trained.num_timesteps}


class OfBC(Trainer):
    at = 17

    def start(self, folder: Path | None, die_at: int = NEVER, **changed: Any) -> Any:
        given = {"batch_size": 4, "smoothing": "lin_0.2", "learning_rate": "lin_0.01", "policy_kwargs": NET | CUSTOM}
        given |= {"validation_fraction": 0.25, "early_stopping_patience": 50, **SMALL, **changed}
        agent = BC("MlpPolicy", None, draw(), checkpoint_folder=folder, checkpoint_every=3, **given)
        return agent.learn(total_epochs=3 * self.times, callback=KillAt(die_at))

    def resume(self, folder: Path, data: Any = None, epochs: int = 3) -> Any:
        agent = BC.resume(folder, None, data or draw(), custom_objects=CUSTOM, device="cpu")
        return agent.learn(total_epochs=epochs * self.times)


class OfBCO(Trainer):
    at = 90
    data = ObservationOnly.from_demonstrations(cartpole_v1()).sample_episodes(1, seed=0)

    def start(self, folder: Path | None, die_at: int = NEVER, **changed: Any) -> Any:
        given = {"n_rounds": 3 * self.times, "transitions_per_round": 40, "n_epochs": 1, "smoothing": "lin_0.3"}
        given |= {"inverse_epochs": 1, "inverse_net_arch": (8,), "policy_kwargs": NET | CUSTOM, **SMALL, **changed}
        return BCO("MlpPolicy", "CartPole-v1", self.data, checkpoint_folder=folder, **given).learn(KillAt(die_at))

    def resume(self, folder: Path, data: Any = None) -> Any:
        return BCO.resume(folder, "CartPole-v1", data or self.data, custom_objects=CUSTOM, device="cpu").learn()

    def state(self, trained: Any) -> Any:
        return {**super().state(trained), "history": trained.history}


class OfDAgger(Trainer):
    at = 90

    def start(self, folder: Path | None, die_at: int = NEVER, **changed: Any) -> Any:
        given = {"rollout_round_min_timesteps": 40, "bc_train_n_epochs": 1, "beta_schedule": 0.5, "scratch_dir": folder}
        given |= {"smoothing": "lin_0.2", "policy_kwargs": NET | CUSTOM, **SMALL, **changed}
        return DAgger("MlpPolicy", IdentityEnv(4), int, **given).learn(120 * self.times, KillAt(die_at))

    def resume(self, folder: Path, env: Any = None, total: int = 120) -> Any:
        agent = DAgger.resume(folder, env or IdentityEnv(4), int, custom_objects=CUSTOM, device="cpu")
        return agent.learn(total * self.times)

    def state(self, trained: Any) -> Any:
        return {**super().state(trained), "history": trained.history, "actions": trained.demonstrations.actions}


class OfPPO(Trainer):
    at = 150

    def build(self, env: Any) -> Any:
        return PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=2, policy_kwargs=dict(NET), **SMALL)

    def start(self, folder: Path | None, die_at: int = NEVER) -> Any:
        kept = [] if folder is None else [ExactCheckpointCallback(64, folder)]
        seed_everything(7)
        return self.build(make_vec_env("CartPole-v1", 2)).learn(256 * self.times, [*kept, KillAt(die_at)])

    def resume(self, folder: Path, n_envs: int = 2) -> Any:
        seed_everything(99)
        run = load_checkpoint(folder, make_vec_env("CartPole-v1", n_envs), device="cpu")
        return run.model.learn(run.remaining_timesteps, [run.callback], reset_num_timesteps=False)


class OfDQN(OfPPO):
    def build(self, env: Any) -> Any:
        small = {"learning_starts": 50, "buffer_size": 200, "batch_size": 8, "policy_kwargs": dict(NET)}
        return DQN("MlpPolicy", env, **small, **SMALL)


@dataclass
class OfImitation(Trainer):
    kind: Any
    at = 150

    def start(self, folder: Path | None, die_at: int = NEVER, **changed: Any) -> Any:
        model = OfPPO().build(make_vec_env("CartPole-v1", 2, seed=0))
        given = {"demo_batch_size": 32, "gen_train_timesteps": 64, "seed": 3, **changed}
        kept = [] if folder is None else [ExactCheckpointCallback(64, folder)]
        return self.kind(expert(), model, **given).learn(256 * self.times, [*kept, KillAt(die_at)])

    def resume(self, folder: Path, data: Any = None) -> Any:
        env = make_vec_env("CartPole-v1", 2, seed=9)
        run = self.kind.resume(folder, data or expert(), env, device="cpu")
        return run.trainer.learn(run.remaining_timesteps, run.callback, reset_num_timesteps=False)

    def state(self, trained: Any) -> Any:
        nets = {"policy": trained.policy.state_dict(), "reward": trained.reward_net.state_dict()}
        return {**nets, "rounds": trained.rounds, "steps": trained.gen_algo.num_timesteps}


class Fragile:
    """Builds networks that raise `KilledError` in the training step of that number; `copy` gives the same object."""

    def __init__(self, die_at: int) -> None:
        self.left = die_at

    def __deepcopy__(self, _: Any) -> Fragile:
        return self

    def __call__(self, features: int, classes: int) -> nn.Module:
        torch.manual_seed(3)
        net = nn.Sequential(
            nn.Linear(features, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, classes)
        )
        net.register_forward_pre_hook(self.count)
        return net

    def count(self, net: nn.Module, _: Any) -> None:
        self.left -= net.training
        if self.left <= 0:
            raise KilledError


class OfClassifier(Trainer):
    at, begins_anew = 12, True
    X, y = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32), np.arange(60) % 3
    weights = np.linspace(0.5, 1.5, 60)

    def build(self, folder: Path | None, die_at: int = NEVER, epochs: int = 6, **changed: Any) -> Any:
        given = {"batch_size": 16, "smoothing": "lin_0.2", "learning_rate": "lin_0.01", "mixup": 0.2, **SMALL}
        given |= {"weight_decay": 0.01, "max_grad_norm": 1.0, "class_weight": "balanced", **changed}
        given |= {"validation_fraction": 0.2, "early_stopping_patience": 100, "max_epochs": epochs * self.times}
        return Classifier(Fragile(die_at), checkpoint_folder=folder, checkpoint_every=2, **given)

    def start(self, folder: Path | None, die_at: int = NEVER, **changed: Any) -> Any:
        return self.build(folder, die_at, **changed).fit(self.X, self.y, self.weights)

    def resume(self, folder: Path, X: Any = None, **changed: Any) -> Any:
        return self.build(folder, **changed).fit(self.X if X is None else X, self.y, self.weights, resume=True)

    def state(self, trained: Any) -> Any:
        epochs = trained.n_iter_, trained.best_epoch_
        return {"module": trained.module_.state_dict(), "history": trained.history_, "epochs": epochs}


class OfSelfTraining(OfClassifier):
    at = 20
    y = np.where(np.arange(60) < 30, np.arange(60) % 3, -1)

    def build(self, folder: Path | None, die_at: int = NEVER, epochs: int = 6, **changed: Any) -> Any:
        student = super().build(folder, die_at, epochs, **{"smoothing": 0.1, **changed})
        return SelfTraining(student, threshold=0.34, smoothing=0.1, max_iter=3)

    def state(self, trained: Any) -> Any:
        return {**super().state(trained.classifier_), "labels": trained.transduction_, "rounds": trained.rounds_}


class OfGAN(Trainer):
    at, begins_anew = 7, True

    def build(self, folder: Path | None, **changed: Any) -> GANTrainer:
        data = changed.pop("data", torch.randn(40, 2, generator=torch.Generator().manual_seed(5)))
        given = {"latent_size": 3, "batch_size": 8, "learning_rate": "lin_0.01", "real_target": "lin_0.8", **SMALL}
        given |= {"ema_decay": 0.9, "checkpoint_folder": folder, "checkpoint_every": 2, **changed}
        return GANTrainer(
            lambda: nn.Linear(3, 2), lambda: nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 1)), data, **given
        )

    def start(self, folder: Path | None, die_at: int = NEVER, **changed: Any) -> Any:
        def die(trainer: GANTrainer) -> None:
            if trainer.step >= die_at:
                raise KilledError

        return self.build(folder, **changed).train(9 * self.times, callback=die)

    def resume(self, folder: Path, steps: int = 9, **changed: Any) -> Any:
        return self.build(folder, **changed).train(steps * self.times, resume=True)

    def state(self, trained: Any) -> Any:
        nets = {name: getattr(trained, name).state_dict() for name in ("generator", "discriminator", "average")}
        return {**nets, "history": trained.history, "step": trained.step}


TRAINERS: dict[str, Any] = {
    "BC": OfBC(),
    "BCO": OfBCO(),
    "DAgger": OfDAgger(),
    "GAIL": OfImitation(GAIL),
    "AIRL": OfImitation(AIRL),
    "Classifier": OfClassifier(),
    "SelfTraining": OfSelfTraining(),
    "GAN": OfGAN(),
    "PPO": OfPPO(),
    "DQN": OfDQN(),
}
