"""Action heads: how a policy's output becomes logits, or a mean and log standard deviation, and which loss reads it.

A head is the only place that knows an action space. `CategoricalHead` serves Discrete, MultiDiscrete and MultiBinary,
`GaussianHead` serves Box, and `ActionUnits` says in which units it is trained. Both heads read a standard policy
without its critic and without building a distribution; of a policy with its own `get_distribution` they read the
distribution.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module

from rlsmooth.agents.plain_mlp import plain_network
from rlsmooth.agents.sb3 import has_hooks
from rlsmooth.data import Demonstrations
from rlsmooth.losses import cross_entropy, gaussian_cross_entropy, gaussian_kl_divergence, kl_divergence
from rlsmooth.losses.arguments import Reduction, reduce
from rlsmooth.losses.closed_form import mean_and_gradient
from rlsmooth.targets import GaussianTarget, Target
from rlsmooth.training.flat import take_step
from rlsmooth.training.mlp_engine import why_not_served

CHUNK_TRANSITIONS = 65_536
_GLOBAL_HOOKS = [hooks for name, hooks in vars(torch_module).items() if re.match("_global_(back|for)ward", name)]
"""Of all modules: torch's own function that looks at them is newer than the oldest torch we allow."""
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

    @property
    def size(self) -> int:
        """How many transitions they are."""
        return len(self.labels)


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


def backward_of_plain(
    head: ActionHead, batch: TensorBatch, target: ActionTarget, kl_coef: float, total: float | None
) -> Tensor | None:
    """`head.loss(...).backward()` without modules and their graph, to the bit, where the actor is a plain MLP.

    Args:
        head: of the actor, whose parameters have no gradients.
        batch: a minibatch.
        target: of the batch.
        kl_coef: coefficient of the KL term.
        total: what the sum of the losses is divided by; None: their mean is taken.

    Returns:
        The loss; None: the actor is of another kind, and nothing was done.
    """
    observations = batch.observations
    network = plain_network(head.policy) if head.direct and isinstance(observations, Tensor) else None
    if network is None or any(_GLOBAL_HOOKS):
        return None
    trained = [part for pair in network.actor.linears for part in pair]
    trained += [] if network.log_std is None else [network.log_std]
    if not all(one.requires_grad and not has_hooks(one) for one in trained):
        return None
    assert isinstance(observations, Tensor)
    with torch.no_grad():
        values = network.actor.each(network.features(observations))
    loss, (by_outputs, *by_log_std) = _loss_and_gradients(head, values[-1], batch, target, kl_coef, total)
    with torch.no_grad():
        found = network.actor.gradients(values, by_outputs)
    for parameter, gradient in found.items():
        parameter.grad = gradient
    for gradient in by_log_std:
        head.policy.log_std.grad = gradient
    return loss


def _loss_and_gradients(
    head: ActionHead, outputs: Tensor, batch: TensorBatch, target: ActionTarget, kl_coef: float, total: float | None
) -> tuple[Tensor, Sequence[Tensor]]:
    """A loss of the actor's outputs, detached, and its gradients with respect to them and a Gaussian's log std."""
    is_plain = total is None and not kl_coef and batch.masks is None
    if is_plain and isinstance(target, tuple) and isinstance(head, CategoricalHead) and head.kind == "discrete":
        known = mean_and_gradient(outputs, target[0])
        if known is not None:
            return known[0], known[1:]
    leaves = [outputs.requires_grad_()]
    parts: tuple[Tensor, ...]
    if isinstance(head, GaussianHead):
        leaves.append(head.policy.log_std)
        parts = tuple(leaves)
    else:
        parts = head.groups(outputs)
    loss = head.loss(parts, batch, target, kl_coef, "mean" if total is None else "sum")
    if total is not None:
        loss = loss / total
    return loss.detach(), torch.autograd.grad(loss, leaves)


def actor_output(policy: Any, observations: TensorObservations) -> Tensor:
    """The output of the action net, from which `ActorCriticPolicy.get_distribution` builds the distribution."""
    extractor, networks = policy.pi_features_extractor, policy.mlp_extractor
    network = networks.policy_net if type(networks) is MlpExtractor else None
    hooked = any(_GLOBAL_HOOKS)
    if hooked or type(network) is not nn.Sequential or not _is_unhooked(network):
        features = BaseModel.extract_features(policy, observations, extractor)
        return policy.action_net(networks.forward_actor(features))  # type: ignore[no-any-return]
    output: Any = observations
    if not _are_features(policy, observations, extractor):
        output = BaseModel.extract_features(policy, observations, extractor)
    for layer in (*network, policy.action_net):
        if not _is_unhooked(layer):
            output = layer(output)
        elif type(layer) is nn.Linear:
            parameters = vars(layer)["_parameters"]
            output = F.linear(output, parameters["weight"], parameters["bias"])
        else:
            output = layer.forward(output)
    return output  # type: ignore[no-any-return]


