"""Smoothed forms of sb3-contrib's maskable and recurrent policies (`pip install 'rlsmooth[contrib]'`)."""

from __future__ import annotations

from typing import Any

import torch
from sb3_contrib.common.maskable.policies import (
    MaskableActorCriticCnnPolicy,
    MaskableActorCriticPolicy,
    MaskableMultiInputActorCriticPolicy,
)
from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticCnnPolicy,
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)
from stable_baselines3.common.distributions import Distribution
from torch import Tensor, nn

from rlsmooth.agents.plain_mlp import PlainNetwork, plain_network
from rlsmooth.agents.sb3 import recurrent_arguments
from rlsmooth.agents.smoothed.policies import SmoothedPolicy, recurrent_distribution
from rlsmooth.agents.spaces import fill_padding


class SmoothedMaskableActorCriticPolicy(SmoothedPolicy, MaskableActorCriticPolicy):
    """sb3-contrib's `MaskableActorCriticPolicy` with the knobs of `SmoothedPolicy`, which keep to the legal actions.

    The reference is renormalised over the legal actions of each state, so that KL and entropy are finite whatever an
    illegal action's logit is. One legal action: both are 0.

    Examples:
        >>> import torch
        >>> from gymnasium import spaces
        >>> policy = SmoothedMaskableActorCriticPolicy(spaces.Box(-1, 1, (2,)), spaces.Discrete(3), lambda _: 1e-3)
        >>> policy.action_probabilities([0.0, 0.0], torch.tensor([True, False, False]))
        tensor([[1., 0., 0.]])
    """

    def plain_network(self) -> PlainNetwork | None:
        """As `SmoothedPolicy`'s, for this class."""
        return plain_network(self) if type(self) is SmoothedMaskableActorCriticPolicy else None

    def forward(self, obs: Any, deterministic: bool = False, action_masks: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        """As the parent's, bit for bit."""
        found = self._act(obs, deterministic, action_masks)
        return super().forward(obs, deterministic, action_masks) if found is None else found

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[Any, Any]:
        """As the parent's, bit for bit."""
        actions = self._predict_plainly(observation, deterministic, action_masks)
        if actions is None:
            return super().predict(observation, state, episode_start, deterministic, action_masks)
        return actions, state

    def _distribution(
        self, observations: Any, action_masks: Any, lstm_states: Any, episode_starts: Tensor | None
    ) -> Distribution:
        if lstm_states is not None or episode_starts is not None:
            raise ValueError(f"lstm_states and episode_starts can't be used by {type(self).__name__}: leave them out.")
        found: Distribution = self.get_distribution(observations, action_masks)
        return found


class SmoothedMaskableActorCriticCnnPolicy(SmoothedMaskableActorCriticPolicy, MaskableActorCriticCnnPolicy):
    """sb3-contrib's `MaskableActorCriticCnnPolicy` with the knobs of `SmoothedPolicy`."""


class SmoothedMaskableMultiInputActorCriticPolicy(
    SmoothedMaskableActorCriticPolicy, MaskableMultiInputActorCriticPolicy
):
    """sb3-contrib's `MaskableMultiInputActorCriticPolicy` with the knobs of `SmoothedPolicy`."""


class SmoothedRecurrentActorCriticPolicy(SmoothedPolicy, RecurrentActorCriticPolicy):
    """sb3-contrib's `RecurrentActorCriticPolicy` (`MlpLstmPolicy`) with the knobs of `SmoothedPolicy`.

    Args:
        args: as its.
        skip_connection: actor and critic read the features beside the LSTM's output. A policy without memory is then
            one of these, with weights of 0 for the LSTM: that is how training starts from a clone.
        kwargs: as its.

    Raises:
        ValueError: `skip_connection` with a critic that has no LSTM.

    Examples:
        >>> import torch
        >>> from gymnasium import spaces
        >>> policy = SmoothedRecurrentActorCriticPolicy(spaces.Box(-1, 1, (2,)), spaces.Discrete(3), lambda _: 1e-3)
        >>> policy.action_probabilities(torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(self, *args: Any, skip_connection: bool = False, **kwargs: Any) -> None:
        self.skip_connection = skip_connection
        super().__init__(*args, **kwargs)
        if skip_connection and self.critic is not None:
            raise ValueError(
                "skip_connection needs an LSTM that the critic reads too: leave out enable_critic_lstm=False, or add "
                "shared_lstm=True."
            )

    def _build_mlp_extractor(self) -> None:
        if self.skip_connection:
            self.lstm_output_dim += self.features_dim
        super()._build_mlp_extractor()

    def _process_sequence(  # type: ignore[override]  # the parent's needs no object, and is called on one
        self, features: Tensor, lstm_states: Any, episode_starts: Tensor, lstm: nn.LSTM
    ) -> tuple[Tensor, Any]:
        found, states = super()._process_sequence(features, lstm_states, episode_starts, lstm)
        return torch.cat([features, found], dim=-1) if self.skip_connection else found, states

    def evaluate_actions(  # type: ignore[override]  # sb3-contrib names the further arguments
        self, obs: Any, actions: Tensor, *more: Any, **named: Any
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """As `SmoothedPolicy.evaluate_actions`; padding may have any action."""
        if self._start is not None:
            assert self._components is not None
            actions = fill_padding(actions, self._start, self._components[1])
        return super().evaluate_actions(obs, actions, *more, **named)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        # sb3-contrib's own list lacks these: a policy with other values than the defaults could not be loaded.
        own = {"skip_connection": self.skip_connection}
        return super()._get_constructor_parameters() | recurrent_arguments(self) | own

    def _distribution(
        self, observations: Any, action_masks: Any, lstm_states: Any, episode_starts: Tensor | None
    ) -> Distribution:
        if action_masks is not None:
            raise ValueError(f"action_masks can't be used by {type(self).__name__}: leave them out.")
        return recurrent_distribution(self, observations, lstm_states, episode_starts)


class SmoothedRecurrentActorCriticCnnPolicy(SmoothedRecurrentActorCriticPolicy, RecurrentActorCriticCnnPolicy):
    """sb3-contrib's `RecurrentActorCriticCnnPolicy` with the knobs of `SmoothedPolicy`."""


class SmoothedRecurrentMultiInputActorCriticPolicy(
    SmoothedRecurrentActorCriticPolicy, RecurrentMultiInputActorCriticPolicy
):
    """sb3-contrib's `RecurrentMultiInputActorCriticPolicy` with the knobs of `SmoothedPolicy`."""
