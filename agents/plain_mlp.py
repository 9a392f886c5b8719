"""Plain MLP policies of Stable-Baselines3 as matrices: actions and gradients, without modules and distributions.

Each number equals the policy's own bit for bit: the same operations of torch in the same order, and the same draws.
What is not plain (see `plain_network`) is left to the policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, Self, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from torch import Tensor, nn
from torch.nn.functional import elu_, linear, softmax

from rlsmooth.agents.sb3 import ModuleWatch
from rlsmooth.losses.gaussian import widened_log_std
from rlsmooth.losses.on_policy import bernoulli_entropy, bernoulli_log_prob, normal_entropy, normal_log_prob
from rlsmooth.losses.policy import normalised_logits
from rlsmooth.training.mlp_engine import why_not_served


class Activation(NamedTuple):
    """A function in place, and its gradient from the gradient, which it may overwrite, and the value of its output."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]
    reads_input: bool = False  # the gradient needs the value of the input, not of the output


def _tanh_backward(gradient: Tensor, output: Tensor) -> Tensor:
    found: Tensor = torch.ops.aten.tanh_backward.grad_input(gradient, output, grad_input=gradient)
    return found


def _relu_backward(gradient: Tensor, output: Tensor) -> Tensor:
    found: Tensor = torch.ops.aten.threshold_backward.grad_input(gradient, output, 0, grad_input=gradient)
    return found


def _elu_backward(gradient: Tensor, value: Tensor) -> Tensor:
    found: Tensor = torch.ops.aten.elu_backward.default(gradient, 1.0, 1.0, 1.0, False, value)
    return found


# autograd's own functions: `gradient * (1 - output**2)` may be rounded in another way.
ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.Tanh: Activation(torch.tanh_, _tanh_backward),
    nn.ReLU: Activation(torch.relu_, _relu_backward),
    nn.ELU: Activation(elu_, _elu_backward, reads_input=True),
}


@dataclass(frozen=True, eq=False)
class Layers:
    """Linear layers `(weight [out, in], bias [out])`, each with the activation that follows it, or None."""

    linears: tuple[tuple[Tensor, Tensor], ...]
    activations: tuple[Activation | None, ...]

    def __call__(self, inputs: Tensor) -> Tensor:
        """The outputs `[B, out]` of inputs `[B, in]`, without a graph."""
        if [weight.data_ptr() for weight, _ in self.linears] != self._detached[0]:  # `.data` was replaced
            del vars(self)["_detached"]
        for weight, bias, activation in self._detached[1]:
            inputs = torch.addmm(bias, inputs, weight)
            if activation is not None:
                activation.forward(inputs)
        return inputs

    @cached_property
    def _detached(self) -> tuple[list[int], list[tuple[Tensor, Tensor, Activation | None]]]:
        """Where the weights are in memory, and for each layer its transposed weight, bias and activation."""
        pairs = zip(self.linears, self.activations, strict=True)
        layers = [(weight.detach().t(), bias.detach(), activation) for (weight, bias), activation in pairs]
        return [weight.data_ptr() for weight, _ in self.linears], layers

    def each(self, inputs: Tensor) -> list[Tensor]:
        """The inputs of each layer, and last the outputs."""
        values = [inputs]
        for (weight, bias), activation in zip(self.linears, self.activations, strict=True):
            inputs = linear(inputs, weight, bias)
            values.append(inputs if activation is None else activation.forward(inputs))
            inputs = values[-1]
        return values

    def gradients(self, values: Sequence[Tensor], gradient: Tensor) -> dict[Tensor, Tensor]:
        """The gradient of each weight and bias, by `values` of `each` and the gradient of the outputs."""
        found: dict[Tensor, Tensor] = {}
        for place in reversed(range(len(self.linears))):
            weight, bias = self.linears[place]
            activation = self.activations[place]
            if activation is not None:
                known = linear(values[place], weight, bias) if activation.reads_input else values[place + 1]
                gradient = activation.backward(gradient, known)
            found[weight], found[bias] = gradient.t().mm(values[place]), gradient.sum(0)
            if place:
                gradient = gradient.mm(weight)
        return found

    def with_values(self, values: dict[Tensor, Tensor]) -> Self:
        """The same layers with other tensors in place of its parameters."""
        return type(self)(tuple((values[weight], values[bias]) for weight, bias in self.linears), self.activations)


