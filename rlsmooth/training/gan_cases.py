"""GANs that are ready to train (two mixtures of Gaussians, and digits): their data, networks, measures and figures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from rlsmooth.audits.figures import new_figure
from rlsmooth.checks import check_choice, check_positive_int
from rlsmooth.losses import kl_divergence

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rlsmooth.data import GaussianMixture


CASES = ("ring", "grid", "digits")
POINTS = 100_000  # as many as PacGAN has
HIDDEN = (128, 128)
DIGIT_LATENT_SIZE = 32
WEIGHT_DEVIATION = 0.02  # DCGAN's
HIGH_QUALITY = 3.0
REAL_COLOUR, FAKE_COLOUR = "#9a9a9a", "#D55E00"


# ---- cases


@dataclass(frozen=True, kw_only=True, eq=False)
class GANCase:
    """The data, networks and measures that `GANTrainer` needs.

    Attributes:
        name: of the case.
        data: float32 `[N, ...]`.
        latent_size: of the noise.
        make_generator: builds one.
        make_discriminator: builds one.
        evaluate: numbers by name, of samples.
        mixture: the density, where it is known.

    Examples:
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


# ---- networks


def mlp(num_inputs: int, num_outputs: int, hidden: tuple[int, ...] = (128, 128)) -> nn.Sequential:
    """Linear layers with ReLUs between them, torch's initial weights.

    Args:
        num_inputs: of the first layer.
        num_outputs: of the last; 1 for a discriminator.
        hidden: widths of the layers between.

    Examples:
        >>> mlp(2, 1, (8,))
        Sequential(
          (0): Linear(in_features=2, out_features=8, bias=True)
          (1): ReLU()
          (2): Linear(in_features=8, out_features=1, bias=True)
        )
    """
    sizes = [check_positive_int("size", size) for size in (num_inputs, *hidden, num_outputs)]
    layers: list[nn.Module] = []
    for number_in, number_out in itertools.pairwise(sizes):
        layers += [nn.Linear(number_in, number_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def image_generator(latent_size: int, *, image_size: int = 64, channels: int = 1, width: int = 64) -> nn.Sequential:
    """DCGAN's generator (Radford et al. 2016): transposed convolutions from 2 x 2, each of which doubles the size.

    `[B, latent_size]` to images `[B, channels, image_size, image_size]` in (-1, 1). Batch normalisation and ReLU after
    all but the last layer, tanh after that; weights start as N(0, 0.02²).

    Args:
        latent_size: numbers an image is made from.
        image_size: of a side, in pixels: 4 or another power of 2.
        channels: 1 for grey, 3 for colours.
        width: channels before the last layer; twice as many each layer before that.

    Raises:
        TypeError: an argument is no whole number.
        ValueError: `image_size` is no power of 2 from 4 on, another argument is under 1.

    Examples:
        >>> import torch
        >>> image_generator(16, image_size=8, width=4)(torch.zeros(2, 16)).shape
        torch.Size([2, 1, 8, 8])
    """
    depths = _depths(image_size, width)[::-1]
    first = check_positive_int("latent_size", latent_size)
    layers: list[nn.Module] = [
        nn.Linear(first, depths[0] * 4, bias=False),
        nn.Unflatten(1, (depths[0], 2, 2)),
        nn.BatchNorm2d(depths[0]),
        nn.ReLU(),
    ]
    for depth_in, depth_out in itertools.pairwise(depths):
        layers += [
            nn.ConvTranspose2d(depth_in, depth_out, 4, 2, 1, bias=False),
            nn.BatchNorm2d(depth_out),
            nn.ReLU(),
        ]
    layers += [nn.ConvTranspose2d(depths[-1], check_positive_int("channels", channels), 4, 2, 1), nn.Tanh()]
    return _initialised(nn.Sequential(*layers))


def image_discriminator(*, image_size: int = 64, channels: int = 1, width: int = 64) -> nn.Sequential:
    """DCGAN's discriminator: strided convolutions down to 2 x 2, each of which halves the size, then one logit.

    Images `[B, channels, image_size, image_size]` to logits `[B, 1]`, high = real. Leaky ReLUs of slope 0.2, batch
    normalisation after all but the first layer.

    Args:
        image_size: of a side, in pixels: 4 or another power of 2.
        channels: 1 for grey, 3 for colours.
        width: channels after the first layer; twice as many each layer after that.

    Raises:
        TypeError: an argument is no whole number.
        ValueError: a size that is no power of 2 or below 4, or a number below 1.

    Examples:
        >>> import torch
        >>> image_discriminator(image_size=8, width=4)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 1])
    """
    depths = _depths(image_size, width)
    layers: list[nn.Module] = [
        nn.Conv2d(check_positive_int("channels", channels), depths[0], 4, 2, 1),
        nn.LeakyReLU(0.2),
    ]
    for depth_in, depth_out in itertools.pairwise(depths):
        layers += [
            nn.Conv2d(depth_in, depth_out, 4, 2, 1, bias=False),
            nn.BatchNorm2d(depth_out),
            nn.LeakyReLU(0.2),
        ]
    return _initialised(nn.Sequential(*layers, nn.Flatten(), nn.Linear(depths[-1] * 4, 1)))


def _depths(image_size: int, width: int) -> list[int]:
    """Channels at each size, from half the image's down to 2 x 2."""
    size, width = check_positive_int("image_size", image_size), check_positive_int("width", width)
    if size < 4 or size & (size - 1):
        raise ValueError(f"image_size={size} must be a power of 2, 4 or more: resize the images.")
    return list(_doubling(size // 2, width))


def _doubling(size: int, width: int) -> Iterator[int]:
    while size >= 2:
        yield width
        size, width = size // 2, width * 2


def _initialised(network: nn.Sequential) -> nn.Sequential:
    for layer in network:
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(layer.weight, 0.0, WEIGHT_DEVIATION)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, WEIGHT_DEVIATION)
            nn.init.zeros_(layer.bias)
    return network


# ---- measures


class ModeCoverage(NamedTuple):
    """The measures of Lin et al. (2018, section 4.1), after Srivastava et al. (2017).

    A sample is of high quality if it is within three standard deviations of the nearest mode. A mode is recovered if
    at least one high-quality sample is nearest to it.

    Attributes:
        modes: 0-dim int64, how many are recovered.
        high_quality: 0-dim float32, the share of high-quality samples; NaN without samples.
        reverse_kl: 0-dim float32, KL in nats from how the high-quality samples are spread over the modes to the
            uniform: 0 where all are equally frequent, `log M` where there is only one; NaN where no sample is of high
            quality.
        counts: int64 `[M]`, high-quality samples at each mode.
    """

    modes: Tensor
    high_quality: Tensor
    reverse_kl: Tensor
    counts: Tensor


@torch.no_grad()
def mode_coverage(samples: Tensor, mixture: GaussianMixture) -> ModeCoverage:
    """`ModeCoverage` of some samples; PacGAN takes 2,500.

    Args:
        samples: floating-point `[N, D]`. One with NaN is of low quality.
        mixture: of `M` modes in `D` dimensions.

    Raises:
        ValueError: shapes that do not fit.

    Examples:
        >>> from rlsmooth.data import ring_of_gaussians
        >>> ring = ring_of_gaussians()
        >>> found = mode_coverage(torch.tensor([[1.0, 0.0], [1.0, 0.029], [1.0, 0.031], [-1.0, 0.0]]), ring)
        >>> found.modes, found.high_quality
        (tensor(2), tensor(0.7500))
    """
    centres = torch.as_tensor(mixture.centres, device=samples.device).to(torch.float32)
    if samples.ndim != 2 or samples.shape[1] != centres.shape[1]:
        raise ValueError(f"samples {tuple(samples.shape)} must be of shape [N, {centres.shape[1]}].")
    # Not by a matrix product, whose rounding is larger than the deviation of narrow modes allows.
    distances = torch.cdist(samples.float(), centres, compute_mode="donot_use_mm_for_euclid_dist")  # [N, M]
    nearest, mode = distances.nan_to_num(torch.inf).min(dim=1)
    is_high_quality = nearest < HIGH_QUALITY * mixture.deviation
    counts = torch.zeros(len(centres), dtype=torch.int64, device=samples.device)
    counts.index_add_(0, mode, is_high_quality.long())
    total = counts.sum()
    reverse_kl = kl_divergence(counts.float().log(), direction="policy_to_reference", reduction="sum")
    return ModeCoverage(
        modes=(counts > 0).sum(),
        high_quality=is_high_quality.float().mean(),
        reverse_kl=torch.where(total > 0, reverse_kl, torch.nan),
        counts=counts,
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

    Examples:
        >>> images = torch.linspace(-1, 1, 10).reshape(10, 1, 1, 1)
        >>> digit_measures(images, images, torch.arange(10))
        {'digits': tensor(10), 'rarest_digit': tensor(0.1000), 'distance': tensor(0.)}
    """
    real, made = images.to(samples.device).flatten(1), samples.flatten(1)
    among_real = torch.cdist(real, real).fill_diagonal_(torch.inf).min(1).values.mean()
    distance, nearest = torch.cdist(made, real, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    shares = torch.bincount(labels.to(samples.device)[nearest], minlength=10) / max(len(samples), 1)
    return {"digits": (shares >= 0.01).sum(), "rarest_digit": shares.min(), "distance": distance.mean() / among_real}


# ---- figures


def image_grid(images: Tensor, *, padding: int = 1) -> Tensor:
    """Images as one, in rows of about as many as there are rows.

    Args:
        images: floating-point `[N, C, H, W]` in `[-1, 1]`; what is outside is shown as the end of that range.
        padding: black pixels around each.

    Returns:
        uint8 `[C, rows · (H + padding) + padding, columns · (W + padding) + padding]`, on the CPU.

    Examples:
        >>> image_grid(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([1, 19, 28])
    """
    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    grid = torch.full((channels, rows * (height + padding) + padding, columns * (width + padding) + padding), -1.0)
    for place, image in enumerate(images.detach().float().cpu()):
        top = padding + place // columns * (height + padding)
        left = padding + place % columns * (width + padding)
        grid[:, top : top + height, left : left + width] = image
    return ((grid.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def draw_points(samples: Tensor, real: Tensor) -> Figure:
    """A figure of generated points on real ones; see `scatter`."""
    figure, axes = new_figure(4.5, 4.5)
    scatter(axes, samples, real)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.1), ncols=2, frameon=False)
    return figure


def scatter(axes: Axes, samples: Tensor, real: Tensor) -> None:
    """Generated points on real ones, in a window that shows all the real ones.

    Args:
        axes: where to draw.
        samples: `[N, 2]`.
        real: `[M, 2]`.
    """
    for points, colour, size, label in ((real, REAL_COLOUR, 8, "data"), (samples, FAKE_COLOUR, 3, "generated")):
        x, y = points.detach().float().cpu().numpy().T
        axes.scatter(x, y, s=size, color=colour, alpha=0.5, linewidths=0, label=label, rasterized=True)
    low, high = real.min(0).values.cpu(), real.max(0).values.cpu()
    margin = 0.15 * (high - low).max().item() + 1e-9
    axes.set_xlim(low[0].item() - margin, high[0].item() + margin)
    axes.set_ylim(low[1].item() - margin, high[1].item() + margin)
    axes.set_aspect("equal")
