"""Log-probabilities, entropy, KL divergence and exact mixtures of policies, all from one log-softmax.

`log_probabilities` is taken once a minibatch; everything else reads its result. Reinforcement learning has many small
minibatches of few classes, where the number of steps counts: these are torch's own, few, and wait for no device.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

from rlsmooth.checks import check_in_range
from rlsmooth.losses.arguments import check_logits, compute_dtype
from rlsmooth.losses.gaussian import HALF_LOG_TWO_PI
from rlsmooth.targets.arguments import kind_of
from rlsmooth.targets.target import Target

_NO_PROBABILITY = -1e4  # exp() of it is 0 in float64 too, and no gradient times it overflows


def log_probabilities(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """`log softmax(logits)` over the legal classes, `[..., K]`, in nats.

    An illegal class gets -inf and a gradient of exactly 0, whatever its logit holds (-1e8, -inf, NaN). A NaN or +inf
    among the legal logits, or a row without a legal class, makes the row NaN.

    Args:
        logits: `[..., K]`. Half precision is computed and returned in float32.
        mask: bool, broadcasts to `[..., K]`, True = legal.

    Raises:
        TypeError: logits that are not floating-point, a mask that is not bool.
        ValueError: logits without a class axis, a mask that does not broadcast.

    Examples:
        >>> log_probabilities(torch.tensor([[0.0, 0.0, 7.0]]), torch.tensor([True, True, False]))
        tensor([[-0.6931, -0.6931,    -inf]])
    """
    mask = check_logits(logits, mask)
    values = logits.to(compute_dtype(logits.dtype))
    if mask is not None:
        values = values.masked_fill(~mask, -torch.inf)
    return values.log_softmax(-1)


def normalised_logits(logits: Tensor) -> tuple[Tensor, Tensor]:
    """`(logits - logsumexp(logits), logsumexp(logits))`, `[..., K]` and `[..., 1]`, as torch's `Categorical` has them.

    Unlike `log_probabilities`, unchecked, and with the last bit of `Categorical`: for what must equal it bit for bit.

    Args:
        logits: `[..., K]`.

    Examples:
        >>> normalised_logits(torch.zeros(1, 2))
        (tensor([[-0.6931, -0.6931]]), tensor([[0.6931]]))
    """
    total = logits.logsumexp(dim=-1, keepdim=True)
    return logits - total, total


def entropy_of(log_probs: Tensor) -> Tensor:
    """`-sum_k p(k) log p(k)` in nats, `[...]`, with `0 log 0 = 0` in value and gradient.

    Args:
        log_probs: `[..., K]`, as `log_probabilities` or `mixture_log_probabilities` gave them; illegal classes at -inf.

    Raises:
        TypeError: they are not floating-point.
        ValueError: they have no class axis.

    Examples:
        >>> entropy_of(log_probabilities(torch.tensor([[0.0, 0.0, -torch.inf]])))
        tensor([0.6931])
    """
    check_logits(log_probs, None, "log_probs")
    # Clamped where exp() is 0 anyway: 0 · -inf would be NaN.
    return -(log_probs.exp() * log_probs.clamp_min(_NO_PROBABILITY)).sum(-1)


def kl_from_log_probabilities(
    log_probs: Tensor, reference: Target | Tensor | None = None, *, mask: Tensor | None = None
) -> Tensor:
    """`KL(reference‖p) = sum_k r(k) (log r(k) - log p(k))` in nats, `[...]`.

    For the uniform over all `K` classes that is `-mean_k log p(k) - log K`. It equals
    `kl_divergence(logits, reference, direction="reference_to_policy", mask=mask, reduction="none")`.

    Args:
        log_probs: `[..., K]`, as `log_probabilities` gave them.
        reference: a `Target`, or probabilities that broadcast to `[..., K]` and are 0 at illegal classes (used as
            given, without a gradient); None: uniform over the legal classes.
        mask: bool, broadcasts to `[..., K]`, True = legal; read where `reference` is None, the others know their own.

    Returns:
        `[...]`; +inf where the reference has a class of probability 0, 0 where one class is legal.

    Raises:
        TypeError: log-probabilities or a reference that are not floating-point, a mask that is not bool.
        ValueError: shapes that do not fit.

    Examples:
        >>> kl_from_log_probabilities(log_probabilities(torch.tensor([[2.0, 0.0]])))
        tensor([0.4338])
    """
    mask = check_logits(log_probs, mask, "log_probs")
    if reference is not None:
        r = _probabilities(reference, log_probs)
        # A class that the reference lacks adds 0, even where its log-probability is -inf.
        expected = (r * log_probs.masked_fill(r == 0, 0.0)).sum(-1)
        return torch.xlogy(r, r).sum(-1) - expected
    if mask is None:
        # One step less than `-mean - log K`
        return torch.rsub(log_probs.mean(-1), -math.log(log_probs.shape[-1]))
    legal = mask.sum(-1).to(log_probs.dtype)
    return -log_probs.masked_fill(~mask, 0.0).sum(-1) / legal - legal.log()


def mixture_log_probabilities(
    log_probs: Tensor, reference: Target | Tensor | None = None, *, floor: float | Tensor, mask: Tensor | None = None
) -> Tensor:
    """`log((1 - floor) · p(k) + floor · r(k))`, `[..., K]`: the behaviour policy under an exploration floor.

    Taken in logarithms, so that it stays exact, and its gradient finite, where `p` underflows and where `r` is 0.

    Args:
        log_probs: `[..., K]`, as `log_probabilities` gave them.
        reference: `r`: a `Target`, or probabilities that broadcast to `[..., K]` and are 0 at illegal classes (used as
            given, without a gradient); None: uniform over the legal classes.
        floor: in [0, 1]; 0 gives `log_probs` itself. Or a tensor, `[..., 1]`, of such (not checked), one a row.
        mask: bool, broadcasts to `[..., K]`, True = legal; read where `reference` is None.

    Raises:
        TypeError: log-probabilities or a reference that are not floating-point, a mask that is not bool, a floor that
            is no number.
        ValueError: shapes that do not fit, a floor out of range.

    Examples:
        >>> mixture_log_probabilities(torch.tensor([[0.0, -torch.inf]]), floor=0.2).exp()
        tensor([[0.9000, 0.1000]])
    """
    mask = check_logits(log_probs, mask, "log_probs")
    share = floor if isinstance(floor, Tensor) else check_in_range("floor", floor, 0.0, 1.0)
    if not isinstance(share, Tensor) and share == 0:
        return log_probs
    if reference is not None:
        log_r = _probabilities(reference, log_probs).log()
    elif mask is not None:
        log_r = torch.where(mask, -mask.sum(-1, keepdim=True).to(log_probs.dtype).log(), -torch.inf)
    elif isinstance(share, Tensor):
        log_r = torch.full_like(log_probs, -math.log(log_probs.shape[-1]))
    else:
        each = torch.full((), math.log(share / log_probs.shape[-1]), dtype=log_probs.dtype, device=log_probs.device)
        return torch.logaddexp(log_probs + _log(1 - share), each)  # never -inf
    certain = torch.minimum(log_probs.detach(), log_r) == 0
    # Where one class is legal: exactly 0, which the sum of two rounded shares may miss.
    return _log_mixture(log_probs, log_r, share).masked_fill(certain, 0.0)


@functools.lru_cache(maxsize=4096)
def guaranteed_floor(frac: float, num_actions: int) -> float:
    """The least floor f for which every mixture `(1 - f) · p + f · uniform` has an entropy of at least `frac · log n`.

    Every distribution p over n actions is majorised by the certain one, `e_1`; hence `(1 - f) · p + f · u` is by
    `(1 - f) · e_1 + f · u`: the uniform u shifts all actions alike. Entropy is Schur-concave, so that for every p

        H((1 - f) · p + f · u)  >=  H((1 - f) · e_1 + f · u),

    with equality where p is certain. The right side rises with f, from 0 to log n; f is where it is `frac · log n`.
    It is concave in f, hence at least `f · log n`, so that f is at most `frac`. It is found by bisection in float64,
    and rounded upwards to float32. A joint action of independent components has the sum of their entropies and of
    their `log n`: where each component has its own f, the bound holds for the joint action too.

    Args:
        frac: in [0, 1].
        num_actions: n, at least 1; for one action f is 0.

    Raises:
        TypeError: `frac` is no number.
        ValueError: it is out of range.

    Examples:
        >>> [round(guaranteed_floor(0.5, n), 4) for n in (1, 2, 3, 18, 100)]
        [0.0, 0.2201, 0.2392, 0.3132, 0.3626]
    """
    check_in_range("frac", frac, 0.0, 1.0)
    n, low, high = num_actions, 0.0, float(frac)
    if n < 2 or high == 0.0:
        return 0.0
    while low < (middle := (low + high) / 2) < high:
        others = middle * (n - 1) / n  # the probability of all but the likeliest action
        entropy = -(1 - others) * math.log1p(-others) - others * math.log(middle / n)
        low, high = (low, middle) if entropy >= frac * math.log(n) else (middle, high)
    return min(float(np.nextafter(np.float32(high), np.float32(2))), 1.0)  # above `high`, however that was rounded


@functools.lru_cache(maxsize=64)
def guaranteed_floors(frac: float, most: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`guaranteed_floor(frac, n)` for n = 0 to `most`, `[most + 1]`: a table to look up by the number of legal actions.

    Examples:
        >>> guaranteed_floors(0.5, 3, torch.float32, torch.device("cpu"))
        tensor([0.0000, 0.0000, 0.2201, 0.2392])
    """
    with torch.inference_mode(False):
        return torch.tensor([guaranteed_floor(frac, n) for n in range(most + 1)], dtype=dtype, device=device)


