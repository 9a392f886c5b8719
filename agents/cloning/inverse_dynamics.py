"""The inverse dynamics model: infers which action led from one observation to the next, by a `BC` that sees both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, TypeAlias, TypedDict, final, get_type_hints

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rlsmooth.agents import spaces as agent_spaces
from rlsmooth.agents.cloning.bc import BC, SmoothingLike
from rlsmooth.agents.cloning.rounds import train_quietly
from rlsmooth.agents.cloning.training_data import one_or_list
from rlsmooth.agents.cloning.transition_features import (
    FIRST,
    SECOND,
    Inputs,
    TransitionFeatures,
    pair_names,
    pair_space,
    transition_statistics,
)
from rlsmooth.agents.files.policy_file import constructor_arguments, read_agent_file
from rlsmooth.agents.heads import CategoricalHead
from rlsmooth.checks import check_positive_int
from rlsmooth.data import Demonstrations
from rlsmooth.data.arrays import action_dims, forward, stored_dtype
from rlsmooth.losses import log_probabilities
from rlsmooth.schedules import LearningRate
from rlsmooth.training import SafeFileError
from rlsmooth.training.run import check_no_missing, samples_at_once
from rlsmooth.untrusted import AnyNumber, Positive, Within, decode, refused

Observations: TypeAlias = Any
"""`[N, ...]`, or a dict of such for a Dict space."""

CHUNK_TRANSITIONS = 4096
OWN = "inverse_dynamics"


class OwnArguments(TypedDict):
    """What a file holds of the model beside its network's BC."""

    max_epochs: Positive
    validation_fraction: Annotated[float, Within(0, 1, high_open=True)]
    early_stopping_patience: Positive | None


OWN_ARGUMENTS = tuple(get_type_hints(OwnArguments))


