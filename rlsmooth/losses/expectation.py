"""The value that a categorical value function gives: the mean of its distribution over the support."""

from __future__ import annotations

import torch
from torch import Tensor

from rlsmooth.losses.policy import log_probabilities
from rlsmooth.targets.target import weight_dtype
from rlsmooth.targets.values import to_support


def expected_value(logits: Tensor, support: Tensor) -> Tensor:
    """`sum_k softmax(logits)(k) · support(k)`, `[...]`, in the support's unit: the value that `two_hot` encodes.

    Train with `cross_entropy(logits, two_hot(values, support))` or `hl_gauss`, and read the value here. Differentiable
    in the logits; a target bootstrapped from it has to be detached, which the builders do.

    Args:
        logits: `[..., K]`. Half precision is computed and returned in float32.
        support: `[K]`, on the logits' device.

    Raises:
        TypeError: logits that are not floating-point, a support that does not hold numbers.
        ValueError: logits without a class axis, a support that is not `[K]`.

    Examples:
        >>> import torch
        >>> expected_value(torch.tensor([[0.0, 0.0, -torch.inf]]), torch.tensor([-1.0, 2.0, 9.0]))
        tensor([0.5000])
    """
    points = to_support(support)
    probabilities = log_probabilities(logits).exp()
    if len(points) != logits.shape[-1]:
        raise ValueError(f"support has {len(points)} points, logits have shape {tuple(logits.shape)}: one logit each.")
    # In the support's precision: its points may be beyond the logits', and the mean within it.
    wide = torch.promote_types(probabilities.dtype, points.dtype)
    if wide == torch.float64:
        wide = weight_dtype(logits.device)
    return (probabilities.to(wide) * points.to(logits.device, wide)).sum(-1).to(probabilities.dtype)
