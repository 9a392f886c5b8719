"""The GAN trainer: against a plain loop of torch's, seeds, schedules, averages, and what stops it."""

from __future__ import annotations

import copy
import math
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional as F

from rlsmooth.training import GANTrainer, TrainingDivergedError, generator_loss, isolated_rng, set_rng_state

DATA = torch.randn(40, 2, generator=torch.Generator().manual_seed(5)) + 1


def generator() -> nn.Module:
    # A bias before batch normalisation has a gradient of 0 but for rounding, which Adam would make as large as any.
    return nn.Sequential(nn.Linear(3, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def discriminator() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))


def make(**arguments: Any) -> GANTrainer:
    chosen: dict[str, Any] = {"latent_size": 3, "batch_size": 8, "learning_rate": 0.01, "seed": 0, "device": "cpu"}
    data = arguments.pop("data", DATA)
    return GANTrainer(generator, discriminator, data, **{**chosen, **arguments})


def parameters(trainer: GANTrainer) -> list[Tensor]:
    modules = [trainer.generator, trainer.discriminator, *([] if trainer.average is None else [trainer.average])]
    return [tensor for module in modules for tensor in module.state_dict().values()]


def same(one: GANTrainer, two: GANTrainer) -> bool:
    return all(torch.equal(a, b) for a, b in zip(parameters(one), parameters(two), strict=True))


# ---- what is computed


def test_the_generators_losses_are_torchs() -> None:
    logits = torch.randn(7, 1)
    zeros, ones = torch.zeros_like(logits), torch.ones_like(logits)
    torch.testing.assert_close(generator_loss(logits), F.binary_cross_entropy_with_logits(logits, ones))
    torch.testing.assert_close(generator_loss(logits, "saturating"), -F.binary_cross_entropy_with_logits(logits, zeros))
    with pytest.raises(ValueError, match="kind='wasserstein'"):
        generator_loss(logits, "wasserstein")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["non_saturating", "saturating"])
