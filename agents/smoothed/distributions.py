"""Distributions of smoothed policies: a mixture of the network's policy pi and a reference, categorical or Gaussian.

The mixture is the behaviour policy: it draws the actions and gives their log-probabilities. Measures read it too.
"""

from __future__ import annotations

import functools
import math
from itertools import repeat
from operator import truediv
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.distributions import (
    DiagGaussianDistribution,
    Distribution,
    StateDependentNoiseDistribution,
)
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Independent, MixtureSameFamily, Normal

from rlsmooth.agents.plain_mlp import MOST_VALUES, SURE, deviations
from rlsmooth.agents.smoothed.entropy import EntropyTerm, RegularisedDistribution
from rlsmooth.agents.smoothed.references import reference_distributions, reference_row
from rlsmooth.agents.spaces import shifted
from rlsmooth.checks import check_choice, check_in_range, check_positive_int
from rlsmooth.losses import (
    entropy_fractions,
    entropy_of,
    gaussian_entropy,
    gaussian_kl_divergence,
    gaussian_log_prob,
    gaussian_mixture_entropy_estimate,
    gaussian_mixture_log_prob,
    guaranteed_floor,
    guaranteed_floors,
    kl_from_log_probabilities,
    log_probabilities,
    mixture_log_probabilities,
    widened_log_std,
)
from rlsmooth.targets import Smoothing

_MODERATE = 50.0  # where logits are larger, float32's log-probabilities may be further off than `_sure_place` allows


def component_logits(outputs: Tensor, dims: tuple[int, ...], bernoulli: bool = False) -> Tensor:
    """`[B, sum(dims)]` as `[B, D, max(dims)]`; where sizes differ, places without a class hold any number.

    Args:
        outputs: `[B, sum(dims)]`, or `[B, D]` of Bernoulli logits `x`, which become `(0, x)`.
        dims: number of choices of each component.
        bernoulli: whether `outputs` are Bernoulli logits.
    """
    if bernoulli:
        return torch.stack((torch.zeros_like(outputs), outputs), dim=-1)
    if len(set(dims)) == 1:
        return outputs.reshape(-1, len(dims), dims[0])
    places, _ = _padding(dims, outputs.device)
    return outputs.index_select(-1, places).reshape(-1, len(dims), max(dims))


def component_masks(
    masks: Tensor | NDArray[np.bool_] | None, dims: tuple[int, ...], device: torch.device
) -> Tensor | None:
    """The legal choices, bool `[D, max(dims)]` or `[B, D, max(dims)]`; None: all are, and all sizes are alike.

    Args:
        masks: `[B, sum(dims)]`, or anything of that size, nonzero = legal; None: all are.
        dims: number of choices of each component.
        device: of the logits.

    Raises:
        ValueError: an array of a wrong size, or a state where nothing is legal. Tensors are not read, which would wait
            for the device: a component without a legal choice is NaN.
    """
    alike = len(set(dims)) == 1
    if masks is None:
        return None if alike else _padding(dims, device)[1]
    if not isinstance(masks, Tensor):
        masks = torch.from_numpy(check_masks(np.asarray(masks), dims))
    legal = masks.to(device, torch.bool).reshape(-1, sum(dims))
    if alike:
        return legal.reshape(-1, len(dims), dims[0])
    places, exists = _padding(dims, device)
    return legal.index_select(-1, places).reshape(-1, len(dims), max(dims)) & exists


def check_masks(masks: NDArray[Any], dims: tuple[int, ...]) -> NDArray[np.bool_]:
    """The masks as bool `[B, sum(dims)]`.

    Args:
        masks: `[B, sum(dims)]`, or anything of that size, nonzero = legal.
        dims: number of choices of each component.

    Raises:
        ValueError: a wrong size, or a state where nothing is legal.
    """
    total = sum(dims)
    # An array of another shape that happens to have the right number of entries is transposed, say.
    is_odd = masks.size % total if masks.ndim < 2 else masks.size != total and math.prod(masks.shape[1:]) != total
    if is_odd:
        raise ValueError(f"action_masks has shape {masks.shape}, needs [B, {total}]: one entry for each choice.")
    flat = masks.reshape(-1, total).astype(bool)
    starts = np.cumsum((0, *dims[:-1]))
    allowed = np.logical_or.reduceat(flat, starts, axis=1)  # [B, D]
    if not allowed.all():
        state, component = (int(place) for place in np.argwhere(~allowed)[0])
        raise ValueError(
            f"action_masks allows nothing in state {state}, component {component}: at least one action must be legal."
        )
    return flat


