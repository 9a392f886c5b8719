"""Cloning's forward and backward pass in numpy, for actors that are plain multilayer perceptrons: `engine="numpy"`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn

from rlsmooth.agents.cloning.measures import l2_norm
from rlsmooth.agents.cloning.training_data import DENSE_CLASSES, BlockPart, Smoothings, TrainingData, action_target
from rlsmooth.agents.heads import (
    ActionHead,
    ActionUnits,
    CategoricalHead,
    GaussianHead,
    TensorBatch,
    actor_modules,
    why_not_mlp,
)
from rlsmooth.agents.plain_mlp import is_untouched
from rlsmooth.agents.sb3 import has_hooks
from rlsmooth.checks import check_choice
from rlsmooth.losses.output_gradients import cross_entropy_gradient
from rlsmooth.training.flat import FlatAdam
from rlsmooth.training.mlp_engine import ENGINES, MLP, Array
from rlsmooth.training.run import Progress

_LOSSES = 256
"""Losses are kept in tensors of so many: one tensor for each takes as long as three layers."""


def why_not_numpy(agent: Any) -> str | None:
    """The reason why the policy of a `BC` can't be trained in numpy, or None where it can."""
    network, accumulation = agent.policy, agent.gradient_accumulation
    if agent.amp:
        return "amp=True"
    if accumulation > 1:
        return f"gradient_accumulation={accumulation}, where a larger batch_size makes the same update"
    if not agent.head.direct:
        return f"{type(network).__name__} has a distribution of its own"
    reason = why_not_mlp(network)
    if reason is not None:
        return reason
    trained = _trained(network, agent.head)
    known = {id(one) for group in network.optimizer.param_groups for one in group["params"]}
    if not is_untouched(network) or any(has_hooks(one) for one in trained):
        return "the policy has hooks or methods of its own"
    if not all(one.requires_grad and id(one) in known for one in trained) or len(network.optimizer.param_groups) > 1:
        return "the optimiser does not have all parameters of the actor in one group, or some are frozen"
    return None


def _trained(network: Any, head: ActionHead) -> list[nn.Parameter]:
    """The parameters of the actor."""
    found = [parameter for module in actor_modules(network) for parameter in module.parameters()]
    return [*found, network.log_std] if isinstance(head, GaussianHead) else found


def check_engine(agent: Any) -> None:
    """Raise ValueError if the engine of a `BC` is unknown, or can't train its policy."""
    check_choice("engine", agent.engine, ENGINES)
    if agent.engine == "numpy" and (reason := why_not_numpy(agent)):
        raise ValueError(f"engine='numpy' can't be used: {reason}. Use engine='torch'.")


def numpy_updates_of(agent: Any, data: TrainingData | None) -> NumpyUpdates:
    """The updates of a `BC` in numpy."""
    check_engine(agent)
    assert data is not None
    return NumpyUpdates(
        agent.policy,
        agent.head,
        data,
        smoothings=agent.smoothings,
        kl_coef=agent.kl_coef,
        l2_coef=agent.l2_coef,
        max_grad_norm=agent.max_grad_norm,
        units=agent.units,
        progress=agent.progress,
    )


