"""Ready GANs: the densities, PacGAN's measures against a count in numpy, the image networks and the digits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipy_entropy
from sklearn.neighbors import NearestNeighbors

from rlsmooth.data import GaussianMixture, grid_of_gaussians, ring_of_gaussians
from rlsmooth.training import GANTrainer, gan_case, image_discriminator, image_generator, mode_coverage
from rlsmooth.training.gan_cases import digit_measures, image_grid

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
    with pytest.raises(ValueError, match="centres must be finite and of shape"):
        GaussianMixture(np.zeros(3), 0.1)
    with pytest.raises(ValueError, match="deviation=0"):
        ring_of_gaussians(deviation=0)
    with pytest.raises(ValueError, match="num_modes=0"):
        ring_of_gaussians(0)


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
    with pytest.raises(ValueError, match=r"samples \(2, 3\) must be of shape \[N, 2\]"):
        mode_coverage(torch.zeros(2, 3), ring)


# ---- networks and cases


@pytest.mark.parametrize("image_size", [4, 8, 64])
def test_the_image_networks_fit_each_other(image_size: int) -> None:
    images = image_generator(5, image_size=image_size, channels=3, width=4)(torch.randn(2, 5))
    assert images.shape == (2, 3, image_size, image_size)
    assert float(images.detach().abs().max()) < 1
    assert image_discriminator(image_size=image_size, channels=3, width=4)(images).shape == (2, 1)


def test_only_sizes_that_halve_are_taken() -> None:
    for size in (2, 12):
        with pytest.raises(ValueError, match=rf"image_size={size} must be a power of 2"):
            image_generator(5, image_size=size)


@pytest.mark.parametrize(("name", "measures"), [("ring", {"modes", "high_quality", "reverse_kl"}), ("grid", {"modes"})])
def test_a_case_of_points_trains(name: str, measures: set[str]) -> None:
    case = gan_case(name, seed=0, hidden=(8,))
    assert case.data.shape == (100_000, 2)
    trainer = GANTrainer(
        case.make_generator,
        case.make_discriminator,
        case.data,
        latent_size=case.latent_size,
        evaluate=case.evaluate,
        evaluation_samples=50,
        seed=0,
    ).train(2)
    assert measures <= set(trainer.evaluations)


def test_the_digits_train_and_are_measured() -> None:
    case = gan_case("digits", seed=0, width=4, image_size=16)
    assert case.data.shape == (1797, 1, 16, 16)
    assert (float(case.data.min()), float(case.data.max())) == (-1.0, 1.0)
    trainer = GANTrainer(
        case.make_generator,
        case.make_discriminator,
        case.data,
        latent_size=case.latent_size,
        evaluate=case.evaluate,
        evaluation_samples=20,
        seed=0,
    ).train(2)
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
    with pytest.raises(ValueError, match="name='spiral'"):
        gan_case("spiral", seed=0)


def test_an_image_grid_has_each_image_at_its_place() -> None:
    images = torch.stack([torch.full((1, 2, 2), value) for value in (-1.0, 0.0, 1.0, 5.0, -9.0)])
    grid = image_grid(images)
    assert grid.shape == (1, 7, 10)
    assert [int(grid[0, 1, 1]), int(grid[0, 1, 4]), int(grid[0, 1, 7])] == [0, 128, 255]
    assert [int(grid[0, 4, 1]), int(grid[0, 4, 4]), int(grid[0, 4, 7])] == [255, 0, 0]