def _sure_place(values: list[float]) -> int | None:
    """The place of the largest value, or None where another is so close that rounding may decide."""
    best = max(values)
    place = values.index(best)
    values[place] = 0.0
    return place if best > max(values) * (1 + SURE) else None


@functools.lru_cache(maxsize=64)
def _padding(dims: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Where in the flat outputs each place of `[D, max(dims)]` comes from, `[D · max(dims)]`, and which exist."""
    width = max(dims)
    with torch.inference_mode(False):
        steps = torch.arange(width)
        sizes = torch.tensor(dims)
        starts = sizes.cumsum(0) - sizes
        exists = steps < sizes.unsqueeze(-1)
        places = torch.where(exists, starts.unsqueeze(-1) + steps, 0).flatten()
        return places.to(device), exists.to(device)


class MixedGaussian(RegularisedDistribution):
    """`(1 - floor) · N(mean, std²) + floor · N(reference_mean, reference_std²)`, mixed as whole action vectors.

    A distribution of Stable-Baselines3 for Box actions before they are clipped. Its entropy has no closed form with a
    floor; KL and the network's entropy are those of the Gaussian without it. Values are `[B]`, in nats.

    Args:
        reference_mean: `[D]`.
        reference_std: `[D]`, above 0.
        floor: in [0, 1].
        min_entropy: nats; the behaviour policy is `N(mean, std²)` with `std` scaled up to that entropy where its own is
            lower (`widened_log_std`). Without a floor; None: `std` is used as it is.
        entropy_term: gives `entropy()`; None: see `regularised`.
        regularised: `entropy()` gives `-KL(reference‖pi)` where there is no entropy term.

    Raises:
        TypeError: a floor that is no number.
        ValueError: a floor out of range.

    Examples:
        >>> mixture = MixedGaussian(torch.zeros(1), torch.ones(1), floor=0.1)
        >>> mixture.proba_distribution(torch.zeros(1, 1), torch.zeros(1)).log_prob(torch.zeros(1, 1))
        tensor([-0.9189])
    """

    mean: Tensor
    log_std: Tensor
    behaviour_log_std: Tensor  # of the behaviour policy without its floor

    def __init__(
        self,
        reference_mean: Tensor,
        reference_std: Tensor,
        *,
        floor: float = 0.0,
        min_entropy: float | None = None,
        entropy_term: EntropyTerm | None = None,
        regularised: bool = False,
    ) -> None:
        super().__init__(entropy_term, regularised=regularised)
        self.reference_mean = reference_mean
        self.reference_std = reference_std
        self.floor = check_in_range("floor", floor, 0.0, 1.0)
        self.min_entropy = min_entropy
        self._reference_outputs: tuple[Tensor, Tensor] | None = None

    @classmethod
    def from_sb3(
        cls,
        distribution: Distribution,
        *,
        reference_mean: Tensor | None = None,
        reference_std: Tensor | None = None,
        reference_outputs: tuple[Tensor, Tensor] | None = None,
    ) -> MixedGaussian:
        """A Gaussian of Stable-Baselines3, without a floor; with gSDE or squashing the Gaussian before it.

        Args:
            distribution: Stable-Baselines3's, with its parameters; a `MixedGaussian` is given back.
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
        mixture = cls(
            zeros if reference_mean is None else reference_mean,
            torch.ones_like(zeros) if reference_std is None else reference_std,
        )
        return mixture.proba_distribution(mean, log_std, reference_outputs)

    def proba_distribution_net(self, latent_dim: int, log_std_init: float = 0.0) -> tuple[nn.Module, nn.Parameter]:
        """The layer of the mean, and log std, as Stable-Baselines3's."""
        return DiagGaussianDistribution(len(self.reference_mean)).proba_distribution_net(latent_dim, log_std_init)

    def proba_distribution(
        self, mean: Tensor, log_std: Tensor, reference_outputs: tuple[Tensor, Tensor] | None = None
    ) -> MixedGaussian:
        """Take the network's outputs.

        Args:
            mean: `[B, D]`.
            log_std: `[D]` or `[B, D]`.
            reference_outputs: `(mean, log_std)` of a policy that is the reference of KL, not of the floor.

        Returns:
            self.
        """
        self.mean, self.log_std = mean, log_std
        self.behaviour_log_std = log_std if self.min_entropy is None else widened_log_std(log_std, self.min_entropy)
        self._reference_outputs = reference_outputs
        return self

    @property
    def distribution(self) -> Normal | MixtureSameFamily:  # type: ignore[override]  # SB3 declares an attribute
        """torch's own form of the mixture, made on each access."""
        std = self.behaviour_log_std.exp().expand_as(self.mean)
        if not self.floor:
            return Normal(self.mean, std)
        means = torch.stack((self.mean, self.reference_mean.to(self.mean).expand_as(self.mean)), dim=1)
        stds = torch.stack((std, self.reference_std.to(std).expand_as(std)), dim=1)
        shares = std.new_tensor([1 - self.floor, self.floor]).expand(len(std), 2)
        return MixtureSameFamily(Categorical(shares), Independent(Normal(means, stds), 1))

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-density of the mixture, `[B]`.

        Args:
            actions: `[B, D]`, before clipping.
        """
        if not self.floor:
            return gaussian_log_prob(actions, self.mean, self.behaviour_log_std)
        return gaussian_mixture_log_prob(
            actions, self.mean, self.log_std, self.reference_mean, self.reference_std, floor=self.floor
        )

    def sample(self) -> Tensor:
        """Draw actions, `[B, D]`; without a floor they have the gradient of Stable-Baselines3's."""
        noise = torch.randn_like(self.mean)
        own = self.mean + self.behaviour_log_std.exp() * noise
        if not self.floor:
            return own
        from_reference = torch.rand(len(own), 1, device=own.device) < self.floor
        # A draw that chooses its component has no gradient along the draw.
        return torch.where(from_reference, self.reference_mean + self.reference_std * noise, own).detach()

    def mode(self) -> Tensor:
        """The network's mean, `[B, D]`, with a floor too."""
        return self.mean

    def one_action(self, outputs: Tensor, log_std: Tensor, masks: None, deterministic: bool) -> NDArray[Any] | None:
        """The action in one state, `[1, D]`, as `mode` and `sample` give it, drawn alike; None: they have to.

        Args:
            outputs: the network's, `[1, D]`.
            log_std: `[D]`.
            masks: none.
            deterministic: the mean, else a drawn action.
        """
        if deterministic:
            return outputs.numpy()
        std = deviations(tuple(log_std.tolist()), self.min_entropy)
        if std is None:
            return None
        noise = torch.randn_like(outputs)
        if self.floor and torch.rand(1).item() < float(np.float32(self.floor)):  # rounded as in `sample`
            return noise.mul_(self.reference_std).add_(self.reference_mean).numpy()
        drawn: NDArray[Any] = noise.numpy() * std + outputs.numpy()  # numpy's calls take half the time of torch's
        return drawn

    def network_entropy(self) -> Tensor:
        """Differential entropy of `N(mean, std²)`, `[B]`."""
        return gaussian_entropy(self.log_std).expand(len(self.mean))

    def mixture_entropy(self) -> Tensor | None:
        """Without a floor the entropy of the behaviour policy; None with one."""
        return None if self.floor else gaussian_entropy(self.behaviour_log_std).expand(len(self.mean))

    @torch.no_grad()
    def mixture_entropy_estimate(self, num_samples: int = 64, *, seed: int = 0) -> Tensor:
        """Entropy of the mixture from samples, `[B]`, without a graph; exact without a floor.

        Both components are sampled and weighed by their shares. The draws come from a generator of their own, so that
        measuring changes nothing else that is random, and are the same each time.

        Args:
            num_samples: of each component in each state.
            seed: of the generator.

        Raises:
            TypeError: `num_samples` is no whole number.
            ValueError: it is below 1.
        """
        check_positive_int("num_samples", num_samples)
        exact = self.mixture_entropy()
        if exact is not None:
            return exact
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
        """Without a floor the behaviour policy's differential entropy of each dimension, `[B]` each; None with one."""
        if self.floor:
            return None
        each = self.behaviour_log_std.expand_as(self.mean).unsqueeze(-1)
        return [gaussian_entropy(part) for part in each.unbind(1)]


class MixedCategorical(RegularisedDistribution):
    """`(1 - floor) · pi + floor · reference`, component by component, over the legal choices.

    A distribution of Stable-Baselines3 for Discrete, MultiDiscrete and MultiBinary actions. pi is the network's policy;
    log-probability, entropy and mode of the mixture are exact. One log-softmax serves all of them. Values are
    `[B]`, summed over the components, in nats.

    Args:
        kind: of action space.
        dims: number of choices of each component; MultiBinary: 2 for each bit.
        references: one recipe a component, whose background around the network's greedy legal choice (without a
            gradient) is the reference; None: uniform over the legal choices.
        floor: in [0, 1].
        min_entropy: in [0, 1], a fraction of log n_legal that the mixture's entropy never falls below: each component
            of each state has the floor `guaranteed_floor(min_entropy, n_legal)` of the uniform. Without a floor and
            references of its own; 0: none.
        entropy_term: gives `entropy()`; None: see `regularised`.
        regularised: `entropy()` gives `-KL(reference‖pi)` where there is no entropy term.
        start: the first action, of each dimension for MultiDiscrete; None: 0.

    Raises:
        TypeError: a floor that is no number.
        ValueError: an unknown kind, a floor out of range, dims or references that do not fit.

    Examples:
        >>> mixture = MixedCategorical("discrete", (2,), floor=0.2).proba_distribution(torch.tensor([[100.0, 0.0]]))
        >>> mixture.probabilities()
        (tensor([[0.9000, 0.1000]]),)
    """

    def __init__(
        self,
        kind: Literal["discrete", "multi_discrete", "multi_binary"],
        dims: tuple[int, ...],
        *,
        references: tuple[Smoothing | None, ...] | None = None,
        floor: float = 0.0,
        min_entropy: float = 0.0,
        entropy_term: EntropyTerm | None = None,
        regularised: bool = False,
        start: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(entropy_term, regularised=regularised)
        check_choice("kind", kind, ("discrete", "multi_discrete", "multi_binary"))
        if not dims or (kind == "discrete" and len(dims) != 1):
            raise ValueError(f"dims={dims!r} does not fit kind={kind!r}: give the number of choices of each component.")
        if references is not None and len(references) != len(dims):
            raise ValueError(f"references has {len(references)} entries for {len(dims)} components: give one for each.")
        self.kind = kind
        self.dims = dims
        self.references = references
        self.floor = check_in_range("floor", floor, 0.0, 1.0)
        self.min_entropy = check_in_range("min_entropy", min_entropy, 0.0, 1.0)
        self.start = start

    @classmethod
    def from_sb3(
        cls,
        distribution: Distribution,
        *,
        references: tuple[Smoothing | None, ...] | None = None,
        reference_outputs: Tensor | None = None,
    ) -> MixedCategorical:
        """A discrete distribution of Stable-Baselines3 or sb3-contrib, masks included, without a floor.

        Args:
            distribution: theirs, with its parameters; a `MixedCategorical` is given back.
            references: one recipe a component, or None for uniform.
            reference_outputs: outputs of a policy that is the reference of KL, or None.

        Raises:
            TypeError: the distribution is neither categorical nor Bernoulli.
        """
        if isinstance(distribution, cls):
            return distribution
        # sb3-contrib, which may be missing, keeps several in another attribute, and masks that torch's don't have.
        own: Any = getattr(distribution, "distributions", None) or distribution.distribution
        if isinstance(own, Bernoulli):
            dims = (2,) * own.logits.shape[-1]
            mixture = cls("multi_binary", dims, references=references)
            return mixture.proba_distribution(own.logits, reference_outputs)
        parts = own if isinstance(own, list) else [own]
        if not all(isinstance(part, Categorical) for part in parts):
            raise TypeError(f"distribution must be categorical or Bernoulli, got {type(distribution).__name__}.")
        kind: Literal["discrete", "multi_discrete"] = "multi_discrete" if isinstance(own, list) else "discrete"
        dims, start = tuple(part.logits.shape[-1] for part in parts), getattr(distribution, "start", None)
        mixture = cls(kind, dims, references=references, start=start)
        mixture.proba_distribution(torch.cat([part.logits for part in parts], dim=-1), reference_outputs)
        masks = [mask for part in parts if (mask := getattr(part, "masks", None)) is not None]
        if masks:  # of all components, or of none
            mixture.apply_masking(torch.cat(masks, dim=-1))
        return mixture

    def proba_distribution_net(self, latent_dim: int) -> nn.Module:
        """The layer of the logits, one a bit for MultiBinary, as Stable-Baselines3's."""
        return nn.Linear(latent_dim, len(self.dims) if self.kind == "multi_binary" else sum(self.dims))

    def proba_distribution(self, outputs: Tensor, reference_outputs: Tensor | None = None) -> MixedCategorical:
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
            ValueError: an array of a wrong size, or a state where nothing is legal (tensors are not read).
        """
        legal = component_masks(masks, self.dims, self._logits.device)
        self._mask = legal.squeeze(-2) if legal is not None and self.kind == "discrete" else legal
        self._network: Tensor | None = None
        self._mixture: Tensor | None = None
        self._entropy: Tensor | None = None
        self._static: tuple[Tensor | None] | None = None

    @property
    def distribution(self) -> Categorical | Bernoulli | list[Categorical]:  # type: ignore[override]
        """torch's own form of the mixture, as Stable-Baselines3 has it, made on each access."""
        log_probs = self._mixture_log_probs()
        if self.kind == "discrete":
            return Categorical(logits=log_probs)
        if self._is_bernoulli:
            return Bernoulli(logits=log_probs[..., 1] - log_probs[..., 0])
        return self.distributions

    @property
    def distributions(self) -> list[Categorical]:
        """One for each component."""
        return [Categorical(logits=part) for part in self._by_dimension(self._mixture_log_probs())]

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-probability of the mixture, `[B]`; -inf for an illegal action.

        Args:
            actions: whole numbers of any dtype, `[B]` or `[B, D]`.
        """
        log_probs = self._mixture_log_probs()
        actions = actions.long().reshape(log_probs.shape[:-1])
        places = (actions if self.start is None else shifted(actions, self.start, sign=-1)).unsqueeze(-1)
        return self._sum(log_probs.gather(-1, places).squeeze(-1))

    def sample(self) -> Tensor:
        """Draw actions: int64 `[B]` for Discrete, else `[B, D]` (a bit with one logit: as floating-point numbers)."""
        probabilities = self._mixture_log_probs().detach().exp()
        drawn = torch.multinomial(probabilities.reshape(-1, probabilities.shape[-1]), 1, replacement=True)
        return self._as_actions(drawn.reshape(probabilities.shape[:-1]))

    def mode(self) -> Tensor:
        """The most probable action of the mixture, in the form of `sample`."""
        return self._as_actions(self._mixture_log_probs().argmax(-1))

    def one_action(self, outputs: Tensor, log_std: None, masks: Any, deterministic: bool) -> NDArray[Any] | None:
        """The action in one state as `mode` and `sample` give it, drawn alike, by Python's numbers; None: they have to.

        Args:
            outputs: `[1, number of outputs]`, which `proba_distribution` has not taken.
            log_std: none.
            masks: as `apply_masking`'s.
            deterministic: the most probable action, else a drawn one.
        """
        mixed = self._mixed(outputs, masks)
        if mixed is None or deterministic:
            chosen: list[int | None] = [None] if mixed is None else [_sure_place(each) for each in mixed]
            return None if None in chosen else self._as_array(chosen)
        noise = torch.empty(len(self.dims), max(self.dims)).exponential_()  # as torch.multinomial draws one action
        pairs = zip(mixed, noise.tolist(), strict=True)
        chosen = [_sure_place(list(map(truediv, each, row))) if all(row) else None for each, row in pairs]
        if None not in chosen:
            return self._as_array(chosen)
        with torch.no_grad():
            self.proba_distribution(outputs).apply_masking(masks)
            probabilities = self._mixture_log_probs().exp()
            drawn = (probabilities.reshape(noise.shape) / noise).argmax(-1)
            return self._as_actions(drawn.reshape(probabilities.shape[:-1])).numpy()

    def _as_array(self, chosen: list[int | None]) -> NDArray[Any]:
        return np.array(chosen, np.float32 if self._is_bernoulli else np.int64)

    def _mixed(self, outputs: Tensor, masks: Any) -> list[list[float]] | None:
        """Each component's mixture in one state, up to a factor, as numbers; None: they may be too imprecise."""
        if self.start is not None or outputs.shape[1] > MOST_VALUES:
            return None
        values: list[float] = outputs.tolist()[0]
        if not math.hypot(*values) < _MODERATE:  # or one is NaN
            return None
        self._is_bernoulli = self.kind == "multi_binary" and len(values) == len(self.dims)
        weights = list(map(math.exp, values))
        if self._is_bernoulli:
            weights = [one for weight in weights for one in (1.0, weight)]
        if masks is not None:
            if type(masks) is not np.ndarray or masks.size != len(weights):
                return None
            weights = [one if legal else 0.0 for one, legal in zip(weights, masks.ravel().tolist(), strict=True)]
        found, start = [], 0
        for size, recipe in zip(self.dims, self.references or repeat(None), strict=False):
            own = weights[start : start + size]
            start, count = start + size, size - own.count(0.0)
            floor = self.floor or guaranteed_floor(self.min_entropy, count)
            rest, beside = 1 - floor, floor * sum(own)
            if recipe is None and count:
                each = beside / count
                found.append([rest * one + each if one else 0.0 for one in own])
                continue
            greedy = _sure_place(list(own)) if count == size else None
            row = None if greedy is None or recipe is None else reference_row(recipe, size, greedy)
            if row is None:
                return None
            found.append([rest * one + beside * share for one, share in zip(own, row, strict=True)])
        return found

    def network_entropy(self) -> Tensor:
        """Entropy of pi, `[B]`."""
        found = self._entropy
        if found is None or self._needs_regraph(found):
            found = self._sum(entropy_of(self._log_probs()))
            self._entropy = found
        return found

    def mixture_entropy(self) -> Tensor:
        """Entropy of the mixture, `[B]`."""
        return self._sum(entropy_of(self._mixture_log_probs())) if self._is_mixed else self.network_entropy()

    def entropies_by_dimension(self) -> list[Tensor]:
        """Entropy of each component of the mixture, `[B]` each."""
        entropies = entropy_of(self._mixture_log_probs())
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
        """`H / log n` of the mixture, n the number of legal joint actions, and whether n is at least 2: `[B]` each.

        A state with one legal action has the fraction 0.
        """
        entropies = self.mixture_entropy()
        if self._mask is None or self._mask.ndim < self._logits.ndim:
            log_n = torch.full_like(entropies, sum(math.log(size) for size in self.dims))
        else:
            log_n = self._sum(self._mask.sum(-1).to(entropies.dtype).log())
        return entropy_fractions(entropies, log_n)

    def probabilities(self) -> tuple[Tensor, ...]:
        """Probabilities of the mixture, `[B, K_d]` for each component; 0 where illegal."""
        return tuple(part.exp() for part in self._by_dimension(self._mixture_log_probs()))

    def _components_of(self, outputs: Tensor) -> Tensor:
        return outputs if self.kind == "discrete" else component_logits(outputs, self.dims, self._is_bernoulli)

    def _by_dimension(self, values: Tensor) -> list[Tensor]:
        if self.kind == "discrete":
            return [values]
        return [part[:, :size] for part, size in zip(values.unbind(1), self.dims, strict=True)]

    def _sum(self, values: Tensor) -> Tensor:
        return values if self.kind == "discrete" else values.sum(-1)

    def _as_actions(self, choices: Tensor) -> Tensor:
        choices = choices if self.start is None else shifted(choices, self.start)
        return choices.to(self._logits.dtype) if self._is_bernoulli else choices

    def _needs_regraph(self, kept: Tensor) -> bool:
        """Whether `kept` was made without a graph that is wanted now."""
        return self._logits.requires_grad and not kept.requires_grad and torch.is_grad_enabled()

    def _log_probs(self) -> Tensor:
        """`log pi`, `[B, K]` or `[B, D, K]`."""
        found = self._network
        if found is None or self._needs_regraph(found):
            found = log_probabilities(self._logits, self._mask)
            self._network = found
        return found

    @property
    def _is_mixed(self) -> bool:
        return self.floor > 0 or self.min_entropy > 0

    def _mixture_log_probs(self) -> Tensor:
        if not self._is_mixed:
            return self._log_probs()
        found = self._mixture
        if found is None or self._needs_regraph(found):
            log_probs, mask = self._log_probs(), self._mask
            if not self.min_entropy:
                found = mixture_log_probabilities(log_probs, self._reference(), floor=self.floor, mask=mask)
            elif mask is None:
                found = mixture_log_probabilities(log_probs, floor=guaranteed_floor(self.min_entropy, self.dims[0]))
            else:
                floors = guaranteed_floors(self.min_entropy, max(self.dims), log_probs.dtype, log_probs.device)
                found = mixture_log_probabilities(log_probs, floor=floors[mask.sum(-1, keepdim=True)], mask=mask)
            self._mixture = found
        return found

    def _reference(self) -> Tensor | None:
        """The static reference: `[B, K]` or `[B, D, K]`; None: uniform over the legal choices."""
        if self.references is None:
            return None
        if self._static is None:
            self._static = (
                reference_distributions(self.references, self.dims, self._log_probs().detach(), self._mask),
            )
        return self._static[0]


class GSDEEntropyTerm(RegularisedDistribution):
    """A gSDE distribution of Stable-Baselines3 whose `entropy()` is the entropy term, or `-KL(reference‖pi)`.

    KL is that of the Gaussians before squashing: squashing both does not change it. A squashed policy's entropy has no
    closed form; as in Stable-Baselines3, `-log_prob` of the last actions is its estimate.

    Args:
        noise: the distribution of Stable-Baselines3, which does all the rest.
        gaussian: the same, before squashing.
        entropy_term: gives `entropy()`; None: `-KL(reference‖pi)`.
    """

    def __init__(
        self, noise: StateDependentNoiseDistribution, gaussian: MixedGaussian, entropy_term: EntropyTerm | None
    ) -> None:
        super().__init__(entropy_term, regularised=True)
        self.noise = noise
        self.gaussian = gaussian
        self.distribution = noise.distribution
        self._log_prob: Tensor | None = None

    def proba_distribution_net(self, *args: Any, **kwargs: Any) -> Any:
        """gSDE's layers."""
        return self.noise.proba_distribution_net(*args, **kwargs)

    def proba_distribution(self, *args: Any, **kwargs: Any) -> GSDEEntropyTerm:
        """Not used: the distribution comes with its parameters."""
        raise NotImplementedError("Make another GSDEEntropyTerm.")

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-density of gSDE's distribution, `[B]`."""
        self._log_prob = self.noise.log_prob(actions)
        return self._log_prob

    def network_entropy(self) -> Tensor:
        """H(pi), `[B]`; squashed: its estimate."""
        if self.noise.bijector is None:
            return self.gaussian.network_entropy()
        assert self._log_prob is not None, "log_prob comes first, as in evaluate_actions"
        return -self._log_prob

    def kl_reference(self) -> Tensor:
        """KL(reference‖pi), `[B]`."""
        return self.gaussian.kl_reference()

    def sample(self) -> Tensor:
        """Draw actions."""
        return self.noise.sample()

    def mode(self) -> Tensor:
        """The mean action."""
        return self.noise.mode()

    def actions_from_params(self, *args: Any, **kwargs: Any) -> Tensor:
        """`get_actions` for the network's outputs."""
        return self.noise.actions_from_params(*args, **kwargs)

    def log_prob_from_params(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Draw actions for the network's outputs; actions and their log-densities."""
        return self.noise.log_prob_from_params(*args, **kwargs)
