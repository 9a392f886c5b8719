"""Tables `[K, K]` whose row `t` says how near each class is to class `t`. Plain float64 tensors: plot them."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from rlsmooth.checks import check_choice, check_positive_int
from rlsmooth.targets.arguments import check_ordinal_parameters, first_row, values_can_be_checked
from rlsmooth.targets.special import log_incomplete_beta
from rlsmooth.targets.target import from_array, is_traced

OrdinalScheme: TypeAlias = Literal["adjacent", "triangular", "binomial", "poisson", "beta", "exponential"]
ORDINAL_SCHEMES: tuple[str, ...] = get_args(OrdinalScheme)


LEAST_LOG_SHARE = math.log(1e-30)
"""The logarithm of a share that is still a number in float32, also where many are added."""
_FAR = 1e30
"""An exponent so great that `exp(-x)` is 0 beside that of any smaller one."""


def is_steep(log_rows: Tensor) -> bool:
    """Whether a mask may leave so little of some row that its logarithms are needed; of what is compiled, always.

    Args:
        log_rows: `[K]` or `[K, K]`, each row up to a constant; -inf is no share.
    """
    if is_traced():
        return True
    shares = log_rows.log_softmax(-1)
    return bool(((shares > -torch.inf) & (shares < LEAST_LOG_SHARE)).any())


def off_label_rows(kernel: Tensor, name: str = "kernel", *, in_logarithms: bool = False) -> Tensor:
    """A similarity's rows without their label: diagonal 0, each row summing to 1.

    Args:
        kernel: float `[K, K]`, finite and non-negative. Its diagonal is ignored.
        name: what messages call it.
        in_logarithms: return the logarithms instead, each row up to a constant: none of them underflows.

    Raises:
        TypeError: it is not a floating-point tensor.
        ValueError: it is not square, has a bad value, or a row with no similarity to any other class.
    """
    kernel = from_array(kernel)
    if not isinstance(kernel, Tensor) or not kernel.is_floating_point():
        kind = str(kernel.dtype) if isinstance(kernel, Tensor) else type(kernel).__name__
        raise TypeError(f"{name} must be a floating-point tensor [K, K], got {kind}.")
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or kernel.shape[0] == 0:
        raise ValueError(f"{name} has shape {tuple(kernel.shape)}, must be square [K, K].")
    rows = kernel.detach().to(torch.float64).clone()
    check_values = values_can_be_checked(True)
    bad = first_row(~(rows.isfinite() & (rows >= 0))) if check_values else None
    if bad is not None:
        raise ValueError(f"{name}[{bad[0]}, {bad[1]}]={float(kernel[bad])!r} must be finite and at least 0.")
    rows.fill_diagonal_(0.0)
    if len(rows) == 1:
        return rows.log() if in_logarithms else rows
    bad = first_row((rows == 0).all(-1)) if check_values else None
    if bad is not None:
        raise ValueError(
            f"{name}[{bad[0]}] is 0 for every class but its own: give class {bad[0]} some similarity to another class."
        )
    if in_logarithms:
        return rows.log()
    rows = rows / rows.amax(-1, keepdim=True)  # so that the sum neither overflows nor underflows
    return rows / rows.sum(-1, keepdim=True)


def ordinal_kernel(
    num_classes: int,
    scheme: OrdinalScheme = "exponential",
    *,
    include_label: bool = False,
    width: float = 2.0,
    concentration: float = 20.0,
    decay: float = 1.0,
    power: float = 2.0,
    edge: Literal["all", "half"] = "all",
    in_logarithms: bool = False,
) -> Tensor:
    """The table of an ordinal scheme: row `t` says how a label `t` spreads over the ordered classes `k`.

    | scheme | before normalising | source |
    |---|---|---|
    | `"adjacent"` | 1 where `|k - t| = 1` | |
    | `"triangular"` | `max(0, 1 - |k - t| / width)`, symmetric under reversal | Vargas et al. 2023, fixed |
    | `"binomial"` | `Binomial(k; K - 1, (t + 0.5) / K)` | Pinto da Costa et al. 2008 |
    | `"poisson"` | `Poisson(k; t + 0.5)` cut to `k < K`; the half keeps `t` the only mode | Liu et al. 2020, fixed |
    | `"beta"` | Beta of mode `(t + 0.5) / K`, `a + b = concentration`, integrated over bins | Vargas et al. 2022 |
    | `"exponential"` | `exp(-decay · |k - t|^power)`; power 2 is SORD, power 1 the geometric | Diaz and Marathe 2019 |

    Args:
        num_classes: `K`.
        scheme: a name of the table.
        include_label: False: the label's own entry is 0 and the rest sums to 1. True: the whole distribution.
        width: of `"triangular"`, in classes; above 1.
        concentration: of `"beta"`, at least 2 (where it is flat).
        decay: of `"exponential"`, at least 0.
        power: of `"exponential"`, above 0.
        edge: of `"adjacent"`, at the first and the last class: `"all"` gives the only neighbour everything, `"half"`
            gives it a half and leaves the rest on the label.
        in_logarithms: return the logarithms instead, each row up to a constant: none of them underflows.

    Returns:
        float64 `[K, K]`, rows summing to 1 (for one class: 0, or 1 with `include_label`), or their logarithms.

    Raises:
        ValueError: an unknown scheme or a parameter outside its range; `"adjacent"` with `include_label`.

    Examples:
        >>> ordinal_kernel(4, "adjacent")[1]
        tensor([0.5000, 0.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    check_positive_int("num_classes", num_classes)
    check_choice("scheme", scheme, ORDINAL_SCHEMES)
    check_ordinal_parameters(width, concentration, decay, power, edge)
    if scheme == "adjacent" and include_label:
        raise ValueError('scheme="adjacent" says nothing of the label itself: give alpha, the mass of its neighbours.')
    if num_classes == 1:
        alone = torch.full((1, 1), float(include_label), dtype=torch.float64, device="cpu")
        return alone.log() if in_logarithms else alone
    classes = torch.arange(num_classes, dtype=torch.float64, device="cpu")  # whatever torch's default device
    label, other = classes.unsqueeze(1), classes.unsqueeze(0)
    log_weights = _log_weights(scheme, label, other, num_classes, width, concentration, decay, power)
    if not include_label:
        log_weights = log_weights.masked_fill(torch.eye(num_classes, dtype=torch.bool, device="cpu"), -math.inf)
    if scheme == "adjacent" and edge == "half":
        for end in (0, num_classes - 1):
            log_weights[end, end] = 0.0
    return log_weights if in_logarithms else log_weights.softmax(-1)


def _log_weights(
    scheme: str, label: Tensor, other: Tensor, num_classes: int, width: float, concentration: float, decay: float,
    power: float,
) -> Tensor:  # fmt: skip
    """`[K, K]`, up to a constant a row. In logarithms, so that far classes underflow only after normalising."""
    distance = (other - label).abs()
    if scheme == "adjacent":
        return (distance == 1).to(torch.float64).log()
    if scheme == "triangular":
        return (1 - distance / width).clamp_min(0).log()
    if scheme == "exponential":
        return minus_exponents(decay, distance, power)
    if scheme == "poisson":
        return other * (label + 0.5).log() - torch.lgamma(other + 1)
    if scheme == "binomial":
        trials, probability = num_classes - 1, (label + 0.5) / num_classes
        log_choices = -torch.lgamma(other + 1) - torch.lgamma(trials - other + 1)
        return log_choices + other * probability.log() + (trials - other) * torch.log1p(-probability)
    mode = (label + 0.5) / num_classes
    edges = torch.arange(num_classes + 1, dtype=torch.float64, device="cpu") / num_classes
    first, second = mode * (concentration - 2) + 1, (1 - mode) * (concentration - 2) + 1
    below, above = log_incomplete_beta(first, second, edges)
    # Each bin is a difference of the tail that it lies in: the other one would cancel.
    right = edges[:-1] > mode
    whole, rest = torch.where(right, above[:, :-1], below[:, 1:]), torch.where(right, above[:, 1:], below[:, :-1])
    return whole + torch.log1p(-(rest - whole).exp().clamp_max(1.0))


def minus_exponents(decay: float, distance: Tensor, power: float = 1.0) -> Tensor:
    """`-decay · distance^power`, float64; what is beyond every number still falls with the distance.

    So the nearest of the classes that a mask leaves takes all, and none is left out because all of them overflow.
    """
    if not decay:
        return torch.zeros_like(distance)
    exponents = decay * distance**power  # the power may be inf
    return -torch.where(exponents > _FAR, _FAR * (1 + 1e-5 * distance), exponents)
