"""Alternatives to label smoothing: losses that keep a policy or a classifier from certainty in other ways."""

from __future__ import annotations

import torch
from torch import Tensor

from rlsmooth.checks import check_in_range
from rlsmooth.losses.arguments import Reduction, as_target, check_logits, check_weight, reduce
from rlsmooth.losses.categorical import entropy
from rlsmooth.losses.closed_form import legal_logits
from rlsmooth.targets.target import Target


def label_relaxation(
    logits: Tensor,
    target: Target,
    *,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """The KL divergence to the nearest distribution that gives the label at least what the target does.

    `0` where `p(label) >= t`, else `t log(t / p(label)) + (1 - t) log((1 - t) / (1 - p(label)))`, nats, with
    `t = q(label)`: smoothing asks the other classes to be alike, relaxation leaves them free (Lienen and Hüllermeier
    2021, equation 7). Their `alpha` is `uniform(labels, K, alpha, spread="others")`.

    Args:
        logits: `[..., K]`.
        target: its first atom is the label, its mass there is `t`.
        mask: bool, broadcasts to `[..., K]`, True = legal.
        weight: `[...]`, one factor a row; a row of weight 0 is left out.
        reduction: `"none"`, `"sum"` or `"mean"`.

    Raises:
        TypeError: logits that are not floating-point, a target of another kind, a mask that is not bool.
        ValueError: a target without atoms, shapes that do not fit, an unknown reduction.

    Examples:
        >>> from rlsmooth.targets import uniform
        >>> target = uniform(torch.tensor([0, 0]), 2, alpha=0.1, spread="others")
        >>> label_relaxation(torch.tensor([[9.0, 0.0], [0.0, 0.0]]), target, reduction="none")
        tensor([0.0000, 0.3681])
    """
    legal = check_logits(logits, mask)
    target = as_target(target, logits)
    check_weight(weight, logits.shape[:-1], reduction)
    if target.atom_indices.shape[-1] == 0:
        raise ValueError("target has no atom, so no label: label_relaxation needs a target made from labels.")
    if weight is not None:
        logits = torch.where((weight != 0).unsqueeze(-1), logits, 0.0)
    values = legal_logits(logits, legal)
    label = target.atom_indices[..., :1]
    wanted = target.at_atoms()[..., 0].to(values.dtype)
    log_p = values.log_softmax(-1)  # not differences of logits and their sum, which a common offset would round
    log_label = log_p.gather(-1, label).squeeze(-1)
    # The lowest finite number, not -inf: where the label is the only legal class, the gradient stays a number.
    log_others = log_p.scatter(-1, label, torch.finfo(log_p.dtype).min).logsumexp(-1)
    rest = 1 - wanted
    satisfied = log_label.exp() >= wanted
    divergence = torch.xlogy(wanted, wanted) - wanted * torch.where(satisfied, 0.0, log_label)
    divergence = divergence + torch.xlogy(rest, rest) - rest * torch.where(satisfied | (rest <= 0), 0.0, log_others)
    divergence = torch.where(log_label.isnan(), torch.nan, divergence)  # +inf or NaN among the logits
    return reduce(torch.where(satisfied, 0.0, divergence), weight, reduction)


def confidence_penalty(
    logits: Tensor,
    *,
    entropy_threshold_nats: float | None = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """`-H(p)`, or with a threshold `max(0, threshold - H(p))`, nats: to be added to a loss with a coefficient.

    The confidence penalty of Pereyra et al. (2017, equation 3) and its hinge form; the direction is
    `KL(p‖uniform) - log n`, the other one than label smoothing's.

    Args:
        logits: `[..., K]`.
        entropy_threshold_nats: at least 0; rows above it are not penalised. None: no hinge.
        mask: bool, broadcasts to `[..., K]`, True = legal.
        weight: `[...]`, one factor a row; a row of weight 0 is left out.
        reduction: `"none"`, `"sum"` or `"mean"`.

    Raises:
        TypeError: logits that are not floating-point, a mask that is not bool.
        ValueError: a negative threshold, shapes that do not fit, an unknown reduction.

    Examples:
        >>> confidence_penalty(torch.tensor([[0.0, 0.0]]))
        tensor(-0.6931)
    """
    check_logits(logits, mask)
    check_weight(weight, logits.shape[:-1], reduction)
    if weight is not None:
        logits = torch.where((weight != 0).unsqueeze(-1), logits, 0.0)
    rows = -entropy(logits, mask)
    if entropy_threshold_nats is not None:
        rows = torch.relu(check_in_range("entropy_threshold_nats", entropy_threshold_nats, 0.0) + rows)
    return reduce(rows, weight, reduction)


def margin_penalty(
    logits: Tensor,
    *,
    margin: float,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """`sum_k max(0, max_j x_j - x_k - margin)`: logits may differ by `margin`, what exceeds it is penalised.

    Margin-based label smoothing (Liu et al. 2022, equation 7): smoothing pulls all margins to one value, this leaves
    those below `margin` alone.

    Args:
        logits: `[..., K]`.
        margin: at least 0, in logits.
        mask: bool, broadcasts to `[..., K]`, True = legal; illegal classes don't count.
        weight: `[...]`, one factor a row; a row of weight 0 is left out.
        reduction: `"none"`, `"sum"` or `"mean"`.

    Raises:
        TypeError: logits that are not floating-point, a mask that is not bool.
        ValueError: a negative margin, shapes that do not fit, an unknown reduction.

    Examples:
        >>> margin_penalty(torch.tensor([[12.0, 0.0]]), margin=10.0)
        tensor(2.)
    """
    legal = check_logits(logits, mask)
    check_weight(weight, logits.shape[:-1], reduction)
    check_in_range("margin", margin, 0.0)
    if weight is not None:
        logits = torch.where((weight != 0).unsqueeze(-1), logits, 0.0)
    values = legal_logits(logits, legal)
    excess = torch.relu(values.amax(-1, keepdim=True) - values - margin)
    if legal is not None:
        excess = torch.where(legal, excess, 0.0)
    return reduce(excess.sum(-1), weight, reduction)
