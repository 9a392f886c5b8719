"""Labels and smoothed targets recovered from gradients of a last layer, by an observer who knows the network.

The loss is the mean cross-entropy of `softmax(W h + b)` with targets `q`. For one sample `db = p - q` and
`dW = db h'`: smoothing changes `q`, and `q` can be computed from the two. `recover_target` does that for every target;
the other functions are weaker attacks from the literature, counts of labels in a minibatch, and what noise hides.

All functions compute in float64 and take leading axes. A label of -1 and a result of NaN mean that the gradient says
nothing. `rlsmooth.audits.label_leakage` runs them on a network. They are about gradients only: smoothing changes model
inversion too (Struppek et al. 2024, "Be careful what you smooth for"), which is not measured here.

Sources: Zhao et al. 2020, "iDLG: improved deep leakage from gradients"; Wainakh et al. 2022, "User-level label leakage
from gradients in federated learning" (LLG); Ma et al. 2023, "Instance-wise batch label restoration via gradients in
federated learning" (iLRG).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rlsmooth.audits.arguments import check_floating, check_same_shape, nan_unless, takes_arrays, wide_dtype
from rlsmooth.checks import check_choice, check_in_range, check_positive_int
from rlsmooth.targets.arguments import broadcast_mask, check_mask

Spread = Literal["all", "others"]
MOST_RESIDUAL = 1e-3
"""A greater `Recovered.residual` means that the gradient is of more than one sample."""


class Recovered(NamedTuple):
    """A sample as its gradient shows it.

    Attributes:
        target: float64 `[..., K]`, the target `q`; its label is the most probable class.
        feature: float64 `[..., D]`, the input `h` of the last layer.
        residual: float64 `[...]`, the share of the weight's gradient that one sample does not explain.
    """

    target: Tensor
    feature: Tensor
    residual: Tensor


# ---- one sample


@takes_arrays
def label_by_sign(bias_grad: Tensor) -> Tensor:
    """The label as the one class whose gradient is negative, which holds for hard targets.

    It fails once a class has less probability than smoothing gives it: that gradient is negative, too.

    Args:
        bias_grad: float `[..., K]`, of one sample.

    Returns:
        int64 `[...]`; -1 where not exactly one entry is negative, or one is NaN.

    Examples:
        >>> label_by_sign(torch.tensor([[0.3, -0.5, 0.2], [-0.1, -0.1, 0.2]]))
        tensor([ 1, -1])
    """
    values = _values("bias_grad", bias_grad, 1)
    negative = values < 0
    return _label(negative.to(torch.uint8).argmax(-1), (negative.sum(-1) == 1) & ~values.isnan().any(-1))


@takes_arrays
def label_by_argmin(bias_grad: Tensor) -> Tensor:
    """The label as the class whose gradient is least.

    It fails where `p(label) - min p` is more than `1 - alpha`, as after training.

    Args:
        bias_grad: float `[..., K]`, of one sample.

    Returns:
        int64 `[...]`; -1 where all entries are equal, or one is NaN.

    Examples:
        >>> label_by_argmin(torch.tensor([[0.3, -0.5, 0.2], [0.0, 0.0, 0.0]]))
        tensor([ 1, -1])
    """
    return _least(_values("bias_grad", bias_grad, 1))


@takes_arrays
def label_by_idlg(weight_grad: Tensor) -> Tensor:
    """The label as iDLG finds it: the class whose row of the weight's gradient has the least sum.

    A row is the class's gradient times the features, so that this is `label_by_argmin` where the features' sum is above
    0, as after a ReLU. Where that sum is negative it is the argmax.

    Args:
        weight_grad: float `[..., K, D]`, of one sample.

    Returns:
        int64 `[...]`; -1 where all sums are equal, or one is NaN.

    Source:
        Zhao et al. 2020, "iDLG: improved deep leakage from gradients".

    Examples:
        >>> label_by_idlg(torch.tensor([[0.6, 0.3], [-1.0, -0.5], [0.4, 0.2]]))
        tensor(1)
    """
    return _least(_values("weight_grad", weight_grad, 2).sum(-1))


@takes_arrays
def recover_target(
    weight_grad: Tensor, bias_grad: Tensor, weight: Tensor, bias: Tensor, *, mask: Tensor | None = None
) -> Recovered:
    """The target of one sample, exactly: `h = dW' db / |db|²` and `q = softmax(W h + b) - db`.

    It holds for any target of mass 1, and needs neither alpha nor the kind of smoothing.

    Args:
        weight_grad: float `[..., K, D]`, of one sample.
        bias_grad: float `[..., K]`.
        weight: float `[..., K, D]`, of the layer before the step.
        bias: float `[..., K]`.
        mask: bool, broadcasts to `[..., K]`; True = legal.

    Returns:
        The sample; NaN where `bias_grad` is 0, as with one (legal) class. A residual above `MOST_RESIDUAL` means that
        the gradient is of more samples than one, and then the target is none of theirs.

    Raises:
        TypeError: an argument that is not floating, a mask that is not bool.
        ValueError: shapes that do not fit, a mask that allows nothing.

    Examples:
        >>> weight, bias = torch.zeros(2, 1), torch.zeros(2)
        >>> recovered = recover_target(torch.tensor([[-0.8], [0.8]]), torch.tensor([-0.4, 0.4]), weight, bias)
        >>> recovered.target, recovered.feature
        (tensor([0.9000, 0.1000], dtype=torch.float64), tensor([2.], dtype=torch.float64))
    """
    slopes, errors = _layer_gradients(weight_grad, bias_grad)
    weights, biases = _values("weight", weight, 2), _values("bias", bias, 1)
    _check_last("weight", weights, slopes.shape[-2:])
    _check_last("bias", biases, errors.shape[-1:])
    largest = errors.abs().amax(-1, keepdim=True)  # divided by, so that squares of tiny gradients do not become 0
    errors_scaled, slopes_scaled = errors / largest, slopes / largest.unsqueeze(-1)
    feature = (slopes_scaled * errors_scaled.unsqueeze(-1)).sum(-2) / errors_scaled.square().sum(-1, keepdim=True)
    logits = (weights @ feature.unsqueeze(-1)).squeeze(-1) + biases
    if mask is not None:
        legal = broadcast_mask(mask, logits.shape[:-1], logits.shape[-1])
        check_mask(legal)
        logits = logits.masked_fill(~legal.to(logits.device), -torch.inf)
    left = (slopes_scaled - errors_scaled.unsqueeze(-1) * feature.unsqueeze(-2)).flatten(-2).norm(dim=-1)
    size = slopes_scaled.flatten(-2).norm(dim=-1)
    return Recovered(logits.softmax(-1) - errors, feature, torch.where(size == 0, 0.0, left / size))


@takes_arrays
def recover_target_without_bias(
    weight_grad: Tensor, weight: Tensor, *, alpha: float | None = None, mask: Tensor | None = None
) -> Recovered:
    """The target of one sample where the last layer has no bias, if it is a label smoothed uniformly.

    The weight's gradient `sigma u v'` gives `h = s v` and `q(s) = softmax(s W v) - (sigma / s) u` up to a scale `s`.
    The right scale is the one where the classes other than the label have equal probability. It is searched for both
    signs, down to gradients of the logits of 1e-10.

    Args:
        weight_grad: float `[..., K, D]`, of one sample.
        weight: float `[K, D]`, of the layer before the step; its logits are `W h`.
        alpha: of `uniform(spread="all")`, if it is known; None: any uniform smoothing, over all or over the others.
        mask: bool, broadcasts to `[..., K]`; True = legal.

    Returns:
        The sample; NaN where the gradient is 0 or not of one sample, and where several targets fit: of those, one
        whose features are all 0 or more is preferred, as after a ReLU. Of unknown alpha two (legal) classes give NaN
        and three often do. Of known alpha two do, since `-h` fits as well with the other label, unless that preference
        decides.

    Raises:
        TypeError: an argument that is not floating, a mask that is not bool.
        ValueError: shapes that do not fit, alpha outside [0, 1), a mask that allows nothing.

    Examples:
        >>> weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
        >>> feature, target = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([0.85, 0.05, 0.05, 0.05])
        >>> grad = torch.outer((weight @ feature).softmax(-1) - target, feature)
        >>> recover_target_without_bias(grad, weight).target
        tensor([0.8500, 0.0500, 0.0500, 0.0500], dtype=torch.float64)
    """
    slopes, weights = _values("weight_grad", weight_grad, 2), _values("weight", weight, 2)
    check_same_shape("weight", weights, "weight_grad's last layer", slopes.shape[-2:])
    if alpha is not None:
        check_in_range("alpha", alpha, 0.0, 1.0, high_open=True)
    batch, (num_classes, num_features) = slopes.shape[:-2], slopes.shape[-2:]
    legal = torch.ones(*batch, num_classes, dtype=torch.bool, device=slopes.device)
    if mask is not None:
        legal = broadcast_mask(mask, batch, num_classes).to(slopes.device)
        check_mask(legal)
    tolerance = 1e-6 if weight_grad.dtype == torch.float64 else 1e-3
    samples = slopes.reshape(-1, num_classes, num_features)
    targets, features = torch.full_like(samples[..., 0], torch.nan), torch.full_like(samples[:, 0], torch.nan)
    residuals = torch.full_like(samples[:, 0, 0], torch.nan)
    for row, (slope, chosen) in enumerate(zip(samples, legal.reshape(-1, num_classes), strict=True)):
        if not slope.isfinite().all() or not slope.any():
            continue
        left, sizes, right = torch.linalg.svd(slope, full_matrices=False)
        residuals[row] = sizes[1:].norm() / sizes.norm()
        if residuals[row] > MOST_RESIDUAL or chosen.sum() < (3 if alpha is None else 2):
            continue
        found = _search_scale(left[chosen, 0], float(sizes[0]), right[0], weights[chosen], alpha, tolerance)
        if found is not None:
            targets[row] = torch.zeros_like(targets[row]).masked_scatter(chosen, found[0])
            features[row] = found[1]
    return Recovered(
        targets.reshape(*batch, num_classes), features.reshape(*batch, num_features), residuals.reshape(batch)
    )


_SCALES = 2048
"""Scales of the feature that are tried, of each sign, before those around a root are narrowed down."""


def _search_scale(
    left: Tensor, size: float, right: Tensor, weight: Tensor, alpha: float | None, tolerance: float
) -> tuple[Tensor, Tensor] | None:
    """The target `[K]` and feature `[D]` that fit `size · left right'`; None where none or several do."""
    direction, num_classes = weight @ right, len(left)

    def targets_at(scales: Tensor) -> Tensor:
        return (scales.unsqueeze(-1) * direction).softmax(-1) - (size / scales).unsqueeze(-1) * left

    def roots_of(targets: Tensor) -> Tensor:
        """Functions `[..., F]` of the scale that cross 0 at the right one."""
        if alpha is None:
            return targets - targets.roll(1, -1)
        return torch.cat((targets - alpha / num_classes, targets - (1 - alpha + alpha / num_classes)), -1)

    # |p - q| is at most sqrt(2), so that |h| is at least size / sqrt(2).
    steps = torch.linspace(-0.01, math.log(1e10), _SCALES, dtype=left.dtype, device=left.device).exp()
    steps = torch.stack((steps, -steps)) * (size / math.sqrt(2))
    above = roots_of(targets_at(steps)) > 0
    half, place, which = torch.nonzero(above[:, 1:] != above[:, :-1], as_tuple=True)
    low, high, low_is_above = steps[half, place], steps[half, place + 1], above[half, place, which]
    for _ in range(60):
        middle = (low + high) / 2
        same = (roots_of(targets_at(middle)).gather(-1, which.unsqueeze(-1)).squeeze(-1) > 0) == low_is_above
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    scales = (low + high) / 2
    targets = targets_at(scales)
    label = targets.argmax(-1, keepdim=True)
    is_label = torch.zeros_like(targets, dtype=torch.bool).scatter(-1, label, value=True)
    allowed = tolerance * (size / scales.abs())
    lowest = targets.masked_fill(is_label, torch.inf).amin(-1)
    highest = targets.masked_fill(is_label, -torch.inf).amax(-1)
    fits = (highest - lowest <= allowed) & (lowest >= -allowed)
    if alpha is not None:
        fits &= ((lowest - alpha / num_classes).abs() <= allowed) & ((highest - alpha / num_classes).abs() <= allowed)
    for candidates in (fits, fits & (scales.unsqueeze(-1) * right >= -tolerance * scales.abs().unsqueeze(-1)).all(-1)):
        chosen = targets[candidates]
        if len(chosen) and bool(((chosen - chosen[0]).abs() <= 10 * tolerance).all()):
            return chosen[0], scales[candidates][0] * right
    return None


