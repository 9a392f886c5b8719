"""Updates of PPO and A2C for plain MLP policies: bit for bit the parents', without their modules, graphs and waiting.

The rollout becomes tensors once. Only the loss of the network's outputs is differentiated by autograd; the layers'
gradients are written down (`Layers.gradients`). Adam runs over all parameters as one tensor. The numbers to log stay on
the device until the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import explained_variance
from torch import Tensor, nn

from rlsmooth.agents.plain_mlp import PlainNetwork
from rlsmooth.agents.sb3 import begin_update, count_updates, has_hooks, progress_remaining
from rlsmooth.agents.smoothed.policies import SmoothedPolicy
from rlsmooth.losses.on_policy import a2c_losses, normalised_advantages, ppo_losses

# ---- what is served


def plain_network_of(algorithm: OnPolicyAlgorithm) -> PlainNetwork | None:
    """The policy's layers, if `lean_update_of` serves the algorithm as it is now; else None: the parent's `train` does.

    Served are policies of exactly `SmoothedActorCriticPolicy` or its maskable form with plain parts (`plain_network`),
    all of whose parameters are trained; Stable-Baselines3's own rollout buffer, or sb3-contrib's maskable one.
    """
    policy, buffer = algorithm.policy, algorithm.rollout_buffer
    network = policy.plain_network() if isinstance(policy, SmoothedPolicy) else None
    kind = type(buffer)
    known = kind is RolloutBuffer or (
        kind.__name__ == "MaskableRolloutBuffer" and kind.__module__.startswith("sb3_contrib.")
    )
    if network is None or not known or "get" in vars(buffer) or algorithm.use_sde or has_hooks(policy.optimizer):
        return None
    assert isinstance(policy, SmoothedPolicy)
    if policy.is_regularised and policy.entropy_term is None:
        return None  # the parent's loss may ignore the regulariser, of which the policy warns
    given = {part for layers in (network.actor, network.critic) for pair in layers.linears for part in pair}
    given |= set() if network.log_std is None else {network.log_std}
    trained = [one for group in policy.optimizer.param_groups for one in group["params"]]
    is_whole = list(map(id, trained)) == list(map(id, policy.parameters())) and given == set(trained)
    return network if is_whole and all(one.requires_grad and not has_hooks(one) for one in trained) else None


# ---- the rollout


class RolloutPart(NamedTuple):
    """Some transitions of a rollout; see SB3's `RolloutBufferSamples`."""

    observations: Tensor
    actions: Tensor
    old_values: Tensor
    old_log_prob: Tensor
    advantages: Tensor
    returns: Tensor
    action_masks: Tensor | None = None


class Rollout:
    """A full rollout buffer as tensors.

    Args:
        buffer: left as its own `get` leaves it.
        action_space: Discrete and MultiDiscrete actions become int64.
    """

    def __init__(self, buffer: RolloutBuffer, action_space: spaces.Space[Any]) -> None:
        assert buffer.full
        self.size = buffer.buffer_size * buffer.n_envs
        fields = vars(buffer)
        names = ["observations", "actions", "values", "log_probs", "advantages", "returns"]
        names += ["action_masks"] if "action_masks" in fields else []
        if not buffer.generator_ready:
            fields.update({name: buffer.swap_and_flatten(fields[name]) for name in names})
            buffer.generator_ready = True
        self.observations, actions, *numbers = (torch.from_numpy(fields[name]) for name in names)
        is_box = isinstance(action_space, spaces.Box)
        # Through float32, as `get` gives them.
        actions = actions.float() if is_box else actions.float().long()
        actions = actions.flatten() if isinstance(action_space, spaces.Discrete) else actions
        self.columns = [actions, *(column.flatten() for column in numbers[:4]), *numbers[4:]]

    def minibatches(self, size: int | None) -> Iterator[RolloutPart]:
        """All transitions in a random order, `size` at a time, drawn from numpy's generator as `get` draws them."""
        order = torch.from_numpy(np.random.permutation(self.size))  # noqa: NPY002  # the generator that SB3 seeds
        step = size or self.size
        columns = [torch.split(column.index_select(0, order), step) for column in self.columns]
        for places, *parts in zip(torch.split(order, step), *columns, strict=True):
            # Memory of its own, aligned as a parent's minibatch is: it enters a matrix product.
            yield RolloutPart(self.observations.index_select(0, places), *parts)


