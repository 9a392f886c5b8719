"""sb3-contrib's MaskablePPO and RecurrentPPO with smoothing (`pip install 'rlsmooth[contrib]'`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3.common.policies import BasePolicy

from rlsmooth.agents.acting import actor_state, without_memory
from rlsmooth.agents.files.policy_file import constructor_arguments
from rlsmooth.agents.smoothed.algorithms import SmoothedTraining
from rlsmooth.agents.smoothed.contrib import (
    SmoothedMaskableActorCriticCnnPolicy,
    SmoothedMaskableActorCriticPolicy,
    SmoothedMaskableMultiInputActorCriticPolicy,
    SmoothedRecurrentActorCriticCnnPolicy,
    SmoothedRecurrentActorCriticPolicy,
    SmoothedRecurrentMultiInputActorCriticPolicy,
)
from rlsmooth.agents.smoothed.distributions import check_masks
from rlsmooth.agents.smoothed.policies import (
    SmoothedActorCriticCnnPolicy,
    SmoothedActorCriticPolicy,
    SmoothedMultiInputActorCriticPolicy,
    SmoothedPolicy,
)
from rlsmooth.agents.spaces import action_components

WITHOUT_MEMORY: dict[type[BasePolicy], type[BasePolicy]] = {
    SmoothedRecurrentActorCriticCnnPolicy: SmoothedActorCriticCnnPolicy,
    SmoothedRecurrentMultiInputActorCriticPolicy: SmoothedMultiInputActorCriticPolicy,
    SmoothedRecurrentActorCriticPolicy: SmoothedActorCriticPolicy,
}
MEMORY = ("lstm_hidden_size", "n_lstm_layers", "shared_lstm", "enable_critic_lstm", "lstm_kwargs", "skip_connection")
"""The arguments that only recurrent policies have."""


class SmoothedMaskablePPO(SmoothedTraining, MaskablePPO):
    """sb3-contrib's MaskablePPO with KL to a reference in its loss, an entropy target, a floor or a guarantee.

        loss = its policy loss - ent_coef · H(pi) + alpha · KL(reference‖pi) + vf_coef · value loss     (nats)

    Smoothing, entropies and floor know legal actions only: an illegal one gets neither mass nor gradient.

    The arguments are MaskablePPO's, and `smoothing`, `target_entropy_frac`, `target_entropy_nats`, `exploration_floor`,
    `min_entropy_frac` and `min_entropy_nats` of `SmoothedPPO`.

    Examples:
        >>> from rlsmooth.envs import IdentityMaskedEnv
        >>> model = SmoothedMaskablePPO("MlpPolicy", IdentityMaskedEnv(), smoothing=0.1, n_steps=64, device="cpu")
        >>> model.learn(128).num_timesteps
        128
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": SmoothedMaskableActorCriticPolicy,
        "CnnPolicy": SmoothedMaskableActorCriticCnnPolicy,
        "MultiInputPolicy": SmoothedMaskableMultiInputActorCriticPolicy,
    }

    def _train_smoothed(self) -> None:
        # sb3-contrib acts at random where nothing is legal; a KL divergence has no value there, and would be NaN.
        buffer: Any = self.rollout_buffer
        components = action_components(self.action_space)
        assert components is not None
        check_masks(buffer.action_masks.reshape(-1, buffer.mask_dims), components[1])
        super()._train_smoothed()


class SmoothedRecurrentPPO(SmoothedTraining, RecurrentPPO):
    """sb3-contrib's RecurrentPPO with KL to a reference in its loss, an entropy target, a floor or a guarantee.

        loss = its policy loss - ent_coef · H(pi) + alpha · KL(reference‖pi) + vf_coef · value loss     (nats)

    The padding of its sequences counts nowhere, the entropy target included.

    `from_bc` starts from a clone without memory: the actor has the clone's layers, which also read the output of a new
    LSTM, by weights that are 0 at first (`skip_connection` of the policy). So it begins as the clone, and learns what
    to remember. The reference of KL is the clone itself.

    The arguments are RecurrentPPO's, and `smoothing`, `target_entropy_frac`, `target_entropy_nats`,
    `exploration_floor`, `min_entropy_frac` and `min_entropy_nats` of `SmoothedPPO`.

    Examples:
        >>> model = SmoothedRecurrentPPO("MlpLstmPolicy", "CartPole-v1", smoothing=0.1, n_steps=16, device="cpu")
        >>> model.learn(16).num_timesteps
        16
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpLstmPolicy": SmoothedRecurrentActorCriticPolicy,
        "CnnLstmPolicy": SmoothedRecurrentActorCriticCnnPolicy,
        "MultiInputLstmPolicy": SmoothedRecurrentMultiInputActorCriticPolicy,
    }
    clone_arguments: ClassVar[Mapping[str, Any]] = {"skip_connection": True}

    def copied_policy(self) -> BasePolicy:
        """The policy without its memory, as a reference: what it does as long as it does not read its LSTM's output."""
        policy: Any = self.policy
        if not getattr(policy, "skip_connection", False):
            raise ValueError(
                f"policy={type(policy).__name__} has no layers of the clone's: leave out "
                "policy_kwargs['skip_connection'], and let a class of your own pass it on."
            )
        arguments = {name: value for name, value in constructor_arguments(policy).items() if name not in MEMORY}
        build: Any = next(form for lstm, form in WITHOUT_MEMORY.items() if isinstance(policy, lstm))
        copied: BasePolicy = build(lr_schedule=lambda _: 0.0, **arguments).to(policy.device)
        copied.load_state_dict({**copied.state_dict(), **without_memory(actor_state(policy), policy.features_dim)})
        return copied

    def _train_smoothed(self) -> None:
        buffer: Any = self.rollout_buffer
        get = buffer.get

        def get_and_mask(batch_size: int | None = None) -> Iterator[Any]:
            for batch in get(batch_size):
                assert isinstance(self.policy, SmoothedPolicy)
                assert self.policy.entropy_term is not None
                self.policy.entropy_term.mask = batch.mask > 1e-8  # as the parent reads it
                yield batch

        # On the object, so that it hides the method of its class until it is taken away again.
        buffer.get = get_and_mask
        try:
            super()._train_smoothed()
        finally:
            del buffer.get