# ---- counts of the labels in a minibatch


@takes_arrays
def label_counts(
    bias_grad: Tensor,
    mean_probs: Tensor,
    batch_size: int,
    *,
    alpha: float | Tensor = 0.0,
    spread: Spread = "all",
    mask: Tensor | None = None,
) -> Tensor:
    """How many samples of a minibatch have each label: `B (mean p - db - alpha / K) / (1 - alpha)`.

    With exact mean probabilities it is an identity; an observer has an estimate of them. Over the others, `alpha / K`
    is `alpha / (K - 1)` and `1 - alpha` is `1 - alpha K / (K - 1)`. Under masks K is each sample's number of legal
    classes, and the floor is its mean over the samples.

    Args:
        bias_grad: float `[..., K]`, of the mean loss over B samples.
        mean_probs: float `[..., K]`, mean over the samples of the network's probabilities.
        batch_size: B; with 0 all counts are 0.
        alpha: of the smoothing; a number, or a tensor that broadcasts over the batch. 0 where smoothing is ignored.
        spread: as in `uniform`.
        mask: bool `[..., N, K]`, the mask of each sample, or one for all (N = 1); True = legal.

    Returns:
        float64 `[..., K]`, not rounded: see `round_counts`.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: shapes that do not fit; alpha at which targets do not depend on the label; `spread="others"` with
            masks that allow different numbers of classes, whose counts one sum does not determine.

    Examples:
        >>> mean_probs, mean_target = torch.tensor([0.4, 0.3, 0.3]), torch.tensor([0.70, 0.25, 0.05])
        >>> label_counts(mean_probs - mean_target, mean_probs, 4, alpha=0.15).round().abs()
        tensor([3., 1., 0.], dtype=torch.float64)
    """
    errors, probabilities = _values("bias_grad", bias_grad, 1), _values("mean_probs", mean_probs, 1)
    check_same_shape("mean_probs", probabilities, "bias_grad", errors.shape)
    check_positive_int("batch_size", batch_size, 0)
    level, floor, scale = _smoothing_terms(alpha, spread, mask, errors, batch_size)
    if batch_size == 0:
        return torch.zeros_like(errors)
    return batch_size * (probabilities - errors - level * floor) / scale


