"""GANs that are ready to train: a ring and a grid of Gaussians, and images of digits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rlsmooth.checks import check_choice
from rlsmooth.training.gan_modes import mode_coverage
from rlsmooth.training.gan_networks import image_discriminator, image_generator, mlp

if TYPE_CHECKING:
    from rlsmooth.data import GaussianMixture

__all__ = ["CASES", "GANCase", "gan_case"]

CASES = ("ring", "grid", "digits")
POINTS = 100_000  # as many as PacGAN has
HIDDEN = (128, 128)
DIGIT_LATENT_SIZE = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class GANCase:
    """What `GANTrainer` needs.

    Attributes:
        name: of the case.
        data: float32 `[N, ...]`.
        latent_size: of the noise.
        make_generator: builds one.
        make_discriminator: builds one.
        evaluate: numbers by name, of samples.
        mixture: the density, where it is known.

    Example:
        >>> from rlsmooth.training import GANTrainer
        >>> ring = gan_case("ring", seed=0)
        >>> trainer = GANTrainer(
        ...     ring.make_generator, ring.make_discriminator, ring.data, latent_size=ring.latent_size,
        ...     evaluate=ring.evaluate, real_target=0.9, seed=0,
        ... ).train(5)
        >>> sorted(trainer.evaluations)
        ['high_quality', 'modes', 'reverse_kl', 'step']
    """

    name: str
    data: Tensor
    latent_size: int
    make_generator: Callable[[], nn.Module]
    make_discriminator: Callable[[], nn.Module]
    evaluate: Callable[[Tensor], Mapping[str, Tensor]]
    mixture: GaussianMixture | None = None


def gan_case(
    name: str, *, seed: int, hidden: tuple[int, ...] = HIDDEN, image_size: int = 8, width: int = 32
) -> GANCase:
    """A ready case.

    - `"ring"`, `"grid"`: 100,000 points of 8 Gaussians on a circle, or 25 on a grid, as in PacGAN (Lin et al. 2018),
      with smaller networks than there; measured by `mode_coverage`.
    - `"digits"`: the 1,797 handwritten digits of scikit-learn (extra `datasets`), `[1, 8, 8]` in [-1, 1], with DCGAN's
      networks at that size; measured by `digit_measures`.

    Args:
        name: of the case.
        seed: of the points that are drawn.
        hidden: layers of both networks, of ring and grid.
        image_size: of digits, which are enlarged to it: 8 or a larger power of 2.
        width: of the image networks.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: no such case, or an argument out of range.
    """
    check_choice("name", name, CASES)
    if name == "digits":
        return _digits(image_size, width)
    from rlsmooth.data import grid_of_gaussians, ring_of_gaussians  # loads gymnasium, which training does without

    mixture = ring_of_gaussians() if name == "ring" else grid_of_gaussians()

    def evaluate(samples: Tensor) -> dict[str, Tensor]:
        found = mode_coverage(samples, mixture)
        return {"modes": found.modes, "high_quality": found.high_quality, "reverse_kl": found.reverse_kl}

    return GANCase(
        name=name,
        data=torch.from_numpy(mixture.sample(POINTS, seed)),
        latent_size=2,
        make_generator=lambda: mlp(2, 2, hidden),
        make_discriminator=lambda: mlp(2, 1, hidden),
        evaluate=evaluate,
        mixture=mixture,
    )


def _digits(image_size: int, width: int) -> GANCase:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the case 'digits' needs scikit-learn: pip install 'rlsmooth[datasets]'.") from error
    found = load_digits()
    images = torch.from_numpy(found.images).float().unsqueeze(1) / 8 - 1  # [N, 1, 8, 8] in [-1, 1]
    labels = torch.from_numpy(found.target).long()
    if image_size != images.shape[-1]:
        images = nn.functional.interpolate(images, size=(image_size, image_size), mode="bilinear", antialias=False)
    return GANCase(
        name="digits",
        data=images,
        latent_size=DIGIT_LATENT_SIZE,
        make_generator=lambda: image_generator(DIGIT_LATENT_SIZE, image_size=image_size, width=width),
        make_discriminator=lambda: image_discriminator(image_size=image_size, width=width),
        evaluate=lambda samples: digit_measures(samples, images, labels),
    )


@torch.no_grad()
def digit_measures(samples: Tensor, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """How near samples are to real images, and which digits they show: the label of the nearest one.

    Args:
        samples: `[N, 1, H, W]`.
        images: `[M, 1, H, W]`, real ones.
        labels: int64 `[M]`, 0 to 9.

    Returns:
        `digits`: of how many digits at least 1 % of the samples are; `rarest_digit`: the share of the rarest;
        `distance`: mean distance of a sample to the nearest real image, relative to that between a real image and the
        nearest other one, so that real images would score 1; copies of them would score 0.

    Example:
        >>> images = torch.linspace(-1, 1, 10).reshape(10, 1, 1, 1)
        >>> digit_measures(images, images, torch.arange(10))
        {'digits': tensor(10), 'rarest_digit': tensor(0.1000), 'distance': tensor(0.)}
    """
    real, made = images.to(samples.device).flatten(1), samples.flatten(1)
    among_real = torch.cdist(real, real).fill_diagonal_(torch.inf).min(1).values.mean()
    distance, nearest = torch.cdist(made, real, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    shares = torch.bincount(labels.to(samples.device)[nearest], minlength=10) / max(len(samples), 1)
    return {"digits": (shares >= 0.01).sum(), "rarest_digit": shares.min(), "distance": distance.mean() / among_real}