def test_training_is_a_plain_loop_in_torch(kind: Any) -> None:
    trainer = make(generator_loss=kind, real_target=0.9, discriminator_updates=2, max_grad_norm=0.5)
    makes, tells = copy.deepcopy(trainer.generator), copy.deepcopy(trainer.discriminator)
    make_optimizer = torch.optim.Adam(makes.parameters(), lr=0.01, betas=(0.5, 0.999))
    tell_optimizer = torch.optim.Adam(tells.parameters(), lr=0.01, betas=(0.5, 0.999))
    assert trainer.data is not None
    with isolated_rng():
        set_rng_state(trainer._rng)
        for step in range(4):
            for update in range(2):
                real = DATA[trainer.data.places(2 * step + update)]
                fake = makes(torch.randn(8, 3)).detach()
                real_logits, fake_logits = tells(real), tells(fake)
                loss = F.binary_cross_entropy_with_logits(real_logits, torch.full((8, 1), 0.9))
                loss = (loss + F.binary_cross_entropy_with_logits(fake_logits, torch.zeros(8, 1))) / 2
                tell_optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(tells.parameters(), 0.5)
                tell_optimizer.step()
            logits = tells(makes(torch.randn(8, 3)))
            wanted = torch.full((8, 1), float(kind == "non_saturating"))
            loss = F.binary_cross_entropy_with_logits(logits, wanted) * (1 if kind == "non_saturating" else -1)
            make_optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(makes.parameters(), 0.5)
            make_optimizer.step()
    trainer.train(4)
    for module, expected in ((trainer.generator, makes), (trainer.discriminator, tells)):
        for name, tensor in module.state_dict().items():
            torch.testing.assert_close(tensor, expected.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_the_average_follows_its_formula() -> None:
    trainer = make(ema_decay=0.3)
    assert trainer.average is not None
    expected = [parameter.detach().clone() for parameter in trainer.generator.parameters()]

    def follow(trainer: GANTrainer) -> None:
        decay = min(0.3, (1 + trainer.step) / (10 + trainer.step))
        for kept, now in zip(expected, trainer.generator.parameters(), strict=True):
            kept.copy_(decay * kept + (1 - decay) * now.detach())

    trainer.train(5, callback=follow)
    for kept, parameter in zip(expected, trainer.average.parameters(), strict=True):
        torch.testing.assert_close(parameter, kept)
    assert torch.equal(trainer.average[1].running_mean, trainer.generator[1].running_mean)  # type: ignore[index]
    assert not torch.equal(trainer.sample(4, seed=1), trainer.sample(4, seed=1, use_average=False))


class Shift(nn.Module):
    """A Gaussian of the data's width, somewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1))

    def forward(self, noise: Tensor) -> Tensor:
        return 0.5 * noise + self.place


def test_it_learns_where_the_data_are() -> None:
    data = 0.5 * torch.randn(2_000, 1) + 2.0
    trainer = GANTrainer(
        Shift,
        lambda: nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1)),
        data,
        latent_size=1,
        real_target=0.9,
        learning_rate="lin_0.03",
        ema_decay=0.95,
        seed=0,
    ).train(300)
    assert trainer.sample(2_000, seed=0).mean().item() == pytest.approx(2.0, abs=0.15)
    assert trainer.history["probability_real"][-1] == pytest.approx(0.45, abs=0.05)  # two alike sides: half the target


# ---- seeds, data, schedules


def test_a_seed_repeats_a_run_and_leaves_other_generators_alone() -> None:
    first = make(ema_decay=0.9)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index, union-attr]  # noqa: NPY002
    first.train(7)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # type: ignore[index, union-attr]  # noqa: NPY002
    assert random.getstate() == states[2]
    torch.rand(3)
    second = make(ema_decay=0.9).train(7, log_every=2)  # looking more often changes nothing
    assert same(first, second)
    assert not same(first, make(ema_decay=0.9, seed=1).train(7))


def test_each_epoch_of_a_tensor_has_every_row_at_most_once_in_a_new_order() -> None:
    trainer = make(batch_size=12)
    assert trainer.data is not None
    epochs = [torch.cat([trainer.data.places(3 * epoch + batch) for batch in range(3)]) for epoch in range(2)]
    for rows in epochs:
        assert len(set(rows.tolist())) == 36
    assert epochs[0].tolist() != epochs[1].tolist()
    few = make(data=DATA[:5])
    assert few.data is not None
    assert few.data.batch(3).shape == (5, 2)
    few.train(2)


def test_drawn_data_are_seeded_too() -> None:
    def draw(count: int) -> Tensor:
        return torch.from_numpy(np.random.normal(size=(count, 2)).astype(np.float32)) + torch.rand(count, 2)  # noqa: NPY002

    assert same(make(data=draw).train(3), make(data=draw).train(3))


def test_the_real_target_and_the_learning_rate_follow_their_schedules() -> None:
    trainer = make(real_target="lin_0.8", learning_rate="lin_0.02", discriminator_learning_rate=0.004)
    trainer.train(4, log_every=1)
    assert trainer.history["real_target"] == pytest.approx([0.8, 0.85, 0.9, 0.95])
    assert trainer.history["learning_rate"] == pytest.approx([0.02, 0.015, 0.01, 0.005])
    assert trainer.discriminator_optimizer.param_groups[0]["lr"] == 0.004
    told = make(real_target=lambda progress: 1 - 0.2 * progress).train(4, log_every=1)
    assert told.history["real_target"] == pytest.approx([0.8, 0.85, 0.9, 0.95])
    with pytest.raises(ValueError, match=r"real_target=0 at progress 0\.5 must be above fake_target=0"):
        make(real_target=lambda progress: 0.9 if progress > 0.6 else 0.0).train(4)


def test_a_second_call_trains_on() -> None:
    trainer = make().train(3).train(2)
    assert trainer.step == 5
    assert trainer.history["step"] == [3.0, 5.0]
    assert same(trainer, make(learning_rate=0.01).train(5))  # constant rates: the same as one call


def test_a_callback_can_end_the_run() -> None:
    assert make().train(50, callback=lambda trainer: trainer.step < 4).step == 4


def test_other_shapes_of_noise_rows_and_logits() -> None:
    images = torch.rand(20, 1, 4, 4)
    trainer = GANTrainer(
        nn.ConvTranspose2d(5, 1, 4),
        nn.Conv2d(1, 1, 3),  # a logit for each patch
        images,
        latent_size=(5, 1, 1),
        seed=0,
        device="cpu",
    ).train(2)
    assert trainer.sample(3).shape == (3, 1, 4, 4)
    assert trainer.sample(0).shape == (0, 1, 4, 4)


# ---- what is logged


def test_history_holds_the_means_since_the_last_line() -> None:
    every, seldom = make(real_target=0.9).train(6, log_every=1), make(real_target=0.9).train(6, log_every=3)
    assert seldom.history["step"] == [3.0, 6.0]
    for name in ("discriminator_loss", "generator_loss", "accuracy", "entropy", "probability_real"):
        means = [np.mean(every.history[name][:3]), np.mean(every.history[name][3:])]
        assert seldom.history[name] == pytest.approx(means, rel=1e-5), name
    for name in ("probability_real_max", "generator_gradient_norm"):
        assert seldom.history[name] == every.history[name][2::3], name
    assert all(map(math.isfinite, every.history["generator_gradient_norm"]))


def test_log_lines_and_evaluations_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[int, set[str]]] = []
    trainer = make(evaluate=lambda rows: {"mean": rows.mean()}, evaluate_every=2, evaluation_samples=6, verbose=1)
    trainer.train(3, log_every=2, on_log=lambda step, values: told.append((step, set(values))))
    assert [step for step, _ in told] == [2, 2, 3, 3]
    assert told[1][1] == {"eval/mean"}
    assert {"gan/discriminator_loss", "gan/steps_per_second"} <= told[0][1]
    assert trainer.evaluations["step"] == [2.0, 3.0]
    assert trainer.evaluations["mean"][-1] == pytest.approx(trainer.sample(6, seed=0).mean().item())
    assert "step 2: discriminator_loss" in capsys.readouterr().out


@pytest.mark.parametrize("shape", [(2,), (1, 4, 4), (3,)], ids=["points", "images", "others"])
def test_tensorboard(shape: tuple[int, ...], tmp_path: Path) -> None:
    data, size = torch.rand(30, *shape), math.prod(shape)
    GANTrainer(
        nn.Sequential(nn.Linear(2, size), nn.Unflatten(1, shape)),
        nn.Sequential(nn.Flatten(), nn.Linear(size, 1)),
        data,
        latent_size=2,
        evaluate=lambda rows: {"mean": rows.mean()},
        evaluate_every=2,
        evaluation_samples=20,
        tensorboard_log=tmp_path,
        seed=0,
    ).train(4, log_every=2)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = events.Tags()
    wanted = ("discriminator_loss", "generator_loss", "probability_real", "probability_fake", "accuracy_fake")
    assert {*(f"gan/{name}" for name in wanted), "eval/mean"} <= set(tags["scalars"])
    assert {"gan/logits_real", "gan/logits_fake"} <= set(tags["histograms"])
    assert [event.step for event in events.Scalars("gan/generator_loss")] == [2, 4]
    assert "eval/samples" in tags["histograms" if shape == (3,) else "images"]


def test_a_progress_bar_counts_the_steps(capsys: pytest.CaptureFixture[str]) -> None:
    make().train(3, progress_bar=True)
    assert "3/3" in capsys.readouterr().err


# ---- what stops it


def test_divergence_names_the_step_and_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    trainer = make(learning_rate=lambda progress: 1e-3 if progress > 0.5 else math.inf, checkpoint_folder=tmp_path)
    with pytest.raises(TrainingDivergedError, match=r"stopped at step [67]: .*the GAN diverged.*last good") as found:
        trainer.train(12)
    assert len(found.value.rows) == 8
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_0.zip"]


def test_rows_that_were_spoilt_after_they_were_checked_are_named() -> None:
    trainer = make()
    assert trainer.data is not None
    assert trainer.data.tensor is not None
    trainer.data.tensor = trainer.data.tensor.clone()
    trainer.data.tensor[int(trainer.data.places(2)[1])] = torch.nan
    with pytest.raises(TrainingDivergedError, match=r"Samples \d+ of the data hold NaN") as found:
        trainer.train(5)
    assert found.value.step == 3
    assert found.value.rows.tolist() == [int(trainer.data.places(2)[1])]
    drawn = make(data=lambda count: torch.full((count, 2), torch.nan))
    with pytest.raises(TrainingDivergedError, match="stopped at step 1: the loss is nan"):
        drawn.train(2)


def test_smoothed_fakes_warn_at_the_callers_line() -> None:
    with pytest.warns(UserWarning, match="fake_target=0.1 smooths the fakes too") as found:
        GANTrainer(generator, discriminator, DATA, latent_size=3, real_target=0.9, fake_target=0.1)
    assert found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(real_target="lin_0.7")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"latent_size": 4}, ValueError, r"can't be run on latent_size=\(4,\)"),
        ({"latent_size": 0}, ValueError, "latent_size=0"),
        ({"data": DATA[:, :1]}, ValueError, r"generator gives samples \(2,\) .* data has samples \(1,\)"),
        ({"data": DATA.double()}, ValueError, "float64"),
        ({"data": DATA.long()}, TypeError, "floating-point"),
        ({"data": DATA[:0]}, ValueError, "no samples"),
        ({"data": DATA.numpy()}, TypeError, "must be a tensor or a function"),
        ({"data": torch.full((3, 2), torch.inf)}, ValueError, "NaN or infinity"),
        ({"generator_loss": "wasserstein"}, ValueError, "generator_loss='wasserstein'"),
        ({"real_target": "0.9"}, ValueError, "is no schedule"),
        ({"real_target": "lin_1.5"}, ValueError, r"real_target=1\.5 must be a finite number in \[0, 1\]"),
        ({"real_target": 0.0}, ValueError, "must be above"),
        ({"ema_decay": 1.0}, ValueError, r"ema_decay=1\.0"),
        ({"max_grad_norm": 0.0}, ValueError, r"max_grad_norm=0\.0"),
        ({"betas": (0.5, 1.0)}, ValueError, r"betas\[1\]"),
        ({"learning_rate": "cosine"}, ValueError, "learning_rate='cosine'"),
        ({"discriminator_updates": 0}, ValueError, "discriminator_updates=0"),
        ({"batch_size": 2.5}, TypeError, "batch_size"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(**arguments)


def test_wrong_networks_are_named() -> None:
    with pytest.raises(TypeError, match=r"discriminator must be a torch\.nn\.Module"):
        GANTrainer(generator, lambda: 3, DATA, latent_size=3)  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match="generator has no parameter to train"):
        GANTrainer(nn.Identity(), discriminator, DATA, latent_size=2)
    with pytest.raises(ValueError, match="discriminator gives"):
        GANTrainer(generator, nn.Sequential(nn.Linear(2, 1), nn.Flatten(0), nn.Linear(2, 3)), DATA, latent_size=3)
    with pytest.raises(ValueError, match="data is None"):
        make(data=None).train(1)
    with pytest.raises(ValueError, match="total_steps=0"):
        make().train(0)