@takes_arrays
def alpha_from_absent_class(
    bias_grad: Tensor, mean_probs: Tensor, *, spread: Spread = "all", mask: Tensor | None = None
) -> Tensor:
    """Alpha of uniform smoothing, from a class that is the label of no sample: `K min(mean p - db)`.

    If every class has a sample, it is more than alpha.

    Args:
        bias_grad: float `[..., K]`, of the mean loss.
        mean_probs: float `[..., K]`, mean over the samples of the network's probabilities.
        spread: as in `uniform`.
        mask: bool `[..., N, K]`, the mask of each sample, or one for all (N = 1); classes that no sample may have are
            left out.

    Returns:
        float64 `[...]`; NaN with one (legal) class, which can't be absent.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: shapes that do not fit, or masks as in `label_counts`.

    Examples:
        >>> mean_probs, mean_target = torch.tensor([0.4, 0.3, 0.3]), torch.tensor([0.70, 0.25, 0.05])
        >>> alpha_from_absent_class(mean_probs - mean_target, mean_probs)
        tensor(0.1500, dtype=torch.float64)
    """
    errors, probabilities = _values("bias_grad", bias_grad, 1), _values("mean_probs", mean_probs, 1)
    check_same_shape("mean_probs", probabilities, "bias_grad", errors.shape)
    _, floor, _ = _smoothing_terms(0.0, spread, mask, errors, None)
    found = torch.where(floor > 0, (probabilities - errors) / floor, torch.inf).amin(-1)
    return nan_unless(((floor > 0).sum(-1) > 1).expand(found.shape), found)