class PlainCategorical:
    """Stable-Baselines3's distribution for Discrete and MultiDiscrete actions, or sb3-contrib's maskable one.

    Args:
        sizes: number of choices of each component of a MultiDiscrete; None: Discrete.
        is_maskable: whether it is sb3-contrib's.
    """

    def __init__(self, sizes: tuple[int, ...] | None, *, is_maskable: bool) -> None:
        self.sizes = sizes
        self.is_maskable = is_maskable

    def proba_distribution(self, outputs: Tensor) -> Self:
        """Take the network's outputs, `[B, sum(sizes)]`."""
        self._masks: Sequence[Tensor] | None = None
        self._totals: list[Tensor] = []
        self._unmasked = self._logits = [self._normalised(part) for part in self._split(outputs)]
        if self.is_maskable:
            self.apply_masking(None)
        return self

    def apply_masking(self, masks: Any) -> None:
        """Restrict to the legal choices: `[B, sum(sizes)]`, nonzero = legal; None: all are."""
        parts = self._unmasked
        if masks is not None:
            legal = torch.as_tensor(masks, dtype=torch.bool)
            legal = legal.reshape(parts[0].shape) if self.sizes is None else legal.reshape(-1, sum(self.sizes))
            self._masks = self._split(legal)
            huge = parts[0].new_tensor(-1e8)
            parts = [torch.where(mask, part, huge) for mask, part in zip(self._masks, parts, strict=True)]
        self._logits = [self._normalised(part) for part in parts]  # theirs does so again without masks, too

    def is_valid(self) -> bool:
        """Whether torch's distributions would take the outputs: none is NaN. Waits for the device."""
        total = self._totals[0] if len(self._totals) == 1 else torch.cat(self._totals)
        return math.isfinite((total if total.numel() == 1 else total.sum()).item())

    def get_actions(self, deterministic: bool = False, noise: Sequence[Tensor] | None = None) -> Tensor:
        """Actions `[B]`, or `[B, D]` of a MultiDiscrete: the most probable ones, or drawn, perhaps by given `noise`."""
        probabilities = [softmax(part, -1) for part in self._logits]
        if deterministic:
            parts = [part.argmax(dim=1) for part in probabilities]
        else:
            # As torch.multinomial draws one action, without its checks, which cost more than the draw.
            noise = [torch.empty_like(part).exponential_() for part in probabilities] if noise is None else noise
            parts = [(part / one).argmax(-1) for part, one in zip(probabilities, noise, strict=True)]
        return parts[0] if self.sizes is None else torch.stack(parts, dim=1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-probabilities, `[B]`, of int64 actions."""
        chosen = [actions] if self.sizes is None else actions.unbind(1)
        found = [part.gather(-1, one.unsqueeze(-1)).squeeze(-1) for part, one in zip(self._logits, chosen, strict=True)]
        return found[0] if self.sizes is None else torch.stack(found, dim=1).sum(dim=1)

    def entropy(self) -> Tensor:
        """Entropies, `[B]`."""
        masks: Sequence[Tensor | None] = self._masks or [None] * len(self._logits)
        found = []
        for part, mask in zip(self._logits, masks, strict=True):
            # In this order: a gradient with three summands depends on it.
            finite = torch.clamp(part, min=torch.finfo(part.dtype).min) if mask is None else part
            products = finite * softmax(part, -1)
            found.append(-(products if mask is None else torch.where(mask, products, 0.0)).sum(-1))
        return found[0] if self.sizes is None else torch.stack(found, dim=1).sum(dim=1)

    def _split(self, values: Tensor) -> Sequence[Tensor]:
        if self.sizes is None:
            return (values,)
        parts: tuple[Tensor, ...] = torch.split(values, list(self.sizes), dim=1)
        return parts

    def _normalised(self, logits: Tensor) -> Tensor:
        log_probs, total = normalised_logits(logits)
        self._totals.append(total)
        return log_probs


class PlainGaussian:
    """Stable-Baselines3's diagonal Gaussian, for Box actions before they are clipped."""

    def proba_distribution(self, outputs: Tensor, log_std: Tensor) -> Self:
        """Take the network's outputs, `[B, D]`, and its `log_std`, `[D]`."""
        self._mean = outputs
        self._std = torch.ones_like(outputs) * log_std.exp()
        return self

    def is_valid(self) -> bool:
        """Whether torch's `Normal` would take them: finite means, and positive deviations. Waits for the device."""
        mean, std = self._mean.detach().numpy(), self._std.detach().numpy()
        return bool(np.isfinite(mean).all() and (std > 0).all())

    def get_actions(self, deterministic: bool = False) -> Tensor:
        """Actions `[B, D]`: the means, or drawn."""
        if deterministic:
            return self._mean
        noise = torch.empty(self._mean.shape, dtype=self._mean.dtype, device=self._mean.device).normal_()
        return self._mean + noise * self._std

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-densities, `[B]`."""
        return normal_log_prob(actions, self._mean, self._std)

    def entropy(self) -> Tensor:
        """Differential entropies, `[B]`."""
        return normal_entropy(self._std)


class PlainBernoulli:
    """Stable-Baselines3's distribution for MultiBinary actions."""

    def proba_distribution(self, outputs: Tensor) -> Self:
        """Take the network's outputs, `[B, D]`."""
        self._logits = outputs
        return self

    def is_valid(self) -> bool:
        """Whether torch's `Bernoulli` would take the outputs: none is NaN. Waits for the device."""
        return not math.isnan(self._logits.sum().item())

    def get_actions(self, deterministic: bool = False) -> Tensor:
        """Actions `[B, D]`, 0.0 or 1.0: the most probable ones, or drawn."""
        probabilities = torch.sigmoid(self._logits)
        return torch.round(probabilities) if deterministic else torch.bernoulli(probabilities)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-probabilities, `[B]`."""
        return bernoulli_log_prob(actions, self._logits)

    def entropy(self) -> Tensor:
        """Entropies, `[B]`."""
        return bernoulli_entropy(self._logits)


PlainDistribution: TypeAlias = PlainCategorical | PlainGaussian | PlainBernoulli
MOST_VALUES = 64
"""Of more outputs, Python's numbers are slower than torch's."""
SURE = 1e-4
"""Scores further apart than this are in the same order whatever torch's rounding of probabilities does."""


def sure_choice(scores: list[float]) -> int | None:
    """The place of the largest score, or None where another is so close that rounding may decide."""
    best = max(scores)
    place = scores.index(best)
    scores[place] = -math.inf
    return place if best - max(scores) > SURE else None  # of NaN: None


@lru_cache(maxsize=64)
def deviations(log_std: tuple[float, ...], least: float | None) -> NDArray[np.float32] | None:
    """Standard deviations, `[D]`, scaled up to an entropy of `least` nats; kept for predictions one by one.

    None where torch has to decide: one is not above 0, or so large that numpy might warn of what it draws.

    Args:
        log_std: their logarithms.
        least: None: they are not scaled.
    """
    with torch.inference_mode(False), torch.no_grad():
        values = torch.tensor(log_std, dtype=torch.float32, device="cpu")
        found = (values if least is None else widened_log_std(values, least)).exp().numpy()
        return found if ((found > 0) & (found < 1e30)).all() else None


@dataclass(frozen=True, eq=False)
class PlainNetwork:
    """The layers of a plain MLP policy.

    Attributes:
        actor: from features to the outputs that a distribution takes.
        critic: from features to values `[B, 1]`.
        log_std: a Box's parameter, else None.
        observation_space: the policy's.
        normalize_images: the policy's.
        sizes: number of choices of each component of a MultiDiscrete, else None.
        is_maskable: whether the distribution is sb3-contrib's.
        is_binary: whether actions are a MultiBinary's.
    """

    actor: Layers
    critic: Layers
    log_std: Tensor | None
    observation_space: spaces.Space[Any]
    normalize_images: bool
    sizes: tuple[int, ...] | None
    is_maskable: bool
    is_binary: bool

    @cached_property
    def vector_shape(self) -> tuple[int, ...] | None:
        """The shape of one observation that `predict` serves, or None."""
        space = self.observation_space
        return space.shape if type(space) is spaces.Box and len(space.shape) in (1, 2) else None  # images have 3

    def features(self, observations: Tensor) -> Tensor:
        """The layers' inputs, `[B, in]`."""
        if (
            observations.ndim != 2
            or observations.dtype != torch.float32
            or type(self.observation_space) is not spaces.Box
        ):
            found = preprocess_obs(observations, self.observation_space, normalize_images=self.normalize_images)
            assert isinstance(found, Tensor)
            observations = found.flatten(1)
        return observations

    def distribution(self) -> PlainDistribution:
        """The policy's distribution, which takes the network's outputs next."""
        if self.log_std is not None:
            return PlainGaussian()
        return PlainBernoulli() if self.is_binary else PlainCategorical(self.sizes, is_maskable=self.is_maskable)

    def _distribution_at(self, outputs: Tensor, action_masks: Any, mixture: Any) -> Any:
        """The behaviour policy's distribution, or None where torch's own would refuse the outputs."""
        found: Any = self.distribution() if mixture is None else mixture
        found.proba_distribution(*((outputs,) if self.log_std is None else (outputs, self.log_std)))
        if action_masks is not None:
            found.apply_masking(action_masks)
        return found if mixture is not None or found.is_valid() else None

    def act(
        self, observations: Tensor, action_masks: Any = None, *, deterministic: bool, mixture: Any = None
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Actions, values and log-probabilities as the policy's `forward`; None for a graph, or what ends in an error.

        Args:
            observations: `[B, ...]`.
            action_masks: of a maskable policy, or None.
            deterministic: the most probable actions, else drawn ones.
            mixture: the behaviour policy, without outputs, where it is another than the network's; else None.
        """
        if torch.is_grad_enabled():
            return None
        features = self.features(observations)
        values = self.critic(features)
        distribution = self._distribution_at(self.actor(features), action_masks, mixture)
        if distribution is None:
            return None
        actions = distribution.get_actions(deterministic)
        return actions, values, distribution.log_prob(actions)

    def predict(
        self,
        observation: Any,
        action_masks: Any = None,
        *,
        deterministic: bool,
        action_space: spaces.Space[Any],
        mixture: Any = None,
    ) -> NDArray[Any] | None:
        """Actions as the policy's `predict`; None for what is no float array of the space's shape, or ends in an error.

        Args:
            observation: one observation, or a batch of them.
            action_masks: of a maskable policy, or None.
            deterministic: the most probable actions, else drawn ones.
            action_space: the policy's; a Box clips.
            mixture: as `act`'s.
        """
        shape = self.vector_shape
        if shape is None or type(observation) is not np.ndarray or observation.dtype not in _FLOATS:
            return None
        is_single = observation.shape == shape
        if not is_single and (observation.shape[1:] != shape or not len(observation)):
            return None
        # A copy, which a read-only array or one with negative strides needs.
        copied = observation.copy()
        features = torch.from_numpy(copied[None] if is_single else copied)
        if len(shape) == 2 or features.dtype != torch.float32:
            features = features.flatten(1).float()
        outputs = self.actor(features)
        actions = None
        if is_single or len(observation) == 1:
            if mixture is None:
                actions = self._one_action(outputs, action_masks, deterministic)
            else:
                actions = mixture.one_action(outputs, self.log_std, action_masks, deterministic)
        if actions is None:
            with torch.no_grad():
                distribution = self._distribution_at(outputs, action_masks, mixture)
                if distribution is None:
                    return None
                actions = distribution.get_actions(deterministic).numpy()
        shape = action_space.shape or ()
        actions = actions.reshape(shape if is_single else (-1, *shape))
        if isinstance(action_space, spaces.Box):
            actions = np.minimum(np.maximum(actions, action_space.low), action_space.high)  # quicker than its clip
        return actions

    def _one_action(self, outputs: Tensor, action_masks: Any, deterministic: bool) -> NDArray[Any] | None:
        """What the policy's distribution gives for one observation, by Python's numbers; None: it has to decide itself.

        Args:
            outputs: `[1, number of outputs]`.
            action_masks: as `predict`'s.
            deterministic: as `predict`'s.
        """
        values: list[float] = outputs.tolist()[0] if outputs.shape[1] <= MOST_VALUES else [math.nan]
        if not sum(map(abs, values)) < 1e6:  # or one is NaN
            return None
        if self.log_std is not None:
            std = deviations(tuple(self.log_std.tolist()), None)
            if std is None or deterministic:
                return None if std is None else outputs.numpy()
            drawn: NDArray[Any] = torch.randn_like(outputs).numpy() * std + outputs.numpy()
            return drawn
        if self.is_binary:
            return PlainBernoulli().proba_distribution(outputs).get_actions(deterministic).numpy()
        if action_masks is not None:
            if type(action_masks) is not np.ndarray or action_masks.size != len(values):
                return None
            legal = action_masks.ravel().tolist()
            values = [one if is_legal else -math.inf for one, is_legal in zip(values, legal, strict=True)]
        sizes = self.sizes or (len(values),)
        draws: Sequence[Tensor] | None = None
        if not deterministic:  # p / e is the largest where log p - log e is
            noise = torch.empty_like(outputs)
            draws = (noise,) if self.sizes is None else noise.split_with_sizes(sizes, 1)
            for part in draws:
                part.exponential_()
            pairs = zip(values, noise.tolist()[0], strict=True)
            values = [one - (math.log(e) if e else -math.inf) for one, e in pairs]
        chosen = [sure_choice(values[start:end]) for start, end in pairwise((0, *accumulate(sizes)))]
        if None not in chosen:
            return np.array(chosen, np.int64)
        distribution = self._distribution_at(outputs, action_masks, None)
        return distribution.get_actions(deterministic, draws).numpy()  # type: ignore[no-any-return]


_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_METHODS = frozenset(
    {"forward", "evaluate_actions", "predict", "_predict", "get_distribution", "predict_values", "extract_features"}
    | {"obs_to_tensor", "_get_action_dist_from_latent"}
)
_KINDS = (CategoricalDistribution, MultiCategoricalDistribution, DiagGaussianDistribution, BernoulliDistribution)
_known: WeakKeyDictionary[BasePolicy, tuple[ModuleWatch, object, PlainNetwork | None]] = WeakKeyDictionary()


def is_untouched(policy: BasePolicy) -> bool:
    """Whether no module of a policy has hooks, and the policy no methods of its own beside its class's."""
    return ModuleWatch(policy, _METHODS).is_as_before()


def plain_network(policy: BasePolicy) -> PlainNetwork | None:
    """The layers of a policy on the CPU whose class is known to be plain, or None if its parts are not plain.

    Plain parts: float32 parameters; separate layers for actor and critic, with Tanh, ReLU or ELU; observations of one
    space; Discrete, MultiDiscrete, MultiBinary and Box actions (no gSDE) that count from 0. No hooks, no own methods.

    Args:
        policy: of exactly one of the classes `ActorCriticPolicy`, `MaskableActorCriticPolicy` and their smoothed forms.
    """
    known = _known.get(policy)
    if known is None or known[1] is not vars(policy)["action_dist"] or not known[0].is_as_before():
        if not next(policy.parameters()).is_cpu:
            return None
        watch = ModuleWatch(policy, _METHODS)
        known = watch, vars(policy)["action_dist"], _read(policy) if watch.is_as_before() else None
        _known[policy] = known
    network = known[2]
    return network if network is None or network.actor.linears[0][0].is_cpu else None


def predict_plainly(
    policy: BasePolicy, observation: Any, action_masks: Any = None, *, deterministic: bool
) -> NDArray[Any] | None:
    """Actions as a policy's `predict`, if it is of exactly SB3's or sb3-contrib's class for MLPs and plain; else None.

    Args:
        policy: of any kind.
        observation: one observation, or a batch of them.
        action_masks: of a maskable policy, or None.
        deterministic: the most probable actions, else drawn ones.
    """
    kind = type(policy)
    if kind is not ActorCriticPolicy and not (
        kind.__name__ == "MaskableActorCriticPolicy" and kind.__module__.startswith("sb3_contrib.")
    ):
        return None
    network = plain_network(policy)
    if network is None or (action_masks is not None and not network.is_maskable):
        return None
    if policy.training:
        policy.set_training_mode(False)
    return network.predict(observation, action_masks, deterministic=deterministic, action_space=policy.action_space)


def _read(policy: Any) -> PlainNetwork | None:
    extractor, distribution = policy.mlp_extractor, policy.action_dist
    kind = type(distribution)
    is_maskable = kind.__name__.startswith("Maskable") and kind.__module__.startswith("sb3_contrib.")
    if (
        type(policy.features_extractor) is not FlattenExtractor
        or type(extractor) is not MlpExtractor
        or not policy.share_features_extractor
        or not (kind in _KINDS or is_maskable)
    ):
        return None
    actor = _layers(extractor.policy_net, policy.action_net)
    critic = _layers(extractor.value_net, policy.value_net)
    if actor is None or critic is None:
        return None
    parameters = [id(one) for pair in (*actor.linears, *critic.linears) for one in pair]
    if len(set(parameters)) < len(parameters):  # shared layers: the gradients of their uses add up
        return None
    sizes = getattr(distribution, "action_dims", None)
    return PlainNetwork(
        actor,
        critic,
        policy.log_std if kind is DiagGaussianDistribution else None,
        policy.observation_space,
        policy.normalize_images,
        tuple(map(int, sizes)) if isinstance(sizes, (list, np.ndarray)) else None,
        is_maskable,
        kind is BernoulliDistribution,
    )


def _layers(hidden: nn.Module, head: nn.Module) -> Layers | None:
    if type(hidden) is not nn.Sequential:
        return None
    modules = [*hidden, head]
    if why_not_served(modules) is not None:
        return None
    linears = [(module.weight, module.bias) for module in modules if isinstance(module, nn.Linear)]
    activations = [ACTIVATIONS[type(module)] for module in modules if type(module) in ACTIVATIONS]
    return Layers(tuple(linears), (*activations, None))
