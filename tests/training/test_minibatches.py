"""Minibatches: how epochs are divided, BatchNorm in every trainer, and what evaluations allocate."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from torch import Tensor, nn

from rlsmooth.agents import BC, BCO, DAgger, InverseDynamics
from rlsmooth.data import Demonstrations, ObservationOnly, cartpole_v1
from rlsmooth.envs import IdentityEnv
from rlsmooth.training import Classifier, GANTrainer, SelfTraining, run
from rlsmooth.training.run import samples_at_once
from rlsmooth.training.seeding import EpochCut, mean_weight
from support import KillAt, KilledError, assert_raises, draw, same_parameters, samples


# ---- the division of an epoch
@pytest.mark.parametrize("size", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("joins_single", [False, True])
def test_an_epoch_has_every_sample_once(size: int, joins_single: bool) -> None:
    for count in range(1, 30):
        cut = EpochCut(count, size, joins_single)
        bounds = [cut.bounds(number) for number in range(len(cut))]
        assert [place for start, end in bounds for place in range(start, end)] == list(range(count))
        sizes = [end - start for start, end in bounds]
        assert cut.smallest == min(sizes)
        assert all(found == size for found in sizes[:-1])
        if joins_single and size > 1 and count > 1:
            assert 2 <= sizes[-1] <= size + 1
        else:
            assert sizes[-1] <= size


def test_the_mean_weight_is_numpys() -> None:
    assert mean_weight(None) is mean_weight(np.full(7, 0.1)) is mean_weight([]) is None
    assert mean_weight(np.arange(5.0, dtype=np.float32)) == 2.0
    assert mean_weight(np.zeros(3)) == 1.0  # no division by 0


# ---- BatchNorm with one sample left over
class Normed(FlattenExtractor):
    """Refuses a minibatch of one transition in training, as BatchNorm does."""

    seen: ClassVar[list[int]] = []

    def __init__(self, space: Any) -> None:
        super().__init__(space)
        self.norm = nn.BatchNorm1d(self.features_dim)

    def forward(self, observations: Tensor) -> Tensor:
        if self.training:
            self.seen.append(len(observations))
        normed: Tensor = self.norm(super().forward(observations))
        return normed


class NormedCNN(NatureCNN):
    """With BatchNorm over images."""

    def __init__(self, space: Any) -> None:
        super().__init__(space, 16)
        self.cnn = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.BatchNorm2d(4), nn.Flatten())
        self.linear = nn.Sequential(nn.LazyLinear(16))
        self.forward(torch.zeros(2, *space.shape))


def normed(features: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, classes))


SMALL: dict[str, Any] = {"seed": 0, "device": "cpu"}
POLICY = {"net_arch": [8], "features_extractor_class": Normed}


def make_bc(folder: Path | None = None, **changed: Any) -> BC:
    given = {"batch_size": 8, "policy_kwargs": POLICY, "checkpoint_folder": folder, "checkpoint_every": 2, **SMALL}
    return BC("MlpPolicy", None, draw(rows=41), **{**given, **changed})


@pytest.mark.parametrize(("accumulation", "sizes"), [(1, [8, 8, 8, 8, 9]), (2, [8, 8, 8, 8, 9]), (5, [8, 8, 8, 8, 9])])
def test_bc_never_trains_batch_norm_on_one_transition(accumulation: int, sizes: list[int]) -> None:
    agent = make_bc(gradient_accumulation=accumulation)
    Normed.seen.clear()
    agent.learn(total_epochs=1)
    assert Normed.seen == sizes
    assert agent.num_timesteps == agent.batches_per_epoch == -(-5 // accumulation)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_bc_resumes_with_the_same_division(accumulation: int, tmp_path: Path) -> None:
    whole = make_bc(gradient_accumulation=accumulation).learn(total_epochs=3)
    broken = make_bc(tmp_path, gradient_accumulation=accumulation)
    assert_raises(KilledError, None, broken.learn, total_epochs=3, callback=KillAt(7))
    custom = {"features_extractor_class": Normed}
    resumed = BC.resume(tmp_path, None, draw(rows=41), custom_objects=custom, device="cpu").learn(total_epochs=3)
    assert same_parameters(whole, resumed)


def test_every_trainer_with_batch_norm_survives_one_sample_left_over() -> None:
    X, y = np.random.default_rng(0).normal(size=(33, 4)).astype(np.float32), np.arange(33) % 3
    given = {"max_epochs": 2, "batch_size": 8, **SMALL}
    assert Classifier(normed, **given).fit(X, y).n_iter_ == 2
    partly = np.where(np.arange(33) < 17, y, -1)
    SelfTraining(Classifier(normed, **given), criterion="k_best", k_best=8).fit(X, partly)  # 17, 25 and 33 labels
    frames = ObservationOnly.from_demonstrations(cartpole_v1()).sample_episodes(1, seed=0)
    rounds: dict[str, Any] = {"policy_kwargs": POLICY, "batch_size": len(frames) - 1, **SMALL}
    BCO("MlpPolicy", "CartPole-v1", frames, n_rounds=1, transitions_per_round=20, n_epochs=1, **rounds).learn()
    rounds |= {"batch_size": 8, "rollout_round_min_timesteps": 33, "bc_train_n_epochs": 1}
    DAgger("MlpPolicy", IdentityEnv(4), int, **rounds).learn(33)
    generator = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    discriminator = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    GANTrainer(generator, discriminator, torch.randn(33, 2), latent_size=3, batch_size=8, **SMALL).train(9)


def test_minibatches_of_one_sample_are_refused_where_batch_norm_cannot_train_on_them() -> None:
    X, y = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32), np.arange(6) % 3
    reason = "one sample of 6, which BatchNorm can't train on"
    assert_raises(ValueError, reason, Classifier(normed, batch_size=1, **SMALL).fit, X, y)
    assert_raises(ValueError, "one sample of 1,", Classifier(normed, **SMALL).fit, X[:1], y[:1], classes=[0, 1])
    assert_raises(ValueError, "one transition of 41, which", make_bc(batch_size=1).learn, total_epochs=1)
    generator = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    discriminator = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    for networks in ((generator, nn.Linear(2, 1)), (nn.Linear(3, 2), discriminator)):
        trainer = GANTrainer(*networks, torch.randn(9, 2), latent_size=3, batch_size=1, **SMALL)
        assert_raises(ValueError, "one sample, which BatchNorm", trainer.train, 1)


def test_batch_norm_over_images_trains_on_one_image() -> None:
    images = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    for size in (1, 2, 4):
        given = {"max_epochs": 2, "batch_size": size, **SMALL}
        fitted = Classifier(network, **given).fit(images, [0, 1, 0, 1, 0])
        assert int(fitted.module_[1].num_batches_tracked) == 2 * {1: 5, 2: 2, 4: 1}[size]  # type: ignore[index]
    space = spaces.Box(0, 255, (3, 36, 36), dtype=np.uint8)
    policy = {"features_extractor_class": NormedCNN, "net_arch": []}
    space.seed(0)
    for rows in (1, 5):
        given = {"observation_space": space, "action_space": spaces.Discrete(2), "episode_ends": [rows]}
        demonstrations = Demonstrations.from_arrays(samples(space, rows), np.zeros(rows, dtype=np.int64), **given)
        agent = BC("CnnPolicy", None, demonstrations, batch_size=1, policy_kwargs=policy, **SMALL)
        assert agent.learn(total_epochs=1).num_timesteps == rows


# ---- forward passes of evaluations
class Wide(nn.Module):
    """Allocates 1 MiB a sample, and notes how many it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.most = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.most = max(self.most, 0 if self.training else len(inputs))
        wide = inputs.repeat(1, 2**16)
        out: Tensor = self.linear(wide.view(len(inputs), -1, 4).amax(1))
        return out