@takes_arrays
def counts_llg(weight_grad: Tensor, batch_size: int) -> Tensor:
    """Counts by LLG, from the gradient alone: each sample lowers its class's row sum by the same impact.

    With `g` the row sums, the impact is `m = (1 + 1/K) / B · (sum of the negative g)`. Each class with a negative sum
    has one sample, and `m` is taken off; then the class with the least sum gets the next sample, until there are B.

    Args:
        weight_grad: float `[..., K, D]`, of the mean loss over B samples; features are 0 or more on the average.
        batch_size: B.

    Returns:
        float64 `[..., K]`, whole numbers that sum to B; NaN where no sum is negative.

    Source:
        Wainakh et al. 2022, "User-level label leakage from gradients in federated learning", without auxiliary data.

    Examples:
        >>> counts_llg(torch.tensor([[0.2], [-0.6], [0.5], [-0.1]]), 4)
        tensor([0., 3., 0., 1.], dtype=torch.float64)
    """
    sums = _values("weight_grad", weight_grad, 2).sum(-1)
    size, num_classes = check_positive_int("batch_size", batch_size, 0), sums.shape[-1]
    negative = sums.clamp(max=0.0)
    impact = negative.sum(-1, keepdim=True) * (1 + 1 / num_classes) / max(size, 1)
    # More negative sums than samples: the least ones count.
    present = (sums < 0) & (sums.argsort(dim=-1, stable=True).argsort(-1) < size)
    counts = present.to(sums.dtype)
    sums = sums - impact * counts
    for _ in range(size - int(counts.sum(-1).amin()) if counts.numel() else 0):
        more = (counts.sum(-1, keepdim=True) < size).to(sums.dtype)
        place = sums.argmin(-1, keepdim=True)
        counts = counts.scatter_add(-1, place, more)
        sums = sums.scatter_add(-1, place, -impact * more)
    return nan_unless((impact < 0) | torch.tensor(size == 0, device=sums.device), counts)


