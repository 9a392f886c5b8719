"""The entropy slot of a policy with gSDE, whose noise Stable-Baselines3's own distribution has to draw."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.distributions import Distribution, StateDependentNoiseDistribution
from torch import Tensor

from rlsmooth.agents.acting_distributions import GaussianActing
from rlsmooth.agents.entropy_slot import EntropySlot

__all__ = ["SlotOverNoise"]


class SlotOverNoise(Distribution):
    """Stable-Baselines3's distribution in all but `entropy()`: the slot, or `-KL(reference‖pi)` without one.

    KL is that of the Gaussians before squashing: squashing both leaves it as it is. A squashed policy's entropy has no
    closed form; as in Stable-Baselines3, `-log_prob` of the last actions stands for it.

    Args:
        noise: the distribution of Stable-Baselines3.
        gaussian: the same, before squashing.
        slot: what gives the rows, or None.
    """

    def __init__(
        self, noise: StateDependentNoiseDistribution, gaussian: GaussianActing, slot: EntropySlot | None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.noise = noise
        self.gaussian = gaussian
        self.slot = slot
        self.distribution = noise.distribution
        self._log_prob: Tensor | None = None

    def proba_distribution_net(self, *args: Any, **kwargs: Any) -> Any:
        """As of `noise`."""
        return self.noise.proba_distribution_net(*args, **kwargs)

    def proba_distribution(self, *args: Any, **kwargs: Any) -> SlotOverNoise:
        """Not used: the distribution comes with its parameters."""
        raise NotImplementedError("Make another SlotOverNoise.")

    def log_prob(self, actions: Tensor) -> Tensor:
        """As of `noise`, `[B]`."""
        self._log_prob = self.noise.log_prob(actions)
        return self._log_prob

    def entropy(self) -> Tensor:
        """The slot, `[B]`."""
        return -self.kl_reference() if self.slot is None else self.slot.rows(self)

    def network_entropy(self) -> Tensor:
        """H(pi), `[B]`, or what stands for it."""
        if self.noise.bijector is None:
            return self.gaussian.network_entropy()
        assert self._log_prob is not None, "log_prob comes first, as in evaluate_actions"
        return -self._log_prob

    def acting_entropy(self) -> Tensor:
        """The same: there is no floor."""
        return self.network_entropy()

    def kl_reference(self) -> Tensor:
        """KL(reference‖pi), `[B]`."""
        return self.gaussian.kl_reference()

    def entropy_fractions(self) -> None:
        """None: differential entropies have no fractions."""

    def sample(self) -> Tensor:
        """As of `noise`."""
        return self.noise.sample()

    def mode(self) -> Tensor:
        """As of `noise`."""
        return self.noise.mode()

    def actions_from_params(self, *args: Any, **kwargs: Any) -> Tensor:
        """As of `noise`."""
        return self.noise.actions_from_params(*args, **kwargs)

    def log_prob_from_params(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As of `noise`."""
        return self.noise.log_prob_from_params(*args, **kwargs)
