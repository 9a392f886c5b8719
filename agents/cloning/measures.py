"""Measures of a cloned policy for log lines and figures, read in one pass with one wait for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.logger import Figure, Logger, TensorBoardOutputFormat
from torch import Tensor, nn

from rlsmooth.agents.cloning.policy_building import make_head
from rlsmooth.agents.cloning.training_data import (
    Smoothings,
    TrainingData,
    action_target,
    alpha_in_force,
    as_smoothings,
    slice_batch,
    target_matrices,
)
from rlsmooth.agents.heads import ActionHead, ActionTarget, ActionUnits, CategoricalHead, GaussianHead, TensorBatch
from rlsmooth.agents.sb3 import RECURRENT, has_base
from rlsmooth.agents.spaces import check_demonstrations, start_of
from rlsmooth.audits import LastLayer, ReliabilityBins, calibration_error
from rlsmooth.audits.calibration import diagram_bins
from rlsmooth.audits.figures import draw_reliability, draw_target_matrix, new_figure
from rlsmooth.data import Demonstrations
from rlsmooth.losses import entropy_fractions, gaussian_cross_entropy, gaussian_entropy, gaussian_kl_divergence
from rlsmooth.losses.arguments import reduce
from rlsmooth.losses.categorical import PredictionMeasures, measure_predictions
from rlsmooth.targets import GaussianTarget, gaussian
from rlsmooth.training.run import samples_at_once

NOT_FOR_TEXT = ("stdout", "log", "json", "csv")
VALIDATED = (
    "loss",
    "cross_entropy",
    "nll_hard",
    "prob_true_act",
    "policy_entropy",
    "entropy_frac",
    "entropy_frac_min",
    "kl_uniform",
    "kl_reference",
    "accuracy",
    "ece",
)
"""The tags that have a `val_` form."""


@dataclass(frozen=True, eq=False)
class TransitionMeasures:
    """Numbers of each transition, on the device; nats. Those of components are `[B, C]`, `None` for a Box.

    Attributes:
        cross_entropy: `[B]`, with the smoothed target.
        nll: `[B]`, of the demonstrated action.
        kl_reference: `[B]`, KL(reference‖pi).
        weights: `[B]`.
        entropy: `[B, C]`; differential, `[B, 1]`, for a Box.
        kl_uniform: `[B, C]`, KL(uniform over the legal‖pi).
        max_entropy: `[B, C]`, the entropy of the uniform: log of the number of legal choices.
        confidence: `[B, C]`, the largest probability.
        hit: `[B, C]` bool, whether the most probable choice is the demonstrated one.
    """

    cross_entropy: Tensor
    nll: Tensor
    kl_reference: Tensor
    weights: Tensor
    entropy: Tensor
    kl_uniform: Tensor | None = None
    max_entropy: Tensor | None = None
    confidence: Tensor | None = None
    hit: Tensor | None = None

    def reliability(self) -> ReliabilityBins:
        """The bins of a reliability diagram, over transitions and components."""
        assert self.confidence is not None
        assert self.hit is not None
        weights = self.weights.unsqueeze(-1).expand(self.confidence.shape)
        return diagram_bins(self.confidence, self.hit, weights)


class CloningMeasures:
    """Measures of a policy on its training and validation transitions, for log lines, figures and early stopping.

    Each method leaves the policy in evaluation mode.

    Args:
        training: of which up to 2048 transitions, evenly spread, represent all; None: there is nothing to measure.
        validation: read in full.
        kl_coef: of the KL term in `loss`.
        own_reference: `kl_reference` is towards the targets' own reference; else towards the KL term's.
        batch_size: transitions of a minibatch of training, which decides with `samples_at_once` how many are measured
            in one forward pass.
    """

    def __init__(
        self,
        training: TrainingData | None,
        validation: TrainingData | None,
        kl_coef: float,
        own_reference: bool,
        batch_size: int,
    ) -> None:
        self.kl_coef = kl_coef
        self.own_reference = own_reference
        self.batch_size = batch_size
        self._training = training
        self._validation = validation

    def alpha(self, progress: float) -> float:
        """The mean alpha in force when `progress` remains."""
        assert self._training is not None
        data = self._training
        return data.alpha if data.is_constant else alpha_in_force(data.smoothings, progress)

    def training(self, progress: float) -> dict[str, float]:
        """Means over the training transitions, with the targets that they have at `progress` remaining."""
        assert self._training is not None
        return self._summary(self._training, [self._training.sample], progress)

    def validation(self, progress: float) -> dict[str, float]:
        """Means over the validation transitions; empty where there are none."""
        if self._validation is None:
            return {}
        # Targets that training keeps dense don't contain their reference: they are made again.
        chunks = (chunk._replace(target=None) for chunk in self._validation.chunks())
        found = self._summary(self._validation, chunks, progress)
        return {name: found[name] for name in VALIDATED if name in found}

    def log_line(self, progress: float, l2_coef: float, units: ActionUnits | None) -> dict[str, float]:
        """The values of a log line that depend on the policy, under the tags that they have in `bc/`."""
        assert self._training is not None
        found = self.training(progress)
        norm = float(l2_norm(self._training.head.policy, units).detach())
        found |= {"neglogp": found["nll_hard"], "entropy": found["policy_entropy"], "l2_norm": norm}
        found |= {"l2_loss": l2_coef * norm, "smoothing": self.alpha(progress), "exploration_floor": 0.0}
        return found | {f"val_{name}": value for name, value in self.validation(progress).items()}

    def transitions(self, progress: float) -> TransitionMeasures:
        """The measures of each training transition that log lines are about."""
        assert self._training is not None
        return self._measures(self._training, [self._training.sample], progress)

    def _summary(self, data: TrainingData, batches: Iterable[TensorBatch], progress: float) -> dict[str, float]:
        several = isinstance(data.head, CategoricalHead) and data.head.kind == "multi_discrete"
        return summarise(self._measures(data, batches, progress), kl_coef=self.kl_coef, by_component=several)

    def _measures(self, data: TrainingData, batches: Iterable[TensorBatch], progress: float) -> TransitionMeasures:
        data.head.policy.set_training_mode(False)
        return measure_in_parts(
            data.head,
            batches,
            lambda part: action_target(data.head, data.smoothings, part, progress=progress),
            own_reference=self.own_reference,
            batch_size=self.batch_size,
        )


def measure_in_parts(
    head: ActionHead,
    batches: Iterable[TensorBatch],
    target_of: Callable[[TensorBatch], ActionTarget],
    *,
    own_reference: bool,
    batch_size: int,
) -> TransitionMeasures:
    """The numbers of all transitions of some batches, in forward passes of a bounded size.

    Args:
        head: of the policy.
        batches: of any size.
        target_of: the target of transitions that have none.
        own_reference: `kl_reference` is towards the target's own reference; else towards the KL term's.
        batch_size: transitions of a minibatch of training.
    """

    def measured(batch: TensorBatch, start: int, end: int) -> TransitionMeasures:
        part = slice_batch(batch, start, end)
        target = target_of(part) if part.target is None else part.target
        return measure_transitions(head, part, target, own_reference=own_reference)

    found, most = [], 0
    for batch in batches:
        count = len(batch.labels)
        most = most or samples_at_once(partial(measured, batch, 0, 1), batch_size, count)
        found += [measured(batch, start, min(start + most, count)) for start in range(0, count, most)]
    return concatenate(found)


@torch.no_grad()
def measure_transitions(
    head: CategoricalHead | GaussianHead, batch: TensorBatch, target: ActionTarget, *, own_reference: bool
) -> TransitionMeasures:
    """The numbers of some transitions under the policy as it is.

    Args:
        head: of the policy.
        batch: the transitions.
        target: theirs; compact, so that it contains its reference.
        own_reference: `kl_reference` is towards the target's own reference; else towards the KL term's.
    """
    outputs = head.outputs(batch.observations)
    weights = torch.ones(len(batch.labels), device=batch.labels.device) if batch.weights is None else batch.weights
    if isinstance(head, GaussianHead):
        assert isinstance(target, GaussianTarget)
        mean, log_std = (output.float() for output in outputs)
        hard = gaussian(batch.labels, 0.0, validate=False)
        return TransitionMeasures(
            gaussian_cross_entropy(mean, log_std, target, reduction="none"),
            gaussian_cross_entropy(mean, log_std, hard, reduction="none"),
            gaussian_kl_divergence(
                mean,
                log_std,
                head.reference_mean,
                head.reference_std,
                direction="reference_to_policy",
                reduction="none",
            ),
            weights,
            gaussian_entropy(log_std.expand(mean.shape)).unsqueeze(-1),
        )
    assert isinstance(target, tuple)
    parts = []  # one a group, [B, C of the group]
    labels, masks = head.label_groups(batch.labels), head.mask_groups(batch.masks)
    for place, (logits, label, mask, goal) in enumerate(zip(outputs, labels, masks, target, strict=True)):
        reference = None if own_reference or batch.reference is None else batch.reference[place]
        found = measure_predictions(logits, goal, mask, labels=label, reference=reference)
        if reference is None and not own_reference:
            found = found._replace(kl_reference=found.kl_uniform)
        is_joint = found.hit.ndim == 2
        parts.append(found if is_joint else PredictionMeasures(*(column.unsqueeze(-1) for column in found)))
    joined = PredictionMeasures.concatenate(parts, dim=-1)
    return TransitionMeasures(
        joined.cross_entropy.sum(-1),
        joined.nll.sum(-1),
        joined.kl_reference.sum(-1),
        weights,
        joined.entropy,
        joined.kl_uniform,
        joined.max_entropy,
        joined.confidence,
        joined.hit,
    )


def concatenate(parts: Iterable[TransitionMeasures]) -> TransitionMeasures:
    """The transitions of several parts as one."""
    listed = list(parts)
    if len(listed) == 1:
        return listed[0]
    columns = zip(*(vars(part).values() for part in listed), strict=True)
    joined: list[Any] = [None if column[0] is None else torch.cat(column) for column in columns]
    return TransitionMeasures(*joined)


def summarise(measures: TransitionMeasures, *, kl_coef: float, by_component: bool) -> dict[str, float]:
    """Weighted means over the transitions, as numbers: the one place that waits for the device.

    `accuracy` and `ece` are over transitions and components; `entropy_frac` over those transitions with a component of
    at least two legal choices, and `entropy_frac_min` is the lowest of theirs.

    Args:
        measures: of `measure_transitions`.
        kl_coef: of the KL term in `loss`.
        by_component: give `entropy_dim<i>` too.
    """
    weights = measures.weights
    policy_entropy = measures.entropy.sum(-1)
    regulariser = kl_coef * measures.kl_reference if kl_coef else torch.zeros_like(measures.kl_reference)
    columns = {
        "loss": measures.cross_entropy + regulariser,
        "cross_entropy": measures.cross_entropy,
        "nll_hard": measures.nll,
        "prob_true_act": (-measures.nll).exp(),
        "policy_entropy": policy_entropy,
        "kl_reference": measures.kl_reference,
        "ent_loss": regulariser,
    }
    found = {name: reduce(column, weights, "mean") for name, column in columns.items()}
    if (
        measures.kl_uniform is not None
        and measures.max_entropy is not None
        and measures.hit is not None
        and measures.confidence is not None
    ):
        share, several = entropy_fractions(policy_entropy, measures.max_entropy.sum(-1))
        found["entropy_frac"] = reduce(share, torch.where(several, weights, 0.0), "mean")
        counts = several & (weights > 0)
        lowest = torch.where(counts, share, torch.inf).amin() if len(share) else share.new_tensor(torch.inf)
        found["entropy_frac_min"] = torch.where(lowest.isinf(), 0.0, lowest)
        found["kl_uniform"] = reduce(measures.kl_uniform.sum(-1), weights, "mean")
        found["accuracy"] = reduce(measures.hit.to(torch.float32).mean(-1), weights, "mean")
        spread = weights.unsqueeze(-1).expand(measures.confidence.shape)
        found["ece"] = calibration_error(measures.confidence, measures.hit, weights=spread)
    if by_component:
        for place, column in enumerate(measures.entropy.unbind(-1)):
            found[f"entropy_dim{place}"] = reduce(column, weights, "mean")
    values = torch.stack([value.to(torch.float32) for value in found.values()]).tolist()
    return dict(zip(found, values, strict=True))


def l2_norm(policy: nn.Module, units: ActionUnits | None = None) -> Tensor:
    """Half the sum of the squared parameters, as imitation defines it, the action layer's in normalised units."""
    own = {} if units is None else units.normalised_parameters()
    values = [own.get(id(parameter), parameter) for parameter in policy.parameters()]
    return torch.stack([value.square().sum() for value in values]).sum() / 2