@takes_arrays
def counts_ilrg(
    weight_grad: Tensor,
    bias_grad: Tensor,
    weight: Tensor,
    bias: Tensor,
    batch_size: int,
    *,
    alpha: float | Tensor | None = 0.0,
    spread: Spread = "all",
) -> Tensor:
    """Counts by iLRG: the mean features of each class from its row of the gradient, then a linear system.

    `dW_c / db_c` is taken for the mean features of class c, and the network's probabilities there for its class mean;
    `counts_from_class_means` does the rest. iLRG itself is for hard targets (`alpha=0`).

    Args:
        weight_grad: float `[..., K, D]`, of the mean loss over B samples.
        bias_grad: float `[..., K]`.
        weight: float `[K, D]`, of the layer before the step.
        bias: float `[K]`.
        batch_size: B.
        alpha: as in `counts_from_class_means`.
        spread: as in `uniform`.

    Returns:
        float64 `[..., K]`, not rounded; 0 for a class whose gradient is 0, NaN where that holds for all.

    Source:
        Ma et al. 2023, "Instance-wise batch label restoration via gradients in federated learning".

    Examples:
        >>> errors = torch.tensor([-0.5, 0.25, 0.25])
        >>> bias = torch.tensor([0.5, 0.25, 0.25]).log()
        >>> round_counts(counts_ilrg(errors.unsqueeze(-1), errors, torch.zeros(3, 1), bias, 2), 2)
        tensor([2, 0, 0])
    """
    slopes, errors = _layer_gradients(weight_grad, bias_grad)
    weights, biases = _values("weight", weight, 2), _values("bias", bias, 1)
    _check_last("weight", weights, slopes.shape[-2:])
    _check_last("bias", biases, errors.shape[-1:])
    features = slopes / errors.unsqueeze(-1)
    means = (features @ weights.mT + biases).softmax(-1)
    counts = counts_from_class_means(means, bias_grad, batch_size, alpha=alpha, spread=spread)
    return nan_unless((errors != 0).any(-1, keepdim=True), counts)