class WideExtractor(FlattenExtractor):
    """The same as a policy's features."""

    most = 0

    def forward(self, observations: Tensor) -> Tensor:
        if not self.training:
            WideExtractor.most = max(WideExtractor.most, len(observations))
        features: Tensor = super().forward(observations)
        return features.repeat(1, 2**16).view(len(features), -1, features.shape[1]).amax(1)


@pytest.mark.parametrize(("batch_size", "most"), [(2, 8), (12, 12)])
def test_evaluations_send_no_more_samples_than_fit(batch_size: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as allocate 8 MiB, or as a minibatch of training has."""
    monkeypatch.setattr(run, "MEASURED_BYTES", 8 * 2**20)
    X, y = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32), np.arange(40) % 3
    given = {"max_epochs": 1, "batch_size": batch_size, **SMALL}
    fitted = Classifier(Wide(), **given).fit(X, y, validation=(X, y))
    module: Any = fitted.module_
    assert 1 < module.most <= most
    assert fitted.predict(X).shape == (40,)
    assert 1 < module.most <= most
    student = SelfTraining(Classifier(Wide(), **given), max_iter=1).fit(X, np.where(np.arange(40) < 6, y, -1))
    module = student.classifier_.module_
    assert 1 < module.most <= most
    WideExtractor.most = 0
    policy = {"features_extractor_class": WideExtractor, "net_arch": []}
    demonstrations = dataclasses.replace(draw(rows=40), episode_ends=np.arange(1, 41))
    agent = BC("MlpPolicy", None, demonstrations, validation_fraction=0.5, policy_kwargs=policy, **given_bc(batch_size))
    agent.learn(total_epochs=1)
    assert 1 < WideExtractor.most <= most


def given_bc(batch_size: int) -> dict[str, Any]:
    return {"batch_size": batch_size, "early_stopping_patience": 3, **SMALL}


def test_small_networks_are_evaluated_in_one_pass() -> None:
    network = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    assert samples_at_once(lambda: network(torch.zeros(1, 4)), 1, 4096) == 4096


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,))])
def test_inverse_dynamics_labels_in_passes_that_fit(space: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    seen, after = rng.normal(size=(2, 30, 3)).astype(np.float32)
    model = InverseDynamics(spaces.Box(-9.0, 9.0, (3,)), space, batch_size=4, seed=0, device="cpu")
    model.is_fitted = True
    whole = model.predict(seen, after)
    monkeypatch.setattr(run, "MEASURED_BYTES", 1)
    sizes: list[int] = []
    model.bc.policy.action_net.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    np.testing.assert_allclose(model.predict(seen, after), whole, rtol=1e-5, atol=1e-6)
    assert max(sizes) <= 4
