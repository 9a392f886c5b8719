"""Small networks for generators and discriminators: of points in the plane, and of images as in DCGAN."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch import nn

from rlsmooth.checks import check_positive_int

__all__ = ["image_discriminator", "image_generator", "mlp"]

WEIGHT_DEVIATION = 0.02  # DCGAN's


def mlp(num_inputs: int, num_outputs: int, hidden: tuple[int, ...] = (128, 128)) -> nn.Sequential:
    """Linear layers with ReLUs between them, torch's initial weights.

    Args:
        num_inputs: of the first layer.
        num_outputs: of the last; 1 for a discriminator.
        hidden: widths of the layers between.

    Example:
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

    Example:
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
        image_size: see `image_generator`.
        channels: likewise.
        width: channels after the first layer; twice as many each layer after that.

    Raises:
        TypeError: an argument is no whole number.
        ValueError: see `image_generator`.

    Example:
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