@takes_arrays
def counts_from_class_means(
    class_means: Tensor,
    bias_grad: Tensor,
    batch_size: int,
    *,
    alpha: float | Tensor | None = 0.0,
    spread: Spread = "all",
    mask: Tensor | None = None,
) -> Tensor:
    """Counts from the network's mean probabilities on each class, for example on auxiliary data.

    Solves `M' n - (1 - alpha) n = B (db + alpha / K)` and `sum n = B` by least squares. Once the training loss is near
    0 the system is ill-conditioned.

    Args:
        class_means: float `[..., K, K]`; row c is the mean of `p` over samples of class c. NaN: a class that nobody
            has seen, whose count is 0.
        bias_grad: float `[..., K]`, of the mean loss over B samples.
        batch_size: B; with 0 all counts are 0.
        alpha: of the smoothing, as in `label_counts`; None: it is not known, and is taken for the greatest in [0, 1)
            at which no count is negative, which is right if a class is absent.
        spread: as in `uniform`.
        mask: as in `label_counts`.

    Returns:
        float64 `[..., K]`, not rounded: see `round_counts`.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: shapes that do not fit, alpha or masks as in `label_counts`.

    Examples:
        >>> means = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.6, 0.2], [0.1, 0.2, 0.7]], dtype=torch.float64)
        >>> gradient = torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64) / 4 @ means - torch.tensor([0.75, 0.25, 0.0])
        >>> counts_from_class_means(means, gradient, 4).round().abs()
        tensor([3., 1., 0.], dtype=torch.float64)
    """
    means, errors = _values("class_means", class_means, 2), _values("bias_grad", bias_grad, 1)
    num_classes = errors.shape[-1]
    _check_last("class_means", means, torch.Size((num_classes, num_classes)))
    check_positive_int("batch_size", batch_size, 0)
    if batch_size == 0:
        return torch.zeros_like(errors)
    seen = ~means.isnan().any(-1)
    unit = torch.eye(num_classes, dtype=means.dtype, device=means.device)

    def solved(level: float | Tensor) -> Tensor:
        level, floor, scale = _smoothing_terms(level, spread, mask, errors, batch_size)
        system = torch.where(seen.unsqueeze(-1), means, 0.0).mT - scale.unsqueeze(-1) * unit
        system = torch.where(seen.unsqueeze(-2), torch.cat((system, torch.ones_like(system[..., :1, :])), -2), 0.0)
        goal = torch.cat((errors + level * floor, torch.ones_like(errors[..., :1])), -1)
        solution: Tensor = torch.linalg.pinv(system) @ goal.unsqueeze(-1)
        return batch_size * solution.squeeze(-1)

    if alpha is not None:
        return solved(alpha)
    low, high = torch.zeros_like(errors[..., 0]), torch.full_like(errors[..., 0], 1 - 1e-6)
    if spread == "others":
        high = high * max(num_classes - 1, 1) / num_classes
    for _ in range(30):
        middle = (low + high) / 2
        is_low = solved(middle).amin(-1) >= -1e-9 * batch_size
        low, high = torch.where(is_low, middle, low), torch.where(is_low, high, middle)
    return solved(low)


@takes_arrays
def round_counts(counts: Tensor, batch_size: int) -> Tensor:
    """The nearest whole numbers from 0 that sum to B.

    Counts are projected to `n >= 0, sum n = B` first; what rounding down leaves goes to the largest fractions.

    Args:
        counts: float `[..., K]`.
        batch_size: B.

    Returns:
        int64 `[..., K]`; -1 where a count is not finite.

    Examples:
        >>> round_counts(torch.tensor([2.7, -0.2, 1.5]), 4)
        tensor([3, 0, 1])
    """
    values = _values("counts", counts, 1)
    size, num_classes = check_positive_int("batch_size", batch_size, 0), values.shape[-1]
    ordered = values.sort(-1, descending=True).values
    number = torch.arange(1, num_classes + 1, device=values.device)
    shifts = (ordered.cumsum(-1) - size) / number
    used = ((ordered > shifts) * number).amax(-1, keepdim=True).clamp(min=1)
    values = (values - shifts.gather(-1, used - 1)).clamp(min=0.0)
    whole = (values + 1e-9).floor()
    missing = size - whole.sum(-1, keepdim=True)
    place = (values - whole).argsort(dim=-1, descending=True, stable=True).argsort(-1)
    return torch.where(counts.isfinite().all(-1, keepdim=True), whole + (place < missing), -1.0).to(torch.int64)


# ---- distances and noise