def target_figures(head: ActionHead, smoothings: Smoothings) -> dict[str, Any]:
    """The target of each label as an image, by TensorBoard tag."""
    found = {}
    start = start_of(head.policy.action_space) or ()
    for name, matrix in target_matrices(head, smoothings).items():
        figure, axes = new_figure()
        dimension = name.partition("_dim")[2]
        first = start[int(dimension or 0)] if start else 0
        draw_target_matrix(axes, matrix, names=[str(first + place) for place in range(len(matrix))])
        found[f"bc/{name}"] = Figure(figure, close=False)
    return found


def distribution_figures(measures: TransitionMeasures) -> dict[str, Any]:
    """The distribution of entropies over states, and a reliability diagram, by TensorBoard tag."""
    found: dict[str, Any] = {"eval/entropy_per_state": measures.entropy.sum(-1).cpu()}
    if measures.confidence is not None and measures.hit is not None:
        figure, axes = new_figure()
        weights = measures.weights.unsqueeze(-1).expand(measures.confidence.shape)
        ece = float(calibration_error(measures.confidence, measures.hit, weights=weights))
        draw_reliability(axes, measures.reliability(), ece=ece)
        found["eval/reliability"] = Figure(figure, close=False)
    return found


def has_tensorboard(logger: Logger) -> bool:
    """Whether anybody sees figures: drawing takes longer than many a run."""
    return any(isinstance(output, TensorBoardOutputFormat) for output in logger.output_formats)


