"""The distributions that smoothed policies act from, and that monitoring reads: categorical here, Gaussian beside."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.distributions import Distribution
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical

from rlsmooth.agents.acting_components import component_logits, component_masks, reference_rows
from rlsmooth.agents.entropy_slot import EntropySlot
from rlsmooth.agents.gaussian_acting import GaussianActing
from rlsmooth.checks import check_choice, check_in_range
from rlsmooth.losses import (
    entropy_fractions,
    entropy_of,
    kl_from_log_probabilities,
    log_probabilities,
    mixture_log_probabilities,
)
from rlsmooth.targets import Smoothing

__all__ = ["CategoricalActing", "GaussianActing"]


class CategoricalActing(Distribution):
    """`(1 - floor) · pi + floor · reference`, component by component, over the legal choices.

    A distribution of Stable-Baselines3 for Discrete, MultiDiscrete and MultiBinary actions. pi is the network's policy;
    log-probability, entropy and mode of the mixture are exact. One log-softmax serves all of them. Rows are `[B]`,
    summed over the components, in nats.

    Args:
        kind: of action space.
        dims: number of choices of each component; MultiBinary: 2 for each bit.
        references: one recipe a component, whose background around the network's greedy legal choice (without a
            gradient) is the reference; None: uniform over the legal choices.
        floor: in [0, 1].
        slot: what `entropy()` gives; None: see `regularised`.
        regularised: `entropy()` gives `-KL(reference‖pi)` where there is no slot.

    Raises:
        TypeError: a floor that is no number.
        ValueError: an unknown kind, a floor out of range, dims or references that do not fit.

    Example:
        >>> acting = CategoricalActing("discrete", (2,), floor=0.2).proba_distribution(torch.tensor([[100.0, 0.0]]))
        >>> acting.probabilities()
        (tensor([[0.9000, 0.1000]]),)
    """

    def __init__(
        self,
        kind: Literal["discrete", "multi_discrete", "multi_binary"],
        dims: tuple[int, ...],
        *,
        references: tuple[Smoothing | None, ...] | None = None,
        floor: float = 0.0,
        slot: EntropySlot | None = None,
        regularised: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        check_choice("kind", kind, ("discrete", "multi_discrete", "multi_binary"))
        if not dims or (kind == "discrete" and len(dims) != 1):
            raise ValueError(f"dims={dims!r} does not fit kind={kind!r}: give the number of choices of each component.")
        if references is not None and len(references) != len(dims):
            raise ValueError(f"references has {len(references)} entries for {len(dims)} components: give one for each.")
        self.kind = kind
        self.dims = dims
        self.references = references
        self.floor = check_in_range("floor", floor, 0.0, 1.0)
        self.slot = slot
        self.regularised = regularised

    @classmethod
    def from_sb3(
        cls,
        distribution: Distribution,
        *,
        references: tuple[Smoothing | None, ...] | None = None,
        reference_outputs: Tensor | None = None,
    ) -> CategoricalActing:
        """What a policy of Stable-Baselines3 or sb3-contrib gave, masks included, without a floor.

        Args:
            distribution: theirs, with its parameters; a `CategoricalActing` is given back.
            references: see the class.
            reference_outputs: see `proba_distribution`.

        Raises:
            TypeError: the distribution is neither categorical nor Bernoulli.
        """
        if isinstance(distribution, cls):
            return distribution
        # sb3-contrib, which may be missing, keeps several in another attribute, and masks that torch's don't have.
        own: Any = getattr(distribution, "distributions", None) or distribution.distribution
        if isinstance(own, Bernoulli):
            dims = (2,) * own.logits.shape[-1]
            acting = cls("multi_binary", dims, references=references)
            return acting.proba_distribution(own.logits, reference_outputs)
        parts = own if isinstance(own, list) else [own]
        if not all(isinstance(part, Categorical) for part in parts):
            raise TypeError(f"distribution must be categorical or Bernoulli, got {type(distribution).__name__}.")
        kind: Literal["discrete", "multi_discrete"] = "multi_discrete" if isinstance(own, list) else "discrete"
        acting = cls(kind, tuple(part.logits.shape[-1] for part in parts), references=references)
        acting.proba_distribution(torch.cat([part.logits for part in parts], dim=-1), reference_outputs)
        masks = [mask for part in parts if (mask := getattr(part, "masks", None)) is not None]
        if masks:  # of all components, or of none
            acting.apply_masking(torch.cat(masks, dim=-1))
        return acting

    def proba_distribution_net(self, latent_dim: int) -> nn.Module:
        """As Stable-Baselines3's: the layer of the logits, one a bit for MultiBinary."""
        return nn.Linear(latent_dim, len(self.dims) if self.kind == "multi_binary" else sum(self.dims))

    def proba_distribution(self, outputs: Tensor, reference_outputs: Tensor | None = None) -> CategoricalActing:
        """Take the network's outputs, unmasked.

        Args:
            outputs: logits `[B, sum(dims)]`; for MultiBinary also one a bit `[B, D]`, of the bit being 1, as
                Stable-Baselines3's policies have it (sb3-contrib's maskable ones have two).
            reference_outputs: the same of a policy that is the reference of KL, not of the floor.

        Returns:
            self.
        """
        self._is_bernoulli = self.kind == "multi_binary" and outputs.shape[-1] == len(self.dims)
        self._logits = self._components_of(outputs)
        self._reference_logits = None if reference_outputs is None else self._components_of(reference_outputs.detach())
        self.apply_masking(None)
        return self

    def apply_masking(self, masks: Tensor | NDArray[np.bool_] | None) -> None:
        """Restrict pi and the reference to legal choices.

        Args:
            masks: bool `[B, sum(dims)]`, True = legal; None: all are.

        Raises:
            ValueError: an array of a wrong size, or with a row that allows nothing (tensors are not read).
        """
        legal = component_masks(masks, self.dims, self._logits.device)
        self._mask = legal.squeeze(-2) if legal is not None and self.kind == "discrete" else legal
        self._network: Tensor | None = None
        self._acting: Tensor | None = None
        self._entropy: Tensor | None = None
        self._static: tuple[Tensor | None] | None = None

    @property
    def distribution(self) -> Categorical | Bernoulli | list[Categorical]:  # type: ignore[override]
        """torch's own form of what acts, as Stable-Baselines3 has it, made on each access."""
        log_probs = self._acting_log_probs()
        if self.kind == "discrete":
            return Categorical(logits=log_probs)
        if self._is_bernoulli:
            return Bernoulli(logits=log_probs[..., 1] - log_probs[..., 0])
        return self.distributions

    @property
    def distributions(self) -> list[Categorical]:
        """One for each component."""
        return [Categorical(logits=part) for part in self._by_dimension(self._acting_log_probs())]

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-probability of what acts, `[B]`; -inf for an illegal action.

        Args:
            actions: whole numbers of any dtype, `[B]` or `[B, D]`.
        """
        log_probs = self._acting_log_probs()
        places = actions.long().reshape(log_probs.shape[:-1]).unsqueeze(-1)
        rows = log_probs.gather(-1, places).squeeze(-1)
        return rows if self.kind == "discrete" else rows.sum(-1)

    def sample(self) -> Tensor:
        """Draw actions: int64 `[B]` for Discrete, else `[B, D]` (a bit with one logit: as floating-point numbers)."""
        probabilities = self._acting_log_probs().detach().exp()
        drawn = torch.multinomial(probabilities.reshape(-1, probabilities.shape[-1]), 1, replacement=True)
        return self._as_actions(drawn.reshape(probabilities.shape[:-1]))

    def mode(self) -> Tensor:
        """The most probable action of what acts, in the form of `sample`."""
        return self._as_actions(self._acting_log_probs().argmax(-1))

    def actions_from_params(
        self, outputs: Tensor, reference_outputs: Tensor | None = None, deterministic: bool = False
    ) -> Tensor:
        """`get_actions` for the network's outputs."""
        return self.proba_distribution(outputs, reference_outputs).get_actions(deterministic)

    def log_prob_from_params(self, outputs: Tensor, reference_outputs: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draw actions for the network's outputs; actions and their log-probabilities."""
        actions = self.actions_from_params(outputs, reference_outputs)
        return actions, self.log_prob(actions)

    def entropy(self) -> Tensor:
        """The slot's rows; `-KL(reference‖pi)` if regularised; else the entropy of what acts, `[B]`."""
        if self.slot is not None:
            return self.slot.rows(self)
        return -self.kl_reference() if self.regularised else self.acting_entropy()

    def network_entropy(self) -> Tensor:
        """Entropy of pi, `[B]`."""
        found = self._entropy
        if found is None or self._lacks_graph(found):
            found = self._sum(entropy_of(self._log_probs()))
            self._entropy = found
        return found

    def acting_entropy(self) -> Tensor:
        """Entropy of what acts, `[B]`."""
        return self._sum(entropy_of(self._acting_log_probs())) if self.floor else self.network_entropy()

    def entropies_by_dimension(self) -> list[Tensor]:
        """Entropy of what acts of each component, `[B]` each."""
        entropies = entropy_of(self._acting_log_probs())
        return [entropies] if self.kind == "discrete" else list(entropies.unbind(-1))

    def kl_reference(self) -> Tensor:
        """`KL(reference‖pi)`, `[B]`: of the reference policy if its outputs are given, else of the references."""
        log_probs = self._log_probs()
        if self._reference_logits is not None:
            reference: Tensor | None = log_probabilities(self._reference_logits, self._mask).exp()
        else:
            reference = self._reference()
        return self._sum(kl_from_log_probabilities(log_probs, reference, mask=self._mask))

    def kl_uniform(self) -> Tensor:
        """KL divergence of the uniform over the legal choices from pi, `[B]`."""
        return self._sum(kl_from_log_probabilities(self._log_probs(), mask=self._mask))

    def entropy_fractions(self) -> tuple[Tensor, Tensor]:
        """`H / log n` of what acts, with n the number of legal joint actions, and whether n is at least 2: `[B]` each.

        A row with one legal action has the fraction 0.
        """
        entropies = self.acting_entropy()
        if self._mask is None or self._mask.ndim < self._logits.ndim:
            log_n = torch.full_like(entropies, sum(math.log(size) for size in self.dims))
        else:
            log_n = self._sum(self._mask.sum(-1).to(entropies.dtype).log())
        return entropy_fractions(entropies, log_n)

    def probabilities(self) -> tuple[Tensor, ...]:
        """Probabilities of what acts, `[B, K_d]` for each component; 0 where illegal."""
        return tuple(part.exp() for part in self._by_dimension(self._acting_log_probs()))

    def _components_of(self, outputs: Tensor) -> Tensor:
        return outputs if self.kind == "discrete" else component_logits(outputs, self.dims, self._is_bernoulli)

    def _by_dimension(self, values: Tensor) -> list[Tensor]:
        if self.kind == "discrete":
            return [values]
        return [part[:, :size] for part, size in zip(values.unbind(1), self.dims, strict=True)]

    def _sum(self, values: Tensor) -> Tensor:
        return values if self.kind == "discrete" else values.sum(-1)

    def _as_actions(self, choices: Tensor) -> Tensor:
        return choices.to(self._logits.dtype) if self._is_bernoulli else choices

    def _lacks_graph(self, kept: Tensor) -> bool:
        """Whether `kept` was made without a graph that is wanted now."""
        return self._logits.requires_grad and not kept.requires_grad and torch.is_grad_enabled()

    def _log_probs(self) -> Tensor:
        """`log pi`, `[B, K]` or `[B, D, K]`."""
        found = self._network
        if found is None or self._lacks_graph(found):
            found = log_probabilities(self._logits, self._mask)
            self._network = found
        return found

    def _acting_log_probs(self) -> Tensor:
        if not self.floor:
            return self._log_probs()
        found = self._acting
        if found is None or self._lacks_graph(found):
            found = mixture_log_probabilities(self._log_probs(), self._reference(), floor=self.floor, mask=self._mask)
            self._acting = found
        return found

    def _reference(self) -> Tensor | None:
        """The static reference: `[B, K]` or `[B, D, K]`; None: uniform over the legal choices."""
        if self.references is None:
            return None
        if self._static is None:
            self._static = (reference_rows(self.references, self.dims, self._log_probs().detach(), self._mask),)
        return self._static[0]