def _are_features(policy: Any, observations: TensorObservations, extractor: nn.Module) -> bool:
    """Whether the features of the observations are they themselves: float32 vectors, which nothing is done to."""
    return (
        type(extractor) is FlattenExtractor
        and isinstance(observations, Tensor)
        and observations.ndim == 2
        and observations.dtype is torch.float32
        and type(policy.observation_space) is spaces.Box
        and _is_unhooked(extractor)
        and _is_unhooked(extractor.flatten)
    )


def _is_unhooked(module: nn.Module) -> bool:
    """Whether a call of the module is a call of its `forward`; torch takes longer to ask than small layers compute."""
    own = vars(module)
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or own.get("_compiled_call_impl") is not None
        or type(module).__call__ is not nn.Module.__call__
    )


def actor_modules(policy: Any) -> list[nn.Module]:
    """The layers from a policy's features to its action net's output."""
    return [*policy.mlp_extractor.policy_net, policy.action_net]


def why_not_mlp(policy: Any) -> str | None:
    """The reason why a policy's actor is not a plain multilayer perceptron that numpy can compute, or None where it is.

    Args:
        policy: an actor-critic one, on its device.
    """
    extractor, networks = policy.features_extractor, policy.mlp_extractor
    if type(extractor) is not FlattenExtractor:
        return f"its features extractor is a {type(extractor).__name__}; FlattenExtractor is known"
    if type(networks) is not MlpExtractor:
        return f"its mlp_extractor is a {type(networks).__name__}; MlpExtractor is known"
    return why_not_served(actor_modules(policy))


def _spread(weights: Tensor | None, logits: Tensor) -> Tensor | None:
    """Weights `[B]` of transitions for the components of a group, `[B]` or `[B, D]`."""
    if weights is None or logits.ndim == 2:
        return weights
    return weights.unsqueeze(-1).expand(logits.shape[:-1])


# ---- the units in which a Gaussian's last layer is trained: about [-1, 1], whatever the environment's are


@dataclass(frozen=True, eq=False)
class ActionUnits:
    """An affine map of each action dimension, `action = shift + scale · normalised action`, and the layer it is for.

    The policy answers in the environment's units at all times, as Stable-Baselines3 expects, and its files are those of
    any policy. Only an optimiser's step sees the layer in normalised units: gradients are multiplied by `scale`, and
    weights are converted there and back. So a step of the same learning rate is the same share of any width.

    Attributes:
        layer: the last layer of the actor.
        shift: `[D]`.
        scale: `[D]`, powers of two, by which numbers are multiplied and divided without rounding.
        spread: `[D]`, half the width, or the standard deviation of the demonstrated actions.
        unbounded: bool `[D]`: these dimensions have no finite bounds.
    """

    layer: nn.Linear
    shift: Tensor
    scale: Tensor
    spread: Tensor
    unbounded: Tensor

    def reference(self, mean: Tensor, std: Tensor, *, std_given: bool) -> tuple[Tensor, Tensor]:
        """The broad Gaussian `[D]` of smoothing, that of the demonstrated actions where there are no bounds."""
        mean = torch.where(self.unbounded, self.shift, mean)
        return mean, std if std_given else torch.where(self.unbounded, self.spread, std)

    @torch.no_grad()
    def scale_gradients(self) -> None:
        """Turn the gradients of the layer in place into those of its normalised form."""
        for parameter, factor in ((self.layer.weight, self.scale.unsqueeze(1)), (self.layer.bias, self.scale)):
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def normalised_parameters(self) -> dict[int, Tensor]:
        """By `id`, what the layer's parameters are in normalised units; gradients run through."""
        weight, bias = self.layer.weight, self.layer.bias
        return {id(weight): weight / self.scale.unsqueeze(1), id(bias): (bias - self.shift) / self.scale}

    @contextmanager
    def normalised(self) -> Iterator[None]:
        """Within the block, the layer's output is in normalised units."""
        with torch.no_grad():
            self.layer.weight.div_(self.scale.unsqueeze(1))
            self.layer.bias.sub_(self.shift).div_(self.scale)
        try:
            yield
        finally:
            with torch.no_grad():
                self.layer.weight.mul_(self.scale.unsqueeze(1))
                self.layer.bias.mul_(self.scale).add_(self.shift)