def write_to_tensorboard(logger: Logger, values: Mapping[str, Any], step: int) -> None:
    """Write figures and histograms past the logger's `dump`: without numbers that would be an empty table elsewhere."""
    for output in logger.output_formats:
        if isinstance(output, TensorBoardOutputFormat):
            for name, value in values.items():
                output.write({name: value}, {name: NOT_FOR_TEXT}, step=step)


def action_layers(agent: Any, demonstrations: Demonstrations, smoothing: Any = None) -> list[LastLayer]:
    """The last layer of an agent's policy with the demonstrations that reach it: one for each component of the action.

    For `rlsmooth.audits.attack_rows` and the others, which audit what gradients of cloning these transitions leak. A
    bit of a MultiBinary is a component of two choices, the first of which has the logit 0.

    Args:
        agent: a `BC`, an algorithm of Stable-Baselines3 or its actor-critic policy, with discrete actions.
        demonstrations: whose transitions are audited.
        smoothing: as `BC` takes it; None: a `BC`'s own, at the end of training.

    Raises:
        TypeError: a Gaussian policy (Box actions), one without a linear `action_net`, a recurrent one; no
            `Demonstrations`, such as a `Batch`.
        ValueError: no smoothing; demonstrations that do not fit it.

    Examples:
        >>> from rlsmooth.agents import BC
        >>> from rlsmooth.audits import attack_rows
        >>> from rlsmooth.data import cartpole_v1
        >>> episode = cartpole_v1().select_episodes([0])
        >>> agent = BC("MlpPolicy", None, episode, smoothing=0.1, seed=0, device="cpu")
        >>> (layer,) = action_layers(agent, episode)
        >>> attack_rows(layer)[0].success.estimate
        1.0
    """
    check_demonstrations("demonstrations", demonstrations)
    policy = getattr(agent, "policy", agent)
    net = getattr(policy, "action_net", None)
    if isinstance(getattr(policy, "action_space", None), spaces.Box):
        raise TypeError(
            f"agent has the action space {policy.action_space!r}, whose Gaussian head has no labels: audit agents with "
            "discrete actions, or BC(action_bins=...)."
        )
    if not isinstance(net, nn.Linear) or has_base(type(policy), RECURRENT[0]):
        raise TypeError(f"agent has the policy {type(policy).__name__}: use an actor-critic one that is not recurrent.")
    head = make_head(policy, policy.action_space, None)
    assert isinstance(head, CategoricalHead)
    smoothings: Smoothings | None = getattr(agent, "smoothings", None)
    if smoothing is not None:
        smoothings = as_smoothings(smoothing, head)
    if smoothings is None:
        raise ValueError("smoothing is None, but only a BC has its own: give the smoothing of the targets to audit.")
    data = TrainingData(
        demonstrations,
        head,
        policy.observation_space,
        smoothings=smoothings,
        references=None,
        bins=getattr(agent, "bins", None),
        device=policy.device,
    )
    batch = data.read(slice(0, len(data)))
    targets = action_target(head, smoothings, batch, progress=0.0) if batch.target is None else batch.target
    features: list[Tensor] = []
    handle = net.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    policy.set_training_mode(False)
    try:
        with torch.no_grad():
            head.outputs(batch.observations)
    finally:
        handle.remove()
    return _component_layers(head, net, features[0], targets, batch.masks)


def _component_layers(
    head: CategoricalHead, net: nn.Linear, features: Tensor, targets: ActionTarget, masks: Tensor | None
) -> list[LastLayer]:
    assert isinstance(targets, tuple)
    weight, bias = net.weight.detach(), net.bias.detach()
    parts: Sequence[Tensor | None]
    if head.kind == "multi_binary":
        weights = list(torch.stack((torch.zeros_like(weight), weight), 1))
        biases = list(torch.stack((torch.zeros_like(bias), bias), 1))
        targets = tuple(targets[0][:, bit] for bit in range(len(head.dims)))
        parts = [None] * len(targets) if masks is None else masks.reshape(len(masks), -1, 2).unbind(1)
    else:
        weights, biases = list(torch.split(weight, list(head.dims))), list(torch.split(bias, list(head.dims)))
        parts = head.mask_groups(masks)
    return [
        LastLayer(features, *layer, name=f"action {number}" if len(weights) > 1 else "action")
        for number, layer in enumerate(zip(weights, biases, targets, parts, strict=True))
    ]
