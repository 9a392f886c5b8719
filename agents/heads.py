"""Action heads: how a policy's output becomes logits, or a mean and log standard deviation, and which loss reads it.

A head is the only place that knows an action space. `CategoricalHead` serves Discrete, MultiDiscrete and MultiBinary,
`GaussianHead` serves Box. Both read a standard policy without its critic and without building a distribution; of a
policy with its own `get_distribution` they read the distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from stable_baselines3.common.policies import BaseModel
from torch import Tensor

from rlsmooth.losses import cross_entropy, gaussian_cross_entropy, gaussian_kl_divergence, kl_divergence
from rlsmooth.losses.arguments import Reduction, reduce
from rlsmooth.targets import GaussianTarget, Target

TensorObservations: TypeAlias = Tensor | dict[str, Tensor]
ActionTarget: TypeAlias = tuple[Target, ...] | GaussianTarget
"""One `Target` for each group of components (see `CategoricalHead`), or a Gaussian's."""


class TensorBatch(NamedTuple):
    """Some transitions on the training device.

    Attributes:
        observations: `[B, ...]`, or a dict of such.
        labels: int64 `[B]` (Discrete) or `[B, D]`, counted from 0; float `[B, D]` for a Box.
        masks: bool `[B, sum of the components' choices]`, True = legal.
        weights: `[B]`.
        probs: `[B, K]`, soft targets.
        target: made once where alpha is constant, else None: `action_target` makes it.
        reference: of the KL term where it is not the uniform one.
    """

    observations: TensorObservations
    labels: Tensor
    masks: Tensor | None = None
    weights: Tensor | None = None
    probs: Tensor | None = None
    target: ActionTarget | None = None
    reference: tuple[Target, ...] | None = None


