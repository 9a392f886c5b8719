"""Labels that gradients of a network's last layer leak: every attack on it, beside the prior, with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rlsmooth.audits.arguments import check_floating, check_same_shape, wide_dtype
from rlsmooth.audits.gradient_attacks import (
    MOST_RESIDUAL,
    Recovered,
    Spread,
    alpha_from_absent_class,
    counts_from_class_means,
    counts_ilrg,
    counts_llg,
    equivalent_noise,
    found_through_noise,
    label_by_argmin,
    label_by_idlg,
    label_by_sign,
    label_counts,
    recover_target,
    recover_target_without_bias,
    round_counts,
)
from rlsmooth.audits.intervals import Interval, proportion_interval, share_interval
from rlsmooth.checks import check_in_range, check_positive_int
from rlsmooth.losses import cross_entropy
from rlsmooth.targets import Target
from rlsmooth.targets.arguments import broadcast_mask, check_mask


@dataclass(frozen=True, eq=False)
class LastLayer:
    """The last linear layer of a network, with the samples that reach it.

    `rlsmooth.agents.action_layers` gives one for each component of an agent's actions.

    Attributes:
        features: float `[N, D]`, the layer's inputs.
        weight: float `[K, D]`.
        bias: float `[K]`, or None.
        target: of batch shape `[N]`, of mass 1; the label is its most probable class.
        mask: bool `[N, K]`, True = legal, or None.
        name: for tables.

    Examples:
        >>> from rlsmooth.targets import uniform
        >>> target = uniform(torch.tensor([0, 2]), 3, alpha=0.1)
        >>> LastLayer(torch.ones(2, 4), torch.zeros(3, 4), torch.zeros(3), target).labels
        tensor([0, 2])
    """

    features: Tensor
    weight: Tensor
    bias: Tensor | None
    target: Target
    mask: Tensor | None = None
    name: str = ""

    def __post_init__(self) -> None:
        check_floating("features", self.features)
        check_floating("weight", self.weight)
        if self.features.ndim != 2 or self.weight.ndim != 2 or self.features.shape[1] != self.weight.shape[1]:
            raise ValueError(
                f"features {tuple(self.features.shape)} and weight {tuple(self.weight.shape)} must be [N, D] and "
                "[K, D]."
            )
        if self.bias is not None:
            check_floating("bias", self.bias)
            check_same_shape("bias", self.bias, "weight's first axis", self.weight.shape[:1])
        if (*self.target.batch_shape, self.target.num_classes) != (len(self.features), len(self.weight)):
            raise ValueError(
                f"target is for batch {tuple(self.target.batch_shape)} and {self.target.num_classes} classes, the "
                f"layer has {len(self.features)} samples and {len(self.weight)} classes."
            )
        mass = self.target.mass()
        if bool(((mass - 1).abs() > 1e-4).any()):
            raise ValueError(
                f"target has rows of mass {float(mass.min()):.6g} to {float(mass.max()):.6g}: it must be 1."
            )
        if self.mask is not None:
            check_mask(broadcast_mask(self.mask, self.features.shape[:1], len(self.weight)))

    @staticmethod
    def of_module(
        module: nn.Module, inputs: Tensor, target: Target, *, mask: Tensor | None = None, name: str = ""
    ) -> LastLayer:
        """The last layer of a network in evaluation mode, for example of `Classifier.module_`.

        Args:
            module: its output `[N, K]` is that of an `nn.Linear`.
            inputs: float `[N, ...]`, on the module's device.
            target: of batch shape `[N]`, on that device.
            mask: bool `[N, K]`, True = legal.
            name: for tables.

        Raises:
            TypeError: the output is not that of an `nn.Linear`.

        Examples:
            >>> from rlsmooth.targets import one_hot
            >>> net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
            >>> LastLayer.of_module(net, torch.ones(5, 2), one_hot(torch.zeros(5, dtype=torch.int64), 3)).features.shape
            torch.Size([5, 8])
        """
        layer, features = last_linear(module, inputs)
        bias: Tensor | None = layer.bias
        return LastLayer(features, layer.weight.detach(), None if bias is None else bias.detach(), target, mask, name)

    @property
    def labels(self) -> Tensor:
        """int64 `[N]`: the most probable class of each target."""
        return self.target.dense(wide_dtype(self.features)).argmax(-1)

    @property
    def probabilities(self) -> Tensor:
        """float64 `[N, K]`: the network's probabilities."""
        dtype = wide_dtype(self.features)
        logits = self.features.to(dtype) @ self.weight.mT.to(dtype) + (0 if self.bias is None else self.bias)
        return logits.masked_fill(~self.legal, -torch.inf).softmax(-1)

    @property
    def legal(self) -> Tensor:
        """bool `[N, K]`."""
        shape = len(self.features), len(self.weight)
        everything = torch.ones(shape, dtype=torch.bool, device=self.features.device)
        return everything if self.mask is None else self.mask.to(everything.device).expand(shape)

    def gradients(self, chosen: Tensor) -> tuple[Tensor, Tensor | None]:
        """By autograd, the gradients of weight and bias of the mean loss over each minibatch.

        Args:
            chosen: int64 `[M, B]`, M minibatches of B samples.

        Returns:
            `[M, K, D]` and `[M, K]`, or None without bias.
        """
        parameters = [each.detach().requires_grad_() for each in (self.weight, self.bias) if each is not None]
        found = []
        for batch in chosen:
            with torch.enable_grad():
                logits = nn.functional.linear(self.features[batch], *parameters)
                mask = None if self.mask is None else self.legal[batch]
                loss = cross_entropy(logits, self.target[batch], mask=mask)
            found.append(torch.autograd.grad(loss, parameters))
        if not found:
            raise ValueError(f"the layer {self.name!r} has no samples: give at least one.")
        slopes, *errors = (torch.stack(each) for each in zip(*found, strict=True))
        return slopes, (errors[0] if errors else None)

    def sample_gradients(self) -> tuple[Tensor, Tensor | None]:
        """The gradients of each sample by itself: `[N, K, D]` and `[N, K]`."""
        return self.gradients(torch.arange(len(self.features), device=self.features.device).unsqueeze(-1))


