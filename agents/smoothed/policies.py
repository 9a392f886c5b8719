"""Actor-critic policies with a regulariser in place of the entropy, an exploration floor and a guaranteed entropy."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from torch import Tensor

from rlsmooth.agents.plain_mlp import PlainNetwork, plain_network
from rlsmooth.agents.smoothed.distributions import GSDEEntropyTerm, MixedCategorical, MixedGaussian
from rlsmooth.agents.smoothed.entropy import EntropyTerm
from rlsmooth.agents.smoothed.references import (
    PolicyReference,
    References,
    canonical_reference,
    check_reference_policy,
    reference_outputs,
    reference_recipes,
)
from rlsmooth.agents.spaces import action_components, box_reference, check_float32_actions, count_from_start, start_of
from rlsmooth.checks import check_in_range
from rlsmooth.data.arrays import forward

Mixture: TypeAlias = MixedCategorical | MixedGaussian
"""A smoothed policy's behaviour policy."""


class PolicyQueries(BasePolicy):
    """The queries of `SmoothedPolicy`: they take the arguments of `predict` and do not change the policy."""

    @abstractmethod
    def smoothed_distribution(
        self,
        observations: Any,
        action_masks: Any = None,
        *,
        lstm_states: Any = None,
        episode_starts: Tensor | None = None,
    ) -> Mixture:
        """The behaviour policy's distribution."""

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
            observation: one, or a batch of them, as `predict` takes it.
            action_masks: bool, True = legal; for maskable policies.
            lstm_states: as `predict` takes and gives them, for recurrent policies; None: zeros.
            episode_starts: `[B]`, for recurrent policies; None: zeros.

        Returns:
            `[B, K]` for Discrete, a tuple of `[B, K_d]` for MultiDiscrete and `[B, D, 2]` for MultiBinary.

        Raises:
            ValueError: a Box, whose actions have densities; masks or states for a policy that has none.
        """
        found = self._without_training(observation, action_masks, lstm_states, episode_starts)
        if not isinstance(found, MixedCategorical):
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
        """Entropy of the behaviour policy, exploration floor included, `[B]` in nats; differential for a Box.

        For a Box with a floor it is estimated from samples. The arguments are those of `action_probabilities`.

        Raises:
            ValueError: squashed outputs, whose entropy has no closed form; masks or states for a policy that has none.
        """
        if self.squash_output:
            raise ValueError("squashed outputs have no entropy in closed form: estimate it by -log_prob of samples.")
        found = self._without_training(observation, action_masks, lstm_states, episode_starts)
        exact = found.mixture_entropy()
        if exact is None:
            assert isinstance(found, MixedGaussian)
            return found.mixture_entropy_estimate()
        return exact

    def obs_to_tensor(self, observation: Any) -> tuple[Any, bool]:
        """As Stable-Baselines3's, which `predict` calls; also for tensors and for arrays with negative strides."""
        return super().obs_to_tensor(_as_numpy(observation))

    def _without_training(self, observation: Any, action_masks: Any, lstm_states: Any, episode_starts: Any) -> Mixture:
        """The distribution for the arguments of `predict`, without a graph, in evaluation mode."""
        tensors, _ = self.obs_to_tensor(observation)
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
        return torch.as_tensor(forward(values), dtype=torch.float32, device=self.device)


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
    """A recurrent policy's distribution, each observation a sequence of its own where there are no states.

    Args:
        policy: sb3-contrib's recurrent one, or one below it.
        observations: `[B, ...]`, or a dict of such.
        lstm_states: the actor's `(hidden, cell)`; None: zeros.
        episode_starts: `[B]`; None: zeros.
    """
    count = len(next(iter(observations.values())) if isinstance(observations, dict) else observations)
    states = initial_lstm_states(policy, count) if lstm_states is None else lstm_states
    starts = torch.zeros(count, device=policy.device) if episode_starts is None else episode_starts
    found: Distribution
    found, _ = policy.get_distribution(observations, states, starts)
    return found