# ---- one gradient step


class ExactAdam:
    """torch's Adam over all parameters as one tensor, and the clipping before it: the same numbers in fewer calls.

    Args:
        optimizer: one that it serves. Its state and the parameters are up to date after `finish`.
        max_norm: of the gradient.

    Attributes:
        values: the parameters, parts of the one tensor.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
        self.group, self.state, self.max_norm = optimizer.param_groups[0], optimizer.state, max_norm
        self.parameters: list[Tensor] = self.group["params"]
        for one in self.parameters:
            if not self.state[one]:
                zeros = {name: torch.zeros_like(one) for name in ("exp_avg", "exp_avg_sq")}
                self.state[one] |= {"step": torch.tensor(0.0), **zeros}
        self.steps = int(self.state[self.parameters[0]]["step"])
        # Each begins at 64 bytes, as torch's own tensors do: a matrix product's last bit depends on that.
        self.sizes = [one.numel() for one in self.parameters]
        self.gaps = [torch.zeros(-size % 16) for size in self.sizes]
        self.flat = self._join(one.detach() for one in self.parameters)
        self.mean, self.square = (
            self._join(self.state[one][name] for one in self.parameters) for name in ("exp_avg", "exp_avg_sq")
        )
        self.gradient = torch.zeros_like(self.flat)
        self.values = self._parts(self.flat)

    @staticmethod
    def serves(optimizer: torch.optim.Optimizer) -> bool:
        """Whether it is Adam of the kind that this repeats, with one group of parameters."""
        group, *others = optimizer.param_groups
        unusual = ("amsgrad", "maximize", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay")
        return (
            type(optimizer) is torch.optim.Adam
            and not others
            and not any(group.get(name) for name in unusual)
            and not any(isinstance(value, Tensor) for value in (group["lr"], *group["betas"]))
            and len({float(optimizer.state[one].get("step", 0.0)) for one in group["params"]}) == 1
        )

    @torch.no_grad()
    def step(self, gradients: list[Tensor]) -> None:
        """Clip the gradients and take one step."""
        self._join(gradients, out=self.gradient)
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(one) for one in gradients]))
        gradient = self.gradient.mul_(torch.clamp(self.max_norm / (norm + 1e-6), max=1.0))
        self.steps += 1
        (beta1, beta2), group = self.group["betas"], self.group
        if group["weight_decay"]:
            gradient = gradient.add(self.flat, alpha=group["weight_decay"])
        self.mean.lerp_(gradient, 1 - beta1)
        self.square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        bias = (1 - float(beta2) ** self.steps) ** 0.5
        denominator = (self.square.sqrt() / bias).add_(group["eps"])
        self.flat.addcdiv_(self.mean, denominator, value=-(group["lr"] / (1 - float(beta1) ** self.steps)))

    @torch.no_grad()
    def finish(self) -> None:
        """Write parameters, gradients and state back to where they came from."""
        joined = zip(*map(self._parts, (self.flat, self.gradient, self.mean, self.square)), strict=True)
        for parameter, (value, gradient, mean, square) in zip(self.parameters, joined, strict=True):
            parameter.copy_(value)
            parameter.grad = gradient.clone()
            self.state[parameter]["exp_avg"].copy_(mean)
            self.state[parameter]["exp_avg_sq"].copy_(square)
            self.state[parameter]["step"].fill_(self.steps)

    def _join(self, tensors: Iterable[Tensor], out: Tensor | None = None) -> Tensor:
        pairs = zip(tensors, self.gaps, strict=True)
        return torch.cat([part for one, gap in pairs for part in (one.flatten(), gap) if len(part)], out=out)

    def _parts(self, joined: Tensor) -> list[Tensor]:
        sizes = [size for one, gap in zip(self.sizes, self.gaps, strict=True) for size in (one, len(gap))]
        pairs = zip(torch.split(joined, sizes)[::2], self.parameters, strict=True)
        return [part.view(one.shape) for part, one in pairs]


class PlainSteps:
    """Any optimiser behind the interface of `ExactAdam`."""

    def __init__(self, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
        self.optimizer, self.max_norm = optimizer, max_norm
        self.parameters: list[Tensor] = [one for group in optimizer.param_groups for one in group["params"]]
        self.values = self.parameters

    def step(self, gradients: list[Tensor]) -> None:
        """Clip the gradients and take one step."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        self.optimizer.step()

    def finish(self) -> None:
        """Nothing is left to do."""


