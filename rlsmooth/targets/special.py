"""The regularised incomplete beta function, which torch lacks."""

from __future__ import annotations

import torch
from torch import Tensor

_MAX_STEPS = 10_000
_ROUNDING = 1e-15  # a few ulps: rounding keeps the change from ever being exactly 0
_TINY = 1e-300


def log_incomplete_beta(a: Tensor, b: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """`log I_x(a, b)` and `log(1 - I_x(a, b))`, each exact in its own tail, where it may be far below any float.

    Lentz's evaluation of the continued fraction 8.17.22 of the NIST Digital Library of Mathematical Functions, on the
    side of the mean where it converges fast. It reads values (to see convergence), so it belongs in tables.

    Args:
        a: float64, positive.
        b: float64, positive, broadcasting with `a`.
        x: float64 in `[0, 1]`, broadcasting with both.

    Returns:
        The logarithms of the lower and the upper tail, of the broadcast shape.
    """
    a, b, x = torch.broadcast_tensors(a, b, x)  # type: ignore[no-untyped-call]
    swap = x > (a + 1) / (a + b + 2)
    first, second, place = torch.where(swap, b, a), torch.where(swap, a, b), torch.where(swap, 1 - x, x)
    log_front = (
        torch.special.xlogy(first, place)
        + torch.special.xlog1py(second, -place)
        - (torch.lgamma(first) + torch.lgamma(second) - torch.lgamma(first + second))
    )
    tail = log_front - first.log() - _continued_fraction(first, second, place).log()
    other = torch.log1p(-tail.exp().clamp_max(1.0))
    return torch.where(swap, other, tail), torch.where(swap, tail, other)


def _continued_fraction(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    def away_from_zero(value: Tensor) -> Tensor:
        return torch.where(value.abs() < _TINY, torch.full_like(value, _TINY), value)

    value, numerator, denominator = torch.ones_like(x), torch.ones_like(x), torch.zeros_like(x)
    for step in range(1, _MAX_STEPS):
        half = step // 2
        if step % 2:
            factor = -(a + half) * (a + b + half) * x / ((a + step - 1) * (a + step))
        else:
            factor = half * (b - half) * x / ((a + step - 1) * (a + step))
        denominator = 1 / away_from_zero(1 + factor * denominator)
        numerator = away_from_zero(1 + factor / numerator)
        change = numerator * denominator
        value = value * change
        if step % 4 == 0 and bool(((change - 1).abs() < _ROUNDING).all()):
            return value
    raise ValueError(f"The incomplete beta function has not converged in {_MAX_STEPS} steps: a and b are too great.")