@dataclass(frozen=True, eq=False)
class CategoricalHead:
    """Logits of a Discrete, MultiDiscrete or MultiBinary action.

    Components (MultiDiscrete's dimensions, MultiBinary's bits) are independent, so that cross-entropy, KL and entropy
    of an action are sums over them. They come in groups that one loss call can take: Discrete is one group `[B, K]`,
    MultiDiscrete one group `[B, K_d]` a dimension, MultiBinary one group `[B, D, 2]` whose logits are `(0, x)`.

    Attributes:
        policy: the policy, on its device.
        kind: `"discrete"`, `"multi_discrete"` or `"multi_binary"`.
        dims: each component's number of choices.
        direct: whether the policy is a standard one, whose layers can be called without a distribution.
    """

    policy: Any
    kind: str
    dims: tuple[int, ...]
    direct: bool

    def outputs(self, observations: TensorObservations) -> tuple[Tensor, ...]:
        """Logits of each group."""
        if self.direct:
            return self.groups(actor_output(self.policy, observations))
        distribution = self.policy.get_distribution(observations)
        parts = distribution.distributions if "distributions" in vars(distribution) else distribution.distribution
        if isinstance(parts, list):  # one Categorical a dimension
            return self.groups(torch.cat([part.logits for part in parts], dim=-1))
        return self.groups(parts.logits)

    def groups(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Cut `[B, sum of choices]` (logits, masks) into groups; a Bernoulli's logits are `[B, D]`."""
        if self.kind == "discrete":
            return (flat,)
        if self.kind == "multi_discrete":
            return torch.split(flat, list(self.dims), dim=-1)
        if flat.shape[-1] == len(self.dims):
            return (torch.stack((torch.zeros_like(flat), flat), dim=-1),)
        return (flat.reshape(-1, len(self.dims), 2),)

    def label_groups(self, labels: Tensor) -> tuple[Tensor, ...]:
        """Labels as the groups have them: `[B]` for logits `[B, K]`, `[B, D]` for logits `[B, D, 2]`."""
        return labels.unbind(-1) if self.kind == "multi_discrete" else (labels,)

    def mask_groups(self, masks: Tensor | None) -> tuple[Tensor | None, ...]:
        """Masks as the groups have them."""
        if masks is None:
            return (None,) * (len(self.dims) if self.kind == "multi_discrete" else 1)
        return self.groups(masks)

    def loss(
        self,
        outputs: tuple[Tensor, ...],
        batch: TensorBatch,
        target: ActionTarget,
        kl_coef: float,
        reduction: Reduction,
    ) -> Tensor:
        """`CE(target, pi) + kl_coef · KL(reference‖pi)` in nats, summed over components.

        Args:
            outputs: of the method `outputs`.
            batch: whose masks, weights and reference are used.
            target: of the batch.
            kl_coef: coefficient of the KL term.
            reduction: over the transitions; "mean" divides by the sum of weights.
        """
        assert isinstance(target, tuple)
        masks = self.mask_groups(batch.masks)
        total: Tensor | None = None
        for place, (logits, goal, mask) in enumerate(zip(outputs, target, masks, strict=True)):
            weight = _spread(batch.weights, logits)
            loss = cross_entropy(logits, goal, mask=mask, weight=weight, reduction=reduction)
            if kl_coef != 0:
                reference = None if batch.reference is None else batch.reference[place]
                kl = kl_divergence(logits, reference, direction="reference_to_policy", mask=mask, reduction="none")
                loss = loss + kl_coef * reduce(kl, weight, reduction)
            if logits.ndim == 3 and reduction == "mean":  # over transitions, not components
                loss = loss * logits.shape[1]
            total = loss if total is None else total + loss
        assert total is not None
        return total


@dataclass(frozen=True, eq=False)
class GaussianHead:
    """Mean and log standard deviation of a Box action, flattened to `[B, D]`.

    Attributes:
        policy: the policy, on its device.
        direct: whether the policy is a standard one, whose layers can be called without a distribution.
        reference_mean: `[D]`, of the broad Gaussian that smoothing and the KL term refer to.
        reference_std: `[D]`.
    """

    policy: Any
    direct: bool
    reference_mean: Tensor
    reference_std: Tensor

    def outputs(self, observations: TensorObservations) -> tuple[Tensor, ...]:
        """`(mean [B, D], log_std [D] or [B, D])`."""
        if self.direct:
            return actor_output(self.policy, observations), self.policy.log_std
        normal = self.policy.get_distribution(observations).distribution
        return normal.mean, normal.stddev.log()

    def loss(
        self,
        outputs: tuple[Tensor, ...],
        batch: TensorBatch,
        target: ActionTarget,
        kl_coef: float,
        reduction: Reduction,
    ) -> Tensor:
        """`CE(target, pi) + kl_coef · KL(reference‖pi)` in nats, summed over dimensions."""
        assert isinstance(target, GaussianTarget)
        mean, log_std = outputs
        loss = gaussian_cross_entropy(mean, log_std, target, weight=batch.weights, reduction=reduction)
        if kl_coef != 0:
            reference = self.reference_mean, self.reference_std
            kl = gaussian_kl_divergence(mean, log_std, *reference, direction="reference_to_policy", reduction="none")
            loss = loss + kl_coef * reduce(kl, batch.weights, reduction)
        return loss


ActionHead: TypeAlias = CategoricalHead | GaussianHead


def actor_output(policy: Any, observations: TensorObservations) -> Tensor:
    """The output of the action net, from which `ActorCriticPolicy.get_distribution` builds the distribution."""
    features = BaseModel.extract_features(policy, observations, policy.pi_features_extractor)
    output: Tensor = policy.action_net(policy.mlp_extractor.forward_actor(features))
    return output


def _spread(weights: Tensor | None, logits: Tensor) -> Tensor | None:
    """Weights `[B]` of transitions for the components of a group, `[B]` or `[B, D]`."""
    if weights is None or logits.ndim == 2:
        return weights
    return weights.unsqueeze(-1).expand(logits.shape[:-1])
