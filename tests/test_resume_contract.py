"""The contract of every trainer about runs that are cut off: the same bits, one run a folder, errors that help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from torch import nn

from rlsmooth.agents import AIRL, BC, BCO, GAIL, DAgger, ExactCheckpointCallback, load_checkpoint
from rlsmooth.data import ObservationOnly, cartpole_v1
from rlsmooth.envs import IdentityEnv
from rlsmooth.training import Classifier, GANTrainer, SelfTraining, TrainingDivergedError, seed_everything
from support import KillAt, KilledError, assert_equal, draw

SMALL: dict[str, Any] = {"seed": 0, "device": "cpu"}
NET = {"net_arch": [8]}
BLOWN_UP = {"learning_rate": 1e38, "policy_kwargs": {**NET, "optimizer_class": torch.optim.SGD}}
NEVER = 10**9


class Trainer:
    """One run of a trainer: `start` begins it in a folder, `resume` takes it up there; both go to its end."""

    begins_anew = False  # where resume=True of an empty folder begins the run
    at: int  # the step at which a run is cut off: its middle

    def start(self, folder: Path | None, die_at: int = NEVER, **changed: Any) -> Any:
        raise NotImplementedError

    def resume(self, folder: Path, **changed: Any) -> Any:
        raise NotImplementedError

    def state(self, trained: Any) -> Any:
        return {"policy": trained.policy.state_dict(), "steps": trained.num_timesteps}


class OfBC(Trainer):
    at = 17

    def start(self, folder: Path | None, die_at: int = NEVER, **changed: Any) -> Any:
        given = {"batch_size": 4, "smoothing": "lin_0.2", "learning_rate": "lin_0.01", "policy_kwargs": dict(NET)}
        agent = BC(
            "MlpPolicy", None, draw(), checkpoint_folder=folder, checkpoint_every=3, **{**SMALL, **given, **changed}
        )
        return agent.learn(total_epochs=3, callback=KillAt(die_at))

    def resume(self, folder: Path, data: Any = None, total_epochs: int = 3, **changed: Any) -> Any:
        return BC.resume(folder, None, data or draw(), device="cpu", **changed).learn(total_epochs=total_epochs)


class OfBCO(Trainer):
    at = 90
    data = ObservationOnly.from_demonstrations(cartpole_v1()).sample_episodes(1, seed=0)

    def start(self, folder: Path | None, die_at: int = NEVER, **changed: Any) -> Any:
        given = {"n_rounds": 3, "transitions_per_round": 40, "n_epochs": 1, "smoothing": "lin_0.3"}
        given |= {
            "inverse_epochs": 1,
            "inverse_net_arch": (8,),
            "policy_kwargs": dict(NET),
            "checkpoint_folder": folder,
        }
        return BCO("MlpPolicy", "CartPole-v1", self.data, **given).learn(KillAt(die_at))

    def resume(self, folder: Path, data: Any = None, **changed: Any) -> Any:
        return BCO.resume(folder, "CartPole-v1", data or self.data, device="cpu", **changed).learn()

    def state(self, trained: Any) -> Any:
        return {**super().state(trained), "history": trained.history}


class OfDAgger(Trainer):
    at = 90

    def start(self, folder: Path | None, die_at: int = NEVER, **changed: Any) -> Any:
        given = {"rollout_round_min_timesteps": 40, "bc_train_n_epochs": 1, "beta_schedule": 2, "scratch_dir": folder}
        given |= {"policy_kwargs": dict(NET), **SMALL, **changed}
        return DAgger("MlpPolicy", IdentityEnv(4), int, **given).learn(120, KillAt(die_at))

    def resume(self, folder: Path, env: Any = None, total: int = 120) -> Any:
        return DAgger.resume(folder, env or IdentityEnv(4), int, device="cpu").learn(total)

    def state(self, trained: Any) -> Any:
        return {**super().state(trained), "history": trained.history, "actions": trained.demonstrations.actions}


class OfPPO(Trainer):
    at = 150

    def build(self, env: Any) -> Any:
        return PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=2, policy_kwargs=dict(NET), **SMALL)

    def start(self, folder: Path | None, die_at: int = NEVER) -> Any:
        kept = [] if folder is None else [ExactCheckpointCallback(64, folder)]
        seed_everything(7)
        return self.build(make_vec_env("CartPole-v1", 2)).learn(256, [*kept, KillAt(die_at)])

    def resume(self, folder: Path, n_envs: int = 2) -> Any:
        seed_everything(99)
        run = load_checkpoint(folder, make_vec_env("CartPole-v1", n_envs), device="cpu")
        return run.model.learn(run.remaining_timesteps, [run.callback], reset_num_timesteps=False)


class OfDQN(OfPPO):
    def build(self, env: Any) -> Any:
        return DQN(
            "MlpPolicy", env, learning_starts=50, buffer_size=200, batch_size=8, policy_kwargs=dict(NET), **SMALL
        )


@dataclass
class OfImitation(Trainer):
    kind: Any
    at = 150

    def start(self, folder: Path | None, die_at: int = NEVER, **changed: Any) -> Any:
        model = OfPPO().build(make_vec_env("CartPole-v1", 2, seed=0))
        given = {"demo_batch_size": 32, "gen_train_timesteps": 64, "seed": 3, **changed}
        kept = [] if folder is None else [ExactCheckpointCallback(64, folder)]
        return self.kind(self.demonstrations(), model, **given).learn(256, [*kept, KillAt(die_at)])

    def resume(self, folder: Path, data: Any = None) -> Any:
        env = make_vec_env("CartPole-v1", 2, seed=9)
        run = self.kind.resume(folder, data or self.demonstrations(), env, device="cpu")
        return run.trainer.learn(run.remaining_timesteps, run.callback, reset_num_timesteps=False)

    def demonstrations(self) -> Any:
        return cartpole_v1().sample_episodes(2, seed=0)

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
        net = nn.Sequential(nn.Linear(features, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, classes))
        net.register_forward_pre_hook(self.count)
        return net

    def count(self, net: nn.Module, _: Any) -> None:
        self.left -= net.training
        if self.left <= 0:
            raise KilledError


class OfClassifier(Trainer):
    at, begins_anew = 15, True
    X, y = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32), np.arange(60) % 3

    def build(self, folder: Path | None, die_at: int, **changed: Any) -> Any:
        given = {"max_epochs": 6, "batch_size": 16, "smoothing": "lin_0.2", "learning_rate": "lin_0.01", **changed}
        return Classifier(Fragile(die_at), checkpoint_folder=folder, checkpoint_every=2, **{**SMALL, **given})

    def start(self, folder: Path | None, die_at: int = NEVER, **changed: Any) -> Any:
        return self.build(folder, die_at, **changed).fit(self.X, self.y)

    def resume(self, folder: Path, X: Any = None, **changed: Any) -> Any:
        return self.build(folder, NEVER, **changed).fit(self.X if X is None else X, self.y, resume=True)

    def state(self, trained: Any) -> Any:
        return {"module": trained.module_.state_dict(), "history": trained.history_}


class OfSelfTraining(OfClassifier):
    at = 20
    y = np.where(np.arange(60) < 30, np.arange(60) % 3, -1)

    def build(self, folder: Path | None, die_at: int, **changed: Any) -> Any:
        student = super().build(folder, die_at, **{"smoothing": 0.1, **changed})
        return SelfTraining(student, threshold=0.34, smoothing=0.1, max_iter=3)

    def state(self, trained: Any) -> Any:
        rounds = {"labels": trained.transduction_, "rounds": trained.rounds_}
        return {**super().state(trained.classifier_), **rounds}


class OfGAN(Trainer):
    at, begins_anew = 7, True

    def build(self, folder: Path | None, **changed: Any) -> GANTrainer:
        data = changed.pop("data", torch.randn(40, 2, generator=torch.Generator().manual_seed(5)))
        given = {
            "latent_size": 3,
            "batch_size": 8,
            "learning_rate": "lin_0.01",
            "real_target": "lin_0.8",
            "ema_decay": 0.9,
        }
        given |= {"checkpoint_folder": folder, "checkpoint_every": 2, **SMALL, **changed}
        return GANTrainer(
            lambda: nn.Linear(3, 2), lambda: nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 1)), data, **given
        )

    def start(self, folder: Path | None, die_at: int = NEVER, **changed: Any) -> Any:
        def die(trainer: GANTrainer) -> None:
            if trainer.step >= die_at:
                raise KilledError

        return self.build(folder, **changed).train(9, callback=die)

    def resume(self, folder: Path, steps: int = 9, **changed: Any) -> Any:
        return self.build(folder, **changed).train(steps, resume=True)

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
# What is refused when it differs from the run's: the name, and the arguments of `resume` that differ.
OTHERS: dict[str, dict[str, dict[str, Any]]] = {
    "BC": {"demonstrations": {"data": draw(seed=1)}, "total": {"total_epochs": 4}},
    "BCO": {"demonstrations": {"data": ObservationOnly.from_demonstrations(cartpole_v1().sample_episodes(1, seed=1))}},
    "DAgger": {"total_timesteps": {"total": 80}, "env": {"env": make_vec_env(lambda: IdentityEnv(4), n_envs=2)}},
    "GAIL": {"demonstrations": {"data": cartpole_v1()}},
    "AIRL": {"demonstrations": {"data": cartpole_v1()}},
    "Classifier": {"X": {"X": OfClassifier.X + 1}, "batch_size": {"batch_size": 8}, "max_epochs": {"max_epochs": 7}},
    "SelfTraining": {"X": {"X": OfClassifier.X + 1}, "batch_size": {"batch_size": 8}},
    "GAN": {"data": {"data": torch.zeros(9, 2)}, "batch_size": {"batch_size": 4}, "steps": {"steps": 12}},
    "PPO": {"env": {"n_envs": 3}},
    "DQN": {"env": {"n_envs": 3}},
}
# What makes the loss or the parameters infinite, where a trainer watches them.
DIVERGING: dict[str, dict[str, Any]] = {
    "BC": BLOWN_UP,
    "BCO": BLOWN_UP,
    "DAgger": BLOWN_UP,
    "GAIL": {"disc_opt_cls": torch.optim.SGD, "disc_learning_rate": 1e38},
    "AIRL": {"disc_opt_cls": torch.optim.SGD, "disc_learning_rate": 1e38},
    "Classifier": {"learning_rate": 1e39},
    "SelfTraining": {"learning_rate": 1e39},
    "GAN": {"data": lambda count: torch.full((count, 2), torch.nan)},
}

of_each = pytest.mark.parametrize("trainer", TRAINERS.values(), ids=TRAINERS)


@of_each
def test_a_resumed_run_ends_as_an_uninterrupted_one(trainer: Trainer, tmp_path: Path) -> None:
    whole = trainer.start(None)
    with pytest.raises(KilledError):
        trainer.start(tmp_path, trainer.at)
    assert list(tmp_path.rglob("checkpoint_*.zip"))
    assert_equal(trainer.state(trainer.resume(tmp_path)), trainer.state(whole))
    assert_equal(trainer.state(trainer.resume(tmp_path)), trainer.state(whole))  # of a run that has ended


@of_each
def test_a_folder_that_holds_another_run_is_refused(trainer: Trainer, tmp_path: Path) -> None:
    trainer.start(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"resume|load_checkpoint|go on from") as found:
        trainer.start(tmp_path)
    assert str(tmp_path) in str(found.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("trainer", "name"), [(one, name) for one, names in OTHERS.items() for name in names])
def test_what_differs_from_the_run_is_refused_by_name(trainer: str, name: str, tmp_path: Path) -> None:
    run = TRAINERS[trainer]
    with pytest.raises(KilledError):
        run.start(tmp_path, run.at)
    with pytest.raises(ValueError, match=name):
        run.resume(tmp_path, **OTHERS[trainer][name])
    run.resume(tmp_path)  # nothing was spoilt


@of_each
def test_an_empty_folder_holds_no_run(trainer: Trainer, tmp_path: Path) -> None:
    if trainer.begins_anew:
        assert_equal(trainer.state(trainer.resume(tmp_path)), trainer.state(trainer.start(None)))
        return
    with pytest.raises(ValueError, match=r"holds no run to (go on with|resume)") as found:
        trainer.resume(tmp_path)
    assert str(tmp_path) in str(found.value)


@pytest.mark.parametrize("trainer", DIVERGING)
def test_a_run_that_diverges_stops_and_names_the_step(trainer: str, tmp_path: Path) -> None:
    error = FloatingPointError if trainer in ("GAIL", "AIRL") else TrainingDivergedError
    with pytest.raises(error, match=r"(step|batch|round|update) \d+"):
        TRAINERS[trainer].start(tmp_path, **DIVERGING[trainer])
