"""The entropy term of an algorithm's loss, and the feedback that holds a policy's entropy at a target.

Stable-Baselines3's losses subtract `ent_coef · entropy`; a smoothed policy returns an `EntropyTerm`'s values there.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from torch import Tensor

from rlsmooth.agents.smoothed.references import References
from rlsmooth.agents.spaces import action_components, box_reference
from rlsmooth.checks import check_in_range
from rlsmooth.losses import gaussian_entropy
from rlsmooth.schedules import ScheduleLike, start_of, value_at
from rlsmooth.targets import Smoothing

LOWEST_ALPHA, HIGHEST_ALPHA = 1e-6, 1e2
INITIAL_ALPHA = 0.01
LOG_RANGE = (math.log(LOWEST_ALPHA) + 3e-6, math.log(HIGHEST_ALPHA) - 3e-6)  # float32's rounding stays inside

# Chosen on CartPole-v1 (PPO at two settings, A2C; targets of 0.5 to 0.9) and Pendulum-v1.
PROPORTIONAL = 10.0
INTEGRAL = 0.2
SLOWEST_FALL = 0.02
MOVED, FURTHEST = 0.2, 0.2  # of the set-point: in a rollout, of the error; from the target, of the scale

TARGETS = ("target_entropy_frac", "target_entropy_nats")
"""The arguments that give an algorithm an entropy target, which exclude each other."""


def target_in(arguments: Mapping[str, Any]) -> str | None:
    """The one of `TARGETS` that is given, or None.

    Examples:
        >>> target_in({"target_entropy_frac": None, "target_entropy_nats": 0.5})
        'target_entropy_nats'
    """
    return next((name for name in TARGETS if arguments.get(name) is not None), None)


class EntropyTarget:
    """Feedback on log alpha, one step for each gradient step: a proportional and an integral part.

        error = (set-point - mean entropy of the minibatch's states) / scale
        integral <- integral + 0.2 · max(error, -0.02)
        log alpha = integral + 10 · error

    Both logarithms are clamped to [log 1e-6, log 1e2]. Alpha rises fast where the entropy is too low, and the
    proportional part raises it before a falling entropy reaches the target. The integral falls slowly, and not at all
    while alpha is 1e-6, so that it does not run away while the entropy is far above the target: KL(reference‖pi) can
    only be added, so a policy whose entropy exceeds the target by itself stays above it.

    The minibatches see the policy amid its updates, and rollouts the one after them, whose entropy is another, so that
    a mean at the target in the former is none in the latter. The set-point begins at the target and is moved once a
    rollout by 0.2 · (target - mean entropy of the behaviour policy in the rollout's states), up to a fifth of the scale
    from the target. It stays while the entropy is further from the target than that, since the policy is not held yet,
    and is not lowered while alpha is 1e-6.

    Args:
        target: a fraction of log n_legal, or nats.
        is_fraction: which of the two.
        scale: the difference that counts as an error of 1: the target itself, or a Box's number of dimensions in nats.
        initial_alpha: to start from.
        device: of the training.

    Attributes:
        state: float32 `[2]` on the device: the integral and the last error.
        set_point: the entropy that the feedback holds.

    Examples:
        >>> feedback = EntropyTarget(0.5, is_fraction=False, scale=0.5)
        >>> feedback.update(torch.tensor([0.1, 0.2]), None, None)
        >>> bool(feedback.coefficient() > 0.01)
        True
    """

    def __init__(
        self,
        target: float,
        *,
        is_fraction: bool,
        scale: float,
        initial_alpha: float = INITIAL_ALPHA,
        device: torch.device | str = "cpu",
    ) -> None:
        self.target = target
        self.is_fraction = is_fraction
        self.scale = scale
        self.state = torch.tensor([math.log(initial_alpha), 0.0], device=device)
        self.set_point = target

    def coefficient(self) -> Tensor:
        """Alpha in force: 0-dimensional, on the device, without a graph."""
        integral, error = self.state.unbind()
        return (integral + PROPORTIONAL * error).clamp(*LOG_RANGE).exp()

    def is_new(self) -> bool:
        """Whether it has seen no minibatch yet; waits for the device."""
        return not self.state[1]

    def moved(self, set_point: float, measured: float) -> float:
        """A rollout's set-point from the last one and the mean entropy measured in its states; waits for the device."""
        error, reach = self.target - measured, FURTHEST * self.scale
        if abs(error) > reach or (error < 0 and self.coefficient() < 2 * LOWEST_ALPHA):
            error = 0.0  # the set-point stays, if it is not that of another target, given when the run was loaded
        return min(max(set_point + MOVED * error, self.target - reach), self.target + reach)

    @torch.no_grad()
    def update(self, entropies: Tensor, fractions: tuple[Tensor, Tensor] | None, weights: Tensor | None) -> None:
        """Take one step of feedback from a minibatch, without waiting for the device.

        Args:
            entropies: `[B]`, nats, of the behaviour policy (a Box with a floor: of the network's).
            fractions: `([B], [B] bool)`: H / log n_legal, and the states with at least two legal actions, which alone
                count for a fraction; None for a Box.
            weights: `[B]`, 0 for padding; None: all states count. If none counts, there is no error.
        """
        values = entropies
        if self.is_fraction:
            assert fractions is not None
            values, has_choice = fractions
            weights = has_choice.to(values.dtype) if weights is None else has_choice * weights
        if weights is None:
            mean = values.mean()
        else:
            mean = torch.where(weights > 0, values * weights, 0.0).sum() / weights.sum()
        error = torch.where(mean.isnan(), 0.0, (self.set_point - mean) / self.scale)
        step = INTEGRAL * error.clamp_min(-SLOWEST_FALL)
        integral, last = self.state.unbind()
        last.copy_(error)
        # Where alpha is at its least already, a lower integral would only delay its rise once the entropy has fallen.
        is_least = integral + PROPORTIONAL * error <= LOG_RANGE[0]
        integral.add_(torch.where(is_least, step.clamp_min(0.0), step)).clamp_(*LOG_RANGE)


class EntropyTerm:
    """`entropy_coef · H(pi) - kl_coef · KL(reference‖pi)` of each state, in nats, and the mean of H(pi) so far.

    An algorithm sets `policy.entropy_term` for the time of a `train()` whose own `ent_coef` it sets to 1: the loss of
    Stable-Baselines3, `policy loss - ent_coef · mean(entropy term)`, then holds both terms with their coefficients.
    Both use the network's policy, without the exploration floor.

    Attributes:
        entropy_coef: the coefficient of H(pi).
        kl_coef: the coefficient of KL(reference‖pi); a number or a 0-dimensional tensor.
        target: gives the coefficient in place of `kl_coef`, and gets the entropies of each minibatch; or None.
        mask: bool `[B]`, the steps of this minibatch that count (the others pad a recurrent batch); None: all.

    Examples:
        >>> from rlsmooth.agents.smoothed.distributions import MixedCategorical
        >>> term = EntropyTerm(entropy_coef=0.5, kl_coef=1.0)
        >>> term.values(MixedCategorical("discrete", (2,)).proba_distribution(torch.zeros(1, 2)))
        tensor([0.3466])
        >>> round(term.mean_entropy(), 4)
        0.6931
    """

    def __init__(
        self,
        *,
        entropy_coef: float = 0.0,
        kl_coef: float | Tensor = 0.0,
        target: EntropyTarget | None = None,
    ) -> None:
        self.entropy_coef = entropy_coef
        self.kl_coef = kl_coef
        self.target = target
        self.mask: Tensor | None = None
        self._sum: Tensor | None = None
        self._count = 0
        self._log_alphas: list[Tensor] = []

    def values(self, distribution: RegularisedDistribution) -> Tensor:
        """The values for one minibatch, `[B]`. A coefficient of 0 adds nothing to the graph.

        Args:
            distribution: the policy's in the states of the minibatch.
        """
        coefficient = self.kl_coef if self.target is None else self.target.coefficient()
        if self.target is not None:
            self._log_alphas.append(torch.as_tensor(coefficient).log())
        with_penalty = isinstance(coefficient, Tensor) or coefficient != 0
        # The penalty first: log-probabilities that the distribution keeps for the entropy then have a graph if needed.
        penalty = coefficient * distribution.kl_reference() if with_penalty else None
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.entropy_coef != 0):
            entropies = distribution.network_entropy()
        self.record(entropies.detach())
        total = None if self.entropy_coef == 0 else self.entropy_coef * entropies
        if penalty is not None:
            total = -penalty if total is None else total - penalty
        if self.target is not None:
            self._update_target(self.target, distribution)
        return torch.zeros_like(entropies) if total is None else total

    @property
    def was_read(self) -> bool:
        """Whether a policy has asked for its values."""
        return self._count > 0

    def mean_entropy(self) -> float:
        """The mean of H(pi) over states, then minibatches; NaN before the first. Waits for the device."""
        return float("nan") if self._sum is None else float(self._sum) / self._count

    def mean_alpha(self) -> float:
        """The geometric mean of the coefficient that a target gave each minibatch. Waits for the device."""
        return float(torch.stack(self._log_alphas).mean().exp())

    def record(self, entropies: Tensor) -> None:
        """Count the entropies of a minibatch, `[B]`, in `mean_entropy`."""
        if self.mask is None:
            mean = entropies.mean()
        else:
            mean = torch.where(self.mask, entropies, 0.0).sum() / self.mask.sum()
        self._sum = mean if self._sum is None else self._sum + mean
        self._count += 1

    def _update_target(self, target: EntropyTarget, distribution: RegularisedDistribution) -> None:
        with torch.no_grad():
            exact = distribution.mixture_entropy()
            entropies = distribution.network_entropy() if exact is None else exact
            weights = None if self.mask is None else self.mask.to(entropies.dtype)
            target.update(entropies, distribution.entropy_fractions(), weights)


class RegularisedDistribution(Distribution):
    """A distribution whose `entropy()` may be an `EntropyTerm` or `-KL(reference‖pi)`; values are `[B]`, in nats.

    Args:
        entropy_term: gives `entropy()`; None: see `regularised`.
        regularised: `entropy()` gives `-KL(reference‖pi)` where there is no entropy term.
    """

    def __init__(self, entropy_term: EntropyTerm | None, *, regularised: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.entropy_term = entropy_term
        self.regularised = regularised

    @abstractmethod
    def network_entropy(self) -> Tensor:
        """H(pi) of the network's policy."""

    def mixture_entropy(self) -> Tensor | None:
        """H of the behaviour policy, exploration floor included; None where it has no closed form."""
        return self.network_entropy()

    @abstractmethod
    def kl_reference(self) -> Tensor:
        """KL(reference‖pi)."""

    def entropy_fractions(self) -> tuple[Tensor, Tensor] | None:
        """`(H / log n_legal, states with a choice)`; None: a Box's differential entropy has no greatest value."""
        return None

    def entropy(self) -> Tensor | None:
        """The entropy term's values; or `-KL(reference‖pi)`, if regularised; or the behaviour policy's entropy."""
        if self.entropy_term is not None:
            return self.entropy_term.values(self)
        return -self.kl_reference() if self.regularised else self.mixture_entropy()

    def actions_from_params(self, *outputs: Any, deterministic: bool = False) -> Tensor:
        """`get_actions` for the network's outputs."""
        return self.proba_distribution(*outputs).get_actions(deterministic)

    def log_prob_from_params(self, *outputs: Any) -> tuple[Tensor, Tensor]:
        """Draw actions for the network's outputs; actions and their log-probabilities."""
        actions = self.actions_from_params(*outputs)
        return actions, self.log_prob(actions)


def check_targets(
    frac: float | None, nats: float | None, smoothing: Smoothing, action_space: spaces.Space[object]
) -> None:
    """Raise unless at most one target is given, and one that the action space and the smoothing allow.

    Raises:
        TypeError: a target is no number.
        ValueError: both are given, one is out of range, a fraction for a Box, or an alpha that follows a schedule.
    """
    if frac is None and nats is None:
        return
    if frac is not None and nats is not None:
        raise ValueError(f"target_entropy_frac={frac} and target_entropy_nats={nats} are both given: choose one.")
    is_box = isinstance(action_space, spaces.Box)
    if frac is not None:
        if is_box:
            raise ValueError(
                f"target_entropy_frac={frac} can't be used for a Box, whose entropy has no greatest value: give "
                "target_entropy_nats (differential entropy, which may be negative)."
            )
        check_in_range("target_entropy_frac", frac, 0.0, 1.0, low_open=True)
    elif is_box:
        check_in_range("target_entropy_nats", nats)
    else:
        check_in_range("target_entropy_nats", nats, 0.0, low_open=True)
    if not smoothing.is_constant:
        raise ValueError(
            f"smoothing has the schedule alpha={smoothing.alpha!r}, but a target entropy finds alpha itself: give a "
            "number (the alpha to start from) or leave smoothing out."
        )


def nats_at(nats: ScheduleLike, progress: float, action_space: spaces.Space[object]) -> float | None:
    """The number of `min_entropy_nats` in force when `progress` remains; None: no guarantee is left.

    0 nats would still bound a schedule, and lie above a negative guarantee. So `"lin_…"` is linear in
    the least standard deviations, which fall to 0.

    Examples:
        >>> round(nats_at("lin_1.0", 0.5, spaces.Box(-1, 1, (2,))), 4), nats_at("lin_1.0", 0.0, spaces.Box(-1, 1, (2,)))
        (-0.3863, None)
    """
    if not isinstance(nats, str):
        return value_at("min_entropy_nats", nats, progress, low=-math.inf, high=math.inf)
    start = start_of("min_entropy_nats", nats)
    return start + math.prod(action_space.shape or ()) * math.log(progress) if progress > 0 else None


def check_least_entropy(
    frac: float | None,
    nats: float | None,
    target_frac: float | None,
    target_nats: float | None,
    action_space: spaces.Space[object],
) -> None:
    """Raise ValueError if a guaranteed entropy exceeds the target: the feedback could never come down to it.

    Args:
        frac: the guarantee as a fraction of log n, or None.
        nats: the guarantee in nats, or None.
        target_frac: the target as a fraction of log n, or None.
        target_nats: the target in nats, or None.
        action_space: the policy's.
    """
    components = action_components(action_space)
    log_n = 1.0 if components is None else sum(map(math.log, components[1]))
    least, target = (
        number if number is not None or share is None else share * log_n
        for share, number in ((frac, nats), (target_frac, target_nats))
    )
    if least is not None and target is not None and least > target + 1e-9:
        name, value = ("min_entropy_frac", frac) if nats is None else ("min_entropy_nats", nats)
        other, goal = (
            ("target_entropy_frac", target_frac) if target_nats is None else ("target_entropy_nats", target_nats)
        )
        raise ValueError(
            f"{name}={value} ({least:.4g} nats) exceeds {other}={goal} ({target:.4g} nats): give a guarantee that "
            "is at most the target."
        )


def entropy_target_for(
    action_space: spaces.Space[object],
    references: References | None,
    reference_std: float | None = None,
    *,
    frac: float | None,
    nats: float | None,
    initial_alpha: float,
    device: torch.device | str,
    has_static_reference: bool = True,
) -> EntropyTarget:
    """The feedback for a policy, whose reference bounds the entropy.

    Args:
        action_space: the policy's.
        references: the policy's, one a component of the action.
        reference_std: the policy's, for a Box.
        frac: the target as a fraction of log n_legal, or None.
        nats: the target in nats, or None; exactly one of the two is given.
        initial_alpha: to start from; 0: 0.01.
        device: of the training.
        has_static_reference: False where another policy is the reference, whose entropy depends on the state.

    Raises:
        ValueError: the target exceeds the reference's entropy, which no alpha can reach.
    """
    scale, greatest = _scale_and_greatest(action_space, references, reference_std)
    wanted = nats if frac is None else frac * scale
    assert wanted is not None
    if has_static_reference and wanted > greatest + 1e-6:
        given = f"target_entropy_nats={nats}" if frac is None else f"target_entropy_frac={frac} ({wanted:.4g} nats)"
        raise ValueError(
            f"{given} exceeds the entropy of the reference, {greatest:.4g} nats, towards which smoothing draws the "
            "policy: give a smaller target or a broader reference."
        )
    start = min(max(initial_alpha or INITIAL_ALPHA, LOWEST_ALPHA), HIGHEST_ALPHA)
    target = nats if frac is None else frac
    assert target is not None
    size = scale if isinstance(action_space, spaces.Box) else target
    return EntropyTarget(target, is_fraction=frac is not None, scale=size, initial_alpha=start, device=device)


def _scale_and_greatest(
    action_space: spaces.Space[object], references: References | None, reference_std: float | None
) -> tuple[float, float]:
    """`(log of the number of actions, or a Box's dimensions; the reference's greatest entropy)`."""
    components = action_components(action_space)
    if components is None:
        log_std = box_reference(action_space, reference_std)[1].log()
        return float(log_std.numel()), float(gaussian_entropy(log_std))
    sizes = components[1]
    recipes = references or (None,) * len(sizes)
    entropies = [
        math.log(size)
        if recipe is None
        else float(recipe(torch.arange(size), size).entropy().max())  # over the greedy actions
        for size, recipe in zip(sizes, recipes, strict=True)
    ]
    return sum(map(math.log, sizes)), sum(entropies)