def label_gradient_distance(
    alpha: float, num_classes: int, spread: Spread = "all", feature_norm: float | None = None
) -> float:
    """Squared distance between the gradients that two labels give for one sample: `2 (1 - alpha)²`.

    Over the others it is `2 (1 - alpha K / (K - 1))²`. It does not depend on the network's probabilities.

    Args:
        alpha: of the smoothing, at most 1.
        num_classes: K.
        spread: as in `uniform`.
        feature_norm: `|h|`: of the last layer's weight and bias together, times `1 + |h|²`; None: of the bias alone.

    Returns:
        The distance; NaN with one class.

    Raises:
        TypeError: a number is none.
        ValueError: a number is out of range, an unknown spread.

    Examples:
        >>> round(label_gradient_distance(0.1, 10), 4), round(label_gradient_distance(0.1, 10, feature_norm=2.0), 4)
        (1.62, 8.1)
    """
    level, size = check_in_range("alpha", alpha, high=1.0), check_positive_int("num_classes", num_classes)
    check_choice("spread", spread, ("all", "others"))
    if size == 1:
        return math.nan
    norm = 0.0 if feature_norm is None else check_in_range("feature_norm", feature_norm, 0.0)
    scale = 1 - level if spread == "all" else 1 - level * size / (size - 1)
    return 2 * scale * scale * (1 + norm * norm)


def informed_success(noise: float, num_classes: int, alpha: float = 0.0, feature_norm: float = 0.0) -> float:
    """How often the label is found from one sample's gradient plus Gaussian noise, by an observer who knows `p`.

    The best observer takes the class whose gradient is nearest: `∫ φ(z) Φ(z + (1 - alpha) / s)^(K - 1) dz`, where `s`
    is `noise / sqrt(1 + |h|²)`. Clipping is not part of it: it undoes the factor `1 - alpha`.

    Args:
        noise: standard deviation on each entry of the gradient, 0 or more.
        num_classes: K.
        alpha: of the smoothing over all classes, at most 1; alpha over the others is `alpha K / (K - 1)` here.
        feature_norm: `|h|`, where the noisy gradient of the weight is seen and the features are known; 0: only that of
            the bias.

    Raises:
        TypeError: a number is none.
        ValueError: a number is out of range.

    Examples:
        >>> round(informed_success(0.5, 10), 3), round(informed_success(0.5, 10, alpha=0.2), 3)
        (0.674, 0.543)
    """
    level = check_in_range("alpha", alpha, high=1.0)
    size = check_positive_int("num_classes", num_classes)
    check_in_range("noise", noise, 0.0)
    norm = check_in_range("feature_norm", feature_norm, 0.0)
    scale = noise / math.sqrt(1 + norm * norm)
    return float(found_through_noise(torch.tensor([scale], dtype=torch.float64), torch.tensor([size]), level))


def equivalent_noise(noise: float, alpha: float) -> float:
    """The noise on hard labels' gradients that hides as much as `noise` on smoothed ones: `noise / (1 - alpha)`.

    Args:
        noise: standard deviation, 0 or more.
        alpha: of the smoothing over all classes, below 1.

    Raises:
        TypeError: a number is none.
        ValueError: a number is out of range.

    Examples:
        >>> equivalent_noise(0.5, 0.2)
        0.625
    """
    spread = 1 - check_in_range("alpha", alpha, high=1.0, high_open=True)
    return check_in_range("noise", noise, 0.0) / spread


def randomised_response_epsilon(alpha: float, num_classes: int) -> float:
    """The label-DP epsilon of a label that is drawn once from its smoothed target: `log(1 + K (1 - alpha) / alpha)`.

    It equals `optimal_margin` of the target. Training on the smoothed target itself has no finite epsilon.

    Args:
        alpha: of the smoothing over all classes, in [0, 1].
        num_classes: K.

    Returns:
        In nats: infinite without smoothing; 0 where alpha is 1 or there is one class, and nothing to hide.

    Raises:
        TypeError: a number is none.
        ValueError: a number is out of range.

    Examples:
        >>> round(randomised_response_epsilon(0.1, 10), 4)
        4.5109
    """
    level, size = check_in_range("alpha", alpha, 0.0, 1.0), check_positive_int("num_classes", num_classes)
    if size == 1:
        return 0.0
    return math.inf if level == 0 else math.log1p(size * (1 - level) / level)