class GradientSteps:
    """The gradient steps of one update.

    Args:
        algorithm: one that `plain_network_of` serves.
        network: what that gave.
        optimizer: of its parameters.
    """

    def __init__(self, algorithm: OnPolicyAlgorithm, network: PlainNetwork, optimizer: ExactAdam | PlainSteps) -> None:
        policy = algorithm.policy
        assert isinstance(policy, SmoothedPolicy)
        self.policy, self.network, self.optimizer = policy, network, optimizer
        is_smoothed = policy.entropy_term is not None or policy.has_floor
        self.mixture = policy.mixture(is_regularised=policy.entropy_term is not None) if is_smoothed else None
        self.with_entropy = algorithm.ent_coef != 0
        values = dict(zip(optimizer.parameters, optimizer.values, strict=True))
        self.actor, self.critic = network.actor.with_values(values), network.critic.with_values(values)
        self.log_std = None if network.log_std is None else values[network.log_std]

    def evaluate(self, batch: RolloutPart) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values, log-probabilities and entropies (or None) as the policy's `evaluate_actions`, `[B]` each."""
        with torch.no_grad():
            features = self.network.features(batch.observations)
            self._actor, self._critic = self.actor.each(features), self.critic.each(features)
        self._leaves = [self._actor[-1].requires_grad_(), self._critic[-1].requires_grad_()]
        outputs: list[Any] = [self._leaves[0]]
        if self.log_std is not None:
            self._leaves.append(self.log_std.detach().requires_grad_())
            outputs.append(self._leaves[-1])
        distribution: Any = self.mixture
        if distribution is None:
            distribution = self.network.distribution()
        else:
            outputs.append(self.policy.outputs_of_reference(batch.observations))
        distribution.proba_distribution(*outputs)
        if batch.action_masks is not None:
            distribution.apply_masking(batch.action_masks)
        log_prob = distribution.log_prob(batch.actions)
        with torch.set_grad_enabled(self.with_entropy):  # at a coefficient of 0 its gradient is 0
            entropy = distribution.entropy()
        return self._leaves[1].flatten(), log_prob, entropy

    def step(self, loss: Tensor) -> None:
        """Take one step with the gradient of a loss of what `evaluate` gave last."""
        actor, critic, *more = torch.autograd.grad(loss, self._leaves)
        with torch.no_grad():
            found = self.actor.gradients(self._actor, actor) | self.critic.gradients(self._critic, critic)
        if self.log_std is not None:
            found[self.log_std] = more[0]
        self.optimizer.step([found[value] for value in self.optimizer.values])


# ---- updates


