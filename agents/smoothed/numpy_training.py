"""Rollouts and updates of on-policy algorithms with the networks in numpy: `engine="numpy"`."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from rlsmooth.agents.heads import actor_modules, why_not_mlp
from rlsmooth.agents.plain_mlp import is_untouched
from rlsmooth.agents.sb3 import begin_update, count_updates, has_hooks
from rlsmooth.agents.smoothed.policies import SmoothedActorCriticPolicy
from rlsmooth.checks import check_choice
from rlsmooth.losses import guaranteed_floor
from rlsmooth.losses.output_gradients import (
    CategoricalOutputs,
    GaussianOutputs,
    clipped_surrogate,
    policy_gradient_surrogate,
    squared_error_gradient,
)
from rlsmooth.training.flat import FlatAdam
from rlsmooth.training.mlp_engine import ENGINES, MLP, Array, Engine, why_not_served


def critic_modules(policy: Any) -> list[nn.Module]:
    """The layers from a policy's features to the value."""
    return [*policy.mlp_extractor.value_net, policy.value_net]


def why_not_numpy(algorithm: OnPolicyAlgorithm) -> str | None:
    """The reason why an algorithm can't be computed by `NumpyTraining`, or None where it can.

    Args:
        algorithm: built.
    """
    policy, kind = algorithm.policy, type(algorithm.rollout_buffer)
    if type(policy) is not SmoothedActorCriticPolicy:
        return f"the policy is a {type(policy).__name__}; MlpPolicy (SmoothedActorCriticPolicy) is known"
    if policy.use_sde or policy.squash_output:
        return "the policy uses gSDE or squashes its outputs"
    if kind is not RolloutBuffer or {"get", "add"} & vars(algorithm.rollout_buffer).keys():
        return f"the rollout buffer is a {kind.__name__} of its own; Stable-Baselines3's RolloutBuffer is known"
    reason = why_not_mlp(policy) or why_not_served(critic_modules(policy))
    if reason is not None:
        return reason
    layers = [*actor_modules(policy), *critic_modules(policy)]
    parameters = [one for module in layers for one in module.parameters()]
    trained = [one for group in policy.optimizer.param_groups for one in group["params"]]
    if len({id(one) for one in parameters}) < len(parameters):
        return "actor and critic share layers"
    if len(policy.optimizer.param_groups) > 1 or list(map(id, trained)) != list(map(id, policy.parameters())):
        return "the optimiser does not have the parameters of the policy, in one group"
    if not all(one.requires_grad for one in trained):
        return "some parameters are frozen"
    if not is_untouched(policy) or any(map(has_hooks, (policy.optimizer, *trained))):
        return "the policy or its optimiser has hooks or methods of its own"
    return None