def found_through_noise(scale: Tensor, num_classes: Tensor, alpha: float) -> Tensor:
    """`informed_success` for each scale `[N]` of the noise and number of classes `[N]`."""
    places = torch.linspace(-12, 12, 2401, dtype=torch.float64, device=scale.device)
    gap = torch.where(scale > 0, (1 - alpha) / scale, torch.inf if alpha < 1 else 0.0)
    density = (-places.square() / 2).exp() / math.sqrt(2 * math.pi)
    others = (num_classes - 1).unsqueeze(-1) * torch.special.log_ndtr(places + gap.unsqueeze(-1))
    found: Tensor = (density * others.exp()).sum(-1) * 0.01
    return found.clamp(max=1.0)  # rounding alone exceeds 1


# ---- arguments


def _values(name: str, values: Tensor, axes: int) -> Tensor:
    """`values` in float64, with at least the last `axes` axes, of which the first has the K classes."""
    check_floating(name, values)
    if values.ndim < axes or values.shape[-axes] == 0:
        wanted = "[..., K]" if axes == 1 else "[..., K, D]"
        raise ValueError(f"{name} has shape {tuple(values.shape)}, needs {wanted} with at least one class.")
    return values.detach().to(wide_dtype(values))


def _check_last(name: str, values: Tensor, shape: torch.Size) -> None:
    """Raise ValueError unless the last axes of `values` are `shape`."""
    if values.shape[-len(shape) :] != shape:
        raise ValueError(f"{name} has shape {tuple(values.shape)}, needs {tuple(shape)} as its last axes.")


def _layer_gradients(weight_grad: Tensor, bias_grad: Tensor) -> tuple[Tensor, Tensor]:
    """Both gradients in float64, of the same classes and leading axes."""
    slopes, errors = _values("weight_grad", weight_grad, 2), _values("bias_grad", bias_grad, 1)
    check_same_shape("bias_grad", errors, "weight_grad without its features", slopes.shape[:-1])
    return slopes, errors


def _least(values: Tensor) -> Tensor:
    """The place of the least entry; -1 where all are equal, or one is NaN."""
    return _label(values.argmin(-1), (values != values[..., :1]).any(-1) & ~values.isnan().any(-1))


def _label(label: Tensor, valid: Tensor) -> Tensor:
    return torch.where(valid, label, -1)


def _smoothing_terms(
    alpha: float | Tensor, spread: Spread, mask: Tensor | None, errors: Tensor, batch_size: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`(alpha [..., 1], floor [..., K], scale [..., 1])`: a mean target is `scale · shares + alpha · floor`."""
    check_choice("spread", spread, ("all", "others"))
    num_classes = errors.shape[-1]
    if isinstance(alpha, Tensor):
        check_floating("alpha", alpha)
        level = alpha.detach().to(errors.device, errors.dtype).unsqueeze(-1)
    else:
        level = errors.new_full((1,), check_in_range("alpha", alpha, high=1.0))
    if mask is None:
        legal = torch.ones(1, num_classes, dtype=torch.bool, device=errors.device)
    else:
        if mask.ndim < 2 or (batch_size and mask.shape[-2] not in (1, batch_size)):
            wanted = "N" if batch_size is None else batch_size
            raise ValueError(f"mask has shape {tuple(mask.shape)}, needs [..., {wanted}, K]: one mask a sample.")
        legal = broadcast_mask(mask, mask.shape[:-1], num_classes).to(errors.device)
        check_mask(legal)
    number = legal.sum(-1, keepdim=True).to(errors.dtype)
    if spread == "all":
        return level, (legal / number).mean(-2), _checked_scale(1 - level, level)
    if not bool((number == number[..., :1, :]).all()):
        raise ValueError(
            "mask allows different numbers of classes: with spread='others' the counts then do not follow from their "
            "sum. Count samples of equal masks, or smooth over all classes."
        )
    others = number - 1
    floor = torch.where(others > 0, legal / others, 0.0).mean(-2)
    return level, floor, _checked_scale(1 - level * torch.where(others > 0, number / others, 0.0)[..., 0, :], level)


def _checked_scale(scale: Tensor, alpha: Tensor) -> Tensor:
    if bool((scale.abs() < 1e-12).any()):
        value = float(alpha.expand_as(scale)[scale.abs() < 1e-12][0])
        raise ValueError(f"alpha={value!r} makes every label's target the same, so that there is nothing to count.")
    return scale
