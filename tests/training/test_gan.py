"""The GAN trainer: against a plain loop of torch's, its files and checkpoints, and the ready cases."""

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
from scipy.stats import entropy as scipy_entropy
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torch.nn import functional as F

from rlsmooth.data import GaussianMixture, grid_of_gaussians, ring_of_gaussians
from rlsmooth.training import (
    GANTrainer,
    SafeFileError,
    TrainingDivergedError,
    checkpoint_steps,
    gan_case,
    generator_loss,
    image_discriminator,
    image_generator,
    isolated_rng,
    mode_coverage,
    set_rng_state,
)
from rlsmooth.training.gan_cases import digit_measures, image_grid
from support import KilledError, assert_raises, read_events

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
    assert_raises(ValueError, "kind='wasserstein'", generator_loss, logits, "wasserstein")


@pytest.mark.parametrize("kind", ["non_saturating", "saturating"])
def test_training_is_a_plain_loop_in_torch(kind: Any) -> None:
    trainer = make(generator_loss=kind, real_target=0.9, discriminator_updates=2, max_grad_norm=0.5)
    makes, tells = copy.deepcopy(trainer.generator), copy.deepcopy(trainer.discriminator)
    make_optimizer = torch.optim.Adam(makes.parameters(), lr=0.01, betas=(0.5, 0.999))
    tell_optimizer = torch.optim.Adam(tells.parameters(), lr=0.01, betas=(0.5, 0.999))
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