class NumpyActorCritic:
    """Actor and critic in numpy, on the parameters of a policy that `why_not_numpy` finds nothing against.

    Discrete actions of a policy without another reference than the uniform one, and Box actions of one without a floor
    too, are served in closed form. All others go from the network's outputs on through the policy's own distribution,
    so that there is one definition of each.

    Args:
        policy: the policy.
        ent_coef: the coefficient in the loss of H(pi), or of what the policy gives in its place.

    Attributes:
        in_closed_form: whether losses are.
        reads_observations: whether `log_prob` needs observations.
    """

    def __init__(self, policy: SmoothedActorCriticPolicy, ent_coef: float = 0.0) -> None:
        self._policy: Any = policy
        self._actor, self._critic = MLP(actor_modules(policy)), MLP(critic_modules(policy))
        space, observed = policy.action_space, policy.observation_space
        self._is_box, self._is_discrete = isinstance(space, spaces.Box), isinstance(space, spaces.Discrete)
        self._start = int(space.start) if isinstance(space, spaces.Discrete) else 0
        self._floor = 0.0
        if isinstance(space, spaces.Discrete) and not any(policy.references or ()):
            self._floor = policy.exploration_floor or guaranteed_floor(policy.min_entropy_frac, int(space.n))
        self._has_closed_draws = (self._is_box or self._is_discrete) and policy.has_floor == (self._floor > 0)
        term = policy.entropy_term
        self.in_closed_form = (
            self._has_closed_draws
            and (not self._floor or term is not None or ent_coef == 0)  # without a term it is the mixture's entropy
            and policy.reference is None
            and policy.reference_policy is None
            and (term is None or term.target is None)
        )
        self._entropy_coef, self._kl_coef = ent_coef, 0.0
        if term is not None and self.in_closed_form:
            self._entropy_coef, self._kl_coef = term.entropy_coef, float(term.kl_coef)
        if self._is_box:
            self._log_std: Array = self._policy.log_std.detach().numpy()
            buffers = dict(policy.named_buffers())
            self._reference = buffers["reference_mean"].numpy(), buffers["reference_stds"].numpy()
        self.reads_observations = policy.reference_policy is not None
        self._is_vector = type(observed) is spaces.Box and not is_image_space(observed)

    def features(self, observations: Any) -> Array:
        """What both networks read, float32 `[B, F]`."""
        if self._is_vector:
            return np.asarray(observations, np.float32).reshape(len(observations), -1)
        with torch.no_grad():
            found: Array = self._policy.extract_features(torch.as_tensor(observations)).numpy()
        return found

    def values(self, features: Array) -> Array:
        """The critic's values, `[B]`."""
        return self._critic.forward(features)[:, 0].copy()

    def is_current(self) -> bool:
        """Whether the policy's parameters are still where they were."""
        return self._actor.is_current() and self._critic.is_current()

    def act(self, features: Array) -> tuple[NDArray[Any], Array]:
        """Drawn actions as the policy's `forward` gives them, and their log-probabilities, `[B]`.

        Draws in closed form are of numpy's global generator, which Stable-Baselines3 seeds and shuffles with.
        """
        outputs = self._actor.forward(features)
        if not self._has_closed_draws:
            with torch.no_grad():
                found = self._policy.distribution_of_outputs(torch.from_numpy(outputs))
                actions = found.get_actions()
                return actions.numpy(), found.log_prob(actions).numpy()
        if self._is_box:
            noise = np.random.standard_normal(outputs.shape).astype(np.float32)  # noqa: NPY002 - checkpoints keep it
            drawn = outputs + np.exp(self._log_std) * noise
            return drawn, _finite(GaussianOutputs(outputs, self._log_std).log_prob(drawn))
        pi = CategoricalOutputs(outputs, floor=self._floor)
        below = np.add.accumulate(pi.behaviour[:, :-1], -1)
        draws = np.random.random_sample((len(outputs), 1))  # noqa: NPY002 - Stable-Baselines3 seeds it
        chosen = np.add.reduce(draws > below, -1)
        return chosen + self._start, _finite(pi.log_prob(chosen))

    def stored_actions(self, actions: NDArray[Any]) -> NDArray[Any]:
        """A buffer's actions, `[N, D]`, as `log_prob` takes them."""
        if self.in_closed_form and self._is_discrete:
            return actions.ravel().astype(np.int64) - self._start
        return actions.astype(np.float32)

    def log_prob(self, features: Array, actions: NDArray[Any], observations: NDArray[Any] | None) -> Array:
        """Log-probabilities of a minibatch, `[B]`; `backward` takes their gradient.

        Args:
            features: float32 `[B, F]`.
            actions: of `stored_actions`.
            observations: for a reference policy, which reads them itself.
        """
        outputs = self._actor.forward(features)
        self._actions = actions
        if self.in_closed_form:
            if self._is_box:
                self._pi: Any = GaussianOutputs(outputs, self._log_std)
            else:
                self._pi = CategoricalOutputs(outputs, floor=self._floor)
            return self._pi.log_prob(actions)  # type: ignore[no-any-return]
        self._leaf = torch.from_numpy(outputs).requires_grad_()
        found = self._policy.distribution_of_outputs(
            self._leaf, None if observations is None else torch.from_numpy(observations), regularised=True
        )
        chosen = torch.from_numpy(actions)
        self._log_prob = found.log_prob(chosen.long().flatten() if self._is_discrete else chosen)
        self._entropy = found.entropy()
        return self._log_prob.detach().numpy()  # type: ignore[no-any-return]

    def entropy_loss(self) -> tuple[float, float]:
        """Of the last minibatch: the loss's term of entropy and KL, and the mean entropy, or what stands for it."""
        if not self.in_closed_form:
            found = -self._log_prob if self._entropy is None else self._entropy
            mean = float(found.detach().mean())
            return -self._entropy_coef * mean, mean
        is_mixed = self._floor and self._policy.entropy_term is None
        mean = float((self._pi.behaviour_entropy() if is_mixed else self._pi.entropy()).mean())
        if not self._kl_coef:
            return -self._entropy_coef * mean, mean
        kl = self._pi.kl_reference(*self._reference) if self._is_box else self._pi.kl_uniform()
        return self._kl_coef * float(kl.mean()) - self._entropy_coef * mean, mean

    def backward(self, by_log_prob: Array) -> None:
        """Write the gradients of the actor's parameters into their `grad`.

            loss = policy loss - mean(entropy_coef · H(pi) - kl_coef · KL(reference‖pi))

        Args:
            by_log_prob: the gradient of the policy loss with respect to the log-probabilities, `[B]`.
        """
        size = len(by_log_prob)
        coefficients = {"by_entropy": -self._entropy_coef / size, "by_kl": self._kl_coef / size}
        if not self.in_closed_form:
            entropy = -self._log_prob if self._entropy is None else self._entropy
            loss = (self._log_prob * torch.from_numpy(by_log_prob)).sum() - self._entropy_coef * entropy.mean()
            leaves = [self._leaf, self._policy.log_std] if self._is_box else [self._leaf]
            gradient, *others = torch.autograd.grad(loss, leaves)
            if others:
                self._policy.log_std.grad.copy_(others[0])
            self._actor.backward(gradient.numpy())
        elif self._is_box:
            by_mean, by_log_std = self._pi.gradient(by_log_prob, reference=self._reference, **coefficients)
            self._policy.log_std.grad.numpy()[...] = by_log_std
            self._actor.backward(by_mean)
        else:
            self._actor.backward(self._pi.gradient(self._actions, by_log_prob, **coefficients))

    def backward_of_values(self, by_values: Array) -> None:
        """Write the gradients of the critic's parameters into their `grad`, for the last call of `values`.

        Args:
            by_values: the gradient of the loss with respect to the values, `[B]`.
        """
        self._critic.backward(by_values[:, None])


