"""What an algorithm lets a policy return where Stable-Baselines3 expects an entropy."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["CoefficientController", "EntropySlot", "SlotDistribution"]


class SlotDistribution(Protocol):
    """What a slot reads of `CategoricalActing` or `GaussianActing`; each row `[B]`, nats."""

    def network_entropy(self) -> Tensor:
        """H(pi) of the network's policy."""

    def acting_entropy(self) -> Tensor | None:
        """H of what acts, exploration floor included; None where it has no closed form."""

    def kl_reference(self) -> Tensor:
        """KL(reference‖pi)."""

    def entropy_fractions(self) -> tuple[Tensor, Tensor] | None:
        """`(H / log n_legal, rows with a choice)`; None for a Box."""


class CoefficientController(Protocol):
    """What finds the coefficient of KL(reference‖pi) by feedback, such as `EntropyTarget`."""

    def coefficient(self) -> Tensor:
        """The coefficient in force: 0-dimensional, on the device, without a graph."""

    def update(self, entropies: Tensor, fractions: tuple[Tensor, Tensor] | None, row_weights: Tensor | None) -> None:
        """Take one step of feedback from a minibatch's rows, without waiting for the device.

        Args:
            entropies: `[B]`, nats, of the acting policy (a Box with a floor: the network's).
            fractions: `([B], [B] bool)`, see `SlotDistribution.entropy_fractions`.
            row_weights: `[B]`, 1 where a row counts and 0 where it is padding, or None: all count.
        """


class EntropySlot:
    """The rows `entropy_coef · H(pi) - kl_coef · KL(reference‖pi)`, in nats, and the mean of H(pi) over minibatches.

    An algorithm puts one into `policy.slot` for the time of a `train()` whose own `ent_coef` it sets to 1: the loss of
    Stable-Baselines3, `policy loss - ent_coef · mean(slot)`, then holds both terms with their coefficients. Both use
    the network's policy, without the exploration floor.

    Attributes:
        entropy_coef: of H(pi).
        kl_coef: of KL(reference‖pi); a number or a 0-dimensional tensor.
        target: finds the coefficient instead of `kl_coef`, and is told of each minibatch; or None.
        row_mask: bool `[B]`, the rows of this minibatch that count (the others pad a recurrent batch); None: all.

    Example:
        >>> from rlsmooth.agents.smoothed.distributions import CategoricalActing
        >>> slot = EntropySlot(entropy_coef=0.5, kl_coef=1.0)
        >>> slot.rows(CategoricalActing("discrete", (2,)).proba_distribution(torch.zeros(1, 2)))
        tensor([0.3466])
        >>> round(slot.mean_entropy(), 4)
        0.6931
    """

    def __init__(
        self,
        *,
        entropy_coef: float = 0.0,
        kl_coef: float | Tensor = 0.0,
        target: CoefficientController | None = None,
    ) -> None:
        self.entropy_coef = entropy_coef
        self.kl_coef = kl_coef
        self.target = target
        self.row_mask: Tensor | None = None
        self._sum: Tensor | None = None
        self._count = 0

    def rows(self, distribution: SlotDistribution) -> Tensor:
        """The slot of one minibatch, `[B]`. A term of coefficient 0 adds nothing to the graph.

        Args:
            distribution: of the minibatch.
        """
        coefficient = self.kl_coef if self.target is None else self.target.coefficient()
        with_penalty = isinstance(coefficient, Tensor) or coefficient != 0
        # The penalty first: what the distribution keeps of it for the entropy has a graph where one is needed.
        penalty = coefficient * distribution.kl_reference() if with_penalty else None
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.entropy_coef != 0):
            entropies = distribution.network_entropy()
        self._record(entropies.detach())
        total = None if self.entropy_coef == 0 else self.entropy_coef * entropies
        if penalty is not None:
            total = -penalty if total is None else total - penalty
        if self.target is not None:
            self._tell(self.target, distribution)
        return torch.zeros_like(entropies) if total is None else total

    @property
    def was_read(self) -> bool:
        """Whether a policy has asked for its rows."""
        return self._count > 0

    def mean_entropy(self) -> float:
        """The mean over minibatches of the mean of H(pi) over rows; NaN before the first. Waits for the device."""
        return float("nan") if self._sum is None else float(self._sum) / self._count

    def _record(self, entropies: Tensor) -> None:
        if self.row_mask is None:
            mean = entropies.mean()
        else:
            mean = torch.where(self.row_mask, entropies, 0.0).sum() / self.row_mask.sum()
        self._sum = mean if self._sum is None else self._sum + mean
        self._count += 1

    def _tell(self, target: CoefficientController, distribution: SlotDistribution) -> None:
        with torch.no_grad():
            acting = distribution.acting_entropy()
            entropies = distribution.network_entropy() if acting is None else acting
            weights = None if self.row_mask is None else self.row_mask.to(entropies.dtype)
            target.update(entropies, distribution.entropy_fractions(), weights)