def test_the_average_normalises_by_its_own_statistics() -> None:
    """Samples of the average are about those that the statistics of its own minibatches would give."""

    def deep() -> nn.Module:
        first = nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU()
        return nn.Sequential(*first, nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))

    data = torch.randn(500, 2, generator=torch.Generator().manual_seed(5)) / 2 + torch.tensor([1.0, -2.0])
    given = {"latent_size": 8, "batch_size": 32, "learning_rate": 3e-3, "ema_decay": 0.99, "seed": 0, "device": "cpu"}
    errors = {"average": [], "raw statistics": []}
    for seed in range(2):
        trainer = GANTrainer(deep, discriminator, data, **{**given, "seed": seed}).train(300)
        average: Any = trainer.average
        noise = torch.randn(4000, 8, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            own = copy.deepcopy(average).train()(noise)  # by the statistics of these very samples
            mixed = copy.deepcopy(average)
            mixed.load_state_dict(average.state_dict() | dict(trainer.generator.named_buffers()))
            for name, module in (("average", average), ("raw statistics", mixed)):
                errors[name].append(float((module(noise).mean(0) - own.mean(0)).norm()))
    assert np.mean(errors["average"]) < 0.05 < np.mean(errors["raw statistics"])


def test_a_network_in_float64_is_trained_in_float64() -> None:
    """Data that float32 can't tell apart reach the discriminator as they are."""
    data = 1 + 1e-12 * torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    seen: list[Tensor] = []
    networks = generator().double(), discriminator().double()
    networks[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    trainer = GANTrainer(*networks, data, latent_size=3, batch_size=8, seed=0, device="cpu").train(2)
    assert any(torch.isin(inputs, data).all() for inputs in seen)
    assert trainer.sample(3, seed=0).dtype == torch.float64


def test_the_average_follows_its_formula() -> None:
    trainer = make(ema_decay=0.3)
    expected = [tensor.detach().double() for tensor in trainer.generator.state_dict().values()]

    def follow(trainer: GANTrainer) -> None:
        decay = min(0.3, (1 + trainer.step) / (10 + trainer.step))
        for place, now in enumerate(trainer.generator.state_dict().values()):
            expected[place] = decay * expected[place] + (1 - decay) * now.detach().double()
            if not now.is_floating_point():  # how many minibatches were normalised
                expected[place] = now.double()

    trainer.train(5, callback=follow)
    for kept, tensor in zip(expected, trainer.average.state_dict().values(), strict=True):
        torch.testing.assert_close(tensor.double(), kept, rtol=1e-6, atol=1e-7)
    assert not torch.equal(trainer.average[1].running_mean, trainer.generator[1].running_mean)  # type: ignore[index]
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
    judge = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    given: dict[str, Any] = {"real_target": 0.9, "learning_rate": "lin_0.03", "ema_decay": 0.95, "seed": 0}
    trainer = GANTrainer(Shift, judge, data, latent_size=1, **given).train(300)
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
    epochs = [torch.cat([trainer.data.places(3 * epoch + batch) for batch in range(3)]) for epoch in range(2)]
    for rows in epochs:
        assert len(set(rows.tolist())) == 36
    assert epochs[0].tolist() != epochs[1].tolist()
    few = make(data=DATA[:5])
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
    patches = nn.Conv2d(1, 1, 3)  # a logit for each
    given: dict[str, Any] = {"latent_size": (5, 1, 1), "seed": 0, "device": "cpu"}
    trainer = GANTrainer(nn.ConvTranspose2d(5, 1, 4), patches, torch.rand(20, 1, 4, 4), **given).train(2)
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
    longer, cut = make(real_target=0.9).train(7, log_every=1), make(real_target=0.9).train(7, log_every=3)
    assert cut.history["step"] == [3.0, 6.0, 7.0]
    for name in ("generator_loss", "discriminator_loss"):  # the last line is about three steps too
        assert cut.history[name][-1] == pytest.approx(np.mean(longer.history[name][4:]), rel=1e-5)


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
    makes = nn.Sequential(nn.Linear(2, size), nn.Unflatten(1, shape))
    tells = nn.Sequential(nn.Flatten(), nn.Linear(size, 1))
    given: dict[str, Any] = {"evaluate": lambda rows: {"mean": rows.mean()}, "evaluate_every": 2}
    given |= {"evaluation_samples": 20, "tensorboard_log": tmp_path, "seed": 0}
    GANTrainer(makes, tells, data, latent_size=2, **given).train(4, log_every=2)
    events = read_events(tmp_path)
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
    trainer = make(learning_rate=lambda progress: 1e-3 if progress > 0.5 else 1e38, checkpoint_folder=tmp_path)
    with pytest.raises(TrainingDivergedError, match=r"stopped at step [67]: .*the GAN diverged.*last good") as found:
        trainer.train(12)
    assert len(found.value.rows) == 8
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_0.zip"]


def test_rows_that_were_spoilt_after_they_were_checked_are_named() -> None:
    trainer = make()
    trainer.data.tensor = trainer.data.tensor.clone()
    trainer.data.tensor[int(trainer.data.places(2)[1])] = torch.nan
    with pytest.raises(TrainingDivergedError, match=r"Samples \d+ of the data hold NaN") as found:
        trainer.train(5)
    assert found.value.step == 3
    assert found.value.rows.tolist() == [int(trainer.data.places(2)[1])]
    drawn = make(data=lambda count: torch.full((count, 2), torch.nan))
    assert_raises(TrainingDivergedError, "stopped at step 1: the loss is nan", drawn.train, 2)


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
    assert_raises(error, message, make, **arguments)


def test_wrong_networks_are_named() -> None:
    with pytest.raises(TypeError, match=r"discriminator must be a torch\.nn\.Module"):
        GANTrainer(generator, lambda: 3, DATA, latent_size=3)  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match="generator has no parameter to train"):
        GANTrainer(nn.Identity(), discriminator, DATA, latent_size=2)
    with pytest.raises(ValueError, match="discriminator gives"):
        GANTrainer(generator, nn.Sequential(nn.Linear(2, 1), nn.Flatten(0), nn.Linear(2, 3)), DATA, latent_size=3)
    assert_raises(ValueError, "data is None", make(data=None).train, 1)
    assert_raises(ValueError, "total_steps=0", make().train, 0)


# ---- its file, and checkpoints of runs that were killed
def normed_discriminator() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(0.2), nn.Dropout(0.2), nn.Linear(8, 1))