class NumpyUpdates:
    """Updates of a cloned policy in numpy; the optimiser's state and the parameters stay where they are.

    Targets of few classes without a KL term are served in closed form. Whatever else a head knows (Gaussians, KL terms,
    schedules of alpha, many classes) goes from the outputs on through its own loss, so that there is one definition.

    Args:
        policy: one for which `why_not_numpy` finds nothing.
        head: of its action space.
        data: to train on.
        smoothings: how labels become targets, where their alpha follows a schedule.
        kl_coef: the coefficient of the KL term.
        l2_coef: of the L2 term over all parameters of the policy.
        max_grad_norm: the gradient's norm is clipped to it; None: no clipping.
        units: in which a Gaussian's last layer is trained.
        progress: of the run, for a schedule of alpha.
    """

    def __init__(
        self,
        policy: BasePolicy,
        head: ActionHead,
        data: TrainingData,
        *,
        smoothings: Smoothings,
        kl_coef: float,
        l2_coef: float,
        max_grad_norm: float | None,
        units: ActionUnits | None,
        progress: Progress,
    ) -> None:
        self._policy: Any = policy
        self._head, self._data, self._units = head, data, units
        self._smoothings, self._progress = smoothings, progress
        self._kl_coef, self._l2_coef, self._max_grad_norm = kl_coef, l2_coef, max_grad_norm
        self._prepare()
        self._features = np.empty((0, 0), np.float32)
        self._groups: list[_Group] | None = None
        self._count = 0

    def _prepare(self) -> None:
        """Take the parameters, gradients and moments that are trained as they are now."""
        policy = self._policy
        trained = {id(one) for one in _trained(policy, self._head)}
        parameters = [one for one in policy.parameters() if self._l2_coef or id(one) in trained]
        self._others = [one for one in parameters if id(one) not in trained]
        self._adam = FlatAdam(policy.optimizer, parameters)
        self._actor = MLP(actor_modules(policy))

    def updates(
        self, order: Tensor, batch_size: int, num_parts: int, skip: int = 0, end: int | None = None
    ) -> Iterator[tuple[BlockPart]]:
        """The updates of an epoch; see `TrainingData.blocks`. `num_parts` is 1."""
        cut, mean_weight = self._data.cut(batch_size, num_parts), self._data.mean_weight or 1.0
        for block, begin, numbers in self._data.blocks(order, batch_size, num_parts, skip, end):
            last_start, last_end = cut.bounds(numbers[-1])  # only the last may be of another size
            factors = np.full(block.size, 1 / (cut.size * mean_weight), np.float32)
            factors[last_start - begin :] = 1 / ((last_end - last_start) * mean_weight)
            self._take(block, factors if block.weights is None else factors * block.weights.numpy())
            for number in numbers:
                start, last = cut.bounds(number)
                yield (BlockPart(block, start - begin, last - begin),)

    def update(self, minibatch: BlockPart) -> Tensor:
        """One step on the mean loss of a minibatch that `updates` gave last. Returns that loss."""
        with np.errstate(all="ignore"):  # what is not finite is an error later
            loss = self._by_head(minibatch) if self._groups is None else self._in_closed_form(minibatch, self._groups)
        if self._l2_coef:
            for parameter in self._others:
                assert parameter.grad is not None
                parameter.grad.zero_()
            penalty = self._l2_coef * l2_norm(self._policy, self._units)
            penalty.backward()  # type: ignore[no-untyped-call]
            loss = loss + penalty.detach()
        if self._units is None:
            self._adam.step(self._max_grad_norm)
            return loss
        self._units.scale_gradients()
        with self._units.normalised():
            self._adam.step(self._max_grad_norm)
        return loss

    def refresh(self) -> None:
        """Follow what a callback may have replaced: parameters, the optimiser or its options."""
        if not self._adam.is_current(self._policy.optimizer):
            self._prepare()

    @contextmanager
    def flat_memory(self) -> Iterator[None]:
        """After it each parameter has its own memory again, whatever happens."""
        try:
            yield
        finally:
            self._adam.release()

    def _take(self, block: TensorBatch, factors: Array) -> None:
        """Features and targets of a block as arrays, once for all its minibatches; `factors` are those of losses."""
        extractor = self._policy.pi_features_extractor
        with torch.no_grad():
            self._features = self._policy.extract_features(block.observations, extractor).numpy()
        self._groups, head, target = None, self._head, block.target
        if not isinstance(head, CategoricalHead) or head.kind == "multi_binary" or self._kl_coef:
            return
        if not isinstance(target, tuple) or max(part.num_classes for part in target) > DENSE_CLASSES:
            return
        self._groups, end, column = [], 0, factors[:, None]
        for part, mask in zip(target, head.mask_groups(block.masks), strict=True):
            start, end = end, end + part.num_classes
            probs = np.asfortranarray(part.dense(torch.float32).numpy() * column)  # as the outputs are
            mass = np.add.reduce(probs, -1, keepdims=True)
            self._groups.append(_Group(slice(start, end), probs, mass, None if mask is None else mask.numpy()))

    def _in_closed_form(self, minibatch: BlockPart, groups: list[_Group]) -> Tensor:
        """The mean of weighted losses; the actor's parameters get its gradient."""
        _, start, end = minibatch
        outputs = self._actor.forward(self._features[start:end])
        if len(groups) == 1:
            value, gradient = groups[0].loss(outputs, start, end)
        else:
            value, gradient = 0.0, np.empty_like(outputs)
            for group in groups:
                part, gradient[:, group.place] = group.loss(outputs[:, group.place], start, end)
                value += part
        self._actor.backward(gradient)
        place, self._count = self._count % _LOSSES, self._count + 1
        if not place:
            self._losses = torch.empty(_LOSSES)
            self._of_updates = self._losses.unbind()
            self._values = self._losses.numpy()
        self._values[place] = value
        return self._of_updates[place]

    def _by_head(self, minibatch: BlockPart) -> Tensor:
        """The head's own loss of the actor's outputs; the parameters, log std too, get its gradient."""
        part, mean_weight = minibatch.tensors(), self._data.mean_weight
        target = part.target
        if target is None:
            target = action_target(self._head, self._smoothings, part, progress=self._progress.remaining_of_all)
        leaves = [torch.from_numpy(self._actor.forward(self._features[minibatch.start : minibatch.end]))]
        leaves[0].requires_grad_()
        if isinstance(self._head, GaussianHead):
            leaves.append(self._policy.log_std)
            outputs = tuple(leaves)
        else:
            outputs = self._head.groups(leaves[0])
        loss = self._head.loss(outputs, part, target, self._kl_coef, "mean" if mean_weight is None else "sum")
        if mean_weight is not None:
            loss = loss / (part.size * mean_weight)
        gradient, *others = torch.autograd.grad(loss, leaves)
        self._actor.backward(gradient.numpy())
        if others:
            self._policy.log_std.grad.copy_(others[0])
        return loss.detach()


class _Group(NamedTuple):
    """A component of the actions in a block: its targets times the factors of losses, and their sums."""

    place: slice
    probs: Array
    mass: Array
    mask: NDArray[np.bool_] | None

    def loss(self, outputs: Array, start: int, end: int) -> tuple[float, Array]:
        """Of the transitions from `start` up to `end`, with the gradient."""
        mask = None if self.mask is None else self.mask[start:end]
        return cross_entropy_gradient(outputs, self.probs[start:end], mass=self.mass[start:end], mask=mask)
