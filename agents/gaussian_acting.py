"""The Gaussian that acts in a Box, with its exploration floor."""

from __future__ import annotations

import torch
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from rlsmooth.agents.entropy_slot import EntropySlot
from rlsmooth.checks import check_in_range, check_positive_int
from rlsmooth.losses import (
    gaussian_entropy,
    gaussian_kl_divergence,
    gaussian_log_prob,
    gaussian_mixture_entropy_estimate,
    gaussian_mixture_log_prob,
)

__all__ = ["GaussianActing"]


class GaussianActing(Distribution):
    """`(1 - floor) · N(mean, std²) + floor · N(reference_mean, reference_std²)`, one draw a vector.

    A distribution of Stable-Baselines3 for Box actions before they are clipped. Its entropy has no closed form with a
    floor; KL and the network's entropy are those of the Gaussian without it. Rows are `[B]`, in nats.

    Args:
        reference_mean: `[D]`.
        reference_std: `[D]`, above 0.
        floor: in [0, 1].
        slot: what `entropy()` gives; None: see `regularised`.
        regularised: `entropy()` gives `-KL(reference‖pi)` where there is no slot.

    Raises:
        TypeError: a floor that is no number.
        ValueError: a floor out of range.

    Example:
        >>> acting = GaussianActing(torch.zeros(1), torch.ones(1), floor=0.1)
        >>> acting.proba_distribution(torch.zeros(1, 1), torch.zeros(1)).log_prob(torch.zeros(1, 1))
        tensor([-0.9189])
    """

    mean: Tensor
    log_std: Tensor

    def __init__(
        self,
        reference_mean: Tensor,
        reference_std: Tensor,
        *,
        floor: float = 0.0,
        slot: EntropySlot | None = None,
        regularised: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reference_mean = reference_mean
        self.reference_std = reference_std
        self.floor = check_in_range("floor", floor, 0.0, 1.0)
        self.slot = slot
        self.regularised = regularised
        self._reference_outputs: tuple[Tensor, Tensor] | None = None

    @classmethod
    def from_sb3(
        cls,
        distribution: Distribution,
        *,
        reference_mean: Tensor | None = None,
        reference_std: Tensor | None = None,
        reference_outputs: tuple[Tensor, Tensor] | None = None,
    ) -> GaussianActing:
        """What a policy of Stable-Baselines3 gave, without a floor; with gSDE or squashing the Gaussian before that.

        Args:
            distribution: Stable-Baselines3's, with its parameters; a `GaussianActing` is given back.
            reference_mean: `[D]`; None: 0.
            reference_std: `[D]`; None: 1.
            reference_outputs: `(mean, log_std)` of a reference policy.

        Raises:
            TypeError: the distribution is no Gaussian.
        """
        if isinstance(distribution, cls):
            return distribution
        normal = distribution.distribution
        if not isinstance(normal, Normal):
            raise TypeError(f"distribution must be a Gaussian of Stable-Baselines3, got {type(distribution).__name__}.")
        mean, log_std = normal.mean, normal.stddev.log()
        zeros = torch.zeros_like(mean[0] if mean.ndim > 1 else mean)
        acting = cls(
            zeros if reference_mean is None else reference_mean,
            torch.ones_like(zeros) if reference_std is None else reference_std,
        )
        return acting.proba_distribution(mean, log_std, reference_outputs)

    def proba_distribution_net(self, latent_dim: int, log_std_init: float = 0.0) -> tuple[nn.Module, nn.Parameter]:
        """As Stable-Baselines3's: the layer of the mean, and log std."""
        return DiagGaussianDistribution(len(self.reference_mean)).proba_distribution_net(latent_dim, log_std_init)

    def proba_distribution(
        self, mean: Tensor, log_std: Tensor, reference_outputs: tuple[Tensor, Tensor] | None = None
    ) -> GaussianActing:
        """Take the network's outputs.

        Args:
            mean: `[B, D]`.
            log_std: `[D]` or `[B, D]`.
            reference_outputs: `(mean, log_std)` of a policy that is the reference of KL, not of the floor.

        Returns:
            self.
        """
        self.mean, self.log_std = mean, log_std
        self._reference_outputs = reference_outputs
        return self

    @property
    def distribution(self) -> Normal | MixtureSameFamily:  # type: ignore[override]  # SB3 declares an attribute
        """torch's own form of what acts, made on each access."""
        std = self.log_std.exp().expand_as(self.mean)
        if not self.floor:
            return Normal(self.mean, std)
        means = torch.stack((self.mean, self.reference_mean.to(self.mean).expand_as(self.mean)), dim=1)
        stds = torch.stack((std, self.reference_std.to(std).expand_as(std)), dim=1)
        shares = std.new_tensor([1 - self.floor, self.floor]).expand(len(std), 2)
        return MixtureSameFamily(Categorical(shares), Independent(Normal(means, stds), 1))

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-density of what acts, `[B]`.

        Args:
            actions: `[B, D]`, before clipping.
        """
        if not self.floor:
            return gaussian_log_prob(actions, self.mean, self.log_std)
        return gaussian_mixture_log_prob(
            actions, self.mean, self.log_std, self.reference_mean, self.reference_std, floor=self.floor
        )

    def sample(self) -> Tensor:
        """Draw actions, `[B, D]`; without a floor they have the gradient of Stable-Baselines3's."""
        noise = torch.randn_like(self.mean)
        own = self.mean + self.log_std.exp() * noise
        if not self.floor:
            return own
        from_reference = torch.rand(len(own), 1, device=own.device) < self.floor
        # A draw that chooses its component has no gradient along the draw.
        return torch.where(from_reference, self.reference_mean + self.reference_std * noise, own).detach()

    def mode(self) -> Tensor:
        """The network's mean, `[B, D]`, with a floor too."""
        return self.mean

    def actions_from_params(self, mean: Tensor, log_std: Tensor, deterministic: bool = False) -> Tensor:
        """`get_actions` for the network's outputs."""
        return self.proba_distribution(mean, log_std).get_actions(deterministic)

    def log_prob_from_params(self, mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
        """Draw actions for the network's outputs; actions and their log-densities."""
        actions = self.actions_from_params(mean, log_std)
        return actions, self.log_prob(actions)

    def entropy(self) -> Tensor | None:
        """The slot's rows; `-KL(reference‖pi)` if regularised; else the entropy of what acts, None with a floor."""
        if self.slot is not None:
            return self.slot.rows(self)
        return -self.kl_reference() if self.regularised else self.acting_entropy()

    def network_entropy(self) -> Tensor:
        """Differential entropy of `N(mean, std²)`, `[B]`."""
        return gaussian_entropy(self.log_std).expand(len(self.mean))

    def acting_entropy(self) -> Tensor | None:
        """The same without a floor; None with one."""
        return None if self.floor else self.network_entropy()

    @torch.no_grad()
    def acting_entropy_estimate(self, num_samples: int = 64, *, seed: int = 0) -> Tensor:
        """Entropy of what acts from samples, `[B]`, without a graph; exact without a floor.

        Both components are sampled and weighed by their shares. The draws come from a generator of their own, so that
        looking changes nothing else that is random, and come out the same each time.

        Args:
            num_samples: of each component and row.
            seed: of the generator.

        Raises:
            TypeError: `num_samples` is no whole number.
            ValueError: it is below 1.
        """
        check_positive_int("num_samples", num_samples)
        if not self.floor:
            return self.network_entropy()
        generator = torch.Generator(self.mean.device).manual_seed(seed)
        shape = (num_samples, *self.mean.shape)
        noise = torch.randn(shape, dtype=self.mean.dtype, device=self.mean.device, generator=generator)
        return gaussian_mixture_entropy_estimate(
            self.mean, self.log_std, self.reference_mean, self.reference_std, floor=self.floor, noise=noise
        )

    def kl_reference(self) -> Tensor:
        """`KL(reference‖pi)`, `[B]`: of the reference policy's outputs if there are any, else of the broad Gaussian."""
        if self._reference_outputs is None:
            mean, std = self.reference_mean, self.reference_std
        else:
            mean, std = self._reference_outputs[0].detach(), self._reference_outputs[1].detach().exp()
        return gaussian_kl_divergence(
            self.mean, self.log_std, mean, std, direction="reference_to_policy", reduction="none"
        )

    def kl_uniform(self) -> None:
        """None: an unbounded Box has no uniform distribution."""

    def entropies_by_dimension(self) -> list[Tensor] | None:
        """The network's differential entropy of each dimension, `[B]` each; None with a floor."""
        if self.floor:
            return None
        each = self.log_std.expand_as(self.mean).unsqueeze(-1)
        return [gaussian_entropy(part) for part in each.unbind(1)]

    def entropy_fractions(self) -> None:
        """None: a differential entropy has no greatest value to be a fraction of."""