def make_normed(folder: Any = None, tensorboard_log: Any = None, **other: Any) -> GANTrainer:
    arguments = {"latent_size": 3, "batch_size": 8, "learning_rate": "lin_0.01", "real_target": "lin_0.8", "seed": 0}
    arguments |= {"discriminator_updates": 2, "ema_decay": 0.9, "evaluate": lambda rows: {"mean": rows.mean()}}
    arguments |= {"evaluate_every": 4, "evaluation_samples": 10, "checkpoint_every": 5, "device": "cpu", **other}
    folders = {"checkpoint_folder": folder, "tensorboard_log": tensorboard_log}
    return GANTrainer(generator, normed_discriminator, DATA, **folders, **arguments)


def break_at(step: int) -> Any:
    def callback(trainer: GANTrainer) -> None:
        if trainer.step == step:
            raise KilledError

    return callback


# ---- checkpoints
def test_a_run_that_was_broken_off_goes_on_to_the_same_parameters(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    assert_raises(KilledError, None, make_normed(folder).train, 17, log_every=3, callback=break_at(13))
    assert checkpoint_steps(folder) == [5, 10]
    resumed, whole = make_normed(folder).train(17, resume=True, log_every=3), make_normed().train(17, log_every=3)
    assert resumed.step == 17
    assert same(resumed, whole)
    assert resumed.history == whole.history  # also the line at 12, whose steps lie on both sides of the checkpoint
    assert resumed.evaluations == whole.evaluations
    over = make_normed(folder).train(17, resume=True, log_every=3)
    assert (over.history, over.evaluations) == (whole.history, whole.evaluations)
    assert same(resumed.train(3), whole.train(3))


def test_a_run_broken_off_before_its_first_update_begins_anew(tmp_path: Path) -> None:
    assert_raises(KilledError, None, make_normed(tmp_path).train, 6, callback=break_at(1))
    assert checkpoint_steps(tmp_path) == [0]
    assert same(make_normed(tmp_path).train(6, resume=True), make_normed().train(6))


def test_what_does_not_fit_the_checkpoint_is_named(tmp_path: Path) -> None:
    assert_raises(KilledError, None, make_normed(tmp_path).train, 9, callback=break_at(7))
    with pytest.raises(ValueError, match=r"real_target='lin_0\.7' was 'lin_0\.8'"):
        make_normed(tmp_path, real_target="lin_0.7").train(9, resume=True)
    assert_raises(ValueError, "needs the run's checkpoint_folder", make_normed().train, 9, resume=True)


def test_tensorboard_has_each_step_once_after_a_resumption(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        make_normed(tmp_path / "kept", tmp_path / "events").train(9, callback=break_at(8), log_every=1)
    make_normed(tmp_path / "kept", tmp_path / "events").train(9, resume=True, log_every=1)
    events = read_events(tmp_path / "events")
    assert [event.step for event in events.Scalars("gan/generator_loss")] == list(range(1, 10))


# ---- the trainer's own file
def test_a_loaded_trainer_samples_and_trains_on(tmp_path: Path) -> None:
    trainer = make_normed(learning_rate=0.01, real_target=0.9).train(6)
    path = trainer.save(tmp_path / "gan")
    assert path == tmp_path / "gan.zip"
    loaded = GANTrainer.load(path, generator, normed_discriminator, device="cpu")
    assert torch.equal(loaded.sample(5, seed=3), trainer.sample(5, seed=3))
    assert loaded.history == trainer.history
    assert (loaded.step, loaded.batch_size, loaded.real_target, loaded.betas) == (6, 8, 0.9, (0.5, 0.999))
    assert_raises(ValueError, "data is None", loaded.train, 1)
    assert trainer.data.tensor is not None
    again = GANTrainer.load(path, generator, normed_discriminator, trainer.data.tensor, device="cpu").train(4)
    assert again.step == 10
    first, now = trainer.generator.state_dict(), again.generator.state_dict()
    assert not torch.equal(first["0.weight"], now["0.weight"])


def test_functions_have_to_be_given_again(tmp_path: Path) -> None:
    trainer = make_normed(real_target=lambda progress: 0.9)
    path = trainer.save(tmp_path / "gan.zip")
    data = torch.rand(20, 2)
    with pytest.raises(ValueError, match="real_target was a callable"):
        GANTrainer.load(path, generator, normed_discriminator, data).train(1)
    given = {"real_target": lambda progress: 0.8}
    loaded = GANTrainer.load(path, generator, normed_discriminator, data, custom_objects=given).train(1)
    assert loaded.history["real_target"] == [0.8]


def test_what_does_not_fit_the_file_is_named(tmp_path: Path) -> None:
    path = make_normed().save(tmp_path / "gan.zip")
    with pytest.raises(ValueError, match="discriminator does not fit the file"):
        GANTrainer.load(path, generator, nn.Linear(2, 1))
    path.write_bytes(path.read_bytes()[:-40])
    assert_raises(SafeFileError, None, GANTrainer.load, path, generator, normed_discriminator)
    with pytest.raises(SafeFileError, match="does not exist"):
        GANTrainer.load(tmp_path / "none.zip", generator, normed_discriminator)


# ---- densities
@pytest.mark.parametrize(
    ("mixture", "deviation"), [(ring_of_gaussians(), 0.01), (grid_of_gaussians(), 0.05)], ids=["ring", "grid"]
)
def test_points_are_spread_evenly_around_all_modes(mixture: GaussianMixture, deviation: float) -> None:
    points = mixture.sample(20_000, seed=1)
    assert points.dtype == np.float32
    nearest = np.linalg.norm(points[:, None] - mixture.centres, axis=-1).argmin(1)
    counts = np.bincount(nearest, minlength=len(mixture.centres))
    expected = 20_000 / len(mixture.centres)
    assert np.all(np.abs(counts - expected) < 5 * math.sqrt(expected))
    residues = points - mixture.centres[nearest]
    assert residues.std(0) == pytest.approx([deviation, deviation], rel=0.03)
    np.testing.assert_array_equal(points, mixture.sample(20_000, seed=1))


def test_the_centres_are_pacgans() -> None:
    ring = [(math.cos(2 * math.pi * k / 8), math.sin(2 * math.pi * k / 8)) for k in range(8)]
    np.testing.assert_allclose(ring_of_gaussians().centres, ring, atol=1e-12)
    grid = [(x, y) for x in range(-4, 5, 2) for y in range(-4, 5, 2)]
    np.testing.assert_array_equal(grid_of_gaussians().centres, grid)


def test_wrong_densities_are_refused() -> None:
    assert_raises(ValueError, "centres must be finite and of shape", GaussianMixture, np.zeros(3), 0.1)
    assert_raises(ValueError, "deviation=0", ring_of_gaussians, deviation=0)
    assert_raises(ValueError, "num_modes=0", ring_of_gaussians, 0)


# ---- measures
@pytest.mark.parametrize("spread", [0.5, 1.0, 3.0])
def test_coverage_is_a_count(spread: float, device: torch.device) -> None:
    mixture = grid_of_gaussians()
    rng = np.random.default_rng(2)
    some = GaussianMixture(mixture.centres[rng.permutation(25)[:9]], spread * mixture.deviation)
    samples = some.sample(500, seed=3)
    distances = np.linalg.norm(samples[:, None].astype(np.float64) - mixture.centres, axis=-1)
    is_good = distances.min(1) < 3 * mixture.deviation
    counts = np.bincount(distances.argmin(1)[is_good], minlength=25)
    found = mode_coverage(torch.from_numpy(samples).to(device), mixture)
    assert found.counts.tolist() == counts.tolist()
    assert int(found.modes) == (counts > 0).sum()
    assert float(found.high_quality) == pytest.approx(is_good.mean())
    assert float(found.reverse_kl) == pytest.approx(scipy_entropy(counts / counts.sum(), np.full(25, 1 / 25)), abs=1e-5)


def test_the_data_themselves_recover_everything() -> None:
    ring = ring_of_gaussians()
    found = mode_coverage(torch.from_numpy(ring.sample(2_500, seed=0)), ring)
    assert int(found.modes) == 8
    assert float(found.high_quality) == pytest.approx(1 - math.exp(-4.5), abs=0.005)  # a Rayleigh's share within 3
    assert float(found.reverse_kl) < 0.01


def test_coverage_at_its_ends() -> None:
    ring = ring_of_gaussians()
    one = mode_coverage(torch.tensor([[1.0, 0.0]] * 4), ring)
    assert (int(one.modes), float(one.high_quality), float(one.reverse_kl)) == (1, 1.0, pytest.approx(math.log(8)))
    none = mode_coverage(torch.tensor([[0.0, 0.0], [math.nan, 1.0], [math.inf, 0.0]]), ring)
    assert (int(none.modes), float(none.high_quality)) == (0, 0.0)
    assert math.isnan(float(none.reverse_kl))
    assert_raises(ValueError, r"samples \(2, 3\) must be of shape \[N, 2\]", mode_coverage, torch.zeros(2, 3), ring)


# ---- networks and cases
@pytest.mark.parametrize("image_size", [4, 8, 64])
def test_the_image_networks_fit_each_other(image_size: int) -> None:
    images = image_generator(5, image_size=image_size, channels=3, width=4)(torch.randn(2, 5))
    assert images.shape == (2, 3, image_size, image_size)
    assert float(images.detach().abs().max()) < 1
    assert image_discriminator(image_size=image_size, channels=3, width=4)(images).shape == (2, 1)


def test_only_sizes_that_halve_are_taken() -> None:
    for size in (2, 12):
        assert_raises(ValueError, rf"image_size={size} must be a power of 2", image_generator, 5, image_size=size)


@pytest.mark.parametrize(
    ("name", "sizes", "shape", "measures"),
    [
        ("ring", {"hidden": (8,)}, (100_000, 2), {"modes", "high_quality", "reverse_kl"}),
        ("grid", {"hidden": (8,)}, (100_000, 2), {"modes"}),
        ("digits", {"width": 4, "image_size": 16}, (1797, 1, 16, 16), {"distance"}),
    ],
)
def test_a_case_trains_and_is_measured(name: str, sizes: Any, shape: tuple[int, ...], measures: set[str]) -> None:
    case = gan_case(name, seed=0, **sizes)
    assert case.data.shape == shape
    given: dict[str, Any] = {"latent_size": case.latent_size, "evaluate": case.evaluate, "evaluation_samples": 50}
    trainer = GANTrainer(case.make_generator, case.make_discriminator, case.data, seed=0, **given).train(2)
    assert measures <= set(trainer.evaluations)
    if name == "digits":
        assert (float(case.data.min()), float(case.data.max())) == (-1.0, 1.0)
        assert trainer.evaluations["distance"][0] > 1


def test_digit_measures_are_those_of_scikit_learns_neighbours() -> None:
    case = gan_case("digits", seed=0)
    rng = torch.Generator().manual_seed(0)
    samples = case.data[::7] + 0.3 * torch.randn(case.data[::7].shape, generator=rng)
    from sklearn.datasets import load_digits

    labels = load_digits().target
    real = case.data.flatten(1).numpy().astype(np.float64)
    neighbours = NearestNeighbors().fit(real)
    distance, nearest = neighbours.kneighbors(samples.flatten(1).numpy().astype(np.float64), 1)
    among, _ = neighbours.kneighbors(real, 2)
    shares = np.bincount(labels[nearest[:, 0]], minlength=10) / len(samples)
    found = digit_measures(samples, case.data, torch.from_numpy(labels).long())
    assert int(found["digits"]) == (shares >= 0.01).sum()
    assert float(found["rarest_digit"]) == pytest.approx(shares.min(), abs=1e-6)
    assert float(found["distance"]) == pytest.approx(distance.mean() / among[:, 1].mean(), rel=1e-4)


def test_no_other_case() -> None:
    assert_raises(ValueError, "name='spiral'", gan_case, "spiral", seed=0)


def test_an_image_grid_has_each_image_at_its_place() -> None:
    images = torch.stack([torch.full((1, 2, 2), value) for value in (-1.0, 0.0, 1.0, 5.0, -9.0)])
    grid = image_grid(images)
    assert grid.shape == (1, 7, 10)
    assert [int(grid[0, 1, 1]), int(grid[0, 1, 4]), int(grid[0, 1, 7])] == [0, 128, 255]
    assert [int(grid[0, 4, 1]), int(grid[0, 4, 4]), int(grid[0, 4, 7])] == [255, 0, 0]
