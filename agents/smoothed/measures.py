"""Entropies and KL divergences of a policy, in any states or in those of an algorithm's rollout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.dqn.policies import DQNPolicy
from torch import Tensor

from rlsmooth.agents.sb3 import has_base, is_maskable, normalized_observations
from rlsmooth.agents.smoothed.distributions import MixedCategorical, MixedGaussian
from rlsmooth.agents.smoothed.policies import SmoothedPolicy, recurrent_distribution
from rlsmooth.agents.spaces import box_reference
from rlsmooth.checks import check_positive_int

MEASURED_STATES = 2048
MEASURED_BYTES = 32 * 2**20  # of observations as float32: a few hundred large images, whose forward pass is slow
ROUNDING = 1e-6  # of float32, in an entropy
DRAWS = 16_384  # over all states, for an entropy without a closed form


@dataclass(frozen=True, eq=False)
class PolicyMeasures:
    """Means over the measured states, and the values of each; nats, on the policy's device, no graph.

    Entropies are the behaviour policy's, exploration floor included; KL divergences are the network's. A Box's entropy
    is differential and may be negative; with gSDE or squashing it is that of the Gaussian before it.

    Attributes:
        policy_entropy: 0-dimensional.
        entropy_frac: 0-dimensional, H / log n_legal over the states with a choice (0 if there are none); None: a Box.
        entropy_frac_min: 0-dimensional, the same of the lowest of them; None: a Box.
        kl_uniform: 0-dimensional, KL(uniform over the legal actions‖pi); None: a Box.
        kl_reference: 0-dimensional, KL(reference‖pi): the policy's own reference, else the uniform one, or a Box's
            broad Gaussian.
        entropy_by_dimension: 0-dimensional each, of a MultiDiscrete's components; else empty.
        entropies: `[B]`, of each state.
        fractions: `[B]`, H / log n_legal of each state, 0 without a choice; None: a Box.
        has_choice: bool `[B]`, at least two legal actions; None: a Box.
    """

    policy_entropy: Tensor
    entropy_frac: Tensor | None
    entropy_frac_min: Tensor | None
    kl_uniform: Tensor | None
    kl_reference: Tensor
    entropy_by_dimension: tuple[Tensor, ...]
    entropies: Tensor
    fractions: Tensor | None
    has_choice: Tensor | None

    def entropy_collapse(self, threshold: float) -> Tensor:
        """The fraction of states whose entropy is below a threshold, 0-dimensional.

        Args:
            threshold: of H / log n_legal, over states with a choice (0 if there are none); a Box: of H in nats.
        """
        if self.fractions is None or self.has_choice is None:
            return (self.entropies < threshold).to(torch.float32).mean()
        return _mean_where((self.fractions < threshold).to(torch.float32), self.has_choice)

    def entropy_below(self, bound: float, *, is_fraction: bool) -> Tensor:
        """The fraction of states whose entropy is below a guarantee or a target, 0-dimensional; 1e-6 is rounding.

        Args:
            bound: of H / log n_legal, over states with a choice; or of H in nats.
            is_fraction: which of the two.
        """
        if is_fraction:
            return self.entropy_collapse(bound - ROUNDING)
        return (self.entropies < bound - ROUNDING).to(torch.float32).mean()

    def tags(self) -> dict[str, Tensor]:
        """The means by the name of their tag, without those that the action space does not have.

        Examples:
            >>> from stable_baselines3 import PPO
            >>> sorted(measure_policy(PPO("MlpPolicy", "CartPole-v1").policy, torch.zeros(1, 4)).tags())
            ['entropy_frac', 'entropy_frac_min', 'kl_reference', 'kl_uniform', 'policy_entropy']
        """
        found = {
            "policy_entropy": self.policy_entropy,
            "entropy_frac": self.entropy_frac,
            "entropy_frac_min": self.entropy_frac_min,
            "kl_uniform": self.kl_uniform,
            "kl_reference": self.kl_reference,
        }
        found |= {f"entropy_dim{place}": mean for place, mean in enumerate(self.entropy_by_dimension)}
        return {name: mean for name, mean in found.items() if mean is not None}


@torch.no_grad()
def measure_policy(
    policy: BasePolicy,
    observations: Tensor | dict[str, Tensor],
    *,
    action_masks: Tensor | None = None,
    lstm_states: tuple[Tensor, Tensor] | None = None,
    episode_starts: Tensor | None = None,
) -> PolicyMeasures:
    """Measure a policy in some states, in evaluation mode; no random generator moves.

    Args:
        policy: actor-critic, of Stable-Baselines3, sb3-contrib or ours; or of DQN or QR-DQN, where the softmax of the
            action values is read (information: these do not act from it).
        observations: `[B, ...]`, or a dict of such, normalised as the policy is used to.
        action_masks: bool `[B, number of choices]`, True = legal; for maskable policies. None: all are legal.
        lstm_states: for recurrent policies, the actor's `(hidden, cell)`, `[layers, S, size]` each: from before the
            first of each of S sequences of states, all equally long. None: zeros, and S = B.
        episode_starts: `[B]`, 1 where the states are forgotten; for recurrent policies. None: zeros.

    Raises:
        TypeError: a policy of another kind.
        ValueError: masks or states for a policy that has none.

    Examples:
        >>> from stable_baselines3 import PPO
        >>> policy = PPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu").policy
        >>> measure_policy(policy, torch.zeros(1, 4)).policy_entropy
        tensor(0.6931)
    """
    was_training = policy.training
    if was_training:
        policy.set_training_mode(False)
    try:
        mixture = read_distribution(policy, observations, action_masks, lstm_states, episode_starts)
        return _measures(mixture)
    finally:
        if was_training:
            policy.set_training_mode(True)


def measure_rollout(model: BaseAlgorithm, *, max_states: int = MEASURED_STATES) -> PolicyMeasures:
    """Measure an algorithm's policy in states of its rollout buffer, or in the newest of its replay buffer.

    At most `max_states` states, fewer where observations are large, evenly spread over the time of each environment.
    Each is as the policy meets it: with its action mask, and with the LSTM's state from before it.

    Args:
        model: an on-policy algorithm that has a rollout, or DQN or QR-DQN.
        max_states: at least 1.

    Raises:
        TypeError: another kind of algorithm; `max_states` is no whole number.
        ValueError: its buffer is empty, or `max_states` below 1.

    Examples:
        >>> from stable_baselines3 import PPO
        >>> model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, seed=0, device="cpu").learn(64)
        >>> measure_rollout(model).entropies.shape
        torch.Size([64])
    """
    return keep_rollout(model, max_states=max_states)()


def keep_rollout(model: BaseAlgorithm, *, max_states: int = MEASURED_STATES) -> Callable[[], PolicyMeasures]:
    """Take the states that `measure_rollout` measures now, and measure the policy in them when the result is called.

    The next rollout overwrites them: to measure the policy that an update made, take them before it and call after it.

    Args:
        model: as for `measure_rollout`.
        max_states: at least 1.

    Raises:
        TypeError: another kind of algorithm; `max_states` is no whole number.
        ValueError: its buffer is empty, or `max_states` below 1.

    Examples:
        >>> from stable_baselines3 import PPO
        >>> model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, seed=0, device="cpu").learn(64)
        >>> keep_rollout(model)().entropies.shape
        torch.Size([64])
    """
    check_positive_int("max_states", max_states)
    observation_bytes = 4 * max(1, spaces.flatdim(model.observation_space))
    max_states = min(max_states, max(1, MEASURED_BYTES // observation_bytes))
    if isinstance(model, OffPolicyAlgorithm):
        return partial(measure_policy, model.policy, _replayed(model, max_states))
    if not isinstance(model, OnPolicyAlgorithm):
        raise TypeError(f"model must be an on-policy algorithm, DQN or QRDQN, got {type(model).__name__}.")
    buffer = model.rollout_buffer
    steps = buffer.buffer_size if buffer.full else buffer.pos
    if not steps:
        raise ValueError("the rollout buffer is empty: measure at the end of a rollout, or after learn(...).")
    places = _spread(steps * buffer.n_envs, max_states)
    device = model.device

    def read(values: NDArray[Any]) -> Tensor:
        if buffer.generator_ready:  # an update has flattened it, environment by environment
            return torch.as_tensor(values[places], device=device)
        return torch.as_tensor(values[places % steps, places // steps], device=device)

    fields = vars(buffer)  # sb3-contrib's buffers have more
    more: dict[str, Any] = {}
    if "action_masks" in fields:
        more["action_masks"] = read(fields["action_masks"]) != 0
    if "hidden_states_pi" in fields:
        more["lstm_states"] = tuple(
            _layers_first(fields[name], places, steps, ready=buffer.generator_ready, device=device)
            for name in ("hidden_states_pi", "cell_states_pi")
        )
        more["episode_starts"] = read(fields["episode_starts"]).flatten()
    observations: Any = buffer.observations
    if isinstance(observations, dict):
        return partial(measure_policy, model.policy, {key: read(part) for key, part in observations.items()}, **more)
    return partial(measure_policy, model.policy, read(observations), **more)


def entropy_bound(model: BaseAlgorithm) -> tuple[float, bool] | None:
    """The entropy that a policy is to have: its guarantee in force, else its algorithm's target; and whether that is a
    fraction of log n_legal, not nats. None: there is neither.

    Args:
        model: any algorithm; a guarantee may also be a policy's in an algorithm of Stable-Baselines3.
    """
    policy = model.policy
    if isinstance(policy, SmoothedPolicy) and policy.min_entropy_frac:
        return policy.min_entropy_frac, True
    if isinstance(policy, SmoothedPolicy) and policy.min_entropy_nats is not None:
        return policy.min_entropy_nats, False
    target = vars(model).get("entropy_target")
    return None if target is None else (target.target, target.is_fraction)


def record_measures(
    logger: Logger, measures: PolicyMeasures, *, prefix: str = "train", bound: tuple[float, bool] | None = None
) -> None:
    """Record `policy_entropy`, `entropy_frac`, `entropy_frac_min`, `kl_uniform`, `kl_reference`, `entropy_dim<i>` and
    `entropy_below`, as they apply.

    Args:
        logger: Stable-Baselines3's; it writes with its next `dump`.
        measures: from `measure_policy` or `measure_rollout`. Reading them waits for the device, once.
        bound: of `entropy_bound`, for `entropy_below`.
        prefix: before the `/` of each tag.

    Examples:
        >>> from stable_baselines3 import PPO
        >>> from stable_baselines3.common.logger import configure
        >>> policy, logger = PPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu").policy, configure(None, [])
        >>> record_measures(logger, measure_policy(policy, torch.zeros(1, 4)))
        >>> round(logger.name_to_value["train/policy_entropy"], 4)
        0.6931
    """
    found = measures.tags()
    if bound is not None:
        found["entropy_below"] = measures.entropy_below(bound[0], is_fraction=bound[1])
    values = torch.stack([value.to(torch.float32) for value in found.values()]).tolist()
    for name, value in zip(found, values, strict=True):
        logger.record(f"{prefix}/{name}", value)


def check_measurable(policy: BasePolicy) -> None:
    """Raise unless `measure_policy` can read this policy.

    Raises:
        TypeError: it has no distribution over actions that is known here, such as SAC's.

    Examples:
        >>> from stable_baselines3 import SAC
        >>> check_measurable(SAC("MlpPolicy", "Pendulum-v1", buffer_size=10).policy)
        Traceback (most recent call last):
        TypeError: policy must be an actor-critic policy, or DQN's or QR-DQN's, got SACPolicy.
    """
    known = isinstance(policy, (ActorCriticPolicy, DQNPolicy))
    if not (known or is_maskable(policy) or has_base(type(policy), "QRDQNPolicy")):
        raise TypeError(f"policy must be an actor-critic policy, or DQN's or QR-DQN's, got {type(policy).__name__}.")


def read_distribution(
    policy: BasePolicy,
    observations: Any,
    action_masks: Tensor | None,
    lstm_states: tuple[Tensor, Tensor] | None,
    episode_starts: Tensor | None,
) -> MixedCategorical | MixedGaussian:
    """The distribution of any measurable policy in these states."""
    if isinstance(policy, SmoothedPolicy):
        return policy.smoothed_distribution(
            observations, action_masks, lstm_states=lstm_states, episode_starts=episode_starts
        )
    check_measurable(policy)
    is_recurrent = has_base(type(policy), "RecurrentActorCriticPolicy")
    if action_masks is not None and not is_maskable(policy):
        raise ValueError(f"action_masks can't be used by {type(policy).__name__}, which takes none: leave them out.")
    if not is_recurrent and not (lstm_states is None and episode_starts is None):
        raise ValueError(
            f"lstm_states and episode_starts can't be used by {type(policy).__name__}, which is not recurrent: leave "
            "them out."
        )
    reader: Any = policy
    if isinstance(policy, DQNPolicy) or has_base(type(policy), "QRDQNPolicy"):
        is_dqn = isinstance(policy, DQNPolicy)
        values = reader.q_net(observations) if is_dqn else reader.quantile_net(observations).mean(1)
        return MixedCategorical("discrete", (values.shape[-1],)).proba_distribution(values)
    if is_maskable(policy):
        found = reader.get_distribution(observations, action_masks)
    elif is_recurrent:
        found = recurrent_distribution(policy, observations, lstm_states, episode_starts)
    else:
        found = reader.get_distribution(observations)
    if not isinstance(policy.action_space, spaces.Box):
        return MixedCategorical.from_sb3(found)
    mean, std = box_reference(policy.action_space)
    return MixedGaussian.from_sb3(found, reference_mean=mean.to(policy.device), reference_std=std.to(policy.device))


def _measures(mixture: MixedCategorical | MixedGaussian) -> PolicyMeasures:
    kl_reference = mixture.kl_reference().mean()
    if isinstance(mixture, MixedGaussian):
        entropies = mixture.mixture_entropy()
        if entropies is None:
            draws = min(256, max(16, DRAWS // len(mixture.mean)))
            entropies = mixture.mixture_entropy_estimate(draws)
        return PolicyMeasures(entropies.mean(), None, None, None, kl_reference, (), entropies, None, None)
    entropies = mixture.mixture_entropy()
    fractions, has_choice = mixture.entropy_fractions()
    several = mixture.kind == "multi_discrete"
    lowest = torch.where(has_choice, fractions, torch.inf).amin()
    return PolicyMeasures(
        entropies.mean(),
        _mean_where(fractions, has_choice),
        torch.where(lowest.isinf(), 0.0, lowest),
        mixture.kl_uniform().mean(),
        kl_reference,
        tuple(part.mean() for part in mixture.entropies_by_dimension()) if several else (),
        entropies,
        fractions,
        has_choice,
    )


def _mean_where(values: Tensor, counted: Tensor) -> Tensor:
    return torch.where(counted, values, 0.0).sum() / counted.sum().clamp_min(1)


def _spread(length: int, count: int) -> NDArray[np.int64]:
    """At most `count` places, evenly over `length`."""
    return np.linspace(0, length - 1, min(length, count)).round().astype(np.int64)


def _layers_first(
    states: NDArray[Any], places: NDArray[np.int64], steps: int, *, ready: bool, device: torch.device
) -> Tensor:
    """An LSTM's states as `[layers, B, size]`, from a buffer's `[steps, layers, environments, size]`."""
    chosen = states[places] if ready else states[places % steps, :, places // steps]  # [B, layers, size]
    return torch.as_tensor(chosen, device=device).transpose(0, 1).contiguous()


def _replayed(model: OffPolicyAlgorithm, max_states: int) -> Any:
    """The newest observations of a replay buffer, normalised as they are for the policy."""
    buffer: Any = model.replay_buffer
    if buffer is None or not buffer.size():
        raise ValueError("the replay buffer is empty: measure after the first steps of the environment.")
    steps = min(buffer.size(), -(-max_states // buffer.n_envs))
    times = (buffer.pos - steps + np.arange(steps)) % buffer.buffer_size
    places = _spread(steps * buffer.n_envs, max_states)

    def read(values: NDArray[Any]) -> NDArray[Any]:
        chosen: NDArray[Any] = values[times[places % steps], places // steps]
        return chosen

    stored = buffer.observations
    chosen: Any = {key: read(part) for key, part in stored.items()} if isinstance(stored, dict) else read(stored)
    normalised = normalized_observations(buffer, chosen, model.get_vec_normalize_env())
    if isinstance(normalised, dict):
        return {key: torch.as_tensor(part, device=model.device) for key, part in normalised.items()}
    return torch.as_tensor(normalised, device=model.device)