def _as_numpy(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {key: _as_numpy(part) for key, part in observation.items()}
    return observation.detach().cpu().numpy() if isinstance(observation, Tensor) else forward(observation)


class _Wanted(NamedTuple):
    """The purpose of the next distribution; None: drawing actions, or a plain `evaluate_actions`."""

    regularised: bool
    reference_outputs: Any  # logits, or a Box's (mean, log_std), or None


class SmoothedPolicy(PolicyQueries):
    """Base of the smoothed policies, before a policy of Stable-Baselines3 or sb3-contrib in the bases of a class.

    Three knobs, each off by default; with all off the policy is its parent, bit for bit.

    - **Regulariser** (`reference`): `evaluate_actions` returns `-KL(reference‖pi)` where the parent returns an entropy,
      so that `ent_coef` of PPO, A2C, MaskablePPO or RecurrentPPO becomes the coefficient of the KL divergence, in nats,
      and `train/entropy_loss` its mean, which is positive. Nothing is regularised at Stable-Baselines3's default
      `ent_coef=0`: there the first update warns.
    - **Floor** (`exploration_floor`): the behaviour policy is `(1 - floor) · pi + floor · reference`, exactly:
      `forward`, `evaluate_actions` and `predict` all use that mixture. Discrete components are mixed one by one, a
      Box's Gaussians as whole vectors before clipping. Without a reference it is uniform over the legal actions; for a
      Box a broad Gaussian. There the mixture's entropy has no closed form: `evaluate_actions` then gives None, so that
      Stable-Baselines3 takes `-log_prob`, and the deterministic action is pi's mean.
    - **Guarantee** (`min_entropy_frac`, for a Box `min_entropy_nats`), in place of a floor: in every state the entropy
      of the behaviour policy is at least this fraction of log n_legal, whatever the network gives. It is the floor
      `guaranteed_floor(min_entropy_frac, n)` of the uniform in each state and component with n legal actions. A Box's
      standard deviations are scaled up (`widened_log_std`) where the entropy is below; the deterministic action stays.

    pi is the network's policy, which regularisers and KL divergences use; the floor mixes with the given reference even
    where a reference policy is set. A reference that depends on an action (a kernel, an ordinal scheme, a tree) is that
    of the network's greedy legal action, without a gradient through that choice.

    sb3-contrib's TRPO, which takes KL divergences between the old and the new behaviour policy, can have a floor on
    Discrete and MultiBinary actions only; it has no entropy term, so that `reference` does nothing there.

    KL to a broad Gaussian grows as `reference_std² / (2 std²)`: 47 nats a dimension at std 0.1 for `reference_std=1`.

    Args:
        args: the parent's.
        reference: see `reference_recipes`: None, `"uniform"`, a prior, a kernel, an ordinal scheme, a tree, or one of
            these a dimension. For a Box `"uniform"` is a broad Gaussian (see `box_reference`).
        exploration_floor: in [0, 1].
        min_entropy_frac: in [0, 1], not for a Box; None or 0: no guarantee. Without a reference, or with the uniform.
        min_entropy_nats: for a Box: a differential entropy, which may be negative; None: no guarantee.
        reference_std: of a Box's broad Gaussian, above 0; None: half the distance between the bounds.
        kwargs: the parent's, by name.

    Raises:
        TypeError: a reference of an unknown kind, a floor or std that is no number.
        ValueError: a reference that does not fit the action space, a number out of range, `reference_std` without a
            Box, a floor or a guarantee with gSDE or squashed outputs, two of them, a guarantee of the other kind of
            action space or with another reference than the uniform.
    """

    def __init__(
        self,
        *args: Any,
        reference: PolicyReference = None,
        exploration_floor: float = 0.0,
        min_entropy_frac: float | None = None,
        min_entropy_nats: float | None = None,
        reference_std: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._components = action_components(self.action_space)
        count_from_start(self)
        self._start = start_of(self.action_space)
        if self._start is not None:
            check_float32_actions(self.action_space)
        self.references: References | None = reference_recipes(reference, self.action_space)
        self.reference = canonical_reference(reference)
        self.reference_std = reference_std
        if isinstance(self.action_space, spaces.Box):
            mean, std = box_reference(self.action_space, reference_std)
            # Buffers go where the policy goes; weights they are not.
            self.register_buffer("reference_mean", mean, persistent=False)
            self.register_buffer("reference_stds", std, persistent=False)
        elif reference_std is not None:
            raise ValueError(
                f"reference_std={reference_std!r} is for a Box action space, this one is {self.action_space!r}."
            )
        self.entropy_term: EntropyTerm | None = None
        # In a tuple, so that torch does not take it for a part of this policy.
        self._reference_policy: tuple[BasePolicy] | None = None
        self._wanted: _Wanted | None = None
        self._saw_coefficient = False
        self._exploration_floor, self._min_entropy_frac = 0.0, 0.0
        self._min_entropy_nats: float | None = None
        self.exploration_floor = exploration_floor
        self.min_entropy_frac = min_entropy_frac
        self.min_entropy_nats = min_entropy_nats

    @property
    def exploration_floor(self) -> float:
        """The share of the reference in the mixture. PPO needs the rollout's until its updates are done."""
        return self._exploration_floor

    @exploration_floor.setter
    def exploration_floor(self, value: float) -> None:
        floor = check_in_range("exploration_floor", value, 0.0, 1.0)
        if floor:
            self._check_floor("exploration_floor", floor)
        self._exploration_floor = floor

    @property
    def min_entropy_frac(self) -> float:
        """The least `H / log n_legal` of the behaviour policy in any state; 0: none. PPO needs the rollout's, too."""
        return self._min_entropy_frac

    @min_entropy_frac.setter
    def min_entropy_frac(self, value: float | None) -> None:
        frac = 0.0 if value is None else check_in_range("min_entropy_frac", value, 0.0, 1.0)
        if frac:
            if isinstance(self.action_space, spaces.Box):
                raise ValueError(
                    f"min_entropy_frac={frac} can't be used for a Box, whose entropy has no greatest value: give "
                    "min_entropy_nats (differential entropy, which may be negative)."
                )
            self._check_floor("min_entropy_frac", frac)
            if any(recipe is not None for recipe in self.references or ()):
                raise ValueError(
                    f"min_entropy_frac={frac} can't be used with reference={self.reference!r}: only mixing in the "
                    "uniform distribution guarantees an entropy. Leave reference out, or give exploration_floor."
                )
        self._min_entropy_frac = frac

    @property
    def min_entropy_nats(self) -> float | None:
        """The least entropy of a Box's behaviour policy in any state; None: none."""
        return self._min_entropy_nats

    @min_entropy_nats.setter
    def min_entropy_nats(self, value: float | None) -> None:
        nats = None if value is None else check_in_range("min_entropy_nats", value)
        if nats is not None:
            self._check_floor("min_entropy_nats", nats)
            if not isinstance(self.action_space, spaces.Box):
                raise ValueError(
                    f"min_entropy_nats={nats} is for a Box action space, this one is {self.action_space!r}: give "
                    "min_entropy_frac, a fraction of log n."
                )
        self._min_entropy_nats = nats

    def _check_floor(self, name: str, value: float) -> None:
        """Raise ValueError if a floor or a guarantee can't be used with what the policy has."""
        given = {
            "exploration_floor": self._exploration_floor or None,
            "min_entropy_frac": self._min_entropy_frac or None,
            "min_entropy_nats": self._min_entropy_nats,
        }
        for other, number in given.items():
            if other != name and number is not None:
                raise ValueError(f"{name}={value} and {other}={number} are both given: choose one.")
        if self._has_state_dependent_noise:
            raise ValueError(
                f"{name}={value} can't be used with gSDE or squashed outputs: give use_sde=False (of a command: "
                f"--hyperparams use_sde=false) and squash_output=False, or leave {name} out."
            )

    @property
    def has_floor(self) -> bool:
        """Whether the behaviour policy is another than pi: there is a floor or a guarantee."""
        return self._exploration_floor > 0 or self._min_entropy_frac > 0 or self._min_entropy_nats is not None

    @property
    def reference_policy(self) -> BasePolicy | None:
        """The policy given to `set_reference_policy`, or None."""
        return None if self._reference_policy is None else self._reference_policy[0]

    @property
    def is_regularised(self) -> bool:
        """Whether `evaluate_actions` gives something else than an entropy: there is a reference or an entropy term."""
        return self.entropy_term is not None or self.reference is not None or self._reference_policy is not None

    def set_reference_policy(self, policy: BasePolicy | None) -> None:
        """Let another policy's distribution be the reference of the regulariser (not of the floor), as in kickstarting.

        It is no part of this policy: not in its parameters, its `state_dict` or its files, and not moved with it.

        Args:
            policy: a plain or maskable actor-critic policy for the same spaces, on the same device; it is put into
                evaluation mode. None: the static reference again.

        Raises:
            TypeError: it is no such policy.
            ValueError: its spaces or outputs differ.
        """
        if policy is not None:
            check_reference_policy(policy, self)
            policy.set_training_mode(False)
        self._reference_policy = None if policy is None else (policy,)

    def smoothed_distribution(
        self,
        observations: Any,
        action_masks: Any = None,
        *,
        lstm_states: Any = None,
        episode_starts: Tensor | None = None,
    ) -> Mixture:
        """The behaviour policy with its entropies and KL divergences, also while both knobs are off.

        Args:
            observations: tensors, as `evaluate_actions` takes them.
            action_masks: bool `[B, number of choices]`, True = legal; for maskable policies.
            lstm_states: the actor's `(hidden, cell)`, for recurrent policies; None: zeros.
            episode_starts: `[B]`, for recurrent policies; None: zeros.

        Raises:
            ValueError: masks or states for a policy that has none.
        """
        self._wanted = _Wanted(False, self.outputs_of_reference(observations))
        try:
            found = self._distribution(observations, action_masks, lstm_states, episode_starts)
        finally:
            self._wanted = None
        if not isinstance(found, (MixedCategorical, MixedGaussian)):
            raise TypeError(f"{type(self).__name__} gives a {type(found).__name__}, which can't be read.")
        return found

    def evaluate_actions(
        self, obs: Any, actions: Tensor, *more: Any, **named: Any
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values, log-probabilities, and the entropy or the regulariser in its place: `[B, 1]`, `[B]` and `[B]`.

        Args:
            obs: `[B, ...]`, or a dict of such.
            actions: `[B]` or `[B, D]`.
            more: the parent's further arguments: `action_masks` (maskable: `[B, number of choices]`, nonzero = legal;
                None: all are), or `lstm_states, episode_starts` (recurrent; padding is evaluated too).
            named: the same by name.
        """
        parent: Any = super()
        if not self.is_regularised:
            found: tuple[Tensor, Tensor, Tensor | None] = parent.evaluate_actions(obs, actions, *more, **named)
            return found
        with self._regularising(obs):
            values, log_prob, entropy = parent.evaluate_actions(obs, actions, *more, **named)
        return values, log_prob, self._with_warning(entropy)

    def plain_network(self) -> PlainNetwork | None:
        """The layers, if the policy is nothing but a plain MLP on the CPU (see `agents.plain_mlp`); else None.

        A class answers for itself alone: a subclass may have changed anything.
        """
        return None

    # ---- for algorithms

    def mixture(self, *, is_regularised: bool) -> Mixture:
        """The behaviour policy, which takes the network's outputs next, those of `outputs_of_reference` included.

        Args:
            is_regularised: whether its `entropy()` is the entropy term, or the regulariser if there is none.
        """
        shared: dict[str, Any] = {
            "floor": self._exploration_floor,
            "entropy_term": self.entropy_term if is_regularised else None,
            "regularised": is_regularised,
        }
        if self._components is None:
            buffers, least = vars(self)["_buffers"], self._min_entropy_nats  # torch's own look-up is slow
            return MixedGaussian(buffers["reference_mean"], buffers["reference_stds"], min_entropy=least, **shared)
        kind, sizes = self._components
        shared["min_entropy"] = self._min_entropy_frac
        return MixedCategorical(kind, sizes, references=self.references, start=self._start, **shared)

    def outputs_of_reference(self, observations: Any) -> Any:
        """The reference policy's outputs, or None where there is none."""
        return None if self._reference_policy is None else reference_outputs(self._reference_policy[0], observations)

    # ---- for the families of policies

    def _act(self, observations: Tensor, deterministic: bool, *masks: Any) -> tuple[Tensor, Tensor, Tensor] | None:
        """What `forward` gives, if the policy is a plain MLP and the outputs are valid; else None."""
        network = self.plain_network()
        if network is None:
            return None
        found = network.act(observations, *masks, deterministic=deterministic, mixture=self._behaviour())
        if found is None:
            return None
        actions, values, log_prob = found
        return actions.reshape(-1, *(self.action_space.shape or ())), values, log_prob

    def _predict_plainly(self, observation: Any, deterministic: bool, *masks: Any) -> NDArray[Any] | None:
        """The actions that `predict` gives, on the same condition, and of a plain array; else None."""
        network = self.plain_network()
        if network is None:
            return None
        if self.training:
            self.set_training_mode(False)
        given: dict[str, Any] = {"action_space": self.action_space, "mixture": self._behaviour()}
        return network.predict(observation, *masks, deterministic=deterministic, **given)

    def _behaviour(self) -> Mixture | None:
        """The behaviour policy, which takes the network's outputs next, or None where it is the network's."""
        return self.mixture(is_regularised=False) if self.has_floor else None

    @contextmanager
    def _regularising(self, observations: Any) -> Iterator[None]:
        """Within it a distribution's `entropy()` is the regulariser."""
        self._wanted = _Wanted(True, self.outputs_of_reference(observations))
        try:
            yield
        finally:
            self._wanted = None

    def _with_warning(self, entropy: Tensor | None) -> Tensor | None:
        """The same entropy; the first backward pass warns if the loss does not use it."""
        if self.entropy_term is None and not self._saw_coefficient and entropy is not None and entropy.requires_grad:
            entropy.register_hook(self._warn_if_unused)  # type: ignore[no-untyped-call]
        return entropy

    def _distribution(
        self, observations: Any, action_masks: Any, lstm_states: Any, episode_starts: Tensor | None
    ) -> Distribution:
        if action_masks is not None:
            raise ValueError(
                f"action_masks can't be used by {type(self).__name__}: use SmoothedMaskableActorCriticPolicy."
            )
        if lstm_states is not None or episode_starts is not None:
            raise ValueError(f"lstm_states and episode_starts can't be used by {type(self).__name__}: leave them out.")
        parent: Any = self
        found: Distribution = parent.get_distribution(observations)
        return found

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Any:
        if self._wanted is None and not self.has_floor:
            return super()._get_action_dist_from_latent(latent_pi)  # type: ignore[misc]
        wanted = self._wanted or _Wanted(False, None)
        term = self.entropy_term if wanted.regularised else None
        if self._has_state_dependent_noise:
            return self._gsde_distribution(latent_pi, wanted, term)
        network: Any = self
        outputs: Tensor = network.action_net(latent_pi)
        return self._with_outputs(outputs, wanted)

    def distribution_of_outputs(
        self, outputs: Tensor, observations: Tensor | None = None, *, regularised: bool = False
    ) -> Mixture:
        """The distribution that the action net's outputs mean, for those who compute the network themselves.

        Args:
            outputs: `[B, number of outputs]`, with or without a graph; no gSDE.
            observations: for the outputs of a reference policy; None: there is none.
            regularised: its `entropy()` is what `evaluate_actions` gives.
        """
        reference = None if observations is None else self.outputs_of_reference(observations)
        return self._with_outputs(outputs, _Wanted(regularised and self.is_regularised, reference))

    def _with_outputs(self, outputs: Tensor, wanted: _Wanted) -> Mixture:
        network: Any = self
        mixture = self.mixture(is_regularised=wanted.regularised)
        if isinstance(mixture, MixedGaussian):
            return mixture.proba_distribution(outputs, network.log_std, wanted.reference_outputs)
        return mixture.proba_distribution(outputs, wanted.reference_outputs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {
            "reference": self.reference,
            "exploration_floor": self.exploration_floor,
            "min_entropy_frac": self.min_entropy_frac or None,
            "min_entropy_nats": self.min_entropy_nats,
            "reference_std": self.reference_std,
        }

    @property
    def _has_state_dependent_noise(self) -> bool:
        return bool(getattr(self, "use_sde", False))  # sb3-contrib's maskable policies don't have it

    def _gsde_distribution(self, latent_pi: Tensor, wanted: _Wanted, term: EntropyTerm | None) -> Distribution:
        network: Any = self
        noise = super()._get_action_dist_from_latent(latent_pi)  # type: ignore[misc]
        gaussian = MixedGaussian.from_sb3(
            noise,
            reference_mean=network.reference_mean,
            reference_std=network.reference_stds,
            reference_outputs=wanted.reference_outputs,
        )
        return GSDEEntropyTerm(noise, gaussian, term) if wanted.regularised else gaussian

    def _warn_if_unused(self, gradient: Tensor) -> None:
        """Warn if the first loss gives the regulariser no weight. Reading the gradient waits for the device, once."""
        if self._saw_coefficient:
            return
        self._saw_coefficient = True
        if not bool(gradient.any()):
            warnings.warn(
                "The policy has a reference, but the loss does not use KL(reference‖pi): ent_coef is 0. Give the "
                "algorithm ent_coef=0.01, say, or leave out reference.",
                UserWarning,
                stacklevel=2,
            )


class SmoothedActorCriticPolicy(SmoothedPolicy, ActorCriticPolicy):
    """`MlpPolicy` with a regulariser in place of the entropy and an exploration floor; see `SmoothedPolicy` for both.

    For PPO and A2C, on Discrete, MultiDiscrete, MultiBinary and Box actions.

    Examples:
        >>> from stable_baselines3 import PPO
        >>> knobs = dict(reference="uniform", exploration_floor=0.05)
        >>> model = PPO(SmoothedActorCriticPolicy, "CartPole-v1", ent_coef=0.01, policy_kwargs=knobs, device="cpu")
        >>> model.policy.action_probabilities([0.0, 0.0, 0.0, 0.0]).sum().round().item()
        1.0
    """

    def plain_network(self) -> PlainNetwork | None:
        """As `SmoothedPolicy`'s, for this class."""
        return plain_network(self) if type(self) is SmoothedActorCriticPolicy else None

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """As the parent's, bit for bit."""
        return self._act(obs, deterministic) or super().forward(obs, deterministic)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[NDArray[Any], Any]:
        """As the parent's, bit for bit."""
        actions = self._predict_plainly(observation, deterministic)
        if actions is None:
            return super().predict(observation, state, episode_start, deterministic)
        return actions, state


class SmoothedActorCriticCnnPolicy(SmoothedActorCriticPolicy, ActorCriticCnnPolicy):
    """`CnnPolicy` with the knobs of `SmoothedPolicy`."""


class SmoothedMultiInputActorCriticPolicy(SmoothedActorCriticPolicy, MultiInputActorCriticPolicy):
    """`MultiInputPolicy` with the knobs of `SmoothedPolicy`."""
