"""Binary cross-entropy with separate targets for the two sides: discriminators and their one-sided smoothing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rlsmooth.checks import check_in_range
from rlsmooth.losses.arguments import Reduction, check_weight, compute_dtype, reduce
from rlsmooth.targets.arguments import kind_of


def binary_cross_entropy(
    logits: Tensor,
    labels_real_is_one: Tensor,
    *,
    real_target: float = 1.0,
    fake_target: float = 0.0,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """`-t log sigmoid(x) - (1 - t) log sigmoid(-x)` in nats, `t` being `real_target` or `fake_target`.

    One-sided smoothing (Salimans et al. 2016) is `real_target=0.9` with `fake_target=0`: the logit is then capped at
    `log(0.9 / 0.1)` while the generator's gradient stays as it is. Smoothing the fakes too makes that gradient vanish
    where real data are rare.

    Args:
        logits: `[...]`, high = real. Half precision is computed and returned in float32.
        labels_real_is_one: `[...]`, bool or numbers: 1 for real (or expert), 0 for fake; between them for mixtures.
        real_target: in `[0, 1]`, the probability of "real" that a real row is trained on.
        fake_target: in `[0, 1]`, the probability of "real" that a fake row is trained on.
        weight: `[...]`, one factor a row; a row of weight 0 is left out.
        reduction: `"none"`, `"sum"` or `"mean"` (by the number of rows, or by `weight.sum()`; 0 rows: 0).

    Raises:
        TypeError: logits that are not floating-point, labels that are no tensor.
        ValueError: shapes that differ, a target outside `[0, 1]`, an unknown reduction.

    Examples:
        >>> binary_cross_entropy(torch.tensor([0.0, 0.0]), torch.tensor([1, 0]), real_target=0.9)
        tensor(0.6931)
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise TypeError(f"logits must be a floating-point tensor, got {kind_of(logits)}.")
    if not isinstance(labels_real_is_one, Tensor):
        raise TypeError(f"labels_real_is_one must be a tensor, got {type(labels_real_is_one).__name__}.")
    if labels_real_is_one.shape != logits.shape:
        raise ValueError(
            f"labels_real_is_one {tuple(labels_real_is_one.shape)} and logits {tuple(logits.shape)} differ in shape."
        )
    check_in_range("real_target", real_target, 0.0, 1.0)
    check_in_range("fake_target", fake_target, 0.0, 1.0)
    check_weight(weight, logits.shape, reduction)
    dtype = compute_dtype(logits.dtype)
    values, real = logits.to(dtype), labels_real_is_one.detach().to(dtype)
    if weight is not None:
        values = torch.where(weight != 0, values, 0.0)
    target = fake_target + (real_target - fake_target) * real
    # A side of target 0 is left out, not multiplied: 0 · inf is 0 here.
    real_side = torch.where(target != 0, -target * F.logsigmoid(values), 0.0)
    fake_side = torch.where(target != 1, -(1 - target) * F.logsigmoid(-values), 0.0)
    return reduce(torch.where(values.isnan(), torch.nan, real_side + fake_side), weight, reduction)