def last_linear(module: nn.Module, inputs: Tensor) -> tuple[nn.Linear, Tensor]:
    """The `nn.Linear` whose output a network in evaluation mode returns, in whatever order it names its layers.

    Args:
        module: its output is that of an `nn.Linear`.
        inputs: float `[N, ...]`, on the module's device.

    Returns:
        the layer, and its inputs `[N, D]`.

    Raises:
        TypeError: the output is not that of an `nn.Linear`.
    """
    seen: list[tuple[Any, Tensor, Tensor]] = []
    handles = [
        part.register_forward_hook(lambda layer, given, output: seen.append((layer, given[0], output)))
        for part in module.modules()
        if isinstance(part, nn.Linear)
    ]
    modes = [(part, part.training) for part in module.modules()]
    try:
        with torch.no_grad():
            output = module.eval()(inputs)
    finally:
        for part, mode in modes:
            part.training = mode
        for handle in handles:
            handle.remove()
    if not seen or seen[-1][2] is not output:
        raise TypeError(f"module {type(module).__name__} must end in an nn.Linear, whose output is the logits.")
    layer, features, _ = seen[-1]
    return layer, features


class AttackResult(NamedTuple):
    """One row of a table of attacks.

    Attributes:
        attack: its name.
        batch_size: samples of a gradient.
        trials: gradients that were attacked.
        success: share of the samples whose label is found (one sample), or mean share of a minibatch's samples that are
            counted to the right class, with its interval.
        prior: the same of an observer who knows how frequent the labels are, and sees no gradient.
        error: the largest error of a probability of the recovered targets; NaN if the attack recovers none.
    """

    attack: str
    batch_size: int
    trials: int
    success: Interval
    prior: float
    error: float = math.nan


