"""What users often ask of a policy: the probability of each action, and the entropy."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, TypeAlias

import torch
from numpy.typing import NDArray
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from rlsmooth.agents.acting_distributions import CategoricalActing, GaussianActing

__all__ = ["Acting", "PolicyQueries", "initial_lstm_states", "recurrent_distribution"]

Acting: TypeAlias = CategoricalActing | GaussianActing
"""What a smoothed policy acts from."""


class PolicyQueries(BasePolicy):
    """The questions of `SmoothedPolicy`: they take what `predict` takes, and leave the policy as it was."""

    @abstractmethod
    def smoothed_distribution(
        self,
        observations: Any,
        action_masks: Any = None,
        *,
        lstm_states: Any = None,
        episode_starts: Tensor | None = None,
    ) -> Acting:
        """The distribution that acts."""

    def action_probabilities(
        self,
        observation: Any,
        action_masks: NDArray[Any] | Tensor | None = None,
        *,
        lstm_states: Any = None,
        episode_starts: NDArray[Any] | Tensor | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """The probability of each action, exploration floor included.

        Args:
            observation: one, or a batch of them, as of `predict`.
            action_masks: bool, True = legal; for maskable policies.
            lstm_states: as `predict` takes and gives them, for recurrent policies; None: zeros.
            episode_starts: `[B]`, for recurrent policies; None: zeros.

        Returns:
            `[B, K]` for Discrete, a tuple of `[B, K_d]` for MultiDiscrete and `[B, D, 2]` for MultiBinary.

        Raises:
            ValueError: a Box, whose actions have densities; and as `smoothed_distribution`.
        """
        found = self._without_training(observation, action_masks, lstm_states, episode_starts)
        if not isinstance(found, CategoricalActing):
            raise ValueError(
                f"action_space={self.action_space!r} has densities, no probabilities: use get_distribution(...)."
            )
        parts = found.probabilities()
        if found.kind == "discrete":
            return parts[0]
        return torch.stack(parts, dim=1) if found.kind == "multi_binary" else parts

    def entropy(
        self,
        observation: Any,
        action_masks: NDArray[Any] | Tensor | None = None,
        *,
        lstm_states: Any = None,
        episode_starts: NDArray[Any] | Tensor | None = None,
    ) -> Tensor:
        """Entropy of what acts, exploration floor included, `[B]` in nats; differential for a Box.

        For a Box with a floor it is estimated from samples. Arguments as of `action_probabilities`.

        Raises:
            ValueError: squashed outputs, whose entropy has no closed form; and as `smoothed_distribution`.
        """
        if self.squash_output:
            raise ValueError("squashed outputs have no entropy in closed form: estimate it by -log_prob of samples.")
        found = self._without_training(observation, action_masks, lstm_states, episode_starts)
        exact = found.acting_entropy()
        if exact is None:
            assert isinstance(found, GaussianActing)
            return found.acting_entropy_estimate()
        return exact

    def _without_training(self, observation: Any, action_masks: Any, lstm_states: Any, episode_starts: Any) -> Acting:
        """The distribution for what `predict` takes: without a graph, and with dropout and the like at rest."""
        tensors, _ = self.obs_to_tensor(_as_numpy(observation))
        states = None if lstm_states is None else tuple(self._float_tensor(state) for state in lstm_states)
        starts = None if episode_starts is None else self._float_tensor(episode_starts)
        was_training = self.training
        self.set_training_mode(False)
        try:
            with torch.no_grad():
                return self.smoothed_distribution(tensors, action_masks, lstm_states=states, episode_starts=starts)
        finally:
            self.set_training_mode(was_training)

    def _float_tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self.device)


def initial_lstm_states(policy: Any, num_sequences: int) -> tuple[Tensor, Tensor]:
    """The actor's `(hidden, cell)` at the start of an episode: zeros, `[layers, num_sequences, size]` each.

    Args:
        policy: sb3-contrib's recurrent one, or one below it.
        num_sequences: how many.
    """
    layers, _, size = policy.lstm_hidden_state_shape
    zeros = torch.zeros(layers, num_sequences, size, device=policy.device)
    return zeros, zeros


def recurrent_distribution(
    policy: Any, observations: Any, lstm_states: tuple[Tensor, Tensor] | None, episode_starts: Tensor | None
) -> Distribution:
    """What a recurrent policy's `get_distribution` gives, each row a sequence of its own where there are no states.

    Args:
        policy: sb3-contrib's recurrent one, or one below it.
        observations: `[B, ...]`, or a dict of such.
        lstm_states: the actor's `(hidden, cell)`; None: zeros.
        episode_starts: `[B]`; None: zeros.
    """
    rows = len(next(iter(observations.values())) if isinstance(observations, dict) else observations)
    states = initial_lstm_states(policy, rows) if lstm_states is None else lstm_states
    starts = torch.zeros(rows, device=policy.device) if episode_starts is None else episode_starts
    found: Distribution
    found, _ = policy.get_distribution(observations, states, starts)
    return found


def _as_numpy(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {key: _as_numpy(part) for key, part in observation.items()}
    return observation.detach().cpu().numpy() if isinstance(observation, Tensor) else observation