def make_units(
    policy: BasePolicy,
    space: spaces.Space[Any],
    demonstrations: Demonstrations | None,
    *,
    given: object,
    policy_kwargs: Mapping[str, Any] | None,
) -> ActionUnits | None:
    """The units of a policy's Box; a policy that was just built is moved to the middle of the actions.

    A dimension with finite bounds has their middle and half their distance; one without has the mean and the standard
    deviation of the demonstrated actions, or 0 and 1 where there are none.

    Args:
        policy: a Gaussian one, on its device.
        space: of its actions.
        demonstrations: where dimensions without bounds take their units from.
        given: what the user gave as the policy; an instance is not moved.
        policy_kwargs: with a `log_std_init` other than 0, the initial standard deviation is the user's and stays.

    Returns:
        None if the units are the environment's own already: another space than a Box, one of about [-1, 1], or a policy
        whose last layer is not linear.
    """
    layer = getattr(policy, "action_net", None)
    if not isinstance(space, spaces.Box) or not isinstance(layer, nn.Linear):
        return None
    middle, spread, bounded = _middle_and_spread(space, demonstrations)
    if layer.out_features != len(middle) or (not middle.any() and (spread == 1.0).all()):
        return None
    shift, scale, width = (
        torch.as_tensor(values, dtype=layer.weight.dtype, device=layer.weight.device)
        for values in (middle, np.exp2(np.round(np.log2(spread))), spread)
    )
    if not isinstance(given, BasePolicy):
        with torch.no_grad():
            layer.weight.mul_(scale.unsqueeze(1))
            layer.bias.mul_(scale).add_(shift)
            log_std = getattr(policy, "log_std", None)
            if isinstance(log_std, Tensor) and not (policy_kwargs or {}).get("log_std_init", 0.0):
                log_std.add_(width.log())
    return ActionUnits(layer, shift, scale, width, torch.as_tensor(~bounded, device=layer.weight.device))


def step_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Iterable[Tensor],
    max_grad_norm: float | None,
    units: ActionUnits | None,
) -> None:
    """Clip the gradient's norm, and take one step, both with the action layer in normalised units."""
    if units is not None:
        units.scale_gradients()
    if max_grad_norm is not None:
        nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    if units is None:
        take_step(optimizer)
        return
    with units.normalised():
        take_step(optimizer)


def _middle_and_spread(space: spaces.Box, demonstrations: Demonstrations | None) -> tuple[Any, Any, Any]:
    """Middle and half width of each dimension, float64 `[D]`, and whether it has bounds."""
    low, high = (bound.astype(np.float64).ravel() for bound in (space.low, space.high))
    with np.errstate(invalid="ignore"):  # where there are no bounds
        half, middle = high / 2 - low / 2, low / 2 + high / 2
    bounded = np.square(half) < float(np.finfo(np.float32).max)  # as `box_reference` says
    middle, spread = np.where(bounded, middle, 0.0), np.where(bounded & (half > 0), half, 1.0)
    if demonstrations is not None and len(demonstrations) and not bounded.all():
        mean, std = _moments(demonstrations)
        middle = np.where(bounded, middle, mean)
        spread = np.where(bounded | (std <= np.abs(mean) * 1e-6), spread, std)
    return middle, spread, bounded


def _moments(demonstrations: Demonstrations) -> tuple[Any, Any]:
    """Mean and standard deviation of each action dimension, in float64, read in chunks."""
    count = len(demonstrations)
    chunks = [slice(start, start + CHUNK_TRANSITIONS) for start in range(0, count, CHUNK_TRANSITIONS)]

    def rows(chosen: slice) -> Any:
        values = np.asarray(demonstrations.actions[chosen], dtype=np.float64)
        return values.reshape(len(values), -1)

    mean = sum(rows(chosen).sum(0) for chosen in chunks) / count
    variance = sum(np.square(rows(chosen) - mean).sum(0) for chosen in chunks) / count
    return mean, np.sqrt(variance)