def update_ppo(algorithm: Any, network: PlainNetwork) -> None:
    """The `train` of PPO and MaskablePPO.

    Args:
        algorithm: one that `plain_network_of` serves.
        network: what that gave.

    Raises:
        ValueError: the policy's outputs became NaN, with which torch's distributions end in the parent's.
    """
    policy, remaining = algorithm.policy, progress_remaining(algorithm)
    begin(algorithm)
    clips = {"clip_range": algorithm.clip_range(remaining)}
    clips["clip_range_vf"] = None if algorithm.clip_range_vf is None else algorithm.clip_range_vf(remaining)
    rollout = Rollout(algorithm.rollout_buffer, algorithm.action_space)
    kind = ExactAdam if ExactAdam.serves(policy.optimizer) else PlainSteps
    steps = GradientSteps(algorithm, network, kind(policy.optimizer, algorithm.max_grad_norm))
    logged: list[Tensor] = []
    start, more = 0, True
    try:
        for epoch in range(algorithm.n_epochs):
            start = len(logged)
            for batch in rollout.minibatches(algorithm.batch_size):
                advantages, of_one = batch.advantages, len(batch.advantages) == 1 and isinstance(algorithm, PPO)
                if algorithm.normalize_advantage and not of_one:
                    advantages = normalised_advantages(advantages)
                losses = ppo_losses(
                    *steps.evaluate(batch),
                    old_values=batch.old_values,
                    old_log_prob=batch.old_log_prob,
                    advantages=advantages,
                    returns=batch.returns,
                    ent_coef=algorithm.ent_coef,
                    vf_coef=algorithm.vf_coef,
                    **clips,
                )
                logged.append(torch.stack([one.detach() for one in losses]))
                if algorithm.target_kl is not None and losses.approx_kl.numpy() > 1.5 * algorithm.target_kl:
                    more = False
                    if algorithm.verbose >= 1:
                        print(f"Early stopping at step {epoch} due to reaching max kl: {losses.approx_kl.numpy():.2f}")
                    break
                steps.step(losses.loss)
            n_updates = count_updates(algorithm, 1)
            if not more:
                break
    finally:
        steps.optimizer.finish()
    table = np.array(torch.stack(logged).tolist())  # the one time that this waits for the device
    check_outputs(steps, table[:, 0], table[:, 3])
    logger, buffer = algorithm.logger, algorithm.rollout_buffer
    for place, name in enumerate(("entropy_loss", "policy_gradient_loss", "value_loss", "approx_kl", "clip_fraction")):
        column = table[start:, place].astype(np.float32) if name == "approx_kl" else table[:, place]
        logger.record(f"train/{name}", np.mean(column))
    logger.record("train/loss", float(table[-1, 5]))
    logger.record("train/explained_variance", explained_variance(buffer.values.flatten(), buffer.returns.flatten()))
    if isinstance(algorithm, PPO) and network.log_std is not None:
        logger.record("train/std", torch.exp(network.log_std).mean().item())
    logger.record("train/n_updates", n_updates, exclude="tensorboard")
    for name, value in clips.items():
        if value is not None:
            logger.record(f"train/{name}", value)


def update_a2c(algorithm: Any, network: PlainNetwork) -> None:
    """The `train` of A2C.

    Args:
        algorithm: one that `plain_network_of` serves.
        network: what that gave.

    Raises:
        ValueError: as `update_ppo`.
    """
    begin(algorithm)
    # One step: to make one tensor of all parameters takes longer.
    steps = GradientSteps(algorithm, network, PlainSteps(algorithm.policy.optimizer, algorithm.max_grad_norm))
    (batch,) = Rollout(algorithm.rollout_buffer, algorithm.action_space).minibatches(None)
    losses = a2c_losses(
        *steps.evaluate(batch),
        advantages=normalised_advantages(batch.advantages) if algorithm.normalize_advantage else batch.advantages,
        returns=batch.returns,
        ent_coef=algorithm.ent_coef,
        vf_coef=algorithm.vf_coef,
    )
    numbers = torch.stack([one.detach() for one in losses[:3]]).tolist()
    check_outputs(steps, np.array(numbers[:1]), np.array(numbers[1:2]))
    steps.step(losses.loss)
    logger, buffer = algorithm.logger, algorithm.rollout_buffer
    explained = explained_variance(buffer.values.flatten(), buffer.returns.flatten())
    logger.record("train/n_updates", count_updates(algorithm, 1), exclude="tensorboard")
    logger.record("train/explained_variance", explained)
    for name, number in zip(("entropy_loss", "policy_loss", "value_loss"), numbers, strict=True):
        logger.record(f"train/{name}", number)
    if network.log_std is not None:
        logger.record("train/std", torch.exp(network.log_std).mean().item())


def begin(algorithm: OnPolicyAlgorithm) -> None:
    """Set the policy to train, and the optimiser's learning rate, as each `train` does."""
    algorithm.policy.set_training_mode(True)
    begin_update(algorithm, algorithm.policy.optimizer)


def check_outputs(steps: GradientSteps, entropies: NDArray[np.float64], others: NDArray[np.float64]) -> None:
    """Raise ValueError where torch's own distributions, which the parent makes, refuse the network's outputs."""
    if steps.mixture is None and not (np.isfinite(entropies).all() and not np.isnan(others).any()):
        raise ValueError("the policy's outputs are NaN, or its standard deviation is 0: lower learning_rate.")


def lean_update_of(train: Any) -> Callable[[Any, PlainNetwork], None] | None:
    """The update that equals a parent's bound method `train`; None: there is none for it."""
    own = train.__func__
    if own is A2C.train:
        return update_a2c
    is_maskable = own.__qualname__ == "MaskablePPO.train" and own.__module__.startswith("sb3_contrib.")
    return update_ppo if own is PPO.train or is_maskable else None
