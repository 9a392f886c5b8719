"""Features of two successive observations, for an inverse dynamics model: both, standardised."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from torch import Tensor, nn

from rlsmooth.checks import check_choice

Inputs: TypeAlias = Literal["difference", "pair"]
INPUTS = ("difference", "pair")
FIRST, SECOND = "observation", "next_observation"


def pair_space(space: spaces.Space[Any]) -> spaces.Dict:
    """The space of an observation and the next one, as one Dict.

    Examples:
        >>> list(pair_space(spaces.Discrete(3)))
        ['next_observation', 'observation']
    """
    parts = space.spaces if isinstance(space, spaces.Dict) else {None: space}
    return spaces.Dict({name: part for key, part in parts.items() for name in pair_names(key)})


def pair_names(key: str | None) -> tuple[str, str]:
    """The keys in `pair_space` of an observation, or of one part of a Dict, and of what comes after."""
    return (FIRST, SECOND) if key is None else (f"{FIRST}.{key}", f"{SECOND}.{key}")


class TransitionFeatures(BaseFeaturesExtractor):
    """Standardised `(s, s' - s)` or `(s, s')`, flat; of images what a convolutional network makes of both together.

    Differences are often a hundredth of the observations: without a scale of their own a network would hardly see them.
    Observations of a Box are standardised by `mean` and `std`, buffers that a policy's file keeps; those of other
    spaces come as zeros and ones, and images between 0 and 1.

    Args:
        observation_space: of `pair_space`.
        inputs: `"difference"` or `"pair"`.
        cnn_output_dim: features of each image.

    Attributes:
        mean: float32 `[F]`, of what is flat.
        std: float32 `[F]`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, observation_space: spaces.Dict, inputs: Inputs = "difference", cnn_output_dim: int = 256
    ) -> None:
        check_choice("inputs", inputs, INPUTS)
        names = [name for name in observation_space if name.startswith(FIRST)]
        images = [name for name in names if is_image_space(observation_space[name])]
        flat = [name for name in names if name not in images]
        size = 2 * sum(get_flattened_obs_dim(observation_space[name]) for name in flat)
        super().__init__(observation_space, size + cnn_output_dim * len(images))
        self.inputs = inputs
        self.images, self.flat = images, flat
        self.networks = nn.ModuleList(NatureCNN(_doubled(observation_space[name]), cnn_output_dim) for name in images)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def set_statistics(self, mean: NDArray[np.float64], std: NDArray[np.float64]) -> None:
        """Standardise by these from now on, which `transition_statistics` finds."""
        self.mean.copy_(torch.from_numpy(mean))
        self.std.copy_(torch.from_numpy(std))

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """`[B, features]`."""
        parts = [part.flatten(1) for name in self.flat for part in self._two(observations, name)]
        found = [(torch.cat(parts, dim=1) - self.mean) / self.std] if parts else []
        for name, network in zip(self.images, self.networks, strict=True):
            found.append(network(torch.cat(self._two(observations, name), dim=1)))
        return torch.cat(found, dim=1)

    def _two(self, observations: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
        first, second = observations[name], observations[SECOND + name.removeprefix(FIRST)]
        return first, second - first if self.inputs == "difference" else second


def transition_statistics(
    space: spaces.Dict, observations: dict[str, NDArray[Any]], inputs: Inputs
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation, over transitions, of the flat part of `TransitionFeatures`; 0 and 1 beside a Box.

    A column that varies by no more than rounding does has the standard deviation 1: dividing by its own would make
    noise as large as a signal.

    Args:
        space: of `pair_space`.
        observations: `[N, ...]` each.
        inputs: `"difference"` or `"pair"`.
    """
    means, stds = [], []
    for name in [name for name in space if name.startswith(FIRST) and not is_image_space(space[name])]:
        second = SECOND + name.removeprefix(FIRST)
        if not isinstance(space[name], spaces.Box):
            size = 2 * get_flattened_obs_dim(space[name])
            means.append(np.zeros(size))
            stds.append(np.ones(size))
            continue
        # In the network's own precision: what is lost there must not count as a difference.
        before, after = (
            np.asarray(observations[part]).reshape(len(observations[part]), -1).astype(np.float32)
            for part in (name, second)
        )
        largest = np.maximum(np.abs(before).max(axis=0), np.abs(after).max(axis=0))
        for values in (before, after - before if inputs == "difference" else after):
            means.append(values.mean(axis=0, dtype=np.float64))
            deviations = values.std(axis=0, dtype=np.float64)
            stds.append(np.where(deviations > np.finfo(np.float32).eps * largest, deviations, 1.0))
    return np.concatenate([*means, []]), np.concatenate([*stds, []])


def _doubled(space: spaces.Space[Any]) -> spaces.Box:
    """Images, channel-first, with another's channels behind their own."""
    channels, height, width = space.shape or ()
    return spaces.Box(0, 255, (2 * channels, height, width), dtype=np.uint8)