class NoisePoint(NamedTuple):
    """Success of the informed observer at one level of noise.

    Attributes:
        noise: standard deviation on each entry of the gradient.
        success: share of the samples whose label is found, with its interval.
        expected: the same by `informed_success`; NaN where alpha is not given.
        equivalent_noise: the noise that hides hard labels as well; NaN where alpha is not given.
        prior: as in `AttackResult`.
    """

    noise: float
    success: Interval
    expected: float
    equivalent_noise: float
    prior: float


def attack_rows(
    layer: LastLayer, *, alpha: float | None = None, prior: Tensor | None = None, confidence: float = 0.95
) -> list[AttackResult]:
    """Every attack on the gradient of each sample by itself.

    Where a mask allows one class only, every observer knows the label.

    Args:
        layer: with N samples, at least 1.
        alpha: of uniform smoothing, where the observer knows it; only read for a layer without bias.
        prior: float `[K]`, the frequencies that the observer knows; None: those of the samples' own labels.
        confidence: of the intervals, in (0, 1).

    Returns:
        "exact", "sign", "argmin" and "iDLG"; "exact" and "iDLG" for a layer without bias.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: no sample, a number out of range.

    Examples:
        >>> from rlsmooth.targets import uniform
        >>> target = uniform(torch.tensor([0, 2]), 3, alpha=0.1)
        >>> layer = LastLayer(torch.ones(2, 4), torch.zeros(3, 4), torch.zeros(3), target)
        >>> [(result.attack, result.success.estimate) for result in attack_rows(layer)]
        [('exact', 1.0), ('sign', 1.0), ('argmin', 1.0), ('iDLG', 1.0)]
    """
    slopes, errors = layer.sample_gradients()
    exact = _recovered(layer, slopes, errors, alpha)
    one_sample = (exact.residual <= MOST_RESIDUAL) & ~exact.target.isnan().any(-1)
    found = {"exact": torch.where(one_sample, exact.target.argmax(-1), -1)}
    if errors is not None:
        found |= {"sign": label_by_sign(errors), "argmin": label_by_argmin(errors)}
    found["iDLG"] = label_by_idlg(slopes)
    gap = (exact.target - layer.target.dense(exact.target.dtype)).abs()[one_sample]
    blind = _success(layer, _blind_labels(layer, prior), confidence).estimate
    return [
        AttackResult(
            name,
            1,
            len(label),
            _success(layer, label, confidence),
            blind,
            float(gap.amax()) if name == "exact" and gap.numel() else math.nan,
        )
        for name, label in found.items()
    ]