def _finite(log_probs: Array) -> Array:
    if not np.isfinite(log_probs).all():
        raise ValueError("the policy's outputs are NaN or infinite: lower learning_rate, or set max_grad_norm.")
    return log_probs


class NumpyTraining(OnPolicyAlgorithm):
    """A mixin: rollouts and updates of PPO and A2C with the networks in numpy.

    Attributes:
        engine: `"torch"` or `"numpy"`.
    """

    engine: Engine = "torch"  # of files that were written before there was another

    def check_engine(self) -> None:
        """Raise ValueError if the engine is unknown, or can't compute the policy."""
        check_choice("engine", self.engine, ENGINES)
        reason = why_not_numpy(self) if self.engine == "numpy" else None
        if reason is not None:
            raise ValueError(f"engine='numpy' can't be used: {reason}. Use engine='torch'.")

    def collect_in_numpy(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Collect a rollout as `OnPolicyAlgorithm.collect_rollouts` does, with other random numbers.

        Args:
            env: the environments.
            callback: called at each step.
            rollout_buffer: the buffer to fill.
            n_rollout_steps: steps of each environment.
        """
        assert self._last_obs is not None
        assert self._last_episode_starts is not None
        policy: Any = self.policy
        policy.set_training_mode(False)
        space, buffer = self.action_space, rollout_buffer
        buffer.reset()
        callback.on_rollout_start()
        self.check_engine()
        networks = NumpyActorCritic(policy)
        new_obs: Any = self._last_obs
        dones = self._last_episode_starts
        features = networks.features(new_obs)
        for n_steps in range(n_rollout_steps):  # names as in Stable-Baselines3, whose callbacks read some
            buffer.pos = n_steps
            with np.errstate(all="ignore"):  # what is not finite is an error of its own
                actions, log_probs = networks.act(features)
            actions = actions.reshape(-1, *(space.shape or ()))
            values = networks.values(features)
            buffer.log_probs[n_steps], buffer.values[n_steps] = log_probs, values
            buffer.observations[n_steps] = np.reshape(new_obs, buffer.observations[n_steps].shape)
            buffer.actions[n_steps] = np.reshape(actions, buffer.actions[n_steps].shape)
            buffer.episode_starts[n_steps] = self._last_episode_starts
            clipped_actions = np.clip(actions, space.low, space.high) if isinstance(space, spaces.Box) else actions
            new_obs, rewards, dones, infos = env.step(clipped_actions)
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            if not networks.is_current():  # the callback replaced parameters
                networks = NumpyActorCritic(policy)
            self._update_info_buffer(infos, dones)
            for ended in np.flatnonzero(dones):
                last = infos[ended].get("terminal_observation")
                if last is not None and infos[ended].get("TimeLimit.truncated", False):
                    rewards[ended] += self.gamma * networks.values(networks.features(np.asarray(last)[None]))[0]
            buffer.rewards[n_steps] = rewards
            self._last_obs, self._last_episode_starts = new_obs, dones
            features = networks.features(new_obs)
        buffer.pos, buffer.full = n_rollout_steps, True
        last_values = torch.from_numpy(networks.values(features))
        buffer.compute_returns_and_advantage(last_values=last_values, dones=dones)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def train_in_numpy(self, n_epochs: int, batch_size: int | None) -> None:
        """Update as PPO's or A2C's own `train` does, and record what it records.

        Args:
            n_epochs: passes over the rollout.
            batch_size: samples of a minibatch; None: the whole rollout.
        """
        algorithm: Any = self
        policy, optimizer, buffer = algorithm.policy, algorithm.policy.optimizer, algorithm.rollout_buffer
        policy.set_training_mode(True)
        begin_update(self, optimizer)
        self.check_engine()
        clip_range, value_range = (
            None if (schedule := getattr(self, name, None)) is None else schedule(self._current_progress_remaining)
            for name in ("clip_range", "clip_range_vf")
        )
        target_kl = getattr(self, "target_kl", None)
        updates: list[_Update] = []
        stops = False
        with FlatAdam(optimizer, policy.parameters()) as adam:
            networks = NumpyActorCritic(policy, self.ent_coef)
            rollout = _Rollout.of(buffer, networks)
            size = len(rollout.features)
            step = size if batch_size is None else batch_size
            for epoch in range(n_epochs):
                shuffled = rollout.take(np.random.permutation(size))  # noqa: NPY002 - as Stable-Baselines3
                first = len(updates)
                for start in range(0, size, step):
                    part = shuffled.take(slice(start, start + step))
                    with np.errstate(all="ignore"):  # what is not finite is an error below
                        update = self._gradients(networks, part, clip_range, value_range)
                    updates.append(update)
                    stops = target_kl is not None and update.kl > 1.5 * target_kl
                    if stops:
                        if self.verbose >= 1:
                            print(f"Early stopping at step {epoch} due to reaching max kl: {update.kl:.2f}")
                        break
                    adam.step(self.max_grad_norm)
                n_updates = count_updates(self, 1)
                if stops:
                    break
        if not np.isfinite(updates).all():
            raise ValueError("a loss of the update is not finite: lower learning_rate, or set max_grad_norm.")
        if policy.entropy_term is not None and networks.in_closed_form:
            for update in updates:
                policy.entropy_term.record(torch.tensor([update.entropy]))
        self._record(updates, first, clip_range, value_range)
        self.logger.record("train/n_updates", n_updates, exclude="tensorboard")

    def _gradients(
        self, networks: NumpyActorCritic, part: _Rollout, clip_range: float | None, value_range: float | None
    ) -> _Update:
        """Write the gradients of a minibatch's loss into the parameters' `grad`."""
        algorithm: Any = self
        advantages = part.advantages
        if algorithm.normalize_advantage and (len(advantages) > 1 or clip_range is None):
            offset = advantages - np.add.reduce(advantages) / np.float32(len(advantages))
            deviation = math.sqrt(float(np.dot(offset, offset)) / max(len(offset) - 1, 1))
            advantages = offset / np.float32(deviation + 1e-8)
        log_prob = networks.log_prob(part.features, part.actions, part.observations)
        if clip_range is None:  # A2C
            found = policy_gradient_surrogate(log_prob, advantages)
        else:
            found = clipped_surrogate(log_prob, part.log_probs, advantages, clip_range)
        values = networks.values(part.features)
        value_loss, by_values = squared_error_gradient(values, part.returns, part.values, value_range)
        entropy_loss, entropy = networks.entropy_loss()
        networks.backward(found.gradient)
        networks.backward_of_values(by_values * np.float32(self.vf_coef))
        loss = found.loss + entropy_loss + self.vf_coef * value_loss
        return _Update(found.loss, value_loss, entropy, found.kl, found.clip_fraction, loss)

    def _record(self, updates: list[_Update], first: int, clip_range: float | None, value_range: float | None) -> None:
        """Record what the parent's `train` does; `first` is the first update of the last pass."""
        algorithm: Any = self
        buffer, record = algorithm.rollout_buffer, self.logger.record
        policy_loss, value_loss, entropy, _, clip_fraction, _ = np.mean(updates, axis=0)
        record("train/entropy_loss", -entropy)
        record("train/policy_gradient_loss" if clip_range is not None else "train/policy_loss", policy_loss)
        record("train/value_loss", value_loss)
        if clip_range is not None:
            record("train/approx_kl", np.mean([update.kl for update in updates[first:]]))
            record("train/clip_fraction", clip_fraction)
            record("train/loss", updates[-1].loss)
            record("train/clip_range", clip_range)
        if value_range is not None:
            record("train/clip_range_vf", value_range)
        record("train/explained_variance", explained_variance(buffer.values.flatten(), buffer.returns.flatten()))
        log_std = getattr(self.policy, "log_std", None)
        if log_std is not None:
            record("train/std", float(log_std.detach().exp().mean()))


class _Update(NamedTuple):
    policy_loss: float
    value_loss: float
    entropy: float
    kl: float
    clip_fraction: float
    loss: float


class _Rollout(NamedTuple):
    """A rollout's samples, environment by environment."""

    features: Array
    actions: NDArray[Any]
    values: Array
    log_probs: Array
    advantages: Array
    returns: Array
    observations: NDArray[Any] | None

    @staticmethod
    def of(buffer: RolloutBuffer, networks: NumpyActorCritic) -> _Rollout:
        """Copies of a full buffer's."""
        flat = buffer.swap_and_flatten
        observations = flat(buffer.observations)
        return _Rollout(
            features=networks.features(observations),
            actions=networks.stored_actions(flat(buffer.actions)),
            values=flat(buffer.values).ravel(),
            log_probs=flat(buffer.log_probs).ravel(),
            advantages=flat(buffer.advantages).ravel(),
            returns=flat(buffer.returns).ravel(),
            observations=observations if networks.reads_observations else None,
        )

    def take(self, chosen: NDArray[np.int64] | slice) -> _Rollout:
        """Some of them."""
        observations = None if self.observations is None else self.observations[chosen]
        return _Rollout(
            self.features[chosen],
            self.actions[chosen],
            self.values[chosen],
            self.log_probs[chosen],
            self.advantages[chosen],
            self.returns[chosen],
            observations,
        )