@final
class InverseDynamics:
    """The model `P(a | s, s')` of the actions that lead from `s` to `s'`, learned from transitions with actions.

    It is a `BC` (attribute `bc`) whose observation is made of both observations, standardised by the statistics of the
    transitions it was fitted to, and whose target is the action, smoothed: every action space, mask and file of `BC`'s
    is its too. `fit` starts anew each time. Source: Torabi et al. 2018, "Behavioral cloning from observation".

    Args:
        observation_space: Box, Discrete, MultiDiscrete, MultiBinary, or one Dict of those; images too.
        action_space: Discrete, MultiDiscrete, MultiBinary or Box.
        smoothing: of the actions: alpha, a schedule, a `Smoothing`, or one for each MultiDiscrete dimension.
        inputs: `"difference"` shows it `s` and `s' - s`, each with a scale of its own, `"pair"` `s` and `s'`. Where a
            step moves the observation by a hundredth of its spread, `"pair"` learned nothing from 2,000 transitions and
            `"difference"` all; on CartPole-v1 both were always right; in states of MountainCar-v0 and Acrobot-v1 that
            random actions do not reach, `"pair"` was right up to 10 % more often.
        action_bins: Box only: infer so many bins a dimension; None: a Gaussian.
        learning_rate: a number, `"lin_1e-3"` (down to 0), or a callable of the progress remaining.
        batch_size: transitions of a minibatch.
        max_epochs: passes over the transitions.
        validation_fraction: share of the episodes that is held out; 0: none.
        early_stopping_patience: stop after so many epochs without a lower loss on what is held out; None: don't.
        policy_kwargs: of the policy that is the network, as SB3's: `{"net_arch": [64, 64]}`.
        seed: of the initial weights and the order of the data; None: drawn from torch's generator.
        device: as SB3's.

    Attributes:
        bc: the network and how it is trained.
        metrics: of the last `fit`, what `BC` logs under `bc/`: `accuracy`, `val_accuracy` (held out), nats, and so on.

    Raises:
        TypeError, ValueError: what `BC` raises for its arguments.

    Examples:
        >>> from rlsmooth.data import record
        >>> flips = np.random.default_rng(0)
        >>> played = record(lambda _: int(flips.integers(2)), "CartPole-v1", 20, seed=0)
        >>> model = InverseDynamics(played.observation_space, played.action_space, seed=0, device="cpu")
        >>> _ = model.fit(played)
        >>> unseen = record(lambda _: int(flips.integers(2)), "CartPole-v1", 5, seed=1)
        >>> labels = model.predict(unseen.observations, unseen.next_observations)
        >>> bool(np.mean(labels == unseen.actions) > 0.98)
        True
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        smoothing: SmoothingLike | Sequence[SmoothingLike] = 0.1,
        inputs: Inputs = "difference",
        action_bins: int | None = None,
        learning_rate: LearningRate = 1e-3,
        batch_size: int = 64,
        max_epochs: int = 50,
        validation_fraction: float = 0.1,
        early_stopping_patience: int | None = 10,
        policy_kwargs: Mapping[str, Any] | None = None,
        seed: int | None = None,
        device: torch.device | str = "auto",
    ) -> None:
        agent_spaces.policy_space(observation_space)  # refuses a Dict in a Dict
        self.observation_space = observation_space
        self.action_space = action_space
        self.smoothing = smoothing
        self.inputs = inputs
        self.action_bins = action_bins
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_epochs = check_positive_int("max_epochs", max_epochs)
        self.validation_fraction = validation_fraction
        self.early_stopping_patience = early_stopping_patience
        self.is_fitted = False
        self.metrics: dict[str, float] = {}
        given = {
            **(policy_kwargs or {}),
            "features_extractor_class": TransitionFeatures,
            "features_extractor_kwargs": {"inputs": inputs},
        }
        self.device: torch.device | str = device
        self.bc = self._build("MultiInputPolicy", given, None, seed)
        self.seed = self.bc.seed

    def fit(self, transitions: Demonstrations, *, checkpoint_folder: Path | None = None) -> Self:
        """Learn from transitions, from new initial weights.

        Args:
            transitions: with `next_observations`; of any behaviour policy, best of many actions in many states. Masks,
                weights and soft targets count as for `BC`.
            checkpoint_folder: for checkpoints, from which a fit to the same transitions resumes; None: none.

        Returns:
            The model itself.

        Raises:
            TypeError: they are no `Demonstrations`.
            ValueError: no next observations, other spaces, too few episodes to hold some out; see `BC`.
            TrainingDivergedError: the loss or a parameter became NaN or infinite.
        """
        check_no_missing(self.bc.missing, "build a new model")
        agent_spaces.check_demonstrations("transitions", transitions)
        own = (self.observation_space, self.action_space)
        agent_spaces.check_same_spaces("transitions", (transitions.observation_space, transitions.action_space), own)
        if transitions.next_observations is None:
            raise ValueError("transitions have no next_observations: record them, or use ObservationOnly's pairs.")
        observations = _paired(transitions.observations, transitions.next_observations)
        pairs = transitions.replace_unchecked(
            observations=observations,
            observation_space=pair_space(transitions.observation_space),
            next_observations=None,
        )
        arguments = constructor_arguments(self.bc.policy)
        kwargs = {name: value for name, value in arguments.items() if name not in ("observation_space", "action_space")}
        self.bc = self._build(type(self.bc.policy), kwargs, pairs, self.seed)
        assert isinstance(pairs.observation_space, spaces.Dict)
        statistics = transition_statistics(pairs.observation_space, observations, self.inputs)
        for module in self.bc.policy.modules():
            if isinstance(module, TransitionFeatures):
                module.set_statistics(*statistics)
        self.metrics = train_quietly(self.bc, self.max_epochs, checkpoint_folder)
        self.is_fitted = True
        return self

    def predict(
        self,
        observations: Observations,
        next_observations: Observations,
        action_masks: NDArray[np.bool_] | None = None,
    ) -> NDArray[Any]:
        """The most probable actions (a Box: the mean, within the bounds), `[N, *action_space.shape]`.

        Args:
            observations: `[N, ...]`, or a dict of such.
            next_observations: what followed each, in the same form.
            action_masks: bool `[N, sum of the dimensions' choices]`, True = legal: others are not predicted.

        Raises:
            ValueError: before `fit`; masks for a Box, or of another shape, or without a legal choice.
        """
        head = self.bc.head
        if isinstance(head, CategoricalHead):
            labels = [
                torch.cat([part.argmax(-1).reshape(len(part), -1) for part in parts], dim=1)
                for parts in self._log_probabilities(observations, next_observations, action_masks)
            ]
            actions: NDArray[Any] = torch.cat(labels).cpu().numpy()  # [N, D]
            if self.bc.bins is not None:
                return self.bc.bins.decode(actions)
            shape = (len(actions), *(self.action_space.shape or ()))
            start = agent_spaces.action_start(self.action_space)
            actions = actions.reshape(shape) + (0 if start is None else start)
            return actions.astype(stored_dtype(self.action_space))
        self._check_masks(action_masks, 0)
        means = [
            self.bc.predict(chunk, deterministic=True)[0] for chunk, _ in self._chunks(observations, next_observations)
        ]
        return np.concatenate(means).astype(stored_dtype(self.action_space))

    def probabilities(
        self,
        observations: Observations,
        next_observations: Observations,
        action_masks: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float32] | tuple[NDArray[np.float32], ...]:
        """The probability of each action: 0 for illegal ones, 1 in all.

        Args:
            observations: `[N, ...]`, or a dict of such.
            next_observations: what followed each, in the same form.
            action_masks: bool `[N, sum of the dimensions' choices]`, True = legal.

        Returns:
            float32 `[N, K]` for Discrete, `[N, D, 2]` for MultiBinary, a tuple of `[N, K_d]` for MultiDiscrete and for
            a Box in bins.

        Raises:
            ValueError: what `predict` raises; a Box, whose actions have densities.
        """
        head = self.bc.head
        if not isinstance(head, CategoricalHead):
            raise ValueError(f"action_space={self.action_space!r} has densities, no probabilities: use predict.")
        chunks = list(self._log_probabilities(observations, next_observations, action_masks))
        groups = tuple(torch.cat(parts).exp().cpu().numpy() for parts in zip(*chunks, strict=True))
        return groups if head.kind == "multi_discrete" else groups[0]

    def save(self, path: str | Path) -> Path:
        """Write an agent file, which `BC.load` and `load_agent` read too; see `BC.save`.

        Raises:
            ValueError: before `fit`, or the folder can't be written to.
        """
        self._check_fitted()
        own = {name: getattr(self, name) for name in OWN_ARGUMENTS} | {"metrics": self.metrics}
        return self.bc.save(path, {OWN: own})

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "auto") -> Self:
        """Read a file of `save`. Runs no code that the file could name.

        Raises:
            SafeFileError: it is damaged, or holds something else.
        """
        path, content = read_agent_file(path)
        config = content.config.get("config")
        own = config.get(OWN) if isinstance(config, dict) else None
        if not isinstance(own, dict) or not set(own) >= {*OWN_ARGUMENTS, "metrics"}:
            raise SafeFileError(f"{str(path)!r} holds no inverse dynamics model: load it with load_agent.")
        bc = BC.load(path, device=device)
        with refused(path, SafeFileError):
            decode(OwnArguments, {name: own[name] for name in OWN_ARGUMENTS}, OWN)
        extractor: Any = bc.policy.features_extractor
        if not isinstance(extractor, TransitionFeatures):
            raise SafeFileError(f"{str(path)!r} has a {type(extractor).__name__} for TransitionFeatures.")
        with refused(path, SafeFileError, problem="has malformed arguments"):
            model = cls(
                _single(bc.observation_space),
                bc.action_space,
                smoothing=one_or_list(bc.smoothings),
                inputs=extractor.inputs,
                action_bins=None if bc.bins is None else bc.bins.num_bins,
                learning_rate=bc.learning_rate,
                batch_size=bc.batch_size,
                seed=bc.seed,
                device=device,
                **{name: own[name] for name in OWN_ARGUMENTS},
            )
            metrics = decode(dict[str, AnyNumber], own["metrics"], "metrics")
        model.bc, model.is_fitted, model.metrics = bc, True, metrics
        return model

    def _build(
        self, policy: Any, policy_kwargs: Mapping[str, Any], pairs: Demonstrations | None, seed: int | None
    ) -> BC:
        holds_out = pairs is not None
        return BC(
            policy,
            (pair_space(self.observation_space), self.action_space),
            pairs,
            smoothing=self.smoothing,
            action_bins=self.action_bins,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            validation_fraction=self.validation_fraction if holds_out else 0.0,
            early_stopping_patience=self.early_stopping_patience if holds_out else None,
            policy_kwargs=policy_kwargs,
            seed=seed,
            device=self.device,
        )

    def _log_probabilities(
        self, observations: Observations, next_observations: Observations, masks: NDArray[np.bool_] | None
    ) -> Iterator[tuple[Tensor, ...]]:
        """Of each group of components (see `CategoricalHead`), chunk by chunk."""
        bc: Any = self.bc
        for chunk, part in self._chunks(observations, next_observations):
            tensors, _ = bc.policy.obs_to_tensor(chunk)
            count = len(chunk[next(iter(chunk))])
            legal = self._check_masks(None if masks is None else np.asarray(masks[part]), count)
            with torch.no_grad():
                outputs = bc.head.outputs(tensors)
            yield tuple(
                log_probabilities(logits, mask)
                for logits, mask in zip(outputs, bc.head.mask_groups(legal), strict=True)
            )

    def _chunks(
        self, observations: Observations, next_observations: Observations
    ) -> Iterator[tuple[dict[str, NDArray[Any]], slice]]:
        self._check_fitted()
        pairs = _paired(observations, next_observations)
        counts = {len(part) for part in pairs.values()}
        if len(counts) != 1 or 0 in counts:
            raise ValueError(
                f"observations and next_observations have {sorted(counts)} transitions: as many, one or more."
            )
        bc: Any = self.bc
        count = counts.pop()
        one = {name: np.asarray(part[:1]) for name, part in pairs.items()}
        most = samples_at_once(
            lambda: bc.head.outputs(bc.policy.obs_to_tensor(one)[0]), self.batch_size, min(count, CHUNK_TRANSITIONS)
        )
        for start in range(0, count, most):
            chosen = slice(start, start + most)
            yield {name: np.asarray(part[chosen]) for name, part in pairs.items()}, chosen

    def _check_masks(self, masks: NDArray[np.bool_] | None, count: int) -> Tensor | None:
        if masks is None:
            return None
        dims = action_dims(self.action_space)
        if len(dims) == 0:
            raise ValueError(f"action_masks can't be used with action_space={self.action_space!r}: leave them out.")
        if masks.shape != (count, int(dims.sum())) or masks.dtype != np.bool_:
            raise ValueError(
                f"action_masks must be Boolean {(count, int(dims.sum()))} for {count} transitions, got {masks.dtype} "
                f"{masks.shape}."
            )
        if not np.logical_or.reduceat(masks, np.cumsum(dims) - dims, axis=1).all():
            raise ValueError("action_masks leave a dimension of a transition with no legal action.")
        return torch.as_tensor(forward(masks), device=self.bc.device)

    def _check_fitted(self) -> None:
        if not self.is_fitted:
            raise ValueError("the model knows nothing yet: call fit(transitions) first.")


def _paired(observations: Observations, next_observations: Observations) -> dict[str, Any]:
    """Both, by the names of `pair_space`."""
    if not isinstance(observations, Mapping):
        return {FIRST: observations, SECOND: next_observations}
    found = {}
    for key, part in observations.items():
        before, after = pair_names(key)
        found[before], found[after] = part, next_observations[key]
    return found


def _single(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """The space that `pair_space` made `space` of."""
    assert isinstance(space, spaces.Dict)
    if FIRST in space.spaces:
        return space[FIRST]
    parts = {name: part for name, part in space.items() if name.startswith(f"{FIRST}.")}
    return spaces.Dict({name.removeprefix(f"{FIRST}."): part for name, part in parts.items()})