def attack_batches(
    layer: LastLayer,
    batch_sizes: Sequence[int] = (8, 32),
    *,
    alpha: float | None = 0.0,
    spread: Spread = "all",
    auxiliary: LastLayer | None = None,
    prior: Tensor | None = None,
    seed: int = 0,
    confidence: float = 0.95,
) -> list[AttackResult]:
    """Every way of counting labels, on the gradients of disjoint minibatches drawn at random.

    Of iid minibatches the prior alone counts most samples right: read the two columns together.

    Args:
        layer: with N samples, at least as many as the largest minibatch.
        batch_sizes: each at least 1.
        alpha: of uniform smoothing, where the observer knows it; None: it is inferred, as if a class were absent; 0:
            smoothing is ignored.
        spread: as in `uniform`.
        auxiliary: the same layer with labelled samples of the observer's own, for "auxiliary".
        prior: float `[K]`, the frequencies that the observer knows; None: those of the auxiliary labels, or else of the
            samples' own.
        seed: of the minibatches.
        confidence: of the intervals, in (0, 1).

    Returns:
        For each size "LLG", and of a layer with bias "counts, softmax(bias)" (the observer's estimate of the mean
        probabilities), "iLRG" (not under masks), "auxiliary", and "counts, mean probabilities known": no observer knows
        them, so that it only shows what an estimate costs.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: a minibatch larger than N, a number out of range.

    Examples:
        >>> from rlsmooth.targets import uniform
        >>> target = uniform(torch.tensor([0, 2, 2, 2]), 3, alpha=0.1)
        >>> layer = LastLayer(torch.ones(4, 4), torch.zeros(3, 4), torch.zeros(3), target)
        >>> for result in attack_batches(layer, [4], alpha=0.1):
        ...     print(result.attack, result.success.estimate, result.prior)
        LLG 0.75 1.0
        counts, softmax(bias) 1.0 1.0
        iLRG 1.0 1.0
        counts, mean probabilities known 1.0 1.0
    """
    share = _frequencies(layer if auxiliary is None else auxiliary, prior)
    means = None if auxiliary is None else _class_means(auxiliary)
    labels, num_classes, results = layer.labels, len(layer.weight), []
    for size in batch_sizes:
        if check_positive_int("batch_sizes", size) > len(labels):
            raise ValueError(f"batch_sizes has {size}, but there are {len(labels)} samples: give at most so many.")
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).to(labels.device)
        chosen = order[: len(order) // size * size].view(-1, size)
        truth = nn.functional.one_hot(labels[chosen], num_classes).sum(-2)
        expected = among_legal(share, layer.legal[chosen]).sum(-2)
        overlaps = {
            name: torch.minimum(round_counts(counts, size), truth).clamp(min=0).sum(-1).cpu().numpy() / size
            for name, counts in [("prior", expected), *_counted(layer, chosen, alpha, spread, means)]
        }
        blind = float(overlaps.pop("prior").mean())
        results += [
            AttackResult(name, size, len(chosen), share_interval(each, confidence=confidence), blind)
            for name, each in overlaps.items()
        ]
    return results


def noise_curve(
    layer: LastLayer,
    noises: Sequence[float],
    *,
    alpha: float | None = None,
    prior: Tensor | None = None,
    seed: int = 0,
    confidence: float = 0.95,
) -> list[NoisePoint]:
    """How often an observer who knows features and network finds the label through Gaussian noise, not clipped.

    Args:
        layer: with N samples, at least 1.
        noises: standard deviations on each entry of the layer's gradient of one sample.
        alpha: of `uniform(spread="all")`, for the columns from theory; None: other targets.
        prior: as in `attack_rows`.
        seed: of the noise.
        confidence: of the intervals, in (0, 1).

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: no sample, a number out of range.

    Examples:
        >>> from rlsmooth.targets import uniform
        >>> target = uniform(torch.tensor([0, 2]), 3, alpha=0.1)
        >>> layer = LastLayer(torch.ones(2, 4), torch.zeros(3, 4), torch.zeros(3), target)
        >>> [point.success.estimate for point in noise_curve(layer, [0.0, 0.01], alpha=0.1)]
        [1.0, 1.0]
    """
    slopes, errors = (None if each is None else each.to(wide_dtype(each)) for each in layer.sample_gradients())
    assert slopes is not None
    features = layer.features.detach().to(slopes.dtype)
    # Projected on the features and the bias's 1, all that the noisy gradient says of p - q.
    power = features.square().sum(-1, keepdim=True) + (errors is not None)
    generator = torch.Generator().manual_seed(seed)
    blind = _success(layer, _blind_labels(layer, prior), confidence).estimate
    points = []
    for noise in noises:
        check_in_range("noises", noise, 0.0)

        def noisy(grad: Tensor, scale: float = noise) -> Tensor:
            return grad + scale * torch.randn(grad.shape, generator=generator, dtype=torch.float64).to(grad)

        seen = (noisy(slopes) @ features.unsqueeze(-1)).squeeze(-1) + (0 if errors is None else noisy(errors))
        likely = (layer.probabilities - seen / power).masked_fill(~layer.legal, -torch.inf)
        success = _success(layer, likely.argmax(-1), confidence)
        expected, hard = math.nan, math.nan
        if alpha is not None:
            scales = noise / power.squeeze(-1).sqrt().to(torch.float64)
            expected = float(found_through_noise(scales, layer.legal.sum(-1), alpha).mean())
            hard = equivalent_noise(noise, alpha)
        points.append(NoisePoint(float(noise), success, expected, hard, blind))
    return points


def _recovered(layer: LastLayer, slopes: Tensor, errors: Tensor | None, alpha: float | None) -> Recovered:
    if errors is None or layer.bias is None:
        return recover_target_without_bias(slopes, layer.weight, alpha=alpha, mask=layer.mask)
    return recover_target(slopes, errors, layer.weight, layer.bias, mask=layer.mask)


def _success(layer: LastLayer, found: Tensor, confidence: float) -> Interval:
    """The share of labels that are found, with Wilson's interval."""
    legal = layer.legal
    found = torch.where(legal.sum(-1) == 1, legal.to(torch.uint8).argmax(-1), found)
    return proportion_interval(int((found == layer.labels).sum()), len(found), confidence=confidence)


def _frequencies(layer: LastLayer, prior: Tensor | None) -> Tensor:
    """float64 `[K]`: the given prior, or the frequencies of the labels."""
    if prior is None:
        return torch.bincount(layer.labels, minlength=len(layer.weight)).to(wide_dtype(layer.features))
    check_floating("prior", prior)
    check_same_shape("prior", prior, "weight's first axis", layer.weight.shape[:1])
    return prior.to(layer.features.device, wide_dtype(prior))


def among_legal(share: Tensor, legal: Tensor) -> Tensor:
    """The frequencies among each sample's legal classes, `[B, K]`; even where none of them is known to occur."""
    known = share * legal
    return torch.where(known.sum(-1, keepdim=True) > 0, known, legal.to(known.dtype)) / torch.where(
        known.sum(-1, keepdim=True) > 0, known.sum(-1, keepdim=True), legal.sum(-1, keepdim=True)
    )


def _blind_labels(layer: LastLayer, prior: Tensor | None) -> Tensor:
    return among_legal(_frequencies(layer, prior), layer.legal).argmax(-1)


def _class_means(layer: LastLayer) -> Tensor:
    """`[K, K]`: the network's mean probabilities on the samples of each label; NaN without any."""
    member = nn.functional.one_hot(layer.labels, len(layer.weight)).to(layer.probabilities.dtype)
    return (member.mT @ layer.probabilities) / member.sum(0).unsqueeze(-1)


def _counted(
    layer: LastLayer, chosen: Tensor, alpha: float | None, spread: Spread, means: Tensor | None
) -> Iterator[tuple[str, Tensor]]:
    """The counts `[M, K]` of minibatches `[M, B]` by each attack that the layer allows."""
    slopes, errors = layer.gradients(chosen)
    size, legal = chosen.shape[-1], layer.legal[chosen]
    mask = None if layer.mask is None else legal
    yield "LLG", counts_llg(slopes, size)
    if errors is None or layer.bias is None:
        return

    def counted(mean_probs: Tensor) -> Tensor:
        level: float | Tensor = 0.0 if alpha is None else alpha
        if alpha is None:
            limit = 1.0 if spread == "all" else (len(layer.weight) - 1) / len(layer.weight)
            level = alpha_from_absent_class(errors, mean_probs, spread=spread, mask=mask).clamp(0.0, 0.99 * limit)
        return label_counts(errors, mean_probs, size, alpha=level, spread=spread, mask=mask)

    by_bias = layer.bias.to(wide_dtype(layer.bias)).expand(legal.shape).masked_fill(~legal, -torch.inf).softmax(-1)
    yield "counts, softmax(bias)", counted(by_bias.mean(-2))
    if mask is None:
        yield "iLRG", counts_ilrg(slopes, errors, layer.weight, layer.bias, size, alpha=alpha, spread=spread)
    if means is not None:
        yield "auxiliary", counts_from_class_means(means, errors, size, alpha=alpha, spread=spread, mask=mask)
    yield "counts, mean probabilities known", counted(layer.probabilities[chosen].mean(-2))