def gaussian_log_prob(actions: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """`log N(a; mean, std^2)` of diagonal Gaussians, summed over the action's dimensions, `[...]`, in nats.

    `-sum_d ((a_d - mean_d)^2 / (2 std_d^2) + log std_d + log(2 pi) / 2)`

    Args:
        actions: broadcasts with `mean`, `[..., D]`.
        mean: `[..., D]`.
        log_std: broadcasts to `[..., D]`.

    Raises:
        TypeError: a mean that is not floating-point.

    Examples:
        >>> gaussian_log_prob(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(2))
        tensor([-1.8379])
    """
    check_logits(mean, None, "mean")
    dtype = compute_dtype(mean.dtype)
    log_std = log_std.to(dtype)
    if log_std.shape[-1:] != mean.shape[-1:]:
        log_std = log_std.expand(*log_std.shape[:-1], mean.shape[-1])
    standard = (actions.to(dtype) - mean.to(dtype)) * torch.exp(-log_std)
    return standard.square().sum(-1) * -0.5 - (log_std + HALF_LOG_TWO_PI).sum(-1)


def gaussian_mixture_log_prob(
    actions: Tensor,
    mean: Tensor,
    log_std: Tensor,
    reference_mean: Tensor,
    reference_std: Tensor,
    *,
    floor: float,
) -> Tensor:
    """`log((1 - floor) · N(a; mean, std^2) + floor · N(a; reference_mean, reference_std^2))`, `[...]`, in nats.

    One draw decides for the whole vector: the mixture's components are diagonal, the mixture is not.

    Args:
        actions: `[..., D]`.
        mean: `[..., D]`, the policy's.
        log_std: broadcasts to `[..., D]`, the policy's.
        reference_mean: broadcasts to `[..., D]`.
        reference_std: broadcasts to `[..., D]`, above 0.
        floor: in [0, 1]; 0 gives `gaussian_log_prob`.

    Raises:
        TypeError: a mean that is not floating-point, a floor that is no number.
        ValueError: a floor out of range.

    Examples:
        >>> one = torch.ones(1, 1)
        >>> gaussian_mixture_log_prob(0 * one, 0 * one, 0 * one, 0 * one, one, floor=0.1)
        tensor([-0.9189])
    """
    share = check_in_range("floor", floor, 0.0, 1.0)
    own = gaussian_log_prob(actions, mean, log_std)
    if share == 0:
        return own
    other = gaussian_log_prob(actions, reference_mean, reference_std.log())
    return _log_mixture(own, other.to(own.dtype), share)


def gaussian_mixture_entropy_estimate(
    mean: Tensor, log_std: Tensor, reference_mean: Tensor, reference_std: Tensor, *, floor: float, noise: Tensor
) -> Tensor:
    """Entropy of the mixture of `gaussian_mixture_log_prob` from samples, `[...]`, in nats: it has no closed form.

    `-(1 - floor) · mean_s log q(mean + std · z_s) - floor · mean_s log q(reference_mean + reference_std · z_s)`, with q
    the mixture's density: both components are sampled, and weighed by their shares.

    Args:
        mean: `[..., D]`, the policy's.
        log_std: broadcasts to `[..., D]`, the policy's.
        reference_mean: broadcasts to `[..., D]`.
        reference_std: broadcasts to `[..., D]`, above 0.
        floor: in [0, 1].
        noise: standard normal draws z, `[S, ..., D]`.

    Raises:
        TypeError: a mean that is not floating-point, a floor that is no number.
        ValueError: a floor out of range.

    Examples:
        >>> one, draws = torch.ones(1, 1), torch.tensor([[[1.0]], [[-1.0]]])
        >>> gaussian_mixture_entropy_estimate(0 * one, 0 * one, 0 * one, one, floor=0.1, noise=draws)
        tensor([1.4189])
    """

    def surprise(actions: Tensor) -> Tensor:
        return -gaussian_mixture_log_prob(actions, mean, log_std, reference_mean, reference_std, floor=floor).mean(0)

    own, other = surprise(mean + log_std.exp() * noise), surprise(reference_mean + reference_std * noise)
    return (1 - floor) * own + floor * other


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _log_mixture(log_p: Tensor, log_r: Tensor, share: float | Tensor) -> Tensor:
    """`log((1 - share) · p + share · r)`; the gradient is 0 where both are 0, for which torch's own has NaN."""
    if isinstance(share, Tensor):
        first, second = log_p + torch.log1p(-share), log_r + share.log()
    else:
        first, second = log_p + _log(1 - share), log_r + math.log(share)
    neither = torch.maximum(first.detach(), second) == -torch.inf
    return torch.logaddexp(first.masked_fill(neither, 0.0), second).masked_fill(neither, -torch.inf)


def _probabilities(reference: Target | Tensor, log_probs: Tensor) -> Tensor:
    if isinstance(reference, Target):
        if reference.num_classes != log_probs.shape[-1]:
            raise ValueError(
                f"reference is for {reference.num_classes} classes, log_probs have shape {tuple(log_probs.shape)}."
            )
        return reference.dense(log_probs.dtype)
    if not isinstance(reference, Tensor) or not reference.is_floating_point():
        raise TypeError(
            f"reference must be a Target, a floating-point tensor of probabilities or None, got {kind_of(reference)}."
        )
    return reference.detach().to(log_probs.dtype)
